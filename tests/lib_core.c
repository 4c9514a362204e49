/* SPDX-License-Identifier: MIT */
#include "lib_core.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "limits.h"
#include "onebit_ring.h"

enum { TURNS_MAX = 1000000 }; /* without a pause: the core does not come to rest */

#define MS 1000000ull

static _Noreturn void broken(const char *what)
{
	fprintf(stderr, "lib_core: %s\n", what);
	abort();
}

static void *pages(size_t n)
{
	void *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096);

	if (!p)
		broken("no memory");
	return memset(p, 0, n);
}

/* ---- the environment that the core sees ------------------------------------------------------ */

static uint64_t env_now(void *ctx)
{
	return ((struct core *)ctx)->now;
}

static uint64_t env_time(void *ctx)
{
	return ((struct core *)ctx)->now / 1000000000u;
}

static void env_wake(void *ctx, uint32_t client, uint32_t need)
{
	(void)need;
	((struct core *)ctx)->c[client].wakes++;
}

static void drop_regions(struct core_client *c)
{
	free(c->client);
	free(c->daemon);
	c->client = c->daemon = NULL;
	c->on = false;
}

static void env_close(void *ctx, uint32_t client, const struct onebit_error *why)
{
	struct core_client *c = &((struct core *)ctx)->c[client];

	c->closed = true;
	c->why = *why;
	if (!((struct core *)ctx)->keep)
		drop_regions(c); /* whoever touches them now is found by the sanitizer */
}

static void env_mute(void *ctx, uint32_t client, bool mute)
{
	struct core_client *c = &((struct core *)ctx)->c[client];

	c->muted = mute;
	c->mutes += mute;
}

static void drop_exec(struct core_exec *x)
{
	x->loop = loopback_free(x->loop);
	free(x->mem.broker);
	free(x->mem.own);
	memset(&x->mem, 0, sizeof(x->mem));
	x->alive = x->dying = false;
}

static int env_exec_memory(void *ctx, unsigned link, struct exec_memory *mem)
{
	struct core_exec *x = &((struct core *)ctx)->x[link];

	if (x->no_memory)
		return -12;
	drop_exec(x);
	x->mem.broker = pages(sizeof(*x->mem.broker));
	x->mem.own = pages(sizeof(*x->mem.own));
	*mem = x->mem;
	return 0;
}

static void on_fault(void *ctx, enum loopback_fault f)
{
	struct core_exec *x = ctx;

	if (f != LOOPBACK_HANG)
		x->dying = true;
}

static void env_exec_start(void *ctx, unsigned link, uint32_t generation, const char *model)
{
	struct core *k = ctx;
	struct core_exec *x = &k->x[link];

	executor_init(&x->e, x->mem.broker, x->mem.own, k->setup.journal,
		      k->setup.policy.journal_bytes);
	snprintf(x->model, sizeof(x->model), "%s", model ? model : "");
	x->alive = true;
	x->generation = generation;
	x->starts++;
	x->due = 0;
	if (k->loopback)
		x->loop = loopback_new(&x->e, &k->options, on_fault, x);
}

static void env_exec_kill(void *ctx, unsigned link)
{
	struct core_exec *x = &((struct core *)ctx)->x[link];

	x->kills++;
	x->dying = true;
}

static void env_exec_wake(void *ctx, unsigned link)
{
	((struct core *)ctx)->x[link].wakes++;
}

static void env_reload(void *ctx)
{
	((struct core *)ctx)->reloads++;
}

static void env_log(void *ctx, enum broker_log level, const char *line)
{
	static int verbose = -1;

	(void)ctx;
	if (verbose < 0)
		verbose = getenv("ONEBIT_TEST_LOG") != NULL;
	if (verbose)
		fprintf(stderr, "%d %s\n", (int)level, line);
}

/* ---- birth and death ------------------------------------------------------------------------- */

void core_policy(struct policy *p)
{
	policy_defaults(p);
	p->journal_bytes = 16u << 20;
	p->limits.delegate = true;
	p->limits.admin = true;
}

struct core *core_new(const struct policy *p, bool has_executor, bool loopback)
{
	struct core *k = calloc(1, sizeof(*k));

	if (!k)
		broken("no memory");
	if (p)
		k->setup.policy = *p;
	else
		core_policy(&k->setup.policy);
	k->page = pages(4096);
	k->now = 1000 * MS;
	k->loopback = loopback;
	k->options = (struct loopback_options){ .delay_ns = MS, .slots = 8, .name = "test" };
	k->setup.journal = pages(k->setup.policy.journal_bytes);
	k->setup.stats = k->page;
	k->setup.epoch = 77;
	k->setup.has_executor = has_executor;
	k->setup.config_text = "socket = x\n";
	k->setup.env = (struct broker_env){
		.ctx = k,
		.now_ns = env_now,
		.time_s = env_time,
		.wake_client = env_wake,
		.close_client = env_close,
		.mute_client = env_mute,
		.exec_memory = env_exec_memory,
		.exec_start = env_exec_start,
		.exec_kill = env_exec_kill,
		.exec_wake = env_exec_wake,
		.reload = env_reload,
		.log = env_log,
	};
	k->b = broker_new(&k->setup);
	if (!k->b)
		broken("broker_new() failed");
	return k;
}

struct core *core_free(struct core *k)
{
	broker_free(k->b);
	for (int i = 0; i < CORE_CLIENTS; i++)
		drop_regions(&k->c[i]);
	for (int i = 0; i < LINKS; i++)
		drop_exec(&k->x[i]);
	free(k->setup.journal);
	free(k->page);
	free(k);
	return NULL;
}

/* ---- clients --------------------------------------------------------------------------------- */

void core_hello(struct onebit_hello *h)
{
	*h = (struct onebit_hello){
		.magic = ONEBIT_MAGIC,
		.size = sizeof(*h),
		.abi_major = ONEBIT_ABI_MAJOR,
		.features_wanted = ~0ull,
	};
}

int core_attach(struct core *k, uint32_t uid, const struct onebit_hello *h,
		struct onebit_error *why)
{
	struct onebit_hello def;
	struct onebit_error err = { 0 };
	struct core_client *c;
	struct attach a;
	uint64_t features;
	uint32_t id = 0;

	if (!h) {
		core_hello(&def);
		h = &def;
	}
	if (!why)
		why = &err;
	if (attach_parse(h, sizeof(*h), &a, why) < 0 ||
	    broker_admit(k->b, uid, &a, &id, &features, why) < 0)
		return -1;
	if (id >= CORE_CLIENTS)
		broken("more clients than the harness has places");
	c = &k->c[id];
	memset(c, 0, sizeof(*c));
	c->client = pages(a.client_bytes);
	c->daemon = pages(a.daemon_bytes);
	broker_attach(k->b, id, c->client, c->daemon, &c->w);
	c->on = true;
	c->sq_tail = c->sq_told = c->cq_head = ONEBIT_INDEX_START;
	return (int)id;
}

void core_detach(struct core *k, int c)
{
	broker_detach(k->b, (uint32_t)c);
	drop_regions(&k->c[c]);
}

void core_drop(struct core *k, int c)
{
	drop_regions(&k->c[c]);
}

static uint32_t *word(uint8_t *region, uint32_t off)
{
	return (uint32_t *)(void *)(region + off);
}

uint32_t core_taken(const struct core *k, int c)
{
	return onebit_load_acquire(word(k->c[c].daemon, k->c[c].w.sq_head_off));
}

uint32_t core_flags(const struct core *k, int c)
{
	return onebit_load_relaxed(word(k->c[c].daemon, k->c[c].w.state_off));
}

static struct onebit_sqe *sqe_at(const struct core_client *c, uint32_t index)
{
	return (struct onebit_sqe *)(void *)(c->client + c->w.sqes_off) +
	       onebit_slot(index, c->w.sq_entries);
}

bool core_put(struct core *k, int i, const struct onebit_sqe *e)
{
	struct core_client *c = &k->c[i];
	struct onebit_sqe copy = *e;

	if (onebit_distance(core_taken(k, i), c->sq_tail) >= c->w.sq_entries)
		return false;
	copy.seq = ~onebit_seq(c->sq_tail); /* not there yet */
	*sqe_at(c, c->sq_tail++) = copy;
	return true;
}

static void ring(struct core *k, int i)
{
	if (!k->c[i].muted)
		broker_doorbell(k->b, (uint32_t)i);
}

void core_publish(struct core *k, int i)
{
	struct core_client *c = &k->c[i];

	for (uint32_t at = c->sq_tail; at-- != c->sq_told;)
		onebit_store_release(&sqe_at(c, at)->seq, onebit_seq(at));
	c->sq_told = c->sq_tail;
	onebit_fence();
	if (core_flags(k, i) & ONEBIT_SQ_NEED_WAKEUP)
		ring(k, i);
}

void core_submit(struct core *k, int c, const struct onebit_sqe *e)
{
	if (!core_put(k, c, e))
		broken("the submission queue is full");
	core_publish(k, c);
}

static const struct onebit_cqe *cqe_at(const struct core_client *c, uint32_t index)
{
	return (const struct onebit_cqe *)(const void *)(c->daemon + c->w.cqes_off) +
	       onebit_slot(index, c->w.cq_entries);
}

static bool is_there(const struct core_client *c, uint32_t index)
{
	const uint32_t *mark = (const uint32_t *)(const void *)&cqe_at(c, index)->flags;

	return onebit_phase_is(onebit_load_acquire(mark), index, c->w.cq_entries);
}

uint32_t core_waiting(const struct core *k, int i)
{
	const struct core_client *c = &k->c[i];
	uint32_t n = 0;

	while (n < c->w.cq_entries && is_there(c, c->cq_head + n))
		n++;
	return n;
}

bool core_reap(struct core *k, int i, struct onebit_cqe *cqe)
{
	struct core_client *c = &k->c[i];

	if (c->closed || !is_there(c, c->cq_head))
		return false;
	*cqe = *cqe_at(c, c->cq_head++);
	cqe->flags &= (uint16_t)~ONEBIT_CQE_PHASE; /* the ring's own */
	onebit_store_release(word(c->client, c->w.cq_head_off), c->cq_head);
	onebit_fence();
	if (core_flags(k, i) & ONEBIT_SQ_STALLED)
		ring(k, i);
	return true;
}

bool core_terminal(struct core *k, int c, struct onebit_cqe *cqe, unsigned *more)
{
	while (core_reap(k, c, cqe)) {
		if (!(cqe->flags & ONEBIT_CQE_MORE))
			return true;
		if (more)
			++*more;
	}
	return false;
}

uint8_t *core_arena(const struct core *k, int c)
{
	return k->c[c].client + k->c[c].w.arena_off;
}

const uint8_t *core_out(const struct core *k, int c)
{
	return k->c[c].daemon + k->c[c].w.out_off;
}

/* ---- time ------------------------------------------------------------------------------------ */

static void bury(struct core *k)
{
	for (unsigned i = 0; i < LINKS; i++)
		if (k->x[i].dying && k->x[i].alive)
			core_exec_exit(k, i, 9);
}

void core_run(struct core *k)
{
	int turns = 0;

	do {
		while (broker_turn(k->b)) {
			bury(k);
			if (++turns > TURNS_MAX)
				broken("the core takes turns for ever");
		}
		bury(k);
		if (++turns > TURNS_MAX)
			broken("the core does not go to sleep");
	} while (!broker_sleep(k->b, &k->until));
}

static void step_loopbacks(struct core *k)
{
	int stop;

	for (unsigned i = 0; i < LINKS; i++) {
		struct core_exec *x = &k->x[i];

		if (!x->alive || !x->loop)
			continue;
		x->due = loopback_step(x->loop, k->now, &stop);
		if (stop)
			core_exec_exit(k, i, 0);
		else if (x->mem.broker->flags & EXEC_NEED_KICK)
			broker_exec_doorbell(k->b, i);
	}
	bury(k);
}

void core_step(struct core *k, uint64_t ns)
{
	k->now += ns;
	if (k->loopback)
		step_loopbacks(k);
}

void core_pass(struct core *k, uint64_t ns)
{
	core_step(k, ns);
	core_run(k);
}

void core_settle(struct core *k, unsigned steps)
{
	const struct onebit_stats *s = broker_stats(k->b);

	core_run(k);
	while (steps-- && (s->queued || s->running || s->executor_state != ONEBIT_EXEC_READY)) {
		core_pass(k, MS);
		s = broker_stats(k->b);
	}
}

/* ---- the scripted executor ------------------------------------------------------------------- */

void core_exec_emit(struct core *k, unsigned link, const struct exec_event *ev, const void *data)
{
	struct core_exec *x = &k->x[link];

	if (executor_emit(&x->e, ev, data))
		broken("no room for an event");
	executor_kick(&x->e);
	if (x->mem.broker->flags & EXEC_NEED_KICK)
		broker_exec_doorbell(k->b, link);
}

void core_exec_hello(struct core *k, unsigned link, uint32_t slots)
{
	struct exec_event ev = { .kind = EXEC_EV_HELLO, .data_len = sizeof(struct exec_hello) };
	struct exec_hello h = {
		.version = EXEC_VERSION,
		.slots = slots,
		.ops = (1u << ONEBIT_OP_COUNT) - 1,
		.param_flags = ONEBIT_PARAM_FLAGS_ALL,
		.model = { .size = sizeof(h.model), .contract = 1, .context = 4096 },
	};

	memset(h.model.model_id, 7, sizeof(h.model.model_id));
	core_run(k);
	core_exec_emit(k, link, &ev, &h);
	core_run(k);
}

bool core_exec_cmd(struct core *k, unsigned link, struct exec_cmd *cmd)
{
	return k->x[link].alive && executor_next(&k->x[link].e, cmd);
}

void core_exec_exit(struct core *k, unsigned link, int status)
{
	k->x[link].alive = false;
	broker_exec_exited(k->b, link, status);
	drop_exec(&k->x[link]);
}

struct exec_cmd core_exec_run(struct core *k, unsigned link)
{
	struct exec_cmd cmd = { 0 };

	if (!core_exec_cmd(k, link, &cmd) || cmd.kind != EXEC_CMD_RUN)
		broken("the executor was given nothing to run");
	return cmd;
}

uint32_t core_token(uint32_t choice, uint32_t index)
{
	return 1000 + choice * 100000 + index;
}

uint32_t core_records(uint8_t *data, uint32_t choice, uint32_t first, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct onebit_record rec = { .size = CORE_RECORD, .text_len = 3,
					     .token = core_token(choice, first + i) };
		uint32_t nr = (first + i) % 100;
		uint8_t *to = data + (size_t)i * CORE_RECORD;

		memset(to, 0, CORE_RECORD);
		memcpy(to, &rec, sizeof(rec));
		to[sizeof(rec)] = 't';
		to[sizeof(rec) + 1] = (uint8_t)('0' + nr / 10);
		to[sizeof(rec) + 2] = (uint8_t)('0' + nr % 10);
	}
	return n * CORE_RECORD;
}

struct exec_event core_event(const struct exec_cmd *run, uint32_t kind)
{
	return (struct exec_event){ .kind = kind, .slot = run->slot, .tag = run->tag };
}

void core_exec_tokens(struct core *k, unsigned link, const struct exec_cmd *run, uint32_t choice,
		      uint32_t first, uint32_t n, uint8_t finish)
{
	static uint8_t data[EXEC_EVENT_DATA_MAX];
	struct exec_event ev = core_event(run, EXEC_EV_TOKENS);

	ev.choice = (uint16_t)choice;
	ev.first = first;
	ev.n = n;
	ev.finish = finish;
	ev.data_len = core_records(data, choice, first, n);
	core_exec_emit(k, link, &ev, data);
}

void core_exec_finish(struct core *k, unsigned link, const struct exec_cmd *run, bool replay)
{
	const struct journal_entry *j = executor_entry(&k->x[link].e, run);
	struct exec_event ev = core_event(run, EXEC_EV_END);

	for (uint32_t c = 0; c < j->params.n_choices; c++) {
		uint32_t n = j->done[c].n;

		if (j->done[c].finish)
			continue;
		if (replay && n) {
			struct exec_event re = core_event(run, EXEC_EV_REPLAYED);

			re.choice = (uint16_t)c;
			re.first = n - 1;
			re.detail = core_token(c, n - 1);
			core_exec_emit(k, link, &re, NULL);
		}
		core_exec_tokens(k, link, run, c, n, j->params.max_tokens - n,
				 ONEBIT_FINISH_LENGTH);
	}
	core_exec_emit(k, link, &ev, NULL);
	core_run(k);
}

/* ---- blocks ---------------------------------------------------------------------------------- */

#define AT(f) ((uint32_t)offsetof(struct core_block, f))

void core_block_plain(struct core_block *t, const char *text, uint32_t max_tokens)
{
	memset(t, 0, sizeof(*t));
	t->p.size = sizeof(t->p);
	t->p.max_tokens = max_tokens;
	t->p.segments_off = AT(seg);
	t->p.n_segments = 1;
	t->seg[0] = (struct onebit_segment){
		.role = ONEBIT_ROLE_USER, .off = AT(text), .len = (uint32_t)strlen(text),
	};
	memcpy(t->text, text, strlen(text));
}

void core_block_full(struct core_block *t)
{
	core_block_plain(t, "tell me a story", 16);
	t->p.seed = 5;
	t->p.min_tokens = 1;
	t->p.n_choices = 2;
	t->p.flags = ONEBIT_PARAM_LOGPROBS;
	t->p.top_logprobs = 2;
	t->p.top_k = 40;
	t->p.temperature_micro = 700000;
	t->p.top_p_micro = 900000;
	t->p.min_p_micro = 10000;
	t->p.repetition_micro = 1100000;
	t->p.frequency_micro = -100000;
	t->p.presence_micro = 100000;
	t->p.repetition_last_n = 64;
	t->p.n_segments = 2;
	t->seg[1] = (struct onebit_segment){
		.role = ONEBIT_ROLE_ASSISTANT, .kind = ONEBIT_SEG_TOKENS,
		.flags = ONEBIT_SEG_CONTINUE, .off = AT(ids), .len = 8,
	};
	t->p.stops_off = AT(stop);
	t->p.n_stops = 2;
	t->stop[0] = t->stop[1] = (struct onebit_span){ .off = AT(text), .len = 4 };
	t->p.bias_off = AT(bias);
	t->p.n_bias = 2;
	t->bias[0] = (struct onebit_bias){ .token = 3, .bias_micro = -1 };
	t->bias[1] = (struct onebit_bias){ .token = 4, .bias_micro = INT32_MIN };
	t->p.resume_off = AT(resume);
	t->p.n_resume = 2;
	t->resume[0] = t->resume[1] = (struct onebit_resume){ .first = 2, .tokens_off = AT(ids) };
	for (uint32_t i = 0; i < 4; i++)
		t->ids[i] = 300 + i;
	t->p.grammar_off = AT(g);
	t->p.grammar_len = sizeof(t->g) + sizeof(t->gs) + sizeof(t->ge);
	t->g = (struct onebit_grammar){
		.size = t->p.grammar_len, .n_states = 2, .n_edges = 2, .max_depth = 4,
	};
	t->gs[0].n_edges = 2;
	t->gs[1].flags = ONEBIT_GSTATE_ACCEPT;
	t->ge[0] = (struct onebit_gedge){ .lo = 'a', .hi = 'z', .target = 1 };
	t->ge[1] = (struct onebit_gedge){ .lo = 'A', .hi = 'Z', .target = 1 };
}

struct onebit_sqe core_generate(struct core *k, int c, const struct core_block *t, uint32_t in_off,
				uint32_t out_off, uint32_t out_len, uint64_t user_data)
{
	memcpy(core_arena(k, c) + in_off, t, sizeof(*t));
	return (struct onebit_sqe){
		.op = ONEBIT_OP_GENERATE, .user_data = user_data, .in_off = in_off,
		.in_len = sizeof(*t), .out_off = out_off, .out_len = out_len,
	};
}

/* ---- chance ---------------------------------------------------------------------------------- */

uint64_t core_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

uint64_t core_seed(const char *test)
{
	const char *s = getenv("ONEBIT_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : (uint64_t)time(NULL);

	fprintf(stderr, "%s: ONEBIT_SEED=%llu\n", test, (unsigned long long)seed);
	return seed;
}

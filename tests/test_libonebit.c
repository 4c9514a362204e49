/* SPDX-License-Identifier: MIT */
/*
 * libonebit against a daemon that is told what to do (lib_fakedaemon.c): what the library makes of
 * welcomes, completions and records, right and wrong, and how it gets over a daemon's death.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include "lib_fakedaemon.h"
#include "lib_tmp.h"
#include "libonebit.h"
#include "onebit_ring.h"

static struct fake fake;
static struct onebit *o;
static struct onebit_event ev;

static void setup(void)
{
	fake_start(&fake);
	o = NULL;
}

static void teardown(void)
{
	onebit_close(o);
	fake_stop(&fake);
}

static void open_with(const struct onebit_options *options)
{
	struct onebit_error err;
	int r;

	o = fake_open(&fake, options, &r, &err);
	ck_assert_msg(o != NULL, "open: %d %s", r, r ? err.text : "");
}

static uint64_t generate(uint16_t n_choices, uint32_t max_tokens, size_t out_bytes)
{
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = "ask", .len = 3 };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1,
				     .user = &part, .out_bytes = out_bytes };
	uint64_t id = 0;
	int r;

	rq.params.n_choices = n_choices;
	rq.params.max_tokens = max_tokens;
	rq.params.seed = 5;
	r = onebit_submit(o, &rq, &id);
	ck_assert_msg(!r, "submit: %d %s", r, onebit_last_error(o)->text);
	return id;
}

static struct onebit_sqe pop(unsigned op)
{
	struct onebit_sqe sqe;

	ck_assert_msg(fake_pop(&fake, &sqe), "no SQE where one was expected");
	ck_assert_uint_eq(sqe.op, op);
	return sqe;
}

static void next_is(uint32_t type)
{
	int r = onebit_next(o, &ev, 0);

	ck_assert_msg(r == 1, "next: %d, expected an event of type %u", r, type);
	ck_assert_uint_eq(ev.type, type);
}

static void next_is_tokens(uint32_t choice, uint32_t first, uint32_t n, const char *text)
{
	const struct onebit_record *rec;

	next_is(ONEBIT_EV_TOKENS);
	ck_assert_uint_eq(ev.choice, choice);
	ck_assert_uint_eq(ev.first, first);
	ck_assert_uint_eq(ev.n, n);
	ck_assert_uint_eq(ev.text_len, strlen(text));
	ck_assert_mem_eq(ev.text ? ev.text : "", text, strlen(text));
	rec = ev.records;
	for (uint32_t i = 0; i < n; i++, rec = onebit_record_next(rec))
		ck_assert_uint_eq(rec->token, 1000 * choice + first + i);
}

static void next_is_end(int res)
{
	next_is(ONEBIT_EV_END);
	ck_assert_msg(ev.res == res, "END %d (%s), expected %d", ev.res, ev.error.text, res);
}

static void next_is_none(void)
{
	ck_assert_int_eq(onebit_next(o, &ev, 0), 0);
}

/* Token `index` of a choice has the id 1000 * choice + index. */
static void tokens(const struct onebit_sqe *sqe, uint16_t choice, const char *const *texts)
{
	for (; *texts; texts++)
		ck_assert(fake_token(&fake, sqe, choice,
				     1000u * choice + fake_choice(&fake, sqe, choice)->n_tokens, *texts));
}
#define TOKENS(sqe, choice, ...) tokens(sqe, choice, (const char *const[]){ __VA_ARGS__, NULL })

/* The daemon dies and another takes its place: the library finds it, nothing is told twice. */
static void restart(void)
{
	fake_die(&fake);
	/* The first look at the socket comes with the first poll after 10 ms, or with a wait. */
	for (int i = 0; i < 200; i++) {
		struct pollfd p = { .fd = fake.listener, .events = POLLIN };

		ck_assert_int_eq(onebit_next(o, &ev, 0), 0);
		if (poll(&p, 1, 1) == 1)
			break;
	}
	fake_accept(&fake);
	ck_assert_int_eq(onebit_next(o, &ev, 0), 0);
}

static int fds_open(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* ---- attach ---------------------------------------------------------------------------------- */

/* Each field of the welcome wrong alone; the last case leaves it right. */
static const char *const bend_names[] = {
	"magic", "size", "major", "minor", "feature not wanted", "client_bytes beyond the file",
	"daemon_bytes beyond the file", "client_bytes 0", "daemon_bytes 0", "stats_bytes small",
	"stats_bytes beyond the file", "sq_entries 0", "sq_entries not a power of two",
	"sq_entries too many", "cq_entries 0", "cq_entries not a power of two", "cq_entries too many",
	"cq_entries too few", "cq_head outside", "cq_head misaligned", "cq_head on sqes",
	"wake outside", "wake on cq_head", "sqes outside", "sqes misaligned", "arena outside",
	"arena on sqes", "arena_bytes small", "arena_bytes large", "sq_head outside",
	"sq_head misaligned", "state outside", "state misaligned", "futex outside", "futex misaligned",
	"futex on state", "cqes outside",
	"cqes misaligned", "out outside", "out on cqes", "out_bytes small", "out_bytes large",
	"reserved0", "reserved1", "reserved[0]", "reserved[4]", "two descriptors", "no descriptor",
	"stats descriptor missing", "one byte short", "right",
};
#define BENDS (sizeof(bend_names) / sizeof(bend_names[0]))

static void bend(struct fake *f, struct onebit_welcome *w, int nr)
{
	const char *name = bend_names[nr];

	f->n_fds = -1;
	f->welcome_len = sizeof(*w);
#define IS(s) if (!strcmp(name, s))
	IS("magic") w->magic++;
	IS("size") w->size += 8;
	IS("major") w->abi_major++;
	IS("minor") w->abi_minor++;
	IS("feature not wanted") w->features |= ONEBIT_FEAT_TENANT;
	IS("client_bytes beyond the file") w->client_bytes += 4096;
	IS("daemon_bytes beyond the file") w->daemon_bytes += 4096;
	IS("client_bytes 0") w->client_bytes = 0;
	IS("daemon_bytes 0") w->daemon_bytes = 0;
	IS("stats_bytes small") w->stats_bytes = 100;
	IS("stats_bytes beyond the file") w->stats_bytes = 8192;
	IS("sq_entries 0") w->sq_entries = 0;
	IS("sq_entries not a power of two") w->sq_entries = 15;
	IS("sq_entries too many") w->sq_entries = 2048;
	IS("cq_entries 0") w->cq_entries = 0;
	IS("cq_entries not a power of two") w->cq_entries = 33;
	IS("cq_entries too many") w->cq_entries = 8192;
	IS("cq_entries too few") w->cq_entries = 16;
	IS("cq_head outside") w->cq_head_off = w->client_bytes - 2;
	IS("cq_head misaligned") w->cq_head_off = 2;
	IS("cq_head on sqes") w->cq_head_off = w->sqes_off + 44;
	IS("wake outside") w->wake_off = w->client_bytes - 4;
	IS("wake on cq_head") w->wake_off = w->cq_head_off - 4;
	IS("sqes outside") w->sqes_off = w->client_bytes - 64;
	IS("sqes misaligned") w->sqes_off += 8;
	IS("arena outside") w->arena_off += 64;
	IS("arena on sqes") w->arena_off = w->sqes_off + 64;
	IS("arena_bytes small") w->arena_bytes = 64;
	IS("arena_bytes large") w->arena_bytes = ONEBIT_AREA_MAX + 4096;
	IS("sq_head outside") w->sq_head_off = 0xfffffffc;
	IS("sq_head misaligned") w->sq_head_off = 1;
	IS("state outside") w->state_off = w->daemon_bytes - 24;
	IS("state misaligned") w->state_off += 4;
	IS("futex outside") w->futex_off = w->daemon_bytes;
	IS("futex misaligned") w->futex_off += 2;
	IS("futex on state") w->futex_off = w->state_off + 4;
	IS("cqes outside") w->cqes_off = w->daemon_bytes - 32;
	IS("cqes misaligned") w->cqes_off += 16;
	IS("out outside") w->out_off += 4096;
	IS("out on cqes") w->out_off = w->cqes_off + 64;
	IS("out_bytes small") w->out_bytes = 8;
	IS("out_bytes large") w->out_bytes = ONEBIT_AREA_MAX * 2;
	IS("reserved0") w->reserved0 = 1;
	IS("reserved1") w->reserved1 = 1;
	IS("reserved[0]") w->reserved[0] = 1;
	IS("reserved[4]") w->reserved[4] = 1;
	IS("two descriptors") f->n_fds = 2;
	IS("no descriptor") f->n_fds = 0;
	IS("stats descriptor missing") f->n_fds = 3;
	IS("one byte short") f->welcome_len--;
#undef IS
}

/* A wrong welcome would be mapped, and fault or corrupt later; or its descriptors would leak. */
START_TEST(welcome_wrong)
{
	struct onebit_options options = { .size = sizeof(options), .features = ONEBIT_FEAT_STATS };
	bool right = !strcmp(bend_names[_i], "right");
	struct onebit_error err = { 0 };
	int r, before;

	fake.bend = bend;
	fake.nr = _i;
	before = fds_open();
	o = fake_open(&fake, &options, &r, &err);
	ck_assert_msg((r == 0) == right, "%s: %d %s", bend_names[_i], r, err.text);
	if (!right) {
		ck_assert_int_eq(r, -EPROTO);
		ck_assert_int_eq(err.err, -EPROTO);
		ck_assert(err.text[0]);
	}
	onebit_close(o);
	o = NULL;
	fake_die(&fake);
	ck_assert_int_eq(fds_open(), before);
}
END_TEST

static void bend_refuse(struct fake *f, struct onebit_welcome *w, int nr)
{
	(void)nr;
	memset(w, 0, sizeof(*w));
	f->n_fds = 0;
	w->error.err = -EDQUOT;
	w->error.code = ONEBIT_E_Q_CLIENTS;
	w->error.retryable = 1;
	w->error.retry_after_ms = 250;
	memset(w->error.text, 'x', sizeof(w->error.text));
}

/* A refusal would not reach the program, or an unterminated text would be read past its end. */
START_TEST(welcome_refused)
{
	struct onebit_error err;
	int r;

	fake.bend = bend_refuse;
	o = fake_open(&fake, NULL, &r, &err);
	ck_assert_int_eq(r, -EDQUOT);
	ck_assert_uint_eq(err.code, ONEBIT_E_Q_CLIENTS);
	ck_assert_uint_eq(err.retry_after_ms, 250);
	ck_assert_uint_eq(strlen(err.text), sizeof(err.text) - 1);
}
END_TEST

/* Nobody listening would hang or be told without saying what to do. */
START_TEST(nobody_there)
{
	struct onebit_options options = { .size = sizeof(options), .socket = "/nonexistent/socket" };
	struct onebit_error err;

	ck_assert_int_eq(onebit_open(&o, &options, &err), -ENOENT);
	ck_assert(err.retryable);
	ck_assert_ptr_nonnull(strstr(err.text, "/nonexistent/socket"));
	o = NULL;
}
END_TEST

/* An option of a later library would be ignored in silence; a shorter struct would be refused. */
START_TEST(options_sizes)
{
	struct {
		struct onebit_options known;
		uint64_t later;
	} big = { .known = { .size = sizeof(big), .socket = "/nonexistent/x" }, .later = 1 };
	struct onebit_error err;

	ck_assert_int_eq(onebit_open(&o, &big.known, &err), -E2BIG);
	big.later = 0;
	ck_assert_int_eq(onebit_open(&o, &big.known, &err), -ENOENT);
	big.known.size = 16;
	ck_assert_int_eq(onebit_open(&o, &big.known, &err), -ENOENT);
	big.known.size = 0;
	ck_assert_int_eq(onebit_open(&o, &big.known, &err), -EINVAL);
	o = NULL;
}
END_TEST

/* The hello would not say what the options ask for. */
START_TEST(hello_says)
{
	struct onebit_options options = { .size = sizeof(options), .sq_entries = 32, .cq_entries = 128,
					  .arena_bytes = 8192, .out_bytes = 12288,
					  .wait = ONEBIT_WAIT_SPIN, .features = ONEBIT_FEAT_STATS };
	struct onebit_stats s;

	open_with(&options);
	ck_assert_uint_eq(fake.hello.magic, ONEBIT_MAGIC);
	ck_assert_uint_eq(fake.hello.sq_entries, 32);
	ck_assert_uint_eq(fake.hello.cq_entries, 128);
	ck_assert_uint_eq(fake.hello.arena_bytes, 8192);
	ck_assert_uint_eq(fake.hello.out_bytes, 12288);
	ck_assert_uint_eq(fake.hello.features_wanted,
			  ONEBIT_FEAT_NOTIFY | ONEBIT_FEAT_INLINE | ONEBIT_FEAT_RESUME |
			  ONEBIT_FEAT_SPIN | ONEBIT_FEAT_STATS);
	ck_assert_int_eq(onebit_stats_read(o, &s), 0);
	ck_assert_uint_eq(s.tokens, 42);
}
END_TEST

/* ---- the bare ring --------------------------------------------------------------------------- */

/* Indices would go wrong where they wrap (256 entries after the start), or a full ring be overrun. */
START_TEST(ring_wraps)
{
	struct onebit_sqe sqe, *e;
	struct onebit_cqe cqe = { 0 };
	uint64_t next = 0;

	open_with(NULL);
	for (int round = 0; round < 64; round++) {
		for (uint32_t i = 0; i < fake.sq_entries; i++) {
			e = onebit_ring_sqe(o);
			ck_assert_ptr_nonnull(e);
			e->user_data = next + i;
		}
		ck_assert_ptr_null(onebit_ring_sqe(o));
		ck_assert(!fake_pop(&fake, &sqe)); /* not before publishing */
		onebit_ring_publish(o);
		for (uint32_t i = 0; i < fake.sq_entries; i++) {
			sqe = pop(ONEBIT_OP_NOP);
			ck_assert_uint_eq(sqe.user_data, next + i);
			cqe.user_data = sqe.user_data;
			fake_push(&fake, &cqe);
		}
		ck_assert_int_eq(onebit_ring_wait(o, 0), 1);
		for (uint32_t i = 0; i < fake.sq_entries; i++)
			ck_assert_uint_eq(onebit_ring_cqe(o, i)->user_data, next + i);
		ck_assert_ptr_null(onebit_ring_cqe(o, fake.sq_entries));
		onebit_ring_reap(o, fake.sq_entries);
		ck_assert_ptr_null(onebit_ring_cqe(o, 0));
		next += fake.sq_entries;
	}
}
END_TEST

/* A sleeping daemon would not be woken, or an awake one be rung for nothing. */
START_TEST(doorbell_when_asked)
{
	open_with(NULL);
	onebit_ring_sqe(o);
	onebit_ring_publish(o);
	ck_assert_uint_eq(fake_rung(&fake), 0);
	fake.state->flags = ONEBIT_SQ_NEED_WAKEUP;
	onebit_ring_publish(o); /* nothing new */
	ck_assert_uint_eq(fake_rung(&fake), 0);
	onebit_ring_sqe(o);
	onebit_ring_sqe(o);
	onebit_ring_publish(o);
	ck_assert_uint_eq(fake_rung(&fake), 1);
}
END_TEST

/* A daemon that stalled on a full CQ would wait for ever for the room we made. */
START_TEST(stalled_is_told)
{
	struct onebit_cqe cqe = { 0 };

	open_with(NULL);
	fake_push(&fake, &cqe);
	ck_assert_int_eq(onebit_ring_wait(o, 0), 1);
	fake.state->flags = ONEBIT_SQ_STALLED;
	onebit_ring_reap(o, 1);
	ck_assert_uint_eq(fake_rung(&fake), 1);
	/* It may stall just after we reaped: then going to sleep tells it. */
	fake.state->flags = 0;
	fake_push(&fake, &cqe);
	ck_assert_int_eq(onebit_ring_wait(o, 0), 1);
	onebit_ring_reap(o, 1);
	fake.state->flags = ONEBIT_SQ_STALLED;
	ck_assert_int_eq(onebit_ring_wait(o, 1), 0);
	ck_assert_uint_eq(fake_rung(&fake), 1);
	ck_assert_int_eq(onebit_ring_wait(o, 1), 0);
	ck_assert_uint_eq(fake_rung(&fake), 0); /* nothing was reaped since */
}
END_TEST

static void *push_later(void *arg)
{
	struct timespec t = { .tv_nsec = 5000000 };
	struct onebit_cqe cqe = { .user_data = 9 };
	bool *asked = arg;

	for (int i = 0; i < (*asked ? 2000 : 4) && !(fake_need(&fake) & ONEBIT_WAKE_FUTEX); i++)
		nanosleep(&t, NULL);
	*asked = fake_need(&fake) & ONEBIT_WAKE_FUTEX;
	fake_push(&fake, &cqe);
	return NULL;
}

/* How often this thread went to sleep. */
static long sleeps_so_far(void)
{
	struct rusage u;

	ck_assert_int_eq(getrusage(RUSAGE_THREAD, &u), 0);
	return u.ru_nvcsw;
}

/* A waiter of one of the three kinds would miss the completion, or report one that is not there. */
START_TEST(wait_kinds)
{
	struct onebit_options options = { .size = sizeof(options), .wait = (uint32_t)_i };
	bool sleeps = _i != ONEBIT_WAIT_SPIN, asked;
	pthread_t t;

	open_with(&options);
	fake.state->cpu = 10000; /* awake, on a CPU that is not ours */
	for (int i = 0; i < 3; i++) {
		long slept = sleeps_so_far();

		ck_assert_int_eq(onebit_ring_wait(o, 20), 0);
		ck_assert(!sleeps || sleeps_so_far() > slept);
		asked = sleeps;
		pthread_create(&t, NULL, push_later, &asked);
		ck_assert_int_eq(onebit_ring_wait(o, -1), 1);
		ck_assert_uint_eq(onebit_ring_cqe(o, 0)->user_data, 9);
		onebit_ring_reap(o, 1);
		pthread_join(t, NULL);
		/* It asked to be woken before it slept; without, only the next slice would find out. */
		ck_assert(asked == sleeps);
		ck_assert_uint_eq(fake_need(&fake), 0);
	}
	fake_die(&fake);
	ck_assert_int_eq(onebit_ring_wait(o, -1), -ECONNRESET);
}
END_TEST

/* What is written but not marked, or of the lap before, would be taken for a completion. */
START_TEST(other_lap_is_not_there)
{
	const uint32_t entries = 2 * fake.sq_entries;
	struct onebit_cqe junk, cqe = { 0 };
	uint64_t next = 0;

	open_with(NULL);
	for (int lap = 0; lap < 20; lap++) { /* past the wrap */
		for (uint32_t i = 0; i < entries; i++, next++) {
			memset(&junk, (int)next | 0x81, sizeof(junk));
			junk.user_data = 1ull << 63;
			fake_prepare(&fake, &junk);
			ck_assert_ptr_null(onebit_ring_cqe(o, 0));
			ck_assert_int_eq(onebit_ring_wait(o, 0), 0);
			ck_assert_int_eq(onebit_next(o, &ev, 0), 0);
			cqe.user_data = next;
			fake_push(&fake, &cqe);
			ck_assert_ptr_nonnull(onebit_ring_cqe(o, 0));
			ck_assert_uint_eq(onebit_ring_cqe(o, 0)->user_data, next);
			ck_assert_ptr_null(onebit_ring_cqe(o, 1));
			onebit_ring_reap(o, 1);
		}
		/* All of a lap at once, and nothing behind it is taken for one more. */
		for (uint32_t i = 0; i < entries; i++)
			fake_push(&fake, &cqe);
		for (uint32_t i = 0; i < 4 * entries; i++)
			ck_assert(!onebit_ring_cqe(o, i) == (i >= entries));
		onebit_ring_reap(o, entries);
	}
}
END_TEST

/* ---- requests -------------------------------------------------------------------------------- */

/* A table of the block would lie where the daemon does not look for it. */
START_TEST(block_layout)
{
	static const uint32_t ids[] = { 11, 12, 13 };
	struct onebit_part parts[] = {
		{ .role = ONEBIT_ROLE_SYSTEM, .data = "Be good", .len = 7 },
		{ .role = ONEBIT_ROLE_RAW, .kind = ONEBIT_SEG_TOKENS, .flags = 0, .data = ids,
		  .len = sizeof(ids) },
		{ .role = ONEBIT_ROLE_ASSISTANT, .flags = ONEBIT_SEG_CONTINUE, .data = "S", .len = 1 },
	};
	const char *stops[] = { "END", "\n" };
	struct onebit_bias bias[] = { { 3, -5 }, { 4, INT32_MIN } };
	struct {
		struct onebit_grammar g;
		struct onebit_gstate s;
	} grammar = { .g = { .size = sizeof(grammar), .n_states = 1 }, .s = { 0, 0, ONEBIT_GSTATE_ACCEPT } };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .priority = ONEBIT_PRIO_BATCH,
				     .deadline_ms = 60000, .random_seed = 1, .parts = parts, .n_parts = 3,
				     .stops = stops, .n_stops = 2, .bias = bias, .n_bias = 2,
				     .grammar = &grammar.g };
	const struct onebit_segment *seg;
	const struct onebit_params *p;
	const struct onebit_span *span;
	struct onebit_sqe sqe;
	const char *b;
	uint64_t id;

	open_with(NULL);
	rq.params.top_k = 40;
	rq.params.max_tokens = 8;
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_uint_eq(sqe.user_data, id);
	ck_assert_uint_eq(sqe.priority, ONEBIT_PRIO_BATCH);
	ck_assert(sqe.deadline_ms > 50000 && sqe.deadline_ms <= 60000);
	ck_assert_uint_eq(sqe.in_off % 8, 0);
	ck_assert_uint_ge(sqe.out_len, sizeof(struct onebit_out) + sizeof(struct onebit_choice) + 8 * 64);
	b = fake_block(&fake, &sqe);
	p = fake_params(&fake, &sqe);
	ck_assert_uint_eq(p->size, sizeof(*p));
	ck_assert_uint_eq(p->top_k, 40);
	ck_assert_uint_eq(p->n_resume + p->resume_off, 0);
	ck_assert(p->seed != 0);
	ck_assert_uint_eq(p->seed, onebit_seed(o, id));
	ck_assert_uint_eq((p->segments_off | p->stops_off | p->bias_off | p->grammar_off) % 8, 0);
	seg = (const struct onebit_segment *)(b + p->segments_off);
	ck_assert_uint_eq(p->n_segments, 3);
	ck_assert_mem_eq(b + seg[0].off, "Be good", 7);
	ck_assert_uint_eq(seg[1].off % 4, 0);
	ck_assert_uint_eq(seg[1].kind, ONEBIT_SEG_TOKENS);
	ck_assert_mem_eq(b + seg[1].off, ids, sizeof(ids));
	ck_assert_uint_eq(seg[2].flags, ONEBIT_SEG_CONTINUE);
	ck_assert_uint_eq(seg[2].len, 1);
	span = (const struct onebit_span *)(b + p->stops_off);
	ck_assert_uint_eq(p->n_stops, 2);
	ck_assert_uint_eq(span[0].len, 3);
	ck_assert_mem_eq(b + span[0].off, "END", 3);
	ck_assert_mem_eq(b + span[1].off, "\n", 1);
	ck_assert_uint_le(span[1].off + span[1].len, sqe.in_len);
	ck_assert_mem_eq(b + p->bias_off, bias, sizeof(bias));
	ck_assert_uint_eq(p->grammar_len, sizeof(grammar));
	ck_assert_mem_eq(b + p->grammar_off, &grammar, sizeof(grammar));
}
END_TEST

/* Operations without a block would carry fields that must be zero, or their answer get lost. */
START_TEST(other_operations)
{
	struct onebit_request nop = { .op = ONEBIT_OP_NOP };
	struct onebit_request echo = { .op = ONEBIT_OP_ECHO, .data = "hallo", .data_len = 5 };
	struct onebit_sqe sqe;
	uint64_t id;

	open_with(NULL);
	ck_assert_int_eq(onebit_submit(o, &nop, &id), 0);
	sqe = pop(ONEBIT_OP_NOP);
	ck_assert_uint_eq(sqe.in_len | sqe.out_len | sqe.in_off | sqe.out_off, 0);
	fake_end(&fake, &sqe, 0, 0, 77);
	next_is_end(0);
	ck_assert_uint_eq(ev.error.detail, 77); /* the handle of a session would stand here */
	ck_assert_int_eq(onebit_submit(o, &echo, &id), 0);
	sqe = pop(ONEBIT_OP_ECHO);
	ck_assert_uint_eq(sqe.out_len, 5);
	memcpy(fake.daemon + fake.welcome.out_off + sqe.out_off, fake_block(&fake, &sqe), 5);
	fake_end(&fake, &sqe, 5, 0, 0);
	next_is_end(5);
	ck_assert_mem_eq(ev.data, "hallo", 5);
	ck_assert_int_eq(onebit_submit(o, &echo, &id), 0);
	sqe = pop(ONEBIT_OP_ECHO);
	fake_end(&fake, &sqe, 6, 0, 0); /* more than the window has */
	next_is_end(-EPROTO);
	ck_assert_ptr_null(ev.data);
}
END_TEST

/* Requests that fit later and requests that never fit would be mixed up, or room never come back. */
START_TEST(areas_exhausted)
{
	char *big = calloc(1, 2 * FAKE_AREA);
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = big, .len = 30000 };
	struct onebit_request rq = { .op = ONEBIT_OP_TOKENIZE, .parts = &part, .n_parts = 1, .out_bytes = 64 };
	struct onebit_sqe sqe;
	uint64_t id;

	open_with(NULL);
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	ck_assert_int_eq(onebit_submit(o, &rq, &id), -EAGAIN);
	ck_assert(onebit_last_error(o)->retryable);
	/* The daemon has copied the first block: its range is free though the request goes on. */
	sqe = pop(ONEBIT_OP_TOKENIZE);
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	ck_assert_int_eq(onebit_submit(o, &rq, &id), -EAGAIN);
	part.len = FAKE_AREA;
	ck_assert_int_eq(onebit_submit(o, &rq, &id), -EMSGSIZE);
	ck_assert(!onebit_last_error(o)->retryable);
	part.len = 5u << 20;
	ck_assert_int_eq(onebit_submit(o, &rq, &id), -EMSGSIZE);
	part.len = 1;
	rq.out_bytes = FAKE_AREA + 8;
	ck_assert_int_eq(onebit_submit(o, &rq, &id), -ENOSPC);
	/* The out area: given back by the END, when the program has seen it. */
	rq.out_bytes = FAKE_AREA - 64 * 3;
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	rq.out_bytes = 64;
	ck_assert_int_eq(onebit_submit(o, &rq, &id), -EAGAIN);
	fake_end(&fake, &sqe, 64, 0, 0);
	next_is_end(64);
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	free(big);
}
END_TEST

/* More requests than may be in flight would be submitted, or a slot be lost with each request. */
START_TEST(slots_come_back)
{
	struct onebit_request rq = { .op = ONEBIT_OP_NOP };
	struct onebit_sqe sqe;
	uint64_t id;

	open_with(NULL);
	for (int round = 0; round < 100; round++) {
		for (uint32_t i = 0; i < fake.max_inflight; i++)
			ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
		ck_assert_int_eq(onebit_submit(o, &rq, &id), -EAGAIN);
		while (fake_pop(&fake, &sqe))
			fake_end(&fake, &sqe, 0, 0, 0);
		for (uint32_t i = 0; i < fake.max_inflight; i++)
			next_is_end(0);
		next_is_none();
	}
}
END_TEST

/* ---- events ---------------------------------------------------------------------------------- */

/* Merged progress, several choices or texts in pieces would be told wrongly. */
START_TEST(progress_merges)
{
	struct onebit_sqe sqe;
	uint64_t id;

	open_with(NULL);
	id = generate(2, 16, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, true);
	next_is(ONEBIT_EV_ACCEPTED);
	ck_assert_uint_eq(ev.id, id);
	ck_assert_ptr_nonnull(ev.user);
	next_is_none();
	TOKENS(&sqe, 0, "The ", "", "cat ");
	TOKENS(&sqe, 1, "A ");
	fake_progress(&fake, &sqe, 0, 0, 1);
	next_is_tokens(0, 0, 1, "The ");
	fake_progress(&fake, &sqe, 0, 1, 2);
	next_is_tokens(0, 1, 2, "cat ");
	fake_progress(&fake, &sqe, 1, 0, 1);
	TOKENS(&sqe, 0, "sat", " on", " it");
	fake_progress(&fake, &sqe, 0, 3, 3);
	next_is_tokens(1, 0, 1, "A ");
	next_is_tokens(0, 3, 3, "sat on it");
	next_is_none();
	/* What no progress told comes before the END, each choice for itself. */
	TOKENS(&sqe, 0, ".");
	TOKENS(&sqe, 1, "dog", "");
	fake_choice(&fake, &sqe, 0)->finish = ONEBIT_FINISH_STOP;
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_tokens(0, 6, 1, ".");
	next_is_tokens(1, 1, 2, "dog");
	next_is_end(0);
	ck_assert_uint_eq(ev.out->n_choices, 2);
	ck_assert_uint_eq(ev.choices[0].finish, ONEBIT_FINISH_STOP);
	ck_assert_uint_eq(ev.choices[1].n_tokens, 3);
	next_is_none();
}
END_TEST

/* An answer that came with its terminal only would be lost, or its ACCEPTED told out of order. */
START_TEST(terminal_only)
{
	struct onebit_sqe sqe;

	open_with(NULL);
	generate(1, 4, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "all", " of", " it");
	fake_end(&fake, &sqe, -ETIME, ONEBIT_E_DEADLINE, 30);
	next_is_tokens(0, 0, 3, "all of it");
	next_is_end(-ETIME);
	ck_assert_uint_eq(ev.error.code, ONEBIT_E_DEADLINE);
	ck_assert_ptr_nonnull(strstr(ev.error.text, "30 ms"));
	ck_assert_uint_eq(ev.error.request_id, 1);
}
END_TEST

/* A refused request would be given the tokens of the one that had its window before. */
START_TEST(stale_window)
{
	struct onebit_sqe sqe, again;

	open_with(NULL);
	generate(1, 4, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "old");
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_tokens(0, 0, 1, "old");
	next_is_end(0);
	generate(1, 4, 0);
	again = pop(ONEBIT_OP_GENERATE);
	ck_assert_uint_eq(again.out_off, sqe.out_off);
	fake_end(&fake, &again, -EDQUOT, ONEBIT_E_Q_INFLIGHT, 1);
	next_is_end(-EDQUOT);
	ck_assert_ptr_null(ev.out);
}
END_TEST

/* Text of more records than the library's buffer holds would be cut, or run over it. */
START_TEST(long_text)
{
	struct onebit_sqe sqe;
	char piece[4001], *all = calloc(1, 16 * 4000 + 1);
	size_t got = 0;
	uint32_t n = 0;

	open_with(NULL);
	generate(1, 15, FAKE_AREA);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	for (int i = 0; i < 15; i++) {
		memset(piece, 'a' + i, 4000);
		piece[4000] = 0;
		strcat(all, piece);
		ck_assert(fake_token(&fake, &sqe, 0, (uint32_t)i, piece));
	}
	fake_progress(&fake, &sqe, 0, 0, 15);
	while (n < 15) {
		next_is(ONEBIT_EV_TOKENS);
		ck_assert_uint_eq(ev.first, n);
		ck_assert_mem_eq(ev.text, all + got, ev.text_len);
		got += ev.text_len;
		n += ev.n;
	}
	ck_assert_uint_eq(got, strlen(all));
	next_is_none();
	free(all);
}
END_TEST

/* Each lie about a window alone: it would be read outside, for ever, or told as an answer. */
static const char *const lies[] = {
	"record of 0 bytes", "record past cap", "record misaligned", "text past record",
	"tops past record", "top text past record", "rec_off in header", "rec_off outside",
	"rec_cap outside", "rec_off misaligned", "gap", "n_choices", "count past records",
	"choice number", "header size",
};
#define LIES ((int)(sizeof(lies) / sizeof(lies[0])))

START_TEST(records_lie)
{
	const char *lie = lies[_i % LIES];
	bool terminal = _i >= LIES;
	struct onebit_choice *c;
	struct onebit_record *r;
	struct onebit_sqe sqe;
	struct onebit_out *out;
	uint16_t told = 0;

	open_with(NULL);
	generate(1, 4, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, true);
	next_is(ONEBIT_EV_ACCEPTED);
	TOKENS(&sqe, 0, "lie");
	c = fake_choice(&fake, &sqe, 0);
	out = (struct onebit_out *)(fake.daemon + fake.welcome.out_off + sqe.out_off);
	r = (struct onebit_record *)((char *)out + c->rec_off);
#define IS(s) if (!strcmp(lie, s))
	IS("record of 0 bytes") r->size = 0;
	IS("record past cap") r->size = 4096;
	IS("record misaligned") r->size = 20;
	IS("text past record") r->text_len = 9;
	IS("tops past record") r->n_top = 1;
	IS("top text past record") {
		struct onebit_top *top = (struct onebit_top *)(r + 1);

		r->size = 40;
		r->n_top = 1;
		top->text_off = 36;
		top->text_len = 5;
	}
	IS("rec_off in header") c->rec_off = 0; /* it would pass for a record of one token */
	IS("rec_off outside") c->rec_off = sqe.out_len + 8;
	IS("rec_cap outside") c->rec_cap = sqe.out_len - c->rec_off + 8;
	IS("rec_off misaligned") c->rec_off += 4;
	IS("gap") c->first_token = 1;
	IS("n_choices") out->n_choices = 2;
	IS("count past records") c->n_tokens = 1000000;
	IS("choice number") told = 1;
	IS("header size") out->size = 8;
#undef IS
	if (!terminal) {
		fake_progress(&fake, &sqe, told, 0, c->n_tokens > 1 ? 60000 : 1);
		if (!strcmp(lie, "gap"))
			fake_progress(&fake, &sqe, 0, 1, 1);
		next_is_none();
		pop(ONEBIT_OP_CANCEL);
		fake_end(&fake, &sqe, -ECANCELED, ONEBIT_E_CANCELLED, 1);
	} else {
		if (!strcmp(lie, "choice number"))
			return; /* a terminal has none */
		if (!strcmp(lie, "gap"))
			c->n_tokens = 2;
		fake_end(&fake, &sqe, 0, 0, 0);
	}
	/* A header that does not hold at all is as good as none; nothing may be told of it. */
	next_is(ONEBIT_EV_END);
	if (strcmp(lie, "n_choices") && strcmp(lie, "header size"))
		ck_assert_int_eq(ev.res, -EPROTO);
	ck_assert_ptr_null(ev.out);
	next_is_none();
	/* The next request is as good as any. */
	generate(1, 4, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "true");
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_tokens(0, 0, 1, "true");
	next_is_end(0);
}
END_TEST

/* Completions of nobody would be told, or be taken for another request's. */
START_TEST(strange_completions)
{
	struct onebit_cqe cqe = { .user_data = 0xdeadbeef00000000ull };
	struct onebit_sqe sqe;

	open_with(NULL);
	fake_push(&fake, &cqe);
	cqe.user_data = UINT64_MAX;
	cqe.flags = ONEBIT_CQE_MORE;
	fake_push(&fake, &cqe);
	next_is_none();
	generate(1, 4, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_end(&fake, &sqe, -EIO, ONEBIT_E_EXECUTOR, 0);
	fake_end(&fake, &sqe, -EIO, ONEBIT_E_EXECUTOR, 0);
	next_is_end(-EIO);
	next_is_none();
}
END_TEST

/* A cancel would not reach the daemon, or the request have two ends, or none. */
START_TEST(cancel)
{
	struct onebit_sqe sqe, c;
	uint64_t id;

	open_with(NULL);
	id = generate(1, 4, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_int_eq(onebit_cancel(o, id), 0);
	ck_assert_int_eq(onebit_cancel(o, id), 0);
	c = pop(ONEBIT_OP_CANCEL);
	ck_assert_uint_eq(c.arg, id);
	ck_assert(!fake_pop(&fake, &c));
	fake_end(&fake, &sqe, -ECANCELED, ONEBIT_E_CANCELLED, 0);
	fake_end(&fake, &c, 1, 0, 0);
	next_is_end(-ECANCELED);
	next_is_none();
	ck_assert_int_eq(onebit_cancel(o, id), -ENOENT);
}
END_TEST

/* A cancel that finds the ring full would be forgotten. */
START_TEST(cancel_waits_for_room)
{
	struct onebit_sqe sqe = { 0 }, c;
	uint64_t id;

	fake.max_inflight = 32;
	open_with(NULL);
	id = generate(1, 4, 256);
	for (uint32_t i = 1; i < fake.sq_entries; i++)
		generate(1, 4, 256);
	ck_assert_int_eq(onebit_cancel(o, id), 0);
	for (uint32_t i = 0; i < fake.sq_entries; i++)
		sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert(!fake_pop(&fake, &c));
	next_is_none();
	c = pop(ONEBIT_OP_CANCEL);
	ck_assert_uint_eq(c.arg, id);
	ck_assert_uint_ne(sqe.user_data, id);
}
END_TEST

/* A full window would end an answer that can go on in the next one. */
START_TEST(window_full_goes_on)
{
	static const char *const word = "twelve bytes";
	uint32_t told = 0, rounds = 0;
	struct onebit_sqe sqe;

	open_with(NULL);
	generate(1, 20, 128 + 5 * 32);
	while (told < 20) {
		ck_assert_uint_lt(++rounds, 10);
		sqe = pop(ONEBIT_OP_GENERATE);
		fake_admit(&fake, &sqe, false);
		for (uint32_t i = told; i < 20 && fake_token(&fake, &sqe, 0, i, word); i++)
			;
		if (fake_choice(&fake, &sqe, 0)->n_tokens < 20)
			fake_end(&fake, &sqe, -ENOBUFS, ONEBIT_E_WINDOW_FULL, 0);
		else
			fake_end(&fake, &sqe, 0, 0, 0);
		next_is(ONEBIT_EV_TOKENS);
		ck_assert_uint_eq(ev.first, told);
		for (uint32_t i = 0; i < ev.n; i++, ev.records = onebit_record_next(ev.records))
			ck_assert_uint_eq(ev.records->token, told + i);
		told += ev.n;
		if (told < 20)
			next_is_none();
	}
	next_is_end(0);
	ck_assert_uint_eq(rounds, 4);
	/* A window in which nothing fits is an end, not a loop. */
	generate(1, 20, 256);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	fake_end(&fake, &sqe, -ENOBUFS, ONEBIT_E_WINDOW_FULL, 0);
	next_is_end(-ENOBUFS);
}
END_TEST

/* The library's own guess at a window would be the program's problem. */
START_TEST(window_grows)
{
	struct onebit_request rq = { .op = ONEBIT_OP_QUERY };
	struct onebit_sqe sqe;
	uint32_t need;
	uint64_t id;

	open_with(NULL);
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	sqe = pop(ONEBIT_OP_QUERY);
	need = sqe.out_len + 1000;
	fake_end(&fake, &sqe, -ENOBUFS, ONEBIT_E_OUT_TOO_SMALL, need);
	next_is_none();
	sqe = pop(ONEBIT_OP_QUERY);
	ck_assert_uint_ge(sqe.out_len, need);
	fake_end(&fake, &sqe, 1, 0, 0);
	next_is_end(1);
	rq.out_bytes = 64; /* one that the program chose is not changed */
	ck_assert_int_eq(onebit_submit(o, &rq, &id), 0);
	sqe = pop(ONEBIT_OP_QUERY);
	fake_end(&fake, &sqe, -ENOBUFS, ONEBIT_E_OUT_TOO_SMALL, need);
	next_is_end(-ENOBUFS);
	/* More tokens than the area holds: as much as there is; and the length of a guess, a part. */
	generate(1, 100000, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_uint_eq(sqe.out_len, FAKE_AREA);
	fake_end(&fake, &sqe, -EIO, ONEBIT_E_EXECUTOR, 0);
	next_is_end(-EIO);
	for (int i = 0; i < 4; i++)
		generate(1, 0, 0);
}
END_TEST

/* ---- event loops ----------------------------------------------------------------------------- */

static bool readable(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };

	return poll(&p, 1, ms) == 1;
}

/* A foreign loop would not be woken, spin, or lose its registration with a re-attachment. */
START_TEST(event_loop)
{
	struct epoll_event e = { .events = EPOLLIN };
	int loop = epoll_create1(0), fd;
	struct onebit_sqe sqe;

	open_with(NULL);
	fd = onebit_fd(o);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(epoll_ctl(loop, EPOLL_CTL_ADD, fd, &e), 0);
	for (int round = 0; round < 3; round++) {
		generate(1, 4, 0);
		sqe = pop(ONEBIT_OP_GENERATE);
		next_is_none();
		ck_assert_int_eq(onebit_arm(o), 0);
		ck_assert_int_eq(epoll_wait(loop, &e, 1, 0), 0);
		fake_admit(&fake, &sqe, false);
		TOKENS(&sqe, 0, "tick");
		fake_progress(&fake, &sqe, 0, 0, 1);
		fake_progress(&fake, &sqe, 0, 1, 0);
		ck_assert_int_eq(epoll_wait(loop, &e, 1, 10000), 1);
		next_is_tokens(0, 0, 1, "tick");
		next_is_none();
		ck_assert_int_eq(epoll_wait(loop, &e, 1, 0), 0);
		/* Not armed: no message. */
		fake_end(&fake, &sqe, 0, 0, 0);
		ck_assert_int_eq(epoll_wait(loop, &e, 1, 0), 0);
		/* Arming with something to take says so. */
		ck_assert_int_eq(onebit_arm(o), 1);
		ck_assert(!readable(fd, 0));
		next_is_end(0);
		ck_assert_int_eq(onebit_arm(o), 0);

		/*
		 * The daemon dies: the descriptor says so. While nobody listens it tells when to try
		 * again, and then brings us to the next one.
		 */
		generate(1, 4, 0);
		ck_assert_int_eq(onebit_arm(o), 0);
		fake_deafen(&fake);
		fake_die(&fake);
		for (int i = 0; i < 5; i++) {
			ck_assert_int_eq(epoll_wait(loop, &e, 1, 10000), 1);
			next_is_none();
			ck_assert_int_eq(onebit_arm(o), 0);
		}
		fake_listen(&fake);
		for (int i = 0; i < 50 && !readable(fake.listener, 0); i++) {
			ck_assert_int_eq(onebit_arm(o), 0);
			ck_assert_int_eq(epoll_wait(loop, &e, 1, 10000), 1);
			next_is_none();
		}
		ck_assert_int_eq(onebit_arm(o), 0);
		ck_assert_int_eq(epoll_wait(loop, &e, 1, 0), 0);
		fake_accept(&fake);
		ck_assert_int_eq(epoll_wait(loop, &e, 1, 10000), 1);
		next_is_none();
		ck_assert_int_eq(onebit_fd(o), fd);
		ck_assert_int_eq(onebit_arm(o), 0);
		sqe = pop(ONEBIT_OP_GENERATE);
		fake_end(&fake, &sqe, 0, 0, 0);
		ck_assert_int_eq(epoll_wait(loop, &e, 1, 10000), 1);
		next_is_end(0);
	}
	close(loop);
}
END_TEST

/* ---- a lost daemon --------------------------------------------------------------------------- */

/* A token would be lost, doubled or asked for again wrongly when the daemon was restarted. */
START_TEST(resume)
{
	static const uint8_t none[32];
	const struct onebit_params *p;
	const struct onebit_resume *table;
	struct onebit_sqe sqe;
	uint64_t id;

	open_with(NULL);
	id = generate(2, 16, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_mem_eq(fake_params(&fake, &sqe)->model_id, none, 32);
	fake_admit(&fake, &sqe, true);
	TOKENS(&sqe, 0, "a", "b", "c");
	TOKENS(&sqe, 1, "x");
	fake_progress(&fake, &sqe, 0, 0, 2); /* "c" and "x" are never told */
	next_is(ONEBIT_EV_ACCEPTED);
	next_is_tokens(0, 0, 2, "ab");
	restart();

	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_uint_eq(sqe.user_data, id);
	p = fake_params(&fake, &sqe);
	ck_assert_uint_eq(p->n_resume, 2);
	ck_assert_uint_eq(p->seed, 5);
	ck_assert_mem_eq(p->model_id, fake.model_id, 32);
	table = (const struct onebit_resume *)(fake_block(&fake, &sqe) + p->resume_off);
	ck_assert_uint_eq(table[0].first, 2);
	ck_assert_mem_eq(fake_block(&fake, &sqe) + table[0].tokens_off, ((uint32_t[]){ 0, 1 }), 8);
	ck_assert_uint_eq(table[1].first, 0);
	ck_assert_uint_eq(table[1].tokens_off, 0);
	fake_admit(&fake, &sqe, true);
	TOKENS(&sqe, 0, "c", "d");
	TOKENS(&sqe, 1, "x", "y");
	fake_progress(&fake, &sqe, 0, 2, 2);
	next_is_tokens(0, 2, 2, "cd"); /* and not ACCEPTED again */
	fake_progress(&fake, &sqe, 1, 0, 1);
	next_is_tokens(1, 0, 1, "x");

	restart(); /* again: now the table is made of the last table and of records */
	sqe = pop(ONEBIT_OP_GENERATE);
	p = fake_params(&fake, &sqe);
	table = (const struct onebit_resume *)(fake_block(&fake, &sqe) + p->resume_off);
	ck_assert_uint_eq(table[0].first, 4);
	ck_assert_mem_eq(fake_block(&fake, &sqe) + table[0].tokens_off, ((uint32_t[]){ 0, 1, 2, 3 }), 16);
	ck_assert_uint_eq(table[1].first, 1);
	ck_assert_mem_eq(fake_block(&fake, &sqe) + table[1].tokens_off, ((uint32_t[]){ 1000 }), 4);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 1, "y");
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_tokens(1, 1, 1, "y");
	next_is_end(0);
	ck_assert_uint_eq(ev.id, id);
	next_is_none();
}
END_TEST

/* The daemon refuses a table with all tokens of a choice; and the last one would be told twice. */
START_TEST(resume_complete_choice)
{
	const struct onebit_resume *table;
	struct onebit_sqe sqe;

	open_with(NULL);
	generate(2, 3, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "a", "b", "c");
	fake_progress(&fake, &sqe, 0, 0, 3);
	next_is_tokens(0, 0, 3, "abc");
	restart();
	sqe = pop(ONEBIT_OP_GENERATE);
	table = (const struct onebit_resume *)(fake_block(&fake, &sqe) +
					       fake_params(&fake, &sqe)->resume_off);
	ck_assert_uint_eq(table[0].first, 2);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "c");
	TOKENS(&sqe, 1, "x");
	fake_progress(&fake, &sqe, 0, 2, 1);
	next_is_none();
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_tokens(1, 0, 1, "x");
	next_is_end(0);
}
END_TEST

/* Without the resume feature the answer begins anew and what was told would be told again. */
START_TEST(resume_not_offered)
{
	struct onebit_sqe sqe;

	fake.features &= ~ONEBIT_FEAT_RESUME;
	open_with(NULL);
	generate(1, 8, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "a", "b");
	fake_progress(&fake, &sqe, 0, 0, 2);
	next_is_tokens(0, 0, 2, "ab");
	restart();
	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_uint_eq(fake_params(&fake, &sqe)->n_resume, 0);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "a", "b", "c");
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_tokens(0, 2, 1, "c");
	next_is_end(0);
}
END_TEST

/* What cannot go on would hang, or be told with a code that the program cannot understand. */
START_TEST(resume_impossible)
{
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = "ask", .len = 3 };
	struct onebit_request once = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	uint64_t told, cancelled, replayed;
	struct onebit_sqe sqe;
	int ends = 0;

	open_with(NULL);
	once.params.flags = ONEBIT_PARAM_NO_REPLAY;
	once.params.max_tokens = 8;
	told = generate(1, 8, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, false);
	TOKENS(&sqe, 0, "a");
	fake_progress(&fake, &sqe, 0, 0, 1);
	next_is_tokens(0, 0, 1, "a");
	cancelled = generate(1, 8, 0);
	pop(ONEBIT_OP_GENERATE);
	ck_assert_int_eq(onebit_cancel(o, cancelled), 0);
	ck_assert_int_eq(onebit_submit(o, &once, &replayed), 0);
	pop(ONEBIT_OP_CANCEL);
	pop(ONEBIT_OP_GENERATE);
	fake_die(&fake);
	for (int i = 0; i < 1000 && ends < 2; i++) {
		if (onebit_next(o, &ev, 1) != 1)
			continue;
		ck_assert_uint_eq(ev.type, ONEBIT_EV_END);
		ck_assert_int_eq(ev.error.code, ev.id == cancelled ? ONEBIT_E_CANCELLED :
								    ONEBIT_E_REPLAY_REFUSED);
		ck_assert(ev.id == cancelled || ev.id == replayed);
		ends++;
	}
	ck_assert_int_eq(ends, 2);
	while (!readable(fake.listener, 0))
		next_is_none();
	fake_accept(&fake);
	next_is_none();
	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_uint_eq(sqe.user_data, told);
	fake_end(&fake, &sqe, -ESTALE, ONEBIT_E_MODEL_CHANGED, 2);
	next_is_end(-ESTALE);
	ck_assert_uint_eq(ev.error.code, ONEBIT_E_LOST);
	ck_assert(!fake_pop(&fake, &sqe));
}
END_TEST

/* Completions that a dying daemon still published would be thrown away and done again. */
START_TEST(last_words)
{
	struct onebit_sqe sqe;

	open_with(NULL);
	generate(1, 8, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_admit(&fake, &sqe, true);
	TOKENS(&sqe, 0, "a");
	fake_end(&fake, &sqe, 0, 0, 0);
	fake_die(&fake);
	next_is(ONEBIT_EV_ACCEPTED);
	next_is_tokens(0, 0, 1, "a");
	next_is_end(0);
}
END_TEST

/* A daemon that has just started refuses for a moment: that would end what it never saw begin. */
START_TEST(refused_for_now)
{
	struct onebit_cqe cqe = { .res = -ENODEV };
	struct onebit_sqe sqe;
	uint64_t id;

	open_with(NULL);
	id = generate(1, 8, 0);
	pop(ONEBIT_OP_GENERATE);
	restart();
	for (int i = 0; i < 3; i++) {
		sqe = pop(ONEBIT_OP_GENERATE);
		ck_assert_uint_eq(sqe.user_data, id);
		cqe.user_data = id;
		cqe.u.end.code = ONEBIT_E_NO_MODEL;
		cqe.u.end.retryable = 1;
		fake_push(&fake, &cqe);
		next_is_none();
		ck_assert(!fake_pop(&fake, &sqe)); /* not at once */
		ck_assert_int_eq(onebit_next(o, &ev, 60), 0);
	}
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_end(0);
	/* The same refusal of a request that is new here is an answer. */
	generate(1, 8, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_end(&fake, &sqe, -ENODEV, ONEBIT_E_NO_MODEL, 0);
	next_is_end(-ENODEV);
}
END_TEST

/* A daemon that stops in good order would end requests that the next one can answer. */
START_TEST(draining_is_waited_out)
{
	struct onebit_sqe sqe;
	uint64_t id;

	open_with(NULL);
	id = generate(1, 8, 0);
	sqe = pop(ONEBIT_OP_GENERATE);
	fake_end(&fake, &sqe, -ESHUTDOWN, ONEBIT_E_DRAINING, 2);
	fake_goodbye(&fake, ONEBIT_E_DRAINING);
	next_is_none();
	restart();
	sqe = pop(ONEBIT_OP_GENERATE);
	ck_assert_uint_eq(sqe.user_data, id);
	fake_end(&fake, &sqe, 0, 0, 0);
	next_is_end(0);
}
END_TEST

/* Thrown out or without re-attachment, requests would hang instead of ending; or we would argue. */
START_TEST(ends_when_gone)
{
	struct onebit_options options = { .size = sizeof(options), .no_reconnect = _i == 0 };
	int expected = _i == 0 ? -ECONNRESET : -ESHUTDOWN;

	open_with(&options);
	generate(1, 8, 0);
	generate(1, 8, 0);
	if (_i == 1)
		fake_goodbye(&fake, ONEBIT_E_EVICTED);
	if (_i == 2)
		fake.state->state = ONEBIT_STATE_DETACHED;
	else
		fake_die(&fake);
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(onebit_next(o, &ev, 2000), 1);
		ck_assert_uint_eq(ev.type, ONEBIT_EV_END);
		ck_assert_int_eq(ev.res, expected);
	}
	ck_assert_int_eq(onebit_next(o, &ev, -1), expected);
	ck_assert_int_eq(onebit_last_error(o)->err, expected);
	ck_assert(!readable(fake.listener, 0));
	ck_assert_int_eq(onebit_submit(o, &(struct onebit_request){ .op = ONEBIT_OP_NOP }, &(uint64_t){ 0 }),
			 expected);
	if (_i == 1)
		ck_assert_uint_eq(onebit_last_error(o)->code, ONEBIT_E_EVICTED);
}
END_TEST

/* A daemon that stays away would be waited for without end, or next() not keep to its timeout. */
START_TEST(stays_away)
{
	struct onebit_options options = { .size = sizeof(options), .reconnect_ms = 100 };
	int rounds = 0;

	open_with(&options);
	generate(1, 8, 0);
	fake_stop(&fake);
	while (!onebit_next(o, &ev, 5))
		ck_assert_int_lt(++rounds, 10000);
	ck_assert_int_gt(rounds, 3); /* it came back in between */
	ck_assert_uint_eq(ev.type, ONEBIT_EV_END);
	ck_assert_int_eq(ev.res, -ECONNRESET);
	ck_assert_int_eq(onebit_next(o, &ev, -1), -ECONNRESET);
	fake_start(&fake);
}
END_TEST

/* ---- all together ---------------------------------------------------------------------------- */

/*
 * A daemon that merges, dies and resumes at random: any order of these that loses, doubles or
 * changes a token. Run again with ONEBIT_SEED.
 */
#define REQUESTS 4
#define CHOICES  3
#define LENGTH   40

struct job {
	uint64_t id;
	struct onebit_sqe sqe;
	bool placed, ended;
	uint32_t progress[CHOICES]; /* told by progress CQEs of this placement */
	uint32_t told[CHOICES];     /* by events */
};

static uint32_t token_of(uint64_t id, uint32_t choice, uint32_t index)
{
	return (uint32_t)((id * 2654435761u) ^ (choice * 40503u) ^ (index * 97u));
}

static struct job *job_find(struct job *jobs, uint64_t id)
{
	for (int i = 0; i < REQUESTS; i++)
		if (jobs[i].id == id)
			return &jobs[i];
	ck_abort_msg("event of an unknown request");
	return NULL;
}

static void jobs_pop(struct job *jobs)
{
	struct onebit_sqe sqe;

	while (fake_pop(&fake, &sqe)) {
		const struct onebit_params *p = fake_params(&fake, &sqe);
		struct job *j = job_find(jobs, sqe.user_data);

		ck_assert(!j->placed && !j->ended);
		j->sqe = sqe;
		j->placed = true;
		fake_admit(&fake, &sqe, random() % 2);
		for (uint16_t c = 0; c < CHOICES; c++) {
			const struct onebit_resume *t = (const void *)(fake_block(&fake, &sqe) + p->resume_off);
			uint32_t n = p->n_resume ? t[c].first : 0;

			ck_assert_uint_le(n, j->told[c]);
			j->progress[c] = n;
			for (uint32_t i = 0; i < n; i++)
				ck_assert_uint_eq(((const uint32_t *)(fake_block(&fake, &sqe) + t[c].tokens_off))[i],
						  token_of(j->id, c, i));
		}
	}
}

static void job_work(struct job *j)
{
	uint16_t c = (uint16_t)(random() % CHOICES);
	struct onebit_choice *choice = fake_choice(&fake, &j->sqe, c);
	char text[16] = "";
	bool all = true;

	for (long n = random() % 6; n > 0 && choice->n_tokens < LENGTH; n--) {
		memset(text, 'a' + c, (size_t)(random() % 15));
		if (!fake_token(&fake, &j->sqe, c, token_of(j->id, c, choice->n_tokens), text)) {
			fake_end(&fake, &j->sqe, -ENOBUFS, ONEBIT_E_WINDOW_FULL, 0);
			j->placed = false;
			return;
		}
	}
	if (random() % 2 && choice->n_tokens > j->progress[c]) {
		fake_progress(&fake, &j->sqe, c, j->progress[c], choice->n_tokens - j->progress[c]);
		j->progress[c] = choice->n_tokens;
	}
	for (c = 0; c < CHOICES; c++)
		all = all && fake_choice(&fake, &j->sqe, c)->n_tokens == LENGTH;
	if (all) {
		fake_end(&fake, &j->sqe, 0, 0, 0);
		j->placed = false;
	}
}

static void jobs_event(struct job *jobs, int *left)
{
	struct job *j = job_find(jobs, ev.id);
	const struct onebit_record *r = ev.records;

	ck_assert(!j->ended);
	if (ev.type == ONEBIT_EV_TOKENS) {
		ck_assert_uint_eq(ev.first, j->told[ev.choice]);
		for (uint32_t i = 0; i < ev.n; i++, r = onebit_record_next(r))
			ck_assert_uint_eq(r->token, token_of(j->id, ev.choice, ev.first + i));
		j->told[ev.choice] += ev.n;
	} else if (ev.type == ONEBIT_EV_END) {
		ck_assert_msg(ev.res == 0, "%s", ev.error.text);
		for (int c = 0; c < CHOICES; c++)
			ck_assert_uint_eq(j->told[c], LENGTH);
		j->ended = true;
		(*left)--;
	}
}

START_TEST(random_walk)
{
	const char *given = getenv("ONEBIT_SEED");
	unsigned seed = given ? (unsigned)strtoul(given, NULL, 0) : (unsigned)time(NULL) * 64 + (unsigned)_i;
	struct job jobs[REQUESTS] = { 0 };
	int left = REQUESTS, deaths = 0;

	fprintf(stderr, "random_walk: ONEBIT_SEED=%u\n", seed);
	fflush(stdout);
	srandom(seed);
	fake.area = 4 * FAKE_AREA;
	open_with(NULL);
	for (int i = 0; i < REQUESTS; i++)
		jobs[i].id = generate(CHOICES, random() % 2 ? LENGTH : 0,
				      random() % 2 ? 0 : 1024 + (size_t)(random() % 4096));
	for (int step = 0; left && step < 100000; step++) {
		jobs_pop(jobs);
		for (int i = 0; i < REQUESTS; i++)
			if (jobs[i].placed && random() % 3 == 0)
				job_work(&jobs[i]);
		if (random() % 4 == 0 || step % 8 == 0)
			while (onebit_next(o, &ev, 0) == 1)
				jobs_event(jobs, &left);
		if (deaths < 5 && random() % 64 == 0) {
			deaths++;
			fake_die(&fake);
			while (!readable(fake.listener, 0))
				if (onebit_next(o, &ev, 1) == 1)
					jobs_event(jobs, &left);
			fake_accept(&fake);
			for (int i = 0; i < REQUESTS; i++)
				jobs[i].placed = false;
			if (onebit_next(o, &ev, 0) == 1)
				jobs_event(jobs, &left);
		}
	}
	ck_assert_int_eq(left, 0);
}
END_TEST

/* A code would have no words, lose its number, or an unknown one crash. */
START_TEST(code_texts)
{
	char text[160], small[8];

	ck_assert_str_eq(onebit_code_name(ONEBIT_E_Q_TOKENS), "Q_TOKENS");
	ck_assert_str_eq(onebit_code_name(999), "UNKNOWN");
	ck_assert_str_eq(onebit_layer_name(ONEBIT_LAYER_ADMISSION), "admission");
	ck_assert_str_eq(onebit_layer_name(77), "unknown");
	onebit_code_text(ONEBIT_E_DEADLINE, 18446744073709551615ull, text, sizeof(text));
	ck_assert_ptr_nonnull(strstr(text, "of 18446744073709551615 ms"));
	onebit_code_text(999, 5, text, sizeof(text));
	ck_assert_ptr_nonnull(strstr(text, "999"));
	onebit_code_text(ONEBIT_E_DEADLINE, 1, small, sizeof(small));
	ck_assert_uint_eq(strlen(small), 7);
#define EACH(name, nr, err, layer, retry, sentence) \
	onebit_code_text(nr, 123456, text, sizeof(text)); \
	ck_assert(!strchr(text, '%')); \
	ck_assert((strstr(sentence, "%llu") != NULL) == (strstr(text, "123456") != NULL));
	ONEBIT_CODES(EACH)
#undef EACH
}
END_TEST

int main(void)
{
	Suite *s = suite_create("libonebit");
	TCase *c = tcase_create("libonebit");
	SRunner *run;
	int failed;

	tmp_fixture(c);
	tcase_set_timeout(c, 60);
	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_loop_test(c, welcome_wrong, 0, (int)BENDS);
	tcase_add_test(c, welcome_refused);
	tcase_add_test(c, nobody_there);
	tcase_add_test(c, options_sizes);
	tcase_add_test(c, hello_says);
	tcase_add_test(c, ring_wraps);
	tcase_add_test(c, doorbell_when_asked);
	tcase_add_test(c, stalled_is_told);
	tcase_add_loop_test(c, wait_kinds, ONEBIT_WAIT_SLEEP, ONEBIT_WAIT_SPIN + 1);
	tcase_add_test(c, other_lap_is_not_there);
	tcase_add_test(c, block_layout);
	tcase_add_test(c, other_operations);
	tcase_add_test(c, areas_exhausted);
	tcase_add_test(c, slots_come_back);
	tcase_add_test(c, progress_merges);
	tcase_add_test(c, terminal_only);
	tcase_add_test(c, stale_window);
	tcase_add_test(c, long_text);
	tcase_add_loop_test(c, records_lie, 0, 2 * LIES);
	tcase_add_test(c, strange_completions);
	tcase_add_test(c, cancel);
	tcase_add_test(c, cancel_waits_for_room);
	tcase_add_test(c, window_full_goes_on);
	tcase_add_test(c, window_grows);
	tcase_add_test(c, event_loop);
	tcase_add_test(c, resume);
	tcase_add_test(c, resume_complete_choice);
	tcase_add_test(c, resume_not_offered);
	tcase_add_test(c, resume_impossible);
	tcase_add_test(c, last_words);
	tcase_add_test(c, refused_for_now);
	tcase_add_test(c, draining_is_waited_out);
	tcase_add_loop_test(c, ends_when_gone, 0, 3);
	tcase_add_test(c, stays_away);
	tcase_add_loop_test(c, random_walk, 0, 40);
	tcase_add_test(c, code_texts);
	suite_add_tcase(s, c);
	run = srunner_create(s);
	srunner_run_all(run, CK_NORMAL);
	failed = srunner_ntests_failed(run);
	srunner_free(run);
	return failed != 0;
}

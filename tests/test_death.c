/* SPDX-License-Identifier: MIT */
/*
 * The dying, with streams running. For every accepted request: exactly one end, no gap, no repeat,
 * and the bytes of an undisturbed run, which loopback.h foretells (test_e2e.c proves that it does).
 *
 * ONEBIT_SCALE: percent of the full counts. ONEBIT_SEED repeats the random choices, not the
 * scheduler's.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lib_e2e.h"
#include "loopback.h"

#define CLIENT_DEATHS   2000u
#define EXECUTOR_DEATHS 500u
#define CANCELS         1000u

#define PATIENCE_MS 60000

/* What hung executors cost in waiting; far above what a busy machine makes a live one wait. */
#define PROGRESS "progress_ms = 250\n"

static struct e2e d;
static uint8_t model[32];

static struct onebit *start(const char *executor, const char *settings)
{
	struct onebit *o;

	e2e_start(&d, executor, settings);
	o = e2e_open(&d, NULL);
	e2e_model(o, model);
	return o;
}

static void stop(struct onebit *o)
{
	onebit_close(o);
	e2e_stop(&d);
}

/* Everything that was taken has been given back; o is all that is attached. */
static void settle(struct onebit *o)
{
	const struct onebit_welcome *w = onebit_welcome(o);
	struct onebit_stats s;

	until((s = e2e_stats(o)).clients == 1 && !s.queued && !s.running && !s.journal_bytes &&
	      !s.suspects && s.bytes == (uint64_t)w->client_bytes + w->daemon_bytes,
	      "not given back: %u clients, %u queued, %u running, %llu bytes, %llu in the journal",
	      s.clients, s.queued, s.running, (unsigned long long)s.bytes,
	      (unsigned long long)s.journal_bytes);
}

/* ---- clients ----------------------------------------------------------------------------------- */

/* Lives until it is killed; whatever goes wrong with it is noticed by the others, or is its death. */
static _Noreturn void victim(uint64_t rnd)
{
	struct onebit_options options = { .size = sizeof(options), .socket = d.socket,
					  .out_bytes = 64u << 10, .no_reconnect = 1 };
	struct onebit_part part = { .data = "soon to die", .len = 11 };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	struct onebit_event ev;
	struct onebit *o;
	uint64_t id;

	if (onebit_open(&o, &options, NULL))
		_exit(1);
	for (;;) {
		rq.params.max_tokens = 1 + e2e_below(&rnd, 200);
		rq.params.seed = e2e_random(&rnd);
		rq.out_bytes = 4096;
		while (!onebit_submit(o, &rq, &id) && e2e_below(&rnd, 4))
			;
		if (onebit_next(o, &ev, 100) < 0)
			_exit(1);
	}
}

/* Streams without end until the pipe closes, each checked. */
static _Noreturn void survivor(int until_closed)
{
	enum { STREAMS = 4 };
	struct onebit *o = e2e_open(&d, NULL);
	struct e2e_stream st[STREAMS];
	bool more = true;
	char c;

	memset(st, 0, sizeof(st));
	for (uint32_t n = 0; more;) {
		for (int i = 0; i < STREAMS; i++)
			if (!st[i].id || st[i].ended) {
				char prompt[32];

				if (st[i].id)
					e2e_expect(&st[i], ONEBIT_E_OK);
				snprintf(prompt, sizeof(prompt), "survivor %u", n++);
				must(!e2e_submit(o, &st[i], model, prompt, NULL), "submit");
			}
		must(e2e_next(o, PATIENCE_MS), "nothing comes");
		more = read(until_closed, &c, 1) < 0 && errno == EAGAIN;
	}
	e2e_finish(o, st, STREAMS);
	e2e_quiet(o);
	onebit_close(o);
	e2e_done();
}

/* Kill n of them, `batch` at a time, each at a random instant of its life. */
static void kill_clients(uint32_t n, uint64_t *rnd)
{
	enum { BATCH = 12 };
	static const uint32_t spans[] = { 500000, 3000000, 12000000 }; /* ns from its fork */
	struct { pid_t pid; uint64_t when; } v[BATCH] = { 0 };
	uint32_t alive = 0, born = 0;

	while (born < n || alive) {
		uint64_t next = UINT64_MAX, now = e2e_now();

		for (int i = 0; i < BATCH; i++) {
			if (v[i].pid && v[i].when <= now) {
				int status;

				kill(v[i].pid, SIGKILL);
				waitpid(v[i].pid, &status, 0);
				must(WIFSIGNALED(status), "a client could not live: status %x", status);
				v[i].pid = 0;
				alive--;
			}
			if (!v[i].pid && born < n) {
				uint64_t seed = e2e_random(rnd);

				v[i].pid = e2e_fork();
				if (!v[i].pid)
					victim(seed);
				/* In the handshake, at the first tokens, in the middle of many. */
				v[i].when = e2e_now() + e2e_below(rnd, spans[born % 3]);
				born++;
				alive++;
			}
			if (v[i].pid && v[i].when < next)
				next = v[i].when;
		}
		now = e2e_now();
		if (alive && next > now) {
			struct timespec t = { .tv_nsec = (long)(next - now) };

			nanosleep(&t, NULL);
		}
	}
}

struct footprint {
	int fds;
	long anon_kb, maps_kb;
};

static struct footprint measure(struct onebit *o)
{
	pid_t broker = e2e_broker(&d);

	settle(o);
	return (struct footprint){ e2e_fds(broker), e2e_status(broker, "RssAnon"),
				   e2e_status(broker, "VmSize") };
}

/* What breaks: a dead client's requests, memory or descriptors stay, or its death hurts another. */
START_TEST(clients_are_killed)
{
	uint32_t n = e2e_scaled(CLIENT_DEATHS), warm = n / 5;
	struct onebit *o = start("--delay-us 100 --slots 16", "limit.clients = 100\nlimit.inflight = 0\n");
	struct footprint before, after;
	struct onebit_stats s;
	uint64_t rnd = e2e_seed();
	pid_t survivors[2], broker = e2e_broker(&d), executor = e2e_executor(&d);
	int fds[2];

	/* The first ones touch the tables and buffers that all later ones use again. */
	kill_clients(warm, &rnd);
	before = measure(o);
	must(!pipe2(fds, O_CLOEXEC | O_NONBLOCK), "pipe: %s", strerror(errno));
	for (int i = 0; i < 2; i++) {
		survivors[i] = e2e_fork();
		if (!survivors[i]) {
			close(fds[1]);
			survivor(fds[0]);
		}
	}
	close(fds[0]);
	kill_clients(n - warm, &rnd);
	close(fds[1]);
	for (int i = 0; i < 2; i++)
		e2e_wait(survivors[i]);
	after = measure(o);
	s = e2e_stats(o);
	printf("%u clients killed: %llu attached, %llu requests accepted, %llu cancelled; "
	       "descriptors %d -> %d, anonymous %ld -> %ld kB, maps %ld -> %ld kB\n", n,
	       (unsigned long long)s.attached, (unsigned long long)s.accepted,
	       (unsigned long long)s.cancelled, before.fds, after.fds, before.anon_kb, after.anon_kb,
	       before.maps_kb, after.maps_kb);
	must(before.fds == after.fds, "%d descriptors became %d", before.fds, after.fds);
	/* A sanitizer keeps shadows of all that was ever mapped. */
	must(!e2e_has_sandbox() || after.anon_kb <= before.anon_kb + 128,
	     "memory grew from %ld to %ld kB", before.anon_kb, after.anon_kb);
	must(!e2e_has_sandbox() || after.maps_kb <= before.maps_kb + 128,
	     "maps grew from %ld to %ld kB", before.maps_kb, after.maps_kb);
	must(s.cancelled && !s.protocol_errors && !s.failed, "%llu protocol errors, %llu failed",
	     (unsigned long long)s.protocol_errors, (unsigned long long)s.failed);
	must(broker == e2e_broker(&d) && executor == e2e_executor(&d),
	     "a client's death was somebody else's");
	stop(o);
}
END_TEST

/* ---- executors --------------------------------------------------------------------------------- */

enum { CLIENTS = 3, EACH = 5, STREAMS = CLIENTS * EACH };

struct load {
	struct onebit *o[CLIENTS];
	struct e2e_stream st[STREAMS];
	bool begun[STREAMS], fresh[STREAMS]; /* fresh: nothing came since the last kill from outside */
	uint64_t rnd;
	uint32_t n, own, outside;
};

static void submit_one(struct load *l, int i)
{
	/* The slow one is often forestalled by the others: it needs more tries. */
	static const char *const deaths[] = { "exit", "abort", "kill", "hang", "hang", "hang", "hang" };
	struct onebit_request rq = { .params = { .max_tokens = 10 + e2e_below(&l->rnd, 60),
						 .n_choices = 1 + e2e_below(&l->rnd, 3) % 2,
						 .seed = e2e_random(&l->rnd) } };
	char prompt[60];

	if (!e2e_below(&l->rnd, 3))
		snprintf(prompt, sizeof(prompt), "!%s@%u number %u", deaths[e2e_below(&l->rnd, 7)],
			 e2e_below(&l->rnd, 8), l->n++);
	else
		snprintf(prompt, sizeof(prompt), "number %u", l->n++);
	must(!e2e_submit(l->o[i / EACH], &l->st[i], model, prompt, &rq), "submit");
	l->begun[i] = true;
	l->fresh[i] = true;
}

static bool take_one(struct load *l, uint32_t client, int timeout_ms)
{
	const struct e2e_stream *st = e2e_next(l->o[client], timeout_ms);

	if (st && (st->ended || st->next[0] || st->next[1]))
		l->fresh[st - l->st] = false;
	return st;
}

/* Streams for ever, some of which take the executor along; from outside it is killed besides. */
static void die_often(uint32_t deaths, uint64_t seed)
{
	static struct load l;
	struct onebit_stats s;
	bool more = true;

	l.rnd = seed;
	l.o[0] = start("--delay-us 100 --slots 16", PROGRESS);
	for (int i = 1; i < CLIENTS; i++)
		l.o[i] = e2e_open(&d, NULL);
	while (more) {
		bool all = true;

		for (int i = 0; i < STREAMS; i++)
			if (!l.begun[i] || l.st[i].ended) {
				if (l.begun[i])
					e2e_expect(&l.st[i], ONEBIT_E_OK);
				submit_one(&l, i);
			}
		take_one(&l, e2e_below(&l.rnd, CLIENTS), 2);
		for (uint32_t c = 0; c < CLIENTS; c++)
			while (take_one(&l, c, 0))
				;
		s = e2e_stats(l.o[0]);
		more = s.executor_deaths < deaths;
		/*
		 * The daemon cannot tell a kill from outside from one by the request that runs alone,
		 * so before the next each must have had the chance to prove itself.
		 */
		for (int i = 0; i < STREAMS; i++)
			all &= !l.fresh[i];
		if (all && !e2e_below(&l.rnd, 80)) {
			pid_t pid = e2e_executor(&d);

			if (pid && !kill(pid, SIGKILL))
				l.outside++;
			for (int i = 0; i < STREAMS; i++)
				l.fresh[i] = !l.st[i].ended;
		}
	}
	for (int c = 0; c < CLIENTS; c++)
		e2e_finish(l.o[c], l.st + c * EACH, EACH);
	for (int i = 0; i < STREAMS; i++)
		e2e_expect(&l.st[i], ONEBIT_E_OK);
	for (int c = 0; c < CLIENTS; c++)
		e2e_quiet(l.o[c]);
	for (int c = 1; c < CLIENTS; c++)
		onebit_close(l.o[c]);
	settle(l.o[0]);
	s = e2e_stats(l.o[0]);
	printf("%u answers through %llu deaths, %llu of hanging, %u from outside; %llu replays\n", l.n,
	       (unsigned long long)s.executor_deaths, (unsigned long long)s.executor_hangs, l.outside,
	       (unsigned long long)s.replays);
	must(s.replays && !s.poisoned && !s.failed && !s.executor_lies, "%llu failed",
	     (unsigned long long)s.failed);
	stop(l.o[0]);
}

/* What breaks: an executor's death loses, doubles or changes a token, or a request ends with it. */
START_TEST(executors_die)
{
	/* Most of the time is waiting for the hung ones: several daemons wait at once. */
	enum { DAEMONS = 4 };
	pid_t worker[DAEMONS];

	for (int i = 0; i < DAEMONS; i++) {
		worker[i] = e2e_fork();
		if (!worker[i]) {
			die_often(e2e_scaled(EXECUTOR_DEATHS / DAEMONS), e2e_seed() * 31 + (unsigned)i);
			e2e_done();
		}
	}
	for (int i = 0; i < DAEMONS; i++)
		e2e_wait(worker[i]);
}
END_TEST

/* What breaks: progress of the bare ring has a gap or a repeat, or does not tell of a replay. */
START_TEST(progress_of_the_bare_ring)
{
	enum { LENGTH = 200, CHOICES = 2 };
	struct onebit *o = start("--delay-us 50 --slots 16", PROGRESS);
	const struct onebit_part part = { .data = "!kill@90 it", .len = 11 };
	const struct onebit_request rq = { .parts = &part, .n_parts = 1,
		.params = { .max_tokens = LENGTH, .n_choices = CHOICES,
			    .flags = ONEBIT_PARAM_IGNORE_EOS } };
	uint32_t next[CHOICES] = { 0 }, n = 0, replayed = 0, inlined = 0;
	size_t arena_bytes, out_bytes;
	void *arena = onebit_ring_arena(o, &arena_bytes);
	const char *out = onebit_ring_out(o, &out_bytes);
	struct onebit_sqe *e = onebit_ring_sqe(o);
	uint32_t len = e2e_block(arena, &rq, NULL, 0);
	uint64_t key = loopback_key(model, arena, arena, len);
	struct onebit_cqe c = { .flags = ONEBIT_CQE_MORE };

	*e = (struct onebit_sqe){ .op = ONEBIT_OP_GENERATE, .user_data = 7, .in_len = len,
				  .out_len = 64u << 10 };
	must(!onebit_ring_publish(o), "publish");
	for (; c.flags & ONEBIT_CQE_MORE; n++) {
		char text[80];
		uint32_t bytes = 0;

		must(onebit_ring_cqe(o, 0) || onebit_ring_wait(o, PATIENCE_MS) == 1, "nothing comes");
		must(!onebit_ring_cqe(o, 1) || !(onebit_ring_cqe(o, 1)->flags & ONEBIT_CQE_MORE),
		     "two unreaped progress completions of one request");
		c = *onebit_ring_cqe(o, 0);
		onebit_ring_reap(o, 1);
		must(!(c.flags & ONEBIT_CQE_ACCEPTED) == !!n, "accepted at completion %u", n);
		replayed += !!(c.flags & ONEBIT_CQE_REPLAYED);
		if (!(c.flags & ONEBIT_CQE_MORE) || !c.u.progress.n)
			continue;
		must(c.choice < CHOICES && c.u.progress.first == next[c.choice] &&
		     c.res == c.u.progress.n, "[%u, +%u) of choice %u", c.u.progress.first,
		     c.u.progress.n, c.choice);
		for (uint32_t i = 0; i < c.u.progress.n && bytes < 9; i++, bytes += len)
			loopback_token(key, c.choice, next[c.choice] + i, text + bytes, &len);
		must(!(c.flags & ONEBIT_CQE_INLINE) || (c.u.progress.text_len == bytes && bytes <= 8 &&
		     !memcmp(c.u.progress.text, text, bytes)), "the text that rides along differs");
		inlined += !!(c.flags & ONEBIT_CQE_INLINE);
		next[c.choice] += c.u.progress.n;
		if (n % 7 == 0)
			e2e_nap(1); /* what comes meanwhile is told together */
	}
	must(!c.res && c.user_data == 7, "%d, code %u", c.res, c.u.end.code);
	for (uint32_t i = 0; i < CHOICES; i++) {
		const struct onebit_choice *ch = (const void *)(out + sizeof(struct onebit_out));

		must(ch[i].n_tokens == LENGTH && next[i] <= LENGTH, "choice %u: %u of %u tokens", i,
		     next[i], ch[i].n_tokens);
	}
	must(replayed == 1 && inlined, "%u replays told, %u texts rode along", replayed, inlined);
	stop(o);
}
END_TEST

static const char *const poisons[] = { "!kill-always@0 it", "!kill-always@3 it", "!abort-always@3 it",
				       "!exit-always@0 it", "!hang-always@3 it" };

/* What breaks: a request that kills each executor goes on for ever, or takes its neighbours along. */
START_TEST(poison_beside_innocents)
{
	enum { N = 16 };
	struct onebit *o = start("--delay-us 200 --slots 16", PROGRESS);
	struct onebit_request rq = { .params = { .max_tokens = 60, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[N];
	struct onebit_stats s;
	char prompt[40];
	uint64_t rnd = e2e_seed();
	int bad = (int)e2e_below(&rnd, N);

	for (int i = 0; i < N; i++) {
		snprintf(prompt, sizeof(prompt), "innocent %d", i);
		must(!e2e_submit(o, &st[i], model, i == bad ? poisons[_i] : prompt, &rq), "submit");
	}
	e2e_finish(o, st, N);
	for (int i = 0; i < N; i++)
		e2e_expect(&st[i], i == bad ? ONEBIT_E_POISON : ONEBIT_E_OK);
	must(st[bad].res == -EIO && !st[bad].error.retryable, "%s", st[bad].error.text);
	must(st[bad].next[0] == (strstr(poisons[_i], "@3") ? 3 : 0), "%u tokens of poison",
	     st[bad].next[0]);
	/* The page is written after the completions. */
	until((s = e2e_stats(o)).poisoned == 1 && s.failed == 1, "%llu poisoned, %llu failed",
	      (unsigned long long)s.poisoned, (unsigned long long)s.failed);
	must(e2e_query(o, ONEBIT_QUERY_INCIDENTS)->res > 0, "no incident tells of it");
	settle(o);
	stop(o);
}
END_TEST

/* What breaks: an executor that makes other tokens at replay changes an answer half way. */
START_TEST(wrong_replay)
{
	enum { N = 6 };
	struct onebit *o = start("--delay-us 1000 --slots 16", PROGRESS);
	struct onebit_request rq = { .params = { .max_tokens = 100, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[N];
	pid_t pid;

	for (int i = 0; i < N; i++)
		must(!e2e_submit(o, &st[i], model, i ? "a neighbour" : "!wrong@0 token", &rq), "submit");
	for (int i = 0; i < N; i++)
		while (st[i].next[0] < 5)
			must(e2e_next(o, PATIENCE_MS), "nothing comes");
	pid = e2e_executor(&d);
	must(pid && !kill(pid, SIGKILL), "no executor to kill");
	e2e_finish(o, st, N);
	e2e_expect(&st[0], ONEBIT_E_NONDETERMINISM);
	must(st[0].res == -EIO && st[0].error.retryable && st[0].error.detail < 100, "%s",
	     st[0].error.text);
	for (int i = 1; i < N; i++) {
		e2e_expect(&st[i], ONEBIT_E_OK);
		must(st[i].replays == 1, "%u replays", st[i].replays);
	}
	settle(o);
	stop(o);
}
END_TEST

/* What breaks: a request that forbids replay is run twice. */
START_TEST(replay_forbidden)
{
	struct onebit *o = start("--delay-us 200 --slots 16", PROGRESS);
	struct onebit_request rq = { .params = { .max_tokens = 50, .flags = ONEBIT_PARAM_IGNORE_EOS |
						 ONEBIT_PARAM_NO_REPLAY } };
	struct e2e_stream st[2];

	must(!e2e_submit(o, &st[0], model, "!kill@20 it", &rq), "submit");
	rq.params.flags = ONEBIT_PARAM_IGNORE_EOS;
	must(!e2e_submit(o, &st[1], model, "a neighbour", &rq), "submit");
	e2e_finish(o, st, 2);
	e2e_expect(&st[0], ONEBIT_E_REPLAY_REFUSED);
	must(st[0].next[0] <= 20 && st[0].error.detail == st[0].next[0], "%s", st[0].error.text);
	e2e_expect(&st[1], ONEBIT_E_OK);
	stop(o);
}
END_TEST

static const char *const lies[] = { "gap", "double", "slot", "tag", "choice", "kind", "data", "length",
				    "finish", "text" };

/* What breaks: one malformed event of an executor is believed, or ends more than the executor. */
START_TEST(executor_lies)
{
	enum { N = 5 };
	struct onebit *o = start("--delay-us 200 --slots 16", PROGRESS);
	struct onebit_request rq = { .params = { .max_tokens = 40, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[N];
	struct onebit_stats s;
	char prompt[40];

	for (uint32_t at = 0; at < 20; at += 7) {
		snprintf(prompt, sizeof(prompt), "!%s@%u it", lies[_i], at);
		s = e2e_stats(o);
		for (int i = 0; i < N; i++)
			must(!e2e_submit(o, &st[i], model, i == 2 ? prompt : "a neighbour", &rq),
			     "submit");
		e2e_finish(o, st, N);
		for (int i = 0; i < N; i++)
			e2e_expect(&st[i], ONEBIT_E_OK);
		until(e2e_stats(o).executor_lies == s.executor_lies + 1 &&
		      e2e_stats(o).executor_deaths == s.executor_deaths + 1, "%s: %llu lies, %llu deaths",
		      prompt, (unsigned long long)e2e_stats(o).executor_lies,
		      (unsigned long long)e2e_stats(o).executor_deaths);
	}
	settle(o);
	stop(o);
}
END_TEST

/* What breaks: an executor's own word that it failed is not passed on, or counts as its death. */
START_TEST(executor_fails_one)
{
	struct onebit *o = start("--delay-us 200 --slots 16", PROGRESS);
	struct e2e_stream st[2];

	must(!e2e_submit(o, &st[0], model, "!fail@4 it", NULL), "submit");
	must(!e2e_submit(o, &st[1], model, "a neighbour", NULL), "submit");
	e2e_finish(o, st, 2);
	e2e_expect(&st[0], ONEBIT_E_EXECUTOR);
	must(st[0].next[0] == 4, "%u tokens", st[0].next[0]);
	e2e_expect(&st[1], ONEBIT_E_OK);
	must(!e2e_stats(o).executor_deaths, "it was killed for that");
	stop(o);
}
END_TEST

/* What breaks: an executor that never comes up leaves its clients waiting for ever. */
START_TEST(executor_cannot_start)
{
	struct e2e_stream st;
	static const uint8_t any[32];
	struct onebit *o;

	e2e_start(&d, "--no-such-option", PROGRESS);
	o = e2e_open(&d, NULL);
	must(!e2e_submit(o, &st, any, "hello", NULL), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_EXECUTOR_DOWN);
	must(st.error.retryable && st.error.retry_after_ms, "%s", st.error.text);
	stop(o);
}
END_TEST

/* ---- cancelling -------------------------------------------------------------------------------- */

/* What breaks: a cancel at some instant ends twice, loses a token, or disturbs a neighbour. */
START_TEST(cancels_at_random)
{
	enum { VICTIMS = 8, N = 12 };
	uint32_t left = e2e_scaled(CANCELS), cancelled = 0, n = 0;
	struct onebit *o = start("--delay-us 50 --slots 16", PROGRESS);
	struct onebit_request rq = { .params = { .max_tokens = 300, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[N];
	uint64_t rnd = e2e_seed();
	uint32_t at[VICTIMS];
	bool sent[VICTIMS] = { 0 };

	memset(st, 0, sizeof(st));
	for (int i = 0; i < N; i++)
		st[i].ended = true;
	while (left) {
		for (int i = 0; i < N; i++) {
			char prompt[40];

			if (!st[i].ended)
				continue;
			if (n >= N && i < VICTIMS && st[i].res < 0) {
				e2e_expect(&st[i], ONEBIT_E_CANCELLED);
				must(sent[i] && st[i].error.detail == st[i].next[0],
				     "%u tokens told, %s", st[i].next[0], st[i].error.text);
				cancelled++;
			} else if (n >= N) {
				e2e_expect(&st[i], ONEBIT_E_OK);
			}
			snprintf(prompt, sizeof(prompt), "number %u", n++);
			must(!e2e_submit(o, &st[i], model, prompt, &rq), "submit");
			if (i < VICTIMS) {
				at[i] = e2e_below(&rnd, 8) ? e2e_below(&rnd, 60) : 290 + e2e_below(&rnd, 12);
				sent[i] = false;
			}
		}
		for (int i = 0; i < VICTIMS && left; i++)
			if (!sent[i] && !st[i].ended && st[i].next[0] >= at[i]) {
				must(!onebit_cancel(o, st[i].id), "cancel");
				sent[i] = true;
				left--;
			}
		must(e2e_next(o, PATIENCE_MS), "nothing comes");
	}
	e2e_finish(o, st, N);
	for (int i = 0; i < N; i++)
		if (i >= VICTIMS || !sent[i])
			e2e_expect(&st[i], ONEBIT_E_OK);
	e2e_quiet(o);
	settle(o);
	printf("%u requests, %u ended by a cancel\n", n, cancelled);
	stop(o);
}
END_TEST

int main(void)
{
	Suite *s = e2e_suite("death");

	e2e_add(s, clients_are_killed, 1);
	e2e_add(s, executors_die, 1);
	e2e_add(s, progress_of_the_bare_ring, 1);
	e2e_add(s, poison_beside_innocents, sizeof(poisons) / sizeof(poisons[0]));
	e2e_add(s, wrong_replay, 1);
	e2e_add(s, replay_forbidden, 1);
	e2e_add(s, executor_lies, sizeof(lies) / sizeof(lies[0]));
	e2e_add(s, executor_fails_one, 1);
	e2e_add(s, executor_cannot_start, 1);
	e2e_add(s, cancels_at_random, 1);
	return e2e_main(s);
}

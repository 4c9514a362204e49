/* SPDX-License-Identifier: MIT */
/*
 * The real programs together, nobody dying: what each operation answers, that answers are the
 * foretold ones whatever runs beside them, and what an administrator does to a running daemon.
 * The hard deaths are test_death.c and test_restart.c.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib_e2e.h"
#include "loopback.h"
#include "onebit_ring.h"

#define FAST  "--delay-us 50 --slots 16"
#define SLOW  "--delay-us 2000 --slots 16"
#define ADMIN "limit.admin = on\nlimit.delegate = on\n"

static const char *const loops[] = { "event_loop = io_uring\n" ADMIN, "event_loop = epoll\n" ADMIN };

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

/* What breaks: one of the small operations answers nothing, or the wrong bytes, on one of the loops. */
START_TEST(small_operations)
{
	struct onebit *o = start(FAST, loops[_i]);
	struct onebit_request rq = { .op = ONEBIT_OP_NOP };
	static uint8_t bytes[100000];
	const struct e2e_answer *a;

	must(!e2e_ask(o, &rq)->res, "NOP");
	for (size_t i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * 7 + i / 255);
	for (size_t len = 0; len <= sizeof(bytes); len = len * 3 + 1) {
		rq = (struct onebit_request){ .op = ONEBIT_OP_ECHO, .data = bytes, .data_len = len };
		a = e2e_ask(o, &rq);
		must(a->res == (int)len && a->len == len && !memcmp(a->data, bytes, len),
		     "ECHO of %zu bytes: %d %s", len, a->res, a->error.text);
	}
	rq = (struct onebit_request){ .op = ONEBIT_OP_CANCEL, .arg = 12345 };
	a = e2e_ask(o, &rq);
	must(a->error.code == ONEBIT_E_NOT_FOUND && a->res == -ENOENT, "CANCEL of nothing: %d %s",
	     a->res, a->error.text);
	stop(o);
}
END_TEST

/* What breaks: what is not implemented yet is answered with anything but EOPNOTSUPP. */
START_TEST(unsupported_operations)
{
	static const uint8_t ops[] = { ONEBIT_OP_SCORE, ONEBIT_OP_EMBED, ONEBIT_OP_SESSION_OPEN,
				       ONEBIT_OP_SESSION_FORK, ONEBIT_OP_SESSION_CLOSE };
	const struct onebit_part part = { .data = "text", .len = 4 };
	struct onebit *o = start(FAST, ADMIN);
	const struct e2e_answer *a;

	for (size_t i = 0; i < sizeof(ops); i++) {
		bool block = ops[i] == ONEBIT_OP_SCORE || ops[i] == ONEBIT_OP_EMBED;
		struct onebit_request rq = { .op = ops[i], .parts = &part, .n_parts = block };

		a = e2e_ask(o, &rq);
		must(a->res == -EOPNOTSUPP && a->error.code == ONEBIT_E_UNSUPPORTED &&
		     a->error.detail == ops[i], "operation %u: %d %s", ops[i], a->res, a->error.text);
	}
	struct onebit_request rq = { .op = ONEBIT_OP_COUNT };

	a = e2e_ask(o, &rq);
	must(a->error.code == ONEBIT_E_BAD_OP && a->res == -EINVAL, "an unknown operation: %d", a->res);
	stop(o);
}
END_TEST

static bool fills(const struct e2e_answer *a, size_t size)
{
	uint32_t own;

	memcpy(&own, a->data, 4);
	return a->res == (int)size && a->len == size && own == size;
}

/* What breaks: a topic is not answered, or not with the structure that onebit.h promises. */
START_TEST(queries)
{
	struct onebit *o = start(FAST, ADMIN "limit.inflight = 77\nmax_tokens = 4000\n");
	const struct e2e_answer *a = e2e_query(o, ONEBIT_QUERY_FEATURES);
	struct onebit_features f;
	struct onebit_limits l;
	struct onebit_model m;
	struct onebit_stats s;
	struct e2e_stream st;

	must(fills(a, sizeof(f)), "features: %d %s", a->res, a->error.text);
	memcpy(&f, a->data, sizeof(f));
	must((f.features & (ONEBIT_FEAT_RESUME | ONEBIT_FEAT_ADMIN)) &&
	     (f.ops >> ONEBIT_OP_GENERATE & 1) && !(f.ops >> ONEBIT_OP_EMBED & 1) &&
	     f.topics == (1u << ONEBIT_QUERY_COUNT) - 1 && f.version[0], "features are not right");
	a = e2e_query(o, ONEBIT_QUERY_LIMITS);
	must(fills(a, sizeof(l)), "limits: %d %s", a->res, a->error.text);
	memcpy(&l, a->data, sizeof(l));
	must(l.inflight == 77 && !l.inflight_used && l.clients_used == 1 && l.bytes_used &&
	     l.max_tokens == 4000 && l.context == 1u << 20, "limits are not right");
	a = e2e_query(o, ONEBIT_QUERY_MODEL);
	must(fills(a, sizeof(m)), "model: %d %s", a->res, a->error.text);
	memcpy(&m, a->data, sizeof(m));
	must(m.generation == 1 && m.slots == 16 && !strcmp(m.name, "loopback"), "model is not right");
	must(!e2e_submit(o, &st, model, "count me", NULL), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_OK);
	a = e2e_query(o, ONEBIT_QUERY_METRICS);
	must(fills(a, sizeof(s)), "metrics: %d %s", a->res, a->error.text);
	memcpy(&s, a->data, sizeof(s));
	must(s.clients == 1 && s.accepted == 1 && s.done == 1 && s.tokens == st.next[0] &&
	     !s.running && !s.queued && !s.failed, "metrics are not right");
	must(fills(e2e_query(o, ONEBIT_QUERY_KV), sizeof(struct onebit_kv)), "kv");
	a = e2e_query(o, ONEBIT_QUERY_TIMING);
	must(a->res > 0 && a->len % sizeof(struct onebit_timing) == 0, "timing: %d", a->res);
	must(!e2e_query(o, ONEBIT_QUERY_SESSIONS)->res, "sessions");
	must(!e2e_query(o, ONEBIT_QUERY_INCIDENTS)->res, "incidents without any");
	a = e2e_query(o, ONEBIT_QUERY_DOCTOR);
	must(a->res >= 0 && a->len % sizeof(struct onebit_finding) == 0, "doctor: %d", a->res);
	a = e2e_query(o, ONEBIT_QUERY_CONFIG);
	must(a->res > 0 && memmem(a->data, a->len, "max_tokens = 4000", 17), "config: %d %s", a->res,
	     a->error.text);
	a = e2e_query(o, ONEBIT_QUERY_COUNT);
	must(a->error.code == ONEBIT_E_BAD_FIELD, "an unknown topic: %d", a->res);
	stop(o);
}
END_TEST

/* What breaks: someone without a right gets what needs it. */
START_TEST(rights_are_needed)
{
	struct onebit *o = start(FAST, "limit.admin = off\nlimit.delegate = off\n");
	struct onebit_request rq = { .op = ONEBIT_OP_ADMIN, .arg = ONEBIT_ADMIN_UNLOAD };
	struct e2e_stream st;

	must(!(onebit_welcome(o)->features & (ONEBIT_FEAT_ADMIN | ONEBIT_FEAT_TENANT)),
	     "rights were granted that nobody gave");
	must(e2e_ask(o, &rq)->error.code == ONEBIT_E_DENIED, "ADMIN");
	must(e2e_query(o, ONEBIT_QUERY_CONFIG)->error.code == ONEBIT_E_DENIED, "QUERY_CONFIG");
	rq = (struct onebit_request){ .params = { .tenant = 5, .max_tokens = 10 } };
	must(!e2e_submit(o, &st, model, "for another", &rq), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_DENIED);
	must(st.res == -EPERM, "%d", st.res);
	stop(o);
}
END_TEST

/* What breaks: a parameter changes who gets which tokens, or records lack what was asked for. */
START_TEST(parameters)
{
	static const char *const stops[] = { "stop here", "###" };
	static const struct onebit_bias bias[] = { { 300, 500000 }, { 301, INT32_MIN } };
	struct onebit *o = start(FAST, loops[_i]);
	const struct onebit_params p[] = {
		{ 0 },
		{ .max_tokens = 1 },
		{ .max_tokens = 2000, .flags = ONEBIT_PARAM_IGNORE_EOS },
		{ .max_tokens = 60, .n_choices = 16 },
		{ .max_tokens = 60, .n_choices = 3, .flags = ONEBIT_PARAM_LOGPROBS },
		{ .max_tokens = 60, .flags = ONEBIT_PARAM_LOGPROBS, .top_logprobs = 20 },
		{ .max_tokens = 60, .seed = 99, .temperature_micro = 700000, .top_p_micro = 900000,
		  .top_k = 40, .min_p_micro = 10000, .repetition_micro = 1100000,
		  .frequency_micro = -5, .presence_micro = 7, .repetition_last_n = 64 },
		{ .max_tokens = 60, .tenant = 0x123456789abcdefull },
		{ .max_tokens = 60, .flags = ONEBIT_PARAM_NO_CACHE | ONEBIT_PARAM_NO_REPLAY },
	};
	struct e2e_stream st;

	for (size_t i = 0; i < sizeof(p) / sizeof(p[0]); i++) {
		struct onebit_request rq = { .params = p[i], .stops = stops, .n_stops = i % 3,
					     .bias = bias, .n_bias = i % 2 ? 2 : 0,
					     .priority = i % ONEBIT_PRIO_COUNT,
					     .deadline_ms = i % 2 ? 60000 : 0 };

		must(!e2e_submit(o, &st, model, "What is a ring?", &rq), "submit");
		if (!p[i].max_tokens)
			st.max_tokens = 512; /* the daemon's default */
		e2e_finish(o, &st, 1);
		e2e_expect(&st, ONEBIT_E_OK);
		must(st.accepted, "never told that it was accepted");
	}
	e2e_quiet(o);

	struct onebit_request rq = { .params = { .flags = ONEBIT_PARAM_ECHO } };

	must(!e2e_submit(o, &st, model, "echo", &rq), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_BAD_PARAM); /* the loopback cannot do it: refused by name */
	must(st.error.detail == offsetof(struct onebit_params, flags), "%s", st.error.text);
	stop(o);
}
END_TEST

/* What breaks: a text does not come back from its tokens, or a long answer loses a piece. */
START_TEST(tokenize_round_trip)
{
	struct onebit *o = start(FAST, ADMIN);
	static char text[30001];
	static uint32_t ids[30000];
	struct onebit_part part = { .data = text, .role = ONEBIT_ROLE_RAW };
	struct onebit_request rq = { .op = ONEBIT_OP_TOKENIZE, .parts = &part, .n_parts = 1 };
	const struct e2e_answer *a;

	for (size_t i = 0; i < sizeof(text) - 1; i++)
		text[i] = (char)(' ' + i * 31 % 95);
	for (size_t len = 1; len < sizeof(text); len = len * 5 + 3) {
		part = (struct onebit_part){ .data = text, .len = len };
		rq.op = ONEBIT_OP_TOKENIZE;
		a = e2e_ask(o, &rq);
		must(a->res == (int)len * 4 && a->len == len * 4, "TOKENIZE of %zu bytes: %d %s", len,
		     a->res, a->error.text);
		memcpy(ids, a->data, a->len);
		part = (struct onebit_part){ .kind = ONEBIT_SEG_TOKENS, .data = ids, .len = a->len };
		rq.op = ONEBIT_OP_DETOKENIZE;
		a = e2e_ask(o, &rq);
		must(a->res == (int)len && !memcmp(a->data, text, len), "DETOKENIZE of %zu: %d %s", len,
		     a->res, a->error.text);
	}
	part = (struct onebit_part){ .data = "\xff\xfe", .len = 2 };
	rq.op = ONEBIT_OP_TOKENIZE;
	a = e2e_ask(o, &rq);
	must(a->error.code == ONEBIT_E_BAD_PROMPT && a->res == -EILSEQ, "not UTF-8: %d", a->res);
	part = (struct onebit_part){ .data = text, .len = 100 };
	rq.out_bytes = 40;
	a = e2e_ask(o, &rq);
	must(a->error.code == ONEBIT_E_OUT_TOO_SMALL && a->error.detail == 400, "a small window: %d %s",
	     a->res, a->error.text);
	stop(o);
}
END_TEST

/* What breaks: streams that run together mix, starve or lose tokens. */
START_TEST(sixteen_streams)
{
	enum { CLIENTS = 4, EACH = 8, ROUNDS = 4 };
	struct onebit *o[CLIENTS];
	static struct e2e_stream st[CLIENTS][EACH];
	char prompt[40];

	o[0] = start(FAST, loops[_i]);
	for (int c = 1; c < CLIENTS; c++)
		o[c] = e2e_open(&d, NULL);
	for (int round = 0; round < ROUNDS; round++) {
		for (int c = 0; c < CLIENTS; c++)
			for (int i = 0; i < EACH; i++) {
				snprintf(prompt, sizeof(prompt), "%d of %d in %d", i, c, round);
				must(!e2e_submit(o[c], &st[c][i], model, prompt, NULL), "submit");
			}
		for (int c = 0; c < CLIENTS; c++) {
			e2e_finish(o[c], st[c], EACH);
			for (int i = 0; i < EACH; i++)
				e2e_expect(&st[c][i], ONEBIT_E_OK);
			e2e_quiet(o[c]);
		}
	}
	for (int c = 1; c < CLIENTS; c++)
		onebit_close(o[c]);
	stop(o[0]);
}
END_TEST

/* What breaks: a cancelled request goes on, ends twice, or takes its neighbours with it. */
START_TEST(cancel_between_neighbours)
{
	struct onebit *o = start("--delay-us 200 --slots 16", loops[_i]);
	struct onebit_request rq = { .params = { .max_tokens = 400,
						 .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[5];
	uint64_t rnd = e2e_seed();

	for (int round = 0; round < 10; round++) {
		uint32_t at = e2e_below(&rnd, 300);

		for (int i = 0; i < 5; i++)
			must(!e2e_submit(o, &st[i], model, i ? "a neighbour" : "the victim", &rq),
			     "submit");
		while (st[0].next[0] < at)
			must(e2e_next(o, 60000), "nothing comes");
		must(!onebit_cancel(o, st[0].id), "cancel");
		e2e_finish(o, st, 5);
		if (st[0].res < 0) {
			e2e_expect(&st[0], ONEBIT_E_CANCELLED);
			must(st[0].error.detail == st[0].next[0], "%u tokens told, cancelled after %llu",
			     st[0].next[0], (unsigned long long)st[0].error.detail);
		}
		for (int i = 1; i < 5; i++)
			e2e_expect(&st[i], ONEBIT_E_OK);
	}
	e2e_quiet(o);
	stop(o);
}
END_TEST

/* What breaks: a deadline is not kept, is kept too early, or loses what was already there. */
START_TEST(deadlines)
{
	struct onebit *o = start(SLOW, ADMIN);
	struct onebit_request rq = { .deadline_ms = 60, .params = { .max_tokens = 5000,
				     .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[2];
	uint64_t begin = e2e_now();

	must(!e2e_submit(o, &st[0], model, "not in time", &rq), "submit");
	rq.deadline_ms = 600000;
	rq.params.max_tokens = 60;
	must(!e2e_submit(o, &st[1], model, "in time", &rq), "submit");
	e2e_finish(o, st, 2);
	e2e_expect(&st[0], ONEBIT_E_DEADLINE);
	must(e2e_now() - begin >= 60000000 && st[0].res == -ETIME, "too early");
	e2e_expect(&st[1], ONEBIT_E_OK);
	stop(o);
}
END_TEST

/* What breaks: who is in a hurry waits behind a batch. */
START_TEST(priorities)
{
	struct onebit *o = start("--delay-us 500 --slots 1", ADMIN);
	struct onebit_request rq = { .params.max_tokens = 40 };
	static const uint8_t class[] = { ONEBIT_PRIO_NORMAL, ONEBIT_PRIO_BATCH, ONEBIT_PRIO_NORMAL,
					 ONEBIT_PRIO_INTERACTIVE };
	struct e2e_stream st[4];

	for (int i = 0; i < 4; i++) {
		rq.priority = class[i];
		must(!e2e_submit(o, &st[i], model, "who is first", &rq), "submit");
		while (!i && !st[0].next[0])
			must(e2e_next(o, 60000), "nothing comes"); /* the only slot is taken */
	}
	e2e_finish(o, st + 3, 1);
	must(!st[1].next[0] && !st[2].next[0], "INTERACTIVE came after the others");
	e2e_finish(o, st + 2, 1);
	must(!st[1].next[0], "NORMAL came after BATCH");
	e2e_finish(o, st, 4);
	for (int i = 0; i < 4; i++)
		e2e_expect(&st[i], ONEBIT_E_OK);
	stop(o);
}
END_TEST

/* ---- windows ----------------------------------------------------------------------------------- */

/* Wait for the terminal of an SQE on the bare ring, reaping all else. */
static struct onebit_cqe terminal(struct onebit *o)
{
	const struct onebit_cqe *cqe;
	struct onebit_cqe copy;

	for (;;) {
		cqe = onebit_ring_cqe(o, 0);
		if (!cqe) {
			must(onebit_ring_wait(o, 60000) == 1, "no completion comes");
			continue;
		}
		copy = *cqe;
		onebit_ring_reap(o, 1);
		if (!(copy.flags & ONEBIT_CQE_MORE))
			return copy;
	}
}

/* What breaks: an answer larger than its window cannot be had piece by piece through resume. */
START_TEST(window_full_and_resume)
{
	enum { LENGTH = 300 };
	struct onebit *o = start(FAST, ADMIN);
	const struct onebit_part part = { .data = "piece by piece", .len = 14 };
	const struct onebit_request rq = { .parts = &part, .n_parts = 1,
		.params = { .max_tokens = LENGTH, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	const struct onebit_record *r;
	uint32_t ids[LENGTH], n = 0, len, pieces = 0;
	size_t arena_bytes, out_bytes;
	void *arena = onebit_ring_arena(o, &arena_bytes);
	const char *out = onebit_ring_out(o, &out_bytes);
	const struct onebit_choice *c = (const void *)(out + sizeof(struct onebit_out));
	struct onebit_cqe cqe;

	do {
		struct onebit_sqe *e = onebit_ring_sqe(o);
		uint32_t before = n;
		uint64_t key;
		char text[16];

		len = e2e_block(arena, &rq, ids, n);
		key = loopback_key(model, arena, arena, len);
		*e = (struct onebit_sqe){ .op = ONEBIT_OP_GENERATE, .user_data = 7, .in_len = len,
					  .out_len = 1000 };
		must(!onebit_ring_publish(o), "publish");
		cqe = terminal(o);
		must(cqe.user_data == 7, "another's completion");
		must(c->first_token == n, "goes on at %u instead of %u", c->first_token, n);
		r = (const void *)(out + c->rec_off);
		for (; n < c->n_tokens; n++, r = onebit_record_next(r)) {
			must(n < LENGTH, "more tokens than asked for");
			ids[n] = loopback_token(key, 0, n, text, &len);
			must(r->token == ids[n], "token %u differs", n);
		}
		must(n > before, "no token came");
		pieces++;
	} while (cqe.u.end.code == ONEBIT_E_WINDOW_FULL);
	must(cqe.res >= 0 && n == LENGTH && pieces > 5, "%u tokens in %u pieces: %d", n, pieces, cqe.res);
	stop(o);
}
END_TEST

/* What breaks: libonebit shows its program the limits of a window. */
START_TEST(windows_are_hidden)
{
	const struct onebit_options small = { .out_bytes = 4096 };
	struct onebit *first = start(FAST, ADMIN), *o = e2e_open(&d, &small);
	struct onebit_request rq = { .out_bytes = 1024, .params = { .max_tokens = 3000, .n_choices = 2,
				     .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st;

	must(!e2e_submit(o, &st, model, "long and long", &rq), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_OK);
	rq.out_bytes = 0;
	must(!e2e_submit(o, &st, model, "long and long", &rq), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_OK);
	onebit_close(o);
	stop(first);
}
END_TEST

/* ---- quotas ------------------------------------------------------------------------------------ */

static void attach_refused(const struct onebit_options *given, unsigned code, uint64_t limit)
{
	struct onebit_options options = *given;
	struct onebit_error err;
	struct onebit *o;
	int ret;

	options.size = sizeof(options);
	options.socket = d.socket;
	ret = onebit_open(&o, &options, &err);
	must(ret == -EDQUOT && err.code == code && err.detail == limit && err.retry_after_ms &&
	     err.retryable, "attach: %d %s, detail %llu, retry after %u ms", ret, err.text,
	     (unsigned long long)err.detail, err.retry_after_ms);
}

/* What breaks: a refused client is not told which limit it hit or when to come again. */
START_TEST(attach_quotas)
{
	const struct onebit_options big = { .arena_bytes = 8u << 20 }, plain = { 0 };
	struct onebit *o = start(FAST, "limit.clients = 3\nlimit.bytes_mib = 8\n");
	struct onebit *second = e2e_open(&d, NULL);

	attach_refused(&big, ONEBIT_E_Q_BYTES, 8u << 20);
	struct onebit *third = e2e_open(&d, NULL);

	attach_refused(&plain, ONEBIT_E_Q_CLIENTS, 3);
	onebit_close(third);
	until(e2e_stats(o).clients == 2, "a client that left is still counted");
	third = e2e_open(&d, NULL);
	onebit_close(third);
	onebit_close(second);
	stop(o);
}
END_TEST

static void refused(const struct e2e_stream *s, unsigned code, uint64_t limit)
{
	e2e_expect(s, code);
	must(s->res == -EDQUOT && s->error.detail == limit && s->error.retryable &&
	     s->error.retry_after_ms, "%s, retry after %u ms", s->error.text, s->error.retry_after_ms);
}

/* What breaks: as above for requests; or a quota that was given back stays used. */
START_TEST(request_quotas)
{
	static char long_prompt[3000];
	struct onebit *a = start("--delay-us 1000 --slots 1",
				 "limit.inflight = 4\nlimit.queued_kib = 4\n"), *b = e2e_open(&d, NULL);
	struct onebit_request rq = { .params = { .max_tokens = 5000, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct onebit_part part = { .data = long_prompt, .len = sizeof(long_prompt) };
	struct onebit_request queued = { .op = ONEBIT_OP_TOKENIZE, .parts = &part, .n_parts = 1 };
	struct e2e_stream st[4], extra;
	const struct e2e_answer *ans;
	struct onebit_event ev;
	uint64_t id;

	memset(long_prompt, 'x', sizeof(long_prompt));
	for (int i = 0; i < 4; i++)
		must(!e2e_submit(a, &st[i], model, "in flight", &rq), "submit");
	while (!st[3].accepted)
		must(e2e_next(a, 60000), "nothing comes");
	must(!e2e_submit(b, &extra, model, "one too many", &rq), "submit");
	e2e_finish(b, &extra, 1);
	refused(&extra, ONEBIT_E_Q_INFLIGHT, 4);
	for (int i = 1; i < 4; i++)
		must(!onebit_cancel(a, st[i].id), "cancel");
	e2e_finish(a, st + 1, 3);
	/* The only slot is taken: these prompts wait, and two of them are more than 4 KiB. */
	must(!onebit_submit(a, &queued, &id), "submit");
	do
		must(onebit_next(a, &ev, 60000) == 1, "nothing comes");
	while (ev.id != id);
	must(ev.type == ONEBIT_EV_ACCEPTED, "the first long prompt: event %u", ev.type);
	ans = e2e_ask(b, &queued);
	must(ans->error.code == ONEBIT_E_Q_QUEUED && ans->error.detail == 4096 &&
	     ans->error.retry_after_ms, "a second long prompt: %d %s", ans->res, ans->error.text);
	onebit_close(a);
	until(!e2e_stats(b).queued && !e2e_stats(b).running, "what a dead client asked stays");
	ans = e2e_ask(b, &queued);
	must(ans->res == (int)sizeof(long_prompt) * 4, "when all is given back: %d %s", ans->res,
	     ans->error.text);
	stop(b);
}
END_TEST

/* What breaks: tokens a second are not counted, or the refusal does not say how long to wait. */
START_TEST(token_rate)
{
	struct onebit *o = start(FAST, "limit.tokens_per_second = 100\n");
	struct onebit_request rq = { .params = { .max_tokens = 150, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[2];

	must(!e2e_submit(o, &st[0], model, "into debt", &rq), "submit");
	e2e_finish(o, st, 1);
	e2e_expect(st, ONEBIT_E_OK);
	must(!e2e_submit(o, &st[1], model, "too soon", &rq), "submit");
	e2e_finish(o, st + 1, 1);
	refused(&st[1], ONEBIT_E_Q_TOKENS, 100);
	e2e_nap(st[1].error.retry_after_ms);
	must(!e2e_submit(o, &st[1], model, "when it was told to", &rq), "submit");
	e2e_finish(o, st + 1, 1);
	e2e_expect(&st[1], ONEBIT_E_OK);
	stop(o);
}
END_TEST

/* ---- administration ---------------------------------------------------------------------------- */

static void administer(struct onebit *o, uint64_t what, const char *path, unsigned code)
{
	const struct onebit_request rq = { .op = ONEBIT_OP_ADMIN, .arg = what, .data = path,
					   .data_len = path ? strlen(path) : 0 };
	const struct e2e_answer *a;

	/* While the model before the last one is still on its way out there is no place for a third. */
	until((a = e2e_ask(o, &rq))->error.code != ONEBIT_E_MODEL_BUSY, "the old model stays");
	must(a->error.code == code, "ADMIN %llu %s: %d %s", (unsigned long long)what, path ? path : "",
	     a->res, a->error.text);
}

/* What breaks: a swap ends old answers, mixes two models in one, or does not take place. */
START_TEST(swap_of_models)
{
	struct onebit *o = start(SLOW, loops[_i]), *admin = e2e_open(&d, NULL);
	struct onebit_request rq = { .params = { .max_tokens = 150, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct onebit_request pinned = rq;
	struct e2e_stream old[4], new[4], st;
	uint32_t generation = e2e_stats(o).model_generation;
	uint8_t other[32];

	for (int i = 0; i < 4; i++)
		must(!e2e_submit(o, &old[i], model, "before the swap", &rq), "submit");
	while (!old[3].next[0])
		must(e2e_next(o, 60000), "nothing comes");
	administer(admin, ONEBIT_ADMIN_SWAP, "model-b", ONEBIT_E_OK);
	e2e_model(admin, other);
	must(memcmp(model, other, 32), "two files, one identity");
	must(e2e_stats(admin).model_generation > generation, "the model's generation did not change");
	for (int i = 0; i < 4; i++)
		must(!e2e_submit(o, &new[i], other, "after the swap", &rq), "submit");
	e2e_finish(o, old, 4);
	e2e_finish(o, new, 4);
	for (int i = 0; i < 4; i++) {
		e2e_expect(&old[i], ONEBIT_E_OK);
		e2e_expect(&new[i], ONEBIT_E_OK);
	}
	memcpy(pinned.params.model_id, model, 32);
	must(!e2e_submit(o, &st, model, "the one that was", &pinned), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_MODEL_CHANGED);
	administer(admin, ONEBIT_ADMIN_SWAP, "no such file", ONEBIT_E_EXECUTOR_DOWN);
	administer(admin, ONEBIT_ADMIN_SWAP, "../conf", ONEBIT_E_EXECUTOR_DOWN);
	must(!e2e_submit(o, &st, other, "still served", &rq), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_OK);
	onebit_close(admin);
	stop(o);
}
END_TEST

/* What breaks: a model cannot be taken away and brought back, or goes while it answers. */
START_TEST(unload_and_load)
{
	struct onebit *o = start(SLOW, ADMIN), *admin = e2e_open(&d, NULL);
	struct onebit_request rq = { .params = { .max_tokens = 60, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream old, st;
	const struct e2e_answer *a;

	must(!e2e_submit(o, &old, model, "before", &rq), "submit");
	while (!old.next[0])
		must(e2e_next(o, 60000), "nothing comes");
	administer(admin, ONEBIT_ADMIN_LOAD, "model-b", ONEBIT_E_BAD_FIELD);
	administer(admin, ONEBIT_ADMIN_UNLOAD, NULL, ONEBIT_E_OK);
	administer(admin, ONEBIT_ADMIN_UNLOAD, NULL, ONEBIT_E_NO_MODEL);
	must(!e2e_submit(o, &st, model, "meanwhile", &rq), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_NO_MODEL);
	e2e_finish(o, &old, 1);
	e2e_expect(&old, ONEBIT_E_OK);
	until(!e2e_executor(&d), "the executor stays");
	must((a = e2e_query(admin, ONEBIT_QUERY_MODEL))->error.code == ONEBIT_E_NO_MODEL, "a model: %d",
	     a->res);
	administer(admin, ONEBIT_ADMIN_LOAD, "model-a", ONEBIT_E_OK);
	must(!e2e_submit(o, &st, model, "back again", &rq), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_OK);
	onebit_close(admin);
	stop(o);
}
END_TEST

static uint32_t max_tokens(struct onebit *o)
{
	const struct e2e_answer *a = e2e_query(o, ONEBIT_QUERY_LIMITS);
	struct onebit_limits l;

	must(a->res == sizeof(l), "limits: %d", a->res);
	memcpy(&l, a->data, sizeof(l));
	return l.max_tokens;
}

/* What breaks: a changed configuration is not taken, or a broken one is. */
START_TEST(reload)
{
	struct onebit *o = start(FAST, ADMIN "max_tokens = 1000\n");
	struct onebit_request rq = { .op = ONEBIT_OP_ADMIN, .arg = ONEBIT_ADMIN_RELOAD };
	struct e2e_stream st;

	must(max_tokens(o) == 1000, "%u", max_tokens(o));
	e2e_configure(&d, FAST, ADMIN "max_tokens = 50\n");
	kill(d.pid, SIGHUP);
	until(max_tokens(o) == 50, "SIGHUP does nothing");
	must(!e2e_submit(o, &st, model, "more than that", NULL), "submit");
	e2e_finish(o, &st, 1);
	e2e_expect(&st, ONEBIT_E_BAD_PARAM);
	e2e_configure(&d, FAST, ADMIN "max_tokens = 70\nno such line\n");
	kill(d.pid, SIGHUP);
	e2e_nap(100);
	must(max_tokens(o) == 50, "a broken configuration was taken");
	e2e_configure(&d, FAST, ADMIN "max_tokens = 60\n");
	must(!e2e_ask(o, &rq)->res, "RELOAD");
	until(max_tokens(o) == 60, "RELOAD does nothing");
	stop(o);
}
END_TEST

/* What breaks: SIGTERM cuts answers short, lets new ones in, or the exit is not a clean one. */
START_TEST(orderly_drain)
{
	const struct onebit_options once = { .no_reconnect = 1 };
	struct onebit *o = start(SLOW, loops[_i]), *late = e2e_open(&d, &once);
	struct onebit_request rq = { .params = { .max_tokens = 200, .flags = ONEBIT_PARAM_IGNORE_EOS } };
	struct e2e_stream st[4], new;
	struct onebit_error err = { 0 };
	struct onebit_options options = { .size = sizeof(options), .socket = d.socket };
	struct onebit *third;
	struct e2e copy;
	int status;

	for (int i = 0; i < 4; i++)
		must(!e2e_submit(o, &st[i], model, "finish me", &rq), "submit");
	while (!st[3].next[0])
		must(e2e_next(o, 60000), "nothing comes");
	kill(d.pid, SIGTERM);
	until(e2e_stats(o).state == ONEBIT_STATE_DRAINING, "it does not drain");
	must(!e2e_submit(late, &new, model, "too late", &rq), "submit");
	e2e_finish(late, &new, 1);
	e2e_expect(&new, ONEBIT_E_DRAINING);
	must(new.res == -ESHUTDOWN && new.error.retryable && new.error.retry_after_ms, "%s",
	     new.error.text);
	must(onebit_open(&third, &options, &err) < 0 && err.retryable, "attached to one that goes: %s",
	     err.text);
	e2e_finish(o, st, 4);
	for (int i = 0; i < 4; i++)
		e2e_expect(&st[i], ONEBIT_E_OK);
	copy = d;
	status = e2e_wait_exit(&d);
	must(!status, "exit status %d", status);
	onebit_close(o);
	onebit_close(late);
	e2e_remove(&copy);
}
END_TEST

/* ---- the process ------------------------------------------------------------------------------- */

/* What breaks: the broker keeps a capability, a way to exec, or serves unfiltered. */
START_TEST(sandbox)
{
	struct onebit *o;
	pid_t broker;

	if (!e2e_has_sandbox()) {
		printf("skip: sandbox in a sanitizer build\n");
		return;
	}
	o = start(FAST, loops[_i]);
	broker = e2e_broker(&d);
	must(broker, "no broker");
	must(e2e_status(broker, "Seccomp") == 2, "no filter of system calls");
	must(e2e_status(broker, "NoNewPrivs") == 1, "privileges can come back");
	must(!e2e_status(broker, "CapEff") && !e2e_status(broker, "CapPrm"), "capabilities are left");
	stop(o);
}
END_TEST

/* What breaks: something ticks. An idle daemon with clients attached must not wake up. */
START_TEST(idle_is_asleep)
{
	enum { CLIENTS = 32 };
	struct onebit *o = start(FAST, loops[_i]), *c[CLIENTS];
	struct e2e_stream st;
	struct onebit_stats before, after;

	for (int i = 0; i < CLIENTS; i++) {
		c[i] = e2e_open(&d, NULL);
		must(!e2e_submit(c[i], &st, model, "awake once", NULL), "submit");
		e2e_finish(c[i], &st, 1);
	}
	until(e2e_stats(o).running == 0 && e2e_stats(o).done == CLIENTS, "it does not come to rest");
	e2e_nap(50);
	before = e2e_stats(o);
	e2e_nap(1000);
	after = e2e_stats(o);
	must(after.loop_wakeups == before.loop_wakeups, "%llu wake-ups in an idle second",
	     (unsigned long long)(after.loop_wakeups - before.loop_wakeups));
	for (int i = 0; i < CLIENTS; i++)
		onebit_close(c[i]);
	stop(o);
}
END_TEST

static int collect(void *user, const char *text, size_t len)
{
	strncat(user, text, len);
	return 0;
}

/* What breaks: the five-line way does not give the text that the long way gives. */
START_TEST(in_a_hurry)
{
	struct onebit *o = start(FAST, ADMIN);
	const struct onebit_params params = { .max_tokens = 20, .flags = ONEBIT_PARAM_IGNORE_EOS };
	static uint64_t block[E2E_BLOCK_MAX / 8];
	const struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = "hello", .len = 5 };
	const struct onebit_request rq = { .params = params, .parts = &part, .n_parts = 1 };
	char got[400] = "", want[400] = "", text[16];
	struct onebit_error err;
	uint64_t key = loopback_key(model, (const void *)block, block, e2e_block(block, &rq, NULL, 0));
	uint32_t len;

	for (uint32_t i = 0; i < 20; i++) {
		loopback_token(key, 0, i, text, &len);
		strncat(want, text, len);
	}
	setenv("ONEBIT_SOCKET", d.socket, 1);
	must(!onebit_generate("hello", &params, collect, got, &err), "%s", err.text);
	must(!strcmp(got, want), "\"%s\" instead of \"%s\"", got, want);
	setenv("ONEBIT_SOCKET", "/nowhere/s", 1);
	must(onebit_generate("hello", &params, collect, got, &err) < 0 && strstr(err.text, "onebitd"),
	     "%s", err.text);
	stop(o);
}
END_TEST

int main(void)
{
	Suite *s = e2e_suite("e2e");

	e2e_add(s, small_operations, 2);
	e2e_add(s, unsupported_operations, 1);
	e2e_add(s, queries, 1);
	e2e_add(s, rights_are_needed, 1);
	e2e_add(s, parameters, 2);
	e2e_add(s, tokenize_round_trip, 1);
	e2e_add(s, sixteen_streams, 2);
	e2e_add(s, cancel_between_neighbours, 2);
	e2e_add(s, deadlines, 1);
	e2e_add(s, priorities, 1);
	e2e_add(s, window_full_and_resume, 1);
	e2e_add(s, windows_are_hidden, 1);
	e2e_add(s, attach_quotas, 1);
	e2e_add(s, request_quotas, 1);
	e2e_add(s, token_rate, 1);
	e2e_add(s, swap_of_models, 2);
	e2e_add(s, unload_and_load, 1);
	e2e_add(s, reload, 1);
	e2e_add(s, orderly_drain, 2);
	e2e_add(s, sandbox, 2);
	e2e_add(s, idle_is_asleep, 2);
	e2e_add(s, in_a_hurry, 1);
	return e2e_main(s);
}

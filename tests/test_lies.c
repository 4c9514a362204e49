/* SPDX-License-Identifier: MIT */
/*
 * An executor that says what is not so, or dies: each field of each event wrong alone. The executor
 * is then given up, the request goes to the next one, and not a byte of the answer is changed.
 * The core alone, with a scripted executor.
 */
#include <check.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_ask.h"
#include "lib_core.h"
#include "limits.h"
#include "onebit_ring.h"

#define EV(f)  offsetof(struct exec_event, f)
#define REC(f) offsetof(struct onebit_record, f)
#define TOP(f) (sizeof(struct onebit_record) + offsetof(struct onebit_top, f))
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

enum { TOKENS = 4, SLOTS = 4, OUT = 4096 };

static struct core *k;
static int me;

static void begin(void)
{
	k = core_new(NULL, true, false);
	me = core_attach(k, 1000, NULL, NULL);
	core_exec_hello(k, 0, SLOTS);
}

static void submit(uint64_t user_data, uint32_t flags)
{
	struct core_block t;
	struct onebit_sqe e;

	core_block_plain(&t, "tell", TOKENS);
	t.p.flags = flags;
	e = core_generate(k, me, &t, 0, (uint32_t)user_data * OUT, OUT, user_data);
	core_submit(k, me, &e);
	core_run(k);
}

/* The window holds the whole answer of one choice, as an undisturbed run gives it. */
static void answered(uint64_t user_data, uint32_t tokens)
{
	const uint8_t *w = core_out(k, me) + user_data * OUT;
	uint8_t expected[OUT];
	struct onebit_out out;
	struct onebit_choice choice;
	uint32_t bytes = core_records(expected, 0, 0, tokens);

	memcpy(&out, w, sizeof(out));
	memcpy(&choice, w + sizeof(out), sizeof(choice));
	ck_assert_uint_eq(choice.n_tokens, tokens);
	ck_assert_uint_eq(choice.n_bytes, bytes);
	ck_assert_uint_eq(choice.finish, ONEBIT_FINISH_LENGTH);
	ck_assert_mem_eq(w + choice.rec_off, expected, bytes);
}

static void ended(uint64_t user_data, unsigned code)
{
	struct onebit_cqe cqe = { 0 };

	ck_assert_msg(core_terminal(k, me, &cqe, NULL), "no terminal for %u", (unsigned)user_data);
	ck_assert_uint_eq(cqe.user_data, user_data);
	ck_assert_msg(cqe.u.end.code == code, "code %s instead of %s", error_name(cqe.u.end.code),
		      error_name(code));
	if (code == ONEBIT_E_OK)
		answered(user_data, TOKENS);
}

static void idle(void)
{
	const struct onebit_stats *s;

	core_run(k);
	s = broker_stats(k->b);
	ck_assert_uint_eq(s->running, 0);
	ck_assert_uint_eq(s->queued, 0);
	ck_assert_uint_eq(s->journal_bytes, 0);
}

/* Emit an event that is right but for one field, to which delta is added where it lies. */
static void emit_wrong(const struct exec_event *ev, const void *data, size_t off, unsigned size,
		       uint64_t delta)
{
	struct core_exec *x = &k->x[0];
	uint8_t *to;
	uint64_t v = 0;

	ck_assert_int_eq(executor_emit(&x->e, ev, data), 0);
	to = (uint8_t *)&x->mem.own->events[onebit_slot(x->e.event_tail - 1, EXEC_EVENTS)] + off;
	memcpy(&v, to, size);
	v += delta;
	memcpy(to, &v, size);
	executor_kick(&x->e);
	broker_exec_doorbell(k->b, 0);
	core_run(k);
}

/* The executor was killed once for it, and the next one finishes the request. */
static void found_out(const char *what, unsigned kills, uint64_t lies)
{
	struct exec_cmd run;

	ck_assert_msg(k->x[0].kills == kills + 1, "%s: not found out", what);
	ck_assert_uint_eq(broker_stats(k->b)->executor_lies, lies + 1);
	core_exec_hello(k, 0, SLOTS);
	run = core_exec_run(k, 0);
	core_exec_finish(k, 0, &run, true);
}

/* ---- events of a running request ------------------------------------------------------------- */

/* What is added to a field of a TOKENS event that carries token 1. */
static const struct lie {
	const char *what;
	size_t off;
	unsigned size;
	uint64_t delta;
	bool harmless; /* the field means nothing in this event: the answer must be the same */
} token_lies[] = {
	{ "kind 0", EV(kind), 4, -2u, false },
	{ "kind 77", EV(kind), 4, 75, false },
	{ "a second hello", EV(kind), 4, EXEC_EV_HELLO - EXEC_EV_TOKENS, false },
	{ "replay of nothing", EV(kind), 4, EXEC_EV_REPLAYED - EXEC_EV_TOKENS, false },
	{ "data of a generate", EV(kind), 4, EXEC_EV_DATA - EXEC_EV_TOKENS, false },
	{ "end too early", EV(kind), 4, EXEC_EV_END - EXEC_EV_TOKENS, false },
	{ "kv of no size", EV(kind), 4, EXEC_EV_KV - EXEC_EV_TOKENS, false },
	{ "timing of no size", EV(kind), 4, EXEC_EV_TIMING - EXEC_EV_TOKENS, false },
	{ "progress", EV(kind), 4, EXEC_EV_PROGRESS - EXEC_EV_TOKENS, true },
	{ "fault", EV(kind), 4, EXEC_EV_FAULT - EXEC_EV_TOKENS, true },
	{ "slot idle", EV(slot), 4, 1, false },
	{ "slot = slots", EV(slot), 4, SLOTS, false },
	{ "slot 64", EV(slot), 4, EXEC_SLOTS_MAX, false },
	{ "slot -1", EV(slot), 4, -1u, false },
	{ "tag", EV(tag), 4, 1, false },
	{ "tag", EV(tag), 4, -1u, false },
	{ "choice", EV(choice), 2, 1, false },
	{ "choice", EV(choice), 2, 0xffff, false },
	{ "finish cancel", EV(finish), 1, ONEBIT_FINISH_CANCEL, false },
	{ "finish error", EV(finish), 1, ONEBIT_FINISH_ERROR, false },
	{ "finish unknown", EV(finish), 1, ONEBIT_FINISH_COUNT, false },
	{ "finish 255", EV(finish), 1, 255, false },
	{ "a gap", EV(first), 4, 1, false },
	{ "a double", EV(first), 4, -1u, false },
	{ "far ahead", EV(first), 4, 1u << 31, false },
	{ "no tokens", EV(n), 4, -1u, false },
	{ "more tokens", EV(n), 4, 1, false },
	{ "too many tokens", EV(n), 4, TOKENS, false },
	{ "n huge", EV(n), 4, 1u << 31, false },
	{ "data behind the area", EV(data_off), 4, EXEC_DATA_BYTES, false },
	{ "data over the edge", EV(data_off), 4, EXEC_DATA_BYTES - 2 * CORE_RECORD, false },
	{ "data far away", EV(data_off), 4, 0xfffff000, false },
	{ "less data", EV(data_len), 4, -8u, false },
	{ "no data", EV(data_len), 4, -CORE_RECORD, false },
	{ "more data", EV(data_len), 4, 8, false },
	{ "too much data", EV(data_len), 4, EXEC_EVENT_DATA_MAX, false },
	{ "data wraps", EV(data_len), 4, 0xffffff00, false },
	{ "reserved0", EV(reserved0), 1, 1, true },
	{ "code", EV(code), 2, ONEBIT_E_POISON, true },
	{ "reserved1", EV(reserved1), 2, 1, true },
	{ "res", EV(res), 4, 1, true },
	{ "detail", EV(detail), 8, 1, true },
	{ "prompt tokens", EV(prompt_tokens), 4, 0xffffffff, true },
	{ "cached tokens", EV(cached_tokens), 4, 0xffffffff, true },
	{ "reserved2", EV(reserved2), 8, 1, true },
};

/* One lie that is believed reaches the client as a wrong, lost or doubled token. */
START_TEST(token_fields)
{
	uint8_t data[64];

	for (size_t i = 0; i < COUNT(token_lies); i++) {
		const struct lie *l = &token_lies[i];
		struct exec_event ev;
		struct exec_cmd run;

		begin();
		submit(1, 0);
		run = core_exec_run(k, 0);
		core_exec_tokens(k, 0, &run, 0, 0, 1, 0);
		core_run(k);
		ev = core_event(&run, EXEC_EV_TOKENS);
		ev.first = ev.n = 1;
		ev.data_len = core_records(data, 0, 1, 1);
		emit_wrong(&ev, data, l->off, l->size, l->delta);
		if (l->harmless) {
			ck_assert_msg(!k->x[0].kills, "%s: killed", l->what);
			core_exec_finish(k, 0, &run, false);
		} else {
			found_out(l->what, 0, 0);
		}
		ended(1, ONEBIT_E_OK);
		idle();
		k = core_free(k);
	}
}
END_TEST

/* A record with one top, valid: what the rows below break. */
static uint32_t record_with_top(uint8_t *data)
{
	struct onebit_record rec = { .size = 40, .n_top = 1, .text_len = 3, .token = core_token(0, 1),
				     .flags = ONEBIT_REC_LOGPROB };
	struct onebit_top top = { .token = 5, .text_off = 35, .text_len = 2 };

	memset(data, 0, 40);
	memcpy(data, &rec, sizeof(rec));
	memcpy(data + sizeof(rec), &top, sizeof(top));
	memcpy(data + 32, "t01ab", 5);
	return 40;
}

static const struct {
	const char *what;
	size_t off;
	unsigned size;
	uint64_t value;
} record_lies[] = {
	{ "size 0", REC(size), 2, 0 }, { "size 8", REC(size), 2, 8 },
	{ "size 36", REC(size), 2, 36 }, { "size 32", REC(size), 2, 32 },
	{ "size 48", REC(size), 2, 48 }, { "size 65528", REC(size), 2, 65528 },
	{ "flags", REC(flags), 2, 2 }, { "flags", REC(flags), 2, 0x8001 },
	{ "n_top 2", REC(n_top), 2, 2 }, { "n_top 21", REC(n_top), 2, 21 },
	{ "n_top 65535", REC(n_top), 2, 65535 },
	{ "text_len 9", REC(text_len), 2, 9 }, { "text_len 65535", REC(text_len), 2, 65535 },
	{ "top text_off", TOP(text_off), 2, 41 }, { "top text_off", TOP(text_off), 2, 65535 },
	{ "top text_off", TOP(text_off), 2, 39 },
	{ "top text_len", TOP(text_len), 2, 6 }, { "top text_len", TOP(text_len), 2, 65535 },
	{ "top reserved", TOP(reserved), 4, 1 }, { "top reserved", TOP(reserved), 4, 1u << 31 },
};

/* A record is read by clients as a structure: what points outside of it would crash them. */
START_TEST(record_fields)
{
	uint8_t data[64] = { 0 };

	for (size_t i = 0; i < COUNT(record_lies); i++) {
		struct exec_event ev;
		struct exec_cmd run;

		begin();
		submit(1, 0);
		run = core_exec_run(k, 0);
		core_exec_tokens(k, 0, &run, 0, 0, 1, 0);
		ev = core_event(&run, EXEC_EV_TOKENS);
		ev.first = ev.n = 1;
		ev.data_len = record_with_top(data);
		memcpy(data + record_lies[i].off, &record_lies[i].value, record_lies[i].size);
		emit_wrong(&ev, data, 0, 0, 0);
		found_out(record_lies[i].what, 0, 0);
		ended(1, ONEBIT_E_OK);
		idle();
		k = core_free(k);
	}
	/* And the record unbroken is taken. */
	begin();
	submit(1, 0);
	{
		struct exec_cmd run = core_exec_run(k, 0);
		struct exec_event ev = core_event(&run, EXEC_EV_TOKENS);

		ev.n = 1;
		ev.data_len = record_with_top(data);
		emit_wrong(&ev, data, 0, 0, 0);
	}
	ck_assert_uint_eq(k->x[0].kills, 0);
	ck_assert_uint_eq(broker_stats(k->b)->tokens, 1);
	k = core_free(k);
}
END_TEST

/* Of an event that cannot be true nothing may be seen, not even the part before the lie. */
START_TEST(half_a_lie)
{
	uint8_t data[2 * CORE_RECORD];
	struct onebit_choice choice;
	struct exec_event ev;
	struct onebit_cqe cqe;
	struct exec_cmd run;

	begin();
	submit(1, 0); /* its ACCEPTED is not reaped: progress is held back */
	run = core_exec_run(k, 0);
	core_exec_tokens(k, 0, &run, 0, 0, 1, 0);
	core_run(k);
	ev = core_event(&run, EXEC_EV_TOKENS);
	ev.first = 1;
	ev.n = 2;
	ev.data_len = core_records(data, 0, 1, 2);
	data[CORE_RECORD] = 7; /* size of the second */
	emit_wrong(&ev, data, 0, 0, 0);
	ck_assert_uint_eq(k->x[0].kills, 1);
	ck_assert(core_reap(k, me, &cqe));
	ck_assert(cqe.flags & ONEBIT_CQE_ACCEPTED);
	core_run(k);
	ck_assert(core_reap(k, me, &cqe));
	memcpy(&choice, core_out(k, me) + OUT + sizeof(struct onebit_out), sizeof(choice));
	ck_assert_uint_eq(cqe.u.progress.n, 1);
	ck_assert_uint_eq(choice.n_tokens, 1);
	ck_assert_uint_eq(choice.n_bytes, CORE_RECORD);
	core_exec_hello(k, 0, SLOTS);
	run = core_exec_run(k, 0);
	core_exec_finish(k, 0, &run, true);
	ended(1, ONEBIT_E_OK);
	k = core_free(k);
}
END_TEST

static bool may_end(unsigned code)
{
	static const unsigned may[] = { ONEBIT_E_OK, ONEBIT_E_UNSUPPORTED, ONEBIT_E_NOT_FOUND,
		ONEBIT_E_NUMERIC, ONEBIT_E_CONTEXT_FULL, ONEBIT_E_BAD_PROMPT, ONEBIT_E_BAD_PARAM,
		ONEBIT_E_BAD_GRAMMAR, ONEBIT_E_EXECUTOR, ONEBIT_E_KV_FULL };

	for (size_t i = 0; i < COUNT(may); i++)
		if (may[i] == code)
			return true;
	return false;
}

/* An executor that could end a request with any code could accuse the client, or claim a quota. */
START_TEST(end_fields)
{
	static const struct lie lies[] = {
		{ "slot", EV(slot), 4, 1, false }, { "slot", EV(slot), 4, SLOTS, false },
		{ "tag", EV(tag), 4, 1, false }, { "tag", EV(tag), 4, -1u, false },
		{ "data", EV(data_len), 4, EXEC_EVENT_DATA_MAX + 1, false },
		{ "data", EV(data_off), 4, EXEC_DATA_BYTES + 1, false },
		{ "choice", EV(choice), 2, 9, true }, { "finish", EV(finish), 1, 9, true },
		{ "first", EV(first), 4, 9, true }, { "n", EV(n), 4, 9, true },
		{ "res", EV(res), 4, 9, true }, { "reserved", EV(reserved2), 8, 9, true },
	};
	struct exec_event ev;
	struct exec_cmd run;

	for (size_t i = 0; i < COUNT(lies); i++) {
		begin();
		submit(1, 0);
		run = core_exec_run(k, 0);
		core_exec_tokens(k, 0, &run, 0, 0, TOKENS, ONEBIT_FINISH_LENGTH);
		ev = core_event(&run, EXEC_EV_END);
		emit_wrong(&ev, NULL, lies[i].off, lies[i].size, lies[i].delta);
		if (!lies[i].harmless)
			found_out(lies[i].what, 0, 0);
		ended(1, ONEBIT_E_OK);
		idle();
		k = core_free(k);
	}
	for (unsigned code = 0; code < 70; code++) {
		begin();
		submit(1, 0);
		run = core_exec_run(k, 0);
		core_exec_tokens(k, 0, &run, 0, 0, 1, 0);
		ev = core_event(&run, EXEC_EV_END);
		ev.code = (uint16_t)code;
		emit_wrong(&ev, NULL, 0, 0, 0);
		if (code && may_end(code)) {
			ended(1, code);
		} else {
			found_out("code", 0, 0);
			ended(1, ONEBIT_E_OK);
		}
		idle();
		k = core_free(k);
	}
}
END_TEST

/* ---- events of no request -------------------------------------------------------------------- */

/* A hello is where all bounds of an executor come from. */
START_TEST(hello_fields)
{
	static const struct {
		const char *what;
		size_t off;
		unsigned size;
		uint64_t value;
	} lies[] = {
		{ "version", offsetof(struct exec_hello, version), 4, 0 },
		{ "version", offsetof(struct exec_hello, version), 4, EXEC_VERSION + 1 },
		{ "slots", offsetof(struct exec_hello, slots), 4, 0 },
		{ "slots", offsetof(struct exec_hello, slots), 4, EXEC_SLOTS_MAX + 1 },
		{ "slots", offsetof(struct exec_hello, slots), 4, 0xffffffff },
		{ "ops", offsetof(struct exec_hello, ops), 8, 1ull << ONEBIT_OP_COUNT },
		{ "ops", offsetof(struct exec_hello, ops), 8, 1ull << 63 },
		{ "context", offsetof(struct exec_hello, model.context), 4, 0 },
	};
	struct exec_event ev = { .kind = EXEC_EV_HELLO, .data_len = sizeof(struct exec_hello) };
	struct exec_event early = { .kind = EXEC_EV_KV, .data_len = sizeof(struct onebit_kv) };
	uint8_t data[sizeof(struct onebit_timing)] = { 0 };
	struct exec_cmd run;

	for (size_t i = 0; i < COUNT(lies) + 4; i++) {
		struct exec_hello h = { .version = EXEC_VERSION, .slots = SLOTS, .ops = 1 << 3 };

		h.model.context = 100;
		k = core_new(NULL, true, false);
		me = core_attach(k, 1000, NULL, NULL);
		submit(1, 0);
		core_run(k);
		if (i < COUNT(lies)) {
			memcpy((uint8_t *)&h + lies[i].off, &lies[i].value, lies[i].size);
			emit_wrong(&ev, &h, 0, 0, 0);
		} else if (i == COUNT(lies)) {
			emit_wrong(&ev, &h, EV(data_len), 4, -8u);
		} else if (i == COUNT(lies) + 1) {
			emit_wrong(&early, &h, 0, 0, 0);
		} else if (i == COUNT(lies) + 2) {
			k->x[0].e.event_tail += EXEC_EVENTS + 1;
			executor_kick(&k->x[0].e);
			broker_exec_doorbell(k->b, 0);
			core_run(k);
		} else {
			emit_wrong(&ev, &h, EV(data_off), 4, EXEC_DATA_BYTES - sizeof(h) + 8);
		}
		ck_assert_msg(k->x[0].kills == 1, "lie %u", (unsigned)i);
		core_pass(k, BACKOFF_LAST_NS);
		core_exec_hello(k, 0, SLOTS);
		run = core_exec_run(k, 0);
		core_exec_finish(k, 0, &run, false);
		ended(1, ONEBIT_E_OK);
		idle();
		k = core_free(k);
	}

	/* Statistics and faults: a wrong size would be copied over what lies behind. */
	for (int i = 0; i < 5; i++) {
		struct exec_event st[] = {
			{ .kind = EXEC_EV_KV, .data_len = sizeof(struct onebit_kv) - 8 },
			{ .kind = EXEC_EV_TIMING, .n = 2, .data_len = sizeof(struct onebit_timing) },
			{ .kind = EXEC_EV_TIMING, .n = EXEC_TIMINGS_MAX + 1,
			  .data_len = (EXEC_TIMINGS_MAX + 1) * sizeof(struct onebit_timing) },
			{ .kind = EXEC_EV_TIMING, .n = 0x49249250, .data_len = sizeof(data) },
			{ .kind = EXEC_EV_FAULT, .data_len = 97 },
		};
		static uint8_t zeroes[8192];

		begin();
		submit(1, 0);
		run = core_exec_run(k, 0);
		emit_wrong(&st[i], zeroes, 0, 0, 0);
		found_out("statistics", 0, 0);
		ended(1, ONEBIT_E_OK);
		k = core_free(k);
	}
}
END_TEST

/* An executor that does not take its commands, or says so, must not make us write over them. */
START_TEST(command_index)
{
	static const uint32_t heads[] = { 1, 255, EXEC_CMDS, 1u << 31, 0x80000100 };
	struct exec_cmd run;

	for (size_t i = 0; i < COUNT(heads); i++) {
		begin();
		submit(1, 0);
		run = core_exec_run(k, 0);
		k->x[0].mem.own->cmd_head = k->x[0].e.cmd_head + heads[i];
		submit(2, 0);
		found_out("cmd_head", 0, 0);
		ended(1, ONEBIT_E_OK);
		run = core_exec_run(k, 0);
		core_exec_finish(k, 0, &run, true);
		ended(2, ONEBIT_E_OK);
		idle();
		k = core_free(k);
	}
}
END_TEST

/* ---- replay ---------------------------------------------------------------------------------- */

/* Whoever goes on after a death must show that it stands where the client does. */
START_TEST(replay)
{
	static const struct lie lies[] = {
		{ "choice", EV(choice), 2, 1, false }, { "first", EV(first), 4, 1, false },
		{ "first", EV(first), 4, -1u, false }, { "slot", EV(slot), 4, 1, false },
		{ "tag", EV(tag), 4, 1, false },
	};
	struct exec_event ev;
	struct onebit_cqe cqe;
	struct exec_cmd run;

	for (size_t i = 0; i < COUNT(lies) + 2; i++) {
		begin();
		submit(1, 0);
		run = core_exec_run(k, 0);
		core_exec_tokens(k, 0, &run, 0, 0, 2, 0);
		core_run(k);
		core_exec_exit(k, 0, 9);
		core_exec_hello(k, 0, SLOTS);
		run = core_exec_run(k, 0);
		ck_assert_uint_eq(executor_entry(&k->x[0].e, &run)->attempt, 1);
		ev = core_event(&run, EXEC_EV_REPLAYED);
		ev.first = 1;
		ev.detail = core_token(0, 1);
		if (i < COUNT(lies)) {
			emit_wrong(&ev, NULL, lies[i].off, lies[i].size, lies[i].delta);
			found_out(lies[i].what, 0, 0);
			ended(1, ONEBIT_E_OK);
		} else if (i == COUNT(lies)) { /* goes on without having shown it */
			core_exec_tokens(k, 0, &run, 0, 2, 1, 0);
			core_run(k);
			found_out("no replay", 0, 0);
			ended(1, ONEBIT_E_OK);
		} else { /* another token: the request ends rather than change */
			emit_wrong(&ev, NULL, EV(detail), 8, 1);
			ck_assert_uint_eq(k->x[0].kills, 0);
			ck_assert(core_terminal(k, me, &cqe, NULL));
			ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_NONDETERMINISM);
			ck_assert_uint_eq(cqe.u.end.detail, 1);
			ck_assert(core_exec_cmd(k, 0, &run));
			ck_assert_uint_eq(run.kind, EXEC_CMD_CANCEL);
			ev = core_event(&run, EXEC_EV_END);
			core_exec_emit(k, 0, &ev, NULL);
		}
		idle();
		k = core_free(k);
	}
}
END_TEST

/* At most once means: not again, and the client hears after how many tokens. */
START_TEST(no_replay)
{
	struct onebit_cqe cqe;
	struct exec_cmd run;

	begin();
	submit(1, ONEBIT_PARAM_NO_REPLAY);
	run = core_exec_run(k, 0);
	core_exec_tokens(k, 0, &run, 0, 0, 3, 0);
	core_run(k);
	core_exec_exit(k, 0, 9);
	core_run(k);
	ck_assert(core_terminal(k, me, &cqe, NULL));
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_REPLAY_REFUSED);
	ck_assert_uint_eq(cqe.u.end.detail, 3);
	core_exec_hello(k, 0, SLOTS);
	ck_assert(!core_exec_cmd(k, 0, &run));
	idle();
	k = core_free(k);
}
END_TEST

/* Bytes of an operation without tokens come again from the start: they must not be doubled. */
START_TEST(data_replay)
{
	struct onebit_cqe cqe;
	struct core_block t;
	struct exec_event ev;
	struct onebit_sqe e;
	struct exec_cmd run;
	unsigned starts;

	begin();
	core_block_plain(&t, "abcdefgh", 0);
	e = core_generate(k, me, &t, 0, 0, 64, 1);
	e.op = ONEBIT_OP_TOKENIZE;
	core_submit(k, me, &e);
	core_run(k);
	for (int i = 0; i < 2; i++) {
		run = core_exec_run(k, 0);
		ev = core_event(&run, EXEC_EV_DATA);
		ev.data_len = 8;
		core_exec_emit(k, 0, &ev, i ? "ABCDEFGH" : "ABCDxxxx");
		core_run(k);
		if (i)
			break;
		core_exec_exit(k, 0, 9);
		core_exec_hello(k, 0, SLOTS);
	}
	ev = core_event(&run, EXEC_EV_END);
	ev.res = 8;
	core_exec_emit(k, 0, &ev, NULL);
	core_run(k);
	ck_assert(core_terminal(k, me, &cqe, NULL));
	ck_assert_int_eq(cqe.res, 8);
	ck_assert_mem_eq(core_out(k, me), "ABCDEFGH", 8);

	/* The same bytes again are no progress: such a request is poison like any other. */
	e.user_data = 2;
	core_submit(k, me, &e);
	core_run(k);
	starts = k->x[0].starts;
	while (!core_terminal(k, me, &cqe, NULL) && k->x[0].starts < starts + 20) {
		run = core_exec_run(k, 0);
		ev = core_event(&run, EXEC_EV_DATA);
		ev.data_len = 8;
		core_exec_emit(k, 0, &ev, "ABCDEFGH");
		core_run(k);
		core_exec_exit(k, 0, 9);
		core_exec_hello(k, 0, SLOTS);
	}
	ck_assert_uint_eq(cqe.user_data, 2);
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_POISON);
	idle();
	k = core_free(k);
}
END_TEST

/* ---- suspicion ------------------------------------------------------------------------------- */

/* One request ends its executor each time; its neighbours must finish as if it were not there. */
START_TEST(poison)
{
	enum { N = 6, GUILTY = 4 }; /* the last suspect: those behind it may not run beside it */
	unsigned ends[N + 1] = { 0 }, alone_deaths = 0;
	struct onebit_cqe cqe;
	struct exec_cmd run;

	begin();
	for (uint64_t i = 1; i <= N; i++)
		submit(i, 0);
	for (int turns = 0; turns < 100 && broker_stats(k->b)->queued + broker_stats(k->b)->running;
	     turns++) {
		struct exec_cmd taken[SLOTS];
		bool guilty = false;
		unsigned n = 0;

		while (n < SLOTS && core_exec_cmd(k, 0, &taken[n])) {
			/* Ids are given in the order of submission. */
			guilty |= executor_entry(&k->x[0].e, &taken[n++])->request_id == GUILTY;
		}
		ck_assert_uint_gt(n, 0);
		if (guilty) { /* it strikes before any token */
			alone_deaths += n == 1;
			core_exec_exit(k, 0, 6);
			core_exec_hello(k, 0, SLOTS);
			continue;
		}
		for (unsigned i = 0; i < n; i++) {
			run = taken[i];
			core_exec_finish(k, 0, &run, true);
		}
	}
	ck_assert_uint_eq(alone_deaths, POISON_DEATHS);
	while (core_terminal(k, me, &cqe, NULL)) {
		ck_assert_uint_eq(ends[cqe.user_data]++, 0);
		ck_assert_uint_eq(cqe.u.end.code,
				  cqe.user_data == GUILTY ? ONEBIT_E_POISON : ONEBIT_E_OK);
		if (cqe.user_data == GUILTY)
			ck_assert_uint_eq(cqe.u.end.detail, POISON_DEATHS);
		else
			answered(cqe.user_data, TOKENS);
	}
	for (int i = 1; i <= N; i++)
		ck_assert_uint_eq(ends[i], 1);
	ck_assert_uint_eq(broker_stats(k->b)->poisoned, 1);
	/* And it stands on its principal's account. */
	ask_core = k;
	ck_assert_uint_eq(ask_limits(me).poisoned, 1);
	idle();
	k = core_free(k);
}
END_TEST

/* No word for progress_ms means hung; any word for the slot means alive. */
START_TEST(hang)
{
	const uint64_t ms = 1000000;
	struct exec_event ev;
	struct exec_cmd run;

	begin();
	submit(1, 0);
	run = core_exec_run(k, 0);
	for (int i = 0; i < 5; i++) {
		core_pass(k, 9000 * ms);
		ck_assert_uint_eq(k->x[0].kills, 0);
		ev = core_event(&run, EXEC_EV_PROGRESS);
		core_exec_emit(k, 0, &ev, NULL);
		core_run(k);
	}
	ck_assert(broker_is_healthy(k->b));
	core_pass(k, 10001 * ms);
	ck_assert_uint_eq(k->x[0].kills, 1);
	ck_assert_uint_eq(broker_stats(k->b)->executor_hangs, 1);
	core_exec_hello(k, 0, SLOTS);
	run = core_exec_run(k, 0);
	core_exec_finish(k, 0, &run, true);
	ended(1, ONEBIT_E_OK);
	idle();
	k = core_free(k);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("lies");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	tcase_add_test(t, token_fields);
	tcase_add_test(t, record_fields);
	tcase_add_test(t, half_a_lie);
	tcase_add_test(t, end_fields);
	tcase_add_test(t, hello_fields);
	tcase_add_test(t, command_index);
	tcase_add_test(t, replay);
	tcase_add_test(t, no_replay);
	tcase_add_test(t, data_replay);
	tcase_add_test(t, poison);
	tcase_add_test(t, hang);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

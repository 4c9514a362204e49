/* SPDX-License-Identifier: MIT */
/*
 * What a client may say, and what it costs: each field wrong alone, each reserved bit, each quota,
 * and how much of a turn a hostile client gets. The core alone, no processes; time is virtual.
 */
#include <check.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_core.h"
#include "limits.h"

#define SQE(f)   offsetof(struct onebit_sqe, f)
#define PARAM(f) offsetof(struct onebit_params, f)
#define HELLO(f) offsetof(struct onebit_hello, f)
#define BLOCK(f) offsetof(struct core_block, f)
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static struct core *k;
static int me;

static void set(void *base, size_t off, unsigned size, uint64_t value)
{
	memcpy((uint8_t *)base + off, &value, size);
}

/* One client and a model that is ready but answers nothing. */
static void begin(const struct policy *p)
{
	k = core_new(p, true, false);
	core_exec_hello(k, 0, 4);
	me = core_attach(k, 1000, NULL, NULL);
	ck_assert_int_ge(me, 0);
}

static void end(void)
{
	k = core_free(k);
}

/* Submit to the client, run, and give its one terminal CQE; `more` progress CQEs came before. */
static struct onebit_cqe ask_as(int c, struct onebit_sqe e, unsigned more)
{
	static uint64_t user_data;
	struct onebit_cqe cqe = { 0 }, other;
	unsigned n = 0;

	e.user_data = ++user_data;
	core_submit(k, c, &e);
	core_run(k);
	ck_assert_msg(core_terminal(k, c, &cqe, &n), "op %u has no terminal", e.op);
	ck_assert_uint_eq(cqe.user_data, user_data);
	ck_assert_uint_eq(n, more);
	ck_assert(!core_reap(k, c, &other));
	return cqe;
}

static struct onebit_cqe ask(struct onebit_sqe e)
{
	return ask_as(me, e, 0);
}

/* Refused with code and detail, and with what its row in the table of codes says. */
static void refused(const char *what, struct onebit_cqe cqe, unsigned code, uint64_t detail)
{
	struct onebit_error e;

	error_fill(&e, code, detail, 1);
	ck_assert_msg(cqe.u.end.code == code && cqe.u.end.detail == detail,
		      "%s: code %s detail %llu, expected %s %llu", what, error_name(cqe.u.end.code),
		      (unsigned long long)cqe.u.end.detail, error_name(code),
		      (unsigned long long)detail);
	ck_assert_int_eq(cqe.res, e.err);
	ck_assert_uint_eq(cqe.u.end.layer, e.layer);
	ck_assert_uint_eq(cqe.u.end.retryable, e.retryable);
}

static void retry_told(struct onebit_cqe cqe)
{
	ck_assert_uint_eq(cqe.u.end.retryable, 1);
	ck_assert_uint_gt(cqe.u.end.retry_after_ms, 0);
}

static struct onebit_limits gauges(int c)
{
	struct onebit_sqe e = { .op = ONEBIT_OP_QUERY, .arg = ONEBIT_QUERY_LIMITS,
				.out_off = 128 << 10, .out_len = 4096 };
	struct onebit_limits l;

	ck_assert_int_eq(ask_as(c, e, 0).res, sizeof(l));
	memcpy(&l, core_out(k, c) + e.out_off, sizeof(l));
	return l;
}

/* The client is attached, works, and is charged for nothing but itself. */
static void nothing_charged(const char *what)
{
	struct onebit_limits l = gauges(me);

	ck_assert_msg(!k->c[me].closed, "%s: detached", what);
	ck_assert_msg(!l.inflight_used && !l.queued_bytes_used, "%s: charged", what);
	ck_assert_msg(!broker_stats(k->b)->journal_bytes, "%s: journal in use", what);
	ck_assert_uint_eq(l.clients_used, 1);
	ck_assert_uint_eq(ask((struct onebit_sqe){ .op = ONEBIT_OP_NOP }).u.end.code, 0);
}

static struct onebit_sqe generate(const struct core_block *t)
{
	return core_generate(k, me, t, 0, 0, 65536, 0);
}

/* ---- the hello ------------------------------------------------------------------------------- */

static const struct {
	const char *what;
	size_t off;
	unsigned size;
	uint64_t value;
	unsigned code;
	uint64_t detail;
} hellos[] = {
	{ "magic", HELLO(magic), 4, 0, ONEBIT_E_BAD_HELLO, HELLO(magic) },
	{ "size short", HELLO(size), 4, 56, ONEBIT_E_BAD_HELLO, HELLO(size) },
	{ "size long", HELLO(size), 4, 72, ONEBIT_E_BAD_HELLO, HELLO(size) },
	{ "major 0", HELLO(abi_major), 2, 0, ONEBIT_E_BAD_VERSION, ONEBIT_ABI_MAJOR },
	{ "major 2", HELLO(abi_major), 2, 2, ONEBIT_E_BAD_VERSION, ONEBIT_ABI_MAJOR },
	{ "required, not wanted", HELLO(features_wanted), 8, 0, ONEBIT_E_BAD_HELLO,
	  HELLO(features_required) },
	{ "required, unknown", HELLO(features_required), 8, 1ull << 63, ONEBIT_E_BAD_FEATURE,
	  1ull << 63 },
	{ "required, not offered", HELLO(features_required), 8, ONEBIT_FEAT_BUFFERS,
	  ONEBIT_E_BAD_FEATURE, ONEBIT_FEAT_BUFFERS },
	{ "sq 3", HELLO(sq_entries), 4, 3, ONEBIT_E_BAD_HELLO, HELLO(sq_entries) },
	{ "sq 2048", HELLO(sq_entries), 4, 2048, ONEBIT_E_BAD_HELLO, HELLO(sq_entries) },
	{ "sq 2^31", HELLO(sq_entries), 4, 1u << 31, ONEBIT_E_BAD_HELLO, HELLO(sq_entries) },
	{ "cq 65", HELLO(cq_entries), 4, 65, ONEBIT_E_BAD_HELLO, HELLO(cq_entries) },
	{ "cq below twice sq", HELLO(cq_entries), 4, 64, ONEBIT_E_BAD_HELLO, HELLO(cq_entries) },
	{ "cq 8192", HELLO(cq_entries), 4, 8192, ONEBIT_E_BAD_HELLO, HELLO(cq_entries) },
	{ "arena odd", HELLO(arena_bytes), 4, 4097, ONEBIT_E_BAD_HELLO, HELLO(arena_bytes) },
	{ "arena small", HELLO(arena_bytes), 4, 2048, ONEBIT_E_BAD_HELLO, HELLO(arena_bytes) },
	{ "arena large", HELLO(arena_bytes), 4, ONEBIT_AREA_MAX + 4096, ONEBIT_E_BAD_HELLO,
	  HELLO(arena_bytes) },
	{ "arena huge", HELLO(arena_bytes), 4, 0xfffff000, ONEBIT_E_BAD_HELLO, HELLO(arena_bytes) },
	{ "out odd", HELLO(out_bytes), 4, 8, ONEBIT_E_BAD_HELLO, HELLO(out_bytes) },
	{ "out large", HELLO(out_bytes), 4, ONEBIT_AREA_MAX + 4096, ONEBIT_E_BAD_HELLO,
	  HELLO(out_bytes) },
};

static void bad_hello(const char *what, const struct onebit_hello *h, unsigned code, uint64_t detail)
{
	struct onebit_error why;

	ck_assert_msg(core_attach(k, 1000, h, &why) < 0, "%s: accepted", what);
	ck_assert_msg(why.code == code && why.detail == detail, "%s: %s %llu", what,
		      error_name(why.code), (unsigned long long)why.detail);
	ck_assert(memchr(why.text, 0, sizeof(why.text)) && why.text[0]);
}

/* A hello with one bad field that passes would lay out a ring nobody has checked. */
START_TEST(hello_fields)
{
	struct onebit_hello h;

	begin(NULL);
	for (size_t i = 0; i < COUNT(hellos); i++) {
		core_hello(&h);
		h.sq_entries = 64;
		h.features_required = ONEBIT_FEAT_INLINE;
		set(&h, hellos[i].off, hellos[i].size, hellos[i].value);
		bad_hello(hellos[i].what, &h, hellos[i].code, hellos[i].detail);
	}
	for (unsigned bit = 0; bit < 32; bit++) {
		core_hello(&h);
		h.flags = 1u << bit;
		bad_hello("flags", &h, ONEBIT_E_BAD_HELLO, HELLO(flags));
	}
	for (unsigned bit = 0; bit < 128; bit++) {
		core_hello(&h);
		h.reserved[bit / 64] = 1ull << bit % 64;
		bad_hello("reserved", &h, ONEBIT_E_BAD_HELLO, HELLO(reserved));
	}
	nothing_charged("hello");
	end();
}
END_TEST

/* A length other than the struct's that passes would be read beyond the message. */
START_TEST(hello_lengths)
{
	struct onebit_hello h[4];
	struct onebit_error why;
	struct attach a;

	memset(h, 0, sizeof(h));
	core_hello(&h[0]);
	for (size_t len = 0; len <= sizeof(h); len++)
		ck_assert_int_eq(attach_parse(h, len, &a, &why), len == sizeof(h[0]) ? 0 : -EPROTO);
}
END_TEST

/* ---- the SQE --------------------------------------------------------------------------------- */

static const struct {
	const char *what;
	unsigned op;
	size_t off;
	unsigned size;
	uint64_t value;
	unsigned code;
	uint64_t detail;
} sqes[] = {
	{ "op", ONEBIT_OP_NOP, SQE(op), 1, ONEBIT_OP_COUNT, ONEBIT_E_BAD_OP, ONEBIT_OP_COUNT },
	{ "op", ONEBIT_OP_NOP, SQE(op), 1, 255, ONEBIT_E_BAD_OP, 255 },
	{ "priority", ONEBIT_OP_NOP, SQE(priority), 1, 3, ONEBIT_E_BAD_FIELD, SQE(priority) },
	{ "priority", ONEBIT_OP_NOP, SQE(priority), 1, 255, ONEBIT_E_BAD_FIELD, SQE(priority) },
	{ "buffer", ONEBIT_OP_NOP, SQE(buf_index), 2, 1, ONEBIT_E_BAD_FIELD, SQE(buf_index) },
	{ "arg unused", ONEBIT_OP_NOP, SQE(arg), 8, 1ull << 63, ONEBIT_E_RESERVED, SQE(arg) },
	{ "in unused", ONEBIT_OP_NOP, SQE(in_off), 4, 8, ONEBIT_E_RESERVED, SQE(in_off) },
	{ "in unused", ONEBIT_OP_NOP, SQE(in_len), 4, 8, ONEBIT_E_RESERVED, SQE(in_off) },
	{ "out unused", ONEBIT_OP_NOP, SQE(out_off), 4, 8, ONEBIT_E_RESERVED, SQE(out_off) },
	{ "out unused", ONEBIT_OP_NOP, SQE(out_len), 4, 8, ONEBIT_E_RESERVED, SQE(out_off) },
	{ "arg unused", ONEBIT_OP_GENERATE, SQE(arg), 8, 1, ONEBIT_E_RESERVED, SQE(arg) },
	{ "arena", ONEBIT_OP_ECHO, SQE(in_off), 4, 256 << 10, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "arena", ONEBIT_OP_ECHO, SQE(in_off), 4, 0xfffffff8, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "arena", ONEBIT_OP_ECHO, SQE(in_len), 4, (256 << 10) + 1, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "arena", ONEBIT_OP_ECHO, SQE(in_len), 4, 0xffffffff, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "out", ONEBIT_OP_ECHO, SQE(out_off), 4, 4, ONEBIT_E_BAD_RANGE, SQE(out_off) },
	{ "out", ONEBIT_OP_ECHO, SQE(out_off), 4, 256 << 10, ONEBIT_E_BAD_RANGE, SQE(out_off) },
	{ "out", ONEBIT_OP_ECHO, SQE(out_off), 4, 0xfffffff8, ONEBIT_E_BAD_RANGE, SQE(out_off) },
	{ "out", ONEBIT_OP_ECHO, SQE(out_len), 4, 0xffffffff, ONEBIT_E_BAD_RANGE, SQE(out_off) },
	{ "out short", ONEBIT_OP_ECHO, SQE(out_len), 4, 15, ONEBIT_E_OUT_TOO_SMALL, 16 },
	{ "block short", ONEBIT_OP_GENERATE, SQE(in_len), 4, 0, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "block short", ONEBIT_OP_GENERATE, SQE(in_len), 4, 7, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "block odd", ONEBIT_OP_GENERATE, SQE(in_off), 4, 4, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "window", ONEBIT_OP_GENERATE, SQE(out_len), 4, 8, ONEBIT_E_OUT_TOO_SMALL,
	  sizeof(struct onebit_out) + 2 * (sizeof(struct onebit_choice) + 64) },
	{ "topic", ONEBIT_OP_QUERY, SQE(arg), 8, ONEBIT_QUERY_COUNT, ONEBIT_E_BAD_FIELD, SQE(arg) },
	{ "topic", ONEBIT_OP_QUERY, SQE(arg), 8, 0xffffffff, ONEBIT_E_BAD_FIELD, SQE(arg) },
	{ "answer", ONEBIT_OP_QUERY, SQE(out_len), 4, 8, ONEBIT_E_OUT_TOO_SMALL,
	  sizeof(struct onebit_features) },
	{ "target", ONEBIT_OP_CANCEL, SQE(arg), 8, 1ull << 60, ONEBIT_E_NOT_FOUND, 1ull << 60 },
	{ "verb", ONEBIT_OP_ADMIN, SQE(arg), 8, 0, ONEBIT_E_BAD_FIELD, SQE(arg) },
	{ "verb", ONEBIT_OP_ADMIN, SQE(arg), 8, 5, ONEBIT_E_BAD_FIELD, SQE(arg) },
	{ "no path", ONEBIT_OP_ADMIN, SQE(arg), 8, ONEBIT_ADMIN_SWAP, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "path", ONEBIT_OP_ADMIN, SQE(in_len), 4, 8, ONEBIT_E_BAD_RANGE, SQE(in_off) },
	{ "sessions", ONEBIT_OP_NOP, SQE(op), 1, ONEBIT_OP_SESSION_OPEN, ONEBIT_E_UNSUPPORTED,
	  ONEBIT_OP_SESSION_OPEN },
};

static struct onebit_sqe valid(unsigned op)
{
	struct core_block t;

	switch (op) {
	case ONEBIT_OP_GENERATE:
		core_block_full(&t);
		return generate(&t);
	case ONEBIT_OP_ECHO:
		return (struct onebit_sqe){ .op = ONEBIT_OP_ECHO, .in_off = 8, .in_len = 16,
					    .out_off = 8, .out_len = 16 };
	case ONEBIT_OP_QUERY:
		return (struct onebit_sqe){ .op = ONEBIT_OP_QUERY, .out_len = 4096 };
	case ONEBIT_OP_ADMIN:
		return (struct onebit_sqe){ .op = ONEBIT_OP_ADMIN, .arg = ONEBIT_ADMIN_RELOAD };
	default:
		return (struct onebit_sqe){ .op = (uint8_t)op };
	}
}

/* A bad SQE that passes acts outside the client's areas or rights; one too many CQE is a lie. */
START_TEST(sqe_fields)
{
	begin(NULL);
	for (size_t i = 0; i < COUNT(sqes); i++) {
		struct onebit_sqe e = valid(sqes[i].op);

		set(&e, sqes[i].off, sqes[i].size, sqes[i].value);
		refused(sqes[i].what, ask(e), sqes[i].code, sqes[i].detail);
		nothing_charged(sqes[i].what);
	}
	end();
}
END_TEST

/* A reserved bit that is let pass can never get a meaning. */
START_TEST(sqe_reserved_bits)
{
	static const struct { size_t off, size, field; } f[] = {
		{ SQE(flags), 1, SQE(flags) }, { SQE(reserved0), 1, SQE(reserved0) },
		{ SQE(reserved1), 2, SQE(reserved1) }, { SQE(reserved2), 4, SQE(reserved2) },
		{ SQE(reserved3), 16, SQE(reserved3) },
	};
	static const uint8_t ops[] = { ONEBIT_OP_NOP, ONEBIT_OP_ECHO, ONEBIT_OP_QUERY,
				       ONEBIT_OP_GENERATE, ONEBIT_OP_ADMIN };

	begin(NULL);
	for (size_t o = 0; o < COUNT(ops); o++)
		for (size_t i = 0; i < COUNT(f); i++)
			for (size_t bit = 0; bit < f[i].size * 8; bit++) {
				struct onebit_sqe e = valid(ops[o]);

				((uint8_t *)&e)[f[i].off + bit / 8] |= (uint8_t)(1u << bit % 8);
				refused("bit", ask(e), ONEBIT_E_RESERVED, f[i].field);
			}
	nothing_charged("reserved bits");
	ck_assert_uint_eq(k->reloads, 0);
	end();
}
END_TEST

/* ---- the block ------------------------------------------------------------------------------- */

/* BAD_PARAM at the place given; at an entry of a table, the entry. */
static const struct {
	const char *what;
	size_t off;
	unsigned size;
	uint64_t value;
	uint64_t detail;
} params[] = {
#define P(f, size, value) { #f, PARAM(f), size, (uint64_t)(value), PARAM(f) }
	P(size, 4, 0), P(size, 4, 4), P(size, 4, 167), P(size, 4, 0xfffffff8),
	P(size, 4, sizeof(struct core_block) + 8),
	P(flags, 4, 0x80), P(flags, 4, 1u << 31),
	P(max_tokens, 4, 32769), P(max_tokens, 4, 0xffffffff),
	P(min_tokens, 4, 17),
	P(n_choices, 2, 17), P(n_choices, 2, 0xffff),
	{ "n_choices and resume", PARAM(n_choices), 2, 1, PARAM(n_resume) },
	P(top_logprobs, 2, 21), P(top_logprobs, 2, 0xffff),
	{ "logprobs not asked for", PARAM(flags), 4, 0, PARAM(top_logprobs) },
	P(temperature_micro, 4, 100000001), P(temperature_micro, 4, 0xffffffff),
	P(top_p_micro, 4, 1000001), P(min_p_micro, 4, 1000001),
	P(repetition_micro, 4, 100000001),
	P(frequency_micro, 4, 100000001), P(frequency_micro, 4, -100000001),
	P(frequency_micro, 4, INT32_MIN),
	P(presence_micro, 4, 100000001), P(presence_micro, 4, INT32_MIN),
	P(pooling, 1, ONEBIT_POOL_COUNT),
	P(n_segments, 4, 0), P(n_segments, 4, 4097), P(n_segments, 4, 0xffffffff),
	{ "segments past the end", PARAM(n_segments), 4, 64, PARAM(segments_off) },
	P(segments_off, 4, 0), P(segments_off, 4, 4), P(segments_off, 4, 0xfffffff8),
	P(segments_off, 4, sizeof(struct core_block) - 16),
	P(n_stops, 4, 65), P(n_stops, 4, 0xffffffff),
	{ "stops without a table", PARAM(n_stops), 4, 0, PARAM(stops_off) },
	P(stops_off, 4, 0), P(stops_off, 4, 4), P(stops_off, 4, 0xfffffff8),
	P(n_bias, 4, 4097),
	{ "bias past the end", PARAM(n_bias), 4, 4096, PARAM(bias_off) },
	P(bias_off, 4, 0), P(bias_off, 4, 4), P(bias_off, 4, 0xfffffff8),
	P(n_resume, 4, 1), P(n_resume, 4, 3), P(n_resume, 4, 0xffffffff),
	{ "resume without a count", PARAM(n_resume), 4, 0, PARAM(resume_off) },
	P(resume_off, 4, 0), P(resume_off, 4, 4), P(resume_off, 4, 0xfffffff8),
	P(grammar_off, 4, 0), P(grammar_off, 4, 4), P(grammar_off, 4, 0xfffffff8),
	{ "grammar_len", PARAM(grammar_len), 4, 23, PARAM(grammar_off) },
	{ "grammar_len", PARAM(grammar_len), 4, 0, PARAM(grammar_off) },
	{ "grammar_len", PARAM(grammar_len), 4, 0xffffffff, PARAM(grammar_off) },
#define S(i, f, size, value) { "segment " #f, BLOCK(seg[i].f), size, value, BLOCK(seg[i]) }
	S(0, role, 1, ONEBIT_ROLE_COUNT), S(0, role, 1, 255), S(1, role, 1, ONEBIT_ROLE_USER),
	S(0, kind, 1, 2), S(0, kind, 1, 255),
	S(0, flags, 2, 4), S(0, flags, 2, 0x8000),
	S(0, flags, 2, ONEBIT_SEG_CONTINUE), S(0, flags, 2, ONEBIT_SEG_SPECIAL),
	S(0, off, 4, 0xffffffff), S(0, len, 4, 0xffffffff), S(0, len, 4, sizeof(struct core_block)),
	S(0, reserved, 4, 1), S(1, reserved, 4, 1u << 31),
	S(1, off, 4, 2), S(1, len, 4, 6), S(1, len, 4, 0xfffffffc),
	{ "stop", BLOCK(stop[1].len), 4, 0, BLOCK(stop[1]) },
	{ "stop", BLOCK(stop[1].len), 4, 257, BLOCK(stop[1]) },
	{ "stop", BLOCK(stop[0].off), 4, 0xffffffff, BLOCK(stop[0]) },
	{ "stop", BLOCK(stop[0].len), 4, 0xffffffff, BLOCK(stop[0]) },
	{ "resume", BLOCK(resume[0].first), 4, 16, BLOCK(resume[0]) },
	{ "resume", BLOCK(resume[1].first), 4, 0xffffffff, BLOCK(resume[1]) },
	{ "resume", BLOCK(resume[1].first), 4, 0, BLOCK(resume[1]) },
	{ "resume", BLOCK(resume[1].tokens_off), 4, 0, BLOCK(resume[1]) },
	{ "resume", BLOCK(resume[1].tokens_off), 4, 2, BLOCK(resume[1]) },
	{ "resume", BLOCK(resume[1].tokens_off), 4, 0xfffffffc, BLOCK(resume[1]) },
#define G(f, value) { "grammar " #f, BLOCK(g.f), 4, value, BLOCK(g) }
	G(size, 0), G(size, 63), G(size, 0xffffffff), G(n_states, 0), G(n_states, 3),
	G(n_states, 32769), G(n_states, 0xffffffff), G(n_edges, 1), G(n_edges, 0xffffffff),
	G(start, 2), G(start, 0xffffffff), G(max_depth, 257), G(reserved, 1), G(reserved, 1u << 31),
};

static void bad_block(const char *what, const struct core_block *t, unsigned code, uint64_t detail)
{
	refused(what, ask(generate(t)), code, detail);
	nothing_charged(what);
}

/* A field let pass is read by the executor as an offset, a count or a number to divide by. */
START_TEST(block_fields)
{
	struct core_block t;

	begin(NULL);
	for (size_t i = 0; i < COUNT(params); i++) {
		core_block_full(&t);
		set(&t, params[i].off, params[i].size, params[i].value);
		bad_block(params[i].what, &t, ONEBIT_E_BAD_PARAM, params[i].detail);
	}
	for (size_t bit = 0; bit < 24; bit++) {
		core_block_full(&t);
		t.p.reserved0[bit / 8] = (uint8_t)(1u << bit % 8);
		bad_block("reserved0", &t, ONEBIT_E_BAD_PARAM, PARAM(reserved0));
	}
	for (size_t bit = 0; bit < 128; bit++) {
		core_block_full(&t);
		t.p.reserved1[bit / 32] = 1u << bit % 32;
		bad_block("reserved1", &t, ONEBIT_E_BAD_PARAM, PARAM(reserved1));
	}
	core_block_full(&t);
	t.p.session = 9;
	bad_block("session of a resumed request", &t, ONEBIT_E_LOST, 9);
	t.p.n_resume = t.p.resume_off = 0;
	bad_block("session", &t, ONEBIT_E_NOT_FOUND, 9);
	t.p.session = 0;
	t.p.model_id[31] = 1;
	bad_block("model", &t, ONEBIT_E_MODEL_CHANGED, k->page->model_generation);
	core_block_full(&t);
	t.p.model_id[0] = 1;
	bad_block("model of a resumed request", &t, ONEBIT_E_LOST, k->page->model_generation);
	end();
}
END_TEST

/* The same block unchanged must be accepted, or the rows above prove nothing. */
START_TEST(block_valid)
{
	struct onebit_sqe cancel = { .op = ONEBIT_OP_CANCEL, .arg = 42, .user_data = 43 };
	struct core_block t;
	struct onebit_sqe e;
	struct onebit_cqe cqe;
	uint8_t *arena;

	begin(NULL);
	core_block_full(&t);
	e = core_generate(k, me, &t, 64, 8, 65536, 42);
	core_submit(k, me, &e);
	core_run(k);
	ck_assert(core_reap(k, me, &cqe));
	ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	ck_assert_uint_eq(gauges(me).inflight_used, 1);
	core_submit(k, me, &cancel);
	core_run(k);
	ck_assert(core_terminal(k, me, &cqe, NULL));
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_CANCELLED);
	ck_assert_uint_eq(cqe.u.end.detail, 4); /* the tokens it was resumed with */
	ck_assert(core_terminal(k, me, &cqe, NULL));
	ck_assert_int_eq(cqe.res, 1);
	ck_assert_uint_eq(cqe.user_data, 43);

	/* Shorter parameters are extended with zeroes: what lies behind them is not looked at. */
	arena = core_arena(k, me);
	memset(arena, 0xff, 4096);
	core_block_plain(&t, "old", 4);
	memcpy(arena, &t, PARAM(stops_off));
	memcpy(arena + BLOCK(seg), (uint8_t *)&t + BLOCK(seg), sizeof(t) - BLOCK(seg));
	((struct onebit_params *)(void *)arena)->size = PARAM(stops_off);
	e = (struct onebit_sqe){ .op = ONEBIT_OP_GENERATE, .in_len = sizeof(t), .out_len = 4096,
				 .user_data = 50 };
	core_submit(k, me, &e);
	core_run(k);
	ck_assert(core_reap(k, me, &cqe));
	ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	end();
}
END_TEST

/* A newer client that asks for what we do not know must hear so; one that does not, must be served. */
START_TEST(block_versions)
{
	struct { struct onebit_params p; uint8_t tail[64]; struct onebit_segment seg; char text[8]; } t;
	struct onebit_sqe e = { .op = ONEBIT_OP_GENERATE, .in_len = sizeof(t), .out_len = 4096 };
	struct onebit_cqe cqe;

	begin(NULL);
	for (size_t i = 0; i <= sizeof(t.tail); i++) {
		memset(&t, 0, sizeof(t));
		t.p.size = sizeof(t.p) + sizeof(t.tail);
		t.p.segments_off = offsetof(__typeof__(t), seg);
		t.p.n_segments = 1;
		t.seg = (struct onebit_segment){ .off = offsetof(__typeof__(t), text), .len = 3 };
		if (i < sizeof(t.tail))
			t.tail[i] = 0x80;
		memcpy(core_arena(k, me), &t, sizeof(t));
		if (i < sizeof(t.tail)) {
			refused("tail", ask(e), ONEBIT_E_TOO_NEW, sizeof(t.p) + i);
			nothing_charged("tail");
			continue;
		}
		core_submit(k, me, &e);
		core_run(k);
		ck_assert(core_reap(k, me, &cqe));
		ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	}
	end();
}
END_TEST

/* ---- rights and quotas ----------------------------------------------------------------------- */

/* Without the right a tenant's name, a model's swap or the configuration must stay out of reach. */
START_TEST(rights)
{
	struct policy p;
	struct core_block t;

	core_policy(&p);
	p.limits.admin = p.limits.delegate = false;
	begin(&p);
	core_block_full(&t);
	t.p.tenant = 1;
	bad_block("tenant", &t, ONEBIT_E_DENIED, PARAM(tenant));
	for (uint64_t verb = 0; verb < 6; verb++)
		refused("admin", ask((struct onebit_sqe){ .op = ONEBIT_OP_ADMIN, .arg = verb }),
			ONEBIT_E_DENIED, SQE(arg));
	refused("config", ask((struct onebit_sqe){ .op = ONEBIT_OP_QUERY, .out_len = 4096,
						   .arg = ONEBIT_QUERY_CONFIG }),
		ONEBIT_E_DENIED, SQE(arg));
	ck_assert_uint_eq(k->reloads, 0);
	nothing_charged("rights");
	end();
}
END_TEST

static void attach_refused(uint32_t uid, unsigned code, uint64_t detail, bool retry)
{
	struct onebit_error why;

	ck_assert_int_lt(core_attach(k, uid, NULL, &why), 0);
	ck_assert_msg(why.code == code && why.detail == detail, "%s %llu", error_name(why.code),
		      (unsigned long long)why.detail);
	ck_assert_int_eq(why.retry_after_ms > 0, retry);
}

/* A limit on attachments that does not bite lets one user take the daemon's memory. */
START_TEST(quota_clients)
{
	const uint64_t bytes = 4096 * 2 + 64 * 64 + 128 * 32 + (512 << 10);
	struct policy p;

	core_policy(&p);
	p.max_clients = 4;
	p.limits.max_clients = 2;
	p.n_overrides = 2;
	p.overrides[0].uid = 7;
	p.overrides[1].uid = 8;
	p.overrides[1].limits = p.limits;
	p.overrides[1].limits.max_bytes = bytes + 4096;
	begin(&p);
	ck_assert_uint_eq(gauges(me).bytes_used, bytes);
	attach_refused(7, ONEBIT_E_DENIED, 0, false);
	ck_assert_int_ge(core_attach(k, 1000, NULL, NULL), 0);
	attach_refused(1000, ONEBIT_E_Q_CLIENTS, 2, true);
	ck_assert_int_ge(core_attach(k, 8, NULL, NULL), 0);
	attach_refused(8, ONEBIT_E_Q_BYTES, bytes + 4096, true);
	ck_assert_int_ge(core_attach(k, 9, NULL, NULL), 0);
	attach_refused(10, ONEBIT_E_CLIENTS_FULL, 4, true);
	core_detach(k, me);
	me = core_attach(k, 1000, NULL, NULL);
	ck_assert_int_ge(me, 0);
	broker_drain(k->b);
	core_detach(k, me);
	attach_refused(1000, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING, true);
	end();
}
END_TEST

/* Accepts n plain requests of these many tokens for the client; the next is returned. */
static struct onebit_cqe fill(int c, unsigned n, uint32_t max_tokens)
{
	struct core_block t;
	struct onebit_cqe cqe;
	struct onebit_sqe e;

	core_block_plain(&t, "fill", max_tokens);
	for (unsigned i = 0; i < n; i++) {
		e = core_generate(k, c, &t, 0, i * 256, 256, 1000 + i);
		core_submit(k, c, &e);
		core_run(k);
		ck_assert(core_reap(k, c, &cqe));
		ck_assert_msg(cqe.flags & ONEBIT_CQE_ACCEPTED, "request %u of %u: %s", i, n,
			      error_name(cqe.u.end.code));
	}
	return ask_as(c, core_generate(k, c, &t, 0, n * 256, 256, 0), 0);
}

/* Each limit on requests must bite at its number, say which it was, and when to come again. */
START_TEST(quota_requests)
{
	const uint64_t len = sizeof(struct core_block);
	struct onebit_cqe cqe;
	struct onebit_hello h;
	struct policy p;

	core_policy(&p);
	p.limits.max_inflight = 5;
	begin(&p);
	ck_assert_uint_eq(k->c[me].w.max_inflight, 5);
	cqe = fill(me, 5, 4);
	refused("inflight", cqe, ONEBIT_E_Q_INFLIGHT, 5);
	retry_told(cqe);
	end();

	core_policy(&p);
	p.limits.max_inflight = 0;
	begin(&p);
	core_hello(&h);
	h.sq_entries = 8;
	me = core_attach(k, 1000, &h, NULL);
	ck_assert_uint_eq(k->c[me].w.max_inflight, 7);
	cqe = fill(me, 7, 4);
	refused("inflight of the client", cqe, ONEBIT_E_Q_INFLIGHT, 7);
	end();

	core_policy(&p);
	p.limits.max_queued_bytes = 3 * len;
	begin(&p); /* four run, and count no more */
	cqe = fill(me, 7, 4);
	refused("queued", cqe, ONEBIT_E_Q_QUEUED, 3 * len);
	retry_told(cqe);
	end();

	core_policy(&p);
	p.max_requests = 6;
	begin(&p);
	cqe = fill(me, 6, 4);
	refused("requests", cqe, ONEBIT_E_REQUESTS_FULL, 6);
	retry_told(cqe);
	end();
}
END_TEST

/* A full journal must refuse rather than overwrite. */
START_TEST(quota_journal)
{
	struct onebit_cqe cqe;
	struct policy p;

	core_policy(&p);
	p.journal_bytes = 1 << 20;
	begin(&p);
	cqe = fill(me, 4, 32768); /* 128 KiB of tokens and a header: 256 KiB each */
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_JOURNAL_FULL);
	ck_assert_uint_gt(cqe.u.end.detail, 32768 * 4);
	retry_told(cqe);
	ck_assert_uint_eq(broker_stats(k->b)->journal_bytes, 1 << 20);
	core_detach(k, me);
	core_run(k);
	/* What runs is the executor's until it says so; what waited is gone. */
	core_exec_exit(k, 0, 9);
	core_run(k);
	ck_assert_uint_eq(broker_stats(k->b)->journal_bytes, 0);
	end();
}
END_TEST

/* No service: each reason has its own name. */
START_TEST(no_service)
{
	struct core_block t;
	struct onebit_cqe cqe;

	core_block_full(&t);
	k = core_new(NULL, false, false);
	me = core_attach(k, 1000, NULL, NULL);
	cqe = ask(generate(&t));
	refused("no executor", cqe, ONEBIT_E_NO_MODEL, ONEBIT_EXEC_NONE);
	retry_told(cqe);
	end();

	k = core_new(NULL, true, false);
	me = core_attach(k, 1000, NULL, NULL);
	core_run(k);
	for (unsigned i = 0; i < START_FAILURES_MAX; i++) {
		core_exec_exit(k, 0, -2);
		core_run(k);
		core_pass(k, BACKOFF_LAST_NS);
	}
	cqe = ask(generate(&t));
	refused("executor down", cqe, ONEBIT_E_EXECUTOR_DOWN, START_FAILURES_MAX);
	retry_told(cqe);
	core_exec_hello(k, 0, 1);
	core_submit(k, me, &(struct onebit_sqe){ 0 });
	core_run(k);
	ck_assert(core_terminal(k, me, &cqe, NULL));
	broker_drain(k->b);
	cqe = ask(generate(&t));
	refused("draining", cqe, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING);
	retry_told(cqe);
	end();
}
END_TEST

/* A request accepted while no executor can be had must end, not hang for ever. */
START_TEST(no_executor_memory)
{
	struct core_block t;
	struct onebit_sqe e;
	struct onebit_cqe cqe;

	k = core_new(NULL, true, false);
	k->x[0].no_memory = true;
	me = core_attach(k, 1000, NULL, NULL);
	core_block_plain(&t, "x", 4);
	e = core_generate(k, me, &t, 0, 0, 4096, 1);
	core_submit(k, me, &e);
	core_run(k);
	for (int i = 0; i < 20; i++)
		core_pass(k, BACKOFF_LAST_NS);
	ck_assert(core_terminal(k, me, &cqe, NULL));
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_EXECUTOR_DOWN);
	end();
}
END_TEST

/* The rate must refuse when the bucket is empty, and the advice must be true. */
START_TEST(quota_tokens)
{
	struct policy p;
	struct core_block t;
	struct onebit_cqe cqe;
	unsigned i;

	core_policy(&p);
	p.limits.tokens_per_second = 10;
	k = core_new(&p, true, true);
	me = core_attach(k, 1000, NULL, NULL);
	core_pass(k, 1000000);
	core_block_plain(&t, "x", 7);
	t.p.flags = ONEBIT_PARAM_IGNORE_EOS;
	for (i = 0; i < 2; i++) {
		struct onebit_sqe e = core_generate(k, me, &t, 0, 0, 4096, i);

		core_submit(k, me, &e);
		core_settle(k, 100);
		ck_assert(core_terminal(k, me, &cqe, NULL));
		ck_assert_int_eq(cqe.res, 0);
	}
	cqe = ask(generate(&t)); /* 14 of 10 are spent */
	refused("tokens", cqe, ONEBIT_E_Q_TOKENS, 10);
	retry_told(cqe);
	k->now += cqe.u.end.retry_after_ms * 1000000ull;
	core_run(k);
	ck_assert_uint_gt(gauges(me).tokens_left, 0);
	end();
}
END_TEST

/* More tenants than the table has places: refused by name; whoever is in the table goes on. */
START_TEST(quota_principals)
{
	struct policy p;
	struct core_block t;
	struct onebit_hello h;
	struct onebit_cqe cqe;
	struct onebit_sqe e;
	int c[2];

	core_policy(&p);
	p.max_requests = REQUESTS_CEILING;
	p.limits.max_inflight = 0;
	p.limits.max_queued_bytes = 0;
	begin(&p);
	core_hello(&h);
	h.sq_entries = 1024;
	h.cq_entries = 4096;
	core_block_plain(&t, "x", 1);
	for (int i = 0; i < 2; i++)
		c[i] = core_attach(k, 1000, &h, NULL);
	for (uint64_t n = 1; n <= PRINCIPALS_MAX; n++) {
		t.p.tenant = n;
		e = core_generate(k, c[n % 2], &t, 0, 0, 256, n);
		core_submit(k, c[n % 2], &e);
		core_run(k);
		ck_assert(core_reap(k, c[n % 2], &cqe));
		if (n < PRINCIPALS_MAX)
			ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	}
	refused("tenants", cqe, ONEBIT_E_PRINCIPALS_FULL, PRINCIPALS_MAX);
	retry_told(cqe);
	end();
}
END_TEST

/* ---- the ring -------------------------------------------------------------------------------- */

/* Indices that cannot be: this client goes, its neighbour does not notice. */
START_TEST(bad_index)
{
	static const uint32_t ahead[] = { 65, 66, 4096, 1u << 31, 0xffffffff };
	struct onebit_cqe cqe;

	begin(NULL);
	for (size_t i = 0; i < COUNT(ahead); i++) {
		int bad = core_attach(k, 1000, NULL, NULL);

		ck_assert_int_ge(bad, 0);
		k->c[bad].sq_tail += ahead[i];
		core_publish(k, bad);
		core_run(k);
		ck_assert(k->c[bad].closed);
		ck_assert_uint_eq(k->c[bad].why.code, ONEBIT_E_BAD_INDEX);
		ck_assert_uint_eq(k->c[bad].why.detail, ahead[i]);
	}
	ck_assert_uint_eq(broker_stats(k->b)->protocol_errors, COUNT(ahead));
	nothing_charged("bad index");

	/* A lying head of the CQ costs the liar its own room and nothing else. */
	for (uint32_t lie = 1; lie; lie <<= 1) {
		uint32_t *head = (uint32_t *)(void *)(k->c[me].client + k->c[me].w.cq_head_off);

		*head += lie;
		core_submit(k, me, &(struct onebit_sqe){ .user_data = lie });
		core_run(k);
		ck_assert(core_terminal(k, me, &cqe, NULL));
		ck_assert_uint_eq(cqe.user_data, lie);
		ck_assert(!k->c[me].closed);
	}
	end();
}
END_TEST

/* Never reaping: what finds no room waits in the ring, and then completes exactly once. */
START_TEST(backpressure)
{
	struct onebit_hello h;
	struct onebit_cqe cqe;
	struct core_block t;
	uint64_t next = 0, seen = 0;
	unsigned accepted = 0;

	k = core_new(NULL, true, true);
	core_hello(&h);
	h.sq_entries = 8;
	h.cq_entries = 16;
	me = core_attach(k, 1000, &h, NULL);
	core_pass(k, 1000000);
	core_block_plain(&t, "x", 4);
	for (int round = 0; round < 200; round++) {
		struct onebit_sqe e = core_generate(k, me, &t, 0, 0, 8192, next);

		if (round % 3)
			e = (struct onebit_sqe){ .op = ONEBIT_OP_NOP, .user_data = next };
		if (!core_put(k, me, &e))
			break;
		next++;
		core_publish(k, me);
		core_pass(k, 1000000);
		ck_assert_uint_le(core_waiting(k, me), 16);
	}
	for (int i = 0; i < 200; i++)
		core_pass(k, 1000000);
	ck_assert_uint_le(core_waiting(k, me), 16);
	ck_assert_uint_gt(core_waiting(k, me), 8);
	ck_assert_uint_eq(core_flags(k, me) & ONEBIT_SQ_STALLED, ONEBIT_SQ_STALLED);
	/* Two of three are NOPs; the order of those is kept, so a bit each tells all. */
	ck_assert_uint_lt(next, 64);
	for (int i = 0; i < 400; i++) {
		while (core_reap(k, me, &cqe)) {
			accepted += cqe.flags & ONEBIT_CQE_ACCEPTED ? 1 : 0;
			if (cqe.flags & ONEBIT_CQE_MORE)
				continue;
			ck_assert_int_ge(cqe.res, 0);
			ck_assert(!(seen >> cqe.user_data & 1));
			seen |= 1ull << cqe.user_data;
		}
		core_pass(k, 1000000);
	}
	ck_assert_uint_eq(seen, (1ull << next) - 1);
	ck_assert_uint_eq(accepted, (next + 2) / 3);
	end();
}
END_TEST

/* A turn must not grow with what hostile clients put before it. Counted, not timed. */
START_TEST(turn_is_bounded)
{
	enum { HOSTILE = 4, AREA = 8 << 20 };
	static const uint8_t ops[] = { ONEBIT_OP_NOP, ONEBIT_OP_ECHO, ONEBIT_OP_GENERATE,
				       ONEBIT_OP_CANCEL };
	struct onebit_hello h;
	struct core_block t;
	int c[HOSTILE];

	for (size_t o = 0; o < COUNT(ops); o++) {
		uint32_t len = ops[o] == ONEBIT_OP_ECHO ? AREA :
			       ops[o] == ONEBIT_OP_GENERATE ? ONEBIT_BLOCK_MAX : 0;
		bool more;

		begin(NULL);
		core_hello(&h);
		h.arena_bytes = h.out_bytes = AREA;
		h.sq_entries = 1024;
		core_block_full(&t);
		t.p.seed = 1;
		for (int i = 0; i < HOSTILE; i++) {
			c[i] = core_attach(k, 1000, &h, NULL);
			ck_assert_int_ge(c[i], 0);
			for (int n = 0; n < 1024; n++) {
				struct onebit_sqe e = { .op = ops[o] };

				if (ops[o] == ONEBIT_OP_CANCEL)
					e.arg = 5;
				if (ops[o] == ONEBIT_OP_GENERATE)
					e = core_generate(k, c[i], &t, 0, 0, 4096, 0);
				if (len) {
					e.in_len = len;
					e.out_len = ops[o] == ONEBIT_OP_ECHO ? len : 4096;
				}
				ck_assert(core_put(k, c[i], &e));
			}
		}
		for (int i = 0; i < HOSTILE; i++)
			core_publish(k, c[i]);
		for (int turn = 0; turn < 8; turn++) {
			uint32_t before[HOSTILE];

			for (int i = 0; i < HOSTILE; i++)
				before[i] = core_taken(k, c[i]);
			more = broker_turn(k->b);
			ck_assert(more);
			for (int i = 0; i < HOSTILE; i++) {
				uint32_t n = core_taken(k, c[i]) - before[i];

				ck_assert_uint_ge(n, 1); /* and each gets its share */
				ck_assert_uint_le(n, TURN_SQES);
				/* One entry may go beyond the share, and none is larger than a block. */
				ck_assert_msg((uint64_t)n * len < TURN_COPY_BYTES + ONEBIT_BLOCK_MAX + 1,
					      "op %u: %u entries of %u bytes in one turn", ops[o], n, len);
			}
		}
		end();
	}
}
END_TEST

/* Ringing for nothing: after so many the doorbell is put aside, later heard again, no work is lost. */
START_TEST(doorbell_flood)
{
	struct onebit_cqe cqe;
	int other;

	begin(NULL);
	other = core_attach(k, 1000, NULL, NULL);
	for (int i = 0; i < 1000 && !k->c[me].muted; i++) {
		broker_doorbell(k->b, (uint32_t)me);
		core_run(k);
	}
	ck_assert(k->c[me].muted);
	ck_assert_uint_eq(k->c[me].mutes, 1);
	ck_assert_uint_eq(broker_stats(k->b)->spurious_doorbells, SPURIOUS_MAX + 1);
	ck_assert(!k->c[other].muted);
	ck_assert_uint_eq(ask_as(other, (struct onebit_sqe){ 0 }, 0).res, 0);

	/* Work handed in meanwhile waits for the end of the rest; nobody has to ring again. */
	core_submit(k, me, &(struct onebit_sqe){ .user_data = 5 });
	core_run(k);
	ck_assert_uint_le(k->until, k->now + SPURIOUS_REST_NS);
	core_pass(k, SPURIOUS_REST_NS);
	ck_assert(!k->c[me].muted);
	ck_assert(core_terminal(k, me, &cqe, NULL));
	ck_assert_uint_eq(cqe.user_data, 5);

	/* On parole it takes fewer; and a client that rings for its work is never muted. */
	for (int i = 0; i < 1000; i++)
		ck_assert_uint_eq(ask_as(other, (struct onebit_sqe){ 0 }, 0).res, 0);
	ck_assert_uint_eq(k->c[other].mutes, 0);
	end();
}
END_TEST

/* ---- queries --------------------------------------------------------------------------------- */

/* A topic that answers outside its window, or not at all, is a hole or a dead end. */
START_TEST(topics)
{
	begin(NULL);
	for (uint64_t topic = 0; topic < ONEBIT_QUERY_COUNT; topic++)
		for (uint64_t cursor = 0; cursor < 3; cursor++)
			for (uint32_t len = 0; len <= 4096; len = len ? len * 2 : 1) {
				struct onebit_cqe cqe = ask((struct onebit_sqe){
					.op = ONEBIT_OP_QUERY, .arg = topic | (cursor ? ~0ull << 32 : 0),
					.out_off = (256 << 10) - 4096, .out_len = len });

				ck_assert(cqe.res <= (int32_t)len);
				ck_assert(cqe.res >= 0 || cqe.u.end.code == ONEBIT_E_OUT_TOO_SMALL);
				ck_assert(cqe.res >= 0 || cqe.u.end.detail > len);
			}
	nothing_charged("topics");
	end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("admit");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	tcase_add_test(t, hello_fields);
	tcase_add_test(t, hello_lengths);
	tcase_add_test(t, sqe_fields);
	tcase_add_test(t, sqe_reserved_bits);
	tcase_add_test(t, block_fields);
	tcase_add_test(t, block_valid);
	tcase_add_test(t, block_versions);
	tcase_add_test(t, rights);
	tcase_add_test(t, quota_clients);
	tcase_add_test(t, quota_requests);
	tcase_add_test(t, quota_journal);
	tcase_add_test(t, quota_tokens);
	tcase_add_test(t, quota_principals);
	tcase_add_test(t, no_service);
	tcase_add_test(t, no_executor_memory);
	tcase_add_test(t, bad_index);
	tcase_add_test(t, backpressure);
	tcase_add_test(t, turn_is_bounded);
	tcase_add_test(t, doorbell_flood);
	tcase_add_test(t, topics);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

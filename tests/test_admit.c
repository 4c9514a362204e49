/* SPDX-License-Identifier: MIT */
/*
 * What a client may say: each field of each message wrong alone with the rest right, each reserved
 * bit. It must be refused by its own code and place, cost nothing, and leave the client attached.
 * The core alone, no processes.
 */
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_ask.h"
#include "limits.h"

#define SQE(f)   offsetof(struct onebit_sqe, f)
#define PARAM(f) offsetof(struct onebit_params, f)
#define HELLO(f) offsetof(struct onebit_hello, f)
#define BLOCK(f) offsetof(struct core_block, f)
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void set(void *base, size_t off, unsigned size, uint64_t value)
{
	memcpy((uint8_t *)base + off, &value, size);
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

static void bad_hello(const char *what, const struct onebit_hello *h, unsigned code,
		      uint64_t detail)
{
	struct onebit_error why;

	ck_assert_msg(core_attach(ask_core, 1000, h, &why) < 0, "%s: accepted", what);
	ck_assert_msg(why.code == code && why.detail == detail, "%s: %s %llu", what,
		      error_name(why.code), (unsigned long long)why.detail);
	ck_assert(memchr(why.text, 0, sizeof(why.text)) && why.text[0]);
}

/* A hello with one bad field that passes would lay out a ring nobody has checked. */
START_TEST(hello_fields)
{
	struct onebit_hello h;

	ask_begin(NULL);
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
	ask_nothing_charged("hello");
	ask_end();
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
	{ "session", ONEBIT_OP_SESSION_OPEN, SQE(arg), 8, 1, ONEBIT_E_RESERVED, SQE(arg) },
	{ "block", ONEBIT_OP_SESSION_CLOSE, SQE(in_len), 4, 8, ONEBIT_E_RESERVED, SQE(in_off) },
};

static struct onebit_sqe valid(unsigned op)
{
	struct core_block t;

	switch (op) {
	case ONEBIT_OP_GENERATE:
		core_block_full(&t);
		return ask_generate(&t);
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
	ask_begin(NULL);
	for (size_t i = 0; i < COUNT(sqes); i++) {
		struct onebit_sqe e = valid(sqes[i].op);

		set(&e, sqes[i].off, sqes[i].size, sqes[i].value);
		ask_refused(sqes[i].what, ask(e), sqes[i].code, sqes[i].detail);
		ask_nothing_charged(sqes[i].what);
	}
	ask_end();
}
END_TEST

/* A reserved bit that is let pass can never get a meaning. */
START_TEST(sqe_reserved_bits)
{
	static const struct { size_t off, size, field; } f[] = {
		{ SQE(flags), 1, SQE(flags) }, { SQE(reserved0), 1, SQE(reserved0) },
		{ SQE(reserved1), 2, SQE(reserved1) }, { SQE(reserved3), 16, SQE(reserved3) },
	};
	static const uint8_t ops[] = { ONEBIT_OP_NOP, ONEBIT_OP_ECHO, ONEBIT_OP_QUERY,
				       ONEBIT_OP_GENERATE, ONEBIT_OP_ADMIN };

	ask_begin(NULL);
	for (size_t o = 0; o < COUNT(ops); o++)
		for (size_t i = 0; i < COUNT(f); i++)
			for (size_t bit = 0; bit < f[i].size * 8; bit++) {
				struct onebit_sqe e = valid(ops[o]);

				((uint8_t *)&e)[f[i].off + bit / 8] |= (uint8_t)(1u << bit % 8);
				ask_refused("bit", ask(e), ONEBIT_E_RESERVED, f[i].field);
			}
	ask_nothing_charged("reserved bits");
	ck_assert_uint_eq(ask_core->reloads, 0);
	ask_end();
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
	ask_refused(what, ask(ask_generate(t)), code, detail);
	ask_nothing_charged(what);
}

/* A field let pass is read by the executor as an offset, a count or a number to divide by. */
START_TEST(block_fields)
{
	struct core_block t;

	ask_begin(NULL);
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
	t.p.n_resume = t.p.resume_off = 0;
	t.p.model_id[31] = 1;
	bad_block("model", &t, ONEBIT_E_MODEL_CHANGED, ask_core->page->model_generation);
	core_block_full(&t);
	t.p.model_id[0] = 1;
	bad_block("model of a resumed request", &t, ONEBIT_E_LOST, ask_core->page->model_generation);
	ask_end();
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

	ask_begin(NULL);
	core_block_full(&t);
	e = core_generate(ask_core, ask_me, &t, 64, 8, 65536, 42);
	core_submit(ask_core, ask_me, &e);
	core_run(ask_core);
	ck_assert(core_reap(ask_core, ask_me, &cqe));
	ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	ck_assert_uint_eq(ask_limits(ask_me).inflight_used, 1);
	core_submit(ask_core, ask_me, &cancel);
	core_run(ask_core);
	ck_assert(core_terminal(ask_core, ask_me, &cqe, NULL));
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_CANCELLED);
	ck_assert_uint_eq(cqe.u.end.detail, 4); /* the tokens it was resumed with */
	ck_assert(core_terminal(ask_core, ask_me, &cqe, NULL));
	ck_assert_int_eq(cqe.res, 1);
	ck_assert_uint_eq(cqe.user_data, 43);

	/* Shorter parameters are extended with zeroes: what lies behind them is not looked at. */
	arena = core_arena(ask_core, ask_me);
	memset(arena, 0xff, 4096);
	core_block_plain(&t, "old", 4);
	memcpy(arena, &t, PARAM(stops_off));
	memcpy(arena + BLOCK(seg), (uint8_t *)&t + BLOCK(seg), sizeof(t) - BLOCK(seg));
	((struct onebit_params *)(void *)arena)->size = PARAM(stops_off);
	e = (struct onebit_sqe){ .op = ONEBIT_OP_GENERATE, .in_len = sizeof(t), .out_len = 4096,
				 .user_data = 50 };
	core_submit(ask_core, ask_me, &e);
	core_run(ask_core);
	ck_assert(core_reap(ask_core, ask_me, &cqe));
	ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	ask_end();
}
END_TEST

/* A newer client that asks for what we do not know must hear so; else it must be served. */
START_TEST(block_versions)
{
	struct { struct onebit_params p; uint8_t tail[64]; struct onebit_segment seg; char text[8]; } t;
	struct onebit_sqe e = { .op = ONEBIT_OP_GENERATE, .in_len = sizeof(t), .out_len = 4096 };
	struct onebit_cqe cqe;

	ask_begin(NULL);
	for (size_t i = 0; i <= sizeof(t.tail); i++) {
		memset(&t, 0, sizeof(t));
		t.p.size = sizeof(t.p) + sizeof(t.tail);
		t.p.segments_off = offsetof(__typeof__(t), seg);
		t.p.n_segments = 1;
		t.seg = (struct onebit_segment){ .off = offsetof(__typeof__(t), text), .len = 3 };
		if (i < sizeof(t.tail))
			t.tail[i] = 0x80;
		memcpy(core_arena(ask_core, ask_me), &t, sizeof(t));
		if (i < sizeof(t.tail)) {
			ask_refused("tail", ask(e), ONEBIT_E_TOO_NEW, sizeof(t.p) + i);
			ask_nothing_charged("tail");
			continue;
		}
		core_submit(ask_core, ask_me, &e);
		core_run(ask_core);
		ck_assert(core_reap(ask_core, ask_me, &cqe));
		ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	}
	ask_end();
}
END_TEST

/* More than a block is refused before it is copied. */
START_TEST(too_big)
{
	static const uint8_t ops[] = { ONEBIT_OP_ECHO, ONEBIT_OP_GENERATE };
	struct onebit_hello h;

	ask_begin(NULL);
	core_hello(&h);
	h.arena_bytes = h.out_bytes = 8 << 20;
	core_detach(ask_core, ask_me);
	ask_me = core_attach(ask_core, 1000, &h, NULL);
	for (size_t o = 0; o < COUNT(ops); o++) {
		struct onebit_sqe e = { .op = ops[o], .in_len = ONEBIT_BLOCK_MAX + 8,
					.out_len = 8 << 20 };

		ask_refused("too big", ask(e), ONEBIT_E_TOO_BIG, ONEBIT_BLOCK_MAX);
		ask_nothing_charged("too big");
	}
	ask_end();
}
END_TEST

/* ---- rights and queries ---------------------------------------------------------------------- */

/* Without the right a tenant's name, a model's swap or the configuration must stay out of reach. */
START_TEST(rights)
{
	struct policy p;
	struct core_block t;

	core_policy(&p);
	p.limits.admin = p.limits.delegate = false;
	ask_begin(&p);
	core_block_full(&t);
	t.p.tenant = 1;
	bad_block("tenant", &t, ONEBIT_E_DENIED, PARAM(tenant));
	for (uint64_t verb = 0; verb < 6; verb++)
		ask_refused("admin", ask((struct onebit_sqe){ .op = ONEBIT_OP_ADMIN, .arg = verb }),
			ONEBIT_E_DENIED, SQE(arg));
	ask_refused("config", ask((struct onebit_sqe){ .op = ONEBIT_OP_QUERY, .out_len = 4096,
						   .arg = ONEBIT_QUERY_CONFIG }),
		ONEBIT_E_DENIED, SQE(arg));
	ck_assert_uint_eq(ask_core->reloads, 0);
	ask_nothing_charged("rights");
	ask_end();
}
END_TEST

/* An executor that has no sessions would be asked for some, and one that has them not be. */
START_TEST(no_sessions)
{
	struct core_block t;

	ask_core = core_new(NULL, true, true);
	ask_me = core_attach(ask_core, 1000, NULL, NULL);
	ck_assert_int_ge(ask_me, 0);
	core_pass(ask_core, 1000000);
	core_pass(ask_core, 1000000); /* its hello */
	for (uint8_t op = ONEBIT_OP_SESSION_OPEN; op <= ONEBIT_OP_SESSION_CLOSE; op++)
		ask_refused("op", ask((struct onebit_sqe){ .op = op }), ONEBIT_E_UNSUPPORTED, op);
	core_block_plain(&t, "tell", 4);
	t.p.session = 9;
	bad_block("session", &t, ONEBIT_E_NOT_FOUND, 9);
	core_block_full(&t);
	t.p.session = 9;
	bad_block("session of a resumed request", &t, ONEBIT_E_LOST, 9);
	ask_end();
}
END_TEST

static struct onebit_cqe session_answer(const struct onebit_sqe *e, uint32_t asked, uint64_t handle)
{
	struct onebit_cqe cqe = { 0 };
	struct exec_event ev;
	struct exec_cmd run;
	unsigned more;

	core_submit(ask_core, ask_me, e);
	core_run(ask_core);
	run = core_exec_run(ask_core, 0);
	ck_assert_uint_eq(run.op, e->op);
	ck_assert_uint_eq(executor_entry(&ask_core->x[0].e, &run)->params.session, asked);
	ev = core_event(&run, EXEC_EV_END);
	ev.detail = handle == UINT64_MAX ?
			    executor_entry(&ask_core->x[0].e, &run)->request_id : handle;
	core_exec_emit(ask_core, 0, &ev, NULL);
	core_run(ask_core);
	core_terminal(ask_core, ask_me, &cqe, &more);
	return cqe;
}

/* A session's handle would not reach its owner, be one that another has, or be told to strangers. */
START_TEST(sessions)
{
	struct exec_event ev = { .kind = EXEC_EV_SESSIONS, .n = 2,
				 .data_len = 2 * sizeof(struct onebit_session) };
	struct onebit_session there[2] = { { .session = 5, .uid = 1000 },
					   { .session = 6, .uid = 1001 } };
	struct onebit_sqe query = { .op = ONEBIT_OP_QUERY, .arg = ONEBIT_QUERY_SESSIONS,
				    .out_len = 4096 };
	struct onebit_cqe cqe;
	struct policy p;
	uint64_t first;

	core_policy(&p);
	p.limits.admin = false;
	ask_begin(&p);
	cqe = session_answer(&(struct onebit_sqe){ .op = ONEBIT_OP_SESSION_OPEN }, 0, UINT64_MAX);
	ck_assert_int_eq(cqe.res, 0);
	first = cqe.u.end.detail;
	ck_assert_uint_ne(first, 0);
	cqe = session_answer(&(struct onebit_sqe){ .op = ONEBIT_OP_SESSION_FORK, .arg = 77 }, 77,
			     UINT64_MAX);
	ck_assert_uint_ne(cqe.u.end.detail, first);
	cqe = session_answer(&(struct onebit_sqe){ .op = ONEBIT_OP_SESSION_CLOSE, .arg = 77 }, 77, 0);
	ck_assert_int_eq(cqe.res, 0);
	ck_assert_uint_eq(cqe.u.end.detail, 0);

	core_exec_emit(ask_core, 0, &ev, there);
	core_run(ask_core);
	cqe = ask(query);
	ck_assert_int_eq(cqe.res, sizeof(there[0]));
	ck_assert_mem_eq(core_out(ask_core, ask_me), &there[0], sizeof(there[0]));

	ck_assert_uint_eq(broker_stats(ask_core->b)->executor_lies, 0);
	session_answer(&(struct onebit_sqe){ .op = ONEBIT_OP_SESSION_OPEN }, 0, first);
	ck_assert_uint_eq(broker_stats(ask_core->b)->executor_lies, 1);
	ask_end();
}
END_TEST

/* A topic that answers outside its window, or not at all, is a hole or a dead end. */
START_TEST(topics)
{
	ask_begin(NULL);
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
	ask_nothing_charged("topics");
	ask_end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("admit");
	TCase *t = tcase_create("all");

	tcase_add_test(t, hello_fields);
	tcase_add_test(t, hello_lengths);
	tcase_add_test(t, sqe_fields);
	tcase_add_test(t, sqe_reserved_bits);
	tcase_add_test(t, block_fields);
	tcase_add_test(t, block_valid);
	tcase_add_test(t, block_versions);
	tcase_add_test(t, too_big);
	tcase_add_test(t, rights);
	tcase_add_test(t, no_sessions);
	tcase_add_test(t, sessions);
	tcase_add_test(t, topics);
	suite_add_tcase(s, t);
	return ask_main(s);
}

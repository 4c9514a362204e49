/* SPDX-License-Identifier: MIT */
/*
 * The executor's program between the rings and the engine: if it read a parameter otherwise than it was
 * written, every answer would be another; if it let a bad block through, a client could end the
 * executor for all; if it told events otherwise than the contract has them, the broker would. The
 * engine is a made-up one (serve_rig.h), the rings are real.
 */
#include <check.h>
#include <math.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "confine.h"
#include "records.h"
#include "serve_rig.h"

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

enum { USER = ONEBIT_ROLE_USER, RAW = ONEBIT_ROLE_RAW, TOOL = ONEBIT_ROLE_TOOL,
       SYSTEM = ONEBIT_ROLE_SYSTEM, ASSISTANT = ONEBIT_ROLE_ASSISTANT };

static struct rig *rig;

/* ---- blocks -------------------------------------------------------------------------------------- */

/* A block in the making: parameters, sixteen segments, stops and biases at fixed places, then contents. */
enum { SEGMENTS_AT = 168, STOPS_AT = 424, BIAS_AT = 552, CONTENT_AT = 808 };
static struct {
	struct onebit_params p;
	_Alignas(8) uint8_t bytes[ONEBIT_BLOCK_MAX];
	uint32_t len;
} block;

static void set_up(void)
{
	rig = rig_new();
	memset(&block, 0, sizeof(block));
	block.len = CONTENT_AT;
	block.p.size = sizeof(block.p);
	block.p.segments_off = SEGMENTS_AT;
}

static void tear_down(void)
{
	rig = rig_free(rig);
}

static uint32_t put(const void *data, size_t len)
{
	uint32_t at = (block.len + 7) & ~7u;

	memcpy(block.bytes + at, data, len);
	block.len = at + (uint32_t)len;
	return at;
}

/* Returns where the content stands. */
static uint32_t segment(uint8_t role, uint8_t kind, uint16_t flags, const void *data, size_t len)
{
	struct onebit_segment s = {
		.role = role, .kind = kind, .flags = flags, .off = put(data, len), .len = (uint32_t)len,
	};

	memcpy(block.bytes + SEGMENTS_AT + block.p.n_segments++ * sizeof(s), &s, sizeof(s));
	return s.off;
}

static uint32_t text(uint8_t role, const char *t)
{
	return segment(role, ONEBIT_SEG_TEXT, 0, t, strlen(t));
}

static void stop(const char *t)
{
	struct onebit_span s = { put(t, strlen(t)), (uint32_t)strlen(t) };

	block.p.stops_off = STOPS_AT;
	memcpy(block.bytes + STOPS_AT + block.p.n_stops++ * sizeof(s), &s, sizeof(s));
}

static void bias(uint32_t token, int32_t micro)
{
	struct onebit_bias b = { token, micro };

	block.p.bias_off = BIAS_AT;
	memcpy(block.bytes + BIAS_AT + block.p.n_bias++ * sizeof(b), &b, sizeof(b));
}

static struct journal_entry *entry(uint32_t op)
{
	return rig_entry(rig, op, &block.p, block.bytes, block.len);
}

static struct heard *ask(uint32_t op)
{
	struct heard *h = rig_run(rig, 3, entry(op));

	ck_assert_int_eq(rig_go(rig), SERVE_IDLE);
	ck_assert(h->ended);
	return h;
}

static void expect_end(const struct heard *h, enum onebit_code code, uint64_t detail)
{
	ck_assert_msg(h->end.code == code && h->end.detail == detail,
		      "it ended %u (%llu) instead of %u (%llu)", h->end.code,
		      (unsigned long long)h->end.detail, code, (unsigned long long)detail);
}

/* ---- parameters ---------------------------------------------------------------------------------- */

/* A temperature of 0.7 that came out as another float would change every sampled answer. */
START_TEST(parameters_arrive)
{
	const struct engine_request *q = &rig->engine.last;
	struct journal_entry *j;

	text(USER, "Hi");
	stop("\n\n");
	stop("x");
	bias(5, INT32_MIN);
	bias(7, -1500000);
	block.p.seed = 0x123456789abcdef0u;
	block.p.temperature_micro = 700000;
	block.p.top_k = 40;
	block.p.top_p_micro = 950001;
	block.p.min_p_micro = 1;
	block.p.repetition_micro = 1100000;
	block.p.frequency_micro = -333333;
	block.p.presence_micro = 100000000;
	block.p.repetition_last_n = 64;
	block.p.min_tokens = 3;
	block.p.max_tokens = 17;
	block.p.n_choices = 2;
	block.p.top_logprobs = 2;
	block.p.flags = ONEBIT_PARAM_LOGPROBS | ONEBIT_PARAM_NO_CACHE | ONEBIT_PARAM_IGNORE_EOS;
	j = entry(ONEBIT_OP_GENERATE);
	j->tenant = 99;
	j->priority = ONEBIT_PRIO_INTERACTIVE;
	rig_run(rig, 3, j);
	rig_go(rig);
	ck_assert_uint_eq(rig->engine.n_started, 1);
	ck_assert(q->sampler.temperature == 0.7f && q->sampler.top_k == 40);
	ck_assert(q->sampler.top_p == 0.950001f && q->sampler.min_p == 1e-6f);
	ck_assert(q->sampler.repetition == 1.1f && q->sampler.frequency == -0.333333f);
	ck_assert(q->sampler.presence == 100.0f && q->sampler.seed == 0x123456789abcdef0u);
	ck_assert(q->sampler.n_bias == 2 && rig->engine.bias[0].token == 5);
	ck_assert(isinf(rig->engine.bias[0].bias) && rig->engine.bias[0].bias < 0);
	ck_assert(rig->engine.bias[1].token == 7 && rig->engine.bias[1].bias == -1.5f);
	ck_assert(q->last_n == 64 && q->min_tokens == 3 && q->max_tokens == 17 && q->n_choices == 2);
	ck_assert(q->n_stops == 2 && q->n_top == 2 && q->priority == 0 && q->kind == ENGINE_GENERATE);
	ck_assert(q->principal.tenant == 99 && q->principal.uid == 1000);
	ck_assert_uint_eq(q->flags, ENGINE_LOGPROBS | ENGINE_NO_CACHE | ENGINE_IGNORE_EOS);
}
END_TEST

/* Zero stands for a default: read as a number it would be top-p 0, or a division by it. */
START_TEST(defaults_arrive)
{
	const struct engine_request *q = &rig->engine.last;

	text(USER, "Hi");
	expect_end(ask(ONEBIT_OP_GENERATE), ONEBIT_E_OK, 0);
	ck_assert(q->sampler.temperature == 0 && q->sampler.top_p == 1 && q->sampler.min_p == 0);
	ck_assert(q->sampler.repetition == 1 && !q->sampler.n_bias && !q->n_stops && !q->flags);
	ck_assert(q->n_choices == 1 && q->priority == 1);
}
END_TEST

/* Every millionth must be the float next to it. Otherwise two clients' 0.1 could be two numbers. */
START_TEST(millionths_are_exact)
{
	uint64_t chance = 1;

	text(RAW, "a");
	block.p.max_tokens = 1;
	for (int i = 0; i < 2000; i++) {
		char decimal[32];
		uint32_t t;

		chance = chance * 6364136223846793005u + 1442695040888963407u;
		t = (uint32_t)(chance >> 33) % 100000001u;
		block.p.temperature_micro = t;
		ask(ONEBIT_OP_GENERATE);
		snprintf(decimal, sizeof(decimal), "%u.%06u", t / 1000000, t % 1000000);
		ck_assert_msg(rig->engine.last.sampler.temperature == (float)strtod(decimal, NULL),
			      "%s became %a", decimal, (double)rig->engine.last.sampler.temperature);
	}
}
END_TEST

/* ---- refusals ------------------------------------------------------------------------------------ */

static void bad_utf8(void) { text(USER, "good"); text(USER, "ab\xc3("); }
static void cut_utf8(void) { text(USER, "ab\xe2\x82"); }
static void surrogate(void) { text(RAW, "\xed\xa0\x80"); }
static void bad_id(void)
{
	segment(RAW, ONEBIT_SEG_TOKENS, 0, (uint32_t[]){ 1, RIG_VOCAB }, 8);
}
static void tool(void) { text(USER, "a"); text(TOOL, "b"); text(USER, "c"); }
static void mixed(void) { text(USER, "a"); text(USER, "b"); text(RAW, "c"); text(USER, "d"); }
static void raw_first(void) { text(RAW, "a"); text(RAW, "b"); text(USER, "c"); }
static void nothing(void) { segment(RAW, ONEBIT_SEG_TOKENS, 0, "", 0); }
static void twice_biased(void) { text(RAW, "a"); bias(4, 1); bias(9, 1); bias(4, 1); }
static void biased_beyond(void) { text(RAW, "a"); bias(RIG_VOCAB, 1); }
static void grammar(void) { text(RAW, "a"); block.p.grammar_off = 8; block.p.grammar_len = 64; }
static void session(void) { text(RAW, "a"); block.p.session = 77; }
static void too_long(void)
{
	static char x[512];

	memset(x, 'x', 511);
	text(RAW, x); /* bos, and so many */
}
static void far_too_long(void)
{
	static char x[100000];

	memset(x, 'x', sizeof(x));
	segment(RAW, ONEBIT_SEG_TEXT, 0, x, sizeof(x));
}
static void segment_outside(void)
{
	text(RAW, "a");
	((struct onebit_segment *)(void *)(block.bytes + SEGMENTS_AT))->len = ONEBIT_BLOCK_MAX;
}
static void table_outside(void) { text(RAW, "a"); block.p.segments_off = ONEBIT_BLOCK_MAX; }
static void stop_outside(void)
{
	text(RAW, "a");
	stop("x");
	((struct onebit_span *)(void *)(block.bytes + STOPS_AT))->off = block.len;
}
static void choices(void) { text(RAW, "a"); block.p.n_choices = 2; }
static void no_segments(void) { text(RAW, "a"); block.p.n_segments = 0; }

static const struct {
	void (*make)(void);
	uint32_t op;
	enum onebit_code code;
	uint64_t detail;
} refused[] = {
	{ bad_utf8, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PROMPT, CONTENT_AT + 8 + 2 },
	{ bad_utf8, ONEBIT_OP_TOKENIZE, ONEBIT_E_BAD_PROMPT, CONTENT_AT + 8 + 2 },
	{ cut_utf8, ONEBIT_OP_SCORE, ONEBIT_E_BAD_PROMPT, CONTENT_AT + 2 },
	{ surrogate, ONEBIT_OP_EMBED, ONEBIT_E_BAD_PROMPT, CONTENT_AT },
	{ bad_id, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PROMPT, CONTENT_AT + 4 },
	{ bad_id, ONEBIT_OP_DETOKENIZE, ONEBIT_E_BAD_PROMPT, CONTENT_AT + 4 },
	{ tool, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PROMPT, SEGMENTS_AT + 16 },
	{ mixed, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PROMPT, SEGMENTS_AT + 32 },
	{ raw_first, ONEBIT_OP_EMBED, ONEBIT_E_BAD_PROMPT, SEGMENTS_AT + 32 },
	{ nothing, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PROMPT, SEGMENTS_AT },
	{ raw_first, ONEBIT_OP_DETOKENIZE, ONEBIT_E_BAD_PROMPT, SEGMENTS_AT },
	{ twice_biased, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PARAM, BIAS_AT + 16 },
	{ biased_beyond, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PARAM, BIAS_AT },
	{ grammar, ONEBIT_OP_GENERATE, ONEBIT_E_UNSUPPORTED, ONEBIT_OP_GENERATE },
	{ session, ONEBIT_OP_GENERATE, ONEBIT_E_NOT_FOUND, 77 },
	{ too_long, ONEBIT_OP_GENERATE, ONEBIT_E_CONTEXT_FULL, 512 },
	{ far_too_long, ONEBIT_OP_EMBED, ONEBIT_E_CONTEXT_FULL, 512 },
	{ segment_outside, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PARAM, SEGMENTS_AT },
	{ table_outside, ONEBIT_OP_TOKENIZE, ONEBIT_E_BAD_PARAM,
	  offsetof(struct onebit_params, segments_off) },
	{ stop_outside, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PARAM, STOPS_AT },
	{ choices, ONEBIT_OP_SCORE, ONEBIT_E_BAD_PARAM, offsetof(struct onebit_params, n_choices) },
	{ choices, ONEBIT_OP_EMBED, ONEBIT_E_BAD_PARAM, offsetof(struct onebit_params, n_choices) },
	{ no_segments, ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PARAM,
	  offsetof(struct onebit_params, n_segments) },
};

/* Let through it would be read beyond its memory, or asserted on in the engine; unnamed, not corrected. */
START_TEST(bad_requests_are_refused)
{
	refused[_i].make();
	expect_end(ask(refused[_i].op), refused[_i].code, refused[_i].detail);
	ck_assert_uint_eq(rig->slots[3].n_events, 1);
}
END_TEST

/* A refusal that left something behind would spoil the next request. */
START_TEST(good_after_refused)
{
	twice_biased();
	expect_end(ask(ONEBIT_OP_GENERATE), ONEBIT_E_BAD_PARAM, BIAS_AT + 16);
	block.p.n_bias = 2;
	expect_end(ask(ONEBIT_OP_GENERATE), ONEBIT_E_OK, 0);
	ck_assert_uint_eq(rig->engine.last.sampler.n_bias, 2);
}
END_TEST

/* More records than the broker keeps ids for are a lie to it, and end the executor. */
START_TEST(score_beyond_max_tokens_is_refused)
{
	text(RAW, "12345678");
	block.p.max_tokens = 8; /* bos is the ninth */
	expect_end(ask(ONEBIT_OP_SCORE), ONEBIT_E_BAD_PARAM, offsetof(struct onebit_params, max_tokens));
	block.p.max_tokens = 9;
	expect_end(ask(ONEBIT_OP_SCORE), ONEBIT_E_OK, 0);
}
END_TEST

/* What a resume table brings may be anything, and indexes nothing before it was looked at. */
START_TEST(resumed_ids_are_checked)
{
	struct journal_entry *j;
	struct heard *h;

	text(RAW, "a");
	j = entry(ONEBIT_OP_GENERATE);
	j->done[0].n = 2;
	((uint32_t *)(void *)((uint8_t *)j + j->tokens_off))[1] = RIG_VOCAB;
	h = rig_run(rig, 3, j);
	rig_go(rig);
	expect_end(h, ONEBIT_E_BAD_PARAM, offsetof(struct onebit_params, resume_off));
}
END_TEST

static const struct {
	int start_err, end_err;
	enum onebit_code code;
	uint64_t detail;
} ends[] = {
	{ 0, -EDOM, ONEBIT_E_NUMERIC, 5 },
	{ 0, -ENOBUFS, ONEBIT_E_KV_FULL, 1 },
	{ 0, -EINVAL, ONEBIT_E_EXECUTOR, EINVAL },
	{ -ENOBUFS, 0, ONEBIT_E_KV_FULL, 1 },
	{ -EMSGSIZE, 0, ONEBIT_E_CONTEXT_FULL, 512 },
	{ -EINVAL, 0, ONEBIT_E_EXECUTOR, EINVAL },
};

/* A reason that came out under another name would send the user looking in the wrong place. */
START_TEST(engines_errors_have_names)
{
	rig->engine.start_err = ends[_i].start_err;
	rig->engine.end_err = ends[_i].end_err;
	text(RAW, "some text");
	expect_end(ask(ONEBIT_OP_GENERATE), ends[_i].code, ends[_i].detail);
}
END_TEST

/* ---- answers ------------------------------------------------------------------------------------- */

/* Tokens of all choices arrive, in order, with their texts and finishes, whatever a step holds. */
START_TEST(streams_arrive)
{
	static const uint32_t paces[] = { 1, 3, 100 };
	char want[ONEBIT_CHOICES_MAX][512];

	text(USER, "Hi");
	block.p.n_choices = ONEBIT_CHOICES_MAX;
	block.p.max_tokens = 30;
	for (unsigned i = 0; i < 3; i++) {
		const struct heard *h;

		rig->engine.pace = paces[i];
		h = ask(ONEBIT_OP_GENERATE);
		expect_end(h, ONEBIT_E_OK, 0);
		ck_assert_uint_gt(h->end.prompt_tokens, 4);
		ck_assert_uint_eq(h->end.cached_tokens, h->end.prompt_tokens / 3);
		for (uint32_t c = 0; c < ONEBIT_CHOICES_MAX; c++) {
			ck_assert_uint_eq(h->n[c], rig->engine.slots[3].length[c]);
			ck_assert_uint_eq(h->finish[c], h->n[c] == 30 ? ONEBIT_FINISH_LENGTH :
									ONEBIT_FINISH_STOP);
			if (i)
				ck_assert_str_eq(h->text[c], want[c]);
			memcpy(want[c], h->text[c], sizeof(want[c]));
		}
		/* A step's tokens of a choice are one event: one each and the end. */
		if (paces[i] == 100)
			ck_assert_uint_eq(h->n_events, ONEBIT_CHOICES_MAX + 1);
	}
}
END_TEST

/* Sixteen requests beside each other: one's tokens in another's events would be lies to the broker. */
START_TEST(many_at_a_time)
{
	char name[16];

	rig->engine.pace = 2;
	for (uint32_t round = 0; round < 20; round++) {
		for (uint32_t i = 0; i < 16; i++) {
			bool score = i % 5 == 4;

			if (rig->slots[i].running)
				continue;
			memset(&block.p, 0, sizeof(block.p));
			block.p.segments_off = SEGMENTS_AT;
			block.len = CONTENT_AT;
			snprintf(name, sizeof(name), "%u %u", round, i);
			text(RAW, name);
			block.p.n_choices = score ? 1 : (uint16_t)(1 + i % 3);
			rig_run(rig, i, entry(score ? ONEBIT_OP_SCORE : ONEBIT_OP_GENERATE));
		}
		for (unsigned k = 0; k < round % 4 + 1; k++) {
			ck_assert_int_ge(serve_turn(rig->serve, rig->why, sizeof(rig->why)), 0);
			rig_drain(rig);
		}
	}
	ck_assert_int_eq(rig_go(rig), SERVE_IDLE);
	for (uint32_t i = 0; i < 16; i++)
		ck_assert(rig->slots[i].ended && rig->slots[i].end.code == ONEBIT_E_OK);
}
END_TEST

/* A broker that takes nothing for a while: what did not fit must come later, whole and in order. */
START_TEST(nothing_is_dropped)
{
	text(RAW, "a long answer");
	block.p.flags = ONEBIT_PARAM_IGNORE_EOS | ONEBIT_PARAM_LOGPROBS;
	block.p.top_logprobs = 20; /* records of 4 KB: the data area is full before the events are */
	block.p.max_tokens = 3000;
	rig->stalled = true;
	rig_run(rig, 3, entry(ONEBIT_OP_GENERATE));
	ck_assert_int_eq(rig_go(rig), SERVE_IDLE);
	ck_assert_uint_gt(rig->n_naps, 1);
	rig_drain(rig);
	expect_end(&rig->slots[3], ONEBIT_E_OK, 0);
	ck_assert_uint_eq(rig->slots[3].n[0], 3000);
}
END_TEST

/* After a death the rest must follow what was told, confirmed by its last token, none told twice. */
START_TEST(answers_go_on)
{
	uint32_t whole[3][40], n[3];
	struct journal_entry *j;
	struct heard *h;

	text(USER, "Hi");
	block.p.n_choices = 3;
	block.p.max_tokens = 40;
	block.p.flags = ONEBIT_PARAM_IGNORE_EOS;
	h = ask(ONEBIT_OP_GENERATE);
	for (uint32_t c = 0; c < 3; c++) {
		n[c] = h->n[c];
		memcpy(whole[c], h->tokens[c], n[c] * sizeof(whole[c][0]));
	}
	for (uint32_t k = 0; k <= 40; k++) {
		j = entry(ONEBIT_OP_GENERATE);
		/* The first stands at k, the second has not begun, the third is finished. */
		j->done[0].n = k == 40 ? 39 : k;
		j->done[2].n = 40;
		j->done[2].finish = ONEBIT_FINISH_LENGTH;
		memcpy((uint8_t *)j + j->tokens_off, whole[0], 40 * sizeof(whole[0][0]));
		memcpy((uint8_t *)j + j->tokens_off + 80 * 4, whole[2], 40 * sizeof(whole[2][0]));
		h = rig_run(rig, 3, j);
		rig_go(rig);
		expect_end(h, ONEBIT_E_OK, 0);
		ck_assert_uint_eq(h->n_replayed, k ? 1 : 0);
		for (uint32_t c = 0; c < 3; c++)
			ck_assert(h->n[c] == n[c] && !memcmp(h->tokens[c], whole[c], n[c] * 4));
	}
}
END_TEST

/* All was told but the end: computing it again would tell it twice. */
START_TEST(finished_answers_only_end)
{
	struct journal_entry *j;
	struct heard *h;

	text(USER, "Hi");
	j = entry(ONEBIT_OP_GENERATE);
	j->done[0].n = 2;
	j->done[0].finish = ONEBIT_FINISH_STOP;
	h = rig_run(rig, 3, j);
	rig_go(rig);
	expect_end(h, ONEBIT_E_OK, 0);
	ck_assert(h->n_events == 1 && !rig->engine.n_started && h->end.prompt_tokens);
}
END_TEST

/* A SCORE after a death: the first records are the client's already. */
START_TEST(scores_go_on)
{
	struct journal_entry *j;
	struct heard *h;

	rig->engine.pace = 3;
	text(RAW, "some text to score");
	for (uint32_t k = 0; k <= 19; k++) {
		j = entry(ONEBIT_OP_SCORE);
		j->done[0].n = k;
		((uint32_t *)(void *)((uint8_t *)j + j->tokens_off))[0] = RIG_BOS;
		for (uint32_t i = 1; i < k; i++)
			((uint32_t *)(void *)((uint8_t *)j + j->tokens_off))[i] =
				(uint32_t)"\0some text to score"[i];
		j->params.top_logprobs = 3;
		if (k == 19)
			j->done[0].finish = ONEBIT_FINISH_STOP;
		h = rig_run(rig, 3, j);
		rig_go(rig);
		expect_end(h, ONEBIT_E_OK, 0);
		ck_assert_uint_eq(h->n[0], 19);
		ck_assert_uint_eq(h->finish[0], ONEBIT_FINISH_STOP);
		ck_assert_uint_eq(h->n_replayed, k && k < 19 ? 1 : 0);
	}
}
END_TEST

/* One cancelled ends at once and only that one; a cancel that came late must not hit who came after. */
START_TEST(cancel_ends_one)
{
	struct heard *a, *b;

	block.p.max_tokens = 5;
	block.p.flags = ONEBIT_PARAM_IGNORE_EOS;
	text(RAW, "a");
	b = rig_run(rig, 4, entry(ONEBIT_OP_GENERATE));
	block.p.max_tokens = 1000;
	a = rig_run(rig, 3, entry(ONEBIT_OP_GENERATE));
	ck_assert_int_eq(serve_turn(rig->serve, rig->why, sizeof(rig->why)), SERVE_MORE);
	rig_command(rig, (struct exec_cmd){ .kind = EXEC_CMD_CANCEL, .slot = 3, .tag = a->tag });
	rig_command(rig, (struct exec_cmd){ .kind = EXEC_CMD_CANCEL, .slot = 4, .tag = b->tag - 1 });
	ck_assert_int_eq(rig_go(rig), SERVE_IDLE);
	expect_end(a, ONEBIT_E_CANCELLED, 1);
	expect_end(b, ONEBIT_E_OK, 0);
	ck_assert(b->n[0] == 5 && rig->engine.n_cancelled == 1);
	rig_command(rig, (struct exec_cmd){ .kind = EXEC_CMD_CANCEL, .slot = 4, .tag = b->tag });
	ck_assert_int_eq(rig_go(rig), SERVE_IDLE);
	ck_assert_uint_eq(rig->engine.n_cancelled, 1);
}
END_TEST

/* Ids out, text back: a piece lost between two events would go unnoticed by the user. */
START_TEST(tokenize_and_back)
{
	static uint32_t ids[300000];
	static char want[sizeof(ids) / 4];
	const struct heard *h;
	uint64_t chance = 7;

	for (size_t i = 0; i < sizeof(want); i++) {
		chance = chance * 6364136223846793005u + 1442695040888963407u;
		want[i] = "the thing a User: Hi"[(chance >> 40) % 20];
	}
	segment(RAW, ONEBIT_SEG_TEXT, 0, want, 100000);
	segment(TOOL, ONEBIT_SEG_TEXT, 0, want + 100000, sizeof(want) - 100000);
	h = ask(ONEBIT_OP_TOKENIZE);
	expect_end(h, ONEBIT_E_OK, 0);
	ck_assert(h->n_data > EXEC_EVENT_DATA_MAX && h->n_data <= sizeof(ids));
	memcpy(ids, h->data, h->n_data);
	ck_assert_uint_ne(ids[0], RIG_BOS);

	block.len = CONTENT_AT;
	block.p.n_segments = 0;
	segment(RAW, ONEBIT_SEG_TOKENS, 0, ids, h->n_data);
	segment(RAW, ONEBIT_SEG_TOKENS, 0, (uint32_t[]){ RIG_EOT }, 4);
	segment(RAW, ONEBIT_SEG_TOKENS, ONEBIT_SEG_SPECIAL, (uint32_t[]){ RIG_EOT, 0xe2, 0x82 }, 12);
	h = ask(ONEBIT_OP_DETOKENIZE);
	expect_end(h, ONEBIT_E_OK, 0);
	ck_assert_uint_eq(h->n_data, sizeof(want) + 10 + 3);
	ck_assert(!memcmp(h->data, want, sizeof(want)));
	ck_assert(!memcmp(h->data + sizeof(want), "<|eot_id|>\xef\xbf\xbd", 13));
}
END_TEST

/* TOKENIZE is asked what GENERATE will see: with the template it must be that to the token. */
START_TEST(template_is_applied)
{
	static const char want[] = "User: Hi";
	const struct heard *h;
	uint32_t ids[64];

	text(USER, " Hi ");
	text(ASSISTANT, "the");
	block.p.flags = ONEBIT_PARAM_TEMPLATE;
	h = ask(ONEBIT_OP_TOKENIZE);
	expect_end(h, ONEBIT_E_OK, 0);
	ck_assert(h->n_data >= 5 * 4 && h->n_data <= sizeof(ids));
	memcpy(ids, h->data, h->n_data);
	ck_assert_uint_eq(ids[0], RIG_BOS);
	block.p.flags = 0;
	block.len = CONTENT_AT;
	block.p.n_segments = 0;
	text(USER, want);
	h = ask(ONEBIT_OP_TOKENIZE);
	ck_assert(!memcmp(ids + 1, h->data, h->n_data) && ids[1 + h->n_data / 4] == RIG_EOT);
}
END_TEST

/* Nothing but the vector, and once. */
START_TEST(vectors_arrive)
{
	const struct heard *h;

	text(RAW, "a");
	block.p.pooling = ONEBIT_POOL_LAST;
	h = ask(ONEBIT_OP_EMBED);
	expect_end(h, ONEBIT_E_OK, 0);
	ck_assert_uint_eq(h->n_data, 400);
	for (int i = 0; i < 4; i++)
		ck_assert(((const float *)(const void *)h->data)[i] == (float)(i < 3 ? i + 1 : 0));
	ck_assert(rig->engine.last.kind == ENGINE_EMBED && rig->engine.last.pool_last);
}
END_TEST

/* Who waits for memory or behind long prompts must not look dead: the broker would end everybody's
 * executor for it. */
START_TEST(waiting_ones_are_alive)
{
	struct timespec t = { .tv_nsec = 110000000 };
	struct heard *h;

	rig->engine.n_waits = 3;
	text(RAW, "a");
	h = rig_run(rig, 3, entry(ONEBIT_OP_GENERATE));
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(serve_turn(rig->serve, rig->why, sizeof(rig->why)), SERVE_MORE);
		nanosleep(&t, NULL);
	}
	ck_assert_int_eq(rig_go(rig), SERVE_IDLE);
	ck_assert_uint_ge(h->n_progress, 1);
	expect_end(h, ONEBIT_E_OK, 0);
	ck_assert(rig->n_hello == 1 && rig->n_kv == rig->n_timing && rig->n_kv >= 1);
}
END_TEST

/* A device's failure must reach the broker's incidents, in the 96 bytes that these take. */
START_TEST(faults_are_told)
{
	rig->engine.step_err = -EIO;
	text(RAW, "a");
	rig_run(rig, 3, entry(ONEBIT_OP_GENERATE));
	ck_assert_int_eq(rig_go(rig), -EIO);
	ck_assert_uint_eq(rig->n_fault, 1);
	ck_assert(strlen(rig->fault) == 96 && strlen(rig->why) > 96);
}
END_TEST

/* STOP ends it in order; what makes no sense ends it rather than write beyond its slots. */
START_TEST(commands_are_checked)
{
	static const struct exec_cmd cmds[] = {
		{ .kind = 9 }, { .kind = EXEC_CMD_RUN, .slot = 16, .op = ONEBIT_OP_GENERATE },
		{ .kind = EXEC_CMD_RUN, .op = ONEBIT_OP_ECHO }, { .kind = EXEC_CMD_RUN, .op = 200 },
		{ .kind = EXEC_CMD_CANCEL, .slot = 64 },
		{ .kind = EXEC_CMD_RUN, .slot = 3, .op = ONEBIT_OP_GENERATE }, /* which runs */
	};

	text(RAW, "a");
	block.p.max_tokens = 1000;
	block.p.flags = ONEBIT_PARAM_IGNORE_EOS;
	rig_run(rig, 3, entry(ONEBIT_OP_GENERATE));
	for (size_t i = 0; i < sizeof(cmds) / sizeof(cmds[0]); i++) {
		serve_turn(rig->serve, rig->why, sizeof(rig->why));
		rig_command(rig, cmds[i]);
		ck_assert_int_eq(serve_turn(rig->serve, rig->why, sizeof(rig->why)), -EPROTO);
	}
	rig_command(rig, (struct exec_cmd){ .kind = EXEC_CMD_STOP });
	ck_assert_int_eq(rig_go(rig), SERVE_STOP);
}
END_TEST

/* ---- records --------------------------------------------------------------------------------------- */

/* Twenty tops of a long token do not fit a record: it must stay in its bounds and say so. */
START_TEST(records_are_bounded)
{
	static uint8_t out[ONEBIT_RECORD_MAX];
	const struct onebit_record *rec = (const void *)out;
	const struct onebit_top *top = (const void *)(rec + 1);
	struct sampler_top tops[20];
	struct engine_token t = { .token = 9, .has_logprob = true, .logprob = -1.5f, .top = tops };
	char words[ONEBIT_RECORD_MAX - 16 - 320];

	memset(words, 'w', sizeof(words));
	for (uint32_t i = 0; i < 20; i++)
		tops[i] = (struct sampler_top){ i % 2 ? RIG_LONG : 'x', -(float)i };
	for (uint32_t n = 0; n <= 20; n++)
		for (uint32_t len = 0; len <= sizeof(words); len += 37) {
			uint32_t bytes, fixed = 16 + 16 * n;

			t.n_top = n;
			t.text = words;
			t.text_len = len;
			bytes = record_make(rig->engine.facts.tokenizer, &t, out);
			ck_assert(bytes <= sizeof(out) && bytes % 8 == 0 && rec->size == bytes);
			ck_assert(rec->token == 9 && rec->flags == ONEBIT_REC_LOGPROB && rec->n_top == n);
			ck_assert(rec->text_len == len && !memcmp(out + fixed, words, len));
			for (uint32_t i = 0; i < n; i++) {
				ck_assert(top[i].token == tops[i].token && !top[i].reserved);
				ck_assert(top[i].text_off + top[i].text_len <= bytes);
				ck_assert(top[i].text_len == (i % 2 ? 200 : 1) ||
					  (!top[i].text_len && len > 100));
				if (top[i].text_len)
					ck_assert_int_eq(out[top[i].text_off], i % 2 ? '=' : 'x');
			}
		}
	ck_assert(record_fits(rig->engine.facts.tokenizer));
}
END_TEST

/* ---- the sandbox ------------------------------------------------------------------------------------- */

enum { NO_SANDBOX = 99, RETURNED = 98 };

static void enter(void)
{
	char report[200];

	if (confine(report, sizeof(report)))
		_exit(NO_SANDBOX);
}

static int in_child(void (*f)(void))
{
	int status;
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		enter();
		f();
		_exit(RETURNED);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == NO_SANDBOX)
		puts("skip: this kernel or build has no sandbox");
	return status;
}

static void do_open(void) { syscall(SYS_openat, -100, "/dev/null", 0); }
static void do_openat2(void) { syscall(437, -100, "/", NULL, 0); }
static void do_socket(void) { socket(AF_UNIX, SOCK_STREAM, 0); }
static void do_connect(void) { connect(0, NULL, 0); }
static void do_sendmsg(void) { sendmsg(0, NULL, 0); }
static void do_execve(void) { char *none[] = { NULL }; execve("/bin/true", none, none); }
static void do_fork(void) { syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }
static void do_clone3(void) { syscall(435, NULL, 0); }
static void do_ptrace(void) { syscall(SYS_ptrace, 0, 0, 0, 0); }
static void do_kill(void) { kill(1, 0); }
static void do_tgkill(void) { syscall(SYS_tgkill, 1, 1, 0); }
static void do_unlink(void) { syscall(SYS_unlinkat, -100, "/nonexistent", 0); }
static void do_ioctl(void) { syscall(SYS_ioctl, 0, 0, 0); }
static void do_prctl(void) { syscall(SYS_prctl, 4, 1); }
static void do_read(void) { syscall(SYS_read, 0, NULL, 0); }
static void do_memfd(void) { syscall(SYS_memfd_create, "", 0); }
static void do_ring(void) { syscall(425, 1, NULL); }
static void do_map_file(void) { mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, 0, 0); }
static void do_map_exec(void)
{
	mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static void do_protect_exec(void)
{
	mprotect((void *)((uintptr_t)&in_child & ~(uintptr_t)4095), 4096, PROT_READ | PROT_EXEC);
}
static void do_unknown(void) { syscall(1000000); }

static const struct {
	const char *name;
	void (*call)(void);
} forbidden[] = {
	{ "openat", do_open }, { "openat2", do_openat2 }, { "socket", do_socket },
	{ "connect", do_connect }, { "sendmsg", do_sendmsg }, { "execve", do_execve },
	{ "clone", do_fork }, { "clone3", do_clone3 }, { "ptrace", do_ptrace }, { "kill", do_kill },
	{ "tgkill of another", do_tgkill }, { "unlinkat", do_unlink }, { "ioctl", do_ioctl },
	{ "prctl", do_prctl }, { "read", do_read }, { "memfd_create", do_memfd },
	{ "io_uring_setup", do_ring }, { "mmap of a file", do_map_file },
	{ "mmap PROT_EXEC", do_map_exec }, { "mprotect PROT_EXEC", do_protect_exec },
	{ "an unknown number", do_unknown },
};

/* A call that came back, with whatever result, was not stopped. */
START_TEST(forbidden_is_killed)
{
	int status = in_child(forbidden[_i].call);

	if (WIFEXITED(status) && WEXITSTATUS(status) == NO_SANDBOX)
		return;
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "%s: status %x",
		      forbidden[_i].name, status);
}
END_TEST

/* Serving itself, allocation and the way out must not be: a healthy executor would be killed. */
static void do_serve(void)
{
	struct timespec t = { .tv_nsec = 1 };
	uint8_t *p;

	text(RAW, "a");
	if (rig_run(rig, 3, entry(ONEBIT_OP_GENERATE)) && rig_go(rig) != SERVE_IDLE)
		_exit(1);
	for (size_t n = 1; n < 1u << 26; n *= 3) {
		p = malloc(n);
		if (!p)
			_exit(2);
		memset(p, 1, n);
		free(p);
	}
	nanosleep(&t, NULL);
	executor_wait(&rig->e, 1000);
	madvise(rig, 4096, MADV_WILLNEED);
	if (write(2, "", 0))
		_exit(3);
	_exit(rig->slots[3].ended ? 0 : 4);
}

START_TEST(serving_is_allowed)
{
	int status = in_child(do_serve);

	if (WIFEXITED(status) && WEXITSTATUS(status) == NO_SANDBOX)
		return;
	ck_assert_msg(WIFEXITED(status) && !WEXITSTATUS(status), "status %x", status);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("serve");
	TCase *t = tcase_create("serve"), *box;
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_add_test(t, parameters_arrive);
	tcase_add_test(t, defaults_arrive);
	tcase_add_test(t, millionths_are_exact);
	tcase_add_loop_test(t, bad_requests_are_refused, 0, (int)(sizeof(refused) / sizeof(refused[0])));
	tcase_add_test(t, good_after_refused);
	tcase_add_test(t, score_beyond_max_tokens_is_refused);
	tcase_add_test(t, resumed_ids_are_checked);
	tcase_add_loop_test(t, engines_errors_have_names, 0, (int)(sizeof(ends) / sizeof(ends[0])));
	tcase_add_test(t, streams_arrive);
	tcase_add_test(t, many_at_a_time);
	tcase_add_test(t, nothing_is_dropped);
	tcase_add_test(t, answers_go_on);
	tcase_add_test(t, finished_answers_only_end);
	tcase_add_test(t, scores_go_on);
	tcase_add_test(t, cancel_ends_one);
	tcase_add_test(t, tokenize_and_back);
	tcase_add_test(t, template_is_applied);
	tcase_add_test(t, vectors_arrive);
	tcase_add_test(t, waiting_ones_are_alive);
	tcase_add_test(t, faults_are_told);
	tcase_add_test(t, commands_are_checked);
	tcase_add_test(t, records_are_bounded);
	suite_add_tcase(s, t);
	if (SANITIZED) {
		puts("skip: the executor's sandbox: sanitizers make system calls that it forbids");
	} else {
		box = tcase_create("sandbox");
		tcase_add_checked_fixture(box, set_up, tear_down);
		tcase_add_loop_test(box, forbidden_is_killed, 0,
				    (int)(sizeof(forbidden) / sizeof(forbidden[0])));
		tcase_add_test(box, serving_is_allowed);
		suite_add_tcase(s, box);
	}
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

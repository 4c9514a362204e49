/* SPDX-License-Identifier: MIT */
/*
 * The same bytes everywhere. Logits of each test model on each instruction set, by any number of
 * threads and in chunks of any size; then streams: a set of requests is answered one by one on an
 * engine that does nothing clever, and each scenario of a table answers the same requests
 * otherwise. To add one is to add a line to the table.
 *
 * ONEBIT_SCALE: percent of the rounds of each scenario; ONEBIT_SEED: the whole run again.
 */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_plain_device.h"
#include "lib_shapes.h"
#include "lib_streams.h"
#include "lib_vocab.h"

static uint32_t below(uint64_t *rng, uint32_t n)
{
	ck_assert_uint_gt(n, 0);
	return (uint32_t)(test_random(rng) % n);
}

static struct device *cpu(unsigned threads, unsigned isa_mask)
{
	struct device_cpu_options o = { .threads = threads, .isa_mask = isa_mask };
	struct device *d = NULL;
	char why[256] = "";

	ck_assert_msg(!device_cpu_open(&o, &d, why, sizeof(why)), "%s", why);
	return d;
}

static void tokens_of(uint64_t *rng, uint32_t vocab, uint32_t *tokens, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		tokens[i] = below(rng, vocab);
}

/* ---- logits ---------------------------------------------------------------------------------- */

#define LOGIT_TOKENS 136u

static const struct {
	const char *name;
	unsigned mask, needs;
} sets[] = {
	{ "AVX2", KERNELS_AVX2, KERNELS_AVX2 },
	{ "AVX-512", KERNELS_AVX2 | KERNELS_AVX512, KERNELS_AVX512 },
	{ "NEON", KERNELS_NEON, KERNELS_NEON },
	{ "no instruction set", 0, 0 }, /* last: it takes most of the time */
};
enum { SETS = sizeof(sets) / sizeof(sets[0]) };

struct logits {
	float *all, *final;
	uint32_t stride;
};

static struct logits logits_by(struct device *d, const struct obm *model, uint32_t kv_form,
			       const uint32_t *tokens, uint32_t chunk)
{
	struct logits l;
	uint32_t faults = 0;

	l.all = shape_logits(d, model, kv_form, tokens, LOGIT_TOKENS, chunk, &l.stride, &l.final,
			     &faults);
	ck_assert_uint_eq(faults, 0);
	return l;
}

static void logits_free(struct logits *l)
{
	free(l->all);
	free(l->final);
}

static void logits_equal(const struct shape *s, uint32_t kv_form, unsigned n_sets, uint64_t *rng)
{
	uint32_t tokens[LOGIT_TOKENS];
	struct plain_device plain;
	struct logits want, got;
	struct tiny t;
	struct obm *model;

	shape_fill(s, test_random(rng), &t);
	model = shape_open(s, &t);
	tokens_of(rng, t.vocab, tokens, LOGIT_TOKENS);
	plain_device_init(&plain);
	want = logits_by(&plain.device, model, kv_form, tokens, LOGIT_TOKENS);
	plain_device_deinit(&plain);
	for (unsigned i = 0; i < n_sets; i++)
		for (unsigned threads = 1;
		     threads <= 8 && (kernels_cpu() & sets[i].needs) == sets[i].needs;
		     threads += sets[i].mask ? 1 : 5) {
			uint32_t chunk = threads == 1 ? LOGIT_TOKENS : 1 + below(rng, 128);
			struct device *d = cpu(threads, sets[i].mask);

			got = logits_by(d, model, kv_form, tokens, chunk);
			d->type->close(d);
			for (uint32_t at = 0; at < LOGIT_TOKENS; at++)
				ck_assert_msg(
					!memcmp(want.all + (size_t)at * want.stride,
						got.all + (size_t)at * got.stride,
						t.vocab * sizeof(float)) &&
						!memcmp(want.final + (size_t)at * t.hidden,
							got.final + (size_t)at * t.hidden,
							t.hidden * sizeof(float)),
					"%s, KV form %u: logits after token %u differ by %s, %u "
					"threads, chunks of %u",
					s->name, kv_form, at, sets[i].name, threads, chunk);
			logits_free(&got);
		}
	logits_free(&want);
	obm_close(model);
	tiny_free(&t);
}

/*
 * A kernel, a split between threads or an edge of a chunk that changes a bit changes somebody's
 * answer.
 */
START_TEST(logits_are_equal)
{
	uint64_t rng = test_seed("logits_are_equal");
	uint32_t n = 0;

	while (shapes[n].name)
		n++;
	for (uint64_t round = 0; round < test_scaled(1); round++) {
		const struct shape *scalar = &shapes[below(&rng, n)];

		for (const struct shape *s = shapes; s->name; s++) {
			logits_equal(s, KV_F16, SETS - (s != scalar), &rng);
			logits_equal(s, KV_INT8, SETS - (s != scalar), &rng);
		}
	}
}
END_TEST

/* ---- streams --------------------------------------------------------------------------------- */

#define REQUESTS 48u

static const struct scenario {
	const char *name;
	unsigned threads; /* 0: 1 to 8, by chance */
	unsigned isa_mask;
	uint32_t slots, chunk; /* 0: 1 to 16, 1 to 128, by chance */
	bool prefixes, speculation;
	uint32_t positions; /* of the KV arena; 0: as many as are wanted */
	struct pace pace;   /* at_once 0: all slots */
} scenarios[] = {
	{ "one by one, AVX2 at most",
	  1,
	  KERNELS_AVX2,
	  1,
	  128,
	  false,
	  false,
	  0,
	  { 1, 0, 0, 0, false } },
	{ "prefixes", 1, KERNELS_ANY, 1, 128, true, false, 0, { 1, 0, 0, 0, true } },
	{ "guesses", 1, KERNELS_ANY, 1, 128, false, true, 0, { 1, 0, 0, 0, true } },
	{ "batched", 1, KERNELS_ANY, 16, 128, false, false, 0, { 0, 0, 0, 0, false } },
	{ "batched, joining late", 1, KERNELS_ANY, 0, 0, false, false, 0, { 0, 3, 0, 0, true } },
	{ "threads", 0, KERNELS_ANY, 8, 64, false, false, 0, { 0, 0, 0, 0, true } },
	{ "prompts token by token", 1, KERNELS_ANY, 4, 1, true, false, 0, { 0, 2, 0, 0, true } },
	{ "preempted", 1, KERNELS_ANY, 16, 64, false, false, 640, { 0, 0, 0, 0, true } },
	{ "preempted, prefixes", 1, KERNELS_ANY, 16, 0, true, false, 640, { 0, 2, 0, 0, true } },
	{ "neighbours cancelled", 1, KERNELS_ANY, 8, 32, true, true, 0, { 4, 2, 30, 0, true } },
	{ "replayed", 1, KERNELS_ANY, 8, 0, false, false, 0, { 0, 2, 0, 100, true } },
	{ "replayed, prefixes and guesses",
	  1,
	  KERNELS_ANY,
	  8,
	  0,
	  true,
	  true,
	  0,
	  { 0, 2, 0, 60, true } },
	{ "all at once", 2, KERNELS_ANY, 0, 0, true, true, 0, { 0, 2, 20, 30, true } },
	{ "all at once, in little memory",
	  0,
	  KERNELS_ANY,
	  0,
	  0,
	  true,
	  true,
	  768,
	  { 0, 2, 20, 30, true } },
};

/* An engine and what it stands on. */
struct engine_on {
	struct device *d;
	struct engine *e;
};

static struct engine_on engine_on(const struct obm *model, unsigned threads, unsigned isa_mask,
				  const struct engine_options *o)
{
	struct engine_on on = { cpu(threads, isa_mask), NULL };
	char why[256] = "";

	ck_assert_msg(!engine_open(on.d, model, o, &on.e, why, sizeof(why)), "%s", why);
	return on;
}

static void engine_off(struct engine_on *on)
{
	engine_close(on->e);
	on->d->type->close(on->d);
}

/* A model, requests, and their answers by an engine that does nothing clever. */
struct set {
	struct tiny t;
	struct obm *model;
	struct asked asked[REQUESTS];
	struct answer want[REQUESTS];
	uint64_t position_bytes, streams;
};

static void set_make(struct set *s, const struct shape *shape, uint32_t kv_form, uint64_t *rng)
{
	struct engine_options plain = {
		.slots = 1, .kv_form = kv_form, .no_prefixes = true, .no_speculation = true
	};
	struct engine_on on;

	shape_fill(shape, test_random(rng), &s->t);
	s->model = shape_open(shape, &s->t);
	on = engine_on(s->model, 1, KERNELS_ANY, &plain);
	s->position_bytes = engine_facts(on.e)->kv_position_bytes;
	s->streams = 0;
	for (uint32_t i = 0; i < REQUESTS; i++) {
		asked_random(&s->asked[i], rng, s->t.vocab);
		answer_to(on.e, &s->asked[i], &s->want[i]);
		s->streams += s->asked[i].r.n_choices;
	}
	engine_off(&on);
}

static void set_free(struct set *s)
{
	for (uint32_t i = 0; i < REQUESTS; i++)
		answer_free(&s->want[i]);
	obm_close(s->model);
	tiny_free(&s->t);
}

struct totals {
	uint64_t streams, cached, drafted, accepted, preempted;
};

static void play(struct set *s, const struct scenario *c, uint32_t kv_form, uint64_t *rng,
		 struct totals *totals)
{
	unsigned threads = c->threads ? c->threads : 1 + below(rng, 8);
	struct engine_options o = {
		.slots = c->slots ? c->slots : 1 + below(rng, 16),
		.chunk = c->chunk ? c->chunk : 1 + below(rng, 128),
		.kv_form = kv_form,
		.kv_bytes = c->positions ? c->positions * s->position_bytes : 0,
		.no_prefixes = !c->prefixes,
		.no_speculation = !c->speculation,
	};
	struct engine_on on = engine_on(s->model, threads, c->isa_mask, &o);
	struct answer got[REQUESTS];
	struct pace pace = c->pace;
	struct engine_counts n;
	char why[300];

	pace.at_once = pace.at_once && pace.at_once < o.slots ? pace.at_once : o.slots;
	answers_to(on.e, s->asked, s->want, REQUESTS, &pace, rng, got);
	for (uint32_t i = 0; i < REQUESTS; i++) {
		if (!answer_equal(&s->want[i], &got[i], why, sizeof(why))) {
			asked_print(&s->asked[i]);
			ck_abort_msg("\"%s\", %u threads, %u slots, chunks of %u, KV form %u: "
				     "request %u: %s",
				     c->name, threads, o.slots, o.chunk, kv_form, i, why);
		}
		answer_free(&got[i]);
	}
	n = engine_counts(on.e);
	totals->streams += s->streams;
	totals->cached += n.cached_tokens;
	totals->drafted += n.drafted;
	totals->accepted += n.accepted;
	totals->preempted += n.preempted;
	engine_off(&on);
}

static void play_all(uint32_t kv_form, uint64_t *rng, uint64_t rounds)
{
	static const char *const models[] = { "bitnet", "llama, own int8 head", "groups",
					      "odd sizes" };
	static struct set s;
	struct totals totals = { 0 };

	for (uint64_t round = 0; round < test_scaled(rounds); round++) {
		set_make(&s, shape_named(models[below(rng, 4)]), kv_form, rng);
		for (unsigned i = 0; i < sizeof(scenarios) / sizeof(scenarios[0]); i++)
			play(&s, &scenarios[i], kv_form, rng, &totals);
		set_free(&s);
	}
	fprintf(stderr,
		"%" PRIu64 " streams; %" PRIu64 " tokens cached, %" PRIu64 " guessed, %" PRIu64
		" of them rightly; %" PRIu64 " preemptions\n",
		totals.streams, totals.cached, totals.drafted, totals.accepted, totals.preempted);
	/* A scenario that never meets what it is for proves nothing. */
	ck_assert_uint_ge(totals.streams, 500);
	ck_assert_uint_gt(totals.cached, 0);
	ck_assert_uint_gt(totals.drafted, 0);
	ck_assert_uint_gt(totals.accepted, 0);
	ck_assert_uint_gt(totals.preempted, 0);
}

/*
 * What runs beside a request, when it came, what was cached, guessed, lost or begun anew: no
 * answer tells.
 */
START_TEST(streams_are_equal)
{
	uint64_t rng = test_seed("streams_are_equal");

	play_all(KV_F16, &rng, 3);
}
END_TEST

/* The same where keys and values are int8, whose answers are their own. */
START_TEST(streams_are_equal_int8)
{
	uint64_t rng = test_seed("streams_are_equal_int8");

	play_all(KV_INT8, &rng, 2);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("identity");
	TCase *t = tcase_create("identity");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 36000);
	tcase_add_test(t, logits_are_equal);
	tcase_add_test(t, streams_are_equal);
	tcase_add_test(t, streams_are_equal_int8);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

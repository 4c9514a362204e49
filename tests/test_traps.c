/* SPDX-License-Identifier: MIT */
/*
 * What other engines got wrong between the logits and the client, each a test by its name: tokens
 * lost, stops missed or shown, state that leaks from one request into the next, limits that crash,
 * errors taken for tokens. Each on a small random model, through the engine.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_shapes.h"
#include "lib_streams.h"
#include "lib_vocab.h"

static struct {
	struct tiny t;
	struct obm *model;
	struct device *d;
	struct engine *e;
	char why[256];
} on;

/* A model of the test's own making: change on.t in between. */
static void model_make(uint64_t seed)
{
	shape_fill(shape_named("bitnet"), seed, &on.t);
}

static void model_serve(const struct engine_options *o)
{
	struct device_cpu_options cpu = { .threads = 1, .isa_mask = KERNELS_ANY };

	on.model = shape_open(shape_named("bitnet"), &on.t);
	ck_assert_msg(!device_cpu_open(&cpu, &on.d, on.why, sizeof(on.why)), "%s", on.why);
	ck_assert_msg(!engine_open(on.d, on.model, o, &on.e, on.why, sizeof(on.why)), "%s", on.why);
}

static void begin(uint64_t seed)
{
	struct engine_options o = { .slots = 4, .positions = 256 };

	model_make(seed);
	model_serve(&o);
}

static void end(void)
{
	engine_close(on.e);
	on.d->type->close(on.d);
	obm_close(on.model);
	tiny_free(&on.t);
}

static void prompt_of(uint64_t seed, uint32_t n, struct asked *a, uint32_t max_tokens)
{
	uint32_t prompt[ASKED_PROMPT_MAX];

	for (uint32_t i = 0; i < n; i++)
		prompt[i] = (uint32_t)(tiny_random(&seed) % (on.t.vocab - 4));
	asked_plain(a, prompt, n, max_tokens);
}

static void same(const struct answer *a, const struct answer *b)
{
	char why[256];

	ck_assert_msg(answer_equal(a, b, why, sizeof(why)), "%s", why);
}

/* ---- tokens ---------------------------------------------------------------------------------- */

/*
 * The token that the prompt's last position predicts was fed on and never told: answers began with
 * their second. Answering a prompt with its answer's beginning behind it tells the rest.
 */
START_TEST(first_token_is_delivered)
{
	struct asked a, b;
	struct answer whole, rest;

	begin(1);
	for (uint32_t n = 1; n < 40; n += 7) {
		prompt_of(n, n, &a, 12);
		a.r.flags = ENGINE_IGNORE_EOS;
		answer_to(on.e, &a, &whole);
		ck_assert_uint_eq(whole.choice[0].n, 12);
		ck_assert_uint_eq(whole.choice[0].from, 0);
		for (uint32_t k = 1; k < 12; k++) {
			b = a;
			memcpy(b.prompt + n, whole.choice[0].tokens, k * sizeof(*b.prompt));
			b.r.n_prompt = n + k;
			b.r.max_tokens = 12 - k;
			answer_to(on.e, &b, &rest);
			ck_assert_uint_eq(rest.choice[0].n, 12 - k);
			ck_assert(!memcmp(rest.choice[0].tokens, whole.choice[0].tokens + k,
					  (12 - k) * sizeof(uint32_t)));
			answer_free(&rest);
		}
		answer_free(&whole);
	}
	end();
}
END_TEST

/* An answer that ends at once was not seen to, and the model went on to talk to itself. */
START_TEST(immediate_end_is_seen)
{
	struct asked a;
	struct answer got;

	begin(2);
	prompt_of(3, 20, &a, 30);
	a.r.sampler.n_bias = 1;
	a.bias[0] = (struct sampler_bias){ on.t.eot, 1000 };
	answer_to(on.e, &a, &got);
	ck_assert_uint_eq(got.choice[0].n, 1);
	ck_assert_uint_eq(got.choice[0].tokens[0], on.t.eot);
	ck_assert_int_eq(got.choice[0].finish, ENGINE_STOP);
	ck_assert_uint_eq(got.choice[0].n_text, 0);
	ck_assert_uint_eq(got.end.prompt_tokens, 20);
	answer_free(&got);
	/* With a least length it may not come before; then it does. */
	a.r.min_tokens = 5;
	answer_to(on.e, &a, &got);
	ck_assert_uint_eq(got.choice[0].n, 6);
	ck_assert_int_eq(got.choice[0].finish, ENGINE_STOP);
	answer_free(&got);
	/* Ignored, it is a token like others, all of them. */
	a.r.flags = ENGINE_IGNORE_EOS;
	a.r.min_tokens = 0;
	answer_to(on.e, &a, &got);
	ck_assert_uint_eq(got.choice[0].n, 30);
	ck_assert_int_eq(got.choice[0].finish, ENGINE_LENGTH);
	answer_free(&got);
	end();
}
END_TEST

/*
 * Special tokens have a text, which a detokeniser that runs before the stop check shows to the
 * client.
 */
START_TEST(special_tokens_have_no_text)
{
	struct asked a;
	struct answer got;

	begin(4);
	for (uint64_t i = 0; i < test_scaled(40); i++) {
		prompt_of(i, 10, &a, 40);
		a.r.flags = i % 2 ? ENGINE_IGNORE_EOS : 0;
		a.r.sampler.temperature = 1;
		a.r.sampler.seed = i;
		a.r.sampler.n_bias = 4;
		for (uint32_t k = 0; k < 4; k++)
			a.bias[k] = (struct sampler_bias){ on.t.vocab - 4 + k, 12 };
		answer_to(on.e, &a, &got);
		ck_assert(!got.choice[0].n_text || !strstr(got.choice[0].text, "<|"));
		answer_free(&got);
	}
	end();
}
END_TEST

/* Whole characters only, and nothing lost: what was told is what the tokens say together. */
START_TEST(text_is_what_the_tokens_say)
{
	const struct tokenizer *tok;
	struct asked a;
	struct answer got;

	begin(5);
	tok = engine_facts(on.e)->tokenizer;
	for (uint64_t i = 0; i < test_scaled(60); i++) {
		char text[8192];
		struct detok d;
		size_t n = 0;

		prompt_of(i, 10, &a, 40);
		a.r.flags = ENGINE_IGNORE_EOS;
		a.r.sampler.temperature = 8; /* any byte */
		a.r.sampler.seed = i;
		answer_to(on.e, &a, &got);
		detok_init(&d, tok);
		for (uint32_t k = 0; k < got.choice[0].n; k++)
			n += detok_push(&d, tok, got.choice[0].tokens[k], text + n);
		n += detok_flush(&d, text + n);
		ck_assert_uint_eq(got.choice[0].n_text, n);
		ck_assert(!memcmp(got.choice[0].text, text, n));
		answer_free(&got);
	}
	end();
}
END_TEST

/* ---- stop strings ---------------------------------------------------------------------------- */

/*
 * They were looked for at the end of what had been told: one inside a token was missed, and one
 * across tokens was shown in part. Whatever is cut from a text as a stop string, the answer is the
 * text before it.
 */
START_TEST(stop_strings_are_never_shown)
{
	uint64_t rng = test_seed("stop_strings_are_never_shown");
	struct asked a, b;
	struct answer whole, got;
	uint64_t inside = 0;

	begin(6);
	for (uint64_t i = 0; i < test_scaled(40); i++) {
		prompt_of(i, 10, &a, 40);
		a.r.flags = ENGINE_IGNORE_EOS;
		a.r.sampler.temperature = 1;
		a.r.sampler.seed = i;
		answer_to(on.e, &a, &whole);
		for (int k = 0; k < 10 && whole.choice[0].n_text > 8; k++) {
			const struct stream *w = &whole.choice[0];
			size_t at = test_random(&rng) % (w->n_text - 7);
			size_t len = 1 + test_random(&rng) % 7, first;
			uint32_t told = 0;

			b = a;
			b.r.n_stops = 1;
			b.stops[0].len = (uint32_t)len;
			memcpy(b.stop[0], w->text + at, len);
			first = (size_t)((char *)memmem(w->text, w->n_text, b.stop[0], len) -
					 w->text);
			answer_to(on.e, &b, &got);
			ck_assert_int_eq(got.choice[0].finish, ENGINE_STOP);
			ck_assert_uint_eq(got.choice[0].n_text, first);
			ck_assert(!first || !memcmp(got.choice[0].text, w->text, first));
			/* Up to the token that completes it, no further. */
			told = got.choice[0].n;
			ck_assert(!memcmp(got.choice[0].tokens, w->tokens,
					  told * sizeof(*w->tokens)));
			inside += first > 0;
			answer_free(&got);
		}
		answer_free(&whole);
	}
	ck_assert_uint_gt(inside, 0);
	end();
}
END_TEST

/* ---- from one request to the next ------------------------------------------------------------ */

/* Positions ran on over requests until the context was full and the server died, after 200 of them.
 */
START_TEST(positions_begin_anew)
{
	struct asked a, b;
	struct answer first, got;

	begin(7);
	prompt_of(1, 100, &a, 20);
	answer_to(on.e, &a, &first);
	for (uint32_t i = 0; i < 300; i++) {
		prompt_of(i + 2, 1 + i % 100, &b, 1 + i % 20);
		answer_to(on.e, &b, &got);
		ck_assert_int_eq(got.end.err, 0);
		answer_free(&got);
	}
	answer_to(on.e, &a, &got);
	same(&first, &got);
	answer_free(&got);
	answer_free(&first);
	end();
}
END_TEST

/* The history that penalties look at, a seed or a temperature stayed for the next request. */
START_TEST(sampler_state_does_not_leak)
{
	struct asked odd, plain, seeded;
	struct answer want[3], got;

	begin(8);
	prompt_of(1, 30, &odd, 30);
	odd.r.sampler = (struct sampler_params){ .temperature = 1.5f,
						 .top_k = 7,
						 .top_p = 0.8f,
						 .repetition = 1.8f,
						 .frequency = 1,
						 .presence = 1,
						 .n_bias = 1,
						 .seed = 9 };
	odd.bias[0] = (struct sampler_bias){ 70, 5 };
	prompt_of(2, 30, &plain, 30);
	prompt_of(2, 30, &seeded, 30);
	seeded.r.sampler.temperature = 1;
	seeded.r.sampler.repetition = 1.3f;
	seeded.r.sampler.seed = 10;
	answer_to(on.e, &plain, &want[0]);
	answer_to(on.e, &seeded, &want[1]);
	answer_to(on.e, &odd, &want[2]);
	for (int i = 0; i < 3; i++) {
		answer_to(on.e, &plain, &got);
		same(&want[0], &got);
		answer_free(&got);
		answer_to(on.e, &odd, &got);
		same(&want[2], &got);
		answer_free(&got);
		answer_to(on.e, &seeded, &got);
		same(&want[1], &got);
		answer_free(&got);
	}
	for (int i = 0; i < 3; i++)
		answer_free(&want[i]);
	end();
}
END_TEST

/* A prefix computed for one principal was found by another. */
START_TEST(prefixes_stay_with_their_principal)
{
	struct asked a;
	struct answer got;

	begin(9);
	prompt_of(1, 100, &a, 4);
	a.r.principal = (struct kv_principal){ .tenant = 1, .uid = 1000 };
	answer_to(on.e, &a, &got);
	ck_assert_uint_eq(got.end.cached_tokens, 0);
	answer_free(&got);
	answer_to(on.e, &a, &got);
	ck_assert_uint_eq(got.end.cached_tokens, 96);
	answer_free(&got);
	a.r.principal.uid = 1001;
	answer_to(on.e, &a, &got);
	ck_assert_uint_eq(got.end.cached_tokens, 0);
	answer_free(&got);
	a.r.principal = (struct kv_principal){ .tenant = 2, .uid = 1000 };
	answer_to(on.e, &a, &got);
	ck_assert_uint_eq(got.end.cached_tokens, 0);
	answer_free(&got);
	end();
}
END_TEST

/* Penalties were accepted and ignored, or looked at too little. */
START_TEST(penalties_are_honoured)
{
	struct asked a;
	struct answer got;
	bool seen[1024] = { false };

	begin(10);
	ck_assert_uint_le(on.t.vocab, 1024);
	prompt_of(1, 30, &a, 48);
	a.r.flags = ENGINE_IGNORE_EOS;
	a.r.sampler.presence = 100000;
	answer_to(on.e, &a, &got);
	for (uint32_t i = 0; i < 30; i++)
		seen[a.prompt[i]] = true;
	for (uint32_t i = 0; i < got.choice[0].n; i++) {
		ck_assert_msg(!seen[got.choice[0].tokens[i]], "token %u was there before", i);
		seen[got.choice[0].tokens[i]] = true;
	}
	answer_free(&got);
	/* Looking at one token only, a repetition of two is possible, of one is not. */
	a.r.last_n = 1;
	answer_to(on.e, &a, &got);
	ck_assert_uint_ne(got.choice[0].tokens[0], a.prompt[29]);
	for (uint32_t i = 1; i < got.choice[0].n; i++)
		ck_assert_uint_ne(got.choice[0].tokens[i], got.choice[0].tokens[i - 1]);
	answer_free(&got);
	end();
}
END_TEST

/* ---- ties ------------------------------------------------------------------------------------ */

/*
 * Of equal logits the one won that a thread met first. Each pair of rows is the same: the even one
 * wins.
 */
START_TEST(ties_go_to_the_lowest_id)
{
	struct engine_options o = { .slots = 4 };
	struct asked a;
	struct answer got;

	model_make(11);
	for (uint32_t v = 1; v < on.t.vocab; v += 2)
		memcpy(on.t.embed + (size_t)v * on.t.hidden,
		       on.t.embed + (size_t)(v - 1) * on.t.hidden,
		       on.t.hidden * sizeof(*on.t.embed));
	model_serve(&o);
	for (uint32_t i = 0; i < 20; i++) {
		prompt_of(i, 5 + i, &a, 40);
		a.r.flags = ENGINE_IGNORE_EOS | (i % 2 ? ENGINE_LOGPROBS : 0);
		a.r.n_top = i % 2;
		a.r.sampler.top_k = i % 3;
		answer_to(on.e, &a, &got);
		for (uint32_t k = 0; k < 40; k++)
			ck_assert_uint_eq(got.choice[0].tokens[k] % 2, 0);
		answer_free(&got);
		/* The best alone, drawn: the same. */
		a.r.sampler.top_k = 1;
		a.r.sampler.temperature = 1;
		answer_to(on.e, &a, &got);
		for (uint32_t k = 0; k < 40; k++)
			ck_assert_uint_eq(got.choice[0].tokens[k] % 2, 0);
		answer_free(&got);
	}
	end();
}
END_TEST

/* ---- limits and errors ----------------------------------------------------------------------- */

static int refused(struct asked *a)
{
	on.why[0] = 0;
	return engine_start(on.e, 0, asked_request(a), on.why, sizeof(on.why));
}

/*
 * A prompt as long as the context crashed; memory was sized to the answer the server had been
 * started for.
 */
START_TEST(context_limit_is_a_clean_error)
{
	struct engine_options o = { .slots = 2, .positions = 128 };
	struct asked a;
	struct answer got;

	model_make(12);
	model_serve(&o);
	for (uint32_t n = 128; n <= 160; n += 16) {
		prompt_of(1, n, &a, 1);
		ck_assert_int_eq(refused(&a), -EMSGSIZE);
		ck_assert(*on.why);
	}
	for (uint32_t n = 127; n > 120; n--) {
		prompt_of(1, n, &a, 48);
		a.r.flags = ENGINE_IGNORE_EOS;
		answer_to(on.e, &a, &got);
		ck_assert_int_eq(got.end.err, 0);
		/* The last token is told and needs no place. */
		ck_assert_msg(got.choice[0].n == 128 - n || got.choice[0].n == 129 - n,
			      "%u tokens behind %u", got.choice[0].n, n);
		ck_assert_int_eq(got.choice[0].finish, ENGINE_LENGTH);
		answer_free(&got);
	}
	end();
}
END_TEST

/* A failure returned 1, which was taken for the token 1. */
START_TEST(errors_are_not_tokens)
{
	struct asked a;
	struct answer got;

	begin(13);
	prompt_of(1, 10, &a, 5);
	a.prompt[9] = on.t.vocab;
	ck_assert_int_eq(refused(&a), -EINVAL);
	ck_assert(*on.why);
	a.prompt[9] = UINT32_MAX;
	ck_assert_int_eq(refused(&a), -EINVAL);
	a.prompt[9] = 1;
	a.r.sampler.n_bias = 1;
	a.bias[0] = (struct sampler_bias){ on.t.vocab, 1 };
	ck_assert_int_eq(refused(&a), -EINVAL);
	a.r.sampler.n_bias = 0;
	a.r.max_tokens = 0;
	ck_assert_int_eq(refused(&a), -EINVAL);
	a.r.max_tokens = 5;
	a.r.n_prompt = 0;
	ck_assert_int_eq(refused(&a), -EINVAL);
	a.r.n_prompt = 10;
	answer_to(on.e, &a, &got);
	ck_assert_int_eq(got.end.err, 0);
	answer_free(&got);
	end();
}
END_TEST

/* Arithmetic that leaves its range ends that request by name; its neighbours do not notice. */
START_TEST(overflow_is_an_error_of_its_request)
{
	struct engine_options o = { .slots = 2 };
	struct asked bad, good;
	struct answer want, got[2];
	struct pace pace = { 2, 0, 0, 0, false };
	struct asked both[2];
	uint64_t rng = 1;

	model_make(14);
	/* One token of which the square of the length is beyond binary32. */
	for (uint32_t i = 0; i < on.t.hidden; i++)
		on.t.embed[(size_t)5 * on.t.hidden + i] = 0x1p80f;
	model_serve(&o);
	prompt_of(1, 20, &good, 30);
	for (uint32_t i = 0; i < 20; i++)
		good.prompt[i] = good.prompt[i] == 5 ? 6 : good.prompt[i];
	good.r.sampler.n_bias = 1;
	good.bias[0] = (struct sampler_bias){ 5, -INFINITY };
	bad = good;
	bad.prompt[7] = 5;
	answer_to(on.e, &good, &want);
	ck_assert_int_eq(want.end.err, 0);
	both[0] = bad;
	both[1] = good;
	answers_to(on.e, both, NULL, 2, &pace, &rng, got);
	ck_assert_int_eq(got[0].end.err, -EDOM);
	ck_assert_uint_eq(got[0].choice[0].n, 0);
	same(&want, &got[1]);
	answer_free(&got[0]);
	answer_free(&got[1]);
	/* Nor who comes next. */
	answer_to(on.e, &good, &got[0]);
	same(&want, &got[0]);
	answer_free(&got[0]);
	answer_free(&want);
	end();
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("traps");
	TCase *t = tcase_create("traps");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 600);
	tcase_add_test(t, first_token_is_delivered);
	tcase_add_test(t, immediate_end_is_seen);
	tcase_add_test(t, special_tokens_have_no_text);
	tcase_add_test(t, text_is_what_the_tokens_say);
	tcase_add_test(t, stop_strings_are_never_shown);
	tcase_add_test(t, positions_begin_anew);
	tcase_add_test(t, sampler_state_does_not_leak);
	tcase_add_test(t, prefixes_stay_with_their_principal);
	tcase_add_test(t, penalties_are_honoured);
	tcase_add_test(t, ties_go_to_the_lowest_id);
	tcase_add_test(t, context_limit_is_a_clean_error);
	tcase_add_test(t, errors_are_not_tokens);
	tcase_add_test(t, overflow_is_an_error_of_its_request);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

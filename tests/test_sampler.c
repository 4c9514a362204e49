/* SPDX-License-Identifier: MIT */
/*
 * The sampler against a slow one that is written here from the contract's text: it sorts
 * everything, multiplies by hand, and shares no code with the engine's. Then what the text implies
 * and what has gone wrong elsewhere (traps 7, 26, 27).
 */
#include <check.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "float_ops.h"
#include "lib_core.h"
#include "lib_tiny.h"
#include "sampler.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define MAX	 3000u

typedef unsigned __int128 wide;

static const struct sampler_params plain = { .temperature = 1, .top_p = 1, .repetition = 1 };

/* n at ONEBIT_SCALE = 100 percent, which is the default; at least 1. */
static unsigned scaled(unsigned n)
{
	const char *s = getenv("ONEBIT_SCALE");
	unsigned long percent = s ? strtoul(s, NULL, 0) : 100;

	return n * percent / 100 ? (unsigned)(n * percent / 100) : 1;
}

static uint64_t seed;
static struct float_ops ops;

static uint32_t below(uint32_t n)
{
	return (uint32_t)((tiny_random(&seed) >> 32) * n >> 32);
}

/* In (0, 1). */
static double unit(void)
{
	return ((double)(tiny_random(&seed) >> 11) + 0.5) * 0x1p-53;
}

static double normal(void)
{
	return sqrt(-2 * log(unit())) * cos(6.283185307179586 * unit());
}

static float of_bits(uint32_t b)
{
	float x;

	memcpy(&x, &b, sizeof(x));
	return x;
}

/* ---- the contract once more ------------------------------------------------------------------ */

static float ref_exp2(float x)
{
	float n, f, p;
	uint32_t b;

	if (x < -100)
		return 0;
	x = x > 126 ? 126 : x;
	n = nearbyintf(x);
	f = x - n;
	p = of_bits(0x392385a5);
	p = fmaf(p, f, of_bits(0x3aafb93b));
	p = fmaf(p, f, of_bits(0x3c1d9387));
	p = fmaf(p, f, of_bits(0x3d635739));
	p = fmaf(p, f, of_bits(0x3e75fdf1));
	p = fmaf(p, f, of_bits(0x3f317219));
	p = fmaf(p, f, of_bits(0x3f800000));
	memcpy(&b, &p, sizeof(b));
	return of_bits(b + (uint32_t)(int)n * 0x800000u);
}

static double ref_ln(double x)
{
	int e;
	double m = frexp(x, &e), s, z, h = 0;

	if (m < sqrt(0.5)) {
		m *= 2;
		e--;
	}
	s = (m - 1) / (m + 1);
	z = s * s;
	for (int n = 21; n > 0; n -= 2)
		h = n == 21 ? 1.0 / 21 : fma(h, z, 1.0 / n);
	return fma(e, 0x1.62e42fefa39efp-1, 2 * s * h);
}

struct ranked {
	float z, e;
	uint32_t id;
	uint64_t w;
};

static int by_rank(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->z != y->z)
		return x->z > y->z ? -1 : 1;
	return x->id < y->id ? -1 : 1;
}

static int by_id(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

/* The high part of u * w, in digits of 32 bits. */
static wide ref_share(uint64_t u, wide w)
{
	uint64_t digit[5] = { 0 }, a[2] = { u & 0xffffffff, u >> 32 };

	for (unsigned i = 0; i < 2; i++) {
		uint64_t carry = 0;

		for (unsigned j = 0; j < 3; j++) {
			uint64_t t = a[i] * (uint32_t)(w >> (32 * j)) + digit[i + j] + carry;

			digit[i + j] = t & 0xffffffff;
			carry = t >> 32;
		}
		digit[i + 3 > 4 ? 4 : i + 3] += carry;
	}
	return (wide)digit[4] << 64 | (wide)digit[3] << 32 | digit[2];
}

static struct ranked rank[MAX];
static uint32_t n_rank;

/* The survivors in the order of their ids, and the sum of their weights. */
static wide ref_survivors(const float *z, uint32_t vocab, const struct sampler_params *p,
			  const uint64_t *allowed)
{
	float max, k;
	wide sum = 0, run = 0;
	uint32_t n = 0;

	for (uint32_t i = 0; i < vocab; i++)
		if ((!allowed || allowed[i / 64] >> i % 64 & 1) && z[i] > -INFINITY)
			rank[n++] = (struct ranked){ .z = z[i] + 0.0f, .id = i };
	n_rank = n;
	if (!n)
		return 0;
	qsort(rank, n, sizeof(*rank), by_rank);
	max = rank[0].z;
	k = p->temperature > 0 ? (float)(1.4426950408889634 / (double)p->temperature) : INFINITY;
	if (k == INFINITY) {
		n_rank = 1;
		rank[0].w = 1;
		return 1;
	}
	for (uint32_t i = 0; i < n; i++) {
		rank[i].e = ref_exp2((rank[i].z - max) * k);
		rank[i].w = (uint64_t)floor((double)rank[i].e * 70368744177664.0);
	}
	if (p->top_k && p->top_k < n)
		n = p->top_k;
	n_rank = 0;
	for (uint32_t i = 0; i < n; i++)
		if (p->min_p <= 0 || rank[i].e >= p->min_p)
			rank[n_rank++] = rank[i];
	n = n_rank;
	for (uint32_t i = 0; i < n; i++)
		sum += rank[i].w;
	if (p->top_p < 1) {
		double t = (double)p->top_p * (double)sum;
		wide target = t < 1 ? 1 : (wide)t;

		for (n = 0; run < target; n++)
			run += rank[n].w;
		sum = run;
	}
	n_rank = n;
	qsort(rank, n, sizeof(*rank), by_id);
	return sum;
}

static int ref_draw(wide sum, uint64_t u, uint32_t *token)
{
	wide r = ref_share(u, sum), run = 0;

	for (uint32_t i = 0; i < n_rank; i++) {
		run += rank[i].w;
		if (run > r) {
			*token = rank[i].id;
			return 0;
		}
	}
	return -ENOENT;
}

/* ---- random cases ---------------------------------------------------------------------------- */

static const uint32_t sizes[] = { 1, 2, 3, 5, 15, 63, 64, 65, 127, 128, 129, 192, 500, 1000, MAX };
static const float temperatures[] = { 0,     -1,    0x1p-149f, 4e-39f, 5e-39f, 1e-30f,
				      1e-6f, 0.01f, 0.5f,      0.8f,   1,      1,
				      1,     2,	    100,       1e30f,  FLT_MAX };
static const float top_ps[] = { -1,    0,	0x1p-149f,    1e-9f, 0.1f, 0.5f, 0.9f,
				0.99f, 0.9999f, 1 - 0x1p-24f, 1,     1,	   1,	 2 };
static const float min_ps[] = { -1,	  0,	 0,	0,    0x1p-149f,    1e-20f,
				0x1p-46f, 1e-4f, 0.05f, 0.5f, 1 - 0x1p-24f, 1 };
static const float spreads[] = {
	0, 1e-40f, 1e-7f, 0.01f, 0.3f, 1, 3, 3, 10, 100, 1e6f, 1e30f, 1e38f
};

static void random_logits(float *z, uint32_t n)
{
	float spread = spreads[below(COUNT(spreads))];
	unsigned kind = below(6), steps = 1 + below(8);

	for (uint32_t i = 0; i < n; i++) {
		double x = normal();

		if (kind == 0) /* ties */
			x = rint(x * steps) / steps;
		else if (kind == 1) /* some far above, and their ties */
			x = below(20) ? x : 6 + below(2);
		else if (kind == 2) /* all differences small beside the size */
			x = 100 + x * 1e-6;
		x *= (double)spread;
		z[i] = x > FLT_MAX ? FLT_MAX : x < -FLT_MAX ? -FLT_MAX : (float)x;
		if (kind == 3 && !below(3))
			z[i] = below(2) ? -0.0f : 0.0f;
		if (kind == 4 && !below(3))
			z[i] = -INFINITY; /* as a bias makes it */
	}
}

static void random_params(struct sampler_params *p, uint32_t vocab)
{
	const uint32_t some = 1 + below(vocab), few = 1 + below(40);
	const uint32_t ks[] = { 0, 0, 1, 2, 3, vocab - 1,
				vocab, vocab + 1, UINT32_MAX, some, few };

	*p = plain;
	p->temperature = below(2) ? (float)(2 * unit()) : temperatures[below(COUNT(temperatures))];
	p->top_k = ks[below(COUNT(ks))];
	p->top_p = top_ps[below(COUNT(top_ps))];
	p->min_p = min_ps[below(COUNT(min_ps))];
}

static const uint64_t *random_mask(uint64_t *mask, uint32_t vocab)
{
	unsigned kind = below(6);

	if (kind < 3)
		return NULL;
	for (uint32_t i = 0; i < MAX / 64 + 1; i++) {
		uint64_t a = tiny_random(&seed), b = tiny_random(&seed);

		/* Bits beyond the vocabulary mean nothing. */
		mask[i] = kind == 3 ? a | b : below(4) ? 0 : a & b;
	}
	if (kind == 5)
		mask[below(vocab) / 64] |= UINT64_C(1) << below(64);
	return mask;
}

/* Where a running sum ends and the next begins, and the ends of all. */
static uint64_t random_u(wide sum)
{
	wide run = 0, u;

	switch (below(4)) {
	case 0:
		return below(2) ? 0 : UINT64_MAX;
	case 1:
		return tiny_random(&seed);
	default:
		if (!n_rank || !sum || sum >> 63)
			return tiny_random(&seed);
		for (uint32_t i = 0, n = below(n_rank + 1); i < n; i++)
			run += rank[i].w;
		u = (run << 64) / sum + below(3) - 1; /* just not r = run, just, or just more */
		return u >> 64 ? UINT64_MAX * (run > 0) : (uint64_t)u;
	}
}

/* A word of the contract read differently gives another token somewhere: each limit, tie, mask. */
START_TEST(reference)
{
	struct sampler_scratch *s = sampler_scratch_new(MAX, &ops);
	uint64_t mask[MAX / 64 + 1];
	unsigned none = 0, single = 0;

	seed = core_seed("reference");
	ck_assert(s);
	for (unsigned round = 0; round < scaled(20000); round++) {
		uint32_t vocab = sizes[below(round % 8 ? COUNT(sizes) - 3 : COUNT(sizes))];
		/* No more than is there, and aligned as floats are and no better. */
		float *at = malloc((vocab + 3) * sizeof(*at)), *z = at + 3;
		struct sampler_params p;
		const uint64_t *allowed = random_mask(mask, vocab);
		wide sum;

		random_logits(z, vocab);
		random_params(&p, vocab);
		sum = ref_survivors(z, vocab, &p, allowed);
		none += !n_rank;
		single += n_rank == 1;
		for (unsigned i = 0; i < 6; i++) {
			uint32_t want = 77, got = 77;
			uint64_t u = random_u(sum);
			int r = ref_draw(sum, u, &want);

			if (sampler_draw_at(z, vocab, &p, allowed, u, s, &got) != r || got != want)
				ck_abort_msg("round %u: %u tokens, T %a, k %u, p %a, min %a, "
					     "u %#llx: %u, not %u",
					     round, vocab, (double)p.temperature, p.top_k,
					     (double)p.top_p, (double)p.min_p,
					     (unsigned long long)u, got, want);
		}
		free(at);
	}
	printf("reference: %u times none was allowed, %u times one survived\n", none, single);
	sampler_scratch_free(s);
}
END_TEST

/* Longer rows, where blocks are skipped and tails are heavy, in every mode. */
START_TEST(large)
{
	static const struct sampler_params modes[] = {
		{ .temperature = 0.8f, .top_k = 40, .top_p = 1 },
		{ .temperature = 0.8f, .top_k = 300, .top_p = 0.95f, .min_p = 1e-3f },
		{ .temperature = 1, .top_k = 2900, .top_p = 1 },
		{ .temperature = 1, .top_p = 0.9f },
		{ .temperature = 1, .top_p = 1 - 0x1p-24f },
		{ .temperature = 1, .top_p = 0.9f, .min_p = 0.05f },
		{ .temperature = 1, .top_p = 1, .min_p = 0.01f },
		{ .temperature = 1, .top_p = 1 },
		{ .temperature = 0, .top_p = 1 },
	};
	struct sampler_scratch *s = sampler_scratch_new(MAX, &ops);
	static float z[MAX];

	seed = core_seed("large");
	for (unsigned round = 0; round < scaled(300); round++) {
		double spread = 0.2 * pow(60, unit());

		for (uint32_t i = 0; i < MAX; i++)
			z[i] = (float)(spread * normal());
		/* Half of the mass beyond what top-p looks at first. */
		for (uint32_t i = 0; round % 3 == 0 && i < MAX; i++)
			z[i] = i == 1234 ? 12.0f : (float)(0.3 * normal());
		for (unsigned m = 0; m < COUNT(modes); m++) {
			wide sum = ref_survivors(z, MAX, &modes[m], NULL);

			for (unsigned i = 0; i < 4; i++) {
				uint32_t want = 77, got = 78;
				uint64_t u = random_u(sum);

				ck_assert_int_eq(ref_draw(sum, u, &want), 0);
				sampler_draw_at(z, MAX, &modes[m], NULL, u, s, &got);
				if (got != want)
					ck_abort_msg("round %u, mode %u: %u, not %u", round, m, got,
						     want);
			}
		}
	}
	sampler_scratch_free(s);
}
END_TEST

/* 2^18 equal weights are 2^64: in 64 bits their sum is nothing, and every draw the first token. */
START_TEST(sums_beyond_64_bits)
{
	static const uint32_t vocabs[] = { 1u << 18, 1u << 20 };
	struct sampler_scratch *s = sampler_scratch_new(SAMPLER_VOCAB_MAX, &ops);
	float *z = calloc(SAMPLER_VOCAB_MAX, sizeof(*z));
	struct sampler_params p = plain;
	uint32_t token;
	float lp;

	ck_assert(s && z);
	for (unsigned v = 0; v < COUNT(vocabs); v++) {
		for (unsigned i = 0; i < 9; i++) {
			uint64_t u = i == 8 ? UINT64_MAX : (uint64_t)i << 61;
			uint32_t want = (uint32_t)((wide)u * vocabs[v] >> 64);

			p.top_p = 1;
			ck_assert_int_eq(sampler_draw_at(z, vocabs[v], &p, NULL, u, s, &token), 0);
			ck_assert_uint_eq(token, want);
			/* Half of them is the half with the lower ids. */
			p.top_p = 0.5f;
			ck_assert_int_eq(sampler_draw_at(z, vocabs[v], &p, NULL, u, s, &token), 0);
			ck_assert_uint_eq(token, (uint32_t)((wide)u * (vocabs[v] / 2) >> 64));
		}
		sampler_logprobs(z, vocabs[v], 5, &lp, NULL, 0, s);
		ck_assert(fabs((double)lp + log(vocabs[v])) < 1e-6);
	}
	free(z);
	sampler_scratch_free(s);
}
END_TEST

/* ---- penalties and faults -------------------------------------------------------------------- */

/* Adjustments in another order are other logits, and the same request has another answer. */
START_TEST(adjustments)
{
	float z[6] = { 2, -2, 0, 5, -0.0f, 1 };
	const struct sampler_seen seen[] = { { 0, 3 }, { 1, 1 }, { 2, 7 }, { 4, 1 } };
	const struct sampler_bias bias[] = { { 0, 0.5f }, { 3, -INFINITY }, { 5, -1 } };
	struct sampler_params p = plain;
	uint32_t faults = 0;

	p.repetition = 1.3f;
	p.frequency = 0.1f;
	p.presence = 0.25f;
	p.bias = bias;
	p.n_bias = COUNT(bias);
	sampler_adjust(z, 6, &p, seen, COUNT(seen), &faults);
	ck_assert_uint_eq(faults, 0);
	ck_assert(z[0] == 2 / 1.3f - 3.0f * 0.1f - 0.25f + 0.5f);
	ck_assert(z[1] == -2 * 1.3f - 1.0f * 0.1f - 0.25f);
	ck_assert(z[2] == 0 - 7.0f * 0.1f - 0.25f);
	ck_assert(z[3] == -INFINITY);
	ck_assert(z[4] == 0 - 0.1f - 0.25f);
	ck_assert(z[5] == 0);

	/* Nothing asked, nothing changed. */
	memcpy(z, (float[]){ 1, -1, 1e-40f, 3e38f, -3e38f, 0 }, sizeof(z));
	sampler_adjust(z, 6, &plain, seen, COUNT(seen), &faults);
	ck_assert_uint_eq(faults, 0);
	ck_assert_mem_eq(z, ((float[]){ 1, -1, 1e-40f, 3e38f, -3e38f, 0 }), sizeof(z));
}
END_TEST

/* A fault that is not counted reaches a client as a token; one drawn from must not end us. */
START_TEST(faults_counted)
{
	static const float bad[] = { NAN, -NAN, INFINITY, -INFINITY };
	static float z[MAX];
	const struct sampler_seen seen[] = { { 0, 1 } };
	struct sampler_bias bias[2] = { { 0, 3e38f }, { 1, -INFINITY } };
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(MAX, &ops);
	uint32_t n;

	for (uint32_t vocab = 1; vocab < 140; vocab++)
		for (uint32_t at = 0; at < vocab; at++) {
			memset(z, 0, sizeof(z));
			z[at] = bad[at % 4];
			n = 0;
			sampler_adjust(z, vocab, &plain, seen, 1, &n);
			if (n != 1)
				ck_abort_msg("%g at %u of %u: %u", (double)bad[at % 4], at, vocab,
					     n);
		}
	/* Made by an adjustment: counted, unless it is -infinity. */
	z[0] = 3e38f;
	z[1] = 1;
	p.bias = bias;
	p.n_bias = 2;
	n = 0;
	sampler_adjust(z, 2, &p, NULL, 0, &n);
	ck_assert_uint_eq(n, 1);
	ck_assert(z[1] == -INFINITY);
	z[0] = -3e38f;
	z[1] = NAN;
	bias[0].bias = 0;
	p.repetition = 10;
	n = 0;
	sampler_adjust(z, 2, &p, seen, 1, &n);
	ck_assert_uint_eq(n, 1);
	ck_assert(z[0] == -INFINITY);

	seed = core_seed("faults");
	for (unsigned round = 0; round < scaled(20000); round++) {
		uint32_t vocab = 1 + below(200), token = 0, got;
		struct sampler_top top[5];
		float lp;

		for (uint32_t i = 0; i < vocab; i++)
			if (round % 2)
				z[i] = of_bits((uint32_t)tiny_random(&seed));
			else
				z[i] = below(2) ? bad[below(4)] : 1;
		random_params(&p, vocab);
		if (!sampler_draw_at(z, vocab, &p, NULL, tiny_random(&seed), s, &token))
			ck_assert(token < vocab);
		got = sampler_logprobs(z, vocab, below(vocab), &lp, top, 5, s);
		ck_assert_uint_le(got, 5);
		for (uint32_t i = 0; i < got; i++)
			ck_assert_uint_lt(top[i].token, vocab);
	}
	sampler_scratch_free(s);
}
END_TEST

/* ---- traps ----------------------------------------------------------------------------------- */

/* Trap 7: of equal logits the lowest id, wherever they lie; +0 and -0 are equal. */
START_TEST(trap_7_ties_lowest_id)
{
	static float z[300];
	struct sampler_scratch *s = sampler_scratch_new(300, &ops);
	struct sampler_params p = plain, first = plain;
	uint32_t token;

	p.temperature = 0;
	first.top_k = 1;
	for (uint32_t i = 0; i < 300; i++)
		for (uint32_t j = i; j < 300; j += 1 + j % 7) {
			for (unsigned k = 0; k < 300; k++)
				z[k] = -1;
			z[i] = -0.0f;
			z[j] = i == j ? -0.0f : 0.0f;
			if (sampler_draw_at(z, 300, &p, NULL, UINT64_MAX, s, &token) || token != i)
				ck_abort_msg("argmax of %u and %u: %u", i, j, token);
			if (sampler_draw_at(z, 300, &first, NULL, UINT64_MAX, s, &token) ||
			    token != i)
				ck_abort_msg("top 1 of %u and %u: %u", i, j, token);
		}
	sampler_scratch_free(s);
}
END_TEST

/* Trap 26: r = 0 is the first token that has a weight, not token 0; r at its most is the last. */
START_TEST(trap_26_ends_of_r)
{
	float z[] = { -INFINITY, -200, 3, 1, 2, -200, -INFINITY };
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(7, &ops);
	uint32_t token;

	for (unsigned way = 0; way < 4; way++) {
		p.top_k = way & 1 ? 5 : 0;
		p.top_p = way & 2 ? 0.99999f : 1;
		ck_assert_int_eq(sampler_draw_at(z, 7, &p, NULL, 0, s, &token), 0);
		ck_assert_uint_eq(token, 2);
		ck_assert_int_eq(sampler_draw_at(z, 7, &p, NULL, UINT64_MAX, s, &token), 0);
		ck_assert_uint_eq(token, 4);
	}
	sampler_scratch_free(s);
}
END_TEST

/* Trap 26: a token that was said five times is punished by repetition once. */
START_TEST(trap_26_penalty_once)
{
	const struct sampler_seen seen[] = { { 0, 5 }, { 1, 1 } };
	float z[3] = { 8, -8, 4 };
	struct sampler_params p = plain;
	uint32_t faults = 0;

	p.repetition = 2;
	sampler_adjust(z, 3, &p, seen, 2, &faults);
	ck_assert(z[0] == 4 && z[1] == -16 && z[2] == 4 && !faults);
}
END_TEST

/* Trap 26: of ties at the end of top-k those with the lower ids stay. */
START_TEST(trap_26_top_k_ties)
{
	static float z[300];
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(300, &ops);
	uint32_t token;

	for (uint32_t i = 0; i < 300; i++)
		z[i] = i == 250 ? 1 : 0;
	for (uint32_t k = 2; k < 300; k++) {
		/* 250, and the k - 1 lowest others. */
		p.top_k = k;
		ck_assert_int_eq(sampler_draw_at(z, 300, &p, NULL, UINT64_MAX, s, &token), 0);
		ck_assert_uint_eq(token, k <= 251 ? 250 : k - 1);
		ck_assert_int_eq(sampler_draw_at(z, 300, &p, NULL, 0, s, &token), 0);
		ck_assert_uint_eq(token, 0);
	}
	sampler_scratch_free(s);
}
END_TEST

/* Trap 26: the lower the temperature, the more it is argmax; where k is infinite, too. */
START_TEST(trap_26_temperature_to_zero)
{
	static float z[500];
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(500, &ops);
	uint32_t want, token;

	seed = core_seed("temperature");
	for (unsigned round = 0; round < 50; round++) {
		for (uint32_t i = 0; i < 500; i++)
			z[i] = (float)normal();
		p.temperature = 0;
		ck_assert_int_eq(sampler_draw(z, 500, &p, NULL, round, 0, s, &want), 0);
		for (float t = 1e-8f; t > 0; t *= 0.1f) {
			p.temperature = t;
			ck_assert_int_eq(sampler_draw(z, 500, &p, NULL, round, 0, s, &token), 0);
			ck_assert_uint_eq(token, want);
		}
		p.temperature = 0x1p-149f;
		ck_assert_int_eq(sampler_draw(z, 500, &p, NULL, round, 0, s, &token), 0);
		ck_assert_uint_eq(token, want);
	}
	sampler_scratch_free(s);
}
END_TEST

/* Trap 26: a draw depends on both halves of the seed, the index, the choice, and nothing else. */
START_TEST(trap_26_seed)
{
	static float z[1000];
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(1000, &ops), *other = sampler_scratch_new(2000, &ops);
	unsigned same[4] = { 0 };

	for (uint32_t i = 0; i < 1000; i++)
		z[i] = (float)(i % 10) * 0.01f;
	for (uint32_t i = 0; i < 1000; i++) {
		uint32_t a, b;

		p.seed = i;
		ck_assert_int_eq(sampler_draw(z, 1000, &p, NULL, i, 3, s, &a), 0);
		ck_assert_int_eq(sampler_draw(z, 1000, &p, NULL, i, 3, other, &b), 0);
		ck_assert_uint_eq(a, b);
		sampler_draw(z, 1000, &p, NULL, i + 1, 3, s, &b);
		same[0] += a == b;
		sampler_draw(z, 1000, &p, NULL, i, 4, s, &b);
		same[1] += a == b;
		p.seed = i ^ 1;
		sampler_draw(z, 1000, &p, NULL, i, 3, s, &b);
		same[2] += a == b;
		p.seed = i | UINT64_C(1) << 32;
		sampler_draw(z, 1000, &p, NULL, i, 3, s, &b);
		same[3] += a == b;
	}
	for (unsigned i = 0; i < 4; i++)
		ck_assert_uint_lt(same[i], 10); /* 1 is to be expected */
	sampler_scratch_free(s);
	sampler_scratch_free(other);
}
END_TEST

/* Trap 27: an error is no token: where nothing is allowed the token is not touched. */
START_TEST(trap_27_error_is_no_token)
{
	float z[70] = { 0 };
	uint64_t none[2] = { 0, UINT64_MAX << 6 }; /* allowed beyond the end only */
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(70, &ops);
	uint32_t token = 12345;

	for (unsigned i = 0; i < 2; i++) {
		p.temperature = (float)i;
		ck_assert_int_eq(sampler_draw(z, 70, &p, none, 0, 0, s, &token), -ENOENT);
		ck_assert_uint_eq(token, 12345);
	}
	for (unsigned i = 0; i < 70; i++)
		z[i] = -INFINITY;
	ck_assert_int_eq(sampler_draw(z, 70, &p, NULL, 0, 0, s, &token), -ENOENT);
	none[1] = 1;
	ck_assert_int_eq(sampler_draw(z, 70, &p, none, 0, 0, s, &token), -ENOENT);
	ck_assert_uint_eq(token, 12345);
	z[64] = -1e30f;
	ck_assert_int_eq(sampler_draw(z, 70, &p, none, 0, 0, s, &token), 0);
	ck_assert_uint_eq(token, 64);
	sampler_scratch_free(s);
}
END_TEST

/* top_p = 0 is a way to ask for greedy: it keeps one token, the likeliest, the lowest of ties. */
START_TEST(top_p_zero)
{
	float z[] = { 1, 4, 3.99999f, 4, 2 };
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(5, &ops);
	uint32_t token;

	p.top_p = 0;
	p.temperature = 100;
	for (uint32_t i = 0; i < 200; i++) {
		p.top_k = i % 6;
		ck_assert_int_eq(sampler_draw(z, 5, &p, NULL, i, 0, s, &token), 0);
		ck_assert_uint_eq(token, 1);
	}
	sampler_scratch_free(s);
}
END_TEST

/*
 * The sum that top-p asks for is cut to an integer, not rounded: p times the sum of both weights is
 * 2^46 and 0.625, so the likelier token, 2^46, is enough.
 */
START_TEST(top_p_is_cut)
{
	const float z[] = { -0x1.9ef21ep-1f, 0 };
	struct sampler_params p = plain;
	struct sampler_scratch *s = sampler_scratch_new(2, &ops);
	uint32_t token;

	p.top_p = 0x1.62687ep-1f;
	ck_assert_int_eq(sampler_draw_at(z, 2, &p, NULL, 0, s, &token), 0);
	ck_assert_uint_eq(token, 1);
	p.top_p = nextafterf(p.top_p, 1);
	ck_assert_int_eq(sampler_draw_at(z, 2, &p, NULL, 0, s, &token), 0);
	ck_assert_uint_eq(token, 0);
	sampler_scratch_free(s);
}
END_TEST

/* ---- the parts ------------------------------------------------------------------------------- */

/* Random123's published answers (its kat_vectors, philox4x32 10); where the words come from. */
START_TEST(philox)
{
	static const struct {
		uint32_t counter[4], key[2], want[4];
	} known[] = {
		{ { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
		{ { UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX },
		  { UINT32_MAX, UINT32_MAX },
		  { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
		{ { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 },
		  { 0xa4093822, 0x299f31d0 },
		  { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
	};
	uint32_t out[4];

	for (unsigned i = 0; i < COUNT(known); i++) {
		philox4x32_10(known[i].counter, known[i].key, out);
		ck_assert_mem_eq(out, known[i].want, sizeof(out));
	}
	ck_assert(sampler_uniform(0, 0, 0) == UINT64_C(0xe169c58d6627e8d5));
	philox4x32_10((uint32_t[]){ 0x89abcdef, 0x01234567, 0, 0 },
		      (uint32_t[]){ 0x55667788, 0x11223344 }, out);
	ck_assert(sampler_uniform(UINT64_C(0x1122334455667788), 0x89abcdef, 0x01234567) ==
		  (out[0] | (uint64_t)out[1] << 32));
}
END_TEST

static double ulps(double got, long double want, int digits)
{
	int e;

	frexpl(want, &e);
	return (double)(fabsl(got - want) / ldexpl(1, e - digits));
}

/* An exp2 that errs more than stated, or is above 1, bends distributions; a bit moves goldens. */
START_TEST(exponentials)
{
	double worst = 0;

	seed = core_seed("exponentials");
	for (unsigned i = 0; i < scaled(1000000); i++) {
		float x = i % 2 ? (float)(-30 * unit()) : (float)-exp2(5 - 40 * unit()), e;
		double off;

		x = x < -30 ? -30 : x;
		e = exp2_contract(x);
		off = ulps((double)e, exp2l(x), 24);
		worst = off > worst ? off : worst;
		if (!(off <= 1.01 && e <= 1 && e == ref_exp2(x)))
			ck_abort_msg("exp2(%a): %a, off by %.3f ulp", (double)x, (double)e, off);
	}
	ck_assert(exp2_contract(0) == 1 && exp2_contract(-0.0f) == 1);
	ck_assert(exp2_contract(-100) == 0x1p-100f && exp2_contract(nextafterf(-100, -200)) == 0);
	ck_assert(exp2_contract(-INFINITY) == 0 && exp2_contract(-46) == 0x1p-46f);
	ck_assert(exp2_contract(126) == 0x1p126f && exp2_contract(1000) == 0x1p126f);
	printf("exponentials: within %.4f ulp of binary32 on [-30, 0]\n", worst);
}
END_TEST

/* A logarithm that differs in a bit moves log-probabilities; where sqrt 2 is folded it may. */
START_TEST(logarithms)
{
	static const double edges[] = {
		1, 0x1.0000000000001p+0, 0x1.6a09e667f3bccp+0, 0x1.6a09e667f3bcdp+0,
		0x1.6a09e667f3bcep+0, 2, 0x1.fffffffffffffp+0, 0x1p18, 0x1p20, 3, 128256, 0.5,
		0x1.fffffffffffffp-1, 0x1p-1022, DBL_MAX,
	};
	double worst = 0;

	seed = core_seed("logarithms");
	for (unsigned i = 0; i < scaled(500000) + COUNT(edges); i++) {
		double x = i % 2 ? exp2(20 * unit()) : 1 + exp2(-50 * unit()), off;

		x = i < COUNT(edges) ? edges[i] : x;
		off = x == 1 ? 0 : ulps(ln_contract(x), logl(x), 53);
		worst = off > worst ? off : worst;
		if (!(off <= 4 && ln_contract(x) == ref_ln(x)))
			ck_abort_msg("ln(%a): %a, off by %.3f ulp", x, ln_contract(x), off);
	}
	ck_assert(ln_contract(1) == 0 && ln_contract(2) == 0x1.62e42fefa39efp-1);
	printf("logarithms: within %.4f ulp of binary64\n", worst);
}
END_TEST

/* What a client is told is the contract's to the last bit, near the truth, and in order. */
START_TEST(logprobs)
{
	static float z[MAX];
	struct sampler_scratch *s = sampler_scratch_new(MAX, &ops);
	struct sampler_params p = plain;

	seed = core_seed("logprobs");
	for (unsigned round = 0; round < scaled(1500); round++) {
		uint32_t vocab = sizes[below(COUNT(sizes))], n_top = below(SAMPLER_TOP_MAX + 1),
			 token = below(vocab), n;
		struct sampler_top top[SAMPLER_TOP_MAX];
		long double truth = 0;
		double ln_sum;
		float lp = 7;
		wide sum;

		random_logits(z, vocab);
		for (uint32_t i = 0; i < vocab; i++)
			z[i] = z[i] == -INFINITY ? -5 : z[i];
		n = sampler_logprobs(z, vocab, token, &lp, top, n_top, s);
		sum = ref_survivors(z, vocab, &p, NULL);
		qsort(rank, vocab, sizeof(*rank), by_rank);
		ln_sum = ref_ln((double)sum / 0x1p46);
		ck_assert_uint_eq(n, n_top < vocab ? n_top : vocab);
		ck_assert(lp == (float)((double)(z[token] - rank[0].z) - ln_sum));
		for (uint32_t i = 0; i < n; i++)
			if (top[i].token != rank[i].id ||
			    top[i].logprob != (float)((double)(rank[i].z - rank[0].z) - ln_sum))
				ck_abort_msg("round %u: place %u of %u is %u with %a", round, i, n,
					     top[i].token, (double)top[i].logprob);
		for (uint32_t i = 0; i < vocab; i++)
			truth += expl((long double)z[i] - rank[0].z);
		/* exp2's argument and its result are rounded to 24 bits. */
		ck_assert(fabsl(ln_sum - logl(truth)) < 2e-6L);
	}
	sampler_scratch_free(s);
}
END_TEST

/* Whatever the arithmetic says, tokens must come as often as their probabilities say. */
START_TEST(distribution)
{
	/* So that chance exceeds it once in 10^5: of 15, 7 and 3 degrees of freedom. */
	static const struct {
		struct sampler_params p;
		uint32_t survivors;
		double limit;
	} runs[] = {
		{ { .temperature = 1, .top_p = 1, .seed = 1 }, 16, 50.5 },
		{ { .temperature = 0.7f, .top_k = 8, .top_p = 1, .seed = 2 }, 8, 35.3 },
		{ { .temperature = 1.5f, .top_k = 4, .top_p = 1, .seed = UINT64_C(3) << 40 },
		  4,
		  25.9 },
	};
	struct sampler_scratch *s = sampler_scratch_new(16, &ops);
	float z[16];

	for (unsigned i = 0; i < 16; i++)
		z[i] = (float)((i * 7 % 16) * 0.2);
	for (unsigned run = 0; run < COUNT(runs); run++) {
		unsigned n = scaled(400000), count[16] = { 0 };
		struct sampler_params p = runs[run].p;
		double sum = 0, chi = 0;

		/* Over places, choices and seeds. */
		for (unsigned i = 0; i < n; i++) {
			uint32_t token;

			p.seed += i % 4 == 0;
			if (sampler_draw(z, 16, &p, NULL, i / 8, i % 8, s, &token))
				ck_abort_msg("draw %u failed", i);
			count[token]++;
		}
		for (unsigned i = 0; i < 16; i++)
			if (i * 7 % 16 >= 16 - runs[run].survivors)
				sum += exp((double)z[i] / (double)p.temperature);
			else
				ck_assert_uint_eq(count[i], 0);
		for (unsigned i = 0; i < 16; i++) {
			double want = n * exp((double)z[i] / (double)p.temperature) / sum;

			if (count[i])
				chi += (count[i] - want) * (count[i] - want) / want;
		}
		printf("distribution: chi-square %.1f of %u draws, limit %.1f\n", chi, n,
		       runs[run].limit);
		ck_assert(chi < runs[run].limit);
	}
	sampler_scratch_free(s);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sampler");
	TCase *t = tcase_create("sampler");
	SRunner *r;
	int failed;

	float_ops_choose(&ops, KERNELS_ANY);
	tcase_set_timeout(t, 240);
	tcase_add_test(t, reference);
	tcase_add_test(t, large);
	tcase_add_test(t, sums_beyond_64_bits);
	tcase_add_test(t, adjustments);
	tcase_add_test(t, faults_counted);
	tcase_add_test(t, trap_7_ties_lowest_id);
	tcase_add_test(t, trap_26_ends_of_r);
	tcase_add_test(t, trap_26_penalty_once);
	tcase_add_test(t, trap_26_top_k_ties);
	tcase_add_test(t, trap_26_temperature_to_zero);
	tcase_add_test(t, trap_26_seed);
	tcase_add_test(t, trap_27_error_is_no_token);
	tcase_add_test(t, top_p_zero);
	tcase_add_test(t, top_p_is_cut);
	tcase_add_test(t, philox);
	tcase_add_test(t, exponentials);
	tcase_add_test(t, logarithms);
	tcase_add_test(t, logprobs);
	tcase_add_test(t, distribution);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Penalties, and the draw.
 *
 * A weight is an integer, so sums are exact in any order and a draw needs no order but that of ids:
 * a full distribution is summed by blocks and only the block that the running sum ends in is looked
 * at again. Where top-k or top-p ask for the first tokens, a list of candidates is made that is
 * certain to hold them, and cut down (sampler_list.c).
 */
#include <assert.h>
#include <errno.h>
#include <float.h>
#include <math.h>
#include "sampler_private.h"

#define BLOCK SAMPLER_BLOCK
/*
 * Where top-p looks first, as a power of two below the likeliest token. Its tail can hold the end
 * of the prefix only when it is heavy; then everything is listed.
 */
#define HEAD (-16.0f)

/* ---- penalties ------------------------------------------------------------------------------- */

static bool is_finite(float x)
{
	return x * 0 == 0;
}

/* x * 0 is a zero, or NaN and stays it. */
static void check_row(const float *z, uint32_t n, uint32_t *faults)
{
	const sampler_lanes *v = (const sampler_lanes *)z;
	sampler_lanes a = { 0 }, b = { 0 };
	float odd;
	uint32_t i = 0;

	for (; i + 2 <= n / 4; i += 2) {
		a += v[i] * 0.0f;
		b += v[i + 1] * 0.0f;
	}
	a += b;
	odd = a[0] + a[1] + a[2] + a[3];
	for (i *= 4; i < n; i++)
		odd += z[i] * 0.0f;
	if (!is_finite(odd))
		for (i = 0; i < n; i++)
			*faults += !is_finite(z[i]);
}

/* A logit becomes y: a fault, unless it was one already. */
static void put(float *z, float y, uint32_t *faults)
{
	*faults += *z < INFINITY && !(y < INFINITY);
	*z = y;
}

void sampler_adjust(float *logits, uint32_t vocab, const struct sampler_params *p,
		    const struct sampler_seen *seen, uint32_t n_seen, uint32_t *faults)
{
	check_row(logits, vocab, faults);
	for (uint32_t i = 0; i < n_seen; i++) {
		float *z = logits + seen[i].token, y = *z;

		assert(seen[i].token < vocab && p->repetition > 0);
		y = y > 0 ? y / p->repetition : y * p->repetition;
		y -= (float)seen[i].count * p->frequency;
		y -= p->presence;
		put(z, y, faults);
	}
	for (uint32_t i = 0; i < p->n_bias; i++) {
		float *z = logits + p->bias[i].token;

		assert(p->bias[i].token < vocab);
		put(z, *z + p->bias[i].bias, faults);
	}
}

/* ---- chance ---------------------------------------------------------------------------------- */

void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
	uint32_t c[4], k0 = key[0], k1 = key[1];

	memcpy(c, counter, sizeof(c));
	for (unsigned round = 0; round < 10; round++) {
		uint64_t a = (uint64_t)c[0] * 0xd2511f53, b = (uint64_t)c[2] * 0xcd9e8d57;

		c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
		c[1] = (uint32_t)b;
		c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
		c[3] = (uint32_t)a;
		k0 += 0x9e3779b9; /* the golden ratio, and sqrt 3 - 1 */
		k1 += 0xbb67ae85;
	}
	memcpy(out, c, sizeof(c));
}

uint64_t sampler_uniform(uint64_t seed, uint32_t index, uint32_t choice)
{
	const uint32_t counter[4] = { index, choice, 0, 0 };
	const uint32_t key[2] = { (uint32_t)seed, (uint32_t)(seed >> 32) };
	uint32_t c[4];

	philox4x32_10(counter, key, c);
	return c[0] | (uint64_t)c[1] << 32;
}

/* ---- the draw -------------------------------------------------------------------------------- */

/* u * w / 2^64, down. */
static sampler_sum share(uint64_t u, sampler_sum w)
{
	return (w >> 64) * u + ((sampler_sum)(uint64_t)w * u >> 64);
}

static uint32_t argmax(const struct sampler_scratch *s, const struct sampler_row *row)
{
	uint32_t i = 0;

	while (s->max[i / BLOCK] != row->max)
		i += BLOCK;
	while (row->z[i] != row->max)
		i++;
	return i;
}

static sampler_sum list_sum(const struct sampler_scratch *s)
{
	sampler_sum sum = 0;

	for (uint32_t i = 0; i < s->n_items; i++)
		sum += s->item[i].weight;
	return sum;
}

static sampler_sum top_p_target(float top_p, sampler_sum w)
{
	double target = top_p > 0 ? (double)top_p * (double)w : 0;

	return target < 1 ? 1 : (sampler_sum)target;
}

/* r is less than the sum, and the likeliest token always has its weight of 2^46: there is one. */
static uint32_t draw_listed(const struct sampler_scratch *s, uint64_t u)
{
	sampler_sum r = share(u, list_sum(s));

	for (uint32_t i = 0;; r -= s->item[i++].weight) {
		assert(i < s->n_items);
		if (s->item[i].weight > r)
			return s->item[i].id;
	}
}

static uint32_t draw_any(struct sampler_scratch *s, const struct sampler_row *row, uint64_t u)
{
	sampler_sum r = share(u, sampler_weigh(s, row, INFINITY));
	uint32_t b = 0, i;

	for (; s->sum[b] <= r; r -= s->sum[b++])
		assert(b + 1 < sampler_blocks(row->vocab));
	for (i = b * BLOCK;; i++) {
		uint64_t w = sampler_weight(row, row->z[i]);

		if (w > r)
			return i;
		r -= w;
	}
}

/* What is left by top-k and min-p, listed and weighed. */
static void list_top_k(struct sampler_scratch *s, const struct sampler_row *row, uint32_t top_k)
{
	float from = sampler_reach(s, row, top_k);

	/* What has no weight for sure comes last in the order: it may go first. */
	sampler_list(s, row, from > row->low ? from : row->low);
	if (s->n_items > top_k)
		sampler_keep(s, false, top_k);
	sampler_weigh_list(s, row);
}

/* The same, and top-p. */
static void list_top_p(struct sampler_scratch *s, const struct sampler_row *row, float top_p)
{
	float from = row->low > HEAD ? row->low : HEAD;
	sampler_sum target = top_p_target(top_p, sampler_weigh(s, row, from));

	if (list_sum(s) < target)
		sampler_weigh(s, row, row->low);
	sampler_keep(s, true, target);
}

int sampler_draw_at(const float *logits, uint32_t vocab, const struct sampler_params *p,
		    const uint64_t *allowed, uint64_t u, struct sampler_scratch *s, uint32_t *token)
{
	struct sampler_row row;

	sampler_look(s, logits, vocab, allowed, &row);
	if (row.max == -INFINITY)
		return -ENOENT;
	assert(!(p->temperature > FLT_MAX));
	row.k = (float)(1.4426950408889634 / (double)p->temperature);
	/* With a k beyond binary32 the maximum's own x, 0 * k, is no number: the limit is argmax. */
	if (!(p->temperature > 0) || row.k == INFINITY || row.max == INFINITY) {
		*token = argmax(s, &row);
		return 0;
	}
	sampler_floor(&row, p->min_p);

	if (p->top_k && p->top_k < vocab) {
		list_top_k(s, &row, p->top_k);
		if (p->top_p < 1)
			sampler_keep(s, true, top_p_target(p->top_p, list_sum(s)));
		*token = draw_listed(s, u);
	} else if (p->top_p < 1) {
		list_top_p(s, &row, p->top_p);
		*token = draw_listed(s, u);
	} else {
		*token = draw_any(s, &row, u);
	}
	return 0;
}

int sampler_draw(const float *logits, uint32_t vocab, const struct sampler_params *p,
		 const uint64_t *allowed, uint32_t index, uint32_t choice,
		 struct sampler_scratch *s, uint32_t *token)
{
	return sampler_draw_at(logits, vocab, p, allowed, sampler_uniform(p->seed, index, choice),
			       s, token);
}

/* SPDX-License-Identifier: MIT */
/*
 * Log-probabilities, and the logarithm that they take: binary64 operations in one fixed order, so
 * that they are the same to the last bit everywhere.
 */
#include <assert.h>
#include <math.h>
#include "sampler_private.h"

/*
 * x = m 2^e with m in [1/sqrt 2, sqrt 2) and s = (m - 1) / (m + 1), |s| < 0.172; then
 * ln m = 2 (s + s^3/3 + s^5/5 + ...). s^23/23, the first term left out, is less than 2^-60 of it.
 */
double ln_contract(double x)
{
	uint64_t b;
	double m, s, z, h = 1.0 / 21;
	int e;

	memcpy(&b, &x, sizeof(b));
	e = (int)(b >> 52) - 1023;
	b = (b & 0x000fffffffffffff) | 0x3ff0000000000000;
	memcpy(&m, &b, sizeof(m));
	if (m >= 0x1.6a09e667f3bcdp+0) { /* the first double above sqrt 2 */
		m *= 0.5;
		e++;
	}
	s = (m - 1) / (m + 1);
	z = s * s;
	for (int n = 19; n >= 1; n -= 2)
		h = fma(h, z, 1.0 / n);
	return fma(e, 0x1.62e42fefa39efp-1, 2 * s * h);
}

static float logprob_of(const struct sampler_row *row, float z, double ln_sum)
{
	return (float)((double)(z - row->max) - ln_sum);
}

uint32_t sampler_logprobs(const float *logits, uint32_t vocab, uint32_t token, float *logprob,
			  struct sampler_top *top, uint32_t n_top, struct sampler_scratch *s)
{
	struct sampler_row row;
	double ln_sum;

	assert(token < vocab && n_top <= SAMPLER_TOP_MAX);
	sampler_look(s, logits, vocab, NULL, &row);
	row.k = (float)1.4426950408889634;
	sampler_floor(&row, 0);
	ln_sum = ln_contract((double)sampler_weigh(s, &row, INFINITY) * 0x1p-46);
	*logprob = logprob_of(&row, logits[token], ln_sum);
	if (!n_top)
		return 0;

	sampler_list(s, &row, sampler_reach(s, &row, n_top));
	if (s->n_items > n_top)
		sampler_keep(s, false, n_top);
	/* Few, and ids ascend already: each goes before those that are less likely. */
	for (uint32_t i = 0; i < s->n_items; i++) {
		struct sampler_item it = s->item[i];
		uint32_t at = i;

		for (; at && s->item[at - 1].key < it.key; at--)
			s->item[at] = s->item[at - 1];
		s->item[at] = it;
	}
	for (uint32_t i = 0; i < s->n_items; i++) {
		top[i].token = s->item[i].id;
		top[i].logprob = logprob_of(&row, logits[top[i].token], ln_sum);
	}
	return s->n_items;
}

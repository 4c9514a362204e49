/* SPDX-License-Identifier: MIT */
/*
 * A row of logits, looked at: maxima of blocks, weights and their sums, lists of the tokens that
 * matter, and the first of such a list by (z descending, id ascending).
 *
 * Nothing is sorted. Which tokens are the first k, or the first whose weights reach a sum, is
 * settled by one threshold (z, id), found by four passes over the bytes of the keys from the
 * highest down; a list stays in the order of ids, in which tokens are drawn. The work is linear
 * whatever the logits are.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include "sampler_private.h"

#define BLOCK SAMPLER_BLOCK

struct sampler_scratch *sampler_scratch_new(uint32_t vocab, const struct float_ops *f)
{
	struct sampler_scratch *s = calloc(1, sizeof(*s));
	size_t blocks = sampler_blocks(vocab);

	assert(vocab > 0 && vocab <= SAMPLER_VOCAB_MAX);
	if (!s)
		return NULL;
	s->vocab = vocab;
	s->exp2 = f->exp2;
	s->z = malloc(blocks * BLOCK * sizeof(*s->z));
	s->max = malloc(blocks * sizeof(*s->max));
	s->sum = malloc(blocks * sizeof(*s->sum));
	s->item = malloc(vocab * sizeof(*s->item));
	return s->z && s->max && s->sum && s->item ? s : sampler_scratch_free(s);
}

struct sampler_scratch *sampler_scratch_free(struct sampler_scratch *s)
{
	if (s) {
		free(s->z);
		free(s->max);
		free(s->sum);
		free(s->item);
		free(s);
	}
	return NULL;
}

static uint32_t block_len(uint32_t vocab, uint32_t b)
{
	return vocab - b * BLOCK < BLOCK ? vocab - b * BLOCK : BLOCK;
}

/* b where a is a NaN. */
static inline sampler_lanes larger(sampler_lanes a, sampler_lanes b)
{
	typedef int32_t mask __attribute__((vector_size(16)));
	mask m = a > b;

	return (sampler_lanes)(((mask)a & m) | ((mask)b & ~m));
}

/* Of a whole block, but for NaNs: in a faulty row, too, nothing is above the maximum. */
static float block_max(const float *z)
{
	const sampler_lanes *v = (const sampler_lanes *)z;
	sampler_lanes a = { -INFINITY, -INFINITY, -INFINITY, -INFINITY }, b = a, c = a, d = a;

	for (unsigned i = 0; i < BLOCK / 4; i += 4) {
		a = larger(v[i], a);
		b = larger(v[i + 1], b);
		c = larger(v[i + 2], c);
		d = larger(v[i + 3], d);
	}
	a = larger(larger(a, b), larger(c, d));
	a[0] = a[0] > a[2] ? a[0] : a[2];
	a[1] = a[1] > a[3] ? a[1] : a[3];
	return a[0] > a[1] ? a[0] : a[1];
}

/* What is not allowed becomes -infinity, of n tokens; and what fills up the block. */
static void mask_block(const float *z, uint32_t n, uint64_t allowed, float *own)
{
	allowed &= n < BLOCK ? (UINT64_C(1) << n) - 1 : UINT64_MAX;
	if (n == BLOCK)
		memcpy(own, z, BLOCK * sizeof(*own));
	else
		memcpy(own, z, n * sizeof(*own));
	for (uint64_t never = ~allowed; never; never &= never - 1)
		own[__builtin_ctzll(never)] = -INFINITY;
}

void sampler_look(struct sampler_scratch *s, const float *logits, uint32_t vocab,
		  const uint64_t *allowed, struct sampler_row *row)
{
	float max = -INFINITY;

	assert(vocab > 0 && vocab <= s->vocab);
	for (uint32_t b = 0; b < sampler_blocks(vocab); b++) {
		uint32_t n = block_len(vocab, b);
		const float *z = logits + (size_t)b * BLOCK;
		float *own = s->z + (size_t)b * BLOCK;

		uint64_t word = allowed ? allowed[b] : UINT64_MAX;

		if (!word) {
			s->max[b] = -INFINITY;
		} else if (allowed || n < BLOCK) {
			mask_block(z, n, word, own);
			s->max[b] = block_max(own);
		} else {
			s->max[b] = block_max(z);
		}
		max = s->max[b] > max ? s->max[b] : max;
	}
	row->z = allowed ? s->z : logits;
	row->vocab = vocab;
	row->exp2 = s->exp2;
	row->max = max;
}

void sampler_floor(struct sampler_row *row, float min_p)
{
	uint32_t b;

	/* Half a power below 2^-46, far more than exp2 may err. */
	row->low = -46.5f;
	row->min_p = min_p;
	if (min_p > 0) {
		float power;

		assert(min_p <= 1);
		/* min_p is at least this power of two. A subnormal's is far below anyway. */
		memcpy(&b, &min_p, sizeof(b));
		power = (float)(int32_t)(b >> 23) - 127;
		row->low = power - 0.25f > row->low ? power - 0.25f : row->low;
	}
}

/* x and e of up to a block; e is exp2(x), or anything at all where x < low. */
struct block {
	float x[BLOCK], e[BLOCK];
};

static void powers(const struct sampler_row *row, const float *z, uint32_t n, struct block *b)
{
	for (uint32_t i = 0; i < n; i++)
		b->x[i] = sampler_x(row, z[i]);
	row->exp2(b->x, n, b->e);
}

static uint64_t weight_of(const struct sampler_row *row, const struct block *b, uint32_t i)
{
	/* Both are false for a NaN as well. */
	bool any = (b->x[i] >= row->low) & (b->e[i] >= row->min_p);

	return any ? (uint64_t)(int64_t)(b->e[i] * 0x1p46f) : 0;
}

uint64_t sampler_weight(const struct sampler_row *row, float z)
{
	struct block one;

	powers(row, &z, 1, &one);
	return weight_of(row, &one, 0);
}

sampler_sum sampler_weigh(struct sampler_scratch *s, const struct sampler_row *row, float list)
{
	sampler_sum all = 0;
	uint32_t n = 0;

	for (uint32_t b = 0; b < sampler_blocks(row->vocab); all += s->sum[b++]) {
		const float *z = row->z + (size_t)b * BLOCK;
		uint32_t len = block_len(row->vocab, b);
		float max = sampler_x(row, s->max[b]);
		struct block now;

		s->sum[b] = 0;
		if (!(max >= row->low))
			continue;
		powers(row, z, len, &now);
		for (uint32_t i = 0; i < len; i++)
			s->sum[b] += weight_of(row, &now, i);
		for (uint32_t i = 0; max >= list && i < len; i++)
			if (now.x[i] >= list)
				s->item[n++] = (struct sampler_item){ sampler_key(z[i]),
								      b * BLOCK + i,
								      weight_of(row, &now, i) };
	}
	s->n_items = n;
	return all;
}

void sampler_list(struct sampler_scratch *s, const struct sampler_row *row, float from)
{
	uint32_t n = 0;

	for (uint32_t b = 0; b < sampler_blocks(row->vocab); b++) {
		const float *z = row->z + (size_t)b * BLOCK;
		uint32_t len = block_len(row->vocab, b);

		if (!(sampler_x(row, s->max[b]) >= from))
			continue;
		/* Written always, kept sometimes: no branch to be foretold. n is at most the id. */
		for (uint32_t i = 0; i < len; i++) {
			s->item[n].key = sampler_key(z[i]);
			s->item[n].id = b * BLOCK + i;
			n += sampler_x(row, z[i]) >= from;
		}
	}
	s->n_items = n;
}

void sampler_weigh_list(struct sampler_scratch *s, const struct sampler_row *row)
{
	for (uint32_t from = 0; from < s->n_items; from += BLOCK) {
		struct sampler_item *item = s->item + from;
		uint32_t n = s->n_items - from < BLOCK ? s->n_items - from : BLOCK;
		struct block now;
		float z[BLOCK];

		for (uint32_t i = 0; i < n; i++)
			z[i] = sampler_unkey(item[i].key);
		powers(row, z, n, &now);
		for (uint32_t i = 0; i < n; i++)
			item[i].weight = weight_of(row, &now, i);
	}
}

/* The key at which the prefix ends; *target becomes what is asked of the tokens that have it. */
static uint32_t last_key(const struct sampler_scratch *s, bool by_weight, sampler_sum *target)
{
	uint32_t key = 0;

	for (unsigned shift = 32; shift;) {
		sampler_sum bin[256] = { 0 };
		unsigned d = 255;

		shift -= 8;
		for (uint32_t i = 0; i < s->n_items; i++)
			if ((s->item[i].key ^ key) >> shift < 256)
				bin[s->item[i].key >> shift & 255] +=
					by_weight ? s->item[i].weight : 1;
		for (; bin[d] < *target; d--) {
			assert(d);
			*target -= bin[d];
		}
		key |= d << shift;
	}
	return key;
}

void sampler_keep(struct sampler_scratch *s, bool by_weight, sampler_sum target)
{
	uint32_t n = 0, key = last_key(s, by_weight, &target);

	for (uint32_t i = 0; i < s->n_items; i++) {
		struct sampler_item it = s->item[i];
		sampler_sum amount = by_weight ? it.weight : 1;

		if (it.key < key || (it.key == key && !target))
			continue;
		if (it.key == key)
			target -= amount < target ? amount : target;
		s->item[n++] = it;
	}
	s->n_items = n;
}

/* The n-th largest of the blocks' maxima: at least n tokens are not below it. */
float sampler_reach(struct sampler_scratch *s, const struct sampler_row *row, uint32_t n)
{
	sampler_sum target = n;

	s->n_items = sampler_blocks(row->vocab);
	if (n > s->n_items)
		return -INFINITY;
	for (uint32_t b = 0; b < s->n_items; b++)
		s->item[b].key = sampler_key(s->max[b]);
	return sampler_x(row, sampler_unkey(last_key(s, false, &target)));
}

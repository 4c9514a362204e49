/* SPDX-License-Identifier: MIT */
#ifndef SAMPLER_PRIVATE_H
#define SAMPLER_PRIVATE_H

/*
 * What the files sampler*.c share: one look at a row of logits, and lists of tokens out of it.
 *
 * A row is looked at in blocks of 64 (a word of the allowed mask). Each block's maximum is taken
 * first, at memory speed; whatever asks for high logits only then skips nearly all blocks.
 */

#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include "float_ops.h"
#include "sampler.h"

#define SAMPLER_BLOCK 64u
/* A weight is at most 2^46, and 2^18 of them are more than 64 bits hold. */
typedef unsigned __int128 sampler_sum;

/* Vectors as every CPU has them, loaded from anywhere: one look is as fast as the memory. */
typedef float sampler_lanes __attribute__((vector_size(16), aligned(4), may_alias));

struct sampler_item {
	uint32_t key; /* of z: greater where z is */
	uint32_t id;
	uint64_t weight;
};

struct sampler_scratch {
	uint32_t vocab;
	exp2_op *exp2;
	float *z;		   /* a masked row: unspecified in blocks with no token allowed */
	float *max;		   /* of each block */
	uint64_t *sum;		   /* of each block's weights */
	struct sampler_item *item; /* ids ascending */
	uint32_t n_items;
};

/* x = (z - max) * k; a token with x < low has no weight for sure. */
struct sampler_row {
	exp2_op *exp2;
	const float *z;
	uint32_t vocab;
	float max, k, low, min_p;
};

/* -0 and +0 have one key. */
static inline uint32_t sampler_key(float z)
{
	uint32_t b;

	z += 0.0f;
	memcpy(&b, &z, sizeof(b));
	return b >> 31 ? ~b : b | 0x80000000;
}

static inline float sampler_unkey(uint32_t key)
{
	uint32_t b = key >> 31 ? key & 0x7fffffff : ~key;
	float z;

	memcpy(&z, &b, sizeof(z));
	return z;
}

static inline float sampler_x(const struct sampler_row *row, float z)
{
	return (z - row->max) * row->k;
}

static inline uint32_t sampler_blocks(uint32_t vocab)
{
	return (vocab + SAMPLER_BLOCK - 1) / SAMPLER_BLOCK;
}

/* Sets row->z, vocab and max, and the blocks' maxima. max is -infinity when no token is allowed. */
void sampler_look(struct sampler_scratch *s, const float *logits, uint32_t vocab,
		  const uint64_t *allowed, struct sampler_row *row);
/* Sets row->low and min_p. */
void sampler_floor(struct sampler_row *row, float min_p);
uint64_t sampler_weight(const struct sampler_row *row, float z);
/* The blocks' sums and their sum. Tokens with x >= list are listed with their weights. */
sampler_sum sampler_weigh(struct sampler_scratch *s, const struct sampler_row *row, float list);
/* The tokens with x >= from, not weighed; and their weights. */
void sampler_list(struct sampler_scratch *s, const struct sampler_row *row, float from);
void sampler_weigh_list(struct sampler_scratch *s, const struct sampler_row *row);
/* An x that at least n tokens reach, and not many more where logits are spread as usual. */
float sampler_reach(struct sampler_scratch *s, const struct sampler_row *row, uint32_t n);
/*
 * Of the list, the shortest prefix by (z descending, id ascending) of which there are `target`
 * tokens, or whose weights' sum is at least target; target is at least 1, at most what the whole
 * list has. The order in the list stays.
 */
void sampler_keep(struct sampler_scratch *s, bool by_weight, sampler_sum target);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef FLOAT_VARIANTS_H
#define FLOAT_VARIANTS_H

/*
 * The rungs of the ladder of float operations, and what the faster ones share. Each rung overwrites
 * what it has in the table and leaves the rest.
 */

#include <math.h>
#include <string.h>
#include "float_ops.h"

void float_scalar(struct float_ops *f);
void float_avx2(struct float_ops *f);
void float_avx512(struct float_ops *f);
void float_neon(struct float_ops *f);

/* Their part in attn_*.c. */
void attn_avx2(struct float_ops *f);
void attn_avx512(struct float_ops *f);
void attn_neon(struct float_ops *f);

#define ATTN_PAGES (ATTN_CHUNK / KV_PAGE)

/* exp2's polynomial, highest power first, as bits. */
#define EXP2_TERMS                                                                                 \
	{                                                                                          \
		0x392385a5, 0x3aafb93b, 0x3c1d9387, 0x3d635739, 0x3e75fdf1, 0x3f317219, 0x3f800000 \
	}
#define EXP2_DEGREE 6u

static inline uint32_t bits_of(float x)
{
	uint32_t b;

	memcpy(&b, &x, sizeof(b));
	return b;
}

static inline float float_of(uint32_t bits)
{
	float x;

	memcpy(&x, &bits, sizeof(x));
	return x;
}

/* A checked point. */
static inline void check_finite(float x, uint32_t *faults)
{
	*faults += (bits_of(x) & 0x7fffffff) >= 0x7f800000;
}

/* a of a quantiser, and its scales for codes up to `limit`. A NaN stays one. */
static inline float quant_a(float max)
{
	return max < 1e-5f ? 1e-5f : max;
}

/* Of a norm. */
static inline float norm_r(float ss, uint32_t n, float eps)
{
	return 1 / sqrtf(ss / (float)n + eps);
}

/* Where in a page its parts begin. */
static inline size_t kv_quads(uint32_t head_dim)
{
	return (head_dim + 3) / 4;
}

static inline size_t kv_values(uint32_t form, uint32_t head_dim)
{
	return form == KV_INT8 ? kv_quads(head_dim) * 4 * KV_PAGE : (size_t)head_dim * 2 * KV_PAGE;
}

static inline size_t kv_scales(uint32_t head_dim)
{
	return kv_values(KV_INT8, head_dim) + (size_t)head_dim * KV_PAGE;
}

#endif

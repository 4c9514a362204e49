/* SPDX-License-Identifier: MIT */
#ifndef KERNELS_H
#define KERNELS_H

/*
 * The operations on packed matrices, one table of them for this CPU. The scalar version of each is
 * the definition; every other one gives the same bits. No operation allocates, keeps anything, or
 * writes outside the rows it was asked for, so that threads share a matrix by sharing its tiles.
 */

#include <stddef.h>
#include <stdint.h>
#include "packed.h"

/* The most columns of a matrix that is multiplied: all sums below fit 32 bits then. */
#define KERNELS_COLS_MAX 65536u

/* What is loaded at once: activations are aligned to it; packed matrices are, too. */
#define KERNELS_ALIGN 64u

/* ---- activations, laid out as the units of a layout want them -------------------------------- */

/* Bytes of a vector laid out for a ternary layout: each group filled up to whole units by zeros. */
size_t laid_bytes(const struct packed_shape *s);

/* q[s->cols] into laid[laid_bytes()], aligned, and sums[s->groups], of each group. */
void lay_ternary(const struct packed_shape *s, const int8_t *q, int8_t *laid, int32_t *sums);

/*
 * The activation of an int8 head: q in [-32767, 32767], also as q = 256 high + low. The caller owns
 * the arrays, each of packed_units() * 16 elements and aligned.
 */
struct laid_head {
	int16_t *q;
	int8_t *high;
	uint8_t *low;
	int32_t sum_high;
};

void lay_head(const struct packed_shape *s, const int16_t *q, struct laid_head *laid);

/* ---- operations ------------------------------------------------------------------------------ */

/*
 * y[row] = (float)acc * (d * scale[row]), acc = the exact sum of weight * q; with groups a chain of
 * fma((float)acc_g, d * scale[g][row], y), g ascending, from +0. Rows of tiles tile0 up to tile1; y
 * is indexed by row and holds whole tiles.
 */
typedef void ternary_op(const struct packed_shape *s, const void *packed, const float *scales,
			const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
			uint32_t tile1, float *y);

/* y[row] = (float)T * (d * scale[row]), T = the exact sum of weight * q, rounded once. */
typedef void head_op(const struct packed_shape *s, const void *packed, const float *scales,
		     const struct laid_head *laid, float d, uint32_t tile0, uint32_t tile1,
		     float *y);

struct kernels {
	ternary_op *ternary[PACKED_COUNT]; /* by layout: PACKED_2BIT and PACKED_BASE3 */
	head_op *head_int8;
	const char *isa; /* the highest rung taken: "scalar", "avx2", "avx512", "neon" */
};

/* ---- which of them --------------------------------------------------------------------------- */

#define KERNELS_AVX2   1u
#define KERNELS_AVX512 2u /* F, BW, DQ, VL, VBMI, VNNI */
#define KERNELS_NEON   4u /* with dot product */
#define KERNELS_ANY    ~0u

/* What this CPU has of the above. */
unsigned kernels_cpu(void);

/* Fill k with the best that this CPU and the mask allow. */
void kernels_choose(struct kernels *k, unsigned mask);

#endif

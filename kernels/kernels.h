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

/*
 * Several activations at once. Each of n rows is laid out as above, at i * stride of the arrays: what a
 * product of one row does, n times, in whatever order is fastest; the bits are the same.
 */
struct ternary_rows {
	uint32_t n;
	const int8_t *laid;
	size_t stride; /* bytes, a multiple of KERNELS_ALIGN, laid_bytes() or more */
	const int32_t *sums; /* [n][groups] */
	const float *d;	     /* [n] */
};
struct head_rows {
	uint32_t n;
	const struct laid_head *laid; /* [n] */
	const float *d;		      /* [n] */
};
/*
 * y[i * y_stride + row], strides in floats and whole tiles. scratch: one thread's own, aligned, of
 * kernels_scratch_bytes() of the shape; what is in it does not matter.
 */
typedef void ternary_rows_op(const struct packed_shape *s, const void *packed, const float *scales,
			     const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
			     size_t y_stride, void *scratch);
typedef void head_rows_op(const struct packed_shape *s, const void *packed, const float *scales,
			  const struct head_rows *a, uint32_t tile0, uint32_t tile1, float *y,
			  size_t y_stride, void *scratch);
size_t kernels_scratch_bytes(const struct packed_shape *s);

/*
 * A head in halves (PACKED_F16, PACKED_BF16): y[i * y_stride + row] = sum256 of the row's weights times
 * x[i * x_stride], each partial a chain of fma(w, x, p).
 */
typedef void head_half_op(const struct packed_shape *s, const void *packed, const float *x,
			  size_t x_stride, uint32_t n, uint32_t tile0, uint32_t tile1, float *y,
			  size_t y_stride);

struct kernels {
	ternary_op *ternary[PACKED_COUNT]; /* by layout: PACKED_2BIT and PACKED_BASE3 */
	ternary_rows_op *ternary_rows[PACKED_COUNT];
	head_op *head_int8;
	head_rows_op *head_int8_rows;
	head_half_op *head_half;
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

/* SPDX-License-Identifier: MIT */
#ifndef VARIANTS_H
#define VARIANTS_H

/*
 * The rungs of the ladder. Each overwrites what it has in the table and leaves the rest; it exists
 * on its own architecture only, and runs only where kernels_cpu() says so.
 */

#include "kernels.h"

void kernels_scalar(struct kernels *k);
void kernels_avx2(struct kernels *k);
void kernels_avx512(struct kernels *k);
void kernels_neon(struct kernels *k);

/* Their parts in rows_*.c, products of several rows, and in half_*.c, heads in halves. */
void rows_scalar(struct kernels *k);
void rows_avx2(struct kernels *k);
void rows_avx512(struct kernels *k);
void rows_neon(struct kernels *k);
void half_avx2(struct kernels *k);
void half_avx512(struct kernels *k);
void half_neon(struct kernels *k);

/* The versions for one row, which those for several are told by or fall back on. */
ternary_op ternary_scalar;
head_op head_scalar;
ternary_op ternary_2bit_avx2, ternary_base3_avx2;
head_op head_int8_avx2;
ternary_op ternary_2bit_avx512, ternary_base3_avx512;
head_op head_int8_avx512;
ternary_op ternary_2bit_neon, ternary_base3_neon;
head_op head_int8_neon;
/* What AVX2 keeps of a block beside: part of kernels_scratch_bytes(). */
#define SCRATCH_AVX2 (48u * 1024)

/* n times any of them. */
void ternary_each(ternary_op *one, const struct packed_shape *s, const void *packed,
		  const float *scales, const struct ternary_rows *a, uint32_t tile0, uint32_t tile1,
		  float *y, size_t y_stride);

#endif

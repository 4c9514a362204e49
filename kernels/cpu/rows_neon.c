/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and several vectors, for NEON: one vector after the other.
 */
#if defined(__aarch64__)

#include "variants.h"

static void rows_2bit(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride, void *scratch)
{
	(void)scratch;
	for (uint32_t t = tile0; t < tile1; t++)
		ternary_each(ternary_2bit_neon, s, packed, scales, a, t, t + 1, y, y_stride);
}

static void rows_base3(const struct packed_shape *s, const void *packed, const float *scales,
		       const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		       size_t y_stride, void *scratch)
{
	(void)scratch;
	for (uint32_t t = tile0; t < tile1; t++)
		ternary_each(ternary_base3_neon, s, packed, scales, a, t, t + 1, y, y_stride);
}

static void head_rows(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct head_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride, void *scratch)
{
	(void)scratch;
	for (uint32_t t = tile0; t < tile1; t++)
		for (uint32_t i = 0; i < a->n; i++)
			head_int8_neon(s, packed, scales, &a->laid[i], a->d[i], t, t + 1,
					y + i * y_stride);
}

void rows_neon(struct kernels *k)
{
	k->ternary_rows[PACKED_2BIT] = rows_2bit;
	k->ternary_rows[PACKED_BASE3] = rows_base3;
	k->head_int8_rows = head_rows;
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and several vectors, and heads in halves: the definition. A product
 * of several rows is that of one row, as often as there are rows.
 */
#include <assert.h>
#include <math.h>
#include "variants.h"

void ternary_each(ternary_op *one, const struct packed_shape *s, const void *packed,
		  const float *scales, const struct ternary_rows *a, uint32_t tile0, uint32_t tile1,
		  float *y, size_t y_stride)
{
	for (uint32_t i = 0; i < a->n; i++)
		one(s, packed, scales, a->laid + i * a->stride, a->sums + (size_t)i * s->groups,
		    a->d[i], tile0, tile1, y + i * y_stride);
}

static void ternary_rows(const struct packed_shape *s, const void *packed, const float *scales,
			 const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
			 size_t y_stride, void *scratch)
{
	(void)scratch;
	ternary_each(ternary_scalar, s, packed, scales, a, tile0, tile1, y, y_stride);
}

static void head_rows(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct head_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride, void *scratch)
{
	(void)scratch;
	for (uint32_t i = 0; i < a->n; i++)
		head_scalar(s, packed, scales, &a->laid[i], a->d[i], tile0, tile1,
			    y + i * y_stride);
}

/* ---- halves ---------------------------------------------------------------------------------- */

static float widened(uint32_t layout, unsigned half)
{
	float sign = half & 0x8000 ? -1 : 1;
	int exponent, fraction;

	if (layout == PACKED_BF16) {
		exponent = half >> 7 & 255;
		fraction = half & 127;
		return sign * (exponent ? ldexpf((float)(fraction + 128), exponent - 134) :
					  ldexpf((float)fraction, -133));
	}
	exponent = half >> 10 & 31;
	fraction = half & 1023;
	return sign * (exponent ? ldexpf((float)(fraction + 1024), exponent - 25) :
				  ldexpf((float)fraction, -24));
}

static float dot256(const struct packed_shape *s, const uint8_t *part, const float *x)
{
	const uint32_t span = packed_span(s->layout);
	float p[256] = { 0 };

	for (uint32_t c = 0; c < s->cols; c++) {
		const uint8_t *at = part + (size_t)(c / span) * PACKED_UNIT + c % span * 2;
		float w = widened(s->layout, at[0] | (unsigned)at[1] << 8);

		p[c % 256] = fmaf(w, x[c], p[c % 256]);
	}
	for (unsigned half = 128; half; half /= 2)
		for (unsigned l = 0; l < half; l++)
			p[l] += p[l + half];
	return p[0];
}

static void head_half(const struct packed_shape *s, const void *packed, const float *x,
		      size_t x_stride, uint32_t n, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride)
{
	const size_t tile = (size_t)packed_units(s) * PACKED_UNIT;

	assert(s->layout == PACKED_F16 || s->layout == PACKED_BF16);
	for (uint32_t i = 0; i < n; i++)
		for (size_t row = (size_t)tile0 * PACKED_ROWS; row < (size_t)tile1 * PACKED_ROWS;
		     row++)
			y[i * y_stride + row] =
				dot256(s,
				       (const uint8_t *)packed + row / PACKED_ROWS * tile +
					       row % PACKED_ROWS * PACKED_BYTES,
				       x + i * x_stride);
}

void rows_scalar(struct kernels *k)
{
	k->ternary_rows[PACKED_2BIT] = ternary_rows;
	k->ternary_rows[PACKED_BASE3] = ternary_rows;
	k->head_int8_rows = head_rows;
	k->head_half = head_half;
}

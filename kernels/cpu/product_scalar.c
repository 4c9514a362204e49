/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and one vector: the definition. Slow and obvious; weights are taken
 * one by one as packed.h says where they lie.
 */
#include <assert.h>
#include <math.h>
#include <string.h>
#include "variants.h"

static uint32_t group_units(const struct packed_shape *s)
{
	return packed_units(s) / s->groups;
}

size_t laid_bytes(const struct packed_shape *s)
{
	return (size_t)packed_units(s) * packed_span(s->layout);
}

/* For AVX2 the room of a block; for AVX-512 what a tile's bytes are looked up to. */
size_t kernels_scratch_bytes(const struct packed_shape *s)
{
	size_t tile = (size_t)packed_units(s) * PACKED_UNIT * 2;

	return tile > SCRATCH_AVX2 ? tile : SCRATCH_AVX2;
}

void lay_ternary(const struct packed_shape *s, const int8_t *q, int8_t *laid, int32_t *sums)
{
	size_t width = s->cols / s->groups,
	       filled = (size_t)group_units(s) * packed_span(s->layout);

	assert(s->cols <= KERNELS_COLS_MAX);
	for (uint32_t g = 0; g < s->groups; g++, q += width, laid += filled) {
		int32_t sum = 0;

		for (size_t i = 0; i < width; i++)
			sum += q[i];
		sums[g] = sum;
		memcpy(laid, q, width);
		memset(laid + width, 0, filled - width);
	}
}

void lay_head(const struct packed_shape *s, const int16_t *q, struct laid_head *laid)
{
	uint32_t n = packed_units(s) * packed_span(s->layout);

	assert(s->cols <= KERNELS_COLS_MAX);
	laid->sum_high = 0;
	for (uint32_t i = 0; i < n; i++) {
		int value = i < s->cols ? q[i] : 0, low = value & 255, high = (value - low) / 256;

		laid->q[i] = (int16_t)value;
		laid->low[i] = (uint8_t)low;
		laid->high[i] = (int8_t)high;
		laid->sum_high += high;
	}
}

/* Weight c of a row's part of a unit. */
static int weight_2bit(const uint8_t *part, uint32_t c)
{
	return (part[c % 16] >> 2 * (c / 16) & 3) - 1;
}

static int weight_base3(const uint8_t *part, uint32_t c)
{
	unsigned rest = part[c % 16];

	for (uint32_t p = 0; p < c / 16; p++)
		rest = rest * 3 & 255;
	return (int)(rest * 3 >> 8) - 1;
}

void ternary_scalar(const struct packed_shape *s, const void *packed, const float *scales,
		    const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
		    uint32_t tile1, float *y)
{
	const uint32_t span = packed_span(s->layout), units = group_units(s);
	const size_t n_rows = (size_t)packed_tiles(s) * PACKED_ROWS;
	int (*weight)(const uint8_t *, uint32_t) =
		s->layout == PACKED_2BIT ? weight_2bit : weight_base3;

	(void)sums;
	for (size_t row = (size_t)tile0 * PACKED_ROWS; row < (size_t)tile1 * PACKED_ROWS; row++) {
		const uint8_t *tile =
			(const uint8_t *)packed + row / PACKED_ROWS * packed_units(s) * PACKED_UNIT;
		const int8_t *q = laid;
		float sum = 0;

		for (uint32_t g = 0; g < s->groups; g++) {
			float scale = d * scales[g * n_rows + row];
			int32_t acc = 0;

			for (uint32_t u = 0; u < units; u++, tile += PACKED_UNIT, q += span)
				for (uint32_t c = 0; c < span; c++)
					acc += q[c] *
					       weight(tile + row % PACKED_ROWS * PACKED_BYTES, c);
			sum = s->groups == 1 ? (float)acc * scale : fmaf((float)acc, scale, sum);
		}
		y[row] = sum;
	}
}

void head_scalar(const struct packed_shape *s, const void *packed, const float *scales,
		 const struct laid_head *laid, float d, uint32_t tile0, uint32_t tile1, float *y)
{
	const uint32_t units = packed_units(s);

	for (size_t row = (size_t)tile0 * PACKED_ROWS; row < (size_t)tile1 * PACKED_ROWS; row++) {
		const int8_t *part = (const int8_t *)packed +
				     row / PACKED_ROWS * units * PACKED_UNIT +
				     row % PACKED_ROWS * PACKED_BYTES;
		int64_t total = 0;

		for (uint32_t u = 0; u < units; u++, part += PACKED_UNIT)
			for (uint32_t c = 0; c < PACKED_BYTES; c++)
				total += laid->q[u * PACKED_BYTES + c] * part[c];
		y[row] = (float)total * (d * scales[row]);
	}
}

void kernels_scalar(struct kernels *k)
{
	k->ternary[PACKED_2BIT] = ternary_scalar;
	k->ternary[PACKED_BASE3] = ternary_scalar;
	k->head_int8 = head_scalar;
	rows_scalar(k);
	k->isa = "scalar";
}

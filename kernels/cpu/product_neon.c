/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and one vector, for NEON with dot product.
 *
 * A vector of 16 bytes is one row's part of a unit; its four sums stay in a register. Eight rows at
 * a time over a block of units, and the block four times while it is in the nearest cache, so that
 * sums, activations and what is being decoded all have registers.
 *
 * Base 3 is decoded by arithmetic: the carry of three times a byte is its halving sum with half of
 * itself, less six bits.
 */
#if defined(__aarch64__)

#include <arm_neon.h>
#include "variants.h"

#define BLOCK 8u /* units */
#define STEP  8u /* rows at a time */

static inline void block_2bit(const uint8_t *at, const int8_t *q, uint32_t units, int32x4_t *sums)
{
	const uint8x16_t low = vdupq_n_u8(3);

	for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, q += 64) {
		const int8x16_t q0 = vld1q_s8(q), q1 = vld1q_s8(q + 16);
		const int8x16_t q2 = vld1q_s8(q + 32), q3 = vld1q_s8(q + 48);

		for (unsigned i = 0; i < STEP; i++) {
			uint8x16_t w = vld1q_u8(at + 16 * i);
			int8x16_t a = vreinterpretq_s8_u8(vandq_u8(w, low));
			int8x16_t b = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(w, 2), low));
			int8x16_t c = vreinterpretq_s8_u8(vandq_u8(vshrq_n_u8(w, 4), low));
			int8x16_t d = vreinterpretq_s8_u8(vshrq_n_u8(w, 6));

			sums[i] = vdotq_s32(vdotq_s32(sums[i], a, q0), b, q1);
			sums[i] = vdotq_s32(vdotq_s32(sums[i], c, q2), d, q3);
		}
	}
}

static inline void block_base3(const uint8_t *at, const int8_t *q, uint32_t units, int32x4_t *sums)
{
	const uint8x16_t three = vdupq_n_u8(3);

	for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, q += 80) {
		const int8x16_t q0 = vld1q_s8(q), q1 = vld1q_s8(q + 16), q2 = vld1q_s8(q + 32);
		const int8x16_t q3 = vld1q_s8(q + 48), q4 = vld1q_s8(q + 64);
		const int8x16_t *const digits_of[] = { &q0, &q1, &q2, &q3, &q4 };

		for (unsigned i = 0; i < STEP; i++) {
			uint8x16_t b = vld1q_u8(at + 16 * i);

			for (unsigned p = 0; p < 5; p++) {
				uint8x16_t digit = vshrq_n_u8(vhaddq_u8(b, vshrq_n_u8(b, 1)), 6);

				sums[i] = vdotq_s32(sums[i], vreinterpretq_s8_u8(digit),
						    *digits_of[p]);
				b = vmulq_u8(b, three);
			}
		}
	}
}

/* Four rows' sums, in order. */
static inline int32x4_t sum_rows(const int32x4_t *v)
{
	return vpaddq_s32(vpaddq_s32(v[0], v[1]), vpaddq_s32(v[2], v[3]));
}

static inline void finish(int32x4_t acc, float d, const float *scales, uint32_t groups,
			  uint32_t group, float *y)
{
	float32x4_t value = vcvtq_f32_s32(acc), scale = vmulq_n_f32(vld1q_f32(scales), d);

	if (groups == 1)
		value = vmulq_f32(value, scale);
	else
		value = vfmaq_f32(group ? vld1q_f32(y) : vdupq_n_f32(0), value, scale);
	vst1q_f32(y, value);
}

static inline void ternary(const struct packed_shape *s, uint32_t span,
			   void (*block)(const uint8_t *, const int8_t *, uint32_t, int32x4_t *),
			   const uint8_t *at, const float *scales, const int8_t *laid,
			   const int32_t *sums, float d, uint32_t tile0, uint32_t tile1, float *y)
{
	const uint32_t units = packed_units(s) / s->groups;
	const size_t n_rows = (size_t)packed_tiles(s) * PACKED_ROWS;

	at += (size_t)tile0 * packed_units(s) * PACKED_UNIT;
	for (uint32_t t = tile0; t < tile1; t++) {
		const int8_t *q = laid;

		for (uint32_t g = 0; g < s->groups; g++) {
			size_t row = (size_t)t * PACKED_ROWS;
			int32x4_t acc[PACKED_ROWS];

			for (unsigned i = 0; i < PACKED_ROWS; i++)
				acc[i] = vdupq_n_s32(0);
			for (uint32_t u = 0, n; u < units;
			     u += n, at += n * PACKED_UNIT, q += n * span) {
				n = units - u < BLOCK ? units - u : BLOCK;
				for (unsigned r = 0; r < PACKED_ROWS; r += STEP)
					block(at + PACKED_BYTES * r, q, n, acc + r);
			}
			for (unsigned r = 0; r < PACKED_ROWS; r += 4)
				finish(vsubq_s32(sum_rows(acc + r), vdupq_n_s32(sums[g])), d,
				       scales + g * n_rows + row + r, s->groups, g, y + row + r);
		}
	}
}

void ternary_2bit_neon(const struct packed_shape *s, const void *packed, const float *scales,
			 const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
			 uint32_t tile1, float *y)
{
	ternary(s, 64, block_2bit, packed, scales, laid, sums, d, tile0, tile1, y);
}

void ternary_base3_neon(const struct packed_shape *s, const void *packed, const float *scales,
			  const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
			  uint32_t tile1, float *y)
{
	ternary(s, 80, block_base3, packed, scales, laid, sums, d, tile0, tile1, y);
}

/*
 * q = 256 high + low. The instruction multiplies signed by signed: low - 128 takes low's place, and
 * 128 times the sum of the weights is added, which a dot product with ones gives. All sums fit:
 * KERNELS_COLS_MAX.
 */
void head_int8_neon(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct laid_head *laid, float d, uint32_t tile0, uint32_t tile1,
		      float *y)
{
	const uint32_t units = packed_units(s);
	const int8x16_t one = vdupq_n_s8(1);
	const uint8x16_t flip = vdupq_n_u8(0x80);

	for (size_t row = (size_t)tile0 * PACKED_ROWS; row < (size_t)tile1 * PACKED_ROWS;
	     row += 4) {
		const int8_t *at = (const int8_t *)packed +
				   row / PACKED_ROWS * units * PACKED_UNIT +
				   row % PACKED_ROWS * PACKED_BYTES;
		int32x4_t a[4], b[4], w_sum[4], low;
		int64_t total[4];

		for (unsigned i = 0; i < 4; i++)
			a[i] = b[i] = w_sum[i] = vdupq_n_s32(0);
		for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT) {
			const int8x16_t h = vld1q_s8(laid->high + 16 * (size_t)u);
			const int8x16_t l = vreinterpretq_s8_u8(
				veorq_u8(vld1q_u8(laid->low + 16 * (size_t)u), flip));

			for (unsigned i = 0; i < 4; i++) {
				int8x16_t w = vld1q_s8(at + 16 * i);

				a[i] = vdotq_s32(a[i], w, h);
				b[i] = vdotq_s32(b[i], w, l);
				w_sum[i] = vdotq_s32(w_sum[i], w, one);
			}
		}
		low = vmlaq_n_s32(sum_rows(b), sum_rows(w_sum), 128);
		a[0] = sum_rows(a);
		vst1q_s64(total, vaddw_s32(vshll_n_s32(vget_low_s32(a[0]), 8), vget_low_s32(low)));
		vst1q_s64(total + 2,
			  vaddw_s32(vshll_n_s32(vget_high_s32(a[0]), 8), vget_high_s32(low)));
		for (unsigned i = 0; i < 4; i++)
			y[row + i] = (float)total[i] * (d * scales[row + i]);
	}
}

void kernels_neon(struct kernels *k)
{
	k->ternary[PACKED_2BIT] = ternary_2bit_neon;
	k->ternary[PACKED_BASE3] = ternary_base3_neon;
	k->head_int8 = head_int8_neon;
	rows_neon(k);
	half_neon(k);
	k->isa = "neon";
}

#endif

/* SPDX-License-Identifier: MIT */
#ifndef FLOAT_NEON_H
#define FLOAT_NEON_H

/*
 * What the float operations (float_neon.c) and attention (attn_neon.c) for NEON share: loads and
 * stores of what is left of a vector, exp2, the end of a tree, the largest magnitude, codes.
 */

#include <arm_neon.h>
#include "float_variants.h"

#define LANES  4u
#define ALWAYS static inline __attribute__((always_inline))

static inline float32x4_t load(const float *p, uint32_t left)
{
	float part[LANES] = { 0 };

	if (left >= LANES)
		return vld1q_f32(p);
	memcpy(part, p, left * sizeof(*p));
	return vld1q_f32(part);
}

static inline void store(float *p, uint32_t left, float32x4_t v)
{
	float part[LANES];

	if (left >= LANES) {
		vst1q_f32(p, v);
	} else {
		vst1q_f32(part, v);
		memcpy(p, part, left * sizeof(*p));
	}
}

static inline float32x4_t exp2_4(float32x4_t x)
{
	static const uint32_t terms[] = EXP2_TERMS;
	uint32x4_t low = vcltq_f32(x, vdupq_n_f32(-100));
	float32x4_t f, p = vdupq_n_f32(float_of(terms[0]));
	int32x4_t n;

	x = vminq_f32(x, vdupq_n_f32(126)); /* a NaN stays one */
	n = vcvtnq_s32_f32(x);
	f = vsubq_f32(x, vrndnq_f32(x));
	for (unsigned i = 1; i <= EXP2_DEGREE; i++)
		p = vfmaq_f32(vdupq_n_f32(float_of(terms[i])), p, f);
	n = vaddq_s32(vreinterpretq_s32_f32(p), vshlq_n_s32(n, 23));
	return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_s32(n), low));
}

/* The tree of 4: + 2, + 1. */
static inline float fold4(float32x4_t v)
{
	float32x2_t a = vadd_f32(vget_low_f32(v), vget_high_f32(v));

	return vget_lane_f32(a, 0) + vget_lane_f32(a, 1);
}

/* The tree of n = 32 or 128, down to the above. */
static inline float fold(const float *p, unsigned n)
{
	float32x4_t s[16];

	for (unsigned i = 0; i < n / 8; i++)
		s[i] = vaddq_f32(vld1q_f32(p + LANES * i), vld1q_f32(p + n / 2 + LANES * i));
	for (unsigned half = n / 16; half; half /= 2)
		for (unsigned i = 0; i < half; i++)
			s[i] = vaddq_f32(s[i], s[i + half]);
	return fold4(s[0]);
}

/* t, or x itself without a norm. */
static inline float32x4_t weighted(const float *x, const float *w, uint32_t i, uint32_t left)
{
	float32x4_t v = load(x + i, left);

	return w ? vmulq_f32(v, load(w + i, left)) : v;
}

static inline float max_abs(const float *x, const float *w, uint32_t n)
{
	uint32x4_t max = vdupq_n_u32(0);

	for (uint32_t i = 0; i < n; i += LANES)
		max = vmaxq_u32(max, vreinterpretq_u32_f32(vabsq_f32(weighted(x, w, i, n - i))));
	return float_of(vmaxvq_u32(max));
}

/* Codes for a scale s = limit / a. */
static inline int32x4_t codes(float32x4_t x, float s, int32_t low, int32_t high)
{
	int32x4_t code = vcvtnq_s32_f32(vmulq_n_f32(x, s));

	return vmaxq_s32(vminq_s32(code, vdupq_n_s32(high)), vdupq_n_s32(low));
}

static inline void store16(int16_t *p, uint32_t left, int32x4_t code)
{
	int16x4_t words = vmovn_s32(code);

	memcpy(p, &words, (left < LANES ? left : LANES) * sizeof(*p));
}

static inline void store8(int8_t *p, uint32_t left, int32x4_t code)
{
	int16x4_t words = vmovn_s32(code);
	int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));

	memcpy(p, &bytes, left < LANES ? left : LANES);
}

#endif

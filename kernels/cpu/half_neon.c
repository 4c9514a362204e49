/* SPDX-License-Identifier: MIT */
/* Heads in halves, for NEON: a row's eight columns are two vectors. See half_parts.h. */
#if defined(__aarch64__)

#include <arm_neon.h>
#include <string.h>
#include "variants.h"

#define ROWS	1u
#define PARTS	12u
#define PARTS_1 8u
#define PARTS_2 4u
#define PARTS_3 4u
#define ALWAYS	static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 12")
#endif

struct vec {
	float32x4_t low, high;
};

ALWAYS struct vec weights(uint32_t layout, const char *at)
{
	uint16x8_t halves = vld1q_u16((const uint16_t *)(const void *)at);

	if (layout == PACKED_F16) {
		float16x8_t f = vreinterpretq_f16_u16(halves);

		return (struct vec){ vcvt_f32_f16(vget_low_f16(f)), vcvt_high_f32_f16(f) };
	}
	return (struct vec){ vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
			     vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16)) };
}

ALWAYS struct vec values(const float *x)
{
	return (struct vec){ vld1q_f32(x), vld1q_f32(x + 4) };
}

ALWAYS struct vec zero(void)
{
	return (struct vec){ vdupq_n_f32(0), vdupq_n_f32(0) };
}

ALWAYS struct vec add(struct vec a, struct vec b)
{
	return (struct vec){ vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high) };
}

ALWAYS struct vec fma_all(struct vec w, struct vec x, struct vec sum)
{
	return (struct vec){ vfmaq_f32(sum.low, w.low, x.low),
			     vfmaq_f32(sum.high, w.high, x.high) };
}

ALWAYS struct vec fma_first(struct vec w, struct vec x, struct vec sum, unsigned n)
{
	static const uint32_t lane[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };
	struct vec all = fma_all(w, x, sum);
	uint32x4_t low = vcltq_u32(vld1q_u32(lane), vdupq_n_u32(n));
	uint32x4_t high = vcltq_u32(vld1q_u32(lane + 4), vdupq_n_u32(n));

	return (struct vec){ vbslq_f32(low, all.low, sum.low),
			     vbslq_f32(high, all.high, sum.high) };
}

ALWAYS void fold(struct vec v, float *y)
{
	float32x4_t a = vaddq_f32(v.low, v.high);
	float32x2_t b = vadd_f32(vget_low_f32(a), vget_high_f32(a));

	*y = vget_lane_f32(b, 0) + vget_lane_f32(b, 1);
}

#include "half_parts.h"

void half_neon(struct kernels *k)
{
	k->head_half = head_half;
}

#endif

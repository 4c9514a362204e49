/* SPDX-License-Identifier: MIT */
/*
 * Heads in halves, for AVX2 with FMA and F16C: a row's eight columns are a vector. See half_parts.h.
 */
#if defined(__x86_64__)

#include <immintrin.h>
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
	__m256 f;
};

ALWAYS struct vec weights(uint32_t layout, const char *at)
{
	__m128i halves = _mm_load_si128((const __m128i *)(const void *)at);

	if (layout == PACKED_F16)
		return (struct vec){ _mm256_cvtph_ps(halves) };
	return (struct vec){ _mm256_castsi256_ps(
		_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16)) };
}

ALWAYS struct vec values(const float *x)
{
	return (struct vec){ _mm256_loadu_ps(x) };
}

ALWAYS struct vec zero(void)
{
	return (struct vec){ _mm256_setzero_ps() };
}

ALWAYS struct vec add(struct vec a, struct vec b)
{
	return (struct vec){ _mm256_add_ps(a.f, b.f) };
}

ALWAYS struct vec fma_all(struct vec w, struct vec x, struct vec sum)
{
	return (struct vec){ _mm256_fmadd_ps(w.f, x.f, sum.f) };
}

ALWAYS struct vec fma_first(struct vec w, struct vec x, struct vec sum, unsigned n)
{
	const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	__m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);

	return (struct vec){ _mm256_blendv_ps(sum.f, _mm256_fmadd_ps(w.f, x.f, sum.f),
					      _mm256_castsi256_ps(there)) };
}

ALWAYS void fold(struct vec v, float *y)
{
	__m128 a = _mm_add_ps(_mm256_castps256_ps128(v.f), _mm256_extractf128_ps(v.f, 1));

	a = _mm_add_ps(a, _mm_movehl_ps(a, a));
	*y = _mm_cvtss_f32(_mm_add_ss(a, _mm_movehdup_ps(a)));
}

#include "half_parts.h"

void half_avx2(struct kernels *k)
{
	k->head_half = head_half;
}

#endif

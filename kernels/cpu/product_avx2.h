/* SPDX-License-Identifier: MIT */
#ifndef PRODUCT_AVX2_H
#define PRODUCT_AVX2_H

/*
 * What products of one vector (product_avx2.c) and of several (rows_avx2.c) for AVX2 share: how
 * many units 16 bits hold, loads, the end of a row's sums.
 */

#include <immintrin.h>
#include "variants.h"

#define BLOCK	12u
#define VECTORS 16u /* in a unit */

/* A loop of a few turns whose vectors have to stay in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 4")
#endif

static inline __m256i both(const void *p)
{
	return _mm256_broadcastsi128_si256(_mm_load_si128(p));
}

static inline __m256i widen(__m256i sum, __m256i sixteens)
{
	return _mm256_add_epi32(sum, _mm256_madd_epi16(sixteens, _mm256_set1_epi16(1)));
}

/* The four sums in each half of v[0] to v[3], in the order of rows. */
static inline __m256i sum_halves(const __m256i *v)
{
	__m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));

	/* low half: the first rows of v[0] to v[3], high half: the second */
	return _mm256_permutevar8x32_epi32(s, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

static inline void finish(__m256i acc, float d, const float *scales, uint32_t groups,
			  uint32_t group, float *y)
{
	__m256 value = _mm256_cvtepi32_ps(acc);
	__m256 scale = _mm256_mul_ps(_mm256_set1_ps(d), _mm256_loadu_ps(scales));

	if (groups == 1)
		value = _mm256_mul_ps(value, scale);
	else
		value = _mm256_fmadd_ps(value, scale,
					group ? _mm256_loadu_ps(y) : _mm256_setzero_ps());
	_mm256_storeu_ps(y, value);
}

#endif

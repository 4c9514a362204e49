/* SPDX-License-Identifier: MIT */
#ifndef FLOAT_AVX512_H
#define FLOAT_AVX512_H

/*
 * What the float operations (float_avx512.c) and attention (attn_avx512.c) for AVX-512 share: loads
 * and stores of what is left of a vector, exp2, the end of a tree, the largest magnitude, codes.
 */

#include <immintrin.h>
#include "float_variants.h"

#define LANES  16u
#define ALWAYS static inline __attribute__((always_inline))

static inline __mmask16 first(uint32_t n)
{
	return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1);
}

ALWAYS __m512 load(const float *p, uint32_t left)
{
	return left >= LANES ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(first(left), p);
}

ALWAYS void store(float *p, uint32_t left, __m512 v)
{
	if (left >= LANES)
		_mm512_storeu_ps(p, v);
	else
		_mm512_mask_storeu_ps(p, first(left), v);
}

static inline __m512 exp2_16(__m512 x)
{
	static const uint32_t terms[] = EXP2_TERMS;
	__mmask16 low = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-100), _CMP_LT_OQ);
	__m512 f, p = _mm512_set1_ps(float_of(terms[0]));
	__m512i n;

	x = _mm512_min_ps(_mm512_set1_ps(126), x); /* the second where it is a NaN */
	n = _mm512_cvtps_epi32(x);
	f = _mm512_sub_ps(x,
			  _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
	for (unsigned i = 1; i <= EXP2_DEGREE; i++)
		p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(float_of(terms[i])));
	n = _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(n, 23));
	return _mm512_castsi512_ps(_mm512_mask_set1_epi32(n, low, 0));
}

/* The tree of 16: + 8, + 4, + 2, + 1. */
static inline float fold16(__m512 v)
{
	__m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
	__m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));

	b = _mm_add_ps(b, _mm_movehl_ps(b, b));
	return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* t, or x itself without a norm. */
ALWAYS __m512 weighted(const float *x, const float *w, uint32_t i, uint32_t left)
{
	__m512 v = load(x + i, left);

	return w ? _mm512_mul_ps(v, load(w + i, left)) : v;
}

static inline __m512i abs_bits(__m512 v)
{
	return _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7fffffff));
}

static inline float max_abs(const float *x, const float *w, uint32_t n)
{
	__m512i max = _mm512_setzero_si512();
	uint32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		max = _mm512_max_epu32(max, abs_bits(weighted(x, w, i, LANES)));
	if (i < n)
		max = _mm512_max_epu32(max, abs_bits(weighted(x, w, i, n - i)));
	return float_of(_mm512_reduce_max_epu32(max));
}

/* Codes of 16, for a scale s = limit / a. */
static inline __m512i codes(__m512 x, float s, int limit)
{
	__m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(s)));

	return _mm512_max_epi32(_mm512_min_epi32(code, _mm512_set1_epi32(limit)),
				_mm512_set1_epi32(-limit));
}

#endif

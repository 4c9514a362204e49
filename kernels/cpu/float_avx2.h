/* SPDX-License-Identifier: MIT */
#ifndef FLOAT_AVX2_H
#define FLOAT_AVX2_H

/*
 * What the float operations (float_avx2.c) and attention (attn_avx2.c) for AVX2 share: loads and
 * stores of what is left of a vector, exp2, the end of a tree, the largest magnitude, codes.
 */

#include <immintrin.h>
#include "float_variants.h"

#define LANES  8u
#define ALWAYS static inline __attribute__((always_inline))

/* A mask of the first n lanes. */
static inline __m256i first(uint32_t n)
{
	static const int32_t ones[2 * LANES] = { -1, -1, -1, -1, -1, -1, -1, -1 };

	return _mm256_loadu_si256(
		(const __m256i *)(const void *)(ones + LANES - (n < LANES ? n : LANES)));
}

ALWAYS __m256 load(const float *p, uint32_t left)
{
	return left >= LANES ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, first(left));
}

ALWAYS void store(float *p, uint32_t left, __m256 v)
{
	if (left >= LANES)
		_mm256_storeu_ps(p, v);
	else
		_mm256_maskstore_ps(p, first(left), v);
}

static inline __m256 exp2_8(__m256 x)
{
	static const uint32_t terms[] = EXP2_TERMS;
	__m256 low = _mm256_cmp_ps(x, _mm256_set1_ps(-100), _CMP_LT_OQ);
	__m256 f, p = _mm256_set1_ps(float_of(terms[0]));
	__m256i n;

	x = _mm256_min_ps(_mm256_set1_ps(126), x); /* the second where it is a NaN */
	n = _mm256_cvtps_epi32(x);
	f = _mm256_sub_ps(x, _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
	for (unsigned i = 1; i <= EXP2_DEGREE; i++)
		p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(float_of(terms[i])));
	n = _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(n, 23));
	return _mm256_andnot_ps(low, _mm256_castsi256_ps(n));
}

/* The tree of 8: + 4, + 2, + 1. */
static inline float fold8(__m256 v)
{
	__m128 b = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));

	b = _mm_add_ps(b, _mm_movehl_ps(b, b));
	return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

/* The tree of 128: + 64, + 32, + 16, + 8, then the above. */
static inline float fold128(const float *p)
{
	__m256 s[8];

	for (unsigned i = 0; i < 8; i++)
		s[i] = _mm256_add_ps(_mm256_load_ps(p + LANES * i),
				     _mm256_load_ps(p + 64 + LANES * i));
	for (unsigned half = 4; half; half /= 2)
		for (unsigned i = 0; i < half; i++)
			s[i] = _mm256_add_ps(s[i], s[i + half]);
	return fold8(s[0]);
}

/* t, or x itself without a norm. */
ALWAYS __m256 weighted(const float *x, const float *w, uint32_t i, uint32_t left)
{
	__m256 v = load(x + i, left);

	return w ? _mm256_mul_ps(v, load(w + i, left)) : v;
}

static inline float max_abs(const float *x, const float *w, uint32_t n)
{
	const __m256i absolute = _mm256_set1_epi32(0x7fffffff);
	__m256i max = _mm256_setzero_si256();
	uint32_t lane[LANES], all = 0, i = 0;

	for (; i + LANES <= n; i += LANES)
		max = _mm256_max_epu32(
			max,
			_mm256_and_si256(_mm256_castps_si256(weighted(x, w, i, LANES)), absolute));
	if (i < n)
		max = _mm256_max_epu32(
			max,
			_mm256_and_si256(_mm256_castps_si256(weighted(x, w, i, n - i)), absolute));
	_mm256_storeu_si256((__m256i *)(void *)lane, max);
	for (i = 0; i < LANES; i++)
		all = lane[i] > all ? lane[i] : all;
	return float_of(all);
}

/* Eight codes of 32 bits as 16, and as 8; both clamp. */
static inline __m128i narrow16(__m256i code)
{
	return _mm_packs_epi32(_mm256_castsi256_si128(code), _mm256_extracti128_si256(code, 1));
}

static inline __m128i narrow8(__m256i code)
{
	return _mm_packs_epi16(narrow16(code), _mm_setzero_si128());
}

ALWAYS void store_bytes(void *p, uint32_t left, uint32_t size, __m128i v)
{
	if (left >= LANES) {
		memcpy(p, &v, (size_t)LANES * size);
	} else {
		char bytes[16];

		_mm_storeu_si128((__m128i *)(void *)bytes, v);
		memcpy(p, bytes, (size_t)left * size);
	}
}

/* Codes for a scale s = limit / a. */
ALWAYS __m256i codes(__m256 x, float s, int limit)
{
	__m256i code = _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(s)));

	return _mm256_max_epi32(_mm256_min_epi32(code, _mm256_set1_epi32(limit)),
				_mm256_set1_epi32(-limit));
}

#endif

/* SPDX-License-Identifier: MIT */
#ifndef PRODUCT_AVX512_H
#define PRODUCT_AVX512_H

/*
 * What products of one vector (product_avx512.c) and of several (rows_avx512.c) for AVX-512 share:
 * loads, the look-up of base 3, the end of a row's sums.
 */

#include <immintrin.h>
#include "variants.h"

#define LINES  8u /* of 64 bytes in a unit */
#define ALWAYS static inline __attribute__((always_inline))

/* A loop of a few turns whose vectors have to stay in registers. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 24")
#endif

/* The four sums in each quarter of v[0] to v[3], in the order of rows; v[i] has rows 4i on. */
static inline __m512i sum_quarters(const __m512i *v)
{
	__m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]),
				     _mm512_unpackhi_epi32(v[0], v[1]));
	__m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]),
				     _mm512_unpackhi_epi32(v[2], v[3]));
	__m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));

	/* c: quarter k holds row k of v[0], v[1], v[2], v[3] */
	return _mm512_permutexvar_epi32(
		_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), c);
}

static inline __m512i quarters(const void *p)
{
	return _mm512_broadcast_i32x4(_mm_load_si128(p));
}

/* acc += code * q. gcc moves sums about when it sees what this is. */
ALWAYS void dot(__m512i *acc, __m512i code, __m512i q)
{
#if defined(__clang__)
	*acc = _mm512_dpbusd_epi32(*acc, code, q);
#else
	__asm__("vpdpbusd %2, %1, %0" : "+v"(*acc) : "v"(code), "v"(q));
#endif
}

/* 16 rows' sums become outputs, or the chain's next link. */
static inline void finish(__m512i acc, float d, const float *scales, uint32_t groups,
			  uint32_t group, float *y)
{
	__m512 value = _mm512_cvtepi32_ps(acc);
	__m512 scale = _mm512_mul_ps(_mm512_set1_ps(d), _mm512_loadu_ps(scales));

	if (groups == 1)
		value = _mm512_mul_ps(value, scale);
	else
		value = _mm512_fmadd_ps(value, scale,
					group ? _mm512_loadu_ps(y) : _mm512_setzero_ps());
	_mm512_storeu_ps(y, value);
}

/* Digits 1 to 4 of each byte, 2 bits each, digit 1 lowest. */
static inline void base3_digits(__m512i table[4])
{
	_Alignas(64) uint8_t digits[256];

	for (unsigned b = 0; b < 256; b++) {
		unsigned rest = b * 3 & 255, entry = 0;

		for (unsigned p = 0; p < 4; p++) {
			entry |= (rest * 3 >> 8) << 2 * p;
			rest = rest * 3 & 255;
		}
		digits[b] = (uint8_t)entry;
	}
	for (unsigned i = 0; i < 4; i++)
		table[i] = _mm512_load_si512(digits + 64 * i);
}

/* An entry of 256 for each byte: the top bit chooses between two tables of 128. */
static inline __m512i look_up(const __m512i *table, __m512i b)
{
	return _mm512_mask_blend_epi8(_mm512_movepi8_mask(b),
				      _mm512_permutex2var_epi8(table[0], b, table[1]),
				      _mm512_permutex2var_epi8(table[2], b, table[3]));
}

/* The carry of b * 3: 1 from 86 on, 2 from 171 on. */
static inline __m512i first_digit(__m512i b, __m512i one)
{
	__m512i digit = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(b, _mm512_set1_epi8(85)), one);

	return _mm512_mask_add_epi8(digit, _mm512_cmpgt_epu8_mask(b, _mm512_set1_epi8((char)170)),
				    digit, one);
}

/*
 * 16 rows of an int8 head: their sums of high * (weight + 128), of which `off` is too much, and of
 * low * weight.
 */
static inline void finish_head(__m512i high, __m512i low, int32_t off, float d, const float *scales,
			       float *y)
{
	high = _mm512_sub_epi32(high, _mm512_set1_epi32(off));
	for (unsigned half = 0; half < 2; half++) {
		__m256 scale =
			_mm256_mul_ps(_mm256_set1_ps(d), _mm256_loadu_ps(scales + 8 * half));
		__m512i total = _mm512_add_epi64(
			_mm512_slli_epi64(_mm512_cvtepi32_epi64(_mm512_castsi512_si256(high)), 8),
			_mm512_cvtepi32_epi64(_mm512_castsi512_si256(low)));

		_mm256_storeu_ps(y + 8 * half, _mm256_mul_ps(_mm512_cvtepi64_ps(total), scale));
		high = _mm512_shuffle_i64x2(high, high, 0xee);
		low = _mm512_shuffle_i64x2(low, low, 0xee);
	}
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and one vector, for AVX2.
 *
 * A vector of 32 bytes is two rows' part of a unit. Codes 0, 1, 2 times activations are added in 16
 * bits: a pair is at most 512 from zero, a unit's four or five pairs 2560, so that twelve units
 * fit; then they are widened. A block of units is gone through four times, eight rows at a time,
 * while it is in the nearest cache: there are sixteen registers only. Such steps are nothing that
 * the hardware would foresee, so each asks for a quarter of the next block, in the order of memory.
 *
 * Base 3 is decoded by arithmetic: three times the byte is the rest, and the digit, its carry, is
 * one for each of two thresholds passed.
 */
#if defined(__x86_64__)

#include "product_avx2.h"

#define STEP	4u /* vectors at a time: eight rows */
#define STEPS	4u
#define FETCHED (PACKED_UNIT / STEPS)

/* Two lines; past the end of the matrix it does no harm. */
static inline void fetch(const char *next)
{
	_mm_prefetch(next, _MM_HINT_T0);
	_mm_prefetch(next + 64, _MM_HINT_T0);
}

static inline void block_2bit(const char *at, const char *next, const int8_t *q, uint32_t units,
			      __m256i *sums)
{
	const __m256i low = _mm256_set1_epi8(3);
	__m256i s[STEP];

	for (unsigned i = 0; i < STEP; i++)
		s[i] = _mm256_setzero_si256();
	for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, next += FETCHED, q += 64) {
		const __m256i q0 = both(q), q1 = both(q + 16), q2 = both(q + 32), q3 = both(q + 48);

		fetch(next);
#pragma GCC unroll 4
		for (unsigned i = 0; i < STEP; i++) {
			__m256i w = _mm256_load_si256((const __m256i *)(const void *)(at + 32 * i));
			__m256i a = _mm256_maddubs_epi16(_mm256_and_si256(w, low), q0);
			__m256i b = _mm256_maddubs_epi16(
				_mm256_and_si256(_mm256_srli_epi16(w, 2), low), q1);
			__m256i c = _mm256_maddubs_epi16(
				_mm256_and_si256(_mm256_srli_epi16(w, 4), low), q2);
			__m256i e = _mm256_maddubs_epi16(
				_mm256_and_si256(_mm256_srli_epi16(w, 6), low), q3);

			s[i] = _mm256_add_epi16(s[i], _mm256_add_epi16(_mm256_add_epi16(a, b),
								       _mm256_add_epi16(c, e)));
		}
	}
	for (unsigned i = 0; i < STEP; i++)
		sums[i] = widen(sums[i], s[i]);
}

static inline void block_base3(const char *at, const char *next, const int8_t *q, uint32_t units,
			       __m256i *sums)
{
	/* Comparisons are signed: 128 is taken from all, and three times that is the same again. */
	const __m256i flip = _mm256_set1_epi8((char)0x80);
	const __m256i first = _mm256_set1_epi8(85 - 128), second = _mm256_set1_epi8(170 - 128);
	__m256i s[STEP];

	for (unsigned i = 0; i < STEP; i++)
		s[i] = _mm256_setzero_si256();
	for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, next += FETCHED, q += 80) {
		fetch(next);
#pragma GCC unroll 4
		for (unsigned i = 0; i < STEP; i++) {
			__m256i b = _mm256_load_si256((const __m256i *)(const void *)(at + 32 * i));

			b = _mm256_xor_si256(b, flip);
#pragma GCC unroll 5
			for (unsigned p = 0; p < 5; p++) {
				__m256i minus = _mm256_add_epi8(_mm256_cmpgt_epi8(b, first),
								_mm256_cmpgt_epi8(b, second));

				s[i] = _mm256_add_epi16(s[i],
							_mm256_maddubs_epi16(_mm256_abs_epi8(minus),
									     both(q + 16 * p)));
				b = _mm256_add_epi8(_mm256_add_epi8(b, b), b);
			}
		}
	}
	for (unsigned i = 0; i < STEP; i++)
		sums[i] = widen(sums[i], s[i]);
}

static inline void ternary(const struct packed_shape *s, uint32_t span,
			   void (*block)(const char *, const char *, const int8_t *, uint32_t,
					 __m256i *),
			   const char *at, const float *scales, const int8_t *laid,
			   const int32_t *sums, float d, uint32_t tile0, uint32_t tile1, float *y)
{
	const uint32_t units = packed_units(s) / s->groups;
	const size_t n_rows = (size_t)packed_tiles(s) * PACKED_ROWS;

	at += (size_t)tile0 * packed_units(s) * PACKED_UNIT;
	for (uint32_t t = tile0; t < tile1; t++) {
		const int8_t *q = laid;

		for (uint32_t g = 0; g < s->groups; g++) {
			size_t row = (size_t)t * PACKED_ROWS;
			__m256i acc[VECTORS];

			for (unsigned i = 0; i < VECTORS; i++)
				acc[i] = _mm256_setzero_si256();
			for (uint32_t u = 0, n; u < units;
			     u += n, at += n * PACKED_UNIT, q += n * span) {
				n = units - u < BLOCK ? units - u : BLOCK;
				for (unsigned i = 0; i < STEPS; i++)
					block(at + FETCHED * i,
					      at + n * PACKED_UNIT + n * FETCHED * i, q, n,
					      acc + STEP * i);
			}
			for (unsigned i = 0; i < STEPS; i++)
				finish(_mm256_sub_epi32(sum_halves(acc + STEP * i),
							_mm256_set1_epi32(sums[g])),
				       d, scales + g * n_rows + row + 8 * i, s->groups, g,
				       y + row + 8 * i);
		}
	}
}

void ternary_2bit_avx2(const struct packed_shape *s, const void *packed, const float *scales,
			 const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
			 uint32_t tile1, float *y)
{
	ternary(s, 64, block_2bit, packed, scales, laid, sums, d, tile0, tile1, y);
}

void ternary_base3_avx2(const struct packed_shape *s, const void *packed, const float *scales,
			  const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
			  uint32_t tile1, float *y)
{
	ternary(s, 80, block_base3, packed, scales, laid, sums, d, tile0, tile1, y);
}

/*
 * Weights and activations in 16 bits; a pair of products is at most 2^23. The pairs of half a row
 * in 64 units would fit 32 bits, by a hair; HEAD_BLOCK units stay in the nearest cache, too. From
 * there a row's sums go on in 64 bits.
 */
#define HEAD_BLOCK 16u

static inline void block_int8(const char *at, const char *next, const int16_t *q, uint32_t units,
			      int64_t *total)
{
	__m256i acc[8];
	int32_t part[8];

	for (unsigned r = 0; r < 8; r++)
		acc[r] = _mm256_setzero_si256();
	for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, next += FETCHED, q += 16) {
		const __m256i v = _mm256_load_si256((const __m256i *)(const void *)q);

		fetch(next);
#pragma GCC unroll 8
		for (unsigned r = 0; r < 8; r++) {
			__m128i w = _mm_load_si128((const __m128i *)(const void *)(at + 16 * r));

			acc[r] = _mm256_add_epi32(acc[r],
						  _mm256_madd_epi16(_mm256_cvtepi8_epi16(w), v));
		}
	}
	for (unsigned r = 0; r < 8; r += 4) {
		__m256i sum = _mm256_hadd_epi32(_mm256_hadd_epi32(acc[r], acc[r + 1]),
						_mm256_hadd_epi32(acc[r + 2], acc[r + 3]));

		_mm256_storeu_si256((__m256i *)(void *)part, sum);
		for (unsigned i = 0; i < 4; i++)
			total[r + i] += (int64_t)part[i] + part[4 + i];
	}
}

void head_int8_avx2(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct laid_head *laid, float d, uint32_t tile0, uint32_t tile1,
		      float *y)
{
	const uint32_t units = packed_units(s);
	const char *at = (const char *)packed + (size_t)tile0 * units * PACKED_UNIT;

	for (size_t row = (size_t)tile0 * PACKED_ROWS; row < (size_t)tile1 * PACKED_ROWS;
	     row += PACKED_ROWS) {
		int64_t total[PACKED_ROWS] = { 0 };

		for (uint32_t u = 0, n; u < units; u += n, at += n * PACKED_UNIT) {
			n = units - u < HEAD_BLOCK ? units - u : HEAD_BLOCK;
			for (unsigned i = 0; i < STEPS; i++)
				block_int8(at + FETCHED * i, at + n * PACKED_UNIT + n * FETCHED * i,
					   laid->q + 16 * (size_t)u, n, total + 8 * i);
		}
		for (unsigned r = 0; r < PACKED_ROWS; r++)
			y[row + r] = (float)total[r] * (d * scales[row + r]);
	}
}

void kernels_avx2(struct kernels *k)
{
	k->ternary[PACKED_2BIT] = ternary_2bit_avx2;
	k->ternary[PACKED_BASE3] = ternary_base3_avx2;
	k->head_int8 = head_int8_avx2;
	rows_avx2(k);
	half_avx2(k);
	k->isa = "avx2";
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and one vector, for AVX-512 with VNNI and VBMI.
 *
 * A vector of 64 bytes is four rows' part of a unit, so eight of them are a unit and their sums
 * stay in registers for the whole tile, while the activations, 16 columns in each quarter of a
 * register, serve all eight. Weights are multiplied as codes 0, 1, 2; the sum of the activations is
 * taken off at the end.
 *
 * Codes are not shifted into place: the two that lie four times too high have sums of their own,
 * divided by four at the end (exact, they are multiples of it), so that a line of 2-bit weights
 * takes one load, one shift, four ANDs and four dot products.
 *
 * A base-3 byte is looked up: 256 entries are four registers, and an entry holds its last four
 * digits as 2-bit codes, with which it goes on as above. The first digit is two comparisons.
 *
 * Nothing is prefetched by hand: tiles are read from end to end, and the hardware does better.
 */
#if defined(__x86_64__)

#include <immintrin.h>
#include "variants.h"

#define LINES 8u /* of 64 bytes in a unit */

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

/* Sums of codes in place (fine) and of codes four times too high (high), less the activations'. */
static inline void finish_tile(const __m512i *fine, const __m512i *high, int32_t sum, float d,
			       const float *scales, uint32_t groups, uint32_t group, float *y)
{
	for (unsigned half = 0; half < 2; half++) {
		__m512i v[4];

		for (unsigned i = 0; i < 4; i++)
			v[i] = _mm512_add_epi32(fine[4 * half + i],
						_mm512_srai_epi32(high[4 * half + i], 2));
		finish(_mm512_sub_epi32(sum_quarters(v), _mm512_set1_epi32(sum)), d,
		       scales + 16 * half, groups, group, y + 16 * half);
	}
}

static void ternary_2bit(const struct packed_shape *s, const void *packed, const float *scales,
			 const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
			 uint32_t tile1, float *y)
{
	const uint32_t units = packed_units(s) / s->groups;
	const size_t n_rows = (size_t)packed_tiles(s) * PACKED_ROWS;
	const char *at = (const char *)packed + (size_t)tile0 * packed_units(s) * PACKED_UNIT;
	const __m512i low = _mm512_set1_epi8(0x03), next = _mm512_set1_epi8(0x0c);

	for (uint32_t t = tile0; t < tile1; t++) {
		const int8_t *q = laid;

		for (uint32_t g = 0; g < s->groups; g++) {
			__m512i fine[LINES], high[LINES];

			for (unsigned i = 0; i < LINES; i++)
				fine[i] = high[i] = _mm512_setzero_si512();
			for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, q += 64) {
				const __m512i q0 = quarters(q), q1 = quarters(q + 16);
				const __m512i q2 = quarters(q + 32), q3 = quarters(q + 48);

#pragma GCC unroll 8
				for (unsigned i = 0; i < LINES; i++) {
					__m512i w = _mm512_load_si512(at + 64 * i);
					__m512i v = _mm512_srli_epi16(w, 4);

					fine[i] = _mm512_dpbusd_epi32(fine[i],
								      _mm512_and_si512(w, low), q0);
					high[i] = _mm512_dpbusd_epi32(
						high[i], _mm512_and_si512(w, next), q1);
					fine[i] = _mm512_dpbusd_epi32(fine[i],
								      _mm512_and_si512(v, low), q2);
					high[i] = _mm512_dpbusd_epi32(
						high[i], _mm512_and_si512(v, next), q3);
				}
			}
			finish_tile(fine, high, sums[g], d,
				    scales + g * n_rows + (size_t)t * PACKED_ROWS, s->groups, g,
				    y + (size_t)t * PACKED_ROWS);
		}
	}
}

/* Digits 1 to 4 of each byte, 2 bits each, digit 1 lowest. */
static void base3_digits(__m512i table[4])
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

static void ternary_base3(const struct packed_shape *s, const void *packed, const float *scales,
			  const int8_t *laid, const int32_t *sums, float d, uint32_t tile0,
			  uint32_t tile1, float *y)
{
	const uint32_t units = packed_units(s) / s->groups;
	const size_t n_rows = (size_t)packed_tiles(s) * PACKED_ROWS;
	const char *at = (const char *)packed + (size_t)tile0 * packed_units(s) * PACKED_UNIT;
	const __m512i low = _mm512_set1_epi8(0x03), next = _mm512_set1_epi8(0x0c);
	const __m512i one = _mm512_set1_epi8(1);
	__m512i digits[4];

	base3_digits(digits);
	for (uint32_t t = tile0; t < tile1; t++) {
		const int8_t *q = laid;

		for (uint32_t g = 0; g < s->groups; g++) {
			__m512i fine[LINES], high[LINES];

			for (unsigned i = 0; i < LINES; i++)
				fine[i] = high[i] = _mm512_setzero_si512();
			for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, q += 80) {
				const __m512i q0 = quarters(q), q1 = quarters(q + 16);
				const __m512i q2 = quarters(q + 32), q3 = quarters(q + 48);
				const __m512i q4 = quarters(q + 64);

#pragma GCC unroll 8
				for (unsigned i = 0; i < LINES; i++) {
					__m512i b = _mm512_load_si512(at + 64 * i),
						first = first_digit(b, one);
					__m512i w = look_up(digits, b), v = _mm512_srli_epi16(w, 4);

					fine[i] = _mm512_dpbusd_epi32(fine[i], first, q0);
					fine[i] = _mm512_dpbusd_epi32(fine[i],
								      _mm512_and_si512(w, low), q1);
					high[i] = _mm512_dpbusd_epi32(
						high[i], _mm512_and_si512(w, next), q2);
					fine[i] = _mm512_dpbusd_epi32(fine[i],
								      _mm512_and_si512(v, low), q3);
					high[i] = _mm512_dpbusd_epi32(
						high[i], _mm512_and_si512(v, next), q4);
				}
			}
			finish_tile(fine, high, sums[g], d,
				    scales + g * n_rows + (size_t)t * PACKED_ROWS, s->groups, g,
				    y + (size_t)t * PACKED_ROWS);
		}
	}
}

/*
 * q = 256 high + low, high signed and low unsigned, weights signed. The instruction multiplies
 * unsigned by signed: low * weight as it is; high * (weight + 128), and 128 times the sum of high
 * is taken off.
 */
static void head_int8(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct laid_head *laid, float d, uint32_t tile0, uint32_t tile1,
		      float *y)
{
	const uint32_t units = packed_units(s);
	const char *at = (const char *)packed + (size_t)tile0 * units * PACKED_UNIT;
	const __m512i flip = _mm512_set1_epi8((char)0x80);
	const __m512i off = _mm512_set1_epi32(128 * laid->sum_high);

	for (uint32_t t = tile0; t < tile1; t++) {
		__m512i a[LINES], b[LINES];

		for (unsigned i = 0; i < LINES; i++)
			a[i] = b[i] = _mm512_setzero_si512();
		for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT) {
			const __m512i h = quarters(laid->high + 16 * (size_t)u);
			const __m512i l = quarters(laid->low + 16 * (size_t)u);

#pragma GCC unroll 8
			for (unsigned i = 0; i < LINES; i++) {
				__m512i w = _mm512_load_si512(at + 64 * i);

				a[i] = _mm512_dpbusd_epi32(a[i], _mm512_xor_si512(w, flip), h);
				b[i] = _mm512_dpbusd_epi32(b[i], l, w);
			}
		}
		for (unsigned half = 0; half < 4; half++) {
			unsigned quad = half / 2;
			__m512i high = _mm512_sub_epi32(sum_quarters(a + 4 * quad), off);
			__m512i low = sum_quarters(b + 4 * quad);
			size_t row = (size_t)t * PACKED_ROWS + 8 * half;
			__m512i total;
			__m256 scale =
				_mm256_mul_ps(_mm256_set1_ps(d), _mm256_loadu_ps(scales + row));

			if (half & 1) {
				high = _mm512_shuffle_i64x2(high, high, 0xee);
				low = _mm512_shuffle_i64x2(low, low, 0xee);
			}
			total = _mm512_add_epi64(
				_mm512_slli_epi64(
					_mm512_cvtepi32_epi64(_mm512_castsi512_si256(high)), 8),
				_mm512_cvtepi32_epi64(_mm512_castsi512_si256(low)));
			_mm256_storeu_ps(y + row, _mm256_mul_ps(_mm512_cvtepi64_ps(total), scale));
		}
	}
}

void kernels_avx512(struct kernels *k)
{
	k->ternary[PACKED_2BIT] = ternary_2bit;
	k->ternary[PACKED_BASE3] = ternary_base3;
	k->head_int8 = head_int8;
	k->isa = "avx512";
}

#endif

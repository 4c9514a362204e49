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

#include "product_avx512.h"

/* Sums of codes in place (fine) and of codes four times too high (high), less the activations'. */
static inline void finish_tile(const __m512i *fine, const __m512i *high, int32_t sum, float d,
			       const float *scales, uint32_t groups, uint32_t group, float *y)
{
	UNROLL
	for (unsigned half = 0; half < 2; half++) {
		__m512i v[4];

		UNROLL
		for (unsigned i = 0; i < 4; i++)
			v[i] = _mm512_add_epi32(fine[4 * half + i],
						_mm512_srai_epi32(high[4 * half + i], 2));
		finish(_mm512_sub_epi32(sum_quarters(v), _mm512_set1_epi32(sum)), d,
		       scales + 16 * half, groups, group, y + 16 * half);
	}
}

void ternary_2bit_avx512(const struct packed_shape *s, const void *packed, const float *scales,
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

			UNROLL
			for (unsigned i = 0; i < LINES; i++)
				fine[i] = high[i] = _mm512_setzero_si512();
			for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, q += 64) {
				const __m512i q0 = quarters(q), q1 = quarters(q + 16);
				const __m512i q2 = quarters(q + 32), q3 = quarters(q + 48);

				UNROLL
				for (unsigned i = 0; i < LINES; i++) {
					__m512i w = _mm512_load_si512(at + 64 * i);
					__m512i v = _mm512_srli_epi16(w, 4);

					dot(&fine[i], _mm512_and_si512(w, low), q0);
					dot(&high[i], _mm512_and_si512(w, next), q1);
					dot(&fine[i], _mm512_and_si512(v, low), q2);
					dot(&high[i], _mm512_and_si512(v, next), q3);
				}
			}
			finish_tile(fine, high, sums[g], d,
				    scales + g * n_rows + (size_t)t * PACKED_ROWS, s->groups, g,
				    y + (size_t)t * PACKED_ROWS);
		}
	}
}

void ternary_base3_avx512(const struct packed_shape *s, const void *packed, const float *scales,
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

			UNROLL
			for (unsigned i = 0; i < LINES; i++)
				fine[i] = high[i] = _mm512_setzero_si512();
			for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, q += 80) {
				const __m512i q0 = quarters(q), q1 = quarters(q + 16);
				const __m512i q2 = quarters(q + 32), q3 = quarters(q + 48);
				const __m512i q4 = quarters(q + 64);

				UNROLL
				for (unsigned i = 0; i < LINES; i++) {
					__m512i b = _mm512_load_si512(at + 64 * i),
						first = first_digit(b, one);
					__m512i w = look_up(digits, b), v = _mm512_srli_epi16(w, 4);

					dot(&fine[i], first, q0);
					dot(&fine[i], _mm512_and_si512(w, low), q1);
					dot(&high[i], _mm512_and_si512(w, next), q2);
					dot(&fine[i], _mm512_and_si512(v, low), q3);
					dot(&high[i], _mm512_and_si512(v, next), q4);
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
void head_int8_avx512(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct laid_head *laid, float d, uint32_t tile0, uint32_t tile1,
		      float *y)
{
	const uint32_t units = packed_units(s);
	const char *at = (const char *)packed + (size_t)tile0 * units * PACKED_UNIT;
	const __m512i flip = _mm512_set1_epi8((char)0x80);

	for (uint32_t t = tile0; t < tile1; t++) {
		__m512i a[LINES], b[LINES];

		UNROLL
		for (unsigned i = 0; i < LINES; i++)
			a[i] = b[i] = _mm512_setzero_si512();
		for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT) {
			const __m512i h = quarters(laid->high + 16 * (size_t)u);
			const __m512i l = quarters(laid->low + 16 * (size_t)u);

				UNROLL
			for (unsigned i = 0; i < LINES; i++) {
				__m512i w = _mm512_load_si512(at + 64 * i);

				dot(&a[i], _mm512_xor_si512(w, flip), h);
				dot(&b[i], l, w);
			}
		}
		UNROLL
		for (unsigned quad = 0; quad < 2; quad++) {
			size_t row = (size_t)t * PACKED_ROWS + 16 * quad;

			finish_head(sum_quarters(a + 4 * quad), sum_quarters(b + 4 * quad),
				    128 * laid->sum_high, d, scales + row, y + row);
		}
	}
}

void kernels_avx512(struct kernels *k)
{
	k->ternary[PACKED_2BIT] = ternary_2bit_avx512;
	k->ternary[PACKED_BASE3] = ternary_base3_avx512;
	k->head_int8 = head_int8_avx512;
	rows_avx512(k);
	half_avx512(k);
	k->isa = "avx512";
}

#endif

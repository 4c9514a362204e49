/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and several vectors, for AVX2.
 *
 * A block of units is decoded to bytes once, and all rows of activations go over it while it is
 * near: two vectors of codes and four rows at a time, added in 16 bits as for one vector
 * (product_avx2.c); a block is as long as that allows. Their 32-bit sums wait in memory.
 */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>
#include "product_avx2.h"

#define ROWS	 4u  /* of activations that have registers */
#define PAIR	 2u  /* vectors of codes */
#define ROWS_MAX 32u /* whose sums wait in memory */
#define ENOUGH	 3u  /* to be worth it; fewer are multiplied one after the other */

/* At the start of a thread's scratch: sums, and a block's codes, pair by pair. */
struct room {
	__m256i sums[ROWS_MAX][VECTORS];
	__m256i codes[VECTORS / PAIR][BLOCK * 5][PAIR];
};
_Static_assert(sizeof(struct room) <= SCRATCH_AVX2, "kernels_scratch_bytes() counts it");

static inline void decode_2bit(const char *at, uint32_t units, __m256i (*codes)[BLOCK * 5][PAIR])
{
	const __m256i low = _mm256_set1_epi8(3);

	for (uint32_t u = 0; u < 4 * units; u += 4)
		for (unsigned i = 0; i < VECTORS; i++, at += 32) {
			__m256i w = _mm256_load_si256((const __m256i *)(const void *)at);

			codes[i / PAIR][u][i % PAIR] = _mm256_and_si256(w, low);
			codes[i / PAIR][u + 1][i % PAIR] = _mm256_and_si256(_mm256_srli_epi16(w, 2), low);
			codes[i / PAIR][u + 2][i % PAIR] = _mm256_and_si256(_mm256_srli_epi16(w, 4), low);
			codes[i / PAIR][u + 3][i % PAIR] = _mm256_and_si256(_mm256_srli_epi16(w, 6), low);
		}
}

static inline void decode_base3(const char *at, uint32_t units, __m256i (*codes)[BLOCK * 5][PAIR])
{
	const __m256i flip = _mm256_set1_epi8((char)0x80);
	const __m256i first = _mm256_set1_epi8(85 - 128), second = _mm256_set1_epi8(170 - 128);

	for (uint32_t u = 0; u < 5 * units; u += 5)
		for (unsigned i = 0; i < VECTORS; i++, at += 32) {
			__m256i b = _mm256_load_si256((const __m256i *)(const void *)at);

			b = _mm256_xor_si256(b, flip);
			for (unsigned p = 0; p < 5; p++) {
				codes[i / PAIR][u + p][i % PAIR] = _mm256_abs_epi8(
					_mm256_add_epi8(_mm256_cmpgt_epi8(b, first),
							_mm256_cmpgt_epi8(b, second)));
				b = _mm256_add_epi8(_mm256_add_epi8(b, b), b);
			}
		}
}

/* gcc moves sums about when it sees what this is. */
static inline void add(__m256i *sum, __m256i v)
{
#if defined(__clang__)
	*sum = _mm256_add_epi16(*sum, v);
#else
	__asm__("vpaddw %1, %0, %0" : "+x"(*sum) : "x"(v));
#endif
}

/* Steps of 16 columns: two vectors of codes, n rows. */
static inline __attribute__((always_inline)) void
add_block(__m256i (*codes)[PAIR], unsigned v, uint32_t steps, const int8_t *q, size_t stride,
	  __m256i (*sums)[VECTORS], const unsigned n)
{
	__m256i s[ROWS][PAIR];

	UNROLL
	for (unsigned i = 0; i < n; i++)
		s[i][0] = s[i][1] = _mm256_setzero_si256();
	for (uint32_t k = 0; k < steps; k++, q += 16) {
		const __m256i a = codes[k][0], b = codes[k][1];

		UNROLL
		for (unsigned i = 0; i < n; i++) {
			__m256i x = both(q + i * stride);

			add(&s[i][0], _mm256_maddubs_epi16(a, x));
			add(&s[i][1], _mm256_maddubs_epi16(b, x));
		}
	}
	UNROLL
	for (unsigned i = 0; i < n; i++) {
		sums[i][v] = widen(sums[i][v], s[i][0]);
		sums[i][v + 1] = widen(sums[i][v + 1], s[i][1]);
	}
}

static void add_rows(struct room *room, uint32_t steps, const int8_t *q, size_t stride, uint32_t n)
{
	for (unsigned v = 0; v < VECTORS; v += PAIR)
		for (uint32_t i = 0; i < n; i += ROWS) {
			const int8_t *from = q + i * stride;
			__m256i(*sums)[VECTORS] = room->sums + i;
			__m256i(*codes)[PAIR] = room->codes[v / PAIR];

			switch (n - i) {
			case 1:
				add_block(codes, v, steps, from, stride, sums, 1);
				break;
			case 2:
				add_block(codes, v, steps, from, stride, sums, 2);
				break;
			case 3:
				add_block(codes, v, steps, from, stride, sums, 3);
				break;
			default:
				add_block(codes, v, steps, from, stride, sums, ROWS);
			}
		}
}

/* ROWS_MAX rows of activations or fewer, `from` the first, and a tile. */
static inline void tile(const struct packed_shape *s, uint32_t span,
			void (*decode)(const char *, uint32_t,
				       __m256i (*)[BLOCK * 5][PAIR]),
			const char *at, const float *scales, const struct ternary_rows *a,
			uint32_t from, uint32_t n, float *y, size_t y_stride, struct room *room)
{
	const uint32_t units = packed_units(s) / s->groups;
	const size_t n_rows = (size_t)packed_tiles(s) * PACKED_ROWS;
	const int8_t *q = a->laid + from * a->stride;

	for (uint32_t g = 0; g < s->groups; g++, scales += n_rows) {
		memset(room->sums, 0, n * sizeof(room->sums[0]));
		for (uint32_t u = 0, m; u < units; u += m) {
			m = units - u < BLOCK ? units - u : BLOCK;
			decode(at, m, room->codes);
			add_rows(room, m * span / 16, q, a->stride, n);
			at += m * PACKED_UNIT;
			q += m * span;
		}
		for (uint32_t i = 0; i < n; i++) {
			__m256i sum = _mm256_set1_epi32(a->sums[(size_t)(from + i) * s->groups + g]);

			for (unsigned v = 0; v < VECTORS; v += 4)
				finish(_mm256_sub_epi32(sum_halves(room->sums[i] + v), sum),
				       a->d[from + i], scales + 2 * v, s->groups, g,
				       y + (from + i) * y_stride + 2 * v);
		}
	}
}

static inline void rows(const struct packed_shape *s, uint32_t span, ternary_op *one,
			void (*decode)(const char *, uint32_t,
				       __m256i (*)[BLOCK * 5][PAIR]),
			const void *packed, const float *scales, const struct ternary_rows *a,
			uint32_t tile0, uint32_t tile1, float *y, size_t y_stride, void *scratch)
{
	const size_t bytes = (size_t)packed_units(s) * PACKED_UNIT;

	for (uint32_t t = tile0; t < tile1; t++) {
		if (a->n < ENOUGH)
			ternary_each(one, s, packed, scales, a, t, t + 1, y, y_stride);
		for (uint32_t i = 0, n; a->n >= ENOUGH && i < a->n; i += n) {
			const size_t row = (size_t)t * PACKED_ROWS;

			n = a->n - i < ROWS_MAX ? a->n - i : ROWS_MAX;
			tile(s, span, decode, (const char *)packed + t * bytes, scales + row, a, i,
			     n, y + row, y_stride, scratch);
		}
	}
}

static void rows_2bit(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride, void *scratch)
{
	rows(s, 64, ternary_2bit_avx2, decode_2bit, packed, scales, a, tile0, tile1, y, y_stride,
	     scratch);
}

static void rows_base3(const struct packed_shape *s, const void *packed, const float *scales,
		       const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		       size_t y_stride, void *scratch)
{
	rows(s, 80, ternary_base3_avx2, decode_base3, packed, scales, a, tile0, tile1, y, y_stride,
	     scratch);
}
/* One after the other, a tile at a time. */
static void head_rows(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct head_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride, void *scratch)
{
	(void)scratch;
	for (uint32_t t = tile0; t < tile1; t++)
		for (uint32_t i = 0; i < a->n; i++)
			head_int8_avx2(s, packed, scales, &a->laid[i], a->d[i], t, t + 1,
					y + i * y_stride);
}

void rows_avx2(struct kernels *k)
{
	k->ternary_rows[PACKED_2BIT] = rows_2bit;
	k->ternary_rows[PACKED_BASE3] = rows_base3;
	k->head_int8_rows = head_rows;
}

#endif

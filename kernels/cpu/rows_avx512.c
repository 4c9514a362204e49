/* SPDX-License-Identifier: MIT */
/*
 * Products of a packed matrix and several vectors, for AVX-512 with VNNI and VBMI.
 *
 * As for one vector (product_avx512.c), but what is decoded serves all rows of activations that
 * have sums in registers: 24 of the 32. A few rows take a whole tile at a time, so that memory is
 * read as it lies; from WIDE_MAX on it is half a tile and twice as many rows, because then the
 * loads of activations and the decoding count. Rows beyond go over the same weights again while
 * they are in a near cache. The dot products bind then, and decoding runs beside them; so 2-bit
 * weights are decoded each time, and only what base 3 is looked up to is kept.
 *
 * A tile that is gone through several times is nothing that the hardware would foresee: the next
 * one is asked for meanwhile.
 */
#if defined(__x86_64__)

#include <string.h>
#include "product_avx512.h"

#define HALF	  4u /* lines of half a unit */
#define SUMS	  24u
#define WIDE_ROWS (SUMS / LINES)
#define HALF_ROWS (SUMS / HALF)
#define WIDE_MAX  6u /* rows that are multiplied with whole tiles */

/* In memory: the sums have the registers. */
struct base3_tables {
	__m512i digits[4], first, second, one;
};

struct job {
	const struct packed_shape *s;
	const char *packed;
	const float *scales;
	const struct ternary_rows *a;
	float *y;
	size_t y_stride;
	char *scratch;
	struct base3_tables base3;
};

/* Some of the lines of each unit of what is read next. */
struct fetch {
	const char *next;
	unsigned from, to;
};

static inline __m512i load(const void *p)
{
	return _mm512_load_si512(p);
}

/* Keeps the compiler from holding what is in memory in registers. */
ALWAYS void forget(void)
{
	__asm__ volatile("" ::: "memory");
}

ALWAYS __m512i field(__m512i w, unsigned p)
{
	return _mm512_and_si512(p ? _mm512_srli_epi16(w, 2 * p) : w, _mm512_set1_epi8(3));
}

/* Codes of 16 columns of n_lines lines, times n rows of activations. */
ALWAYS void dots(const __m512i *code, const int8_t *q, size_t stride, const unsigned n,
		 const unsigned n_lines, __m512i (*acc)[LINES], unsigned first)
{
	UNROLL
	for (unsigned i = 0; i < n; i++) {
		__m512i v = quarters(q + i * stride);

		UNROLL
		for (unsigned j = 0; j < n_lines; j++)
			dot(&acc[i][first + j], code[j], v);
	}
}

/* Four times 16 columns: the 2-bit fields of lines at `at`. */
ALWAYS void fields(const char *at, const int8_t *q, size_t stride, const unsigned n,
		   const unsigned lines, __m512i (*acc)[LINES])
{
	UNROLL
	for (unsigned p = 0; p < 4; p++) {
		UNROLL
		for (unsigned g = 0; g < lines; g += HALF) {
			__m512i code[HALF];

			UNROLL
			for (unsigned j = 0; j < HALF; j++)
				code[j] = field(load(at + 64 * (g + j)), p);
			dots(code, q + 16 * p, stride, n, HALF, acc, g);
		}
	}
}

/* Lines of base 3 become as many of first digits, and of the other four in 2-bit fields. */
ALWAYS void look_up_lines(const struct base3_tables *t, const char *at, char *to,
			  const unsigned lines)
{
	UNROLL
	for (unsigned j = 0; j < lines; j++) {
		__m512i b = load(at + 64 * j), digit;

		digit = _mm512_maskz_mov_epi8(_mm512_cmpgt_epu8_mask(b, t->first), t->one);
		digit = _mm512_mask_add_epi8(digit, _mm512_cmpgt_epu8_mask(b, t->second), digit,
					     t->one);
		_mm512_store_si512(to + 64 * j, digit);
		_mm512_store_si512(to + 64 * (lines + j), look_up(t->digits, b));
	}
}

ALWAYS void looked_up(const char *at, const int8_t *q, size_t stride, const unsigned n,
		      const unsigned lines, __m512i (*acc)[LINES])
{
	UNROLL
	for (unsigned g = 0; g < lines; g += HALF) {
		__m512i code[HALF];

		UNROLL
		for (unsigned j = 0; j < HALF; j++)
			code[j] = load(at + 64 * (g + j));
		dots(code, q, stride, n, HALF, acc, g);
	}
	fields(at + 64 * (size_t)lines, q + 16, stride, n, lines, acc);
}

enum form { TWO_BITS, BASE3, LOOKED_UP };

/*
 * Rows of activations, n from `from` on, times lines of each unit, at `at`: all groups.
 */
ALWAYS void multiply(const struct job *job, const enum form form, uint32_t from, const char *at,
		     size_t row, struct fetch fetch, const unsigned n, const unsigned lines)
{
	const struct packed_shape *s = job->s;
	const struct ternary_rows *a = job->a;
	const uint32_t units = packed_units(s) / s->groups, span = form == TWO_BITS ? 64 : 80;
	const size_t n_rows = (size_t)packed_tiles(s) * PACKED_ROWS, stride = a->stride;
	const int8_t *q = a->laid + from * stride;
	_Alignas(64) char looked[2 * PACKED_UNIT];

	for (uint32_t g = 0; g < s->groups; g++) {
		__m512i acc[HALF_ROWS][LINES];

		UNROLL
		for (unsigned i = 0; i < n; i++) {
			UNROLL
			for (unsigned j = 0; j < lines; j++)
				acc[i][j] = _mm512_setzero_si512();
		}
		for (uint32_t u = 0; u < units; u++, at += PACKED_UNIT, q += span) {
			for (unsigned l = fetch.from; l < fetch.to; l++)
				_mm_prefetch(fetch.next + 64 * l, _MM_HINT_T1);
			fetch.next += PACKED_UNIT;
			if (form == TWO_BITS) {
				fields(at, q, stride, n, lines, acc);
			} else if (form == LOOKED_UP) {
				looked_up(at, q, stride, n, lines, acc);
			} else {
				look_up_lines(&job->base3, at, looked, lines);
				forget();
				looked_up(looked, q, stride, n, lines, acc);
			}
		}
		UNROLL
		for (unsigned i = 0; i < n; i++) {
			int32_t sum = a->sums[(size_t)(from + i) * s->groups + g];

			UNROLL
			for (unsigned j = 0; j < lines; j += HALF)
				finish(_mm512_sub_epi32(sum_quarters(acc[i] + j),
							_mm512_set1_epi32(sum)),
				       a->d[from + i], job->scales + g * n_rows + row + 4 * j,
				       s->groups, g,
				       job->y + (from + i) * job->y_stride + row + 4 * j);
		}
	}
}

ALWAYS void wide(const struct job *job, const enum form form, uint32_t from, unsigned n,
		 const char *at, size_t row, struct fetch fetch)
{
	switch (n) {
	case 1:
		multiply(job, form, from, at, row, fetch, 1, LINES);
		break;
	case 2:
		multiply(job, form, from, at, row, fetch, 2, LINES);
		break;
	default:
		multiply(job, form, from, at, row, fetch, WIDE_ROWS, LINES);
	}
}

ALWAYS void half(const struct job *job, const enum form form, uint32_t from, unsigned n,
		 const char *at, size_t row, struct fetch fetch)
{
	switch (n) {
	case 3:
		multiply(job, form, from, at, row, fetch, 3, HALF);
		break;
	case 4:
		multiply(job, form, from, at, row, fetch, 4, HALF);
		break;
	case 5:
		multiply(job, form, from, at, row, fetch, 5, HALF);
		break;
	default:
		multiply(job, form, from, at, row, fetch, HALF_ROWS, HALF);
	}
}

/* Half a tile, looked up. */
static void look_up_half(const struct job *job, const char *at, const char *next)
{
	const uint32_t units = packed_units(job->s);
	char *to = job->scratch;

	for (uint32_t u = 0; u < units;
	     u++, at += PACKED_UNIT, next += PACKED_UNIT, to += PACKED_UNIT) {
		for (unsigned l = 0; l < HALF; l++)
			_mm_prefetch(next + 64 * l, _MM_HINT_T1);
		look_up_lines(&job->base3, at, to, HALF);
	}
}

ALWAYS void tile_wide(const struct job *job, const enum form form, uint32_t t, size_t bytes)
{
	const char *at = job->packed + t * bytes;
	const uint32_t n = job->a->n, passes = (n + WIDE_ROWS - 1) / WIDE_ROWS;

	for (uint32_t i = 0; i < passes; i++) {
		const uint32_t from = n * i / passes, to = n * (i + 1) / passes;
		const struct fetch fetch = { at + bytes, LINES * i / passes,
					     LINES * (i + 1) / passes };

		wide(job, form, from, to - from, at, (size_t)t * PACKED_ROWS, fetch);
	}
}

ALWAYS void tile_halves(const struct job *job, const enum form form, uint32_t t, size_t bytes)
{
	const uint64_t n = job->a->n, passes = (n + HALF_ROWS - 1) / HALF_ROWS;

	for (unsigned h = 0; h < 2; h++) {
		const char *at = job->packed + t * bytes + h * (PACKED_UNIT / 2);
		const char *next = h ? at + bytes - PACKED_UNIT / 2 : at + PACKED_UNIT / 2;

		if (form == LOOKED_UP)
			look_up_half(job, at, next);
		for (uint64_t i = 0; i < passes; i++) {
			const uint32_t from = (uint32_t)(n * i / passes);
			const uint32_t to = (uint32_t)(n * (i + 1) / passes);
			struct fetch fetch = { next, (unsigned)(HALF * i / passes),
					       (unsigned)(HALF * (i + 1) / passes) };

			if (form == LOOKED_UP)
				fetch.to = fetch.from;
			half(job, form, from, to - from, form == LOOKED_UP ? job->scratch : at,
			     (size_t)t * PACKED_ROWS + h * (PACKED_ROWS / 2), fetch);
		}
	}
}

static void rows_2bit(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride, void *scratch)
{
	const struct job job = { .s = s, .packed = packed, .scales = scales, .a = a, .y = y,
				 .y_stride = y_stride };
	const size_t bytes = (size_t)packed_units(s) * PACKED_UNIT;

	(void)scratch;
	if (a->n <= 1)
		ternary_each(ternary_2bit_avx512, s, packed, scales, a, tile0, tile1, y, y_stride);
	else if (a->n <= WIDE_MAX)
		for (uint32_t t = tile0; t < tile1; t++)
			tile_wide(&job, TWO_BITS, t, bytes);
	else
		for (uint32_t t = tile0; t < tile1; t++)
			tile_halves(&job, TWO_BITS, t, bytes);
}

static void rows_base3(const struct packed_shape *s, const void *packed, const float *scales,
		       const struct ternary_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		       size_t y_stride, void *scratch)
{
	struct job job = { .s = s, .packed = packed, .scales = scales, .a = a, .y = y,
			   .y_stride = y_stride, .scratch = scratch };
	const size_t bytes = (size_t)packed_units(s) * PACKED_UNIT;

	base3_digits(job.base3.digits);
	job.base3.first = _mm512_set1_epi8(85);
	job.base3.second = _mm512_set1_epi8((char)170);
	job.base3.one = _mm512_set1_epi8(1);
	if (a->n <= 1)
		ternary_each(ternary_base3_avx512, s, packed, scales, a, tile0, tile1, y, y_stride);
	else if (a->n <= WIDE_MAX)
		for (uint32_t t = tile0; t < tile1; t++)
			tile_wide(&job, BASE3, t, bytes);
	else
		for (uint32_t t = tile0; t < tile1; t++)
			tile_halves(&job, LOOKED_UP, t, bytes);
}

/* ---- int8 heads ------------------------------------------------------------------------------ */

/*
 * As product_avx512.c has it: two sums for each line, all the registers for one row of activations.
 * So the rows take turns at a block of units that stays in the nearest cache, and their sums wait
 * in memory.
 */
#define HEAD_BLOCK 32u /* units */
#define HEAD_ROWS  8u

struct head_sums {
	__m512i high[LINES], low[LINES];
};

static inline void head_block(const char *at, const int8_t *high, const uint8_t *low,
			      uint32_t units, struct fetch fetch, struct head_sums *sums)
{
	const __m512i flip = _mm512_set1_epi8((char)0x80);
	__m512i a[LINES], b[LINES];

	UNROLL
	for (unsigned j = 0; j < LINES; j++) {
		a[j] = sums->high[j];
		b[j] = sums->low[j];
	}
	for (uint32_t u = 0; u < units; u++) {
		__m512i h = quarters(high), l = quarters(low);

		for (unsigned i = fetch.from; i < fetch.to; i++)
			_mm_prefetch(fetch.next + 64 * i, _MM_HINT_T1);
		UNROLL
		for (unsigned j = 0; j < LINES; j++) {
			__m512i w = load(at + 64 * j);

			dot(&b[j], l, w);
			dot(&a[j], _mm512_xor_si512(w, flip), h);
		}
		fetch.next += PACKED_UNIT;
		at += PACKED_UNIT;
		high += PACKED_BYTES;
		low += PACKED_BYTES;
	}
	UNROLL
	for (unsigned j = 0; j < LINES; j++) {
		sums->high[j] = a[j];
		sums->low[j] = b[j];
	}
}

/* HEAD_ROWS of activations or fewer, and a tile. */
static void head_tile(uint32_t units, const char *at, const float *scales,
		      const struct laid_head *laid, const float *d, uint32_t n, float *y,
		      size_t y_stride)
{
	struct head_sums sums[HEAD_ROWS];

	memset(sums, 0, n * sizeof(*sums));
	for (uint32_t u = 0, m; u < units; u += m, at += m * PACKED_UNIT) {
		const size_t c = (size_t)u * PACKED_BYTES;

		m = units - u < HEAD_BLOCK ? units - u : HEAD_BLOCK;
		for (uint32_t i = 0; i < n; i++) {
			const struct fetch fetch = { at + HEAD_BLOCK * PACKED_UNIT, LINES * i / n,
						     LINES * (i + 1) / n };

			head_block(at, laid[i].high + c, laid[i].low + c, m, fetch, &sums[i]);
		}
	}
	for (uint32_t i = 0; i < n; i++)
		for (unsigned j = 0; j < LINES; j += 4)
			finish_head(sum_quarters(sums[i].high + j), sum_quarters(sums[i].low + j),
				    128 * laid[i].sum_high, d[i], scales + 4 * j,
				    y + i * y_stride + 4 * j);
}

static void head_rows(const struct packed_shape *s, const void *packed, const float *scales,
		      const struct head_rows *a, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride, void *scratch)
{
	const uint32_t units = packed_units(s);

	(void)scratch;
	if (a->n == 1) {
		head_int8_avx512(s, packed, scales, a->laid, a->d[0], tile0, tile1, y);
		return;
	}
	for (uint32_t t = tile0; t < tile1; t++)
		for (uint32_t i = 0, n; i < a->n; i += n) {
			const size_t row = (size_t)t * PACKED_ROWS;

			n = a->n - i < HEAD_ROWS ? a->n - i : HEAD_ROWS;
			head_tile(units, (const char *)packed + t * (size_t)units * PACKED_UNIT,
				  scales + row, a->laid + i, a->d + i, n, y + i * y_stride + row,
				  y_stride);
		}
}

void rows_avx512(struct kernels *k)
{
	k->ternary_rows[PACKED_2BIT] = rows_2bit;
	k->ternary_rows[PACKED_BASE3] = rows_base3;
	k->head_int8_rows = head_rows;
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Attention for AVX-512: at the speed at which pages come from memory, or at that of the
 * multipliers where heads share a page.
 *
 * A line of keys is 32 positions of one dimension, each of up to four queries' dimensions is
 * broadcast to it, and nothing leaves the registers until the page is done; two pages at a time, so
 * that a broadcast serves four vectors. The values' lanes are dimensions, 64 at a time, over the
 * positions of a page.
 *
 * While keys are worked on the same page's values are fetched, and while values are, the next
 * chunk's keys: hardware does not look past 4 KiB. They are fetched into the second cache: the
 * first has not enough misses outstanding (into the first it was 13 GB/s of 28 on a Zen 4, into the
 * second 21).
 */
#if defined(__x86_64__)

#include <assert.h>
#include <stdbool.h>
#include "float_avx512.h"

#define QUERIES 4u /* that share a load */
#define VECTORS 4u /* of values at a time */

/* One chunk and up to QUERIES heads. */
struct work {
	_Alignas(64) float p[QUERIES][ATTN_CHUNK]; /* scores, then probabilities */
	union {
		float f[QUERIES][HEAD_DIM_MAX]; /* q' */
		struct {
			uint8_t high[QUERIES][HEAD_DIM_MAX],
				low[QUERIES][HEAD_DIM_MAX]; /* q16 = 256 high + low */
		} b;
	} q;
	int32_t sum_high[QUERIES];
	float scale[QUERIES]; /* of a T: aq / 32767 * c */
	uint32_t head_dim, n, n_q, n_pages;
};

static void scale_queries(struct work *w, const float *query, float c)
{
	for (uint32_t q = 0; q < w->n_q; q++, query += w->head_dim)
		for (uint32_t i = 0; i < w->head_dim; i += LANES)
			_mm512_storeu_ps(
				w->q.f[q] + i,
				_mm512_mul_ps(load(query + i, w->head_dim - i), _mm512_set1_ps(c)));
}

static void quantise_queries(struct work *w, const float *query, float c)
{
	for (uint32_t q = 0; q < w->n_q; q++, query += w->head_dim) {
		float aq = quant_a(max_abs(query, NULL, w->head_dim));
		__m512i sum = _mm512_setzero_si512();

		for (uint32_t i = 0; i < w->head_dim; i += LANES) {
			__m512i code = codes(load(query + i, w->head_dim - i), 32767 / aq, 32767);
			__m512i high = _mm512_srai_epi32(code, 8);

			sum = _mm512_add_epi32(sum, high);
			_mm_storeu_si128((__m128i *)(void *)(w->q.b.high[q] + i),
					 _mm512_cvtepi32_epi8(high));
			_mm_storeu_si128((__m128i *)(void *)(w->q.b.low[q] + i),
					 _mm512_cvtepi32_epi8(code));
		}
		w->sum_high[q] = _mm512_reduce_add_epi32(sum);
		w->scale[q] = aq / 32767 * c;
	}
}

static inline __m512 halves(const char *p)
{
	return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/*
 * Scores of n_p pages that follow one another, two where there are as many, so that a query's
 * dimension serves four vectors. next: what is read after each of them.
 */
ALWAYS void scores_f16(struct work *w, uint32_t at, const void *const *pages,
		       const char *const *next, const unsigned n_q, const unsigned n_p)
{
	const char *k[2] = { pages[0], pages[n_p - 1] };
	__m512 a[QUERIES][4];

#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
		for (unsigned v = 0; v < 2 * n_p; v++)
			a[q][v] = _mm512_setzero_ps();
	for (size_t i = 0; i < w->head_dim; i++) {
		__m512 kv[4];

#pragma GCC unroll 2
		for (unsigned p = 0; p < n_p; p++) {
			kv[2 * p] = halves(k[p] + 64 * i);
			kv[2 * p + 1] = halves(k[p] + 64 * i + 32);
			_mm_prefetch(next[p] + 64 * i, _MM_HINT_T1);
		}
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++) {
			__m512 qi = _mm512_set1_ps(w->q.f[q][i]);

#pragma GCC unroll 4
			for (unsigned v = 0; v < 2 * n_p; v++)
				a[q][v] = _mm512_fmadd_ps(qi, kv[v], a[q][v]);
		}
	}
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
		for (unsigned v = 0; v < 2 * n_p; v++)
			_mm512_store_ps(w->p[q] + at + v * LANES, a[q][v]);
}

static inline __m512i quad(const uint8_t *p)
{
	int32_t four;

	memcpy(&four, p, sizeof(four));
	return _mm512_set1_epi32(four);
}

/*
 * T = 256 sum(high k) + sum(low k). The instruction multiplies unsigned by signed: low by k, and k
 * + 128 by high, from which 128 sum(high) is taken off.
 */
ALWAYS void scores_int8(struct work *w, uint32_t at, const void *page, const char *next,
			const unsigned n_q)
{
	const __m512i flip = _mm512_set1_epi8((char)0x80);
	const float *dk =
		(const float *)(const void *)((const char *)page + kv_scales(w->head_dim));
	const char *k = page;
	__m512i high[QUERIES][2], low[QUERIES][2];

#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
		high[q][0] = high[q][1] = low[q][0] = low[q][1] = _mm512_setzero_si512();
	for (uint32_t i = 0; i < w->head_dim; i += 4, k += 128, next += 128) {
		__m512i k0 = _mm512_loadu_si512(k), k1 = _mm512_loadu_si512(k + 64);
		__m512i u0 = _mm512_xor_si512(k0, flip), u1 = _mm512_xor_si512(k1, flip);

		_mm_prefetch(next, _MM_HINT_T1);
		_mm_prefetch(next + 64, _MM_HINT_T1);
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++) {
			__m512i qh = quad(w->q.b.high[q] + i), ql = quad(w->q.b.low[q] + i);

			high[q][0] = _mm512_dpbusd_epi32(high[q][0], u0, qh);
			high[q][1] = _mm512_dpbusd_epi32(high[q][1], u1, qh);
			low[q][0] = _mm512_dpbusd_epi32(low[q][0], ql, k0);
			low[q][1] = _mm512_dpbusd_epi32(low[q][1], ql, k1);
		}
	}
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++) {
		__m512i off = _mm512_set1_epi32(128 * w->sum_high[q]);

#pragma GCC unroll 2
		for (unsigned i = 0; i < 2; i++) {
			__m512i t = _mm512_slli_epi32(_mm512_sub_epi32(high[q][i], off), 8);
			__m512 scale = _mm512_mul_ps(_mm512_set1_ps(w->scale[q]),
						     _mm512_loadu_ps(dk + i * LANES));

			_mm512_store_ps(
				w->p[q] + at + i * LANES,
				_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(t, low[q][i])),
					      scale));
		}
	}
}

/* Scores become probabilities, 0 where nothing is seen; m and l. */
static void soften(struct work *w, float *m, float *l)
{
	for (uint32_t q = 0; q < w->n_q; q++) {
		__m512 s[8], max = _mm512_set1_ps(-INFINITY);

#pragma GCC unroll 8
		for (uint32_t i = 0; i < 8; i++) {
			__mmask16 seen = w->n > i * LANES ? first(w->n - i * LANES) : 0;

			s[i] = _mm512_maskz_load_ps(seen, w->p[q] + i * LANES);
			max = _mm512_mask_max_ps(max, seen, max, s[i]);
		}
		m[q] = _mm512_reduce_max_ps(max);
#pragma GCC unroll 8
		for (uint32_t i = 0; i < 8; i++) {
			__mmask16 seen = w->n > i * LANES ? first(w->n - i * LANES) : 0;

			s[i] = _mm512_maskz_mov_ps(
				seen, exp2_16(_mm512_sub_ps(s[i], _mm512_set1_ps(m[q]))));
			_mm512_store_ps(w->p[q] + i * LANES, s[i]);
		}
#pragma GCC unroll 3
		for (unsigned half = 4; half; half /= 2)
#pragma GCC unroll 4
			for (unsigned i = 0; i < half; i++)
				s[i] = _mm512_add_ps(s[i], s[i + half]);
		l[q] = fold16(s[0]);
	}
}

/* A row's values i of a page, as floats; only the first `left` of the last vector. */
ALWAYS __m512 value(uint32_t form, const char *row, uint32_t i, uint32_t left, const bool whole)
{
	if (form == KV_INT8) {
		const char *p = row + i;

		return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
			whole ? _mm_loadu_si128((const __m128i *)(const void *)p) :
				_mm_maskz_loadu_epi8(first(left), p)));
	}
	return _mm512_cvtph_ps(
		whole ? _mm256_loadu_si256((const __m256i *)(const void *)(row + 2 * i)) :
			_mm256_maskz_loadu_epi16(first(left), row + 2 * i));
}

/*
 * n_v vectors of dimensions, from dimension i on, over the positions of a page; o goes on from
 * page to page.
 */
ALWAYS void values(uint32_t form, const struct work *w, float (*p)[KV_PAGE], uint32_t n,
		   const char *rows, const char *next, uint32_t i, bool begin, float *o,
		   const unsigned n_q, const unsigned n_v)
{
	const uint32_t size = form == KV_INT8 ? 1 : 2, left = w->head_dim - i,
		       step = n_v * LANES * size;
	__m512 a[QUERIES][VECTORS];

	next += i * size * KV_PAGE;
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
		for (unsigned v = 0; v < n_v; v++)
			a[q][v] = begin ? _mm512_setzero_ps() :
					  load(o + (size_t)q * w->head_dim + i + v * LANES,
					       left - v * LANES);
	for (uint32_t j = 0; j < n; j++, rows += w->head_dim * size, next += step) {
		__m512 v16[VECTORS];

		_mm_prefetch(next, _MM_HINT_T1);
		if (step > 64)
			_mm_prefetch(next + 64, _MM_HINT_T1);
#pragma GCC unroll 4
		for (unsigned v = 0; v < n_v; v++)
			v16[v] = value(form, rows, i + v * LANES, left, n_v > 1);
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++) {
			__m512 pj = _mm512_set1_ps(p[q][j]);

#pragma GCC unroll 4
			for (unsigned v = 0; v < n_v; v++)
				a[q][v] = _mm512_fmadd_ps(pj, v16[v], a[q][v]);
		}
	}
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
		for (unsigned v = 0; v < n_v; v++)
			store(o + (size_t)q * w->head_dim + i + v * LANES, left - v * LANES,
			      a[q][v]);
}

ALWAYS void page_values(uint32_t form, struct work *w, uint32_t at, const char *page,
			const char *next, float *o, const unsigned n_q)
{
	const char *rows = page + kv_values(form, w->head_dim);
	const float *dv = (const float *)(const void *)(page + kv_scales(w->head_dim)) + KV_PAGE;
	uint32_t n = w->n - at < KV_PAGE ? w->n - at : KV_PAGE, i = 0;
	_Alignas(64) float p[QUERIES][KV_PAGE];

	for (unsigned q = 0; q < n_q; q++)
		for (uint32_t j = 0; j < KV_PAGE; j += LANES) {
			__m512 pj = _mm512_load_ps(w->p[q] + at + j);

			_mm512_store_ps(
				p[q] + j,
				form == KV_INT8 ? _mm512_mul_ps(pj, _mm512_loadu_ps(dv + j)) : pj);
		}
	for (; i + VECTORS * LANES <= w->head_dim; i += VECTORS * LANES)
		values(form, w, p, n, rows, next, i, at == 0, o, n_q, VECTORS);
	for (; i < w->head_dim; i += LANES)
		values(form, w, p, n, rows, next, i, at == 0, o, n_q, 1);
}

/* What lies apart from keys and values. */
static inline void fetch_scales(const struct work *w, const void *const *pages)
{
	for (uint32_t i = 0; i < w->n_pages; i++)
		for (unsigned line = 0; line < 4; line++)
			_mm_prefetch((const char *)pages[i] + kv_scales(w->head_dim) + 64 * line,
				     _MM_HINT_T0);
}

/* While keys are worked on, the same page's values are fetched. */
ALWAYS void chunk_scores(uint32_t form, struct work *w, const void *const *pages,
			 const unsigned n_q)
{
	const char *values[ATTN_PAGES];
	uint32_t i = 0;

	for (uint32_t p = 0; p < w->n_pages; p++)
		values[p] = (const char *)pages[p] + kv_values(form, w->head_dim);
	if (form == KV_INT8) {
		fetch_scales(w, pages);
		for (; i < w->n_pages; i++)
			scores_int8(w, i * KV_PAGE, pages[i], values[i], n_q);
	} else {
		for (; i + 2 <= w->n_pages; i += 2)
			scores_f16(w, i * KV_PAGE, pages + i, values + i, n_q, 2);
		if (i < w->n_pages)
			scores_f16(w, i * KV_PAGE, pages + i, values + i, n_q, 1);
	}
}

#include "attn_chunks.h"

/*
 * One head. Sixteen chunks' factors at once, then each vector of dimensions through those chunks.
 */
static uint32_t merge(const float *m, const float *l, const float *o, uint32_t n_chunks,
		      uint32_t n_q, uint32_t head_dim, float *out)
{
	uint32_t faults = 0;
	float max = -INFINITY, sum = 0;

	for (uint32_t c = 0; c < n_chunks; c++)
		max = m[(size_t)c * n_q] > max ? m[(size_t)c * n_q] : max;
	for (uint32_t c0 = 0; c0 < n_chunks; c0 += LANES) {
		uint32_t n = n_chunks - c0 < LANES ? n_chunks - c0 : LANES;
		float e[LANES] = { 0 };

		for (uint32_t c = 0; c < n; c++)
			e[c] = m[(size_t)(c0 + c) * n_q];
		_mm512_storeu_ps(e,
				 exp2_16(_mm512_sub_ps(_mm512_loadu_ps(e), _mm512_set1_ps(max))));
		for (uint32_t c = 0; c < n; c++)
			sum = fmaf(e[c], l[(size_t)(c0 + c) * n_q], sum);
		for (uint32_t i = 0; i < head_dim; i += LANES) {
			uint32_t left = head_dim - i;
			__m512 a = c0 ? load(out + i, left) : _mm512_setzero_ps();

			for (uint32_t c = 0; c < n; c++)
				a = _mm512_fmadd_ps(
					_mm512_set1_ps(e[c]),
					load(o + (size_t)(c0 + c) * n_q * head_dim + i, left), a);
			store(out + i, left, a);
		}
	}
	check_finite(max, &faults);
	check_finite(sum, &faults);
	for (uint32_t i = 0; i < head_dim; i += LANES)
		store(out + i, head_dim - i,
		      _mm512_div_ps(load(out + i, head_dim - i), _mm512_set1_ps(sum)));
	return faults > 0;
}

static void attn_merge(const float *m, const float *l, const float *o, uint32_t n_chunks,
		       uint32_t n_q, uint32_t head_dim, float *out, uint32_t *faults)
{
	for (uint32_t q = 0; q < n_q; q++, out += head_dim)
		*faults += merge(m + q, l + q, o + (size_t)q * head_dim, n_chunks, n_q, head_dim,
				 out);
}

void attn_avx512(struct float_ops *f)
{
	f->attn_chunks = attn_chunks;
	f->attn_merge = attn_merge;
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Attention for AVX2 with FMA and F16C: as for AVX-512 (attn_avx512.c), with vectors of 8 and 16
 * registers. Up to four queries share the load of 16 positions' keys, or of 16 dimensions' values,
 * and a page is gone through two (or head_dim / 16) times while it is in the nearest cache.
 */
#if defined(__x86_64__)

#include <assert.h>
#include <stdbool.h>
#include "float_avx2.h"

#define QUERIES 4u /* that share a load */
#define WIDTH	16u /* positions or dimensions at a time */
#define WIDTHS	(KV_PAGE / WIDTH)

/* One chunk and up to QUERIES heads. */
struct work {
	_Alignas(64) float p[QUERIES][ATTN_CHUNK]; /* scores, then probabilities */
	union {
		float f[QUERIES][HEAD_DIM_MAX]; /* q' */
		int16_t i[QUERIES][HEAD_DIM_MAX];
	} q;
	float scale[QUERIES]; /* of a T: aq / 32767 * c */
	uint32_t head_dim, n, n_q, n_pages;
};

static void scale_queries(struct work *w, const float *query, float c)
{
	for (uint32_t q = 0; q < w->n_q; q++, query += w->head_dim)
		for (uint32_t i = 0; i < w->head_dim; i += LANES)
			_mm256_storeu_ps(
				w->q.f[q] + i,
				_mm256_mul_ps(load(query + i, w->head_dim - i), _mm256_set1_ps(c)));
}

static void quantise_queries(struct work *w, const float *query, float c)
{
	for (uint32_t q = 0; q < w->n_q; q++, query += w->head_dim) {
		float aq = quant_a(max_abs(query, NULL, w->head_dim));

		for (uint32_t i = 0; i < w->head_dim; i += LANES)
			_mm_storeu_si128((__m128i *)(void *)(w->q.i[q] + i),
					 narrow16(codes(load(query + i, w->head_dim - i),
							32767 / aq, 32767)));
		w->scale[q] = aq / 32767 * c;
	}
}

static inline __m256 halves(const uint16_t *p)
{
	return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)p));
}

/* Scores of a page. next: what is read after it. */
ALWAYS void scores_f16(struct work *w, uint32_t at, const void *page, const char *next,
		       const unsigned n_q)
{
	for (uint32_t from = 0; from < KV_PAGE; from += WIDTH) {
		const uint16_t *k = (const uint16_t *)page + from;
		__m256 a[QUERIES], b[QUERIES];

#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++)
			a[q] = b[q] = _mm256_setzero_ps();
		for (uint32_t i = 0; i < w->head_dim; i++, k += KV_PAGE, next += 64 / WIDTHS) {
			__m256 k0 = halves(k), k1 = halves(k + LANES);

			_mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 4
			for (unsigned q = 0; q < n_q; q++) {
				__m256 qi = _mm256_set1_ps(w->q.f[q][i]);

				a[q] = _mm256_fmadd_ps(qi, k0, a[q]);
				b[q] = _mm256_fmadd_ps(qi, k1, b[q]);
			}
		}
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++) {
			_mm256_store_ps(w->p[q] + at + from, a[q]);
			_mm256_store_ps(w->p[q] + at + from + LANES, b[q]);
		}
	}
}

/*
 * The four dimensions of eight positions, four positions a vector, times those of the query, in
 * two sums.
 */
ALWAYS void scores_int8(struct work *w, uint32_t at, const void *page, const char *next,
			const unsigned n_q)
{
	const float *dk =
		(const float *)(const void *)((const char *)page + kv_scales(w->head_dim));

	for (uint32_t from = 0; from < KV_PAGE; from += LANES) {
		const char *k = (const char *)page + 4 * from;
		__m256i a[QUERIES], b[QUERIES];

#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++)
			a[q] = b[q] = _mm256_setzero_si256();
		for (uint32_t i = 0; i < w->head_dim; i += 4, k += 4 * KV_PAGE, next += LANES * 4) {
			__m256i k0 = _mm256_cvtepi8_epi16(
				_mm_loadu_si128((const __m128i *)(const void *)k));
			__m256i k1 = _mm256_cvtepi8_epi16(
				_mm_loadu_si128((const __m128i *)(const void *)(k + 16)));

			_mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 4
			for (unsigned q = 0; q < n_q; q++) {
				int64_t four;
				__m256i qi;

				memcpy(&four, w->q.i[q] + i, sizeof(four));
				qi = _mm256_set1_epi64x(four);
				a[q] = _mm256_add_epi32(a[q], _mm256_madd_epi16(k0, qi));
				b[q] = _mm256_add_epi32(b[q], _mm256_madd_epi16(k1, qi));
			}
		}
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++) {
			__m256i t = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a[q], b[q]), 0xd8);
			__m256 scale = _mm256_mul_ps(_mm256_set1_ps(w->scale[q]),
						     _mm256_loadu_ps(dk + from));

			_mm256_store_ps(w->p[q] + at + from,
					_mm256_mul_ps(_mm256_cvtepi32_ps(t), scale));
		}
	}
}

/* Scores become probabilities, 0 where nothing is seen; m and l. */
static void soften(struct work *w, float *m, float *l)
{
	for (uint32_t q = 0; q < w->n_q; q++) {
		float *p = w->p[q];
		__m256 max = _mm256_set1_ps(-INFINITY);
		float lane[LANES];

		for (uint32_t j = 0; j < w->n; j += LANES) {
			__m256 seen = _mm256_castsi256_ps(first(w->n - j));

			max = _mm256_max_ps(max,
					    _mm256_blendv_ps(max, _mm256_load_ps(p + j), seen));
		}
		_mm256_storeu_ps(lane, max);
		m[q] = lane[0];
		for (unsigned i = 1; i < LANES; i++)
			m[q] = lane[i] > m[q] ? lane[i] : m[q];
		for (uint32_t j = 0; j < ATTN_CHUNK; j += LANES) {
			__m256 seen = _mm256_castsi256_ps(first(w->n > j ? w->n - j : 0));
			__m256 s = _mm256_and_ps(seen, _mm256_load_ps(p + j));

			_mm256_store_ps(p + j,
					_mm256_and_ps(seen, exp2_8(_mm256_sub_ps(
								    s, _mm256_set1_ps(m[q])))));
		}
		l[q] = fold128(p);
	}
}

/* Values i to i + 8 of a row, as floats; +0 for those that are not there. */
ALWAYS __m256 value(uint32_t form, const char *row, uint32_t i, uint32_t left)
{
	const char *p = row + (form == KV_INT8 ? 1 : 2) * (size_t)i;
	char bytes[16] = { 0 };

	if (left < LANES) {
		memcpy(bytes, p, (form == KV_INT8 ? 1 : 2) * (size_t)left);
		p = bytes;
	}
	if (form == KV_INT8)
		return _mm256_cvtepi32_ps(
			_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(const void *)p)));
	return halves((const uint16_t *)(const void *)p);
}

/*
 * n_v vectors of dimensions, from dimension i on, over the positions of a page; o goes on from
 * page to page.
 */
ALWAYS void values(uint32_t form, const struct work *w, float (*p)[KV_PAGE], uint32_t n,
		   const char *rows, const char *next, uint32_t i, bool begin, float *o,
		   const unsigned n_q, const unsigned n_v)
{
	const uint32_t size = form == KV_INT8 ? 1 : 2, left = w->head_dim - i;
	__m256 a[QUERIES][2];

	next += i * size * KV_PAGE;
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 2
		for (unsigned v = 0; v < n_v; v++)
			a[q][v] = begin ? _mm256_setzero_ps() :
					  load(o + (size_t)q * w->head_dim + i + v * LANES, left);
	for (uint32_t j = 0; j < n; j++, rows += w->head_dim * size, next += n_v * LANES * size) {
		__m256 v8[2];

		_mm_prefetch(next, _MM_HINT_T1);
#pragma GCC unroll 2
		for (unsigned v = 0; v < n_v; v++)
			v8[v] = value(form, rows, i + v * LANES, n_v > 1 ? LANES : left);
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++) {
			__m256 pj = _mm256_set1_ps(p[q][j]);

#pragma GCC unroll 2
			for (unsigned v = 0; v < n_v; v++)
				a[q][v] = _mm256_fmadd_ps(pj, v8[v], a[q][v]);
		}
	}
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 2
		for (unsigned v = 0; v < n_v; v++)
			store(o + (size_t)q * w->head_dim + i + v * LANES, left, a[q][v]);
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
			__m256 pj = _mm256_load_ps(w->p[q] + at + j);

			_mm256_store_ps(
				p[q] + j,
				form == KV_INT8 ? _mm256_mul_ps(pj, _mm256_loadu_ps(dv + j)) : pj);
		}
	for (; i + WIDTH <= w->head_dim; i += WIDTH)
		values(form, w, p, n, rows, next, i, at == 0, o, n_q, 2);
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
	if (form == KV_INT8)
		fetch_scales(w, pages);
	for (uint32_t i = 0; i < w->n_pages; i++) {
		const char *values = (const char *)pages[i] + kv_values(form, w->head_dim);

		if (form == KV_INT8)
			scores_int8(w, i * KV_PAGE, pages[i], values, n_q);
		else
			scores_f16(w, i * KV_PAGE, pages[i], values, n_q);
	}
}

#include "attn_chunks.h"

/* One head. Eight chunks' factors at once, then each vector of dimensions through those chunks. */
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
		_mm256_storeu_ps(e, exp2_8(_mm256_sub_ps(_mm256_loadu_ps(e), _mm256_set1_ps(max))));
		for (uint32_t c = 0; c < n; c++)
			sum = fmaf(e[c], l[(size_t)(c0 + c) * n_q], sum);
		for (uint32_t i = 0; i < head_dim; i += LANES) {
			uint32_t left = head_dim - i;
			__m256 a = c0 ? load(out + i, left) : _mm256_setzero_ps();

			for (uint32_t c = 0; c < n; c++)
				a = _mm256_fmadd_ps(
					_mm256_set1_ps(e[c]),
					load(o + (size_t)(c0 + c) * n_q * head_dim + i, left), a);
			store(out + i, left, a);
		}
	}
	check_finite(max, &faults);
	check_finite(sum, &faults);
	for (uint32_t i = 0; i < head_dim; i += LANES)
		store(out + i, head_dim - i,
		      _mm256_div_ps(load(out + i, head_dim - i), _mm256_set1_ps(sum)));
	return faults > 0;
}

static void attn_merge(const float *m, const float *l, const float *o, uint32_t n_chunks,
		       uint32_t n_q, uint32_t head_dim, float *out, uint32_t *faults)
{
	for (uint32_t q = 0; q < n_q; q++, out += head_dim)
		*faults += merge(m + q, l + q, o + (size_t)q * head_dim, n_chunks, n_q, head_dim,
				 out);
}

void attn_avx2(struct float_ops *f)
{
	f->attn_chunks = attn_chunks;
	f->attn_merge = attn_merge;
}

#endif

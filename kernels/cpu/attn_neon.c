/* SPDX-License-Identifier: MIT */
/*
 * Attention for NEON with dot product: as for AVX-512 (attn_avx512.c), with vectors of 4. Up to
 * four queries share the load of 16 positions' keys, or of 16 dimensions' values, and a page is
 * gone through two (or head_dim / 16) times while it is in the nearest cache. What is not seen has
 * the score -infinity, of which exp2 makes +0.
 */
#if defined(__aarch64__)

#include <assert.h>
#include <stdbool.h>
#include "float_neon.h"

#define QUERIES 4u /* that share a load */
#define VECTORS 4u /* of positions or dimensions at a time */
#define WIDTH	(VECTORS * LANES)

/* One chunk and up to QUERIES heads. */
struct work {
	float p[QUERIES][ATTN_CHUNK]; /* scores, then probabilities */
	union {
		float f[QUERIES][HEAD_DIM_MAX]; /* q' */
		struct {
			int8_t high[QUERIES][HEAD_DIM_MAX],
				low[QUERIES][HEAD_DIM_MAX]; /* q16 = 256 high + 128 + low */
		} b;
	} q;
	float scale[QUERIES]; /* of a T: aq / 32767 * c */
	uint32_t head_dim, n, n_q, n_pages;
};

static void scale_queries(struct work *w, const float *query, float c)
{
	for (uint32_t q = 0; q < w->n_q; q++, query += w->head_dim)
		for (uint32_t i = 0; i < w->head_dim; i += LANES)
			vst1q_f32(w->q.f[q] + i, vmulq_n_f32(load(query + i, w->head_dim - i), c));
}

static void quantise_queries(struct work *w, const float *query, float c)
{
	for (uint32_t q = 0; q < w->n_q; q++, query += w->head_dim) {
		float aq = quant_a(max_abs(query, NULL, w->head_dim));

		for (uint32_t i = 0; i < w->head_dim; i += LANES) {
			int32x4_t code = codes(load(query + i, w->head_dim - i), 32767 / aq, -32767,
					       32767);
			int32x4_t high = vshrq_n_s32(code, 8);

			store8(w->q.b.high[q] + i, LANES, high);
			store8(w->q.b.low[q] + i, LANES,
			       vsubq_s32(vsubq_s32(code, vshlq_n_s32(high, 8)), vdupq_n_s32(128)));
		}
		w->scale[q] = aq / 32767 * c;
	}
}

static inline float32x4_t halves(const uint16_t *p)
{
	return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}

/* Scores of a page. next: what is read after it. */
ALWAYS void scores_f16(struct work *w, uint32_t at, const void *page, const char *next,
		       const unsigned n_q)
{
	for (uint32_t from = 0; from < KV_PAGE; from += WIDTH) {
		const uint16_t *k = (const uint16_t *)page + from;
		float32x4_t a[QUERIES][VECTORS];

#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
			for (unsigned v = 0; v < VECTORS; v++)
				a[q][v] = vdupq_n_f32(0);
		for (uint32_t i = 0; i < w->head_dim; i++, k += KV_PAGE, next += 2 * WIDTH) {
			float32x4_t kv[VECTORS];

			__builtin_prefetch(next);
#pragma GCC unroll 4
			for (unsigned v = 0; v < VECTORS; v++)
				kv[v] = halves(k + LANES * v);
#pragma GCC unroll 4
			for (unsigned q = 0; q < n_q; q++) {
				float32x4_t qi = vdupq_n_f32(w->q.f[q][i]);

#pragma GCC unroll 4
				for (unsigned v = 0; v < VECTORS; v++)
					a[q][v] = vfmaq_f32(a[q][v], qi, kv[v]);
			}
		}
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
			for (unsigned v = 0; v < VECTORS; v++)
				vst1q_f32(w->p[q] + at + from + LANES * v, a[q][v]);
	}
}

static inline int8x16_t quad(const int8_t *p)
{
	int32_t four;

	memcpy(&four, p, sizeof(four));
	return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

/*
 * T = 256 sum(high k) + sum((low - 128) k) + 128 sum(k): the instruction multiplies signed by
 * signed.
 */
ALWAYS void scores_int8(struct work *w, uint32_t at, const void *page, const char *next,
			const unsigned n_q)
{
	const float *dk =
		(const float *)(const void *)((const char *)page + kv_scales(w->head_dim));
	const int8x16_t one = vdupq_n_s8(1);

	for (uint32_t from = 0; from < KV_PAGE; from += 2 * LANES) {
		const int8_t *k = (const int8_t *)page + (size_t)4 * from;
		int32x4_t high[QUERIES][2], low[QUERIES][2],
			sum[2] = { vdupq_n_s32(0), vdupq_n_s32(0) };

#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++)
			high[q][0] = high[q][1] = low[q][0] = low[q][1] = vdupq_n_s32(0);
		for (uint32_t i = 0; i < w->head_dim; i += 4, k += 4 * KV_PAGE, next += 8 * LANES) {
			int8x16_t k0 = vld1q_s8(k), k1 = vld1q_s8(k + 16);

			__builtin_prefetch(next);
			sum[0] = vdotq_s32(sum[0], k0, one);
			sum[1] = vdotq_s32(sum[1], k1, one);
#pragma GCC unroll 4
			for (unsigned q = 0; q < n_q; q++) {
				int8x16_t qh = quad(w->q.b.high[q] + i),
					  ql = quad(w->q.b.low[q] + i);

				high[q][0] = vdotq_s32(high[q][0], k0, qh);
				high[q][1] = vdotq_s32(high[q][1], k1, qh);
				low[q][0] = vdotq_s32(low[q][0], k0, ql);
				low[q][1] = vdotq_s32(low[q][1], k1, ql);
			}
		}
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++)
			for (unsigned v = 0; v < 2; v++) {
				int32x4_t t =
					vaddq_s32(vshlq_n_s32(high[q][v], 8),
						  vaddq_s32(low[q][v], vshlq_n_s32(sum[v], 7)));
				float32x4_t scale = vmulq_n_f32(vld1q_f32(dk + from + LANES * v),
								w->scale[q]);

				vst1q_f32(w->p[q] + at + from + LANES * v,
					  vmulq_f32(vcvtq_f32_s32(t), scale));
			}
	}
}

/* Scores become probabilities; m and l. */
static void soften(struct work *w, float *m, float *l)
{
	for (uint32_t q = 0; q < w->n_q; q++) {
		float32x4_t max = vdupq_n_f32(-INFINITY);
		float *p = w->p[q];

		for (uint32_t j = w->n; j < ATTN_CHUNK; j++)
			p[j] = -INFINITY;
		for (uint32_t j = 0; j < w->n; j += LANES)
			max = vmaxq_f32(max, vld1q_f32(p + j));
		m[q] = vmaxvq_f32(max);
		for (uint32_t j = 0; j < ATTN_CHUNK; j += LANES)
			vst1q_f32(p + j, exp2_4(vsubq_f32(vld1q_f32(p + j), vdupq_n_f32(m[q]))));
		l[q] = fold(p, ATTN_CHUNK);
	}
}

/* Values i to i + 4 of a row, as floats; +0 for those that are not there. */
ALWAYS float32x4_t value(uint32_t form, const char *row, uint32_t i, uint32_t left)
{
	const size_t size = form == KV_INT8 ? 1 : 2;
	char bytes[8] = { 0 };

	memcpy(bytes, row + size * i, size * (left < LANES ? left : LANES));
	if (form == KV_INT8)
		return vcvtq_f32_s32(
			vmovl_s16(vget_low_s16(vmovl_s8(vld1_s8((const int8_t *)bytes)))));
	return halves((const uint16_t *)(const void *)bytes);
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
	float32x4_t a[QUERIES][VECTORS];

	next += i * size * KV_PAGE;
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
		for (unsigned v = 0; v < n_v; v++)
			a[q][v] = begin ? vdupq_n_f32(0) :
					  load(o + (size_t)q * w->head_dim + i + v * LANES, left);
	for (uint32_t j = 0; j < n; j++, rows += w->head_dim * size, next += n_v * LANES * size) {
		float32x4_t v4[VECTORS];

		__builtin_prefetch(next);
#pragma GCC unroll 4
		for (unsigned v = 0; v < n_v; v++)
			v4[v] = value(form, rows, i + v * LANES, n_v > 1 ? LANES : left);
#pragma GCC unroll 4
		for (unsigned q = 0; q < n_q; q++) {
			float32x4_t pj = vdupq_n_f32(p[q][j]);

#pragma GCC unroll 4
			for (unsigned v = 0; v < n_v; v++)
				a[q][v] = vfmaq_f32(a[q][v], pj, v4[v]);
		}
	}
#pragma GCC unroll 4
	for (unsigned q = 0; q < n_q; q++)
#pragma GCC unroll 4
		for (unsigned v = 0; v < n_v; v++)
			store(o + (size_t)q * w->head_dim + i + v * LANES, left, a[q][v]);
}

ALWAYS void page_values(uint32_t form, struct work *w, uint32_t at, const char *page,
			const char *next, float *o, const unsigned n_q)
{
	const char *rows = page + kv_values(form, w->head_dim);
	const float *dv = (const float *)(const void *)(page + kv_scales(w->head_dim)) + KV_PAGE;
	uint32_t n = w->n - at < KV_PAGE ? w->n - at : KV_PAGE, i = 0;
	float p[QUERIES][KV_PAGE];

	for (unsigned q = 0; q < n_q; q++)
		for (uint32_t j = 0; j < KV_PAGE; j += LANES) {
			float32x4_t pj = vld1q_f32(w->p[q] + at + j);

			vst1q_f32(p[q] + j,
				  form == KV_INT8 ? vmulq_f32(pj, vld1q_f32(dv + j)) : pj);
		}
	for (; i + WIDTH <= w->head_dim; i += WIDTH)
		values(form, w, p, n, rows, next, i, at == 0, o, n_q, VECTORS);
	for (; i < w->head_dim; i += LANES)
		values(form, w, p, n, rows, next, i, at == 0, o, n_q, 1);
}

/* What lies apart from keys and values. */
static inline void fetch_scales(const struct work *w, const void *const *pages)
{
	for (uint32_t i = 0; i < w->n_pages; i++)
		for (unsigned line = 0; line < 4; line++)
			__builtin_prefetch((const char *)pages[i] + kv_scales(w->head_dim) +
					   64 * line);
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

/* One head. Four chunks' factors at once, then each vector of dimensions through those chunks. */
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
		vst1q_f32(e, exp2_4(vsubq_f32(vld1q_f32(e), vdupq_n_f32(max))));
		for (uint32_t c = 0; c < n; c++)
			sum = fmaf(e[c], l[(size_t)(c0 + c) * n_q], sum);
		for (uint32_t i = 0; i < head_dim; i += LANES) {
			uint32_t left = head_dim - i;
			float32x4_t a = c0 ? load(out + i, left) : vdupq_n_f32(0);

			for (uint32_t c = 0; c < n; c++)
				a = vfmaq_n_f32(
					a, load(o + (size_t)(c0 + c) * n_q * head_dim + i, left),
					e[c]);
			store(out + i, left, a);
		}
	}
	check_finite(max, &faults);
	check_finite(sum, &faults);
	for (uint32_t i = 0; i < head_dim; i += LANES)
		store(out + i, head_dim - i,
		      vdivq_f32(load(out + i, head_dim - i), vdupq_n_f32(sum)));
	return faults > 0;
}

static void attn_merge(const float *m, const float *l, const float *o, uint32_t n_chunks,
		       uint32_t n_q, uint32_t head_dim, float *out, uint32_t *faults)
{
	for (uint32_t q = 0; q < n_q; q++, out += head_dim)
		*faults += merge(m + q, l + q, o + (size_t)q * head_dim, n_chunks, n_q, head_dim,
				 out);
}

void attn_neon(struct float_ops *f)
{
	f->attn_chunks = attn_chunks;
	f->attn_merge = attn_merge;
}

#endif

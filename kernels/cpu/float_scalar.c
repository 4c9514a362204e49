/* SPDX-License-Identifier: MIT */
/*
 * The float operations: the definition. Slow and obvious; what the contract writes as one operation
 * is one here, in its order. Rounding is to nearest even throughout: rintf() and fmaf() are exact
 * on every libm.
 */
#include <assert.h>
#include <math.h>
#include <string.h>
#include "float_variants.h"

/* ---- building blocks ------------------------------------------------------------------------- */

float exp2_contract(float x)
{
	static const uint32_t terms[] = EXP2_TERMS;
	float n, f, p = float_of(terms[0]);

	if (x != x)
		return x;
	if (x < -100)
		return 0;
	x = x < 126 ? x : 126;
	n = rintf(x);
	f = x - n;
	for (unsigned i = 1; i <= EXP2_DEGREE; i++)
		p = fmaf(p, f, float_of(terms[i]));
	return float_of(bits_of(p) + ((uint32_t)(int32_t)n << 23));
}

float sum256(const float *v, uint32_t n)
{
	float p[256] = { 0 };

	for (uint32_t i = 0; i < n; i++)
		p[i % 256] += v[i];
	for (unsigned half = 128; half; half /= 2)
		for (unsigned l = 0; l < half; l++)
			p[l] += p[l + half];
	return p[0];
}

float sumsq(const float *x, uint32_t n)
{
	float p[32] = { 0 };

	for (uint32_t b = 0; b * 16 < n; b++) {
		float e[16] = { 0 };

		for (uint32_t i = 0; i < 16 && b * 16 + i < n; i++)
			e[i] = x[b * 16 + i] * x[b * 16 + i];
		for (unsigned half = 8; half; half /= 2)
			for (unsigned i = 0; i < half; i++)
				e[i] += e[i + half];
		p[b % 32] += e[0];
	}
	for (unsigned half = 16; half; half /= 2)
		for (unsigned l = 0; l < half; l++)
			p[l] += p[l + half];
	return p[0];
}

float attn_scale(uint32_t head_dim)
{
	return (float)(0x1.71547652b82fep+0 / sqrt((double)head_dim));
}

/* The largest |x| by its bits, so that a NaN is larger than any. */
static float max_abs(const float *x, uint32_t n)
{
	uint32_t max = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t b = bits_of(x[i]) & 0x7fffffff;

		max = b > max ? b : max;
	}
	return float_of(max);
}

/* clamp(rne(v), low, high); low for a NaN. */
static int code_of(float v, int low, int high)
{
	v = rintf(v);
	return v > (float)high ? high : v > (float)low ? (int)v : low;
}

static float widened(uint16_t half)
{
	uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 1023;

	if (exponent == 31)
		return float_of(sign | 0x7f800000 | fraction << 13);
	if (exponent == 0)
		return (sign ? -1.0f : 1.0f) * ((float)fraction * 0x1p-24f);
	return float_of(sign | (exponent + 112) << 23 | fraction << 13);
}

static uint16_t half_of(float x)
{
	uint32_t sign = bits_of(x) >> 16 & 0x8000, b = bits_of(x) & 0x7fffffff, half;

	if (b > 0x7f800000)
		half = 0x7e00;
	else if (b >= 0x477ff000) /* 65520, from where on the nearest is 2^16 */
		half = 0x7c00;
	else if (b < 0x38800000) /* 2^-14: multiples of 2^-24 */
		half = (uint32_t)rintf(float_of(b) * 0x1p24f);
	else
		half = (b - (112u << 23) + 0xfff + (b >> 13 & 1)) >> 13;
	return (uint16_t)(sign | half);
}

/* ---- one row --------------------------------------------------------------------------------- */

static void embed(const struct packed_shape *s, const void *packed, const float *scales,
		  uint32_t token, float *x)
{
	uint32_t span = packed_span(s->layout);
	const uint8_t *row = (const uint8_t *)packed +
			     (size_t)(token / PACKED_ROWS) * packed_units(s) * PACKED_UNIT +
			     token % PACKED_ROWS * PACKED_BYTES;

	assert(s->layout == PACKED_INT8 || s->layout == PACKED_F16 || s->layout == PACKED_BF16);
	for (uint32_t i = 0; i < s->cols; i++) {
		const uint8_t *at = row + (size_t)(i / span) * PACKED_UNIT +
				    i % span * (PACKED_BYTES / span);
		uint16_t half;

		if (s->layout == PACKED_INT8) {
			x[i] = (float)(int8_t)*at * scales[token];
			continue;
		}
		half = (uint16_t)(at[0] | at[1] << 8);
		x[i] = s->layout == PACKED_F16 ? widened(half) : float_of((uint32_t)half << 16);
	}
}

/* r of the norm, if there is one, and a; each checked. */
static float norm(const float *x, const float *w, uint32_t n, float eps, float *a, uint32_t *faults)
{
	uint32_t max = 0;
	float r = 1, y_max;

	if (w) {
		float ss = sumsq(x, n);

		check_finite(ss, faults);
		r = norm_r(ss, n, eps);
	}
	for (uint32_t i = 0; i < n; i++) {
		float t = w ? x[i] * w[i] : x[i];
		uint32_t b = bits_of(t) & 0x7fffffff;

		max = b > max ? b : max;
	}
	y_max = float_of(max) * r;
	check_finite(y_max, faults);
	*a = quant_a(y_max);
	return r;
}

static void norm_quant(const float *x, const float *w, uint32_t n, float eps, int8_t *q, float *d,
		       uint32_t *faults)
{
	float a, r = norm(x, w, n, eps, &a, faults), s = 127 / a;

	for (uint32_t i = 0; i < n; i++) {
		float t = w ? x[i] * w[i] : x[i], y = t * r;

		q[i] = (int8_t)code_of(y * s, -128, 127);
	}
	*d = a / 127;
}

static void norm_head(const float *x, const float *w, uint32_t n, float eps, float *y, int16_t *q,
		      float *d, uint32_t *faults)
{
	float a, r = norm(x, w, n, eps, &a, faults), s = 32767 / a;

	for (uint32_t i = 0; i < n; i++) {
		float t = w ? x[i] * w[i] : x[i];

		y[i] = t * r;
		q[i] = (int16_t)code_of(y[i] * s, -32767, 32767);
	}
	*d = a / 32767;
}

static void gate(uint32_t act, const float *gates, const float *up, uint32_t n, float *h)
{
	for (uint32_t i = 0; i < n; i++) {
		float g = gates[i];

		if (act == GATE_RELU2) {
			g = g < 0 ? 0 : g;
			h[i] = g * g * up[i];
		} else {
			h[i] = g / (1 + exp2_contract(g * -0x1.715476p+0f)) * up[i];
		}
	}
}

static void add(float *x, const float *y, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		x[i] += y[i];
}

static void exp2_row(const float *x, uint32_t n, float *e)
{
	for (uint32_t i = 0; i < n; i++)
		e[i] = exp2_contract(x[i]);
}

/* ---- positions ------------------------------------------------------------------------------- */

static void rope(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos_sin)
{
	uint32_t half = head_dim / 2;

	for (uint32_t h = 0; h < n_heads; h++, x += head_dim)
		for (uint32_t i = 0; i < half; i++) {
			float x1 = x[i], x2 = x[i + half], c = cos_sin[2 * i],
			      s = cos_sin[2 * i + 1];

			x[i] = fmaf(x1, c, -(x2 * s));
			x[i + half] = fmaf(x2, c, x1 * s);
		}
}

size_t kv_page_bytes(uint32_t form, uint32_t head_dim)
{
	return form == KV_INT8 ? kv_scales(head_dim) + 2 * sizeof(float[KV_PAGE]) :
				 2 * kv_values(KV_F16, head_dim);
}

static void kv_put(uint32_t form, void *page, uint32_t head_dim, uint32_t slot, const float *k,
		   const float *v, uint32_t *faults)
{
	char *values = (char *)page + kv_values(form, head_dim);

	if (form == KV_INT8) {
		int8_t *k8 = page, *v8 = (int8_t *)values + slot * head_dim;
		float *dk = (float *)(void *)((char *)page + kv_scales(head_dim)),
		      *dv = dk + KV_PAGE;
		float k_max = max_abs(k, head_dim), v_max = max_abs(v, head_dim);
		float ak = quant_a(k_max), av = quant_a(v_max);

		check_finite(k_max, faults);
		check_finite(v_max, faults);
		for (uint32_t i = 0; i < 4 * kv_quads(head_dim); i++)
			k8[(i / 4 * KV_PAGE + slot) * 4 + i % 4] =
				(int8_t)(i < head_dim ? code_of(k[i] * (127 / ak), -127, 127) : 0);
		for (uint32_t i = 0; i < head_dim; i++)
			v8[i] = (int8_t)code_of(v[i] * (127 / av), -127, 127);
		dk[slot] = ak / 127;
		dv[slot] = av / 127;
	} else {
		uint16_t *k16 = page, *v16 = (uint16_t *)(void *)values + slot * head_dim;

		for (uint32_t i = 0; i < head_dim; i++) {
			k16[i * KV_PAGE + slot] = half_of(k[i]);
			v16[i] = half_of(v[i]);
			*faults += (k16[i * KV_PAGE + slot] & 0x7c00) == 0x7c00;
			*faults += (v16[i] & 0x7c00) == 0x7c00;
		}
	}
}

/* s of one position and one query. */
static float score_f16(const void *page, uint32_t head_dim, uint32_t slot, const float *query,
		       float c)
{
	const uint16_t *k = page;
	float s = 0;

	for (uint32_t i = 0; i < head_dim; i++)
		s = fmaf(query[i] * c, widened(k[i * KV_PAGE + slot]), s);
	return s;
}

static float score_int8(const void *page, uint32_t head_dim, uint32_t slot, const float *query,
			float c)
{
	const int8_t *k = page;
	const float *dk = (const float *)(const void *)((const char *)page + kv_scales(head_dim));
	float aq = quant_a(max_abs(query, head_dim));
	int32_t t = 0;

	for (uint32_t i = 0; i < head_dim; i++)
		t += code_of(query[i] * (32767 / aq), -32767, 32767) *
		     k[(i / 4 * KV_PAGE + slot) * 4 + i % 4];
	return (float)t * (aq / 32767 * c * dk[slot]);
}

/* One query and one chunk of n positions. */
static void attn_chunk(uint32_t form, const void *const *pages, uint32_t head_dim, uint32_t n,
		       const float *query, float c, float *m, float *l, float *o)
{
	float s[ATTN_CHUNK], p[ATTN_CHUNK];

	*m = -INFINITY;
	for (uint32_t j = 0; j < n; j++) {
		s[j] = form == KV_INT8 ?
			       score_int8(pages[j / KV_PAGE], head_dim, j % KV_PAGE, query, c) :
			       score_f16(pages[j / KV_PAGE], head_dim, j % KV_PAGE, query, c);
		*m = s[j] > *m ? s[j] : *m;
	}
	for (uint32_t j = 0; j < n; j++)
		p[j] = exp2_contract(s[j] - *m);
	*l = sum256(p, n);
	for (uint32_t i = 0; i < head_dim; i++) {
		o[i] = 0;
		for (uint32_t j = 0; j < n; j++) {
			const char *page = pages[j / KV_PAGE];
			const void *values = page + kv_values(form, head_dim);
			const float *dv =
				(const float *)(const void *)(page + kv_scales(head_dim)) + KV_PAGE;
			uint32_t at = j % KV_PAGE * head_dim + i;

			o[i] = form == KV_INT8 ?
				       fmaf(p[j] * dv[j % KV_PAGE],
					    (float)((const int8_t *)values)[at], o[i]) :
				       fmaf(p[j], widened(((const uint16_t *)values)[at]), o[i]);
		}
	}
}

static void attn_chunks(uint32_t form, const void *const *pages, uint32_t head_dim, uint32_t n,
			uint32_t n_q, const float *query, float c, float *m, float *l, float *o)
{
	assert(head_dim <= HEAD_DIM_MAX);
	for (uint32_t from = 0; from < n; from += ATTN_CHUNK, pages += ATTN_PAGES)
		for (uint32_t i = 0; i < n_q; i++, o += head_dim)
			attn_chunk(form, pages, head_dim,
				   n - from < ATTN_CHUNK ? n - from : ATTN_CHUNK,
				   query + (size_t)i * head_dim, c, m++, l++, o);
}

static void attn_merge(const float *m, const float *l, const float *o, uint32_t n_chunks,
		       uint32_t n_q, uint32_t head_dim, float *out, uint32_t *faults)
{
	for (uint32_t q = 0; q < n_q; q++, out += head_dim) {
		float max = -INFINITY, sum = 0;
		uint32_t faulty = 0;

		for (uint32_t c = 0; c < n_chunks; c++)
			max = m[(size_t)c * n_q + q] > max ? m[(size_t)c * n_q + q] : max;
		for (uint32_t i = 0; i < head_dim; i++)
			out[i] = 0;
		for (uint32_t c = 0; c < n_chunks; c++) {
			const float e = exp2_contract(m[(size_t)c * n_q + q] - max);
			const float *row = o + ((size_t)c * n_q + q) * head_dim;

			sum = fmaf(e, l[(size_t)c * n_q + q], sum);
			for (uint32_t i = 0; i < head_dim; i++)
				out[i] = fmaf(e, row[i], out[i]);
		}
		check_finite(max, &faulty);
		check_finite(sum, &faulty);
		*faults += faulty > 0;
		for (uint32_t i = 0; i < head_dim; i++)
			out[i] = out[i] / sum;
	}
}

void float_scalar(struct float_ops *f)
{
	f->embed = embed;
	f->norm_quant = norm_quant;
	f->norm_head = norm_head;
	f->gate = gate;
	f->add = add;
	f->exp2 = exp2_row;
	f->rope = rope;
	f->kv_put = kv_put;
	f->attn_chunks = attn_chunks;
	f->attn_merge = attn_merge;
	f->isa = "scalar";
}

/* SPDX-License-Identifier: MIT */
/*
 * The float operations of one row, and the writing of KV pages, for NEON: as for AVX-512
 * (float_avx512.c), with vectors of 4.
 */
#if defined(__aarch64__)

#include "float_neon.h"

/* ---- one row --------------------------------------------------------------------------------- */

/* A block's squares, + 8 and + 4. */
static inline float32x4_t block(const float *x)
{
	float32x4_t a = vld1q_f32(x), b = vld1q_f32(x + 4), c = vld1q_f32(x + 8),
		    d = vld1q_f32(x + 12);

	a = vaddq_f32(vmulq_f32(a, a), vmulq_f32(c, c));
	b = vaddq_f32(vmulq_f32(b, b), vmulq_f32(d, d));
	return vaddq_f32(a, b);
}

/* + 2 of two such. */
static inline float32x4_t halve(float32x4_t a, float32x4_t b)
{
	float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);

	return vaddq_f32(vreinterpretq_f32_f64(vzip1q_f64(x, y)),
			 vreinterpretq_f32_f64(vzip2q_f64(x, y)));
}

/* S_b of 4 blocks, in their order. */
static inline float32x4_t block_sums(const float *x)
{
	return vpaddq_f32(halve(block(x), block(x + 16)), halve(block(x + 32), block(x + 48)));
}

static float sumsq_4(const float *x, uint32_t n)
{
	float32x4_t s[8];
	float p[32];

	for (unsigned i = 0; i < 8; i++)
		s[i] = vdupq_n_f32(0);
	for (; n >= 512; n -= 512, x += 512)
		for (unsigned i = 0; i < 8; i++)
			s[i] = vaddq_f32(s[i], block_sums(x + 64 * i));
	if (n) {
		/* Blocks that are not there add +0 to what is no -0. */
		float rest[512] = { 0 };

		memcpy(rest, x, n * sizeof(*x));
		for (unsigned i = 0; i < 8; i++)
			s[i] = vaddq_f32(s[i], block_sums(rest + 64 * i));
	}
	for (unsigned i = 0; i < 8; i++)
		vst1q_f32(p + LANES * i, s[i]);
	return fold(p, 32);
}

/* r of the norm, if there is one, and a; each checked. */
static inline float norm(const float *x, const float *w, uint32_t n, float eps, float *a,
			 uint32_t *faults)
{
	float r = 1, y_max;

	if (w) {
		float ss = sumsq_4(x, n);

		check_finite(ss, faults);
		r = norm_r(ss, n, eps);
	}
	y_max = max_abs(x, w, n) * r;
	check_finite(y_max, faults);
	*a = quant_a(y_max);
	return r;
}

static void norm_quant(const float *x, const float *w, uint32_t n, float eps, int8_t *q, float *d,
		       uint32_t *faults)
{
	float a, r = norm(x, w, n, eps, &a, faults), s = 127 / a;

	for (uint32_t i = 0; i < n; i += LANES)
		store8(q + i, n - i, codes(vmulq_n_f32(weighted(x, w, i, n - i), r), s, -128, 127));
	*d = a / 127;
}

static void norm_head(const float *x, const float *w, uint32_t n, float eps, float *y, int16_t *q,
		      float *d, uint32_t *faults)
{
	float a, r = norm(x, w, n, eps, &a, faults), s = 32767 / a;

	for (uint32_t i = 0; i < n; i += LANES) {
		float32x4_t v = vmulq_n_f32(weighted(x, w, i, n - i), r);

		store(y + i, n - i, v);
		store16(q + i, n - i, codes(v, s, -32767, 32767));
	}
	*d = a / 32767;
}

static void gate(uint32_t act, const float *gates, const float *up, uint32_t n, float *h)
{
	for (uint32_t i = 0; i < n; i += LANES) {
		float32x4_t g = load(gates + i, n - i), u = load(up + i, n - i);

		if (act == GATE_RELU2) {
			g = vmaxq_f32(g, vdupq_n_f32(0)); /* a NaN stays one */
			g = vmulq_f32(g, g);
		} else {
			float32x4_t e = exp2_4(vmulq_n_f32(g, -0x1.715476p+0f));

			g = vdivq_f32(g, vaddq_f32(vdupq_n_f32(1), e));
		}
		store(h + i, n - i, vmulq_f32(g, u));
	}
}

static void exp2_row(const float *x, uint32_t n, float *e)
{
	for (uint32_t i = 0; i < n; i += LANES)
		store(e + i, n - i, exp2_4(load(x + i, n - i)));
}

static void add(float *x, const float *y, uint32_t n)
{
	for (uint32_t i = 0; i < n; i += LANES)
		store(x + i, n - i, vaddq_f32(load(x + i, n - i), load(y + i, n - i)));
}

/* ---- positions ------------------------------------------------------------------------------- */

static void rope(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos_sin)
{
	uint32_t half = head_dim / 2;

	for (uint32_t i = 0; i < half; i += LANES) {
		uint32_t left = half - i;
		float32x4_t low = load(cos_sin + 2 * i, 2 * left);
		float32x4_t high = left > 2 ? load(cos_sin + 2 * i + LANES, 2 * left - LANES) :
					      vdupq_n_f32(0);
		float32x4_t c = vuzp1q_f32(low, high), s = vuzp2q_f32(low, high);
		float *at = x + i;

		for (uint32_t h = 0; h < n_heads; h++, at += head_dim) {
			float32x4_t x1 = load(at, left), x2 = load(at + half, left);

			store(at, left, vfmaq_f32(vnegq_f32(vmulq_f32(x2, s)), x1, c));
			store(at + half, left, vfmaq_f32(vmulq_f32(x1, s), x2, c));
		}
	}
}

static inline uint32_t count_infinite(uint16x4_t halves)
{
	const uint16x4_t infinite = vdup_n_u16(0x7c00);

	return vaddv_u16(vshr_n_u16(vceq_u16(vand_u16(halves, infinite), infinite), 15));
}

static void put_f16(void *page, uint32_t head_dim, uint32_t slot, const float *k, const float *v,
		    uint32_t *faults)
{
	uint16_t *keys = (uint16_t *)page + slot;
	uint16_t *values = (uint16_t *)page + (size_t)head_dim * KV_PAGE + (size_t)slot * head_dim;

	for (uint32_t i = 0; i < head_dim; i += LANES) {
		uint32_t left = head_dim - i < LANES ? head_dim - i : LANES;
		uint16x4_t k16 = vreinterpret_u16_f16(vcvt_f16_f32(load(k + i, left)));
		uint16x4_t v16 = vreinterpret_u16_f16(vcvt_f16_f32(load(v + i, left)));
		uint16_t column[LANES];

		vst1_u16(column, k16);
		for (uint32_t j = 0; j < left; j++)
			keys[(i + j) * KV_PAGE] = column[j];
		memcpy(values + i, &v16, left * sizeof(*values));
		*faults += count_infinite(k16) + count_infinite(v16);
	}
}

static void put_int8(void *page, uint32_t head_dim, uint32_t slot, const float *k, const float *v,
		     uint32_t *faults)
{
	int8_t *keys = (int8_t *)page + 4 * slot;
	int8_t *values = (int8_t *)page + kv_values(KV_INT8, head_dim) + (size_t)slot * head_dim;
	float *dk = (float *)(void *)((char *)page + kv_scales(head_dim)), *dv = dk + KV_PAGE;
	float k_max = max_abs(k, NULL, head_dim), v_max = max_abs(v, NULL, head_dim);
	float ak = quant_a(k_max), av = quant_a(v_max);

	check_finite(k_max, faults);
	check_finite(v_max, faults);
	for (uint32_t i = 0; i < head_dim; i += LANES, keys += (size_t)4 * KV_PAGE) {
		uint32_t left = head_dim - i;

		store8(keys, LANES, codes(load(k + i, left), 127 / ak, -127, 127));
		store8(values + i, left, codes(load(v + i, left), 127 / av, -127, 127));
	}
	dk[slot] = ak / 127;
	dv[slot] = av / 127;
}

static void kv_put(uint32_t form, void *page, uint32_t head_dim, uint32_t slot, const float *k,
		   const float *v, uint32_t *faults)
{
	if (form == KV_INT8)
		put_int8(page, head_dim, slot, k, v, faults);
	else
		put_f16(page, head_dim, slot, k, v, faults);
}

void float_neon(struct float_ops *f)
{
	f->norm_quant = norm_quant;
	f->norm_head = norm_head;
	f->gate = gate;
	f->add = add;
	f->exp2 = exp2_row;
	f->rope = rope;
	f->kv_put = kv_put;
	attn_neon(f);
	f->isa = "neon";
}

#endif

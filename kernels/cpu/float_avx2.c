/* SPDX-License-Identifier: MIT */
/*
 * The float operations of one row, and the writing of KV pages, for AVX2 with FMA and F16C: as for
 * AVX-512 (float_avx512.c), with vectors of 8.
 */
#if defined(__x86_64__)

#include "float_avx2.h"

/* ---- one row --------------------------------------------------------------------------------- */

/* A block's squares, + 8. */
static inline __m256 block(const float *x)
{
	__m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + LANES);

	return _mm256_add_ps(_mm256_mul_ps(a, a), _mm256_mul_ps(b, b));
}

/* Blocks b and b + 4, + 4: one in each half. */
static inline __m256 half_sums(const float *x)
{
	__m256 a = block(x), b = block(x + 64);

	return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20),
			     _mm256_permute2f128_ps(a, b, 0x31));
}

/* + 2 of two such. */
static inline __m256 halve(__m256 a, __m256 b)
{
	return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x44), _mm256_shuffle_ps(a, b, 0xee));
}

/* S_b of 8 blocks, in their order. */
static inline __m256 block_sums(const float *x)
{
	__m256 a = halve(half_sums(x), half_sums(x + 16)),
	       b = halve(half_sums(x + 32), half_sums(x + 48));

	return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}

static float sumsq_256(const float *x, uint32_t n)
{
	__m256 s[4] = { _mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps(),
			_mm256_setzero_ps() };

	for (; n >= 512; n -= 512, x += 512)
		for (unsigned i = 0; i < 4; i++)
			s[i] = _mm256_add_ps(s[i], block_sums(x + 128 * i));
	if (n) {
		/* Blocks that are not there add +0 to what is no -0. */
		float rest[512] = { 0 };

		memcpy(rest, x, n * sizeof(*x));
		for (unsigned i = 0; i < 4; i++)
			s[i] = _mm256_add_ps(s[i], block_sums(rest + 128 * i));
	}
	return fold8(_mm256_add_ps(_mm256_add_ps(s[0], s[2]), _mm256_add_ps(s[1], s[3])));
}

/* r of the norm, if there is one, and a; each checked. */
static inline float norm(const float *x, const float *w, uint32_t n, float eps, float *a,
			 uint32_t *faults)
{
	float r = 1, y_max;

	if (w) {
		float ss = sumsq_256(x, n);

		check_finite(ss, faults);
		r = norm_r(ss, n, eps);
	}
	y_max = max_abs(x, w, n) * r;
	check_finite(y_max, faults);
	*a = quant_a(y_max);
	return r;
}

/* Eight elements, or what is left of them; so are all below. */
ALWAYS void quant_step(const float *x, const float *w, uint32_t i, uint32_t left, float r, float s,
		       int8_t *q)
{
	__m256 y = _mm256_mul_ps(weighted(x, w, i, left), _mm256_set1_ps(r));

	store_bytes(q + i, left, 1,
		    narrow8(_mm256_cvtps_epi32(_mm256_mul_ps(y, _mm256_set1_ps(s)))));
}

static void norm_quant(const float *x, const float *w, uint32_t n, float eps, int8_t *q, float *d,
		       uint32_t *faults)
{
	float a, r = norm(x, w, n, eps, &a, faults), s = 127 / a;
	uint32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		quant_step(x, w, i, LANES, r, s, q);
	if (i < n)
		quant_step(x, w, i, n - i, r, s, q);
	*d = a / 127;
}

ALWAYS void head_step(const float *x, const float *w, uint32_t i, uint32_t left, float r, float s,
		      float *y, int16_t *q)
{
	__m256 v = _mm256_mul_ps(weighted(x, w, i, left), _mm256_set1_ps(r));

	store(y + i, left, v);
	store_bytes(q + i, left, 2, narrow16(codes(v, s, 32767)));
}

static void norm_head(const float *x, const float *w, uint32_t n, float eps, float *y, int16_t *q,
		      float *d, uint32_t *faults)
{
	float a, r = norm(x, w, n, eps, &a, faults), s = 32767 / a;
	uint32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		head_step(x, w, i, LANES, r, s, y, q);
	if (i < n)
		head_step(x, w, i, n - i, r, s, y, q);
	*d = a / 32767;
}

ALWAYS void gate_step(uint32_t act, const float *gates, const float *up, uint32_t left, float *h)
{
	__m256 g = load(gates, left), u = load(up, left);

	if (act == GATE_RELU2) {
		g = _mm256_max_ps(_mm256_setzero_ps(), g); /* the second where it is a NaN */
		g = _mm256_mul_ps(g, g);
	} else {
		__m256 e = exp2_8(_mm256_mul_ps(g, _mm256_set1_ps(-0x1.715476p+0f)));

		g = _mm256_div_ps(g, _mm256_add_ps(_mm256_set1_ps(1), e));
	}
	store(h, left, _mm256_mul_ps(g, u));
}

static void gate(uint32_t act, const float *gates, const float *up, uint32_t n, float *h)
{
	uint32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		gate_step(act, gates + i, up + i, LANES, h + i);
	if (i < n)
		gate_step(act, gates + i, up + i, n - i, h + i);
}

ALWAYS void add_step(float *x, const float *y, uint32_t left)
{
	store(x, left, _mm256_add_ps(load(x, left), load(y, left)));
}

static void exp2_row(const float *x, uint32_t n, float *e)
{
	for (uint32_t i = 0; i < n; i += LANES)
		store(e + i, n - i, exp2_8(load(x + i, n - i)));
}

static void add(float *x, const float *y, uint32_t n)
{
	uint32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		add_step(x + i, y + i, LANES);
	if (i < n)
		add_step(x + i, y + i, n - i);
}

/* ---- positions ------------------------------------------------------------------------------- */

static inline __m256 in_order(__m256 v)
{
	return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
}

static void rope(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos_sin)
{
	uint32_t half = head_dim / 2;

	for (uint32_t i = 0; i < half; i += LANES) {
		uint32_t left = half - i;
		__m256 low = load(cos_sin + 2 * i, 2 * left);
		__m256 high = left > 4 ? load(cos_sin + 2 * i + LANES, 2 * left - LANES) :
					 _mm256_setzero_ps();
		__m256 c = in_order(_mm256_shuffle_ps(low, high, 0x88));
		__m256 s = in_order(_mm256_shuffle_ps(low, high, 0xdd));
		float *at = x + i;

		for (uint32_t h = 0; h < n_heads; h++, at += head_dim) {
			__m256 x1 = load(at, left), x2 = load(at + half, left);

			store(at, left, _mm256_fmsub_ps(x1, c, _mm256_mul_ps(x2, s)));
			store(at + half, left, _mm256_fmadd_ps(x2, c, _mm256_mul_ps(x1, s)));
		}
	}
}

static inline uint32_t count_infinite(__m128i halves)
{
	const __m128i infinite = _mm_set1_epi16(0x7c00);
	__m128i equal = _mm_cmpeq_epi16(_mm_and_si128(halves, infinite), infinite);

	return (uint32_t)__builtin_popcount((unsigned)_mm_movemask_epi8(equal)) / 2;
}

static void put_f16(void *page, uint32_t head_dim, uint32_t slot, const float *k, const float *v,
		    uint32_t *faults)
{
	uint16_t *keys = (uint16_t *)page + slot;
	uint16_t *values = (uint16_t *)page + (size_t)head_dim * KV_PAGE + (size_t)slot * head_dim;

	for (uint32_t i = 0; i < head_dim; i += LANES) {
		uint32_t left = head_dim - i;
		__m128i k16 = _mm256_cvtps_ph(load(k + i, left), _MM_FROUND_TO_NEAREST_INT);
		__m128i v16 = _mm256_cvtps_ph(load(v + i, left), _MM_FROUND_TO_NEAREST_INT);
		uint16_t column[LANES];

		_mm_storeu_si128((__m128i *)(void *)column, k16);
		for (uint32_t j = 0; j < LANES && j < left; j++)
			keys[(i + j) * KV_PAGE] = column[j];
		store_bytes(values + i, left, 2, v16);
		*faults += count_infinite(k16) + count_infinite(v16);
	}
}

static void put_int8(void *page, uint32_t head_dim, uint32_t slot, const float *k, const float *v,
		     uint32_t *faults)
{
	char *keys = (char *)page + 4 * slot;
	int8_t *values = (int8_t *)page + kv_values(KV_INT8, head_dim) + (size_t)slot * head_dim;
	float *dk = (float *)(void *)((char *)page + kv_scales(head_dim)), *dv = dk + KV_PAGE;
	float k_max = max_abs(k, NULL, head_dim), v_max = max_abs(v, NULL, head_dim);
	float ak = quant_a(k_max), av = quant_a(v_max);

	check_finite(k_max, faults);
	check_finite(v_max, faults);
	for (uint32_t i = 0; i < head_dim; i += LANES) {
		uint32_t left = head_dim - i, quads[4];

		_mm_storeu_si128((__m128i *)(void *)quads,
				 narrow8(codes(load(k + i, left), 127 / ak, 127)));
		for (uint32_t j = 0; j < 2 && 4 * j < left; j++)
			memcpy(keys + (size_t)(i / 4 + j) * 4 * KV_PAGE, &quads[j], 4);
		store_bytes(values + i, left, 1, narrow8(codes(load(v + i, left), 127 / av, 127)));
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

void float_avx2(struct float_ops *f)
{
	f->norm_quant = norm_quant;
	f->norm_head = norm_head;
	f->gate = gate;
	f->add = add;
	f->exp2 = exp2_row;
	f->rope = rope;
	f->kv_put = kv_put;
	attn_avx2(f);
	f->isa = "avx2";
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * The float operations of one row, and the writing of KV pages, for AVX-512.
 *
 * Sums are trees by contract. Sixteen blocks of sixteen are added by transposing them, so that the
 * sum of block b is in lane b at the end and every addition is one of sixteen at once.
 */
#if defined(__x86_64__)

#include "float_avx512.h"

/* ---- one row --------------------------------------------------------------------------------- */

static inline __m512 square(const float *x)
{
	__m512 v = _mm512_loadu_ps(x);

	return _mm512_mul_ps(v, v);
}

/*
 * Blocks b, b + 4, b + 8, b + 12 of 16 squares: what is left after + 8 and + 4, one in each
 * quarter.
 */
static inline __m512 quarter_sums(const float *x)
{
	__m512 a = square(x), b = square(x + 64), c = square(x + 128), d = square(x + 192);
	__m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44),
				  _mm512_shuffle_f32x4(a, b, 0xee));
	__m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44),
				  _mm512_shuffle_f32x4(c, d, 0xee));

	return _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88),
			     _mm512_shuffle_f32x4(ab, cd, 0xdd));
}

/* + 2 of two such, then + 1 of two of those. */
static inline __m512 halve(__m512 a, __m512 b)
{
	return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
}

/* S_b of 16 blocks, in their order. */
static inline __m512 block_sums(const float *x)
{
	__m512 a = halve(quarter_sums(x), quarter_sums(x + 16));
	__m512 b = halve(quarter_sums(x + 32), quarter_sums(x + 48));

	return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}

static float sumsq_512(const float *x, uint32_t n)
{
	__m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();

	for (; n >= 512; n -= 512, x += 512) {
		low = _mm512_add_ps(low, block_sums(x));
		high = _mm512_add_ps(high, block_sums(x + 256));
	}
	if (n) {
		/* Blocks that are not there add +0 to what is no -0. */
		float rest[512] = { 0 };

		memcpy(rest, x, n * sizeof(*x));
		low = _mm512_add_ps(low, block_sums(rest));
		high = _mm512_add_ps(high, block_sums(rest + 256));
	}
	return fold16(_mm512_add_ps(low, high));
}

/* r of the norm, if there is one, and a; each checked. */
static inline float norm(const float *x, const float *w, uint32_t n, float eps, float *a,
			 uint32_t *faults)
{
	float r = 1, y_max;

	if (w) {
		float ss = sumsq_512(x, n);

		check_finite(ss, faults);
		r = norm_r(ss, n, eps);
	}
	y_max = max_abs(x, w, n) * r;
	check_finite(y_max, faults);
	*a = quant_a(y_max);
	return r;
}

/* 16 elements, or what is left of them; so are all below. */
ALWAYS void quant_step(const float *x, const float *w, uint32_t i, uint32_t left, float r, float s,
		       int8_t *q)
{
	__m512 y = _mm512_mul_ps(weighted(x, w, i, left), _mm512_set1_ps(r));
	__m128i bytes =
		_mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(y, _mm512_set1_ps(s))));

	if (left >= LANES)
		_mm_storeu_si128((__m128i *)(void *)(q + i), bytes);
	else
		_mm_mask_storeu_epi8(q + i, first(left), bytes);
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
	__m512 v = _mm512_mul_ps(weighted(x, w, i, left), _mm512_set1_ps(r));
	__m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(v, _mm512_set1_ps(s)));
	__m256i words = _mm512_cvtsepi32_epi16(_mm512_max_epi32(code, _mm512_set1_epi32(-32767)));

	store(y + i, left, v);
	if (left >= LANES)
		_mm256_storeu_si256((__m256i *)(void *)(q + i), words);
	else
		_mm256_mask_storeu_epi16(q + i, first(left), words);
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
	__m512 g = load(gates, left), u = load(up, left);

	if (act == GATE_RELU2) {
		g = _mm512_max_ps(_mm512_setzero_ps(), g); /* the second where it is a NaN */
		g = _mm512_mul_ps(g, g);
	} else {
		__m512 e = exp2_16(_mm512_mul_ps(g, _mm512_set1_ps(-0x1.715476p+0f)));

		g = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1), e));
	}
	store(h, left, _mm512_mul_ps(g, u));
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
	store(x, left, _mm512_add_ps(load(x, left), load(y, left)));
}

static void exp2_row(const float *x, uint32_t n, float *e)
{
	for (uint32_t i = 0; i < n; i += LANES)
		store(e + i, n - i, exp2_16(load(x + i, n - i)));
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

static void rope(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos_sin)
{
	const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26,
					       28, 30);
	const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
	uint32_t half = head_dim / 2;

	for (uint32_t i = 0; i < half; i += LANES) {
		uint32_t left = half - i;
		__m512 low = load(cos_sin + 2 * i, 2 * left);
		__m512 high = left > 8 ? load(cos_sin + 2 * i + LANES, 2 * left - LANES) :
					 _mm512_setzero_ps();
		__m512 c = _mm512_permutex2var_ps(low, even, high),
		       s = _mm512_permutex2var_ps(low, odd, high);
		float *at = x + i;

		for (uint32_t h = 0; h < n_heads; h++, at += head_dim) {
			__m512 x1 = load(at, left), x2 = load(at + half, left);

			store(at, left, _mm512_fmsub_ps(x1, c, _mm512_mul_ps(x2, s)));
			store(at + half, left, _mm512_fmadd_ps(x2, c, _mm512_mul_ps(x1, s)));
		}
	}
}

static inline uint32_t count_infinite(__m256i halves)
{
	const __m256i infinite = _mm256_set1_epi16(0x7c00);

	return (uint32_t)__builtin_popcount(
		_mm256_cmpeq_epi16_mask(_mm256_and_si256(halves, infinite), infinite));
}

static void put_f16(void *page, uint32_t head_dim, uint32_t slot, const float *k, const float *v,
		    uint32_t *faults)
{
	uint16_t *keys = (uint16_t *)page + slot;
	uint16_t *values = (uint16_t *)page + (size_t)head_dim * KV_PAGE + (size_t)slot * head_dim;

	for (uint32_t i = 0; i < head_dim; i += LANES) {
		uint32_t left = head_dim - i;
		__m256i k16 = _mm512_cvtps_ph(load(k + i, left),
					      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
		__m256i v16 = _mm512_cvtps_ph(load(v + i, left),
					      _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
		uint16_t column[LANES];

		_mm256_storeu_si256((__m256i *)(void *)column, k16);
		for (uint32_t j = 0; j < LANES && j < left; j++)
			keys[(i + j) * KV_PAGE] = column[j];
		_mm256_mask_storeu_epi16(values + i, first(left), v16);
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
		uint32_t left = head_dim - i;
		uint32_t quads[4];

		_mm_storeu_si128((__m128i *)(void *)quads,
				 _mm512_cvtepi32_epi8(codes(load(k + i, left), 127 / ak, 127)));
		for (uint32_t j = 0; j < 4 && 4 * j < left; j++)
			memcpy(keys + (size_t)(i / 4 + j) * 4 * KV_PAGE, &quads[j], 4);
		_mm_mask_storeu_epi8(values + i, first(left),
				     _mm512_cvtepi32_epi8(codes(load(v + i, left), 127 / av, 127)));
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

void float_avx512(struct float_ops *f)
{
	f->norm_quant = norm_quant;
	f->norm_head = norm_head;
	f->gate = gate;
	f->add = add;
	f->exp2 = exp2_row;
	f->rope = rope;
	f->kv_put = kv_put;
	attn_avx512(f);
	f->isa = "avx512";
}

#endif

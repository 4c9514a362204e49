/* SPDX-License-Identifier: MIT */
/* Heads in halves, for AVX-512: two rows' eight columns are a vector. See half_parts.h. */
#if defined(__x86_64__)

#include <string.h>
#include "product_avx512.h"

#define ROWS	2u
#define PARTS	24u
#define PARTS_1 16u
#define PARTS_2 8u
#define PARTS_3 8u

struct vec {
	__m512 f;
};

ALWAYS struct vec weights(uint32_t layout, const char *at)
{
	__m256i halves = _mm256_load_si256((const __m256i *)(const void *)at);

	if (layout == PACKED_F16)
		return (struct vec){ _mm512_cvtph_ps(halves) };
	return (struct vec){ _mm512_castsi512_ps(
		_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16)) };
}

ALWAYS struct vec values(const float *x)
{
	return (struct vec){ _mm512_broadcast_f32x8(_mm256_loadu_ps(x)) };
}

ALWAYS struct vec zero(void)
{
	return (struct vec){ _mm512_setzero_ps() };
}

ALWAYS struct vec add(struct vec a, struct vec b)
{
	return (struct vec){ _mm512_add_ps(a.f, b.f) };
}

ALWAYS struct vec fma_all(struct vec w, struct vec x, struct vec sum)
{
	return (struct vec){ _mm512_fmadd_ps(w.f, x.f, sum.f) };
}

ALWAYS struct vec fma_first(struct vec w, struct vec x, struct vec sum, unsigned n)
{
	return (struct vec){ _mm512_mask3_fmadd_ps(w.f, x.f, sum.f,
						   (__mmask16)(((1u << n) - 1) * 0x101)) };
}

ALWAYS void fold(struct vec v, float *y)
{
	__m512 a = _mm512_add_ps(v.f, _mm512_shuffle_f32x4(v.f, v.f, 0xb1));

	a = _mm512_add_ps(a, _mm512_permute_ps(a, 0x4e));
	a = _mm512_add_ps(a, _mm512_permute_ps(a, 0xb1));
	y[0] = _mm512_cvtss_f32(a);
	y[1] = _mm_cvtss_f32(_mm512_extractf32x4_ps(a, 2));
}

#include "half_parts.h"

void half_avx512(struct kernels *k)
{
	k->head_half = head_half;
}

#endif

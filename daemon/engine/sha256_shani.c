/* SPDX-License-Identifier: MIT */
/*
 * SHA-256 blocks by the SHA extensions of x86-64. The state lies in two registers as the instructions
 * want it, (a b e f) and (c d g h); one of them does two rounds and waits four cycles for it, so two
 * texts side by side take hardly longer than one.
 */
#if defined(__x86_64__)

#include "sha256.h"

#include <cpuid.h>
#include <immintrin.h>

/* Four rounds with the words w. */
static inline void rounds(__m128i *abef, __m128i *cdgh, __m128i w, unsigned i)
{
	__m128i wk = _mm_add_epi32(w, _mm_load_si128((const __m128i *)(sha256_k + 4 * i)));

	*cdgh = _mm_sha256rnds2_epu32(*cdgh, *abef, wk);
	*abef = _mm_sha256rnds2_epu32(*abef, *cdgh, _mm_shuffle_epi32(wk, 0x0e));
}

/* The four words after the sixteen in w0 to w3. */
static inline __m128i next(__m128i w0, __m128i w1, __m128i w2, __m128i w3)
{
	__m128i w = _mm_add_epi32(_mm_sha256msg1_epu32(w0, w1), _mm_alignr_epi8(w3, w2, 4));

	return _mm_sha256msg2_epu32(w, w3);
}

static inline __m128i words(const uint8_t *p)
{
	const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);

	return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)p), swap);
}

static inline void load(const uint32_t s[8], __m128i *abef, __m128i *cdgh)
{
	__m128i badc = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)s), 0xb1);
	__m128i hgfe = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(s + 4)), 0x1b);

	*abef = _mm_alignr_epi8(badc, hgfe, 8);
	*cdgh = _mm_blend_epi16(hgfe, badc, 0xf0);
}

static inline void store(uint32_t s[8], __m128i abef, __m128i cdgh)
{
	__m128i feba = _mm_shuffle_epi32(abef, 0x1b);
	__m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);

	_mm_storeu_si128((__m128i *)s, _mm_blend_epi16(feba, dchg, 0xf0));
	_mm_storeu_si128((__m128i *)(s + 4), _mm_alignr_epi8(dchg, feba, 8));
}

static void blocks(uint32_t state[8], const uint8_t *data, size_t n)
{
	__m128i abef, cdgh;

	load(state, &abef, &cdgh);
	for (; n; n--, data += 64) {
		__m128i w0 = words(data), w1 = words(data + 16), w2 = words(data + 32);
		__m128i w3 = words(data + 48);
		__m128i abef0 = abef, cdgh0 = cdgh;

		for (unsigned i = 0; i < 12; i += 4) {
			rounds(&abef, &cdgh, w0, i);
			w0 = next(w0, w1, w2, w3);
			rounds(&abef, &cdgh, w1, i + 1);
			w1 = next(w1, w2, w3, w0);
			rounds(&abef, &cdgh, w2, i + 2);
			w2 = next(w2, w3, w0, w1);
			rounds(&abef, &cdgh, w3, i + 3);
			w3 = next(w3, w0, w1, w2);
		}
		rounds(&abef, &cdgh, w0, 12);
		rounds(&abef, &cdgh, w1, 13);
		rounds(&abef, &cdgh, w2, 14);
		rounds(&abef, &cdgh, w3, 15);
		abef = _mm_add_epi32(abef, abef0);
		cdgh = _mm_add_epi32(cdgh, cdgh0);
	}
	store(state, abef, cdgh);
}

static void pair(uint32_t a[8], uint32_t b[8], const uint8_t *p, const uint8_t *q, size_t n)
{
	__m128i abef, cdgh, abef_b, cdgh_b;

	load(a, &abef, &cdgh);
	load(b, &abef_b, &cdgh_b);
	for (; n; n--, p += 64, q += 64) {
		__m128i w[4] = { words(p), words(p + 16), words(p + 32), words(p + 48) };
		__m128i v[4] = { words(q), words(q + 16), words(q + 32), words(q + 48) };
		__m128i abef0 = abef, cdgh0 = cdgh, abef0_b = abef_b, cdgh0_b = cdgh_b;

		for (unsigned i = 0; i < 12; i += 4) {
			rounds(&abef, &cdgh, w[0], i);
			rounds(&abef_b, &cdgh_b, v[0], i);
			w[0] = next(w[0], w[1], w[2], w[3]);
			v[0] = next(v[0], v[1], v[2], v[3]);
			rounds(&abef, &cdgh, w[1], i + 1);
			rounds(&abef_b, &cdgh_b, v[1], i + 1);
			w[1] = next(w[1], w[2], w[3], w[0]);
			v[1] = next(v[1], v[2], v[3], v[0]);
			rounds(&abef, &cdgh, w[2], i + 2);
			rounds(&abef_b, &cdgh_b, v[2], i + 2);
			w[2] = next(w[2], w[3], w[0], w[1]);
			v[2] = next(v[2], v[3], v[0], v[1]);
			rounds(&abef, &cdgh, w[3], i + 3);
			rounds(&abef_b, &cdgh_b, v[3], i + 3);
			w[3] = next(w[3], w[0], w[1], w[2]);
			v[3] = next(v[3], v[0], v[1], v[2]);
		}
		for (unsigned i = 0; i < 4; i++) {
			rounds(&abef, &cdgh, w[i], 12 + i);
			rounds(&abef_b, &cdgh_b, v[i], 12 + i);
		}
		abef = _mm_add_epi32(abef, abef0);
		cdgh = _mm_add_epi32(cdgh, cdgh0);
		abef_b = _mm_add_epi32(abef_b, abef0_b);
		cdgh_b = _mm_add_epi32(cdgh_b, cdgh0_b);
	}
	store(a, abef, cdgh);
	store(b, abef_b, cdgh_b);
}

const struct sha256_form *sha256_of_cpu(void)
{
	static const struct sha256_form form = { "SHA-NI", blocks, pair };
	unsigned a, b, c, d;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1))
		return NULL;
	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA) ? &form : NULL;
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * SHA-256 blocks by the cryptography extension of ARMv8. The state lies in two registers, (a b c d) and
 * (e f g h); four rounds are two instructions, one for each half.
 */
#if defined(__aarch64__)

#include "sha256.h"

#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>

/* Four rounds with the words w. */
static inline void rounds(uint32x4_t *abcd, uint32x4_t *efgh, uint32x4_t w, unsigned i)
{
	uint32x4_t wk = vaddq_u32(w, vld1q_u32(sha256_k + 4 * i));
	uint32x4_t before = *abcd;

	*abcd = vsha256hq_u32(before, *efgh, wk);
	*efgh = vsha256h2q_u32(*efgh, before, wk);
}

/* The four words after the sixteen in w0 to w3. */
static inline uint32x4_t next(uint32x4_t w0, uint32x4_t w1, uint32x4_t w2, uint32x4_t w3)
{
	return vsha256su1q_u32(vsha256su0q_u32(w0, w1), w2, w3);
}

static inline uint32x4_t words(const uint8_t *p)
{
	return vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(p)));
}

static void blocks(uint32_t state[8], const uint8_t *data, size_t n)
{
	uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);

	for (; n; n--, data += 64) {
		uint32x4_t w0 = words(data), w1 = words(data + 16), w2 = words(data + 32);
		uint32x4_t w3 = words(data + 48);
		uint32x4_t abcd0 = abcd, efgh0 = efgh;

		for (unsigned i = 0; i < 12; i += 4) {
			rounds(&abcd, &efgh, w0, i);
			w0 = next(w0, w1, w2, w3);
			rounds(&abcd, &efgh, w1, i + 1);
			w1 = next(w1, w2, w3, w0);
			rounds(&abcd, &efgh, w2, i + 2);
			w2 = next(w2, w3, w0, w1);
			rounds(&abcd, &efgh, w3, i + 3);
			w3 = next(w3, w0, w1, w2);
		}
		rounds(&abcd, &efgh, w0, 12);
		rounds(&abcd, &efgh, w1, 13);
		rounds(&abcd, &efgh, w2, 14);
		rounds(&abcd, &efgh, w3, 15);
		abcd = vaddq_u32(abcd, abcd0);
		efgh = vaddq_u32(efgh, efgh0);
	}
	vst1q_u32(state, abcd);
	vst1q_u32(state + 4, efgh);
}

/* One after the other: the big cores overlap a text's own schedule with its rounds. */
static void pair(uint32_t a[8], uint32_t b[8], const uint8_t *data_a, const uint8_t *data_b, size_t n)
{
	blocks(a, data_a, n);
	blocks(b, data_b, n);
}

const struct sha256_form *sha256_of_cpu(void)
{
	static const struct sha256_form form = { "ARMv8 SHA-2", blocks, pair };

	return getauxval(AT_HWCAP) & HWCAP_SHA2 ? &form : NULL;
}

#endif

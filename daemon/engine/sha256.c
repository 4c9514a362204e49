/* SPDX-License-Identifier: MIT */
/*
 * SHA-256 as FIPS 180-4 has it: the portable form of the block function, the padding around it, and the
 * choice of a form. sha256_shani.c and sha256_armsha.c hold the same function for CPUs with
 * instructions for it.
 */
#include "sha256.h"

#include <string.h>

/* The first 32 bits of the fractional parts of the cube roots of the first 64 primes. */
const uint32_t sha256_k[64] __attribute__((aligned(64))) = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, unsigned n)
{
	return x >> n | x << (32 - n);
}

static uint32_t big(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

/* One round; the caller turns the names instead of moving the values. */
static inline void turn(uint32_t a, uint32_t b, uint32_t c, uint32_t *d, uint32_t e, uint32_t f,
			uint32_t g, uint32_t *h, uint32_t kw)
{
	uint32_t t = *h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + (g ^ (e & (f ^ g))) + kw;

	*d += t;
	*h = t + (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) | (c & (a | b)));
}

static void block(uint32_t state[8], const uint8_t *data)
{
	uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
	uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
	const uint32_t *k = sha256_k;
	uint32_t w[64];

	for (unsigned i = 0; i < 16; i++)
		w[i] = big(data + 4 * i);
	for (unsigned i = 16; i < 64; i++)
		w[i] = w[i - 16] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       w[i - 7] + (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
	for (unsigned i = 0; i < 64; i += 8) {
		turn(a, b, c, &d, e, f, g, &h, k[i] + w[i]);
		turn(h, a, b, &c, d, e, f, &g, k[i + 1] + w[i + 1]);
		turn(g, h, a, &b, c, d, e, &f, k[i + 2] + w[i + 2]);
		turn(f, g, h, &a, b, c, d, &e, k[i + 3] + w[i + 3]);
		turn(e, f, g, &h, a, b, c, &d, k[i + 4] + w[i + 4]);
		turn(d, e, f, &g, h, a, b, &c, k[i + 5] + w[i + 5]);
		turn(c, d, e, &f, g, h, a, &b, k[i + 6] + w[i + 6]);
		turn(b, c, d, &e, f, g, h, &a, k[i + 7] + w[i + 7]);
	}
	state[0] += a;
	state[1] += b;
	state[2] += c;
	state[3] += d;
	state[4] += e;
	state[5] += f;
	state[6] += g;
	state[7] += h;
}

static void blocks(uint32_t state[8], const uint8_t *data, size_t n)
{
	for (; n; n--, data += 64)
		block(state, data);
}

static void pair(uint32_t a[8], uint32_t b[8], const uint8_t *data_a, const uint8_t *data_b, size_t n)
{
	blocks(a, data_a, n);
	blocks(b, data_b, n);
}

const struct sha256_form sha256_portable = { "portable", blocks, pair };

#if !defined(__x86_64__) && !defined(__aarch64__)
const struct sha256_form *sha256_of_cpu(void)
{
	return NULL;
}
#endif

const struct sha256_form *sha256_form(void)
{
	/* Any number of threads may find it at the same time; they find the same. */
	static const struct sha256_form *chosen;
	const struct sha256_form *f = __atomic_load_n(&chosen, __ATOMIC_RELAXED);

	if (!f) {
		f = sha256_of_cpu();
		f = f ? f : &sha256_portable;
		__atomic_store_n(&chosen, f, __ATOMIC_RELAXED);
	}
	return f;
}

/* The first 32 bits of the fractional parts of the square roots of the first 8 primes. */
static const uint32_t start[8] = {
	0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

void sha256_init(struct sha256 *s)
{
	*s = (struct sha256){ 0 };
	memcpy(s->state, start, sizeof(start));
}

void sha256_update(struct sha256 *s, const void *data, size_t len)
{
	size_t held = s->bytes % 64;
	const uint8_t *p = data;

	if (!len)
		return;
	s->bytes += len;
	if (held) {
		size_t n = len < 64 - held ? len : 64 - held;

		memcpy(s->block + held, p, n);
		p += n;
		len -= n;
		if (held + n < 64)
			return;
		sha256_form()->blocks(s->state, s->block, 1);
	}
	if (len >= 64)
		sha256_form()->blocks(s->state, p, len / 64);
	memcpy(s->block, p + (len & ~(size_t)63), len % 64);
}

void sha256_final(struct sha256 *s, uint8_t digest[32])
{
	size_t held = s->bytes % 64;
	uint64_t bits = s->bytes * 8;

	s->block[held++] = 0x80;
	if (held > 56) {
		memset(s->block + held, 0, 64 - held);
		sha256_form()->blocks(s->state, s->block, 1);
		held = 0;
	}
	memset(s->block + held, 0, 56 - held);
	for (unsigned i = 0; i < 8; i++)
		s->block[56 + i] = (uint8_t)(bits >> (56 - 8 * i));
	sha256_form()->blocks(s->state, s->block, 1);
	for (unsigned i = 0; i < 32; i++)
		digest[i] = (uint8_t)(s->state[i / 4] >> (24 - i % 4 * 8));
}

void sha256(const void *data, size_t len, uint8_t digest[32])
{
	struct sha256 s;

	sha256_init(&s);
	sha256_update(&s, data, len);
	sha256_final(&s, digest);
}

void sha256_pair(const void *a, const void *b, size_t len, uint8_t digest_a[32],
		 uint8_t digest_b[32])
{
	size_t whole = len & ~(size_t)63;
	struct sha256 s[2];

	sha256_init(&s[0]);
	sha256_init(&s[1]);
	sha256_form()->pair(s[0].state, s[1].state, a, b, len / 64);
	s[0].bytes = s[1].bytes = whole;
	sha256_update(&s[0], (const uint8_t *)a + whole, len - whole);
	sha256_update(&s[1], (const uint8_t *)b + whole, len - whole);
	sha256_final(&s[0], digest_a);
	sha256_final(&s[1], digest_b);
}

/* SPDX-License-Identifier: MIT */
#ifndef SHA256_H
#define SHA256_H

/*
 * SHA-256, with the CPU's own instructions where it has them, a portable form otherwise; chosen once.
 * libsodium's uses no such instructions and is five times slower, which is felt with a whole model.
 */

#include <stddef.h>
#include <stdint.h>

struct sha256 {
	uint32_t state[8];
	uint64_t bytes;
	uint8_t block[64];
};

void sha256_init(struct sha256 *s);
void sha256_update(struct sha256 *s, const void *data, size_t len);
void sha256_final(struct sha256 *s, uint8_t digest[32]);
void sha256(const void *data, size_t len, uint8_t digest[32]);

#endif

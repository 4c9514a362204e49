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
/*
 * Two texts of one length at once: a round waits for the one before it, and the other text's fill the
 * time. Nearly twice the speed of one after the other where the CPU has the instructions.
 */
void sha256_pair(const void *a, const void *b, size_t len, uint8_t digest_a[32],
		 uint8_t digest_b[32]);

/* ---- between sha256.c and the files for one kind of CPU each ------------------------------------ */

struct sha256_form {
	const char *name;
	void (*blocks)(uint32_t state[8], const uint8_t *data, size_t n);
	void (*pair)(uint32_t a[8], uint32_t b[8], const uint8_t *data_a, const uint8_t *data_b, size_t n);
};
extern const struct sha256_form sha256_portable;
extern const uint32_t sha256_k[64];
/* The form that this CPU's own instructions allow; NULL when it has none. */
const struct sha256_form *sha256_of_cpu(void);
/* The one in use. */
const struct sha256_form *sha256_form(void);

#endif

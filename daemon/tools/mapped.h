/* SPDX-License-Identifier: MIT */
#ifndef MAPPED_H
#define MAPPED_H

/*
 * An input file in memory, and a cursor that cannot leave it. The file is mapped read-only; one
 * that shrinks while it is read ends the tool with a sentence (tool.c catches SIGBUS), not with a
 * wrong model.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct mapped {
	const uint8_t *data;
	uint64_t bytes;
	char *path;
};

int mapped_open(const char *path, struct mapped *m, char *why, size_t why_len);
void mapped_close(struct mapped *m); /* zeroed is fine */
/* The pages of a range will not be needed again. */
void mapped_forget(const struct mapped *m, uint64_t offset, uint64_t bytes);

/* Reads move pos; one that does not fit sets bad, returns 0 and stays bad. Little-endian. */
struct cursor {
	const uint8_t *data;
	uint64_t bytes, pos;
	bool bad;
};

uint8_t cursor_u8(struct cursor *c);
uint16_t cursor_u16(struct cursor *c);
uint32_t cursor_u32(struct cursor *c);
uint64_t cursor_u64(struct cursor *c);
float cursor_f32(struct cursor *c);
double cursor_f64(struct cursor *c);
/* len bytes where they lie; NULL when they are not there (len 0: a valid pointer). */
const uint8_t *cursor_bytes(struct cursor *c, uint64_t len);

float half_to_float(uint16_t bits); /* binary16, exact */
float bf16_to_float(uint16_t bits);
uint16_t float_to_half(float f); /* round to nearest even; overflow is infinity */
uint16_t float_to_bf16(float f);

/* snprintf into why, then err: `return fail(why, why_len, -EPROTO, "...", ...)`. */
int fail(char *why, size_t why_len, int err, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#endif

/* SPDX-License-Identifier: MIT */
#ifndef STOP_H
#define STOP_H

/*
 * Stop strings: text passes through, and ends before the first of them, wherever tokens are cut. What may
 * still become one is held back. Never longer behind than the longest string less one byte.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define STOP_STRINGS_MAX 64u
#define STOP_BYTES_MAX	 256u

struct stop_string {
	const char *text;
	uint32_t len; /* 1 to STOP_BYTES_MAX */
};
/* Zeroed at the beginning. */
struct stop_state {
	char held[STOP_BYTES_MAX];
	uint32_t n_held;
};

/*
 * text[0..len) follows. Writes what is sure into out, which holds n_held + len bytes and is not text, and
 * returns how much; *hit: a stop string is complete, what came before it was written, and no more may
 * follow. The one that is complete first counts, of those that end there the longest: so nothing
 * depends on how text is cut, and nobody waits for text that would not be shown.
 */
size_t stop_push(const struct stop_string *s, uint32_t n, struct stop_state *state, const char *text,
		 size_t len, char *out, bool *hit);
/* No more text comes: what is held back, into out[STOP_BYTES_MAX]. */
size_t stop_flush(struct stop_state *state, char *out);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * What is held back is always the longest end of the text that a stop string begins with. So a string
 * that completes later begins in it or behind it, and it is enough to look, byte by byte of what is new,
 * whether one ends here. Plain comparison: a token has few bytes, and the last byte rarely fits.
 */
#include "stop.h"

#include <assert.h>
#include <string.h>

/* The longest string that ends where text[0..len) does; 0: none. */
static uint32_t ends_here(const struct stop_string *s, uint32_t n, const char *text, size_t len)
{
	uint32_t longest = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t l = s[i].len;

		if (l > longest && l <= len && s[i].text[l - 1] == text[len - 1] &&
		    !memcmp(s[i].text, text + len - l, l))
			longest = l;
	}
	return longest;
}

/* The longest end of text[0..len) that may yet become a string: shorter than that string. */
static uint32_t begins_here(const struct stop_string *s, uint32_t n, const char *text, size_t len)
{
	uint32_t longest = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t l = s[i].len - 1;

		if (l > len)
			l = (uint32_t)len;
		while (l > longest && memcmp(s[i].text, text + len - l, l) != 0)
			l--;
		if (l > longest)
			longest = l;
	}
	return longest;
}

size_t stop_push(const struct stop_string *s, uint32_t n, struct stop_state *state, const char *text,
		 size_t len, char *out, bool *hit)
{
	size_t all = state->n_held + len;
	uint32_t found;

	assert(n <= STOP_STRINGS_MAX);
	for (uint32_t i = 0; i < n; i++)
		assert(s[i].len && s[i].len <= STOP_BYTES_MAX);
	*hit = false;
	if (!len)
		return 0;
	memcpy(out, state->held, state->n_held);
	memcpy(out + state->n_held, text, len);
	for (size_t end = state->n_held + 1; end <= all; end++) {
		found = ends_here(s, n, out, end);
		if (found) {
			*hit = true;
			state->n_held = 0;
			return end - found;
		}
	}
	state->n_held = begins_here(s, n, out, all);
	all -= state->n_held;
	memcpy(state->held, out + all, state->n_held);
	return all;
}

size_t stop_flush(struct stop_state *state, char *out)
{
	size_t n = state->n_held;

	memcpy(out, state->held, n);
	state->n_held = 0;
	return n;
}

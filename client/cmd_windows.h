/* SPDX-License-Identifier: MIT */
#ifndef CMD_WINDOWS_H
#define CMD_WINDOWS_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A text longer than what a model sees at once, as windows that slide over it: each token is scored
 * in exactly one of them, with at least size - stride tokens before it once the text has so many.
 * Only where nothing is put before a text its first token is in none, for nothing predicts it.
 */
enum windows_bos {
	WINDOWS_BOS_NONE,
	WINDOWS_BOS_FIRST, /* before the text */
	WINDOWS_BOS_EACH,  /* before each window; it takes the place of one token */
};

struct windows {
	size_t n;      /* tokens of the text, a bos not counted */
	size_t size;   /* tokens of a window, its bos counted; at least 2 */
	size_t stride; /* tokens scored in each but the first; 1 to size - 1 */
	enum windows_bos bos;
	size_t end; /* of the last one; 0 at first */
};

struct window {
	bool bos;
	size_t first, n; /* tokens of the text, behind the bos */
	size_t scored;	 /* how many of these, from the end */
};

/* false: there is no further one. */
bool windows_next(struct windows *w, struct window *at);
size_t windows_count(struct windows w);

#endif

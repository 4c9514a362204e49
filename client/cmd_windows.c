/* SPDX-License-Identifier: MIT */
/*
 * Windows over a text. The first is as long as there is room for and all of it is scored; each
 * further one ends a stride later, reaches back as far as fits, and scores what is new. So the sum
 * over all windows is the log-probability of the text, no token twice and none left out.
 */
#include "cmd_windows.h"

bool windows_next(struct windows *w, struct window *at)
{
	bool first = !w->end, bos = w->bos == WINDOWS_BOS_EACH || (first && w->bos);
	size_t size = w->size - bos, begin = w->end, left = w->n - w->end;

	if (!left)
		return false;
	w->end += first ? (size < left ? size : left) : w->stride < left ? w->stride : left;
	at->bos = bos;
	at->first = w->end > size ? w->end - size : 0;
	at->n = w->end - at->first;
	at->scored = w->end - begin - (first && !bos);
	return true;
}

size_t windows_count(struct windows w)
{
	struct window at;
	size_t n = 0;

	for (w.end = 0; windows_next(&w, &at); n++)
		;
	return n;
}

/* SPDX-License-Identifier: MIT */
/*
 * A scan backward from the end. A place is looked at closer only when its last two tokens are right and
 * the one that would make its match longer than the best so far is as well: one comparison that nearly
 * always says no, on any text, so that a step can afford it for each sequence.
 */
#include "draft.h"

#include <assert.h>
#include <string.h>

static uint64_t pair(const uint32_t *p)
{
	uint64_t x;

	memcpy(&x, p, sizeof(x));
	return x;
}

uint32_t draft_propose(const uint32_t *tokens, uint32_t n, uint32_t max, uint32_t *out)
{
	uint32_t best = 1, place = 0;
	uint64_t last;

	assert(max <= DRAFT_MAX);
	if (n < 3)
		return 0;
	if (n > DRAFT_WINDOW) {
		tokens += n - DRAFT_WINDOW;
		n = DRAFT_WINDOW;
	}
	last = pair(tokens + n - 2);
	/* A place that ends before end has end tokens: no longer match fits into fewer than best + 1. */
	for (uint32_t end = n - 1; end > best && best < DRAFT_MATCH; end--) {
		uint32_t len = 2;

		if ((pair(tokens + end - 2) ^ last) |
		    (tokens[end - 1 - best] ^ tokens[n - 1 - best]))
			continue;
		while (len < DRAFT_MATCH && len < end && tokens[end - 1 - len] == tokens[n - 1 - len])
			len++;
		if (len > best) {
			best = len;
			place = end;
		}
	}
	if (!place)
		return 0;
	for (uint32_t i = 0; i < max; i++)
		out[i] = place + i < n ? tokens[place + i] : out[i - (n - place)];
	return max;
}

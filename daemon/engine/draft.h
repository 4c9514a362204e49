/* SPDX-License-Identifier: MIT */
#ifndef DRAFT_H
#define DRAFT_H

/*
 * Prompt-lookup speculation: what followed the last time when the text ended like this. A pure guess; the
 * engine verifies it in one batched pass, and the answer is the same without.
 */

#include <stdint.h>

#define DRAFT_MAX 8u

/*
 * The tokens that followed the most recent earlier place where tokens[0..n) ends with the same words:
 * the longest match counts, of 2 tokens at least. At most max <= DRAFT_MAX into out; returns how many, 0
 * for none.
 */
uint32_t draft_propose(const uint32_t *tokens, uint32_t n, uint32_t max, uint32_t *out);

#endif

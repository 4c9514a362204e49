/* SPDX-License-Identifier: MIT */
#ifndef DRAFT_H
#define DRAFT_H

/*
 * Prompt-lookup speculation: what followed the last time when the text ended like this. A pure guess; the
 * engine verifies it in one batched pass, and the answer is the same without.
 */

#include <stdint.h>

#define DRAFT_MAX    8u
#define DRAFT_MATCH  16u
#define DRAFT_WINDOW 4096u

/*
 * What followed the earlier place, among the last DRAFT_WINDOW tokens, that ends with the same words as
 * tokens[0..n): the longest match counts, of 2 tokens at least and DRAFT_MATCH at most, of equals the
 * most recent. Where what followed has no more than the end itself, it is repeated. max <= DRAFT_MAX
 * tokens into out; returns max, 0 when there is no such place.
 */
uint32_t draft_propose(const uint32_t *tokens, uint32_t n, uint32_t max, uint32_t *out);

#endif

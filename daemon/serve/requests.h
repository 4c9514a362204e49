/* SPDX-License-Identifier: MIT */
#ifndef REQUESTS_H
#define REQUESTS_H

/*
 * From a journal entry to what the engine takes. The broker has judged the parameters and that every table
 * lies inside the block; what the tables hold is judged here: text that is UTF-8, roles that the model's
 * template has, ids that its vocabulary has. Everything is read in place or into memory taken once by
 * requests_new(); what this hands out holds until its next call.
 *
 * Ranges are checked here again. The broker is trusted, but a mix-up between the two must end in a
 * refusal with a name and not in a read beyond the block.
 */

#include <stddef.h>
#include <stdint.h>
#include "engine.h"
#include "executor.h"
#include "sessions.h"

struct requests;

/* chat: the name of the model's template. Both stay the caller's and outlive it. NULL: no memory. */
struct requests *requests_new(const struct tokenizer *t, const char *chat, uint32_t positions);
struct requests *requests_free(struct requests *q); /* NULL is fine; returns NULL */

/*
 * GENERATE, SCORE, EMBED; s: the session that it goes on with, or NULL. ONEBIT_E_OK and *out is set, or the reason and its detail. For SCORE done[0] is
 * what was told before a fault; a prompt longer than params.max_tokens is refused, for that many
 * records are all that there is room for.
 */
enum onebit_code requests_read(struct requests *q, const struct journal_entry *j,
			       const struct session *s, struct engine_request *out,
			       uint64_t *detail);

/*
 * TOKENIZE: with ONEBIT_PARAM_TEMPLATE the prompt that GENERATE would make of it; without, each text
 * by itself, whatever its role, nothing put around it.
 */
enum onebit_code requests_tokens(struct requests *q, const struct journal_entry *j,
				 const uint32_t **ids, size_t *n, uint64_t *detail);

/*
 * DETOKENIZE: the text of token segments, in pieces to put(). Special tokens give nothing, except in
 * segments with ONEBIT_SEG_SPECIAL.
 */
enum onebit_code requests_text(struct requests *q, const struct journal_entry *j,
			       void (*put)(void *ctx, const char *text, size_t len), void *ctx,
			       uint64_t *detail);

#endif

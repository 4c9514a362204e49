/* SPDX-License-Identifier: MIT */
#ifndef VOCAB_PRIVATE_H
#define VOCAB_PRIVATE_H

/*
 * What the files vocab*.c share: what stands behind a struct vocab, and the index of its texts.
 */

#include <stdbool.h>
#include "vocab.h"

#define VOCAB_HIDDEN_KIND VOCAB_KINDS /* the kind of what VOCAB_HIDDEN stands for */

struct vocab_chunk;

/*
 * An open hash table of texts. A slot holds id + 1; a text that several ids have is in it several
 * times, the lowest id first, as far as SAME_TEXT_MAX: who wrote more has no use for them, and a
 * lookup must not become a walk.
 */
struct vocab_arena {
	struct vocab_chunk *chunk; /* of texts, the newest first */
	uint32_t tokens_cap, merges_cap;
	uint32_t *slot;
	uint32_t slots;		   /* a power of two, or 0 */
	uint32_t indexed;	   /* tokens that are in it */
	uint32_t filled;
	struct vocab_token *hidden; /* see VOCAB_HIDDEN */
	uint32_t n_hidden, hidden_cap;
};

/* A token, or what VOCAB_HIDDEN stands for; id must be one of them. */
const struct vocab_token *vocab_token(const struct vocab *v, uint32_t id);
/* The hidden id of a code point; the one it has already, or a new one. 0, -ENOMEM, -EFBIG. */
int vocab_hide(struct vocab *v, const uint8_t *text, uint32_t len, uint32_t *id);

/*
 * Hashes that are quick to have of each part of a text: h(xy) = h(x) * VOCAB_HASH_BASE^|y| + h(y),
 * modulo 2^61 - 1.
 */
#define VOCAB_HASH_BASE 0x9e3779b97f4a7c1ull
uint64_t vocab_hash_mul(uint64_t a, uint64_t b);
uint64_t vocab_hash_byte(uint64_t h, uint8_t byte);
/* Bring the index up to date. 0, -ENOMEM. */
int vocab_index(struct vocab *v);
/* As vocab_find(), when the index is up to date and the text's hash is known. */
uint32_t vocab_lookup(const struct vocab *v, uint64_t hash, const uint8_t *text, uint32_t len,
		      uint32_t kinds);

/* snprintf into why, then err. */
int vocab_fail(char *why, size_t why_len, int err, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

#endif

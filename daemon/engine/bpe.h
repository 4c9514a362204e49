/* SPDX-License-Identifier: MIT */
#ifndef BPE_H
#define BPE_H

/*
 * Byte-pair encoding of one piece: the tables' lookups, and the merging. Internal to the tokenizer:
 * everything here believes a section that tokenizer_open() has accepted.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tokenizer.h"
#include "tokenizer_format.h"

/* Tokens that are looked for in text, by text, then id. The sets rule out most places at once. */
struct texts {
	const uint32_t *ids;
	uint32_t n;
	uint32_t first[8];  /* bit per byte: some text begins with it */
	uint32_t alone[8];  /* some text is just it */
	uint32_t second[8]; /* some text goes on with it */
};

struct tokenizer {
	const uint8_t *base;
	const uint32_t *byte_id;
	const uint8_t *joints;
	const uint32_t *tokens;
	const uint32_t *words;
	const struct tokenizer_pair *pairs;
	const uint8_t *text;
	uint32_t n_symbols, word_slots, pair_slots;
	bool all_bytes; /* every byte has a token */
	struct tokenizer_facts facts;
	struct texts specials, added;
	uint64_t serial; /* no other tokenizer of this process has it */
};

static inline const uint8_t *symbol_text(const struct tokenizer *t, uint32_t id, uint32_t *len)
{
	uint32_t from = t->tokens[id] & (TOKENIZER_TEXT_MAX - 1);

	*len = (t->tokens[id + 1] & (TOKENIZER_TEXT_MAX - 1)) - from;
	return t->text + from;
}

static inline uint32_t symbol_kind(const struct tokenizer *t, uint32_t id)
{
	return t->tokens[id] >> TOKENIZER_TEXT_BITS;
}

/* Whether merging can never reach from byte a to byte b behind it. */
static inline bool is_joint(const struct tokenizer *t, uint8_t a, uint8_t b)
{
	return !(t->joints[a * 32u + (b >> 3)] >> (b & 7) & 1);
}

/* The symbol that a whole piece becomes; VOCAB_NO_ID. */
uint32_t bpe_word(const struct tokenizer *t, uint64_t hash, const uint8_t *p, size_t len);

/* Where ids go: those that fit, and how many there are. */
struct bpe_out {
	uint32_t *ids;
	size_t cap, n;
	uint32_t last; /* VOCAB_SPM: unknown ones behind each other are one */
	bool unknown;  /* there was one */
};

struct bpe_node {
	uint32_t prev, next; /* offsets of neighbours in the piece */
	uint32_t id;	     /* VOCAB_NO_ID: dead, or not in the vocabulary */
	uint32_t rank, into; /* of merging with next; UINT32_MAX: they do not */
};

struct bpe_entry {
	uint32_t at, next; /* a place, and the entry behind it in its run */
};

struct bpe_run {
	uint32_t rank, head, tail;
};

struct bpe_heap {
	uint64_t key; /* rank << 32 | place of the run's head */
	uint32_t run;
};

/*
 * Room for one piece. Pages of it are touched as far as the piece is long. Each merge takes an
 * entry off the queue and puts at most two on it, so there are never more than two for each byte.
 */
struct bpe_room {
	struct bpe_node *node;	 /* [bytes] */
	struct bpe_entry *entry; /* [2 * bytes] */
	struct bpe_run *run;	 /* [2 * bytes] */
	struct bpe_heap *heap;	 /* [2 * bytes] */
};

/* Merge p[0..len) as one piece, by merging alone. */
void bpe_merge(const struct tokenizer *t, const struct bpe_room *room, const uint8_t *p, size_t len,
	       struct bpe_out *out);
/* A symbol, whose text is p[0..len), as ids. */
void bpe_emit(const struct tokenizer *t, uint32_t symbol, const uint8_t *p, size_t len,
	      struct bpe_out *out);

#endif

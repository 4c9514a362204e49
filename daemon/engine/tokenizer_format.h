/* SPDX-License-Identifier: MIT */
#ifndef TOKENIZER_FORMAT_H
#define TOKENIZER_FORMAT_H

/*
 * The OBM_TOKENIZER section, little-endian, its parts one behind the other, each at a multiple of 64:
 *
 *      header    struct tokenizer_header
 *      bytes     uint32_t[256]: the token of a byte (VOCAB_SPM: of kind VOCAB_BYTE), or VOCAB_NO_ID:
 *                VOCAB_SPM with an unknown token; bytes that no character has (see utf8.h)
 *      joints    uint8_t[8192]: bit x * 256 + y is set when some merge can bring byte y behind byte x;
 *                where it is not set no token reaches across, and a text may be cut before merging
 *      tokens    uint32_t[n_symbols + 1]: 29 bits where the text begins, 3 bits VOCAB_NORMAL...; the
 *                last one is the end of all texts. Ids from n_tokens up are hidden: see vocab.h
 *      specials  uint32_t[n_specials]: ids, by text, then id
 *      added     uint32_t[n_added]: ids of kind VOCAB_ADDED, in the same order
 *      words     uint32_t[word_slots]: texts that as a piece become one token: 20 bits id, 12 bits
 *                of the text's hash; WORD_EMPTY
 *      pairs     struct tokenizer_pair[pair_slots]: merges, by the hash of their two ids
 *      scores    float[n_tokens], VOCAB_SPM only: nothing here uses them, peers' formats want them
 *      text      all texts, in the order of ids, and TOKENIZER_TEXT_TAIL zeros
 *
 * Both tables are open addressing with linear probing, at most 60 % full, and no run of full slots is
 * longer than TOKENIZER_RUN_MAX: so a lookup ends, and ends soon, on any section that was accepted.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "vocab.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the section is used as it lies");

#define TOKENIZER_MAGIC	  "OBMTOKEN"
#define TOKENIZER_VERSION 2u
#define TOKENIZER_RUN_MAX 512u
#define TOKENIZER_JOINTS  8192u
#define TOKENIZER_TEXT_BITS 29
#define TOKENIZER_TEXT_MAX (1u << TOKENIZER_TEXT_BITS)
#define TOKENIZER_TEXT_TAIL 16u /* so many bytes can be read from the begin of each text */
#define TOKENIZER_ID_BITS 20
#define TOKENIZER_ID_MASK ((1u << TOKENIZER_ID_BITS) - 1)
#define WORD_EMPTY	  UINT32_MAX
_Static_assert((VOCAB_TOKENS_MAX - 1) >> TOKENIZER_ID_BITS == 0, "an id fits its bits");

struct tokenizer_header {
	uint8_t magic[8];
	uint32_t version;
	uint32_t bytes; /* of the section */
	uint32_t kind, rule, flags;
	uint32_t n_tokens, n_symbols; /* with the hidden ones */
	uint32_t n_merges, n_specials, n_words;
	uint32_t word_slots, pair_slots;
	uint32_t text_bytes, longest;
	uint32_t bos, eos, unk;
	uint32_t n_stops;
	uint32_t stops[VOCAB_STOPS_MAX];
	char chat[32];
	uint32_t n_added;
	uint32_t reserved[19]; /* zero */
};
_Static_assert(sizeof(struct tokenizer_header) == 256, "part of the format");

/* ids: a in bits 0-19, b in bits 20-39, what they become in bits 40-59. Empty: all ones. */
struct tokenizer_pair {
	uint32_t ids_low, ids_high;
	uint32_t rank;
};
_Static_assert(sizeof(struct tokenizer_pair) == 12, "part of the format");

struct tokenizer_layout {
	size_t bytes, joints, tokens, specials, added, words, pairs, scores, text, end;
};

static inline size_t tokenizer_part(size_t *at, size_t bytes)
{
	size_t start = *at;

	*at = (start + bytes + 63) & ~(size_t)63;
	return start;
}

/* The counts are within their bounds: nothing overflows 64 bits. */
static inline struct tokenizer_layout tokenizer_layout(const struct tokenizer_header *h)
{
	struct tokenizer_layout l;
	size_t at = sizeof(*h);

	l.bytes = tokenizer_part(&at, 256 * sizeof(uint32_t));
	l.joints = tokenizer_part(&at, TOKENIZER_JOINTS);
	l.tokens = tokenizer_part(&at, ((size_t)h->n_symbols + 1) * sizeof(uint32_t));
	l.specials = tokenizer_part(&at, (size_t)h->n_specials * sizeof(uint32_t));
	l.added = tokenizer_part(&at, (size_t)h->n_added * sizeof(uint32_t));
	l.words = tokenizer_part(&at, (size_t)h->word_slots * sizeof(uint32_t));
	l.pairs = tokenizer_part(&at, (size_t)h->pair_slots * sizeof(struct tokenizer_pair));
	l.scores = tokenizer_part(&at, h->kind == VOCAB_SPM ? (size_t)h->n_tokens * sizeof(float) : 0);
	l.text = tokenizer_part(&at, (size_t)h->text_bytes + TOKENIZER_TEXT_TAIL);
	l.end = at;
	return l;
}

/* ---- hashes: part of the format ---------------------------------------------------------------- */

static inline uint64_t tokenizer_mix(uint64_t a, uint64_t b)
{
	unsigned __int128 p = (unsigned __int128)(a ^ 0x8bb84b93962eacc9ull) *
			      (b ^ 0x4b33a62ed433d4a3ull);

	return (uint64_t)p ^ (uint64_t)(p >> 64);
}

/* Up to 15 bytes in two words, their number in the last byte: equal keys are equal texts. */
struct tokenizer_key {
	uint64_t low, high;
};

/* len is at most TOKENIZER_KEY_MAX; `readable` bytes are there from p on. */
static inline struct tokenizer_key tokenizer_key(const uint8_t *p, size_t len, size_t readable)
{
	static const uint8_t ones[32] = {
		255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
	};
	struct tokenizer_key k, mask;
	uint8_t end[16] = { 0 };

	/* Without a branch on the length, which cannot be foretold. */
	if (readable < sizeof(k)) {
		memcpy(end, p, len);
		p = end;
	}
	memcpy(&k, p, sizeof(k));
	memcpy(&mask, ones + 16 - len, sizeof(mask));
	k.low &= mask.low;
	k.high = (k.high & mask.high) | (uint64_t)len << 56;
	return k;
}

#define TOKENIZER_KEY_MAX 15u

static inline uint64_t tokenizer_key_hash(struct tokenizer_key k)
{
	return tokenizer_mix(k.low, k.high);
}

static inline uint64_t tokenizer_hash(const uint8_t *p, size_t len, size_t readable)
{
	uint64_t h = len, a, b;

	if (len <= TOKENIZER_KEY_MAX)
		return tokenizer_key_hash(tokenizer_key(p, len, readable));
	for (; len > 16; p += 16, len -= 16) {
		memcpy(&a, p, 8);
		memcpy(&b, p + 8, 8);
		h = tokenizer_mix(a ^ h, b);
	}
	/* The last 16 bytes, of which some may have been taken already. */
	memcpy(&a, p + len - 16, 8);
	memcpy(&b, p + len - 8, 8);
	return tokenizer_mix(a ^ h, b);
}

static inline uint32_t tokenizer_home(uint64_t hash, uint32_t slots)
{
	return (uint32_t)((hash >> 32) * slots >> 32);
}

static inline uint32_t tokenizer_word(uint64_t hash, uint32_t id)
{
	uint32_t mark = (uint32_t)hash & 0xfff;

	/* So that no entry is WORD_EMPTY. */
	return (mark == 0xfff ? 0xffe : mark) << TOKENIZER_ID_BITS | id;
}

static inline uint64_t tokenizer_pair_hash(uint64_t ids)
{
	uint64_t h = (ids ^ ids >> 20) * 0x9e3779b97f4a7c15ull;

	return h ^ h << 32;
}

#endif

/* SPDX-License-Identifier: MIT */
#ifndef VOCAB_H
#define VOCAB_H

/*
 * A vocabulary in a neutral form: what the readers of tokenizer.json, tokenizer.model, GGUF and .htok
 * fill in, and what vocab_build() turns into the container's OBM_TOKENIZER section. Only converters
 * and tests use it; who serves a model uses tokenizer.h on the section as it lies.
 *
 * A reader: vocab_new(), set the fields, vocab_add() for each id ascending, vocab_merge() for each
 * merge (or one of the two vocab_derive_*()), vocab_check(). Everything belongs to the vocab.
 */

#include <stddef.h>
#include <stdint.h>

#define VOCAB_TOKENS_MAX   (1u << 20) /* OBM_VOCAB_MAX */
#define VOCAB_MERGES_MAX   (1u << 22)
#define VOCAB_TOKEN_BYTES_MAX 4096u
#define VOCAB_STOPS_MAX	   16u
#define VOCAB_ADDED_BYTES_MAX 128u /* they are looked for at each byte of a text */

#define VOCAB_BYTES 1u /* byte-level BPE: text is cut by a rule, pieces start as single bytes */
#define VOCAB_SPM   2u /* SentencePiece BPE: starts as code points, unknown ones fall back to bytes */

/* How text is cut before merging (VOCAB_BYTES). In model files: never renumber. */
#define VOCAB_RULE_NONE	     0u /* VOCAB_SPM, and whole texts of our tests */
#define VOCAB_RULE_LLAMA3    1u
#define VOCAB_RULE_GPT2	     2u
#define VOCAB_RULE_STARCODER 3u /* GPT-2 with single digits */
#define VOCAB_RULE_COUNT     4u

#define VOCAB_IGNORE_MERGES 1u /* a piece that is an entry as a whole is taken at once */
#define VOCAB_DUMMY_PREFIX  2u /* VOCAB_SPM: a space is put before the text */
#define VOCAB_ADD_BOS	    4u /* encoding a prompt without a template puts bos first */
#define VOCAB_NFC	    8u /* VOCAB_BYTES: text is brought into NFC before anything else */
#define VOCAB_FLAGS_ALL	    15u

/* In model files: never renumber. */
#define VOCAB_NORMAL  0u
#define VOCAB_SPECIAL 1u /* from the template only; never from text */
#define VOCAB_BYTE    2u /* VOCAB_SPM: one byte, <0x41> */
#define VOCAB_UNUSED  3u /* an id without a text, or one that no text may become */
#define VOCAB_ADDED   4u /* VOCAB_BYTES: taken whole wherever it stands, before text is cut */
#define VOCAB_KINDS   5u
#define VOCAB_NO_ID   UINT32_MAX
/*
 * Part of a merge that is a code point without an entry of its own: VOCAB_HIDDEN and up, only in
 * merges that vocab_derive_by_score() made. Text can hold it, no id names it.
 */
#define VOCAB_HIDDEN  0x80000000u

struct vocab_token {
	/* The bytes themselves: not byte-mapped, a space for U+2581, and VOCAB_BYTE's one byte. */
	const uint8_t *text;
	uint32_t len;
	uint32_t kind; /* VOCAB_NORMAL... */
	float score;   /* VOCAB_SPM: the higher, the earlier; others 0 */
};

struct vocab_merge {
	uint32_t a, b, merged;
	uint32_t rank; /* the lower, the earlier; equal ones: leftmost first */
};

struct vocab {
	uint32_t kind, rule, flags;
	uint32_t bos, eos, unk; /* VOCAB_NO_ID: none */
	uint32_t stops[VOCAB_STOPS_MAX]; /* ids that end an answer, eos among them */
	uint32_t n_stops;
	char chat[32]; /* template's name: see chat.h; "" is none */
	uint32_t n_tokens, n_merges;
	struct vocab_token *tokens;
	struct vocab_merge *merges;
	struct vocab_arena *arena;
};

struct vocab *vocab_new(void);
struct vocab *vocab_free(struct vocab *v); /* NULL is fine; returns NULL */

/* Copies text. 0, -ENOMEM, -EFBIG over a bound. */
int vocab_add(struct vocab *v, const void *text, size_t len, uint32_t kind, float score);
/* Appends with rank = n_merges. The first of two merges of one pair wins. 0, -ENOMEM, -EFBIG. */
int vocab_merge(struct vocab *v, uint32_t a, uint32_t b, uint32_t merged);

/* tokenizer.model of Llama 3 (tiktoken): every split of an entry in two entries, its id the rank. */
int vocab_derive_by_id(struct vocab *v, char *why, size_t why_len);
/* SentencePiece: every split of an entry in two entries, rank by score descending. */
int vocab_derive_by_score(struct vocab *v, char *why, size_t why_len);

/* The id of a text among kinds (bit per VOCAB_NORMAL...); VOCAB_NO_ID. Builds an index once. */
uint32_t vocab_find(struct vocab *v, const void *text, size_t len, uint32_t kinds);

/* Set a special's id in stops, once. -EFBIG when they are full. */
int vocab_stop(struct vocab *v, uint32_t id);

/*
 * GPT-2's printable spelling of bytes, as tokenizer.json, GGUF and .htok write token texts:
 * 33-126, 161-172, 174-255 are themselves, the other 68 are U+0100 and up in their order. Decodes
 * UTF-8 text into out (as many bytes as code points; out may be text). Returns the length, or -EILSEQ
 * for a code point that is none of them.
 */
int vocab_unmap(const char *text, size_t len, uint8_t *out);
/* The other way; out holds at least 2 * len bytes. */
size_t vocab_map(const uint8_t *bytes, size_t len, char *out);

/*
 * What a model needs of it: every id in range, all bytes that text may have reachable (by a token of
 * their own; VOCAB_SPM: or unk; VOCAB_BYTES: but those that no character has), merges that give what
 * their parts spell, specials named by a text, added tokens that text in NFC can hold. n_tokens may be less than vocab_size (rows of the embedding
 * that no id names are filled up as VOCAB_UNUSED by vocab_build()), never more. 0, or -EPROTO and why.
 */
int vocab_check(struct vocab *v, uint32_t vocab_size, char *why, size_t why_len);

/*
 * The OBM_TOKENIZER section, malloc'ed; the same vocabulary gives the same bytes. 0, -ENOMEM, or as
 * vocab_check().
 */
int vocab_build(struct vocab *v, uint32_t vocab_size, void **section, size_t *bytes, char *why,
		size_t why_len);

/*
 * The vocabulary that a section was built from, with n_tokens = vocab_size; built again it gives the
 * same bytes. Merges are in the order of their rank, a pair that was listed twice is there once. 0,
 * -ENOMEM, -EPROTO.
 */
int vocab_from_section(const void *section, size_t bytes, struct vocab **out, char *why,
		       size_t why_len);

#endif

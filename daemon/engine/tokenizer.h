/* SPDX-License-Identifier: MIT */
#ifndef TOKENIZER_H
#define TOKENIZER_H

/*
 * Text to tokens and back, from an OBM_TOKENIZER section used as it lies in the mapped file: its hash
 * tables are in the file, so opening parses nothing and allocates a few hundred bytes. The section is
 * checked once, on opening; encode() and text() believe it then.
 *
 * Encoding is exact (the ids of the tokenizer that the model was trained with), near-linear in the
 * length of the text whatever the text is, and never yields a special token from text: what looks
 * like one stays text. It allocates nothing: the scratch is made once, for a longest text.
 *
 * A tokenizer is immutable and may be shared by threads; a scratch or a detok is one thread's.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;
struct tokenizer_scratch;

/* Bytes of section stay the caller's and must outlive it. 0, -ENOMEM, -EPROTO and a sentence. */
int tokenizer_open(const void *section, size_t bytes, struct tokenizer **out, char *why,
		   size_t why_len);
struct tokenizer *tokenizer_close(struct tokenizer *t); /* NULL is fine; returns NULL */

/* Address space for texts of up to max_bytes; pages are touched as texts need them. NULL: no memory. */
struct tokenizer_scratch *tokenizer_scratch_new(size_t max_bytes);
struct tokenizer_scratch *tokenizer_scratch_free(struct tokenizer_scratch *s);

#define TOKENIZER_SPECIAL 1u /* the special tokens' texts are recognised: RAW text that asks for it */
#define TOKENIZER_CONTINUE 2u /* VOCAB_SPM: the text goes on, no space is put before it */

/*
 * Encode text[0..len). Any bytes are text; each that is not part of UTF-8 counts as a character that is
 * neither letter, digit nor white space (see pretok.h), and becomes its own byte's token or part of
 * a longer one. What the original tokenizers lose is lost here as well: U+2581 is a space to
 * VOCAB_SPM; bytes that no character has, in a VOCAB_BYTES vocabulary without tokens for them
 * (StarCoder's), give nothing. VOCAB_SPM puts its space before each stretch between special tokens.
 * With VOCAB_NFC the tokens spell the text in NFC, which is up to three times as long; what is not
 * UTF-8 stays as it is.
 *
 * At most cap ids are stored, *n says how many there are. 0; -EFBIG: longer than the scratch; -ENOSPC: more than cap
 * (then *n is what is needed and ids holds the first cap).
 */
int tokenizer_encode(const struct tokenizer *t, struct tokenizer_scratch *s, const char *text,
		     size_t len, unsigned flags, uint32_t *ids, size_t cap, size_t *n);

/* The most ids that a text of len bytes gives, chat templates aside. */
size_t tokenizer_bound(const struct tokenizer *t, size_t len);

/* What a token is. text: its bytes, in the section. An id out of range has len 0, VOCAB_UNUSED. */
struct tokenizer_token {
	const uint8_t *text;
	uint32_t len;
	uint32_t kind; /* VOCAB_* of vocab.h */
};
struct tokenizer_token tokenizer_token(const struct tokenizer *t, uint32_t id);

struct tokenizer_facts {
	uint32_t kind, rule, flags; /* VOCAB_* */
	uint32_t n_tokens, n_merges, n_specials, n_added;
	uint32_t bos, eos, unk;
	uint32_t n_stops;
	const uint32_t *stops;
	const char *chat; /* template's name */
	uint32_t longest; /* bytes of the longest token */
};
const struct tokenizer_facts *tokenizer_facts(const struct tokenizer *t);
bool tokenizer_is_stop(const struct tokenizer *t, uint32_t id);
/* The special token with this text, VOCAB_NO_ID when there is none. */
uint32_t tokenizer_special(const struct tokenizer *t, const char *text, size_t len);

/*
 * Tokens back into text as they come. Only whole UTF-8 is given out: bytes that may still become a
 * character wait (three at most); those that cannot become U+FFFD each, by the rule of Unicode 3.9
 * (one for each maximal part of an ill-formed sequence), so that the sum of the output does not
 * depend on where tokens are cut. Special and unused tokens give nothing, unless `specials`.
 * VOCAB_SPM: a space is dropped from the start of the text, when the tokenizer puts one there.
 */
struct detok {
	uint8_t held[4];
	uint8_t n_held;
	bool specials;	/* set by the caller after detok_init(), to show them */
	bool at_start;
};
void detok_init(struct detok *d, const struct tokenizer *t);
/* Appends at most detok_bound() bytes to out; returns how many. */
size_t detok_push(struct detok *d, const struct tokenizer *t, uint32_t id, char *out);
/* What waits becomes U+FFFD; at most 3 * 3 bytes. */
size_t detok_flush(struct detok *d, char *out);
size_t detok_bound(const struct tokenizer *t);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LIB_VOCAB_H
#define LIB_VOCAB_H

/*
 * Vocabularies for tests: real ones from the shared data where it is there, small ones made here,
 * and the definition of byte-pair encoding to compare with. The readers of files are the tests' own
 * and share nothing with the converter's.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tokenizer.h"
#include "vocab.h"

/*
 * A file of the shared tokenizer folder, unpacked if it ends in .xz, with a NUL behind it; the
 * caller's to free. NULL when it is not there.
 */
uint8_t *shared_read(const char *name, size_t *len);
/* NULL when the data is not there. Merges of Llama 3 are derived. */
struct vocab *shared_llama3(void);
struct vocab *shared_gguf(const char *name, uint32_t rule);

/* The next of a reproducible sequence; from ONEBIT_SEED or the clock, printed. ONEBIT_SCALE
 * percent. */
uint64_t test_seed(const char *what);
uint64_t test_random(uint64_t *state);
uint64_t test_scaled(uint64_t n);

/*
 * A byte-level vocabulary: 256 bytes in a shuffled order, n_words made by merging random entries
 * (so that ids, ranks and lengths have nothing to do with each other), three special tokens.
 */
struct vocab *small_bytes(uint64_t *rng, uint32_t n_words, uint32_t rule, uint32_t flags);
/*
 * A SentencePiece one: <unk>, <s>, </s>, 256 bytes if asked for, letters, spaces and words with
 * scores of which some are equal, an entry whose code points have none, all of them derived.
 */
struct vocab *small_spm(uint64_t *rng, uint32_t n_words, bool bytes, uint32_t flags);
/* Words of a and b alone, so many that nearly all neighbours merge; VOCAB_SPM: with four scores. */
struct vocab *dense_vocab(uint64_t *rng, uint32_t kind, uint32_t n_words);
/*
 * To a byte-level vocabulary: tokens that are taken whole from text, which overlap each other and its
 * words: spaces in runs, letters, syllables. All of them are in NFC.
 */
void add_whole(struct vocab *v);
/* Section and tokenizer of it; the section is the caller's to free. */
struct tokenizer *open_vocab(struct vocab *v, void **section, size_t *bytes);

/* NFC of each stretch that is UTF-8, by utf8proc as a whole; out holds 3 * len bytes. */
size_t reference_nfc(const uint8_t *p, size_t len, uint8_t *out);
/* One piece merged as the definition says, the slow way, from v alone. Returns how many ids. */
size_t reference_piece(struct vocab *v, const uint8_t *p, size_t len, uint32_t *ids);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef READ_H
#define READ_H

/*
 * What the readers of vocabularies share: names that everybody gives to special tokens, and a text
 * of a file made fit for a sentence.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "vocab.h"

/* What a whole file of theirs may be at most: real ones have 0.5 to 35 MB. */
#define READ_FILE_MAX (64u << 20)

/* <|...|>, <...> or [...]: text that is there to be a token, not to be read. */
bool read_is_markup(const void *text, size_t len);

/*
 * bos, eos and unk by the names that models use, where they are not set yet, and the tokens that
 * end a turn into stops, eos among them. Only VOCAB_SPECIAL ones count. 0 or -EFBIG.
 */
int read_known_specials(struct vocab *v);

/* For a sentence: at most 120 bytes, control characters and what is not ASCII as '?'. */
struct shown {
	char text[124];
};
struct shown read_shown(const void *text, size_t len);

/*
 * The end of every reader: what it made passes vocab_check(), or ret < 0 says why not. name is put
 * before a sentence of the check's, and one is made where there is none. v is given out, or freed.
 */
int read_done(const char *name, int ret, struct vocab *v, struct vocab **out, char *why,
	      size_t why_len);

struct json_t;

/* What normalizer, pre_tokenizer and post_processor of a tokenizer.json come to. */
struct json_rules {
	uint32_t kind, rule, flags; /* VOCAB_* */
	struct json_t *bos;	    /* post_processor's first token's text, borrowed; NULL: none */
};

/* root: the whole file, which has a model. -EPROTO, -ENOTSUP and a sentence with key and value. */
int read_json_rules(const struct json_t *root, const char *name, struct json_rules *out, char *why,
		    size_t why_len);

/* U+2581 becomes a space; out has room for len bytes. Returns the length. */
size_t read_unspace(const char *text, size_t len, uint8_t *out);
/* <0x41>: which byte, or -1. */
int read_byte_name(const char *text, size_t len);

#endif

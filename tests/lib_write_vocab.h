/* SPDX-License-Identifier: MIT */
#ifndef LIB_WRITE_VOCAB_H
#define LIB_WRITE_VOCAB_H

/*
 * Small writers of tokenizers' files, from the descriptions of the formats: the vocabulary of the
 * tiny model as tokenizer.json, .htok and lines of ranks, and a SentencePiece model of a few
 * pieces. They share nothing with the readers.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "lib_tiny.h"

/* Grows as it is written to; a zero byte that is not counted stands behind it. */
struct buf {
	char *p;
	size_t n, cap;
};

void buf_put(struct buf *b, const void *data, size_t len);
void buf_text(struct buf *b, const char *s);
void buf_format(struct buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_u32(struct buf *b, uint32_t v); /* little-endian */
void buf_free(struct buf *b);

/* version 0: the layout without one. */
struct buf file_htok(const struct tiny *t, uint32_t version);
/* Lines of the bytes and words; the specials are in no such file. */
struct buf file_ranks(const struct tiny *t);

/* Values for the parts below. */
#define LLAMA3_SPLIT \
	"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" \
	"[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|" \
	"\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false}"
#define BYTE_LEVEL(regex) \
	"{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true," \
	"\"use_regex\":" #regex "}"
#define SEQUENCE(...) "{\"type\":\"Sequence\",\"pretokenizers\":[" __VA_ARGS__ "]}"
#define TEMPLATE \
	"{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":" \
	"\"<|begin_of_text|>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]," \
	"\"pair\":[],\"special_tokens\":{}}"

/* The parts of a tokenizer.json; NULL: as it is for Llama 3. */
struct parts {
	const char *top, *normalizer, *pre, *post, *model, *words, *added, *merges;
	bool pairs; /* merges as ["a", "b"] */
};

struct buf file_json(const struct tiny *t, const struct parts *p);

/* What a SentencePiece model may have otherwise than Llama 2's, which spm_llama2 is. */
struct spm_parts {
	uint64_t model_type, byte_fallback, prefix, extra, escape, suffix, bos;
	const char *normalizer, *charsmap, *piece;
	uint32_t piece_type;
	float piece_score;
	bool no_trainer, no_extra;
};

enum { N_SPM_WORDS = 12, SPM_FIRST = 259 };
extern const struct spm_parts spm_llama2;
extern const char *const spm_words[N_SPM_WORDS]; /* behind <unk>, <s>, </s> and the bytes */

struct buf file_spm(const struct spm_parts *p);

#endif

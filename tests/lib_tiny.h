/* SPDX-License-Identifier: MIT */
#ifndef LIB_TINY_H
#define LIB_TINY_H

/*
 * A small random model in the plainest form there is: what the tests' own writers of each format write,
 * and what a converted file must hold. Shares nothing with the converters. By seed, reproducible.
 */

#include <stdbool.h>
#include <stdint.h>

enum { TINY_Q, TINY_K, TINY_V, TINY_O, TINY_GATE, TINY_UP, TINY_DOWN, TINY_MATRICES };

struct tiny_matrix {
	uint32_t rows, cols, groups;
	int8_t *codes;	/* [rows][cols] in -1, 0, 1; q and k rows in split-half order */
	float *scales;	/* [rows][groups] */
};

struct tiny_layer {
	float *attn_norm, *attn_sub_norm, *ffn_norm, *ffn_sub_norm; /* sub-norms NULL without */
	struct tiny_matrix m[TINY_MATRICES];
};

struct tiny_merge {
	uint32_t a, b, merged;
};

struct tiny {
	/* Set by tiny_default(), changed by the caller before tiny_fill(). */
	uint64_t seed;
	uint32_t layers, hidden, ffn, heads, kv_heads, head_dim, context;
	uint32_t groups;	/* of scales, in each matrix */
	bool sub_norms, tied;
	bool row_scales;	/* each row its own; otherwise one a matrix */
	bool half_scales;	/* scales exact in bfloat16 and binary16 */
	float eps;
	float theta;
	uint32_t n_words;	/* tokens made by merging, besides 256 bytes and 4 specials */

	/* By tiny_fill(). */
	float *embed, *head, *final_norm; /* embed: [vocab][hidden], exact in bfloat16 and binary16 */
	struct tiny_layer *layer;
	/*
	 * A byte-level vocabulary: ids 0-255 the bytes in the order of GPT-2's printable spelling ('!' is 0),
	 * then words, then "<|begin_of_text|>", "<|end_of_text|>", "<|start|>", "<|eot_id|>".
	 */
	uint32_t vocab;
	char (*token)[64];	/* the bytes themselves, not mapped */
	uint32_t *token_len;
	struct tiny_merge *merge; /* n_words of them */
	uint32_t bos, eos, eot;
};

/* 2 layers, hidden 128, ffn 192, 4 heads, 2 KV heads, head_dim 32, context 64, sub-norms, tied. */
void tiny_default(struct tiny *t, uint64_t seed);
void tiny_fill(struct tiny *t);
void tiny_free(struct tiny *t);

/* The next of a reproducible sequence; state is the caller's. */
uint64_t tiny_random(uint64_t *state);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LIB_WRITE_GGUF_H
#define LIB_WRITE_GGUF_H

/*
 * A small GGUF file from a tiny model, byte by byte from the format's description; shares nothing
 * with the converter. What peers do differently can be set, and so can what nobody should do.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "lib_tiny.h"

enum {
	WRITE_F32 = 0,
	WRITE_F16 = 1,
	WRITE_Q8_0 = 8,
	WRITE_Q6_K = 14,
	WRITE_IQ2_S = 22,
	WRITE_BF16 = 30,
	WRITE_TQ1_0 = 34,
	WRITE_TQ2_0 = 35,
	WRITE_I2_S = 36,
	WRITE_TL1 = 38,
	WRITE_TL2 = 39,
	WRITE_IQ1_BN = 134,
	WRITE_IQ2_BN = 135,
};

struct write_gguf {
	uint32_t version;	/* 2 or 3; others are written as they are */
	uint32_t alignment;	/* 0: 32, and no key for it */
	const char *arch;
	uint32_t linear, embed; /* types */
	uint32_t linear_number; /* 0: linear's own */
	bool scale_tensors; /* linear ones hold -1, 0, 1; NAME.scale beside them (scales of row 0)
			     */
	bool pairs;		/* rows of q and k in adjacent pairs */
	uint32_t i2_s_threads; /* as many scales and tails as so many threads leave behind: 0 is one
				*/
	const char *pre;	/* NULL: no such key */
	const char *activation; /* NULL: no such key */
	const char *chat;	/* tokenizer.chat_template; NULL: none */
	const char *extra_key;	/* a further u32 key, 1; NULL: none */
	const char *extra_text; /* with it: a text instead */
	const char *extra_tensor; /* a further F32 tensor of one number */
	const char *without;	/* this key or tensor is left out */
	const char *twice;	/* this key or tensor is there twice */
	bool no_vocab;

	/* Out: where one thing ends and the next begins; the data's parts after n_meta. */
	uint64_t mark[4096];
	uint32_t n_marks, n_meta;
	uint64_t data_offset;
};

/* Version 3, arch bitnet-b1.58, linear I2_S, embed F16, pre llama-bpe. */
void write_gguf_default(struct write_gguf *w);
/* malloc'ed. */
uint8_t *write_gguf(const struct tiny *t, struct write_gguf *w, size_t *len);
void write_gguf_file(const struct tiny *t, struct write_gguf *w, const char *path);
void write_bytes(const char *path, const void *data, size_t len);

/* A row of codes and scales (one to cols / groups columns) as a type has it; returns the bytes. */
size_t write_gguf_row(uint32_t type, const int8_t *codes, const float *scales, uint32_t cols,
		      uint32_t groups, uint8_t *out);
/* A row of floats: F32, F16, BF16, Q8_0, Q6_K. */
size_t write_gguf_floats(uint32_t type, const float *v, uint32_t cols, uint8_t *out);
/* For values that are exact in it. */
uint16_t write_half(float f);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef GGUF_STORED_H
#define GGUF_STORED_H

/*
 * A tensor of a GGUF file that a model needs, as it lies: its type, its scales wherever they are,
 * and its rows as codes and scales or as floats. Scales come from the blocks or rows of the type
 * itself; times a tensor of one number beside it (NAME.scale) where a program keeps it there; or
 * from our own metadata (export_gguf.c), in binary32, in place of both.
 *
 * Sentences begin with the tensor's name; who calls puts the file's before it.
 */

#include <stdint.h>
#include "gguf_types.h"

/* Metadata of our own. Scales: f32[rows * groups], groups and width by the array's length. */
#define GGUF_OWN_SCALES	  "onebit.scales." /* and the tensor's name */
#define GGUF_OWN_INFO	  "onebit.info"
#define GGUF_OWN_LICENCE  "onebit.licence"
#define GGUF_OWN_FAMILY	  "onebit.family"
#define GGUF_OWN_FLAGS	  "onebit.flags"
#define GGUF_OWN_ROPE	  "onebit.rope"	   /* f64[head_dim / 2] */
#define GGUF_OWN_CHAT	  "onebit.chat"	   /* a template's name */
#define GGUF_OWN_STOPS	  "onebit.stops"   /* u32[] */
#define GGUF_OWN_FLAGS_OF_VOCAB "onebit.vocab_flags"

struct gguf_stored {
	const struct gguf_tensor *tensor;
	enum gguf_kind kind;
	uint32_t rows, cols;
	uint32_t groups;     /* of scales; 0: floats, without codes */
	const uint8_t *data; /* the first row */
	uint64_t row_bytes;
	const uint8_t *own;  /* scales of our own, binary32; NULL: none */
	bool is_int8;	     /* codes are any bytes but -128; otherwise -1, 0, 1 */
	float factor; /* what the file's own scales are multiplied by; 1 where there is nothing */
	char name[64];	     /* as sentences have it */
};

/*
 * Find out the type and check the size, which must be what type and shape need. data: the file's.
 * Sets all but groups, which gguf_stored_ternary() or gguf_stored_int8() find, own and factor.
 */
int gguf_stored_open(struct gguf_stored *s, const struct gguf_tensor *t, const uint8_t *data,
		     uint32_t alignment, char *why, size_t why_len);

/*
 * A linear matrix: its scale beside it (NULL: none), its own scales, and how many groups explain
 * its rows. Reads all of what says so: the block scales, or whole float tensors. -EPROTO with the
 * figures when it is not ternary.
 */
int gguf_stored_ternary(struct gguf_stored *s, const struct gguf *g, const uint8_t *data, char *why,
			size_t why_len);
/* Whether an embedding is int8 with a scale a row (Q8_0 with our own scales); then groups is 1. */
int gguf_stored_int8(struct gguf_stored *s, const struct gguf *g, char *why, size_t why_len);

/* groups is not 0. codes[n][cols], scales[n][groups]; scales may be NULL. */
int gguf_stored_codes(const struct gguf_stored *s, uint32_t row0, uint32_t n, int8_t *codes,
		      float *scales, char *why, size_t why_len);
/* Types that are not ternary. */
int gguf_stored_floats(const struct gguf_stored *s, uint32_t row0, uint32_t n, float *floats,
		       char *why, size_t why_len);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef H1B_H
#define H1B_H

/*
 * The .h1b format in memory: a header of a few words, then tensors back to back, none of them named,
 * aligned or checksummed, so that every offset follows from the header and the only thing that can
 * contradict a damaged one is the file's length. It is taken at its word, to the byte.
 *
 * h1b_parse() checks everything that the other functions rely on; they read within `data` only. Nothing
 * here is allocated, and data stays the caller's.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define H1B_HEADER_V1  44u /* bytes */
#define H1B_HEADER_MAX 52u

#define H1B_FLAG_ROTATED    0x1u /* activations must be Hadamard-rotated: refused */
#define H1B_FLAG_SHERRY_F16 0x2u /* how a peer computes; the bytes are the same */
#define H1B_FLAG_Q1	    0x4u
#define H1B_FLAG_TQ2	    0x8u

/* How the ternary matrices are stored. */
enum h1b_body {
	H1B_2BIT,   /* v1, v2: four weights a byte, then a scale a row */
	H1B_SHERRY, /* v3: 5 bits for four weights, exactly one of them zero, then a scale a row */
	H1B_BASE3,  /* v4: five weights a byte, then a scale a row */
	H1B_TQ2,    /* flag: blocks of 128, binary16 scale and 2-bit codes */
	H1B_Q1,	    /* flag: blocks of 128, binary16 scale and signs; no zeros */
	H1B_BODIES,
};
#define H1B_BLOCK 128u /* columns in a block of H1B_TQ2 and H1B_Q1 */

struct h1b_header {
	uint32_t version;
	uint32_t hidden, ffn, layers, heads, kv_heads, vocab, context;
	uint32_t flags;
	float theta, eps; /* the format's defaults where the file has none */
	bool tied;
};

/* In the file's order. */
enum { H1B_Q, H1B_K, H1B_V, H1B_O, H1B_GATE, H1B_UP, H1B_DOWN, H1B_MATRICES };
/* The norms that are used; between them lie six more that are not. */
enum { H1B_ATTN_NORM, H1B_FFN_NORM, H1B_ATTN_SUB_NORM, H1B_FFN_SUB_NORM, H1B_NORMS };

struct h1b_matrix {
	uint32_t rows, cols;
	uint64_t row_bytes;
	uint64_t codes;	 /* from the layer's beginning */
	uint64_t scales; /* the same; 0: they are in the blocks */
};

struct h1b_layout {
	enum h1b_body body;
	uint64_t embed, final_norm, layer0; /* from the file's beginning */
	uint64_t norm[H1B_NORMS];	    /* from the layer's */
	struct h1b_matrix matrix[H1B_MATRICES];
	uint64_t stride; /* from layer to layer */
	uint64_t file_bytes;
};

/* Tables for one body's codes. */
struct h1b_coder {
	enum h1b_body body;
	union {
		uint32_t four[256];  /* a byte of H1B_2BIT, H1B_TQ2 */
		uint64_t five[256];  /* a byte of H1B_BASE3 */
		uint64_t eight[1024]; /* a byte of H1B_Q1; ten bits of H1B_SHERRY */
	};
};

struct h1b {
	const uint8_t *data;
	uint64_t bytes;
	struct h1b_header header;
	struct h1b_layout layout;
	struct h1b_coder coder;
};

/* "2 bits", "Sherry", ...: for people. */
const char *h1b_body_name(enum h1b_body body);

/* Everything but the weights' values. 0, -EPROTO, -ENOTSUP, -EFBIG and why, which does not name the file. */
int h1b_parse(const void *data, uint64_t bytes, struct h1b *h, char *why, size_t why_len);

/* The parts of it, for who writes such files. */
int h1b_header_read(const uint8_t *data, uint64_t bytes, struct h1b_header *h, char *why,
		    size_t why_len);
uint32_t h1b_header_bytes(const struct h1b_header *h);
/* out has room for H1B_HEADER_MAX. */
void h1b_header_write(const struct h1b_header *h, uint8_t *out);
/* The header's numbers are in bounds; why a body cannot hold them. */
int h1b_layout_make(const struct h1b_header *h, struct h1b_layout *l, char *why, size_t why_len);
uint64_t h1b_row_bytes(enum h1b_body body, uint32_t cols);

/* Where a model's vocabulary is looked for: model.h1b -> model.htok. NULL: no memory. */
char *h1b_vocab_path(const char *path);

/* ---- rows ------------------------------------------------------------------------------------ */

void h1b_coder_init(struct h1b_coder *c, enum h1b_body body);
/*
 * codes[cols] in -1, 0, 1. Returns cols, or the first column whose code cannot be (2-bit code 3, a base-3
 * byte above 242): no writer emits them, a file of another tensor order is full of them, and the peers'
 * readers disagree about their value. What fills up a row's end is not looked at.
 */
uint32_t h1b_decode_row(const struct h1b_coder *c, const uint8_t *row, uint32_t cols, int8_t *codes);
/* H1B_2BIT and H1B_BASE3. What fills up is weight 0. */
void h1b_encode_row(enum h1b_body body, const int8_t *codes, uint32_t cols, uint8_t *row);

/* n floats at offset; NaN and infinity are -EPROTO, with the index of the first in *at. */
int h1b_floats(const struct h1b *h, uint64_t offset, uint64_t n, float *floats, uint64_t *at);

/*
 * How many scales a row of this matrix has: 1, also where all blocks of each row have the same one;
 * otherwise one a block. Reads the whole matrix for H1B_TQ2 and H1B_Q1.
 */
uint32_t h1b_groups(const struct h1b *h, uint32_t layer, unsigned matrix);
/*
 * Rows row0 to row0 + n of a matrix: codes[n][cols], scales[n][groups] (may be NULL). -EPROTO: a code or
 * a scale (negative, not finite) that cannot be, with its row and column.
 */
int h1b_rows(const struct h1b *h, uint32_t layer, unsigned matrix, uint32_t groups, uint32_t row0,
	     uint32_t n, int8_t *codes, float *scales, char *why, size_t why_len);

#endif

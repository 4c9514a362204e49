/* SPDX-License-Identifier: MIT */
#ifndef GGUF_TYPES_H
#define GGUF_TYPES_H

/*
 * What the tensor types hold that a ternary model's file may have. Rows are decoded one at a time,
 * at about the speed of memory; the arithmetic of scales is source_gguf.c's.
 *
 *      type     columns  bytes  a block
 *      F32            1      4
 *      F16            1      2
 *      BF16           1      2
 *      Q8_0          32     34  d (binary16), 32 signed bytes
 *      Q6_K         256    210  128 low nibbles' bytes, 64 bytes of high pairs, 16 signed scales, d
 *      TQ1_0        256     54  base-3 digits: 48 bytes of five, 4 of four; then d (binary16)
 *      TQ2_0        256     66  two halves of 32 bytes: byte j has columns j, j + 32, + 64, + 96 of
 *                               its 128, the lowest pair of bits first; then d
 *      I2_S         128     32  byte j has columns j, j + 32, + 64, + 96, the HIGHEST pair first.
 *                               Behind the whole tensor 32 bytes: its scale (binary32), the rest
 *                               undefined
 *      IQ1_BN        64     13  12 bytes of five digits, three to 16 columns; a 13th with columns
 *                               15, 31, 47, 63. In front of each row its scale (binary16)
 *      IQ2_BN        64     16  byte j has columns j, j + 16, + 32, + 48, the lowest pair first.
 *                               In front of each row its scale (binary32)
 *
 * A code is weight + 1; 3 in two bits, and a byte that no five digits make, are damage. Base-3
 * bytes are ceil(number * 256 / 243) and yield a digit as the carry of a multiplication by three;
 * the first column's digit is the most significant in TQ1_0, the least in IQ1_BN.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "gguf.h"

enum gguf_kind {
	GGUF_KIND_F32, GGUF_KIND_F16, GGUF_KIND_BF16, GGUF_KIND_Q8_0, GGUF_KIND_Q6_K,
	GGUF_KIND_TQ1_0, GGUF_KIND_TQ2_0, GGUF_KIND_I2_S, GGUF_KIND_IQ1_BN, GGUF_KIND_IQ2_BN,
	GGUF_KINDS
};

/*
 * What a tensor is stored as: its type's number proposes, its size decides, since forks gave
 * numbers from 31 on to different types. alignment: of the file. 0; -ENOTSUP: a type that is known
 * by its size or its number and not read, named; -EPROTO: the size fits none, with both figures.
 * The sentence begins with the tensor's name.
 */
int gguf_kind(const struct gguf_tensor *t, uint32_t alignment, enum gguf_kind *out, char *why,
	      size_t why_len);

const char *gguf_kind_name(enum gguf_kind kind);
uint32_t
gguf_kind_number(enum gguf_kind kind); /* as ggml, or for I2_S and IQ?_BN their fork, has it */
uint32_t gguf_kind_cols(enum gguf_kind kind);   /* columns a block */
bool gguf_kind_is_ternary(enum gguf_kind kind);

/* cols is a multiple of the block's, below 2^32. */
uint64_t gguf_row_bytes(enum gguf_kind kind, uint64_t cols);

/*
 * A row of a ternary kind as -1, 0, 1, without regard to scales. false: a code that cannot be (the
 * row is decoded nevertheless).
 */
bool gguf_row_codes(enum gguf_kind kind, const uint8_t *row, uint32_t cols, int8_t *codes);
/* A row of another kind. false: a value is not finite. */
bool gguf_row_floats(enum gguf_kind kind, const uint8_t *row, uint32_t cols, float *floats);

/* The scale in front of a row: IQ1_BN, IQ2_BN. */
float gguf_row_scale(enum gguf_kind kind, const uint8_t *row);
/* The scale of a block, as binary16: TQ1_0, TQ2_0, Q8_0. */
uint16_t gguf_block_scale(enum gguf_kind kind, const uint8_t *row, uint32_t block);

/* TQ2_0 and Q8_0 blocks, for writing. codes: -1, 0, 1, or any byte for Q8_0. */
void gguf_block_tq2_0(const int8_t codes[256], uint16_t scale, uint8_t block[66]);
void gguf_block_q8_0(const int8_t codes[32], uint16_t scale, uint8_t block[34]);

#endif

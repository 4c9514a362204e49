/* SPDX-License-Identifier: MIT */
#ifndef PACKED_H
#define PACKED_H

/*
 * How matrices lie in a model file and in memory: one page of truth for the packer (packed.c, the only
 * one), the CPU kernels and the GPU kernels. Nothing is repacked when a model is loaded.
 *
 * A matrix has rows (outputs) and columns (the dimension that is summed over). It is cut into tiles of
 * PACKED_ROWS rows; the last tile is filled up with rows of zero weights. Along its columns a tile is
 * cut into units; a unit holds the same `span` columns of each row of the tile, PACKED_BYTES bytes a
 * row, row after row:
 *
 *      matrix = tile[0], tile[1], ...            tile = unit[0], unit[1], ... (columns ascending)
 *      unit   = PACKED_ROWS x PACKED_BYTES       byte j of row r: unit + r * PACKED_BYTES + j
 *
 *      layout          span   a row's 16 bytes hold
 *      PACKED_2BIT       64   column 16p + j in byte j, bits 2p and 2p+1: weight + 1 (3 never occurs)
 *      PACKED_BASE3      80   column 16p + j in byte j, base-3 digit p (0 the most significant):
 *                             weight + 1; the byte is ceil(v * 256 / 243), v the five digits' number,
 *                             so that digit p comes out as the carry of b * 3, then again of the rest
 *      PACKED_INT8       16   column j in byte j, two's complement
 *      PACKED_F16         8   column j in bytes 2j and 2j+1, binary16, little-endian
 *      PACKED_BF16        8   the same, bfloat16
 *
 * So one load of 16 bytes a lane takes a whole row's part of a unit, 32 lanes take a unit in one
 * contiguous run of 512 bytes, a 64-byte vector takes four rows of it, and shifting by two bits (or
 * multiplying by three) yields 16 columns in their order, which is what a matrix unit's fragment and a
 * dot product with contiguous activations want.
 *
 * Column groups (ternary only): a matrix may have `groups` groups of cols / groups columns each, a
 * multiple of 64, with a scale for each row and group. Each group begins a unit. Columns that fill
 * up the last unit of a group hold weight 0.
 *
 * Scales are binary32, [group][row], rows filled up to a multiple of PACKED_ROWS with +0. For
 * PACKED_INT8 there is one group. Half layouts have none.
 */

#include <stddef.h>
#include <stdint.h>

#define PACKED_ROWS  32u
#define PACKED_BYTES 16u
#define PACKED_UNIT  (PACKED_ROWS * PACKED_BYTES)

/* In model files: never renumber. */
#define PACKED_2BIT  1u
#define PACKED_BASE3 2u
#define PACKED_INT8  3u
#define PACKED_F16   4u
#define PACKED_BF16  5u
#define PACKED_COUNT 6u

/* The most of each that a matrix may have; every size below fits 64 bits then. */
#define PACKED_ROWS_MAX   (1u << 24)
#define PACKED_COLS_MAX   (1u << 20)
#define PACKED_GROUPS_MAX 256u

struct packed_shape {
	uint32_t layout;
	uint32_t rows;
	uint32_t cols;
	uint32_t groups; /* 1 where there are none */
};

/* NULL when the shape is one that can be; otherwise what is wrong with it, for a person. */
const char *packed_check(const struct packed_shape *s);

/* All below: the shape has passed packed_check(). */
uint32_t packed_span(uint32_t layout);		       /* columns in a unit */
uint32_t packed_tiles(const struct packed_shape *s);
uint32_t packed_units(const struct packed_shape *s);   /* in a tile */
uint64_t packed_bytes(const struct packed_shape *s);   /* of the matrix, a multiple of PACKED_UNIT */
uint64_t packed_n_scales(const struct packed_shape *s); /* floats; 0 for the half layouts */
const char *packed_name(uint32_t layout);	       /* "2bit", "base3", "int8", "fp16", "bf16" */

/*
 * Pack the rows of one tile. n_rows is PACKED_ROWS, or fewer in the last tile; the rest is filled up.
 * tile points to packed_bytes() / packed_tiles() bytes, aligned to 16.
 * src: row-major with s->cols elements a row; int8_t -1, 0, 1 for the ternary layouts, int8_t for
 * PACKED_INT8, uint16_t bits for the half layouts.
 */
void packed_tile(const struct packed_shape *s, const void *src, uint32_t n_rows, void *tile);

/* The way back, exact; dst as src above. Any bytes are safe: a code that cannot be reads as 0. */
void packed_untile(const struct packed_shape *s, const void *tile, uint32_t n_rows, void *dst);

/*
 * Whether a tile holds only what packed_tile() can have written: no code 3, no base-3 byte that is
 * none, weight 0 in all that fills up, no infinite or NaN half.
 */
int packed_tile_is_valid(const struct packed_shape *s, const void *tile, uint32_t n_rows);

#endif

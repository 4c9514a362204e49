/* SPDX-License-Identifier: MIT */
/*
 * Packing and unpacking of one tile, as packed.h defines the layouts.
 *
 * A row's part of a unit is 16 bytes, whichever the layout, and the columns in it lie 16 apart. So
 * the inner loops run over 16 neighbours and any compiler makes vectors of them. A part that is not
 * full (the end of a group) goes through a buffer of zero weights, and so do the rows of the last
 * tile that are not there: what fills up is packed by the same code as everything else.
 */
#include <assert.h>
#include <string.h>
#include "packed.h"

#define SPAN_MAX    80u
#define BASE3_ZEROS 128u /* five zero weights: the number 121 */

static const struct {
	const char *name;
	uint32_t span;	  /* columns in a row's 16 bytes */
	uint32_t element; /* bytes of one in the plain form */
} layouts[PACKED_COUNT] = {
	[PACKED_2BIT] = { "2bit", 64, 1 }, [PACKED_BASE3] = { "base3", 80, 1 },
	[PACKED_INT8] = { "int8", 16, 1 }, [PACKED_F16] = { "fp16", 8, 2 },
	[PACKED_BF16] = { "bf16", 8, 2 },
};

static int is_ternary(uint32_t layout)
{
	return layout == PACKED_2BIT || layout == PACKED_BASE3;
}

/* ---- shapes ---------------------------------------------------------------------------------- */

const char *packed_check(const struct packed_shape *s)
{
	if (s->layout == 0 || s->layout >= PACKED_COUNT)
		return "its layout is none that is known";
	if (s->rows == 0)
		return "it has no rows";
	if (s->rows > PACKED_ROWS_MAX)
		return "it has more than 16777216 rows";
	if (s->cols == 0)
		return "it has no columns";
	if (s->cols > PACKED_COLS_MAX)
		return "it has more than 1048576 columns";
	if (s->groups == 0)
		return "it has no column group; a matrix without groups has one";
	if (s->groups > PACKED_GROUPS_MAX)
		return "it has more than 256 column groups";
	if (s->groups > 1 && !is_ternary(s->layout))
		return "it has column groups, and only ternary layouts can";
	if (s->groups > 1 && s->cols % (s->groups * 64))
		return "its column groups are not equal multiples of 64 columns";
	return NULL;
}

uint32_t packed_span(uint32_t layout)
{
	assert(layout > 0 && layout < PACKED_COUNT);
	return layouts[layout].span;
}

const char *packed_name(uint32_t layout)
{
	return layout > 0 && layout < PACKED_COUNT ? layouts[layout].name : "unknown";
}

uint32_t packed_tiles(const struct packed_shape *s)
{
	return (s->rows + PACKED_ROWS - 1) / PACKED_ROWS;
}

static uint32_t group_units(const struct packed_shape *s)
{
	uint32_t span = packed_span(s->layout);

	return (s->cols / s->groups + span - 1) / span;
}

uint32_t packed_units(const struct packed_shape *s)
{
	return s->groups * group_units(s);
}

uint64_t packed_bytes(const struct packed_shape *s)
{
	return (uint64_t)packed_tiles(s) * packed_units(s) * PACKED_UNIT;
}

uint64_t packed_n_scales(const struct packed_shape *s)
{
	if (s->layout == PACKED_F16 || s->layout == PACKED_BF16)
		return 0;
	return (uint64_t)s->groups * packed_tiles(s) * PACKED_ROWS;
}

/* ---- 16 bytes -------------------------------------------------------------------------------- */

/* The smallest byte whose product with 243 / 256, rounded down, is v again. */
static uint8_t base3_byte(unsigned v)
{
	return (uint8_t)((uint16_t)(v * 256 + 242) / 243);
}

static unsigned base3_value(unsigned byte)
{
	return (uint16_t)(byte * 243) >> 8;
}

/* What the codes had besides -1, 0, 1, as bits; 0 when nothing. */
static unsigned pack_2bit(const int8_t *restrict codes, uint8_t *restrict out)
{
	uint8_t other = 0;

	for (unsigned j = 0; j < 16; j++) {
		uint8_t a = (uint8_t)(codes[j] + 1), b = (uint8_t)(codes[16 + j] + 1);
		uint8_t c = (uint8_t)(codes[32 + j] + 1), d = (uint8_t)(codes[48 + j] + 1);

		out[j] = (uint8_t)(a | b << 2 | c << 4 | d << 6);
		/* A 3 has its low bit where the next higher one is, too. */
		other |= (uint8_t)((a | b | c | d) & 0xfc);
		other |= (uint8_t)(out[j] & out[j] >> 1 & 0x55);
	}
	return other;
}

static unsigned pack_base3(const int8_t *restrict codes, uint8_t *restrict out)
{
	uint8_t other = 0;

	uint16_t v[16] = { 0 };

	for (unsigned p = 0; p < 5; p++)
		for (unsigned j = 0; j < 16; j++) {
			uint8_t c = (uint8_t)(codes[16 * p + j] + 1);

			v[j] = (uint16_t)(v[j] * 3 + c);
			other |= (uint8_t)((c & 0xfc) | (c & c >> 1));
		}
	for (unsigned j = 0; j < 16; j++)
		out[j] = base3_byte(v[j]);
	return other;
}

static void unpack_2bit(const uint8_t *restrict in, int8_t *restrict codes)
{
	for (unsigned p = 0; p < 4; p++)
		for (unsigned j = 0; j < 16; j++) {
			uint8_t c = in[j] >> 2 * p & 3;

			/* 3 is read as 1, weight 0 */
			codes[16 * p + j] = (int8_t)((c & ~(c & 2 & c << 1)) - 1);
		}
}

static void unpack_base3(const uint8_t *restrict in, int8_t *restrict codes)
{
	uint16_t rest[16];

	/* A byte that is none is read as five zero weights. */
	for (unsigned j = 0; j < 16; j++)
		rest[j] = base3_byte(base3_value(in[j])) == in[j] ? in[j] : BASE3_ZEROS;
	for (unsigned p = 0; p < 5; p++)
		for (unsigned j = 0; j < 16; j++) {
			uint16_t carry = (uint16_t)(rest[j] * 3);

			codes[16 * p + j] = (int8_t)((carry >> 8) - 1);
			rest[j] = carry & 255;
		}
}

static int bytes_are_2bit(const uint8_t *in)
{
	uint8_t threes = 0;

	for (unsigned j = 0; j < 16; j++)
		threes |= in[j] & in[j] >> 1 & 0x55;
	return threes == 0;
}

static int bytes_are_base3(const uint8_t *in)
{
	uint8_t other = 0;

	for (unsigned j = 0; j < 16; j++)
		other |= base3_byte(base3_value(in[j])) ^ in[j];
	return other == 0;
}

/* Halves with all exponent bits set: infinite or not a number. */
static int bytes_are_finite(uint32_t layout, const uint8_t *in)
{
	unsigned exponent = layout == PACKED_F16 ? 0x7c00 : 0x7f80, faults = 0;

	for (unsigned j = 0; j < 8; j++)
		faults |= ((in[2 * j] | (unsigned)in[2 * j + 1] << 8) & exponent) == exponent;
	return faults == 0;
}

static void pack16(uint32_t layout, const void *elements, uint8_t *out)
{
	unsigned other = 0;

	if (layout == PACKED_2BIT)
		other = pack_2bit(elements, out);
	else if (layout == PACKED_BASE3)
		other = pack_base3(elements, out);
	else /* halves are in memory as the file has them: every host of ours is little-endian */
		memcpy(out, elements, PACKED_BYTES);
	assert(!other);
}

static void unpack16(uint32_t layout, const uint8_t *in, void *elements)
{
	if (layout == PACKED_2BIT)
		unpack_2bit(in, elements);
	else if (layout == PACKED_BASE3)
		unpack_base3(in, elements);
	else
		memcpy(elements, in, PACKED_BYTES);
}

/* ---- a tile ---------------------------------------------------------------------------------- */

void packed_tile(const struct packed_shape *s, const void *src, uint32_t n_rows, void *tile)
{
	const uint32_t span = packed_span(s->layout), element = layouts[s->layout].element;
	const uint32_t width = s->cols / s->groups, units = group_units(s);
	const uint8_t *from = src;
	uint8_t *to = tile;
	uint8_t part[SPAN_MAX] = { 0 };

	assert(n_rows > 0 && n_rows <= PACKED_ROWS);
	for (uint32_t r = 0; r < n_rows; r++)
		for (uint32_t g = 0; g < s->groups; g++) {
			const uint8_t *row =
				from + ((size_t)r * s->cols + (size_t)g * width) * element;
			uint8_t *out =
				to + (size_t)g * units * PACKED_UNIT + (size_t)r * PACKED_BYTES;
			uint32_t c = 0;

			for (; c + span <= width; c += span, out += PACKED_UNIT)
				pack16(s->layout, row + (size_t)c * element, out);
			if (c == width)
				continue;
			memset(part, 0, sizeof(part));
			memcpy(part, row + (size_t)c * element, (size_t)(width - c) * element);
			pack16(s->layout, part, out);
		}
	memset(part, 0, sizeof(part));
	for (uint32_t u = 0; u < packed_units(s); u++)
		for (uint32_t r = n_rows; r < PACKED_ROWS; r++)
			pack16(s->layout, part,
			       to + (size_t)u * PACKED_UNIT + (size_t)r * PACKED_BYTES);
}

void packed_untile(const struct packed_shape *s, const void *tile, uint32_t n_rows, void *dst)
{
	const uint32_t span = packed_span(s->layout), element = layouts[s->layout].element;
	const uint32_t width = s->cols / s->groups, units = group_units(s);
	const uint8_t *from = tile;
	uint8_t *to = dst;
	uint8_t part[SPAN_MAX];

	assert(n_rows > 0 && n_rows <= PACKED_ROWS);
	for (uint32_t r = 0; r < n_rows; r++)
		for (uint32_t g = 0; g < s->groups; g++) {
			uint8_t *row = to + ((size_t)r * s->cols + (size_t)g * width) * element;
			const uint8_t *in =
				from + (size_t)g * units * PACKED_UNIT + (size_t)r * PACKED_BYTES;
			uint32_t c = 0;

			for (; c + span <= width; c += span, in += PACKED_UNIT)
				unpack16(s->layout, in, row + (size_t)c * element);
			if (c == width)
				continue;
			unpack16(s->layout, in, part);
			memcpy(row + (size_t)c * element, part, (size_t)(width - c) * element);
		}
}

static int bytes_are_valid(uint32_t layout, const uint8_t *in)
{
	switch (layout) {
	case PACKED_2BIT:
		return bytes_are_2bit(in);
	case PACKED_BASE3:
		return bytes_are_base3(in);
	case PACKED_INT8:
		return 1;
	default:
		return bytes_are_finite(layout, in);
	}
}

int packed_tile_is_valid(const struct packed_shape *s, const void *tile, uint32_t n_rows)
{
	static const uint8_t zeros[SPAN_MAX];
	const uint32_t span = packed_span(s->layout), element = layouts[s->layout].element;
	const uint32_t width = s->cols / s->groups, units = group_units(s);
	const uint32_t whole = width / span;
	const uint8_t *in = tile;
	uint8_t part[SPAN_MAX];

	assert(n_rows > 0 && n_rows <= PACKED_ROWS);
	for (uint32_t u = 0; u < packed_units(s); u++)
		for (uint32_t r = 0; r < PACKED_ROWS; r++, in += PACKED_BYTES) {
			uint32_t used = r >= n_rows	    ? 0
					: u % units < whole ? span
							    : width - whole * span;

			if (!bytes_are_valid(s->layout, in))
				return 0;
			if (used == span)
				continue;
			unpack16(s->layout, in, part);
			if (memcmp(part + (size_t)used * element, zeros,
				   (size_t)(span - used) * element))
				return 0;
		}
	return 1;
}

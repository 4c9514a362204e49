/* SPDX-License-Identifier: MIT */
/*
 * The rows of .h1b matrices: five ways to store ternary weights, each decoded by a small table from a
 * byte (or ten bits) to the codes in it, so that a model is read at the speed of memory.
 *
 *      H1B_2BIT    weight k in byte k / 4, bits 2(k % 4) up: weight + 1
 *      H1B_SHERRY  weights 4g to 4g + 3 in the five bits from bit 5g: two say which weight is zero, three
 *                  are the signs of the others, in their order; eight groups make five bytes
 *      H1B_BASE3   weights 5j to 5j + 4 are the digits of byte j, the least significant first
 *      H1B_TQ2     binary16 scale, then 128 weights as H1B_2BIT
 *      H1B_Q1      binary16 scale, then 128 signs, the least significant bit first
 */
#include "h1b.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include "mapped.h"

/* ---- tables ---------------------------------------------------------------------------------- */

static void put(void *codes, unsigned i, int weight)
{
	((int8_t *)codes)[i] = (int8_t)weight;
}

/* Ten bits: two groups of Sherry. */
static void sherry_entry(uint64_t *entry, unsigned bits)
{
	for (unsigned g = 0; g < 2; g++) {
		unsigned code = bits >> (5 * g) & 31, zero = code >> 3, sign = 0;

		for (unsigned i = 0; i < 4; i++)
			put(entry, 4 * g + i, i == zero ? 0 : code >> sign++ & 1 ? 1 : -1);
	}
}

void h1b_coder_init(struct h1b_coder *c, enum h1b_body body)
{
	static const uint8_t power[5] = { 1, 3, 9, 27, 81 };

	*c = (struct h1b_coder){ .body = body };
	for (unsigned b = 0; body == H1B_SHERRY && b < 1024; b++)
		sherry_entry(&c->eight[b], b);
	for (unsigned b = 0; body == H1B_Q1 && b < 256; b++)
		for (unsigned i = 0; i < 8; i++)
			put(&c->eight[b], i, b >> i & 1 ? 1 : -1);
	for (unsigned b = 0; body == H1B_BASE3 && b < 243; b++)
		for (unsigned i = 0; i < 5; i++)
			put(&c->five[b], i, (int)(b / power[i] % 3) - 1);
	for (unsigned b = 0; (body == H1B_2BIT || body == H1B_TQ2) && b < 256; b++)
		for (unsigned i = 0; i < 4; i++)
			put(&c->four[b], i, (int)(b >> (2 * i) & 3) - 1);
}

/* ---- decoding -------------------------------------------------------------------------------- */

/* Whether one of the 2-bit codes in these bytes is 3. */
static bool has_three(uint64_t bytes)
{
	return (bytes & bytes >> 1 & 0x5555555555555555u) != 0;
}

static uint32_t decode_2bit(const uint32_t *table, const uint8_t *row, uint32_t cols, int8_t *codes)
{
	const uint32_t whole = cols / 4, rest = cols % 4;
	uint32_t i = 0;
	bool bad = false;

	for (; i + 8 <= whole; i += 8) {
		uint64_t bytes;

		memcpy(&bytes, row + i, 8);
		bad |= has_three(bytes);
		for (unsigned k = 0; k < 8; k++)
			memcpy(codes + 4 * (i + k), &table[row[i + k]], 4);
	}
	for (; i < whole; i++) {
		bad |= has_three(row[i]);
		memcpy(codes + 4 * i, &table[row[i]], 4);
	}
	if (rest) {
		bad |= has_three(row[i]);
		memcpy(codes + 4 * i, &table[row[i]], rest);
	}
	for (i = 0; bad && i < cols; i++)
		if (codes[i] == 2)
			return i;
	return cols;
}

static uint32_t decode_base3(const uint64_t *table, const uint8_t *row, uint32_t cols, int8_t *codes)
{
	const uint32_t used = (cols + 4) / 5;
	uint8_t most = 0;
	uint32_t i = 0;

	/* Eight bytes at a time, of which five count; the next ones are written over the rest. */
	for (; 5 * i + 8 <= cols; i++) {
		most = row[i] > most ? row[i] : most;
		memcpy(codes + 5 * i, &table[row[i]], 8);
	}
	for (; i < used; i++) {
		most = row[i] > most ? row[i] : most;
		memcpy(codes + 5 * i, &table[row[i]], cols - 5 * i < 5 ? cols - 5 * i : 5);
	}
	for (i = 0; most > 242 && i < used; i++)
		if (row[i] > 242)
			return 5 * i;
	return cols;
}

static void decode_sherry(const uint64_t *table, const uint8_t *row, uint32_t cols, int8_t *codes)
{
	for (uint32_t i = 0; i < cols / 32; i++, row += 5, codes += 32) {
		uint64_t bits = 0;

		/* Never the byte behind the row: behind the last one the file may end. */
		for (unsigned k = 0; k < 5; k++)
			bits |= (uint64_t)row[k] << (8 * k);
		for (unsigned k = 0; k < 4; k++)
			memcpy(codes + 8 * k, &table[bits >> (10 * k) & 1023], 8);
	}
}

static void decode_signs(const uint64_t *table, const uint8_t *row, uint32_t cols, int8_t *codes)
{
	for (uint32_t i = 0; i < cols / 8; i++)
		memcpy(codes + 8 * i, &table[row[i]], 8);
}

uint32_t h1b_decode_row(const struct h1b_coder *c, const uint8_t *row, uint32_t cols, int8_t *codes)
{
	switch (c->body) {
	case H1B_2BIT:
		return decode_2bit(c->four, row, cols, codes);
	case H1B_BASE3:
		return decode_base3(c->five, row, cols, codes);
	case H1B_SHERRY:
		decode_sherry(c->eight, row, cols, codes);
		return cols;
	case H1B_TQ2:
		for (uint32_t i = 0; i < cols; i += H1B_BLOCK, row += 34) {
			uint32_t n = decode_2bit(c->four, row + 2, H1B_BLOCK, codes + i);

			if (n < H1B_BLOCK)
				return i + n;
		}
		return cols;
	default:
		assert(c->body == H1B_Q1);
		for (uint32_t i = 0; i < cols; i += H1B_BLOCK, row += 18)
			decode_signs(c->eight, row + 2, H1B_BLOCK, codes + i);
		return cols;
	}
}

/* ---- encoding -------------------------------------------------------------------------------- */

/* Four codes of a byte each, -1 to 1, into two bits each: one added to each byte, then moved together. */
static uint8_t pack_four(const int8_t *codes)
{
	uint32_t x;

	memcpy(&x, codes, 4);
	x = ((x & 0x7f7f7f7f) + 0x01010101) ^ (x & 0x80808080);
	return (uint8_t)(x * 0x01041040u >> 24);
}

static uint8_t pack_five(const int8_t *c)
{
	return (uint8_t)(121 + c[0] + 3 * c[1] + 9 * c[2] + 27 * c[3] + 81 * c[4]);
}

void h1b_encode_row(enum h1b_body body, const int8_t *codes, uint32_t cols, uint8_t *row)
{
	const uint32_t each = body == H1B_2BIT ? 4 : 5, whole = cols / each, rest = cols % each;
	const uint64_t bytes = h1b_row_bytes(body, cols);
	int8_t last[5] = { 0 };
	uint32_t used = whole;

	assert(body == H1B_2BIT || body == H1B_BASE3);
	for (uint32_t i = 0; body == H1B_2BIT && i < whole; i++)
		row[i] = pack_four(codes + 4 * i);
	for (uint32_t i = 0; body == H1B_BASE3 && i < whole; i++)
		row[i] = pack_five(codes + 5 * i);
	if (rest) {
		memcpy(last, codes + cols - rest, rest);
		row[used++] = body == H1B_2BIT ? pack_four(last) : pack_five(last);
	}
	/* Five weights 0: a zero byte would be five times -1. */
	memset(row + used, 121, bytes - used);
}

/* ---- rows and floats of a file --------------------------------------------------------------- */

int h1b_floats(const struct h1b *h, uint64_t offset, uint64_t n, float *floats, uint64_t *at)
{
	uint32_t bits;
	uint64_t i = 0;

	assert(offset <= h->bytes && n <= (h->bytes - offset) / 4);
	memcpy(floats, h->data + offset, 4 * n);
	/* Blocks, so that compilers make vector code of the common case. */
	for (; i + 16 <= n; i += 16) {
		uint32_t block[16], bad = 0;

		memcpy(block, floats + i, sizeof(block));
		for (unsigned k = 0; k < 16; k++)
			bad |= (block[k] & 0x7fffffff) >= 0x7f800000;
		if (bad)
			break;
	}
	for (; i < n; i++) {
		memcpy(&bits, floats + i, 4);
		if ((bits & 0x7fffffff) >= 0x7f800000) {
			*at = i;
			return -EPROTO;
		}
	}
	return 0;
}

static uint16_t block_scale(const uint8_t *block)
{
	return (uint16_t)(block[0] | block[1] << 8);
}

static const uint8_t *row_at(const struct h1b *h, uint32_t layer, unsigned matrix, uint32_t row)
{
	const struct h1b_matrix *m = &h->layout.matrix[matrix];

	assert(layer < h->header.layers && matrix < H1B_MATRICES && row < m->rows);
	return h->data + h->layout.layer0 + h->layout.stride * layer + m->codes + m->row_bytes * row;
}

uint32_t h1b_groups(const struct h1b *h, uint32_t layer, unsigned matrix)
{
	const struct h1b_matrix *m = &h->layout.matrix[matrix];
	const uint32_t blocks = m->cols / H1B_BLOCK;

	if (m->scales)
		return 1;
	for (uint32_t r = 0; r < m->rows; r++) {
		const uint8_t *row = row_at(h, layer, matrix, r);
		const uint64_t block = m->row_bytes / blocks;

		for (uint32_t i = 1; i < blocks; i++)
			if (block_scale(row) != block_scale(row + block * i))
				return blocks;
	}
	return 1;
}

/* A row's scales; the index of one that cannot be, or groups. */
static uint32_t scales_of(const struct h1b *h, uint32_t layer, unsigned matrix, uint32_t row,
			  uint32_t groups, float *scales)
{
	const struct h1b_matrix *m = &h->layout.matrix[matrix];
	const uint8_t *at = row_at(h, layer, matrix, row);
	const uint64_t block = m->scales ? 0 : m->row_bytes / (m->cols / H1B_BLOCK);

	for (uint32_t g = 0; g < groups; g++) {
		if (m->scales)
			memcpy(&scales[g], h->data + h->layout.layer0 + h->layout.stride * layer + m->scales +
				       4ull * row, 4);
		else
			scales[g] = half_to_float(block_scale(at + block * g));
		if (!isfinite(scales[g]) || scales[g] < 0)
			return g;
	}
	return groups;
}

int h1b_rows(const struct h1b *h, uint32_t layer, unsigned matrix, uint32_t groups, uint32_t row0,
	     uint32_t n, int8_t *codes, float *scales, char *why, size_t why_len)
{
	static const char *const names[H1B_MATRICES] = { "q", "k", "v", "o", "gate", "up", "down" };
	const struct h1b_matrix *m = &h->layout.matrix[matrix];

	for (uint32_t i = 0; i < n; i++) {
		uint32_t row = row0 + i, col, g;

		col = h1b_decode_row(&h->coder, row_at(h, layer, matrix, row), m->cols,
				     codes + (uint64_t)i * m->cols);
		if (col < m->cols)
			return fail(why, why_len, -EPROTO, "layer %u's %s, row %u, column %u: a "
				    "code that no writer emits: the file is damaged, or its "
				    "tensors are in another order",
				    layer, names[matrix], row, col);
		if (!scales)
			continue;
		g = scales_of(h, layer, matrix, row, groups, scales + (uint64_t)i * groups);
		if (g < groups)
			return fail(why, why_len, -EPROTO, "layer %u's %s, row %u: scale %g; it "
				    "must be finite and not negative: the file is damaged, or its "
				    "tensors are in another order",
				    layer, names[matrix], row, (double)scales[(uint64_t)i * groups + g]);
	}
	return 0;
}

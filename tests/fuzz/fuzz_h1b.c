/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as an .h1b file. What is accepted must have the length that its header asks for, and every row
 * read from it must be ternary with scales that are finite and not negative, or refused with a sentence.
 *
 * After an even first byte the input is a header and a pattern, which is repeated up to the length that the
 * header asks for, when that is small: otherwise the length of nearly every mutation would be wrong and
 * nothing behind it tried. After an odd one the input is the file.
 */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "h1b.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The least file with blocks of 128 has 31 KiB. */
enum { FILE_MAX = 33 << 10, COLS_MAX = 4096 };

static struct h1b_coder coder[2];

static void read_floats(const struct h1b *h)
{
	const uint64_t n = (uint64_t)h->header.vocab * h->header.hidden;
	float f[FILE_MAX / 4];
	uint64_t at;

	assert(n <= FILE_MAX / 4);
	if (h1b_floats(h, h->layout.embed, n, f, &at)) {
		assert(at < n && !isfinite(f[at]));
		return;
	}
	for (uint64_t i = 0; i < n; i++)
		assert(isfinite(f[i]));
}

static void read_matrix(const struct h1b *h, uint32_t layer, unsigned matrix)
{
	const struct h1b_matrix *m = &h->layout.matrix[matrix];
	const uint32_t groups = h1b_groups(h, layer, matrix);
	int8_t codes[COLS_MAX];
	float scales[COLS_MAX / H1B_BLOCK + 1];
	uint8_t row[COLS_MAX / 2];
	char why[300] = "";

	assert(m->cols <= COLS_MAX && groups <= COLS_MAX / H1B_BLOCK + 1);
	for (uint32_t r = 0; r < m->rows; r++) {
		/* The rows in the middle are like their neighbours, and time is better spent on more inputs. */
		if (r == 3 && m->rows > 6)
			r = m->rows - 3;
		if (h1b_rows(h, layer, matrix, groups, r, 1, codes, scales, why, sizeof(why))) {
			assert(*why);
			return;
		}
		for (uint32_t c = 0; c < m->cols; c++)
			assert(codes[c] >= -1 && codes[c] <= 1);
		for (uint32_t g = 0; g < groups; g++)
			assert(isfinite(scales[g]) && scales[g] >= 0);
		/* There and back: both of the forms that we write hold any row. */
		for (unsigned i = 0; i < 2; i++) {
			int8_t again[COLS_MAX];

			h1b_encode_row(coder[i].body, codes, m->cols, row);
			assert(h1b_decode_row(&coder[i], row, m->cols, again) == m->cols);
			assert(!memcmp(codes, again, m->cols));
		}
	}
}

/* The file that an input stands for, to the byte, so that a read behind its end is seen. */
static uint8_t *file_of(const uint8_t *data, size_t size, bool repeat, size_t *n)
{
	struct h1b_header header;
	struct h1b_layout layout;
	char why[400];
	uint8_t *file;
	size_t head;

	*n = size;
	if (repeat && !h1b_header_read(data, size, &header, why, sizeof(why)) &&
	    size > h1b_header_bytes(&header) && !h1b_layout_make(&header, &layout, why, sizeof(why)) &&
	    layout.file_bytes <= FILE_MAX)
		*n = layout.file_bytes;
	file = malloc(*n ? *n : 1);
	assert(file);
	memcpy(file, data, size < *n ? size : *n);
	if (*n <= size)
		return file;
	head = h1b_header_bytes(&header);
	for (size_t at = size; at < *n; at += size - head)
		memcpy(file + at, data + head, *n - at < size - head ? *n - at : size - head);
	return file;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char why[400] = "";
	uint8_t *file;
	struct h1b h;
	size_t n;

	if (!size)
		return 0;
	if (!coder[0].four[0]) {
		h1b_coder_init(&coder[0], H1B_2BIT);
		h1b_coder_init(&coder[1], H1B_BASE3);
	}
	file = file_of(data + 1, size - 1, !(data[0] & 1), &n);
	if (h1b_parse(file, n, &h, why, sizeof(why))) {
		assert(*why);
	} else if (n <= FILE_MAX) {
		assert(h.layout.file_bytes == n);
		read_floats(&h);
		for (uint32_t l = 0; l < h.header.layers; l++)
			for (unsigned m = 0; m < H1B_MATRICES; m++)
				read_matrix(&h, l, m);
	}
	free(file);
	return 0;
}

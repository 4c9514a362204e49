/* SPDX-License-Identifier: MIT */
/*
 * What the versions of head_half have in common, included by each after what it has of its own:
 *
 *	struct vec		eight columns of ROWS rows, as floats
 *	UNROLL, ALWAYS		as elsewhere
 *	weights(layout, at)	ROWS rows' halves, widened
 *	values(x)		eight floats, for each of the rows
 *	zero(), add(a, b), fma_all(w, x, sum), fma_first(w, x, sum, n): lanes from n on keep the sum
 *	fold(v, y)		the tree of 8, of each row, into y[ROWS]
 *	PARTS			vectors whose sums are in registers, at most
 *
 * A unit is eight columns, so partials of sum256 repeat after 32 units: those of one residue are a
 * chain over units 32 apart, in registers for as many rows as there are. The tree goes over
 * residues: taken in bit-reversed order, each meets its partner as soon as both are there, as
 * digits do when one counts. Units are visited in that order, which nothing foresees, so the next
 * tile is asked for in the order of memory meanwhile; a tile is small enough to be near.
 */

#define RESIDUES (256u / 8)
#define LEVELS	 5u

/* A few of a tile's rows, `vecs` vectors at `at`; next: lines from and to of each unit there. */
struct part {
	const char *at, *next;
	uint32_t cols;
	unsigned from, to;
};

/* The units r, r + 32, ... */
ALWAYS void chain(uint32_t layout, const struct part *p, const float *x, size_t x_stride,
		  uint32_t r, const unsigned n, const unsigned vecs, struct vec *sums)
{
	uint32_t u = r;

	UNROLL
	for (unsigned i = 0; i < n * vecs; i++)
		sums[i] = zero();
	for (; u < p->cols / 8; u += RESIDUES) {
		const char *at = p->at + (size_t)u * PACKED_UNIT;
		struct vec w[PARTS];

		UNROLL
		for (unsigned j = 0; j < vecs; j++)
			w[j] = weights(layout, at + ROWS * PACKED_BYTES * j);
		UNROLL
		for (unsigned i = 0; i < n; i++) {
			struct vec v = values(x + i * x_stride + 8 * (size_t)u);

			UNROLL
			for (unsigned j = 0; j < vecs; j++)
				sums[i * vecs + j] = fma_all(w[j], v, sums[i * vecs + j]);
		}
	}
	if (u == p->cols / 8 && p->cols % 8) {
		const char *at = p->at + (size_t)u * PACKED_UNIT;

		UNROLL
		for (unsigned i = 0; i < n; i++) {
			float last[8] = { 0 };
			struct vec v;

			memcpy(last, x + i * x_stride + 8 * (size_t)u,
			       p->cols % 8 * sizeof(float));
			v = values(last);
			UNROLL
			for (unsigned j = 0; j < vecs; j++)
				sums[i * vecs + j] = fma_first(
					weights(layout, at + ROWS * PACKED_BYTES * j), v,
					sums[i * vecs + j], p->cols % 8);
		}
	}
}

ALWAYS void half_part(uint32_t layout, const struct part *p, const float *x, size_t x_stride,
		      float *y, size_t y_stride, const unsigned n, const unsigned vecs)
{
	struct vec kept[LEVELS + 1][PARTS];
	uint32_t units = (p->cols + 7) / 8;

	for (uint32_t k = 0; k < RESIDUES; k++) {
		unsigned r = (k & 1) << 4 | (k & 2) << 2 | (k & 4) | (k & 8) >> 2 | (k & 16) >> 4;
		unsigned level = 0;
		struct vec sums[PARTS];

		for (uint32_t u = units * k / RESIDUES; u < units * (k + 1) / RESIDUES; u++)
			for (unsigned l = p->from; l < p->to; l++)
				__builtin_prefetch(p->next + (size_t)u * PACKED_UNIT + 64 * l, 0,
						   2);
		chain(layout, p, x, x_stride, r, n, vecs, sums);
		for (; k >> level & 1; level++) {
			UNROLL
			for (unsigned i = 0; i < n * vecs; i++)
				sums[i] = add(kept[level][i], sums[i]);
		}
		UNROLL
		for (unsigned i = 0; i < n * vecs; i++)
			kept[level][i] = sums[i];
	}
	for (unsigned i = 0; i < n; i++)
		for (unsigned j = 0; j < vecs; j++)
			fold(kept[LEVELS][i * vecs + j], y + i * y_stride + ROWS * j);
}

/* All parts of a tile, `vecs` vectors each, for n rows of activations. */
ALWAYS void half_tile(uint32_t layout, const char *at, const char *next, uint32_t cols,
		      const float *x, size_t x_stride, float *y, size_t y_stride, const unsigned n,
		      const unsigned vecs)
{
	const unsigned parts = PACKED_ROWS / ROWS / vecs, lines = PACKED_UNIT / 64;

	for (unsigned i = 0; i < parts; i++) {
		const struct part p = { at + i * (PACKED_UNIT / parts), next, cols,
					next ? lines * i / parts : 0,
					next ? lines * (i + 1) / parts : 0 };

		half_part(layout, &p, x, x_stride, y + i * (PACKED_ROWS / parts), y_stride, n,
			  vecs);
	}
}

/* Up to three rows of activations at a time; the last of them asks for the next tile. */
ALWAYS void half_tiles(uint32_t layout, const struct packed_shape *s, const char *at,
		       const float *x, size_t x_stride, uint32_t n, uint32_t tiles, float *y,
		       size_t y_stride)
{
	const size_t bytes = (size_t)packed_units(s) * PACKED_UNIT;
	const uint64_t passes = ((uint64_t)n + 2) / 3;

	for (uint32_t t = 0; t < tiles; t++, at += bytes, y += PACKED_ROWS)
		for (uint64_t i = 0; i < passes; i++) {
			const size_t from = n * i / passes;
			const char *next = i + 1 == passes ? at + bytes : NULL;

			switch (n * (i + 1) / passes - from) {
			case 1:
				half_tile(layout, at, next, s->cols, x + from * x_stride, x_stride,
					  y + from * y_stride, y_stride, 1, PARTS_1);
				break;
			case 2:
				half_tile(layout, at, next, s->cols, x + from * x_stride, x_stride,
					  y + from * y_stride, y_stride, 2, PARTS_2);
				break;
			default:
				half_tile(layout, at, next, s->cols, x + from * x_stride, x_stride,
					  y + from * y_stride, y_stride, 3, PARTS_3);
			}
		}
}

static void head_half(const struct packed_shape *s, const void *packed, const float *x,
		      size_t x_stride, uint32_t n, uint32_t tile0, uint32_t tile1, float *y,
		      size_t y_stride)
{
	const char *at = (const char *)packed + (size_t)tile0 * packed_units(s) * PACKED_UNIT;

	y += (size_t)tile0 * PACKED_ROWS;
	if (s->layout == PACKED_F16)
		half_tiles(PACKED_F16, s, at, x, x_stride, n, tile1 - tile0, y, y_stride);
	else
		half_tiles(PACKED_BF16, s, at, x, x_stride, n, tile1 - tile0, y, y_stride);
}

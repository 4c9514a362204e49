/* SPDX-License-Identifier: MIT */
/*
 * Every version of every operation that this CPU can run against the scalar one, bit for bit; and
 * the scalar one against the contract's sentence, worked out here from the plain weights.
 */
#include <check.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "kernels.h"
#include "lib_core.h"
#include "lib_tiny.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t seed;

/* What the values are like. */
enum fill { RANDOM, ALL_LARGEST, ALL_LOWEST, SIGNS, ZEROS, FILLS };

static const unsigned masks[] = {
	0, KERNELS_AVX2, KERNELS_AVX2 | KERNELS_AVX512, KERNELS_AVX512, KERNELS_NEON, KERNELS_ANY
};

/* n at ONEBIT_SCALE = 100 percent, which is the default; at least 1. */
static unsigned scaled(unsigned n)
{
	const char *s = getenv("ONEBIT_SCALE");
	unsigned long percent = s ? strtoul(s, NULL, 0) : 100;

	return n * percent / 100 ? (unsigned)(n * percent / 100) : 1;
}

static void *get(size_t bytes)
{
	void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);

	ck_assert_ptr_nonnull(p);
	return p;
}

struct product {
	struct packed_shape s;
	int8_t *weights; /* [rows][cols] */
	uint8_t *packed;
	float *scales;
	int8_t *q;
	int8_t *laid;
	int32_t *sums;
	int16_t *wide;
	struct laid_head head;
	uint32_t n_rows; /* of all tiles */
	float d, *want, *y;
};

static int8_t weight_of(const struct packed_shape *s, enum fill fill)
{
	uint64_t r = tiny_random(&seed);
	int largest = s->layout == PACKED_INT8 ? 127 : 1,
	    lowest = s->layout == PACKED_INT8 ? -128 : -1;

	switch (fill) {
	case ALL_LARGEST:
		return (int8_t)largest;
	case ALL_LOWEST:
		return (int8_t)lowest;
	case SIGNS:
		return (int8_t)(r & 1 ? largest : lowest);
	case ZEROS:
		return 0;
	default:
		return s->layout == PACKED_INT8 ? (int8_t)r : (int8_t)(r % 3 - 1);
	}
}

static void fill_values(struct product *p, enum fill weights, enum fill values)
{
	static const int8_t few[] = { -128, -127, -1, 0, 1, 127 };
	static const int16_t wide[] = { -32767, -32512, -257, -256, -255,  -1,
					0,	1,	255,  256,  32512, 32767 };

	for (size_t i = 0; i < (size_t)p->s.rows * p->s.cols; i++)
		p->weights[i] = weight_of(&p->s, weights);
	for (uint32_t i = 0; i < p->s.cols; i++) {
		uint64_t r = tiny_random(&seed);

		p->q[i] = values == ALL_LARGEST	 ? 127
			  : values == ALL_LOWEST ? -128
			  : values == SIGNS	 ? few[r % COUNT(few)]
			  : values == ZEROS	 ? 0
						 : (int8_t)r;
		p->wide[i] = (int16_t)(values == ALL_LARGEST  ? 32767
				       : values == ALL_LOWEST ? -32767
				       : values == SIGNS      ? wide[r % COUNT(wide)]
				       : values == ZEROS      ? 0
							      : (int)(r % 65535) - 32767);
	}
	/* Scales of any size and sign, zero and subnormal among them. */
	for (size_t i = 0; i < packed_n_scales(&p->s); i++) {
		uint64_t r = tiny_random(&seed);
		float f = ldexpf((float)(int)(r % 2001) - 1000, -10 - (int)(r >> 40) % 20);

		p->scales[i] = r >> 60 == 0 ? 0 : r >> 60 == 1 ? 0x1p-140f : f;
	}
	p->d = ldexpf(1 + (float)(tiny_random(&seed) % 1000) / 999,
		      -(int)(tiny_random(&seed) % 12));
}

static struct product product_new(uint32_t layout, uint32_t rows, uint32_t cols, uint32_t groups,
				  enum fill weights, enum fill values)
{
	struct product p = { .s = { layout, rows, cols, groups } };
	size_t n = (size_t)packed_units(&p.s) * packed_span(layout), tile;

	ck_assert_ptr_null(packed_check(&p.s));
	p.n_rows = packed_tiles(&p.s) * PACKED_ROWS;
	p.weights = get((size_t)rows * cols);
	p.packed = get(packed_bytes(&p.s));
	p.scales = get(packed_n_scales(&p.s) * sizeof(float));
	p.q = get(cols);
	p.laid = get(n);
	p.sums = get(groups * sizeof(int32_t));
	p.wide = get(cols * sizeof(int16_t));
	p.head = (struct laid_head){ get(n * 2), get(n), get(n), 0 };
	p.want = get(p.n_rows * sizeof(float));
	p.y = get(p.n_rows * sizeof(float));
	fill_values(&p, weights, values);
	tile = packed_bytes(&p.s) / packed_tiles(&p.s);
	for (uint32_t t = 0; t < packed_tiles(&p.s); t++) {
		uint32_t left = rows - t * PACKED_ROWS;

		packed_tile(&p.s, p.weights + (size_t)t * PACKED_ROWS * cols,
			    left < PACKED_ROWS ? left : PACKED_ROWS, p.packed + t * tile);
	}
	return p;
}

static void product_free(struct product *p)
{
	void *all[] = { p->weights, p->packed, p->scales,    p->q,	  p->laid, p->sums,
			p->wide,    p->head.q, p->head.high, p->head.low, p->want, p->y };

	for (size_t i = 0; i < COUNT(all); i++)
		free(all[i]);
}

/* Tiles from one to another, by the operation of the layout. */
static void run(const struct kernels *k, const struct product *p, uint32_t from, uint32_t to,
		float *y)
{
	if (p->s.layout == PACKED_INT8)
		k->head_int8(&p->s, p->packed, p->scales, &p->head, p->d, from, to, y);
	else
		k->ternary[p->s.layout](&p->s, p->packed, p->scales, p->laid, p->sums, p->d, from,
					to, y);
}

static void lay(struct product *p)
{
	if (p->s.layout == PACKED_INT8)
		lay_head(&p->s, p->wide, &p->head);
	else
		lay_ternary(&p->s, p->q, p->laid, p->sums);
}

/* The contract, from the plain weights. */
static float contract(const struct product *p, uint32_t row)
{
	uint32_t width = p->s.cols / p->s.groups;
	const int8_t *w = p->weights + (size_t)row * p->s.cols;
	float y = 0;

	for (uint32_t g = 0; g < p->s.groups; g++) {
		float scale = p->d * p->scales[(size_t)g * p->n_rows + row];
		int64_t sum = 0;

		for (uint32_t c = g * width; c < (g + 1) * width; c++)
			sum += w[c] * (p->s.layout == PACKED_INT8 ? p->wide[c] : p->q[c]);
		y = p->s.groups == 1 ? (float)sum * scale : fmaf((float)sum, scale, y);
	}
	return y;
}

/* All versions on one product: whole, tile by tile, and nothing outside the tiles asked for. */
static void judge(struct product *p, const char *what)
{
	uint32_t tiles = packed_tiles(&p->s);
	struct kernels k;

	lay(p);
	kernels_choose(&k, 0);
	run(&k, p, 0, tiles, p->want);
	for (uint32_t r = 0; r < p->s.rows; r++) {
		float y = contract(p, r);

		if (memcmp(&y, &p->want[r], sizeof(y)))
			ck_abort_msg("%s %u x %u, %u groups, %s: row %u is %a, by the contract %a",
				     packed_name(p->s.layout), p->s.rows, p->s.cols, p->s.groups,
				     what, r, (double)p->want[r], (double)y);
	}
	for (size_t m = 0; m < COUNT(masks); m++) {
		kernels_choose(&k, masks[m]);
		memset(p->y, 0x5a, p->n_rows * sizeof(float));
		run(&k, p, 0, tiles, p->y);
		for (uint32_t r = 0; r < p->n_rows; r++)
			if (memcmp(&p->y[r], &p->want[r], sizeof(float)))
				ck_abort_msg(
					"%s %u x %u, %u groups, %s: row %u by %s is %a, not %a",
					packed_name(p->s.layout), p->s.rows, p->s.cols, p->s.groups,
					what, r, k.isa, (double)p->y[r], (double)p->want[r]);
		for (uint32_t t = 0; t < tiles; t++) {
			float before = 1, after = 2;

			memcpy(p->y, p->want, p->n_rows * sizeof(float));
			memset(p->y + (size_t)t * PACKED_ROWS, 0x5a, PACKED_ROWS * sizeof(float));
			if (t)
				p->y[t * PACKED_ROWS - 1] = before;
			if (t + 1 < tiles)
				p->y[(t + 1) * PACKED_ROWS] = after;
			run(&k, p, t, t + 1, p->y);
			ck_assert_mem_eq(p->y + (size_t)t * PACKED_ROWS,
					 p->want + (size_t)t * PACKED_ROWS,
					 PACKED_ROWS * sizeof(float));
			ck_assert(!t || p->y[t * PACKED_ROWS - 1] == before);
			ck_assert(t + 1 == tiles || p->y[(t + 1) * PACKED_ROWS] == after);
		}
	}
	product_free(p);
}

static const uint32_t layouts[] = { PACKED_2BIT, PACKED_BASE3, PACKED_INT8 };

/* Lengths around units, blocks and tiles, where a loop's end goes wrong. */
START_TEST(lengths)
{
	static const uint32_t cols[] = { 1,  15,  16,  17,  63,	 64,  65,   79,	 80,
					 81, 100, 128, 160, 960, 961, 1000, 1025 };

	for (size_t l = 0; l < COUNT(layouts); l++)
		for (size_t c = 0; c < COUNT(cols); c++)
			for (uint32_t rows = 1; rows <= 65; rows += 32) {
				struct product p =
					product_new(layouts[l], rows, cols[c], 1, RANDOM, RANDOM);

				judge(&p, "random");
			}
}
END_TEST

/* Sums as large as they get: an accumulator that is too narrow shows here and nowhere else. */
START_TEST(extremes)
{
	static const uint32_t cols[] = { 2560, 6912, 8640, KERNELS_COLS_MAX };

	for (size_t l = 0; l < COUNT(layouts); l++)
		for (size_t c = 0; c < COUNT(cols); c++)
			for (int w = RANDOM; w < FILLS; w++)
				for (int v = RANDOM; v < FILLS; v++) {
					struct product p;
					char what[64];

					/* The longest once for each kind is enough. */
					if (cols[c] == KERNELS_COLS_MAX && w != v &&
					    v != ALL_LOWEST)
						continue;
					p = product_new(layouts[l], c ? 3 : 33, cols[c], 1,
							(enum fill)w, (enum fill)v);
					snprintf(what, sizeof(what), "weights %d, values %d", w, v);
					judge(&p, what);
				}
}
END_TEST

/* Groups have their own sums and scales, a chain in a fixed order, and units not full. */
START_TEST(groups)
{
	static const struct {
		uint32_t cols, groups;
	} shapes[] = { { 128, 2 },   { 192, 3 },  { 640, 2 },  { 640, 5 },
		       { 2560, 20 }, { 2560, 2 }, { 4096, 64 } };

	for (size_t l = 0; l < 2; l++)
		for (size_t i = 0; i < COUNT(shapes); i++)
			for (int v = RANDOM; v < FILLS; v++) {
				struct product p = product_new(
					layouts[l], 40, shapes[i].cols, shapes[i].groups,
					v == SIGNS ? SIGNS : RANDOM, (enum fill)v);

				judge(&p, "groups");
			}
}
END_TEST

START_TEST(any_shape)
{
	for (unsigned i = 0; i < scaled(150); i++) {
		uint64_t r = tiny_random(&seed);
		uint32_t layout = layouts[i % COUNT(layouts)], rows = 1 + (uint32_t)(r % 100);
		uint32_t cols = 1 + (uint32_t)(r >> 8) % 3000, n_groups = 1;
		struct product p;

		if (layout != PACKED_INT8 && r >> 63) {
			n_groups = 1 + (uint32_t)(r >> 32) % 7;
			cols = n_groups * 64 * (1 + (uint32_t)(r >> 40) % 5);
		}
		p = product_new(layout, rows, cols, n_groups, RANDOM, (enum fill)(r >> 50 & 3));
		judge(&p, "any shape");
	}
}
END_TEST

/* ---- several rows at once -------------------------------------------------------------------- */

enum { ROWS_MAX = 41 };

/* n rows of activations for one matrix: each a product of its own, laid out into one array. */
struct batch {
	struct product p; /* the matrix, and the last row */
	uint32_t n;
	size_t stride, y_stride;
	int8_t *laid;
	int32_t *sums;
	struct laid_head head[ROWS_MAX];
	float d[ROWS_MAX], *want, *y;
	void *scratch;
};

static void batch_rows(const struct kernels *k, const struct batch *b, uint32_t from, uint32_t to,
		       float *y)
{
	const struct ternary_rows rows = { b->n, b->laid, b->stride, b->sums, b->d };
	const struct head_rows heads = { b->n, b->head, b->d };

	memset(b->scratch, 0xa5, kernels_scratch_bytes(&b->p.s));
	if (b->p.s.layout == PACKED_INT8)
		k->head_int8_rows(&b->p.s, b->p.packed, b->p.scales, &heads, from, to, y,
				  b->y_stride, b->scratch);
	else
		k->ternary_rows[b->p.s.layout](&b->p.s, b->p.packed, b->p.scales, &rows, from, to,
					       y, b->y_stride, b->scratch);
}

/* What a product of one row says, n times; that is judged elsewhere. */
static void batch_fill(struct batch *b, enum fill values)
{
	struct product *p = &b->p;
	size_t n = (size_t)packed_units(&p->s) * packed_span(p->s.layout);
	struct kernels k;

	kernels_choose(&k, 0);
	for (uint32_t i = 0; i < b->n; i++) {
		for (uint32_t c = 0; c < p->s.cols; c++) {
			uint64_t r = tiny_random(&seed);

			p->q[c] = (int8_t)(values == ALL_LOWEST ? -128 : values == SIGNS ? 127 : (int)(r & 255));
			p->wide[c] = (int16_t)(values == ALL_LOWEST ? -32767
					       : values == SIGNS    ? 32767
								    : (int)(r % 65535) - 32767);
		}
		p->d = b->d[i] = ldexpf(1 + (float)(tiny_random(&seed) % 1000) / 999, -(int)i % 9);
		b->head[i] = (struct laid_head){ get(n * 2), get(n), get(n), 0 };
		if (p->s.layout == PACKED_INT8) {
			lay_head(&p->s, p->wide, &b->head[i]);
			p->head = b->head[i];
		} else {
			lay_ternary(&p->s, p->q, b->laid + i * b->stride,
				    b->sums + (size_t)i * p->s.groups);
			p->laid = b->laid + i * b->stride;
			p->sums = b->sums + (size_t)i * p->s.groups;
		}
		run(&k, p, 0, packed_tiles(&p->s), b->want + i * b->y_stride);
	}
}

/* Every version, whole and one tile alone; nothing else is written. */
static void judge_batch(struct batch *b)
{
	const struct packed_shape *s = &b->p.s;
	uint32_t tiles = packed_tiles(s), one = (uint32_t)(tiny_random(&seed) % tiles);
	size_t n = b->n * b->y_stride;
	struct kernels k;

	for (size_t m = 0; m < COUNT(masks); m++) {
		kernels_choose(&k, masks[m]);
		memset(b->y, 0x5a, n * sizeof(float));
		batch_rows(&k, b, 0, tiles, b->y);
		for (size_t i = 0; i < n; i++)
			if (memcmp(&b->y[i], &b->want[i], sizeof(float)))
				ck_abort_msg("%s %u x %u, %u groups, %u rows at once: row %zu of "
					     "%zu by %s is %a, not %a",
					     packed_name(s->layout), s->rows, s->cols, s->groups,
					     b->n, i % b->y_stride, i / b->y_stride, k.isa,
					     (double)b->y[i], (double)b->want[i]);
		memset(b->y, 0x5a, n * sizeof(float));
		batch_rows(&k, b, one, one + 1, b->y);
		for (size_t i = 0; i < n; i++) {
			bool asked = i % b->y_stride / PACKED_ROWS == one;
			uint32_t bits;

			memcpy(&bits, &b->y[i], sizeof(bits));
			ck_assert(asked ? !memcmp(&b->y[i], &b->want[i], sizeof(float)) :
					  bits == 0x5a5a5a5a);
		}
	}
}

static void batch(uint32_t layout, uint32_t rows, uint32_t cols, uint32_t n_groups, uint32_t n,
		  enum fill weights, enum fill values)
{
	struct batch b = { .p = product_new(layout, rows, cols, n_groups, weights, values),
			   .n = n };
	struct product p = b.p;
	size_t y_bytes;

	/* Whole tiles and some more, which nobody writes. */
	b.y_stride = p.n_rows + PACKED_ROWS * (n % 2);
	y_bytes = n * b.y_stride * sizeof(float);
	b.stride = (laid_bytes(&p.s) + 63) / 64 * 64 + 64 * (size_t)(n % 3);
	b.laid = get(n * b.stride);
	memset(b.laid, 0x77, n * b.stride);
	b.sums = get(n * n_groups * sizeof(int32_t));
	b.scratch = get(kernels_scratch_bytes(&p.s));
	b.want = get(y_bytes);
	b.y = get(y_bytes);
	memset(b.want, 0x5a, y_bytes);
	batch_fill(&b, values);
	judge_batch(&b);
	for (uint32_t i = 0; i < n; i++) {
		free(b.head[i].q);
		free(b.head[i].high);
		free(b.head[i].low);
	}
	free(b.laid);
	free(b.sums);
	free(b.scratch);
	free(b.want);
	free(b.y);
	product_free(&p);
}

/* Each count has its own registers and its own remainder. */
START_TEST(counts)
{
	for (size_t l = 0; l < COUNT(layouts); l++)
		for (uint32_t n = 1; n < ROWS_MAX; n++) {
			uint64_t r = tiny_random(&seed);
			uint32_t n_groups = layouts[l] == PACKED_INT8 ? 1 : 1 + (uint32_t)(r % 3);
			uint32_t cols = n_groups > 1 ? n_groups * 64 * (1 + (uint32_t)(r >> 8) % 4) :
						       1 + (uint32_t)(r >> 8) % 700;

			batch(layouts[l], 1 + (uint32_t)(r >> 40) % 70, cols, n_groups, n, RANDOM,
			      RANDOM);
		}
}
END_TEST

/* Sums as large as they get, through every shape of registers. */
START_TEST(batch_extremes)
{
	static const uint32_t cols[] = { 6912, 8640, KERNELS_COLS_MAX };
	static const uint32_t n[] = { 2, 3, 5, 9, 14 };

	for (size_t l = 0; l < COUNT(layouts); l++)
		for (size_t i = 0; i < COUNT(n); i++)
			for (int v = ALL_LOWEST; v <= SIGNS; v++) {
				batch(layouts[l], 3, cols[i % 2], 1, n[i], ALL_LOWEST, (enum fill)v);
				if (n[i] < 4)
					batch(layouts[l], 3, cols[2], 1, n[i], ALL_LARGEST,
					      (enum fill)v);
			}
}
END_TEST

/* ---- heads in halves ------------------------------------------------------------------------- */

static double half_value(uint32_t layout, uint16_t h)
{
	int exponent = layout == PACKED_BF16 ? h >> 7 & 255 : h >> 10 & 31;
	int bits = layout == PACKED_BF16 ? 7 : 10, bias = layout == PACKED_BF16 ? 127 : 15;
	double fraction = h & ((1 << bits) - 1);

	fraction = exponent ? fraction + (1 << bits) : fraction;
	return (h & 0x8000 ? -1 : 1) * ldexp(fraction, (exponent ? exponent : 1) - bias - bits);
}

/* sum256 of chains of fma, by the sentence. */
static float half_contract(uint32_t layout, const uint16_t *w, const float *x, uint32_t n)
{
	float p[256];

	for (uint32_t l = 0; l < 256; l++) {
		p[l] = 0;
		for (uint32_t i = l; i < n; i += 256)
			p[l] = fmaf((float)half_value(layout, w[i]), x[i], p[l]);
	}
	for (uint32_t n_left = 128; n_left; n_left /= 2)
		for (uint32_t l = 0; l < n_left; l++)
			p[l] = p[l] + p[l + n_left];
	return p[0];
}

static uint16_t half_random(uint32_t layout)
{
	uint64_t r = tiny_random(&seed);
	uint16_t h = (uint16_t)r;

	/* Mostly of the size that weights have; sometimes anything finite, subnormals and zeros. */
	if (r >> 60)
		h = (uint16_t)(layout == PACKED_BF16 ? (h & 0x80ff) | 0x3e00 :
						       (h & 0x8fff) | 0x2000);
	else if (r >> 59 & 1)
		h &= 0x8007;
	if (layout == PACKED_BF16 && (h & 0x7f80) == 0x7f80)
		h &= 0xbfff;
	if (layout == PACKED_F16 && (h & 0x7c00) == 0x7c00)
		h &= 0xbfff;
	return h;
}

static void halves(uint32_t layout, uint32_t rows, uint32_t cols, uint32_t n)
{
	const struct packed_shape s = { layout, rows, cols, 1 };
	const uint32_t tiles = packed_tiles(&s), y_stride = (tiles + n % 2) * PACKED_ROWS;
	const size_t x_stride = cols + n % 4, n_y = (size_t)n * y_stride;
	const size_t tile = packed_bytes(&s) / tiles;
	uint16_t *w = get((size_t)rows * cols * 2);
	uint8_t *packed = get(packed_bytes(&s));
	float *x = get(n * x_stride * sizeof(float)), *want = get(n_y * sizeof(float));
	float *y = get(n_y * sizeof(float));
	struct kernels k;

	for (size_t i = 0; i < (size_t)rows * cols; i++)
		w[i] = half_random(layout);
	for (uint32_t t = 0; t < tiles; t++)
		packed_tile(&s, w + (size_t)t * PACKED_ROWS * cols,
			    rows - t * PACKED_ROWS < PACKED_ROWS ? rows - t * PACKED_ROWS :
								   PACKED_ROWS,
			    packed + t * tile);
	/* What lies between two rows is infinite: it takes part in nothing. */
	for (size_t i = 0; i < n * x_stride; i++) {
		uint64_t r = tiny_random(&seed);

		x[i] = i % x_stride >= cols ? INFINITY :
					      ldexpf((float)(int)(r % 4001) - 2000,
						     r >> 60 ? -9 : -(int)(r >> 40) % 140);
	}
	memset(want, 0x5a, n_y * sizeof(float));
	kernels_choose(&k, 0);
	k.head_half(&s, packed, x, x_stride, n, 0, tiles, want, y_stride);
	for (uint32_t i = 0; i < n; i++)
		for (uint32_t r = 0; r < rows; r++) {
			float v = half_contract(layout, w + (size_t)r * cols, x + i * x_stride,
						cols);

			ck_assert_msg(!memcmp(&v, &want[(size_t)i * y_stride + r], sizeof(v)),
				      "%s %u x %u: row %u of %u is not the contract's",
				      packed_name(layout), rows, cols, r, i);
		}
	for (size_t m = 0; m < COUNT(masks); m++) {
		kernels_choose(&k, masks[m]);
		memset(y, 0x5a, n_y * sizeof(float));
		for (uint32_t t = tiles; t--;)
			k.head_half(&s, packed, x, x_stride, n, t, t + 1, y, y_stride);
		ck_assert_msg(!memcmp(y, want, n_y * sizeof(float)),
			      "%s %u x %u, %u rows at once, by %s", packed_name(layout), rows, cols,
			      n, k.isa);
	}
	free(w);
	free(packed);
	free(x);
	free(want);
	free(y);
}

/* Lengths around a unit, a vector and the 256 partials; numbers of rows that share a load. */
START_TEST(half_heads)
{
	static const uint32_t cols[] = { 1,   7,   8,	9,   127, 128, 129,
					 255, 256, 257, 264, 511, 512, 1283 };

	for (uint32_t layout = PACKED_F16; layout <= PACKED_BF16; layout++) {
		for (size_t c = 0; c < COUNT(cols); c++)
			halves(layout, 33, cols[c], 1 + (uint32_t)c % 4);
		for (uint32_t n = 1; n < 9; n++)
			halves(layout, 40, 300 + 37 * n, n);
		for (unsigned i = 0; i < scaled(20); i++) {
			uint64_t r = tiny_random(&seed);

			halves(layout, 1 + (uint32_t)(r % 70), 1 + (uint32_t)(r >> 10) % 1500,
			       1 + (uint32_t)(r >> 50) % 5);
		}
	}
}
END_TEST

/* The mask is what tests and doubts rely on: nothing above it may run. */
START_TEST(choice)
{
	struct kernels k;

	kernels_choose(&k, 0);
	ck_assert_str_eq(k.isa, "scalar");
	for (size_t m = 0; m < COUNT(masks); m++) {
		unsigned may = masks[m] & kernels_cpu();

		kernels_choose(&k, masks[m]);
		ck_assert_str_eq(k.isa, may & KERNELS_AVX512 ? "avx512"
					: may & KERNELS_AVX2 ? "avx2"
					: may & KERNELS_NEON ? "neon"
							     : "scalar");
		ck_assert(k.ternary[PACKED_2BIT] && k.ternary[PACKED_BASE3] && k.head_int8);
		ck_assert(k.ternary_rows[PACKED_2BIT] && k.ternary_rows[PACKED_BASE3]);
		ck_assert(k.head_int8_rows && k.head_half);
	}
	printf("this CPU: %s\n", k.isa);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("kernels");
	TCase *t = tcase_create("kernels");
	SRunner *r;
	int failed;

	seed = core_seed("kernels");
	tcase_set_timeout(t, 240);
	tcase_add_test(t, choice);
	tcase_add_test(t, lengths);
	tcase_add_test(t, extremes);
	tcase_add_test(t, groups);
	tcase_add_test(t, any_shape);
	tcase_add_test(t, counts);
	tcase_add_test(t, batch_extremes);
	tcase_add_test(t, half_heads);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

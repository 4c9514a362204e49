/* SPDX-License-Identifier: MIT */
/*
 * Every version of every operation that this CPU can run against the scalar one, bit for bit; and
 * the scalar one against the contract's sentence, worked out here from the plain weights.
 */
#include <check.h>
#include <math.h>
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
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

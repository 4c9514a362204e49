/* SPDX-License-Identifier: MIT */
/*
 * The packed layouts against packed.h's own words: where each weight lies is found here by its
 * table's formulas, weight by weight, sharing nothing with the packer.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_core.h"
#include "lib_tiny.h"
#include "packed.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t seed;

/* n at ONEBIT_SCALE = 100 percent, which is the default; at least 1. */
static unsigned scaled(unsigned n)
{
	const char *s = getenv("ONEBIT_SCALE");
	unsigned long percent = s ? strtoul(s, NULL, 0) : 100;

	return n * percent / 100 ? (unsigned)(n * percent / 100) : 1;
}

/* ---- a matrix -------------------------------------------------------------------------------- */

struct matrix {
	struct packed_shape s;
	size_t element;
	uint8_t *plain;	 /* rows x cols */
	uint8_t *packed; /* between two guards of 64 bytes */
	uint64_t bytes;
};

static void *get(size_t bytes)
{
	void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);

	ck_assert_ptr_nonnull(p);
	return p;
}

static uint16_t random_half(uint32_t layout)
{
	uint16_t exponent = layout == PACKED_F16 ? 0x7c00 : 0x7f80, h;

	do
		h = (uint16_t)tiny_random(&seed);
	while ((h & exponent) == exponent);
	return h;
}

static void matrix_fill(struct matrix *m)
{
	size_t n = (size_t)m->s.rows * m->s.cols;

	for (size_t i = 0; i < n; i++)
		if (m->element == 2) {
			uint16_t h = random_half(m->s.layout);

			memcpy(m->plain + 2 * i, &h, 2);
		} else if (m->s.layout == PACKED_INT8) {
			m->plain[i] = (uint8_t)tiny_random(&seed);
		} else {
			m->plain[i] = (uint8_t)(tiny_random(&seed) % 3 - 1);
		}
}

static struct matrix matrix_new(uint32_t layout, uint32_t rows, uint32_t cols, uint32_t groups)
{
	struct matrix m = { .s = { layout, rows, cols, groups } };
	const char *wrong = packed_check(&m.s);

	ck_assert_msg(!wrong, "%s %u x %u, %u groups: %s", packed_name(layout), rows, cols, groups,
		      wrong);
	m.element = layout == PACKED_F16 || layout == PACKED_BF16 ? 2 : 1;
	m.bytes = packed_bytes(&m.s);
	m.plain = get((size_t)rows * cols * m.element);
	m.packed = (uint8_t *)get(m.bytes + 128) + 64;
	memset(m.packed - 64, 0xee, m.bytes + 128);
	matrix_fill(&m);
	return m;
}

static void matrix_free(struct matrix *m)
{
	free(m->plain);
	free(m->packed - 64);
}

static uint32_t rows_in(const struct matrix *m, uint32_t tile)
{
	uint32_t left = m->s.rows - tile * PACKED_ROWS;

	return left < PACKED_ROWS ? left : PACKED_ROWS;
}

static uint8_t *tile_of(const struct matrix *m, uint32_t tile)
{
	return m->packed + m->bytes / packed_tiles(&m->s) * tile;
}

static const uint8_t *plain_of(const struct matrix *m, uint32_t tile)
{
	return m->plain + (size_t)tile * PACKED_ROWS * m->s.cols * m->element;
}

static void all_are(const uint8_t *guard, uint8_t value)
{
	uint8_t want[64];

	memset(want, value, sizeof(want));
	ck_assert_mem_eq(guard, want, sizeof(want));
}

static void matrix_pack(struct matrix *m)
{
	for (uint32_t t = 0; t < packed_tiles(&m->s); t++)
		packed_tile(&m->s, plain_of(m, t), rows_in(m, t), tile_of(m, t));
	all_are(m->packed - 64, 0xee);
	all_are(m->packed + m->bytes, 0xee);
}

/* ---- packed.h, read aloud -------------------------------------------------------------------- */

static const uint32_t spans[] = { 0, 64, 80, 16, 8, 8 };

/* What lies for a row (of all that are there, with those that fill up) and a column of a group. */
static int weight_at(const struct matrix *m, uint32_t row, uint32_t group, uint32_t column)
{
	uint32_t span = spans[m->s.layout], width = m->s.cols / m->s.groups;
	uint32_t units = (width + span - 1) / span;
	size_t unit = ((size_t)(row / 32) * m->s.groups + group) * units + column / span;
	const uint8_t *at = m->packed + unit * 512 + (size_t)(row % 32) * 16;
	uint32_t c = column % span;

	if (m->s.layout == PACKED_2BIT)
		return (at[c % 16] >> 2 * (c / 16) & 3) - 1;
	if (m->s.layout == PACKED_BASE3) {
		unsigned b = at[c % 16];

		for (uint32_t p = 0; p < c / 16; p++)
			b = b * 3 % 256;
		return (int)(b * 3 / 256) - 1;
	}
	if (m->s.layout == PACKED_INT8)
		return at[c] < 128 ? at[c] : at[c] - 256;
	return at[2 * c] + 256 * at[2 * c + 1];
}

static int plain_at(const struct matrix *m, uint32_t row, uint32_t col)
{
	size_t i = (size_t)row * m->s.cols + col;

	if (m->element == 2)
		return m->plain[2 * i] + 256 * m->plain[2 * i + 1];
	return (int8_t)m->plain[i];
}

static void each_weight_lies_right(const struct matrix *m)
{
	uint32_t span = spans[m->s.layout], width = m->s.cols / m->s.groups;
	uint32_t padded = (width + span - 1) / span * span;

	for (uint32_t r = 0; r < packed_tiles(&m->s) * 32; r++)
		for (uint32_t g = 0; g < m->s.groups; g++)
			for (uint32_t c = 0; c < padded; c++) {
				int want = r < m->s.rows && c < width
						   ? plain_at(m, r, g * width + c)
						   : 0;
				int is = weight_at(m, r, g, c);

				/* Asserted when it fails only: each one writes to a pipe. */
				if (is != want)
					ck_abort_msg("%s %u x %u, %u groups: row %u, column %u: "
						     "%d, not %d",
						     packed_name(m->s.layout), m->s.rows, m->s.cols,
						     m->s.groups, r, g * width + c, is, want);
			}
}

static void comes_back(const struct matrix *m)
{
	uint8_t *back = get((size_t)PACKED_ROWS * m->s.cols * m->element + 64);

	for (uint32_t t = 0; t < packed_tiles(&m->s); t++) {
		size_t n = (size_t)rows_in(m, t) * m->s.cols * m->element;

		memset(back, 0xdd, n + 64);
		packed_untile(&m->s, tile_of(m, t), rows_in(m, t), back);
		ck_assert_mem_eq(back, plain_of(m, t), n);
		all_are(back + n, 0xdd);
		ck_assert(packed_tile_is_valid(&m->s, tile_of(m, t), rows_in(m, t)));
	}
	free(back);
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* One weight in the wrong place is a model that talks nonsense, on one kernel or on all. */
START_TEST(places)
{
	static const uint32_t rows[] = { 1, 31, 32, 33, 70 };
	static const uint32_t cols[] = { 1,  7,	 8,  15,  16,  17,  63,	 64, 65,
					 79, 80, 81, 159, 160, 200, 320, 641 };
	static const struct {
		uint32_t cols, groups;
	} grouped[] = { { 128, 2 }, { 192, 3 }, { 640, 2 }, { 640, 5 }, { 704, 11 }, { 1024, 2 } };

	for (uint32_t layout = 1; layout < PACKED_COUNT; layout++)
		for (size_t r = 0; r < COUNT(rows); r++) {
			for (size_t c = 0; c < COUNT(cols); c++) {
				struct matrix m = matrix_new(layout, rows[r], cols[c], 1);

				matrix_pack(&m);
				each_weight_lies_right(&m);
				comes_back(&m);
				matrix_free(&m);
			}
			for (size_t g = 0; g < COUNT(grouped) && layout <= PACKED_BASE3; g++) {
				struct matrix m = matrix_new(layout, rows[r], grouped[g].cols,
							     grouped[g].groups);

				matrix_pack(&m);
				each_weight_lies_right(&m);
				comes_back(&m);
				matrix_free(&m);
			}
		}
}
END_TEST

/* The shapes that models have, and any others. */
START_TEST(round_trips)
{
	static const struct {
		uint32_t rows, cols;
	} real[] = { { 64, 2560 }, { 64, 6912 }, { 64, 3200 },
		     { 64, 8640 }, { 40, 1536 }, { 33, 4096 } };

	for (uint32_t layout = 1; layout < PACKED_COUNT; layout++) {
		for (size_t i = 0; i < COUNT(real); i++) {
			struct matrix m = matrix_new(layout, real[i].rows, real[i].cols, 1);

			matrix_pack(&m);
			comes_back(&m);
			matrix_free(&m);
		}
		for (unsigned i = 0; i < scaled(60); i++) {
			uint32_t rows = 1 + (uint32_t)(tiny_random(&seed) % 100);
			uint32_t cols = 1 + (uint32_t)(tiny_random(&seed) % 700), groups = 1;
			struct matrix m;

			if (layout <= PACKED_BASE3 && tiny_random(&seed) % 2) {
				groups = 1 + (uint32_t)(tiny_random(&seed) % 5);
				cols = groups * 64 * (1 + (uint32_t)(tiny_random(&seed) % 4));
			}
			m = matrix_new(layout, rows, cols, groups);
			matrix_pack(&m);
			each_weight_lies_right(&m);
			comes_back(&m);
			matrix_free(&m);
		}
	}
}
END_TEST

/* Kernels read 243 bytes as five digits each; the other 13 are to be refused, and harmless. */
START_TEST(base3_bytes)
{
	struct packed_shape s = { PACKED_BASE3, 1, 80, 1 };
	unsigned valid = 0;

	for (unsigned b = 0; b < 256; b++) {
		uint8_t tile[PACKED_UNIT], again[PACKED_UNIT];
		int8_t codes[80];
		unsigned v, rest;
		int is_valid;

		memset(tile, 128, sizeof(tile)); /* zero weights */
		ck_assert(packed_tile_is_valid(&s, tile, 1));
		tile[3] = (uint8_t)b;
		is_valid = packed_tile_is_valid(&s, tile, 1);
		packed_untile(&s, tile, 1, codes);
		v = 0;
		rest = b;
		for (unsigned p = 0; p < 5; p++) {
			unsigned digit = rest * 3 / 256;

			rest = rest * 3 % 256;
			v = v * 3 + digit;
			ck_assert_int_eq(codes[16 * p + 3], is_valid ? (int)digit - 1 : 0);
			ck_assert_int_eq(codes[16 * p + 4], 0);
		}
		ck_assert_int_eq(is_valid, (v * 256 + 242) / 243 == b);
		valid += (unsigned)is_valid;
		packed_tile(&s, codes, 1, again);
		if (is_valid)
			ck_assert_mem_eq(tile, again, sizeof(tile));
	}
	ck_assert_uint_eq(valid, 243);
}
END_TEST

/* The code 3 occurs in damaged files only: seen, and read as 0 meanwhile. */
START_TEST(two_bit_bytes)
{
	struct packed_shape s = { PACKED_2BIT, 1, 64, 1 };

	for (unsigned b = 0; b < 256; b++) {
		uint8_t tile[PACKED_UNIT];
		int8_t codes[64];
		int threes = 0;

		memset(tile, 0x55, sizeof(tile)); /* zero weights */
		ck_assert(packed_tile_is_valid(&s, tile, 1));
		tile[15] = (uint8_t)b;
		packed_untile(&s, tile, 1, codes);
		for (unsigned p = 0; p < 4; p++) {
			int c = b >> 2 * p & 3;

			threes += c == 3;
			ck_assert_int_eq(codes[16 * p + 15], c == 3 ? 0 : c - 1);
		}
		ck_assert_int_eq(packed_tile_is_valid(&s, tile, 1), threes == 0);
	}
}
END_TEST

/* Weights where there are none would be added to every output, unseen. */
START_TEST(filling)
{
	static const struct packed_shape shapes[] = {
		{ PACKED_2BIT, 5, 100, 1 }, { PACKED_BASE3, 5, 100, 1 },
		{ PACKED_INT8, 5, 100, 1 }, { PACKED_F16, 5, 100, 1 },
		{ PACKED_BF16, 5, 100, 1 }, { PACKED_BASE3, 31, 128, 2 },
	};

	for (size_t i = 0; i < COUNT(shapes); i++) {
		const struct packed_shape *s = &shapes[i];
		struct matrix m = matrix_new(s->layout, s->rows, s->cols, s->groups);
		uint32_t span = spans[s->layout], width = s->cols / s->groups;
		uint32_t units = (width + span - 1) / span, checked = 0;

		matrix_pack(&m);
		for (uint32_t at = 0; at < m.bytes; at++) {
			uint32_t row = at / 16 % 32, unit = at / 512 % units,
				 used = width - unit * span;
			uint8_t was = m.packed[at];
			int fills;

			/* The byte's least column decides whether it holds any weight. */
			if (m.element == 2)
				fills = row >= s->rows || at % 16 / 2 >= used;
			else
				fills = row >= s->rows || at % 16 >= used;
			if (!fills)
				continue;
			checked++;
			/* A change that stays a valid byte: another digit, another number. */
			if (s->layout == PACKED_2BIT)
				m.packed[at] = was ^ 1; /* 0x55 to 0x54 */
			else if (s->layout == PACKED_BASE3)
				m.packed[at] = 0;
			else
				m.packed[at] = 1;
			ck_assert_msg(!packed_tile_is_valid(s, m.packed, s->rows), "%s: byte %u",
				      packed_name(s->layout), at);
			m.packed[at] = was;
		}
		ck_assert_uint_gt(checked, 0);
		ck_assert(packed_tile_is_valid(s, m.packed, s->rows));
		matrix_free(&m);
	}
	/* Within one byte: base 3 holds column 79 with columns 15, 31, 47 and 63. */
	for (uint32_t layout = PACKED_2BIT; layout <= PACKED_BASE3; layout++) {
		uint32_t span = spans[layout];
		struct matrix m = matrix_new(layout, 32, span - 1, 1), n;

		memset(m.plain, 0, (size_t)32 * (span - 1));
		matrix_pack(&m);
		n = matrix_new(layout, 32, span, 1);
		memset(n.plain, 0, (size_t)32 * span);
		n.plain[span - 1] = 1;
		matrix_pack(&n);
		ck_assert(packed_tile_is_valid(&n.s, n.packed, 32));
		ck_assert(packed_tile_is_valid(&m.s, m.packed, 32));
		ck_assert(!packed_tile_is_valid(&m.s, n.packed, 32));
		matrix_free(&m);
		matrix_free(&n);
	}
}
END_TEST

/* One NaN in an embedding ends each request that meets the token; the file shows it already. */
START_TEST(halves)
{
	for (uint32_t layout = PACKED_F16; layout <= PACKED_BF16; layout++) {
		struct packed_shape s = { layout, 32, 8, 1 };
		uint16_t exponent = layout == PACKED_F16 ? 0x7c00 : 0x7f80;
		uint8_t tile[PACKED_UNIT] = { 0 };

		for (uint32_t h = 0; h < 65536; h++) {
			uint16_t value = (uint16_t)h;

			memcpy(tile + 14, &value, 2);
			if (packed_tile_is_valid(&s, tile, 32) != ((h & exponent) != exponent))
				ck_abort_msg("%s %04x", packed_name(layout), h);
		}
	}
}
END_TEST

/* A damaged file's bytes, whatever they are, come out as weights that can be. */
START_TEST(any_bytes)
{
	for (unsigned i = 0; i < scaled(2000); i++) {
		struct packed_shape s = { 1 + i % 2, 1 + i % 32, 64 * (1 + i % 3), 1 };
		uint8_t tile[3 * PACKED_UNIT];
		int8_t codes[32 * 192];

		for (size_t b = 0; b < sizeof(tile); b++)
			tile[b] = (uint8_t)tiny_random(&seed);
		ck_assert_uint_le(packed_bytes(&s), sizeof(tile));
		packed_untile(&s, tile, s.rows, codes);
		for (uint32_t c = 0; c < s.rows * s.cols; c++)
			if (codes[c] < -1 || codes[c] > 1)
				ck_abort_msg("tile %u, weight %u is %d", i, c, codes[c]);
		ck_assert(!packed_tile_is_valid(&s, tile, s.rows));
	}
}
END_TEST

/* Each refusal says its own thing. */
START_TEST(shapes)
{
	static const struct {
		struct packed_shape s;
		const char *says;
	} wrong[] = {
		{ { 0, 1, 1, 1 }, "layout" },
		{ { PACKED_COUNT, 1, 1, 1 }, "layout" },
		{ { PACKED_2BIT, 0, 1, 1 }, "no rows" },
		{ { PACKED_2BIT, PACKED_ROWS_MAX + 1, 1, 1 }, "16777216" },
		{ { PACKED_2BIT, 1, 0, 1 }, "no columns" },
		{ { PACKED_2BIT, 1, PACKED_COLS_MAX + 1, 1 }, "1048576" },
		{ { PACKED_2BIT, 1, 64, 0 }, "no column group" },
		{ { PACKED_2BIT, 1, 64 * 257, 257 }, "256" },
		{ { PACKED_INT8, 1, 128, 2 }, "only ternary" },
		{ { PACKED_F16, 1, 128, 2 }, "only ternary" },
		{ { PACKED_2BIT, 1, 96, 2 }, "multiples of 64" },
		{ { PACKED_BASE3, 1, 160, 2 }, "multiples of 64" },
	};
	struct packed_shape most = { PACKED_F16, PACKED_ROWS_MAX, PACKED_COLS_MAX, 1 };
	struct packed_shape fine = { PACKED_BASE3, 33, 128, 2 };

	for (size_t i = 0; i < COUNT(wrong); i++) {
		const char *said = packed_check(&wrong[i].s);

		ck_assert_msg(said && strstr(said, wrong[i].says), "%zu: %s", i, said);
		for (size_t j = 0; j < i; j++)
			ck_assert(!strcmp(packed_check(&wrong[j].s), said) ==
				  !strcmp(wrong[j].says, wrong[i].says));
	}
	ck_assert_ptr_null(packed_check(&most));
	ck_assert_uint_eq(packed_bytes(&most), (uint64_t)PACKED_ROWS_MAX * PACKED_COLS_MAX * 2);
	ck_assert_ptr_null(packed_check(&fine));
	ck_assert_uint_eq(packed_tiles(&fine), 2);
	ck_assert_uint_eq(packed_units(&fine), 2);
	ck_assert_uint_eq(packed_bytes(&fine), 2 * 2 * 512);
	ck_assert_uint_eq(packed_n_scales(&fine), 2 * 64);
	ck_assert_uint_eq(packed_n_scales(&most), 0);
	ck_assert_str_eq(packed_name(PACKED_BASE3), "base3");
	ck_assert_str_eq(packed_name(99), "unknown");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("packed");
	TCase *t = tcase_create("packed");
	SRunner *r;
	int failed;

	seed = core_seed("packed");
	tcase_set_timeout(t, 120);
	tcase_add_test(t, places);
	tcase_add_test(t, round_trips);
	tcase_add_test(t, base3_bytes);
	tcase_add_test(t, two_bit_bytes);
	tcase_add_test(t, filling);
	tcase_add_test(t, halves);
	tcase_add_test(t, any_bytes);
	tcase_add_test(t, shapes);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

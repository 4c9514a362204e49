/* SPDX-License-Identifier: MIT */
/*
 * Float matrices that are ternary: if a matrix that is none passed, a model would be served that is
 * not the one that was trained; if one that is were refused, or took more groups than it needs,
 * TriLM could not be served, or slower than it can.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_tiny.h"
#include "packed.h"
#include "source.h"

static char why[512];

/* What the finder says of rows fed in pieces of `step`. */
static uint32_t groups_of(const float *f, uint32_t rows, uint32_t cols, uint32_t step)
{
	struct ternary_finder *t = ternary_finder_new(rows, cols);
	uint32_t groups;

	ck_assert_ptr_nonnull(t);
	for (uint32_t r = 0; r < rows; r += step)
		if (ternary_finder_rows(t, f + (size_t)r * cols,
					rows - r < step ? rows - r : step)) {
			ck_assert_uint_eq(ternary_finder_groups(t, why, sizeof(why)), 0);
			break;
		}
	groups = ternary_finder_groups(t, why, sizeof(why));
	ternary_finder_free(t);
	return groups;
}

/* codes times scales[row][group]. */
static float *made(uint32_t rows, uint32_t cols, uint32_t groups, const float *scales,
		   uint64_t seed)
{
	float *f = malloc((size_t)rows * cols * sizeof(*f));

	ck_assert_ptr_nonnull(f);
	for (uint32_t r = 0; r < rows; r++)
		for (uint32_t c = 0; c < cols; c++) {
			float code = (float)(tiny_random(&seed) % 3) - 1;

			/* the first of each group is there, so that a group has its scale */
			if (c % (cols / groups) == 0)
				code = 1;
			f[(size_t)r * cols + c] = code * scales[r * groups + c / (cols / groups)];
		}
	return f;
}

/* Each number of groups that can be is found, no larger one, and codes and scales come back. */
START_TEST(finds_the_least_groups)
{
	static const uint32_t shapes[][2] = {
		{ 128, 1 }, { 128, 2 }, { 384, 1 },  { 384, 2 },     { 384, 3 },
		{ 384, 6 }, { 960, 5 }, { 960, 15 }, { 16384, 256 }, { 16384, 128 },
		{ 100, 1 }, { 1, 1 },	{ 63, 1 },   { 65, 1 },
	};
	uint64_t seed = 5;

	for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
		uint32_t cols = shapes[i][0], groups = shapes[i][1], rows = 7;
		float scales[7 * 256], again[7 * 256];
		int8_t *codes = malloc((size_t)rows * cols);
		float *f;

		for (uint32_t k = 0; k < rows * groups; k++)
			scales[k] = ldexpf((float)(1 + tiny_random(&seed) % 4096), -(int)(k % 30));
		f = made(rows, cols, groups, scales, seed);
		for (uint32_t step = 1; step <= rows; step += 3)
			ck_assert_uint_eq(groups_of(f, rows, cols, step), groups);
		ck_assert_int_eq(ternary_split(f, rows, cols, groups, codes, again), 0);
		ck_assert_mem_eq(scales, again, rows * groups * sizeof(float));
		for (size_t k = 0; k < (size_t)rows * cols; k++) {
			float s = again[k / cols * groups + k % cols / (cols / groups)];

			ck_assert_msg(f[k] == (float)codes[k] * s, "%zu", k);
		}
		ck_assert_int_eq(ternary_split(f, rows, cols, groups, codes, NULL), 0);
		free(codes);
		free(f);
	}
}
END_TEST

/*
 * Groups of one row need not nest in those of another: the least that explains both is their
 * multiple.
 */
START_TEST(rows_that_want_different_groups)
{
	float f[2][384], by_two[2] = { 1, 2 }, by_three[3] = { 1, 2, 3 };

	for (uint32_t c = 0; c < 384; c++) {
		f[0][c] = by_two[c / 192];
		f[1][c] = by_three[c / 128];
	}
	ck_assert_uint_eq(groups_of(f[0], 2, 384, 1), 6);
	ck_assert_uint_eq(groups_of(f[0], 1, 384, 1), 2);
	ck_assert_uint_eq(groups_of(f[1], 1, 384, 1), 3);
}
END_TEST

/* Zeros fit everything: rows, groups, minus zero; the scale of nothing is 0. */
START_TEST(zeros_fit_everything)
{
	float f[3][192], scales[9];
	int8_t codes[3][192];

	memset(f, 0, sizeof(f));
	ck_assert_uint_eq(groups_of(f[0], 3, 192, 3), 1);
	f[0][5] = -0.0f;
	f[1][70] = 3;
	f[1][190] = -3;
	f[2][100] = 0.5f;
	ck_assert_uint_eq(groups_of(f[0], 3, 192, 3), 1);
	ck_assert_int_eq(ternary_split(f[0], 3, 192, 3, codes[0], scales), 0);
	ck_assert(scales[0] == 0 && !signbit(scales[0]));
	ck_assert(scales[3] == 0 && scales[4] == 3 && scales[5] == 3);
	ck_assert_int_eq(codes[0][5], 0);
	ck_assert_int_eq(codes[1][190], -1);
}
END_TEST

/* What is none, with the very figures. */
START_TEST(refuses_with_figures)
{
	static float f[4][256];
	int8_t codes[3 * 256];

	for (int i = 0; i < 4 * 256; i++)
		f[i / 256][i % 256] = i % 256 % 3 == 0 ? 0.5f : i % 256 % 3 == 1 ? -0.5f : 0;

	/* one value off by the last bit, in the last place of the last row */
	f[3][254] = nextafterf(0.5f, 1);
	ck_assert_uint_eq(groups_of(f[0], 4, 256, 2), 0);
	ck_assert_str_eq(
		why, "row 3, column 254 holds 0.50000006, and column 192 holds 0.5: not one "
		     "magnitude a row, nor one for each of equal column groups of a multiple of 64 "
		     "columns (256 at most)");
	ck_assert_int_eq(ternary_split(f[3], 1, 256, 1, codes, NULL), -EPROTO);
	ck_assert_int_eq(ternary_split(f[3], 1, 256, 4, codes, NULL), -EPROTO);
	ck_assert_int_eq(ternary_split(f[0], 3, 256, 4, codes, NULL), 0);

	/* a subnormal beside a normal value */
	f[3][254] = 0;
	f[1][66] = 0x1p-140f;
	ck_assert_uint_eq(groups_of(f[0], 4, 256, 4), 0);
	ck_assert_msg(!strncmp(why, "row 1, column 66 holds", 22), "%s", why);

	/* groups that would have to be narrower than 64, or of a width that is no multiple */
	f[1][66] = 0;
	for (int i = 32; i < 64; i++)
		f[2][i] *= 2;
	ck_assert_uint_eq(groups_of(f[0], 4, 256, 1), 0);
	ck_assert_msg(!strncmp(why, "row 2, column 33 holds", 22) ||
		      !strncmp(why, "row 2, column 32 holds", 22), "%s", why);

	/* not finite */
	for (int i = 32; i < 64; i++)
		f[2][i] /= 2;
	f[0][9] = INFINITY;
	ck_assert_uint_eq(groups_of(f[0], 4, 256, 1), 0);
	ck_assert_msg(strstr(why, "row 0, column 9 holds inf"), "%s", why);
	f[0][9] = -NAN;
	ck_assert_uint_eq(groups_of(f[0], 4, 256, 1), 0);
	ck_assert_msg(strstr(why, "column 9") && strstr(why, "nan"), "%s", why);
	ck_assert_int_eq(ternary_split(f[0], 1, 256, 1, codes, NULL), -EPROTO);

	/* two magnitudes in a width that cannot be cut */
	float g[100] = { 1, 0, 2 };

	ck_assert_uint_eq(groups_of(g, 1, 100, 1), 0);
	ck_assert_msg(!strncmp(why, "row 0, column 2 holds 2, and column 0 holds 1", 45), "%s",
		      why);
}
END_TEST

/* One change anywhere in a ternary matrix is seen, whatever it is. */
START_TEST(sees_every_change)
{
	const char *text = getenv("ONEBIT_SEED");
	uint64_t seed = text && *text ? strtoull(text, NULL, 0) : 20260727, state = seed;

	fprintf(stderr, "ternary_find: ONEBIT_SEED=%llu\n", (unsigned long long)seed);
	for (int round = 0; round < 300; round++) {
		uint32_t rows = 1 + (uint32_t)(tiny_random(&state) % 5);
		uint32_t cols = round % 2 ? 192 : 1 + (uint32_t)(tiny_random(&state) % 200);
		uint32_t groups = round % 2 ? 3 : 1;
		float scales[15], save;
		int8_t codes[5 * 200];
		float *f, *at;

		for (int i = 0; i < 15; i++)
			scales[i] = 1 + (float)(tiny_random(&state) % 1000) / 1000;
		f = made(rows, cols, groups, scales, state);
		at = &f[tiny_random(&state) % ((uint64_t)rows * cols)];
		save = *at;
		ck_assert_int_eq(ternary_split(f, rows, cols, groups, codes, NULL), 0);
		*at = 0.75f;
		/* a group that has but this one value not 0 is ternary with it too */
		if (cols / groups > 1 && (size_t)(at - f) % (cols / groups)) {
			ck_assert_int_eq(ternary_split(f, rows, cols, groups, codes, NULL),
					 -EPROTO);
			ck_assert_uint_eq(groups_of(f, rows, cols, 1), 0);
		}
		*at = save;
		ck_assert_uint_le(groups_of(f, rows, cols, 2), groups);
		ck_assert_uint_ne(groups_of(f, rows, cols, 2), 0);
		free(f);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ternary_find");
	TCase *t = tcase_create("finder");
	SRunner *r;
	int failed;

	tcase_add_test(t, finds_the_least_groups);
	tcase_add_test(t, rows_that_want_different_groups);
	tcase_add_test(t, zeros_fit_everything);
	tcase_add_test(t, refuses_with_figures);
	tcase_add_test(t, sees_every_change);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

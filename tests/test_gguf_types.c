/* SPDX-License-Identifier: MIT */
/*
 * Tensor types of GGUF: a plane or digit in the wrong order gives a model of the right size that
 * speaks nonsense, so every column of every type is compared with what another hand has packed.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "gguf_types.h"
#include "lib_tiny.h"
#include "lib_write_gguf.h"
#undef fail /* of check.h */
#include "mapped.h"

static uint64_t seed;
static char why[512];

static void set_up(void)
{
	const char *s = getenv("ONEBIT_SEED");

	seed = s ? strtoull(s, NULL, 0) : 0x6775666c;
	fprintf(stderr, "seed: ONEBIT_SEED=%#" PRIx64 "\n", seed);
	*why = 0;
}

static const struct {
	enum gguf_kind kind;
	uint32_t type;
} ternary[] = {
	{ GGUF_KIND_TQ1_0, WRITE_TQ1_0 },   { GGUF_KIND_TQ2_0, WRITE_TQ2_0 },
	{ GGUF_KIND_I2_S, WRITE_I2_S },	    { GGUF_KIND_IQ1_BN, WRITE_IQ1_BN },
	{ GGUF_KIND_IQ2_BN, WRITE_IQ2_BN },
}, floats[] = {
	{ GGUF_KIND_F32, WRITE_F32 }, { GGUF_KIND_F16, WRITE_F16 }, { GGUF_KIND_BF16, WRITE_BF16 },
	{ GGUF_KIND_Q8_0, WRITE_Q8_0 }, { GGUF_KIND_Q6_K, WRITE_Q6_K },
};

/* A column that comes out at another's place, or a scale that is read elsewhere than it stands. */
START_TEST(codes_come_back)
{
	enum gguf_kind kind = ternary[_i].kind;
	uint64_t state = seed + (uint64_t)_i;

	for (int round = 0; round < 200; round++) {
		uint32_t cols = 256 * (1 + (uint32_t)(tiny_random(&state) % 5));
		int8_t codes[256 * 5], got[256 * 5];
		uint8_t row[256 * 5];
		float scale = (float)(64 + tiny_random(&state) % 64) / 128.0f;
		size_t len;

		for (uint32_t i = 0; i < cols; i++)
			codes[i] = (int8_t)(tiny_random(&state) % 3) - 1;
		len = write_gguf_row(ternary[_i].type, codes, &scale, cols, 1, row);
		ck_assert_uint_eq(len, gguf_row_bytes(kind, cols));
		ck_assert(gguf_row_codes(kind, row, cols, got));
		ck_assert_mem_eq(got, codes, cols);
		if (kind == GGUF_KIND_IQ1_BN || kind == GGUF_KIND_IQ2_BN)
			ck_assert_float_eq(gguf_row_scale(kind, row), scale);
		for (uint32_t b = 0; b < cols / 256 && kind <= GGUF_KIND_TQ2_0; b++)
			ck_assert_uint_eq(gguf_block_scale(kind, row, b), write_half(scale));
	}
}
END_TEST

/* One column set, all others not: says which one is wrong. */
START_TEST(each_column_alone)
{
	enum gguf_kind kind = ternary[_i].kind;
	float scale = 1;

	for (uint32_t at = 0; at < 256; at++) {
		int8_t codes[256] = { 0 }, got[256];
		uint8_t row[600];

		codes[at] = at % 2 ? 1 : -1;
		write_gguf_row(ternary[_i].type, codes, &scale, 256, 1, row);
		ck_assert(gguf_row_codes(kind, row, 256, got));
		for (uint32_t i = 0; i < 256; i++)
			ck_assert_msg(got[i] == codes[i], "%s: column %u set, column %u is %d",
				      gguf_kind_name(kind), at, i, got[i]);
	}
}
END_TEST

/* Code 3 would be +2; a byte that five digits do not make would be taken for another number. */
START_TEST(codes_that_cannot_be)
{
	enum gguf_kind kind = ternary[_i].kind;
	uint32_t n = (uint32_t)gguf_row_bytes(kind, 256), head = kind == GGUF_KIND_IQ1_BN ? 2 :
		     kind == GGUF_KIND_IQ2_BN ? 4 : 0, tail = kind <= GGUF_KIND_TQ2_0 ? 2 : 0;
	int8_t codes[256] = { 0 }, got[256];
	bool possible[256] = { false };
	uint8_t row[600];
	float scale = 1;

	if (kind == GGUF_KIND_TQ1_0 || kind == GGUF_KIND_IQ1_BN)
		for (int i = 0; i < 243; i++)
			possible[(i * 256 + 242) / 243] = true;
	else
		for (int v = 0; v < 256; v++)
			possible[v] = (v & 3) < 3 && (v >> 2 & 3) < 3 && (v >> 4 & 3) < 3 &&
				      v >> 6 < 3;
	write_gguf_row(ternary[_i].type, codes, &scale, 256, 1, row);
	for (uint32_t at = head; at < n - tail; at++) {
		uint8_t was = row[at];

		for (int v = 0; v < 256; v++) {
			bool right;

			row[at] = (uint8_t)v;
			right = gguf_row_codes(kind, row, 256, got) == possible[v];
			for (int i = 0; i < 256 && possible[v]; i++)
				right = right && got[i] >= -1 && got[i] <= 1;
			ck_assert_msg(right, "%s: byte %u = %d", gguf_kind_name(kind), at, v);
		}
		row[at] = was;
	}
}
END_TEST

START_TEST(floats_come_back)
{
	uint64_t state = seed;
	float v[1024], got[1024];
	uint8_t row[4096];

	for (int i = 0; i < 1024; i++)
		v[i] = (float)((int)(tiny_random(&state) % 60) - 30) / 32.0f;
	ck_assert_uint_eq(write_gguf_floats(floats[_i].type, v, 1024, row),
			  gguf_row_bytes(floats[_i].kind, 1024));
	ck_assert(gguf_row_floats(floats[_i].kind, row, 1024, got));
	for (int i = 0; i < 1024; i++)
		if (floats[_i].kind == GGUF_KIND_Q8_0)
			ck_assert_float_eq_tol(got[i], v[i], 1.0f / 127);
		else
			ck_assert_msg(got[i] == v[i], "column %d: %g for %g", i, (double)got[i],
				      (double)v[i]);
}
END_TEST

/* Subnormal halves decode exactly; NaN and infinity are told of, wherever in a row they stand. */
START_TEST(halves_of_all_sorts)
{
	for (uint32_t h = 0; h < 65536; h++) {
		uint8_t row[128] = { 0 };
		float got[32], want = half_to_float((uint16_t)h);
		bool finite, right;

		row[62] = (uint8_t)h;
		row[63] = (uint8_t)(h >> 8);
		finite = gguf_row_floats(GGUF_KIND_F16, row, 32, got);
		right = finite == ((h & 0x7c00) != 0x7c00) &&
			(!finite || (got[31] == want && signbit(got[31]) == signbit(want)));
		right = right &&
			gguf_row_floats(GGUF_KIND_BF16, row, 32, got) == ((h & 0x7f80) != 0x7f80);
		memset(row, 0, sizeof(row));
		row[126] = (uint8_t)h;
		row[127] = (uint8_t)(h >> 8);
		right = right &&
			gguf_row_floats(GGUF_KIND_F32, row, 32, got) == ((h & 0x7f80) != 0x7f80);
		ck_assert_msg(right, "%#x", h);
	}
}
END_TEST

/* What we write is what the other hand writes. */
START_TEST(blocks_as_written)
{
	uint64_t state = seed;

	for (int round = 0; round < 100; round++) {
		int8_t codes[256];
		uint8_t want[66], got[66];
		float scale = 0.75f;

		for (int i = 0; i < 256; i++)
			codes[i] = (int8_t)(tiny_random(&state) % 3) - 1;
		write_gguf_row(WRITE_TQ2_0, codes, &scale, 256, 1, want);
		gguf_block_tq2_0(codes, write_half(scale), got);
		ck_assert_mem_eq(got, want, 66);
		gguf_block_q8_0(codes, 0x1234, got);
		ck_assert(got[0] == 0x34 && got[1] == 0x12 && !memcmp(got + 2, codes, 32));
	}
}
END_TEST

static struct gguf_tensor tensor(uint32_t type, uint64_t rows, uint64_t cols, uint64_t room)
{
	return (struct gguf_tensor){ .name = { "w", 1 }, .type = type, .n_dims = 2, .rows = rows,
				     .cols = cols, .room = room };
}

/* The size decides: one number is different types in different programs. */
static const struct {
	uint32_t type;
	uint64_t rows, cols, room;
	int err;
	const char *why;
} sizes[] = {
	{ 36, 4, 256, 4 * 64 + 32, 0, "I2_S" },
	{ 35, 4, 256, 4 * 66 + 24, 0, "TQ2_0" },
	{ 34, 4, 256, 4 * 54 + 8, 0, "TQ1_0" },
	{ 134, 16, 64, 16 * 15 + 16, 0, "IQ1_BN" },
	{ 135, 8, 64, 160, 0, "IQ2_BN" },
	{ 36, 4, 256, 4 * 64 + 32 * 4, -EPROTO,
	  "tensor w has 384 bytes where I2_S has 288: damaged, or garbled by bitnet.cpp's tool, as "
	  "it does with "
	  "several threads; quantise again with one" },
	{ 36, 4, 256, 576, -ENOTSUP,
	  "tensor w is IQ4_NL_4_4, which is not read; read are TQ1_0, TQ2_0, I2_S, "
	  "IQ1_BN, IQ2_BN, F32, F16, BF16, Q8_0 and, for embeddings, Q6_K" },
	{ 36, 4, 192, 224, -ENOTSUP,
	  "tensor w has 192 columns, no multiple of the 128 that I2_S (type 36) needs" },
	{ 36, 4, 256, 256, -EPROTO,
	  "tensor w overlaps the next: it has room for 256 bytes and I2_S (type 36) of "
	  "4 x 256 has 288" },
	{ 35, 4, 256, 320, -EPROTO,
	  "tensor w has 320 bytes where TQ2_0 (type 35) of 4 x 256 has 264: the file is "
	  "damaged, or of a program that gave this number to another type" },
	{ 22, 4, 256, 352, -ENOTSUP,
	  "tensor w is IQ2_S: its values are of magnitude 8, 25 and 43 and never "
	  "zero, so it cannot hold a ternary tensor: what was ternary is lost. Get the model in "
	  "another type" },
	{ 38, 4, 256, 288, -ENOTSUP,
	  "tensor w is TL1: bitnet.cpp's tables for one ARM kernel, arranged for its "
	  "build options, which the file does not say. Get the model as I2_S" },
	{ 38, 4, 256, 576, -ENOTSUP,
	  "tensor w is IQ4_NL_8_8, which is not read; read are TQ1_0, TQ2_0, I2_S, "
	  "IQ1_BN, IQ2_BN, F32, F16, BF16, Q8_0 and, for embeddings, Q6_K" },
	{ 39, 4, 256, 288, -ENOTSUP,
	  "tensor w is TL2: bitnet.cpp's tables for one x86 kernel, arranged for its "
	  "build options, which the file does not say. Get the model as I2_S" },
	{ 39, 4, 256, 544, -ENOTSUP,
	  "tensor w is MXFP4, which is not read; read are TQ1_0, TQ2_0, I2_S, "
	  "IQ1_BN, IQ2_BN, F32, F16, BF16, Q8_0 and, for embeddings, Q6_K" },
	{ 41, 4, 256, 160, -ENOTSUP,
	  "tensor w is Q1_0 (Bonsai's Q1_0_g128): its weights are two-valued, "
	  "without zero; it is not supported" },
	{ 42, 4, 256, 288, -ENOTSUP,
	  "tensor w is TQ2_0_g128 (Bonsai's): its scales are one to 128 columns of a "
	  "Qwen3 model; it is not supported" },
	{ 12, 4, 256, 576, -ENOTSUP,
	  "tensor w is Q4_K, which is not read; read are TQ1_0, TQ2_0, I2_S, IQ1_BN, "
	  "IQ2_BN, F32, F16, BF16, Q8_0 and, for embeddings, Q6_K" },
	{ 77, 4, 256, 576, -ENOTSUP,
	  "tensor w has type 77, which is not known; get the model as TQ2_0, I2_S or IQ2_BN" },
	{ 135, 8, 64, 192, -EPROTO,
	  "tensor w has 192 bytes where IQ2_BN (type 135) of 8 x 64 has 160: the file "
	  "is damaged, or of a program that gave this number to another type" },
};

START_TEST(the_size_decides)
{
	struct gguf_tensor t =
		tensor(sizes[_i].type, sizes[_i].rows, sizes[_i].cols, sizes[_i].room);
	enum gguf_kind kind = GGUF_KINDS;
	int err = gguf_kind(&t, 32, &kind, why, sizeof(why));

	ck_assert_msg(err == sizes[_i].err, "%d: %s", err, why);
	ck_assert_str_eq(err ? why : gguf_kind_name(kind), sizes[_i].why);
}
END_TEST

/* The last tensor need not be filled up to the alignment, and is cut off where it is short. */
START_TEST(the_last_tensor)
{
	struct gguf_tensor t = tensor(36, 4, 100 * 128, 12832);
	enum gguf_kind kind;

	t.last = true;
	ck_assert_int_eq(gguf_kind(&t, 4096, &kind, why, sizeof(why)), 0);
	t.room = 12831;
	ck_assert_int_eq(gguf_kind(&t, 4096, &kind, why, sizeof(why)), -EPROTO);
	ck_assert_str_eq(why, "tensor w is cut off: the file has 12831 of its 12832 bytes (I2_S, 4 "
			      "x 12800)");
	t.room = 16385;
	ck_assert_int_eq(gguf_kind(&t, 4096, &kind, why, sizeof(why)), -EPROTO);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("gguf_types");
	TCase *t = tcase_create("types");
	SRunner *runner;
	int failed;

	tcase_add_checked_fixture(t, set_up, NULL);
	tcase_add_loop_test(t, codes_come_back, 0, 5);
	tcase_add_loop_test(t, each_column_alone, 0, 5);
	tcase_add_loop_test(t, codes_that_cannot_be, 0, 5);
	tcase_add_loop_test(t, floats_come_back, 0, 5);
	tcase_add_test(t, halves_of_all_sorts);
	tcase_add_test(t, blocks_as_written);
	tcase_add_loop_test(t, the_size_decides, 0, sizeof(sizes) / sizeof(sizes[0]));
	tcase_add_test(t, the_last_tensor);
	suite_add_tcase(suite, t);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? 1 : 0;
}

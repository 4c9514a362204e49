/* SPDX-License-Identifier: MIT */
/*
 * Input files and numbers in them. A cursor that left its file would read another's memory; a half that
 * is rounded wrongly would change a model on its way.
 */
#include <check.h>
#undef fail /* an old name in it; mapped.h has its own */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "mapped.h"

static char why[512], sentence[600], path[300];

static void in_tmp(const char *name)
{
	snprintf(path, sizeof(path), "%s/%s", getenv("TMPDIR"), name);
}

static void put(const char *name, const void *data, size_t n)
{
	int fd;

	in_tmp(name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, data, n), (ssize_t)n);
	close(fd);
}

/* What is no file must be refused at once: a pipe would make the tool wait for ever. */
START_TEST(what_is_no_file_is_refused)
{
	struct mapped m = { 0 };

	in_tmp("none");
	ck_assert_int_eq(mapped_open(path, &m, why, sizeof(why)), -ENOENT);
	snprintf(sentence, sizeof(sentence), "%s: cannot be opened: No such file or directory", path);
	ck_assert_str_eq(why, sentence);
	ck_assert_int_eq(mapped_open(getenv("TMPDIR"), &m, why, sizeof(why)), -EISDIR);
	snprintf(sentence, sizeof(sentence), "%s: is a folder; name a file in it", getenv("TMPDIR"));
	ck_assert_str_eq(why, sentence);
	put("empty", "", 0);
	ck_assert_int_eq(mapped_open(path, &m, why, sizeof(why)), -EPROTO);
	snprintf(sentence, sizeof(sentence), "%s: the file is empty", path);
	ck_assert_str_eq(why, sentence);
	in_tmp("pipe");
	ck_assert_int_eq(mkfifo(path, 0600), 0);
	ck_assert_int_eq(mapped_open(path, &m, why, sizeof(why)), -EINVAL);
	snprintf(sentence, sizeof(sentence), "%s: is not a regular file, so it cannot be mapped; copy its "
		 "content into one", path);
	ck_assert_str_eq(why, sentence);
	ck_assert_ptr_null(m.data);
	mapped_close(&m);
}
END_TEST

/* Forgetting is about pages, not about content: a second pass must read the same. */
START_TEST(forgetting_loses_nothing)
{
	size_t n = 5 * 4096 + 17;
	uint8_t *data = malloc(n);
	uint64_t state = 1;
	struct mapped m;

	ck_assert(data);
	for (size_t i = 0; i < n; i++)
		data[i] = (uint8_t)tiny_random(&state);
	put("file", data, n);
	ck_assert_int_eq(mapped_open(path, &m, why, sizeof(why)), 0);
	ck_assert_uint_eq(m.bytes, n);
	ck_assert_str_eq(m.path, path);
	for (int i = 0; i < 200; i++) {
		mapped_forget(&m, tiny_random(&state) % (n + 4096), tiny_random(&state) % n);
		ck_assert_int_eq(memcmp(m.data, data, n), 0);
	}
	mapped_forget(&m, n - 1, UINT64_MAX);
	mapped_forget(&m, UINT64_MAX, UINT64_MAX);
	ck_assert_int_eq(memcmp(m.data, data, n), 0);
	mapped_close(&m);
	ck_assert_ptr_null(m.data);
	free(data);
}
END_TEST

/* Values lie little-endian and unaligned; what does not fit stays bad, whatever is asked next. */
START_TEST(cursor_stays_inside)
{
	static const uint8_t bytes[] = { 1, 2, 3, 4, 5, 6, 7, 0x80, 9, 10, 11, 12, 13, 14, 15,
					 0, 0, 0xc0, 0x3f, 0, 0, 0, 0, 0, 0, 4, 0xc0, 0xff };
	struct cursor c = { .data = bytes, .bytes = sizeof(bytes) };

	ck_assert_uint_eq(cursor_u8(&c), 1);
	ck_assert_uint_eq(cursor_u16(&c), 0x0302);
	ck_assert_uint_eq(cursor_u32(&c), 0x07060504);
	ck_assert_uint_eq(cursor_u64(&c), 0x0f0e0d0c0b0a0980);
	ck_assert(cursor_f32(&c) == 1.5f);
	ck_assert(cursor_f64(&c) == -2.5);
	ck_assert_uint_eq(c.pos, 27);
	ck_assert(!c.bad);
	ck_assert_ptr_eq(cursor_bytes(&c, 0), bytes + 27);
	ck_assert_uint_eq(cursor_u16(&c), 0);
	ck_assert(c.bad);
	ck_assert_uint_eq(cursor_u8(&c), 0);
	ck_assert_ptr_null(cursor_bytes(&c, 0));
	ck_assert(c.bad);

	c = (struct cursor){ .data = bytes, .bytes = sizeof(bytes), .pos = 1 };
	ck_assert_ptr_null(cursor_bytes(&c, UINT64_MAX));
	ck_assert(c.bad);
	c = (struct cursor){ .data = bytes, .bytes = sizeof(bytes), .pos = UINT64_MAX };
	ck_assert_uint_eq(cursor_u8(&c), 0);
	ck_assert(c.bad);
}
END_TEST

/* The value of a half by its definition. */
static double half_value(unsigned h)
{
	int e = h >> 10 & 31;
	double m = h & 1023;
	double v = e ? ldexp(1024 + m, e - 25) : ldexp(m, -24);

	return h & 0x8000 ? -v : v;
}

/* Each half, subnormals too, must be its value, and come back as itself. */
START_TEST(every_half_is_exact)
{
	for (unsigned h = 0; h < 0x10000; h++) {
		float f = half_to_float((uint16_t)h);

		if ((h & 0x7fff) > 0x7c00) {
			if (!isnan(f) || float_to_half(f) != (h | 0x200) || !signbit(f) != !(h & 0x8000))
				ck_abort_msg("NaN %04x", h);
			continue;
		}
		if ((h & 0x7fff) == 0x7c00 ? !isinf(f) : (double)f != half_value(h))
			ck_abort_msg("half %04x is %a", h, (double)f);
		if (!signbit(f) != !(h & 0x8000) || float_to_half(f) != h)
			ck_abort_msg("half %04x comes back as %04x", h, float_to_half(f));
	}
}
END_TEST

/* Between two halves the nearer one, in the middle the even one, and infinity from 65520 on. */
START_TEST(halves_round_to_even)
{
	for (unsigned h = 0; h < 0x7c00; h++) {
		double next = h == 0x7bff ? 65536 : half_value(h + 1);
		float middle = (float)((half_value(h) + next) / 2);

		if (float_to_half(middle) != (h & 1 ? h + 1 : h) ||
		    float_to_half(nextafterf(middle, 0)) != h ||
		    float_to_half(nextafterf(middle, INFINITY)) != h + 1 ||
		    float_to_half(-middle) != ((h & 1 ? h + 1 : h) | 0x8000))
			ck_abort_msg("around %04x", h);
	}
	ck_assert_uint_eq(float_to_half(3e38f), 0x7c00);
	ck_assert_uint_eq(float_to_half(-INFINITY), 0xfc00);
	ck_assert_uint_eq(float_to_half(0x1p-149f), 0);
}
END_TEST

/* The same of bfloat16, which is the upper half of a float. */
START_TEST(bf16_rounds_to_even)
{
	for (unsigned h = 0; h < 0x10000; h++) {
		float f = bf16_to_float((uint16_t)h);
		uint32_t u = h << 16;

		if (memcmp(&f, &u, sizeof(f)))
			ck_abort_msg("bf16 %04x", h);
		if ((h & 0x7fff) > 0x7f80) {
			if (float_to_bf16(f) != (h | 0x40))
				ck_abort_msg("NaN %04x", h);
			continue;
		}
		if (float_to_bf16(f) != h)
			ck_abort_msg("bf16 %04x comes back as %04x", h, float_to_bf16(f));
		if ((h & 0x7fff) == 0x7f80)
			continue;
		for (uint32_t low = 0x7fff; low <= 0x8001; low++) {
			uint32_t v = u | low;

			memcpy(&f, &v, sizeof(f));
			if (float_to_bf16(f) != (low < 0x8000 || (low == 0x8000 && !(h & 1)) ? h : h + 1))
				ck_abort_msg("above %04x", h);
		}
	}
}
END_TEST

/* Every reader ends with it: a lost errno or a torn sentence would be everywhere. */
START_TEST(fail_says_and_returns)
{
	char small[6];

	ck_assert_int_eq(fail(why, sizeof(why), -EPROTO, "%s %d", "x", 7), -EPROTO);
	ck_assert_str_eq(why, "x 7");
	ck_assert_int_eq(fail(small, sizeof(small), -EFBIG, "long sentence"), -EFBIG);
	ck_assert_str_eq(small, "long ");
	ck_assert_int_eq(fail(NULL, 0, -EIO, "nobody hears"), -EIO);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("mapped");
	TCase *t = tcase_create("mapped");
	SRunner *r;
	int failed;

	tmp_fixture(t);
	tcase_add_test(t, what_is_no_file_is_refused);
	tcase_add_test(t, forgetting_loses_nothing);
	tcase_add_test(t, cursor_stays_inside);
	tcase_add_test(t, every_half_is_exact);
	tcase_add_test(t, halves_round_to_even);
	tcase_add_test(t, bf16_rounds_to_even);
	tcase_add_test(t, fail_says_and_returns);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

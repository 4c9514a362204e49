/* SPDX-License-Identifier: MIT */
/*
 * What `onebit score` and `onebit ppl` make of their input: if an id were read wrongly, or a window
 * left a token out or counted one twice, the numbers would still look right.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cmd_input.c"
#include "cmd_verb.c"
#include "cmd_windows.c"
#include "lib_vocab.h"

static char why[200];

/* ---- ids ----------------------------------------------------------------------------------- */

/* Ids that are well apart are read in order, whatever stands between them; ends need nothing. */
START_TEST(ids_are_read)
{
	static const char text[] = "0,1 ,2\n\n3\t4\r\n4294967295,";
	static const uint32_t want[] = { 0, 1, 2, 3, 4, UINT32_MAX };
	static const size_t lines[] = { 1, 1, 1, 3, 3, 4 };
	uint32_t *ids;
	size_t n;

	ck_assert_msg(!input_ids(text, sizeof(text) - 1, &ids, &n, why, sizeof(why)), "%s", why);
	ck_assert_uint_eq(n, 6);
	ck_assert_mem_eq(ids, want, sizeof(want));
	free(ids);
	for (size_t i = 0; i < 6; i++)
		ck_assert_uint_eq(input_line(text, sizeof(text) - 1, i), lines[i]);
}
END_TEST

/* What is no id is taken for one, or is refused without its line. */
START_TEST(ids_are_refused)
{
	static const struct {
		const char *text;
		size_t len;
		const char *says;
	} bad[] = {
		{ "", 0, "no token id" },
		{ " ,\n", 3, "no token id" },
		{ "1 -1", 4, "line 1: '-1' is no token id" },
		{ "1\n2\n+3", 6, "line 3: '+3' is no token id" },
		{ "1,0x10", 6, "line 1: '0x10' is no token id" },
		{ "1;2", 3, "line 1: '1;2' is no token id" },
		{ "1.5", 3, "line 1: '1.5' is no token id" },
		{ "7\n4294967296", 12, "line 2: '4294967296' is larger than any" },
		{ "99999999999999999999999999", 26, "is larger than any" },
		{ "1 2\0 3", 6, "line 1: '2?' is no token id" },
		{ "\x89OBM\r\n\x1a\n", 8, "line 1: '?OBM' is no token id" },
		{ "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 32, "'aaaaaaaaaaaaaaaaaaaaaaaa'... is no" },
	};
	uint32_t *ids = NULL;
	size_t n;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ck_assert_int_eq(input_ids(bad[i].text, bad[i].len, &ids, &n, why, sizeof(why)),
				 -EILSEQ);
		ck_assert_msg(strstr(why, bad[i].says) != NULL, "\"%s\" where \"%s\" is to be said",
			      why, bad[i].says);
	}
	ck_assert_ptr_null(ids);
}
END_TEST

/* Ids written in any manner come back as others, or on other lines; bytes of chance are read beyond. */
START_TEST(ids_come_back)
{
	static const char between[] = " ,\n\t\r";
	uint64_t rng = test_seed("ids_come_back");

	for (uint64_t round = test_scaled(300); round; round--) {
		size_t n = 1 + test_random(&rng) % 3000, len = 0, got, line = 1;
		uint32_t *ids = malloc(n * sizeof(*ids)), *back;
		size_t *lines = malloc(n * sizeof(*lines));
		char *text = malloc(n * 16), *copy;

		for (size_t i = 0; i < n; i++) {
			ids[i] = (uint32_t)(test_random(&rng) >> test_random(&rng) % 32);
			lines[i] = line;
			len += (size_t)sprintf(text + len, "%u", ids[i]);
			for (uint64_t k = 1 + test_random(&rng) % 3; k; k--) {
				text[len] = between[test_random(&rng) % 5];
				line += text[len++] == '\n';
			}
		}
		/* A copy of the size needed, so that the sanitizer sees a byte too many. */
		copy = malloc(len);
		memcpy(copy, text, len);
		ck_assert_msg(!input_ids(copy, len, &back, &got, why, sizeof(why)), "%s", why);
		ck_assert_uint_eq(got, n);
		ck_assert_mem_eq(back, ids, n * sizeof(*ids));
		for (size_t i = 0; i < n; i += 1 + test_random(&rng) % 97)
			ck_assert_uint_eq(input_line(copy, len, i), lines[i]);
		free(back);
		for (size_t i = 0; i < len; i++)
			copy[i] = (char)test_random(&rng);
		if (!input_ids(copy, len, &back, &got, why, sizeof(why)))
			free(back);
		free(copy);
		free(text);
		free(lines);
		free(ids);
	}
}
END_TEST

/* A text that is cut or of another encoding goes to the daemon, or a good one does not. */
START_TEST(utf8_is_told)
{
	ck_assert_uint_eq(input_utf8("h\xc3\xa9 \xf0\x9f\x98\x80", 8), 8);
	ck_assert_uint_eq(input_utf8("", 0), 0);
	ck_assert_uint_eq(input_utf8("ab\xff", 3), 2);
	ck_assert_uint_eq(input_utf8("ab\xc3", 3), 2);
	ck_assert_uint_eq(input_utf8("\xed\xa0\x80", 3), 0);
}
END_TEST

/* ---- windows ------------------------------------------------------------------------------- */

/* Check's own assertions write a message each, which millions of them cannot afford. */
#define must(cond) \
	do { \
		if (!(cond)) \
			ck_abort_msg("%s: %zu tokens, window %zu, stride %zu, bos %d", #cond, n, \
				     size, stride, (int)bos); \
	} while (0)

/* One text by one protocol: each token once, in order, with the context that is promised. */
static void slide(size_t n, size_t size, size_t stride, enum windows_bos bos)
{
	struct windows w = { .n = n, .size = size, .stride = stride, .bos = bos };
	size_t next = bos == WINDOWS_BOS_NONE, count = 0; /* next: the token to be scored next */
	struct window at;

	while (windows_next(&w, &at)) {
		bool first = !count++;
		size_t begin = at.first + at.n - at.scored;

		must(at.bos == (bos == WINDOWS_BOS_EACH || (bos == WINDOWS_BOS_FIRST && first)));
		must(at.bos + at.n <= size);
		must(at.first + at.n <= n);
		must(begin == next || (n == 1 && !bos));
		next = at.first + at.n;
		if (first) {
			must(at.first == 0);
			continue;
		}
		must(at.scored <= stride);
		/* Nothing that would fit is left out, so there is the context that was promised. */
		must(at.first == 0 || at.bos + at.n == size);
		must(at.bos + begin - at.first >= size - stride);
	}
	must(next == n);
	must(windows_count(w) == count);
	must(n < size ? count == 1 : count > 1 || n == size);
}

/* A length or an overlap at an edge leaves a token out, or counts one twice. */
START_TEST(windows_cover)
{
	for (size_t size = 2; size <= 9; size++)
		for (size_t stride = 1; stride < size; stride++)
			for (size_t n = 1; n <= 40; n++)
				for (int bos = WINDOWS_BOS_NONE; bos <= WINDOWS_BOS_EACH; bos++)
					slide(n, size, stride, (enum windows_bos)bos);
}
END_TEST

/* The same for texts and windows of real sizes. */
START_TEST(windows_cover_long)
{
	uint64_t rng = test_seed("windows_cover_long");

	for (uint64_t round = test_scaled(300); round; round--) {
		size_t size = 2 + test_random(&rng) % 4095, stride = 1 + test_random(&rng) % (size - 1);

		slide(1 + test_random(&rng) % 500000, size, stride < 50 ? size - 1 : stride,
		      (enum windows_bos)(test_random(&rng) % 3));
	}
}
END_TEST

/* A text of one token that nothing stands before has nothing to score, and must not be counted. */
START_TEST(nothing_to_score)
{
	struct windows w = { .n = 1, .size = 8, .stride = 4 };
	struct window at;

	ck_assert(windows_next(&w, &at));
	ck_assert_uint_eq(at.scored, 0);
	ck_assert(!windows_next(&w, &at));
	w = (struct windows){ .n = 0, .size = 8, .stride = 4, .bos = WINDOWS_BOS_EACH };
	ck_assert(!windows_next(&w, &at));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("score");
	TCase *t = tcase_create("score");
	SRunner *r;
	int failed;

	tcase_add_test(t, ids_are_read);
	tcase_add_test(t, ids_are_refused);
	tcase_add_test(t, ids_come_back);
	tcase_add_test(t, utf8_is_told);
	tcase_add_test(t, windows_cover);
	tcase_add_test(t, windows_cover_long);
	tcase_add_test(t, nothing_to_score);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

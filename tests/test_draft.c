/* SPDX-License-Identifier: MIT */
/*
 * Guesses from the text itself. They change no answer; a wrong choice here makes answers slow, and a read
 * past an end would not be seen by them.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "draft.h"
#include "lib_vocab.h"

static uint64_t rng;
static uint32_t below(uint32_t n)
{
	return (uint32_t)((test_random(&rng) >> 32) * n >> 32);
}

/* The definition, place by place. */
static uint32_t slow(const uint32_t *t, uint32_t n, uint32_t max, uint32_t *out)
{
	uint32_t begin = n > DRAFT_WINDOW ? n - DRAFT_WINDOW : 0, best = 1, at = 0;

	for (uint32_t end = begin + 1; end < n; end++) {
		uint32_t len = 0;

		while (len < DRAFT_MATCH && len < end - begin && t[end - 1 - len] == t[n - 1 - len])
			len++;
		if (len >= 2 && len >= best) {
			best = len;
			at = end;
		}
	}
	if (best < 2)
		return 0;
	for (uint32_t i = 0; i < max; i++)
		out[i] = t[at + i % (n - at)];
	return max;
}

/* On texts of few words, of a phrase that comes again, and of both: the definition's guess. */
START_TEST(against_the_definition)
{
	rng = test_seed("draft");
	for (uint64_t round = test_scaled(20000); round; round--) {
		uint32_t n = below(round % 200 ? 200 : 6000), words = 1 + below(6), period = 1 + below(40);
		uint32_t max = below(DRAFT_MAX + 1), got, want, a[DRAFT_MAX], b[DRAFT_MAX];
		uint32_t *t = malloc((n + !n) * sizeof(*t));

		ck_assert_ptr_nonnull(t);
		for (uint32_t i = 0; i < n; i++)
			t[i] = i >= period && below(30) ? t[i - period] : below(words);
		memset(a, 0xee, sizeof(a));
		memset(b, 0xee, sizeof(b));
		want = slow(t, n, max, a);
		got = draft_propose(t, n, max, b);
		ck_assert_uint_eq(got, want);
		ck_assert_msg(!memcmp(a, b, sizeof(a)), "%u tokens: %u %u, not %u %u", n, b[0], b[1],
			      a[0], a[1]);
		free(t);
	}
}
END_TEST

/* Each rule once, by hand. */
START_TEST(examples)
{
	static const uint32_t again[] = { 1, 2, 3, 4, 5, 1, 2, 3 }, recent[] = { 1, 2, 3, 1, 2, 4, 1, 2 };
	static const uint32_t longer[] = { 9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2 };
	static const uint32_t one[] = { 1, 2, 3, 2 }, run[] = { 7, 7, 7 };
	uint32_t out[DRAFT_MAX];

	ck_assert_uint_eq(draft_propose(again, 8, 2, out), 2);
	ck_assert(out[0] == 4 && out[1] == 5);
	ck_assert_uint_eq(draft_propose(again, 8, 8, out), 8); /* and once more from there */
	ck_assert(out[4] == 3 && out[5] == 4);
	ck_assert_uint_eq(draft_propose(recent, 8, 1, out), 1);
	ck_assert_uint_eq(out[0], 4);
	ck_assert_uint_eq(draft_propose(longer, 11, 1, out), 1);
	ck_assert_uint_eq(out[0], 3);
	ck_assert_uint_eq(draft_propose(one, 4, 8, out), 0);
	ck_assert_uint_eq(draft_propose(run, 3, 8, out), 8);
	ck_assert(out[0] == 7 && out[7] == 7);
	for (uint32_t n = 0; n < 3; n++)
		ck_assert_uint_eq(draft_propose(run, n, 8, out), 0);
	ck_assert_uint_eq(draft_propose(again, 8, 0, out), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("draft");
	TCase *t = tcase_create("draft");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, against_the_definition);
	tcase_add_test(t, examples);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * The benchmark's histogram: if a bucket were misplaced or a quantile off by more than its promised
 * 0.8 %, every verdict of `onebit bench` would be wrong.
 */
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "bench_hist.c"

enum { N = 20000 };

static struct hist h, g, all;
static uint64_t values[N];

static uint64_t seed;

static uint64_t next_random(void)
{
	/* splitmix64 */
	uint64_t z = seed += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* A gap or overlap between groups of buckets would lose or double a range of durations. */
START_TEST(buckets_join)
{
	for (unsigned i = 0; i + 1 < HIST_BUCKETS; i++) {
		uint64_t lo = hist_floor(i), next = hist_floor(i + 1);

		ck_assert_msg(lo < next, "bucket %u is empty", i);
		ck_assert_uint_eq(hist_bucket(lo), i);
		ck_assert_uint_eq(hist_bucket(next - 1), i);
	}
}
END_TEST

/* A bucket wider than 1/128 of its values would blur a ratio of 1.05. */
START_TEST(buckets_are_narrow)
{
	for (unsigned i = HIST_SUB; i + 1 < HIST_BUCKETS; i++)
		ck_assert_uint_le((hist_floor(i + 1) - hist_floor(i)) * HIST_SUB, hist_floor(i));
}
END_TEST

/* Values above the top must land in the last bucket, not behind the array. */
START_TEST(top_is_clamped)
{
	hist_init(&h);
	hist_add(&h, UINT64_MAX, 1);
	ck_assert_uint_eq(h.count[HIST_BUCKETS - 1], 1);
	ck_assert_uint_eq(h.max, UINT64_MAX);
	ck_assert_uint_gt(hist_quantile(&h, 0.5), 0);
}
END_TEST

/* An empty histogram (a row that was interrupted) must be harmless. */
START_TEST(empty_is_zero)
{
	hist_init(&h);
	ck_assert_uint_eq(hist_quantile(&h, 0.5), 0);
	hist_init(&g);
	hist_add(&g, 5, 0);
	hist_merge(&h, &g);
	ck_assert_uint_eq(h.n, 0);
	ck_assert_uint_eq(h.min, 0);
}
END_TEST

/* Quantiles must be those of the sorted values, to 1/128, for any mixture of sizes. */
START_TEST(quantiles_match_sorting)
{
	static const double qs[] = { 0, 0.01, 0.25, 0.5, 0.9, 0.99, 0.999, 1 };

	hist_init(&h);
	for (int i = 0; i < N; i++) {
		values[i] = next_random() >> (24 + next_random() % 40);
		hist_add(&h, values[i], 1);
	}
	qsort(values, N, sizeof(values[0]), by_value);
	ck_assert_uint_eq(h.min, values[0]);
	ck_assert_uint_eq(h.max, values[N - 1]);
	for (size_t i = 0; i < sizeof(qs) / sizeof(qs[0]); i++) {
		size_t rank = (size_t)(qs[i] * N);
		uint64_t want = values[rank < N ? rank : N - 1], got = hist_quantile(&h, qs[i]);
		uint64_t off = got > want ? got - want : want - got;

		ck_assert_msg(off * HIST_SUB <= want, "q %g: %" PRIu64 " instead of %" PRIu64, qs[i],
			      got, want);
	}
}
END_TEST

/* Rounds are merged for the picture: that must equal having added everything to one. */
START_TEST(merge_is_adding)
{
	hist_init(&h);
	hist_init(&g);
	hist_init(&all);
	for (int i = 0; i < N; i++) {
		uint64_t v = next_random() >> (next_random() % 60), times = 1 + i % 3;

		hist_add(i % 2 ? &h : &g, v, times);
		hist_add(&all, v, times);
	}
	hist_merge(&h, &g);
	ck_assert_int_eq(memcmp(&h, &all, sizeof(h)), 0);
}
END_TEST

int main(void)
{
	const char *env = getenv("ONEBIT_SEED");
	Suite *s = suite_create("hist");
	TCase *t = tcase_create("hist");
	SRunner *r = srunner_create(s);
	int failed;

	seed = env ? strtoull(env, NULL, 0) : (uint64_t)time(NULL);
	fprintf(stderr, "ONEBIT_SEED=%" PRIu64 "\n", seed);
	fflush(stdout);
	tcase_add_test(t, buckets_join);
	tcase_add_test(t, buckets_are_narrow);
	tcase_add_test(t, top_is_clamped);
	tcase_add_test(t, empty_is_zero);
	tcase_add_test(t, quantiles_match_sorting);
	tcase_add_test(t, merge_is_adding);
	suite_add_tcase(s, t);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * The contract's values: what the compiler's static asserts in onebit.h cannot say. Its shape is
 * the subject of uapi.sh, its constancy that of frozen.sh.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "attach.h"
#include "onebit.h"
#include "onebit_ring.h"

static const struct row {
	const char *name;
	unsigned nr;
	int err;
	int layer;
	int retryable;
	const char *text;
} rows[] = {
#define ROW(name, nr, err, layer, retry, text) { #name, nr, err, ONEBIT_LAYER_##layer, retry, text },
	ONEBIT_CODES(ROW)
#undef ROW
};
enum { ROWS = sizeof(rows) / sizeof(rows[0]) };

/* What breaks: two reasons share a number, so a client cannot tell which it was given. */
START_TEST(code_numbers_are_unique)
{
	for (int i = 0; i < ROWS; i++)
		for (int j = 0; j < i; j++) {
			ck_assert_msg(rows[i].nr != rows[j].nr, "%s and %s are both %u", rows[i].name,
				      rows[j].name, rows[i].nr);
			ck_assert_str_ne(rows[i].name, rows[j].name);
		}
}
END_TEST

/* What breaks: a number that does not fit onebit_error.code, or an errno or layer that is none. */
START_TEST(code_values_are_in_range)
{
	for (int i = 0; i < ROWS; i++) {
		ck_assert_uint_le(rows[i].nr, UINT16_MAX);
		ck_assert_msg((rows[i].err > 0) == (rows[i].nr != 0), "%s has errno %d", rows[i].name,
			      rows[i].err);
		ck_assert_int_ge(rows[i].layer, ONEBIT_LAYER_RING);
		ck_assert_int_le(rows[i].layer, ONEBIT_LAYER_GATEWAY);
		ck_assert(rows[i].retryable == 0 || rows[i].retryable == 1);
	}
}
END_TEST

/* What breaks: a format that takes an argument nobody passes, and so reads the stack. */
START_TEST(code_texts_take_one_detail)
{
	for (int i = 0; i < ROWS; i++) {
		const char *p = strchr(rows[i].text, '%');

		if (p)
			ck_assert_msg(!strncmp(p, "%llu", 4) && !strchr(p + 1, '%'), "%s: %s",
				      rows[i].name, rows[i].text);
		for (p = rows[i].text; *p; p++)
			ck_assert_msg(*p >= ' ' && *p <= '~', "%s is not plain text", rows[i].name);
		/* What happened; what to do: but for what was asked for. */
		if (rows[i].nr == ONEBIT_E_OK || rows[i].nr == ONEBIT_E_CANCELLED)
			continue;
		ck_assert_msg(strchr(rows[i].text, ';') || strchr(rows[i].text, ','),
			      "%s does not say what to do", rows[i].name);
	}
}
END_TEST

/* What breaks: an error whose class, layer or text is another row's, or whose text has no end. */
START_TEST(error_is_its_row)
{
	for (int i = 0; i < ROWS; i++) {
		struct onebit_error e;

		memset(&e, 0xff, sizeof(e));
		error_fill(&e, (enum onebit_code)rows[i].nr, UINT64_MAX, 7);
		ck_assert_int_eq(e.err, -rows[i].err);
		ck_assert_uint_eq(e.code, rows[i].nr);
		ck_assert_int_eq(e.layer, rows[i].layer);
		ck_assert_int_eq(e.retryable, rows[i].retryable);
		ck_assert_uint_eq(e.retry_after_ms, rows[i].retryable ? 7 : 0);
		ck_assert_uint_eq(e.detail, UINT64_MAX);
		ck_assert_uint_eq(e.reserved, 0);
		ck_assert_uint_eq(e.request_id, 0);
		/* Whole: cut short, it would say what happened and not what to do. */
		ck_assert_uint_lt(strlen(e.text), sizeof(e.text) - 1);
		ck_assert_uint_gt(strlen(e.text), 0);
		ck_assert_str_eq(error_name((enum onebit_code)rows[i].nr), rows[i].name);
	}
}
END_TEST

/* What breaks: a ring that works until its index passes 2^32. */
START_TEST(indices_wrap)
{
	__u32 head = ONEBIT_INDEX_START;
	__u32 tail = head;

	/* More than the whole way to the wrap and past it, the ring filling and draining unevenly. */
	for (unsigned step = 0; step < 8 * ONEBIT_CQ_ENTRIES_MAX; step++) {
		__u32 filled = onebit_distance(head, tail);

		ck_assert_uint_le(filled, 64);
		if (filled < 64 && (step % 3 || !filled)) {
			ck_assert_uint_eq(onebit_slot(tail + 1, 64), (onebit_slot(tail, 64) + 1) % 64);
			tail++;
		} else {
			head++;
		}
	}
	ck_assert_uint_lt(tail, ONEBIT_INDEX_START);
	ck_assert_uint_eq(onebit_distance(0xffffffffu, 0), 1);
	/* A client that moved its head back is ahead by nearly everything, so it is seen. */
	ck_assert_uint_gt(onebit_distance(5, 4), ONEBIT_CQ_ENTRIES_MAX);
}
END_TEST

/* What breaks: a slot as it was born, or as the lap before left it, is taken for an entry. */
START_TEST(marks_tell_laps_apart)
{
	for (__u32 entries = 2; entries <= ONEBIT_CQ_ENTRIES_MAX; entries *= 2) {
		__u32 i = ONEBIT_INDEX_START;

		for (__u32 n = 0; n < entries; n++) {
			ck_assert(!onebit_phase_is(0, i + n, entries));
			ck_assert_uint_ne(onebit_seq(i + n), 0);
		}
		/* To the wrap and past it, and what else the word holds does not matter. */
		for (; (__s32)i < (__s32)(4 * entries); i += entries / 2) {
			__u16 phase = onebit_phase(i, entries);

			ck_assert_uint_eq(phase & ~ONEBIT_CQE_PHASE, 0);
			ck_assert_uint_eq(phase ^ onebit_phase(i + entries, entries), ONEBIT_CQE_PHASE);
			ck_assert(onebit_phase_is(phase, i, entries));
			ck_assert(onebit_phase_is(phase | 0xffff7fffu, i, entries));
			ck_assert(!onebit_phase_is(phase ^ ONEBIT_CQE_PHASE, i, entries));
			ck_assert(!onebit_phase_is(phase, i + entries, entries));
			ck_assert_uint_ne(onebit_seq(i), onebit_seq(i + entries));
			ck_assert_uint_ne(onebit_seq(i), onebit_seq(i - entries));
		}
	}
}
END_TEST

/* What breaks: limits that contradict each other, so that a largest legal attach cannot be laid out. */
START_TEST(limits_agree)
{
	ck_assert_uint_ge(ONEBIT_CQ_ENTRIES_MAX, 2 * ONEBIT_SQ_ENTRIES_MAX);
	ck_assert_uint_gt(onebit_distance(ONEBIT_INDEX_START, 0), ONEBIT_CQ_ENTRIES_MAX);
	ck_assert_uint_le(ONEBIT_SQ_ENTRIES_DEFAULT, ONEBIT_SQ_ENTRIES_MAX);
	ck_assert_uint_eq(ONEBIT_AREA_DEFAULT % 4096, 0);
	ck_assert_uint_eq(ONEBIT_AREA_MIN % 4096, 0);
	ck_assert_uint_eq(ONEBIT_AREA_MAX % 4096, 0);
	ck_assert_uint_le(ONEBIT_BLOCK_MAX, ONEBIT_AREA_MAX);
	/* A block can hold the largest grammar, and lengths of a record fit their 16 bits. */
	ck_assert_uint_le(sizeof(struct onebit_params) + sizeof(struct onebit_grammar) +
			  ONEBIT_GRAMMAR_STATES_MAX * sizeof(struct onebit_gstate) +
			  ONEBIT_GRAMMAR_EDGES_MAX * sizeof(struct onebit_gedge), ONEBIT_BLOCK_MAX);
	ck_assert_uint_le(ONEBIT_RECORD_MAX, UINT16_MAX);
	ck_assert_uint_lt(sizeof(struct onebit_record) +
			  ONEBIT_TOP_LOGPROBS_MAX * sizeof(struct onebit_top), ONEBIT_RECORD_MAX);
	ck_assert_uint_le(ONEBIT_GRAMMAR_DEPTH_MAX, UINT16_MAX);
	ck_assert_uint_lt(ONEBIT_OP_COUNT, 64); /* onebit_features has a bit for each */
	ck_assert_uint_lt(ONEBIT_QUERY_COUNT, 64);
	ck_assert_uint_lt(ONEBIT_ROLE_COUNT, 64);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("uapi");
	TCase *t = tcase_create("uapi");
	SRunner *r;
	int failed;

	tcase_add_test(t, code_numbers_are_unique);
	tcase_add_test(t, code_values_are_in_range);
	tcase_add_test(t, code_texts_take_one_detail);
	tcase_add_test(t, error_is_its_row);
	tcase_add_test(t, indices_wrap);
	tcase_add_test(t, marks_tell_laps_apart);
	tcase_add_test(t, limits_agree);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

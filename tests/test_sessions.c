/* SPDX-License-Identifier: MIT */
/*
 * The executor's table of sessions: whose they are, what is said in them, who loses one.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "sessions.h"

enum { POSITIONS = 64 };

static const struct kv_principal one = { .uid = 1 }, two = { .uid = 2 }, tenant = { 7, 1 };

/* Somebody would read or end what others said. */
START_TEST(owners)
{
	struct sessions *t = sessions_new(POSITIONS);
	struct session *s = sessions_open(t, 5, one, 0);

	ck_assert_ptr_nonnull(s);
	ck_assert_ptr_eq(sessions_find(t, 5, one), s);
	ck_assert_ptr_null(sessions_find(t, 5, two));
	ck_assert_ptr_null(sessions_find(t, 5, tenant));
	ck_assert_ptr_null(sessions_find(t, 6, one));
	ck_assert_ptr_null(sessions_find(t, 0, one));
	sessions_close(s);
	ck_assert_ptr_null(sessions_find(t, 5, one));
	sessions_free(t);
}
END_TEST

/* A request that failed would leave half of itself behind, and one that did not, too little. */
START_TEST(what_was_said)
{
	static const uint32_t a[3] = { 1, 2, 3 }, b[2] = { 4, 5 };
	struct sessions *t = sessions_new(POSITIONS);
	struct session *s = sessions_open(t, 5, one, 0);
	struct onebit_session list[EXEC_SESSIONS_MAX];
	uint32_t many[POSITIONS] = { 9 };

	session_begin(s, true);
	session_add(s, POSITIONS, a, 3);
	session_end(s, true, 10);
	session_begin(s, true);
	ck_assert_uint_eq(s->n, 3);
	session_add(s, POSITIONS, b, 2);
	session_end(s, false, 20);
	ck_assert_uint_eq(s->n, 3);
	session_begin(s, true);
	session_add(s, POSITIONS, b, 2);
	session_add(s, POSITIONS, many, POSITIONS);
	session_end(s, true, 30);
	ck_assert_uint_eq(s->n, POSITIONS);
	ck_assert_mem_eq(s->tokens, ((uint32_t[]){ 1, 2, 3, 4, 5, 9 }), 24);
	ck_assert_uint_eq(sessions_list(t, 5000030, list), 1);
	ck_assert_uint_eq(list[0].tokens, POSITIONS);
	ck_assert_uint_eq(list[0].kv_pages, 2);
	ck_assert_uint_eq(list[0].idle_ms, 5);
	session_begin(s, false);
	session_add(s, POSITIONS, b, 1);
	session_end(s, true, 40);
	ck_assert_uint_eq(s->n, 1);
	ck_assert_uint_eq(s->tokens[0], 4);
	sessions_free(t);
}
END_TEST

/* One user could take every session from the others, or lose one that a request goes on with. */
START_TEST(who_loses_one)
{
	struct sessions *t = sessions_new(POSITIONS);
	struct onebit_session list[EXEC_SESSIONS_MAX];
	uint64_t handle = 1;

	ck_assert_ptr_nonnull(sessions_open(t, 1000, two, 0));
	for (uint32_t i = 0; i < SESSIONS_EACH; i++)
		ck_assert_ptr_nonnull(sessions_open(t, handle++, one, 100 + i));
	session_begin(sessions_find(t, 1, one), true); /* the longest idle is not idle */
	ck_assert_ptr_nonnull(sessions_open(t, handle++, one, 200));
	ck_assert_ptr_nonnull(sessions_find(t, 1, one));
	ck_assert_ptr_null(sessions_find(t, 2, one));
	ck_assert_ptr_nonnull(sessions_find(t, 1000, two));
	ck_assert_uint_eq(sessions_list(t, 300, list), SESSIONS_EACH + 1);

	for (uint32_t uid = 10; sessions_list(t, 300, list) < EXEC_SESSIONS_MAX; uid++)
		ck_assert_ptr_nonnull(sessions_open(t, handle++, (struct kv_principal){ 0, uid }, 1));
	ck_assert_ptr_null(sessions_open(t, handle++, tenant, 400));
	ck_assert_ptr_nonnull(sessions_open(t, handle, two, 400));
	ck_assert_ptr_null(sessions_find(t, 1000, two));
	sessions_free(t);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sessions");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	tcase_add_test(t, owners);
	tcase_add_test(t, what_was_said);
	tcase_add_test(t, who_loses_one);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

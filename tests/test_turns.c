/* SPDX-License-Identifier: MIT */
/*
 * Who runs next, and what a client hears: shares, classes, deadlines, cancelling, progress and
 * windows. The core alone, with a scripted executor and a virtual clock.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_core.h"
#include "limits.h"

enum { OUT = 1024 };

static struct core *k;
static int me;

static void begin(uint32_t slots)
{
	k = core_new(NULL, true, false);
	core_exec_hello(k, 0, slots);
	me = core_attach(k, 1000, NULL, NULL);
}

static void submit_as(int c, uint64_t user_data, uint8_t priority, uint32_t deadline_ms,
		      uint32_t tokens)
{
	struct core_block t;
	struct onebit_sqe e;

	core_block_plain(&t, "go", tokens);
	e = core_generate(k, c, &t, 0, (uint32_t)user_data % 128 * OUT, OUT, user_data);
	e.priority = priority;
	e.deadline_ms = deadline_ms;
	core_submit(k, c, &e);
	core_run(k);
}

static void submit(uint64_t user_data)
{
	submit_as(me, user_data, ONEBIT_PRIO_NORMAL, 0, 4);
}

static const struct journal_entry *entry(const struct exec_cmd *run)
{
	return executor_entry(&k->x[0].e, run);
}

static struct onebit_cqe ended(int c, uint64_t user_data, unsigned code)
{
	struct onebit_cqe cqe = { 0 };

	ck_assert(core_terminal(k, c, &cqe, NULL));
	ck_assert_uint_eq(cqe.user_data, user_data);
	ck_assert_msg(cqe.u.end.code == code, "code %s", error_name(cqe.u.end.code));
	return cqe;
}

static void finish(void)
{
	const struct onebit_stats *s;

	core_run(k);
	s = broker_stats(k->b);
	ck_assert_uint_eq(s->running + s->queued, 0);
	ck_assert_uint_eq(s->journal_bytes, 0);
	k = core_free(k);
}

/* ---- who runs next --------------------------------------------------------------------------- */

/* A flood of one user must not put off another's first request. */
START_TEST(flood_and_first)
{
	struct exec_cmd run;
	int other;

	begin(1);
	other = core_attach(k, 2000, NULL, NULL);
	for (uint64_t i = 0; i < 60; i++) { /* as many as its CQ has room for */
		submit(i);
	}
	run = core_exec_run(k, 0);
	ck_assert_uint_eq(entry(&run)->uid, 1000);
	submit_as(other, 7, ONEBIT_PRIO_NORMAL, 0, 4);
	core_exec_finish(k, 0, &run, false);
	run = core_exec_run(k, 0);
	ck_assert_uint_eq(entry(&run)->uid, 2000);
	core_exec_finish(k, 0, &run, false);
	ended(other, 7, ONEBIT_E_OK);

	/* And while both want, neither gets more than a request ahead of the other. */
	for (uint64_t i = 0; i < 20; i++)
		submit_as(other, i, ONEBIT_PRIO_NORMAL, 0, 4);
	for (int balance = 0, i = 0; i < 40; i++) {
		run = core_exec_run(k, 0);
		balance += entry(&run)->uid == 1000 ? 1 : -1;
		ck_assert_int_le(abs(balance), 2);
		core_exec_finish(k, 0, &run, false);
	}
	core_detach(k, me);
	core_detach(k, other);
	core_run(k);
	while (core_exec_cmd(k, 0, &run)) {
		struct exec_event ev = core_event(&run, EXEC_EV_END);

		if (run.kind != EXEC_CMD_CANCEL)
			continue;
		core_exec_emit(k, 0, &ev, NULL);
		core_run(k);
	}
	finish();
}
END_TEST

/* The class decides, and age lifts the class: a batch request is passed, but not for ever. */
START_TEST(classes_and_aging)
{
	unsigned passed = 0;
	struct exec_cmd run;
	uint64_t n = 1;

	begin(1);
	submit(0); /* keeps the slot busy */
	run = core_exec_run(k, 0);
	submit_as(me, 50, ONEBIT_PRIO_BATCH, 0, 4);
	submit_as(me, 51, ONEBIT_PRIO_NORMAL, 0, 4);
	submit_as(me, 52, ONEBIT_PRIO_INTERACTIVE, 0, 4);
	core_exec_finish(k, 0, &run, false);
	run = core_exec_run(k, 0);
	ck_assert_uint_eq(entry(&run)->priority, ONEBIT_PRIO_INTERACTIVE);
	core_exec_finish(k, 0, &run, false);
	/* From here on a fresh interactive request is always there. */
	for (; passed < 100; passed++) {
		run = core_exec_run(k, 0);
		if (entry(&run)->priority == ONEBIT_PRIO_BATCH)
			break;
		submit_as(me, n++, ONEBIT_PRIO_INTERACTIVE, 0, 4);
		core_pass(k, AGING_NS / 4);
		core_exec_finish(k, 0, &run, false);
	}
	ck_assert_uint_ge(passed, 7); /* two classes of four quarters each, less the first */
	ck_assert_uint_le(passed, 10);
	core_exec_finish(k, 0, &run, false);
	while (core_exec_cmd(k, 0, &run))
		core_exec_finish(k, 0, &run, false);
	finish();
}
END_TEST

/* ---- ends ------------------------------------------------------------------------------------ */

/* Waiting or running: at its deadline a request ends, and its slot comes back. */
START_TEST(deadlines)
{
	const uint64_t ms = 1000000;
	struct exec_cmd run, cancel;
	struct exec_event ev;

	begin(1);
	submit_as(me, 1, ONEBIT_PRIO_NORMAL, 50, 4);
	submit_as(me, 2, ONEBIT_PRIO_NORMAL, 20, 4);
	submit_as(me, 3, ONEBIT_PRIO_NORMAL, 0, 4);
	run = core_exec_run(k, 0);
	core_exec_tokens(k, 0, &run, 0, 0, 1, 0);
	core_run(k);
	ck_assert_uint_eq(k->until, k->now + 20 * ms);
	core_pass(k, 20 * ms);
	ck_assert_uint_eq(ended(me, 2, ONEBIT_E_DEADLINE).u.end.detail, 20);
	core_pass(k, 30 * ms);
	ck_assert_uint_eq(ended(me, 1, ONEBIT_E_DEADLINE).u.end.detail, 50);
	ck_assert(core_exec_cmd(k, 0, &cancel));
	ck_assert_uint_eq(cancel.kind, EXEC_CMD_CANCEL);
	ck_assert_uint_eq(cancel.tag, run.tag);
	/* What it still says of that request is dropped; the slot is taken only when it lets go. */
	core_exec_tokens(k, 0, &run, 0, 1, 1, 0);
	core_run(k);
	ck_assert(!core_exec_cmd(k, 0, &cancel));
	ev = core_event(&run, EXEC_EV_END);
	ev.code = ONEBIT_E_CANCELLED;
	core_exec_emit(k, 0, &ev, NULL);
	core_run(k);
	run = core_exec_run(k, 0);
	core_exec_finish(k, 0, &run, false);
	ended(me, 3, ONEBIT_E_OK);
	ck_assert_uint_eq(k->x[0].kills, 0);
	finish();
}
END_TEST

/* One terminal for each that is cancelled and one for the asker, and nothing twice. */
START_TEST(cancelling)
{
	struct onebit_sqe e = { .op = ONEBIT_OP_CANCEL, .arg = 1, .user_data = 99 };
	struct exec_event ev;
	struct exec_cmd run;

	begin(1);
	submit(1); /* runs */
	submit(1); /* waits, by the same name */
	submit(2);
	run = core_exec_run(k, 0);
	core_exec_tokens(k, 0, &run, 0, 0, 3, 0);
	core_run(k);
	core_submit(k, me, &e);
	core_submit(k, me, &e);
	core_run(k);
	ck_assert_uint_eq(ended(me, 1, ONEBIT_E_CANCELLED).u.end.detail, 3);
	ck_assert_uint_eq(ended(me, 1, ONEBIT_E_CANCELLED).u.end.detail, 0);
	ck_assert_int_eq(ended(me, 99, ONEBIT_E_OK).res, 2);
	ended(me, 99, ONEBIT_E_NOT_FOUND);
	ev = core_event(&run, EXEC_EV_END);
	ev.code = ONEBIT_E_CANCELLED;
	core_exec_emit(k, 0, &ev, NULL);
	core_run(k);
	ck_assert(core_exec_cmd(k, 0, &run) && run.kind == EXEC_CMD_CANCEL);
	run = core_exec_run(k, 0);
	core_exec_finish(k, 0, &run, false);
	ended(me, 2, ONEBIT_E_OK);

	/* An executor that does not let go of what was cancelled is given up. */
	submit(3);
	run = core_exec_run(k, 0);
	core_exec_tokens(k, 0, &run, 0, 0, 1, 0);
	core_run(k);
	e.arg = 3;
	core_submit(k, me, &e);
	core_run(k);
	ended(me, 3, ONEBIT_E_CANCELLED);
	core_pass(k, 10001 * 1000000ull);
	ck_assert_uint_eq(k->x[0].kills, 1);
	ended(me, 99, ONEBIT_E_OK);
	finish();
}
END_TEST

/* ---- what is told ---------------------------------------------------------------------------- */

/* At most one progress CQE unreaped; what came meanwhile is told in one, without gap or overlap. */
START_TEST(progress_merges)
{
	struct onebit_cqe cqe;
	struct exec_cmd run;

	begin(1);
	submit_as(me, 1, ONEBIT_PRIO_NORMAL, 0, 16);
	run = core_exec_run(k, 0);
	for (uint32_t i = 0; i < 3; i++) {
		core_exec_tokens(k, 0, &run, 0, i, 1, 0);
		core_run(k);
		ck_assert_uint_eq(core_waiting(k, me), 1);
	}
	ck_assert(core_reap(k, me, &cqe));
	ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	core_run(k);
	ck_assert(core_reap(k, me, &cqe));
	ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE);
	ck_assert_int_eq(cqe.res, 3);
	ck_assert_uint_eq(cqe.u.progress.first, 0);
	ck_assert_uint_eq(cqe.u.progress.n, 3); /* nine bytes of text are too many for a CQE */
	core_exec_tokens(k, 0, &run, 0, 3, 2, 0);
	core_run(k);
	ck_assert(core_reap(k, me, &cqe));
	ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_INLINE);
	ck_assert_uint_eq(cqe.u.progress.first, 3);
	ck_assert_uint_eq(cqe.u.progress.n, 2);
	ck_assert_uint_eq(cqe.u.progress.text_len, 6);
	ck_assert_mem_eq(cqe.u.progress.text, "t03t04", 6);
	core_exec_finish(k, 0, &run, false);
	ck_assert(core_reap(k, me, &cqe));
	ck_assert_uint_eq(cqe.u.progress.first, 5);
	ck_assert_uint_eq(cqe.u.progress.n, 11);
	ended(me, 1, ONEBIT_E_OK);
	finish();
}
END_TEST

/* More tokens than a CQE can count: the text must not be said to be there when it is not. */
START_TEST(progress_in_pieces)
{
	enum { N = 70000, STEP = 10000 };
	uint32_t told = 0;
	struct onebit_hello h;
	struct onebit_cqe cqe;
	struct core_block t;
	struct onebit_sqe e;
	struct policy p;
	struct exec_cmd run;

	core_policy(&p);
	p.max_tokens = 2 * N;
	k = core_new(&p, true, false);
	core_exec_hello(k, 0, 1);
	core_hello(&h);
	h.out_bytes = 4 << 20;
	me = core_attach(k, 1000, &h, NULL);
	core_block_plain(&t, "on", N);
	e = core_generate(k, me, &t, 0, 0, 4 << 20, 1);
	core_submit(k, me, &e);
	core_run(k);
	run = core_exec_run(k, 0);
	for (uint32_t i = 0; i < N; i += STEP) {
		core_exec_tokens(k, 0, &run, 0, i, STEP, 0);
		core_run(k);
	}
	ck_assert(core_reap(k, me, &cqe)); /* ACCEPTED */
	for (core_run(k); core_reap(k, me, &cqe); core_run(k)) {
		ck_assert_uint_eq(cqe.u.progress.first, told);
		told += cqe.u.progress.n;
		ck_assert_msg(!(cqe.flags & ONEBIT_CQE_INLINE), "the text of %u tokens in a CQE",
			      cqe.u.progress.n);
	}
	ck_assert_uint_eq(told, N);
	core_exec_finish(k, 0, &run, false);
	finish();
}
END_TEST

/* A full window ends the request after the last record that fits; resumed, no token is missing. */
START_TEST(window_full)
{
	enum { TOKENS = 12 };
	struct onebit_choice choice;
	struct onebit_cqe cqe;
	struct core_block t;
	struct exec_event ev;
	struct onebit_sqe e;
	struct exec_cmd run;
	uint8_t expected[OUT];
	uint32_t fits;

	begin(1);
	core_block_plain(&t, "go", TOKENS);
	e = core_generate(k, me, &t, 0, 0, 256, 1);
	core_submit(k, me, &e);
	core_run(k);
	run = core_exec_run(k, 0);
	core_exec_tokens(k, 0, &run, 0, 0, 2, 0);
	core_exec_tokens(k, 0, &run, 0, 2, TOKENS - 2, ONEBIT_FINISH_LENGTH);
	core_run(k);
	cqe = ended(me, 1, ONEBIT_E_WINDOW_FULL);
	ck_assert_uint_eq(cqe.u.end.detail, 256);
	memcpy(&choice, core_out(k, me) + sizeof(struct onebit_out), sizeof(choice));
	fits = choice.rec_cap / CORE_RECORD;
	ck_assert_uint_gt(fits, 2);
	ck_assert_uint_lt(fits, TOKENS);
	ck_assert_uint_eq(choice.n_tokens, fits);
	ck_assert_uint_eq(choice.finish, ONEBIT_FINISH_ERROR);
	core_records(expected, 0, 0, fits);
	ck_assert_mem_eq(core_out(k, me) + choice.rec_off, expected, choice.n_bytes);
	ck_assert_uint_eq(k->x[0].kills, 0);
	ck_assert(core_exec_cmd(k, 0, &run) && run.kind == EXEC_CMD_CANCEL);
	ev = core_event(&run, EXEC_EV_END);
	core_exec_emit(k, 0, &ev, NULL);
	core_run(k);

	t.p.n_resume = 1;
	t.p.resume_off = offsetof(struct core_block, resume);
	t.resume[0] = (struct onebit_resume){ .first = fits,
					      .tokens_off = offsetof(struct core_block, text) + 4 };
	for (uint32_t i = 0; i < fits; i++) {
		uint32_t token = core_token(0, i);

		memcpy(t.text + 4 + i * 4, &token, 4);
	}
	e = core_generate(k, me, &t, 0, 0, 4096, 2);
	core_submit(k, me, &e);
	core_run(k);
	run = core_exec_run(k, 0);
	ck_assert_uint_eq(entry(&run)->done[0].n, fits);
	core_exec_finish(k, 0, &run, true);
	ended(me, 2, ONEBIT_E_OK);
	memcpy(&choice, core_out(k, me) + sizeof(struct onebit_out), sizeof(choice));
	ck_assert_uint_eq(choice.first_token, fits);
	ck_assert_uint_eq(choice.n_tokens, TOKENS);
	core_records(expected, 0, fits, TOKENS - fits);
	ck_assert_mem_eq(core_out(k, me) + choice.rec_off, expected, choice.n_bytes);
	finish();
}
END_TEST

/* Resume tokens are the client's word: if they are wrong it must hear so, and nobody be accused. */
START_TEST(wrong_resume)
{
	struct core_block t;
	struct exec_event ev;
	struct onebit_cqe cqe;
	struct onebit_sqe e;
	struct exec_cmd run;

	begin(1);
	core_block_full(&t);
	e = core_generate(k, me, &t, 0, 0, 4096, 1);
	core_submit(k, me, &e);
	core_run(k);
	run = core_exec_run(k, 0);
	ev = core_event(&run, EXEC_EV_REPLAYED);
	ev.first = 1;
	ev.detail = t.ids[1] + 1;
	core_exec_emit(k, 0, &ev, NULL);
	core_run(k);
	ck_assert(core_terminal(k, me, &cqe, NULL));
	ck_assert_int_lt(cqe.res, 0);
	ck_assert_uint_eq(k->x[0].kills, 0);
	e = (struct onebit_sqe){ .op = ONEBIT_OP_QUERY, .arg = ONEBIT_QUERY_INCIDENTS,
				 .out_len = 4096, .user_data = 2 };
	core_submit(k, me, &e);
	core_run(k);
	ck_assert_int_eq(ended(me, 2, ONEBIT_E_OK).res, 0);
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_LOST);
	k = core_free(k);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("turns");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	tcase_add_test(t, flood_and_first);
	tcase_add_test(t, classes_and_aging);
	tcase_add_test(t, deadlines);
	tcase_add_test(t, cancelling);
	tcase_add_test(t, progress_merges);
	tcase_add_test(t, progress_in_pieces);
	tcase_add_test(t, window_full);
	tcase_add_test(t, wrong_resume);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

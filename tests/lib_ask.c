/* SPDX-License-Identifier: MIT */
#include "lib_ask.h"

#include <stdlib.h>
#include <string.h>

struct core *ask_core;
int ask_me;

void ask_begin(const struct policy *p)
{
	ask_core = core_new(p, true, false);
	core_exec_hello(ask_core, 0, 4);
	ask_me = core_attach(ask_core, 1000, NULL, NULL);
	ck_assert_int_ge(ask_me, 0);
}

void ask_end(void)
{
	ask_core = core_free(ask_core);
}

struct onebit_cqe ask_as(int c, struct onebit_sqe e)
{
	static uint64_t user_data;
	struct onebit_cqe cqe = { 0 }, other;
	unsigned more = 0;

	e.user_data = ++user_data;
	core_submit(ask_core, c, &e);
	core_run(ask_core);
	ck_assert_msg(core_terminal(ask_core, c, &cqe, &more), "op %u has no terminal", e.op);
	ck_assert_uint_eq(cqe.user_data, user_data);
	ck_assert_uint_eq(more, 0);
	ck_assert(!core_reap(ask_core, c, &other));
	return cqe;
}

struct onebit_cqe ask(struct onebit_sqe e)
{
	return ask_as(ask_me, e);
}

void ask_refused(const char *what, struct onebit_cqe cqe, unsigned code, uint64_t detail)
{
	struct onebit_error e;

	error_fill(&e, code, detail, 1);
	ck_assert_msg(cqe.u.end.code == code && cqe.u.end.detail == detail,
		      "%s: code %s detail %llu, expected %s %llu", what, error_name(cqe.u.end.code),
		      (unsigned long long)cqe.u.end.detail, error_name(code),
		      (unsigned long long)detail);
	ck_assert_int_eq(cqe.res, e.err);
	ck_assert_uint_eq(cqe.u.end.layer, e.layer);
	ck_assert_uint_eq(cqe.u.end.retryable, e.retryable);
}

void ask_retry(const char *what, struct onebit_cqe cqe, unsigned code, uint64_t detail)
{
	ask_refused(what, cqe, code, detail);
	ck_assert_uint_eq(cqe.u.end.retryable, 1);
	ck_assert_uint_gt(cqe.u.end.retry_after_ms, 0);
}

struct onebit_limits ask_limits(int c)
{
	struct onebit_sqe e = { .op = ONEBIT_OP_QUERY, .arg = ONEBIT_QUERY_LIMITS,
				.out_off = 128 << 10, .out_len = 4096 };
	struct onebit_limits l;

	ck_assert_int_eq(ask_as(c, e).res, sizeof(l));
	memcpy(&l, core_out(ask_core, c) + e.out_off, sizeof(l));
	return l;
}

void ask_nothing_charged(const char *what)
{
	struct onebit_limits l = ask_limits(ask_me);

	ck_assert_msg(!ask_core->c[ask_me].closed, "%s: detached", what);
	ck_assert_msg(!l.inflight_used && !l.queued_bytes_used, "%s: charged", what);
	ck_assert_msg(!broker_stats(ask_core->b)->journal_bytes, "%s: journal in use", what);
	ck_assert_uint_eq(l.clients_used, 1);
	ck_assert_uint_eq(ask((struct onebit_sqe){ .op = ONEBIT_OP_NOP }).u.end.code, 0);
}

struct onebit_sqe ask_generate(const struct core_block *t)
{
	return core_generate(ask_core, ask_me, t, 0, 0, 65536, 0);
}

int ask_main(Suite *s)
{
	SRunner *r = srunner_create(s);
	int failed;

	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

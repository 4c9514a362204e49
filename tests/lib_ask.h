/* SPDX-License-Identifier: MIT */
#ifndef LIB_ASK_H
#define LIB_ASK_H

#include <check.h>
#include "lib_core.h"

/*
 * One core, one client and a ready executor that answers nothing, for tests that submit one SQE and
 * look at what came of it. What goes wrong in here fails the test.
 */
extern struct core *ask_core;
extern int ask_me;

void ask_begin(const struct policy *p); /* NULL: core_policy() */
void ask_end(void);
/* Submit, run, and give the one terminal CQE; no other may have come. */
struct onebit_cqe ask_as(int c, struct onebit_sqe e);
struct onebit_cqe ask(struct onebit_sqe e);
/* It was refused with code and detail, and with what its row in the table of codes says. */
void ask_refused(const char *what, struct onebit_cqe cqe, unsigned code, uint64_t detail);
/* As above, and it says when to come again. */
void ask_retry(const char *what, struct onebit_cqe cqe, unsigned code, uint64_t detail);
struct onebit_limits ask_limits(int c);
/* The client is attached, works, and is charged for nothing but itself. */
void ask_nothing_charged(const char *what);
/* GENERATE of that block, at the start of both areas. */
struct onebit_sqe ask_generate(const struct core_block *t);
int ask_main(Suite *s);

#endif

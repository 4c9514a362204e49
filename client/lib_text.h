/* SPDX-License-Identifier: MIT */
#ifndef LIB_TEXT_H
#define LIB_TEXT_H

#include <stdbool.h>
#include <stdint.h>
#include "lib_public.h"

/*
 * Errors in words: those of the daemon by their code, and the few that only a client's end can have
 * (nobody listens, the welcome is broken), which have no code and bring their sentence along.
 */

/* Fill *e from the code's row. Negative errno of that row; 0 for ONEBIT_E_OK. */
int lib_error_code(struct onebit_error *e, unsigned code, uint64_t detail);
/* Fill *e with words of our own and return err. */
int lib_error_local(struct onebit_error *e, int err, bool retryable, const char *format, ...)
	__attribute__((format(printf, 4, 5)));
/* Fill *e from a terminal CQE. */
void lib_error_cqe(struct onebit_error *e, const struct onebit_cqe *c);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LIB_WAIT_H
#define LIB_WAIT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Waiting for a completion: sleep, spin, or spin while that pays (ONEBIT_WAIT_*). Times are
 * absolute nanoseconds of CLOCK_MONOTONIC; 0 means do not wait, UINT64_MAX for ever.
 */
struct onebit;

struct lib_wait {
	uint32_t how;       /* ONEBIT_WAIT_* */
	uint64_t fixed_ns;  /* budget given by the program; 0: measured */
	uint64_t wake_ns;   /* what a wake-up costs: the shortest sleeping waits of late */
	uint64_t usual_ns;  /* moving average of recent waits */
	uint64_t looked_ns; /* when the socket was last looked at */
};

void lib_wait_init(struct lib_wait *w, uint32_t how, uint32_t spin_us);
uint64_t lib_now(void);
uint64_t lib_deadline(int timeout_ms);
/* Until a time or a signal. */
void lib_sleep_until(uint64_t deadline_ns);
/*
 * 1: a CQE is there. 0: deadline_ns passed. -EINTR: a signal handler ran. -ECONNRESET: the daemon is
 * gone or has detached us (o->goodbye is set if it said why). -EPROTO: its index is impossible.
 */
int lib_wait(struct onebit *o, uint64_t deadline_ns);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef PROBE_MACS_H
#define PROBE_MACS_H

/* The loops that probe.c times for probe_macs(). */

#include <stdint.h>

struct macs_loop {
	unsigned isa;			/* KERNELS_* */
	unsigned macs;			/* of a turn */
	void (*turns)(uint64_t turns);	/* one or more */
};

/* The widest that this CPU has; NULL: none of them. */
const struct macs_loop *macs_loop_best(void);

#endif

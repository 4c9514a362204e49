/* SPDX-License-Identifier: MIT */
#ifndef MACHINE_H
#define MACHINE_H

/* What this machine has, as far as serving a model depends on it. */

#include <stdbool.h>
#include <stdint.h>

struct machine {
	uint64_t memory_bytes;	  /* of RAM; 0: not known */
	uint64_t available_bytes; /* what may be taken now without swapping; 0: not known */
	uint64_t disk_bytes;	  /* free in the current folder */
	unsigned n_cpus;	  /* that we may use */
	bool fast;		  /* the CPU has vector instructions that our kernels are written for */
	const char *cpu;	  /* which: "AVX2", ... */
};

void machine_look(struct machine *m);

#endif

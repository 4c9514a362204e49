/* SPDX-License-Identifier: MIT */
#ifndef BENCH_MODEL_H
#define BENCH_MODEL_H

/* The parts of `onebit bench model`. */

#include <stdbool.h>
#include <stdint.h>
#include "bench_engine.h"
#include "source_random.h"

#define BENCH_MODEL "bench model"

struct bench_job {
	struct bench_engine_options engine;
	struct source_random_options random;
	uint32_t layout; /* of a model that is made */
	const char *file, *make;
	bool json, once;
	char path[4096]; /* of the model that is run; /dev/fd/N when it was made */
	int fd;		 /* of a made one; -1 */
	struct bench_series open_ms, start_ms;
};

/* This program run again: its times, of one round. An exit status. */
int bench_start(struct bench_job *j, unsigned round);
/* What it does then. begin: when main() had just begun. An exit status. */
int bench_once(const struct bench_job *j, double begin);

/* To standard output, as a table or JSON. */
void bench_report(const struct bench_job *j, const struct bench_engine_figures *f);

#endif

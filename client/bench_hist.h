/* SPDX-License-Identifier: MIT */
#ifndef BENCH_HIST_H
#define BENCH_HIST_H

#include <stdint.h>

/*
 * A histogram of durations with a bounded relative error: each power of two is cut into 128 equal
 * buckets, so a value is known to 1/128 = 0.8 %, whatever its size; values below 128 exactly. Fixed
 * memory, no allocation, adding is a few instructions. One owner, one thread.
 */
#define HIST_SUB_BITS  7
#define HIST_SUB       (1u << HIST_SUB_BITS)
#define HIST_TOP_BITS  40 /* values are clamped below 2^40 ns, 18 minutes */
#define HIST_BUCKETS   ((HIST_TOP_BITS - HIST_SUB_BITS + 1) * HIST_SUB)

struct hist {
	uint64_t n;
	uint64_t min, max; /* as added, not rounded; min is 0 when n is */
	uint64_t count[HIST_BUCKETS];
};

void hist_init(struct hist *h);
/* times: how many values of this size; a block of 16 round trips counts 16 times its mean. */
void hist_add(struct hist *h, uint64_t value, uint64_t times);
void hist_merge(struct hist *into, const struct hist *from);
/* The value below or at which the fraction q of all values lies, 0 <= q <= 1. 0 when empty. */
uint64_t hist_quantile(const struct hist *h, double q);

/* The bucket of a value, and the smallest value of a bucket: for drawing. */
unsigned hist_bucket(uint64_t value);
uint64_t hist_floor(unsigned bucket);

#endif

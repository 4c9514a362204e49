/* SPDX-License-Identifier: MIT */
/*
 * Log-linear histogram. Bucket numbers below HIST_SUB are the values themselves; above, the
 * position of the highest bit names a group of HIST_SUB buckets and the next seven bits the bucket
 * in it. So bucket numbers grow with the values and groups join without a gap.
 */
#include "bench_hist.h"

#include <string.h>

void hist_init(struct hist *h)
{
	memset(h, 0, sizeof(*h));
}

unsigned hist_bucket(uint64_t value)
{
	unsigned shift;

	if (value >= 1ull << HIST_TOP_BITS)
		value = (1ull << HIST_TOP_BITS) - 1;
	if (value < HIST_SUB)
		return (unsigned)value;
	shift = 63 - (unsigned)__builtin_clzll(value) - HIST_SUB_BITS;
	return (shift + 1) * HIST_SUB + (unsigned)((value >> shift) - HIST_SUB);
}

uint64_t hist_floor(unsigned bucket)
{
	unsigned group = bucket / HIST_SUB;

	if (!group)
		return bucket;
	return (uint64_t)(HIST_SUB + bucket % HIST_SUB) << (group - 1);
}

void hist_add(struct hist *h, uint64_t value, uint64_t times)
{
	if (!times)
		return;
	if (!h->n || value < h->min)
		h->min = value;
	if (value > h->max)
		h->max = value;
	h->n += times;
	h->count[hist_bucket(value)] += times;
}

void hist_merge(struct hist *into, const struct hist *from)
{
	if (!from->n)
		return;
	if (!into->n || from->min < into->min)
		into->min = from->min;
	if (from->max > into->max)
		into->max = from->max;
	into->n += from->n;
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		into->count[i] += from->count[i];
}

uint64_t hist_quantile(const struct hist *h, double q)
{
	uint64_t rank, seen = 0, value;
	unsigned i = 0;

	if (!h->n)
		return 0;
	rank = (uint64_t)(q * (double)h->n);
	if (rank >= h->n)
		return h->max;
	while (seen + h->count[i] <= rank)
		seen += h->count[i++];
	/* The middle of the bucket, but never outside what was really seen. */
	value = (hist_floor(i) + hist_floor(i + 1)) / 2;
	if (value < h->min)
		return h->min;
	return value > h->max ? h->max : value;
}

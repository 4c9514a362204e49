/* SPDX-License-Identifier: MIT */
#ifndef JOURNAL_H
#define JOURNAL_H

#include <stdint.h>
#include "executor.h"

/*
 * Room for accepted requests in the memory that executors read: a buddy allocator over one fixed
 * range, so that taking and giving back cost O(log n), nothing is allocated on the way of a
 * request, and fragmentation is bounded by rounding to a power of two. What it knows lies outside
 * the range: an executor sees entries only. Owned by the broker; one thread.
 */
struct journal {
	uint8_t *base;
	uint32_t bytes;
	uint32_t used; /* bytes taken, rounded as the allocator does */
	uint32_t units;
	uint32_t orders;
	uint32_t *head; /* [orders]: first free block of that order, JOURNAL_NONE */
	uint32_t *next, *prev; /* [units] */
	uint8_t *order; /* [units]: order of the block that starts here; JOURNAL_FREE set when free */
};
#define JOURNAL_NONE UINT32_MAX
#define JOURNAL_FREE 0x80u

/* bytes: a power of two >= JOURNAL_BYTES_MIN. 0 or -ENOMEM. */
int journal_init(struct journal *j, void *base, uint32_t bytes);
void journal_deinit(struct journal *j);
/* NULL when there is no room. The memory is not cleared. */
struct journal_entry *journal_take(struct journal *j, uint32_t bytes);
void journal_give(struct journal *j, struct journal_entry *e);
uint64_t journal_offset(const struct journal *j, const struct journal_entry *e);
uint32_t *journal_tokens(struct journal_entry *e, uint32_t choice);

#endif

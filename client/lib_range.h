/* SPDX-License-Identifier: MIT */
#ifndef LIB_RANGE_H
#define LIB_RANGE_H

#include <stdint.h>

/*
 * Which ranges of an area (the arena, the out area) are in use. Kept in private memory: an area is
 * shared and holds no bookkeeping. Sorted by offset, first fit; there are never more ranges than
 * requests in flight, so walking them is cheaper than anything clever.
 */
#define LIB_RANGE_ALIGN 64u /* a range shares no cache line with another */

struct lib_range {
	uint32_t off;
	uint32_t len;
};

struct lib_ranges {
	struct lib_range *used; /* owned */
	uint32_t n, cap;
	uint32_t area; /* bytes */
};

/* Start anew with an empty area. -ENOMEM leaves *r as it was. */
int lib_ranges_init(struct lib_ranges *r, uint32_t area, uint32_t cap);
void lib_ranges_deinit(struct lib_ranges *r);
/* 0: *off is set. -EAGAIN: no hole is long enough now. */
int lib_ranges_take(struct lib_ranges *r, uint32_t len, uint32_t *off);
void lib_ranges_give(struct lib_ranges *r, uint32_t off);

#endif

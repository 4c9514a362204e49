/* SPDX-License-Identifier: MIT */
/*
 * First fit over the sorted ranges in use. Taking a range moves the ones behind it in the table, a
 * memmove of a few hundred bytes; nothing is allocated after lib_ranges_init().
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "lib_range.h"

int lib_ranges_init(struct lib_ranges *r, uint32_t area, uint32_t cap)
{
	struct lib_range *used = calloc(cap, sizeof(*used));

	if (!used)
		return -ENOMEM;
	free(r->used);
	*r = (struct lib_ranges){ .used = used, .cap = cap, .area = area };
	return 0;
}

void lib_ranges_deinit(struct lib_ranges *r)
{
	free(r->used);
	*r = (struct lib_ranges){ 0 };
}

int lib_ranges_take(struct lib_ranges *r, uint32_t len, uint32_t *off)
{
	uint64_t need = ((uint64_t)len + LIB_RANGE_ALIGN - 1) & ~(uint64_t)(LIB_RANGE_ALIGN - 1);
	uint64_t at = 0;
	uint32_t i;

	if (r->n == r->cap)
		return -EAGAIN;
	for (i = 0; i < r->n; i++) {
		if (r->used[i].off - at >= need)
			break;
		at = (uint64_t)r->used[i].off + r->used[i].len;
	}
	/* The last range may end where the area does, which need not be a multiple of the alignment. */
	if (i == r->n && (at > r->area || r->area - at < len))
		return -EAGAIN;
	memmove(r->used + i + 1, r->used + i, (r->n - i) * sizeof(*r->used));
	r->used[i] = (struct lib_range){ .off = (uint32_t)at, .len = (uint32_t)need };
	r->n++;
	*off = (uint32_t)at;
	return 0;
}

void lib_ranges_give(struct lib_ranges *r, uint32_t off)
{
	uint32_t i = 0;

	while (i < r->n && r->used[i].off != off)
		i++;
	assert(i < r->n);
	r->n--;
	memmove(r->used + i, r->used + i + 1, (r->n - i) * sizeof(*r->used));
}

/* SPDX-License-Identifier: MIT */
/* A buddy allocator; see journal.h. Blocks are named by their first unit. */
#include "journal.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "limits.h"

static void list_add(struct journal *j, uint32_t unit, uint32_t order)
{
	uint32_t first = j->head[order];

	j->order[unit] = (uint8_t)(order | JOURNAL_FREE);
	j->next[unit] = first;
	j->prev[unit] = JOURNAL_NONE;
	if (first != JOURNAL_NONE)
		j->prev[first] = unit;
	j->head[order] = unit;
}

static void list_del(struct journal *j, uint32_t unit, uint32_t order)
{
	uint32_t next = j->next[unit], prev = j->prev[unit];

	assert(j->order[unit] == (order | JOURNAL_FREE));
	if (next != JOURNAL_NONE)
		j->prev[next] = prev;
	if (prev != JOURNAL_NONE)
		j->next[prev] = next;
	else
		j->head[order] = next;
}

int journal_init(struct journal *j, void *base, uint32_t bytes)
{
	memset(j, 0, sizeof(*j));
	assert(bytes >= JOURNAL_BYTES_MIN && !(bytes & (bytes - 1)));
	j->base = base;
	j->bytes = bytes;
	j->units = bytes / JOURNAL_UNIT;
	j->orders = (uint32_t)__builtin_ctz(j->units) + 1;
	j->head = malloc(j->orders * sizeof(*j->head));
	j->next = malloc(j->units * sizeof(*j->next));
	j->prev = malloc(j->units * sizeof(*j->prev));
	j->order = calloc(j->units, 1);
	if (!j->head || !j->next || !j->prev || !j->order) {
		journal_deinit(j);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < j->orders; i++)
		j->head[i] = JOURNAL_NONE;
	list_add(j, 0, j->orders - 1);
	return 0;
}

void journal_deinit(struct journal *j)
{
	free(j->head);
	free(j->next);
	free(j->prev);
	free(j->order);
	memset(j, 0, sizeof(*j));
}

struct journal_entry *journal_take(struct journal *j, uint32_t bytes)
{
	uint32_t want = 0, order, unit;

	while (want < j->orders && (JOURNAL_UNIT << want) < bytes)
		want++;
	for (order = want; order < j->orders && j->head[order] == JOURNAL_NONE; order++)
		;
	if (order >= j->orders)
		return NULL;
	unit = j->head[order];
	list_del(j, unit, order);
	while (order > want) {
		order--;
		list_add(j, unit + (1u << order), order);
	}
	j->order[unit] = (uint8_t)want;
	j->used += JOURNAL_UNIT << want;
	return (struct journal_entry *)(void *)(j->base + (size_t)unit * JOURNAL_UNIT);
}

void journal_give(struct journal *j, struct journal_entry *e)
{
	uint32_t unit = (uint32_t)(((uint8_t *)e - j->base) / JOURNAL_UNIT);
	uint32_t order = j->order[unit];

	assert(!(order & JOURNAL_FREE));
	j->used -= JOURNAL_UNIT << order;
	for (; order + 1 < j->orders; order++) {
		uint32_t buddy = unit ^ (1u << order);

		if (j->order[buddy] != (order | JOURNAL_FREE))
			break;
		list_del(j, buddy, order);
		if (buddy < unit)
			unit = buddy;
	}
	list_add(j, unit, order);
}

uint64_t journal_offset(const struct journal *j, const struct journal_entry *e)
{
	return (uint64_t)((const uint8_t *)e - j->base);
}

uint32_t *journal_tokens(struct journal_entry *e, uint32_t choice)
{
	return (uint32_t *)(void *)((uint8_t *)e + e->tokens_off) + (size_t)choice * e->tokens_cap;
}

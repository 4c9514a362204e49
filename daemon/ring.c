/* SPDX-License-Identifier: MIT */
/*
 * The daemon's end of a client's rings: indices, one copy of each entry, the marks that publish. The order of stores and fences is that of onebit_ring.h; who sleeps and who rings is
 * decided in broker.c.
 */
#include "ring.h"

#include <assert.h>
#include <string.h>

#include "onebit_ring.h"

void ring_init(struct ring *r, const struct attach *a, void *client_region, void *daemon_region)
{
	uint8_t *c = client_region, *d = daemon_region;

	memset(r, 0, sizeof(*r));
	r->cq_head = (uint32_t *)(c + CLIENT_CQ_HEAD);
	r->wake = (struct onebit_wake *)(c + CLIENT_WAKE);
	r->sqes = (const struct onebit_sqe *)(c + a->sqes_off);
	r->arena = c + a->arena_off;
	r->sq_head = (uint32_t *)(d + DAEMON_SQ_HEAD);
	r->state = (struct onebit_state *)(d + DAEMON_STATE);
	r->futex = (uint32_t *)(d + DAEMON_FUTEX);
	r->cqes = (struct onebit_cqe *)(d + a->cqes_off);
	r->out = d + a->out_off;
	r->sq_entries = a->sq_entries;
	r->cq_entries = a->cq_entries;
	r->arena_bytes = a->arena_bytes;
	r->out_bytes = a->out_bytes;
	r->head = r->released = ONEBIT_INDEX_START;
	r->tail = r->told = r->head_seen = ONEBIT_INDEX_START;
	onebit_store_relaxed(r->cq_head, r->tail);
	onebit_store_relaxed(r->sq_head, r->head);
}

void ring_welcome(const struct ring *r, const struct attach *a, struct onebit_welcome *w)
{
	w->client_bytes = a->client_bytes;
	w->daemon_bytes = a->daemon_bytes;
	w->sq_entries = r->sq_entries;
	w->cq_entries = r->cq_entries;
	w->cq_head_off = CLIENT_CQ_HEAD;
	w->wake_off = CLIENT_WAKE;
	w->sqes_off = a->sqes_off;
	w->arena_off = a->arena_off;
	w->arena_bytes = a->arena_bytes;
	w->sq_head_off = DAEMON_SQ_HEAD;
	w->state_off = DAEMON_STATE;
	w->futex_off = DAEMON_FUTEX;
	w->cqes_off = a->cqes_off;
	w->out_off = a->out_off;
	w->out_bytes = a->out_bytes;
}

bool ring_poll(const struct ring *r)
{
	const struct onebit_sqe *slot = &r->sqes[onebit_slot(r->head, r->sq_entries)];

	/* Pairs with the client's release of seq: the rest of the entry and its block are written. */
	return onebit_load_acquire(&slot->seq) == onebit_seq(r->head);
}

void ring_pop(struct ring *r, struct onebit_sqe *out)
{
	const uint64_t *slot = (const uint64_t *)&r->sqes[onebit_slot(r->head, r->sq_entries)];

	_Static_assert(sizeof(*out) == 8 * sizeof(*slot), "an SQE is eight words");
	/*
	 * Each word is loaded once: the client may be writing. Word by word to its place, because a
	 * wider load of what was just stored in pieces would wait for the stores to retire (10 ns).
	 */
	for (int i = 0; i < 8; i++) {
		uint64_t w = __atomic_load_n(&slot[i], __ATOMIC_RELAXED);

		memcpy((uint8_t *)out + 8 * i, &w, 8);
	}
	r->head++;
}

void ring_release(struct ring *r)
{
	if (r->released == r->head)
		return;
	r->released = r->head;
	/* Pairs with the client's acquire of sq_head: the slots below are free to be written again. */
	onebit_store_release(r->sq_head, r->head);
}

uint32_t ring_room(struct ring *r, uint32_t want)
{
	uint32_t room = r->cq_entries - onebit_distance(r->head_seen, r->tail);
	uint32_t head;

	if (room >= want)
		return room;
	/* Pairs with the client's release of cq_head: it has read what lies below. */
	head = onebit_load_acquire(r->cq_head);
	if (onebit_distance(r->head_seen, head) <= onebit_distance(r->head_seen, r->told))
		r->head_seen = head;
	else
		r->ahead = onebit_distance(r->told, head);
	return r->cq_entries - onebit_distance(r->head_seen, r->tail);
}

/* The word of a CQE that says whether it is there: flags and choice. */
static uint32_t *mark_of(struct ring *r, uint32_t index)
{
	return (uint32_t *)(void *)&r->cqes[onebit_slot(index, r->cq_entries)].flags;
}

struct onebit_cqe *ring_push(struct ring *r, uint16_t flags, uint16_t choice)
{
	uint16_t absent = onebit_phase(r->tail, r->cq_entries) ^ ONEBIT_CQE_PHASE;

	assert(onebit_distance(r->head_seen, r->tail) < r->cq_entries);
	onebit_store_relaxed(mark_of(r, r->tail), (uint32_t)(flags | absent) | (uint32_t)choice << 16);
	return &r->cqes[onebit_slot(r->tail++, r->cq_entries)];
}

bool ring_unreaped(struct ring *r, uint32_t index)
{
	uint32_t age = onebit_distance(index, r->tail); /* 1: the newest */

	if (age > onebit_distance(r->head_seen, r->tail))
		return false;
	ring_room(r, r->cq_entries); /* look at the client's head afresh */
	return age <= onebit_distance(r->head_seen, r->tail);
}

void ring_publish(struct ring *r)
{
	uint32_t i = r->tail;

	/*
	 * The newest first, the oldest last: a client that spins on the oldest finds all of them.
	 * Pairs with its acquire of the same word: CQEs and out windows are written.
	 */
	while (i != r->told) {
		uint32_t *mark = mark_of(r, --i);

		onebit_store_release(mark, onebit_load_relaxed(mark) ^ ONEBIT_CQE_PHASE);
	}
	r->told = r->tail;
}

void ring_rouse(struct ring *r)
{
	onebit_store_release(r->futex, ++r->sleeps);
}

uint32_t ring_need(const struct ring *r)
{
	return onebit_load_relaxed(&r->wake->need) & (ONEBIT_WAKE_FUTEX | ONEBIT_WAKE_NOTIFY);
}

uint32_t ring_client_cpu(const struct ring *r)
{
	return onebit_load_relaxed(&r->wake->cpu);
}

void ring_flags(struct ring *r, uint32_t flags)
{
	if (flags == r->flags)
		return;
	r->flags = flags;
	onebit_store_relaxed(&r->state->flags, flags);
}

void copy_shared(void *dst, const void *src, uint32_t len)
{
	const uint8_t *s = src;
	uint8_t *d = dst;

	while (len && ((uintptr_t)s & 7)) {
		*d++ = __atomic_load_n(s++, __ATOMIC_RELAXED);
		len--;
	}
	for (; len >= 8; len -= 8, s += 8, d += 8) {
		uint64_t w = __atomic_load_n((const uint64_t *)(const void *)s, __ATOMIC_RELAXED);
		memcpy(d, &w, 8);
	}
	while (len--)
		*d++ = __atomic_load_n(s++, __ATOMIC_RELAXED);
}

void ring_copy_in(const struct ring *r, uint32_t off, void *dst, uint32_t len)
{
	assert(len <= r->arena_bytes && off <= r->arena_bytes - len);
	copy_shared(dst, r->arena + off, len);
}

/* SPDX-License-Identifier: MIT */
#ifndef RING_H
#define RING_H

#include <stdbool.h>
#include <stdint.h>
#include "attach.h"
#include "onebit.h"

/*
 * The daemon's end of one client's rings.
 *
 * The CLIENT region may change between any two of our instructions: ring_pop(), ring_room(),
 * ring_need() and ring_copy_in() are the only functions that read it. The DAEMON region is written
 * here and never read back. Owned by its struct client; one thread.
 */
struct ring {
	/* shared, written by the client */
	uint32_t *cq_head;
	struct onebit_wake *wake;
	const struct onebit_sqe *sqes;
	const uint8_t *arena;
	/* shared, written by us */
	uint32_t *sq_head;
	struct onebit_state *state;
	uint32_t *futex;
	struct onebit_cqe *cqes;
	uint8_t *out;
	/* ours, so that the client cannot move them */
	uint32_t sq_entries, cq_entries;
	uint32_t arena_bytes, out_bytes;
	uint32_t head;      /* of the SQ: next entry to take */
	uint32_t released;  /* what sq_head says */
	uint32_t tail;      /* of the CQ: next entry to write */
	uint32_t told;      /* CQEs below it are marked as there */
	uint32_t head_seen; /* CQEs below it are known to be reaped */
	uint32_t ahead;     /* not 0: cq_head claims so many that were never there */
	uint32_t flags;     /* what state.flags says */
	uint32_t sleeps;    /* what the futex word says */
};

/* Lay the ring over two zeroed regions and write their first values. */
void ring_init(struct ring *r, const struct attach *a, void *client_region, void *daemon_region);
/* Fill the offsets of the welcome. */
void ring_welcome(const struct ring *r, const struct attach *a, struct onebit_welcome *w);

/* Is there an entry? */
bool ring_poll(const struct ring *r);
/* Copy the oldest entry out, after ring_poll() said yes. The copy is all there is from now on. */
void ring_pop(struct ring *r, struct onebit_sqe *out);
/* Tell the client which entries are free again: once a drain. */
void ring_release(struct ring *r);

/*
 * CQ entries that can be written now; reads the client's head only if `want` may not fit. A head
 * that ran ahead of what was published sets r->ahead, and the caller detaches the client.
 */
uint32_t ring_room(struct ring *r, uint32_t want);
/*
 * The next CQE, with flags and choice set, for the caller to fill in the rest; there must be room.
 * It lies in shared memory: write only. Seen by the client after ring_publish().
 */
struct onebit_cqe *ring_push(struct ring *r, uint16_t flags, uint16_t choice);
/* Is the CQE with this index still unreaped? */
bool ring_unreaped(struct ring *r, uint32_t index);
/* Make what was pushed visible. The caller fences, then asks ring_need(). */
void ring_publish(struct ring *r);
/* Change the futex word, before waking who sleeps on it. */
void ring_rouse(struct ring *r);
/* ONEBIT_WAKE_* the client asks for; anything else it wrote is ignored. */
uint32_t ring_need(const struct ring *r);
/* The CPU the client says it runs on, + 1; 0: not told. */
uint32_t ring_client_cpu(const struct ring *r);
void ring_flags(struct ring *r, uint32_t flags);

/* Copy len bytes of the arena, whose range was checked, out to where they can be judged. */
void ring_copy_in(const struct ring *r, uint32_t off, void *dst, uint32_t len);

/* Copy memory another process may be writing, in words: no byte is read twice. */
void copy_shared(void *dst, const void *src, uint32_t len);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LIB_RING_H
#define LIB_RING_H

#include <stdbool.h>
#include <stddef.h>
#include "lib_attach.h"
#include "onebit_ring.h"

/*
 * The client's end of the two queues of one attachment. Its own indices live here and are only
 * copied to the shared words; the daemon's head is looked at when the ring seems full, so that an
 * operation touches two shared lines: its SQE and its CQE.
 */
struct lib_ring {
	/* ours, and what we last saw of the daemon's */
	__u32 sq_tail, sq_published, sq_head_seen;
	__u32 cq_head;
	__u32 sq_entries, cq_entries;
	__u32 cpu_told; /* what wake->cpu holds */
	__u32 unrung;   /* CQEs reaped since the last doorbell: matters when STALLED */
	int doorbell;   /* of the link */

	struct onebit_sqe *sqes; /* CLIENT region */
	__u32 *cq_head_word;
	struct onebit_wake *wake;
	char *arena;

	const struct onebit_cqe *cqes; /* DAEMON region */
	const __u32 *sq_head_word;
	const __u32 *futex_word;
	const struct onebit_state *state;
	const char *out;
};

void lib_ring_init(struct lib_ring *r, const struct lib_link *l);
/* The next free SQE, zeroed; NULL: the ring is full. It goes out with lib_ring_publish(). */
struct onebit_sqe *lib_ring_sqe(struct lib_ring *r);
void lib_ring_publish(struct lib_ring *r);
/* NULL: not there yet. */
const struct onebit_cqe *lib_ring_cqe(struct lib_ring *r, __u32 ahead);
void lib_ring_reap(struct lib_ring *r, __u32 n);
/* Has the daemon taken the SQE with this index? */
bool lib_ring_passed(struct lib_ring *r, __u32 index);
/*
 * After a fence, before sleeping: wake a daemon that stalled on a full CQ just when we made room.
 * Without this its STALLED and our reaping could miss each other.
 */
void lib_ring_unstall(struct lib_ring *r);

#endif

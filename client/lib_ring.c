/* SPDX-License-Identifier: MIT */
/*
 * Index arithmetic is onebit_ring.h's; here is when a word is loaded or stored. Publishing is one
 * release store of sq_tail for any number of SQEs, one full fence, one load of the daemon's flags.
 * No function here makes a system call except to ring the doorbell when the flags ask for it.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>
#include <unistd.h>
#include "lib_ring.h"
#include "lib_onebit.h"

#define UNRUNG_MAX 16u /* CQEs that a stalled daemon may wait for before it is told of the room */

void lib_ring_init(struct lib_ring *r, const struct lib_link *l)
{
	const struct onebit_welcome *w = &l->welcome;
	char *c = l->client;
	const char *d = l->daemon;

	*r = (struct lib_ring){
		.sq_entries = w->sq_entries,
		.cq_entries = w->cq_entries,
		.doorbell = l->doorbell,
		.sqes = (struct onebit_sqe *)(c + w->sqes_off),
		.sq_tail_word = (__u32 *)(c + w->sq_tail_off),
		.cq_head_word = (__u32 *)(c + w->cq_head_off),
		.wake = (struct onebit_wake *)(c + w->wake_off),
		.arena = c + w->arena_off,
		.cqes = (const struct onebit_cqe *)(d + w->cqes_off),
		.sq_head_word = (const __u32 *)(d + w->sq_head_off),
		.cq_tail_word = (const __u32 *)(d + w->cq_tail_off),
		.state = (const struct onebit_state *)(d + w->state_off),
		.out = d + w->out_off,
	};
	/* The daemon chose where both rings start before it sent the welcome. */
	r->sq_tail = r->sq_published = r->sq_head_seen = onebit_load_acquire(r->sq_head_word);
	r->cq_head = r->cq_tail_seen = onebit_load_acquire(r->cq_tail_word);
}

static void doorbell_ring(struct lib_ring *r)
{
	const uint64_t one = 1;

	r->unrung = 0;
	/* EAGAIN: the counter is full, so the doorbell rings already. Nothing else can be mended here. */
	while (write(r->doorbell, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

struct onebit_sqe *lib_ring_sqe(struct lib_ring *r)
{
	struct onebit_sqe *sqe;

	if (onebit_distance(r->sq_head_seen, r->sq_tail) >= r->sq_entries) {
		/* Pairs with the daemon's release of sq_head: it has copied the SQEs below. */
		r->sq_head_seen = onebit_load_acquire(r->sq_head_word);
		if (onebit_distance(r->sq_head_seen, r->sq_tail) >= r->sq_entries)
			return NULL;
	}
	sqe = &r->sqes[onebit_slot(r->sq_tail++, r->sq_entries)];
	memset(sqe, 0, sizeof(*sqe));
	return sqe;
}

void lib_ring_publish(struct lib_ring *r)
{
	__u32 cpu;

	if (r->sq_published == r->sq_tail)
		return;
	/* A hint for the daemon's decision to spin, so it need not be newer than the tail. */
	cpu = (__u32)sched_getcpu() + 1;
	if (cpu != r->cpu_told) {
		r->cpu_told = cpu;
		onebit_store_relaxed(&r->wake->cpu, cpu);
	}
	r->sq_published = r->sq_tail;
	/* Pairs with the daemon's acquire of sq_tail: SQEs and their blocks are written. */
	onebit_store_release(r->sq_tail_word, r->sq_tail);
	/* Pairs with the daemon's fence between setting NEED_WAKEUP and looking at sq_tail again. */
	onebit_fence();
	if (onebit_load_relaxed(&r->state->flags) & ONEBIT_SQ_NEED_WAKEUP)
		doorbell_ring(r);
}

const struct onebit_cqe *lib_ring_cqe(struct lib_ring *r, __u32 ahead)
{
	if (ahead >= onebit_distance(r->cq_head, r->cq_tail_seen)) {
		__u32 tail, n;

		/* Pairs with the daemon's release of cq_tail: CQEs and records below are written. */
		tail = onebit_load_acquire(r->cq_tail_word);
		n = onebit_distance(r->cq_head, tail);
		if (n > r->cq_entries)
			r->broken = true;
		if (r->broken || ahead >= n)
			return NULL;
		r->cq_tail_seen = tail;
	}
	return &r->cqes[onebit_slot(r->cq_head + ahead, r->cq_entries)];
}

void lib_ring_reap(struct lib_ring *r, __u32 n)
{
	r->cq_head += n;
	r->unrung += n;
	/* Pairs with the daemon's acquire of cq_head: the slots below may be written again. */
	onebit_store_release(r->cq_head_word, r->cq_head);
	/* Not for each of a batch: the daemon goes on just as well when told at its end. */
	if ((r->unrung >= UNRUNG_MAX || r->cq_head == r->cq_tail_seen) &&
	    (onebit_load_relaxed(&r->state->flags) & ONEBIT_SQ_STALLED)) {
		onebit_fence();
		lib_ring_unstall(r);
	}
}

void lib_ring_unstall(struct lib_ring *r)
{
	if (r->unrung && (onebit_load_relaxed(&r->state->flags) & ONEBIT_SQ_STALLED))
		doorbell_ring(r);
}

bool lib_ring_passed(struct lib_ring *r, __u32 index)
{
	if ((__s32)(r->sq_head_seen - index) > 0)
		return true;
	r->sq_head_seen = onebit_load_acquire(r->sq_head_word);
	return (__s32)(r->sq_head_seen - index) > 0;
}

/* ---- the same for programs ------------------------------------------------------------------ */

struct onebit_sqe *onebit_ring_sqe(struct onebit *o)
{
	return lib_ring_sqe(&o->ring);
}

int onebit_ring_publish(struct onebit *o)
{
	lib_ring_publish(&o->ring);
	return 0;
}

const struct onebit_cqe *onebit_ring_cqe(struct onebit *o, uint32_t ahead)
{
	return lib_ring_cqe(&o->ring, ahead);
}

void onebit_ring_reap(struct onebit *o, uint32_t n)
{
	lib_ring_reap(&o->ring, n);
}

void *onebit_ring_arena(const struct onebit *o, size_t *bytes)
{
	*bytes = o->link.welcome.arena_bytes;
	return o->ring.arena;
}

const void *onebit_ring_out(const struct onebit *o, size_t *bytes)
{
	*bytes = o->link.welcome.out_bytes;
	return o->ring.out;
}

/* SPDX-License-Identifier: MIT */
/*
 * Index arithmetic is onebit_ring.h's; here is when a word is loaded or stored. Publishing marks each
 * SQE, the first of them last, then takes one full fence and one load of the daemon's flags.
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
		.cq_head_word = (__u32 *)(c + w->cq_head_off),
		.wake = (struct onebit_wake *)(c + w->wake_off),
		.arena = c + w->arena_off,
		.cqes = (const struct onebit_cqe *)(d + w->cqes_off),
		.sq_head_word = (const __u32 *)(d + w->sq_head_off),
		.futex_word = (const __u32 *)(d + w->futex_off),
		.state = (const struct onebit_state *)(d + w->state_off),
		.out = d + w->out_off,
	};
	/* The daemon chose where both rings start before it sent the welcome. */
	r->sq_tail = r->sq_published = r->sq_head_seen = onebit_load_acquire(r->sq_head_word);
	r->cq_head = r->sq_head_seen;
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
	/* All but seq, which still says that nothing is here. */
	memset(sqe, 0, offsetof(struct onebit_sqe, seq));
	memset(sqe->reserved3, 0, sizeof(sqe->reserved3));
	return sqe;
}

void lib_ring_publish(struct lib_ring *r)
{
	__u32 cpu, i;

	if (r->sq_published == r->sq_tail)
		return;
	/* A hint for the daemon's decision to spin, so it need not be newer than the SQEs. */
	cpu = (__u32)sched_getcpu() + 1;
	if (cpu != r->cpu_told) {
		r->cpu_told = cpu;
		onebit_store_relaxed(&r->wake->cpu, cpu);
	}
	/* Pairs with the daemon's acquire of seq: SQEs and their blocks are written. */
	for (i = r->sq_tail; i-- != r->sq_published;)
		onebit_store_release(&r->sqes[onebit_slot(i, r->sq_entries)].seq, onebit_seq(i));
	r->sq_published = r->sq_tail;
	/* Pairs with the daemon's fence between setting NEED_WAKEUP and looking at the SQ again. */
	onebit_fence();
	if (onebit_load_relaxed(&r->state->flags) & ONEBIT_SQ_NEED_WAKEUP)
		doorbell_ring(r);
}

const struct onebit_cqe *lib_ring_cqe(struct lib_ring *r, __u32 ahead)
{
	const struct onebit_cqe *cqe = &r->cqes[onebit_slot(r->cq_head + ahead, r->cq_entries)];
	__u32 mark;

	if (ahead >= r->cq_entries)
		return NULL;
	/* Pairs with the daemon's release of the phase: the CQE and its records are written. */
	mark = onebit_load_acquire((const __u32 *)(const void *)&cqe->flags);
	return onebit_phase_is(mark, r->cq_head + ahead, r->cq_entries) ? cqe : NULL;
}

void lib_ring_reap(struct lib_ring *r, __u32 n)
{
	r->cq_head += n;
	r->unrung += n;
	/* Pairs with the daemon's acquire of cq_head: the slots below may be written again. */
	onebit_store_release(r->cq_head_word, r->cq_head);
	/*
	 * Not for each of a batch: the daemon goes on just as well when told at its end. And without
	 * a fence, which would cost each round trip 5 ns: a STALLED that this look just missed is
	 * seen by the next reap, or by whoever waits (lib_wait.c fences before it looks).
	 */
	if ((onebit_load_relaxed(&r->state->flags) & ONEBIT_SQ_STALLED) &&
	    (r->unrung >= UNRUNG_MAX || !lib_ring_cqe(r, 0))) {
		doorbell_ring(r);
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

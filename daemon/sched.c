/* SPDX-License-Identifier: MIT */
/*
 * Which waiting request runs next. In this order: the class after aging, the principal that was
 * served least, the earlier deadline, the older request. Suspects (see limits.h) go first and
 * alone: a request runs beside one only after that one has proven itself with a token.
 *
 * One pass over the waiting list, whose length max_requests bounds; a slot comes free once an
 * answer, so this is not on the way of a token.
 */
#include "core.h"

static uint32_t class_of(const struct broker *b, const struct request *r)
{
	static const uint32_t rank[ONEBIT_PRIO_COUNT] = {
		[ONEBIT_PRIO_INTERACTIVE] = 0,
		[ONEBIT_PRIO_NORMAL] = 1,
		[ONEBIT_PRIO_BATCH] = 2,
	};
	uint64_t risen = (b->now - r->accepted_ns) / AGING_NS;

	return rank[r->priority] > risen ? rank[r->priority] - (uint32_t)risen : 0;
}

static bool before(const struct broker *b, const struct request *x, const struct request *y)
{
	uint32_t cx = class_of(b, x), cy = class_of(b, y);
	uint64_t sx = b->quota.p[x->who].served, sy = b->quota.p[y->who].served;

	if (cx != cy)
		return cx < cy;
	if (sx != sy)
		return sx < sy;
	if (x->deadline_ns != y->deadline_ns)
		return x->deadline_ns < y->deadline_ns;
	return x->id < y->id;
}

struct request *sched_pick(struct broker *b, unsigned link)
{
	const struct link *l = &b->link[link];
	struct request *best = NULL;

	if (l->alone != NONE || (l->waiting_suspects && l->n_running))
		return NULL;
	for (uint32_t i = b->wait_first; i != NONE; i = b->requests[i].wnext) {
		struct request *r = &b->requests[i];

		if (r->link != link || (l->waiting_suspects && !r->suspect))
			continue;
		if (!best || before(b, r, best))
			best = r;
	}
	return best;
}

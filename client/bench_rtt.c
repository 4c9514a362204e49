/* SPDX-License-Identifier: MIT */
/*
 * Round trips of a NOP over the ring: from filling the SQE to having its CQE, with the daemon taking
 * it, judging it and completing it in between, as it does with everything else.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include "bench_row.h"

enum {
	WARM_NS = 5000000, /* the daemon's ring becomes hot, and its spin budget known to both */
	LOST_MS = 1000,	   /* an operation that takes longer than this is not slow but lost */
};

static int push(struct bench *b, struct onebit *o, uint64_t tag)
{
	struct onebit_sqe *sqe = onebit_ring_sqe(o);
	int ret;

	if (!sqe)
		return bench_fail(b, -EBUSY, "the ring is full with nothing in flight");
	sqe->op = ONEBIT_OP_NOP;
	sqe->user_data = tag;
	ret = onebit_ring_publish(o);
	if (ret < 0)
		return bench_fail(b, ret, "cannot publish: %s", strerror(-ret));
	return 0;
}

static int pop(struct bench *b, struct onebit *o, const struct onebit_cqe *cqe, uint64_t tag)
{
	if (cqe->user_data != tag || cqe->res < 0)
		return bench_fail(b, -EIO, "a NOP came back as %d, %s", cqe->res,
				  cqe->user_data == tag ? onebit_code_name(cqe->u.end.code) :
				  "and as another one's");
	onebit_ring_reap(o, 1);
	return 0;
}

int rtt_trip(struct bench *b, struct onebit *o, uint64_t tag)
{
	const struct onebit_cqe *cqe;
	int ret = push(b, o, tag);

	if (ret)
		return ret;
	while (!(cqe = onebit_ring_cqe(o, 0))) {
		ret = onebit_ring_wait(o, LOST_MS);
		if (!ret)
			return bench_fail(b, -ETIMEDOUT, "a NOP did not come back in %d ms", LOST_MS);
		if (ret < 0 && ret != -EINTR)
			return bench_fail(b, ret, "the daemon went away: %s", strerror(-ret));
	}
	return pop(b, o, cqe, tag);
}

int rtt_run(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	static const struct {
		uint32_t wait;
		uint64_t features;
	} kinds[] = {
		[RTT_SPIN] = { ONEBIT_WAIT_SPIN, ONEBIT_FEAT_SPIN },
		[RTT_SLEEP] = { ONEBIT_WAIT_SLEEP, 0 },
		[RTT_ADAPTIVE] = { ONEBIT_WAIT_ADAPTIVE, ONEBIT_FEAT_SPIN },
	};
	unsigned block = r->kind == RTT_SPIN ? b->block : 1;
	uint64_t t, last, end, tag = 0;
	struct onebit *o;
	int ret;

	(void)value;
	assert(block);
	ret = bench_open(b, &o, kinds[r->kind].wait, kinds[r->kind].features);
	if (ret)
		return ret;
	if (r->kind == RTT_SPIN && !onebit_welcome(o)->spin_ns) {
		ret = bench_fail(b, -EPERM, "the daemon does not spin for us; set limit.spin_us");
		goto out;
	}
	end = bench_now() + WARM_NS;
	while (!ret && bench_now() < end)
		ret = rtt_trip(b, o, tag++);
	last = bench_now();
	end = last + ns;
	while (!ret && last < end) {
		for (unsigned i = 0; i < block && !ret; i++)
			ret = rtt_trip(b, o, tag++);
		t = bench_now();
		hist_add(h, (t - last + block / 2) / block, block);
		last = t;
	}
out:
	onebit_close(o);
	return ret;
}

/*
 * One wake: the daemon is asleep, we spin for the completion, so that only its way up is timed. The
 * attachments take turns: with many of them each is a ring that the daemon has not seen for long.
 */
int rtt_wake(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	uint64_t t0 = bench_now(), end = t0 + ns, rest, limit, n = 0;
	const unsigned n_fleet = b->n_fleet;
	const struct onebit_cqe *cqe;
	int ret;

	(void)r;
	(void)value;
	assert(n_fleet);
	/* The daemon spins for a while after each operation; wait until it has gone to sleep. */
	rest = 2ull * onebit_welcome(b->fleet[0])->spin_ns + 50000;
	while (t0 < end) {
		struct onebit *o = b->fleet[n % n_fleet];

		bench_spin(rest);
		t0 = bench_now();
		limit = t0 + LOST_MS * 1000000ull;
		ret = push(b, o, n);
		if (ret)
			return ret;
		while (!(cqe = onebit_ring_cqe(o, 0))) {
			bench_pause();
			if (bench_now() > limit)
				return bench_fail(b, -ETIMEDOUT, "a NOP did not come back in %d ms",
						  LOST_MS);
		}
		hist_add(h, bench_now() - t0, 1);
		ret = pop(b, o, cqe, n++);
		if (ret)
			return ret;
	}
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Throughput: one thread drives N attachments in turn. At each visit it reaps what has completed
 * and, when a whole batch has room, fills and publishes one batch; up to TPUT_DEPTH operations of a
 * ring are on their way. It never waits, so the daemon is the other half of a pipeline.
 */
#include <errno.h>
#include <string.h>
#include "bench_row.h"

enum {
	LOST_NS = 1000000000,
	WARM_PART = 8, /* the first eighth of the time is not counted */
};

struct drive {
	unsigned out[FLEET_MAX]; /* operations on their way, by attachment */
	uint64_t done;
	uint64_t progress_ns; /* when something last completed */
};

static int reap(struct bench *b, struct drive *d, unsigned i)
{
	struct onebit *o = b->fleet[i];
	const struct onebit_cqe *cqe;
	uint32_t n = 0;

	while ((cqe = onebit_ring_cqe(o, n))) {
		if (cqe->res < 0)
			return bench_fail(b, cqe->res, "a NOP failed: %s",
					  onebit_code_name(cqe->u.end.code));
		n++;
	}
	if (n)
		onebit_ring_reap(o, n);
	d->out[i] -= n;
	d->done += n;
	return 0;
}

static int fill(struct bench *b, struct drive *d, unsigned i, unsigned batch)
{
	struct onebit *o = b->fleet[i];
	int ret;

	if (d->out[i] + batch > TPUT_DEPTH)
		return 0;
	for (unsigned k = 0; k < batch; k++) {
		struct onebit_sqe *sqe = onebit_ring_sqe(o);

		if (!sqe)
			return bench_fail(b, -EBUSY, "the ring is full below its depth");
		sqe->op = ONEBIT_OP_NOP;
		sqe->user_data = k;
	}
	ret = onebit_ring_publish(o);
	if (ret < 0)
		return bench_fail(b, ret, "cannot publish: %s", strerror(-ret));
	d->out[i] += batch;
	return 0;
}

/* Visit all attachments once. */
static int pass(struct bench *b, struct drive *d, unsigned batch, uint64_t now)
{
	uint64_t before = d->done;
	int ret = 0;

	for (unsigned i = 0; i < b->n_fleet && !ret; i++) {
		ret = reap(b, d, i);
		if (!ret && batch)
			ret = fill(b, d, i, batch);
	}
	if (d->done != before)
		d->progress_ns = now;
	else if (!ret && now - d->progress_ns > LOST_NS)
		ret = bench_fail(b, -ETIMEDOUT, "no operation completed for a second");
	return ret;
}

int tput_run(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	static struct drive d;
	uint64_t now = bench_now(), warm = now + ns / WARM_PART, end = warm + ns;
	/* With few attachments a pass is so short that the clock would be a part of it. */
	unsigned passes = b->n_fleet < 64 ? 64 / b->n_fleet : 1;
	uint64_t base = 0, start = 0;
	int ret = 0;

	(void)h;
	memset(&d, 0, sizeof(d));
	d.progress_ns = now;
	while (!ret && now < end) {
		for (unsigned i = 0; i < passes && !ret; i++)
			ret = pass(b, &d, r->batch, now);
		now = bench_now();
		if (!start && now >= warm) {
			start = now;
			base = d.done;
		}
	}
	if (!ret)
		*value = (double)(d.done - base) * 1e3 / (double)(now - start);
	/* Leave no operation behind for the next row. */
	for (unsigned left = 1; !ret && left;) {
		ret = pass(b, &d, 0, bench_now());
		left = 0;
		for (unsigned i = 0; i < b->n_fleet; i++)
			left += d.out[i];
	}
	return ret;
}

/* SPDX-License-Identifier: MIT */
/*
 * io_uring's own NOP: one thread, submit and reap. It is what an empty operation costs when the
 * other side is the kernel; the ring's other side is a process that may be on another core.
 */
#include <errno.h>
#include <liburing.h>
#include <string.h>
#include "bench_row.h"

enum { ENTRIES = 128, WARM = 1000 };

static int nops(struct io_uring *ring, unsigned batch)
{
	struct io_uring_cqe *cqe;
	struct io_uring_sqe *sqe;
	int ret;

	for (unsigned i = 0; i < batch; i++) {
		sqe = io_uring_get_sqe(ring);
		if (!sqe)
			return -EBUSY;
		io_uring_prep_nop(sqe);
	}
	ret = io_uring_submit_and_wait(ring, batch);
	if (ret < 0)
		return ret;
	for (unsigned i = 0; i < batch; i++) {
		ret = io_uring_wait_cqe(ring, &cqe);
		if (ret < 0)
			return ret;
		io_uring_cqe_seen(ring, cqe);
	}
	return 0;
}

static int run(struct bench *b, unsigned batch, uint64_t ns, struct hist *h, double *mops)
{
	uint64_t start = 0, end = 0, t0, t1, n = 0;
	struct io_uring ring;
	int ret;

	ret = io_uring_queue_init(ENTRIES, &ring, 0);
	if (ret < 0)
		return bench_fail(b, ret, "io_uring: %s; it may be switched off, see "
				  "/proc/sys/kernel/io_uring_disabled", strerror(-ret));
	t1 = bench_now();
	do {
		t0 = t1;
		ret = nops(&ring, batch);
		t1 = bench_now();
		if (++n == WARM) {
			start = t1;
			end = t1 + ns;
		} else if (n > WARM && h) {
			hist_add(h, t1 - t0, 1);
		}
	} while (!ret && (n < WARM || t1 < end));
	io_uring_queue_exit(&ring);
	if (ret)
		return bench_fail(b, ret, "io_uring: %s", strerror(-ret));
	if (mops)
		*mops = (double)(n - WARM) * batch * 1e3 / (double)(t1 - start);
	return 0;
}

int uring_rtt(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	(void)r;
	(void)value;
	return run(b, 1, ns, h, NULL);
}

int uring_tput(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	(void)h;
	return run(b, r->batch, ns, NULL, value);
}

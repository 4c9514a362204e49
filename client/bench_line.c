/* SPDX-License-Identifier: MIT */
/*
 * The line probe: one cache line goes there and back between two CPUs, nothing else. It is the
 * floor of everything that shares memory, and on a virtual machine it changes within minutes when
 * the host moves the CPUs; so it is measured in every round and the ring's figures are ratios to it.
 *
 * A second probe takes one line each way, with one writer each. It costs more, as the writer of a
 * line that only travels one way must first take it back from its reader, and it is the nearest
 * floor of a queue whose halves are read-only for the other side.
 *
 * Reading the clock costs some 20 ns or more. Where that is above 5 % of a round trip, 16 trips are
 * timed together in this row and in the ring's spinning row alike, so that they stay comparable; the
 * tail is then that of means of 16.
 */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include "bench_row.h"

enum { LINE_BLOCK = 16, CLOCK_READS = 1024, CLOCK_TRIES = 8, WARM_TRIPS = 20000 };

struct line {
	_Alignas(128) uint32_t there; /* odd: the ball is over there */
	_Alignas(128) uint32_t back;
	_Alignas(128) uint32_t stop;
	uint32_t *answer; /* the word the ball comes back in: one of the two above */
	const struct bench *b;
};

static void *line_echo(void *arg)
{
	struct line *l = arg;
	uint32_t *answer = l->answer, last = 0, w;

	place_side(l->b, PLACE_TWO, 1);
	while (!__atomic_load_n(&l->stop, __ATOMIC_RELAXED)) {
		/* Pairs with the release in line_trip(), and the store with its acquire. */
		w = __atomic_load_n(&l->there, __ATOMIC_ACQUIRE);
		if (w == last || !(w & 1)) {
			bench_pause();
			continue;
		}
		last = w;
		__atomic_store_n(answer, w + 1, __ATOMIC_RELEASE);
	}
	return NULL;
}

static inline void line_trip(struct line *l, uint32_t *at)
{
	uint32_t want = *at + 2;

	__atomic_store_n(&l->there, *at + 1, __ATOMIC_RELEASE);
	while (__atomic_load_n(l->answer, __ATOMIC_ACQUIRE) != want)
		bench_pause();
	*at = want;
}

int line_run(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	static struct line line;
	uint64_t t, last, end;
	pthread_t thread;
	uint32_t at = 0;
	int ret;

	(void)value;
	memset(&line, 0, sizeof(line));
	line.b = b;
	line.answer = r && r->kind == LINE_PAIR ? &line.back : &line.there;
	ret = pthread_create(&thread, NULL, line_echo, &line);
	if (ret)
		return bench_fail(b, -ret, "cannot start a thread: %s", strerror(ret));
	for (int i = 0; i < WARM_TRIPS; i++)
		line_trip(&line, &at);
	last = bench_now();
	end = last + ns;
	while (last < end) {
		for (unsigned i = 0; i < b->block; i++)
			line_trip(&line, &at);
		t = bench_now();
		hist_add(h, (t - last + b->block / 2) / b->block, b->block);
		last = t;
	}
	__atomic_store_n(&line.stop, 1, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);
	return 0;
}

int line_calibrate(struct bench *b)
{
	static struct hist h;
	uint64_t t;
	double cost;
	int ret;

	/* The least of several: whatever else runs on this CPU is not the clock's cost. */
	for (int k = 0; k < CLOCK_TRIES; k++) {
		t = bench_now();
		for (int i = 0; i < CLOCK_READS; i++)
			(void)bench_now();
		cost = (double)(bench_now() - t) / (CLOCK_READS + 1);
		if (!k || cost < b->clock_ns)
			b->clock_ns = cost;
	}
	b->block = LINE_BLOCK;
	if (b->cpu[0] == b->cpu[1])
		return 0;
	hist_init(&h);
	place_side(b, PLACE_TWO, 0);
	ret = line_run(b, NULL, 20000000, &h, NULL);
	if (!ret && b->clock_ns * 20 <= (double)hist_quantile(&h, 0.5))
		b->block = 1;
	return ret;
}

/* SPDX-License-Identifier: MIT */
/*
 * Reads memory as fast as it comes, and multiplies as fast as registers go (probe_macs.h).
 *
 * Reading: one pass of 64-byte lines in ascending order, four vectors of
 * 16 bytes each: the hardware prefetcher does the rest. Wider loads, software prefetch and several
 * streams were tried on an EPYC of Zen 4 and were no faster, so that no CPU needs code of its own
 * here.
 *
 * Large pages, because with small ones the page walks are measured too; a model's mapping asks for
 * them as well. What is read is written first: pages never written are all one page of zeros.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "probe.h"
#include "probe_macs.h"

#define MAX_THREADS 256u
#define MAX_ROUNDS  101u
#define LARGE_PAGE  ((size_t)2 << 20)
#define MACS_ROUNDS 9u
#define MACS_TURNS  ((uint64_t)1 << 20) /* some milliseconds */

typedef uint64_t words __attribute__((vector_size(16)));

struct reader {
	pthread_t thread;
	struct probe *all;
	char *from;
	uint64_t seen;
};

struct probe {
	pthread_mutex_t gate; /* held until it is known whether all threads are there */
	bool go;
	pthread_barrier_t line;
	const struct macs_loop *macs; /* what is run instead of reading */
	size_t share; /* bytes a thread */
	unsigned rounds;
	double at[MAX_ROUNDS + 1]; /* when each round began; by the first reader */
	struct reader readers[MAX_THREADS];
};

static double now_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t read_all(const char *from, size_t bytes)
{
	const words *p = (const words *)(const void *)from, *end = p + bytes / 64 * 4;
	words a = { 0 }, b = a, c = a, d = a;

	for (; p < end; p += 4) {
		a |= p[0];
		b |= p[1];
		c |= p[2];
		d |= p[3];
	}
	a |= b | c | d;
	return a[0] | a[1];
}

static void *reader_run(void *arg)
{
	struct reader *r = arg;
	struct probe *p = r->all;
	bool go;

	pthread_mutex_lock(&p->gate);
	go = p->go;
	pthread_mutex_unlock(&p->gate);
	if (!go)
		return NULL;
	if (!p->macs)
		memset(r->from, 1, p->share);
	for (unsigned i = 0; i <= p->rounds; i++) {
		/* A round ends when the slowest is done. */
		pthread_barrier_wait(&p->line);
		if (r == p->readers)
			p->at[i] = now_s();
		if (i == p->rounds)
			break;
		if (p->macs)
			p->macs->turns(MACS_TURNS);
		else
			r->seen |= read_all(r->from, p->share);
	}
	return NULL;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

/* Whether it ran: fails when there are not so many threads to be had. */
static bool run(struct probe *p, unsigned threads, char *memory)
{
	unsigned started = 1;

	if (pthread_barrier_init(&p->line, NULL, threads))
		return false;
	pthread_mutex_init(&p->gate, NULL);
	for (unsigned i = 0; i < threads; i++)
		p->readers[i] = (struct reader){ .all = p,
						 .from = memory ? memory + i * p->share : NULL };
	pthread_mutex_lock(&p->gate);
	while (started < threads &&
	       !pthread_create(&p->readers[started].thread, NULL, reader_run, &p->readers[started]))
		started++;
	p->go = started == threads;
	pthread_mutex_unlock(&p->gate);
	reader_run(&p->readers[0]);
	for (unsigned i = 1; i < started; i++)
		pthread_join(p->readers[i].thread, NULL);
	pthread_barrier_destroy(&p->line);
	pthread_mutex_destroy(&p->gate);
	return p->go;
}

/* Seconds, the median of the rounds. */
static double median_s(const struct probe *p)
{
	double took[MAX_ROUNDS] = { 0 };

	for (unsigned i = 0; i < p->rounds; i++)
		took[i] = p->at[i + 1] - p->at[i];
	qsort(took, p->rounds, sizeof(*took), by_size);
	return took[p->rounds / 2];
}

double probe_macs(unsigned threads)
{
	const struct macs_loop *loop = macs_loop_best();
	struct probe *p;
	double macs = 0;

	threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
	p = loop ? calloc(1, sizeof(*p)) : NULL;
	if (!p)
		return 0;
	p->macs = loop;
	p->rounds = MACS_ROUNDS;
	if (run(p, threads, NULL))
		macs = (double)loop->macs * (double)MACS_TURNS * threads / median_s(p) * 1e-9;
	free(p);
	return macs;
}

double probe_read_gbs(unsigned threads, size_t bytes, unsigned rounds)
{
	double gbs = 0;
	struct probe *p;
	char *memory;
	size_t share;

	threads = threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads;
	rounds = rounds < 1 ? 1 : rounds > MAX_ROUNDS ? MAX_ROUNDS : rounds;
	share = (bytes / threads + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
	if (bytes == 0 || bytes > SIZE_MAX / 4)
		return 0;
	p = calloc(1, sizeof(*p));
	memory = aligned_alloc(LARGE_PAGE, share * threads);
	if (p && memory) {
		/* Refused is measured as well, and told by the figure. */
		(void)madvise(memory, share * threads, MADV_HUGEPAGE);
		p->share = share;
		p->rounds = rounds;
		if (run(p, threads, memory))
			gbs = (double)share * threads / median_s(p) * 1e-9;
	}
	free(memory);
	free(p);
	return gbs;
}

/* SPDX-License-Identifier: MIT */
/*
 * Workers and their barrier. A run is two barriers around a function: workers wait at the first
 * until the caller arrives there, and the caller waits at the second until all are done.
 *
 * The barrier counts arrivals in two levels, eight workers on one cache line and one line of these
 * counts, so that with 64 workers 16 additions follow one another and not 64; with eight or fewer
 * it is a single count. Who arrives last moves the turn on, which all others watch. They spin on it
 * for a while that is longer than workers usually are apart, then sleep on it as a futex; with more
 * workers than CPUs the one that is waited for may need this CPU, so they hardly spin.
 */
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "pool.h"

#define LINE	 64u
#define TEAM	 8u	/* workers that count on one line */
#define TEAMS	 (POOL_THREADS_MAX / TEAM)
#define SPIN_NS	 50000u /* a sleep and its wake-up cost about 5 us on each side */
#define CROWD_NS 1000u	/* more workers than CPUs */
#define PAUSES	 32u	/* between looks at the clock, 1 to 2 us */

struct count {
	_Alignas(LINE) uint32_t arrived;
};

struct worker {
	pthread_t thread;
	struct pool *pool;
	unsigned index;
};

struct pool {
	/*
	 * Written by the last to arrive, with release: what all have done before is seen by who
	 * reads it with acquire. Its futex is what sleepers wait for.
	 */
	_Alignas(LINE) uint32_t turn;
	/*
	 * How many sleep or are about to. Who moves the turn looks here afterwards; both seq_cst.
	 */
	_Alignas(LINE) uint32_t sleepers;
	struct count teams[TEAMS]; /* of each: arrivals in this turn */
	struct count whole;	   /* teams that are complete */

	_Alignas(LINE) unsigned threads, n_teams, spin_ns;
	pool_fn *fn; /* NULL: workers end. Written before a barrier, read after it. */
	void *ctx;
	pthread_mutex_t gate; /* held until it is known whether all threads are there */
	bool broken;	      /* they are not */
	bool pinned;
	cpu_set_t cpus; /* of the maker, before it was pinned */
	struct worker workers[POOL_THREADS_MAX];
};

/* ---- the barrier ----------------------------------------------------------------------------- */

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb"); /* yield is a no-op on most cores */
#endif
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static long futex(uint32_t *word, int op, uint32_t value)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0);
}

static bool has_moved(struct pool *p, uint32_t turn)
{
	return __atomic_load_n(&p->turn, __ATOMIC_ACQUIRE) != turn;
}

static void wait_turn(struct pool *p, uint32_t turn)
{
	uint64_t begin = 0;

	for (;;) {
		for (unsigned i = 0; i < PAUSES; i++) {
			if (has_moved(p, turn))
				return;
			pause_cpu();
		}
		if (!begin)
			begin = now_ns();
		else if (now_ns() - begin > p->spin_ns)
			break;
	}
	/*
	 * Either the mover sees this count and wakes, or its turn comes first in the order of these
	 * four seq_cst accesses and the futex, which compares, does not sleep.
	 */
	__atomic_add_fetch(&p->sleepers, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&p->turn, __ATOMIC_SEQ_CST) == turn)
		futex(&p->turn, FUTEX_WAIT, turn);
	__atomic_sub_fetch(&p->sleepers, 1, __ATOMIC_RELAXED);
}

/* Whether this arrival is the last of n; the count is ready for the next turn then. */
static bool arrive(struct count *c, uint32_t n)
{
	/* Acquire and release: the last has seen what the others did. */
	if (__atomic_add_fetch(&c->arrived, 1, __ATOMIC_ACQ_REL) < n)
		return false;
	/* Nobody comes here again before the turn has moved, which publishes it. */
	__atomic_store_n(&c->arrived, 0, __ATOMIC_RELAXED);
	return true;
}

void pool_barrier(struct pool *p, unsigned worker)
{
	uint32_t turn = __atomic_load_n(&p->turn, __ATOMIC_RELAXED);
	unsigned team = worker / TEAM, left = p->threads - team * TEAM;

	if (p->threads == 1)
		return;
	if (!arrive(&p->teams[team], left < TEAM ? left : TEAM) ||
	    (p->n_teams > 1 && !arrive(&p->whole, p->n_teams))) {
		wait_turn(p, turn);
		return;
	}
	__atomic_store_n(&p->turn, turn + 1, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(&p->sleepers, __ATOMIC_SEQ_CST))
		futex(&p->turn, FUTEX_WAKE, INT_MAX);
}

void pool_run(struct pool *p, pool_fn *fn, void *ctx)
{
	p->fn = fn;
	p->ctx = ctx;
	pool_barrier(p, 0);
	fn(ctx, 0);
	pool_barrier(p, 0);
}

/* ---- threads --------------------------------------------------------------------------------- */

static void *work(void *arg)
{
	struct worker *w = arg;
	struct pool *p = w->pool;
	bool broken;

	pthread_mutex_lock(&p->gate);
	broken = p->broken;
	pthread_mutex_unlock(&p->gate);
	while (!broken) {
		pool_barrier(p, w->index);
		if (!p->fn)
			break;
		p->fn(p->ctx, w->index);
		pool_barrier(p, w->index);
	}
	return NULL;
}

/* The i-th of the CPUs that the maker may run on, counted round. */
static cpu_set_t cpu_of(const cpu_set_t *cpus, unsigned i)
{
	unsigned left = i % (unsigned)CPU_COUNT(cpus), cpu = 0;
	cpu_set_t one;

	while (!CPU_ISSET(cpu, cpus) || left--)
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	return one;
}

/* A refusal of a place is no failure: the worker runs, elsewhere. */
static void pin_worker(const struct pool *p, unsigned i, pthread_t thread)
{
	cpu_set_t one = cpu_of(&p->cpus, i);

	(void)pthread_setaffinity_np(thread, sizeof(one), &one);
}

/*
 * All but worker 0. Signals are for the thread that made them, except for those that a thread
 * causes itself: blocked, these could not be told from one another.
 */
static int start(struct pool *p, unsigned *started)
{
	static const int own[] = { SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP, SIGSYS };
	sigset_t all, before;
	int err = 0;

	sigfillset(&all);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(&all, own[i]);
	pthread_sigmask(SIG_BLOCK, &all, &before);
	for (*started = 1; *started < p->threads; ++*started) {
		struct worker *w = &p->workers[*started];

		*w = (struct worker){ .pool = p, .index = *started };
		err = pthread_create(&w->thread, NULL, work, w);
		if (err)
			break;
		if (p->pinned)
			pin_worker(p, w->index, w->thread);
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return -err;
}

int pool_new(unsigned threads, bool pin, struct pool **out, char *why, size_t why_len)
{
	struct pool *p = aligned_alloc(LINE, sizeof(*p));
	unsigned n_cpus, started;
	int err;

	if (!p) {
		snprintf(why, why_len, "no memory for the worker threads");
		return -ENOMEM;
	}
	memset(p, 0, sizeof(*p));
	/* More CPUs than the set holds: then nothing is known of them, and nobody is pinned. */
	if (sched_getaffinity(0, sizeof(p->cpus), &p->cpus)) {
		long n = sysconf(_SC_NPROCESSORS_ONLN);

		n_cpus = n < 1 ? 1 : (unsigned)n;
	} else {
		n_cpus = (unsigned)CPU_COUNT(&p->cpus);
		p->pinned = pin;
	}
	p->threads = threads ? threads : n_cpus;
	if (p->threads > POOL_THREADS_MAX)
		p->threads = POOL_THREADS_MAX;
	p->n_teams = (p->threads + TEAM - 1) / TEAM;
	p->spin_ns = p->threads > n_cpus ? CROWD_NS : SPIN_NS;
	pthread_mutex_init(&p->gate, NULL);
	pthread_mutex_lock(&p->gate);
	err = start(p, &started);
	p->broken = err != 0;
	pthread_mutex_unlock(&p->gate);
	if (err) {
		snprintf(why, why_len,
			 "worker thread %u of %u could not be started (%s): ask for fewer threads",
			 started + 1, p->threads, strerror(-err));
		p->threads = started;
		pool_free(p);
		return -EAGAIN;
	}
	if (p->pinned)
		pin_worker(p, 0, pthread_self());
	*out = p;
	return 0;
}

struct pool *pool_free(struct pool *p)
{
	if (!p)
		return NULL;
	if (!p->broken) {
		p->fn = NULL;
		pool_barrier(p, 0);
	}
	for (unsigned i = 1; i < p->threads; i++)
		pthread_join(p->workers[i].thread, NULL);
	if (p->pinned && !p->broken)
		(void)pthread_setaffinity_np(pthread_self(), sizeof(p->cpus), &p->cpus);
	pthread_mutex_destroy(&p->gate);
	free(p);
	return NULL;
}

unsigned pool_threads(const struct pool *p)
{
	return p->threads;
}

/* SPDX-License-Identifier: MIT */
/*
 * The worker pool: nobody passes a barrier before all are there, nothing that was written before it
 * is missing behind it, and waiting costs no CPU. Run with SAN=thread as well.
 */
#include <check.h>
#include <errno.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "lib_vocab.h"
#include "pool.h"

static char why[256];

static struct pool *pool_of(unsigned threads, bool pin)
{
	struct pool *p = NULL;

	ck_assert_msg(pool_new(threads, pin, &p, why, sizeof(why)) == 0, "%s", why);
	return p;
}

/* Plain memory that barriers alone keep in order. */
struct relay {
	struct pool *pool;
	unsigned rounds;
	uint64_t seed;
	uint64_t cell[POOL_THREADS_MAX];
	unsigned ran[POOL_THREADS_MAX], wrong[POOL_THREADS_MAX];
};

/* Each writes its cell, all read all cells, again and again; now and then one is late. */
static void pass_on(void *ctx, unsigned w)
{
	struct relay *r = ctx;
	unsigned n = pool_threads(r->pool);
	uint64_t rng = r->seed + w;

	r->ran[w]++;
	for (unsigned i = 1; i <= r->rounds; i++) {
		if (test_random(&rng) % 512 == 0)
			usleep((useconds_t)(test_random(&rng) % 200));
		r->cell[w] = i;
		pool_barrier(r->pool, w);
		for (unsigned j = 0; j < n; j++)
			r->wrong[w] += r->cell[j] != i;
		pool_barrier(r->pool, w);
	}
}

static void relay(unsigned threads, unsigned runs, unsigned rounds, uint64_t seed)
{
	struct relay r = { .pool = pool_of(threads, false), .rounds = rounds, .seed = seed };

	ck_assert_uint_eq(pool_threads(r.pool), threads);
	for (unsigned i = 0; i < runs; i++)
		pool_run(r.pool, pass_on, &r);
	for (unsigned w = 0; w < POOL_THREADS_MAX; w++) {
		ck_assert_uint_eq(r.ran[w], w < threads ? runs : 0);
		ck_assert_uint_eq(r.wrong[w], 0);
	}
	pool_free(r.pool);
}

/*
 * A worker that goes on too early reads what is not yet written: a wrong token once in a million.
 */
START_TEST(barrier)
{
	static const unsigned threads[] = { 1, 2, 3, 7, 8, 9, 16, 17, 33 };
	uint64_t seed = test_seed("pool");

	for (size_t i = 0; i < sizeof(threads) / sizeof(threads[0]); i++)
		relay(threads[i], 5, (unsigned)test_scaled(2000 / threads[i]) + 1, seed + i);
	relay(2, 1, (unsigned)test_scaled(20000) + 1, seed);
	relay(POOL_THREADS_MAX, 2, 3, seed);
}
END_TEST

static void nothing(void *ctx, unsigned w)
{
	(void)ctx;
	(void)w;
}

/* Runs with pauses between, so long that workers sleep: a wake-up that is lost hangs here. */
START_TEST(sleeping)
{
	struct relay r = { .pool = pool_of(4, false), .rounds = 3, .seed = test_seed("sleeping") };
	uint64_t rng = r.seed;

	for (unsigned i = 0; i < test_scaled(300); i++) {
		struct timespec pause = { 0, (long)(test_random(&rng) % 200000) };

		nanosleep(&pause, NULL);
		pool_run(r.pool, pass_on, &r);
	}
	for (unsigned w = 0; w < 4; w++)
		ck_assert_uint_eq(r.wrong[w], 0);
	pool_free(r.pool);
}
END_TEST

static double cpu_s(void)
{
	struct rusage u;

	getrusage(RUSAGE_SELF, &u);
	return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
	       (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

/* An idle engine that spins heats the room, and takes the CPU from who asks it something. */
START_TEST(idle)
{
	struct pool *p = pool_of(8, false);
	double before;

	pool_run(p, nothing, NULL);
	before = cpu_s();
	usleep(300000);
	/* Eight that spin would have 0.3 s and more even of one CPU. */
	ck_assert(cpu_s() - before < 0.1);
	pool_free(p);
}
END_TEST

static void where(void *ctx, unsigned w)
{
	((int *)ctx)[w] = sched_getcpu();
}

/* Pinned workers stay where they are, and the caller gets its freedom back. */
START_TEST(pinned)
{
	cpu_set_t before, after;
	unsigned n;
	struct pool *p;
	int *cpu, *again;

	ck_assert_int_eq(sched_getaffinity(0, sizeof(before), &before), 0);
	n = (unsigned)CPU_COUNT(&before);
	p = pool_of(0, true);
	ck_assert_uint_eq(pool_threads(p), n < POOL_THREADS_MAX ? n : POOL_THREADS_MAX);
	n = pool_threads(p);
	cpu = calloc(n, sizeof(*cpu));
	again = calloc(n, sizeof(*again));
	ck_assert(cpu && again);
	pool_run(p, where, cpu);
	usleep(1000);
	pool_run(p, where, again);
	ck_assert_mem_eq(cpu, again, n * sizeof(*cpu));
	for (unsigned i = 0; i < n; i++)
		for (unsigned j = 0; j < i; j++)
			ck_assert_int_ne(cpu[i], cpu[j]);
	free(cpu);
	free(again);
	pool_free(p);
	ck_assert_int_eq(sched_getaffinity(0, sizeof(after), &after), 0);
	ck_assert(CPU_EQUAL(&before, &after));
}
END_TEST

/* A system without room for threads: a sentence, and no thread is left waiting. */
START_TEST(refused)
{
	struct rlimit none = { 0, 0 };
	struct pool *p = NULL;
	pid_t child;
	int status;

	if (geteuid() == 0) {
		/* The limit does not bind root. */
		child = fork();
		ck_assert_int_ge(child, 0);
		if (child == 0) {
			if (setuid(65534) || setrlimit(RLIMIT_NPROC, &none))
				_exit(2);
			_exit(pool_new(4, false, &p, why, sizeof(why)) != -EAGAIN ||
			      !strstr(why, "worker thread 2 of 4"));
		}
		ck_assert_int_eq(waitpid(child, &status, 0), child);
		ck_assert_int_eq(status, 0);
		return;
	}
	ck_assert_int_eq(setrlimit(RLIMIT_NPROC, &none), 0);
	ck_assert_int_eq(pool_new(4, false, &p, why, sizeof(why)), -EAGAIN);
	ck_assert_ptr_nonnull(strstr(why, "worker thread 2 of 4"));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pool");
	TCase *t = tcase_create("pool");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, barrier);
	tcase_add_test(t, sleeping);
	tcase_add_test(t, idle);
	tcase_add_test(t, pinned);
	tcase_add_test(t, refused);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

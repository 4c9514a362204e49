/* SPDX-License-Identifier: MIT */
/*
 * Work in parallel for as long as a call lasts: opening and verifying take whole threads for less
 * than a second, once, so there is no pool.
 */
#include <pthread.h>
#include "obm_check.h"

#define THREADS_MAX 256u

struct call {
	void (*work)(void *arg);
	void *arg;
};

static void *run(void *arg)
{
	struct call *c = arg;

	c->work(c->arg);
	return NULL;
}

unsigned obm_parallel(unsigned threads, void (*work)(void *arg), void *arg)
{
	struct call c = { work, arg };
	pthread_t thread[THREADS_MAX];
	unsigned n = 0;

	/* A thread that cannot be had is work for the others. */
	while (n + 1 < threads && n < THREADS_MAX && !pthread_create(&thread[n], NULL, run, &c))
		n++;
	work(arg);
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	return n + 1;
}

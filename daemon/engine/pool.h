/* SPDX-License-Identifier: MIT */
#ifndef POOL_H
#define POOL_H

/*
 * A fixed set of threads that run one function together and meet at barriers inside it. The thread
 * that calls pool_run() is worker 0; nobody else may call. Between runs, and at barriers that take
 * long, workers spin for some ten microseconds and then sleep: idle costs nothing.
 */

#include <stdbool.h>
#include <stddef.h>

#define POOL_THREADS_MAX 256u

struct pool;

/*
 * threads: worker 0 included, at most POOL_THREADS_MAX; 0: as many as this process may run on. pin:
 * each worker, the calling thread too, on a CPU of its own while there are as many. 0, -ENOMEM,
 * -EAGAIN: a thread could not be started; and a sentence.
 */
int pool_new(unsigned threads, bool pin, struct pool **out, char *why, size_t why_len);
/* By the thread that made it. NULL is fine; returns NULL. */
struct pool *pool_free(struct pool *p);

unsigned pool_threads(const struct pool *p);

/* fn(ctx, worker) by all workers, 0 to pool_threads() - 1; returns when all have. */
typedef void pool_fn(void *ctx, unsigned worker);
void pool_run(struct pool *p, pool_fn *fn, void *ctx);

/* Within fn, by all workers: what one wrote before it, all see after it. */
void pool_barrier(struct pool *p, unsigned worker);

#endif

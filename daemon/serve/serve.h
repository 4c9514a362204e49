/* SPDX-License-Identifier: MIT */
#ifndef SERVE_H
#define SERVE_H

#include <stddef.h>
#include "engine.h"
#include "executor.h"

/*
 * The executor's work: commands of the broker become requests of the engine, what the engine says becomes
 * events. One thread; nothing is allocated after serve_new().
 */
struct serve;

struct serve_options {
	const struct exec_hello *hello; /* what to say first */
	const char *chat;		/* the model's template */
	void (*nap)(void *ctx);		/* for tests without a broker: see struct tell */
	void *ctx;
};

/* Executor, engine and the options' strings stay the caller's and outlive it. NULL: no memory. */
struct serve *serve_new(struct executor *e, struct engine *g, const struct serve_options *o);
struct serve *serve_free(struct serve *s); /* NULL is fine; returns NULL */

enum { SERVE_IDLE = 0, SERVE_MORE = 1, SERVE_STOP = 2 };
/*
 * Take what commands there are, then one step. SERVE_IDLE: nothing to do until the next command.
 * SERVE_STOP: the broker wants no more. Negative errno and a sentence: -EIO the device failed, which
 * the broker was told; -EPROTO a command that makes no sense.
 */
int serve_turn(struct serve *s, char *why, size_t why_len);
/* Turn after turn, asleep between them when idle. 0: stopped in order; or as serve_turn(). */
int serve_run(struct serve *s, char *why, size_t why_len);

#endif

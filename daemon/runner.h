/* SPDX-License-Identifier: MIT */
#ifndef RUNNER_H
#define RUNNER_H

#include "launch.h"
#include "loop.h"
#include "region.h"

/*
 * The broker's end of each executor process: memory that is new for every start, its doorbell, and
 * what is asked of the launcher, which alone may start and kill.
 */
#define RUNNER_RETRY_NS 10000000ull /* when the launcher's socket is full */

struct runner {
	struct region broker, own;
	int bell; /* -1: none */
	uint32_t generation;
	bool running; /* from start to exit, as the core sees it */
	int failed;   /* -errno: the core is still to be told that it never started */
	bool kill;    /* still to be asked for */
};

struct runners {
	struct loop *loop;
	int control_fd;
	int journal_fd;
	uint32_t owner; /* of link 0's memory, for region_broken(); the others' follow */
	int serving;    /* link that the launcher knows to serve */
	bool reload;    /* still to be asked for */
	bool any;       /* one of all that is still to be done */
	struct runner r[LINKS];
};

void runners_init(struct runners *s, struct loop *loop, int control_fd, int journal_fd,
		  uint32_t owner);
void runners_free(struct runners *s);

/* For struct broker_env. */
int runners_memory(struct runners *s, unsigned link, struct exec_memory *mem);
void runners_start(struct runners *s, unsigned link, uint32_t generation, const char *model);
void runners_kill(struct runners *s, unsigned link);
void runners_wake(struct runners *s, unsigned link);
void runners_reload(struct runners *s);

/* LAUNCH_EXITED: true when it is about the executor that runs now, and not one before it. */
bool runners_exited(struct runners *s, unsigned link, uint32_t generation);
/* After a turn: tells the launcher who serves and what it could not be told before, and the core of
 * failed starts. Two loads when all is well. */
void runners_retry(struct runners *s, struct broker *b);
uint64_t runners_due(const struct runners *s, uint64_t now_ns);

#endif

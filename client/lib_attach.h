/* SPDX-License-Identifier: MIT */
#ifndef LIB_ATTACH_H
#define LIB_ATTACH_H

#include "lib_public.h"

/*
 * One attachment to one daemon: the socket, the doorbell and the mapped regions. In two steps, so
 * that a program with an event loop is not held up by a daemon that has yet to start.
 */
struct lib_link {
	int fd;       /* owned, like all here; -1: none */
	int doorbell;
	void *client;       /* the CLIENT region, read-write */
	const void *daemon; /* the DAEMON region, read-only */
	const struct onebit_stats *stats; /* NULL without ONEBIT_FEAT_STATS */
	struct onebit_welcome welcome;    /* checked */
};
#define LIB_LINK_NONE { .fd = -1, .doorbell = -1 }

/*
 * Connect and say hello; never waits. A descriptor, or a negative errno and *err: -EAGAIN when the
 * listener's queue is full.
 */
int lib_attach_begin(const char *path, const struct onebit_hello *hello, struct onebit_error *err);
/*
 * Take the welcome, check it, map. 0: *l owns fd and the rest. -EAGAIN: it is not there yet.
 * Otherwise a negative errno and *err; fd stays the caller's.
 */
int lib_attach_finish(int fd, const struct onebit_hello *hello, struct lib_link *l,
		      struct onebit_error *err);
void lib_link_close(struct lib_link *l);
/* Read what the daemon sent. 0: it lives. -ECONNRESET: it is gone; *goodbye is set if it said why. */
int lib_link_check(struct lib_link *l, struct onebit_error *goodbye);

#endif

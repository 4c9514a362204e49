/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "loop.h"

struct loop *loop_open(enum loop_kind kind, uint32_t max_clients, char *observed, size_t len)
{
	struct loop *l = kind == LOOP_EPOLL ? NULL : loop_uring_new(max_clients, 0);
	int err = errno;

	if (l) {
		snprintf(observed, len, "%s: %s", l->ops->name, l->features);
		return l;
	}
	if (kind == LOOP_URING) {
		snprintf(observed, len, "io_uring: %s", strerror(err));
		errno = err;
		return NULL;
	}
	l = loop_epoll_new(max_clients);
	err = kind == LOOP_EPOLL ? 0 : err;
	snprintf(observed, len, "epoll; io_uring: %s", err ? strerror(err) : "not wanted");
	if (l)
		l->fallback = err != 0;
	return l;
}

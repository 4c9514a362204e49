/* SPDX-License-Identifier: MIT */
/* The loop on epoll, for machines on which io_uring is forbidden. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include "loop.h"
#include "sys.h"

#define EPOLL_BATCH 64
#define EPOLL_LOOK  64u /* busy turns between two looks: each is a system call */

struct epoll_slot {
	int fd; /* -1: not watched */
	uint32_t gen;
};

struct epoll_loop {
	struct loop loop;
	int fd;
	uint32_t slots;
	struct epoll_slot *slot;
	int n, at; /* collected, and how many of those were taken */
	struct epoll_event events[EPOLL_BATCH];
};

static const struct loop_ops epoll_ops;

static struct epoll_loop *epoll_of(struct loop *l)
{
	return (struct epoll_loop *)l;
}

static int epoll_add(struct loop *l, enum loop_source s, uint32_t id, int fd)
{
	struct epoll_loop *e = epoll_of(l);
	uint32_t slot = loop_slot(s, id);
	struct epoll_event ev = { .events = EPOLLIN | EPOLLET };

	if (slot >= e->slots || e->slot[slot].fd >= 0)
		return -EINVAL;
	if (s == LOOP_SOCKET)
		ev.events |= EPOLLRDHUP;
	/* Connections are taken one an event, so more than one waiting must tell again. */
	if (s == LOOP_LISTEN) {
		ev.events = EPOLLIN;
		if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK))
			return -errno;
	}
	ev.data.u64 = (uint64_t)++e->slot[slot].gen << 32 | slot;
	if (epoll_ctl(e->fd, EPOLL_CTL_ADD, fd, &ev))
		return -errno;
	e->slot[slot].fd = fd;
	return 0;
}

static void epoll_remove(struct loop *l, enum loop_source s, uint32_t id)
{
	struct epoll_loop *e = epoll_of(l);
	uint32_t slot = loop_slot(s, id);

	if (slot >= e->slots || e->slot[slot].fd < 0)
		return;
	/* Explicitly: a client holds its doorbell too, so closing ours would not end the watch. */
	epoll_ctl(e->fd, EPOLL_CTL_DEL, e->slot[slot].fd, NULL);
	e->slot[slot].fd = -1;
	e->slot[slot].gen++;
}

static int epoll_collect(struct loop *l, uint64_t until_ns)
{
	struct epoll_loop *e = epoll_of(l);
	struct timespec ts = { 0, 0 };
	uint64_t now, ns;
	int n;

	if (e->at < e->n)
		return 0;
	if (until_ns && until_ns != UINT64_MAX) {
		now = loop_now_ns();
		ns = until_ns > now ? until_ns - now : 0;
		ts.tv_sec = (time_t)(ns / 1000000000u);
		ts.tv_nsec = (long)(ns % 1000000000u);
	}
	n = epoll_pwait2(e->fd, e->events, EPOLL_BATCH, until_ns == UINT64_MAX ? NULL : &ts, NULL);
	e->at = 0;
	e->n = n > 0 ? n : 0;
	return n < 0 && errno != EINTR ? -errno : 0;
}

static bool epoll_next(struct loop *l, struct loop_event *ev)
{
	struct epoll_loop *e = epoll_of(l);

	while (e->at < e->n) {
		const struct epoll_event *p = &e->events[e->at++];
		uint32_t slot = (uint32_t)p->data.u64;

		if (slot >= e->slots || e->slot[slot].gen != (uint32_t)(p->data.u64 >> 32))
			continue;
		ev->source = loop_source_of(slot, &ev->id);
		ev->res = (int32_t)(p->events & ~(uint32_t)EPOLLET); /* the bits of poll(2) */
		if (ev->source != LOOP_LISTEN)
			return true;
		ev->res = accept4(e->slot[slot].fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (ev->res >= 0)
			return true;
		ev->res = -errno;
		if (ev->res != -EAGAIN && ev->res != -EINTR && ev->res != -ECONNABORTED)
			return true;
	}
	return false;
}

static bool epoll_due(struct loop *l, uint32_t turn)
{
	(void)l;
	return turn % EPOLL_LOOK == 0;
}

static void epoll_wake(struct loop *l, uint32_t *word)
{
	(void)l;
	sys_futex_wake(word);
}

static void epoll_flush(struct loop *l)
{
	(void)l;
}

static struct loop *epoll_free(struct loop *l)
{
	struct epoll_loop *e = epoll_of(l);

	if (e->fd >= 0)
		close(e->fd);
	free(e->slot);
	free(e);
	return NULL;
}

struct loop *loop_epoll_new(uint32_t max_clients)
{
	struct epoll_loop *e = calloc(1, sizeof(*e));

	if (!e)
		return NULL;
	e->loop.ops = &epoll_ops;
	e->slots = loop_slots(max_clients);
	e->slot = calloc(e->slots, sizeof(*e->slot));
	e->fd = e->slot ? epoll_create1(EPOLL_CLOEXEC) : -1;
	if (e->fd < 0) {
		epoll_free(&e->loop);
		return NULL;
	}
	for (uint32_t i = 0; i < e->slots; i++)
		e->slot[i].fd = -1;
	snprintf(e->loop.features, sizeof(e->loop.features), "epoll");
	return &e->loop;
}

static const struct loop_ops epoll_ops = {
	.name = "epoll",
	.free = epoll_free,
	.add = epoll_add,
	.remove = epoll_remove,
	.wait = epoll_collect,
	.next = epoll_next,
	.due = epoll_due,
	.wake = epoll_wake,
	.flush = epoll_flush,
};

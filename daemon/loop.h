/* SPDX-License-Identifier: MIT */
#ifndef LOOP_H
#define LOOP_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>
#include "process.h"

/*
 * Waiting for everything at once, on one io_uring (loop_uring.c) or, where that is forbidden, on
 * epoll (loop_epoll.c); the same behaviour of both, and the same test for both.
 *
 * A descriptor is known by what it is and a number. Events are edges: whoever takes one reads its
 * descriptor until it says EAGAIN. Doorbells are never read, so a counter that a client holds high
 * costs nothing until it writes again. An event of a descriptor that was removed since is not
 * delivered, even when its number is in use again.
 */
enum loop_source {
	LOOP_LISTEN,  /* events carry an accepted connection, close-on-exec and non-blocking */
	LOOP_CONTROL, /* the launcher */
	LOOP_EXEC,    /* doorbell of an executor link */
	LOOP_PENDING, /* a connection before its hello */
	LOOP_SOCKET,  /* a client's socket */
	LOOP_BELL,    /* a client's doorbell */
	LOOP_SOURCES
};

#define LOOP_PENDING_MAX 64u
#define LOOP_BATCH       256u /* events between two turns of the broker */

struct loop_event {
	enum loop_source source;
	uint32_t id;
	int32_t res; /* LISTEN: descriptor or -errno; others: poll events, or -errno: no longer watched */
};

struct loop;

struct loop_ops {
	const char *name;
	struct loop *(*free)(struct loop *l);
	int (*add)(struct loop *l, enum loop_source s, uint32_t id, int fd);
	void (*remove)(struct loop *l, enum loop_source s, uint32_t id);
	int (*wait)(struct loop *l, uint64_t until_ns);
	bool (*next)(struct loop *l, struct loop_event *ev);
	bool (*due)(struct loop *l, uint32_t turn);
	void (*wake)(struct loop *l, uint32_t *word);
	void (*flush)(struct loop *l);
};

struct loop {
	const struct loop_ops *ops;
	char features[56]; /* for people: what the kernel offered */
	bool fallback;     /* epoll, because io_uring was wanted and forbidden */
};

/* Leave a feature of the kernel aside although it is there, to test the way without it. */
#define LOOP_NO_SQARRAY   1u
#define LOOP_NO_FUTEX     2u
#define LOOP_NO_RINGFD    4u

/* NULL and errno: forbidden here, or no memory. The io_uring is restricted when this returns. */
struct loop *loop_uring_new(uint32_t max_clients, uint32_t without);
struct loop *loop_epoll_new(uint32_t max_clients);

/* As configured; io_uring where it is allowed. observed: which one lives and why. NULL and errno. */
struct loop *loop_open(enum loop_kind kind, uint32_t max_clients, char *observed, size_t len);

static inline struct loop *loop_free(struct loop *l)
{
	return l ? l->ops->free(l) : NULL;
}

/* 0, or -errno. The descriptor stays the caller's, who removes it before closing it. */
static inline int loop_add(struct loop *l, enum loop_source s, uint32_t id, int fd)
{
	return l->ops->add(l, s, id, fd);
}

/* Nothing happens when it is not there. */
static inline void loop_remove(struct loop *l, enum loop_source s, uint32_t id)
{
	l->ops->remove(l, s, id);
}

/* Collect events; sleep for one until then (monotonic; 0: do not, UINT64_MAX: for ever). 0, -errno
 * when the loop itself is broken. */
static inline int loop_wait(struct loop *l, uint64_t until_ns)
{
	return l->ops->wait(l, until_ns);
}

static inline bool loop_next(struct loop *l, struct loop_event *ev)
{
	return l->ops->next(l, ev);
}

/* For a loop that is busy: is it time for loop_wait(l, 0)? Costs two loads on io_uring. */
static inline bool loop_due(struct loop *l, uint32_t turn)
{
	return l->ops->due(l, turn);
}

/* Wake whoever sleeps on a futex word that other processes map; at the latest by loop_flush(). */
static inline void loop_wake(struct loop *l, uint32_t *word)
{
	l->ops->wake(l, word);
}

/* Once a turn: what loop_wake() put off goes out. */
static inline void loop_flush(struct loop *l)
{
	l->ops->flush(l);
}

/* ---- for the two loops: one flat table of everything watched --------------------------------- */

#define LOOP_EXEC_FIRST    2u
#define LOOP_PENDING_FIRST 4u
#define LOOP_CLIENT_FIRST  (LOOP_PENDING_FIRST + LOOP_PENDING_MAX)

static inline uint32_t loop_slots(uint32_t max_clients)
{
	return LOOP_CLIENT_FIRST + 2 * max_clients;
}

static inline uint32_t loop_slot(enum loop_source s, uint32_t id)
{
	switch (s) {
	case LOOP_LISTEN:
		return 0;
	case LOOP_CONTROL:
		return 1;
	case LOOP_EXEC:
		return LOOP_EXEC_FIRST + id;
	case LOOP_PENDING:
		return LOOP_PENDING_FIRST + id;
	default:
		return LOOP_CLIENT_FIRST + 2 * id + (s == LOOP_BELL);
	}
}

static inline enum loop_source loop_source_of(uint32_t slot, uint32_t *id)
{
	*id = 0;
	if (slot < LOOP_EXEC_FIRST)
		return slot ? LOOP_CONTROL : LOOP_LISTEN;
	if (slot < LOOP_PENDING_FIRST) {
		*id = slot - LOOP_EXEC_FIRST;
		return LOOP_EXEC;
	}
	if (slot < LOOP_CLIENT_FIRST) {
		*id = slot - LOOP_PENDING_FIRST;
		return LOOP_PENDING;
	}
	*id = (slot - LOOP_CLIENT_FIRST) / 2;
	return (slot - LOOP_CLIENT_FIRST) % 2 ? LOOP_BELL : LOOP_SOCKET;
}

/* What each source waits for; hang-up and error come unasked. */
static inline uint32_t loop_mask(enum loop_source s)
{
	return s == LOOP_SOCKET ? POLLIN | POLLRDHUP : POLLIN;
}

static inline uint64_t loop_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

#endif

/* SPDX-License-Identifier: MIT */
/*
 * The descriptor for foreign event loops. It is an epoll of our own with the daemon's socket in it,
 * not the socket itself: after a re-attachment there is another socket, and a loop that has
 * registered the old one would never hear of it (a descriptor put in its place by dup2() is, to
 * epoll, not the one that was registered). A timer beside it tells when to try again while there is
 * no daemon. Both are made when the descriptor is first asked for, so that others do not pay.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include "lib_onebit.h"
#include "lib_text.h"

void lib_loop_watch(struct onebit *o, int fd)
{
	struct epoll_event e = { .events = EPOLLIN | EPOLLRDHUP };

	if (o->loop_fd >= 0)
		epoll_ctl(o->loop_fd, EPOLL_CTL_ADD, fd, &e);
}

void lib_loop_unwatch(struct onebit *o, int fd)
{
	/* Closing alone does not do it when a child of fork() holds the socket too. */
	if (o->loop_fd >= 0 && fd >= 0)
		epoll_ctl(o->loop_fd, EPOLL_CTL_DEL, fd, NULL);
}

static void timer_set(struct onebit *o, uint64_t due_ns)
{
	struct itimerspec t = { .it_value = { .tv_sec = (time_t)(due_ns / 1000000000ull),
					      .tv_nsec = (long)(due_ns % 1000000000ull) } };

	/* Setting it anew also takes back an expiry that was not read. */
	timerfd_settime(o->timer_fd, TFD_TIMER_ABSTIME, &t, NULL);
	o->timer_set = due_ns != 0;
}

void lib_loop_disarm(struct onebit *o)
{
	if (o->timer_set)
		timer_set(o, 0);
	if (!o->armed)
		return;
	o->armed = false;
	if (o->state != LIB_UP)
		return;
	onebit_store_relaxed(&o->ring.wake->need, 0);
	if (lib_link_check(&o->link, &o->goodbye))
		o->gone = true;
}

static int loop_make(struct onebit *o)
{
	struct epoll_event e = { .events = EPOLLIN };
	int fd = epoll_create1(EPOLL_CLOEXEC), timer, r;

	if (fd < 0)
		return -errno;
	timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (timer < 0 || epoll_ctl(fd, EPOLL_CTL_ADD, timer, &e) < 0) {
		r = -errno;
		if (timer >= 0)
			close(timer);
		close(fd);
		return r;
	}
	o->loop_fd = fd;
	o->timer_fd = timer;
	if (o->state == LIB_UP)
		lib_loop_watch(o, o->link.fd);
	else if (o->state == LIB_GREET)
		lib_loop_watch(o, o->greet_fd);
	return 0;
}

int onebit_fd(const struct onebit *o)
{
	/* Made late, and it changes nothing that the caller can see: hence const in the promise. */
	int r = o->loop_fd >= 0 ? 0 : loop_make((struct onebit *)o);

	return r ? r : o->loop_fd;
}

int onebit_arm(struct onebit *o)
{
	uint64_t due;
	int r = onebit_fd(o);

	if (r < 0)
		return lib_error_local(&o->error, r, true, "no descriptor for the event loop could be made");
	lib_loop_disarm(o);
	if (o->current || o->n_ended || o->gone || o->state == LIB_DEAD)
		return 1;
	if (o->state != LIB_UP) {
		due = o->state == LIB_CONNECT ? o->next_try_ns : o->give_up_ns;
		timer_set(o, due < o->give_up_ns ? due : o->give_up_ns);
		return 0;
	}
	if (!(o->link.welcome.features & ONEBIT_FEAT_NOTIFY))
		return lib_error_local(&o->error, -EOPNOTSUPP, false,
				       "this daemon does not notify event loops; use onebit_next() with a timeout");
	due = lib_request_pump(o);
	if (o->n_ended)
		return 1;
	if (due != UINT64_MAX)
		timer_set(o, due);
	/* Pairs with the daemon's fence between publishing CQEs and reading need. */
	onebit_store_relaxed(&o->ring.wake->need, ONEBIT_WAKE_NOTIFY);
	onebit_fence();
	o->armed = true;
	if (lib_ring_cqe(&o->ring, 0)) {
		/* Nothing was missed, so nothing need be read from the socket. */
		onebit_store_relaxed(&o->ring.wake->need, 0);
		o->armed = false;
		return 1;
	}
	lib_ring_unstall(&o->ring);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * libonebit in a program's own epoll loop, beside a timer. The rule: take events until there is
 * none, then onebit_arm(); only when that says 0 may the loop sleep. epoll [SOCKET]
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>
#include "libonebit.h"

/* Take what there is. 1: the request has ended well; -1: not so. */
static int take(struct onebit *o)
{
	struct onebit_event ev;
	int r;

	do {
		while ((r = onebit_next(o, &ev, 0)) == 1) {
			if (ev.type == ONEBIT_EV_TOKENS)
				fwrite(ev.text, 1, ev.text_len, stdout);
			if (ev.type != ONEBIT_EV_END)
				continue;
			if (ev.res < 0)
				fprintf(stderr, "epoll: %s\n", ev.error.text);
			return ev.res < 0 ? -1 : 1;
		}
		if (!r)
			r = onebit_arm(o);
	} while (r == 1); /* something came between the last look and the arming */
	if (r < 0)
		fprintf(stderr, "epoll: %s\n", onebit_last_error(o)->text);
	return r;
}

int main(int argc, char **argv)
{
	static const char prompt[] = "Count to ten.";
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = prompt, .len = strlen(prompt) };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1,
				     .params = { .max_tokens = 64 } };
	struct onebit_options options = { .size = sizeof(options), .socket = argc > 1 ? argv[1] : NULL };
	struct itimerspec every = { .it_interval.tv_nsec = 100000000, .it_value.tv_nsec = 100000000 };
	struct epoll_event e = { .events = EPOLLIN };
	struct onebit_error err;
	struct onebit *o;
	uint64_t id, ticks;
	int loop = epoll_create1(EPOLL_CLOEXEC), timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC), r;

	if (onebit_open(&o, &options, &err)) {
		fprintf(stderr, "epoll: %s\n", err.text);
		return 1;
	}
	e.data.fd = timer;
	epoll_ctl(loop, EPOLL_CTL_ADD, timer, &e);
	timerfd_settime(timer, 0, &every, NULL);
	/* Registered once: the number and what it stands for survive a restart of the daemon. */
	e.data.fd = onebit_fd(o);
	if (epoll_ctl(loop, EPOLL_CTL_ADD, e.data.fd, &e) || onebit_submit(o, &rq, &id)) {
		fprintf(stderr, "epoll: cannot begin: %s\n", onebit_last_error(o)->text);
		onebit_close(o);
		return 1;
	}
	while (!(r = take(o))) {
		if (epoll_wait(loop, &e, 1, -1) < 1)
			continue;
		if (e.data.fd == timer && read(timer, &ticks, sizeof(ticks)) == sizeof(ticks))
			fprintf(stderr, "tick\n"); /* the program's other work */
	}
	putchar('\n');
	onebit_close(o);
	close(timer);
	close(loop);
	return r < 0;
}

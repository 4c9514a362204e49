/* SPDX-License-Identifier: MIT */
/*
 * libonebit in a program's own io_uring, beside a timeout: one poll on onebit_fd(), renewed after
 * each time that onebit_arm() said 0. uring [SOCKET]
 */
#include <liburing.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include "libonebit.h"

enum { FROM_ONEBIT = 1, FROM_TIMER = 2 };

static struct __kernel_timespec tenth = { .tv_nsec = 100000000 };

static void poll_onebit(struct io_uring *ring, struct onebit *o)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_poll_add(sqe, onebit_fd(o), POLLIN);
	io_uring_sqe_set_data64(sqe, FROM_ONEBIT);
}

static void start_timer(struct io_uring *ring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	io_uring_prep_timeout(sqe, &tenth, 0, 0);
	io_uring_sqe_set_data64(sqe, FROM_TIMER);
}

/* Take what there is, then arm. 0: sleep; 1: the request has ended well; -1: not so. */
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
				fprintf(stderr, "uring: %s\n", ev.error.text);
			return ev.res < 0 ? -1 : 1;
		}
		if (!r)
			r = onebit_arm(o);
	} while (r == 1);
	if (r < 0)
		fprintf(stderr, "uring: %s\n", onebit_last_error(o)->text);
	return r;
}

int main(int argc, char **argv)
{
	static const char prompt[] = "Count to ten.";
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = prompt, .len = strlen(prompt) };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1,
				     .params = { .max_tokens = 64 } };
	struct onebit_options options = { .size = sizeof(options), .socket = argc > 1 ? argv[1] : NULL };
	struct io_uring_cqe *cqe;
	struct io_uring ring;
	struct onebit_error err;
	struct onebit *o;
	uint64_t id;
	int r = io_uring_queue_init(8, &ring, 0);

	if (r) {
		fprintf(stderr, "uring: this kernel or sandbox forbids io_uring: %s\n", strerror(-r));
		return 77; /* skipped, to a test */
	}
	if (onebit_open(&o, &options, &err)) {
		fprintf(stderr, "uring: %s\n", err.text);
		io_uring_queue_exit(&ring);
		return 1;
	}
	r = onebit_submit(o, &rq, &id) ? -1 : take(o);
	poll_onebit(&ring, o);
	start_timer(&ring);
	while (!r) {
		io_uring_submit_and_wait(&ring, 1);
		if (io_uring_peek_cqe(&ring, &cqe))
			continue;
		if (cqe->user_data == FROM_ONEBIT && !(r = take(o)))
			poll_onebit(&ring, o);
		if (cqe->user_data == FROM_TIMER) {
			fprintf(stderr, "tick\n"); /* the program's other work */
			start_timer(&ring);
		}
		io_uring_cqe_seen(&ring, cqe);
	}
	putchar('\n');
	onebit_close(o);
	io_uring_queue_exit(&ring);
	return r < 0;
}

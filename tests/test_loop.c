/* SPDX-License-Identifier: MIT */
/* Both loops, and io_uring without what newer kernels add to it: one behaviour. */
#include <check.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/un.h>
#include "loop.h"
#include "sys.h"

#define CLIENTS 1024u
#define FOREVER (loop_now_ns() + 10000000000ull) /* a lost event fails the test, not hangs it */

static const struct {
	const char *name;
	bool uring;
	uint32_t without;
} kinds[] = {
	{ "io_uring", true, 0 },
	{ "io_uring as of Linux 6.1", true, LOOP_NO_SQARRAY | LOOP_NO_FUTEX | LOOP_NO_RINGFD },
	{ "epoll", false, 0 },
};
#define KINDS ((int)(sizeof(kinds) / sizeof(kinds[0])))

static struct loop *l;

/* false: this machine forbids io_uring, so there is nothing to test but epoll. */
static bool open_loop(int kind, uint32_t clients)
{
	struct rlimit lim;

	getrlimit(RLIMIT_NOFILE, &lim);
	lim.rlim_cur = lim.rlim_max;
	setrlimit(RLIMIT_NOFILE, &lim);
	l = kinds[kind].uring ? loop_uring_new(clients, kinds[kind].without) : loop_epoll_new(clients);
	if (!l && kinds[kind].uring && (errno == EPERM || errno == ENOSYS)) {
		printf("skip: %s: %s\n", kinds[kind].name, strerror(errno));
		return false;
	}
	ck_assert_msg(l != NULL, "%s: %s", kinds[kind].name, strerror(errno));
	return true;
}

static int make_bell(void)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

	ck_assert_int_ge(fd, 0);
	return fd;
}

static void ring(int fd)
{
	uint64_t one = 1;

	ck_assert_int_eq(write(fd, &one, sizeof(one)), sizeof(one));
}

/* The next event; waits for it. */
static struct loop_event want(enum loop_source source, uint32_t id)
{
	struct loop_event ev;
	uint64_t end = FOREVER;

	while (!loop_next(l, &ev)) {
		ck_assert_msg(loop_now_ns() < end, "no event of source %d id %u", source, id);
		ck_assert_int_eq(loop_wait(l, end), 0);
	}
	ck_assert_int_eq(ev.source, source);
	ck_assert_uint_eq(ev.id, id);
	return ev;
}

static void want_nothing(void)
{
	struct loop_event ev;

	for (int i = 0; i < 3; i++) {
		ck_assert_int_eq(loop_wait(l, loop_now_ns() + 2000000), 0);
		if (loop_next(l, &ev))
			ck_abort_msg("an event of source %d id %u res %d", ev.source, ev.id, ev.res);
	}
}

/* A doorbell is never read: each ring must come through all the same, and silence cost nothing. */
START_TEST(unread_bell_is_an_edge)
{
	int bell = make_bell();

	if (!open_loop(_i, 4))
		return;
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 2, bell), 0);
	want_nothing();
	for (int i = 0; i < 100; i++) {
		ring(bell);
		ck_assert_int_eq(want(LOOP_BELL, 2).res & POLLIN, POLLIN);
	}
	want_nothing();
	/* However often it was rung since we looked, it is one event. */
	for (int i = 0; i < 1000; i++)
		ring(bell);
	want(LOOP_BELL, 2);
	want_nothing();
	close(bell);
	l = loop_free(l);
}
END_TEST

/* Rung before anybody listened, as after a mute: the ring must not be lost. */
START_TEST(ring_before_add_is_told)
{
	int bell = make_bell();

	if (!open_loop(_i, 4))
		return;
	ring(bell);
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 0, bell), 0);
	want(LOOP_BELL, 0);
	loop_remove(l, LOOP_BELL, 0);
	ring(bell);
	want_nothing();
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 0, bell), 0);
	want(LOOP_BELL, 0);
	close(bell);
	l = loop_free(l);
}
END_TEST

/* An event of a client that is gone, told of the next one with its number, would detach that one. */
START_TEST(late_events_are_nobodys)
{
	struct loop_event ev;
	int a = make_bell(), b = make_bell(), pair[2];

	if (!open_loop(_i, 4))
		return;
	for (int round = 0; round < 50; round++) {
		/* Not submitted yet, submitted, and already completed when it is removed. */
		ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
		ck_assert_int_eq(loop_add(l, LOOP_BELL, 1, a), 0);
		ck_assert_int_eq(loop_add(l, LOOP_SOCKET, 1, pair[0]), 0);
		if (round % 3 > 0)
			loop_wait(l, loop_now_ns() + 1);
		while (loop_next(l, &ev)) /* a was rung in earlier rounds */
			ck_assert_int_eq(ev.source, LOOP_BELL);
		ring(a);
		close(pair[1]);
		if (round % 3 > 1)
			loop_wait(l, 0);
		loop_remove(l, LOOP_BELL, 1);
		loop_remove(l, LOOP_SOCKET, 1);
		close(pair[0]);
		ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
		ck_assert_int_eq(loop_add(l, LOOP_BELL, 1, b), 0);
		ck_assert_int_eq(loop_add(l, LOOP_SOCKET, 1, pair[0]), 0);
		for (int i = 0; i < 5; i++) {
			loop_wait(l, loop_now_ns() + 100000);
			while (loop_next(l, &ev)) /* b was rung in earlier rounds */
				ck_assert_msg(ev.source == LOOP_BELL && round > 0,
					      "a dead client's event, round %d", round);
		}
		ring(b);
		want(LOOP_BELL, 1);
		loop_remove(l, LOOP_BELL, 1);
		loop_remove(l, LOOP_SOCKET, 1);
		close(pair[0]);
		close(pair[1]);
	}
	close(a);
	close(b);
	l = loop_free(l);
}
END_TEST

/* Dead clients that are not told would keep their memory and their place in the quota. */
START_TEST(hang_up_is_told)
{
	struct loop_event ev;
	int pair[2];

	if (!open_loop(_i, 4))
		return;
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	ck_assert_int_eq(loop_add(l, LOOP_SOCKET, 3, pair[0]), 0);
	want_nothing();
	ck_assert_int_eq(send(pair[1], "x", 1, 0), 1);
	ev = want(LOOP_SOCKET, 3);
	ck_assert(ev.res > 0 && !(ev.res & (POLLHUP | POLLRDHUP)));
	close(pair[1]);
	ev = want(LOOP_SOCKET, 3);
	ck_assert(ev.res > 0 && ev.res & (POLLHUP | POLLRDHUP));
	close(pair[0]);
	l = loop_free(l);
}
END_TEST

/* After loop_remove() and close() the peer must learn that nobody is there any more. */
START_TEST(removed_socket_closes)
{
	struct pollfd pfd;
	int pair[2];

	if (!open_loop(_i, 4))
		return;
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
	ck_assert_int_eq(loop_add(l, LOOP_SOCKET, 0, pair[0]), 0);
	loop_wait(l, 0);
	loop_remove(l, LOOP_SOCKET, 0);
	shutdown(pair[0], SHUT_RDWR);
	close(pair[0]);
	pfd = (struct pollfd){ .fd = pair[1], .events = POLLRDHUP };
	ck_assert_int_eq(poll(&pfd, 1, 10000), 1);
	close(pair[1]);
	l = loop_free(l);
}
END_TEST

static int listen_at(struct sockaddr_un *at)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	socklen_t len = sizeof(*at);

	at->sun_family = AF_UNIX; /* no name: the kernel picks an abstract one */
	ck_assert_int_eq(bind(fd, (struct sockaddr *)at, sizeof(at->sun_family)), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)at, &len), 0);
	ck_assert_int_eq(listen(fd, 64), 0);
	return fd;
}

static int connect_to(const struct sockaddr_un *at)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(connect(fd, (const struct sockaddr *)at, sizeof(at->sun_family) + 6), 0);
	return fd;
}

/* Every connection comes once, with flags that keep it from executors and from blocking us. */
START_TEST(connections_come_accepted)
{
	struct sockaddr_un at = { 0 };
	struct loop_event ev;
	int lfd, fd[20];

	if (!open_loop(_i, 4))
		return;
	lfd = listen_at(&at);
	ck_assert_int_eq(loop_add(l, LOOP_LISTEN, 0, lfd), 0);
	want_nothing();
	for (int i = 0; i < 20; i++)
		fd[i] = connect_to(&at);
	for (int i = 0; i < 20; i++) {
		ev = want(LOOP_LISTEN, 0);
		ck_assert_int_ge(ev.res, 0);
		ck_assert_int_eq(fcntl(ev.res, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
		ck_assert_int_eq(fcntl(ev.res, F_GETFL) & O_NONBLOCK, O_NONBLOCK);
		close(ev.res);
		close(fd[i]);
	}
	want_nothing();
	/* Not while it is removed, and those who came meanwhile afterwards. */
	loop_remove(l, LOOP_LISTEN, 0);
	want_nothing();
	fd[0] = connect_to(&at);
	want_nothing();
	ck_assert_int_eq(loop_add(l, LOOP_LISTEN, 0, lfd), 0);
	ev = want(LOOP_LISTEN, 0);
	ck_assert_int_ge(ev.res, 0);
	close(ev.res);
	close(fd[0]);
	close(lfd);
	l = loop_free(l);
}
END_TEST

/* Without a free descriptor: told as an error, once the reader pauses no busy loop, then service. */
START_TEST(no_descriptor_left)
{
	struct sockaddr_un at = { 0 };
	struct rlimit lim, few;
	struct loop_event ev;
	int lfd, fd, top;

	if (!open_loop(_i, 4))
		return;
	lfd = listen_at(&at);
	fd = connect_to(&at);
	getrlimit(RLIMIT_NOFILE, &lim);
	top = dup(fd);
	close(top);
	few = lim;
	few.rlim_cur = (rlim_t)top;
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0);
	ck_assert_int_eq(loop_add(l, LOOP_LISTEN, 0, lfd), 0);
	ev = want(LOOP_LISTEN, 0);
	ck_assert_int_eq(ev.res, -EMFILE);
	loop_remove(l, LOOP_LISTEN, 0);
	want_nothing();
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &lim), 0);
	ck_assert_int_eq(loop_add(l, LOOP_LISTEN, 0, lfd), 0);
	ev = want(LOOP_LISTEN, 0);
	ck_assert_int_ge(ev.res, 0);
	close(ev.res);
	close(fd);
	close(lfd);
	l = loop_free(l);
}
END_TEST

/* All at once, far more than any queue holds: each doorbell told, none twice. */
START_TEST(a_thousand_bells)
{
	static int bell[CLIENTS];
	static uint8_t seen[CLIENTS];
	struct loop_event ev;

	if (!open_loop(_i, CLIENTS))
		return;
	for (uint32_t i = 0; i < CLIENTS; i++) {
		bell[i] = make_bell();
		ck_assert_int_eq(loop_add(l, LOOP_BELL, i, bell[i]), 0);
	}
	for (int round = 0; round < 5; round++) {
		uint32_t n = 0;
		uint64_t end = FOREVER;

		memset(seen, 0, sizeof(seen));
		for (uint32_t i = 0; i < CLIENTS; i++)
			ring(bell[i]);
		while (n < CLIENTS) {
			ck_assert_msg(loop_now_ns() < end, "only %u of %u bells", n, CLIENTS);
			ck_assert_int_eq(loop_wait(l, end), 0);
			while (loop_next(l, &ev)) {
				ck_assert_int_eq(ev.source, LOOP_BELL);
				ck_assert_uint_eq(seen[ev.id]++, 0);
				n++;
			}
		}
	}
	for (uint32_t i = 0; i < CLIENTS; i++) {
		loop_remove(l, LOOP_BELL, i);
		close(bell[i]);
	}
	want_nothing();
	l = loop_free(l);
}
END_TEST

/*
 * A flood that nobody takes in time: io_uring lets go of polls whose completions have no room, and a
 * doorbell that is not watched again is a client that hangs.
 */
START_TEST(overflow_loses_nobody)
{
	struct loop_event ev;
	int bell[4];

	if (!open_loop(_i, 4))
		return;
	for (uint32_t i = 0; i < 4; i++) {
		bell[i] = make_bell();
		ck_assert_int_eq(loop_add(l, LOOP_BELL, i, bell[i]), 0);
	}
	for (int round = 0; round < 1000; round++) {
		for (int i = 0; i < 4; i++)
			ring(bell[i]);
		ck_assert_int_eq(loop_wait(l, 0), 0);
	}
	for (int i = 0; i < 20; i++) {
		ck_assert_int_eq(loop_wait(l, 0), 0);
		while (loop_next(l, &ev))
			ck_assert_int_eq(ev.source, LOOP_BELL);
	}
	for (int round = 0; round < 3; round++) {
		for (uint32_t i = 0; i < 4; i++) {
			ring(bell[i]);
			want(LOOP_BELL, i);
		}
	}
	want_nothing();
	for (int i = 0; i < 4; i++)
		close(bell[i]);
	l = loop_free(l);
}
END_TEST

/* A timer that returns early spins; one that does not return misses deadlines. */
START_TEST(waits_until)
{
	uint64_t from, until;
	struct loop_event ev;

	if (!open_loop(_i, 4))
		return;
	ck_assert_int_eq(loop_wait(l, 0), 0);
	ck_assert_int_eq(loop_wait(l, loop_now_ns() - 1000), 0); /* past: at once */
	for (int i = 0; i < 3; i++) {
		from = loop_now_ns();
		until = from + 5000000;
		ck_assert_int_eq(loop_wait(l, until), 0);
		ck_assert_uint_ge(loop_now_ns(), until);
		ck_assert(!loop_next(l, &ev));
	}
	l = loop_free(l);
}
END_TEST

/* A busy loop that is not told of cold clients starves them as long as hot ones submit. */
START_TEST(busy_loop_is_told)
{
	int bell = make_bell();
	struct loop_event ev;
	uint64_t end = FOREVER;
	uint32_t turn = 0;

	if (!open_loop(_i, 4))
		return;
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 0, bell), 0);
	loop_wait(l, 0);
	ring(bell);
	for (;;) {
		ck_assert_msg(loop_now_ns() < end, "not told in %u turns", turn);
		if (!loop_due(l, ++turn))
			continue;
		ck_assert_int_eq(loop_wait(l, 0), 0);
		if (loop_next(l, &ev))
			break;
	}
	ck_assert_int_eq(ev.source, LOOP_BELL);
	close(bell);
	l = loop_free(l);
}
END_TEST

struct sleeper {
	pthread_t thread;
	uint32_t *word;
};

static void *sleep_on(void *arg)
{
	struct sleeper *s = arg;
	struct timespec ts = { 10, 0 };

	while (__atomic_load_n(s->word, __ATOMIC_ACQUIRE) == 0)
		if (syscall(SYS_futex, s->word, FUTEX_WAIT, 0, &ts, NULL, 0) && errno == ETIMEDOUT)
			return s;
	return NULL;
}

/* A wake-up that is queued and not sent is a client asleep for ever. */
START_TEST(wakes_all_sleepers)
{
	enum { N = 300 }; /* more than the submission queue holds */
	static struct sleeper s[N];
	uint32_t *words = mmap(NULL, N * 64, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct loop_event ev;
	void *late;

	if (!open_loop(_i, 4))
		return;
	for (int i = 0; i < N; i++) {
		s[i].word = words + i * 16;
		ck_assert_int_eq(pthread_create(&s[i].thread, NULL, sleep_on, &s[i]), 0);
	}
	usleep(50000); /* most are asleep by now; the test holds either way */
	for (int i = 0; i < N; i++) {
		__atomic_store_n(s[i].word, 1, __ATOMIC_RELEASE);
		loop_wake(l, s[i].word);
	}
	loop_flush(l);
	for (int i = 0; i < N; i++) {
		ck_assert_int_eq(pthread_join(s[i].thread, &late), 0);
		ck_assert_msg(late == NULL, "sleeper %d was not woken", i);
	}
	loop_wait(l, 0);
	ck_assert_msg(!loop_next(l, &ev), "a wake-up came back as an event");
	munmap(words, N * 64);
	l = loop_free(l);
}
END_TEST

/* Whoever takes over the broker must find a ring that opens, reads and connects nothing. */
START_TEST(uring_is_restricted)
{
	struct io_uring_params p = { 0 };

	if (!kinds[_i].uring || !open_loop(_i, 4))
		return;
	/* Registering anything but files is refused; the ring is the highest descriptor in use. */
	for (int fd = 3; fd < 64; fd++) {
		char link[64], path[32];
		ssize_t n;

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		n = readlink(path, link, sizeof(link) - 1);
		if (n <= 0 || !memmem(link, (size_t)n, "io_uring", 8))
			continue;
		ck_assert_int_eq(sys_uring_register(fd, IORING_REGISTER_EVENTFD, &p, 1), -1);
		ck_assert_int_eq(errno, EACCES);
		ck_assert_int_eq(sys_uring_register(fd, IORING_REGISTER_PERSONALITY, NULL, 0), -1);
		ck_assert_int_eq(errno, EACCES);
		l = loop_free(l);
		return;
	}
	ck_abort_msg("there is no io_uring");
}
END_TEST

/* What is out of range or there already is a bug to be told, not to be obeyed. */
START_TEST(add_is_checked)
{
	int bell = make_bell();

	if (!open_loop(_i, 4))
		return;
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 4, bell), -EINVAL);
	ck_assert_int_lt(loop_add(l, LOOP_BELL, 0, -1), 0);
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 0, bell), 0);
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 0, bell), -EINVAL);
	loop_remove(l, LOOP_BELL, 3);
	loop_remove(l, LOOP_BELL, 4);
	loop_remove(l, LOOP_BELL, 0);
	ck_assert_int_eq(loop_add(l, LOOP_BELL, 0, bell), 0);
	ring(bell);
	want(LOOP_BELL, 0);
	close(bell);
	l = loop_free(l);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("loop");
	TCase *c = tcase_create("loop");
	SRunner *run;
	int failed;

	tcase_set_timeout(c, 60);
	tcase_add_loop_test(c, unread_bell_is_an_edge, 0, KINDS);
	tcase_add_loop_test(c, ring_before_add_is_told, 0, KINDS);
	tcase_add_loop_test(c, late_events_are_nobodys, 0, KINDS);
	tcase_add_loop_test(c, hang_up_is_told, 0, KINDS);
	tcase_add_loop_test(c, removed_socket_closes, 0, KINDS);
	tcase_add_loop_test(c, connections_come_accepted, 0, KINDS);
	tcase_add_loop_test(c, no_descriptor_left, 0, KINDS);
	tcase_add_loop_test(c, a_thousand_bells, 0, KINDS);
	tcase_add_loop_test(c, overflow_loses_nobody, 0, KINDS);
	tcase_add_loop_test(c, waits_until, 0, KINDS);
	tcase_add_loop_test(c, busy_loop_is_told, 0, KINDS);
	tcase_add_loop_test(c, wakes_all_sleepers, 0, KINDS);
	tcase_add_loop_test(c, uring_is_restricted, 0, KINDS);
	tcase_add_loop_test(c, add_is_checked, 0, KINDS);
	suite_add_tcase(s, c);
	run = srunner_create(s);
	srunner_run_all(run, CK_NORMAL);
	failed = srunner_ntests_failed(run);
	srunner_free(run);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

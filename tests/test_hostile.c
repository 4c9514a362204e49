/* SPDX-License-Identifier: MIT */
/*
 * Hostile processes against the real daemon: what the kernel lets a client do with what it was
 * given, and what it may do to the socket. After each attack a fresh client must be served with the
 * right answer, the broker must be the same process, and what it holds must be what it held before.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "lib_raw.h"
#include "lib_tmp.h"
#include "onebit_ring.h"
#include "private.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
#define SANITIZED true
#else
#define SANITIZED false
#endif

enum { NAPS = 60000 }; /* of a ms, to wait for what must come to pass */

static struct private_daemon daemon_;
static const char *path = daemon_.socket;
static pid_t broker;

static void nap(unsigned ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l };

	nanosleep(&t, NULL);
}

/* The launcher's first child; the executor comes after it. */
static pid_t broker_of(pid_t launcher)
{
	char file[64];
	FILE *f;
	int pid = 0;

	snprintf(file, sizeof(file), "/proc/%d/task/%d/children", (int)launcher, (int)launcher);
	f = fopen(file, "r");
	if (f && fscanf(f, "%d", &pid) != 1)
		pid = 0;
	if (f)
		fclose(f);
	return pid;
}

/* The lines of a file below /proc of the broker, or with NULL its open descriptors. */
static int count(const char *name)
{
	char file[64];
	int n = 0, c;
	FILE *f;
	DIR *d;

	snprintf(file, sizeof(file), "/proc/%d/%s", (int)broker, name ? name : "fd");
	if (!name) {
		d = opendir(file);
		if (!d)
			return -1; /* it is not dumpable, so only root may look */
		for (; readdir(d); n++)
			;
		closedir(d);
		return n;
	}
	f = fopen(file, "r");
	while (f && (c = fgetc(f)) != EOF)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

/*
 * Whether the broker has as many maps as before. The thread sanitizer takes some of its own now and then;
 * a hundred clients that leaked would have left two hundred.
 */
#ifdef __SANITIZE_THREAD__
enum { MAPS_OWN = 16 };
#else
enum { MAPS_OWN = 0 };
#endif
static bool has_maps(int before)
{
	return abs(count("maps") - before) <= MAPS_OWN;
}

/*
 * Its open descriptors, once they stay as many: those of regions made ahead are among them. -1, said
 * as a part skipped: not allowed to look.
 */
static int settled(void)
{
	int n = count(NULL), now;

	for (int same = 0; same < 200; nap(1)) {
		now = count(NULL);
		same = now == n ? same + 1 : 0;
		n = now;
	}
	if (n < 0)
		printf("skip: counting the broker's descriptors needs root\n");
	return n;
}

/* Served, as a stranger would be. A flood from this user may still hold its places for a moment. */
static void served(void)
{
	const char *what = NULL;

	for (int i = 0; i < 50; i++, nap(100)) {
		what = raw_service(path);
		if (!what)
			break;
	}
	ck_assert_msg(!what, "%s", what);
	ck_assert_int_eq(broker_of(daemon_.pid), broker);
}

static void start(const char *const *more)
{
	const char *build = getenv("BUILD"), *settings[16];
	char why[512], onebitd[500], executor[540];
	int n = 0;

	if (!build)
		build = "build";
	/* Not from the root: executor is split at blanks, which its folder may have. */
	ck_assert_msg(snprintf(onebitd, sizeof(onebitd), "%s/onebitd", build) < (int)sizeof(onebitd),
		      "$BUILD is too long");
	snprintf(executor, sizeof(executor), "executor = %s/onebit-loopback --delay-us 500", build);
	settings[n++] = executor;
	settings[n++] = "max_clients = 256";
	settings[n++] = "limit.clients = 256";
	settings[n++] = "limit.bytes_mib = 2048";
	if (SANITIZED) /* which makes calls that the sandbox forbids */
		settings[n++] = "sandbox = off";
	while (more && *more)
		settings[n++] = *more++;
	settings[n] = NULL;
	ck_assert_msg(!private_start(&daemon_, onebitd, settings, why, sizeof(why)), "%s", why);
	/* It accepts before the broker is there to answer. */
	broker = 0;
	for (int i = 0; i < NAPS && !broker; i++, nap(1))
		broker = broker_of(daemon_.pid);
	served();
}

static void begin(void)
{
	start(NULL);
}

static void begin_epoll(void)
{
	static const char *const epoll[] = { "event_loop = epoll", NULL };

	start(epoll);
}

static void end(void)
{
	served();
	ck_assert_int_eq(private_stop(&daemon_), 0);
}

static struct raw attached(void)
{
	struct raw r;
	int err = raw_attach(&r, path, NULL);

	ck_assert_msg(!err, "attach: %s: %s", strerror(-err), r.w.error.text);
	return r;
}

static struct onebit_stats stats(struct raw *r)
{
	struct onebit_stats s;

	ck_assert_int_eq(raw_query(r, ONEBIT_QUERY_METRICS, &s, sizeof(s)), sizeof(s));
	return s;
}

/* Until this many clients are left: deaths are heard of through the kernel. */
static void wait_clients(struct raw *r, uint32_t n)
{
	uint32_t now = 0;

	for (int i = 0; i < NAPS; i++, nap(1)) {
		now = stats(r).clients;
		if (now == n)
			return;
	}
	ck_abort_msg("%u clients instead of %u", now, n);
}

/* ---- memory ---------------------------------------------------------------------------------- */

/* A client that could shrink a region would crash the daemon; one that could write the DAEMON
 * region or the stats page would forge answers for whoever shares it. */
START_TEST(seals)
{
	const int sealed = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct raw r = attached();

	for (int i = 0; i < 4; i++) {
		bool ours = i == 0;
		int fd = r.fd[i], get;
		struct stat st;
		void *p;

		if (i == 2)
			continue; /* the doorbell */
		ck_assert_int_ge(fd, 0);
		ck_assert_int_eq(fstat(fd, &st), 0);
		get = fcntl(fd, F_GET_SEALS);
		ck_assert_msg((get & sealed) == sealed, "descriptor %d has seals %x", i, get);
		ck_assert_int_eq((get & (F_SEAL_FUTURE_WRITE | F_SEAL_WRITE)) != 0, !ours);
		ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
		ck_assert_int_eq(ftruncate(fd, 0), -1);
		ck_assert_int_eq(errno, EPERM);
		ck_assert_int_eq(ftruncate(fd, st.st_size - 4096), -1);
		ck_assert_int_eq(ftruncate(fd, st.st_size + 4096), -1);
		ck_assert_int_eq(errno, EPERM);
		ck_assert_int_eq(fallocate(fd, 0, st.st_size, 4096), -1);
		ck_assert_int_eq(fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), -1);
		if (ours)
			continue;
		ck_assert_int_eq(pwrite(fd, "x", 1, 0), -1);
		ck_assert_int_eq(errno, EPERM);
		ck_assert_int_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
		ck_assert_int_eq(errno, EPERM);
		ck_assert_int_eq(fallocate(fd, FALLOC_FL_ZERO_RANGE, 0, 4096), -1);
		p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		ck_assert_ptr_eq(p, MAP_FAILED);
		ck_assert(errno == EPERM || errno == EACCES);
		p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
		ck_assert_ptr_ne(p, MAP_FAILED);
		ck_assert_int_eq(mprotect(p, 4096, PROT_READ | PROT_WRITE), -1);
		ck_assert(errno == EPERM || errno == EACCES);
		ck_assert_int_eq(madvise(p, 4096, MADV_REMOVE), -1);
		munmap(p, 4096);
		{
			char again[64];
			int other;

			/* The same file by another name must not be a way around. */
			snprintf(again, sizeof(again), "/proc/self/fd/%d", fd);
			other = open(again, O_RDWR | O_CLOEXEC);
			if (other >= 0) {
				p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);
				ck_assert_ptr_eq(p, MAP_FAILED);
				ck_assert_int_eq(pwrite(other, "x", 1, 0), -1);
				close(other);
			}
		}
	}
	ck_assert(raw_nop(&r));
	raw_detach(&r);
}
END_TEST

/* Holes in the CLIENT region read as zeroes: the daemon must go on, whatever it was reading. */
START_TEST(hole_punching)
{
	enum { DIGS = 300 };
	struct raw r = attached(), other = attached();
	struct onebit_cqe cqe;
	struct onebit_sqe e;
	unsigned streams = 0;

	for (int i = 0; i < DIGS; i++) {
		/* Arena and ring go away while a request is on its way; cq_head stays. */
		e = raw_generate(&r, "dig", 8, 0, 0, (uint64_t)i);
		if (raw_submit(&r, &e))
			streams++;
		ck_assert_int_eq(fallocate(r.fd[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					   r.w.sqes_off, r.w.client_bytes - r.w.sqes_off), 0);
		ck_assert_int_eq(madvise(r.c + r.w.arena_off, r.w.arena_bytes, MADV_REMOVE), 0);
		raw_again(&r); /* if it was not taken, it is a NOP now */
		ck_assert(raw_terminal(&r, &cqe));
		ck_assert(raw_nop(&other));
	}
	ck_assert_uint_eq(streams, DIGS);
	ck_assert(raw_nop(&r));

	/* And cq_head too: zero is none of ours, and when the CQ is full the client goes. */
	ck_assert_int_eq(fallocate(r.fd[0], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
				   r.w.client_bytes), 0);
	for (uint32_t i = 0; i < 2 * r.w.cq_entries; i++)
		if (!raw_submit(&r, &(struct onebit_sqe){ 0 }))
			nap(1);
	wait_clients(&other, 1);
	raw_detach(&r);
	raw_detach(&other);
}
END_TEST

/* ---- doorbells ------------------------------------------------------------------------------- */

/* The descriptor is shared: made blocking and filled up, it must not hold the daemon. */
START_TEST(blocking_doorbell)
{
	const uint64_t full = UINT64_MAX - 1;
	struct raw r = attached(), other = attached();
	uint64_t v;

	ck_assert_int_eq(write(r.fd[2], &full, sizeof(full)), sizeof(full));
	ck_assert_int_eq(fcntl(r.fd[2], F_SETFL, 0), 0);
	for (int i = 0; i < 100; i++)
		ck_assert(raw_nop(&other));
	/* Emptied behind the daemon's back, again and again. */
	fcntl(r.fd[2], F_SETFL, O_NONBLOCK);
	for (int i = 0; i < 1000; i++) {
		if (read(r.fd[2], &v, sizeof(v)) < 0)
			ck_assert_int_eq(errno, EAGAIN);
		raw_ring(&r);
	}
	fcntl(r.fd[2], F_SETFL, 0);
	for (int i = 0; i < 100; i++)
		ck_assert(raw_nop(&other));
	fcntl(r.fd[2], F_SETFL, O_NONBLOCK);
	if (read(r.fd[2], &v, sizeof(v)) < 0)
		ck_assert_int_eq(errno, EAGAIN);
	ck_assert(raw_nop(&r));
	raw_detach(&r);
	raw_detach(&other);
}
END_TEST

/* One process rings without end. Its neighbour's work goes on, and the daemon stops listening. */
START_TEST(doorbell_flood)
{
	enum { NOPS = 2000 };
	struct raw other = attached();
	struct onebit_stats before = stats(&other), after;
	pid_t pid = fork();

	if (!pid) {
		struct raw r;

		if (raw_attach(&r, path, NULL))
			_exit(1);
		for (;;)
			raw_ring(&r);
	}
	for (int i = 0; i < NAPS && stats(&other).spurious_doorbells < before.spurious_doorbells + 20;
	     i++)
		nap(1);
	before = stats(&other);
	for (int i = 0; i < NOPS; i++)
		ck_assert(raw_nop(&other));
	after = stats(&other);
	/*
	 * The neighbour's own wake-ups, and a few for each time the flood is heard again. A loop that
	 * still polls the doorbell it has put aside is woken ten times as often.
	 */
	ck_assert_uint_le(after.loop_wakeups - before.loop_wakeups, 2 * NOPS + 500);
	ck_assert_uint_gt(after.spurious_doorbells, 0);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	wait_clients(&other, 1);
	raw_detach(&other);
}
END_TEST

/* ---- the socket ------------------------------------------------------------------------------ */

/* Connected and silent, many of them: they are refused or dropped, and the daemon is open again. */
START_TEST(half_open)
{
	enum { N = 200 };
	struct raw other = attached();
	int sock[N], open_ = 0;
	struct pollfd p = { .events = POLLIN | POLLRDHUP };

	for (int i = 0; i < N; i++) {
		sock[i] = raw_connect(path);
		open_ += sock[i] >= 0;
		if (i % 10 == 0)
			ck_assert(raw_nop(&other));
	}
	ck_assert_int_gt(open_, N / 2);
	/* Each one hears why it cannot stay. */
	for (int i = 0; i < N; i++) {
		struct onebit_welcome w;

		if (sock[i] < 0)
			continue;
		p.fd = sock[i];
		ck_assert_int_eq(poll(&p, 1, 60000), 1);
		ck_assert_int_eq(recv(sock[i], &w, sizeof(w), 0), sizeof(w));
		ck_assert_uint_ne(w.error.code, 0);
		ck_assert_uint_ne(w.error.text[0], 0);
		close(sock[i]);
	}
	ck_assert(raw_nop(&other));
	raw_detach(&other);
}
END_TEST

static unsigned hello_with(const void *msg, size_t len)
{
	struct raw r;
	int sock = raw_connect(path);
	unsigned code = 0;

	ck_assert_int_ge(sock, 0);
	ck_assert_int_eq(send(sock, msg, len, MSG_NOSIGNAL), (ssize_t)len);
	if (raw_hear_welcome(&r, sock))
		code = r.w.error.code;
	r.sock = sock;
	raw_detach(&r);
	return code;
}

/* A hello in pieces, too long, or of noise: refused with a code, never half-believed. */
START_TEST(garbage_hello)
{
	struct raw other = attached();
	struct onebit_hello h;
	uint64_t seed = getenv("ONEBIT_SEED") ? strtoull(getenv("ONEBIT_SEED"), NULL, 0) :
						(uint64_t)time(NULL);
	uint8_t msg[512] = { 0 };

	fprintf(stderr, "test_hostile: ONEBIT_SEED=%llu\n", (unsigned long long)seed);
	srandom((unsigned)seed);
	raw_hello(&h);
	memcpy(msg, &h, sizeof(h));
	for (size_t len = 1; len < 130; len++) {
		unsigned code = hello_with(msg, len);

		if (len == sizeof(h))
			ck_assert_uint_eq(code, 0);
		else
			ck_assert_uint_eq(code, ONEBIT_E_BAD_HELLO);
	}
	for (int i = 0; i < 500; i++) {
		for (size_t k = 0; k < sizeof(h); k++)
			msg[k] = (uint8_t)random();
		if (i % 2) /* past the first checks */
			memcpy(msg, &h, offsetof(struct onebit_hello, features_wanted));
		ck_assert_uint_ne(hello_with(msg, sizeof(h)), 0);
	}
	wait_clients(&other, 1);
	raw_detach(&other);
}
END_TEST

/* Dying at each step of the handshake leaves nothing behind. */
START_TEST(death_in_handshake)
{
	struct raw other = attached();
	int fds, maps;

	for (int warm = 0; warm < 8; warm++) { /* what is made ahead is there */
		served();
		nap(5);
	}
	wait_clients(&other, 1);
	fds = settled();
	maps = count("maps");
	for (int i = 0; i < 100; i++) {
		pid_t pid = fork();

		if (!pid) {
			struct onebit_hello h;
			struct raw r;
			int sock = raw_connect(path);

			raw_hello(&h);
			if (i % 5 == 0)
				raise(SIGKILL);
			raw_say_hello(sock, &h);
			if (i % 5 == 1)
				raise(SIGKILL);
			if (i % 5 == 2) {
				nap(2);
				raise(SIGKILL);
			}
			if (raw_hear_welcome(&r, sock) || i % 5 == 3)
				raise(SIGKILL);
			if (!raw_map(&r))
				raw_nop(&r);
			raise(SIGKILL);
		}
		ck_assert_int_gt(pid, 0);
		waitpid(pid, NULL, 0);
	}
	wait_clients(&other, 1);
	served();
	wait_clients(&other, 1);
	for (int i = 0; i < 3000 && (count(NULL) != fds || !has_maps(maps)); i++)
		nap(1);
	ck_assert_int_eq(count(NULL), fds);
	ck_assert_msg(has_maps(maps), "%d maps, not %d", count("maps"), maps);
	raw_detach(&other);
}
END_TEST

/* After the welcome a client has nothing to say; descriptors it sends must not pile up. */
START_TEST(talking_after_welcome)
{
	struct raw other = attached();
	int fds, i, n;

	fds = settled();
	for (i = 0; i < 20; i++) {
		union {
			char buf[CMSG_SPACE(8 * sizeof(int))];
			struct cmsghdr align;
		} control = { 0 };
		struct iovec iov = { .iov_base = (void *)"hi", .iov_len = 2 };
		struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
				     .msg_controllen = sizeof(control.buf) };
		struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);
		struct raw r = attached();
		struct onebit_cqe cqe;

		cm->cmsg_level = SOL_SOCKET;
		cm->cmsg_type = SCM_RIGHTS;
		cm->cmsg_len = CMSG_LEN(8 * sizeof(int));
		for (n = 0; n < 8; n++)
			memcpy(CMSG_DATA(cm) + n * sizeof(int), &r.sock, sizeof(int));
		if (i % 2) /* it may be thrown out between two of these */
			ck_assert(sendmsg(r.sock, &mh, MSG_NOSIGNAL) == 2);
		for (n = 0; n < 50; n++)
			send(r.sock, "more", 4, MSG_NOSIGNAL | MSG_DONTWAIT);
		ck_assert(!raw_terminal(&r, &cqe));
		raw_detach(&r);
	}
	wait_clients(&other, 1);
	for (i = 0; i < 3000 && count(NULL) > fds; i++)
		nap(1);
	ck_assert_int_le(count(NULL), fds);
	raw_detach(&other);
}
END_TEST

/* ---- work ------------------------------------------------------------------------------------ */

/* Never reaping, with streams on their way: its neighbour is served, and it gets all in the end. */
START_TEST(never_reaping)
{
	enum { STREAMS = 8 };
	struct onebit_hello h;
	struct onebit_cqe cqe;
	struct onebit_sqe e;
	struct raw r, other = attached();
	uint64_t seen = 0, next = 0;

	raw_hello(&h);
	h.sq_entries = 16;
	ck_assert_int_eq(raw_attach(&r, path, &h), 0);
	for (; next < STREAMS; next++) {
		e = raw_generate(&r, "a long story", 200, (uint32_t)next * RAW_BLOCK_BYTES,
				 (uint32_t)next * RAW_WINDOW_BYTES, next);
		ck_assert(raw_submit(&r, &e));
	}
	/* As much as the ring takes, until it takes no more. */
	for (int tries = 0; next < 60 && tries < 200; tries++) {
		e = (struct onebit_sqe){ .user_data = next };
		if (raw_submit(&r, &e))
			next++;
		else
			nap(1);
	}
	for (int i = 0; i < 200; i++)
		ck_assert(raw_nop(&other));
	served();
	while (seen != (1ull << next) - 1) {
		ck_assert_msg(raw_terminal(&r, &cqe), "lost: %llx of %u",
			      (unsigned long long)seen, (unsigned)next);
		ck_assert_uint_lt(cqe.user_data, next);
		ck_assert(!(seen >> cqe.user_data & 1));
		ck_assert_int_ge(cqe.res, 0);
		seen |= 1ull << cqe.user_data;
	}
	for (uint32_t i = 0; i < STREAMS; i++)
		ck_assert(raw_is_answer(&r, i * RAW_BLOCK_BYTES, i * RAW_WINDOW_BYTES));
	raw_detach(&r);
	raw_detach(&other);
}
END_TEST

/* Killed with requests in flight: what they held comes back, all of it. */
START_TEST(killed_with_work)
{
	struct raw other = attached();
	struct onebit_limits l;
	uint64_t bytes;

	ck_assert_int_eq(raw_query(&other, ONEBIT_QUERY_LIMITS, &l, sizeof(l)), sizeof(l));
	bytes = l.bytes_used;
	for (int i = 0; i < 10; i++) {
		int ready[2];
		pid_t pid;
		char c;

		ck_assert_int_eq(pipe(ready), 0);
		pid = fork();
		if (!pid) {
			struct raw r;

			if (raw_attach(&r, path, NULL))
				_exit(1);
			for (uint32_t n = 0; n < 12; n++) {
				struct onebit_sqe e = raw_generate(&r, "no end", 2000,
								   n * RAW_BLOCK_BYTES,
								   n * RAW_WINDOW_BYTES, n);

				raw_submit(&r, &e);
			}
			raw_nop(&r);
			if (write(ready[1], "x", 1) == 1)
				for (;;)
					pause();
			_exit(1);
		}
		ck_assert_int_eq(read(ready[0], &c, 1), 1);
		close(ready[0]);
		close(ready[1]);
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	wait_clients(&other, 1);
	for (int i = 0; i < NAPS && (stats(&other).journal_bytes || stats(&other).running); i++)
		nap(1);
	ck_assert_int_eq(raw_query(&other, ONEBIT_QUERY_LIMITS, &l, sizeof(l)), sizeof(l));
	ck_assert_uint_eq(l.inflight_used, 0);
	ck_assert_uint_eq(l.queued_bytes_used, 0);
	ck_assert_uint_eq(l.clients_used, 1);
	ck_assert_uint_eq(l.bytes_used, bytes);
	ck_assert_uint_eq(stats(&other).journal_bytes, 0);
	ck_assert_uint_eq(stats(&other).running, 0);
	raw_detach(&other);
}
END_TEST

/* ---- descriptors ----------------------------------------------------------------------------- */

/* Attach and detach, 200 times: a descriptor or a mapping kept each time would end every daemon. */
START_TEST(cycles)
{
	struct raw other = attached(), r;
	int fds = 0, maps = 0;

	for (int i = 0; i < 220; i++) {
		if (i == 20) { /* what is made ahead is there */
			wait_clients(&other, 1);
			fds = settled();
			maps = count("maps");
		}
		r = attached();
		ck_assert(raw_nop(&r));
		raw_detach(&r);
	}
	wait_clients(&other, 1);
	for (int i = 0; i < 3000 && (count(NULL) != fds || !has_maps(maps)); i++)
		nap(1);
	ck_assert_int_eq(count(NULL), fds);
	ck_assert_msg(has_maps(maps), "%d maps, not %d", count("maps"), maps);
	ck_assert_uint_eq(stats(&other).attached, stats(&other).detached + 1);
	raw_detach(&other);
}
END_TEST

/* The daemon out of descriptors: newcomers hear so, who is there is served, and it recovers. */
START_TEST(no_descriptors)
{
	enum { N = 60 };
	struct raw r[N], other = attached();
	struct rlimit before, few;
	int refused = 0, in = 0, err, fds = settled();

	if (fds < 0) {
		raw_detach(&other);
		return;
	}
	ck_assert_int_eq(prlimit(broker, RLIMIT_NOFILE, NULL, &before), 0);
	few = before;
	few.rlim_cur = (rlim_t)fds + 24;
	ck_assert_int_eq(prlimit(broker, RLIMIT_NOFILE, &few, NULL), 0);
	for (int i = 0; i < N; i++) {
		err = raw_attach(&r[i], path, NULL);
		if (!err) {
			in++;
			continue;
		}
		refused++;
		ck_assert_msg(r[i].w.error.code == ONEBIT_E_NO_MEMORY, "%s: code %u %s", strerror(-err),
			      r[i].w.error.code, r[i].w.error.text);
		ck_assert_uint_eq(r[i].w.error.retryable, 1);
		ck_assert_uint_gt(r[i].w.error.retry_after_ms, 0);
		ck_assert(raw_nop(&other));
	}
	ck_assert_int_gt(refused, 0);
	ck_assert_int_gt(in, 0);
	for (int i = 0; i < N; i++)
		if (r[i].sock >= 0)
			ck_assert(raw_nop(&r[i]));
	for (int i = 0; i < N; i++)
		raw_detach(&r[i]);
	wait_clients(&other, 1);
	served(); /* even while the limit stands */
	ck_assert_int_eq(prlimit(broker, RLIMIT_NOFILE, &before, NULL), 0);
	raw_detach(&other);
}
END_TEST

/* Started with few, it must admit no more clients than it has descriptors for, and say so. */
START_TEST(few_descriptors)
{
	enum { N = 60, FEW = 176 };
	const struct rlimit few = { FEW, FEW };
	struct raw r[N];
	int refused = 0, in = 0;

	ck_assert_int_eq(private_stop(&daemon_), 0);
	ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &few), 0); /* ours too, from here on */
	start(NULL);
	for (int i = 0; i < N; i++) {
		if (!raw_attach(&r[i], path, NULL)) {
			in++;
			for (int k = 0; k < 4; k++) {
				if (k != 2)
					close(r[i].fd[k]);
				r[i].fd[k] = k == 2 ? r[i].fd[k] : -1;
			}
			continue;
		}
		refused++;
		ck_assert_msg(r[i].w.error.code == ONEBIT_E_CLIENTS_FULL ||
			      r[i].w.error.code == ONEBIT_E_NO_MEMORY, "code %u %s",
			      r[i].w.error.code, r[i].w.error.text);
		ck_assert_uint_gt(r[i].w.error.retry_after_ms, 0);
	}
	ck_assert_int_gt(refused, 0);
	ck_assert_int_gt(in, 3);
	for (int i = 0; i < N; i++) {
		if (r[i].sock >= 0)
			ck_assert(raw_nop(&r[i]));
		raw_detach(&r[i]);
	}
}
END_TEST

/* Both loops: what is not there on the one must not be missing on the other. */
static void add_all(Suite *s, const char *name, void (*setup)(void))
{
	TCase *t = tcase_create(name);

	tmp_fixture(t);
	tcase_add_checked_fixture(t, setup, end);
	tcase_add_test(t, seals);
	tcase_add_test(t, hole_punching);
	tcase_add_test(t, blocking_doorbell);
	tcase_add_test(t, doorbell_flood);
	tcase_add_test(t, half_open);
	tcase_add_test(t, garbage_hello);
	tcase_add_test(t, death_in_handshake);
	tcase_add_test(t, talking_after_welcome);
	tcase_add_test(t, never_reaping);
	tcase_add_test(t, killed_with_work);
	tcase_add_test(t, cycles);
	tcase_add_test(t, no_descriptors);
	tcase_add_test(t, few_descriptors);
	tcase_set_timeout(t, 300);
	suite_add_tcase(s, t);
}

int main(void)
{
	Suite *s = suite_create("hostile");
	SRunner *r;
	int failed;

	signal(SIGPIPE, SIG_IGN);
	add_all(s, "auto", begin);
	add_all(s, "epoll", begin_epoll);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

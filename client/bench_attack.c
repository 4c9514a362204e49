/* SPDX-License-Identifier: MIT */
/*
 * A victim beside an attacker. Two processes do their worst: one writes to its doorbell as fast as
 * it can, the other submits for ever and never reaps. The victim's p99 is held against the one
 * beside two processes that only burn CPU, so that what is told is the attack and not the load.
 *
 * The attackers speak the protocol by hand: libonebit gives nobody the doorbell.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench_row.h"
#include "onebit_ring.h"

enum { ATTACKERS = 2, FDS = 4, START_MS = 5000, WARM_NS = 5000000 };

struct raw {
	int doorbell;
	char *client;
	const char *daemon;
	struct onebit_welcome w;
};

static bool raw_attach(struct raw *r, const char *path)
{
	struct onebit_hello hello = {
		.magic = ONEBIT_MAGIC,
		.size = sizeof(hello),
		.abi_major = ONEBIT_ABI_MAJOR,
		.abi_minor = ONEBIT_ABI_MINOR,
		.sq_entries = TPUT_DEPTH,
		.arena_bytes = ONEBIT_AREA_MIN,
		.out_bytes = ONEBIT_AREA_MIN,
	};
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	union {
		struct cmsghdr head;
		char bytes[CMSG_SPACE(FDS * sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = &r->w, .iov_len = sizeof(r->w) };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int s, fds[3];

	strncpy(sa.sun_path, path, sizeof(sa.sun_path) - 1);
	s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (s < 0 || connect(s, (struct sockaddr *)&sa, sizeof(sa)) ||
	    send(s, &hello, sizeof(hello), 0) != sizeof(hello) ||
	    recvmsg(s, &msg, MSG_CMSG_CLOEXEC) != sizeof(r->w) || r->w.error.code ||
	    !CMSG_FIRSTHDR(&msg) || CMSG_FIRSTHDR(&msg)->cmsg_len < CMSG_LEN(sizeof(fds)))
		return false;
	memcpy(fds, CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(fds));
	r->client = mmap(NULL, r->w.client_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	r->daemon = mmap(NULL, r->w.daemon_bytes, PROT_READ, MAP_SHARED, fds[1], 0);
	r->doorbell = fds[2];
	/* The socket stays open: it is the attachment. */
	return r->client != MAP_FAILED && r->daemon != MAP_FAILED;
}

static void ring_bell(const struct raw *r)
{
	uint64_t one = 1;

	/* EAGAIN of a full counter and the like: the next one may do better. */
	(void)!write(r->doorbell, &one, sizeof(one));
}

static _Noreturn void never_reap(const struct raw *r)
{
	struct onebit_sqe *sqes = (struct onebit_sqe *)(r->client + r->w.sqes_off);
	const uint32_t *sq_head = (const uint32_t *)(r->daemon + r->w.sq_head_off);
	uint32_t tail = onebit_load_relaxed(sq_head);

	for (;;) {
		while (onebit_distance(onebit_load_acquire(sq_head), tail) < r->w.sq_entries) {
			/* zeroed: ONEBIT_OP_NOP */
			onebit_store_release(&sqes[onebit_slot(tail, r->w.sq_entries)].seq,
					     onebit_seq(tail));
			tail++;
		}
		ring_bell(r);
	}
}

static _Noreturn void attacker(struct bench *b, enum attack_kind kind, int i, int tell)
{
	char fine = 1;
	struct raw r = { 0 };

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* One beside the victim and one beside the daemon, in both runs: else chance decides. */
	place_side(b, PLACE_TWO, i % 2);
	if (kind == ATTACK_RING)
		fine = raw_attach(&r, b->socket);
	if (write(tell, &fine, 1) != 1 || !fine)
		_exit(1);
	if (kind == ATTACK_RING && i % 2)
		never_reap(&r);
	for (;;) {
		if (kind == ATTACK_RING)
			ring_bell(&r);
		else
			__asm__ __volatile__("" ::: "memory");
	}
}

static int start(struct bench *b, enum attack_kind kind, pid_t *pids)
{
	struct pollfd pfd = { .events = POLLIN };
	int tell[2], ret = 0;
	char fine;

	if (pipe(tell))
		return bench_fail(b, -errno, "cannot make a pipe: %s", strerror(errno));
	for (int i = 0; i < ATTACKERS; i++) {
		pids[i] = fork();
		if (!pids[i])
			attacker(b, kind, i, tell[1]);
		if (pids[i] < 0)
			ret = bench_fail(b, -errno, "cannot fork: %s", strerror(errno));
	}
	close(tell[1]);
	pfd.fd = tell[0];
	for (int i = 0; i < ATTACKERS && !ret; i++)
		if (poll(&pfd, 1, START_MS) != 1 || read(tell[0], &fine, 1) != 1 || !fine)
			ret = bench_fail(b, -EIO, "an attacker could not attach");
	close(tell[0]);
	return ret;
}

int attack_run(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	pid_t pids[ATTACKERS] = { 0 };
	struct onebit *o = NULL;
	uint64_t t, last, end, tag = 0;
	int ret;

	(void)value;
	ret = bench_open(b, &o, ONEBIT_WAIT_SLEEP, 0);
	if (ret)
		return ret;
	ret = start(b, (enum attack_kind)r->kind, pids);
	end = bench_now() + WARM_NS;
	while (!ret && bench_now() < end)
		ret = rtt_trip(b, o, tag++);
	last = bench_now();
	end = last + ns;
	while (!ret && last < end) {
		ret = rtt_trip(b, o, tag++);
		t = bench_now();
		hist_add(h, t - last, 1);
		last = t;
	}
	for (int i = 0; i < ATTACKERS; i++) {
		if (pids[i] > 0) {
			kill(pids[i], SIGKILL);
			waitpid(pids[i], NULL, 0);
		}
	}
	onebit_close(o);
	return ret;
}

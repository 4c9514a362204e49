/* SPDX-License-Identifier: MIT */
/*
 * What one would use instead of the ring: the same 64 bytes there and back between two processes
 * over pipes, UNIX SEQPACKET, eventfd, futex and TCP loopback. For eventfd and futex the bytes go
 * through shared memory and the primitive only wakes, as it would in earnest. Both sides sleep.
 *
 * The other side is a process, not a thread, as the daemon is: a thread would spare it the change of
 * address space on one CPU.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench_row.h"

enum { MESSAGE = 64, WARM_TRIPS = 200 };

const char *const peer_names[PEER_COUNT] = { "pipe", "seqpacket", "eventfd", "futex", "tcp" };

/* Side 0 is ours, side 1 the echo's. Each side has a box that only the other one writes. */
struct box {
	_Alignas(128) uint32_t seq;
	_Alignas(128) char message[MESSAGE];
};

struct pair {
	int in[2], out[2]; /* by side; -1 where not used */
	struct box *box;
	uint32_t seen[2];
};

static bool read_all(int fd, char *buf)
{
	size_t got = 0;
	ssize_t n;

	while (got < MESSAGE) {
		n = read(fd, buf + got, MESSAGE - got);
		if (n <= 0)
			return false;
		got += (size_t)n;
	}
	return true;
}

static bool stream_send(struct pair *p, int side, const char *buf)
{
	return write(p->out[side], buf, MESSAGE) == MESSAGE;
}

static bool stream_recv(struct pair *p, int side, char *buf)
{
	return read_all(p->in[side], buf);
}

static bool eventfd_send(struct pair *p, int side, const char *buf)
{
	uint64_t one = 1;

	memcpy(p->box[!side].message, buf, MESSAGE);
	return write(p->out[side], &one, sizeof(one)) == sizeof(one);
}

static bool eventfd_recv(struct pair *p, int side, char *buf)
{
	uint64_t n;

	if (read(p->in[side], &n, sizeof(n)) != sizeof(n))
		return false;
	memcpy(buf, p->box[side].message, MESSAGE);
	return true;
}

static bool futex_send(struct pair *p, int side, const char *buf)
{
	struct box *box = &p->box[!side];

	memcpy(box->message, buf, MESSAGE);
	/* Pairs with the acquire in futex_recv(): the message is there. */
	__atomic_add_fetch(&box->seq, 1, __ATOMIC_RELEASE);
	return syscall(SYS_futex, &box->seq, FUTEX_WAKE, 1, NULL, NULL, 0) >= 0;
}

static bool futex_recv(struct pair *p, int side, char *buf)
{
	struct box *box = &p->box[side];

	while (__atomic_load_n(&box->seq, __ATOMIC_ACQUIRE) == p->seen[side])
		syscall(SYS_futex, &box->seq, FUTEX_WAIT, p->seen[side], NULL, NULL, 0);
	p->seen[side]++;
	memcpy(buf, box->message, MESSAGE);
	return true;
}

static int pipe_open(struct pair *p)
{
	int a[2], b[2];

	if (pipe2(a, O_CLOEXEC))
		return -errno;
	p->in[1] = a[0];
	p->out[0] = a[1];
	if (pipe2(b, O_CLOEXEC))
		return -errno;
	p->in[0] = b[0];
	p->out[1] = b[1];
	return 0;
}

static int seqpacket_open(struct pair *p)
{
	int s[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s))
		return -errno;
	p->in[0] = p->out[0] = s[0];
	p->in[1] = p->out[1] = s[1];
	return 0;
}

static int eventfd_open(struct pair *p)
{
	p->in[0] = p->out[1] = eventfd(0, EFD_CLOEXEC);
	p->in[1] = p->out[0] = eventfd(0, EFD_CLOEXEC);
	return p->in[0] < 0 || p->in[1] < 0 ? -errno : 0;
}

static int futex_open(struct pair *p)
{
	(void)p;
	return 0;
}

static int tcp_open(struct pair *p)
{
	struct sockaddr_in sa = { .sin_family = AF_INET };
	socklen_t len = sizeof(sa);
	int listener, ret = 0, one = 1;

	sa.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0)
		return -errno;
	if (bind(listener, (struct sockaddr *)&sa, sizeof(sa)) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&sa, &len))
		goto fail;
	p->in[0] = p->out[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (p->in[0] < 0 || connect(p->in[0], (struct sockaddr *)&sa, sizeof(sa)))
		goto fail;
	p->in[1] = p->out[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (p->in[1] < 0)
		goto fail;
	for (int i = 0; i < 2; i++)
		if (setsockopt(p->in[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)))
			goto fail;
	goto out;
fail:
	ret = -errno;
out:
	close(listener);
	return ret;
}

static const struct peer {
	int (*open)(struct pair *p);
	bool (*send)(struct pair *p, int side, const char *buf);
	bool (*recv)(struct pair *p, int side, char *buf);
} peers[PEER_COUNT] = {
	[PEER_PIPE] = { pipe_open, stream_send, stream_recv },
	[PEER_SEQPACKET] = { seqpacket_open, stream_send, stream_recv },
	[PEER_EVENTFD] = { eventfd_open, eventfd_send, eventfd_recv },
	[PEER_FUTEX] = { futex_open, futex_send, futex_recv },
	[PEER_TCP] = { tcp_open, stream_send, stream_recv },
};

static _Noreturn void echo(const struct bench *b, enum place place, const struct peer *peer,
			   struct pair *p)
{
	char buf[MESSAGE];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	place_side(b, place, 1);
	while (peer->recv(p, 1, buf) && peer->send(p, 1, buf))
		;
	_exit(0);
}

static int trips(struct bench *b, const char *name, const struct peer *peer, struct pair *p,
		 uint64_t ns, struct hist *h)
{
	char out[MESSAGE] = { 0 }, in[MESSAGE];
	uint64_t t0, t1 = 0, end = 0, n = 0;

	do {
		memcpy(out, &n, sizeof(n));
		t0 = bench_now();
		if (!peer->send(p, 0, out) || !peer->recv(p, 0, in))
			return bench_fail(b, -EIO, "%s: the other side went away: %s", name,
					  strerror(errno));
		t1 = bench_now();
		/* A stale message would make a primitive look fast that did not carry it. */
		if (memcmp(in, out, MESSAGE))
			return bench_fail(b, -EIO, "%s: another message came back", name);
		if (++n > WARM_TRIPS)
			hist_add(h, t1 - t0, 1);
		else
			end = t1 + ns;
	} while (t1 < end);
	return 0;
}

int peer_run(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	const struct peer *peer = &peers[r->kind];
	const char *name = peer_names[r->kind];
	struct pair p = { .in = { -1, -1 }, .out = { -1, -1 } };
	pid_t pid;
	int ret;

	(void)value;
	p.box = mmap(NULL, 2 * sizeof(*p.box), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	if (p.box == MAP_FAILED)
		return bench_fail(b, -ENOMEM, "%s: no memory", name);
	ret = peer->open(&p);
	if (ret) {
		bench_fail(b, ret, "%s: cannot be opened: %s", name, strerror(-ret));
		goto out;
	}
	pid = fork();
	if (!pid)
		echo(b, r->place, peer, &p);
	if (pid < 0) {
		ret = bench_fail(b, -errno, "%s: cannot fork: %s", name, strerror(errno));
		goto out;
	}
	ret = trips(b, name, peer, &p, ns, h);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
out:
	for (int i = 0; i < 2; i++) {
		if (p.in[i] >= 0)
			close(p.in[i]);
		if (p.out[i] >= 0 && p.out[i] != p.in[i] && p.out[i] != p.in[!i])
			close(p.out[i]);
	}
	munmap(p.box, 2 * sizeof(*p.box));
	return ret;
}

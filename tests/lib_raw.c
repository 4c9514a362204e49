/* SPDX-License-Identifier: MIT */
#include "lib_raw.h"

#include <errno.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include "loopback.h"
#include "onebit_ring.h"

enum { PATIENCE = 300000 }; /* naps of 200 us: a minute, for a sanitizer on a busy machine */

void raw_hello(struct onebit_hello *h)
{
	*h = (struct onebit_hello){
		.magic = ONEBIT_MAGIC,
		.size = sizeof(*h),
		.abi_major = ONEBIT_ABI_MAJOR,
		.features_wanted = ~0ull,
	};
}

int raw_connect(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), err;

	if (sock < 0)
		return -errno;
	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	if (!connect(sock, (struct sockaddr *)&sa, sizeof(sa)))
		return sock;
	err = -errno;
	close(sock);
	return err;
}

int raw_say_hello(int sock, const struct onebit_hello *h)
{
	return send(sock, h, sizeof(*h), MSG_NOSIGNAL) == (ssize_t)sizeof(*h) ? 0 : -errno;
}

int raw_hear_welcome(struct raw *r, int sock)
{
	union {
		char buf[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct iovec iov = { .iov_base = &r->w, .iov_len = sizeof(r->w) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
			     .msg_controllen = sizeof(control.buf) };
	struct cmsghdr *cm;
	ssize_t n;

	memset(r, 0, sizeof(*r));
	memset(r->fd, 0xff, sizeof(r->fd));
	r->sock = sock;
	n = recvmsg(sock, &mh, MSG_CMSG_CLOEXEC);
	if (n < 0)
		return -errno;
	if (!n)
		return -ECONNRESET;
	cm = CMSG_FIRSTHDR(&mh);
	if (cm && cm->cmsg_type == SCM_RIGHTS && cm->cmsg_len <= CMSG_LEN(sizeof(r->fd)))
		memcpy(r->fd, CMSG_DATA(cm), cm->cmsg_len - CMSG_LEN(0));
	if (n != (ssize_t)sizeof(r->w))
		return -EPROTO;
	return r->w.error.code ? r->w.error.err : 0;
}

int raw_map(struct raw *r)
{
	void *c = mmap(NULL, r->w.client_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd[0], 0);
	void *d = mmap(NULL, r->w.daemon_bytes, PROT_READ, MAP_SHARED, r->fd[1], 0);

	r->c = c == MAP_FAILED ? NULL : c;
	r->d = d == MAP_FAILED ? NULL : d;
	if (!r->c || !r->d)
		return -errno;
	r->sq_tail = onebit_load_acquire((const uint32_t *)(const void *)(r->d + r->w.sq_head_off));
	r->cq_head = r->sq_tail;
	return 0;
}

int raw_attach(struct raw *r, const char *path, const struct onebit_hello *h)
{
	struct onebit_hello def;
	int sock = raw_connect(path), err;

	memset(r, 0, sizeof(*r));
	memset(r->fd, 0xff, sizeof(r->fd));
	r->sock = sock;
	if (sock < 0)
		return sock;
	if (!h) {
		raw_hello(&def);
		h = &def;
	}
	/* A daemon short of descriptors answers before it has heard us. */
	raw_say_hello(sock, h);
	err = raw_hear_welcome(r, sock);
	if (!err)
		err = raw_map(r);
	if (err)
		raw_detach(r);
	return err;
}

void raw_detach(struct raw *r)
{
	if (r->c)
		munmap(r->c, r->w.client_bytes);
	if (r->d)
		munmap((void *)(uintptr_t)r->d, r->w.daemon_bytes);
	r->c = NULL;
	r->d = NULL;
	for (int i = 0; i < 4; i++) {
		if (r->fd[i] >= 0)
			close(r->fd[i]);
		r->fd[i] = -1;
	}
	if (r->sock >= 0)
		close(r->sock);
	r->sock = -1;
}

static uint32_t *ours(const struct raw *r, uint32_t off)
{
	return (uint32_t *)(void *)(r->c + off);
}

static const uint32_t *theirs(const struct raw *r, uint32_t off)
{
	return (const uint32_t *)(const void *)(r->d + off);
}

void raw_ring(const struct raw *r)
{
	static const uint64_t one = 1;

	if (write(r->fd[2], &one, sizeof(one)) < 0)
		return; /* a full counter has told it already */
}

bool raw_submit(struct raw *r, const struct onebit_sqe *e)
{
	struct onebit_sqe *sqes = (struct onebit_sqe *)(void *)(r->c + r->w.sqes_off);
	struct onebit_sqe *slot = &sqes[onebit_slot(r->sq_tail, r->w.sq_entries)];
	struct onebit_sqe copy = *e;

	if (onebit_distance(onebit_load_acquire(theirs(r, r->w.sq_head_off)), r->sq_tail) >=
	    r->w.sq_entries)
		return false;
	copy.seq = ~onebit_seq(r->sq_tail); /* not there before all of it is */
	*slot = copy;
	onebit_store_release(&slot->seq, onebit_seq(r->sq_tail++));
	onebit_fence();
	if (onebit_load_relaxed(theirs(r, r->w.state_off)) & ONEBIT_SQ_NEED_WAKEUP)
		raw_ring(r);
	return true;
}

void raw_again(struct raw *r)
{
	uint32_t i = r->sq_tail - 1;
	struct onebit_sqe *sqes = (struct onebit_sqe *)(void *)(r->c + r->w.sqes_off);

	onebit_store_release(&sqes[onebit_slot(i, r->w.sq_entries)].seq, onebit_seq(i));
	onebit_fence();
	raw_ring(r);
}

static bool is_gone(const struct raw *r)
{
	struct pollfd p = { .fd = r->sock, .events = POLLRDHUP };

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLRDHUP | POLLERR));
}

/* The oldest CQE, NULL: not there yet. */
static const struct onebit_cqe *oldest(const struct raw *r)
{
	uint32_t off = r->w.cqes_off + onebit_slot(r->cq_head, r->w.cq_entries) * (uint32_t)sizeof(struct onebit_cqe);
	uint32_t mark = onebit_load_acquire(theirs(r, off + (uint32_t)offsetof(struct onebit_cqe, flags)));

	return onebit_phase_is(mark, r->cq_head, r->w.cq_entries) ? (const void *)(r->d + off) : NULL;
}

bool raw_terminal(struct raw *r, struct onebit_cqe *cqe)
{
	const struct onebit_cqe *q;
	struct timespec nap = { .tv_nsec = 200000 };

	for (int i = 0; i < PATIENCE; i++) {
		while ((q = oldest(r))) {
			*cqe = *q;
			cqe->flags &= (uint16_t)~ONEBIT_CQE_PHASE; /* the ring's own */
			onebit_store_release(ours(r, r->w.cq_head_off), ++r->cq_head);
			onebit_fence();
			if (onebit_load_relaxed(theirs(r, r->w.state_off)) & ONEBIT_SQ_STALLED)
				raw_ring(r);
			if (!(cqe->flags & ONEBIT_CQE_MORE))
				return true;
		}
		if (is_gone(r))
			return false;
		if (i > 20)
			nanosleep(&nap, NULL);
	}
	return false;
}

bool raw_nop(struct raw *r)
{
	static uint64_t user_data = 1ull << 40;
	struct onebit_sqe e = { .user_data = ++user_data };
	struct onebit_cqe cqe;

	if (!raw_submit(r, &e))
		return false;
	while (raw_terminal(r, &cqe))
		if (cqe.user_data == e.user_data)
			return cqe.res == 0;
	return false;
}

int32_t raw_query(struct raw *r, uint64_t topic, void *answer, uint32_t len)
{
	uint32_t at = r->w.out_bytes - 4096;
	struct onebit_sqe e = { .op = ONEBIT_OP_QUERY, .arg = topic, .out_off = at, .out_len = 4096,
				.user_data = 1ull << 41 };
	struct onebit_cqe cqe;

	if (!raw_submit(r, &e))
		return -EAGAIN;
	while (raw_terminal(r, &cqe)) {
		if (cqe.user_data != e.user_data)
			continue;
		if (cqe.res > 0)
			memcpy(answer, r->d + r->w.out_off + at,
			       (uint32_t)cqe.res < len ? (uint32_t)cqe.res : len);
		return cqe.res;
	}
	return -ECONNRESET;
}

/* ---- requests and their answers -------------------------------------------------------------- */

struct block {
	struct onebit_params p;
	struct onebit_segment seg;
	char text[RAW_BLOCK_BYTES - sizeof(struct onebit_params) - sizeof(struct onebit_segment)];
};

struct onebit_sqe raw_generate(struct raw *r, const char *text, uint32_t max_tokens,
			       uint32_t in_off, uint32_t out_off, uint64_t user_data)
{
	struct block t;

	memset(&t, 0, sizeof(t));
	t.p.size = sizeof(t.p);
	t.p.max_tokens = max_tokens;
	t.p.segments_off = offsetof(struct block, seg);
	t.p.n_segments = 1;
	t.seg = (struct onebit_segment){ .role = ONEBIT_ROLE_USER, .off = offsetof(struct block, text),
					 .len = (uint32_t)strlen(text) };
	memcpy(t.text, text, strlen(text));
	memcpy(r->c + r->w.arena_off + in_off, &t, sizeof(t));
	return (struct onebit_sqe){ .op = ONEBIT_OP_GENERATE, .user_data = user_data,
				    .in_off = in_off, .in_len = sizeof(t), .out_off = out_off,
				    .out_len = RAW_WINDOW_BYTES };
}

bool raw_is_answer(struct raw *r, uint32_t in_off, uint32_t out_off)
{
	const uint8_t *w = r->d + r->w.out_off + out_off, *at;
	struct onebit_choice choice;
	struct onebit_record rec;
	struct onebit_out out;
	uint32_t n, len;
	struct block t;
	uint8_t finish;
	uint64_t key;
	char text[16];

	memcpy(&t, r->c + r->w.arena_off + in_off, sizeof(t));
	memcpy(&out, w, sizeof(out));
	memcpy(&choice, w + sizeof(out), sizeof(choice));
	key = loopback_key(out.model_id, &t.p, &t, sizeof(t));
	n = loopback_length(key, 0, t.p.max_tokens, &finish);
	if (choice.n_tokens != n || choice.finish != finish)
		return false;
	at = w + choice.rec_off;
	for (uint32_t i = 0; i < n; i++) {
		memcpy(&rec, at, sizeof(rec));
		if (rec.token != loopback_token(key, 0, i, text, &len) || rec.text_len != len ||
		    memcmp(at + sizeof(rec), text, len))
			return false;
		at += rec.size;
	}
	return at == w + choice.rec_off + choice.n_bytes;
}

const char *raw_service(const char *path)
{
	const char *what = NULL;
	struct onebit_sqe e;
	struct onebit_cqe cqe;
	struct raw r;

	if (raw_attach(&r, path, NULL))
		return "a fresh client cannot attach";
	e = raw_generate(&r, "is anybody there", 16, 0, 0, 7);
	if (!raw_nop(&r))
		what = "a NOP does not complete";
	else if (!raw_submit(&r, &e) || !raw_terminal(&r, &cqe) || cqe.user_data != 7)
		what = "a GENERATE does not complete";
	else if (cqe.res < 0)
		what = "a GENERATE fails";
	else if (!raw_is_answer(&r, 0, 0))
		what = "the answer is a wrong one";
	raw_detach(&r);
	return what;
}

/* SPDX-License-Identifier: MIT */
/*
 * Two versions meet. Everything here is written with the frozen header of version 1.0: first what a
 * client of that version, or of one that is still to come, may say to today's daemon; then today's
 * libonebit with a daemon of version 1.0, which is the smallest that keeps the contract.
 */
#include <check.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* First, so that its include guard keeps today's away. */
#include "frozen/1.0/onebit.h"
#include "frozen/1.0/onebit_ring.h"

#include "attach.h"
#include "lib_tmp.h"
#include "libonebit.h"

static struct onebit_hello hello(void)
{
	return (struct onebit_hello){
		.magic = ONEBIT_MAGIC,
		.size = sizeof(struct onebit_hello),
		.abi_major = ONEBIT_ABI_MAJOR,
		.abi_minor = ONEBIT_ABI_MINOR,
		.features_wanted = ONEBIT_FEAT_INLINE | ONEBIT_FEAT_NOTIFY,
	};
}

static void accepted(const struct onebit_hello *h, struct attach *a)
{
	struct onebit_error why;
	int rc = attach_parse(h, sizeof(*h), a, &why);

	ck_assert_msg(rc == 0, "%s", rc ? why.text : "");
}

static void refused(const void *msg, size_t len, enum onebit_code code, uint64_t detail)
{
	struct onebit_error why = { 0 };
	struct attach a;

	ck_assert_int_eq(attach_parse(msg, len, &a, &why), -EPROTO);
	ck_assert_uint_eq(why.code, code);
	ck_assert_uint_eq(why.detail, detail);
}

/* What breaks: a client of version 1.0 is no longer let in, or gets other sizes than it knew. */
START_TEST(old_hello_is_accepted)
{
	struct onebit_hello h = hello();
	struct attach a;

	accepted(&h, &a);
	ck_assert_uint_eq(a.wanted, h.features_wanted);
	ck_assert_uint_eq(a.abi_minor, 0);
	ck_assert_uint_eq(a.sq_entries, ONEBIT_SQ_ENTRIES_DEFAULT);
	ck_assert_uint_eq(a.cq_entries, 2 * ONEBIT_SQ_ENTRIES_DEFAULT);
	ck_assert_uint_eq(a.arena_bytes, ONEBIT_AREA_DEFAULT);
	ck_assert_uint_eq(a.out_bytes, ONEBIT_AREA_DEFAULT);
}
END_TEST

/* What breaks: an upgraded client cannot attach before the daemon is upgraded too. */
START_TEST(newer_minor_is_accepted)
{
	struct onebit_hello h = hello();
	struct attach a;

	h.abi_minor = 0xffff;
	accepted(&h, &a);
	ck_assert_uint_lt(a.abi_minor, 0xffff);
}
END_TEST

/* What breaks: a feature is granted that nobody here knows, or asking for one is an error. */
START_TEST(unknown_wanted_feature_is_not_granted)
{
	struct onebit_hello h = hello();
	struct attach a;

	h.features_wanted |= 1ull << 63;
	accepted(&h, &a);
	ck_assert_uint_eq(a.wanted, ONEBIT_FEAT_INLINE | ONEBIT_FEAT_NOTIFY);
}
END_TEST

/* What breaks: a client that cannot do without a feature is let in without it. */
START_TEST(unknown_required_feature_is_refused)
{
	struct onebit_hello h = hello();

	h.features_wanted |= 1ull << 63;
	h.features_required = 1ull << 63 | ONEBIT_FEAT_INLINE;
	refused(&h, sizeof(h), ONEBIT_E_BAD_FEATURE, 1ull << 63);
}
END_TEST

/* What breaks: two sides that disagree about every byte begin to talk. */
START_TEST(other_major_is_refused)
{
	struct onebit_hello h = hello();

	h.abi_major = ONEBIT_ABI_MAJOR + 1;
	refused(&h, sizeof(h), ONEBIT_E_BAD_VERSION, ONEBIT_ABI_MAJOR);
	h.abi_major = 0;
	refused(&h, sizeof(h), ONEBIT_E_BAD_VERSION, ONEBIT_ABI_MAJOR);
}
END_TEST

/* What breaks: a hello of another size is half believed. Version 1.0 says there is no longer one. */
START_TEST(other_size_is_refused)
{
	struct {
		struct onebit_hello h;
		char more[8];
	} m = { .h = hello() };
	const uint64_t at = offsetof(struct onebit_hello, size);

	for (size_t len = 0; len <= sizeof(m); len++)
		if (len != sizeof(m.h))
			refused(&m, len, ONEBIT_E_BAD_HELLO, at);
	m.h.size = sizeof(m);
	refused(&m.h, sizeof(m.h), ONEBIT_E_BAD_HELLO, at);
	refused(&m, sizeof(m), ONEBIT_E_BAD_HELLO, at);
}
END_TEST

/* What breaks: a field with a meaning tomorrow is ignored today, and so can never get one. */
START_TEST(every_reserved_bit_is_refused)
{
	const size_t from[] = { offsetof(struct onebit_hello, flags),
				offsetof(struct onebit_hello, reserved) };
	const size_t bytes[] = { sizeof(__u32), 2 * sizeof(__u64) };

	for (int f = 0; f < 2; f++)
		for (size_t bit = 0; bit < 8 * bytes[f]; bit++) {
			struct onebit_hello h = hello();

			((unsigned char *)&h)[from[f] + bit / 8] |= (unsigned char)(1u << bit % 8);
			refused(&h, sizeof(h), ONEBIT_E_BAD_HELLO, from[f]);
		}
}
END_TEST

/* ---- a daemon of version 1.0 ---- */

enum { SQ = 64, CQ = 128, AREA = 262144 };
#define START 0xffffff00u /* the daemon's to choose; the client goes by sq_head */

/* Everything a client may see of it, at offsets that today's daemon does not use. */
static const struct onebit_welcome old_welcome = {
	.magic = ONEBIT_MAGIC,
	.size = sizeof(struct onebit_welcome),
	.abi_major = ONEBIT_ABI_MAJOR,
	.client_id = 3,
	.epoch = 77,
	.client_bytes = 16384 + AREA,
	.daemon_bytes = 16384 + AREA,
	.sq_entries = SQ,
	.cq_entries = CQ,
	.cq_head_off = 512,
	.wake_off = 1024,
	.sqes_off = 8192,
	.arena_off = 16384,
	.arena_bytes = AREA,
	.sq_head_off = 320,
	.state_off = 640,
	.futex_off = 960,
	.cqes_off = 8192,
	.out_off = 16384,
	.out_bytes = AREA,
	.max_inflight = 16,
};

static int send_welcome(int s, const struct onebit_welcome *w, const int fds[3])
{
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(3 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)w, sizeof(*w) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(3 * sizeof(int));
	memcpy(CMSG_DATA(c), fds, 3 * sizeof(int));
	return sendmsg(s, &msg, MSG_NOSIGNAL) == (ssize_t)sizeof(*w) ? 0 : -1;
}

/*
 * Serves one client, NOP and ECHO, by looking at its ring every millisecond; it wants no doorbell and
 * wakes by the futex word alone. Returns what it makes of the client.
 */
static int old_daemon(int listener)
{
	struct onebit_welcome w = old_welcome;
	struct onebit_hello h;
	struct onebit_state *state;
	struct onebit_cqe *cqes;
	char *c, *d;
	__u32 sq_head = START, cq_tail = START, *futex;
	int fds[3], s = accept(listener, NULL, NULL);

	if (s < 0 || recv(s, &h, sizeof(h), MSG_TRUNC) != (ssize_t)sizeof(h))
		return 2;
	/* What version 1.0 refuses. */
	if (h.magic != ONEBIT_MAGIC || h.size != sizeof(h) || h.abi_major != ONEBIT_ABI_MAJOR ||
	    h.flags || h.reserved[0] || h.reserved[1] || h.features_required & ~0xffull ||
	    (h.sq_entries && h.sq_entries != SQ) || (h.cq_entries && h.cq_entries != CQ))
		return 3;

	fds[0] = memfd_create("client", MFD_CLOEXEC);
	fds[1] = memfd_create("daemon", MFD_CLOEXEC);
	fds[2] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (ftruncate(fds[0], w.client_bytes) || ftruncate(fds[1], w.daemon_bytes))
		return 4;
	c = mmap(NULL, w.client_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	d = mmap(NULL, w.daemon_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[1], 0);
	if (c == MAP_FAILED || d == MAP_FAILED)
		return 4;
	state = (struct onebit_state *)(d + w.state_off);
	state->state = ONEBIT_STATE_READY;
	state->epoch = w.epoch;
	cqes = (struct onebit_cqe *)(d + w.cqes_off);
	futex = (__u32 *)(d + w.futex_off);
	/* The client starts from this. */
	onebit_store_release((__u32 *)(d + w.sq_head_off), sq_head);
	onebit_store_release((__u32 *)(c + w.cq_head_off), cq_tail);
	w.features = h.features_wanted & ONEBIT_FEAT_INLINE;
	if (send_welcome(s, &w, fds))
		return 5;

	for (;;) {
		struct pollfd p = { .fd = s, .events = POLLIN };

		for (;;) {
			const struct onebit_wake *wake = (const void *)(c + w.wake_off);
			struct onebit_sqe *sqe = (struct onebit_sqe *)(c + w.sqes_off) +
						 onebit_slot(sq_head, SQ), e;
			struct onebit_cqe r = { 0 }, *cqe = &cqes[onebit_slot(cq_tail, CQ)];
			__u16 phase = onebit_phase(cq_tail, CQ);

			if (onebit_load_acquire(&sqe->seq) != onebit_seq(sq_head))
				break;
			e = *sqe;
			onebit_store_release((__u32 *)(d + w.sq_head_off), ++sq_head);
			r.user_data = e.user_data;
			if (e.op == ONEBIT_OP_ECHO && e.in_len <= e.out_len &&
			    e.in_off + (__u64)e.in_len <= AREA && e.out_off + (__u64)e.out_len <= AREA) {
				memcpy(d + w.out_off + e.out_off, c + w.arena_off + e.in_off, e.in_len);
				r.res = (__s32)e.in_len;
			} else if (e.op != ONEBIT_OP_NOP) {
				r.res = -EOPNOTSUPP;
				r.u.end.code = ONEBIT_E_UNSUPPORTED;
				r.u.end.layer = ONEBIT_LAYER_RING;
				r.u.end.detail = e.op;
			}
			r.flags = phase ^ ONEBIT_CQE_PHASE; /* not there before all of it is */
			*cqe = r;
			onebit_store_release((__u32 *)(void *)&cqe->flags, phase);
			cq_tail++;
			onebit_fence();
			if (!(onebit_load_relaxed(&wake->need) & ONEBIT_WAKE_FUTEX))
				continue;
			onebit_store_release(futex, onebit_load_relaxed(futex) + 1);
			syscall(SYS_futex, futex, FUTEX_WAKE, 1, NULL, NULL, 0);
		}
		if (poll(&p, 1, 1) == 1)
			return recv(s, &h, 1, 0) == 0 ? 0 : 6;
	}
}

static struct onebit_event ask(struct onebit *o, const struct onebit_request *rq)
{
	struct onebit_event ev = { 0 };
	uint64_t id = 0;

	ck_assert_int_eq(onebit_submit(o, rq, &id), 0);
	do
		ck_assert_int_eq(onebit_next(o, &ev, 60000), 1);
	while (ev.type != ONEBIT_EV_END);
	ck_assert_uint_eq(ev.id, id);
	return ev;
}

/* What breaks: an upgraded library needs an upgraded daemon. */
START_TEST(library_works_with_old_daemon)
{
	static const char text[] = "from new to old and back";
	struct onebit_request nop = { .op = ONEBIT_OP_NOP };
	struct onebit_request echo = { .op = ONEBIT_OP_ECHO, .data = text, .data_len = sizeof(text) };
	struct onebit_request query = { .op = ONEBIT_OP_QUERY, .arg = ONEBIT_QUERY_FEATURES };
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct onebit_options options = { .size = sizeof(options), .no_reconnect = 1 };
	struct onebit_error err = { 0 };
	struct onebit_event ev;
	struct onebit *o;
	int status, rc, listener;
	pid_t pid;

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s/s", getenv("TMPDIR"));
	listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(bind(listener, (struct sockaddr *)&addr, sizeof(addr)), 0);
	ck_assert_int_eq(listen(listener, 1), 0);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid)
		_exit(old_daemon(listener));

	options.socket = addr.sun_path;
	rc = onebit_open(&o, &options, &err);
	unlink(addr.sun_path);
	ck_assert_msg(rc == 0, "%d: %s", rc, err.text);
	ck_assert_uint_eq(onebit_welcome(o)->epoch, 77);

	ev = ask(o, &nop);
	ck_assert_int_eq(ev.res, 0);
	/* Past the wrap of the indices, and more often than the ring has entries. */
	for (int i = 0; i < 300; i++) {
		ev = ask(o, &echo);
		ck_assert_int_eq(ev.res, sizeof(text));
		ck_assert_uint_eq(ev.data_len, sizeof(text));
		ck_assert_mem_eq(ev.data, text, sizeof(text));
	}
	ev = ask(o, &query);
	ck_assert_int_eq(ev.res, -EOPNOTSUPP);
	ck_assert_uint_eq(ev.error.code, ONEBIT_E_UNSUPPORTED);

	onebit_close(o);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	close(listener);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("frozen");
	TCase *t = tcase_create("frozen");
	SRunner *r;
	int failed;

	tmp_fixture(t);
	tcase_add_test(t, old_hello_is_accepted);
	tcase_add_test(t, newer_minor_is_accepted);
	tcase_add_test(t, unknown_wanted_feature_is_not_granted);
	tcase_add_test(t, unknown_required_feature_is_refused);
	tcase_add_test(t, other_major_is_refused);
	tcase_add_test(t, other_size_is_refused);
	tcase_add_test(t, every_reserved_bit_is_refused);
	tcase_add_test(t, library_works_with_old_daemon);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

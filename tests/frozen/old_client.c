/* SPDX-License-Identifier: MIT */
/*
 * A client as somebody may have written it for version 1.0: the frozen header, system calls, nothing
 * else. It attaches, does NOP, ECHO, QUERY and GENERATE one after the other, and checks what it was
 * told. It waits like a simple client: asleep on the futex word.
 */
#include <errno.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "1.0/onebit.h"
#include "1.0/onebit_ring.h"

static struct onebit_welcome w;
static char *client_region;
static const char *daemon_region;
static int doorbell;
static __u32 sq_tail, cq_head;

static void __attribute__((noreturn, format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	fputs("old_client: ", stderr);
	vfprintf(stderr, format, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

#define CHECK(x) do { if (!(x)) fail("line %d: not %s", __LINE__, #x); } while (0)

static void attach(const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct onebit_hello hello = {
		.magic = ONEBIT_MAGIC,
		.size = sizeof(hello),
		.abi_major = ONEBIT_ABI_MAJOR,
		.abi_minor = ONEBIT_ABI_MINOR,
		.features_wanted = ONEBIT_FEAT_INLINE,
		.sq_entries = 8,
		.arena_bytes = 8192,
		.out_bytes = 65536,
	};
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(4 * sizeof(int))];
	} control;
	struct iovec iov = { &w, sizeof(w) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = &control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *c;
	int s, fds[3];

	CHECK(strlen(path) < sizeof(addr.sun_path));
	memcpy(addr.sun_path, path, strlen(path) + 1);
	s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (s < 0 || connect(s, (struct sockaddr *)&addr, sizeof(addr)))
		fail("cannot connect to %s: %s", path, strerror(errno));
	CHECK(send(s, &hello, sizeof(hello), 0) == (ssize_t)sizeof(hello));
	CHECK(recvmsg(s, &msg, MSG_CMSG_CLOEXEC) == (ssize_t)sizeof(w));
	if (w.error.code)
		fail("refused: %.*s", (int)sizeof(w.error.text), w.error.text);

	CHECK(w.magic == ONEBIT_MAGIC && w.size == sizeof(w));
	CHECK(w.abi_major == ONEBIT_ABI_MAJOR && w.abi_minor <= ONEBIT_ABI_MINOR);
	CHECK(!(w.features & ~hello.features_wanted));
	CHECK(w.sq_entries == 8 && w.cq_entries >= 16);
	CHECK(w.arena_bytes == 8192 && w.out_bytes == 65536);
	c = CMSG_FIRSTHDR(&msg);
	CHECK(c && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(fds)));
	memcpy(fds, CMSG_DATA(c), sizeof(fds));

	client_region = mmap(NULL, w.client_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	daemon_region = mmap(NULL, w.daemon_bytes, PROT_READ, MAP_SHARED, fds[1], 0);
	CHECK(client_region != MAP_FAILED && daemon_region != MAP_FAILED);
	doorbell = fds[2];
	sq_tail = onebit_load_acquire((const __u32 *)(daemon_region + w.sq_head_off));
	cq_head = sq_tail;
	/* The socket stays open to the end: it is the attachment. */
}

static void ring_doorbell(__u32 flags)
{
	const struct onebit_state *state = (const void *)(daemon_region + w.state_off);
	__u64 one = 1;

	onebit_fence();
	if (onebit_load_acquire(&state->flags) & flags)
		CHECK(write(doorbell, &one, sizeof(one)) == sizeof(one) || errno == EAGAIN);
}

static void submit(const struct onebit_sqe *sqe)
{
	struct onebit_sqe *sqes = (void *)(client_region + w.sqes_off);

	struct onebit_sqe *slot = &sqes[onebit_slot(sq_tail, w.sq_entries)];

	/* All but seq, which says that the rest is there. */
	memcpy(slot, sqe, offsetof(struct onebit_sqe, seq));
	memcpy(slot->reserved3, sqe->reserved3, sizeof(slot->reserved3));
	onebit_store_release(&slot->seq, onebit_seq(sq_tail++));
	ring_doorbell(ONEBIT_SQ_NEED_WAKEUP);
}

/* Is the oldest CQE there? */
static int has_come(void)
{
	const struct onebit_cqe *cqes = (const void *)(daemon_region + w.cqes_off);
	const void *mark = &cqes[onebit_slot(cq_head, w.cq_entries)].flags;

	return onebit_phase_is(onebit_load_acquire(mark), cq_head, w.cq_entries);
}

/* Sleep for the next CQE, take it. */
static struct onebit_cqe next(void)
{
	const __u32 *futex = (const void *)(daemon_region + w.futex_off);
	const struct onebit_cqe *cqes = (const void *)(daemon_region + w.cqes_off);
	struct onebit_wake *wake = (void *)(client_region + w.wake_off);
	const struct timespec limit = { .tv_sec = 60 };
	struct onebit_cqe cqe;

	while (!has_come()) {
		__u32 seen = onebit_load_acquire(futex);

		onebit_store_relaxed(&wake->need, ONEBIT_WAKE_FUTEX);
		onebit_fence();
		if (!has_come() && syscall(SYS_futex, futex, FUTEX_WAIT, seen, &limit, NULL, 0) &&
		    errno == ETIMEDOUT)
			fail("no completion within a minute");
		onebit_store_relaxed(&wake->need, 0);
	}
	cqe = cqes[onebit_slot(cq_head, w.cq_entries)];
	onebit_store_release((__u32 *)(client_region + w.cq_head_off), ++cq_head);
	ring_doorbell(ONEBIT_SQ_STALLED);
	return cqe;
}

static struct onebit_cqe terminal(__u64 user_data)
{
	struct onebit_cqe cqe;

	do {
		cqe = next();
		CHECK(cqe.user_data == user_data);
	} while (cqe.flags & ONEBIT_CQE_MORE);
	return cqe;
}

static void small_operations(void)
{
	static const char text[] = "written by the client, read back from the daemon";
	struct onebit_sqe sqe = { .op = ONEBIT_OP_NOP, .user_data = 1 };
	struct onebit_features f;
	struct onebit_cqe cqe;

	submit(&sqe);
	cqe = terminal(1);
	CHECK(cqe.res == 0 && cqe.u.end.code == ONEBIT_E_OK);

	memcpy(client_region + w.arena_off + 128, text, sizeof(text));
	sqe = (struct onebit_sqe){ .op = ONEBIT_OP_ECHO, .user_data = 2, .in_off = 128,
				   .in_len = sizeof(text), .out_off = 256, .out_len = 4096 };
	submit(&sqe);
	cqe = terminal(2);
	CHECK(cqe.res == (int)sizeof(text));
	CHECK(!memcmp(daemon_region + w.out_off + 256, text, sizeof(text)));

	sqe = (struct onebit_sqe){ .op = ONEBIT_OP_QUERY, .user_data = 3,
				   .arg = ONEBIT_QUERY_FEATURES, .out_len = 4096 };
	submit(&sqe);
	cqe = terminal(3);
	/* A newer daemon may say more. */
	CHECK(cqe.res >= (int)sizeof(f));
	memcpy(&f, daemon_region + w.out_off, sizeof(f));
	CHECK(f.size >= sizeof(f) && f.abi_major == ONEBIT_ABI_MAJOR);
	CHECK(f.ops & 1ull << ONEBIT_OP_ECHO);
	CHECK(f.topics & 1ull << ONEBIT_QUERY_FEATURES);

	/* What is unknown is an error of its own, and no more than that. */
	sqe = (struct onebit_sqe){ .op = 255, .user_data = 4 };
	submit(&sqe);
	cqe = terminal(4);
	CHECK(cqe.res == -EINVAL && cqe.u.end.code == ONEBIT_E_BAD_OP);
}

static void generate(void)
{
	static const char prompt[] = "Tell me a story";
	enum { TOKENS = 20 };
	struct {
		struct onebit_params params;
		struct onebit_segment segment;
		char text[sizeof(prompt) - 1];
	} block = {
		.params = {
			.size = sizeof(struct onebit_params),
			.seed = 7,
			.max_tokens = TOKENS,
			.segments_off = sizeof(struct onebit_params),
			.n_segments = 1,
		},
		.segment = {
			.role = ONEBIT_ROLE_USER,
			.kind = ONEBIT_SEG_TEXT,
			.off = sizeof(struct onebit_params) + sizeof(struct onebit_segment),
			.len = sizeof(prompt) - 1,
		},
	};
	struct onebit_sqe sqe = {
		.op = ONEBIT_OP_GENERATE,
		.user_data = 5,
		.in_len = sizeof(block),
		.out_len = 32768,
	};
	const char *window = daemon_region + w.out_off;
	struct onebit_choice choice;
	struct onebit_record record;
	struct onebit_cqe cqe;
	__u32 n = 0, off = 0, told = 0;

	memcpy(block.text, prompt, sizeof(block.text));
	memcpy(client_region + w.arena_off, &block, sizeof(block));
	submit(&sqe);
	while ((cqe = next()).flags & ONEBIT_CQE_MORE) {
		CHECK(cqe.user_data == 5);
		/* No token is lost or doubled: each piece starts where the one before ended. */
		CHECK(cqe.u.progress.first == told || cqe.u.progress.n == 0);
		told += cqe.u.progress.n;
	}
	CHECK(cqe.user_data == 5);
	if (cqe.res < 0)
		fail("GENERATE ended with %d, code %u", cqe.res, cqe.u.end.code);

	memcpy(&choice, window + sizeof(struct onebit_out), sizeof(choice));
	CHECK(choice.n_tokens >= told && choice.n_tokens > 0 && choice.n_tokens <= TOKENS);
	CHECK(choice.finish == ONEBIT_FINISH_STOP || choice.finish == ONEBIT_FINISH_LENGTH);
	while (off < choice.n_bytes) {
		memcpy(&record, window + choice.rec_off + off, sizeof(record));
		CHECK(record.size >= sizeof(record) && record.size % 8 == 0);
		off += record.size;
		n++;
	}
	CHECK(off == choice.n_bytes && n == choice.n_tokens);
	printf("old_client: %u tokens\n", n);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		fail("usage: old_client SOCKET");
	attach(argv[1]);
	small_operations();
	generate();
	return 0;
}

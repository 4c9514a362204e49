/* SPDX-License-Identifier: MIT */
/*
 * The loop on one io_uring. Spoken to directly, not through liburing: one turn of the daemon must
 * be one io_uring_enter, and the distribution's library writes an index array that NO_SQARRAY has
 * no room for.
 *
 * The ring is restricted before it is enabled: it can poll, accept, cancel and wake, on registered
 * files only. Whoever takes over the broker finds no way in here to open, read or connect.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "loop.h"
#include "sys.h"

#define URING_SQ      256u
#define URING_CQ_MAX  16384u /* 4 for each of CLIENTS_CEILING */
#define URING_LOOK    2u     /* busy turns between two looks at TASKRUN; spinning, one is eight looks */
#define URING_SIGSET  8u     /* bytes of the kernel's sigset */
#define URING_TAG_SLOT(tag) ((uint32_t)(tag))
#define URING_TAG_GEN(tag)  ((uint32_t)((tag) >> 32))

struct uring_slot {
	uint32_t gen; /* of this use; a completion with another one is late */
	bool used;
};

struct uring_loop {
	struct loop loop;
	int fd, enter_fd;
	unsigned enter_flags;
	uint32_t slots;
	struct uring_slot *slot;
	/* submission; tail is ours alone, published when entering */
	struct io_uring_sqe *sqes;
	uint32_t *sq_head, *sq_tail, *sq_flags;
	uint32_t sq_entries, tail, submitted;
	/* completion */
	struct io_uring_cqe *cqes;
	uint32_t *cq_head, *cq_tail;
	uint32_t cq_mask;
	void *rings;
	size_t rings_bytes, sqes_bytes;
	bool futex_op;
	bool queued; /* a wake waits in the submission queue */
};

static const struct loop_ops uring_ops;

static struct uring_loop *uring_of(struct loop *l)
{
	return (struct uring_loop *)l;
}

static bool uring_cq_ready(const struct uring_loop *u)
{
	return __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE) != *u->cq_head;
}

static bool uring_kernel_waits(const struct uring_loop *u)
{
	uint32_t flags = __atomic_load_n(u->sq_flags, __ATOMIC_RELAXED);

	return flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

/* Submit what is queued; wait for one completion until then (0: only look). */
static int uring_enter(struct uring_loop *u, unsigned flags, uint64_t until_ns)
{
	struct io_uring_getevents_arg arg = { .sigmask_sz = URING_SIGSET };
	struct __kernel_timespec ts;
	uint32_t n = u->tail - u->submitted;
	unsigned wait = 0;
	int got;

	__atomic_store_n(u->sq_tail, u->tail, __ATOMIC_RELEASE);
	u->queued = false;
	if (until_ns) {
		wait = 1;
		if (until_ns != UINT64_MAX) {
			uint64_t now = loop_now_ns();
			uint64_t ns = until_ns > now ? until_ns - now : 0;

			ts.tv_sec = (long long)(ns / 1000000000u);
			ts.tv_nsec = (long long)(ns % 1000000000u);
			arg.ts = (uintptr_t)&ts;
		}
	}
	got = sys_uring_enter(u->enter_fd, n, wait, flags | u->enter_flags | IORING_ENTER_EXT_ARG,
			      &arg, sizeof(arg));
	/* What was consumed the ring itself says, also when the wait ended in an error. */
	u->submitted = __atomic_load_n(u->sq_head, __ATOMIC_ACQUIRE);
	if (got >= 0 || errno == ETIME || errno == EINTR || errno == EBUSY || errno == EAGAIN)
		return 0;
	return -errno;
}

/* A zeroed entry. A full queue is submitted first: the kernel takes all of it. */
static struct io_uring_sqe *uring_sqe(struct uring_loop *u)
{
	struct io_uring_sqe *sqe;

	if (u->tail - u->submitted == u->sq_entries)
		uring_enter(u, 0, 0);
	if (u->tail - u->submitted == u->sq_entries)
		return NULL; /* the kernel is out of memory */
	sqe = &u->sqes[u->tail++ & (u->sq_entries - 1)];
	memset(sqe, 0, sizeof(*sqe));
	sqe->flags = IOSQE_FIXED_FILE; /* required by the restrictions, of every operation */
	return sqe;
}

static uint64_t uring_tag(const struct uring_loop *u, uint32_t slot)
{
	return (uint64_t)u->slot[slot].gen << 32 | slot;
}

static bool uring_arm(struct uring_loop *u, uint32_t slot)
{
	struct io_uring_sqe *sqe = uring_sqe(u);
	uint32_t id;

	if (!sqe)
		return false;
	sqe->fd = (int)slot;
	sqe->user_data = uring_tag(u, slot);
	if (slot == loop_slot(LOOP_LISTEN, 0)) {
		sqe->opcode = IORING_OP_ACCEPT;
		sqe->ioprio = IORING_ACCEPT_MULTISHOT;
		sqe->accept_flags = SOCK_CLOEXEC | SOCK_NONBLOCK;
		return true;
	}
	sqe->opcode = IORING_OP_POLL_ADD;
	sqe->len = IORING_POLL_ADD_MULTI;
	sqe->poll32_events = loop_mask(loop_source_of(slot, &id));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	sqe->poll32_events = sqe->poll32_events << 16 | sqe->poll32_events >> 16;
#endif
	return true;
}

static int uring_file(struct uring_loop *u, uint32_t slot, int fd)
{
	struct io_uring_files_update up = { .offset = slot, .fds = (uintptr_t)&fd };

	return sys_uring_register(u->fd, IORING_REGISTER_FILES_UPDATE, &up, 1) == 1 ? 0 : -errno;
}

static int uring_add(struct loop *l, enum loop_source s, uint32_t id, int fd)
{
	struct uring_loop *u = uring_of(l);
	uint32_t slot = loop_slot(s, id);
	int err;

	if (slot >= u->slots || u->slot[slot].used || fd < 0) /* the kernel takes -1 for "none" */
		return -EINVAL;
	/* An accept on a non-blocking listener would answer EAGAIN instead of waiting. */
	if (s == LOOP_LISTEN && fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK))
		return -errno;
	err = uring_file(u, slot, fd);
	if (err)
		return err;
	u->slot[slot].gen++;
	u->slot[slot].used = true;
	if (uring_arm(u, slot))
		return 0;
	u->slot[slot].used = false;
	uring_file(u, slot, -1);
	return -ENOMEM;
}

static void uring_remove(struct loop *l, enum loop_source s, uint32_t id)
{
	struct uring_loop *u = uring_of(l);
	uint32_t slot = loop_slot(s, id);
	struct io_uring_sqe *sqe;

	if (slot >= u->slots || !u->slot[slot].used)
		return;
	/*
	 * The poll holds the file until it is gone, and the generation keeps its last completion
	 * from whoever has the slot next. Queued entries run in order, so one that was not even
	 * submitted yet is found and ended as well.
	 */
	sqe = uring_sqe(u);
	if (sqe) {
		/* Not POLL_REMOVE: of a poll that just fires it says EALREADY, and under a flood one
		 * always just fires. */
		sqe->opcode = IORING_OP_ASYNC_CANCEL;
		sqe->fd = -1;
		sqe->addr = uring_tag(u, slot);
		sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
		sqe->user_data = UINT64_MAX;
	}
	u->slot[slot].gen++;
	u->slot[slot].used = false;
	uring_file(u, slot, -1);
}

static int uring_wait(struct loop *l, uint64_t until_ns)
{
	struct uring_loop *u = uring_of(l);

	if (uring_cq_ready(u))
		until_ns = 0;
	if (!until_ns && u->tail == u->submitted && !uring_kernel_waits(u))
		return 0;
	return uring_enter(u, IORING_ENTER_GETEVENTS, until_ns);
}

/* Is this completion for whoever has the slot now? Arms it again when the kernel let go of it. */
static bool uring_current(struct uring_loop *u, struct io_uring_cqe *cqe)
{
	uint32_t slot = URING_TAG_SLOT(cqe->user_data);

	if (slot >= u->slots)
		return false;
	/* A connection accepted while the listener was being removed still has to be answered. */
	if (URING_TAG_GEN(cqe->user_data) != u->slot[slot].gen || !u->slot[slot].used)
		return slot == loop_slot(LOOP_LISTEN, 0) && cqe->res >= 0;
	if (cqe->flags & IORING_CQE_F_MORE)
		return true;
	if (cqe->res < 0 && cqe->res != -EAGAIN)
		return true;
	/* Better to lose a client than to leave it unheard; a connection is answered in any case. */
	if (!uring_arm(u, slot) && slot != loop_slot(LOOP_LISTEN, 0))
		cqe->res = -ENOMEM;
	return cqe->res != -EAGAIN;
}

static bool uring_next(struct loop *l, struct loop_event *ev)
{
	struct uring_loop *u = uring_of(l);

	while (uring_cq_ready(u)) {
		struct io_uring_cqe cqe = u->cqes[*u->cq_head & u->cq_mask];

		__atomic_store_n(u->cq_head, *u->cq_head + 1, __ATOMIC_RELEASE);
		if (!uring_current(u, &cqe))
			continue;
		ev->source = loop_source_of(URING_TAG_SLOT(cqe.user_data), &ev->id);
		ev->res = cqe.res;
		return true;
	}
	return false;
}

static bool uring_due(struct loop *l, uint32_t turn)
{
	const struct uring_loop *u = uring_of(l);

	if (turn % URING_LOOK)
		return false;
	return u->tail != u->submitted || uring_kernel_waits(u) || uring_cq_ready(u);
}

/*
 * Wakes ride on the next io_uring_enter, which is most often the one that waits: one system call
 * less a round trip than a direct wake (sleeping round trip on one CPU: 1.05 - 1.13 times a pipe's
 * against 1.13 - 1.18; on two CPUs no difference).
 */
static void uring_wake(struct loop *l, uint32_t *word)
{
	struct uring_loop *u = uring_of(l);
	struct io_uring_sqe *sqe = u->futex_op ? uring_sqe(u) : NULL;

	if (!sqe) {
		sys_futex_wake(word);
		return;
	}
	sqe->opcode = SYS_OP_FUTEX_WAKE;
	sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
	sqe->fd = SYS_FUTEX2_SIZE_U32;
	sqe->addr = (uintptr_t)word;
	sqe->addr2 = INT32_MAX;
	sqe->addr3 = FUTEX_BITSET_MATCH_ANY;
	sqe->user_data = UINT64_MAX;
	u->queued = true;
}

static void uring_flush(struct loop *l)
{
	struct uring_loop *u = uring_of(l);

	if (u->queued)
		uring_enter(u, 0, 0);
}

static struct loop *uring_free(struct loop *l)
{
	struct uring_loop *u = uring_of(l);

	if (u->sqes)
		munmap(u->sqes, u->sqes_bytes);
	if (u->rings)
		munmap(u->rings, u->rings_bytes);
	if (u->fd >= 0)
		close(u->fd);
	free(u->slot);
	free(u);
	return NULL;
}

/* ---- set-up ---------------------------------------------------------------------------------- */

static int uring_setup(struct uring_loop *u, uint32_t max_clients, uint32_t without,
		       struct io_uring_params *p)
{
	uint32_t cq = 4 * URING_SQ;
	uint32_t extra = without & LOOP_NO_SQARRAY ? 0 : IORING_SETUP_NO_SQARRAY;

	while (cq < 4 * max_clients && cq < URING_CQ_MAX)
		cq *= 2;
	for (;;) {
		memset(p, 0, sizeof(*p));
		p->cq_entries = cq;
		p->flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER |
			   IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
			   IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE | extra;
		u->fd = sys_uring_setup(URING_SQ, p);
		if (u->fd >= 0 || errno != EINVAL || !extra)
			break;
		extra = 0;
	}
	if (u->fd < 0)
		return -errno;
	/* Both are older than our floor; without them the mappings below would be wrong. */
	if (!(p->features & IORING_FEAT_SINGLE_MMAP) || !(p->features & IORING_FEAT_EXT_ARG))
		return -ENOSYS;
	return 0;
}

static int uring_map(struct uring_loop *u, const struct io_uring_params *p)
{
	size_t sq = p->sq_off.array + p->sq_entries * sizeof(uint32_t);
	size_t cq = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
	uint8_t *m;

	u->rings_bytes = sq > cq ? sq : cq;
	m = mmap(NULL, u->rings_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd,
		 IORING_OFF_SQ_RING);
	if (m == MAP_FAILED)
		return -errno;
	u->rings = m;
	u->sqes_bytes = p->sq_entries * sizeof(struct io_uring_sqe);
	u->sqes = mmap(NULL, u->sqes_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd,
		       IORING_OFF_SQES);
	if (u->sqes == MAP_FAILED) {
		u->sqes = NULL;
		return -errno;
	}
	u->sq_head = (uint32_t *)(m + p->sq_off.head);
	u->sq_tail = (uint32_t *)(m + p->sq_off.tail);
	u->sq_flags = (uint32_t *)(m + p->sq_off.flags);
	u->sq_entries = p->sq_entries;
	u->cq_head = (uint32_t *)(m + p->cq_off.head);
	u->cq_tail = (uint32_t *)(m + p->cq_off.tail);
	u->cq_mask = p->cq_entries - 1;
	u->cqes = (struct io_uring_cqe *)(m + p->cq_off.cqes);
	/* The index array, where there is one, says for ever that entry i is entry i. */
	if (!(p->flags & IORING_SETUP_NO_SQARRAY))
		for (uint32_t i = 0; i < p->sq_entries; i++)
			((uint32_t *)(m + p->sq_off.array))[i] = i;
	return 0;
}

static bool uring_has_op(const struct uring_loop *u, unsigned op)
{
	union {
		struct io_uring_probe probe;
		char bytes[sizeof(struct io_uring_probe) + 256 * sizeof(struct io_uring_probe_op)];
	} p;

	memset(&p, 0, sizeof(p));
	if (sys_uring_register(u->fd, IORING_REGISTER_PROBE, &p, 256))
		return false;
	return op <= p.probe.last_op && p.probe.ops[op].flags & IO_URING_OP_SUPPORTED;
}

static int uring_restrict(struct uring_loop *u)
{
	static const uint8_t ops[] = { IORING_OP_POLL_ADD, IORING_OP_ACCEPT, IORING_OP_ASYNC_CANCEL,
				       SYS_OP_FUTEX_WAKE };
	struct io_uring_restriction r[8];
	unsigned n = 0, n_ops = sizeof(ops) - !u->futex_op;

	memset(r, 0, sizeof(r));
	for (unsigned i = 0; i < n_ops; i++, n++) {
		r[n].opcode = IORING_RESTRICTION_SQE_OP;
		r[n].sqe_op = ops[i];
	}
	r[n].opcode = IORING_RESTRICTION_REGISTER_OP;
	r[n++].register_op = IORING_REGISTER_FILES_UPDATE;
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_ALLOWED;
	r[n++].sqe_flags = IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS;
	r[n].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
	r[n++].sqe_flags = IOSQE_FIXED_FILE;
	if (sys_uring_register(u->fd, IORING_REGISTER_RESTRICTIONS, r, n))
		return -errno;
	return sys_uring_register(u->fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) ? -errno : 0;
}

static int uring_register(struct uring_loop *u, uint32_t without)
{
	struct io_uring_rsrc_register files = { .nr = u->slots, .flags = IORING_RSRC_REGISTER_SPARSE };
	struct io_uring_rsrc_update ring = { .offset = UINT32_MAX, .data = (uint64_t)u->fd };

	if (sys_uring_register(u->fd, IORING_REGISTER_FILES2, &files, sizeof(files)))
		return -errno;
	u->enter_fd = u->fd;
	/* Saves a look-up of the descriptor in each enter. */
	if (!(without & LOOP_NO_RINGFD) &&
	    sys_uring_register(u->fd, IORING_REGISTER_RING_FDS, &ring, 1) == 1) {
		u->enter_fd = (int)ring.offset;
		u->enter_flags = IORING_ENTER_REGISTERED_RING;
	}
	u->futex_op = !(without & LOOP_NO_FUTEX) && uring_has_op(u, SYS_OP_FUTEX_WAKE);
	return uring_restrict(u);
}

struct loop *loop_uring_new(uint32_t max_clients, uint32_t without)
{
	struct uring_loop *u = calloc(1, sizeof(*u));
	struct io_uring_params p;
	int err;

	if (!u)
		return NULL;
	u->loop.ops = &uring_ops;
	u->fd = -1;
	u->slots = loop_slots(max_clients);
	u->slot = calloc(u->slots, sizeof(*u->slot));
	err = u->slot ? uring_setup(u, max_clients, without, &p) : -ENOMEM;
	if (!err)
		err = uring_map(u, &p);
	if (!err)
		err = uring_register(u, without);
	if (err) {
		uring_free(&u->loop);
		errno = -err;
		return NULL;
	}
	snprintf(u->loop.features, sizeof(u->loop.features), "cq %u%s%s%s", p.cq_entries,
		 p.flags & IORING_SETUP_NO_SQARRAY ? ", no sq array" : "",
		 u->futex_op ? ", futex" : "", u->enter_flags ? ", registered ring" : "");
	return &u->loop;
}

static const struct loop_ops uring_ops = {
	.name = "io_uring",
	.free = uring_free,
	.add = uring_add,
	.remove = uring_remove,
	.wait = uring_wait,
	.next = uring_next,
	.due = uring_due,
	.wake = uring_wake,
	.flush = uring_flush,
};

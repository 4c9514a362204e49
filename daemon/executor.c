/* SPDX-License-Identifier: MIT */
/*
 * The executor's end of its link to the broker.
 *
 * Two rings of one line per entry and a data area. Indices start where the region says, which the
 * broker has set before the executor lives. The data area is a ring of bytes with free-running
 * counts: what an event needs is laid out in one piece, so at the end of the area the rest is
 * skipped, and each event remembers where the area ended after it. The broker gives space back by
 * moving event_head on; nothing else is needed, for events are taken in order.
 *
 * The broker is trusted here, unlike the other way round: it is older than we are, and it started us.
 */
#include "executor.h"

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "onebit_ring.h"

_Static_assert((EXEC_DATA_BYTES & (EXEC_DATA_BYTES - 1)) == 0, "a mask divides it");
_Static_assert((EXEC_EVENTS & (EXEC_EVENTS - 1)) == 0, "a mask divides it");
_Static_assert((EXEC_CMDS & (EXEC_CMDS - 1)) == 0, "a mask divides it");
_Static_assert(EXEC_EVENT_DATA_MAX <= EXEC_DATA_BYTES / 2, "skipping the end leaves room for one");

void executor_init(struct executor *e, const struct exec_broker_region *broker,
		   struct exec_own_region *own, const void *journal, uint32_t journal_bytes)
{
	memset(e, 0, sizeof(*e));
	e->broker = broker;
	e->own = own;
	e->journal = journal;
	e->journal_bytes = journal_bytes;
	e->cmd_head = onebit_load_relaxed(&own->cmd_head);
	e->event_tail = onebit_load_relaxed(&own->event_tail);
	e->freed = e->event_tail;
	e->doorbell = -1;
}

static int map(int fd, size_t bytes, int prot, void **p)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	/* A mapping longer than the file would end in SIGBUS instead of a refusal. */
	if (st.st_size < 0 || (uint64_t)st.st_size < bytes)
		return -EPROTO;
	*p = mmap(NULL, bytes, prot, MAP_SHARED, fd, 0);
	return *p == MAP_FAILED ? -errno : 0;
}

int executor_open(struct executor *e)
{
	void *broker = MAP_FAILED, *own = MAP_FAILED, *journal = MAP_FAILED;
	const struct exec_broker_region *b;
	struct stat st;
	int err;

	err = map(EXEC_FD_BROKER, sizeof(struct exec_broker_region), PROT_READ, &broker);
	if (err)
		return err;
	b = broker;
	err = -EPROTO;
	if (b->magic != EXEC_MAGIC || b->version != EXEC_VERSION)
		goto out;
	err = map(EXEC_FD_EXECUTOR, sizeof(struct exec_own_region), PROT_READ | PROT_WRITE, &own);
	if (err)
		goto out;
	err = map(EXEC_FD_JOURNAL, b->journal_bytes, PROT_READ, &journal);
	if (err)
		goto out;
	if (fstat(EXEC_FD_DOORBELL, &st) < 0) {
		err = -errno;
		goto out;
	}
	executor_init(e, b, own, journal, b->journal_bytes);
	e->doorbell = EXEC_FD_DOORBELL;
	return 0;
out:
	if (own != MAP_FAILED)
		munmap(own, sizeof(struct exec_own_region));
	munmap(broker, sizeof(struct exec_broker_region));
	return err;
}

int executor_next(struct executor *e, struct exec_cmd *cmd)
{
	/* Pairs with the broker's release of cmd_tail: every command below it is written. */
	uint32_t tail = onebit_load_acquire(&e->broker->cmd_tail);

	if (tail == e->cmd_head)
		return 0;
	*cmd = e->broker->cmds[onebit_slot(e->cmd_head, EXEC_CMDS)];
	e->cmd_head++;
	/* Pairs with the broker's acquire of cmd_head: that slot may be written again. */
	onebit_store_release(&e->own->cmd_head, e->cmd_head);
	return 1;
}

const struct journal_entry *executor_entry(const struct executor *e, const struct exec_cmd *cmd)
{
	const struct journal_entry *j;

	/* The broker's word is not doubted, but a mix-up must end here and not in a wrong answer. */
	assert(cmd->entry_off <= e->journal_bytes &&
	       e->journal_bytes - cmd->entry_off >= sizeof(*j));
	j = (const struct journal_entry *)(const void *)(e->journal + cmd->entry_off);
	assert(j->magic == JOURNAL_MAGIC && j->bytes <= e->journal_bytes - cmd->entry_off);
	return j;
}

/* Take back the data of events that the broker has taken. */
static void reclaim(struct executor *e)
{
	/* Pairs with the broker's release of event_head: it has copied what lies below. */
	uint32_t head = onebit_load_acquire(&e->broker->event_head);

	assert(onebit_distance(e->freed, head) <= onebit_distance(e->freed, e->event_tail));
	while (e->freed != head)
		e->data_head = e->data_end[onebit_slot(e->freed++, EXEC_EVENTS)];
}

int executor_emit(struct executor *e, const struct exec_event *ev, const void *data)
{
	uint32_t slot = onebit_slot(e->event_tail, EXEC_EVENTS);
	uint32_t at = e->data_tail, len = ev->data_len, off, rest;
	struct exec_event *to = &e->own->events[slot];

	if (len > EXEC_EVENT_DATA_MAX)
		return -EMSGSIZE;
	reclaim(e);
	if (onebit_distance(e->freed, e->event_tail) == EXEC_EVENTS)
		return -EAGAIN;
	if (len) {
		/* 8: records and statistics are structures, read where they lie. */
		at = (at + 7) & ~7u;
		rest = EXEC_DATA_BYTES - (at & (EXEC_DATA_BYTES - 1));
		if (rest < len)
			at += rest;
		if (at + len - e->data_head > EXEC_DATA_BYTES)
			return -EAGAIN;
	}
	off = at & (EXEC_DATA_BYTES - 1);
	if (len)
		memcpy(e->own->data + off, data, len);
	*to = *ev;
	to->data_off = len ? off : 0;
	e->data_tail = at + len;
	e->data_end[slot] = e->data_tail;
	e->event_tail++;
	return 0;
}

void executor_kick(struct executor *e)
{
	static const uint64_t one = 1;

	if (onebit_load_relaxed(&e->own->event_tail) == e->event_tail)
		return;
	/* Pairs with the broker's acquire of event_tail: events and their data are written. */
	onebit_store_release(&e->own->event_tail, e->event_tail);
	/* Pairs with the broker's fence between setting NEED_KICK and reading event_tail again. */
	onebit_fence();
	if (!(onebit_load_relaxed(&e->broker->flags) & EXEC_NEED_KICK) || e->doorbell < 0)
		return;
	/* Only a full counter refuses, and then the broker has been told often enough. */
	while (write(e->doorbell, &one, sizeof(one)) < 0 && errno == EINTR)
		;
}

int executor_wait(struct executor *e, int64_t timeout_ns)
{
	struct timespec until;
	int err = 0;

	if (timeout_ns >= 0) {
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += timeout_ns / 1000000000;
		until.tv_nsec += timeout_ns % 1000000000;
		if (until.tv_nsec >= 1000000000) {
			until.tv_sec++;
			until.tv_nsec -= 1000000000;
		}
	}
	/* Pairs with the broker's fence between cmd_tail and need_wake: one of us sees the other. */
	onebit_store_relaxed(&e->own->need_wake, 1);
	onebit_fence();
	while (onebit_load_relaxed(&e->broker->cmd_tail) == e->cmd_head) {
		/* BITSET takes an absolute time, so an interrupted sleep is not made longer. */
		if (syscall(SYS_futex, &e->broker->cmd_tail, FUTEX_WAIT_BITSET, e->cmd_head,
			    timeout_ns < 0 ? NULL : &until, NULL, FUTEX_BITSET_MATCH_ANY) < 0 &&
		    errno == ETIMEDOUT) {
			err = -ETIMEDOUT;
			break;
		}
	}
	onebit_store_relaxed(&e->own->need_wake, 0);
	return err;
}

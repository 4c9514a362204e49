/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include "region.h"
#include "sys.h"

/*
 * The handler looks into this table, so entries are published with base last and taken away with
 * base first; there is one thread, and a SIGBUS is synchronous with it.
 */
struct guarded {
	volatile uintptr_t base; /* 0: free */
	volatile size_t bytes;
	uint32_t owner;
	volatile bool broken;
	uint32_t next; /* of the free ones */
};

static struct {
	struct guarded *table;
	uint32_t max, first_free;
	uintptr_t page;
	volatile bool any;
} guard;

#define GUARD_NONE UINT32_MAX

static void guard_handler(int sig, siginfo_t *info, void *context)
{
	uintptr_t at = (uintptr_t)info->si_addr;

	(void)context;
	for (uint32_t i = 0; i < guard.max; i++) {
		struct guarded *g = &guard.table[i];

		if (!g->base || at < g->base || at - g->base >= g->bytes)
			continue;
		/* Zeroes in its place: the access ends, and its result no longer matters. */
		if (mmap((void *)(at & ~(guard.page - 1)), guard.page, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			break;
		g->broken = true;
		guard.any = true;
		return;
	}
	/* A bug of ours: the same access again, with nobody to catch it. */
	signal(sig, SIG_DFL);
}

int region_guard_start(uint32_t max)
{
	struct sigaction sa = { .sa_sigaction = guard_handler, .sa_flags = SA_SIGINFO | SA_NODEFER };

	free(guard.table);
	guard.table = calloc(max, sizeof(*guard.table));
	guard.max = guard.table ? max : 0;
	guard.any = false;
	guard.page = (uintptr_t)sysconf(_SC_PAGESIZE);
	guard.first_free = 0;
	if (!guard.table)
		return -ENOMEM;
	for (uint32_t i = 0; i < max; i++)
		guard.table[i].next = i + 1 < max ? i + 1 : GUARD_NONE;
	sigemptyset(&sa.sa_mask);
	return sigaction(SIGBUS, &sa, NULL) ? -errno : 0;
}

static int guard_add(struct region *r, uint32_t owner)
{
	struct guarded *g;

	r->guard = GUARD_NONE;
	if (owner == REGION_NOBODY)
		return 0;
	if (guard.first_free >= guard.max)
		return -ENOSPC;
	r->guard = guard.first_free;
	g = &guard.table[r->guard];
	guard.first_free = g->next;
	g->bytes = r->bytes;
	g->owner = owner;
	g->broken = false;
	g->base = (uintptr_t)r->base;
	return 0;
}

static void guard_remove(struct region *r)
{
	if (r->guard == GUARD_NONE)
		return;
	guard.table[r->guard].base = 0;
	guard.table[r->guard].next = guard.first_free;
	guard.first_free = r->guard;
}

bool region_broken(uint32_t *owner)
{
	if (!guard.any)
		return false;
	for (uint32_t i = 0; i < guard.max; i++) {
		struct guarded *g = &guard.table[i];

		if (!g->base || !g->broken)
			continue;
		g->broken = false;
		*owner = g->owner;
		return true;
	}
	guard.any = false;
	return false;
}

static int make_memfd(const char *name)
{
	int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);

	if (fd < 0 && errno == EINVAL)
		fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	return fd;
}

/* Sized, mapped, populated and sealed; FUTURE_WRITE only once our own mapping exists. */
static int fill(struct region *r, size_t populate, enum region_writer writer)
{
	int seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;

	if (ftruncate(r->fd, (off_t)r->bytes))
		return -errno;
	r->base = mmap(NULL, r->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
	if (r->base == MAP_FAILED) {
		r->base = NULL;
		return -errno;
	}
	if (populate && madvise(r->base, populate, MADV_POPULATE_WRITE))
		return -errno;
	if (writer == REGION_OURS)
		seals |= F_SEAL_FUTURE_WRITE;
	return fcntl(r->fd, F_ADD_SEALS, seals) ? -errno : 0;
}

int region_make(struct region *r, const char *name, size_t bytes, size_t populate,
		enum region_writer writer, uint32_t owner)
{
	int err;

	memset(r, 0, sizeof(*r));
	r->bytes = bytes;
	r->guard = GUARD_NONE;
	r->fd = make_memfd(name);
	if (r->fd < 0)
		return -errno;
	err = fill(r, populate, writer);
	if (!err)
		err = guard_add(r, owner);
	if (err) {
		if (r->base)
			munmap(r->base, r->bytes);
		close(r->fd);
		memset(r, 0, sizeof(*r));
		r->fd = -1;
	}
	return err;
}

void region_own(struct region *r, uint32_t owner)
{
	if (r->guard != GUARD_NONE)
		guard.table[r->guard].owner = owner;
}

void region_sent(struct region *r)
{
	if (r->fd >= 0)
		close(r->fd);
	r->fd = -1;
}

void region_free(struct region *r)
{
	if (!r->base)
		return;
	guard_remove(r);
	munmap(r->base, r->bytes);
	region_sent(r);
	memset(r, 0, sizeof(*r));
	r->fd = -1;
}

/* SPDX-License-Identifier: MIT */
#ifndef REGION_H
#define REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Memory shared with a process that is not believed: a memfd made, sized and sealed here, so that
 * its size is a fact. The seals leave one game open, punching holes, after which memory may be
 * short when we touch the hole: the guard turns that SIGBUS into "this region is broken".
 */
enum region_writer {
	REGION_PEER, /* the peer may map it writable */
	REGION_OURS, /* nobody can write or map it writable any more but through our mapping */
};

#define REGION_NOBODY UINT32_MAX       /* owner of a region without guard */
#define REGION_SPARE  (UINT32_MAX - 1) /* guarded, but not yet anybody's */

struct region {
	void *base; /* NULL: none */
	size_t bytes;
	int fd; /* -1 once given away */
	uint32_t guard;
};

/*
 * bytes is a multiple of the page size; the first `populate` of it are backed by memory at once,
 * so that the daemon does not fault on its way of an op. owner is what region_broken() tells.
 * 0, or -errno and nothing made.
 */
int region_make(struct region *r, const char *name, size_t bytes, size_t populate,
		enum region_writer writer, uint32_t owner);
/* A spare one gets its owner. */
void region_own(struct region *r, uint32_t owner);
/* The descriptor was sent to the peer: close ours. The mapping stays. */
void region_sent(struct region *r);
/* Unmap and close. An empty region (zeroed, or freed before) is fine. */
void region_free(struct region *r);

/* Room for so many guarded regions, and the handler. Once a process. 0, or -errno. */
int region_guard_start(uint32_t max);
/* An owner whose region faulted since the last call; each is told once. One load when there is none. */
bool region_broken(uint32_t *owner);

#endif

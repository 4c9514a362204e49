/* SPDX-License-Identifier: MIT */
/*
 * The attach message from a stranger: whatever the bytes are, attach_parse() refuses them in good
 * order or promises a geometry that holds. If it did not, the daemon would map, seal and write
 * memory that it never checked.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "attach.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static bool is_area(uint32_t bytes)
{
	return bytes >= ONEBIT_AREA_MIN && bytes <= ONEBIT_AREA_MAX && bytes % 4096 == 0;
}

static bool is_entries(uint32_t n, uint32_t max)
{
	return n && n <= max && !(n & (n - 1));
}

/* Ranges in the order given follow each other without overlap, up to the region's end. */
static void check_order(const uint64_t (*range)[2], int n, uint32_t region)
{
	uint64_t end = 0;

	for (int i = 0; i < n; i++) {
		assert(range[i][0] >= end);
		end = range[i][0] + range[i][1];
	}
	assert(end <= region);
}

static void check_geometry(const struct onebit_hello *h, const struct attach *a)
{
	const uint64_t client[][2] = {
		{ CLIENT_CQ_HEAD, 4 },
		{ CLIENT_WAKE, sizeof(struct onebit_wake) },
		{ a->sqes_off, (uint64_t)a->sq_entries * sizeof(struct onebit_sqe) },
		{ a->arena_off, a->arena_bytes },
	};
	const uint64_t daemon[][2] = {
		{ DAEMON_SQ_HEAD, 4 },
		{ DAEMON_STATE, sizeof(struct onebit_state) },
		{ DAEMON_FUTEX, 4 },
		{ a->cqes_off, (uint64_t)a->cq_entries * sizeof(struct onebit_cqe) },
		{ a->out_off, a->out_bytes },
	};

	/* Only a well-formed hello gets so far. */
	assert(h->magic == ONEBIT_MAGIC && h->size == sizeof(*h) &&
	       h->abi_major == ONEBIT_ABI_MAJOR);
	assert(!h->flags && !h->reserved[0] && !h->reserved[1]);
	assert(!(h->features_required & ~h->features_wanted));
	assert(a->required == h->features_required && !(a->required & ~a->wanted));
	assert(!(a->wanted & ~h->features_wanted) && !(a->wanted & ONEBIT_FEAT_BUFFERS));
	assert(a->abi_minor <= h->abi_minor && a->abi_minor <= ONEBIT_ABI_MINOR);

	/* What was asked for is given, zero being the default. */
	assert(a->sq_entries == (h->sq_entries ? h->sq_entries : ONEBIT_SQ_ENTRIES_DEFAULT));
	assert(a->cq_entries == (h->cq_entries ? h->cq_entries : 2 * a->sq_entries));
	assert(a->arena_bytes == (h->arena_bytes ? h->arena_bytes : ONEBIT_AREA_DEFAULT));
	assert(a->out_bytes == (h->out_bytes ? h->out_bytes : ONEBIT_AREA_DEFAULT));

	/* Within the maxima, and of the shapes that the ring's arithmetic needs. */
	assert(is_entries(a->sq_entries, ONEBIT_SQ_ENTRIES_MAX));
	assert(is_entries(a->cq_entries, ONEBIT_CQ_ENTRIES_MAX));
	assert(a->cq_entries >= 2 * a->sq_entries);
	assert(is_area(a->arena_bytes) && is_area(a->out_bytes));

	/* Aligned for what lies there, and nothing lies in anything else's place. */
	assert(a->sqes_off % sizeof(struct onebit_sqe) == 0);
	assert(a->cqes_off % sizeof(struct onebit_cqe) == 0);
	assert(a->arena_off % 4096 == 0 && a->out_off % 4096 == 0);
	assert(a->client_bytes % 4096 == 0 && a->daemon_bytes % 4096 == 0);
	check_order(client, 4, a->client_bytes);
	check_order(daemon, 5, a->daemon_bytes);
	assert(a->ring_client_bytes == a->arena_off && a->ring_daemon_bytes == a->out_off);
}

static void check_one(const void *msg, size_t len)
{
	struct onebit_error why;
	struct attach a;
	struct onebit_hello h;
	int rc;

	memset(&a, 0xa5, sizeof(a));
	memset(&why, 0xa5, sizeof(why));
	rc = attach_parse(msg, len, &a, &why);
	assert(rc == 0 || rc == -EPROTO);
	if (rc == 0) {
		assert(len == sizeof(h));
		memcpy(&h, msg, sizeof(h));
		check_geometry(&h, &a);
		return;
	}
	/* Out parameters are set on success only, and an error is whole. */
	for (size_t i = 0; i < sizeof(a); i++)
		assert(((unsigned char *)&a)[i] == 0xa5);
	assert(why.err == -EPROTO && why.code >= ONEBIT_E_BAD_HELLO && why.code <= ONEBIT_E_BAD_FEATURE);
	assert(!why.retryable && !why.retry_after_ms && !why.reserved && !why.request_id);
	assert(why.text[0] && memchr(why.text, 0, sizeof(why.text)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct onebit_hello h = { 0 };
	/* A copy of exactly that size, so that a read past the end is seen. */
	uint8_t *exact = malloc(size ? size : 1);

	assert(exact);
	if (size)
		memcpy(exact, data, size);
	check_one(exact, size);
	free(exact);

	/* Once more with the head in order, so that the geometry is reached more often. */
	if (size) {
		memcpy(&h, data, size < sizeof(h) ? size : sizeof(h));
		h.magic = ONEBIT_MAGIC;
		h.size = sizeof(h);
		h.abi_major = ONEBIT_ABI_MAJOR;
		if (data[0] & 1)
			h.flags = 0;
		if (data[0] & 2)
			h.features_required &= h.features_wanted & 0xdf;
		if (data[0] & 4)
			memset(h.reserved, 0, sizeof(h.reserved));
		if (data[0] & 8)
			h.sq_entries = 1u << (h.sq_entries & 15);
		if (data[0] & 16)
			h.cq_entries = 1u << (h.cq_entries & 15);
		if (data[0] & 32)
			h.arena_bytes = (h.arena_bytes & 0x1ffff) << 12;
		if (data[0] & 64)
			h.out_bytes = (h.out_bytes & 0x1ffff) << 12;
		check_one(&h, sizeof(h));
	}
	return 0;
}

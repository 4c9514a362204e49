/* SPDX-License-Identifier: MIT */
#ifndef ATTACH_H
#define ATTACH_H

#include <stddef.h>
#include <stdint.h>
#include "onebit.h"

/*
 * The attach message: hostile bytes in, a checked geometry out. Pure; fuzzed by fuzz_attach.
 */
struct attach {
	uint64_t wanted; /* features that this daemon knows */
	uint64_t required;
	uint16_t abi_minor;
	uint32_t sq_entries, cq_entries;
	uint32_t arena_bytes, out_bytes;
	/* layout, all offsets fixed by this daemon */
	uint32_t client_bytes, daemon_bytes;
	uint32_t sqes_off, arena_off, cqes_off, out_off;
	uint32_t ring_client_bytes; /* head of the CLIENT region to populate: controls and SQEs */
	uint32_t ring_daemon_bytes;
};

/* Where the control words stand in their regions; 128 bytes apart, two lines, for the prefetcher. */
#define CLIENT_CQ_HEAD   0u
#define CLIENT_WAKE      128u
#define CLIENT_SQES      4096u
#define DAEMON_SQ_HEAD   0u
#define DAEMON_STATE     128u
#define DAEMON_FUTEX     256u
#define DAEMON_CQES      4096u

/* 0: *a is set. -EPROTO: *why is set, and nothing else. */
int attach_parse(const void *msg, size_t len, struct attach *a, struct onebit_error *why);

/* Fill an error: class, layer, retryability and text come from the code's row in onebit_codes.h. */
void error_fill(struct onebit_error *e, enum onebit_code code, uint64_t detail,
		uint32_t retry_after_ms);
/* The same without the text and without touching the rest: for CQEs. */
void error_class(struct onebit_error *e, enum onebit_code code, uint64_t detail,
		 uint32_t retry_after_ms);
/* Symbolic name of a code, for logs. */
const char *error_name(enum onebit_code code);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef POLICY_H
#define POLICY_H

#include <stdbool.h>
#include <stdint.h>
#include "limits.h"

/*
 * What an administrator decides, as plain values: made by config.c from the configuration file,
 * sent from launcher to broker as it lies, used by the broker's core. No pointers.
 */

/* Limits of one principal (uid, tenant). 0 means none, except max_clients: 0 refuses the user. */
struct policy_limits {
	uint32_t max_clients;
	uint32_t max_inflight;
	uint64_t max_bytes;        /* shared memory of its clients */
	uint64_t max_queued_bytes; /* prompts waiting for the executor */
	uint32_t tokens_per_second;
	uint32_t spin_ns;  /* how long the daemon may spin for it after work; 0: never */
	bool delegate;     /* may name tenants */
	bool admin;
	uint8_t pad[6];
};

struct policy {
	uint32_t max_clients;  /* of all, <= CLIENTS_CEILING; fixed at start */
	uint32_t max_requests; /* of all, <= REQUESTS_CEILING; fixed at start */
	uint32_t journal_bytes; /* a power of two; fixed at start */
	uint32_t max_tokens;     /* of one choice: ceiling */
	uint32_t default_tokens; /* where the request says 0 */
	uint32_t progress_ms;    /* an executor with work and no progress for so long is hung */
	uint32_t drain_ms;       /* SIGTERM to exit, at most */
	uint32_t pad;
	struct policy_limits limits; /* of everybody not named */
	uint32_t n_overrides;
	uint32_t pad2;
	struct policy_override {
		uint32_t uid;
		uint32_t pad;
		struct policy_limits limits;
	} overrides[OVERRIDES_MAX];
};

/* Built-in values, as the man page gives them. */
void policy_defaults(struct policy *p);
const struct policy_limits *policy_of(const struct policy *p, uint32_t uid);

#endif

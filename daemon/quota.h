/* SPDX-License-Identifier: MIT */
#ifndef QUOTA_H
#define QUOTA_H

#include <stdbool.h>
#include <stdint.h>
#include "limits.h"
#include "policy.h"

/*
 * Who is charged for what. A principal is (uid, tenant); tenant 0 is the user itself. Charges are
 * taken before a thing is given and returned when it is gone; a principal without charges and with
 * a full token bucket is forgotten when its place is needed. Owned by the broker; one thread.
 */
struct principal {
	uint32_t uid;
	uint64_t tenant;
	uint32_t next; /* in its hash chain, or the free list */
	uint32_t refs; /* clients and requests that point here */
	uint32_t clients;
	uint32_t inflight;
	uint64_t bytes;
	uint64_t queued_bytes;
	uint32_t waiting, running;
	uint32_t poisoned; /* requests of it that ended POISON */
	int64_t tokens_milli; /* bucket, in thousandths of a token; below 0: in debt */
	uint64_t refilled_ns;
	uint64_t served; /* virtual time of fair sharing: tokens given, and a toll a request */
};

struct quota {
	const struct policy *policy;
	struct principal p[PRINCIPALS_MAX];
	uint32_t bucket[PRINCIPALS_MAX];
	uint32_t free; /* places never used */
	uint32_t scan; /* where the search for a forgettable one goes on */
};
#define PRINCIPAL_NONE UINT32_MAX

void quota_init(struct quota *q, const struct policy *policy);
const struct policy_limits *quota_limits(const struct quota *q, uint32_t who);
/* Find or make; takes a reference. PRINCIPAL_NONE: the table is full of active ones. */
uint32_t quota_ref(struct quota *q, uint32_t uid, uint64_t tenant, uint64_t now_ns);
void quota_unref(struct quota *q, uint32_t who);

/* Tokens: refill, then 0 when some are left, else in how many ms there will be (at least 1). */
uint32_t quota_tokens_wait_ms(struct quota *q, uint32_t who, uint64_t now_ns);
void quota_tokens_charge(struct quota *q, uint32_t who, uint32_t n);

#endif

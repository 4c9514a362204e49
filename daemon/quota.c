/* SPDX-License-Identifier: MIT */
/*
 * Principals and their charges. The table is fixed: a crowd of tenants can fill it, and then new
 * ones are refused rather than old ones forgotten while they are charged for something.
 */
#include "quota.h"

#include <assert.h>
#include <string.h>

#define SCAN_MAX 64u /* places looked at for one to forget: bounded work a call */

static uint32_t hash(uint32_t uid, uint64_t tenant)
{
	uint64_t h = (tenant ^ ((uint64_t)uid << 32) ^ uid) * 0x9e3779b97f4a7c15ull;

	return (uint32_t)(h >> 32) % PRINCIPALS_MAX;
}

void quota_init(struct quota *q, const struct policy *policy)
{
	memset(q, 0, sizeof(*q));
	q->policy = policy;
	for (uint32_t i = 0; i < PRINCIPALS_MAX; i++) {
		q->bucket[i] = PRINCIPAL_NONE;
		q->p[i].next = i + 1 < PRINCIPALS_MAX ? i + 1 : PRINCIPAL_NONE;
	}
}

const struct policy_limits *quota_limits(const struct quota *q, uint32_t who)
{
	return policy_of(q->policy, q->p[who].uid);
}

static int64_t capacity_milli(const struct quota *q, uint32_t who)
{
	return (int64_t)quota_limits(q, who)->tokens_per_second * 1000;
}

/* Credit what time has earned, to the thousandth; the rest of the time counts for the next call. */
static void refill(struct quota *q, uint32_t who, uint64_t now_ns)
{
	struct principal *p = &q->p[who];
	int64_t full = capacity_milli(q, who), gain;
	uint64_t ns = now_ns - p->refilled_ns;

	if (!full) {
		p->tokens_milli = 0;
		return;
	}
	if (ns > 3600000000000ull) { /* an hour repays any debt a request can make */
		ns = 3600000000000ull;
		p->refilled_ns = now_ns - ns;
	}
	/* full <= 2^32 * 1000 and ns < 2^42: in 128 bits */
	gain = (int64_t)((__int128)full * (int64_t)ns / 1000000000);
	p->refilled_ns += (uint64_t)((__int128)gain * 1000000000 / full);
	p->tokens_milli += gain;
	if (p->tokens_milli >= full) {
		p->tokens_milli = full;
		p->refilled_ns = now_ns;
	}
}

static void forget(struct quota *q, uint32_t who)
{
	uint32_t *link = &q->bucket[hash(q->p[who].uid, q->p[who].tenant)];

	while (*link != who)
		link = &q->p[*link].next;
	*link = q->p[who].next;
}

static uint32_t place(struct quota *q, uint64_t now_ns)
{
	uint32_t who = q->free;

	if (who != PRINCIPAL_NONE) {
		q->free = q->p[who].next;
		return who;
	}
	for (uint32_t i = 0; i < SCAN_MAX; i++) {
		who = q->scan++ % PRINCIPALS_MAX;
		if (q->p[who].refs)
			continue;
		refill(q, who, now_ns);
		if (q->p[who].tokens_milli >= capacity_milli(q, who)) {
			forget(q, who);
			return who;
		}
	}
	return PRINCIPAL_NONE;
}

uint32_t quota_ref(struct quota *q, uint32_t uid, uint64_t tenant, uint64_t now_ns)
{
	uint32_t b = hash(uid, tenant), who;
	struct principal *p;

	for (who = q->bucket[b]; who != PRINCIPAL_NONE; who = q->p[who].next)
		if (q->p[who].uid == uid && q->p[who].tenant == tenant) {
			q->p[who].refs++;
			return who;
		}
	who = place(q, now_ns);
	if (who == PRINCIPAL_NONE)
		return who;
	p = &q->p[who];
	memset(p, 0, sizeof(*p));
	p->uid = uid;
	p->tenant = tenant;
	p->refs = 1;
	p->refilled_ns = now_ns;
	p->tokens_milli = capacity_milli(q, who);
	p->next = q->bucket[b];
	q->bucket[b] = who;
	return who;
}

void quota_unref(struct quota *q, uint32_t who)
{
	assert(q->p[who].refs);
	q->p[who].refs--;
}

uint32_t quota_tokens_wait_ms(struct quota *q, uint32_t who, uint64_t now_ns)
{
	int64_t rate = capacity_milli(q, who), ms;

	if (!rate)
		return 0;
	refill(q, who, now_ns);
	if (q->p[who].tokens_milli > 0)
		return 0;
	ms = (1000 - q->p[who].tokens_milli) * 1000 / rate + 1;
	return ms > 3600000 ? 3600000 : (uint32_t)ms;
}

void quota_tokens_charge(struct quota *q, uint32_t who, uint32_t n)
{
	q->p[who].tokens_milli -= (int64_t)n * 1000;
	q->p[who].served += n;
}

/* SPDX-License-Identifier: MIT */
/* The built-in policy: what a daemon without a configuration file allows. */
#include "policy.h"

#include <string.h>

void policy_defaults(struct policy *p)
{
	memset(p, 0, sizeof(*p));
	p->max_clients = 1024;
	p->max_requests = 1024;
	p->journal_bytes = 64u << 20;
	p->max_tokens = 32768;
	p->default_tokens = 512;
	p->progress_ms = 10000;
	p->drain_ms = 10000;
	p->limits.max_clients = 64;
	p->limits.max_inflight = 128;
	p->limits.max_bytes = 256ull << 20;
	p->limits.max_queued_bytes = 16ull << 20;
	p->limits.tokens_per_second = 0;
	p->limits.spin_ns = 0;
}

const struct policy_limits *policy_of(const struct policy *p, uint32_t uid)
{
	for (uint32_t i = 0; i < p->n_overrides; i++)
		if (p->overrides[i].uid == uid)
			return &p->overrides[i].limits;
	return &p->limits;
}

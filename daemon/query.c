/* SPDX-License-Identifier: MIT */
/*
 * What the broker knows, for those who ask: QUERY answers are copied into the client's out window,
 * whole or, for arrays, as many entries from the cursor on as fit. Nobody is told of another
 * principal's affairs without the admin right.
 */
#include "core.h"

#include <stddef.h>
#include <string.h>

static void answer(struct broker *b, struct client *c, const struct onebit_sqe *e,
		   const void *data, uint32_t len)
{
	if (len > e->out_len) {
		client_refuse(b, c, e->user_data, ONEBIT_E_OUT_TOO_SMALL, len, 0);
		return;
	}
	memcpy(c->ring.out + e->out_off, data, len);
	client_complete(b, c, e->user_data, (int32_t)len, 0);
}

/* Entries [first, n) of an array, as many as fit; detail = n. */
static void answer_array(struct broker *b, struct client *c, const struct onebit_sqe *e,
			 const void *data, uint32_t n, uint32_t size, uint32_t first)
{
	uint32_t fit = e->out_len / size, left = first < n ? n - first : 0;

	if (left && !fit) {
		client_refuse(b, c, e->user_data, ONEBIT_E_OUT_TOO_SMALL, size, 0);
		return;
	}
	if (left > fit)
		left = fit;
	if (left)
		memcpy(c->ring.out + e->out_off, (const uint8_t *)data + (size_t)first * size,
		       (size_t)left * size);
	client_complete(b, c, e->user_data, (int32_t)(left * size), n);
}

static const struct link *active(const struct broker *b)
{
	return b->active == LINK_NONE ? NULL : &b->link[b->active];
}

static void features(struct broker *b, struct client *c, const struct onebit_sqe *e)
{
	const struct link *l = active(b);
	struct onebit_features f = {
		.size = sizeof(f),
		.abi_major = ONEBIT_ABI_MAJOR,
		.abi_minor = ONEBIT_ABI_MINOR,
		.features = ONEBIT_FEAT_NOTIFY | ONEBIT_FEAT_SPIN | ONEBIT_FEAT_STATS |
			    ONEBIT_FEAT_INLINE | ONEBIT_FEAT_RESUME | ONEBIT_FEAT_TENANT |
			    ONEBIT_FEAT_ADMIN,
		.ops = 1u << ONEBIT_OP_NOP | 1u << ONEBIT_OP_ECHO | 1u << ONEBIT_OP_QUERY |
		       1u << ONEBIT_OP_CANCEL | 1u << ONEBIT_OP_ADMIN,
		.topics = (1u << ONEBIT_QUERY_COUNT) - 1,
		.roles = (1u << ONEBIT_ROLE_COUNT) - 1,
		.version = ONEBIT_VERSION,
	};

	if (l) {
		f.ops |= l->hello.ops;
		f.param_flags = l->hello.param_flags;
	}
	answer(b, c, e, &f, sizeof(f));
}

static void limits(struct broker *b, struct client *c, const struct onebit_sqe *e)
{
	const struct policy_limits *lim = quota_limits(&b->quota, c->who);
	const struct principal *p = &b->quota.p[c->who];
	const struct link *l = active(b);
	struct onebit_limits q = {
		.size = sizeof(q),
		.clients = lim->max_clients,
		.clients_used = p->clients,
		.bytes = lim->max_bytes,
		.bytes_used = p->bytes,
		.inflight = lim->max_inflight,
		.inflight_used = p->inflight,
		.queued_bytes = lim->max_queued_bytes,
		.queued_bytes_used = p->queued_bytes,
		.tokens_per_second = lim->tokens_per_second,
		.max_tokens = b->policy.max_tokens,
		.default_tokens = b->policy.default_tokens,
		.context = l ? l->hello.model.context : 0,
		.block_bytes = ONEBIT_BLOCK_MAX,
		.poisoned = p->poisoned,
	};

	quota_tokens_wait_ms(&b->quota, c->who, b->now);
	q.tokens_left = p->tokens_milli > 0 ? (uint64_t)p->tokens_milli / 1000 : 0;
	answer(b, c, e, &q, sizeof(q));
}

/* Newest first, only one's own without the admin right. */
static void incidents(struct broker *b, struct client *c, const struct onebit_sqe *e, uint32_t first)
{
	uint64_t have = b->n_incidents < INCIDENTS_MAX ? b->n_incidents : INCIDENTS_MAX;
	uint32_t fit = e->out_len / (uint32_t)sizeof(struct onebit_incident), n = 0, seen = 0;
	uint8_t *out = c->ring.out + e->out_off;

	for (uint64_t i = 0; i < have; i++) {
		const struct onebit_incident *in =
			&b->incidents[(b->n_incidents - 1 - i) % INCIDENTS_MAX];

		if (!(c->features & ONEBIT_FEAT_ADMIN) &&
		    (!in->request_id || in->uid != b->quota.p[c->who].uid))
			continue;
		if (seen++ < first || n == fit)
			continue;
		memcpy(out + n++ * sizeof(*in), in, sizeof(*in));
	}
	if (seen > first && !fit)
		client_refuse(b, c, e->user_data, ONEBIT_E_OUT_TOO_SMALL,
			      sizeof(struct onebit_incident), 0);
	else
		client_complete(b, c, e->user_data,
				(int32_t)(n * sizeof(struct onebit_incident)), seen);
}

/* Only one's own without the admin right. */
static void sessions(struct broker *b, struct client *c, const struct onebit_sqe *e, uint32_t first)
{
	const struct link *l = active(b);
	struct onebit_session seen[EXEC_SESSIONS_MAX];
	uint32_t n = 0;

	for (uint32_t i = 0; l && i < l->n_session; i++)
		if ((c->features & ONEBIT_FEAT_ADMIN) ||
		    l->session[i].uid == b->quota.p[c->who].uid)
			seen[n++] = l->session[i];
	answer_array(b, c, e, seen, n, sizeof(seen[0]), first);
}

void query(struct broker *b, struct client *c, const struct onebit_sqe *e)
{
	uint32_t topic = (uint32_t)e->arg, cursor = (uint32_t)(e->arg >> 32);
	const struct link *l = active(b);

	switch (topic) {
	case ONEBIT_QUERY_FEATURES:
		return features(b, c, e);
	case ONEBIT_QUERY_LIMITS:
		return limits(b, c, e);
	case ONEBIT_QUERY_MODEL:
	case ONEBIT_QUERY_KV:
	case ONEBIT_QUERY_TIMING:
		if (!l || !l->hello.version) {
			client_refuse(b, c, e->user_data, ONEBIT_E_NO_MODEL,
				      l ? ONEBIT_EXEC_STARTING : ONEBIT_EXEC_NONE, 100);
			return;
		}
		if (topic == ONEBIT_QUERY_MODEL)
			return answer(b, c, e, &l->hello.model, sizeof(l->hello.model));
		if (topic == ONEBIT_QUERY_KV)
			return answer(b, c, e, &l->kv, sizeof(l->kv));
		return answer_array(b, c, e, l->timing, l->n_timing, sizeof(l->timing[0]), cursor);
	case ONEBIT_QUERY_SESSIONS:
		return sessions(b, c, e, cursor);
	case ONEBIT_QUERY_METRICS:
		return answer(b, c, e, broker_stats(b), sizeof(struct onebit_stats));
	case ONEBIT_QUERY_CONFIG:
		if (!(c->features & ONEBIT_FEAT_ADMIN)) {
			client_refuse(b, c, e->user_data, ONEBIT_E_DENIED,
				      offsetof(struct onebit_sqe, arg), 0);
			return;
		}
		return answer(b, c, e, b->config_text, (uint32_t)strlen(b->config_text));
	case ONEBIT_QUERY_INCIDENTS:
		return incidents(b, c, e, cursor);
	case ONEBIT_QUERY_DOCTOR:
		return answer_array(b, c, e, b->s.findings, b->s.n_findings,
				    sizeof(struct onebit_finding), cursor);
	}
	client_refuse(b, c, e->user_data, ONEBIT_E_BAD_FIELD, offsetof(struct onebit_sqe, arg), 0);
}

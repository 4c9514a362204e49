/* SPDX-License-Identifier: MIT */
/*
 * From an SQE to a request. The SQE is our copy; the block is copied once, into the journal, and
 * judged there. Each refusal names the field and gives one terminal CQE; nothing is charged before
 * everything is known to be right.
 *
 * The parameters are copied before the block, because they say how large the journal's entry must
 * be. That is no double fetch: what they decide is taken from this first copy only, and the bytes
 * in their place in the second are never looked at.
 */
#include "core.h"

#include <stddef.h>
#include <string.h>

#define SQE_AT(f)   offsetof(struct onebit_sqe, f)
#define PARAM_AT(f) offsetof(struct onebit_params, f)

#define MICRO          1000000
#define TEMPERATURE_MAX (100u * MICRO)
#define PENALTY_MAX     (100 * MICRO)

struct refusal {
	enum onebit_code code;
	uint64_t detail;
	uint32_t retry_ms;
};

static bool no(struct refusal *why, enum onebit_code code, uint64_t detail)
{
	why->code = code;
	why->detail = detail;
	why->retry_ms = 0;
	return false;
}

static bool no_for_now(struct refusal *why, enum onebit_code code, uint64_t detail, uint32_t ms)
{
	no(why, code, detail);
	why->retry_ms = ms;
	return false;
}

/* What an operation uses; the fields of what it does not use must be zero. */
enum { ARG = 1, IN = 2, OUT = 4 };
static const uint8_t uses[16] = {
	[ONEBIT_OP_ECHO] = IN | OUT,
	[ONEBIT_OP_QUERY] = ARG | OUT,
	[ONEBIT_OP_GENERATE] = IN | OUT,
	[ONEBIT_OP_CANCEL] = ARG,
	[ONEBIT_OP_TOKENIZE] = IN | OUT,
	[ONEBIT_OP_DETOKENIZE] = IN | OUT,
	[ONEBIT_OP_SCORE] = IN | OUT,
	[ONEBIT_OP_EMBED] = IN | OUT,
	[ONEBIT_OP_SESSION_FORK] = ARG,
	[ONEBIT_OP_SESSION_CLOSE] = ARG,
	[ONEBIT_OP_ADMIN] = ARG | IN,
};
_Static_assert(ONEBIT_OP_COUNT <= 16, "uses[] is indexed by op & 15");

static bool check_sqe(const struct client *c, const struct onebit_sqe *e, struct refusal *why)
{
	uint8_t use;

	if (e->op >= ONEBIT_OP_COUNT)
		return no(why, ONEBIT_E_BAD_OP, e->op);
	use = uses[e->op & 15]; /* masked: no speculative read past the table */
	if (e->flags & (uint8_t)~ONEBIT_SQE_FLAGS_ALL)
		return no(why, ONEBIT_E_RESERVED, SQE_AT(flags));
	if (e->reserved0)
		return no(why, ONEBIT_E_RESERVED, SQE_AT(reserved0));
	if (e->reserved1)
		return no(why, ONEBIT_E_RESERVED, SQE_AT(reserved1));
	if (e->reserved3[0] | e->reserved3[1])
		return no(why, ONEBIT_E_RESERVED, SQE_AT(reserved3));
	if (e->priority >= ONEBIT_PRIO_COUNT)
		return no(why, ONEBIT_E_BAD_FIELD, SQE_AT(priority));
	if (e->buf_index)
		return no(why, ONEBIT_E_BAD_FIELD, SQE_AT(buf_index));
	if (!(use & ARG) && e->arg)
		return no(why, ONEBIT_E_RESERVED, SQE_AT(arg));
	if (!(use & IN) && (e->in_off | e->in_len))
		return no(why, ONEBIT_E_RESERVED, SQE_AT(in_off));
	if (!(use & OUT) && (e->out_off | e->out_len))
		return no(why, ONEBIT_E_RESERVED, SQE_AT(out_off));
	if (e->in_len > c->ring.arena_bytes || e->in_off > c->ring.arena_bytes - e->in_len)
		return no(why, ONEBIT_E_BAD_RANGE, SQE_AT(in_off));
	if (e->in_len > ONEBIT_BLOCK_MAX)
		return no(why, ONEBIT_E_TOO_BIG, ONEBIT_BLOCK_MAX);
	if (e->out_off % 8 || e->out_len > c->ring.out_bytes ||
	    e->out_off > c->ring.out_bytes - e->out_len)
		return no(why, ONEBIT_E_BAD_RANGE, SQE_AT(out_off));
	return true;
}

/* ---- the block ---------------------------------------------------------------------------- */

/* count entries of size bytes at off, inside len bytes; an empty table has offset 0. */
static bool table_fits(uint32_t off, uint64_t count, uint32_t size, uint32_t align, uint32_t len)
{
	if (!count)
		return !off;
	return off && off % align == 0 && off <= len && count <= (len - off) / size;
}

static bool check_params(struct broker *b, const struct client *c, const struct onebit_sqe *e,
			 struct onebit_params *p, struct refusal *why)
{
	if (p->size < 8 || p->size % 8 || p->size > e->in_len)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(size));
	if (p->flags & ~ONEBIT_PARAM_FLAGS_ALL)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(flags));
	if (p->tenant && !(c->features & ONEBIT_FEAT_TENANT))
		return no(why, ONEBIT_E_DENIED, PARAM_AT(tenant));
	for (size_t i = 0; i < sizeof(p->reserved0); i++)
		if (p->reserved0[i])
			return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(reserved0));
	for (size_t i = 0; i < sizeof(p->reserved1) / sizeof(p->reserved1[0]); i++)
		if (p->reserved1[i])
			return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(reserved1));
	if (!p->max_tokens)
		p->max_tokens = b->policy.default_tokens;
	if (p->max_tokens > b->policy.max_tokens)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(max_tokens));
	if (p->min_tokens > p->max_tokens)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(min_tokens));
	if (!p->n_choices)
		p->n_choices = 1;
	if (p->n_choices > (e->op == ONEBIT_OP_GENERATE ? ONEBIT_CHOICES_MAX : 1u))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(n_choices));
	if (p->top_logprobs > ONEBIT_TOP_LOGPROBS_MAX ||
	    (p->top_logprobs && !(p->flags & ONEBIT_PARAM_LOGPROBS)))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(top_logprobs));
	if (p->temperature_micro > TEMPERATURE_MAX)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(temperature_micro));
	if (!p->top_p_micro)
		p->top_p_micro = MICRO;
	if (p->top_p_micro > MICRO)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(top_p_micro));
	if (p->min_p_micro > MICRO)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(min_p_micro));
	if (!p->repetition_micro)
		p->repetition_micro = MICRO;
	if (p->repetition_micro > (uint32_t)PENALTY_MAX)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(repetition_micro));
	if (p->frequency_micro > PENALTY_MAX || p->frequency_micro < -PENALTY_MAX)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(frequency_micro));
	if (p->presence_micro > PENALTY_MAX || p->presence_micro < -PENALTY_MAX)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(presence_micro));
	if (p->pooling >= ONEBIT_POOL_COUNT)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(pooling));
	if (!p->n_segments || p->n_segments > ONEBIT_SEGMENTS_MAX)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(n_segments));
	if (!table_fits(p->segments_off, p->n_segments, sizeof(struct onebit_segment), 8, e->in_len))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(segments_off));
	if (p->n_stops > ONEBIT_STOPS_MAX)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(n_stops));
	if (!table_fits(p->stops_off, p->n_stops, sizeof(struct onebit_span), 8, e->in_len))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(stops_off));
	if (p->n_bias > ONEBIT_BIAS_MAX)
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(n_bias));
	if (!table_fits(p->bias_off, p->n_bias, sizeof(struct onebit_bias), 8, e->in_len))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(bias_off));
	if (p->n_resume && (e->op != ONEBIT_OP_GENERATE || p->n_resume != p->n_choices))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(n_resume));
	if (!table_fits(p->resume_off, p->n_resume, sizeof(struct onebit_resume), 8, e->in_len))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(resume_off));
	if (!table_fits(p->grammar_off, p->grammar_len, 1, 8, e->in_len) ||
	    (p->grammar_len && p->grammar_len < sizeof(struct onebit_grammar)))
		return no(why, ONEBIT_E_BAD_PARAM, PARAM_AT(grammar_off));
	return true;
}

/* The tables, in our copy of the block. blk is aligned to 8. */
static bool check_tables(const struct onebit_params *p, const uint8_t *blk, uint32_t len,
			 struct refusal *why)
{
	const struct onebit_segment *s = (const void *)(blk + p->segments_off);
	const struct onebit_span *stop = (const void *)(blk + p->stops_off);
	const struct onebit_resume *rs = (const void *)(blk + p->resume_off);
	const struct onebit_grammar *g = (const void *)(blk + p->grammar_off);

	/* Newer parameters than ours: what we do not know must be zero. */
	for (uint32_t i = sizeof(*p); i < p->size; i++)
		if (blk[i])
			return no(why, ONEBIT_E_TOO_NEW, i);
	for (uint32_t i = 0; i < p->n_segments; i++) {
		uint32_t at = p->segments_off + i * (uint32_t)sizeof(*s);
		uint32_t flags = ONEBIT_SEG_CONTINUE | ONEBIT_SEG_SPECIAL;

		if (s[i].role >= ONEBIT_ROLE_COUNT || s[i].kind >= ONEBIT_SEG_KIND_COUNT ||
		    (s[i].flags & ~flags) || s[i].reserved)
			return no(why, ONEBIT_E_BAD_PARAM, at);
		if ((s[i].flags & ONEBIT_SEG_CONTINUE) &&
		    (i + 1 != p->n_segments || s[i].role != ONEBIT_ROLE_ASSISTANT))
			return no(why, ONEBIT_E_BAD_PARAM, at);
		if ((s[i].flags & ONEBIT_SEG_SPECIAL) && s[i].role != ONEBIT_ROLE_RAW)
			return no(why, ONEBIT_E_BAD_PARAM, at);
		if (s[i].len > len || s[i].off > len - s[i].len)
			return no(why, ONEBIT_E_BAD_PARAM, at);
		if (s[i].kind == ONEBIT_SEG_TOKENS && (s[i].off % 4 || s[i].len % 4))
			return no(why, ONEBIT_E_BAD_PARAM, at);
	}
	for (uint32_t i = 0; i < p->n_stops; i++)
		if (!stop[i].len || stop[i].len > ONEBIT_STOP_BYTES_MAX || stop[i].len > len ||
		    stop[i].off > len - stop[i].len)
			return no(why, ONEBIT_E_BAD_PARAM, p->stops_off + i * sizeof(*stop));
	for (uint32_t i = 0; i < p->n_resume; i++)
		if (rs[i].first >= p->max_tokens ||
		    !table_fits(rs[i].tokens_off, rs[i].first, 4, 4, len))
			return no(why, ONEBIT_E_BAD_PARAM, p->resume_off + i * sizeof(*rs));
	if (p->grammar_len) {
		uint64_t need = sizeof(*g) + (uint64_t)g->n_states * sizeof(struct onebit_gstate) +
				(uint64_t)g->n_edges * sizeof(struct onebit_gedge);

		if (g->size != p->grammar_len || g->size != need || g->reserved ||
		    !g->n_states || g->n_states > ONEBIT_GRAMMAR_STATES_MAX ||
		    g->n_edges > ONEBIT_GRAMMAR_EDGES_MAX || g->start >= g->n_states ||
		    g->max_depth > ONEBIT_GRAMMAR_DEPTH_MAX)
			return no(why, ONEBIT_E_BAD_PARAM, p->grammar_off);
	}
	return true;
}

/* ---- may it run ---------------------------------------------------------------------------- */

static uint32_t ms_until(const struct broker *b, uint64_t ns)
{
	return ns > b->now ? (uint32_t)((ns - b->now) / 1000000 + 1) : 1;
}

static bool check_service(struct broker *b, const struct onebit_sqe *e, struct refusal *why)
{
	const struct link *l;

	if (b->draining)
		return no_for_now(why, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING, 1000);
	if (b->active == LINK_NONE)
		return no_for_now(why, ONEBIT_E_NO_MODEL, ONEBIT_EXEC_NONE, 1000);
	l = &b->link[b->active];
	if (l->failures >= START_FAILURES_MAX && l->state != LINK_READY)
		return no_for_now(why, ONEBIT_E_EXECUTOR_DOWN, l->failures,
				  ms_until(b, l->retry_ns));
	if (l->hello.version && !(l->hello.ops >> e->op & 1))
		return no(why, ONEBIT_E_UNSUPPORTED, e->op);
	return true;
}

static bool check_quota(struct broker *b, const struct client *c, uint32_t who, uint32_t len,
			struct refusal *why)
{
	const struct policy_limits *lim = quota_limits(&b->quota, who);
	const struct principal *p = &b->quota.p[who];
	uint32_t wait;

	if (lim->max_inflight && p->inflight >= lim->max_inflight)
		return no_for_now(why, ONEBIT_E_Q_INFLIGHT, lim->max_inflight, 100);
	if (c->n_inflight >= c->max_inflight)
		return no_for_now(why, ONEBIT_E_Q_INFLIGHT, c->max_inflight, 100);
	if (lim->max_queued_bytes && p->queued_bytes + len > lim->max_queued_bytes)
		return no_for_now(why, ONEBIT_E_Q_QUEUED, lim->max_queued_bytes, 100);
	wait = quota_tokens_wait_ms(&b->quota, who, b->now);
	if (wait)
		return no_for_now(why, ONEBIT_E_Q_TOKENS, lim->tokens_per_second, wait);
	if (b->free_request == NONE)
		return no_for_now(why, ONEBIT_E_REQUESTS_FULL, b->policy.max_requests, 100);
	return true;
}

/* Divide the window among the choices. */
static bool check_window(const struct onebit_sqe *e, const struct onebit_params *p,
			 uint32_t *rec_off, uint32_t *rec_cap, struct refusal *why)
{
	uint32_t head = (uint32_t)sizeof(struct onebit_out) +
			p->n_choices * (uint32_t)sizeof(struct onebit_choice);
	uint32_t least = head + p->n_choices * 64u;

	*rec_off = *rec_cap = 0;
	if (e->op != ONEBIT_OP_GENERATE && e->op != ONEBIT_OP_SCORE)
		return true;
	if (e->out_len < least)
		return no(why, ONEBIT_E_OUT_TOO_SMALL, least);
	*rec_off = head;
	*rec_cap = ((e->out_len - head) / p->n_choices) & ~7u;
	return true;
}

static void fill_window(const struct client *c, const struct request *r,
			const struct onebit_params *p)
{
	struct onebit_out *out = (struct onebit_out *)(void *)(c->ring.out + r->out_off);
	struct onebit_choice *choice = (struct onebit_choice *)(void *)(out + 1);

	memset(out, 0, sizeof(*out));
	out->size = sizeof(*out);
	out->n_choices = p->n_choices;
	out->request_id = r->id;
	for (uint32_t i = 0; i < p->n_choices; i++) {
		memset(&choice[i], 0, sizeof(choice[i]));
		choice[i].n_tokens = choice[i].first_token = r->entry->done[i].n;
		choice[i].rec_off = r->c[i].off;
		choice[i].rec_cap = r->c[i].cap;
	}
}

/* A model that answers must be the one asked for; a resumed answer cannot go on with another. */
static bool check_model(struct broker *b, uint8_t op, const struct onebit_params *p,
			struct refusal *why)
{
	enum onebit_code code;
	uint64_t detail;

	if (!b->link[b->active].hello.version)
		return true; /* its hello is still to come; link.c judges then */
	code = link_judge(b, (unsigned)b->active, op, p, &detail);
	return code == ONEBIT_E_OK || no(why, code, detail);
}

/* The parameters at the start of a request's block, as far as they stand for themselves. */
static bool read_params(struct broker *b, struct client *c, const struct onebit_sqe *e,
			struct onebit_params *p, struct refusal *why)
{
	uint32_t head = e->in_len < sizeof(*p) ? e->in_len : (uint32_t)sizeof(*p);

	if (e->in_len < 8 || e->in_off % 8)
		return no(why, ONEBIT_E_BAD_RANGE, SQE_AT(in_off));
	ring_copy_in(&c->ring, e->in_off, p, head);
	if (p->size < sizeof(*p)) /* an older client: what it does not know is zero */
		memset((uint8_t *)p + (p->size < 8 ? 8 : p->size), 0,
		       sizeof(*p) - (p->size < 8 ? 8 : p->size));
	return check_params(b, c, e, p, why);
}

/* What runs in the executor: with a block, or about a session, which needs none. */
static bool admit_request(struct broker *b, struct client *c, const struct onebit_sqe *e,
			  bool block, uint32_t *copied, struct refusal *why)
{
	struct onebit_params p = { .size = sizeof(p), .n_choices = 1, .session = e->arg };
	uint32_t who, rec_off, rec_cap, uid, cap;
	struct journal_entry *entry;
	struct request *r;
	uint64_t bytes;

	if (!check_service(b, e, why) || (block && !read_params(b, c, e, &p, why)) ||
	    !check_window(e, &p, &rec_off, &rec_cap, why) || !check_model(b, e->op, &p, why))
		return false;

	uid = b->quota.p[c->who].uid;
	who = quota_ref(&b->quota, uid, p.tenant, b->now);
	if (who == PRINCIPAL_NONE)
		return no_for_now(why, ONEBIT_E_PRINCIPALS_FULL, PRINCIPALS_MAX, 1000);
	if (!check_quota(b, c, who, e->in_len, why)) {
		quota_unref(&b->quota, who);
		return false;
	}
	cap = rec_cap ? p.max_tokens : 0;
	bytes = ((uint64_t)e->in_len + 7) / 8 * 8 + sizeof(*entry) + (uint64_t)p.n_choices * cap * 4;
	entry = bytes <= b->journal.bytes ? journal_take(&b->journal, (uint32_t)bytes) : NULL;
	if (!entry) {
		quota_unref(&b->quota, who);
		return no_for_now(why, ONEBIT_E_JOURNAL_FULL, bytes, 100);
	}
	memset(entry, 0, sizeof(*entry));
	entry->block_off = sizeof(*entry);
	entry->block_len = e->in_len;
	entry->tokens_off = (uint32_t)sizeof(*entry) + (e->in_len + 7) / 8 * 8;
	entry->tokens_cap = cap;
	ring_copy_in(&c->ring, e->in_off, (uint8_t *)(entry + 1), e->in_len);
	*copied += e->in_len;
	if (block && !check_tables(&p, (const uint8_t *)(entry + 1), e->in_len, why)) {
		journal_give(&b->journal, entry);
		quota_unref(&b->quota, who);
		return false;
	}

	r = request_new(b, c);
	r->user_data = e->user_data;
	r->op = e->op;
	r->priority = e->priority;
	r->who = who;
	r->link = (uint8_t)b->active;
	r->entry = entry;
	r->out_off = e->out_off;
	r->out_len = e->out_len;
	r->no_replay = p.flags & ONEBIT_PARAM_NO_REPLAY;
	r->n_choices = p.n_choices;
	r->deadline_ms = e->deadline_ms;
	r->deadline_ns = e->deadline_ms ? b->now + e->deadline_ms * 1000000ull : UINT64_MAX;
	if (r->deadline_ns < b->next_deadline)
		b->next_deadline = r->deadline_ns;

	entry->magic = JOURNAL_MAGIC;
	entry->bytes = (uint32_t)bytes;
	entry->request_id = r->id;
	entry->tenant = p.tenant;
	entry->uid = uid;
	entry->op = e->op;
	entry->priority = e->priority;
	entry->params = p;
	for (uint32_t i = 0; i < p.n_choices; i++) {
		r->c[i].off = rec_off + i * rec_cap;
		r->c[i].cap = rec_cap;
		if (p.n_resume) {
			const struct onebit_resume *rs =
				(const void *)((uint8_t *)(entry + 1) + p.resume_off);

			entry->done[i].n = r->c[i].told = rs[i].first;
			memcpy(journal_tokens(entry, i), (uint8_t *)(entry + 1) + rs[i].tokens_off,
			       rs[i].first * 4ull);
		}
	}
	if (rec_cap)
		fill_window(c, r, &p);

	r->charge = e->in_len;
	b->quota.p[who].queued_bytes += e->in_len;
	b->quota.p[who].inflight++;
	b->link[b->active].n_bound++;
	b->stats.accepted++;
	request_wait(b, r, false);
	request_progress(b, r); /* accepted */
	return true;
}

/* ---- the other operations ------------------------------------------------------------------ */

static void echo(struct broker *b, struct client *c, const struct onebit_sqe *e, uint32_t *copied)
{
	if (e->out_len < e->in_len) {
		client_refuse(b, c, e->user_data, ONEBIT_E_OUT_TOO_SMALL, e->in_len, 0);
		return;
	}
	ring_copy_in(&c->ring, e->in_off, c->ring.out + e->out_off, e->in_len);
	*copied += e->in_len;
	client_complete(b, c, e->user_data, (int32_t)e->in_len, 0);
}

static void cancel(struct broker *b, struct client *c, const struct onebit_sqe *e,
		   uint32_t *copied)
{
	int32_t n = 0;
	uint32_t i, next;

	*copied += c->n_inflight * 64; /* the walk is work too */
	for (i = c->first; i != NONE; i = next) {
		struct request *r = &b->requests[i];

		next = r->next;
		if (r->user_data != e->arg || r->state == REQUEST_ADMIN)
			continue;
		request_end(b, r, ONEBIT_E_CANCELLED, 0, request_tokens(r), 0);
		n++;
	}
	if (n)
		client_complete(b, c, e->user_data, n, 0);
	else
		client_refuse(b, c, e->user_data, ONEBIT_E_NOT_FOUND, e->arg, 0);
}

static bool admin(struct broker *b, struct client *c, const struct onebit_sqe *e, uint32_t *copied,
		  struct refusal *why)
{
	bool names = e->arg == ONEBIT_ADMIN_LOAD || e->arg == ONEBIT_ADMIN_SWAP;
	struct request *r;
	struct link *l;
	unsigned i;

	if (!(c->features & ONEBIT_FEAT_ADMIN))
		return no(why, ONEBIT_E_DENIED, SQE_AT(arg));
	if (e->arg < ONEBIT_ADMIN_LOAD || e->arg > ONEBIT_ADMIN_RELOAD)
		return no(why, ONEBIT_E_BAD_FIELD, SQE_AT(arg));
	if (names ? !e->in_len || e->in_len >= sizeof(l->model) : e->in_len)
		return no(why, ONEBIT_E_BAD_RANGE, SQE_AT(in_off));
	if (b->draining)
		return no_for_now(why, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING, 1000);
	if (e->arg == ONEBIT_ADMIN_RELOAD) {
		b->s.env.reload(b->s.env.ctx);
		client_complete(b, c, e->user_data, 0, 0);
		return true;
	}
	if (!b->s.has_executor)
		return no(why, ONEBIT_E_NO_MODEL, ONEBIT_EXEC_NONE);
	if (e->arg == ONEBIT_ADMIN_UNLOAD) {
		if (b->active == LINK_NONE)
			return no(why, ONEBIT_E_NO_MODEL, ONEBIT_EXEC_NONE);
		i = (unsigned)b->active;
		b->active = LINK_NONE;
		b->model_generation++;
		b->state_changed = true;
		link_retire(b, i);
		client_complete(b, c, e->user_data, 0, 0);
		return true;
	}
	if (e->arg == ONEBIT_ADMIN_LOAD && b->active != LINK_NONE)
		return no(why, ONEBIT_E_BAD_FIELD, SQE_AT(arg));
	for (i = 0; i < LINKS && (b->link[i].state != LINK_IDLE || b->link[i].n_bound); i++)
		;
	if (i == LINKS) /* the model before the last is still finishing its requests */
		return no_for_now(why, ONEBIT_E_MODEL_BUSY, LINKS, 1000);
	if (b->free_request == NONE)
		return no_for_now(why, ONEBIT_E_REQUESTS_FULL, b->policy.max_requests, 100);

	l = &b->link[i];
	memset(l->model, 0, sizeof(l->model));
	ring_copy_in(&c->ring, e->in_off, l->model, e->in_len);
	*copied += e->in_len;
	if (strlen(l->model) != e->in_len)
		return no(why, ONEBIT_E_BAD_RANGE, SQE_AT(in_off));
	r = request_new(b, c);
	r->user_data = e->user_data;
	r->op = e->op;
	r->state = REQUEST_ADMIN;
	r->link = (uint8_t)i;
	r->deadline_ns = UINT64_MAX; /* START_DEADLINE_NS ends it */
	r->who = c->who;
	b->quota.p[c->who].refs++;
	r->accepted_told = true;
	l->admin = request_index(b, r);
	l->name_model = true;
	link_start(b, i);
	return true;
}

void admit(struct broker *b, struct client *c, const struct onebit_sqe *e, uint32_t *copied)
{
	struct refusal why;
	bool ok = true;

	if (!check_sqe(c, e, &why)) {
		client_refuse(b, c, e->user_data, why.code, why.detail, why.retry_ms);
		return;
	}
	switch (e->op) {
	case ONEBIT_OP_NOP:
		client_complete(b, c, e->user_data, 0, 0);
		break;
	case ONEBIT_OP_ECHO:
		echo(b, c, e, copied);
		break;
	case ONEBIT_OP_QUERY:
		query(b, c, e);
		break;
	case ONEBIT_OP_CANCEL:
		cancel(b, c, e, copied);
		break;
	case ONEBIT_OP_GENERATE:
	case ONEBIT_OP_TOKENIZE:
	case ONEBIT_OP_DETOKENIZE:
	case ONEBIT_OP_SCORE:
	case ONEBIT_OP_EMBED:
		ok = admit_request(b, c, e, true, copied, &why);
		break;
	case ONEBIT_OP_ADMIN:
		ok = admin(b, c, e, copied, &why);
		break;
	default: /* a session's open, fork, close */
		ok = admit_request(b, c, e, false, copied, &why);
	}
	if (!ok)
		client_refuse(b, c, e->user_data, why.code, why.detail, why.retry_ms);
}

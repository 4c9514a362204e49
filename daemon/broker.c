/* SPDX-License-Identifier: MIT */
/*
 * The broker's core: clients, turns, sleeping, and what is told to whom. See broker.h for the
 * promise and core.h for the map of its files.
 *
 * A turn visits the hot rings (those that rang or were busy lately), takes at most TURN_SQES
 * entries of each, lets the links run, then publishes all completions: their marks, one fence for
 * all clients, one wake for who sleeps. Going to sleep tells every hot ring to ring
 * first, fences, and looks once more; so cold rings cost nothing and no wake-up is lost.
 *
 * Room in the CQ. An SQE is taken only while  unreaped + 2 * in flight + 2 <= entries. A request
 * writes at most one progress CQE that is unreaped and one terminal, so whatever order things
 * happen in, the CQ cannot overflow. SQEs that must wait for room stay in the ring (STALLED).
 */
#include "core.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onebit_ring.h"

#define CLOCK_EVERY 16u /* turns between looks at the clock while only the rings are busy */

uint64_t broker_now(struct broker *b)
{
	return b->now = b->s.env.now_ns(b->s.env.ctx);
}

void broker_log(struct broker *b, enum broker_log level, const char *fmt, ...)
{
	char line[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	b->s.env.log(b->s.env.ctx, level, line);
}

void broker_incident(struct broker *b, enum onebit_code code, const struct request *r,
		     const char *fmt, ...)
{
	struct onebit_incident *in = &b->incidents[b->n_incidents++ % INCIDENTS_MAX];
	va_list ap;

	memset(in, 0, sizeof(*in));
	in->id = b->n_incidents;
	in->time_s = b->s.env.time_s(b->s.env.ctx);
	in->code = (uint16_t)code;
	if (r) {
		in->request_id = r->id;
		in->uid = b->quota.p[r->who].uid;
	}
	va_start(ap, fmt);
	vsnprintf(in->text, sizeof(in->text), fmt, ap);
	va_end(ap);
	broker_log(b, BROKER_WARN, "event=incident id=%llu code=%s request=%llu text=\"%s\"",
		   (unsigned long long)in->id, error_name(code), (unsigned long long)in->request_id,
		   in->text);
}

/* ---- birth and death ------------------------------------------------------------------------- */

struct broker *broker_new(const struct broker_setup *setup)
{
	struct broker *b = calloc(1, sizeof(*b));

	if (!b)
		return NULL;
	b->s = *setup;
	b->policy = setup->policy;
	b->config_text = setup->config_text ? setup->config_text : "";
	b->clients = calloc(b->policy.max_clients, sizeof(*b->clients));
	b->requests = calloc(b->policy.max_requests, sizeof(*b->requests));
	b->hot = calloc(b->policy.max_clients, sizeof(*b->hot));
	b->dirty = calloc(b->policy.max_clients, sizeof(*b->dirty));
	if (!b->clients || !b->requests || !b->hot || !b->dirty ||
	    journal_init(&b->journal, setup->journal, b->policy.journal_bytes) < 0)
		return broker_free(b);
	quota_init(&b->quota, &b->policy);
	b->free_request = b->free_client = NONE;
	for (uint32_t i = b->policy.max_clients; i-- > 0;) {
		b->clients[i].next = b->free_client;
		b->free_client = i;
	}
	for (uint32_t i = b->policy.max_requests; i-- > 0;) {
		b->requests[i].next = b->free_request;
		b->free_request = i;
	}
	b->wait_first = b->wait_last = NONE;
	b->next_deadline = b->unmute_at = UINT64_MAX;
	b->active = LINK_NONE;
	b->start_ns = broker_now(b);
	for (unsigned i = 0; i < LINKS; i++)
		link_init(b, i);
	if (setup->has_executor) { /* the first turn starts it */
		b->active = 0;
		b->link[0].state = LINK_BACKOFF;
	}
	b->attention = true;
	b->stats.size = sizeof(b->stats);
	b->stats.epoch = setup->epoch;
	return b;
}

struct broker *broker_free(struct broker *b)
{
	if (!b)
		return NULL;
	journal_deinit(&b->journal);
	free(b->clients);
	free(b->requests);
	free(b->hot);
	free(b->dirty);
	free(b);
	return NULL;
}

uint32_t broker_state(const struct broker *b)
{
	if (b->draining)
		return ONEBIT_STATE_DRAINING;
	if (b->active != LINK_NONE && !b->link[b->active].hello.version)
		return ONEBIT_STATE_STARTING;
	return ONEBIT_STATE_READY;
}

/* ---- clients --------------------------------------------------------------------------------- */

static uint32_t client_index(const struct broker *b, const struct client *c)
{
	return (uint32_t)(c - b->clients);
}

static int refuse_client(struct broker *b, struct onebit_error *why, enum onebit_code code,
			 uint64_t detail, uint32_t retry_ms)
{
	error_fill(why, code, detail, retry_ms);
	b->stats.refused++;
	return why->err;
}

int broker_admit(struct broker *b, uint32_t uid, const struct attach *a, uint32_t *client,
		 uint64_t *features, struct onebit_error *why)
{
	const struct policy_limits *lim = policy_of(&b->policy, uid);
	uint64_t bytes = (uint64_t)a->client_bytes + a->daemon_bytes, may;
	struct principal *p;
	struct client *c;
	uint32_t i, who;

	broker_now(b);
	if (!lim->max_clients)
		return refuse_client(b, why, ONEBIT_E_DENIED, 0, 0);
	if (b->draining)
		return refuse_client(b, why, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING, 1000);
	may = ONEBIT_FEAT_NOTIFY | ONEBIT_FEAT_INLINE | ONEBIT_FEAT_RESUME;
	may |= b->s.stats ? ONEBIT_FEAT_STATS : 0;
	may |= lim->spin_ns ? ONEBIT_FEAT_SPIN : 0;
	may |= lim->delegate ? ONEBIT_FEAT_TENANT : 0;
	may |= lim->admin ? ONEBIT_FEAT_ADMIN : 0;
	if (a->required & ~may)
		return refuse_client(b, why, ONEBIT_E_BAD_FEATURE, a->required & ~may, 0);
	i = b->free_client;
	if (i == NONE)
		return refuse_client(b, why, ONEBIT_E_CLIENTS_FULL, b->policy.max_clients, 1000);
	who = quota_ref(&b->quota, uid, 0, b->now);
	if (who == PRINCIPAL_NONE)
		return refuse_client(b, why, ONEBIT_E_PRINCIPALS_FULL, PRINCIPALS_MAX, 1000);
	p = &b->quota.p[who];
	if (p->clients >= lim->max_clients) {
		quota_unref(&b->quota, who);
		return refuse_client(b, why, ONEBIT_E_Q_CLIENTS, lim->max_clients, 1000);
	}
	if (lim->max_bytes && p->bytes + bytes > lim->max_bytes) {
		quota_unref(&b->quota, who);
		return refuse_client(b, why, ONEBIT_E_Q_BYTES, lim->max_bytes, 1000);
	}
	c = &b->clients[i];
	b->free_client = c->next;
	memset(c, 0, sizeof(*c));
	c->state = CLIENT_ADMITTED;
	c->who = who;
	c->bytes = bytes;
	c->geometry = *a;
	c->features = a->wanted & may;
	c->first = c->last = NONE;
	c->hot = NONE;
	c->spin_ns = c->features & ONEBIT_FEAT_SPIN ? lim->spin_ns : 0;
	c->max_inflight = a->cq_entries / 2 - 1;
	if (lim->max_inflight && c->max_inflight > lim->max_inflight)
		c->max_inflight = lim->max_inflight;
	p->clients++;
	p->bytes += bytes;
	b->stats.bytes += bytes;
	b->stats.clients++;
	*client = i;
	*features = c->features;
	return 0;
}

static void tell_state(struct broker *b, struct client *c)
{
	struct onebit_state *s = c->ring.state;

	onebit_store_relaxed(&s->cpu, b->cpu);
	onebit_store_relaxed(&s->state, broker_state(b));
	onebit_store_relaxed(&s->model_generation, b->model_generation);
}

void broker_attach(struct broker *b, uint32_t client, void *client_region, void *daemon_region,
		   struct onebit_welcome *w)
{
	struct client *c = &b->clients[client];
	const struct attach *a = &c->geometry;

	assert(c->state == CLIENT_ADMITTED);
	ring_init(&c->ring, a, client_region, daemon_region);
	c->ring.state->epoch = b->s.epoch;
	ring_flags(&c->ring, ONEBIT_SQ_NEED_WAKEUP);
	tell_state(b, c);
	memset(w, 0, sizeof(*w));
	w->magic = ONEBIT_MAGIC;
	w->size = sizeof(*w);
	w->abi_major = ONEBIT_ABI_MAJOR;
	w->abi_minor = a->abi_minor;
	w->client_id = client;
	w->features = c->features;
	w->epoch = b->s.epoch;
	w->stats_bytes = c->features & ONEBIT_FEAT_STATS ? 4096 : 0;
	w->max_inflight = c->max_inflight;
	w->spin_ns = c->spin_ns;
	ring_welcome(&c->ring, a, w);
	c->state = CLIENT_ATTACHED;
	b->stats.attached++;
}

static void cool(struct broker *b, struct client *c)
{
	uint32_t last;

	if (c->hot == NONE)
		return;
	last = b->hot[--b->n_hot];
	b->hot[c->hot] = last;
	b->clients[last].hot = c->hot;
	c->hot = NONE;
}

void client_heat(struct broker *b, uint32_t client)
{
	struct client *c = &b->clients[client];

	if (c->state != CLIENT_ATTACHED || c->muted)
		return;
	c->active_ns = b->now;
	if (c->hot != NONE)
		return;
	c->hot = b->n_hot;
	b->hot[b->n_hot++] = client;
	onebit_store_relaxed(&c->ring.state->cpu, b->cpu); /* broker_cpu() tells hot rings only */
	ring_flags(&c->ring, 0);
}

void broker_detach(struct broker *b, uint32_t client)
{
	struct client *c = &b->clients[client];
	struct principal *p = &b->quota.p[c->who];

	if (c->state == CLIENT_FREE)
		return;
	broker_now(b);
	cool(b, c);
	if (c->dirty) {
		uint32_t i = 0;

		while (b->dirty[i] != client)
			i++;
		b->dirty[i] = b->dirty[--b->n_dirty];
		c->dirty = false;
	}
	if (c->muted)
		b->n_muted--;
	while (c->first != NONE)
		request_orphan(b, &b->requests[c->first]);
	p->clients--;
	p->bytes -= c->bytes;
	b->stats.bytes -= c->bytes;
	b->stats.clients--;
	b->stats.detached++;
	quota_unref(&b->quota, c->who);
	c->state = CLIENT_FREE;
	c->next = b->free_client;
	b->free_client = client;
	b->attention = true; /* executor slots to ask back, statistics to tell */
}

/* The core's own decision: the client broke the contract. */
static void throw_out(struct broker *b, struct client *c, enum onebit_code code, uint64_t detail)
{
	struct onebit_error why;
	uint32_t client = client_index(b, c);

	error_fill(&why, code, detail, 0);
	b->stats.protocol_errors++;
	broker_log(b, BROKER_WARN, "event=detach client=%u uid=%u code=%s detail=%llu", client,
		   b->quota.p[c->who].uid, error_name(code), (unsigned long long)detail);
	onebit_store_relaxed(&c->ring.state->state, ONEBIT_STATE_DETACHED);
	broker_detach(b, client);
	b->s.env.close_client(b->s.env.ctx, client, &why);
}

/* ---- completions ----------------------------------------------------------------------------- */

struct onebit_cqe *client_push(struct broker *b, struct client *c, uint64_t user_data,
			       int32_t res, uint16_t flags, uint16_t choice)
{
	struct onebit_cqe *cqe = ring_push(&c->ring, flags, choice);

	b->stats.cqes++;
	if (!c->dirty) {
		c->dirty = true;
		b->dirty[b->n_dirty++] = client_index(b, c);
	}
	cqe->user_data = user_data;
	cqe->res = res;
	memset(&cqe->u, 0, sizeof(cqe->u));
	return cqe;
}

void cqe_fail(struct onebit_cqe *cqe, enum onebit_code code, uint64_t detail, uint32_t retry_ms)
{
	struct onebit_error e;

	error_class(&e, code, detail, retry_ms);
	cqe->res = e.err;
	cqe->u.end.code = e.code;
	cqe->u.end.layer = e.layer;
	cqe->u.end.retryable = e.retryable;
	cqe->u.end.retry_after_ms = e.retry_after_ms;
	cqe->u.end.detail = detail;
}

void client_complete(struct broker *b, struct client *c, uint64_t user_data, int32_t res,
		     uint64_t detail)
{
	client_push(b, c, user_data, res, 0, 0)->u.end.detail = detail;
}

void client_refuse(struct broker *b, struct client *c, uint64_t user_data, enum onebit_code code,
		   uint64_t detail, uint32_t retry_ms)
{
	cqe_fail(client_push(b, c, user_data, 0, 0, 0), code, detail, retry_ms);
}

static void publish(struct broker *b)
{
	for (uint32_t i = 0; i < b->n_dirty; i++)
		ring_publish(&b->clients[b->dirty[i]].ring);
	if (!b->n_dirty)
		return;
	onebit_fence(); /* before looking who sleeps; pairs with the client's before it sleeps */
	for (uint32_t i = 0; i < b->n_dirty; i++) {
		struct client *c = &b->clients[b->dirty[i]];
		uint32_t need = ring_need(&c->ring);

		c->dirty = false;
		if (need) {
			b->stats.wakes++;
			if (need & ONEBIT_WAKE_FUTEX)
				ring_rouse(&c->ring);
			b->s.env.wake_client(b->s.env.ctx, b->dirty[i], need);
		}
	}
	b->n_dirty = 0;
}

/* ---- submissions ----------------------------------------------------------------------------- */

static bool has_room(struct client *c)
{
	uint32_t want = 2 * c->n_inflight + 2;

	return ring_room(&c->ring, want) >= want;
}

/* Progress that waited for the client to reap. Bounded by its requests in flight. */
static void tell_held(struct broker *b, struct client *c)
{
	uint32_t next;

	for (uint32_t i = c->first; i != NONE && c->n_held; i = next) {
		next = b->requests[i].next;
		if (b->requests[i].held)
			request_progress(b, &b->requests[i]);
	}
}

/* Has the client reaped what some held progress waits for? */
static bool can_tell_held(struct broker *b, struct client *c)
{
	for (uint32_t i = c->first; i != NONE && c->n_held; i = b->requests[i].next)
		if (b->requests[i].held && request_can_tell(b, &b->requests[i]))
			return true;
	return false;
}

/* Would a turn get anywhere with it? */
static bool has_work(struct broker *b, struct client *c)
{
	if (c->blocked ? has_room(c) || c->ring.ahead : ring_poll(&c->ring))
		return true;
	return can_tell_held(b, c);
}

/*
 * Spin on for clients that were allowed to, run on another CPU, and submit often: all of them
 * together, for a thousand that take turns keep the loop as busy as one.
 */
static void note_activity(struct broker *b, struct client *c)
{
	uint64_t gap = b->now - b->spun_ns;

	c->active_ns = b->now;
	if (!c->spin_ns)
		return;
	b->spun_ns = b->now;
	if (ring_client_cpu(&c->ring) == b->cpu) {
		b->spin_until = b->spin_ns = 0; /* it cannot run while we spin */
		return;
	}
	b->gap_ns = (b->gap_ns * 7 + gap) / 8;
	if (gap > c->spin_ns * 16ull)
		b->gap_ns = 0; /* a pause is not a rhythm: give it a new chance */
	if (b->gap_ns <= c->spin_ns && c->spin_ns > b->spin_ns)
		b->spin_ns = c->spin_ns;
}

/* Take what one client submitted, within its share of a turn. true: more is waiting. */
static bool drain(struct broker *b, struct client *c)
{
	uint32_t n = 0, copied = 0;
	bool more;

	if (c->n_held)
		tell_held(b, c);
	c->blocked = false;
	while ((more = ring_poll(&c->ring)) && n < TURN_SQES && copied < TURN_COPY_BYTES) {
		struct onebit_sqe e;

		c->blocked = !has_room(c);
		if (c->blocked)
			break;
		ring_pop(&c->ring, &e);
		n++;
		admit(b, c, &e, &copied);
	}
	if (c->ring.ahead) { /* seen by tell_held() or by the last has_room() */
		throw_out(b, c, ONEBIT_E_BAD_INDEX, c->ring.ahead);
		return false;
	}
	if (n) {
		b->stats.sqes += n;
		ring_release(&c->ring);
		note_activity(b, c);
	}
	return more && !c->blocked;
}

void broker_doorbell(struct broker *b, uint32_t client)
{
	struct client *c = &b->clients[client];

	if (c->state != CLIENT_ATTACHED || c->muted)
		return;
	b->stats.doorbells++;
	/* Ringing for nothing costs us a wake-up: who does it too often is not listened to a while. */
	if (!has_work(b, c)) {
		uint64_t now = broker_now(b);

		b->stats.spurious_doorbells++;
		if (now - c->window_ns > SPURIOUS_WINDOW_NS) {
			c->window_ns = now;
			c->doorbells = 0;
		}
		if (++c->doorbells > SPURIOUS_MAX) {
			cool(b, c);
			ring_flags(&c->ring, c->ring.flags | ONEBIT_SQ_NEED_WAKEUP);
			c->muted = true;
			c->rest_ns *= 2; /* a second without a rest makes it a first offence again */
			if (!c->rest_ns || now - c->muted_until > 1000000000ull)
				c->rest_ns = SPURIOUS_REST_NS;
			if (c->rest_ns > SPURIOUS_REST_MAX)
				c->rest_ns = SPURIOUS_REST_MAX;
			c->muted_until = now + c->rest_ns;
			b->n_muted++;
			if (c->muted_until < b->unmute_at)
				b->unmute_at = c->muted_until;
			b->s.env.mute_client(b->s.env.ctx, client, true);
			return;
		}
	}
	client_heat(b, client);
}

/* ---- executor -------------------------------------------------------------------------------- */

void broker_exec_doorbell(struct broker *b, unsigned link)
{
	(void)link;
	b->attention = true;
}

void broker_exec_exited(struct broker *b, unsigned link, int status)
{
	broker_now(b);
	link_exited(b, link, status);
	b->attention = true;
}

/* ---- turns ----------------------------------------------------------------------------------- */

static void expire(struct broker *b)
{
	b->next_deadline = UINT64_MAX;
	for (uint32_t i = 0; i < b->policy.max_requests; i++) {
		struct request *r = &b->requests[i];

		if (r->state == REQUEST_FREE || r->client == NONE || r->deadline_ns == UINT64_MAX)
			continue;
		if (r->deadline_ns <= b->now)
			request_end(b, r, ONEBIT_E_DEADLINE, 0, r->deadline_ms, 0);
		else if (r->deadline_ns < b->next_deadline)
			b->next_deadline = r->deadline_ns;
	}
}

static void unmute(struct broker *b)
{
	b->unmute_at = UINT64_MAX;
	for (uint32_t i = 0; i < b->policy.max_clients && b->n_muted; i++) {
		struct client *c = &b->clients[i];

		if (c->state != CLIENT_ATTACHED || !c->muted)
			continue;
		if (c->muted_until > b->now) {
			if (c->muted_until < b->unmute_at)
				b->unmute_at = c->muted_until;
			continue;
		}
		c->muted = false;
		c->doorbells = SPURIOUS_MAX - SPURIOUS_PAROLE;
		c->window_ns = b->now;
		b->n_muted--;
		b->s.env.mute_client(b->s.env.ctx, i, false);
		client_heat(b, i); /* it may have rung meanwhile */
	}
}

static void write_stats(struct broker *b)
{
	const uint64_t *from = (const uint64_t *)&b->stats;
	uint64_t *to = (uint64_t *)b->s.stats;
	uint32_t seq = b->stats.seq;

	b->stats_ns = b->now;
	if (!to)
		return;
	broker_stats(b);
	/* A sequence lock: odd while we write. The page is read-only for everybody else. */
	b->s.stats->size = sizeof(b->stats);
	__atomic_store_n(&b->s.stats->seq, seq + 1, __ATOMIC_RELAXED);
	onebit_fence();
	for (size_t i = 1; i < sizeof(b->stats) / 8; i++) /* word 0 is size and seq */
		__atomic_store_n(&to[i], from[i], __ATOMIC_RELAXED);
	b->stats.seq = seq + 2;
	__atomic_store_n(&b->s.stats->seq, b->stats.seq, __ATOMIC_RELEASE);
}

const struct onebit_stats *broker_stats(struct broker *b)
{
	struct onebit_stats *s = &b->stats;
	const struct link *l = b->active == LINK_NONE ? NULL : &b->link[b->active];

	s->uptime_ms = (b->now - b->start_ns) / 1000000;
	s->state = broker_state(b);
	s->executor_state = !l ? ONEBIT_EXEC_NONE :
			    l->state == LINK_READY ? ONEBIT_EXEC_READY :
			    l->state == LINK_STARTING ? ONEBIT_EXEC_STARTING : ONEBIT_EXEC_BACKOFF;
	s->model_generation = b->model_generation;
	s->queued = b->n_waiting;
	s->running = 0;
	s->suspects = 0;
	for (unsigned i = 0; i < LINKS; i++) {
		s->running += b->link[i].n_running;
		s->suspects += b->link[i].waiting_suspects + (b->link[i].alone != NONE);
	}
	s->journal_bytes = b->journal.used;
	return s;
}

static void tell_all_state(struct broker *b)
{
	b->state_changed = false;
	for (uint32_t i = 0; i < b->policy.max_clients; i++)
		if (b->clients[i].state == CLIENT_ATTACHED)
			tell_state(b, &b->clients[i]);
}

bool broker_turn(struct broker *b)
{
	bool more = false;

	if (b->slept) {
		b->slept = false;
		broker_now(b);
		b->stats.loop_wakeups++;
	}
	for (uint32_t i = 0; i < b->n_hot;) {
		struct client *c = &b->clients[b->hot[i]];

		more |= drain(b, c);
		/* throw_out() put another client in this place */
		if (i < b->n_hot && &b->clients[b->hot[i]] == c)
			i++;
	}
	if (b->n_requests || b->attention || ++b->turns % CLOCK_EVERY == 0) {
		broker_now(b);
		b->attention = false;
		if (b->unmute_at <= b->now)
			unmute(b);
		if (b->next_deadline <= b->now)
			expire(b);
		for (unsigned i = 0; i < LINKS; i++) {
			link_run(b, i);
			more |= b->link[i].events_left;
		}
		if (b->state_changed)
			tell_all_state(b);
		if (b->now - b->stats_ns > STATS_EVERY_NS)
			write_stats(b);
	}
	publish(b);
	return more || b->attention;
}

void broker_cpu(struct broker *b, uint32_t cpu)
{
	if (cpu == b->cpu)
		return;
	b->cpu = cpu;
	for (uint32_t i = 0; i < b->n_hot; i++)
		tell_state(b, &b->clients[b->hot[i]]);
}

/*
 * Rings that were quiet for idle_ns leave the hot list, told to ring first; 0: all of them, and the
 * executors are told as well, for we are about to sleep. true: somebody has work after all.
 */
static bool go_cold(struct broker *b, uint64_t idle_ns)
{
	bool pending = false;

	for (uint32_t i = 0; i < b->n_hot; i++) {
		struct client *c = &b->clients[b->hot[i]];

		if (b->now - c->active_ns < idle_ns && !c->blocked)
			continue;
		ring_flags(&c->ring, ONEBIT_SQ_NEED_WAKEUP |
			   (c->blocked || c->n_held ? ONEBIT_SQ_STALLED : 0));
	}
	for (unsigned i = 0; i < LINKS && !idle_ns; i++)
		link_need_kick(b, i, true);
	/* Flags before rings; pairs with the fence between the others' marks and their look at the flag. */
	onebit_fence();
	for (uint32_t i = 0; i < b->n_hot;) {
		struct client *c = &b->clients[b->hot[i]];

		if (!(c->ring.flags & ONEBIT_SQ_NEED_WAKEUP)) {
			i++;
			continue;
		}
		if (has_work(b, c)) {
			pending = true;
			c->active_ns = b->now;
			ring_flags(&c->ring, 0);
			i++;
		} else {
			cool(b, c);
		}
	}
	return pending;
}

static void cpu_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb");
#endif
}

/*
 * Look at the hot rings and the links a while, and at nothing else. A ring with something in it is
 * served on the spot, by the same drain() and publish() as in a turn: this is the shortest way from
 * an SQE to its CQE. The rest of what it brought about is the next turn's.
 */
static void spin(struct broker *b)
{
	bool more;

	if (++b->turns % COLD_EVERY == 0)
		go_cold(b, COLD_AFTER_NS);
	for (uint32_t look = 0; look < SPIN_LOOKS; look++) {
		for (uint32_t i = 0; i < b->n_hot; i++) {
			struct client *c = &b->clients[b->hot[i]];

			if (!ring_poll(&c->ring))
				continue;
			more = drain(b, c);
			publish(b);
			if (more || b->attention || b->n_requests)
				return;
		}
		for (unsigned i = 0; i < LINKS; i++)
			if (link_pending(b, i)) {
				b->attention = true;
				return;
			}
		cpu_pause();
	}
	broker_now(b);
}

bool broker_sleep(struct broker *b, uint64_t *until_ns)
{
	bool pending;

	if (b->attention)
		return false;
	/* From now, not from when it was noted: a turn over many rings may take longer than a spin. */
	if (b->spin_ns) {
		b->spin_until = broker_now(b) + b->spin_ns;
		b->spin_ns = 0;
	}
	if (b->now < b->spin_until) {
		spin(b);
		return false;
	}
	pending = go_cold(b, 0);
	for (unsigned i = 0; i < LINKS; i++)
		if (link_pending(b, i))
			pending = b->attention = true;
	if (pending)
		return false;
	write_stats(b);
	*until_ns = b->next_deadline;
	for (unsigned i = 0; i < LINKS; i++) {
		uint64_t t = link_until(b, i);

		if (t < *until_ns)
			*until_ns = t;
	}
	if (b->unmute_at < *until_ns)
		*until_ns = b->unmute_at;
	if (*until_ns != UINT64_MAX)
		b->attention = true; /* whatever wakes us, look at the timers */
	b->slept = true;
	return true;
}

/* ---- administration -------------------------------------------------------------------------- */

void broker_policy(struct broker *b, const struct policy *p, const char *config_text)
{
	struct policy n = *p;

	/* Sizes of what was allocated stay. */
	n.max_clients = b->policy.max_clients;
	n.max_requests = b->policy.max_requests;
	n.journal_bytes = b->policy.journal_bytes;
	b->policy = n;
	b->config_text = config_text;
	b->attention = true;
}

void broker_drain(struct broker *b)
{
	b->draining = true;
	b->state_changed = true;
	b->attention = true;
}

bool broker_is_drained(const struct broker *b)
{
	if (!b->draining || b->n_requests)
		return false;
	for (unsigned i = 0; i < LINKS; i++)
		if (b->link[i].state != LINK_IDLE)
			return false;
	return true;
}

int broker_serving(const struct broker *b)
{
	return b->active != LINK_NONE && b->link[b->active].hello.version ? b->active : LINK_NONE;
}

bool broker_is_healthy(const struct broker *b)
{
	uint64_t now = b->s.env.now_ns(b->s.env.ctx);

	for (unsigned i = 0; i < LINKS; i++) {
		const struct link *l = &b->link[i];

		if (!l->n_running || l->state != LINK_READY)
			continue;
		/* Twice the deadline: once it passes, the link is given up and replaced. */
		if (link_until(b, i) +
		    b->policy.progress_ms * 1000000ull < now)
			return false;
	}
	return true;
}

/* SPDX-License-Identifier: MIT */
/*
 * Clients of a simulated run. A well-behaved one keeps to onebit.h to the letter, so that whatever
 * it misses is the daemon's fault; it may still rest, never reap in time, or die at any step. A
 * hostile one writes junk wherever it may.
 */
#include "lib_sim.h"

#include <stdlib.h>
#include <string.h>

#include "onebit_ring.h"

static uint32_t *word(uint8_t *region, uint32_t off)
{
	return (uint32_t *)(void *)(region + off);
}

static struct onebit_sqe *sqe_at(const struct sim_client *c, uint32_t index)
{
	return (struct onebit_sqe *)(void *)(c->client + c->w.sqes_off) +
	       onebit_slot(index, c->w.sq_entries);
}

static void mark(const struct sim_client *c, uint32_t index)
{
	onebit_store_release(&sqe_at(c, index)->seq, onebit_seq(index));
}

uint32_t sim_client_waiting(const struct sim_client *c)
{
	const struct onebit_cqe *cqes = (const void *)(c->daemon + c->w.cqes_off);
	uint32_t n;

	for (n = 0; n < c->w.cq_entries; n++) {
		uint32_t i = c->cq_head + n;
		const void *at = &cqes[onebit_slot(i, c->w.cq_entries)].flags;

		if (!onebit_phase_is(onebit_load_acquire(at), i, c->w.cq_entries))
			break;
	}
	return n;
}

uint32_t sim_client_futex(const struct sim_client *c)
{
	return onebit_load_relaxed(word(c->daemon, c->w.futex_off));
}

static struct onebit_wake *wake_of(const struct sim_client *c)
{
	return (struct onebit_wake *)(void *)(c->client + c->w.wake_off);
}

static uint32_t flags_of(const struct sim_client *c)
{
	return ((struct onebit_state *)(void *)(c->daemon + c->w.state_off))->flags;
}

struct sim_request *sim_client_find(struct sim_client *c, uint64_t user_data)
{
	for (uint32_t i = 0; i < SIM_REQUESTS; i++)
		if (c->r[i].used && c->r[i].sqe.user_data == user_data)
			return &c->r[i];
	return NULL;
}

void sim_client_forget(struct sim *s, struct sim_client *c)
{
	if (c->state != SIM_ABSENT)
		s->by_id[c->id] = 0;
	free(c->client);
	free(c->daemon);
	c->client = c->daemon = NULL;
	c->state = SIM_ABSENT;
	c->n_unfinished = 0;
	memset(c->r, 0, sizeof(c->r));
	c->at = s->finishing ? SIM_NEVER : s->now + sim_below(s, 20000000);
}

void sim_client_hangup(struct sim *s, struct sim_client *c)
{
	sim_trace(s, "client %u hangs up", c->id);
	s->asleep = s->sleepy = false;
	broker_detach(s->b, c->id);
	sim_client_forget(s, c);
}

static void attach(struct sim *s, struct sim_client *c)
{
	struct onebit_hello h = {
		.magic = ONEBIT_MAGIC, .size = sizeof(h), .abi_major = ONEBIT_ABI_MAJOR,
		.features_wanted = ONEBIT_FEAT_NOTIFY | ONEBIT_FEAT_RESUME,
		.sq_entries = ONEBIT_SQ_ENTRIES_MIN << sim_below(s, 5), .arena_bytes = SIM_REQUESTS * SIM_ARENA_SLOT,
	};
	struct onebit_error why;
	struct attach a;
	uint64_t features;
	uint32_t id;
	int err;

	if (s->finishing) {
		c->at = SIM_NEVER;
		return;
	}
	if (sim_chance(s, 50))
		h.features_wanted |= ONEBIT_FEAT_INLINE;
	if (s->k.spin)
		h.features_wanted |= ONEBIT_FEAT_SPIN;
	if (c->uid == 7)
		h.features_wanted |= ONEBIT_FEAT_ADMIN | ONEBIT_FEAT_TENANT;
	c->out_slot = 2048u << sim_below(s, 4);
	h.out_bytes = SIM_REQUESTS * c->out_slot;
	if (sim_chance(s, 30))
		h.cq_entries = h.sq_entries * (2u << sim_below(s, 3));
	s->asleep = s->sleepy = false;
	if (attach_parse(&h, sizeof(h), &a, &why)) {
		sim_fail(s, "a valid hello was refused: %s", why.text);
		return;
	}
	c->at = s->now + sim_below(s, 10000000);
	err = broker_admit(s->b, c->uid, &a, &id, &features, &why);
	if (err) {
		if (why.code != ONEBIT_E_CLIENTS_FULL && why.code != ONEBIT_E_Q_CLIENTS &&
		    why.code != ONEBIT_E_Q_BYTES)
			sim_fail(s, "admission was refused: %s", why.text);
		return;
	}
	if (id >= CLIENTS_CEILING || s->by_id[id]) {
		sim_fail(s, "client id %u was given twice", id);
		return;
	}
	if (sim_chance(s, 3)) { /* half-open: gone before the welcome */
		broker_detach(s->b, id);
		return;
	}
	if (features & ~h.features_wanted)
		sim_fail(s, "features were granted that were not wanted");
	c->client = calloc(1, a.client_bytes);
	c->daemon = calloc(1, a.daemon_bytes);
	if (!c->client || !c->daemon) {
		sim_fail(s, "no memory");
		return;
	}
	s->by_id[id] = (uint8_t)(c - s->c + 1);
	c->id = id;
	c->state = SIM_LIVE;
	c->step = SIM_THINK;
	c->broken = c->muted = c->doorbell = c->rang = false;
	c->cut.set = false;
	c->nervous = s->k.hostile && sim_chance(s, 30);
	c->admin_right = features & ONEBIT_FEAT_ADMIN;
	c->wake_kind = sim_chance(s, 50) ? ONEBIT_WAKE_FUTEX : ONEBIT_WAKE_NOTIFY;
	memset(&c->w, 0, sizeof(c->w));
	broker_attach(s->b, id, c->client, c->daemon, &c->w);
	c->sq_tail = c->sq_told = c->cq_head = *word(c->daemon, c->w.sq_head_off);
	c->futex_woken = sim_client_futex(c);
	if (c->w.client_bytes != a.client_bytes || c->w.daemon_bytes != a.daemon_bytes ||
	    c->w.arena_bytes != h.arena_bytes || c->w.out_bytes != h.out_bytes ||
	    c->w.sq_entries != h.sq_entries || c->w.cq_entries < 2 * h.sq_entries)
		sim_fail(s, "the welcome does not fit the hello");
	sim_trace(s, "client %u attached, uid %u, %u entries%s", id, c->uid, h.sq_entries,
		  c->hostile ? ", hostile" : "");
}

/* After the daemon has taken an SQE its arena range is ours again. */
static void scribble(struct sim *s, struct sim_client *c)
{
	uint32_t head = onebit_load_acquire(word(c->daemon, c->w.sq_head_off));

	for (uint32_t i = 0; i < SIM_REQUESTS; i++) {
		struct sim_request *r = &c->r[i];

		if (!r->used || r->scribbled || (int32_t)(head - r->index) <= 0)
			continue;
		r->scribbled = true;
		memset(c->client + c->w.arena_off + i * SIM_ARENA_SLOT, (int)sim_below(s, 256),
		       SIM_ARENA_SLOT);
	}
}

static bool submit(struct sim *s, struct sim_client *c)
{
	uint32_t n, i, head = onebit_load_acquire(word(c->daemon, c->w.sq_head_off));

	for (n = 1 + sim_below(s, 4); n && s->ops_left; n--) {
		for (i = 0; i < SIM_REQUESTS && c->r[i].used; i++)
			;
		if (i == SIM_REQUESTS || onebit_distance(head, c->sq_tail) >= c->w.sq_entries)
			break;
		sim_ask(s, c, &c->r[i]);
		c->r[i].used = true;
		c->r[i].submitted_ns = s->now;
		c->r[i].deaths_then = s->deaths;
		c->r[i].world_deaths_then = s->world_deaths;
		c->r[i].index = c->sq_tail;
		*sqe_at(c, c->sq_tail) = c->r[i].sqe;
		sqe_at(c, c->sq_tail)->seq = ~onebit_seq(c->sq_tail); /* not there yet */
		c->sq_tail++;
		c->n_unfinished++;
		s->ops_left--;
	}
	c->sq_marked = c->sq_tail;
	return c->sq_tail != c->sq_told;
}

/* One mark a step, the newest first, so that the daemon sees each stage. */
static bool mark_next(struct sim_client *c)
{
	mark(c, --c->sq_marked);
	if (c->sq_marked != c->sq_told)
		return true;
	c->sq_told = c->sq_tail;
	return false;
}

static bool reap(struct sim *s, struct sim_client *c)
{
	struct onebit_cqe *cqes = (struct onebit_cqe *)(void *)(c->daemon + c->w.cqes_off);
	uint32_t n = sim_client_waiting(c);

	sim_check_cq(s, c);
	if (!n || s->failure[0])
		return false;
	n = 1 + sim_below(s, n);
	while (n-- && !s->failure[0]) {
		sim_check_cqe(s, c, &cqes[onebit_slot(c->cq_head, c->w.cq_entries)]);
		c->cq_head++;
	}
	onebit_store_release(word(c->client, c->w.cq_head_off), c->cq_head);
	return true;
}

/* Junk in all that a client may write, and a doorbell that means nothing. */
static void be_hostile(struct sim *s, struct sim_client *c)
{
	uint32_t i, n = 1 + sim_below(s, 64), head;

	for (i = 0; i < n; i++)
		*word(c->client, 4 * sim_below(s, c->w.client_bytes / 4)) =
			sim_chance(s, 50) ? (uint32_t)sim_random(s) : sim_below(s, 16);
	/* The junk in so many slots is there, in some others it is of another lap. */
	head = *word(c->daemon, c->w.sq_head_off);
	n = sim_below(s, c->w.sq_entries + 1);
	for (i = 0; i < n; i++)
		mark(c, head + i);
	for (i = sim_below(s, 4); i; i--)
		mark(c, head + sim_below(s, 4 * c->w.sq_entries) - 2 * c->w.sq_entries);
	if (sim_chance(s, 30))
		c->cq_head += sim_client_waiting(c);
	/* Otherwise the index is junk, and when it is looked at that is the end. */
	*word(c->client, c->w.cq_head_off) = sim_chance(s, 95) ? c->cq_head : (uint32_t)sim_random(s);
	c->doorbell = c->rang = true;
	c->at = s->finishing ? SIM_NEVER : s->now + sim_below(s, sim_chance(s, 90) ? 50000 : 5000000);
}

/* NOPs without end, none reaped: the daemon must come to look at cq_head. */
static void press_on(struct sim *s, struct sim_client *c)
{
	uint32_t head = onebit_load_acquire(word(c->daemon, c->w.sq_head_off));

	while (onebit_distance(head, c->sq_tail) < c->w.sq_entries) {
		memset(sqe_at(c, c->sq_tail), 0, offsetof(struct onebit_sqe, seq));
		mark(c, c->sq_tail++);
	}
	c->doorbell = c->rang = true;
	c->at = s->now + sim_below(s, 1000000);
}

/* So far ahead that it stays ahead, whatever the daemon publishes before it looks. */
static void break_index(struct sim *s, struct sim_client *c)
{
	sim_trace(s, "client %u breaks its index", c->id);
	c->broken = true;
	c->broken_ns = s->now;
	onebit_store_release(word(c->client, c->w.cq_head_off),
			     c->cq_head + 2 * c->w.cq_entries + 1 + sim_below(s, 1000000));
	press_on(s, c);
}

static void think(struct sim *s, struct sim_client *c)
{
	if (c->hostile) {
		be_hostile(s, c);
		return;
	}
	if (c->broken && s->now - c->broken_ns < 1000000000) {
		press_on(s, c);
		return;
	}
	if (c->broken) {
		if (!c->muted)
			sim_fail(s, "client %u broke its index a second ago and is attached", c->id);
		c->state = SIM_DEAD;
		c->at = s->now;
		return;
	}
	if (!s->finishing && sim_below(s, 1000) < s->k.die_permille) {
		sim_trace(s, "client %u dies", c->id);
		c->state = SIM_DEAD;
		c->at = s->now + sim_below(s, 1000000);
		return;
	}
	if (!s->finishing && s->k.hostile && sim_below(s, 1000) < 3) {
		break_index(s, c);
		return;
	}
	if (!s->finishing && sim_below(s, 1000) < s->k.rest_permille) {
		c->step = SIM_RESTING;
		c->at = s->now + sim_below(s, 100000000);
		return;
	}
	if (c->nervous && !s->finishing)
		c->doorbell = c->rang = true; /* allowed, though it may be put aside for it */
	scribble(s, c);
	if (reap(s, c)) {
		c->step = SIM_REAPED;
		return;
	}
	if (s->ops_left && sim_chance(s, 50) && submit(s, c)) {
		c->step = SIM_MARKING;
		return;
	}
	c->woken = false;
	c->futex_seen = sim_client_futex(c);
	onebit_store_relaxed(&wake_of(c)->need, c->wake_kind);
	c->step = SIM_ARMED;
}

static void stay_awake(struct sim_client *c)
{
	onebit_store_relaxed(&wake_of(c)->need, 0);
	c->step = SIM_THINK;
}

/* After the last look at the CQ. What comes in between has left its trace, or is slept over. */
static void fall_asleep(struct sim *s, struct sim_client *c)
{
	bool stays = c->wake_kind == ONEBIT_WAKE_FUTEX ? sim_client_futex(c) != c->futex_seen
						       : c->woken; /* the message waits */

	if (stays) {
		stay_awake(c);
		return;
	}
	c->step = SIM_ASLEEP;
	c->woken = false; /* a FUTEX_WAKE before the sleep wakes nobody */
	c->at = SIM_NEVER;
	if (!s->finishing && (!c->n_unfinished || c->nervous || sim_chance(s, 30)))
		c->at = s->now + sim_below(s, c->nervous ? 20000 : 5000000);
}

bool sim_client_ready(const struct sim *s, const struct sim_client *c)
{
	return c->state != SIM_DEAD && c->at <= s->now;
}

/* The dead are the broker's to hear of; that time counts as well. */
uint64_t sim_client_time(const struct sim_client *c)
{
	return c->at;
}

void sim_client_step(struct sim *s, struct sim_client *c)
{
	if (c->state == SIM_ABSENT) {
		attach(s, c);
		return;
	}
	switch (c->step) {
	case SIM_THINK:
		think(s, c);
		break;
	case SIM_MARKING:
		if (!mark_next(c))
			c->step = SIM_PUBLISHED;
		break;
	case SIM_PUBLISHED:
		if (flags_of(c) & ONEBIT_SQ_NEED_WAKEUP)
			c->doorbell = c->rang = true;
		c->step = SIM_THINK;
		break;
	case SIM_REAPED:
		if (flags_of(c) & ONEBIT_SQ_STALLED)
			c->doorbell = c->rang = true;
		c->step = SIM_THINK;
		break;
	case SIM_ARMED:
		if (sim_client_waiting(c))
			stay_awake(c);
		else
			c->step = SIM_LOOKED;
		break;
	case SIM_LOOKED:
		fall_asleep(s, c);
		break;
	case SIM_ASLEEP:
	case SIM_RESTING:
		stay_awake(c);
		break;
	}
}

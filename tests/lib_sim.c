/* SPDX-License-Identifier: MIT */
/* Time, scheduling and the broker's environment of a simulated run; see lib_sim.h. */
#include "lib_sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "onebit_ring.h"

#define STEPS_MAX 3000000ull
#define TIME_MAX_NS 900000000000ull /* virtual; START_DEADLINE_NS may pass several times */
#define RUN_MAX_NS 120000000000ull
#define SETTLE_NS 60000000000ull /* for the last things to come back, virtual */

/* ---- chance ---- */

uint64_t sim_random(struct sim *s)
{
	uint64_t x = s->rng += 0x9e3779b97f4a7c15u; /* splitmix64 */

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

uint32_t sim_below(struct sim *s, uint32_t n)
{
	return (uint32_t)((sim_random(s) >> 32) * n >> 32);
}

bool sim_chance(struct sim *s, uint32_t percent)
{
	return sim_below(s, 100) < percent;
}

void sim_fail(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (s->failure[0])
		return;
	va_start(ap, fmt);
	vsnprintf(s->failure, sizeof(s->failure), fmt, ap);
	va_end(ap);
}

void sim_trace(struct sim *s, const char *fmt, ...)
{
	va_list ap;

	if (!s->trace)
		return;
	fprintf(stderr, "%12.6f ", (double)s->now / 1e6);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

void sim_swarm(uint64_t seed, struct sim_knobs *k)
{
	static struct sim s; /* only its generator is used */

	s.rng = seed * 0x2545f4914f6cdd1du + 1;
	memset(k, 0, sizeof(*k));
	k->clients = 1 + sim_below(&s, SIM_CLIENTS);
	k->ops = 20 + sim_below(&s, 150);
	k->slots = 1 + sim_below(&s, sim_chance(&s, 50) ? 4 : EXEC_SLOTS_MAX);
	k->delay_ns = sim_chance(&s, 30) ? 0 : sim_below(&s, 2000000);
	k->generate_percent = 20 + sim_below(&s, 70);
	if (sim_chance(&s, 15))
		k->kill_every = 100 + sim_below(&s, 1000);
	if (sim_chance(&s, 60))
		k->die_permille = 1 + sim_below(&s, 20);
	if (sim_chance(&s, 50))
		k->rest_permille = 5 + sim_below(&s, 100);
	if (sim_chance(&s, 40))
		k->exec_kills = 1 + sim_below(&s, 6);
	if (sim_chance(&s, 20))
		k->start_fail_percent = sim_chance(&s, 15) ? 100 : 10 + sim_below(&s, 60);
	if (sim_chance(&s, 60))
		k->directive_percent = 2 + sim_below(&s, 20);
	if (sim_chance(&s, 40))
		k->poison_percent = 10 + sim_below(&s, 40);
	if (sim_chance(&s, 60))
		k->cancel_percent = 5 + sim_below(&s, 30);
	if (sim_chance(&s, 30))
		k->deadline_percent = 5 + sim_below(&s, 50);
	if (sim_chance(&s, 50))
		k->bad_percent = 2 + sim_below(&s, 20);
	if (sim_chance(&s, 30))
		k->small_percent = 5 + sim_below(&s, 30);
	k->admin = sim_chance(&s, 25);
	k->reload = sim_chance(&s, 25);
	k->hostile = sim_chance(&s, 25);
	k->spin = sim_chance(&s, 25);
	k->no_executor = sim_chance(&s, 3);
	k->tight = sim_chance(&s, 30);
	k->drain_busy = sim_chance(&s, 30);
}

void sim_model_id(int model, uint8_t id[32])
{
	memset(id, 0x11 * (model + 1), 32);
}

int sim_model_of(const uint8_t id[32])
{
	uint8_t other[32];

	for (int i = 0; i < SIM_MODELS; i++) {
		sim_model_id(i, other);
		if (!memcmp(id, other, 32))
			return i;
	}
	return -1;
}

/* ---- the broker's environment ---- */

static uint64_t env_now(void *ctx)
{
	return ((struct sim *)ctx)->now;
}

static uint64_t env_time(void *ctx)
{
	return 1700000000 + ((struct sim *)ctx)->now / 1000000000;
}

static struct sim_client *client_by_id(struct sim *s, uint32_t id)
{
	return id < CLIENTS_CEILING && s->by_id[id] ? &s->c[s->by_id[id] - 1] : NULL;
}

static void env_wake_client(void *ctx, uint32_t id, uint32_t need)
{
	struct sim *s = ctx;
	struct sim_client *c = client_by_id(s, id);

	if (!c) {
		sim_fail(s, "woke client %u, which is not attached", id);
		return;
	}
	if (!need || (need & ~(ONEBIT_WAKE_FUTEX | ONEBIT_WAKE_NOTIFY)))
		sim_fail(s, "woke client %u with need %#x", id, need);
	if ((need & ONEBIT_WAKE_FUTEX) && sim_client_futex(c) == c->futex_woken)
		sim_fail(s, "client %u was woken by a futex word that had not changed", id);
	c->futex_woken = sim_client_futex(c);
	if (c->state != SIM_LIVE || c->woken)
		return;
	c->woken = true;
	if (c->step == SIM_ASLEEP) /* late, sometimes */
		c->at = s->now + (sim_chance(s, 50) ? 0 : sim_below(s, 1000000));
}

static void env_close_client(void *ctx, uint32_t id, const struct onebit_error *why)
{
	struct sim *s = ctx;
	struct sim_client *c = client_by_id(s, id);

	if (!c) {
		sim_fail(s, "closed client %u, which is not attached", id);
		return;
	}
	sim_trace(s, "client %u closed by the daemon: %s", id, why->text);
	if (why->code == ONEBIT_E_BAD_INDEX ? !c->broken && !c->hostile :
	    !(why->code == ONEBIT_E_EVICTED && (s->k.reload || s->draining)))
		sim_fail(s, "client %u was closed without cause: %s", id, why->text);
	sim_client_forget(s, c);
}

static void env_mute_client(void *ctx, uint32_t id, bool mute)
{
	struct sim *s = ctx;
	struct sim_client *c = client_by_id(s, id);

	if (!c) {
		sim_fail(s, "muted client %u, which is not attached", id);
		return;
	}
	c->muted = mute;
	/* Nobody reads the counter, so listening again finds it readable if it was ever written. */
	if (!mute && c->rang)
		c->doorbell = true;
}

static void env_reload(void *ctx)
{
	((struct sim *)ctx)->reload_asked = true;
}

static void env_log(void *ctx, enum broker_log level, const char *line)
{
	(void)level;
	sim_trace(ctx, "log: %s", line);
}

/* ---- the world ---- */

static void make_policy(struct sim *s)
{
	struct policy *p = &s->policy;

	policy_defaults(p);
	p->max_clients = s->k.tight ? 2 + sim_below(s, SIM_CLIENTS) : 64;
	p->max_requests = s->k.tight ? 4 + sim_below(s, 60) : 256;
	p->journal_bytes = JOURNAL_BYTES_MIN << (s->k.tight ? 0 : 2);
	p->max_tokens = 16384;
	p->default_tokens = 1 + sim_below(s, 100);
	p->progress_ms = 300 + sim_below(s, 1000);
	p->drain_ms = 600000;
	p->limits.spin_ns = s->k.spin ? sim_below(s, 50000) : 0;
	if (s->k.tight) {
		if (sim_chance(s, 50))
			p->limits.max_clients = 1 + sim_below(s, 4);
		if (sim_chance(s, 50))
			p->limits.max_inflight = 1 + sim_below(s, 16);
		if (sim_chance(s, 30))
			p->limits.max_queued_bytes = 1000 + sim_below(s, 20000);
		if (sim_chance(s, 30))
			p->limits.tokens_per_second = 100 + sim_below(s, 20000);
	}
	p->n_overrides = 1; /* uid 7 is the administrator */
	p->overrides[0].uid = 7;
	p->overrides[0].limits = p->limits;
	p->overrides[0].limits.admin = true;
	p->overrides[0].limits.delegate = true;
}

static void be_unkind(struct sim *s)
{
	struct sim_exec *x = &s->exec[sim_below(s, LINKS)];

	s->next_world = s->now + sim_below(s, 200000000);
	if (s->kills_left && sim_chance(s, 50) &&
	    (x->state == SIM_EXEC_RUNNING || x->state == SIM_EXEC_STARTING)) {
		s->kills_left--;
		s->world_deaths++;
		if (sim_chance(s, 20)) {
			sim_trace(s, "executor %d gets stuck", (int)(x - s->exec));
			x->state = SIM_EXEC_STUCK;
			x->at = SIM_NEVER;
		} else {
			sim_exec_die(s, x, 9);
		}
	}
	if (s->k.reload && sim_chance(s, 20))
		s->reload_asked = true;
}

/* Something that the broker's loop would hear of. */
static bool has_news(const struct sim *s)
{
	uint32_t i;

	if (s->reload_asked)
		return true;
	for (i = 0; i < LINKS; i++)
		if (s->exec[i].doorbell ||
		    (s->exec[i].state == SIM_EXEC_DYING && s->exec[i].at <= s->now))
			return true;
	for (i = 0; i < SIM_CLIENTS; i++)
		if ((s->c[i].state == SIM_LIVE && s->c[i].doorbell && !s->c[i].muted) ||
		    (s->c[i].state == SIM_DEAD && s->c[i].at <= s->now))
			return true;
	return false;
}

/* Each piece of news reaches the core now or later. */
static void deliver(struct sim *s)
{
	uint32_t i;

	for (i = 0; i < LINKS; i++) {
		struct sim_exec *x = &s->exec[i];

		if (x->doorbell && sim_chance(s, 70)) {
			x->doorbell = false;
			broker_exec_doorbell(s->b, i);
		}
		if (x->state == SIM_EXEC_DYING && x->at <= s->now && sim_chance(s, 70)) {
			sim_trace(s, "executor %u exit heard, status %d", i, x->status);
			x->state = SIM_EXEC_NONE;
			x->doorbell = false;
			s->deaths++;
			broker_exec_exited(s->b, i, x->status);
		}
	}
	for (i = 0; i < SIM_CLIENTS; i++) {
		struct sim_client *c = &s->c[i];

		if (c->state == SIM_LIVE && c->doorbell && !c->muted && sim_chance(s, 70)) {
			c->doorbell = false;
			broker_doorbell(s->b, c->id);
		}
		if (c->state == SIM_DEAD && c->at <= s->now && sim_chance(s, 70))
			sim_client_hangup(s, c);
	}
	if (s->reload_asked && sim_chance(s, 70)) {
		s->reload_asked = false;
		if (s->k.tight)
			s->policy.limits.max_inflight = 1 + sim_below(s, 32);
		s->policy.default_tokens = s->policy.default_tokens; /* requests know it already */
		broker_policy(s->b, &s->policy, "reloaded = yes\n");
	}
}

/* Turn and sleep are two steps: what clients and executors do between them must not be missed. */
static void broker_step(struct sim *s)
{
	s->asleep = false;
	if (!s->sleepy) {
		deliver(s);
		s->sleepy = !s->failure[0] && !broker_turn(s->b);
		return;
	}
	s->sleepy = false;
	s->until = SIM_NEVER;
	s->asleep = broker_sleep(s->b, &s->until);
}

/* One step of somebody who can take one; false when nobody can before *next. */
static bool step(struct sim *s, uint64_t *next)
{
	enum { BROKER, EXEC, CLIENT = EXEC + LINKS, WORLD = CLIENT + SIM_CLIENTS, ACTORS };
	uint32_t ready[ACTORS], n = 0, i;
	uint64_t t;

	*next = SIM_NEVER;
#define READY(who, yes, time) do { \
		if (yes) \
			ready[n++] = (who); \
		else if ((t = (time)) < *next) \
			*next = t; \
	} while (0)
	READY(BROKER, !s->asleep || s->until <= s->now || has_news(s), s->until);
	for (i = 0; i < LINKS; i++)
		READY(EXEC + i, sim_exec_ready(s, &s->exec[i]), sim_exec_time(&s->exec[i]));
	for (i = 0; i < s->k.clients; i++)
		READY(CLIENT + i, sim_client_ready(s, &s->c[i]), sim_client_time(&s->c[i]));
	if (!s->finishing && (s->k.reload || s->kills_left))
		READY(WORLD, s->next_world <= s->now, s->next_world);
#undef READY
	if (!n)
		return false;
	i = ready[sim_below(s, n)];
	if (i == BROKER)
		broker_step(s);
	else if (i < CLIENT)
		sim_exec_step(s, &s->exec[i - EXEC]);
	else if (i < WORLD)
		sim_client_step(s, &s->c[i - CLIENT]);
	else
		be_unkind(s);
	if (s->asleep && !s->failure[0])
		sim_check_sleep(s); /* after every step: its sleep stays right until it is told */
	s->now += sim_below(s, 4000);
	return true;
}

static uint32_t count_unfinished(const struct sim *s)
{
	uint32_t i, n = 0;

	for (i = 0; i < s->k.clients; i++)
		if (s->c[i].state == SIM_LIVE && !s->c[i].hostile)
			n += s->c[i].n_unfinished;
	return n;
}

static uint32_t count_live(const struct sim *s, uint64_t *bytes)
{
	uint32_t i, n = 0;

	*bytes = 0;
	for (i = 0; i < s->k.clients; i++)
		if (s->c[i].state != SIM_ABSENT) {
			n++;
			*bytes += s->c[i].w.client_bytes + s->c[i].w.daemon_bytes;
		}
	return n;
}

static bool has_dead(const struct sim *s)
{
	for (uint32_t i = 0; i < s->k.clients; i++)
		if (s->c[i].state == SIM_DEAD)
			return true;
	return false;
}

/* Run until done() or failure; a world in which nobody will ever move again is one. */
static void run_until(struct sim *s, bool (*done)(struct sim *s), const char *what,
		      uint64_t time_max)
{
	uint64_t next, end = s->now + time_max;

	while (!s->failure[0] && !done(s)) {
		if (s->steps++ > STEPS_MAX || s->now > end) {
			sim_fail(s, "%s: no end after %llu steps, %.3f s", what,
				 (unsigned long long)s->steps, (double)s->now / 1e9);
			return;
		}
		if (step(s, &next))
			continue;
		if (next == SIM_NEVER) {
			sim_fail(s, "%s: everybody sleeps for ever, %u requests unfinished", what,
				 count_unfinished(s));
			return;
		}
		s->now = next;
	}
}

static bool ops_are_spent(struct sim *s)
{
	/* Where nobody may attach, nothing is asked for. */
	return !s->ops_left || s->now > RUN_MAX_NS;
}

static bool all_finished(struct sim *s)
{
	return !count_unfinished(s) && !has_dead(s);
}

static bool is_settled(struct sim *s)
{
	const struct onebit_stats *st = broker_stats(s->b);

	return !st->queued && !st->running && !st->journal_bytes;
}

static bool is_drained(struct sim *s)
{
	return broker_is_drained(s->b);
}

static void check_gauges(struct sim *s, const char *when)
{
	const struct onebit_stats *st = broker_stats(s->b);
	uint64_t bytes;
	uint32_t n = count_live(s, &bytes);

	if (st->clients != n || st->bytes != bytes)
		sim_fail(s, "%s: the daemon counts %u clients with %llu bytes, there are %u with "
			 "%llu", when, st->clients, (unsigned long long)st->bytes, n,
			 (unsigned long long)bytes);
	if (st->queued || st->running || st->journal_bytes)
		sim_fail(s, "%s: queued %u, running %u, journal %llu bytes", when, st->queued,
			 st->running, (unsigned long long)st->journal_bytes);
	if (!broker_is_healthy(s->b))
		sim_fail(s, "%s: nothing is in flight and the daemon says it is not healthy", when);
}

static void finish(struct sim *s)
{
	uint32_t i;

	s->finishing = true;
	if (!s->k.drain_busy) {
		/* A junk writer never finishes anything; its memory goes here. */
		for (i = 0; i < s->k.clients; i++)
			if (s->c[i].state == SIM_LIVE && s->c[i].hostile) {
				s->c[i].state = SIM_DEAD;
				s->c[i].at = s->now;
			}
		run_until(s, all_finished, "finishing", TIME_MAX_NS);
		run_until(s, is_settled, "settling", SETTLE_NS);
		if (!s->failure[0])
			check_gauges(s, "when all was done");
	}
	if (s->failure[0])
		return;
	sim_trace(s, "drain");
	s->draining = true;
	s->asleep = s->sleepy = false;
	broker_drain(s->b);
	run_until(s, is_drained, "draining", TIME_MAX_NS);
	run_until(s, all_finished, "reaping after the drain", SETTLE_NS);
	if (s->failure[0])
		return;
	for (i = 0; i < LINKS; i++)
		if (s->exec[i].state != SIM_EXEC_NONE)
			sim_fail(s, "drained, and executor %u lives", i);
	for (i = 0; i < s->k.clients; i++)
		if (s->c[i].state != SIM_ABSENT)
			sim_client_hangup(s, &s->c[i]);
	check_gauges(s, "after the drain");
}

int sim_run(struct sim *s, uint64_t seed, const struct sim_knobs *k, bool trace)
{
	struct broker_setup setup = {
		.env = {
			.ctx = s, .now_ns = env_now, .time_s = env_time,
			.wake_client = env_wake_client, .close_client = env_close_client,
			.mute_client = env_mute_client, .exec_memory = sim_exec_memory,
			.exec_start = sim_exec_start, .exec_kill = sim_exec_kill,
			.exec_wake = sim_exec_wake, .reload = env_reload, .log = env_log,
		},
		.stats = &s->page, .epoch = 42, .config_text = "simulated = yes\n",
	};
	uint32_t i;

	memset(s, 0, sizeof(*s));
	s->seed = seed;
	s->rng = seed;
	s->k = *k;
	s->trace = trace;
	s->now = 1000000000;
	s->ops_left = k->ops;
	s->kills_left = k->exec_kills;
	s->next_world = s->now + sim_below(s, 100000000);
	make_policy(s);
	setup.policy = s->policy;
	setup.has_executor = !k->no_executor;
	s->journal = calloc(1, s->policy.journal_bytes);
	setup.journal = s->journal;
	for (i = 0; i < SIM_CLIENTS; i++) {
		s->c[i].at = s->now + sim_below(s, 20000000);
		s->c[i].hostile = k->hostile && i == 0 && k->clients > 1;
		s->c[i].uid = i == 1 ? 7 : 1000 + sim_below(s, 3);
	}
	for (i = 0; i < LINKS; i++)
		s->exec[i].sim = s;
	s->b = s->journal ? broker_new(&setup) : NULL;
	if (!s->b)
		sim_fail(s, "no memory");
	else
		run_until(s, ops_are_spent, "running", TIME_MAX_NS);
	if (!s->failure[0])
		finish(s);
	for (i = 0; i < SIM_CLIENTS; i++)
		sim_client_forget(s, &s->c[i]);
	/* After a failure the core may hold things: it would assert, and hide what went wrong. */
	if (!s->failure[0])
		s->b = broker_free(s->b);
	for (i = 0; i < LINKS; i++)
		sim_exec_free(&s->exec[i]);
	free(s->journal);
	return s->failure[0] ? -1 : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Executor processes of a simulated run: the loopback executor over memory of its own, started
 * late, killed at any step, stuck, or never coming up. A dead one's memory stays until the broker
 * asks for new, as the real launcher's does.
 */
#include "lib_sim.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "onebit_ring.h"

static void drop_memory(struct sim_exec *x)
{
	if (x->mem.broker)
		munmap(x->mem.broker, sizeof(*x->mem.broker));
	if (x->mem.own)
		munmap(x->mem.own, sizeof(*x->mem.own));
	memset(&x->mem, 0, sizeof(x->mem));
}

/* Zero pages that cost nothing until touched: the data area is 4 MiB. */
static void *pages(size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

int sim_exec_memory(void *ctx, unsigned link, struct exec_memory *mem)
{
	struct sim *s = ctx;
	struct sim_exec *x = &s->exec[link];

	if (x->state != SIM_EXEC_NONE)
		sim_fail(s, "new memory for executor %u, which is not dead", link);
	if (sim_chance(s, s->k.start_fail_percent / 4)) {
		s->deaths++; /* a start that led to nothing */
		return -12;
	}
	drop_memory(x);
	x->mem.broker = pages(sizeof(*x->mem.broker));
	x->mem.own = pages(sizeof(*x->mem.own));
	if (!x->mem.broker || !x->mem.own)
		sim_fail(s, "no memory");
	*mem = x->mem;
	return 0;
}

void sim_exec_start(void *ctx, unsigned link, uint32_t generation, const char *model)
{
	struct sim *s = ctx;
	struct sim_exec *x = &s->exec[link];

	if (x->state != SIM_EXEC_NONE)
		sim_fail(s, "executor %u started while it lives", link);
	if (s->k.no_executor)
		sim_fail(s, "an executor was started and none is configured");
	if (model)
		x->model = 1 + (int)(strlen(model) % (SIM_MODELS - 1));
	sim_trace(s, "executor %u starts, generation %u, model %d", link, generation, x->model);
	x->generation = generation;
	x->state = SIM_EXEC_STARTING;
	x->woken = x->doorbell = x->stop = false;
	x->at = s->now + (sim_chance(s, 5) ? 2000000000u : sim_below(s, 20000000));
}

void sim_exec_die(struct sim *s, struct sim_exec *x, int status)
{
	if (x->state == SIM_EXEC_DYING || x->state == SIM_EXEC_NONE)
		return;
	sim_trace(s, "executor %d dies, status %d", (int)(x - s->exec), status);
	x->state = SIM_EXEC_DYING;
	x->status = status;
	x->at = s->now + sim_below(s, 2000000);
	x->l = loopback_free(x->l);
}

void sim_exec_kill(void *ctx, unsigned link)
{
	struct sim *s = ctx;
	struct sim_exec *x = &s->exec[link];

	if (x->state == SIM_EXEC_NONE)
		sim_fail(s, "executor %u killed, and there is none", link);
	sim_exec_die(s, x, 9);
}

void sim_exec_wake(void *ctx, unsigned link)
{
	struct sim *s = ctx;
	struct sim_exec *x = &s->exec[link];

	if (x->state != SIM_EXEC_RUNNING || x->woken)
		return;
	x->woken = true;
	if (x->step == SIM_EXEC_ASLEEP) /* late, sometimes */
		x->at = s->now + (sim_chance(s, 60) ? 0 : sim_below(s, 500000));
}

static void fault(void *ctx, enum loopback_fault f)
{
	static const int status[] = {
		[LOOPBACK_EXIT] = 3 << 8, [LOOPBACK_ABORT] = 6, [LOOPBACK_KILL] = 9,
	};
	struct sim_exec *x = ctx;

	x->state = SIM_EXEC_STUCK;
	x->at = SIM_NEVER;
	x->status = f == LOOPBACK_HANG ? -1 : status[f];
}

bool sim_exec_ready(const struct sim *s, const struct sim_exec *x)
{
	return (x->state == SIM_EXEC_STARTING || x->state == SIM_EXEC_RUNNING) && x->at <= s->now;
}

uint64_t sim_exec_time(const struct sim_exec *x)
{
	return x->state == SIM_EXEC_NONE ? SIM_NEVER : x->at;
}

static void come_up(struct sim *s, struct sim_exec *x)
{
	struct loopback_options o = { .delay_ns = s->k.delay_ns, .slots = s->k.slots,
				      .kill_every = s->k.kill_every, .name = "simulated" };

	if (sim_chance(s, s->k.start_fail_percent)) {
		s->world_deaths++;
		sim_exec_die(s, x, sim_chance(s, 30) ? -12 : 1 << 8);
		return;
	}
	if (x->mem.broker->magic != EXEC_MAGIC || x->mem.broker->version != EXEC_VERSION ||
	    x->mem.broker->journal_bytes != s->policy.journal_bytes) {
		sim_fail(s, "the broker region lacks magic, version or journal size");
		return;
	}
	if (s->k.admin && sim_chance(s, 5)) { /* the file was replaced between two starts */
		x->model = (int)sim_below(s, SIM_MODELS);
		s->admin_used = true;
	}
	sim_model_id(x->model, o.model_id);
	executor_init(&x->e, x->mem.broker, x->mem.own, s->journal, s->policy.journal_bytes);
	x->l = loopback_new(&x->e, &o, fault, x);
	x->state = SIM_EXEC_RUNNING;
	x->step = SIM_STEP;
	x->told = x->e.event_tail;
}

/* loopback_main.c's loop, cut where another process could come between. */
static void run(struct sim *s, struct sim_exec *x)
{
	int stop = 0;

	switch (x->step) {
	case SIM_STEP:
		x->next = loopback_step(x->l, s->now, &stop);
		if (x->state == SIM_EXEC_STUCK) { /* a fault struck */
			sim_trace(s, "executor %d: fault", (int)(x - s->exec));
			if (s->k.kill_every && x->status == 9)
				s->world_deaths++;
			if (x->status >= 0)
				sim_exec_die(s, x, x->status);
			return;
		}
		x->stop = x->stop || stop;
		x->step = SIM_KICK;
		break;
	case SIM_KICK:
		if (x->told != x->e.event_tail) {
			x->told = x->e.event_tail;
			if (x->mem.broker->flags & EXEC_NEED_KICK)
				x->doorbell = true;
		}
		if (x->stop && s->k.exec_kills && sim_chance(s, 20)) {
			x->state = SIM_EXEC_STUCK; /* told to stop, and does not */
			x->at = SIM_NEVER;
			return;
		}
		if (x->stop) {
			sim_exec_die(s, x, 0);
			return;
		}
		x->step = SIM_SLEEPY;
		break;
	case SIM_SLEEPY:
		if (x->mem.own->need_wake == 0) {
			x->mem.own->need_wake = 1;
			break; /* the broker may come before we look at cmd_tail */
		}
		if (x->mem.broker->cmd_tail != x->e.cmd_head) {
			x->mem.own->need_wake = 0;
			x->step = SIM_STEP;
			break;
		}
		x->woken = false; /* a wake-up before the sleep wakes nobody */
		x->step = SIM_EXEC_ASLEEP;
		break;
	case SIM_EXEC_ASLEEP:
		x->mem.own->need_wake = 0;
		x->step = SIM_STEP;
		break;
	}
}

void sim_exec_step(struct sim *s, struct sim_exec *x)
{
	if (x->state == SIM_EXEC_STARTING) {
		come_up(s, x);
		return;
	}
	run(s, x);
	if (x->state == SIM_EXEC_RUNNING)
		x->at = x->step == SIM_EXEC_ASLEEP ? x->next : s->now;
}

void sim_exec_free(struct sim_exec *x)
{
	x->l = loopback_free(x->l);
	drop_memory(x);
}

/* SPDX-License-Identifier: MIT */
/*
 * When to spin and when to sleep. Two numbers from measurement rule here: waking a thread on another
 * CPU costs about 25 us, so a spin shorter than that only adds to it; and spinning on the CPU that
 * the daemon needs turns 4 us into 100. So ADAPTIVE spins only while the daemon is awake on another
 * CPU and recent waits were short enough for the budget, twice the cost of a wake-up.
 *
 * Sleeping is FUTEX_WAIT on the futex word, in the read-only map. A dead daemon wakes nobody, so a sleep is
 * cut into slices and the socket is looked at in between.
 */
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "lib_onebit.h"
#include "lib_text.h"

#define SLICE_NS       500000000ull /* how late a sleeper learns that the daemon was killed */
#define LOOK_NS        10000000ull  /* the same for one who spins or polls */
#define WAKE_GUESS_NS  25000ull     /* until there is a measurement */
#define BUDGET_MIN_NS  10000ull
#define BUDGET_MAX_NS  100000ull
/* Pauses (24 ns each) between looks at the clock: ADAPTIVE must notice soon that it is in the way. */
#define TURNS_ADAPTIVE 8u
#define TURNS_SPIN     64u

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
	__asm__ volatile("yield" ::: "memory");
#else
	__asm__ volatile("" ::: "memory");
#endif
}

void lib_wait_init(struct lib_wait *w, uint32_t how, uint32_t spin_us)
{
	*w = (struct lib_wait){ .how = how, .fixed_ns = spin_us * 1000ull, .wake_ns = WAKE_GUESS_NS };
}

uint64_t lib_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

uint64_t lib_deadline(int timeout_ms)
{
	if (timeout_ms < 0)
		return UINT64_MAX;
	return timeout_ms ? lib_now() + (uint64_t)timeout_ms * 1000000ull : 0;
}

void lib_sleep_until(uint64_t deadline_ns)
{
	struct timespec t = { .tv_sec = (time_t)(deadline_ns / 1000000000ull),
			      .tv_nsec = (long)(deadline_ns % 1000000000ull) };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

/* The plain question. */
static int ready(struct onebit *o)
{
	return lib_ring_cqe(&o->ring, 0) != NULL;
}

/* Is there still somebody at the other end? */
static int look(struct onebit *o, uint64_t now)
{
	int r;

	o->wait.looked_ns = now;
	r = lib_link_check(&o->link, &o->goodbye);
	if (!r && onebit_load_relaxed(&o->ring.state->state) == ONEBIT_STATE_DETACHED) {
		if (!o->goodbye.code)
			lib_error_code(&o->goodbye, ONEBIT_E_EVICTED, 0);
		r = -ECONNRESET;
	}
	if (r) {
		/* What it published before it went still counts. */
		int last = ready(o);

		return last ? last : r;
	}
	return 0;
}

static uint64_t budget(const struct lib_wait *w)
{
	uint64_t ns = w->fixed_ns ? w->fixed_ns : 2 * w->wake_ns;

	if (w->fixed_ns)
		return ns;
	return ns < BUDGET_MIN_NS ? BUDGET_MIN_NS : ns > BUDGET_MAX_NS ? BUDGET_MAX_NS : ns;
}

/* May the completion come while we keep this CPU? */
static bool daemon_runs_elsewhere(const struct lib_ring *r)
{
	__u32 cpu = onebit_load_relaxed(&r->state->cpu);

	return cpu && cpu != (__u32)sched_getcpu() + 1 &&
	       !(onebit_load_relaxed(&r->state->flags) & ONEBIT_SQ_NEED_WAKEUP);
}

/* ready()'s answers; 0 means that the budget is spent or that spinning helps nobody any more. */
static int spin_adaptive(struct onebit *o, uint64_t until)
{
	int r;

	while (daemon_runs_elsewhere(&o->ring)) {
		for (unsigned i = 0; i < TURNS_ADAPTIVE; i++) {
			r = ready(o);
			if (r)
				return r;
			cpu_relax();
		}
		if (lib_now() >= until)
			return 0;
	}
	return 0;
}

static int spin(struct onebit *o, uint64_t deadline)
{
	uint64_t now;
	int r;

	for (;;) {
		for (unsigned i = 0; i < TURNS_SPIN; i++) {
			r = ready(o);
			if (r)
				return r;
			cpu_relax();
		}
		onebit_fence();
		lib_ring_unstall(&o->ring);
		now = lib_now();
		if (now - o->wait.looked_ns >= LOOK_NS) {
			r = look(o, now);
			if (r)
				return r;
		}
		if (now >= deadline)
			return 0;
	}
}

static int futex_sleep(const __u32 *word, __u32 seen, uint64_t ns)
{
	struct timespec t = { .tv_sec = (time_t)(ns / 1000000000ull),
			      .tv_nsec = (long)(ns % 1000000000ull) };

	/* Not FUTEX_PRIVATE: the waker is another process. */
	return syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0) < 0 ? -errno : 0;
}

static int sleep_slice(struct onebit *o, uint64_t ns)
{
	struct lib_ring *ring = &o->ring;
	__u32 seen;
	int r;

	/*
	 * Pairs with the daemon's fence between publishing CQEs and reading need: either it sees
	 * that we sleep, or we see its CQE here.
	 */
	seen = onebit_load_relaxed(ring->futex_word);
	onebit_store_relaxed(&ring->wake->need, ONEBIT_WAKE_FUTEX);
	onebit_fence();
	r = ready(o);
	if (!r) {
		lib_ring_unstall(ring);
		r = futex_sleep(ring->futex_word, seen, ns);
		if (r == -EAGAIN)
			r = 0;
	}
	onebit_store_relaxed(&ring->wake->need, 0);
	return r;
}

static int sleep_until(struct onebit *o, uint64_t deadline)
{
	uint64_t now = deadline == UINT64_MAX ? 0 : lib_now(), ns;
	int r, cause;

	for (;;) {
		if (now >= deadline)
			return ready(o);
		ns = deadline - now < SLICE_NS ? deadline - now : SLICE_NS;
		cause = sleep_slice(o, ns);
		r = ready(o);
		if (r)
			return r;
		/* Woken without a CQE: the daemon has something to say, or time or a signal came. */
		now = lib_now();
		r = look(o, now);
		if (r)
			return r;
		if (cause == -EINTR)
			return -EINTR;
	}
}

/* The averages that ADAPTIVE decides by. */
static void learn(struct lib_wait *w, uint64_t ns, bool slept)
{
	w->usual_ns = w->usual_ns - w->usual_ns / 8 + ns / 8;
	if (!slept)
		return;
	/* The shortest sleeps are all wake-up; forget slowly, the machine's load changes. */
	w->wake_ns += w->wake_ns / 64 + 1;
	if (ns < w->wake_ns)
		w->wake_ns = ns;
	else if (w->wake_ns > BUDGET_MAX_NS)
		w->wake_ns = BUDGET_MAX_NS;
}

static int wait_adaptive(struct onebit *o, uint64_t deadline)
{
	struct lib_wait *w = &o->wait;
	uint64_t start = lib_now(), limit = budget(w);
	bool slept = false;
	int r = 0;

	if (w->usual_ns < limit)
		r = spin_adaptive(o, start + limit < deadline ? start + limit : deadline);
	if (!r) {
		slept = true;
		r = sleep_until(o, deadline);
	}
	if (r > 0)
		learn(w, lib_now() - start, slept);
	return r;
}

int lib_wait(struct onebit *o, uint64_t deadline)
{
	int r = ready(o);
	uint64_t now;

	if (r)
		return r;
	if (deadline) {
		if (o->wait.how == ONEBIT_WAIT_SPIN)
			return spin(o, deadline);
		if (o->wait.how == ONEBIT_WAIT_ADAPTIVE)
			return wait_adaptive(o, deadline);
		return sleep_until(o, deadline);
	}
	/* A program that polls would never sleep into the check for a dead daemon. */
	now = lib_now();
	if (now - o->wait.looked_ns < LOOK_NS)
		return 0;
	onebit_fence();
	lib_ring_unstall(&o->ring);
	return look(o, now);
}

int onebit_ring_wait(struct onebit *o, int timeout_ms)
{
	int r = lib_wait(o, lib_deadline(timeout_ms));

	if (r == -ECONNRESET) {
		if (o->goodbye.code)
			o->error = o->goodbye;
		else
			lib_error_local(&o->error, r, true, "the daemon is gone; open a new attachment");
	}
	return r == -EINTR ? 0 : r;
}

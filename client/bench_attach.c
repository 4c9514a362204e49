/* SPDX-License-Identifier: MIT */
/*
 * Attachments themselves: what it costs to get one, how soon the daemon notices that one died, and
 * what many of them that do nothing cost (nothing).
 */
#include <errno.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include "bench_row.h"

enum {
	SETTLE_US = 200,   /* the client that will be killed is asleep by then */
	LOST_NS = 2000000000,
	ATTACH_MS = 5000,
	IDLE_SETTLE_MS = 100, /* until the last work before has been forgotten */
};

static int open_failed(struct bench *b, int ret, const struct onebit_error *err)
{
	return bench_fail(b, ret, "cannot attach: %s",
			  err->text[0] ? err->text : strerror(-ret));
}

int bench_open(struct bench *b, struct onebit **o, uint32_t wait, uint64_t features)
{
	/* Areas as small as they can be: with 1,024 of them memory would be the measurement. */
	struct onebit_options options = {
		.size = sizeof(options),
		.socket = b->socket,
		.sq_entries = TPUT_DEPTH,
		.arena_bytes = ONEBIT_AREA_MIN,
		.out_bytes = ONEBIT_AREA_MIN,
		.wait = wait,
		.no_reconnect = 1,
		.features = features,
	};
	struct onebit_error err = { 0 };
	int ret = onebit_open(o, &options, &err);

	return ret < 0 ? open_failed(b, ret, &err) : 0;
}

int fleet_set(struct bench *b, unsigned n)
{
	struct onebit **more;
	int ret;

	if (n > b->n_fleet) {
		more = realloc(b->fleet, n * sizeof(*more));
		if (!more)
			return bench_fail(b, -ENOMEM, "no memory for %u attachments", n);
		b->fleet = more;
	}
	while (b->n_fleet < n) {
		ret = bench_open(b, &b->fleet[b->n_fleet], ONEBIT_WAIT_SLEEP, ONEBIT_FEAT_SPIN);
		if (ret) {
			char why[sizeof(b->why)];

			memcpy(why, b->why, sizeof(why));
			return bench_fail(b, ret, "attachment %u of %u: %.200s", b->n_fleet + 1, n,
					  why);
		}
		b->n_fleet++;
	}
	if (b->n_fleet > n) {
		while (b->n_fleet > n)
			onebit_close(b->fleet[--b->n_fleet]);
#ifdef __GLIBC__
		/* Else a forked victim inherits the heap of a thousand attachments, and takes a
		 * millisecond to die of it before the daemon can hear of its death. */
		malloc_trim(0);
#endif
	}
	return 0;
}

int attach_handshake(struct bench *b, const struct row *r, uint64_t ns, struct hist *h,
		     double *value)
{
	/* With the default areas, as a program would. */
	struct onebit_options options = {
		.size = sizeof(options),
		.socket = b->socket,
		.wait = ONEBIT_WAIT_SLEEP,
	};
	uint64_t t0 = bench_now(), end = t0 + ns, t1;
	struct onebit_error err = { 0 };
	struct onebit *o;
	int ret;

	(void)r;
	(void)value;
	while (t0 < end) {
		t0 = bench_now();
		ret = onebit_open(&o, &options, &err);
		t1 = bench_now();
		if (ret < 0)
			return open_failed(b, ret, &err);
		hist_add(h, t1 - t0, 1);
		onebit_close(o);
	}
	return 0;
}

static int read_stats(struct bench *b, struct onebit_stats *s)
{
	uint64_t end = bench_now() + LOST_NS;
	int ret;

	/* -EAGAIN: the daemon lost its CPU while it wrote the page, and gets it back some time. */
	do
		ret = onebit_stats_read(b->control, s);
	while (ret == -EAGAIN && bench_now() < end);
	if (ret < 0)
		return bench_fail(b, ret, "the daemon's stats page cannot be read: %s", strerror(-ret));
	return 0;
}

static int clients_now(struct bench *b, uint32_t *n)
{
	struct onebit_stats s;
	int ret = read_stats(b, &s);

	if (!ret)
		*n = s.clients;
	return ret;
}

static int clients_until(struct bench *b, uint32_t n)
{
	uint64_t end = bench_now() + LOST_NS;
	uint32_t now;
	int ret;

	do {
		ret = clients_now(b, &now);
		if (ret)
			return ret;
		if (now == n)
			return 0;
		bench_pause();
	} while (bench_now() < end);
	return bench_fail(b, -ETIMEDOUT, "the daemon counts %u clients where %u are expected", now, n);
}

static _Noreturn void be_victim(struct bench *b, int tell)
{
	cpu_set_t set = b->cpus;
	struct onebit *o;
	bool fine;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Not where the parent spins: there it would wait for its own death. */
	if (b->n_cpus > 1)
		CPU_CLR((size_t)b->cpu[0], &set);
	(void)sched_setaffinity(0, sizeof(set), &set);
	fine = !bench_open(b, &o, ONEBIT_WAIT_SLEEP, 0);
	if (write(tell, &fine, 1) == 1)
		for (;;)
			pause();
	_exit(1);
}

/* One client's death: from kill() to the stats page that says that it is gone. */
static int one_death(struct bench *b, struct hist *h)
{
	struct pollfd pfd = { .events = POLLIN };
	uint32_t before;
	char fine = 0;
	int tell[2], ret;
	uint64_t t0;
	pid_t pid;

	ret = clients_now(b, &before);
	if (ret)
		return ret;
	if (pipe(tell))
		return bench_fail(b, -errno, "cannot make a pipe: %s", strerror(errno));
	pid = fork();
	if (!pid)
		be_victim(b, tell[1]);
	close(tell[1]);
	pfd.fd = tell[0];
	if (pid < 0)
		ret = bench_fail(b, -errno, "cannot fork: %s", strerror(errno));
	else if (poll(&pfd, 1, ATTACH_MS) != 1 || read(tell[0], &fine, 1) != 1 || !fine)
		ret = bench_fail(b, -EIO, "the client to be killed did not attach");
	close(tell[0]);
	if (!ret)
		ret = clients_until(b, before + 1);
	if (ret && pid > 0)
		kill(pid, SIGKILL);
	if (!ret) {
		bench_spin(SETTLE_US * 1000);
		t0 = bench_now();
		kill(pid, SIGKILL);
		ret = clients_until(b, before);
		if (!ret)
			hist_add(h, bench_now() - t0, 1);
	}
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return ret;
}

int attach_death(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	uint64_t end = bench_now() + ns;
	int ret = 0;

	(void)r;
	(void)value;
	while (!ret && bench_now() < end)
		ret = one_death(b, h);
	return ret;
}

static void sleep_ms(unsigned ms)
{
	struct timespec ts = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l };

	nanosleep(&ts, NULL);
}

int attach_idle_wakeups(struct bench *b, const struct row *r, uint64_t ns, struct hist *h,
			double *value)
{
	struct onebit_stats before, after;
	uint64_t cpu = 0, t0;
	int ret;

	(void)r;
	(void)ns;
	(void)h;
	sleep_ms(IDLE_SETTLE_MS);
	ret = read_stats(b, &before);
	if (ret)
		return ret;
	if (b->broker)
		cpu = place_cpu_ns(b->broker);
	t0 = bench_now();
	sleep_ms(b->idle_ms);
	b->idle_cpu_percent = -1;
	if (b->broker)
		b->idle_cpu_percent = 100.0 * (double)(place_cpu_ns(b->broker) - cpu) /
				      (double)(bench_now() - t0);
	ret = read_stats(b, &after);
	if (ret)
		return ret;
	*value = (double)(after.loop_wakeups - before.loop_wakeups);
	return 0;
}

int attach_idle_cpu(struct bench *b, const struct row *r, uint64_t ns, struct hist *h, double *value)
{
	(void)r;
	(void)ns;
	(void)h;
	if (b->idle_cpu_percent < 0)
		return bench_fail(b, -ESRCH, "the broker's process was not found");
	*value = b->idle_cpu_percent;
	return 0;
}

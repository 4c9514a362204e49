/* SPDX-License-Identifier: MIT */
/*
 * The broker as a process. Everything is made in the order in which it must be given up again:
 * memory, the loop, then privileges; after that nothing new can be reached by name.
 */
#include "process.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include "conn.h"
#include "log.h"
#include "notify.h"
#include "runner.h"
#include "sandbox.h"
#include "sys.h"

/*
 * Descriptors beside the two of each client: half-open connections, spare doorbells and regions,
 * those of a hello on its way, executors, and what there is one of.
 */
#define PROCESS_FDS   (LOOP_PENDING_MAX + 3 * CONN_POOL + 52)
#define STATS_BYTES   4096u
#define TIMER_TURNS   1024u /* busy turns between two looks at our own timers */
#define CONTROL_BYTES (sizeof(struct launch_msg) + sizeof(struct launch_policy))

enum { FIND_LOOP, FIND_KERNEL, FIND_SANDBOX, FINDINGS };

struct process {
	const struct process_setup *setup;
	struct policy policy;
	struct loop *loop;
	struct broker *broker;
	struct conns conns;
	struct runners runners;
	struct region journal, stats;
	struct onebit_finding findings[FINDINGS];
	char config_text[LAUNCH_TEXT_MAX];
	/* one message of the launcher; aligned, as it holds a struct policy */
	uint64_t control[(CONTROL_BYTES + 7) / 8];
	bool draining, done;
	int status; /* of the process, once done */
	uint64_t drain_ns, watchdog_ns; /* UINT64_MAX: never */
	uint32_t cpu;
	uint32_t turn;
};

/* ---- struct broker_env ----------------------------------------------------------------------- */

static uint64_t env_now(void *ctx)
{
	(void)ctx;
	return loop_now_ns();
}

static uint64_t env_time(void *ctx)
{
	struct timespec ts;

	(void)ctx;
	clock_gettime(CLOCK_REALTIME_COARSE, &ts);
	return (uint64_t)ts.tv_sec;
}

static void env_wake(void *ctx, uint32_t client, uint32_t need)
{
	conns_wake(&((struct process *)ctx)->conns, client, need);
}

static void env_close(void *ctx, uint32_t client, const struct onebit_error *why)
{
	conns_close(&((struct process *)ctx)->conns, client, why);
}

static void env_mute(void *ctx, uint32_t client, bool mute)
{
	conns_mute(&((struct process *)ctx)->conns, client, mute);
}

static int env_exec_memory(void *ctx, unsigned link, struct exec_memory *mem)
{
	return runners_memory(&((struct process *)ctx)->runners, link, mem);
}

static void env_exec_start(void *ctx, unsigned link, uint32_t generation, const char *model)
{
	runners_start(&((struct process *)ctx)->runners, link, generation, model);
}

static void env_exec_kill(void *ctx, unsigned link)
{
	runners_kill(&((struct process *)ctx)->runners, link);
}

static void env_exec_wake(void *ctx, unsigned link)
{
	runners_wake(&((struct process *)ctx)->runners, link);
}

static void env_reload(void *ctx)
{
	runners_reload(&((struct process *)ctx)->runners);
}

static void env_log(void *ctx, enum broker_log level, const char *line)
{
	(void)ctx;
	log_line(level, "%s", line);
}

/* ---- the launcher's word --------------------------------------------------------------------- */

static void end(struct process *p, int status)
{
	p->done = true;
	p->status = status;
}

static void start_drain(struct process *p)
{
	if (p->draining)
		return;
	p->draining = true;
	p->drain_ns = loop_now_ns() + p->policy.drain_ms * 1000000ull;
	conns_stop(&p->conns);
	broker_drain(p->broker);
	log_line(BROKER_INFO, "event=drain at_most_ms=%u", p->policy.drain_ms);
}

static void take_policy(struct process *p, const struct launch_policy *l)
{
	uint32_t max_clients = p->policy.max_clients;

	p->policy = l->policy;
	p->policy.max_clients = max_clients;
	memcpy(p->config_text, l->text, sizeof(p->config_text));
	p->config_text[sizeof(p->config_text) - 1] = 0;
	broker_policy(p->broker, &p->policy, p->config_text);
}

/* Of the launcher, which is ours: what is malformed is a bug and ends us. */
static void control_message(struct process *p, size_t len)
{
	const struct launch_msg *m = (const struct launch_msg *)p->control;
	size_t want = sizeof(*m);

	if (len >= sizeof(*m) && m->type == LAUNCH_POLICY)
		want += sizeof(struct launch_policy);
	if (len != want) {
		log_line(BROKER_ERROR, "event=control bytes=%zu wanted=%zu: launcher and broker are not of "
			 "one build", len, want);
		end(p, EXIT_FAILURE);
		return;
	}
	switch (m->type) {
	case LAUNCH_EXITED:
		if (runners_exited(&p->runners, m->link, m->generation))
			broker_exec_exited(p->broker, m->link, m->status);
		return;
	case LAUNCH_POLICY:
		take_policy(p, (const struct launch_policy *)(m + 1));
		return;
	case LAUNCH_DRAIN:
		start_drain(p);
		return;
	default:
		log_line(BROKER_ERROR, "event=control type=%u: not for a broker", m->type);
		end(p, EXIT_FAILURE);
	}
}

static void control_event(struct process *p)
{
	ssize_t n;

	while (!p->done) {
		n = recv(p->setup->control_fd, p->control, CONTROL_BYTES, MSG_DONTWAIT | MSG_TRUNC);
		if (n > 0) {
			control_message(p, (size_t)n);
		} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
			log_line(BROKER_ERROR, "event=orphaned: the launcher is gone");
			end(p, EXIT_FAILURE);
		} else if (errno == EAGAIN) {
			return;
		}
	}
}

/* ---- the loop -------------------------------------------------------------------------------- */

static void dispatch(struct process *p, const struct loop_event *ev)
{
	switch (ev->source) {
	case LOOP_BELL:
		if (ev->res < 0)
			conns_evict(&p->conns, ev->id, (uint64_t)-(int64_t)ev->res,
				    "its doorbell cannot be watched");
		else
			broker_doorbell(p->broker, ev->id);
		return;
	case LOOP_EXEC:
		broker_exec_doorbell(p->broker, ev->id);
		return;
	case LOOP_CONTROL:
		control_event(p);
		return;
	default:
		conns_event(&p->conns, ev);
	}
}

/* What is due by the clock, and the next time that something is. */
static uint64_t timers(struct process *p)
{
	uint64_t now = loop_now_ns(), next, t;

	next = conns_timer(&p->conns, now);
	t = runners_due(&p->runners, now);
	next = t < next ? t : next;
	if (now >= p->watchdog_ns) {
		p->watchdog_ns = now + p->setup->watchdog_ns;
		if (broker_is_healthy(p->broker))
			notify_send(p->setup->notify_fd, "WATCHDOG=1");
	}
	next = p->watchdog_ns < next ? p->watchdog_ns : next;
	if (now >= p->drain_ns) {
		log_line(BROKER_WARN, "event=drained after_ms=%u: requests were left; raise drain_ms",
			 p->policy.drain_ms);
		end(p, EXIT_SUCCESS);
	}
	return p->drain_ns < next ? p->drain_ns : next;
}

/* Wait for events until then, 0: only take those that are there. */
static void collect(struct process *p, uint64_t until_ns)
{
	struct loop_event ev;
	uint32_t n = 0;
	int err = loop_wait(p->loop, until_ns);
	unsigned cpu;

	if (err) {
		log_line(BROKER_ERROR, "event=loop error=\"%s\"", strerror(-err));
		end(p, EXIT_FAILURE);
		return;
	}
	/* The rest after the next turn: a flood here does not hold up those already attached. */
	while (n++ < LOOP_BATCH && !p->done && loop_next(p->loop, &ev))
		dispatch(p, &ev);
	cpu = (unsigned)sched_getcpu() + 1;
	if (cpu != p->cpu) {
		p->cpu = cpu;
		broker_cpu(p->broker, cpu);
	}
}

/* What a turn could not do itself. */
static void after_turn(struct process *p)
{
	uint32_t owner;

	conns_sweep(&p->conns);
	runners_retry(&p->runners, p->broker);
	while (region_broken(&owner)) {
		if (owner >= p->runners.owner && owner - p->runners.owner < LINKS)
			runners_kill(&p->runners, owner - p->runners.owner);
		else
			conns_evict(&p->conns, owner, EFAULT, "no memory behind its region");
	}
}

static void serve(struct process *p)
{
	uint64_t until, own;
	bool more;

	while (!p->done) {
		more = broker_turn(p->broker);
		after_turn(p);
		if (more || !broker_sleep(p->broker, &until)) {
			loop_flush(p->loop); /* before a sleep they ride on the wait */
			if (++p->turn % TIMER_TURNS == 0)
				timers(p);
			if (loop_due(p->loop, p->turn))
				collect(p, 0);
			continue;
		}
		if (p->draining && broker_is_drained(p->broker)) {
			end(p, EXIT_SUCCESS);
			return;
		}
		own = timers(p);
		if (own < until)
			until = own;
		if (conns_idle(&p->conns))
			until = 0;
		if (!p->done)
			collect(p, until);
	}
}

/* ---- start ----------------------------------------------------------------------------------- */

static void finding(struct process *p, int i, const char *id, uint32_t level, const char *observed,
		    const char *fix)
{
	struct onebit_finding *f = &p->findings[i];

	memset(f, 0, sizeof(*f));
	snprintf(f->id, sizeof(f->id), "%s", id);
	f->level = level;
	snprintf(f->observed, sizeof(f->observed), "%s", observed);
	snprintf(f->fix, sizeof(f->fix), "%s", fix);
}

static int fail(const char *what, int err)
{
	log_line(BROKER_ERROR, "event=start step=\"%s\" error=\"%s\"", what, strerror(-err));
	return err;
}

/* The launcher answers signals, and tells us what they meant. */
static void signals(void)
{
	static const int ours[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE };

	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		signal(ours[i], SIG_IGN);
}

/* All the descriptors we may have, and no more clients than those are enough for. */
static void descriptors(struct process *p)
{
	struct rlimit lim;
	uint64_t fit;

	if (getrlimit(RLIMIT_NOFILE, &lim))
		return;
	lim.rlim_cur = lim.rlim_max;
	setrlimit(RLIMIT_NOFILE, &lim);
	getrlimit(RLIMIT_NOFILE, &lim);
	fit = lim.rlim_cur > PROCESS_FDS ? (lim.rlim_cur - PROCESS_FDS) / 2 : 1;
	if (p->policy.max_clients <= fit)
		return;
	log_line(BROKER_WARN, "event=limit max_clients=%u instead of %u: %llu descriptors allow no more; "
		 "raise LimitNOFILE", (unsigned)fit, p->policy.max_clients,
		 (unsigned long long)lim.rlim_cur);
	p->policy.max_clients = (uint32_t)fit;
}

static int memory(struct process *p)
{
	/* Two regions a client, two an executor, two a spare pair. */
	int err = region_guard_start(2 * (p->policy.max_clients + LINKS + CONN_POOL));

	if (err)
		return fail("SIGBUS guard", err);
	err = region_make(&p->journal, "onebit-journal", p->policy.journal_bytes, 0, REGION_OURS,
			  REGION_NOBODY);
	if (err)
		return fail("journal: lower journal_mib or give more memory", err);
	err = region_make(&p->stats, "onebit-stats", STATS_BYTES, STATS_BYTES, REGION_OURS,
			  REGION_NOBODY);
	return err ? fail("stats page", err) : 0;
}

static int open_loop(struct process *p)
{
	char observed[64];
	int err;

	p->loop = loop_open(p->setup->loop, p->policy.max_clients, observed, sizeof(observed));
	if (!p->loop)
		return fail("event loop: allow io_uring (kernel.io_uring_disabled) or set event_loop = "
			    "auto", -errno);
	finding(p, FIND_LOOP, "I1", p->loop->fallback ? ONEBIT_FINDING_WARN : ONEBIT_FINDING_PASS,
		observed, p->loop->fallback ?
		"allow io_uring (kernel.io_uring_disabled), or set event_loop = epoll" : "");
	log_line(p->loop->fallback ? BROKER_WARN : BROKER_INFO, "event=loop kind=\"%s\"", observed);
	err = loop_add(p->loop, LOOP_CONTROL, 0, p->setup->control_fd);
	return err ? fail("watch the launcher", err) : 0;
}

/* Which of the features that our floor does not promise this kernel has. */
static void probe_kernel(struct process *p)
{
	int fd = memfd_create("onebit-probe", MFD_CLOEXEC | MFD_NOEXEC_SEAL), peer = -1;
	socklen_t len = sizeof(peer);
	char observed[64];
	bool pidfd;

	pidfd = !getsockopt(p->setup->control_fd, SOL_SOCKET, SO_PEERPIDFD, &peer, &len);
	snprintf(observed, sizeof(observed), "memfd noexec seal: %s, peer pidfd: %s",
		 fd < 0 ? "no" : "yes", pidfd ? "yes" : "no");
	finding(p, FIND_KERNEL, "I2", ONEBIT_FINDING_INFO, observed, "");
	if (fd >= 0)
		close(fd);
	if (peer >= 0)
		close(peer);
}

static int privileges(struct process *p)
{
	const struct process_setup *s = p->setup;
	char report[256] = "";
	int err = sandbox_become(s->uid, s->gid);

	if (err)
		return fail("become the configured user", err);
	if (!s->sandbox) {
		finding(p, FIND_SANDBOX, "I3", ONEBIT_FINDING_WARN, "sandbox = off", "set sandbox = on");
		return 0;
	}
	err = sandbox_broker(report, sizeof(report));
	if (err) {
		log_line(BROKER_ERROR, "event=sandbox report=\"%s\"", report);
		return fail("sandbox", err);
	}
	log_line(BROKER_INFO, "event=sandbox report=\"%s\"", report);
	finding(p, FIND_SANDBOX, "I3", ONEBIT_FINDING_PASS, report, "");
	return 0;
}

static int open_broker(struct process *p)
{
	struct broker_setup s = {
		.policy = p->policy,
		.env = { .ctx = p, .now_ns = env_now, .time_s = env_time, .wake_client = env_wake,
			 .close_client = env_close, .mute_client = env_mute,
			 .exec_memory = env_exec_memory, .exec_start = env_exec_start,
			 .exec_kill = env_exec_kill, .exec_wake = env_exec_wake,
			 .reload = env_reload, .log = env_log },
		.journal = p->journal.base,
		.stats = p->stats.base,
		.has_executor = p->setup->has_executor,
		.config_text = p->config_text,
		.findings = p->findings,
		.n_findings = FINDINGS,
	};

	/* Clients only compare it, so a start within the same tick must not repeat it. */
	if (getrandom(&s.epoch, sizeof(s.epoch), GRND_NONBLOCK) != sizeof(s.epoch))
		s.epoch = loop_now_ns();
	p->broker = broker_new(&s);
	if (!p->broker)
		return fail("tables: lower max_clients or max_requests", -ENOMEM);
	p->conns.broker = p->broker;
	return 0;
}

static int open_all(struct process *p)
{
	int err;

	signals();
	descriptors(p);
	err = memory(p);
	if (!err)
		err = open_loop(p);
	if (err)
		return err;
	probe_kernel(p);
	runners_init(&p->runners, p->loop, p->setup->control_fd, p->journal.fd,
		     p->policy.max_clients);
	err = conns_init(&p->conns, p->loop, p->policy.max_clients, p->setup->listen_fd, p->stats.fd);
	if (err)
		return fail("connections", err);
	err = open_broker(p);
	if (!err)
		err = privileges(p);
	if (err)
		return err;
	err = conns_listen(&p->conns);
	return err ? fail("watch the listening socket", err) : 0;
}

static void close_all(struct process *p)
{
	struct onebit_error why;

	error_fill(&why, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING, 1000);
	conns_free(&p->conns, &why);
	runners_free(&p->runners);
	p->broker = broker_free(p->broker);
	p->loop = loop_free(p->loop);
	region_free(&p->journal);
	region_free(&p->stats);
}

int process_run(const struct process_setup *setup)
{
	struct process *p = calloc(1, sizeof(*p));
	int status = EXIT_FAILURE;

	if (!p)
		return status;
	p->setup = setup;
	p->policy = *setup->policy;
	snprintf(p->config_text, sizeof(p->config_text), "%s",
		 setup->config_text ? setup->config_text : "");
	p->drain_ns = p->watchdog_ns = UINT64_MAX;
	if (!open_all(p)) {
		if (setup->watchdog_ns && setup->notify_fd >= 0)
			p->watchdog_ns = loop_now_ns() + setup->watchdog_ns;
		notify_send(setup->notify_fd, "READY=1");
		log_line(BROKER_INFO, "event=ready clients=%u requests=%u journal_mib=%u",
			 p->policy.max_clients, p->policy.max_requests, p->policy.journal_bytes >> 20);
		serve(p);
		status = p->status;
	}
	close_all(p);
	free(p);
	return status;
}

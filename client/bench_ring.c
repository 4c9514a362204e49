/* SPDX-License-Identifier: MIT */
/*
 * onebit bench ring: the plan: which rows, against which daemon, in which rounds. What the rows
 * are is in bench_rows.c, how each is measured in the file of its subject.
 */
#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "bench_row.h"
#include "cmd_verb.h"
#include "private.h"

enum {
	SECONDS_DEFAULT = 40,
	SECONDS_MAX = 3600,
	IDLE_MS_MAX = 2000,
	SLOT_MS_MAX = 2000,
	FDS_EACH = 8, /* descriptors of one attachment, on either side, with room to spare */
};

struct plan {
	struct bench b;
	const char *socket, *pin, *plot, *only;
	unsigned seconds, rounds;
	bool json;
	struct rows rows;
};

static const char help[] =
	"usage: onebit bench ring [OPTION]...\n"
	"\n"
	"Measures the ring, and beside it what one would use instead, in one run. Starts a daemon\n"
	"of its own unless --socket names one.\n"
	"\n"
	"  --socket S      measure the daemon at S; it needs limit.spin_us and enough clients\n"
	"  --seconds N     about how long it takes in all (default 40)\n"
	"  --clients LIST  numbers of clients for throughput (default 1,16,256,1024)\n"
	"  --batch LIST    operations published at once (default 1,8,32)\n"
	"  --pin A,B       the two CPUs (default: the first two cores)\n"
	"  --only NAMES    rows or groups: line,rtt,peers,uring,wake,tput,attach,idle,attack,\n"
	"                  or names as in --json; what a ratio needs comes along\n"
	"  --json          one JSON object a line\n"
	"  --plot FILE     write the latencies as an SVG picture\n"
	"\n"
	"A goal that is missed is shown and is no failure. Exit status: 0 measured, 1 something\n"
	"could not be measured, 2 wrong usage, 3 no daemon, 130 interrupted.\n";

int bench_fail(struct bench *b, int ret, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	vsnprintf(b->why, sizeof(b->why), format, ap);
	va_end(ap);
	return ret;
}

/* ---- command line -------------------------------------------------------------------------- */

static bool parse_list(const char *text, unsigned max, struct list *l)
{
	char copy[128], *save = NULL, *item;
	uint64_t v;

	if (strlen(text) >= sizeof(copy))
		return false;
	strcpy(copy, text);
	l->n = 0;
	for (item = strtok_r(copy, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
		if (l->n == LIST_MAX || !verb_u64(item, 1, max, &v))
			return false;
		l->v[l->n++] = (unsigned)v;
	}
	return l->n > 0;
}

static int parse(struct plan *p, int argc, char **argv)
{
	enum { SOCKET = 1, SECONDS, CLIENTS, BATCH, PIN, JSON, PLOT, ONLY, HELP };
	static const struct option options[] = {
		{ "socket", required_argument, NULL, SOCKET },
		{ "seconds", required_argument, NULL, SECONDS },
		{ "clients", required_argument, NULL, CLIENTS },
		{ "batch", required_argument, NULL, BATCH },
		{ "pin", required_argument, NULL, PIN },
		{ "json", no_argument, NULL, JSON },
		{ "plot", required_argument, NULL, PLOT },
		{ "only", required_argument, NULL, ONLY },
		{ "help", no_argument, NULL, HELP },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t n;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case SOCKET:
			p->socket = optarg;
			break;
		case SECONDS:
			if (!verb_u64(optarg, 1, SECONDS_MAX, &n))
				return verb_usage("bench ring", "--seconds %s is not a number from "
						  "1 to %d", optarg, SECONDS_MAX);
			p->seconds = (unsigned)n;
			break;
		case CLIENTS:
			if (!parse_list(optarg, FLEET_MAX, &p->rows.clients))
				return verb_usage("bench ring", "--clients %s is not a list of up to "
						  "%d numbers from 1 to %d, like 1,16", optarg,
						  LIST_MAX, FLEET_MAX);
			break;
		case BATCH:
			if (!parse_list(optarg, TPUT_DEPTH, &p->rows.batch))
				return verb_usage("bench ring", "--batch %s is not a list of up to %d "
						  "numbers from 1 to %d, like 1,8", optarg, LIST_MAX,
						  TPUT_DEPTH);
			break;
		case PIN:
			p->pin = optarg;
			break;
		case JSON:
			p->json = true;
			break;
		case PLOT:
			p->plot = optarg;
			break;
		case ONLY:
			p->only = optarg;
			break;
		case HELP:
			fputs(help, stdout);
			exit(STATUS_OK);
		default:
			return verb_bad_option("bench ring", argv);
		}
	}
	if (optind < argc)
		return verb_usage("bench ring", "%s: no argument is expected", argv[optind]);
	return STATUS_OK;
}

/* ---- which rows ------------------------------------------------------------------------------ */

static struct row *find(struct plan *p, const char *name)
{
	for (int i = 0; name && i < p->rows.n; i++)
		if (!strcmp(p->rows.row[i].name, name))
			return &p->rows.row[i];
	return NULL;
}

static void want(struct plan *p, struct row *r)
{
	r->wanted = true;
	/* A row's reference stands before it, so one step is enough for each. */
	if (find(p, r->ref))
		find(p, r->ref)->wanted = true;
}

static int choose(struct plan *p)
{
	char copy[256], *save = NULL, *item;

	find(p, "line")->wanted = true;
	if (p->only && strlen(p->only) >= sizeof(copy))
		return verb_usage("bench ring", "--only is longer than %zu bytes; name groups",
				  sizeof(copy) - 1);
	strcpy(copy, p->only ? p->only : "");
	for (item = strtok_r(copy, ",", &save); item; item = strtok_r(NULL, ",", &save)) {
		bool found = false;

		for (int i = 0; i < p->rows.n; i++) {
			if (strcmp(item, p->rows.row[i].name) && strcmp(item, p->rows.row[i].group))
				continue;
			want(p, &p->rows.row[i]);
			found = true;
		}
		if (!found)
			return verb_usage("bench ring", "--only: there is no row or group %s", item);
	}
	for (int i = 0; i < p->rows.n; i++) {
		struct row *r = &p->rows.row[i];

		r->wanted |= !p->only;
		/* idle_cpu is told from what idle_wakeups saw. */
		if (r->wanted && r->run == attach_idle_cpu)
			r[-1].wanted = true;
		if (r->place == PLACE_TWO && p->b.cpu[0] == p->b.cpu[1]) {
			r->skipped = true;
			snprintf(r->why, sizeof(r->why), "it needs two CPUs and this process has one");
		}
		if (r->wanted && r->unit <= UNIT_US) {
			r->hist = calloc(1, sizeof(*r->hist));
			if (!r->hist)
				return verb_fail("bench ring", STATUS_FAILED, "no memory");
		}
	}
	return STATUS_OK;
}

/* ---- rounds -------------------------------------------------------------------------------- */

static void run_row(struct plan *p, struct row *r, int round, uint64_t slot_ns)
{
	static struct hist h;
	struct bench *b = &p->b;
	double value = 0;
	int ret;

	if (!r->wanted || r->skipped || r->failed || (r->once && round != (int)p->rounds - 1))
		return;
	if (isatty(STDERR_FILENO) && isatty(STDOUT_FILENO))
		fprintf(stderr, "\rround %d of %u: %-40s\r", round + 1, p->rounds, r->label);
	hist_init(&h);
	ret = fleet_set(b, r->fleet);
	place_set(b, r->place);
	if (!ret)
		ret = r->run(b, r, (uint64_t)((double)slot_ns * r->weight), &h, &value);
	if (ret && verb_interrupted())
		return;
	if (ret) {
		r->failed = true;
		memcpy(r->why, b->why, sizeof(r->why));
		/* Operations may still be on their way: the next row must not meet them. */
		fleet_set(b, 0);
		return;
	}
	if (r->hist) {
		value = (double)hist_quantile(&h, r->quantile) / (r->unit == UNIT_US ? 1e3 : 1);
		hist_merge(r->hist, &h);
	}
	r->round[r->n_values] = round;
	r->values[r->n_values++] = value;
}

static int run_rounds(struct plan *p)
{
	struct bench *b = &p->b;
	struct row *line = find(p, "line");
	double weights = 0, slot_ms;
	int status = STATUS_OK;

	for (int i = 0; i < p->rows.n; i++)
		if (p->rows.row[i].wanted && !p->rows.row[i].skipped)
			weights += p->rows.row[i].weight;
	p->rounds = p->seconds >= 10 ? ROUNDS_MAX : 3;
	b->idle_ms = p->seconds * 50 < IDLE_MS_MAX ? p->seconds * 50 : IDLE_MS_MAX;
	/* A tenth is for what is between the rows: attaching, forking, starting the daemon. */
	slot_ms = (p->seconds * 900.0 - b->idle_ms) / (p->rounds * (weights > 1 ? weights : 1));
	if (slot_ms > SLOT_MS_MAX)
		slot_ms = SLOT_MS_MAX;
	if (line_calibrate(b))
		return verb_fail("bench ring", STATUS_FAILED, "%s", b->why);
	for (int round = 0; round < (int)p->rounds; round++) {
		for (int i = 0; i < p->rows.n; i++) {
			struct row *r = &p->rows.row[i];

			run_row(p, r, round, (uint64_t)(slot_ms * 1e6));
			if (verb_interrupted())
				return STATUS_INTERRUPTED;
			if (!round && r == line)
				report_head(b, stdout, p->json, line, p->rounds, slot_ms);
			if (round != (int)p->rounds - 1 || !r->wanted)
				continue;
			report_row(r, find(p, r->ref), line, stdout, p->json);
			if (r->failed)
				status = STATUS_FAILED;
			if (ferror(stdout))
				return STATUS_OK; /* nobody reads any more */
		}
	}
	return status;
}

/* ---- the daemon ---------------------------------------------------------------------------- */

static unsigned largest_fleet(const struct plan *p)
{
	unsigned max = 0;

	for (int i = 0; i < p->rows.n; i++)
		if (p->rows.row[i].wanted && p->rows.row[i].fleet > max)
			max = p->rows.row[i].fleet;
	return max;
}

/* For us and for the daemon that inherits it. What is still too low shows when attaching. */
static void raise_files(unsigned clients)
{
	struct rlimit lim;

	if (getrlimit(RLIMIT_NOFILE, &lim))
		return;
	if (lim.rlim_cur >= clients * FDS_EACH + 256)
		return;
	lim.rlim_cur = clients * FDS_EACH + 256;
	if (lim.rlim_cur > lim.rlim_max) {
		struct rlimit more = { .rlim_cur = lim.rlim_cur, .rlim_max = lim.rlim_cur };

		if (!setrlimit(RLIMIT_NOFILE, &more))
			return;
		lim.rlim_cur = lim.rlim_max;
	}
	(void)setrlimit(RLIMIT_NOFILE, &lim);
}

static int start_daemon(struct plan *p, struct private_daemon *d)
{
	char max_clients[40], limit_clients[40];
	const char *settings[] = {
		max_clients,
		limit_clients,
		"limit.bytes_mib = 16384",
		"limit.inflight = 8192",
		"limit.spin_us = 100",
		"log = error",
		NULL,
	};
	unsigned n = largest_fleet(p) + 64;
	char why[320];

	if (n > FLEET_MAX)
		n = FLEET_MAX;
	snprintf(max_clients, sizeof(max_clients), "max_clients = %u", n);
	snprintf(limit_clients, sizeof(limit_clients), "limit.clients = %u", n);
	if (private_start(d, NULL, settings, why, sizeof(why)))
		return verb_interrupted() ? STATUS_INTERRUPTED :
		       verb_fail("bench ring", STATUS_NO_DAEMON, "%s", why);
	p->b.socket = d->socket;
	return STATUS_OK;
}

static int attach_control(struct plan *p, pid_t launcher)
{
	struct bench *b = &p->b;
	struct onebit_options options = {
		.size = sizeof(options),
		.socket = b->socket,
		.no_reconnect = 1,
		.features = ONEBIT_FEAT_STATS,
	};
	struct onebit_error err = { 0 };
	int ret = onebit_open(&b->control, &options, &err);

	if (ret < 0)
		return verb_open_failed("bench ring", b->socket, ret, &err);
	/* Who answered is running, so it can be found now. */
	if (!launcher)
		launcher = place_find_launcher(verb_socket(b->socket));
	if (launcher)
		b->broker = place_find_broker(launcher);
	return STATUS_OK;
}

int bench_ring(int argc, char **argv)
{
	static struct plan plan = {
		.seconds = SECONDS_DEFAULT,
		.rows.clients = { 4, { 1, 16, 256, 1024 } },
		.rows.batch = { 3, { 1, 8, 32 } },
	};
	struct private_daemon daemon = { 0 };
	struct plan *p = &plan;
	int status, ret;

	status = parse(p, argc, argv);
	if (status)
		return status;
	if (place_init(&p->b, p->pin))
		return verb_usage("bench ring", "%s", p->b.why);
	rows_make(&p->rows);
	status = choose(p);
	if (status)
		goto out;
	verb_catch_signals();
	raise_files(largest_fleet(p));
	p->b.socket = p->socket;
	if (!p->socket)
		status = start_daemon(p, &daemon);
	if (!status)
		status = attach_control(p, daemon.pid);
	if (!status)
		status = run_rounds(p);
	if (status <= STATUS_FAILED && p->plot) {
		ret = plot_write(p->plot, p->rows.row, p->rows.n, find(p, "line"));
		if (ret)
			status = verb_fail("bench ring", STATUS_FAILED, "cannot write %s: %s", p->plot,
					   strerror(-ret));
	}
out:
	fleet_set(&p->b, 0);
	free(p->b.fleet);
	onebit_close(p->b.control);
	if (daemon.pid)
		private_stop(&daemon);
	for (int i = 0; i < p->rows.n; i++)
		free(p->rows.row[i].hist);
	return status;
}

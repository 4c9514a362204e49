/* SPDX-License-Identifier: MIT */
/*
 * onebit stat: the daemon's stats page, in words or as one JSON object. The page is shared memory
 * that the daemon writes anyway, so looking at it costs the daemon one attachment and no request.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "cmd_verb.h"

#define COUNTER(field, what) \
	{ #field, what, offsetof(struct onebit_stats, field), \
	  sizeof(((struct onebit_stats *)0)->field) }

static const struct counter {
	const char *name;
	const char *what; /* NULL: told in a line of its own */
	size_t off, size;
} counters[] = {
	COUNTER(epoch, NULL),
	COUNTER(uptime_ms, NULL),
	COUNTER(executor_generation, "executors started"),
	COUNTER(model_generation, "model generation"),
	COUNTER(clients, "clients attached now (this one included)"),
	COUNTER(queued, "requests waiting"),
	COUNTER(running, "requests running"),
	COUNTER(suspects, "requests suspected of killing executors"),
	COUNTER(bytes, "bytes of memory shared with clients"),
	COUNTER(journal_bytes, "bytes of the journal in use"),
	COUNTER(attached, "clients attached so far"),
	COUNTER(refused, "clients refused"),
	COUNTER(detached, "clients detached"),
	COUNTER(protocol_errors, "clients detached for broken indices"),
	COUNTER(sqes, "submissions taken"),
	COUNTER(cqes, "completions written"),
	COUNTER(wakes, "clients woken"),
	COUNTER(doorbells, "doorbells heard"),
	COUNTER(spurious_doorbells, "doorbells with nothing behind them"),
	COUNTER(accepted, "requests accepted"),
	COUNTER(done, "requests done"),
	COUNTER(cancelled, "requests cancelled"),
	COUNTER(failed, "requests failed"),
	COUNTER(poisoned, "requests that were poison"),
	COUNTER(tokens, "tokens delivered"),
	COUNTER(prompt_tokens, "prompt tokens"),
	COUNTER(cached_tokens, "prompt tokens taken from the cache"),
	COUNTER(replays, "replays"),
	COUNTER(executor_deaths, "executors lost"),
	COUNTER(executor_hangs, "executors that hung"),
	COUNTER(executor_lies, "executors caught lying"),
	COUNTER(loop_wakeups, "wake-ups of the daemon's loop"),
};

enum { READ_TRIES = 1000 }; /* 1 ms apart */

#define N_COUNTERS (sizeof(counters) / sizeof(counters[0]))

static const char help[] =
	"usage: onebit stat [--socket S] [--json]\n"
	"\n"
	"Shows the daemon's state and what it has counted since its start.\n"
	"\n"
	"  --socket S  the daemon's socket ($ONEBIT_SOCKET, " ONEBIT_SOCKET_DEFAULT ")\n"
	"  --json      one JSON object\n"
	"\n"
	"Exit status: 0 done, 1 refused, 2 wrong usage, 3 no daemon.\n";

static unsigned long long counter_value(const struct onebit_stats *s, const struct counter *c)
{
	const char *at = (const char *)s + c->off;
	uint32_t v32;
	uint64_t v64;

	if (c->size == sizeof(v32)) {
		memcpy(&v32, at, sizeof(v32));
		return v32;
	}
	memcpy(&v64, at, sizeof(v64));
	return v64;
}

static const char *state_name(uint32_t state)
{
	static const char *const names[] = { "starting", "ready", "draining", "detached" };

	return state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

static const char *executor_name(uint32_t state)
{
	static const char *const names[] = { "none", "starting", "ready", "restarting" };

	return state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

static void print_json(const struct onebit_stats *s)
{
	printf("{\"state\":\"%s\",\"executor_state\":\"%s\"", state_name(s->state),
	       executor_name(s->executor_state));
	for (size_t i = 0; i < N_COUNTERS; i++)
		printf(",\"%s\":%llu", counters[i].name, counter_value(s, &counters[i]));
	puts("}");
}

static void print_lines(const struct onebit_stats *s, const char *path)
{
	unsigned long long up = s->uptime_ms / 1000;

	printf("daemon at %s: %s, executor %s, up %llu d %02llu:%02llu:%02llu\n", path,
	       state_name(s->state), executor_name(s->executor_state), up / 86400, up / 3600 % 24,
	       up / 60 % 60, up % 60);
	for (size_t i = 0; i < N_COUNTERS; i++)
		if (counters[i].what)
			printf("%20llu  %s\n", counter_value(s, &counters[i]), counters[i].what);
}

int cmd_stat(int argc, char **argv)
{
	enum { SOCKET = 1, JSON, HELP };
	static const struct option options[] = {
		{ "socket", required_argument, NULL, SOCKET },
		{ "json", no_argument, NULL, JSON },
		{ "help", no_argument, NULL, HELP },
		{ NULL, 0, NULL, 0 },
	};
	struct onebit_options open = {
		.size = sizeof(open),
		.sq_entries = ONEBIT_SQ_ENTRIES_MIN,
		.arena_bytes = ONEBIT_AREA_MIN,
		.out_bytes = ONEBIT_AREA_MIN,
		.features = ONEBIT_FEAT_STATS,
	};
	struct onebit_error err = { 0 };
	struct onebit *o = NULL;
	struct onebit_stats s;
	bool json = false;
	int c, ret;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case SOCKET:
			open.socket = optarg;
			break;
		case JSON:
			json = true;
			break;
		case HELP:
			fputs(help, stdout);
			return STATUS_OK;
		default:
			return verb_bad_option("stat", argv);
		}
	}
	if (optind < argc)
		return verb_usage("stat", "%s: no argument is expected", argv[optind]);

	ret = onebit_open(&o, &open, &err);
	if (ret < 0)
		return verb_open_failed("stat", open.socket, ret, &err);
	/* -EAGAIN: the daemon was stopped in the middle of writing; it goes on some time. */
	for (int i = 0; (ret = onebit_stats_read(o, &s)) == -EAGAIN && i < READ_TRIES; i++)
		nanosleep(&(struct timespec){ .tv_nsec = 1000000 }, NULL);
	onebit_close(o);
	if (ret == -EAGAIN)
		return verb_fail("stat", STATUS_FAILED,
				 "the daemon at %s does not finish writing its stats page; is it "
				 "stopped?", verb_socket(open.socket));
	if (ret < 0)
		return verb_fail("stat", STATUS_FAILED,
				 "the daemon at %s shows no stats page: %s; upgrade it",
				 verb_socket(open.socket), strerror(-ret));
	if (json)
		print_json(&s);
	else
		print_lines(&s, verb_socket(open.socket));
	return STATUS_OK;
}

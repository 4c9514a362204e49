/* SPDX-License-Identifier: MIT */
/*
 * onebit-loopback: the loopback executor as a process, for `executor = ...` of a test's or a
 * benchmark's daemon. Here the faults are real. It ends with its launcher, which has set the parent
 * death signal before it started us.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "loopback.h"

static const char usage[] =
	"usage: onebit-loopback [--delay-us N] [--slots N] [--kill-every N] [--name TEXT]\n"
	"                       [--exit-at-start N --starts FILE]\n"
	"A test executor; onebitd starts it with the descriptors of executor.h.\n"
	"  --delay-us N       between two tokens of one request (default 1000)\n"
	"  --slots N          requests that run at a time (default 16)\n"
	"  --kill-every N     SIGKILL itself after every N tokens of all requests together\n"
	"  --name TEXT        the model's name\n"
	"  --exit-at-start N  exit 1 at the first N starts; they are counted in FILE\n";

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void fault(void *ctx, enum loopback_fault f)
{
	struct rlimit none = { 0, 0 };

	(void)ctx;
	switch (f) {
	case LOOPBACK_EXIT:
		_exit(3);
	case LOOPBACK_ABORT:
		setrlimit(RLIMIT_CORE, &none);
		abort();
	case LOOPBACK_KILL:
		raise(SIGKILL);
		break;
	case LOOPBACK_HANG:
		break;
	}
	for (;;)
		pause();
}

/* Four lanes of FNV-1a over the content: an identity for tests, not a checksum. */
static int identify(uint8_t id[32])
{
	uint64_t lane[4] = { 0xcbf29ce484222325u, 0x84222325cbf29ce4u, 0x9ce484222325cbf2u,
			     0x2325cbf29ce48422u };
	const uint8_t *p;
	struct stat st;
	off_t i;
	int k;

	if (fstat(EXEC_FD_MODEL, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
		p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, EXEC_FD_MODEL, 0);
		if (p == MAP_FAILED)
			return -errno;
		for (i = 0; i < st.st_size; i++) {
			k = (int)(i & 3);
			lane[k] = (lane[k] ^ p[i]) * 0x100000001b3u;
		}
		munmap((void *)(uintptr_t)p, (size_t)st.st_size);
		for (k = 0; k < 8; k++)
			lane[k & 3] = (lane[k & 3] ^ lane[(k + 3) & 3]) * 0x100000001b3u;
	}
	memcpy(id, lane, 32);
	return 0;
}

/* True while fewer than n starts have been counted in the file, one byte each. */
static int is_early_start(const char *file, long n)
{
	int fd = open(file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	struct stat st;
	int early = 0;

	if (fd < 0 || fstat(fd, &st) < 0) {
		fprintf(stderr, "onebit-loopback: %s: %s; give a writable file to --starts\n", file,
			strerror(errno));
		exit(2);
	}
	if (st.st_size < n)
		early = write(fd, ".", 1) == 1;
	close(fd);
	return early;
}

static long number(const char *option, const char *text, long max)
{
	char *end;
	long n;

	errno = 0;
	n = strtol(text, &end, 10);
	if (errno || *end || end == text || n < 0 || n > max) {
		fprintf(stderr, "onebit-loopback: --%s %s: a number from 0 to %ld is needed\n",
			option, text, max);
		exit(2);
	}
	return n;
}

int main(int argc, char **argv)
{
	enum { DELAY, SLOTS, KILL_EVERY, NAME, EXIT_AT_START, STARTS, HELP };
	static const struct option options[] = {
		[DELAY] = { "delay-us", required_argument, NULL, 0 },
		[SLOTS] = { "slots", required_argument, NULL, 0 },
		[KILL_EVERY] = { "kill-every", required_argument, NULL, 0 },
		[NAME] = { "name", required_argument, NULL, 0 },
		[EXIT_AT_START] = { "exit-at-start", required_argument, NULL, 0 },
		[STARTS] = { "starts", required_argument, NULL, 0 },
		[HELP] = { "help", no_argument, NULL, 0 },
		{ 0 },
	};
	struct loopback_options o = { .delay_ns = 1000000, .slots = 16, .name = "loopback" };
	const char *starts = NULL;
	static struct executor e;
	struct loopback *l;
	long early = 0;
	int c, i, err, stop = 0;
	uint64_t now, next;

	while ((c = getopt_long(argc, argv, "", options, &i)) != -1) {
		if (c != 0) {
			fputs(usage, stderr);
			return 2;
		}
		switch (i) {
		case DELAY:
			o.delay_ns = (uint64_t)number("delay-us", optarg, 1000000000) * 1000;
			break;
		case SLOTS:
			o.slots = (uint32_t)number("slots", optarg, EXEC_SLOTS_MAX);
			break;
		case KILL_EVERY:
			o.kill_every = (uint32_t)number("kill-every", optarg, 1000000000);
			break;
		case NAME:
			snprintf(o.name, sizeof(o.name), "%s", optarg);
			break;
		case EXIT_AT_START:
			early = number("exit-at-start", optarg, 1000000);
			break;
		case STARTS:
			starts = optarg;
			break;
		default:
			fputs(usage, stdout);
			return 0;
		}
	}
	if (early && !starts) {
		fputs("onebit-loopback: --exit-at-start needs --starts FILE to count in\n", stderr);
		return 2;
	}
	if (early && is_early_start(starts, early))
		return 1;
	err = identify(o.model_id);
	if (!err)
		err = executor_open(&e);
	if (err) {
		fprintf(stderr, "onebit-loopback: the descriptors of executor.h are missing or of "
			"another version: %s; let onebitd start it\n", strerror(-err));
		return 2;
	}
	l = loopback_new(&e, &o, fault, NULL);
	if (!l) {
		fputs("onebit-loopback: no memory\n", stderr);
		return 2;
	}
	while (!stop) {
		now = now_ns();
		next = loopback_step(l, now, &stop);
		if (!stop && next > now)
			executor_wait(&e, next == UINT64_MAX ? -1 : (int64_t)(next - now));
	}
	loopback_free(l);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * What the verbs of onebit-tool share: the shape of an error line, which is the client's, and
 * signals.
 *
 * A mapped file can be cut by somebody else while we read it; the system answers with SIGBUS, and
 * that must not look like a crash, nor may zeros pass for weights. The handler only writes and
 * leaves.
 */
#include "tool.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

volatile sig_atomic_t tool_stopped;

static volatile sig_atomic_t at_once;

static void say(const char *verb, const char *format, va_list ap)
{
	fflush(stdout);
	fprintf(stderr, "onebit %s: ", verb);
	vfprintf(stderr, format, ap);
}

int tool_fail(const char *verb, int status, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	say(verb, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	return status;
}

int tool_usage(const char *verb, const char *format, ...)
{
	va_list ap;

	va_start(ap, format);
	say(verb, format, ap);
	va_end(ap);
	fprintf(stderr, " (`onebit %s --help` tells more)\n", verb);
	return STATUS_USAGE;
}

static void on_bus_error(int signal)
{
	static const char text[] =
		"onebit: an input file became shorter while it was read, or its disk "
		"failed; nothing was written. Copy it and try again\n";
	ssize_t n = write(STDERR_FILENO, text, sizeof(text) - 1);

	(void)n;
	(void)signal;
	_exit(STATUS_FAILED);
}

static void on_stop(int signal)
{
	(void)signal;
	if (at_once || tool_stopped)
		_exit(STATUS_INTERRUPTED);
	tool_stopped = 1;
}

void tool_catch_signals(bool somebody_asks)
{
	struct sigaction bus = { .sa_handler = on_bus_error };
	struct sigaction stop = { .sa_handler = on_stop, .sa_flags = SA_RESTART };

	at_once = !somebody_asks;
	sigaction(SIGBUS, &bus, NULL);
	sigaction(SIGINT, &stop, NULL);
	sigaction(SIGTERM, &stop, NULL);
	/* A reader who left is content; the write then says EPIPE. */
	signal(SIGPIPE, SIG_IGN);
}

double tool_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

unsigned tool_threads(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		return 1;
	return (unsigned)CPU_COUNT(&set);
}

int tool_end(const char *verb, int status)
{
	errno = 0;
	if (fflush(stdout) == EOF && errno != EPIPE && status == STATUS_OK)
		return tool_fail(verb, STATUS_FAILED, "cannot write to standard output: %s",
				 strerror(errno));
	return status;
}

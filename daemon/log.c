/* SPDX-License-Identifier: MIT */
/*
 * Log lines. A daemon that waits for the reader of its log can be stopped by whoever holds the
 * other end, so nothing here waits: a socket (the journal) is written with MSG_DONTWAIT, a pipe or
 * terminal through an open file description of our own that is O_NONBLOCK (the inherited one is
 * shared with strangers and stays as it is), a plain file just so. What finds no room is counted.
 */
#include "log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LEVELS (BROKER_ERROR + 1)

static const char *const level_names[LEVELS] = { "debug", "info", "warn", "error" };
static const char level_priority[LEVELS] = { '7', '6', '4', '3' }; /* syslog(3) */

static struct {
	int level;
	char ident[32];
	bool journal; /* standard error is the journal: it has time stamps of its own */
	bool opened;
	bool socket;
	int fd;
	struct bucket {
		uint64_t at_ns;
		uint64_t tokens; /* in 1/1000 lines */
		uint64_t dropped;
	} bucket[LEVELS];
} logger = { .level = BROKER_INFO, .fd = STDERR_FILENO };

static uint64_t clock_ns(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* Once: a broker in its sandbox may call log_init() again, but may open nothing. */
static void open_output(void)
{
	const char *journal = getenv("JOURNAL_STREAM");
	unsigned long long dev, ino;
	struct stat st;
	int fd;

	logger.opened = true;
	if (fstat(STDERR_FILENO, &st))
		return;
	/* systemd.exec(5): the variable may be inherited and standard error be another by now. */
	logger.journal = journal && sscanf(journal, "%llu:%llu", &dev, &ino) == 2 &&
			 dev == (unsigned long long)st.st_dev && ino == (unsigned long long)st.st_ino;
	logger.socket = S_ISSOCK(st.st_mode);
	if (!S_ISFIFO(st.st_mode) && !S_ISCHR(st.st_mode))
		return;
	fd = open("/proc/self/fd/2", O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd >= 0)
		logger.fd = fd;
}

void log_init(int level, const char *ident)
{
	if (!logger.opened)
		open_output();
	logger.level = level;
	snprintf(logger.ident, sizeof(logger.ident), "%s", ident);
	for (int i = 0; i < LEVELS; i++)
		logger.bucket[i] = (struct bucket){ clock_ns(CLOCK_MONOTONIC), LOG_BURST * 1000u, 0 };
}

/* "2026-11-21T14:08:50.123Z": by hand, for gmtime(3) may want to read the time zone's files. */
static int put_time(char *out, size_t len)
{
	uint64_t now = clock_ns(CLOCK_REALTIME);
	uint64_t s = now / 1000000000u, days = s / 86400u;
	/* Days to a date of the Gregorian calendar, in years that start in March. */
	uint64_t z = days + 719468u, era = z / 146097u, doe = z % 146097u;
	uint64_t yoe = (doe - doe / 1460u + doe / 36524u - doe / 146096u) / 365u;
	uint64_t doy = doe - (365u * yoe + yoe / 4u - yoe / 100u), mp = (5u * doy + 2u) / 153u;
	unsigned month = (unsigned)(mp < 10u ? mp + 3u : mp - 9u);
	unsigned year = (unsigned)(yoe + era * 400u + (month <= 2u));

	return snprintf(out, len, "%04u-%02u-%02uT%02u:%02u:%02u.%03uZ ", year, month,
			(unsigned)(doy - (153u * mp + 2u) / 5u + 1u), (unsigned)(s / 3600u % 24u),
			(unsigned)(s / 60u % 60u), (unsigned)(s % 60u),
			(unsigned)(now / 1000000u % 1000u));
}

static bool output(const char *line, size_t len)
{
	struct pollfd p = { .fd = logger.fd, .events = POLLOUT };

	if (logger.socket)
		return send(logger.fd, line, len, MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)len;
	/* Where the description is not ours: a pipe that polls writable takes PIPE_BUF bytes. */
	if (logger.fd == STDERR_FILENO && (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT)))
		return false;
	return write(logger.fd, line, len) == (ssize_t)len;
}

static bool write_line(enum broker_log level, const char *text)
{
	static const char hex[] = "0123456789abcdef";
	char line[LOG_LINE_MAX];
	size_t n = 0;

	if (logger.journal)
		n = (size_t)snprintf(line, sizeof(line), "<%c>", level_priority[level]);
	else
		n = (size_t)put_time(line, sizeof(line));
	n += (size_t)snprintf(line + n, sizeof(line) - n, "%s %s ", logger.ident, level_names[level]);
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (n + sizeof("\\xNN...\n") > sizeof(line)) {
			memcpy(line + n, "...", 3);
			n += 3;
			break;
		}
		if (c >= 0x20 && c < 0x7f && c != '\\') {
			line[n++] = (char)c;
		} else {
			line[n++] = '\\';
			line[n++] = 'x';
			line[n++] = hex[c >> 4];
			line[n++] = hex[c & 15];
		}
	}
	line[n++] = '\n';
	return output(line, n);
}

static bool take_token(struct bucket *b)
{
	uint64_t now = clock_ns(CLOCK_MONOTONIC);
	uint64_t earned = (now - b->at_ns) / (1000000000u / (LOG_RATE * 1000u));

	if (earned) {
		b->at_ns = now;
		b->tokens += earned < LOG_BURST * 1000u ? earned : LOG_BURST * 1000u;
		if (b->tokens > LOG_BURST * 1000u)
			b->tokens = LOG_BURST * 1000u;
	}
	if (b->tokens < 1000u)
		return false;
	b->tokens -= 1000u;
	return true;
}

void log_line(enum broker_log level, const char *fmt, ...)
{
	struct bucket *b = &logger.bucket[level];
	char text[LOG_LINE_MAX];
	int saved = errno;
	va_list ap;

	if ((int)level < logger.level)
		return;
	if (!take_token(b)) {
		b->dropped++;
		goto out;
	}
	if (b->dropped) {
		snprintf(text, sizeof(text), "event=log-dropped lines=%llu level=%s: more than the limit of "
			 "%u a second, or nobody read them", (unsigned long long)b->dropped,
			 level_names[level], LOG_RATE);
		if (!write_line(level, text)) {
			b->dropped++;
			goto out;
		}
		b->dropped = 0;
	}
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!write_line(level, text))
		b->dropped++;
out:
	errno = saved;
}

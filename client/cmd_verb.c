/* SPDX-License-Identifier: MIT */
/*
 * What the verbs of onebit share. An error line always has the same three parts: which verb, what
 * happened, what to do next; it goes to standard error so that an answer on standard output stays
 * clean for the next program in the pipe.
 */
#include "cmd_verb.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static volatile sig_atomic_t n_signals;

int verb_usage(const char *verb, const char *format, ...)
{
	va_list ap;

	fprintf(stderr, "onebit %s: ", verb);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fprintf(stderr, " (`onebit %s --help` tells more)\n", verb);
	return STATUS_USAGE;
}

int verb_fail(const char *verb, int status, const char *format, ...)
{
	va_list ap;

	fprintf(stderr, "onebit %s: ", verb);
	va_start(ap, format);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fputc('\n', stderr);
	return status;
}

int verb_bad_option(const char *verb, char **argv)
{
	return verb_usage(verb, "%s is no option of it, or lacks its value", argv[optind - 1]);
}

const char *verb_socket(const char *socket)
{
	const char *env = getenv("ONEBIT_SOCKET");

	if (socket)
		return socket;
	return env && *env ? env : ONEBIT_SOCKET_DEFAULT;
}

int verb_open_failed(const char *verb, const char *socket, int ret, const struct onebit_error *err)
{
	const char *path = verb_socket(socket);

	/* With a code the daemon itself spoke, and its sentence says what to do. */
	if (err->code)
		return verb_fail(verb, STATUS_FAILED, "%s [%s]", err->text,
				 onebit_code_name(err->code));
	switch (ret) {
	case -ENOENT:
	case -ECONNREFUSED:
		return verb_fail(verb, STATUS_NO_DAEMON,
				 "no daemon at %s; start onebitd, or name its socket with --socket "
				 "or $ONEBIT_SOCKET", path);
	case -EACCES:
	case -EPERM:
		return verb_fail(verb, STATUS_NO_DAEMON,
				 "no permission to connect to %s; join the socket's group, or ask the "
				 "administrator", path);
	case -ENAMETOOLONG:
		return verb_fail(verb, STATUS_NO_DAEMON,
				 "the socket path %s is too long; a Unix socket's name has at most 107 "
				 "bytes", path);
	default:
		return verb_fail(verb, STATUS_NO_DAEMON, "cannot attach to %s: %s; %s", path,
				 strerror(-ret),
				 err->text[0] ? err->text : "see the daemon's log");
	}
}

bool verb_u64(const char *text, uint64_t min, uint64_t max, uint64_t *value)
{
	char *end;
	unsigned long long v;

	/* strtoull() takes blanks and signs, of which -1 becomes a large number. */
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || *end || v < min || v > max)
		return false;
	*value = v;
	return true;
}

bool verb_double(const char *text, double min, double max, double *value)
{
	char *end;
	double v;

	if ((*text < '0' || *text > '9') && *text != '.')
		return false;
	errno = 0;
	v = strtod(text, &end);
	/* Written so that a NaN fails it. */
	if (errno || *end || !(v >= min && v <= max))
		return false;
	*value = v;
	return true;
}

int verb_utf8(const char *text, size_t len)
{
	const unsigned char *s = (const unsigned char *)text;
	unsigned lo = 0x80, hi = 0xbf;
	int n;

	if (!len)
		return 0;
	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return -1;
	n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	/* The second byte is where overlong forms, surrogates and too large numbers show. */
	if (s[0] == 0xe0)
		lo = 0xa0;
	else if (s[0] == 0xed)
		hi = 0x9f;
	else if (s[0] == 0xf0)
		lo = 0x90;
	else if (s[0] == 0xf4)
		hi = 0x8f;
	for (int i = 1; i < n; i++) {
		if ((size_t)i == len)
			return 0;
		if (s[i] < lo || s[i] > hi)
			return -1;
		lo = 0x80;
		hi = 0xbf;
	}
	return n;
}

void verb_json_string(FILE *f, const char *text, size_t len)
{
	fputc('"', f);
	for (size_t i = 0; i < len;) {
		unsigned char c = (unsigned char)text[i];
		int n = verb_utf8(text + i, len - i);

		if (n <= 0) {
			fputs("\\ufffd", f);
			i++;
			continue;
		}
		if (c == '"' || c == '\\')
			fprintf(f, "\\%c", c);
		else if (c == '\n')
			fputs("\\n", f);
		else if (c < 0x20 || c == 0x7f)
			fprintf(f, "\\u%04x", c);
		else if (c == 0xc2 && (unsigned char)text[i + 1] < 0xa0)
			fprintf(f, "\\u%04x", (unsigned char)text[i + 1]); /* controls to a terminal */
		else
			fwrite(text + i, 1, (size_t)n, f);
		i += (size_t)n;
	}
	fputc('"', f);
}

static void on_signal(int sig)
{
	(void)sig;
	n_signals = n_signals + 1;
}

void verb_catch_signals(void)
{
	/* No SA_RESTART: a wait must end so that somebody looks at the flag. */
	struct sigaction sa = { .sa_handler = on_signal };

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	sa.sa_handler = SIG_IGN;
	sigaction(SIGPIPE, &sa, NULL);
}

int verb_interrupted(void)
{
	return n_signals;
}

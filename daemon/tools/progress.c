/* SPDX-License-Identifier: MIT */
/*
 * How far it is, for a person who waits. Only where standard error is a terminal: a log or a pipe
 * would get a heap of carriage returns. The rate is the mean since the start, which is steadier
 * than the last tenth of a second and makes the better guess of the end.
 */
#include "tool.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { WIDTH = 24 };

struct progress {
	const char *what;
	uint64_t whole;
	double start, shown;
};

struct progress *progress_new(const char *what, uint64_t whole_bytes)
{
	struct progress *p;

	if (!isatty(STDERR_FILENO))
		return NULL;
	/* Without memory there is no bar, which nobody needs. */
	p = calloc(1, sizeof(*p));
	if (p) {
		p->what = what;
		p->whole = whole_bytes ? whole_bytes : 1;
		p->start = p->shown = tool_seconds();
	}
	return p;
}

void progress_at(struct progress *p, uint64_t bytes)
{
	static const char full[] = "########################";
	static const char none[] = "........................";
	double now, rate, left;
	int n;

	if (!p)
		return;
	now = tool_seconds();
	if (now - p->shown < 0.1)
		return;
	p->shown = now;
	if (bytes > p->whole)
		bytes = p->whole;
	rate = (double)bytes / (now - p->start);
	left = rate > 0 ? (double)(p->whole - bytes) / rate : 0;
	n = (int)((double)bytes / (double)p->whole * WIDTH);
	fprintf(stderr, "\r%s %.*s%.*s %3.0f%%  %.2f GB/s  %u:%02u left \033[K", p->what, n, full,
		WIDTH - n, none, (double)bytes / (double)p->whole * 100.0, rate * 1e-9,
		(unsigned)(left / 60), (unsigned)left % 60);
	fflush(stderr);
}

struct progress *progress_free(struct progress *p)
{
	if (p && p->shown > p->start)
		fputs("\r\033[K", stderr);
	free(p);
	return NULL;
}

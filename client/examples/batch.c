/* SPDX-License-Identifier: MIT */
/*
 * Many requests in flight, two choices each. -EAGAIN from submit is no error: take events and come
 * again. batch [SOCKET [REQUESTS]]
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include "libonebit.h"

/* 0, or a negative errno. */
static int submit(struct onebit *o, int nr)
{
	char prompt[64];
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = prompt };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .priority = ONEBIT_PRIO_BATCH,
				     .parts = &part, .n_parts = 1, .user = (void *)(intptr_t)nr,
				     .params = { .max_tokens = 32, .n_choices = 2, .seed = 1 + (unsigned)nr,
						 .temperature_micro = 1000000 } };
	uint64_t id;

	/* The library copies what it needs: prompt may go when this returns. */
	part.len = (size_t)snprintf(prompt, sizeof(prompt), "Name a thing with %d letters.", nr + 3);
	return onebit_submit(o, &rq, &id);
}

int main(int argc, char **argv)
{
	struct onebit_options options = { .size = sizeof(options), .socket = argc > 1 ? argv[1] : NULL,
					  .out_bytes = 1u << 20 };
	int total = argc > 2 ? atoi(argv[2]) : 100, sent = 0, ended = 0, failed = 0, r;
	unsigned long long tokens = 0;
	struct onebit_error err;
	struct onebit_event ev;
	struct onebit *o;

	if (onebit_open(&o, &options, &err)) {
		fprintf(stderr, "batch: %s\n", err.text);
		return 1;
	}
	while (ended < total) {
		for (r = 0; sent < total && !r; sent += !r)
			r = submit(o, sent);
		if (r >= 0 || r == -EAGAIN)
			r = onebit_next(o, &ev, -1);
		if (r < 0) {
			fprintf(stderr, "batch: %s\n", onebit_last_error(o)->text);
			onebit_close(o);
			return 1;
		}
		if (r != 1)
			continue;
		if (ev.type == ONEBIT_EV_TOKENS)
			tokens += ev.n;
		if (ev.type != ONEBIT_EV_END)
			continue;
		ended++;
		failed += ev.res < 0;
		if (ev.res < 0)
			fprintf(stderr, "batch: request %d: %s\n", (int)(intptr_t)ev.user, ev.error.text);
	}
	printf("%d requests, %d failed, %llu tokens\n", ended, failed, tokens);
	onebit_close(o);
	return failed != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Submit, then take events until the end. Control-C cancels the request, not the program: its END
 * still comes, and says so. stream [SOCKET [PROMPT]]
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include "libonebit.h"

static volatile sig_atomic_t interrupted;

static void on_sigint(int sig)
{
	(void)sig;
	interrupted = 1;
}

int main(int argc, char **argv)
{
	const char *prompt = argc > 2 ? argv[2] : "Tell me a story.";
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .data = prompt, .len = strlen(prompt) };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1,
				     .random_seed = 1, .params = { .max_tokens = 64,
								   .temperature_micro = 800000 } };
	struct onebit_options options = { .size = sizeof(options), .socket = argc > 1 ? argv[1] : NULL };
	struct sigaction act = { .sa_handler = on_sigint };
	struct onebit_error err;
	struct onebit_event ev;
	struct onebit *o;
	uint64_t id;
	int r, ret = 1;

	sigaction(SIGINT, &act, NULL);
	if (onebit_open(&o, &options, &err)) {
		fprintf(stderr, "stream: %s\n", err.text);
		return 1;
	}
	if (onebit_submit(o, &rq, &id)) {
		fprintf(stderr, "stream: %s\n", onebit_last_error(o)->text);
		goto out;
	}
	fprintf(stderr, "seed %llu\n", (unsigned long long)onebit_seed(o, id));
	for (;;) {
		/* A signal ends the wait; one that came just before it is seen at the latest then. */
		r = onebit_next(o, &ev, 200);
		if (r < 0) {
			fprintf(stderr, "stream: %s\n", onebit_last_error(o)->text);
			goto out;
		}
		if (r == 1 && ev.type == ONEBIT_EV_TOKENS) {
			fwrite(ev.text, 1, ev.text_len, stdout);
			fflush(stdout);
		}
		if (r == 1 && ev.type == ONEBIT_EV_END)
			break;
		if (interrupted) {
			interrupted = 0;
			onebit_cancel(o, id);
		}
	}
	putchar('\n');
	if (ev.res < 0)
		fprintf(stderr, "stream: %s: %s\n", onebit_code_name(ev.error.code), ev.error.text);
	else
		fprintf(stderr, "%u tokens, first after %.1f ms\n", ev.choices[0].n_tokens,
			(double)ev.out->first_ns / 1e6);
	ret = ev.res < 0 && ev.error.code != ONEBIT_E_CANCELLED;
out:
	onebit_close(o);
	return ret;
}

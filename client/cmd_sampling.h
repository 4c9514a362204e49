/* SPDX-License-Identifier: MIT */
#ifndef CMD_SAMPLING_H
#define CMD_SAMPLING_H

#include <getopt.h>
#include <stdbool.h>
#include "cmd_verb.h"

/*
 * The options of a verb that generates: how tokens are drawn, where the answer ends, how the request
 * is treated. Zeroed at first, but for the priority; options fill it in. Strings are the command
 * line's own.
 */
struct sampling {
	struct onebit_params params;
	uint32_t deadline_ms;
	uint8_t priority; /* at first the verb's default */
	bool seeded;
	const char *stops[ONEBIT_STOPS_MAX];
	size_t n_stops;
	struct onebit_bias bias[ONEBIT_BIAS_MAX];
	size_t n_bias;
};

/* For a verb's table of options and its help; see VERB_DAEMON_OPTIONS. */
enum {
	SAMPLING_FIRST = 2000,
	SAMPLING_MAX_TOKENS = SAMPLING_FIRST,
	SAMPLING_MIN_TOKENS,
	SAMPLING_CHOICES,
	SAMPLING_TEMPERATURE,
	SAMPLING_TOP_K,
	SAMPLING_TOP_P,
	SAMPLING_MIN_P,
	SAMPLING_REPETITION,
	SAMPLING_FREQUENCY,
	SAMPLING_PRESENCE,
	SAMPLING_LAST_N,
	SAMPLING_LOGPROBS,
	SAMPLING_IGNORE_EOS,
	SAMPLING_NO_CACHE,
	SAMPLING_DEADLINE,
	SAMPLING_ROWS, /* those above are rows of a table */
	SAMPLING_SEED = SAMPLING_ROWS,
	SAMPLING_STOP,
	SAMPLING_BIAS,
	SAMPLING_PRIORITY,
	SAMPLING_END,
};
#define SAMPLING_OPTIONS \
	{ "max-tokens", required_argument, NULL, SAMPLING_MAX_TOKENS }, \
	{ "min-tokens", required_argument, NULL, SAMPLING_MIN_TOKENS }, \
	{ "choices", required_argument, NULL, SAMPLING_CHOICES }, \
	{ "temperature", required_argument, NULL, SAMPLING_TEMPERATURE }, \
	{ "top-k", required_argument, NULL, SAMPLING_TOP_K }, \
	{ "top-p", required_argument, NULL, SAMPLING_TOP_P }, \
	{ "min-p", required_argument, NULL, SAMPLING_MIN_P }, \
	{ "repetition", required_argument, NULL, SAMPLING_REPETITION }, \
	{ "frequency", required_argument, NULL, SAMPLING_FREQUENCY }, \
	{ "presence", required_argument, NULL, SAMPLING_PRESENCE }, \
	{ "last-n", required_argument, NULL, SAMPLING_LAST_N }, \
	{ "logprobs", required_argument, NULL, SAMPLING_LOGPROBS }, \
	{ "ignore-eos", no_argument, NULL, SAMPLING_IGNORE_EOS }, \
	{ "no-cache", no_argument, NULL, SAMPLING_NO_CACHE }, \
	{ "deadline", required_argument, NULL, SAMPLING_DEADLINE }, \
	{ "seed", required_argument, NULL, SAMPLING_SEED }, \
	{ "stop", required_argument, NULL, SAMPLING_STOP }, \
	{ "bias", required_argument, NULL, SAMPLING_BIAS }, \
	{ "priority", required_argument, NULL, SAMPLING_PRIORITY }
#define SAMPLING_HELP \
	"Where the answer ends:\n" \
	"  --max-tokens N    after N tokens (0: the daemon's default)\n" \
	"  --min-tokens N    at the model's end of text, but not before N tokens\n" \
	"  --ignore-eos      not at the model's end of text\n" \
	"  --stop TEXT       before TEXT; may be repeated\n" \
	"\n" \
	"How a token is drawn:\n" \
	"  --temperature X   0: always the likeliest (default)\n" \
	"  --seed N          the same seed gives the same answer (default: a random one)\n" \
	"  --top-k N         of the N likeliest (0: of all)\n" \
	"  --top-p X         of the likeliest that have X of the probability together\n" \
	"  --min-p X         of those with X times the likeliest's probability at least\n" \
	"  --repetition X    divide the logits of tokens that were there by X (1: off)\n" \
	"  --frequency X     lower them by X for each time that they were there\n" \
	"  --presence X      lower them by X, however often\n" \
	"  --last-n N        look for them in the last N tokens (0: in all)\n" \
	"  --bias ID=X       add X to a token's logit; never: not this token; may be repeated\n" \
	"  --choices N       so many answers, 1 to 16\n" \
	"\n" \
	"How the request is treated:\n" \
	"  --priority P      interactive (default), normal or batch\n" \
	"  --deadline MS     give up after so many milliseconds (0: never)\n" \
	"  --no-cache        neither take from the prefix cache nor leave anything there\n"

/* One of these options, with optarg. Exit status. */
int sampling_option(struct sampling *s, const char *verb, int option);
/* Do they go together? Exit status. */
int sampling_check(const struct sampling *s, const char *verb);
/* Into a request, which points into s. */
void sampling_fill(const struct sampling *s, struct onebit_request *rq);
/* The daemon names a parameter that it refuses by its place: say which option that was. */
void sampling_explain(const char *verb, const struct onebit_error *err);

#endif

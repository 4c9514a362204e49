/* SPDX-License-Identifier: MIT */
/*
 * Options of a verb that generates. Most are a number with a range and a place, so they are rows of a
 * table. Real numbers are millionths in the contract: their digits are taken one by one, so that what
 * is sent is what was written, and what cannot be sent exactly is refused rather than rounded.
 *
 * The ranges are those of the contract, for a refusal that names the option and the range is of more
 * use than the daemon's, which knows the parameter's place only. What a daemon's policy narrows further
 * it says itself; sampling_explain() adds the name.
 */
#include "cmd_sampling.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define MICRO	  INT64_C(1000000)
#define DECIMALS  6
#define BIAS_MAX  INT32_MAX
#define FIXED_MAX INT64_C(1000000000000) /* above every range, and a million times it is no overflow */

struct row {
	const char *name;
	size_t at; /* in struct sampling */
	uint8_t bytes; /* 0: no value, the flag is all */
	uint8_t decimals;
	uint32_t flag; /* ONEBIT_PARAM_*, set with it */
	int64_t min, max;
};

#define FIELD(f) offsetof(struct sampling, f), sizeof(((struct sampling *)0)->f)
#define PARAM(f) FIELD(params.f)
#define WHOLE	 0, 0
#define REAL	 DECIMALS, 0
static const struct row rows[SAMPLING_ROWS - SAMPLING_FIRST] = {
#define ROW(r) [SAMPLING_##r - SAMPLING_FIRST]
	ROW(MAX_TOKENS) = { "max-tokens", PARAM(max_tokens), WHOLE, 0, ONEBIT_MAX_TOKENS },
	ROW(MIN_TOKENS) = { "min-tokens", PARAM(min_tokens), WHOLE, 0, ONEBIT_MAX_TOKENS },
	ROW(CHOICES) = { "choices", PARAM(n_choices), WHOLE, 1, ONEBIT_CHOICES_MAX },
	ROW(TEMPERATURE) = { "temperature", PARAM(temperature_micro), REAL, 0, 100 * MICRO },
	ROW(TOP_K) = { "top-k", PARAM(top_k), WHOLE, 0, UINT32_MAX },
	/* 0 is the contract's word for off here, and in the repetition. */
	ROW(TOP_P) = { "top-p", PARAM(top_p_micro), REAL, 1, MICRO },
	ROW(MIN_P) = { "min-p", PARAM(min_p_micro), REAL, 0, MICRO },
	ROW(REPETITION) = { "repetition", PARAM(repetition_micro), REAL, 1, 100 * MICRO },
	ROW(FREQUENCY) = { "frequency", PARAM(frequency_micro), REAL, -100 * MICRO, 100 * MICRO },
	ROW(PRESENCE) = { "presence", PARAM(presence_micro), REAL, -100 * MICRO, 100 * MICRO },
	ROW(LAST_N) = { "last-n", PARAM(repetition_last_n), WHOLE, 0, UINT32_MAX },
	ROW(LOGPROBS) = { "logprobs", PARAM(top_logprobs), 0, ONEBIT_PARAM_LOGPROBS, 0,
			  ONEBIT_TOP_LOGPROBS_MAX },
	ROW(IGNORE_EOS) = { .name = "ignore-eos", .flag = ONEBIT_PARAM_IGNORE_EOS },
	ROW(NO_CACHE) = { .name = "no-cache", .flag = ONEBIT_PARAM_NO_CACHE },
	ROW(DEADLINE) = { "deadline", FIELD(deadline_ms), WHOLE, 0, UINT32_MAX },
};

/* ---- numbers ------------------------------------------------------------------------------- */

/* A decimal number within [min, max], in units of its last decimal; nothing else, no exponent. */
static bool parse_fixed(const char *text, unsigned decimals, int64_t min, int64_t max, int64_t *value)
{
	bool negative = *text == '-', point = false, digits = false;
	unsigned behind = 0;
	int64_t v = 0;

	for (text += negative; *text; text++) {
		if (*text == '.' && !point && decimals) {
			point = true;
			continue;
		}
		if (*text < '0' || *text > '9' || (point && behind++ == decimals))
			return false;
		digits = true;
		v = 10 * v + (*text - '0');
		if (v > FIXED_MAX)
			return false;
	}
	for (; behind < decimals; behind++)
		v *= 10;
	if (negative)
		v = -v;
	if (!digits || v < min || v > max)
		return false;
	*value = v;
	return true;
}

/* The same backwards, as a person would write it. */
static int put_fixed(char *to, size_t len, int64_t v, unsigned decimals)
{
	int n;

	if (!decimals)
		return snprintf(to, len, "%lld", (long long)v);
	n = snprintf(to, len, "%s%lld.%06lld", v < 0 ? "-" : "", llabs(v / MICRO), llabs(v % MICRO));
	while (to[n - 1] == '0')
		n--;
	if (to[n - 1] == '.')
		n--;
	to[n] = '\0';
	return n;
}

struct range {
	char text[96];
};

static struct range range(int64_t min, int64_t max, unsigned decimals)
{
	struct range r = { "from " };
	size_t n = strlen(r.text);

	n += (size_t)put_fixed(r.text + n, sizeof(r.text) - n, min, decimals);
	n += (size_t)snprintf(r.text + n, sizeof(r.text) - n, " to ");
	n += (size_t)put_fixed(r.text + n, sizeof(r.text) - n, max, decimals);
	if (decimals)
		snprintf(r.text + n, sizeof(r.text) - n, " with at most %d decimals", DECIMALS);
	return r;
}

/* ---- options ------------------------------------------------------------------------------- */

static int set_row(struct sampling *s, const char *verb, const struct row *r)
{
	char *at = (char *)s + r->at;
	int64_t v;

	s->params.flags |= r->flag;
	if (!r->bytes)
		return STATUS_OK;
	if (!parse_fixed(optarg, r->decimals, r->min, r->max, &v))
		return verb_usage(verb, "--%s %s is not a number %s", r->name, optarg,
				  range(r->min, r->max, r->decimals).text);
	if (r->bytes == sizeof(uint16_t))
		memcpy(at, &(uint16_t){ (uint16_t)v }, sizeof(uint16_t));
	else
		memcpy(at, &(uint32_t){ (uint32_t)v }, sizeof(uint32_t));
	return STATUS_OK;
}

static int add_stop(struct sampling *s, const char *verb)
{
	size_t len = strlen(optarg);

	if (!len)
		return verb_usage(verb, "--stop is empty; give it some text");
	if (len > ONEBIT_STOP_BYTES_MAX)
		return verb_usage(verb, "a --stop of %zu bytes is longer than the limit of %u; "
				  "shorten it", len, ONEBIT_STOP_BYTES_MAX);
	if (s->n_stops == ONEBIT_STOPS_MAX)
		return verb_usage(verb, "more than %u --stop; give fewer", ONEBIT_STOPS_MAX);
	s->stops[s->n_stops++] = optarg;
	return STATUS_OK;
}

static int add_bias(struct sampling *s, const char *verb)
{
	const char *sign = strchr(optarg, '=');
	char id_text[16] = "";
	int64_t id, v;

	/* An id that does not fit is none: what is cut off cannot make it one. */
	if (sign && sign - optarg < (ptrdiff_t)sizeof(id_text))
		memcpy(id_text, optarg, (size_t)(sign - optarg));
	if (!parse_fixed(id_text, 0, 0, UINT32_MAX, &id))
		return verb_usage(verb, "--bias %s is not ID=X, a token's id and what to add; `onebit "
				  "tokenize` tells ids", optarg);
	if (!strcmp(sign + 1, "never"))
		v = INT32_MIN;
	else if (!parse_fixed(sign + 1, DECIMALS, -BIAS_MAX, BIAS_MAX, &v))
		return verb_usage(verb, "--bias %s: behind the = stands never, or a number %s", optarg,
				  range(-BIAS_MAX, BIAS_MAX, DECIMALS).text);
	for (size_t i = 0; i < s->n_bias; i++)
		if (s->bias[i].token == id)
			return verb_usage(verb, "--bias %s: token %lld has one already; drop one",
					  optarg, (long long)id);
	if (s->n_bias == ONEBIT_BIAS_MAX)
		return verb_usage(verb, "more than %u --bias; give fewer", ONEBIT_BIAS_MAX);
	s->bias[s->n_bias++] = (struct onebit_bias){ .token = (uint32_t)id, .bias_micro = (int32_t)v };
	return STATUS_OK;
}

static int set_priority(struct sampling *s, const char *verb)
{
	static const char *const names[ONEBIT_PRIO_COUNT] = {
		[ONEBIT_PRIO_NORMAL] = "normal",
		[ONEBIT_PRIO_INTERACTIVE] = "interactive",
		[ONEBIT_PRIO_BATCH] = "batch",
	};

	for (uint8_t i = 0; i < ONEBIT_PRIO_COUNT; i++) {
		if (strcmp(optarg, names[i]) != 0)
			continue;
		s->priority = i;
		return STATUS_OK;
	}
	return verb_usage(verb, "--priority %s is none; there are interactive, normal and batch",
			  optarg);
}

int sampling_option(struct sampling *s, const char *verb, int option)
{
	uint64_t seed;

	switch (option) {
	case SAMPLING_SEED:
		if (!verb_u64(optarg, 0, UINT64_MAX, &seed))
			return verb_usage(verb, "--seed %s is not a number from 0 to 2^64-1", optarg);
		s->params.seed = seed;
		s->seeded = true;
		return STATUS_OK;
	case SAMPLING_STOP:
		return add_stop(s, verb);
	case SAMPLING_BIAS:
		return add_bias(s, verb);
	case SAMPLING_PRIORITY:
		return set_priority(s, verb);
	default:
		return set_row(s, verb, &rows[option - SAMPLING_FIRST]);
	}
}

int sampling_check(const struct sampling *s, const char *verb)
{
	const struct onebit_params *p = &s->params;

	if (p->max_tokens && p->min_tokens > p->max_tokens)
		return verb_usage(verb, "--min-tokens %u is more than --max-tokens %u; raise one or "
				  "lower the other", p->min_tokens, p->max_tokens);
	return STATUS_OK;
}

/* ---- the request --------------------------------------------------------------------------- */

void sampling_fill(const struct sampling *s, struct onebit_request *rq)
{
	rq->params = s->params;
	rq->random_seed = !s->seeded;
	rq->priority = s->priority;
	rq->deadline_ms = s->deadline_ms;
	rq->stops = s->stops;
	rq->n_stops = s->n_stops;
	rq->bias = s->bias;
	rq->n_bias = s->n_bias;
}

void sampling_explain(const char *verb, const struct onebit_error *err)
{
	if (err->code != ONEBIT_E_BAD_PARAM)
		return;
	/* Behind the parameters stand the tables; what else is in them was looked at before. */
	if (err->detail >= sizeof(struct onebit_params)) {
		fprintf(stderr, "onebit %s: that is a --bias for a token that this model does not have; "
			"`onebit tokenize` tells ids\n", verb);
		return;
	}
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (rows[i].bytes && rows[i].at == offsetof(struct sampling, params) + err->detail)
			fprintf(stderr, "onebit %s: that is --%s, beyond the daemon's limit; give "
				"less%s\n", verb, rows[i].name,
				i == SAMPLING_MIN_TOKENS - SAMPLING_FIRST ?
				", or more --max-tokens" : "");
}

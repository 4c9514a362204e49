/* SPDX-License-Identifier: MIT */
#ifndef LIB_STREAMS_H
#define LIB_STREAMS_H

/*
 * Requests as a stranger might make them, run on an engine, and all that came back, kept so that
 * two runs can be compared byte by byte: tokens, text and where it was cut, log-probabilities,
 * ends.
 */

#include <stdbool.h>
#include <stdint.h>
#include "engine.h"

#define ASKED_PROMPT_MAX 160u
#define ASKED_TOKENS_MAX 48u
#define ASKED_BIAS_MAX	 4u
#define ASKED_STOPS_MAX	 3u

/* A request and all that it points to. May be copied: asked_request() sets the pointers. */
struct asked {
	struct engine_request r;
	uint32_t prompt[ASKED_PROMPT_MAX];
	struct sampler_bias bias[ASKED_BIAS_MAX];
	char stop[ASKED_STOPS_MAX][8];
	struct stop_string stops[ASKED_STOPS_MAX];
};

/* Greedy, one choice, a prompt of n tokens. */
void asked_plain(struct asked *a, const uint32_t *prompt, uint32_t n, uint32_t max_tokens);
/*
 * Any request for a vocabulary of lib_tiny's: families of prompts that begin alike, all kinds, all
 * parameters, sometimes.
 */
void asked_random(struct asked *a, uint64_t *rng, uint32_t vocab);
const struct engine_request *asked_request(struct asked *a);
/* What it is, in a line, for a test that failed. */
void asked_print(const struct asked *a);

/* ---- what came back -------------------------------------------------------------------------- */

/* Of one choice, from the first token that was told. */
struct stream {
	uint32_t from, n; /* index of the first; how many */
	uint32_t *tokens;
	float *logprobs; /* NaN where none was told */
	size_t *at;	 /* [n + 1] where each token's record begins */
	uint8_t *bytes;	 /* records: index, token, finish, text, log-probabilities */
	char *text;	 /* all of it, with a NUL behind */
	size_t n_text;
	enum engine_finish finish;
	uint32_t replayed; /* index + 1 of the token told by replayed(), and the token */
	uint32_t replayed_token;
};

struct answer {
	struct stream choice[ENGINE_CHOICES_MAX];
	float *vector;
	uint32_t n_vector;
	uint32_t progress; /* the last one told */
	bool ended;
	struct engine_end end;
};
void answer_free(struct answer *a);

/* Run one alone to its end. */
void answer_to(struct engine *e, struct asked *asked, struct answer *a);

/* How a number of requests meet each other. */
struct pace {
	uint32_t at_once;    /* how many run at a time at most */
	uint32_t join_every; /* a new one in every that many steps, about; 0: as soon as there is
				room */
	uint32_t cancels;    /* in so many of 100 steps one comes that is cancelled soon after */
	uint32_t replays; /* so many of 100 begin with some of their tokens known, as after a crash
			   */
	bool shuffled;
};
/*
 * Run asked[0..n) in this way. known: their answers, for pace.replays (may be NULL without). Aborts
 * when the engine breaks its promises (an event behind the end, an index left out, ...).
 */
void answers_to(struct engine *e, struct asked *asked, const struct answer *known, uint32_t n,
		const struct pace *pace, uint64_t *rng, struct answer *answers);

/*
 * Whether got is want, from got's first token of each choice on. When not, where they part is said
 * in why.
 */
bool answer_equal(const struct answer *want, const struct answer *got, char *why, size_t why_len);

#endif

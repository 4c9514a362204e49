/* SPDX-License-Identifier: MIT */
/*
 * What an engine is asked, and what it answered. Each token event becomes a record of bytes in its
 * choice's stream; a stream may begin in the middle, where a request went on behind tokens that
 * were known. The order of a request's events is checked as they come.
 */
#include "lib_streams.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_vocab.h"

/* ---- requests -------------------------------------------------------------------------------- */

void asked_plain(struct asked *a, const uint32_t *prompt, uint32_t n, uint32_t max_tokens)
{
	*a = (struct asked){ 0 };
	assert(n <= ASKED_PROMPT_MAX);
	memcpy(a->prompt, prompt, n * sizeof(*prompt));
	a->r = (struct engine_request){
		.kind = ENGINE_GENERATE,
		.n_prompt = n,
		.n_choices = 1,
		.max_tokens = max_tokens,
		.sampler = { .top_p = 1, .repetition = 1 },
	};
}

static bool chance(uint64_t *rng, unsigned percent)
{
	return test_random(rng) % 100 < percent;
}

static uint32_t below(uint64_t *rng, uint32_t n)
{
	return (uint32_t)(test_random(rng) % n);
}

/* Any value of [0, 1), in steps that a float holds. */
static float part(uint64_t *rng)
{
	return (float)below(rng, 1 << 12) / (1 << 12);
}

/*
 * A family's beginning is always the same; some repeat themselves, which is what guesses are made
 * of.
 */
static uint32_t random_prompt(uint64_t *rng, uint32_t vocab, uint32_t *prompt)
{
	uint64_t family = below(rng, 3);
	uint32_t shared = chance(rng, 70) ? 32 * below(rng, 4) + below(rng, 3) : below(rng, 20);
	uint32_t n = 0, end = shared + 1 + below(rng, 50);

	for (; n < shared; n++)
		prompt[n] = below(&family, vocab - 4);
	for (; n < end; n++)
		prompt[n] = n > 6 && chance(rng, 40) ? prompt[n - 5] : below(rng, vocab - 4);
	return n;
}

static void random_sampler(struct asked *a, uint64_t *rng, uint32_t vocab)
{
	struct sampler_params *p = &a->r.sampler;

	p->seed = test_random(rng);
	if (chance(rng, 60))
		p->temperature = 0.05f + 2 * part(rng);
	if (chance(rng, 30))
		p->top_k = 1 + below(rng, 40);
	if (chance(rng, 30))
		p->top_p = part(rng);
	if (chance(rng, 20))
		p->min_p = part(rng) / 4;
	if (chance(rng, 25))
		p->repetition = 0.75f + part(rng);
	if (chance(rng, 20))
		p->frequency = 4 * part(rng) - 1;
	if (chance(rng, 20))
		p->presence = 4 * part(rng) - 1;
	if (chance(rng, 30))
		a->r.last_n = 1 + below(rng, 64);
	if (chance(rng, 20))
		p->n_bias = 1 + below(rng, ASKED_BIAS_MAX);
	for (uint32_t i = 0; i < p->n_bias; i++)
		a->bias[i] =
			(struct sampler_bias){ i * 50 + below(rng, 50),
					       chance(rng, 20) ? -INFINITY : 8 * part(rng) - 4 };
	/* Now and then an end that comes. */
	if (p->n_bias && chance(rng, 50))
		a->bias[p->n_bias - 1] = (struct sampler_bias){ vocab - 3, 4 * part(rng) };
}

void asked_random(struct asked *a, uint64_t *rng, uint32_t vocab)
{
	static const char letters[] = " etaoinsrhld";

	*a = (struct asked){ 0 };
	a->r = (struct engine_request){
		.kind = chance(rng, 85)	  ? ENGINE_GENERATE
			: chance(rng, 60) ? ENGINE_SCORE
					  : ENGINE_EMBED,
		.principal = { .tenant = chance(rng, 20), .uid = 1000 + chance(rng, 20) },
		.priority = below(rng, 4),
		.n_choices = 1,
		.max_tokens = 1 + below(rng, ASKED_TOKENS_MAX),
		.sampler = { .top_p = 1, .repetition = 1 },
		.pool_last = chance(rng, 50),
	};
	a->r.n_prompt = random_prompt(rng, vocab, a->prompt);
	if (chance(rng, 10))
		a->r.flags |= ENGINE_NO_CACHE;
	if (a->r.kind == ENGINE_SCORE)
		a->r.n_top = below(rng, 4);
	if (a->r.kind != ENGINE_GENERATE)
		return;
	random_sampler(a, rng, vocab);
	if (chance(rng, 25))
		a->r.n_choices = 2 + below(rng, 3);
	if (chance(rng, 25))
		a->r.flags |= ENGINE_IGNORE_EOS;
	if (chance(rng, 20))
		a->r.min_tokens = below(rng, a->r.max_tokens + 1);
	if (chance(rng, 30)) {
		a->r.flags |= ENGINE_LOGPROBS;
		a->r.n_top = below(rng, 6);
	}
	if (chance(rng, 30))
		a->r.n_stops = 1 + below(rng, ASKED_STOPS_MAX);
	for (uint32_t i = 0; i < a->r.n_stops; i++) {
		a->stops[i].len = 1 + below(rng, 3);
		for (uint32_t j = 0; j < a->stops[i].len; j++)
			a->stop[i][j] = letters[below(rng, 12)];
	}
}

const struct engine_request *asked_request(struct asked *a)
{
	a->r.prompt = a->prompt;
	a->r.sampler.bias = a->bias;
	a->r.stops = a->stops;
	for (uint32_t i = 0; i < a->r.n_stops; i++)
		a->stops[i].text = a->stop[i];
	return &a->r;
}

void asked_print(const struct asked *a)
{
	const struct engine_request *r = &a->r;
	const struct sampler_params *p = &r->sampler;

	fprintf(stderr,
		"kind %d flags %u uid %" PRIu32 " tenant %" PRIu64 " priority %" PRIu32
		" choices %" PRIu32 " max %" PRIu32 " min %" PRIu32 " T %g top_k %" PRIu32
		" top_p %g min_p %g rep %g freq %g "
		"pres %g last_n %" PRIu32 " bias %" PRIu32 " stops %" PRIu32 " n_top %" PRIu32
		" seed %" PRIu64 " prompt of %" PRIu32 ":",
		(int)r->kind, r->flags, r->principal.uid, r->principal.tenant, r->priority,
		r->n_choices, r->max_tokens, r->min_tokens, (double)p->temperature, p->top_k,
		(double)p->top_p, (double)p->min_p, (double)p->repetition, (double)p->frequency,
		(double)p->presence, r->last_n, p->n_bias, r->n_stops, r->n_top, p->seed,
		r->n_prompt);
	for (uint32_t i = 0; i < r->n_prompt; i++)
		fprintf(stderr, " %" PRIu32, a->prompt[i]);
	for (uint32_t i = 0; i < r->n_stops; i++)
		fprintf(stderr, " stop \"%.*s\"", (int)a->stops[i].len, a->stop[i]);
	fprintf(stderr, "\n");
}

/* ---- collecting ------------------------------------------------------------------------------ */

struct run {
	struct asked
		*asked[ENGINE_SLOTS_MAX]; /* of each slot; NULL: free, or one to be cancelled */
	struct answer *answer[ENGINE_SLOTS_MAX];
	uint32_t left[ENGINE_SLOTS_MAX]; /* steps until it is cancelled */
};

static void *grown(void *p, size_t bytes)
{
	p = realloc(p, bytes);
	assert(p);
	return p;
}

static void add(struct stream *s, const void *p, size_t n)
{
	size_t end = s->at[s->n + 1];

	s->bytes = grown(s->bytes, end + n + 1);
	if (n)
		memcpy(s->bytes + end, p, n);
	s->at[s->n + 1] = end + n;
}

static void take_token(void *ctx, const struct engine_token *t)
{
	struct run *r = ctx;
	struct answer *a = r->answer[t->slot];
	struct stream *s;
	uint32_t head[6] = { t->index, t->token, t->finish, t->text_len, t->has_logprob, t->n_top };

	if (!a)
		return;
	assert(!a->ended && t->choice < r->asked[t->slot]->r.n_choices);
	s = &a->choice[t->choice];
	assert(t->index == s->from + s->n && s->finish == ENGINE_GOES_ON);
	s->tokens = grown(s->tokens, (s->n + 1) * sizeof(*s->tokens));
	s->logprobs = grown(s->logprobs, (s->n + 1) * sizeof(*s->logprobs));
	s->logprobs[s->n] = t->has_logprob ? t->logprob : NAN;
	s->at = grown(s->at, (s->n + 2) * sizeof(*s->at));
	if (!s->n)
		s->at[0] = 0;
	s->at[s->n + 1] = s->at[s->n];
	s->tokens[s->n] = t->token;
	add(s, head, sizeof(head));
	add(s, t->text, t->text_len);
	if (t->has_logprob)
		add(s, &t->logprob, sizeof(t->logprob));
	add(s, t->top, t->n_top * sizeof(*t->top));
	s->text = grown(s->text, s->n_text + t->text_len + 1);
	memcpy(s->text + s->n_text, t->text_len ? t->text : "", t->text_len);
	s->n_text += t->text_len;
	s->text[s->n_text] = 0;
	s->finish = t->finish;
	s->n++;
}

static void take_replayed(void *ctx, uint32_t slot, uint32_t choice, uint32_t index, uint32_t token)
{
	struct run *r = ctx;
	struct answer *a = r->answer[slot];

	if (!a)
		return;
	assert(!a->ended && !a->choice[choice].n && !a->choice[choice].replayed);
	a->choice[choice].replayed = index + 1;
	a->choice[choice].replayed_token = token;
}

static void take_vector(void *ctx, uint32_t slot, const float *v, uint32_t n)
{
	struct run *r = ctx;
	struct answer *a = r->answer[slot];

	if (!a)
		return;
	assert(!a->ended && !a->vector);
	a->vector = grown(NULL, n * sizeof(*v));
	a->n_vector = n;
	memcpy(a->vector, v, n * sizeof(*v));
}

static void take_progress(void *ctx, uint32_t slot, uint32_t prompt_tokens)
{
	struct run *r = ctx;
	struct answer *a = r->answer[slot];

	if (!a)
		return;
	assert(!a->ended && prompt_tokens <= r->asked[slot]->r.n_prompt);
	a->progress = prompt_tokens;
}

static void take_end(void *ctx, const struct engine_end *end)
{
	struct run *r = ctx;

	if (r->answer[end->slot]) {
		assert(!r->answer[end->slot]->ended);
		r->answer[end->slot]->ended = true;
		r->answer[end->slot]->end = *end;
	}
	r->asked[end->slot] = NULL;
	r->answer[end->slot] = NULL;
	r->left[end->slot] = 0;
}

static int step(struct engine *e, struct run *r)
{
	struct engine_sink sink = { r,		 take_token,	take_replayed,
				    take_vector, take_progress, take_end };
	char why[256] = "";
	int more = engine_step(e, &sink, why, sizeof(why));

	if (more < 0) {
		fprintf(stderr, "engine_step: %d %s\n", more, why);
		abort();
	}
	return more;
}

static void start(struct engine *e, struct run *r, uint32_t slot, struct asked *asked,
		  const struct engine_done *done, struct answer *a)
{
	char why[256] = "";
	int err;

	asked_request(asked);
	asked->r.done = done;
	r->asked[slot] = asked;
	r->answer[slot] = a;
	for (uint32_t c = 0; done && c < asked->r.n_choices; c++)
		a->choice[c].from = done[c].n;
	err = engine_start(e, slot, &asked->r, why, sizeof(why));
	asked->r.done = NULL;
	if (err) {
		asked_print(asked);
		fprintf(stderr, "engine_start: %d %s\n", err, why);
		abort();
	}
}

void answer_to(struct engine *e, struct asked *asked, struct answer *a)
{
	struct run r = { 0 };

	*a = (struct answer){ 0 };
	start(e, &r, 0, asked, NULL, a);
	while (step(e, &r) > 0)
		;
	assert(a->ended);
}

void answer_free(struct answer *a)
{
	for (uint32_t i = 0; i < ENGINE_CHOICES_MAX; i++) {
		free(a->choice[i].tokens);
		free(a->choice[i].logprobs);
		free(a->choice[i].at);
		free(a->choice[i].bytes);
		free(a->choice[i].text);
	}
	free(a->vector);
	*a = (struct answer){ 0 };
}

/* Some of the tokens of each choice, as a broker's journal holds them when an executor has died. */
static void known_part(const struct asked *asked, const struct answer *known, uint64_t *rng,
		       struct engine_done *done)
{
	for (uint32_t c = 0; c < asked->r.n_choices; c++) {
		const struct stream *s = &known->choice[c];

		done[c] = (struct engine_done){ below(rng, s->n + 1), s->tokens, false };
		done[c].finished = s->n && done[c].n == s->n;
	}
}

static uint32_t free_slot(const struct run *r, uint32_t slots, uint64_t *rng)
{
	uint32_t at = below(rng, slots);

	while (r->asked[at])
		at = (at + 1) % slots;
	return at;
}

void answers_to(struct engine *e, struct asked *asked, const struct answer *known, uint32_t n,
		const struct pace *pace, uint64_t *rng, struct answer *answers)
{
	uint32_t *order = grown(NULL, n * sizeof(*order)), next = 0, slots = engine_facts(e)->slots;
	struct asked doomed[ENGINE_SLOTS_MAX];
	struct run r = { 0 };
	int more = 1;

	assert(pace->at_once && pace->at_once <= slots);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t at = pace->shuffled ? below(rng, i + 1) : i;

		answers[i] = (struct answer){ 0 };
		order[i] = i;
		order[i] = order[at];
		order[at] = i;
	}
	while (next < n || more) {
		uint32_t running = 0;

		for (uint32_t i = 0; i < slots; i++)
			running += r.asked[i] != NULL;
		while (running < pace->at_once && next < n &&
		       (!pace->join_every || !below(rng, pace->join_every))) {
			struct engine_done done[ENGINE_CHOICES_MAX] = { { 0 } };
			uint32_t i = order[next++];
			bool again =
				asked[i].r.kind == ENGINE_GENERATE && chance(rng, pace->replays);

			if (again)
				known_part(&asked[i], &known[i], rng, done);
			start(e, &r, free_slot(&r, slots, rng), &asked[i], again ? done : NULL,
			      &answers[i]);
			running++;
		}
		if (running < slots && chance(rng, pace->cancels)) {
			uint32_t slot = free_slot(&r, slots, rng);

			doomed[slot] = asked[below(rng, n)];
			start(e, &r, slot, &doomed[slot], NULL, NULL);
			r.left[slot] = 1 + below(rng, 12);
		}
		more = step(e, &r);
		for (uint32_t i = 0; i < slots; i++)
			if (r.left[i] && !--r.left[i]) {
				engine_cancel(e, i);
				r.asked[i] = NULL;
			}
	}
	for (uint32_t i = 0; i < n; i++)
		assert(answers[i].ended);
	free(order);
}

/* ---- comparing ------------------------------------------------------------------------------- */

static bool stream_equal(const struct stream *want, const struct stream *got, char *why,
			 size_t why_len)
{
	if (got->replayed &&
	    (got->replayed != got->from || got->replayed_token != want->tokens[got->from - 1])) {
		snprintf(why, why_len, "token %" PRIu32 " was told again as %" PRIu32,
			 got->replayed - 1, got->replayed_token);
		return false;
	}
	for (uint32_t i = 0, at = got->from; i < got->n && at < want->n; i++, at++) {
		const uint8_t *w = want->bytes + want->at[at], *g = got->bytes + got->at[i];
		size_t n = want->at[at + 1] - want->at[at];
		uint32_t is[6], be[6];

		if (n == got->at[i + 1] - got->at[i] && !memcmp(w, g, n))
			continue;
		memcpy(is, g, sizeof(is));
		memcpy(be, w, sizeof(be));
		snprintf(why, why_len,
			 "token %" PRIu32 " of %" PRIu32 " is %" PRIu32 ", finish %" PRIu32
			 ", %" PRIu32 " bytes; should be %" PRIu32 ", finish %" PRIu32 ", %" PRIu32
			 " bytes%s",
			 at, want->n, is[1], is[2], is[3], be[1], be[2], be[3],
			 memcmp(is, be, sizeof(is)) ? ""
						    : "; the text or a log-probability differs");
		return false;
	}
	if (got->from + got->n != want->n) {
		snprintf(why, why_len, "%" PRIu32 " tokens, should be %" PRIu32, got->from + got->n,
			 want->n);
		return false;
	}
	return true;
}

bool answer_equal(const struct answer *want, const struct answer *got, char *why, size_t why_len)
{
	char inner[200] = "";

	if (want->end.err != got->end.err || want->end.index != got->end.index ||
	    want->end.prompt_tokens != got->end.prompt_tokens) {
		snprintf(why, why_len,
			 "end %d at %" PRIu32 " of a prompt of %" PRIu32
			 ", should be %d at %" PRIu32 " of %" PRIu32,
			 got->end.err, got->end.index, got->end.prompt_tokens, want->end.err,
			 want->end.index, want->end.prompt_tokens);
		return false;
	}
	for (uint32_t c = 0; c < ENGINE_CHOICES_MAX; c++)
		if (!stream_equal(&want->choice[c], &got->choice[c], inner, sizeof(inner))) {
			snprintf(why, why_len, "choice %" PRIu32 ": %s", c, inner);
			return false;
		}
	if (want->n_vector != got->n_vector ||
	    (want->n_vector &&
	     memcmp(want->vector, got->vector, want->n_vector * sizeof(*want->vector)) != 0)) {
		snprintf(why, why_len, "the vector differs");
		return false;
	}
	return true;
}

/* SPDX-License-Identifier: MIT */
/*
 * One token: from logits to an id, from an id to text and the question whether the answer ends with it.
 *
 * What penalties look at is counted anew for each token, from the tokens themselves. That costs a few
 * nanoseconds a token of history, beside milliseconds for the pass, and there is no count that a guess
 * that failed, a fault or another choice could leave wrong.
 */
#include <errno.h>
#include <math.h>
#include <string.h>
#include "engine_private.h"

static bool has_penalties(const struct sampler_params *p)
{
	return p->repetition != 1 || p->frequency != 0 || p->presence != 0;
}

static bool forbids_stops(const struct request *r, uint32_t index)
{
	return index - r->n_prompt < r->min_tokens && !(r->flags & ENGINE_IGNORE_EOS);
}

uint32_t token_top(const struct request *r, uint32_t index)
{
	const struct sampler_params *p = &r->sampler;

	if (r->flags & ENGINE_LOGPROBS || has_penalties(p) || p->n_bias || forbids_stops(r, index))
		return 0;
	return p->temperature > 0 ? p->top_k : 1;
}

/* Distinct tokens of the window before index, in e->seen. */
static uint32_t look_back(struct engine *e, const struct strand *s, uint32_t index)
{
	uint32_t last_n = s->request->last_n, n = 0;
	uint32_t from = last_n && last_n < index ? index - last_n : 0;

	for (uint32_t i = from; i < index; i++)
		if (!e->n_seen[s->tokens[i]]++)
			e->seen[n++].token = s->tokens[i];
	for (uint32_t i = 0; i < n; i++) {
		e->seen[i].count = e->n_seen[e->seen[i].token];
		e->n_seen[e->seen[i].token] = 0;
	}
	return n;
}

int token_draw(struct engine *e, const struct strand *s, uint32_t index, float *logits, bool whole,
	       struct engine_token *t, struct sampler_top *top)
{
	const struct request *r = s->request;
	const struct sampler_params *p = &r->sampler;
	uint32_t vocab = e->facts.arch->vocab, faults = 0;
	uint32_t n_seen = has_penalties(p) ? look_back(e, s, index) : 0;
	bool changes = n_seen || p->n_bias;
	float *z = logits;
	int err;

	if (changes && r->flags & ENGINE_LOGPROBS) {
		z = e->adjusted;
		memcpy(z, logits, vocab * sizeof(*z));
	}
	/* Where rows were left out their -infinity is no fault; the device has looked at the others. */
	if (whole)
		sampler_adjust(z, vocab, p, e->seen, n_seen, &faults);
	err = faults ? -EDOM :
		       sampler_draw(z, vocab, p, forbids_stops(r, index) ? e->no_stops : NULL, index,
				    s->choice, e->scratch, &t->token);
	/* A bias that forbids every token leaves none to draw. */
	if (err || !isfinite(logits[t->token]))
		return -EDOM;
	t->has_logprob = r->flags & ENGINE_LOGPROBS;
	if (t->has_logprob) {
		t->n_top = sampler_logprobs(logits, vocab, t->token, &t->logprob, top, r->n_top,
					    e->scratch);
		t->top = top;
	}
	return 0;
}

/* The end of what detok holds back, through the stop strings. */
static size_t flush(struct strand *s, char *out, bool *hit)
{
	const struct request *r = s->request;
	char tail[16];
	size_t n = detok_flush(&s->detok, tail);

	n = stop_push(r->stops, r->n_stops, &s->stop, tail, n, out, hit);
	if (!*hit)
		n += stop_flush(&s->stop, out + n);
	return n;
}

void token_push(struct engine *e, struct strand *s, uint32_t token, struct engine_token *t)
{
	const struct request *r = s->request;
	bool ends = !(r->flags & ENGINE_IGNORE_EOS) && tokenizer_is_stop(e->tokenizer, token);
	bool hit = false;
	size_t n = 0, len;

	t->index = s->n - r->n_prompt;
	t->token = token;
	s->tokens[s->n++] = token;
	/* A stop token is no text, whatever its own would be. */
	if (!ends) {
		len = detok_push(&s->detok, e->tokenizer, token, e->text);
		n = stop_push(r->stops, r->n_stops, &s->stop, e->text, len, e->cut, &hit);
	}
	if (ends || hit)
		t->finish = ENGINE_STOP;
	else if (s->n - r->n_prompt == r->max_tokens)
		t->finish = ENGINE_LENGTH;
	if (t->finish && !hit) {
		n += flush(s, e->cut + n, &hit);
		if (hit)
			t->finish = ENGINE_STOP;
	}
	t->text = e->cut;
	t->text_len = (uint32_t)n;
}

/* SPDX-License-Identifier: MIT */
/*
 * Requests judged, taken in and given up. What comes may be a stranger's: it is refused with a sentence
 * or copied into the slot's memory, and believed from then on.
 */
#include <assert.h>
#include <errno.h>
#include <math.h>
#include <string.h>
#include "engine_private.h"
#include "obm_check.h"

#define refuse(err, ...) obm_refuse(why, why_len, err, __VA_ARGS__)

static int check_tokens(const struct engine *e, const char *what, const uint32_t *tokens, uint32_t n,
			char *why, size_t why_len)
{
	uint32_t vocab = e->facts.arch->vocab;

	for (uint32_t i = 0; i < n; i++)
		if (tokens[i] >= vocab)
			return refuse(-EINVAL, "token %u of the %s is %u; the model has %u tokens",
				      i, what, tokens[i], vocab);
	return 0;
}

static int check_sampler(struct engine *e, const struct sampler_params *p, char *why,
			 size_t why_len)
{
	int err = 0;

	if (!isfinite(p->temperature))
		return refuse(-EINVAL, "the temperature is no finite number");
	if (isnan(p->top_p) || isnan(p->min_p) || p->min_p > 1)
		return refuse(-EINVAL, "top_p or min_p is no number, or min_p %g is above 1",
			      (double)p->min_p);
	if (!isfinite(p->repetition) || p->repetition <= 0)
		return refuse(-EINVAL, "a repetition penalty of %g is not above 0",
			      (double)p->repetition);
	if (!isfinite(p->frequency) || !isfinite(p->presence))
		return refuse(-EINVAL, "a frequency or presence penalty is no finite number");
	if (p->n_bias > ENGINE_BIAS_MAX)
		return refuse(-EINVAL, "%u logit biases are too many; at most %u", p->n_bias,
			      ENGINE_BIAS_MAX);
	for (uint32_t i = 0; i < p->n_bias; i++)
		if (p->bias[i].token >= e->facts.arch->vocab)
			return refuse(-EINVAL, "the bias of token %u: the model has %u tokens",
				      p->bias[i].token, e->facts.arch->vocab);
	for (uint32_t i = 0; i < p->n_bias; i++) {
		const struct sampler_bias *b = &p->bias[i];

		if (isnan(b->bias) || b->bias == INFINITY)
			err = refuse(-EINVAL, "the bias of token %u is %g", b->token,
				     (double)b->bias);
		else if (e->n_seen[b->token]++)
			err = refuse(-EINVAL, "token %u has more than one bias", b->token);
	}
	for (uint32_t i = 0; i < p->n_bias; i++)
		e->n_seen[p->bias[i].token] = 0;
	return err;
}

static int check_done(const struct engine *e, const struct engine_request *r, char *why,
		      size_t why_len)
{
	int err = 0;

	for (uint32_t i = 0; r->done && !err && i < r->n_choices; i++) {
		const struct engine_done *d = &r->done[i];

		if (d->finished)
			continue;
		/* Its last token would have ended it. */
		if (d->n >= r->max_tokens || d->n >= e->facts.positions - r->n_prompt)
			return refuse(-EINVAL,
				      "choice %u is said to go on after %u tokens, but may have "
				      "no more",
				      i, d->n);
		err = check_tokens(e, "answer so far", d->tokens, d->n, why, why_len);
	}
	return err;
}

static int check_generate(struct engine *e, const struct engine_request *r, char *why,
			  size_t why_len)
{
	int err;

	if (!r->n_choices || r->n_choices > ENGINE_CHOICES_MAX)
		return refuse(-EINVAL, "%u choices; 1 to %u are possible", r->n_choices,
			      ENGINE_CHOICES_MAX);
	if (!r->max_tokens)
		return refuse(-EINVAL, "an answer of no tokens is none");
	if (r->n_stops > STOP_STRINGS_MAX)
		return refuse(-EINVAL, "%u stop strings are too many; at most %u", r->n_stops,
			      STOP_STRINGS_MAX);
	for (uint32_t i = 0; i < r->n_stops; i++)
		if (!r->stops[i].len || r->stops[i].len > STOP_BYTES_MAX)
			return refuse(-EINVAL, "stop string %u has %u bytes; 1 to %u are possible",
				      i, r->stops[i].len, STOP_BYTES_MAX);
	err = check_sampler(e, &r->sampler, why, why_len);
	return err ? err : check_done(e, r, why, why_len);
}

static int check(struct engine *e, const struct engine_request *r, char *why, size_t why_len)
{
	uint32_t positions = e->facts.positions, blocks = e->forward->n_blocks;
	int err;

	if (r->kind > ENGINE_EMBED)
		return refuse(-EINVAL, "there is no request of kind %u", (unsigned)r->kind);
	if (!r->n_prompt)
		return refuse(-EINVAL, "the prompt has no tokens");
	if (r->n_prompt > positions || (r->kind == ENGINE_GENERATE && r->n_prompt == positions))
		return refuse(-EMSGSIZE,
			      "the prompt has %u tokens; with an answer there is room for %u",
			      r->n_prompt, positions);
	if (r->n_prompt > (uint64_t)blocks * KV_BLOCK)
		return refuse(-ENOBUFS,
			      "the prompt has %u tokens, but the KV cache holds %llu at most; "
			      "give it more memory",
			      r->n_prompt, (unsigned long long)blocks * KV_BLOCK);
	if (r->n_top > SAMPLER_TOP_MAX)
		return refuse(-EINVAL, "%u log-probabilities a token are too many; at most %u",
			      r->n_top, SAMPLER_TOP_MAX);
	err = check_tokens(e, "prompt", r->prompt, r->n_prompt, why, why_len);
	if (!err && r->kind == ENGINE_GENERATE)
		err = check_generate(e, r, why, why_len);
	return err;
}

static void copy_params(struct engine *e, struct request *q, const struct engine_request *r)
{
	uint32_t room = e->facts.positions - r->n_prompt;
	char *text = q->stop_text;

	q->n_choices = r->kind == ENGINE_GENERATE ? r->n_choices : 1;
	q->max_tokens = r->max_tokens < room ? r->max_tokens : room;
	q->min_tokens = r->min_tokens;
	q->sampler = r->sampler;
	q->sampler.bias = q->bias;
	q->last_n = r->last_n;
	q->n_stops = 0;
	if (r->kind != ENGINE_GENERATE)
		return;
	if (r->sampler.n_bias)
		memcpy(q->bias, r->sampler.bias, r->sampler.n_bias * sizeof(*q->bias));
	for (; q->n_stops < r->n_stops; q->n_stops++) {
		const struct stop_string *s = &r->stops[q->n_stops];

		q->stops[q->n_stops] = (struct stop_string){ text, s->len };
		memcpy(text, s->text, s->len);
		text += s->len;
	}
}

/* The answer so far, as if it had been told: its text goes nowhere, but what it holds back stays. */
static int begin_strand(struct engine *e, struct strand *s, const struct engine_request *r, char *why,
			size_t why_len)
{
	const struct engine_done *d = r->kind == ENGINE_GENERATE && r->done ? &r->done[s->choice] :
									      NULL;

	assert(!s->seq);
	*s = (struct strand){
		.request = s->request, .choice = s->choice, .tokens = s->tokens,
		.n = r->n_prompt, .state = STRAND_WAITS, .hit_share = 160,
	};
	detok_init(&s->detok, e->tokenizer);
	if (d && d->finished) {
		s->state = STRAND_DONE;
		return 0;
	}
	memcpy(s->tokens, r->prompt, r->n_prompt * sizeof(*s->tokens));
	for (uint32_t i = 0; d && i < d->n; i++) {
		struct engine_token t = { 0 };

		token_push(e, s, d->tokens[i], &t);
		if (t.finish)
			return refuse(-EINVAL,
				      "choice %u is said to go on, but token %u ended it",
				      s->choice, i);
	}
	s->replay = d && d->n;
	return 0;
}

int engine_start(struct engine *e, uint32_t slot, const struct engine_request *r, char *why,
		 size_t why_len)
{
	struct request *q = &e->requests[slot];
	bool leads = true;
	int err;

	assert(slot < e->options.slots && !q->live);
	err = check(e, r, why, why_len);
	if (err)
		return err;
	q->kind = r->kind;
	q->flags = r->flags;
	q->principal = r->principal;
	q->priority = r->priority;
	q->n_prompt = r->n_prompt;
	q->n_top = r->n_top;
	q->pool_last = r->pool_last;
	q->looked = false;
	q->cached = q->progress = q->told = 0;
	memset(q->vector, 0, e->facts.arch->hidden * sizeof(*q->vector));
	copy_params(e, q, r);
	for (uint32_t i = 0; !err && i < q->n_choices; i++)
		err = begin_strand(e, &q->strands[i], r, why, why_len);
	for (uint32_t i = 0; i < ENGINE_CHOICES_MAX; i++) {
		struct strand *s = &q->strands[i];

		if (err || i >= q->n_choices)
			s->state = STRAND_DONE;
		/* The first that has something to do computes the prompt for all. */
		if (s->state == STRAND_WAITS && leads) {
			s->state = STRAND_RUNS;
			leads = false;
		}
	}
	if (err)
		return err;
	q->birth = ++e->births;
	q->live = true;
	return 0;
}

void engine_cancel(struct engine *e, uint32_t slot)
{
	struct request *r = &e->requests[slot];

	assert(slot < e->options.slots);
	for (uint32_t i = 0; r->live && i < r->n_choices; i++) {
		strand_close(e, &r->strands[i]);
		r->strands[i].state = STRAND_DONE;
	}
	r->live = false;
}

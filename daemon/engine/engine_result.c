/* SPDX-License-Identifier: MIT */
/*
 * What came out of a batch. Rows are looked at in order of their positions, and each as if it had been
 * alone: a guess counts only while every token drawn before it was the one that had been guessed, a fault
 * only when its row does.
 *
 * A sink may end requests and begin others while it is called; so whoever called one looks whether its
 * request is still the same.
 */
#include "engine_private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

static bool is_alive(const struct part *p)
{
	return p->strand->request->live && p->strand->request->birth == p->birth;
}

/* ---- the end of things ---------------------------------------------------------------------------- */

void request_end(struct engine *e, struct request *r, int err, uint32_t index,
		 const struct engine_sink *sink)
{
	struct engine_end end = {
		.slot = r->slot, .err = err, .index = index, .prompt_tokens = r->n_prompt,
		.cached_tokens = r->cached,
	};

	engine_cancel(e, r->slot);
	sink->end(sink->ctx, &end);
}

/* Others may find the first n positions, if they may find anything of this request's. */
static void known(struct engine *e, const struct strand *s, uint32_t n)
{
	if (request_finds(e, s->request))
		kv_computed(e->kv, s->seq, n);
}

static void strand_done(struct engine *e, struct strand *s)
{
	strand_close(e, s);
	s->state = STRAND_DONE;
}

void request_settle(struct engine *e, struct request *r, const struct engine_sink *sink)
{
	struct engine_token t = { .slot = r->slot, .token = r->strands->tokens[0] };
	uint64_t birth = r->birth;

	if (r->kind == ENGINE_SCORE && !r->told) {
		r->told = 1;
		if (r->n_prompt == 1) {
			strand_done(e, r->strands);
			t.finish = ENGINE_LENGTH;
		}
		sink->token(sink->ctx, &t);
	}
	if (!r->live || r->birth != birth)
		return;
	for (uint32_t i = 0; i < r->n_choices; i++)
		if (r->strands[i].state != STRAND_DONE)
			return;
	request_end(e, r, 0, 0, sink);
}

/* ---- generating ---------------------------------------------------------------------------------- */

/*
 * The prompt is in the cache: the strands that waited for it share it. They compute its last row once
 * more, from which their own first tokens come.
 */
static void fork_strands(struct engine *e, const struct strand *from)
{
	struct request *r = from->request;

	for (uint32_t i = 0; i < r->n_choices; i++) {
		struct strand *s = &r->strands[i];

		if (s->state != STRAND_WAITS)
			continue;
		s->seq = kv_seq_fork(e->kv, from->seq);
		assert(s->seq); /* there is one for each strand */
		kv_truncate(e->kv, s->seq, r->n_prompt - 1);
		s->at = r->n_prompt - 1;
		s->state = STRAND_RUNS;
	}
}

/* The token of one row that something is wanted of. False: no more of this part counts. */
static bool take_token(struct engine *e, const struct part *p, const struct batch_out *o,
		       const struct engine_sink *sink)
{
	struct strand *s = p->strand;
	struct request *r = s->request;
	struct engine_token t = { .slot = r->slot, .choice = s->choice };
	struct sampler_top top[SAMPLER_TOP_MAX];
	uint32_t pos = p->from + o->row - p->row, index = pos + 1 - r->n_prompt;
	uint32_t guess = s->tokens[pos + 1];
	bool guessed = o->row + p->n_drafts >= p->row + p->n_rows - 1 &&
		       o->row + 1 < p->row + p->n_rows;

	if (e->faults[o->row] || token_draw(e, s, pos + 1, o->logits, !o->top, &t, top)) {
		request_end(e, r, -EDOM, index, sink);
		return false;
	}
	if (s->replay) {
		s->replay = false;
		sink->replayed(sink->ctx, r->slot, s->choice, index, t.token);
		return is_alive(p);
	}
	token_push(e, s, t.token, &t);
	e->counts.tokens++;
	e->counts.accepted += guessed && t.token == guess;
	if (t.finish)
		strand_done(e, s);
	sink->token(sink->ctx, &t);
	return is_alive(p) && s->state == STRAND_RUNS && (!guessed || t.token == guess);
}

static void learn(struct strand *s, uint32_t held, uint32_t n_drafts)
{
	s->hit_share += (held * 256 / n_drafts) / 4 - s->hit_share / 4;
}

/* Rows of a prompt have been computed, and no event tells of it. */
static void tell_progress(struct request *r, const struct strand *s, const struct engine_sink *sink)
{
	uint32_t n = s->at < r->n_prompt ? s->at : r->n_prompt;

	/* A strand that computes again what it lost goes on from where it was, for who counts. */
	r->progress = n > r->progress ? n : r->progress;
	sink->progress(sink->ctx, r->slot, r->progress);
}

static void finish_tokens(struct engine *e, const struct part *p, const struct engine_sink *sink)
{
	struct strand *s = p->strand;
	uint32_t before = s->n, i = 0;

	if (s->at >= s->request->n_prompt)
		fork_strands(e, s);
	while (i < p->n_outs && take_token(e, p, &e->outs[p->out + i], sink))
		i++;
	if (!is_alive(p) || !p->n_drafts)
		return;
	e->counts.drafted += p->n_drafts;
	/* The last token is drawn from the row before it, and has none of its own. */
	learn(s, s->n - before - 1, p->n_drafts);
	if (s->state != STRAND_RUNS)
		return;
	s->at = s->n - 1;
	kv_truncate(e->kv, s->seq, s->at);
	known(e, s, s->at);
}

/* ---- scores and vectors --------------------------------------------------------------------------- */

static bool take_score(struct engine *e, const struct part *p, const struct batch_out *o,
		       const struct engine_sink *sink)
{
	static const struct sampler_params plain = { .repetition = 1, .top_p = 1 };
	struct strand *s = p->strand;
	struct request *r = s->request;
	struct sampler_top top[SAMPLER_TOP_MAX];
	struct engine_token t = { .slot = r->slot, .has_logprob = true, .top = top };
	uint32_t vocab = e->facts.arch->vocab, faults = e->faults[o->row];

	t.index = r->told;
	t.token = s->tokens[t.index];
	sampler_adjust(o->logits, vocab, &plain, NULL, 0, &faults);
	if (faults) {
		request_end(e, r, -EDOM, t.index, sink);
		return false;
	}
	t.n_top = sampler_logprobs(o->logits, vocab, t.token, &t.logprob, top, r->n_top,
				   e->scratch);
	r->told++;
	if (r->told == r->n_prompt) {
		t.finish = ENGINE_LENGTH;
		strand_done(e, s);
	}
	sink->token(sink->ctx, &t);
	return is_alive(p);
}

static void take_vector(struct engine *e, struct request *r, const float *row)
{
	uint32_t n = e->facts.arch->hidden;

	for (uint32_t i = 0; i < n; i++)
		r->vector[i] = r->pool_last ? row[i] : r->vector[i] + row[i];
	r->told++;
}

static void finish_vector(struct engine *e, const struct part *p, const struct engine_sink *sink)
{
	struct strand *s = p->strand;
	struct request *r = s->request;
	uint32_t n = e->facts.arch->hidden;

	for (uint32_t i = 0; i < p->n_outs; i++) {
		const struct batch_out *o = &e->outs[p->out + i];

		if (e->faults[o->row]) {
			request_end(e, r, -EDOM, p->from + o->row - p->row, sink);
			return;
		}
		take_vector(e, r, o->final);
	}
	if (s->at < s->n) {
		if (p->n_outs)
			tell_progress(r, s, sink);
		return;
	}
	for (uint32_t i = 0; i < n && !r->pool_last; i++)
		r->vector[i] /= (float)s->n;
	strand_done(e, s);
	sink->vector(sink->ctx, r->slot, r->vector, n);
}

/* ---- a part -------------------------------------------------------------------------------------- */

void part_finish(struct engine *e, const struct part *p, const struct engine_sink *sink)
{
	struct strand *s = p->strand;
	struct request *r = s->request;
	uint32_t sure = p->n_rows - p->n_drafts, silent = p->n_rows - p->n_outs, sound = 0;

	if (!is_alive(p))
		return;
	while (sound < sure && !e->faults[p->row + sound])
		sound++;
	if (sound < silent) {
		/* What nothing was wanted of, but what follows needs. */
		uint32_t first = strand_wants(s);

		request_end(e, r, -EDOM,
			    r->kind == ENGINE_GENERATE ? first + 1 - r->n_prompt :
			    r->kind == ENGINE_SCORE    ? first + 1 :
							 p->from + sound,
			    sink);
		return;
	}
	if (s->at < r->n_prompt)
		e->counts.prompt_tokens += sure;
	known(e, s, p->from + sound);
	s->at = p->from + sure;
	if (!p->n_outs) {
		tell_progress(r, s, sink);
		if (!is_alive(p))
			return;
	}
	if (r->kind == ENGINE_GENERATE)
		finish_tokens(e, p, sink);
	else if (r->kind == ENGINE_EMBED)
		finish_vector(e, p, sink);
	else
		for (uint32_t i = 0; i < p->n_outs; i++)
			if (!take_score(e, p, &e->outs[p->out + i], sink))
				break;
}

/* SPDX-License-Identifier: MIT */
/*
 * What goes into the next batch: first the strands that decode, a row each and perhaps a guess, then
 * prompts, cut so that a step stays short. Within each, the lower priority number goes first, then who
 * has waited longest: where not all fit, they take turns.
 *
 * Room in the KV cache is found when rows are. Where there is none, the strand that comes last of all
 * (highest priority number, youngest, highest choice) loses its cache, if it comes behind the one
 * that asks and has no rows in this batch yet; it computes everything again when there is room for all
 * of it, and its answer does not change. So the first strand of all always goes on, or is alone with a
 * cache that is too small for it.
 */
#include "engine_private.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/*
 * Guesses cost rows. A further row costs about a third of a batch's first one (weights are read once, but
 * multiplied again), so of a strand's guesses more than a third must hold, else it only tries
 * now and then; long guesses are for who is mostly right. A batch of many has no rows to spare.
 */
enum {
	DRAFT_STRANDS = 4, /* that decode, at most */
	DRAFT_SHARE = 96,  /* that hold, in 1/256 */
	DRAFT_SURE = 192,
	DRAFT_SHORT = 3, /* tokens */
	DRAFT_RETRY = 16,
};

/* ---- who comes first --------------------------------------------------------------------------- */

static int order(uint64_t a, uint64_t b)
{
	return a < b ? -1 : a > b;
}

/* Who keeps its cache: a total order, below 0 where a does. */
static int by_claim(const struct strand *a, const struct strand *b)
{
	int c = order(a->request->priority, b->request->priority);

	c = c ? c : order(a->request->birth, b->request->birth);
	return c ? c : order(a->choice, b->choice);
}

static int by_turn(const struct strand *a, const struct strand *b)
{
	int c = order(a->request->priority, b->request->priority);

	c = c ? c : order(a->turn, b->turn);
	return c ? c : by_claim(a, b);
}

static bool decodes(const struct strand *s)
{
	return s->request->kind == ENGINE_GENERATE && s->seq && s->at >= strand_wants(s);
}

/* What one composition has left, and has seen. */
struct composing {
	struct engine *e;
	uint32_t rows, outs; /* of prompts; of all */
	uint32_t decoding, waiting;
	uint32_t turns; /* of those that decode, still to come */
	struct strand *starved; /* first of those that found no room */
};

/* The next by turn, of those that decode, or of those that do not; none is asked twice in a step. */
static struct strand *next_strand(const struct engine *e, bool decoding)
{
	struct strand *best = NULL;

	for (uint32_t i = 0; i < e->n_strands; i++) {
		struct strand *s = &e->strands[i];

		if (s->state != STRAND_RUNS || decodes(s) != decoding ||
		    s->asked == e->counts.steps)
			continue;
		if (!best || by_turn(s, best) < 0)
			best = s;
	}
	if (best)
		best->asked = e->counts.steps;
	return best;
}

/* ---- room in the cache --------------------------------------------------------------------------- */

void strand_close(struct engine *e, struct strand *s)
{
	if (s->seq)
		kv_seq_close(e->kv, s->seq, request_finds(e, s->request));
	s->seq = NULL;
	s->at = 0;
}

/* Takes the cache of the one that comes last, behind s; false: there is none. */
static bool preempt(struct engine *e, const struct strand *s)
{
	struct strand *last = NULL;

	for (uint32_t i = 0; i < e->n_strands; i++) {
		struct strand *v = &e->strands[i];

		if (v->state == STRAND_RUNS && v->seq && v->served != e->counts.steps &&
		    by_claim(v, s) > 0 && (!last || by_claim(v, last) > 0))
			last = v;
	}
	if (!last)
		return false;
	strand_close(e, last);
	last->parked = true;
	e->counts.preempted++;
	return true;
}

/* A strand without a cache begins with what is known of its tokens. */
static void begin(struct engine *e, struct strand *s)
{
	struct request *r = s->request;
	uint32_t found = 0;

	s->seq = kv_seq_open(e->kv, r->principal);
	assert(s->seq); /* there is one for each strand */
	s->parked = false;
	if (request_finds(e, r))
		found = kv_seq_find(e->kv, s->seq, s->tokens, strand_wants(s) + 1);
	s->at = found;
	if (r->looked)
		return;
	r->looked = true;
	r->cached = found < r->n_prompt ? found : r->n_prompt;
	e->counts.cached_tokens += r->cached;
}

/* Whether a strand that lost its cache may begin again. */
static bool has_room(struct engine *e, const struct strand *s)
{
	struct kv_counts c;

	do {
		c = kv_counts(e->kv);
		if (!c.held || c.free + c.findable > (strand_end(s) + KV_BLOCK - 1) / KV_BLOCK)
			return true;
	} while (keep_drop(e));
	return false;
}

static void copy_block(const struct engine *e, const struct kv_copy *c)
{
	const struct dims *d = &e->forward->tape.dims;
	size_t bytes = kv_page_bytes(d->kv_form, d->head_dim);

	if (c->from == KV_NONE)
		return;
	for (uint32_t layer = 0; layer < d->layers; layer++)
		for (uint32_t head = 0; head < d->kv_heads; head++)
			memcpy(kv_page_at(d, c->to, layer, head),
			       kv_page_at(d, c->from, layer, head), bytes);
}

/* Room for n rows of which the last n_drafts can be missed; how many rows it is for, 0: none. */
static uint32_t make_room(struct engine *e, struct strand *s, uint32_t n, uint32_t n_drafts)
{
	struct kv_copy copy = { .from = KV_NONE };
	int err;

	assert(kv_seq_length(s->seq) == s->at);
	do {
		err = kv_append(e->kv, s->seq, s->tokens + s->at, n, &copy);
		if (err == -ENOSPC && n_drafts) {
			n -= n_drafts;
			n_drafts = 0;
			err = kv_append(e->kv, s->seq, s->tokens + s->at, n, &copy);
		}
	} while (err == -ENOSPC && (keep_drop(e) || preempt(e, s)));
	assert(!err || err == -ENOSPC);
	if (err)
		return 0;
	copy_block(e, &copy);
	return n;
}

/* ---- rows ---------------------------------------------------------------------------------------- */

static void add_out(struct engine *e, const struct part *p, uint32_t pos)
{
	const struct request *r = p->strand->request;
	struct batch_out *o = &e->outs[e->batch.n_outs];

	*o = (struct batch_out){ .row = p->row + pos - p->from };
	if (r->kind == ENGINE_EMBED) {
		o->final = e->final + (size_t)e->batch.n_outs * e->final_stride;
	} else {
		o->logits = e->logits + (size_t)e->batch.n_outs * e->logits_stride;
		o->top = r->kind == ENGINE_GENERATE ? token_top(r, pos + 1) : 0;
	}
	e->batch.n_outs++;
}

/* n rows from s->at, the last n_drafts of them guesses. False: there is no room. */
static bool add_part(struct composing *c, struct strand *s, uint32_t n, uint32_t n_drafts)
{
	struct engine *e = c->e;
	struct part *p = &e->parts[e->n_parts];
	uint32_t wants = strand_wants(s), room = make_room(e, s, n, n_drafts);

	if (!room) {
		if (!c->starved || by_claim(s, c->starved) < 0)
			c->starved = s;
		return false;
	}
	*p = (struct part){
		.strand = s, .birth = s->request->birth, .row = e->batch.n_rows, .n_rows = room,
		.out = e->batch.n_outs, .from = s->at, .n_drafts = room < n ? 0 : n_drafts,
	};
	for (uint32_t i = 0; i < room; i++) {
		uint32_t row = e->batch.n_rows++;

		e->token[row] = s->tokens[s->at + i];
		e->pos[row] = s->at + i;
		e->seq[row] = e->n_parts;
		e->faults[row] = 0;
		if (s->at + i >= wants)
			add_out(e, p, s->at + i);
	}
	p->n_outs = e->batch.n_outs - p->out;
	c->outs -= p->n_outs;
	e->n_parts++;
	s->served = e->counts.steps;
	s->turn = ++e->turns;
	return true;
}

/* How many tokens to guess for a strand; they stand behind the known ones. */
static uint32_t draft(const struct composing *c, struct strand *s)
{
	const struct request *r = s->request;
	uint32_t left = r->max_tokens - (s->n - r->n_prompt) - 1;
	uint32_t most;

	assert(c->turns); /* this strand's own, at least */
	most = c->outs / c->turns;
	if (c->e->options.no_speculation || c->decoding > DRAFT_STRANDS || s->at + 1 != s->n ||
	    most < 2)
		return 0;
	if (s->hit_share < DRAFT_SHARE && s->n % DRAFT_RETRY)
		return 0;
	most = most - 1 < left ? most - 1 : left;
	if (s->hit_share < DRAFT_SURE)
		most = most < DRAFT_SHORT ? most : DRAFT_SHORT;
	most = most < DRAFT_MAX ? most : DRAFT_MAX;
	return most ? draft_propose(s->tokens, s->n, most, s->tokens + s->n) : 0;
}

static void decoding_part(struct composing *c, struct strand *s)
{
	uint32_t n = strand_end(s) - s->at, n_drafts = draft(c, s);

	if (n <= c->outs)
		add_part(c, s, n + n_drafts, n_drafts);
	c->turns--;
}

static void prompt_part(struct composing *c, struct strand *s)
{
	uint32_t end, wants;

	if (!s->seq && s->parked && !has_room(c->e, s))
		return;
	if (!s->seq)
		begin(c->e, s);
	end = strand_end(s);
	wants = strand_wants(s) > s->at ? strand_wants(s) : s->at;
	end = end - s->at < c->rows ? end : s->at + c->rows;
	if (end > wants && end - wants > c->outs)
		end = wants + c->outs;
	if (end > s->at && add_part(c, s, end - s->at, 0))
		c->rows -= c->e->parts[c->e->n_parts - 1].n_rows;
}

/* Who found no room last time asks first now, while those behind it have no rows yet and can give way. */
static void compose_starved(struct composing *c, struct strand *s)
{
	if (!s || s->state != STRAND_RUNS)
		return;
	s->asked = c->e->counts.steps;
	if (decodes(s))
		decoding_part(c, s);
	else
		prompt_part(c, s);
}

struct strand *batch_compose(struct engine *e)
{
	const struct device_limits *l = &e->forward->limits;
	struct composing c = { .e = e, .rows = e->options.chunk, .outs = l->outs };
	struct strand *s;
	uint32_t kept;

	e->batch.n_rows = e->batch.n_outs = e->n_parts = 0;
	for (uint32_t i = 0; i < e->n_strands; i++)
		if (e->strands[i].state == STRAND_RUNS)
			*(decodes(&e->strands[i]) ? &c.decoding : &c.waiting) += 1;
	/* A prompt's last row, and a scored one's rows, need their share however many decode. */
	kept = c.waiting ? l->outs / 4 : 0;
	c.outs -= kept;
	c.turns = c.decoding;
	compose_starved(&c, e->starved);
	while (c.turns && (s = next_strand(e, true)))
		decoding_part(&c, s);
	c.outs += kept;
	while (c.rows && (s = next_strand(e, false)))
		prompt_part(&c, s);
	e->starved = c.starved;
	/* Not before: who found no room may have had to give some back since, but not what it reads. */
	for (uint32_t i = 0; i < e->n_parts; i++)
		e->blocks[i] = kv_seq_blocks(e->parts[i].strand->seq);
	return e->n_parts ? NULL : c.starved;
}

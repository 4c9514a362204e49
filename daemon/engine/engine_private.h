/* SPDX-License-Identifier: MIT */
#ifndef ENGINE_PRIVATE_H
#define ENGINE_PRIVATE_H

/*
 * What the files engine*.c share.
 *
 * A request has one strand for each choice. A strand knows n tokens (the prompt, then its answer so far),
 * of which the first `at` have their keys and values in the cache. Whatever happens to it, there is
 * one thing to do for it: compute rows at, at + 1, ... up to its end, and look at what comes out of
 * those rows that something is wanted of. Decoding is the case that one row is left; a strand that lost
 * its cache, or comes from an executor that died, merely has more of them.
 */

#include "draft.h"
#include "engine.h"
#include "forward.h"

enum strand_state {
	STRAND_DONE,
	STRAND_WAITS, /* for the first strand of its request, to share the prompt's cache */
	STRAND_RUNS,
};

struct strand {
	struct request *request;
	uint32_t choice;
	enum strand_state state;
	struct kv_seq *seq; /* NULL: nothing is in the cache */
	uint32_t *tokens;   /* [positions + DRAFT_MAX]; a guess stands behind those that are known */
	uint32_t n, at;
	bool replay;	    /* the last of them was told before a fault, and is computed anew */
	bool parked;	    /* lost its cache, and waits for room for all of it */
	uint64_t asked, served; /* the step in which its turn came last; in which it had rows */
	uint64_t turn;		/* counts these: the lower, the longer ago */
	uint32_t hit_share; /* of its guesses lately, in 1/256 */
	struct detok detok;
	struct stop_state stop;
};

struct request {
	bool live;
	uint64_t birth; /* counts requests: names this use of the slot */
	uint32_t slot;
	enum engine_kind kind;
	uint32_t flags;
	struct kv_principal principal;
	uint32_t priority, n_prompt, n_choices, min_tokens;
	uint32_t max_tokens; /* no more than fit the positions */
	struct sampler_params sampler;
	struct sampler_bias *bias;    /* [ENGINE_BIAS_MAX] */
	uint32_t last_n, n_stops;
	struct stop_string *stops; /* [STOP_STRINGS_MAX] */
	char *stop_text;	   /* [STOP_STRINGS_MAX * STOP_BYTES_MAX] */
	uint32_t n_top;
	bool pool_last;
	struct strand *strands; /* [ENGINE_CHOICES_MAX] */

	bool looked;	   /* for its prompt in the prefix cache: cached is what was found */
	uint32_t cached;
	uint32_t progress; /* told so far */
	uint32_t told;	   /* SCORE: tokens; EMBED: rows that are in the vector */
	float *vector;	   /* [hidden] */
};

/* A strand's rows in a batch. */
struct part {
	struct strand *strand;
	uint64_t birth; /* of its request: a sink may end one, and begin another in its place */
	uint32_t row, n_rows, out, n_outs;
	uint32_t from;	   /* position of the first row */
	uint32_t n_drafts; /* of the last rows */
};

/* What engine_keep() holds. */
struct keep {
	struct kv_seq *seq; /* NULL: nothing */
	uint64_t since;
};

struct engine {
	struct device *device;
	const struct obm *model;
	struct engine_options options;
	struct engine_facts facts;
	struct engine_counts counts;
	struct tokenizer *tokenizer;
	struct forward *forward;
	struct kv *kv;
	struct sampler_scratch *scratch;
	uint64_t births, turns;
	struct keep keeps[ENGINE_KEEPS];

	struct request *requests; /* [slots] */
	struct strand *strands;	  /* [slots * ENGINE_CHOICES_MAX] */
	uint32_t n_strands;

	struct batch batch;
	uint32_t *token, *pos, *seq, *faults; /* [rows] */
	const uint32_t **blocks;	      /* [rows] */
	struct part *parts;		      /* [rows] */
	uint32_t n_parts;
	struct batch_out *outs; /* [limits.outs] */
	float *logits;		/* [limits.outs][logits_stride], the device's */
	float *final;		/* [limits.outs][hidden up to whole tiles], the device's */
	uint32_t logits_stride, final_stride;
	struct strand *starved; /* the first of those that found no room in the last step; NULL */

	float *adjusted;	   /* [vocab]: logits with penalties, where the plain ones are needed too */
	uint32_t *n_seen;	   /* [vocab], zero between uses */
	struct sampler_seen *seen; /* [positions] */
	uint64_t *no_stops;	   /* bit for each token that is no stop token */
	char *text, *cut;	   /* of one token, before and after the stop strings */

	void *arena;
	size_t arena_bytes, device_bytes;
};

static inline bool request_finds(const struct engine *e, const struct request *r)
{
	return !e->options.no_prefixes && !(r->flags & ENGINE_NO_CACHE);
}

/* The first row that something is wanted of, and the first that is not needed. */
static inline uint32_t strand_wants(const struct strand *s)
{
	switch (s->request->kind) {
	case ENGINE_SCORE:
		return s->request->told - 1;
	case ENGINE_EMBED:
		return s->request->pool_last ? s->n - 1 : s->request->told;
	default:
		return s->n - 1 - s->replay;
	}
}

static inline uint32_t strand_end(const struct strand *s)
{
	return s->n - (s->request->kind == ENGINE_SCORE);
}

/* ---- engine_batch.c ---------------------------------------------------------------------------- */

/*
 * Fill e->batch and e->parts. A strand that has no room in the cache even with all that may be taken from
 * others is returned when nothing else can go on; otherwise NULL.
 */
struct strand *batch_compose(struct engine *e);
/* Its cache is given back; what others may use of it stays findable. */
void strand_close(struct engine *e, struct strand *s);

/* ---- engine_keep.c ----------------------------------------------------------------------------- */

/* Lets go of what was kept for longest. False: nothing is. */
bool keep_drop(struct engine *e);

/* ---- engine_result.c --------------------------------------------------------------------------- */

/* What came out of a part's rows. */
void part_finish(struct engine *e, const struct part *p, const struct engine_sink *sink);
void request_end(struct engine *e, struct request *r, int err, uint32_t index,
		 const struct engine_sink *sink);
/* What a request needs no rows for: a scored prompt's first token, the end of what is all done. */
void request_settle(struct engine *e, struct request *r, const struct engine_sink *sink);

/* ---- engine_token.c ---------------------------------------------------------------------------- */

/* The hint for a row that yields the token at this index of the sequence: batch_out.top. */
uint32_t token_top(const struct request *r, uint32_t index);
/*
 * The token at an index of the sequence from its logits. 0, or -EDOM. With log-probabilities the
 * likeliest are in t->top and the array is the caller's.
 */
int token_draw(struct engine *e, const struct strand *s, uint32_t index, float *logits, bool whole,
	       struct engine_token *t, struct sampler_top *top);
/* Append it to the answer: text and finish of t. */
void token_push(struct engine *e, struct strand *s, uint32_t token, struct engine_token *t);

#endif

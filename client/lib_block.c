/* SPDX-License-Identifier: MIT */
/*
 * Laying out a block: parameters, then the tables, each at a multiple of 8, then the bytes they
 * point to. Done in two passes over one plan, so that the size is known, and refused if it is too
 * large, before anything is copied. What the values mean is for the daemon to judge; only what
 * this library itself relies on is checked here.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include "lib_block.h"
#include "lib_text.h"

#define RECORD_GUESS   64u   /* bytes of a record: header and a generous text */
#define TOP_GUESS      32u   /* of one alternative: its struct and its text */
#define TOKENS_GUESS   512u  /* when the daemon's default number is to be taken */
#define TEMPLATE_GUESS 256u  /* tokens that a chat template may add */
#define EMBED_GUESS    (32u << 10) /* 8192 dimensions */
#define QUERY_GUESS    (16u << 10)

static uint64_t up8(uint64_t n)
{
	return (n + 7) & ~7ull;
}

struct onebit_params *lib_block_params(const struct lib_request *rq)
{
	return lib_request_has_block(rq->op) ? (struct onebit_params *)rq->block : NULL;
}

/* Make rq->block hold len bytes, keeping what is there. */
static int block_reserve(struct lib_request *rq, uint64_t len, struct onebit_error *err)
{
	uint32_t cap = 1024;
	char *p;

	if (len > ONEBIT_BLOCK_MAX)
		return lib_error_local(err, -EMSGSIZE, false,
				       "the request has %llu bytes, at most %u fit one block; shorten it",
				       (unsigned long long)len, ONEBIT_BLOCK_MAX);
	if (len <= rq->block_cap)
		return 0;
	while (cap < len)
		cap *= 2;
	p = realloc(rq->block, cap);
	if (!p)
		return lib_error_local(err, -ENOMEM, true, "no memory for a request of %llu bytes",
				       (unsigned long long)len);
	rq->block = p;
	rq->block_cap = cap;
	return 0;
}

/* Where everything goes. */
struct plan {
	uint64_t segments, stops, bias, grammar, data, len;
};

static int plan_make(struct plan *p, const struct onebit_request *in, struct onebit_error *err)
{
	uint64_t at = sizeof(struct onebit_params), bytes = 0;

	if (in->n_parts > ONEBIT_SEGMENTS_MAX || in->n_stops > ONEBIT_STOPS_MAX ||
	    in->n_bias > ONEBIT_BIAS_MAX || in->params.n_choices > ONEBIT_CHOICES_MAX)
		return lib_error_local(err, -EINVAL, false,
				       "too many parts (%u), stops (%u), biases (%u) or choices (%u at most)",
				       ONEBIT_SEGMENTS_MAX, ONEBIT_STOPS_MAX, ONEBIT_BIAS_MAX,
				       ONEBIT_CHOICES_MAX);
	p->segments = at;
	at += in->n_parts * sizeof(struct onebit_segment);
	p->stops = at;
	at += in->n_stops * sizeof(struct onebit_span);
	p->bias = at;
	at += in->n_bias * sizeof(struct onebit_bias);
	p->grammar = at;
	if (in->grammar)
		at += up8(in->grammar->size);
	p->data = at;
	for (size_t i = 0; i < in->n_parts && bytes <= ONEBIT_BLOCK_MAX; i++)
		bytes += in->parts[i].len > ONEBIT_BLOCK_MAX ? ONEBIT_BLOCK_MAX + 1ull :
							      up8(in->parts[i].len);
	for (size_t i = 0; i < in->n_stops; i++)
		bytes += strlen(in->stops[i]);
	p->len = up8(at + bytes);
	return 0;
}

static void block_fill(struct lib_request *rq, const struct onebit_request *in,
		       const struct plan *p)
{
	char *b = rq->block;
	struct onebit_params *params = (struct onebit_params *)b;
	struct onebit_segment *seg = (struct onebit_segment *)(b + p->segments);
	struct onebit_span *span = (struct onebit_span *)(b + p->stops);
	uint32_t at = (uint32_t)p->data, len;

	memset(b, 0, p->len);
	*params = in->params;
	params->size = sizeof(*params);
	params->segments_off = in->n_parts ? (uint32_t)p->segments : 0;
	params->n_segments = (uint32_t)in->n_parts;
	params->stops_off = in->n_stops ? (uint32_t)p->stops : 0;
	params->n_stops = (uint32_t)in->n_stops;
	params->bias_off = in->n_bias ? (uint32_t)p->bias : 0;
	params->n_bias = (uint32_t)in->n_bias;
	params->grammar_off = in->grammar ? (uint32_t)p->grammar : 0;
	params->grammar_len = in->grammar ? in->grammar->size : 0;
	params->resume_off = params->n_resume = 0;
	for (size_t i = 0; i < in->n_parts; i++) {
		len = (uint32_t)in->parts[i].len;
		seg[i].role = in->parts[i].role;
		seg[i].kind = in->parts[i].kind;
		seg[i].flags = in->parts[i].flags;
		seg[i].off = at;
		seg[i].len = len;
		if (len)
			memcpy(b + at, in->parts[i].data, len);
		at += (uint32_t)up8(len); /* token ids want a multiple of 4 */
	}
	for (size_t i = 0; i < in->n_stops; i++) {
		len = (uint32_t)strlen(in->stops[i]);
		span[i].off = at;
		span[i].len = len;
		memcpy(b + at, in->stops[i], len);
		at += len;
	}
	if (in->n_bias)
		memcpy(b + p->bias, in->bias, in->n_bias * sizeof(*in->bias));
	if (in->grammar)
		memcpy(b + p->grammar, in->grammar, in->grammar->size);
}

/* A seed that is not 0, so that onebit_seed() can tell it apart from none. */
static int seed_make(__u64 *seed, struct onebit_error *err)
{
	do {
		if (getrandom(seed, sizeof(*seed), 0) < 0 && errno != EINTR) {
			int r = -errno;

			return lib_error_local(err, r, true, "no random seed: %s", strerror(-r));
		}
	} while (!*seed);
	return 0;
}

int lib_block_build(struct lib_request *rq, const struct onebit_request *in,
		    struct onebit_error *err)
{
	struct plan p = { 0 };
	int r;

	rq->block_len = rq->base_len = 0;
	rq->n_choices = 1;
	if (!lib_request_has_block(rq->op)) {
		if (!in->data_len)
			return 0;
		r = block_reserve(rq, in->data_len, err);
		if (r)
			return r;
		memcpy(rq->block, in->data, in->data_len);
		rq->block_len = rq->base_len = (uint32_t)in->data_len;
		return 0;
	}
	r = plan_make(&p, in, err);
	if (!r)
		r = block_reserve(rq, p.len, err);
	if (r)
		return r;
	block_fill(rq, in, &p);
	if (in->random_seed && !in->params.seed) {
		r = seed_make(&lib_block_params(rq)->seed, err);
		if (r)
			return r;
	}
	rq->n_choices = in->params.n_choices ? in->params.n_choices : 1;
	rq->block_len = rq->base_len = (uint32_t)p.len;
	return 0;
}

uint32_t lib_block_resumed(const struct lib_request *rq, uint16_t choice, const uint32_t **ids)
{
	const struct onebit_params *p = lib_block_params(rq);
	const struct onebit_resume *table;

	*ids = NULL;
	if (!p->n_resume)
		return 0;
	table = (const struct onebit_resume *)(rq->block + p->resume_off);
	if (table[choice].first)
		*ids = (const uint32_t *)(rq->block + table[choice].tokens_off);
	return table[choice].first;
}

int lib_block_resume(struct lib_request *rq, const uint32_t *const ids[], const uint32_t n[],
		     struct onebit_error *err)
{
	uint64_t at = rq->base_len, len = at + rq->n_choices * sizeof(struct onebit_resume);
	struct onebit_resume *table;
	struct onebit_params *p;
	int r;

	for (uint16_t c = 0; c < rq->n_choices; c++)
		len += n[c] * 4ull;
	len = up8(len);
	r = block_reserve(rq, len, err);
	if (r)
		return r;
	p = lib_block_params(rq);
	p->resume_off = rq->base_len;
	p->n_resume = rq->n_choices;
	table = (struct onebit_resume *)(rq->block + at);
	at += rq->n_choices * sizeof(*table);
	memset(rq->block + rq->base_len, 0, len - rq->base_len);
	for (uint16_t c = 0; c < rq->n_choices; c++) {
		table[c].first = n[c];
		table[c].tokens_off = n[c] ? (uint32_t)at : 0;
		if (n[c])
			memcpy(rq->block + at, ids[c], n[c] * 4ull);
		at += n[c] * 4ull;
	}
	rq->block_len = (uint32_t)len;
	return 0;
}

/* Tokens that a prompt may have: the text's bytes at worst, and there is nothing better to know. */
static uint64_t prompt_tokens(const struct onebit_request *in)
{
	uint64_t n = 0;

	for (size_t i = 0; i < in->n_parts; i++)
		n += in->parts[i].kind == ONEBIT_SEG_TOKENS ? in->parts[i].len / 4 : in->parts[i].len;
	return n;
}

uint64_t lib_block_window(const struct lib_request *rq, const struct onebit_request *in)
{
	uint64_t record = RECORD_GUESS + (uint64_t)in->params.top_logprobs * TOP_GUESS;
	uint64_t head = sizeof(struct onebit_out) + rq->n_choices * sizeof(struct onebit_choice);
	uint64_t tokens = in->params.max_tokens ? in->params.max_tokens : TOKENS_GUESS;

	if (record > ONEBIT_RECORD_MAX)
		record = ONEBIT_RECORD_MAX;
	switch (rq->op) {
	case ONEBIT_OP_ECHO:
		return in->data_len;
	case ONEBIT_OP_QUERY:
		return QUERY_GUESS;
	case ONEBIT_OP_GENERATE:
		if (in->params.flags & ONEBIT_PARAM_ECHO)
			tokens += prompt_tokens(in) + TEMPLATE_GUESS;
		return head + rq->n_choices * up8(tokens * record);
	case ONEBIT_OP_SCORE:
		return head + (prompt_tokens(in) + TEMPLATE_GUESS) * record;
	case ONEBIT_OP_TOKENIZE:
		return (prompt_tokens(in) + TEMPLATE_GUESS) * 4;
	case ONEBIT_OP_DETOKENIZE:
		return prompt_tokens(in) * 16 + 64;
	case ONEBIT_OP_EMBED:
		return EMBED_GUESS;
	default:
		return 0;
	}
}

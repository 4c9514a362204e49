/* SPDX-License-Identifier: MIT */
/*
 * Reading a request. In this order, so that a refusal names the first thing that is wrong: the block
 * inside its entry, the parameters' ranges, the tables, the segments' contents, the roles, the
 * prompt's length.
 *
 * Real numbers come in millionths. They become binary32 in one rounding: the integer is exact in
 * binary64, the division by 10^6 rounds there, and that value is rounded to binary32. Two clients that
 * send the same integers so get the same answer, on every machine.
 */
#include "requests.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "chat.h"
#include "utf8.h"

#define MICRO 1000000
#define TEMPLATE_IDS 64u     /* a message's share of what templates put around texts, and more */

#define AT(f) offsetof(struct onebit_params, f)

_Static_assert((int)ONEBIT_ROLE_RAW == CHAT_RAW && (int)ONEBIT_ROLE_SYSTEM == CHAT_SYSTEM &&
	       (int)ONEBIT_ROLE_USER == CHAT_USER && (int)ONEBIT_ROLE_ASSISTANT == CHAT_ASSISTANT &&
	       (int)ONEBIT_ROLE_TOOL == CHAT_TOOL && (int)ONEBIT_ROLE_COUNT == CHAT_ROLES,
	       "roles are passed on as they are");
_Static_assert(ONEBIT_CHOICES_MAX <= ENGINE_CHOICES_MAX && ONEBIT_BIAS_MAX <= ENGINE_BIAS_MAX &&
	       ONEBIT_STOPS_MAX <= STOP_STRINGS_MAX && ONEBIT_STOP_BYTES_MAX <= STOP_BYTES_MAX &&
	       ONEBIT_TOP_LOGPROBS_MAX <= SAMPLER_TOP_MAX, "the engine takes what the ABI allows");

struct requests {
	const struct tokenizer *t;
	const char *chat;
	uint32_t positions, vocab;
	struct tokenizer_scratch *scratch;
	uint32_t *ids; /* address space for what the largest block can give */
	size_t cap;
	char *text; /* of one token, and what was held before it */
	uint64_t *seen; /* a bit for each token */
	struct chat_message messages[ONEBIT_SEGMENTS_MAX];
	struct sampler_bias bias[ONEBIT_BIAS_MAX];
	struct stop_string stops[ONEBIT_STOPS_MAX];
	struct engine_done done[ONEBIT_CHOICES_MAX];
};

struct requests *requests_new(const struct tokenizer *t, const char *chat, uint32_t positions)
{
	struct requests *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->t = t;
	q->chat = chat;
	q->positions = positions;
	q->vocab = tokenizer_facts(t)->n_tokens;
	q->cap = tokenizer_bound(t, ONEBIT_BLOCK_MAX) + (size_t)ONEBIT_SEGMENTS_MAX * TEMPLATE_IDS;
	q->ids = mmap(NULL, q->cap * sizeof(*q->ids), PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (q->ids == MAP_FAILED)
		q->ids = NULL;
	q->scratch = tokenizer_scratch_new(ONEBIT_BLOCK_MAX);
	q->text = malloc(detok_bound(t));
	q->seen = calloc((q->vocab + 63) / 64, sizeof(*q->seen));
	if (!q->ids || !q->scratch || !q->text || !q->seen)
		return requests_free(q);
	return q;
}

struct requests *requests_free(struct requests *q)
{
	if (!q)
		return NULL;
	if (q->ids)
		munmap(q->ids, q->cap * sizeof(*q->ids));
	tokenizer_scratch_free(q->scratch);
	free(q->text);
	free(q->seen);
	free(q);
	return NULL;
}

/* ---- the block --------------------------------------------------------------------------------- */

struct block {
	const uint8_t *at;
	uint32_t len;
	const struct onebit_params *p;
};

static enum onebit_code refuse(uint64_t *detail, enum onebit_code code, uint64_t value)
{
	*detail = value;
	return code;
}

static bool inside(const struct block *b, uint64_t off, uint64_t len)
{
	return off <= b->len && len <= b->len - off;
}

/* The segment, copied out. Its entry's place is where complaints point. */
static uint64_t segment_at(const struct block *b, uint32_t i, struct onebit_segment *s)
{
	uint64_t at = b->p->segments_off + (uint64_t)i * sizeof(*s);

	memcpy(s, b->at + at, sizeof(*s));
	return at;
}

static enum onebit_code check_segment(const struct block *b, uint64_t at,
				      const struct onebit_segment *s, uint64_t *detail)
{
	if (s->role >= ONEBIT_ROLE_COUNT || s->kind >= ONEBIT_SEG_KIND_COUNT ||
	    !inside(b, s->off, s->len) ||
	    (s->kind == ONEBIT_SEG_TOKENS && (s->off % 4 || s->len % 4)))
		return refuse(detail, ONEBIT_E_BAD_PARAM, at);
	return ONEBIT_E_OK;
}

/* The entry's block, and what of the parameters this program indexes or divides by. */
static enum onebit_code open_block(const struct journal_entry *j, struct block *b,
				   uint64_t *detail)
{
	const struct onebit_params *p = &j->params;
	struct onebit_segment s;
	enum onebit_code code;

	b->p = p;
	b->at = (const uint8_t *)j + j->block_off;
	b->len = j->block_len;
	if (j->block_off < sizeof(*j) || j->block_off % 8 || j->block_off > j->bytes ||
	    j->block_len > j->bytes - j->block_off)
		return refuse(detail, ONEBIT_E_EXECUTOR, EPROTO);
	if (!p->n_segments || p->n_segments > ONEBIT_SEGMENTS_MAX)
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(n_segments));
	if (!inside(b, p->segments_off, p->n_segments * (uint64_t)sizeof(s)))
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(segments_off));
	for (uint32_t i = 0; i < p->n_segments; i++) {
		code = check_segment(b, segment_at(b, i, &s), &s, detail);
		if (code != ONEBIT_E_OK)
			return code;
	}
	return ONEBIT_E_OK;
}

/* ---- the prompt -------------------------------------------------------------------------------- */

/* Bytes of valid UTF-8 that p[0..len) begins with. */
static uint32_t utf8_valid(const uint8_t *p, uint32_t len)
{
	uint32_t i = 0, n;

	while (i < len && (n = utf8_length(p + i, len - i)))
		i += n;
	return i;
}

static enum onebit_code check_ids(const struct requests *q, const struct block *b,
				  const struct onebit_segment *s, uint64_t *detail)
{
	const uint32_t *ids = (const void *)(b->at + s->off);

	for (uint32_t i = 0; i < s->len / 4; i++)
		if (ids[i] >= q->vocab)
			return refuse(detail, ONEBIT_E_BAD_PROMPT, s->off + i * (uint64_t)4);
	return ONEBIT_E_OK;
}

/* Segments as messages, their contents checked. */
static enum onebit_code read_messages(struct requests *q, const struct block *b, uint64_t *detail)
{
	for (uint32_t i = 0; i < b->p->n_segments; i++) {
		struct chat_message *m = &q->messages[i];
		enum onebit_code code = ONEBIT_E_OK;
		struct onebit_segment s;

		segment_at(b, i, &s);
		*m = (struct chat_message){
			.role = (enum chat_role)s.role, .special = s.flags & ONEBIT_SEG_SPECIAL,
			.go_on = s.flags & ONEBIT_SEG_CONTINUE,
		};
		if (s.kind == ONEBIT_SEG_TOKENS) {
			m->ids = (const void *)(b->at + s.off);
			m->len = s.len / 4;
			m->special = false;
			code = check_ids(q, b, &s, detail);
		} else {
			uint32_t ok = utf8_valid(b->at + s.off, s.len);

			m->text = (const char *)b->at + s.off;
			m->len = s.len;
			if (ok != s.len)
				code = refuse(detail, ONEBIT_E_BAD_PROMPT, s.off + (uint64_t)ok);
		}
		if (code != ONEBIT_E_OK)
			return code;
	}
	return ONEBIT_E_OK;
}

/* Behind the first `said` ids, which are a session's. */
static int render(struct requests *q, uint32_t n_messages, uint32_t said, size_t cap, size_t *n)
{
	char why[160];
	int err = chat_render(q->chat, q->t, q->scratch, q->messages, n_messages, said != 0,
			      q->ids + said, cap - said, n, why, sizeof(why));

	*n += said;
	return err;
}

/*
 * The first message that the template will not have: a row of messages is refused as soon as one of its
 * beginnings is, so the shortest such beginning ends with it. Roles alone decide; the texts are made
 * empty, which they may be once a request is refused.
 */
static uint32_t first_refused(struct requests *q, uint32_t n_messages, uint32_t said)
{
	uint32_t low = 0, high = n_messages; /* low messages are fine, high are not */
	size_t n;

	for (uint32_t i = 0; i < n_messages; i++) {
		q->messages[i].text = "";
		q->messages[i].ids = NULL;
		q->messages[i].len = 0;
	}
	while (high - low > 1) {
		uint32_t middle = low + (high - low) / 2;

		if (render(q, middle, said, q->cap, &n) == -EINVAL)
			high = middle;
		else
			low = middle;
	}
	return low;
}

/* The prompt's ids into q->ids, at most cap, behind what a session has said: s may be NULL. */
static enum onebit_code read_prompt(struct requests *q, const struct block *b,
				    const struct session *s, size_t cap, size_t *n, uint64_t *detail)
{
	enum onebit_code code = read_messages(q, b, detail);
	uint32_t n_messages = b->p->n_segments, said = s ? s->n : 0;
	struct onebit_segment seg;
	int err;

	if (code != ONEBIT_E_OK)
		return code;
	if (said)
		memcpy(q->ids, s->tokens, said * sizeof(*q->ids));
	err = render(q, n_messages, said, cap, n);
	if (err == -EINVAL)
		return refuse(detail, ONEBIT_E_BAD_PROMPT,
			      segment_at(b, first_refused(q, n_messages, said), &seg));
	if (err == -ENOSPC)
		return refuse(detail, ONEBIT_E_CONTEXT_FULL, q->positions);
	if (err) /* -ENOMEM; the others were settled when the model was opened */
		return refuse(detail, ONEBIT_E_EXECUTOR, (uint64_t)-err);
	if (!*n)
		return refuse(detail, ONEBIT_E_BAD_PROMPT, b->p->segments_off);
	return ONEBIT_E_OK;
}

/* ---- parameters -------------------------------------------------------------------------------- */

static float from_micro(int64_t micro)
{
	return (float)((double)micro / MICRO);
}

static enum onebit_code read_sampler(struct requests *q, const struct block *b,
				     struct sampler_params *out, uint64_t *detail)
{
	const struct onebit_params *p = b->p;
	enum onebit_code code = ONEBIT_E_OK;
	uint32_t i;

	if (p->top_p_micro > MICRO)
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(top_p_micro));
	if (p->min_p_micro > MICRO)
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(min_p_micro));
	if (p->n_bias > ONEBIT_BIAS_MAX)
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(n_bias));
	if (!inside(b, p->bias_off, p->n_bias * (uint64_t)sizeof(struct onebit_bias)))
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(bias_off));
	*out = (struct sampler_params){
		.temperature = from_micro(p->temperature_micro),
		.top_k = p->top_k,
		.top_p = from_micro(p->top_p_micro ? p->top_p_micro : MICRO),
		.min_p = from_micro(p->min_p_micro),
		.repetition = from_micro(p->repetition_micro ? p->repetition_micro : MICRO),
		.frequency = from_micro(p->frequency_micro),
		.presence = from_micro(p->presence_micro),
		.bias = q->bias,
		.seed = p->seed,
	};
	/* Of two values for one token neither is what was meant. */
	for (i = 0; i < p->n_bias && code == ONEBIT_E_OK; i++) {
		uint64_t at = p->bias_off + i * (uint64_t)sizeof(struct onebit_bias);
		struct onebit_bias bias;

		memcpy(&bias, b->at + at, sizeof(bias));
		if (bias.token >= q->vocab || q->seen[bias.token / 64] >> bias.token % 64 & 1) {
			code = refuse(detail, ONEBIT_E_BAD_PARAM, at);
			break;
		}
		q->seen[bias.token / 64] |= 1ull << bias.token % 64;
		q->bias[i].token = bias.token;
		q->bias[i].bias = bias.bias_micro == INT32_MIN ? -INFINITY :
				  from_micro(bias.bias_micro);
	}
	out->n_bias = i;
	while (i)
		q->seen[q->bias[--i].token / 64] = 0;
	return code;
}

static enum onebit_code read_stops(struct requests *q, const struct block *b, uint64_t *detail)
{
	const struct onebit_params *p = b->p;

	if (p->n_stops > ONEBIT_STOPS_MAX)
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(n_stops));
	if (!inside(b, p->stops_off, p->n_stops * (uint64_t)sizeof(struct onebit_span)))
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(stops_off));
	for (uint32_t i = 0; i < p->n_stops; i++) {
		uint64_t at = p->stops_off + i * (uint64_t)sizeof(struct onebit_span);
		struct onebit_span s;

		memcpy(&s, b->at + at, sizeof(s));
		if (!s.len || s.len > ONEBIT_STOP_BYTES_MAX || !inside(b, s.off, s.len))
			return refuse(detail, ONEBIT_E_BAD_PARAM, at);
		q->stops[i].text = (const char *)b->at + s.off;
		q->stops[i].len = s.len;
	}
	return ONEBIT_E_OK;
}

/*
 * What was delivered before. Tokens of ours are ours; those that a client brings may be anything, and
 * must be of the vocabulary before they can be compared with what comes out.
 */
static enum onebit_code read_done(struct requests *q, const struct journal_entry *j,
				  uint64_t *detail)
{
	uint64_t bytes = (uint64_t)j->tokens_cap * 4;

	for (uint32_t c = 0; c < j->params.n_choices; c++) {
		const uint32_t *tokens = (const void *)((const uint8_t *)j + j->tokens_off + c * bytes);
		uint32_t n = j->done[c].n;

		if (n > j->tokens_cap || j->tokens_off % 4 ||
		    j->tokens_off + (c + 1) * bytes > j->bytes)
			return refuse(detail, ONEBIT_E_EXECUTOR, EPROTO);
		for (uint32_t i = 0; i < n; i++)
			if (tokens[i] >= q->vocab)
				return refuse(detail, ONEBIT_E_BAD_PARAM, AT(resume_off));
		q->done[c] = (struct engine_done){
			.n = n, .tokens = tokens,
			.finished = j->done[c].finish != ONEBIT_FINISH_NONE,
		};
	}
	return ONEBIT_E_OK;
}

static enum onebit_code read_generate(struct requests *q, const struct journal_entry *j,
				      const struct block *b, struct engine_request *out,
				      uint64_t *detail)
{
	const struct onebit_params *p = b->p;
	enum onebit_code code;

	if (p->grammar_len)
		return refuse(detail, ONEBIT_E_UNSUPPORTED, j->op);
	if (!p->max_tokens || p->max_tokens > ONEBIT_MAX_TOKENS)
		return refuse(detail, ONEBIT_E_BAD_PARAM, AT(max_tokens));
	code = read_sampler(q, b, &out->sampler, detail);
	if (code == ONEBIT_E_OK)
		code = read_stops(q, b, detail);
	if (code != ONEBIT_E_OK)
		return code;
	out->n_choices = p->n_choices;
	out->max_tokens = p->max_tokens;
	out->min_tokens = p->min_tokens;
	out->last_n = p->repetition_last_n;
	out->n_stops = p->n_stops;
	out->stops = q->stops;
	return ONEBIT_E_OK;
}

/* ---- operations -------------------------------------------------------------------------------- */

/* From the ABI's order, in which interactive is not the first, to the engine's. */
static uint32_t priority_of(const struct journal_entry *j)
{
	static const uint8_t order[ONEBIT_PRIO_COUNT] = {
		[ONEBIT_PRIO_INTERACTIVE] = 0, [ONEBIT_PRIO_NORMAL] = 1, [ONEBIT_PRIO_BATCH] = 2,
	};

	return j->priority < ONEBIT_PRIO_COUNT ? order[j->priority] : order[ONEBIT_PRIO_BATCH];
}

enum onebit_code requests_read(struct requests *q, const struct journal_entry *j,
			       const struct session *s, struct engine_request *out,
			       uint64_t *detail)
{
	const struct onebit_params *p = &j->params;
	enum onebit_code code;
	struct block b;
	size_t n = 0;

	memset(out, 0, sizeof(*out));
	code = open_block(j, &b, detail);
	if (code == ONEBIT_E_OK && p->top_logprobs > ONEBIT_TOP_LOGPROBS_MAX)
		code = refuse(detail, ONEBIT_E_BAD_PARAM, AT(top_logprobs));
	if (code == ONEBIT_E_OK && p->flags & ONEBIT_PARAM_APPEND && !s)
		code = refuse(detail, ONEBIT_E_BAD_PARAM, AT(flags));
	if (code == ONEBIT_E_OK && s && j->op != ONEBIT_OP_GENERATE)
		code = refuse(detail, ONEBIT_E_BAD_PARAM, AT(session));
	if (code == ONEBIT_E_OK &&
	    (!p->n_choices ||
	     p->n_choices > (j->op == ONEBIT_OP_GENERATE ? ONEBIT_CHOICES_MAX : 1u)))
		code = refuse(detail, ONEBIT_E_BAD_PARAM, AT(n_choices));
	if (code == ONEBIT_E_OK && j->op == ONEBIT_OP_GENERATE)
		code = read_generate(q, j, &b, out, detail);
	if (code == ONEBIT_E_OK && j->op != ONEBIT_OP_EMBED)
		code = read_done(q, j, detail);
	/* One more than fits, so that what just does not is known to be too long. */
	if (code == ONEBIT_E_OK)
		code = read_prompt(q, &b, p->flags & ONEBIT_PARAM_APPEND ? s : NULL,
				   (size_t)q->positions + 1, &n, detail);
	if (code == ONEBIT_E_OK && j->op == ONEBIT_OP_SCORE && n > j->tokens_cap)
		code = refuse(detail, ONEBIT_E_BAD_PARAM, AT(max_tokens));
	if (code != ONEBIT_E_OK)
		return code;
	out->kind = j->op == ONEBIT_OP_SCORE ? ENGINE_SCORE :
		    j->op == ONEBIT_OP_EMBED ? ENGINE_EMBED : ENGINE_GENERATE;
	out->flags = (p->flags & ONEBIT_PARAM_IGNORE_EOS ? ENGINE_IGNORE_EOS : 0) |
		     (p->flags & ONEBIT_PARAM_NO_CACHE ? ENGINE_NO_CACHE : 0) |
		     (p->flags & ONEBIT_PARAM_LOGPROBS ? ENGINE_LOGPROBS : 0);
	out->done = j->op == ONEBIT_OP_EMBED ? NULL : q->done;
	out->principal.tenant = j->tenant;
	out->principal.uid = j->uid;
	out->priority = priority_of(j);
	out->prompt = q->ids;
	out->n_prompt = (uint32_t)n;
	out->n_top = p->top_logprobs;
	out->pool_last = p->pooling == ONEBIT_POOL_LAST;
	return ONEBIT_E_OK;
}

static enum onebit_code encode_each(struct requests *q, const struct block *b, size_t *n,
				    uint64_t *detail)
{
	enum onebit_code code = read_messages(q, b, detail);
	size_t all = 0;

	for (uint32_t i = 0; i < b->p->n_segments && code == ONEBIT_E_OK; i++) {
		const struct chat_message *m = &q->messages[i];
		size_t got = m->len;
		int err = 0;

		if (m->text)
			err = tokenizer_encode(q->t, q->scratch, m->text, m->len,
					       m->special ? TOKENIZER_SPECIAL : 0, q->ids + all,
					       q->cap - all, &got);
		else if (got <= q->cap - all)
			memcpy(q->ids + all, m->ids, got * sizeof(*q->ids));
		else
			err = -ENOSPC;
		if (err)
			return refuse(detail, ONEBIT_E_EXECUTOR, (uint64_t)-err);
		all += got;
	}
	*n = all;
	return code;
}

enum onebit_code requests_tokens(struct requests *q, const struct journal_entry *j,
				 const uint32_t **ids, size_t *n, uint64_t *detail)
{
	enum onebit_code code;
	struct block b;

	code = open_block(j, &b, detail);
	if (code != ONEBIT_E_OK)
		return code;
	*ids = q->ids;
	return j->params.flags & ONEBIT_PARAM_TEMPLATE ? read_prompt(q, &b, NULL, q->cap, n, detail) :
							 encode_each(q, &b, n, detail);
}

enum onebit_code requests_text(struct requests *q, const struct journal_entry *j,
			       void (*put)(void *ctx, const char *text, size_t len), void *ctx,
			       uint64_t *detail)
{
	struct onebit_segment s;
	enum onebit_code code;
	struct detok d;
	struct block b;
	uint64_t at;

	code = open_block(j, &b, detail);
	for (uint32_t i = 0; code == ONEBIT_E_OK && i < b.p->n_segments; i++) {
		at = segment_at(&b, i, &s);
		code = s.kind == ONEBIT_SEG_TOKENS ? check_ids(q, &b, &s, detail) :
						     refuse(detail, ONEBIT_E_BAD_PROMPT, at);
	}
	if (code != ONEBIT_E_OK)
		return code;
	detok_init(&d, q->t);
	for (uint32_t i = 0; i < b.p->n_segments; i++) {
		const uint32_t *ids;

		segment_at(&b, i, &s);
		ids = (const void *)(b.at + s.off);
		d.specials = s.flags & ONEBIT_SEG_SPECIAL;
		for (uint32_t k = 0; k < s.len / 4; k++)
			put(ctx, q->text, detok_push(&d, q->t, ids[k], q->text));
	}
	put(ctx, q->text, detok_flush(&d, q->text));
	return ONEBIT_E_OK;
}

/* SPDX-License-Identifier: MIT */
#ifndef SERVE_RIG_H
#define SERVE_RIG_H

/*
 * The executor's program without a model and without a broker: an engine that makes tokens up, regions in
 * plain memory, and a reader of events that holds them to the contract of executor.h. Included by one .c,
 * for the engine's functions in here take the place of the real ones in that program only.
 */

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "engine.h"
#include "executor.h"
#include "serve.h"
#include "vocab.h"

/* ---- a vocabulary ------------------------------------------------------------------------------ */

/* The bytes, ten words, a long one, then specials: enough for the bitnet template. */
enum { RIG_LONG = 266, RIG_BOS, RIG_EOT, RIG_VOCAB };

static struct tokenizer *rig_tokenizer(void **section)
{
	static const char *const words[] = { "th", "the", " a", "User", ": ", "Hi", "er", " H", "in", "ing" };
	struct vocab *v = vocab_new();
	struct tokenizer *t = NULL;
	char longest[200], why[256];
	size_t bytes;
	int err = !v;

	assert(!err);
	v->kind = VOCAB_BYTES;
	v->rule = VOCAB_RULE_LLAMA3;
	v->flags = VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS;
	memcpy(v->chat, "bitnet", sizeof("bitnet"));
	memset(longest, '=', sizeof(longest));
	for (unsigned b = 0; b < 256; b++)
		err |= vocab_add(v, &(uint8_t){ (uint8_t)b }, 1, VOCAB_NORMAL, 0);
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		err |= vocab_add(v, words[i], strlen(words[i]), VOCAB_NORMAL, 0);
	err |= vocab_add(v, longest, sizeof(longest), VOCAB_NORMAL, 0);
	err |= vocab_derive_by_id(v, why, sizeof(why));
	err |= vocab_add(v, "<bos>", 5, VOCAB_SPECIAL, 0);
	err |= vocab_add(v, "<|eot_id|>", 10, VOCAB_SPECIAL, 0);
	v->bos = RIG_BOS;
	err |= vocab_stop(v, RIG_EOT);
	err |= vocab_build(v, v->n_tokens, section, &bytes, why, sizeof(why));
	err |= tokenizer_open(*section, bytes, &t, why, sizeof(why));
	assert(!err && v->n_tokens == RIG_VOCAB);
	vocab_free(v);
	return t;
}

/* ---- an engine --------------------------------------------------------------------------------- */

/*
 * A token of a choice depends on the prompt, the choice and its index; it ends after as many tokens as the
 * prompt's hash says. In a step each choice of each slot makes `pace` tokens, a SCORE as many, and
 * other requests one move. What a caller may not do is asserted.
 */
struct fake_slot {
	bool on;
	struct engine_request q;
	uint64_t key;
	uint32_t at[ENGINE_CHOICES_MAX], length[ENGINE_CHOICES_MAX];
	bool replay[ENGINE_CHOICES_MAX], done[ENGINE_CHOICES_MAX];
	uint32_t prompt[64], waits;
};

struct engine {
	struct engine_facts facts;
	struct obm_arch arch;
	struct fake_slot slots[ENGINE_SLOTS_MAX];
	/* Set by tests. */
	uint32_t pace, n_waits; /* steps before a request begins */
	int start_err, end_err, step_err;
	/* For them to look at. */
	uint32_t n_started, n_cancelled;
	struct engine_request last; /* pointers in it have lost their meaning, but for the first bias */
	struct sampler_bias bias[ENGINE_BIAS_MAX];
};

static uint64_t fake_mix(uint64_t x)
{
	x = (x ^ x >> 31) * 0x7fb5d329728ea185u;
	x = (x ^ x >> 27) * 0x81dadef4bc2dd44du;
	return x ^ x >> 33;
}

static uint32_t fake_token(uint64_t key, uint32_t choice, uint32_t index)
{
	/* Bytes above ASCII and the specials are none of its answers. */
	uint32_t id = (uint32_t)(fake_mix(key ^ (uint64_t)choice << 40 ^ index) % 138);

	return id < 128 ? id : id + 128;
}

const struct engine_facts *engine_facts(const struct engine *e)
{
	return &e->facts;
}

struct kv_counts engine_kv(const struct engine *e)
{
	return (struct kv_counts){ .blocks = 64, .held = e->n_started % 64, .free = 64 - e->n_started % 64 };
}

struct engine_counts engine_counts(const struct engine *e)
{
	return (struct engine_counts){ .steps = e->n_started };
}

uint32_t engine_timing(const struct engine *e, struct device_timing *t, uint32_t n)
{
	assert(e && n);
	*t = (struct device_timing){ "linear", 1, 2, 3 };
	return 1;
}

int engine_start(struct engine *e, uint32_t slot, const struct engine_request *r, char *why,
		 size_t why_len)
{
	struct fake_slot *s = &e->slots[slot];

	assert(slot < e->facts.slots && !s->on && r->n_prompt && r->n_prompt <= e->facts.positions + 1);
	snprintf(why, why_len, "as the test wants it");
	if (e->start_err)
		return e->start_err;
	if (r->n_prompt >= e->facts.positions)
		return -EMSGSIZE;
	*s = (struct fake_slot){ .on = true, .q = *r, .waits = e->n_waits };
	for (uint32_t i = 0; i < r->n_prompt; i++) {
		assert(r->prompt[i] < RIG_VOCAB);
		s->key = fake_mix(s->key ^ r->prompt[i]);
		if (i < 64)
			s->prompt[i] = r->prompt[i];
	}
	if (r->kind == ENGINE_GENERATE) {
		assert(r->n_choices && r->n_choices <= ENGINE_CHOICES_MAX && r->max_tokens);
		assert(r->sampler.repetition > 0 && r->sampler.n_bias <= ENGINE_BIAS_MAX);
		for (uint32_t i = 0; i < r->sampler.n_bias; i++) {
			assert(r->sampler.bias[i].token < RIG_VOCAB);
			e->bias[i] = r->sampler.bias[i];
		}
		for (uint32_t i = 0; i < r->n_stops; i++)
			assert(r->stops[i].len && r->stops[i].len <= STOP_BYTES_MAX &&
			       !memchr(r->stops[i].text, 0xff, r->stops[i].len) + 1);
	}
	for (uint32_t c = 0; r->kind == ENGINE_GENERATE && c < r->n_choices; c++) {
		s->length[c] = 1 + (uint32_t)(fake_mix(s->key + c) % 40);
		if (s->length[c] > r->max_tokens || r->flags & ENGINE_IGNORE_EOS)
			s->length[c] = r->max_tokens;
		if (!r->done)
			continue;
		if (!r->done[c].finished && r->done[c].n >= r->max_tokens) {
			s->on = false;
			return -EINVAL;
		}
		s->at[c] = r->done[c].n;
		s->done[c] = r->done[c].finished;
		s->replay[c] = s->at[c] && !s->done[c];
		for (uint32_t i = 0; i < s->at[c]; i++)
			assert(r->done[c].tokens[i] < RIG_VOCAB);
	}
	e->last = *r;
	e->n_started++;
	return 0;
}

void engine_cancel(struct engine *e, uint32_t slot)
{
	assert(e->slots[slot].on);
	e->slots[slot].on = false;
	e->n_cancelled++;
}

void engine_keep(struct engine *e, uint32_t keep, struct kv_principal principal,
		 const uint32_t *tokens, uint32_t n)
{
	(void)principal;
	assert(e && keep < ENGINE_KEEPS && (!n || tokens));
}

static void fake_tell(struct engine *e, const struct engine_sink *k, uint32_t slot, uint32_t c)
{
	struct fake_slot *s = &e->slots[slot];
	struct engine_token t = { .slot = slot, .choice = c, .index = s->at[c] };
	struct tokenizer_token own;
	struct sampler_top top[SAMPLER_TOP_MAX];

	t.token = s->q.kind == ENGINE_SCORE ? s->prompt[s->at[c] % 64] : fake_token(s->key, c, s->at[c]);
	own = tokenizer_token(e->facts.tokenizer, t.token);
	t.text = (const char *)own.text;
	t.text_len = s->q.kind == ENGINE_GENERATE ? own.len : 0;
	t.has_logprob = s->q.kind == ENGINE_SCORE ? s->at[c] > 0 : s->q.flags & ENGINE_LOGPROBS;
	t.logprob = -(float)s->at[c];
	t.n_top = t.has_logprob ? s->q.n_top : 0;
	for (uint32_t i = 0; i < t.n_top; i++)
		top[i] = (struct sampler_top){ i ? RIG_LONG : t.token, -(float)i };
	t.top = top;
	s->at[c]++;
	if (s->q.kind == ENGINE_GENERATE && s->at[c] >= s->length[c]) {
		t.finish = s->at[c] >= s->q.max_tokens ? ENGINE_LENGTH : ENGINE_STOP;
		s->done[c] = true;
	}
	k->token(k->ctx, &t);
}

/* true: it has ended. */
static bool fake_move(struct engine *e, const struct engine_sink *k, uint32_t slot)
{
	static const float vector[100] = { 1, 2, 3 };
	struct fake_slot *s = &e->slots[slot];
	bool left = false;

	if (s->waits) {
		s->waits--;
		k->progress(k->ctx, slot, s->q.n_prompt / 2);
		return false;
	}
	if (e->end_err)
		return true;
	switch (s->q.kind) {
	case ENGINE_EMBED:
		k->vector(k->ctx, slot, vector, 100);
		return true;
	case ENGINE_SCORE:
		for (uint32_t i = 0; i < e->pace && s->at[0] < s->q.n_prompt; i++)
			fake_tell(e, k, slot, 0);
		return s->at[0] == s->q.n_prompt;
	case ENGINE_GENERATE:
		break;
	}
	for (uint32_t c = 0; c < s->q.n_choices; c++) {
		if (s->replay[c])
			k->replayed(k->ctx, slot, c, s->at[c] - 1, fake_token(s->key, c, s->at[c] - 1));
		s->replay[c] = false;
		for (uint32_t i = 0; i < e->pace && !s->done[c]; i++)
			fake_tell(e, k, slot, c);
		left |= !s->done[c];
	}
	return !left;
}

int engine_step(struct engine *e, const struct engine_sink *k, char *why, size_t why_len)
{
	int more = 0;

	if (e->step_err) {
		snprintf(why, why_len, "the device %0120d failed", 7);
		return e->step_err;
	}
	for (uint32_t i = 0; i < e->facts.slots; i++) {
		struct fake_slot *s = &e->slots[i];

		if (!s->on)
			continue;
		if (!fake_move(e, k, i)) {
			more = 1;
			continue;
		}
		s->on = false;
		k->end(k->ctx, &(struct engine_end){
			.slot = i, .err = e->end_err, .index = 5, .prompt_tokens = s->q.n_prompt,
			.cached_tokens = s->q.n_prompt / 3 });
	}
	return more;
}

/* ---- regions and a reader ------------------------------------------------------------------------ */

#define RIG_JOURNAL  (16u << 20)
#define RIG_OPS	     (1ull << ONEBIT_OP_GENERATE | 1ull << ONEBIT_OP_TOKENIZE | \
		      1ull << ONEBIT_OP_DETOKENIZE | 1ull << ONEBIT_OP_SCORE | 1ull << ONEBIT_OP_EMBED)

/* What was heard of one slot since its RUN. */
struct heard {
	bool running, ended, is_records;
	uint32_t op, tag, n_choices;
	struct exec_event end;
	uint32_t n[ONEBIT_CHOICES_MAX]; /* next index */
	uint8_t finish[ONEBIT_CHOICES_MAX];
	bool must_replay[ONEBIT_CHOICES_MAX];
	uint32_t n_replayed, n_events, n_progress;
	uint32_t *tokens[ONEBIT_CHOICES_MAX];
	char text[ONEBIT_CHOICES_MAX][512];
	uint8_t *data;
	size_t n_data, cap_data;
};

struct rig {
	struct exec_broker_region broker;
	struct exec_own_region own;
	_Alignas(64) uint8_t journal[RIG_JOURNAL];
	uint32_t journal_at, event_head, cmd_tail;
	struct executor e;
	struct engine engine;
	struct serve *serve;
	void *section;
	struct heard slots[EXEC_SLOTS_MAX];
	bool stalled; /* reads nothing until it is asked to nap */
	bool foreign; /* what was told before need not be what the engine says */
	uint32_t n_hello, n_kv, n_timing, n_fault, n_naps;
	char fault[97];
	char why[320];
};

static void rig_tokens(struct heard *h, const struct exec_event *ev, const uint8_t *data)
{
	uint32_t at = 0;

	assert(h->is_records && ev->choice < h->n_choices && !h->finish[ev->choice]);
	assert(!h->must_replay[ev->choice] && ev->first == h->n[ev->choice] && (ev->n || ev->finish));
	assert(ev->prompt_tokens && ev->finish <= ONEBIT_FINISH_LENGTH);
	for (uint32_t i = 0; i < ev->n; i++) {
		const struct onebit_record *rec = (const void *)(data + at);
		uint32_t fixed = (uint32_t)(sizeof(*rec) + rec->n_top * sizeof(struct onebit_top));
		const struct onebit_top *top = (const void *)(rec + 1);
		size_t len = strlen(h->text[ev->choice]);

		assert(rec->size % 8 == 0 && rec->size <= ONEBIT_RECORD_MAX && rec->size <= ev->data_len - at);
		assert(fixed + rec->text_len <= rec->size && rec->n_top <= ONEBIT_TOP_LOGPROBS_MAX);
		assert(!(rec->flags & ~ONEBIT_REC_LOGPROB));
		for (uint32_t k = 0; k < rec->n_top; k++)
			assert(!top[k].reserved && top[k].text_off >= fixed + rec->text_len &&
			       top[k].text_off + top[k].text_len <= rec->size);
		if (len + rec->text_len < sizeof(h->text[0])) {
			memcpy(h->text[ev->choice] + len, data + at + fixed, rec->text_len);
			h->text[ev->choice][len + rec->text_len] = 0;
		}
		h->tokens[ev->choice] = realloc(h->tokens[ev->choice], (h->n[ev->choice] + 1) * 4);
		h->tokens[ev->choice][h->n[ev->choice]++] = rec->token;
		at += rec->size;
	}
	assert(at == ev->data_len);
	h->finish[ev->choice] = ev->finish;
}

static void rig_event(struct rig *r, const struct exec_event *ev)
{
	const uint8_t *data = r->own.data + ev->data_off;
	struct heard *h = &r->slots[ev->slot % EXEC_SLOTS_MAX];

	assert(ev->data_len <= EXEC_EVENT_DATA_MAX && ev->data_off <= EXEC_DATA_BYTES - ev->data_len);
	assert(r->n_hello || ev->kind == EXEC_EV_HELLO);
	switch (ev->kind) {
	case EXEC_EV_HELLO:
		assert(!r->n_hello++ && ev->data_len == sizeof(struct exec_hello));
		return;
	case EXEC_EV_KV:
		assert(ev->data_len == sizeof(struct onebit_kv));
		r->n_kv++;
		return;
	case EXEC_EV_TIMING:
		assert(ev->n <= EXEC_TIMINGS_MAX && ev->data_len == ev->n * sizeof(struct onebit_timing));
		r->n_timing++;
		return;
	case EXEC_EV_SESSIONS:
		assert(ev->n <= EXEC_SESSIONS_MAX && ev->data_len == ev->n * sizeof(struct onebit_session));
		return;
	case EXEC_EV_FAULT:
		assert(ev->data_len <= 96);
		memcpy(r->fault, data, ev->data_len);
		r->n_fault++;
		return;
	}
	assert(h->running && ev->slot < r->engine.facts.slots && ev->tag == h->tag);
	h->n_events++;
	switch (ev->kind) {
	case EXEC_EV_TOKENS:
		return rig_tokens(h, ev, data);
	case EXEC_EV_REPLAYED:
		assert(h->must_replay[ev->choice] && ev->first == h->n[ev->choice] - 1);
		assert(r->foreign || h->tokens[ev->choice][ev->first] == ev->detail);
		h->must_replay[ev->choice] = false;
		h->n_replayed++;
		return;
	case EXEC_EV_DATA:
		assert(!h->is_records);
		h->data = realloc(h->data, h->n_data + ev->data_len);
		memcpy(h->data + h->n_data, data, ev->data_len);
		h->n_data += ev->data_len;
		return;
	case EXEC_EV_PROGRESS:
		h->n_progress++;
		return;
	case EXEC_EV_END:
		h->running = false;
		h->ended = true;
		h->end = *ev;
		for (uint32_t c = 0; ev->code == ONEBIT_E_OK && h->is_records && c < h->n_choices; c++)
			assert(h->finish[c]);
		return;
	}
	assert(!"an event of a known kind");
}

static void rig_drain(struct rig *r)
{
	while (r->event_head != r->own.event_tail)
		rig_event(r, &r->own.events[r->event_head++ % EXEC_EVENTS]);
	r->broker.event_head = r->event_head;
}

static void rig_nap(void *ctx)
{
	struct rig *r = ctx;

	r->n_naps++;
	rig_drain(r);
}

static struct rig *rig_new(void)
{
	static const struct exec_hello hello = {
		.version = EXEC_VERSION, .slots = 16, .ops = RIG_OPS, .model.context = 512,
	};
	struct rig *r = calloc(1, sizeof(*r));
	struct serve_options o = { .hello = &hello, .chat = "bitnet", .nap = rig_nap, .ctx = r };

	assert(r);
	r->engine.pace = 1;
	r->engine.facts = (struct engine_facts){
		.tokenizer = rig_tokenizer(&r->section), .arch = &r->engine.arch, .slots = 16,
		.positions = 512, .kv_position_bytes = 64, .backend = "fake",
	};
	r->engine.arch.vocab = RIG_VOCAB;
	/* Where a ring that has run for long stands. */
	r->own.event_tail = r->broker.event_head = r->event_head = UINT32_MAX - 5;
	r->own.cmd_head = r->broker.cmd_tail = r->cmd_tail = UINT32_MAX - 3;
	executor_init(&r->e, &r->broker, &r->own, r->journal, sizeof(r->journal));
	r->serve = serve_new(&r->e, &r->engine, &o);
	assert(r->serve);
	return r;
}

static void rig_forget(struct heard *h)
{
	for (uint32_t c = 0; c < ONEBIT_CHOICES_MAX; c++)
		free(h->tokens[c]);
	free(h->data);
	memset(h, 0, sizeof(*h));
}

static inline struct rig *rig_free(struct rig *r)
{
	if (!r)
		return NULL;
	serve_free(r->serve);
	for (uint32_t i = 0; i < EXEC_SLOTS_MAX; i++)
		rig_forget(&r->slots[i]);
	tokenizer_close((struct tokenizer *)(uintptr_t)r->engine.facts.tokenizer);
	free(r->section);
	free(r);
	return NULL;
}

static void rig_command(struct rig *r, struct exec_cmd cmd)
{
	assert(r->cmd_tail - r->own.cmd_head < EXEC_CMDS);
	r->broker.cmds[r->cmd_tail++ % EXEC_CMDS] = cmd;
	r->broker.cmd_tail = r->cmd_tail;
}

/* An entry for this block, parameters with the defaults that the broker fills in. done may be added. */
static struct journal_entry *rig_entry(struct rig *r, uint32_t op, const struct onebit_params *p,
				       const void *block, uint32_t len)
{
	uint32_t choices = p->n_choices ? p->n_choices : 1, max = p->max_tokens ? p->max_tokens : 20;
	uint32_t cap = op == ONEBIT_OP_GENERATE || op == ONEBIT_OP_SCORE ? max : 0;
	uint64_t bytes = sizeof(struct journal_entry) + (len + 7ull) / 8 * 8 + (uint64_t)cap * choices * 4;
	struct journal_entry *j;

	bytes = (bytes + 63) & ~63ull;
	if (bytes > sizeof(r->journal) - r->journal_at)
		r->journal_at = 0; /* what stood there has ended */
	assert(bytes <= sizeof(r->journal));
	j = (void *)(r->journal + r->journal_at);
	memset(j, 0, bytes);
	j->magic = JOURNAL_MAGIC;
	j->bytes = (uint32_t)bytes;
	j->op = op;
	j->uid = 1000;
	j->block_off = sizeof(*j);
	j->block_len = len;
	j->tokens_off = (uint32_t)sizeof(*j) + (len + 7) / 8 * 8;
	j->tokens_cap = cap;
	j->params = *p;
	j->params.n_choices = (uint16_t)choices;
	j->params.max_tokens = max;
	memcpy(j + 1, block, len);
	r->journal_at += (uint32_t)bytes;
	return j;
}

/* Run an entry in a slot. */
static struct heard *rig_run(struct rig *r, uint32_t slot, const struct journal_entry *j)
{
	struct heard *h = &r->slots[slot];
	uint32_t tag = h->tag + 1;

	assert(!h->running);
	rig_forget(h);
	h->running = true;
	h->op = j->op;
	h->tag = tag;
	h->n_choices = j->params.n_choices;
	h->is_records = j->op == ONEBIT_OP_GENERATE || j->op == ONEBIT_OP_SCORE;
	for (uint32_t c = 0; h->is_records && c < h->n_choices && c < ONEBIT_CHOICES_MAX; c++) {
		h->n[c] = j->done[c].n;
		h->finish[c] = (uint8_t)j->done[c].finish;
		h->must_replay[c] = h->n[c] && !h->finish[c];
		if (!h->n[c] || h->n[c] > j->tokens_cap)
			continue;
		h->tokens[c] = malloc(h->n[c] * 4ull);
		memcpy(h->tokens[c], (const uint8_t *)j + j->tokens_off + (size_t)c * j->tokens_cap * 4,
		       h->n[c] * 4ull);
	}
	rig_command(r, (struct exec_cmd){
		.kind = EXEC_CMD_RUN, .slot = slot, .tag = tag, .op = j->op,
		.entry_off = (uint64_t)((const uint8_t *)j - r->journal) });
	return h;
}

/* Turns until there is nothing to do; the last turn's result. */
static inline int rig_go(struct rig *r)
{
	int ret;

	do {
		ret = serve_turn(r->serve, r->why, sizeof(r->why));
		if (!r->stalled)
			rig_drain(r);
	} while (ret == SERVE_MORE);
	return ret;
}

#endif

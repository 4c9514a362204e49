/* SPDX-License-Identifier: MIT */
/* What the clients of a simulated run ask for: all operations, most of it valid. */
#include "lib_sim.h"

#include <stdio.h>
#include <string.h>

static const char *const lethal[] = { "exit", "abort", "kill", "hang" };
static const char *const lies[] = { "gap", "double", "slot", "tag", "choice", "kind", "data",
				    "length", "finish", "text" };

/* A run of the block that is being built. */
static uint32_t put(struct sim_request *r, uint32_t *end, uint32_t align, const void *data,
		    uint32_t len)
{
	uint32_t off = (*end + align - 1) & ~(align - 1);

	memcpy(r->block + off, data, len);
	*end = off + len;
	return off;
}

static void choose_fate(struct sim *s, struct sim_request *r, char *text, size_t size)
{
	const char *name, *always = "";
	uint32_t kind = sim_below(s, 100);

	r->fate = SIM_ONCE;
	r->strike = sim_chance(s, 50) ? 0 : sim_below(s, 12);
	if (kind < 40) {
		name = lethal[sim_below(s, 4)];
	} else if (kind < 70) {
		name = lies[sim_below(s, 10)];
	} else if (kind < 80) {
		name = "fail";
		r->fate = SIM_FAIL;
	} else if (kind < 90) {
		name = "wrong";
		r->fate = SIM_WRONG;
	} else {
		name = "slow";
	}
	if (kind < 70 && sim_chance(s, s->k.poison_percent)) {
		always = "-always";
		r->fate = SIM_POISON;
	}
	snprintf(text, size, "!%s%s@%u ", name, always, r->strike);
}

static void make_text(struct sim *s, struct sim_request *r, char *text, size_t size, bool first)
{
	static const char *const said[] = { "Tell me a story", "caf\xc3\xa9 \xe2\x82\xac", "why?",
					    "", "And then", "\xf0\x9f\x99\x82 hello" };
	size_t n = 0;

	text[0] = 0;
	if (first && sim_chance(s, s->k.directive_percent)) {
		choose_fate(s, r, text, size);
		n = strlen(text);
	} else if (first && sim_chance(s, s->k.bad_percent / 4)) {
		snprintf(text, size, "bad \xff\xfe");
		r->fate = SIM_BAD_UTF8;
		return;
	}
	snprintf(text + n, size - n, "%s %u", said[sim_below(s, 6)], sim_below(s, 1000));
}

/* A prompt of some segments; the rest of params is set already. */
static void make_block(struct sim *s, struct sim_request *r)
{
	struct onebit_params *p = &r->params;
	struct onebit_segment seg[3];
	struct onebit_span stop;
	uint32_t i, k, id, end = sizeof(*p);
	char text[128];

	memset(seg, 0, sizeof(seg));
	p->n_segments = 1 + sim_below(s, 3);
	p->segments_off = end;
	end += p->n_segments * (uint32_t)sizeof(seg[0]);
	for (i = 0; i < p->n_segments; i++) {
		seg[i].role = (uint8_t)sim_below(s, ONEBIT_ROLE_COUNT);
		if (i && sim_chance(s, 20)) {
			seg[i].kind = ONEBIT_SEG_TOKENS;
			end = (end + 3) & ~3u;
			seg[i].off = end;
			for (k = sim_below(s, 8); k; k--) {
				id = sim_below(s, 256); /* bytes: DETOKENIZE is checked without a vocabulary */
				put(r, &end, 4, &id, 4);
				seg[i].len += 4;
			}
			continue;
		}
		make_text(s, r, text, sizeof(text), i == 0);
		seg[i].len = (uint32_t)strlen(text);
		seg[i].off = put(r, &end, 1, text, seg[i].len);
	}
	memcpy(r->block + p->segments_off, seg, p->n_segments * sizeof(seg[0]));
	if (sim_chance(s, 20)) {
		stop.len = 3;
		stop.off = put(r, &end, 1, "END", 3);
		p->stops_off = put(r, &end, 8, &stop, sizeof(stop));
		p->n_stops = 1;
	}
	r->block_len = end;
}

/* The same request once more, with what was delivered of it. False: it does not fit. */
static bool make_resumed(struct sim *s, struct sim_client *c, struct sim_request *r)
{
	const struct sim_request *cut = &c->cut.r;
	struct onebit_resume table[ONEBIT_CHOICES_MAX];
	uint32_t i, k, id, len, bytes = 64 + cut->block_len;
	bool wrong = sim_chance(s, 10);
	char text[16];

	for (i = 0; i < cut->n_choices; i++)
		bytes += cut->next[i] * 4 + 16;
	c->cut.set = false;
	if (bytes > SIM_ARENA_SLOT)
		return false;
	*r = *cut;
	r->accepted = r->told = r->cancel_asked = r->scribbled = false;
	memset(table, 0, sizeof(table));
	for (i = 0; i < r->n_choices; i++) {
		if (cut->next[i] >= r->max_tokens)
			return false;
		table[i].first = r->first[i] = cut->next[i];
		r->bytes[i] = 0;
		for (k = 0; k < table[i].first; k++) {
			id = loopback_token(r->key, i, k, text, &len);
			if (wrong && k + 1 == table[i].first) {
				id ^= 1;
				r->wrong_resume = true;
			}
			id = put(r, &r->block_len, 4, &id, 4);
			if (!k)
				table[i].tokens_off = id;
		}
	}
	r->params.resume_off = put(r, &r->block_len, 8, table,
				   r->n_choices * (uint32_t)sizeof(table[0]));
	r->params.n_resume = r->n_choices;
	r->params.n_choices = (uint16_t)r->n_choices;
	sim_model_id(r->model, r->params.model_id);
	return true;
}

static void make_generate(struct sim *s, struct sim_client *c, struct sim_request *r)
{
	struct onebit_params *p = &r->params;

	if (c->cut.set && make_resumed(s, c, r))
		return;
	memset(r, 0, sizeof(*r));
	r->kind = SIM_GENERATE;
	r->model = -1;
	p->size = sizeof(*p);
	p->seed = sim_random(s);
	p->max_tokens = sim_chance(s, 20) ? 0 : 1 + sim_below(s, 150);
	if (s->k.tight && sim_chance(s, 10)) /* room in the journal for much, though little comes */
		p->max_tokens = 10000 + sim_below(s, 6000);
	r->max_tokens = p->max_tokens ? p->max_tokens : s->policy.default_tokens;
	p->n_choices = sim_chance(s, 60) ? 0 : (uint16_t)sim_below(s, 5);
	if (sim_chance(s, 3))
		p->n_choices = ONEBIT_CHOICES_MAX;
	r->n_choices = p->n_choices ? p->n_choices : 1;
	p->temperature_micro = sim_below(s, 2) * 700000;
	if (p->max_tokens < 1000 && sim_chance(s, 40))
		p->flags |= ONEBIT_PARAM_IGNORE_EOS;
	if (sim_chance(s, 5))
		p->flags |= ONEBIT_PARAM_NO_REPLAY;
	if (sim_chance(s, 10)) {
		p->flags |= ONEBIT_PARAM_LOGPROBS;
		p->top_logprobs = (uint16_t)sim_below(s, 4);
	}
	if (c->uid == 7 && sim_chance(s, 30))
		p->tenant = sim_below(s, 4);
	make_block(s, r);
}

static void make_bytes(struct sim *s, struct sim_request *r)
{
	struct onebit_params *p = &r->params;

	r->model = -1;
	p->size = sizeof(*p);
	r->n_choices = 1;
	make_block(s, r);
	p->stops_off = p->n_stops = 0;
}

/* One thing wrong with an otherwise valid request. */
static void spoil(struct sim *s, struct sim_request *r)
{
	struct onebit_params *p = &r->params;
	struct onebit_sqe *e = &r->sqe;

	r->kind = SIM_BAD;
	switch (sim_below(s, 18)) {
	case 0: e->op = (uint8_t)(ONEBIT_OP_COUNT + sim_below(s, 200)); break;
	case 1: e->flags = (uint8_t)(1 + sim_below(s, 255)); break;
	case 2: e->priority = ONEBIT_PRIO_COUNT; break;
	case 3: e->reserved0 = 1; break;
	case 4: e->buf_index = 1; break;
	case 5: e->reserved1 = 1; break;
	case 6: e->reserved3[0] = 1; break;
	case 7: e->reserved3[1] = 1; break;
	case 8: e->out_off++; break;
	case 9: e->in_len = UINT32_MAX; break;
	case 10: e->in_off = UINT32_MAX - 7; break;
	case 11: e->out_len = UINT32_MAX - 7; break;
	case 12: p->size = 4; break;
	case 13: p->flags |= 1u << 31; break;
	case 14: p->n_choices = ONEBIT_CHOICES_MAX + 1; break;
	case 15: p->segments_off = r->block_len; break;
	case 16: p->reserved1[3] = 1; break;
	case 17: p->n_segments = ONEBIT_SEGMENTS_MAX + 1; break;
	}
}

static void make_admin(struct sim *s, struct sim_client *c, struct sim_request *r)
{
	r->kind = SIM_ADMIN;
	r->sqe.op = ONEBIT_OP_ADMIN;
	r->sqe.arg = 1 + sim_below(s, 4);
	r->sqe.out_off = r->sqe.out_len = 0;
	if (r->sqe.arg == ONEBIT_ADMIN_LOAD || r->sqe.arg == ONEBIT_ADMIN_SWAP) {
		memcpy(r->block, "model-abc", 9);
		r->sqe.in_len = r->block_len = 6 + sim_below(s, 4);
	} else {
		r->sqe.in_off = 0;
	}
	if (c->admin_right)
		s->admin_used = true;
}

/* A request that is under way, to be cancelled; or one that never was. */
static uint64_t somebody(struct sim *s, struct sim_client *c)
{
	struct sim_request *t = &c->r[sim_below(s, SIM_REQUESTS)];

	if (!t->used)
		return 1;
	t->cancel_asked = true;
	return t->sqe.user_data;
}

void sim_ask(struct sim *s, struct sim_client *c, struct sim_request *r)
{
	uint32_t place = (uint32_t)(r - c->r);
	uint8_t *arena = c->client + c->w.arena_off + place * SIM_ARENA_SLOT;
	uint32_t kind = sim_below(s, 100);
	struct onebit_sqe *e = &r->sqe;
	bool generate = sim_chance(s, s->k.generate_percent);
	bool cancel = sim_chance(s, s->k.cancel_percent);

	memset(r, 0, sizeof(*r));
	if (generate && !cancel)
		make_generate(s, c, r);
	memset(e, 0, sizeof(*e));
	e->user_data = (uint64_t)c->id << 32 | (c->next_user_data += 2);
	e->priority = (uint8_t)sim_below(s, ONEBIT_PRIO_COUNT);
	e->in_off = place * SIM_ARENA_SLOT;
	e->out_off = place * c->out_slot;
	e->out_len = c->out_slot;
	if (sim_chance(s, s->k.small_percent))
		e->out_len = sim_below(s, c->out_slot);
	if (generate && !cancel) {
		e->op = ONEBIT_OP_GENERATE;
		if (sim_chance(s, s->k.deadline_percent))
			e->deadline_ms = 1 + sim_below(s, 100);
		e->in_len = r->block_len;
		if (sim_chance(s, s->k.bad_percent))
			spoil(s, r);
	} else if (cancel) {
		r->kind = SIM_CANCEL;
		e->op = ONEBIT_OP_CANCEL;
		e->arg = somebody(s, c);
		e->in_off = e->out_off = e->out_len = 0;
	} else if (s->k.admin && kind < 5) {
		make_admin(s, c, r);
	} else if (kind < 30) {
		r->kind = SIM_NOP;
		e->op = ONEBIT_OP_NOP;
		e->in_off = e->out_off = e->out_len = 0;
	} else if (kind < 55) {
		r->kind = SIM_ECHO;
		e->op = ONEBIT_OP_ECHO;
		e->in_len = r->block_len = sim_below(s, SIM_ARENA_SLOT);
		memset(r->block, (int)e->user_data, r->block_len);
	} else if (kind < 70) {
		r->kind = SIM_QUERY;
		e->op = ONEBIT_OP_QUERY;
		e->arg = sim_below(s, ONEBIT_QUERY_COUNT);
		e->in_off = 0;
	} else if (kind < 95) {
		make_bytes(s, r);
		r->kind = kind < 85 ? SIM_TOKENIZE : SIM_DETOKENIZE;
		e->op = kind < 85 ? ONEBIT_OP_TOKENIZE : ONEBIT_OP_DETOKENIZE;
		e->in_len = r->block_len;
	} else {
		r->kind = SIM_UNSUPPORTED;
		e->op = (uint8_t)(ONEBIT_OP_SESSION_OPEN + sim_below(s, 3));
		e->in_off = e->out_off = e->out_len = 0;
	}
	if (r->params.size)
		memcpy(r->block, &r->params, sizeof(r->params));
	memcpy(arena, r->block, r->block_len);
	sim_trace(s, "client %u asks %llx: op %u, %u choices, %u tokens, fate %d@%u", c->id,
		  (unsigned long long)e->user_data, e->op, r->n_choices, r->max_tokens, r->fate,
		  r->strike);
}

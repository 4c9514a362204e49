/* SPDX-License-Identifier: MIT */
/*
 * The way out. A step's tokens come choice by choice, so gathering needs one event's memory only:
 * whatever else is told sends first what was gathered, and the order stays that of the engine.
 */
#include "tell.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include "records.h"

#define NAP_NS 50000l /* the broker takes hundreds of events in that time */

static void sleep_a_moment(void *ctx)
{
	struct timespec t = { .tv_nsec = NAP_NS };

	(void)ctx;
	nanosleep(&t, NULL);
}

void tell_init(struct tell *t, struct executor *e, const struct tokenizer *tokenizer,
	       void (*nap)(void *ctx), void *ctx)
{
	memset(t, 0, sizeof(*t));
	t->e = e;
	t->t = tokenizer;
	t->nap = nap ? nap : sleep_a_moment;
	t->ctx = ctx;
}

static void emit(struct tell *t, const struct exec_event *ev, const void *data)
{
	int err;

	while ((err = executor_emit(t->e, ev, data)) == -EAGAIN) {
		executor_kick(t->e);
		t->nap(t->ctx);
	}
	assert(!err); /* no event of ours is longer than one may be */
}

static void flush(struct tell *t)
{
	struct exec_event ev = t->batch;

	if (!ev.kind)
		return;
	t->batch.kind = 0;
	emit(t, &ev, t->data);
}

void tell_event(struct tell *t, const struct exec_event *ev, const void *data)
{
	flush(t);
	emit(t, ev, data);
}

void tell_data(struct tell *t, const struct exec_event *of, const void *data, size_t len)
{
	struct exec_event ev = { .kind = EXEC_EV_DATA, .slot = of->slot, .tag = of->tag };
	const uint8_t *p = data;

	flush(t);
	for (size_t at = 0; at < len; at += ev.data_len) {
		ev.data_len = len - at < EXEC_EVENT_DATA_MAX ? (uint32_t)(len - at) : EXEC_EVENT_DATA_MAX;
		emit(t, &ev, p + at);
	}
}

void tell_token(struct tell *t, const struct exec_event *of, const struct engine_token *token,
		uint8_t finish)
{
	struct exec_event *b = &t->batch;

	if (b->kind && (b->slot != of->slot || b->choice != token->choice || b->finish ||
			b->data_len > sizeof(t->data) - ONEBIT_RECORD_MAX))
		flush(t);
	if (!b->kind)
		*b = (struct exec_event){
			.kind = EXEC_EV_TOKENS, .slot = of->slot, .tag = of->tag,
			.choice = (uint16_t)token->choice, .first = token->index,
			.prompt_tokens = of->prompt_tokens,
		};
	assert(token->index == b->first + b->n);
	b->data_len += record_make(t->t, token, t->data + b->data_len);
	b->n++;
	b->finish = finish;
}

static uint32_t add_row(struct onebit_timing *rows, uint32_t n, const char *name, uint64_t count)
{
	assert(n < EXEC_TIMINGS_MAX);
	memset(&rows[n], 0, sizeof(rows[n]));
	snprintf(rows[n].name, sizeof(rows[n].name), "%s", name);
	rows[n].count = count;
	return n + 1;
}

void tell_statistics(struct tell *t, const struct engine *g)
{
	const struct engine_facts *f = engine_facts(g);
	struct engine_counts c = engine_counts(g);
	struct kv_counts k = engine_kv(g);
	uint64_t block = f->kv_position_bytes * KV_BLOCK;
	struct onebit_kv kv = {
		.size = sizeof(kv), .page_tokens = KV_BLOCK, .bytes_total = f->kv_bytes,
		.bytes_used = k.held * block, .bytes_cached = k.findable * block,
		.pages_total = k.blocks, .pages_used = k.held, .pages_cached = k.findable,
		.sequences = k.seqs, .lookups = k.lookups, .hits = k.hits,
		.tokens_reused = k.reused, .evictions = k.evicted,
	};
	struct exec_event ev = { .kind = EXEC_EV_KV, .data_len = sizeof(kv) };
	struct device_timing spent[EXEC_TIMINGS_MAX - 8];
	struct onebit_timing rows[EXEC_TIMINGS_MAX];
	uint32_t n, n_rows = 0;

	tell_event(t, &ev, &kv);
	n = engine_timing(g, spent, sizeof(spent) / sizeof(spent[0]));
	for (uint32_t i = 0; i < n; i++) {
		n_rows = add_row(rows, n_rows, spent[i].name, spent[i].count);
		rows[i].ns = spent[i].ns;
		rows[i].bytes = spent[i].bytes;
	}
	n_rows = add_row(rows, n_rows, "steps", c.steps);
	n_rows = add_row(rows, n_rows, "tokens", c.tokens);
	n_rows = add_row(rows, n_rows, "tokens guessed", c.drafted);
	n_rows = add_row(rows, n_rows, "tokens guessed rightly", c.accepted);
	n_rows = add_row(rows, n_rows, "preempted", c.preempted);
	ev = (struct exec_event){
		.kind = EXEC_EV_TIMING, .n = n_rows,
		.data_len = n_rows * (uint32_t)sizeof(rows[0]),
	};
	tell_event(t, &ev, rows);
}

void tell_fault(struct tell *t, const char *why)
{
	size_t len = strlen(why);
	struct exec_event ev = { .kind = EXEC_EV_FAULT };

	/* The broker takes this much; the whole sentence is in its log, by way of standard error. */
	ev.data_len = len < 96 ? (uint32_t)len : 96;
	tell_event(t, &ev, why);
	tell_kick(t);
}

void tell_kick(struct tell *t)
{
	flush(t);
	executor_kick(t->e);
}

/* SPDX-License-Identifier: MIT */
/*
 * The way back: the vocabulary that a section was built from, for who writes a model in another
 * format. Building it again gives the same bytes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "bpe.h"
#include "vocab_private.h"

static int by_rank(const void *pa, const void *pb)
{
	const struct vocab_merge *a = pa, *b = pb;

	if (a->rank != b->rank)
		return a->rank < b->rank ? -1 : 1;
	if (a->a != b->a)
		return a->a < b->a ? -1 : 1;
	return (a->b > b->b) - (a->b < b->b);
}

static int add_tokens(struct vocab *v, const struct tokenizer *t)
{
	const struct tokenizer_header *h = (const void *)t->base;
	const uint8_t *scores = t->base + tokenizer_layout(h).scores;
	int err = 0;

	for (uint32_t id = 0; id < h->n_tokens && !err; id++) {
		float score = 0;
		uint32_t len;
		const uint8_t *text = symbol_text(t, id, &len);

		if (h->kind == VOCAB_SPM)
			memcpy(&score, scores + id * sizeof(score), sizeof(score));
		err = vocab_add(v, text, len, symbol_kind(t, id), score);
	}
	if (!err)
		err = vocab_index(v);
	for (uint32_t id = h->n_tokens; id < h->n_symbols && !err; id++) {
		uint32_t len, hidden;
		const uint8_t *text = symbol_text(t, id, &len);

		err = vocab_hide(v, text, len, &hidden);
	}
	return err;
}

static uint32_t vocab_id(const struct tokenizer *t, uint32_t symbol)
{
	return symbol < t->facts.n_tokens ? symbol : VOCAB_HIDDEN + (symbol - t->facts.n_tokens);
}

static int add_merges(struct vocab *v, const struct tokenizer *t)
{
	for (uint32_t i = 0; i < t->pair_slots; i++) {
		const struct tokenizer_pair *p = &t->pairs[i];
		uint64_t ids = p->ids_low | (uint64_t)p->ids_high << 32;
		int err;

		if (p->rank == UINT32_MAX)
			continue;
		err = vocab_merge(v, vocab_id(t, ids & TOKENIZER_ID_MASK),
				  vocab_id(t, ids >> TOKENIZER_ID_BITS & TOKENIZER_ID_MASK),
				  (uint32_t)(ids >> 2 * TOKENIZER_ID_BITS));
		if (err)
			return err;
		v->merges[v->n_merges - 1].rank = p->rank;
	}
	if (v->n_merges)
		qsort(v->merges, v->n_merges, sizeof(*v->merges), by_rank);
	return 0;
}

int vocab_from_section(const void *section, size_t bytes, struct vocab **out, char *why,
		       size_t why_len)
{
	struct tokenizer *t;
	struct vocab *v;
	int err = tokenizer_open(section, bytes, &t, why, why_len);

	if (err)
		return err;
	v = vocab_new();
	err = v ? add_tokens(v, t) : -ENOMEM;
	if (!err)
		err = add_merges(v, t);
	if (err) {
		vocab_fail(why, why_len, err, "no memory for the vocabulary");
	} else {
		v->kind = t->facts.kind;
		v->rule = t->facts.rule;
		v->flags = t->facts.flags;
		v->bos = t->facts.bos;
		v->eos = t->facts.eos;
		v->unk = t->facts.unk;
		v->n_stops = t->facts.n_stops;
		memcpy(v->stops, t->facts.stops, v->n_stops * sizeof(v->stops[0]));
		strcpy(v->chat, t->facts.chat);
		/* Hidden ones that a damaged section names twice, merges that spell something else.
		 */
		err = vocab_check(v, v->n_tokens, why, why_len);
	}
	tokenizer_close(t);
	if (err) {
		vocab_free(v);
		return err;
	}
	*out = v;
	return 0;
}

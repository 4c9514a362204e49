/* SPDX-License-Identifier: MIT */
/*
 * Merges that a vocabulary does not list, because they follow from its entries: every split of an
 * entry into two. An entry of n bytes has n - 1 splits; with the hashes of its beginnings at hand
 * each costs two lookups, so that the whole takes as long as the texts are.
 *
 * SentencePiece joins whatever two neighbours spell an entry. Its neighbours are entries or the
 * code points it started from, and the latter need not be entries themselves: VOCAB_HIDDEN.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include "utf8.h"
#include "vocab_private.h"

struct split {
	const struct vocab_token *t;
	uint64_t begin[VOCAB_TOKEN_BYTES_MAX + 1]; /* hash of the first i bytes */
	uint64_t power[VOCAB_TOKEN_BYTES_MAX + 1]; /* VOCAB_HASH_BASE^i */
};

static struct split *split_new(void)
{
	struct split *s = malloc(sizeof(*s));

	if (!s)
		return NULL;
	s->power[0] = 1;
	for (uint32_t i = 1; i <= VOCAB_TOKEN_BYTES_MAX; i++)
		s->power[i] = vocab_hash_mul(s->power[i - 1], VOCAB_HASH_BASE);
	return s;
}

static void split_begin(struct split *s, const struct vocab_token *t)
{
	s->t = t;
	s->begin[0] = 0;
	for (uint32_t i = 0; i < t->len; i++)
		s->begin[i + 1] = vocab_hash_byte(s->begin[i], t->text[i]);
}

/* The entry that bytes from to to spell. */
static uint32_t split_part(const struct vocab *v, const struct split *s, uint32_t from, uint32_t to)
{
	const uint64_t prime = (1ull << 61) - 1;
	uint64_t skip = vocab_hash_mul(s->begin[from], s->power[to - from]);
	uint64_t hash = s->begin[to] + (skip ? prime - skip : 0);

	return vocab_lookup(v, hash >= prime ? hash - prime : hash, s->t->text + from, to - from,
			    1u << VOCAB_NORMAL);
}

static int too_many(const struct vocab *v, int err, char *why, size_t why_len)
{
	if (err == -EFBIG)
		return vocab_fail(why, why_len, err,
				  "the vocabulary's %u entries can be made in more than "
				  "%u ways, the most there may be",
				  v->n_tokens, VOCAB_MERGES_MAX);
	return vocab_fail(why, why_len, err, "no memory for the vocabulary's merges");
}

int vocab_derive_by_id(struct vocab *v, char *why, size_t why_len)
{
	struct split *s = split_new();
	int err = s ? vocab_index(v) : -ENOMEM;

	for (uint32_t id = 0; id < v->n_tokens && !err; id++) {
		if (v->tokens[id].kind != VOCAB_NORMAL)
			continue;
		split_begin(s, &v->tokens[id]);
		for (uint32_t cut = 1; cut < s->t->len && !err; cut++) {
			uint32_t a = split_part(v, s, 0, cut), b;

			if (a == VOCAB_NO_ID)
				continue;
			b = split_part(v, s, cut, s->t->len);
			if (b == VOCAB_NO_ID)
				continue;
			err = vocab_merge(v, a, b, id);
			if (!err)
				v->merges[v->n_merges - 1].rank = id;
		}
	}
	free(s);
	return err ? too_many(v, err, why, why_len) : 0;
}

struct scored {
	float score;
	uint32_t id;
};

static int by_score(const void *pa, const void *pb)
{
	const struct scored *a = pa, *b = pb;

	if (a->score != b->score)
		return a->score > b->score ? -1 : 1;
	return (a->id > b->id) - (a->id < b->id);
}

static bool is_code_point(const uint8_t *text, uint32_t len)
{
	return len <= 4 && utf8_length(text, len) == len;
}

static int derive_splits(struct vocab *v, const struct split *s, uint32_t id, uint32_t rank)
{
	int err = 0;

	for (uint32_t cut = 1; cut < s->t->len && !err; cut++) {
		const uint8_t *right = s->t->text + cut;
		uint32_t a = split_part(v, s, 0, cut), b = split_part(v, s, cut, s->t->len);

		if ((a == VOCAB_NO_ID && !is_code_point(s->t->text, cut)) ||
		    (b == VOCAB_NO_ID && !is_code_point(right, s->t->len - cut)))
			continue;
		if (a == VOCAB_NO_ID)
			err = vocab_hide(v, s->t->text, cut, &a);
		if (!err && b == VOCAB_NO_ID)
			err = vocab_hide(v, right, s->t->len - cut, &b);
		if (!err)
			err = vocab_merge(v, a, b, id);
		if (!err)
			v->merges[v->n_merges - 1].rank = rank;
	}
	return err;
}

int vocab_derive_by_score(struct vocab *v, char *why, size_t why_len)
{
	struct split *s = split_new();
	struct scored *order = malloc(((size_t)v->n_tokens + 1) * sizeof(*order));
	int err = s && order ? vocab_index(v) : -ENOMEM;
	uint32_t n = 0, rank = 0;

	for (uint32_t id = 0; id < v->n_tokens && !err; id++) {
		const struct vocab_token *t = &v->tokens[id];

		if (t->kind != VOCAB_NORMAL || t->len < 2)
			continue;
		if (!isfinite(t->score)) {
			err = vocab_fail(why, why_len, -EPROTO,
					 "token %u has score %g; merges follow the scores, "
					 "so the vocabulary cannot be used",
					 id, (double)t->score);
			goto out;
		}
		order[n++] = (struct scored){ t->score, id };
	}
	if (!err && n)
		qsort(order, n, sizeof(*order), by_score);
	for (uint32_t i = 0; i < n && !err; i++) {
		rank += i && order[i].score != order[i - 1].score;
		split_begin(s, &v->tokens[order[i].id]);
		err = derive_splits(v, s, order[i].id, rank);
	}
	if (err)
		too_many(v, err, why, why_len);
out:
	free(order);
	free(s);
	return err;
}

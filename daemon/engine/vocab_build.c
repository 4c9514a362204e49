/* SPDX-License-Identifier: MIT */
/*
 * A vocabulary into the OBM_TOKENIZER section. The same vocabulary gives the same bytes: everything
 * goes in by rank or by id, and nothing depends on addresses.
 *
 * Words are entries that a piece with just their text becomes. Where the vocabulary says that a
 * piece which is an entry is taken at once, all are. Otherwise those that merging arrives at by
 * itself; to know them the section is opened without words, and each entry is encoded.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "bpe.h"
#include "utf8.h"
#include "vocab_private.h"

struct build {
	struct vocab *v;
	struct tokenizer_header h;
	struct tokenizer_layout l;
	struct vocab_merge *merges; /* by rank, each pair once, in symbols' ids */
	struct tokenizer_pair *pairs;
	uint32_t *words;
	uint8_t *section;
	char *why;
	size_t why_len;
};

static int no_memory(struct build *b)
{
	return vocab_fail(b->why, b->why_len, -ENOMEM, "no memory for the tokenizer");
}

/* A symbol: a token, an id that nothing names, or a hidden code point. */
static struct vocab_token symbol(const struct build *b, uint32_t id)
{
	if (id >= b->h.n_tokens)
		return b->v->arena->hidden[id - b->h.n_tokens];
	if (id >= b->v->n_tokens)
		return (struct vocab_token){ .kind = VOCAB_UNUSED };
	return b->v->tokens[id];
}

static uint32_t symbol_id(const struct build *b, uint32_t id)
{
	return id >= VOCAB_HIDDEN ? b->h.n_tokens + (id - VOCAB_HIDDEN) : id;
}

static int by_rank(const void *pa, const void *pb)
{
	const struct vocab_merge *x = pa, *y = pb;
	const uint32_t a[4] = { x->rank, x->a, x->b, x->merged };
	const uint32_t b[4] = { y->rank, y->a, y->b, y->merged };

	for (int i = 0; i < 4; i++)
		if (a[i] != b[i])
			return a[i] < b[i] ? -1 : 1;
	return 0;
}

static int sort_merges(struct build *b)
{
	uint32_t n = b->v->n_merges;

	b->merges = malloc(((size_t)n + 1) * sizeof(*b->merges));
	if (!b->merges)
		return no_memory(b);
	for (uint32_t i = 0; i < n; i++) {
		b->merges[i] = b->v->merges[i];
		b->merges[i].a = symbol_id(b, b->merges[i].a);
		b->merges[i].b = symbol_id(b, b->merges[i].b);
	}
	if (n)
		qsort(b->merges, n, sizeof(*b->merges), by_rank);
	return 0;
}

/* Longest run of full slots, around the end as well. */
static bool runs_fit(const uint32_t *mark, uint32_t slots, uint32_t stride)
{
	uint32_t run = 0, i;

	for (i = 0; i < 2 * slots && run <= TOKENIZER_RUN_MAX; i++)
		run = mark[(size_t)(i % slots) * stride] == UINT32_MAX ? 0 : run + 1;
	return run <= TOKENIZER_RUN_MAX;
}

/* 60 % full; more room when entries crowd. 0: they always do. */
static uint32_t slots_for(uint32_t n, unsigned attempt)
{
	uint64_t slots = (uint64_t)n * 5 / 3 + 8;

	return attempt < 5 ? (uint32_t)(slots << attempt) : 0;
}

static int crowded(struct build *b, const char *what)
{
	return vocab_fail(b->why, b->why_len, -EPROTO,
			  "the vocabulary's %s cannot be indexed: too many fall "
			  "on one place",
			  what);
}

/* The first merge of a pair wins. */
static void put_pair(struct build *b, const struct vocab_merge *m)
{
	uint64_t ids = m->a | (uint64_t)m->b << TOKENIZER_ID_BITS;
	uint64_t all = ids | (uint64_t)m->merged << 2 * TOKENIZER_ID_BITS;
	uint32_t slots = b->h.pair_slots, at = tokenizer_home(tokenizer_pair_hash(ids), slots);
	struct tokenizer_pair *p;

	for (;; at = at + 1 == slots ? 0 : at + 1) {
		p = &b->pairs[at];
		if (p->rank == UINT32_MAX)
			break;
		if (((p->ids_low | (uint64_t)p->ids_high << 32) ^ ids) << 24 == 0)
			return;
	}
	*p = (struct tokenizer_pair){ (uint32_t)all, (uint32_t)(all >> 32), m->rank };
	b->h.n_merges++;
}

static int make_pairs(struct build *b)
{
	uint32_t slots;

	for (unsigned attempt = 0; (slots = slots_for(b->v->n_merges, attempt)) != 0; attempt++) {
		free(b->pairs);
		b->pairs = malloc(slots * sizeof(*b->pairs));
		if (!b->pairs)
			return no_memory(b);
		memset(b->pairs, 0xff, slots * sizeof(*b->pairs));
		b->h.pair_slots = slots;
		b->h.n_merges = 0;
		for (uint32_t i = 0; i < b->v->n_merges; i++)
			put_pair(b, &b->merges[i]);
		if (runs_fit(&b->pairs[0].rank, slots, sizeof(*b->pairs) / sizeof(uint32_t)))
			return 0;
	}
	return crowded(b, "merges");
}

static void put_word(struct build *b, uint32_t id)
{
	struct vocab_token t = symbol(b, id);
	uint64_t hash = tokenizer_hash(t.text, t.len, t.len);
	uint32_t slots = b->h.word_slots, at = tokenizer_home(hash, slots), have;

	for (; (have = b->words[at]) != WORD_EMPTY; at = at + 1 == slots ? 0 : at + 1) {
		struct vocab_token o = symbol(b, have & TOKENIZER_ID_MASK);

		if (o.len == t.len && (!t.len || memcmp(o.text, t.text, t.len) == 0))
			return;
	}
	b->words[at] = tokenizer_word(hash, id);
	b->h.n_words++;
}

static bool may_be_word(const struct build *b, uint32_t id)
{
	return symbol(b, id).kind == VOCAB_NORMAL || id >= b->h.n_tokens;
}

/* With all that may be words; as many as fit with all, fit with fewer. */
static int make_words(struct build *b)
{
	uint32_t slots, n = 0;

	for (uint32_t id = 0; id < b->h.n_symbols; id++)
		n += may_be_word(b, id);
	for (unsigned attempt = 0; (slots = slots_for(n, attempt)) != 0; attempt++) {
		free(b->words);
		b->words = malloc(slots * sizeof(*b->words));
		if (!b->words)
			return no_memory(b);
		memset(b->words, 0xff, slots * sizeof(*b->words));
		b->h.word_slots = slots;
		b->h.n_words = 0;
		for (uint32_t id = 0; id < b->h.n_symbols; id++)
			if (may_be_word(b, id))
				put_word(b, id);
		if (runs_fit(b->words, slots, 1))
			return 0;
	}
	return crowded(b, "entries");
}

static void put_tokens(struct build *b)
{
	uint32_t *tokens = (uint32_t *)(void *)(b->section + b->l.tokens), at = 0;
	uint32_t *byte_id = (uint32_t *)(void *)(b->section + b->l.bytes);
	uint32_t byte_kind = b->h.kind == VOCAB_SPM ? VOCAB_BYTE : VOCAB_NORMAL;

	memset(byte_id, 0xff, 256 * sizeof(*byte_id));
	for (uint32_t id = 0; id < b->h.n_symbols; id++) {
		struct vocab_token t = symbol(b, id);
		uint32_t kind = t.kind == VOCAB_HIDDEN_KIND ? VOCAB_UNUSED : t.kind;

		tokens[id] = kind << TOKENIZER_TEXT_BITS | at;
		if (t.len)
			memcpy(b->section + b->l.text + at, t.text, t.len);
		at += t.len;
		if (t.len == 1 && kind == byte_kind && byte_id[t.text[0]] == VOCAB_NO_ID)
			byte_id[t.text[0]] = id;
		if (b->h.kind == VOCAB_SPM && id < b->h.n_tokens)
			memcpy(b->section + b->l.scores + id * sizeof(float), &t.score,
			       sizeof(float));
	}
	tokens[b->h.n_symbols] = at;
}

struct named {
	const uint8_t *text;
	uint32_t len, id;
};

static int by_text(const void *pa, const void *pb)
{
	const struct named *a = pa, *b = pb;
	int order = memcmp(a->text, b->text, a->len < b->len ? a->len : b->len);

	if (!order)
		order = (a->len > b->len) - (a->len < b->len);
	return order ? order : (a->id > b->id) - (a->id < b->id);
}

/* The ids of a kind that is looked for in text. */
static int put_texts(struct build *b, size_t part, uint32_t kind)
{
	uint32_t *ids = (uint32_t *)(void *)(b->section + part), n = 0;
	struct named *s = malloc(((size_t)b->h.n_tokens + 1) * sizeof(*s));

	if (!s)
		return no_memory(b);
	for (uint32_t id = 0; id < b->v->n_tokens; id++) {
		struct vocab_token t = b->v->tokens[id];

		if (t.kind == kind)
			s[n++] = (struct named){ t.text, t.len, id };
	}
	if (n)
		qsort(s, n, sizeof(*s), by_text);
	for (uint32_t i = 0; i < n; i++)
		ids[i] = s[i].id;
	free(s);
	return 0;
}

static void put_joints(struct build *b)
{
	uint8_t *joints = b->section + b->l.joints;
	uint32_t before = VOCAB_NO_ID;

	for (uint32_t i = 0; i < b->v->n_merges; i++) {
		const struct vocab_token *t = &b->v->tokens[b->merges[i].merged];

		if (b->merges[i].merged == before)
			continue;
		before = b->merges[i].merged;
		for (uint32_t k = 1; k < t->len; k++)
			joints[t->text[k - 1] * 32u + (t->text[k] >> 3)] |=
				(uint8_t)(1u << (t->text[k] & 7));
	}
}

static void put_tables(struct build *b)
{
	memcpy(b->section, &b->h, sizeof(b->h));
	memcpy(b->section + b->l.words, b->words, b->h.word_slots * sizeof(*b->words));
	memcpy(b->section + b->l.pairs, b->pairs, b->h.pair_slots * sizeof(*b->pairs));
}

static bool is_code_point(const struct vocab_token *t)
{
	return t->len <= 4 && utf8_length(t->text, t->len) == t->len;
}

/* Keep the words that merging finds. SentencePiece starts from code points, so these stay. */
static int reached_words(struct build *b)
{
	static char unused[64];
	struct bpe_room room = { 0 };
	struct tokenizer *t = NULL;
	int err;

	memset(b->words, 0xff, b->h.word_slots * sizeof(*b->words));
	b->h.n_words = 0;
	for (uint32_t id = 0; id < b->h.n_symbols && b->h.kind == VOCAB_SPM; id++) {
		struct vocab_token s = symbol(b, id);

		if (may_be_word(b, id) && is_code_point(&s))
			put_word(b, id);
	}
	put_tables(b);
	err = tokenizer_open(b->section, b->h.bytes, &t, unused, sizeof(unused));
	assert(err == 0 || err == -ENOMEM);
	room.node = malloc(VOCAB_TOKEN_BYTES_MAX * sizeof(*room.node));
	room.entry = malloc(VOCAB_TOKEN_BYTES_MAX * 2 * sizeof(*room.entry));
	room.run = malloc(VOCAB_TOKEN_BYTES_MAX * 2 * sizeof(*room.run));
	room.heap = malloc(VOCAB_TOKEN_BYTES_MAX * 2 * sizeof(*room.heap));
	if (!err && room.node && room.entry && room.run && room.heap) {
		for (uint32_t id = 0; id < b->v->n_tokens; id++) {
			struct vocab_token s = symbol(b, id);
			uint32_t first = VOCAB_NO_ID;
			struct bpe_out out = { .ids = &first, .cap = 1, .last = VOCAB_NO_ID };

			if (s.kind != VOCAB_NORMAL)
				continue;
			bpe_merge(t, &room, s.text, s.len, &out);
			if (out.n == 1 && first == id)
				put_word(b, id);
		}
	} else {
		err = no_memory(b);
	}
	tokenizer_close(t);
	free(room.node);
	free(room.entry);
	free(room.run);
	free(room.heap);
	return err;
}

static int set_header(struct build *b, uint32_t vocab_size)
{
	const struct vocab *v = b->v;
	struct tokenizer_header *h = &b->h;
	uint64_t text = 0, symbols = (uint64_t)vocab_size + v->arena->n_hidden;

	if (symbols > VOCAB_TOKENS_MAX)
		return vocab_fail(b->why, b->why_len, -EPROTO,
				  "the vocabulary has %u tokens and %u code points "
				  "besides; at most %u can be served",
				  vocab_size, v->arena->n_hidden, VOCAB_TOKENS_MAX);
	*h = (struct tokenizer_header){
		.version = TOKENIZER_VERSION,
		.kind = v->kind,
		.rule = v->rule,
		.flags = v->flags,
		.n_tokens = vocab_size,
		.n_symbols = (uint32_t)symbols,
		.bos = v->bos,
		.eos = v->eos,
		.unk = v->unk,
		.n_stops = v->n_stops,
	};
	memcpy(h->magic, TOKENIZER_MAGIC, sizeof(h->magic));
	memcpy(h->stops, v->stops, v->n_stops * sizeof(h->stops[0]));
	memcpy(h->chat, v->chat, strlen(v->chat));
	for (uint32_t id = 0; id < h->n_symbols; id++) {
		struct vocab_token t = symbol(b, id);

		text += t.len;
		h->longest = t.len > h->longest ? t.len : h->longest;
		h->n_specials += t.kind == VOCAB_SPECIAL;
		h->n_added += t.kind == VOCAB_ADDED;
	}
	if (text >= TOKENIZER_TEXT_MAX)
		return vocab_fail(b->why, b->why_len, -EPROTO,
				  "the vocabulary's texts have %llu bytes; at most %u "
				  "can be served",
				  (unsigned long long)text, TOKENIZER_TEXT_MAX - 1);
	h->text_bytes = (uint32_t)text;
	return 0;
}

static int make_section(struct build *b)
{
	struct tokenizer *t;
	int err;

	b->l = tokenizer_layout(&b->h);
	if (b->l.end > UINT32_MAX)
		return vocab_fail(b->why, b->why_len, -EPROTO,
				  "the tokenizer would have %zu bytes, too many to be "
				  "served",
				  b->l.end);
	b->h.bytes = (uint32_t)b->l.end;
	b->section = calloc(1, b->l.end);
	if (!b->section)
		return no_memory(b);
	put_tokens(b);
	put_joints(b);
	err = put_texts(b, b->l.specials, VOCAB_SPECIAL);
	if (!err)
		err = put_texts(b, b->l.added, VOCAB_ADDED);
	if (!err && !(b->h.flags & VOCAB_IGNORE_MERGES))
		err = reached_words(b);
	if (err)
		return err;
	put_tables(b);
	err = tokenizer_open(b->section, b->h.bytes, &t, b->why, b->why_len);
	assert(err == 0 || err == -ENOMEM);
	if (!err)
		tokenizer_close(t);
	return err;
}

int vocab_build(struct vocab *v, uint32_t vocab_size, void **section, size_t *bytes, char *why,
		size_t why_len)
{
	struct build b = { .v = v, .why = why, .why_len = why_len };
	int err = vocab_check(v, vocab_size, why, why_len);

	if (!err)
		err = set_header(&b, vocab_size);
	if (!err)
		err = sort_merges(&b);
	if (!err)
		err = make_pairs(&b);
	if (!err)
		err = make_words(&b);
	if (!err)
		err = make_section(&b);
	free(b.merges);
	free(b.pairs);
	free(b.words);
	if (err) {
		free(b.section);
		return err;
	}
	*section = b.section;
	*bytes = b.h.bytes;
	return 0;
}

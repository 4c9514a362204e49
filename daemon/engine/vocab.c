/* SPDX-License-Identifier: MIT */
/*
 * A vocabulary as readers fill it in: growing arrays of tokens and merges, texts in chunks that
 * never move, and one index from a text to its id. Everything here is linear in what a reader hands
 * in, whatever that is: it comes from files that anybody wrote.
 *
 * GPT-2's printable spelling of bytes is here as well, because four readers need it.
 */
#include "vocab_private.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 1 << 16, SAME_TEXT_MAX = 8 };
#define PRIME ((1ull << 61) - 1)

struct vocab_chunk {
	struct vocab_chunk *next;
	size_t used, size;
	uint8_t bytes[];
};

int vocab_fail(char *why, size_t why_len, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, why_len, format, args);
	va_end(args);
	return err;
}

struct vocab *vocab_new(void)
{
	struct vocab *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	v->arena = calloc(1, sizeof(*v->arena));
	if (!v->arena) {
		free(v);
		return NULL;
	}
	v->bos = v->eos = v->unk = VOCAB_NO_ID;
	return v;
}

struct vocab *vocab_free(struct vocab *v)
{
	if (!v)
		return NULL;
	while (v->arena->chunk) {
		struct vocab_chunk *c = v->arena->chunk;

		v->arena->chunk = c->next;
		free(c);
	}
	free(v->arena->slot);
	free(v->arena->hidden);
	free(v->arena);
	free(v->tokens);
	free(v->merges);
	free(v);
	return NULL;
}

/* A copy that stays where it is. */
static const uint8_t *keep(struct vocab_arena *a, const void *text, size_t len)
{
	struct vocab_chunk *c = a->chunk;

	if (!c || c->size - c->used < len) {
		size_t size = len > CHUNK_BYTES ? len : CHUNK_BYTES;

		c = malloc(sizeof(*c) + size);
		if (!c)
			return NULL;
		c->next = a->chunk;
		c->used = 0;
		c->size = size;
		a->chunk = c;
	}
	if (len)
		memcpy(c->bytes + c->used, text, len);
	c->used += len;
	return c->bytes + c->used - len;
}

/* One more of n fits; the bounds of n keep n * size far from overflow. */
static int grow(void **array, uint32_t n, uint32_t *cap, size_t size)
{
	uint32_t more = *cap ? *cap * 2 : 1024;
	void *p;

	if (n < *cap)
		return 0;
	p = reallocarray(*array, more, size);
	if (!p)
		return -ENOMEM;
	*array = p;
	*cap = more;
	return 0;
}

int vocab_add(struct vocab *v, const void *text, size_t len, uint32_t kind, float score)
{
	const uint8_t *copy;

	if (v->n_tokens >= VOCAB_TOKENS_MAX || len > VOCAB_TOKEN_BYTES_MAX)
		return -EFBIG;
	copy = keep(v->arena, text, len);
	if (!copy ||
	    grow((void **)&v->tokens, v->n_tokens, &v->arena->tokens_cap, sizeof(*v->tokens)))
		return -ENOMEM;
	v->tokens[v->n_tokens++] = (struct vocab_token){
		.text = copy,
		.len = (uint32_t)len,
		.kind = kind,
		.score = score,
	};
	return 0;
}

int vocab_merge(struct vocab *v, uint32_t a, uint32_t b, uint32_t merged)
{
	if (v->n_merges >= VOCAB_MERGES_MAX)
		return -EFBIG;
	if (grow((void **)&v->merges, v->n_merges, &v->arena->merges_cap, sizeof(*v->merges)))
		return -ENOMEM;
	v->merges[v->n_merges] = (struct vocab_merge){ a, b, merged, v->n_merges };
	v->n_merges++;
	return 0;
}

int vocab_stop(struct vocab *v, uint32_t id)
{
	for (uint32_t i = 0; i < v->n_stops; i++)
		if (v->stops[i] == id)
			return 0;
	if (v->n_stops == VOCAB_STOPS_MAX)
		return -EFBIG;
	v->stops[v->n_stops++] = id;
	return 0;
}

/* ---- the index of texts ---------------------------------------------------------------------- */

uint64_t vocab_hash_mul(uint64_t a, uint64_t b)
{
	unsigned __int128 p = (unsigned __int128)a * b;
	uint64_t s = (uint64_t)(p & PRIME) + (uint64_t)(p >> 61);

	return s >= PRIME ? s - PRIME : s;
}

uint64_t vocab_hash_byte(uint64_t h, uint8_t byte)
{
	uint64_t s = vocab_hash_mul(h, VOCAB_HASH_BASE) + byte + 1u;

	return s >= PRIME ? s - PRIME : s;
}

static uint64_t hash_of(const uint8_t *text, uint32_t len)
{
	uint64_t h = 0;

	for (uint32_t i = 0; i < len; i++)
		h = vocab_hash_byte(h, text[i]);
	return h;
}

static uint32_t home(uint64_t hash, uint32_t slots)
{
	return (uint32_t)((hash * 0xbf58476d1ce4e5b9ull) >> 32) & (slots - 1);
}

const struct vocab_token *vocab_token(const struct vocab *v, uint32_t id)
{
	return id >= VOCAB_HIDDEN ? &v->arena->hidden[id - VOCAB_HIDDEN] : &v->tokens[id];
}

static bool same_text(const struct vocab_token *t, const uint8_t *text, uint32_t len)
{
	return t->len == len && memcmp(t->text, text, len) == 0;
}

static void put(struct vocab *v, uint32_t id)
{
	struct vocab_arena *a = v->arena;
	const struct vocab_token *t = vocab_token(v, id);
	uint32_t at = home(hash_of(t->text, t->len), a->slots), same = 0;

	for (; a->slot[at]; at = (at + 1) & (a->slots - 1)) {
		same += same_text(vocab_token(v, a->slot[at] - 1), t->text, t->len);
		if (same == SAME_TEXT_MAX)
			return;
	}
	a->slot[at] = id + 1;
	a->filled++;
}

/* At most half full with all that is there and one more. */
static int reserve(struct vocab *v)
{
	struct vocab_arena *a = v->arena;
	uint32_t want = v->n_tokens + a->n_hidden + 1, slots = 4096;
	uint32_t *slot;

	while (slots / 2 < want)
		slots *= 2;
	if (slots <= a->slots)
		return 0;
	slot = calloc(slots, sizeof(*slot));
	if (!slot)
		return -ENOMEM;
	free(a->slot);
	a->slot = slot;
	a->slots = slots;
	a->indexed = a->filled = 0;
	for (uint32_t i = 0; i < a->n_hidden; i++)
		put(v, VOCAB_HIDDEN + i);
	return 0;
}

int vocab_index(struct vocab *v)
{
	struct vocab_arena *a = v->arena;

	if (reserve(v))
		return -ENOMEM;
	for (; a->indexed < v->n_tokens; a->indexed++)
		if (v->tokens[a->indexed].len)
			put(v, a->indexed);
	return 0;
}

uint32_t vocab_lookup(const struct vocab *v, uint64_t hash, const uint8_t *text, uint32_t len,
		      uint32_t kinds)
{
	const struct vocab_arena *a = v->arena;

	for (uint32_t at = home(hash, a->slots); a->slot[at]; at = (at + 1) & (a->slots - 1)) {
		const struct vocab_token *t = vocab_token(v, a->slot[at] - 1);

		if (t->kind <= VOCAB_HIDDEN_KIND && (kinds >> t->kind & 1) &&
		    same_text(t, text, len))
			return a->slot[at] - 1;
	}
	return VOCAB_NO_ID;
}

uint32_t vocab_find(struct vocab *v, const void *text, size_t len, uint32_t kinds)
{
	if (!len || len > VOCAB_TOKEN_BYTES_MAX || vocab_index(v))
		return VOCAB_NO_ID;
	return vocab_lookup(v, hash_of(text, (uint32_t)len), text, (uint32_t)len, kinds & 15);
}

int vocab_hide(struct vocab *v, const uint8_t *text, uint32_t len, uint32_t *id)
{
	struct vocab_arena *a = v->arena;
	const uint8_t *copy;

	*id = vocab_lookup(v, hash_of(text, len), text, len, 1u << VOCAB_HIDDEN_KIND);
	if (*id != VOCAB_NO_ID)
		return 0;
	if (a->n_hidden >= VOCAB_TOKENS_MAX)
		return -EFBIG;
	copy = keep(a, text, len);
	if (!copy || grow((void **)&a->hidden, a->n_hidden, &a->hidden_cap, sizeof(*a->hidden)))
		return -ENOMEM;
	a->hidden[a->n_hidden++] = (struct vocab_token){
		.text = copy,
		.len = len,
		.kind = VOCAB_HIDDEN_KIND,
	};
	*id = VOCAB_HIDDEN + a->n_hidden - 1;
	/* A bigger table puts it in by itself, but not the tokens. */
	if (a->filled + 1 > a->slots / 2)
		return vocab_index(v);
	put(v, *id);
	return 0;
}

/* ---- spellings ------------------------------------------------------------------------------- */

/* Bytes that are their own spelling; the others are U+0100 and up, in their order. */
static bool is_printed(unsigned byte)
{
	return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

static uint8_t unprinted(unsigned nth)
{
	if (nth < 33)
		return (uint8_t)nth;
	return nth < 67 ? (uint8_t)(nth - 33 + 127) : 173;
}

int vocab_unmap(const char *text, size_t len, uint8_t *out)
{
	const uint8_t *p = (const uint8_t *)text;
	int n = 0;

	for (size_t i = 0; i < len; n++) {
		unsigned c = p[i++];

		if (c >= 0xc2 && c <= 0xc5 && i < len && (p[i] & 0xc0) == 0x80)
			c = (c & 0x1f) << 6 | (p[i++] & 0x3f);
		else if (c >= 0x80)
			return -EILSEQ;
		if (c >= 0x100 && c < 0x100 + 68)
			out[n] = unprinted(c - 0x100);
		else if (c < 0x100 && is_printed(c))
			out[n] = (uint8_t)c;
		else
			return -EILSEQ;
	}
	return n;
}

size_t vocab_map(const uint8_t *bytes, size_t len, char *out)
{
	size_t n = 0;

	for (size_t i = 0; i < len; i++) {
		unsigned c = bytes[i];

		if (!is_printed(c))
			c = 0x100 + (c < 33 ? c : c < 161 ? c - 127 + 33 : 67);
		if (c >= 0x80) {
			out[n++] = (char)(0xc0 | c >> 6);
			c = 0x80 | (c & 0x3f);
		}
		out[n++] = (char)c;
	}
	return n;
}

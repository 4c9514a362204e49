/* SPDX-License-Identifier: MIT */
/*
 * The head of a GGUF file, version 3, and a vocabulary as its keys.
 *
 * Peers know no entry without a text and none twice: ids that no text names get "[PADn]", type
 * unused. What their keys cannot say (all stops, which flags) stands in keys of our own besides.
 */
#include "gguf_write.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "gguf.h"
#include "gguf_stored.h"

#define KEY(name) "tokenizer.ggml." name

static void put(struct gguf_head *h, const void *data, size_t len)
{
	if (h->len + len > h->cap && !h->failed) {
		size_t cap = (h->len + len) * 2;
		uint8_t *more = realloc(h->data, cap);

		if (more) {
			h->data = more;
			h->cap = cap;
		}
		h->failed = !more;
	}
	if (h->failed)
		return;
	if (data)
		memcpy(h->data + h->len, data, len);
	else
		memset(h->data + h->len, 0, len);
	h->len += len;
}

static void store(uint8_t *p, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(value >> 8 * i);
}

static void put_int(struct gguf_head *h, uint64_t value, unsigned bytes)
{
	uint8_t p[8];

	store(p, value, bytes);
	put(h, p, bytes);
}

static void put_key(struct gguf_head *h, const char *key, uint32_t type)
{
	gguf_put_string(h, key, strlen(key));
	put_int(h, type, 4);
	h->n_keys++;
}

void gguf_head_begin(struct gguf_head *h)
{
	*h = (struct gguf_head){ 0 };
	put(h, "GGUF\3\0\0\0", 8);
	/* The counts, when they are known. */
	put(h, NULL, 16);
}

int gguf_head_end(struct gguf_head *h)
{
	put(h, NULL, (GGUF_WRITE_ALIGNMENT - h->len % GGUF_WRITE_ALIGNMENT) % GGUF_WRITE_ALIGNMENT);
	if (h->failed)
		return -ENOMEM;
	store(h->data + 8, h->n_tensors, 8);
	store(h->data + 16, h->n_keys, 8);
	return 0;
}

void gguf_head_free(struct gguf_head *h)
{
	free(h->data);
	*h = (struct gguf_head){ 0 };
}

void gguf_put_u32(struct gguf_head *h, const char *key, uint32_t value)
{
	put_key(h, key, GGUF_U32);
	put_int(h, value, 4);
}

void gguf_put_f32(struct gguf_head *h, const char *key, float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	put_key(h, key, GGUF_F32);
	put_int(h, bits, 4);
}

void gguf_put_bool(struct gguf_head *h, const char *key, bool value)
{
	put_key(h, key, GGUF_BOOL);
	put_int(h, value, 1);
}

void gguf_put_text(struct gguf_head *h, const char *key, const char *text)
{
	if (!text || !*text)
		return;
	put_key(h, key, GGUF_STRING);
	gguf_put_string(h, text, strlen(text));
}

void gguf_put_array(struct gguf_head *h, const char *key, uint32_t type, uint64_t n)
{
	put_key(h, key, GGUF_ARRAY);
	put_int(h, type, 4);
	put_int(h, n, 8);
}

void gguf_put_element(struct gguf_head *h, const void *element, size_t len)
{
	put(h, element, len);
}

void gguf_put_string(struct gguf_head *h, const void *text, size_t len)
{
	put_int(h, len, 8);
	put(h, text, len);
}

size_t gguf_put_gap(struct gguf_head *h, size_t n)
{
	size_t at = h->len;

	put(h, NULL, n);
	return at;
}

void gguf_put_tensor(struct gguf_head *h, const char *name, uint32_t type, uint64_t cols,
		     uint64_t rows, uint64_t bytes, uint64_t *at)
{
	*at = h->offset;
	gguf_put_string(h, name, strlen(name));
	put_int(h, rows ? 2 : 1, 4);
	put_int(h, cols, 8);
	if (rows)
		put_int(h, rows, 8);
	put_int(h, type, 4);
	put_int(h, h->offset, 8);
	h->n_tensors++;
	h->offset += (bytes + GGUF_WRITE_ALIGNMENT - 1) / GGUF_WRITE_ALIGNMENT *
		     GGUF_WRITE_ALIGNMENT;
}

/* ---- the vocabulary -------------------------------------------------------------------------- */

/* A token's text as peers have it; out holds 3 * VOCAB_TOKEN_BYTES_MAX bytes. */
static size_t spell(const struct vocab *v, uint32_t id, char *out)
{
	const struct vocab_token *t = id < v->n_tokens ? &v->tokens[id] : NULL;
	size_t n = 0;

	if (!t || !t->len)
		return (size_t)sprintf(out, "[PAD%u]", id);
	if (t->kind == VOCAB_BYTE)
		return (size_t)sprintf(out, "<0x%02X>", t->text[0]);
	if (t->kind != VOCAB_NORMAL) {
		memcpy(out, t->text, t->len);
		return t->len;
	}
	if (v->kind == VOCAB_BYTES)
		return vocab_map(t->text, t->len, out);
	for (uint32_t i = 0; i < t->len; i++) {
		if (t->text[i] != ' ') {
			out[n++] = (char)t->text[i];
		} else {
			memcpy(out + n, "\xe2\x96\x81", 3);
			n += 3;
		}
	}
	return n;
}

static uint32_t type_of(const struct vocab *v, uint32_t id)
{
	if (id >= v->n_tokens || v->tokens[id].kind == VOCAB_UNUSED)
		return 5;
	switch (v->tokens[id].kind) {
	case VOCAB_SPECIAL:
		return id == v->unk ? 2 : 3;
	case VOCAB_BYTE:
		return 6;
	case VOCAB_ADDED:
		return 4;
	default:
		return 1;
	}
}

static int by_rank(const void *a, const void *b)
{
	const struct vocab_merge *x = *(const struct vocab_merge *const *)a;
	const struct vocab_merge *y = *(const struct vocab_merge *const *)b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	return x < y ? -1 : x > y;
}

static int put_merges(struct gguf_head *h, const struct vocab *v, char *text)
{
	const struct vocab_merge **sorted =
		malloc((v->n_merges ? v->n_merges : 1) * sizeof(const void *));

	if (!sorted)
		return -ENOMEM;
	for (uint32_t i = 0; i < v->n_merges; i++)
		sorted[i] = &v->merges[i];
	qsort(sorted, v->n_merges, sizeof(const void *), by_rank);
	gguf_put_array(h, KEY("merges"), GGUF_STRING, v->n_merges);
	for (uint32_t i = 0; i < v->n_merges; i++) {
		size_t n = spell(v, sorted[i]->a, text);

		text[n++] = ' ';
		n += spell(v, sorted[i]->b, text + n);
		gguf_put_string(h, text, n);
	}
	free(sorted);
	return 0;
}

/*
 * SentencePiece knows scores only. A vocabulary that came with merges instead has none, and gets
 * the rank of an entry's first merge for one.
 */
static int put_scores(struct gguf_head *h, const struct vocab *v, uint32_t vocab_size)
{
	float *scores;
	bool any = false;

	assert(vocab_size);
	scores = calloc(vocab_size, sizeof(*scores));
	if (!scores)
		return -ENOMEM;
	for (uint32_t i = 0; i < v->n_tokens; i++) {
		scores[i] = v->tokens[i].score;
		any = any || scores[i] != 0;
	}
	for (uint32_t i = v->n_merges; i-- && !any;) {
		const struct vocab_merge *m = &v->merges[i];

		if (m->merged < v->n_tokens)
			scores[m->merged] = -(float)m->rank;
	}
	gguf_put_array(h, KEY("scores"), GGUF_F32, vocab_size);
	gguf_put_element(h, scores, vocab_size * sizeof(*scores));
	free(scores);
	return 0;
}

static void put_id(struct gguf_head *h, const char *key, uint32_t id)
{
	if (id != VOCAB_NO_ID)
		gguf_put_u32(h, key, id);
}

static void put_facts(struct gguf_head *h, const struct vocab *v)
{
	put_id(h, KEY("bos_token_id"), v->bos);
	put_id(h, KEY("eos_token_id"), v->eos);
	put_id(h, KEY("unknown_token_id"), v->unk);
	for (uint32_t i = 0; i < v->n_stops; i++)
		if (v->stops[i] != v->eos) {
			gguf_put_u32(h, KEY("eot_token_id"), v->stops[i]);
			break;
		}
	gguf_put_bool(h, KEY("add_bos_token"), v->flags & VOCAB_ADD_BOS);
	if (v->kind == VOCAB_SPM)
		gguf_put_bool(h, KEY("add_space_prefix"), v->flags & VOCAB_DUMMY_PREFIX);
	gguf_put_text(h, GGUF_OWN_CHAT, v->chat);
	gguf_put_u32(h, GGUF_OWN_FLAGS_OF_VOCAB, v->flags);
	gguf_put_array(h, GGUF_OWN_STOPS, GGUF_U32, v->n_stops);
	for (uint32_t i = 0; i < v->n_stops; i++)
		put_int(h, v->stops[i], 4);
}

int gguf_put_vocab(struct gguf_head *h, const struct vocab *v, uint32_t vocab_size)
{
	static const char *const pre[VOCAB_RULE_COUNT] = { "default", "llama-bpe", "gpt-2",
							   "starcoder" };
	const bool is_bytes = v->kind == VOCAB_BYTES;
	char *text = malloc(8 * VOCAB_TOKEN_BYTES_MAX);
	int err;

	if (!text)
		return -ENOMEM;
	gguf_put_text(h, KEY("model"), is_bytes ? "gpt2" : "llama");
	/* GPT-NeoX's tokenizer, by the name that it has with peers. */
	gguf_put_text(h, KEY("pre"),
		      v->rule == VOCAB_RULE_GPT2 && v->flags & VOCAB_NFC ? "mpt" : pre[v->rule]);
	gguf_put_array(h, KEY("tokens"), GGUF_STRING, vocab_size);
	for (uint32_t id = 0; id < vocab_size; id++)
		gguf_put_string(h, text, spell(v, id, text));
	gguf_put_array(h, KEY("token_type"), GGUF_I32, vocab_size);
	for (uint32_t id = 0; id < vocab_size; id++)
		put_int(h, type_of(v, id), 4);
	put_facts(h, v);
	err = is_bytes ? put_merges(h, v, text) : put_scores(h, v, vocab_size);
	free(text);
	return err;
}

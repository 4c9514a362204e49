/* SPDX-License-Identifier: MIT */
/*
 * Whether a vocabulary can serve a model: ids that exist, texts that can be spelled, merges that
 * give what their parts say. A reader calls it last, vocab_build() first; what passes becomes a
 * section that tokenizer_open() takes.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "nfc.h"
#include "utf8.h"
#include "vocab_private.h"

static int check_facts(const struct vocab *v, uint32_t vocab_size, char *why, size_t why_len)
{
	const struct {
		const char *name;
		uint32_t id;
	} named[] = {
		{ "first token (bos)", v->bos },
		{ "last token (eos)", v->eos },
		{ "unknown token (unk)", v->unk },
	};

	if (v->kind != VOCAB_BYTES && v->kind != VOCAB_SPM)
		return vocab_fail(why, why_len, -EPROTO,
				  "the tokenizer is of kind %u; byte-level BPE (1) and "
				  "SentencePiece BPE (2) are known",
				  v->kind);
	if (v->rule >= VOCAB_RULE_COUNT || (v->kind == VOCAB_SPM && v->rule != VOCAB_RULE_NONE))
		return vocab_fail(why, why_len, -EPROTO,
				  "the tokenizer cuts text by rule %u, which its kind %u "
				  "does not have",
				  v->rule, v->kind);
	if (v->flags & ~VOCAB_FLAGS_ALL ||
	    (v->flags & VOCAB_DUMMY_PREFIX && v->kind != VOCAB_SPM) ||
	    (v->flags & (VOCAB_IGNORE_MERGES | VOCAB_NFC) && v->kind != VOCAB_BYTES))
		return vocab_fail(why, why_len, -EPROTO,
				  "the tokenizer has flags %#x, which its kind %u does not "
				  "have",
				  v->flags, v->kind);
	if (!v->n_tokens)
		return vocab_fail(why, why_len, -EPROTO, "the vocabulary is empty");
	if (v->n_tokens > vocab_size)
		return vocab_fail(why, why_len, -EPROTO,
				  "the vocabulary has %u tokens, the model only %u: it is "
				  "another model's",
				  v->n_tokens, vocab_size);
	if (vocab_size > VOCAB_TOKENS_MAX)
		return vocab_fail(why, why_len, -EPROTO,
				  "the model has %u tokens; at most %u can be served", vocab_size,
				  VOCAB_TOKENS_MAX);
	for (size_t i = 0; i < sizeof(named) / sizeof(named[0]); i++)
		if (named[i].id != VOCAB_NO_ID && named[i].id >= v->n_tokens)
			return vocab_fail(why, why_len, -EPROTO,
					  "the %s is id %u, but there are %u tokens", named[i].name,
					  named[i].id, v->n_tokens);
	if (v->n_stops > VOCAB_STOPS_MAX)
		return vocab_fail(why, why_len, -EPROTO, "%u tokens end an answer; at most %u may",
				  v->n_stops, VOCAB_STOPS_MAX);
	for (uint32_t i = 0; i < v->n_stops; i++)
		if (v->stops[i] >= v->n_tokens)
			return vocab_fail(why, why_len, -EPROTO,
					  "id %u ends an answer, but there are %u tokens",
					  v->stops[i], v->n_tokens);
	if (!memchr(v->chat, 0, sizeof(v->chat)))
		return vocab_fail(why, why_len, -EPROTO,
				  "the chat template's name is longer than %zu bytes",
				  sizeof(v->chat) - 1);
	return 0;
}

/* One that text may hold, as it is when it is looked for. */
static int check_added(const struct vocab *v, uint32_t id, char *why, size_t why_len)
{
	int32_t code[2 * VOCAB_ADDED_BYTES_MAX + 4], sorted[2 * VOCAB_ADDED_BYTES_MAX + 4];
	const struct nfc_room room = { code, sorted };
	const struct vocab_token *t = &v->tokens[id];
	uint8_t text[NFC_GROWTH * VOCAB_ADDED_BYTES_MAX];

	if (v->kind != VOCAB_BYTES)
		return vocab_fail(why, why_len, -EPROTO,
				  "token %u is to be taken whole from text, which only byte-level "
				  "BPE does", id);
	if (t->len > VOCAB_ADDED_BYTES_MAX)
		return vocab_fail(why, why_len, -EPROTO,
				  "token %u is to be taken whole from text and has %u bytes; at "
				  "most %u may be", id, t->len, VOCAB_ADDED_BYTES_MAX);
	if (v->flags & VOCAB_NFC && (nfc(t->text, t->len, &room, text) != t->len ||
				     memcmp(text, t->text, t->len) != 0))
		return vocab_fail(why, why_len, -EPROTO,
				  "token %u is to be taken whole from text in NFC, which it is "
				  "not in itself", id);
	return 0;
}

static int check_tokens(const struct vocab *v, char *why, size_t why_len)
{
	bool has[256] = { false };
	unsigned n_bytes = 0;
	int err;

	for (uint32_t id = 0; id < v->n_tokens; id++) {
		const struct vocab_token *t = &v->tokens[id];
		bool is_byte = t->kind == (v->kind == VOCAB_SPM ? VOCAB_BYTE : VOCAB_NORMAL) &&
			       t->len == 1;

		if (t->kind >= VOCAB_KINDS)
			return vocab_fail(why, why_len, -EPROTO,
					  "token %u is of kind %u; 0 to %u are known", id, t->kind,
					  VOCAB_KINDS - 1);
		if (t->len > VOCAB_TOKEN_BYTES_MAX)
			return vocab_fail(why, why_len, -EPROTO,
					  "token %u has %u bytes; at most %u may be", id, t->len,
					  VOCAB_TOKEN_BYTES_MAX);
		if (!t->len && t->kind != VOCAB_UNUSED)
			return vocab_fail(
				why, why_len, -EPROTO, "token %u is %s, but has no text", id,
				t->kind == VOCAB_SPECIAL ? "special" : "to be found in text");
		if (t->kind == VOCAB_BYTE && (v->kind != VOCAB_SPM || t->len != 1))
			return vocab_fail(why, why_len, -EPROTO,
					  "token %u stands for a byte, but %s", id,
					  t->len == 1 ? "in byte-level BPE all do"
						      : "its text is not one byte");
		if (t->kind == VOCAB_ADDED && (err = check_added(v, id, why, why_len)) != 0)
			return err;
		if (!isfinite(t->score))
			return vocab_fail(why, why_len, -EPROTO, "token %u has score %g", id,
					  (double)t->score);
		if (is_byte && !has[t->text[0]]) {
			has[t->text[0]] = true;
			n_bytes++;
		}
	}
	if (n_bytes == 256 || (v->kind == VOCAB_SPM && v->unk != VOCAB_NO_ID))
		return 0;
	for (unsigned b = 0; b < 256; b++)
		if (!has[b] && (v->kind == VOCAB_SPM || !utf8_never(b)))
			return vocab_fail(why, why_len, -EPROTO,
					  "no token stands for byte %#04x (%u of 256 bytes "
					  "have one)%s",
					  b, n_bytes,
					  v->kind == VOCAB_SPM
						  ? ", and there is no token for what is unknown"
						  : ": texts with it could not be encoded");
	/* StarCoder was made without them. Text with such a byte loses it. */
	return 0;
}

/* A part of a merge. */
static bool is_part(const struct vocab *v, uint32_t id)
{
	if (id >= VOCAB_HIDDEN)
		return v->kind == VOCAB_SPM && id - VOCAB_HIDDEN < v->arena->n_hidden;
	return id < v->n_tokens && v->tokens[id].kind == VOCAB_NORMAL;
}

static int check_merges(const struct vocab *v, char *why, size_t why_len)
{
	for (uint32_t i = 0; i < v->n_merges; i++) {
		const struct vocab_merge *m = &v->merges[i];
		const uint32_t id[3] = { m->a, m->b, m->merged };
		const struct vocab_token *a, *b, *c;

		for (int k = 0; k < 3; k++)
			if (id[k] >= v->n_tokens && !(k < 2 && is_part(v, id[k])))
				return vocab_fail(why, why_len, -EPROTO,
						  "merge %u names id %u, but there are %u tokens",
						  i, id[k], v->n_tokens);
		for (int k = 0; k < 3; k++)
			if (!is_part(v, id[k]))
				return vocab_fail(why, why_len, -EPROTO,
						  "merge %u has to do with id %u, which no text "
						  "may become (kind %u)",
						  i, id[k], v->tokens[id[k]].kind);
		a = vocab_token(v, m->a);
		b = vocab_token(v, m->b);
		c = vocab_token(v, m->merged);
		if (a->len + b->len != c->len || memcmp(c->text, a->text, a->len) != 0 ||
		    memcmp(c->text + a->len, b->text, b->len) != 0)
			return vocab_fail(why, why_len, -EPROTO,
					  "merge %u of ids %u and %u gives id %u, whose text is "
					  "not theirs put together",
					  i, m->a, m->b, m->merged);
		if (m->rank == UINT32_MAX)
			return vocab_fail(why, why_len, -EPROTO, "merge %u has no rank", i);
	}
	return 0;
}

int vocab_check(struct vocab *v, uint32_t vocab_size, char *why, size_t why_len)
{
	int err = check_facts(v, vocab_size, why, why_len);

	if (!err)
		err = check_tokens(v, why, why_len);
	return err ? err : check_merges(v, why, why_len);
}

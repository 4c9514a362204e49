/* SPDX-License-Identifier: MIT */
/*
 * .htok, the tokenizer beside an .h1b model, in both layouts: with the version behind the magic and
 * a list of special ids at the end (2 and 3), and without either. The number behind the magic is a
 * version when it is below 256, for a byte-level vocabulary cannot be that small.
 *
 * What the file does not say is taken so:
 *   which tokens are special   those of the form <|...|>, those listed, bos and eos
 *   the rule for cutting text  Llama 3's, entries as a whole first; GPT-2's where there is
 * <|endoftext|> and no <|begin_of_text|>, StarCoder's where there is <fim_prefix> too. Qwen's
 * (<|im_start|>), which is none of ours, is refused. bos or eos that is an ordinary token is
 * refused: an exporter that found none wrote 1, and that is a quotation mark in Llama 3's
 * vocabulary.
 */
#include "source.h"

#include <errno.h>
#include <string.h>
#include "mapped.h"
#include "read.h"

#define HEAD_VERSION_MIN 2u
#define HEAD_VERSION_MAX 3u
#define LEGACY_TOKENS_MIN 256u

struct htok {
	struct cursor c;
	const char *name;
	char *why;
	size_t why_len;
	uint32_t version; /* 0: without the word */
	uint32_t n_tokens, n_merges;
	struct vocab *v;
};

#define REFUSE(h, err, ...) fail((h)->why, (h)->why_len, err, __VA_ARGS__)

static int truncated(struct htok *h, const char *in)
{
	return REFUSE(h, -EPROTO, "%s: ends in its %s, after %llu bytes: it was cut off", h->name,
		      in, (unsigned long long)h->c.bytes);
}

static int read_header(struct htok *h)
{
	const uint8_t *magic = cursor_bytes(&h->c, 4);
	uint32_t word = cursor_u32(&h->c);

	if (!magic || memcmp(magic, "HTOK", 4) != 0)
		return REFUSE(h, -EPROTO, "%s: does not begin with HTOK: not an .htok file",
			      h->name);
	if (word < LEGACY_TOKENS_MIN && !h->c.bad) {
		if (word < HEAD_VERSION_MIN || word > HEAD_VERSION_MAX)
			return REFUSE(h, -ENOTSUP,
				      "%s: is .htok version %u; versions %u and %u are known, and "
				      "the layout without one",
				      h->name, word, HEAD_VERSION_MIN, HEAD_VERSION_MAX);
		h->version = word;
		word = cursor_u32(&h->c);
	}
	h->n_tokens = word;
	h->n_merges = cursor_u32(&h->c);
	h->v->bos = cursor_u32(&h->c);
	h->v->eos = cursor_u32(&h->c);
	if (h->c.bad)
		return truncated(h, "header");
	if (h->n_tokens < LEGACY_TOKENS_MIN || h->n_tokens > VOCAB_TOKENS_MAX)
		return REFUSE(h, -EFBIG, "%s: says %u tokens; there may be %u to %u", h->name,
			      h->n_tokens, LEGACY_TOKENS_MIN, VOCAB_TOKENS_MAX);
	if (h->n_merges > VOCAB_MERGES_MAX)
		return REFUSE(h, -EFBIG, "%s: says %u merges; there may be %u", h->name,
			      h->n_merges, VOCAB_MERGES_MAX);
	/* Each token has two bytes at least, each merge twelve: no table for what is not there. */
	if ((uint64_t)h->n_tokens * 2 + (uint64_t)h->n_merges * 12 > h->c.bytes - h->c.pos)
		return REFUSE(h, -EPROTO,
			      "%s: says %u tokens and %u merges, for which its %llu bytes are too "
			      "few: it was cut off, or is damaged",
			      h->name, h->n_tokens, h->n_merges, (unsigned long long)h->c.bytes);
	for (int i = 0; i < 2; i++) {
		uint32_t id = i ? h->v->eos : h->v->bos;

		if (id != VOCAB_NO_ID && id >= h->n_tokens)
			return REFUSE(h, -EPROTO, "%s: its %s is token %u, and there are %u",
				      h->name, i ? "eos" : "bos", id, h->n_tokens);
	}
	return 0;
}

static bool is_special(const uint8_t *text, size_t len)
{
	return len >= 5 && !memcmp(text, "<|", 2) && !memcmp(text + len - 2, "|>", 2);
}

static int not_spelled(struct htok *h, uint32_t id, const uint8_t *text, size_t len)
{
	return REFUSE(h, -EPROTO,
		      "%s: token %u, '%s', is not spelled in the 256 characters that stand for "
		      "bytes",
		      h->name, id, read_shown(text, len).text);
}

static int read_tokens(struct htok *h)
{
	uint8_t bytes[UINT16_MAX];
	int ret = 0;

	for (uint32_t id = 0; id < h->n_tokens && !ret; id++) {
		uint16_t len = cursor_u16(&h->c);
		const uint8_t *text = cursor_bytes(&h->c, len);
		int n;

		if (h->c.bad)
			return truncated(h, "tokens");
		if (!len) {
			ret = vocab_add(h->v, "", 0, VOCAB_UNUSED, 0);
			continue;
		}
		if (is_special(text, len)) {
			ret = vocab_add(h->v, text, len, VOCAB_SPECIAL, 0);
			continue;
		}
		n = vocab_unmap((const char *)text, len, bytes);
		if (n > 0 && vocab_find(h->v, bytes, (size_t)n, 1u << VOCAB_NORMAL) != VOCAB_NO_ID)
			return REFUSE(h, -EPROTO, "%s: token %u, '%s', was there before", h->name,
				      id, read_shown(text, len).text);
		/*
		 * A special of another form may have any text: whether it is one is seen at the
		 * end.
		 */
		ret = n < 0 ? vocab_add(h->v, text, len, VOCAB_UNUSED, 0) :
			      vocab_add(h->v, bytes, (size_t)n, VOCAB_NORMAL, 0);
	}
	return ret;
}

static int read_merges(struct htok *h)
{
	int ret = 0;

	for (uint32_t i = 0; i < h->n_merges && !ret; i++) {
		uint32_t id[3] = { cursor_u32(&h->c), cursor_u32(&h->c), cursor_u32(&h->c) };

		if (h->c.bad)
			return truncated(h, "merges");
		for (int k = 0; k < 3; k++)
			if (id[k] >= h->n_tokens)
				return REFUSE(h, -EPROTO,
					      "%s: merge %u names token %u, and there are %u",
					      h->name, i, id[k], h->n_tokens);
		ret = vocab_merge(h->v, id[0], id[1], id[2]);
	}
	return ret;
}

static void make_special(struct htok *h, uint32_t id)
{
	/* The literal text: these are no bytes in disguise. */
	if (h->v->tokens[id].len)
		h->v->tokens[id].kind = VOCAB_SPECIAL;
}

static int read_specials(struct htok *h)
{
	uint32_t n = h->version ? cursor_u32(&h->c) : 0;

	if (h->c.bad)
		return truncated(h, "list of specials");
	if (n > h->n_tokens || (uint64_t)n * 4 != h->c.bytes - h->c.pos)
		return REFUSE(h, -EPROTO,
			      "%s: %llu bytes follow where %s: it is damaged, or of another "
			      "version",
			      h->name, (unsigned long long)(h->c.bytes - h->c.pos),
			      h->version ? "the ids of its specials should" : "it should end");
	for (uint32_t i = 0; i < n; i++) {
		uint32_t id = cursor_u32(&h->c);

		if (id >= h->n_tokens)
			return REFUSE(h, -EPROTO, "%s: lists token %u as special, and there are %u",
				      h->name, id, h->n_tokens);
		make_special(h, id);
	}
	return 0;
}

/*
 * bos and eos are special, unless what they name is plainly a piece of text; and a text that is not
 * spelled as bytes are is a special's or it is damage.
 */
static int check_ends(struct htok *h)
{
	for (int i = 0; i < 2; i++) {
		uint32_t id = i ? h->v->eos : h->v->bos;
		const struct vocab_token *t;

		if (id == VOCAB_NO_ID)
			continue;
		t = &h->v->tokens[id];
		if (t->kind != VOCAB_SPECIAL && !read_is_markup(t->text, t->len))
			return REFUSE(h, -EPROTO,
				      "%s: its %s is token %u, '%s', which is ordinary text: it "
				      "was exported without knowing the right one",
				      h->name, i ? "eos" : "bos", id,
				      read_shown(t->text, t->len).text);
		make_special(h, id);
	}
	for (uint32_t id = 0; id < h->n_tokens; id++) {
		const struct vocab_token *t = &h->v->tokens[id];

		if (t->kind == VOCAB_UNUSED && t->len)
			return not_spelled(h, id, t->text, t->len);
	}
	return 0;
}

static bool has_token(struct htok *h, const char *text)
{
	return vocab_find(h->v, text, strlen(text), 1u << VOCAB_SPECIAL | 1u << VOCAB_NORMAL) !=
	       VOCAB_NO_ID;
}

static int choose_rule(struct htok *h)
{
	struct vocab *v = h->v;

	v->rule = VOCAB_RULE_LLAMA3;
	if (has_token(h, "<|begin_of_text|>")) {
		v->flags = VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS;
	} else if (has_token(h, "<|im_start|>") && has_token(h, "<|endoftext|>") &&
		   !has_token(h, "<fim_prefix>")) {
		return REFUSE(h, -ENOTSUP,
			      "%s: is a vocabulary of Qwen's, which cuts text by a rule that is "
			      "not supported",
			      h->name);
	} else if (has_token(h, "<|endoftext|>")) {
		v->rule = has_token(h, "<fim_prefix>") ? VOCAB_RULE_STARCODER : VOCAB_RULE_GPT2;
	} else {
		v->flags = VOCAB_IGNORE_MERGES | (v->bos != VOCAB_NO_ID ? VOCAB_ADD_BOS : 0);
	}
	return 0;
}

int vocab_read_htok(const void *data, size_t len, const char *name, struct vocab **out, char *why,
		    size_t why_len)
{
	struct htok h = {
		.c = { .data = data, .bytes = len }, .name = name, .why = why, .why_len = why_len,
		.v = vocab_new(),
	};
	int ret;

	if (why_len)
		*why = 0;
	if (!h.v)
		return read_done(name, -ENOMEM, NULL, out, why, why_len);
	h.v->kind = VOCAB_BYTES;
	ret = read_header(&h);
	if (!ret)
		ret = read_tokens(&h);
	if (!ret)
		ret = read_merges(&h);
	if (!ret)
		ret = read_specials(&h);
	if (!ret)
		ret = check_ends(&h);
	if (!ret)
		ret = choose_rule(&h);
	if (!ret)
		ret = read_known_specials(h.v);
	return read_done(name, ret, h.v, out, why, why_len);
}

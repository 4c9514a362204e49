/* SPDX-License-Identifier: MIT */
/*
 * The vocabulary that stands in a GGUF file's metadata.
 *
 *      tokenizer.ggml.model       gpt2: byte-level BPE, texts in GPT-2's printable spelling,
 *                                 merges listed; llama: SentencePiece BPE, a score each, bytes
 *                                 as <0x41>
 *      tokenizer.ggml.pre         how gpt2's text is cut: names that llama.cpp gives to its rules,
 *                                 of which several mean the same
 *      tokenizer.ggml.token_type  1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte
 *      tokenizer.ggml.*_token_id, add_bos_token, add_space_prefix, tokenizer.chat_template
 *
 * The rule is not guessed, with one exception: files of BitNet 2B-4T were published without a rule,
 * so that a vocabulary that begins its texts with Llama 3's own first token is cut by Llama 3's
 * rule.
 */
#include "vocab_gguf.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "gguf_stored.h"
#include "mapped.h"
#include "read.h"
#include "source.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define KEY(name) "tokenizer.ggml." name

enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER, TYPE_UNUSED, TYPE_BYTE };

struct reader {
	const struct gguf *g;
	struct vocab *v;
	const struct gguf_pair *types, *scores; /* NULL: there are none */
	uint8_t bytes[2 * VOCAB_TOKEN_BYTES_MAX];
	bool is_pre_missing;
	char *why;
	size_t why_len;
};

#define REFUSE(r, err, ...) fail((r)->why, (r)->why_len, err, __VA_ARGS__)

/* ---- kind and rule --------------------------------------------------------------------------- */

/* As llama.cpp's names fall together in its rules. */
static const struct {
	const char *name;
	uint32_t rule;
} rules[] = {
	{ "llama-bpe", VOCAB_RULE_LLAMA3 }, { "llama3", VOCAB_RULE_LLAMA3 },
	{ "llama-v3", VOCAB_RULE_LLAMA3 }, { "falcon3", VOCAB_RULE_LLAMA3 },
	{ "falcon-h1", VOCAB_RULE_LLAMA3 }, { "pixtral", VOCAB_RULE_LLAMA3 },
	{ "lfm2", VOCAB_RULE_LLAMA3 }, { "midm-2.0", VOCAB_RULE_LLAMA3 },
	{ "gpt-2", VOCAB_RULE_GPT2 }, { "phi-2", VOCAB_RULE_GPT2 }, { "jina-es", VOCAB_RULE_GPT2 },
	{ "jina-de", VOCAB_RULE_GPT2 }, { "jina-v2-es", VOCAB_RULE_GPT2 },
	{ "jina-v2-de", VOCAB_RULE_GPT2 }, { "jais", VOCAB_RULE_GPT2 }, { "starcoder", VOCAB_RULE_STARCODER },
	{ "refact", VOCAB_RULE_STARCODER }, { "command-r", VOCAB_RULE_STARCODER },
	{ "smollm", VOCAB_RULE_STARCODER }, { "codeshell", VOCAB_RULE_STARCODER },
	{ "mpt", VOCAB_RULE_GPT2 }, { "olmo", VOCAB_RULE_GPT2 },
};

/* GPT-NeoX's tokenizer goes by these two names; the format does not tell that it wants NFC. */
static bool is_neox(struct gguf_string pre)
{
	return gguf_is(pre, "mpt") || gguf_is(pre, "olmo");
}

static void set_rule(struct reader *r, uint32_t rule)
{
	r->v->rule = rule;
	/* As the readers of these files have it, when add_bos_token does not say otherwise. */
	if (rule == VOCAB_RULE_LLAMA3)
		r->v->flags |= VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS;
}

static int read_rule(struct reader *r)
{
	struct gguf_string pre = { "", 0 };
	char shown[64];
	int err = gguf_string(r->g, KEY("pre"), &pre, r->why, r->why_len);

	if (err < 0)
		return err;
	for (size_t i = 0; i < COUNT(rules); i++)
		if (gguf_is(pre, rules[i].name)) {
			set_rule(r, rules[i].rule);
			r->v->flags |= is_neox(pre) ? VOCAB_NFC : 0;
			return 0;
		}
	r->is_pre_missing = !pre.len || gguf_is(pre, "default");
	if (r->is_pre_missing)
		return 0;
	return REFUSE(r, -ENOTSUP,
		      "key " KEY("pre") " is '%s', a rule that is not supported; llama-bpe, gpt-2 "
					"and starcoder are",
		      gguf_show(pre, shown));
}

static int read_kind(struct reader *r)
{
	struct gguf_string model;
	char shown[64];
	int err = gguf_string(r->g, KEY("model"), &model, r->why, r->why_len);

	if (err)
		return err < 0 ? err
			       : REFUSE(r, -ENOENT,
					"there is no tokenizer in the file; give one with "
					"--tokenizer");
	if (gguf_is(model, "gpt2")) {
		r->v->kind = VOCAB_BYTES;
		return read_rule(r);
	}
	if (!gguf_is(model, "llama"))
		return REFUSE(r, -ENOTSUP,
			      "key " KEY("model") " is '%s', which is not supported; gpt2 and "
						  "llama "
						  "are",
			      gguf_show(model, shown));
	r->v->kind = VOCAB_SPM;
	r->v->flags |= VOCAB_DUMMY_PREFIX | VOCAB_ADD_BOS;
	return 0;
}

/* ---- tokens ---------------------------------------------------------------------------------- */

static bool is_pad(struct gguf_string s)
{
	return s.len >= 4 && !memcmp(s.text, "[PAD", 4);
}

static int add_byte_level(struct reader *r, struct gguf_string s, uint32_t type)
{
	const size_t len = (size_t)s.len;
	int n;

	if (type == TYPE_CONTROL || type == TYPE_UNKNOWN ||
	    ((type == TYPE_USER || !r->types) && read_is_markup(s.text, len)))
		return vocab_add(r->v, s.text, len, VOCAB_SPECIAL, 0);
	/* Spelled as it is, and found before text is cut. */
	if (type == TYPE_USER)
		return vocab_add(r->v, s.text, len, VOCAB_ADDED, 0);
	n = vocab_unmap(s.text, len, r->bytes);
	/* Added by hand, spelled as it is. */
	if (n <= 0)
		return vocab_add(r->v, s.text, len, VOCAB_NORMAL, 0);
	return vocab_add(r->v, r->bytes, (size_t)n, VOCAB_NORMAL, 0);
}

static int add_sentencepiece(struct reader *r, struct gguf_string s, uint32_t type, float score)
{
	const size_t len = (size_t)s.len;
	char shown[64];
	int byte;

	switch (type) {
	case TYPE_UNKNOWN:
	case TYPE_CONTROL:
		return vocab_add(r->v, s.text, len, VOCAB_SPECIAL, 0);
	case TYPE_BYTE:
		byte = read_byte_name(s.text, len);
		if (byte < 0)
			return REFUSE(r, -EPROTO,
				      "token %u, '%s', is to be a byte; these are <0x00> to <0xFF>",
				      r->v->n_tokens, gguf_show(s, shown));
		return vocab_add(r->v, &(uint8_t){ (uint8_t)byte }, 1, VOCAB_BYTE, 0);
	case TYPE_USER:
		if (read_is_markup(s.text, len))
			return vocab_add(r->v, s.text, len, VOCAB_SPECIAL, 0);
		return REFUSE(r, -ENOTSUP,
			      "token %u, '%s', is user-defined, which is not supported",
			      r->v->n_tokens, gguf_show(s, shown));
	default:
		return vocab_add(r->v, r->bytes, read_unspace(s.text, len, r->bytes), VOCAB_NORMAL,
				 score);
	}
}

static int add_token(struct reader *r, struct gguf_string s, uint32_t type, float score)
{
	const uint32_t id = r->v->n_tokens;

	if (type < TYPE_NORMAL || type > TYPE_BYTE)
		return REFUSE(r, -EPROTO, "token %u has type %u; types are 1 to 6", id, type);
	if (s.len > sizeof(r->bytes))
		return REFUSE(r, -EFBIG, "token %u has %llu bytes; it may have %u", id,
			      (unsigned long long)s.len, VOCAB_TOKEN_BYTES_MAX);
	if (!isfinite(score))
		return REFUSE(r, -EPROTO, "token %u has no finite score", id);
	/* A filler has a text only because every entry of the list must have one. */
	if (!s.len || (type == TYPE_UNUSED && is_pad(s)))
		return vocab_add(r->v, "", 0, VOCAB_UNUSED, 0);
	if (type == TYPE_UNUSED)
		return vocab_add(r->v, s.text, (size_t)s.len, VOCAB_UNUSED, 0);
	return r->v->kind == VOCAB_BYTES ? add_byte_level(r, s, type)
					 : add_sentencepiece(r, s, type, score);
}

static int read_list(struct reader *r, const char *key, uint32_t type, uint64_t n,
		     const struct gguf_pair **out)
{
	int err = gguf_array(r->g, key, type, out, r->why, r->why_len);

	if (err < 0)
		return err;
	if (!err && (*out)->n != n)
		return REFUSE(r, -EPROTO, "key %s has %llu entries for %llu tokens", key,
			      (unsigned long long)(*out)->n, (unsigned long long)n);
	return 0;
}

static int read_tokens(struct reader *r)
{
	const struct gguf_pair *tokens = NULL;
	struct cursor texts, types = { 0 }, scores = { 0 };
	int err = gguf_array(r->g, KEY("tokens"), GGUF_STRING, &tokens, r->why, r->why_len);

	if (err)
		return err < 0 ? err : REFUSE(r, -EPROTO, "key " KEY("tokens") " is missing");
	if (tokens->n > VOCAB_TOKENS_MAX)
		return REFUSE(r, -EFBIG, "there are %llu tokens; at most %u are supported",
			      (unsigned long long)tokens->n, VOCAB_TOKENS_MAX);
	err = read_list(r, KEY("token_type"), GGUF_I32, tokens->n, &r->types);
	if (!err)
		err = read_list(r, KEY("scores"), GGUF_F32, tokens->n, &r->scores);
	if (!err && r->v->kind == VOCAB_SPM && (!r->types || !r->scores))
		err = REFUSE(r, -EPROTO,
			     "key %s is missing, without which a llama vocabulary cannot be used",
			     r->types ? KEY("scores") : KEY("token_type"));
	if (err)
		return err;
	texts = (struct cursor){ .data = tokens->data, .bytes = tokens->bytes };
	if (r->types)
		types = (struct cursor){ .data = r->types->data, .bytes = r->types->bytes };
	if (r->scores)
		scores = (struct cursor){ .data = r->scores->data, .bytes = r->scores->bytes };
	for (uint64_t i = 0; i < tokens->n && !err; i++) {
		uint32_t type = r->types ? cursor_u32(&types) : TYPE_NORMAL;
		float score = r->scores && r->v->kind == VOCAB_SPM ? cursor_f32(&scores) : 0;

		err = add_token(r, gguf_next_string(&texts), type, score);
	}
	return err;
}

/* ---- merges ---------------------------------------------------------------------------------- */

static int find_part(struct reader *r, uint64_t merge, const char *text, size_t len, uint32_t *id)
{
	int n = len <= sizeof(r->bytes) ? vocab_unmap(text, len, r->bytes) : -EFBIG;
	char shown[64];

	*id = n > 0 ? vocab_find(r->v, r->bytes, (size_t)n, 1u << VOCAB_NORMAL) : VOCAB_NO_ID;
	if (*id != VOCAB_NO_ID)
		return 0;
	return REFUSE(r, -EPROTO, "merge %llu names '%s', which is none of the tokens",
		      (unsigned long long)merge,
		      gguf_show((struct gguf_string){ text, len }, shown));
}

static int add_merge(struct reader *r, uint64_t i, struct gguf_string s)
{
	/* The first byte may be a space only if it is a part's own, as readers of these files have
	 * it. */
	const char *space = s.len > 2 ? memchr(s.text + 1, ' ', (size_t)s.len - 1) : NULL;
	char joined[4 * VOCAB_TOKEN_BYTES_MAX];
	uint32_t a, b, merged;
	size_t left, right;
	int err;

	if (!space || s.len > sizeof(joined))
		return REFUSE(r, -EPROTO, "merge %llu is not two texts with a space between",
			      (unsigned long long)i);
	left = (size_t)(space - s.text);
	right = (size_t)s.len - left - 1;
	memcpy(joined, s.text, left);
	memcpy(joined + left, space + 1, right);
	if ((err = find_part(r, i, s.text, left, &a)) ||
	    (err = find_part(r, i, space + 1, right, &b)) ||
	    (err = find_part(r, i, joined, left + right, &merged)))
		return err;
	return vocab_merge(r->v, a, b, merged);
}

static int read_merges(struct reader *r)
{
	const struct gguf_pair *merges;
	struct cursor c;
	int err;

	if (r->v->kind == VOCAB_SPM)
		return vocab_derive_by_score(r->v, r->why, r->why_len);
	err = gguf_array(r->g, KEY("merges"), GGUF_STRING, &merges, r->why, r->why_len);
	if (err)
		return err < 0 ? err : REFUSE(r, -EPROTO, "key " KEY("merges") " is missing");
	if (merges->n > VOCAB_MERGES_MAX)
		return REFUSE(r, -EFBIG, "there are %llu merges; at most %u are supported",
			      (unsigned long long)merges->n, VOCAB_MERGES_MAX);
	c = (struct cursor){ .data = merges->data, .bytes = merges->bytes };
	for (uint64_t i = 0; i < merges->n && !err; i++)
		err = add_merge(r, i, gguf_next_string(&c));
	return err;
}

/* ---- specials, flags, template --------------------------------------------------------------- */

/* An id that a key names; what is marked up like a special one is one, whatever its type says. */
static int read_id(struct reader *r, const char *key, uint32_t *id)
{
	int err = gguf_u32(r->g, key, id, r->why, r->why_len);
	struct vocab_token *t;

	if (err)
		return err < 0 ? err : 0;
	if (*id == UINT32_MAX)
		return 0; /* some write -1 for none */
	if (*id >= r->v->n_tokens)
		return REFUSE(r, -EPROTO, "key %s is %u, and there are %u tokens", key, *id,
			      r->v->n_tokens);
	t = &r->v->tokens[*id];
	if (t->kind == VOCAB_NORMAL && read_is_markup(t->text, t->len))
		t->kind = VOCAB_SPECIAL;
	return 0;
}

static int read_stops(struct reader *r, uint32_t eot, uint32_t eom)
{
	const struct gguf_pair *own;
	struct cursor c;
	int err = gguf_array(r->g, GGUF_OWN_STOPS, GGUF_U32, &own, r->why, r->why_len);

	if (err < 0)
		return err;
	if (err == GGUF_ABSENT) {
		err = read_known_specials(r->v);
		if (!err && eot != VOCAB_NO_ID)
			err = vocab_stop(r->v, eot);
		if (!err && eom != VOCAB_NO_ID)
			err = vocab_stop(r->v, eom);
		return err;
	}
	c = (struct cursor){ .data = own->data, .bytes = own->bytes };
	for (uint64_t i = 0; i < own->n && !err; i++)
		err = vocab_stop(r->v, cursor_u32(&c));
	return err;
}

static int read_flag(struct reader *r, const char *key, uint32_t flag)
{
	bool set = r->v->flags & flag;
	int err = gguf_bool(r->g, key, &set, r->why, r->why_len);

	if (err < 0)
		return err;
	r->v->flags = set ? r->v->flags | flag : r->v->flags & ~flag;
	return 0;
}

static int read_chat(struct reader *r)
{
	struct gguf_string s = { "", 0 };
	int err = gguf_string(r->g, GGUF_OWN_CHAT, &s, r->why, r->why_len);

	if (err == GGUF_ABSENT)
		err = gguf_string(r->g, "tokenizer.chat_template", &s, r->why, r->why_len);
	if (err < 0)
		return err;
	if (!err)
		strncpy(r->v->chat, vocab_chat_of(s.text, (size_t)s.len), sizeof(r->v->chat) - 1);
	return 0;
}

static int read_facts(struct reader *r)
{
	struct vocab *v = r->v;
	uint32_t eot = VOCAB_NO_ID, eom = VOCAB_NO_ID;
	int err;

	if ((err = read_id(r, KEY("bos_token_id"), &v->bos)) ||
	    (err = read_id(r, KEY("eos_token_id"), &v->eos)) ||
	    (err = read_id(r, KEY("unknown_token_id"), &v->unk)) ||
	    (err = read_id(r, KEY("eot_token_id"), &eot)) ||
	    (err = read_id(r, KEY("eom_token_id"), &eom)))
		return err;
	if (r->is_pre_missing) {
		static const char first[] = "<|begin_of_text|>";

		if (v->bos >= v->n_tokens || v->tokens[v->bos].len != strlen(first) ||
		    memcmp(v->tokens[v->bos].text, first, strlen(first)) != 0)
			return REFUSE(r, -ENOTSUP,
				      "key " KEY("pre") " is missing, so that it is not known how "
							"text is "
							"cut; give the model's own tokenizer with "
							"--tokenizer");
		set_rule(r, VOCAB_RULE_LLAMA3);
	}
	if ((err = read_flag(r, KEY("add_bos_token"), VOCAB_ADD_BOS)) ||
	    (err = v->kind == VOCAB_SPM ? read_flag(r, KEY("add_space_prefix"), VOCAB_DUMMY_PREFIX)
					: 0) ||
	    (err = gguf_u32(r->g, GGUF_OWN_FLAGS_OF_VOCAB, &v->flags, r->why, r->why_len)) < 0 ||
	    (err = read_chat(r)) || (err = read_stops(r, eot, eom)))
		return err;
	if (v->bos == VOCAB_NO_ID)
		v->flags &= ~VOCAB_ADD_BOS;
	return 0;
}

/* ---- the whole ------------------------------------------------------------------------------- */

int vocab_of_gguf(const struct gguf *g, const char *file, struct vocab **out, char *why,
		  size_t why_len)
{
	char reason[512] = "";
	struct reader r = { .g = g, .v = vocab_new(), .why = reason, .why_len = sizeof(reason) };
	int err = r.v ? 0 : -ENOMEM;

	if (!err)
		err = read_kind(&r);
	if (!err)
		err = read_tokens(&r);
	/* Kinds are settled by then, which merges look at. */
	if (!err)
		err = read_facts(&r);
	if (!err)
		err = read_merges(&r);
	if (!err)
		err = vocab_check(r.v, r.v->n_tokens, reason, sizeof(reason));
	if (!err) {
		*out = r.v;
		return 0;
	}
	vocab_free(r.v);
	if (!*reason)
		strcpy(reason, err == -EFBIG ? "the vocabulary is too large"
					     : "no memory for the vocabulary");
	return fail(why, why_len, err, "%s: %s", file, reason);
}

int vocab_read_gguf(const char *path, struct vocab **out, char *why, size_t why_len)
{
	struct mapped m = { 0 };
	struct gguf *g = NULL;
	int err = mapped_open(path, &m, why, why_len);

	if (!err)
		err = gguf_parse(m.data, m.bytes, path, &g, why, why_len);
	if (!err)
		err = vocab_of_gguf(g, path, out, why, why_len);
	gguf_free(g);
	mapped_close(&m);
	return err;
}

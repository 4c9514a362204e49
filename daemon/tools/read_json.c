/* SPDX-License-Identifier: MIT */
/*
 * tokenizer.json, as the Hugging Face library writes it: a BPE model with its vocabulary (texts to
 * ids), merges in order of rank, and added tokens, which are matched in a text before anything
 * else.
 *
 * Special added tokens become VOCAB_SPECIAL: text that looks like one stays text, here as
 * everywhere. For the others, the library makes the token of each text that looks like it. One
 * whose text is markup (<think>, [INST]) is kept as a token that a model may say and that no text
 * becomes; the rest (GPT-NeoX's runs of spaces) becomes VOCAB_ADDED. The library looks for those
 * that are not "normalized" in the text as it came, and for the others in what the normalizer makes
 * of what lies between; one of these two is what we do, and a file that has both is refused, as is
 * one that wants a token at a word's end, or spaces around it swallowed.
 *
 * The file is 17 MB for 128 thousand tokens; as a tree in memory it is about five times that, and
 * is given back before the vocabulary is used.
 */
#include "source.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "read.h"

/* What an id is, before the ids are put in order; text is jansson's. */
struct entry {
	const char *text;
	size_t len;
	bool in_vocab, added, special, whole; /* whole: VOCAB_ADDED */
};

struct reader {
	const char *name;
	char *why;
	size_t why_len;
	json_t *root, *model, *words; /* words: model.vocab */
	struct json_rules rules;
	struct vocab *v;
	int normalized; /* of added tokens that text may become: -1 before the first one */
	struct entry *entries;
	size_t n_entries;
};

#define REFUSE(r, err, ...) fail((r)->why, (r)->why_len, err, __VA_ARGS__)

static int parse(struct reader *r, const void *data, size_t len)
{
	const json_t *type;
	json_error_t error;

	if (len > READ_FILE_MAX)
		return REFUSE(r, -EFBIG, "%s: has %zu bytes; a tokenizer.json may have %u", r->name,
			      len, READ_FILE_MAX);
	r->root = json_loadb(data, len, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &error);
	if (!r->root)
		return REFUSE(r, -EPROTO, "%s: is not JSON: line %d: %s", r->name, error.line,
			      read_shown(error.text, strlen(error.text)).text);
	r->model = json_object_get(r->root, "model");
	if (!json_is_object(r->model))
		return REFUSE(r, -EPROTO, "%s: is JSON without a 'model': not a tokenizer.json",
			      r->name);
	type = json_object_get(r->model, "type");
	if (!json_is_string(type) || strcmp(json_string_value(type), "BPE") != 0)
		return REFUSE(r, -ENOTSUP, "%s: model.type is '%s'; only BPE is supported", r->name,
			      json_is_string(type) ? read_shown(json_string_value(type),
							json_string_length(type)).text :
						     "absent");
	r->words = json_object_get(r->model, "vocab");
	if (!json_is_object(r->words))
		return REFUSE(r, -EPROTO, "%s: model.vocab is absent, or no object", r->name);
	return 0;
}

/* Options of the model that would change what it gives. */
static int check_model(struct reader *r)
{
	static const char *const affixes[] = { "continuing_subword_prefix", "end_of_word_suffix" };
	const json_t *dropout = json_object_get(r->model, "dropout");

	if (json_is_number(dropout) && json_number_value(dropout) > 0)
		return REFUSE(r, -ENOTSUP,
			      "%s: model.dropout is %g: it encodes at random; set it to null",
			      r->name, json_number_value(dropout));
	for (size_t i = 0; i < 2; i++) {
		const json_t *affix = json_object_get(r->model, affixes[i]);

		if (affix && !json_is_null(affix) && json_string_length(affix))
			return REFUSE(
				r, -ENOTSUP, "%s: model.%s is '%s'; only null is supported",
				r->name, affixes[i],
				read_shown(json_string_value(affix), json_string_length(affix))
					.text);
	}
	if (json_is_true(json_object_get(r->model, "ignore_merges"))) {
		if (r->rules.kind != VOCAB_BYTES)
			return REFUSE(r, -ENOTSUP, "%s: model.ignore_merges is true together with "
				      "byte_fallback; that is not supported", r->name);
		r->rules.flags |= VOCAB_IGNORE_MERGES;
	}
	return 0;
}

/* ---- entries by id ------------------------------------------------------------------------- */

/*
 * The id in a value: within twice the number of entries, so that a few may lack but no table
 * explodes.
 */
static int read_id(struct reader *r, const json_t *value, const char *text, size_t len,
		   size_t count, uint32_t *id)
{
	json_int_t limit = (json_int_t)count * 2 + 256;

	if (!json_is_integer(value))
		return REFUSE(r, -EPROTO, "%s: token '%s' has no id that is a whole number",
			      r->name, read_shown(text, len).text);
	if (limit > VOCAB_TOKENS_MAX)
		limit = VOCAB_TOKENS_MAX;
	if (json_integer_value(value) < 0 || json_integer_value(value) >= limit)
		return REFUSE(r, -EPROTO,
			      "%s: token '%s' has id %lld; of %zu tokens the ids may be 0 to %lld",
			      r->name, read_shown(text, len).text,
			      (long long)json_integer_value(value), count, (long long)limit - 1);
	*id = (uint32_t)json_integer_value(value);
	if (*id >= r->n_entries)
		r->n_entries = *id + 1u;
	return 0;
}

static int note_word(struct reader *r, const char *key, size_t len, uint32_t id)
{
	struct entry *e = &r->entries[id];

	if (e->text)
		return REFUSE(r, -EPROTO, "%s: id %u is '%s' and '%s' in model.vocab", r->name, id,
			      read_shown(e->text, e->len).text, read_shown(key, len).text);
	*e = (struct entry){ .text = key, .len = len, .in_vocab = true };
	return 0;
}

/* An added token that text becomes: where the library would find it, we must. */
static int check_whole(struct reader *r, const json_t *o, const char *text, size_t len, uint32_t id)
{
	static const char *const conditions[] = { "single_word", "lstrip", "rstrip" };
	bool normalized = json_is_true(json_object_get(o, "normalized"));

	if (r->rules.kind != VOCAB_BYTES)
		return REFUSE(r, -ENOTSUP,
			      "%s: added token %u, '%s', is not special: it would be taken whole "
			      "from text, which is not supported together with byte_fallback",
			      r->name, id, read_shown(text, len).text);
	for (size_t i = 0; i < sizeof(conditions) / sizeof(conditions[0]); i++)
		if (json_is_true(json_object_get(o, conditions[i])))
			return REFUSE(r, -ENOTSUP,
				      "%s: added token %u, '%s', has %s = true, which is not "
				      "supported",
				      r->name, id, read_shown(text, len).text, conditions[i]);
	if (len > VOCAB_ADDED_BYTES_MAX)
		return REFUSE(r, -ENOTSUP,
			      "%s: added token %u, '%s', has %zu bytes; one that is not special "
			      "may have %u",
			      r->name, id, read_shown(text, len).text, len, VOCAB_ADDED_BYTES_MAX);
	if (!normalized && r->rules.flags & VOCAB_NFC)
		return REFUSE(r, -ENOTSUP,
			      "%s: added token %u, '%s', is to be found before the normalizer NFC "
			      "(normalized is not true), which is not supported",
			      r->name, id, read_shown(text, len).text);
	if (r->normalized >= 0 && r->normalized != normalized)
		return REFUSE(r, -ENOTSUP,
			      "%s: added token %u, '%s', has normalized = %s, unlike those before "
			      "it; both together are not supported",
			      r->name, id, read_shown(text, len).text,
			      normalized ? "true" : "false");
	r->normalized = normalized;
	return 0;
}

static int note_added(struct reader *r, const json_t *o, uint32_t id)
{
	const json_t *content = json_object_get(o, "content");
	const char *text = json_string_value(content);
	size_t len = json_string_length(content);
	struct entry *e = &r->entries[id];

	if (e->added)
		return REFUSE(r, -EPROTO, "%s: id %u is twice in added_tokens", r->name, id);
	if (e->text && (e->len != len || memcmp(e->text, text, len) != 0))
		return REFUSE(r, -EPROTO,
			      "%s: id %u is '%s' in model.vocab and '%s' in added_tokens", r->name,
			      id, read_shown(e->text, e->len).text, read_shown(text, len).text);
	e->special = json_is_true(json_object_get(o, "special"));
	e->added = true;
	e->text = text;
	e->len = len;
	e->whole = !e->special && !read_is_markup(text, len);
	return e->whole ? check_whole(r, o, text, len, id) : 0;
}

static int read_entries(struct reader *r)
{
	json_t *added = json_object_get(r->root, "added_tokens"), *value;
	size_t count = json_object_size(r->words) + json_array_size(added), i;
	const char *key;
	size_t key_len;
	uint32_t id = 0;
	int ret = 0;

	if (added && !json_is_array(added) && !json_is_null(added))
		return REFUSE(r, -EPROTO, "%s: added_tokens is no list", r->name);
	if (!count || count > VOCAB_TOKENS_MAX)
		return REFUSE(r, count ? -EFBIG : -EPROTO,
			      "%s: there are %zu tokens; there may be 1 to %u", r->name, count,
			      VOCAB_TOKENS_MAX);
	/* Twice over: the ids decide how long the table is. */
	json_object_keylen_foreach(r->words, key, key_len, value) {
		ret = read_id(r, value, key, key_len, count, &id);
		if (ret)
			return ret;
	}
	json_array_foreach(added, i, value) {
		const json_t *content = json_object_get(value, "content");

		if (!json_string_length(content))
			return REFUSE(r, -EPROTO, "%s: added_tokens[%zu] has no content", r->name,
				      i);
		ret = read_id(r, json_object_get(value, "id"), json_string_value(content),
			      json_string_length(content), count, &id);
		if (ret)
			return ret;
	}
	r->entries = calloc(r->n_entries, sizeof(*r->entries));
	if (!r->entries)
		return REFUSE(r, -ENOMEM, "%s: no memory for %zu tokens", r->name, r->n_entries);
	json_object_keylen_foreach(r->words, key, key_len, value) {
		ret = note_word(r, key, key_len, (uint32_t)json_integer_value(value));
		if (ret)
			return ret;
	}
	json_array_foreach(added, i, value) {
		id = (uint32_t)json_integer_value(json_object_get(value, "id"));
		ret = note_added(r, value, id);
		if (ret)
			return ret;
	}
	return 0;
}

/* ---- tokens and merges --------------------------------------------------------------------- */

static int add_entry(struct reader *r, uint32_t id)
{
	const struct entry *e = &r->entries[id];
	uint8_t bytes[VOCAB_TOKEN_BYTES_MAX];
	int n;

	if (!e->text || !e->len)
		return vocab_add(r->v, "", 0, VOCAB_UNUSED, 0);
	if (e->len > VOCAB_TOKEN_BYTES_MAX)
		return REFUSE(r, -EFBIG, "%s: token %u, '%s', has %zu bytes; at most %u may be",
			      r->name, id, read_shown(e->text, e->len).text, e->len,
			      VOCAB_TOKEN_BYTES_MAX);
	if (e->added)
		return vocab_add(r->v, e->text, e->len,
				 e->special ? VOCAB_SPECIAL : e->whole ? VOCAB_ADDED : VOCAB_NORMAL,
				 0);
	if (r->rules.kind == VOCAB_SPM) {
		n = read_byte_name(e->text, e->len);
		if (n >= 0)
			return vocab_add(r->v, &(uint8_t){ (uint8_t)n }, 1, VOCAB_BYTE, 0);
		return vocab_add(r->v, bytes, read_unspace(e->text, e->len, bytes), VOCAB_NORMAL,
				 0);
	}
	n = vocab_unmap(e->text, e->len, bytes);
	if (n < 0)
		return REFUSE(r, -EPROTO,
			      "%s: token %u, '%s', is not spelled in the 256 characters that stand "
			      "for bytes",
			      r->name, id, read_shown(e->text, e->len).text);
	return vocab_add(r->v, bytes, (size_t)n, VOCAB_NORMAL, 0);
}

static int part_id(struct reader *r, size_t i, const char *text, size_t len, uint32_t *id)
{
	const json_t *value = json_object_getn(r->words, text, len);

	if (!value)
		return REFUSE(r, -EPROTO, "%s: merge %zu names '%s', which model.vocab has not",
			      r->name, i, read_shown(text, len).text);
	*id = (uint32_t)json_integer_value(value);
	return 0;
}

/* Both spellings: ["a", "b"], and "a b", where neither has a space. */
static int add_merge(struct reader *r, size_t i, const json_t *m)
{
	const json_t *first = json_array_get(m, 0), *second = json_array_get(m, 1);
	const char *a = json_string_value(first), *b = json_string_value(second);
	size_t a_len = json_string_length(first), b_len = json_string_length(second);
	char whole[4 * VOCAB_TOKEN_BYTES_MAX];
	uint32_t id[3] = { 0 };
	int ret;

	if (json_is_string(m)) {
		const char *space;

		a = json_string_value(m);
		space = memchr(a, ' ', json_string_length(m));
		if (space) {
			a_len = (size_t)(space - a);
			b = space + 1;
			b_len = json_string_length(m) - a_len - 1;
		}
		if (!space || memchr(b, ' ', b_len))
			return REFUSE(r, -EPROTO,
				      "%s: merge %zu, '%s', is not two texts with a space between",
				      r->name, i, read_shown(a, json_string_length(m)).text);
	} else if (json_array_size(m) != 2 || !a || !b) {
		return REFUSE(r, -EPROTO, "%s: merge %zu is neither two texts nor one", r->name, i);
	}
	if (a_len + b_len > sizeof(whole))
		return REFUSE(r, -EFBIG, "%s: merge %zu has texts of %zu bytes; at most %zu may be",
			      r->name, i, a_len + b_len, sizeof(whole));
	memcpy(whole, a, a_len);
	memcpy(whole + a_len, b, b_len);
	ret = part_id(r, i, a, a_len, &id[0]);
	if (!ret)
		ret = part_id(r, i, b, b_len, &id[1]);
	if (!ret)
		ret = part_id(r, i, whole, a_len + b_len, &id[2]);
	return ret ? ret : vocab_merge(r->v, id[0], id[1], id[2]);
}

static int add_all(struct reader *r)
{
	json_t *merges = json_object_get(r->model, "merges"), *m;
	int ret = 0;
	size_t i;

	for (size_t id = 0; id < r->n_entries && !ret; id++)
		ret = add_entry(r, (uint32_t)id);
	if (ret)
		return ret;
	if (!json_is_array(merges))
		return REFUSE(r, -EPROTO, "%s: model.merges is absent, or no list", r->name);
	if (json_array_size(merges) > VOCAB_MERGES_MAX)
		return REFUSE(r, -EFBIG, "%s: there are %zu merges; there may be %u", r->name,
			      json_array_size(merges), VOCAB_MERGES_MAX);
	json_array_foreach(merges, i, m) {
		ret = add_merge(r, i, m);
		if (ret)
			return ret;
	}
	return 0;
}

static int name_tokens(struct reader *r)
{
	const json_t *bos = r->rules.bos, *unk = json_object_get(r->model, "unk_token");
	struct vocab *v = r->v;

	if (bos) {
		v->bos = vocab_find(v, json_string_value(bos), json_string_length(bos),
				    1u << VOCAB_SPECIAL);
		if (v->bos == VOCAB_NO_ID)
			return REFUSE(
				r, -EPROTO,
				"%s: post_processor puts '%s' first, which is no special token",
				r->name,
				read_shown(json_string_value(bos), json_string_length(bos)).text);
	}
	if (json_string_length(unk))
		v->unk = vocab_find(v, json_string_value(unk), json_string_length(unk),
				    1u << VOCAB_SPECIAL);
	return read_known_specials(v);
}

int vocab_read_json(const void *data, size_t len, const char *name, struct vocab **out, char *why,
		    size_t why_len)
{
	struct reader r = { .name = name, .why = why, .why_len = why_len, .normalized = -1 };
	int ret;

	if (why_len)
		*why = 0;
	ret = parse(&r, data, len);
	if (!ret)
		ret = read_json_rules(r.root, name, &r.rules, why, why_len);
	if (!ret)
		ret = check_model(&r);
	if (!ret)
		ret = read_entries(&r);
	if (!ret) {
		r.v = vocab_new();
		ret = r.v ? 0 : -ENOMEM;
	}
	if (!ret) {
		r.v->kind = r.rules.kind;
		r.v->rule = r.rules.rule;
		r.v->flags = r.rules.flags;
		ret = add_all(&r);
	}
	if (!ret)
		ret = name_tokens(&r);
	json_decref(r.root);
	free(r.entries);
	return read_done(name, ret, r.v, out, why, why_len);
}

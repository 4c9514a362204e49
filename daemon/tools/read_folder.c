/* SPDX-License-Identifier: MIT */
/*
 * The tokenizer of a model folder. The vocabulary is in one file; which of its tokens begins a
 * text, which end an answer and how a chat is written stand in up to five small ones beside it.
 * Where they say different things, the later in this order has it: tokenizer.json's post_processor,
 * special_tokens_map, tokenizer_config, generation_config (its list of eos ids is what the authors
 * stop at).
 *
 * What a file beside does not say is left; what it says and cannot be, a token that is not there,
 * is refused, for it is the sign of files of two models in one folder.
 */
#include "source.h"

#include <assert.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "mapped.h"
#include "read.h"

#define BESIDE_MAX (16u << 20) /* bytes of a small file; with 256 specials it has 50 thousand */

struct folder {
	const char *path;
	char *why;
	size_t why_len;
	struct vocab *v;
};

#define REFUSE(f, err, ...) fail((f)->why, (f)->why_len, err, __VA_ARGS__)

static char *path_in(const char *folder, const char *file)
{
	char *path = NULL;

	return asprintf(&path, "%s/%s", folder, file) < 0 ? NULL : path;
}

static bool is_there(const char *folder, const char *file)
{
	char *path = path_in(folder, file);
	bool there = path && !access(path, F_OK);

	free(path);
	return there;
}

/* A file beside the vocabulary as JSON. 0 with *out NULL: it is not there. */
static int load(struct folder *f, const char *file, json_t **out)
{
	char *path = path_in(f->path, file);
	struct mapped m = { 0 };
	json_error_t error;
	int ret = 0;

	*out = NULL;
	if (!path)
		return REFUSE(f, -ENOMEM, "%s: no memory", f->path);
	if (access(path, F_OK))
		goto out;
	ret = mapped_open(path, &m, f->why, f->why_len);
	if (ret)
		goto out;
	if (m.bytes > BESIDE_MAX) {
		ret = REFUSE(f, -EFBIG, "%s: has %llu bytes; %u are allowed", path,
			     (unsigned long long)m.bytes, BESIDE_MAX);
		goto out;
	}
	*out = json_loadb((const char *)m.data, m.bytes, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL,
			  &error);
	if (!*out)
		ret = REFUSE(f, -EPROTO, "%s: is not JSON: line %d: %s", path, error.line,
			     read_shown(error.text, strlen(error.text)).text);
	else if (!json_is_object(*out))
		ret = REFUSE(f, -EPROTO, "%s: is JSON, but no object", path);
out:
	mapped_close(&m);
	free(path);
	return ret;
}

/* "<s>", or {"content": "<s>", ...}. */
static int read_token_name(struct folder *f, const json_t *root, const char *file, const char *key,
			   uint32_t *out)
{
	const json_t *value = json_object_get(root, key);
	const char *text;
	size_t len;
	uint32_t id;

	if (json_is_object(value))
		value = json_object_get(value, "content");
	if (!json_string_length(value))
		return 0;
	text = json_string_value(value);
	len = json_string_length(value);
	id = vocab_find(f->v, text, len, 1u << VOCAB_SPECIAL);
	if (id == VOCAB_NO_ID)
		return REFUSE(f, -EPROTO,
			      "%s/%s: %s is '%s', which is no special token of the vocabulary "
			      "beside it",
			      f->path, file, key, read_shown(text, len).text);
	*out = id;
	return 0;
}

static int read_names(struct folder *f, const json_t *root, const char *file)
{
	uint32_t eos = VOCAB_NO_ID;
	int ret = read_token_name(f, root, file, "bos_token", &f->v->bos);

	if (!ret)
		ret = read_token_name(f, root, file, "eos_token", &eos);
	if (!ret && eos != VOCAB_NO_ID) {
		f->v->eos = eos;
		ret = vocab_stop(f->v, eos);
	}
	return ret;
}

static int read_id(struct folder *f, const json_t *value, const char *key, uint32_t *id)
{
	json_int_t i = json_integer_value(value);

	if (!json_is_integer(value) || i < 0 || i >= f->v->n_tokens)
		return REFUSE(f, -EPROTO,
			      "%s/generation_config.json: %s names token %lld; the vocabulary has "
			      "0 to %u",
			      f->path, key, json_is_integer(value) ? (long long)i : -1ll,
			      f->v->n_tokens - 1);
	*id = (uint32_t)i;
	return 0;
}

/* eos_token_id is a number, or a list whose first is eos proper. */
static int read_generation(struct folder *f)
{
	const json_t *eos;
	json_t *root;
	size_t n;
	int ret = load(f, "generation_config.json", &root);

	eos = json_object_get(root, "eos_token_id");
	n = !eos || json_is_null(eos) ? 0 : json_is_array(eos) ? json_array_size(eos) : 1;
	if (!ret && n > VOCAB_STOPS_MAX)
		ret = REFUSE(f, -EFBIG,
			     "%s/generation_config.json: eos_token_id lists %zu tokens; at most %u "
			     "may end an answer",
			     f->path, n, VOCAB_STOPS_MAX);
	for (size_t i = 0; i < n && !ret; i++) {
		uint32_t id = 0;

		ret = read_id(f, json_is_array(eos) ? json_array_get(eos, i) : eos, "eos_token_id",
			      &id);
		if (!ret && !i)
			f->v->eos = id;
		if (!ret)
			ret = vocab_stop(f->v, id);
	}
	json_decref(root);
	return ret;
}

/* ---- the chat template --------------------------------------------------------------------- */

/* A text, or a list of {"name", "template"} of which "default" is meant. */
static const json_t *template_of(const json_t *value)
{
	size_t i;
	json_t *o;

	if (!json_is_array(value))
		return value;
	json_array_foreach((json_t *)value, i, o) {
		const char *name = json_string_value(json_object_get(o, "name"));

		if (name && !strcmp(name, "default"))
			return json_object_get(o, "template");
	}
	return NULL;
}

static void take_template(struct folder *f, const char *file, const char *text, size_t len)
{
	const char *name = vocab_chat_of(text, len);

	snprintf(f->v->chat, sizeof(f->v->chat), "%s", name);
	if (!*name)
		REFUSE(f, 0,
		       "%s/%s: the chat template is none that is known here; name one with --chat, "
		       "or prompts are taken raw",
		       f->path, file);
}

static int read_chat(struct folder *f, const json_t *config)
{
	static const char file[] = "chat_template.jinja";
	const json_t *value = template_of(json_object_get(config, "chat_template"));
	struct mapped m = { 0 };
	char *path;
	int ret;

	if (!is_there(f->path, file)) {
		if (json_string_length(value))
			take_template(f, "tokenizer_config.json", json_string_value(value),
				      json_string_length(value));
		return 0;
	}
	path = path_in(f->path, file);
	if (!path)
		return REFUSE(f, -ENOMEM, "%s: no memory", f->path);
	ret = mapped_open(path, &m, f->why, f->why_len);
	free(path);
	if (!ret)
		take_template(f, file, (const char *)m.data, m.bytes);
	mapped_close(&m);
	return ret;
}

/* ---- tokens beside tokenizer.model --------------------------------------------------------- */

struct added {
	const char *text;
	size_t len;
	json_int_t id;
};

static int by_id(const void *pa, const void *pb)
{
	const struct added *a = pa, *b = pb;

	return (a->id > b->id) - (a->id < b->id);
}

/*
 * added_tokens.json, { text: id }: what was put behind a SentencePiece vocabulary. Their ids follow
 * on its last, or are its own; nothing makes them from text here, so they are special.
 */
static int read_added(struct folder *f)
{
	struct added *added = NULL;
	json_t *root, *value;
	const char *key;
	size_t n = 0, len;
	int ret = load(f, "added_tokens.json", &root);

	if (ret || !root)
		return ret;
	added = calloc(json_object_size(root) + 1, sizeof(*added));
	if (!added) {
		ret = REFUSE(f, -ENOMEM, "%s: no memory", f->path);
		goto out;
	}
	json_object_keylen_foreach(root, key, len, value) {
		struct added one = { key, len, json_integer_value(value) };

		if (!json_is_integer(value) || one.id < 0 || !len) {
			ret = REFUSE(f, -EPROTO, "%s/added_tokens.json: '%s' has no id", f->path,
				     read_shown(key, len).text);
			goto out;
		}
		if (one.id >= f->v->n_tokens)
			added[n++] = one;
	}
	qsort(added, n, sizeof(*added), by_id);
	for (size_t i = 0; i < n && !ret; i++) {
		if (added[i].id != f->v->n_tokens)
			ret = REFUSE(f, -EPROTO,
				     "%s/added_tokens.json: '%s' has id %lld, where %u comes next",
				     f->path, read_shown(added[i].text, added[i].len).text,
				     (long long)added[i].id, f->v->n_tokens);
		else
			ret = vocab_add(f->v, added[i].text, added[i].len, VOCAB_SPECIAL, 0);
	}
out:
	free(added);
	json_decref(root);
	return ret;
}

/* ---- all of it ----------------------------------------------------------------------------- */

static int read_file(struct folder *f, const char *file)
{
	char *path = path_in(f->path, file);
	int ret;

	if (!path)
		return REFUSE(f, -ENOMEM, "%s: no memory", f->path);
	ret = vocab_read(path, 0, &f->v, f->why, f->why_len);
	free(path);
	return ret;
}

/* tokenizer.model is what a tokenizer.json of an unknown form was made from. */
static int read_vocabulary(struct folder *f)
{
	bool model = is_there(f->path, "tokenizer.model");
	int ret;

	if (is_there(f->path, "tokenizer.json")) {
		ret = read_file(f, "tokenizer.json");
		if (ret != -ENOTSUP || !model)
			return ret;
	} else if (!model) {
		return REFUSE(f, -ENOENT,
			      "%s: has neither tokenizer.json nor tokenizer.model; name a "
			      "tokenizer with --tokenizer",
			      f->path);
	}
	return read_file(f, "tokenizer.model");
}

int vocab_read_folder(const char *folder, uint32_t vocab_size, struct vocab **out, char *why,
		      size_t why_len)
{
	struct folder f = { .path = folder, .why = why, .why_len = why_len };
	json_t *map = NULL, *config = NULL;
	int ret = read_vocabulary(&f);

	if (ret)
		return ret;
	assert(f.v);
	*why = 0;
	if (f.v->kind == VOCAB_SPM)
		ret = read_added(&f);
	if (!ret)
		ret = load(&f, "special_tokens_map.json", &map);
	if (!ret)
		ret = read_names(&f, map, "special_tokens_map.json");
	if (!ret)
		ret = load(&f, "tokenizer_config.json", &config);
	if (!ret)
		ret = read_names(&f, config, "tokenizer_config.json");
	if (!ret)
		ret = read_generation(&f);
	if (!ret && json_is_false(json_object_get(config, "add_bos_token")))
		f.v->flags &= ~VOCAB_ADD_BOS;
	if (!ret)
		ret = read_chat(&f, config);
	json_decref(map);
	json_decref(config);
	if (!ret && vocab_size)
		ret = vocab_fits(folder, f.v, vocab_size, why, why_len);
	return read_done(folder, ret, f.v, out, why, why_len);
}

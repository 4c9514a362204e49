/* SPDX-License-Identifier: MIT */
/*
 * What a tokenizer.json does with a text before and after its model: normalizer, pre_tokenizer,
 * post_processor. Each is a small program in JSON; a few of these programs are spoken here, by
 * exact content, and every other one is refused by name, for a tokenizer that is nearly right gives
 * a model texts that it has never seen.
 *
 * Left aside, because they change no prompt: truncation and padding (for batches of texts), the
 * decoder (it follows from the kind), trim_offsets (positions in the text).
 */
#include "read.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>
#include "mapped.h"

static const char llama3[] =
	"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
	" ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

#define SPACE_MARK "\xe2\x96\x81" /* U+2581, SentencePiece's space */

struct rules {
	const char *name;
	char *why;
	size_t why_len;
	bool prepends, replaces; /* normalizer: a space mark first, space marks for spaces */
	bool nfc;
};

static const char *string_at(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

static bool is(const json_t *o, const char *key, const char *value)
{
	return !strcmp(string_at(o, key), value);
}

/* A value for a sentence, in JSON's own spelling. */
static struct shown shown_json(const json_t *value)
{
	char text[512];
	size_t n =
		value ? json_dumpb(value, text, sizeof(text), JSON_COMPACT | JSON_ENCODE_ANY) : 0;

	if (!value)
		return read_shown("(absent)", 8);
	return read_shown(text, n < sizeof(text) ? n : sizeof(text));
}

static int refused(const struct rules *r, const char *key, const json_t *value, const char *allowed)
{
	return fail(r->why, r->why_len, -ENOTSUP, "%s: %s = %s is not supported; %s", r->name, key,
		    shown_json(value).text, allowed);
}

/* The members of a Sequence under this key, or the one value alone. 0 items: null. */
static size_t items(const json_t *value, const char *key, const json_t **list)
{
	*list = NULL;
	if (!value || json_is_null(value))
		return 0;
	if (json_is_object(value) && is(value, "type", "Sequence")) {
		*list = json_object_get(value, key);
		return json_is_array(*list) ? json_array_size(*list) : SIZE_MAX;
	}
	return 1;
}

static const json_t *item(const json_t *value, const json_t *list, size_t i)
{
	return list ? json_array_get(list, i) : value;
}

/* ---- normalizer ---------------------------------------------------------------------------- */

static int read_normalizer(struct rules *r, const json_t *root)
{
	const json_t *value = json_object_get(root, "normalizer"), *list;
	size_t n = items(value, "normalizers", &list);

	if (n > 2)
		return refused(r, "normalizer", value,
			       "there may be none, NFC, or those of SentencePiece");
	for (size_t i = 0; i < n; i++) {
		const json_t *o = item(value, list, i);

		if (is(o, "type", "NFC") && n == 1)
			r->nfc = true;
		else if (is(o, "type", "Prepend") && is(o, "prepend", SPACE_MARK) && !i)
			r->prepends = true;
		else if (is(o, "type", "Replace") && is(o, "content", SPACE_MARK) &&
			 is(json_object_get(o, "pattern"), "String", " ") && !r->replaces)
			r->replaces = true;
		else
			return refused(r, "normalizer", o,
				       "texts are taken as they are: null, NFC, or Prepend and "
				       "Replace of U+2581 are");
	}
	if (r->prepends && !r->replaces)
		return refused(r, "normalizer", value, "Prepend goes with Replace of spaces");
	return 0;
}

/* ---- pre_tokenizer ------------------------------------------------------------------------- */

static bool is_byte_level(const json_t *o, bool use_regex)
{
	const json_t *regex = json_object_get(o, "use_regex");

	return is(o, "type", "ByteLevel") &&
	       json_is_false(json_object_get(o, "add_prefix_space")) &&
	       (regex ? json_is_true(regex) : true) == use_regex;
}

/* Matches alone, or matches and what is between them: the rule leaves nothing between. */
static bool is_split(const json_t *o)
{
	bool invert = json_is_true(json_object_get(o, "invert"));

	return is(o, "type", "Split") && (invert ? is(o, "behavior", "Removed") :
						   is(o, "behavior", "Isolated"));
}

static int read_byte_rule(struct rules *r, const json_t *value, struct json_rules *out)
{
	const json_t *list, *a, *b;
	size_t n = items(value, "pretokenizers", &list);

	out->kind = VOCAB_BYTES;
	a = n >= 1 && n <= 2 ? item(value, list, 0) : NULL;
	b = n == 2 ? item(value, list, 1) : NULL;
	if (n == 1 && is_byte_level(a, true)) {
		out->rule = VOCAB_RULE_GPT2;
		return 0;
	}
	if (n == 2 && is(a, "type", "Digits") &&
	    json_is_true(json_object_get(a, "individual_digits")) && is_byte_level(b, true)) {
		out->rule = VOCAB_RULE_STARCODER;
		return 0;
	}
	if (n == 2 && is_split(a) && is_byte_level(b, false)) {
		const char *regex = string_at(json_object_get(a, "pattern"), "Regex");

		if (!strcmp(regex, llama3)) {
			out->rule = VOCAB_RULE_LLAMA3;
			return 0;
		}
		return fail(r->why, r->why_len, -ENOTSUP,
			    "%s: the pre_tokenizer's Regex is not Llama 3's: '%.200s'",
			    r->name, read_shown(regex, strlen(regex)).text);
	}
	if (n >= 1 && n <= 2 && is(n == 2 ? b : a, "type", "ByteLevel") &&
	    !json_is_false(json_object_get(n == 2 ? b : a, "add_prefix_space")))
		return fail(r->why, r->why_len, -ENOTSUP,
			    "%s: pre_tokenizer ByteLevel has add_prefix_space = %s; only false is "
			    "supported",
			    r->name,
			    shown_json(json_object_get(n == 2 ? b : a, "add_prefix_space")).text);
	return refused(r, "pre_tokenizer", value,
		       "there are those of Llama 3, GPT-2 and StarCoder");
}

static int read_space_rule(struct rules *r, const json_t *value, struct json_rules *out)
{
	const json_t *list, *o, *scheme;
	size_t n = items(value, "pretokenizers", &list);
	bool prefix = r->prepends;

	out->kind = VOCAB_SPM;
	out->rule = VOCAB_RULE_NONE;
	if (n > 1)
		return refused(r, "pre_tokenizer", value,
			       "with byte_fallback it is null or Metaspace");
	if (n == 1) {
		o = item(value, list, 0);
		scheme = json_object_get(o, "prepend_scheme");
		if (!is(o, "type", "Metaspace") || !is(o, "replacement", SPACE_MARK) || r->replaces)
			return refused(r, "pre_tokenizer", o,
				       "with byte_fallback it is null or Metaspace");
		/* Cut at spaces, an entry that has one inside would never be. Absent means true. */
		if (!json_is_false(json_object_get(o, "split")))
			return fail(r->why, r->why_len, -ENOTSUP,
				    "%s: pre_tokenizer Metaspace has split = %s; only false is "
				    "supported",
				    r->name, shown_json(json_object_get(o, "split")).text);
		if (scheme && !is(o, "prepend_scheme", "first") &&
		    !is(o, "prepend_scheme", "always") && !is(o, "prepend_scheme", "never"))
			return refused(r, "prepend_scheme", scheme, "it is first, always or never");
		prefix = scheme ? !is(o, "prepend_scheme", "never") :
				  !json_is_false(json_object_get(o, "add_prefix_space"));
	} else if (!r->replaces) {
		return fail(r->why, r->why_len, -ENOTSUP,
			    "%s: model.byte_fallback is true, but nothing writes spaces as U+2581; "
			    "that is no tokenizer we know",
			    r->name);
	}
	if (prefix)
		out->flags |= VOCAB_DUMMY_PREFIX;
	return 0;
}

/* ---- post_processor ------------------------------------------------------------------------ */

/* TemplateProcessing's single: at most one special token, and that before the text. */
static int read_template(struct rules *r, const json_t *o, struct json_rules *out)
{
	const json_t *single = json_object_get(o, "single");
	size_t n = json_array_size(single);
	json_t *first = json_object_get(json_array_get(single, 0), "SpecialToken");

	if ((n != 1 && n != 2) || !!first != (n == 2) ||
	    !is(json_object_get(json_array_get(single, n - 1), "Sequence"), "id", "A"))
		return refused(r, "post_processor.single", single,
			       "it may put one token before the text, and nothing behind it");
	if (first) {
		out->bos = json_object_get(first, "id");
		if (!json_is_string(out->bos))
			return fail(r->why, r->why_len, -EPROTO,
				    "%s: post_processor.single: SpecialToken.id is %s, not a text",
				    r->name, shown_json(out->bos).text);
		out->flags |= VOCAB_ADD_BOS;
	}
	return 0;
}

static int read_post_processor(struct rules *r, const json_t *root, struct json_rules *out)
{
	const json_t *value = json_object_get(root, "post_processor"), *list;
	size_t n = items(value, "processors", &list);
	bool seen = false;

	if (n > 4)
		return refused(r, "post_processor", value, "TemplateProcessing is, or null");
	for (size_t i = 0; i < n; i++) {
		const json_t *o = item(value, list, i);
		int ret = 0;

		if (is(o, "type", "TemplateProcessing") && !seen) {
			seen = true;
			ret = read_template(r, o, out);
		} else if (!is(o, "type", "ByteLevel")) { /* which is about positions only */
			ret = refused(r, "post_processor", o, "TemplateProcessing is, or null");
		}
		if (ret)
			return ret;
	}
	return 0;
}

int read_json_rules(const struct json_t *root, const char *name, struct json_rules *out, char *why,
		    size_t why_len)
{
	struct rules r = { .name = name, .why = why, .why_len = why_len };
	const json_t *model = json_object_get(root, "model");
	const json_t *pre = json_object_get(root, "pre_tokenizer");
	int ret = read_normalizer(&r, root);

	*out = (struct json_rules){ 0 };
	if (ret)
		return ret;
	if (json_is_true(json_object_get(model, "byte_fallback"))) {
		if (r.nfc)
			return fail(why, why_len, -ENOTSUP,
				    "%s: the normalizer is NFC, together with byte_fallback; that "
				    "is not supported",
				    name);
		ret = read_space_rule(&r, pre, out);
	} else {
		if (r.replaces)
			return fail(why, why_len, -ENOTSUP,
				    "%s: the normalizer writes spaces as U+2581, but "
				    "model.byte_fallback is not true; such a tokenizer is not "
				    "supported",
				    name);
		ret = read_byte_rule(&r, pre, out);
		if (r.nfc)
			out->flags |= VOCAB_NFC;
	}
	return ret ? ret : read_post_processor(&r, root, out);
}

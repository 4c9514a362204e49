/* SPDX-License-Identifier: MIT */
/*
 * Readers of vocabularies: if one took a token, merge or rule for another, every text would come to
 * the model a little wrong; if one believed a size in the file, it would read where nothing is.
 * Files are made here by small writers of our own, from the descriptions of the formats.
 *
 * ONEBIT_SEED repeats the random choices, ONEBIT_SCALE is percent of the full counts.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_obm.h"
#include "lib_write_vocab.h"
#include "packed.h"
#include "source.h"
#include "tokenizer.h"
#include "vocab.h"

static char why[512];
static struct tiny tiny;

/* ---- what is common ------------------------------------------------------------------------ */

typedef int reader(const void *data, size_t len, const char *name, struct vocab **out, char *why_,
		   size_t why_len);

/* From a copy of just this length, so that the sanitizer sees one byte too many. */
static int read_copy(reader *read, const char *data, size_t len, struct vocab **out)
{
	char *copy = malloc(len ? len : 1);
	int ret;

	ck_assert_ptr_nonnull(copy);
	if (len)
		memcpy(copy, data, len);
	*why = 0;
	*out = NULL;
	ret = read(copy, len, "f", out, why, sizeof(why));
	free(copy);
	return ret;
}

static struct vocab *good(reader *read, struct buf b)
{
	struct vocab *v;
	int ret = read_copy(read, b.p, b.n, &v);

	ck_assert_msg(!ret, "%d: %s", ret, why);
	buf_free(&b);
	return v;
}

static void bad_at(int line, reader *read, struct buf b, int err, const char *text)
{
	struct vocab *v;
	int ret = read_copy(read, b.p, b.n, &v);

	ck_assert_msg(ret == err && !v && strstr(why, text) && !strncmp(why, "f: ", 3),
		      "line %d: %d instead of %d, '%s' instead of '%s'", line, ret, err, why, text);
	buf_free(&b);
}

#define bad(...) bad_at(__LINE__, __VA_ARGS__)

static void same_as_tiny(const struct vocab *v)
{
	ck_assert_uint_eq(v->kind, VOCAB_BYTES);
	ck_assert_uint_eq(v->rule, VOCAB_RULE_LLAMA3);
	ck_assert_uint_eq(v->flags, VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS);
	ck_assert_uint_eq(v->bos, tiny.bos);
	ck_assert_uint_eq(v->eos, tiny.eos);
	ck_assert_uint_eq(v->n_stops, 2);
	ck_assert_uint_eq(v->stops[0], tiny.eos);
	ck_assert_uint_eq(v->stops[1], tiny.eot);
	ck_assert_uint_eq(v->n_tokens, tiny.vocab);
	for (uint32_t id = 0; id < tiny.vocab; id++) {
		const struct vocab_token *t = &v->tokens[id];

		ck_assert_uint_eq(t->kind, id >= tiny.vocab - 4 ? VOCAB_SPECIAL : VOCAB_NORMAL);
		ck_assert_uint_eq(t->len, tiny.token_len[id]);
		ck_assert(!memcmp(t->text, tiny.token[id], t->len));
	}
	ck_assert_uint_eq(v->n_merges, tiny.n_words);
	for (uint32_t i = 0; i < tiny.n_words; i++) {
		ck_assert_uint_eq(v->merges[i].a, tiny.merge[i].a);
		ck_assert_uint_eq(v->merges[i].b, tiny.merge[i].b);
		ck_assert_uint_eq(v->merges[i].merged, tiny.merge[i].merged);
		ck_assert_uint_eq(v->merges[i].rank, i);
	}
}

/* The ids of a text; ends with VOCAB_NO_ID. */
static size_t encode(struct vocab *v, const char *text, uint32_t *ids, size_t cap)
{
	struct tokenizer_scratch *scratch = tokenizer_scratch_new(4096);
	struct tokenizer *t;
	size_t bytes, n;
	void *section;

	ck_assert_msg(!vocab_build(v, v->n_tokens, &section, &bytes, why, sizeof(why)), "%s", why);
	ck_assert_msg(!tokenizer_open(section, bytes, &t, why, sizeof(why)), "%s", why);
	ck_assert_int_eq(tokenizer_encode(t, scratch, text, strlen(text), 0, ids, cap, &n), 0);
	tokenizer_close(t);
	tokenizer_scratch_free(scratch);
	free(section);
	return n;
}

static void set_up(void)
{
	tiny_default(&tiny, 7);
	tiny_fill(&tiny);
}

static void tear_down(void)
{
	tiny_free(&tiny);
}

/* ---- tokenizer.json ------------------------------------------------------------------------ */

/* If one of the two spellings of merges, or an id, came out otherwise. */
START_TEST(json_is_exact)
{
	for (int pairs = 0; pairs < 2; pairs++) {
		struct vocab *v =
			good(vocab_read_json, file_json(&tiny, &(struct parts){ .pairs = pairs }));

		same_as_tiny(v);
		vocab_free(v);
	}
}
END_TEST

/* If a rule were taken for another, digits and contractions would be cut wrong (trap 21). */
START_TEST(json_rules)
{
	static const struct {
		const char *pre;
		uint32_t rule;
	} known[] = {
		{ BYTE_LEVEL(true), VOCAB_RULE_GPT2 },
		{ "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":false}",
		  VOCAB_RULE_GPT2 },
		{ SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":true}," BYTE_LEVEL(true)),
		  VOCAB_RULE_STARCODER },
		{ SEQUENCE(LLAMA3_SPLIT "," BYTE_LEVEL(false)), VOCAB_RULE_LLAMA3 },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		struct vocab *v = good(vocab_read_json, file_json(&tiny, &(struct parts){
			.pre = known[i].pre, .post = BYTE_LEVEL(false),
			.model = "\"type\":\"BPE\",\"byte_fallback\":false" }));

		ck_assert_uint_eq(v->rule, known[i].rule);
		ck_assert_uint_eq(v->flags, 0);
		ck_assert_uint_eq(v->bos, tiny.bos); /* by its name, though nothing puts it first */
		vocab_free(v);
	}
}
END_TEST

#define NFC "{\"type\":\"NFC\"}"
#define ADDED(id, content, rest) \
	",{\"id\":" #id ",\"content\":\"" content "\",\"special\":false," rest "}"

/* If GPT-NeoX's runs of spaces, or its form of text, were lost on the way: as its file has them. */
START_TEST(json_of_neox)
{
	static const char text[] = "<|eot_id|>e  e     e\xcc\x81   \n";
	struct vocab *v = good(vocab_read_json, file_json(&tiny, &(struct parts){
		.normalizer = NFC, .pre = BYTE_LEVEL(true), .post = BYTE_LEVEL(true),
		.model = "\"type\":\"BPE\",\"byte_fallback\":false",
		.added = ADDED(320, "    ", "\"normalized\":true,\"lstrip\":false")
			 ADDED(321, "   ", "\"normalized\":true,\"rstrip\":false")
			 ADDED(322, "  ", "\"normalized\":true,\"single_word\":false")
			 ADDED(323, "\\u00e9", "\"normalized\":true") }));
	const char *const parts[] = { "  ", "    ", "\xc3\xa9", "   " };
	uint32_t ids[64];
	size_t n = encode(v, text, ids, 64), at = 0;

	ck_assert_uint_eq(v->rule, VOCAB_RULE_GPT2);
	ck_assert_uint_eq(v->flags, VOCAB_NFC);
	ck_assert_uint_eq(v->n_tokens, 324);
	for (uint32_t id = 320; id < 324; id++)
		ck_assert_uint_eq(v->tokens[id].kind, VOCAB_ADDED);
	for (size_t i = 0; i < n; i++) {
		const struct vocab_token *t = &v->tokens[ids[i]];

		ck_assert_uint_ne(t->kind, VOCAB_SPECIAL);
		if (t->kind == VOCAB_ADDED) {
			ck_assert_uint_lt(at, 4);
			ck_assert_uint_eq(t->len, strlen(parts[at]));
			ck_assert_mem_eq(t->text, parts[at], t->len);
			at++;
		}
	}
	ck_assert_uint_eq(at, 4);
	vocab_free(v);
	/* Without a normalizer it does not matter when they are looked for. */
	v = good(vocab_read_json, file_json(&tiny, &(struct parts){
		.added = ADDED(320, "  ", "\"normalized\":false") }));
	ck_assert_uint_eq(v->tokens[320].kind, VOCAB_ADDED);
	ck_assert_uint_eq(v->flags & VOCAB_NFC, 0);
	vocab_free(v);
}
END_TEST

/* If what would make other tokens were passed over in silence. */
START_TEST(json_refused)
{
	static const struct {
		struct parts parts;
		int err;
		const char *text;
	} refused[] = {
		{ { .normalizer = "{\"type\":\"NFKC\"}" },
		  -ENOTSUP,
		  "f: normalizer = {\"type\":\"NFKC\"} is not supported" },
		{ { .normalizer = "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},"
				  "{\"type\":\"NFC\"}]}" },
		  -ENOTSUP,
		  "f: normalizer = {\"type\":\"NFC\"} is not supported" },
		{ { .normalizer = "{\"type\":\"NFC\"}",
		    .model = "\"type\":\"BPE\",\"byte_fallback\":true" },
		  -ENOTSUP,
		  "f: the normalizer is NFC, together with byte_fallback" },
		{ { .normalizer = "{\"type\":\"Prepend\",\"prepend\":\"\xe2\x96\x81\"}" },
		  -ENOTSUP,
		  "Prepend goes with Replace" },
		{ { .pre = "null" }, -ENOTSUP, "f: pre_tokenizer = null is not supported" },
		{ { .pre = "{\"type\":\"Whitespace\"}" },
		  -ENOTSUP,
		  "f: pre_tokenizer = {\"type\":\"Whitespace\"} is not supported; there are those "
		  "of Llama 3" },
		{ { .pre = "{\"type\":\"ByteLevel\",\"add_prefix_space\":true}" },
		  -ENOTSUP,
		  "f: pre_tokenizer ByteLevel has add_prefix_space = true; only false is "
		  "supported" },
		{ { .pre = SEQUENCE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\p{N}\"},"
				    "\"behavior\":"
				    "\"Isolated\",\"invert\":false}," BYTE_LEVEL(false)) },
		  -ENOTSUP,
		  "f: the pre_tokenizer's Regex is not Llama 3's: '\\p{N}'" },
		{ { .pre = SEQUENCE(LLAMA3_SPLIT "," BYTE_LEVEL(true)) },
		  -ENOTSUP,
		  "f: pre_tokenizer = " },
		{ { .pre =
			    SEQUENCE("{\"type\":\"Digits\",\"individual_digits\":false}"
				     "," BYTE_LEVEL(true)) },
		  -ENOTSUP,
		  "f: pre_tokenizer = " },
		{ { .post = "{\"type\":\"TemplateProcessing\",\"single\":[{\"Sequence\":{\"id\":"
			    "\"A\"}},"
			    "{\"SpecialToken\":{\"id\":\"<|end_of_text|>\"}}]}" },
		  -ENOTSUP,
		  "f: post_processor.single = " },
		{ { .post = "{\"type\":\"RobertaProcessing\"}" },
		  -ENOTSUP,
		  "f: post_processor = {\"type\":\"RobertaProcessing\"} is not supported" },
		{ { .post = "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
			    "\"id\":\"<s>\"}},"
			    "{\"Sequence\":{\"id\":\"A\"}}]}" },
		  -EPROTO,
		  "f: post_processor puts '<s>' first, which is no special token" },
		{ { .model = "\"type\":\"Unigram\"" },
		  -ENOTSUP,
		  "f: model.type is 'Unigram'; only BPE is supported" },
		{ { .model = "\"unk_token\":null" }, -ENOTSUP, "f: model.type is 'absent'" },
		{ { .model = "\"type\":\"BPE\",\"dropout\":0.1" },
		  -ENOTSUP,
		  "f: model.dropout is 0.1" },
		{ { .model = "\"type\":\"BPE\",\"end_of_word_suffix\":\"</w>\"" },
		  -ENOTSUP,
		  "f: model.end_of_word_suffix is '</w>'" },
		{ { .model = "\"type\":\"BPE\",\"byte_fallback\":true" },
		  -ENOTSUP,
		  "f: pre_tokenizer = {" },
		{ { .model = "\"type\":\"BPE\",\"byte_fallback\":true", .pre = "null" },
		  -ENOTSUP,
		  "f: model.byte_fallback is true, but nothing writes spaces as U+2581" },
		{ { .added = ADDED(400, "   ", "\"lstrip\":true"), .normalizer = NFC },
		  -ENOTSUP,
		  "f: added token 400, '   ', has lstrip = true, which is not supported" },
		{ { .added = ADDED(400, "   ", "\"rstrip\":true") },
		  -ENOTSUP,
		  "f: added token 400, '   ', has rstrip = true, which is not supported" },
		{ { .added = ADDED(400, "word", "\"single_word\":true") },
		  -ENOTSUP,
		  "f: added token 400, 'word', has single_word = true, which is not supported" },
		{ { .added = ADDED(400, "   ", "\"normalized\":false"), .normalizer = NFC },
		  -ENOTSUP,
		  "f: added token 400, '   ', is to be found before the normalizer NFC" },
		{ { .added = ADDED(400, "   ", "\"normalized\":true")
			     ADDED(401, "  ", "\"normalized\":false") },
		  -ENOTSUP,
		  "f: added token 401, '  ', has normalized = false, unlike those before it" },
		{ { .added = ADDED(400, "e\\u0301", "\"normalized\":true"), .normalizer = NFC },
		  -EPROTO,
		  "f: token 400 is to be taken whole from text in NFC, which it is not in" },
		{ { .added = ADDED(400, "  ", "\"normalized\":true"),
		    .normalizer = "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
				  "\"content\":\"\xe2\x96\x81\"}",
		    .pre = "null",
		    .model = "\"type\":\"BPE\",\"byte_fallback\":true" },
		  -ENOTSUP,
		  "f: added token 400, '  ', is not special: it would be taken whole from text, "
		  "which is not supported together with byte_fallback" },
		{ { .added = ",{\"id\":0,\"content\":\"<|x|>\",\"special\":true}" },
		  -EPROTO,
		  "f: id 0 is '!' in model.vocab and '<|x|>' in added_tokens" },
		{ { .added = ",{\"id\":319,\"content\":\"<|x|>\",\"special\":true}" },
		  -EPROTO,
		  "f: id 319 is twice in added_tokens" },
		{ { .added = ",{\"id\":320}" }, -EPROTO, "f: added_tokens[4] has no content" },
		{ { .words = ",\"xyz\":0" }, -EPROTO, "f: id 0 is '!' and 'xyz' in model.vocab" },
		{ { .words = ",\"xyz\":-1" }, -EPROTO, "f: token 'xyz' has id -1; of 321 tokens" },
		{ { .words = ",\"xyz\":1048575" },
		  -EPROTO,
		  "f: token 'xyz' has id 1048575; of 321 tokens the "
		  "ids may be 0 to 897" },
		{ { .words = ",\"xyz\":4294967296" }, -EPROTO, "f: token 'xyz' has id 4294967296" },
		{ { .words = ",\"xyz\":1.5" },
		  -EPROTO,
		  "f: token 'xyz' has no id that is a whole number" },
		{ { .words = ",\"x y\":320" }, -EPROTO, "f: token 320, 'x y', is not spelled" },
		{ { .words = ",\"!\":320" },
		  -EPROTO,
		  "f: is not JSON: line 1: duplicate object key" },
		{ { .merges = ",\"x\"" },
		  -EPROTO,
		  "f: merge 60, 'x', is not two texts with a space" },
		{ { .merges = ",\"x y z\"" }, -EPROTO, "f: merge 60, 'x y z', is not two texts" },
		{ { .merges = ",[\"x\"]" }, -EPROTO, "f: merge 60 is neither two texts nor one" },
		{ { .merges = ",[\"x\",7]" }, -EPROTO, "f: merge 60 is neither two texts nor one" },
		{ { .merges = ",\"x zz\"" },
		  -EPROTO,
		  "f: merge 60 names 'zz', which model.vocab has not" },
		{ { .merges = ",\"Q x\"" },
		  -EPROTO,
		  "f: merge 60 names 'Qx', which model.vocab has not" },
		{ { .top = "\"x\":[," }, -EPROTO, "f: is not JSON: line 1" },
	};

	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		bad_at((int)i, vocab_read_json, file_json(&tiny, &refused[i].parts),
		       refused[i].err, refused[i].text);
}
END_TEST

/* If a token that a model may say were lost, or a gap in the ids moved those behind it. */
START_TEST(json_ids)
{
	struct vocab *v = good(vocab_read_json, file_json(&tiny, &(struct parts){
		.added = ",{\"id\":325,\"content\":\"<think>\",\"special\":false},"
			 "{\"id\":323,\"content\":\"a\\u0000b>\",\"special\":true}" }));
	uint32_t ids[16];

	ck_assert_uint_eq(v->n_tokens, 326);
	ck_assert_uint_eq(v->tokens[320].kind, VOCAB_UNUSED);
	ck_assert_uint_eq(v->tokens[322].kind, VOCAB_UNUSED);
	ck_assert_uint_eq(v->tokens[323].kind, VOCAB_SPECIAL);
	ck_assert_uint_eq(v->tokens[323].len, 4);
	ck_assert_uint_eq(v->tokens[325].kind, VOCAB_NORMAL);
	ck_assert(!memcmp(v->tokens[325].text, "<think>", 7));
	for (size_t i = 0, n = encode(v, "<think>", ids, 16); i < n; i++)
		ck_assert_uint_lt(ids[i], 320);
	vocab_free(v);
}
END_TEST

/* Deep nesting must end with a sentence, not with the stack. */
START_TEST(json_depth)
{
	struct buf b = { 0 };

	for (int i = 0; i < 100000; i++)
		buf_text(&b, "[");
	bad(vocab_read_json, b, -EPROTO, "f: is not JSON: line 1: maximum parsing depth reached");
	b = (struct buf){ 0 };
	buf_text(&b, "[]");
	bad(vocab_read_json, b, -EPROTO, "is JSON without a 'model'");
}
END_TEST

/* ---- SentencePiece ------------------------------------------------------------------------- */

static void same_as_spm(struct vocab *v)
{
	ck_assert_uint_eq(v->kind, VOCAB_SPM);
	ck_assert_uint_eq(v->rule, VOCAB_RULE_NONE);
	ck_assert_uint_eq(v->flags, VOCAB_DUMMY_PREFIX | VOCAB_ADD_BOS);
	ck_assert_uint_eq(v->unk, 0);
	ck_assert_uint_eq(v->bos, 1);
	ck_assert_uint_eq(v->eos, 2);
	ck_assert_uint_eq(v->n_stops, 1);
	ck_assert_uint_eq(v->n_tokens, SPM_FIRST + N_SPM_WORDS);
	for (uint32_t id = 0; id < 3; id++)
		ck_assert_uint_eq(v->tokens[id].kind, VOCAB_SPECIAL);
	for (uint32_t id = 3; id < SPM_FIRST; id++) {
		ck_assert_uint_eq(v->tokens[id].kind, VOCAB_BYTE);
		ck_assert_uint_eq(v->tokens[id].text[0], id - 3);
	}
	/* U+2581 is a space, here and nowhere else. */
	ck_assert_uint_eq(v->tokens[SPM_FIRST + 2].len, 4);
	ck_assert(!memcmp(v->tokens[SPM_FIRST + 2].text, " the", 4));
	ck_assert_uint_eq(v->tokens[SPM_FIRST + 4].len, 1);
	ck_assert(!memcmp(v->tokens[SPM_FIRST + 11].text, "\xc3\xa9", 2));
}

/* The same vocabulary as the Hugging Face library writes it. */
static struct buf file_spm_json(const char *normalizer, const char *pre)
{
	static const char *const merges[] = { "\xe2\x96\x81 t", "h e", "\xe2\x96\x81t he", "i n" };
	struct buf b = { 0 };

	buf_text(&b, "{\"added_tokens\":[");
	for (int i = 0; i < 3; i++)
		buf_format(&b, "{\"id\":%d,\"content\":\"%s\",\"special\":true}%s", i,
		      i == 0 ? "<unk>" : i == 1 ? "<s>" : "</s>", i < 2 ? "," : "");
	buf_format(&b, "],\"normalizer\":%s,\"pre_tokenizer\":%s,", normalizer, pre);
	buf_text(&b, "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
		  "\"SpecialToken\":{\"id\":"
		  "\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]},");
	buf_text(&b, "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_"
		  "fallback\":true,"
		  "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2");
	for (unsigned i = 0; i < 256; i++)
		buf_format(&b, ",\"<0x%02X>\":%u", i, 3 + i);
	for (int i = 0; i < N_SPM_WORDS; i++)
		buf_format(&b, ",\"%s\":%d", spm_words[i], SPM_FIRST + i);
	buf_text(&b, "},\"merges\":[");
	for (size_t i = 0; i < sizeof(merges) / sizeof(merges[0]); i++)
		buf_format(&b, "%s\"%s\"", i ? "," : "", merges[i]);
	buf_text(&b, "]}}");
	return b;
}

#define LLAMA2_NORMALIZER                                                            \
	"{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":" \
	"\"\xe2\x96\x81\"},"                                                         \
	"{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"\xe2\x96\x81\"}]}"

/* If the two files of one tokenizer gave different ids. */
START_TEST(spm_is_exact)
{
	static const char text[] = "the thin \xc3\xa9tha!";
	struct vocab *a = good(vocab_read_sentencepiece, file_spm(&spm_llama2)), *b;
	uint32_t ids[32], again[32];
	size_t n, m;

	same_as_spm(a);
	n = encode(a, text, ids, 32);
	ck_assert_uint_eq(ids[0], SPM_FIRST + 2); /* " the", with the space put before */
	ck_assert_uint_eq(ids[n - 1], 3 + '!');
	for (int i = 0; i < 2; i++) {
		b = good(vocab_read_json, i ? file_spm_json("null", "{\"type\":\"Metaspace\","
								     "\"replacement\":"
								     "\"\xe2\x96\x81\","
								     "\"prepend_scheme\":\"first\","
								     "\"split\":false}")
					    : file_spm_json(LLAMA2_NORMALIZER, "null"));
		same_as_spm(b);
		m = encode(b, text, again, 32);
		ck_assert_uint_eq(m, n);
		ck_assert(!memcmp(ids, again, n * sizeof(*ids)));
		vocab_free(b);
	}
	vocab_free(a);
	b = good(vocab_read_json, file_spm_json("null", "{\"type\":\"Metaspace\",\"replacement\":"
							 "\"\xe2\x96\x81\",\"prepend_scheme\":"
							 "\"never\",\"split\":false}"));
	ck_assert_uint_eq(b->flags, VOCAB_ADD_BOS);
	vocab_free(b);
	bad(vocab_read_json,
	    file_spm_json("null", "{\"type\":\"Metaspace\",\"replacement\":\"\xe2\x96\x81\","
				   "\"prepend_scheme\":\"first\"}"),
	    -ENOTSUP, "f: pre_tokenizer Metaspace has split = (absent)");
	bad(vocab_read_json, file_spm_json("null", "{\"type\":\"Metaspace\",\"replacement\":\"_\","
					    "\"split\":false}"), -ENOTSUP, "f: pre_tokenizer = {");
}
END_TEST

/* If a model trained otherwise were read as one that was not. */
START_TEST(spm_refused)
{
	struct spm_parts p;

#define REFUSE(change, err, text) \
	do { \
		p = spm_llama2; \
		change; \
		bad(vocab_read_sentencepiece, file_spm(&p), err, text); \
	} while (0)
	REFUSE(p.model_type = 1, -ENOTSUP, "f: trainer_spec.model_type is 1 (unigram)");
	REFUSE(p.model_type = 9, -ENOTSUP, "f: trainer_spec.model_type is 9 (unknown)");
	REFUSE(p.byte_fallback = 0, -ENOTSUP, "f: trainer_spec.byte_fallback is false");
	REFUSE(p.suffix = 1, -ENOTSUP, "f: trainer_spec.treat_whitespace_as_suffix is true");
	REFUSE(p.normalizer = "nmt_nfkc", -ENOTSUP, "f: normalizer_spec.name is 'nmt_nfkc'");
	REFUSE(p.charsmap = "abc", -ENOTSUP, "f: normalizer_spec.name is 'identity', with a table");
	REFUSE(p.extra = 1, -ENOTSUP, "f: normalizer_spec.remove_extra_whitespaces is true");
	REFUSE(p.no_extra = true, -ENOTSUP, "f: normalizer_spec.remove_extra_whitespaces is true");
	REFUSE(p.escape = 0, -ENOTSUP, "f: normalizer_spec.escape_whitespaces is false");
	REFUSE(p.no_trainer = true, -EPROTO, "f: has no trainer_spec");
	REFUSE(p.bos = 5000, -EPROTO, "f: trainer_spec.bos_id is 5000, and there are 271 pieces");
	REFUSE(p.bos = 262, -EPROTO,
	       "f: trainer_spec.bos_id is 262, 'in', which is an ordinary piece");
	REFUSE((p.piece = "x", p.piece_type = 4), -ENOTSUP, "f: piece 271, 'x', is user-defined");
	REFUSE((p.piece = "x", p.piece_type = 5), -ENOTSUP, "f: piece 271, 'x', is unused");
	REFUSE((p.piece = "x", p.piece_type = 7), -EPROTO, "f: piece 271, 'x', has type 7");
	REFUSE((p.piece = "<0xG0>", p.piece_type = 6), -EPROTO,
	       "f: piece 271, '<0xG0>', is to be a byte");
	REFUSE((p.piece = "in", p.piece_type = 1), -EPROTO, "f: piece 271, 'in', was there before");
	REFUSE((p.piece = "", p.piece_type = 1), -EPROTO, "f: piece 271 has 0 bytes");
	REFUSE((p.piece = "x", p.piece_type = 1, p.piece_score = 0.0f / 0.0f), -EPROTO,
	       "f: piece 271, 'x', has no finite score");
#undef REFUSE
	p = spm_llama2;
	p.bos = UINT64_MAX;
	p.prefix = 0;
	{
		struct vocab *v = good(vocab_read_sentencepiece, file_spm(&p));

		/* -1: trained without one; the name is known all the same. */
		ck_assert_uint_eq(v->flags, 0);
		vocab_free(v);
	}
}
END_TEST

/* If lengths and numbers on the wire were believed. */
START_TEST(spm_wire)
{
	static const struct {
		const char *bytes;
		size_t len;
	} wrong[] = {
		{ "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
		  11 }, /* a piece of 2^64 - 1 bytes */
		{ "\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
		  12 },				       /* a number without an end */
		{ "\x0b", 1 },			       /* a group */
		{ "\x02\x00", 2 },		       /* field 0 */
		{ "\x08\x05", 2 },		       /* pieces as a number */
		{ "\x0a\x02\x08\x05", 4 },	       /* a text as a number */
		{ "\x0a\x03\x0a\x05x", 5 },	       /* a text longer than its piece */
		{ "\x12\x02\x1a\x00", 4 },	       /* model_type as bytes */
		{ "\xfa\xff\xff\xff\xff\x0f\x00", 7 }, /* a field number over 32 bits */
	};

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct buf b = { 0 };

		buf_put(&b, wrong[i].bytes, wrong[i].len);
		bad_at((int)i, vocab_read_sentencepiece, b, -EPROTO, "f: is not a protocol buffer");
	}
}
END_TEST

/* ---- ranks --------------------------------------------------------------------------------- */

/* If an id moved, or Llama 3's specials had not their places behind the entries. */
START_TEST(ranks_are_exact)
{
	struct vocab *v = good(vocab_read_ranks, file_ranks(&tiny));
	uint32_t n = tiny.vocab - 4;

	ck_assert_uint_eq(v->rule, VOCAB_RULE_LLAMA3);
	ck_assert_uint_eq(v->flags, VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS);
	ck_assert_uint_eq(v->n_tokens, n + 256);
	for (uint32_t id = 0; id < n; id++) {
		ck_assert_uint_eq(v->tokens[id].len, tiny.token_len[id]);
		ck_assert(!memcmp(v->tokens[id].text, tiny.token[id], tiny.token_len[id]));
	}
	ck_assert_uint_ge(v->n_merges, tiny.n_words);
	ck_assert_uint_eq(v->bos, n);
	ck_assert_uint_eq(v->eos, n + 1);
	ck_assert_uint_eq(v->n_stops, 2);
	ck_assert_uint_eq(v->stops[1], n + 9);
	ck_assert_uint_eq(vocab_find(v, "<|start_header_id|>", 19, 1u << VOCAB_SPECIAL), n + 6);
	ck_assert_uint_eq(vocab_find(v, "<|end_header_id|>", 17, 1u << VOCAB_SPECIAL), n + 7);
	ck_assert_uint_eq(vocab_find(v, "<|reserved_special_token_2|>", 28, 1u << VOCAB_SPECIAL),
			  n + 5);
	ck_assert_uint_eq(vocab_find(v, "<|reserved_special_token_3|>", 28, 1u << VOCAB_SPECIAL),
			  n + 11);
	ck_assert_uint_eq(vocab_find(v, "<|reserved_special_token_247|>", 30, 1u << VOCAB_SPECIAL),
			  n + 255);
	vocab_free(v);
}
END_TEST

/* If a line that is none were passed over, all ids behind it would be another's. */
START_TEST(ranks_refused)
{
	static const struct {
		const char *line, *text;
	} refused[] = {
		{ "eHl6 317\n", "f: line 317 has rank 317 instead of 316" },
		{ "eHl6 5\n", "f: line 317 has rank 5 instead of 316" },
		{ "eHl6 4294967612\n", "f: line 317, 'eHl6 4294967612', is not of the form" },
		{ "eHl6\n", "f: line 317, 'eHl6', is not of the form 'base64 rank'" },
		{ "eHl6 \n", "f: line 317, 'eHl6 ', is not of the form" },
		{ "\n", "f: line 317, '', is not of the form" },
		{ "eHl6 31x\n", "f: line 317: the rank '31x' is no number" },
		{ "eHl6 -1\n", "f: line 317: the rank '-1' is no number" },
		{ "eHl 316\n", "f: line 317: 'eHl' is not base64" },
		{ "e==6 316\n", "f: line 317: 'e==6' is not base64" },
		{ "eHl= 316\n", "f: line 317: 'eHl=' is not base64" },
		{ "==== 316\n", "f: line 317: '====' is not base64" },
		{ "IQ== 316\n", "f: line 317: the entry '!' was there before" },
		{ "eHl6 316", "f: ends within line 317: it was cut off" },
	};

	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
		struct buf b = file_ranks(&tiny);

		buf_text(&b, refused[i].line);
		bad_at((int)i, vocab_read_ranks, b, -EPROTO, refused[i].text);
	}
	bad(vocab_read_ranks, (struct buf){ 0 }, -EPROTO, "f: is empty");
	{
		struct buf b = file_ranks(&tiny);

		/* One byte without an entry: a text with it could not be encoded. */
		b.n = 100 * 7;
		while (b.p[b.n - 1] != '\n')
			b.n--;
		bad(vocab_read_ranks, b, -EPROTO, "f: no token stands for byte");
	}
}
END_TEST

/* ---- .htok --------------------------------------------------------------------------------- */

/* If the version word were taken for the number of tokens, or the other way round (trap 18). */
START_TEST(htok_is_exact)
{
	static const uint32_t versions[] = { 0, 2, 3 };

	for (int i = 0; i < 3; i++) {
		struct vocab *v = good(vocab_read_htok, file_htok(&tiny, versions[i]));

		same_as_tiny(v);
		vocab_free(v);
	}
	bad(vocab_read_htok, file_htok(&tiny, 1), -ENOTSUP,
	    "f: is .htok version 1; versions 2 and 3 are known");
	bad(vocab_read_htok, file_htok(&tiny, 4), -ENOTSUP, "f: is .htok version 4");
}
END_TEST

static void set_u32(struct buf *b, size_t at, uint32_t v)
{
	memcpy(b->p + at, &(uint8_t[4]){ (uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16),
					 (uint8_t)(v >> 24) }, 4);
}

/* If a number in the file were believed (traps 17 and 18). */
START_TEST(htok_numbers)
{
	size_t merges = tiny.n_words * 12u;
	struct buf b;

#define REFUSE(version, at, value, err, text) \
	do { \
		b = file_htok(&tiny, version); \
		set_u32(&b, at, value); \
		bad(vocab_read_htok, b, err, text); \
	} while (0)
	REFUSE(0, 0, 0x4b4f5448 + 1, -EPROTO, "f: does not begin with HTOK");
	REFUSE(0, 4, 1u << 21, -EFBIG, "f: says 2097152 tokens; there may be 256 to 1048576");
	REFUSE(3, 8, 255, -EFBIG, "f: says 255 tokens");
	REFUSE(0, 4, 1u << 20, -EPROTO, "f: says 1048576 tokens and 60 merges, for which its");
	REFUSE(0, 8, (1u << 22) + 1, -EFBIG, "f: says 4194305 merges");
	REFUSE(0, 8, 61, -EPROTO, "f: ends in its merges");
	REFUSE(0, 8, 59, -EPROTO, "f: 12 bytes follow where it should end");
	REFUSE(0, 12, 320, -EPROTO, "f: its bos is token 320, and there are 320");
	REFUSE(0, 16, 0x80000000, -EPROTO, "f: its eos is token 2147483648");
	/* What exporters wrote that did not find the right one. */
	REFUSE(0, 12, 1, -EPROTO, "f: its bos is token 1, '\"', which is ordinary text");
	b = file_htok(&tiny, 0);
	set_u32(&b, b.n - 8, 320);
	bad(vocab_read_htok, b, -EPROTO, "f: merge 59 names token 320, and there are 320");
	b = file_htok(&tiny, 0);
	set_u32(&b, b.n - merges, tiny.eot);
	bad(vocab_read_htok, b, -EPROTO, "f: merge 0 has to do with id 319");
	b = file_htok(&tiny, 0);
	set_u32(&b, b.n - merges + 8, 0);
	bad(vocab_read_htok, b, -EPROTO, "f: merge 0 of ids");
	b = file_htok(&tiny, 3);
	set_u32(&b, b.n - 4, 320);
	bad(vocab_read_htok, b, -EPROTO, "f: lists token 320 as special, and there are 320");
	b = file_htok(&tiny, 3);
	set_u32(&b, b.n - 20, 5);
	bad(vocab_read_htok, b, -EPROTO, "f: 16 bytes follow where the ids of its specials should");
	b = file_htok(&tiny, 0);
	b.p[20 + 5] = '!'; /* token 1, behind "!" with its length and the length of its own */
	bad(vocab_read_htok, b, -EPROTO, "f: token 1, '!', was there before");
	b = file_htok(&tiny, 0);
	buf_text(&b, "x");
	bad(vocab_read_htok, b, -EPROTO, "f: 1 bytes follow where it should end");
#undef REFUSE
}
END_TEST

/* If an empty token, a doubled merge or no bos at all were not what they are (trap 18). */
START_TEST(htok_oddities)
{
	struct buf b = { 0 };
	struct vocab *v;
	uint32_t ids[4];
	size_t at;

	b = file_htok(&tiny, 0);
	set_u32(&b, 12, VOCAB_NO_ID);
	set_u32(&b, 16, VOCAB_NO_ID);
	v = good(vocab_read_htok, b);
	same_as_tiny(v); /* by their names */
	vocab_free(v);

	/* The last special without a text: an id that is not used. */
	b = file_htok(&tiny, 0);
	at = b.n - tiny.n_words * 12u - tiny.token_len[tiny.eot];
	memmove(b.p + at, b.p + at + tiny.token_len[tiny.eot], tiny.n_words * 12u);
	b.n -= tiny.token_len[tiny.eot];
	b.p[at - 2] = 0;
	v = good(vocab_read_htok, b);
	ck_assert_uint_eq(v->tokens[tiny.eot].kind, VOCAB_UNUSED);
	ck_assert_uint_eq(v->n_stops, 1);
	vocab_free(v);

	/* Two merges of one pair: the first has it, whatever the second says. */
	b = file_htok(&tiny, 0);
	set_u32(&b, 8, tiny.n_words + 1);
	buf_put(&b, b.p + b.n - tiny.n_words * 12u, 12);
	v = good(vocab_read_htok, b);
	ck_assert_uint_eq(v->n_merges, tiny.n_words + 1);
	v->flags &= ~VOCAB_IGNORE_MERGES;
	{
		const struct vocab_token *t = &v->tokens[tiny.merge[0].merged];
		char text[64];

		memcpy(text, t->text, t->len);
		text[t->len] = 0;
		ck_assert_uint_eq(encode(v, text, ids, 4), 1);
		ck_assert_uint_eq(ids[0], tiny.merge[0].merged);
	}
	vocab_free(v);
}
END_TEST

static void rename_token(uint32_t id, const char *text)
{
	tiny.token_len[id] = (uint32_t)strlen(text);
	memcpy(tiny.token[id], text, tiny.token_len[id]);
}

/* If a vocabulary that is not Llama 3's were cut by Llama 3's rule (trap 21). */
START_TEST(htok_rules)
{
	struct vocab *v;

	rename_token(tiny.bos, "<|other|>");
	v = good(vocab_read_htok, file_htok(&tiny, 0));
	ck_assert_uint_eq(v->rule, VOCAB_RULE_LLAMA3);
	ck_assert_uint_eq(v->flags, VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS);
	vocab_free(v);
	rename_token(tiny.bos, "<|endoftext|>");
	v = good(vocab_read_htok, file_htok(&tiny, 0));
	ck_assert_uint_eq(v->rule, VOCAB_RULE_GPT2);
	ck_assert_uint_eq(v->flags, 0);
	vocab_free(v);
	rename_token(tiny.vocab - 2, "<|im_start|>");
	bad(vocab_read_htok, file_htok(&tiny, 3), -ENOTSUP, "f: is a vocabulary of Qwen's");
	/* A special of another form is one when it is listed, and only then. */
	rename_token(tiny.vocab - 2, "<fim_prefix>");
	v = good(vocab_read_htok, file_htok(&tiny, 3));
	ck_assert_uint_eq(v->rule, VOCAB_RULE_STARCODER);
	ck_assert_uint_eq(v->tokens[tiny.vocab - 2].kind, VOCAB_SPECIAL);
	vocab_free(v);
	rename_token(tiny.vocab - 2, "a b");
	bad(vocab_read_htok, file_htok(&tiny, 0), -EPROTO,
	    "f: token 318, 'a b', is not spelled in the 256");
	v = good(vocab_read_htok, file_htok(&tiny, 2));
	ck_assert_uint_eq(v->tokens[tiny.vocab - 2].kind, VOCAB_SPECIAL);
	vocab_free(v);
}
END_TEST

/* ---- cut off and damaged ------------------------------------------------------------------- */

/* If any beginning of a file passed for the file. */
START_TEST(truncated_everywhere)
{
	static const struct {
		reader *read;
		int kind;
	} formats[] = { { vocab_read_htok, 0 },
			{ vocab_read_htok, 3 },
			{ vocab_read_sentencepiece, -1 },
			{ vocab_read_json, -2 },
			{ vocab_read_ranks, -3 } };

	for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++) {
		int kind = formats[i].kind;
		struct buf b = kind == -1   ? file_spm(&spm_llama2)
			       : kind == -2 ? file_json(&tiny, &(struct parts){ 0 })
			       : kind == -3 ? file_ranks(&tiny)
					    : file_htok(&tiny, (uint32_t)kind);

		for (size_t len = 0; len < b.n; len++) {
			struct vocab *v;

			/* Whole lines of ranks are a smaller vocabulary; nothing in the file tells.
			 */
			if (kind == -3 && len > 256 * 7 && b.p[len - 1] == '\n')
				continue;
			ck_assert_msg(read_copy(formats[i].read, b.p, len, &v) < 0 && *why && !v,
				      "format %zu is accepted with %zu of %zu bytes", i, len, b.n);
		}
		buf_free(&b);
	}
}
END_TEST

static uint64_t scaled(uint64_t n)
{
	const char *s = getenv("ONEBIT_SCALE");
	uint64_t percent = s ? strtoull(s, NULL, 0) : 100;

	return n * percent / 100 ? n * percent / 100 : 1;
}

/* Flip bits, write bytes, cut, or put a part of it elsewhere. */
static void damage(struct buf *b, uint64_t *state)
{
	for (uint64_t left = 1 + tiny_random(state) % 4; left && b->n > 1; left--) {
		size_t at = tiny_random(state) % b->n, len;

		switch (tiny_random(state) % 8) {
		case 0:
			b->n = at + 1;
			break;
		case 1:
			len = tiny_random(state) % (b->n - at);
			memmove(b->p + tiny_random(state) % (b->n - len), b->p + at, len);
			break;
		case 2:
		case 3:
		case 4:
			b->p[at] = (char)tiny_random(state);
			break;
		default:
			b->p[at] = (char)(b->p[at] ^ 1 << tiny_random(state) % 8);
		}
	}
}

/* What is accepted after damage must still be a vocabulary that serves. */
static void judge(struct vocab *v)
{
	char said[256];

	ck_assert(v->n_tokens && v->n_tokens <= VOCAB_TOKENS_MAX && v->n_stops <= VOCAB_STOPS_MAX);
	ck_assert_msg(!vocab_check(v, v->n_tokens, said, sizeof(said)), "%s", said);
	vocab_free(v);
}

/* If damage led to a crash, or out of the file. */
START_TEST(corrupted)
{
	const char *text = getenv("ONEBIT_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL), state = seed;
	struct buf whole[] = { file_htok(&tiny, 0),
			       file_htok(&tiny, 3),
			       file_spm(&spm_llama2),
			       file_ranks(&tiny),
			       file_json(&tiny, &(struct parts){ .pairs = true }),
			       file_spm_json(LLAMA2_NORMALIZER, "null") };
	static reader *const read[] = { vocab_read_htok, vocab_read_htok, vocab_read_sentencepiece,
					vocab_read_ranks, vocab_read_json, vocab_read_json };

	for (size_t i = 0; i < sizeof(read) / sizeof(read[0]); i++) {
		uint64_t accepted = 0, n = scaled(5000);

		for (uint64_t k = 0; k < n; k++) {
			struct buf b = { 0 };
			struct vocab *v;
			int ret;

			buf_put(&b, whole[i].p, whole[i].n);
			damage(&b, &state);
			ret = read_copy(read[i], b.p, b.n, &v);
			ck_assert_msg(ret ? ret < 0 && *why && !v : !!v, "seed %llu: %d '%s'",
				      (unsigned long long)seed, ret, why);
			if (!ret) {
				judge(v);
				accepted++;
			}
			buf_free(&b);
		}
		printf("%llu of %llu damaged files of format %zu still a vocabulary (seed %llu)\n",
		       (unsigned long long)accepted, (unsigned long long)n, i,
		       (unsigned long long)seed);
		buf_free(&whole[i]);
	}
}
END_TEST

/* ---- by content, and folders --------------------------------------------------------------- */

static const char *path_of(const char *file)
{
	static char path[512];

	snprintf(path, sizeof(path), "%s/%s", getenv("TMPDIR"), file);
	return path;
}

static void save(const char *file, struct buf b)
{
	FILE *f = fopen(path_of(file), "wb");

	ck_assert_ptr_nonnull(f);
	ck_assert(!b.n || fwrite(b.p, 1, b.n, f) == b.n);
	ck_assert_int_eq(fclose(f), 0);
	buf_free(&b);
}

static void save_text(const char *file, const char *text)
{
	struct buf b = { 0 };

	buf_text(&b, text);
	save(file, b);
}

static struct buf write_model(void)
{
	const struct write_obm form = { .linear = PACKED_2BIT, .table = PACKED_INT8,
					.activation = OBM_ACT_RELU2 };
	struct buf b = { 0 };

	b.p = (char *)write_obm(&tiny, &form, &b.n);
	b.cap = b.n;
	return b;
}

/* If the name, not the content, said what a file is: two kinds are called tokenizer.model. */
START_TEST(by_content)
{
	const struct {
		struct buf b;
		uint32_t n;
	} kinds[] = { { file_htok(&tiny, 0), 320 },
		      { file_htok(&tiny, 3), 320 },
		      { file_json(&tiny, &(struct parts){ 0 }), 320 },
		      { file_ranks(&tiny), 572 },
		      { file_spm(&spm_llama2), 271 }, { write_model(), 320 } };
	struct vocab *v;

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		save("some file", kinds[i].b);
		ck_assert_msg(!vocab_read(path_of("some file"), 0, &v, why, sizeof(why)), "%s",
			      why);
		ck_assert_uint_eq(v->n_tokens, kinds[i].n);
		vocab_free(v);
		ck_assert_msg(
			!vocab_read(path_of("some file"), kinds[i].n + 64, &v, why, sizeof(why)),
			"%s", why);
		vocab_free(v);
		/*
		 * Of another model: an id would lie behind the embedding, or most of it be
		 * nobody's.
		 */
		ck_assert_int_eq(
			vocab_read(path_of("some file"), kinds[i].n - 1, &v, why, sizeof(why)),
			-EPROTO);
		ck_assert_ptr_nonnull(strstr(why, "it is another model's tokenizer"));
		ck_assert_int_eq(vocab_read(path_of("some file"), 32000, &v, why, sizeof(why)),
				 -EPROTO);
		ck_assert_ptr_nonnull(strstr(why, "the model 32000: it is another model's"));
	}
	save_text("some file", "nothing of the kind");
	ck_assert_int_eq(vocab_read(path_of("some file"), 0, &v, why, sizeof(why)), -EPROTO);
	ck_assert_ptr_nonnull(strstr(why, "is no tokenizer that is known here"));
	save_text("some file", "H1B");
	ck_assert_int_lt(vocab_read(path_of("some file"), 0, &v, why, sizeof(why)), 0);
	save("some file", (struct buf){ 0 });
	ck_assert_int_lt(vocab_read(path_of("some file"), 0, &v, why, sizeof(why)), 0);
	ck_assert_int_eq(vocab_read(path_of("no file"), 0, &v, why, sizeof(why)), -ENOENT);
}
END_TEST

static int read_folder(struct vocab **v)
{
	*why = 0;
	*v = NULL;
	return vocab_read_folder(getenv("TMPDIR"), 320, v, why, sizeof(why));
}

#define BITNET_TEMPLATE                                                                         \
	"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = " \
	"message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{{ "   \
	"content }}"                                                                            \
	"{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
#define LLAMA3_TEMPLATE                                                                            \
	"{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = "    \
	"'<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] " \
	"| trim + "                                                                                \
	"'<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif " \
	"%}"                                                                                       \
	"{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant"  \
	"<|end_header_id|>\\n\\n' }}{% endif %}"

/* If a template that only resembles one of ours were taken for it (trap 22). */
START_TEST(templates)
{
	static const struct {
		const char *text, *name;
	} known[] = {
		{ BITNET_TEMPLATE, "bitnet" },
		{ " \n" BITNET_TEMPLATE "\n", "bitnet" },
		{ "System: A chat.<|eot_id|>" BITNET_TEMPLATE, "" },
		{ LLAMA3_TEMPLATE, "llama3" },
		{ "{# Cutting Knowledge Date: #}" LLAMA3_TEMPLATE, "" },
		{ "{% if tools %}{% endif %}" LLAMA3_TEMPLATE, "" },
		{ "{% for m in messages %}{{ m }}{% endfor %}", "" },
		{ "story", "story" },
		{ "raw", "raw" },
		{ "llama3", "llama3" },
		{ "", "" },
		{ "{", "" },
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		ck_assert_msg(
			!strcmp(vocab_chat_of(known[i].text, strlen(known[i].text)), known[i].name),
			"%zu: '%s'", i, vocab_chat_of(known[i].text, strlen(known[i].text)));
}
END_TEST

/* If what the small files say of bos, stops and chat were not heard, or heard in another order. */
START_TEST(folder)
{
	struct vocab *v;

	ck_assert_int_eq(read_folder(&v), -ENOENT);
	ck_assert_ptr_nonnull(strstr(why, "has neither tokenizer.json nor tokenizer.model"));
	save("tokenizer.json", file_json(&tiny, &(struct parts){ 0 }));
	ck_assert_msg(!read_folder(&v), "%s", why);
	same_as_tiny(v);
	ck_assert_str_eq(why, "");
	ck_assert_str_eq(v->chat, "");
	vocab_free(v);

	save_text("special_tokens_map.json", "{\"bos_token\":\"<|start|>\",\"eos_token\":{"
					     "\"content\":"
					     "\"<|end_of_text|>\",\"lstrip\":false}}");
	save_text("tokenizer_config.json", "{\"bos_token\":\"<|begin_of_text|>\",\"add_bos_token\":"
					   "false,"
					   "\"eos_token\":\"<|eot_id|>\",\"chat_template\":"
					   "\"" BITNET_TEMPLATE "\"}");
	save_text("generation_config.json", "{\"eos_token_id\":[317,5],\"bos_token_id\":1}");
	ck_assert_msg(!read_folder(&v), "%s", why);
	ck_assert_str_eq(v->chat, "bitnet");
	ck_assert_uint_eq(v->bos, tiny.bos);
	ck_assert_uint_eq(v->eos, 317);
	ck_assert_uint_eq(v->n_stops, 3);
	ck_assert_uint_eq(v->stops[2], 5);
	ck_assert_uint_eq(v->flags, VOCAB_IGNORE_MERGES);
	vocab_free(v);

	save_text("generation_config.json", "{\"eos_token_id\":319}");
	save_text("chat_template.jinja", "{{ messages }}");
	ck_assert_msg(!read_folder(&v), "%s", why);
	ck_assert_uint_eq(v->eos, 319);
	ck_assert_str_eq(v->chat, "");
	ck_assert_ptr_nonnull(strstr(why, "chat_template.jinja: the chat template is none that is "
					  "known"));
	vocab_free(v);

	save_text("generation_config.json", "{\"eos_token_id\":[319,320]}");
	ck_assert_int_eq(read_folder(&v), -EPROTO);
	ck_assert_ptr_nonnull(strstr(why, "eos_token_id names token 320; the vocabulary has 0 to "
					  "319"));
	save_text("generation_config.json", "{\"eos_token_id\":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,"
					    "15,16]}");
	ck_assert_int_eq(read_folder(&v), -EFBIG);
	save_text("generation_config.json", "{}");
	save_text("tokenizer_config.json", "{\"eos_token\":\"</s>\"}");
	ck_assert_int_eq(read_folder(&v), -EPROTO);
	ck_assert_ptr_nonnull(strstr(why, "eos_token is '</s>', which is no special token"));
	save_text("tokenizer_config.json", "{\"a\":1,\"a\":2}");
	ck_assert_int_eq(read_folder(&v), -EPROTO);
	ck_assert_ptr_nonnull(strstr(why, "tokenizer_config.json: is not JSON"));
	save_text("tokenizer_config.json", "[]");
	ck_assert_int_eq(read_folder(&v), -EPROTO);
	save_text("tokenizer_config.json",
		  "{\"chat_template\":[{\"name\":\"tool\",\"template\":\"x\"},"
		  "{\"name\":\"default\",\"template\":\"" BITNET_TEMPLATE "\"}]}");
	ck_assert_int_eq(remove(path_of("chat_template.jinja")), 0);
	ck_assert_msg(!read_folder(&v), "%s", why);
	ck_assert_str_eq(v->chat, "bitnet");
	vocab_free(v);
}
END_TEST

/* If a tokenizer.json of an unknown form hid the tokenizer.model that it was made from. */
START_TEST(folder_of_sentencepiece)
{
	struct vocab *v;

	save("tokenizer.json", file_json(&tiny, &(struct parts){ .normalizer = "{\"type\":"
										"\"NFKC\"}" }));
	ck_assert_int_eq(read_folder(&v), -ENOTSUP);
	ck_assert_ptr_nonnull(strstr(why, "tokenizer.json: normalizer = "));
	save("tokenizer.model", file_spm(&spm_llama2));
	save_text("added_tokens.json", "{\"</line>\":272,\"<pad>\":271,\"<s>\":1}");
	save_text("special_tokens_map.json", "{\"bos_token\":\"<s>\",\"pad_token\":\"<pad>\"}");
	ck_assert_msg(!read_folder(&v), "%s", why);
	ck_assert_uint_eq(v->n_tokens, 273);
	ck_assert_uint_eq(v->tokens[271].kind, VOCAB_SPECIAL);
	ck_assert(!memcmp(v->tokens[272].text, "</line>", 7));
	vocab_free(v);
	save_text("added_tokens.json", "{\"</line>\":273,\"<pad>\":271}");
	ck_assert_int_eq(read_folder(&v), -EPROTO);
	ck_assert_ptr_nonnull(strstr(why, "'</line>' has id 273, where 272 comes next"));
	save_text("added_tokens.json", "{\"<pad>\":\"x\"}");
	ck_assert_int_eq(read_folder(&v), -EPROTO);
	ck_assert_ptr_nonnull(strstr(why, "'<pad>' has no id"));
	/* A damaged one is not passed over: it is the model's own. */
	save_text("tokenizer.json", "{");
	ck_assert_int_eq(read_folder(&v), -EPROTO);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("vocab_read");
	TCase *json = tcase_create("json"), *other = tcase_create("other"),
	      *files = tcase_create("files");
	SRunner *r = srunner_create(s);
	int failed;

	setvbuf(stdout, NULL, _IOLBF, 0);
	tcase_add_checked_fixture(json, set_up, tear_down);
	tcase_add_test(json, json_is_exact);
	tcase_add_test(json, json_rules);
	tcase_add_test(json, json_of_neox);
	tcase_add_test(json, json_refused);
	tcase_add_test(json, json_ids);
	tcase_add_test(json, json_depth);
	suite_add_tcase(s, json);
	tcase_add_checked_fixture(other, set_up, tear_down);
	tcase_add_test(other, spm_is_exact);
	tcase_add_test(other, spm_refused);
	tcase_add_test(other, spm_wire);
	tcase_add_test(other, ranks_are_exact);
	tcase_add_test(other, ranks_refused);
	tcase_add_test(other, htok_is_exact);
	tcase_add_test(other, htok_numbers);
	tcase_add_test(other, htok_oddities);
	tcase_add_test(other, htok_rules);
	tcase_add_test(other, truncated_everywhere);
	tcase_add_test(other, corrupted);
	suite_add_tcase(s, other);
	tmp_fixture(files);
	tcase_add_checked_fixture(files, set_up, tear_down);
	tcase_add_test(files, by_content);
	tcase_add_test(files, templates);
	tcase_add_test(files, folder);
	tcase_add_test(files, folder_of_sentencepiece);
	suite_add_tcase(s, files);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

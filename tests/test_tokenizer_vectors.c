/* SPDX-License-Identifier: MIT */
/*
 * The tokenizers that models were trained with, against vectors that others published, and more
 * made by an independent tokenizer that agrees with those. The vocabularies are not ours to ship;
 * without the shared data there is nothing here to test.
 */
#include <check.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_vocab.h"

enum { TEXT_MAX = 1 << 16 };

static struct tokenizer_scratch *scratch;
static uint32_t ids[TEXT_MAX];
static char back[4 * TEXT_MAX];

/* The ids of a text, and the text of the ids. */
static void compare(struct tokenizer *t, const char *text, size_t len, unsigned flags,
		    const uint32_t *want, size_t n_want, bool and_back)
{
	struct detok d;
	size_t n = 0, got = 0;

	ck_assert_int_eq(tokenizer_encode(t, scratch, text, len, flags, ids, TEXT_MAX, &n), 0);
	for (size_t i = 0; i < n && i < n_want; i++)
		ck_assert_msg(ids[i] == want[i], "token %zu of \"%s\" is %u, not %u", i, text,
			      ids[i], want[i]);
	ck_assert_msg(n == n_want, "%zu tokens of \"%s\", not %zu", n, text, n_want);
	if (!and_back)
		return;
	detok_init(&d, t);
	d.specials = flags & TOKENIZER_SPECIAL;
	for (size_t i = 0; i < n; i++)
		got += detok_push(&d, t, ids[i], back + got);
	got += detok_flush(&d, back + got);
	ck_assert_uint_eq(got, len);
	ck_assert_mem_eq(back, text, len);
}

static unsigned compare_lines(struct tokenizer *t, const char *name)
{
	uint32_t want[4096];
	unsigned n_lines = 0;
	size_t len;
	char *data = (char *)shared_read(name, &len), *line, *save;

	ck_assert_ptr_nonnull(data);
	for (line = strtok_r(data, "\n", &save); line;
	     line = strtok_r(NULL, "\n", &save), n_lines++) {
		json_t *j = json_loads(line, JSON_ALLOW_NUL, NULL),
		       *list = json_object_get(j, "ids");
		const json_t *text = json_object_get(j, "text");
		bool special = json_is_true(json_object_get(j, "special"));
		size_t n = json_array_size(list);

		ck_assert(j && n <= 4096 && json_string_length(text) < TEXT_MAX);
		for (size_t i = 0; i < n; i++)
			want[i] = (uint32_t)json_integer_value(json_array_get(list, i));
		compare(t, json_string_value(text), json_string_length(text),
			special ? TOKENIZER_SPECIAL : 0, want, n, true);
		json_decref(j);
	}
	free(data);
	return n_lines;
}

/* .inp and .out: texts between lines of their own, and a line of ids for each. */
static unsigned compare_ggml(struct tokenizer *t, const char *stem)
{
	static const char between[] = "\n__ggml_vocab_test__\n";
	char name[64];
	uint32_t want[4096];
	size_t len;
	unsigned n_texts = 0;
	char *in, *out, *text, *line;

	snprintf(name, sizeof(name), "%s.inp", stem);
	in = (char *)shared_read(name, &len);
	snprintf(name, sizeof(name), "%s.out", stem);
	out = (char *)shared_read(name, &len);
	ck_assert(in && out);
	for (text = in, line = out; text; n_texts++) {
		char *end = strstr(text, between), *stop = strchr(line, '\n');
		size_t n = 0;

		/* The last text, an empty one, has neither a mark nor a line's end behind it. */
		if (!end) {
			ck_assert(!*text && !*line);
			n_texts++;
			break;
		}
		while (line < stop)
			want[n++] = (uint32_t)strtoul(line, &line, 10);
		*end = 0;
		compare(t, text, (size_t)(end - text), 0, want, n, true);
		text = end + sizeof(between) - 1;
		line = stop + 1;
	}
	free(in);
	free(out);
	return n_texts;
}

static struct tokenizer *open_shared(struct vocab *v, void **section, const char *what)
{
	struct tokenizer *t;
	size_t bytes;

	if (!v) {
		printf("skip: %s, because the shared tokenizer data is not there\n", what);
		return NULL;
	}
	t = open_vocab(v, section, &bytes);
	scratch = tokenizer_scratch_new(TEXT_MAX);
	ck_assert_ptr_nonnull(scratch);
	vocab_free(v);
	return t;
}

static void close_shared(struct tokenizer *t, void *section)
{
	tokenizer_close(t);
	tokenizer_scratch_free(scratch);
	free(section);
}

/* Breaks when Llama 3's text becomes other tokens than the model was trained with. */
START_TEST(llama3)
{
	void *section;
	struct tokenizer *t = open_shared(shared_llama3(), &section, "Llama 3's vectors");

	if (!t)
		return;
	ck_assert_uint_eq(tokenizer_facts(t)->n_merges, 280147);
	ck_assert_uint_eq(compare_lines(t, "llama3-vectors-published.jsonl"), 62);
	ck_assert_uint_eq(compare_lines(t, "llama3-vectors-oracle.jsonl"), 500);
	ck_assert_uint_eq(compare_ggml(t, "ggml-vocab-llama-bpe.gguf"), 47);
	close_shared(t, section);
}
END_TEST

/* Breaks when special tokens come from text that was not to have any, or not where they should. */
START_TEST(llama3_specials)
{
	static const char text[] = "<|eot_id|>x<|begin_of_text|><|eot_id|";
	static const uint32_t special[] = { 128009, 87, 128000, 27, 91, 68, 354, 851, 91 };
	void *section;
	struct tokenizer *t = open_shared(shared_llama3(), &section, "Llama 3's special tokens");
	size_t n;

	if (!t)
		return;
	ck_assert_int_eq(tokenizer_encode(t, scratch, text, sizeof(text) - 1, TOKENIZER_SPECIAL,
					  ids, TEXT_MAX, &n),
			 0);
	ck_assert_uint_eq(ids[0], special[0]);
	ck_assert_uint_eq(ids[2], special[2]);
	ck_assert_int_eq(tokenizer_encode(t, scratch, text, sizeof(text) - 1, 0, ids, TEXT_MAX, &n),
			 0);
	for (size_t i = 0; i < n; i++)
		ck_assert_uint_lt(ids[i], 128000);
	ck_assert_uint_eq(tokenizer_special(t, "<|eot_id|>", 10), 128009);
	ck_assert_uint_eq(tokenizer_special(t, "<|eot_id|", 9), VOCAB_NO_ID);
	ck_assert_uint_eq(tokenizer_special(t, "Hello", 5), VOCAB_NO_ID);
	close_shared(t, section);
}
END_TEST

/* Breaks when a vocabulary with a list of merges is not followed: GPT-2's rule. */
START_TEST(gpt2)
{
	void *section;
	struct tokenizer *t = open_shared(shared_gguf("ggml-vocab-gpt-2.gguf.xz", VOCAB_RULE_GPT2),
					  &section, "GPT-2's vectors");

	if (!t)
		return;
	ck_assert_uint_eq(tokenizer_facts(t)->n_merges, 50000);
	ck_assert_uint_eq(compare_ggml(t, "ggml-vocab-gpt-2.gguf"), 47);
	close_shared(t, section);
}
END_TEST

/* The same for StarCoder's, where each digit stands alone. */
START_TEST(starcoder)
{
	void *section;
	struct tokenizer *t =
		open_shared(shared_gguf("ggml-vocab-starcoder.gguf.xz", VOCAB_RULE_STARCODER),
			    &section, "StarCoder's vectors");

	if (!t)
		return;
	ck_assert_uint_eq(tokenizer_facts(t)->n_merges, 48872);
	ck_assert_uint_eq(compare_ggml(t, "ggml-vocab-starcoder.gguf"), 47);
	close_shared(t, section);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("tokenizer vectors");
	TCase *c = tcase_create("vectors");
	SRunner *r;
	int failed;

	tcase_add_test(c, llama3);
	tcase_add_test(c, llama3_specials);
	tcase_add_test(c, gpt2);
	tcase_add_test(c, starcoder);
	suite_add_tcase(s, c);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

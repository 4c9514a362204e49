/* SPDX-License-Identifier: MIT */
/*
 * Vocabularies as readers fill them in: spellings of bytes, lookups, derived merges, what is
 * refused and in which words, and the section that is built of them.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_vocab.h"

#define NORMAL (1u << VOCAB_NORMAL)

static char why[256];

/* Breaks when a byte is spelled otherwise than in the files that peers write. */
START_TEST(printable_bytes)
{
	unsigned next = 0x100;

	for (unsigned b = 0; b < 256; b++) {
		bool itself = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
		unsigned c = itself ? b : next++;
		uint8_t byte = (uint8_t)b, back;
		char text[2];
		size_t n = vocab_map(&byte, 1, text);

		ck_assert_uint_eq(n, c < 0x80 ? 1 : 2);
		if (n == 1)
			ck_assert_uint_eq((uint8_t)text[0], c);
		else
			ck_assert_uint_eq((text[0] & 0x1fu) << 6 | (text[1] & 0x3fu), c);
		ck_assert_int_eq(vocab_unmap(text, n, &back), 1);
		ck_assert_uint_eq(back, b);
	}
	ck_assert_uint_eq(next, 0x100 + 68);
	ck_assert_int_eq(vocab_unmap("", 0, NULL), 0);
}
END_TEST

/* Breaks when what is no spelling of bytes is taken for one. */
START_TEST(unprintable)
{
	static const char *const bad[] = {
		" ",	"a b",		"\xc2\xa0", "\xc2\xad", "\xc5\x84", "\xc4", "\x80",
		"\xc3", "\xe2\x96\x81", "\xc0\x80", "\xc1\xa1", "\xc4\xc4", "\n",   "\x7f"
	};
	uint8_t out[8];

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		ck_assert_msg(vocab_unmap(bad[i], strlen(bad[i]), out) == -EILSEQ, "spelling %zu",
			      i);
}
END_TEST

/* Breaks when a text is not found, or one of a kind that was not asked for. */
START_TEST(finding)
{
	struct vocab *v = vocab_new();
	char text[16];

	for (unsigned i = 0; i < 20000; i++) {
		snprintf(text, sizeof(text), "t%u", i);
		ck_assert(vocab_add(v, text, strlen(text), VOCAB_NORMAL, 0) == 0);
		/* An index that was used already grows with it. */
		if (i % 1000 == 0)
			ck_assert_uint_eq(vocab_find(v, text, strlen(text), NORMAL), i);
	}
	for (unsigned i = 0; i < 20000; i += 7) {
		snprintf(text, sizeof(text), "t%u", i);
		ck_assert_uint_eq(vocab_find(v, text, strlen(text), NORMAL), i);
	}
	ck_assert(vocab_add(v, "t5", 2, VOCAB_SPECIAL, 0) == 0);
	ck_assert(vocab_add(v, "", 0, VOCAB_UNUSED, 0) == 0);
	ck_assert_uint_eq(vocab_find(v, "t5", 2, NORMAL), 5);
	ck_assert_uint_eq(vocab_find(v, "t5", 2, 1u << VOCAB_SPECIAL), 20000);
	ck_assert_uint_eq(vocab_find(v, "t5", 2, UINT32_MAX), 5);
	ck_assert_uint_eq(vocab_find(v, "t5", 2, 1u << VOCAB_BYTE), VOCAB_NO_ID);
	ck_assert_uint_eq(vocab_find(v, "t20001", 6, NORMAL), VOCAB_NO_ID);
	ck_assert_uint_eq(vocab_find(v, "", 0, UINT32_MAX), VOCAB_NO_ID);
	/* A kind that a reader learns later counts. */
	v->tokens[5].kind = VOCAB_UNUSED;
	ck_assert_uint_eq(vocab_find(v, "t5", 2, NORMAL), VOCAB_NO_ID);
	vocab_free(v);
}
END_TEST

/* Breaks when a bound is passed, or a full list of stops forgets one. */
START_TEST(bounds)
{
	static const uint8_t text[VOCAB_TOKEN_BYTES_MAX + 1];
	struct vocab *v = vocab_new();

	ck_assert_int_eq(vocab_add(v, text, VOCAB_TOKEN_BYTES_MAX + 1, VOCAB_NORMAL, 0), -EFBIG);
	ck_assert_int_eq(vocab_add(v, text, VOCAB_TOKEN_BYTES_MAX, VOCAB_NORMAL, 0), 0);
	while (v->n_tokens < VOCAB_TOKENS_MAX)
		if (vocab_add(v, "x", 1, VOCAB_NORMAL, 0))
			ck_abort_msg("token %u", v->n_tokens);
	ck_assert_int_eq(vocab_add(v, "x", 1, VOCAB_NORMAL, 0), -EFBIG);
	/* A million of one text are no reason to take long. */
	ck_assert_uint_eq(vocab_find(v, "x", 1, NORMAL), 1);
	ck_assert_uint_eq(vocab_find(v, "x", 1, 1u << VOCAB_SPECIAL), VOCAB_NO_ID);
	for (uint32_t i = 0; i < VOCAB_STOPS_MAX; i++)
		ck_assert_int_eq(vocab_stop(v, i), 0);
	ck_assert_int_eq(vocab_stop(v, 3), 0);
	ck_assert_int_eq(vocab_stop(v, VOCAB_STOPS_MAX), -EFBIG);
	ck_assert_uint_eq(v->n_stops, VOCAB_STOPS_MAX);
	vocab_free(v);
	ck_assert_ptr_null(vocab_free(NULL));
}
END_TEST

/* Breaks when a split of an entry is missed, or is one of something else. */
START_TEST(derived_by_id)
{
	uint64_t rng = test_seed("derive");
	struct vocab *v = small_bytes(&rng, 300, VOCAB_RULE_LLAMA3, VOCAB_IGNORE_MERGES);
	uint32_t n = 0;

	v->n_merges = 0;
	ck_assert_int_eq(vocab_derive_by_id(v, why, sizeof(why)), 0);
	for (uint32_t id = 0; id < v->n_tokens; id++) {
		const struct vocab_token *t = &v->tokens[id];

		for (uint32_t cut = 1; cut < t->len && t->kind == VOCAB_NORMAL; cut++) {
			uint32_t a = vocab_find(v, t->text, cut, NORMAL);
			uint32_t b = vocab_find(v, t->text + cut, t->len - cut, NORMAL);

			if (a == VOCAB_NO_ID || b == VOCAB_NO_ID)
				continue;
			ck_assert_uint_lt(n, v->n_merges);
			ck_assert_uint_eq(v->merges[n].a, a);
			ck_assert_uint_eq(v->merges[n].b, b);
			ck_assert_uint_eq(v->merges[n].merged, id);
			ck_assert_uint_eq(v->merges[n++].rank, id);
		}
	}
	ck_assert_uint_eq(n, v->n_merges);
	vocab_free(v);
}
END_TEST

/* Breaks when scores are followed upside down, equal ones are not equal, or NaN is one. */
START_TEST(derived_by_score)
{
	struct vocab *v = vocab_new();
	static const struct {
		const char *text;
		float score;
	} token[] = {
		{ "a", 0 }, { "b", 0 }, { "ab", -2 }, { "ba", -1 }, { "aba", -2 }, { "xb", -7 },
	};

	v->kind = VOCAB_SPM;
	for (int i = 0; i < 6; i++)
		ck_assert(vocab_add(v, token[i].text, strlen(token[i].text), VOCAB_NORMAL,
				    token[i].score) == 0);
	ck_assert_int_eq(vocab_derive_by_score(v, why, sizeof(why)), 0);
	ck_assert_uint_eq(v->n_merges, 5);
	ck_assert_uint_eq(v->merges[0].merged, 3);
	ck_assert_uint_eq(v->merges[0].rank, 0);
	ck_assert_uint_eq(v->merges[1].merged, 2);
	ck_assert_uint_eq(v->merges[2].merged, 4);
	ck_assert_uint_eq(v->merges[1].rank, v->merges[2].rank);
	ck_assert_uint_eq(v->merges[4].a, VOCAB_HIDDEN);
	ck_assert_uint_eq(v->merges[4].b, 1);
	v->n_merges = 0;
	v->tokens[3].score = NAN;
	ck_assert_int_eq(vocab_derive_by_score(v, why, sizeof(why)), -EPROTO);
	ck_assert_ptr_nonnull(strstr(why, "token 3"));
	vocab_free(v);
}
END_TEST

/* One thing is wrong, the rest is right; the sentence says which. */
static void refused(struct vocab *v, uint32_t vocab_size, const char *words)
{
	void *section = NULL;
	size_t bytes;

	*why = 0;
	ck_assert_int_eq(vocab_check(v, vocab_size, why, sizeof(why)), -EPROTO);
	ck_assert_msg(strstr(why, words), "\"%s\" does not say \"%s\"", why, words);
	ck_assert_int_eq(vocab_build(v, vocab_size, &section, &bytes, why, sizeof(why)), -EPROTO);
	ck_assert_ptr_null(section);
}

/* Breaks when a vocabulary that cannot serve its model is let through (traps 18, 19). */
START_TEST(refusals)
{
	struct vocab *v = small_bytes(&(uint64_t){ 5 }, 20, VOCAB_RULE_LLAMA3, 0);
	struct vocab_token saved = v->tokens[9];
	struct vocab_merge merge = v->merges[7];
	uint32_t n = v->n_tokens;

#define WRONG(field, value, size, words)                                  \
	do {                                                              \
		__typeof__(field) was_ = field;                           \
		field = value;                                            \
		refused(v, size, words);                                  \
		field = was_;                                             \
		ck_assert_int_eq(vocab_check(v, n, why, sizeof(why)), 0); \
	} while (0)
	WRONG(v->kind, 3, n, "kind 3");
	WRONG(v->rule, VOCAB_RULE_COUNT, n, "rule 4");
	WRONG(v->flags, VOCAB_FLAGS_ALL + 1, n, "flags 0x10");
	WRONG(v->flags, VOCAB_DUMMY_PREFIX, n, "flags 0x2");
	WRONG(v->bos, n, n, "(bos)");
	WRONG(v->eos, n, n, "(eos)");
	WRONG(v->unk, n, n, "(unk)");
	WRONG(v->stops[0], n, n, "ends an answer");
	WRONG(v->n_stops, VOCAB_STOPS_MAX + 1, n, "17 tokens end an answer");
	WRONG(v->n_tokens, 0, n, "empty");
	WRONG(v->tokens[9].kind, VOCAB_KINDS, n, "token 9 is of kind 5");
	WRONG(v->tokens[9].kind, VOCAB_BYTE, n, "token 9 stands for a byte");
	WRONG(v->tokens[9].kind, VOCAB_UNUSED, n, "no token stands for byte");
	WRONG(v->tokens[9].len, 0, n, "token 9 is to be found in text, but has no text");
	WRONG(v->tokens[n - 1].len, 0, n, "is special, but has no text");
	WRONG(v->tokens[9].len, VOCAB_TOKEN_BYTES_MAX + 1, n, "token 9 has 4097 bytes");
	WRONG(v->tokens[9].score, INFINITY, n, "score inf");
	WRONG(v->merges[7].a, n, n, "merge 7 names id");
	WRONG(v->merges[7].b, VOCAB_HIDDEN, n, "merge 7 names id");
	WRONG(v->merges[7].merged, n, n, "merge 7 names id");
	WRONG(v->merges[7].merged, n - 1, n, "no text may become");
	WRONG(v->merges[7].a, v->merges[7].a + 1, n, "not theirs put together");
	WRONG(v->merges[7].rank, UINT32_MAX, n, "no rank");
	refused(v, n - 1, "another model's");
	refused(v, VOCAB_TOKENS_MAX + 1, "at most");
	memset(v->chat, 'x', sizeof(v->chat));
	refused(v, n, "template's name");
	memset(v->chat, 0, sizeof(v->chat));
	ck_assert_mem_eq(&saved, &v->tokens[9], sizeof(saved));
	ck_assert_mem_eq(&merge, &v->merges[7], sizeof(merge));
	vocab_free(v);
	v = small_spm(&(uint64_t){ 5 }, 20, false, 0);
	n = v->n_tokens;
	WRONG(v->unk, VOCAB_NO_ID, n, "no token for what is unknown");
	WRONG(v->rule, VOCAB_RULE_GPT2, n, "rule 2");
	WRONG(v->flags, VOCAB_IGNORE_MERGES, n, "flags 0x1");
	vocab_free(v);
}
END_TEST

/* Breaks when one vocabulary gives two sections, or a section loses some of it. */
START_TEST(sections)
{
	uint64_t rng = test_seed("sections");

	for (int i = 0; i < 12; i++) {
		struct vocab *v = i % 3 ? small_bytes(&rng, 100, (uint32_t)i % 4, 0)
					: small_spm(&rng, 100, i % 2, VOCAB_DUMMY_PREFIX),
			     *back;
		void *one, *two, *three;
		size_t n_one, n_two, n_three;
		uint32_t size = v->n_tokens + (uint32_t)i * 10;
		struct tokenizer *t;

		strcpy(v->chat, "raw");
		ck_assert_int_eq(vocab_build(v, size, &one, &n_one, why, sizeof(why)), 0);
		ck_assert_int_eq(vocab_build(v, size, &two, &n_two, why, sizeof(why)), 0);
		ck_assert_uint_eq(n_one, n_two);
		ck_assert_mem_eq(one, two, n_one);
		ck_assert_int_eq(tokenizer_open(one, n_one, &t, why, sizeof(why)), 0);
		ck_assert_uint_eq(tokenizer_facts(t)->n_tokens, size);
		ck_assert_uint_eq(tokenizer_facts(t)->n_merges, v->n_merges);
		ck_assert_uint_eq(tokenizer_facts(t)->eos, v->eos);
		ck_assert_str_eq(tokenizer_facts(t)->chat, "raw");
		for (uint32_t id = 0; id < v->n_tokens; id++) {
			struct tokenizer_token token = tokenizer_token(t, id);

			ck_assert_uint_eq(token.kind, v->tokens[id].kind);
			ck_assert_uint_eq(token.len, v->tokens[id].len);
			ck_assert_mem_eq(token.text, v->tokens[id].text, token.len);
		}
		if (size > v->n_tokens)
			ck_assert_uint_eq(tokenizer_token(t, size - 1).kind, VOCAB_UNUSED);
		tokenizer_close(t);
		ck_assert_int_eq(vocab_from_section(one, n_one, &back, why, sizeof(why)), 0);
		ck_assert_uint_eq(back->n_tokens, size);
		ck_assert_int_eq(vocab_build(back, size, &three, &n_three, why, sizeof(why)), 0);
		ck_assert_uint_eq(n_one, n_three);
		ck_assert_mem_eq(one, three, n_one);
		for (int k = 0; k < 200; k++)
			ck_assert_int_eq(tokenizer_open(one, n_one * (unsigned)k / 200, &t, why,
							sizeof(why)),
					 -EPROTO);
		vocab_free(back);
		vocab_free(v);
		free(one);
		free(two);
		free(three);
	}
}
END_TEST

/* Breaks when the second of two merges of one pair wins. */
START_TEST(first_merge_wins)
{
	struct vocab *v = small_bytes(&(uint64_t){ 6 }, 0, 0, 0);
	uint32_t a = vocab_find(v, "a", 1, NORMAL), b = vocab_find(v, "b", 1, NORMAL), ids[4];
	struct tokenizer_scratch *s = tokenizer_scratch_new(10);
	uint32_t ab = v->n_tokens;
	struct tokenizer *t;
	void *section;
	size_t bytes, n;

	ck_assert(vocab_add(v, "ab", 2, VOCAB_NORMAL, 0) == 0 &&
		  vocab_add(v, "ab", 2, VOCAB_NORMAL, 0) == 0);
	ck_assert(vocab_merge(v, a, b, ab + 1) == 0 && vocab_merge(v, a, b, ab) == 0);
	t = open_vocab(v, &section, &bytes);
	ck_assert_uint_eq(tokenizer_facts(t)->n_merges, 1);
	ck_assert_int_eq(tokenizer_encode(t, s, "abab", 4, 0, ids, 4, &n), 0);
	ck_assert_uint_eq(n, 2);
	ck_assert_uint_eq(ids[0], ab + 1);
	tokenizer_close(t);
	tokenizer_scratch_free(s);
	free(section);
	vocab_free(v);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("vocab");
	TCase *c = tcase_create("vocab");
	SRunner *r;
	int failed;

	tcase_add_test(c, printable_bytes);
	tcase_add_test(c, unprintable);
	tcase_add_test(c, finding);
	tcase_add_test(c, bounds);
	tcase_add_test(c, derived_by_id);
	tcase_add_test(c, derived_by_score);
	tcase_add_test(c, refusals);
	tcase_add_test(c, sections);
	tcase_add_test(c, first_merge_wins);
	suite_add_tcase(s, c);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

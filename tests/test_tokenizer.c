/* SPDX-License-Identifier: MIT */
/*
 * Encoding and decoding with small vocabularies whose entries, ranks and scores are random, against
 * the definition of merging (lib_vocab.c), which is slow and plain. Then what can be done to a
 * tokenizer: text that looks like special tokens, buffers that are too small, sections that are
 * damaged.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_vocab.h"
#include "pretok.h"

enum { TEXT_MAX = 1 << 16 };

static struct tokenizer_scratch *scratch;
static uint32_t ids[TEXT_MAX], want[TEXT_MAX];
static uint64_t rng;

static void setup(void)
{
	scratch = tokenizer_scratch_new(TEXT_MAX - 8);
	ck_assert_ptr_nonnull(scratch);
}

static void teardown(void)
{
	scratch = tokenizer_scratch_free(scratch);
}

/* Of what the small vocabularies' words are made, and of what they are not. */
static size_t random_text(uint8_t *out, size_t max, bool spm)
{
	static const char *const part[] = { "a",
					    "b",
					    "e",
					    "n",
					    " ",
					    "  ",
					    "1",
					    "'",
					    "\n",
					    "\xc3\xa9",
					    "\xe4\xbd\xa0",
					    "\xf0\x9f\xa6\x99",
					    "x",
					    "\xc3\xa8",
					    "ax\xc3\xa8",
					    "\xe2\x96\x81",
					    "Q",
					    "\x80",
					    "\xf0\x9f",
					    "",
					    "<s>" };
	size_t len = 0, target = test_random(&rng) % max;

	while (len + 8 < target) {
		uint64_t r = test_random(&rng);
		const char *p = part[(r >> 32) % (r % 4 ? 9 : sizeof(part) / sizeof(part[0]))];

		if (!spm && r % 64 == 0) {
			out[len++] = (uint8_t)(r >> 8);
			continue;
		}
		memcpy(out + len, p, strlen(p));
		len += strlen(p);
	}
	return len;
}

/* What the whole tokenizer is to give, piece by piece from the definition. */
static size_t reference(struct vocab *v, const uint8_t *p, size_t len, bool prefix)
{
	static uint8_t text[3 * TEXT_MAX];
	size_t n = 0, at = 0;

	if (v->kind == VOCAB_SPM) {
		text[0] = ' ';
		at = prefix && len;
		for (size_t i = 0; i < len; at++) {
			bool space = len - i >= 3 && memcmp(p + i, "\xe2\x96\x81", 3) == 0;

			text[at] = space ? ' ' : p[i];
			i += space ? 3 : 1;
		}
		return reference_piece(v, text, at, want);
	}
	while (at < len) {
		size_t piece = pretok_next(v->rule, p + at, len - at);
		uint32_t id = vocab_find(v, p + at, piece, 1u << VOCAB_NORMAL);

		if (v->flags & VOCAB_IGNORE_MERGES && id != VOCAB_NO_ID)
			want[n++] = id;
		else
			n += reference_piece(v, p + at, piece, want + n);
		at += piece;
	}
	return n;
}

static void compare(struct vocab *v, const struct tokenizer *t, const uint8_t *text, size_t len,
		    unsigned flags)
{
	bool prefix = v->flags & VOCAB_DUMMY_PREFIX && !(flags & TOKENIZER_CONTINUE);
	size_t at, n, n_want = reference(v, text, len, prefix);
	int err = tokenizer_encode(t, scratch, (const char *)text, len, flags, ids, TEXT_MAX, &n);

	if (!err && n == n_want && !memcmp(ids, want, n * sizeof(ids[0])))
		return;
	for (at = 0; at < n && at < n_want && ids[at] == want[at]; at++)
		;
	printf("kind %u, rule %u, flags %#x; encoding %#x gives %d, %zu tokens, not %zu, the first "
	       "that differs "
	       "is %zu, of",
	       v->kind, v->rule, v->flags, flags, err, n, n_want, at);
	for (size_t i = 0; i < len; i++)
		printf(" %02x", text[i]);
	printf("\n");
	ck_abort_msg("other tokens than the definition gives");
}

static void compare_many(struct vocab *v, uint64_t n_texts)
{
	uint8_t text[3000];
	void *section;
	size_t bytes;
	struct tokenizer *t = open_vocab(v, &section, &bytes);

	for (; n_texts; n_texts--) {
		size_t max = n_texts % 200 ? 60 : n_texts % 400 ? 400 : sizeof(text);
		size_t len = random_text(text, max, v->kind == VOCAB_SPM);

		compare(v, t, text, len, n_texts % 5 ? 0 : TOKENIZER_CONTINUE);
	}
	tokenizer_close(t);
	free(section);
	vocab_free(v);
}

/* Breaks when merging, the words' table or a cut at a joint changes a text's tokens: byte-level. */
START_TEST(bytes_by_definition)
{
	rng = test_seed("bytes");
	for (uint64_t i = test_scaled(40); i; i--)
		for (uint32_t rule = 0; rule < VOCAB_RULE_COUNT; rule++)
			compare_many(small_bytes(&rng, (uint32_t)(test_random(&rng) % 200), rule,
						 i % 2 ? VOCAB_IGNORE_MERGES : 0),
				     400);
}
END_TEST

/* The same for SentencePiece: equal scores, unknown code points, code points without an entry. */
START_TEST(spm_by_definition)
{
	rng = test_seed("spm");
	for (uint64_t i = test_scaled(100); i; i--)
		compare_many(small_spm(&rng, (uint32_t)(test_random(&rng) % 150), i % 3,
				       i % 2 ? VOCAB_DUMMY_PREFIX : 0),
			     400);
}
END_TEST

/* Breaks when a long piece is merged differently from a short one; and no time is told here. */
START_TEST(long_runs)
{
	static uint8_t text[4000];
	const char *const unit[] = { "a", " ", "ab", "1", "aab", "\xe4\xbd\xa0", "x", "\x80" };

	rng = test_seed("runs");
	for (int kind = 0; kind < 2; kind++) {
		struct vocab *v =
			kind ? small_spm(&rng, 150, true, 0) : small_bytes(&rng, 200, 0, 0);
		void *section;
		size_t bytes;
		struct tokenizer *t = open_vocab(v, &section, &bytes);

		for (size_t u = 0; u < sizeof(unit) / sizeof(unit[0]); u++) {
			size_t len = 0, n = strlen(unit[u]);

			for (; len + n <= 1200; len += n)
				memcpy(text + len, unit[u], n);
			compare(v, t, text, len, 0);
			compare(v, t, text, len - 1, 0);
		}
		tokenizer_close(t);
		free(section);
		vocab_free(v);
	}
}
END_TEST

/* Breaks when the queue of a long piece is not in order: two letters, many words, equal ranks. */
START_TEST(long_pieces)
{
	static uint8_t text[700];

	rng = test_seed("long pieces");
	for (uint64_t i = test_scaled(60); i; i--) {
		struct vocab *v = dense_vocab(&rng, i % 2 ? VOCAB_SPM : VOCAB_BYTES,
					      5 + (uint32_t)(test_random(&rng) % 60));
		void *section;
		size_t bytes;
		struct tokenizer *t = open_vocab(v, &section, &bytes);

		for (int k = 0; k < 10; k++) {
			size_t len = 49 + test_random(&rng) % (sizeof(text) - 49);

			for (size_t j = 0; j < len; j++)
				text[j] = test_random(&rng) % 2 ? 'a' : 'b';
			compare(v, t, text, len, 0);
		}
		tokenizer_close(t);
		free(section);
		vocab_free(v);
	}
}
END_TEST

/* ---- there and back
 * -------------------------------------------------------------------------------- */

/* U+FFFD for each maximal part of an ill-formed sequence (Unicode 3.9), over the whole of it at
 * once. */
static size_t sanitized(const uint8_t *p, size_t len, char *out)
{
	static const struct {
		uint8_t from, to, from2, to2;
		int more;
	} row[] = {
		{ 0x00, 0x7f, 0, 0, 0 },       { 0xc2, 0xdf, 0x80, 0xbf, 1 },
		{ 0xe0, 0xe0, 0xa0, 0xbf, 2 }, { 0xe1, 0xec, 0x80, 0xbf, 2 },
		{ 0xed, 0xed, 0x80, 0x9f, 2 }, { 0xee, 0xef, 0x80, 0xbf, 2 },
		{ 0xf0, 0xf0, 0x90, 0xbf, 3 }, { 0xf1, 0xf3, 0x80, 0xbf, 3 },
		{ 0xf4, 0xf4, 0x80, 0x8f, 3 },
	};
	size_t n = 0;

	for (size_t at = 0; at < len;) {
		size_t good = 0, whole = 0, r = 0;

		while (r < 9 && (p[at] < row[r].from || p[at] > row[r].to))
			r++;
		if (r < 9) {
			whole = 1 + (size_t)row[r].more;
			for (good = 1; good < whole && at + good < len; good++)
				if (good == 1 ? p[at + 1] < row[r].from2 || p[at + 1] > row[r].to2
					      : (p[at + good] & 0xc0) != 0x80)
					break;
		}
		if (good && good == whole) {
			memcpy(out + n, p + at, good);
			n += good;
		} else {
			memcpy(out + n, "\xef\xbf\xbd", 3);
			n += 3;
		}
		at += good ? good : 1;
	}
	return n;
}

/* What n ids give, pushed one by one; each part given out must be whole UTF-8 by itself. */
static size_t push_all(const struct tokenizer *t, const uint32_t *list, size_t n, bool specials,
		       char *out)
{
	static char again[4096];
	struct detok d;
	size_t got = 0;

	detok_init(&d, t);
	d.specials = specials;
	for (size_t i = 0; i <= n; i++) {
		size_t part =
			i < n ? detok_push(&d, t, list[i], out + got) : detok_flush(&d, out + got);

		if (part > detok_bound(t) ||
		    sanitized((const uint8_t *)out + got, part, again) != part ||
		    memcmp(again, out + got, part) != 0)
			ck_abort_msg("part %zu of %zu bytes is not whole UTF-8", i, part);
		got += part;
	}
	return got;
}

static void there_and_back(struct vocab *v)
{
	static uint8_t text[1000], joined[4000];
	static char out[16000], whole[16000];
	void *section;
	size_t bytes, n, len, size;
	struct tokenizer *t = open_vocab(v, &section, &bytes);

	for (int round = 0; round < 200; round++) {
		len = test_random(&rng) % 300;
		for (size_t i = 0; i < len; i++)
			text[i] = (uint8_t)(test_random(&rng) >> 8);
		if (round % 2)
			len = random_text(text, 300, false);
		if (tokenizer_encode(t, scratch, (char *)text, len, 0, ids, TEXT_MAX, &n))
			ck_abort_msg("a text of %zu bytes", len);
		for (size_t i = size = 0; i < n; i++) {
			struct tokenizer_token token = tokenizer_token(t, ids[i]);

			if (token.kind != VOCAB_NORMAL && token.kind != VOCAB_BYTE)
				ck_abort_msg("a text gave id %u of kind %u", ids[i], token.kind);
			memcpy(joined + size, token.text, token.len);
			size += token.len;
		}
		if (v->kind == VOCAB_BYTES && (size != len || memcmp(joined, text, len) != 0))
			ck_abort_msg("the tokens' texts are not the text");
		/* Tokens drawn at random cut characters anywhere. */
		if (round % 4 == 3) {
			for (size_t i = n = size = 0; i < 200; i++) {
				uint32_t id = (uint32_t)(test_random(&rng) % v->n_tokens);
				struct tokenizer_token token = tokenizer_token(t, id);

				if (token.kind == VOCAB_SPECIAL)
					continue;
				ids[n++] = id;
				memcpy(joined + size, token.text, token.len);
				size += token.len;
			}
		}
		len = v->flags & VOCAB_DUMMY_PREFIX && size && joined[0] == ' ';
		len = sanitized(joined + len, size - len, whole);
		size = push_all(t, ids, n, false, out);
		if (size != len || memcmp(out, whole, len) != 0)
			ck_abort_msg("round %d: text from tokens is not the text of their bytes",
				     round);
	}
	tokenizer_close(t);
	free(section);
	vocab_free(v);
}

/* Breaks when arbitrary bytes do not come back, or text depends on where tokens cut characters. */
START_TEST(round_trips)
{
	rng = test_seed("round trips");
	for (uint64_t i = test_scaled(20); i; i--) {
		there_and_back(small_bytes(&rng, 150, (uint32_t)(i % VOCAB_RULE_COUNT), 0));
		there_and_back(small_spm(&rng, 150, true, i % 2 ? VOCAB_DUMMY_PREFIX : 0));
	}
}
END_TEST

/* Breaks when special tokens show without being asked for, or a held character is lost. */
START_TEST(detokenising)
{
	struct vocab *v = small_spm(&(uint64_t){ 1 }, 0, true, VOCAB_DUMMY_PREFIX);
	uint32_t space = vocab_find(v, " ", 1, 1u << VOCAB_NORMAL), a = vocab_find(v, "a", 1, 1);
	void *section;
	size_t bytes;
	struct tokenizer *t = open_vocab(v, &section, &bytes);
	const uint32_t list[] = { 1,	    space, a,	     3 + 0xe4, 2,	 3 + 0xbd, 3 + 0xa0,
				  3 + 0xe4, space, 3 + 0xff, 3 + 0xf0, 3 + 0x9f, 1u << 30 };
	char out[128];
	size_t n = push_all(t, list, sizeof(list) / sizeof(list[0]), false, out);

	ck_assert_uint_eq(n, 1 + 3 + 3 + 1 + 3 + 3);
	ck_assert_mem_eq(out, "a\xe4\xbd\xa0\xef\xbf\xbd \xef\xbf\xbd\xef\xbf\xbd", n);
	n = push_all(t, (const uint32_t[]){ 1, a, 2 }, 3, true, out);
	ck_assert_uint_eq(n, 8);
	ck_assert_mem_eq(out, "<s>a</s>", 8);
	tokenizer_close(t);
	free(section);
	vocab_free(v);
}
END_TEST

/* ---- special tokens, bounds
 * -------------------------------------------------------------------------- */

/* Breaks when text alone makes a special token; or where that is wanted, another than the longest.
 */
START_TEST(specials)
{
	struct vocab *v = small_bytes(&(uint64_t){ 2 }, 50, VOCAB_RULE_LLAMA3, VOCAB_IGNORE_MERGES);
	uint32_t s = v->bos, stop = v->bos + 1, two = v->bos + 2;
	void *section;
	size_t bytes, n;
	struct tokenizer *t = open_vocab(v, &section, &bytes);
	static const char text[] = "<s><s><s>a<stop><s<s>";

	ck_assert_int_eq(tokenizer_encode(t, scratch, text, sizeof(text) - 1, 0, ids, 100, &n), 0);
	for (size_t i = 0; i < n; i++)
		ck_assert_uint_lt(ids[i], s);
	ck_assert_int_eq(tokenizer_encode(t, scratch, text, sizeof(text) - 1, TOKENIZER_SPECIAL,
					  ids, 100, &n),
			 0);
	ck_assert_uint_eq(ids[0], two);
	ck_assert_uint_eq(ids[1], s);
	ck_assert_uint_eq(ids[3], stop);
	ck_assert_uint_eq(ids[n - 1], s);
	ck_assert_uint_eq(n, 7);
	ck_assert_uint_eq(tokenizer_special(t, "<s>", 3), s);
	ck_assert_uint_eq(tokenizer_special(t, "<s><s>", 6), two);
	ck_assert_uint_eq(tokenizer_special(t, "<s", 2), VOCAB_NO_ID);
	ck_assert_uint_eq(tokenizer_special(t, "<s><", 4), VOCAB_NO_ID);
	ck_assert_uint_eq(tokenizer_special(t, "<t>", 3), VOCAB_NO_ID);
	ck_assert_uint_eq(tokenizer_special(t, "", 0), VOCAB_NO_ID);
	ck_assert(tokenizer_is_stop(t, stop) && !tokenizer_is_stop(t, s));
	ck_assert_uint_eq(tokenizer_token(t, v->n_tokens).kind, VOCAB_UNUSED);
	ck_assert_uint_eq(tokenizer_token(t, VOCAB_NO_ID).len, 0);
	tokenizer_close(t);
	free(section);
	vocab_free(v);
}
END_TEST

/* Breaks when a full buffer is written past, or what is needed is told wrong. */
START_TEST(small_buffers)
{
	struct vocab *v = small_bytes(&(uint64_t){ 3 }, 80, VOCAB_RULE_GPT2, 0);
	static const char text[] = "abba anne nab 111 abba anne nab baa  \n been bean abba";
	uint32_t all[100], some[101];
	void *section;
	size_t bytes, n, n_all;
	struct tokenizer *t = open_vocab(v, &section, &bytes);

	/* Twice, so that the words' cache is full of it. */
	for (int i = 0; i < 2; i++)
		ck_assert_int_eq(
			tokenizer_encode(t, scratch, text, sizeof(text) - 1, 0, all, 100, &n_all),
			0);
	for (size_t cap = 0; cap <= n_all; cap++) {
		memset(some, 0xaa, sizeof(some));
		ck_assert_int_eq(
			tokenizer_encode(t, scratch, text, sizeof(text) - 1, 0, some, cap, &n),
			cap < n_all ? -ENOSPC : 0);
		ck_assert_uint_eq(n, n_all);
		ck_assert_mem_eq(some, all, cap * sizeof(all[0]));
		for (size_t i = cap; i < 101; i++)
			ck_assert_uint_eq(some[i], 0xaaaaaaaa);
	}
	ck_assert_int_eq(tokenizer_encode(t, scratch, text, TEXT_MAX - 7, 0, some, 100, &n),
			 -EFBIG);
	ck_assert_ptr_null(tokenizer_scratch_new(SIZE_MAX - 1));
	ck_assert_int_eq(tokenizer_encode(t, scratch, NULL, 0, TOKENIZER_SPECIAL, NULL, 0, &n), 0);
	ck_assert_uint_eq(n, 0);
	tokenizer_close(t);
	free(section);
	vocab_free(v);
}
END_TEST

/* Breaks when one scratch carries words of one tokenizer over to another. */
START_TEST(two_tokenizers)
{
	struct vocab *v[2];
	struct tokenizer *t[2];
	void *section[2];
	uint8_t text[200];
	size_t bytes;

	rng = test_seed("two");
	for (int i = 0; i < 2; i++) {
		v[i] = small_bytes(&rng, 100, VOCAB_RULE_LLAMA3, 0);
		t[i] = open_vocab(v[i], &section[i], &bytes);
	}
	for (int i = 0; i < 500; i++)
		compare(v[i % 2], t[i % 2], text, random_text(text, sizeof(text), false), 0);
	for (int i = 0; i < 2; i++) {
		tokenizer_close(t[i]);
		free(section[i]);
		vocab_free(v[i]);
	}
}
END_TEST

/* ---- damage
 * ---------------------------------------------------------------------------------------- */

static size_t damage(uint8_t *p, size_t bytes)
{
	size_t at = test_random(&rng) % bytes, n = 1 + test_random(&rng) % 64;
	uint32_t word;

	/* The header and the small tables are little of it, but most of what can go wrong. */
	if (test_random(&rng) % 2)
		at %= 256;
	n = at + n > bytes ? bytes - at : n;
	switch (test_random(&rng) % 5) {
	case 0:
		p[at] ^= (uint8_t)(1u << test_random(&rng) % 8);
		break;
	case 1:
		for (size_t i = 0; i < n; i++)
			p[at + i] = (uint8_t)(test_random(&rng) >> 8);
		break;
	case 2:
		memmove(p + at, p + test_random(&rng) % (bytes - n + 1), n);
		break;
	case 3:
		at = at / 4 * 4;
		memcpy(&word, p + at, 4);
		word += (uint32_t)(test_random(&rng) % 5) - 2;
		memcpy(p + at, &word, 4);
		break;
	default:
		return at;
	}
	return bytes;
}

/* Breaks when a damaged section crashes, hangs, or makes ids that do not exist. */
START_TEST(corruption)
{
	uint64_t accepted = 0, rounds = test_scaled(5000);

	rng = test_seed("corruption");
	for (uint64_t i = 0; i < rounds; i++) {
		static struct vocab *v;
		static void *section;
		static size_t bytes;
		struct tokenizer *t;
		uint8_t text[300], *copy;
		char why[256] = "";
		size_t n, len, size;

		if (i % 500 == 0) {
			free(section);
			vocab_free(v);
			v = i % 1000 ? small_spm(&rng, 60, i % 3, VOCAB_DUMMY_PREFIX)
				     : small_bytes(&rng, 60, (uint32_t)(i / 1000 % 4),
						   i % 3 ? VOCAB_NFC : 0);
			if (v->kind == VOCAB_BYTES)
				add_whole(v);
			tokenizer_close(open_vocab(v, &section, &bytes));
		}
		copy = malloc(bytes);
		ck_assert_ptr_nonnull(copy);
		memcpy(copy, section, bytes);
		size = damage(copy, bytes);
		/* At its own size, so that a sanitizer sees what is read behind it. */
		copy = realloc(copy, size + !size);
		if (tokenizer_open(copy, size, &t, why, sizeof(why))) {
			if (!*why)
				ck_abort_msg("refused without a word");
			free(copy);
			continue;
		}
		accepted++;
		for (int k = 0; k < 4; k++) {
			static char out[1 << 20];
			struct detok d;

			len = random_text(text, sizeof(text), false);
			if (tokenizer_encode(t, scratch, (char *)text, len, k % 4u, ids, TEXT_MAX,
					     &n))
				ck_abort_msg("encoding failed");
			detok_init(&d, t);
			for (size_t j = 0; j < n; j++)
				if (ids[j] >= tokenizer_facts(t)->n_tokens ||
				    detok_push(&d, t, ids[j], out) > detok_bound(t))
					ck_abort_msg("id %u", ids[j]);
		}
		tokenizer_close(t);
		free(copy);
	}
	printf("%llu of %llu damaged sections still make sense\n", (unsigned long long)accepted,
	       (unsigned long long)rounds);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("tokenizer");
	TCase *c = tcase_create("tokenizer");
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_test(c, bytes_by_definition);
	tcase_add_test(c, spm_by_definition);
	tcase_add_test(c, long_runs);
	tcase_add_test(c, long_pieces);
	tcase_add_test(c, round_trips);
	tcase_add_test(c, detokenising);
	tcase_add_test(c, specials);
	tcase_add_test(c, small_buffers);
	tcase_add_test(c, two_tokenizers);
	tcase_add_test(c, corruption);
	suite_add_tcase(s, c);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

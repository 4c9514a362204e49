/* SPDX-License-Identifier: MIT */
/*
 * The scanners that cut text against the regular expressions that they stand for, run by PCRE2.
 * White space is spelled out in these, because PCRE's \s still has U+180E, which Unicode took out.
 */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include "lib_vocab.h"
#include "../daemon/engine/pretok.c"

#define S                                                                                       \
	"\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{" \
	"205f}\\x{3000}"

static const char *const pattern[VOCAB_RULE_COUNT] = {
	[VOCAB_RULE_LLAMA3] =
		"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
		" ?[^" S "\\p{L}\\p{N}]+[\\r\\n]*|[" S "]*[\\r\\n]+|[" S "]+(?![^" S "])|[" S "]+",
	[VOCAB_RULE_GPT2] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" S "\\p{L}\\p{N}]+|"
			    "[" S "]+(?![^" S "])|[" S "]+",
	[VOCAB_RULE_STARCODER] = NULL, /* see cut_by_regex() */
};

static pcre2_code *compile(const char *text)
{
	int err;
	size_t at;
	pcre2_code *c = pcre2_compile((PCRE2_SPTR)text, PCRE2_ZERO_TERMINATED,
				      PCRE2_UTF | PCRE2_UCP, &err, &at, NULL);

	ck_assert_msg(c, "pattern, at %zu: %s", at, text + at);
	pcre2_jit_compile(c, PCRE2_JIT_COMPLETE);
	return c;
}

enum { TEXT_MAX = 4096 };
static pcre2_match_data *match;
static pcre2_code *code[VOCAB_RULE_COUNT], *number, *unassigned;

/* Where the next match from `at` on begins and ends; false: there is none. */
static bool next_match(pcre2_code *c, const uint8_t *p, size_t len, size_t at, size_t *from,
		       size_t *to)
{
	int n = pcre2_match(c, p, len, at, 0, match, NULL);

	if (n < 0)
		return false;
	*from = pcre2_get_ovector_pointer(match)[0];
	*to = pcre2_get_ovector_pointer(match)[1];
	return true;
}

/* Ends of the pieces of a stretch that a pattern cuts; each begins where the one before ends. */
static size_t cut_stretch(pcre2_code *c, const uint8_t *p, size_t len, size_t base, size_t *end)
{
	size_t n = 0, at = 0, from, to;

	for (; at < len; at = to) {
		if (!next_match(c, p, len, at, &from, &to) || from != at || to <= at)
			ck_abort_msg("the expression itself leaves a gap");
		end[n++] = base + to;
	}
	return n;
}

static size_t cut_by_regex(uint32_t rule, const uint8_t *p, size_t len, size_t *end)
{
	size_t n = 0, at = 0, from, to;

	if (rule != VOCAB_RULE_STARCODER)
		return cut_stretch(code[rule], p, len, 0, end);
	for (; at < len; at = to) {
		bool found = next_match(number, p, len, at, &from, &to);

		n += cut_stretch(code[VOCAB_RULE_GPT2], p + at, (found ? from : len) - at, at,
				 end + n);
		if (!found)
			break;
		end[n++] = to;
	}
	return n;
}

/* The same text with U+FFFD for each byte that is not UTF-8, and where each byte of it comes from.
 */
static size_t repaired(const uint8_t *p, size_t len, uint8_t *out, size_t *origin)
{
	size_t n = 0;

	for (size_t at = 0; at < len;) {
		uint32_t size = utf8_length(p + at, len - at);

		memcpy(out + n, size ? p + at : (const uint8_t *)"\xef\xbf\xbd", size ? size : 3);
		for (uint32_t i = 0; i < (size ? size : 3); i++)
			origin[n++] = at;
		at += size ? size : 1;
	}
	origin[n] = len;
	return n;
}

static void compare(uint32_t rule, const uint8_t *p, size_t len)
{
	static uint8_t text[3 * TEXT_MAX];
	static size_t origin[3 * TEXT_MAX + 1], end[3 * TEXT_MAX];
	size_t size = repaired(p, len, text, origin), n = cut_by_regex(rule, text, size, end),
	       at = 0;

	for (size_t i = 0; i < n; i++) {
		size_t piece = pretok_next(rule, p + at, len - at);

		if (at + piece != origin[end[i]]) {
			fprintf(stderr, "rule %u, piece %zu ends at %zu, not %zu, of", rule, i,
				at + piece, origin[end[i]]);
			for (size_t k = 0; k < len; k++)
				fprintf(stderr, " %02x", p[k]);
			fprintf(stderr, "\n");
			ck_abort_msg("another piece");
		}
		at += piece;
	}
	ck_assert_uint_eq(at, len);
}

static void setup(void)
{
	match = pcre2_match_data_create(8, NULL);
	for (uint32_t r = 0; r < VOCAB_RULE_COUNT; r++)
		if (pattern[r])
			code[r] = compile(pattern[r]);
	number = compile("\\p{N}");
	unassigned = compile("\\p{Cn}");
}

static void teardown(void)
{
	pcre2_match_data_free(match);
	for (uint32_t r = 0; r < VOCAB_RULE_COUNT; r++)
		pcre2_code_free(code[r]);
	pcre2_code_free(number);
	pcre2_code_free(unassigned);
}

static size_t put_utf8(uint32_t c, uint8_t *out)
{
	if (c < 0x80) {
		out[0] = (uint8_t)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (uint8_t)(0xc0 | c >> 6);
		out[1] = (uint8_t)(0x80 | (c & 63));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (uint8_t)(0xe0 | c >> 12);
		out[1] = (uint8_t)(0x80 | (c >> 6 & 63));
		out[2] = (uint8_t)(0x80 | (c & 63));
		return 3;
	}
	out[0] = (uint8_t)(0xf0 | c >> 18);
	out[1] = (uint8_t)(0x80 | (c >> 12 & 63));
	out[2] = (uint8_t)(0x80 | (c >> 6 & 63));
	out[3] = (uint8_t)(0x80 | (c & 63));
	return 4;
}

/* Breaks when a character is taken for a letter, a digit or white space that is none, or not for
 * one. */
START_TEST(classes)
{
	static const char *const class_pattern[4] = { NULL, "\\p{L}", "\\p{N}", "[" S "]" };
	static const unsigned class[4] = { OTHER, LETTER, NUMBER, SPACE };
	pcre2_code *c[4];
	unsigned newer = 0;

	for (int i = 1; i < 4; i++)
		c[i] = compile(class_pattern[i]);
	for (uint32_t cp = 0; cp <= 0x10ffff; cp++) {
		uint8_t text[4];
		size_t len = put_utf8(cp, text), from, to;
		unsigned got, want = OTHER;
		uint32_t n;

		if (cp >= 0xd800 && cp < 0xe000)
			continue;
		got = class_at(text, text + len, &n);
		if (n != len)
			ck_abort_msg("U+%04X has %u bytes, not %zu", cp, n, len);
		got = got == BREAK ? SPACE : got;
		for (int i = 1; i < 4; i++)
			if (next_match(c[i], text, len, 0, &from, &to))
				want = class[i];
		if (got == want)
			continue;
		/* utf8proc may know a younger Unicode. */
		ck_assert_msg(next_match(unassigned, text, len, 0, &from, &to),
			      "U+%04X is of class %u, not %u", cp, got, want);
		newer++;
	}
	ck_assert_uint_lt(newer, 20000);
	for (int i = 1; i < 4; i++)
		pcre2_code_free(c[i]);
}
END_TEST

/* Breaks when an alternative of the expressions is tried out of its order, or at the edge of a
 * text. */
START_TEST(edges)
{
	static const char *const text[] = {
		"",
		" ",
		"  ",
		"   ",
		"\n",
		"\r\n",
		" \n",
		"\n ",
		"\n  x",
		"  x",
		"   1",
		" 1",
		"\t1",
		"\t x",
		"\tx",
		"x\n\n\ny",
		"x \n \n y",
		"x  \n\n  \n  y  ",
		"\n\n\n   ",
		"\r\r\n\nx",
		"a\t\tb",
		"\v\f x",
		"it's",
		"IT'S",
		"it'Sx",
		"'s",
		"'S",
		"''s",
		" 's",
		"x'll y'Ll z'LL",
		"'re've'm'd't",
		"'r",
		"'l",
		"'v",
		"'",
		"'\xc5\xbf",
		"'\xc5\xbfx",
		"'\xc5",
		"'\xe2\x84\xaa",
		"don't",
		"o'clock",
		"'tis",
		"1",
		"12",
		"123",
		"1234",
		"1234567",
		" 1234",
		"1a2b",
		"a1",
		"\xd9\xa1\xd9\xa2\xd9\xa3\xd9\xa4",
		"\xc2\xb2\xe2\x85\xa7\xc2\xbd"
		"1",
		"...",
		"...\n\n",
		" ...\r\nx",
		"-x",
		"--x",
		" -x",
		"(x)",
		"!?\n \n",
		"\xe4\xbd\xa0\xe5\xa5\xbd",
		"e\xcc\x81t\xc3\xa9",
		"\xcc\x81x",
		"\xf0\x9f\xa6\x99.cpp",
		"\xf0\x9f\x91\xa8\xe2\x80\x8d\xf0\x9f\x91\xa9",
		"\xe2\x80\x8b"
		"a",
		"\xef\xbb\xbf"
		"a",
		"\xe1\xa0\x8e"
		"a",
		"a\xc2\xa0"
		"b",
		"a\xc2\xa0\xc2\xa0"
		"b",
		"\xc2\x85\xc2\x85x",
		"\xe2\x80\xa8\xe2\x80\xa9\n x",
		"a\xe3\x80\x80 b",
		"\x80",
		"\xff\xfe",
		"a\x80z",
		"\x80z",
		" \xff z",
		"\xe4\xbd",
		"\xed\xa0\x80x",
		"\xc0\x80",
		"\xf4\x90\x80\x80",
		"\xf0\x9f\xa6",
		"1\xff"
		"2",
		"'\xff",
		"\x80\n\n",
		"\n\x80",
	};

	for (uint32_t r = VOCAB_RULE_LLAMA3; r < VOCAB_RULE_COUNT; r++)
		for (size_t i = 0; i < sizeof(text) / sizeof(text[0]); i++)
			compare(r, (const uint8_t *)text[i], strlen(text[i]));
}
END_TEST

static size_t random_character(uint64_t *rng, uint8_t *out)
{
	static const uint32_t odd[] = {
		0x17f, 0x130, 0x212a, 0xaa,   0xb2,	0xbd,	0x2167,	 0x661,	  0x967,
		0x301, 0x93e, 0x4f60, 0xac00, 0x1f999,	0x200d, 0x200b,	 0xfeff,  0x180e,
		0x85,  0xa0,  0x1680, 0x2003, 0x2028,	0x2029, 0x202f,	 0x205f,  0x3000,
		0,     0x7f,  0xad,   0xfffd, 0x10ffff, 0xe000, 0x2ceb0, 0x1d7d8, 0x10d30,
	};
	static const char common[] = "   \n\n\r\t\v\f'''sStTmMdDrReElLvVxy0123.,-!(\"_";
	uint64_t r = test_random(rng);

	switch (r % 8) {
	case 0:
		return put_utf8(odd[(r >> 8) % (sizeof(odd) / sizeof(odd[0]))], out);
	case 1:
		return put_utf8((r >> 8) % 0x3000, out);
	case 2:
		*out = (uint8_t)(r >> 8);
		return 1;
	default:
		*out = (uint8_t)common[(r >> 8) % (sizeof(common) - 1)];
		return 1;
	}
}

/* Breaks when some mix of characters is cut where the expressions would not. */
/* Characters that PCRE2's Unicode does not have yet become letters: utf8proc's may have them, and
 * bytes thrown together make them now and then. */
static void age(uint8_t *p, size_t len)
{
	size_t from, to;

	for (size_t at = 0; at < len;) {
		uint32_t size = utf8_length(p + at, len - at);

		if (size > 1 && next_match(unassigned, p + at, size, 0, &from, &to))
			memset(p + at, 'x', size);
		at += size ? size : 1;
	}
}

START_TEST(random_texts)
{
	uint64_t rng = test_seed("pretok");
	uint8_t text[TEXT_MAX];

	for (uint64_t i = test_scaled(60000); i; i--) {
		size_t want = test_random(&rng) % (i % 100 ? 24 : 2000), len = 0;

		/* A run of one kind now and then. */
		while (len < want) {
			size_t n = random_character(&rng, text + len);
			uint64_t times = test_random(&rng) % 16 ? 1 : test_random(&rng) % 12;

			for (; times && len < want; times--, len += n)
				memmove(text + len + n, text + len, n);
		}
		age(text, len);
		for (uint32_t r = VOCAB_RULE_LLAMA3; r < VOCAB_RULE_COUNT; r++)
			compare(r, text, len);
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pretok");
	TCase *c = tcase_create("against PCRE2");
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(c, setup, teardown);
	tcase_add_test(c, classes);
	tcase_add_test(c, edges);
	tcase_add_test(c, random_texts);
	suite_add_tcase(s, c);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

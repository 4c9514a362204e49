/* SPDX-License-Identifier: MIT */
/*
 * Stop strings against a search of the whole text, however it is cut into tokens. What breaks otherwise:
 * part of a stop string is shown, text is lost or held for ever, or the answer depends on the tokens.
 */
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include "lib_vocab.h"
#include "stop.h"

static uint64_t rng;
static uint32_t below(uint32_t n)
{
	return (uint32_t)((test_random(&rng) >> 32) * n >> 32);
}

/* The definition: the first place where one ends; of those the one that begins first. -1: none. */
static long whole(const struct stop_string *s, uint32_t n, const char *text, size_t len)
{
	for (size_t end = 1; end <= len; end++)
		for (size_t from = 0; from < end; from++)
			for (uint32_t i = 0; i < n; i++)
				if (s[i].len == end - from && !memcmp(s[i].text, text + from, s[i].len))
					return (long)from;
	return -1;
}

/* cut: the most bytes of a piece; 0: all at once. Aborts when what comes out is not what the text says. */
static void check_text(const struct stop_string *s, uint32_t n, const char *text, size_t len,
		       uint32_t cut)
{
	long stop = whole(s, n, text, len);
	size_t want = stop < 0 ? len : (size_t)stop, at = 0, got = 0, longest = 1;
	char *out = malloc(len + STOP_BYTES_MAX);
	struct stop_state state = { 0 };
	bool hit = false;

	ck_assert_ptr_nonnull(out);
	for (uint32_t i = 0; i < n; i++)
		longest = s[i].len > longest ? s[i].len : longest;
	while (at < len && !hit) {
		size_t piece = cut ? below(cut + 1) : len, room, wrote;
		char *exact, *in;

		if (piece > len - at)
			piece = len - at;
		/* Of exactly the size promised, so that a sanitizer sees a byte too much. */
		room = state.n_held + piece;
		exact = malloc(room + 1);
		in = malloc(piece + 1);
		ck_assert(exact && in);
		memcpy(in + 1, text + at, piece);
		wrote = stop_push(s, n, &state, in + 1, piece, exact + 1, &hit);
		ck_assert_uint_le(wrote, room);
		memcpy(out + got, exact + 1, wrote);
		free(exact);
		free(in);
		got += wrote;
		at += piece;
		ck_assert_msg(hit == (stop >= 0 && whole(s, n, text, at) >= 0), "hit %d at %zu", hit, at);
		ck_assert_uint_lt(state.n_held, longest);
		if (!hit)
			ck_assert_uint_eq(got + state.n_held, at);
	}
	if (!hit)
		got += stop_flush(&state, out + got);
	ck_assert_uint_eq(state.n_held, 0);
	ck_assert_msg(got == want, "%zu bytes, not %zu", got, want);
	ck_assert(!memcmp(out, text, got));
	free(out);
}

/* Random strings of few letters, so that they overlap, contain and begin each other. */
START_TEST(against_whole_text)
{
	static char bytes[STOP_STRINGS_MAX][STOP_BYTES_MAX];
	struct stop_string s[STOP_STRINGS_MAX];
	char text[2000];

	rng = test_seed("stop");
	for (uint64_t round = test_scaled(8000); round; round--) {
		uint32_t n = below(round % 50 ? 4 : STOP_STRINGS_MAX + 1), letters = 1 + below(3);
		uint32_t longest = 1 + below(round % 100 ? 6 : STOP_BYTES_MAX);
		size_t len = below(round % 100 ? 60 : 400);

		for (uint32_t i = 0; i < n; i++) {
			s[i] = (struct stop_string){ bytes[i], 1 + below(longest) };
			for (uint32_t j = 0; j < s[i].len; j++)
				bytes[i][j] = (char)('a' + below(letters));
		}
		for (size_t i = 0; i < len; i++)
			text[i] = (char)('a' + below(letters + (round & 1)));
		/* Often the beginning of a string, now and then all of it. */
		for (uint32_t i = 0; n && i < 3; i++) {
			const struct stop_string *one = &s[below(n)];
			size_t part = below(one->len + 1), at = below((uint32_t)len + 1);

			if (part <= len - at)
				memcpy(text + at, one->text, part);
		}
		for (uint32_t cut = 0; cut < 4; cut++)
			check_text(s, n, text, len, cut * cut);
	}
}
END_TEST

struct example {
	const char *stops[4], *text, *want;
};

/* What people ask for, and the ways in which it has been done wrong. */
START_TEST(examples)
{
	static const struct example ex[] = {
		{ { "\n\n" }, "one\ntwo\n\nthree", "one\ntwo" },
		{ { "STOP" }, "a STO, a STOP.", "a STO, a " },
		{ { "aab" }, "aaab", "a" },
		{ { "abab" }, "aabababab", "a" },
		{ { "ab", "abc" }, "xabc", "x" },		 /* nobody waits for the c */
		{ { "abcd", "bc" }, "abcd", "a" },
		{ { "abcd", "bc" }, "abe", "abe" },
		{ { "abc", "bc", "c" }, "xabc", "x" },		 /* these end together */
		{ { "x" }, "x", "" },
		{ { "never" }, "neve", "neve" },
		{ { "never" }, "", "" },
		{ { NULL }, "all of it", "all of it" },
	};

	for (size_t e = 0; e < sizeof(ex) / sizeof(ex[0]); e++) {
		struct stop_string s[4];
		uint32_t n = 0;

		for (; n < 4 && ex[e].stops[n]; n++)
			s[n] = (struct stop_string){ ex[e].stops[n],
						     (uint32_t)strlen(ex[e].stops[n]) };
		for (size_t cut = 0; cut <= strlen(ex[e].text); cut++) {
			struct stop_state state = { 0 };
			char out[64];
			bool hit;
			size_t got = stop_push(s, n, &state, ex[e].text, cut, out, &hit);

			if (!hit)
				got += stop_push(s, n, &state, ex[e].text + cut,
						 strlen(ex[e].text) - cut, out + got, &hit);
			if (!hit)
				got += stop_flush(&state, out + got);
			out[got] = 0;
			ck_assert_str_eq(out, ex[e].want);
		}
	}
}
END_TEST

/* Zeros are bytes like others, and the longest of strings is held but for its last byte. */
START_TEST(limits)
{
	char zeros[STOP_BYTES_MAX] = { 0 }, out[2 * STOP_BYTES_MAX];
	struct stop_string s = { zeros, STOP_BYTES_MAX };
	struct stop_state state = { 0 };
	bool hit;

	ck_assert_uint_eq(stop_push(&s, 1, &state, zeros, STOP_BYTES_MAX - 1, out, &hit), 0);
	ck_assert(!hit);
	ck_assert_uint_eq(state.n_held, STOP_BYTES_MAX - 1);
	ck_assert_uint_eq(stop_push(&s, 1, &state, "a", 1, out, &hit), STOP_BYTES_MAX);
	ck_assert(!hit);
	stop_push(&s, 1, &state, zeros, STOP_BYTES_MAX - 1, out, &hit);
	ck_assert_uint_eq(stop_push(&s, 1, &state, zeros, 1, out, &hit), 0);
	ck_assert(hit);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("stop");
	TCase *t = tcase_create("stop");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, against_whole_text);
	tcase_add_test(t, examples);
	tcase_add_test(t, limits);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Vocabularies like GPT-NeoX's: text is brought into NFC, and some tokens are taken whole from it
 * before it is cut. Both against their definitions, written plainly: utf8proc over a whole text; of
 * all the tokens that could be taken the first in the text, and of those the longest.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>
#include "lib_vocab.h"
#include "nfc.h"
#include "pretok.h"
#include "tokenizer_format.h"

enum { TEXT_MAX = 1 << 14 };

static struct tokenizer_scratch *scratch;
static uint32_t ids[4 * TEXT_MAX], want[4 * TEXT_MAX];
static uint64_t rng;

static void setup(void)
{
	scratch = tokenizer_scratch_new(TEXT_MAX);
	ck_assert_ptr_nonnull(scratch);
}

static void teardown(void)
{
	scratch = tokenizer_scratch_free(scratch);
}

/* ---- form C
 * --------------------------------------------------------------------------------------- */

static void print_bytes(const char *what, const uint8_t *p, size_t len)
{
	printf("%s:", what);
	for (size_t i = 0; i < len; i++)
		printf(" %02x", p[i]);
	printf("\n");
}

static void same_nfc(const uint8_t *p, size_t len)
{
	static int32_t code[2 * TEXT_MAX + 4], sorted[2 * TEXT_MAX + 4];
	static uint8_t mine[NFC_GROWTH * TEXT_MAX], theirs[NFC_GROWTH * TEXT_MAX];
	const struct nfc_room room = { code, sorted };
	size_t n = nfc(p, len, &room, mine), m = reference_nfc(p, len, theirs);

	if (n == m && !memcmp(mine, theirs, n) &&
	    (!nfc_plain(p, len) || (n == len && !memcmp(p, mine, n))))
		return;
	print_bytes("text", p, len);
	print_bytes("nfc", mine, n);
	print_bytes("utf8proc's", theirs, m);
	ck_abort_msg("another form C");
}

static size_t put_code(uint8_t *out, int32_t c)
{
	return (size_t)utf8proc_encode_char(c, out);
}

/* Breaks when a character that combines is taken for the first of a cluster, or grows beyond its
 * room. */
START_TEST(every_character)
{
	for (int32_t c = 0; c < 0x110000; c++) {
		uint8_t text[64];
		int32_t part[8];
		int unused = 0;
		size_t n = 0, whole;
		utf8proc_ssize_t parts;

		if (c >= 0xd800 && c < 0xe000)
			continue;
		parts = utf8proc_decompose_char(c, part, 8, UTF8PROC_DECOMPOSE, &unused);
		ck_assert(parts > 0 && parts <= 4);
		whole = put_code(text, c);
		if ((size_t)parts > 2 * whole)
			ck_abort_msg("U+%04X has %zd parts", (unsigned)c, parts);
		if (parts > 1) {
			/* Composed again from its parts, whatever is between. */
			for (utf8proc_ssize_t i = 0; i < parts; i++)
				n += put_code(text + n, part[i]);
			if (n > NFC_GROWTH * whole || whole > n)
				ck_abort_msg("U+%04X: %zu bytes become %zu", (unsigned)c, whole, n);
			same_nfc(text, n);
		}
		/* Alone, and where it could combine with a letter, a mark, a syllable. */
		if (parts == 1 && c >= 0x3400 && c % 16)
			continue;
		n = put_code(text, c);
		same_nfc(text, n);
		n = put_code(text, 'a');
		n += put_code(text + n, 0x316);
		n += put_code(text + n, c);
		n += put_code(text + n, 0x301);
		n += put_code(text + n, 0x1100);
		n += put_code(text + n, c);
		n += put_code(text + n, 0x1161);
		n += put_code(text + n, 'e');
		same_nfc(text, n);
	}
}
END_TEST

/* Marks of many classes, letters they combine with, and what only looks like text. */
static size_t random_marks(uint8_t *out, size_t max)
{
	static const int32_t code[] = {
		'a', 'e', 'A', ' ', '\n', '1', '<', '=', 0xe9, 0x1d5, 0x300, 0x301, 0x302, 0x304,
		0x308, 0x316, 0x31b, 0x323, 0x327, 0x328, 0x334, 0x338, 0x344, 0x345, 0x35c, 0x391,
		0x3b1, 0x1f00, 0x1fb3, 0x5d0, 0x5b7, 0x5bc, 0xfb2c, 0x915, 0x93c, 0x958, 0x9c7,
		0x9be, 0x9d7, 0xbc6, 0xbd7, 0xf71, 0xf72, 0xf73, 0x1025, 0x102e, 0x1100, 0x1112,
		0x1161, 0x1175, 0x11a8, 0x11c2, 0x11a7, 0xac00, 0xac01, 0x3042, 0x304b, 0x3099,
		0x309a, 0x4f60, 0x212a, 0x2126, 0x2000, 0xf900, 0xfa30, 0x1d15e, 0x1d165, 0x1d160,
		0x110ba, 0x11099, 0x1f999, 0xfffd,
	};
	size_t len = 0, target = test_random(&rng) % max;

	while (len + 8 < target) {
		uint64_t r = test_random(&rng);

		if (r % 32 == 0)
			out[len++] = (uint8_t)(r >> 8);
		else if (r % 3)
			len += put_code(out + len,
					code[(r >> 32) % (sizeof(code) / sizeof(code[0]))]);
		else
			len += put_code(out + len, 0x300 + (int32_t)((r >> 32) % 0x70));
	}
	return len;
}

/* Breaks when marks are put in another order, or one combines over another that blocks it. */
START_TEST(random_clusters)
{
	static uint8_t text[TEXT_MAX];

	rng = test_seed("clusters");
	for (uint64_t i = test_scaled(40000); i; i--)
		same_nfc(text, random_marks(text, i % 500 ? 60 : 3000));
}
END_TEST

/* Breaks when a million marks in a row are sorted by a sort that takes forever. */
START_TEST(marks_without_end)
{
	enum { PAIRS = 1 << 18 };
	size_t len = 1 + 4 * (size_t)PAIRS, n;
	uint8_t *text = malloc(len), *out = malloc(NFC_GROWTH * len);
	const struct nfc_room room = { malloc(nfc_room(len) * sizeof(int32_t)),
				       malloc(nfc_room(len) * sizeof(int32_t)) };

	ck_assert(text && out && room.code && room.sorted);
	text[0] = 'a';
	for (size_t i = 0; i < PAIRS; i++)
		memcpy(text + 1 + 4 * i, "\xcc\x81\xcc\x96", 4);
	n = nfc(text, len, &room, out);
	/* The first acute joins the letter; the graves below come before the others. */
	ck_assert_uint_eq(n, 2 + 2 * PAIRS + 2 * (PAIRS - 1));
	ck_assert_mem_eq(out, "\xc3\xa1", 2);
	for (size_t i = 0; i < 2 * PAIRS - 1; i++)
		if (memcmp(out + 2 + 2 * i, i < PAIRS ? "\xcc\x96" : "\xcc\x81", 2) != 0)
			ck_abort_msg("mark %zu", i);
	free(text);
	free(out);
	free(room.code);
	free(room.sorted);
}
END_TEST

/* ---- encoding
 * ------------------------------------------------------------------------------------- */

static size_t piece_ids(struct vocab *v, const uint8_t *p, size_t len, uint32_t *out)
{
	uint32_t id = vocab_find(v, p, len, 1u << VOCAB_NORMAL);

	if (v->flags & VOCAB_IGNORE_MERGES && id != VOCAB_NO_ID) {
		*out = id;
		return 1;
	}
	return reference_piece(v, p, len, out);
}

/* The longest token of this kind that stands at p. */
static uint32_t longest_at(struct vocab *v, uint32_t kind, const uint8_t *p, size_t len, size_t *n)
{
	uint32_t found = VOCAB_NO_ID;

	*n = 0;
	for (uint32_t id = 0; id < v->n_tokens; id++) {
		const struct vocab_token *t = &v->tokens[id];

		if (t->kind == kind && t->len <= len && t->len > *n &&
		    !memcmp(t->text, p, t->len)) {
			found = id;
			*n = t->len;
		}
	}
	return found;
}

static size_t reference_plain(struct vocab *v, const uint8_t *p, size_t len, uint32_t *out)
{
	size_t n = 0;

	while (len) {
		size_t piece = pretok_next(v->rule, p, len);

		n += piece_ids(v, p, piece, out + n);
		p += piece;
		len -= piece;
	}
	return n;
}

/* Text between tokens of a kind, which are taken out of it; below SPECIAL come NFC and ADDED. */
static size_t reference(struct vocab *v, uint32_t kind, const uint8_t *p, size_t len, uint32_t *out)
{
	static uint8_t form_c[NFC_GROWTH * TEXT_MAX];
	size_t n = 0, from = 0, at = 0, size = 0;

	if (kind == VOCAB_ADDED && v->flags & VOCAB_NFC) {
		len = reference_nfc(p, len, form_c);
		p = form_c;
	}
	for (; at <= len; at += size ? size : 1) {
		uint32_t id = VOCAB_NO_ID;

		size = 0;
		if (at < len)
			id = longest_at(v, kind, p + at, len - at, &size);
		if (id == VOCAB_NO_ID && at < len)
			continue;
		if (kind == VOCAB_SPECIAL)
			n += reference(v, VOCAB_ADDED, p + from, at - from, out + n);
		else
			n += reference_plain(v, p + from, at - from, out + n);
		if (id != VOCAB_NO_ID)
			out[n++] = id;
		from = at + size;
	}
	return n;
}

static size_t random_text(uint8_t *out, size_t max)
{
	static const char *const part[] = {
		"a", "b", "e", "n", " ", "  ", "1", "'", "\n", "ab", "   ", "e\xcc\x81", "\xcc\x81",
		"\xcc\x96", "\xc3\xa9", "\xe1\x84\x80", "\xe1\x85\xa1", "\xe1\x86\xa8",
		"\xea\xb0\x80",
		"\xe2\x84\xaa", "<s>", "<stop>", "\x80", "\xcc", "\xe4\xbd\xa0", "\xf0\x9d\x85\xa0",
		"                         ", "b\xcc\x96\xcc\x81", "\xe2\x80\x99", "x", ""
	};
	size_t len = 0, target = test_random(&rng) % max;

	while (len + 32 < target) {
		uint64_t r = test_random(&rng);
		const char *p = part[(r >> 32) % (r % 3 ? 11 : sizeof(part) / sizeof(part[0]))];

		memcpy(out + len, p, strlen(p));
		len += strlen(p);
	}
	return len;
}

static void compare(struct vocab *v, const struct tokenizer *t, const uint8_t *p, size_t len,
		    unsigned flags)
{
	size_t n, n_want = reference(v, flags & TOKENIZER_SPECIAL ? VOCAB_SPECIAL : VOCAB_ADDED, p,
				     len, want);
	int err = tokenizer_encode(t, scratch, (const char *)p, len, flags, ids, 4 * TEXT_MAX, &n);

	if (!err && n == n_want && !memcmp(ids, want, n * sizeof(ids[0])) &&
	    n <= tokenizer_bound(t, len))
		return;
	print_bytes("text", p, len);
	printf("rule %u, flags %#x, encoding %#x: %d, %zu tokens, not %zu\n", v->rule, v->flags,
	       flags, err, n, n_want);
	for (size_t i = 0; i < n || i < n_want; i++)
		printf("%s%d/%d", i ? " " : "", i < n ? (int)ids[i] : -1,
		       i < n_want ? (int)want[i] : -1);
	printf("\n");
	ck_abort_msg("other tokens than the definition gives");
}

/* Breaks when a shorter token is taken, or one before NFC; or when a cut sees beyond a token. */
START_TEST(by_definition)
{
	rng = test_seed("added");
	for (uint64_t i = test_scaled(60); i; i--) {
		static const uint32_t flags[] = { VOCAB_NFC, 0, VOCAB_NFC | VOCAB_IGNORE_MERGES };
		struct vocab *v = small_bytes(&rng, (uint32_t)(test_random(&rng) % 150),
					      (uint32_t)(i % VOCAB_RULE_COUNT), flags[i % 3]);
		void *section, *again;
		size_t bytes, more;
		struct vocab *back;
		struct tokenizer *t;
		char why[256] = "";

		if (i % 8)
			add_whole(v);
		t = open_vocab(v, &section, &bytes);
		for (int k = 0; k < 400; k++) {
			static uint8_t text[3000];
			size_t len = k % 3 ? random_text(text, k % 100 ? 120 : sizeof(text)) :
					     random_marks(text, 60);

			compare(v, t, text, len, k % 4 ? 0 : TOKENIZER_SPECIAL);
		}
		/* And the way back: the same vocabulary, the same bytes. */
		ck_assert_msg(!vocab_from_section(section, bytes, &back, why, sizeof(why)), "%s",
			      why);
		ck_assert(!vocab_build(back, back->n_tokens, &again, &more, why, sizeof(why)));
		ck_assert_uint_eq(bytes, more);
		ck_assert(!memcmp(section, again, bytes));
		ck_assert_uint_eq(tokenizer_facts(t)->n_added, i % 8 ? 16 : 0);
		tokenizer_close(t);
		free(section);
		free(again);
		vocab_free(v);
		vocab_free(back);
	}
}
END_TEST

/* Breaks when tokens that text became are hidden when it is shown, or special ones are not. */
START_TEST(shown_as_text)
{
	struct vocab *v = small_bytes(&(uint64_t){ 4 }, 30, VOCAB_RULE_GPT2, VOCAB_NFC);
	static const char text[] = "a     b <s> e\xcc\x81\nabb";
	char out[256];
	struct detok d;
	void *section;
	size_t bytes, n, len = 0;
	struct tokenizer *t;

	add_whole(v);
	t = open_vocab(v, &section, &bytes);
	ck_assert(!tokenizer_encode(t, scratch, text, sizeof(text) - 1, 0, ids, 100, &n));
	detok_init(&d, t);
	for (size_t i = 0; i < n; i++) {
		ck_assert_uint_ne(tokenizer_token(t, ids[i]).kind, VOCAB_SPECIAL);
		len += detok_push(&d, t, ids[i], out + len);
	}
	ck_assert_uint_eq(len, sizeof(text) - 2);
	ck_assert_mem_eq(out, "a     b <s> \xc3\xa9\nabb", len);
	tokenizer_close(t);
	free(section);
	vocab_free(v);
}
END_TEST

/* Breaks when a text that grows in NFC does not fit a scratch of its own length. */
START_TEST(grows)
{
	static char text[TEXT_MAX];
	struct vocab *v = small_bytes(&(uint64_t){ 4 }, 30, VOCAB_RULE_NONE, VOCAB_NFC);
	void *section;
	size_t bytes, n;
	struct tokenizer *t = open_vocab(v, &section, &bytes);

	for (size_t i = 0; i < TEXT_MAX; i += 4)
		memcpy(text + i, "\xf0\x9d\x85\xa0", 4);
	ck_assert(!tokenizer_encode(t, scratch, text, TEXT_MAX, 0, ids, 4 * TEXT_MAX, &n));
	ck_assert_uint_eq(n, 3 * TEXT_MAX);
	ck_assert_uint_le(n, tokenizer_bound(t, TEXT_MAX));
	ck_assert_int_eq(tokenizer_encode(t, scratch, text, TEXT_MAX, 0, ids, 10, &n), -ENOSPC);
	ck_assert_uint_eq(n, 3 * TEXT_MAX);
	tokenizer_close(t);
	free(section);
	vocab_free(v);
}
END_TEST

/* ---- refused
 * -------------------------------------------------------------------------------------- */

static void refused(struct vocab *v, const char *sentence)
{
	char why[256] = "";

	ck_assert_int_eq(vocab_check(v, v->n_tokens, why, sizeof(why)), -EPROTO);
	ck_assert_msg(strstr(why, sentence) != NULL, "'%s' does not say '%s'", why, sentence);
	vocab_free(v);
}

static struct vocab *with(const char *text, size_t len, uint32_t flags)
{
	struct vocab *v = small_bytes(&(uint64_t){ 5 }, 10, VOCAB_RULE_GPT2, flags);

	ck_assert_int_eq(vocab_add(v, text, len, VOCAB_ADDED, 0), 0);
	return v;
}

/* Breaks when a token that no text can become, or that makes each byte dear, is let through. */
START_TEST(vocabularies_refused)
{
	struct vocab *v = small_spm(&(uint64_t){ 5 }, 10, true, 0);
	static char text[VOCAB_ADDED_BYTES_MAX + 1];
	char why[256] = "";

	ck_assert_int_eq(vocab_add(v, "  ", 2, VOCAB_ADDED, 0), 0);
	refused(v, "which only byte-level BPE does");
	refused(small_spm(&(uint64_t){ 5 }, 10, true, VOCAB_NFC), "flags 0x8");
	memset(text, ' ', sizeof(text));
	refused(with(text, sizeof(text), 0), "has 129 bytes; at most 128 may be");
	refused(with("e\xcc\x81", 3, VOCAB_NFC), "in NFC, which it is not in itself");
	refused(with("", 0, 0), "has no text");
	v = with("e\xcc\x81", 3, 0);
	ck_assert_msg(!vocab_check(v, v->n_tokens, why, sizeof(why)), "%s", why);
	vocab_free(v);
	v = with(text, VOCAB_ADDED_BYTES_MAX, VOCAB_NFC);
	ck_assert_msg(!vocab_check(v, v->n_tokens, why, sizeof(why)), "%s", why);
	vocab_free(v);
}
END_TEST

static void section_refused(const void *section, size_t bytes, size_t at, uint32_t value,
			    const char *sentence)
{
	uint8_t *copy = malloc(bytes);
	struct tokenizer *t;
	char why[256] = "";

	ck_assert_ptr_nonnull(copy);
	memcpy(copy, section, bytes);
	memcpy(copy + at, &value, sizeof(value));
	ck_assert_int_eq(tokenizer_open(copy, bytes, &t, why, sizeof(why)), -EPROTO);
	ck_assert_msg(strstr(why, sentence) != NULL, "'%s' does not say '%s'", why, sentence);
	free(copy);
}

static uint32_t word_at(const void *section, size_t at)
{
	uint32_t value;

	memcpy(&value, (const uint8_t *)section + at, sizeof(value));
	return value;
}

/* Breaks when encoding believes a list of tokens that the section does not bear out. */
START_TEST(sections_refused)
{
	struct vocab *v = small_bytes(&(uint64_t){ 5 }, 10, VOCAB_RULE_GPT2, VOCAB_NFC);
	struct tokenizer_layout l;
	void *section;
	size_t bytes, last;
	uint32_t from;

	add_whole(v);
	tokenizer_close(open_vocab(v, &section, &bytes));
	l = tokenizer_layout(section);
	last = l.tokens + (v->n_tokens - 1) * sizeof(uint32_t);
	from = word_at(section, last) & (TOKENIZER_TEXT_MAX - 1);
#define REFUSED(at, value, sentence) section_refused(section, bytes, at, value, sentence)
	REFUSED(l.added, word_at(section, l.added + 4), "added token");
	REFUSED(l.added + 4, word_at(section, l.added), "is out of order");
	REFUSED(l.added, 0, "token 0 stands among the added ones");
	REFUSED(l.added, v->n_tokens, "stands among the added ones");
	REFUSED(l.added, UINT32_MAX, "stands among the added ones");
	REFUSED(offsetof(struct tokenizer_header, n_added), 0, "what it holds takes");
	REFUSED(offsetof(struct tokenizer_header, n_added), 15, "16 added ones, not");
	REFUSED(offsetof(struct tokenizer_header, n_added), v->n_tokens + 1, "added ones");
	REFUSED(offsetof(struct tokenizer_header, n_added), UINT32_MAX, "added ones");
	REFUSED(offsetof(struct tokenizer_header, reserved), 1, "reserved word 0");
	REFUSED(offsetof(struct tokenizer_header, flags), 16, "flags 0x10");
	for (uint32_t kind = 0; kind < 8; kind++)
		if (kind != VOCAB_ADDED)
			REFUSED(last, kind << TOKENIZER_TEXT_BITS | from, "token");
	free(section);
	vocab_free(v);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("added tokens");
	TCase *c = tcase_create("added tokens");
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(c, setup, teardown);
	tcase_set_timeout(c, 120);
	tcase_add_test(c, every_character);
	tcase_add_test(c, random_clusters);
	tcase_add_test(c, marks_without_end);
	tcase_add_test(c, by_definition);
	tcase_add_test(c, shown_as_text);
	tcase_add_test(c, grows);
	tcase_add_test(c, vocabularies_refused);
	tcase_add_test(c, sections_refused);
	suite_add_tcase(s, c);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

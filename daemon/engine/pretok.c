/* SPDX-License-Identifier: MIT */
/*
 * Scanners for the pre-tokenizers' expressions. Their alternatives are tried in order, and what a
 * backtracking matcher would find is worked out here once: of a run of white space, for example,
 * \s*[\r\n]+ takes all up to its last line break, and \s+(?!\S) all but the last character, which
 * may be the space that belongs to the word behind it.
 */
#include "pretok.h"

#include <stdbool.h>
#include <utf8proc.h>
#include "utf8.h"
#include "vocab.h"

enum { OTHER, LETTER, NUMBER, SPACE, BREAK }; /* BREAK: \r and \n, which are white space as well */

#define O4 OTHER, OTHER, OTHER, OTHER
#define L4 LETTER, LETTER, LETTER, LETTER
#define LETTERS L4, L4, L4, L4, L4, L4, LETTER, LETTER
static const uint8_t ascii[128] = {
	O4, O4, OTHER, SPACE, BREAK, SPACE, SPACE, BREAK, OTHER, OTHER, O4, O4, O4, O4,
	SPACE, OTHER, OTHER, OTHER, O4, O4, O4,
	NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER,
	OTHER, OTHER, OTHER, OTHER, OTHER, OTHER,
	OTHER, LETTERS, OTHER, OTHER, OTHER, OTHER, OTHER,
	OTHER, LETTERS, OTHER, OTHER, OTHER, OTHER, OTHER,
};

/* White_Space beyond ASCII: U+0085 besides the categories Z*. */
static unsigned class_of(uint32_t c)
{
	switch (utf8proc_category((utf8proc_int32_t)c)) {
	case UTF8PROC_CATEGORY_LU:
	case UTF8PROC_CATEGORY_LL:
	case UTF8PROC_CATEGORY_LT:
	case UTF8PROC_CATEGORY_LM:
	case UTF8PROC_CATEGORY_LO:
		return LETTER;
	case UTF8PROC_CATEGORY_ND:
	case UTF8PROC_CATEGORY_NL:
	case UTF8PROC_CATEGORY_NO:
		return NUMBER;
	case UTF8PROC_CATEGORY_ZS:
	case UTF8PROC_CATEGORY_ZL:
	case UTF8PROC_CATEGORY_ZP:
		return SPACE;
	default:
		return c == 0x85 ? SPACE : OTHER;
	}
}

/* The character at p < end: its class, and its length in *n. */
static unsigned class_at(const uint8_t *p, const uint8_t *end, uint32_t *n)
{
	if (*p < 0x80) {
		*n = 1;
		return ascii[*p];
	}
	*n = utf8_length(p, (size_t)(end - p));
	if (*n)
		return class_of(utf8_value(p, *n));
	*n = 1;
	return OTHER;
}

/* Past all characters of one class from p on. */
static const uint8_t *run_of(unsigned class, const uint8_t *p, const uint8_t *end)
{
	uint32_t n;

	while (p < end && class_at(p, end, &n) == class)
		p += n;
	return p;
}

static bool is_class(unsigned class, const uint8_t *p, const uint8_t *end)
{
	uint32_t n;

	return p < end && class_at(p, end, &n) == class;
}

/* Behind an apostrophe; any_case: and U+017F, which is a small s in another form. */
static size_t contraction(const uint8_t *p, const uint8_t *end, bool any_case)
{
	uint8_t fold = any_case ? 0x20 : 0, a, b;

	if (end - p < 2)
		return 0;
	a = p[1] | fold;
	if (a == 's' || a == 't' || a == 'm' || a == 'd')
		return 2;
	if (end - p < 3)
		return 0;
	b = p[2] | fold;
	if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ||
	    (any_case && p[1] == 0xc5 && p[2] == 0xbf))
		return 3;
	return 0;
}

/* What all rules do with white space that no word takes; runs as such end at the end of text. */
static const uint8_t *white(const uint8_t *p, const uint8_t *end, bool breaks, bool before_number)
{
	const uint8_t *at = p, *last = p, *line = NULL;
	uint32_t n;

	while (at < end) {
		unsigned class = class_at(at, end, &n);

		if (class != SPACE && class != BREAK)
			break;
		last = at;
		at += n;
		if (class == BREAK)
			line = at;
	}
	if (breaks && line)
		return line;
	if (at == end || last == p || (before_number && is_class(NUMBER, at, end)))
		return at;
	return last;
}

static const uint8_t *llama3(const uint8_t *p, const uint8_t *end)
{
	const uint8_t *next;
	uint32_t n;
	unsigned class = class_at(p, end, &n);
	size_t c;

	if (class == LETTER)
		return run_of(LETTER, p + n, end);
	if (*p == '\'') {
		c = contraction(p, end, true);
		if (c)
			return p + c;
	}
	if (class == NUMBER) {
		for (int i = 1; i < 3 && is_class(NUMBER, p + n, end); i++) {
			p += n;
			class_at(p, end, &n);
		}
		return p + n;
	}
	if (class != BREAK && is_class(LETTER, p + n, end))
		return run_of(LETTER, p + n, end);
	next = *p == ' ' ? p + 1 : p;
	if (is_class(OTHER, next, end)) {
		next = run_of(OTHER, next, end);
		return run_of(BREAK, next, end);
	}
	return white(p, end, true, false);
}

static const uint8_t *gpt2(const uint8_t *p, const uint8_t *end, bool one_digit)
{
	const uint8_t *word = *p == ' ' && end - p > 1 ? p + 1 : p;
	uint32_t n;
	unsigned class;
	size_t c;

	if (*p == '\'') {
		c = contraction(p, end, false);
		if (c)
			return p + c;
	}
	class = class_at(word, end, &n);
	if (class == NUMBER && one_digit)
		return word > p ? word : p + n;
	if (class == SPACE || class == BREAK)
		return white(p, end, false, one_digit);
	return run_of(class, word + n, end);
}

size_t pretok_next(uint32_t rule, const uint8_t *p, size_t len)
{
	const uint8_t *end = p + len;

	switch (rule) {
	case VOCAB_RULE_LLAMA3:
		return (size_t)(llama3(p, end) - p);
	case VOCAB_RULE_GPT2:
		return (size_t)(gpt2(p, end, false) - p);
	case VOCAB_RULE_STARCODER:
		return (size_t)(gpt2(p, end, true) - p);
	default:
		return len;
	}
}

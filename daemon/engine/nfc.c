/* SPDX-License-Identifier: MIT */
/*
 * A text falls into clusters: a character, and those behind it that may combine with what stands
 * before them. A cluster's form C does not depend on its neighbours, so that each is brought into
 * it by itself: decomposed, its marks put in order, composed again. The tables are utf8proc's. The
 * order is ours: utf8proc has a sort for it that takes a million marks in a row 10^12 steps.
 *
 * Characters below U+0300 are in form C and combine only with what stands behind them. Their first
 * bytes are below 0xcc, and so are all bytes that only go on: most texts are done by looking for a
 * byte that is not.
 */
#include "nfc.h"

#include <assert.h>
#include <string.h>
#include <utf8proc.h>
#include "utf8.h"

enum { FIRST_MARK = 0x300, FIRST_MARK_BYTE = 0xcc, SHORT_RUN = 16 };

static const uint8_t *plain(const uint8_t *p, const uint8_t *end)
{
	const uint64_t high = 0x8080808080808080u;
	uint64_t w;

	/* Eight bytes at once: the top bit, and 0x4c or more in the seven below it. */
	for (; end - p >= 8; p += 8) {
		memcpy(&w, p, sizeof(w));
		if (w & ((w & ~high) + 0x3434343434343434u) & high)
			break;
	}
	while (p < end && *p < FIRST_MARK_BYTE)
		p++;
	return p;
}

bool nfc_plain(const uint8_t *p, size_t len)
{
	return plain(p, p + len) == p + len;
}

/* Han from U+3400, and what stands between it: many, none joins, all are in form C. */
static bool is_ideograph(uint32_t c)
{
	return c >= 0x3400 && c < 0xa000;
}

/* Whether it may combine with what stands before it, or change places with it. */
static bool joins(uint32_t c)
{
	const utf8proc_property_t *property;

	if (c < FIRST_MARK || is_ideograph(c))
		return false;
	/* Letters that join, as in other scripts only marks do: Hangul's and Kirat Rai's. */
	if ((c >= 0x1160 && c < 0x1200) || (c >= 0x16d40 && c < 0x16d80))
		return true;
	property = utf8proc_get_property((utf8proc_int32_t)c);
	return property->combining_class || property->category == UTF8PROC_CATEGORY_MN ||
	       property->category == UTF8PROC_CATEGORY_MC ||
	       property->category == UTF8PROC_CATEGORY_ME;
}

static unsigned class_of(int32_t c)
{
	return c < FIRST_MARK ? 0 : utf8proc_get_property(c)->combining_class;
}

/* Marks by their class; those of one class stay as they stand. */
static void sort_marks(int32_t *code, size_t n, int32_t *sorted)
{
	size_t place[257] = { 0 };

	if (n <= SHORT_RUN) {
		for (size_t i = 1; i < n; i++) {
			int32_t c = code[i];
			size_t k = i;

			for (; k && class_of(code[k - 1]) > class_of(c); k--)
				code[k] = code[k - 1];
			code[k] = c;
		}
		return;
	}
	for (size_t i = 0; i < n; i++)
		place[class_of(code[i]) + 1]++;
	for (size_t i = 1; i < 257; i++)
		place[i] += place[i - 1];
	for (size_t i = 0; i < n; i++)
		sorted[place[class_of(code[i])]++] = code[i];
	memcpy(code, sorted, n * sizeof(*code));
}

static void order_marks(int32_t *code, size_t n, int32_t *sorted)
{
	for (size_t i = 0; i < n; i++) {
		size_t from = i;
		bool in_order = true;

		for (unsigned last = 0, class; i < n && (class = class_of(code[i])) != 0; i++) {
			in_order = in_order && class >= last;
			last = class;
		}
		if (!in_order)
			sort_marks(code + from, i - from, sorted);
	}
}

/* Appends the canonical decomposition. */
static size_t decompose(uint32_t c, int32_t *out, size_t room)
{
	int unused = 0;
	utf8proc_ssize_t n = utf8proc_decompose_char((utf8proc_int32_t)c, out,
						     (utf8proc_ssize_t)room, UTF8PROC_DECOMPOSE,
						     &unused);

	assert(n > 0 && (size_t)n <= room);
	return (size_t)n;
}

/* A cluster into form C. Returns the bytes. */
static size_t compose(const uint8_t *p, size_t len, const struct nfc_room *room, uint8_t *out)
{
	size_t n = 0, bytes = 0, max = nfc_room(len);
	utf8proc_ssize_t left;

	for (size_t at = 0; at < len;) {
		uint32_t k = utf8_length(p + at, len - at);

		n += decompose(utf8_value(p + at, k), room->code + n, max - n);
		at += k;
	}
	order_marks(room->code, n, room->sorted);
	left = utf8proc_normalize_utf32(room->code, (utf8proc_ssize_t)n,
					UTF8PROC_COMPOSE | UTF8PROC_STABLE);
	for (utf8proc_ssize_t i = 0; i < left; i++)
		bytes += (size_t)utf8proc_encode_char(room->code[i], out + bytes);
	return bytes;
}

/* Bytes of the cluster that begins at p; *one: it is a single character, and that is c. */
static size_t cluster(const uint8_t *p, const uint8_t *end, uint32_t first, bool *one)
{
	const uint8_t *at = p + first;

	while (at < end) {
		uint32_t n = utf8_length(at, (size_t)(end - at));

		if (!n || !joins(utf8_value(at, n)))
			break;
		at += n;
	}
	*one = at == p + first;
	return (size_t)(at - p);
}

static bool is_stable(uint32_t c)
{
	int32_t whole[4];

	return c < FIRST_MARK || is_ideograph(c) ||
	       (decompose(c, whole, 4) == 1 && whole[0] == (int32_t)c);
}

size_t nfc(const uint8_t *p, size_t len, const struct nfc_room *room, uint8_t *out)
{
	const uint8_t *end = p + len;
	size_t n = 0;

	while (p < end) {
		const uint8_t *from = p;
		size_t bytes;
		uint32_t first;
		bool one;

		p = plain(p, end);
		/* The last one may be what the next joins. It has at most two bytes. */
		if (p < end && p > from)
			p -= p - from > 1 && utf8_length(p - 2, 2) == 2 ? 2 : 1;
		memcpy(out + n, from, (size_t)(p - from));
		n += (size_t)(p - from);
		if (p == end)
			break;
		first = utf8_length(p, (size_t)(end - p));
		if (!first) {
			out[n++] = *p++;
			continue;
		}
		bytes = cluster(p, end, first, &one);
		if (one && is_stable(utf8_value(p, first))) {
			memcpy(out + n, p, bytes);
			n += bytes;
		} else {
			n += compose(p, bytes, room, out + n);
		}
		p += bytes;
	}
	return n;
}

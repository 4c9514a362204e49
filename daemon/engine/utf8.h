/* SPDX-License-Identifier: MIT */
#ifndef UTF8_H
#define UTF8_H

/*
 * UTF-8 as Unicode 3.9 has it (table 3-7): no surrogates, nothing overlong, nothing above U+10FFFF.
 */

#include <stddef.h>
#include <stdint.h>

/* Bytes that a sequence with this first byte has; 0: none begins with it. */
static inline uint32_t utf8_wants(uint8_t first)
{
	if (first < 0x80)
		return 1;
	if (first < 0xc2 || first > 0xf4)
		return 0;
	return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/* Bytes that no character has: those of no sequence, and of planes 4 to 11, where there is nothing. */
static inline int utf8_never(unsigned byte)
{
	return byte == 0xc0 || byte == 0xc1 || byte == 0xf1 || byte == 0xf2 || byte >= 0xf5;
}

/* Whether second may stand behind first, which wants at least two. */
static inline int utf8_goes_on(uint8_t first, uint8_t second)
{
	uint8_t low = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
	uint8_t high = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;

	return second >= low && second <= high;
}

/* Bytes of the code point that p[0..len), len >= 1, begins with; 0 when that is not UTF-8. */
static inline uint32_t utf8_length(const uint8_t *p, size_t len)
{
	uint32_t n = utf8_wants(p[0]);

	if (n == 1)
		return 1;
	if (!n || n > len || !utf8_goes_on(p[0], p[1]))
		return 0;
	for (uint32_t i = 2; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

/* The code point of those n bytes. */
static inline uint32_t utf8_value(const uint8_t *p, uint32_t n)
{
	switch (n) {
	case 1:
		return p[0];
	case 2:
		return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu);
	case 3:
		return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
	default:
		return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
	}
}

#endif

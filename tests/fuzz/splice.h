/* SPDX-License-Identifier: MIT */
#ifndef SPLICE_H
#define SPLICE_H

/*
 * Inputs of a fuzzer are short, valid vocabularies are not: they need 256 entries. So the first
 * byte of an input says what the rest is: 0, a whole file; else four bytes that say where the rest
 * is put into a valid one, and how much of that it takes the place of.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct splice {
	uint8_t *data; /* the caller frees it */
	size_t size;
};

static inline struct splice splice(const uint8_t *data, size_t size, const void *base,
				   size_t base_size)
{
	struct splice s = { malloc(size + base_size + 1), 0 };
	size_t at, cut;

	if (!s.data)
		abort();
	if (size < 5 || !data[0]) {
		s.size = size ? size - 1 : 0;
		if (s.size)
			memcpy(s.data, data + 1, s.size);
		return s;
	}
	at = (data[1] | (size_t)data[2] << 8) % (base_size + 1);
	cut = (data[3] | (size_t)data[4] << 8) % (base_size - at + 1);
	memcpy(s.data, base, at);
	memcpy(s.data + at, data + 5, size - 5);
	memcpy(s.data + at + size - 5, (const uint8_t *)base + at + cut, base_size - at - cut);
	s.size = base_size - cut + size - 5;
	return s;
}

#endif

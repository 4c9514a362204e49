/* SPDX-License-Identifier: MIT */
#ifndef NFC_H
#define NFC_H

/*
 * Unicode's normalisation form C, in one pass, in memory that is given, for texts of strangers: a
 * text takes time in proportion to its length, however its marks are stacked. What is not UTF-8
 * stays as it is, and what stands on both sides of it does not combine.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define NFC_GROWTH 3u /* NFC of n bytes has at most so many times n */

struct nfc_room {
	int32_t *code, *sorted; /* nfc_room(bytes of the text) code points each */
};

static inline size_t nfc_room(size_t bytes)
{
	return 2 * bytes + 4;
}

/* Whether no character is as far up as those that NFC may change: most texts in Latin letters. */
bool nfc_plain(const uint8_t *p, size_t len);
/* out holds NFC_GROWTH * len bytes. Returns how many are used. */
size_t nfc(const uint8_t *p, size_t len, const struct nfc_room *room, uint8_t *out);

#endif

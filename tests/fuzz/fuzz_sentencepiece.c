/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as a SentencePiece model. What is accepted must be a vocabulary that passes its check;
 * what is refused must say why.
 */
#include <assert.h>
#include <stdio.h>
#include "source.h"
#include "splice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t base[8192];
static size_t n;

static void put(const void *data, size_t len)
{
	assert(n + len <= sizeof(base));
	memcpy(base + n, data, len);
	n += len;
}

static void put_piece(const char *text, uint8_t score, uint8_t type)
{
	uint8_t len = (uint8_t)strlen(text);

	put(&(uint8_t[4]){ 0x0a, (uint8_t)(len + 9), 0x0a, len }, 4);
	put(text, len);
	put(&(uint8_t[7]){ 0x15, 0, 0, score, 0xc0, 0x18, type }, 7);
}

/* All bytes, some words of which one is longer than its parts, and what trained them. */
static void make_base(void)
{
	static const char *const words[] = { "\xe2\x96\x81",
					     "a",
					     "b",
					     "ab",
					     ("\xe2\x96\x81"
					      "ab"),
					     "\xc3\xa9" };
	static const uint8_t specs[] = { 0x12, 5,    0x18, 2,	 0x98, 2,    1,	  0x1a,
					 14,   0x0a, 8,	   'i',	 'd',  'e',  'n', 't',
					 'i',  't',  'y',  0x18, 1,    0x20, 0 };

	put_piece("<unk>", 0, 2);
	put_piece("<s>", 0, 3);
	put_piece("</s>", 0, 3);
	for (unsigned b = 0; b < 256; b++) {
		char text[8];

		snprintf(text, sizeof(text), "<0x%02X>", b);
		put_piece(text, 0, 6);
	}
	for (uint8_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		put_piece(words[i], i, 1);
	put(specs, sizeof(specs));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vocab *v = NULL;
	char why[256] = "";
	struct splice s;
	int ret;

	if (!n) {
		make_base();
		ret = vocab_read_sentencepiece(base, n, "f", &v, why, sizeof(why));
		assert(!ret);
		v = vocab_free(v);
	}
	s = splice(data, size, base, n);
	ret = vocab_read_sentencepiece(s.data, s.size, "f", &v, why, sizeof(why));
	assert(ret ? ret < 0 && *why && !v : v && !vocab_check(v, v->n_tokens, why, sizeof(why)));
	vocab_free(v);
	free(s.data);
	return 0;
}

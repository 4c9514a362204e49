/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as an .htok file. What is accepted must be a vocabulary that passes its check; what is
 * refused must say why.
 */
#include <assert.h>
#include <stdio.h>
#include "source.h"
#include "splice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t base[4096];
static size_t n;

static void put(const void *data, size_t len)
{
	assert(n + len <= sizeof(base));
	memcpy(base + n, data, len);
	n += len;
}

static void put_u32(uint32_t v)
{
	put(&(uint8_t[4]){ (uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24) },
	    4);
}

static void put_token(const char *text, size_t len)
{
	put(&(uint8_t[2]){ (uint8_t)len, 0 }, 2);
	put(text, len);
}

/* Version 3: all bytes, two words, two specials, two merges. */
static void make_base(void)
{
	const uint32_t head[] = { 3, 260, 2, 258, 259 };

	put("HTOK", 4);
	for (int i = 0; i < 5; i++)
		put_u32(head[i]);
	for (unsigned b = 0; b < 256; b++) {
		uint8_t byte = (uint8_t)b;
		char text[2];

		put_token(text, vocab_map(&byte, 1, text));
	}
	put_token("ab", 2);
	put_token("abc", 3);
	put_token("<|begin_of_text|>", 17);
	put_token("<|eot_id|>", 10);
	for (int i = 0; i < 2; i++) {
		put_u32(i ? 256 : 'a');
		put_u32(i ? 'c' : 'b');
		put_u32(i ? 257 : 256);
	}
	put_u32(2);
	put_u32(258);
	put_u32(259);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vocab *v = NULL;
	char why[256] = "";
	struct splice s;
	int ret;

	if (!n) {
		make_base();
		ret = vocab_read_htok(base, n, "f", &v, why, sizeof(why));
		assert(!ret);
		v = vocab_free(v);
	}
	s = splice(data, size, base, n);
	ret = vocab_read_htok(s.data, s.size, "f", &v, why, sizeof(why));
	assert(ret ? ret < 0 && *why && !v : v && !vocab_check(v, v->n_tokens, why, sizeof(why)));
	vocab_free(v);
	free(s.data);
	return 0;
}

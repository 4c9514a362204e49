/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as lines of ranks. What is accepted must be a vocabulary that passes its check; what is
 * refused must say why.
 */
#include <assert.h>
#include <stdio.h>
#include "source.h"
#include "splice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char base[4096];
static size_t n;

/* All bytes, and three words. */
static void make_base(void)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz01234567"
				      "89+/";
	static const char words[] = "YWI= 256\nYWJj 257\nIGFiYw== 258\n";

	for (unsigned b = 0; b < 256; b++)
		n += (size_t)snprintf(base + n, sizeof(base) - n, "%c%c== %u\n", letters[b >> 2],
				      letters[b << 4 & 63], b);
	n += (size_t)snprintf(base + n, sizeof(base) - n, "%s", words);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vocab *v = NULL;
	char why[256] = "";
	struct splice s;
	int ret;

	if (!n) {
		make_base();
		ret = vocab_read_ranks(base, n, "f", &v, why, sizeof(why));
		assert(!ret);
		v = vocab_free(v);
	}
	s = splice(data, size, base, n);
	ret = vocab_read_ranks(s.data, s.size, "f", &v, why, sizeof(why));
	assert(ret ? ret < 0 && *why && !v : v && !vocab_check(v, v->n_tokens, why, sizeof(why)));
	vocab_free(v);
	free(s.data);
	return 0;
}

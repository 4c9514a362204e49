/* SPDX-License-Identifier: MIT */
/*
 * The first byte chooses. Odd: hostile text for a good tokenizer, of one of six vocabularies; its
 * ids must exist, be no special ones, spell the text (byte-level; in NFC, if it is to be), and come
 * back as whole UTF-8.
 * Even: a good section with bytes overwritten as the input says, and encoding with whatever is
 * accepted.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "lib_vocab.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { KINDS = 6, TEXT_MAX = 4096 };

static struct tokenizer_scratch *scratch;
static struct tokenizer *good[KINDS];
static void *section[KINDS];
static size_t section_bytes[KINDS];
static uint32_t ids[TEXT_MAX * 4];
static uint8_t form_c[TEXT_MAX * 3];
static char out[1 << 20];

static void prepare(void)
{
	uint64_t rng = 1;
	struct vocab *v[KINDS] = {
		small_bytes(&rng, 40, VOCAB_RULE_LLAMA3, VOCAB_IGNORE_MERGES),
		small_bytes(&rng, 40, VOCAB_RULE_STARCODER, 0),
		small_spm(&rng, 30, true, VOCAB_DUMMY_PREFIX),
		small_spm(&rng, 30, false, 0),
		small_bytes(&rng, 40, VOCAB_RULE_GPT2, VOCAB_NFC),
		small_bytes(&rng, 40, VOCAB_RULE_LLAMA3, VOCAB_IGNORE_MERGES | VOCAB_NFC),
	};

	scratch = tokenizer_scratch_new(TEXT_MAX);
	assert(scratch);
	add_whole(v[4]);
	add_whole(v[5]);
	for (int i = 0; i < KINDS; i++) {
		good[i] = open_vocab(v[i], &section[i], &section_bytes[i]);
		vocab_free(v[i]);
	}
}

static void encode(const struct tokenizer *t, const uint8_t *text, size_t len, unsigned flags,
		   bool exact)
{
	const struct tokenizer_facts *f = tokenizer_facts(t);
	struct detok d;
	size_t n, at = 0;

	assert(tokenizer_encode(t, scratch, (const char *)text, len, flags, ids, TEXT_MAX * 4,
				&n) == 0);
	assert(flags & TOKENIZER_SPECIAL || n <= tokenizer_bound(t, len));
	/* What stands between special tokens is brought into NFC by itself. */
	exact = exact && !(f->flags & VOCAB_NFC && flags & TOKENIZER_SPECIAL);
	if (exact && f->flags & VOCAB_NFC) {
		len = reference_nfc(text, len, form_c);
		text = form_c;
	}
	detok_init(&d, t);
	for (size_t i = 0; i < n; i++) {
		struct tokenizer_token token = tokenizer_token(t, ids[i]);

		assert(ids[i] < f->n_tokens);
		assert(detok_push(&d, t, ids[i], out) <= detok_bound(t));
		assert(token.kind != VOCAB_SPECIAL || flags & TOKENIZER_SPECIAL ||
		       ids[i] == f->unk);
		if (exact && f->kind == VOCAB_BYTES) {
			assert(token.len <= len - at &&
			       memcmp(token.text, text + at, token.len) == 0);
			at += token.len;
		}
	}
	assert(detok_flush(&d, out) <= 9);
	assert(!exact || f->kind != VOCAB_BYTES || at == len);
}

/* Two bits of the first byte, and a third for those that take texts in NFC. */
static unsigned kind_of(uint8_t first)
{
	unsigned kind = first >> 1 & 3;

	return kind < 2 && first & 32 ? kind + 4 : kind;
}

/* Three bytes of where, one of what, again and again. */
static void hostile_section(unsigned kind, unsigned flags, const uint8_t *data, size_t size)
{
	static const uint8_t text[] = "abba <s>anne 123'n\n \xc3\xa9 \xe4\xbd\xa0 \xff ax\xc3\xa8 ";
	size_t bytes = section_bytes[kind];
	struct tokenizer *t;
	char why[200] = "";
	uint8_t *copy = malloc(bytes);

	assert(copy);
	memcpy(copy, section[kind], bytes);
	for (; size >= 4; data += 4, size -= 4) {
		size_t at = (data[0] | (size_t)data[1] << 8 | (size_t)data[2] << 16) % bytes;

		copy[at] = data[3];
	}
	if (tokenizer_open(copy, bytes, &t, why, sizeof(why)) == 0) {
		encode(t, text, sizeof(text) - 1, flags, false);
		tokenizer_close(t);
	} else {
		assert(*why);
	}
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!scratch)
		prepare();
	if (!size || size > TEXT_MAX)
		return 0;
	if (data[0] & 1)
		encode(good[kind_of(data[0])], data + 1, size - 1, data[0] >> 3 & 3, true);
	else
		hostile_section(kind_of(data[0]), data[0] >> 3 & 3, data + 1, size - 1);
	return 0;
}

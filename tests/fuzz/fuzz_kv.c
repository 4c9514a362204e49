/* SPDX-License-Identifier: MIT */
/*
 * The KV cache's bookkeeping under any order of calls: every invariant holds, and each computed position
 * of each sequence holds what this sequence's text says. If it did not, one user would read another's.
 *
 * A byte of size, then operations: the low bits of a byte say which and of which sequence, the next
 * byte is its number.
 */
#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "kv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BLOCKS	  12u
#define SEQS	  4u
#define POSITIONS (6 * KV_BLOCK)

static const struct kv_principal someone[2] = { { 0, 1000 }, { 1, 1000 } };

/* text[i]: a number for who and all tokens to position i: what the engine would have computed. */
struct shadow {
	struct kv_seq *s;
	uint32_t who, computed;
	uint64_t text[POSITIONS];
};
static struct shadow shadow[SEQS];
static uint64_t arena[BLOCKS][KV_BLOCK];
static struct kv *kv;

static uint64_t fold(uint64_t h, uint64_t x)
{
	h = (h + x + 1) * 0xd6e8feb86659fd93;
	return h ^ h >> 32;
}

/* The text from position at on, of these tokens. */
static void write_text(struct shadow *w, uint32_t at, const uint32_t *tokens, uint32_t n)
{
	uint64_t h = at ? w->text[at - 1] : w->who;

	for (uint32_t i = 0; i < n; i++)
		w->text[at + i] = h = fold(h, tokens[i]);
}

static void check_contents(void)
{
	struct kv_counts c = kv_counts(kv);

	assert(c.held + c.findable + c.free == c.blocks);
	for (uint32_t i = 0; i < SEQS; i++) {
		const struct shadow *w = &shadow[i];
		uint32_t n = w->computed;

		if (!w->s)
			continue;
		/* A block's last computed position, then its first: a part of it alone is never replaced. */
		while (n) {
			const uint64_t *block = arena[kv_seq_blocks(w->s)[(n - 1) / KV_BLOCK]];

			assert(block[(n - 1) % KV_BLOCK] == w->text[n - 1]);
			n = (n - 1) / KV_BLOCK * KV_BLOCK;
			assert(block[0] == w->text[n]);
		}
	}
}

static void compute(struct shadow *w, uint32_t n)
{
	for (; w->computed < n; w->computed++)
		arena[kv_seq_blocks(w->s)[w->computed / KV_BLOCK]][w->computed % KV_BLOCK] =
			w->text[w->computed];
}

/* Few texts: they begin equal, and where they part depends on the number. */
static uint32_t token_at(uint32_t number, uint32_t at)
{
	return at < (number & 7u) * 24 ? at : at + number % 3;
}

static void append(struct shadow *w, uint32_t number)
{
	uint32_t tokens[POSITIONS], length = kv_seq_length(w->s), n = number;
	struct kv_copy copy;
	int rc;

	n = n & 1 ? n / 2 : n / 16;
	for (uint32_t i = 0; i < n; i++)
		tokens[i] = token_at(number, length + i);
	rc = kv_append(kv, w->s, tokens, n, &copy);
	assert(rc == 0 || rc == -ENOSPC || rc == -EFBIG);
	assert((rc == -EFBIG) == (length + n > POSITIONS));
	assert(kv_seq_length(w->s) == length + (rc ? 0 : n));
	if (rc)
		return;
	if (copy.from != KV_NONE) {
		assert(copy.from != copy.to && copy.n && copy.n < KV_BLOCK);
		memcpy(arena[copy.to], arena[copy.from], copy.n * sizeof(arena[0][0]));
	}
	write_text(w, length, tokens, n);
}

static void open_one(struct shadow *w, uint32_t number)
{
	uint32_t tokens[POSITIONS], n = number * POSITIONS / 256;

	w->who = number & 1;
	w->s = kv_seq_open(kv, someone[w->who]);
	assert(w->s);
	for (uint32_t i = 0; i < n; i++)
		tokens[i] = token_at(number, i);
	n = n ? kv_seq_find(kv, w->s, tokens, n) : 0;
	write_text(w, 0, tokens, n);
	w->computed = n;
}

static void one_op(uint32_t op, uint32_t number)
{
	struct shadow *w = &shadow[op % SEQS], *to = &shadow[number % SEQS];

	op /= SEQS;
	if (!w->s) {
		open_one(w, number);
		return;
	}
	switch (op % 8) {
	case 0:
	case 1:
		append(w, number);
		compute(w, kv_seq_length(w->s));
		kv_computed(kv, w->s, kv_seq_length(w->s));
		break;
	case 2:
		append(w, number);
		break;
	case 3:
		compute(w, w->computed + (kv_seq_length(w->s) - w->computed) * number / 255);
		kv_computed(kv, w->s, w->computed);
		break;
	case 4:
		kv_seq_close(kv, w->s, number & 1);
		w->s = NULL;
		break;
	case 5:
		if (to->s)
			break;
		compute(w, kv_seq_length(w->s));
		*to = *w;
		to->s = kv_seq_fork(kv, w->s);
		assert(to->s);
		break;
	case 6:
		kv_truncate(kv, w->s, kv_seq_length(w->s) * number / 255);
		if (w->computed > kv_seq_length(w->s))
			w->computed = kv_seq_length(w->s);
		break;
	default:
		if (number < 16)
			kv_forget(kv);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 2)
		return 0;
	memset(arena, 0, sizeof(arena));
	kv = kv_new(data[0] % BLOCKS + 1, SEQS, POSITIONS);
	assert(kv);
	for (size_t i = 1; i + 1 < size; i += 2) {
		one_op(data[i], data[i + 1]);
		check_contents();
		/* All of it takes longer than an operation: often enough to be near its cause. */
		if (i % 16 == 1)
			kv_check(kv);
	}
	for (uint32_t i = 0; i < SEQS; i++) {
		if (shadow[i].s)
			kv_seq_close(kv, shadow[i].s, true);
		shadow[i].s = NULL;
	}
	kv_check(kv);
	assert(!kv_counts(kv).held && !kv_counts(kv).seqs);
	kv = kv_free(kv);
	return 0;
}

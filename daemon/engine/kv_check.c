/* SPDX-License-Identifier: MIT */
/* Every invariant of kv.c, counted anew from the sequences and the blocks themselves. */
#include <assert.h>
#include <string.h>

#include "kv_private.h"

static void clear(const struct kv *k)
{
	memset(k->scratch, 0, k->n_blocks * sizeof(*k->scratch));
}

static void check_seq(const struct kv *k, const struct kv_seq *s)
{
	uint32_t n = s->length / KV_BLOCK + (s->length % KV_BLOCK != 0);

	assert(s->length <= k->max_positions && s->known <= s->length / KV_BLOCK);
	for (uint32_t i = 0; i < n; i++) {
		uint32_t b = s->blocks[i], filled = s->length - i * KV_BLOCK;
		const struct block *p = &k->block[b];

		assert(b < k->n_blocks);
		k->scratch[b]++;
		if (i < s->known)
			assert(p->known);
		if (!p->known)
			continue;
		/* Besides these, one that the sequence was cut in the middle of. */
		assert(i < s->known || (i == s->known && filled < KV_BLOCK));
		assert(p->parent == (i ? s->blocks[i - 1] : KV_NONE));
		assert(p->principal.tenant == s->principal.tenant &&
		       p->principal.uid == s->principal.uid);
		filled = filled < KV_BLOCK ? filled : KV_BLOCK;
		assert(!memcmp(p->tokens, s->tokens + (size_t)i * KV_BLOCK,
			       filled * sizeof(*p->tokens)));
	}
}

static void check_seqs(const struct kv *k)
{
	uint32_t n_open = 0, n_free = 0;

	clear(k);
	for (uint32_t i = 0; i < k->n_seqs; i++) {
		if (!k->seq[i].open)
			continue;
		check_seq(k, &k->seq[i]);
		n_open++;
	}
	for (uint32_t i = k->free_seq; i != KV_NONE; i = k->seq[i].next_free) {
		assert(i < k->n_seqs && !k->seq[i].open && n_free < k->n_seqs);
		n_free++;
	}
	assert(n_open == k->n_open && n_open + n_free == k->n_seqs);
	for (uint32_t b = 0; b < k->n_blocks; b++)
		assert(k->block[b].refs == k->scratch[b]);
}

static void check_blocks(const struct kv *k)
{
	uint32_t n_free = 0, n_unheld = 0;

	clear(k);
	for (uint32_t b = 0; b < k->n_blocks; b++) {
		const struct block *p = &k->block[b];
		bool is_free = k->group[b / KV_NEIGHBOURS].free >> b % KV_NEIGHBOURS & 1;

		assert(is_free == (!p->refs && !p->known));
		n_free += is_free;
		n_unheld += p->known && !p->refs;
		if (!p->known)
			continue;
		assert(kv_known(k, p->principal, p->parent, p->tokens) == b);
		if (p->parent == KV_NONE)
			continue;
		assert(k->block[p->parent].known);
		assert(k->block[p->parent].principal.tenant == p->principal.tenant &&
		       k->block[p->parent].principal.uid == p->principal.uid);
		assert(!p->refs || k->block[p->parent].refs);
		k->scratch[p->parent]++;
	}
	for (uint32_t b = 0; b < k->n_blocks; b++)
		assert(!k->block[b].known || k->block[b].children == k->scratch[b]);
	assert(n_free == k->n_free && n_unheld == k->n_unheld);
}

static void check_use(const struct kv *k)
{
	uint32_t n = 0, older = KV_NONE;

	clear(k);
	for (uint32_t b = k->oldest; b != KV_NONE; b = k->block[b].newer) {
		const struct block *p = &k->block[b];

		assert(b < k->n_blocks && p->known && !p->refs && p->older == older);
		assert(n < k->n_blocks);
		n++;
		/* What follows a block goes before it. */
		k->scratch[b] = 1;
		assert(p->parent == KV_NONE || !k->scratch[p->parent]);
		older = b;
	}
	assert(older == k->newest && n == k->n_unheld);
}

static void check_groups(const struct kv *k)
{
	uint32_t n = 0;

	for (uint32_t list = 0; list <= KV_NEIGHBOURS; list++) {
		uint32_t prev = KV_NONE;

		for (uint32_t g = k->groups[list]; g != KV_NONE; g = k->group[g].next) {
			assert(g < k->n_groups && k->group[g].prev == prev);
			assert((uint32_t)__builtin_popcount(k->group[g].free) == list);
			assert(n < k->n_groups);
			n++;
			prev = g;
		}
	}
	assert(n == k->n_groups);
}

void kv_check(const struct kv *k)
{
	check_seqs(k);
	check_blocks(k);
	check_use(k);
	check_groups(k);
}

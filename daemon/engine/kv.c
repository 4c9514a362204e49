/* SPDX-License-Identifier: MIT */
/*
 * Blocks, and what is known of them. Three things keep it simple:
 *
 * Of a text one block is known only. Whoever computes it a second time gives its own back and takes the
 * known one, whose bytes are the same by the numeric contract. So all of a sequence's blocks are known
 * from the first to some place, each the parent of the next; who holds a block holds its parents; and a
 * block's parent, if it is that and known, names the whole text before it: comparing 32 tokens and one
 * number compares everything.
 *
 * A sequence gives its blocks back from the last to the first, so in the list of use a block is always
 * older than its parent, and taking the oldest takes the ends of texts first.
 *
 * No known block is written or given up while another one has it as its parent.
 */
#include "kv.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "kv_private.h"

#define ALL_FREE ((1u << KV_NEIGHBOURS) - 1)

/* ---- free blocks ------------------------------------------------------------------------------ */

static void group_unlink(struct kv *k, uint32_t g)
{
	struct group *p = &k->group[g];

	if (p->prev != KV_NONE)
		k->group[p->prev].next = p->next;
	else
		k->groups[__builtin_popcount(p->free)] = p->next;
	if (p->next != KV_NONE)
		k->group[p->next].prev = p->prev;
}

static void group_link(struct kv *k, uint32_t g)
{
	struct group *p = &k->group[g];
	uint32_t *head = &k->groups[__builtin_popcount(p->free)];

	p->prev = KV_NONE;
	p->next = *head;
	if (*head != KV_NONE)
		k->group[*head].prev = g;
	*head = g;
}

static void flip_free(struct kv *k, uint32_t b)
{
	uint32_t g = b / KV_NEIGHBOURS;

	group_unlink(k, g);
	k->group[g].free ^= 1u << b % KV_NEIGHBOURS;
	group_link(k, g);
}

static void give_back(struct kv *k, uint32_t b)
{
	assert(!k->block[b].refs && !k->block[b].known);
	flip_free(k, b);
	k->n_free++;
}

/* ---- known blocks ------------------------------------------------------------------------------ */

static uint64_t mix(uint64_t h, uint64_t x)
{
	h = (h ^ x) * 0x9e3779b97f4a7c15; /* the golden ratio; odd, so nothing is lost */
	return h ^ h >> 32;
}

/* A cache key and nothing more: equal ones are compared. */
static uint64_t hash_of(const struct kv *k, struct kv_principal principal, uint32_t parent,
			const uint32_t *tokens)
{
	uint64_t h = parent == KV_NONE ? mix(mix(1, principal.tenant), principal.uid) :
					 k->block[parent].hash;

	for (uint32_t i = 0; i < KV_BLOCK; i += 2)
		h = mix(h, tokens[i] | (uint64_t)tokens[i + 1] << 32);
	return h;
}

static bool same(struct kv_principal a, struct kv_principal b)
{
	return a.tenant == b.tenant && a.uid == b.uid;
}

uint32_t kv_known(const struct kv *k, struct kv_principal principal, uint32_t parent,
		  const uint32_t *tokens)
{
	uint64_t h = hash_of(k, principal, parent, tokens);
	uint32_t b = k->bucket[h & k->bucket_mask];

	for (; b != KV_NONE; b = k->block[b].chain) {
		const struct block *p = &k->block[b];

		if (p->hash == h && p->parent == parent && same(p->principal, principal) &&
		    !memcmp(p->tokens, tokens, sizeof(p->tokens)))
			break;
	}
	return b;
}

static void make_known(struct kv *k, uint32_t b, struct kv_principal principal, uint32_t parent,
		       const uint32_t *tokens)
{
	struct block *p = &k->block[b];
	uint32_t *bucket;

	assert(p->refs && !p->known);
	p->known = true;
	p->parent = parent;
	p->children = 0;
	p->principal = principal;
	memcpy(p->tokens, tokens, sizeof(p->tokens));
	p->hash = hash_of(k, principal, parent, tokens);
	bucket = &k->bucket[p->hash & k->bucket_mask];
	p->chain = *bucket;
	*bucket = b;
	if (parent != KV_NONE)
		k->block[parent].children++;
}

static void make_unknown(struct kv *k, uint32_t b)
{
	struct block *p = &k->block[b];
	uint32_t *at = &k->bucket[p->hash & k->bucket_mask];

	assert(p->known && !p->children);
	while (*at != b)
		at = &k->block[*at].chain;
	*at = p->chain;
	p->known = false;
	if (p->parent != KV_NONE)
		k->block[p->parent].children--;
}

/* ---- the list of use --------------------------------------------------------------------------- */

static void use_link(struct kv *k, uint32_t b)
{
	struct block *p = &k->block[b];

	p->newer = KV_NONE;
	p->older = k->newest;
	if (k->newest != KV_NONE)
		k->block[k->newest].newer = b;
	else
		k->oldest = b;
	k->newest = b;
	k->n_unheld++;
}

static void use_unlink(struct kv *k, uint32_t b)
{
	struct block *p = &k->block[b];

	if (p->older != KV_NONE)
		k->block[p->older].newer = p->newer;
	else
		k->oldest = p->newer;
	if (p->newer != KV_NONE)
		k->block[p->newer].older = p->older;
	else
		k->newest = p->older;
	k->n_unheld--;
}

static void evict(struct kv *k)
{
	uint32_t b = k->oldest;

	use_unlink(k, b);
	make_unknown(k, b);
	give_back(k, b);
	k->evicted++;
}

/* ---- holding ----------------------------------------------------------------------------------- */

static void hold(struct kv *k, uint32_t b)
{
	if (!k->block[b].refs++)
		use_unlink(k, b);
}

/* findable: whether it stays known when nobody else holds it. What follows it and is known needs it. */
static void release(struct kv *k, uint32_t b, bool findable)
{
	struct block *p = &k->block[b];

	assert(p->refs);
	if (--p->refs)
		return;
	if (p->known && (findable || p->children)) {
		use_link(k, b);
		return;
	}
	if (p->known)
		make_unknown(k, b);
	give_back(k, b);
}

/*
 * A block to hold as a sequence's i-th, before being the one before it: at the same place in a group as
 * in the sequence, so that the next ones find theirs beside it; a group that nobody uses sooner than one
 * of somebody else.
 */
static uint32_t take(struct kv *k, uint32_t before, uint32_t i)
{
	uint32_t g = KV_NONE, b;

	if (!k->n_free)
		evict(k);
	if (before != KV_NONE && k->group[before / KV_NEIGHBOURS].free)
		g = before / KV_NEIGHBOURS;
	for (uint32_t n = KV_NEIGHBOURS; g == KV_NONE; n--)
		g = k->groups[n];
	b = i % KV_NEIGHBOURS;
	if (!(k->group[g].free >> b & 1))
		b = (uint32_t)__builtin_ctz(k->group[g].free);
	b += g * KV_NEIGHBOURS;
	flip_free(k, b);
	k->n_free--;
	k->block[b].refs = 1;
	return b;
}

/* ---- all of it --------------------------------------------------------------------------------- */

struct kv *kv_new(uint32_t n_blocks, uint32_t n_seqs, uint32_t max_positions)
{
	struct kv *k = calloc(1, sizeof(*k));
	size_t table = 1, per_seq, tokens, blocks;

	assert(n_blocks < KV_NONE - KV_NEIGHBOURS && max_positions <= UINT32_MAX - KV_BLOCK);
	if (!k)
		return NULL;
	k->n_blocks = n_blocks;
	k->n_groups = (n_blocks + KV_NEIGHBOURS - 1) / KV_NEIGHBOURS;
	k->n_seqs = n_seqs;
	k->max_positions = max_positions;
	k->max_blocks = (max_positions + KV_BLOCK - 1) / KV_BLOCK;
	k->oldest = k->newest = k->free_seq = KV_NONE;
	while (table < n_blocks)
		table *= 2;
	k->bucket_mask = (uint32_t)(table - 1);
	per_seq = max_positions;
	if (__builtin_mul_overflow(per_seq, n_seqs, &tokens) ||
	    __builtin_mul_overflow((size_t)k->max_blocks, n_seqs, &blocks))
		return kv_free(k);
	k->block = calloc(n_blocks + 1ul, sizeof(*k->block));
	k->scratch = calloc(n_blocks + 1ul, sizeof(*k->scratch));
	k->group = calloc(k->n_groups + 1ul, sizeof(*k->group));
	k->bucket = calloc(table, sizeof(*k->bucket));
	k->seq = calloc(n_seqs + 1ul, sizeof(*k->seq));
	k->all_tokens = calloc(tokens + 1, sizeof(*k->all_tokens));
	k->all_blocks = calloc(blocks + 1, sizeof(*k->all_blocks));
	if (!k->block || !k->scratch || !k->group || !k->bucket || !k->seq || !k->all_tokens ||
	    !k->all_blocks)
		return kv_free(k);

	memset(k->bucket, 0xff, table * sizeof(*k->bucket));
	memset(k->groups, 0xff, sizeof(k->groups));
	/* Backward, so that the first group and the first sequence are the first to be taken. */
	for (uint32_t g = k->n_groups; g--;) {
		uint32_t here = n_blocks - g * KV_NEIGHBOURS;

		k->group[g].free = here >= KV_NEIGHBOURS ? ALL_FREE : (1u << here) - 1;
		group_link(k, g);
	}
	k->n_free = n_blocks;
	for (uint32_t s = n_seqs; s--;) {
		k->seq[s].tokens = k->all_tokens + (size_t)s * max_positions;
		k->seq[s].blocks = k->all_blocks + (size_t)s * k->max_blocks;
		k->seq[s].next_free = k->free_seq;
		k->free_seq = s;
	}
	return k;
}

struct kv *kv_free(struct kv *k)
{
	if (!k)
		return NULL;
	assert(!k->n_open);
	free(k->block);
	free(k->scratch);
	free(k->group);
	free(k->bucket);
	free(k->seq);
	free(k->all_tokens);
	free(k->all_blocks);
	free(k);
	return NULL;
}

void kv_forget(struct kv *k)
{
	while (k->n_unheld)
		evict(k);
}

struct kv_counts kv_counts(const struct kv *k)
{
	return (struct kv_counts){
		.blocks = k->n_blocks,
		.held = k->n_blocks - k->n_free - k->n_unheld,
		.findable = k->n_unheld,
		.free = k->n_free,
		.seqs = k->n_open,
		.lookups = k->lookups,
		.hits = k->hits,
		.reused = k->reused,
		.evicted = k->evicted,
	};
}

/* ---- sequences --------------------------------------------------------------------------------- */

static uint32_t blocks_for(uint32_t positions)
{
	return positions / KV_BLOCK + (positions % KV_BLOCK != 0);
}

struct kv_seq *kv_seq_open(struct kv *k, struct kv_principal principal)
{
	struct kv_seq *s;

	if (k->free_seq == KV_NONE)
		return NULL;
	s = &k->seq[k->free_seq];
	k->free_seq = s->next_free;
	k->n_open++;
	s->open = true;
	s->principal = principal;
	s->length = 0;
	s->known = 0;
	return s;
}

/* To n positions; the last blocks first: see the list of use. */
static void cut(struct kv *k, struct kv_seq *s, uint32_t n, bool findable)
{
	for (uint32_t i = blocks_for(s->length); i-- > blocks_for(n);)
		release(k, s->blocks[i], findable);
	s->length = n;
	if (s->known > n / KV_BLOCK)
		s->known = n / KV_BLOCK;
}

void kv_seq_close(struct kv *k, struct kv_seq *s, bool findable)
{
	assert(s->open);
	cut(k, s, 0, findable);
	s->open = false;
	s->next_free = k->free_seq;
	k->free_seq = (uint32_t)(s - k->seq);
	k->n_open--;
}

struct kv_seq *kv_seq_fork(struct kv *k, const struct kv_seq *from)
{
	struct kv_seq *s = kv_seq_open(k, from->principal);
	uint32_t n = blocks_for(from->length);

	assert(from->open);
	if (!s)
		return NULL;
	memcpy(s->tokens, from->tokens, from->length * sizeof(*s->tokens));
	memcpy(s->blocks, from->blocks, n * sizeof(*s->blocks));
	for (uint32_t i = 0; i < n; i++)
		hold(k, s->blocks[i]);
	s->length = from->length;
	s->known = from->known;
	return s;
}

uint32_t kv_seq_find(struct kv *k, struct kv_seq *s, const uint32_t *tokens, uint32_t n)
{
	uint32_t parent = KV_NONE;

	assert(s->open && !s->length && n <= k->max_positions);
	/* One token less, so that one is left. */
	for (uint32_t i = 0; n && i < (n - 1) / KV_BLOCK; i++) {
		uint32_t b = kv_known(k, s->principal, parent, tokens + i * KV_BLOCK);

		if (b == KV_NONE)
			break;
		hold(k, b);
		s->blocks[i] = parent = b;
		s->known = i + 1;
	}
	s->length = s->known * KV_BLOCK;
	memcpy(s->tokens, tokens, s->length * sizeof(*tokens));
	k->lookups++;
	k->hits += s->known > 0;
	k->reused += s->length;
	return s->length;
}

int kv_append(struct kv *k, struct kv_seq *s, const uint32_t *tokens, uint32_t n,
	      struct kv_copy *copy)
{
	uint32_t part = s->length % KV_BLOCK, have = blocks_for(s->length), want, last = KV_NONE;
	bool shared = false;

	assert(s->open);
	*copy = (struct kv_copy){ .from = KV_NONE };
	if (n > k->max_positions - s->length)
		return -EFBIG;
	if (!n)
		return 0;
	if (part) {
		last = s->blocks[have - 1];
		shared = k->block[last].refs > 1 ||
			 (k->block[last].known && k->block[last].children);
	}
	want = blocks_for(s->length + n);
	if (want - have + shared > k->n_free + k->n_unheld)
		return -ENOSPC;

	if (shared) {
		uint32_t to = take(k, have > 1 ? s->blocks[have - 2] : KV_NONE, have - 1);

		*copy = (struct kv_copy){ .from = last, .to = to, .n = part };
		s->blocks[have - 1] = to;
	} else if (part && k->block[last].known) {
		make_unknown(k, last);
	}
	for (uint32_t i = have; i < want; i++)
		s->blocks[i] = take(k, i ? s->blocks[i - 1] : KV_NONE, i);
	/* Only now: what is copied must not be among what was taken. */
	if (shared)
		release(k, last, true);
	memcpy(s->tokens + s->length, tokens, n * sizeof(*tokens));
	s->length += n;
	return 0;
}

void kv_truncate(struct kv *k, struct kv_seq *s, uint32_t n)
{
	assert(s->open && n <= s->length);
	cut(k, s, n, true);
}

void kv_computed(struct kv *k, struct kv_seq *s, uint32_t n)
{
	assert(s->open && n <= s->length);
	for (uint32_t i = s->known; i < n / KV_BLOCK; i++) {
		const uint32_t *tokens = s->tokens + (size_t)i * KV_BLOCK;
		uint32_t parent = i ? s->blocks[i - 1] : KV_NONE, own = s->blocks[i];
		uint32_t b = kv_known(k, s->principal, parent, tokens);

		/* Who else holds it need not hold this parent, and would not hold on to it. */
		if (b == KV_NONE && k->block[own].refs > 1)
			return;
		if (b == KV_NONE) {
			make_known(k, own, s->principal, parent, tokens);
		} else if (b != own) {
			hold(k, b);
			s->blocks[i] = b;
			release(k, own, true);
		}
		s->known = i + 1;
	}
}

uint32_t kv_seq_length(const struct kv_seq *s)
{
	return s->length;
}

const uint32_t *kv_seq_blocks(const struct kv_seq *s)
{
	return s->blocks;
}

const uint32_t *kv_seq_tokens(const struct kv_seq *s)
{
	return s->tokens;
}

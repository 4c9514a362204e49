/* SPDX-License-Identifier: MIT */
#ifndef KV_H
#define KV_H

/*
 * The KV cache's bookkeeping: which block of the arena (device.h) holds which positions of which
 * sequence. Knows nothing of what is in a block, nor of threads: the engine's step owns it.
 *
 * Prefix cache: a block that is full of known tokens can be found again by all tokens from the
 * sequence's beginning to its end: by a hash chained over blocks, then by comparing the tokens
 * themselves and the block before it, so that a collision cannot show somebody else's text. Only within
 * a principal. Blocks that no sequence holds stay findable until their space is needed: least recently
 * used first, and none before those that follow it.
 *
 * A block is shared by any number of sequences and never written while it is: who appends into a shared
 * block that is not full gets a copy (see kv_append()). A sequence's next block is taken from the group
 * of the one before where that is free, because neighbours are read faster.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KV_BLOCK 32u /* positions, KV_PAGE of kernels/float_ops.h */
#define KV_NEIGHBOURS 4u /* blocks whose numbers differ in the last two bits only: KV_GROUP of device.h */
#define KV_NONE	 UINT32_MAX

struct kv;
struct kv_seq; /* one timeline */

struct kv_principal {
	uint64_t tenant;
	uint32_t uid;
};

/*
 * n_blocks and n_seqs are all there will ever be; max_positions: of a sequence. Allocates here only.
 * NULL: no memory.
 */
struct kv *kv_new(uint32_t n_blocks, uint32_t n_seqs, uint32_t max_positions);
struct kv *kv_free(struct kv *k); /* NULL is fine; returns NULL */

/* NULL when all are taken. principal: whose prefixes it may find, and who may find its. */
struct kv_seq *kv_seq_open(struct kv *k, struct kv_principal principal);
/* Its full, computed blocks stay findable when findable is set; the others are free at once. */
void kv_seq_close(struct kv *k, struct kv_seq *s, bool findable);
/*
 * Another timeline with the same past, blocks shared; NULL when all are taken. All that from has is
 * computed, and was told: kv_computed().
 */
struct kv_seq *kv_seq_fork(struct kv *k, const struct kv_seq *from);

/*
 * For an empty sequence: take the longest known prefix of tokens[0..n), in whole blocks, and shorter than n:
 * one token at least is left to compute. Returns the positions that need no computing.
 */
uint32_t kv_seq_find(struct kv *k, struct kv_seq *s, const uint32_t *tokens, uint32_t n);

/* The bytes of a block's first n positions are to be copied before anything is written. */
struct kv_copy {
	uint32_t from, to, n; /* from KV_NONE: nothing is to be */
};
/*
 * Room for n more positions with these tokens. 0; -ENOSPC: not enough blocks, even after forgetting all
 * that nobody holds; -EFBIG: over max_positions. Nothing has changed then. Copies are made in the order
 * of these calls.
 */
int kv_append(struct kv *k, struct kv_seq *s, const uint32_t *tokens, uint32_t n,
	      struct kv_copy *copy);
/* Back to n positions: a draft that was refused, a preempted sequence (0). */
void kv_truncate(struct kv *k, struct kv_seq *s, uint32_t n);
/*
 * The first n positions are computed: only blocks that are, and are full, may be found. Where the same text
 * was computed by somebody else of the principal before, its blocks take the place of the sequence's own
 * (equal bytes, by the numeric contract): ask kv_seq_blocks() again. For a sequence that nothing shall
 * be found of: never.
 */
void kv_computed(struct kv *k, struct kv_seq *s, uint32_t n);

uint32_t kv_seq_length(const struct kv_seq *s);
const uint32_t *kv_seq_blocks(const struct kv_seq *s); /* by position / KV_BLOCK */
const uint32_t *kv_seq_tokens(const struct kv_seq *s);

struct kv_counts {
	uint32_t blocks, held, findable, free; /* the first is the others' sum; findable: by nobody held */
	uint32_t seqs;
	uint64_t lookups, hits;	  /* kv_seq_find() calls, those that found something */
	uint64_t reused, evicted; /* positions found; blocks forgotten */
};
struct kv_counts kv_counts(const struct kv *k);
/* Forget all that nobody holds. */
void kv_forget(struct kv *k);
/* Every invariant; aborts on the first that does not hold. For tests. */
void kv_check(const struct kv *k);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef KV_PRIVATE_H
#define KV_PRIVATE_H

/* What kv.c keeps, for kv_check.c. */

#include "kv.h"

/*
 * A block is free (its group's mask says so), held (refs), or findable and held by nobody: then it is in
 * the list of use. Known: findable, whether held or not.
 */
struct block {
	bool known;
	uint32_t refs;
	uint32_t older, newer; /* in the list of use */
	/* Of a known block: */
	uint32_t chain;	   /* next in the hash table's bucket */
	uint32_t parent;   /* the known block before it; KV_NONE: it is the first of a text */
	uint32_t children; /* known blocks whose parent it is */
	uint64_t hash;	   /* of all tokens to its end, and the principal */
	struct kv_principal principal;
	uint32_t tokens[KV_BLOCK];
};

/* KV_NEIGHBOURS blocks; in the list of those with as many free ones. */
struct group {
	uint32_t free; /* a bit each */
	uint32_t prev, next;
};

struct kv_seq {
	bool open;
	uint32_t next_free; /* sequence */
	struct kv_principal principal;
	uint32_t length;
	uint32_t known; /* blocks from the first that are full, computed and known */
	uint32_t *blocks, *tokens;
};

struct kv {
	uint32_t n_blocks, n_groups, n_seqs, max_positions, max_blocks; /* of a sequence */
	uint32_t n_free, n_unheld, n_open;
	struct block *block;
	struct group *group;
	uint32_t groups[KV_NEIGHBOURS + 1]; /* heads of lists, by free blocks */
	uint32_t oldest, newest;	    /* of the list of use */
	uint32_t *bucket, bucket_mask;
	struct kv_seq *seq;
	uint32_t free_seq;
	uint32_t *all_blocks, *all_tokens; /* the sequences' */
	uint32_t *scratch;		   /* kv_check()'s, a word for each block */
	uint64_t lookups, hits, reused, evicted;
};

/* The known block of this text, whose last KV_BLOCK tokens these are; KV_NONE. */
uint32_t kv_known(const struct kv *k, struct kv_principal principal, uint32_t parent,
		  const uint32_t *tokens);

#endif

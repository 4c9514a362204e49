/* SPDX-License-Identifier: MIT */
/*
 * What is kept of texts that may go on. A keep is a sequence that nobody computes: it holds the blocks that
 * the prefix cache has of a text, so that they are not forgotten while others come and go.
 */
#include <assert.h>
#include "engine_private.h"

static void drop(struct engine *e, struct keep *k)
{
	if (k->seq)
		kv_seq_close(e->kv, k->seq, true);
	k->seq = NULL;
}

void engine_keep(struct engine *e, uint32_t keep, struct kv_principal principal,
		 const uint32_t *tokens, uint32_t n)
{
	struct keep *k = &e->keeps[keep];

	assert(keep < ENGINE_KEEPS);
	drop(e, k);
	if (!n || e->options.no_prefixes)
		return;
	k->seq = kv_seq_open(e->kv, principal);
	assert(k->seq); /* there is one for each */
	k->since = ++e->births;
	if (!kv_seq_find(e->kv, k->seq, tokens, n))
		drop(e, k);
}

bool keep_drop(struct engine *e)
{
	struct keep *oldest = NULL;

	for (uint32_t i = 0; i < ENGINE_KEEPS; i++) {
		struct keep *k = &e->keeps[i];

		if (k->seq && (!oldest || k->since < oldest->since))
			oldest = k;
	}
	if (oldest)
		drop(e, oldest);
	return oldest;
}

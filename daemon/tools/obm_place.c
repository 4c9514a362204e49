/* SPDX-License-Identifier: MIT */
/*
 * Placing a container before it is written. The writer is judged like a stranger: what it is going
 * to write must pass obm_check.c first.
 */
#include "obm_place.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "tokenizer.h"

/* ---- the plan -------------------------------------------------------------------------------- */

static int check_tokenizer(const struct obm_plan *p, char *why, size_t why_len)
{
	struct tokenizer *t = NULL;
	char inner[200];
	uint32_t n;
	int err;

	err = tokenizer_open(p->tokenizer, p->tokenizer_bytes, &t, inner, sizeof(inner));
	if (err)
		return fail(why, why_len, err, "the tokenizer: %s", inner);
	n = tokenizer_facts(t)->n_tokens;
	tokenizer_close(t);
	if (n == p->arch.vocab)
		return 0;
	return fail(why, why_len, -EPROTO,
		    "the tokenizer has %u tokens, but the embedding %u rows; they belong "
		    "to two models",
		    n, p->arch.vocab);
}

static int check_plan(const struct obm_plan *p, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];
	int err = obm_check_arch(&p->arch, why, why_len);

	if (!err)
		err = obm_check_rope(&p->arch, p->rope, why, why_len);
	if (!err && p->info)
		err = obm_check_text(OBM_INFO, p->info, strlen(p->info), why, why_len);
	if (!err && p->licence)
		err = obm_check_text(OBM_LICENCE, p->licence, strlen(p->licence), why, why_len);
	if (!err)
		err = check_tokenizer(p, why, why_len);
	if (err)
		return err;
	if (!p->n_tensors || p->n_tensors > OBM_TENSORS_MAX)
		return fail(why, why_len, p->n_tensors ? -EFBIG : -EPROTO,
			    "there are %u tensors; 1 to %u can be", p->n_tensors, OBM_TENSORS_MAX);
	/* Placing multiplies, so before it each shape must be one. */
	for (uint32_t i = 0; i < p->n_tensors; i++) {
		struct packed_shape shape = obm_shape(&p->tensors[i]);
		const char *bad = shape.layout ? packed_check(&shape) : NULL;

		if (bad)
			return fail(why, why_len, -EPROTO, "tensor %s: %s",
				    obm_name(p->tensors[i].role, p->tensors[i].layer, name), bad);
	}
	return 0;
}

/* ---- placing --------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
	const struct obm_tensor *s = a, *t = b;

	if (s->layer != t->layer) /* OBM_NO_LAYER is -1 */
		return s->layer + 1 < t->layer + 1 ? -1 : 1;
	return s->role < t->role ? -1 : s->role > t->role;
}

static int add_section(struct obm_placed *l, uint32_t kind, uint32_t index, uint64_t bytes)
{
	uint32_t n = l->header.n_sections++;

	l->sections[n] = (struct obm_section){
		.kind = kind, .index = index, .offset = l->at, .bytes = bytes
	};
	return __builtin_add_overflow(obm_align(l->at, OBM_ALIGN), obm_align(bytes, OBM_ALIGN),
				      &l->at) ?
		       -EFBIG :
		       0;
}

/* The tensors of a layer, from place at on; returns their end. Their shapes were checked. */
static uint64_t place_layer(struct obm_placed *l, uint32_t layer, uint64_t at)
{
	for (uint32_t i = 0; i < l->n_tensors; i++) {
		struct obm_tensor *t = &l->tensors[i];
		struct packed_shape shape = obm_shape(t);
		uint64_t n_scales = t->layout ? packed_n_scales(&shape) : 0;

		if (t->layer != layer)
			continue;
		t->offset = at = obm_align(at, OBM_TENSOR_ALIGN);
		t->bytes = t->layout ? packed_bytes(&shape) : (uint64_t)t->cols * sizeof(float);
		at += t->bytes;
		if (n_scales) {
			t->scales = at = obm_align(at, OBM_TENSOR_ALIGN);
			at += n_scales * sizeof(float);
		}
	}
	return at;
}

/*
 * Sizes of matrices are below 2^45 and of tensors there are less than 2^14, so no sum here passes
 * 2^60, if packed_check() has passed them, whose bounds are these.
 */
static int place(struct obm_placed *l, const struct obm_plan *p, char *why, size_t why_len)
{
	uint32_t n = 6 + l->arch.layers + 1 + 1 - !p->info - !p->licence;
	uint64_t chunks;

	l->header.header_bytes =
		(uint32_t)obm_align(sizeof(l->header) + n * sizeof(l->sections[0]), OBM_ALIGN);
	l->at = l->header.header_bytes;
	add_section(l, OBM_ARCH, 0, sizeof(l->arch));
	add_section(l, OBM_TENSORS, 0, l->n_tensors * sizeof(*l->tensors));
	add_section(l, OBM_ROPE, 0, l->arch.head_dim / 2 * sizeof(double));
	if (add_section(l, OBM_TOKENIZER, 0, p->tokenizer_bytes))
		return fail(why, why_len, -EFBIG, "the tokenizer has %llu bytes, which is no size",
			    (unsigned long long)p->tokenizer_bytes);
	if (p->info)
		add_section(l, OBM_INFO, 0, strlen(p->info));
	if (p->licence)
		add_section(l, OBM_LICENCE, 0, strlen(p->licence));
	l->weights = &l->sections[l->header.n_sections];
	for (uint32_t i = 0; i <= l->arch.layers; i++)
		add_section(l, OBM_WEIGHTS, i, place_layer(l, i - 1, l->at) - l->at);
	chunks = (l->at - l->header.header_bytes + OBM_CHUNK - 1) / OBM_CHUNK;
	add_section(l, OBM_CHUNKS, 0, chunks * 32);
	assert(l->header.n_sections == n);
	l->header.file_bytes = l->sections[n - 1].offset + chunks * 32;
	return obm_check_tensors(&l->arch, l->tensors, l->n_tensors, l->weights, why, why_len);
}

int obm_place(struct obm_placed *l, const struct obm_plan *plan, char *why, size_t why_len)
{
	int err = check_plan(plan, why, why_len);

	if (err)
		return err;
	memcpy(l->header.magic, OBM_MAGIC, sizeof(l->header.magic));
	l->header.version = OBM_VERSION;
	l->header.contract = OBM_CONTRACT;
	l->arch = plan->arch;
	obm_rope_sha256(&l->arch, plan->rope, l->arch.rope_sha256);
	l->tensors = calloc(plan->n_tensors, sizeof(*l->tensors));
	if (!l->tensors)
		return fail(why, why_len, -ENOMEM, "no memory to write the model");
	l->n_tensors = plan->n_tensors;
	for (uint32_t i = 0; i < plan->n_tensors; i++) {
		const struct obm_tensor *t = &plan->tensors[i];

		l->tensors[i] = (struct obm_tensor){ .role = t->role,
						     .layer = t->layer,
						     .layout = t->layout,
						     .rows = t->rows,
						     .cols = t->cols,
						     .groups = t->groups };
	}
	qsort(l->tensors, l->n_tensors, sizeof(*l->tensors), by_place);
	return place(l, plan, why, why_len);
}

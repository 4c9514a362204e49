/* SPDX-License-Identifier: MIT */
/*
 * The rules of a container's tensors: what each role is, which of them an architecture needs, in
 * which shape and layout, and where they lie.
 */
#include <errno.h>
#include <stdio.h>
#include "obm_check.h"

enum width { ONE, HIDDEN, FFN, VOCAB, HEADS, KV_HEADS };

/* Which layouts a role may have: bit per PACKED_*, bit 0 for float[]. */
#define FLOATS 1u
#define LINEAR (1u << PACKED_2BIT | 1u << PACKED_BASE3)
#define TABLE  (1u << PACKED_INT8 | 1u << PACKED_F16 | 1u << PACKED_BF16)

static const struct {
	const char *name;
	enum width rows, cols;
	uint32_t layouts;
	bool in_layers, optional;
} roles[OBM_ROLES] = {
	[OBM_EMBED] = { "embed", VOCAB, HIDDEN, TABLE, false, false },
	[OBM_HEAD] = { "head", VOCAB, HIDDEN, TABLE, false, true },
	[OBM_FINAL_NORM] = { "final_norm", ONE, HIDDEN, FLOATS, false, false },
	[OBM_ATTN_NORM] = { "attn_norm", ONE, HIDDEN, FLOATS, true, false },
	[OBM_ATTN_SUB_NORM] = { "attn_sub_norm", ONE, HEADS, FLOATS, true, true },
	[OBM_FFN_NORM] = { "ffn_norm", ONE, HIDDEN, FLOATS, true, false },
	[OBM_FFN_SUB_NORM] = { "ffn_sub_norm", ONE, FFN, FLOATS, true, true },
	[OBM_Q] = { "q", HEADS, HIDDEN, LINEAR, true, false },
	[OBM_K] = { "k", KV_HEADS, HIDDEN, LINEAR, true, false },
	[OBM_V] = { "v", KV_HEADS, HIDDEN, LINEAR, true, false },
	[OBM_O] = { "o", HIDDEN, HEADS, LINEAR, true, false },
	[OBM_GATE] = { "gate", FFN, HIDDEN, LINEAR, true, false },
	[OBM_UP] = { "up", FFN, HIDDEN, LINEAR, true, false },
	[OBM_DOWN] = { "down", HIDDEN, FFN, LINEAR, true, false },
};

const char *obm_role_name(uint32_t role)
{
	return role < OBM_ROLES ? roles[role].name : "unknown";
}

const char *obm_name(uint32_t role, uint32_t layer, char name[OBM_NAME_MAX])
{
	if (layer == OBM_NO_LAYER)
		snprintf(name, OBM_NAME_MAX, "%s", obm_role_name(role));
	else
		snprintf(name, OBM_NAME_MAX, "%s of layer %u", obm_role_name(role), layer);
	return name;
}

static uint32_t width(const struct obm_arch *a, enum width w)
{
	switch (w) {
	case ONE:
		return 1;
	case HIDDEN:
		return a->hidden;
	case FFN:
		return a->ffn;
	case VOCAB:
		return a->vocab;
	case HEADS:
		return a->heads * a->head_dim;
	case KV_HEADS:
		return a->kv_heads * a->head_dim;
	}
	return 0;
}

static uint32_t key_of(uint32_t role, uint32_t layer)
{
	return (layer + 1) * OBM_ROLES + role;
}

/* Role, shape, layout: what an architecture says of a tensor. */
static int check_kind(const struct obm_arch *a, const struct obm_tensor *t, char *why,
		      size_t why_len)
{
	char name[OBM_NAME_MAX];
	uint32_t rows, cols;

	if (t->role >= OBM_ROLES)
		return obm_refuse(why, why_len, -ENOTSUP,
				  "it has a tensor of role %u, which this program does "
				  "not know; a newer one may",
				  t->role);
	obm_name(t->role, t->layer, name);
	if (t->layer != OBM_NO_LAYER && t->layer >= a->layers)
		return obm_refuse(why, why_len, -EPROTO, "it has a tensor %s, but only %u layers",
				  name, a->layers);
	if (roles[t->role].in_layers != (t->layer != OBM_NO_LAYER))
		return obm_refuse(why, why_len, -EPROTO, "tensor %s %s", name,
				  roles[t->role].in_layers ?
					  "belongs to no layer, but must" :
					  "stands in a layer, but belongs to none");
	rows = width(a, roles[t->role].rows);
	cols = width(a, roles[t->role].cols);
	if (t->rows != rows || t->cols != cols)
		return obm_refuse(why, why_len, -EPROTO,
				  "tensor %s is %u x %u, but the architecture makes it %u "
				  "x %u",
				  name, t->rows, t->cols, rows, cols);
	if (t->layout >= PACKED_COUNT)
		return obm_refuse(why, why_len, -ENOTSUP,
				  "tensor %s has layout %u, which this program does not "
				  "know; a newer one may",
				  name, t->layout);
	if (!(roles[t->role].layouts & 1u << t->layout))
		return obm_refuse(why, why_len, -EPROTO,
				  "tensor %s is stored as %s, which this role cannot be", name,
				  t->layout ? packed_name(t->layout) : "plain floats");
	if (!t->layout && t->groups)
		return obm_refuse(why, why_len, -EPROTO,
				  "tensor %s is plain floats, but has %u groups of scales", name,
				  t->groups);
	if (t->layout) {
		struct packed_shape shape = obm_shape(t);
		const char *bad = packed_check(&shape);

		if (bad)
			return obm_refuse(why, why_len, -EPROTO, "tensor %s: %s", name, bad);
	}
	if (t->reserved[0] || t->reserved[1])
		return obm_refuse(why, why_len, -ENOTSUP,
				  "tensor %s uses reserved words, which this program does "
				  "not know; a newer one may",
				  name);
	return 0;
}

/* One range of a tensor; *end is the end of the one before it, in the same section. */
static int check_range(const struct obm_section *s, const char *what, const char *name,
		       uint64_t offset, uint64_t bytes, uint64_t *end, char *why, size_t why_len)
{
	uint64_t limit = s->offset + s->bytes;

	if (offset % OBM_TENSOR_ALIGN)
		return obm_refuse(why, why_len, -EPROTO,
				  "%s of tensor %s lie at %llu, which is no multiple of %u", what,
				  name, (unsigned long long)offset, OBM_TENSOR_ALIGN);
	if (offset < s->offset || offset > limit || bytes > limit - offset)
		return obm_refuse(why, why_len, -EPROTO,
				  "%s of tensor %s, %llu bytes at %llu, lie outside their "
				  "section, which ends at %llu",
				  what, name, (unsigned long long)bytes, (unsigned long long)offset,
				  (unsigned long long)limit);
	if (offset != obm_align(*end, OBM_TENSOR_ALIGN))
		return obm_refuse(
			why, why_len, -EPROTO, "%s of tensor %s lie at %llu, %s at %llu", what,
			name, (unsigned long long)offset,
			offset < *end ? "but the ones before them end" : "but their place is",
			(unsigned long long)(offset < *end ? *end :
							     obm_align(*end, OBM_TENSOR_ALIGN)));
	*end = offset + bytes;
	return 0;
}

static int check_place(const struct obm_tensor *t, const struct obm_section *s, uint64_t *end,
		       char *why, size_t why_len)
{
	struct packed_shape shape = obm_shape(t);
	uint64_t bytes = t->layout ? packed_bytes(&shape) : (uint64_t)t->cols * sizeof(float);
	uint64_t scales = t->layout ? packed_n_scales(&shape) * sizeof(float) : 0;
	char name[OBM_NAME_MAX];
	int err;

	obm_name(t->role, t->layer, name);
	if (t->bytes != bytes)
		return obm_refuse(why, why_len, -EPROTO,
				  "tensor %s says that it has %llu bytes; its shape makes "
				  "it %llu",
				  name, (unsigned long long)t->bytes, (unsigned long long)bytes);
	if (!scales != !t->scales)
		return obm_refuse(why, why_len, -EPROTO, "tensor %s %s", name,
				  scales ? "has no scales, which its "
					   "layout needs" :
					   "has scales, which its layout has no use for");
	err = check_range(s, "the values", name, t->offset, bytes, end, why, why_len);
	if (!err && scales)
		err = check_range(s, "the scales", name, t->scales, scales, end, why, why_len);
	return err;
}

/* Those that the architecture needs; t is sorted, without doubles, each of a role that is known. */
static int check_complete(const struct obm_arch *a, const struct obm_tensor *t, uint32_t n,
			  char *why, size_t why_len)
{
	bool sub_norms[OBM_ROLES] = { 0 };
	char name[OBM_NAME_MAX];
	uint32_t next = 0;

	for (uint32_t i = 0; i < n; i++)
		sub_norms[t[i].role] = true;
	for (uint32_t key = 0; key < (a->layers + 1) * OBM_ROLES; key++) {
		uint32_t role = key % OBM_ROLES, layer = key / OBM_ROLES - 1;

		if (next < n && key_of(t[next].role, t[next].layer) == key) {
			next++;
			continue;
		}
		if (roles[role].in_layers == (layer == OBM_NO_LAYER))
			continue;
		obm_name(role, layer, name);
		if (!roles[role].optional)
			return obm_refuse(why, why_len, -EPROTO, "tensor %s is missing", name);
		if (layer != OBM_NO_LAYER && sub_norms[role])
			return obm_refuse(why, why_len, -EPROTO,
					  "tensor %s is missing, but other layers have one", name);
	}
	return 0;
}

int obm_check_tensors(const struct obm_arch *a, const struct obm_tensor *t, uint32_t n,
		      const struct obm_section *weights, char *why, size_t why_len)
{
	const struct obm_section *s = NULL;
	char name[OBM_NAME_MAX];
	uint64_t end = 0, limit, parameters = 0;
	int err;

	if (n > OBM_TENSORS_MAX)
		return obm_refuse(why, why_len, -EFBIG, "it has %u tensors; at most %u are taken",
				  n, OBM_TENSORS_MAX);
	for (uint32_t i = 0; i < n; i++) {
		err = check_kind(a, &t[i], why, why_len);
		if (err)
			return err;
		if (i && key_of(t[i].role, t[i].layer) <= key_of(t[i - 1].role, t[i - 1].layer))
			return obm_refuse(why, why_len, -EPROTO, "tensor %s %s",
					  obm_name(t[i].role, t[i].layer, name),
					  key_of(t[i].role, t[i].layer) ==
							  key_of(t[i - 1].role, t[i - 1].layer) ?
						  "is there twice" :
						  "is not at its place in the table");
	}
	err = check_complete(a, t, n, why, why_len);
	for (uint32_t i = 0; !err && i < n; i++) {
		if (s != &weights[t[i].layer + 1]) {
			s = &weights[t[i].layer + 1];
			end = s->offset;
		}
		limit = s->offset + s->bytes;
		err = check_place(&t[i], s, &end, why, why_len);
		if (!err && (i + 1 == n || t[i + 1].layer != t[i].layer) && end != limit)
			err = obm_refuse(why, why_len, -EPROTO,
					 "weights section %u ends at %llu, but its last "
					 "tensor at %llu",
					 s->index, (unsigned long long)limit,
					 (unsigned long long)end);
		/* No sum of these passes 2^60: there are less than 2^14, each below 2^45. */
		parameters += (uint64_t)t[i].rows * t[i].cols;
	}
	if (!err && parameters != a->n_parameters)
		err = obm_refuse(why, why_len, -EPROTO,
				 "its architecture says that it has %llu parameters, but its "
				 "tensors have %llu",
				 (unsigned long long)a->n_parameters,
				 (unsigned long long)parameters);
	return err;
}

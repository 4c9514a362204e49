/* SPDX-License-Identifier: MIT */
/*
 * What every model must be, whichever format it came in. A reader makes sure that it can read; here it
 * is decided whether what was read is a model that can be served: numbers that fit each other, each
 * tensor once, in the shape that the numbers say. Strict, because what passes here is written into a
 * container that the daemon believes.
 *
 * The sentences do not name the file: who calls does.
 */
#include "source.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "mapped.h"
#include "packed.h"

static bool is_norm(uint32_t role)
{
	return role == OBM_FINAL_NORM || (role >= OBM_ATTN_NORM && role <= OBM_FFN_SUB_NORM);
}

static bool has_layer(uint32_t role)
{
	return role >= OBM_ATTN_NORM;
}

/* "layer 3's q", "final_norm": as sentences name a tensor. */
static const char *name_of(uint32_t role, uint32_t layer, char *buf, size_t len)
{
	const char *name = role < OBM_ROLES ? obm_role_name(role) : "tensor without a role";

	if (layer == OBM_NO_LAYER)
		snprintf(buf, len, "%s", name);
	else
		snprintf(buf, len, "layer %u's %s", layer, name);
	return buf;
}

static int check_range(const char *what, uint32_t value, uint32_t max, char *why, size_t why_len)
{
	if (!value)
		return fail(why, why_len, -EPROTO, "%s is 0; the file is damaged or no model",
			    what);
	if (value > max)
		return fail(why, why_len, -EFBIG, "%s is %u; at most %u is supported", what, value,
			    max);
	return 0;
}

static int check_numbers(const struct source *s, char *why, size_t why_len)
{
	const struct obm_arch *a = &s->arch;
	const struct {
		const char *what;
		uint32_t value, max;
	} ranges[] = {
		{ "the number of layers", a->layers, OBM_LAYERS_MAX },
		{ "the hidden size", a->hidden, OBM_WIDTH_MAX },
		{ "the feed-forward size", a->ffn, PACKED_COLS_MAX },
		{ "the number of heads", a->heads, OBM_HEADS_MAX },
		{ "the number of KV heads", a->kv_heads, OBM_HEADS_MAX },
		{ "head_dim", a->head_dim, OBM_HEAD_DIM_MAX },
		{ "the vocabulary's size", a->vocab, OBM_VOCAB_MAX },
		{ "the context length", a->context, OBM_CONTEXT_MAX },
	};

	for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
		int err = check_range(ranges[i].what, ranges[i].value, ranges[i].max, why, why_len);

		if (err)
			return err;
	}
	if (a->heads % a->kv_heads)
		return fail(why, why_len, -EPROTO, "%u heads cannot share %u KV heads evenly",
			    a->heads,
			    a->kv_heads);
	if (a->head_dim % 2)
		return fail(why, why_len, -EPROTO, "head_dim is %u; rotary positions need an even "
			    "one",
			    a->head_dim);
	if (!a->activation || a->activation >= OBM_ACT_COUNT)
		return fail(why, why_len, -ENOTSUP, "activation %u is not known; known are relu2 "
			    "and silu",
			    a->activation);
	if (a->flags & ~OBM_FLAGS_ALL)
		return fail(why, why_len, -ENOTSUP, "flags 0x%x are not known",
			    a->flags & ~OBM_FLAGS_ALL);
	if (!isfinite(a->rms_eps) || !(a->rms_eps > 0) || a->rms_eps > 1)
		return fail(why, why_len, -EPROTO, "the norms' epsilon is %g; it lies between 0 "
			    "and 1, 1e-5 is usual", (double)a->rms_eps);
	if (!isfinite(s->rope_theta) || !(s->rope_theta > 1))
		return fail(why, why_len, -EPROTO, "the rotary base is %g; it is more than 1, "
			    "10000 or 500000 are usual", s->rope_theta);
	for (uint32_t i = 0; s->rope && i < a->head_dim / 2; i++)
		if (!isfinite(s->rope[i]) || s->rope[i] < 0 || s->rope[i] > 1)
			return fail(why, why_len, -EPROTO, "rotary frequency %u is %g; all lie "
				    "between 0 and 1",
				    i, s->rope[i]);
	if (!memchr(a->name, 0, sizeof(a->name)) || !memchr(a->family, 0, sizeof(a->family)))
		return fail(why, why_len, -EPROTO, "the model's name or family is too long");
	return 0;
}

static void shape_of(const struct obm_arch *a, uint32_t role, uint32_t *rows, uint32_t *cols)
{
	const uint32_t q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;
	const uint32_t shape[OBM_ROLES][2] = {
		[OBM_EMBED] = { a->vocab, a->hidden },
		[OBM_HEAD] = { a->vocab, a->hidden },
		[OBM_FINAL_NORM] = { 1, a->hidden },
		[OBM_ATTN_NORM] = { 1, a->hidden },
		[OBM_ATTN_SUB_NORM] = { 1, q },
		[OBM_FFN_NORM] = { 1, a->hidden },
		[OBM_FFN_SUB_NORM] = { 1, a->ffn },
		[OBM_Q] = { q, a->hidden },
		[OBM_K] = { kv, a->hidden },
		[OBM_V] = { kv, a->hidden },
		[OBM_O] = { a->hidden, q },
		[OBM_GATE] = { a->ffn, a->hidden },
		[OBM_UP] = { a->ffn, a->hidden },
		[OBM_DOWN] = { a->hidden, a->ffn },
	};

	*rows = shape[role][0];
	*cols = shape[role][1];
}

/* What a role may be stored as; NULL: this form is right. */
static const char *wrong_form(uint32_t role, enum source_form form)
{
	const bool is_float = form == SOURCE_F32 || form == SOURCE_F16 || form == SOURCE_BF16;

	if (is_norm(role))
		return is_float ? NULL : "F32, F16 or BF16";
	if (role == OBM_EMBED || role == OBM_HEAD)
		return is_float || form == SOURCE_INT8 || form == SOURCE_QUANTISED ?
			       NULL : "a float, int8 or quantised form, not a ternary one";
	return form == SOURCE_TERNARY || form == SOURCE_MASTER ? NULL : "ternary, or weights to "
		"make so";
}

static int check_groups(const struct source_tensor *t, const char *name, char *why, size_t why_len)
{
	uint32_t g = t->groups;

	if (t->form == SOURCE_TERNARY) {
		if (!g || g > PACKED_GROUPS_MAX)
			return fail(why, why_len, g ? -EFBIG : -EPROTO,
				    "%s has %u groups of scales; 1 to %u are supported", name, g,
				    PACKED_GROUPS_MAX);
		if (g > 1 && (t->cols % g || t->cols / g % 64))
			return fail(why, why_len, -ENOTSUP, "%s has %u groups of scales over %u "
				    "columns; groups of equal width, a multiple of 64, are "
				    "supported", name, g, t->cols);
		return 0;
	}
	if (t->form == SOURCE_INT8 ? g != 1 : g > (t->form == SOURCE_MASTER))
		return fail(why, why_len, -EPROTO, "%s (%s) has %u groups of scales, which its "
			    "form cannot have", name, t->stored ? t->stored : "?", g);
	return 0;
}

static int check_tensor(const struct source *s, const struct source_tensor *t, char *why,
			size_t why_len)
{
	char name[64];
	const char *right;
	uint32_t rows, cols;

	if (t->role >= OBM_ROLES || has_layer(t->role) != (t->layer != OBM_NO_LAYER))
		return fail(why, why_len, -EPROTO, "there is a tensor of role %u in layer %d, "
			    "which no model has", t->role, (int)t->layer);
	name_of(t->role, t->layer, name, sizeof(name));
	if (has_layer(t->role) && t->layer >= s->arch.layers)
		return fail(why, why_len, -EPROTO, "%s is there, but the model says that it has %u "
			    "layers",
			    name, s->arch.layers);
	shape_of(&s->arch, t->role, &rows, &cols);
	if (t->rows != rows || t->cols != cols)
		return fail(why, why_len, -EPROTO, "%s is %u x %u; by the model's numbers it must "
			    "be %u x %u",
			    name, t->rows, t->cols, rows, cols);
	right = wrong_form(t->role, t->form);
	if (right)
		return fail(why, why_len, -ENOTSUP, "%s is stored as %s; it must be %s", name,
			    t->stored ? t->stored : "?", right);
	return check_groups(t, name, why, why_len);
}

/* All that must be there once. */
static int check_presence(const struct source *s, char *why, size_t why_len)
{
	bool seen[OBM_LAYERS_MAX + 1][OBM_ROLES] = { { false } }; /* [0]: what belongs to no layer */
	char name[64];

	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct source_tensor *t = &s->tensors[i];
		bool *cell = &seen[has_layer(t->role) ? t->layer + 1 : 0][t->role];

		if (*cell)
			return fail(why, why_len, -EPROTO, "%s is there twice",
				    name_of(t->role, t->layer, name, sizeof(name)));
		*cell = true;
	}
	for (uint32_t role = OBM_EMBED; role < OBM_ROLES; role++) {
		const bool optional = role == OBM_HEAD || role == OBM_ATTN_SUB_NORM ||
				      role == OBM_FFN_SUB_NORM;

		if (!has_layer(role)) {
			if (!seen[0][role] && !optional)
				return fail(why, why_len, -ENOENT, "%s is missing",
					    name_of(role, OBM_NO_LAYER, name, sizeof(name)));
			continue;
		}
		for (uint32_t l = 0; l < s->arch.layers; l++) {
			const bool wanted = !optional || seen[1][role];

			if (seen[l + 1][role] == wanted)
				continue;
			name_of(role, l, name, sizeof(name));
			if (!optional)
				return fail(why, why_len, -ENOENT, "%s is missing", name);
			return fail(why, why_len, -ENOENT, "%s is %s, but layer 0's is %s; all "
				    "layers have one or none", name, wanted ? "missing" : "there",
				    wanted ? "there" : "missing");
		}
	}
	return 0;
}

int source_check(struct source *s, char *why, size_t why_len)
{
	uint64_t n_parameters = 0;
	int err = check_numbers(s, why, why_len);

	if (err)
		return err;
	if (s->n_tensors > OBM_TENSORS_MAX)
		return fail(why, why_len, -EFBIG, "there are %u tensors; at most %u are supported",
			    s->n_tensors, OBM_TENSORS_MAX);
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		err = check_tensor(s, &s->tensors[i], why, why_len);
		if (err)
			return err;
		n_parameters += (uint64_t)s->tensors[i].rows * s->tensors[i].cols;
	}
	err = check_presence(s, why, why_len);
	if (!err && s->vocab)
		err = vocab_fits("the vocabulary", s->vocab, s->arch.vocab, why, why_len);
	/* One count for all formats: some state their own, and count a tied head twice. */
	if (!err)
		s->arch.n_parameters = n_parameters;
	return err;
}

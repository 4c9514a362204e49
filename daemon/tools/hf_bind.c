/* SPDX-License-Identifier: MIT */
/*
 * What the tensors of a Hugging Face model are. Their names are the model's modules, so each
 * becomes a role; one that becomes none (a bias, a norm that we have not) is refused, since the
 * model would be served without it.
 *
 * Linear weights come in four forms:
 *
 *      packed    U8 [ceil(R / 4)][C]: row r is in packed row r mod ceil(R / 4), at bits
 *                2 * (r div ceil(R / 4)), value + 1; with a weight_scale, one value for the matrix
 *      codes     the same unpacked, in I8 or floats that hold -1, 0, 1 only
 *      masters   floats that are made ternary by absmean, now as in training
 *      ternary   floats that are codes times scales already (TriLM); recovered exactly or refused
 *
 * What weight_scale means depends on the class that transformers would take: "autobitlinear"
 * multiplies by it, "bitlinear" divides. transformers takes bitlinear where config.json does not
 * say; a wrong guess is a model that talks nonsense, so here the person says it.
 *
 * Whether floats are ternary is known for sure only when all were read. A model below SMALL bytes
 * is read when it is opened; of larger ones the first rows of each matrix are, so that `info` is
 * quick, and the rest is held to what these showed when it is converted.
 */
#include "hf_source.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "hf_values.h"
#include "mapped.h"

#define SMALL (64u << 20)
#define FIRST_ROWS 64u

/* ---- names ---------------------------------------------------------------------------------- */

#define LAYERS "model.layers."

static const struct {
	const char *name;
	uint32_t role;
} names[] = {
	{ "model.embed_tokens.weight", OBM_EMBED },
	{ "lm_head.weight", OBM_HEAD },
	{ "model.norm.weight", OBM_FINAL_NORM },
	/* In a layer, behind "model.layers.N." */
	{ "input_layernorm.weight", OBM_ATTN_NORM },
	{ "self_attn.attn_sub_norm.weight", OBM_ATTN_SUB_NORM },
	{ "self_attn.inner_attn_ln.weight", OBM_ATTN_SUB_NORM }, /* the reproductions' */
	{ "post_attention_layernorm.weight", OBM_FFN_NORM },
	{ "mlp.ffn_sub_norm.weight", OBM_FFN_SUB_NORM },
	{ "mlp.ffn_layernorm.weight", OBM_FFN_SUB_NORM }, /* the reproductions' */
	{ "self_attn.q_proj.weight", OBM_Q },
	{ "self_attn.k_proj.weight", OBM_K },
	{ "self_attn.v_proj.weight", OBM_V },
	{ "self_attn.o_proj.weight", OBM_O },
	{ "mlp.gate_proj.weight", OBM_GATE },
	{ "mlp.up_proj.weight", OBM_UP },
	{ "mlp.down_proj.weight", OBM_DOWN },
};

static bool ends_in(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && !strcmp(text + n - m, end);
}

/* OBM_ROLES for a name that is none. layer is set either way. */
static uint32_t role_of(const char *name, uint32_t *layer)
{
	char *rest;

	*layer = OBM_NO_LAYER;
	if (!strncmp(name, LAYERS, sizeof(LAYERS) - 1)) {
		const char *digits = name + sizeof(LAYERS) - 1;
		unsigned long n = strtoul(digits, &rest, 10);

		if (*digits < '0' || *digits > '9' || rest - digits > 6 || *rest != '.' ||
		    (*digits == '0' && rest - digits > 1))
			return OBM_ROLES;
		*layer = (uint32_t)n;
		name = rest + 1;
	}
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		if (!strcmp(name, names[i].name) &&
		    (*layer == OBM_NO_LAYER) == (names[i].role < OBM_ATTN_NORM))
			return names[i].role;
	return OBM_ROLES;
}

static bool is_linear(uint32_t role)
{
	return role >= OBM_Q && role < OBM_ROLES;
}

static void shape_of(const struct obm_arch *a, uint32_t role, uint32_t *rows, uint32_t *cols)
{
	uint32_t q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;

	*rows = role == OBM_Q ? q : role == OBM_K || role == OBM_V ? kv
	      : role == OBM_GATE || role == OBM_UP ? a->ffn
	      : role == OBM_O || role == OBM_DOWN ? a->hidden
	      : role == OBM_EMBED || role == OBM_HEAD ? a->vocab : 1;
	*cols = role == OBM_ATTN_SUB_NORM || role == OBM_O ? q
	      : role == OBM_FFN_SUB_NORM || role == OBM_DOWN ? a->ffn : a->hidden;
}

/* ---- forms ---------------------------------------------------------------------------------- */

static const struct safetensors_tensor *scale_of(const struct hf *h, const char *weight)
{
	char name[SAFETENSORS_NAME_MAX + 8];

	snprintf(name, sizeof(name), "%s_scale", weight);
	return safetensors_find(h->st, name);
}

/* "bitlinear" or "autobitlinear", from config.json or from the person, never both ways. */
static int settle_linear(struct hf *h, const char *option, char *why, size_t why_len)
{
	enum hf_linear given = HF_LINEAR_UNNAMED;

	if (!option)
		return 0;
	if (!strcmp(option, "autobitlinear"))
		given = HF_LINEAR_AUTO;
	else if (!strcmp(option, "bitlinear"))
		given = HF_LINEAR_BIT;
	else
		return fail(why, why_len, -EINVAL,
			    "--linear '%.40s' is not known; autobitlinear and bitlinear are",
			    option);
	if (h->config.linear != HF_LINEAR_UNNAMED && h->config.linear != given)
		return fail(why, why_len, -EINVAL,
			    "config.json's linear_class is %s; leave --linear away",
			    h->config.linear == HF_LINEAR_AUTO ? "autobitlinear" : "bitlinear");
	h->config.linear = given;
	return 0;
}

static int take_scale(const struct hf *h, const struct safetensors_tensor *scale,
		      struct hf_storage *to, char *why, size_t why_len)
{
	bool is_finite;
	float f, w = 0;

	if (h->config.linear == HF_LINEAR_UNNAMED)
		return fail(why, why_len, -ENOTSUP,
			    "config.json has no linear_class, so whether to multiply by %s or to "
			    "divide is not known; ask the model's card, and say --linear "
			    "autobitlinear or --linear bitlinear (transformers would take "
			    "bitlinear)",
			    scale->name);
	if (scale->type != SAFETENSORS_BF16 && scale->type != SAFETENSORS_F16 &&
	    scale->type != SAFETENSORS_F32)
		return fail(why, why_len, -ENOTSUP,
			    "%s is stored as %s; it must be BF16, F16 or F32", scale->name,
			    scale->dtype);
	if (scale->bytes != hf_element_bytes(scale->type))
		return fail(why, why_len, -ENOTSUP,
			    "%s has %llu values; one for the matrix is served", scale->name,
			    (unsigned long long)(scale->bytes / hf_element_bytes(scale->type)));
	is_finite = hf_widen(scale->type, safetensors_data(h->st, scale), &w, 1) == 1;
	f = h->config.linear == HF_LINEAR_BIT ? 1 / w : w;
	if (!is_finite || !(f > 0) || !isfinite(f))
		return fail(why, why_len, -EPROTO, "%s is %g; a scale is above 0 and finite",
			    scale->name, (double)w);
	to->scale = f;
	return 0;
}

/*
 * Whether this float matrix is ternary as it is, by its first rows or by all. groups: 0 and why if
 * not.
 */
static int probe(struct hf *h, const struct source_tensor *t, uint32_t *groups, char *why,
		 size_t why_len)
{
	uint32_t rows = h->st->bytes <= SMALL || t->rows < FIRST_ROWS ? t->rows : FIRST_ROWS;
	struct ternary_finder *f = ternary_finder_new(rows, t->cols);
	int err = f ? 0 : fail(why, why_len, -ENOMEM, "no memory for a row of %u columns", t->cols);

	for (uint32_t r = 0; !err && r < rows; r++) {
		err = hf_read_floats(&h->s, t, r, 1, h->row, why, why_len);
		if (!err && ternary_finder_rows(f, h->row, 1))
			break;
	}
	if (!err)
		*groups = ternary_finder_groups(f, why, why_len);
	ternary_finder_free(f);
	return err;
}

/* Floats without a scale beside them, and without a quantization_config. */
static int plain_form(struct hf *h, struct source_tensor *t, char *why, size_t why_len)
{
	const struct hf_storage *from = t->private_data;
	char figures[400] = "";
	int err = probe(h, t, &t->groups, figures, sizeof(figures));

	if (err)
		return fail(why, why_len, err, "%s", figures);
	t->form = SOURCE_TERNARY;
	if (t->groups)
		return 0;
	if (!h->config.is_bitnet)
		return fail(why, why_len, -ENOTSUP,
			    "%s is not ternary: %s. config.json has no quantization_config, so it "
			    "would not be made so either",
			    from->t->name, figures);
	t->form = SOURCE_MASTER;
	return 0;
}

static int linear_form(struct hf *h, struct source_tensor *t, struct hf_storage *from, char *why,
		       size_t why_len)
{
	const struct safetensors_tensor *st = from->t, *scale = scale_of(h, st->name);

	t->groups = 1;
	t->form = SOURCE_TERNARY;
	if (st->type == SAFETENSORS_U8 || st->type == SAFETENSORS_I8 || scale) {
		if (h->config.mode == HF_MODE_ONLINE)
			return fail(why, why_len, -EPROTO,
				    "%s (%s) is ternary already, but by config.json weights are "
				    "made so online; one of the two is another model's",
				    st->name, st->dtype);
		if (!scale)
			return fail(why, why_len, -ENOENT,
				    "%s is stored as %s, and %s_scale is missing", st->name,
				    st->dtype, st->name);
		from->is_codes = !from->packed_rows;
		t->stored = from->packed_rows ? "U8, four codes a byte" : st->dtype;
		return take_scale(h, scale, from, why, why_len);
	}
	if (h->config.mode == HF_MODE_OFFLINE)
		return fail(why, why_len, -ENOENT,
			    "%s is stored as %s, and %s_scale is missing, which config.json's "
			    "quantization_mode offline wants",
			    st->name, st->dtype, st->name);
	if (h->config.mode == HF_MODE_ONLINE) {
		t->form = SOURCE_MASTER;
		return 0;
	}
	return plain_form(h, t, why, why_len);
}

/* rows: 0 for a tensor of one dimension. */
static int refuse_shape(const struct safetensors_tensor *st, uint32_t rows, uint32_t cols,
			bool is_packed, char *why, size_t why_len)
{
	char is[24 * SAFETENSORS_DIMS_MAX] = "", must[32];
	size_t n = 0;

	for (uint32_t i = 0; i < st->n_dims; i++)
		n += (size_t)snprintf(is + n, sizeof(is) - n, "%s%llu", i ? ", " : "",
				      (unsigned long long)st->shape[i]);
	snprintf(must, sizeof(must), rows ? "%2$u, %1$u" : "%1$u", cols, rows);
	return fail(why, why_len, -EPROTO,
		    "%s has the shape [%s]; by config.json it must be [%s]%s", st->name, is, must,
		    is_packed ? ", four rows in one" : "");
}

/* Shape and form of the tensor behind s.tensors[i], whose role and layer are known. */
static int bind(struct hf *h, struct source_tensor *t, char *why, size_t why_len)
{
	struct hf_storage *from = (struct hf_storage *)t->private_data;
	const struct safetensors_tensor *st = from->t;
	bool is_norm = t->role == OBM_FINAL_NORM || (t->role >= OBM_ATTN_NORM && t->role < OBM_Q);
	bool is_float = st->type == SAFETENSORS_F32 || st->type == SAFETENSORS_F16 ||
			st->type == SAFETENSORS_BF16;
	uint32_t rows;

	if (st->type == SAFETENSORS_OTHER || (!is_float && !is_linear(t->role)))
		return fail(why, why_len, -ENOTSUP,
			    "%s is stored as %s, which is not read here; %sBF16, F16 and F32 are",
			    st->name, st->dtype, is_linear(t->role) ? "U8, I8, " : "");
	shape_of(&h->config.arch, t->role, &t->rows, &t->cols);
	if (st->type == SAFETENSORS_U8)
		from->packed_rows = t->rows / 4 + (t->rows % 4 != 0);
	rows = from->packed_rows ? from->packed_rows : t->rows;
	if (is_norm ? st->n_dims != 1 || st->shape[0] != t->cols
		    : st->n_dims != 2 || st->shape[0] != rows || st->shape[1] != t->cols)
		return refuse_shape(st, is_norm ? 0 : rows, t->cols, from->packed_rows, why,
				    why_len);
	t->stored = st->dtype;
	t->groups = 0;
	t->form = st->type == SAFETENSORS_F32 ? SOURCE_F32
		: st->type == SAFETENSORS_F16 ? SOURCE_F16 : SOURCE_BF16;
	return is_linear(t->role) ? linear_form(h, t, from, why, why_len) : 0;
}

/* What has no role: 0 when it may be left out, else why it may not. */
static int judge_nameless(const struct hf *h, const char *name, char *why, size_t why_len)
{
	char weight[SAFETENSORS_NAME_MAX + 1];
	uint32_t layer;

	/* Old checkpoints hold the frequencies that config.json implies. */
	if (ends_in(name, ".rotary_emb.inv_freq"))
		return 0;
	if (ends_in(name, ".bias"))
		return fail(why, why_len, -ENOTSUP, "%s is a bias, and biases are not served",
			    name);
	if (ends_in(name, ".weight_scale")) {
		snprintf(weight, sizeof(weight), "%.*s", (int)(strlen(name) - 6), name);
		if (is_linear(role_of(weight, &layer)) && safetensors_find(h->st, weight))
			return 0;
	}
	return fail(why, why_len, -ENOTSUP,
		    "%s is no tensor of a %s that is served; without it the model would be another",
		    name, h->config.architecture);
}

static int bind_all(struct hf *h, char *why, size_t why_len)
{
	struct source *s = &h->s;
	uint32_t widest = h->config.arch.ffn > h->config.arch.hidden ? h->config.arch.ffn
								      : h->config.arch.hidden;
	uint32_t q = h->config.arch.heads * h->config.arch.head_dim;
	int err;

	s->tensors = calloc(h->st->n_tensors + 1u, sizeof(*s->tensors));
	h->storage = calloc(h->st->n_tensors + 1u, sizeof(*h->storage));
	h->row = calloc(widest > q ? widest : q, sizeof(*h->row));
	if (!s->tensors || !h->storage || !h->row)
		return fail(why, why_len, -ENOMEM, "no memory for %u tensors", h->st->n_tensors);
	for (uint32_t i = 0; i < h->st->n_tensors; i++) {
		const struct safetensors_tensor *st = &h->st->tensors[i];
		struct source_tensor *t = &s->tensors[s->n_tensors];

		t->role = role_of(st->name, &t->layer);
		if (t->role == OBM_ROLES) {
			err = judge_nameless(h, st->name, why, why_len);
			if (err)
				return err;
			continue;
		}
		/* Where both are tied, transformers takes the embedding, whatever this holds. */
		if (t->role == OBM_HEAD && h->config.says_tied && h->config.is_tied)
			continue;
		if (t->layer != OBM_NO_LAYER && t->layer >= h->config.arch.layers)
			return fail(why, why_len, -EPROTO,
				    "%s is there, but num_hidden_layers is %u", st->name,
				    h->config.arch.layers);
		h->storage[s->n_tensors].t = st;
		t->private_data = &h->storage[s->n_tensors];
		err = bind(h, t, why, why_len);
		if (err)
			return err;
		s->n_tensors++;
	}
	return 0;
}

/* All that the architecture needs, by the name that is missed. Sub-norms are source_check()'s. */
static int check_presence(const struct hf *h, char *why, size_t why_len)
{
	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++) {
		uint32_t role = names[i].role,
			 layers = role < OBM_ATTN_NORM ? 1 : h->config.arch.layers;
		bool in_layer = role >= OBM_ATTN_NORM;

		if (role == OBM_ATTN_SUB_NORM || role == OBM_FFN_SUB_NORM ||
		    (role == OBM_HEAD && (!h->config.says_tied || h->config.is_tied)))
			continue;
		for (uint32_t l = 0; l < layers; l++) {
			char name[SAFETENSORS_NAME_MAX];

			if (in_layer)
				snprintf(name, sizeof(name), LAYERS "%u.%s", l, names[i].name);
			else
				strcpy(name, names[i].name);
			if (!safetensors_find(h->st, name))
				return fail(why, why_len, -ENOENT, "%s is missing%s", name,
					    role == OBM_HEAD ? ", and tie_word_embeddings is false"
							     : "");
		}
	}
	return 0;
}

int hf_bind(struct hf *h, const char *linear, char *why, size_t why_len)
{
	int err = settle_linear(h, linear, why, why_len);

	if (!err)
		err = check_presence(h, why, why_len);
	if (!err)
		err = bind_all(h, why, why_len);
	return err;
}

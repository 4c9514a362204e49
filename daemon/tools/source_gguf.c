/* SPDX-License-Identifier: MIT */
/*
 * A model from a GGUF file: what its metadata says, and its tensors by role.
 *
 * Architectures, as those who write and read them have them:
 *
 *      bitnet        the 0.7B and 3B reproductions, by llama.cpp, ik_llama.cpp and bitnet.cpp.
 *                    SiLU where hidden_activation does not say otherwise. ik_llama.cpp's have
 *                    -1, 0, 1 and a tensor NAME.scale beside each matrix; llama.cpp takes such, too
 *      bitnet-25     the 2B-4T, by bitnet.cpp's converter of Microsoft's checkpoints; ReLU²
 *      bitnet-b1.58  the same, as it is published; ReLU²
 *      llama         ternary Llama-shaped models (TriLM, Llama3-8B-1.58); SiLU, no sub-norms
 *
 * All three bitnets are run with split-half rotary positions and converted without touching the
 * rows of q and k; llama is run with adjacent pairs, and every converter to it permutes the rows
 * so.
 *
 * A tensor or setting that is there and not known is refused: a model of which a part was left out
 * would be served, and be wrong.
 */
#include "source.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "gguf.h"
#include "gguf_stored.h"
#include "mapped.h"
#include "rope.h"
#include "vocab_gguf.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

struct gguf_source {
	struct source source;
	struct mapped map;
	struct gguf *g;
	const struct family *family;
	struct gguf_stored *stored; /* as source.tensors */
	double *rope;
	bool act_assumed; /* the file does not name its activation */
};

static const struct family {
	const char *name;
	enum source_qk qk;
	uint32_t activation, flags;
} families[] = {
	{ "bitnet", SOURCE_QK_SPLIT, OBM_ACT_SILU, 0 },
	{ "bitnet-25", SOURCE_QK_SPLIT, OBM_ACT_RELU2, 0 },
	{ "bitnet-b1.58", SOURCE_QK_SPLIT, OBM_ACT_RELU2, 0 },
	/* Which activations a Llama-shaped model was trained with, no key says. */
	{ "llama", SOURCE_QK_PAIRS, OBM_ACT_SILU, OBM_FLAG_A8_IMPOSED },
};

/* ---- metadata -------------------------------------------------------------------------------- */

static int find_family(struct gguf_source *s, char *why, size_t why_len)
{
	struct gguf_string name = { "", 0 };
	char shown[64];
	int err = gguf_string(s->g, "general.architecture", &name, why, why_len);

	if (err < 0)
		return err;
	for (size_t i = 0; i < COUNT(families); i++)
		if (gguf_is(name, families[i].name))
			s->family = &families[i];
	if (s->family)
		return 0;
	if (err)
		return fail(why, why_len, -EPROTO, "key general.architecture is missing");
	return fail(why, why_len, -ENOTSUP,
		    "architecture '%s' is not supported; bitnet, bitnet-25, "
		    "bitnet-b1.58 and llama are",
		    gguf_show(name, shown));
}

static const char *key_of(const struct gguf_source *s, const char *key, char buf[96])
{
	snprintf(buf, 96, "%s.%s", s->family->name, key);
	return buf;
}

static int need_u32(const struct gguf_source *s, const char *key, uint32_t *out, char *why,
		    size_t why_len)
{
	char name[96];
	int err = gguf_u32(s->g, key_of(s, key, name), out, why, why_len);

	return err == GGUF_ABSENT ? fail(why, why_len, -EPROTO, "key %s is missing", name) : err;
}

static int may_u32(const struct gguf_source *s, const char *key, uint32_t *out, char *why,
		   size_t why_len)
{
	char name[96];
	int err = gguf_u32(s->g, key_of(s, key, name), out, why, why_len);

	return err < 0 ? err : 0;
}

static int read_heads(struct gguf_source *s, char *why, size_t why_len)
{
	struct obm_arch *a = &s->source.arch;
	uint32_t value, rotary;
	int err;

	if ((err = need_u32(s, "attention.head_count", &a->heads, why, why_len)))
		return err;
	a->kv_heads = a->heads;
	if ((err = may_u32(s, "attention.head_count_kv", &a->kv_heads, why, why_len)))
		return err;
	if (!a->heads || a->heads > OBM_HEADS_MAX)
		return fail(why, why_len, a->heads ? -EFBIG : -EPROTO,
			    "key %s.attention.head_count is %u; 1 to %u are supported",
			    s->family->name, a->heads, OBM_HEADS_MAX);
	a->head_dim = a->hidden / a->heads;
	if ((err = may_u32(s, "attention.key_length", &a->head_dim, why, why_len)))
		return err;
	value = rotary = a->head_dim;
	if ((err = may_u32(s, "attention.value_length", &value, why, why_len)) ||
	    (err = may_u32(s, "rope.dimension_count", &rotary, why, why_len)))
		return err;
	if (value != a->head_dim || rotary != a->head_dim)
		return fail(why, why_len, -ENOTSUP,
			    "heads have %u columns in q and k, %u in v, and %u of them "
			    "rotate; all must be the same",
			    a->head_dim, value, rotary);
	return 0;
}

/* Settings that would change what the model computes; absent, or a number that changes nothing. */
static int refuse_settings(const struct gguf_source *s, char *why, size_t why_len)
{
	static const struct {
		const char *key;
		double neutral;
	} settings[] = {
		{ "expert_count", 0 },
		{ "attention.sliding_window", 0 },
		{ "attention.clamp_kqv", 0 },
		{ "attention.max_alibi_bias", 0 },
		{ "attn_logit_softcapping", 0 },
		{ "final_logit_softcapping", 0 },
		{ "attention.scale", 0 },
		{ "logit_scale", 1 },
		{ "residual_scale", 1 },
		{ "embedding_scale", 1 },
		{ "rope.scale_linear", 1 },
		{ "rope.scaling.factor", 1 },
		{ "rope.scaling.attn_factor", 1 },
	};

	for (size_t i = 0; i < COUNT(settings); i++) {
		char name[96], unused[128];
		double value = 0;
		uint32_t number;

		key_of(s, settings[i].key, name);
		if (!gguf_u32(s->g, name, &number, unused, sizeof(unused)))
			value = number;
		else if (gguf_float(s->g, name, &value, unused, sizeof(unused)) < 0)
			return fail(why, why_len, -EPROTO, "key %s is no number", name);
		if (value != 0 && value != settings[i].neutral)
			return fail(why, why_len, -ENOTSUP, "key %s is %g, which is not supported",
				    name, value);
	}
	return 0;
}

static int read_activation(struct gguf_source *s, char *why, size_t why_len)
{
	static const struct {
		const char *name;
		uint32_t activation;
	} known[] = {
		{ "relu2", OBM_ACT_RELU2 },	   { "relu_sqr", OBM_ACT_RELU2 },
		{ "squared_relu", OBM_ACT_RELU2 }, { "silu", OBM_ACT_SILU },
		{ "swish", OBM_ACT_SILU },	   { "swiglu", OBM_ACT_SILU },
	};
	struct gguf_string name;
	char key[96], shown[64];
	int err = gguf_string(s->g, key_of(s, "hidden_activation", key), &name, why, why_len);

	if (err < 0)
		return err;
	if (err == GGUF_ABSENT) {
		s->source.arch.activation = s->family->activation;
		s->act_assumed = true;
		return 0;
	}
	for (size_t i = 0; i < COUNT(known); i++)
		if (gguf_is(name, known[i].name)) {
			s->source.arch.activation = known[i].activation;
			return 0;
		}
	return fail(why, why_len, -ENOTSUP, "key %s is '%s'; relu2 and silu are supported", key,
		    gguf_show(name, shown));
}

static int read_scaling(const struct gguf_source *s, char *why, size_t why_len)
{
	struct gguf_string type;
	char key[96], shown[64];
	int err = gguf_string(s->g, key_of(s, "rope.scaling.type", key), &type, why, why_len);

	if (err)
		return err < 0 ? err : 0;
	/* Linear with factor 1 is what bitnet files say; another factor is refused as a setting. */
	if (gguf_is(type, "none") || gguf_is(type, "linear"))
		return 0;
	return fail(why, why_len, -ENOTSUP,
		    "key %s is '%s'; scaled rotary positions are supported as a tensor "
		    "rope_freqs.weight only",
		    key, gguf_show(type, shown));
}

static int read_numbers(struct gguf_source *s, char *why, size_t why_len)
{
	struct obm_arch *a = &s->source.arch;
	double eps = 0, theta = 10000.0;
	char key[96];
	int err;

	if ((err = need_u32(s, "block_count", &a->layers, why, why_len)) ||
	    (err = need_u32(s, "embedding_length", &a->hidden, why, why_len)) ||
	    (err = need_u32(s, "feed_forward_length", &a->ffn, why, why_len)) ||
	    (err = need_u32(s, "context_length", &a->context, why, why_len)) ||
	    (err = read_heads(s, why, why_len)) || (err = read_activation(s, why, why_len)) ||
	    (err = read_scaling(s, why, why_len)) || (err = refuse_settings(s, why, why_len)))
		return err;
	err = gguf_float(s->g, key_of(s, "attention.layer_norm_rms_epsilon", key), &eps, why,
			 why_len);
	if (err)
		return err < 0 ? err : fail(why, why_len, -EPROTO, "key %s is missing", key);
	err = gguf_float(s->g, key_of(s, "rope.freq_base", key), &theta, why, why_len);
	if (err < 0)
		return err;
	a->rms_eps = (float)eps;
	a->rope_theta = (float)theta;
	s->source.rope_theta = theta;
	a->flags = s->family->flags;
	err = gguf_u32(s->g, GGUF_OWN_FLAGS, &a->flags, why, why_len);
	return err < 0 ? err : 0;
}

/* ---- frequencies ----------------------------------------------------------------------------- */

/* Our own, else those of theta divided by what the file's tensor says, as Llama 3.1 wants it. */
static int read_rope(struct gguf_source *s, char *why, size_t why_len)
{
	const struct gguf_tensor *t = gguf_tensor(s->g, "rope_freqs.weight");
	const uint32_t n = s->source.arch.head_dim / 2;
	const struct gguf_pair *own = NULL;
	struct gguf_stored stored;
	float *factors = NULL;
	int err = gguf_array(s->g, GGUF_OWN_ROPE, GGUF_F64, &own, why, why_len);

	if (err < 0 || (!own && !t))
		return err < 0 ? err : 0;
	if (!n || n > OBM_HEAD_DIM_MAX || !(s->source.rope_theta > 1) ||
	    !isfinite(s->source.rope_theta))
		return 0; /* source_check() says it better */
	s->rope = calloc(n, sizeof(*s->rope));
	if (!s->rope)
		return fail(why, why_len, -ENOMEM, "no memory");
	s->source.rope = s->rope;
	if (own) {
		struct cursor c = { .data = own->data, .bytes = own->bytes };

		if (own->n != n)
			return fail(why, why_len, -EPROTO,
				    "key " GGUF_OWN_ROPE " has %llu frequencies; %u belong "
				    "there",
				    (unsigned long long)own->n, n);
		for (uint32_t i = 0; i < n; i++)
			s->rope[i] = cursor_f64(&c);
		return 0;
	}
	err = gguf_stored_open(&stored, t, s->map.data, s->g->alignment, why, why_len);
	if (err)
		return err;
	if (stored.kind != GGUF_KIND_F32 || stored.rows != 1 || stored.cols != n)
		return fail(why, why_len, -EPROTO,
			    "tensor rope_freqs.weight is %s, %u x %u; %u numbers of F32 "
			    "belong there",
			    gguf_kind_name(stored.kind), stored.rows, stored.cols, n);
	factors = malloc(n * sizeof(*factors));
	if (!factors)
		return fail(why, why_len, -ENOMEM, "no memory");
	err = gguf_stored_floats(&stored, 0, 1, factors, why, why_len);
	rope_frequencies(s->source.rope_theta, 2 * n, s->rope);
	for (uint32_t i = 0; i < n && !err; i++) {
		if (!(factors[i] > 0))
			err = fail(why, why_len, -EPROTO,
				   "tensor rope_freqs.weight has %g at %u; all are more "
				   "than 0",
				   (double)factors[i], i);
		else
			s->rope[i] /= (double)factors[i];
	}
	free(factors);
	return err;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static const struct {
	const char *name;
	uint32_t role;
} global_names[] = {
	{ "token_embd.weight", OBM_EMBED },
	{ "output.weight", OBM_HEAD },
	{ "output_norm.weight", OBM_FINAL_NORM },
}, layer_names[] = {
	{ "attn_norm.weight", OBM_ATTN_NORM },	   { "attn_sub_norm.weight", OBM_ATTN_SUB_NORM },
	{ "ffn_norm.weight", OBM_FFN_NORM },	   { "ffn_sub_norm.weight", OBM_FFN_SUB_NORM },
	{ "attn_q.weight", OBM_Q },		   { "attn_k.weight", OBM_K },
	{ "attn_v.weight", OBM_V },		   { "attn_output.weight", OBM_O },
	{ "ffn_gate.weight", OBM_GATE },	   { "ffn_up.weight", OBM_UP },
	{ "ffn_down.weight", OBM_DOWN },
};

static bool ends_in(struct gguf_string s, const char *tail)
{
	size_t n = strlen(tail);

	return s.len >= n && !memcmp(s.text + s.len - n, tail, n);
}

/* The number in "blk.NUMBER.", written as numbers are; what follows is rest. */
static bool layer_of(struct gguf_string name, uint32_t *layer, struct gguf_string *rest)
{
	uint64_t i = 4;

	if (name.len < 7 || memcmp(name.text, "blk.", 4))
		return false;
	for (*layer = 0; i < name.len && name.text[i] >= '0' && name.text[i] <= '9'; i++) {
		*layer = *layer * 10 + (uint32_t)(name.text[i] - '0');
		if (*layer >= OBM_LAYERS_MAX || (i > 4 && name.text[4] == '0'))
			return false;
	}
	if (i == 4 || i == name.len || name.text[i] != '.')
		return false;
	*rest = (struct gguf_string){ name.text + i + 1, name.len - i - 1 };
	return true;
}

enum { NO_TENSOR = 1 }; /* one that belongs to another, or to nobody */

static int role_of(const struct gguf_tensor *t, uint32_t *role, uint32_t *layer, char *why,
		   size_t why_len)
{
	struct gguf_string rest;
	char shown[64];

	*layer = OBM_NO_LAYER;
	for (size_t i = 0; i < COUNT(global_names); i++)
		if (gguf_is(t->name, global_names[i].name)) {
			*role = global_names[i].role;
			return 0;
		}
	if (gguf_is(t->name, "rope_freqs.weight"))
		return NO_TENSOR;
	gguf_show(t->name, shown);
	if (layer_of(t->name, layer, &rest)) {
		for (size_t i = 0; i < COUNT(layer_names); i++) {
			const char *name = layer_names[i].name;
			size_t stem = strlen(name) - strlen("weight");

			if (gguf_is(rest, name)) {
				*role = layer_names[i].role;
				return 0;
			}
			if (layer_names[i].role >= OBM_Q && rest.len > stem &&
			    !memcmp(rest.text, name, stem) &&
			    (ends_in(rest, ".scale") || ends_in(rest, ".weight_scale")))
				return NO_TENSOR;
		}
		/* Frequencies that old converters left in, and nobody reads. */
		if (gguf_is(rest, "attn_rot_embd.weight") || gguf_is(rest, "attn_rot_embd.freqs"))
			return NO_TENSOR;
	}
	if (ends_in(t->name, ".bias"))
		return fail(why, why_len, -ENOTSUP,
			    "tensor %s: models with biases are not supported", shown);
	return fail(why, why_len, -ENOTSUP,
		    "tensor %s is not known to architectures that are supported; "
		    "without it the model would be another one",
		    shown);
}

static enum source_form float_form(enum gguf_kind kind)
{
	return kind == GGUF_KIND_F32 ? SOURCE_F32 : kind == GGUF_KIND_F16 ? SOURCE_F16 :
	       kind == GGUF_KIND_BF16 ? SOURCE_BF16 : SOURCE_QUANTISED;
}

static int open_tensor(struct gguf_source *s, const struct gguf_tensor *t, uint32_t role,
		       uint32_t layer, char *why, size_t why_len)
{
	struct gguf_stored *stored = &s->stored[s->source.n_tensors];
	struct source_tensor *to = &s->source.tensors[s->source.n_tensors];
	int err = gguf_stored_open(stored, t, s->map.data, s->g->alignment, why, why_len);

	if (err)
		return err;
	*to = (struct source_tensor){ .role = role, .layer = layer, .rows = stored->rows,
				      .cols = stored->cols, .stored = gguf_kind_name(stored->kind),
				      .private_data = stored };
	if (role >= OBM_Q) {
		err = gguf_stored_ternary(stored, s->g, s->map.data, why, why_len);
		to->form = SOURCE_TERNARY;
	} else if (gguf_kind_is_ternary(stored->kind)) {
		err = fail(why, why_len, -ENOTSUP,
			   "tensor %s is %s, which norms and embeddings cannot be", stored->name,
			   to->stored);
	} else {
		if (role == OBM_EMBED || role == OBM_HEAD)
			err = gguf_stored_int8(stored, s->g, why, why_len);
		to->form = stored->groups ? SOURCE_INT8 : float_form(stored->kind);
	}
	to->groups = stored->groups;
	/* What says which scales there are has been read; the rest comes when it is wanted. */
	mapped_forget(&s->map, t->offset, t->room);
	s->source.n_tensors++;
	return err;
}

static int open_tensors(struct gguf_source *s, char *why, size_t why_len)
{
	const struct gguf *g = s->g;
	int err;

	if (!g->n_tensors)
		return fail(why, why_len, -ENOENT,
			    "the file has metadata only, a vocabulary perhaps; it can be "
			    "given with --tokenizer beside a model");
	s->stored = calloc(g->n_tensors, sizeof(*s->stored));
	s->source.tensors = calloc(g->n_tensors, sizeof(*s->source.tensors));
	if (!s->stored || !s->source.tensors)
		return fail(why, why_len, -ENOMEM, "no memory for %u tensors", g->n_tensors);
	for (uint32_t i = 0; i < g->n_tensors; i++) {
		uint32_t role = OBM_EMBED, layer = OBM_NO_LAYER;

		err = role_of(&g->tensors[i], &role, &layer, why, why_len);
		if (!err)
			err = open_tensor(s, &g->tensors[i], role, layer, why, why_len);
		if (err < 0)
			return err;
	}
	for (uint32_t i = 0; i < s->source.n_tensors; i++)
		if (s->source.tensors[i].role == OBM_EMBED)
			s->source.arch.vocab = s->source.tensors[i].rows;
	return 0;
}

/* ---- for people ------------------------------------------------------------------------------ */

/* A value as one line of OBM_INFO. */
static void put_line(FILE *f, const struct gguf *g, const char *key, const char *as)
{
	struct gguf_string value;
	char unused[128];

	if (gguf_string(g, key, &value, unused, sizeof(unused)) || !value.len)
		return;
	fprintf(f, "%s: ", as);
	for (uint64_t i = 0; i < value.len && i < 1000; i++)
		fputc((uint8_t)value.text[i] < 32 || value.text[i] == 127 ? ' ' : value.text[i], f);
	fputc('\n', f);
}

static bool has_kind(const struct gguf_source *s, enum gguf_kind kind)
{
	for (uint32_t i = 0; i < s->source.n_tensors; i++)
		if (s->stored[i].kind == kind)
			return true;
	return false;
}

static int write_info(struct gguf_source *s, char *why, size_t why_len)
{
	static const char *const lines[][2] = {
		{ "general.name", "name" },
		{ "general.author", "author" },
		{ "general.organization", "organisation" },
		{ "general.source.huggingface.repository", "origin" },
		{ "general.source.url", "origin" },
		{ "general.source.repo_url", "origin" },
		{ "general.repo_url", "origin" },
		{ "general.license", "licence" },
		{ "general.license.link", "licence text" },
		{ "general.quantized_by", "quantised by" },
	};
	struct gguf_string own;
	size_t len;
	FILE *f;

	f = open_memstream(&s->source.info, &len);
	if (!f)
		return fail(why, why_len, -ENOMEM, "no memory");
	if (!gguf_string(s->g, GGUF_OWN_INFO, &own, why, why_len) && own.len <= OBM_TEXT_MAX &&
	    !memchr(own.text, 0, own.len)) {
		fwrite(own.text, 1, own.len, f);
	} else {
		for (size_t i = 0; i < COUNT(lines); i++)
			put_line(f, s->g, lines[i][0], lines[i][1]);
		fprintf(f, "source: %s, architecture %s\n", s->source.format, s->family->name);
		if (s->act_assumed)
			fprintf(f, "note: the file does not name its activation; %s's is %s\n",
				s->family->name,
				s->family->activation == OBM_ACT_RELU2 ? "relu2" : "silu");
		/* Builds for ARM have written others, of the same size; no byte tells them apart.
		 */
		if (has_kind(s, GGUF_KIND_I2_S))
			fputs("note: I2_S read in blocks of 128 columns, as x86 builds write "
			      "them\n",
			      f);
	}
	/* Closed in either case. */
	if (ferror(f) | fclose(f))
		return fail(why, why_len, -ENOMEM, "no memory");
	return 0;
}

static void copy_text(const struct gguf *g, const char *key, char *to, size_t size)
{
	struct gguf_string value;
	char unused[128];
	size_t n;

	if (gguf_string(g, key, &value, unused, sizeof(unused)) || !value.len)
		return;
	n = value.len < size ? (size_t)value.len : size - 1;
	/* Not in the middle of a character. */
	while (n < value.len && n && ((uint8_t)value.text[n] & 0xc0) == 0x80)
		n--;
	memset(to, 0, size);
	for (size_t i = 0; i < n; i++)
		to[i] = (uint8_t)value.text[i] < 32 ? ' ' : value.text[i];
}

static int read_texts(struct gguf_source *s, char *why, size_t why_len)
{
	struct obm_arch *a = &s->source.arch;
	const char *base = strrchr(s->map.path, '/');
	struct gguf_string licence;

	snprintf(a->name, sizeof(a->name), "%.63s", base ? base + 1 : s->map.path);
	copy_text(s->g, "general.name", a->name, sizeof(a->name));
	snprintf(a->family, sizeof(a->family), "%s", s->family->name);
	copy_text(s->g, GGUF_OWN_FAMILY, a->family, sizeof(a->family));
	if (!gguf_string(s->g, GGUF_OWN_LICENCE, &licence, why, why_len) && licence.len &&
	    licence.len <= OBM_TEXT_MAX && !memchr(licence.text, 0, licence.len)) {
		s->source.licence = strndup(licence.text, licence.len);
		if (!s->source.licence)
			return fail(why, why_len, -ENOMEM, "no memory");
	}
	return write_info(s, why, why_len);
}

/* ---- reading, and the whole ------------------------------------------------------------------ */

static int with_path(const struct gguf_source *s, int err, const char *reason, char *why,
		     size_t why_len)
{
	return fail(why, why_len, err, "%s: %s", s->map.path, reason);
}

static int read_codes(struct source *source, const struct source_tensor *t, uint32_t row0,
		      uint32_t n, int8_t *codes, float *scales, char *why, size_t why_len)
{
	char reason[512];
	int err =
		gguf_stored_codes(t->private_data, row0, n, codes, scales, reason, sizeof(reason));

	return err ? with_path((struct gguf_source *)source, err, reason, why, why_len) : 0;
}

static int read_floats(struct source *source, const struct source_tensor *t, uint32_t row0,
		       uint32_t n, float *floats, char *why, size_t why_len)
{
	const struct gguf_stored *stored = t->private_data;
	int8_t *codes;
	float *scales;
	char reason[512] = "no memory";
	int err;

	if (t->form != SOURCE_INT8) {
		err = gguf_stored_floats(stored, row0, n, floats, reason, sizeof(reason));
		return err ? with_path((struct gguf_source *)source, err, reason, why, why_len) : 0;
	}
	/* The scales in the metadata, not the rounded ones in the blocks. */
	codes = malloc((size_t)n * t->cols);
	scales = malloc((n ? n : 1) * sizeof(*scales));
	err = codes && scales
		      ? gguf_stored_codes(stored, row0, n, codes, scales, reason, sizeof(reason))
		      : -ENOMEM;
	for (size_t i = 0; i < (size_t)n * t->cols && !err; i++)
		floats[i] = (float)codes[i] * scales[i / t->cols];
	free(codes);
	free(scales);
	return err ? with_path((struct gguf_source *)source, err, reason, why, why_len) : 0;
}

static void done(struct source *source, const struct source_tensor *t)
{
	const struct gguf_stored *stored = t->private_data;

	mapped_forget(&((struct gguf_source *)source)->map, stored->tensor->offset,
		      stored->tensor->room);
}

static void close_source(struct source *source)
{
	struct gguf_source *s = (struct gguf_source *)source;

	gguf_free(s->g);
	mapped_close(&s->map);
	free(s->stored);
	free(s->rope);
	free(s);
}

static const struct source_ops ops = {
	.read_codes = read_codes,
	.read_floats = read_floats,
	.done = done,
	.close = close_source,
};

/* One that cannot be read is no fault of the model: the person may give another. */
static int open_vocab(struct gguf_source *s, const struct source_options *o, char *why,
		      size_t why_len)
{
	struct source *source = &s->source;
	int err;

	if (o && o->tokenizer)
		return vocab_read(o->tokenizer, source->arch.vocab, &source->vocab, why, why_len);
	err = vocab_of_gguf(s->g, s->map.path, &source->vocab, source->no_vocab,
			    sizeof(source->no_vocab));
	return err == -ENOMEM ? fail(why, why_len, err, "%s: no memory", s->map.path) : 0;
}

static int refuse_parts(const struct gguf_source *s, char *why, size_t why_len)
{
	struct gguf_string type = { "", 0 };
	uint32_t parts = 1;
	int err = gguf_u32(s->g, "split.count", &parts, why, why_len);

	if (err >= 0)
		err = gguf_string(s->g, "general.type", &type, why, why_len);
	if (err < 0)
		return err;
	if (parts > 1)
		return fail(why, why_len, -ENOTSUP,
			    "the file is one of %u parts; put them together first "
			    "(llama-gguf-split --merge)",
			    parts);
	if (type.len && !gguf_is(type, "model"))
		return fail(why, why_len, -ENOTSUP,
			    "the file holds no model of its own but an adapter, projector "
			    "or other part (general.type)");
	return 0;
}

int source_open_gguf(const char *path, const struct source_options *o, struct source **out,
		     char *why, size_t why_len)
{
	struct gguf_source *s = calloc(1, sizeof(*s));
	char reason[512];
	int err;

	if (!s)
		return fail(why, why_len, -ENOMEM, "%s: no memory", path);
	s->source.ops = &ops;
	err = mapped_open(path, &s->map, why, why_len);
	if (!err)
		err = gguf_parse(s->map.data, s->map.bytes, path, &s->g, why, why_len);
	if (err)
		goto out;
	s->source.format = s->g->version == 2 ? "GGUF v2" : "GGUF v3";
	s->source.file_bytes = s->map.bytes;
	if ((err = refuse_parts(s, reason, sizeof(reason))) ||
	    (err = find_family(s, reason, sizeof(reason))) ||
	    (err = read_numbers(s, reason, sizeof(reason))) ||
	    (err = read_rope(s, reason, sizeof(reason))) ||
	    (err = open_tensors(s, reason, sizeof(reason))) ||
	    (err = read_texts(s, reason, sizeof(reason)))) {
		with_path(s, err, reason, why, why_len);
		goto out;
	}
	s->source.qk = s->family->qk;
	err = open_vocab(s, o, why, why_len);
out:
	if (err)
		source_close(&s->source);
	else
		*out = &s->source;
	return err;
}

/* SPDX-License-Identifier: MIT */
/*
 * config.json. The architecture's name decides little: whether activations are int8 by definition,
 * and what a key that is missing means. Facts from transformers and the models' own code that
 * decide something here:
 *
 *      - BitNetForCausalLM (2B-4T; model_type bitnet): rope_theta 500000 by default, sub-norms.
 *      - BitnetForCausalLM (the 0.7B and 3B reproductions, with code of their own): model_type says
 *        "llama", so architectures is asked first; weights are floats and each forward pass makes
 *        them ternary by absmean; input_bits 8, and weight_bits 1, by which it means ternary.
 *      - LlamaForCausalLM with quantization_config bitnet (Llama3-8B-1.58, Falcon): ternary linears
 *        with int8 activations; without one (TriLM) an ordinary Llama whose weights are ternary.
 *      - quantization_config.use_rms_norm puts a norm before every linear layer: not served.
 *      - transformers 5 writes rope_parameters where older ones wrote rope_theta and rope_scaling;
 *        a linear factor divides all frequencies, "llama3" those of long waves.
 */
#include "hf_config.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "mapped.h"
#include "packed.h"
#include "rope.h"

struct parse {
	const json_t *root;
	const char *name;
	char *why;
	size_t why_len;
};

static const char *type_name(const json_t *v)
{
	static const char *const names[] = {
		[JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list",	[JSON_STRING] = "a text",
		[JSON_INTEGER] = "a number", [JSON_REAL] = "a fraction", [JSON_TRUE] = "true",
		[JSON_FALSE] = "false",	     [JSON_NULL] = "null",
	};

	return v ? names[json_typeof(v)] : "missing";
}

/* A foreign text in a sentence: short, and nothing that a terminal would obey. */
static const char *shown(const char *text, char buf[48])
{
	size_t n = 0;

	for (; n < 47 && text[n]; n++)
		buf[n] = text[n] >= 0x20 && text[n] < 0x7f ? text[n] : '?';
	buf[n] = 0;
	return buf;
}

static bool is_absent(const json_t *v)
{
	return !v || json_is_null(v);
}

/* A whole number from 1 to max. absent: what a missing one means; 0: it may not be missing. */
static int get_whole(const struct parse *p, const char *key, uint32_t max, uint32_t absent,
		     uint32_t *out)
{
	const json_t *v = json_object_get(p->root, key);

	if (is_absent(v) && absent) {
		*out = absent;
		return 0;
	}
	if (!json_is_integer(v))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: %s is %s; it must be a whole number from 1 to %u", p->name, key,
			    type_name(v), max);
	if (json_integer_value(v) < 1 || json_integer_value(v) > max)
		return fail(p->why, p->why_len, json_integer_value(v) < 1 ? -EPROTO : -EFBIG,
			    "%s: %s is %lld; allowed are 1 to %u", p->name, key,
			    (long long)json_integer_value(v), max);
	*out = (uint32_t)json_integer_value(v);
	return 0;
}

/* A number above min, up to max. absent: what a missing one means; NaN: it may not be missing. */
static int get_number(const struct parse *p, const json_t *in, const char *key, double min,
		      double max, double absent, double *out)
{
	const json_t *v = json_object_get(in, key);
	double d = is_absent(v) ? absent : json_number_value(v);

	if (is_absent(v) ? isnan(absent) : !json_is_number(v))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: %s is %s; it must be a number above %g and up to %g", p->name, key,
			    type_name(v), min, max);
	if (!(d > min && d <= max))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: %s is %g; it must be above %g and up to %g", p->name, key, d, min,
			    max);
	*out = d;
	return 0;
}

/* A flag that must not be set: what it asks for is not served. */
static int refuse_flag(const struct parse *p, const json_t *in, const char *key, const char *what)
{
	const json_t *v = json_object_get(in, key);

	if (is_absent(v) || json_is_false(v))
		return 0;
	if (!json_is_true(v))
		return fail(p->why, p->why_len, -EPROTO, "%s: %s is %s; it must be true or false",
			    p->name, key, type_name(v));
	return fail(p->why, p->why_len, -ENOTSUP, "%s: %s is true, and %s not served", p->name, key,
		    what);
}

static int get_family(const struct parse *p, struct hf_config *c)
{
	static const struct {
		const char *architecture, *model_type;
		bool is_bitnet, own_code;
		const char *family;
		double theta; /* when config.json has none */
	} known[] = {
		{ "BitNetForCausalLM", "bitnet", true, false, "bitnet-b1.58", 500000 },
		{ "BitnetForCausalLM", NULL, true, true, "bitnet-b1.58", 10000 },
		{ "LlamaForCausalLM", "llama", false, false, "llama", 10000 },
	};
	const json_t *v = json_object_get(p->root, "architectures");
	const char *model_type = json_string_value(json_object_get(p->root, "model_type"));
	const char *name = json_string_value(json_array_get(v, 0));
	char buf[48];

	if (!is_absent(v) && (json_array_size(v) != 1 || !name))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: architectures is not a list of one name", p->name);
	if (!name && !model_type)
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: there is neither architectures nor model_type, so it describes "
			    "no model",
			    p->name);
	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		if (name ? strcmp(name, known[i].architecture)
			 : !known[i].model_type || strcmp(model_type, known[i].model_type))
			continue;
		strcpy(c->architecture, known[i].architecture);
		strcpy(c->arch.family, known[i].family);
		c->is_bitnet = known[i].is_bitnet;
		c->rope_theta = known[i].theta;
		c->mode = known[i].own_code ? HF_MODE_ONLINE : HF_MODE_PLAIN;
		return 0;
	}
	return fail(
		p->why, p->why_len, -ENOTSUP,
		"%s: the architecture '%s' is not served; BitNetForCausalLM, BitnetForCausalLM "
		"and LlamaForCausalLM are",
		p->name, shown(name ? name : model_type, buf));
}

static int get_activation(const struct parse *p, struct hf_config *c)
{
	const json_t *v = json_object_get(p->root, "hidden_act");
	const char *act = json_string_value(v);
	char buf[48];

	if (!act)
		return fail(p->why, p->why_len, -EPROTO, "%s: hidden_act is %s; it must be a text",
			    p->name, type_name(v));
	if (!strcmp(act, "relu2"))
		c->arch.activation = OBM_ACT_RELU2;
	else if (!strcmp(act, "silu") || !strcmp(act, "swish"))
		c->arch.activation = OBM_ACT_SILU;
	else
		return fail(p->why, p->why_len, -ENOTSUP,
			    "%s: hidden_act is '%s', which is not served; relu2 and silu are",
			    p->name, shown(act, buf));
	return 0;
}

static int get_sizes(const struct parse *p, struct hf_config *c)
{
	struct obm_arch *a = &c->arch;
	double eps = 0;
	int err;

	if ((err = get_whole(p, "num_hidden_layers", OBM_LAYERS_MAX, 0, &a->layers)) ||
	    (err = get_whole(p, "hidden_size", OBM_WIDTH_MAX, 0, &a->hidden)) ||
	    (err = get_whole(p, "intermediate_size", PACKED_COLS_MAX, 0, &a->ffn)) ||
	    (err = get_whole(p, "num_attention_heads", OBM_HEADS_MAX, 0, &a->heads)) ||
	    (err = get_whole(p, "num_key_value_heads", OBM_HEADS_MAX, a->heads, &a->kv_heads)) ||
	    (err = get_whole(p, "vocab_size", OBM_VOCAB_MAX, 0, &a->vocab)) ||
	    (err = get_whole(p, "max_position_embeddings", OBM_CONTEXT_MAX, 0, &a->context)) ||
	    (err = get_number(p, p->root, "rms_norm_eps", 0, 1, NAN, &eps)))
		return err;
	if (a->heads % a->kv_heads)
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: num_attention_heads is %u, no multiple of num_key_value_heads, %u",
			    p->name, a->heads, a->kv_heads);
	if (is_absent(json_object_get(p->root, "head_dim")) && a->hidden % a->heads)
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: there is no head_dim, and hidden_size %u is no multiple of "
			    "num_attention_heads %u", p->name, a->hidden, a->heads);
	err = get_whole(p, "head_dim", OBM_HEAD_DIM_MAX,
			a->hidden / a->heads <= OBM_HEAD_DIM_MAX ? a->hidden / a->heads : 0,
			&a->head_dim);
	if (err)
		return err;
	if (a->head_dim % 2)
		return fail(p->why, p->why_len, -EPROTO, "%s: head_dim is %u; it must be even",
			    p->name, a->head_dim);
	a->rms_eps = (float)eps;
	if (!(a->rms_eps > 0))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: rms_norm_eps is %g, which is too small", p->name, eps);
	return 0;
}

/*
 * Wave lengths above original / low are divided, below original / high kept, and between them
 * blended.
 */
static int scale_llama3(const struct parse *p, const json_t *in, struct hf_config *c, double factor)
{
	const json_t *at = json_object_get(in, "original_max_position_embeddings") ? in : p->root;
	double low = 0, high = 0, original = 0;
	int err;

	if ((err = get_number(p, in, "low_freq_factor", 0, 1e6, NAN, &low)) ||
	    (err = get_number(p, in, "high_freq_factor", 0, 1e6, NAN, &high)) ||
	    (err = get_number(p, at, "original_max_position_embeddings", 0, OBM_CONTEXT_MAX, NAN,
			      &original)))
		return err;
	if (!(low < high))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: low_freq_factor is %g, not below high_freq_factor, %g", p->name,
			    low, high);
	for (uint32_t i = 0; i < c->arch.head_dim / 2; i++) {
		double f = c->rope[i], wave = 2 * M_PI / f;
		double share = (original / wave - low) / (high - low);

		if (wave > original / low)
			c->rope[i] = f / factor;
		else if (wave >= original / high)
			c->rope[i] = (1 - share) * f / factor + share * f;
	}
	return 0;
}

static int get_rope(const struct parse *p, struct hf_config *c)
{
	const json_t *scaling = json_object_get(p->root, "rope_scaling");
	const json_t *in = json_object_get(p->root, "rope_parameters");
	double theta = 0, factor = 0;
	const json_t *v;
	const char *type;
	char buf[48];
	int err;

	if (!is_absent(in) && !is_absent(scaling) && !json_equal(in, scaling))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: rope_parameters and rope_scaling say two different things",
			    p->name);
	if (is_absent(in))
		in = scaling;
	if (!is_absent(in) && !json_is_object(in))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: %s is %s; it must be an object or null", p->name,
			    in == scaling ? "rope_scaling" : "rope_parameters", type_name(in));
	if ((err = get_number(p, p->root, "rope_theta", 1, 1e12, c->rope_theta, &theta)) ||
	    (err = get_number(p, in, "rope_theta", 1, 1e12, theta, &c->rope_theta)))
		return err;
	if (!is_absent(json_object_get(p->root, "rope_theta")) && theta != c->rope_theta)
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: rope_theta is %g, and %g in its parameters", p->name, theta,
			    c->rope_theta);
	c->arch.rope_theta = (float)c->rope_theta;
	for (int i = 0; i < 2; i++) {
		v = json_object_get(i ? in : p->root, "partial_rotary_factor");
		if (!is_absent(v) && json_number_value(v) != 1)
			return fail(p->why, p->why_len, -ENOTSUP,
				    "%s: partial_rotary_factor is not 1; heads that are rotated "
				    "in part are not served",
				    p->name);
	}
	v = json_object_get(in, "rope_type");
	v = is_absent(v) ? json_object_get(in, "type") : v;
	type = is_absent(v) ? "default" : json_string_value(v);
	if (!type || (is_absent(v) && json_object_get(in, "factor")))
		return fail(p->why, p->why_len, -EPROTO, "%s: rope_type is %s; it must be a text",
			    p->name, type_name(v));
	if (!strcmp(type, "default"))
		return 0;
	if (strcmp(type, "linear") && strcmp(type, "llama3"))
		return fail(p->why, p->why_len, -ENOTSUP,
			    "%s: rope_type is '%s', which is not served; default, linear and "
			    "llama3 are",
			    p->name, shown(type, buf));
	err = get_number(p, in, "factor", 0, 1e6, NAN, &factor);
	if (err)
		return err;
	if (factor < 1)
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: factor of rope_scaling is %g; it is 1 or more", p->name, factor);
	c->has_rope = true;
	rope_frequencies(c->rope_theta, c->arch.head_dim, c->rope);
	if (!strcmp(type, "llama3"))
		return scale_llama3(p, in, c, factor);
	for (uint32_t i = 0; i < c->arch.head_dim / 2; i++)
		c->rope[i] /= factor;
	return 0;
}

/* Which of two words it is: 1 or 2, 0 when the key is missing. */
static int get_word(const struct parse *p, const json_t *in, const char *key, const char *first,
		    const char *second, int *which)
{
	const json_t *v = json_object_get(in, key);
	const char *word = json_string_value(v);
	char buf[48];

	*which = 0;
	if (is_absent(v))
		return 0;
	if (word && (!strcmp(word, first) || !strcmp(word, second))) {
		*which = strcmp(word, first) ? 2 : 1;
		return 0;
	}
	return fail(p->why, p->why_len, word ? -ENOTSUP : -EPROTO,
		    "%s: %s of quantization_config is '%s'; known are %s and %s", p->name, key,
		    word ? shown(word, buf) : type_name(v), first, second);
}

static int get_quantisation(const struct parse *p, struct hf_config *c)
{
	const json_t *in = json_object_get(p->root, "quantization_config");
	const char *method = json_string_value(json_object_get(in, "quant_method"));
	int linear, mode, err;
	char buf[48];

	if (is_absent(in))
		return 0;
	if (!json_is_object(in) || !method)
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: quantization_config is no object with a quant_method", p->name);
	if (strcmp(method, "bitnet"))
		return fail(p->why, p->why_len, -ENOTSUP,
			    "%s: quant_method is '%s', which is not ternary; bitnet is served",
			    p->name, shown(method, buf));
	if ((err = get_word(p, in, "linear_class", "autobitlinear", "bitlinear", &linear)) ||
	    (err = get_word(p, in, "quantization_mode", "offline", "online", &mode)) ||
	    (err = refuse_flag(p, in, "use_rms_norm", "a norm before each linear layer is")))
		return err;
	c->linear = linear == 1 ? HF_LINEAR_AUTO : linear == 2 ? HF_LINEAR_BIT : HF_LINEAR_UNNAMED;
	/* Offline is what transformers takes for granted. */
	c->mode = mode == 2 ? HF_MODE_ONLINE : HF_MODE_OFFLINE;
	return 0;
}

static int get_tied(const struct parse *p, struct hf_config *c)
{
	const json_t *v = json_object_get(p->root, "tie_word_embeddings");

	if (!is_absent(v) && !json_is_boolean(v))
		return fail(p->why, p->why_len, -EPROTO,
			    "%s: tie_word_embeddings is %s; it must be true or false", p->name,
			    type_name(v));
	c->says_tied = !is_absent(v);
	c->is_tied = json_is_true(v);
	return 0;
}

/* What a model of these architectures may ask for besides, and would be served wrong without. */
static int refuse_others(const struct parse *p)
{
	static const struct {
		const char *key;
		int is;
	} bits[] = { { "input_bits", 8 }, { "weight_bits", 1 } };
	const json_t *v;
	int err;

	if ((err = refuse_flag(p, p->root, "attention_bias", "biases are")) ||
	    (err = refuse_flag(p, p->root, "mlp_bias", "biases are")) ||
	    (err = refuse_flag(p, p->root, "use_bias", "biases are")) ||
	    (err = refuse_flag(p, p->root, "use_qk_norm", "norms of q and k are")))
		return err;
	for (size_t i = 0; i < sizeof(bits) / sizeof(*bits); i++) {
		v = json_object_get(p->root, bits[i].key);
		if (!is_absent(v) && (!json_is_integer(v) || json_integer_value(v) != bits[i].is))
			return fail(p->why, p->why_len, -ENOTSUP,
				    "%s: %s is not %d; weights are ternary (which it calls 1) and "
				    "activations int8",
				    p->name, bits[i].key, bits[i].is);
	}
	v = json_object_get(p->root, "sliding_window");
	if (!is_absent(v) && !json_is_false(json_object_get(p->root, "use_sliding_window")))
		return fail(p->why, p->why_len, -ENOTSUP,
			    "%s: sliding_window is set; attention over a window is not served",
			    p->name);
	return 0;
}

/* The last part of the path from which the model was once loaded. */
static void get_name(const struct parse *p, struct hf_config *c)
{
	const char *path = json_string_value(json_object_get(p->root, "_name_or_path"));
	const char *slash = path ? strrchr(path, '/') : NULL;
	const char *name = slash ? slash + 1 : path ? path : "";

	if (strlen(name) < sizeof(c->arch.name) && name[0] != '.' &&
	    strspn(name, "abcdefghijklmnopqrstuvwxyz"
			 "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+ ") == strlen(name))
		strcpy(c->arch.name, name);
}

int hf_config_parse(const void *data, size_t len, const char *name, struct hf_config *c, char *why,
		    size_t why_len)
{
	struct parse p = { .name = name, .why = why, .why_len = why_len };
	json_error_t at;
	json_t *root;
	int err;

	memset(c, 0, sizeof(*c));
	if (len > HF_CONFIG_MAX)
		return fail(why, why_len, -EFBIG, "%s has %zu bytes; allowed are %u", name, len,
			    HF_CONFIG_MAX);
	root = json_loadb(data, len, JSON_REJECT_DUPLICATES, &at);
	if (!root)
		return fail(why, why_len, -EPROTO,
			    "%s: it is no JSON at line %d, or names a key twice", name, at.line);
	p.root = root;
	if (!json_is_object(root))
		err = fail(why, why_len, -EPROTO, "%s: it is %s; it must be an object", name,
			   type_name(root));
	else if (!(err = get_family(&p, c)) && !(err = get_activation(&p, c)) &&
		 !(err = get_sizes(&p, c)) && !(err = get_rope(&p, c)) &&
		 !(err = get_quantisation(&p, c)) && !(err = get_tied(&p, c)) &&
		 !(err = refuse_others(&p)))
		get_name(&p, c);
	json_decref(root);
	return err;
}

/* ---- README.md ------------------------------------------------------------------------------ */

/* The value behind "key:" in a line, without quotes; false when it is another line. */
static bool line_value(const char *line, size_t n, const char *key, char *out, size_t out_len)
{
	size_t k = strlen(key), used = 0;

	if (n < k || memcmp(line, key, k))
		return false;
	for (size_t i = k; i < n && used + 1 < out_len; i++) {
		char c = line[i];

		if (c == '"' || c == '\'' || (c == ' ' && !used))
			continue;
		out[used++] = c >= 0x20 && c < 0x7f ? c : '?';
	}
	while (used && (out[used - 1] == ' ' || out[used - 1] == '?'))
		used--;
	out[used] = 0;
	return true;
}

void hf_readme_licence(const void *data, size_t len, char *licence, size_t licence_len)
{
	const char *at = data, *end = at + len;
	char value[64], name[64] = "";
	unsigned lines = 0;
	bool listed = false;

	licence[0] = 0;
	for (const char *next; at < end && lines < 1000; at = next, lines++) {
		const char *stop = memchr(at, '\n', (size_t)(end - at));
		size_t n = (size_t)((stop ? stop : end) - at);

		next = stop ? stop + 1 : end;
		if ((n >= 3 && !memcmp(at, "---", 3)) != !lines) {
			if (lines)
				break;
			return;
		}
		if (line_value(at, n, "license:", value, sizeof(value)) ||
		    (listed && line_value(at, n, "- ", value, sizeof(value)))) {
			snprintf(licence, licence_len, "%s", value);
			listed = !value[0];
			continue;
		}
		listed = false;
		line_value(at, n, "license_name:", name, sizeof(name));
	}
	if (name[0] && !strcmp(licence, "other"))
		snprintf(licence, licence_len, "%s", name);
}

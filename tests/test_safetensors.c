/* SPDX-License-Identifier: MIT */
/*
 * Hugging Face models as a source: if a form were read wrong, a model would be converted that talks
 * nonsense; if a damaged or foreign file were taken, the same, or the tool would crash on a
 * download.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
/* Check's old name of a macro is a function of ours. */
#undef fail
#include "hf_config.h"
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_safetensors.h"
#include "safetensors.h"
#include "source.h"

static char why[1024];
static const struct source_options none;

/* An empty folder of this name below $TMPDIR. */
static const char *folder(const char *name)
{
	static char path[512];
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof(path), "%s/%s", getenv("TMPDIR"), name);
	ck_assert(!mkdir(path, 0755) || errno == EEXIST);
	d = opendir(path);
	ck_assert_ptr_nonnull(d);
	while ((e = readdir(d)))
		if (e->d_name[0] != '.')
			ck_assert_int_eq(unlinkat(dirfd(d), e->d_name, 0), 0);
	closedir(d);
	return path;
}

static const char *in(const char *dir, const char *name)
{
	static char path[700];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return path;
}

static int open_at(const char *path, const struct source_options *o, struct source **s)
{
	memset(why, 0, sizeof(why));
	return source_open_safetensors(path, o, s, why, sizeof(why));
}

/* ---- the container --------------------------------------------------------------------------- */

static uint8_t *file_of(const char *header, size_t data, size_t *len)
{
	size_t n = strlen(header);
	uint8_t *file = calloc(1, 8 + n + data + 1);

	ck_assert_ptr_nonnull(file);
	for (int i = 0; i < 8; i++)
		file[i] = (uint8_t)(n >> (8 * i));
	memcpy(file + 8, header, n);
	*len = 8 + n + data;
	return file;
}

#define ONE(dtype, shape, offsets) \
	"{\"t\":{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}}"

static const struct {
	const char *header;
	size_t data;
	int err;
	const char *why;
} containers[] = {
	{ "[1]", 0, -EPROTO, "f: there is no JSON object where the header belongs" },
	{ " {}", 0, -EPROTO, "f: there is no JSON object where the header belongs" },
	{ "{\"t\":}", 0, -EPROTO, "f: the header is no JSON at byte 14, or names a key twice" },
	{ "{\"t\":{},\"t\":{}}", 0, -EPROTO,
	  "f: the header is no JSON at byte 19, or names a key twice" },
	{ "{\"t\":5}", 0, -EPROTO, "f: t has no dtype that is a short word" },
	{ ONE("7", "[1]", "[0,1]"), 1, -EPROTO, "f: t has no dtype that is a short word" },
	{ ONE("\"A B\"", "[1]", "[0,1]"), 1, -EPROTO, "f: t has no dtype that is a short word" },
	{ ONE("\"U8\"", "1", "[0,1]"), 1, -EPROTO, "f: t has no shape that is a list" },
	{ ONE("\"U8\"", "[-1]", "[0,1]"), 1, -EPROTO,
	  "f: dimension 0 of t is no whole number from 0 up" },
	{ ONE("\"U8\"", "[1,1.5]", "[0,1]"), 1, -EPROTO,
	  "f: dimension 1 of t is no whole number from 0 up" },
	{ ONE("\"U8\"", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, -EFBIG,
	  "f: t has 9 dimensions; allowed are 8" },
	{ ONE("\"U8\"", "[4294967296,4294967296]", "[0,1]"), 1, -EPROTO,
	  "f: the shape of t overflows 64 bits" },
	{ ONE("\"F32\"", "[4611686018427387904]", "[0,0]"), 0, -EPROTO,
	  "f: t has 0 bytes, but its shape needs 4611686018427387904 elements of 4 bytes (F32)" },
	{ ONE("\"U8\"", "[2]", "[0,1]"), 1, -EPROTO,
	  "f: t has 1 bytes, but its shape needs 2 elements of 1 bytes (U8)" },
	{ ONE("\"I64\"", "[1]", "[0,4]"), 4, -EPROTO,
	  "f: t has 4 bytes, but its shape needs 1 elements of 8 bytes (I64)" },
	{ ONE("\"U8\"", "[1]", "[0]"), 1, -EPROTO,
	  "f: data_offsets of t are not two whole numbers from 0 up" },
	{ ONE("\"U8\"", "[1]", "[-1,0]"), 1, -EPROTO,
	  "f: data_offsets of t are not two whole numbers from 0 up" },
	{ ONE("\"U8\"", "[1]", "[0,1,2]"), 1, -EPROTO,
	  "f: data_offsets of t are not two whole numbers from 0 up" },
	{ ONE("\"U8\"", "[1]", "[1,0]"), 1, -EPROTO,
	  "f: data of t begin at 1 and end before, at 0" },
	{ ONE("\"U8\"", "[9]", "[0,9]"), 8, -EPROTO,
	  "f: data of t end at 9, the file's at 8: it is cut "
	  "off or damaged; download it again" },
	{ ONE("\"U8\"", "[1]", "[0,1]"), 3, -EPROTO, "f: 2 bytes at the end belong to no tensor" },
	{ ONE("\"U8\"", "[1]", "[1,2]"), 2, -EPROTO,
	  "f: 1 bytes before the data of t belong to no tensor" },
	{ "{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
	  "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
	  3, -EPROTO, "f: data of a and b overlap" },
	{ "{\"a b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, -EPROTO,
	  "f: the name of tensor 0 is longer than 256 bytes or not printable ASCII without "
	  "blanks" },
	{ "{\"\\u001b[2J\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]}}", 0, -EPROTO,
	  "f: the name of tensor 0 is longer than 256 bytes or not printable ASCII without "
	  "blanks" },
};

/* A header that is wrong in one thing is refused, by its own sentence. */
START_TEST(container_is_refused)
{
	struct safetensors *s = NULL;
	size_t len;
	uint8_t *f = file_of(containers[_i].header, containers[_i].data, &len);

	ck_assert_int_eq(safetensors_parse(f, len, "f", &s, why, sizeof(why)), containers[_i].err);
	ck_assert_str_eq(why, containers[_i].why);
	ck_assert_ptr_null(s);
	free(f);
}
END_TEST

/* Lengths that lie about the header. */
START_TEST(length_is_refused)
{
	uint8_t f[64] = { 0 };
	static uint8_t huge[SAFETENSORS_HEADER_MAX + 64];
	struct safetensors *s = NULL;

	ck_assert_int_eq(safetensors_parse(f, 7, "f", &s, why, sizeof(why)), -EPROTO);
	ck_assert_str_eq(why, "f: 7 bytes are too few for a safetensors file");
	memset(f, 0xff, 8);
	ck_assert_int_eq(safetensors_parse(f, 64, "f", &s, why, sizeof(why)), -EPROTO);
	ck_assert_str_eq(
		why, "f: a header of 18446744073709551615 bytes does not fit into the file's 64: "
		     "cut off, or no safetensors file");
	memset(f, 0, 8);
	f[0] = 57;
	ck_assert_int_eq(safetensors_parse(f, 64, "f", &s, why, sizeof(why)), -EPROTO);
	ck_assert_int_eq(safetensors_parse(f, 8, "f", &s, why, sizeof(why)), -EPROTO);
	huge[3] = 1;
	huge[2] = (SAFETENSORS_HEADER_MAX >> 16) & 255;
	huge[3] = 0;
	huge[0] = 1;
	ck_assert_int_eq(safetensors_parse(huge, sizeof(huge), "f", &s, why, sizeof(why)), -EFBIG);
	ck_assert_str_eq(why, "f: a header of 8388609 bytes; allowed are 8388608");
}
END_TEST

/* What is right is found by name, also types that no reader takes, empty arrays and scalars. */
START_TEST(container_is_read)
{
	const char *header =
		"{\"__metadata__\":{\"format\":\"pt\"},"
		"\"z\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
		"\"b\":{\"dtype\":\"F8_E4M3\",\"shape\":[5],\"data_offsets\":[12,17]},"
		"\"e\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[17,17]},"
		"\"a\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[17,19]}}   ";
	struct safetensors *s = NULL;
	size_t len;
	uint8_t *f = file_of(header, 19, &len);
	const struct safetensors_tensor *t;

	ck_assert_int_eq(safetensors_parse(f, len, "f", &s, why, sizeof(why)), 0);
	ck_assert_uint_eq(s->n_tensors, 4);
	t = safetensors_find(s, "z");
	ck_assert(t && t->type == SAFETENSORS_F16 && t->n_dims == 2 && t->shape[1] == 3);
	ck_assert_ptr_eq(safetensors_data(s, t), f + 8 + strlen(header));
	t = safetensors_find(s, "a");
	ck_assert(t && t->type == SAFETENSORS_BF16 && !t->n_dims && t->bytes == 2);
	ck_assert_ptr_eq(safetensors_data(s, t), f + len - 2);
	t = safetensors_find(s, "b");
	ck_assert(t && t->type == SAFETENSORS_OTHER && !strcmp(t->dtype, "F8_E4M3"));
	ck_assert_ptr_nonnull(safetensors_find(s, "e"));
	ck_assert_ptr_null(safetensors_find(s, "__metadata__"));
	safetensors_close(s);
	free(f);
}
END_TEST

/* ---- config.json ----------------------------------------------------------------------------- */

#define SIZES \
	"\"hidden_act\":\"silu\",\"num_hidden_layers\":2,\"hidden_size\":64,\"intermediate_" \
	"size\":96," \
	"\"num_attention_heads\":4,\"vocab_size\":300,\"max_position_embeddings\":128,\"rms_norm_" \
	"eps\":1e-5"
#define LLAMA "{\"architectures\":[\"LlamaForCausalLM\"]," SIZES
#define BITNET "{\"architectures\":[\"BitNetForCausalLM\"]," SIZES
#define ROPE3 \
	"\"factor\":8,\"low_freq_factor\":1,\"high_freq_factor\":4,\"original_max_position_" \
	"embeddings\":64"

static const struct {
	const char *text;
	int err;
	const char *why;
} configs[] = {
	{ "{", -EPROTO, "c: it is no JSON at line 1, or names a key twice" },
	{ "{\"a\":1,\n\"a\":2}", -EPROTO, "c: it is no JSON at line 2, or names a key twice" },
	{ "[]", -EPROTO, "c: it is a list; it must be an object" },
	{ "{}", -EPROTO,
	  "c: there is neither architectures nor model_type, so it describes no model" },
	{ "{\"architectures\":\"x\"}", -EPROTO, "c: architectures is not a list of one name" },
	{ "{\"architectures\":[\"x\",\"y\"]}", -EPROTO,
	  "c: architectures is not a list of one name" },
	{ "{\"architectures\":[\"Qwen\\u001b\"]}", -ENOTSUP,
	  "c: the architecture 'Qwen?' is not served; "
	  "BitNetForCausalLM, BitnetForCausalLM and LlamaForCausalLM are" },
	{ "{\"model_type\":\"mistral\"}", -ENOTSUP,
	  "c: the architecture 'mistral' is not served; "
	  "BitNetForCausalLM, BitnetForCausalLM and LlamaForCausalLM are" },
	{ "{\"model_type\":\"llama\"}", -EPROTO, "c: hidden_act is missing; it must be a text" },
	{ "{\"model_type\":\"llama\",\"hidden_act\":\"gelu\"}", -ENOTSUP,
	  "c: hidden_act is 'gelu', which is not served; relu2 and silu are" },
	{ "{\"model_type\":\"llama\",\"hidden_act\":\"silu\"}", -EPROTO,
	  "c: num_hidden_layers is missing; it must be a whole number from 1 to 512" },
	{ "{\"model_type\":\"llama\",\"hidden_act\":\"silu\",\"num_hidden_layers\":\"2\"}", -EPROTO,
	  "c: num_hidden_layers is a text; it must be a whole number from 1 to 512" },
	{ "{\"model_type\":\"llama\",\"hidden_act\":\"silu\",\"num_hidden_layers\":2.0}", -EPROTO,
	  "c: num_hidden_layers is a fraction; it must be a whole number from 1 to 512" },
	{ "{\"model_type\":\"llama\",\"hidden_act\":\"silu\",\"num_hidden_layers\":-2}", -EPROTO,
	  "c: num_hidden_layers is -2; allowed are 1 to 512" },
	{ "{\"model_type\":\"llama\",\"hidden_act\":\"silu\",\"num_hidden_layers\":0}", -EPROTO,
	  "c: num_hidden_layers is 0; allowed are 1 to 512" },
	{ "{\"model_type\":\"llama\",\"hidden_act\":\"silu\",\"num_hidden_layers\":4294967298}",
	  -EFBIG, "c: num_hidden_layers is 4294967298; allowed are 1 to 512" },
	{ LLAMA ",\"num_key_value_heads\":3}", -EPROTO,
	  "c: num_attention_heads is 4, no multiple of num_key_value_heads, 3" },
	{ LLAMA ",\"num_key_value_heads\":0}", -EPROTO,
	  "c: num_key_value_heads is 0; allowed are 1 to 512" },
	{ LLAMA ",\"head_dim\":15}", -EPROTO, "c: head_dim is 15; it must be even" },
	{ LLAMA ",\"head_dim\":514}", -EFBIG, "c: head_dim is 514; allowed are 1 to 512" },
	{ LLAMA ",\"attention_bias\":true}", -ENOTSUP,
	  "c: attention_bias is true, and biases are not served" },
	{ LLAMA ",\"mlp_bias\":true}", -ENOTSUP, "c: mlp_bias is true, and biases are not served" },
	{ LLAMA ",\"mlp_bias\":1}", -EPROTO, "c: mlp_bias is a number; it must be true or false" },
	{ LLAMA ",\"tie_word_embeddings\":1}", -EPROTO,
	  "c: tie_word_embeddings is a number; it must be true or false" },
	{ LLAMA ",\"rope_theta\":1}", -EPROTO,
	  "c: rope_theta is 1; it must be above 1 and up to 1e+12" },
	{ LLAMA ",\"rope_theta\":\"10000\"}", -EPROTO,
	  "c: rope_theta is a text; it must be a number above 1 and up to 1e+12" },
	{ LLAMA ",\"rope_scaling\":3}", -EPROTO,
	  "c: rope_scaling is a number; it must be an object or null" },
	{ LLAMA ",\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2}}", -ENOTSUP,
	  "c: rope_type is 'yarn', which is not served; default, linear and llama3 are" },
	{ LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", -EPROTO,
	  "c: factor is missing; it must be a number above 0 and up to 1e+06" },
	{ LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}}", -EPROTO,
	  "c: factor of rope_scaling is 0.5; it is 1 or more" },
	{ LLAMA ",\"rope_scaling\":{\"factor\":2}}", -EPROTO,
	  "c: rope_type is missing; it must be a text" },
	{ LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2}}", -EPROTO,
	  "c: low_freq_factor is missing; it must be a number above 0 and up to 1e+06" },
	{ LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2,\"low_freq_factor\":4,"
		"\"high_freq_factor\":4,\"original_max_position_embeddings\":64}}",
	  -EPROTO, "c: low_freq_factor is 4, not below high_freq_factor, 4" },
	{ LLAMA ",\"rope_theta\":10000,\"rope_parameters\":{\"rope_theta\":500000}}", -EPROTO,
	  "c: rope_theta is 10000, and 500000 in its parameters" },
	{ LLAMA ",\"rope_scaling\":{\"type\":\"default\"},\"rope_parameters\":{\"rope_theta\":5}}",
	  -EPROTO, "c: rope_parameters and rope_scaling say two different things" },
	{ LLAMA ",\"rope_parameters\":{\"partial_rotary_factor\":0.5}}", -ENOTSUP,
	  "c: partial_rotary_factor is not 1; heads that are rotated in part are not served" },
	{ LLAMA ",\"sliding_window\":4096}", -ENOTSUP,
	  "c: sliding_window is set; attention over a window is not served" },
	{ LLAMA ",\"quantization_config\":{\"bits\":4}}", -EPROTO,
	  "c: quantization_config is no object with a quant_method" },
	{ LLAMA ",\"quantization_config\":{\"quant_method\":\"awq\"}}", -ENOTSUP,
	  "c: quant_method is 'awq', which is not ternary; bitnet is served" },
	{ LLAMA
	  ",\"quantization_config\":{\"quant_method\":\"bitnet\",\"linear_class\":\"linear\"}}",
	  -ENOTSUP,
	  "c: linear_class of quantization_config is 'linear'; known are autobitlinear and "
	  "bitlinear" },
	{ LLAMA ",\"quantization_config\":{\"quant_method\":\"bitnet\",\"quantization_mode\":1}}",
	  -EPROTO,
	  "c: quantization_mode of quantization_config is 'a number'; known are offline and "
	  "online" },
	{ LLAMA ",\"quantization_config\":{\"quant_method\":\"bitnet\",\"use_rms_norm\":true}}",
	  -ENOTSUP, "c: use_rms_norm is true, and a norm before each linear layer is not served" },
	{ LLAMA ",\"input_bits\":4}", -ENOTSUP,
	  "c: input_bits is not 8; weights are ternary (which it "
	  "calls 1) and activations int8" },
	{ LLAMA ",\"weight_bits\":2}", -ENOTSUP,
	  "c: weight_bits is not 1; weights are ternary (which it "
	  "calls 1) and activations int8" },
};

/* Each key that is wrong or asks for what is not served is named. */
START_TEST(config_is_refused)
{
	struct hf_config c;
	const char *text = configs[_i].text;

	ck_assert_int_eq(hf_config_parse(text, strlen(text), "c", &c, why, sizeof(why)),
			 configs[_i].err);
	ck_assert_str_eq(why, configs[_i].why);
}
END_TEST

static struct hf_config parsed(const char *text)
{
	struct hf_config c;
	int err = hf_config_parse(text, strlen(text), "c", &c, why, sizeof(why));

	ck_assert_msg(!err, "%s", why);
	return c;
}

/* What is missing is what transformers takes for granted. */
START_TEST(config_is_read)
{
	struct hf_config c = parsed(LLAMA ",\"_name_or_path\":\"/root/models/Tri-1\"}");

	ck_assert(c.arch.layers == 2 && c.arch.hidden == 64 && c.arch.ffn == 96 &&
		  c.arch.heads == 4);
	ck_assert(c.arch.kv_heads == 4 && c.arch.head_dim == 16 && c.arch.vocab == 300);
	ck_assert(c.arch.context == 128 && c.arch.activation == OBM_ACT_SILU &&
		  c.arch.rms_eps == 1e-5f);
	ck_assert(c.rope_theta == 10000 && !c.has_rope && !c.says_tied && !c.is_bitnet);
	ck_assert(c.mode == HF_MODE_PLAIN && c.linear == HF_LINEAR_UNNAMED);
	ck_assert_str_eq(c.arch.name, "Tri-1");
	ck_assert_str_eq(c.arch.family, "llama");

	c = parsed(
		BITNET
		",\"head_dim\":32,\"num_key_value_heads\":2,\"tie_word_embeddings\":true,"
		"\"quantization_config\":{\"quant_method\":\"bitnet\",\"linear_class\":"
		"\"autobitlinear\","
		"\"quantization_mode\":\"online\"},\"rope_scaling\":null,\"sliding_window\":null}");
	ck_assert(c.is_bitnet && c.rope_theta == 500000 && c.arch.head_dim == 32 &&
		  c.arch.kv_heads == 2);
	ck_assert(c.says_tied && c.is_tied && c.mode == HF_MODE_ONLINE &&
		  c.linear == HF_LINEAR_AUTO);

	/* architectures before model_type: the reproductions say llama there */
	c = parsed("{\"architectures\":[\"BitnetForCausalLM\"],\"model_type\":\"llama\",\"input_"
		   "bits\":8,"
		   "\"weight_bits\":1," SIZES "}");
	ck_assert(c.is_bitnet && c.mode == HF_MODE_ONLINE && c.rope_theta == 10000);
	c = parsed(LLAMA ",\"quantization_config\":{\"quant_method\":\"bitnet\"}}");
	ck_assert(c.mode == HF_MODE_OFFLINE && c.linear == HF_LINEAR_UNNAMED);
	c = parsed(LLAMA
		   ",\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":25000.5}}");
	ck_assert(c.rope_theta == 25000.5 && !c.has_rope);
}
END_TEST

/* The two forms of stretched positions, against their definition in libm's terms. */
START_TEST(rope_is_scaled)
{
	struct hf_config c = parsed(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4}}");
	unsigned kept = 0, divided = 0, blended = 0;

	ck_assert(c.has_rope);
	for (int i = 0; i < 8; i++)
		ck_assert_double_eq_tol(c.rope[i], pow(10000, -i / 8.0) / 4, 1e-15);
	c = parsed(LLAMA ",\"rope_scaling\":{\"rope_type\":\"llama3\"," ROPE3 "}}");
	for (int i = 0; i < 8; i++) {
		double f = pow(10000, -i / 8.0), wave = 2 * M_PI / f,
		       smooth = (64 / wave - 1) / (4 - 1);
		double want = f;

		if (wave < 64.0 / 4)
			kept++;
		else if (wave > 64.0)
			want = f / 8, divided++;
		else
			want = (1 - smooth) * f / 8 + smooth * f, blended++;
		ck_assert_double_eq_tol(c.rope[i], want, 1e-15);
	}
	ck_assert(kept && divided && blended);
}
END_TEST

/* The licence is where the model's card says it. */
START_TEST(licence_is_found)
{
	static const char *const cards[][2] = {
		{ "---\nlicense: mit\n---\n# x\n", "mit" },
		{ "---\r\nlicense: \"apache-2.0\"\r\n---\r\n", "apache-2.0" },
		{ "---\ntags:\n- a\nlicense:\n- cc-by-4.0\n---\n", "cc-by-4.0" },
		{ "---\nlicense: other\nlicense_name: my-licence\n---\n", "my-licence" },
		{ "---\ntags: x\n---\nlicense: mit\n", "" },
		{ "license: mit\n", "" },
		{ "", "" },
		{ "---\nlicense: a\033[2Jb", "a?[2Jb" },
	};
	char licence[64];

	for (size_t i = 0; i < sizeof(cards) / sizeof(*cards); i++) {
		hf_readme_licence(cards[i][0], strlen(cards[i][0]), licence, sizeof(licence));
		ck_assert_str_eq(licence, cards[i][1]);
	}
}
END_TEST

/* ---- whole models ---------------------------------------------------------------------------- */

enum { LLAMA_SHAPED = 1, UNTIED = 2, GROUPS = 4, ROW_SCALES = 8, ODD = 16, FULL_SCALES = 32 };

static const struct form {
	const char *what;
	unsigned tiny;
	struct hf_write w;
	const char *stored, *source;
	bool imposed;
} forms[] = {
	{ "packed, autobitlinear",
	  0,
	  { .form = HF_PACKED,
	    .architecture = "BitNetForCausalLM",
	    .model_type = "bitnet",
	    .linear_class = "autobitlinear",
	    .mode = "offline",
	    .scale_dtype = "BF16",
	    .float_dtype = "BF16" },
	  "U8, four codes a byte",
	  "BitNetForCausalLM, packed (autobitlinear)",
	  false },
	{ "packed, bitlinear, without sub-norms, untied",
	  LLAMA_SHAPED | UNTIED,
	  { .form = HF_PACKED,
	    .architecture = "LlamaForCausalLM",
	    .model_type = "llama",
	    .linear_class = "bitlinear",
	    .mode = "offline",
	    .scale_dtype = "F32",
	    .float_dtype = "F16" },
	  "U8, four codes a byte",
	  "LlamaForCausalLM, packed (bitlinear)",
	  false },
	{ "packed, rows not a multiple of 4",
	  ODD,
	  { .form = HF_PACKED,
	    .architecture = "BitNetForCausalLM",
	    .model_type = "bitnet",
	    .linear_class = "autobitlinear",
	    .mode = "offline",
	    .scale_dtype = "F16",
	    .float_dtype = "F32" },
	  "U8, four codes a byte",
	  "BitNetForCausalLM, packed (autobitlinear)",
	  false },
	{ "packed, sharded",
	  UNTIED,
	  { .form = HF_PACKED,
	    .architecture = "BitNetForCausalLM",
	    .model_type = "bitnet",
	    .linear_class = "autobitlinear",
	    .mode = "offline",
	    .scale_dtype = "BF16",
	    .float_dtype = "BF16",
	    .shards = 3 },
	  "U8, four codes a byte",
	  "BitNetForCausalLM, packed (autobitlinear)",
	  false },
	{ "codes in BF16",
	  0,
	  { .form = HF_CODES,
	    .architecture = "BitNetForCausalLM",
	    .model_type = "bitnet",
	    .linear_class = "autobitlinear",
	    .mode = "offline",
	    .weight_dtype = "BF16",
	    .scale_dtype = "F32",
	    .float_dtype = "BF16" },
	  "BF16",
	  "BitNetForCausalLM, codes (autobitlinear)",
	  false },
	{ "codes in I8",
	  ODD,
	  { .form = HF_CODES,
	    .architecture = "BitNetForCausalLM",
	    .model_type = "bitnet",
	    .linear_class = "bitlinear",
	    .mode = "offline",
	    .weight_dtype = "I8",
	    .scale_dtype = "F32",
	    .float_dtype = "BF16" },
	  "I8",
	  "BitNetForCausalLM, codes (bitlinear)",
	  false },
	{ "masters, online",
	  0,
	  { .form = HF_MASTERS,
	    .architecture = "BitNetForCausalLM",
	    .model_type = "bitnet",
	    .linear_class = "autobitlinear",
	    .mode = "online",
	    .weight_dtype = "BF16",
	    .float_dtype = "BF16" },
	  "BF16",
	  "BitNetForCausalLM, master weights",
	  false },
	{ "masters, without quantization_config",
	  ODD,
	  { .form = HF_MASTERS,
	    .architecture = "BitNetForCausalLM",
	    .model_type = "bitnet",
	    .weight_dtype = "F16",
	    .float_dtype = "F16" },
	  "F16",
	  "BitNetForCausalLM, master weights",
	  false },
	{ "masters of a reproduction",
	  ODD,
	  { .form = HF_MASTERS,
	    .architecture = "BitnetForCausalLM",
	    .model_type = "llama",
	    .weight_dtype = "F32",
	    .float_dtype = "F32",
	    .other_names = true,
	    .shards = 2,
	    .extra = ", \"input_bits\": 8, \"weight_bits\": 1, \"pretraining_tp\": 1" },
	  "F32",
	  "BitnetForCausalLM, master weights",
	  false },
	{ "ternary F16",
	  LLAMA_SHAPED | UNTIED | ROW_SCALES,
	  { .form = HF_TERNARY,
	    .architecture = "LlamaForCausalLM",
	    .model_type = "llama",
	    .weight_dtype = "F16",
	    .float_dtype = "F16" },
	  "F16",
	  "LlamaForCausalLM, ternary floats",
	  true },
	{ "ternary F32, odd",
	  LLAMA_SHAPED | ODD | FULL_SCALES,
	  { .form = HF_TERNARY,
	    .architecture = "LlamaForCausalLM",
	    .model_type = "llama",
	    .weight_dtype = "F32",
	    .float_dtype = "F32" },
	  "F32",
	  "LlamaForCausalLM, ternary floats",
	  true },
	{ "ternary BF16 in groups",
	  LLAMA_SHAPED | UNTIED | GROUPS | ROW_SCALES,
	  { .form = HF_TERNARY,
	    .architecture = "LlamaForCausalLM",
	    .model_type = "llama",
	    .weight_dtype = "BF16",
	    .float_dtype = "BF16" },
	  "BF16",
	  "LlamaForCausalLM, ternary floats",
	  true },
};

static void tiny_for(struct tiny *t, unsigned flags)
{
	tiny_default(t, 7 + flags);
	t->sub_norms = !(flags & LLAMA_SHAPED);
	t->tied = !(flags & UNTIED);
	t->row_scales = flags & ROW_SCALES;
	t->half_scales = !(flags & FULL_SCALES);
	if (flags & ODD) {
		/* 30 rows, 98 columns, 101 of the FFN: no multiple of anything */
		t->hidden = 98;
		t->heads = t->kv_heads = 3;
		t->head_dim = 10;
		t->ffn = 101;
	}
	if (flags & GROUPS)
		t->groups = 2; /* of 64 columns in 128; the FFN must be even too */
	if (flags & GROUPS)
		t->ffn = 256;
	tiny_fill(t);
}

static const float *plain_values(const struct tiny *t, uint32_t role, uint32_t layer)
{
	switch (role) {
	case OBM_EMBED:
		return t->embed;
	case OBM_HEAD:
		return t->head;
	case OBM_FINAL_NORM:
		return t->final_norm;
	case OBM_ATTN_NORM:
		return t->layer[layer].attn_norm;
	case OBM_ATTN_SUB_NORM:
		return t->layer[layer].attn_sub_norm;
	case OBM_FFN_NORM:
		return t->layer[layer].ffn_norm;
	default:
		return t->layer[layer].ffn_sub_norm;
	}
}

static void same_floats(struct source *s, const struct source_tensor *t, const float *want)
{
	uint64_t n = (uint64_t)t->rows * t->cols;
	float *all = malloc(n * sizeof(*all)), *some = malloc(n * sizeof(*some));

	ck_assert_int_eq(s->ops->read_floats(s, t, 0, t->rows, all, why, sizeof(why)), 0);
	ck_assert_mem_eq(all, want, n * sizeof(*all));
	for (uint32_t r = 0; r < t->rows; r += 5) {
		uint32_t k = t->rows - r < 5 ? t->rows - r : 5;

		ck_assert_int_eq(s->ops->read_floats(s, t, r, k, some, why, sizeof(why)), 0);
		ck_assert_mem_eq(some, want + (uint64_t)r * t->cols,
				 (uint64_t)k * t->cols * sizeof(*some));
	}
	free(all);
	free(some);
}

static void same_codes(struct source *s, const struct source_tensor *t, const struct hf_write *w,
		       const struct tiny_matrix *m)
{
	int8_t *codes = malloc((size_t)t->rows * t->cols);
	float *scales = malloc((size_t)t->rows * t->groups * sizeof(*scales));

	ck_assert_uint_eq(t->groups, w->form == HF_TERNARY ? m->groups : 1);
	for (uint32_t step = 1; step < 70; step += 17) {
		memset(codes, 99, (size_t)t->rows * t->cols);
		memset(scales, 99, (size_t)t->rows * t->groups * sizeof(*scales));
		for (uint32_t r = 0; r < t->rows; r += step) {
			uint32_t n = t->rows - r < step ? t->rows - r : step;

			ck_assert_int_eq(s->ops->read_codes(
						 s, t, r, n, codes + (size_t)r * t->cols,
						 step == 18 ? NULL : scales + (size_t)r * t->groups,
						 why, sizeof(why)),
					 0);
		}
		ck_assert_mem_eq(codes, m->codes, (size_t)t->rows * t->cols);
		for (uint32_t i = 0; step != 18 && i < t->rows * t->groups; i++) {
			float want = m->scales[i];

			if (w->form != HF_TERNARY && w->linear_class &&
			    !strcmp(w->linear_class, "bitlinear"))
				want = 1.0f / hf_weight_scale(w, m);
			ck_assert_msg(scales[i] == want, "%s: %g is not %g", t->stored,
				      (double)scales[i], (double)want);
		}
	}
	free(codes);
	free(scales);
}

static float *masters(const struct tiny_matrix *m)
{
	float *f = malloc((size_t)m->rows * m->cols * sizeof(*f));

	for (uint32_t r = 0; r < m->rows; r++)
		for (uint32_t c = 0; c < m->cols; c++)
			f[(size_t)r * m->cols + c] = hf_master(m, r, c);
	return f;
}

/* Each form comes back to the last bit, in any pieces, and says what it is. */
START_TEST(forms_are_read)
{
	const struct form *f = &forms[_i];
	const char *dir = folder("model");
	struct source *s = NULL;
	struct tiny t;
	int err;

	tiny_for(&t, f->tiny);
	hf_write(&t, &f->w, dir);
	err = open_at(dir, &none, &s);
	ck_assert_msg(!err, "%s: %s", f->what, why);
	ck_assert_msg(!source_check(s, why, sizeof(why)), "%s: %s", f->what, why);
	ck_assert_uint_eq(s->arch.ffn, t.ffn);
	ck_assert_uint_eq(s->arch.head_dim, t.head_dim);
	ck_assert(s->arch.rms_eps == t.eps && s->rope_theta == (double)t.theta && !s->rope);
	ck_assert_int_eq(s->qk, SOURCE_QK_SPLIT);
	ck_assert_int_eq(!!(s->arch.flags & OBM_FLAG_A8_IMPOSED), f->imposed);
	ck_assert_int_eq(!!strstr(s->info, "served with int8 activations"), f->imposed);
	ck_assert_msg(strstr(s->info, f->source), "%s", s->info);
	ck_assert_str_eq(s->arch.name, "model");
	ck_assert_uint_eq(s->n_tensors, 2 + !t.tied + t.layers * (9 + 2 * t.sub_norms));
	ck_assert(!s->vocab && *s->no_vocab);
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct source_tensor *st = &s->tensors[i];

		if (st->role < OBM_Q) {
			ck_assert_str_eq(st->stored, f->w.float_dtype);
			same_floats(s, st, plain_values(&t, st->role, st->layer));
		} else {
			const struct tiny_matrix *m = &t.layer[st->layer].m[st->role - OBM_Q];

			ck_assert_str_eq(st->stored, f->stored);
			if (f->w.form == HF_MASTERS) {
				float *want = masters(m);

				ck_assert_int_eq(st->form, SOURCE_MASTER);
				same_floats(s, st, want);
				free(want);
			} else {
				ck_assert_int_eq(st->form, SOURCE_TERNARY);
				same_codes(s, st, &f->w, m);
			}
		}
		s->ops->done(s, st);
	}
	source_close(s);
	tiny_free(&t);
}
END_TEST

/* ---- refusals of whole models ---------------------------------------------------------------- */

static const char *target; /* the entry that change_*() means */

static void rename_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		strcat(e->name, ".bias");
}

static void unknown_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		strcpy(e->name, "model.layers.0.self_attn.q_norm.weight");
}

static void drop_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		e->name[0] = 0;
}

static void retype_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		strcpy(e->dtype, e->dtype[0] == 'U' ? "BOOL" : "I16");
}

static void reshape_it(struct hf_entry *e)
{
	if (strcmp(e->name, target))
		return;
	e->shape[0] *= 2;
	e->shape[1] /= 2;
}

static void layer_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		strcpy(e->name, "model.layers.2.input_layernorm.weight");
}

static void three_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		e->data[5 * e->shape[1] + 7] |= 3 << 2;
}

static void nan_it(struct hf_entry *e)
{
	uint32_t at = !strcmp(e->dtype, "F32") ? 4 : 2;

	if (!strcmp(e->name, target))
		memset(e->data + e->bytes - at, 0xff, at);
}

static void two_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		e->data[e->bytes - 1] = 0x40; /* 2 and something in BF16 */
}

static void zero_it(struct hf_entry *e)
{
	if (!strcmp(e->name, target))
		memset(e->data, 0, e->bytes);
}

static void widen_it(struct hf_entry *e)
{
	if (strcmp(e->name, target))
		return;
	e->data = realloc(e->data, 2 * e->bytes);
	memset(e->data + e->bytes, 1, e->bytes);
	e->bytes *= 2;
	e->shape[0] *= 2;
}

/* The last value of a small model, of which all is read when it is opened. */
static void spoil_it(struct hf_entry *e)
{
	uint16_t half = 0x3c01;

	if (!strcmp(e->name, target))
		memcpy(e->data + e->bytes - 2, &half, 2);
}

#define Q0 "model.layers.0.self_attn.q_proj.weight"

static const struct {
	int form; /* of forms[] */
	void (*change)(struct hf_entry *e);
	const char *target;
	int err;
	const char *why;
} changes[] = {
	{ 0, rename_it, "model.norm.weight", -ENOENT, "model.norm.weight is missing" },
	{ 0, drop_it, Q0, -ENOENT, Q0 " is missing" },
	{ 0, drop_it, "model.layers.1.mlp.down_proj.weight", -ENOENT,
	  "model.layers.1.mlp.down_proj.weight is missing" },
	{ 1, drop_it, "lm_head.weight", -ENOENT,
	  "lm_head.weight is missing, and tie_word_embeddings is false" },
	{ 0, drop_it, Q0 "_scale", -ENOENT, Q0 " is stored as U8, and " Q0 "_scale is missing" },
	{ 4, drop_it, Q0 "_scale", -ENOENT,
	  Q0 " is stored as BF16, and " Q0 "_scale is missing, which "
	     "config.json's quantization_mode offline wants" },
	{ 0, rename_it, "model.layers.0.self_attn.attn_sub_norm.weight", -ENOTSUP,
	  "model.layers.0.self_attn.attn_sub_norm.weight.bias is a bias, and biases are not "
	  "served" },
	{ 0, unknown_it, "model.layers.0.self_attn.attn_sub_norm.weight", -ENOTSUP,
	  "model.layers.0.self_attn.q_norm.weight is no tensor of a BitNetForCausalLM that is "
	  "served; "
	  "without it the model would be another" },
	{ 0, layer_it, "model.layers.1.self_attn.attn_sub_norm.weight", -EPROTO,
	  "model.layers.2.input_layernorm.weight is there, but num_hidden_layers is 2" },
	{ 0, retype_it, Q0, -ENOTSUP,
	  Q0 " is stored as BOOL, which is not read here; U8, I8, BF16, F16 and F32 are" },
	{ 0, retype_it, Q0 "_scale", -ENOTSUP,
	  Q0 "_scale is stored as I16; it must be BF16, F16 or F32" },
	{ 0, retype_it, "model.norm.weight", -ENOTSUP,
	  "model.norm.weight is stored as I16, which is not read here; BF16, F16 and F32 are" },
	{ 9, retype_it, "model.layers.0.mlp.up_proj.weight", -ENOTSUP,
	  "model.layers.0.mlp.up_proj.weight is "
	  "stored as I16, which is not read here; U8, I8, BF16, F16 and F32 are" },
	{ 0, reshape_it, Q0, -EPROTO,
	  Q0 " has the shape [64, 64]; by config.json it must be [32, 128], four "
	     "rows in one" },
	{ 9, reshape_it, Q0, -EPROTO,
	  Q0 " has the shape [256, 64]; by config.json it must be [128, 128]" },
	{ 0, reshape_it, "model.embed_tokens.weight", -EPROTO,
	  "model.embed_tokens.weight has the shape "
	  "[640, 64]; by config.json it must be [320, 128]" },
	{ 0, widen_it, "model.norm.weight", -EPROTO,
	  "model.norm.weight has the shape [256]; by config.json it must be [128]" },
	{ 0, widen_it, Q0 "_scale", -ENOTSUP,
	  Q0 "_scale has 2 values; one for the matrix is served" },
	{ 0, zero_it, Q0 "_scale", -EPROTO, Q0 "_scale is 0; a scale is above 0 and finite" },
	{ 1, zero_it, Q0 "_scale", -EPROTO, Q0 "_scale is 0; a scale is above 0 and finite" },
	{ 0, nan_it, Q0 "_scale", -EPROTO, Q0 "_scale is -nan; a scale is above 0 and finite" },
	{ 9, spoil_it, Q0, -ENOTSUP, NULL },
	{ 9, nan_it, Q0, -EPROTO,
	  Q0 ": row 127, column 127 is infinite or no number; the file is damaged" },
};

/* A tensor that is wrong in one thing is refused by its name. */
START_TEST(model_is_refused)
{
	struct hf_write w = forms[changes[_i].form].w;
	const char *dir = folder("m");
	struct source *s = NULL;
	struct tiny t;

	tiny_for(&t, forms[changes[_i].form].tiny);
	target = changes[_i].target;
	w.change = changes[_i].change;
	hf_write(&t, &w, dir);
	ck_assert_int_eq(open_at(dir, &none, &s), changes[_i].err);
	if (changes[_i].why)
		ck_assert_str_eq(why, changes[_i].why);
	else
		ck_assert_msg(!strncmp(why, Q0, sizeof(Q0) - 1), "%s", why);
	ck_assert_ptr_null(s);
	tiny_free(&t);
}
END_TEST

/* What only reading all can show is refused then, with its place. */
START_TEST(values_are_refused)
{
	static const struct {
		int form;
		void (*change)(struct hf_entry *e);
		const char *why;
	} bad[] = {
		{ 0, three_it,
		  Q0
		  ": row 37, column 7 has code 3, which stands for nothing; the file is damaged" },
		{ 4, two_it, NULL },
		{ 6, nan_it,
		  Q0 ": row 127, column 127 is infinite or no number; the file is damaged" },
	};
	struct tiny t;

	target = Q0;
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		struct hf_write w = forms[bad[i].form].w;
		const struct source_tensor *q;
		struct source *s = NULL;
		static int8_t codes[128 * 128];
		static float floats[128 * 128];
		const char *dir = folder("m");
		int err;

		tiny_for(&t, forms[bad[i].form].tiny);
		w.change = bad[i].change;
		hf_write(&t, &w, dir);
		ck_assert_msg(!open_at(dir, &none, &s), "%s", why);
		q = source_find(s, OBM_Q, 0);
		err = q->form == SOURCE_MASTER ?
			      s->ops->read_floats(s, q, 0, q->rows, floats, why, sizeof(why)) :
			      s->ops->read_codes(s, q, 0, q->rows, codes, NULL, why, sizeof(why));
		ck_assert_int_eq(err, -EPROTO);
		if (bad[i].why)
			ck_assert_str_eq(why, bad[i].why);
		else
			ck_assert_msg(
				strstr(why,
				       "with a weight_scale beside it, only -1, 0 and 1 can be"),
				"%s", why);
		/* the rows before it are good */
		err = q->form == SOURCE_MASTER
			      ? s->ops->read_floats(s, q, 0, 37, floats, why, sizeof(why))
			      : s->ops->read_codes(s, q, 0, 37, codes, NULL, why, sizeof(why));
		ck_assert_int_eq(err, 0);
		source_close(s);
		tiny_free(&t);
	}
}
END_TEST

static struct tiny *growing;

/* Seventy megabytes of embedding, so that not all of the model is read when it is opened. */
static void grow(struct hf_entry *e)
{
	uint32_t rows = 140000;

	spoil_it(e);
	if (strcmp(e->name, "model.embed_tokens.weight"))
		return;
	free(e->data);
	e->shape[0] = growing->vocab = rows;
	e->bytes = (uint64_t)rows * e->shape[1] * 4;
	e->data = calloc(1, e->bytes);
	strcpy(e->dtype, "F32");
}

/*
 * A large model is opened by its first rows; a later one that is not as they were is refused when
 * read.
 */
START_TEST(large_model_is_held_to_its_first_rows)
{
	struct hf_write w = forms[9].w;
	const struct source_tensor *q, *k;
	const char *dir = folder("m");
	struct source *s = NULL;
	static int8_t codes[128 * 128];
	static float floats[128 * 128], scales[128];
	struct tiny t;

	tiny_for(&t, LLAMA_SHAPED | ROW_SCALES);
	target = Q0;
	growing = &t;
	w.change = grow;
	hf_write(&t, &w, dir);
	ck_assert_msg(!open_at(dir, &none, &s), "%s", why);
	ck_assert_uint_gt(s->file_bytes, 64u << 20);
	q = source_find(s, OBM_Q, 0);
	k = source_find(s, OBM_K, 0);
	ck_assert(q->form == SOURCE_TERNARY && q->groups == 1);
	ck_assert_int_eq(s->ops->read_codes(s, k, 0, k->rows, codes, scales, why, sizeof(why)), 0);
	ck_assert_mem_eq(codes, t.layer[0].m[TINY_K].codes, (size_t)k->rows * k->cols);
	ck_assert_int_eq(s->ops->read_codes(s, q, 0, 127, codes, scales, why, sizeof(why)), 0);
	ck_assert_int_eq(s->ops->read_codes(s, q, 96, 32, codes, scales, why, sizeof(why)),
			 -EPROTO);
	ck_assert_msg(
		!strncmp(why, Q0 ": row 127, column 127 holds 1.0009", sizeof(Q0) + 32) &&
			strstr(why, "no longer ternary with 1 scale a row, as rows before it were"),
		"%s", why);

	/* Parts of it are given back as they are read; what is read again is the same. */
	q = source_find(s, OBM_EMBED, OBM_NO_LAYER);
	for (uint32_t pass = 0; pass < 2; pass++)
		for (uint32_t r = 0; r < q->rows; r += 112) {
			ck_assert_int_eq(
				s->ops->read_floats(s, q, r, 112, floats, why, sizeof(why)), 0);
			ck_assert(floats[0] == 0 && floats[112 * 128 - 1] == 0);
		}
	source_close(s);
	t.vocab = 320;
	tiny_free(&t);
}
END_TEST

/*
 * Neither linear_class nor a person says what weight_scale means: refused. Two that differ:
 * refused.
 */
START_TEST(linear_class_is_settled)
{
	struct hf_write w = forms[1].w;
	struct source_options o = { .linear = "bitlinear" };
	const char *dir = folder("m");
	struct source *s = NULL;
	struct tiny t;

	tiny_for(&t, forms[1].tiny);
	w.linear_class = NULL;
	hf_write(&t, &w, dir);
	ck_assert_int_eq(open_at(dir, &none, &s), -ENOTSUP);
	ck_assert_msg(strstr(why, "config.json has no linear_class") &&
			      strstr(why, "--linear bitlinear"),
		      "%s", why);
	ck_assert_msg(!open_at(dir, &o, &s), "%s", why);
	s = source_close(s);
	o.linear = "linear";
	ck_assert_int_eq(open_at(dir, &o, &s), -EINVAL);
	ck_assert_str_eq(why, "--linear 'linear' is not known; autobitlinear and bitlinear are");

	w.linear_class = "bitlinear";
	hf_write(&t, &w, dir);
	o.linear = "autobitlinear";
	ck_assert_int_eq(open_at(dir, &o, &s), -EINVAL);
	ck_assert_str_eq(why, "config.json's linear_class is bitlinear; leave --linear away");
	w.mode = "online";
	hf_write(&t, &w, dir);
	ck_assert_int_eq(open_at(dir, &none, &s), -EPROTO);
	ck_assert_msg(strstr(why,
			     "is ternary already, but by config.json weights are made so online"),
		      "%s", why);
	tiny_free(&t);
}
END_TEST

/* ---- files ----------------------------------------------------------------------------------- */

static void remove_in(const char *dir, const char *name)
{
	ck_assert_int_eq(unlink(in(dir, name)), 0);
}

/* Folder, file, shard, index: each leads to the model; what is missing is named. */
START_TEST(files_belong_together)
{
	struct hf_write w = forms[3].w;
	const char *dir = folder("m");
	struct source_options o = { 0 };
	struct source *s = NULL;
	struct tiny t;

	tiny_for(&t, forms[3].tiny);
	hf_write(&t, &w, dir);
	ck_assert_msg(!open_at(in(dir, "model-00002-of-00003.safetensors"), &o, &s), "%s", why);
	s = source_close(s);
	ck_assert_msg(!open_at(in(dir, "model.safetensors.index.json"), &o, &s), "%s", why);
	s = source_close(s);

	/* a tensor that is elsewhere than the index says */
	hf_write_text(
		dir, "model.safetensors.index.json",
		"{\"weight_map\":{\"model.norm.weight\":\"model-00001-of-00003.safetensors\"}}");
	ck_assert_int_eq(open_at(dir, &o, &s), -EPROTO);
	ck_assert_str_eq(why, "model.norm.weight is not in model-00001-of-00003.safetensors, where "
			      "model.safetensors.index.json puts it");
	for (int i = 0; i < 5; i++) {
		static const char *const names[] = { "../x.safetensors", "a/b.safetensors",
						     ".safetensors", "a\\\\b.safetensors",
						     "x.bin" };
		char text[200];

		snprintf(text, sizeof(text), "{\"weight_map\":{\"a\":\"%s\"}}", names[i]);
		hf_write_text(dir, "model.safetensors.index.json", text);
		ck_assert_int_eq(open_at(dir, &o, &s), -EPROTO);
		ck_assert_str_eq(
			why,
			"model.safetensors.index.json: a value of weight_map is no plain name of "
			"a .safetensors file");
	}
	hf_write_text(dir, "model.safetensors.index.json", "{\"weight_map\":{}}");
	ck_assert_int_eq(open_at(dir, &o, &s), -EPROTO);
	ck_assert_str_eq(
		why,
		"model.safetensors.index.json: there is no weight_map in it, or it is no JSON");

	hf_write(&t, &w, dir);
	remove_in(dir, "model-00003-of-00003.safetensors");
	ck_assert_int_eq(open_at(dir, &o, &s), -ENOENT);
	ck_assert_str_eq(
		why, "shard model-00003-of-00003.safetensors, which model.safetensors.index.json "
		     "names, is missing; download it too");
	remove_in(dir, "model.safetensors.index.json");
	ck_assert_int_eq(open_at(dir, &o, &s), -ENOENT);
	ck_assert_msg(
		strstr(why,
		       "holds 2 .safetensors files, and no model.safetensors.index.json says how "
		       "they belong together; download it too, or name one file"),
		"%s", why);

	/* one file under any name */
	remove_in(dir, "model-00002-of-00003.safetensors");
	remove_in(dir, "model-00001-of-00003.safetensors");
	ck_assert_int_eq(open_at(dir, &o, &s), -ENOENT);
	ck_assert_msg(strstr(why, "holds no .safetensors file"), "%s", why);
	hf_write_text(dir, "pytorch_model.bin", "x");
	ck_assert_int_eq(open_at(dir, &o, &s), -ENOENT);
	ck_assert_msg(strstr(why, "holds pickled weights"), "%s", why);
	w.shards = 0;
	hf_write(&t, &w, dir);
	ck_assert_msg(!open_at(in(dir, "model.safetensors"), &o, &s), "%s", why);
	s = source_close(s);
	remove_in(dir, "config.json");
	ck_assert_int_eq(open_at(dir, &o, &s), -ENOENT);
	ck_assert_msg(strstr(why, "config.json: cannot be opened"), "%s", why);
	tiny_free(&t);
}
END_TEST

/* The same tensor in two shards: no one can say which is meant. */
START_TEST(duplicates_across_shards)
{
	uint8_t data[2] = { 0 };
	struct hf_entry e = {
		.name = "a", .dtype = "U8", .n_dims = 1, .shape = { 2 }, .data = data, .bytes = 2
	};
	const char *dir = folder("m");
	struct source *s = NULL;

	hf_write_file(in(dir, "x.safetensors"), &e, 1);
	hf_write_file(in(dir, "y.safetensors"), &e, 1);
	hf_write_text(dir, "model.safetensors.index.json",
		      "{\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}");
	ck_assert_int_eq(open_at(dir, &none, &s), -EPROTO);
	ck_assert_str_eq(why, "a is in x.safetensors and in y.safetensors");
}
END_TEST

/* Licence, name, and what was left out, are told. */
START_TEST(texts_are_told)
{
	struct hf_write w = hf_packed;
	const char *dir = folder("m");
	struct source *s = NULL;
	struct tiny t;

	tiny_for(&t, 0);
	w.extra = ", \"_name_or_path\": \"microsoft/tiny-b1.58\", \"rope_scaling\": {\"type\": "
		  "\"linear\", "
		  "\"factor\": 2}";
	hf_write(&t, &w, dir);
	hf_write_text(dir, "README.md", "---\nlicense: mit\n---\n");
	hf_write_text(dir, "LICENSE", "MIT License\n");
	ck_assert_msg(!open_at(dir, &none, &s), "%s", why);
	ck_assert_str_eq(s->arch.name, "tiny-b1.58");
	ck_assert_str_eq(s->licence, "MIT License\n");
	ck_assert_msg(strstr(s->info, "\nlicence: mit\n") &&
			      strstr(s->info, "rotary frequencies are scaled"),
		      "%s", s->info);
	ck_assert(s->rope && s->rope[0] == 0.5);
	source_close(s);
	tiny_free(&t);
}
END_TEST

/* A tokenizer that a person names must be there; one that is not in the folder need not. */
START_TEST(tokenizer_is_asked_for)
{
	const char *dir = folder("m");
	struct source_options o = { 0 };
	struct source *s = NULL;
	struct tiny t;

	tiny_for(&t, 0);
	hf_write(&t, &hf_packed, dir);
	ck_assert_msg(!open_at(dir, &o, &s), "%s", why);
	ck_assert(!s->vocab && *s->no_vocab);
	s = source_close(s);
	o.tokenizer = in(dir, "tokenizer.json");
	ck_assert_int_lt(open_at(dir, &o, &s), 0);
	ck_assert_msg(strstr(why, "tokenizer.json"), "%s", why);
	tiny_free(&t);
}
END_TEST

/* A tied model may hold a head besides; it is left out, and that is said. */
START_TEST(tied_head_is_left_out)
{
	struct hf_write w = forms[3].w;
	const char *dir = folder("m");
	struct source *s = NULL;
	struct tiny t;

	tiny_for(&t, forms[3].tiny);
	t.tied = true;
	hf_write(&t, &w, dir);
	ck_assert_msg(!open_at(dir, &none, &s), "%s", why);
	ck_assert_ptr_null(source_find(s, OBM_HEAD, OBM_NO_LAYER));
	ck_assert_msg(strstr(s->info, "lm_head.weight was left out"), "%s", s->info);
	source_close(s);
	tiny_free(&t);
}
END_TEST

/* ---- damage ---------------------------------------------------------------------------------- */

static uint8_t *slurp(const char *path, size_t *len)
{
	FILE *f = fopen(path, "rb");
	uint8_t *data = malloc(1 << 20);

	ck_assert(f && data);
	*len = fread(data, 1, 1 << 20, f);
	ck_assert_uint_lt(*len, 1 << 20);
	fclose(f);
	return data;
}

static void spill(const char *path, const uint8_t *data, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	ck_assert(fd >= 0 && write(fd, data, len) == (ssize_t)len);
	close(fd);
}

/* All of it can be read, or is refused with a sentence; and its shapes are what its numbers say. */
static bool is_sound(const char *dir)
{
	struct source *s = NULL;
	int err = open_at(dir, &none, &s);

	if (err) {
		ck_assert_msg(*why && err < 0, "%d without a sentence", err);
		return false;
	}
	if (source_check(s, why, sizeof(why))) {
		source_close(s);
		return false;
	}
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct source_tensor *t = &s->tensors[i];
		size_t n = (size_t)t->rows * t->cols;
		int8_t *codes = malloc(n);
		float *floats = malloc(n * sizeof(*floats));

		if (t->form == SOURCE_TERNARY) {
			err = s->ops->read_codes(s, t, 0, t->rows, codes, floats, why, sizeof(why));
			for (size_t k = 0; !err && k < n; k++)
				ck_assert(codes[k] >= -1 && codes[k] <= 1);
			for (size_t k = 0; !err && k < (size_t)t->rows * t->groups; k++)
				ck_assert(isfinite(floats[k]) && floats[k] >= 0);
		} else {
			err = s->ops->read_floats(s, t, 0, t->rows, floats, why, sizeof(why));
			for (size_t k = 0; !err && k < n; k++)
				ck_assert(isfinite(floats[k]));
		}
		free(codes);
		free(floats);
	}
	source_close(s);
	return true;
}

/* A very small model, so that thousands can be opened. */
static void very_small(struct tiny *t, const struct hf_write *w, const char *dir)
{
	tiny_default(t, 3);
	t->layers = 1;
	t->hidden = 16;
	t->heads = 2;
	t->kv_heads = 1;
	t->head_dim = 8;
	t->ffn = 24;
	t->n_words = 0;
	tiny_fill(t);
	hf_write(t, w, dir);
}

/* Flipped bits, foreign bytes, pieces moved and cut, in header, data and config.json: no crash. */
START_TEST(corruptions)
{
	const char *text = getenv("ONEBIT_SEED"), *scale = getenv("ONEBIT_SCALE");
	uint64_t seed = text && *text ? strtoull(text, NULL, 0) : 583, state = seed;
	unsigned n = 5000 * (scale && *scale ? (unsigned)strtoul(scale, NULL, 10) : 100) / 100;
	static const int of[] = { 0, 6, 9 }; /* packed, masters, ternary floats */
	const char *dir = folder("m");
	uint8_t *good[2], *bad = malloc(1 << 20);
	unsigned accepted = 0;
	size_t len[2];
	struct tiny t;

	fprintf(stderr, "safetensors: ONEBIT_SEED=%llu\n", (unsigned long long)seed);
	for (unsigned i = 0; i < n || i % 3; i++) {
		static const char *const files[] = { "model.safetensors", "config.json" };
		int which = i % 5 == 4;
		size_t m, header, at, span;

		if (i % (n / 3 + 1) == 0) {
			very_small(&t, &forms[of[i / (n / 3 + 1) % 3]].w, dir);
			tiny_free(&t);
			for (int k = 0; k < 2; k++)
				good[k] = slurp(in(dir, files[k]), &len[k]);
			ck_assert(is_sound(dir));
		}
		m = len[which];
		memcpy(bad, good[which], m);
		/* mostly where the structure is */
		header = !which && tiny_random(&state) % 4
				 ? 8 + good[0][0] + ((size_t)good[0][1] << 8)
				 : m;
		for (uint64_t k = 1 + tiny_random(&state) % 3; k; k--) {
			at = tiny_random(&state) % header;
			span = 1 + tiny_random(&state) % 24;
			span = span < m - at ? span : m - at;
			switch (tiny_random(&state) % 6) {
			case 0:
				bad[at] ^= (uint8_t)(1 << tiny_random(&state) % 8);
				break;
			case 1:
				bad[at] = (uint8_t)tiny_random(&state);
				break;
			case 2: /* a digit for a digit */
				while (at + 1 < m && (bad[at] < '0' || bad[at] > '9'))
					at++;
				bad[at] = (uint8_t)('0' + tiny_random(&state) % 10);
				break;
			case 3: /* a piece from elsewhere */
				memmove(bad + at, bad + tiny_random(&state) % (m - span + 1), span);
				break;
			case 4: /* cut out */
				memmove(bad + at, bad + at + span, m - at - span);
				m -= span;
				break;
			default: /* cut off */
				m = tiny_random(&state) % 8 ? m : at;
				break;
			}
			header = header < m ? header : m;
			if (!m || !header)
				break;
		}
		spill(in(dir, files[which]), bad, m);
		accepted += is_sound(dir);
		spill(in(dir, files[which]), good[which], len[which]);
		if ((i + 1) % (n / 3 + 1) == 0 || (i + 1 >= n && (i + 1) % 3 == 0))
			for (int k = 0; k < 2; k++)
				free(good[k]);
	}
	printf("safetensors: %u of %u corruptions are not to be seen\n", accepted, n);
	free(bad);
}
END_TEST

/* Every length short of the whole is refused. */
START_TEST(truncations)
{
	const char *dir = folder("m");
	struct tiny t;
	uint8_t *good;
	size_t len;

	very_small(&t, &hf_packed, dir);
	good = slurp(in(dir, "model.safetensors"), &len);
	for (size_t n = 0; n < len; n += n < 2200 ? 1 : 37) {
		spill(in(dir, "model.safetensors"), good, n);
		ck_assert_msg(!is_sound(dir), "%zu of %zu bytes", n, len);
	}
	spill(in(dir, "model.safetensors"), good, len);
	ck_assert(is_sound(dir));
	free(good);
	tiny_free(&t);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("safetensors");
	TCase *t = tcase_create("parsers");
	TCase *m = tcase_create("models");
	SRunner *r;
	int failed;

	tcase_add_loop_test(t, container_is_refused, 0, sizeof(containers) / sizeof(*containers));
	tcase_add_test(t, length_is_refused);
	tcase_add_test(t, container_is_read);
	tcase_add_loop_test(t, config_is_refused, 0, sizeof(configs) / sizeof(*configs));
	tcase_add_test(t, config_is_read);
	tcase_add_test(t, rope_is_scaled);
	tcase_add_test(t, licence_is_found);
	tmp_fixture(m);
	tcase_set_timeout(m, 300);
	tcase_add_loop_test(m, forms_are_read, 0, sizeof(forms) / sizeof(*forms));
	tcase_add_loop_test(m, model_is_refused, 0, sizeof(changes) / sizeof(*changes));
	tcase_add_test(m, values_are_refused);
	tcase_add_test(m, large_model_is_held_to_its_first_rows);
	tcase_add_test(m, linear_class_is_settled);
	tcase_add_test(m, files_belong_together);
	tcase_add_test(m, duplicates_across_shards);
	tcase_add_test(m, texts_are_told);
	tcase_add_test(m, tokenizer_is_asked_for);
	tcase_add_test(m, tied_head_is_left_out);
	tcase_add_test(m, corruptions);
	tcase_add_test(m, truncations);
	suite_add_tcase(s, t);
	suite_add_tcase(s, m);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

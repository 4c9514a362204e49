/* SPDX-License-Identifier: MIT */
/*
 * What a path is, and what a model must be. If a format were told by its name, a renamed file would be
 * read as another; if a rule here did not bite, a model that cannot be served would be converted.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_h1b.h"
#include "source.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static char why[512];

/* ---- what a path is -------------------------------------------------------------------------- */

static void refused(const char *path, int err, const char *sentence)
{
	struct source *s = NULL;
	int is;

	memset(why, 0, sizeof(why));
	is = source_open(path, NULL, &s, why, sizeof(why));
	ck_assert_msg(is == err && !s, "%s: %d instead of %d: %s", path, is, err, why);
	ck_assert_msg(strstr(why, sentence) && strstr(why, path), "'%s' does not say '%s' of %s",
		      why,
		      sentence, path);
}

/* What people have instead of a model is named, with what to do. Named .h1b to mislead. */
START_TEST(refused_by_name)
{
	static const struct {
		const char *begin;
		size_t len;
		const char *sentence;
	} files[] = {
		{ "HTOK", 4, "a tokenizer (.htok), not a model" },
		{ "MEDUSA1", 8, "draft heads (.h1b-medusa)" },
		{ "1BP\0", 4, "a 1bp file" },
		{ "1BL\1", 4, "a 1BL catalogue" },
		{ "FUGG", 4, "big-endian" },
		{ "lmgg", 4, "older than GGUF" },
		{ "tjgg", 4, "older than GGUF" },
		{ "PK\3\4", 4, "what PyTorch writes" },
		{ "\x80\2}", 3, "Python pickle" },
		{ "\x89HDF\r\n\x1a\n", 8, "HDF5" },
		{ "\x08\x07\x12\x07pytorch", 11, "ONNX" },
		{ "version https://git-lfs.github.com/spec/v1\n", 43, "git lfs pull" },
		{ "<!DOCTYPE html>", 15, "a web page" },
		{ "{\"architectures\"", 16, "name the folder it is in" },
		{ "\x1f\x8b\x08", 3, "compressed (gzip)" },
		{ "\xfd" "7zXZ\0", 6, "compressed (xz)" },
		{ "\x7f" "ELF", 4, "a program" },
	};
	static const uint8_t zeros[1024];
	uint8_t file[1024];

	for (size_t i = 0; i < COUNT(files); i++) {
		memcpy(file, zeros, sizeof(file));
		memcpy(file, files[i].begin, files[i].len);
		refused(write_h1b_file("x.h1b", file, sizeof(file)), -ENOTSUP, files[i].sentence);
	}
	memcpy(file, zeros, sizeof(file));
	memcpy(file + 257, "ustar", 5);
	refused(write_h1b_file("x.h1b", file, sizeof(file)), -ENOTSUP, "an archive (tar)");
	memcpy(file, (const uint32_t[8]){ 2048, 8192, 24, 16, 4, 1000, 4096, 6 }, 32);
	refused(write_h1b_file("x.h1b", file, sizeof(file)), -ENOTSUP, "version 6 without magic");
	refused(write_h1b_file("x.h1b", "ab", 2), -EPROTO, "begins with 61 62 00 00");
	refused(write_h1b_file("x.h1b", "", 0), -EPROTO, "is empty");
	refused(write_h1b_file("x.h1b", "H1B", 3), -EPROTO, "does not begin with \"H1B\"");
	/* A length that the file does not have is no safetensors. */
	refused(write_h1b_file("x.h1b", "\xff\0\0\0\0\0\0\0{", 9), -EPROTO, "no model of a known "
		"format");
	refused("/nowhere/model", -ENOENT, "cannot be opened");
}
END_TEST

/* Its own reader gets each format, whatever the name. */
START_TEST(by_content)
{
	static const struct {
		const char *begin;
		size_t len;
	} files[] = {
		{ "GGUF\3\0\0\0", 8 }, { "\x89OBM\r\n\x1a\n", 8 }, { "\2\0\0\0\0\0\0\0{}", 10 },
	};
	struct source *s;
	struct tiny t;
	uint8_t *file;
	size_t bytes;

	for (size_t i = 0; i < COUNT(files); i++) {
		const char *path = write_h1b_file("x.h1b", files[i].begin, files[i].len);

		memset(why, 0, sizeof(why));
		ck_assert_int_lt(source_open(path, NULL, &s, why, sizeof(why)), 0);
		ck_assert_msg(*why && !strstr(why, "no model of a known format") && !strstr(why, "H1B"), "%s",
			      why);
	}
	tiny_default(&t, 1);
	tiny_fill(&t);
	file = write_h1b(&t, 2, 0, &bytes);
	ck_assert_msg(!source_open(write_h1b_file("x.gguf", file, bytes), NULL, &s, why, sizeof(why)), "%s",
		      why);
	ck_assert_str_eq(s->format, "h1b v2");
	ck_assert(!source_close(s));
	ck_assert(!source_close(NULL));
	free(file);
	tiny_free(&t);
}
END_TEST

/* A folder is a Hugging Face one, or it says which file to name. */
START_TEST(folders)
{
	char path[300], file[400];

	snprintf(path, sizeof(path), "%s/folder", getenv("TMPDIR"));
	ck_assert(!mkdir(path, 0755));
	refused(path, -ENOENT, "neither config.json nor a .safetensors file");
	write_h1b_file("folder/pytorch_model.bin", "", 0);
	refused(path, -ENOTSUP, "pytorch_model.bin, which is a Python pickle");
	write_h1b_file("folder/model.gguf", "", 0);
	snprintf(file, sizeof(file), "for example %s/model.gguf", path);
	refused(path, -ENOENT, file);
	write_h1b_file("folder/config.json", "", 0);
	memset(why, 0, sizeof(why));
	ck_assert_int_lt(source_open(path, NULL, &(struct source *){ NULL }, why, sizeof(why)), 0);
	ck_assert_msg(*why && !strstr(why, "model.gguf"), "%s", why);
}
END_TEST

/* ---- what a person adds ---------------------------------------------------------------------- */

static int open_with(const char *path, struct source_options o, struct source **s)
{
	*s = NULL;
	memset(why, 0, sizeof(why));
	return source_open(path, &o, s, why, sizeof(why));
}

START_TEST(options)
{
	char path[300];
	struct source *s;
	struct tiny t;
	uint8_t *file;
	size_t bytes;
	char longer[80];

	tiny_default(&t, 1);
	tiny_fill(&t);
	file = write_h1b(&t, 2, 0, &bytes);
	snprintf(path, sizeof(path), "%s", write_h1b_file("m.h1b", file, bytes));
	free(file);
	memset(longer, 'x', sizeof(longer));
	longer[64] = 0;

	ck_assert_int_eq(open_with(path, (struct source_options){ .chat = "raw" }, &s), -ENOENT);
	ck_assert_msg(strstr(why, "m.htok") != NULL, "%s", why);
	file = write_htok(&t, 0, &bytes);
	write_h1b_file("m.htok", file, bytes);
	free(file);
	ck_assert_msg(!open_with(path, (struct source_options){
		.chat = "raw", .name = "A model", .context = 32, .qk = SOURCE_QK_PAIRS,
		.licence_file = write_h1b_file("LICENCE", "as you like it\n", 15) }, &s), "%s", why);
	ck_assert_str_eq(s->vocab->chat, "raw");
	ck_assert_str_eq(s->arch.name, "A model");
	ck_assert_uint_eq(s->arch.context, 32);
	ck_assert_uint_eq(s->qk, SOURCE_QK_PAIRS);
	ck_assert_str_eq(s->licence, "as you like it\n");
	source_close(s);
	ck_assert_msg(!open_with(path, (struct source_options){ 0 }, &s), "%s", why);
	ck_assert_str_eq(s->vocab->chat, "bitnet");
	ck_assert_str_eq(s->arch.name, "m");
	ck_assert_uint_eq(s->qk, SOURCE_QK_SPLIT);
	source_close(s);

	ck_assert_int_eq(open_with(path, (struct source_options){ .context = 65 }, &s), -EINVAL);
	ck_assert_msg(strstr(why, "--context 65 is more than the 64") != NULL, "%s", why);
	ck_assert_int_eq(open_with(path, (struct source_options){ .name = longer }, &s), -EINVAL);
	ck_assert_msg(strstr(why, "has 64 bytes; allowed are 63") != NULL, "%s", why);
	ck_assert_int_eq(open_with(path, (struct source_options){ .chat = longer }, &s), -EINVAL);
	ck_assert_int_eq(open_with(path, (struct source_options){
		.licence_file = write_h1b_file("L", "a\0b", 3) }, &s), -EPROTO);
	ck_assert_int_lt(open_with(path, (struct source_options){ .licence_file = "/nowhere" }, &s), 0);
	tiny_free(&t);
}
END_TEST

/* ---- what a model must be -------------------------------------------------------------------- */

/* A source that is right, of no file: 2 layers, one thing of which each test changes. */
struct fake {
	struct source s;
	struct source_tensor tensors[64];
	struct vocab vocab;
	double rope[16];
};

static void add(struct fake *f, uint32_t role, uint32_t layer, uint32_t rows, uint32_t cols,
		enum source_form form)
{
	f->tensors[f->s.n_tensors++] = (struct source_tensor){
		.role = role, .layer = layer, .rows = rows, .cols = cols, .form = form,
		.groups = form == SOURCE_TERNARY, .stored = "U8",
	};
}

static void fake_init(struct fake *f)
{
	*f = (struct fake){
		.s = {
			.format = "fake", .rope_theta = 10000,
			.arch = { .layers = 2, .hidden = 128, .ffn = 192, .heads = 4, .kv_heads = 2,
				  .head_dim = 16, .vocab = 300, .context = 64,
				  .activation = OBM_ACT_RELU2, .rms_eps = 1e-5f },
		},
		.vocab = { .n_tokens = 300 },
	};
	f->s.tensors = f->tensors;
	f->s.vocab = &f->vocab;
	add(f, OBM_EMBED, OBM_NO_LAYER, 300, 128, SOURCE_F32);
	add(f, OBM_FINAL_NORM, OBM_NO_LAYER, 1, 128, SOURCE_F32);
	for (uint32_t l = 0; l < 2; l++) {
		add(f, OBM_ATTN_NORM, l, 1, 128, SOURCE_F32);
		add(f, OBM_ATTN_SUB_NORM, l, 1, 64, SOURCE_F16);
		add(f, OBM_FFN_NORM, l, 1, 128, SOURCE_BF16);
		add(f, OBM_FFN_SUB_NORM, l, 1, 192, SOURCE_F32);
		add(f, OBM_Q, l, 64, 128, SOURCE_TERNARY);
		add(f, OBM_K, l, 32, 128, SOURCE_MASTER);
		add(f, OBM_V, l, 32, 128, SOURCE_TERNARY);
		add(f, OBM_O, l, 128, 64, SOURCE_TERNARY);
		add(f, OBM_GATE, l, 192, 128, SOURCE_TERNARY);
		add(f, OBM_UP, l, 192, 128, SOURCE_TERNARY);
		add(f, OBM_DOWN, l, 128, 192, SOURCE_TERNARY);
	}
}

static struct source_tensor *at(struct fake *f, uint32_t role, uint32_t layer)
{
	return (struct source_tensor *)source_find(&f->s, role, layer);
}

static void drop(struct fake *f, uint32_t role, uint32_t layer)
{
	struct source_tensor *t = at(f, role, layer);

	*t = f->tensors[--f->s.n_tensors];
}

START_TEST(a_right_model)
{
	struct fake f;

	fake_init(&f);
	ck_assert_msg(!source_check(&f.s, why, sizeof(why)), "%s", why);
	/* Embedding and final norm; then norms and matrices of two layers, by hand. */
	ck_assert_uint_eq(f.s.arch.n_parameters,
			  300 * 128 + 128 + 2 * (128 + 64 + 128 + 192 + 128 * (64 + 32 + 32 + 64) +
						 3 * 192 * 128));
	/* Without sub-norms; with a head; without a vocabulary; with three groups; filled-up rows. */
	for (uint32_t l = 0; l < 2; l++) {
		drop(&f, OBM_ATTN_SUB_NORM, l);
		drop(&f, OBM_FFN_SUB_NORM, l);
	}
	add(&f, OBM_HEAD, OBM_NO_LAYER, 300, 128, SOURCE_INT8);
	at(&f, OBM_HEAD, OBM_NO_LAYER)->groups = 1;
	at(&f, OBM_DOWN, 1)->groups = 3;
	f.s.vocab = NULL;
	ck_assert_msg(!source_check(&f.s, why, sizeof(why)), "%s", why);
	f.s.vocab = &f.vocab;
	f.vocab.n_tokens = 290;
	ck_assert_msg(!source_check(&f.s, why, sizeof(why)), "%s", why);
	ck_assert(!source_find(&f.s, OBM_Q, 2) && !source_find(&f.s, OBM_HEAD, 0));
}
END_TEST

/* One rule each: what is changed, and the sentence. */
#define RULE(code, change) \
	static void rule_##code(struct fake *f) \
	{ \
		change; \
	}
RULE(layers, f->s.arch.layers = 0)
RULE(many_layers, f->s.arch.layers = 513)
RULE(heads, f->s.arch.heads = 0)
RULE(kv_heads, f->s.arch.kv_heads = 0)
RULE(share, f->s.arch.kv_heads = 3)
RULE(odd, f->s.arch.head_dim = 15)
RULE(wide, f->s.arch.hidden = OBM_WIDTH_MAX + 1)
RULE(ffn, f->s.arch.ffn = 0)
RULE(context, f->s.arch.context = 0)
RULE(long_context, f->s.arch.context = OBM_CONTEXT_MAX + 1)
RULE(vocab, f->s.arch.vocab = OBM_VOCAB_MAX + 1)
RULE(activation, f->s.arch.activation = 0)
RULE(flags, f->s.arch.flags = 2)
RULE(eps, f->s.arch.rms_eps = 0)
RULE(eps_nan, f->s.arch.rms_eps = NAN)
RULE(theta, f->s.rope_theta = 1)
RULE(theta_inf, f->s.rope_theta = INFINITY)
RULE(rope, f->rope[3] = 2; f->s.rope = f->rope)
RULE(name, memset(f->s.arch.name, 'x', sizeof(f->s.arch.name)))
RULE(role, f->tensors[5].role = OBM_ROLES)
RULE(no_layer, f->tensors[5].layer = OBM_NO_LAYER)
RULE(with_layer, f->tensors[0].layer = 0)
RULE(third, f->tensors[5].layer = 2)
RULE(rows, at(f, OBM_GATE, 1)->rows++)
RULE(cols, at(f, OBM_O, 0)->cols = 128)
RULE(norm_rows, at(f, OBM_FINAL_NORM, OBM_NO_LAYER)->rows = 128)
RULE(turned, at(f, OBM_UP, 0)->rows = 128; at(f, OBM_UP, 0)->cols = 192)
RULE(float_matrix, at(f, OBM_UP, 0)->form = SOURCE_F16; at(f, OBM_UP, 0)->groups = 0)
RULE(ternary_norm, at(f, OBM_FFN_NORM, 0)->form = SOURCE_TERNARY)
RULE(ternary_embed, at(f, OBM_EMBED, OBM_NO_LAYER)->form = SOURCE_TERNARY)
RULE(no_groups, at(f, OBM_Q, 0)->groups = 0)
RULE(narrow_groups, at(f, OBM_Q, 0)->groups = 4)
RULE(uneven_groups, at(f, OBM_Q, 0)->groups = 3)
RULE(many_groups, at(f, OBM_Q, 0)->groups = 257)
RULE(float_groups, at(f, OBM_EMBED, OBM_NO_LAYER)->groups = 1)
RULE(twice, at(f, OBM_K, 1)->layer = 0)
RULE(embed_twice, add(f, OBM_EMBED, OBM_NO_LAYER, 300, 128, SOURCE_F32))
RULE(no_embed, drop(f, OBM_EMBED, OBM_NO_LAYER))
RULE(no_final, drop(f, OBM_FINAL_NORM, OBM_NO_LAYER))
RULE(no_down, drop(f, OBM_DOWN, 1))
RULE(no_norm, drop(f, OBM_ATTN_NORM, 0))
RULE(sub_norm_1, drop(f, OBM_ATTN_SUB_NORM, 1))
RULE(sub_norm_0, drop(f, OBM_FFN_SUB_NORM, 0))
RULE(many_tokens, f->vocab.n_tokens = 301)
RULE(many_tensors, f->s.n_tensors = OBM_TENSORS_MAX + 1)

START_TEST(each_rule)
{
	static const struct {
		void (*change)(struct fake *f);
		int err;
		const char *sentence;
	} rules[] = {
		{ rule_layers, -EPROTO, "the number of layers is 0" },
		{ rule_many_layers, -EFBIG, "the number of layers is 513; at most 512" },
		{ rule_heads, -EPROTO, "the number of heads is 0" },
		{ rule_kv_heads, -EPROTO, "the number of KV heads is 0" },
		{ rule_share, -EPROTO, "4 heads cannot share 3 KV heads" },
		{ rule_odd, -EPROTO, "head_dim is 15" },
		{ rule_wide, -EFBIG, "the hidden size is 131073; at most 131072" },
		{ rule_ffn, -EPROTO, "the feed-forward size is 0" },
		{ rule_context, -EPROTO, "the context length is 0" },
		{ rule_long_context, -EFBIG, "the context length is 1048577" },
		{ rule_vocab, -EFBIG, "the vocabulary's size is 1048577" },
		{ rule_activation, -ENOTSUP, "activation 0 is not known" },
		{ rule_flags, -ENOTSUP, "flags 0x2" },
		{ rule_eps, -EPROTO, "epsilon is 0" },
		{ rule_eps_nan, -EPROTO, "epsilon is nan" },
		{ rule_theta, -EPROTO, "rotary base is 1" },
		{ rule_theta_inf, -EPROTO, "rotary base is inf" },
		{ rule_rope, -EPROTO, "rotary frequency 3 is 2" },
		{ rule_name, -EPROTO, "name or family is too long" },
		{ rule_role, -EPROTO, "a tensor of role 14 in layer 0" },
		{ rule_no_layer, -EPROTO, "in layer -1" },
		{ rule_with_layer, -EPROTO, "a tensor of role 0 in layer 0" },
		{ rule_third, -EPROTO, "layer 2's ffn_sub_norm is there, but the model says that "
		 "it has 2" },
		{ rule_rows, -EPROTO, "is 193 x 128; by the model's numbers it must be 192 x 128" },
		{ rule_cols, -EPROTO, "is 128 x 128; by the model's numbers it must be 128 x 64" },
		{ rule_norm_rows, -EPROTO, "final_norm is 128 x 128" },
		{ rule_turned, -EPROTO, "is 128 x 192; by the model's numbers it must be 192 x "
		 "128" },
		{ rule_float_matrix, -ENOTSUP, "is stored as U8; it must be ternary" },
		{ rule_ternary_norm, -ENOTSUP, "it must be F32, F16 or BF16" },
		{ rule_ternary_embed, -ENOTSUP, "not a ternary one" },
		{ rule_no_groups, -EPROTO, "has 0 groups" },
		{ rule_narrow_groups, -ENOTSUP, "has 4 groups of scales over 128 columns" },
		{ rule_uneven_groups, -ENOTSUP, "has 3 groups of scales over 128 columns" },
		{ rule_many_groups, -EFBIG, "has 257 groups" },
		{ rule_float_groups, -EPROTO, "which its form cannot have" },
		{ rule_twice, -EPROTO, "is there twice" },
		{ rule_embed_twice, -EPROTO, "is there twice" },
		{ rule_no_embed, -ENOENT, "is missing" },
		{ rule_no_final, -ENOENT, "final_norm is missing" },
		{ rule_no_down, -ENOENT, "layer 1's " },
		{ rule_no_norm, -ENOENT, "layer 0's attn_norm is missing" },
		{ rule_sub_norm_1, -ENOENT, "layer 1's attn_sub_norm is missing, but layer 0's is "
		 "there" },
		{ rule_sub_norm_0, -ENOENT, "layer 1's ffn_sub_norm is there, but layer 0's is "
		 "missing" },
		{ rule_many_tokens, -EPROTO, "301 tokens" },
		{ rule_many_tensors, -EFBIG, "there are 8209 tensors" },
	};

	for (size_t i = 0; i < COUNT(rules); i++) {
		struct fake f;
		int err;

		fake_init(&f);
		rules[i].change(&f);
		memset(why, 0, sizeof(why));
		err = source_check(&f.s, why, sizeof(why));
		ck_assert_msg(err == rules[i].err && strstr(why, rules[i].sentence),
			      "%d '%s', expected %d '%s'", err, why, rules[i].err,
				      rules[i].sentence);
	}
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("source");
	TCase *t = tcase_create("source");
	SRunner *r;
	int failed;

	tmp_fixture(t);
	tcase_add_test(t, refused_by_name);
	tcase_add_test(t, by_content);
	tcase_add_test(t, folders);
	tcase_add_test(t, options);
	tcase_add_test(t, a_right_model);
	tcase_add_test(t, each_rule);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

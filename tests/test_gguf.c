/* SPDX-License-Identifier: MIT */
/*
 * Models from GGUF files: every type and place of scales that peers write, compared weight for
 * weight with the model that another hand wrote; and every lie a file can tell, each with its own
 * sentence. What is taken wrongly here is served wrongly for ever, and looks like text.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "gguf.h"
#include "gguf_stored.h"
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_gguf.h"
#include "source.h"
#include "vocab.h"
#include "vocab_gguf.h"

static struct tiny tiny;
static struct write_gguf w;
static struct source *s;
static char path[512], why[1024];
static uint64_t seed;

static void set_up(void)
{
	const char *text = getenv("ONEBIT_SEED");

	seed = text ? strtoull(text, NULL, 0) : 0x67677566;
	fprintf(stderr, "seed: ONEBIT_SEED=%#" PRIx64 "\n", seed);
	snprintf(path, sizeof(path), "%s/model.gguf", getenv("TMPDIR"));
	tiny_default(&tiny, seed);
	tiny.ffn = 256;
	write_gguf_default(&w);
	s = NULL;
	*why = 0;
}

static void tear_down(void)
{
	source_close(s);
	tiny_free(&tiny);
}

static uint64_t scaled(uint64_t n)
{
	const char *percent = getenv("ONEBIT_SCALE");

	n = percent ? n * strtoull(percent, NULL, 10) / 100 : n;
	return n ? n : 1;
}

static int open_model(void)
{
	int err = source_open_gguf(path, NULL, &s, why, sizeof(why));

	return err ? err : source_check(s, why, sizeof(why));
}

static void write_and_open(void)
{
	if (!tiny.embed)
		tiny_fill(&tiny);
	write_gguf_file(&tiny, &w, path);
	ck_assert_msg(!open_model(), "%s", why);
}

/* The sentence without the path. */
static void refused(int err, const char *sentence)
{
	const char *p = why;
	int got = open_model();

	if (!strncmp(p, path, strlen(path)) && !strncmp(p + strlen(path), ": ", 2))
		p += strlen(path) + 2;
	ck_assert_msg(got == err && !strcmp(p, sentence), "%d: %s\nexpected %d: %s", got, p, err,
		      sentence);
}

static void write_refused(int err, const char *sentence)
{
	if (!tiny.embed)
		tiny_fill(&tiny);
	write_gguf_file(&tiny, &w, path);
	refused(err, sentence);
}

static void compare_matrix(uint32_t role, uint32_t layer, const struct tiny_matrix *m)
{
	const struct source_tensor *t = source_find(s, role, layer);
	int8_t *codes = malloc((size_t)m->rows * m->cols);
	float *scales;

	ck_assert(t && t->form == SOURCE_TERNARY && t->rows == m->rows && t->cols == m->cols);
	ck_assert_uint_eq(m->groups % t->groups, 0);
	scales = malloc((size_t)m->rows * t->groups * sizeof(*scales));
	/* In two reads, as converters do, and one without scales. */
	ck_assert_msg(!s->ops->read_codes(s, t, 0, 3, codes, scales, why, sizeof(why)), "%s", why);
	ck_assert_msg(!s->ops->read_codes(s, t, 3, m->rows - 3, codes + 3 * (size_t)m->cols,
					  scales + 3 * (size_t)t->groups, why, sizeof(why)),
		      "%s", why);
	for (uint32_t r = 0; r < m->rows; r++) {
		uint32_t from = r;

		if (s->qk == SOURCE_QK_PAIRS && (role == OBM_Q || role == OBM_K))
			from = r - r % tiny.head_dim + r % tiny.head_dim / 2 +
			       r % 2 * (tiny.head_dim / 2);
		ck_assert_msg(!memcmp(codes + (size_t)r * m->cols,
				      m->codes + (size_t)from * m->cols, m->cols),
			      "layer %u role %u row %u", layer, role, r);
		for (uint32_t g = 0; g < m->groups; g++)
			ck_assert_float_eq(scales[r * t->groups + g * t->groups / m->groups],
					   m->scales[from * m->groups + g]);
	}
	ck_assert(!s->ops->read_codes(s, t, 1, 1, codes, NULL, why, sizeof(why)));
	if (s->ops->done)
		s->ops->done(s, t);
	free(codes);
	free(scales);
}

static void compare_floats(uint32_t role, uint32_t layer, const float *v, uint32_t rows,
			   uint32_t cols, float tolerance)
{
	const struct source_tensor *t = source_find(s, role, layer);
	float *got = malloc((size_t)rows * cols * sizeof(*got));

	ck_assert(t && t->rows == rows && t->cols == cols);
	ck_assert_msg(!s->ops->read_floats(s, t, 0, rows, got, why, sizeof(why)), "%s", why);
	for (size_t i = 0; i < (size_t)rows * cols; i++)
		if (!(fabsf(got[i] - v[i]) <= tolerance))
			ck_abort_msg("layer %d role %u element %zu: %g for %g", (int)layer, role, i,
				     (double)got[i], (double)v[i]);
	free(got);
}

static void compare_model(float embed_tolerance)
{
	const uint32_t q = tiny.heads * tiny.head_dim;

	ck_assert_uint_eq(s->arch.layers, tiny.layers);
	ck_assert_uint_eq(s->arch.hidden, tiny.hidden);
	ck_assert_uint_eq(s->arch.ffn, tiny.ffn);
	ck_assert_uint_eq(s->arch.heads, tiny.heads);
	ck_assert_uint_eq(s->arch.kv_heads, tiny.kv_heads);
	ck_assert_uint_eq(s->arch.head_dim, tiny.head_dim);
	ck_assert_uint_eq(s->arch.vocab, tiny.vocab);
	ck_assert_uint_eq(s->arch.context, tiny.context);
	ck_assert(s->arch.rms_eps == tiny.eps && s->rope_theta == (double)tiny.theta);
	ck_assert_str_eq(s->arch.name, "tiny model");
	compare_floats(OBM_EMBED, OBM_NO_LAYER, tiny.embed, tiny.vocab, tiny.hidden,
		       embed_tolerance);
	if (tiny.head)
		compare_floats(OBM_HEAD, OBM_NO_LAYER, tiny.head, tiny.vocab, tiny.hidden,
			       embed_tolerance);
	compare_floats(OBM_FINAL_NORM, OBM_NO_LAYER, tiny.final_norm, 1, tiny.hidden, 0);
	for (uint32_t l = 0; l < tiny.layers; l++) {
		compare_floats(OBM_ATTN_NORM, l, tiny.layer[l].attn_norm, 1, tiny.hidden, 0);
		compare_floats(OBM_FFN_NORM, l, tiny.layer[l].ffn_norm, 1, tiny.hidden, 0);
		if (tiny.sub_norms) {
			compare_floats(OBM_ATTN_SUB_NORM, l, tiny.layer[l].attn_sub_norm, 1, q, 0);
			compare_floats(OBM_FFN_SUB_NORM, l, tiny.layer[l].ffn_sub_norm, 1, tiny.ffn,
				       0);
		}
		for (uint32_t m = 0; m < TINY_MATRICES; m++)
			compare_matrix(OBM_Q + m, l, &tiny.layer[l].m[m]);
	}
}

static void wide(void)
{
	tiny.hidden = 256;
	tiny.ffn = 512;
	tiny.head_dim = 64;
}

/* ---- what peers write ------------------------------------------------------------------------ */

static const struct {
	uint32_t linear;
	bool wide, row_scales, scale_tensors;
	uint32_t groups;
} linears[] = {
	{ WRITE_I2_S, false, false, false, 1 },	  { WRITE_I2_S, false, false, true, 1 },
	{ WRITE_TQ1_0, true, false, false, 1 },	  { WRITE_TQ1_0, true, true, false, 1 },
	{ WRITE_TQ2_0, true, false, false, 1 },	  { WRITE_TQ2_0, true, true, false, 1 },
	{ WRITE_IQ1_BN, false, true, false, 1 },  { WRITE_IQ2_BN, false, true, false, 1 },
	{ WRITE_IQ1_BN, false, false, true, 1 },  { WRITE_IQ2_BN, false, false, true, 1 },
	{ WRITE_F32, false, true, false, 1 },	  { WRITE_F16, false, true, false, 1 },
	{ WRITE_BF16, false, false, false, 1 },	  { WRITE_F16, false, false, true, 1 },
	{ WRITE_F32, false, true, false, 2 },	  { WRITE_F16, false, false, false, 2 },
};

/* A type or place of scales that is read wrongly. */
START_TEST(linear_types)
{
	tiny.row_scales = linears[_i].row_scales;
	tiny.groups = linears[_i].groups;
	if (linears[_i].wide)
		wide();
	w.linear = linears[_i].linear;
	w.scale_tensors = linears[_i].scale_tensors;
	write_and_open();
	compare_model(0);
}
END_TEST

/* Scales that differ along a row, in equal column groups: the least number is found. */
START_TEST(groups_of_blocks)
{
	tiny.hidden = 512;
	tiny.head_dim = 128;
	tiny.ffn = 1024;
	tiny.row_scales = _i % 2;
	tiny.groups = 2;
	w.linear = _i / 2 ? WRITE_TQ1_0 : WRITE_TQ2_0;
	write_and_open();
	ck_assert_uint_eq(source_find(s, OBM_DOWN, 0)->groups, 2);
	compare_model(0);
}
END_TEST

/* Blocks of zeros have any scale or none, and bind nothing; under a scale of 0 codes are zeros. */
START_TEST(blocks_that_bind_nothing)
{
	struct tiny_matrix *m;
	uint8_t *data, *p;
	size_t len;

	tiny.hidden = 512;
	tiny.head_dim = 128;
	tiny.ffn = 1024;
	tiny.layers = 1;
	tiny_fill(&tiny);
	m = &tiny.layer[0].m[TINY_DOWN];
	/* Row 0: second block zeros; row 1: first two; row 2: all. */
	memset(m->codes + 256, 0, 256);
	memset(m->codes + 1024, 0, 512);
	memset(m->codes + 2048, 0, 1024);
	w.linear = WRITE_TQ2_0;
	data = write_gguf(&tiny, &w, &len);
	/* The last tensor but output_norm. */
	p = data + len - 512 * 4 - (size_t)m->rows * 4 * 66;
	p[66 + 64] = p[66 + 65] = 0;		   /* none */
	p[264 + 65] = 0x11;			   /* two others */
	p[264 + 66 + 65] = 0x12;
	p[528 + 66 + 65] = 0x13;
	/* Row 3: the third block's scale is 0, what its codes say is nothing. */
	p[792 + 2 * 66 + 64] = p[792 + 2 * 66 + 65] = 0;
	write_bytes(path, data, len);
	free(data);
	ck_assert_msg(!open_model(), "%s", why);
	ck_assert_uint_eq(source_find(s, OBM_DOWN, 0)->groups, 1);
	memset(m->codes + 3 * 1024 + 512, 0, 256);
	compare_matrix(OBM_DOWN, 0, m);
}
END_TEST

/*
 * Ordinary weights in a ternary type, each block with a scale of its own: they fit groups as long
 * as there are few; beyond that they are refused with the figures.
 */
START_TEST(scales_that_fit_no_group)
{
	const uint32_t n = 257;
	struct gguf_tensor t = { .name = { "blk.0.x.weight", 14 },
				 .type = 35,
				 .rows = 2,
				 .cols = n * 256,
				 .room = (2 * n * 66 + 31) / 32 * 32 };
	uint8_t *data = calloc(1, t.room);
	const struct gguf none = { .alignment = 32 };
	struct gguf_stored stored;
	int err;

	for (uint32_t b = 0; b < 2 * n; b++) {
		memset(data + b * 66, 0x55, 64);
		data[b * 66] = 0x56;
		/* From 1 in row 0; in row 1, each another. */
		data[b * 66 + 64] = (uint8_t)(b < n ? 0 : b);
		data[b * 66 + 65] = (uint8_t)(0x3c + (b < n ? 0 : (b - n) / 256));
	}
	ck_assert(!gguf_stored_open(&stored, &t, data, 32, why, sizeof(why)));
	err = gguf_stored_ternary(&stored, &none, data, why, sizeof(why));
	ck_assert_msg(
		err == -ENOTSUP &&
			!strncmp(why, "tensor blk.0.x.weight, row 1: the scale is 1.0009765", 52),
		"%d: %s", err, why);
	t.cols = 256 * 256;
	t.room = 2 * 256 * 66;
	ck_assert(!gguf_stored_open(&stored, &t, data, 32, why, sizeof(why)));
	ck_assert_int_eq(gguf_stored_ternary(&stored, &none, data, why, sizeof(why)), 0);
	ck_assert_uint_eq(stored.groups, 256);
	free(data);
}
END_TEST

static const struct {
	uint32_t embed;
	float tolerance;
	enum source_form form;
} embeds[] = {
	{ WRITE_F32, 0, SOURCE_F32 },
	{ WRITE_F16, 0, SOURCE_F16 },
	{ WRITE_BF16, 0, SOURCE_BF16 },
	{ WRITE_Q8_0, 1.0f / 127, SOURCE_QUANTISED },
	{ WRITE_Q6_K, 1.0f / 31, SOURCE_QUANTISED },
};

START_TEST(embeddings)
{
	wide();
	tiny.tied = _i % 2;
	w.embed = embeds[_i].embed;
	write_and_open();
	ck_assert_int_eq(source_find(s, OBM_EMBED, OBM_NO_LAYER)->form, embeds[_i].form);
	ck_assert((source_find(s, OBM_HEAD, OBM_NO_LAYER) == NULL) == tiny.tied);
	compare_model(embeds[_i].tolerance);
}
END_TEST

static const struct {
	const char *arch, *said;
	uint32_t activation, flags;
	enum source_qk qk;
	bool sub_norms;
} archs[] = {
	{ "bitnet", NULL, OBM_ACT_SILU, 0, SOURCE_QK_SPLIT, true },
	{ "bitnet", "relu2", OBM_ACT_RELU2, 0, SOURCE_QK_SPLIT, true },
	{ "bitnet-25", NULL, OBM_ACT_RELU2, 0, SOURCE_QK_SPLIT, true },
	{ "bitnet-b1.58", NULL, OBM_ACT_RELU2, 0, SOURCE_QK_SPLIT, true },
	{ "llama", NULL, OBM_ACT_SILU, OBM_FLAG_A8_IMPOSED, SOURCE_QK_PAIRS, false },
};

/* The rows of q and k in another order, or another activation: looks fine, and speaks nonsense. */
START_TEST(architectures)
{
	tiny.sub_norms = archs[_i].sub_norms;
	w.arch = archs[_i].arch;
	w.activation = archs[_i].said;
	w.pairs = archs[_i].qk == SOURCE_QK_PAIRS;
	write_and_open();
	ck_assert_uint_eq(s->arch.activation, archs[_i].activation);
	ck_assert_uint_eq(s->arch.flags, archs[_i].flags);
	ck_assert_int_eq(s->qk, archs[_i].qk);
	ck_assert_str_eq(s->arch.family, archs[_i].arch);
	compare_model(0);
	ck_assert(strstr(s->info, "licence: mit\n"));
	ck_assert((strstr(s->info, "does not name its activation") == NULL) ==
		  (archs[_i].said != NULL));
}
END_TEST

START_TEST(versions_and_alignments)
{
	static const uint32_t alignments[] = { 0, 1, 8, 64, 4096 };

	w.version = 2 + (uint32_t)_i % 2;
	w.alignment = alignments[_i / 2];
	write_and_open();
	ck_assert_str_eq(s->format, w.version == 2 ? "GGUF v2" : "GGUF v3");
	compare_model(0);
}
END_TEST

/* Llama 3.1's stretched positions come as a tensor of divisors. */
START_TEST(divided_frequencies)
{
	tiny.head_dim = 2;
	tiny.heads = 64;
	tiny.kv_heads = 32;
	w.extra_tensor = "rope_freqs.weight";
	write_and_open();
	ck_assert(s->rope && s->rope[0] == 1);
	compare_model(0);
}
END_TEST

/* ---- the vocabulary -------------------------------------------------------------------------- */

START_TEST(vocabulary)
{
	static const struct {
		const char *pre;
		uint32_t rule, flags;
	} pres[] = {
		{ "llama-bpe", VOCAB_RULE_LLAMA3, VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS },
		{ "llama3", VOCAB_RULE_LLAMA3, VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS },
		{ "gpt-2", VOCAB_RULE_GPT2, 0 },
		{ "mpt", VOCAB_RULE_GPT2, VOCAB_NFC },
		{ "olmo", VOCAB_RULE_GPT2, VOCAB_NFC },
		{ "starcoder", VOCAB_RULE_STARCODER, 0 },
		{ "smollm", VOCAB_RULE_STARCODER, 0 },
		/* As BitNet 2B-4T was published: known by its first token. */
		{ NULL, VOCAB_RULE_LLAMA3, VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS },
	};
	const struct vocab *v;

	w.pre = pres[_i].pre;
	w.chat = "llama3";
	write_and_open();
	v = s->vocab;
	ck_assert_msg(v != NULL, "%s", s->no_vocab);
	ck_assert(v->kind == VOCAB_BYTES && v->rule == pres[_i].rule && v->flags == pres[_i].flags);
	ck_assert(v->n_tokens == tiny.vocab && v->n_merges == tiny.n_words);
	ck_assert(v->bos == tiny.bos && v->eos == tiny.eos && v->unk == VOCAB_NO_ID);
	ck_assert(v->n_stops == 2 && v->stops[0] == tiny.eos && v->stops[1] == tiny.eot);
	ck_assert_str_eq(v->chat, "llama3");
	for (uint32_t i = 0; i < v->n_tokens; i++) {
		ck_assert_uint_eq(v->tokens[i].len, tiny.token_len[i]);
		ck_assert_mem_eq(v->tokens[i].text, tiny.token[i], tiny.token_len[i]);
		ck_assert_uint_eq(v->tokens[i].kind,
				  i < tiny.vocab - 4 ? VOCAB_NORMAL : VOCAB_SPECIAL);
	}
	for (uint32_t i = 0; i < v->n_merges; i++)
		ck_assert(v->merges[i].a == tiny.merge[i].a && v->merges[i].b == tiny.merge[i].b &&
			  v->merges[i].merged == tiny.merge[i].merged && v->merges[i].rank == i);
}
END_TEST

/* A vocabulary that cannot be read is no fault of the model, but is said. */
START_TEST(vocabularies_that_are_not_read)
{
	static const struct {
		const char *without, *pre, *why;
	} cases[] = {
		{ "tokenizer.ggml.model", "gpt-2",
		  "there is no tokenizer in the file; give one with --tokenizer" },
		{ NULL, "qwen2",
		  "key tokenizer.ggml.pre is 'qwen2', a rule that is not supported; llama-bpe, "
		  "gpt-2 and starcoder are" },
		{ "tokenizer.ggml.bos_token_id", NULL,
		  "key tokenizer.ggml.pre is missing, so that it is not known "
		  "how text is cut; give the model's own tokenizer with --tokenizer" },
		{ "tokenizer.ggml.merges", "gpt-2", "key tokenizer.ggml.merges is missing" },
		{ "tokenizer.ggml.tokens", "gpt-2", "key tokenizer.ggml.tokens is missing" },
	};
	struct vocab *v = NULL;

	w.without = cases[_i].without;
	w.pre = cases[_i].pre;
	write_and_open();
	ck_assert(!s->vocab);
	ck_assert_str_eq(s->no_vocab + strlen(path) + 2, cases[_i].why);
	ck_assert_int_lt(vocab_read_gguf(path, &v, why, sizeof(why)), 0);
	ck_assert_str_eq(why, s->no_vocab);
}
END_TEST

/* The vocabularies of other programs, whole: nothing in them may be refused or lost. */
START_TEST(vocabularies_of_others)
{
	static const struct {
		const char *name;
		uint32_t n_tokens, rule;
	} files[] = {
		{ "gpt-2", 50257, VOCAB_RULE_GPT2 },
		{ "starcoder", 49152, VOCAB_RULE_STARCODER },
	};
	const char *shared = getenv("ONEBIT_SHARED");
	char command[1024];
	struct vocab *v = NULL;
	uint8_t *data = malloc(64u << 20);
	size_t len;
	FILE *f;

	snprintf(command, sizeof(command),
		 "xz -dc '%s/tokenizer/ggml-vocab-%s.gguf.xz' 2>/dev/null",
		 shared ? shared : "../shared", files[_i].name);
	f = popen(command, "r");
	ck_assert(data && f);
	len = fread(data, 1, 64u << 20, f);
	if (pclose(f) || !len) {
		printf("skip: vocabulary %s\n", files[_i].name);
		free(data);
		return;
	}
	write_bytes(path, data, len);
	free(data);
	ck_assert_msg(!vocab_read_gguf(path, &v, why, sizeof(why)), "%s", why);
	ck_assert_uint_eq(v->n_tokens, files[_i].n_tokens);
	ck_assert_uint_eq(v->rule, files[_i].rule);
	ck_assert_uint_gt(v->n_merges, 48000);
	vocab_free(v);
	ck_assert_int_eq(open_model(), -ENOTSUP);
}
END_TEST

/* ---- refused --------------------------------------------------------------------------------- */

START_TEST(headers)
{
	static const struct {
		uint32_t version;
		int err;
		const char *why;
	} cases[] = {
		{ 1, -ENOTSUP,
		  "GGUF version 1; versions 2 and 3 are read: convert the model again with a newer "
		  "program" },
		{ 4, -ENOTSUP, "GGUF version 4; versions 2 and 3 are read" },
		{ 0, -ENOTSUP, "GGUF version 0; versions 2 and 3 are read" },
		{ 0x03000000, -ENOTSUP,
		  "a big-endian GGUF; convert it to little-endian with the tool that wrote "
		  "it" },
	};

	w.version = cases[_i].version;
	write_refused(cases[_i].err, cases[_i].why);
}
END_TEST

/* One thing wrong or too much in each, the rest right. */
static const struct {
	const char *arch, *without, *twice, *extra_key, *extra_text, *extra_tensor;
	int err;
	const char *why;
} wrongs[] = {
	{ .arch = "qwen3",
	  .err = -ENOTSUP,
	  .why = "architecture 'qwen3' is not supported; bitnet, bitnet-25, "
		 "bitnet-b1.58 and llama are" },
	{ .without = "general.architecture",
	  .err = -EPROTO,
	  .why = "key general.architecture is missing" },
	{ .without = "bitnet-b1.58.block_count",
	  .err = -EPROTO,
	  .why = "key bitnet-b1.58.block_count is missing" },
	{ .without = "bitnet-b1.58.attention.layer_norm_rms_epsilon",
	  .err = -EPROTO,
	  .why = "key bitnet-b1.58.attention.layer_norm_rms_epsilon is missing" },
	{ .twice = "bitnet-b1.58.block_count",
	  .err = -EPROTO,
	  .why = "key bitnet-b1.58.block_count is there twice; which one holds is not known" },
	{ .twice = "blk.1.attn_k.weight",
	  .err = -EPROTO,
	  .why = "tensor blk.1.attn_k.weight is there twice; which one holds is not known" },
	{ .without = "blk.1.attn_k.weight", .err = -ENOENT, .why = "layer 1's k is missing" },
	{ .without = "output_norm.weight", .err = -ENOENT, .why = "final_norm is missing" },
	{ .without = "blk.1.ffn_sub_norm.weight",
	  .err = -ENOENT,
	  .why = "layer 1's ffn_sub_norm is missing, but "
		 "layer 0's is there; all layers have one or none" },
	{ .extra_tensor = "blk.0.attn_q.bias",
	  .err = -ENOTSUP,
	  .why = "tensor blk.0.attn_q.bias: models with biases are not supported" },
	{ .extra_tensor = "blk.0.ffn_gate_inp.weight",
	  .err = -ENOTSUP,
	  .why = "tensor blk.0.ffn_gate_inp.weight is "
		 "not known to architectures that are supported; without it the model would be "
		 "another one" },
	{ .extra_tensor = "blk.00.attn_q.weight",
	  .err = -ENOTSUP,
	  .why = "tensor blk.00.attn_q.weight is not known "
		 "to architectures that are supported; without it the model would be another one" },
	{ .extra_tensor = "blk.2.attn_norm.weight",
	  .err = -EPROTO,
	  .why = "layer 2's attn_norm is there, but the model says that it has 2 layers" },
	{ .extra_key = "bitnet-b1.58.expert_count",
	  .err = -ENOTSUP,
	  .why = "key bitnet-b1.58.expert_count is 1, which is not supported" },
	{ .extra_key = "bitnet-b1.58.attention.sliding_window",
	  .err = -ENOTSUP,
	  .why = "key bitnet-b1.58.attention.sliding_window is 1, which is not supported" },
	{ .extra_key = "bitnet-b1.58.rope.scaling.type",
	  .extra_text = "yarn",
	  .err = -ENOTSUP,
	  .why = "key bitnet-b1.58.rope.scaling.type is 'yarn'; scaled rotary positions are "
		 "supported as a tensor "
		 "rope_freqs.weight only" },
	{ .extra_key = "bitnet-b1.58.hidden_activation",
	  .extra_text = "gelu",
	  .err = -ENOTSUP,
	  .why = "key bitnet-b1.58.hidden_activation is 'gelu'; relu2 and silu are supported" },
	{ .extra_key = "bitnet-b1.58.attention.key_length",
	  .err = -ENOTSUP,
	  .why = "heads have 1 columns in q and "
		 "k, 1 in v, and 32 of them rotate; all must be the same" },
	{ .extra_key = "bitnet-b1.58.vocab_size", .extra_text = "many", .err = 0, .why = "" },
	{ .extra_key = "general.alignment",
	  .extra_text = "x",
	  .err = -EPROTO,
	  .why = "key general.alignment is string where a whole number belongs" },
	{ .extra_key = "general.type",
	  .extra_text = "adapter",
	  .err = -ENOTSUP,
	  .why = "the file holds no model of "
		 "its own but an adapter, projector or other part (general.type)" },
	{ .extra_key = "bitnet-b1.58.attention.key_length",
	  .extra_text = "long",
	  .err = -EPROTO,
	  .why = "key bitnet-b1.58.attention.key_length is string where a whole number belongs" },
};

START_TEST(one_thing_wrong)
{
	if (wrongs[_i].arch)
		w.arch = wrongs[_i].arch;
	w.without = wrongs[_i].without;
	w.twice = wrongs[_i].twice;
	w.extra_key = wrongs[_i].extra_key;
	w.extra_text = wrongs[_i].extra_text;
	w.extra_tensor = wrongs[_i].extra_tensor;
	write_refused(wrongs[_i].err, wrongs[_i].why);
}
END_TEST

/* A number from 36 on means different things; the size, the scale's place and the codes tell. */
START_TEST(types_that_lie)
{
	uint8_t *data;
	size_t len;

	tiny.layers = 1;
	w.without = "output_norm.weight"; /* the last matrix is the last tensor then */
	switch (_i) {
	case 0:
		w.i2_s_threads = 3;
		write_refused(-EPROTO, "tensor blk.0.attn_k.weight has 2144 bytes where I2_S has "
				       "2080: damaged, or "
				       "garbled by bitnet.cpp's tool, as it does with several "
				       "threads; quantise again with "
				       "one");
		return;
	case 1:
		tiny_fill(&tiny);
		data = write_gguf(&tiny, &w, &len);
		memset(data + len - 32, 0xff, 4);
		break;
	case 2:
		w.linear = WRITE_IQ2_BN;
		w.linear_number = WRITE_I2_S;
		tiny.row_scales = true;
		write_refused(-EPROTO, "tensor blk.0.attn_k.weight has 2304 bytes where I2_S has "
				       "2080: damaged, or "
				       "garbled by bitnet.cpp's tool, as it does with several "
				       "threads; quantise again with "
				       "one");
		return;
	default:
		w.linear = WRITE_F32;
		w.linear_number = WRITE_IQ2_S;
		write_refused(-ENOTSUP, "tensor blk.0.attn_k.weight is IQ2_S: its values are of "
					"magnitude 8, 25 and "
					"43 and never zero, so it cannot hold a ternary tensor: "
					"what was ternary is lost. Get "
					"the model in another type");
		return;
	}
	write_bytes(path, data, len);
	free(data);
	ck_assert_int_eq(open_model(), -EPROTO);
	ck_assert_msg(strstr(why, "tensor blk.0.ffn_down.weight is no I2_S: where its scale would "
				  "be stands"),
		      "%s", why);
}
END_TEST

/* Code 3 is told with its place, when the row is read. */
START_TEST(code_three)
{
	const struct source_tensor *t;
	int8_t codes[512];
	float scale;
	uint8_t *data;
	size_t len;

	tiny.layers = 1;
	tiny_fill(&tiny);
	data = write_gguf(&tiny, &w, &len);
	/* Before output_norm, the tail, and the rows from the 127th on. */
	data[len - 512 - 32 - 64] |= 0xc0;
	write_bytes(path, data, len);
	free(data);
	ck_assert_msg(!open_model(), "%s", why);
	t = source_find(s, OBM_DOWN, 0);
	ck_assert(!s->ops->read_codes(s, t, 126, 1, codes, &scale, why, sizeof(why)));
	ck_assert_int_eq(s->ops->read_codes(s, t, 126, 2, codes, &scale, why, sizeof(why)),
			 -EPROTO);
	ck_assert_str_eq(why + strlen(path) + 2, "tensor blk.0.ffn_down.weight, row 127: a code "
						 "that I2_S never "
						 "has; the file is damaged, or of a program that "
						 "means another type by number 36");
}
END_TEST

/* Floats that are not ternary are refused with the figures that show it. */
START_TEST(floats_that_are_not_ternary)
{
	tiny_fill(&tiny);
	w.linear = WRITE_F16;
	/* Two magnitudes in the same 64 columns of a row. */
	tiny.groups = 1;
	tiny.layer[1].m[TINY_V].groups = 4;
	free(tiny.layer[1].m[TINY_V].scales);
	tiny.layer[1].m[TINY_V].scales = malloc(4 * tiny.layer[1].m[TINY_V].rows * sizeof(float));
	for (uint32_t i = 0; i < 4 * tiny.layer[1].m[TINY_V].rows; i++)
		tiny.layer[1].m[TINY_V].scales[i] = i % 4 == 1 ? 0.5f : 0.25f;
	memset(tiny.layer[1].m[TINY_V].codes, 1, 128);
	write_gguf_file(&tiny, &w, path);
	refused(-EPROTO, "tensor blk.1.attn_v.weight (F16) is not ternary: row 0, column 32 holds "
			 "0.5, and column 0 "
			 "holds 0.25: not one magnitude a row, nor one for each of equal column "
			 "groups of a multiple of 64 "
			 "columns (256 at most)");
}
END_TEST

/* ---- damage ---------------------------------------------------------------------------------- */

static uint8_t *patched(size_t *len, size_t at, uint64_t value, unsigned bytes)
{
	uint8_t *data = write_gguf(&tiny, &w, len);

	for (unsigned i = 0; i < bytes; i++)
		data[at + i] = (uint8_t)(value >> 8 * i);
	write_bytes(path, data, *len);
	return data;
}

/* Counts and lengths that ask for more than there is are held against the file first. */
START_TEST(numbers_that_overflow)
{
	static const uint64_t huge[] = { UINT64_MAX, 1ull << 63, 1ull << 32, 1u << 24 };
	const uint64_t value = huge[_i];
	size_t len;

	tiny_fill(&tiny);
	/* Tensors, keys; the first key's length; the first value's. */
	free(patched(&len, 8, value, 8));
	ck_assert_int_eq(open_model(), -EFBIG);
	free(patched(&len, 16, value, 8));
	ck_assert_int_eq(open_model(), -EFBIG);
	free(patched(&len, 16, 60000, 8));
	ck_assert_int_eq(open_model(), -EPROTO);
	free(patched(&len, 24, value, 8));
	ck_assert_int_eq(open_model(), -EPROTO);
	ck_assert_msg(strstr(why, "the file ends in the name of key 0"), "%s", why);
	free(patched(&len, w.mark[4] + 4, value, 8));
	ck_assert_int_eq(open_model(), -EPROTO);
	ck_assert_msg(strstr(why, "the file ends in the value of key general.architecture"), "%s",
		      why);
	/* The last tensor info ends with its offset; before it type, dimension. */
	free(patched(&len, w.mark[w.n_meta - 1] - 8, value, 8));
	ck_assert_int_eq(open_model(), -EPROTO);
	free(patched(&len, w.mark[w.n_meta - 1] - 20, value << 20, 8));
	ck_assert_int_eq(open_model(), _i == 3 ? -EFBIG : -EPROTO);
	free(patched(&len, w.mark[w.n_meta - 1] - 20, 0, 8));
	ck_assert_int_eq(open_model(), -EPROTO);
	free(patched(&len, w.mark[w.n_meta - 1] - 24, 5, 4));
	ck_assert_int_eq(open_model(), -EPROTO);
	ck_assert_str_eq(why + strlen(path) + 2, "tensor output_norm.weight has 5 dimensions; "
						 "allowed are 1 to 4");
}
END_TEST

START_TEST(places_that_lie)
{
	size_t len, at;

	tiny_fill(&tiny);
	free(patched(&len, 0, 0x46554747, 4));
	at = w.mark[w.n_meta - 1] - 8;
	free(patched(&len, at, 1, 8));
	refused(-EPROTO, "tensor output_norm.weight lies at 1, which is no multiple of the "
			 "alignment 32");
	free(patched(&len, at, 0, 8));
	ck_assert_int_eq(open_model(), -EPROTO);
	ck_assert_msg(strstr(why, "output_norm.weight") && strstr(why, "token_embd.weight") &&
		      strstr(why, "lie in the same place"), "%s", why);
	/* Into the embedding, which has less room then; what it left belongs to nobody. */
	free(patched(&len, at, 64, 8));
	refused(-EPROTO, "tensor blk.1.ffn_down.weight has 8736 bytes where I2_S has 8224: "
			 "damaged, or garbled by "
			 "bitnet.cpp's tool, as it does with several threads; quantise again with "
			 "one");
	w.linear = WRITE_IQ2_BN;
	free(patched(&len, at, 64, 8));
	refused(-EPROTO, "tensor blk.1.ffn_down.weight has 9216 bytes where IQ2_BN (type 135) of "
			 "128 x 256 has 8704: "
			 "the file is damaged, or of a program that gave this number to another "
			 "type");
}
END_TEST

/* Cut at every boundary, and one byte before and behind it: always refused, and said where. */
START_TEST(cut_off)
{
	uint8_t *data;
	size_t len;

	tiny.layers = 1;
	tiny_fill(&tiny);
	data = write_gguf(&tiny, &w, &len);
	for (uint32_t i = 0; i < w.n_marks; i++)
		for (int d = -1; d <= 1; d++) {
			size_t cut = w.mark[i] + (size_t)d;

			write_bytes(path, data, cut);
			ck_assert_msg(open_model() == -EPROTO, "cut at %zu of %zu: %s", cut, len,
				      why);
			ck_assert_msg(strstr(why, "cut off") || strstr(why, "do not fit") ||
				      strstr(why, "no GGUF file"), "cut at %zu: %s", cut, why);
			ck_assert(!s);
		}
	free(data);
}
END_TEST

/* Everything that a converter would ask of it. */
static void use(void)
{
	int8_t *codes = NULL;
	float *floats = NULL;

	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct source_tensor *t = &s->tensors[i];

		codes = realloc(codes, t->cols);
		floats = realloc(floats, (t->cols > 256 ? t->cols : 256) * sizeof(*floats));
		for (uint32_t r = 0; r < t->rows; r++) {
			int err =
				t->form == SOURCE_TERNARY
					? s->ops->read_codes(s, t, r, 1, codes, floats, why,
							     sizeof(why))
					: s->ops->read_floats(s, t, r, 1, floats, why, sizeof(why));

			if (err) {
				ck_assert_int_lt(err, 0);
				ck_assert(*why);
				break;
			}
			for (uint32_t c = 0; c < (t->form == SOURCE_TERNARY ? t->groups : t->cols);
			     c++)
				if (!isfinite(floats[c]))
					ck_abort_msg("tensor %u row %u: %g", i, r,
						     (double)floats[c]);
			for (uint32_t c = 0; c < t->cols && t->form == SOURCE_TERNARY; c++)
				if (codes[c] < -1 || codes[c] > 1)
					ck_abort_msg("tensor %u row %u: %d", i, r, codes[c]);
		}
	}
	free(codes);
	free(floats);
}

/* 5,000 corruptions: no crash, nothing read that is no number, a sentence to every refusal. */
START_TEST(corruptions)
{
	static const uint32_t types[] = { WRITE_I2_S, WRITE_TQ2_0, WRITE_TQ1_0, WRITE_IQ1_BN,
					  WRITE_IQ2_BN };
	uint64_t state = seed + (uint64_t)_i, n = scaled(1000), accepted = 0;
	uint8_t *data, *copy;
	size_t len;

	wide();
	tiny.heads = 2;
	tiny.kv_heads = 1;
	tiny.head_dim = 128;
	tiny.ffn = 256;
	tiny.layers = 1;
	tiny.n_words = 5;
	w.linear = types[_i];
	tiny_fill(&tiny);
	data = write_gguf(&tiny, &w, &len);
	copy = malloc(len * 2);
	for (uint64_t i = 0; i < n; i++) {
		size_t at, m = len, meta = w.data_offset;
		int err;

		memcpy(copy, data, len);
		/* Most of them where the structure is. */
		for (uint64_t k = tiny_random(&state) % 3 + 1; k; k--) {
			uint64_t all = tiny_random(&state) % 4 ? meta : len;

			at = tiny_random(&state) % all;
			switch (tiny_random(&state) % 5) {
			case 0:
				copy[at] ^= (uint8_t)(1u << tiny_random(&state) % 8);
				break;
			case 1:
				copy[at] = (uint8_t)tiny_random(&state);
				break;
			case 2:
				m = at + 1;
				break;
			case 3: {
				size_t from = tiny_random(&state) % len;
				size_t count = tiny_random(&state) % 64;

				if (from + count < len && at + count < len)
					memmove(copy + at, copy + from, count);
				break;
			}
			default:
				if (at + 8 <= len)
					memset(copy + at, tiny_random(&state) % 2 ? 0xff : 0, 8);
			}
		}
		write_bytes(path, copy, m);
		*why = 0;
		err = open_model();
		if (err) {
			ck_assert_msg(err < 0 && *why, "round %" PRIu64, i);
		} else {
			use();
			accepted++;
		}
		s = source_close(s);
	}
	printf("%s: %" PRIu64 " of %" PRIu64 " still a model\n", "corruptions", accepted, n);
	free(copy);
	free(data);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("gguf");
	TCase *t = tcase_create("models");
	SRunner *runner;
	int failed;

	tmp_fixture(t);
	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, linear_types, 0, sizeof(linears) / sizeof(linears[0]));
	tcase_add_loop_test(t, groups_of_blocks, 0, 4);
	tcase_add_test(t, blocks_that_bind_nothing);
	tcase_add_test(t, scales_that_fit_no_group);
	tcase_add_loop_test(t, embeddings, 0, sizeof(embeds) / sizeof(embeds[0]));
	tcase_add_loop_test(t, architectures, 0, sizeof(archs) / sizeof(archs[0]));
	tcase_add_loop_test(t, versions_and_alignments, 0, 10);
	tcase_add_test(t, divided_frequencies);
	tcase_add_loop_test(t, vocabulary, 0, 8);
	tcase_add_loop_test(t, vocabularies_that_are_not_read, 0, 5);
	tcase_add_loop_test(t, vocabularies_of_others, 0, 2);
	tcase_add_loop_test(t, headers, 0, 4);
	tcase_add_loop_test(t, one_thing_wrong, 0, sizeof(wrongs) / sizeof(wrongs[0]));
	tcase_add_loop_test(t, types_that_lie, 0, 4);
	tcase_add_test(t, code_three);
	tcase_add_test(t, floats_that_are_not_ternary);
	tcase_add_loop_test(t, numbers_that_overflow, 0, 4);
	tcase_add_test(t, places_that_lie);
	tcase_add_test(t, cut_off);
	tcase_add_loop_test(t, corruptions, 0, 5);
	suite_add_tcase(suite, t);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? 1 : 0;
}

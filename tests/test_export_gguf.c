/* SPDX-License-Identifier: MIT */
/*
 * Models carried to peers and back: a weight, a scale's last bit or a token that is lost on the way
 * out shows nowhere until two programs are compared. The file is read by our reader, and byte by
 * byte by a small one of the test's own.
 */
#include <check.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "export.h"
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_gguf.h"
#include "source.h"
#include "vocab.h"

static struct tiny tiny;
static char path[512], again[512], why[1024], note[2048];
static uint64_t seed;

/* ---- a model in memory ----------------------------------------------------------------------- */

static struct source mine, *back;
static struct source_tensor tensors[64];
static int8_t *embed_codes;
static float *embed_scales;

static const struct tiny_matrix *matrix_of(const struct source_tensor *t)
{
	return &tiny.layer[t->layer].m[t->role - OBM_Q];
}

static int mine_codes(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		      int8_t *codes, float *scales, char *w, size_t len)
{
	(void)s;
	(void)w;
	(void)len;
	if (t->role == OBM_EMBED) {
		memcpy(codes, embed_codes + (size_t)row0 * t->cols, (size_t)n * t->cols);
		memcpy(scales, embed_scales + row0, n * sizeof(float));
		return 0;
	}
	memcpy(codes, matrix_of(t)->codes + (size_t)row0 * t->cols, (size_t)n * t->cols);
	memcpy(scales, matrix_of(t)->scales + (size_t)row0 * t->groups,
	       (size_t)n * t->groups * sizeof(float));
	return 0;
}

static const float *floats_of(const struct source_tensor *t)
{
	const struct tiny_layer *l = t->layer == OBM_NO_LAYER ? NULL : &tiny.layer[t->layer];

	switch (t->role) {
	case OBM_EMBED:
		return tiny.embed;
	case OBM_HEAD:
		return tiny.head;
	case OBM_FINAL_NORM:
		return tiny.final_norm;
	case OBM_ATTN_NORM:
		return l->attn_norm;
	case OBM_ATTN_SUB_NORM:
		return l->attn_sub_norm;
	case OBM_FFN_NORM:
		return l->ffn_norm;
	default:
		return l->ffn_sub_norm;
	}
}

static int mine_floats(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		       float *floats, char *w, size_t len)
{
	(void)s;
	(void)w;
	(void)len;
	memcpy(floats, floats_of(t) + (size_t)row0 * t->cols, (size_t)n * t->cols * sizeof(float));
	return 0;
}

static const struct source_ops mine_ops = { .read_codes = mine_codes, .read_floats = mine_floats };

static void add(uint32_t role, uint32_t layer, uint32_t rows, uint32_t cols, uint32_t groups,
		enum source_form form)
{
	tensors[mine.n_tensors++] = (struct source_tensor){ .role = role,
							    .layer = layer,
							    .rows = rows,
							    .cols = cols,
							    .groups = groups,
							    .form = form };
}

static struct vocab *byte_vocab(void)
{
	struct vocab *v = vocab_new();

	ck_assert(v);
	v->kind = VOCAB_BYTES;
	v->rule = VOCAB_RULE_STARCODER;
	v->flags = VOCAB_ADD_BOS;
	for (uint32_t i = 0; i < tiny.vocab; i++) {
		/* An id that no text names, in the middle and at the end. */
		if (i == tiny.vocab - 2)
			ck_assert(!vocab_add(v, "", 0, VOCAB_UNUSED, 0));
		else
			ck_assert(!vocab_add(v, tiny.token[i], tiny.token_len[i],
					     i < tiny.vocab - 4 ? VOCAB_NORMAL : VOCAB_SPECIAL, 0));
	}
	for (uint32_t i = 0; i < tiny.n_words; i++)
		ck_assert(!vocab_merge(v, tiny.merge[i].a, tiny.merge[i].b, tiny.merge[i].merged));
	v->bos = tiny.bos;
	v->eos = tiny.eos;
	ck_assert(!vocab_stop(v, tiny.eos) && !vocab_stop(v, tiny.eot) && !vocab_stop(v, tiny.bos));
	strcpy(v->chat, "bitnet");
	return v;
}

/* As SentencePiece has it: specials, bytes, then pieces with scores; two ids are left over. */
static struct vocab *spm_vocab(void)
{
	static const char *const pieces[] = { "a", "b", " ", "\xc3\xa4", "ab", " a", " ab", "bab" };
	struct vocab *v = vocab_new();

	ck_assert(v);
	v->kind = VOCAB_SPM;
	v->flags = VOCAB_DUMMY_PREFIX;
	ck_assert(!vocab_add(v, "<unk>", 5, VOCAB_SPECIAL, 0) &&
		  !vocab_add(v, "<s>", 3, VOCAB_SPECIAL, 0) &&
		  !vocab_add(v, "</s>", 4, VOCAB_SPECIAL, 0));
	for (int b = 0; b < 256; b++)
		ck_assert(!vocab_add(v, &(uint8_t){ (uint8_t)b }, 1, VOCAB_BYTE, 0));
	for (int i = 0; i < 8; i++)
		ck_assert(!vocab_add(v, pieces[i], strlen(pieces[i]), VOCAB_NORMAL,
				     (float)-i / 3.0f));
	v->unk = 0;
	v->bos = 1;
	v->eos = 2;
	ck_assert(!vocab_stop(v, 2) && !vocab_derive_by_score(v, why, sizeof(why)));
	return v;
}

/* tiny has its numbers; the rest follows from them. */
static void make(enum source_form embed, uint32_t activation, bool spm)
{
	uint64_t state = seed ^ 77;

	tiny_fill(&tiny);
	mine = (struct source){ .ops = &mine_ops,
				.format = "memory",
				.rope_theta = (double)tiny.theta,
				.qk = SOURCE_QK_SPLIT,
				.info = strdup("name: my model\nlicence: mit\nother: thing\n"),
				.licence = strdup("Do as you like.\n"),
				.tensors = tensors,
				.file_bytes = 1000000 };
	mine.arch = (struct obm_arch){ .layers = tiny.layers,
				       .hidden = tiny.hidden,
				       .ffn = tiny.ffn,
				       .heads = tiny.heads,
				       .kv_heads = tiny.kv_heads,
				       .head_dim = tiny.head_dim,
				       .vocab = tiny.vocab,
				       .context = tiny.context,
				       .activation = activation,
				       .flags = OBM_FLAG_A8_IMPOSED,
				       .rms_eps = tiny.eps,
				       .rope_theta = tiny.theta,
				       .name = "my model",
				       .family = "bitnet-b1.58" };
	mine.vocab = spm ? spm_vocab() : byte_vocab();
	add(OBM_EMBED, OBM_NO_LAYER, tiny.vocab, tiny.hidden, embed == SOURCE_INT8, embed);
	if (tiny.head)
		add(OBM_HEAD, OBM_NO_LAYER, tiny.vocab, tiny.hidden, 0, SOURCE_F16);
	add(OBM_FINAL_NORM, OBM_NO_LAYER, 1, tiny.hidden, 0, SOURCE_BF16);
	for (uint32_t l = 0; l < tiny.layers; l++) {
		add(OBM_ATTN_NORM, l, 1, tiny.hidden, 0, SOURCE_F32);
		add(OBM_FFN_NORM, l, 1, tiny.hidden, 0, SOURCE_F16);
		if (tiny.sub_norms) {
			add(OBM_ATTN_SUB_NORM, l, 1, tiny.heads * tiny.head_dim, 0, SOURCE_F32);
			add(OBM_FFN_SUB_NORM, l, 1, tiny.ffn, 0, SOURCE_F32);
		}
		for (uint32_t m = 0; m < TINY_MATRICES; m++)
			add(OBM_Q + m, l, tiny.layer[l].m[m].rows, tiny.layer[l].m[m].cols,
			    tiny.layer[l].m[m].groups, SOURCE_TERNARY);
	}
	embed_codes = malloc((size_t)tiny.vocab * tiny.hidden);
	embed_scales = malloc(tiny.vocab * sizeof(*embed_scales));
	for (size_t i = 0; i < (size_t)tiny.vocab * tiny.hidden; i++)
		embed_codes[i] = (int8_t)((int)(tiny_random(&state) % 255) - 127);
	for (uint32_t i = 0; i < tiny.vocab; i++)
		embed_scales[i] = (float)(1 + tiny_random(&state) % 99999) / 1e6f;
	ck_assert_msg(!source_check(&mine, why, sizeof(why)), "%s", why);
}

static void set_up(void)
{
	const char *text = getenv("ONEBIT_SEED");

	seed = text ? strtoull(text, NULL, 0) : 0x65787067;
	fprintf(stderr, "seed: ONEBIT_SEED=%#" PRIx64 "\n", seed);
	snprintf(path, sizeof(path), "%s/out.gguf", getenv("TMPDIR"));
	snprintf(again, sizeof(again), "%s/again.gguf", getenv("TMPDIR"));
	/* The folder is the test case's; each test begins with an empty one. */
	unlink(path);
	unlink(again);
	tiny_default(&tiny, seed);
	tiny.row_scales = true;
	tiny.half_scales = false;
	back = NULL;
	*why = *note = 0;
}

static void tear_down(void)
{
	source_close(back);
	vocab_free(mine.vocab);
	free(mine.info);
	free(mine.licence);
	free(embed_codes);
	free(embed_scales);
	tiny_free(&tiny);
}

static void export_and_open(void)
{
	int err = export_gguf(&mine, path, false, NULL, note, sizeof(note), why, sizeof(why));

	ck_assert_msg(!err, "%d: %s", err, why);
	err = source_open_gguf(path, NULL, &back, why, sizeof(why));
	ck_assert_msg(!err && !source_check(back, why, sizeof(why)), "%d: %s", err, why);
}

/* ---- the same model? ------------------------------------------------------------------------- */

static void same_vocab(const struct vocab *a, const struct vocab *b)
{
	ck_assert_msg(b != NULL, "%s", back->no_vocab);
	ck_assert(a->kind == b->kind && a->rule == b->rule && a->flags == b->flags &&
		  a->bos == b->bos && a->eos == b->eos && a->unk == b->unk &&
		  a->n_stops == b->n_stops);
	ck_assert_mem_eq(a->stops, b->stops, a->n_stops * sizeof(a->stops[0]));
	ck_assert_str_eq(a->chat, b->chat);
	/* Fillers up to the model's size are all that may be added. */
	for (uint32_t i = 0; i < b->n_tokens; i++) {
		if (i >= a->n_tokens) {
			ck_assert_uint_eq(b->tokens[i].kind, VOCAB_UNUSED);
			continue;
		}
		ck_assert(a->tokens[i].kind == b->tokens[i].kind &&
			  a->tokens[i].len == b->tokens[i].len);
		ck_assert(a->tokens[i].score == b->tokens[i].score);
		ck_assert(!memcmp(a->tokens[i].text, b->tokens[i].text, a->tokens[i].len));
	}
	ck_assert_uint_eq(a->n_merges, b->n_merges);
	ck_assert_mem_eq(a->merges, b->merges, a->n_merges * sizeof(a->merges[0]));
}

/* Where row r of the file is in the model. */
static uint32_t row_of(const struct source_tensor *t, uint32_t r)
{
	if (back->qk != SOURCE_QK_PAIRS || (t->role != OBM_Q && t->role != OBM_K))
		return r;
	return r - r % tiny.head_dim + r % tiny.head_dim / 2 + r % 2 * (tiny.head_dim / 2);
}

static void same_tensor(const struct source_tensor *a)
{
	const struct source_tensor *b = source_find(back, a->role, a->layer);
	const bool has_codes = a->form == SOURCE_TERNARY || a->form == SOURCE_INT8;
	int8_t *x = malloc(a->cols), *y = malloc(a->cols);
	float *f = malloc(a->cols * sizeof(float)), *g = malloc(a->cols * sizeof(float));

	ck_assert(b && a->rows == b->rows && a->cols == b->cols);
	ck_assert(!has_codes || (a->form == b->form && a->groups == b->groups));
	for (uint32_t r = 0; r < a->rows; r++) {
		if (has_codes) {
			mine_codes(&mine, a, row_of(a, r), 1, x, f, NULL, 0);
			ck_assert_msg(!back->ops->read_codes(back, b, r, 1, y, g, why, sizeof(why)),
				      "%s", why);
			ck_assert_mem_eq(x, y, a->cols);
			ck_assert_mem_eq(f, g, a->groups * sizeof(float));
			if (a->form == SOURCE_INT8) {
				ck_assert(!back->ops->read_floats(back, b, r, 1, g, why,
								  sizeof(why)));
				for (uint32_t i = 0; i < a->cols; i++)
					ck_assert(g[i] == (float)x[i] * f[0]);
			}
		} else {
			mine_floats(&mine, a, r, 1, f, NULL, 0);
			ck_assert_msg(!back->ops->read_floats(back, b, r, 1, g, why, sizeof(why)),
				      "%s", why);
			ck_assert_mem_eq(f, g, a->cols * sizeof(float));
		}
	}
	free(x);
	free(y);
	free(f);
	free(g);
}

static void same_model(void)
{
	const struct obm_arch *a = &mine.arch, *b = &back->arch;

	ck_assert(a->layers == b->layers && a->hidden == b->hidden && a->ffn == b->ffn &&
		  a->heads == b->heads && a->kv_heads == b->kv_heads &&
		  a->head_dim == b->head_dim && a->vocab == b->vocab && a->context == b->context &&
		  a->activation == b->activation && a->flags == b->flags &&
		  a->rms_eps == b->rms_eps && a->n_parameters == b->n_parameters);
	ck_assert(mine.rope_theta == back->rope_theta && (mine.rope || !back->rope));
	ck_assert_str_eq(a->name, b->name);
	ck_assert_str_eq(a->family, b->family);
	ck_assert_str_eq(mine.info, back->info);
	ck_assert_str_eq(mine.licence, back->licence);
	ck_assert_uint_eq(mine.n_tensors, back->n_tensors);
	for (uint32_t i = 0; i < mine.n_tensors; i++)
		same_tensor(&mine.tensors[i]);
	same_vocab(mine.vocab, back->vocab);
}

static uint8_t *read_all(const char *name, size_t *len)
{
	uint8_t *data = malloc(16u << 20);
	FILE *f = fopen(name, "rb");

	ck_assert(data && f);
	*len = fread(data, 1, 16u << 20, f);
	fclose(f);
	return data;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static const struct {
	uint32_t hidden, ffn, head_dim, groups;
	enum source_form embed;
	uint32_t activation;
	bool sub_norms, tied, spm;
	const char *type; /* of matrices */
} models[] = {
	{ 256, 512, 64, 1, SOURCE_INT8, OBM_ACT_RELU2, true, true, false, "TQ2_0" },
	{ 512, 1024, 128, 2, SOURCE_F16, OBM_ACT_SILU, true, true, false, "TQ2_0" },
	{ 128, 192, 32, 1, SOURCE_BF16, OBM_ACT_RELU2, true, true, false, "Q8_0" },
	{ 128, 256, 32, 2, SOURCE_F32, OBM_ACT_SILU, false, false, false, "Q8_0" },
	{ 256, 512, 64, 1, SOURCE_INT8, OBM_ACT_SILU, false, true, true, "TQ2_0" },
	{ 256, 512, 64, 1, SOURCE_F16, OBM_ACT_RELU2, false, false, true, "TQ2_0" },
};

static void make_model(int i)
{
	tiny.hidden = models[i].hidden;
	tiny.ffn = models[i].ffn;
	tiny.head_dim = models[i].head_dim;
	tiny.groups = models[i].groups;
	tiny.sub_norms = models[i].sub_norms;
	tiny.tied = models[i].tied;
	tiny.seed += (uint64_t)i;
	make(models[i].embed, models[i].activation, models[i].spm);
}

/* A bit of it that does not come back; and a second export that differs from the first. */
START_TEST(there_and_back)
{
	size_t len, len_again;
	uint8_t *data, *data_again;

	make_model(_i);
	export_and_open();
	ck_assert_str_eq(source_find(back, OBM_DOWN, 0)->stored, models[_i].type);
	ck_assert_int_eq(back->qk, models[_i].sub_norms ? SOURCE_QK_SPLIT : SOURCE_QK_PAIRS);
	same_model();
	ck_assert_msg(!export_gguf(back, again, false, NULL, note, sizeof(note), why, sizeof(why)),
		      "%s", why);
	data = read_all(path, &len);
	data_again = read_all(again, &len_again);
	ck_assert_uint_eq(len, len_again);
	ck_assert(!memcmp(data, data_again, len));
	free(data);
	free(data_again);
}
END_TEST

/* A reader of the test's own: what a peer would find, without knowing our keys. */
static uint64_t get(const uint8_t **p, unsigned bytes)
{
	uint64_t v = 0;

	for (unsigned i = 0; i < bytes; i++)
		v |= (uint64_t)(*p)[i] << 8 * i;
	*p += bytes;
	return v;
}

static void skip_value(const uint8_t **p, uint64_t type)
{
	static const uint8_t bytes[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
	uint64_t n;

	ck_assert(type < 13);
	if (type == 8) {
		n = get(p, 8);
		*p += n;
	} else if (type == 9) {
		type = get(p, 4);
		for (n = get(p, 8); n; n--)
			skip_value(p, type);
	} else {
		*p += bytes[type];
	}
}

START_TEST(as_a_peer_sees_it)
{
	const struct tiny_matrix *m;
	uint64_t n_tensors, n_keys, at = 0, dims[2] = { 0 }, type = 0;
	size_t len;
	uint8_t *data;
	const uint8_t *p;
	int found = 0;

	make_model(0);
	export_and_open();
	m = &tiny.layer[1].m[TINY_UP];
	data = read_all(path, &len);
	p = data;
	ck_assert(!memcmp(p, "GGUF\3\0\0\0", 8));
	p += 8;
	n_tensors = get(&p, 8);
	n_keys = get(&p, 8);
	ck_assert_uint_eq(n_tensors, mine.n_tensors);
	for (; n_keys; n_keys--) {
		uint64_t n = get(&p, 8);
		const char *key = (const char *)p;

		p += n;
		type = get(&p, 4);
		if (n == 20 && !memcmp(key, "general.architecture", n))
			found += type == 8 && p[0] == 6 && !memcmp(p + 8, "bitnet", 6);
		if (n == 24 && !memcmp(key, "bitnet.hidden_activation", n))
			found += type == 8 && p[0] == 5 && !memcmp(p + 8, "relu2", 5);
		if (n == 18 && !memcmp(key, "bitnet.block_count", n))
			found += type == 4 && p[0] == tiny.layers;
		if (n == 20 && !memcmp(key, "tokenizer.ggml.model", n))
			found += !memcmp(p + 8, "gpt2", 4);
		if (n == 18 && !memcmp(key, "tokenizer.ggml.pre", n))
			found += !memcmp(p + 8, "starcoder", 9);
		skip_value(&p, type);
	}
	ck_assert_int_eq(found, 5);
	for (; n_tensors; n_tensors--) {
		uint64_t n = get(&p, 8), n_dims, offset;
		const char *name = (const char *)p;
		bool wanted = n == 19 && !memcmp(name, "blk.1.ffn_up.weight", n);

		p += n;
		n_dims = get(&p, 4);
		ck_assert(n_dims == 1 || n_dims == 2);
		for (uint64_t d = 0; d < n_dims; d++)
			dims[d] = get(&p, 8);
		type = get(&p, 4);
		offset = get(&p, 8);
		ck_assert_uint_eq(offset % 32, 0);
		if (!wanted)
			continue;
		ck_assert(type == 35 && dims[0] == m->cols && dims[1] == m->rows);
		at = offset;
		found++;
	}
	ck_assert_int_eq(found, 6);
	p = data + ((size_t)(p - data) + 31) / 32 * 32 + at;
	for (uint32_t r = 0; r < m->rows; r++) {
		uint8_t want[66];
		float one = 1, scale;
		uint32_t bits;

		/* Codes as the other hand packs them; the scale, rounded, behind. */
		write_gguf_row(WRITE_TQ2_0, m->codes + (size_t)r * 256, &one, 256, 1, want);
		ck_assert_mem_eq(p, want, 64);
		bits = (uint32_t)(p[64] | p[65] << 8);
		scale = ldexpf((float)(1024 + (bits & 1023)), (int)(bits >> 10) - 25);
		ck_assert_float_le(fabsf(scale / m->scales[r] - 1), 0x1p-11f);
		p += 66;
	}
	free(data);
}
END_TEST

/* Without our keys the scales are the rounded ones, and the note has said by how much. */
START_TEST(without_our_keys)
{
	double worst = 0, told;
	uint8_t *data, *p;
	size_t len;

	make_model(0);
	mine.tensors[0].form = SOURCE_F16;
	mine.tensors[0].groups = 0;
	export_and_open();
	ck_assert_msg(strstr(note, "relative error of at most ") != NULL, "%s", note);
	told = strtod(strstr(note, "at most ") + 8, NULL);
	source_close(back);
	back = NULL;
	data = read_all(path, &len);
	for (p = data; (p = memmem(p, len - (size_t)(p - data), "onebit.scales", 13));)
		memcpy(p, "nobody", 6);
	write_bytes(path, data, len);
	free(data);
	ck_assert_msg(!source_open_gguf(path, NULL, &back, why, sizeof(why)), "%s", why);
	for (uint32_t m = 0; m < TINY_MATRICES; m++) {
		const struct tiny_matrix *a = &tiny.layer[0].m[m];
		const struct source_tensor *t = source_find(back, OBM_Q + m, 0);
		int8_t codes[512];
		float scale;

		for (uint32_t r = 0; r < a->rows; r++) {
			ck_assert(!back->ops->read_codes(back, t, r, 1, codes, &scale, why,
							 sizeof(why)));
			ck_assert_mem_eq(codes, a->codes + (size_t)r * a->cols, a->cols);
			worst = fmax(worst, fabs((double)scale / (double)a->scales[r] - 1));
		}
	}
	ck_assert(worst > 0 && worst <= told * 1.05 && told < 0x1p-11);
}
END_TEST

static void make_neox(const char *text)
{
	struct vocab_token *t;

	make_model(0);
	mine.vocab->rule = VOCAB_RULE_GPT2;
	mine.vocab->flags = VOCAB_NFC;
	t = &mine.vocab->tokens[tiny.vocab - 2];
	*t = (struct vocab_token){ (const uint8_t *)text, (uint32_t)strlen(text), VOCAB_ADDED, 0 };
}

/* GPT-NeoX's tokenizer, for which the format has a name; without our keys as well. */
START_TEST(texts_in_nfc)
{
	uint8_t *data, *p;
	size_t len;

	make_neox("   \xc3\xa9");
	export_and_open();
	same_model();
	ck_assert_msg(strstr(note, "will not bring texts into NFC") != NULL, "%s", note);
	source_close(back);
	back = NULL;
	data = read_all(path, &len);
	for (p = data; (p = memmem(p, len - (size_t)(p - data), "onebit.", 7));)
		memcpy(p, "nobody", 6);
	write_bytes(path, data, len);
	free(data);
	ck_assert_msg(!source_open_gguf(path, NULL, &back, why, sizeof(why)), "%s", why);
	ck_assert_msg(back->vocab != NULL, "%s", back->no_vocab);
	ck_assert_uint_eq(back->vocab->rule, VOCAB_RULE_GPT2);
	ck_assert_uint_eq(back->vocab->flags, VOCAB_NFC);
	ck_assert_uint_eq(back->vocab->tokens[tiny.vocab - 2].kind, VOCAB_ADDED);
}
END_TEST

/* A type that says both would be read as the other one. */
START_TEST(markup_in_text)
{
	make_neox("<tag>");
	ck_assert_int_eq(export_gguf(&mine, path, false, NULL, note, sizeof(note), why, sizeof(why)),
			 -ENOTSUP);
	ck_assert_msg(strstr(why, "'<tag>', is taken whole from text") != NULL, "%s", why);
	ck_assert_int_eq(access(path, F_OK), -1);
}
END_TEST

/* Weights that another program has changed are not read with our older scales. */
START_TEST(others_weights_under_our_scales)
{
	const struct source_tensor *t;
	int8_t codes[512];
	float scale;
	uint8_t *data, want[66];
	size_t len;
	uint8_t *p;

	make_model(0);
	export_and_open();
	write_gguf_row(WRITE_TQ2_0, tiny.layer[0].m[TINY_Q].codes + 7 * 256, &(float){ 1 }, 256, 1,
		       want);
	source_close(back);
	back = NULL;
	data = read_all(path, &len);
	p = memmem(data, len, want, 64);
	ck_assert(p);
	p[64] ^= 1;
	write_bytes(path, data, len);
	free(data);
	ck_assert_msg(!source_open_gguf(path, NULL, &back, why, sizeof(why)), "%s", why);
	t = source_find(back, OBM_Q, 0);
	ck_assert(!back->ops->read_codes(back, t, 6, 1, codes, &scale, why, sizeof(why)));
	ck_assert_int_eq(back->ops->read_codes(back, t, 7, 1, codes, &scale, why, sizeof(why)),
			 -EPROTO);
	ck_assert_str_eq(why + strlen(path) + 2, "tensor blk.0.attn_q.weight, row 7, column 0: the "
						 "weights are not "
						 "those that the scales in the metadata "
						 "(onebit.scales....) were written for; remove "
						 "those "
						 "keys if another program changed the weights");
}
END_TEST

/* Frequencies of its own come back bit for bit. */
START_TEST(own_frequencies)
{
	double f[32];

	for (int i = 0; i < 32; i++)
		f[i] = 1.0 / (1 + i * i);
	tiny.hidden = 256;
	tiny.ffn = 512;
	tiny.head_dim = 64;
	make(SOURCE_F16, OBM_ACT_RELU2, false);
	mine.rope = f;
	export_and_open();
	ck_assert(back->rope);
	ck_assert_mem_eq(back->rope, f, sizeof(f));
	ck_assert(strstr(note, "rotary frequencies of its own"));
	same_model();
}
END_TEST

/* What cannot be carried is refused, and leaves no file. */
START_TEST(refused)
{
	static const struct {
		float scale;
		int err;
		const char *why;
	} cases[] = {
		{ 1e6f, -ERANGE,
		  "blk.1.ffn_up.weight, row 5: a scale of 1e+06 does not fit into TQ2_0's "
		  "binary16" },
		{ 1e-9f, -ERANGE,
		  "blk.1.ffn_up.weight, row 5: a scale of 1e-09 does not fit into TQ2_0's "
		  "binary16" },
		{ 0, -EEXIST, NULL },
		{ 0, -ENOENT, "a GGUF file has its vocabulary inside, and there is none: lost" },
		{ 0, -ENOTSUP, NULL },
	};
	struct vocab *v;
	int err;

	make_model(0);
	v = mine.vocab;
	if (cases[_i].scale)
		tiny.layer[1].m[TINY_UP].scales[5] = cases[_i].scale;
	if (cases[_i].err == -EEXIST)
		write_bytes(path, "x", 1);
	if (cases[_i].err == -ENOENT) {
		mine.vocab = NULL;
		strcpy(mine.no_vocab, "lost");
	}
	if (cases[_i].err == -ENOTSUP)
		mine.qk = SOURCE_QK_UNKNOWN;
	err = export_gguf(&mine, path, false, NULL, note, sizeof(note), why, sizeof(why));
	mine.vocab = v;
	ck_assert_msg(err == cases[_i].err, "%d: %s", err, why);
	if (cases[_i].why)
		ck_assert_str_eq(why, cases[_i].why);
	ck_assert_int_eq(access(path, F_OK), err == -EEXIST ? 0 : -1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("export_gguf");
	TCase *t = tcase_create("there and back");
	SRunner *runner;
	int failed;

	tmp_fixture(t);
	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_set_timeout(t, 60);
	tcase_add_loop_test(t, there_and_back, 0, sizeof(models) / sizeof(models[0]));
	tcase_add_test(t, as_a_peer_sees_it);
	tcase_add_test(t, texts_in_nfc);
	tcase_add_test(t, markup_in_text);
	tcase_add_test(t, without_our_keys);
	tcase_add_test(t, others_weights_under_our_scales);
	tcase_add_test(t, own_frequencies);
	tcase_add_loop_test(t, refused, 0, 5);
	suite_add_tcase(suite, t);
	runner = srunner_create(suite);
	srunner_run_all(runner, CK_ENV);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed ? 1 : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * A random model. Ternary codes are uniform, and a matrix has one scale, by which its outputs have
 * about the size of its inputs; so nothing grows from layer to layer but the sum that each adds to,
 * and no value leaves its range. Norms are near 1.
 *
 * Rows of the embedding are bell-shaped int8 codes. The head is the embedding, so the token that was
 * read last scores high by as much of it as is left in the sum after the last layer. Its size
 * against what the layers add therefore sets how far the best logit stands out: with rows of size 1
 * by some two deviations more than the largest of the others, which is what trained models show;
 * with tiny ones not at all.
 *
 * The vocabulary is byte-level: the bytes, then every string of two small letters, of three, of four
 * as far as there is room, each merged from the one that is shorter by its last letter, then special
 * tokens.
 */
#include "source_random.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"

enum { SPECIALS = 256, LETTERS = 26 };

static const struct shape {
	const char *name, *title;
	uint32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context;
	double theta;
} shapes[] = {
	{ "2b", "random weights, shape of BitNet b1.58 2B-4T", 30, 2560, 6912, 20, 5, 128, 128256,
	  4096, 500000 },
	{ "small", "random weights, small", 4, 256, 704, 4, 2, 64, 2048, 1024, 10000 },
};

enum { SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

struct random_source {
	struct source s;
	uint64_t seed;
	float embed_size; /* of a row's elements, their deviation */
};

/* ---- numbers --------------------------------------------------------------------------------- */

/* splitmix64: each state gives another number, so that any row can be begun anywhere. */
#define STEP 0x9e3779b97f4a7c15u

static uint64_t next(uint64_t *state)
{
	uint64_t z = *state += STEP;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

static uint64_t row_state(const struct random_source *r, const struct source_tensor *t,
			  uint32_t row)
{
	uint64_t state = r->seed ^ (uint64_t)(t->layer + 1) << 40 ^ (uint64_t)t->role << 32 ^ row;

	return next(&state);
}

/* Twenty digits of base 3 from a number's upper end; what they are uneven by is below 2^-32. */
static void ternary_row(uint64_t state, uint32_t cols, int8_t *codes)
{
	for (uint32_t c = 0; c < cols;) {
		uint64_t x = next(&state);

		for (int k = 0; k < 20 && c < cols; k++) {
			unsigned __int128 p = (unsigned __int128)x * 3;

			codes[c++] = (int8_t)((int)(p >> 64) - 1);
			x = (uint64_t)p;
		}
	}
}

/* Sums of four numbers of six bits, around 0: from -126 to 126, with this deviation. */
#define BELL_DEVIATION 36.95f

static void bell_row(uint64_t state, uint32_t cols, int8_t *codes)
{
	for (uint32_t c = 0; c < cols;) {
		uint64_t x = next(&state);

		for (int k = 0; k < 2 && c < cols; k++, x >>= 32)
			codes[c++] = (int8_t)((int)(x & 63) + (int)(x >> 6 & 63) +
					      (int)(x >> 12 & 63) + (int)(x >> 18 & 63) - 126);
	}
}

/* ---- reading --------------------------------------------------------------------------------- */

static struct random_source *of(struct source *s)
{
	return (struct random_source *)s; /* its first member */
}

/* By which sums of cols codes, two of three not 0, times numbers of size 1 have size 1. */
static float ternary_scale(uint32_t cols)
{
	float x = 1;

	/* Newton, so that no library's square root decides what is written. */
	for (int i = 0; i < 60; i++)
		x = 0.5f * (x + (float)cols * 2 / 3 / x);
	return 1 / x;
}

static int read_codes(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		      int8_t *codes, float *scales, char *why, size_t why_len)
{
	struct random_source *r = of(s);
	float scale = t->form == SOURCE_INT8 ? r->embed_size / BELL_DEVIATION :
					       ternary_scale(t->cols);

	(void)why;
	(void)why_len;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t state = row_state(r, t, row0 + i);

		if (t->form == SOURCE_INT8)
			bell_row(state, t->cols, codes + (size_t)i * t->cols);
		else
			ternary_row(state, t->cols, codes + (size_t)i * t->cols);
		if (scales)
			scales[i] = scale;
	}
	return 0;
}

static int read_floats(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		       float *floats, char *why, size_t why_len)
{
	struct random_source *r = of(s);

	(void)why;
	(void)why_len;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t state = row_state(r, t, row0 + i);
		float *row = floats + (size_t)i * t->cols;

		if (t->form == SOURCE_F32) { /* norms, 0.9 to 1.1 */
			for (uint32_t c = 0; c < t->cols; c++)
				row[c] = 0.9f + 0.2f * (float)(next(&state) >> 40) / 0x1p24f;
			continue;
		}
		for (uint32_t c = 0; c < t->cols; c += 2) {
			int8_t two[2];

			bell_row(state + c / 2 * STEP, 2, two);
			for (uint32_t k = 0; k < 2 && c + k < t->cols; k++)
				row[c + k] = (float)two[k] * (r->embed_size / BELL_DEVIATION);
		}
	}
	return 0;
}

static void done(struct source *s, const struct source_tensor *t)
{
	(void)s;
	(void)t;
}

static void close_random(struct source *s)
{
	free(of(s));
}

static const struct source_ops ops = {
	.read_codes = read_codes, .read_floats = read_floats, .done = done, .close = close_random,
};

/* ---- what it has ----------------------------------------------------------------------------- */

static void add(struct source *s, uint32_t role, uint32_t layer, uint32_t rows, uint32_t cols)
{
	bool norm = role == OBM_FINAL_NORM || (role >= OBM_ATTN_NORM && role <= OBM_FFN_SUB_NORM);

	s->tensors[s->n_tensors++] = (struct source_tensor){
		.role = role,
		.layer = layer,
		.rows = rows,
		.cols = cols,
		.groups = !norm,
		.form = norm		  ? SOURCE_F32 :
			role == OBM_EMBED ? SOURCE_INT8 :
					    SOURCE_TERNARY,
		.stored = "random",
	};
}

static int add_tensors(struct source *s)
{
	const struct obm_arch *a = &s->arch;
	const uint32_t q = a->heads * a->head_dim, kv = a->kv_heads * a->head_dim;

	s->tensors = calloc(2 + 11 * a->layers, sizeof(*s->tensors));
	if (!s->tensors)
		return -ENOMEM;
	add(s, OBM_EMBED, OBM_NO_LAYER, a->vocab, a->hidden);
	add(s, OBM_FINAL_NORM, OBM_NO_LAYER, 1, a->hidden);
	for (uint32_t i = 0; i < a->layers; i++) {
		add(s, OBM_ATTN_NORM, i, 1, a->hidden);
		add(s, OBM_ATTN_SUB_NORM, i, 1, q);
		add(s, OBM_FFN_NORM, i, 1, a->hidden);
		add(s, OBM_FFN_SUB_NORM, i, 1, a->ffn);
		add(s, OBM_Q, i, q, a->hidden);
		add(s, OBM_K, i, kv, a->hidden);
		add(s, OBM_V, i, kv, a->hidden);
		add(s, OBM_O, i, a->hidden, q);
		add(s, OBM_GATE, i, a->ffn, a->hidden);
		add(s, OBM_UP, i, a->ffn, a->hidden);
		add(s, OBM_DOWN, i, a->hidden, a->ffn);
	}
	return 0;
}

/* Strings of letters, shortest first: number n is number (n - 26) / 26 and one more letter. */
static int add_words(struct vocab *v, uint32_t n_words)
{
	int err = 0;

	for (uint32_t n = LETTERS; n < LETTERS + n_words && !err; n++) {
		uint32_t shorter = (n - LETTERS) / LETTERS, last = n % LETTERS;
		uint32_t id = shorter < LETTERS ? 'a' + shorter : 256 + shorter - LETTERS;
		uint8_t text[16];
		uint32_t len = v->tokens[id].len;

		memcpy(text, v->tokens[id].text, len);
		text[len] = (uint8_t)('a' + last);
		err = vocab_add(v, text, len + 1, VOCAB_NORMAL, 0);
		if (!err)
			err = vocab_merge(v, id, 'a' + last, 256 + n - LETTERS);
	}
	return err;
}

static int add_vocab(struct source *s)
{
	struct vocab *v = s->vocab = vocab_new();
	char text[32];
	int err = v ? 0 : -ENOMEM;

	if (err)
		return err;
	v->kind = VOCAB_BYTES;
	v->rule = VOCAB_RULE_LLAMA3;
	v->flags = VOCAB_ADD_BOS;
	for (unsigned b = 0; b < 256 && !err; b++)
		err = vocab_add(v, &(uint8_t){ (uint8_t)b }, 1, VOCAB_NORMAL, 0);
	if (!err)
		err = add_words(v, s->arch.vocab - 256 - SPECIALS);
	v->bos = v->n_tokens;
	v->eos = v->n_tokens + 1;
	for (unsigned i = 0; i < SPECIALS && !err; i++) {
		snprintf(text, sizeof(text), "<|special_%u|>", i);
		err = vocab_add(v, text, strlen(text), VOCAB_SPECIAL, 0);
	}
	return err ? err : vocab_stop(v, v->eos);
}

static void describe(struct random_source *r, const struct shape *h)
{
	struct source *s = &r->s;

	s->ops = &ops;
	s->format = "random";
	s->rope_theta = h->theta;
	s->qk = SOURCE_QK_SPLIT;
	s->arch = (struct obm_arch){
		.layers = h->layers, .hidden = h->hidden, .ffn = h->ffn, .heads = h->heads,
		.kv_heads = h->kv_heads, .head_dim = h->head_dim, .vocab = h->vocab,
		.context = h->context, .activation = OBM_ACT_RELU2, .rms_eps = 1e-5f,
		.rope_theta = (float)h->theta, .family = "bitnet-b1.58",
	};
	snprintf(s->arch.name, sizeof(s->arch.name), "%s", h->title);
	/* For a progress bar: about what an .obm of it has. */
	s->file_bytes = (uint64_t)h->vocab * h->hidden +
			(uint64_t)h->layers * h->hidden * (3 * h->ffn + 2 * h->hidden) / 4;
}

int source_open_random(const struct source_random_options *o, struct source **out, char *why,
		       size_t why_len)
{
	struct random_source *r;
	int err = 0;
	size_t i = 0;

	while (i < SHAPES && strcmp(shapes[i].name, o->shape))
		i++;
	if (i == SHAPES)
		return fail(why, why_len, -EINVAL, "there is no shape '%s'; there is 2b and small",
			    o->shape);
	r = calloc(1, sizeof(*r));
	if (!r)
		return fail(why, why_len, -ENOMEM, "no memory for a random model");
	describe(r, &shapes[i]);
	r->seed = o->seed;
	r->embed_size = o->flat ? 0.01f : 1;
	err = add_tensors(&r->s);
	if (!err)
		err = add_vocab(&r->s);
	if (!err && asprintf(&r->s.info, "origin: random weights, seed %llu\n",
			     (unsigned long long)o->seed) < 0) {
		r->s.info = NULL;
		err = -ENOMEM;
	}
	if (err) {
		source_close(&r->s);
		return fail(why, why_len, err, "no memory for a random model's vocabulary");
	}
	*out = &r->s;
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * A model as .h1b, version 2 or 4, and its vocabulary as .htok in the legacy layout, which is what the peers'
 * readers of these versions expect.
 *
 * The format holds one architecture: what differs from it has no place in the file and would be read as
 * BitNet b1.58 without anybody noticing, so it is refused by name. The embedding becomes binary32,
 * whatever it was. Six of the nine norm slots of a layer are filler: they repeat what the writers of
 * this format have always put there.
 *
 * The source is as served: q and k in split-half order, linear matrices ternary (served.h).
 */
#include "export.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "h1b.h"
#include "mapped.h"
#include "output.h"
#include "rope.h"

#define BATCH_BYTES  (1u << 20)
#define FORGET_BYTES (32u << 20)

struct job {
	struct source *s;
	struct h1b_header header;
	struct h1b_layout layout;
	struct output *out;
	struct progress *progress;
	void *rows;	 /* of a batch, as the source gives them */
	uint8_t *packed; /* the same, as they are written */
	float *scales;	 /* of a matrix */
	char *why;
	size_t why_len;
};

/* ---- what the format can hold ---------------------------------------------------------------- */

static int check_rope(const struct source *s, char *why, size_t why_len)
{
	double f[OBM_HEAD_DIM_MAX / 2];

	if ((double)(float)s->rope_theta != s->rope_theta)
		return fail(why, why_len, -ENOTSUP, "the rotary base %.17g is not exact in "
			    "binary32, which is all that .h1b has for it", s->rope_theta);
	if (!s->rope)
		return 0;
	rope_frequencies(s->rope_theta, s->arch.head_dim, f);
	for (uint32_t i = 0; i < s->arch.head_dim / 2; i++)
		if (fabs(s->rope[i] - f[i]) > 1e-12 * f[i])
			return fail(why, why_len, -ENOTSUP, "the model's rotary frequencies are "
				    "scaled; .h1b holds a base only");
	return 0;
}

static bool has_special_form(const struct vocab_token *t)
{
	return t->len > 4 && !memcmp(t->text, "<|", 2) && !memcmp(t->text + t->len - 2, "|>", 2);
}

static int check_vocab(const struct source *s, char *why, size_t why_len)
{
	const struct vocab *v = s->vocab;

	if (!v)
		return fail(why, why_len, -ENOENT, "there is no vocabulary for the .htok: %s",
			    s->no_vocab);
	if (v->kind != VOCAB_BYTES)
		return fail(why, why_len, -ENOTSUP, "the vocabulary is SentencePiece's; .htok "
			    "holds byte-level ones only");
	if (v->rule != VOCAB_RULE_LLAMA3)
		return fail(why, why_len, -ENOTSUP, "the vocabulary is not for Llama 3's rule of "
			    "cutting text; .htok has no place for a rule, and its readers take "
			    "that one");
	if (v->flags & VOCAB_NFC)
		return fail(why, why_len, -ENOTSUP, "the vocabulary wants its texts in NFC; readers "
			    "of .htok take them as they are");
	if (v->bos == VOCAB_NO_ID || v->eos == VOCAB_NO_ID)
		return fail(why, why_len, -ENOTSUP, "the vocabulary has no %s token; .htok must "
			    "name one",
			    v->bos == VOCAB_NO_ID ? "beginning" : "end");
	/* The layout marks no specials: its readers know them by their form, and bos and eos by number. */
	for (uint32_t id = 0; id < v->n_tokens; id++) {
		const struct vocab_token *t = &v->tokens[id];
		bool special = t->kind == VOCAB_SPECIAL;

		if (t->kind == VOCAB_ADDED)
			return fail(why, why_len, -ENOTSUP, "token %u, '%.*s', is taken whole from "
				    "text, before it is cut; .htok has no place for that", id,
				    (int)t->len, (const char *)t->text);
		if (t->kind == VOCAB_UNUSED || id == v->bos || id == v->eos ||
		    special == has_special_form(t))
			continue;
		return fail(why, why_len, -ENOTSUP, "token %u, '%.*s', is %s, but readers of .htok "
			    "would take it for %s by its form", id, (int)t->len,
			    (const char *)t->text,
			    special ? "a special one" : "ordinary text", special ? "text" : "a "
				    "special one");
	}
	return 0;
}

static int check(const struct source *s, unsigned version, char *why, size_t why_len)
{
	const struct obm_arch *a = &s->arch;
	const char *lacks = NULL;
	int err;

	if (source_find(s, OBM_HEAD, OBM_NO_LAYER))
		lacks = "a head of its own (not tied to the embedding)";
	else if (!source_find(s, OBM_ATTN_SUB_NORM, 0) || !source_find(s, OBM_FFN_SUB_NORM, 0))
		lacks = "a model without sub-norms";
	else if (a->activation != OBM_ACT_RELU2)
		lacks = "SiLU; its readers take relu2";
	if (lacks)
		return fail(why, why_len, -ENOTSUP, ".h1b has no place for %s", lacks);
	if ((uint64_t)a->heads * a->head_dim != a->hidden)
		return fail(why, why_len, -ENOTSUP, "%u heads of %u are not the hidden size %u; "
			    ".h1b does not hold the heads' size, its readers divide", a->heads,
			    a->head_dim, a->hidden);
	if (version == 2 && (a->hidden % 16 || a->ffn % 16))
		return fail(why, why_len, -ENOTSUP, "hidden size %u and feed-forward size %u are "
			    "not multiples of 16, as the readers of .h1b version 2 need; version 4 "
			    "has no such rule",
			    a->hidden, a->ffn);
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct source_tensor *t = &s->tensors[i];

		if (t->role < OBM_Q)
			continue;
		assert(t->form == SOURCE_TERNARY);
		if (t->groups > 1)
			return fail(why, why_len, -ENOTSUP, "layer %u's %s has %u scales a row; "
				    ".h1b version %u holds one", t->layer, obm_role_name(t->role),
				    t->groups, version);
	}
	err = check_rope(s, why, why_len);
	return err ? err : check_vocab(s, why, why_len);
}

static void describe_loss(const struct source *s, char *note, size_t note_len)
{
	const struct source_tensor *embed = source_find(s, OBM_EMBED, OBM_NO_LAYER);
	const char *chat = s->vocab->chat;
	size_t n = 0;

	const struct {
		bool lost;
		const char *sentence;
	} losses[] = {
		{ embed->form == SOURCE_INT8, "the embedding's codes and scales: it is written as "
					      "their products, rounded to binary32" },
		{ *chat && strcmp(chat, "bitnet") != 0, "the chat template's name" },
		{ !(s->vocab->flags & VOCAB_IGNORE_MERGES), "that pieces are always merged step by "
		 "step" },
		{ s->arch.flags & OBM_FLAG_A8_IMPOSED, "that int8 activations are imposed on the "
		 "model" },
		{ s->licence != NULL, "the licence's text" },
	};

	note[0] = 0;
	for (size_t i = 0; i < sizeof(losses) / sizeof(losses[0]); i++)
		if (losses[i].lost && n < note_len)
			n += (size_t)snprintf(note + n, note_len - n, "%s%s",
					      n ? "; " : ".h1b has no place for: ",
						      losses[i].sentence);
}

/* ---- the model ------------------------------------------------------------------------------- */

static int put(struct job *j, const void *data, size_t len)
{
	int err = tool_stopped ? -EINTR : output_write(j->out, data, len, j->why, j->why_len);

	if (!err)
		progress_at(j->progress, (uint64_t)((double)output_bytes(j->out) /
						    (double)j->layout.file_bytes *
						    (double)j->s->file_bytes));
	return err;
}

static uint32_t batch(const struct source_tensor *t, uint32_t row, size_t element)
{
	uint64_t n = BATCH_BYTES / (t->cols * element);

	n = n ? n : 1;
	return n < t->rows - row ? (uint32_t)n : t->rows - row;
}

static int put_floats(struct job *j, uint32_t role)
{
	const struct source_tensor *t = source_find(j->s, role, OBM_NO_LAYER);
	uint64_t held = 0;
	int err = 0;

	for (uint32_t row = 0, n; !err && row < t->rows; row += n) {
		n = batch(t, row, sizeof(float));
		err = j->s->ops->read_floats(j->s, t, row, n, j->rows, j->why, j->why_len);
		if (!err)
			err = put(j, j->rows, 4ull * n * t->cols);
		/* An embedding is most of a small model: its pages go as they were read. */
		held += 4ull * n * t->cols;
		if (j->s->ops->done && (held >= FORGET_BYTES || row + n == t->rows)) {
			j->s->ops->done(j->s, t);
			held = 0;
		}
	}
	return err;
}

/* Nine slots: two norms, the attention's sub-norm four times, the beginning of the other one twice, it. */
static int put_norms(struct job *j, uint32_t layer)
{
	static const uint32_t slots[9] = {
		OBM_ATTN_NORM, OBM_FFN_NORM, OBM_ATTN_SUB_NORM, OBM_ATTN_SUB_NORM, OBM_ATTN_SUB_NORM,
		OBM_ATTN_SUB_NORM, OBM_FFN_SUB_NORM, OBM_FFN_SUB_NORM, OBM_FFN_SUB_NORM,
	};
	const uint32_t hidden = j->header.hidden;
	float *f = j->rows;
	int err = 0;

	for (int i = 0; !err && i < 9; i++) {
		const struct source_tensor *t = source_find(j->s, slots[i], layer);

		/* A feed-forward part narrower than the model leaves the end of its filler zero. */
		memset(f, 0, 4ull * hidden);
		err = j->s->ops->read_floats(j->s, t, 0, 1, f, j->why, j->why_len);
		if (!err)
			err = put(j, f, 4ull * (i < 8 ? hidden : t->cols));
	}
	return err;
}

static int put_matrix(struct job *j, uint32_t role, uint32_t layer)
{
	const struct source_tensor *t = source_find(j->s, role, layer);
	const uint64_t row_bytes = h1b_row_bytes(j->layout.body, t->cols);
	int err = 0;

	for (uint32_t row = 0, n; !err && row < t->rows; row += n) {
		n = batch(t, row, 1);
		err = j->s->ops->read_codes(j->s, t, row, n, j->rows, j->scales + row, j->why, j->why_len);
		for (uint32_t i = 0; !err && i < n; i++)
			h1b_encode_row(j->layout.body, (int8_t *)j->rows + (uint64_t)i * t->cols, t->cols,
				       j->packed + row_bytes * i);
		if (!err)
			err = put(j, j->packed, row_bytes * n);
	}
	if (!err)
		err = put(j, j->scales, 4ull * t->rows);
	if (j->s->ops->done)
		j->s->ops->done(j->s, t);
	return err;
}

static int put_model(struct job *j)
{
	static const uint32_t order[H1B_MATRICES] = {
		OBM_Q, OBM_K, OBM_V, OBM_O, OBM_GATE, OBM_UP, OBM_DOWN,
	};
	uint8_t header[H1B_HEADER_MAX];
	int err = output_reserve(j->out, j->layout.file_bytes, j->why, j->why_len);

	h1b_header_write(&j->header, header);
	if (!err)
		err = put(j, header, h1b_header_bytes(&j->header));
	if (!err)
		err = put_floats(j, OBM_EMBED);
	if (!err)
		err = put_floats(j, OBM_FINAL_NORM);
	for (uint32_t l = 0; !err && l < j->header.layers; l++) {
		err = put_norms(j, l);
		for (int i = 0; !err && i < H1B_MATRICES; i++)
			err = put_matrix(j, order[i], l);
	}
	assert(err || output_bytes(j->out) == j->layout.file_bytes);
	return err;
}

/* ---- the vocabulary -------------------------------------------------------------------------- */

static int put_words(struct output *out, const uint32_t *words, unsigned n, char *why, size_t why_len)
{
	uint8_t bytes[16];

	assert(n <= 4);
	for (unsigned i = 0; i < 4 * n; i++)
		bytes[i] = (uint8_t)(words[i / 4] >> (i % 4 * 8));
	return output_write(out, bytes, 4ull * n, why, why_len);
}

static int put_token(struct output *out, const struct vocab *v, uint32_t id, char *why, size_t why_len)
{
	static const struct vocab_token none = { .kind = VOCAB_UNUSED };
	const struct vocab_token *t = id < v->n_tokens ? &v->tokens[id] : &none;
	char text[2 * VOCAB_TOKEN_BYTES_MAX];
	uint8_t len[2];
	size_t n = 0;
	int err;

	/* Specials stand as they are, which is how readers know them; an empty text is an id not used. */
	if (t->kind == VOCAB_NORMAL)
		n = vocab_map(t->text, t->len, text);
	else if (t->kind == VOCAB_SPECIAL)
		memcpy(text, t->text, n = t->len);
	len[0] = (uint8_t)n;
	len[1] = (uint8_t)(n >> 8);
	err = output_write(out, len, 2, why, why_len);
	return err ? err : output_write(out, text, n, why, why_len);
}

static int by_rank(const void *a, const void *b)
{
	const struct vocab_merge *const *x = a, *const *y = b;

	if ((*x)->rank != (*y)->rank)
		return (*x)->rank < (*y)->rank ? -1 : 1;
	return *x < *y ? -1 : *x > *y;
}

/* In the layout without a version word, where a merge's place is its rank. */
static int put_vocab(struct output *out, const struct vocab *v, uint32_t vocab_size, char *why,
		     size_t why_len)
{
	const uint32_t head[4] = { vocab_size, v->n_merges, v->bos, v->eos };
	const struct vocab_merge **merges = malloc((v->n_merges + 1ull) * sizeof(struct vocab_merge *));
	int err;

	if (!merges)
		return fail(why, why_len, -ENOMEM, "no memory for %u merges", v->n_merges);
	for (uint32_t i = 0; i < v->n_merges; i++)
		merges[i] = &v->merges[i];
	qsort(merges, v->n_merges, sizeof(struct vocab_merge *), by_rank);
	err = output_write(out, "HTOK", 4, why, why_len);
	if (!err)
		err = put_words(out, head, 4, why, why_len);
	for (uint32_t id = 0; !err && id < vocab_size; id++)
		err = put_token(out, v, id, why, why_len);
	for (uint32_t i = 0; !err && i < v->n_merges; i++)
		err = put_words(out, (uint32_t[]){ merges[i]->a, merges[i]->b, merges[i]->merged }, 3, why,
				why_len);
	free(merges);
	return err;
}

/* ---- both ------------------------------------------------------------------------------------ */

static int prepare(struct job *j, unsigned version)
{
	const struct obm_arch *a = &j->s->arch;
	const uint32_t widest = a->ffn > a->hidden ? a->ffn : a->hidden;
	const uint64_t batch_bytes = 4ull * widest > BATCH_BYTES ? 4ull * widest : BATCH_BYTES;
	int err;

	j->header = (struct h1b_header){
		.version = version, .hidden = a->hidden, .ffn = a->ffn, .layers = a->layers,
		.heads = a->heads, .kv_heads = a->kv_heads, .vocab = a->vocab, .context = a->context,
		.theta = (float)j->s->rope_theta, .eps = a->rms_eps, .tied = true,
	};
	err = h1b_layout_make(&j->header, &j->layout, j->why, j->why_len);
	if (err)
		return err;
	j->rows = malloc(batch_bytes);
	j->packed = malloc(batch_bytes);
	j->scales = malloc(4ull * widest);
	if (!j->rows || !j->packed || !j->scales)
		return fail(j->why, j->why_len, -ENOMEM, "no memory for rows of %u", widest);
	return 0;
}

int export_h1b(struct source *s, unsigned version, const char *path, bool replace, struct progress *p,
	       char *note, size_t note_len, char *why, size_t why_len)
{
	struct job j = { .s = s, .progress = p, .why = why, .why_len = why_len };
	struct output *htok = NULL;
	char *htok_path = NULL;
	int err = source_check(s, why, why_len);

	assert(version == 2 || version == 4);
	assert(s->qk == SOURCE_QK_SPLIT);
	if (!err)
		err = check(s, version, why, why_len);
	if (!err)
		err = prepare(&j, version);
	if (err)
		goto out;
	htok_path = h1b_vocab_path(path);
	if (!htok_path) {
		err = fail(why, why_len, -ENOMEM, "no memory");
		goto out;
	}
	/* Both before anything is written: one that exists is known at once. */
	err = output_new(path, replace, &j.out, why, why_len);
	if (!err)
		err = output_new(htok_path, replace, &htok, why, why_len);
	if (!err)
		err = put_vocab(htok, s->vocab, s->arch.vocab, why, why_len);
	if (!err)
		err = put_model(&j);
	/* The vocabulary first: a new model is never there without it. */
	if (!err)
		err = output_commit(htok, why, why_len);
	if (!err)
		err = output_commit(j.out, why, why_len);
	if (!err)
		describe_loss(s, note, note_len);
out:
	output_free(j.out);
	output_free(htok);
	free(htok_path);
	free(j.rows);
	free(j.packed);
	free(j.scales);
	return err;
}

/* SPDX-License-Identifier: MIT */
/*
 * An .h1b file as a source of a model, with the vocabulary of the .htok beside it.
 *
 * The format does not name its architecture; what its writers exported is BitNet b1.58: relu2, both
 * sub-norms, tied head, q and k rows in split-half order. Files with Bonsai's blocks may be that or
 * Qwen3; the latter keep their norms in a GGUF file, have only zeros in their place here, and are refused
 * by that. Signs without zeros (Q1) are ternary codes -1 and 1 and are taken as such; no BitNet was
 * trained that way, so their activations had not been int8.
 */
#include "source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "h1b.h"
#include "mapped.h"
#include "packed.h"

#define PER_LAYER (H1B_NORMS + H1B_MATRICES)

/* Where a tensor is. */
struct place {
	uint64_t at; /* of the float tensors */
	uint64_t bytes;
	unsigned matrix; /* H1B_MATRICES: floats */
};

struct h1b_source {
	struct source s;
	struct mapped file;
	struct h1b h;
	struct place *places;
};

static struct h1b_source *of(struct source *s)
{
	return (struct h1b_source *)s; /* its first member */
}

/* ---- reading --------------------------------------------------------------------------------- */

static int read_codes(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		      int8_t *codes, float *scales, char *why, size_t why_len)
{
	const struct place *p = t->private_data;
	struct h1b_source *f = of(s);
	char text[300];
	int err = h1b_rows(&f->h, t->layer, p->matrix, t->groups, row0, n, codes, scales, text,
			   sizeof(text));

	return err ? fail(why, why_len, err, "%s: %s", f->file.path, text) : 0;
}

static int read_floats(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		       float *floats, char *why, size_t why_len)
{
	const struct place *p = t->private_data;
	struct h1b_source *f = of(s);
	uint64_t at;

	if (!h1b_floats(&f->h, p->at + 4ull * row0 * t->cols, (uint64_t)n * t->cols, floats, &at))
		return 0;
	return fail(why, why_len, -EPROTO, "%s: %s, row %u, column %u is not finite: the file "
		    "is damaged, or its tensors are in another order", f->file.path,
		    obm_role_name(t->role),
		    row0 + (uint32_t)(at / t->cols), (uint32_t)(at % t->cols));
}

static void done(struct source *s, const struct source_tensor *t)
{
	const struct place *p = t->private_data;

	mapped_forget(&of(s)->file, p->at, p->bytes);
}

static void close_file(struct source *s)
{
	struct h1b_source *f = of(s);

	mapped_close(&f->file);
	free(f->places);
	free(f);
}

static const struct source_ops ops = {
	.read_codes = read_codes, .read_floats = read_floats, .done = done, .close = close_file,
};

/* ---- tensors --------------------------------------------------------------------------------- */

static void add(struct h1b_source *f, struct source_tensor t, struct place p)
{
	uint32_t i = f->s.n_tensors++;

	f->places[i] = p;
	t.private_data = &f->places[i];
	f->s.tensors[i] = t;
}

static void add_floats(struct h1b_source *f, uint32_t role, uint32_t layer, uint32_t rows,
		       uint32_t cols, uint64_t at)
{
	add(f, (struct source_tensor){
		.role = role, .layer = layer, .rows = rows, .cols = cols, .form = SOURCE_F32,
		.stored = "F32",
	    }, (struct place){ .at = at, .bytes = 4ull * rows * cols, .matrix = H1B_MATRICES });
}

static int add_matrix(struct h1b_source *f, uint32_t layer, unsigned matrix, char *why, size_t why_len)
{
	static const char *const stored[H1B_BODIES] = {
		[H1B_2BIT] = "2 bits", [H1B_SHERRY] = "Sherry 3:4", [H1B_BASE3] = "base 3",
		[H1B_TQ2] = "TQ2_0_g128", [H1B_Q1] = "Q1_0_g128",
	};
	static const uint32_t roles[H1B_MATRICES] = {
		[H1B_Q] = OBM_Q, [H1B_K] = OBM_K, [H1B_V] = OBM_V, [H1B_O] = OBM_O,
		[H1B_GATE] = OBM_GATE, [H1B_UP] = OBM_UP, [H1B_DOWN] = OBM_DOWN,
	};
	const struct h1b_layout *l = &f->h.layout;
	const struct h1b_matrix *m = &l->matrix[matrix];
	uint32_t groups = h1b_groups(&f->h, layer, matrix);
	struct place p = {
		.at = l->layer0 + l->stride * layer + m->codes,
		.bytes = m->row_bytes * m->rows + (m->scales ? 4ull * m->rows : 0),
		.matrix = matrix,
	};

	/* The scan for groups has touched all of it. */
	if (!m->scales)
		mapped_forget(&f->file, p.at, p.bytes);
	if (groups > PACKED_GROUPS_MAX)
		return fail(why, why_len, -EFBIG, "layer %u's %s has %u scales a row; at most %u "
			    "are supported",
			    layer, obm_role_name(roles[matrix]), groups, PACKED_GROUPS_MAX);
	add(f, (struct source_tensor){
		.role = roles[matrix], .layer = layer, .rows = m->rows, .cols = m->cols,
		.groups = groups, .form = SOURCE_TERNARY, .stored = stored[l->body],
	    }, p);
	return 0;
}

static int list_tensors(struct h1b_source *f, char *why, size_t why_len)
{
	static const uint32_t roles[H1B_NORMS] = {
		[H1B_ATTN_NORM] = OBM_ATTN_NORM, [H1B_FFN_NORM] = OBM_FFN_NORM,
		[H1B_ATTN_SUB_NORM] = OBM_ATTN_SUB_NORM, [H1B_FFN_SUB_NORM] = OBM_FFN_SUB_NORM,
	};
	const struct h1b_header *h = &f->h.header;
	const struct h1b_layout *l = &f->h.layout;
	uint32_t n = 2 + h->layers * PER_LAYER;
	int err = 0;

	f->places = calloc(n, sizeof(*f->places));
	f->s.tensors = calloc(n, sizeof(*f->s.tensors));
	if (!f->places || !f->s.tensors)
		return fail(why, why_len, -ENOMEM, "no memory for %u tensors", n);
	add_floats(f, OBM_EMBED, OBM_NO_LAYER, h->vocab, h->hidden, l->embed);
	add_floats(f, OBM_FINAL_NORM, OBM_NO_LAYER, 1, h->hidden, l->final_norm);
	for (uint32_t i = 0; i < h->layers; i++) {
		for (unsigned k = 0; k < H1B_NORMS; k++)
			add_floats(f, roles[k], i, 1, k == H1B_FFN_SUB_NORM ? h->ffn : h->hidden,
				   l->layer0 + l->stride * i + l->norm[k]);
		for (unsigned k = 0; !err && k < H1B_MATRICES; k++)
			err = add_matrix(f, i, k, why, why_len);
	}
	return err;
}

/* ---- what it is ------------------------------------------------------------------------------ */

/* The file's name without folder and ending. */
static void stem(const char *path, char *buf, size_t len)
{
	const char *name = strrchr(path, '/');
	char *dot;

	snprintf(buf, len, "%s", name ? name + 1 : path);
	dot = strrchr(buf, '.');
	if (dot && dot != buf)
		*dot = 0;
}

static int describe(struct h1b_source *f, char *why, size_t why_len)
{
	static const char *const formats[] = { "h1b v1", "h1b v2", "h1b v3", "h1b v4" };
	const struct h1b_header *h = &f->h.header;
	enum h1b_body body = f->h.layout.body;
	struct source *s = &f->s;

	s->ops = &ops;
	s->format = formats[h->version - 1];
	s->file_bytes = f->file.bytes;
	s->rope_theta = h->theta;
	s->qk = SOURCE_QK_SPLIT;
	s->arch = (struct obm_arch){
		.layers = h->layers, .hidden = h->hidden, .ffn = h->ffn, .heads = h->heads,
		.kv_heads = h->kv_heads, .head_dim = h->hidden / h->heads, .vocab = h->vocab,
		.context = h->context, .activation = OBM_ACT_RELU2,
		.flags = body == H1B_Q1 ? OBM_FLAG_A8_IMPOSED : 0,
		.rms_eps = h->eps, .rope_theta = h->theta, .family = "bitnet-b1.58",
	};
	stem(f->file.path, s->arch.name, sizeof(s->arch.name));
	if (asprintf(&s->info, "origin: %s, %s\n", s->format, h1b_body_name(body)) < 0) {
		s->info = NULL;
		return fail(why, why_len, -ENOMEM, "no memory");
	}
	return 0;
}

/* ---- vocabulary ------------------------------------------------------------------------------ */

/* The template that BitNet 2B-4T was trained with, where the vocabulary has what it needs. */
static void default_chat(struct vocab *v)
{
	static const char eot[] = "<|eot_id|>";

	if (!*v->chat && v->bos != VOCAB_NO_ID &&
	    vocab_find(v, eot, sizeof(eot) - 1, 1u << VOCAB_SPECIAL) != VOCAB_NO_ID)
		snprintf(v->chat, sizeof(v->chat), "bitnet");
}

static int find_vocab(struct h1b_source *f, const char *path, const char *given, char *why,
		      size_t why_len)
{
	const uint32_t rows = f->h.header.vocab;
	char *name = given ? NULL : h1b_vocab_path(path);
	int err;

	if (!given && !name)
		return fail(why, why_len, -ENOMEM, "%s: no memory", path);
	if (!given && access(name, F_OK)) {
		snprintf(f->s.no_vocab, sizeof(f->s.no_vocab), "there is no %.150s; name the "
			 "model's tokenizer with --tokenizer", name);
		free(name);
		return 0;
	}
	err = vocab_read(given ? given : name, rows, &f->s.vocab, why, why_len);
	/* A .htok has an entry for each row of the embedding, empty where no id has a text. */
	if (!err && !given && f->s.vocab->n_tokens != rows)
		err = fail(why, why_len, -EPROTO, "%s has %u tokens, the model %u: it is another "
			   "model's; name the right one with --tokenizer", name,
			   f->s.vocab->n_tokens, rows);
	if (!err)
		default_chat(f->s.vocab);
	free(name);
	return err;
}

int source_open_h1b(const char *path, const struct source_options *o, struct source **out, char *why,
		    size_t why_len)
{
	struct h1b_source *f = calloc(1, sizeof(*f));
	char text[400] = "";
	int err;

	if (!f)
		return fail(why, why_len, -ENOMEM, "%s: no memory", path);
	f->s.ops = &ops;
	err = mapped_open(path, &f->file, why, why_len);
	if (err)
		goto out;
	err = h1b_parse(f->file.data, f->file.bytes, &f->h, text, sizeof(text));
	if (!err)
		err = describe(f, text, sizeof(text));
	if (!err)
		err = list_tensors(f, text, sizeof(text));
	if (err) {
		fail(why, why_len, err, "%s: %s", path, text);
		goto out;
	}
	err = find_vocab(f, path, o ? o->tokenizer : NULL, why, why_len);
	if (err)
		goto out;
	*out = &f->s;
	return 0;
out:
	source_close(&f->s);
	return err;
}

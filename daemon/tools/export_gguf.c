/* SPDX-License-Identifier: MIT */
/*
 * A model as GGUF, for llama.cpp and those who read what it reads, and back without loss.
 *
 * With sub-norms it is their architecture bitnet (which takes its activation from
 * hidden_activation, and has head_dim = hidden / heads and a tied head), without them llama, whose
 * rows of q and k stand in adjacent pairs. Linear matrices are TQ2_0; where its blocks of 256 do
 * not fit the columns of a scale, Q8_0 with codes -1, 0, 1, which holds the same numbers in blocks
 * of 32. An int8 embedding is Q8_0 as it is. Both types round scales to binary16; what they were
 * stands in metadata of our own, and our reader takes it from there. Norms and float embeddings are
 * written as they are.
 *
 * Scales come with the rows, but stand before them: the head is written last, over a gap of its
 * size.
 */
#include "export.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "gguf_stored.h"
#include "gguf_write.h"
#include "mapped.h"
#include "output.h"
#include "packed.h"
#include "read.h"
#include "rope.h"
#include "served.h"

/* So often the pages that rows came from are given back. */
#define FORGET_ELEMENTS (8u << 20)

struct tensor {
	const struct source_tensor *from;
	char name[64];
	enum gguf_kind kind;
	uint64_t at, bytes;
	size_t own; /* where its scales are in the head; 0: it has none */
};

struct job {
	struct source *s; /* as served */
	struct tensor *tensors;
	bool is_llama; /* architecture and order of rows */
	struct gguf_head head;
	struct output *out;
	struct progress *progress;
	int8_t *codes;
	float *floats;	/* rows, or their scales */
	uint8_t *row;
	double worst;	/* relative error of the rounded scales */
	char worst_name[64];
	char *note, *why;
	size_t note_len, why_len;
};

/* A further sentence for the person. */
static void add_note(struct job *j, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add_note(struct job *j, const char *format, ...)
{
	size_t n = j->note_len ? strlen(j->note) : 0;
	va_list args;

	if (!j->note_len)
		return;
	if (n && n + 1 < j->note_len)
		j->note[n++] = ' ';
	va_start(args, format);
	vsnprintf(j->note + n, j->note_len - n, format, args);
	va_end(args);
}

/* ---- the plan -------------------------------------------------------------------------------- */

static int name_tensor(struct tensor *t)
{
	static const char *const names[OBM_ROLES] = {
		[OBM_EMBED] = "token_embd",
		[OBM_HEAD] = "output",
		[OBM_FINAL_NORM] = "output_norm",
		[OBM_ATTN_NORM] = "attn_norm",
		[OBM_ATTN_SUB_NORM] = "attn_sub_norm",
		[OBM_FFN_NORM] = "ffn_norm",
		[OBM_FFN_SUB_NORM] = "ffn_sub_norm",
		[OBM_Q] = "attn_q",
		[OBM_K] = "attn_k",
		[OBM_V] = "attn_v",
		[OBM_O] = "attn_output",
		[OBM_GATE] = "ffn_gate",
		[OBM_UP] = "ffn_up",
		[OBM_DOWN] = "ffn_down",
	};
	const struct source_tensor *f = t->from;

	if (f->layer == OBM_NO_LAYER)
		return snprintf(t->name, sizeof(t->name), "%s.weight", names[f->role]);
	return snprintf(t->name, sizeof(t->name), "blk.%u.%s.weight", f->layer, names[f->role]);
}

static int choose_kind(struct job *j, struct tensor *t)
{
	const struct source_tensor *f = t->from;

	switch (f->form) {
	case SOURCE_TERNARY:
		t->kind = f->cols / f->groups % 256 ? GGUF_KIND_Q8_0 : GGUF_KIND_TQ2_0;
		if (f->cols / f->groups % 32)
			return fail(j->why, j->why_len, -ENOTSUP,
				    "%s has a scale to %u columns; GGUF has block types "
				    "for multiples of 32 and 256 only",
				    t->name, f->cols / f->groups);
		break;
	case SOURCE_INT8:
		t->kind = f->cols % 32 ? GGUF_KIND_F32 : GGUF_KIND_Q8_0;
		if (f->cols % 32)
			add_note(j, "%s is written as F32: %u columns are no blocks of 32.",
				 t->name, f->cols);
		break;
	case SOURCE_F16:
		t->kind = GGUF_KIND_F16;
		break;
	case SOURCE_BF16:
		t->kind = GGUF_KIND_BF16;
		break;
	default:
		t->kind = GGUF_KIND_F32;
	}
	/* Peers multiply norms in binary32 only. */
	if (f->role == OBM_FINAL_NORM || (f->role >= OBM_ATTN_NORM && f->role <= OBM_FFN_SUB_NORM))
		t->kind = GGUF_KIND_F32;
	return 0;
}

static bool has_codes(const struct tensor *t)
{
	return t->kind == GGUF_KIND_TQ2_0 || t->kind == GGUF_KIND_Q8_0;
}

static int by_place(const void *a, const void *b)
{
	const struct source_tensor *x = ((const struct tensor *)a)->from;
	const struct source_tensor *y = ((const struct tensor *)b)->from;

	/* OBM_NO_LAYER becomes 0. */
	if (x->layer + 1 != y->layer + 1)
		return x->layer + 1 < y->layer + 1 ? -1 : 1;
	return x->role < y->role ? -1 : x->role > y->role;
}

static int plan(struct job *j)
{
	const struct source *s = j->s;
	uint64_t widest = 0, scales = PACKED_ROWS;
	int err = 0;

	j->tensors = calloc(s->n_tensors, sizeof(*j->tensors));
	if (!j->tensors)
		goto no_memory;
	for (uint32_t i = 0; i < s->n_tensors; i++)
		j->tensors[i].from = &s->tensors[i];
	qsort(j->tensors, s->n_tensors, sizeof(*j->tensors), by_place);
	for (uint32_t i = 0; i < s->n_tensors && !err; i++) {
		struct tensor *t = &j->tensors[i];

		name_tensor(t);
		err = choose_kind(j, t);
		t->bytes = gguf_row_bytes(t->kind, t->from->cols) * t->from->rows;
		widest = t->from->cols > widest ? t->from->cols : widest;
		if (has_codes(t) && (uint64_t)t->from->groups * PACKED_ROWS > scales)
			scales = (uint64_t)t->from->groups * PACKED_ROWS;
	}
	if (err)
		return err;
	j->codes = malloc(widest * PACKED_ROWS);
	j->floats = malloc((widest * PACKED_ROWS + scales) * sizeof(float));
	/* No type has more than four bytes a column. */
	j->row = malloc(widest * 4 * PACKED_ROWS);
	if (j->codes && j->floats && j->row)
		return 0;
no_memory:
	return fail(j->why, j->why_len, -ENOMEM, "no memory for a model of %u tensors",
		    s->n_tensors);
}

/* ---- the head -------------------------------------------------------------------------------- */

static const char *arch_key(const struct job *j, const char *key, char buf[96])
{
	snprintf(buf, 96, "%s.%s", j->is_llama ? "llama" : "bitnet", key);
	return buf;
}

/* The value of this key in OBM_INFO's lines; NULL when there is none, or no memory. */
static char *info_value(const char *info, const char *key)
{
	size_t n = strlen(key);

	for (; info && *info; info += strcspn(info, "\n"), info += *info == '\n')
		if (!strncmp(info, key, n) && info[n] == ':') {
			const char *from = info + n + 1 + strspn(info + n + 1, " ");

			return strndup(from, strcspn(from, "\n"));
		}
	return NULL;
}

static int put_rope(struct job *j)
{
	const struct source *s = j->s;
	const uint32_t n = s->arch.head_dim / 2;
	double *plain = malloc(n * sizeof(*plain)), *f = malloc(n * sizeof(*f));

	if (!plain || !f) {
		free(plain);
		free(f);
		return -ENOMEM;
	}
	rope_frequencies((double)(float)s->rope_theta, s->arch.head_dim, plain);
	if (s->rope)
		memcpy(f, s->rope, n * sizeof(*f));
	else
		rope_frequencies(s->rope_theta, s->arch.head_dim, f);
	if (memcmp(f, plain, n * sizeof(*f)) != 0) {
		gguf_put_array(&j->head, GGUF_OWN_ROPE, GGUF_F64, n);
		gguf_put_element(&j->head, f, n * sizeof(*f));
		add_note(j, "The model has rotary frequencies of its own, which peers will not "
			    "use.");
	}
	free(plain);
	free(f);
	return 0;
}

static void put_texts(struct job *j)
{
	const struct source *s = j->s;
	char *licence = info_value(s->info, "licence"), *origin = info_value(s->info, "origin");

	gguf_put_text(&j->head, "general.architecture", j->is_llama ? "llama" : "bitnet");
	gguf_put_text(&j->head, "general.type", "model");
	gguf_put_text(&j->head, "general.name", s->arch.name);
	gguf_put_text(&j->head, "general.license", licence);
	gguf_put_text(&j->head, "general.source.url", origin);
	gguf_put_text(&j->head, GGUF_OWN_INFO, s->info);
	gguf_put_text(&j->head, GGUF_OWN_LICENCE, s->licence);
	gguf_put_text(&j->head, GGUF_OWN_FAMILY, s->arch.family);
	free(licence);
	free(origin);
}

static int put_numbers(struct job *j)
{
	const struct obm_arch *a = &j->s->arch;
	const struct {
		const char *key;
		uint32_t value;
	} numbers[] = {
		{ "vocab_size", a->vocab },
		{ "context_length", a->context },
		{ "embedding_length", a->hidden },
		{ "block_count", a->layers },
		{ "feed_forward_length", a->ffn },
		{ "attention.head_count", a->heads },
		{ "attention.head_count_kv", a->kv_heads },
		{ "attention.key_length", a->head_dim },
		{ "attention.value_length", a->head_dim },
		{ "rope.dimension_count", a->head_dim },
	};
	struct gguf_head *h = &j->head;
	char key[96];

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
		gguf_put_u32(h, arch_key(j, numbers[i].key, key), numbers[i].value);
	gguf_put_f32(h, arch_key(j, "attention.layer_norm_rms_epsilon", key), a->rms_eps);
	gguf_put_f32(h, arch_key(j, "rope.freq_base", key), (float)j->s->rope_theta);
	gguf_put_text(h, arch_key(j, "hidden_activation", key),
		      a->activation == OBM_ACT_RELU2 ? "relu2" : "silu");
	gguf_put_u32(h, GGUF_OWN_FLAGS, a->flags);
	gguf_put_u32(h, "general.quantization_version", 2);
	gguf_put_u32(h, "general.file_type", 37); /* mostly TQ2_0 */
	return put_rope(j);
}

static int put_head(struct job *j)
{
	struct gguf_head *h = &j->head;
	int err;

	gguf_head_begin(h);
	put_texts(j);
	err = put_numbers(j);
	if (!err)
		err = gguf_put_vocab(h, j->s->vocab, j->s->arch.vocab);
	for (uint32_t i = 0; i < j->s->n_tensors && !err; i++) {
		struct tensor *t = &j->tensors[i];
		uint64_t n = (uint64_t)t->from->rows * t->from->groups;
		char key[128];

		if (!has_codes(t))
			continue;
		snprintf(key, sizeof(key), GGUF_OWN_SCALES "%s", t->name);
		gguf_put_array(h, key, GGUF_F32, n);
		t->own = gguf_put_gap(h, n * sizeof(float));
	}
	for (uint32_t i = 0; i < j->s->n_tensors && !err; i++) {
		struct tensor *t = &j->tensors[i];
		bool is_matrix = t->from->role <= OBM_HEAD || t->from->role >= OBM_Q;

		gguf_put_tensor(h, t->name, gguf_kind_number(t->kind), t->from->cols,
				is_matrix ? t->from->rows : 0, t->bytes, &t->at);
	}
	if (!err)
		err = gguf_head_end(h);
	return err ? fail(j->why, j->why_len, err, "no memory for the metadata") : 0;
}

/* What peers will make of it otherwise than we. */
static void note_peers(struct job *j)
{
	const struct obm_arch *a = &j->s->arch;
	bool tied = !source_find(j->s, OBM_HEAD, OBM_NO_LAYER);

	if (!j->is_llama && !tied)
		add_note(j, "llama.cpp knows bitnet models with a tied head only, and will not "
			    "load this one.");
	if (!j->is_llama && a->heads * a->head_dim != a->hidden)
		add_note(j, "llama.cpp knows bitnet models with head_dim = hidden / heads only, "
			    "and will not load "
			    "this one.");
	if (!j->is_llama && a->activation == OBM_ACT_RELU2)
		add_note(j, "Versions of llama.cpp that do not know hidden_activation will take "
			    "SiLU for ReLU2.");
	if (j->is_llama && a->activation != OBM_ACT_SILU)
		add_note(j, "Peers will take SiLU for ReLU2 in a model without sub-norms.");
	if (j->s->vocab->flags & VOCAB_NFC)
		add_note(j, "Peers will not bring texts into NFC, as this tokenizer wants it.");
}

/* ---- the data -------------------------------------------------------------------------------- */

/* A scale as its block will have it. */
static int round_scale(struct job *j, const struct tensor *t, uint32_t row, float scale,
		       uint16_t *half)
{
	float is;
	double error;

	*half = float_to_half(scale);
	is = half_to_float(*half);
	if (!isfinite(is) || (scale != 0 && is == 0))
		return fail(j->why, j->why_len, -ERANGE,
			    "%s, row %u: a scale of %g does not fit into %s's binary16", t->name,
			    row, (double)scale, gguf_kind_name(t->kind));
	error = scale != 0 ? fabs((double)is - (double)scale) / fabs((double)scale) : 0;
	if (error > j->worst) {
		j->worst = error;
		snprintf(j->worst_name, sizeof(j->worst_name), "%s", t->name);
	}
	return 0;
}

static int pack_row(struct job *j, const struct tensor *t, uint32_t row, const int8_t *codes,
		    const float *scales, uint8_t *out)
{
	const uint32_t block = gguf_kind_cols(t->kind), width = t->from->cols / t->from->groups;
	const size_t bytes = (size_t)gguf_row_bytes(t->kind, block);

	for (uint32_t g = 0; g < t->from->groups; g++) {
		uint16_t half;
		int err = round_scale(j, t, row, scales[g], &half);

		if (err)
			return err;
		for (uint32_t c = 0; c < width; c += block, codes += block, out += bytes) {
			if (t->kind == GGUF_KIND_TQ2_0)
				gguf_block_tq2_0(codes, half, out);
			else
				gguf_block_q8_0(codes, half, out);
		}
	}
	return 0;
}

/* Where row r of the file is in split-half order. */
static uint32_t split_row(const struct job *j, const struct source_tensor *f, uint32_t r)
{
	const uint32_t hd = j->s->arch.head_dim;

	if (!j->is_llama || (f->role != OBM_Q && f->role != OBM_K))
		return r;
	return r - r % hd + r % hd / 2 + r % 2 * (hd / 2);
}

static int write_codes(struct job *j, const struct tensor *t, uint32_t row0, uint32_t n)
{
	const struct source_tensor *f = t->from;
	const bool moved = split_row(j, f, 1) != 1;
	const size_t row_bytes = (size_t)gguf_row_bytes(t->kind, f->cols);
	float *scales = j->floats;
	int err = 0;

	if (!moved)
		err = j->s->ops->read_codes(j->s, f, row0, n, j->codes, scales, j->why, j->why_len);
	for (uint32_t i = 0; i < n && !err && moved; i++)
		err = j->s->ops->read_codes(j->s, f, split_row(j, f, row0 + i), 1,
					    j->codes + (size_t)i * f->cols,
					    scales + (size_t)i * f->groups, j->why, j->why_len);
	for (uint32_t i = 0; i < n && !err; i++)
		err = pack_row(j, t, row0 + i, j->codes + (size_t)i * f->cols,
			       scales + (size_t)i * f->groups, j->row + i * row_bytes);
	if (err)
		return err;
	memcpy(j->head.data + t->own + (size_t)row0 * f->groups * sizeof(float), scales,
	       (size_t)n * f->groups * sizeof(float));
	return output_write(j->out, j->row, n * row_bytes, j->why, j->why_len);
}

static int write_floats(struct job *j, const struct tensor *t, uint32_t row0, uint32_t n)
{
	const size_t count = (size_t)n * t->from->cols;
	int err = j->s->ops->read_floats(j->s, t->from, row0, n, j->floats, j->why, j->why_len);

	if (err)
		return err;
	if (t->kind == GGUF_KIND_F32)
		return output_write(j->out, j->floats, count * sizeof(float), j->why, j->why_len);
	/* Exact: the source has them in this form. */
	for (size_t i = 0; i < count; i++) {
		uint16_t half = t->kind == GGUF_KIND_F16 ? float_to_half(j->floats[i]) :
							   float_to_bf16(j->floats[i]);

		memcpy(j->row + 2 * i, &half, sizeof(half));
	}
	return output_write(j->out, j->row, count * 2, j->why, j->why_len);
}

static int write_tensor(struct job *j, const struct tensor *t, double whole)
{
	static const uint8_t zero[GGUF_WRITE_ALIGNMENT];
	uint64_t since = 0;
	int err = 0;

	assert(output_bytes(j->out) == j->head.len + t->at);
	for (uint32_t row = 0; row < t->from->rows && !err; row += PACKED_ROWS) {
		uint32_t n = t->from->rows - row < PACKED_ROWS ? t->from->rows - row : PACKED_ROWS;

		if (tool_stopped)
			err = -EINTR;
		else
			err = has_codes(t) ? write_codes(j, t, row, n) : write_floats(j, t, row, n);
		/* An embedding's pages would else be all in memory at its end. */
		since += (uint64_t)n * t->from->cols;
		if (since >= FORGET_ELEMENTS && j->s->ops->done) {
			j->s->ops->done(j->s, t->from);
			since = 0;
		}
		if (j->progress)
			progress_at(j->progress, (uint64_t)((double)output_bytes(j->out) / whole *
							    (double)j->s->file_bytes));
	}
	if (j->s->ops->done)
		j->s->ops->done(j->s, t->from);
	if (err)
		return err;
	return output_write(j->out, zero, (GGUF_WRITE_ALIGNMENT - t->bytes % GGUF_WRITE_ALIGNMENT) %
			    GGUF_WRITE_ALIGNMENT, j->why, j->why_len);
}

static int write_all(struct job *j)
{
	const struct gguf_head *h = &j->head;
	const uint64_t whole = h->len + h->offset;
	int err = output_reserve(j->out, whole, j->why, j->why_len);

	if (!err)
		err = output_write(j->out, h->data, h->len, j->why, j->why_len);
	for (uint32_t i = 0; i < j->s->n_tensors && !err; i++)
		err = write_tensor(j, &j->tensors[i], (double)whole);
	if (!err)
		err = output_write_at(j->out, 0, h->data, h->len, j->why, j->why_len);
	return err ? err : output_commit(j->out, j->why, j->why_len);
}

/* By their type alone, readers could not tell these from special tokens. */
static int check_vocab(const struct vocab *v, char *why, size_t why_len)
{
	for (uint32_t id = 0; id < v->n_tokens; id++)
		if (v->tokens[id].kind == VOCAB_ADDED &&
		    read_is_markup(v->tokens[id].text, v->tokens[id].len))
			return fail(why, why_len, -ENOTSUP,
				    "token %u, '%s', is taken whole from text; readers of GGUF "
				    "would take it for a special one by its form",
				    id, read_shown(v->tokens[id].text, v->tokens[id].len).text);
	return 0;
}

int export_gguf(struct source *s, const char *path, bool replace, struct progress *p, char *note,
		size_t note_len, char *why, size_t why_len)
{
	struct job j = {
		.progress = p, .note = note, .note_len = note_len, .why = why, .why_len = why_len
	};
	int err;

	if (note_len)
		*note = 0;
	if (!s->vocab)
		return fail(why, why_len, -ENOENT,
			    "a GGUF file has its vocabulary inside, and there is none: %s",
			    s->no_vocab);
	err = check_vocab(s->vocab, why, why_len);
	if (!err)
		err = served_new(s, &j.s, why, why_len);
	if (err)
		return err;
	j.is_llama = !source_find(s, OBM_ATTN_SUB_NORM, 0);
	if ((err = output_new(path, replace, &j.out, why, why_len)) || (err = plan(&j)) ||
	    (err = put_head(&j)))
		goto out;
	note_peers(&j);
	err = write_all(&j);
	if (!err && j.worst > 0)
		add_note(&j,
			 "Peers see scales rounded to binary16, with a relative error of at most "
			 "%.2g (in %s); "
			 "the exact ones are in the metadata.",
			 j.worst, j.worst_name);
out:
	output_free(j.out);
	gguf_head_free(&j.head);
	free(j.tensors);
	free(j.codes);
	free(j.floats);
	free(j.row);
	served_free(j.s);
	return err;
}

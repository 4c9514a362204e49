/* SPDX-License-Identifier: MIT */
/*
 * Two things stand between a file's matrices and those that are served.
 *
 * Rotary positions turn pairs of rows of a head in q and k. We serve split-half pairs, (i, i +
 * hd/2); a checkpoint for adjacent pairs has row 2d + h where we have row h * hd/2 + d. A model
 * with the wrong order answers well for a hundred tokens and then no longer, so nobody may guess
 * it.
 *
 * Master weights become ternary by their mean magnitude. The sum runs over the rows as they are
 * served, one addition after the other in binary64, so that every machine and either row order gets
 * the same scale; the matrix is read twice for that, once for the mean and once for the codes.
 */
#include "served.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "packed.h"

struct matrix {
	const struct source_tensor *t; /* the inner source's */
	bool permuted;
	bool known;		/* factor and scale are */
	float factor, scale;	/* codes are rne(w * factor), weights code * scale */
};

struct served {
	struct source source;
	struct source *inner;
	struct matrix *matrix;	/* [n_tensors] */
	float *floats;		/* PACKED_ROWS rows of the widest master matrix */
};

static uint32_t file_row(const struct served *v, const struct matrix *m, uint32_t row)
{
	uint32_t hd = v->source.arch.head_dim;
	uint32_t at = row % hd;

	if (!m->permuted)
		return row;
	return row - at + 2 * (at % (hd / 2)) + at / (hd / 2);
}

/* n <= PACKED_ROWS rows as they are served, into v->floats. */
static int read_master(struct served *v, const struct matrix *m, uint32_t row0, uint32_t n,
		       char *why, size_t why_len)
{
	int err = 0;

	if (!m->permuted)
		return v->inner->ops->read_floats(v->inner, m->t, row0, n, v->floats, why, why_len);
	for (uint32_t i = 0; i < n && !err; i++)
		err = v->inner->ops->read_floats(v->inner, m->t, file_row(v, m, row0 + i), 1,
						 v->floats + (size_t)i * m->t->cols, why, why_len);
	return err;
}

static int find_scale(struct served *v, struct matrix *m, char *why, size_t why_len)
{
	double sum = 0.0;
	float mean;

	for (uint32_t row = 0; row < m->t->rows; row += PACKED_ROWS) {
		uint32_t n = m->t->rows - row < PACKED_ROWS ? m->t->rows - row : PACKED_ROWS;
		int err = read_master(v, m, row, n, why, why_len);

		if (err)
			return err;
		for (size_t i = 0; i < (size_t)n * m->t->cols; i++)
			sum += fabs((double)v->floats[i]);
	}
	mean = (float)(sum / ((double)m->t->rows * (double)m->t->cols));
	m->factor = 1.0f / (mean > 1e-5f ? mean : 1e-5f);
	m->scale = 1.0f / m->factor;
	m->known = true;
	return 0;
}

static int make_ternary(struct served *v, struct matrix *m, uint32_t row0, uint32_t n,
			int8_t *codes, float *scales, char *why, size_t why_len)
{
	size_t cols = m->t->cols;
	int err = 0;

	if (!m->known)
		err = find_scale(v, m, why, why_len);
	for (uint32_t done = 0; done < n && !err; done += PACKED_ROWS) {
		uint32_t part = n - done < PACKED_ROWS ? n - done : PACKED_ROWS;
		int8_t *out = codes + done * cols;

		err = read_master(v, m, row0 + done, part, why, why_len);
		for (size_t i = 0; i < part * cols && !err; i++) {
			float x = v->floats[i] * m->factor;

			/* rne() and the clamp: a half goes to 0, what is above to 1 or more. */
			out[i] = (int8_t)((x > 0.5f) - (x < -0.5f));
		}
	}
	for (uint32_t i = 0; scales && i < n; i++)
		scales[i] = m->scale;
	return err;
}

static int read_codes(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		      int8_t *codes, float *scales, char *why, size_t why_len)
{
	struct served *v = (struct served *)s;
	struct matrix *m = &v->matrix[t - s->tensors];
	int err = 0;

	if (m->t->form == SOURCE_MASTER)
		return make_ternary(v, m, row0, n, codes, scales, why, why_len);
	if (!m->permuted)
		return v->inner->ops->read_codes(v->inner, m->t, row0, n, codes, scales, why,
						 why_len);
	for (uint32_t i = 0; i < n && !err; i++)
		err = v->inner->ops->read_codes(
			v->inner, m->t, file_row(v, m, row0 + i), 1, codes + (size_t)i * t->cols,
			scales ? scales + (size_t)i * t->groups : NULL, why, why_len);
	return err;
}

static int read_floats(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		       float *floats, char *why, size_t why_len)
{
	struct served *v = (struct served *)s;

	return v->inner->ops->read_floats(v->inner, v->matrix[t - s->tensors].t, row0, n, floats,
					  why, why_len);
}

static void done(struct source *s, const struct source_tensor *t)
{
	struct served *v = (struct served *)s;

	if (v->inner->ops->done)
		v->inner->ops->done(v->inner, v->matrix[t - s->tensors].t);
}

static const struct source_ops served_ops = {
	.read_codes = read_codes,
	.read_floats = read_floats,
	.done = done,
};

int served_new(struct source *s, struct source **out, char *why, size_t why_len)
{
	struct served *v;
	size_t widest = 0;

	if (s->qk == SOURCE_QK_UNKNOWN)
		return fail(
			why, why_len, -ENOTSUP,
			"the file does not say in which order q and k have their rows: say --qk split "
			"(halves of a head, as Hugging Face has them) or --qk pairs (adjacent, as "
			"Microsoft's own and llama.cpp's Llama files)");
	v = calloc(1, sizeof(*v));
	if (!v)
		goto no_memory;
	v->source = *s;
	v->source.ops = &served_ops;
	v->source.qk = SOURCE_QK_SPLIT;
	v->inner = s;
	v->matrix = calloc(s->n_tensors, sizeof(*v->matrix));
	v->source.tensors = calloc(s->n_tensors, sizeof(*v->source.tensors));
	if (!v->matrix || !v->source.tensors)
		goto no_memory;
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		struct source_tensor *t = &v->source.tensors[i];
		bool is_qk = s->tensors[i].role == OBM_Q || s->tensors[i].role == OBM_K;

		v->matrix[i].t = &s->tensors[i];
		v->matrix[i].permuted = is_qk && s->qk == SOURCE_QK_PAIRS;
		*t = s->tensors[i];
		if (t->form == SOURCE_MASTER) {
			t->form = SOURCE_TERNARY;
			t->groups = 1;
			widest = t->cols > widest ? t->cols : widest;
		}
	}
	if (widest) {
		v->floats = malloc(widest * PACKED_ROWS * sizeof(*v->floats));
		if (!v->floats)
			goto no_memory;
	}
	*out = &v->source;
	return 0;
no_memory:
	served_free(v ? &v->source : NULL);
	return fail(why, why_len, -ENOMEM, "no memory for a model of %u tensors", s->n_tensors);
}

struct source *served_free(struct source *served)
{
	struct served *v = (struct served *)served;

	if (v) {
		free(v->matrix);
		free(v->source.tensors);
		free(v->floats);
		free(v);
	}
	return NULL;
}

/* SPDX-License-Identifier: MIT */
/*
 * The oracle's weights, in the plainest form there is: ternary codes a byte each, everything else
 * doubles; from a random model that was never packed, or out of a container.
 */
#include "lib_oracle_private.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "lib_write_obm.h"
#include "packed.h"

void *oracle_need(size_t n, size_t size)
{
	void *p = calloc(n ? n : 1, size);

	assert(p);
	return p;
}

static double *widened(const float *f, uint64_t n)
{
	double *d;

	if (!f)
		return NULL;
	d = oracle_need(n, sizeof(*d));
	for (uint64_t i = 0; i < n; i++)
		d[i] = (double)f[i];
	return d;
}

/* As the container's int8 rows hold them; halves hold lib_tiny's floats as they are. */
static double *table_of(const struct tiny *t, const float *f, uint32_t layout)
{
	double *d = widened(f, (uint64_t)t->vocab * t->hidden);
	int8_t *codes = oracle_need(t->hidden, 1);
	float scale;

	for (uint32_t r = 0; f && layout == PACKED_INT8 && r < t->vocab; r++) {
		uint64_t row = (uint64_t)r * t->hidden;

		write_obm_int8(f + row, t->hidden, codes, &scale);
		for (uint32_t i = 0; i < t->hidden; i++)
			d[row + i] = codes[i] * (double)scale;
	}
	free(codes);
	return d;
}

struct oracle *oracle_of_tiny(const struct tiny *t, uint32_t table, uint32_t activation)
{
	struct oracle *o = oracle_need(1, sizeof(*o));

	*o = (struct oracle){
		.layers = t->layers,
		.hidden = t->hidden,
		.ffn = t->ffn,
		.heads = t->heads,
		.kv_heads = t->kv_heads,
		.head_dim = t->head_dim,
		.vocab = t->vocab,
		.activation = activation,
		.eps = (double)t->eps,
		.theta = (double)t->theta,
		.embed = table_of(t, t->embed, table),
		.head = table_of(t, t->head, table),
		.final_norm = widened(t->final_norm, t->hidden),
		.layer = oracle_need(t->layers, sizeof(*o->layer)),
	};
	for (uint32_t i = 0; i < t->layers; i++) {
		const struct tiny_layer *from = &t->layer[i];
		struct layer *l = &o->layer[i];

		l->attn_norm = widened(from->attn_norm, t->hidden);
		l->ffn_norm = widened(from->ffn_norm, t->hidden);
		l->attn_sub_norm = widened(from->attn_sub_norm, (uint64_t)t->heads * t->head_dim);
		l->ffn_sub_norm = widened(from->ffn_sub_norm, t->ffn);
		for (int k = 0; k < TINY_MATRICES; k++) {
			const struct tiny_matrix *m = &from->m[k];

			l->m[k] =
				(struct weights){ m->rows, m->cols, m->groups,
						  oracle_need((size_t)m->rows * m->cols, 1), NULL };
			memcpy(l->m[k].codes, m->codes, (size_t)m->rows * m->cols);
			l->m[k].scales = widened(m->scales, (uint64_t)m->rows * m->groups);
		}
	}
	return o;
}

/* Of a container: rows of any layout, 2 bytes an element for halves, 1 otherwise. */
static void *rows_of(const struct obm *o, const struct obm_tensor *t)
{
	struct packed_shape s = { t->layout, t->rows, t->cols, t->groups };
	size_t size = t->layout == PACKED_F16 || t->layout == PACKED_BF16 ? 2 : 1;
	size_t tile = t->bytes / ((t->rows + 31) / 32);
	uint8_t *rows = oracle_need((size_t)t->rows * t->cols, size);

	for (uint32_t r = 0; r < t->rows; r += 32)
		packed_untile(&s, o->base + t->offset + r / 32 * tile,
			      t->rows - r < 32 ? t->rows - r : 32, rows + r * t->cols * size);
	return rows;
}

static double scale_of(const struct obm *o, const struct obm_tensor *t, uint32_t row,
		       uint32_t group)
{
	uint64_t rows = ((uint64_t)t->rows + 31) / 32 * 32;
	float f;

	memcpy(&f, o->base + t->scales + (group * rows + row) * sizeof(f), sizeof(f));
	return (double)f;
}

static double half_value(uint32_t layout, uint16_t h)
{
	int exponent = h >> 10 & 31;
	double m = (h & 0x3ff) / 1024.0;
	uint32_t bits = (uint32_t)h << 16;
	float f;

	if (layout == PACKED_BF16) {
		memcpy(&f, &bits, 4);
		return (double)f;
	}
	m = exponent ? ldexp(1 + m, exponent - 15) : ldexp(m, -14);
	return h & 0x8000 ? -m : m;
}

static double *table_in(const struct obm *o, uint32_t role)
{
	const struct obm_tensor *t = obm_tensor(o, role, OBM_NO_LAYER);
	uint64_t n;
	double *d;
	void *rows;

	if (!t)
		return NULL;
	n = (uint64_t)t->rows * t->cols;
	d = oracle_need(n, sizeof(*d));
	rows = rows_of(o, t);
	for (uint64_t i = 0; i < n; i++)
		d[i] = t->layout == PACKED_INT8
			       ? ((int8_t *)rows)[i] * scale_of(o, t, (uint32_t)(i / t->cols), 0)
			       : half_value(t->layout, ((uint16_t *)rows)[i]);
	free(rows);
	return d;
}

static double *floats_in(const struct obm *o, uint32_t role, uint32_t layer)
{
	const struct obm_tensor *t = obm_tensor(o, role, layer);

	return t ? widened((const float *)(const void *)(o->base + t->offset), t->cols) : NULL;
}

static struct weights weights_in(const struct obm *o, uint32_t role, uint32_t layer)
{
	const struct obm_tensor *t = obm_tensor(o, role, layer);
	struct weights w = { t->rows, t->cols, t->groups, rows_of(o, t), NULL };

	w.scales = oracle_need((size_t)t->rows * t->groups, sizeof(*w.scales));
	for (uint32_t r = 0; r < t->rows; r++)
		for (uint32_t g = 0; g < t->groups; g++)
			w.scales[(size_t)r * t->groups + g] = scale_of(o, t, r, g);
	return w;
}

struct oracle *oracle_of_obm(const struct obm *from)
{
	static const uint32_t roles[TINY_MATRICES] = { OBM_Q,	 OBM_K,	 OBM_V,	  OBM_O,
						       OBM_GATE, OBM_UP, OBM_DOWN };
	const struct obm_arch *a = from->arch;
	struct oracle *o = oracle_need(1, sizeof(*o));

	*o = (struct oracle){
		.layers = a->layers,
		.hidden = a->hidden,
		.ffn = a->ffn,
		.heads = a->heads,
		.kv_heads = a->kv_heads,
		.head_dim = a->head_dim,
		.vocab = a->vocab,
		.activation = a->activation,
		.eps = (double)a->rms_eps,
		.theta = (double)a->rope_theta,
		.embed = table_in(from, OBM_EMBED),
		.head = table_in(from, OBM_HEAD),
		.final_norm = floats_in(from, OBM_FINAL_NORM, OBM_NO_LAYER),
		.layer = oracle_need(a->layers, sizeof(*o->layer)),
	};
	for (uint32_t i = 0; i < a->layers; i++) {
		struct layer *l = &o->layer[i];

		l->attn_norm = floats_in(from, OBM_ATTN_NORM, i);
		l->attn_sub_norm = floats_in(from, OBM_ATTN_SUB_NORM, i);
		l->ffn_norm = floats_in(from, OBM_FFN_NORM, i);
		l->ffn_sub_norm = floats_in(from, OBM_FFN_SUB_NORM, i);
		for (int k = 0; k < TINY_MATRICES; k++)
			l->m[k] = weights_in(from, roles[k], i);
	}
	return o;
}

struct oracle *oracle_free(struct oracle *o)
{
	for (uint32_t i = 0; o && i < o->layers; i++) {
		struct layer *l = &o->layer[i];

		free(l->attn_norm);
		free(l->attn_sub_norm);
		free(l->ffn_norm);
		free(l->ffn_sub_norm);
		for (int k = 0; k < TINY_MATRICES; k++) {
			free(l->m[k].codes);
			free(l->m[k].scales);
		}
	}
	if (o) {
		free(o->layer);
		free(o->embed);
		free(o->head);
		free(o->final_norm);
	}
	free(o);
	return NULL;
}

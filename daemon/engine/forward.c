/* SPDX-License-Identifier: MIT */
/*
 * A model file as a tape. What an architecture has is in its tensors: a sub-norm that is absent is
 * a LINEAR without a norm, a head that is absent is the embedding. Nothing else differs.
 *
 * The table of angles is computed for the positions that can come, from the file's own frequencies. Its
 * SHA-256 is not taken again: obm_open() has compared the whole context's table, made by the same
 * routine in this process, and refuses a model whose table comes out otherwise; hashing it a second time
 * would cost as long as computing it and could only repeat the answer.
 *
 * Buffers of activations hold limits.rows rows, each filled up to whole tiles, because a product writes
 * whole tiles. They are one piece of the device's memory, in which the FFN's lie where attention's lay:
 * of a model of two billion weights that is a quarter less. What a small batch does not use is not touched.
 */
#include "forward.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include "obm_check.h"
#include "rope.h"

enum { OPS_OF_LAYER = 7 };

/* The whole of it; its first member is what others see. */
struct forward_opened {
	struct forward f;
	const struct obm *model;
	void *work, *kv;
	size_t work_bytes;
	struct rows angles, x, q, k, v, att, gate, up; /* angles: of each position, without gaps */
	struct op ops[];
};

static struct matrix matrix_of(const struct obm *m, const struct obm_tensor *t)
{
	return (struct matrix){
		.shape = obm_shape(t),
		.packed = m->base + t->offset,
		.scales = t->scales ? (const void *)(m->base + t->scales) : NULL,
	};
}

static struct matrix matrix(const struct obm *m, uint32_t role, uint32_t layer)
{
	return matrix_of(m, obm_tensor(m, role, layer));
}

/* NULL where the architecture has none. */
static const float *norm(const struct obm *m, uint32_t role, uint32_t layer)
{
	const struct obm_tensor *t = obm_tensor(m, role, layer);

	return t ? (const void *)(m->base + t->offset) : NULL;
}

/* ---- what it takes ------------------------------------------------------------------------------- */

static uint32_t stride(uint32_t n)
{
	return (uint32_t)obm_align(n, PACKED_ROWS);
}

/* A place of n floats for each row behind the others; false: no size_t holds that. */
static bool reserve(struct rows *r, uint32_t n, uint32_t n_rows, size_t *bytes)
{
	size_t more;

	r->stride = stride(n);
	return !__builtin_mul_overflow((size_t)r->stride * sizeof(float), n_rows, &more) &&
	       !__builtin_add_overflow(*bytes, more, bytes);
}

/* Angles and x, then what attention needs and what the FFN needs: in the same place, never at once. */
static bool reserve_all(struct forward_opened *w, const struct obm_arch *a)
{
	uint32_t n = w->f.limits.rows, heads = a->heads * a->head_dim;
	uint32_t kv_heads = a->kv_heads * a->head_dim;
	size_t attn = 0, ffn = 0, *all = &w->work_bytes;

	*all = 0;
	return reserve(&w->angles, a->head_dim, w->f.limits.positions, all) &&
	       reserve(&w->x, a->hidden, n, all) && reserve(&w->q, heads, n, &attn) &&
	       reserve(&w->k, kv_heads, n, &attn) && reserve(&w->v, kv_heads, n, &attn) &&
	       reserve(&w->att, heads, n, &attn) && reserve(&w->gate, a->ffn, n, &ffn) &&
	       reserve(&w->up, a->ffn, n, &ffn) &&
	       !__builtin_add_overflow(*all, attn > ffn ? attn : ffn, all);
}

static float *place(struct rows *r, float *at, uint32_t n_rows)
{
	r->at = at;
	return at + (size_t)r->stride * n_rows;
}

static void place_all(struct forward_opened *w)
{
	uint32_t n = w->f.limits.rows;
	float *at = place(&w->angles, w->work, w->f.limits.positions), *attn;

	at = place(&w->x, at, n);
	attn = place(&w->k, place(&w->q, at, n), n);
	place(&w->att, place(&w->v, attn, n), n);
	place(&w->up, place(&w->gate, at, n), n);
}

/* ---- the tape ------------------------------------------------------------------------------------ */

static struct op *linear(struct op *o, uint32_t layer, const float *w, struct rows in)
{
	*o = (struct op){ .kind = OP_LINEAR, .layer = layer };
	o->u.linear.norm = w;
	o->u.linear.in = in;
	return o;
}

static void times(struct op *o, struct matrix m, struct rows out)
{
	o->u.linear.m[o->u.linear.n] = m;
	o->u.linear.out[o->u.linear.n++] = out;
}

static struct op *write_layer(const struct forward_opened *w, uint32_t i, struct op *o)
{
	const struct obm *m = w->model;

	linear(o, i, norm(m, OBM_ATTN_NORM, i), w->x);
	times(o, matrix(m, OBM_Q, i), w->q);
	times(o, matrix(m, OBM_K, i), w->k);
	times(o++, matrix(m, OBM_V, i), w->v);

	*o = (struct op){ .kind = OP_ROPE_KV, .layer = i };
	o->u.rope_kv.q = w->q;
	o->u.rope_kv.k = w->k;
	o++->u.rope_kv.v = w->v;

	*o = (struct op){ .kind = OP_ATTN, .layer = i };
	o->u.attn.q = w->q;
	o++->u.attn.out = w->att;

	linear(o, i, norm(m, OBM_ATTN_SUB_NORM, i), w->att)->u.linear.add = true;
	times(o++, matrix(m, OBM_O, i), w->x);

	linear(o, i, norm(m, OBM_FFN_NORM, i), w->x);
	times(o, matrix(m, OBM_GATE, i), w->gate);
	times(o++, matrix(m, OBM_UP, i), w->up);

	*o = (struct op){ .kind = OP_GATE, .layer = i };
	o->u.gate.act = m->arch->activation;
	o->u.gate.gate = w->gate;
	o++->u.gate.up = w->up;

	linear(o, i, norm(m, OBM_FFN_SUB_NORM, i), w->gate)->u.linear.add = true;
	times(o++, matrix(m, OBM_DOWN, i), w->x);
	return o;
}

static void write_tape(struct forward_opened *w)
{
	const struct obm *m = w->model;
	const struct obm_tensor *head = obm_tensor(m, OBM_HEAD, OBM_NO_LAYER);
	struct op *o = w->ops;

	*o = (struct op){ .kind = OP_EMBED };
	o->u.embed.table = matrix(m, OBM_EMBED, OBM_NO_LAYER);
	o++->u.embed.x = w->x;
	for (uint32_t i = 0; i < m->arch->layers; i++)
		o = write_layer(w, i, o);
	*o = (struct op){ .kind = OP_HEAD, .layer = m->arch->layers };
	o->u.head.norm = norm(m, OBM_FINAL_NORM, OBM_NO_LAYER);
	o->u.head.x = w->x;
	o->u.head.m = head ? matrix_of(m, head) : matrix(m, OBM_EMBED, OBM_NO_LAYER);
	o++;
	w->f.tape.ops = w->ops;
	w->f.tape.n = (uint32_t)(o - w->ops);
}

static void count(struct forward *f, const struct obm *m)
{
	uint32_t head = obm_tensor(m, OBM_HEAD, OBM_NO_LAYER) ? OBM_HEAD : OBM_EMBED;

	for (uint32_t i = 0; i < m->n_tensors; i++) {
		const struct obm_tensor *t = &m->tensors[i];
		struct packed_shape shape = obm_shape(t);
		uint64_t scales = t->layout ? packed_n_scales(&shape) * sizeof(float) : 0;

		/* Of the embedding a token takes one row. */
		if (t->role == OBM_EMBED && head != OBM_EMBED)
			continue;
		f->weight_bytes += t->bytes + scales;
		if (t->role == head)
			f->head_bytes = t->bytes + scales;
		else if (t->layout)
			f->macs += (uint64_t)t->rows * t->cols;
	}
}

/* ---- opening ------------------------------------------------------------------------------------- */

static int check(const struct obm_arch *a, const struct forward *f, uint64_t kv_bytes, char *why,
		 size_t why_len)
{
	uint64_t group = KV_GROUP * kv_block_bytes(&f->tape.dims);
	uint32_t cols = a->ffn > a->hidden ? a->ffn : a->hidden;

	cols = a->heads * a->head_dim > cols ? a->heads * a->head_dim : cols;
	if (cols > KERNELS_COLS_MAX)
		return obm_refuse(why, why_len, -EINVAL,
				  "the model has a matrix of %u columns; at most %u are "
				  "multiplied",
				  cols, KERNELS_COLS_MAX);
	if (f->tape.dims.kv_form > KV_INT8)
		return obm_refuse(why, why_len, -EINVAL, "there is no KV form %u",
				  f->tape.dims.kv_form);
	if (kv_bytes < group)
		return obm_refuse(why, why_len, -EINVAL,
				  "%llu bytes of KV memory are too few; %u positions of this "
				  "model take %llu",
				  (unsigned long long)kv_bytes, ATTN_CHUNK,
				  (unsigned long long)group);
	return 0;
}

static int take(struct forward_opened *w, uint64_t kv_bytes, char *why, size_t why_len)
{
	struct forward *f = &w->f;
	struct device *d = f->device;
	uint64_t group = KV_GROUP * kv_block_bytes(&f->tape.dims), n = kv_bytes / group;
	/* Numbers of blocks are 32 bits, and one is no block's. */
	uint64_t most = UINT32_MAX / KV_GROUP;

	n = n < most ? n : most;
	f->n_blocks = (uint32_t)n * KV_GROUP;
	f->kv_bytes = n * group;
	if (!reserve_all(w, w->model->arch) || f->kv_bytes > SIZE_MAX)
		return obm_refuse(why, why_len, -ENOMEM,
				  "buffers for %u rows and %u positions are more than can be "
				  "addressed",
				  f->limits.rows, f->limits.positions);
	f->work_bytes = w->work_bytes;
	w->work = d->type->alloc(d, w->work_bytes);
	w->kv = w->work ? d->type->alloc(d, (size_t)f->kv_bytes) : NULL;
	if (w->kv)
		return 0;
	return obm_refuse(why, why_len, -ENOMEM,
			  "no memory for %llu bytes of %s; give it less KV memory, or fewer slots",
			  (unsigned long long)(w->work ? f->kv_bytes : w->work_bytes),
			  w->work ? "KV cache" : "activations");
}

int forward_open(struct device *d, const struct obm *model, uint32_t kv_form, uint64_t kv_bytes,
		 const struct device_limits *limits, struct forward **out, char *why, size_t why_len)
{
	const struct obm_arch *a = model->arch;
	size_t n_ops = (size_t)a->layers * OPS_OF_LAYER + 2;
	struct forward_opened *w = calloc(1, sizeof(*w) + n_ops * sizeof(w->ops[0]));
	struct dims *dims;
	int err;

	if (!w)
		return obm_refuse(why, why_len, -ENOMEM, "no memory for %zu operations", n_ops);
	w->model = model;
	w->f.device = d;
	w->f.limits = *limits;
	if (w->f.limits.positions > a->context)
		w->f.limits.positions = a->context;
	dims = &w->f.tape.dims;
	*dims = (struct dims){
		.layers = a->layers, .hidden = a->hidden, .ffn = a->ffn, .heads = a->heads,
		.kv_heads = a->kv_heads, .head_dim = a->head_dim, .vocab = a->vocab,
		.eps = a->rms_eps, .attn_scale = attn_scale(a->head_dim), .kv_form = kv_form,
	};
	err = check(a, &w->f, kv_bytes, why, why_len);
	err = err ? err : take(w, kv_bytes, why, why_len);
	if (err)
		goto out;
	place_all(w);
	rope_table(obm_section(model, OBM_ROPE, 0, NULL), a->head_dim, 0, w->f.limits.positions,
		   w->angles.at);
	dims->cos_sin = w->angles.at;
	dims->kv = w->kv;
	write_tape(w);
	count(&w->f, model);
	err = d->type->load(d, &w->f.tape, &w->f.limits);
	if (err)
		err = obm_refuse(why, why_len, err,
				 "no memory for device %s to run %u rows and %u positions", d->name,
				 w->f.limits.rows, w->f.limits.positions);
out:
	if (err)
		forward_close(&w->f);
	else
		*out = &w->f;
	return err;
}

struct forward *forward_close(struct forward *f)
{
	struct forward_opened *w = (struct forward_opened *)f;
	struct device *d;

	if (!w)
		return NULL;
	d = w->f.device;
	if (w->work)
		d->type->free(d, w->work, w->work_bytes);
	if (w->kv)
		d->type->free(d, w->kv, (size_t)w->f.kv_bytes);
	free(w);
	return NULL;
}

/* SPDX-License-Identifier: MIT */
/*
 * What playing a tape takes, found out once: the widest of everything in it. The layout of the
 * memory is written once and gone through twice, to count and to hand out. Pages are not touched
 * here: who works on them first has them near.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include "device_cpu_private.h"

/* Rows whose attention may be kept in pieces; beyond, rows alone are enough work for all. */
#define SPLIT_ROWS 64u
/* Weights that are taken at a time: some microseconds, so that beginning does not count. */
#define PIECE_BYTES 65536u

struct needs {
	size_t cols, laid, sums, kinds; /* of OP_LINEAR, each the widest */
	size_t sum;			/* of outs that are added */
	size_t head, head_laid;		/* columns; the same in whole units */
	size_t scratch;
};

static size_t widest(size_t *has, size_t n)
{
	*has = n > *has ? n : *has;
	return *has;
}

/* ---- plans ----------------------------------------------------------------------------------- */

static uint64_t matrix_bytes(const struct matrix *m)
{
	return packed_bytes(&m->shape) + packed_n_scales(&m->shape) * sizeof(float);
}

/* Matrices that lay their input out alike share it. */
static void plan_linear(const struct op *op, struct plan *plan, struct needs *n)
{
	uint32_t kinds = 0;

	for (uint32_t i = 0; i < op->u.linear.n; i++) {
		const struct packed_shape *s = &op->u.linear.m[i].shape;
		uint32_t same = 0;

		while (same < i && (op->u.linear.m[same].shape.layout != s->layout ||
				    op->u.linear.m[same].shape.groups != s->groups))
			same++;
		plan->kind[i] = same < i ? plan->kind[same] : kinds++;
		plan->bytes += matrix_bytes(&op->u.linear.m[i]);
		assert(s->cols == op->u.linear.m[0].shape.cols);
		assert(op->u.linear.out[i].stride >= packed_tiles(s) * PACKED_ROWS);
		widest(&n->cols, s->cols);
		widest(&n->laid, laid_stride(s));
		widest(&n->sums, s->groups);
		widest(&n->scratch, kernels_scratch_bytes(s));
		if (op->u.linear.add)
			widest(&n->sum, (size_t)packed_tiles(s) * PACKED_ROWS);
	}
	widest(&n->kinds, kinds);
}

/* Whether a gate works on what these two products make, column by column. */
static bool feeds(const struct dims *d, const struct op *op, const struct op *next)
{
	if (next->kind != OP_GATE || op->u.linear.n != 2 || op->u.linear.add)
		return false;
	for (uint32_t i = 0; i < 2; i++) {
		const float *at = op->u.linear.out[i].at;

		if (op->u.linear.m[i].shape.rows != d->ffn ||
		    (at != next->u.gate.gate.at && at != next->u.gate.up.at))
			return false;
	}
	return true;
}

static void plan_units(const struct op *op, bool gated, struct plan *plan)
{
	uint64_t unit;

	plan->gated = gated;
	for (uint32_t i = 0; i < (gated ? 1 : op->u.linear.n); i++)
		plan->units += packed_tiles(&op->u.linear.m[i].shape);
	assert(plan->units);
	unit = plan->bytes / plan->units + 1;
	plan->piece = unit < PIECE_BYTES ? (uint32_t)(PIECE_BYTES / unit) : 1;
}

static void make_plans(const struct tape *t, struct plan *plans, struct needs *n)
{
	for (uint32_t i = 0; i < t->n; i++) {
		const struct op *op = &t->ops[i];

		if (op->kind == OP_LINEAR) {
			plan_linear(op, &plans[i], n);
			plan_units(op, i + 1 < t->n && feeds(&t->dims, op, op + 1), &plans[i]);
			if (plans[i].gated)
				plans[i + 1].done = true;
		} else if (op->kind == OP_HEAD) {
			const struct packed_shape *s = &op->u.head.m.shape;

			plans[i].bytes = matrix_bytes(&op->u.head.m);
			widest(&n->head, s->cols);
			widest(&n->head_laid, (size_t)packed_units(s) * packed_span(s->layout));
			widest(&n->scratch, kernels_scratch_bytes(s));
		}
	}
}

/* ---- memory ---------------------------------------------------------------------------------- */

struct carve {
	uint8_t *from; /* NULL: counting only */
	size_t bytes;
	bool overflow;
};

/* a * b things of a size, aligned. */
static void *take(struct carve *c, size_t a, size_t b, size_t size)
{
	size_t at = c->bytes, n;

	c->overflow |= __builtin_mul_overflow(a, b, &n) || __builtin_mul_overflow(n, size, &n) ||
		       __builtin_add_overflow(n, KERNELS_ALIGN - 1, &n) ||
		       __builtin_add_overflow(at, n / KERNELS_ALIGN * KERNELS_ALIGN, &c->bytes);
	return c->from ? c->from + at : NULL;
}

static void take_laid(struct carve *c, struct laid_rows *l, const struct needs *n, size_t rows)
{
	l->laid = take(c, n->kinds * rows, n->laid, 1);
	l->sums = take(c, n->kinds * rows, n->sums, sizeof(*l->sums));
	l->d = take(c, rows, 1, sizeof(*l->d));
	l->kind_bytes = rows * n->laid;
	l->kind_sums = rows * n->sums;
}

static void take_normed(struct carve *c, struct normed_rows *r, const struct needs *n, size_t rows)
{
	struct laid_head one = { .sum_high = 0 };

	r->stride = (n->head + PACKED_ROWS - 1) / PACKED_ROWS * PACKED_ROWS;
	r->y = take(c, rows, r->stride, sizeof(*r->y));
	r->laid = take(c, rows, 1, sizeof(*r->laid));
	r->d = take(c, rows, 1, sizeof(*r->d));
	for (size_t i = 0; i < rows; i++) {
		one.q = take(c, n->head_laid, 1, sizeof(*one.q));
		one.high = take(c, n->head_laid, 1, 1);
		one.low = take(c, n->head_laid, 1, 1);
		if (r->laid)
			r->laid[i] = one;
	}
}

static void take_chunks(struct carve *c, const struct dims *t, size_t chunks, float **m, float **l,
			float **o)
{
	size_t n_q = t->heads / t->kv_heads;

	*m = take(c, chunks, n_q, sizeof(float));
	*l = take(c, chunks, n_q, sizeof(float));
	*o = take(c, chunks, n_q * t->head_dim, sizeof(float));
}

static void take_all(struct device_cpu *d, struct carve *c, const struct tape *t,
		     const struct device_limits *l, const struct needs *n)
{
	const size_t pages = (size_t)l->positions / KV_PAGE + 1,
		     chunks = (size_t)l->positions / ATTN_CHUNK + 1;
	struct attn_share *a = &d->attn;

	take_laid(c, &d->laid, n, l->rows);
	take_normed(c, &d->normed, n, l->outs);
	d->sorted = take(c, l->outs, 1, sizeof(*d->sorted));
	d->runs = take(c, l->outs, 1, sizeof(*d->runs));
	d->sum_stride = n->sum;
	d->sum = take(c, l->rows, n->sum, sizeof(*d->sum));

	a->max_rows = l->rows < SPLIT_ROWS ? l->rows : SPLIT_ROWS;
	a->max_chunks = (uint32_t)(a->max_rows * chunks);
	a->pieces = take(c, a->max_chunks, 1, sizeof(*a->pieces));
	a->first_chunk = take(c, a->max_rows, 1, sizeof(*a->first_chunk));
	a->n_parts = take(c, a->max_rows, 1, sizeof(*a->n_parts));
	a->n_done = take(c, a->max_rows, t->dims.kv_heads, sizeof(*a->n_done));
	take_chunks(c, &t->dims, (size_t)a->max_chunks * t->dims.kv_heads, &a->m, &a->l, &a->o);

	for (unsigned w = 0; w < d->threads; w++) {
		struct hand hand = { .turn = 0 };

		hand.q = take(c, n->cols, 1, 1);
		hand.wide = take(c, n->head, 1, sizeof(*hand.wide));
		take_laid(c, &hand.laid, n, 1);
		take_normed(c, &hand.normed, n, 1);
		hand.scratch = take(c, n->scratch, 1, 1);
		hand.pages = take(c, pages, 1, sizeof(*hand.pages));
		take_chunks(c, &t->dims, chunks, &hand.m, &hand.l, &hand.o);
		if (c->from)
			d->hands[w] = hand;
	}
}

int cpu_load(struct device *device, const struct tape *t, const struct device_limits *l)
{
	struct device_cpu *d = (struct device_cpu *)device;
	struct needs needs = { .sums = 1, .scratch = KERNELS_ALIGN };
	struct carve c = { 0 };

	cpu_unload(d);
	d->plans = calloc(t->n ? t->n : 1, sizeof(*d->plans));
	d->hands = aligned_alloc(KERNELS_ALIGN, d->threads * sizeof(*d->hands));
	if (!d->plans || !d->hands)
		goto no_memory;
	make_plans(t, d->plans, &needs);
	take_all(d, &c, t, l, &needs);
	if (c.overflow)
		goto no_memory;
	d->memory = device->type->alloc(device, c.bytes);
	if (!d->memory)
		goto no_memory;
	d->memory_bytes = c.bytes;
	c = (struct carve){ .from = d->memory };
	take_all(d, &c, t, l, &needs);
	assert(c.bytes == d->memory_bytes);
	d->next[0] = d->next[1] = 0;
	d->tape = t;
	d->limits = *l;
	return 0;

no_memory:
	cpu_unload(d);
	return -ENOMEM;
}

void cpu_unload(struct device_cpu *d)
{
	if (d->memory)
		d->device.type->free(&d->device, d->memory, d->memory_bytes);
	d->memory = NULL;
	free(d->plans);
	d->plans = NULL;
	free(d->hands);
	d->hands = NULL;
	d->tape = NULL;
}

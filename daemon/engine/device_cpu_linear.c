/* SPDX-License-Identifier: MIT */
/*
 * OP_LINEAR and OP_GATE. The tiles of all matrices of an operation are one row of work. Where a
 * gate follows, tiles of both its sides are made together and gated at once, without a barrier
 * between.
 *
 * A single row is quantised by every worker for itself, which costs less than a barrier and one
 * worker's bytes on their way to the others. Several are shared out.
 */
#include <assert.h>
#include "device_cpu_private.h"

/* Tiles whose products are added to the residual while they are in the cache. */
#define ADD_TILES 8u

/* Where matrix i finds a row. */
static const int8_t *laid_at(const struct laid_rows *in, const struct plan *plan, uint32_t i)
{
	return in->laid + plan->kind[i] * in->kind_bytes;
}

static int32_t *sums_at(const struct laid_rows *in, const struct plan *plan, uint32_t i)
{
	return in->sums + plan->kind[i] * in->kind_sums;
}

static void quantise(struct device_cpu *d, const struct op *op, const struct plan *plan,
		     const struct laid_rows *in, uint32_t row, uint32_t *faults, int8_t *q)
{
	const struct packed_shape *first = &op->u.linear.m[0].shape;
	uint32_t laid = 0;

	d->f.norm_quant(row_at(&op->u.linear.in, row), op->u.linear.norm, first->cols,
			d->tape->dims.eps, q, &in->d[row], faults);
	for (uint32_t i = 0; i < op->u.linear.n; i++) {
		const struct packed_shape *s = &op->u.linear.m[i].shape;

		if (plan->kind[i] < laid)
			continue;
		laid++;
		lay_ternary(s, q,
			    in->laid + plan->kind[i] * in->kind_bytes + row * laid_stride(s),
			    sums_at(in, plan, i) + (size_t)row * s->groups);
	}
}

static void multiply(struct device_cpu *d, const struct op *op, const struct plan *plan,
		     const struct laid_rows *in, uint32_t i, uint32_t tile0, uint32_t tile1,
		     float *y, size_t stride, void *scratch)
{
	const struct matrix *m = &op->u.linear.m[i];
	const struct packed_shape *s = &m->shape;
	const struct ternary_rows rows = {
		.n = d->batch->n_rows,
		.laid = laid_at(in, plan, i),
		.stride = laid_stride(s),
		.sums = sums_at(in, plan, i),
		.d = in->d,
	};

	if (rows.n > 1 && d->k.ternary_rows[s->layout]) {
		d->k.ternary_rows[s->layout](s, m->packed, m->scales, &rows, tile0, tile1, y,
					     stride, scratch);
		return;
	}
	for (uint32_t r = 0; r < rows.n; r++)
		d->k.ternary[s->layout](s, m->packed, m->scales, rows.laid + r * rows.stride,
					rows.sums + (size_t)r * s->groups, rows.d[r], tile0, tile1,
					y + r * stride);
}

static void multiply_add(struct device_cpu *d, const struct op *op, const struct plan *plan,
			 const struct laid_rows *in, uint32_t i, uint32_t tile0, uint32_t tile1,
			 void *scratch)
{
	const uint32_t n_rows = d->batch->n_rows, rows = op->u.linear.m[i].shape.rows;
	const uint32_t step = n_rows == 1 ? tile1 - tile0 : ADD_TILES;

	for (; tile0 < tile1; tile0 += step) {
		uint32_t end = tile1 - tile0 < step ? tile1 : tile0 + step;
		uint32_t from = tile0 * PACKED_ROWS, to = end * PACKED_ROWS;

		multiply(d, op, plan, in, i, tile0, end, d->sum, d->sum_stride, scratch);
		to = to < rows ? to : rows;
		for (uint32_t r = 0; r < n_rows; r++)
			d->f.add(row_at(&op->u.linear.out[i], r) + from,
				 d->sum + r * d->sum_stride + from, to - from);
	}
}

/*
 * Units of work: a gated pair's are a tile of each, others' are the tiles of one matrix after
 * another.
 */
static void units(struct device_cpu *d, const struct op *op, const struct plan *plan,
		  const struct laid_rows *in, uint32_t from, uint32_t to, void *scratch)
{
	for (uint32_t i = 0, begin = 0; i < op->u.linear.n; i++) {
		const struct rows *out = &op->u.linear.out[i];
		uint32_t tiles = packed_tiles(&op->u.linear.m[i].shape);
		uint32_t tile0 = from > begin ? from - begin : 0;
		uint32_t tile1 = to > begin ? to - begin : 0;

		tile1 = tile1 < tiles ? tile1 : tiles;
		if (!plan->gated)
			begin += tiles;
		if (tile0 >= tile1)
			continue;
		if (op->u.linear.add)
			multiply_add(d, op, plan, in, i, tile0, tile1, scratch);
		else
			multiply(d, op, plan, in, i, tile0, tile1, out->at, out->stride, scratch);
	}
	if (plan->gated)
		cpu_gate(d, op + 1, from * PACKED_ROWS, to * PACKED_ROWS);
}

void cpu_linear(struct device_cpu *d, const struct op *op, const struct plan *plan, unsigned w)
{
	const uint32_t n_rows = d->batch->n_rows;
	const struct hand *hand = &d->hands[w];
	const struct laid_rows *in = n_rows == 1 ? &hand->laid : &d->laid;
	struct split s;

	for (uint32_t r = n_rows == 1 ? 0 : w; r < n_rows; r += d->threads) {
		uint32_t faults = 0;

		quantise(d, op, plan, in, r, &faults, hand->q);
		/* All workers see the same of a single row; it counts once. */
		fault(d, r, n_rows == 1 && w ? 0 : faults);
	}
	if (n_rows > 1)
		pool_barrier(d->pool, w);
	s = split_begin(d, plan->units, OWN, plan->piece, w);
	for (bool first = true; split_next(&s, first); first = false)
		units(d, op, plan, in, s.from, s.to, hand->scratch);
}

void cpu_gate(struct device_cpu *d, const struct op *op, uint32_t from, uint32_t to)
{
	to = to < d->tape->dims.ffn ? to : d->tape->dims.ffn;
	for (uint32_t r = 0; from < to && r < d->batch->n_rows; r++) {
		float *gate = row_at(&op->u.gate.gate, r) + from;

		d->f.gate(op->u.gate.act, gate, row_at(&op->u.gate.up, r) + from, to - from, gate);
	}
}

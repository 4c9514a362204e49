/* SPDX-License-Identifier: MIT */
/*
 * OP_HEAD. The head is read once for all outs whose logits lie evenly in memory, which is all of
 * them where one array holds them. A single out is normed by every worker for itself, several are
 * shared out. Who makes logits looks at them: the last of the contract's checked points.
 */
#include <string.h>
#include "device_cpu_private.h"

/* ---- what is one product --------------------------------------------------------------------- */

/* Outs without logits stand behind the others. */
static uintptr_t address(const struct batch_out *o)
{
	return o->logits ? (uintptr_t)o->logits : UINTPTR_MAX;
}

/* Floats between the logits of two outs; 0 where they cannot be rows of one product. */
static size_t distance(const struct batch_out *a, const struct batch_out *b)
{
	size_t bytes = address(b) - address(a);

	return b->logits && bytes % (PACKED_ROWS * sizeof(float)) == 0 ? bytes / sizeof(float) : 0;
}

void cpu_head_runs(struct device_cpu *d)
{
	const struct batch *b = d->batch;

	for (uint32_t i = 0; i < b->n_outs; i++) {
		uint32_t at = i;

		/* Mostly ascending already. */
		for (; at && address(&b->outs[d->sorted[at - 1]]) > address(&b->outs[i]); at--)
			d->sorted[at] = d->sorted[at - 1];
		d->sorted[at] = i;
	}
	d->n_runs = 0;
	for (uint32_t i = 0; i < b->n_outs && b->outs[d->sorted[i]].logits;) {
		struct head_run *run = &d->runs[d->n_runs++];

		*run = (struct head_run){ .first = i, .n = 1 };
		run->logits = b->outs[d->sorted[i]].logits;
		for (i++; i < b->n_outs; i++, run->n++) {
			size_t stride = distance(&b->outs[d->sorted[i - 1]],
						 &b->outs[d->sorted[i]]);

			if (stride == 0 || (run->n > 1 && stride != run->stride))
				break;
			run->stride = stride;
		}
	}
}

/* ---- the norm -------------------------------------------------------------------------------- */

static void norm(struct device_cpu *d, const struct op *op, const struct normed_rows *to,
		 uint32_t i, const struct hand *hand, uint32_t *faults)
{
	const struct batch_out *out = &d->batch->outs[d->sorted[i]];
	const struct packed_shape *s = &op->u.head.m.shape;
	float *y = to->y + i * to->stride;

	d->f.norm_head(row_at(&op->u.head.x, out->row), op->u.head.norm, s->cols,
		       d->tape->dims.eps, y, hand->wide, &to->d[i], faults);
	if (out->logits && s->layout == PACKED_INT8)
		lay_head(s, hand->wide, &to->laid[i]);
}

/* ---- the products ---------------------------------------------------------------------------- */

/* Whether a value of whole tiles is not finite: an exponent of all ones plus one is a sign. */
static uint32_t not_finite(const float *y, size_t n)
{
	uint32_t found = 0;

	for (size_t i = 0; i < n; i += PACKED_ROWS) {
		uint32_t bits[PACKED_ROWS], any[PACKED_ROWS / 4] = { 0 };

		memcpy(bits, y + i, sizeof(bits));
		for (unsigned j = 0; j < PACKED_ROWS; j++)
			any[j % (PACKED_ROWS / 4)] |= (bits[j] & 0x7f800000) + 0x00800000;
		for (unsigned j = 0; j < PACKED_ROWS / 4; j++)
			found |= any[j];
	}
	return found >> 31;
}

static void multiply(struct device_cpu *d, const struct matrix *m, const struct normed_rows *in,
		     const struct head_run *run, uint32_t tile0, uint32_t tile1, void *scratch)
{
	const struct packed_shape *s = &m->shape;
	const struct head_rows rows = { run->n, in->laid + run->first, in->d + run->first };

	if (s->layout != PACKED_INT8) {
		d->k.head_half(s, m->packed, in->y + run->first * in->stride, in->stride, run->n,
			       tile0, tile1, run->logits, run->stride);
	} else if (run->n > 1 && d->k.head_int8_rows) {
		d->k.head_int8_rows(s, m->packed, m->scales, &rows, tile0, tile1, run->logits,
				    run->stride, scratch);
	} else {
		for (uint32_t i = 0; i < run->n; i++)
			d->k.head_int8(s, m->packed, m->scales, &rows.laid[i], rows.d[i], tile0,
				       tile1, run->logits + i * run->stride);
	}
}

/* Some tiles of all logits, and a look at them while they are in the cache. */
static void head_tiles(struct device_cpu *d, const struct matrix *m, const struct normed_rows *in,
		       uint32_t tile0, uint32_t tile1, void *scratch)
{
	const struct batch *b = d->batch;

	for (uint32_t r = 0; r < d->n_runs; r++) {
		const struct head_run *run = &d->runs[r];

		multiply(d, m, in, run, tile0, tile1, scratch);
		for (uint32_t i = 0; i < run->n; i++)
			fault(d, b->outs[d->sorted[run->first + i]].row,
			      not_finite(run->logits + i * run->stride + tile0 * PACKED_ROWS,
					 (size_t)(tile1 - tile0) * PACKED_ROWS));
	}
}

void cpu_head(struct device_cpu *d, const struct op *op, unsigned w)
{
	const struct batch *b = d->batch;
	const struct matrix *m = &op->u.head.m;
	const struct hand *hand = &d->hands[w];
	const struct normed_rows *in = b->n_outs == 1 ? &hand->normed : &d->normed;
	struct split s;

	for (uint32_t i = b->n_outs == 1 ? 0 : w; i < b->n_outs; i += d->threads) {
		const struct batch_out *out = &b->outs[d->sorted[i]];
		uint32_t faults = 0;

		norm(d, op, in, i, hand, &faults);
		/* All workers see the same of a single out; one tells it. */
		if (b->n_outs == 1 && w)
			continue;
		fault(d, out->row, faults);
		if (out->final)
			memcpy(out->final, in->y + i * in->stride,
			       m->shape.cols * sizeof(*out->final));
	}
	if (b->n_outs > 1)
		pool_barrier(d->pool, w);
	if (d->n_runs == 0)
		return;
	s = split_begin(d, packed_tiles(&m->shape), OWN, 2, w);
	for (bool first = true; split_next(&s, first); first = false)
		head_tiles(d, m, in, s.from, s.to, hand->scratch);
}

/* SPDX-License-Identifier: MIT */
/*
 * OP_ROPE_KV and OP_ATTN. Work is a row and a KV head with its query heads, taken one after another
 * by who is free, because rows are of different lengths. Where that is too little for all workers,
 * as in decoding, a row's chunks are cut into pieces as well; what they make is kept until the
 * row's last piece is done, and who has done that merges them. The contract's merge goes over
 * chunks in their order, whoever made them.
 */
#include <string.h>
#include "device_cpu_private.h"

/* Pieces for each worker, so that the last to finish is not far behind. */
#define PIECES 8u

static uint32_t chunks_of(const struct batch *b, uint32_t row)
{
	return b->pos[row] / ATTN_CHUNK + 1;
}

static void *page_of(const struct device_cpu *d, uint32_t row, uint32_t page, uint32_t layer,
		     uint32_t head)
{
	const struct batch *b = d->batch;

	return kv_page_at(&d->tape->dims, b->blocks[b->seq[row]][page], layer, head);
}

/* ---- rotation and append --------------------------------------------------------------------- */

/* Rows of a head stand together: neighbours in a page share its cache lines. */
void cpu_rope_kv(struct device_cpu *d, const struct op *op, unsigned w)
{
	const struct dims *t = &d->tape->dims;
	const struct batch *b = d->batch;
	const uint32_t n = b->n_rows * t->kv_heads, n_q = t->heads / t->kv_heads;

	for (uint32_t i = share(d, n, w), end = share(d, n, w + 1); i < end; i++) {
		uint32_t row = i % b->n_rows, head = i / b->n_rows, pos = b->pos[row], faults = 0;
		const float *cos_sin = t->cos_sin + (size_t)pos * t->head_dim;
		float *q = row_at(&op->u.rope_kv.q, row) + (size_t)head * n_q * t->head_dim;
		float *k = row_at(&op->u.rope_kv.k, row) + (size_t)head * t->head_dim;
		float *v = row_at(&op->u.rope_kv.v, row) + (size_t)head * t->head_dim;

		d->f.rope(q, n_q, t->head_dim, cos_sin);
		d->f.rope(k, 1, t->head_dim, cos_sin);
		d->f.kv_put(t->kv_form, page_of(d, row, pos / KV_PAGE, op->layer, head),
			    t->head_dim, pos % KV_PAGE, k, v, &faults);
		fault(d, row, faults);
	}
}

/* ---- how a batch is shared out --------------------------------------------------------------- */

void cpu_attn_share(struct device_cpu *d)
{
	const struct batch *b = d->batch;
	const uint32_t kv_heads = d->tape->dims.kv_heads;
	struct attn_share *a = &d->attn;
	uint64_t total = 0, length;

	a->split = false;
	if (d->threads == 1 || b->n_rows > a->max_rows)
		return;
	for (uint32_t r = 0; r < b->n_rows; r++)
		total += chunks_of(b, r);
	if (total > a->max_chunks)
		return;
	a->split = true;
	a->n_pieces = a->n_chunks = 0;
	length = total * kv_heads / (d->threads * PIECES);
	length = length ? length : 1;
	for (uint32_t r = 0; r < b->n_rows; r++) {
		uint32_t chunks = chunks_of(b, r), n = (uint32_t)((chunks + length - 1) / length);

		for (uint32_t i = 0; i < n; i++)
			a->pieces[a->n_pieces++] = (struct piece){
				.row = r,
				.chunk0 = (uint32_t)((uint64_t)chunks * i / n),
				.chunk1 = (uint32_t)((uint64_t)chunks * (i + 1) / n),
			};
		a->n_parts[r] = n;
		a->first_chunk[r] = a->n_chunks;
		a->n_chunks += chunks;
	}
}

/* ---- attention ------------------------------------------------------------------------------- */

static void chunks(struct device_cpu *d, const struct op *op, const struct hand *hand,
		   uint32_t head, const struct piece *p, float *m, float *l, float *o)
{
	const struct dims *t = &d->tape->dims;
	const uint32_t n_q = t->heads / t->kv_heads, n_all = d->batch->pos[p->row] + 1;
	const uint32_t from = p->chunk0 * ATTN_CHUNK;
	uint32_t to = p->chunk1 * ATTN_CHUNK, n = 0;

	to = to < n_all ? to : n_all;
	for (uint32_t at = from; at < to; at += KV_PAGE)
		hand->pages[n++] = page_of(d, p->row, at / KV_PAGE, op->layer, head);
	d->f.attn_chunks(t->kv_form, hand->pages, t->head_dim, to - from, n_q,
			 row_at(&op->u.attn.q, p->row) + (size_t)head * n_q * t->head_dim,
			 t->attn_scale, m, l, o);
}

static void merge(struct device_cpu *d, const struct op *op, uint32_t head, uint32_t row,
		  const float *m, const float *l, const float *o)
{
	const struct dims *t = &d->tape->dims;
	const uint32_t n_q = t->heads / t->kv_heads;
	uint32_t faults = 0;

	d->f.attn_merge(m, l, o, chunks_of(d->batch, row), n_q, t->head_dim,
			row_at(&op->u.attn.out, row) + (size_t)head * n_q * t->head_dim, &faults);
	fault(d, row, faults);
}

static void whole_row(struct device_cpu *d, const struct op *op, const struct hand *hand,
		      uint32_t head, uint32_t row)
{
	const struct piece all = { row, 0, chunks_of(d->batch, row) };

	chunks(d, op, hand, head, &all, hand->m, hand->l, hand->o);
	merge(d, op, head, row, hand->m, hand->l, hand->o);
}

static void part(struct device_cpu *d, const struct op *op, const struct hand *hand, uint32_t head,
		 const struct piece *p)
{
	const struct dims *t = &d->tape->dims;
	const size_t n_q = t->heads / t->kv_heads;
	struct attn_share *a = &d->attn;
	size_t first = (size_t)head * a->n_chunks + a->first_chunk[p->row];
	size_t at = (first + p->chunk0) * n_q;
	uint32_t *n_done = &a->n_done[(size_t)head * a->max_rows + p->row];

	chunks(d, op, hand, head, p, a->m + at, a->l + at, a->o + at * t->head_dim);
	/* Release: these chunks are there. Acquire: so are the others', when this is the last. */
	if (__atomic_add_fetch(n_done, 1, __ATOMIC_ACQ_REL) < a->n_parts[p->row])
		return;
	__atomic_store_n(n_done, 0, __ATOMIC_RELAXED);
	first *= n_q;
	merge(d, op, head, p->row, a->m + first, a->l + first, a->o + first * t->head_dim);
}

void cpu_attn(struct device_cpu *d, const struct op *op, unsigned w)
{
	const uint32_t n = d->attn.split ? d->attn.n_pieces : d->batch->n_rows;
	const struct hand *hand = &d->hands[w];
	struct split s = split_begin(d, n * d->tape->dims.kv_heads, 0, 1, w);

	for (bool first = true; split_next(&s, first); first = false)
		for (; s.from < s.to; s.from++) {
			uint32_t head = s.from / n, at = s.from % n;
			const struct piece *p = d->attn.pieces + at;

			if (!d->attn.split)
				whole_row(d, op, hand, head, at);
			else if (d->attn.n_parts[p->row] == 1)
				whole_row(d, op, hand, head, p->row);
			else
				part(d, op, hand, head, p);
		}
}

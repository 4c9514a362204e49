/* SPDX-License-Identifier: MIT */
#include "lib_plain_device.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Not from malloc(), which a test may have replaced. The page before it says how long it is. */
static void *must_alloc(size_t bytes)
{
	size_t all = (bytes + 4095) / 4096 * 4096 + 4096;
	size_t *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert(p != MAP_FAILED);
	*p = all;
	return (uint8_t *)p + 4096;
}

static void give_back(void *p)
{
	size_t *start;

	if (!p)
		return;
	start = (void *)((uint8_t *)p - 4096);
	munmap(start, *start);
}

static float *row_of(struct rows r, uint32_t row)
{
	return r.at + (size_t)row * r.stride;
}

static uint32_t max(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

/* ---- operations, for one row ------------------------------------------------------------------- */

static void embed(const struct plain_device *p, const struct op *o, uint32_t row)
{
	struct float_ops f;

	float_ops_choose(&f, 0);
	f.embed(&o->u.embed.table.shape, o->u.embed.table.packed, o->u.embed.table.scales,
		p->batch->token[row], row_of(o->u.embed.x, row));
}

static void linear(const struct plain_device *p, const struct op *o, uint32_t row)
{
	const struct dims *d = &p->tape->dims;
	struct float_ops f;
	struct kernels k;
	float scale;

	float_ops_choose(&f, 0);
	kernels_choose(&k, 0);
	f.norm_quant(row_of(o->u.linear.in, row), o->u.linear.norm, o->u.linear.m[0].shape.cols,
		     d->eps, p->q8, &scale, &p->batch->faults[row]);
	for (uint32_t i = 0; i < o->u.linear.n; i++) {
		const struct matrix *m = &o->u.linear.m[i];
		float *out = row_of(o->u.linear.out[i], row);

		lay_ternary(&m->shape, p->q8, p->laid, p->sums);
		k.ternary[m->shape.layout](&m->shape, m->packed, m->scales, p->laid, p->sums,
					   scale, 0, packed_tiles(&m->shape), p->y);
		if (o->u.linear.add)
			f.add(out, p->y, m->shape.rows);
		else
			memcpy(out, p->y, m->shape.rows * sizeof(*out));
	}
}

static void *page_of(const struct plain_device *p, uint32_t layer, uint32_t row, uint32_t pos,
		     uint32_t head)
{
	const uint32_t *blocks = p->batch->blocks[p->batch->seq[row]];

	return kv_page_at(&p->tape->dims, blocks[pos / KV_PAGE], layer, head);
}

static void rope_kv(const struct plain_device *p, const struct op *o, uint32_t row)
{
	const struct dims *d = &p->tape->dims;
	uint32_t pos = p->batch->pos[row];
	const float *angles = d->cos_sin + (size_t)pos * d->head_dim;
	struct float_ops f;

	float_ops_choose(&f, 0);
	f.rope(row_of(o->u.rope_kv.q, row), d->heads, d->head_dim, angles);
	f.rope(row_of(o->u.rope_kv.k, row), d->kv_heads, d->head_dim, angles);
	for (uint32_t h = 0; h < d->kv_heads; h++)
		f.kv_put(d->kv_form, page_of(p, o->layer, row, pos, h), d->head_dim, pos % KV_PAGE,
			 row_of(o->u.rope_kv.k, row) + (size_t)h * d->head_dim,
			 row_of(o->u.rope_kv.v, row) + (size_t)h * d->head_dim,
			 &p->batch->faults[row]);
}

static void attn(const struct plain_device *p, const struct op *o, uint32_t row)
{
	const struct dims *d = &p->tape->dims;
	uint32_t n = p->batch->pos[row] + 1, n_q = d->heads / d->kv_heads;
	struct float_ops f;

	float_ops_choose(&f, 0);
	for (uint32_t h = 0; h < d->kv_heads; h++) {
		size_t at = (size_t)h * n_q * d->head_dim;

		for (uint32_t pos = 0; pos < n; pos += KV_PAGE)
			p->pages[pos / KV_PAGE] = page_of(p, o->layer, row, pos, h);
		f.attn_chunks(d->kv_form, p->pages, d->head_dim, n, n_q,
			      row_of(o->u.attn.q, row) + at, d->attn_scale, p->m, p->l, p->o);
		f.attn_merge(p->m, p->l, p->o, (n + ATTN_CHUNK - 1) / ATTN_CHUNK, n_q, d->head_dim,
			     row_of(o->u.attn.out, row) + at, &p->batch->faults[row]);
	}
}

static void gate(const struct plain_device *p, const struct op *o, uint32_t row)
{
	struct float_ops f;

	float_ops_choose(&f, 0);
	f.gate(o->u.gate.act, row_of(o->u.gate.gate, row), row_of(o->u.gate.up, row),
	       p->tape->dims.ffn, row_of(o->u.gate.gate, row));
}

/* What a hint allows is done: logits that cannot be among the k best are lost. */
static void keep_best(float *z, uint32_t n, uint32_t k)
{
	float least = -INFINITY;

	for (uint32_t i = 0; i < n; i++) {
		uint32_t above = 0;

		for (uint32_t j = 0; j < n; j++)
			above += z[j] > z[i];
		/* The k-th best: fewer than k are above it, and with its equals there are k. */
		if (above < k && (least == -INFINITY || z[i] < least))
			least = z[i];
	}
	for (uint32_t i = 0; i < n; i++)
		z[i] = z[i] < least ? -INFINITY : z[i];
}

static void head(const struct plain_device *p, const struct op *o, const struct batch_out *out)
{
	const struct dims *d = &p->tape->dims;
	const struct matrix *m = &o->u.head.m;
	uint32_t tiles = packed_tiles(&m->shape), *faults = &p->batch->faults[out->row];
	struct laid_head laid = p->head;
	struct float_ops f;
	struct kernels k;
	float scale;

	float_ops_choose(&f, 0);
	kernels_choose(&k, 0);
	f.norm_head(row_of(o->u.head.x, out->row), o->u.head.norm, d->hidden, d->eps, p->y, p->q16,
		    &scale, faults);
	if (out->final)
		memcpy(out->final, p->y, d->hidden * sizeof(float));
	if (!out->logits)
		return;
	if (m->shape.layout == PACKED_INT8) {
		lay_head(&m->shape, p->q16, &laid);
		k.head_int8(&m->shape, m->packed, m->scales, &laid, scale, 0, tiles, out->logits);
	} else {
		k.head_half(&m->shape, m->packed, p->y, d->hidden, 1, 0, tiles, out->logits,
			    (size_t)tiles * PACKED_ROWS);
	}
	for (uint32_t i = 0; i < d->vocab; i++)
		*faults += !isfinite(out->logits[i]);
	if (out->top)
		keep_best(out->logits, d->vocab, out->top);
}

/* ---- the device ---------------------------------------------------------------------------------- */

static void *plain_alloc(struct device *d, size_t bytes)
{
	struct plain_device *p = (struct plain_device *)d;

	if (p->fail_alloc && !--p->fail_alloc)
		return NULL;
	p->allocated++;
	return must_alloc(bytes);
}

static void plain_free(struct device *d, void *at, size_t bytes)
{
	struct plain_device *p = (struct plain_device *)d;

	(void)bytes;
	p->allocated--;
	give_back(at);
}

static void release(struct plain_device *p)
{
	void *const all[] = { p->q8,	    p->laid,	 p->sums, p->q16, p->head.q, p->head.high,
			      p->head.low, p->y,	 p->m,	  p->l,	  p->o,	     p->pages };

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		give_back(all[i]);
	p->q8 = p->laid = p->head.high = NULL;
	p->sums = NULL;
	p->q16 = p->head.q = NULL;
	p->head.low = NULL;
	p->y = p->m = p->l = p->o = NULL;
	p->pages = NULL;
}

static int plain_load(struct device *d, const struct tape *t, const struct device_limits *l)
{
	struct plain_device *p = (struct plain_device *)d;
	uint32_t widest = max(max(t->dims.ffn, t->dims.hidden), t->dims.heads * t->dims.head_dim);
	uint32_t chunks = (l->positions + ATTN_CHUNK - 1) / ATTN_CHUNK;
	uint32_t n_q = t->dims.heads / t->dims.kv_heads;
	size_t laid = 0, n_sums = 1;

	if (p->fail_load)
		return -ENOMEM;
	release(p);
	p->tape = t;
	p->limits = *l;
	for (uint32_t i = 0; i < t->n; i++)
		for (uint32_t j = 0; t->ops[i].kind == OP_LINEAR && j < t->ops[i].u.linear.n; j++) {
			const struct packed_shape *s = &t->ops[i].u.linear.m[j].shape;

			laid = laid_bytes(s) > laid ? laid_bytes(s) : laid;
			n_sums = s->groups > n_sums ? s->groups : n_sums;
		}
	p->q8 = must_alloc(widest);
	p->laid = must_alloc(laid);
	p->sums = must_alloc(n_sums * sizeof(*p->sums));
	/* Units of the head are 16 columns. */
	p->q16 = must_alloc(t->dims.hidden * sizeof(*p->q16));
	p->head.q = must_alloc((t->dims.hidden + 15) / 16 * 16 * sizeof(*p->head.q));
	p->head.high = must_alloc(t->dims.hidden + 16);
	p->head.low = must_alloc(t->dims.hidden + 16);
	p->y = must_alloc((widest + PACKED_ROWS) * sizeof(*p->y));
	p->m = must_alloc((size_t)chunks * n_q * sizeof(*p->m));
	p->l = must_alloc((size_t)chunks * n_q * sizeof(*p->l));
	p->o = must_alloc((size_t)chunks * n_q * t->dims.head_dim * sizeof(*p->o));
	p->pages = must_alloc((size_t)chunks * KV_GROUP * sizeof(*p->pages));
	return 0;
}

/* Whether a sequence has this block among those that it reads up to a position. */
static bool reads(const struct batch *b, uint32_t seq, uint32_t pos, uint32_t block)
{
	for (uint32_t i = 0; i <= pos / KV_PAGE; i++)
		if (b->blocks[seq][i] == block)
			return true;
	return false;
}

/* What a batch promises. */
static void check(const struct plain_device *p, const struct batch *b)
{
	assert(b->n_rows && b->n_rows <= p->limits.rows && b->n_outs <= p->limits.outs);
	for (uint32_t i = 0; i < b->n_rows; i++) {
		uint32_t writes = b->blocks[b->seq[i]][b->pos[i] / KV_PAGE];

		assert(b->token[i] < p->tape->dims.vocab && b->pos[i] < p->limits.positions);
		assert(!b->faults[i]);
		if (i && b->seq[i] == b->seq[i - 1])
			assert(b->pos[i] == b->pos[i - 1] + 1);
		for (uint32_t j = 0; j < b->n_rows; j++)
			assert(b->seq[j] == b->seq[i] || !reads(b, b->seq[j], b->pos[j], writes));
		for (uint32_t j = 0; j + 1 < i; j++)
			assert(b->seq[j] != b->seq[i] || b->seq[i - 1] == b->seq[i]);
	}
	for (uint32_t i = 0; i < b->n_outs; i++)
		assert(b->outs[i].row < b->n_rows && (!i || b->outs[i].row > b->outs[i - 1].row));
}

static void plain_submit(struct device *d, const struct batch *b)
{
	struct plain_device *p = (struct plain_device *)d;

	p->batch = b;
	p->submits++;
	p->rows += b->n_rows;
	check(p, b);
}

static void play(const struct plain_device *p, const struct op *o)
{
	for (uint32_t row = 0; row < p->batch->n_rows; row++)
		switch (o->kind) {
		case OP_EMBED:
			embed(p, o, row);
			break;
		case OP_LINEAR:
			linear(p, o, row);
			break;
		case OP_ROPE_KV:
			rope_kv(p, o, row);
			break;
		case OP_ATTN:
			attn(p, o, row);
			break;
		case OP_GATE:
			gate(p, o, row);
			break;
		case OP_HEAD:
			break;
		}
	for (uint32_t i = 0; o->kind == OP_HEAD && i < p->batch->n_outs; i++)
		head(p, o, &p->batch->outs[i]);
}

static int plain_wait(struct device *d, char *why, size_t why_len)
{
	struct plain_device *p = (struct plain_device *)d;

	if (p->fail_wait && !--p->fail_wait) {
		snprintf(why, why_len, "the plain device fails as it was told to");
		return -EIO;
	}
	for (uint32_t i = 0; i < p->tape->n; i++)
		play(p, &p->tape->ops[i]);
	p->batch = NULL;
	return 0;
}

static uint32_t plain_timing(struct device *d, struct device_timing *t, uint32_t n)
{
	const struct plain_device *p = (const struct plain_device *)d;

	if (!n)
		return 0;
	*t = (struct device_timing){ .name = "batch", .count = p->submits };
	return 1;
}

static void plain_close(struct device *d)
{
	(void)d;
}

void plain_device_init(struct plain_device *p)
{
	static const struct device_type type = {
		.alloc = plain_alloc, .free = plain_free, .load = plain_load,
		.submit = plain_submit, .wait = plain_wait, .timing = plain_timing,
		.close = plain_close,
	};

	*p = (struct plain_device){ .device = { .type = &type, .name = "plain" } };
}

void plain_device_deinit(struct plain_device *p)
{
	assert(!p->allocated);
	release(p);
}

/* SPDX-License-Identifier: MIT */
/*
 * The CPU device against a plain loop over the scalar kernels, row after row and one thread: random
 * small tapes, every prefix of them so that the operation that differs is named, batches of several
 * sequences whose blocks are shuffled and whose positions cross chunks. All by memcmp, arena
 * included.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "device.h"
#include "kernels.h"
#include "lib_vocab.h"
#include "rope.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

#define LAYERS	2u
#define OPS	(2 + 7 * LAYERS)
#define ROWS	40u
#define SEQS	6u
#define OUTS	5u
#define POS_MAX 768u /* SEQS * PAGES is a multiple of KV_GROUP */
#define PAGES	(POS_MAX / KV_PAGE)
#define POISON	0u /* a token whose embedding is too large for a norm */

static uint64_t rng;
static char why[256];
static struct kernels scalar_k;
static struct float_ops scalar_f;

static uint32_t below(uint32_t n)
{
	return n ? (uint32_t)(test_random(&rng) >> 33) % n : 0;
}

/* ---- allocations are counted where no sanitizer counts them itself --------------------------- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define COUNTED 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define COUNTED 0
#endif
#endif
#ifndef COUNTED
#define COUNTED 1
#endif

static unsigned n_allocated;

#if COUNTED

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

static void counted(void)
{
	__atomic_add_fetch(&n_allocated, 1, __ATOMIC_RELAXED);
}

void *malloc(size_t n)
{
	counted();
	return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
	counted();
	return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
	counted();
	return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
	counted();
	return __libc_memalign(align, n);
}

void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t from)
{
	counted();
	/* NOLINTNEXTLINE(performance-no-int-to-ptr) */
	return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, from);
}

#endif

/* ---- a small model --------------------------------------------------------------------------- */

static void *get(size_t bytes)
{
	void *p = aligned_alloc(64, (bytes + 64) / 64 * 64);

	ck_assert_ptr_nonnull(p);
	return p;
}

static float small(void)
{
	return (float)(int)(below(2001) - 1000) * 0x1p-9f;
}

static float *norm_of(uint32_t n)
{
	float *w = get(n * sizeof(*w));

	for (uint32_t i = 0; i < n; i++)
		w[i] = 0.5f + (float)below(1000) * 0x1p-10f;
	return w;
}

static struct matrix matrix_of(uint32_t layout, uint32_t rows, uint32_t cols, uint32_t groups)
{
	struct matrix m = { .shape = { layout, rows, cols, groups } };
	size_t tile = packed_bytes(&m.shape) / packed_tiles(&m.shape);
	size_t size = layout < PACKED_F16 ? 1 : 2;
	uint8_t *packed = get(packed_bytes(&m.shape)), *rows_of = get(PACKED_ROWS * cols * size);
	float *scales = get(packed_n_scales(&m.shape) * sizeof(float));

	ck_assert_ptr_null(packed_check(&m.shape));
	for (uint32_t t = 0; t < packed_tiles(&m.shape); t++) {
		uint32_t left = rows - t * PACKED_ROWS;

		for (size_t i = 0; i < (size_t)PACKED_ROWS * cols; i++) {
			uint16_t half = layout == PACKED_F16 ? 0x2c00 : 0x3d80;

			half |= (uint16_t)(below(2) << 15 | below(0x400));
			if (size == 2)
				memcpy(rows_of + 2 * i, &half, 2);
			else if (layout == PACKED_INT8)
				rows_of[i] = (uint8_t)below(256);
			else
				rows_of[i] = (uint8_t)((int)below(3) - 1);
		}
		packed_tile(&m.shape, rows_of, left < PACKED_ROWS ? left : PACKED_ROWS,
			    packed + t * tile);
	}
	memset(scales, 0, packed_n_scales(&m.shape) * sizeof(float));
	for (size_t i = 0; i < packed_n_scales(&m.shape); i++)
		if (i % (packed_tiles(&m.shape) * PACKED_ROWS) < rows)
			scales[i] = (float)(1 + below(1000)) * 0x1p-13f;
	free(rows_of);
	m.packed = packed;
	m.scales = scales;
	return m;
}

/* Of a projection: any ternary layout, with groups where the columns allow them. */
static struct matrix ternary_of(uint32_t rows, uint32_t cols)
{
	uint32_t groups = cols % 128 == 0 && below(3) == 0 ? 2 : 1;

	return matrix_of(below(2) ? PACKED_2BIT : PACKED_BASE3, rows, cols, groups);
}

static void matrix_free(struct matrix *m)
{
	free((void *)(uintptr_t)m->packed);
	free((void *)(uintptr_t)m->scales);
}

struct model {
	struct dims dims;
	float *cos_sin;
	struct matrix table, head, m[LAYERS][7];
	float *norms[LAYERS][4], *final;
};

static void model_new(struct model *m)
{
	static const uint32_t hiddens[] = { 64, 100, 128, 256 }, dims[] = { 16, 32, 40 };
	static const uint32_t kinds[] = { PACKED_INT8, PACKED_F16, PACKED_BF16 };
	uint32_t layout = kinds[below(3)], heads, kv;
	struct dims *d = &m->dims;
	double f[64];

	*d = (struct dims){ .layers = LAYERS, .eps = 1e-5f };
	d->hidden = hiddens[below(COUNT(hiddens))];
	d->ffn = 96 + below(5) * 40;
	d->kv_heads = 1 + below(3);
	d->heads = d->kv_heads * (1 + below(5));
	d->head_dim = dims[below(COUNT(dims))];
	d->vocab = 70 + below(200);
	d->attn_scale = attn_scale(d->head_dim);
	d->kv_form = below(2) ? KV_F16 : KV_INT8;
	m->cos_sin = get((size_t)POS_MAX * d->head_dim * sizeof(float));
	rope_frequencies(10000, d->head_dim, f);
	rope_table(f, d->head_dim, 0, POS_MAX, m->cos_sin);
	d->cos_sin = m->cos_sin;

	heads = d->heads * d->head_dim;
	kv = d->kv_heads * d->head_dim;
	m->table = matrix_of(layout, d->vocab, d->hidden, 1);
	m->head = matrix_of(kinds[below(3)], d->vocab, d->hidden, 1);
	if (layout == PACKED_INT8)
		((float *)(uintptr_t)m->table.scales)[POISON] = 1e25f;
	else
		for (uint32_t i = 0; i < packed_units(&m->table.shape); i++) {
			uint16_t infinite = layout == PACKED_F16 ? 0x7c00 : 0x7f80;

			memcpy((uint8_t *)(uintptr_t)m->table.packed + (size_t)i * PACKED_UNIT,
			       &infinite, 2);
		}
	for (uint32_t l = 0; l < LAYERS; l++) {
		m->m[l][0] = ternary_of(heads, d->hidden);
		m->m[l][1] = ternary_of(kv, d->hidden);
		m->m[l][2] = ternary_of(kv, d->hidden);
		m->m[l][3] = ternary_of(d->hidden, heads);
		m->m[l][4] = ternary_of(d->ffn, d->hidden);
		m->m[l][5] = ternary_of(d->ffn, d->hidden);
		m->m[l][6] = ternary_of(d->hidden, d->ffn);
		m->norms[l][0] = norm_of(d->hidden);
		m->norms[l][1] = below(2) ? norm_of(heads) : NULL;
		m->norms[l][2] = norm_of(d->hidden);
		m->norms[l][3] = below(2) ? norm_of(d->ffn) : NULL;
	}
	m->final = norm_of(d->hidden);
}

static void model_free(struct model *m)
{
	for (uint32_t l = 0; l < LAYERS; l++) {
		for (unsigned i = 0; i < 7; i++)
			matrix_free(&m->m[l][i]);
		for (unsigned i = 0; i < 4; i++)
			free(m->norms[l][i]);
	}
	matrix_free(&m->table);
	matrix_free(&m->head);
	free(m->final);
	free(m->cos_sin);
}

/* ---- buffers and tape, once for each side ---------------------------------------------------- */

enum { X, Q, K, V, ATT, GATE, UP, BUFFERS };
static const char *const buffer_names[] = { "x", "q", "k", "v", "att", "gate", "up" };

struct side {
	struct rows b[BUFFERS];
	uint32_t width[BUFFERS];
	uint8_t *kv;
	struct op ops[OPS];
	struct tape tape;
	float *logits, *final; /* [OUTS + 2] of each, the logits not all evenly apart */
	uint32_t faults[ROWS];
};

static size_t kv_bytes(const struct dims *d)
{
	return SEQS * PAGES * kv_block_bytes(d);
}

static size_t logits_stride(const struct dims *d)
{
	return (d->vocab + PACKED_ROWS - 1) / PACKED_ROWS * PACKED_ROWS + PACKED_ROWS;
}

static struct op *linear(struct op *o, uint32_t layer, const float *norm, struct rows in)
{
	*o = (struct op){ .kind = OP_LINEAR, .layer = layer };
	o->u.linear.norm = norm;
	o->u.linear.in = in;
	return o;
}

static void times(struct op *o, struct matrix m, struct rows out)
{
	o->u.linear.m[o->u.linear.n] = m;
	o->u.linear.out[o->u.linear.n++] = out;
}

static void side_new(struct side *s, const struct model *m)
{
	const struct dims *d = &m->dims;
	const uint32_t heads = d->heads * d->head_dim, kv = d->kv_heads * d->head_dim;
	const uint32_t width[] = { d->hidden, heads, kv, kv, heads, d->ffn, d->ffn };
	struct op *o = s->ops;

	memset(s, 0, sizeof(*s));
	for (unsigned i = 0; i < BUFFERS; i++) {
		s->width[i] = width[i];
		s->b[i].stride = (width[i] + PACKED_ROWS - 1) / PACKED_ROWS * PACKED_ROWS;
		s->b[i].at = get((size_t)ROWS * s->b[i].stride * sizeof(float));
	}
	s->kv = get(kv_bytes(d));
	s->logits = get((OUTS + 2) * logits_stride(d) * sizeof(float));
	s->final = get(OUTS * d->hidden * sizeof(float));

	*o = (struct op){ .kind = OP_EMBED };
	o->u.embed.table = m->table;
	o++->u.embed.x = s->b[X];
	for (uint32_t l = 0; l < LAYERS; l++) {
		linear(o, l, m->norms[l][0], s->b[X]);
		times(o, m->m[l][0], s->b[Q]);
		times(o, m->m[l][1], s->b[K]);
		times(o++, m->m[l][2], s->b[V]);
		*o = (struct op){ .kind = OP_ROPE_KV, .layer = l };
		o->u.rope_kv.q = s->b[Q];
		o->u.rope_kv.k = s->b[K];
		o++->u.rope_kv.v = s->b[V];
		*o = (struct op){ .kind = OP_ATTN, .layer = l };
		o->u.attn.q = s->b[Q];
		o++->u.attn.out = s->b[ATT];
		linear(o, l, m->norms[l][1], s->b[ATT])->u.linear.add = true;
		times(o++, m->m[l][3], s->b[X]);
		linear(o, l, m->norms[l][2], s->b[X]);
		times(o, m->m[l][4], s->b[GATE]);
		times(o++, m->m[l][5], s->b[UP]);
		*o = (struct op){ .kind = OP_GATE, .layer = l };
		o->u.gate.act = l ? GATE_SILU : GATE_RELU2;
		o->u.gate.gate = s->b[GATE];
		o++->u.gate.up = s->b[UP];
		linear(o, l, m->norms[l][3], s->b[GATE])->u.linear.add = true;
		times(o++, m->m[l][6], s->b[X]);
	}
	*o = (struct op){ .kind = OP_HEAD };
	o->u.head.norm = m->final;
	o->u.head.x = s->b[X];
	o->u.head.m = m->head;
	ck_assert_int_eq(o + 1 - s->ops, OPS);
	s->tape = (struct tape){ .dims = *d, .ops = s->ops, .n = OPS };
	s->tape.dims.kv = s->kv;
}

static void side_free(struct side *s)
{
	for (unsigned i = 0; i < BUFFERS; i++)
		free(s->b[i].at);
	free(s->kv);
	free(s->logits);
	free(s->final);
}

/* ---- the plain loop -------------------------------------------------------------------------- */

static float *at(const struct rows *r, uint32_t row)
{
	return r->at + (size_t)row * r->stride;
}

static void plain_linear(const struct side *s, const struct op *op, uint32_t row, uint32_t *faults)
{
	uint32_t cols = op->u.linear.m[0].shape.cols;
	int8_t *q = get(cols);
	float d;

	scalar_f.norm_quant(at(&op->u.linear.in, row), op->u.linear.norm, cols, s->tape.dims.eps, q,
			    &d, faults);
	for (uint32_t i = 0; i < op->u.linear.n; i++) {
		const struct matrix *m = &op->u.linear.m[i];
		uint32_t tiles = packed_tiles(&m->shape);
		int8_t *laid = get(laid_bytes(&m->shape));
		int32_t *sums = get(m->shape.groups * sizeof(*sums));
		float *y = get(tiles * PACKED_ROWS * sizeof(*y));
		float *out = at(&op->u.linear.out[i], row);

		lay_ternary(&m->shape, q, laid, sums);
		scalar_k.ternary[m->shape.layout](&m->shape, m->packed, m->scales, laid, sums, d, 0,
						  tiles, y);
		for (uint32_t r = 0; r < m->shape.rows; r++)
			out[r] = op->u.linear.add ? out[r] + y[r] : y[r];
		free(laid);
		free(sums);
		free(y);
	}
	free(q);
}

static void *page(const struct dims *d, const struct batch *b, uint32_t row, uint32_t i,
		  uint32_t layer, uint32_t head)
{
	return kv_page_at(d, b->blocks[b->seq[row]][i], layer, head);
}

static void plain_rope(const struct side *s, const struct op *op, const struct batch *b,
		       uint32_t row, uint32_t *faults)
{
	const struct dims *d = &s->tape.dims;
	uint32_t pos = b->pos[row];
	const float *cs = d->cos_sin + (size_t)pos * d->head_dim;

	scalar_f.rope(at(&op->u.rope_kv.q, row), d->heads, d->head_dim, cs);
	scalar_f.rope(at(&op->u.rope_kv.k, row), d->kv_heads, d->head_dim, cs);
	for (uint32_t h = 0; h < d->kv_heads; h++)
		scalar_f.kv_put(d->kv_form, page(d, b, row, pos / KV_PAGE, op->layer, h),
				d->head_dim, pos % KV_PAGE,
				at(&op->u.rope_kv.k, row) + h * d->head_dim,
				at(&op->u.rope_kv.v, row) + h * d->head_dim, faults);
}

static void plain_attn(const struct side *s, const struct op *op, const struct batch *b,
		       uint32_t row, uint32_t *faults)
{
	const struct dims *d = &s->tape.dims;
	const uint32_t n = b->pos[row] + 1, n_chunks = (n + ATTN_CHUNK - 1) / ATTN_CHUNK;
	float m[POS_MAX / ATTN_CHUNK + 1], l[POS_MAX / ATTN_CHUNK + 1];
	float *o = get(n_chunks * d->head_dim * sizeof(*o));
	const void *pages[PAGES];

	for (uint32_t h = 0; h < d->heads; h++) {
		for (uint32_t i = 0; i * KV_PAGE < n; i++)
			pages[i] = page(d, b, row, i, op->layer, h / (d->heads / d->kv_heads));
		scalar_f.attn_chunks(d->kv_form, pages, d->head_dim, n, 1,
				     at(&op->u.attn.q, row) + h * d->head_dim, d->attn_scale, m, l,
				     o);
		scalar_f.attn_merge(m, l, o, n_chunks, 1, d->head_dim,
				    at(&op->u.attn.out, row) + h * d->head_dim, faults);
	}
	free(o);
}

static void plain_head(const struct side *s, const struct op *op, const struct batch *b,
		       uint32_t *faults)
{
	const struct matrix *m = &op->u.head.m;
	const uint32_t cols = m->shape.cols, tiles = packed_tiles(&m->shape),
		       n = packed_units(&m->shape) * packed_span(m->shape.layout);
	struct laid_head laid = { get(n * 2), get(n), get(n), 0 };
	float *y = get(cols * sizeof(*y)), d;
	int16_t *q = get(cols * sizeof(*q));

	for (uint32_t i = 0; i < b->n_outs; i++) {
		const struct batch_out *o = &b->outs[i];

		scalar_f.norm_head(at(&op->u.head.x, o->row), op->u.head.norm, cols,
				   s->tape.dims.eps, y, q, &d, &faults[o->row]);
		if (o->final)
			memcpy(o->final, y, cols * sizeof(*y));
		if (!o->logits)
			continue;
		if (m->shape.layout == PACKED_INT8) {
			lay_head(&m->shape, q, &laid);
			scalar_k.head_int8(&m->shape, m->packed, m->scales, &laid, d, 0, tiles,
					   o->logits);
		} else {
			scalar_k.head_half(&m->shape, m->packed, y, cols, 1, 0, tiles, o->logits,
					   tiles * PACKED_ROWS);
		}
		for (uint32_t v = 0; v < m->shape.rows; v++)
			faults[o->row] += !isfinite(o->logits[v]);
	}
	free(laid.q);
	free(laid.high);
	free(laid.low);
	free(y);
	free(q);
}

/* Operations [0, n) of the tape. */
static void plain(const struct side *s, const struct batch *b, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		const struct op *op = &s->ops[i];

		for (uint32_t r = 0; r < b->n_rows; r++) {
			uint32_t *faults = &b->faults[r];

			switch (op->kind) {
			case OP_EMBED:
				scalar_f.embed(&op->u.embed.table.shape, op->u.embed.table.packed,
					       op->u.embed.table.scales, b->token[r],
					       at(&op->u.embed.x, r));
				break;
			case OP_LINEAR:
				plain_linear(s, op, r, faults);
				break;
			case OP_ROPE_KV:
				plain_rope(s, op, b, r, faults);
				break;
			case OP_ATTN:
				plain_attn(s, op, b, r, faults);
				break;
			case OP_GATE:
				scalar_f.gate(op->u.gate.act, at(&op->u.gate.gate, r),
					      at(&op->u.gate.up, r), s->tape.dims.ffn,
					      at(&op->u.gate.gate, r));
				break;
			case OP_HEAD:
				break;
			}
		}
		if (op->kind == OP_HEAD)
			plain_head(s, op, b, b->faults);
	}
}

/* ---- batches --------------------------------------------------------------------------------- */

struct scene {
	struct model m;
	struct side want, have;
	uint32_t table[SEQS][PAGES]; /* blocks shuffled */
	const uint32_t *blocks[SEQS];
	uint32_t length[SEQS];
	uint32_t token[ROWS], pos[ROWS], seq[ROWS];
	struct batch_out outs[OUTS];
	struct batch batch;
};

/* Keys and values of positions that no batch of this test computes. */
static void fill_past(struct scene *s, uint32_t seq, uint32_t n)
{
	const struct dims *d = &s->want.tape.dims;
	float k[64], v[64];
	uint32_t faults = 0;

	for (uint32_t pos = 0; pos < n; pos++)
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t h = 0; h < d->kv_heads; h++) {
				for (uint32_t i = 0; i < d->head_dim; i++) {
					k[i] = small();
					v[i] = small();
				}
				scalar_f.kv_put(d->kv_form,
						kv_page_at(d, s->table[seq][pos / KV_PAGE], l, h),
						d->head_dim, pos % KV_PAGE, k, v, &faults);
			}
	s->length[seq] = n;
}

/* Just before and behind the borders of pages and chunks, and far. */
static uint32_t any_length(void)
{
	static const uint32_t lengths[] = { 0,	 0,   1,   31,	32,  63,  100, 120, 127,
					    128, 129, 200, 250, 255, 256, 383, 384, 600 };

	return lengths[below(COUNT(lengths))];
}

static void scene_new(struct scene *s)
{
	uint32_t all[SEQS * PAGES] = { 0 };

	memset(s, 0, sizeof(*s));
	model_new(&s->m);
	side_new(&s->want, &s->m);
	side_new(&s->have, &s->m);
	for (uint32_t i = 0; i < COUNT(all); i++) {
		uint32_t j = below(i + 1);

		all[i] = all[j];
		all[j] = i;
	}
	memcpy(s->table, all, sizeof(all));
	/* What is not written must not be read: NaN in both forms. */
	memset(s->want.kv, 0xff, kv_bytes(&s->m.dims));
	for (uint32_t i = 0; i < SEQS; i++) {
		s->blocks[i] = s->table[i];
		fill_past(s, i, any_length());
	}
}

static void scene_free(struct scene *s)
{
	side_free(&s->want);
	side_free(&s->have);
	model_free(&s->m);
}

/* n rows in all of the sequences, each in one piece; the more, the fewer sequences. */
static void batch_new(struct scene *s, uint32_t n, bool poison)
{
	struct batch *b = &s->batch;
	uint32_t first = below(SEQS), row = 0;

	for (uint32_t i = 0; i < SEQS && row < n; i++) {
		uint32_t seq = (first + i) % SEQS, left = n - row;
		uint32_t take = below(left < 3 ? left + 1 : 4);

		if (i + 1 == SEQS || below(4) == 0)
			take = left;
		for (uint32_t r = 0; r < take; r++, row++) {
			s->seq[row] = seq;
			s->pos[row] = s->length[seq]++;
			s->token[row] = 1 + below(s->m.dims.vocab - 1);
		}
	}
	if (poison)
		for (uint32_t i = 0; i < 1 + n / 8; i++)
			s->token[below(n)] = POISON;
	*b = (struct batch){ .n_rows = n, .token = s->token, .pos = s->pos, .seq = s->seq,
			     .blocks = s->blocks, .outs = s->outs };
	/* Ascending rows; logits in any order, evenly apart or not, or none. */
	for (uint32_t r = 0; r < n && b->n_outs < OUTS; r++)
		if (n - r <= OUTS ? below(5) : below(4) == 0) {
			s->outs[b->n_outs] = (struct batch_out){ .row = r };
			b->n_outs++;
		}
}

/* The same outs for a side: where they write differs. */
static void outs_of(struct scene *s, struct side *side, uint64_t shape)
{
	size_t stride = logits_stride(&s->m.dims);
	bool even = shape & 1, backwards = shape & 2;

	for (uint32_t i = 0; i < s->batch.n_outs; i++) {
		uint32_t to = backwards ? s->batch.n_outs - 1 - i : i;

		s->outs[i].logits = even || shape >> (8 + i) & 3 ?
					    side->logits + (to + (!even && to > 1) * 1) * stride :
					    NULL;
		s->outs[i].final = shape >> (16 + i) & 1 || !s->outs[i].logits ?
					   side->final + (size_t)i * s->m.dims.hidden :
					   NULL;
	}
	s->batch.faults = side->faults;
	memset(side->faults, 0, sizeof(side->faults));
}

static void clear(struct side *s, const struct dims *d)
{
	for (unsigned i = 0; i < BUFFERS; i++)
		memset(s->b[i].at, 0x5a, (size_t)ROWS * s->b[i].stride * sizeof(float));
	memset(s->logits, 0x5a, (OUTS + 2) * logits_stride(d) * sizeof(float));
	memset(s->final, 0x5a, OUTS * d->hidden * sizeof(float));
}

static bool same(const void *a, const void *b, size_t floats)
{
	return memcmp(a, b, floats * sizeof(float)) == 0;
}

/* Rows without a fault have the same bits in all buffers; rows with one have it on both sides. */
static void compare_rows(const struct scene *s, const char *who)
{
	for (uint32_t r = 0; r < s->batch.n_rows; r++) {
		ck_assert_msg(!s->want.faults[r] == !s->have.faults[r],
			      "%s: row %u has %u faults, not %u", who, r, s->have.faults[r],
			      s->want.faults[r]);
		for (unsigned i = 0; i < BUFFERS && !s->want.faults[r]; i++)
			ck_assert_msg(same(at(&s->want.b[i], r), at(&s->have.b[i], r),
					   s->want.width[i]),
				      "%s: row %u of %s", who, r, buffer_names[i]);
	}
}

static void compare_outs(const struct scene *s, const char *who)
{
	const size_t stride = logits_stride(&s->m.dims);

	/* What is behind the tiles of an out is as it was: no row writes into the next one's. */
	for (uint32_t i = 0; i < s->batch.n_outs; i++) {
		const struct batch_out *o = &s->outs[i];
		size_t from;

		if (s->want.faults[o->row])
			continue;
		if (o->final)
			ck_assert_msg(same(s->want.final + (size_t)i * s->m.dims.hidden,
					   s->have.final + (size_t)i * s->m.dims.hidden,
					   s->m.dims.hidden),
				      "%s: final of out %u", who, i);
		if (!o->logits)
			continue;
		from = (size_t)(o->logits - s->have.logits);
		ck_assert_msg(same(s->want.logits + from, o->logits, s->m.dims.vocab) &&
				      same(s->want.logits + from + stride - PACKED_ROWS,
					   o->logits + stride - PACKED_ROWS, PACKED_ROWS),
			      "%s: logits of out %u", who, i);
	}
}

static bool faulty(const struct scene *s)
{
	for (uint32_t r = 0; r < s->batch.n_rows; r++)
		if (s->want.faults[r])
			return true;
	return false;
}

static const unsigned masks[] = { KERNELS_ANY, 0, KERNELS_AVX2 };

/* Play the first n operations on both sides, from the same past, and compare everything. */
static void judge(struct scene *s, struct device *d, uint32_t n, uint64_t shape,
		  const uint8_t *past)
{
	const struct device_limits limits = { ROWS, OUTS, POS_MAX };
	const struct dims *dims = &s->m.dims;
	char who[128];

	snprintf(who, sizeof(who), "%s, operation %u, %u rows", d->name, n - 1, s->batch.n_rows);
	clear(&s->want, dims);
	clear(&s->have, dims);
	memcpy(s->want.kv, past, kv_bytes(dims));
	memcpy(s->have.kv, past, kv_bytes(dims));
	outs_of(s, &s->want, shape);
	plain(&s->want, &s->batch, n);
	s->have.tape.n = n;
	ck_assert_int_eq(d->type->load(d, &s->have.tape, &limits), 0);
	outs_of(s, &s->have, shape);
	d->type->submit(d, &s->batch);
	ck_assert_int_eq(d->type->wait(d, why, sizeof(why)), 0);
	compare_rows(s, who);
	if (n == OPS)
		compare_outs(s, who);
	if (!faulty(s))
		ck_assert_msg(!memcmp(s->want.kv, s->have.kv, kv_bytes(dims)), "%s: arena", who);
}

static struct device *open_cpu(unsigned threads, unsigned mask)
{
	struct device_cpu_options o = { .threads = threads, .isa_mask = mask };
	struct device *d = NULL;

	ck_assert_msg(device_cpu_open(&o, &d, why, sizeof(why)) == 0, "%s", why);
	return d;
}

static uint32_t any_rows(void)
{
	static const uint32_t rows[] = { 1, 1, 1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 33, ROWS };

	return rows[below(COUNT(rows))];
}

/* A worker that takes what is another's, goes on too early, or a row that lands elsewhere. */
START_TEST(same_bits)
{
	for (unsigned i = 0; i < test_scaled(16); i++) {
		struct device *d = open_cpu(1 + i % 8, masks[below(COUNT(masks))]);
		struct scene s;
		uint8_t *past;

		scene_new(&s);
		past = get(kv_bytes(&s.m.dims));
		for (unsigned round = 0; round < 4; round++) {
			uint64_t shape = test_random(&rng);

			memcpy(past, s.want.kv, kv_bytes(&s.m.dims));
			batch_new(&s, any_rows(), false);
			for (uint32_t n = round ? OPS : 1; n <= OPS; n++)
				judge(&s, d, n, shape, past);
		}
		free(past);
		scene_free(&s);
		d->type->close(d);
	}
}
END_TEST

/* One row's infinity is its own: neighbours in the batch have the bits they would have alone. */
START_TEST(faults)
{
	for (unsigned i = 0; i < test_scaled(16); i++) {
		struct device *d = open_cpu(1 + i % 8, masks[below(COUNT(masks))]);
		uint32_t n_faulty = 0;
		struct scene s;
		uint8_t *past;

		scene_new(&s);
		past = get(kv_bytes(&s.m.dims));
		memcpy(past, s.want.kv, kv_bytes(&s.m.dims));
		batch_new(&s, any_rows(), true);
		judge(&s, d, OPS, test_random(&rng), past);
		for (uint32_t r = 0; r < s.batch.n_rows; r++) {
			ck_assert(s.have.faults[r] || s.token[r] != POISON);
			n_faulty += s.have.faults[r] > 0;
		}
		ck_assert_uint_gt(n_faulty, 0);
		free(past);
		scene_free(&s);
		d->type->close(d);
	}
}
END_TEST

/* Logits alone that are not finite: a head whose scale is too large, in the middle of a share. */
START_TEST(faulty_logits)
{
	for (unsigned i = 0; i < 16; i++) {
		struct device *d = open_cpu(1 + i % 8, KERNELS_ANY);
		struct scene s;
		uint8_t *past;
		uint32_t row;

		do {
			scene_new(&s);
			if (s.m.head.shape.layout == PACKED_INT8)
				break;
			scene_free(&s);
		} while (true);
		row = below(s.m.dims.vocab);
		((float *)(uintptr_t)s.m.head.scales)[row] = INFINITY;
		past = get(kv_bytes(&s.m.dims));
		memcpy(past, s.want.kv, kv_bytes(&s.m.dims));
		do
			batch_new(&s, 8, false);
		while (s.batch.n_outs == 0);
		judge(&s, d, OPS, 1, past);
		for (uint32_t r = 0, o = 0; r < s.batch.n_rows; r++) {
			bool wanted = o < s.batch.n_outs && s.outs[o].row == r;

			ck_assert_int_eq(s.have.faults[r] > 0, wanted);
			o += wanted;
		}
		free(past);
		scene_free(&s);
		d->type->close(d);
	}
}
END_TEST

static void randomise(struct rows *b, uint64_t *state)
{
	for (size_t i = 0; i < (size_t)ROWS * b->stride; i++)
		b->at[i] = (float)(test_random(state) % 4096) * 0x1p-11f - 1;
}

/* A gate that no product stands before, and one that is not fed by the product before it. */
START_TEST(lone_gate)
{
	for (unsigned threads = 1; threads <= 8; threads++) {
		const struct device_limits limits = { ROWS, OUTS, POS_MAX };
		struct device *d = open_cpu(threads, KERNELS_ANY);
		struct scene s;

		scene_new(&s);
		batch_new(&s, any_rows(), false);
		for (unsigned with = 0; with < 2; with++) {
			struct side *sides[] = { &s.want, &s.have };

			for (unsigned i = 0; i < 2; i++) {
				uint64_t again = 77 + threads;

				clear(sides[i], &s.m.dims);
				for (unsigned b = 0; b < BUFFERS; b++)
					randomise(&sides[i]->b[b], &again);
				/* Operation 4 writes x, operation 6 is the gate. */
				if (with)
					sides[i]->ops[0] = sides[i]->ops[4];
				sides[i]->ops[with] = sides[i]->ops[6];
				memset(sides[i]->faults, 0, sizeof(sides[i]->faults));
			}
			s.batch.n_outs = 0;
			s.batch.faults = s.want.faults;
			plain(&s.want, &s.batch, 1 + with);
			s.have.tape.n = 1 + with;
			ck_assert_int_eq(d->type->load(d, &s.have.tape, &limits), 0);
			s.batch.faults = s.have.faults;
			d->type->submit(d, &s.batch);
			compare_rows(&s, d->name);
		}
		scene_free(&s);
		d->type->close(d);
	}
}
END_TEST

/* A step that allocates stops for it one day, or finds no memory. */
START_TEST(allocates_nothing)
{
	const struct device_limits limits = { ROWS, OUTS, POS_MAX };
	struct device *d = open_cpu(3, KERNELS_ANY);
	struct scene s;

	scene_new(&s);
	memcpy(s.have.kv, s.want.kv, kv_bytes(&s.m.dims));
	ck_assert_int_eq(d->type->load(d, &s.have.tape, &limits), 0);
	for (unsigned i = 0; i < 6; i++) {
		unsigned before;

		batch_new(&s, i < 4 ? 1 + i : ROWS, false);
		outs_of(&s, &s.have, test_random(&rng));
		before = __atomic_load_n(&n_allocated, __ATOMIC_RELAXED);
		d->type->submit(d, &s.batch);
		d->type->wait(d, why, sizeof(why));
		ck_assert_uint_eq(__atomic_load_n(&n_allocated, __ATOMIC_RELAXED), before);
	}
	/* The count does count. */
	ck_assert(!COUNTED || n_allocated > 0);
	scene_free(&s);
	d->type->close(d);
}
END_TEST

/* What a person is told of where time goes: each kind, how often, and the bytes of the model. */
START_TEST(timing)
{
	const struct device_limits limits = { ROWS, OUTS, POS_MAX };
	struct device *d = open_cpu(2, KERNELS_ANY);
	struct device_timing t[16];
	uint64_t linear = 0;
	struct scene s;

	scene_new(&s);
	memcpy(s.have.kv, s.want.kv, kv_bytes(&s.m.dims));
	for (uint32_t l = 0; l < LAYERS; l++)
		for (unsigned i = 0; i < 7; i++)
			linear += packed_bytes(&s.m.m[l][i].shape) +
				  packed_n_scales(&s.m.m[l][i].shape) * sizeof(float);
	ck_assert_int_eq(d->type->load(d, &s.have.tape, &limits), 0);
	for (unsigned i = 0; i < 3; i++) {
		batch_new(&s, 2, false);
		outs_of(&s, &s.have, 1);
		d->type->submit(d, &s.batch);
	}
	ck_assert_uint_eq(d->type->timing(d, t, 2), 2);
	ck_assert_uint_eq(d->type->timing(d, t, COUNT(t)), 6);
	ck_assert_str_eq(t[OP_LINEAR].name, "linear");
	ck_assert_uint_eq(t[OP_LINEAR].count, 3 * 4 * LAYERS);
	ck_assert_uint_eq(t[OP_LINEAR].bytes, 3 * linear);
	ck_assert_uint_eq(t[OP_HEAD].count, 3);
	ck_assert_str_eq(t[OP_ATTN].name, "attn");
	ck_assert_uint_eq(t[OP_ATTN].count, 3 * LAYERS);
	ck_assert_uint_gt(t[OP_LINEAR].ns, 0);
	scene_free(&s);
	d->type->close(d);
}
END_TEST

/* Memory is zeroed and aligned, and more than there is is no memory. */
START_TEST(memory)
{
	struct device *d = open_cpu(1, KERNELS_ANY);
	uint8_t *p = d->type->alloc(d, 5000);

	ck_assert_ptr_nonnull(p);
	ck_assert_uint_eq((uintptr_t)p % 4096, 0);
	for (size_t i = 0; i < 5000; i++)
		ck_assert_uint_eq(p[i], 0);
	memset(p, 1, 5000);
	d->type->free(d, p, 5000);
	d->type->free(d, NULL, 5000);
	ck_assert_ptr_null(d->type->alloc(d, SIZE_MAX - 100));
	ck_assert_ptr_null(d->type->alloc(d, SIZE_MAX / 4));
	d->type->close(d);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("device");
	TCase *t = tcase_create("device");
	SRunner *r;
	int failed;

	rng = test_seed("device");
	kernels_choose(&scalar_k, 0);
	float_ops_choose(&scalar_f, 0);
	tcase_set_timeout(t, 240);
	tcase_add_test(t, same_bits);
	tcase_add_test(t, faults);
	tcase_add_test(t, faulty_logits);
	tcase_add_test(t, lone_gate);
	tcase_add_test(t, allocates_nothing);
	tcase_add_test(t, timing);
	tcase_add_test(t, memory);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

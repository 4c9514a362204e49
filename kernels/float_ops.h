/* SPDX-License-Identifier: MIT */
#ifndef FLOAT_OPS_H
#define FLOAT_OPS_H

/*
 * The steps of the forward pass that are not matrix products, in binary32 with a fixed order: each
 * is a paragraph of the numeric contract, and the scalar version (cpu/float_scalar.c) is its
 * definition, slow and obvious. Faster ones give the same bits; which are taken is asked by the
 * same mask as for the products (kernels.h).
 *
 * All work on one row (one token's vector), or on a part of the positions of one KV head, so that
 * threads share rows, heads and chunks. None allocates or keeps anything. Vectors begin at
 * KERNELS_ALIGN; the second of several in one array lies where its length says, aligned or not.
 *
 * A fault (a value that is not finite where the contract looks) is counted in *faults and never
 * stops anything: what is written then is unspecified, the caller fails that row's sequence, its
 * neighbours are unchanged. A NaN that meets no check on its way (a gate, an addition, a score)
 * stays one until it does.
 */

#include <stddef.h>
#include <stdint.h>
#include "kernels.h"

#define ATTN_CHUNK   128u /* positions, at absolute boundaries */
#define KV_PAGE	     32u /* positions: lanes of a wave, two vectors of 16 */
#define HEAD_DIM_MAX 512u /* so that 32 bits hold a score of an int8 page; even */

/* ---- building blocks, as the scalar reference has them --------------------------------------- */

float exp2_contract(float x);
float sum256(const float *v, uint32_t n);
float sumsq(const float *x, uint32_t n);
/* The scale c of a head dimension. */
float attn_scale(uint32_t head_dim);

/* ---- one row --------------------------------------------------------------------------------- */

/* x[cols] = the embedding's row of a token: (float)code * scale, or the halves widened. */
typedef void embed_op(const struct packed_shape *s, const void *packed, const float *scales,
		      uint32_t token, float *x);

/*
 * t = x * w, r = 1 / sqrt(sumsq(x) / n + eps), then quantised: a = max(max|t| * r, 1e-5), q =
 * clamp(rne(t * r * (127 / a)), -128, 127), *d = a / 127. w NULL: no norm (t = x, no r). Checked:
 * the sum, max|t| * r.
 */
typedef void norm_quant_op(const float *x, const float *w, uint32_t n, float eps, int8_t *q,
			   float *d, uint32_t *faults);
/*
 * The final norm, for the head: y = (x * w) * r, and as the head's integers: q in [-32767, 32767],
 * *d = a / 32767.
 */
typedef void norm_head_op(const float *x, const float *w, uint32_t n, float eps, float *y,
			  int16_t *q, float *d, uint32_t *faults);

#define GATE_RELU2 1u /* as a model file numbers them */
#define GATE_SILU  2u
/* h = g * g * u with g = max(g, 0); or g / (1 + exp2(-g * log2 e)) * u. h may be gate or up. */
typedef void gate_op(uint32_t act, const float *gate, const float *up, uint32_t n, float *h);
/* x += y */
typedef void add_op(float *x, const float *y, uint32_t n);
/* e = exp2(x), for the sampler; e may be x. Of a NaN it is unspecified. */
typedef void exp2_op(const float *x, uint32_t n, float *e);

/* ---- positions ------------------------------------------------------------------------------- */

/*
 * Split-half rotation of n_heads heads in place; cos_sin: this position's pairs (kernels/rope.h).
 */
typedef void rope_op(float *x, uint32_t n_heads, uint32_t head_dim, const float *cos_sin);

/*
 * A KV page holds KV_PAGE positions of one layer and KV head, the keys so that a lane owns a
 * position of the scores, then the values so that a lane owns a dimension; nothing is summed across
 * lanes.
 *
 *	KV_F16   half k[head_dim][KV_PAGE], half v[KV_PAGE][head_dim]
 *	KV_INT8  int8_t k[(head_dim + 3) / 4][KV_PAGE][4], int8_t v[KV_PAGE][head_dim],
 *		 float dk[KV_PAGE], float dv[KV_PAGE]
 *
 * Four dimensions of a key lie together because an integer dot product takes them so; what fills
 * up the last four is 0.
 */
#define KV_F16	0u
#define KV_INT8 1u
size_t kv_page_bytes(uint32_t form, uint32_t head_dim); /* a multiple of KERNELS_ALIGN */

/*
 * Position slot of a page: k is rotated already; both are rounded here. Checked: each half, or the
 * two quantisers' max.
 */
typedef void kv_put_op(uint32_t form, void *page, uint32_t head_dim, uint32_t slot, const float *k,
		       const float *v, uint32_t *faults);

/*
 * n_q query heads (after rotation, unscaled; c is the contract's binary32 scale) over the same
 * positions of their KV head, of which each sees the first n; pages[0] begins a chunk, and ceil(n /
 * KV_PAGE) pages are there. What lies in a page beyond n takes part in nothing. Writes ceil(n /
 * ATTN_CHUNK) chunks: m and l[chunk][n_q] and o[chunk][n_q][head_dim]. n > 0.
 *
 * Heads that share a load of K and V, and chunks that follow one another (what is
 * read next is fetched ahead), are what makes it fast.
 */
typedef void attn_chunks_op(uint32_t form, const void *const *pages, uint32_t head_dim, uint32_t n,
			    uint32_t n_q, const float *query, float c, float *m, float *l,
			    float *o);
/*
 * The ordered merge of n_chunks of them, laid out as above, into out[n_q][head_dim]. Checked: a
 * head's m and L, and with it all that went wrong in its scores.
 */
typedef void attn_merge_op(const float *m, const float *l, const float *o, uint32_t n_chunks,
			   uint32_t n_q, uint32_t head_dim, float *out, uint32_t *faults);

struct float_ops {
	embed_op *embed;
	norm_quant_op *norm_quant;
	norm_head_op *norm_head;
	gate_op *gate;
	add_op *add;
	exp2_op *exp2;
	rope_op *rope;
	kv_put_op *kv_put;
	attn_chunks_op *attn_chunks;
	attn_merge_op *attn_merge;
	const char *isa; /* the highest rung taken: "scalar", "avx2", "avx512", "neon" */
};

/* The best that this CPU and the mask (KERNELS_*) allow. */
void float_ops_choose(struct float_ops *f, unsigned mask);

#endif

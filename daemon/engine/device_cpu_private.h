/* SPDX-License-Identifier: MIT */
#ifndef DEVICE_CPU_PRIVATE_H
#define DEVICE_CPU_PRIVATE_H

/*
 * The CPU device among its own files: device_cpu.c plays a tape, device_cpu_load.c sets aside what
 * that takes, and each of the others has an operation or two. An operation is called by every
 * worker at the same place of the tape, does that worker's share, and leaves what follows to the
 * barrier behind it.
 */

#include "device.h"
#include "float_ops.h"
#include "kernels.h"
#include "pool.h"

/*
 * Rows that an OP_LINEAR has quantised, laid out once for each kind of layout among its matrices.
 */
struct laid_rows {
	int8_t *laid;  /* [kind][row][laid_stride() of the kind's shape] */
	int32_t *sums; /* [kind][row][groups] */
	float *d;      /* [row] */
	size_t kind_bytes, kind_sums; /* from one kind to the next */
};

/* Odd in cache lines: rows that are read side by side do not meet in the same set. */
static inline size_t laid_stride(const struct packed_shape *s)
{
	return (laid_bytes(s) + KERNELS_ALIGN - 1) / KERNELS_ALIGN * KERNELS_ALIGN | KERNELS_ALIGN;
}

/* Rows that an OP_HEAD has normed. */
struct normed_rows {
	float *y; /* [row][stride] */
	size_t stride;
	struct laid_head *laid; /* [row] */
	float *d;		/* [row] */
};

/* Outs whose logits lie evenly in memory: rows of them are one product. */
struct head_run {
	uint32_t first, n; /* rows of normed_rows */
	float *logits;
	size_t stride; /* floats */
};

/* What a worker has for itself. */
struct hand {
	_Alignas(KERNELS_ALIGN) uint32_t turn; /* splits begun: of all workers the same */
	int8_t *q;			   /* a row as it leaves the quantiser */
	int16_t *wide;			   /* the same for the head */
	struct laid_rows laid;		   /* of one row */
	struct normed_rows normed;	   /* of one row */
	void *scratch;			   /* of the kernels */
	const void **pages;		   /* of a sequence */
	float *m, *l, *o;		   /* of a sequence's chunks */
};

/* A part of a row's attention: some of its chunks. */
struct piece {
	uint32_t row, chunk0, chunk1;
};

/* How a batch's attention is shared out; the same in each layer. */
struct attn_share {
	bool split;		/* by pieces; else by rows */
	uint32_t n_pieces;	/* of a KV head */
	struct piece *pieces;
	uint32_t n_chunks;	/* of all rows */
	uint32_t *first_chunk;	/* [row]: in m, l and o */
	uint32_t *n_parts;	/* [row]: pieces */
	uint32_t *n_done;	/* [KV head][row]: of these, in this layer; 0 between layers */
	float *m, *l, *o;	/* [KV head][chunk of all rows] */
	uint32_t max_rows, max_chunks; /* room */
};

/* What load() knows of an operation. */
struct plan {
	uint32_t kind[3]; /* LINEAR: which laid-out form a matrix takes */
	uint32_t units;	  /* LINEAR: of its work */
	uint32_t piece;	  /* of these, at a time */
	bool gated;	  /* LINEAR: the gate that follows is part of it */
	bool done;	  /* GATE: as part of the LINEAR before */
	uint64_t bytes;	  /* of the model, read for each batch */
};

struct device_cpu {
	struct device device;
	struct pool *pool;
	unsigned threads;
	struct kernels k;
	struct float_ops f;

	/* By load(). */
	const struct tape *tape;
	struct device_limits limits;
	void *memory;
	size_t memory_bytes;
	struct plan *plans;
	struct hand *hands;
	struct laid_rows laid;
	struct normed_rows normed;
	float *sum; /* [row][sum_stride]: products on their way to a residual */
	size_t sum_stride;
	uint32_t *sorted; /* row of normed_rows: which out */
	struct head_run *runs;
	struct attn_share attn;

	/* Of a batch. */
	const struct batch *batch;
	uint32_t n_runs;
	/* What is free to take in this split phase and the next, in turns: taken by adding. */
	_Alignas(KERNELS_ALIGN) uint32_t next[2];
	_Alignas(KERNELS_ALIGN) uint64_t ns[OP_HEAD + 1], count[OP_HEAD + 1], bytes[OP_HEAD + 1];
};

/* -ENOMEM. What an earlier tape took is given back. */
int cpu_load(struct device *device, const struct tape *t, const struct device_limits *l);
void cpu_unload(struct device_cpu *d);

/* Before a batch is played, by one thread. */
void cpu_attn_share(struct device_cpu *d);
void cpu_head_runs(struct device_cpu *d);

/* Each by all workers. */
void cpu_linear(struct device_cpu *d, const struct op *op, const struct plan *plan, unsigned w);
/* Columns `from` up to `to` of all rows. */
void cpu_gate(struct device_cpu *d, const struct op *op, uint32_t from, uint32_t to);
void cpu_rope_kv(struct device_cpu *d, const struct op *op, unsigned w);
void cpu_attn(struct device_cpu *d, const struct op *op, unsigned w);
void cpu_head(struct device_cpu *d, const struct op *op, unsigned w);

/* The share of worker w of n things: the same for the same n, whatever is asked. */
static inline uint32_t share(const struct device_cpu *d, uint32_t n, unsigned w)
{
	return (uint32_t)((uint64_t)n * w / d->threads);
}

/*
 * Units [0, n) of a phase. Some eighths of them are cut evenly and always at the same places, so
 * that a worker reads the same weights in every batch and its caches and its memory node may hold
 * them; the rest goes in small pieces to who is free, because cores are not equally fast nor
 * equally ours. Every worker begins each split, and a barrier stands between two of them.
 */
#define OWN 6u /* eighths; of weights */
struct split {
	uint32_t n, piece, from, to, common;
	uint32_t *next;
};

static inline struct split split_begin(struct device_cpu *d, uint32_t n, uint32_t own,
				       uint32_t piece, unsigned w)
{
	uint32_t turn = d->hands[w].turn++;
	uint32_t common = d->threads == 1 ? n : (uint32_t)((uint64_t)n * own / 8);

	/* Nobody uses the other one any more: a barrier lies between. */
	if (w == 0)
		__atomic_store_n(&d->next[(turn + 1) % 2], 0, __ATOMIC_RELAXED);
	return (struct split){
		.n = n,
		.piece = piece ? piece : 1,
		.from = share(d, common, w),
		.to = share(d, common, w + 1),
		.common = common,
		.next = &d->next[turn % 2],
	};
}

/* Whether there is more for this worker: units s->from to s->to then. */
static inline bool split_next(struct split *s, bool first)
{
	uint32_t i;

	if (first && s->from < s->to)
		return true;
	i = __atomic_fetch_add(s->next, 1, __ATOMIC_RELAXED);
	if (i >= (s->n - s->common + s->piece - 1) / s->piece)
		return false;
	s->from = s->common + i * s->piece;
	s->to = s->n - s->from < s->piece ? s->n : s->from + s->piece;
	return true;
}

/* Several workers may find fault with the same row. */
static inline void fault(const struct device_cpu *d, uint32_t row, uint32_t faults)
{
	if (faults)
		__atomic_add_fetch(&d->batch->faults[row], faults, __ATOMIC_RELAXED);
}

static inline float *row_at(const struct rows *r, uint32_t row)
{
	return r->at + (size_t)row * r->stride;
}

#endif

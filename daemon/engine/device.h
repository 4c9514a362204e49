/* SPDX-License-Identifier: MIT */
#ifndef DEVICE_H
#define DEVICE_H

/*
 * What a forward pass needs of a machine: memory, six whole operations, submit and wait. The pass is
 * written once, as a tape of these (forward.h), and a device plays it for a batch: CPU workers here
 * (device_cpu.c), AQL queues elsewhere. A device is free in everything that no client can observe:
 * fusion, tiles, threads, where a part runs. Each operation is a paragraph of the numeric contract,
 * and kernels/ has its arithmetic.
 *
 * The memory of a device is the host's as well: a pointer is valid on both sides, as on a CPU and on
 * an APU. Weights stay where the model file is mapped.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "float_ops.h"
#include "packed.h"

/* A packed matrix of the model. packed NULL: there is none. */
struct matrix {
	struct packed_shape shape;
	const void *packed;
	const float *scales;
};

/* One row of floats for each row of a batch; stride in floats, a multiple of PACKED_ROWS. */
struct rows {
	float *at;
	uint32_t stride;
};

/* ---- the tape ---------------------------------------------------------------------------------- */

/* What all operations of a tape share. */
struct dims {
	uint32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab;
	float eps;
	float attn_scale;     /* c of the contract */
	const float *cos_sin; /* [position][head_dim]: kernels/rope.h */
	uint32_t kv_form;     /* KV_F16, KV_INT8 */
	void *kv;	      /* the arena: kv_page_at() */
};

enum op_kind { OP_EMBED, OP_LINEAR, OP_ROPE_KV, OP_ATTN, OP_GATE, OP_HEAD };

struct op {
	enum op_kind kind;
	uint32_t layer;
	union {
		/* x = the embedding of each row's token */
		struct {
			struct matrix table;
			struct rows x;
		} embed;
		/*
		 * Quantise in (after its norm, where there is one) once, multiply it by n matrices: out[i] =
		 * m[i] in, or, with add, out[i] += m[i] in.
		 */
		struct {
			const float *norm; /* NULL: none */
			struct rows in;
			uint32_t n;
			bool add;
			struct matrix m[3];
			struct rows out[3];
		} linear;
		/* Rotate q and k by each row's position, put k and v into the row's place of the KV arena. */
		struct {
			struct rows q, k, v;
		} rope_kv;
		/* out = attention of q over the positions 0 to the row's own; every OP_ROPE_KV of the layer is done. */
		struct {
			struct rows q, out;
		} attn;
		/* gate = act(gate) * up */
		struct {
			uint32_t act; /* GATE_* */
			struct rows gate, up;
		} gate;
		/* For the rows that a batch wants something of: final norm, logits. */
		struct {
			const float *norm;
			struct rows x;
			struct matrix m;
		} head;
	} u;
};

struct tape {
	struct dims dims;
	const struct op *ops;
	uint32_t n;
};

/* ---- the KV arena ------------------------------------------------------------------------------ */

/*
 * A block is KV_PAGE positions of all layers and KV heads; four blocks whose numbers differ in the last
 * two bits only lie so that their pages of one layer and head are side by side, an attention chunk read
 * in one go. The arena holds a multiple of KV_GROUP blocks.
 */
#define KV_GROUP (ATTN_CHUNK / KV_PAGE)

static inline size_t kv_block_bytes(const struct dims *d)
{
	return kv_page_bytes(d->kv_form, d->head_dim) * d->layers * d->kv_heads;
}

static inline void *kv_page_at(const struct dims *d, uint32_t block, uint32_t layer, uint32_t head)
{
	size_t page = kv_page_bytes(d->kv_form, d->head_dim);
	size_t at = (size_t)(block / KV_GROUP) * d->layers + layer;

	return (uint8_t *)d->kv + ((at * d->kv_heads + head) * KV_GROUP + block % KV_GROUP) * page;
}

/* ---- a batch ----------------------------------------------------------------------------------- */

/* Something that is wanted of a row after the last layer. */
struct batch_out {
	uint32_t row;	/* ascending in a batch, none twice */
	uint32_t top;	/* 0: every logit. k: those of rows that may be among the k best; others may be -infinity */
	float *logits;	/* [vocab up to whole tiles], aligned; NULL: none */
	float *final;	/* [hidden], the final norm's row; NULL: not wanted */
};

/*
 * Rows of one sequence stand together, positions ascending by one; different sequences never share the
 * block that a row writes. A row sees what the batch writes at lower positions of its sequence.
 */
struct batch {
	uint32_t n_rows;
	const uint32_t *token, *pos, *seq; /* of each row; seq indexes blocks */
	const uint32_t *const *blocks;	   /* of each sequence, by position / KV_PAGE */
	uint32_t n_outs;
	const struct batch_out *outs;
	uint32_t *faults; /* of each row, counted up: the contract's checked points */
};

/* ---- a device ---------------------------------------------------------------------------------- */

struct device_limits {
	uint32_t rows, outs; /* of a batch */
	uint32_t positions;  /* of a sequence */
};

struct device_timing {
	const char *name; /* "linear", "attn", ... */
	uint64_t count, ns, bytes;
};

struct device;
struct device_type {
	/* Memory that the device may work on, zeroed, aligned to 4096. NULL: no memory. */
	void *(*alloc)(struct device *d, size_t bytes);
	void (*free)(struct device *d, void *p, size_t bytes);
	/*
	 * All that playing this tape will ever need is set aside here, so that nothing is later. 0, -ENOMEM.
	 * The tape and the model outlive the device.
	 */
	int (*load)(struct device *d, const struct tape *t, const struct device_limits *l);
	/* Play the tape for a batch, which stays as it is until wait() has returned. */
	void (*submit)(struct device *d, const struct batch *b);
	/* 0, or -EIO and a sentence: the device has failed, and all that it holds is lost. */
	int (*wait)(struct device *d, char *why, size_t why_len);
	/* At most n rows of what it has spent on which operations so far; returns how many. */
	uint32_t (*timing)(struct device *d, struct device_timing *t, uint32_t n);
	void (*close)(struct device *d);
};
/* What every device begins with. */
struct device {
	const struct device_type *type;
	char name[32]; /* "cpu/avx512", ... */
};

struct device_cpu_options {
	unsigned threads;  /* 0: as many as this process may run on */
	bool pin;	   /* each worker on a CPU of its own */
	unsigned isa_mask; /* KERNELS_*; KERNELS_ANY */
};
/* 0, -ENOMEM, -EAGAIN: a thread could not be started; and a sentence. */
int device_cpu_open(const struct device_cpu_options *o, struct device **out, char *why,
		    size_t why_len);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * The CPU as a device: all workers of a pool walk along the tape together, and meet at a barrier
 * behind each operation. A batch is played within submit(), by the calling thread too, so that
 * wait() has nothing to wait for.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "device_cpu_private.h"

#define LARGE_PAGE ((size_t)2 << 20)
#define SMALL_PAGE ((size_t)4096)

static const char *const names[] = {
	[OP_EMBED] = "embed", [OP_LINEAR] = "linear", [OP_ROPE_KV] = "rope_kv",
	[OP_ATTN] = "attn",   [OP_GATE] = "gate",     [OP_HEAD] = "head",
};
#define KINDS (sizeof(names) / sizeof(names[0]))

static struct device_cpu *cpu(struct device *d)
{
	return (struct device_cpu *)d;
}

/* ---- memory ---------------------------------------------------------------------------------- */

static size_t whole_pages(size_t bytes)
{
	return (bytes + SMALL_PAGE - 1) / SMALL_PAGE * SMALL_PAGE;
}

static void *cpu_alloc(struct device *d, size_t bytes)
{
	void *p;

	(void)d;
	if (bytes == 0 || bytes > SIZE_MAX - SMALL_PAGE)
		return NULL;
	p = mmap(NULL, whole_pages(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		 0);
	if (p == MAP_FAILED)
		return NULL;
	/* Fewer page walks; refused is as good. */
	if (bytes >= LARGE_PAGE)
		(void)madvise(p, whole_pages(bytes), MADV_HUGEPAGE);
	return p;
}

static void cpu_free(struct device *d, void *p, size_t bytes)
{
	(void)d;
	if (p)
		munmap(p, whole_pages(bytes));
}

/* ---- playing --------------------------------------------------------------------------------- */

static void embed(struct device_cpu *d, const struct op *op, unsigned w)
{
	const struct batch *b = d->batch;
	const struct matrix *m = &op->u.embed.table;

	for (uint32_t r = w; r < b->n_rows; r += d->threads) {
		assert(b->token[r] < m->shape.rows);
		d->f.embed(&m->shape, m->packed, m->scales, b->token[r],
			   row_at(&op->u.embed.x, r));
	}
}

static void gate(struct device_cpu *d, const struct op *op, unsigned w)
{
	uint32_t tiles = (d->tape->dims.ffn + PACKED_ROWS - 1) / PACKED_ROWS;

	cpu_gate(d, op, share(d, tiles, w) * PACKED_ROWS, share(d, tiles, w + 1) * PACKED_ROWS);
}

static void play_op(struct device_cpu *d, uint32_t i, unsigned w)
{
	const struct op *op = &d->tape->ops[i];

	switch (op->kind) {
	case OP_EMBED:
		embed(d, op, w);
		break;
	case OP_LINEAR:
		cpu_linear(d, op, &d->plans[i], w);
		break;
	case OP_ROPE_KV:
		cpu_rope_kv(d, op, w);
		break;
	case OP_ATTN:
		cpu_attn(d, op, w);
		break;
	case OP_GATE:
		gate(d, op, w);
		break;
	case OP_HEAD:
		cpu_head(d, op, w);
		break;
	}
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* By worker 0: time until the barrier behind the operation is that operation's. */
static void note(struct device_cpu *d, uint32_t i, uint64_t ns)
{
	const enum op_kind kind = d->tape->ops[i].kind;

	d->ns[kind] += ns;
	d->count[kind]++;
	d->bytes[kind] += kind == OP_HEAD ? d->plans[i].bytes * d->n_runs : d->plans[i].bytes;
}

static void play(void *ctx, unsigned w)
{
	struct device_cpu *d = ctx;
	uint64_t before = w ? 0 : now_ns();

	for (uint32_t i = 0; i < d->tape->n; i++) {
		if (!d->plans[i].done) {
			play_op(d, i, w);
			if (i + 1 < d->tape->n)
				pool_barrier(d->pool, w);
		}
		if (w == 0) {
			uint64_t now = now_ns();

			note(d, i, now - before);
			before = now;
		}
	}
}

static void cpu_submit(struct device *device, const struct batch *b)
{
	struct device_cpu *d = cpu(device);

	assert(d->tape && b->n_rows <= d->limits.rows && b->n_outs <= d->limits.outs);
	if (b->n_rows == 0)
		return;
	d->batch = b;
	cpu_attn_share(d);
	cpu_head_runs(d);
	pool_run(d->pool, play, d);
}

static int cpu_wait(struct device *d, char *why, size_t why_len)
{
	(void)d;
	(void)why;
	(void)why_len;
	return 0;
}

static uint32_t cpu_timing(struct device *device, struct device_timing *t, uint32_t n)
{
	struct device_cpu *d = cpu(device);
	uint32_t i;

	for (i = 0; i < n && i < KINDS; i++)
		t[i] = (struct device_timing){ names[i], d->count[i], d->ns[i], d->bytes[i] };
	return i;
}

/* ---- opening --------------------------------------------------------------------------------- */

static void cpu_close(struct device *device)
{
	struct device_cpu *d = cpu(device);

	cpu_unload(d);
	pool_free(d->pool);
	free(d);
}

static const struct device_type cpu_type = {
	.alloc = cpu_alloc,
	.free = cpu_free,
	.load = cpu_load,
	.submit = cpu_submit,
	.wait = cpu_wait,
	.timing = cpu_timing,
	.close = cpu_close,
};

int device_cpu_open(const struct device_cpu_options *o, struct device **out, char *why,
		    size_t why_len)
{
	struct device_cpu *d = aligned_alloc(KERNELS_ALIGN, sizeof(*d));
	int err;

	if (!d) {
		snprintf(why, why_len, "no memory for the CPU device");
		return -ENOMEM;
	}
	memset(d, 0, sizeof(*d));
	d->device.type = &cpu_type;
	kernels_choose(&d->k, o->isa_mask);
	float_ops_choose(&d->f, o->isa_mask);
	snprintf(d->device.name, sizeof(d->device.name), "cpu/%s", d->k.isa);
	err = pool_new(o->threads, o->pin, &d->pool, why, why_len);
	if (err) {
		free(d);
		return err;
	}
	d->threads = pool_threads(d->pool);
	*out = &d->device;
	return 0;
}

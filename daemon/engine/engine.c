/* SPDX-License-Identifier: MIT */
/*
 * The engine opened, its memory, its steps.
 *
 * All memory is taken here, most of it as one reservation of address space: rows of tokens for every
 * strand that there could be, answers' text, a request's tables. A page of it becomes memory when it is
 * first used, so what stands here is a bound, and a quiet engine has little more than its model.
 */
#include "engine.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "engine_private.h"
#include "obm_check.h"

enum {
	SLOTS = 16,
	CHUNK = 128,
	CHUNK_MAX = 4096,
	KV_POSITIONS = 1024, /* of each slot, when no budget is stated */
	/*
	 * Rows of a step that something is wanted of: as many as this many bytes of logits hold, within
	 * bounds. A vocabulary of 128,256 has half a megabyte a row.
	 */
	LOGITS_BYTES = 8 << 20,
	OUTS_MIN = 8,
	OUTS_MAX = 64,
};

/* ---- memory -------------------------------------------------------------------------------------- */

/* Places one thing behind the other; base NULL: only adds up. */
struct carver {
	uint8_t *base;
	size_t at;
	bool failed; /* it is more than can be addressed */
};

static void *carve(struct carver *c, size_t n, size_t size)
{
	size_t at = c->at, bytes;

	if (__builtin_mul_overflow(n, size, &bytes) ||
	    __builtin_add_overflow(bytes, KERNELS_ALIGN - 1, &bytes) ||
	    __builtin_add_overflow(at, bytes / KERNELS_ALIGN * KERNELS_ALIGN, &c->at)) {
		c->failed = true;
		return NULL;
	}
	return c->base ? c->base + at : NULL;
}

static void carve_requests(struct engine *e, struct carver *c)
{
	uint32_t slots = e->options.slots, n = slots * ENGINE_CHOICES_MAX;
	uint32_t hidden = e->model->arch->hidden;
	size_t text = STOP_STRINGS_MAX * STOP_BYTES_MAX;
	size_t tokens = (size_t)e->options.positions + DRAFT_MAX;

	e->requests = carve(c, slots, sizeof(*e->requests));
	e->strands = carve(c, n, sizeof(*e->strands));
	for (uint32_t i = 0; i < slots; i++) {
		void *bias = carve(c, ENGINE_BIAS_MAX, sizeof(struct sampler_bias));
		void *stops = carve(c, STOP_STRINGS_MAX, sizeof(struct stop_string));
		void *stop_text = carve(c, text, 1), *vector = carve(c, hidden, sizeof(float));

		if (!c->base)
			continue;
		e->requests[i] = (struct request){
			.slot = i, .bias = bias, .stops = stops, .stop_text = stop_text,
			.vector = vector, .strands = e->strands + (size_t)i * ENGINE_CHOICES_MAX,
		};
	}
	for (uint32_t i = 0; i < n; i++) {
		void *row = carve(c, tokens, sizeof(uint32_t));

		if (c->base)
			e->strands[i] = (struct strand){
				.request = &e->requests[i / ENGINE_CHOICES_MAX],
				.choice = i % ENGINE_CHOICES_MAX, .tokens = row,
			};
	}
	e->n_strands = n;
}

static void carve_all(struct engine *e, struct carver *c)
{
	const struct device_limits *l = &e->forward->limits;
	uint32_t vocab = e->model->arch->vocab;
	size_t text = detok_bound(e->tokenizer);

	carve_requests(e, c);
	e->token = carve(c, l->rows, sizeof(*e->token));
	e->pos = carve(c, l->rows, sizeof(*e->pos));
	e->seq = carve(c, l->rows, sizeof(*e->seq));
	e->faults = carve(c, l->rows, sizeof(*e->faults));
	e->blocks = carve(c, l->rows, sizeof(*e->blocks));
	e->parts = carve(c, l->rows, sizeof(*e->parts));
	e->outs = carve(c, l->outs, sizeof(*e->outs));
	e->adjusted = carve(c, vocab, sizeof(*e->adjusted));
	e->n_seen = carve(c, vocab, sizeof(*e->n_seen));
	e->seen = carve(c, l->positions, sizeof(*e->seen));
	e->no_stops = carve(c, (vocab + 63) / 64, sizeof(*e->no_stops));
	e->text = carve(c, text, 1);
	/* What a stop string held back comes before it, and the same at the answer's end behind it. */
	e->cut = carve(c, text + 4 * STOP_BYTES_MAX, 1);
}

static int take_arena(struct engine *e, char *why, size_t why_len)
{
	struct carver c = { 0 };

	carve_all(e, &c);
	if (!c.failed) {
		e->arena_bytes = c.at;
		e->arena = mmap(NULL, c.at, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (e->arena == MAP_FAILED)
			e->arena = NULL;
	}
	if (!e->arena)
		return obm_refuse(why, why_len, -ENOMEM,
				  "no address space for %u slots of %u positions; open fewer",
				  e->options.slots, e->options.positions);
	c = (struct carver){ .base = e->arena };
	carve_all(e, &c);
	e->batch = (struct batch){
		.token = e->token, .pos = e->pos, .seq = e->seq, .blocks = e->blocks,
		.outs = e->outs, .faults = e->faults,
	};
	return 0;
}

/* What the device writes for rows that something is wanted of. */
static int take_outs(struct engine *e, char *why, size_t why_len)
{
	uint32_t n = e->forward->limits.outs;

	e->logits_stride = (uint32_t)obm_align(e->model->arch->vocab, PACKED_ROWS);
	e->final_stride = (uint32_t)obm_align(e->model->arch->hidden, PACKED_ROWS);
	e->device_bytes = ((size_t)e->logits_stride + e->final_stride) * n * sizeof(float);
	e->logits = e->device->type->alloc(e->device, e->device_bytes);
	if (!e->logits)
		return obm_refuse(why, why_len, -ENOMEM, "no memory for %zu bytes of logits",
				  e->device_bytes);
	e->final = e->logits + (size_t)e->logits_stride * n;
	return 0;
}

/* ---- opening ------------------------------------------------------------------------------------- */

static int set_options(struct engine *e, const struct engine_options *o, char *why, size_t why_len)
{
	const struct obm_arch *a = e->model->arch;
	struct engine_options *n = &e->options;
	uint64_t block, blocks;

	*n = *o;
	n->slots = n->slots ? n->slots : SLOTS;
	n->chunk = n->chunk ? n->chunk : CHUNK;
	if (!n->positions || n->positions > a->context)
		n->positions = a->context;
	if (n->slots > ENGINE_SLOTS_MAX)
		return obm_refuse(why, why_len, -EINVAL, "%u slots are too many; at most %u",
				  n->slots, ENGINE_SLOTS_MAX);
	if (n->chunk > CHUNK_MAX)
		return obm_refuse(why, why_len, -EINVAL,
				  "%u prompt tokens a step are too many; at most %u", n->chunk,
				  CHUNK_MAX);
	if (n->kv_form > KV_INT8)
		return obm_refuse(why, why_len, -EINVAL, "there is no KV form %u", n->kv_form);
	if (n->kv_bytes)
		return 0;
	block = (uint64_t)kv_page_bytes(n->kv_form, a->head_dim) * a->layers * a->kv_heads;
	blocks = n->positions < KV_POSITIONS ? n->positions : KV_POSITIONS;
	blocks = n->slots * ((blocks + KV_BLOCK - 1) / KV_BLOCK);
	n->kv_bytes = obm_align(blocks, KV_GROUP) * block;
	return 0;
}

static int open_forward(struct engine *e, char *why, size_t why_len)
{
	struct device_limits l = { .positions = e->options.positions };
	size_t row = (size_t)e->model->arch->vocab * sizeof(float);

	l.outs = LOGITS_BYTES / row < OUTS_MAX ? (uint32_t)(LOGITS_BYTES / row) : OUTS_MAX;
	l.outs = l.outs > OUTS_MIN ? l.outs : OUTS_MIN;
	l.rows = e->options.chunk + l.outs;
	return forward_open(e->device, e->model, e->options.kv_form, e->options.kv_bytes, &l,
			    &e->forward, why, why_len);
}

static int open_tokenizer(struct engine *e, char *why, size_t why_len)
{
	uint64_t bytes;
	const void *section = obm_section(e->model, OBM_TOKENIZER, 0, &bytes);
	char inner[200];
	int err = tokenizer_open(section, bytes, &e->tokenizer, inner, sizeof(inner));

	return err ? obm_refuse(why, why_len, err, "the model's tokenizer: %s", inner) : 0;
}

/* What is opened by allocating; each has its own sentence for no memory. */
static int open_parts(struct engine *e, char *why, size_t why_len)
{
	uint32_t vocab = e->model->arch->vocab;
	struct float_ops f;
	int err = open_tokenizer(e, why, why_len);

	err = err ? err : open_forward(e, why, why_len);
	err = err ? err : take_arena(e, why, why_len);
	err = err ? err : take_outs(e, why, why_len);
	if (err)
		return err;
	float_ops_choose(&f, KERNELS_ANY);
	e->scratch = sampler_scratch_new(vocab, &f);
	e->kv = e->scratch ? kv_new(e->forward->n_blocks, e->n_strands + ENGINE_KEEPS,
				    e->forward->limits.positions) :
			     NULL;
	if (!e->kv)
		return obm_refuse(why, why_len, -ENOMEM,
				  "no memory for the sampler or the book of the KV cache");
	for (uint32_t i = 0; i < vocab; i++)
		if (!tokenizer_is_stop(e->tokenizer, i))
			e->no_stops[i / 64] |= (uint64_t)1 << i % 64;
	return 0;
}

static void set_facts(struct engine *e)
{
	const struct forward *f = e->forward;

	e->facts = (struct engine_facts){
		.tokenizer = e->tokenizer, .arch = e->model->arch, .slots = e->options.slots,
		.positions = f->limits.positions, .weight_bytes = f->weight_bytes,
		.head_bytes = f->head_bytes,
		.kv_position_bytes = kv_block_bytes(&f->tape.dims) / KV_PAGE,
		.kv_bytes = f->kv_bytes, .work_bytes = f->work_bytes + e->device_bytes,
		.macs = f->macs, .backend = e->device->name,
	};
}

int engine_open(struct device *d, const struct obm *model, const struct engine_options *o,
		struct engine **out, char *why, size_t why_len)
{
	struct engine *e = calloc(1, sizeof(*e));
	int err;

	if (!e)
		return obm_refuse(why, why_len, -ENOMEM, "no memory for an engine");
	e->device = d;
	e->model = model;
	err = set_options(e, o, why, why_len);
	err = err ? err : open_parts(e, why, why_len);
	if (err) {
		engine_close(e);
		return err;
	}
	set_facts(e);
	*out = e;
	return 0;
}

struct engine *engine_close(struct engine *e)
{
	if (!e)
		return NULL;
	for (uint32_t i = 0; e->kv && i < e->options.slots; i++)
		engine_cancel(e, i);
	while (e->kv && keep_drop(e))
		;
	kv_free(e->kv);
	sampler_scratch_free(e->scratch);
	if (e->logits)
		e->device->type->free(e->device, e->logits, e->device_bytes);
	if (e->arena)
		munmap(e->arena, e->arena_bytes);
	forward_close(e->forward);
	tokenizer_close(e->tokenizer);
	free(e);
	return NULL;
}

/* ---- a step -------------------------------------------------------------------------------------- */

/* Whether a request is there after those that need no rows have been told so. */
static bool settle(struct engine *e, const struct engine_sink *sink)
{
	bool any = false;

	for (uint32_t i = 0; i < e->options.slots; i++) {
		if (e->requests[i].live)
			request_settle(e, &e->requests[i], sink);
		any |= e->requests[i].live;
	}
	return any;
}

int engine_step(struct engine *e, const struct engine_sink *sink, char *why, size_t why_len)
{
	struct strand *starved;
	int err;

	if (!settle(e, sink))
		return 0;
	e->counts.steps++;
	starved = batch_compose(e);
	if (starved)
		request_end(e, starved->request, -ENOBUFS, 0, sink);
	if (e->batch.n_rows) {
		e->device->type->submit(e->device, &e->batch);
		err = e->device->type->wait(e->device, why, why_len);
		if (err)
			return err;
		for (uint32_t i = 0; i < e->n_parts; i++)
			part_finish(e, &e->parts[i], sink);
	}
	return settle(e, sink);
}

/* ---- what it is ---------------------------------------------------------------------------------- */

const struct engine_facts *engine_facts(const struct engine *e)
{
	return &e->facts;
}

struct kv_counts engine_kv(const struct engine *e)
{
	return kv_counts(e->kv);
}

struct engine_counts engine_counts(const struct engine *e)
{
	return e->counts;
}

uint32_t engine_timing(const struct engine *e, struct device_timing *t, uint32_t n)
{
	return e->device->type->timing(e->device, t, n);
}

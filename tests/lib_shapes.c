/* SPDX-License-Identifier: MIT */
/*
 * The table of test models, and the plainest way through a forward pass: one sequence, all of its
 * logits.
 */
#include "lib_shapes.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "lib_write_obm.h"

#define RELU2 OBM_ACT_RELU2
#define SILU  OBM_ACT_SILU

const struct shape shapes[] = {
	{ "bitnet", PACKED_2BIT, PACKED_INT8, RELU2, 2, 128, 192, 4, 2, 32, 512, 1, 60, true, true,
	  false, 1e-5f },
	{ "bitnet, base 3", PACKED_BASE3, PACKED_INT8, RELU2, 2, 256, 320, 4, 1, 64, 512, 1, 60,
	  true, true, false, 1e-5f },
	{ "bitnet, SiLU", PACKED_BASE3, PACKED_F16, SILU, 3, 128, 256, 2, 2, 64, 512, 1, 50, true,
	  true, false, 1e-5f },
	{ "llama", PACKED_2BIT, PACKED_F16, SILU, 2, 256, 384, 2, 1, 128, 512, 1, 60, false, false,
	  false, 1e-6f },
	{ "llama, own int8 head", PACKED_BASE3, PACKED_INT8, SILU, 2, 128, 320, 8, 2, 32, 512, 1,
	  47, false, false, true, 1e-5f },
	{ "groups", PACKED_2BIT, PACKED_BF16, SILU, 2, 128, 256, 4, 4, 32, 512, 2, 60, false, true,
	  true, 1e-5f },
	{ "groups, base 3", PACKED_BASE3, PACKED_BF16, RELU2, 2, 192, 384, 3, 3, 64, 512, 3, 60,
	  true, false, true, 1e-5f },
	{ "odd sizes", PACKED_BASE3, PACKED_INT8, RELU2, 2, 100, 170, 3, 1, 100, 512, 1, 41, true,
	  false, true, 1e-5f },
	{ "large eps", PACKED_2BIT, PACKED_F16, RELU2, 2, 128, 192, 4, 2, 32, 512, 1, 60, false,
	  true, false, 0.5f },
	{ .name = NULL },
};

const struct shape *shape_named(const char *name)
{
	for (const struct shape *s = shapes; s->name; s++)
		if (!strcmp(s->name, name))
			return s;
	fprintf(stderr, "no shape is called %s\n", name);
	abort();
}

/*
 * Random weights make a model that says little more than its last token: attention is nearly even,
 * and the layers add little to the embedding. As trained ones are: scores with a deviation above
 * one, and an embedding that the layers outweigh. By powers of two, which every layout holds.
 */
static void temper(struct tiny *t)
{
	for (uint64_t i = 0; i < (uint64_t)t->vocab * t->hidden; i++)
		t->embed[i] /= 8;
	for (uint32_t l = 0; l < t->layers; l++) {
		struct tiny_matrix *q = &t->layer[l].m[TINY_Q];

		for (uint64_t i = 0; i < (uint64_t)q->rows * q->groups; i++)
			q->scales[i] *= t->hidden < 256 ? 16 : 8;
	}
}

void shape_fill(const struct shape *s, uint64_t seed, struct tiny *t)
{
	tiny_default(t, seed);
	t->layers = s->layers;
	t->hidden = s->hidden;
	t->ffn = s->ffn;
	t->heads = s->heads;
	t->kv_heads = s->kv_heads;
	t->head_dim = s->head_dim;
	t->context = s->context;
	t->groups = s->groups;
	t->n_words = s->n_words;
	t->sub_norms = s->sub_norms;
	t->tied = s->tied;
	t->row_scales = s->row_scales;
	t->eps = s->eps;
	tiny_fill(t);
	temper(t);
}

struct obm *shape_open(const struct shape *s, const struct tiny *t)
{
	struct write_obm w = { s->linear, s->table, s->activation, NULL, NULL };
	int fd = memfd_create("shape", MFD_CLOEXEC);
	char why[256] = "";
	struct obm *model;
	size_t bytes;
	uint8_t *file = write_obm(t, &w, &bytes);

	assert(fd >= 0 && write(fd, file, bytes) == (ssize_t)bytes);
	if (obm_open(fd, 0, 1, &model, why, sizeof(why))) {
		fprintf(stderr, "%s: %s\n", s->name, why);
		abort();
	}
	close(fd);
	free(file);
	return model;
}

float *shape_logits(struct device *d, const struct obm *model, uint32_t kv_form,
		    const uint32_t *tokens, uint32_t n, uint32_t chunk, uint32_t *stride,
		    float **final, uint32_t *faults)
{
	const struct obm_arch *a = model->arch;
	struct device_limits limits = { .rows = chunk, .outs = chunk, .positions = a->context };
	uint32_t *position = calloc(n, sizeof(*position)), *seq = calloc(n, sizeof(*seq));
	uint32_t *fault = calloc(n, sizeof(*fault)), *block = calloc(n, sizeof(*block));
	const uint32_t *blocks = block;
	struct batch_out *out = calloc(chunk, sizeof(*out));
	size_t wide = ((size_t)a->vocab + 31) / 32 * 32, tall = ((size_t)a->hidden + 31) / 32 * 32;
	size_t bytes = n * (wide + tall) * sizeof(float), kv = (size_t)1 << 26;
	float *mem = d->type->alloc(d, bytes), *logits = malloc(n * wide * sizeof(float));
	float *rows = malloc((size_t)n * a->hidden * sizeof(float));
	struct forward *f = NULL;
	char why[256] = "";

	assert(position && seq && fault && block && out && mem && logits && rows);
	if (forward_open(d, model, kv_form, kv, &limits, &f, why, sizeof(why))) {
		fprintf(stderr, "forward_open: %s\n", why);
		abort();
	}
	assert(n <= f->n_blocks * KV_PAGE);
	/* Not in their order, as blocks of a cache are not. */
	for (uint32_t i = 0; i < n; i++) {
		position[i] = i;
		block[i] = f->n_blocks - 1 - i;
	}
	for (uint32_t at = 0; at < n; at += chunk) {
		struct batch b = {
			.n_rows = n - at < chunk ? n - at : chunk,
			.token = tokens + at,
			.pos = position + at,
			.seq = seq,
			.blocks = &blocks,
			.outs = out,
			.faults = fault + at,
		};

		b.n_outs = b.n_rows;
		for (uint32_t i = 0; i < b.n_rows; i++)
			out[i] = (struct batch_out){ i, 0, mem + (at + i) * wide,
						     mem + n * wide + (at + i) * tall };
		d->type->submit(d, &b);
		if (d->type->wait(d, why, sizeof(why))) {
			fprintf(stderr, "the device: %s\n", why);
			abort();
		}
	}
	memcpy(logits, mem, n * wide * sizeof(float));
	for (uint32_t i = 0; i < n; i++)
		memcpy(rows + (size_t)i * a->hidden, mem + n * wide + i * tall,
		       a->hidden * sizeof(float));
	for (uint32_t i = 0; faults && i < n; i++)
		*faults += fault[i];
	forward_close(f);
	d->type->free(d, mem, bytes);
	free(position);
	free(seq);
	free(fault);
	free(block);
	free(out);
	*stride = (uint32_t)wide;
	if (final)
		*final = rows;
	else
		free(rows);
	return logits;
}

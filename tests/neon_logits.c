/* SPDX-License-Identifier: MIT */
/*
 * neon_logits [any|scalar [MODELS]]: whole models through the CPU device, and lines with hashes of all that
 * came out: first the logits of each, then answers; or logits of so many models only. No test by itself:
 * neon.sh compares the lines of different machines, which must be equal. So nothing here may depend
 * on one: models and requests come of integers, and no libm is asked.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "engine.h"
#include "lib_shapes.h"
#include "lib_streams.h"

enum { TOKENS = 140, REQUESTS = 6 }; /* tokens: more than a chunk of attention */

static void die(const char *what, const char *why)
{
	fprintf(stderr, "neon_logits: %s: %s\n", what, why);
	exit(1);
}

/* Every logit and every final row of a text. */
static void tell_logits(struct device *d, const struct shape *s, const struct obm *model, uint64_t *rng,
			uint32_t kv_form, uint32_t chunk)
{
	uint32_t tokens[TOKENS], stride, faults = 0;
	float *final, *logits;
	uint64_t hash = 0;

	for (uint32_t i = 0; i < TOKENS; i++)
		tokens[i] = (uint32_t)(tiny_random(rng) % model->arch->vocab);
	logits = shape_logits(d, model, kv_form, tokens, TOKENS, chunk, &stride, &final, &faults);
	for (uint32_t i = 0; i < TOKENS; i++) {
		hash = XXH64(logits + (size_t)i * stride, model->arch->vocab * sizeof(float), hash);
		hash = XXH64(final + (size_t)i * model->arch->hidden,
			     model->arch->hidden * sizeof(float), hash);
	}
	printf("logits, %s, KV form %u, %u rows at a time: %016llx, %u faults\n", s->name, kv_form, chunk,
	       (unsigned long long)hash, faults);
	free(logits);
	free(final);
}

/* Requests of all kinds, side by side: what the sampler, the cache and guesses make of them. */
static void tell_answers(struct device *d, const struct shape *s, const struct obm *model, uint64_t *rng)
{
	const struct pace pace = { .at_once = 4, .join_every = 3 };
	const struct engine_options options = { .slots = 4, .chunk = 32 };
	struct asked *asked = calloc(REQUESTS, sizeof(*asked));
	struct answer *answers = calloc(REQUESTS, sizeof(*answers));
	struct engine *e;
	char why[256] = "";

	if (!asked || !answers)
		die(s->name, "no memory");
	if (engine_open(d, model, &options, &e, why, sizeof(why)))
		die(s->name, why);
	for (uint32_t i = 0; i < REQUESTS; i++)
		asked_random(&asked[i], rng, model->arch->vocab);
	answers_to(e, asked, NULL, REQUESTS, &pace, rng, answers);
	for (uint32_t i = 0; i < REQUESTS; i++) {
		const struct answer *a = &answers[i];
		uint64_t hash = XXH64(a->vector, a->n_vector * sizeof(float), 0);
		uint32_t n = 0;

		for (uint32_t c = 0; c < ENGINE_CHOICES_MAX; c++) {
			const struct stream *t = &a->choice[c];

			hash = t->n ? XXH64(t->bytes, t->at[t->n], hash) : hash;
			n += t->n;
		}
		printf("answer %u, %s: %u tokens, %016llx, %d\n", i, s->name, n,
		       (unsigned long long)hash, a->end.err);
		answer_free(&answers[i]);
	}
	engine_close(e);
	free(asked);
	free(answers);
}

static struct device *open_device(bool scalar)
{
	const struct device_cpu_options o = { .threads = 2, .isa_mask = scalar ? 0 : KERNELS_ANY };
	struct device *d;
	char why[256] = "";

	if (device_cpu_open(&o, &d, why, sizeof(why)))
		die("the device", why);
	return d;
}

static struct obm *make_model(const struct shape *s)
{
	struct obm *model;
	struct tiny t;

	shape_fill(s, 7, &t);
	model = shape_open(s, &t);
	tiny_free(&t);
	return model;
}

static void whole(bool scalar, const struct shape *s, bool answers)
{
	struct obm *model = make_model(s);
	struct device *d = open_device(scalar);
	uint64_t rng = 4;

	if (answers) {
		tell_answers(d, s, model, &rng);
	} else {
		printf("model, %s: ", s->name);
		for (int i = 0; i < 16; i++)
			printf("%02x", model->header->identity[i]);
		printf("\n");
		if (s == shapes)
			fprintf(stderr, "%s\n", d->name);
		tell_logits(d, s, model, &rng, KV_F16, 1);
		d->type->close(d);
		d = open_device(scalar);
		tell_logits(d, s, model, &rng, KV_INT8, 47);
	}
	d->type->close(d);
	obm_close(model);
}

int main(int argc, char **argv)
{
	bool scalar = argc > 1 && !strcmp(argv[1], "scalar");
	unsigned long models = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;

	for (const struct shape *s = shapes; s->name; s++) {
		whole(scalar, s, false);
		if (models && !--models)
			return 0;
	}
	for (const struct shape *s = shapes; s->name; s++)
		whole(scalar, s, true);
	return 0;
}

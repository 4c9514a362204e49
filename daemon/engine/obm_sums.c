/* SPDX-License-Identifier: MIT */
/*
 * What takes time when a container is opened, shared among threads: the weights' checksums, the
 * table of rotary positions, the tokenizer's own check.
 *
 * xxh3 is sequential within a section, so sections are the unit of work, the longest first. The
 * layers of a model are equal and many, so the threads end together, unless the embedding alone is
 * longer than a thread's share.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include "obm_open.h"
#include "tokenizer.h"

enum task { ROPE, TOKENIZER, WEIGHTS };

struct job {
	enum task task;
	const struct obm_section *s;
	int err;
	char why[256];
};

struct jobs {
	const struct obm_opened *m;
	atomic_uint next; /* each thread takes the next; the join publishes what they found */
	uint32_t n;
	struct job job[OBM_LAYERS_MAX + 3];
};

static int check_rope_table(const struct obm *o, char *why, size_t why_len)
{
	uint8_t digest[32];

	obm_rope_sha256(o->arch, obm_section(o, OBM_ROPE, 0, NULL), digest);
	if (!memcmp(digest, o->arch->rope_sha256, sizeof(digest)))
		return 0;
	return obm_refuse(why, why_len, -EBADMSG,
			  "its rotary table comes out otherwise on this machine than "
			  "where the model was made; either is wrong, so it is not served");
}

static int check_tokenizer(const struct obm *o, const struct obm_section *s, char *why,
			   size_t why_len)
{
	struct tokenizer *t = NULL;
	char inner[200];
	uint32_t n;
	int err = tokenizer_open(o->base + s->offset, s->bytes, &t, inner, sizeof(inner));

	if (err)
		return obm_refuse(why, why_len, err, "its tokenizer: %s", inner);
	n = tokenizer_facts(t)->n_tokens;
	tokenizer_close(t);
	if (n == o->arch->vocab)
		return 0;
	return obm_refuse(why, why_len, -EPROTO,
			  "its tokenizer has %u tokens, but its embedding %u rows; they "
			  "belong to two models",
			  n, o->arch->vocab);
}

/* The floats of a layer: norms and scales are multiplied with everything. */
static int check_floats(const struct obm *o, uint32_t layer, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	for (uint32_t i = 0; i < o->n_tensors; i++) {
		const struct obm_tensor *t = &o->tensors[i];
		struct packed_shape shape = obm_shape(t);
		uint64_t n = t->layout ? packed_n_scales(&shape) : t->cols;
		const float *f = (const void *)(o->base + (t->layout ? t->scales : t->offset));
		uint64_t bad;

		if (t->layer != layer || !n)
			continue;
		bad = obm_not_finite(f, n);
		if (bad < n)
			return obm_refuse(why, why_len, -EPROTO,
					  "%s %llu of tensor %s is no finite number",
					  t->layout ? "scale" : "value", (unsigned long long)bad,
					  obm_name(t->role, t->layer, name));
	}
	return 0;
}

static void work(void *arg)
{
	struct jobs *j = arg;
	unsigned i;

	while ((i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) < j->n) {
		struct job *job = &j->job[i];

		switch (job->task) {
		case ROPE:
			job->err = check_rope_table(&j->m->o, job->why, sizeof(job->why));
			break;
		case TOKENIZER:
			job->err = check_tokenizer(&j->m->o, job->s, job->why, sizeof(job->why));
			break;
		case WEIGHTS:
			job->err = obm_check_bytes(j->m, job->s);
			if (job->err)
				job->err =
					obm_say_bytes(job->s, job->err, job->why, sizeof(job->why));
			else
				job->err = check_floats(&j->m->o, job->s->index - 1, job->why,
							sizeof(job->why));
			obm_forget(&j->m->o, job->s->offset, job->s->bytes);
			break;
		}
	}
}

/* The longest first, and by their order in the file those that are equal. */
static int by_length(const void *a, const void *b)
{
	const struct obm_section *s = ((const struct job *)a)->s, *t = ((const struct job *)b)->s;

	if (s->bytes != t->bytes)
		return s->bytes < t->bytes ? 1 : -1;
	return s->index < t->index ? -1 : 1;
}

int obm_open_sums(struct obm_opened *m, unsigned threads, char *why, size_t why_len)
{
	const struct obm *o = &m->o;
	struct jobs *j = calloc(1, sizeof(*j));
	int err = 0;

	if (!j)
		return obm_refuse(why, why_len, -ENOMEM, "no memory to check the file");
	j->m = m;
	j->job[j->n++] = (struct job){ .task = ROPE };
	j->job[j->n++] = (struct job){ .task = TOKENIZER, .s = obm_find(o, OBM_TOKENIZER, 0) };
	if (!(m->flags & OBM_UNCHECKED)) {
		const struct obm_section *first = obm_find(o, OBM_WEIGHTS, 0);

		for (uint32_t i = 0; i <= o->arch->layers; i++)
			j->job[j->n++] = (struct job){ .task = WEIGHTS, .s = &first[i] };
		qsort(j->job + 2, j->n - 2, sizeof(j->job[0]), by_length);
	}
	obm_parallel(threads < j->n ? threads : j->n, work, j);
	/* Damage is what to hear of first. */
	for (uint32_t i = 0; i < j->n; i++)
		if (j->job[i].err && (!err || (err != -EBADMSG && j->job[i].err == -EBADMSG)))
			err = obm_refuse(why, why_len, j->job[i].err, "%s", j->job[i].why);
	free(j);
	return err;
}

/* SPDX-License-Identifier: MIT */
/*
 * From a source to an .obm. Two threads: one reads rows and brings them into the form that the
 * layout packs (codes, int8 rows of the head, halves), the other packs, hashes and writes them.
 * Between them stand a few batches of rows, so memory does not grow with the model, and each has
 * about half of the work.
 *
 * The reader goes through the tensors in the order in which the writer wants them. What fails on
 * either side stops both; the first sentence is the one that is told.
 */
#include "convert.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "chat.h"
#include "head.h"
#include "mapped.h"
#include "obm_write.h"
#include "packed.h"
#include "rope.h"
#include "served.h"
#include "tokenizer.h"

enum {
	BATCHES = 4,
	/* Of rows: a batch and what is made of it stay in a core's cache. */
	BATCH_BYTES = 512 << 10,
	/* Of floats made: so often the pages that they came from are given back. */
	FORGET_BYTES = 32 << 20,
};

struct batch {
	uint32_t n_rows;
	void *rows;
	float *scales;
};

struct convert {
	const struct convert_options *options;
	struct source *source; /* as served */
	struct obm_plan plan;
	struct obm_tensor *tensors; /* in the writer's order */
	const struct source_tensor **from;
	char *info;
	double *rope;
	void *tokenizer;
	struct obm_writer *writer;
	float *floats; /* the reader's: PACKED_ROWS rows before they are rounded */
	struct head_loss loss;

	/* Between the threads, under lock. The reader fills batch[filled % BATCHES]. */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t filled, used;
	bool stop;
	int err; /* the reader's */
	char why[512];
	struct batch batch[BATCHES];
};

static uint32_t element_bytes(uint32_t layout)
{
	switch (layout) {
	case 0:
		return sizeof(float);
	case PACKED_F16:
	case PACKED_BF16:
		return sizeof(uint16_t);
	default:
		return sizeof(int8_t);
	}
}

static uint32_t batch_rows(const struct obm_tensor *t)
{
	uint64_t tile = (uint64_t)PACKED_ROWS * t->cols * element_bytes(t->layout);

	return tile >= BATCH_BYTES ? PACKED_ROWS : PACKED_ROWS * (uint32_t)(BATCH_BYTES / tile);
}

/* ---- the plan ------------------------------------------------------------------------------ */

static bool is_linear(uint32_t role)
{
	return role >= OBM_Q && role <= OBM_DOWN;
}

static int by_place(const void *a, const void *b)
{
	const struct source_tensor *x = *(const struct source_tensor *const *)a;
	const struct source_tensor *y = *(const struct source_tensor *const *)b;
	/* OBM_NO_LAYER becomes 0. */
	uint32_t lx = x->layer + 1, ly = y->layer + 1;

	if (lx != ly)
		return lx < ly ? -1 : 1;
	return x->role < y->role ? -1 : x->role > y->role;
}

static int plan_tensors(struct convert *c, char *why, size_t why_len)
{
	struct source *s = c->source;

	c->tensors = calloc(s->n_tensors, sizeof(*c->tensors));
	c->from = calloc(s->n_tensors, sizeof(*c->from));
	if (!c->tensors || !c->from)
		return fail(why, why_len, -ENOMEM, "no memory for a plan of %u tensors",
			    s->n_tensors);
	for (uint32_t i = 0; i < s->n_tensors; i++)
		c->from[i] = &s->tensors[i];
	qsort(c->from, s->n_tensors, sizeof(*c->from), by_place);
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct source_tensor *f = c->from[i];
		struct obm_tensor *t = &c->tensors[i];

		*t = (struct obm_tensor){ .role = f->role, .layer = f->layer, .rows = f->rows,
					  .cols = f->cols };
		if (is_linear(f->role)) {
			t->layout = c->options->layout;
			t->groups = f->groups;
		} else if (f->role == OBM_EMBED || f->role == OBM_HEAD) {
			t->layout = c->options->head;
			t->groups = 1;
		}
	}
	c->plan.tensors = c->tensors;
	c->plan.n_tensors = s->n_tensors;
	return 0;
}

static bool has_key(const char *info, const char *key)
{
	size_t len = strlen(key);

	for (; info && *info; info += strcspn(info, "\n"), info += *info == '\n')
		if (!strncmp(info, key, len) && info[len] == ':')
			return true;
	return false;
}

static uint32_t most_groups(const struct source *s)
{
	uint32_t most = 0;

	for (uint32_t i = 0; i < s->n_tensors; i++)
		if (is_linear(s->tensors[i].role) && s->tensors[i].groups > most)
			most = s->tensors[i].groups;
	return most;
}

/* The source's own lines, then ours: what a person asks of a file years later. */
static int plan_info(struct convert *c, const struct source *given, char *why, size_t why_len)
{
	const char *theirs = given->info ? given->info : "";
	bool master = false;
	size_t len;
	FILE *f = open_memstream(&c->info, &len);

	if (!f)
		return fail(why, why_len, -ENOMEM, "no memory for the model's description");
	for (uint32_t i = 0; i < given->n_tensors; i++)
		master |= given->tensors[i].form == SOURCE_MASTER;
	fputs(theirs, f);
	if (*theirs && theirs[strlen(theirs) - 1] != '\n')
		fputc('\n', f);
	if (!has_key(theirs, "name") && *given->arch.name)
		fprintf(f, "name: %.*s\n", (int)sizeof(given->arch.name), given->arch.name);
	if (!has_key(theirs, "source"))
		fprintf(f, "source: %s\n", given->format);
	fprintf(f, "converter: onebit %s\n", ONEBIT_VERSION);
	if (master)
		fputs("note: made ternary from master weights by their mean magnitude\n", f);
	if (given->qk == SOURCE_QK_PAIRS)
		fputs("note: rows of q and k were put from adjacent pairs into split halves\n", f);
	if ((given->arch.flags & OBM_FLAG_A8_IMPOSED) && !strstr(theirs, "int8 activations"))
		fputs("note: trained without int8 activations; served with them\n", f);
	if (most_groups(c->source) > 1 && !strstr(theirs, "groups of scales"))
		fprintf(f, "note: rows have up to %u groups of scales\n", most_groups(c->source));
	/* Closed in either case. */
	if (ferror(f) | fclose(f))
		return fail(why, why_len, -ENOMEM, "no memory for the model's description");
	c->plan.info = c->info;
	return 0;
}

/* What stands behind a text's end is not part of it; a file has zeros there. */
static void end_text(char *text, size_t size)
{
	size_t len = strnlen(text, size);

	memset(text + len, 0, size - len);
}

static int plan_rope(struct convert *c, char *why, size_t why_len)
{
	struct source *s = c->source;
	uint32_t n = s->arch.head_dim / 2;

	c->rope = calloc(n, sizeof(*c->rope));
	if (!c->rope)
		return fail(why, why_len, -ENOMEM, "no memory for %u frequencies", n);
	if (s->rope)
		memcpy(c->rope, s->rope, n * sizeof(*c->rope));
	else
		rope_frequencies(s->rope_theta, s->arch.head_dim, c->rope);
	c->plan.rope = c->rope;
	return 0;
}

/* The section, and whether the template that the model names can be had with it. */
static int plan_tokenizer(struct convert *c, struct vocab *v, char *why, size_t why_len)
{
	struct tokenizer *t = NULL;
	char inner[256];
	size_t bytes;
	int err = vocab_build(v, c->source->arch.vocab, &c->tokenizer, &bytes, why, why_len);

	if (err)
		return err;
	c->plan.tokenizer = c->tokenizer;
	c->plan.tokenizer_bytes = bytes;
	err = tokenizer_open(c->tokenizer, bytes, &t, why, why_len);
	if (err)
		return err;
	err = chat_check(v->chat, t, inner, sizeof(inner));
	tokenizer_close(t);
	return err ? fail(why, why_len, err, "%s; choose another template with --chat", inner) : 0;
}

static int plan_memory(struct convert *c, char *why, size_t why_len)
{
	uint64_t rows = 0, scales = 0, floats = 0;

	for (uint32_t i = 0; i < c->plan.n_tensors; i++) {
		const struct obm_tensor *t = &c->tensors[i];
		uint64_t n = batch_rows(t);
		uint64_t bytes = n * t->cols * element_bytes(t->layout);

		rows = bytes > rows ? bytes : rows;
		scales = n * t->groups > scales ? n * t->groups : scales;
		if (t->layout && !is_linear(t->role) && t->cols > floats)
			floats = t->cols;
	}
	for (int i = 0; i < BATCHES; i++) {
		c->batch[i].rows = malloc(rows ? rows : 1);
		c->batch[i].scales = calloc(scales ? scales : 1, sizeof(float));
		if (!c->batch[i].rows || !c->batch[i].scales)
			goto no_memory;
	}
	c->floats = malloc((floats ? floats : 1) * PACKED_ROWS * sizeof(*c->floats));
	if (c->floats)
		return 0;
no_memory:
	return fail(why, why_len, -ENOMEM, "no memory for %u batches of %llu bytes", BATCHES,
		    (unsigned long long)rows);
}

/* ---- reading ------------------------------------------------------------------------------- */

/* Rows of an embedding or head in the form that is wanted. */
static int fill_head(struct convert *c, const struct obm_tensor *t,
		     const struct source_tensor *from, uint32_t row0, struct batch *b, char *why,
		     size_t why_len)
{
	struct source *s = c->source;
	int err = 0;

	if (t->layout == PACKED_INT8 && from->form == SOURCE_INT8)
		return s->ops->read_codes(s, from, row0, b->n_rows, b->rows, b->scales, why,
					  why_len);
	for (uint32_t done = 0; done < b->n_rows && !err; done += PACKED_ROWS) {
		uint32_t n = b->n_rows - done < PACKED_ROWS ? b->n_rows - done : PACKED_ROWS;

		err = s->ops->read_floats(s, from, row0 + done, n, c->floats, why, why_len);
		for (uint32_t i = 0; i < n && !err; i++) {
			const float *x = c->floats + (size_t)i * t->cols;
			size_t at = (size_t)(done + i) * t->cols;

			if (t->layout == PACKED_INT8)
				b->scales[done + i] = head_int8(x, t->cols, (int8_t *)b->rows + at);
			else
				err = head_halves(t, row0 + done + i, x, (uint16_t *)b->rows + at,
						  &c->loss, why, why_len);
		}
	}
	return err;
}

static int fill(struct convert *c, const struct obm_tensor *t, const struct source_tensor *from,
		uint32_t row0, struct batch *b, char *why, size_t why_len)
{
	struct source *s = c->source;

	if (!t->layout)
		return s->ops->read_floats(s, from, row0, b->n_rows, b->rows, why, why_len);
	if (is_linear(t->role))
		return s->ops->read_codes(s, from, row0, b->n_rows, b->rows, b->scales, why,
					  why_len);
	return fill_head(c, t, from, row0, b, why, why_len);
}

/* The batch to fill; NULL when it is over. */
static struct batch *free_batch(struct convert *c)
{
	struct batch *b;

	pthread_mutex_lock(&c->lock);
	while (!c->stop && c->filled - c->used == BATCHES)
		pthread_cond_wait(&c->changed, &c->lock);
	b = c->stop ? NULL : &c->batch[c->filled % BATCHES];
	pthread_mutex_unlock(&c->lock);
	return b;
}

static void *reader_main(void *arg)
{
	struct convert *c = arg;
	int err = 0;

	for (uint32_t i = 0; i < c->plan.n_tensors && !err; i++) {
		const struct obm_tensor *t = &c->tensors[i];
		const struct source_tensor *from = c->from[i];
		uint32_t step = batch_rows(t);
		uint64_t made = 0;

		for (uint32_t row = 0; row < t->rows && !err; row += step) {
			struct batch *b = free_batch(c);

			if (!b)
				return NULL;
			b->n_rows = t->rows - row < step ? t->rows - row : step;
			err = fill(c, t, from, row, b, c->why, sizeof(c->why));
			made += (uint64_t)b->n_rows * t->cols * sizeof(float);
			if (made >= FORGET_BYTES && !is_linear(t->role)) {
				c->source->ops->done(c->source, from);
				made = 0;
			}
			pthread_mutex_lock(&c->lock);
			c->err = err;
			c->filled++;
			pthread_cond_broadcast(&c->changed);
			pthread_mutex_unlock(&c->lock);
		}
		c->source->ops->done(c->source, from);
	}
	return NULL;
}

/* ---- writing ------------------------------------------------------------------------------- */

/* The next batch; NULL and its sentence when the reader has failed. */
static struct batch *full_batch(struct convert *c, int *err, char *why, size_t why_len)
{
	struct batch *b = NULL;

	pthread_mutex_lock(&c->lock);
	while (c->filled == c->used)
		pthread_cond_wait(&c->changed, &c->lock);
	/* The batch that failed is the last one, and holds nothing. */
	if (c->err && c->filled - c->used == 1)
		*err = fail(why, why_len, c->err, "%s", c->why);
	else
		b = &c->batch[c->used % BATCHES];
	pthread_mutex_unlock(&c->lock);
	return b;
}

static int write_batch(struct convert *c, const struct obm_tensor *t, const struct batch *b,
		       char *why, size_t why_len)
{
	size_t row_bytes = (size_t)t->cols * element_bytes(t->layout);
	bool scaled = t->layout && t->layout <= PACKED_INT8;
	int err = 0;

	for (uint32_t i = 0; i < b->n_rows && !err; i += PACKED_ROWS) {
		uint32_t n = b->n_rows - i < PACKED_ROWS ? b->n_rows - i : PACKED_ROWS;

		err = obm_writer_rows(c->writer, (const uint8_t *)b->rows + i * row_bytes,
				      scaled ? b->scales + (size_t)i * t->groups : NULL, n, why,
				      why_len);
	}
	return err;
}

static uint64_t weights(const struct convert *c)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < c->plan.n_tensors; i++)
		n += (uint64_t)c->tensors[i].rows * c->tensors[i].cols;
	return n;
}

static int write_all(struct convert *c, struct progress *p, char *why, size_t why_len)
{
	double scale = (double)c->source->file_bytes / (double)weights(c);
	uint64_t written = 0;
	int err = 0;

	for (uint32_t i = 0; i < c->plan.n_tensors && !err; i++) {
		const struct obm_tensor *t = &c->tensors[i];

		for (uint32_t row = 0; row < t->rows && !err;) {
			struct batch *b = full_batch(c, &err, why, why_len);
			const struct obm_tensor *wanted = obm_writer_tensor(c->writer);

			if (!b)
				return err;
			assert(wanted && wanted->role == t->role && wanted->layer == t->layer);
			row += b->n_rows;
			written += (uint64_t)b->n_rows * t->cols;
			err = write_batch(c, t, b, why, why_len);
			if (!err && c->options->stop && *c->options->stop)
				err = fail(why, why_len, -EINTR, "interrupted");
			pthread_mutex_lock(&c->lock);
			c->used++;
			pthread_cond_broadcast(&c->changed);
			pthread_mutex_unlock(&c->lock);
			if (p)
				progress_at(p, (uint64_t)((double)written * scale));
		}
	}
	return err;
}

static int run(struct convert *c, struct progress *p, char *why, size_t why_len)
{
	pthread_t reader;
	int err = -pthread_create(&reader, NULL, reader_main, c);

	if (err)
		return fail(why, why_len, err, "no thread can be made: %s", strerror(-err));
	err = write_all(c, p, why, why_len);
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_broadcast(&c->changed);
	pthread_mutex_unlock(&c->lock);
	pthread_join(reader, NULL);
	return err;
}

static void tell_loss(const struct convert *c)
{
	const struct convert_options *o = c->options;
	const struct head_loss *l = &c->loss;

	if (!o->note || !o->note_len)
		return;
	o->note[0] = '\0';
	if (l->error > 0)
		snprintf(
			o->note, o->note_len,
			"%s values are not all exact in %s: the largest error is %.3g (row %u column %u: %.9g "
			"became %.9g)",
			obm_role_name(l->role), packed_name(o->head), l->error, l->row, l->col,
			(double)l->was, (double)l->is);
}

int convert(struct source *s, const struct convert_options *o, struct output *out,
	    struct progress *p, uint8_t identity[32], char *why, size_t why_len)
{
	struct convert c = { .options = o,
			     .plan.licence = s->licence,
			     .lock = PTHREAD_MUTEX_INITIALIZER,
			     .changed = PTHREAD_COND_INITIALIZER };
	int err;

	assert(o->layout == PACKED_2BIT || o->layout == PACKED_BASE3);
	assert(o->head == PACKED_INT8 || o->head == PACKED_F16 || o->head == PACKED_BF16);
	err = source_check(s, why, why_len);
	if (!err && !s->vocab)
		err = fail(why, why_len, -ENOENT, "%s; name its file with --tokenizer",
			   *s->no_vocab ? s->no_vocab : "the model comes without a tokenizer");
	if (!err)
		err = served_new(s, &c.source, why, why_len);
	if (err)
		return err;
	c.plan.arch = s->arch;
	end_text(c.plan.arch.name, sizeof(c.plan.arch.name));
	end_text(c.plan.arch.family, sizeof(c.plan.arch.family));
	err = plan_tokenizer(&c, s->vocab, why, why_len);
	if (!err)
		err = plan_rope(&c, why, why_len);
	if (!err)
		err = plan_tensors(&c, why, why_len);
	if (!err)
		err = plan_info(&c, s, why, why_len);
	if (!err)
		err = plan_memory(&c, why, why_len);
	if (!err)
		err = obm_writer_new(&c.plan, out, &c.writer, why, why_len);
	if (!err)
		err = run(&c, p, why, why_len);
	if (!err)
		err = obm_writer_finish(c.writer, identity, why, why_len);
	if (!err)
		tell_loss(&c);
	obm_writer_free(c.writer);
	for (int i = 0; i < BATCHES; i++) {
		free(c.batch[i].rows);
		free(c.batch[i].scales);
	}
	free(c.floats);
	free(c.info);
	free(c.rope);
	free(c.tokenizer);
	free(c.tensors);
	free(c.from);
	served_free(c.source);
	return err;
}

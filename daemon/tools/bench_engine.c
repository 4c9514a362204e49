/* SPDX-License-Identifier: MIT */
/*
 * A model in this process, driven as a service drives it: requests in, steps, tokens out. A round is
 * the probes, then decoding one answer, then several at a time, then a long prompt, then the probes
 * again.
 *
 * Prompts are random tokens, the same in each round. A context is computed once: the prefix cache
 * has it in later rounds, and only tokens that come after an answer's first are timed. Each stream
 * has a prompt of its own, so that their caches are read each for itself.
 */
#include "bench_engine.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "engine.h"
#include "mapped.h"
#include "probe.h"
#include "tool.h"

enum {
	SHORT_PROMPT = 8,
	/* Tokens that some streams write while others are not there yet. */
	SLACK = 96,
	PROBE_ROUNDS = 3,
	STEPS_MAX = 1 << 20, /* without an end of it: something is wrong */
};

struct run {
	const struct bench_engine_options *o;
	struct bench_engine_figures *f;
	char *why;
	size_t why_len;
	int fd;
	struct obm *model;
	struct device *device;
	struct engine *engine;
	const struct engine_facts *facts;
	uint32_t positions; /* of a sequence */
	uint32_t *prompt;   /* [positions] */
	/* By the sink. */
	uint32_t written[ENGINE_SLOTS_MAX];
	bool ended[ENGINE_SLOTS_MAX];
	uint32_t n_prompt;
	double sum_positions;
	double decoded; /* tokens that the operations' account is of */
	int err;
};

/* ---- a model opened -------------------------------------------------------------------------- */

static void close_all(struct run *r)
{
	engine_close(r->engine);
	if (r->device)
		r->device->type->close(r->device);
	obm_close(r->model);
	if (r->fd >= 0)
		close(r->fd);
	free(r->prompt);
}

static int open_model(struct run *r, const char *path)
{
	char text[400];
	int err;

	r->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (r->fd < 0)
		return fail(r->why, r->why_len, -errno, "%s: cannot be opened: %s", path,
			    strerror(errno));
	err = obm_open(r->fd, 0, r->o->threads, &r->model, text, sizeof(text));
	return err ? fail(r->why, r->why_len, err, "%s: %s", path, text) : 0;
}

static int open_engine(struct run *r, const struct engine_options *e)
{
	const struct device_cpu_options d = {
		.threads = r->o->threads, .pin = r->o->pin, .isa_mask = KERNELS_ANY
	};
	int err = device_cpu_open(&d, &r->device, r->why, r->why_len);

	if (!err)
		err = engine_open(r->device, r->model, e, &r->engine, r->why, r->why_len);
	if (!err)
		r->facts = engine_facts(r->engine);
	return err;
}

/* ---- requests -------------------------------------------------------------------------------- */

static void on_token(void *ctx, const struct engine_token *t)
{
	struct run *r = ctx;

	r->written[t->slot]++;
	r->sum_positions += r->n_prompt + t->index;
}

static void on_replayed(void *ctx, uint32_t slot, uint32_t choice, uint32_t index, uint32_t token)
{
	(void)ctx;
	(void)slot;
	(void)choice;
	(void)index;
	(void)token;
}

static void on_vector(void *ctx, uint32_t slot, const float *v, uint32_t n)
{
	(void)ctx;
	(void)slot;
	(void)v;
	(void)n;
}

static void on_progress(void *ctx, uint32_t slot, uint32_t prompt_tokens)
{
	(void)ctx;
	(void)slot;
	(void)prompt_tokens;
}

static void on_end(void *ctx, const struct engine_end *end)
{
	struct run *r = ctx;

	r->ended[end->slot] = true;
	if (end->err && !r->err)
		r->err = fail(r->why, r->why_len, end->err, "an answer ended at token %u: %s",
			      end->index,
			      end->err == -EDOM ? "arithmetic left its range" :
						  strerror(-end->err));
}

static int step(struct run *r)
{
	const struct engine_sink sink = {
		.ctx = r, .token = on_token, .replayed = on_replayed, .vector = on_vector,
		.progress = on_progress, .end = on_end,
	};
	int ret = engine_step(r->engine, &sink, r->why, r->why_len);

	if (ret < 0)
		return ret;
	if (r->err)
		return r->err;
	return tool_stopped ? fail(r->why, r->why_len, -EINTR, "interrupted") : 0;
}

/* Stream number `slot` begins, with n tokens that are its own. */
static int start(struct run *r, uint32_t slot, uint32_t n, uint32_t max_tokens, uint32_t flags)
{
	uint64_t state = 0x1234567 + slot;
	struct engine_request q = {
		.kind = ENGINE_GENERATE,
		.flags = ENGINE_IGNORE_EOS | flags,
		.n_prompt = n,
		.prompt = r->prompt,
		.n_choices = 1,
		.max_tokens = max_tokens,
		.sampler = { .temperature = r->o->sampled ? 1 : 0, .top_p = 1, .repetition = 1,
			     .seed = slot + 1 },
	};

	for (uint32_t i = 0; i < n; i++) {
		state = state * 6364136223846793005u + 1442695040888963407u;
		r->prompt[i] = (uint32_t)((state >> 32) * r->facts->arch->vocab >> 32);
	}
	r->n_prompt = n;
	r->written[slot] = 0;
	r->ended[slot] = false;
	return engine_start(r->engine, slot, &q, r->why, r->why_len);
}

/* Steps until each of n streams has begun to write; they go on. */
static int until_written(struct run *r, uint32_t n)
{
	for (uint32_t steps = 0; steps < STEPS_MAX; steps++) {
		uint32_t ready = 0;
		int err = step(r);

		for (uint32_t i = 0; i < n; i++)
			ready += r->written[i] > 0;
		if (err || ready == n)
			return err;
	}
	return fail(r->why, r->why_len, -EIO, "no token came in %d steps", STEPS_MAX);
}

/* A whole answer of one token: a prompt is computed, and stays in the cache if it may. */
static int one_token(struct run *r, uint32_t n, uint32_t flags)
{
	int err = start(r, 0, n, 1, flags);

	for (uint32_t steps = 0; !err && !r->ended[0] && steps < STEPS_MAX; steps++)
		err = step(r);
	return err;
}

/* ---- what is timed --------------------------------------------------------------------------- */

/* How long a context is so that all that follows has room. */
static uint32_t context(const struct run *r)
{
	uint32_t most = r->positions - SLACK - r->o->tokens;
	uint32_t n = r->o->ctx > SHORT_PROMPT ? r->o->ctx : SHORT_PROMPT;

	return n < most ? n : most;
}

/* What the device has spent so far, added to or taken from the sums over all rounds. */
static void add_ops(struct run *r, double sign)
{
	struct device_timing t[BENCH_OPS_MAX];
	uint32_t n = engine_timing(r->engine, t, BENCH_OPS_MAX);

	for (uint32_t i = 0; i < n; i++) {
		struct bench_op *op = &r->f->ops[i];

		op->name = t[i].name;
		op->count += sign * (double)t[i].count;
		op->us += sign * (double)t[i].ns * 1e-3;
		op->bytes += sign * (double)t[i].bytes;
	}
	r->f->n_ops = n;
}

/*
 * n streams write; tokens a second of them together. ops: the device's own account of it is taken as
 * well.
 */
static int time_decoding(struct run *r, uint32_t n, bool ops, double *tps, double *position)
{
	const uint32_t ctx = context(r);
	uint64_t had = 0, has = 0;
	double begin;
	int err = 0;

	for (uint32_t i = 0; i < n && !err; i++)
		err = start(r, i, ctx, r->positions - ctx, 0);
	if (!err)
		err = until_written(r, n);
	for (uint32_t i = 0; i < n; i++)
		had += r->written[i];
	r->sum_positions = 0;
	if (ops)
		add_ops(r, -1);
	begin = tool_seconds();
	for (uint32_t i = 0; i < r->o->tokens && !err; i++)
		err = step(r);
	*tps = tool_seconds() - begin;
	if (ops)
		add_ops(r, 1);
	for (uint32_t i = 0; i < n; i++) {
		has += r->written[i];
		if (r->ended[i] && !err)
			err = fail(r->why, r->why_len, -EINVAL, "an answer ended before it was "
				   "timed: ask for less --ctx or --tokens");
		engine_cancel(r->engine, i);
	}
	if (err)
		return err;
	if (ops)
		r->decoded += (double)(has - had);
	*tps = (double)(has - had) / *tps;
	*position = r->sum_positions / (double)(has - had);
	return 0;
}

static int time_prefill(struct run *r, double *tps)
{
	double begin = tool_seconds();
	int err = one_token(r, r->o->prefill, ENGINE_NO_CACHE);

	*tps = (double)r->o->prefill / (tool_seconds() - begin);
	return err;
}

static int probe(struct run *r, unsigned round)
{
	double gbs = probe_read_gbs(r->o->threads, r->o->probe_bytes, PROBE_ROUNDS);

	if (gbs <= 0)
		return fail(r->why, r->why_len, -ENOMEM, "there is no memory or no thread for the "
			    "probe of reading");
	r->f->bw_gbs.of[round] += gbs / 2;
	r->f->macs_g.of[round] += probe_macs(r->o->threads) / 2;
	return 0;
}

static int one_round(struct run *r, unsigned i)
{
	struct bench_engine_figures *f = r->f;
	int err = probe(r, i);

	if (err)
		return err;
	err = time_decoding(r, 1, true, &f->decode_tps.of[i], &f->position);
	if (!err && r->o->streams)
		err = time_decoding(r, r->o->streams, false, &f->streams_tps.of[i],
				    &f->streams_position);
	if (!err && r->o->prefill)
		err = time_prefill(r, &f->prefill_tps.of[i]);
	return err ? err : probe(r, i);
}

/* ---- the whole ------------------------------------------------------------------------------- */

static uint64_t resident_bytes(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long long size = 0, resident = 0;

	if (!f || fscanf(f, "%llu %llu", &size, &resident) != 2)
		resident = 0;
	if (f)
		fclose(f);
	return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Options of an engine in which all rounds fit. */
static int plan(struct run *r, const struct obm_arch *a, struct engine_options *e)
{
	const struct bench_engine_options *o = r->o;
	const uint32_t streams = o->streams ? o->streams : 1;
	const uint64_t page = kv_page_bytes(o->kv_form, a->head_dim) * a->layers * a->kv_heads;
	uint64_t want = (uint64_t)o->ctx + SHORT_PROMPT + SLACK + o->tokens, blocks;

	if (want < (uint64_t)o->prefill + SLACK)
		want = (uint64_t)o->prefill + SLACK;
	r->positions = want < a->context ? (uint32_t)want : a->context;
	if (r->positions < SHORT_PROMPT + SLACK + o->tokens || r->positions <= o->prefill)
		return fail(r->why, r->why_len, -EINVAL,
			    "the model's context is %u, too short for %u tokens of an answer or %u "
			    "of a prompt; ask for less by --tokens and --prefill",
			    a->context, o->tokens, o->prefill);
	r->prompt = malloc(r->positions * sizeof(*r->prompt));
	if (!r->prompt)
		return fail(r->why, r->why_len, -ENOMEM, "no memory for a prompt");
	/* A group of blocks more for each, and one more prompt that is not cached. */
	blocks = (r->positions / KV_PAGE + 2 * KV_GROUP) * (uint64_t)(streams + 1);
	*e = (struct engine_options){
		.slots = streams, .chunk = o->chunk, .positions = r->positions,
		.kv_bytes = blocks * page, .kv_form = o->kv_form,
		.no_speculation = !o->speculation,
	};
	return 0;
}

static void describe(struct run *r)
{
	struct bench_engine_figures *f = r->f;
	const struct engine_facts *k = r->facts;

	snprintf(f->backend, sizeof(f->backend), "%s", k->backend);
	snprintf(f->layout, sizeof(f->layout), "%s",
		 packed_name(obm_tensor(r->model, OBM_Q, 0)->layout));
	f->weight_bytes = k->weight_bytes;
	f->head_bytes = k->head_bytes;
	f->kv_position_bytes = k->kv_position_bytes;
	f->macs = k->macs;
	f->head_macs = (uint64_t)k->arch->vocab * k->arch->hidden;
	f->kv_bytes = k->kv_bytes;
	f->work_bytes = k->work_bytes;
	f->model_bytes = r->model->bytes;
}

int bench_engine(const char *path, const struct bench_engine_options *o,
		 struct bench_engine_figures *f, char *why, size_t why_len)
{
	struct run r = { .o = o, .f = f, .why = why, .why_len = why_len, .fd = -1 };
	struct engine_options e = { 0 };
	struct engine_counts counts;
	int err;

	memset(f, 0, sizeof(*f));
	f->rounds = o->rounds;
	err = open_model(&r, path);
	assert(err || r.model);
	if (!err)
		err = plan(&r, r.model->arch, &e);
	if (!err)
		err = open_engine(&r, &e);
	if (err)
		goto out;
	describe(&r);
	/* Nothing below computes a context or touches a page for the first time. */
	for (uint32_t i = 0; i < (o->streams ? o->streams : 1) && !err; i++) {
		err = start(&r, i, context(&r), 1, 0);
		for (uint32_t steps = 0; !err && !r.ended[i] && steps < STEPS_MAX; steps++)
			err = step(&r);
	}
	for (unsigned i = 0; i < o->rounds && !err; i++)
		err = one_round(&r, i);
	f->rss_bytes = resident_bytes();
	for (uint32_t i = 0; i < f->n_ops; i++) {
		f->ops[i].count /= r.decoded;
		f->ops[i].us /= r.decoded;
		f->ops[i].bytes /= r.decoded;
	}
	counts = engine_counts(r.engine);
	f->drafted = counts.drafted;
	f->accepted = counts.accepted;
out:
	close_all(&r);
	return err;
}

int bench_engine_once(const char *path, const struct bench_engine_options *o, double begin,
		      double *opened, double *first, char *why, size_t why_len)
{
	struct run r = { .o = o, .why = why, .why_len = why_len, .fd = -1 };
	const struct engine_options e = { .kv_form = o->kv_form,
					  .no_speculation = !o->speculation };
	int err = open_model(&r, path);

	if (!err)
		err = open_engine(&r, &e);
	if (!err) {
		*opened = tool_seconds() - begin;
		r.prompt = calloc(SHORT_PROMPT, sizeof(*r.prompt));
		err = r.prompt ? one_token(&r, SHORT_PROMPT, 0) :
				 fail(why, why_len, -ENOMEM, "no memory for a prompt");
		*first = tool_seconds() - begin;
	}
	close_all(&r);
	return err;
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_median(const struct bench_series *s, unsigned rounds)
{
	struct bench_series sorted = *s;

	qsort(sorted.of, rounds, sizeof(*sorted.of), by_size);
	return sorted.of[rounds / 2];
}

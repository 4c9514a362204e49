/* SPDX-License-Identifier: MIT */
/*
 * The engine on small random models and the plain device. The answer to a request run alone, in one
 * chunk, without cache and guesses, is what every other way of running it is compared with.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine.h"
#include "lib_plain_device.h"
#include "lib_tiny.h"
#include "lib_vocab.h"
#include "lib_write_obm.h"
#include "obm_check.h"

/* ---- the allocator ------------------------------------------------------------------------------- */

/* A sanitizer has an allocator of its own, which is not taken away. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
	__has_feature(memory_sanitizer)
#define OWN_MALLOC 0
#endif
#endif
#ifndef OWN_MALLOC
#define OWN_MALLOC 1
#endif

static long allocations; /* so far */

#if OWN_MALLOC
static long fail_at = -1; /* this one fails, counted from 0; -1: none */
static long outstanding;

/* glibc's own, under the names that it keeps for those who replace the public ones. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);
extern void __libc_free(void *p);

#define PUBLIC __attribute__((visibility("default")))

static bool refused(void)
{
	if (allocations++ != fail_at)
		return false;
	errno = ENOMEM;
	return true;
}

static void *counted(void *p)
{
	outstanding += p != NULL;
	return p;
}

PUBLIC void *malloc(size_t n)
{
	return refused() ? NULL : counted(__libc_malloc(n));
}

PUBLIC void *calloc(size_t n, size_t size)
{
	return refused() ? NULL : counted(__libc_calloc(n, size));
}

PUBLIC void *realloc(void *p, size_t n)
{
	if (refused())
		return NULL;
	return p ? __libc_realloc(p, n) : counted(__libc_realloc(p, n));
}

PUBLIC void *aligned_alloc(size_t align, size_t n)
{
	return refused() ? NULL : counted(__libc_memalign(align, n));
}

PUBLIC void free(void *p)
{
	outstanding -= p != NULL;
	__libc_free(p);
}
#endif

/* ---- models -------------------------------------------------------------------------------------- */

enum { HIDDEN = 32, POSITIONS = 192, TOKENS_MAX = POSITIONS, SLOTS = 16 };

struct model {
	struct tiny t;
	uint8_t *file;
	size_t bytes;
	void *aligned;
	struct obm *obm;
};

static void model_open(struct model *m)
{
	char why[300] = "";

	m->aligned = aligned_alloc(4096, (m->bytes + 4095) / 4096 * 4096);
	ck_assert_ptr_nonnull(m->aligned);
	memcpy(m->aligned, m->file, m->bytes);
	ck_assert_msg(!obm_open_memory(m->aligned, m->bytes, 0, 1, &m->obm, why, sizeof(why)), "%s",
		      why);
}

static void model_make(struct model *m, uint64_t seed)
{
	struct write_obm o = { .linear = seed % 2 ? PACKED_2BIT : PACKED_BASE3,
			       .table = seed / 2 % 2 ? PACKED_INT8 : PACKED_F16,
			       .activation = seed / 4 % 2 ? OBM_ACT_SILU : OBM_ACT_RELU2 };

	*m = (struct model){ 0 };
	tiny_default(&m->t, seed);
	m->t.hidden = HIDDEN;
	m->t.ffn = 48;
	m->t.head_dim = 8;
	m->t.context = POSITIONS;
	m->t.tied = seed / 8 % 2;
	m->t.sub_norms = seed / 16 % 2;
	tiny_fill(&m->t);
	m->file = write_obm(&m->t, &o, &m->bytes);
}

static void model_close(struct model *m)
{
	obm_close(m->obm);
	free(m->aligned);
	free(m->file);
	tiny_free(&m->t);
}

/* ---- answers ------------------------------------------------------------------------------------- */

struct answer {
	uint32_t n, token[TOKENS_MAX];
	float logprob[TOKENS_MAX];
	uint32_t n_top[TOKENS_MAX];
	struct sampler_top top[TOKENS_MAX][4];
	char text[16384];
	size_t len;
	enum engine_finish finish;
	uint32_t skip;	      /* tokens that are not told again */
	uint32_t replays, replayed;
};

struct result {
	struct answer a[ENGINE_CHOICES_MAX];
	bool ended;
	struct engine_end end;
	float vector[HIDDEN];
	uint32_t vectors, progress;
};

struct run {
	struct plain_device device;
	struct engine *e;
	struct result *r; /* [SLOTS] */
	uint32_t cancel_after; /* events until the sink cancels slot 0; 0: never */
};

static void on_token(void *ctx, const struct engine_token *t)
{
	struct run *run = ctx;
	struct result *r = &run->r[t->slot];
	struct answer *a = &r->a[t->choice];

	ck_assert(!r->ended && !a->finish && a->n < TOKENS_MAX);
	ck_assert_uint_eq(t->index, a->n + a->skip);
	a->token[a->n] = t->token;
	a->logprob[a->n] = t->has_logprob ? t->logprob : NAN;
	a->n_top[a->n] = t->n_top;
	for (uint32_t i = 0; i < t->n_top && i < 4; i++)
		a->top[a->n][i] = t->top[i];
	a->n++;
	ck_assert_uint_le(a->len + t->text_len, sizeof(a->text));
	if (t->text_len)
		memcpy(a->text + a->len, t->text, t->text_len);
	a->len += t->text_len;
	a->finish = t->finish;
	if (run->cancel_after && !--run->cancel_after)
		engine_cancel(run->e, 0);
}

static void on_replayed(void *ctx, uint32_t slot, uint32_t choice, uint32_t index, uint32_t token)
{
	struct answer *a = &((struct run *)ctx)->r[slot].a[choice];

	ck_assert(!a->n && a->skip == index + 1);
	a->replays++;
	a->replayed = token;
}

static void on_vector(void *ctx, uint32_t slot, const float *v, uint32_t n)
{
	struct result *r = &((struct run *)ctx)->r[slot];

	ck_assert_uint_eq(n, HIDDEN);
	memcpy(r->vector, v, n * sizeof(*v));
	r->vectors++;
}

static void on_progress(void *ctx, uint32_t slot, uint32_t n)
{
	struct result *r = &((struct run *)ctx)->r[slot];

	ck_assert(!r->ended && n >= r->progress);
	r->progress = n;
}

static void on_end(void *ctx, const struct engine_end *end)
{
	struct result *r = &((struct run *)ctx)->r[end->slot];

	ck_assert(!r->ended);
	r->ended = true;
	r->end = *end;
}

static struct engine_sink sink_of(struct run *run)
{
	return (struct engine_sink){ run, on_token, on_replayed, on_vector, on_progress, on_end };
}

static int step(struct run *run)
{
	struct engine_sink sink = sink_of(run);
	char why[300] = "";
	int rc = engine_step(run->e, &sink, why, sizeof(why));

	ck_assert_msg(rc >= 0, "%s", why);
	return rc;
}

static void run_open(struct run *run, const struct model *m, const struct engine_options *o)
{
	char why[300] = "";

	*run = (struct run){ .r = calloc(SLOTS, sizeof(*run->r)) };
	ck_assert_ptr_nonnull(run->r);
	plain_device_init(&run->device);
	ck_assert_msg(!engine_open(&run->device.device, m->obm, o, &run->e, why, sizeof(why)), "%s",
		      why);
}

static void run_close(struct run *run)
{
	engine_close(run->e);
	plain_device_deinit(&run->device);
	free(run->r);
}

static void start(struct run *run, uint32_t slot, const struct engine_request *q)
{
	struct result *r = &run->r[slot];
	char why[300] = "";

	memset(r, 0, sizeof(*r));
	for (uint32_t i = 0; q->done && i < q->n_choices; i++)
		r->a[i].skip = q->done[i].n;
	ck_assert_msg(!engine_start(run->e, slot, q, why, sizeof(why)), "%s", why);
}

/* Alone, on an engine of its own that knows no tricks. */
static struct result *alone(const struct model *m, const struct engine_request *q)
{
	struct engine_options o = { .slots = 1, .chunk = 256, .kv_bytes = 8 << 20,
				    .no_prefixes = true, .no_speculation = true };
	struct result *r = malloc(sizeof(*r));
	struct run run;

	ck_assert_ptr_nonnull(r);
	run_open(&run, m, &o);
	start(&run, 0, q);
	while (step(&run))
		;
	*r = run.r[0];
	ck_assert(r->ended);
	run_close(&run);
	return r;
}

static void same_answer(const struct answer *a, const struct answer *b)
{
	uint32_t skip = b->skip;

	ck_assert_uint_eq(a->n, b->n + skip);
	ck_assert_mem_eq(a->token + skip, b->token, b->n * sizeof(*b->token));
	ck_assert_mem_eq(a->logprob + skip, b->logprob, b->n * sizeof(*b->logprob));
	ck_assert_int_eq(a->finish, b->finish);
	ck_assert_uint_ge(a->len, b->len);
	/* Of a replayed answer the end is told, with what was held back at the cut. */
	ck_assert_mem_eq(a->text + a->len - b->len, b->text, b->len);
	if (!skip)
		ck_assert_uint_eq(a->len, b->len);
}

/* ---- requests ------------------------------------------------------------------------------------ */

struct asked {
	struct engine_request q;
	uint32_t prompt[POSITIONS];
	struct sampler_bias bias[4];
	struct stop_string stop;
};

static const struct sampler_params plain = { .repetition = 1, .top_p = 1 };

static struct engine_request simple(const uint32_t *prompt, uint32_t n, uint32_t max_tokens)
{
	return (struct engine_request){ .n_prompt = n, .prompt = prompt, .n_choices = 1,
					.max_tokens = max_tokens, .sampler = plain,
					.flags = ENGINE_IGNORE_EOS };
}

/* Of everything something; prompts share beginnings. */
static void ask(struct asked *a, const struct model *m, uint64_t *rng)
{
	struct sampler_params *p = &a->q.sampler;
	uint64_t shape = test_random(rng), common = 1 + test_random(rng) % 2;
	uint32_t n = 1 + (uint32_t)(test_random(rng) % 70);

	*a = (struct asked){ 0 };
	for (uint32_t i = 0; i < n; i++) {
		uint64_t *from = i < 40 ? &common : rng;

		a->prompt[i] = (uint32_t)(test_random(from) % m->t.vocab);
	}
	a->q = simple(a->prompt, n, 1 + (uint32_t)(test_random(rng) % 50));
	a->q.n_choices = shape % 4 ? 1 : 1 + (uint32_t)(test_random(rng) % 3);
	a->q.flags = shape >> 2 & 1 ? ENGINE_IGNORE_EOS : 0;
	a->q.flags |= shape >> 3 & 1 ? ENGINE_LOGPROBS : 0;
	a->q.flags |= (shape >> 4 & 3) == 3 ? ENGINE_NO_CACHE : 0;
	a->q.n_top = shape >> 3 & 1 ? 2 : 0;
	a->q.priority = (uint32_t)(shape >> 6 & 1);
	a->q.principal.uid = (uint32_t)(shape >> 7 & 1);
	a->q.min_tokens = shape >> 8 & 1 ? 8 : 0;
	p->temperature = shape >> 9 & 1 ? 0.7f : 0;
	p->seed = test_random(rng);
	p->top_k = shape >> 10 & 1 ? 5 : 0;
	p->top_p = shape >> 11 & 1 ? 0.9f : 1;
	if (shape >> 12 & 1) {
		p->repetition = 1.3f;
		p->frequency = 0.1f;
		a->q.last_n = shape >> 13 & 1 ? 7 : 0;
	}
	if (shape >> 14 & 1) {
		a->bias[0] = (struct sampler_bias){ m->t.eot, 3 };
		p->bias = a->bias;
		p->n_bias = 1;
	}
	if (shape >> 15 & 1) {
		a->stop = (struct stop_string){ "e", 1 };
		a->q.stops = &a->stop;
		a->q.n_stops = 1;
	}
}

/* ---- the same answer, whatever happens ------------------------------------------------------------- */

/* Begun in the middle: each choice knows a part of its answer. */
static void begin_anew(struct asked *a, const struct result *want, struct engine_done *done,
		       uint64_t *rng)
{
	for (uint32_t i = 0; i < a->q.n_choices; i++) {
		const struct answer *w = &want->a[i];
		uint32_t n = (uint32_t)(test_random(rng) % (w->n + 1));

		done[i] = (struct engine_done){ .n = n, .tokens = w->token, .finished = n == w->n };
	}
	a->q.done = done;
}

static void compare(const struct result *want, const struct result *got, const struct asked *a)
{
	ck_assert_int_eq(got->end.err, want->end.err);
	ck_assert_uint_eq(got->end.prompt_tokens, a->q.n_prompt);
	for (uint32_t i = 0; i < a->q.n_choices; i++) {
		const struct engine_done *d = a->q.done ? &a->q.done[i] : NULL;

		if (d && d->finished) {
			ck_assert_uint_eq(got->a[i].n, 0);
			continue;
		}
		same_answer(&want->a[i], &got->a[i]);
		if (d && d->n) {
			ck_assert_uint_eq(got->a[i].replays, 1);
			ck_assert_uint_eq(got->a[i].replayed, d->tokens[d->n - 1]);
		}
	}
}

static struct engine_counts total;

static void one_world(const struct model *m, uint64_t *rng)
{
	enum { N = 14 };
	struct asked *a = calloc(N, sizeof(*a));
	struct result *want[N];
	struct engine_done done[N][ENGINE_CHOICES_MAX];
	uint32_t next = 0, running = 0, slot_of[SLOTS];
	struct engine_options o = {
		.slots = 1 + (uint32_t)(test_random(rng) % SLOTS),
		.chunk = 1 + (uint32_t)(test_random(rng) % 70),
		.no_prefixes = !(test_random(rng) % 4),
		.no_speculation = !(test_random(rng) % 3),
	};
	struct engine_counts c;
	struct run run;

	for (uint32_t i = 0; i < N; i++) {
		ask(&a[i], m, rng);
		want[i] = alone(m, &a[i].q);
		if (!(test_random(rng) % 4))
			begin_anew(&a[i], want[i], done[i], rng);
	}
	/* From room for one sequence to room for some. */
	o.kv_bytes = (4 + test_random(rng) % 20) * KV_PAGE * 2 * m->t.layers * m->t.kv_heads *
		     m->t.head_dim * 2;
	run_open(&run, m, &o);
	memset(slot_of, 0xff, sizeof(slot_of));
	do {
		while (next < N && running < o.slots && test_random(rng) % 3) {
			uint32_t slot = 0;

			while (slot_of[slot] != UINT32_MAX)
				slot++;
			slot_of[slot] = next;
			start(&run, slot, &a[next++].q);
			running++;
		}
		if (running)
			step(&run);
		for (uint32_t i = 0; i < o.slots; i++) {
			uint32_t which = slot_of[i];

			if (which == UINT32_MAX || !run.r[i].ended)
				continue;
			compare(want[which], &run.r[i], &a[which]);
			slot_of[i] = UINT32_MAX;
			running--;
		}
	} while (next < N || running);
	c = engine_counts(run.e);
	total.preempted += c.preempted;
	total.cached_tokens += c.cached_tokens;
	total.drafted += c.drafted;
	total.accepted += c.accepted;
	ck_assert_uint_eq(engine_kv(run.e).held, 0);
	run_close(&run);
	for (uint32_t i = 0; i < N; i++)
		free(want[i]);
	free(a);
}

/*
 * The whole promise: an answer that depends on its neighbours, on the chunks of its prompt, on cached
 * prefixes, on a guess, on lost cache or on an executor that died.
 */
START_TEST(same_whatever_happens)
{
	uint64_t rng = test_seed("engine");

	for (uint64_t i = 0; i < test_scaled(4); i++) {
		struct model m;

		model_make(&m, test_random(&rng));
		model_open(&m);
		for (int j = 0; j < 2; j++)
			one_world(&m, &rng);
		model_close(&m);
	}
	fprintf(stderr, "preempted %llu, cached %llu, drafted %llu, accepted %llu\n",
		(unsigned long long)total.preempted, (unsigned long long)total.cached_tokens,
		(unsigned long long)total.drafted, (unsigned long long)total.accepted);
	/* Or the test has not seen what it is for; a scaled one need not see everything. */
	ck_assert(test_scaled(4) < 4 || (total.preempted && total.cached_tokens && total.accepted));
}
END_TEST

/* ---- text, and where it ends ------------------------------------------------------------------------ */

static struct model shared;
static uint32_t prompt[POSITIONS];

static void set_up(void)
{
	uint64_t rng = 7;

	model_make(&shared, 25);
	model_open(&shared);
	for (uint32_t i = 0; i < POSITIONS; i++)
		prompt[i] = (uint32_t)(test_random(&rng) % shared.t.vocab);
}

static void tear_down(void)
{
	model_close(&shared);
}

static size_t find(const char *text, size_t len, const char *what, size_t n)
{
	const char *at = memmem(text, len, what, n);

	return at ? (size_t)(at - text) : len;
}

/* A stop string that is told in part, that is looked for in single tokens only, or after which text comes. */
START_TEST(stop_strings)
{
	struct engine_request q = simple(prompt, 9, 100);
	struct result *free_run, *r;
	uint64_t rng = test_seed("stop");

	q.sampler.temperature = 1;
	q.sampler.seed = 11;
	free_run = alone(&shared, &q);
	ck_assert_uint_gt(free_run->a[0].len, 60);
	for (int i = 0; i < 8; i++) {
		const struct answer *a = &free_run->a[0];
		size_t at = test_random(&rng) % (a->len - 8), n = 1 + test_random(&rng) % 8;
		struct stop_string stops[2] = { { "never to be seen \x01", 18 },
						{ a->text + at, (uint32_t)n } };

		q.stops = stops;
		q.n_stops = 2;
		r = alone(&shared, &q);
		ck_assert_int_eq(r->a[0].finish, ENGINE_STOP);
		ck_assert_uint_eq(r->a[0].len, find(a->text, a->len, a->text + at, n));
		ck_assert_mem_eq(r->a[0].text, a->text, r->a[0].len);
		ck_assert_mem_eq(r->a[0].token, a->token, r->a[0].n * sizeof(uint32_t));
		free(r);
	}
	free(free_run);
}
END_TEST

/* Text that is lost at the end, where a character or a stop string was still held back. */
START_TEST(text_is_all_there)
{
	const struct stop_string stop = { "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd!", 13 };
	struct tokenizer *t;
	uint64_t bytes;
	const void *section = obm_section(shared.obm, OBM_TOKENIZER, 0, &bytes);
	char why[200];

	ck_assert_int_eq(tokenizer_open(section, bytes, &t, why, sizeof(why)), 0);
	for (uint32_t max = 1; max < 30; max++) {
		struct engine_request q = simple(prompt, 5, max);
		char text[1024];
		struct detok d;
		struct result *r;
		size_t len = 0;

		q.sampler.temperature = 1;
		q.sampler.seed = max;
		q.stops = &stop;
		q.n_stops = 1;
		r = alone(&shared, &q);
		ck_assert_uint_eq(r->a[0].n, max);
		ck_assert_int_eq(r->a[0].finish, ENGINE_LENGTH);
		detok_init(&d, t);
		for (uint32_t i = 0; i < max; i++)
			len += detok_push(&d, t, r->a[0].token[i], text + len);
		len += detok_flush(&d, text + len);
		ck_assert_uint_eq(r->a[0].len, len);
		ck_assert_mem_eq(r->a[0].text, text, len);
		free(r);
	}
	tokenizer_close(t);
}
END_TEST

/* A stop token that goes on, comes too early, or is text. */
START_TEST(stop_tokens)
{
	const struct sampler_bias bias = { shared.t.eot, 1e4f };
	struct engine_request q = simple(prompt, 5, 20);
	struct result *r;

	q.sampler.bias = &bias;
	q.sampler.n_bias = 1;
	q.flags = 0;
	r = alone(&shared, &q);
	ck_assert_uint_eq(r->a[0].n, 1);
	ck_assert_int_eq(r->a[0].finish, ENGINE_STOP);
	ck_assert_uint_eq(r->a[0].len, 0);
	free(r);

	q.min_tokens = 6;
	r = alone(&shared, &q);
	ck_assert_uint_eq(r->a[0].n, 7);
	ck_assert_uint_eq(r->a[0].token[6], shared.t.eot);
	ck_assert_int_eq(r->a[0].finish, ENGINE_STOP);
	for (uint32_t i = 0; i < 6; i++)
		ck_assert(r->a[0].token[i] != shared.t.eot && r->a[0].token[i] != shared.t.eos);
	free(r);

	q.flags = ENGINE_IGNORE_EOS;
	r = alone(&shared, &q);
	ck_assert_uint_eq(r->a[0].n, 20);
	ck_assert_int_eq(r->a[0].finish, ENGINE_LENGTH);
	ck_assert_uint_eq(r->a[0].token[0], shared.t.eot);
	free(r);
}
END_TEST

/* A penalty that forgets the prompt, counts over its window, or outlives its request. */
START_TEST(penalties)
{
	struct engine_request q = simple(prompt, 5, 40);
	struct result *r;
	uint32_t again = 0;

	q.sampler.presence = 1e5f;
	r = alone(&shared, &q);
	for (uint32_t i = 0; i < 40; i++) {
		for (uint32_t j = 0; j < i; j++)
			ck_assert_uint_ne(r->a[0].token[i], r->a[0].token[j]);
		for (uint32_t j = 0; j < 5; j++)
			ck_assert_uint_ne(r->a[0].token[i], prompt[j]);
	}
	free(r);
	q.last_n = 3;
	r = alone(&shared, &q);
	for (uint32_t i = 3; i < 40; i++)
		for (uint32_t j = i - 3; j < i; j++)
			ck_assert_uint_ne(r->a[0].token[i], r->a[0].token[j]);
	for (uint32_t i = 4; i < 40; i++)
		for (uint32_t j = 0; j < i; j++)
			again += r->a[0].token[i] == r->a[0].token[j];
	ck_assert_uint_gt(again, 0);
	free(r);
}
END_TEST

/* The first of n choices that is another when alone; choices that are all the same. */
START_TEST(choices)
{
	struct engine_request q = simple(prompt, 33, 12);
	struct result *one, *many;
	uint32_t differ = 0;

	q.sampler.temperature = 30;
	q.sampler.seed = 5;
	one = alone(&shared, &q);
	q.n_choices = ENGINE_CHOICES_MAX;
	many = alone(&shared, &q);
	same_answer(&one->a[0], &many->a[0]);
	for (uint32_t i = 1; i < ENGINE_CHOICES_MAX; i++) {
		ck_assert_uint_eq(many->a[i].n, 12);
		differ += many->a[i].token[0] != many->a[0].token[0];
	}
	ck_assert_uint_gt(differ, 0);
	free(one);
	free(many);
}
END_TEST

/* An answer longer than its context, or cut before it. */
START_TEST(context_is_full)
{
	struct engine_request q = simple(prompt, POSITIONS - 7, 100);
	struct result *r = alone(&shared, &q);
	struct engine_options o = { .slots = 1 };
	struct run run;
	char why[300] = "";

	ck_assert_uint_eq(r->a[0].n, 7);
	ck_assert_int_eq(r->a[0].finish, ENGINE_LENGTH);
	free(r);
	run_open(&run, &shared, &o);
	q.n_prompt = POSITIONS;
	ck_assert_int_eq(engine_start(run.e, 0, &q, why, sizeof(why)), -EMSGSIZE);
	ck_assert(*why);
	q.kind = ENGINE_SCORE;
	start(&run, 0, &q);
	while (step(&run))
		;
	ck_assert_uint_eq(run.r[0].a[0].n, POSITIONS);
	run_close(&run);
}
END_TEST

/* ---- scores and vectors --------------------------------------------------------------------------- */

/* Log-probabilities of a text that are others than those it was generated with; an order that is not. */
START_TEST(score_is_what_generating_said)
{
	struct engine_request q = simple(prompt, 20, 60), s;
	struct result *said, *scored;
	uint32_t text[80];

	q.flags |= ENGINE_LOGPROBS;
	q.n_top = 4;
	q.sampler.temperature = 1;
	q.sampler.presence = 0.5f;
	said = alone(&shared, &q);
	memcpy(text, prompt, sizeof(text));
	memcpy(text + 20, said->a[0].token, 60 * sizeof(*text));
	s = simple(text, 80, 1);
	s.kind = ENGINE_SCORE;
	s.n_top = 4;
	scored = alone(&shared, &s);
	ck_assert_uint_eq(scored->a[0].n, 80);
	ck_assert(isnan(scored->a[0].logprob[0]) && !scored->a[0].n_top[0]);
	ck_assert_int_eq(scored->a[0].finish, ENGINE_LENGTH);
	ck_assert_mem_eq(scored->a[0].token, text, sizeof(text));
	ck_assert_mem_eq(scored->a[0].logprob + 20, said->a[0].logprob, 60 * sizeof(float));
	ck_assert_mem_eq(scored->a[0].top + 20, said->a[0].top, 60 * sizeof(said->a[0].top[0]));
	for (uint32_t i = 1; i < 80; i++)
		ck_assert(scored->a[0].logprob[i] <= scored->a[0].top[i][0].logprob);
	free(said);
	free(scored);
	s.n_prompt = 1;
	scored = alone(&shared, &s);
	ck_assert_uint_eq(scored->a[0].n, 1);
	free(scored);
}
END_TEST

/* In any chunks, beside others, after what they left in the cache, with too little of it. */
START_TEST(scores_and_vectors_in_a_crowd)
{
	for (uint32_t chunk = 1; chunk < 100; chunk += 33) {
		struct engine_options o = {
			.chunk = chunk, .kv_bytes = (size_t)8 * KV_PAGE * 2 * shared.t.layers *
						    shared.t.kv_heads * shared.t.head_dim * 2,
		};
		struct engine_request q[6];
		struct run run;

		run_open(&run, &shared, &o);
		for (int again = 0; again < 2; again++) {
			for (uint32_t i = 0; i < 6; i++) {
				q[i] = simple(prompt, 60 + i, 20);
				q[i].kind = (enum engine_kind)(i % 3);
				q[i].pool_last = i == 5;
				start(&run, i, &q[i]);
			}
			while (step(&run))
				;
			for (uint32_t i = 0; i < 6; i++) {
				struct result *want = alone(&shared, &q[i]);

				same_answer(&want->a[0], &run.r[i].a[0]);
				ck_assert_mem_eq(want->vector, run.r[i].vector,
						 sizeof(want->vector));
				ck_assert_uint_eq(run.r[i].vectors, i % 3 == 2);
				ck_assert_int_eq(run.r[i].end.err, 0);
				free(want);
			}
		}
		run_close(&run);
	}
}
END_TEST

/* A mean that is another sum, or another count. */
START_TEST(mean_of_rows)
{
	struct engine_request q = simple(prompt, 1, 1);
	float mean[HIDDEN] = { 0 };
	struct result *r;

	q.kind = ENGINE_EMBED;
	q.pool_last = true;
	for (q.n_prompt = 1; q.n_prompt <= 5; q.n_prompt++) {
		r = alone(&shared, &q);
		for (int i = 0; i < HIDDEN; i++)
			mean[i] += r->vector[i];
		free(r);
	}
	for (int i = 0; i < HIDDEN; i++)
		mean[i] /= 5.0f;
	q.n_prompt = 5;
	q.pool_last = false;
	r = alone(&shared, &q);
	ck_assert_mem_eq(r->vector, mean, sizeof(mean));
	free(r);
}
END_TEST

/* ---- faults -------------------------------------------------------------------------------------- */

/* A model with one token whose embedding is so large that its first norm overflows. */
static uint32_t poison(struct model *m)
{
	const uint32_t token = 77;
	struct obm_tensor *t;
	float huge = 1e30f;

	for (uint64_t seed = 100;; seed++) {
		model_make(m, seed);
		t = write_obm_tensor(m->file, OBM_EMBED, OBM_NO_LAYER);
		if (t->layout == PACKED_INT8 && !m->t.tied)
			break;
		free(m->file);
		tiny_free(&m->t);
	}
	memcpy(m->file + t->scales + token * sizeof(huge), &huge, sizeof(huge));
	write_obm_seal(m->file, m->bytes, true);
	model_open(m);
	return token;
}

/* Arithmetic that leaves its range and takes a neighbour with it, tells a token, or stays in the cache. */
START_TEST(faults_end_one_request)
{
	static const uint32_t index[4] = { 0, 1, 46, 45 };
	uint32_t bad[60], good[60];
	struct engine_options o = { .slots = 8, .chunk = 16 };
	struct engine_request q[5];
	struct sampler_bias bias;
	struct result *want;
	struct model m;
	struct run run;

	bias = (struct sampler_bias){ poison(&m), 1e6f };
	for (int i = 0; i < 60; i++)
		good[i] = bad[i] = (uint32_t)i;
	bad[45] = bias.token;
	q[0] = simple(bad, 60, 10);
	q[1] = simple(good, 60, 10);
	q[1].sampler.bias = &bias;
	q[1].sampler.n_bias = 1;
	q[2] = simple(bad, 60, 10);
	q[2].kind = ENGINE_SCORE;
	q[3] = simple(bad, 60, 10);
	q[3].kind = ENGINE_EMBED;
	q[4] = simple(good, 60, 10);
	want = alone(&m, &q[4]);
	run_open(&run, &m, &o);
	for (int again = 0; again < 2; again++) {
		for (uint32_t i = 0; i < 5; i++)
			start(&run, i, &q[i]);
		while (step(&run))
			;
		for (uint32_t i = 0; i < 4; i++) {
			ck_assert_int_eq(run.r[i].end.err, -EDOM);
			ck_assert_uint_eq(run.r[i].end.index, index[i]);
		}
		ck_assert_uint_eq(run.r[0].a[0].n, 0);
		ck_assert_uint_eq(run.r[1].a[0].n, 1);
		ck_assert_uint_eq(run.r[2].a[0].n, 46);
		ck_assert_uint_eq(run.r[3].vectors, 0);
		ck_assert_int_eq(run.r[4].end.err, 0);
		same_answer(&want->a[0], &run.r[4].a[0]);
	}
	run_close(&run);
	free(want);
	model_close(&m);
}
END_TEST

/* A bias that leaves no token to draw. */
START_TEST(nothing_to_draw)
{
	struct sampler_bias *bias = calloc(shared.t.vocab, sizeof(*bias));
	struct engine_request q = simple(prompt, 5, 20);
	struct result *r;

	ck_assert_ptr_nonnull(bias);
	for (uint32_t i = 0; i < shared.t.vocab; i++)
		bias[i] = (struct sampler_bias){ i, -INFINITY };
	q.sampler.bias = bias;
	q.sampler.n_bias = shared.t.vocab;
	r = alone(&shared, &q);
	ck_assert_int_eq(r->end.err, -EDOM);
	ck_assert_uint_eq(r->end.index, 0);
	free(r);
	free(bias);
}
END_TEST

/* A device that is lost and nobody says so. */
START_TEST(device_fails)
{
	struct engine_options o = { .slots = 2 };
	struct engine_request q = simple(prompt, 5, 20);
	struct engine_sink sink;
	struct run run;
	char why[300] = "";

	run_open(&run, &shared, &o);
	sink = sink_of(&run);
	start(&run, 0, &q);
	run.device.fail_wait = 3;
	step(&run);
	step(&run);
	ck_assert_int_eq(engine_step(run.e, &sink, why, sizeof(why)), -EIO);
	ck_assert(*why && !run.r[0].ended);
	run_close(&run);
}
END_TEST

/* ---- the cache ----------------------------------------------------------------------------------- */

static uint32_t cached(struct run *run, const struct engine_request *q)
{
	start(run, 0, q);
	while (step(run))
		;
	ck_assert_int_eq(run->r[0].end.err, 0);
	return run->r[0].end.cached_tokens;
}

/* Somebody else's prompt found; one's own not. */
START_TEST(prefixes)
{
	struct engine_options o = { .slots = 1 };
	struct engine_request q = simple(prompt, 100, 4);
	struct run run;

	run_open(&run, &shared, &o);
	q.flags |= ENGINE_NO_CACHE;
	ck_assert_uint_eq(cached(&run, &q), 0);
	q.flags = 0;
	ck_assert_uint_eq(cached(&run, &q), 0);
	ck_assert_uint_eq(cached(&run, &q), 96);
	q.n_prompt = 96;
	ck_assert_uint_eq(cached(&run, &q), 64);
	q.flags |= ENGINE_NO_CACHE;
	ck_assert_uint_eq(cached(&run, &q), 0);
	q.flags = 0;
	q.principal.uid = 1;
	ck_assert_uint_eq(cached(&run, &q), 0);
	q.principal = (struct kv_principal){ .tenant = 1 };
	ck_assert_uint_eq(cached(&run, &q), 0);
	ck_assert_uint_eq(engine_counts(run.e).cached_tokens, 160);
	run_close(&run);
	o.no_prefixes = true;
	run_open(&run, &shared, &o);
	q = simple(prompt, 100, 4);
	ck_assert_uint_eq(cached(&run, &q), 0);
	ck_assert_uint_eq(cached(&run, &q), 0);
	run_close(&run);
}
END_TEST

/* A sequence that no cache can hold, and goes on asking; neighbours that it takes with it. */
START_TEST(cache_too_small_for_one)
{
	struct engine_options o = { .slots = 3, .kv_bytes = (size_t)4 * KV_PAGE * 2 *
							    shared.t.layers * shared.t.kv_heads *
							    shared.t.head_dim * 2 };
	struct engine_request q = simple(prompt, 100, 80), small = simple(prompt + 100, 20, 30);
	struct result *want = alone(&shared, &q), *two = alone(&shared, &small);
	struct run run;
	char why[300] = "";

	run_open(&run, &shared, &o);
	start(&run, 0, &small);
	start(&run, 1, &q);
	start(&run, 2, &small);
	while (step(&run))
		;
	ck_assert_int_eq(run.r[1].end.err, -ENOBUFS);
	ck_assert_uint_eq(run.r[1].a[0].n, 29);
	ck_assert_mem_eq(run.r[1].a[0].token, want->a[0].token, 29 * sizeof(uint32_t));
	same_answer(&two->a[0], &run.r[0].a[0]);
	same_answer(&two->a[0], &run.r[2].a[0]);
	q.n_prompt = 129;
	ck_assert_int_eq(engine_start(run.e, 0, &q, why, sizeof(why)), -ENOBUFS);
	run_close(&run);
	free(want);
	free(two);
}
END_TEST

/* Priorities that are not kept where not all fit. */
START_TEST(lower_goes_first)
{
	struct engine_options o = { .slots = 2, .chunk = 8 };
	struct engine_request q = simple(prompt, 40, 1);
	struct run run;

	run_open(&run, &shared, &o);
	q.priority = 2;
	start(&run, 0, &q);
	q.priority = 1;
	q.prompt = prompt + 50;
	start(&run, 1, &q);
	for (int i = 0; i < 5; i++)
		step(&run);
	ck_assert(run.r[1].ended && !run.r[0].ended);
	ck_assert_uint_eq(run.r[0].progress, 0);
	while (step(&run))
		;
	ck_assert(run.r[0].ended);
	run_close(&run);
}
END_TEST

/* Who has lost its cache and needs all there is of it, and never gets it back. */
START_TEST(all_of_the_cache_again)
{
	struct engine_options o = { .slots = 2, .no_speculation = true,
				    .kv_bytes = (size_t)4 * KV_PAGE * 2 * shared.t.layers *
						shared.t.kv_heads * shared.t.head_dim * 2 };
	struct engine_request late = simple(prompt, 100, 28), q = simple(prompt + 50, 110, 10);
	struct result *want[2];
	struct run run;

	late.priority = 1;
	want[0] = alone(&shared, &late);
	want[1] = alone(&shared, &q);
	run_open(&run, &shared, &o);
	start(&run, 0, &late);
	for (int i = 0; i < 5; i++)
		step(&run);
	start(&run, 1, &q);
	for (int i = 0; i < 200 && step(&run); i++)
		;
	ck_assert(run.r[0].ended && run.r[1].ended);
	ck_assert_uint_gt(engine_counts(run.e).preempted, 0);
	same_answer(&want[0]->a[0], &run.r[0].a[0]);
	same_answer(&want[1]->a[0], &run.r[1].a[0]);
	run_close(&run);
	free(want[0]);
	free(want[1]);
}
END_TEST

/* More answers than a step has rows for, of which some never get one. */
START_TEST(they_take_turns)
{
	struct engine_options o = { .slots = 6, .no_speculation = true, .kv_bytes = 8 << 20 };
	struct engine_request q = simple(prompt, 3, 30);
	struct run run;
	int steps = 0;

	run_open(&run, &shared, &o);
	q.sampler.temperature = 30;
	q.n_choices = ENGINE_CHOICES_MAX;
	for (uint32_t i = 0; i < 6; i++)
		start(&run, i, &q);
	for (; steps < 30; steps++)
		step(&run);
	for (uint32_t i = 0; i < 6; i++)
		for (uint32_t j = 0; j < ENGINE_CHOICES_MAX; j++)
			ck_assert_msg(run.r[i].a[j].n >= 15 && run.r[i].a[j].n < 30,
				      "choice %u of %u has %u tokens", j, i, run.r[i].a[j].n);
	run_close(&run);
}
END_TEST

/* Blocks or strands that a cancelled request keeps; events after its end; a sink that ends it. */
START_TEST(cancelled)
{
	struct engine_options o = { .slots = 4, .chunk = 16 };
	struct engine_request q = simple(prompt, 60, 50), other = simple(prompt + 60, 30, 50);
	struct result *want = alone(&shared, &other);
	struct run run;
	bool done;

	run_open(&run, &shared, &o);
	q.n_choices = 3;
	for (uint32_t after = 1; after < 30; after += 3) {
		start(&run, 0, &q);
		start(&run, 1, &other);
		for (uint32_t i = 0; i < after; i++)
			step(&run);
		done = run.r[0].ended;
		engine_cancel(run.e, 0);
		engine_cancel(run.e, 0);
		engine_cancel(run.e, 2);
		while (step(&run))
			;
		ck_assert(run.r[0].ended == done && run.r[1].ended);
		same_answer(&want->a[0], &run.r[1].a[0]);
		ck_assert_uint_eq(engine_kv(run.e).held, 0);
		ck_assert_uint_eq(engine_kv(run.e).seqs, 0);
	}
	run.cancel_after = 40;
	start(&run, 0, &q);
	while (step(&run))
		;
	ck_assert(!run.cancel_after && !run.r[0].ended);
	ck_assert_uint_eq(engine_kv(run.e).held, 0);
	run_close(&run);
	free(want);
}
END_TEST

static void quiet_token(void *ctx, const struct engine_token *t)
{
	(void)ctx;
	(void)t;
}

static void quiet_replayed(void *ctx, uint32_t slot, uint32_t choice, uint32_t index,
			   uint32_t token)
{
	(void)ctx;
	(void)slot;
	(void)choice;
	(void)index;
	(void)token;
}

static void quiet_vector(void *ctx, uint32_t slot, const float *v, uint32_t n)
{
	(void)ctx;
	(void)slot;
	(void)v;
	(void)n;
}

static void quiet_progress(void *ctx, uint32_t slot, uint32_t n)
{
	(void)ctx;
	(void)slot;
	(void)n;
}

static void quiet_end(void *ctx, const struct engine_end *end)
{
	*(uint32_t *)ctx += !end->err;
}

/* A step that allocates. Check itself does, so nothing is asserted on the way. */
START_TEST(steps_allocate_nothing)
{
	struct engine_options o = { .chunk = 16, .kv_bytes = (size_t)16 * KV_PAGE * 2 *
							     shared.t.layers * shared.t.kv_heads *
							     shared.t.head_dim * 2 };
	struct stop_string stop = { "zzz", 3 };
	struct engine_request q = simple(prompt, 60, 30);
	uint32_t ended = 0;
	const struct engine_sink sink = { &ended,	  quiet_token,	  quiet_replayed,
					  quiet_vector, quiet_progress, quiet_end };
	int rc = 0;
	struct run run;
	long before;
	char why[300];

	run_open(&run, &shared, &o);
	q.stops = &stop;
	q.n_stops = 1;
	q.sampler.presence = 0.1f;
	q.flags |= ENGINE_LOGPROBS;
	before = allocations;
	for (uint32_t i = 0; i < SLOTS; i++) {
		q.prompt = prompt + i;
		q.n_choices = 1 + i % 4;
		q.kind = i % 5 == 4 ? ENGINE_EMBED : i % 5 == 3 ? ENGINE_SCORE : ENGINE_GENERATE;
		rc |= engine_start(run.e, i, &q, why, sizeof(why));
	}
	while (!rc && engine_step(run.e, &sink, why, sizeof(why)) > 0)
		;
	before = allocations - before;
	ck_assert_int_eq(rc, 0);
	ck_assert_int_eq(before, 0);
	ck_assert_uint_eq(ended, SLOTS);
	ck_assert_uint_gt(engine_counts(run.e).preempted, 0);
	run_close(&run);
}
END_TEST

/* ---- what is refused ------------------------------------------------------------------------------ */

/* A request that would index beside a table, or a sampler's parameter that it asserts. */
START_TEST(refusals)
{
	struct engine_options o = { .slots = 1 };
	const struct engine_request fine = simple(prompt, 5, 5);
	struct sampler_bias bias[2] = { { 5, 1 }, { 6, 1 } };
	struct stop_string stops[65];
	uint32_t tokens[] = { 1, 2, shared.t.vocab, 3, 4 };
	struct engine_done done[2] = { { .n = 3, .tokens = prompt } };
	struct run run;
	char why[300];

	for (int i = 0; i < 65; i++)
		stops[i] = (struct stop_string){ "ab", 2 };
	run_open(&run, &shared, &o);
#define REFUSED(error, change)                                                               \
	do {                                                                                 \
		struct engine_request q = fine;                                              \
		change;                                                                      \
		*why = 0;                                                                    \
		ck_assert_int_eq(engine_start(run.e, 0, &q, why, sizeof(why)), error);       \
		ck_assert(*why);                                                             \
	} while (0)
	REFUSED(-EINVAL, q.kind = (enum engine_kind)3);
	REFUSED(-EINVAL, q.n_prompt = 0);
	REFUSED(-EMSGSIZE, q.n_prompt = POSITIONS);
	REFUSED(-EMSGSIZE, (q.n_prompt = UINT32_MAX, q.kind = ENGINE_EMBED));
	REFUSED(-EINVAL, q.prompt = tokens);
	REFUSED(-EINVAL, q.n_choices = 0);
	REFUSED(-EINVAL, q.n_choices = 17);
	REFUSED(-EINVAL, q.max_tokens = 0);
	REFUSED(-EINVAL, q.n_top = SAMPLER_TOP_MAX + 1);
	REFUSED(-EINVAL, q.sampler.temperature = NAN);
	REFUSED(-EINVAL, q.sampler.temperature = INFINITY);
	REFUSED(-EINVAL, q.sampler.top_p = NAN);
	REFUSED(-EINVAL, q.sampler.min_p = NAN);
	REFUSED(-EINVAL, q.sampler.min_p = 1.01f);
	REFUSED(-EINVAL, q.sampler.repetition = 0);
	REFUSED(-EINVAL, q.sampler.repetition = NAN);
	REFUSED(-EINVAL, q.sampler.frequency = NAN);
	REFUSED(-EINVAL, q.sampler.presence = INFINITY);
	REFUSED(-EINVAL, (q.sampler.bias = bias, q.sampler.n_bias = ENGINE_BIAS_MAX + 1));
	bias[1].token = 5;
	REFUSED(-EINVAL, (q.sampler.bias = bias, q.sampler.n_bias = 2));
	bias[1].token = shared.t.vocab;
	REFUSED(-EINVAL, (q.sampler.bias = bias, q.sampler.n_bias = 2));
	bias[1] = (struct sampler_bias){ 6, NAN };
	REFUSED(-EINVAL, (q.sampler.bias = bias, q.sampler.n_bias = 2));
	bias[1].bias = INFINITY;
	REFUSED(-EINVAL, (q.sampler.bias = bias, q.sampler.n_bias = 2));
	REFUSED(-EINVAL, (q.stops = stops, q.n_stops = 65));
	stops[1].len = 0;
	REFUSED(-EINVAL, (q.stops = stops, q.n_stops = 2));
	stops[1].len = STOP_BYTES_MAX + 1;
	REFUSED(-EINVAL, (q.stops = stops, q.n_stops = 2));
	/* An answer so far that is over, or holds what no model said. */
	REFUSED(-EINVAL, (q.done = done, q.max_tokens = 3));
	done[0].tokens = tokens;
	REFUSED(-EINVAL, q.done = done);
	tokens[2] = shared.t.eos;
	REFUSED(-EINVAL, (q.done = done, q.flags = 0));
#undef REFUSED
	/* After all that the slot is free, and bias counts are as they were. */
	bias[1] = (struct sampler_bias){ 6, -INFINITY };
	{
		struct engine_request q = fine;

		q.sampler.bias = bias;
		q.sampler.n_bias = 2;
		start(&run, 0, &q);
		while (step(&run))
			;
	}
	ck_assert_uint_eq(run.r[0].a[0].n, 5);
	run_close(&run);
}
END_TEST

/* Options that are not possible; a device or an allocator that has nothing more; what is left behind then. */
START_TEST(opening_fails)
{
	static const struct engine_options wrong[] = {
		{ .slots = ENGINE_SLOTS_MAX + 1 }, { .chunk = 100000 }, { .kv_form = 2 },
		{ .kv_bytes = 100 }, { .kv_bytes = UINT64_MAX },
	};
	struct engine_options o = { .slots = 2 };
	struct plain_device d;
	struct engine *e = NULL;
	char why[300];
	int err = 0;

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]) - 1; i++) {
		plain_device_init(&d);
		*why = 0;
		ck_assert_int_eq(engine_open(&d.device, shared.obm, &wrong[i], &e, why,
					     sizeof(why)),
				 -EINVAL);
		ck_assert(*why && !e);
		plain_device_deinit(&d);
	}
	for (uint32_t i = 1; i < 10; i++) {
		plain_device_init(&d);
		d.fail_alloc = i;
		*why = 0;
		err = engine_open(&d.device, shared.obm, &o, &e, why, sizeof(why));
		if (!err)
			break;
		ck_assert_int_eq(err, -ENOMEM);
		ck_assert(*why && !e);
		plain_device_deinit(&d);
	}
	ck_assert_int_eq(err, 0);
	e = engine_close(e);
	plain_device_deinit(&d);
	plain_device_init(&d);
	d.fail_load = 1;
	ck_assert_int_eq(engine_open(&d.device, shared.obm, &o, &e, why, sizeof(why)), -ENOMEM);
	plain_device_deinit(&d);

#if OWN_MALLOC
	for (long i = 0;; i++) {
		long before;

		plain_device_init(&d);
		before = outstanding;
		allocations = 0;
		fail_at = i;
		err = engine_open(&d.device, shared.obm, &o, &e, why, sizeof(why));
		fail_at = -1;
		e = err ? e : engine_close(e);
		before -= outstanding;
		ck_assert_int_eq(before, 0);
		plain_device_deinit(&d);
		if (!err)
			break;
		ck_assert_int_eq(err, -ENOMEM);
	}
#endif
}
END_TEST

static Suite *suite(void)
{
	Suite *s = suite_create("engine");
	TCase *t = tcase_create("engine");

	tcase_set_timeout(t, 300);
	tcase_add_test(t, same_whatever_happens);
	suite_add_tcase(s, t);
	t = tcase_create("one model");
	tcase_set_timeout(t, 300);
	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_add_test(t, stop_strings);
	tcase_add_test(t, text_is_all_there);
	tcase_add_test(t, stop_tokens);
	tcase_add_test(t, penalties);
	tcase_add_test(t, choices);
	tcase_add_test(t, context_is_full);
	tcase_add_test(t, score_is_what_generating_said);
	tcase_add_test(t, scores_and_vectors_in_a_crowd);
	tcase_add_test(t, mean_of_rows);
	tcase_add_test(t, faults_end_one_request);
	tcase_add_test(t, nothing_to_draw);
	tcase_add_test(t, device_fails);
	tcase_add_test(t, prefixes);
	tcase_add_test(t, cache_too_small_for_one);
	tcase_add_test(t, lower_goes_first);
	tcase_add_test(t, all_of_the_cache_again);
	tcase_add_test(t, they_take_turns);
	tcase_add_test(t, cancelled);
	tcase_add_test(t, steps_allocate_nothing);
	tcase_add_test(t, refusals);
	tcase_add_test(t, opening_fails);
	suite_add_tcase(s, t);
	return s;
}

int main(void)
{
	SRunner *r = srunner_create(suite());
	int failed;

	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

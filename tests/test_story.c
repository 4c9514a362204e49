/* SPDX-License-Identifier: MIT */
/*
 * The bundled model, and a third opinion. That the engine and the oracle agree does not say that
 * they are right: both were written from one description. golden/story.txt is what the training
 * program made of the same weights, in another language and by other hands.
 */
#include <check.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "lib_oracle.h"
#include "lib_shapes.h"

/* In logits, whose deviation is 4: twice what was measured. The engine's are always the same. */
#define STORY_MEDIAN 0.05
#define STORY_MOST   0.2
#define STORY_LEAD   0.3
#define STORY_NLL    0.005

static struct device *cpu(void)
{
	struct device_cpu_options o = { .threads = 1, .isa_mask = KERNELS_ANY };
	struct device *d = NULL;
	char why[256] = "";

	ck_assert_msg(!device_cpu_open(&o, &d, why, sizeof(why)), "%s", why);
	return d;
}

#define GOLDEN_MAX 64u
#define SOME_STEP  32u

struct golden {
	uint32_t n, ids[GOLDEN_MAX];
	uint32_t top[GOLDEN_MAX][5];
	double logit[GOLDEN_MAX][5];
	uint32_t n_some, some_at[16];
	double some[16][4096 / SOME_STEP];
	double nll;
};

static struct obm *story(void)
{
	int fd = open("models/story.obm", O_RDONLY | O_CLOEXEC);
	struct obm *model = NULL;
	char why[256] = "";

	ck_assert_msg(fd >= 0, "models/story.obm is not there");
	ck_assert_msg(!obm_open(fd, 0, 1, &model, why, sizeof(why)), "%s", why);
	close(fd);
	return model;
}

static void golden_read(struct golden *g)
{
	FILE *f = fopen("tests/golden/story.txt", "re");
	static char line[1 << 16];

	*g = (struct golden){ 0 };
	ck_assert(f != NULL);
	while (fgets(line, sizeof(line), f)) {
		char *end, *p = line + strcspn(line, " ");
		unsigned long at;

		if (!strncmp(line, "ids ", 4))
			for (at = strtoul(p, &end, 10); end != p; at = strtoul(p, &end, 10)) {
				ck_assert_uint_lt(g->n, GOLDEN_MAX);
				g->ids[g->n++] = (uint32_t)at;
				p = end;
			}
		else if (!strncmp(line, "nll ", 4))
			g->nll = strtod(p, NULL);
		else if (!strncmp(line, "top ", 4)) {
			at = strtoul(p, &p, 10);
			ck_assert_uint_lt(at, g->n);
			for (int i = 0; i < 5; i++) {
				g->top[at][i] = (uint32_t)strtoul(p, &p, 10);
				g->logit[at][i] = strtod(p + 1, &p);
			}
		} else if (!strncmp(line, "some ", 5)) {
			ck_assert_uint_lt(g->n_some, 16);
			g->some_at[g->n_some] = (uint32_t)strtoul(p, &p, 10);
			for (unsigned i = 0; i < 4096 / SOME_STEP; i++)
				g->some[g->n_some][i] = strtod(p, &p);
			g->n_some++;
		}
	}
	fclose(f);
	ck_assert(g->n && g->n_some && g->nll > 0);
}

/* logit(at, id) of ours against theirs. */
static void golden_compare(const struct golden *g, const char *who,
			   double (*logit)(uint32_t, uint32_t))
{
	double off[GOLDEN_MAX * 5 + 16 * 4096 / SOME_STEP], nll = 0;
	size_t n = 0;

	for (uint32_t at = 0; at < g->n; at++) {
		double sum = 0, first = g->logit[at][0], lead = first - g->logit[at][1];

		for (int i = 0; i < 5; i++)
			off[n++] = fabs(logit(at, g->top[at][i]) - g->logit[at][i]);
		for (uint32_t v = 0; v < 4096; v++) {
			sum += exp(logit(at, v) - first);
			ck_assert_msg(lead < STORY_LEAD || v == g->top[at][0] ||
					      logit(at, v) < logit(at, g->top[at][0]),
				      "%s: after token %u, %u is likelier than %u", who, at, v,
				      g->top[at][0]);
		}
		if (at + 1 < g->n)
			nll += log(sum) + first - logit(at, g->ids[at + 1]);
	}
	for (uint32_t k = 0; k < g->n_some; k++)
		for (uint32_t i = 0; i < 4096 / SOME_STEP; i++)
			off[n++] = fabs(logit(g->some_at[k], i * SOME_STEP) - g->some[k][i]);
	qsort(off, n, sizeof(*off), oracle_ascending);
	nll /= g->n - 1;
	fprintf(stderr, "%s: median %.4f, 99 %% within %.4f, nll %.5f, theirs %.5f\n", who,
		off[n / 2], off[n * 99 / 100], nll, g->nll);
	ck_assert_msg(off[n / 2] < STORY_MEDIAN && off[n * 99 / 100] < STORY_MOST,
		      "%s: half of the logits are off by %.4f or more, a hundredth by %.4f", who,
		      off[n / 2], off[n * 99 / 100]);
	ck_assert_msg(fabs(nll - g->nll) < STORY_NLL, "%s: nll %.5f, should be %.5f", who, nll,
		      g->nll);
}

static struct {
	double *oracle;
	float *engine;
	uint32_t stride;
} told;

static double told_by_oracle(uint32_t at, uint32_t id)
{
	return told.oracle[(size_t)at * 4096 + id];
}

static double told_by_engine(uint32_t at, uint32_t id)
{
	return (double)told.engine[(size_t)at * told.stride + id];
}

/*
 * The oracle and the engine may share a reading of the description that is wrong: a trained model
 * knows.
 */
START_TEST(story_is_what_was_trained)
{
	struct obm *model = story();
	struct oracle *oracle = oracle_of_obm(model);
	struct device *d = cpu();
	struct golden g;
	uint32_t faults = 0;
	struct closeness c;

	golden_read(&g);
	ck_assert_uint_eq(model->arch->vocab, 4096);
	told.oracle = malloc((size_t)g.n * 4096 * sizeof(double));
	ck_assert(told.oracle != NULL);
	oracle_run(oracle, ORACLE_RIGHT, g.ids, g.n, told.oracle, NULL);
	told.engine = shape_logits(d, model, KV_F16, g.ids, g.n, 16, &told.stride, NULL, &faults);
	ck_assert_uint_eq(faults, 0);
	golden_compare(&g, "oracle", told_by_oracle);
	golden_compare(&g, "engine", told_by_engine);
	c = oracle_closeness(told.oracle, told.engine, told.stride, g.n, 4096);
	fprintf(stderr, "engine against oracle: median %.4f deviations\n", c.median);
	ck_assert(c.median < 0.02 && c.agreed == c.clear);
	free(told.oracle);
	free(told.engine);
	d->type->close(d);
	oracle_free(oracle);
	obm_close(model);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("story");
	TCase *t = tcase_create("story");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 600);
	tcase_add_test(t, story_is_what_was_trained);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}

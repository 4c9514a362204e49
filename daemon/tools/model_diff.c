/* SPDX-License-Identifier: MIT */
/*
 * onebit model diff: whether two files are the same model. Compared is what a model computes with,
 * as it would be served: numbers of the architecture, the vocabulary, codes, scales, embeddings and
 * norms. Names, licences and notes are not.
 *
 * A scale that multiplies only zeros changes nothing, so formats that keep it and formats that
 * cannot are not different for that.
 */
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "model.h"
#include "packed.h"
#include "served.h"

static const char verb[] = "model diff";

enum {
	DIFFERENT = 1,
	TROUBLE = 2,	 /* as diff(1) has it: the question could not be answered */
	LINES_MAX = 24,	 /* told of differences; the rest is counted */
	FORGET_BYTES = 32 << 20,
};

struct side {
	struct source *file, *s; /* as it is, as it is served */
	int8_t *codes;		 /* PACKED_ROWS rows of the widest */
	float *scales, *floats;
};

struct diff {
	struct side a, b;
	json_t *lines;	/* sentences; NULL: printed as they come */
	unsigned n_lines;
	uint64_t codes, codes_differ;
	uint64_t scales, scales_differ;
	double scale_error; /* the largest relative one */
	uint64_t floats, floats_differ;
	double float_error; /* the largest, against the tensor's largest magnitude */
};

static void tell(struct diff *d, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void tell(struct diff *d, const char *format, ...)
{
	char line[256];
	va_list ap;

	va_start(ap, format);
	vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	d->n_lines++;
	/* Texts in a line come from files. */
	for (char *c = line; *c; c++)
		if ((unsigned char)*c < 32 || *c == 127)
			*c = '?';
	if (d->lines)
		json_array_append_new(d->lines, json_string(line));
	else if (d->n_lines <= LINES_MAX)
		puts(line);
}

/* ---- numbers and vocabulary ---------------------------------------------------------------- */

static void compare_number(struct diff *d, const char *what, double a, double b)
{
	if (a != b)
		tell(d, "%s: %.9g and %.9g", what, a, b);
}

static void compare_arch(struct diff *d)
{
	const struct obm_arch *a = &d->a.s->arch, *b = &d->b.s->arch;
	const double *f = d->a.s->rope, *g = d->b.s->rope;

	compare_number(d, "layers", a->layers, b->layers);
	compare_number(d, "hidden", a->hidden, b->hidden);
	compare_number(d, "FFN", a->ffn, b->ffn);
	compare_number(d, "heads", a->heads, b->heads);
	compare_number(d, "KV heads", a->kv_heads, b->kv_heads);
	compare_number(d, "head_dim", a->head_dim, b->head_dim);
	compare_number(d, "vocabulary rows", a->vocab, b->vocab);
	compare_number(d, "context", a->context, b->context);
	compare_number(d, "activation (1 ReLU2, 2 SiLU)", a->activation, b->activation);
	compare_number(d, "flags", a->flags, b->flags);
	compare_number(d, "eps", (double)a->rms_eps, (double)b->rms_eps);
	/* Frequencies of the file's own say more than the base, which then is for people. */
	if (f && g && a->head_dim == b->head_dim) {
		if (memcmp(f, g, a->head_dim / 2 * sizeof(*f)))
			tell(d, "rotary frequencies differ");
	} else {
		compare_number(d, "rotary base", d->a.s->rope_theta, d->b.s->rope_theta);
	}
}

static bool same_token(const struct vocab_token *a, const struct vocab_token *b)
{
	return a->len == b->len && a->kind == b->kind && a->score == b->score &&
	       (!a->len || !memcmp(a->text, b->text, a->len));
}

/* Ids behind the last one that a file names: another format has them as unused. */
static bool rest_is_unused(const struct vocab *v, uint32_t from)
{
	for (uint32_t i = from; i < v->n_tokens; i++)
		if (v->tokens[i].kind != VOCAB_UNUSED)
			return false;
	return true;
}

static void compare_tokens(struct diff *d, const struct vocab *a, const struct vocab *b)
{
	uint32_t n = a->n_tokens < b->n_tokens ? a->n_tokens : b->n_tokens;
	uint32_t differ = 0, first = 0;

	if (!rest_is_unused(a, n) || !rest_is_unused(b, n))
		compare_number(d, "tokens", a->n_tokens, b->n_tokens);
	for (uint32_t i = 0; i < n; i++)
		if (!same_token(&a->tokens[i], &b->tokens[i]) && !differ++)
			first = i;
	if (differ) {
		const struct vocab_token *x = &a->tokens[first], *y = &b->tokens[first];

		tell(d, "%u tokens differ, first %u: '%.*s' (kind %u) and '%.*s' (kind %u)", differ,
		     first, (int)(x->len < 40 ? x->len : 40), (const char *)x->text, x->kind,
		     (int)(y->len < 40 ? y->len : 40), (const char *)y->text, y->kind);
	}
}

static int by_pair(const void *a, const void *b)
{
	const struct vocab_merge *x = a, *y = b;

	if (x->a != y->a)
		return x->a < y->a ? -1 : 1;
	return x->b < y->b ? -1 : x->b > y->b;
}

static int by_rank(const void *a, const void *b)
{
	const struct vocab_merge *x = a, *y = b;

	if (x->rank != y->rank)
		return x->rank < y->rank ? -1 : 1;
	return by_pair(a, b);
}

/* Its merges by pair, their ranks counted through: only the order of ranks means anything. */
static struct vocab_merge *sorted_merges(const struct vocab *v)
{
	struct vocab_merge *m = malloc((v->n_merges + 1ull) * sizeof(*m));
	uint32_t rank = 0;

	if (!m)
		return NULL;
	if (v->n_merges)
		memcpy(m, v->merges, v->n_merges * sizeof(*m));
	qsort(m, v->n_merges, sizeof(*m), by_rank);
	for (uint32_t i = 0, was = 0; i < v->n_merges; i++) {
		uint32_t is = m[i].rank;

		rank += i && is != was;
		was = is;
		m[i].rank = rank;
	}
	qsort(m, v->n_merges, sizeof(*m), by_pair);
	return m;
}

struct both {
	uint32_t a, b; /* ranks of one merge in either vocabulary */
};

static int by_both(const void *a, const void *b)
{
	const struct both *x = a, *y = b;

	if (x->a != y->a)
		return x->a < y->a ? -1 : 1;
	return x->b < y->b ? -1 : x->b > y->b;
}

/*
 * Merges of equal rank are taken from the left. A format that knows an order only puts those one
 * behind the other, any of them first: told, because in theory a text could be cut otherwise, but
 * no difference.
 */
static void compare_order(struct diff *d, struct both *r, uint32_t n)
{
	uint32_t swapped = 0, split = 0;

	qsort(r, n, sizeof(*r), by_both);
	for (uint32_t i = 1; i < n; i++) {
		swapped += r[i].b < r[i - 1].b;
		split += (r[i].a == r[i - 1].a) != (r[i].b == r[i - 1].b);
	}
	if (swapped)
		tell(d, "merges: the same, in another order at %u places", swapped);
	else if (split && !d->lines)
		printf("note: %u merges have equal ranks in one vocabulary and an order in the other\n",
		       split);
}

static void compare_merges(struct diff *d, const struct vocab *a, const struct vocab *b)
{
	struct vocab_merge *x = sorted_merges(a), *y = sorted_merges(b);
	struct both *r = malloc((a->n_merges + 1ull) * sizeof(*r));
	uint32_t n = 0, i = 0, j = 0;

	while (x && y && r && i < a->n_merges && j < b->n_merges) {
		int order = by_pair(&x[i], &y[j]);

		if (!order && x[i].merged == y[j].merged)
			r[n++] = (struct both){ x[i].rank, y[j].rank };
		i += order <= 0;
		j += order >= 0;
	}
	if (!x || !y || !r)
		tell(d, "merges: no memory to compare them");
	else if (n < a->n_merges || n < b->n_merges)
		tell(d, "merges: %u and %u, of which %u are the same", a->n_merges, b->n_merges, n);
	else
		compare_order(d, r, n);
	free(x);
	free(y);
	free(r);
}

static void compare_vocab(struct diff *d)
{
	const struct vocab *a = d->a.s->vocab, *b = d->b.s->vocab;

	if (!a || !b) {
		if (a || b)
			tell(d, "only the %s one has a tokenizer", a ? "first" : "second");
		return;
	}
	compare_number(d, "tokenizer's kind (1 bytes, 2 SentencePiece)", a->kind, b->kind);
	compare_number(d, "tokenizer's rule (0 none, 1 llama3, 2 gpt2, 3 starcoder)", a->rule,
		       b->rule);
	compare_number(d, "tokenizer's flags", a->flags, b->flags);
	compare_number(d, "bos", a->bos, b->bos);
	compare_number(d, "eos", a->eos, b->eos);
	compare_number(d, "unk", a->unk, b->unk);
	compare_number(d, "stop tokens", a->n_stops, b->n_stops);
	for (uint32_t i = 0; i < a->n_stops && i < b->n_stops; i++)
		compare_number(d, "stop token", a->stops[i], b->stops[i]);
	if (strcmp(a->chat, b->chat))
		tell(d, "chat template: %s and %s", *a->chat ? a->chat : "none",
		     *b->chat ? b->chat : "none");
	compare_tokens(d, a, b);
	compare_merges(d, a, b);
}

/* ---- tensors ------------------------------------------------------------------------------- */

static const char *name_of(const struct source_tensor *t, char *buf, size_t len)
{
	if (t->layer == OBM_NO_LAYER)
		snprintf(buf, len, "%s", obm_role_name(t->role));
	else
		snprintf(buf, len, "layer %u's %s", t->layer, obm_role_name(t->role));
	return buf;
}

static bool all_zero(const int8_t *codes, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (codes[i])
			return false;
	return true;
}

/* One row's scales, where groups may differ: piece by piece between the groups' borders. */
static uint64_t compare_scales(const struct diff *d, const struct source_tensor *a,
			       const struct source_tensor *b, uint32_t row, double *worst)
{
	const float *x = d->a.scales + (size_t)row * a->groups,
		    *y = d->b.scales + (size_t)row * b->groups;
	const int8_t *codes = d->a.codes + (size_t)row * a->cols;
	uint32_t wa = a->cols / a->groups, wb = b->cols / b->groups;
	uint64_t differ = 0;

	for (uint32_t col = 0, next; col < a->cols; col = next) {
		float s = x[col / wa], t = y[col / wb];
		uint32_t na = (col / wa + 1) * wa, nb = (col / wb + 1) * wb;
		double error;

		next = na < nb ? na : nb;
		if (s == t || all_zero(codes + col, next - col))
			continue;
		error = fabs((double)s - (double)t) / fmax(fabs((double)s), fabs((double)t));
		*worst = fmax(*worst, error);
		differ++;
	}
	return differ;
}

static int compare_matrix(struct diff *d, const struct source_tensor *a,
			  const struct source_tensor *b, char *why, size_t why_len)
{
	uint64_t codes = 0, scales = 0;
	double worst = 0;
	char name[64];

	for (uint32_t row = 0; row < a->rows; row += PACKED_ROWS) {
		uint32_t n = a->rows - row < PACKED_ROWS ? a->rows - row : PACKED_ROWS;
		int err = d->a.s->ops->read_codes(d->a.s, a, row, n, d->a.codes, d->a.scales, why,
						  why_len);

		if (!err)
			err = d->b.s->ops->read_codes(d->b.s, b, row, n, d->b.codes, d->b.scales,
						      why, why_len);
		if (err)
			return err;
		if (memcmp(d->a.codes, d->b.codes, (size_t)n * a->cols))
			for (size_t i = 0; i < (size_t)n * a->cols; i++)
				codes += d->a.codes[i] != d->b.codes[i];
		if (a->groups != b->groups ||
		    memcmp(d->a.scales, d->b.scales, (size_t)n * a->groups * sizeof(float)))
			for (uint32_t i = 0; i < n; i++)
				scales += compare_scales(d, a, b, i, &worst);
	}
	d->codes += (uint64_t)a->rows * a->cols;
	d->scales += (uint64_t)a->rows * a->groups;
	d->codes_differ += codes;
	d->scales_differ += scales;
	d->scale_error = fmax(d->scale_error, worst);
	if (codes || scales)
		tell(d,
		     "%s: %" PRIu64 " of %" PRIu64 " codes differ, %" PRIu64
		     " scales, by up to %.3g of their "
		     "size",
		     name_of(a, name, sizeof(name)), codes, (uint64_t)a->rows * a->cols, scales,
		     worst);
	return 0;
}

static int compare_floats(struct diff *d, const struct source_tensor *a,
			  const struct source_tensor *b, char *why, size_t why_len)
{
	uint64_t differ = 0, read = 0;
	double worst = 0, most = 0;
	char name[64];

	for (uint32_t row = 0; row < a->rows; row += PACKED_ROWS) {
		uint32_t n = a->rows - row < PACKED_ROWS ? a->rows - row : PACKED_ROWS;
		int err = d->a.s->ops->read_floats(d->a.s, a, row, n, d->a.floats, why, why_len);

		if (!err)
			err = d->b.s->ops->read_floats(d->b.s, b, row, n, d->b.floats, why,
						       why_len);
		if (err)
			return err;
		for (size_t i = 0; i < (size_t)n * a->cols; i++) {
			double x = (double)d->a.floats[i], y = (double)d->b.floats[i];

			differ += x != y;
			worst = fabs(x - y) > worst ? fabs(x - y) : worst;
			most = fabs(x) > most ? fabs(x) : most;
		}
		read += (uint64_t)n * a->cols * sizeof(float);
		if (read >= FORGET_BYTES) {
			d->a.s->ops->done(d->a.s, a);
			d->b.s->ops->done(d->b.s, b);
			read = 0;
		}
	}
	d->floats += (uint64_t)a->rows * a->cols;
	d->floats_differ += differ;
	if (differ) {
		d->float_error = fmax(d->float_error, most > 0 ? worst / most : 1);
		tell(d,
		     "%s: %" PRIu64 " of %" PRIu64
		     " values differ, by up to %.3g (the largest is %.3g)",
		     name_of(a, name, sizeof(name)), differ, (uint64_t)a->rows * a->cols, worst,
		     most);
	}
	return 0;
}

static int compare_tensors(struct diff *d, char *why, size_t why_len)
{
	char name[64];
	int err = 0;

	for (uint32_t i = 0; i < d->a.s->n_tensors && !err; i++) {
		const struct source_tensor *a = &d->a.s->tensors[i];
		const struct source_tensor *b = source_find(d->b.s, a->role, a->layer);

		name_of(a, name, sizeof(name));
		if (!b)
			tell(d, "%s: only the first one has it", name);
		else if (a->rows != b->rows || a->cols != b->cols)
			tell(d, "%s: %u x %u and %u x %u", name, a->rows, a->cols, b->rows,
			     b->cols);
		else if (a->role >= OBM_Q)
			err = compare_matrix(d, a, b, why, why_len);
		else
			err = compare_floats(d, a, b, why, why_len);
		d->a.s->ops->done(d->a.s, a);
		if (b)
			d->b.s->ops->done(d->b.s, b);
	}
	for (uint32_t i = 0; i < d->b.s->n_tensors && !err; i++) {
		const struct source_tensor *b = &d->b.s->tensors[i];

		if (!source_find(d->a.s, b->role, b->layer))
			tell(d, "%s: only the second one has it", name_of(b, name, sizeof(name)));
	}
	return err;
}

/* ---- the verb ------------------------------------------------------------------------------ */

static int open_side(struct side *x, const char *path, const struct source_options *o)
{
	uint64_t cols = 1, groups = 1;
	char why[512];

	x->file = model_open(verb, path, o);
	if (!x->file)
		return TROUBLE;
	if (served_new(x->file, &x->s, why, sizeof(why)))
		return tool_fail(verb, TROUBLE, "%s: %s", path, why);
	for (uint32_t i = 0; i < x->s->n_tensors; i++) {
		const struct source_tensor *t = &x->s->tensors[i];

		cols = t->cols > cols ? t->cols : cols;
		groups = t->groups > groups ? t->groups : groups;
	}
	x->codes = malloc(cols * PACKED_ROWS);
	x->floats = malloc(cols * PACKED_ROWS * sizeof(*x->floats));
	x->scales = malloc(groups * PACKED_ROWS * sizeof(*x->scales));
	if (!x->codes || !x->floats || !x->scales)
		return tool_fail(verb, TROUBLE, "no memory for rows of %" PRIu64 " columns", cols);
	return STATUS_OK;
}

static void close_side(struct side *x)
{
	served_free(x->s);
	source_close(x->file);
	free(x->codes);
	free(x->floats);
	free(x->scales);
}

static int print_json(struct diff *d)
{
	json_t *o = json_pack("{s:b, s:O, s:I, s:I, s:I, s:I, s:f, s:I, s:I, s:f}", "equal",
			      !d->n_lines, "differences", d->lines, "codes", (json_int_t)d->codes,
			      "codes_differ", (json_int_t)d->codes_differ, "scales",
			      (json_int_t)d->scales, "scales_differ", (json_int_t)d->scales_differ,
			      "scale_error", d->scale_error, "values", (json_int_t)d->floats,
			      "values_differ", (json_int_t)d->floats_differ, "value_error",
			      d->float_error);
	int err = o ? json_dumpf(o, stdout, JSON_COMPACT) : -1;

	json_decref(o);
	if (err)
		return tool_fail(verb, TROUBLE, "no memory, or standard output cannot be written");
	putchar('\n');
	return STATUS_OK;
}

static int print_end(struct diff *d)
{
	if (d->lines)
		return print_json(d);
	if (d->n_lines > LINES_MAX)
		printf("and %u more\n", d->n_lines - LINES_MAX);
	printf("%s: %" PRIu64 " codes, %" PRIu64 " scales, %" PRIu64 " other values", d->n_lines ?
	       "different" : "equal", d->codes, d->scales, d->floats);
	if (d->n_lines)
		printf("; %" PRIu64 " codes differ, %" PRIu64
		       " scales by up to %.3g of their size, %" PRIu64
		       " other values by up to %.3g of the largest",
		       d->codes_differ, d->scales_differ, d->scale_error, d->floats_differ,
		       d->float_error);
	putchar('\n');
	return STATUS_OK;
}

static int compare(struct diff *d, char **paths, const struct source_options *o)
{
	char why[512];
	int status = open_side(&d->a, paths[0], o);

	if (!status)
		status = open_side(&d->b, paths[1], o);
	if (status)
		return status;
	compare_arch(d);
	compare_vocab(d);
	if (compare_tensors(d, why, sizeof(why)))
		return tool_fail(verb, TROUBLE, "%s", why);
	status = print_end(d);
	return status ? status : d->n_lines ? DIFFERENT : STATUS_OK;
}

int model_diff(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		MODEL_OPTIONS,
		{ 0 },
	};
	struct source_options o = { 0 };
	struct diff d = { 0 };
	bool json = false;
	int c, status = STATUS_OK;

	opterr = 0;
	while (!status && (c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (c == 'h') {
			printf("usage: onebit model diff A B [--json] [OPTION]...\n\n"
			       "Compare two models, of any formats, in what they compute with: numbers,\n"
			       "vocabulary, codes, scales, embeddings, norms. Exit status 0 equal, 1 different,\n"
			       "2 wrong usage or a model that cannot be read. Options hold for both.\n\n"
			       "%s",
			       model_options_help);
			return tool_end(verb, STATUS_OK);
		}
		if (c == 'j')
			json = true;
		else
			status = model_option(verb, c, argv, &o);
	}
	if (status)
		return status;
	if (optind + 2 != argc)
		return tool_usage(verb, "two models are compared; %d are named", argc - optind);
	d.lines = json ? json_array() : NULL;
	if (json && !d.lines)
		return tool_fail(verb, TROUBLE, "no memory");
	tool_catch_signals(false);
	status = compare(&d, argv + optind, &o);
	close_side(&d.a);
	close_side(&d.b);
	json_decref(d.lines);
	return tool_end(verb, status);
}

/* SPDX-License-Identifier: MIT */
/*
 * onebit ppl: how well a model predicts a text. The number means nothing without its protocol, so
 * both are printed together: window, stride, where bos stood, which tokens and bytes were counted.
 * Bits per byte is the one to compare models with, for perplexity is by token and vocabularies
 * differ.
 */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "cmd_ask.h"
#include "cmd_input.h"
#include "cmd_windows.h"

enum {
	/*
	 * What published figures mostly use; a model with a smaller context gets all of that. Half
	 * of a window as stride scores each token with at least half a window before it, at twice
	 * the work.
	 */
	WINDOW_DEFAULT = 2048,
	TEXT_MAX = ONEBIT_BLOCK_MAX - 4096, /* a text, and the tables of its request */
};

struct ppl {
	struct verb_daemon daemon;
	const char *path;
	size_t window, stride; /* 0: by default */
	bool each_bos, json, progress;
	char *text;
	size_t len;
	struct onebit_model model;
	uint32_t *ids; /* of the text, without its bos */
	size_t n;
	bool has_bos;
	uint32_t bos;
	/* The window at work, and the sum over all. */
	size_t first_scored; /* index in it */
	size_t scored;
	double sum;
	double seconds;
};

static const char help[] =
	"usage: onebit ppl [OPTION]... MODEL TEXT\n"
	"       onebit ppl [OPTION]... TEXT      (asks the running daemon's model)\n"
	"\n"
	"  MODEL             an .obm; a daemon that serves it is started for this command\n"
	"  TEXT              a file of UTF-8 text, or - for standard input\n"
	"  --window N        tokens that the model sees at once (default: 2048, or its context\n"
	"                    when that is less)\n"
	"  --stride M        tokens by which the window moves on; each token is scored once, with\n"
	"                    at least window - stride tokens before it (default: half the window)\n"
	"  --bos             put the model's bos before each window, not only before the text\n"
	"  --json            one JSON object\n"
	VERB_DAEMON_HELP
	"\n"
	"Prints the perplexity, by token, and the bits per byte of the text, and how they were\n"
	"measured.\n"
	"\n"
	"Exit status: 0 done, 1 it failed, 2 wrong usage, 3 no daemon, 130 interrupted.\n";

static int parse(struct ppl *p, int argc, char **argv)
{
	enum { WINDOW = 1, STRIDE, BOS, JSON, HELP };
	static const struct option options[] = {
		{ "window", required_argument, NULL, WINDOW },
		{ "stride", required_argument, NULL, STRIDE },
		{ "bos", no_argument, NULL, BOS },
		{ "json", no_argument, NULL, JSON },
		VERB_DAEMON_OPTIONS,
		{ "help", no_argument, NULL, HELP },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t n;
	int c, status;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case WINDOW:
			if (!verb_u64(optarg, 2, ONEBIT_MAX_TOKENS, &n))
				return verb_usage("ppl", "--window %s is not a number from 2 to %u",
						  optarg, ONEBIT_MAX_TOKENS);
			p->window = (size_t)n;
			break;
		case STRIDE:
			if (!verb_u64(optarg, 1, ONEBIT_MAX_TOKENS, &n))
				return verb_usage("ppl", "--stride %s is not a number from 1 to %u",
						  optarg, ONEBIT_MAX_TOKENS);
			p->stride = (size_t)n;
			break;
		case BOS:
			p->each_bos = true;
			break;
		case JSON:
			p->json = true;
			break;
		case HELP:
			fputs(help, stdout);
			exit(STATUS_OK);
		case '?':
			return verb_bad_option("ppl", argv);
		default:
			status = verb_daemon_option(&p->daemon, "ppl", c);
			if (status)
				return status;
		}
	}
	if (argc - optind == 2 && !p->daemon.model)
		p->daemon.model = argv[optind++];
	if (optind == argc)
		return verb_usage("ppl", "no text; give MODEL and TEXT, or TEXT for the running "
				  "daemon's model");
	if (argc - optind > 1)
		return verb_usage("ppl", "%d arguments where %s expected", argc - optind,
				  p->daemon.model ? "one text is" : "MODEL and TEXT are");
	if (p->window && p->stride >= p->window)
		return verb_usage("ppl", "--stride %zu leaves no context in a --window of %zu; it is "
				  "at least 1 less", p->stride, p->window);
	p->path = argv[optind];
	return verb_daemon_check(&p->daemon, "ppl");
}

static int read_text(struct ppl *p)
{
	int status = input_read("ppl", "the text", p->path, TEXT_MAX, &p->text, &p->len);
	size_t bad;

	if (status)
		return status;
	if (!p->len)
		return verb_fail("ppl", STATUS_FAILED, "the text %s is empty; give it some words",
				 p->path);
	bad = input_utf8(p->text, p->len);
	if (bad < p->len)
		return verb_fail("ppl", STATUS_FAILED, "the text %s is not UTF-8 at byte %zu; "
				 "convert it", p->path, bad);
	return STATUS_OK;
}

/* ---- the questions ------------------------------------------------------------------------- */

/* The text's tokens, and the bos that this model puts before a text, if it does. */
static int tokenize(struct ppl *p, struct ask *a)
{
	uint32_t *with = NULL, *without = NULL;
	size_t n_with = 0, n_without = 0;
	int status = ask_tokenize(a, "a", 1, true, &with, &n_with);

	if (!status)
		status = ask_tokenize(a, "a", 1, false, &without, &n_without);
	if (!status && n_with == n_without + 1) {
		p->has_bos = true;
		p->bos = with[0];
	}
	if (!status)
		status = ask_tokenize(a, p->text, p->len, false, &p->ids, &p->n);
	free(with);
	free(without);
	return status;
}

/* What only the model can tell about the options. */
static int settle(struct ppl *p)
{
	if (p->each_bos && !p->has_bos)
		return verb_fail("ppl", STATUS_FAILED, "this model puts no bos before a text; drop "
				 "--bos");
	if (!p->window)
		p->window = p->model.context < WINDOW_DEFAULT ? p->model.context : WINDOW_DEFAULT;
	if (p->window > p->model.context)
		return verb_fail("ppl", STATUS_FAILED, "--window %zu is more than this model's "
				 "context of %u; give less", p->window, p->model.context);
	if (!p->stride)
		p->stride = p->window / 2;
	if (p->stride >= p->window)
		return verb_fail("ppl", STATUS_FAILED, "--stride %zu leaves no context in a window "
				 "of %zu; give less", p->stride, p->window);
	if (p->n + p->has_bos < 2)
		return verb_fail("ppl", STATUS_FAILED, "the text %s is %s to this model, which "
				 "leaves nothing to predict; give a longer one", p->path,
				 p->n ? "one token" : "no token");
	return STATUS_OK;
}

static int on_record(void *ctx, size_t index, const struct onebit_record *r)
{
	struct ppl *p = ctx;

	if (index < p->first_scored)
		return STATUS_OK;
	p->sum += (double)ask_float(r->logprob);
	p->scored++;
	return STATUS_OK;
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int score_windows(struct ppl *p, struct ask *a, struct windows w)
{
	uint32_t *ids = malloc(p->window * sizeof(*ids));
	struct window at;
	double begin = now();
	int status = STATUS_OK;

	if (!ids)
		return verb_fail("ppl", STATUS_FAILED, "no memory for a window of %zu", p->window);
	while (!status && windows_next(&w, &at)) {
		ids[0] = p->bos;
		memcpy(ids + at.bos, p->ids + at.first, at.n * sizeof(*ids));
		p->first_scored = at.bos + at.n - at.scored;
		status = ask_score(a, ids, at.bos + at.n, 0, on_record, p);
		if (!status && p->progress)
			fprintf(stderr, "%zu of %zu tokens, perplexity so far %.3f\033[K\r",
				p->scored, p->n, exp(-p->sum / (double)p->scored));
	}
	if (p->progress)
		fputs("\033[K", stderr);
	p->seconds = now() - begin;
	free(ids);
	return status;
}

/* ---- output -------------------------------------------------------------------------------- */

static void print_id(const struct onebit_model *m)
{
	for (size_t i = 0; i < sizeof(m->model_id); i++)
		printf("%02x", m->model_id[i]);
}

static void print_result(const struct ppl *p, const struct windows *w, size_t bytes)
{
	static const char *const bos_names[] = { "none", "first", "each" };
	static const char *const bos_words[] = { "no bos", "bos before the text",
						 "bos before each window" };
	double ppl = exp(-p->sum / (double)p->scored);
	double per_byte = bytes ? -p->sum / log(2) / (double)bytes : 0;
	size_t n = windows_count(*w);

	if (p->json) {
		printf("{\"perplexity\":%.9g,\"bits_per_byte\":%.9g,\"logprob_sum\":%.17g,"
		       "\"tokens\":%zu,\"bytes\":%zu,\"window\":%zu,\"stride\":%zu,\"bos\":\"%s\","
		       "\"windows\":%zu,\"seconds\":%.3f,\"contract\":%u,\"model\":", ppl, per_byte,
		       p->sum, p->scored, bytes, p->window, p->stride, bos_names[w->bos], n,
		       p->seconds, p->model.contract);
		verb_json_string(stdout, p->model.name, strlen(p->model.name));
		fputs(",\"model_id\":\"", stdout);
		print_id(&p->model);
		puts("\"}");
		return;
	}
	printf("perplexity %.4f, %.4f bits per byte\n"
	       "window %zu, stride %zu, %s; %zu tokens scored once each, %zu bytes of text\n"
	       "%zu windows in %.1f s, %.0f tokens scored a second; contract %u, model %s ", ppl,
	       per_byte, p->window, p->stride, bos_words[w->bos], p->scored, bytes, n, p->seconds,
	       p->seconds > 0 ? (double)p->scored / p->seconds : 0, p->model.contract,
	       p->model.name);
	print_id(&p->model);
	putchar('\n');
}

static int ppl(struct ppl *p)
{
	struct ask a = { .verb = "ppl", .daemon = &p->daemon };
	struct windows w = { 0 };
	size_t unscored = 0;
	/* A text in another normal form has up to three times its bytes, and each may be a token. */
	int status = ask_open(&a, p->len, (p->len + 256) * 3 * sizeof(*p->ids));

	if (!status)
		status = tokenize(p, &a);
	if (!status)
		status = ask_model(&a, &p->model);
	if (!status)
		status = settle(p);
	if (!status && !p->has_bos)
		status = ask_bytes(&a, p->ids[0], &unscored);
	ask_close(&a);
	if (status)
		return status;

	w.n = p->n;
	w.size = p->window;
	w.stride = p->stride;
	w.bos = !p->has_bos ? WINDOWS_BOS_NONE : p->each_bos ? WINDOWS_BOS_EACH : WINDOWS_BOS_FIRST;
	status = ask_open(&a, p->window * sizeof(*p->ids), ask_score_bytes(p->window, 0));
	if (!status)
		status = score_windows(p, &a, w);
	ask_close(&a);
	if (!status)
		print_result(p, &w, p->len > unscored ? p->len - unscored : 0);
	return status;
}

int cmd_ppl(int argc, char **argv)
{
	struct ppl p = { 0 };
	int status = parse(&p, argc, argv);

	p.progress = isatty(STDERR_FILENO);
	if (!status) {
		verb_catch_signals();
		status = read_text(&p);
	}
	if (!status)
		status = verb_daemon_start(&p.daemon, "ppl");
	if (!status)
		status = ppl(&p);
	verb_daemon_stop(&p.daemon);
	free(p.ids);
	free(p.text);
	return status;
}

/* SPDX-License-Identifier: MIT */
/*
 * onebit score: how likely a model finds given tokens, one by one, and what it would have said in
 * their place. Numbers are printed so that they read back as the same binary32: two daemons, or two
 * machines, can be compared by comparing the output.
 */
#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include "cmd_ask.h"
#include "cmd_input.h"

enum {
	TEXT_MAX = ONEBIT_BLOCK_MAX - 4096, /* a text, and the tables of its request */
	FILE_MAX = 64 << 20,		    /* of ids, which may stand far apart */
};

struct score {
	struct verb_daemon daemon;
	const char *ids_path, *text_arg;
	unsigned n_top;
	bool json;
	char *input; /* the file of ids, or the text */
	size_t input_len;
	uint32_t *ids;
	size_t n;
	struct onebit_model model;
	double sum; /* of the log-probabilities told so far, in order */
	bool begun; /* JSON is */
	bool gone;  /* nobody reads the answer any more */
};

static const char help[] =
	"usage: onebit score [OPTION]... --ids FILE\n"
	"       onebit score [OPTION]... --text TEXT\n"
	"\n"
	"  --ids FILE        token ids, decimal, with blanks or commas between them; -: from\n"
	"                    standard input. They are taken as they are\n"
	"  --text TEXT       a text instead, as the model takes a raw prompt; -: from standard\n"
	"                    input\n"
	"  --top N           tell the N likeliest tokens at each place, up to 20\n"
	"  --json            one JSON object\n"
	VERB_DAEMON_HELP
	"\n"
	"Prints a line for each token: its place, its id, its text, the natural logarithm of its\n"
	"probability (- for the first, which nothing predicts), and the likeliest tokens there.\n"
	"\n"
	"Exit status: 0 done, 1 it failed, 2 wrong usage, 3 no daemon, 130 interrupted.\n";

static int parse(struct score *s, int argc, char **argv)
{
	enum { IDS = 1, TEXT, TOP, JSON, HELP };
	static const struct option options[] = {
		{ "ids", required_argument, NULL, IDS },
		{ "text", required_argument, NULL, TEXT },
		{ "top", required_argument, NULL, TOP },
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
		case IDS:
			s->ids_path = optarg;
			break;
		case TEXT:
			s->text_arg = optarg;
			break;
		case TOP:
			if (!verb_u64(optarg, 0, ONEBIT_TOP_LOGPROBS_MAX, &n))
				return verb_usage("score", "--top %s is not a number from 0 to %u",
						  optarg, ONEBIT_TOP_LOGPROBS_MAX);
			s->n_top = (unsigned)n;
			break;
		case JSON:
			s->json = true;
			break;
		case HELP:
			fputs(help, stdout);
			exit(STATUS_OK);
		case '?':
			return verb_bad_option("score", argv);
		default:
			status = verb_daemon_option(&s->daemon, "score", c);
			if (status)
				return status;
		}
	}
	if (optind < argc)
		return verb_usage("score", "%s: no argument is expected; give it with --ids or "
				  "--text", argv[optind]);
	if (!s->ids_path && !s->text_arg)
		return verb_usage("score", "nothing to score; give --ids FILE or --text TEXT");
	if (s->ids_path && s->text_arg)
		return verb_usage("score", "--ids and --text exclude each other; drop one");
	return verb_daemon_check(&s->daemon, "score");
}

static const char *ids_name(const struct score *s)
{
	return strcmp(s->ids_path, "-") ? s->ids_path : "standard input";
}

/* What can be told wrong before a daemon is started or asked. */
static int read_input(struct score *s)
{
	char why[200];
	size_t bad;
	int status;

	if (s->ids_path) {
		status = input_read("score", "the file of ids", s->ids_path, FILE_MAX, &s->input,
				    &s->input_len);
		if (!status && input_ids(s->input, s->input_len, &s->ids, &s->n, why, sizeof(why)))
			status = verb_fail("score", STATUS_FAILED, "%s: %s", ids_name(s), why);
		return status;
	}
	if (s->text_arg && strcmp(s->text_arg, "-")) {
		s->input = strdup(s->text_arg);
		if (!s->input)
			return verb_fail("score", STATUS_FAILED, "no memory for the text");
		s->input_len = strlen(s->input);
	} else {
		status = input_read("score", "the text", "-", TEXT_MAX, &s->input, &s->input_len);
		if (status)
			return status;
	}
	if (!s->input_len)
		return verb_fail("score", STATUS_FAILED, "the text is empty; give it some words");
	if (s->input_len > TEXT_MAX)
		return verb_fail("score", STATUS_FAILED,
				 "the text has more than the limit of %d bytes; give it in parts",
				 TEXT_MAX);
	bad = input_utf8(s->input, s->input_len);
	if (bad < s->input_len)
		return verb_fail("score", STATUS_FAILED,
				 "the text is not UTF-8 at byte %zu; convert it, or give --ids", bad);
	return STATUS_OK;
}

/* ---- output -------------------------------------------------------------------------------- */

static const char *text_of(const struct onebit_record *r)
{
	return (const char *)(r + 1) + r->n_top * sizeof(struct onebit_top);
}

static void print_record(const struct score *s, size_t index, const struct onebit_record *r)
{
	const struct onebit_top *top = (const struct onebit_top *)(r + 1);
	bool number = r->flags & ONEBIT_REC_LOGPROB;

	printf("%zu\t%u\t", index, r->token);
	verb_json_string(stdout, text_of(r), r->text_len);
	if (number)
		printf("\t%.9g", (double)ask_float(r->logprob));
	else
		fputs("\t-", stdout);
	for (unsigned i = 0; i < r->n_top && i < s->n_top; i++) {
		printf("\t%u ", top[i].token);
		verb_json_string(stdout, (const char *)r + top[i].text_off, top[i].text_len);
		printf(" %.9g", (double)ask_float(top[i].logprob));
	}
	putchar('\n');
}

static void print_json(struct score *s, size_t index, const struct onebit_record *r)
{
	const struct onebit_top *top = (const struct onebit_top *)(r + 1);

	if (!s->begun) {
		fputs("{\"model\":", stdout);
		verb_json_string(stdout, s->model.name, strlen(s->model.name));
		fputs(",\"model_id\":\"", stdout);
		for (size_t i = 0; i < sizeof(s->model.model_id); i++)
			printf("%02x", s->model.model_id[i]);
		printf("\",\"contract\":%u,\"n\":%zu,\"tokens\":[", s->model.contract, s->n);
		s->begun = true;
	}
	printf("%s{\"index\":%zu,\"id\":%u,\"text\":", index ? "," : "", index, r->token);
	verb_json_string(stdout, text_of(r), r->text_len);
	if (r->flags & ONEBIT_REC_LOGPROB)
		printf(",\"logprob\":%.9g", (double)ask_float(r->logprob));
	else
		fputs(",\"logprob\":null", stdout);
	if (s->n_top) {
		fputs(",\"top\":[", stdout);
		for (unsigned i = 0; i < r->n_top; i++) {
			printf("%s{\"id\":%u,\"text\":", i ? "," : "", top[i].token);
			verb_json_string(stdout, (const char *)r + top[i].text_off, top[i].text_len);
			printf(",\"logprob\":%.9g}", (double)ask_float(top[i].logprob));
		}
		putchar(']');
	}
	putchar('}');
}

static int on_record(void *ctx, size_t index, const struct onebit_record *r)
{
	struct score *s = ctx;

	errno = 0;
	if (r->flags & ONEBIT_REC_LOGPROB)
		s->sum += (double)ask_float(r->logprob);
	if (s->json)
		print_json(s, index, r);
	else
		print_record(s, index, r);
	if (!ferror(stdout))
		return STATUS_OK;
	s->gone = errno == EPIPE; /* stop the model's work and end quietly */
	return s->gone ? STATUS_FAILED :
		verb_fail("score", STATUS_FAILED, "cannot write the answer: %s", strerror(errno));
}

/* ---- the questions ------------------------------------------------------------------------- */

static int check_ids(const struct score *s)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->ids[i] >= s->model.vocab)
			return verb_fail("score", STATUS_FAILED,
					 "%s: line %zu: id %u is none of this model's, which are 0 "
					 "to %u; correct it, or name the model it is of", ids_name(s),
					 input_line(s->input, s->input_len, i), s->ids[i],
					 s->model.vocab - 1);
	return STATUS_OK;
}

/* The ids, and the model that they are for; only then is it known how long the answer is. */
static int prepare(struct score *s, struct ask *a)
{
	int status = ask_open(a, s->input_len, 0);

	if (!status && s->text_arg)
		status = ask_tokenize(a, s->input, s->input_len, true, &s->ids, &s->n);
	if (!status)
		status = ask_model(a, &s->model);
	ask_close(a);
	if (!status && s->ids_path)
		status = check_ids(s);
	if (!status && s->n > s->model.context)
		status = verb_fail("score", STATUS_FAILED,
				   "%zu tokens are more than this model's context of %u; give fewer, "
				   "or let `onebit ppl` slide over them", s->n, s->model.context);
	return status;
}

static int score(struct score *s)
{
	struct ask a = { .verb = "score", .daemon = &s->daemon };
	int status = prepare(s, &a);

	if (!status)
		status = ask_open(&a, s->n * sizeof(*s->ids), ask_score_bytes(s->n, s->n_top));
	if (!status)
		status = ask_score(&a, s->ids, s->n, s->n_top, on_record, s);
	ask_close(&a);
	if (s->gone)
		return STATUS_OK;
	if (!status && s->json)
		printf("],\"scored\":%zu,\"logprob_sum\":%.17g}\n", s->n - 1, s->sum);
	return status;
}

int cmd_score(int argc, char **argv)
{
	struct score s = { 0 };
	int status = parse(&s, argc, argv);

	if (!status) {
		verb_catch_signals();
		status = read_input(&s);
	}
	if (!status)
		status = verb_daemon_start(&s.daemon, "score");
	if (!status)
		status = score(&s);
	verb_daemon_stop(&s.daemon);
	free(s.ids);
	free(s.input);
	return status;
}

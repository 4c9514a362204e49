/* SPDX-License-Identifier: MIT */
/*
 * onebit model: a table of verbs, what they share, and `convert`. The others have files of their
 * own.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "convert.h"
#include "export.h"
#include "model.h"
#include "packed.h"
#include "served.h"

static int model_convert(int argc, char **argv);

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} verbs[] = {
	{ "convert", model_convert, "make an .obm of a model, or carry one to another format" },
	{ "info", model_info, "what a model is, and whether this machine can serve it" },
	{ "verify", model_verify, "check every byte of an .obm, and its signature" },
	{ "diff", model_diff, "compare two models, of any formats" },
	{ "keygen", model_keygen, "make a pair of keys for signing" },
	{ "sign", model_sign, "put a signature into an .obm" },
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static void print_verbs(FILE *f)
{
	fputs("usage: onebit model VERB [OPTION]...\n\n", f);
	for (size_t i = 0; i < COUNT(verbs); i++)
		fprintf(f, "  %-8s %s\n", verbs[i].name, verbs[i].what);
	fputs("\n`onebit model VERB --help` tells more.\n", f);
}

int tool_model(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "--help") || !strcmp(name, "help") || !strcmp(name, "-h")) {
		print_verbs(stdout);
		return tool_end("model", STATUS_OK);
	}
	for (size_t i = 0; i < COUNT(verbs); i++)
		if (!strcmp(name, verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	if (*name)
		fprintf(stderr, "onebit model: there is no verb %s; these are there:\n", name);
	print_verbs(stderr);
	return STATUS_USAGE;
}

/* ---- what the verbs share ------------------------------------------------------------------ */

const char model_options_help[] =
	"  --tokenizer FILE   take the vocabulary from there (.htok, tokenizer.json,\n"
	"                     tokenizer.model, .gguf, .obm)\n"
	"  --chat NAME        the chat template: raw, bitnet, llama3, story\n"
	"  --qk split|pairs   how rows of q and k lie, when the file does not say\n"
	"  --linear bitlinear|autobitlinear\n"
	"                     what packed weight scales mean, when config.json does not say\n"
	"  --name NAME        the model's name\n"
	"  --licence-file F   the licence's text\n"
	"  --context N        serve at most N tokens, fewer than the file says\n";

static int option_context(const char *verb, const char *text, struct source_options *o)
{
	char *end;
	unsigned long long v = strtoull(text, &end, 10);

	if (*text < '0' || *text > '9' || *end || !v || v > OBM_CONTEXT_MAX)
		return tool_usage(verb,
				  "--context %s is out of range or no number; allowed are 1 to %u",
				  text, OBM_CONTEXT_MAX);
	o->context = (uint32_t)v;
	return STATUS_OK;
}

int model_option(const char *verb, int c, char **argv, struct source_options *o)
{
	switch (c) {
	case 'T':
		o->tokenizer = optarg;
		return STATUS_OK;
	case 'C':
		o->chat = optarg;
		return STATUS_OK;
	case 'Q':
		o->qk = !strcmp(optarg, "split") ? SOURCE_QK_SPLIT :
			!strcmp(optarg, "pairs") ? SOURCE_QK_PAIRS : SOURCE_QK_UNKNOWN;
		if (o->qk == SOURCE_QK_UNKNOWN)
			return tool_usage(verb, "--qk %s: there is split and pairs", optarg);
		return STATUS_OK;
	case 'L':
		o->linear = optarg;
		if (strcmp(optarg, "bitlinear") && strcmp(optarg, "autobitlinear"))
			return tool_usage(verb, "--linear %s: there is bitlinear and autobitlinear",
					  optarg);
		return STATUS_OK;
	case 'N':
		o->name = optarg;
		return STATUS_OK;
	case 'F':
		o->licence_file = optarg;
		return STATUS_OK;
	case 'X':
		return option_context(verb, optarg, o);
	default:
		return tool_usage(verb, "%s is no option of it, or lacks its value",
				  argv[optind - 1]);
	}
}

struct source *model_open(const char *verb, const char *path, const struct source_options *o)
{
	struct source *s = NULL;
	char why[512];

	if (source_open(path, o, &s, why, sizeof(why))) {
		tool_fail(verb, STATUS_FAILED, "%s", why);
		return NULL;
	}
	if (source_check(s, why, sizeof(why))) {
		tool_fail(verb, STATUS_FAILED, "%s: %s", path, why);
		return source_close(s);
	}
	return s;
}

const char *model_size(uint64_t bytes, char *buf, size_t len)
{
	static const char *const unit[] = { "bytes", "kB", "MB", "GB", "TB" };
	double v = (double)bytes;
	int i = 0;

	while (v >= 999.5 && i < 4) {
		v /= 1000;
		i++;
	}
	/* Three digits, of bytes all. */
	snprintf(buf, len, "%.*f %s", !i || v >= 99.95 ? 0 : v < 9.995 ? 2 : 1, v, unit[i]);
	return buf;
}

void model_hex(const uint8_t bytes[32], char hex[65])
{
	for (int i = 0; i < 32; i++)
		snprintf(hex + 2 * i, 3, "%02x", bytes[i]);
}

/* ---- convert ------------------------------------------------------------------------------- */

static const char convert_verb[] = "model convert";

enum target { TO_OBM, TO_H1B, TO_H1B_V4, TO_GGUF, TO_BY_NAME };

static const struct {
	const char *name, *ending;
} targets[] = {
	[TO_OBM] = { "obm", ".obm" },
	[TO_H1B] = { "h1b", ".h1b" },
	[TO_H1B_V4] = { "h1b-v4", ".h1b" },
	[TO_GGUF] = { "gguf", ".gguf" },
};

struct job {
	struct source_options source;
	struct convert_options convert;
	enum target to;
	const char *in, *out;
	bool force;
	char *named; /* out, when it was not given */
	char note[512];
};

static void print_convert_help(void)
{
	printf("usage: onebit model convert IN [-o OUT] [OPTION]...\n\n"
	       "IN is a Hugging Face folder or .safetensors, a GGUF, an .h1b or an .obm; by its content,\n"
	       "not its name. OUT appears whole or not at all.\n\n"
	       "  -o, --output OUT   default: IN's name with the format's ending, in this folder\n"
	       "  --to FORMAT        obm, h1b (version 2), h1b-v4 (base 3), gguf (TQ2_0); default: what\n"
	       "                     OUT's ending says, else obm\n"
	       "  --layout L         of linear matrices: 2bit (default, fastest) or base3 (smallest)\n"
	       "  --head H           of embedding and head: int8 (default), fp16, bf16\n"
	       "%s"
	       "  --force            replace OUT\n",
	       model_options_help);
}

static int parse_choice(const char *option, const char *text, const uint32_t *choices, size_t n,
			uint32_t *value)
{
	for (size_t i = 0; i < n; i++)
		if (!strcmp(text, packed_name(choices[i]))) {
			*value = choices[i];
			return STATUS_OK;
		}
	return tool_usage(convert_verb, "%s %s: there is %s and %s", option, text,
			  packed_name(choices[0]),
			  n == 2 ? packed_name(choices[1]) : "fp16 and bf16");
}

static int parse_target(const char *text, enum target *to)
{
	for (size_t i = 0; i < COUNT(targets); i++)
		if (!strcmp(text, targets[i].name)) {
			*to = (enum target)i;
			return STATUS_OK;
		}
	return tool_usage(convert_verb, "--to %s: there is obm, h1b, h1b-v4 and gguf", text);
}

static enum target target_by_name(const char *out)
{
	const char *ending = out ? strrchr(out, '.') : NULL;

	for (size_t i = 0; ending && i < COUNT(targets); i++)
		if (!strcmp(ending, targets[i].ending))
			return (enum target)i;
	return TO_OBM;
}

/* -1: the help was asked for. */
static int parse_convert(int argc, char **argv, struct job *j)
{
	static const uint32_t layouts[] = { PACKED_2BIT, PACKED_BASE3 };
	static const uint32_t heads[] = { PACKED_INT8, PACKED_F16, PACKED_BF16 };
	static const struct option options[] = {
		{ "output", required_argument, NULL, 'o' },
		{ "to", required_argument, NULL, 't' },
		{ "layout", required_argument, NULL, 'l' },
		{ "head", required_argument, NULL, 'H' },
		{ "force", no_argument, NULL, 'f' },
		MODEL_OPTIONS,
		{ 0 },
	};
	bool obm_only = false;
	int c, status = STATUS_OK;

	j->to = TO_BY_NAME;
	opterr = 0;
	while (!status && (c = getopt_long(argc, argv, "o:h", options, NULL)) != -1) {
		if (c == 'o')
			j->out = optarg;
		else if (c == 't')
			status = parse_target(optarg, &j->to);
		else if (c == 'l')
			status = parse_choice("--layout", optarg, layouts, 2, &j->convert.layout);
		else if (c == 'H')
			status = parse_choice("--head", optarg, heads, 3, &j->convert.head);
		else if (c == 'f')
			j->force = true;
		else if (c == 'h')
			return -1;
		else
			status = model_option(convert_verb, c, argv, &j->source);
		obm_only |= c == 'l' || c == 'H';
	}
	if (status)
		return status;
	if (optind == argc)
		return tool_usage(convert_verb, "no model is named");
	if (optind + 1 < argc)
		return tool_usage(convert_verb, "one model at a time; %s is too many",
				  argv[optind + 1]);
	if (j->to == TO_BY_NAME)
		j->to = target_by_name(j->out);
	if (obm_only && j->to != TO_OBM)
		return tool_usage(convert_verb, "--layout and --head are for --to obm");
	j->in = argv[optind];
	return STATUS_OK;
}

/* IN's name in this folder, with another ending. */
static int name_output(struct job *j)
{
	char *real = realpath(j->in, NULL);
	const char *name, *ending;
	size_t len;

	if (!real)
		return tool_fail(convert_verb, STATUS_FAILED, "%s: cannot be opened: %s", j->in,
				 strerror(errno));
	name = strrchr(real, '/') + 1;
	len = strlen(name);
	ending = strrchr(name, '.');
	if (ending && ending > name &&
	    (!strcmp(ending, ".safetensors") || !strcmp(ending, ".gguf") ||
	     !strcmp(ending, ".h1b") || !strcmp(ending, ".obm")))
		len = (size_t)(ending - name);
	if (!len)
		name = "model", len = 5;
	if (asprintf(&j->named, "%.*s%s", (int)len, name, targets[j->to].ending) < 0)
		j->named = NULL;
	free(real);
	if (!j->named)
		return tool_fail(convert_verb, STATUS_FAILED, "no memory for a name");
	j->out = j->named;
	return STATUS_OK;
}

static int write_obm(struct job *j, struct source *s, struct progress *p, uint8_t identity[32],
		     char *why, size_t why_len)
{
	struct output *out;
	int err = output_new(j->out, j->force, &out, why, why_len);

	if (err)
		return err;
	err = convert(s, &j->convert, out, p, identity, why, why_len);
	if (!err)
		err = output_commit(out, why, why_len);
	output_free(out);
	return err;
}

static int write_other(struct job *j, struct source *s, struct progress *p, char *why,
		       size_t why_len)
{
	struct source *served;
	int err = served_new(s, &served, why, why_len);

	if (err)
		return err;
	if (j->to == TO_GGUF)
		err = export_gguf(served, j->out, j->force, p, j->note, sizeof(j->note), why,
				  why_len);
	else
		err = export_h1b(served, j->to == TO_H1B ? 2 : 4, j->out, j->force, p, j->note,
				 sizeof(j->note), why, why_len);
	served_free(served);
	return err;
}

/* On standard output one line; on standard error what was lost. */
static void report(const struct job *j, const struct source *s, const uint8_t identity[32],
		   double seconds)
{
	struct stat st = { 0 };
	char size[32], hex[65];

	assert(j->out);
	stat(j->out, &st);
	model_hex(identity, hex);
	printf("%s: %s, %.2f bits per weight, ", j->out,
	       model_size((uint64_t)st.st_size, size, sizeof(size)),
	       (double)st.st_size * 8 / (double)s->arch.n_parameters);
	if (j->to == TO_OBM)
		printf("identity %s, ", hex);
	printf("%.1f s, %.2f GB/s read and written\n", seconds,
	       ((double)s->file_bytes + (double)st.st_size) / seconds * 1e-9);
	if (*j->note)
		fprintf(stderr, "onebit %s: note: %s\n", convert_verb, j->note);
}

static int run_convert(struct job *j)
{
	struct source *s = model_open(convert_verb, j->in, &j->source);
	uint8_t identity[32] = { 0 };
	struct progress *p;
	double start = tool_seconds();
	char why[512] = "";
	int err;

	if (!s)
		return STATUS_FAILED;
	p = progress_new(j->out, s->file_bytes);
	if (j->to == TO_OBM)
		err = write_obm(j, s, p, identity, why, sizeof(why));
	else
		err = write_other(j, s, p, why, sizeof(why));
	progress_free(p);
	if (err == -EINTR && tool_stopped)
		err = STATUS_INTERRUPTED;
	else if (err == -EEXIST)
		err = tool_fail(convert_verb, STATUS_FAILED, "%s, or give --force", why);
	else if (err)
		err = tool_fail(convert_verb, STATUS_FAILED, "%s", why);
	else
		report(j, s, identity, tool_seconds() - start);
	source_close(s);
	return err;
}

static int model_convert(int argc, char **argv)
{
	struct job j = {
		.convert = { .layout = PACKED_2BIT, .head = PACKED_INT8, .stop = &tool_stopped }
	};
	int status = parse_convert(argc, argv, &j);

	if (status < 0) {
		print_convert_help();
		return tool_end(convert_verb, STATUS_OK);
	}
	if (status)
		return status;
	j.convert.note = j.note;
	j.convert.note_len = sizeof(j.note);
	tool_catch_signals(true);
	if (!j.out)
		status = name_output(&j);
	if (!status)
		status = run_convert(&j);
	free(j.named);
	return tool_end(convert_verb, status);
}

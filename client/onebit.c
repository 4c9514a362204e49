/* SPDX-License-Identifier: MIT */
/*
 * onebit: the command line of the daemon. A table of verbs; each verb has a file of its own.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "cmd_verb.h"

static int cmd_help(int argc, char **argv);
static int cmd_version(int argc, char **argv);

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} verbs[] = {
	{ "run", cmd_run, "ask the model and print the answer as it comes" },
	{ "score", cmd_score, "how likely the model finds given tokens, one by one" },
	{ "ppl", cmd_ppl, "perplexity and bits per byte of a text" },
	{ "stat", cmd_stat, "show the daemon's state and counters" },
	{ "model", cmd_tool, "convert, describe, check, compare and sign model files" },
	{ "tokenize", cmd_tool, "text to tokens, by a model file" },
	{ "detokenize", cmd_tool, "tokens to text" },
	{ "bench", cmd_bench, "measure: `onebit bench ring|tokenizer|kernels|model`" },
	{ "help", cmd_help, "this text; `onebit VERB --help` for one verb" },
	{ "version", cmd_version, "print the version" },
};

#define N_VERBS (sizeof(verbs) / sizeof(verbs[0]))

static void print_verbs(FILE *f)
{
	fputs("usage: onebit VERB [OPTION]...\n\n", f);
	for (size_t i = 0; i < N_VERBS; i++)
		fprintf(f, "  %-10s %s\n", verbs[i].name, verbs[i].what);
	fputs("\nExit status: 0 done, 1 failed, 2 wrong usage, 3 no daemon, 130 interrupted.\n", f);
}

static int cmd_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	print_verbs(stdout);
	return STATUS_OK;
}

static int cmd_version(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	printf("onebit %s (ABI %d.%d)\n", ONEBIT_VERSION, ONEBIT_ABI_MAJOR, ONEBIT_ABI_MINOR);
	return STATUS_OK;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		name = "help";
	if (!strcmp(name, "--version"))
		name = "version";
	for (size_t i = 0; i < N_VERBS; i++) {
		if (strcmp(name, verbs[i].name))
			continue;
		int status = verbs[i].run(argc - 1, argv + 1);

		/* An answer that could not be written is no answer; a reader who left is content. */
		if (fflush(stdout) == EOF && errno != EPIPE && status == STATUS_OK)
			status = verb_fail(name, STATUS_FAILED,
					   "cannot write to standard output; is the disk full?");
		return status;
	}
	if (*name)
		fprintf(stderr, "onebit: there is no verb %s; these are there:\n", name);
	print_verbs(stderr);
	return STATUS_USAGE;
}

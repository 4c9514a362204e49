/* SPDX-License-Identifier: MIT */
/*
 * onebit bench SUBJECT: a table of what can be measured. Those without a function here are
 * onebit-tool's.
 */
#include <string.h>
#include "cmd_verb.h"

static const struct subject {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *what;
} subjects[] = {
	{ "ring", bench_ring, "the queue between client and daemon, and its alternatives" },
	{ "tokenizer", NULL, "text to tokens, beside the bandwidth of memory" },
	{ "kernels", NULL, "the arithmetic of a model, on this CPU" },
	{ "model", NULL, "tokens a second, beside what the machine can do" },
};

#define N_SUBJECTS (sizeof(subjects) / sizeof(subjects[0]))

static void print_subjects(FILE *f)
{
	fputs("usage: onebit bench SUBJECT [OPTION]...\n\n", f);
	for (size_t i = 0; i < N_SUBJECTS; i++)
		fprintf(f, "  %-9s %s\n", subjects[i].name, subjects[i].what);
}

int cmd_bench(int argc, char **argv)
{
	if (argc < 2)
		return verb_usage("bench", "no subject; there is ring, tokenizer, kernels and "
				  "model");
	if (!strcmp(argv[1], "--help")) {
		print_subjects(stdout);
		return STATUS_OK;
	}
	for (size_t i = 0; i < N_SUBJECTS; i++)
		if (!strcmp(argv[1], subjects[i].name))
			return subjects[i].run ? subjects[i].run(argc - 1, argv + 1)
					       : cmd_tool(argc, argv);
	return verb_usage("bench", "there is no subject %s; there is ring, tokenizer, kernels and "
			  "model", argv[1]);
}

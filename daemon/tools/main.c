/* SPDX-License-Identifier: MIT */
/*
 * onebit-tool: a table of the verbs that work on files.
 */
#include <stdio.h>
#include <string.h>
#include "tool.h"

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} verbs[] = {
	{ "model", tool_model },
	{ "tokenize", tool_tokenize },
	{ "detokenize", tool_detokenize },
	{ "bench", tool_bench },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (!strcmp(argv[1], verbs[i].name))
			return verbs[i].run(argc - 1, argv + 1);
	fputs("onebit-tool: this is for `onebit model|tokenize|detokenize|bench`; see onebit(1)\n",
	      stderr);
	return STATUS_USAGE;
}

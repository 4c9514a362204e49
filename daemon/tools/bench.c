/* SPDX-License-Identifier: MIT */
/*
 * onebit bench tokenizer|kernels|model: what can be measured without a daemon.
 */
#include "bench.h"

#include <string.h>
#include "tool.h"

int tool_bench(int argc, char **argv)
{
	if (argc > 1 && !strcmp(argv[1], "tokenizer"))
		return bench_tokenizer(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "kernels"))
		return bench_kernels(argc - 1, argv + 1);
	if (argc > 1 && !strcmp(argv[1], "model"))
		return bench_model(argc - 1, argv + 1);
	return tool_usage("bench", "there is `onebit bench tokenizer|kernels|model`");
}

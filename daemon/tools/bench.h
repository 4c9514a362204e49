/* SPDX-License-Identifier: MIT */
#ifndef BENCH_H
#define BENCH_H

/* The subjects of `onebit bench` that need no daemon; argv[0] is the subject. Exit statuses of tool.h. */
int bench_tokenizer(int argc, char **argv);
int bench_kernels(int argc, char **argv);
int bench_model(int argc, char **argv);

#endif

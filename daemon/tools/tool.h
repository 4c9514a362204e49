/* SPDX-License-Identifier: MIT */
#ifndef TOOL_H
#define TOOL_H

/*
 * onebit-tool: the verbs that work on files, without a daemon. `onebit VERB` becomes it. A verb
 * gets argv[0] = its name; the program's name in its messages is "onebit".
 */

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As the client's verbs have them. */
enum {
	STATUS_OK = 0,
	STATUS_FAILED = 1, /* the input is wrong, or a step failed; standard error says what */
	STATUS_USAGE = 2,
	STATUS_INTERRUPTED = 130,
};

int tool_model(int argc, char **argv);	  /* model convert|info|verify|diff|sign|keygen */
int tool_tokenize(int argc, char **argv);
int tool_detokenize(int argc, char **argv);
int tool_bench(int argc, char **argv);	  /* bench tokenizer|kernels|model */

/* "onebit VERB: ..." on standard error; returns status. */
int tool_fail(const char *verb, int status, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* The same with STATUS_USAGE, and a pointer to the verb's --help. */
int tool_usage(const char *verb, const char *format, ...) __attribute__((format(printf, 2, 3)));

/*
 * An input file that becomes shorter while it is read ends the program with a sentence and
 * STATUS_FAILED. SIGINT and SIGTERM set tool_stopped, a second one ends the program; or the first
 * one does, where nobody asks. What was being written has no name yet, so nothing is left of it.
 */
void tool_catch_signals(bool somebody_asks);
extern volatile sig_atomic_t tool_stopped;

/* Monotonic. */
double tool_seconds(void);
/* CPUs that this process may use, at least 1. */
unsigned tool_threads(void);
/* Flushes standard output: status, or STATUS_FAILED and a sentence when that cannot be done. */
int tool_end(const char *verb, int status);

/* A line on a terminal with share, rate and time left, ten times a second; nothing in a pipe. */
struct progress;
struct progress *progress_new(const char *what, uint64_t whole_bytes);
void progress_at(struct progress *p, uint64_t bytes);
struct progress *progress_free(struct progress *p);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef CMD_VERB_H
#define CMD_VERB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "libonebit.h"

/*
 * What the verbs of onebit share: exit statuses that scripts may rely on, one shape of error line
 * ("onebit VERB: what happened; what to do next"), reading of numbers, JSON strings.
 */
enum {
	STATUS_OK = 0,
	STATUS_FAILED = 1,	  /* the daemon refused or ended the request, or a step failed */
	STATUS_USAGE = 2,	  /* the command line is wrong; nothing was done */
	STATUS_NO_DAEMON = 3,	  /* nobody answers at the socket, or it went away for good */
	STATUS_INTERRUPTED = 130, /* SIGINT or SIGTERM */
};

/* argv[0] is the verb, argv[argc] NULL; returns an exit status. */
int cmd_run(int argc, char **argv);
int cmd_score(int argc, char **argv);
int cmd_ppl(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_tool(int argc, char **argv); /* becomes onebit-tool; returns only when it cannot */
int bench_ring(int argc, char **argv);

/* Say it on standard error and return STATUS_USAGE, with a pointer to the verb's --help. */
int verb_usage(const char *verb, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Say it on standard error and return status. */
int verb_fail(const char *verb, int status, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
/* An option that getopt_long() refused. Returns STATUS_USAGE. */
int verb_bad_option(const char *verb, char **argv);
/* onebit_open() failed with ret. socket may be NULL, the default. Returns the exit status. */
int verb_open_failed(const char *verb, const char *socket, int ret, const struct onebit_error *err);

/* The socket that will be used when socket is NULL. */
const char *verb_socket(const char *socket);

/* A decimal number and nothing else, within [min, max]. */
bool verb_u64(const char *text, uint64_t min, uint64_t max, uint64_t *value);
bool verb_double(const char *text, double min, double max, double *value);

/* A JSON string with its quotes; what is not UTF-8 becomes U+FFFD. */
void verb_json_string(FILE *f, const char *text, size_t len);

/*
 * Length of the UTF-8 sequence at the start of text[0..len): 1..4; 0: it goes on after len; -1: it
 * is none. Overlong forms, surrogates and what lies above U+10FFFF are none.
 */
int verb_utf8(const char *text, size_t len);

/* SIGINT and SIGTERM set verb_interrupted instead of ending the program; SIGPIPE is ignored. */
void verb_catch_signals(void);
int verb_interrupted(void); /* how often */

#endif

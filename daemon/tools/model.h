/* SPDX-License-Identifier: MIT */
#ifndef MODEL_H
#define MODEL_H

/* What the verbs of `onebit model` share. verb is "model convert" and so on, for sentences. */

#include <getopt.h>
#include <stdbool.h>
#include "source.h"
#include "tool.h"

int model_info(int argc, char **argv);
int model_diff(int argc, char **argv);
int model_verify(int argc, char **argv);
int model_keygen(int argc, char **argv);
int model_sign(int argc, char **argv);

/* What a person may add to what the files say: rows for getopt_long(), and what takes them. */
#define MODEL_OPTIONS \
	{ "tokenizer", required_argument, NULL, 'T' }, \
	{ "chat", required_argument, NULL, 'C' }, \
	{ "qk", required_argument, NULL, 'Q' }, \
	{ "linear", required_argument, NULL, 'L' }, \
	{ "name", required_argument, NULL, 'N' }, \
	{ "licence-file", required_argument, NULL, 'F' }, \
	{ "context", required_argument, NULL, 'X' }, \
	{ "help", no_argument, NULL, 'h' }

/* Their lines in a --help. */
extern const char model_options_help[];

/* c is one of theirs: STATUS_OK, or STATUS_USAGE, told. Else an option that is none. */
int model_option(const char *verb, int c, char **argv, struct source_options *o);

/* source_open() and source_check(); an error has been told. NULL then. */
struct source *model_open(const char *verb, const char *path, const struct source_options *o);

/* "1.18 GB": of 10^9, as disks are sold and rates are told. */
const char *model_size(uint64_t bytes, char *buf, size_t len);
/* 32 bytes as 64 digits and a NUL. */
void model_hex(const uint8_t bytes[32], char hex[65]);

#endif

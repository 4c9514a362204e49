/* SPDX-License-Identifier: MIT */
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include "config.h"

/*
 * The command line, and the configuration that it names. What options_parse() keeps points into
 * argv, for a reload reads the same file and the same -o again.
 */

#define OPTIONS_SETTINGS_MAX 128u

struct options {
	const char *file; /* NULL: the default one when it exists; "none": none */
	const char *settings[OPTIONS_SETTINGS_MAX];
	unsigned n_settings;
	bool check;
};

/* -1: go on. Otherwise the exit status: help or version were printed, or the reason was. */
int options_parse(struct options *o, int argc, char **argv);
/* 0 and *c, or -errno and why. */
int options_load(const struct options *o, struct config *c, char *why, size_t why_len);

#endif

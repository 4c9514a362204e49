/* SPDX-License-Identifier: MIT */
#ifndef SOURCE_RANDOM_H
#define SOURCE_RANDOM_H

/*
 * A model of random weights in the shape of a real one, as a source that converters take like any
 * other: how fast an engine is does not depend on what the weights are. Nothing is kept: each row is
 * made when it is asked for, always the same one for the same seed.
 *
 * One thing does depend on the values: how far the best logit stands above the others, which decides
 * how much of the head a greedy answer needs to read.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "source.h"

struct source_random_options {
	const char *shape; /* "2b": BitNet b1.58 2B-4T; "small" */
	uint64_t seed;
	bool flat; /* no logit stands out; else the best one does, as in a trained model */
};

/* -EINVAL: no such shape; -ENOMEM. It passes source_check(). */
int source_open_random(const struct source_random_options *o, struct source **out, char *why,
		       size_t why_len);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef OUTPUT_H
#define OUTPUT_H

/*
 * A file that appears whole or not at all: written without a name (O_TMPFILE, or a hidden name
 * beside the target where the file system has none), made durable, then given its name in one step.
 * Whoever dies before, or whose disk fills up, leaves the target as it was.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct output;

/*
 * replace: an existing file may be replaced; otherwise -EEXIST and why, before anything is written.
 */
int output_new(const char *path, bool replace, struct output **out, char *why, size_t why_len);
/* Not committed: nothing is left. NULL is fine; returns NULL. */
struct output *output_free(struct output *o);

/* Sequential, buffered. */
int output_write(struct output *o, const void *data, size_t len, char *why, size_t why_len);
uint64_t output_bytes(const struct output *o); /* written so far */
/* Over what was written before, or a gap that is left for later. */
int output_write_at(struct output *o, uint64_t offset, const void *data, size_t len, char *why,
		    size_t why_len);
/* Reserve the space, so that a full disk is known at once; not supported is no error. */
int output_reserve(struct output *o, uint64_t bytes, char *why, size_t why_len);
int output_commit(struct output *o, char *why, size_t why_len);

#endif

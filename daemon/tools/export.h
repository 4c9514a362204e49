/* SPDX-License-Identifier: MIT */
#ifndef EXPORT_H
#define EXPORT_H

/*
 * A source written in somebody else's format, so that a model can be carried to peers and back: the
 * ternary codes and scales come back byte for byte. What a format cannot hold is refused, or where it
 * loses precision that is said: note gets a sentence for a person, empty when nothing was lost. s is a
 * source as it is served (served.h), or one that is so already: its q and k split-half, its matrices
 * ternary.
 * tool_stopped (tool.h) ends them with -EINTR, and nothing is left of what was written.
 */

#include <stdbool.h>
#include <stddef.h>
#include "source.h"
#include "tool.h"

/* version 2 (2 bits) or 4 (base 3). The vocabulary goes into a .htok beside it (same stem). */
int export_h1b(struct source *s, unsigned version, const char *path, bool replace, struct progress *p,
	       char *note, size_t note_len, char *why, size_t why_len);
/* TQ2_0; the binary32 scales stand in metadata of our own, which our reader prefers. */
int export_gguf(struct source *s, const char *path, bool replace, struct progress *p, char *note,
		size_t note_len, char *why, size_t why_len);

#endif

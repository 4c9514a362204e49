/* SPDX-License-Identifier: MIT */
#ifndef SERVED_H
#define SERVED_H

/*
 * A source as it is served: the rows of q and k in split-half order, whichever the file has, and
 * every linear matrix ternary, master weights by the rule of the numeric contract. So converter,
 * exporters and comparison know one form of a matrix each.
 *
 * It stands before the source, which stays the caller's and must outlive it, and shares its
 * vocabulary, texts and frequencies. Made and freed here only, never by source_close(). One thread
 * at a time.
 */

#include <stddef.h>
#include "source.h"

/* s has passed source_check(). -ENOTSUP: the order of the rows of q and k is not known. */
int served_new(struct source *s, struct source **out, char *why, size_t why_len);
struct source *served_free(struct source *served); /* NULL is fine; returns NULL */

#endif

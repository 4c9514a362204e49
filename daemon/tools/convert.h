/* SPDX-License-Identifier: MIT */
#ifndef CONVERT_H
#define CONVERT_H

/*
 * A source becomes an .obm: checked, its tokenizer built, every matrix in the wanted layout. Same
 * input and options, same bytes. Memory is a few tiles of rows besides the vocabulary, whatever the
 * model's size.
 */

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include "output.h"
#include "source.h"
#include "tool.h"

struct convert_options {
	uint32_t layout;	/* of linear matrices: PACKED_2BIT or PACKED_BASE3 */
	uint32_t head;		/* of embedding and head: PACKED_INT8, PACKED_F16 or PACKED_BF16 */
	const volatile sig_atomic_t *stop; /* once not 0: -EINTR. May be NULL */
	/* What was lost, for a person; "" when nothing was. May be NULL */
	char *note;
	size_t note_len;
};

/*
 * Writes all of it; the caller commits out, or frees it when this fails. p may be NULL. As
 * source_check(), besides -ENOENT: no vocabulary; -ENOTSUP: the order of q's and k's rows is not
 * known; -ERANGE: a value that the head's form cannot hold; -EINTR; else from the writer.
 */
int convert(struct source *s, const struct convert_options *o, struct output *out,
	    struct progress *p, uint8_t identity[32], char *why, size_t why_len);

#endif

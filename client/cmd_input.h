/* SPDX-License-Identifier: MIT */
#ifndef CMD_INPUT_H
#define CMD_INPUT_H

#include <stddef.h>
#include <stdint.h>

/* What a verb reads: a file or standard input whole, texts, token ids. */

/*
 * All of path ("-": standard input), with a NUL behind it that len does not count; the caller's to
 * free. what names it in sentences. Exit status of the verb, and the sentence is out.
 */
int input_read(const char *verb, const char *what, const char *path, size_t max, char **data,
	       size_t *len);

/*
 * Decimal token ids with blanks, line ends or commas between them; *ids is the caller's to free. 0;
 * -EILSEQ: something else stands there, or nothing at all; -ENOMEM; with a sentence, which begins
 * with the line where there is one.
 */
int input_ids(const char *text, size_t len, uint32_t **ids, size_t *n, char *why, size_t why_len);
/* The line, from 1, on which id number index of such a text stands. */
size_t input_line(const char *text, size_t len, size_t index);

/* The first byte that is not UTF-8; len: it all is. */
size_t input_utf8(const char *text, size_t len);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * What a verb reads. Nothing is guessed: what is no id is refused with its line, for a file of ids
 * that was cut or mixed up would else give numbers that look right.
 */
#include "cmd_input.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cmd_verb.h"

enum {
	SHOWN_MAX = 24, /* bytes of a word that is no id, in the sentence about it */
	CHUNK = 65536,
};

static int read_stream(FILE *f, size_t max, char **data, size_t *len)
{
	size_t cap = 0, n = 0, got;
	char *buf = NULL, *more;

	do {
		if (cap - n < 2) {
			cap = cap ? 2 * cap : CHUNK;
			more = realloc(buf, cap);
			if (!more) {
				free(buf);
				return -ENOMEM;
			}
			buf = more;
		}
		got = fread(buf + n, 1, cap - n - 1, f);
		n += got;
	} while (got && n <= max);
	if (ferror(f) || n > max) {
		int err = ferror(f) ? -errno : -EFBIG;

		free(buf);
		return err;
	}
	buf[n] = '\0';
	*data = buf;
	*len = n;
	return 0;
}

int input_read(const char *verb, const char *what, const char *path, size_t max, char **data,
	       size_t *len)
{
	bool standard = !strcmp(path, "-");
	FILE *f = standard ? stdin : fopen(path, "re");
	int err;

	if (!f)
		return verb_fail(verb, STATUS_FAILED,
				 "%s %s cannot be opened: %s; check the path and the file's mode",
				 what, path, strerror(errno));
	err = read_stream(f, max, data, len);
	if (!standard)
		fclose(f);
	if (!err)
		return STATUS_OK;
	if (verb_interrupted())
		return STATUS_INTERRUPTED;
	if (err == -EFBIG)
		return verb_fail(verb, STATUS_FAILED,
				 "%s %s has more than the limit of %zu bytes; give it in parts",
				 what, standard ? "from standard input" : path, max);
	return verb_fail(verb, STATUS_FAILED, "%s %s cannot be read: %s", what,
			 standard ? "from standard input" : path, strerror(-err));
}

static bool is_between(char c)
{
	return c == ' ' || c == ',' || (c >= '\t' && c <= '\r');
}

/* The next word at or behind *at; false: there is none. Counts lines when asked to. */
static bool next_word(const char *text, size_t len, size_t *at, size_t *end, size_t *line)
{
	while (*at < len && is_between(text[*at])) {
		*line += text[*at] == '\n';
		(*at)++;
	}
	for (*end = *at; *end < len && !is_between(text[*end]); (*end)++)
		;
	return *at < len;
}

static int bad_word(const char *word, size_t len, size_t line, const char *what, char *why,
		    size_t why_len)
{
	char shown[SHOWN_MAX + 1];
	size_t n = len < SHOWN_MAX ? len : SHOWN_MAX;

	for (size_t i = 0; i < n; i++)
		shown[i] = word[i] > ' ' && word[i] <= '~' ? word[i] : '?';
	shown[n] = '\0';
	snprintf(why, why_len, "line %zu: '%s'%s %s", line, shown, len > n ? "..." : "", what);
	return -EILSEQ;
}

int input_ids(const char *text, size_t len, uint32_t **ids, size_t *n, char *why, size_t why_len)
{
	size_t at = 0, end, line = 1, count = 0, cap = 0;
	uint32_t *all = NULL;

	for (; next_word(text, len, &at, &end, &line); at = end) {
		uint64_t id = 0;

		for (size_t i = at; i < end; i++) {
			if (text[i] < '0' || text[i] > '9') {
				free(all);
				return bad_word(text + at, end - at, line,
						"is no token id; ids are decimal numbers with "
						"blanks or commas between them", why, why_len);
			}
			id = id * 10 + (uint64_t)(text[i] - '0');
			if (id > UINT32_MAX) {
				free(all);
				return bad_word(text + at, end - at, line,
						"is larger than any token id; correct it", why,
						why_len);
			}
		}
		if (count == cap) {
			uint32_t *more;

			cap = cap ? 2 * cap : 1024;
			more = realloc(all, cap * sizeof(*all));
			if (!more) {
				free(all);
				snprintf(why, why_len, "no memory for %zu ids", cap);
				return -ENOMEM;
			}
			all = more;
		}
		all[count++] = (uint32_t)id;
	}
	if (!count) {
		snprintf(why, why_len, "there is no token id in it; ids are decimal numbers with "
			 "blanks or commas between them");
		return -EILSEQ;
	}
	*ids = all;
	*n = count;
	return 0;
}

size_t input_line(const char *text, size_t len, size_t index)
{
	size_t at = 0, end = 0, line = 1;

	for (size_t i = 0; next_word(text, len, &at, &end, &line) && i < index; i++)
		at = end;
	return line;
}

size_t input_utf8(const char *text, size_t len)
{
	size_t at = 0;
	int n;

	while (at < len && (n = verb_utf8(text + at, len - at)) > 0)
		at += (size_t)n;
	return at;
}

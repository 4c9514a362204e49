/* SPDX-License-Identifier: MIT */
/*
 * tokenizer.model as Llama 3 has it: a line "base64 rank" for each entry, ranks from 0 up without a
 * gap, and nothing else. The rank is the id; merges follow from the entries; the 256 special tokens
 * behind them stand in no file, so their names are here, as the Llama 3.1 tokenizer lists them.
 *
 * The form is tiktoken's, and other models' files have it too. They cut text by other rules and
 * have other specials, which the file does not say either: a large one that has not Llama 3's
 * 128,000 entries is refused. So is one that was cut off, then.
 */
#include "source.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include "mapped.h"
#include "read.h"

#define LLAMA3_ENTRIES 128000u
#define SMALL_ENTRIES  65536u
#define N_SPECIALS     256u

struct ranks {
	const uint8_t *data;
	size_t len, pos;
	const char *name;
	char *why;
	size_t why_len;
	struct vocab *v;
};

#define REFUSE(r, err, ...) fail((r)->why, (r)->why_len, err, __VA_ARGS__)

static int digit64(uint8_t c)
{
	return c >= 'A' && c <= 'Z' ? c - 'A' : c >= 'a' && c <= 'z' ? c - 'a' + 26 :
	       c >= '0' && c <= '9' ? c - '0' + 52 : c == '+' ? 62 : c == '/' ? 63 : -1;
}

/* Strict: whole groups of four, padding at the end only, no bits left over. -1: it is none. */
static int decode64(const uint8_t *text, size_t len, uint8_t *out)
{
	int n = 0;

	if (!len || len % 4)
		return -1;
	for (size_t i = 0; i < len; i += 4) {
		int pad = i + 4 < len ? 0
				      : (text[i + 3] == '=') +
						(text[i + 3] == '=' && text[i + 2] == '=');
		uint32_t bits = 0;

		for (int k = 0; k < 4 - pad; k++) {
			int d = digit64(text[i + (size_t)k]);

			if (d < 0)
				return -1;
			bits |= (uint32_t)d << (18 - 6 * k);
		}
		if ((pad == 1 && bits & 0xff) || (pad == 2 && bits & 0xffff))
			return -1;
		for (int k = pad; k < 3; k++, bits <<= 8)
			out[n++] = (uint8_t)(bits >> 16);
	}
	return n;
}

static int read_line(struct ranks *r)
{
	const uint8_t *line = r->data + r->pos;
	const uint8_t *end = memchr(line, '\n', r->len - r->pos);
	const uint8_t *space;
	uint8_t bytes[VOCAB_TOKEN_BYTES_MAX];
	uint32_t id = r->v->n_tokens, rank = 0;
	size_t len;
	int n;

	if (!end)
		return REFUSE(r, -EPROTO, "%s: ends within line %u: it was cut off", r->name,
			      id + 1);
	len = (size_t)(end - line);
	r->pos += len + 1;
	space = memchr(line, ' ', len);
	if (!space || space + 1 == end || end - space > 9)
		return REFUSE(r, -EPROTO, "%s: line %u, '%s', is not of the form 'base64 rank'",
			      r->name, id + 1, read_shown(line, len).text);
	if ((size_t)(space - line) > VOCAB_TOKEN_BYTES_MAX)
		return REFUSE(r, -EFBIG, "%s: line %u is an entry of more than %u bytes", r->name,
			      id + 1, VOCAB_TOKEN_BYTES_MAX / 4 * 3);
	n = decode64(line, (size_t)(space - line), bytes);
	if (n < 1)
		return REFUSE(r, -EPROTO, "%s: line %u: '%s' is not base64", r->name, id + 1,
			      read_shown(line, (size_t)(space - line)).text);
	for (const uint8_t *p = space + 1; p < end; p++) {
		if (*p < '0' || *p > '9')
			return REFUSE(r, -EPROTO, "%s: line %u: the rank '%s' is no number",
				      r->name, id + 1,
				      read_shown(space + 1, (size_t)(end - space - 1)).text);
		rank = rank * 10 + (*p - '0');
	}
	if (rank != id)
		return REFUSE(r, -EPROTO,
			      "%s: line %u has rank %u instead of %u; ranks go up from 0 without a "
			      "gap",
			      r->name, id + 1, rank, id);
	if (vocab_find(r->v, bytes, (size_t)n, 1u << VOCAB_NORMAL) != VOCAB_NO_ID)
		return REFUSE(r, -EPROTO, "%s: line %u: the entry '%s' was there before", r->name,
			      id + 1, read_shown(bytes, (size_t)n).text);
	return vocab_add(r->v, bytes, (size_t)n, VOCAB_NORMAL, 0);
}

static int add_specials(struct vocab *v)
{
	static const char *const named[] = {
		"<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
		"<|reserved_special_token_1|>", "<|finetune_right_pad_id|>",
		"<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>",
		"<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
	};
	const unsigned n_named = sizeof(named) / sizeof(named[0]);
	int ret = 0;

	for (unsigned i = 0; i < N_SPECIALS && !ret; i++) {
		char text[40];

		if (i < n_named)
			snprintf(text, sizeof(text), "%s", named[i]);
		else
			snprintf(text, sizeof(text), "<|reserved_special_token_%u|>",
				 i - n_named + 3);
		ret = vocab_add(v, text, strlen(text), VOCAB_SPECIAL, 0);
	}
	return ret;
}

int vocab_read_ranks(const void *data, size_t len, const char *name, struct vocab **out, char *why,
		     size_t why_len)
{
	struct ranks r = { .data = data, .len = len, .name = name, .why = why, .why_len = why_len,
			   .v = vocab_new() };
	int ret = 0;
	uint32_t n;

	if (why_len)
		*why = 0;
	if (!r.v)
		return read_done(name, -ENOMEM, NULL, out, why, why_len);
	if (len > READ_FILE_MAX)
		ret = REFUSE(&r, -EFBIG, "%s: has %zu bytes; a file of ranks may have %u", name,
			     len, READ_FILE_MAX);
	if (!len)
		ret = REFUSE(&r, -EPROTO, "%s: is empty", name);
	while (!ret && r.pos < len)
		ret = read_line(&r);
	if (ret)
		return read_done(name, ret, r.v, out, why, why_len);
	n = r.v->n_tokens;
	if (n >= SMALL_ENTRIES && n != LLAMA3_ENTRIES)
		ret = REFUSE(&r, -ENOTSUP,
			     "%s: has %u entries, Llama 3's has %u: it is another model's, which "
			     "cuts text by another rule, or was cut off",
			     name, n, LLAMA3_ENTRIES);
	r.v->kind = VOCAB_BYTES;
	r.v->rule = VOCAB_RULE_LLAMA3;
	r.v->flags = VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS;
	if (!ret)
		ret = vocab_derive_by_id(r.v, why, why_len);
	if (!ret)
		ret = add_specials(r.v);
	if (!ret)
		ret = read_known_specials(r.v);
	return read_done(name, ret, r.v, out, why, why_len);
}

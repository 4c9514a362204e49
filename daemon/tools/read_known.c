/* SPDX-License-Identifier: MIT */
/*
 * Names that everybody knows. Files say which token is which in many places and often not at all;
 * the texts of the tokens are the same in all of them. And two chat templates, written in a
 * programming language that is not spoken here, are recognised by what makes them what they are.
 */
#include "read.h"

#include <errno.h>
#include <string.h>
#include "chat.h"
#include "mapped.h"
#include "source.h"

bool read_is_markup(const void *text, size_t len)
{
	const char *p = text;

	return len >= 3 &&
	       ((p[0] == '<' && p[len - 1] == '>') || (p[0] == '[' && p[len - 1] == ']'));
}

static uint32_t first_of(struct vocab *v, const char *const *names)
{
	uint32_t id = VOCAB_NO_ID;

	for (; *names && id == VOCAB_NO_ID; names++)
		id = vocab_find(v, *names, strlen(*names), 1u << VOCAB_SPECIAL);
	return id;
}

int read_known_specials(struct vocab *v)
{
	static const char *const bos[] = { "<|begin_of_text|>", "<s>", "<|startoftext|>",
					   "<|endoftext|>", NULL };
	static const char *const eos[] = { "<|end_of_text|>", "</s>", "<|endoftext|>", NULL };
	static const char *const unk[] = { "<unk>", NULL };
	/* Ends of a turn: a chat model ends its answer with one of them, never with eos. */
	static const char *const turn[] = { "<|eot_id|>", "<|im_end|>", "<|end|>", NULL };
	int ret = 0;

	if (v->bos == VOCAB_NO_ID)
		v->bos = first_of(v, bos);
	if (v->eos == VOCAB_NO_ID)
		v->eos = first_of(v, eos);
	if (v->unk == VOCAB_NO_ID)
		v->unk = first_of(v, unk);
	if (v->eos != VOCAB_NO_ID)
		ret = vocab_stop(v, v->eos);
	for (int i = 0; turn[i] && !ret; i++) {
		uint32_t id = vocab_find(v, turn[i], strlen(turn[i]), 1u << VOCAB_SPECIAL);

		if (id != VOCAB_NO_ID)
			ret = vocab_stop(v, id);
	}
	return ret;
}

struct shown read_shown(const void *text, size_t len)
{
	const uint8_t *p = text;
	struct shown s = { "" };
	size_t n = len > 120 ? 117 : len;

	for (size_t i = 0; i < n; i++)
		s.text[i] = p[i] >= 32 && p[i] < 127 ? (char)p[i] : '?';
	if (len > 120)
		memcpy(s.text + n, "...", 3);
	return s;
}

int read_done(const char *name, int ret, struct vocab *v, struct vocab **out, char *why,
	      size_t why_len)
{
	char said[256] = "";

	if (!ret) {
		ret = vocab_check(v, v->n_tokens, said, sizeof(said));
		if (ret)
			fail(why, why_len, ret, "%s: %s", name, said);
	} else if (why_len && !*why) {
		fail(why, why_len, ret,
		     ret == -ENOMEM ? "%s: no memory for its vocabulary"
				    : "%s: its vocabulary is over a bound: %u tokens of %u bytes, "
				      "%u merges, %u stops",
		     name, VOCAB_TOKENS_MAX, VOCAB_TOKEN_BYTES_MAX, VOCAB_MERGES_MAX,
		     VOCAB_STOPS_MAX);
	}
	if (ret)
		vocab_free(v);
	else
		*out = v;
	return ret;
}

size_t read_unspace(const char *text, size_t len, uint8_t *out)
{
	size_t n = 0;

	for (size_t i = 0; i < len;) {
		if (len - i >= 3 && !memcmp(text + i, "\xe2\x96\x81", 3)) {
			out[n++] = ' ';
			i += 3;
		} else {
			out[n++] = (uint8_t)text[i++];
		}
	}
	return n;
}

static int hex(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 :
	       c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int read_byte_name(const char *text, size_t len)
{
	if (len != 6 || memcmp(text, "<0x", 3) || text[5] != '>' || hex(text[3]) < 0 ||
	    hex(text[4]) < 0)
		return -1;
	return hex(text[3]) * 16 + hex(text[4]);
}

/* ---- chat templates ------------------------------------------------------------------------ */

static bool has(const char *text, size_t len, const char *word)
{
	return memmem(text, len, word, strlen(word)) != NULL;
}

static bool has_all(const char *text, size_t len, const char *const *words)
{
	for (; *words; words++)
		if (!has(text, len, *words))
			return false;
	return true;
}

const char *vocab_chat_of(const char *text, size_t len)
{
	static const char *const bitnet[] = { "capitalize", "': '", "trim", "'<|eot_id|>'",
					      "'Assistant: '", NULL };
	static const char *const llama3[] = { "'<|start_header_id|>'", "<|end_header_id|>\\n\\n",
					      "trim", "'<|eot_id|>'", NULL };
	/* The same with real newlines, as a .jinja file has it. */
	static const char *const llama3_plain[] = { "'<|start_header_id|>'",
						    "<|end_header_id|>\n\n", "trim", "'<|eot_id|>'",
						    NULL };
	/* Branches that add text of their own: such a one renders something else. */
	static const char *const others[] = { "tools",		 "Cutting Knowledge",
					      "strftime",	 "python_tag",
					      "raise_exception", "namespace",
					      "system_message",	 NULL };

	while (len && (*text == ' ' || *text == '\n')) {
		text++;
		len--;
	}
	/* Our own word for it. */
	for (const char *const *name = chat_names(); *name; name++)
		if (strlen(*name) == len && !memcmp(*name, text, len))
			return *name;
	/* A text before the first statement would be put before the first message. */
	if (len < 2 || len > 2048 || text[0] != '{')
		return "";
	for (const char *const *word = others; *word; word++)
		if (has(text, len, *word))
			return "";
	if (has_all(text, len, bitnet) && !has(text, len, "header_id"))
		return "bitnet";
	if ((has_all(text, len, llama3) || has_all(text, len, llama3_plain)) &&
	    !has(text, len, "capitalize"))
		return "llama3";
	return "";
}

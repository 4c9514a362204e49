/* SPDX-License-Identifier: MIT */
#ifndef CHAT_H
#define CHAT_H

/*
 * Chat templates: messages to tokens. The only source of special tokens. A template is a name in
 * the model file; its form is a row in the table of chat.c, its ids are pinned by golden tests.
 *
 *      raw      the texts one behind the other, bos first where the vocabulary says so
 *      bitnet   bos; per message "Role: " and the trimmed content as one text, then <|eot_id|>; at
 *               the end "Assistant: "
 *      llama3   bos; per message <|start_header_id|> role <|end_header_id|> two newlines, the
 *               trimmed content, <|eot_id|>; at the end the assistant's header
 *      story    our own model's: bos; the system text and a newline; per message <|user|> or
 *               <|assistant|>, the text as it is, <|end|>; at the end <|assistant|>. A raw prompt
 *               is the beginning of a story
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tokenizer.h"

enum chat_role { CHAT_RAW, CHAT_SYSTEM, CHAT_USER, CHAT_ASSISTANT, CHAT_TOOL, CHAT_ROLES };

struct chat_message {
	enum chat_role role;
	bool special;	/* CHAT_RAW: special tokens are recognised in the text */
	bool go_on; /* the last one, CHAT_ASSISTANT: the answer goes on with it, it is not closed */
	const char *text; /* NULL: ids instead, taken as they are */
	size_t len;	  /* bytes of text, or number of ids */
	const uint32_t *ids;
};

/*
 * Whether a template of this name is known, and this vocabulary has the specials that it needs. ""
 * (the model names none) is known and can only do raw prompts. 0, -ENOENT no such template, -EPROTO
 * the vocabulary lacks something; both say what.
 */
int chat_check(const char *name, const struct tokenizer *t, char *why, size_t why_len);
/* The names, in order; NULL at the end. */
const char *const *chat_names(void);
/* Roles that the template can express, bit per enum chat_role; CHAT_RAW, on its own, always. */
uint32_t chat_roles(const char *name);

/*
 * Render. Messages that are all CHAT_RAW take no template, whichever the model names; their first
 * text gets the bos that the vocabulary asks for unless it begins with it, ids are left as they are.
 * append: the prompt goes on after an answer in the same session, so nothing that only begins a text
 * is put. 0; -ENOSPC with *n what is needed; -EFBIG: a text is longer than the scratch; -ENOMEM;
 * -EINVAL and why: a role that the template has not, raw among others, go_on elsewhere than at the
 * end, an id that the vocabulary has not; or as chat_check().
 */
int chat_render(const char *name, const struct tokenizer *t, struct tokenizer_scratch *s,
		const struct chat_message *messages, size_t n_messages, bool append, uint32_t *ids,
		size_t cap, size_t *n, char *why, size_t why_len);

#endif

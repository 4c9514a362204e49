/* SPDX-License-Identifier: MIT */
/*
 * Chat templates as a table: for each role the special token and the text that open a message, the
 * text that is one with its content, and what closes it. Content is data: what looks like a special
 * token in it stays text, whatever the template.
 *
 * bitnet. The tokenizer_config.json of microsoft/bitnet-b1.58-2B-4T renders, for each message, the
 * capitalised role, ": ", the content trimmed, <|eot_id|>; then "Assistant: ", with the space, when
 * an answer is asked for. The filter `trim` binds tighter than `+`, so only the content is trimmed.
 * The tokenizer then sees "User: content" as one text, and puts <|begin_of_text|> first. That is
 * the form here. Three others are about, and give other ids: the GPU code of the same authors
 * encodes "User: " and the content apart, which leaves a token of one space between them; servers
 * have put the Llama 3 headers around BitNet's messages; and some put no header at all.
 * Roles are system, user, assistant: the file would capitalise any other word too, but no other one
 * is known to have been in training, so it is refused.
 *
 * llama3. The template of Llama 3: headers in special tokens, two newlines, content trimmed. Meta's
 * own code encodes header and content apart, the template as one text; the pre-tokenizer cuts
 * behind newlines that a trimmed text follows, so the ids are the same. The form of Llama 3.1 and
 * later begins with a system message that has today's date in it: not this one.
 *
 * Trimming is Python's str.strip(), for that is what both templates run. A message that the answer
 * goes on with is trimmed as well, as the templates' own renderer does; its end is left open.
 */
#include "chat.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "vocab.h"

#define BIT(role) (1u << (role))

/* How one role's message looks. */
struct form {
	const char *special; /* first of all, NULL: none */
	const char *header;  /* a text between the two specials */
	const char *closer;  /* the special behind it */
	const char *lead;    /* one text with the content; NULL: the template has not this role */
	const char *tail;    /* the same, behind the content */
	const char *end;     /* the special behind the message */
	bool first_only;     /* it begins a text: elsewhere it is refused */
};

struct template {
	const char *name;
	bool trim;
	struct form form[CHAT_ROLES];
};

static const struct template templates[] = {
	{ .name = "raw" },
	{
		.name = "bitnet",
		.trim = true,
		.form = {
			[CHAT_SYSTEM] = { .lead = "System: ", .end = "<|eot_id|>" },
			[CHAT_USER] = { .lead = "User: ", .end = "<|eot_id|>" },
			[CHAT_ASSISTANT] = { .lead = "Assistant: ", .end = "<|eot_id|>" },
		},
	},
	{
		.name = "llama3",
		.trim = true,
		.form = {
			[CHAT_SYSTEM] = { .special = "<|start_header_id|>", .header = "system",
					  .closer = "<|end_header_id|>", .lead = "\n\n",
					  .end = "<|eot_id|>" },
			[CHAT_USER] = { .special = "<|start_header_id|>", .header = "user",
					.closer = "<|end_header_id|>", .lead = "\n\n",
					.end = "<|eot_id|>" },
			[CHAT_ASSISTANT] = { .special = "<|start_header_id|>",
					     .header = "assistant",
					     .closer = "<|end_header_id|>", .lead = "\n\n",
					     .end = "<|eot_id|>" },
		},
	},
	{
		.name = "story",
		.form = {
			[CHAT_SYSTEM] = { .lead = "", .tail = "\n", .first_only = true },
			[CHAT_USER] = { .special = "<|user|>", .lead = "", .end = "<|end|>" },
			[CHAT_ASSISTANT] = { .special = "<|assistant|>", .lead = "",
					     .end = "<|end|>" },
		},
	},
};

#define N_TEMPLATES (sizeof(templates) / sizeof(templates[0]))

static const char *const role_names[CHAT_ROLES] = { "raw", "system", "user", "assistant", "tool" };

__attribute__((format(printf, 4, 5)))
static int refuse(char *why, size_t why_len, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, why_len, format, args);
	va_end(args);
	return err;
}

const char *const *chat_names(void)
{
	static const char *const names[] = { "raw", "bitnet", "llama3", "story", NULL };

	_Static_assert(sizeof(names) / sizeof(names[0]) == N_TEMPLATES + 1, "each has its name");
	return names;
}

/* "" is as raw: no role but that one. */
static const struct template *find(const char *name)
{
	for (size_t i = 0; i < N_TEMPLATES; i++)
		if (!strcmp(templates[i].name, *name ? name : "raw"))
			return &templates[i];
	return NULL;
}

uint32_t chat_roles(const char *name)
{
	const struct template *tp = find(name);
	uint32_t roles = BIT(CHAT_RAW);

	for (int i = 0; tp && i < CHAT_ROLES; i++)
		roles |= tp->form[i].lead ? BIT(i) : 0;
	return roles;
}

int chat_check(const char *name, const struct tokenizer *t, char *why, size_t why_len)
{
	const struct template *tp = find(name);

	if (!tp)
		return refuse(why, why_len, -ENOENT,
			      "chat template '%s' is not known; there are raw, bitnet, llama3, "
			      "story",
			      name);
	for (int i = 0; i < CHAT_ROLES; i++) {
		const char *needs[] = { tp->form[i].special, tp->form[i].closer, tp->form[i].end };

		if (tp->form[i].lead && tokenizer_facts(t)->bos == VOCAB_NO_ID)
			return refuse(why, why_len, -EPROTO,
				      "chat template %s begins with bos, and this vocabulary has "
				      "none; use raw prompts or another template",
				      tp->name);
		for (size_t j = 0; j < sizeof(needs) / sizeof(needs[0]); j++)
			if (needs[j] && tokenizer_special(t, needs[j], strlen(needs[j])) ==
					VOCAB_NO_ID)
				return refuse(why, why_len, -EPROTO,
					      "chat template %s needs the special token %s, and "
					      "this vocabulary has none; use raw prompts or "
					      "another template",
					      tp->name, needs[j]);
	}
	return 0;
}

/* ---- putting tokens ------------------------------------------------------------------------ */

/* Where ids go: what is over cap is counted only. */
struct sink {
	const struct tokenizer *t;
	struct tokenizer_scratch *s;
	uint32_t *ids;
	size_t cap, n;
};

static void put(struct sink *k, uint32_t id)
{
	if (k->n < k->cap)
		k->ids[k->n] = id;
	k->n++;
}

static void put_special(struct sink *k, const char *text)
{
	if (text)
		put(k, tokenizer_special(k->t, text, strlen(text)));
}

static int put_text(struct sink *k, const char *text, size_t len, unsigned flags)
{
	size_t room = k->n < k->cap ? k->cap - k->n : 0, n = 0;
	int ret = tokenizer_encode(k->t, k->s, text, len, flags, room ? k->ids + k->n : NULL, room,
				   &n);

	if (ret && ret != -ENOSPC)
		return ret;
	k->n += n;
	return 0;
}

static int put_ids(struct sink *k, const struct chat_message *m, size_t index, char *why,
		   size_t why_len)
{
	uint32_t n_tokens = tokenizer_facts(k->t)->n_tokens;

	for (size_t i = 0; i < m->len; i++) {
		if (m->ids[i] >= n_tokens)
			return refuse(why, why_len, -EINVAL,
				      "message %zu: token %u at place %zu is none of this "
				      "vocabulary's, which are 0 to %u",
				      index + 1, m->ids[i], i + 1, n_tokens - 1);
		put(k, m->ids[i]);
	}
	return 0;
}

/* ---- trimming ------------------------------------------------------------------------------ */

/* Length of the white space that the text begins with: one character of Python's str.isspace(). */
static size_t space_at(const uint8_t *p, size_t len)
{
	uint32_t c;

	if (!len)
		return 0;
	if ((p[0] >= 9 && p[0] <= 13) || (p[0] >= 28 && p[0] <= 32))
		return 1;
	if (len >= 2 && p[0] == 0xc2 && (p[1] == 0x85 || p[1] == 0xa0))
		return 2;
	if (len < 3 || (p[0] & 0xf0) != 0xe0 || (p[1] & 0xc0) != 0x80 || (p[2] & 0xc0) != 0x80)
		return 0;
	c = (p[0] & 0xfu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
	return c == 0x1680 || (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 ||
	       c == 0x202f || c == 0x205f || c == 0x3000 ? 3 : 0;
}

static void trim(const char **text, size_t *len)
{
	const uint8_t *p = (const uint8_t *)*text;
	size_t n = *len, step;

	while ((step = space_at(p, n))) {
		p += step;
		n -= step;
	}
	for (step = 1; step && n;) {
		/*
		 * A character of white space has one, two or three bytes, and none ends in another.
		 */
		for (step = 3; step; step--)
			if (step <= n && space_at(p + n - step, step) == step)
				break;
		n -= step;
	}
	*text = (const char *)p;
	*len = n;
}

/* ---- messages ------------------------------------------------------------------------------ */

/* What opens a message, up to the text that is one with the content. */
static int put_header(struct sink *k, const struct form *f)
{
	int ret = 0;

	put_special(k, f->special);
	if (f->header)
		ret = put_text(k, f->header, strlen(f->header), 0);
	put_special(k, f->closer);
	return ret;
}

/* Lead, content and tail are one text: tokens may reach over where they meet. */
static int put_joint(struct sink *k, const struct form *f, const char *text, size_t len)
{
	size_t lead = strlen(f->lead), tail = f->tail ? strlen(f->tail) : 0, all;
	char *joint;
	int ret;

	if (!lead && !tail)
		return put_text(k, text, len, 0);
	if (__builtin_add_overflow(len, lead + tail, &all))
		return -EFBIG;
	joint = malloc(all);
	if (!joint)
		return -ENOMEM;
	memcpy(joint, f->lead, lead);
	if (len)
		memcpy(joint + lead, text, len);
	if (tail)
		memcpy(joint + lead + len, f->tail, tail);
	ret = put_text(k, joint, all, 0);
	free(joint);
	return ret;
}

static int put_message(struct sink *k, const struct template *tp, const struct chat_message *m,
		       size_t index, char *why, size_t why_len)
{
	const struct form *f = &tp->form[m->role];
	const char *text = m->text ? m->text : "";
	size_t len = m->text ? m->len : 0;
	int ret = put_header(k, f);

	if (ret)
		return ret;
	if (m->ids && !m->text) {
		/* An answer that was generated stood behind the lead alone; so do ids now. */
		ret = put_text(k, f->lead, strlen(f->lead), 0);
		if (!ret)
			ret = put_ids(k, m, index, why, why_len);
		if (!ret && f->tail)
			ret = put_text(k, f->tail, strlen(f->tail), 0);
	} else {
		if (tp->trim)
			trim(&text, &len);
		ret = put_joint(k, f, text, len);
	}
	if (!ret && !m->go_on)
		put_special(k, f->end);
	return ret;
}

static int render_raw(struct sink *k, const struct chat_message *messages, size_t n_messages,
		      bool append, char *why, size_t why_len)
{
	const struct tokenizer_facts *facts = tokenizer_facts(k->t);
	bool begun = append;
	int ret = 0;

	for (size_t i = 0; i < n_messages && !ret; i++) {
		const struct chat_message *m = &messages[i];
		uint32_t first = VOCAB_NO_ID;
		size_t n;

		if (!m->text) {
			ret = put_ids(k, m, i, why, why_len);
			begun = begun || m->len;
			continue;
		}
		/*
		 * The text of a bos may be there already; two of them are what no model has seen.
		 */
		if (!begun && (facts->flags & VOCAB_ADD_BOS) && facts->bos != VOCAB_NO_ID) {
			if (m->special) {
				ret = tokenizer_encode(k->t, k->s, m->text, m->len,
						       TOKENIZER_SPECIAL, &first, 1, &n);
				if (ret && ret != -ENOSPC)
					return ret;
			}
			if (first != facts->bos)
				put(k, facts->bos);
		}
		ret = put_text(k, m->text, m->len, (m->special ? TOKENIZER_SPECIAL : 0) |
						   (begun ? TOKENIZER_CONTINUE : 0));
		begun = true;
	}
	return ret;
}

/* What may not be among messages, before anything is put. */
static int check(const struct template *tp, const struct chat_message *messages, size_t n_messages,
		 bool append, char *why, size_t why_len)
{
	for (size_t i = 0; i < n_messages; i++) {
		const struct chat_message *m = &messages[i];

		if ((unsigned)m->role >= CHAT_ROLES)
			return refuse(why, why_len, -EINVAL,
				      "message %zu has role %u; roles are 0 to %d", i + 1,
				      (unsigned)m->role, CHAT_ROLES - 1);
		if (m->role == CHAT_RAW)
			return refuse(why, why_len, -EINVAL,
				      "message %zu is raw and others have roles; send either",
				      i + 1);
		if (!tp->form[m->role].lead)
			return refuse(why, why_len, -EINVAL,
				      "message %zu: the model's chat template (%s) has no role "
				      "'%s'",
				      i + 1, tp->name, role_names[m->role]);
		if (tp->form[m->role].first_only && (i || append))
			return refuse(why, why_len, -EINVAL,
				      "message %zu: in the chat template %s a %s text can only be "
				      "the first of a session",
				      i + 1, tp->name, role_names[m->role]);
		if (m->special)
			return refuse(why, why_len, -EINVAL,
				      "message %zu: special tokens are recognised in raw text only",
				      i + 1);
		if (m->go_on && (m->role != CHAT_ASSISTANT || i + 1 < n_messages))
			return refuse(why, why_len, -EINVAL,
				      "message %zu: an answer can only go on with the last "
				      "message, and that the assistant's",
				      i + 1);
	}
	return 0;
}

int chat_render(const char *name, const struct tokenizer *t, struct tokenizer_scratch *s,
		const struct chat_message *messages, size_t n_messages, bool append, uint32_t *ids,
		size_t cap, size_t *n, char *why, size_t why_len)
{
	struct sink k = { .t = t, .s = s, .ids = ids, .cap = cap };
	const struct template *tp = find(name);
	size_t n_raw = 0;
	int ret;

	if (!n_messages)
		return refuse(why, why_len, -EINVAL, "there is no message");
	for (size_t i = 0; i < n_messages; i++)
		n_raw += messages[i].role == CHAT_RAW;
	if (n_raw == n_messages) {
		for (size_t i = 0; i < n_messages; i++)
			if (messages[i].go_on)
				return refuse(why, why_len, -EINVAL,
					      "message %zu: an answer can only go on with the "
					      "assistant's message, not with raw text",
					      i + 1);
		ret = render_raw(&k, messages, n_messages, append, why, why_len);
	} else {
		ret = chat_check(name, t, why, why_len);
		if (!ret && !n_raw && chat_roles(name) == BIT(CHAT_RAW))
			ret = refuse(why, why_len, -EINVAL,
				     "this model names no chat template, so it takes raw prompts "
				     "only");
		if (!ret)
			ret = check(tp, messages, n_messages, append, why, why_len);
		if (ret)
			return ret;
		if (!append)
			put(&k, tokenizer_facts(t)->bos);
		for (size_t i = 0; i < n_messages && !ret; i++)
			ret = put_message(&k, tp, &messages[i], i, why, why_len);
		if (!ret && !messages[n_messages - 1].go_on) {
			const struct form *f = &tp->form[CHAT_ASSISTANT];

			ret = put_header(&k, f);
			if (!ret)
				ret = put_text(&k, f->lead, strlen(f->lead), 0);
		}
	}
	if (ret == -EFBIG)
		return refuse(why, why_len, ret, "a message is longer than this session allows");
	if (ret == -ENOMEM)
		return refuse(why, why_len, ret, "no memory to put a message together");
	if (ret)
		return ret;
	*n = k.n;
	if (k.n > cap)
		return refuse(why, why_len, -ENOSPC,
			      "the messages are %zu tokens; there is room for %zu", k.n, cap);
	return 0;
}

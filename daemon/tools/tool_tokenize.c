/* SPDX-License-Identifier: MIT */
/*
 * onebit tokenize and detokenize: text to ids and back, by the tokenizer of a model file or by a
 * tokenizer's own file, without a daemon. What a person sees here is what the daemon does: the same
 * code encodes prompts there, and text that looks like a special token stays text unless he asks
 * otherwise.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "chat.h"
#include "obm.h"
#include "source.h"
#include "tokenizer.h"
#include "tool.h"
#include "vocab.h"

#define TEXT_MAX (64u << 20)  /* bytes of standard input: a long novel has 3 MiB */
#define WHY_MAX	 512
#define ROOM_FOR_TEMPLATE 256 /* ids that a template adds at most */

/* A tokenizer, and what it lies in. */
struct opened {
	struct obm *obm;
	void *section; /* built here, of a vocabulary alone */
	struct tokenizer *t;
};

struct input {
	char *data;
	size_t len;
};

/* ---- model and input ----------------------------------------------------------------------- */

static int open_obm(const char *path, struct opened *m, const void **section, size_t *bytes,
		    char *why)
{
	uint64_t len = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int ret;

	if (fd < 0) {
		ret = -errno;
		snprintf(why, WHY_MAX, "%s: cannot be opened: %s", path, strerror(errno));
		return ret;
	}
	ret = obm_open(fd, OBM_UNCHECKED, 1, &m->obm, why, WHY_MAX);
	close(fd);
	if (ret)
		return ret;
	*section = obm_section(m->obm, OBM_TOKENIZER, 0, &len);
	*bytes = len;
	return 0;
}

static int open_vocab(const char *path, struct opened *m, size_t *bytes, char *why)
{
	struct vocab *v;
	int ret = vocab_read(path, 0, &v, why, WHY_MAX);

	if (ret)
		return ret;
	ret = vocab_build(v, v->n_tokens, &m->section, bytes, why, WHY_MAX);
	vocab_free(v);
	return ret;
}

static bool is_obm(const char *path)
{
	char magic[8];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	ssize_t n = fd < 0 ? -1 : read(fd, magic, sizeof(magic));

	if (fd >= 0)
		close(fd);
	return n == sizeof(magic) && !memcmp(magic, OBM_MAGIC, sizeof(magic));
}

static void model_close(struct opened *m)
{
	m->t = tokenizer_close(m->t);
	m->obm = obm_close(m->obm);
	free(m->section);
	m->section = NULL;
}

/* 0 or an exit status, with the sentence said. */
static int model_open(const char *verb, const char *path, struct opened *m)
{
	const void *section = NULL;
	char why[WHY_MAX] = "";
	size_t bytes = 0;
	int ret;

	*m = (struct opened){ 0 };
	if (!path)
		return tool_usage(verb, "--model FILE is missing: a model, or a tokenizer's file");
	if (is_obm(path)) {
		ret = open_obm(path, m, &section, &bytes, why);
	} else {
		ret = open_vocab(path, m, &bytes, why);
		section = m->section;
	}
	if (!ret)
		ret = tokenizer_open(section, bytes, &m->t, why, sizeof(why));
	if (!ret)
		return 0;
	model_close(m);
	return tool_fail(verb, STATUS_FAILED, "%s%s%s", strstr(why, path) ? "" : path,
			 strstr(why, path) ? "" : ": ", *why ? why : strerror(-ret));
}

/* All of standard input, up to TEXT_MAX. */
static int read_input(const char *verb, struct input *in)
{
	size_t cap = 0;

	*in = (struct input){ 0 };
	for (;;) {
		ssize_t n;

		if (in->len == cap) {
			char *more;

			cap = cap ? cap * 2 : 1u << 16;
			more = realloc(in->data, cap);
			if (!more)
				return tool_fail(verb, STATUS_FAILED,
						 "no memory for %zu bytes of input", cap);
			in->data = more;
		}
		n = read(STDIN_FILENO, in->data + in->len, cap - in->len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return tool_fail(verb, STATUS_FAILED, "standard input cannot be read: %s",
					 strerror(errno));
		if (!n)
			return 0;
		in->len += (size_t)n;
		if (in->len > TEXT_MAX)
			return tool_fail(verb, STATUS_FAILED,
					 "standard input has more than %u bytes; give it in parts",
					 TEXT_MAX);
	}
}

/* ---- output -------------------------------------------------------------------------------- */

/* The inside of a JSON string; text is UTF-8. */
static void put_json(const char *text, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)text[i];

		if (c == '"' || c == '\\')
			putchar('\\');
		if (c < 32)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
}

static const char *kind_name(uint32_t kind)
{
	static const char *const names[] = { "normal", "special", "byte", "unused" };

	return kind < sizeof(names) / sizeof(names[0]) ? names[kind] : "unknown";
}

/*
 * A token on its own: bytes that are no whole characters show as U+FFFD, and in hexadecimal as they
 * are.
 */
static int put_token(const struct tokenizer *t, uint32_t id, char *room)
{
	struct tokenizer_token token = tokenizer_token(t, id);
	struct detok d;
	size_t len;

	detok_init(&d, t);
	d.specials = true;
	d.at_start = false;
	len = detok_push(&d, t, id, room);
	len += detok_flush(&d, room + len);
	printf("{\"id\":%u,\"text\":\"", id);
	put_json(room, len);
	fputs("\",\"bytes\":\"", stdout);
	for (uint32_t i = 0; i < token.len; i++)
		printf("%02x", token.text[i]);
	printf("\",\"kind\":\"%s\"}", kind_name(token.kind));
	return ferror(stdout);
}

static int put_ids(const char *verb, const struct tokenizer *t, const uint32_t *ids, size_t n,
		   bool json)
{
	char *room;

	if (!json) {
		for (size_t i = 0; i < n && !ferror(stdout); i++)
			printf(i ? " %u" : "%u", ids[i]);
		putchar('\n');
		return STATUS_OK;
	}
	room = malloc(detok_bound(t) + 16);
	if (!room)
		return tool_fail(verb, STATUS_FAILED, "no memory");
	printf("{\"n\":%zu,\"tokens\":[", n);
	for (size_t i = 0; i < n; i++) {
		if (i)
			putchar(',');
		if (put_token(t, ids[i], room))
			break;
	}
	fputs("]}\n", stdout);
	free(room);
	return STATUS_OK;
}

/* ---- tokenize ------------------------------------------------------------------------------ */

static const char tokenize_help[] =
	"usage: onebit tokenize --model FILE [OPTION]... <TEXT\n"
	"\n"
	"The ids of the tokens of standard input, as the model sees them; separated by spaces.\n"
	"\n"
	"  --model FILE      a model (.obm), tokenizer.json, tokenizer.model, .htok, .gguf, or the folder\n"
	"                    of a model\n"
	"  --json            ids, texts and bytes as one JSON object\n"
	"  --special         with what the model's chat template adds around a user's message, or the\n"
	"                    first token of a raw prompt where the model has no template\n"
	"  --chat [ROLE]     the same for a message of ROLE: raw, system, user (default), assistant\n"
	"  --template NAME   another template than the model's: raw, bitnet, llama3, story\n"
	"  --raw-special     recognise special tokens in the text, which otherwise stay text\n"
	"  --help            this\n";

static const char *const role_names[CHAT_ROLES] = { "raw", "system", "user", "assistant", "tool" };

struct tokenize_options {
	const char *model, *template;
	bool json, special, raw_special;
	int role; /* enum chat_role; -1: no --chat */
};

static int find_role(const char *name)
{
	for (int i = 0; i < CHAT_ROLES; i++)
		if (!strcmp(name, role_names[i]))
			return i;
	return -1;
}

/* 0, or an exit status + 1 when all is said. */
static int tokenize_options(int argc, char **argv, struct tokenize_options *o)
{
	static const struct option options[] = {
		{ "model", required_argument, NULL, 'm' }, { "json", no_argument, NULL, 'j' },
		{ "special", no_argument, NULL, 's' },	   { "chat", optional_argument, NULL, 'c' },
		{ "template", required_argument, NULL, 't' },
		{ "raw-special", no_argument, NULL, 'r' }, { "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	*o = (struct tokenize_options){ .role = -1 };
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			o->model = optarg;
			break;
		case 'j':
			o->json = true;
			break;
		case 's':
			o->special = true;
			break;
		case 'c':
			/* The role may stand behind a space, too: nothing else could. */
			if (!optarg && optind < argc && find_role(argv[optind]) >= 0)
				optarg = argv[optind++];
			o->role = optarg ? find_role(optarg) : CHAT_USER;
			if (o->role < 0)
				return 1 + tool_usage("tokenize",
						      "--chat %s is no role; there are raw, "
						      "system, user, assistant, tool",
						      optarg);
			break;
		case 't':
			o->template = optarg;
			break;
		case 'r':
			o->raw_special = true;
			break;
		case 'h':
			fputs(tokenize_help, stdout);
			return 1 + tool_end("tokenize", STATUS_OK);
		default:
			return 1 + tool_usage("tokenize", "%s is no option, or lacks its value",
					      argv[optind - 1]);
		}
	}
	if (optind < argc)
		return 1 + tool_usage("tokenize", "'%s': the text comes on standard input",
				      argv[optind]);
	return 0;
}

/* What the options ask for, into ids. */
static int encode(const struct tokenize_options *o, const struct tokenizer *t,
		  struct tokenizer_scratch *s, const struct input *in, uint32_t *ids, size_t cap,
		  size_t *n, char *why)
{
	const char *name = o->template ? o->template : tokenizer_facts(t)->chat;
	struct chat_message m = { .text = in->data, .len = in->len, .special = o->raw_special };
	int ret;

	if (!o->special && o->role < 0)
		return tokenizer_encode(t, s, in->data, in->len,
					o->raw_special ? TOKENIZER_SPECIAL : 0, ids, cap, n);
	ret = chat_check(name, t, why, WHY_MAX);
	if (ret)
		return ret;
	m.role = o->role >= 0 ? (enum chat_role)o->role :
		 chat_roles(name) & 1u << CHAT_USER ? CHAT_USER : CHAT_RAW;
	return chat_render(name, t, s, &m, 1, false, ids, cap, n, why, WHY_MAX);
}

int tool_tokenize(int argc, char **argv)
{
	struct tokenizer_scratch *scratch = NULL;
	struct input in = { 0 };
	struct tokenize_options o;
	struct opened m;
	char why[WHY_MAX] = "";
	uint32_t *ids = NULL;
	size_t cap, n = 0;
	int status = tokenize_options(argc, argv, &o);

	if (status)
		return status - 1;
	tool_catch_signals(false);
	status = model_open("tokenize", o.model, &m);
	if (status)
		return status;
	status = read_input("tokenize", &in);
	if (status)
		goto out;
	/* A byte is a token at most; a text alone may get one in front. */
	cap = tokenizer_bound(m.t, in.len) + ROOM_FOR_TEMPLATE;
	scratch = tokenizer_scratch_new(in.len + ROOM_FOR_TEMPLATE);
	ids = malloc(cap * sizeof(*ids));
	if (!scratch || !ids) {
		status = tool_fail("tokenize", STATUS_FAILED, "no memory for %zu bytes of input",
				   in.len);
		goto out;
	}
	if (encode(&o, m.t, scratch, &in, ids, cap, &n, why))
		status = tool_fail("tokenize", STATUS_FAILED, "%s",
				   *why ? why : "the text is too long");
	else
		status = put_ids("tokenize", m.t, ids, n, o.json);
	status = tool_end("tokenize", status);
out:
	free(ids);
	free(in.data);
	tokenizer_scratch_free(scratch);
	model_close(&m);
	return status;
}

/* ---- detokenize ---------------------------------------------------------------------------- */

static const char detokenize_help[] =
	"usage: onebit detokenize --model FILE [OPTION]... <IDS\n"
	"\n"
	"The text of the ids on standard input, which spaces, newlines or commas separate.\n"
	"\n"
	"  --model FILE      a model (.obm), tokenizer.json, tokenizer.model, .htok, .gguf, or the folder\n"
	"                    of a model\n"
	"  --special         show special tokens, which otherwise give nothing\n"
	"  --bytes           the tokens' bytes as they are; otherwise what is no whole character becomes\n"
	"                    U+FFFD\n"
	"  --json            the text as a JSON object\n"
	"  --help            this\n";

struct detokenize_options {
	const char *model;
	bool json, special, bytes;
};

static int detokenize_options(int argc, char **argv, struct detokenize_options *o)
{
	static const struct option options[] = {
		{ "model", required_argument, NULL, 'm' }, { "json", no_argument, NULL, 'j' },
		{ "special", no_argument, NULL, 's' },	   { "bytes", no_argument, NULL, 'b' },
		{ "help", no_argument, NULL, 'h' },	   { NULL, 0, NULL, 0 },
	};
	int c;

	*o = (struct detokenize_options){ 0 };
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			o->model = optarg;
			break;
		case 'j':
			o->json = true;
			break;
		case 's':
			o->special = true;
			break;
		case 'b':
			o->bytes = true;
			break;
		case 'h':
			fputs(detokenize_help, stdout);
			return 1 + tool_end("detokenize", STATUS_OK);
		default:
			return 1 + tool_usage("detokenize", "%s is no option, or lacks its value",
					      argv[optind - 1]);
		}
	}
	if (optind < argc)
		return 1 + tool_usage("detokenize", "'%s': the ids come on standard input",
				      argv[optind]);
	if (o->json && o->bytes)
		return 1 + tool_usage("detokenize", "--json holds text, not any bytes; drop "
						    "--bytes");
	return 0;
}

/* The next id of the input; *at moves behind it. 1: there is one. 0: the end. Else it is said. */
static int next_id(const struct input *in, size_t *at, size_t nth, uint32_t n_tokens, uint32_t *id)
{
	size_t begin, len;
	uint64_t value = 0;

	while (*at < in->len && memchr(" \t\r\n,", in->data[*at], 5))
		++*at;
	if (*at == in->len)
		return 0;
	begin = *at;
	while (*at < in->len && !memchr(" \t\r\n,", in->data[*at], 5))
		++*at;
	len = *at - begin;
	for (size_t i = 0; i < len; i++) {
		char c = in->data[begin + i];

		if (c < '0' || c > '9') {
			tool_fail("detokenize", STATUS_FAILED,
				  "'%.*s' (number %zu) is no id: ids are whole numbers",
				  (int)(len < 40 ? len : 40), in->data + begin, nth);
			return -1;
		}
		if (value <= UINT32_MAX)
			value = value * 10 + (uint64_t)(c - '0');
	}
	if (value >= n_tokens) {
		tool_fail("detokenize", STATUS_FAILED,
			  "id %.*s (number %zu) is none of this vocabulary's, which are 0 to %u",
			  (int)(len < 40 ? len : 40), in->data + begin, nth, n_tokens - 1);
		return -1;
	}
	*id = (uint32_t)value;
	return 1;
}

static int put_text(const struct detokenize_options *o, const struct tokenizer *t,
		    const struct input *in)
{
	char *room = malloc(detok_bound(t) + 16);
	size_t at = 0, nth = 1;
	struct detok d;
	uint32_t id;
	int ret;

	if (!room)
		return tool_fail("detokenize", STATUS_FAILED, "no memory");
	/* All of them first: half a text and an error is worse than the error. */
	while ((ret = next_id(in, &at, nth, tokenizer_facts(t)->n_tokens, &id)) > 0)
		nth++;
	if (ret < 0) {
		free(room);
		return STATUS_FAILED;
	}
	at = 0;
	nth = 1;
	detok_init(&d, t);
	d.specials = o->special;
	if (o->json)
		fputs("{\"text\":\"", stdout);
	while (next_id(in, &at, nth, tokenizer_facts(t)->n_tokens, &id) > 0 && !ferror(stdout)) {
		struct tokenizer_token token = tokenizer_token(t, id);

		nth++;
		if (o->bytes) {
			if (o->special ||
			    (token.kind != VOCAB_SPECIAL && token.kind != VOCAB_UNUSED))
				fwrite(token.text, 1, token.len, stdout);
			continue;
		}
		if (o->json)
			put_json(room, detok_push(&d, t, id, room));
		else
			fwrite(room, 1, detok_push(&d, t, id, room), stdout);
	}
	if (!o->bytes) {
		size_t len = detok_flush(&d, room);

		if (o->json)
			put_json(room, len);
		else
			fwrite(room, 1, len, stdout);
	}
	if (o->json)
		printf("\",\"n\":%zu}\n", nth - 1);
	free(room);
	return STATUS_OK;
}

int tool_detokenize(int argc, char **argv)
{
	struct detokenize_options o;
	struct input in = { 0 };
	struct opened m;
	int status = detokenize_options(argc, argv, &o);

	if (status)
		return status - 1;
	tool_catch_signals(false);
	status = model_open("detokenize", o.model, &m);
	if (status)
		return status;
	status = read_input("detokenize", &in);
	if (!status)
		status = tool_end("detokenize", put_text(&o, m.t, &in));
	free(in.data);
	model_close(&m);
	return status;
}

/* SPDX-License-Identifier: MIT */
/*
 * Vocabularies for tests. The reference of merging is written from the definition: a list of
 * symbols, all pairs looked at for each merge, texts compared with texts.
 */
#include "lib_vocab.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <utf8proc.h>

/* Fuzzers use this as well, without Check. */
#define must(x) ((x) ? (void)0 : broken(#x, __LINE__, ""))

static void broken(const char *what, int line, const char *why)
{
	fprintf(stderr, "%s:%d: not so: %s %s\n", __FILE__, line, what, why);
	abort();
}

/* ---- shared data
 * ---------------------------------------------------------------------------------- */

uint8_t *shared_read(const char *name, size_t *len)
{
	const char *shared = getenv("ONEBIT_SHARED");
	size_t n = strlen(name), cap = 1 << 20, got;
	char path[512], command[600];
	uint8_t *data;
	FILE *f;

	snprintf(path, sizeof(path), "%s/tokenizer/%s", shared ? shared : "../shared", name);
	if (access(path, R_OK) != 0 || strchr(path, '\''))
		return NULL;
	snprintf(command, sizeof(command), "%s '%s'",
		 n > 3 && !strcmp(name + n - 3, ".xz") ? "xz -dc" : "cat", path);
	f = popen(command, "r"); /* NOLINT: a path of our own */
	data = malloc(cap);
	must(f && data);
	for (*len = 0; (got = fread(data + *len, 1, cap - *len - 1, f)) != 0;) {
		*len += got;
		if (*len + 1 == cap) {
			cap *= 2;
			data = realloc(data, cap);
			must(data);
		}
	}
	must(pclose(f) == 0);
	data[*len] = 0;
	return data;
}

static size_t unbase64(const char *s, size_t len, uint8_t *out)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	uint32_t bits = 0, n_bits = 0;
	size_t n = 0;

	for (size_t i = 0; i < len && s[i] != '='; i++) {
		const char *d = strchr(digits, s[i]);

		must(d && *d);
		bits = bits << 6 | (uint32_t)(d - digits);
		n_bits += 6;
		if (n_bits >= 8) {
			n_bits -= 8;
			out[n++] = (uint8_t)(bits >> n_bits);
		}
	}
	return n;
}

static void add_special(struct vocab *v, const char *text)
{
	must(vocab_add(v, text, strlen(text), VOCAB_SPECIAL, 0) == 0);
}

struct vocab *shared_llama3(void)
{
	static const char *const special[11] = {
		"<|begin_of_text|>",
		"<|end_of_text|>",
		"<|reserved_special_token_0|>",
		"<|reserved_special_token_1|>",
		"<|finetune_right_pad_id|>",
		"<|reserved_special_token_2|>",
		"<|start_header_id|>",
		"<|end_header_id|>",
		"<|eom_id|>",
		"<|eot_id|>",
		"<|python_tag|>",
	};
	uint8_t bytes[VOCAB_TOKEN_BYTES_MAX], *data;
	char name[64], why[256];
	size_t len;
	struct vocab *v;

	data = shared_read("llama3-tokenizer.model.xz", &len);
	if (!data)
		return NULL;
	v = vocab_new();
	for (char *line = (char *)data; *line; line = strchr(line, '\n') + 1)
		must(vocab_add(v, bytes, unbase64(line, strcspn(line, " "), bytes), VOCAB_NORMAL,
			       0) == 0);
	free(data);
	must(v->n_tokens == 128000);
	for (int i = 0; i < 256; i++) {
		snprintf(name, sizeof(name), "<|reserved_special_token_%d|>", i - 8);
		add_special(v, i < 11 ? special[i] : name);
	}
	v->kind = VOCAB_BYTES;
	v->rule = VOCAB_RULE_LLAMA3;
	v->flags = VOCAB_IGNORE_MERGES | VOCAB_ADD_BOS;
	v->bos = 128000;
	v->eos = 128009;
	must(vocab_stop(v, 128001) == 0);
	must(vocab_stop(v, 128009) == 0);
	strcpy(v->chat, "llama3");
	must(!vocab_derive_by_id(v, why, sizeof(why)));
	return v;
}

/* A GGUF file's metadata, read just far enough. */
struct gguf {
	const uint8_t *p;
};

static uint64_t take(struct gguf *g, int bytes)
{
	uint64_t v = 0;

	memcpy(&v, g->p, (size_t)bytes);
	g->p += bytes;
	return v;
}

static const char *take_string(struct gguf *g, size_t *len)
{
	*len = take(g, 8);
	g->p += *len;
	return (const char *)g->p - *len;
}

static void skip_value(struct gguf *g, uint64_t type)
{
	static const int size[13] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
	uint64_t n = 1;
	size_t len;

	if (type == 9) {
		type = take(g, 4);
		n = take(g, 8);
	}
	for (; n; n--) {
		if (type == 8)
			take_string(g, &len);
		else
			g->p += size[type];
	}
}

static uint32_t take_merge_part(struct vocab *v, const char *s, size_t len)
{
	uint8_t bytes[VOCAB_TOKEN_BYTES_MAX];
	int n = vocab_unmap(s, len, bytes);
	uint32_t id = vocab_find(v, bytes, (size_t)n, 1u << VOCAB_NORMAL);

	must(n > 0);
	must(id != VOCAB_NO_ID);
	return id;
}

static void take_tokens(struct gguf *g, struct vocab *v)
{
	uint8_t bytes[VOCAB_TOKEN_BYTES_MAX];
	size_t len;

	must(take(g, 4) == 8);
	for (uint64_t n = take(g, 8); n; n--) {
		const char *s = take_string(g, &len);
		int size = vocab_unmap(s, len, bytes);

		must(size > 0 && vocab_add(v, bytes, (size_t)size, VOCAB_NORMAL, 0) == 0);
	}
}

/* 3: special, whose texts are ASCII without a space, so that they are not mapped. */
static void take_kinds(struct gguf *g, struct vocab *v)
{
	must(take(g, 4) == 5);
	for (uint64_t n = take(g, 8), id = 0; id < n; id++)
		if (take(g, 4) == 3)
			v->tokens[id].kind = VOCAB_SPECIAL;
}

static void take_merges(struct gguf *g, struct vocab *v)
{
	size_t len;

	must(take(g, 4) == 8);
	for (uint64_t n = take(g, 8); n; n--) {
		const char *s = take_string(g, &len), *space = memchr(s, ' ', len);
		size_t a = (size_t)(space - s);
		uint8_t bytes[VOCAB_TOKEN_BYTES_MAX];
		int both = vocab_unmap(s, a, bytes);
		uint32_t ia = take_merge_part(v, s, a),
			 ib = take_merge_part(v, space + 1, len - a - 1);

		both += vocab_unmap(space + 1, len - a - 1, bytes + both);
		must(vocab_merge(v, ia, ib,
				 vocab_find(v, bytes, (size_t)both, 1u << VOCAB_NORMAL)) == 0);
	}
}

struct vocab *shared_gguf(const char *name, uint32_t rule)
{
	size_t len;
	uint8_t *data = shared_read(name, &len);
	struct gguf g = { data };
	struct vocab *v;
	uint64_t n;

	if (!data)
		return NULL;
	v = vocab_new();
	must(memcmp(data, "GGUF", 4) == 0);
	g.p += 8 + 8;
	for (n = take(&g, 8); n; n--) {
		const char *key = take_string(&g, &len);
		uint64_t type = take(&g, 4);

		/* tokens, then kinds, then merges: so these files are. */
		if (len == 21 && !memcmp(key, "tokenizer.ggml.tokens", len))
			take_tokens(&g, v);
		else if (len == 25 && !memcmp(key, "tokenizer.ggml.token_type", len))
			take_kinds(&g, v);
		else if (len == 21 && !memcmp(key, "tokenizer.ggml.merges", len))
			take_merges(&g, v);
		else
			skip_value(&g, type);
	}
	free(data);
	v->kind = VOCAB_BYTES;
	v->rule = rule;
	return v;
}

/* ---- random -------------------------------------------------------------------------------------
 */

uint64_t test_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

uint64_t test_seed(const char *what)
{
	const char *s = getenv("ONEBIT_SEED");
	struct timespec now;
	uint64_t seed;

	clock_gettime(CLOCK_REALTIME, &now);
	seed = s ? strtoull(s, NULL, 0)
		 : (uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec;
	fprintf(stderr, "%s: ONEBIT_SEED=%" PRIu64 "\n", what, seed);
	return seed;
}

uint64_t test_scaled(uint64_t n)
{
	const char *s = getenv("ONEBIT_SCALE");
	uint64_t percent = s ? strtoull(s, NULL, 0) : 100;

	return n * percent / 100 ? n * percent / 100 : 1;
}

/* ---- small vocabularies
 * --------------------------------------------------------------------------- */

/* Words that are not there yet, of entries first to n_tokens; 0 when it was a word before. */
static int add_word(struct vocab *v, uint64_t *rng, uint32_t first)
{
	uint32_t n = v->n_tokens - first;
	uint32_t a = first + (uint32_t)(test_random(rng) % n),
		 b = first + (uint32_t)(test_random(rng) % n);
	const struct vocab_token ta = v->tokens[a], tb = v->tokens[b];
	uint8_t text[64];

	if (ta.len + tb.len > sizeof(text) || ta.kind != VOCAB_NORMAL || tb.kind != VOCAB_NORMAL)
		return 0;
	memcpy(text, ta.text, ta.len);
	memcpy(text + ta.len, tb.text, tb.len);
	if (vocab_find(v, text, ta.len + tb.len, 1u << VOCAB_NORMAL) != VOCAB_NO_ID)
		return 0;
	/* Few scores, so that many are equal. */
	must(vocab_add(v, text, ta.len + tb.len, VOCAB_NORMAL, -(float)(test_random(rng) % 40)) ==
	     0);
	if (v->kind == VOCAB_BYTES)
		must(vocab_merge(v, a, b, v->n_tokens - 1) == 0);
	return 1;
}

struct vocab *small_bytes(uint64_t *rng, uint32_t n_words, uint32_t rule, uint32_t flags)
{
	struct vocab *v = vocab_new();
	uint8_t order[256];

	v->kind = VOCAB_BYTES;
	v->rule = rule;
	v->flags = flags;
	for (unsigned i = 0; i < 256; i++)
		order[i] = (uint8_t)i;
	for (unsigned i = 255; i; i--) {
		unsigned k = (unsigned)(test_random(rng) % (i + 1));
		uint8_t byte = order[i];

		order[i] = order[k];
		order[k] = byte;
	}
	/* The bytes that words are made of come last, so that they are drawn together with words.
	 */
	for (unsigned i = 0; i < 256; i++)
		if (!strchr("aben 1'\n", order[i]) || !order[i])
			must(vocab_add(v, &order[i], 1, VOCAB_NORMAL, 0) == 0);
	for (const char *c = "ab en1'\n"; *c; c++)
		must(vocab_add(v, c, 1, VOCAB_NORMAL, 0) == 0);
	for (uint32_t n = 0, tries = 0; n < n_words && tries < 100 * n_words; tries++)
		n += (uint32_t)add_word(v, rng, 248);
	v->bos = v->n_tokens;
	add_special(v, "<s>");
	add_special(v, "<stop>");
	add_special(v, "<s><s>");
	v->eos = v->bos + 1;
	must(vocab_stop(v, v->eos) == 0);
	return v;
}

struct vocab *small_spm(uint64_t *rng, uint32_t n_words, bool bytes, uint32_t flags)
{
	static const char *const letter[] = {
		" ", "a", "b", "e", "n", "\xc3\xa9", "\xe4\xbd\xa0", "\xf0\x9f\xa6\x99"
	};
	struct vocab *v = vocab_new();
	char why[256];
	uint32_t first;

	v->kind = VOCAB_SPM;
	v->flags = flags;
	add_special(v, "<unk>");
	add_special(v, "<s>");
	add_special(v, "</s>");
	v->unk = 0;
	v->bos = 1;
	v->eos = 2;
	for (unsigned i = 0; i < 256 && bytes; i++)
		must(vocab_add(v, &(uint8_t){ (uint8_t)i }, 1, VOCAB_BYTE, 0) == 0);
	first = v->n_tokens;
	for (unsigned i = 0; i < sizeof(letter) / sizeof(letter[0]); i++)
		must(vocab_add(v, letter[i], strlen(letter[i]), VOCAB_NORMAL, -100) == 0);
	for (uint32_t n = 0, tries = 0; n < n_words && tries < 100 * n_words; tries++)
		n += (uint32_t)add_word(v, rng, first);
	/* x and U+00E8 are no entries, but parts of one; so is xa, which has no way of its own to
	 * it. */
	must(vocab_add(v, "x\xc3\xa8", 3, VOCAB_NORMAL, -3) == 0);
	must(vocab_add(v, "ax", 2, VOCAB_NORMAL, -5) == 0);
	must(!vocab_derive_by_score(v, why, sizeof(why)));
	return v;
}

struct vocab *dense_vocab(uint64_t *rng, uint32_t kind, uint32_t n_words)
{
	struct vocab *v = vocab_new();
	char why[256];

	v->kind = kind;
	for (unsigned i = 0; i < 256; i++)
		if (kind == VOCAB_SPM || (i != 'a' && i != 'b'))
			must(vocab_add(v, &(uint8_t){ (uint8_t)i }, 1,
				       kind == VOCAB_SPM ? VOCAB_BYTE : VOCAB_NORMAL, 0) == 0);
	must(vocab_add(v, "a", 1, VOCAB_NORMAL, 0) == 0 &&
	     vocab_add(v, "b", 1, VOCAB_NORMAL, 0) == 0);
	for (uint32_t n = 0, tries = 0; n < n_words && tries < 100 * n_words; tries++)
		n += (uint32_t)add_word(v, rng, kind == VOCAB_SPM ? 256 : 254);
	if (kind == VOCAB_SPM) {
		for (uint32_t id = 0; id < v->n_tokens; id++)
			v->tokens[id].score = (float)(int)(v->tokens[id].score / 10);
		must(!vocab_derive_by_score(v, why, sizeof(why)));
	}
	return v;
}

void add_whole(struct vocab *v)
{
	static const char *const text[] = {
		"  ", "   ", "     ", "                        ", "ab", "abb", "bn", "n\n", "\n ", "1",
		"\xc3\xa9", "b\xc3\xa9", "\xea\xb0\x80", "\xea\xb0\x80\xea\xb0\x81", "\xcc\x96", "e 'e",
	};

	for (size_t i = 0; i < sizeof(text) / sizeof(text[0]); i++)
		must(vocab_add(v, text[i], strlen(text[i]), VOCAB_ADDED, 0) == 0);
}

struct tokenizer *open_vocab(struct vocab *v, void **section, size_t *bytes)
{
	struct tokenizer *t;
	char why[256] = "";
	int err = vocab_build(v, v->n_tokens, section, bytes, why, sizeof(why));

	if (err)
		broken("a tokenizer", __LINE__, why);
	err = tokenizer_open(*section, *bytes, &t, why, sizeof(why));
	if (err)
		broken("a tokenizer", __LINE__, why);
	return t;
}

/* ---- form C, the plain way
 * --------------------------------------------------------------------- */

size_t reference_nfc(const uint8_t *p, size_t len, uint8_t *out)
{
	size_t n = 0, at = 0;

	while (at < len) {
		size_t to = at;
		utf8proc_int32_t c;
		utf8proc_ssize_t k;

		while (to < len && (k = utf8proc_iterate(p + to, (utf8proc_ssize_t)(len - to), &c)) > 0)
			to += (size_t)k;
		if (to > at) {
			uint8_t *whole = NULL;

			k = utf8proc_map(p + at, (utf8proc_ssize_t)(to - at), &whole,
					 UTF8PROC_STABLE | UTF8PROC_COMPOSE);
			must(k >= 0 && n + (size_t)k <= 3 * len);
			memcpy(out + n, whole, (size_t)k);
			n += (size_t)k;
			free(whole);
		} else {
			out[n++] = p[to++];
		}
		at = to;
	}
	return n;
}

/* ---- the definition of merging
 * --------------------------------------------------------------------- */

/* Of neighbours with texts a and b: whether they merge, how early, into what. */
static bool merge_of(struct vocab *v, uint32_t ida, uint32_t idb, const uint8_t *text, size_t len,
		     double *order, uint32_t *into)
{
	if (v->kind == VOCAB_SPM) {
		*into = vocab_find(v, text, len, 1u << VOCAB_NORMAL);
		if (*into != VOCAB_NO_ID)
			*order = -(double)v->tokens[*into].score;
		return *into != VOCAB_NO_ID;
	}
	for (uint32_t i = 0; i < v->n_merges; i++) {
		if (v->merges[i].a == ida && v->merges[i].b == idb) {
			*order = v->merges[i].rank;
			*into = v->merges[i].merged;
			return true;
		}
	}
	return false;
}

static size_t first_symbol(struct vocab *v, const uint8_t *p, size_t len, uint32_t *id)
{
	size_t n = 1, whole = *p < 0xc0 ? 1 : *p < 0xe0 ? 2 : *p < 0xf0 ? 3 : 4;

	if (v->kind == VOCAB_SPM)
		while (n < whole && n < len && (p[n] & 0xc0) == 0x80)
			n++;
	n = n == whole ? n : 1;
	*id = vocab_find(v, p, n, 1u << VOCAB_NORMAL);
	return n;
}

size_t reference_piece(struct vocab *v, const uint8_t *p, size_t len, uint32_t *ids)
{
	struct {
		uint32_t id;
		size_t at;
	} *s = calloc(len + 2, sizeof(*s));
	size_t n = 0, out = 0;

	for (size_t at = 0; at < len; n++) {
		s[n].at = at;
		at += first_symbol(v, p + at, len - at, &s[n].id);
	}
	s[n].at = len;
	for (;;) {
		size_t best = n;
		double least = 0, order;
		uint32_t into = VOCAB_NO_ID, id;

		for (size_t i = 0; i + 1 < n; i++) {
			if (merge_of(v, s[i].id, s[i + 1].id, p + s[i].at, s[i + 2].at - s[i].at,
				     &order, &id) &&
			    (best == n || order < least)) {
				best = i;
				least = order;
				into = id;
			}
		}
		if (best == n)
			break;
		s[best].id = into;
		memmove(&s[best + 1], &s[best + 2], (n - best - 1) * sizeof(*s));
		n--;
	}
	for (size_t i = 0; i < n; i++) {
		if (s[i].id != VOCAB_NO_ID) {
			ids[out++] = s[i].id;
			continue;
		}
		if (vocab_find(v, "a", 1, 1u << VOCAB_BYTE) == VOCAB_NO_ID) {
			if (!out || ids[out - 1] != v->unk)
				ids[out++] = v->unk;
			continue;
		}
		for (size_t k = s[i].at; k < s[i + 1].at; k++)
			ids[out++] = vocab_find(v, p + k, 1, 1u << VOCAB_BYTE);
	}
	free(s);
	return out;
}

/* SPDX-License-Identifier: MIT */
/*
 * Opening a section: everything that encoding and decoding will believe is checked here, once.
 * Counts within their bounds, so that the layout follows from them; texts inside the blob; ids that
 * exist; tables whose lookups end. What a table says beyond that (a rank, which bytes join) can
 * make other ids of a text, but nothing worse; that it is what the converter wrote is the
 * container's to check.
 *
 * It is the start-up path: one pass over each part, in the order it lies.
 */
#include "tokenizer.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include "bpe.h"
#include "nfc.h"
#include "utf8.h"

static atomic_uint_least64_t serials;

static int refuse(char *why, size_t why_len, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

static int refuse(char *why, size_t why_len, const char *format, ...)
{
	int n = snprintf(why, why_len, "the tokenizer is damaged: ");
	va_list args;

	if (n > 0 && (size_t)n < why_len) {
		va_start(args, format);
		vsnprintf(why + n, why_len - (size_t)n, format, args);
		va_end(args);
	}
	return -EPROTO;
}

static bool id_or_none(uint32_t id, uint32_t n)
{
	return id < n || id == VOCAB_NO_ID;
}

static int check_header(const struct tokenizer_header *h, size_t bytes, char *why, size_t why_len)
{
	if (memcmp(h->magic, TOKENIZER_MAGIC, sizeof(h->magic)) != 0)
		return refuse(why, why_len, "it does not begin with " TOKENIZER_MAGIC);
	if (h->version != TOKENIZER_VERSION) {
		snprintf(why, why_len,
			 "the tokenizer is of version %u; this program knows version %u: convert "
			 "the model again",
			 h->version, TOKENIZER_VERSION);
		return -EPROTO;
	}
	if (!h->n_tokens || h->n_tokens > h->n_symbols || h->n_symbols > VOCAB_TOKENS_MAX)
		return refuse(why, why_len, "%u tokens, %u with hidden ones", h->n_tokens,
			      h->n_symbols);
	if (h->n_specials > h->n_tokens || h->n_added > h->n_tokens || h->n_merges > VOCAB_MERGES_MAX ||
	    h->n_words >= h->word_slots || h->n_merges >= h->pair_slots ||
	    h->word_slots > 16 * VOCAB_TOKENS_MAX || h->pair_slots > 16 * VOCAB_MERGES_MAX ||
	    h->text_bytes >= TOKENIZER_TEXT_MAX)
		return refuse(why, why_len,
			      "%u special tokens, %u added ones, %u words in %u slots, %u merges "
			      "in %u, %u bytes of text",
			      h->n_specials, h->n_added, h->n_words, h->word_slots, h->n_merges, h->pair_slots,
			      h->text_bytes);
	if (bytes != h->bytes || tokenizer_layout(h).end != bytes)
		return refuse(why, why_len,
			      "it has %zu bytes, says %u, and what it holds takes %zu", bytes,
			      h->bytes, tokenizer_layout(h).end);
	if ((h->kind != VOCAB_BYTES && h->kind != VOCAB_SPM) || h->rule >= VOCAB_RULE_COUNT ||
	    (h->kind == VOCAB_SPM && h->rule != VOCAB_RULE_NONE) || h->flags & ~VOCAB_FLAGS_ALL ||
	    h->flags & (h->kind == VOCAB_SPM ? VOCAB_IGNORE_MERGES | VOCAB_NFC
						 : VOCAB_DUMMY_PREFIX))
		return refuse(why, why_len, "kind %u, rule %u, flags %#x", h->kind, h->rule,
			      h->flags);
	if (!id_or_none(h->bos, h->n_tokens) || !id_or_none(h->eos, h->n_tokens) ||
	    !id_or_none(h->unk, h->n_tokens))
		return refuse(why, why_len, "bos %u, eos %u, unk %u of %u tokens", h->bos, h->eos,
			      h->unk, h->n_tokens);
	if (h->n_stops > VOCAB_STOPS_MAX)
		return refuse(why, why_len, "%u tokens end an answer", h->n_stops);
	for (uint32_t i = 0; i < h->n_stops; i++)
		if (h->stops[i] >= h->n_tokens)
			return refuse(why, why_len, "token %u of %u ends an answer", h->stops[i],
				      h->n_tokens);
	if (!memchr(h->chat, 0, sizeof(h->chat)))
		return refuse(why, why_len, "the chat template's name does not end");
	for (size_t i = 0; i < sizeof(h->reserved) / sizeof(h->reserved[0]); i++)
		if (h->reserved[i])
			return refuse(why, why_len, "reserved word %zu is %u", i, h->reserved[i]);
	return 0;
}

/* Texts lie inside the blob, one behind the other. Ordinary ones are not empty; bytes are one byte.
 */
static int check_tokens(const struct tokenizer *t, const struct tokenizer_header *h,
			uint64_t *normal, char *why, size_t why_len)
{
	const uint32_t mask = TOKENIZER_TEXT_MAX - 1;
	uint32_t longest = 0, n_specials = 0, n_added = 0, from = t->tokens[0] & mask;

	if (from)
		return refuse(why, why_len, "the first text begins at %u", from);
	for (uint32_t id = 0; id < h->n_symbols; id++) {
		uint32_t kind = symbol_kind(t, id), to = t->tokens[id + 1] & mask, len = to - from;

		if (to < from || len > VOCAB_TOKEN_BYTES_MAX || to > h->text_bytes)
			return refuse(why, why_len, "token %u's text is from %u to %u of %u bytes",
				      id, from, to, h->text_bytes);
		if (kind >= VOCAB_KINDS || (!len && kind != VOCAB_UNUSED) ||
		    (kind == VOCAB_BYTE && len != 1) ||
		    (kind == VOCAB_ADDED &&
		     (h->kind != VOCAB_BYTES || len > VOCAB_ADDED_BYTES_MAX)) ||
		    (id >= h->n_tokens && kind != VOCAB_UNUSED))
			return refuse(why, why_len, "token %u is of kind %u and has %u bytes", id,
				      kind, len);
		normal[id / 64] |= (uint64_t)(kind == VOCAB_NORMAL) << id % 64;
		n_specials += kind == VOCAB_SPECIAL;
		n_added += kind == VOCAB_ADDED;
		longest = len > longest ? len : longest;
		from = to;
	}
	if (from != h->text_bytes || longest != h->longest || n_specials != h->n_specials ||
	    n_added != h->n_added)
		return refuse(why, why_len,
			      "%u bytes of text, the longest %u, %u special tokens, %u added ones, "
			      "not %u, %u, %u, %u",
			      from, longest, n_specials, n_added, h->text_bytes, h->longest,
			      h->n_specials, h->n_added);
	return 0;
}

static int check_bytes(struct tokenizer *t, const struct tokenizer_header *h, char *why,
		       size_t why_len)
{
	uint32_t kind = h->kind == VOCAB_SPM ? VOCAB_BYTE : VOCAB_NORMAL, len;

	t->all_bytes = true;
	for (uint32_t b = 0; b < 256; b++) {
		uint32_t id = t->byte_id[b];

		if (id == VOCAB_NO_ID &&
		    (h->kind == VOCAB_SPM ? h->unk != VOCAB_NO_ID : utf8_never(b))) {
			t->all_bytes = false;
			continue;
		}
		if (id >= h->n_tokens || symbol_kind(t, id) != kind ||
		    *symbol_text(t, id, &len) != b || len != 1)
			return refuse(why, why_len,
				      "byte %#04x is token %u, which is not that byte", b, id);
	}
	return 0;
}

static int text_order(const struct tokenizer *t, uint32_t a, uint32_t b)
{
	uint32_t na, nb;
	const uint8_t *ta = symbol_text(t, a, &na), *tb = symbol_text(t, b, &nb);
	int order = memcmp(ta, tb, na < nb ? na : nb);

	if (!order)
		order = (na > nb) - (na < nb);
	return order ? order : (a > b) - (a < b);
}

/* Each token of the kind once: as many as there are, all different. */
static int check_texts(const struct tokenizer *t, struct texts *x, uint32_t kind, char *why,
		       size_t why_len)
{
	const char *name = kind == VOCAB_SPECIAL ? "special" : "added";

	for (uint32_t i = 0; i < x->n; i++) {
		uint32_t id = x->ids[i], len;
		const uint8_t *text;

		if (id >= t->facts.n_tokens || symbol_kind(t, id) != kind)
			return refuse(why, why_len, "token %u stands among the %s ones", id, name);
		if (i && text_order(t, x->ids[i - 1], id) >= 0)
			return refuse(why, why_len, "%s token %u is out of order", name, id);
		text = symbol_text(t, id, &len);
		x->first[text[0] / 32] |= 1u << text[0] % 32;
		if (len == 1)
			x->alone[text[0] / 32] |= 1u << text[0] % 32;
		else
			x->second[text[1] / 32] |= 1u << text[1] % 32;
	}
	return 0;
}

/* Texts lie anywhere, seen from the table; asked for some slots ahead they are there in time. */
static void fetch_ahead(const struct tokenizer *t, uint32_t i)
{
	enum { AHEAD = 24 };
	uint32_t far = i + 2 * AHEAD, near = i + AHEAD, id;

	if (far >= t->word_slots)
		return;
	id = t->words[far] & TOKENIZER_ID_MASK;
	if (id < t->n_symbols)
		__builtin_prefetch(&t->tokens[id]);
	id = t->words[near] & TOKENIZER_ID_MASK;
	if (id < t->n_symbols)
		__builtin_prefetch(t->text + (t->tokens[id] & (TOKENIZER_TEXT_MAX - 1)));
}

/* Each slot's text is found, by a lookup that ends; and there are as many as the header says. */
static int check_words(const struct tokenizer *t, const struct tokenizer_header *h, char *why,
		       size_t why_len)
{
	uint32_t run = 0, first_run = 0, n = 0;

	for (uint32_t i = 0; i < h->word_slots; i++) {
		uint32_t id = t->words[i] & TOKENIZER_ID_MASK, len, from;
		const uint8_t *text;
		uint64_t hash;

		fetch_ahead(t, i);
		if (t->words[i] == WORD_EMPTY) {
			first_run = run == i ? run : first_run;
			run = 0;
			continue;
		}
		if (++run > TOKENIZER_RUN_MAX)
			return refuse(why, why_len, "words fill their table from %u on",
				      i - run + 1);
		if (id >= h->n_symbols || (id < h->n_tokens && symbol_kind(t, id) != VOCAB_NORMAL))
			return refuse(why, why_len, "word %u is token %u, which no text may become",
				      i, id);
		text = symbol_text(t, id, &len);
		hash = tokenizer_hash(text, len, TOKENIZER_TEXT_TAIL);
		from = tokenizer_home(hash, h->word_slots);
		/* Between its home and here all is full: it is found. */
		if (tokenizer_word(hash, id) != t->words[i] ||
		    (from <= i ? i - from >= run : i + h->word_slots - from > TOKENIZER_RUN_MAX))
			return refuse(why, why_len,
				      "word %u, token %u, is not where its text leads", i, id);
		n++;
	}
	if (n != h->n_words || run + first_run > TOKENIZER_RUN_MAX)
		return refuse(why, why_len, "%u words, not %u", n, h->n_words);
	return 0;
}

/*
 * No branch depends on a slot: which ones are full cannot be foretold, and a wrong guess costs more
 * than the check. normal has a bit per token that text may become.
 */
static int check_pairs(const struct tokenizer *t, const struct tokenizer_header *h,
		       const uint64_t *normal, char *why, size_t why_len)
{
	const uint32_t mask = TOKENIZER_ID_MASK, n_symbols = h->n_symbols;
	uint32_t run = 0, longest = 0, head = h->pair_slots, n = 0, bad = 0;

	for (uint32_t i = 0; i < h->pair_slots; i++) {
		const struct tokenizer_pair *p = &t->pairs[i];
		uint64_t ids = p->ids_low | (uint64_t)p->ids_high << 32;
		uint32_t a = ids & mask, b = ids >> TOKENIZER_ID_BITS & mask;
		uint32_t into = (uint32_t)(ids >> 2 * TOKENIZER_ID_BITS),
			 full = p->rank != UINT32_MAX;

		bad |= full & ((a >= n_symbols) | (b >= n_symbols) | (into > mask) |
			       !(normal[(into & mask) / 64] >> into % 64 & 1));
		run = (run + 1) & -full;
		longest = run > longest ? run : longest;
		head = !full && i < head ? i : head;
		n += full;
	}
	if (bad)
		return refuse(why, why_len, "a merge is of tokens that no text may become");
	if (n != h->n_merges || longest > TOKENIZER_RUN_MAX || run + head > TOKENIZER_RUN_MAX)
		return refuse(why, why_len, "%u merges, not %u, or crowded (%u in a row)", n,
			      h->n_merges, longest > run + head ? longest : run + head);
	return 0;
}

static void set_facts(struct tokenizer *t, const struct tokenizer_header *h)
{
	t->facts = (struct tokenizer_facts){
		.kind = h->kind,
		.rule = h->rule,
		.flags = h->flags,
		.n_tokens = h->n_tokens,
		.n_merges = h->n_merges,
		.n_specials = h->n_specials,
		.n_added = h->n_added,
		.bos = h->bos,
		.eos = h->eos,
		.unk = h->unk,
		.n_stops = h->n_stops,
		.stops = h->stops,
		.chat = h->chat,
		.longest = h->longest,
	};
}

int tokenizer_open(const void *section, size_t bytes, struct tokenizer **out, char *why,
		   size_t why_len)
{
	const struct tokenizer_header *h = section;
	struct tokenizer_layout l;
	struct tokenizer *t;
	uint64_t *normal;
	int err;

	if (bytes < sizeof(*h) || (uintptr_t)section % sizeof(uint64_t))
		return refuse(why, why_len, "it has %zu bytes, too few or not aligned", bytes);
	err = check_header(h, bytes, why, why_len);
	if (err)
		return err;
	t = calloc(1, sizeof(*t));
	normal = calloc(VOCAB_TOKENS_MAX / 64, sizeof(*normal));
	if (!t || !normal) {
		free(t);
		free(normal);
		snprintf(why, why_len, "no memory for the tokenizer");
		return -ENOMEM;
	}
	l = tokenizer_layout(h);
	t->base = section;
	t->byte_id = (const uint32_t *)(const void *)(t->base + l.bytes);
	t->joints = t->base + l.joints;
	t->tokens = (const uint32_t *)(const void *)(t->base + l.tokens);
	t->specials = (struct texts){ (const uint32_t *)(const void *)(t->base + l.specials),
				      h->n_specials, { 0 }, { 0 }, { 0 } };
	t->added = (struct texts){ (const uint32_t *)(const void *)(t->base + l.added), h->n_added,
				   { 0 }, { 0 }, { 0 } };
	t->words = (const uint32_t *)(const void *)(t->base + l.words);
	t->pairs = (const struct tokenizer_pair *)(const void *)(t->base + l.pairs);
	t->text = t->base + l.text;
	t->n_symbols = h->n_symbols;
	t->word_slots = h->word_slots;
	t->pair_slots = h->pair_slots;
	t->serial = atomic_fetch_add_explicit(&serials, 1, memory_order_relaxed) + 1;
	set_facts(t, h);
	err = check_tokens(t, h, normal, why, why_len);
	if (!err)
		err = check_bytes(t, h, why, why_len);
	if (!err)
		err = check_texts(t, &t->specials, VOCAB_SPECIAL, why, why_len);
	if (!err)
		err = check_texts(t, &t->added, VOCAB_ADDED, why, why_len);
	if (!err)
		err = check_words(t, h, why, why_len);
	if (!err)
		err = check_pairs(t, h, normal, why, why_len);
	free(normal);
	if (err) {
		free(t);
		return err;
	}
	*out = t;
	return 0;
}

struct tokenizer *tokenizer_close(struct tokenizer *t)
{
	free(t);
	return NULL;
}

struct tokenizer_token tokenizer_token(const struct tokenizer *t, uint32_t id)
{
	struct tokenizer_token token = { t->text, 0, VOCAB_UNUSED };

	if (id < t->facts.n_tokens) {
		token.text = symbol_text(t, id, &token.len);
		token.kind = symbol_kind(t, id);
	}
	return token;
}

const struct tokenizer_facts *tokenizer_facts(const struct tokenizer *t)
{
	return &t->facts;
}

bool tokenizer_is_stop(const struct tokenizer *t, uint32_t id)
{
	for (uint32_t i = 0; i < t->facts.n_stops; i++)
		if (t->facts.stops[i] == id)
			return true;
	return false;
}

/* Where in the order of specials the first one is that a text of n given bytes is not behind. */
static uint32_t special_from(const struct tokenizer *t, const uint8_t *text, size_t n)
{
	uint32_t low = 0, high = t->facts.n_specials, len;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const uint8_t *s = symbol_text(t, t->specials.ids[middle], &len);
		int order = memcmp(s, text, len < n ? len : n);

		if (order < 0 || (order == 0 && len < n))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

size_t tokenizer_bound(const struct tokenizer *t, size_t len)
{
	return (t->facts.flags & VOCAB_NFC ? NFC_GROWTH * len : len) + 2;
}

uint32_t tokenizer_special(const struct tokenizer *t, const char *text, size_t len)
{
	uint32_t at = special_from(t, (const uint8_t *)text, len), n;
	const uint8_t *s;

	if (!len || at == t->facts.n_specials)
		return VOCAB_NO_ID;
	s = symbol_text(t, t->specials.ids[at], &n);
	return n == len && memcmp(s, text, len) == 0 ? t->specials.ids[at] : VOCAB_NO_ID;
}

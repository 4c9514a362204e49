/* SPDX-License-Identifier: MIT */
/*
 * Text to tokens. A text is cut into stretches between special tokens (only where they are asked
 * for), a stretch into pieces by the vocabulary's rule, and a piece becomes tokens. Of the pieces
 * of prose nearly all are words seen before: a small cache, keyed by a word's bytes themselves,
 * holds their ids. Next come the words that are one token, a lookup in the section; what is left is
 * merged.
 *
 * A vocabulary may want its text in NFC first, and have tokens that are taken whole wherever they
 * stand in it: what lies between these is cut by the rule, each stretch by itself.
 *
 * A long piece is cut before merging where no token reaches across, and so is a whole SentencePiece
 * text, which has no rule: these cuts change nothing in the result and keep the pieces small.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "bpe.h"
#include "nfc.h"
#include "pretok.h"
#include "tokenizer.h"

enum { CACHE_BITS = 14, CACHE_IDS = 4, LONG_PIECE = 32 };

/*
 * Two to a cache line. A key is never zero, so an untouched entry holds nothing. How many ids there
 * are stands above the first one's bits.
 */
struct cached {
	struct tokenizer_key key;
	uint32_t ids[CACHE_IDS];
};
_Static_assert(sizeof(struct cached) == 32, "half a cache line");

struct tokenizer_scratch {
	size_t max_bytes;
	void *map;
	size_t map_bytes;
	struct cached *cache; /* 1 << CACHE_BITS, of the tokenizer with this serial number */
	uint64_t serial;
	struct bpe_room room;
	struct nfc_room nfc;
	uint8_t *text; /* as it is encoded: VOCAB_SPM, VOCAB_NFC */
};

/* A text may get a space, or grow in NFC; the room has two entries a byte, by 32-bit numbers. */
#define SCRATCH_MAX ((size_t)1 << 29)
_Static_assert(2 * NFC_GROWTH * (SCRATCH_MAX + 2) < UINT32_MAX, "entries have numbers");

struct tokenizer_scratch *tokenizer_scratch_new(size_t max_bytes)
{
	struct tokenizer_scratch *s;
	size_t at = 0, n = NFC_GROWTH * max_bytes + 2, codes = nfc_room(max_bytes);
	size_t cache, node, entry, run, heap, text, code, sorted;

	if (max_bytes > SCRATCH_MAX)
		return NULL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	cache = tokenizer_part(&at, sizeof(struct cached) << CACHE_BITS);
	node = tokenizer_part(&at, n * sizeof(struct bpe_node));
	entry = tokenizer_part(&at, 2 * n * sizeof(struct bpe_entry));
	run = tokenizer_part(&at, 2 * n * sizeof(struct bpe_run));
	heap = tokenizer_part(&at, 2 * n * sizeof(struct bpe_heap));
	text = tokenizer_part(&at, n);
	code = tokenizer_part(&at, codes * sizeof(int32_t));
	sorted = tokenizer_part(&at, codes * sizeof(int32_t));
	s->max_bytes = max_bytes;
	s->map_bytes = at;
	s->map = mmap(NULL, at, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		      -1, 0);
	if (s->map == MAP_FAILED) {
		free(s);
		return NULL;
	}
	s->cache = (void *)((uint8_t *)s->map + cache);
	s->room.node = (void *)((uint8_t *)s->map + node);
	s->room.entry = (void *)((uint8_t *)s->map + entry);
	s->room.run = (void *)((uint8_t *)s->map + run);
	s->room.heap = (void *)((uint8_t *)s->map + heap);
	s->text = (uint8_t *)s->map + text;
	s->nfc.code = (void *)((uint8_t *)s->map + code);
	s->nfc.sorted = (void *)((uint8_t *)s->map + sorted);
	return s;
}

struct tokenizer_scratch *tokenizer_scratch_free(struct tokenizer_scratch *s)
{
	if (s) {
		munmap(s->map, s->map_bytes);
		free(s);
	}
	return NULL;
}

struct encoder {
	const struct tokenizer *t;
	struct tokenizer_scratch *s;
	struct bpe_out out;
	bool by_joints; /* joints are the rule */
};

/* Up to the first byte behind which a text may be cut. */
static size_t to_joint(const struct tokenizer *t, const uint8_t *p, size_t len)
{
	bool whole = t->facts.kind == VOCAB_SPM; /* code points stay whole */

	for (size_t i = 1; i < len; i++)
		if (is_joint(t, p[i - 1], p[i]) && !(whole && (p[i] & 0xc0) == 0x80))
			return i;
	return len;
}

/* By merging; a piece that is cut first gives the same. */
static void merge_piece(struct encoder *e, const uint8_t *p, size_t len)
{
	if (len <= LONG_PIECE || e->by_joints) {
		bpe_merge(e->t, &e->s->room, p, len, &e->out);
		return;
	}
	while (len) {
		size_t n = to_joint(e->t, p, len);

		bpe_merge(e->t, &e->s->room, p, n, &e->out);
		p += n;
		len -= n;
	}
}

static void encode_long(struct encoder *e, const uint8_t *p, size_t len)
{
	uint32_t id = VOCAB_NO_ID;

	if (len <= e->t->facts.longest)
		id = bpe_word(e->t, tokenizer_hash(p, len, len), p, len);
	if (id != VOCAB_NO_ID)
		bpe_emit(e->t, id, p, len, &e->out);
	else
		merge_piece(e, p, len);
}

static void encode_short(struct encoder *e, const uint8_t *p, size_t len, size_t readable)
{
	struct tokenizer_key key = tokenizer_key(p, len, readable);
	uint64_t hash = tokenizer_key_hash(key);
	struct cached *c = &e->s->cache[hash & ((1u << CACHE_BITS) - 1)];
	struct bpe_out *out = &e->out;
	size_t before = out->n;
	uint32_t id;

	if (c->key.low == key.low && c->key.high == key.high && out->n + CACHE_IDS <= out->cap) {
		memcpy(out->ids + out->n, c->ids, sizeof(c->ids));
		out->ids[out->n] &= TOKENIZER_ID_MASK;
		out->n += c->ids[0] >> TOKENIZER_ID_BITS;
		out->last = out->ids[out->n - 1];
		return;
	}
	out->unknown = false;
	id = bpe_word(e->t, hash, p, len);
	if (id != VOCAB_NO_ID)
		bpe_emit(e->t, id, p, len, out);
	else
		merge_piece(e, p, len);
	/* What is not there whole, or depends on the piece before, is not kept; nor is nothing. */
	if (out->n > out->cap || out->n - before > CACHE_IDS || out->n == before || out->unknown)
		return;
	c->key = key;
	memcpy(c->ids, out->ids + before, (out->n - before) * sizeof(c->ids[0]));
	c->ids[0] |= (uint32_t)(out->n - before) << TOKENIZER_ID_BITS;
}

static void encode_pieces(struct encoder *e, const uint8_t *p, size_t len)
{
	uint32_t rule = e->t->facts.rule;

	while (len) {
		size_t n = e->by_joints ? to_joint(e->t, p, len) : pretok_next(rule, p, len);

		if (n <= TOKENIZER_KEY_MAX)
			encode_short(e, p, n, len);
		else
			encode_long(e, p, n);
		p += n;
		len -= n;
	}
}

/* SentencePiece sees a space and U+2581 as the same. */
static size_t spell(const uint8_t *p, size_t len, uint8_t *out)
{
	size_t n = 0;

	while (len) {
		const uint8_t *mark = memchr(p, 0xe2, len);
		size_t plain = mark ? (size_t)(mark - p) : len;

		memcpy(out + n, p, plain);
		n += plain;
		p += plain;
		len -= plain;
		if (len >= 3 && p[1] == 0x96 && p[2] == 0x81) {
			out[n++] = ' ';
			p += 3;
			len -= 3;
		} else if (len) {
			out[n++] = *p++;
			len--;
		}
	}
	return n;
}

/* Of the texts from low to high, which agree in their first i bytes and are longer: the first
 * whose next byte is not below this one. */
static uint32_t narrow(const struct tokenizer *t, const struct texts *x, uint32_t low,
		       uint32_t high, size_t i, unsigned byte)
{
	uint32_t size;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;

		if (symbol_text(t, x->ids[middle], &size)[i] < byte)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool has(const uint32_t set[8], uint8_t byte)
{
	return set[byte / 32] >> byte % 32 & 1;
}

/* The token with the longest text that p begins with. */
static uint32_t text_at(const struct tokenizer *t, const struct texts *x, const uint8_t *p,
			size_t len, size_t *n)
{
	uint32_t low = 0, high = x->n, found = VOCAB_NO_ID, size;

	if (!has(x->alone, p[0]) && (len < 2 || !has(x->second, p[1])))
		return VOCAB_NO_ID;
	/* Those that agree with p in the first i bytes, those that end there first. */
	for (size_t i = 0; low < high; i++) {
		for (; low < high && (symbol_text(t, x->ids[low], &size), size == i); low++) {
			if (*n != i || found == VOCAB_NO_ID)
				found = x->ids[low];
			*n = i;
		}
		if (i == len)
			break;
		low = narrow(t, x, low, high, i, p[i]);
		high = narrow(t, x, low, high, i, p[i] + 1u);
	}
	return found;
}

/* The first such token from p[*at] on, *at moved to it; VOCAB_NO_ID, and *at is len. */
static uint32_t next_text(const struct tokenizer *t, const struct texts *x, const uint8_t *p,
			  size_t len, size_t *at, size_t *n)
{
	uint32_t id = VOCAB_NO_ID;

	for (; *at < len; ++*at) {
		if (!has(x->first, p[*at]))
			continue;
		id = text_at(t, x, p + *at, len - *at, n);
		if (id != VOCAB_NO_ID)
			break;
	}
	return id;
}

static void encode_added(struct encoder *e, const uint8_t *p, size_t len)
{
	for (size_t from = 0, at = 0, n = 0; from < len; from = at += n) {
		uint32_t id = next_text(e->t, &e->t->added, p, len, &at, &n);

		encode_pieces(e, p + from, at - from);
		if (id == VOCAB_NO_ID)
			break;
		bpe_emit(e->t, id, p + at, n, &e->out);
	}
}

/* Text without special tokens. */
static void encode_stretch(struct encoder *e, const uint8_t *p, size_t len, bool prefix)
{
	uint8_t *text = e->s->text;

	if (!len)
		return;
	e->out.last = VOCAB_NO_ID;
	if (e->t->facts.kind == VOCAB_SPM) {
		text[0] = ' ';
		len = spell(p, len, text + prefix) + prefix;
		p = text;
	} else if (e->t->facts.flags & VOCAB_NFC && !nfc_plain(p, len)) {
		len = nfc(p, len, &e->s->nfc, text);
		p = text;
	}
	if (e->t->added.n)
		encode_added(e, p, len);
	else
		encode_pieces(e, p, len);
}

static void encode_special(struct encoder *e, const uint8_t *p, size_t len, bool prefix, bool first)
{
	for (size_t from = 0, at = 0, n = 0; from < len; from = at += n) {
		uint32_t id = next_text(e->t, &e->t->specials, p, len, &at, &n);

		encode_stretch(e, p + from, at - from, prefix && (first || from));
		if (id == VOCAB_NO_ID)
			break;
		bpe_emit(e->t, id, p + at, n, &e->out);
	}
}

int tokenizer_encode(const struct tokenizer *t, struct tokenizer_scratch *s, const char *text,
		     size_t len, unsigned flags, uint32_t *ids, size_t cap, size_t *n)
{
	struct encoder e = { .t = t, .s = s, .out = { .ids = ids, .cap = cap } };
	bool prefix = t->facts.flags & VOCAB_DUMMY_PREFIX, first = !(flags & TOKENIZER_CONTINUE);

	if (len > s->max_bytes)
		return -EFBIG;
	*n = 0;
	if (!len)
		return 0;
	if (s->serial != t->serial) {
		memset(s->cache, 0, sizeof(*s->cache) << CACHE_BITS);
		s->serial = t->serial;
	}
	/* Joints hide words that only IGNORE_MERGES would find in the text as a whole. */
	e.by_joints = t->facts.rule == VOCAB_RULE_NONE && !(t->facts.flags & VOCAB_IGNORE_MERGES);
	if (flags & TOKENIZER_SPECIAL)
		encode_special(&e, (const uint8_t *)text, len, prefix, first);
	else
		encode_stretch(&e, (const uint8_t *)text, len, prefix && first);
	*n = e.out.n;
	return e.out.n > cap ? -ENOSPC : 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * The GGUF container: magic, version, two counts, then so many key-value pairs, so many tensor
 * infos, and the tensors' bytes behind them, aligned. Lengths and counts are 64 bits wide and
 * hostile: each is held against the bytes that are left before anything is allocated or skipped by
 * it. Pairs and tensors are kept sorted, which finds duplicates and makes look-ups cheap; tensors
 * are sorted by place once, to know how much room each has.
 *
 * Version 1 had 32-bit counts, lasted a week, and is refused by name, as is what big-endian
 * machines write (the same layout with the version's bytes turned around).
 */
#include "gguf.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"

#define ALIGNMENT_MAX 65536u
#define ALIGNMENT_KEY "general.alignment"

/* What the smallest pair and the smallest tensor info take: bounds for the counts. */
#define PAIR_MIN   (8u + 4u + 1u)
#define TENSOR_MIN (8u + 4u + 8u + 4u + 8u)

static const uint8_t value_bytes[GGUF_VALUES] = {
	[GGUF_U8] = 1,	[GGUF_I8] = 1,	[GGUF_U16] = 2, [GGUF_I16] = 2,
	[GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
	[GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

static const char *const value_names[GGUF_VALUES] = {
	"u8",	"i8",	  "u16",   "i16", "u32", "i32", "f32",
	"bool", "string", "array", "u64", "i64", "f64",
};

const char *gguf_show(struct gguf_string s, char buf[64])
{
	size_t n = s.len < 63 ? (size_t)s.len : 63;

	for (size_t i = 0; i < n; i++)
		buf[i] = s.text[i] < 32 || s.text[i] == 127 ? '?' : s.text[i];
	buf[n] = 0;
	return buf;
}

bool gguf_is(struct gguf_string s, const char *text)
{
	return s.len == strlen(text) && !memcmp(s.text, text, s.len);
}

static int compare(struct gguf_string a, struct gguf_string b)
{
	int order = memcmp(a.text, b.text, a.len < b.len ? a.len : b.len);

	return order ? order : (a.len > b.len) - (a.len < b.len);
}

struct gguf_string gguf_next_string(struct cursor *c)
{
	struct gguf_string s = { .len = cursor_u64(c) };

	s.text = (const char *)cursor_bytes(c, s.len);
	if (!s.text)
		s = (struct gguf_string){ "", 0 };
	return s;
}

/* ---- pairs ----------------------------------------------------------------------------------- */

static int read_name(struct cursor *c, struct gguf_string *name, const char *file, const char *what,
		     uint32_t index, char *why, size_t why_len)
{
	*name = gguf_next_string(c);
	if (c->bad)
		return fail(why, why_len, -EPROTO,
			    "%s: the file ends in the name of %s %u; it is cut off or "
			    "damaged",
			    file, what, index);
	if (!name->len || name->len > GGUF_NAME_MAX)
		return fail(why, why_len, -EPROTO,
			    "%s: the name of %s %u has %llu bytes; allowed are 1 to %u", file, what,
			    index, (unsigned long long)name->len, GGUF_NAME_MAX);
	return 0;
}

static int read_pair(struct cursor *c, struct gguf_pair *p, const char *file, uint32_t index,
		     char *why, size_t why_len)
{
	uint64_t start;
	char name[64];
	int err = read_name(c, &p->key, file, "key", index, why, why_len);

	if (err)
		return err;
	gguf_show(p->key, name);
	p->n = 1;
	p->type = cursor_u32(c);
	p->is_array = p->type == GGUF_ARRAY;
	if (p->is_array) {
		p->type = cursor_u32(c);
		p->n = cursor_u64(c);
	}
	if (c->bad)
		goto cut;
	if (p->type >= GGUF_VALUES)
		return fail(why, why_len, -EPROTO,
			    "%s: key %s has value type %u, which is none; the file is "
			    "damaged",
			    file, name, p->type);
	if (p->type == GGUF_ARRAY)
		return fail(why, why_len, -ENOTSUP,
			    "%s: key %s is an array of arrays, which is not supported", file, name);
	start = c->pos;
	if (p->type == GGUF_STRING) {
		/* Each takes eight bytes at least, so a count that lies ends at the file's end. */
		if (p->n > (c->bytes - c->pos) / 8)
			goto cut;
		for (uint64_t i = 0; i < p->n && !c->bad; i++)
			gguf_next_string(c);
	} else if (p->n > (c->bytes - c->pos) / value_bytes[p->type]) {
		goto cut;
	} else {
		cursor_bytes(c, p->n * value_bytes[p->type]);
	}
	if (c->bad)
		goto cut;
	p->data = c->data + start;
	p->bytes = c->pos - start;
	return 0;
cut:
	return fail(why, why_len, -EPROTO,
		    "%s: the file ends in the value of key %s; it is cut off or "
		    "damaged",
		    file, name);
}

static int by_key(const void *a, const void *b)
{
	return compare(((const struct gguf_pair *)a)->key, ((const struct gguf_pair *)b)->key);
}

static int read_pairs(struct gguf *g, struct cursor *c, const char *file, char *why, size_t why_len)
{
	char name[64];

	for (uint32_t i = 0; i < g->n_pairs; i++) {
		int err = read_pair(c, &g->pairs[i], file, i, why, why_len);

		if (err)
			return err;
	}
	qsort(g->pairs, g->n_pairs, sizeof(*g->pairs), by_key);
	for (uint32_t i = 1; i < g->n_pairs; i++)
		if (!by_key(&g->pairs[i - 1], &g->pairs[i]))
			return fail(why, why_len, -EPROTO,
				    "%s: key %s is there twice; which one holds is "
				    "not known",
				    file, gguf_show(g->pairs[i].key, name));
	return 0;
}

const struct gguf_pair *gguf_pair(const struct gguf *g, const char *key)
{
	struct gguf_pair want = { .key = { key, strlen(key) } };

	return g->n_pairs ? bsearch(&want, g->pairs, g->n_pairs, sizeof(*g->pairs), by_key) : NULL;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static int read_tensor(struct cursor *c, struct gguf_tensor *t, const char *file, uint32_t index,
		       char *why, size_t why_len)
{
	uint64_t dims[4] = { 1, 1, 1, 1 }, all = 1;
	char name[64];
	int err = read_name(c, &t->name, file, "tensor", index, why, why_len);

	if (err)
		return err;
	gguf_show(t->name, name);
	t->n_dims = cursor_u32(c);
	if (!c->bad && (!t->n_dims || t->n_dims > 4))
		return fail(why, why_len, -EPROTO,
			    "%s: tensor %s has %u dimensions; allowed are 1 to 4", file, name,
			    t->n_dims);
	for (uint32_t i = 0; i < t->n_dims && !c->bad; i++) {
		dims[i] = cursor_u64(c);
		if (!c->bad &&
		    (!dims[i] || __builtin_mul_overflow(all, dims[i], &all) || all >> 48))
			return fail(why, why_len, -EPROTO,
				    "%s: tensor %s has a dimension of %llu; it is empty "
				    "or larger than any memory",
				    file, name, (unsigned long long)dims[i]);
	}
	t->type = cursor_u32(c);
	t->offset = cursor_u64(c);
	if (c->bad)
		return fail(why, why_len, -EPROTO,
			    "%s: the file ends in the description of tensor %s; it is "
			    "cut off or damaged",
			    file, name);
	t->cols = dims[0];
	t->rows = dims[1];
	t->deep = dims[2] != 1 || dims[3] != 1;
	return 0;
}

static int by_place(const void *a, const void *b)
{
	uint64_t x = ((const struct gguf_tensor *)a)->offset,
		 y = ((const struct gguf_tensor *)b)->offset;

	return (x > y) - (x < y);
}

static int by_name(const void *a, const void *b)
{
	return compare(((const struct gguf_tensor *)a)->name,
		       ((const struct gguf_tensor *)b)->name);
}

/* Offsets into the file, and from their neighbours the room that tensors have. */
static int place_tensors(struct gguf *g, uint64_t bytes, const char *file, char *why,
			 size_t why_len)
{
	char name[64], other[64];

	for (uint32_t i = 0; i < g->n_tensors; i++) {
		struct gguf_tensor *t = &g->tensors[i];

		gguf_show(t->name, name);
		if (t->offset % g->alignment)
			return fail(why, why_len, -EPROTO,
				    "%s: tensor %s lies at %llu, which is no multiple of "
				    "the alignment %u",
				    file, name, (unsigned long long)t->offset, g->alignment);
		if (__builtin_add_overflow(t->offset, g->data_offset, &t->offset) ||
		    t->offset >= bytes)
			return fail(why, why_len, -EPROTO,
				    "%s: the file ends before the data of tensor %s; it "
				    "is cut off or damaged",
				    file, name);
	}
	if (!g->n_tensors)
		return 0;
	qsort(g->tensors, g->n_tensors, sizeof(*g->tensors), by_place);
	for (uint32_t i = 0; i + 1 < g->n_tensors; i++) {
		struct gguf_tensor *t = &g->tensors[i];

		t->room = t[1].offset - t->offset;
		if (!t->room)
			return fail(why, why_len, -EPROTO,
				    "%s: tensors %s and %s lie in the same place", file,
				    gguf_show(t->name, name), gguf_show(t[1].name, other));
	}
	g->tensors[g->n_tensors - 1].room = bytes - g->tensors[g->n_tensors - 1].offset;
	g->tensors[g->n_tensors - 1].last = true;
	return 0;
}

static int read_tensors(struct gguf *g, struct cursor *c, const char *file, char *why,
			size_t why_len)
{
	char name[64];
	int err;

	for (uint32_t i = 0; i < g->n_tensors; i++) {
		err = read_tensor(c, &g->tensors[i], file, i, why, why_len);
		if (err)
			return err;
	}
	g->data_offset = (c->pos + g->alignment - 1) / g->alignment * g->alignment;
	err = place_tensors(g, c->bytes, file, why, why_len);
	if (err)
		return err;
	qsort(g->tensors, g->n_tensors, sizeof(*g->tensors), by_name);
	for (uint32_t i = 1; i < g->n_tensors; i++)
		if (!by_name(&g->tensors[i - 1], &g->tensors[i]))
			return fail(why, why_len, -EPROTO,
				    "%s: tensor %s is there twice; which one holds is "
				    "not known",
				    file, gguf_show(g->tensors[i].name, name));
	return 0;
}

const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name)
{
	struct gguf_tensor want = { .name = { name, strlen(name) } };

	return g->n_tensors ? bsearch(&want, g->tensors, g->n_tensors, sizeof(*g->tensors), by_name)
			    : NULL;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int read_alignment(struct gguf *g, const char *file, char *why, size_t why_len)
{
	char sentence[256];
	int err;

	g->alignment = 32;
	err = gguf_u32(g, ALIGNMENT_KEY, &g->alignment, sentence, sizeof(sentence));
	if (err < 0)
		return fail(why, why_len, err, "%s: %s", file, sentence);
	if (!g->alignment || g->alignment > ALIGNMENT_MAX || g->alignment & (g->alignment - 1))
		return fail(why, why_len, -EPROTO,
			    "%s: " ALIGNMENT_KEY " is %u; it is a power of two up to %u", file,
			    g->alignment, ALIGNMENT_MAX);
	return 0;
}

static int read_header(struct cursor *c, uint64_t *n_pairs, uint64_t *n_tensors, uint32_t *version,
		       const char *file, char *why, size_t why_len)
{
	const uint8_t *magic = cursor_bytes(c, 4);

	if (!magic || memcmp(magic, "GGUF", 4))
		return fail(why, why_len, -EPROTO, "%s: no GGUF file", file);
	*version = cursor_u32(c);
	if (!c->bad && *version == 1)
		return fail(why, why_len, -ENOTSUP,
			    "%s: GGUF version 1; versions 2 and 3 are read: convert the "
			    "model again with a newer program",
			    file);
	/* Read from the other end, a small number has its bytes at the top. */
	if (!c->bad && !(*version & 0xffff) && *version)
		return fail(why, why_len, -ENOTSUP,
			    "%s: a big-endian GGUF; convert it to little-endian with "
			    "the tool that wrote it",
			    file);
	if (!c->bad && (*version < 2 || *version > 3))
		return fail(why, why_len, -ENOTSUP,
			    "%s: GGUF version %u; versions 2 and 3 are read", file, *version);
	*n_tensors = cursor_u64(c);
	*n_pairs = cursor_u64(c);
	if (c->bad)
		return fail(why, why_len, -EPROTO, "%s: the file ends in its header; it is cut off",
			    file);
	if (*n_pairs > GGUF_KEYS_MAX || *n_tensors > GGUF_TENSORS_MAX)
		return fail(why, why_len, -EFBIG,
			    "%s: %llu keys and %llu tensors; at most %u of each are "
			    "supported",
			    file, (unsigned long long)*n_pairs, (unsigned long long)*n_tensors,
			    GGUF_KEYS_MAX);
	if (*n_pairs * PAIR_MIN + *n_tensors * TENSOR_MIN > c->bytes - c->pos)
		return fail(why, why_len, -EPROTO,
			    "%s: %llu keys and %llu tensors do not fit into a file of "
			    "%llu bytes; it is cut off or damaged",
			    file, (unsigned long long)*n_pairs, (unsigned long long)*n_tensors,
			    (unsigned long long)c->bytes);
	return 0;
}

int gguf_parse(const void *data, uint64_t bytes, const char *file, struct gguf **out, char *why,
	       size_t why_len)
{
	struct cursor c = { .data = data, .bytes = bytes };
	uint64_t n_pairs = 0, n_tensors = 0;
	uint32_t version = 0;
	struct gguf *g;
	int err = read_header(&c, &n_pairs, &n_tensors, &version, file, why, why_len);

	if (err)
		return err;
	g = calloc(1, sizeof(*g));
	if (g) {
		g->pairs = calloc(n_pairs ? n_pairs : 1, sizeof(*g->pairs));
		g->tensors = calloc(n_tensors ? n_tensors : 1, sizeof(*g->tensors));
	}
	if (!g || !g->pairs || !g->tensors) {
		err = fail(why, why_len, -ENOMEM, "%s: no memory", file);
		goto out;
	}
	g->version = version;
	g->n_pairs = (uint32_t)n_pairs;
	g->n_tensors = (uint32_t)n_tensors;
	err = read_pairs(g, &c, file, why, why_len);
	if (!err)
		err = read_alignment(g, file, why, why_len);
	if (!err)
		err = read_tensors(g, &c, file, why, why_len);
out:
	if (err)
		gguf_free(g);
	else
		*out = g;
	return err;
}

struct gguf *gguf_free(struct gguf *g)
{
	if (g) {
		free(g->pairs);
		free(g->tensors);
		free(g);
	}
	return NULL;
}

/* ---- values ---------------------------------------------------------------------------------- */

static int wrong_type(const struct gguf_pair *p, const char *want, char *why, size_t why_len)
{
	char name[64];

	return fail(why, why_len, -EPROTO, "key %s is %s%s where %s belongs",
		    gguf_show(p->key, name), p->is_array ? "an array of " : "",
		    value_names[p->type], want);
}

/* The bytes of a number, sign-extended. */
static uint64_t integer_of(const struct gguf_pair *p)
{
	struct cursor c = { .data = p->data, .bytes = p->bytes };

	switch (p->type) {
	case GGUF_U8:
	case GGUF_BOOL:
		return cursor_u8(&c);
	case GGUF_I8:
		return (uint64_t)(int64_t)(int8_t)cursor_u8(&c);
	case GGUF_U16:
		return cursor_u16(&c);
	case GGUF_I16:
		return (uint64_t)(int64_t)(int16_t)cursor_u16(&c);
	case GGUF_U32:
		return cursor_u32(&c);
	case GGUF_I32:
		return (uint64_t)(int64_t)(int32_t)cursor_u32(&c);
	default:
		return cursor_u64(&c);
	}
}

int gguf_u32(const struct gguf *g, const char *key, uint32_t *out, char *why, size_t why_len)
{
	const struct gguf_pair *p = gguf_pair(g, key);
	uint64_t value;

	if (!p)
		return GGUF_ABSENT;
	if (p->is_array || p->type == GGUF_F32 || p->type == GGUF_F64 || p->type == GGUF_STRING ||
	    p->type == GGUF_BOOL)
		return wrong_type(p, "a whole number", why, why_len);
	value = integer_of(p);
	if (value > UINT32_MAX)
		return fail(why, why_len, -EPROTO, "key %s is %lld, which is negative or too large",
			    key, (long long)value);
	*out = (uint32_t)value;
	return 0;
}

int gguf_float(const struct gguf *g, const char *key, double *out, char *why, size_t why_len)
{
	const struct gguf_pair *p = gguf_pair(g, key);
	struct cursor c;

	if (!p)
		return GGUF_ABSENT;
	if (p->is_array || (p->type != GGUF_F32 && p->type != GGUF_F64))
		return wrong_type(p, "a floating-point number", why, why_len);
	c = (struct cursor){ .data = p->data, .bytes = p->bytes };
	*out = p->type == GGUF_F32 ? (double)cursor_f32(&c) : cursor_f64(&c);
	return 0;
}

int gguf_bool(const struct gguf *g, const char *key, bool *out, char *why, size_t why_len)
{
	const struct gguf_pair *p = gguf_pair(g, key);

	if (!p)
		return GGUF_ABSENT;
	if (p->is_array || p->type != GGUF_BOOL || p->data[0] > 1)
		return wrong_type(p, "true or false", why, why_len);
	*out = p->data[0];
	return 0;
}

int gguf_string(const struct gguf *g, const char *key, struct gguf_string *out, char *why,
		size_t why_len)
{
	const struct gguf_pair *p = gguf_pair(g, key);
	struct cursor c;

	if (!p)
		return GGUF_ABSENT;
	if (p->is_array || p->type != GGUF_STRING)
		return wrong_type(p, "a text", why, why_len);
	c = (struct cursor){ .data = p->data, .bytes = p->bytes };
	*out = gguf_next_string(&c);
	assert(!c.bad);
	return 0;
}

int gguf_array(const struct gguf *g, const char *key, uint32_t type, const struct gguf_pair **out,
	       char *why, size_t why_len)
{
	const struct gguf_pair *p = gguf_pair(g, key);
	char want[48] = "an array of ";

	if (!p)
		return GGUF_ABSENT;
	if (!p->is_array || (p->type != type && !(type == GGUF_U32 && p->type == GGUF_I32) &&
			     !(type == GGUF_I32 && p->type == GGUF_U32)))
		return wrong_type(p, strcat(want, value_names[type]), why, why_len);
	*out = p;
	return 0;
}

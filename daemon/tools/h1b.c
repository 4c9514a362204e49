/* SPDX-License-Identifier: MIT */
/*
 * The header of an .h1b file and the layout that follows from it.
 *
 * Writers of this format disagree: one stamps version 1 on a header of version 2, one leaves out magic
 * and version, one keeps the norms elsewhere, one orders tensors otherwise. What they wrote has the
 * right magic and nonsense behind it. The file's length must therefore be the very one that its header
 * asks for, and where it is another one, the sentence says which fault would explain it.
 *
 * By obm.h's bounds on the header's numbers a layer has less than 2^42 bytes and there are at most 2^9 of
 * them, the embedding has less than 2^40: 64 bits hold every sum, and none needs a check of its own.
 */
#include "h1b.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "mapped.h"
#include "obm.h"
#include "packed.h"

static const float default_theta = 500000.0f;
static const float default_eps = 1e-5f;

const char *h1b_body_name(enum h1b_body body)
{
	static const char *const names[H1B_BODIES] = {
		[H1B_2BIT] = "2 bits", [H1B_SHERRY] = "Sherry", [H1B_BASE3] = "base 3",
		[H1B_TQ2] = "TQ2 blocks", [H1B_Q1] = "Q1 blocks",
	};

	return names[body];
}

char *h1b_vocab_path(const char *path)
{
	size_t n = strlen(path);
	char *name = NULL;

	if (n > 4 && !strcmp(path + n - 4, ".h1b"))
		n -= 4;
	return asprintf(&name, "%.*s.htok", (int)n, path) < 0 ? NULL : name;
}

/* ---- header ---------------------------------------------------------------------------------- */

static int check_version(uint32_t version, char *why, size_t why_len)
{
	switch (version) {
	case 1:
	case 2:
	case 3:
	case 4:
		return 0;
	case 5:
		return fail(why, why_len, -ENOTSUP, "version 5 of .h1b has int8 weights, "
			    "Hadamard-rotated, which are not ternary; convert the model that it "
			    "was made from");
	case 6:
		return fail(why, why_len, -ENOTSUP, "version 6 of .h1b has no reader, as its "
			    "writer puts the header's words elsewhere; convert the model that it "
			    "was made from");
	default:
		return fail(why, why_len, -ENOTSUP, "version %u of .h1b is not known; known are 1 "
			    "to 4",
			    version);
	}
}

static int check_flags(const struct h1b_header *h, char *why, size_t why_len)
{
	const uint32_t known = H1B_FLAG_ROTATED | H1B_FLAG_SHERRY_F16 | H1B_FLAG_Q1 | H1B_FLAG_TQ2;

	if (h->flags & ~known)
		return fail(why, why_len, -ENOTSUP, "flags 0x%x are not known", h->flags & ~known);
	if (h->flags & H1B_FLAG_ROTATED)
		return fail(why, why_len, -ENOTSUP, "flag 0x1: the weights are for "
			    "Hadamard-rotated activations, which are not supported; export the "
			    "model without rotation");
	if ((h->flags & H1B_FLAG_Q1) && (h->flags & H1B_FLAG_TQ2))
		return fail(why, why_len, -EPROTO, "flags 0x4 and 0x8 are both set: the body "
			    "cannot be Q1 and TQ2 at once");
	return 0;
}

static int check_extras(struct h1b_header *h, char *why, size_t why_len)
{
	int32_t bits;

	/* So the readers: what is not positive was left empty. */
	if (h->theta <= 0)
		h->theta = default_theta;
	if (h->eps <= 0)
		h->eps = default_eps;
	memcpy(&bits, &h->theta, sizeof(bits));
	if (!isfinite(h->theta))
		return fail(why, why_len, -EPROTO, "the rotary base is not a number");
	if (h->theta <= 1)
		return fail(why, why_len, -EPROTO, "the rotary base is %g; the same bits are the "
			    "integer %d, which one converter writes in its place: export with "
			    "another one",
			    (double)h->theta, (int)bits);
	if (!isfinite(h->eps) || h->eps >= 1)
		return fail(why, why_len, -EPROTO, "the norms' epsilon is %g; it must be below 1",
			    (double)h->eps);
	return 0;
}

int h1b_header_read(const uint8_t *data, uint64_t bytes, struct h1b_header *h, char *why,
		    size_t why_len)
{
	struct cursor c = { .data = data, .bytes = bytes, .pos = 4 };
	struct h1b_header r = { 0 };
	const struct {
		const char *what;
		uint32_t *to, max;
	} numbers[] = {
		{ "the hidden size", &r.hidden, OBM_WIDTH_MAX },
		{ "the feed-forward size", &r.ffn, PACKED_COLS_MAX },
		{ "the number of layers", &r.layers, OBM_LAYERS_MAX },
		{ "the number of heads", &r.heads, OBM_HEADS_MAX },
		{ "the number of KV heads", &r.kv_heads, OBM_HEADS_MAX },
		{ "the vocabulary's size", &r.vocab, OBM_VOCAB_MAX },
		{ "the context length", &r.context, OBM_CONTEXT_MAX },
	};
	uint32_t tied;
	int err;

	if (bytes < 4 || memcmp(data, "H1B", 4) != 0)
		return fail(why, why_len, -EPROTO, "it does not begin with \"H1B\" and a zero "
			    "byte");
	r.version = cursor_u32(&c);
	if (bytes >= 8) {
		err = check_version(r.version, why, why_len);
		if (err)
			return err;
	}
	if (bytes < h1b_header_bytes(&r))
		return fail(why, why_len, -EPROTO, "the file has %llu bytes, which is less than "
			    "its header",
			    (unsigned long long)bytes);
	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		uint32_t v = cursor_u32(&c);

		if (!v || v > INT32_MAX)
			return fail(why, why_len, -EPROTO, "%s is %d; the header is damaged",
				    numbers[i].what,
				    (int)(int32_t)v);
		if (v > numbers[i].max)
			return fail(why, why_len, -EFBIG, "%s is %u; at most %u is supported",
				    numbers[i].what, v, numbers[i].max);
		*numbers[i].to = v;
	}
	tied = cursor_u32(&c);
	r.flags = cursor_u32(&c);
	if (r.version >= 2) {
		r.theta = cursor_f32(&c);
		r.eps = cursor_f32(&c);
	}
	err = check_flags(&r, why, why_len);
	if (!err)
		err = check_extras(&r, why, why_len);
	if (err)
		return err;
	if (r.hidden % r.heads)
		return fail(why, why_len, -EPROTO, "the hidden size %u is not a multiple of the %u "
			    "heads, so that a head has no whole size", r.hidden, r.heads);
	if (tied > 1)
		return fail(why, why_len, -EPROTO, "the word that says whether the head is tied is "
			    "%u; it is 0 or 1", tied);
	if (!tied)
		return fail(why, why_len, -ENOTSUP, "the header says that the head is not the "
			    "embedding, but .h1b has no place for a head; convert the model that "
			    "it was made from");
	r.tied = true;
	*h = r;
	return 0;
}

uint32_t h1b_header_bytes(const struct h1b_header *h)
{
	return h->version >= 2 ? H1B_HEADER_MAX : H1B_HEADER_V1;
}

void h1b_header_write(const struct h1b_header *h, uint8_t *out)
{
	const uint32_t words[] = {
		h->version, h->hidden, h->ffn, h->layers, h->heads, h->kv_heads, h->vocab, h->context,
		h->tied, h->flags, 0, 0,
	};
	uint32_t all[12];

	memcpy(all, words, sizeof(all));
	memcpy(&all[10], &h->theta, 4);
	memcpy(&all[11], &h->eps, 4);
	memcpy(out, "H1B", 4);
	for (uint32_t i = 4; i < h1b_header_bytes(h); i++)
		out[i] = (uint8_t)(all[i / 4 - 1] >> (i % 4 * 8));
}

/* ---- layout ---------------------------------------------------------------------------------- */

uint64_t h1b_row_bytes(enum h1b_body body, uint32_t cols)
{
	switch (body) {
	case H1B_2BIT:
		return (cols + 3) / 4;
	case H1B_SHERRY:
		return (uint64_t)cols * 5 / 32;
	case H1B_BASE3:
		return (uint64_t)(cols + 19) / 20 * 4;
	case H1B_TQ2:
		return cols / H1B_BLOCK * 34;
	default:
		return cols / H1B_BLOCK * 18;
	}
}

/* What the columns of every matrix must be a multiple of. */
static uint32_t multiple(enum h1b_body body)
{
	switch (body) {
	case H1B_SHERRY:
		return 32; /* the file's rule; a peer's kernel wants 128 */
	case H1B_TQ2:
	case H1B_Q1:
		return H1B_BLOCK;
	default:
		return 1;
	}
}

static enum h1b_body body_of(const struct h1b_header *h)
{
	if (h->flags & H1B_FLAG_TQ2)
		return H1B_TQ2;
	if (h->flags & H1B_FLAG_Q1)
		return H1B_Q1;
	if (h->version == 4)
		return H1B_BASE3;
	return h->version == 3 ? H1B_SHERRY : H1B_2BIT;
}

static void place(const struct h1b_header *h, enum h1b_body body, uint32_t header_bytes,
		  struct h1b_layout *l)
{
	const uint32_t hidden = h->hidden, kv = hidden / h->heads * h->kv_heads;
	const uint32_t shape[H1B_MATRICES][2] = {
		[H1B_Q] = { hidden, hidden }, [H1B_K] = { kv, hidden }, [H1B_V] = { kv, hidden },
		[H1B_O] = { hidden, hidden }, [H1B_GATE] = { h->ffn, hidden }, [H1B_UP] = { h->ffn, hidden },
		[H1B_DOWN] = { hidden, h->ffn },
	};
	const uint64_t norm = 4ull * hidden;
	uint64_t at;

	l->body = body;
	l->embed = header_bytes;
	l->final_norm = l->embed + norm * h->vocab;
	l->layer0 = l->final_norm + norm;
	/* Nine slots, of which the fourth to the eighth repeat what is elsewhere. */
	l->norm[H1B_ATTN_NORM] = 0;
	l->norm[H1B_FFN_NORM] = norm;
	l->norm[H1B_ATTN_SUB_NORM] = 2 * norm;
	l->norm[H1B_FFN_SUB_NORM] = 8 * norm;
	at = 8 * norm + 4ull * h->ffn;
	for (unsigned i = 0; i < H1B_MATRICES; i++) {
		struct h1b_matrix *m = &l->matrix[i];

		m->rows = shape[i][0];
		m->cols = shape[i][1];
		m->row_bytes = h1b_row_bytes(body, m->cols);
		m->codes = at;
		at += m->row_bytes * m->rows;
		m->scales = 0;
		if (body == H1B_TQ2 || body == H1B_Q1)
			continue;
		m->scales = at;
		at += 4ull * m->rows;
	}
	l->stride = at;
	l->file_bytes = l->layer0 + l->stride * h->layers;
}

int h1b_layout_make(const struct h1b_header *h, struct h1b_layout *l, char *why, size_t why_len)
{
	enum h1b_body body = body_of(h);

	assert(h->hidden && h->heads);
	if (h->hidden % multiple(body) || h->ffn % multiple(body))
		return fail(why, why_len, -EPROTO, "%s needs columns in multiples of %u; hidden "
			    "size and feed-forward size are %u and %u", h1b_body_name(body),
			    multiple(body), h->hidden,
			    h->ffn);
	place(h, body, h1b_header_bytes(h), l);
	return 0;
}

/* Where in the file the byte at `at` lies. */
static void name_place(const struct h1b_layout *l, uint64_t at, char *buf, size_t len)
{
	if (at < l->layer0)
		snprintf(buf, len, "%s", at < l->final_norm ? "the embedding" : "the final norm");
	else
		snprintf(buf, len, "layer %llu",
			 (unsigned long long)((at - l->layer0) / l->stride));
}

static int check_size(const struct h1b_header *h, const struct h1b_layout *l, uint64_t bytes,
		      char *why, size_t why_len)
{
	const unsigned long long found = bytes, expected = l->file_bytes;
	struct h1b_layout other;
	char where[64];

	if (bytes == l->file_bytes)
		return 0;
	if (h->version == 1 && bytes == l->file_bytes + 8)
		return fail(why, why_len, -EPROTO, "the file has %llu bytes, 8 more than the %llu "
			    "of version 1: a tool has stamped version 1 on a header of version 2, "
			    "and such tools order the tensors otherwise too; export the model with "
			    "another one", found, expected);
	for (unsigned body = 0; body < H1B_BODIES; body++)
		for (uint32_t header = H1B_HEADER_V1; header <= H1B_HEADER_MAX; header += 8) {
			if (h->hidden % multiple(body) || h->ffn % multiple(body))
				continue;
			place(h, body, header, &other);
			if (other.file_bytes == bytes)
				return fail(why, why_len, -EPROTO, "the file has %llu bytes; by "
					    "its header (version %u, flags 0x%x: %s) it must have "
					    "%llu. It has the size of %s behind a header of %u "
					    "bytes: the version or flags are wrong",
					    found, h->version, h->flags, h1b_body_name(l->body), expected,
					    h1b_body_name(body), header);
		}
	if (bytes > l->file_bytes)
		return fail(why, why_len, -EPROTO, "the file has %llu bytes; by its header "
			    "(version %u: %s) it must have %llu: %llu too many", found, h->version,
			    h1b_body_name(l->body),
			    expected, found - expected);
	name_place(l, bytes, where, sizeof(where));
	return fail(why, why_len, -EPROTO, "the file has %llu bytes; by its header (version %u: "
		    "%s) it must have %llu: it ends in %s. Get it again", found, h->version,
		    h1b_body_name(l->body),
		    expected, where);
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* One that is all zero was never written: what comes out of it is zero, whatever goes in. */
static int check_norm(const struct h1b *h, const char *name, uint64_t offset, uint32_t n, char *why,
		      size_t why_len)
{
	bool zero = true;

	for (uint32_t i = 0; i < n; i += 64) {
		uint32_t part = n - i < 64 ? n - i : 64;
		float f[64];
		uint64_t at;

		if (h1b_floats(h, offset + 4ull * i, part, f, &at))
			return fail(why, why_len, -EPROTO, "%s, element %u is not finite: the "
				    "file is damaged, or its tensors are in another order", name,
				    i + (unsigned)at);
		for (uint32_t k = 0; k < part; k++)
			zero = zero && f[k] == 0;
	}
	if (zero && (h->header.flags & (H1B_FLAG_Q1 | H1B_FLAG_TQ2)))
		return fail(why, why_len, -ENOTSUP, "%s is all zero: of this model (Qwen3-like) "
			    "norms and embedding are in a GGUF file beside it; convert that one",
			    name);
	if (zero)
		return fail(why, why_len, -EPROTO, "%s is all zero: it was never written; export "
			    "the model again", name);
	return 0;
}

static int check_norms(const struct h1b *h, char *why, size_t why_len)
{
	static const char *const names[H1B_NORMS] = { "attn_norm", "ffn_norm", "attn_sub_norm",
						      "ffn_sub_norm" };
	int err = check_norm(h, "the final norm", h->layout.final_norm, h->header.hidden, why,
			     why_len);

	for (uint32_t l = 0; !err && l < h->header.layers; l++)
		for (unsigned i = 0; !err && i < H1B_NORMS; i++) {
			char name[64];

			snprintf(name, sizeof(name), "layer %u's %s", l, names[i]);
			err = check_norm(h, name, h->layout.layer0 + h->layout.stride * l + h->layout.norm[i],
					 i == H1B_FFN_SUB_NORM ? h->header.ffn : h->header.hidden, why,
					 why_len);
		}
	return err;
}

int h1b_parse(const void *data, uint64_t bytes, struct h1b *h, char *why, size_t why_len)
{
	struct h1b r = { .data = data, .bytes = bytes };
	int err = h1b_header_read(data, bytes, &r.header, why, why_len);

	if (!err)
		err = h1b_layout_make(&r.header, &r.layout, why, why_len);
	if (!err)
		err = check_size(&r.header, &r.layout, bytes, why, why_len);
	if (!err)
		err = check_norms(&r, why, why_len);
	if (err)
		return err;
	h1b_coder_init(&r.coder, r.layout.body);
	*h = r;
	return 0;
}

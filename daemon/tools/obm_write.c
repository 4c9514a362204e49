/* SPDX-License-Identifier: MIT */
/*
 * Writing a container front to back. Everything has its place before the first weight is written
 * (obm_place.c), and what is written goes through chunk buffers: a full one goes to the file and to
 * the thread that hashes it (obm_hash.c). Memory is the queue, a tile of rows and one matrix'
 * scales.
 */
#include "obm_write.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "obm_hash.h"
#include "obm_place.h"
#include "obm_xxh3.h"

struct obm_writer {
	struct output *out;
	struct obm_placed placed;
	uint32_t tensor, row; /* wanted next */
	XXH3_state_t *xxh3;   /* of the section that is being written */
	uint64_t at;	      /* in the file */
	uint32_t n_chunk;     /* bytes in the chunk that is being filled */
	uint8_t *tile;	      /* of the largest tensor */
	float *scales;	      /* [group][row] of the present one */
	bool failed;
	struct hasher hash;
};

/* ---- bytes ----------------------------------------------------------------------------------- */

static int flush_chunk(struct obm_writer *w, char *why, size_t why_len)
{
	const uint8_t *chunk = hasher_chunk(&w->hash);
	int err;

	if (!w->n_chunk)
		return 0;
	err = output_write(w->out, chunk, w->n_chunk, why, why_len);
	if (err)
		return err;
	hasher_push(&w->hash, w->n_chunk);
	w->n_chunk = 0;
	return 0;
}

/* Bytes behind the header: into the chunk. NULL: zeros. */
static int put_plain(struct obm_writer *w, const void *data, uint64_t len, char *why,
		     size_t why_len)
{
	const uint8_t *p = data;
	int err = 0;

	while (len && !err) {
		uint8_t *chunk = hasher_chunk(&w->hash);
		uint32_t n = OBM_CHUNK - w->n_chunk;

		n = len < n ? (uint32_t)len : n;
		if (p)
			memcpy(chunk + w->n_chunk, p, n);
		else
			memset(chunk + w->n_chunk, 0, n);
		p = p ? p + n : NULL;
		w->n_chunk += n;
		w->at += n;
		len -= n;
		if (w->n_chunk == OBM_CHUNK)
			err = flush_chunk(w, why, why_len);
	}
	return err;
}

/* Bytes of a section. */
static int put(struct obm_writer *w, const void *data, uint64_t len, char *why, size_t why_len)
{
	XXH3_64bits_update(w->xxh3, data, len);
	return put_plain(w, data, len, why, why_len);
}

/* Zeros of a section, up to a place. */
static int put_zeros(struct obm_writer *w, uint64_t to, char *why, size_t why_len)
{
	static const uint8_t zeros[OBM_TENSOR_ALIGN];

	assert(to >= w->at && to - w->at <= sizeof(zeros));
	return put(w, zeros, to - w->at, why, why_len);
}

static int begin_section(struct obm_writer *w, const struct obm_section *s, char *why,
			 size_t why_len)
{
	XXH3_64bits_reset(w->xxh3);
	return put_plain(w, NULL, s->offset - w->at, why, why_len);
}

static void end_section(struct obm_writer *w, struct obm_section *s)
{
	assert(w->at == s->offset + s->bytes);
	s->xxh3 = XXH3_64bits_digest(w->xxh3);
}

/* ---- the order of calls ---------------------------------------------------------------------- */

static int alloc(struct obm_writer *w, char *why, size_t why_len)
{
	uint64_t chunks = w->placed.sections[w->placed.header.n_sections - 1].bytes / 32;
	uint64_t tile = 0, scales = 0;
	int err;

	for (uint32_t i = 0; i < w->placed.n_tensors; i++) {
		struct packed_shape shape = obm_shape(&w->placed.tensors[i]);
		uint64_t n = shape.layout ? packed_bytes(&shape) / packed_tiles(&shape) : 0;
		uint64_t m = shape.layout ? packed_n_scales(&shape) * sizeof(float) : 0;

		tile = n > tile ? n : tile;
		scales = m > scales ? m : scales;
	}
	w->tile = aligned_alloc(64, obm_align(tile + 1, 64));
	w->scales = malloc(scales + 1);
	w->xxh3 = XXH3_createState();
	if (!w->tile || !w->scales || !w->xxh3)
		return fail(why, why_len, -ENOMEM, "no memory to write the model");
	err = hasher_init(&w->hash, chunks);
	return err ? fail(why, why_len, err, "the model cannot be hashed: %s", strerror(-err)) : 0;
}

/* All that stands before the weights. */
static int write_front(struct obm_writer *w, const struct obm_plan *p, char *why, size_t why_len)
{
	const struct {
		uint32_t kind;
		const void *data;
	} parts[] = {
		{ OBM_ARCH, &w->placed.arch }, { OBM_TENSORS, w->placed.tensors },
		{ OBM_ROPE, p->rope },	       { OBM_TOKENIZER, p->tokenizer },
		{ OBM_INFO, p->info },	       { OBM_LICENCE, p->licence },
	};
	static const uint8_t zeros[OBM_HEADER_MAX];
	struct obm_section *s = w->placed.sections;
	int err = output_write(w->out, zeros, w->placed.header.header_bytes, why, why_len);

	w->at = w->placed.header.header_bytes;
	for (size_t i = 0; !err && i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (!parts[i].data)
			continue;
		assert(s->kind == parts[i].kind);
		err = begin_section(w, s, why, why_len);
		if (!err)
			err = put(w, parts[i].data, s->bytes, why, why_len);
		if (!err)
			end_section(w, s++);
	}
	return err;
}

int obm_writer_new(const struct obm_plan *plan, struct output *out, struct obm_writer **w,
		   char *why, size_t why_len)
{
	struct obm_writer *n = calloc(1, sizeof(*n));
	int err;

	assert(!output_bytes(out));
	if (!n)
		return fail(why, why_len, -ENOMEM, "no memory to write the model");
	n->out = out;
	err = obm_place(&n->placed, plan, why, why_len);
	if (!err)
		err = output_reserve(out, n->placed.header.file_bytes, why, why_len);
	if (!err)
		err = alloc(n, why, why_len);
	if (!err)
		err = write_front(n, plan, why, why_len);
	if (err)
		obm_writer_free(n);
	else
		*w = n;
	return err;
}

struct obm_writer *obm_writer_free(struct obm_writer *w)
{
	if (!w)
		return NULL;
	hasher_deinit(&w->hash);
	XXH3_freeState(w->xxh3);
	free(w->placed.tensors);
	free(w->tile);
	free(w->scales);
	free(w);
	return NULL;
}

const struct obm_tensor *obm_writer_tensor(const struct obm_writer *w)
{
	return w->tensor < w->placed.n_tensors ? &w->placed.tensors[w->tensor] : NULL;
}

static int refuse_value(const struct obm_tensor *t, const char *what, uint64_t row, uint64_t col,
			char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	return fail(why, why_len, -EPROTO, "%s %llu of row %llu of tensor %s is no finite number",
		    what, (unsigned long long)col, (unsigned long long)row,
		    obm_name(t->role, t->layer, name));
}

/* Halves that overflowed on their way. */
static int check_halves(const struct obm_tensor *t, const uint16_t *halves, uint32_t row,
			uint32_t n, char *why, size_t why_len)
{
	uint16_t top = t->layout == PACKED_F16 ? 0x7c00 : 0x7f80;

	for (uint64_t i = 0; i < (uint64_t)n * t->cols; i++)
		if ((halves[i] & top) == top)
			return refuse_value(t, "value", row + i / t->cols, i % t->cols, why,
					    why_len);
	return 0;
}

/* Rows' scales to their places in [group][row]. */
static int keep_scales(struct obm_writer *w, const struct obm_tensor *t, const float *scales,
		       uint32_t n, char *why, size_t why_len)
{
	uint64_t stride = obm_align(t->rows, PACKED_ROWS);

	for (uint32_t r = 0; r < n; r++)
		for (uint32_t g = 0; g < t->groups; g++) {
			float s = scales[(uint64_t)r * t->groups + g];

			if (!isfinite(s))
				return refuse_value(t, "scale", w->row + r, g, why, why_len);
			w->scales[g * stride + w->row + r] = s;
		}
	return 0;
}

static int put_floats(struct obm_writer *w, const struct obm_tensor *t, const float *f, char *why,
		      size_t why_len)
{
	uint64_t bad = obm_not_finite(f, t->cols);

	if (bad < t->cols)
		return refuse_value(t, "value", 0, bad, why, why_len);
	return put(w, f, t->bytes, why, why_len);
}

static int put_tile(struct obm_writer *w, const struct obm_tensor *t, const void *rows,
		    const float *scales, uint32_t n, char *why, size_t why_len)
{
	struct packed_shape shape = obm_shape(t);
	int err = 0;

	if (t->layout == PACKED_F16 || t->layout == PACKED_BF16)
		err = check_halves(t, rows, w->row, n, why, why_len);
	if (!err && t->scales) {
		if (!w->row)
			memset(w->scales, 0, packed_n_scales(&shape) * sizeof(float));
		err = keep_scales(w, t, scales, n, why, why_len);
	}
	if (err)
		return err;
	packed_tile(&shape, rows, n, w->tile);
	return put(w, w->tile, t->bytes / packed_tiles(&shape), why, why_len);
}

static int put_scales(struct obm_writer *w, const struct obm_tensor *t, char *why, size_t why_len)
{
	struct packed_shape shape = obm_shape(t);
	int err = put_zeros(w, t->scales, why, why_len);

	return err ? err : put(w, w->scales, packed_n_scales(&shape) * sizeof(float), why, why_len);
}

int obm_writer_rows(struct obm_writer *w, const void *rows, const float *scales, uint32_t n,
		    char *why, size_t why_len)
{
	const struct obm_tensor *t = obm_writer_tensor(w);
	struct obm_section *s;
	int err = 0;

	assert(!w->failed && t && (!t->scales || scales));
	s = &w->placed.weights[t->layer + 1];
	assert(n == (t->rows - w->row < PACKED_ROWS ? t->rows - w->row : PACKED_ROWS));
	if (!w->row)
		err = t->offset == s->offset ? begin_section(w, s, why, why_len) :
					       put_zeros(w, t->offset, why, why_len);
	if (!err)
		err = t->layout ? put_tile(w, t, rows, scales, n, why, why_len) :
				  put_floats(w, t, rows, why, why_len);
	w->row += n;
	if (!err && w->row == t->rows) {
		if (t->scales)
			err = put_scales(w, t, why, why_len);
		w->row = 0;
		w->tensor++;
		if (!err && (w->tensor == w->placed.n_tensors || t[1].layer != t->layer))
			end_section(w, s);
	}
	w->failed = err;
	return err;
}

int obm_writer_finish(struct obm_writer *w, uint8_t identity[32], char *why, size_t why_len)
{
	struct obm_section *s = &w->placed.sections[w->placed.header.n_sections - 1];
	uint8_t page[OBM_HEADER_MAX] = { 0 };
	int err;

	assert(!w->failed && w->tensor == w->placed.n_tensors);
	err = put_plain(w, NULL, s->offset - w->at, why, why_len);
	if (!err)
		err = flush_chunk(w, why, why_len);
	hasher_join(&w->hash);
	w->failed = true; /* nothing more comes */
	if (err)
		return err;
	assert(w->hash.out * 32 == s->bytes);
	s->xxh3 = XXH3_64bits(w->hash.digests, s->bytes);
	err = output_write(w->out, w->hash.digests, s->bytes, why, why_len);
	if (err)
		return err;

	memcpy(page, &w->placed.header, sizeof(w->placed.header));
	memcpy(page + sizeof(w->placed.header), w->placed.sections,
	       w->placed.header.n_sections * sizeof(*s));
	obm_identity(page, w->placed.header.header_bytes, w->hash.digests, s->bytes,
		     w->placed.header.identity);
	memcpy(page, &w->placed.header, sizeof(w->placed.header));
	w->placed.header.header_xxh3 = obm_header_xxh3(page, w->placed.header.header_bytes);
	memcpy(page, &w->placed.header, sizeof(w->placed.header));
	err = output_write_at(w->out, 0, page, w->placed.header.header_bytes, why, why_len);
	if (!err)
		memcpy(identity, w->placed.header.identity, sizeof(w->placed.header.identity));
	return err;
}

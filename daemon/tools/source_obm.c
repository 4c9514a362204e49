/* SPDX-License-Identifier: MIT */
/*
 * An .obm as a source: to go to another layout, to a peer's format, or to be compared. obm_open()
 * has checked everything but the codes themselves, which are looked at as their tiles are unpacked.
 * Codes, scales and halves come out exactly as they went in, and the vocabulary builds the same
 * section again.
 */
#include "source.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "mapped.h"
#include "obm_check.h"

#define THREADS_MAX 16

struct source_obm {
	struct source s; /* what the caller has */
	struct obm *o;
	char *path;
	void *tile; /* rows of one, unpacked, of the widest tensor */
};

static struct source_obm *self(struct source *s)
{
	return (struct source_obm *)s; /* its first member */
}

static const struct obm_tensor *tensor_of(const struct source_tensor *t)
{
	return t->private_data;
}

static uint32_t rows_in(const struct obm_tensor *t, uint32_t tile)
{
	uint32_t left = t->rows - tile * PACKED_ROWS;

	return left < PACKED_ROWS ? left : PACKED_ROWS;
}

/* Rows in the form that packed_untile() gives, size bytes each, into out. */
static int read_rows(struct source_obm *s, const struct obm_tensor *t, uint32_t row0, uint32_t n,
		     uint64_t size, uint8_t *out, char *why, size_t why_len)
{
	struct packed_shape shape = obm_shape(t);
	uint64_t bytes = t->bytes / packed_tiles(&shape);
	char name[OBM_NAME_MAX];

	for (uint32_t end = row0 + n; row0 < end; row0 += n) {
		uint32_t tile = row0 / PACKED_ROWS, first = row0 % PACKED_ROWS,
			 there = rows_in(t, tile);
		const uint8_t *from = s->o->base + t->offset + tile * bytes;

		n = end - row0 < there - first ? end - row0 : there - first;
		if (!packed_tile_is_valid(&shape, from, there))
			return fail(why, why_len, -EPROTO,
				    "%s: tensor %s holds what is no weight, in rows %u to %u",
				    s->path, obm_name(t->role, t->layer, name), row0 - first,
				    row0 - first + there - 1);
		/* A whole tile needs no step between. */
		packed_untile(&shape, from, there, n == there ? out : s->tile);
		if (n < there)
			memcpy(out, (uint8_t *)s->tile + first * size, n * size);
		out += n * size;
	}
	return 0;
}

static void read_scales(const struct source_obm *s, const struct obm_tensor *t, uint32_t row0,
			uint32_t n, float *scales)
{
	const float *from = (const void *)(s->o->base + t->scales);
	uint64_t stride = obm_align(t->rows, PACKED_ROWS);

	for (uint32_t r = 0; r < n; r++)
		for (uint32_t g = 0; g < t->groups; g++)
			scales[(uint64_t)r * t->groups + g] = from[g * stride + row0 + r];
}

static int read_codes(struct source *source, const struct source_tensor *st, uint32_t row0,
		      uint32_t n, int8_t *codes, float *scales, char *why, size_t why_len)
{
	struct source_obm *s = self(source);
	const struct obm_tensor *t = tensor_of(st);
	char name[OBM_NAME_MAX];
	int err;

	err = read_rows(s, t, row0, n, t->cols, (uint8_t *)codes, why, why_len);
	if (err)
		return err;
	if (t->layout == PACKED_INT8) {
		const int8_t *bad = memchr(codes, 0x80, (size_t)n * t->cols);

		if (bad)
			return fail(why, why_len, -EPROTO,
				    "%s: tensor %s holds code -128, in row %u, column %u", s->path,
				    obm_name(t->role, t->layer, name),
				    row0 + (uint32_t)((uint64_t)(bad - codes) / t->cols),
				    (uint32_t)((uint64_t)(bad - codes) % t->cols));
	}
	if (scales)
		read_scales(s, t, row0, n, scales);
	return 0;
}

/* PACKED_INT8: code times scale, one rounding, as NUMERICS has the embedding. */
static int read_int8(struct source_obm *s, const struct source_tensor *st, uint32_t row0,
		     uint32_t n, float *floats, char *why, size_t why_len)
{
	const struct obm_tensor *t = tensor_of(st);
	uint64_t all = (uint64_t)n * t->cols;
	/*
	 * At the end of where the floats will be, so that no code is overwritten before it is read.
	 */
	int8_t *codes = (int8_t *)floats + all * (sizeof(float) - 1);
	int err = read_codes(&s->s, st, row0, n, codes, NULL, why, why_len);

	for (uint32_t r = 0; !err && r < n; r++) {
		uint64_t end = (uint64_t)(r + 1) * t->cols;
		float scale = 0;

		read_scales(s, t, row0 + r, 1, &scale);
		for (uint64_t i = (uint64_t)r * t->cols; i < end; i++) {
			float code = codes[i];

			floats[i] = code * scale;
		}
	}
	return err;
}

static int read_floats(struct source *source, const struct source_tensor *st, uint32_t row0,
		       uint32_t n, float *floats, char *why, size_t why_len)
{
	struct source_obm *s = self(source);
	const struct obm_tensor *t = tensor_of(st);
	uint64_t all = (uint64_t)n * t->cols;
	uint16_t *halves = (void *)((uint8_t *)floats + all * sizeof(*halves));
	int err;

	if (t->layout == PACKED_INT8)
		return read_int8(s, st, row0, n, floats, why, why_len);
	if (!t->layout) {
		memcpy(floats, s->o->base + t->offset, t->bytes);
		return 0;
	}
	/*
	 * The second half of the room; each is read before the float that comes to lie on it is
	 * put.
	 */
	err = read_rows(s, t, row0, n, t->cols * sizeof(*halves), (uint8_t *)halves, why, why_len);
	for (uint64_t i = 0; !err && i < all; i++) {
		uint16_t h;

		memcpy(&h, &halves[i], sizeof(h));
		floats[i] = t->layout == PACKED_F16 ? half_to_float(h) : bf16_to_float(h);
	}
	return err;
}

static void done(struct source *s, const struct source_tensor *st)
{
	struct mapped m = { .data = self(s)->o->base, .bytes = self(s)->o->bytes };

	mapped_forget(&m, tensor_of(st)->offset, tensor_of(st)->bytes);
}

static void close_obm(struct source *source)
{
	struct source_obm *s = self(source);

	obm_close(s->o);
	free(s->path);
	free(s->tile);
	free(s);
}

static const struct source_ops ops = {
	.read_codes = read_codes,
	.read_floats = read_floats,
	.done = done,
	.close = close_obm,
};

/* ---- opening --------------------------------------------------------------------------------- */

static int fill_tensors(struct source_obm *s)
{
	uint64_t widest = 0;

	s->s.tensors = calloc(s->o->n_tensors, sizeof(*s->s.tensors));
	if (!s->s.tensors)
		return -ENOMEM;
	s->s.n_tensors = s->o->n_tensors;
	for (uint32_t i = 0; i < s->o->n_tensors; i++) {
		static const enum source_form forms[PACKED_COUNT] = {
			[0] = SOURCE_F32,
			[PACKED_2BIT] = SOURCE_TERNARY,
			[PACKED_BASE3] = SOURCE_TERNARY,
			[PACKED_INT8] = SOURCE_INT8,
			[PACKED_F16] = SOURCE_F16,
			[PACKED_BF16] = SOURCE_BF16,
		};
		const struct obm_tensor *t = &s->o->tensors[i];

		s->s.tensors[i] = (struct source_tensor){
			.role = t->role,
			.layer = t->layer,
			.rows = t->rows,
			.cols = t->cols,
			.groups = t->scales ? t->groups : 0,
			.form = forms[t->layout],
			.stored = t->layout ? packed_name(t->layout) : "f32",
			.private_data = t,
		};
		widest = t->cols > widest ? t->cols : widest;
	}
	s->tile = malloc(widest * PACKED_ROWS * sizeof(uint16_t));
	return s->tile ? 0 : -ENOMEM;
}

/* A text with its end, without the lines that a converter writes itself. */
static int copy_text(const struct obm *o, uint32_t kind, char **out)
{
	static const char own[] = "converter: ";
	uint64_t bytes;
	const char *from = obm_section(o, kind, 0, &bytes), *end;
	char *to;

	if (!from)
		return 0;
	*out = to = malloc(bytes + 1);
	if (!to)
		return -ENOMEM;
	for (end = from + bytes; from < end;) {
		const char *line = memchr(from, '\n', (size_t)(end - from));
		size_t n = line ? (size_t)(line + 1 - from) : (size_t)(end - from);

		if (kind != OBM_INFO || n < sizeof(own) - 1 || memcmp(from, own, sizeof(own) - 1)) {
			memcpy(to, from, n);
			to += n;
		}
		from += n;
	}
	*to = 0;
	return 0;
}

static int fill(struct source_obm *s, const struct source_options *options, char *why,
		size_t why_len)
{
	const struct obm *o = s->o;
	const void *section;
	char inner[256];
	uint64_t bytes;
	int err;

	s->s.ops = &ops;
	s->s.format = "obm";
	s->s.arch = *o->arch;
	memset(s->s.arch.rope_sha256, 0, sizeof(s->s.arch.rope_sha256));
	s->s.rope_theta = (double)o->arch->rope_theta;
	s->s.rope = obm_section(o, OBM_ROPE, 0, NULL);
	s->s.qk = SOURCE_QK_SPLIT;
	s->s.file_bytes = o->bytes;
	err = fill_tensors(s);
	if (!err)
		err = copy_text(o, OBM_INFO, &s->s.info);
	if (!err)
		err = copy_text(o, OBM_LICENCE, &s->s.licence);
	if (err)
		return fail(why, why_len, err, "%s: no memory", s->path);
	if (options && options->tokenizer)
		return vocab_read(options->tokenizer, o->arch->vocab, &s->s.vocab, why, why_len);
	section = obm_section(o, OBM_TOKENIZER, 0, &bytes);
	err = vocab_from_section(section, bytes, &s->s.vocab, inner, sizeof(inner));
	return err ? fail(why, why_len, err, "%s: its tokenizer: %s", s->path, inner) : 0;
}

int source_open_obm(const char *path, const struct source_options *options, struct source **out,
		    char *why, size_t why_len)
{
	struct source_obm *s = calloc(1, sizeof(*s));
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	char inner[400];
	int err, fd;

	if (!s)
		return fail(why, why_len, -ENOMEM, "%s: no memory", path);
	s->path = strdup(path);
	/* Not to wait for the other end of a pipe: obm_open() refuses it. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (!s->path || fd < 0) {
		err = fail(why, why_len, s->path ? -errno : -ENOMEM, "%s: cannot be opened: %s",
			   path, s->path ? strerror(errno) : "no memory");
		goto out;
	}
	/* Tensors are read once, front to back: what was checked need not stay for that. */
	err = obm_open(fd, OBM_FORGET | (options && options->unchecked ? OBM_UNCHECKED : 0),
		       cpus < 1		  ? 1 :
		       cpus > THREADS_MAX ? THREADS_MAX :
					    (unsigned)cpus,
		       &s->o, inner, sizeof(inner));
	if (err)
		fail(why, why_len, err, "%s: %s", path, inner);
	else
		err = fill(s, options, why, why_len);
out:
	if (fd >= 0)
		close(fd);
	if (err) {
		s->s.vocab = vocab_free(s->s.vocab);
		free(s->s.tensors);
		free(s->s.info);
		free(s->s.licence);
		close_obm(&s->s);
	} else {
		*out = &s->s;
	}
	return err;
}

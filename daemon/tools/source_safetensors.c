/* SPDX-License-Identifier: MIT */
/*
 * Hugging Face folders: config.json, safetensors, and the texts beside them. Which tensor is what
 * is said by hf_bind.c; here they are read.
 *
 * A packed row's bytes hold rows of four quarters of the matrix, so reading all rows goes over them
 * four times; they stay in the page cache, mostly in the CPU's, and cost a shift and a mask for 16
 * codes.
 */
#include "source.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "hf_source.h"
#include "hf_values.h"
#include "mapped.h"

#define FORGET (16u << 20) /* bytes */
#define README_BYTES (64u << 10) /* of its beginning: the licence stands in the first lines */

static struct hf *hf_of(struct source *s)
{
	return (struct hf *)s;
}

/* ---- values --------------------------------------------------------------------------------- */

/*
 * Who reads a tensor does so from its first row to its last; what lies behind need not stay in
 * memory, where an embedding would be larger than all that converting takes besides.
 */
static void forget_behind(struct hf *h, const struct safetensors_tensor *t, uint64_t end,
			  uint64_t bytes)
{
	h->touched += bytes;
	if (h->touched < FORGET)
		return;
	h->touched = h->touched < end ? h->touched : end;
	mapped_forget(&h->st->files[t->file].map, t->offset + end - h->touched, h->touched);
	h->touched = 0;
}

int hf_read_floats(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		   float *floats, char *why, size_t why_len)
{
	const struct hf_storage *from = t->private_data;
	uint64_t first = (uint64_t)row0 * t->cols, count = (uint64_t)n * t->cols, at;
	uint32_t size = hf_element_bytes(from->t->type);
	struct hf *h = hf_of(s);

	assert(!from->packed_rows && row0 <= t->rows && n <= t->rows - row0);
	at = hf_widen(from->t->type, safetensors_data(h->st, from->t) + first * size, floats,
		      count);
	if (at < count)
		return fail(
			why, why_len, -EPROTO,
			"%s: row %llu, column %llu is infinite or no number; the file is damaged",
			from->t->name, (unsigned long long)((first + at) / t->cols),
			(unsigned long long)((first + at) % t->cols));
	forget_behind(h, from->t, (first + count) * size, count * size);
	return 0;
}

static int read_packed(struct hf *h, const struct source_tensor *t, uint32_t row0, uint32_t n,
		       int8_t *codes, char *why, size_t why_len)
{
	const struct hf_storage *from = t->private_data;
	const uint8_t *data = safetensors_data(h->st, from->t);

	for (uint32_t r = 0, run; r < n; r += run) {
		uint32_t quarter = (row0 + r) / from->packed_rows,
			 at = (row0 + r) % from->packed_rows;
		int8_t *to = codes + (size_t)r * t->cols;
		uint64_t i = 0, row;

		run = n - r < from->packed_rows - at ? n - r : from->packed_rows - at;
		if (!hf_unpack(data + (uint64_t)at * t->cols, (uint64_t)run * t->cols, 2 * quarter,
			       to))
			continue;
		while (to[i] != 2)
			i++;
		row = row0 + r + i / t->cols;
		return fail(why, why_len, -EPROTO,
			    "%s: row %llu, column %llu has code 3, which stands for nothing; the "
			    "file is damaged",
			    from->t->name, (unsigned long long)row,
			    (unsigned long long)(i % t->cols));
	}
	return 0;
}

/* A row that is not as the first rows were. */
static int refuse_row(const struct source_tensor *t, const float *row, uint32_t at, char *why,
		      size_t why_len)
{
	const struct hf_storage *from = t->private_data;
	uint32_t width = t->cols / t->groups;

	for (uint32_t i = 0, first = 0; i < t->cols; i++) {
		first = i % width == 0 || row[first] == 0 ? i : first;
		if (row[i] == 0 || row[i] == row[first] || row[i] == -row[first])
			continue;
		return fail(why, why_len, -EPROTO,
			    "%s: row %u, column %u holds %.9g, and column %u holds %.9g: no "
			    "longer ternary with %u scale%s a row, as rows before it were",
			    from->t->name, at, i, (double)row[i], first, (double)row[first],
			    t->groups, t->groups == 1 ? "" : "s");
	}
	assert(!"a row that cannot be split has no reason");
	return -EPROTO;
}

static int read_codes(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		      int8_t *codes, float *scales, char *why, size_t why_len)
{
	const struct hf_storage *from = t->private_data;
	struct hf *h = hf_of(s);
	int err = 0;

	assert(t->form == SOURCE_TERNARY && row0 <= t->rows && n <= t->rows - row0);
	if (from->packed_rows)
		err = read_packed(h, t, row0, n, codes, why, why_len);
	for (uint32_t r = 0; !err && !from->packed_rows && r < n; r++) {
		int8_t *to = codes + (size_t)r * t->cols;

		err = hf_read_floats(s, t, row0 + r, 1, h->row, why, why_len);
		if (err)
			break;
		for (uint32_t i = 0; from->is_codes && i < t->cols; i++)
			if (h->row[i] != 0 && h->row[i] != 1 && h->row[i] != -1)
				return fail(why, why_len, -EPROTO,
					    "%s: row %u, column %u holds %.9g; with a "
					    "weight_scale beside it, only -1, 0 and 1 can be",
					    from->t->name, row0 + r, i, (double)h->row[i]);
		if (ternary_split(h->row, 1, t->cols, t->groups, to,
				  scales && !from->is_codes ? scales + (size_t)r * t->groups
							    : NULL))
			return refuse_row(t, h->row, row0 + r, why, why_len);
	}
	for (uint32_t r = 0; !err && scales && (from->packed_rows || from->is_codes) && r < n; r++)
		scales[r] = from->scale;
	return err;
}

static void done(struct source *s, const struct source_tensor *t)
{
	const struct hf_storage *from = t->private_data;

	mapped_forget(&hf_of(s)->st->files[from->t->file].map, from->t->offset, from->t->bytes);
}

static void close_hf(struct source *s)
{
	struct hf *h = hf_of(s);

	safetensors_close(h->st);
	free(h->storage);
	free(h->folder);
	free(h->row);
	free(h);
}

static const struct source_ops ops = { read_codes, hf_read_floats, done, close_hf };

/* ---- texts ---------------------------------------------------------------------------------- */

/* A file of the folder, if it is there. */
static bool map_beside(const struct hf *h, const char *name, struct mapped *m)
{
	char *path, why[256];
	bool is;

	if (asprintf(&path, "%s/%s", h->folder, name) < 0)
		return false;
	is = !mapped_open(path, m, why, sizeof(why));
	free(path);
	return is;
}

static int read_config(struct hf *h, char *why, size_t why_len)
{
	struct mapped m = { 0 };
	char *path;
	int err;

	if (asprintf(&path, "%s/config.json", h->folder) < 0)
		return fail(why, why_len, -ENOMEM, "no memory for a path");
	err = mapped_open(path, &m, why, why_len);
	if (!err)
		err = hf_config_parse(m.data, m.bytes, "config.json", &h->config, why, why_len);
	mapped_close(&m);
	free(path);
	return err;
}

static void read_licence(struct hf *h)
{
	static const char *const files[] = { "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE" };
	struct mapped m;

	for (size_t i = 0; !h->s.licence && i < sizeof(files) / sizeof(*files); i++) {
		if (!map_beside(h, files[i], &m))
			continue;
		if (m.bytes <= OBM_TEXT_MAX && !memchr(m.data, 0, m.bytes))
			h->s.licence = strndup((const char *)m.data, m.bytes);
		mapped_close(&m);
	}
}

/* What the forms of the linear layers come to, for a person. */
static const char *form_of(const struct hf *h)
{
	const struct source_tensor *t = source_find(&h->s, OBM_Q, 0);
	const struct hf_storage *from = t ? t->private_data : NULL;
	const bool is_auto = h->config.linear == HF_LINEAR_AUTO;

	if (!from)
		return "no linear layers";
	if (t->form == SOURCE_MASTER)
		return "master weights";
	if (from->packed_rows)
		return is_auto ? "packed (autobitlinear)" : "packed (bitlinear)";
	if (from->is_codes)
		return is_auto ? "codes (autobitlinear)" : "codes (bitlinear)";
	return "ternary floats";
}

static int write_info(struct hf *h, char *why, size_t why_len)
{
	const struct source_tensor *q = source_find(&h->s, OBM_Q, 0);
	char licence[64] = "";
	struct mapped m;
	size_t len;
	FILE *f = open_memstream(&h->s.info, &len);

	if (!f)
		return fail(why, why_len, -ENOMEM, "no memory for the model's description");
	fprintf(f, "source: Hugging Face safetensors, %s, %s\n", h->config.architecture,
		form_of(h));
	if (q)
		fprintf(f, "stored: %s\n", q->stored);
	if (map_beside(h, "README.md", &m)) {
		hf_readme_licence(m.data, m.bytes < README_BYTES ? m.bytes : README_BYTES, licence,
				  sizeof(licence));
		mapped_close(&m);
	}
	if (*licence)
		fprintf(f, "licence: %s\n", licence);
	if (h->s.arch.flags & OBM_FLAG_A8_IMPOSED)
		fputs("note: trained with float activations; served with int8 activations\n", f);
	if (*h->vocab_note)
		fprintf(f, "note: %s\n", h->vocab_note);
	if (h->config.has_rope)
		fputs("note: rotary frequencies are scaled as config.json says\n", f);
	if (h->config.is_tied && h->config.says_tied && safetensors_find(h->st, "lm_head.weight"))
		fputs("note: lm_head.weight was left out, since the head is tied to the "
		      "embedding\n",
		      f);
	/* Closed in either case. */
	if (ferror(f) | fclose(f))
		return fail(why, why_len, -ENOMEM, "no memory for the model's description");
	return 0;
}

/* Without a tokenizer, or with one that cannot be read, `info` can still describe the model. */
static int read_vocab(struct hf *h, const char *file, char *why, size_t why_len)
{
	struct source *s = &h->s;
	int err;

	if (file)
		return vocab_read(file, s->arch.vocab, &s->vocab, why, why_len);
	err = vocab_read_folder(h->folder, s->arch.vocab, &s->vocab, h->vocab_note,
				sizeof(h->vocab_note));
	if (err == -ENOMEM)
		return fail(why, why_len, err, "%s", h->vocab_note);
	if (err) {
		memcpy(s->no_vocab, h->vocab_note, sizeof(s->no_vocab));
		h->vocab_note[0] = 0;
	}
	return 0;
}

/* ---- open ----------------------------------------------------------------------------------- */

/* The folder's own name, for models whose config.json has none. */
static void name_folder(struct hf *h)
{
	char *whole = realpath(h->folder, NULL);
	const char *slash = whole ? strrchr(whole, '/') : NULL;

	for (size_t i = 1; slash && slash[i] && i < sizeof(h->s.arch.name); i++)
		h->s.arch.name[i - 1] = slash[i] > 0x20 && slash[i] < 0x7f ? slash[i] : '_';
	free(whole);
}

int source_open_safetensors(const char *path, const struct source_options *o, struct source **out,
			    char *why, size_t why_len)
{
	struct hf *h = calloc(1, sizeof(*h));
	struct source *s = &h->s;
	int err;

	if (!h)
		return fail(why, why_len, -ENOMEM, "%s: no memory", path);
	s->ops = &ops;
	s->format = "safetensors";
	s->qk = SOURCE_QK_SPLIT;
	err = safetensors_open(path, &h->st, why, why_len);
	if (err)
		goto out;
	h->folder = strdup(h->st->folder);
	if (!h->folder) {
		err = fail(why, why_len, -ENOMEM, "%s: no memory", path);
		goto out;
	}
	if ((err = read_config(h, why, why_len)) || (err = hf_bind(h, o->linear, why, why_len)))
		goto out;
	s->arch = h->config.arch;
	s->rope_theta = h->config.rope_theta;
	s->rope = h->config.has_rope ? h->config.rope : NULL;
	s->file_bytes = h->st->bytes;
	if (!h->config.is_bitnet && h->config.mode == HF_MODE_PLAIN)
		s->arch.flags |= OBM_FLAG_A8_IMPOSED;
	if (!*s->arch.name)
		name_folder(h);
	read_licence(h);
	err = read_vocab(h, o->tokenizer, why, why_len);
	if (!err)
		err = write_info(h, why, why_len);
out:
	if (err) {
		source_close(s);
		return err;
	}
	*out = s;
	return 0;
}

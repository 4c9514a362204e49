/* SPDX-License-Identifier: MIT */
/*
 * Rows of GGUF tensors with their scales.
 *
 * TQ1_0 and TQ2_0 have a scale to each block of 256 columns. A ternary model's are equal along a
 * row, or along equal column groups of it; blocks that hold only zeros have any scale or none and
 * bind nothing. Which number of groups explains all rows is found as for floats: each divisor of a
 * row's blocks is a candidate, a row strikes out those that do not explain it, the least that is
 * left is the answer.
 *
 * Our own scales say what the numbers were in binary32. They are believed only where the file's own
 * are their rounding, block for block, so that nobody's newer weights are read with an older file's
 * scales.
 */
#include "gguf_stored.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "packed.h"
#include "source.h"

#define HALF_MAGNITUDE 0x7fffu
#define HALF_INFINITE  0x7c00u

/* Floats that are looked at at once: they stay in a core's cache. */
#define CHUNK_FLOATS (1u << 16)

static bool is_blocks(enum gguf_kind kind)
{
	return kind == GGUF_KIND_TQ1_0 || kind == GGUF_KIND_TQ2_0;
}

static const uint8_t *row_of(const struct gguf_stored *s, uint32_t row)
{
	return s->data + row * s->row_bytes;
}

static float load_float(const uint8_t *p)
{
	struct cursor c = { .data = p, .bytes = 4 };

	return cursor_f32(&c);
}

static float own_scale(const struct gguf_stored *s, uint32_t row, uint32_t group)
{
	return load_float(s->own + 4 * ((uint64_t)row * s->groups + group));
}

int gguf_stored_open(struct gguf_stored *s, const struct gguf_tensor *t, const uint8_t *data,
		     uint32_t alignment, char *why, size_t why_len)
{
	int err;

	*s = (struct gguf_stored){ .tensor = t, .factor = 1.0f };
	gguf_show(t->name, s->name);
	if (t->deep)
		return fail(why, why_len, -EPROTO, "tensor %s has more than two dimensions",
			    s->name);
	if (t->rows > PACKED_ROWS_MAX || t->cols > PACKED_COLS_MAX)
		return fail(why, why_len, -EFBIG,
			    "tensor %s is %llu x %llu; at most %u x %u is supported", s->name,
			    (unsigned long long)t->rows, (unsigned long long)t->cols,
			    PACKED_ROWS_MAX, PACKED_COLS_MAX);
	err = gguf_kind(t, alignment, &s->kind, why, why_len);
	if (err)
		return err;
	s->rows = (uint32_t)t->rows;
	s->cols = (uint32_t)t->cols;
	s->row_bytes = gguf_row_bytes(s->kind, s->cols);
	s->data = data + t->offset;
	return 0;
}

/* ---- our own scales -------------------------------------------------------------------------- */

/* 0 and own, groups set; GGUF_ABSENT. */
static int find_own(struct gguf_stored *s, const struct gguf *g, char *why, size_t why_len)
{
	char key[sizeof(GGUF_OWN_SCALES) + GGUF_NAME_MAX];
	const struct gguf_pair *p;
	uint64_t groups;
	int err;

	snprintf(key, sizeof(key), GGUF_OWN_SCALES "%.*s", (int)s->tensor->name.len,
		 s->tensor->name.text);
	err = gguf_array(g, key, GGUF_F32, &p, why, why_len);
	if (err)
		return err;
	groups = p->n / s->rows;
	if (!groups || p->n % s->rows || groups > PACKED_GROUPS_MAX || s->cols % groups)
		return fail(why, why_len, -EPROTO,
			    "tensor %s of %u x %u has %llu scales in the metadata, which "
			    "is no whole number to a row",
			    s->name, s->rows, s->cols, (unsigned long long)p->n);
	s->groups = (uint32_t)groups;
	s->own = p->data;
	return 0;
}

static int not_theirs(const struct gguf_stored *s, uint32_t row, uint32_t col, char *why,
		      size_t why_len)
{
	return fail(why, why_len, -EPROTO,
		    "tensor %s, row %u, column %u: the weights are not those that the "
		    "scales in the metadata (" GGUF_OWN_SCALES "...) were written for; remove "
							       "those keys if "
		    "another program changed the weights",
		    s->name, row, col);
}

/* ---- how many groups ------------------------------------------------------------------------- */

static bool block_is_zero(const struct gguf_stored *s, const uint8_t *row, uint32_t block)
{
	int8_t codes[256];

	gguf_row_codes(s->kind, row + block * gguf_row_bytes(s->kind, 256), 256, codes);
	for (int i = 0; i < 256; i++)
		if (codes[i])
			return false;
	return true;
}

/* Scales that bind nothing are 0. */
static bool groups_explain(const uint16_t *scale, uint32_t n, uint32_t groups)
{
	for (uint32_t i = 0; i < n; i += n / groups) {
		uint16_t first = 0;

		for (uint32_t j = i; j < i + n / groups; j++) {
			if (scale[j] && first && scale[j] != first)
				return false;
			first = first ? first : scale[j];
		}
	}
	return true;
}

/* The figures that struck out the last candidate. */
static int refuse_scales(const struct gguf_stored *s, uint32_t row, const uint16_t *scale,
			 uint32_t n, uint32_t groups, char *why, size_t why_len)
{
	uint32_t width = n / groups, at = 0;

	for (uint32_t j = 0; j < n; j++) {
		if (j % width == 0 || !scale[at])
			at = j;
		if (scale[j] && scale[j] != scale[at])
			return fail(why, why_len, -ENOTSUP,
				    "tensor %s, row %u: the scale is %.9g at column %u "
				    "and %.9g at column %u: not one a row, nor one for each of "
				    "equal column "
				    "groups (%u at most)",
				    s->name, row, (double)half_to_float(scale[at]), at * 256,
				    (double)half_to_float(scale[j]), j * 256, PACKED_GROUPS_MAX);
	}
	assert(!"a row that was struck out has no reason");
	return -EPROTO;
}

static int block_groups(struct gguf_stored *s, char *why, size_t why_len)
{
	const uint32_t n = s->cols / 256;
	uint32_t candidate[PACKED_GROUPS_MAX], n_candidates = 0, last = 1;
	uint16_t scale[PACKED_COLS_MAX / 256];

	assert(n);
	for (uint32_t g = 1; g <= n && g <= PACKED_GROUPS_MAX; g++)
		if (n % g == 0)
			candidate[n_candidates++] = last = g;
	for (uint32_t row = 0; row < s->rows; row++) {
		const uint8_t *p = row_of(s, row);
		uint32_t left = 0;
		bool is_one = true;

		for (uint32_t b = 0; b < n; b++) {
			scale[b] = gguf_block_scale(s->kind, p, b);
			if ((scale[b] & HALF_MAGNITUDE) >= HALF_INFINITE)
				return fail(why, why_len, -EPROTO,
					    "tensor %s, row %u, column %u: the scale is "
					    "not finite; the file is damaged",
					    s->name, row, b * 256);
			if (!(scale[b] & HALF_MAGNITUDE))
				scale[b] = 0;
			is_one = is_one && scale[b] == scale[0];
		}
		if (is_one)
			continue;
		for (uint32_t b = 0; b < n; b++)
			if (scale[b] && block_is_zero(s, p, b))
				scale[b] = 0;
		for (uint32_t i = 0; i < n_candidates; i++)
			if (groups_explain(scale, n, candidate[i]))
				candidate[left++] = candidate[i];
		n_candidates = left;
		if (!left)
			return refuse_scales(s, row, scale, n, last, why, why_len);
	}
	s->groups = candidate[0];
	return 0;
}

static int float_groups(struct gguf_stored *s, char *why, size_t why_len)
{
	struct ternary_finder *f = ternary_finder_new(s->rows, s->cols);
	const uint32_t step = s->cols < CHUNK_FLOATS ? CHUNK_FLOATS / s->cols : 1;
	float *floats = malloc((size_t)step * s->cols * sizeof(*floats));
	char reason[256];
	int err = 0;

	if (!f || !floats) {
		err = fail(why, why_len, -ENOMEM, "tensor %s: no memory", s->name);
		goto out;
	}
	for (uint32_t row = 0; row < s->rows && !err; row += step) {
		uint32_t n = s->rows - row < step ? s->rows - row : step;

		err = gguf_stored_floats(s, row, n, floats, why, why_len);
		/* What it fails by is asked for below. */
		if (!err && ternary_finder_rows(f, floats, n))
			break;
	}
	if (err)
		goto out;
	s->groups = ternary_finder_groups(f, reason, sizeof(reason));
	if (!s->groups)
		err = fail(why, why_len, -EPROTO, "tensor %s (%s) is not ternary: %s", s->name,
			   gguf_kind_name(s->kind), reason);
out:
	ternary_finder_free(f);
	free(floats);
	return err;
}

static bool is_scale(float f)
{
	return isfinite(f) && f > 0;
}

/* The tensor of one number that some converters put beside a matrix of -1, 0 and 1. */
static int find_factor(struct gguf_stored *s, const struct gguf *g, const uint8_t *data, char *why,
		       size_t why_len)
{
	static const char *const suffix[] = { "scale", "weight_scale" };
	const size_t stem = s->tensor->name.len - strlen("weight");

	for (int i = 0; i < 2; i++) {
		char name[GGUF_NAME_MAX + 16];
		const struct gguf_tensor *t;
		enum gguf_kind kind;
		int err;

		snprintf(name, sizeof(name), "%.*s%s", (int)stem, s->tensor->name.text, suffix[i]);
		t = gguf_tensor(g, name);
		if (!t)
			continue;
		err = gguf_kind(t, g->alignment, &kind, why, why_len);
		if (err)
			return err;
		if (kind != GGUF_KIND_F32 || t->rows != 1 || t->cols != 1 || t->deep)
			return fail(why, why_len, -ENOTSUP,
				    "tensor %.63s is no single F32 number, as a scale is", name);
		if (s->own)
			return fail(why, why_len, -EPROTO,
				    "tensor %s has scales both in the metadata and in "
				    "%.63s; which hold is not known",
				    s->name, name);
		s->factor *= load_float(data + t->offset);
		if (!is_scale(s->factor))
			return fail(why, why_len, -EPROTO, "tensor %.63s is %g, which is no scale",
				    name, (double)s->factor);
	}
	return 0;
}

int gguf_stored_ternary(struct gguf_stored *s, const struct gguf *g, const uint8_t *data, char *why,
			size_t why_len)
{
	int err = find_own(s, g, why, why_len);

	if (err < 0)
		return err;
	if (!err && s->kind != GGUF_KIND_TQ2_0 && s->kind != GGUF_KIND_Q8_0 &&
	    s->kind != GGUF_KIND_TQ1_0)
		return fail(why, why_len, -EPROTO,
			    "tensor %s is %s, which has no scales in the metadata", s->name,
			    gguf_kind_name(s->kind));
	if (!err && s->cols / s->groups % gguf_kind_cols(s->kind))
		return fail(why, why_len, -EPROTO,
			    "tensor %s has %u groups of scales over %u columns, which are "
			    "no whole blocks of %s",
			    s->name, s->groups, s->cols, gguf_kind_name(s->kind));
	err = find_factor(s, g, data, why, why_len);
	if (err || s->own)
		return err;
	if (s->kind == GGUF_KIND_I2_S) {
		/* Its place is behind the rows. */
		float scale = load_float(row_of(s, s->rows));

		if (!is_scale(scale))
			return fail(why, why_len, -EPROTO,
				    "tensor %s is no I2_S: where its scale would be stands "
				    "%g; the file is damaged, or of a program that means another "
				    "type by "
				    "number %u",
				    s->name, (double)scale, s->tensor->type);
		s->factor *= scale;
	}
	s->groups = 1;
	if (is_blocks(s->kind))
		return block_groups(s, why, why_len);
	if (gguf_kind_is_ternary(s->kind))
		return 0;
	if (s->kind == GGUF_KIND_Q6_K)
		return fail(why, why_len, -ENOTSUP,
			    "tensor %s is Q6_K, which is read for embeddings only: what "
			    "was ternary is lost. Get the model in another type",
			    s->name);
	return float_groups(s, why, why_len);
}

int gguf_stored_int8(struct gguf_stored *s, const struct gguf *g, char *why, size_t why_len)
{
	int err = find_own(s, g, why, why_len);

	if (err == GGUF_ABSENT)
		return 0;
	if (err)
		return err;
	if (s->kind != GGUF_KIND_Q8_0 || s->groups != 1)
		return fail(why, why_len, -EPROTO,
			    "tensor %s is %s with %u scales a row in the metadata; there "
			    "is one where it is Q8_0",
			    s->name, gguf_kind_name(s->kind), s->groups);
	s->is_int8 = true;
	return 0;
}

/* ---- rows ------------------------------------------------------------------------------------ */

static bool is_nonzero(const int8_t *codes, uint32_t n)
{
	int8_t any = 0;

	for (uint32_t i = 0; i < n; i++)
		any |= codes[i];
	return any;
}

/* A group's codes have been decoded; its scale, and zeros where a block's scale makes them so. */
static int group_of_blocks(const struct gguf_stored *s, const uint8_t *p, uint32_t row,
			   uint32_t block0, uint32_t n, int8_t *codes, float *scale, char *why,
			   size_t why_len)
{
	uint16_t bound = 0; /* the first scale that is not 0, or the first that binds */

	for (uint32_t b = 0; b < n; b++, codes += 256) {
		uint16_t d = gguf_block_scale(s->kind, p, block0 + b);

		if (!(d & HALF_MAGNITUDE)) {
			memset(codes, 0, 256);
		} else if (!bound) {
			bound = d;
		} else if (d != bound && is_nonzero(codes, 256)) {
			/* What went before held zeros only: gguf_stored_ternary() has seen to it.
			 */
			if (is_nonzero(codes - 256 * (size_t)b, 256 * b))
				return fail(why, why_len, -EPROTO,
					    "tensor %s, row %u: the file changed while it "
					    "was read",
					    s->name, row);
			bound = d;
		}
	}
	*scale = half_to_float(bound) * s->factor;
	return 0;
}

static int row_of_blocks(const struct gguf_stored *s, uint32_t row, int8_t *codes, float *scales,
			 char *why, size_t why_len)
{
	const uint32_t n = s->cols / 256 / s->groups;
	const uint8_t *p = row_of(s, row);

	for (uint32_t g = 0; g < s->groups; g++) {
		float scale = 0.0f;
		int err = group_of_blocks(s, p, row, g * n, n, codes + (size_t)g * n * 256, &scale,
					  why, why_len);

		if (err)
			return err;
		if (scales)
			scales[g] = scale;
	}
	return 0;
}

/* With our own scales: each block's must be the rounding of its group's. */
static int row_of_own(const struct gguf_stored *s, uint32_t row, float *scales, char *why,
		      size_t why_len)
{
	const uint32_t width = gguf_kind_cols(s->kind), n = s->cols / width;
	const uint8_t *p = row_of(s, row);

	for (uint32_t b = 0; b < n; b++) {
		uint32_t g = b / (n / s->groups);
		float scale = own_scale(s, row, g);

		if (!isfinite(scale) || float_to_half(scale) != gguf_block_scale(s->kind, p, b))
			return not_theirs(s, row, b * width, why, why_len);
		if (scales)
			scales[g] = scale;
	}
	return 0;
}

static int wrong_code(const struct gguf_stored *s, uint32_t row, char *why, size_t why_len)
{
	return fail(why, why_len, -EPROTO,
		    "tensor %s, row %u: a code that %s never has; the file is damaged, "
		    "or of a program that means another type by number %u",
		    s->name, row, gguf_kind_name(s->kind), s->tensor->type);
}

static int codes_of_type(const struct gguf_stored *s, uint32_t row0, uint32_t n, int8_t *codes,
			 float *scales, char *why, size_t why_len)
{
	int err = 0;

	for (uint32_t i = 0; i < n && !err; i++, codes += s->cols) {
		const uint32_t row = row0 + i;
		float scale = s->factor;

		if (!gguf_row_codes(s->kind, row_of(s, row), s->cols, codes))
			return wrong_code(s, row, why, why_len);
		if (s->own) {
			err = row_of_own(s, row, scales, why, why_len);
		} else if (is_blocks(s->kind)) {
			err = row_of_blocks(s, row, codes, scales, why, why_len);
		} else {
			if (s->kind != GGUF_KIND_I2_S)
				scale *= gguf_row_scale(s->kind, row_of(s, row));
			/* A row of zeros may have the scale 0. */
			if (!isfinite(scale) || scale < 0 || (!scale && is_nonzero(codes, s->cols)))
				return fail(why, why_len, -EPROTO,
					    "tensor %s, row %u: its scale is %g; the file "
					    "is damaged",
					    s->name, row, (double)scale);
			if (scales)
				*scales = scale;
		}
		if (scales)
			scales += s->groups;
	}
	return err;
}

static bool are_codes(const int8_t *codes, uint32_t n, bool is_int8)
{
	int8_t wrong = 0;

	for (uint32_t i = 0; i < n; i++)
		wrong |= is_int8 ? codes[i] == INT8_MIN : codes[i] > 1 || codes[i] < -1;
	return !wrong;
}

/* Q8_0 with our own scales: its bytes are the codes. */
static int codes_of_bytes(const struct gguf_stored *s, uint32_t row0, uint32_t n, int8_t *codes,
			  float *scales, char *why, size_t why_len)
{
	for (uint32_t i = 0; i < n; i++, codes += s->cols) {
		const uint8_t *p = row_of(s, row0 + i);
		int err = row_of_own(s, row0 + i, scales, why, why_len);

		if (err)
			return err;
		for (uint32_t b = 0; b < s->cols / 32; b++)
			memcpy(codes + 32 * (size_t)b, p + 34 * (size_t)b + 2, 32);
		if (!are_codes(codes, s->cols, s->is_int8))
			return wrong_code(s, row0 + i, why, why_len);
		if (scales)
			scales += s->groups;
	}
	return 0;
}

static int codes_of_floats(const struct gguf_stored *s, uint32_t row0, uint32_t n, int8_t *codes,
			   float *scales, char *why, size_t why_len)
{
	float *floats = malloc((size_t)s->cols * sizeof(*floats));
	float unused[PACKED_GROUPS_MAX] = { 0 };
	int err = 0;

	if (!floats)
		return fail(why, why_len, -ENOMEM, "tensor %s: no memory", s->name);
	for (uint32_t i = 0; i < n && !err; i++) {
		float *to = scales ? scales + (size_t)i * s->groups : unused;

		err = gguf_stored_floats(s, row0 + i, 1, floats, why, why_len);
		if (!err &&
		    ternary_split(floats, 1, s->cols, s->groups, codes + (size_t)i * s->cols, to))
			err = fail(why, why_len, -EPROTO,
				   "tensor %s, row %u: the file changed while it was "
				   "read",
				   s->name, row0 + i);
		for (uint32_t g = 0; g < s->groups && !err; g++)
			to[g] *= s->factor;
	}
	free(floats);
	return err;
}

int gguf_stored_codes(const struct gguf_stored *s, uint32_t row0, uint32_t n, int8_t *codes,
		      float *scales, char *why, size_t why_len)
{
	assert(s->groups && row0 <= s->rows && n <= s->rows - row0);
	if (gguf_kind_is_ternary(s->kind))
		return codes_of_type(s, row0, n, codes, scales, why, why_len);
	if (s->own)
		return codes_of_bytes(s, row0, n, codes, scales, why, why_len);
	return codes_of_floats(s, row0, n, codes, scales, why, why_len);
}

int gguf_stored_floats(const struct gguf_stored *s, uint32_t row0, uint32_t n, float *floats,
		       char *why, size_t why_len)
{
	assert(!gguf_kind_is_ternary(s->kind) && row0 <= s->rows && n <= s->rows - row0);
	for (uint32_t i = 0; i < n; i++) {
		float *to = floats + (size_t)i * s->cols;

		if (!gguf_row_floats(s->kind, row_of(s, row0 + i), s->cols, to))
			return fail(why, why_len, -EPROTO,
				    "tensor %s, row %u holds a value that is not finite; the "
				    "file is damaged",
				    s->name, row0 + i);
	}
	return 0;
}

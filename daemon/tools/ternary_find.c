/* SPDX-License-Identifier: MIT */
/*
 * Float matrices that are ternary: some models are published as halves in which each value is -s, 0
 * or s, with one s a row, or one for each of equal column groups of a row (the shards on which the
 * model was trained had a scale each). Those can be served without a doubt; anything else cannot,
 * and gets the figures that show it.
 *
 * A row is looked at in runs of 64 columns, the finest that a group boundary may cut. Per run only
 * its magnitude is kept, so the memory is that of one row's runs. Each number of groups that could
 * be is a candidate; a row strikes out those that do not explain it, and the least that survives
 * all rows is the answer. Magnitudes are compared as bits: "the same" means the very same number.
 */
#include "source.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "packed.h"

#define RUN 64u
#define MAGNITUDE 0x7fffffffu
#define INFINITE 0x7f800000u

struct ternary_finder {
	uint32_t rows, cols, row;
	uint32_t n_runs;
	uint32_t *run;	/* the magnitude in each, 0 for a run of zeros */
	uint32_t n_candidates;
	uint32_t candidate[PACKED_GROUPS_MAX]; /* numbers of groups, ascending */
	/* Where the last candidate fell. */
	uint32_t bad_row, bad_col, other_col;
	float bad, other;
};

struct ternary_finder *ternary_finder_new(uint32_t rows, uint32_t cols)
{
	struct ternary_finder *f = calloc(1, sizeof(*f));

	assert(cols);
	if (!f)
		return NULL;
	f->rows = rows;
	f->cols = cols;
	f->n_runs = cols / RUN + (cols % RUN != 0);
	f->run = calloc(f->n_runs, sizeof(*f->run));
	if (!f->run)
		return ternary_finder_free(f);
	for (uint32_t g = 1; g <= PACKED_GROUPS_MAX; g++)
		if (g == 1 || (cols % RUN == 0 && f->n_runs % g == 0))
			f->candidate[f->n_candidates++] = g;
	return f;
}

struct ternary_finder *ternary_finder_free(struct ternary_finder *f)
{
	if (f)
		free(f->run);
	free(f);
	return NULL;
}

/* Of the first value that is not 0; 0 when all are. */
static uint32_t magnitude_of(const float *v, uint32_t n)
{
	uint32_t bits = 0;

	for (uint32_t i = 0; i < n && !(bits & MAGNITUDE); i++)
		memcpy(&bits, &v[i], sizeof(bits));
	return bits & MAGNITUDE;
}

/*
 * Codes of a run; returns whether each of its values is 0 or of this magnitude. A whole run has a
 * fixed length, so that the compiler makes vectors of it.
 */
static bool split_run(const float *restrict v, uint32_t n, uint32_t magnitude,
		      int8_t *restrict codes)
{
	int32_t bad = 0;

	if (n == RUN) {
		for (uint32_t i = 0; i < RUN; i++) {
			int32_t sign, mag, is;
			uint32_t bits;

			memcpy(&bits, &v[i], sizeof(bits));
			mag = (int32_t)(bits & MAGNITUDE);
			sign = -(int32_t)(bits >> 31);
			is = -(mag == (int32_t)magnitude);
			bad |= mag & ~is;
			/* 1, or -1 where sign is all ones, or 0 where nothing is. */
			codes[i] = (int8_t)((1 | sign) & is & -(mag != 0));
		}
		return !bad;
	}
	for (uint32_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, &v[i], sizeof(bits));
		if ((bits & MAGNITUDE) && (bits & MAGNITUDE) != magnitude)
			return false;
		codes[i] = !(bits & MAGNITUDE) ? 0 : bits >> 31 ? -1 : 1;
	}
	return true;
}

/* Row row0 + r has no explanation by this many groups: keep the first two values that show it. */
static void remember(struct ternary_finder *f, const float *row, uint32_t groups)
{
	uint32_t width = f->cols / groups;

	f->bad_row = f->row;
	for (uint32_t i = 0; i < f->cols; i++) {
		uint32_t bits, first;

		if (i % width == 0) {
			f->other = 0;
			f->other_col = i;
		}
		memcpy(&bits, &row[i], sizeof(bits));
		memcpy(&first, &f->other, sizeof(first));
		bits &= MAGNITUDE;
		first &= MAGNITUDE;
		f->bad = row[i];
		f->bad_col = i;
		if (bits >= INFINITE || (bits && first && bits != first))
			return;
		if (bits && !first) {
			f->other = row[i];
			f->other_col = i;
		}
	}
	assert(!"a row that was struck out has no reason");
}

static bool groups_explain(const struct ternary_finder *f, uint32_t groups)
{
	uint32_t n = f->n_runs / groups;

	for (uint32_t g = 0; g < groups; g++) {
		uint32_t magnitude = 0;

		for (uint32_t i = g * n; i < (g + 1) * n; i++) {
			if (f->run[i] && magnitude && f->run[i] != magnitude)
				return false;
			magnitude |= f->run[i];
		}
	}
	return true;
}

static void look_at(struct ternary_finder *f, const float *row)
{
	uint32_t magnitude = 0, left = 0, last = f->candidate[f->n_candidates - 1];
	bool is_one = true;

	for (uint32_t i = 0; i < f->n_runs; i++) {
		const float *v = row + (size_t)i * RUN;
		uint32_t n = f->cols - i * RUN < RUN ? f->cols - i * RUN : RUN;
		int8_t codes[RUN];

		f->run[i] = magnitude_of(v, n);
		if (f->run[i] >= INFINITE || !split_run(v, n, f->run[i], codes)) {
			f->n_candidates = 0;
			remember(f, row, last);
			return;
		}
		is_one = is_one && (!f->run[i] || !magnitude || f->run[i] == magnitude);
		magnitude = f->run[i] ? f->run[i] : magnitude;
	}
	if (is_one)
		return;
	for (uint32_t i = 0; i < f->n_candidates; i++)
		if (groups_explain(f, f->candidate[i]))
			f->candidate[left++] = f->candidate[i];
	f->n_candidates = left;
	if (!left)
		remember(f, row, last);
}

int ternary_finder_rows(struct ternary_finder *f, const float *floats, uint32_t n)
{
	assert(n <= f->rows - f->row);
	for (uint32_t r = 0; r < n; r++, f->row++) {
		if (!f->n_candidates)
			return -EPROTO;
		look_at(f, floats + (size_t)r * f->cols);
	}
	return f->n_candidates ? 0 : -EPROTO;
}

uint32_t ternary_finder_groups(const struct ternary_finder *f, char *why, size_t why_len)
{
	if (f->n_candidates)
		return f->candidate[0];
	fail(why, why_len, -EPROTO,
	     "row %u, column %u holds %.9g, and column %u holds %.9g: not one magnitude a row, "
	     "nor one for each of equal column groups of a multiple of 64 columns (%u at most)",
	     f->bad_row, f->bad_col, (double)f->bad, f->other_col, (double)f->other,
	     PACKED_GROUPS_MAX);
	return 0;
}

int ternary_split(const float *floats, uint32_t n, uint32_t cols, uint32_t groups, int8_t *codes,
		  float *scales)
{
	uint32_t width;

	assert(groups && cols % groups == 0);
	width = cols / groups;
	for (size_t part = 0; part < (size_t)n * groups; part++) {
		const float *v = floats + part * width;
		int8_t *c = codes + part * width;
		uint32_t magnitude = magnitude_of(v, width);

		if (magnitude >= INFINITE)
			return -EPROTO;
		for (uint32_t i = 0; i < width; i += RUN)
			if (!split_run(v + i, width - i < RUN ? width - i : RUN, magnitude, c + i))
				return -EPROTO;
		if (scales)
			memcpy(&scales[part], &magnitude, sizeof(magnitude));
	}
	return 0;
}

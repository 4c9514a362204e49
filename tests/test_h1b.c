/* SPDX-License-Identifier: MIT */
/*
 * .h1b: no name, no checksum, every offset computed. If one were computed wrongly, a model would load and
 * talk nonsense; if a damaged header were believed, memory behind the file would be read.
 */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "h1b.h"
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_h1b.h"
#include "source.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static char why[512];
static struct tiny tiny;

/* Where the writer puts a header's words. */
enum {
	AT_VERSION = 4, AT_HIDDEN = 8, AT_FFN = 12, AT_LAYERS = 16, AT_HEADS = 20, AT_KV_HEADS = 24,
	AT_VOCAB = 28, AT_CONTEXT = 32, AT_TIED = 36, AT_FLAGS = 40, AT_THETA = 44, AT_EPS = 48,
};

static void put32(uint8_t *file, size_t at, uint32_t v)
{
	for (unsigned i = 0; i < 4; i++)
		file[at + i] = (uint8_t)(v >> (8 * i));
}

static void put_float(uint8_t *file, size_t at, float f)
{
	uint32_t bits;

	memcpy(&bits, &f, 4);
	put32(file, at, bits);
}

/* The default is hidden 128, ffn 192, which blocks and Sherry's groups do not divide. */
static void make(uint32_t hidden, uint32_t ffn, uint32_t heads, uint32_t groups)
{
	tiny_default(&tiny, 7);
	tiny.hidden = hidden;
	tiny.ffn = ffn;
	tiny.heads = heads;
	tiny.kv_heads = heads / 2;
	tiny.head_dim = hidden / heads;
	tiny.groups = groups;
	tiny.row_scales = true;
	tiny_fill(&tiny);
}

/* A file of the parser's own, to the byte: what reads behind it is seen by the sanitizer. */
static int parse(const uint8_t *file, size_t bytes, struct h1b *h)
{
	memset(why, 0, sizeof(why));
	return h1b_parse(file, bytes, h, why, sizeof(why));
}

static void refused(const uint8_t *file, size_t bytes, int err, const char *sentence)
{
	struct h1b h;
	int is = parse(file, bytes, &h);

	ck_assert_msg(is == err, "%d instead of %d: %s; expected %s", is, err, why, sentence);
	ck_assert_msg(strstr(why, sentence) != NULL, "'%s' does not say '%s'", why, sentence);
}

/* ---- reading --------------------------------------------------------------------------------- */

static struct source *open_model(const uint8_t *file, size_t bytes)
{
	const char *path = write_h1b_file("model.h1b", file, bytes);
	struct source *s = NULL;
	int err = source_open_h1b(path, NULL, &s, why, sizeof(why));

	ck_assert_msg(!err, "%d: %s", err, why);
	return s;
}

static void same_floats(struct source *s, uint32_t role, uint32_t layer, const float *expected)
{
	const struct source_tensor *t = source_find(s, role, layer);
	float *f;

	ck_assert(t && t->form == SOURCE_F32);
	f = calloc((size_t)t->rows * t->cols, sizeof(*f));
	for (uint32_t row = 0; row < t->rows; row++)
		ck_assert_msg(!s->ops->read_floats(s, t, row, 1, f + (size_t)row * t->cols, why,
						   sizeof(why)), "%s", why);
	ck_assert_msg(!memcmp(f, expected, 4ull * t->rows * t->cols), "role %u of layer %d", role,
		      (int)layer);
	s->ops->done(s, t);
	free(f);
}

/* In one piece and in pieces of three rows. */
static void same_codes(struct source *s, uint32_t role, uint32_t layer, const struct tiny_matrix *m)
{
	const struct source_tensor *t = source_find(s, role, layer);
	size_t n = (size_t)m->rows * m->cols;
	int8_t *codes = malloc(n);
	float *scales = malloc(4ull * m->rows * m->groups);

	ck_assert(t && t->form == SOURCE_TERNARY && t->rows == m->rows && t->cols == m->cols);
	ck_assert_uint_eq(t->groups, m->groups);
	ck_assert_msg(!s->ops->read_codes(s, t, 0, t->rows, codes, scales, why, sizeof(why)), "%s", why);
	ck_assert_msg(!memcmp(codes, m->codes, n), "codes of role %u, layer %u", role, layer);
	ck_assert_msg(!memcmp(scales, m->scales, 4ull * m->rows * m->groups), "scales of role %u",
		      role);
	memset(codes, 9, n);
	for (uint32_t row = 0; row < m->rows; row += 3) {
		uint32_t part = m->rows - row < 3 ? m->rows - row : 3;

		ck_assert(!s->ops->read_codes(s, t, row, part, codes + (size_t)row * m->cols, NULL, why,
					      sizeof(why)));
	}
	ck_assert(!memcmp(codes, m->codes, n));
	s->ops->done(s, t);
	free(codes);
	free(scales);
}

static void same_model(struct source *s)
{
	static const uint32_t roles[TINY_MATRICES] = {
		[TINY_Q] = OBM_Q, [TINY_K] = OBM_K, [TINY_V] = OBM_V, [TINY_O] = OBM_O,
		[TINY_GATE] = OBM_GATE, [TINY_UP] = OBM_UP, [TINY_DOWN] = OBM_DOWN,
	};

	ck_assert_msg(!source_check(s, why, sizeof(why)), "%s", why);
	same_floats(s, OBM_EMBED, OBM_NO_LAYER, tiny.embed);
	same_floats(s, OBM_FINAL_NORM, OBM_NO_LAYER, tiny.final_norm);
	for (uint32_t l = 0; l < tiny.layers; l++) {
		same_floats(s, OBM_ATTN_NORM, l, tiny.layer[l].attn_norm);
		same_floats(s, OBM_FFN_NORM, l, tiny.layer[l].ffn_norm);
		same_floats(s, OBM_ATTN_SUB_NORM, l, tiny.layer[l].attn_sub_norm);
		same_floats(s, OBM_FFN_SUB_NORM, l, tiny.layer[l].ffn_sub_norm);
		for (int i = 0; i < TINY_MATRICES; i++)
			same_codes(s, roles[i], l, &tiny.layer[l].m[i]);
	}
}

/* A body that is decoded differently from how it was written is another model. */
START_TEST(each_body_is_read)
{
	static const struct {
		uint32_t version, flags, hidden, ffn, heads, groups;
		void (*change)(struct tiny *t);
		const char *format, *stored;
	} cases[] = {
		{ 1, 0, 128, 192, 4, 1, NULL, "h1b v1", "2 bits" },
		{ 2, 0, 128, 192, 4, 1, NULL, "h1b v2", "2 bits" },
		{ 2, 0, 60, 94, 6, 1, NULL, "h1b v2", "2 bits" }, /* rows end within a byte */
		{ 2, 0, 60, 34, 6, 1, NULL, "h1b v2", "2 bits" }, /* ffn below hidden: short fillers */
		{ 3, 0, 128, 256, 4, 1, tiny_sherry, "h1b v3", "Sherry 3:4" },
		{ 3, 2, 96, 32, 4, 1, tiny_sherry, "h1b v3", "Sherry 3:4" },
		{ 4, 0, 128, 192, 4, 1, NULL, "h1b v4", "base 3" },
		{ 4, 0, 60, 94, 6, 1, NULL, "h1b v4", "base 3" },
		{ 4, 8, 256, 256, 4, 1, NULL, "h1b v4", "TQ2_0_g128" },
		{ 2, 8, 256, 256, 4, 2, NULL, "h1b v2", "TQ2_0_g128" },
		{ 1, 8, 128, 128, 4, 1, NULL, "h1b v1", "TQ2_0_g128" },
		{ 2, 4, 256, 256, 4, 2, tiny_signs, "h1b v2", "Q1_0_g128" },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		struct source *s;
		uint8_t *file;
		size_t bytes;

		make(cases[i].hidden, cases[i].ffn, cases[i].heads, cases[i].groups);
		if (cases[i].change)
			cases[i].change(&tiny);
		file = write_h1b(&tiny, cases[i].version, cases[i].flags, &bytes);
		s = open_model(file, bytes);
		ck_assert_str_eq(s->format, cases[i].format);
		ck_assert_str_eq(source_find(s, OBM_Q, 0)->stored, cases[i].stored);
		ck_assert_uint_eq(s->file_bytes, bytes);
		ck_assert_str_eq(s->arch.name, "model");
		ck_assert_uint_eq(s->arch.head_dim, tiny.head_dim);
		ck_assert_uint_eq(s->arch.context, 64);
		ck_assert_uint_eq(s->arch.activation, OBM_ACT_RELU2);
		ck_assert_uint_eq(s->arch.flags, cases[i].flags == 4 ? OBM_FLAG_A8_IMPOSED : 0);
		ck_assert_uint_eq(s->qk, SOURCE_QK_SPLIT);
		ck_assert(s->rope_theta == (cases[i].version == 1 ? 500000.0 : 10000.0));
		same_model(s);
		source_close(s);
		free(file);
		tiny_free(&tiny);
	}
}
END_TEST

/* ---- the codes, byte by byte ----------------------------------------------------------------- */

/* The tests' writer and the reader could share an error; these bytes come from the description. */
START_TEST(rows_by_hand)
{
	static const struct {
		enum h1b_body body;
		uint32_t cols;
		uint8_t row[40];
		int8_t codes[33];
	} cases[] = {
		{ H1B_2BIT, 4, { 0x55 }, { 0, 0, 0, 0 } },
		{ H1B_2BIT, 6, { 0x18, 0x52 }, { -1, 1, 0, -1, 1, -1 } },
		{ H1B_BASE3, 5, { 121, 121, 121, 121 }, { 0 } },
		{ H1B_BASE3, 5, { 0, 121, 121, 121 }, { -1, -1, -1, -1, -1 } },
		{ H1B_BASE3, 5, { 242, 121, 121, 121 }, { 1, 1, 1, 1, 1 } },
		/* 0 + 3*1 + 9*2 + 27*1 + 81*0, then one digit of 2 */
		{ H1B_BASE3, 6, { 48, 122, 121, 121 }, { -1, 0, 1, 0, -1, 1 } },
		/* Groups 00|011, 01|000, 10|101, 11|010, then four of 00|000. */
		{ H1B_SHERRY, 32, { 0x03, 0x55, 0x0d, 0, 0 },
		  { 0, 1, 1, -1, -1, 0, -1, -1, 1, -1, 0, 1, -1, 1, -1, 0,
		    0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1 } },
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		uint64_t bytes = h1b_row_bytes(cases[i].body, cases[i].cols);
		uint8_t *row = malloc(bytes), *again = malloc(bytes);
		int8_t *codes = malloc(cases[i].cols);
		struct h1b_coder c;

		/* To the byte: trap 15 reads one more, behind the file's end. */
		memcpy(row, cases[i].row, bytes);
		h1b_coder_init(&c, cases[i].body);
		ck_assert_uint_eq(h1b_decode_row(&c, row, cases[i].cols, codes), cases[i].cols);
		ck_assert_msg(!memcmp(codes, cases[i].codes, cases[i].cols), "case %zu", i);
		if (cases[i].body != H1B_SHERRY) {
			h1b_encode_row(cases[i].body, codes, cases[i].cols, again);
			ck_assert_msg(!memcmp(row, again, bytes), "case %zu", i);
		}
		free(row);
		free(again);
		free(codes);
	}
}
END_TEST

/* Offsets of a real model, from its published description; no file of that size is needed. */
START_TEST(geometry_of_2b_4t)
{
	static const struct {
		uint32_t version, flags;
		uint64_t file_bytes;
	} sizes[] = {
		{ 1, 0, 1840384044 }, { 2, 0, 1840384052 }, { 3, 0, 1645004852 }, { 4, 0, 1736304692 },
		{ 4, 8, 1870213172 }, { 4, 4, 1609707572 },
	};
	static const uint64_t in_layer[] = { 109568, 1758208, 2170368, 2582528, 4231168, 8682496,
					     13133824 };
	struct h1b_header h = {
		.hidden = 2560, .ffn = 6912, .layers = 30, .heads = 20, .kv_heads = 5, .vocab = 128256,
		.context = 4096, .tied = true, .theta = 500000, .eps = 1e-5f,
	};
	struct h1b_layout l;

	for (size_t i = 0; i < COUNT(sizes); i++) {
		h.version = sizes[i].version;
		h.flags = sizes[i].flags;
		ck_assert_msg(!h1b_layout_make(&h, &l, why, sizeof(why)), "%s", why);
		ck_assert_uint_eq(l.file_bytes, sizes[i].file_bytes);
	}
	h.version = 2;
	h.flags = 0;
	ck_assert(!h1b_layout_make(&h, &l, why, sizeof(why)));
	ck_assert_uint_eq(l.embed, 52);
	ck_assert_uint_eq(l.final_norm, 52 + 1313341440ull);
	ck_assert_uint_eq(l.layer0, 1313351732);
	ck_assert_uint_eq(l.stride, 17567744);
	for (int i = 0; i < H1B_MATRICES; i++)
		ck_assert_uint_eq(l.matrix[i].codes, in_layer[i]);
}
END_TEST

/* ---- traps ----------------------------------------------------------------------------------- */

/* Trap 13: flags over versions, both flags, a header without extras, extras that are not positive. */
START_TEST(trap_13_version_flags_extras)
{
	static const struct {
		uint32_t version, flags;
		enum h1b_body body;
	} bodies[] = {
		{ 1, 0, H1B_2BIT }, { 2, 0, H1B_2BIT }, { 3, 0, H1B_SHERRY }, { 3, 2, H1B_SHERRY },
		{ 4, 0, H1B_BASE3 }, { 4, 2, H1B_BASE3 }, { 1, 8, H1B_TQ2 }, { 3, 8, H1B_TQ2 },
		{ 4, 8, H1B_TQ2 }, { 2, 4, H1B_Q1 }, { 3, 6, H1B_Q1 },
	};
	static const struct {
		float theta, eps, theta_is, eps_is;
	} extras[] = {
		{ 10000, 1e-6f, 10000, 1e-6f }, { 0, 1e-6f, 500000, 1e-6f }, { -3, 0, 500000, 1e-5f },
		{ 10000, -1, 10000, 1e-5f }, { -INFINITY, -INFINITY, 500000, 1e-5f },
	};
	struct h1b_header h = {
		.hidden = 128, .ffn = 128, .layers = 1, .heads = 1, .kv_heads = 1, .vocab = 4, .context = 8,
	};
	struct h1b_layout l;
	struct h1b parsed;
	uint8_t *file;
	size_t bytes;

	for (size_t i = 0; i < COUNT(bodies); i++) {
		h.version = bodies[i].version;
		h.flags = bodies[i].flags;
		ck_assert(!h1b_layout_make(&h, &l, why, sizeof(why)));
		ck_assert_uint_eq(l.body, bodies[i].body);
		ck_assert_uint_eq(l.embed, bodies[i].version == 1 ? 44 : 52);
	}
	make(128, 128, 4, 1);
	file = write_h1b(&tiny, 2, 0, &bytes);
	for (size_t i = 0; i < COUNT(extras); i++) {
		put_float(file, AT_THETA, extras[i].theta);
		put_float(file, AT_EPS, extras[i].eps);
		ck_assert_msg(!parse(file, bytes, &parsed), "%s", why);
		ck_assert(parsed.header.theta == extras[i].theta_is && parsed.header.eps == extras[i].eps_is);
	}
	put_float(file, AT_THETA, NAN);
	refused(file, bytes, -EPROTO, "the rotary base is not a number");
	put32(file, AT_THETA, 500000); /* one writer stores it as an integer */
	refused(file, bytes, -EPROTO, "the same bits are the integer 500000");
	put_float(file, AT_THETA, 10000);
	put_float(file, AT_EPS, NAN);
	refused(file, bytes, -EPROTO, "the norms' epsilon is nan");
	put_float(file, AT_EPS, 2);
	refused(file, bytes, -EPROTO, "the norms' epsilon is 2;");
	put_float(file, AT_EPS, 1e-5f);
	put32(file, AT_FLAGS, 0xc);
	refused(file, bytes, -EPROTO, "flags 0x4 and 0x8 are both set");
	put32(file, AT_FLAGS, 1);
	refused(file, bytes, -ENOTSUP, "Hadamard-rotated activations");
	put32(file, AT_FLAGS, 0x30);
	refused(file, bytes, -ENOTSUP, "flags 0x30 are not known");
	put32(file, AT_FLAGS, 0);
	put32(file, AT_VERSION, 5);
	refused(file, bytes, -ENOTSUP, "version 5 of .h1b has int8 weights");
	put32(file, AT_VERSION, 6);
	refused(file, bytes, -ENOTSUP, "version 6 of .h1b has no reader");
	put32(file, AT_VERSION, 7);
	refused(file, bytes, -ENOTSUP, "version 7 of .h1b is not known");
	put32(file, AT_VERSION, 0);
	refused(file, bytes, -ENOTSUP, "version 0 of .h1b is not known");
	put32(file, AT_VERSION, 2);
	put32(file, AT_TIED, 0);
	refused(file, bytes, -ENOTSUP, "no place for a head");
	put32(file, AT_TIED, 2);
	refused(file, bytes, -EPROTO, "tied is 2");
	put32(file, AT_TIED, 1);
	file[3] = 1;
	refused(file, bytes, -EPROTO, "does not begin with \"H1B\" and a zero byte");
	file[3] = 0;
	ck_assert(!parse(file, bytes, &parsed));
	free(file);
	tiny_free(&tiny);
}
END_TEST

/* Every code of a row of ours and of a stranger; what fills up a row takes no part, whatever it is. */
static void code_at(const uint8_t *row, enum h1b_body body, uint32_t cols, uint32_t expected)
{
	uint64_t bytes = h1b_row_bytes(body, cols);
	uint8_t *copy = malloc(bytes);
	int8_t *codes = malloc(cols);
	struct h1b_coder c;

	memcpy(copy, row, bytes);
	h1b_coder_init(&c, body);
	ck_assert_uint_eq(h1b_decode_row(&c, copy, cols, codes), expected);
	free(copy);
	free(codes);
}

/* Trap 14: pad codes, base-3 bytes 243 to 255, 2-bit code 3. */
START_TEST(trap_14_pads_and_codes_that_cannot_be)
{
	int8_t ones[64];
	uint8_t row[64];

	memset(ones, -1, sizeof(ones));
	/* What we write fills up with weight 0, never with -1, the zero byte. */
	h1b_encode_row(H1B_2BIT, ones, 5, row);
	ck_assert(row[0] == 0x00 && row[1] == 0x54);
	h1b_encode_row(H1B_BASE3, ones, 6, row);
	ck_assert(row[0] == 0 && row[1] == 120 && row[2] == 121 && row[3] == 121);
	/* What we read may be filled up with anything. */
	code_at((const uint8_t *)"\x00\xfc", H1B_2BIT, 5, 5);
	code_at((const uint8_t *)"\x79\x00\xff\xff", H1B_BASE3, 6, 6);
	/* Code 3 at each place of bytes that are read eight at a time, singly, in part. */
	for (uint32_t at = 0; at < 47; at++) {
		memset(row, 0x55, sizeof(row));
		row[at / 4] |= (uint8_t)(3 << (at % 4 * 2));
		code_at(row, H1B_2BIT, 47, at);
	}
	for (unsigned v = 243; v < 256; v++)
		for (uint32_t at = 0; at < 10; at++) {
			memset(row, 121, sizeof(row));
			row[at] = (uint8_t)v;
			code_at(row, H1B_BASE3, 47, 5 * at);
		}
	/* The same in blocks, whose scale may have any bits. */
	memset(row, 0x55, sizeof(row));
	row[0] = row[1] = 0xff;
	code_at(row, H1B_TQ2, 128, 128);
	row[2] = 0xd5;
	code_at(row, H1B_TQ2, 128, 3);
}
END_TEST

/* Trap 15: Sherry's file rule is 32 columns; the last group's five bits end with the row. */
START_TEST(trap_15_sherry_columns)
{
	struct h1b h;
	uint8_t *file;
	size_t bytes;

	make(160, 224, 4, 1);
	tiny_sherry(&tiny);
	file = write_h1b(&tiny, 3, 0, &bytes);
	ck_assert_msg(!parse(file, bytes, &h), "%s", why);
	put32(file, AT_FFN, 208);
	refused(file, bytes, -EPROTO, "Sherry needs columns in multiples of 32");
	free(file);
	tiny_free(&tiny);
	/* Every code there is has exactly one zero. */
	for (unsigned code = 0; code < 32; code++) {
		uint8_t row[5] = { (uint8_t)code, 0, 0, 0, 0 };
		int8_t codes[32];
		struct h1b_coder c;

		h1b_coder_init(&c, H1B_SHERRY);
		ck_assert_uint_eq(h1b_decode_row(&c, row, 32, codes), 32);
		for (unsigned k = 0; k < 4; k++)
			ck_assert_int_eq(!codes[k], k == code >> 3);
	}
}
END_TEST

static int read_all(const struct h1b *h)
{
	const uint32_t widest = h->header.ffn > h->header.hidden ? h->header.ffn : h->header.hidden;
	int8_t *codes = malloc((size_t)widest);
	float *scales = malloc(4ull * (widest / 64 + 1));
	float *floats = malloc(4ull * widest);
	bool good = true;
	uint64_t at;
	int err = 0;

	for (uint32_t i = 0; !err && i < h->header.vocab; i++)
		err = h1b_floats(h, h->layout.embed + 4ull * i * h->header.hidden, h->header.hidden, floats,
				 &at);
	for (uint32_t l = 0; !err && l < h->header.layers; l++)
		for (unsigned m = 0; !err && m < H1B_MATRICES; m++) {
			uint32_t groups = h1b_groups(h, l, m);

			for (uint32_t row = 0; !err && row < h->layout.matrix[m].rows; row++) {
				err = h1b_rows(h, l, m, groups, row, 1, codes, scales, why, sizeof(why));
				/* One ck_assert() for all: each tells Check's own process. */
				for (uint32_t c = 0; !err && c < h->layout.matrix[m].cols; c++)
					good = good && codes[c] >= -1 && codes[c] <= 1;
				for (uint32_t g = 0; !err && g < groups; g++)
					good = good && isfinite(scales[g]) && scales[g] >= 0;
			}
		}
	ck_assert(good);
	free(codes);
	free(scales);
	free(floats);
	return err;
}

/*
 * Trap 16: d first in a block, and writers of another tensor order. A file with d last, or with all norms
 * before all weights, has the right length; its floats taken for codes have code 3 in them.
 * (The 2-bit codes of "phase 5", 0 1 2 for 0 1 -1, are never in an .h1b,
    and could not be told from ours.)
 */
START_TEST(trap_16_order)
{
	uint8_t *file, *other;
	size_t bytes, layer0, stride, norms;
	struct h1b h;

	/* Blocks: 34 bytes each, d moved behind the codes. */
	make(128, 128, 4, 1);
	file = write_h1b(&tiny, 2, 8, &bytes);
	ck_assert(!parse(file, bytes, &h));
	ck_assert(!read_all(&h));
	for (unsigned m = 0; m < H1B_MATRICES; m++)
		for (uint32_t r = 0; r < h.layout.matrix[m].rows; r++) {
			uint8_t *block = file + h.layout.layer0 + h.layout.matrix[m].codes + 34ull * r;
			uint8_t d[2] = { block[0], block[1] };

			memmove(block, block + 2, 32);
			memcpy(block + 32, d, 2);
		}
	ck_assert(!parse(file, bytes, &h));
	ck_assert_int_eq(read_all(&h), -EPROTO);
	free(file);

	/* All norms first, then all matrices: what the tools write that stamp version 1 on version 2. */
	tiny_free(&tiny);
	make(128, 192, 4, 1);
	file = write_h1b(&tiny, 2, 0, &bytes);
	ck_assert(!parse(file, bytes, &h));
	other = malloc(bytes);
	memcpy(other, file, bytes);
	layer0 = h.layout.layer0;
	stride = h.layout.stride;
	norms = h.layout.matrix[0].codes;
	for (uint32_t l = 0; l < tiny.layers; l++) {
		memcpy(other + layer0 + l * norms, file + layer0 + l * stride, norms);
		memcpy(other + layer0 + tiny.layers * norms + l * (stride - norms),
		       file + layer0 + l * stride + norms, stride - norms);
	}
	if (!parse(other, bytes, &h))
		ck_assert_int_eq(read_all(&h), -EPROTO);
	ck_assert_msg(strstr(why, "another order") != NULL, "%s", why);
	put32(other, AT_VERSION, 1);
	refused(other, bytes, -EPROTO, "8 more than the");
	refused(other, bytes, -EPROTO, "stamped version 1 on a header of version 2");
	free(other);
	free(file);
	tiny_free(&tiny);
}
END_TEST

/* Trap 17: numbers that cannot be, one at a time. */
START_TEST(trap_17_corrupt_header)
{
	static const struct {
		size_t at;
		uint32_t value;
		int err;
		const char *sentence;
	} cases[] = {
		{ AT_HEADS, 0, -EPROTO, "the number of heads is 0" },
		{ AT_KV_HEADS, 0, -EPROTO, "the number of KV heads is 0" },
		{ AT_HIDDEN, 0, -EPROTO, "the hidden size is 0" },
		{ AT_FFN, 0, -EPROTO, "the feed-forward size is 0" },
		{ AT_LAYERS, 0, -EPROTO, "the number of layers is 0" },
		{ AT_VOCAB, 0, -EPROTO, "the vocabulary's size is 0" },
		{ AT_CONTEXT, 0, -EPROTO, "the context length is 0" },
		{ AT_HEADS, -4u, -EPROTO, "the number of heads is -4" },
		{ AT_HIDDEN, 0x80000000, -EPROTO, "the hidden size is -2147483648" },
		{ AT_LAYERS, UINT32_MAX, -EPROTO, "the number of layers is -1" },
		{ AT_HIDDEN, INT32_MAX, -EFBIG, "the hidden size is 2147483647; at most 131072" },
		{ AT_FFN, INT32_MAX, -EFBIG, "the feed-forward size is 2147483647" },
		{ AT_LAYERS, 513, -EFBIG, "the number of layers is 513; at most 512" },
		{ AT_HEADS, 513, -EFBIG, "the number of heads is 513" },
		{ AT_VOCAB, 1 << 21, -EFBIG, "the vocabulary's size is 2097152" },
		{ AT_CONTEXT, 1 << 21, -EFBIG, "the context length is 2097152" },
		{ AT_HEADS, 3, -EPROTO, "not a multiple of the 3 heads" },
		/* In bounds, and contradicted by the file's length. */
		{ AT_LAYERS, 512, -EPROTO, "it ends in layer 2" },
		{ AT_LAYERS, 1, -EPROTO, "too many" },
		{ AT_VOCAB, 1 << 20, -EPROTO, "it ends in the embedding" },
		{ AT_VERSION, 4, -EPROTO, "the size of 2 bits behind a header of 52 bytes" },
		{ AT_VERSION, 1, -EPROTO, "8 more than the" },
	};
	uint8_t *file, *largest;
	size_t bytes;

	make(128, 192, 4, 1);
	file = write_h1b(&tiny, 2, 0, &bytes);
	for (size_t i = 0; i < COUNT(cases); i++) {
		uint8_t was[4];

		memcpy(was, file + cases[i].at, 4);
		put32(file, cases[i].at, cases[i].value);
		refused(file, bytes, cases[i].err, cases[i].sentence);
		memcpy(file + cases[i].at, was, 4);
	}
	/* The largest numbers that are in bounds: no product may wrap to a length that a file can have. */
	largest = calloc(1, 64);
	memcpy(largest, file, 52);
	put32(largest, AT_HIDDEN, OBM_WIDTH_MAX);
	put32(largest, AT_FFN, 1 << 20);
	put32(largest, AT_LAYERS, OBM_LAYERS_MAX);
	put32(largest, AT_HEADS, OBM_HEADS_MAX);
	put32(largest, AT_KV_HEADS, OBM_HEADS_MAX);
	put32(largest, AT_VOCAB, OBM_VOCAB_MAX);
	refused(largest, 64, -EPROTO, "the file has 64 bytes; by its header (version 2: 2 bits) it "
				      "must have 62132339605556");
	free(largest);
	free(file);
	tiny_free(&tiny);
}
END_TEST

/* Trap 17: cut off at every boundary, and one byte on both sides of it; trailing bytes. */
START_TEST(trap_17_truncated)
{
	uint8_t *file, *part;
	size_t cuts[256], n = 0, bytes;
	struct h1b h;

	make(128, 192, 4, 1);
	file = write_h1b(&tiny, 4, 0, &bytes);
	ck_assert(!parse(file, bytes, &h));
	for (size_t at = 0; at <= 52; at += 4)
		cuts[n++] = at;
	cuts[n++] = h.layout.final_norm;
	for (uint32_t l = 0; l < tiny.layers; l++) {
		size_t layer = h.layout.layer0 + l * h.layout.stride;

		for (unsigned i = 0; i < 9; i++)
			cuts[n++] = layer + 4ul * i * tiny.hidden;
		for (unsigned i = 0; i < H1B_MATRICES; i++) {
			cuts[n++] = layer + h.layout.matrix[i].codes;
			cuts[n++] = layer + h.layout.matrix[i].scales;
		}
	}
	cuts[n++] = bytes;
	for (size_t i = 0; i < n; i++)
		for (size_t cut = cuts[i] ? cuts[i] - 1 : 0; cut <= cuts[i] + 1 && cut < bytes; cut++) {
			part = malloc(cut ? cut : 1);
			memcpy(part, file, cut);
			refused(part, cut, -EPROTO, cut < 4 ? "does not begin" : cut < 52 ?
				"less than its header" : "it ends in");
			free(part);
		}
	part = malloc(bytes + 1);
	memcpy(part, file, bytes);
	part[bytes] = 0;
	refused(part, bytes + 1, -EPROTO, "1 too many");
	free(part);
	free(file);
	tiny_free(&tiny);
}
END_TEST

/* ---- values ---------------------------------------------------------------------------------- */

/* A scale or a float that cannot be is found where it is, not as silence or NaN in an answer. */
START_TEST(values_that_cannot_be)
{
	static const float wrong[] = { NAN, INFINITY, -INFINITY, -1.0f };
	struct source *s;
	uint8_t *file;
	size_t bytes, at;
	struct h1b h;
	float f[3 * 128];
	int8_t codes[3 * 128];

	make(128, 192, 4, 1);
	file = write_h1b(&tiny, 2, 0, &bytes);
	ck_assert(!parse(file, bytes, &h));
	at = h.layout.layer0 + h.layout.stride + h.layout.matrix[H1B_K].scales + 4 * 5;
	for (size_t i = 0; i < COUNT(wrong); i++) {
		put_float(file, at, wrong[i]);
		s = open_model(file, bytes);
		ck_assert_int_eq(s->ops->read_codes(s, source_find(s, OBM_K, 1), 4, 3, codes, f, why,
						    sizeof(why)), -EPROTO);
		ck_assert_msg(strstr(why, "model.h1b: layer 1's k, row 5: scale") != NULL, "%s", why);
		source_close(s);
	}
	put_float(file, at, 0);
	file[h.layout.layer0 + h.layout.matrix[H1B_O].codes + 32 * 2 + 1] |= 0xc0;
	put_float(file, h.layout.embed + 4 * (128 * 3 + 7), NAN);
	s = open_model(file, bytes);
	ck_assert_int_eq(s->ops->read_codes(s, source_find(s, OBM_O, 0), 1, 3, codes, f, why,
					    sizeof(why)), -EPROTO);
	ck_assert_msg(strstr(why, "layer 0's o, row 2, column 7: a code") != NULL, "%s", why);
	ck_assert_int_eq(s->ops->read_floats(s, source_find(s, OBM_EMBED, OBM_NO_LAYER), 2, 3, f, why,
					     sizeof(why)), -EPROTO);
	ck_assert_msg(strstr(why, "row 3, column 7 is not finite") != NULL, "%s", why);
	source_close(s);

	put_float(file, h.layout.layer0 + h.layout.norm[H1B_FFN_NORM] + 4 * 70, INFINITY);
	refused(file, bytes, -EPROTO, "layer 0's ffn_norm, element 70 is not finite");
	memset(file + h.layout.layer0 + h.layout.norm[H1B_FFN_NORM], 0, 4 * 128);
	refused(file, bytes, -EPROTO, "layer 0's ffn_norm is all zero: it was never written");
	free(file);
	tiny_free(&tiny);
}
END_TEST

/* A scale in a block, as well; and a Bonsai file whose norms are elsewhere. */
START_TEST(blocks)
{
	struct source *s;
	uint8_t *file;
	size_t bytes, at;
	struct h1b h;
	float f[2];
	int8_t codes[256];

	make(256, 256, 4, 2);
	file = write_h1b(&tiny, 2, 8, &bytes);
	ck_assert(!parse(file, bytes, &h));
	at = h.layout.layer0 + h.layout.matrix[H1B_UP].codes + 68 * 9 + 34;
	file[at] = 0x00;
	file[at + 1] = 0xbc; /* -1 */
	s = open_model(file, bytes);
	ck_assert_int_eq(s->ops->read_codes(s, source_find(s, OBM_UP, 0), 9, 1, codes, f, why,
					    sizeof(why)), -EPROTO);
	ck_assert_msg(strstr(why, "layer 0's up, row 9: scale -1") != NULL, "%s", why);
	source_close(s);
	memset(file + h.layout.final_norm, 0, 4 * 256);
	refused(file, bytes, -ENOTSUP, "in a GGUF file beside it");
	free(file);
	tiny_free(&tiny);
}
END_TEST

/* ---- vocabulary ------------------------------------------------------------------------------ */

/* Trap 18: both layouts of the .htok are found beside the model; one of another model is not taken. */
START_TEST(trap_18_vocabulary)
{
	struct source_options o = { 0 };
	struct source *s = NULL;
	const char *path;
	uint8_t *file, *htok;
	size_t bytes, n;

	make(128, 192, 4, 1);
	file = write_h1b(&tiny, 2, 0, &bytes);
	path = write_h1b_file("model.h1b", file, bytes);
	s = open_model(file, bytes);
	ck_assert(!s->vocab);
	ck_assert_msg(strstr(s->no_vocab, "/model.htok; name the model's tokenizer with --tokenizer"), "%s",
		      s->no_vocab);
	source_close(s);
	for (uint32_t version = 0; version <= 3; version += version ? 1 : 2) {
		htok = write_htok(&tiny, version, &n);
		write_h1b_file("model.htok", htok, n);
		s = open_model(file, bytes);
		ck_assert(s->vocab);
		ck_assert_uint_eq(s->vocab->n_tokens, tiny.vocab);
		ck_assert_uint_eq(s->vocab->n_merges, tiny.n_words);
		ck_assert_uint_eq(s->vocab->bos, tiny.bos);
		ck_assert_uint_eq(s->vocab->eos, tiny.eos);
		ck_assert_str_eq(s->vocab->chat, "bitnet");
		ck_assert_uint_eq(s->vocab->tokens[tiny.eot].kind, VOCAB_SPECIAL);
		ck_assert_uint_eq(s->vocab->n_stops, 2);
		ck_assert_msg(!source_check(s, why, sizeof(why)), "%s", why);
		source_close(s);
		free(htok);
	}
	tiny_free(&tiny);

	/* Of a model with three tokens more, and three fewer. */
	for (int more = -3; more <= 3; more += 6) {
		tiny_default(&tiny, 7);
		tiny.n_words = (uint32_t)((int)tiny.n_words + more);
		tiny_fill(&tiny);
		htok = write_htok(&tiny, 0, &n);
		write_h1b_file("model.htok", htok, n);
		path = write_h1b_file("model.h1b", file, bytes);
		ck_assert_int_lt(source_open_h1b(path, &o, &s, why, sizeof(why)), 0);
		ck_assert_msg(strstr(why, more > 0 ? "323" : "317") && strstr(why, "320"), "%s", why);
		/* Given by name, one of fewer tokens may be right; one of more cannot. */
		o.tokenizer = write_h1b_file("other.htok", htok, n);
		if (more < 0) {
			ck_assert_msg(!source_open_h1b(path, &o, &s, why, sizeof(why)), "%s", why);
			ck_assert_uint_eq(s->vocab->n_tokens, 317);
			source_close(s);
		} else {
			ck_assert_int_lt(source_open_h1b(path, &o, &s, why, sizeof(why)), 0);
		}
		o.tokenizer = NULL;
		free(htok);
		tiny_free(&tiny);
	}
	free(file);
}
END_TEST

/* ---- corruption ------------------------------------------------------------------------------ */

static uint64_t seed_of(const char *test)
{
	const char *given = getenv("ONEBIT_SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);

	fprintf(stderr, "%s: ONEBIT_SEED=%llu\n", test, (unsigned long long)seed);
	return seed;
}

static uint64_t scaled(uint64_t n)
{
	const char *s = getenv("ONEBIT_SCALE");

	n = s ? n * strtoull(s, NULL, 10) / 100 : n;
	return n ? n : 1;
}

/* One of the ways a file goes bad. Returns its new length. */
static size_t corrupt(uint8_t *file, size_t bytes, size_t room, uint64_t *state)
{
	uint64_t r = tiny_random(state);
	/* Half of it in the header, where it matters most. */
	size_t at = (r >> 8) % (r >> 63 ? 52 : bytes), n = (r >> 40) % 64 + 1;

	n = n < bytes - at ? n : bytes - at;
	switch (r % 5) {
	case 0:
		file[at] ^= (uint8_t)(1 << (r >> 50) % 8);
		return bytes;
	case 1:
		file[at] = (uint8_t)(r >> 50);
		return bytes;
	case 2:
		for (size_t i = 0; i < n; i++)
			file[at + i] = (uint8_t)tiny_random(state);
		return bytes;
	case 3:
		return at;
	default:
		/* A piece of it once more. */
		n = n < room - bytes ? n : room - bytes;
		memmove(file + at + n, file + at, bytes - at);
		return bytes + n;
	}
}

/*
 * The format has no checksum, so a weight that has become another weight cannot be seen; what must hold is
 * that nothing is read outside of the file, and that what is accepted has the shapes that its length
 * proves and values that are ternary and finite.
 */
START_TEST(corruptions)
{
	static const struct {
		uint32_t version, flags;
		void (*change)(struct tiny *t);
	} bodies[] = {
		{ 1, 0, NULL }, { 2, 0, NULL }, { 3, 0, tiny_sherry }, { 4, 0, NULL }, { 2, 8, NULL },
		{ 2, 4, tiny_signs },
	};
	uint64_t state = seed_of("corruptions"), count = scaled(5000), accepted = 0;

	for (size_t b = 0; b < COUNT(bodies); b++) {
		size_t bytes;
		uint8_t *file;

		tiny_default(&tiny, state);
		tiny.layers = 1;
		tiny.ffn = 128;
		tiny.n_words = 0;
		tiny_fill(&tiny);
		if (bodies[b].change)
			bodies[b].change(&tiny);
		file = write_h1b(&tiny, bodies[b].version, bodies[b].flags, &bytes);
		for (uint64_t i = b; i < count; i += COUNT(bodies)) {
			uint8_t *bad = malloc(bytes + 64), *exact;
			struct h1b h;
			size_t n;

			memcpy(bad, file, bytes);
			n = corrupt(bad, bytes, bytes + 64, &state);
			exact = malloc(n ? n : 1);
			memcpy(exact, bad, n);
			free(bad);
			if (parse(exact, n, &h)) {
				ck_assert_uint_gt(strlen(why), 10);
			} else {
				ck_assert_uint_eq(h.layout.file_bytes, n);
				if (!read_all(&h))
					accepted++;
			}
			free(exact);
		}
		free(file);
		tiny_free(&tiny);
	}
	/* Weights that changed into weights: some must pass, or the test tests nothing. */
	ck_assert_uint_lt(accepted, count);
	ck_assert(count < 1000 || accepted > 10);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("h1b");
	TCase *t = tcase_create("h1b");
	SRunner *r;
	int failed;

	tmp_fixture(t);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, each_body_is_read);
	tcase_add_test(t, rows_by_hand);
	tcase_add_test(t, geometry_of_2b_4t);
	tcase_add_test(t, trap_13_version_flags_extras);
	tcase_add_test(t, trap_14_pads_and_codes_that_cannot_be);
	tcase_add_test(t, trap_15_sherry_columns);
	tcase_add_test(t, trap_16_order);
	tcase_add_test(t, trap_17_corrupt_header);
	tcase_add_test(t, trap_17_truncated);
	tcase_add_test(t, values_that_cannot_be);
	tcase_add_test(t, blocks);
	tcase_add_test(t, trap_18_vocabulary);
	tcase_add_test(t, corruptions);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

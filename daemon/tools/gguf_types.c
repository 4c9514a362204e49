/* SPDX-License-Identifier: MIT */
/*
 * Tensor types of GGUF files: which one a tensor is, and its rows decoded.
 *
 * The layouts were taken from those who read and write them: ggml (TQ1_0, TQ2_0, Q8_0, Q6_K),
 * bitnet.cpp (I2_S; its readers on ARM once took 64 columns for a block, its files have 128),
 * ik_llama.cpp (IQ1_BN, IQ2_BN, and I2_S as bitnet.cpp has it).
 *
 * The loops run over a block's constant number of bytes, plane by plane, so that compilers make
 * vector code of them; whether a code was wrong is gathered on the way and asked once a row.
 */
#include "gguf_types.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "mapped.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static const struct layout {
	const char *name;
	uint32_t number;
	uint16_t cols, bytes;	/* a block */
	uint8_t row_head, tail; /* bytes in front of each row, behind the tensor */
	bool ternary;
} layouts[GGUF_KINDS] = {
	[GGUF_KIND_F32] = { "F32", 0, 1, 4, 0, 0, false },
	[GGUF_KIND_F16] = { "F16", 1, 1, 2, 0, 0, false },
	[GGUF_KIND_BF16] = { "BF16", 30, 1, 2, 0, 0, false },
	[GGUF_KIND_Q8_0] = { "Q8_0", 8, 32, 34, 0, 0, false },
	[GGUF_KIND_Q6_K] = { "Q6_K", 14, 256, 210, 0, 0, false },
	[GGUF_KIND_TQ1_0] = { "TQ1_0", 34, 256, 54, 0, 0, true },
	[GGUF_KIND_TQ2_0] = { "TQ2_0", 35, 256, 66, 0, 0, true },
	[GGUF_KIND_I2_S] = { "I2_S", 36, 128, 32, 0, 32, true },
	[GGUF_KIND_IQ1_BN] = { "IQ1_BN", 134, 64, 13, 2, 0, true },
	[GGUF_KIND_IQ2_BN] = { "IQ2_BN", 135, 64, 16, 4, 0, true },
};

/* Types that are met and not read. bytes 0: known by the number alone. */
static const struct other {
	const char *name;
	uint32_t number;
	uint16_t cols, bytes; /* a block */
	const char *say;
} others[] = {
	{ "Q4_0", 2, 32, 18, NULL },
	{ "Q4_1", 3, 32, 20, NULL },
	{ "Q5_0", 6, 32, 22, NULL },
	{ "Q5_1", 7, 32, 24, NULL },
	{ "Q8_1", 9, 32, 36, NULL },
	{ "Q2_K", 10, 256, 84, NULL },
	{ "Q3_K", 11, 256, 110, NULL },
	{ "Q4_K", 12, 256, 144, NULL },
	{ "Q5_K", 13, 256, 176, NULL },
	{ "Q8_K", 15, 256, 292, NULL },
	{ "IQ2_XXS", 16, 256, 66, NULL },
	{ "IQ2_XS", 17, 256, 74, NULL },
	{ "IQ3_XXS", 18, 256, 98, NULL },
	{ "IQ1_S", 19, 256, 50, NULL },
	{ "IQ4_NL", 20, 32, 18, NULL },
	{ "IQ3_S", 21, 256, 110, NULL },
	{ "IQ2_S", 22, 256, 82,
	  "its values are of magnitude 8, 25 and 43 and never zero, so it cannot hold "
	  "a ternary tensor: what was ternary is lost. Get the model in another type" },
	{ "IQ4_XS", 23, 256, 136, NULL },
	{ "I8", 24, 1, 1, NULL },
	{ "I16", 25, 1, 2, NULL },
	{ "I32", 26, 1, 4, NULL },
	{ "I64", 27, 1, 8, NULL },
	{ "F64", 28, 1, 8, NULL },
	{ "IQ1_M", 29, 256, 56, NULL },
	{ "Q4_0_4_4", 31, 32, 18, NULL },
	{ "Q4_0_4_8", 32, 32, 18, NULL },
	{ "Q4_0_8_8", 33, 32, 18, NULL },
	{ "IQ4_NL_4_4", 36, 32, 18, NULL },
	{ "IQ4_NL_4_8", 37, 32, 18, NULL },
	{ "IQ4_NL_8_8", 38, 32, 18, NULL },
	{ "MXFP4", 39, 32, 17, NULL },
	{ "TL1", 38, 0, 0,
	  "bitnet.cpp's tables for one ARM kernel, arranged for its build options, which the "
	  "file does not say. Get the model as I2_S" },
	{ "TL2", 39, 0, 0,
	  "bitnet.cpp's tables for one x86 kernel, arranged for its build options, which the "
	  "file does not say. Get the model as I2_S" },
	{ "NVFP4", 40, 64, 36, NULL },
	{ "Q1_0 (Bonsai's Q1_0_g128)", 41, 128, 18,
	  "its weights are two-valued, without zero; it is not supported" },
	{ "TQ2_0_g128 (Bonsai's)", 42, 128, 34,
	  "its scales are one to 128 columns of a Qwen3 model; it is not supported" },
	{ "I8_S", 37, 1, 1, NULL },
	{ "IQ2_BN_R4", 335, 64, 0,
	  "rows repacked for one program's kernels; get the model as IQ2_BN" },
};

const char *gguf_kind_name(enum gguf_kind kind)
{
	return layouts[kind].name;
}

uint32_t gguf_kind_number(enum gguf_kind kind)
{
	return layouts[kind].number;
}

uint32_t gguf_kind_cols(enum gguf_kind kind)
{
	return layouts[kind].cols;
}

bool gguf_kind_is_ternary(enum gguf_kind kind)
{
	return layouts[kind].ternary;
}

uint64_t gguf_row_bytes(enum gguf_kind kind, uint64_t cols)
{
	const struct layout *l = &layouts[kind];

	return l->row_head + cols / l->cols * l->bytes;
}

/* ---- which type ------------------------------------------------------------------------------ */

/* Whether so many bytes, and the padding up to the next tensor, are what there is. */
static bool size_fits(const struct gguf_tensor *t, uint64_t bytes, uint32_t alignment)
{
	uint64_t padded = (bytes + alignment - 1) / alignment * alignment;

	return t->room == padded || (t->last && t->room >= bytes && t->room < padded);
}

static int refuse_other(const struct gguf_tensor *t, const struct other *o, char *why,
			size_t why_len)
{
	char name[64];

	gguf_show(t->name, name);
	if (o->say)
		return fail(why, why_len, -ENOTSUP, "tensor %s is %s: %s", name, o->name, o->say);
	return fail(why, why_len, -ENOTSUP,
		    "tensor %s is %s, which is not read; read are TQ1_0, TQ2_0, I2_S, "
		    "IQ1_BN, IQ2_BN, F32, F16, BF16, Q8_0 and, for embeddings, Q6_K",
		    name, o->name);
}

static const struct layout *layout_of(uint32_t number)
{
	for (size_t i = 0; i < COUNT(layouts); i++)
		if (layouts[i].number == number)
			return &layouts[i];
	return NULL;
}

static int refuse_size(const struct gguf_tensor *t, const struct layout *l, uint64_t bytes,
		       char *why, size_t why_len)
{
	char name[64];

	gguf_show(t->name, name);
	if (t->room < bytes && t->last)
		return fail(why, why_len, -EPROTO,
			    "tensor %s is cut off: the file has %llu of its %llu bytes "
			    "(%s, %llu x %llu)",
			    name, (unsigned long long)t->room, (unsigned long long)bytes, l->name,
			    (unsigned long long)t->rows, (unsigned long long)t->cols);
	/* Each of its threads put a scale and padding of its own behind its part. */
	if (l == &layouts[GGUF_KIND_I2_S] && t->room > bytes && !((t->room - bytes) % l->tail))
		return fail(why, why_len, -EPROTO,
			    "tensor %s has %llu bytes where I2_S has %llu: damaged, or "
			    "garbled by bitnet.cpp's tool, as it does with several threads; "
			    "quantise again with "
			    "one",
			    name, (unsigned long long)t->room, (unsigned long long)bytes);
	if (t->room < bytes)
		return fail(why, why_len, -EPROTO,
			    "tensor %s overlaps the next: it has room for %llu bytes and "
			    "%s (type %u) of %llu x %llu has %llu",
			    name, (unsigned long long)t->room, l->name, t->type,
			    (unsigned long long)t->rows, (unsigned long long)t->cols,
			    (unsigned long long)bytes);
	return fail(why, why_len, -EPROTO,
		    "tensor %s has %llu bytes where %s (type %u) of %llu x %llu has %llu: "
		    "the file is damaged, or of a program that gave this number to another type",
		    name, (unsigned long long)t->room, l->name, t->type,
		    (unsigned long long)t->rows, (unsigned long long)t->cols,
		    (unsigned long long)bytes);
}

int gguf_kind(const struct gguf_tensor *t, uint32_t alignment, enum gguf_kind *out, char *why,
	      size_t why_len)
{
	const struct layout *l = layout_of(t->type);
	const uint64_t elements = t->rows * t->cols; /* gguf_parse() has held it below 2^48 */
	const struct other *likely = NULL;
	uint64_t bytes = 0;
	char name[64];

	if (l && !(t->cols % l->cols)) {
		bytes = t->rows * (l->row_head + t->cols / l->cols * l->bytes) + l->tail;
		if (size_fits(t, bytes, alignment)) {
			*out = (enum gguf_kind)(l - layouts);
			return 0;
		}
	}
	for (size_t i = 0; i < COUNT(others); i++) {
		const struct other *o = &others[i];

		if (o->number != t->type)
			continue;
		if (o->bytes && size_fits(t, elements / o->cols * o->bytes, alignment))
			return refuse_other(t, o, why, why_len);
		if (!o->bytes || (!l && !likely))
			likely = o;
	}
	if (likely)
		return refuse_other(t, likely, why, why_len);
	gguf_show(t->name, name);
	if (!l)
		return fail(why, why_len, -ENOTSUP,
			    "tensor %s has type %u, which is not known; get the model "
			    "as TQ2_0, I2_S or IQ2_BN",
			    name, t->type);
	if (!bytes)
		return fail(why, why_len, -ENOTSUP,
			    "tensor %s has %llu columns, no multiple of the %u that %s "
			    "(type %u) needs",
			    name, (unsigned long long)t->cols, l->cols, l->name, t->type);
	return refuse_size(t, l, bytes, why, why_len);
}

/* ---- base 3 ---------------------------------------------------------------------------------- */

/* Digit of a byte after its multiplication by a power of three, less one. */
#define DIGIT(b, m) ((int8_t)(((((b) * (m)) & 255) * 3 >> 8) - 1))
/*
 * Whether a byte is ceil(number * 256 / 243) of any number: then byte * 243 / 256 lies above the
 * number by less than 243 / 256.
 */
#define IS_BASE3(b) (((b) * 243 & 255) < 243)

/* IQ1_BN's five digits of each byte, in the order of columns; then whether the byte is none. */
#define FIVE(b) { DIGIT(b, 81), DIGIT(b, 27), DIGIT(b, 9), DIGIT(b, 3), DIGIT(b, 1), !IS_BASE3(b) }
#define FIVE4(b) FIVE(b), FIVE((b) + 1), FIVE((b) + 2), FIVE((b) + 3)
#define FIVE16(b) FIVE4(b), FIVE4((b) + 4), FIVE4((b) + 8), FIVE4((b) + 12)
#define FIVE64(b) FIVE16(b), FIVE16((b) + 16), FIVE16((b) + 32), FIVE16((b) + 48)
static const int8_t fives[256][8] = { FIVE64(0), FIVE64(64), FIVE64(128), FIVE64(192) };

static unsigned block_iq1_bn(const uint8_t *restrict b, int8_t *restrict codes)
{
	static const uint8_t power[4] = { 81, 27, 9, 3 };
	int8_t wrong = fives[b[12]][5];

	for (unsigned i = 0; i < 4; i++, b += 3, codes += 16) {
		const int8_t *x = fives[b[0]], *y = fives[b[1]], *z = fives[b[2]];

		/* Eight bytes each, of which the next overwrites three. */
		memcpy(codes, x, 8);
		memcpy(codes + 5, y, 8);
		memcpy(codes + 10, z, 5);
		codes[15] = DIGIT(b[12 - 3 * i], power[i]);
		wrong |= x[5] | y[5] | z[5];
	}
	return (unsigned)wrong;
}

/*
 * n bytes, digit after digit: what all of them have first, then what all have second... Inlined, so
 * that n is a constant and the loops become vector code.
 */
static inline __attribute__((always_inline)) uint8_t
digits(const uint8_t *restrict b, unsigned n, unsigned n_digits, int8_t *restrict codes)
{
	uint8_t rest[32], wrong = 0;

	for (unsigned j = 0; j < n; j++) {
		rest[j] = b[j];
		wrong |= !IS_BASE3(b[j]);
	}
	for (unsigned d = 0; d < n_digits; d++)
		for (unsigned j = 0; j < n; j++) {
			/* The carry of three times a byte: whether it passes 256, and 512. */
			codes[d * n + j] = (int8_t)((rest[j] > 85) + (rest[j] > 170) - 1);
			rest[j] = (uint8_t)(rest[j] * 3);
		}
	return wrong;
}

static unsigned block_tq1_0(const uint8_t *b, int8_t *codes)
{
	uint8_t wrong = digits(b, 32, 5, codes);

	wrong |= digits(b + 32, 16, 5, codes + 160);
	return wrong | digits(b + 48, 4, 4, codes + 240);
}

/* ---- two bits -------------------------------------------------------------------------------- */

static unsigned block_tq2_0(const uint8_t *restrict b, int8_t *restrict codes)
{
	uint8_t wrong = 0;

	for (unsigned half = 0; half < 2; half++)
		for (unsigned j = 0; j < 32; j++) {
			uint8_t v = b[32 * half + j];

			wrong |= v & (v >> 1) & 0x55;
			codes[128 * half + j] = (int8_t)((v & 3) - 1);
			codes[128 * half + j + 32] = (int8_t)((v >> 2 & 3) - 1);
			codes[128 * half + j + 64] = (int8_t)((v >> 4 & 3) - 1);
			codes[128 * half + j + 96] = (int8_t)((v >> 6) - 1);
		}
	return wrong;
}

static unsigned block_i2_s(const uint8_t *restrict b, int8_t *restrict codes)
{
	uint8_t wrong = 0;

	for (unsigned j = 0; j < 32; j++) {
		uint8_t v = b[j];

		wrong |= v & (v >> 1) & 0x55;
		codes[j] = (int8_t)((v >> 6) - 1);
		codes[j + 32] = (int8_t)((v >> 4 & 3) - 1);
		codes[j + 64] = (int8_t)((v >> 2 & 3) - 1);
		codes[j + 96] = (int8_t)((v & 3) - 1);
	}
	return wrong;
}

static unsigned block_iq2_bn(const uint8_t *restrict b, int8_t *restrict codes)
{
	uint8_t wrong = 0;

	for (unsigned j = 0; j < 16; j++) {
		uint8_t v = b[j];

		wrong |= v & (v >> 1) & 0x55;
		codes[j] = (int8_t)((v & 3) - 1);
		codes[j + 16] = (int8_t)((v >> 2 & 3) - 1);
		codes[j + 32] = (int8_t)((v >> 4 & 3) - 1);
		codes[j + 48] = (int8_t)((v >> 6) - 1);
	}
	return wrong;
}

bool gguf_row_codes(enum gguf_kind kind, const uint8_t *row, uint32_t cols, int8_t *codes)
{
	const struct layout *l = &layouts[kind];
	const uint32_t n = cols / l->cols;
	unsigned wrong = 0;

	assert(l->ternary && cols % l->cols == 0);
	row += l->row_head;
	for (uint32_t i = 0; i < n; i++, row += l->bytes, codes += l->cols)
		switch (kind) {
		case GGUF_KIND_TQ1_0:
			wrong |= block_tq1_0(row, codes);
			break;
		case GGUF_KIND_TQ2_0:
			wrong |= block_tq2_0(row, codes);
			break;
		case GGUF_KIND_I2_S:
			wrong |= block_i2_s(row, codes);
			break;
		case GGUF_KIND_IQ1_BN:
			wrong |= block_iq1_bn(row, codes);
			break;
		default:
			wrong |= block_iq2_bn(row, codes);
		}
	return !wrong;
}

/* ---- floats ---------------------------------------------------------------------------------- */

static uint16_t load16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t load32(const uint8_t *p)
{
	return (uint32_t)load16(p) | (uint32_t)load16(p + 2) << 16;
}

static float bits_to_float(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

/* Exact for what is finite: a multiplication moves the exponent, so subnormals come out right. */
static float finite_half(uint16_t h)
{
	float f = bits_to_float((uint32_t)(h & 0x7fff) << 13) * 0x1p112f;

	return h & 0x8000 ? -f : f;
}

static bool row_f32(const uint8_t *restrict row, uint32_t cols, float *restrict floats)
{
	unsigned infinite = 0;

	for (uint32_t i = 0; i < cols; i++) {
		uint32_t bits = load32(row + 4 * (size_t)i);

		infinite |= (bits & 0x7f800000) == 0x7f800000;
		floats[i] = bits_to_float(bits);
	}
	return !infinite;
}

static bool row_half(const uint8_t *restrict row, uint32_t cols, float *restrict floats)
{
	unsigned infinite = 0;

	for (uint32_t i = 0; i < cols; i++) {
		uint16_t h = load16(row + 2 * (size_t)i);

		infinite |= (h & 0x7c00) == 0x7c00;
		floats[i] = finite_half(h);
	}
	return !infinite;
}

static bool row_bf16(const uint8_t *restrict row, uint32_t cols, float *restrict floats)
{
	unsigned infinite = 0;

	for (uint32_t i = 0; i < cols; i++) {
		uint16_t h = load16(row + 2 * (size_t)i);

		infinite |= (h & 0x7f80) == 0x7f80;
		floats[i] = bits_to_float((uint32_t)h << 16);
	}
	return !infinite;
}

static bool row_q8_0(const uint8_t *row, uint32_t cols, float *floats)
{
	unsigned infinite = 0;

	for (uint32_t i = 0; i < cols; i += 32, row += 34) {
		uint16_t h = load16(row);
		float d = finite_half(h);

		infinite |= (h & 0x7c00) == 0x7c00;
		for (unsigned j = 0; j < 32; j++)
			floats[i + j] = d * (float)(int8_t)row[2 + j];
	}
	return !infinite;
}

/* Two halves of 128 columns, each 64 bytes of nibbles, 32 of pairs, 8 scales to 16 columns. */
static bool row_q6_k(const uint8_t *row, uint32_t cols, float *floats)
{
	unsigned infinite = 0;

	for (uint32_t i = 0; i < cols; i += 256, row += 210) {
		uint16_t h = load16(row + 208);
		float d = finite_half(h);

		infinite |= (h & 0x7c00) == 0x7c00;
		for (unsigned col = 0; col < 256; col++) {
			unsigned half = col / 128, quarter = col % 128 / 32, j = col % 32;
			unsigned low =
				row[64 * half + 32 * (quarter % 2) + j] >> (quarter / 2 * 4) & 15;
			unsigned high = row[128 + 32 * half + j] >> (2 * quarter) & 3;
			float scale = (float)(int8_t)row[192 + col / 16];

			floats[i + col] = d * scale * (float)((int)(low | high << 4) - 32);
		}
	}
	return !infinite;
}

bool gguf_row_floats(enum gguf_kind kind, const uint8_t *row, uint32_t cols, float *floats)
{
	assert(!layouts[kind].ternary && cols % layouts[kind].cols == 0);
	switch (kind) {
	case GGUF_KIND_F32:
		return row_f32(row, cols, floats);
	case GGUF_KIND_F16:
		return row_half(row, cols, floats);
	case GGUF_KIND_BF16:
		return row_bf16(row, cols, floats);
	case GGUF_KIND_Q8_0:
		return row_q8_0(row, cols, floats);
	default:
		return row_q6_k(row, cols, floats);
	}
}

/* ---- scales, and blocks to write ------------------------------------------------------------- */

float gguf_row_scale(enum gguf_kind kind, const uint8_t *row)
{
	assert(layouts[kind].row_head);
	return kind == GGUF_KIND_IQ1_BN ? half_to_float(load16(row)) : bits_to_float(load32(row));
}

uint16_t gguf_block_scale(enum gguf_kind kind, const uint8_t *row, uint32_t block)
{
	const uint8_t *b = row + (size_t)block * layouts[kind].bytes;

	switch (kind) {
	case GGUF_KIND_TQ1_0:
		return load16(b + 52);
	case GGUF_KIND_TQ2_0:
		return load16(b + 64);
	default:
		assert(kind == GGUF_KIND_Q8_0);
		return load16(b);
	}
}

void gguf_block_tq2_0(const int8_t codes[256], uint16_t scale, uint8_t block[66])
{
	for (unsigned half = 0; half < 2; half++)
		for (unsigned j = 0; j < 32; j++) {
			const int8_t *c = codes + 128 * half + j;

			block[32 * half + j] = (uint8_t)((c[0] + 1) | (c[32] + 1) << 2 |
							 (c[64] + 1) << 4 | (c[96] + 1) << 6);
		}
	block[64] = (uint8_t)scale;
	block[65] = (uint8_t)(scale >> 8);
}

void gguf_block_q8_0(const int8_t codes[32], uint16_t scale, uint8_t block[34])
{
	block[0] = (uint8_t)scale;
	block[1] = (uint8_t)(scale >> 8);
	memcpy(block + 2, codes, 32);
}

/* SPDX-License-Identifier: MIT */
#include "lib_write_h1b.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
	uint8_t *p;
	size_t n, size;
};

static void bytes(struct buffer *b, const void *p, size_t n)
{
	while (b->n + n > b->size) {
		b->size = b->size ? 2 * b->size : 4096;
		b->p = realloc(b->p, b->size);
		assert(b->p);
	}
	memcpy(b->p + b->n, p, n);
	b->n += n;
}

static void byte(struct buffer *b, unsigned v)
{
	uint8_t one = (uint8_t)v;

	bytes(b, &one, 1);
}

static void half_word(struct buffer *b, uint32_t v)
{
	byte(b, v);
	byte(b, v >> 8);
}

static void word(struct buffer *b, uint32_t v)
{
	half_word(b, v);
	half_word(b, v >> 16);
}

static void floats(struct buffer *b, const float *f, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t bits;

		memcpy(&bits, &f[i], 4);
		word(b, bits);
	}
}

/* Of a value that is exact as a normal binary16. */
static uint32_t half(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, 4);
	assert(!(bits & 0x1fff) && (bits >> 23 & 255) > 112 && (bits >> 23 & 255) < 143);
	return (bits >> 31) << 15 | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 1023);
}

/* ---- rows ------------------------------------------------------------------------------------ */

static void row_2bit(struct buffer *b, const int8_t *w, uint32_t cols)
{
	for (uint32_t i = 0; i < cols; i += 4) {
		unsigned v = 0;

		for (uint32_t k = 0; k < 4; k++)
			v |= (unsigned)(i + k < cols ? w[i + k] + 1 : 1) << (2 * k);
		byte(b, v);
	}
}

static void row_base3(struct buffer *b, const int8_t *w, uint32_t cols)
{
	for (uint32_t i = 0; i < (cols + 19) / 20 * 20; i += 5) {
		unsigned v = 0, power = 1;

		for (uint32_t k = 0; k < 5; k++, power *= 3)
			v += power * (unsigned)(i + k < cols ? w[i + k] + 1 : 1);
		byte(b, v);
	}
}

static void row_sherry(struct buffer *b, const int8_t *w, uint32_t cols)
{
	uint8_t row[1 << 12] = { 0 };
	uint32_t bit = 0;

	assert(cols % 32 == 0 && cols / 32 * 5 <= sizeof(row));
	for (uint32_t g = 0; g < cols / 4; g++, bit += 5) {
		unsigned zero = 4, signs = 0, n = 0, code;

		for (unsigned k = 0; k < 4; k++) {
			if (!w[4 * g + k]) {
				assert(zero == 4);
				zero = k;
			} else {
				signs |= (w[4 * g + k] > 0 ? 1u : 0u) << n++;
			}
		}
		assert(zero < 4);
		code = zero << 3 | signs;
		for (unsigned k = 0; k < 5; k++)
			row[(bit + k) / 8] |= (uint8_t)((code >> k & 1) << ((bit + k) % 8));
	}
	bytes(b, row, bit / 8);
}

static void row_blocks(struct buffer *b, const int8_t *w, uint32_t cols, const float *scales,
		       uint32_t groups, bool signs)
{
	assert(cols % 128 == 0);
	for (uint32_t i = 0; i < cols; i += 128) {
		half_word(b, half(scales[(uint64_t)i * groups / cols]));
		if (!signs)
			row_2bit(b, w + i, 128);
		for (uint32_t k = 0; signs && k < 128; k += 8) {
			unsigned v = 0;

			for (uint32_t n = 0; n < 8; n++)
				v |= (w[i + k + n] > 0 ? 1u : 0u) << n;
			byte(b, v);
		}
	}
}

static void matrix(struct buffer *b, const struct tiny_matrix *m, uint32_t version, uint32_t flags)
{
	for (uint32_t r = 0; r < m->rows; r++) {
		const int8_t *w = m->codes + (size_t)r * m->cols;

		if (flags & 0xc)
			row_blocks(b, w, m->cols, m->scales + (size_t)r * m->groups, m->groups, flags & 4);
		else if (version == 4)
			row_base3(b, w, m->cols);
		else if (version == 3)
			row_sherry(b, w, m->cols);
		else
			row_2bit(b, w, m->cols);
	}
	if (flags & 0xc)
		return;
	assert(m->groups == 1);
	floats(b, m->scales, m->rows);
}

/* ---- files ----------------------------------------------------------------------------------- */

uint8_t *write_h1b(const struct tiny *t, uint32_t version, uint32_t flags, size_t *n)
{
	struct buffer b = { 0 };

	assert(t->tied && t->sub_norms && t->heads * t->head_dim == t->hidden);
	bytes(&b, "H1B", 4);
	word(&b, version);
	word(&b, t->hidden);
	word(&b, t->ffn);
	word(&b, t->layers);
	word(&b, t->heads);
	word(&b, t->kv_heads);
	word(&b, t->vocab);
	word(&b, t->context);
	word(&b, 1);
	word(&b, flags);
	if (version >= 2) {
		floats(&b, &t->theta, 1);
		floats(&b, &t->eps, 1);
	}
	floats(&b, t->embed, (size_t)t->vocab * t->hidden);
	floats(&b, t->final_norm, t->hidden);
	for (uint32_t l = 0; l < t->layers; l++) {
		const struct tiny_layer *y = &t->layer[l];

		floats(&b, y->attn_norm, t->hidden);
		floats(&b, y->ffn_norm, t->hidden);
		for (int i = 0; i < 4; i++)
			floats(&b, y->attn_sub_norm, t->hidden);
		for (int i = 0; i < 2; i++)
			for (uint32_t k = 0; k < t->hidden; k++)
				floats(&b, k < t->ffn ? &y->ffn_sub_norm[k] : &(float){ 0 }, 1);
		floats(&b, y->ffn_sub_norm, t->ffn);
		for (int i = 0; i < TINY_MATRICES; i++)
			matrix(&b, &y->m[i], version, flags);
	}
	*n = b.n;
	return b.p;
}

static void each_matrix(struct tiny *t, void (*change)(int8_t *four, uint64_t *state))
{
	uint64_t state = t->seed;

	for (uint32_t l = 0; l < t->layers; l++)
		for (int i = 0; i < TINY_MATRICES; i++) {
			struct tiny_matrix *m = &t->layer[l].m[i];

			for (size_t k = 0; k < (size_t)m->rows * m->cols; k += 4)
				change(m->codes + k, &state);
		}
}

static void one_zero(int8_t *four, uint64_t *state)
{
	uint64_t r = tiny_random(state);

	for (unsigned k = 0; k < 4; k++)
		four[k] = k == r % 4 ? 0 : r >> (8 + k) & 1 ? 1 : -1;
}

static void no_zero(int8_t *four, uint64_t *state)
{
	uint64_t r = tiny_random(state);

	for (unsigned k = 0; k < 4; k++)
		four[k] = r >> k & 1 ? 1 : -1;
}

void tiny_sherry(struct tiny *t)
{
	each_matrix(t, one_zero);
}

void tiny_signs(struct tiny *t)
{
	each_matrix(t, no_zero);
}

/* Bytes as GPT-2 prints them: itself when printable, otherwise the next of U+0100 and up. */
static void mapped(struct buffer *b, const char *text, uint32_t len)
{
	for (uint32_t i = 0; i < len; i++) {
		unsigned c = (uint8_t)text[i], next = 256, point = 0;

		for (unsigned k = 0; k <= c; k++) {
			bool same = (k >= 33 && k <= 126) || (k >= 161 && k <= 172) || k >= 174;

			point = same ? k : next++;
		}
		if (point < 128) {
			byte(b, point);
		} else {
			byte(b, 0xc0 | point >> 6);
			byte(b, 0x80 | (point & 63));
		}
	}
}

uint8_t *write_htok(const struct tiny *t, uint32_t version, size_t *n)
{
	struct buffer b = { 0 };

	bytes(&b, "HTOK", 4);
	if (version)
		word(&b, version);
	word(&b, t->vocab);
	word(&b, t->n_words);
	word(&b, t->bos);
	word(&b, t->eos);
	for (uint32_t id = 0; id < t->vocab; id++) {
		struct buffer text = { 0 };

		if (id < 256 + t->n_words)
			mapped(&text, t->token[id], t->token_len[id]);
		else
			bytes(&text, t->token[id], t->token_len[id]);
		half_word(&b, (uint32_t)text.n);
		bytes(&b, text.p, text.n);
		free(text.p);
	}
	for (uint32_t i = 0; i < t->n_words; i++) {
		word(&b, t->merge[i].a);
		word(&b, t->merge[i].b);
		word(&b, t->merge[i].merged);
	}
	if (version) {
		word(&b, 4);
		for (uint32_t i = 0; i < 4; i++)
			word(&b, t->bos + i);
	}
	*n = b.n;
	return b.p;
}

const char *write_h1b_file(const char *name, const void *data, size_t n)
{
	static char paths[4][400];
	static unsigned next;
	char *path = paths[next++ % 4];
	const char *tmp = getenv("TMPDIR");
	FILE *f;

	snprintf(path, sizeof(paths[0]), "%s/%s", tmp ? tmp : "/tmp", name);
	f = fopen(path, "wb");
	assert(f);
	if (n && fwrite(data, 1, n, f) != n)
		abort();
	if (fclose(f))
		abort();
	return path;
}

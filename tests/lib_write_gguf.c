/* SPDX-License-Identifier: MIT */
#include "lib_write_gguf.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
	uint8_t *data;
	size_t len, cap;
	struct write_gguf *w;
};

static void put(struct buffer *b, const void *data, size_t len)
{
	if (b->len + len > b->cap) {
		b->cap = (b->len + len) * 2;
		b->data = realloc(b->data, b->cap);
		assert(b->data);
	}
	if (data)
		memcpy(b->data + b->len, data, len);
	else
		memset(b->data + b->len, 0, len);
	b->len += len;
}

static void put_int(struct buffer *b, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++) {
		uint8_t byte = (uint8_t)(value >> 8 * i);

		put(b, &byte, 1);
	}
}

static void put_float(struct buffer *b, float f)
{
	uint32_t bits;

	memcpy(&bits, &f, 4);
	put_int(b, bits, 4);
}

static void put_text(struct buffer *b, const char *text)
{
	put_int(b, strlen(text), 8);
	put(b, text, strlen(text));
}

static void mark(struct buffer *b)
{
	if (b->w->n_marks < sizeof(b->w->mark) / sizeof(b->w->mark[0]))
		b->w->mark[b->w->n_marks++] = b->len;
}

void write_bytes(const char *path, const void *data, size_t len)
{
	FILE *f = fopen(path, "wb");

	assert(f && fwrite(data, 1, len, f) == len);
	assert(!fclose(f));
}

/* ---- types ----------------------------------------------------------------------------------- */

uint16_t write_half(float f)
{
	uint32_t bits;
	int exponent;
	uint16_t sign;

	memcpy(&bits, &f, 4);
	sign = (uint16_t)(bits >> 31 << 15);
	if (!(bits << 1))
		return sign;
	exponent = (int)(bits >> 23 & 255) - 127 + 15;
	assert(exponent > 0 && exponent < 31 && !(bits & 0x1fff));
	return (uint16_t)(sign | exponent << 10 | (bits >> 13 & 0x3ff));
}

/* Rounded, for scales that need not be exact. */
static uint16_t half_near(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, 4);
	bits = (bits + 0x1000) & ~0x1fffu;
	memcpy(&f, &bits, 4);
	return write_half(f);
}

static void store16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static uint8_t base3(const int8_t *codes, const uint8_t *weights, uint32_t n, uint32_t step)
{
	uint32_t number = 0;

	for (uint32_t i = 0; i < n; i++)
		number += weights[i] * (uint32_t)(codes[i * step] + 1);
	return (uint8_t)((number * 256 + 242) / 243);
}

static void tq1_0(const int8_t *c, uint8_t *out)
{
	static const uint8_t first[5] = { 81, 27, 9, 3, 1 };

	for (uint32_t j = 0; j < 32; j++)
		out[j] = base3(c + j, first, 5, 32);
	for (uint32_t j = 0; j < 16; j++)
		out[32 + j] = base3(c + 160 + j, first, 5, 16);
	for (uint32_t j = 0; j < 4; j++)
		out[48 + j] = base3(c + 240 + j, first, 4, 4);
}

static void iq1_bn(const int8_t *c, uint8_t *out)
{
	static const uint8_t last[5] = { 1, 3, 9, 27, 81 };

	for (uint32_t i = 0; i < 12; i++)
		out[i] = base3(c + i / 3 * 16 + i % 3 * 5, last, 5, 1);
	out[12] = base3(c + 15, last, 4, 16);
}

/* Planes of `width` columns; shift of the first plane, and how it goes on. */
static void planes(const int8_t *c, uint32_t width, int shift, int step, uint8_t *out)
{
	for (uint32_t j = 0; j < width; j++) {
		out[j] = 0;
		for (uint32_t p = 0; p < 4; p++)
			out[j] |= (uint8_t)((c[p * width + j] + 1) << (shift + step * (int)p));
	}
}

size_t write_gguf_floats(uint32_t type, const float *v, uint32_t cols, uint8_t *out)
{
	uint8_t *p = out;

	for (uint32_t i = 0; i < cols && type != WRITE_Q8_0 && type != WRITE_Q6_K; i++) {
		uint32_t bits;

		memcpy(&bits, &v[i], 4);
		if (type == WRITE_F32) {
			store16(p, (uint16_t)bits);
			store16(p + 2, (uint16_t)(bits >> 16));
			p += 4;
		} else {
			assert(type == WRITE_F16 || !(bits & 0xffff));
			store16(p, type == WRITE_F16 ? write_half(v[i]) : (uint16_t)(bits >> 16));
			p += 2;
		}
	}
	for (uint32_t i = 0; type == WRITE_Q8_0 && i < cols; i += 32, p += 34) {
		float most = 0x1p-10f;

		for (int j = 0; j < 32; j++)
			most = fmaxf(most, fabsf(v[i + (uint32_t)j]));
		store16(p, half_near(most / 127));
		for (int j = 0; j < 32; j++)
			p[2 + j] = (uint8_t)(int8_t)lrintf(v[i + (uint32_t)j] * 127 / most);
	}
	for (uint32_t i = 0; type == WRITE_Q6_K && i < cols; i += 256, p += 210) {
		memset(p, 0, 210);
		/* One step of 1/32 everywhere: 64 scales of 2^-11. */
		memset(p + 192, 64, 16);
		store16(p + 208, write_half(0x1p-11f));
		for (uint32_t j = 0; j < 256; j++) {
			int q = (int)lrintf(v[i + j] * 32) + 32;
			uint32_t half = j / 128, in = j % 128;

			q = q < 0 ? 0 : q > 63 ? 63 : q;
			p[64 * half + in % 64] |= (uint8_t)((q & 15) << (in < 64 ? 0 : 4));
			p[128 + 32 * half + in % 32] |= (uint8_t)(q >> 4 << 2 * (in / 32));
		}
	}
	return (size_t)(p - out);
}

size_t write_gguf_row(uint32_t type, const int8_t *codes, const float *scales, uint32_t cols,
		      uint32_t groups, uint8_t *out)
{
	uint8_t *p = out;
	float *v;

	switch (type) {
	case WRITE_TQ1_0:
	case WRITE_TQ2_0:
		for (uint32_t i = 0; i < cols; i += 256) {
			if (type == WRITE_TQ1_0) {
				tq1_0(codes + i, p);
				p += 52;
			} else {
				planes(codes + i, 32, 0, 2, p);
				planes(codes + i + 128, 32, 0, 2, p + 32);
				p += 64;
			}
			store16(p, write_half(scales[i / (cols / groups)]));
			p += 2;
		}
		break;
	case WRITE_I2_S:
		for (uint32_t i = 0; i < cols; i += 128, p += 32)
			planes(codes + i, 32, 6, -2, p);
		break;
	case WRITE_IQ1_BN:
		store16(p, write_half(scales[0]));
		p += 2;
		for (uint32_t i = 0; i < cols; i += 64, p += 13)
			iq1_bn(codes + i, p);
		break;
	case WRITE_IQ2_BN:
		p += write_gguf_floats(WRITE_F32, scales, 1, p);
		for (uint32_t i = 0; i < cols; i += 64, p += 16)
			planes(codes + i, 16, 0, 2, p);
		break;
	default:
		v = malloc(cols * sizeof(*v));
		assert(v);
		for (uint32_t i = 0; i < cols; i++)
			v[i] = (float)codes[i] * scales[i / (cols / groups)];
		p += write_gguf_floats(type, v, cols, p);
		free(v);
	}
	return (size_t)(p - out);
}

/* ---- metadata -------------------------------------------------------------------------------- */

struct keys {
	struct buffer *b;
	uint32_t n;
	const char *arch;
};

/* How often; the key's name and type are written for each, the value is the caller's. */
static unsigned times(const struct write_gguf *w, const char *name)
{
	if (w->without && !strcmp(w->without, name))
		return 0;
	return w->twice && !strcmp(w->twice, name) ? 2 : 1;
}

static void key(struct keys *k, const char *name, uint32_t type)
{
	put_text(k->b, name);
	mark(k->b);
	put_int(k->b, type, 4);
	k->n++;
}

static void key_u32(struct keys *k, const char *name, uint32_t value)
{
	for (unsigned i = times(k->b->w, name); i; i--) {
		key(k, name, 4);
		put_int(k->b, value, 4);
		mark(k->b);
	}
}

static void key_f32(struct keys *k, const char *name, float value)
{
	for (unsigned i = times(k->b->w, name); i; i--) {
		key(k, name, 6);
		put_float(k->b, value);
		mark(k->b);
	}
}

static void key_text(struct keys *k, const char *name, const char *value)
{
	for (unsigned i = times(k->b->w, name); i && value; i--) {
		key(k, name, 8);
		put_text(k->b, value);
		mark(k->b);
	}
}

static void arch_u32(struct keys *k, const char *name, uint32_t value)
{
	char full[96];

	snprintf(full, sizeof(full), "%s.%s", k->arch, name);
	key_u32(k, full, value);
}

/* Ids below 256 stand in the order of their spellings: first those that are themselves. */
static size_t spell(const struct tiny *t, uint32_t id, char *out)
{
	size_t n = 0;

	for (uint32_t i = 0; i < t->token_len[id]; i++) {
		uint8_t byte = (uint8_t)t->token[id][i];
		uint32_t code = 0;

		for (uint32_t b = 0; b < 256; b++)
			if ((uint8_t)t->token[b][0] == byte)
				code = b < 188 ? byte : 256 + b - 188;
		if (code < 128) {
			out[n++] = (char)code;
		} else {
			out[n++] = (char)(0xc0 | code >> 6);
			out[n++] = (char)(0x80 | (code & 63));
		}
	}
	out[n] = 0;
	return n;
}

static void put_vocab(struct keys *k, const struct tiny *t)
{
	char text[300];

	key_text(k, "tokenizer.ggml.model", "gpt2");
	key_text(k, "tokenizer.ggml.pre", k->b->w->pre);
	key_text(k, "tokenizer.chat_template", k->b->w->chat);
	for (unsigned n = times(k->b->w, "tokenizer.ggml.tokens"); n; n--) {
		key(k, "tokenizer.ggml.tokens", 9);
		put_int(k->b, 8, 4);
		put_int(k->b, t->vocab, 8);
		mark(k->b);
		for (uint32_t i = 0; i < t->vocab; i++) {
			if (i < t->vocab - 4)
				spell(t, i, text);
			else
				snprintf(text, sizeof(text), "%.*s", (int)t->token_len[i],
					 t->token[i]);
			put_text(k->b, text);
		}
		mark(k->b);
	}
	for (unsigned n = times(k->b->w, "tokenizer.ggml.token_type"); n; n--) {
		key(k, "tokenizer.ggml.token_type", 9);
		put_int(k->b, 5, 4);
		put_int(k->b, t->vocab, 8);
		for (uint32_t i = 0; i < t->vocab; i++)
			put_int(k->b, i < t->vocab - 4 ? 1 : 3, 4);
		mark(k->b);
	}
	for (unsigned n = times(k->b->w, "tokenizer.ggml.merges"); n; n--) {
		key(k, "tokenizer.ggml.merges", 9);
		put_int(k->b, 8, 4);
		put_int(k->b, t->n_words, 8);
		for (uint32_t i = 0; i < t->n_words; i++) {
			size_t len = spell(t, t->merge[i].a, text);

			text[len++] = ' ';
			spell(t, t->merge[i].b, text + len);
			put_text(k->b, text);
		}
		mark(k->b);
	}
	key_u32(k, "tokenizer.ggml.bos_token_id", t->bos);
	key_u32(k, "tokenizer.ggml.eos_token_id", t->eos);
}

static uint32_t put_keys(struct buffer *b, const struct tiny *t)
{
	struct write_gguf *w = b->w;
	struct keys k = { .b = b, .arch = w->arch };
	char name[96];

	key_text(&k, "general.architecture", w->arch);
	key_text(&k, "general.name", "tiny model");
	key_text(&k, "general.license", "mit");
	if (w->alignment)
		key_u32(&k, "general.alignment", w->alignment);
	arch_u32(&k, "block_count", t->layers);
	arch_u32(&k, "embedding_length", t->hidden);
	arch_u32(&k, "feed_forward_length", t->ffn);
	arch_u32(&k, "attention.head_count", t->heads);
	arch_u32(&k, "attention.head_count_kv", t->kv_heads);
	arch_u32(&k, "rope.dimension_count", t->head_dim);
	arch_u32(&k, "context_length", t->context);
	if (t->hidden != t->heads * t->head_dim) {
		arch_u32(&k, "attention.key_length", t->head_dim);
		arch_u32(&k, "attention.value_length", t->head_dim);
	}
	snprintf(name, sizeof(name), "%s.attention.layer_norm_rms_epsilon", w->arch);
	key_f32(&k, name, t->eps);
	snprintf(name, sizeof(name), "%s.rope.freq_base", w->arch);
	key_f32(&k, name, t->theta);
	snprintf(name, sizeof(name), "%s.hidden_activation", w->arch);
	key_text(&k, name, w->activation);
	if (!w->no_vocab)
		put_vocab(&k, t);
	if (w->extra_text)
		key_text(&k, w->extra_key, w->extra_text);
	else if (w->extra_key)
		key_u32(&k, w->extra_key, 1);
	return k.n;
}

/* ---- tensors --------------------------------------------------------------------------------- */

struct item {
	char name[64];
	uint32_t type, rows, cols;
	const float *floats;		/* or */
	const struct tiny_matrix *m;
	bool unscaled, permute;
	uint64_t offset, bytes;
	uint8_t *data;
};

struct items {
	struct item *item;
	uint32_t n;
	const struct write_gguf *w;
};

static struct item *add(struct items *s, const char *name, uint32_t type, uint32_t rows,
			uint32_t cols)
{
	struct item *i = NULL;

	for (unsigned n = times(s->w, name); n; n--) {
		assert(s->n < 1000);
		i = &s->item[s->n++];
		*i = (struct item){ .type = type, .rows = rows, .cols = cols };
		snprintf(i->name, sizeof(i->name), "%s", name);
		if (n == 2)
			i->data = calloc(1, 8u << 20);
	}
	return i;
}

static void add_floats(struct items *s, const char *name, uint32_t type, uint32_t rows,
		       uint32_t cols, const float *floats)
{
	struct item *i = floats ? add(s, name, type, rows, cols) : NULL;

	if (!i)
		return;
	for (struct item *j = s->item; j <= i; j++)
		if (!strcmp(i->name, j->name))
			j->floats = floats;
}

static void add_matrix(struct items *s, uint32_t layer, const char *name,
		       const struct tiny_matrix *m, bool permute)
{
	char full[64];
	struct item *i;

	snprintf(full, sizeof(full), "blk.%u.%s.weight", layer, name);
	i = add(s, full, s->w->linear, m->rows, m->cols);
	if (!i)
		return;
	for (struct item *j = s->item; j <= i; j++)
		if (!strcmp(i->name, j->name)) {
			j->m = m;
			j->permute = permute;
			j->unscaled = s->w->scale_tensors;
		}
	if (s->w->scale_tensors) {
		snprintf(full, sizeof(full), "blk.%u.%s.scale", layer, name);
		add_floats(s, full, WRITE_F32, 1, 1, m->scales);
	}
}

static void fill_item(const struct write_gguf *w, const struct tiny *t, struct item *i)
{
	static const float one[64] = { 1 };
	const uint32_t half = t->head_dim / 2;
	uint8_t *p;

	free(i->data);
	p = i->data = calloc(1, (size_t)i->rows * i->cols * 4 + i->rows * 8u + 4096);
	assert(p);
	for (uint32_t r = 0; r < i->rows; r++) {
		uint32_t from = r;

		/* Row 2j + k of a head is row j + k * half of the split order. */
		if (i->permute)
			from = r - r % t->head_dim + r % t->head_dim / 2 + r % 2 * half;
		if (i->floats)
			p += write_gguf_floats(i->type, i->floats + (size_t)r * i->cols, i->cols,
					       p);
		else
			p += write_gguf_row(
				i->type, i->m->codes + (size_t)from * i->cols,
				i->unscaled ? one : i->m->scales + (size_t)from * i->m->groups,
				i->cols, i->unscaled ? 1 : i->m->groups, p);
	}
	for (uint32_t n = 0; i->type == WRITE_I2_S && n < (w->i2_s_threads ? w->i2_s_threads : 1);
	     n++) {
		write_gguf_floats(WRITE_F32, i->unscaled ? one : i->m->scales, 1, p);
		/* What stands behind the scale is whatever stood in memory. */
		memset(p + 4, 0xa5, 28);
		p += 32;
	}
	i->bytes = (uint64_t)(p - i->data);
}

static void add_layer(struct items *s, const struct tiny *t, uint32_t l, bool pairs)
{
	static const char *const names[TINY_MATRICES] = { "attn_q",	 "attn_k",   "attn_v",
							  "attn_output", "ffn_gate", "ffn_up",
							  "ffn_down" };
	const struct tiny_layer *layer = &t->layer[l];
	const struct {
		const char *name;
		const float *v;
		uint32_t n;
	} norms[] = {
		{ "attn_norm", layer->attn_norm, t->hidden },
		{ "attn_sub_norm", layer->attn_sub_norm, t->heads * t->head_dim },
		{ "ffn_norm", layer->ffn_norm, t->hidden },
		{ "ffn_sub_norm", layer->ffn_sub_norm, t->ffn },
	};
	char full[64];

	for (int i = 0; i < 4; i++) {
		snprintf(full, sizeof(full), "blk.%u.%s.weight", l, norms[i].name);
		add_floats(s, full, WRITE_F32, 1, norms[i].n, norms[i].v);
	}
	for (int m = 0; m < TINY_MATRICES; m++)
		add_matrix(s, l, names[m], &layer->m[m], pairs && (m == TINY_Q || m == TINY_K));
}

void write_gguf_default(struct write_gguf *w)
{
	*w = (struct write_gguf){ .version = 3, .arch = "bitnet-b1.58", .linear = WRITE_I2_S,
				  .embed = WRITE_F16, .pre = "llama-bpe" };
}

uint8_t *write_gguf(const struct tiny *t, struct write_gguf *w, size_t *len)
{
	static const float number[1] = { 1 };
	struct buffer b = { .w = w }, meta = { .w = w };
	const uint32_t alignment = w->alignment ? w->alignment : 32;
	struct items s = { .item = calloc(1000, sizeof(*s.item)), .w = w };
	uint64_t offset = 0;
	uint32_t n_keys;

	assert(s.item);
	w->n_marks = 0;
	add_floats(&s, "token_embd.weight", w->embed, t->vocab, t->hidden, t->embed);
	for (uint32_t l = 0; l < t->layers; l++)
		add_layer(&s, t, l, w->pairs);
	add_floats(&s, "output_norm.weight", WRITE_F32, 1, t->hidden, t->final_norm);
	add_floats(&s, "output.weight", w->embed, t->vocab, t->hidden, t->head);
	if (w->extra_tensor)
		add_floats(&s, w->extra_tensor, WRITE_F32, 1, 1, number);
	put(&b, "GGUF", 4);
	mark(&b);
	put_int(&b, w->version, 4);
	mark(&b);
	put_int(&b, s.n, 8);
	mark(&b);
	/* The number of keys is known behind them. */
	put_int(&b, 0, 8);
	mark(&b);
	n_keys = put_keys(&b, t);
	put_int(&meta, n_keys, 8);
	memcpy(b.data + 16, meta.data, 8);
	free(meta.data);
	for (uint32_t i = 0; i < s.n; i++) {
		struct item *it = &s.item[i];

		fill_item(w, t, it);
		it->offset = offset;
		offset = (offset + it->bytes + alignment - 1) / alignment * alignment;
		put_text(&b, it->name);
		mark(&b);
		put_int(&b, it->rows == 1 ? 1 : 2, 4);
		put_int(&b, it->cols, 8);
		if (it->rows != 1)
			put_int(&b, it->rows, 8);
		put_int(&b,
			it->type == w->linear && it->m && w->linear_number ? w->linear_number
									   : it->type,
			4);
		put_int(&b, it->offset, 8);
		mark(&b);
	}
	put(&b, NULL, (alignment - b.len % alignment) % alignment);
	w->data_offset = b.len;
	w->n_meta = w->n_marks;
	for (uint32_t i = 0; i < s.n; i++) {
		mark(&b);
		put(&b, s.item[i].data, s.item[i].bytes);
		put(&b, NULL, (alignment - b.len % alignment) % alignment);
		free(s.item[i].data);
	}
	free(s.item);
	*len = b.len;
	return b.data;
}

void write_gguf_file(const struct tiny *t, struct write_gguf *w, const char *path)
{
	size_t len;
	uint8_t *data = write_gguf(t, w, &len);

	write_bytes(path, data, len);
	free(data);
}

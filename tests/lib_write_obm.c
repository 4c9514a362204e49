/* SPDX-License-Identifier: MIT */
#include "lib_write_obm.h"

#include <assert.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "packed.h"
#include "rope.h"
#include "vocab.h"

struct file {
	uint8_t *data;
	size_t bytes, cap;
};

static void append(struct file *f, const void *data, size_t n)
{
	if (f->bytes + n > f->cap) {
		f->cap = 2 * (f->bytes + n);
		f->data = realloc(f->data, f->cap);
		assert(f->data);
	}
	if (data)
		memcpy(f->data + f->bytes, data, n);
	else
		memset(f->data + f->bytes, 0, n);
	f->bytes += n;
}

static void pad(struct file *f, size_t to)
{
	append(f, NULL, (to - f->bytes % to) % to);
}

/* ---- packing, a weight at a time ------------------------------------------------------------- */

static size_t span_of(uint32_t layout)
{
	switch (layout) {
	case PACKED_2BIT:
		return 64;
	case PACKED_BASE3:
		return 80;
	case PACKED_INT8:
		return 16;
	default:
		return 8;
	}
}

/* One column of one row into its unit's 16 bytes; base-3 digits into an integer first. */
static void put_code(uint32_t layout, uint8_t *row, unsigned *digits, size_t c, int code)
{
	static const unsigned powers[5] = { 81, 27, 9, 3, 1 };

	if (layout == PACKED_2BIT)
		row[c % 16] = (uint8_t)(row[c % 16] | (unsigned)(code + 1) << 2 * (c / 16));
	else if (layout == PACKED_BASE3)
		digits[c % 16] += (unsigned)(code + 1) * powers[c / 16];
	else
		row[c] = (uint8_t)code;
}

static void pack(struct file *f, uint32_t layout, const int8_t *codes, const uint16_t *halves,
		 size_t rows, size_t cols, size_t groups)
{
	size_t span = span_of(layout), width = cols / groups;

	for (size_t tile = 0; tile < rows; tile += 32)
		for (size_t g = 0; g < groups; g++)
			for (size_t unit = 0; unit < width; unit += span)
				for (size_t r = tile; r < tile + 32; r++) {
					uint8_t bytes[16] = { 0 };
					unsigned digits[16] = { 0 };

					for (size_t c = 0; c < span; c++) {
						bool there = r < rows && unit + c < width;
						size_t at =
							there ? r * cols + g * width + unit + c : 0;

						if (halves)
							memcpy(bytes + 2 * c,
							       &(uint16_t){ there ? halves[at] :
										    0 },
							       2);
						else
							put_code(layout, bytes, digits, c,
								 there ? codes[at] : 0);
					}
					for (size_t j = 0; j < 16 && layout == PACKED_BASE3; j++)
						bytes[j] = (uint8_t)((digits[j] * 256 + 242) / 243);
					append(f, bytes, 16);
				}
}

/* Exact ones only: those of lib_tiny. */
static uint16_t half_of(uint32_t layout, float v)
{
	uint32_t u;
	int e;
	float m = frexpf(fabsf(v), &e);

	memcpy(&u, &v, sizeof(u));
	if (layout == PACKED_BF16) {
		assert(!(u & 0xffff));
		return (uint16_t)(u >> 16);
	}
	if (!m)
		return 0;
	assert(e > -14 && e <= 16 && m * 2048 == floorf(m * 2048));
	return (uint16_t)((v < 0 ? 0x8000 : 0) + ((e + 14) << 10) + ((int)(m * 2048) - 1024));
}

void write_obm_int8(const float *row, uint32_t n, int8_t *codes, float *scale)
{
	float most = 0;

	for (uint32_t i = 0; i < n; i++)
		most = fmaxf(most, fabsf(row[i]));
	*scale = most / 127.0f;
	for (uint32_t i = 0; i < n; i++)
		codes[i] = most > 0 ? (int8_t)lrintf(row[i] / *scale) : 0;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* Each matrix of a layer has its rows and columns from the model; a head that is tied is none. */
static uint64_t parameters(const struct tiny *t)
{
	uint64_t q = (uint64_t)t->heads * t->head_dim, kv = (uint64_t)t->kv_heads * t->head_dim;
	uint64_t norms = 2 * (uint64_t)t->hidden + (t->sub_norms ? q + t->ffn : 0);
	uint64_t matrices = (2 * q + 2 * kv + 3 * (uint64_t)t->ffn) * t->hidden;

	return t->layers * (norms + matrices) +
	       ((t->tied ? 1 : 2) * (uint64_t)t->vocab + 1) * t->hidden;
}

struct obm_arch write_obm_arch(const struct tiny *t, const struct write_obm *o)
{
	struct obm_arch a = {
		.layers = t->layers,
		.hidden = t->hidden,
		.ffn = t->ffn,
		.heads = t->heads,
		.kv_heads = t->kv_heads,
		.head_dim = t->head_dim,
		.vocab = t->vocab,
		.context = t->context,
		.activation = o->activation ? o->activation : OBM_ACT_RELU2,
		.rms_eps = t->eps,
		.rope_theta = t->theta,
		.n_parameters = parameters(t),
		.name = "tiny",
		.family = "bitnet-b1.58",
	};

	return a;
}

void *write_obm_tokenizer(const struct tiny *t, size_t *bytes)
{
	struct vocab *v = vocab_new();
	char why[256] = "";
	void *section;
	int err = 0;

	assert(v);
	v->kind = VOCAB_BYTES;
	v->rule = VOCAB_RULE_GPT2;
	v->flags = VOCAB_ADD_BOS;
	v->bos = t->bos;
	v->eos = t->eos;
	v->unk = VOCAB_NO_ID;
	for (uint32_t i = 0; !err && i < t->vocab; i++)
		err = vocab_add(v, t->token[i], t->token_len[i],
				i + 4 < t->vocab ? VOCAB_NORMAL : VOCAB_SPECIAL, 0);
	for (uint32_t i = 0; !err && i < t->n_words; i++)
		err = vocab_merge(v, t->merge[i].a, t->merge[i].b, t->merge[i].merged);
	err = err ? err : vocab_stop(v, t->eos);
	err = err ? err : vocab_stop(v, t->eot);
	err = err ? err : vocab_build(v, t->vocab, &section, bytes, why, sizeof(why));
	if (err) {
		fprintf(stderr, "the tiny vocabulary is refused: %d %s\n", err, why);
		abort();
	}
	vocab_free(v);
	return section;
}

struct writing {
	const struct tiny *t;
	const struct write_obm *o;
	struct file f;
	struct obm_section *sections;
	uint32_t n_sections;
	struct obm_tensor *tensors;
	uint32_t n_tensors;
};

static void section(struct writing *w, uint32_t kind, uint32_t index, const void *data,
		    size_t bytes)
{
	pad(&w->f, 4096);
	w->sections[w->n_sections++] = (struct obm_section){
		.kind = kind, .index = index, .offset = w->f.bytes, .bytes = bytes
	};
	append(&w->f, data, bytes);
}

static struct obm_tensor *tensor(struct writing *w, uint32_t role, uint32_t layer, uint32_t layout,
				 uint32_t rows, uint32_t cols, uint32_t groups)
{
	struct obm_tensor *t = &w->tensors[w->n_tensors++];

	pad(&w->f, 256);
	*t =
		(struct obm_tensor){ role,   layer,	 layout, rows, cols,
				     groups, w->f.bytes, 0,	 0,    { 0 } };
	return t;
}

static void floats(struct writing *w, uint32_t role, uint32_t layer, const float *f, uint32_t n)
{
	struct obm_tensor *t;

	if (!f)
		return;
	t = tensor(w, role, layer, 0, 1, n, 0);
	append(&w->f, f, n * sizeof(*f));
	t->bytes = n * sizeof(*f);
}

static void scales(struct writing *w, struct obm_tensor *t, const float *s)
{
	pad(&w->f, 256);
	t->scales = w->f.bytes;
	for (uint32_t g = 0; g < t->groups; g++)
		for (uint32_t r = 0; r < (t->rows + 31) / 32 * 32; r++)
			append(&w->f, &(float){ r < t->rows ? s[r * t->groups + g] : 0 },
			       sizeof(float));
}

static void linear(struct writing *w, uint32_t role, uint32_t layer, const struct tiny_matrix *m)
{
	struct obm_tensor *t = tensor(w, role, layer, w->o->linear, m->rows, m->cols, m->groups);

	pack(&w->f, t->layout, m->codes, NULL, m->rows, m->cols, m->groups);
	t->bytes = w->f.bytes - t->offset;
	scales(w, t, m->scales);
}

static void table(struct writing *w, uint32_t role, const float *f)
{
	uint32_t rows = w->t->vocab, cols = w->t->hidden;
	size_t n = (size_t)rows * cols;
	struct obm_tensor *t = tensor(w, role, OBM_NO_LAYER, w->o->table, rows, cols, 1);
	int8_t *codes = calloc(n, 1);
	uint16_t *halves = calloc(n, 2);
	float *s = calloc(rows, sizeof(*s));

	assert(codes && halves && s);
	for (uint32_t r = 0; r < rows; r++)
		if (t->layout == PACKED_INT8)
			write_obm_int8(f + (size_t)r * cols, cols, codes + (size_t)r * cols, &s[r]);
	for (size_t i = 0; i < n && t->layout != PACKED_INT8; i++)
		halves[i] = half_of(t->layout, f[i]);
	pack(&w->f, t->layout, codes, t->layout == PACKED_INT8 ? NULL : halves, rows, cols, 1);
	t->bytes = w->f.bytes - t->offset;
	if (t->layout == PACKED_INT8)
		scales(w, t, s);
	free(codes);
	free(halves);
	free(s);
}

static void weights(struct writing *w, uint32_t index)
{
	static const uint32_t roles[TINY_MATRICES] = { OBM_Q,	 OBM_K,	 OBM_V,	  OBM_O,
						       OBM_GATE, OBM_UP, OBM_DOWN };
	const struct tiny *t = w->t;
	const struct tiny_layer *l = index ? &t->layer[index - 1] : NULL;
	size_t start;

	section(w, OBM_WEIGHTS, index, NULL, 0);
	start = w->f.bytes;
	if (!l) {
		table(w, OBM_EMBED, t->embed);
		if (t->head)
			table(w, OBM_HEAD, t->head);
		floats(w, OBM_FINAL_NORM, OBM_NO_LAYER, t->final_norm, t->hidden);
	} else {
		floats(w, OBM_ATTN_NORM, index - 1, l->attn_norm, t->hidden);
		floats(w, OBM_ATTN_SUB_NORM, index - 1, l->attn_sub_norm, t->heads * t->head_dim);
		floats(w, OBM_FFN_NORM, index - 1, l->ffn_norm, t->hidden);
		floats(w, OBM_FFN_SUB_NORM, index - 1, l->ffn_sub_norm, t->ffn);
		for (unsigned m = 0; m < TINY_MATRICES; m++)
			linear(w, roles[m], index - 1, &l->m[m]);
	}
	w->sections[w->n_sections - 1].bytes = w->f.bytes - start;
}

uint8_t *write_obm(const struct tiny *t, const struct write_obm *o, size_t *bytes)
{
	uint32_t n_sections = 6 + t->layers + (o->info ? 1 : 0) + (o->licence ? 1 : 0);
	uint32_t n_tensors = t->layers * (t->sub_norms ? 11 : 9) + (t->tied ? 2 : 3);
	struct obm_header h = {
		.magic = OBM_MAGIC, .version = 1, .contract = 1, .n_sections = n_sections
	};
	struct obm_arch a = write_obm_arch(t, o);
	size_t table_bytes = (size_t)t->context * t->head_dim * sizeof(float), n;
	double f[OBM_HEAD_DIM_MAX / 2];
	float *angles = malloc(table_bytes);
	struct writing w = { .t = t, .o = o };
	void *tokenizer = write_obm_tokenizer(t, &n);
	size_t tensors_at, covered;

	w.sections = calloc(n_sections, sizeof(*w.sections));
	w.tensors = calloc(n_tensors, sizeof(*w.tensors));
	assert(angles && w.sections && w.tensors);
	rope_frequencies((double)t->theta, t->head_dim, f);
	rope_table(f, t->head_dim, 0, t->context, angles);
	crypto_hash_sha256(a.rope_sha256, (const uint8_t *)angles, table_bytes);
	free(angles);

	append(&w.f, NULL, 256 + n_sections * 32);
	pad(&w.f, 4096);
	h.header_bytes = (uint32_t)w.f.bytes;
	section(&w, OBM_ARCH, 0, &a, sizeof(a));
	section(&w, OBM_TENSORS, 0, NULL, n_tensors * sizeof(*w.tensors));
	tensors_at = w.sections[1].offset;
	section(&w, OBM_ROPE, 0, f, t->head_dim / 2 * sizeof(*f));
	section(&w, OBM_TOKENIZER, 0, tokenizer, n);
	if (o->info)
		section(&w, OBM_INFO, 0, o->info, strlen(o->info));
	if (o->licence)
		section(&w, OBM_LICENCE, 0, o->licence, strlen(o->licence));
	for (uint32_t i = 0; i <= t->layers; i++)
		weights(&w, i);
	pad(&w.f, 4096);
	covered = w.f.bytes - h.header_bytes;
	section(&w, OBM_CHUNKS, 0, NULL, (covered + OBM_CHUNK - 1) / OBM_CHUNK * 32);
	assert(w.n_sections == n_sections && w.n_tensors == n_tensors);

	h.file_bytes = w.f.bytes;
	memcpy(w.f.data, &h, sizeof(h));
	memcpy(w.f.data + sizeof(h), w.sections, n_sections * sizeof(*w.sections));
	memcpy(w.f.data + tensors_at, w.tensors, n_tensors * sizeof(*w.tensors));
	write_obm_seal(w.f.data, w.f.bytes, true);
	free(tokenizer);
	free(w.sections);
	free(w.tensors);
	*bytes = w.f.bytes;
	return w.f.data;
}

/* ---- checksums ------------------------------------------------------------------------------- */

void write_obm_seal(uint8_t *file, size_t bytes, bool deep)
{
	struct obm_header *h = (struct obm_header *)file, plain;
	struct obm_section *s = (struct obm_section *)(file + sizeof(*h)), *chunks = NULL;
	crypto_hash_sha256_state sum;
	uint8_t *page;

	if (bytes < sizeof(*h) || h->header_bytes > bytes || h->header_bytes < sizeof(*h) ||
	    h->n_sections > (h->header_bytes - sizeof(*h)) / sizeof(*s))
		return;
	for (uint32_t i = 0; i < h->n_sections; i++)
		if (s[i].kind == OBM_CHUNKS && s[i].offset <= bytes &&
		    s[i].bytes <= bytes - s[i].offset && s[i].offset >= h->header_bytes)
			chunks = &s[i];
	for (size_t at = h->header_bytes, i = 0;
	     deep && chunks && at < chunks->offset && i < chunks->bytes / 32;
	     at += OBM_CHUNK, i++) {
		size_t n = chunks->offset - at < OBM_CHUNK ? chunks->offset - at : OBM_CHUNK;

		crypto_hash_sha256(file + chunks->offset + i * 32, file + at, n);
	}
	for (uint32_t i = 0; i < h->n_sections; i++)
		if (s[i].offset <= bytes && s[i].bytes <= bytes - s[i].offset)
			s[i].xxh3 = XXH3_64bits(file + s[i].offset, s[i].bytes);

	plain = *h;
	plain.header_xxh3 = 0;
	memset(plain.identity, 0, 32);
	memset(plain.signer, 0, 32);
	memset(plain.signature, 0, 64);
	crypto_hash_sha256_init(&sum);
	crypto_hash_sha256_update(&sum, (const uint8_t *)&plain, sizeof(plain));
	crypto_hash_sha256_update(&sum, file + sizeof(plain), h->header_bytes - sizeof(plain));
	if (chunks)
		crypto_hash_sha256_update(&sum, file + chunks->offset, chunks->bytes);
	crypto_hash_sha256_final(&sum, h->identity);

	page = malloc(h->header_bytes);
	assert(page);
	memcpy(page, file, h->header_bytes);
	memcpy(plain.identity, h->identity, 32);
	memcpy(page, &plain, sizeof(plain));
	h->header_xxh3 = XXH3_64bits(page, h->header_bytes);
	free(page);
}

struct obm_section *write_obm_section(uint8_t *file, uint32_t kind, uint32_t index)
{
	struct obm_header *h = (struct obm_header *)file;
	struct obm_section *s = (struct obm_section *)(file + sizeof(*h));

	for (uint32_t i = 0; i < h->n_sections; i++)
		if (s[i].kind == kind && s[i].index == index)
			return &s[i];
	return NULL;
}

struct obm_tensor *write_obm_tensor(uint8_t *file, uint32_t role, uint32_t layer)
{
	struct obm_section *s = write_obm_section(file, OBM_TENSORS, 0);
	struct obm_tensor *t = (struct obm_tensor *)(file + s->offset);

	for (uint32_t i = 0; i < s->bytes / sizeof(*t); i++)
		if (t[i].role == role && t[i].layer == layer)
			return &t[i];
	return NULL;
}

/* SPDX-License-Identifier: MIT */
#include "lib_tiny.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t tiny_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

void tiny_default(struct tiny *t, uint64_t seed)
{
	*t = (struct tiny){
		.seed = seed, .layers = 2, .hidden = 128, .ffn = 192, .heads = 4, .kv_heads = 2,
		.head_dim = 32, .context = 64, .groups = 1, .sub_norms = true, .tied = true,
		.half_scales = true, .eps = 1e-5f, .theta = 10000.0f, .n_words = 60,
	};
}

/* Of seven significant bits and a small exponent: exact in binary16 and in bfloat16. */
static float short_float(uint64_t *state)
{
	uint64_t r = tiny_random(state);
	float f = (float)(64 + r % 64) / 128.0f;

	return (r >> 32) % 2 ? f : -f;
}

static float *floats(uint64_t n, uint64_t *state, bool positive)
{
	float *f = malloc((n ? n : 1) * sizeof(*f));

	assert(f);
	for (uint64_t i = 0; i < n; i++) {
		f[i] = short_float(state);
		if (positive && f[i] < 0)
			f[i] = -f[i];
	}
	return f;
}

static void fill_matrix(const struct tiny *t, struct tiny_matrix *m, uint32_t rows, uint32_t cols,
			uint64_t *state)
{
	uint64_t n = (uint64_t)rows * cols;
	uint64_t n_scales = (uint64_t)rows * t->groups;

	m->rows = rows;
	m->cols = cols;
	m->groups = t->groups;
	m->codes = malloc(n);
	m->scales = malloc(n_scales * sizeof(*m->scales));
	assert(m->codes && m->scales);
	for (uint64_t i = 0; i < n; i++)
		m->codes[i] = (int8_t)(tiny_random(state) % 3) - 1;
	for (uint64_t i = 0; i < n_scales; i++) {
		float s = short_float(state) / 16.0f;

		s = s < 0 ? -s : s;
		if (!t->half_scales)
			s *= 1.0f + (float)(tiny_random(state) % 1000) / 4096.0f / 257.0f;
		m->scales[i] = i && !t->row_scales ? m->scales[i % t->groups] : s;
		if (i < t->groups && !t->row_scales)
			m->scales[i] = s;
	}
}

/* Printable bytes first, in GPT-2's order, then the others. */
static uint8_t byte_of_id(uint32_t id)
{
	uint32_t n = 0;

	for (int pass = 0; pass < 2; pass++)
		for (int b = 0; b < 256; b++) {
			bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;

			if (printable == !pass && n++ == id)
				return (uint8_t)b;
		}
	abort();
}

static bool have_token(const struct tiny *t, uint32_t n, const char *text, uint32_t len)
{
	for (uint32_t i = 0; i < n; i++)
		if (t->token_len[i] == len && !memcmp(t->token[i], text, len))
			return true;
	return false;
}

static void fill_vocab(struct tiny *t, uint64_t *state)
{
	static const char *const specials[] = { "<|begin_of_text|>", "<|end_of_text|>", "<|start|>",
						"<|eot_id|>" };
	static const char letters[] = " etaoinsrhld";
	uint32_t n = 256;

	t->vocab = 256 + t->n_words + 4;
	t->token = calloc(t->vocab, sizeof(*t->token));
	t->token_len = calloc(t->vocab, sizeof(*t->token_len));
	t->merge = calloc(t->n_words ? t->n_words : 1, sizeof(*t->merge));
	assert(t->token && t->token_len && t->merge);
	for (uint32_t i = 0; i < 256; i++) {
		t->token[i][0] = (char)byte_of_id(i);
		t->token_len[i] = 1;
	}
	while (n < 256 + t->n_words) {
		char text[64];
		uint32_t part[2];
		uint32_t len = 0;

		for (int i = 0; i < 2; i++) {
			/* A letter, or now and then a word that is there; a space only begins one. */
			part[i] = n > 256 && tiny_random(state) % 2
					  ? 256 + (uint32_t)(tiny_random(state) % (n - 256))
					  : UINT32_MAX;
			if (part[i] == UINT32_MAX) {
				char c = letters[(unsigned)i + tiny_random(state) % (12 - (unsigned)i)];

				for (uint32_t id = 0; id < 256; id++)
					if (t->token[id][0] == c)
						part[i] = id;
			}
			if (len + t->token_len[part[i]] > 16 || (i && t->token[part[i]][0] == ' '))
				break;
			memcpy(text + len, t->token[part[i]], t->token_len[part[i]]);
			len += t->token_len[part[i]];
		}
		if (len < 2 || len != t->token_len[part[0]] + t->token_len[part[1]] ||
		    have_token(t, n, text, len))
			continue;
		memcpy(t->token[n], text, len);
		t->token_len[n] = len;
		t->merge[n - 256] = (struct tiny_merge){ part[0], part[1], n };
		n++;
	}
	for (int i = 0; i < 4; i++, n++) {
		t->token_len[n] = (uint32_t)strlen(specials[i]);
		memcpy(t->token[n], specials[i], t->token_len[n]);
	}
	t->bos = t->vocab - 4;
	t->eos = t->vocab - 3;
	t->eot = t->vocab - 1;
}

void tiny_fill(struct tiny *t)
{
	uint64_t state = t->seed;
	uint32_t q = t->heads * t->head_dim, kv = t->kv_heads * t->head_dim;

	fill_vocab(t, &state);
	t->embed = floats((uint64_t)t->vocab * t->hidden, &state, false);
	t->head = t->tied ? NULL : floats((uint64_t)t->vocab * t->hidden, &state, false);
	t->final_norm = floats(t->hidden, &state, true);
	t->layer = calloc(t->layers, sizeof(*t->layer));
	assert(t->layer);
	for (uint32_t i = 0; i < t->layers; i++) {
		struct tiny_layer *l = &t->layer[i];

		l->attn_norm = floats(t->hidden, &state, true);
		l->ffn_norm = floats(t->hidden, &state, true);
		l->attn_sub_norm = t->sub_norms ? floats(q, &state, true) : NULL;
		l->ffn_sub_norm = t->sub_norms ? floats(t->ffn, &state, true) : NULL;
		fill_matrix(t, &l->m[TINY_Q], q, t->hidden, &state);
		fill_matrix(t, &l->m[TINY_K], kv, t->hidden, &state);
		fill_matrix(t, &l->m[TINY_V], kv, t->hidden, &state);
		fill_matrix(t, &l->m[TINY_O], t->hidden, q, &state);
		fill_matrix(t, &l->m[TINY_GATE], t->ffn, t->hidden, &state);
		fill_matrix(t, &l->m[TINY_UP], t->ffn, t->hidden, &state);
		fill_matrix(t, &l->m[TINY_DOWN], t->hidden, t->ffn, &state);
	}
}

void tiny_free(struct tiny *t)
{
	for (uint32_t i = 0; t->layer && i < t->layers; i++) {
		struct tiny_layer *l = &t->layer[i];

		free(l->attn_norm);
		free(l->ffn_norm);
		free(l->attn_sub_norm);
		free(l->ffn_sub_norm);
		for (int m = 0; m < TINY_MATRICES; m++) {
			free(l->m[m].codes);
			free(l->m[m].scales);
		}
	}
	free(t->layer);
	free(t->embed);
	free(t->head);
	free(t->final_norm);
	free(t->token);
	free(t->token_len);
	free(t->merge);
	*t = (struct tiny){ 0 };
}

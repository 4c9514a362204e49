/* SPDX-License-Identifier: MIT */
#include "lib_write_safetensors.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES_MAX 512

const struct hf_write hf_packed = {
	.form = HF_PACKED,
	.architecture = "BitNetForCausalLM",
	.model_type = "bitnet",
	.linear_class = "autobitlinear",
	.mode = "offline",
	.weight_dtype = "U8",
	.scale_dtype = "BF16",
	.float_dtype = "BF16",
};

struct entries {
	struct hf_entry e[ENTRIES_MAX];
	uint32_t n;
};

/* The bits of a value that the type holds exactly. */
static uint32_t bits_as(float f, const char *dtype)
{
	uint32_t bits, half;
	int exponent;

	memcpy(&bits, &f, sizeof(bits));
	if (!strcmp(dtype, "F32"))
		return bits;
	if (!strcmp(dtype, "BF16")) {
		assert(!(bits & 0xffff));
		return bits >> 16;
	}
	if (!strcmp(dtype, "I8"))
		return (uint8_t)(int8_t)f;
	assert(!strcmp(dtype, "F16"));
	if (f == 0)
		return bits >> 16;
	frexpf(f, &exponent);
	if (--exponent < -14)
		half = (uint32_t)ldexpf(fabsf(f), 24);
	else
		half = (uint32_t)(exponent + 15) << 10 |
		       ((uint32_t)ldexpf(fabsf(f), 10 - exponent) - 1024);
	assert(half < 0x7c00);
	return (bits >> 16 & 0x8000) | half;
}

static uint32_t bytes_of(const char *dtype)
{
	return !strcmp(dtype, "F32") ? 4 : !strcmp(dtype, "BF16") || !strcmp(dtype, "F16") ? 2 : 1;
}

static struct hf_entry *add(struct entries *all, const char *name, const char *dtype,
			    uint32_t n_dims, uint64_t a, uint64_t b)
{
	struct hf_entry *e = &all->e[all->n++];

	assert(all->n <= ENTRIES_MAX);
	*e = (struct hf_entry){ .n_dims = n_dims, .shape = { a, b } };
	snprintf(e->name, sizeof(e->name), "%s", name);
	snprintf(e->dtype, sizeof(e->dtype), "%s", dtype);
	e->bytes = a * (n_dims > 1 ? b : 1) * bytes_of(dtype);
	e->data = calloc(1, e->bytes);
	assert(e->data);
	return e;
}

static void put(struct hf_entry *e, uint64_t i, float f)
{
	uint32_t bits = bits_as(f, e->dtype);

	for (uint32_t k = 0; k < bytes_of(e->dtype); k++)
		e->data[i * bytes_of(e->dtype) + k] = (uint8_t)(bits >> (8 * k));
}

static void add_floats(struct entries *all, const char *name, const char *dtype, const float *f,
		       uint64_t rows, uint64_t cols)
{
	struct hf_entry *e;

	if (!f)
		return;
	e = rows ? add(all, name, dtype, 2, rows, cols) : add(all, name, dtype, 1, cols, 0);
	for (uint64_t i = 0; i < (rows ? rows : 1) * cols; i++)
		put(e, i, f[i]);
}

float hf_master(const struct tiny_matrix *m, uint32_t row, uint32_t col)
{
	int8_t code = m->codes[(uint64_t)row * m->cols + col];
	float s = m->scales[(uint64_t)row * m->groups];
	uint32_t which = (row * 7 + col * 13) % 4;

	if (code)
		return (float)code * s * (which & 1 ? 2.0f : 1.0f);
	return which == 1 ? s / 8 : which == 2 ? -s / 8 : which == 3 ? -0.0f : 0.0f;
}

float hf_weight_scale(const struct hf_write *w, const struct tiny_matrix *m)
{
	return w->linear_class && !strcmp(w->linear_class, "bitlinear") ? 1.0f / m->scales[0]
									 : m->scales[0];
}

static void add_matrix(struct entries *all, const struct hf_write *w, const char *name,
		       const struct tiny_matrix *m)
{
	uint32_t quarter = (m->rows + 3) / 4;
	char scale[140];
	struct hf_entry *e;

	if (w->form == HF_PACKED)
		e = add(all, name, "U8", 2, quarter, m->cols);
	else
		e = add(all, name, w->weight_dtype, 2, m->rows, m->cols);
	for (uint32_t r = 0; r < m->rows; r++)
		for (uint32_t c = 0; c < m->cols; c++) {
			uint64_t i = (uint64_t)r * m->cols + c;
			int8_t code = m->codes[i];

			if (w->form == HF_PACKED)
				e->data[(uint64_t)(r % quarter) * m->cols + c] |=
					(uint8_t)((code + 1) << (2 * (r / quarter)));
			else if (w->form == HF_CODES)
				put(e, i, code);
			else if (w->form == HF_MASTERS)
				put(e, i, hf_master(m, r, c));
			else
				put(e, i, (float)code * m->scales[(uint64_t)r * m->groups +
								  c / (m->cols / m->groups)]);
		}
	if (w->form == HF_PACKED || w->form == HF_CODES) {
		snprintf(scale, sizeof(scale), "%s_scale", name);
		e = add(all, scale, w->scale_dtype, 1, 1, 0);
		put(e, 0, hf_weight_scale(w, m));
	}
}

static void add_model(struct entries *all, const struct tiny *t, const struct hf_write *w)
{
	static const char *const projections[TINY_MATRICES] = {
		"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
		"mlp.gate_proj",    "mlp.up_proj",	"mlp.down_proj",
	};
	const char *d = w->float_dtype;
	char name[128];

	add_floats(all, "model.embed_tokens.weight", d, t->embed, t->vocab, t->hidden);
	add_floats(all, "lm_head.weight", d, t->head, t->vocab, t->hidden);
	add_floats(all, "model.norm.weight", d, t->final_norm, 0, t->hidden);
	for (uint32_t i = 0; i < t->layers; i++) {
		const struct tiny_layer *l = &t->layer[i];
		const struct {
			const char *name;
			const float *f;
			uint32_t n;
		} norms[] = {
			{ "input_layernorm", l->attn_norm, t->hidden },
			{ "post_attention_layernorm", l->ffn_norm, t->hidden },
			{ w->other_names ? "self_attn.inner_attn_ln" : "self_attn.attn_sub_norm",
			  l->attn_sub_norm, t->heads * t->head_dim },
			{ w->other_names ? "mlp.ffn_layernorm" : "mlp.ffn_sub_norm",
			  l->ffn_sub_norm, t->ffn },
		};

		for (int k = 0; k < 4; k++) {
			snprintf(name, sizeof(name), "model.layers.%u.%s.weight", i, norms[k].name);
			add_floats(all, name, d, norms[k].f, 0, norms[k].n);
		}
		for (int k = 0; k < TINY_MATRICES; k++) {
			snprintf(name, sizeof(name), "model.layers.%u.%s.weight", i,
				 projections[k]);
			add_matrix(all, w, name, &l->m[k]);
		}
	}
}

static FILE *create(const char *folder, const char *name)
{
	char path[600];
	FILE *f;

	snprintf(path, sizeof(path), "%s%s%s", folder, *folder ? "/" : "", name);
	f = fopen(path, "wb");
	assert(f);
	return f;
}

void hf_write_text(const char *folder, const char *name, const char *text)
{
	FILE *f = create(folder, name);

	fputs(text, f);
	fclose(f);
}

void hf_write_file(const char *path, const struct hf_entry *e, uint32_t n)
{
	FILE *f = create("", path);
	uint64_t at = 0, end;
	char *header;
	size_t len;
	FILE *h = open_memstream(&header, &len);

	assert(h);
	fputs("{\"__metadata__\":{\"format\":\"pt\"}", h);
	for (uint32_t i = 0; i < n; i++) {
		fprintf(h, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", e[i].name, e[i].dtype);
		for (uint32_t k = 0; k < e[i].n_dims; k++)
			fprintf(h, "%s%llu", k ? "," : "", (unsigned long long)e[i].shape[k]);
		end = at + e[i].bytes;
		fprintf(h, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)at,
			(unsigned long long)end);
		at = end;
	}
	fputs("}", h);
	fflush(h);
	while (len % 8) {
		fputc(' ', h);
		fflush(h);
	}
	fclose(h);
	for (int k = 0; k < 8; k++)
		fputc((int)((uint64_t)len >> (8 * k) & 255), f);
	fwrite(header, 1, len, f);
	for (uint32_t i = 0; i < n; i++)
		fwrite(e[i].data, 1, e[i].bytes, f);
	fclose(f);
	free(header);
}

static void write_config(const struct tiny *t, const struct hf_write *w, const char *folder)
{
	FILE *f = create(folder, "config.json");

	fprintf(f, "{\n  \"architectures\": [\"%s\"],\n  \"model_type\": \"%s\",\n",
		w->architecture, w->model_type);
	fprintf(f, "  \"hidden_act\": \"%s\",\n",
		t->sub_norms && !w->other_names ? "relu2" : "silu");
	fprintf(f, "  \"hidden_size\": %u,\n  \"intermediate_size\": %u,\n", t->hidden, t->ffn);
	fprintf(f, "  \"num_hidden_layers\": %u,\n  \"num_attention_heads\": %u,\n", t->layers,
		t->heads);
	fprintf(f, "  \"num_key_value_heads\": %u,\n", t->kv_heads);
	if (t->heads * t->head_dim != t->hidden)
		fprintf(f, "  \"head_dim\": %u,\n", t->head_dim);
	fprintf(f, "  \"vocab_size\": %u,\n  \"max_position_embeddings\": %u,\n", t->vocab,
		t->context);
	fprintf(f, "  \"rms_norm_eps\": %.9g,\n  \"rope_theta\": %.9g,\n", (double)t->eps,
		(double)t->theta);
	fprintf(f, "  \"bos_token_id\": %u,\n  \"eos_token_id\": %u,\n", t->bos, t->eos);
	fprintf(f, "  \"tie_word_embeddings\": %s", t->tied ? "true" : "false");
	if (w->linear_class || w->mode) {
		fputs(",\n  \"quantization_config\": {\"quant_method\": \"bitnet\"", f);
		if (w->linear_class)
			fprintf(f, ", \"linear_class\": \"%s\"", w->linear_class);
		if (w->mode)
			fprintf(f, ", \"quantization_mode\": \"%s\"", w->mode);
		fputs("}", f);
	}
	fprintf(f, "%s\n}\n", w->extra ? w->extra : "");
	fclose(f);
}

void hf_write(const struct tiny *t, const struct hf_write *w, const char *folder)
{
	static struct entries all;
	struct hf_entry some[ENTRIES_MAX];
	uint32_t n = 0;
	char path[600];
	FILE *index = w->shards ? create(folder, "model.safetensors.index.json") : NULL;

	all.n = 0;
	add_model(&all, t, w);
	for (uint32_t i = 0; i < all.n; i++) {
		if (w->change)
			w->change(&all.e[i]);
		if (all.e[i].name[0])
			all.e[n++] = all.e[i];
		else
			free(all.e[i].data);
	}
	all.n = n;
	write_config(t, w, folder);
	if (!w->shards) {
		snprintf(path, sizeof(path), "%s/model.safetensors", folder);
		hf_write_file(path, all.e, all.n);
	} else {
		fputs("{\"metadata\": {\"total_size\": 1}, \"weight_map\": {", index);
	}
	for (uint32_t s = 0; s < w->shards; s++) {
		n = 0;
		for (uint32_t i = s; i < all.n; i += w->shards) {
			fprintf(index, "%s\n\"%s\": \"model-%05u-of-%05u.safetensors\"",
				s || n ? "," : "", all.e[i].name, s + 1, w->shards);
			some[n++] = all.e[i];
		}
		snprintf(path, sizeof(path), "%s/model-%05u-of-%05u.safetensors", folder, s + 1,
			 w->shards);
		hf_write_file(path, some, n);
	}
	if (index) {
		fputs("}}\n", index);
		fclose(index);
	}
	for (uint32_t i = 0; i < all.n; i++)
		free(all.e[i].data);
}

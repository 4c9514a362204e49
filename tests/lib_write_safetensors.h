/* SPDX-License-Identifier: MIT */
#ifndef LIB_WRITE_SAFETENSORS_H
#define LIB_WRITE_SAFETENSORS_H

/*
 * Writes the small model as a Hugging Face folder: config.json and safetensors, in each of the
 * forms that linear weights come in. From the format's description; shares nothing with the reader.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "lib_tiny.h"

enum hf_form {
	HF_PACKED,  /* U8, four rows in one, and a weight_scale */
	HF_CODES,   /* -1, 0, 1 in floats or I8, and a weight_scale */
	HF_MASTERS, /* floats from which absmean makes the codes: see hf_master() */
	HF_TERNARY, /* floats that are code times scale */
};

/* What a safetensors file holds under one name. */
struct hf_entry {
	char name[128];
	char dtype[8];
	uint32_t n_dims;
	uint64_t shape[2];
	uint8_t *data; /* from malloc() */
	uint64_t bytes;
};

struct hf_write {
	enum hf_form form;
	const char *architecture;  /* "BitNetForCausalLM" */
	const char *model_type;
	const char *linear_class, *mode; /* of quantization_config; both NULL: there is none */
	const char *weight_dtype;  /* of linear weights: "BF16", "F16", "F32", "I8" */
	const char *scale_dtype;   /* of weight_scale; "F32" for the reciprocal of "bitlinear" */
	const char *float_dtype;   /* of embedding, head and norms */
	bool other_names;	   /* inner_attn_ln, ffn_layernorm */
	uint32_t shards;	   /* 0: one file, model.safetensors */
	const char *extra;	   /* more of config.json, each with a comma before; stands last */
	/* Called for each entry before it is written; may change it. A name of "" leaves it out. */
	void (*change)(struct hf_entry *e);
};

/* Packed, autobitlinear, BF16: the form in which BitNet b1.58 2B-4T is published. */
extern const struct hf_write hf_packed;

/* The folder is there. */
void hf_write(const struct tiny *t, const struct hf_write *w, const char *folder);
/* The value that HF_MASTERS has for a weight. */
float hf_master(const struct tiny_matrix *m, uint32_t row, uint32_t col);
/* The value of weight_scale for a matrix of one scale. */
float hf_weight_scale(const struct hf_write *w, const struct tiny_matrix *m);
/* One file of these entries. */
void hf_write_file(const char *path, const struct hf_entry *e, uint32_t n);
/* A text file, whole. */
void hf_write_text(const char *folder, const char *name, const char *text);

#endif

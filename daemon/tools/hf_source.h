/* SPDX-License-Identifier: MIT */
#ifndef HF_SOURCE_H
#define HF_SOURCE_H

/*
 * The inside of source_safetensors.c, which reads values, and of hf_bind.c, which says what they are.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "hf_config.h"
#include "safetensors.h"
#include "source.h"

/* How a tensor's values lie in its file, beyond what source_tensor says. */
struct hf_storage {
	const struct safetensors_tensor *t;
	uint32_t packed_rows; /* 0: not packed */
	bool is_codes;	      /* -1, 0, 1 in a wider type */
	float scale;	      /* of codes */
};

struct hf {
	struct source s; /* first: the ops get this */
	struct hf_config config;
	struct safetensors *st;
	struct hf_storage *storage; /* one for each of s.tensors */
	char *folder;
	char vocab_note[sizeof(((struct source *)0)->no_vocab)];
	uint64_t touched; /* bytes that were read since the last were forgotten */
	float *row; /* the widest tensor's */
};

/*
 * Every tensor of the container gets its role, shape and form, or a sentence why not; config and st
 * are there. linear: source_options'. Fills s.tensors.
 */
int hf_bind(struct hf *h, const char *linear, char *why, size_t why_len);

/* The op, also for looking at weights when they are bound. */
int hf_read_floats(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		   float *floats, char *why, size_t why_len);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef GGUF_WRITE_H
#define GGUF_WRITE_H

/*
 * What stands before the weights in a GGUF file, gathered in memory: header, keys, tensor infos.
 * Memory that runs out is remembered, so that only gguf_head_end() has to be asked.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "vocab.h"

#define GGUF_WRITE_ALIGNMENT 32u

struct gguf_head {
	uint8_t *data;
	size_t len, cap;
	uint64_t n_keys, n_tensors, offset; /* offset: of the next tensor, in the data */
	bool failed;
};

void gguf_head_begin(struct gguf_head *h);
/* Fills up to the data and sets the counts. -ENOMEM. */
int gguf_head_end(struct gguf_head *h);
void gguf_head_free(struct gguf_head *h);

void gguf_put_u32(struct gguf_head *h, const char *key, uint32_t value);
void gguf_put_f32(struct gguf_head *h, const char *key, float value);
void gguf_put_bool(struct gguf_head *h, const char *key, bool value);
/* text may be NULL: no key then. */
void gguf_put_text(struct gguf_head *h, const char *key, const char *text);
/* An array's head; n elements must follow. */
void gguf_put_array(struct gguf_head *h, const char *key, uint32_t type, uint64_t n);
void gguf_put_element(struct gguf_head *h, const void *element, size_t len); /* little-endian */
void gguf_put_string(struct gguf_head *h, const void *text, size_t len);
/* n zero bytes, to be filled in later; returns where they are. */
size_t gguf_put_gap(struct gguf_head *h, size_t n);

/* After the keys. rows 0: one dimension. Sets *at to its place in the data. */
void gguf_put_tensor(struct gguf_head *h, const char *name, uint32_t type, uint64_t cols,
		     uint64_t rows, uint64_t bytes, uint64_t *at);

/* tokenizer.*, with fillers up to vocab_size. -ENOMEM. */
int gguf_put_vocab(struct gguf_head *h, const struct vocab *v, uint32_t vocab_size);

#endif

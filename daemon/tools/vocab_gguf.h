/* SPDX-License-Identifier: MIT */
#ifndef VOCAB_GGUF_H
#define VOCAB_GGUF_H

/* The vocabulary in a GGUF file's metadata (tokenizer.ggml.*). */

#include <stddef.h>
#include "gguf.h"
#include "vocab.h"

/*
 * file: its name, for the sentence. 0; -ENOENT: the file has none; -ENOTSUP: of a kind that is
 * known and not supported, named; -EPROTO; -EFBIG; -ENOMEM.
 */
int vocab_of_gguf(const struct gguf *g, const char *file, struct vocab **out, char *why,
		  size_t why_len);

#endif

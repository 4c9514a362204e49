/* SPDX-License-Identifier: MIT */
#ifndef LIB_ORACLE_PRIVATE_H
#define LIB_ORACLE_PRIVATE_H

/* The oracle between its two files: lib_oracle_weights.c makes one, lib_oracle.c runs it. */

#include <stddef.h>
#include "lib_oracle.h"

struct weights {
	uint32_t rows, cols, groups;
	int8_t *codes;	/* [rows][cols] */
	double *scales; /* [rows][groups] */
};

struct layer {
	double *attn_norm, *attn_sub_norm, *ffn_norm, *ffn_sub_norm; /* sub-norms NULL without */
	struct weights m[TINY_MATRICES];
};

struct oracle {
	uint32_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, activation;
	double eps, theta;
	double *embed, *head; /* [vocab][hidden]; head NULL: embed is it */
	double *final_norm;
	struct layer *layer;
};

/* Zeroed; never NULL. */
void *oracle_need(size_t n, size_t size);

#endif

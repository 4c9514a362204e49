/* SPDX-License-Identifier: MIT */
#ifndef HEAD_H
#define HEAD_H

/* Rows of an embedding or head, from binary32 to what is stored. x is finite. */

#include <stddef.h>
#include <stdint.h>
#include "obm.h"

/* A row as int8; returns its scale, the largest magnitude / 127, 0 when all codes are 0. */
float head_int8(const float *x, uint32_t n, int8_t *codes);

/* The largest error of rounding to halves, and where; zeroed at first. */
struct head_loss {
	double error;
	float was, is;
	uint32_t role, row, col;
};

/*
 * A row of t, which is PACKED_F16 or PACKED_BF16, t->cols values. -ERANGE and why: one is more than
 * the form can hold.
 */
int head_halves(const struct obm_tensor *t, uint32_t row, const float *x, uint16_t *out,
		struct head_loss *loss, char *why, size_t why_len);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef ROPE_H
#define ROPE_H

/*
 * The angles of rotary positions, in binary64 by our own routines, so that every machine has the same
 * bits: what a converter writes into a model and what an engine computes from it at load.
 */

#include <stddef.h>
#include <stdint.h>

/* f[i] = pow(theta, -2i / head_dim) for i < head_dim / 2. theta is finite and > 1. */
void rope_frequencies(double theta, uint32_t head_dim, double *f);

/*
 * The table: for each position from pos to pos + n, head_dim / 2 pairs (cos, sin) of pos * f[i], each
 * rounded once to binary32. Correct for |angle| < 2^24 to within 0.51 ulp of binary32.
 */
void rope_table(const double *f, uint32_t head_dim, uint32_t pos, uint32_t n, float *cos_sin);

#endif

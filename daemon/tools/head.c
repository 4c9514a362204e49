/* SPDX-License-Identifier: MIT */
/*
 * Rows of an embedding or head, from binary32 to what is stored. A third of a small model's bytes
 * are these, so the loops are made for vector code; what they compute is the numeric contract's.
 */
#include "head.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include "mapped.h"
#include "packed.h"

enum { BLOCK = 16 }; /* a fixed inner length, for the compiler, which makes vector code of it */

/* The largest magnitude, by its bits: without a sign they are ordered as the floats are. */
static float largest(const float *x, uint32_t n)
{
	uint32_t most[BLOCK] = { 0 };
	uint32_t i = 0;
	float absmax;

	for (; i + BLOCK <= n; i += BLOCK)
		for (uint32_t j = 0; j < BLOCK; j++) {
			uint32_t u;

			memcpy(&u, x + i + j, sizeof(u));
			u &= 0x7fffffff;
			most[j] = u > most[j] ? u : most[j];
		}
	for (uint32_t j = 1; j < BLOCK; j++)
		most[0] = most[j] > most[0] ? most[j] : most[0];
	memcpy(&absmax, most, sizeof(absmax));
	for (; i < n; i++)
		absmax = fabsf(x[i]) > absmax ? fabsf(x[i]) : absmax;
	return absmax;
}

/*
 * BLOCK quotients as int8. |x / scale| is below 255, so adding 1.5 * 2^23 leaves the nearest even
 * integer in the low bits. It passes 127 where scale is so small that it has few bits.
 */
static void round_block(const float *restrict x, float scale, int8_t *restrict codes)
{
	for (uint32_t j = 0; j < BLOCK; j++) {
		float q = x[j] / scale + 0x1.8p23f;
		int32_t i;

		memcpy(&i, &q, sizeof(i));
		i -= 0x4b400000;
		i = i > 127 ? 127 : i;
		i = i < -127 ? -127 : i;
		codes[j] = (int8_t)i;
	}
}

/* The largest magnitude becomes 127. A row whose scale is too small for binary32 is zero. */
float head_int8(const float *x, uint32_t n, int8_t *codes)
{
	float scale = largest(x, n) / 127.0f, last[BLOCK] = { 0 };
	int8_t rounded[BLOCK];
	uint32_t i = 0;

	if (scale == 0.0f) {
		memset(codes, 0, n);
		return 0.0f;
	}
	for (; i + BLOCK <= n; i += BLOCK)
		round_block(x + i, scale, codes + i);
	memcpy(last, x + i, (n - i) * sizeof(*x));
	round_block(last, scale, rounded);
	memcpy(codes + i, rounded, n - i);
	return scale;
}

int head_halves(const struct obm_tensor *t, uint32_t row, const float *x, uint16_t *out,
		struct head_loss *loss, char *why, size_t why_len)
{
	bool half = t->layout == PACKED_F16;

	for (uint32_t i = 0; i < t->cols; i++) {
		float is;
		double error;

		out[i] = half ? float_to_half(x[i]) : float_to_bf16(x[i]);
		is = half ? half_to_float(out[i]) : bf16_to_float(out[i]);
		if (is == x[i])
			continue;
		if (!isfinite(is))
			return fail(
				why, why_len, -ERANGE,
				"%s row %u column %u: %g is more than %s can hold (%g); use --head %s",
				obm_role_name(t->role), row, i, (double)x[i],
				packed_name(t->layout), half ? 65504.0 : 0x1.fep127,
				half ? "bf16 or int8" : "int8");
		error = fabs((double)is - (double)x[i]);
		if (error > loss->error)
			*loss = (struct head_loss){ error, x[i], is, t->role, row, i };
	}
	return 0;
}

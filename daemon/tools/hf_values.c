/* SPDX-License-Identifier: MIT */
/*
 * Stored values as floats and codes, at the speed of memory: loops over blocks of a fixed length,
 * which compilers turn into vector code at -O2, and which look for what cannot be as they go. The
 * place of what cannot be is looked for only when there is one.
 */
#include "hf_values.h"

#include <stdbool.h>
#include <string.h>

#define BLOCK 64u

uint32_t hf_element_bytes(enum safetensors_type type)
{
	return type == SAFETENSORS_F32				     ? 4
	       : type == SAFETENSORS_F16 || type == SAFETENSORS_BF16 ? 2
								     : 1;
}

static float float_of(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

/*
 * One block, always of the same length, so that the compiler makes vectors of it. The data need not
 * be aligned. Returns whether all are finite.
 */
static bool widen_f16(const uint8_t *restrict data, float *restrict out)
{
	uint16_t half[BLOCK], most = 0;

	memcpy(half, data, sizeof(half));
	for (uint32_t i = 0; i < BLOCK; i++) {
		uint16_t magnitude = half[i] & 0x7fffu;

		most = (int16_t)magnitude > (int16_t)most ? magnitude : most;
	}
	for (uint32_t i = 0; i < BLOCK; i++) {
		uint32_t sign = (uint32_t)(half[i] & 0x8000u) << 16;
		uint32_t bits;
		/*
		 * The exponents' biases differ by 112; the product is exact, for subnormal halves
		 * too.
		 */
		float f = float_of((uint32_t)(half[i] & 0x7fffu) << 13) * 0x1p112f;

		memcpy(&bits, &f, sizeof(bits));
		out[i] = float_of(bits | sign);
	}
	return most < 0x7c00;
}

static bool widen_bf16(const uint8_t *restrict data, float *restrict out)
{
	uint16_t half[BLOCK], most = 0;

	memcpy(half, data, sizeof(half));
	for (uint32_t i = 0; i < BLOCK; i++) {
		uint16_t magnitude = half[i] & 0x7fffu;

		out[i] = float_of((uint32_t)half[i] << 16);
		most = (int16_t)magnitude > (int16_t)most ? magnitude : most;
	}
	return most < 0x7f80;
}

static bool widen_f32(const uint8_t *restrict data, float *restrict out)
{
	int32_t most = 0;

	memcpy(out, data, BLOCK * sizeof(*out));
	for (uint32_t i = 0; i < BLOCK; i++) {
		int32_t bits;

		memcpy(&bits, &out[i], sizeof(bits));
		bits &= 0x7fffffff;
		most = bits > most ? bits : most;
	}
	return most < 0x7f800000;
}

static bool widen_i8(const uint8_t *restrict data, float *restrict out)
{
	for (uint32_t i = 0; i < BLOCK; i++)
		out[i] = (float)(int8_t)data[i];
	return true;
}

uint64_t hf_widen(enum safetensors_type type, const uint8_t *data, float *out, uint64_t n)
{
	bool (*block)(const uint8_t *, float *) = type == SAFETENSORS_F16    ? widen_f16
						  : type == SAFETENSORS_BF16 ? widen_bf16
						  : type == SAFETENSORS_F32  ? widen_f32
									     : widen_i8;
	uint32_t size = hf_element_bytes(type);

	for (uint64_t i = 0; i < n; i += BLOCK) {
		uint64_t m = n - i < BLOCK ? n - i : BLOCK;
		uint8_t rest[BLOCK * sizeof(float)] = { 0 };
		float wide[BLOCK];
		bool fine;

		if (m == BLOCK) {
			fine = block(data + i * size, out + i);
		} else {
			memcpy(rest, data + i * size, m * size);
			fine = block(rest, wide);
			memcpy(out + i, wide, m * sizeof(*out));
		}
		for (uint64_t k = i; !fine && k < i + m; k++) {
			uint32_t bits = 0;

			memcpy(&bits, data + k * size, size);
			if ((type == SAFETENSORS_F32 && (bits & 0x7f800000) == 0x7f800000) ||
			    (type == SAFETENSORS_BF16 && (bits & 0x7f80) == 0x7f80) ||
			    (type == SAFETENSORS_F16 && (bits & 0x7c00) == 0x7c00))
				return k;
		}
	}
	return n;
}

bool hf_unpack(const uint8_t *restrict data, uint64_t n, unsigned shift, int8_t *restrict codes)
{
	uint8_t threes = 0;
	uint64_t i = 0;

	for (; i + BLOCK <= n; i += BLOCK)
		for (uint32_t k = 0; k < BLOCK; k++) {
			uint8_t v = (uint8_t)(data[i + k] >> shift) & 3;

			threes |= (uint8_t)(v & (v >> 1));
			codes[i + k] = (int8_t)(v - 1);
		}
	for (; i < n; i++) {
		uint8_t v = (uint8_t)(data[i] >> shift) & 3;

		threes |= (uint8_t)(v & (v >> 1));
		codes[i] = (int8_t)(v - 1);
	}
	return threes;
}

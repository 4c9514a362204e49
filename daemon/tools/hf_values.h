/* SPDX-License-Identifier: MIT */
#ifndef HF_VALUES_H
#define HF_VALUES_H

/* What lies in a safetensors file, as floats and codes. data need not be aligned. */

#include <stdbool.h>
#include <stdint.h>
#include "safetensors.h"

/* Of the types that have a name of ours. */
uint32_t hf_element_bytes(enum safetensors_type type);
/* n values of I8, F16, BF16 or F32. Returns n, or the place of the first that is not finite. */
uint64_t hf_widen(enum safetensors_type type, const uint8_t *data, float *out, uint64_t n);
/* Two bits at shift of each byte, less 1. Returns whether a 3 is among them; it reads as 2. */
bool hf_unpack(const uint8_t *restrict data, uint64_t n, unsigned shift, int8_t *restrict codes);

#endif

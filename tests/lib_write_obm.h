/* SPDX-License-Identifier: MIT */
#ifndef LIB_WRITE_OBM_H
#define LIB_WRITE_OBM_H

/*
 * A second writer of .obm, from the text of obm.h and packed.h: packing a weight at a time,
 * checksums by libxxhash and libsodium. Shares nothing with the converter but the two headers; the
 * tokenizer's section and the rotary table come from the engine, which has tests of its own for
 * them.
 */

#include <stddef.h>
#include <stdint.h>
#include "lib_tiny.h"
#include "obm.h"

struct write_obm {
	uint32_t linear; /* PACKED_2BIT or PACKED_BASE3 */
	uint32_t table;	 /* PACKED_INT8, PACKED_F16 or PACKED_BF16 */
	uint32_t activation;
	const char *info, *licence; /* NULL: no such section */
};

/* The whole file, malloc'ed. */
uint8_t *write_obm(const struct tiny *t, const struct write_obm *o, size_t *bytes);

/* The architecture, without the sum over the rotary table. */
struct obm_arch write_obm_arch(const struct tiny *t, const struct write_obm *o);
/* The tokenizer's section for its vocabulary, malloc'ed. */
void *write_obm_tokenizer(const struct tiny *t, size_t *bytes);
/* Codes and scale of a row of the embedding, as PACKED_INT8 has them. */
void write_obm_int8(const float *row, uint32_t n, int8_t *codes, float *scale);

/*
 * Makes every checksum, the chunk table and the identity right again for what the file now holds,
 * as far as its section table makes sense: what is wrong is then wrong by meaning. Not deep: the
 * chunk table stays, which only obm_verify() compares with the chunks.
 */
void write_obm_seal(uint8_t *file, size_t bytes, bool deep);

/* The entry of a section, in the file; NULL when there is none. */
struct obm_section *write_obm_section(uint8_t *file, uint32_t kind, uint32_t index);
struct obm_tensor *write_obm_tensor(uint8_t *file, uint32_t role, uint32_t layer);

#endif

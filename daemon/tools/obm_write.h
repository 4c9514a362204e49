/* SPDX-License-Identifier: MIT */
#ifndef OBM_WRITE_H
#define OBM_WRITE_H

/*
 * Writes an .obm front to back, hashing as it goes: the shapes are known before the first weight
 * comes, so offsets are, and memory is a tile of rows, whatever the model's size.
 *
 * The order of calls: new, then for each tensor in the file's order (obm_writer_tensor() says which
 * is next) its rows from the first to the last, then finish. Same input, same bytes, same identity.
 */

#include <stddef.h>
#include <stdint.h>
#include "obm.h"
#include "output.h"

struct obm_plan {
	struct obm_arch arch;  /* rope_sha256 is filled in by the writer */
	const double *rope;    /* head_dim / 2 */
	const void *tokenizer; /* as vocab_build() made it */
	uint64_t tokenizer_bytes;
	const char *info; /* NUL-terminated, or NULL */
	const char *licence;
	const struct obm_tensor *tensors; /* role, layer, layout, rows, cols, groups; the rest 0 */
	uint32_t n_tensors;
};

struct obm_writer;

/*
 * Sorts, places and checks; writes nothing yet but what stands before the weights. out stays the
 * caller's.
 */
int obm_writer_new(const struct obm_plan *plan, struct output *out, struct obm_writer **w,
		   char *why, size_t why_len);
struct obm_writer *obm_writer_free(struct obm_writer *w);

/* The tensor that rows are wanted of now; NULL when all are written. */
const struct obm_tensor *obm_writer_tensor(const struct obm_writer *w);
/*
 * The next n rows of it; n is PACKED_ROWS but at the end. rows: as packed_tile() wants them, or
 * float[cols] for a float[] tensor. scales[n][groups]; NULL where the layout has none.
 */
int obm_writer_rows(struct obm_writer *w, const void *rows, const float *scales, uint32_t n,
		    char *why, size_t why_len);
/* Chunks, table, header. The output is complete then, and the caller commits it. */
int obm_writer_finish(struct obm_writer *w, uint8_t identity[32], char *why, size_t why_len);

/*
 * Put a signature into the file behind fd, opened for writing. key: libsodium's 64-byte secret key.
 */
int obm_sign(int fd, const uint8_t secret[64], char *why, size_t why_len);

#endif

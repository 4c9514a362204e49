/* SPDX-License-Identifier: MIT */
#ifndef OBM_CHECK_H
#define OBM_CHECK_H

/*
 * What the files of the container share among themselves: the rules of its parts, which whoever
 * writes one keeps as well as whoever reads one, and work in parallel.
 */

#include <stddef.h>
#include <stdint.h>
#include "obm.h"
#include "packed.h"

#define OBM_NAME_MAX 48u /* of obm_name() */
/* header_bytes with the most sections. */
#define OBM_HEADER_MAX \
	((sizeof(struct obm_header) + OBM_SECTIONS_MAX * sizeof(struct obm_section) + OBM_ALIGN - \
	  1) / \
	 OBM_ALIGN * OBM_ALIGN)

static inline uint64_t obm_align(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

/* snprintf into why, then err. */
int obm_refuse(char *why, size_t why_len, int err, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* "q of layer 3", "embed" */
const char *obm_name(uint32_t role, uint32_t layer, char name[OBM_NAME_MAX]);

int obm_check_arch(const struct obm_arch *a, char *why, size_t why_len);
/* f: head_dim / 2 of them. Not the sum over the table. */
int obm_check_rope(const struct obm_arch *a, const double *f, char *why, size_t why_len);
/* kind: OBM_INFO or OBM_LICENCE. */
int obm_check_text(uint32_t kind, const void *text, uint64_t bytes, char *why, size_t why_len);
/* weights: the layers + 1 entries of the section table; the architecture has passed. */
int obm_check_tensors(const struct obm_arch *a, const struct obm_tensor *t, uint32_t n,
		      const struct obm_section *weights, char *why, size_t why_len);
/* The first of n floats that is no finite number; n when all are. */
uint64_t obm_not_finite(const float *f, uint64_t n);

/* What rope_sha256 must be. */
void obm_rope_sha256(const struct obm_arch *a, const double *f, uint8_t digest[32]);

static inline struct packed_shape obm_shape(const struct obm_tensor *t)
{
	return (struct packed_shape){ t->layout, t->rows, t->cols, t->groups };
}

/*
 * obm_open() of bytes that lie in memory, aligned to OBM_TENSOR_ALIGN, and stay until obm_close().
 */
int obm_open_memory(const void *base, uint64_t bytes, unsigned flags, unsigned threads,
		    struct obm **out, char *why, size_t why_len);

/* work(arg) in so many threads, this one among them; returns how many there were. */
unsigned obm_parallel(unsigned threads, void (*work)(void *arg), void *arg);

#endif

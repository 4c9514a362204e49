/* SPDX-License-Identifier: MIT */
#ifndef OBM_OPEN_H
#define OBM_OPEN_H

/*
 * Opening a container, in its steps. From the outside in, nothing is believed before what stands
 * over it: the header by its magic, version and checksum; the section table by its rules; the small
 * sections by their checksums, then by obm_check.c; at last, by all threads, what takes time.
 */

#include "obm.h"
#include "obm_check.h"

/* What obm_close() gives back; the caller sees the first member. */
struct obm_opened {
	struct obm o;
	int fd; /* while it is opened; negative: the bytes are memory of the caller's */
	unsigned flags;
	bool mapped;
	uint8_t *head; /* header_bytes of the file */
	struct obm_arch arch;
	struct obm_tensor *tensors;
};

/* obm_head.c: the header and section table into m, from m->o.base. */
int obm_open_head(struct obm_opened *m, char *why, size_t why_len);
/* obm_parts.c: all but the weights; m->o is complete then. */
int obm_open_parts(struct obm_opened *m, char *why, size_t why_len);
/* obm_sums.c: by so many threads, the weights and what else takes time. */
int obm_open_sums(struct obm_opened *m, unsigned threads, char *why, size_t why_len);

/*
 * obm_bytes.c: a section against its checksum, and the zeros behind it. 0, or an errno that
 * obm_say_bytes() makes a sentence of.
 */
int obm_check_bytes(const struct obm_opened *m, const struct obm_section *s);
int obm_say_bytes(const struct obm_section *s, int err, char *why, size_t why_len);
/* The pages of a range are brought in. False: the file no longer has them. */
bool obm_populate(const struct obm *o, const void *data, uint64_t bytes);
/* With OBM_FORGET: the pages of a range go, and come again when somebody looks. */
void obm_forget(const struct obm *o, uint64_t offset, uint64_t bytes);

bool obm_is_zero(const uint8_t *p, uint64_t n);
const struct obm_section *obm_find(const struct obm *o, uint32_t kind, uint32_t index);
const char *obm_kind_name(uint32_t kind);
const char *obm_section_name(const struct obm_section *s, char name[OBM_NAME_MAX]);

#endif

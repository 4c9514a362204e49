/* SPDX-License-Identifier: MIT */
#ifndef OBM_PLACE_H
#define OBM_PLACE_H

/*
 * Where everything of a container will lie. Shapes are known before the first weight is, so every
 * offset is, and the section table lacks only checksums when it is placed.
 */

#include <stddef.h>
#include "obm_check.h"
#include "obm_write.h"

struct obm_placed {
	struct obm_header header; /* all but checksum and identity */
	struct obm_section sections[OBM_SECTIONS_MAX];
	struct obm_section *weights; /* index 0 of them */
	struct obm_arch arch;
	struct obm_tensor *tensors; /* sorted; the caller frees them, whatever is returned */
	uint32_t n_tensors;
	uint64_t at; /* where the next section goes */
};

/* Checks the plan as a stranger's file would be. */
int obm_place(struct obm_placed *l, const struct obm_plan *plan, char *why, size_t why_len);

#endif

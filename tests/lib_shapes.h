/* SPDX-License-Identifier: MIT */
#ifndef LIB_SHAPES_H
#define LIB_SHAPES_H

/*
 * Small random models, one of each architecture that the container can hold, as a table: what is
 * compared for all models is compared for these. And a model of them as a row of logits, by the
 * forward pass on a device, without an engine.
 */

#include <stdint.h>
#include "device.h"
#include "forward.h"
#include "lib_tiny.h"
#include "obm.h"

struct shape {
	const char *name;
	uint32_t linear, table; /* PACKED_* of the matrices, of embedding and head */
	uint32_t activation;	/* OBM_ACT_* */
	uint32_t layers, hidden, ffn, heads, kv_heads, head_dim, context, groups, n_words;
	bool sub_norms, tied, row_scales;
	float eps;
};
/* Ends with an entry without a name. */
extern const struct shape shapes[];
const struct shape *shape_named(const char *name);

void shape_fill(const struct shape *s, uint64_t seed, struct tiny *t);
/* The container that holds t, opened. */
struct obm *shape_open(const struct shape *s, const struct tiny *t);

/*
 * The logits, [n][stride], and with final the final norm's rows, [n][hidden], of tokens from
 * position 0 on, chunk rows at a time. *stride: floats. Both malloc'ed. *faults: the checked
 * points' count.
 */
float *shape_logits(struct device *d, const struct obm *model, uint32_t kv_form,
		    const uint32_t *tokens, uint32_t n, uint32_t chunk, uint32_t *stride,
		    float **final, uint32_t *faults);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LIB_ORACLE_H
#define LIB_ORACLE_H

/*
 * A second opinion on what a model says: the forward pass in binary64, a position after the other,
 * written from the description of the architecture. It shares nothing with the engine or the
 * kernels, so that no mistake can be in both, and it can be told to make a mistake: a comparison
 * that does not notice one of these is worth nothing.
 */

#include <stddef.h>
#include <stdint.h>
#include "lib_tiny.h"
#include "obm.h"

/* What others got wrong, or what one gets wrong easily. */
enum oracle_mistake {
	ORACLE_RIGHT,
	ORACLE_ROPE_PAIRS,    /* neighbours are rotated together, not halves */
	ORACLE_ROPE_KEY_LATE, /* keys are rotated by the position after their own */
	ORACLE_NO_SUB_NORMS,
	ORACLE_SUB_NORM_BY_HEAD, /* attention's sub-norm over each head, not over all */
	ORACLE_NORMS_SWAPPED,	 /* attention's norm before the FFN and the other way round */
	ORACLE_NO_EPS,
	ORACLE_GQA_INTERLEAVED, /* query head h looks at KV head h mod kv_heads */
	ORACLE_SCORES_UNSCALED,
	ORACLE_BLIND_TO_ITSELF, /* a position does not see its own key */
	ORACLE_BLIND_TO_FIRST,	/* nor position 0, from position 1 on */
	ORACLE_RELU_NOT_SQUARED,
	ORACLE_OTHER_ACTIVATION, /* SiLU for ReLU squared and the other way round */
	ORACLE_GATE_UP_SWAPPED,	 /* the activation on the wrong operand */
	ORACLE_HALF_PRODUCT,	 /* the FFN's product kept within binary16 */
	ORACLE_SCALES_SWAPPED,	 /* attention's output has the FFN's scales, and back */
	ORACLE_SCALES_DROPPED,
	ORACLE_GROUPS_REVERSED, /* the scales of column groups in the wrong order */
	ORACLE_ONE_SCALE,	/* one activation scale for all positions: the first one's */
	ORACLE_HEAD_TIED,	/* the head of its own is not used */
	ORACLE_NO_FINAL_NORM,
	ORACLE_MISTAKES
};
const char *oracle_mistake(enum oracle_mistake m);

struct oracle;
/* table: PACKED_*, in which form the container holds embedding and head; activation: OBM_ACT_*. */
struct oracle *oracle_of_tiny(const struct tiny *t, uint32_t table, uint32_t activation);
struct oracle *oracle_of_obm(const struct obm *o);
struct oracle *oracle_free(struct oracle *o); /* returns NULL */

/* Of each of n positions: the logits, [n][vocab], and the final norm's rows, [n][hidden]; or NULL.
 */
void oracle_run(const struct oracle *o, enum oracle_mistake m, const uint32_t *tokens, uint32_t n,
		double *logits, double *final);
/* The largest |product| of gate and up that a position of these had, before the sub-norm. */
double oracle_largest_product(const struct oracle *o, const uint32_t *tokens, uint32_t n);

/*
 * How close an engine's logits come, in units of the logits' deviation at their place: judged so
 * because int8 activations turn another order of additions into another code now and then, which
 * all that follows shows a little.
 */
#define ORACLE_MARGIN 0.4
struct closeness {
	double median; /* of |difference|, all places and tokens */
	uint32_t clear,
		agreed; /* places whose likeliest token leads by ORACLE_MARGIN; and is the same */
	double lead;	/* the most by which one led that is not the same */
};
/* want [n][vocab], got [n][stride]. */
struct closeness oracle_closeness(const double *want, const float *got, uint32_t stride, uint32_t n,
				  uint32_t vocab);
int oracle_ascending(const void *a, const void *b); /* of doubles, for qsort() */

#endif

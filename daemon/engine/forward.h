/* SPDX-License-Identifier: MIT */
#ifndef FORWARD_H
#define FORWARD_H

/*
 * The forward pass: a model file as a tape of operations over buffers of a device. Written once, for
 * every architecture that the container can hold and for every device.
 */

#include <stddef.h>
#include <stdint.h>
#include "device.h"
#include "obm.h"

struct forward {
	struct device *device;
	struct tape tape;
	struct device_limits limits;
	uint32_t n_blocks;	/* in the KV arena, a multiple of KV_GROUP */
	uint64_t kv_bytes;	/* of the arena */
	uint64_t work_bytes;	/* of buffers besides: activations, tables */
	uint64_t weight_bytes;	/* of the model that a token of decoding reads, the head included */
	uint64_t head_bytes;	/* of these, the head's */
	uint64_t macs;		/* of a token, the head excluded */
};

/*
 * Buffers for limits->rows rows, a table of angles for limits->positions, an arena of kv_bytes at most
 * (at least one group of blocks), then device->load(). limits->positions is cut down to the model's
 * context. The model outlives it. That its table of angles is the one that it was made with,
 * obm_open() has checked. 0, or negative errno and a sentence: -ENOMEM, -EINVAL: kv_bytes holds not
 * one sequence of a group (it says how many bytes that takes), a matrix is too wide.
 */
int forward_open(struct device *d, const struct obm *model, uint32_t kv_form, uint64_t kv_bytes,
		 const struct device_limits *limits, struct forward **out, char *why, size_t why_len);
/* NULL is fine; returns NULL. The device stays open. */
struct forward *forward_close(struct forward *f);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LIB_PLAIN_DEVICE_H
#define LIB_PLAIN_DEVICE_H

/*
 * A device to compare with: one thread, one row after the other, the scalar kernels in obvious loops.
 * It keeps the promise of device.h and no more: where a batch hints that the best logits are enough, the
 * others are gone.
 */

#include <stdint.h>
#include "device.h"

struct plain_device {
	struct device device;
	const struct tape *tape;
	struct device_limits limits;
	const struct batch *batch;
	int8_t *q8, *laid;
	int32_t *sums;
	int16_t *q16;
	struct laid_head head;
	float *y;	    /* of a matrix' rows */
	float *m, *l, *o;   /* a row's chunks, of the heads of one KV head */
	const void **pages;
	uint64_t submits, rows;
	/* Set by a test. */
	uint32_t fail_alloc; /* the so-manieth alloc() from now fails; 0: none */
	uint32_t fail_load;  /* load() fails */
	uint64_t fail_wait;  /* the so-manieth wait() from now fails; 0: none */
	uint32_t allocated;  /* pieces that are not freed */
};

void plain_device_init(struct plain_device *p);
/* Frees what load() took; p itself is the caller's. */
void plain_device_deinit(struct plain_device *p);

#endif

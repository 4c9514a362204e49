/* SPDX-License-Identifier: MIT */
#ifndef LIB_WRITE_H1B_H
#define LIB_WRITE_H1B_H

/*
 * Writes a small model as .h1b and its vocabulary as .htok, byte after byte from the formats' descriptions;
 * shares no code with the readers and exporters that are tested against it. What is returned is from
 * malloc().
 */

#include <stddef.h>
#include <stdint.h>
#include "lib_tiny.h"

/*
 * version 1 to 4; flags 0x4 and 0x8 write Bonsai's blocks instead. Sherry needs tiny_sherry(), Q1
 * tiny_signs() before.
 */
uint8_t *write_h1b(const struct tiny *t, uint32_t version, uint32_t flags, size_t *bytes);

/* Exactly one zero in each four weights; or none at all. */
void tiny_sherry(struct tiny *t);
void tiny_signs(struct tiny *t);

/* version 0: the legacy layout without a version word; 2 or 3 with. */
uint8_t *write_htok(const struct tiny *t, uint32_t version, size_t *bytes);

/* Into $TMPDIR; the path is good until the next but three calls. */
const char *write_h1b_file(const char *name, const void *data, size_t bytes);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef VARIANTS_H
#define VARIANTS_H

/*
 * The rungs of the ladder. Each overwrites what it has in the table and leaves the rest; it exists
 * on its own architecture only, and runs only where kernels_cpu() says so.
 */

#include "kernels.h"

void kernels_scalar(struct kernels *k);
void kernels_avx2(struct kernels *k);
void kernels_avx512(struct kernels *k);
void kernels_neon(struct kernels *k);

#endif

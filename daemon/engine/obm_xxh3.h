/* SPDX-License-Identifier: MIT */
#ifndef OBM_XXH3_H
#define OBM_XXH3_H

/*
 * XXH3_64bits() and its kin. On x86-64 the library's plain ones are for the oldest CPU, a third of
 * the speed of memory; this header of its own puts those in their place that look at the CPU first.
 */

#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#endif

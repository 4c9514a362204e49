/* SPDX-License-Identifier: MIT */
#ifndef LIB_PUBLIC_H
#define LIB_PUBLIC_H

/*
 * Everything here is compiled with hidden visibility, and the promise to programs must not be: a
 * symbol map can only export what is visible. Included instead of libonebit.h by the library itself.
 */
#pragma GCC visibility push(default)
#include "libonebit.h"
#pragma GCC visibility pop

#endif

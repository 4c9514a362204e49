/* SPDX-License-Identifier: MIT */
#ifndef LIB_TMP_H
#define LIB_TMP_H

#include <check.h>

/*
 * A folder of its own for each test case: $TMPDIR is a fresh one while it runs and goes with all that
 * is in it. Check's own process makes and removes it, so that a test that dies leaves nothing.
 */
void tmp_fixture(TCase *t);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef CONFINE_H
#define CONFINE_H

#include <stddef.h>

/*
 * Give up, for good and in every thread, what running a model on CPUs does not need: once the model is
 * mapped and the workers run. What is left is arithmetic on the memory that is there, futexes, the
 * doorbell and standard error, more memory without a file, and the end. Any other system call kills the
 * process; a new one is started, and requests go on in it.
 *
 * 0, or -errno of the part that could not be had; report says in one line what is in force, or what
 * failed. Sanitizers and debuggers need more than is left.
 */
int confine(char *report, size_t len);

#endif

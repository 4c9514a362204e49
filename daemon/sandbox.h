/* SPDX-License-Identifier: MIT */
#ifndef SANDBOX_H
#define SANDBOX_H

#include <stddef.h>
#include <stdint.h>

/*
 * Giving up what a process does not need. Neither of these can be undone. Sanitizer builds and
 * debuggers need more than sandbox_broker() leaves: run them with sandbox = off.
 */

/* Become this user and group, with no supplementary groups. 0 is not a user to become: nothing
 * happens. 0, or -errno. */
int sandbox_become(uint32_t uid, uint32_t gid);

/*
 * Once everything is opened and mapped: no new privileges, no capability, no core dump, no file by
 * name (Landlock, where the kernel has it), and only the system calls of a serving broker; any
 * other kills the process. 0, or -errno of the part that could not be had; report says in one line
 * what is in force, or what failed.
 */
int sandbox_broker(char *report, size_t len);

#endif

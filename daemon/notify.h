/* SPDX-License-Identifier: MIT */
#ifndef NOTIFY_H
#define NOTIFY_H

#include <stdint.h>

/*
 * Telling the service manager: one datagram a state, as sd_notify(3) documents it. Sending never
 * blocks and never fails the caller; without a manager there is nothing to tell.
 */

/* Connected to $NOTIFY_SOCKET, or -1. */
int notify_open(void);
/* "READY=1", "WATCHDOG=1", "STOPPING=1"; "RELOADING=1" gets the MONOTONIC_USEC it needs. */
void notify_send(int fd, const char *state);
/* How often to say WATCHDOG=1: half of what the manager allows this process; 0: not asked for. */
uint64_t notify_watchdog_ns(void);

#endif

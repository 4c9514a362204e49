/* SPDX-License-Identifier: MIT */
#ifndef SAY_H
#define SAY_H

#include <stddef.h>

#define SAY_FDS_MAX 4u

/*
 * One message on a SOCK_SEQPACKET socket, with descriptors that ride along. Never waits: -EAGAIN
 * when the other side does not read. 0, or -errno.
 */
int say(int sock, const void *msg, size_t len, const int *fds, size_t n_fds);

#endif

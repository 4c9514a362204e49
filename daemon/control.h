/* SPDX-License-Identifier: MIT */
#ifndef CONTROL_H
#define CONTROL_H

#include "launch.h"
#include "spawn.h"

/*
 * The launcher's end of launch.h: messages over the control socket, which never blocks. It is
 * suspicious of the broker, the one process that strangers talk to.
 */

struct control_msg {
	struct launch_msg msg;
	int fds[SPAWN_FDS]; /* of LAUNCH_START; -1 otherwise */
};

/* 0: *m is set and its descriptors are the caller's. -EAGAIN: nothing there. -EPIPE: the broker
 * closed. -EPROTO: not a message of launch.h. */
int control_receive(int fd, struct control_msg *m);
void control_close_fds(struct control_msg *m);

/* 0, or -errno: a broker that leaves hundreds of messages unread is hung. */
int control_send(int fd, uint32_t type, uint32_t link, uint32_t generation, int32_t status);
int control_send_policy(int fd, const struct policy *policy, const char *text);

#endif

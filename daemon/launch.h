/* SPDX-License-Identifier: MIT */
#ifndef LAUNCH_H
#define LAUNCH_H

#include <stdint.h>
#include "broker.h"

/*
 * What launcher and broker say to each other, over an inherited SOCK_SEQPACKET pair. The launcher
 * alone may exec; the broker alone speaks to clients. One message, one struct; descriptors ride
 * along where named. Both are ours: a malformed message is a bug and ends the receiver.
 */
enum launch_type {
	/* broker to launcher */
	LAUNCH_START = 1, /* link, generation, model; fds: broker, executor region, journal, doorbell */
	LAUNCH_KILL,      /* link: SIGKILL its executor */
	LAUNCH_RELOAD,    /* read the configuration again */
	LAUNCH_SERVE,     /* link: its model serves now; a next broker is to begin with it */
	/* launcher to broker */
	LAUNCH_EXITED, /* link, generation, status (wait(2)), or status = -errno: never started */
	LAUNCH_POLICY, /* policy, text */
	LAUNCH_DRAIN,  /* finish and exit 0 */
};

#define LAUNCH_MODEL_MAX 256u
#define LAUNCH_TEXT_MAX  16384u

struct launch_msg {
	uint32_t type;
	uint32_t link;
	uint32_t generation;
	int32_t status;
	char model[LAUNCH_MODEL_MAX]; /* START: path below the model folder; "": the link's last, or the configured one */
};

struct launch_policy { /* follows struct launch_msg in a LAUNCH_POLICY message */
	struct policy policy;
	char text[LAUNCH_TEXT_MAX];
};

#endif

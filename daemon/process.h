/* SPDX-License-Identifier: MIT */
#ifndef PROCESS_H
#define PROCESS_H

#include <stdbool.h>
#include <stdint.h>
#include "policy.h"

/*
 * The broker as a process: what the launcher hands to the fork that becomes the broker. Everything
 * in it is inherited memory; the broker opens nothing by name.
 */
enum loop_kind { LOOP_AUTO, LOOP_URING, LOOP_EPOLL };

struct process_setup {
	int control_fd; /* launch.h, SOCK_SEQPACKET */
	int listen_fd;  /* listening AF_UNIX SOCK_SEQPACKET */
	int notify_fd;  /* connected to $NOTIFY_SOCKET, or -1 */
	uint64_t watchdog_ns; /* half of WATCHDOG_USEC; 0: none */
	enum loop_kind loop;
	bool sandbox;
	bool has_executor;
	uint32_t uid, gid; /* to become when started as root; 0: stay */
	int log_level;
	const struct policy *policy;
	const char *config_text;
};

/* Runs until drained (0) or broken; returns the exit status. */
int process_run(const struct process_setup *setup);

#endif

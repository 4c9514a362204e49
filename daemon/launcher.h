/* SPDX-License-Identifier: MIT */
#ifndef LAUNCHER_H
#define LAUNCHER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "launch.h"
#include "listen.h"
#include "options.h"
#include "spawn.h"

/*
 * The launcher's state and what it does with a broker: start it, serve it, replace it. main() owns
 * the one there is, waits, and calls these; none of them waits.
 */

#define LAUNCHER_NEVER UINT64_MAX

struct launcher {
	struct options options;
	struct config config;
	char text[LAUNCH_TEXT_MAX]; /* the configuration in force */
	struct listener listener;
	struct spawn spawn;
	int signal_fd, notify_fd;
	uint64_t watchdog_ns;
	pid_t broker;   /* 0: none */
	int control_fd; /* to it; -1: none */
	uint64_t broker_since, backoff_ns, restart_at; /* restart_at: LAUNCHER_NEVER while one lives */
	enum { LAUNCHER_SERVE, LAUNCHER_DRAIN, LAUNCHER_KILL, LAUNCHER_GIVE_UP } stopping;
	uint64_t stop_at; /* the next of these is due then */
};

uint64_t launcher_now_ns(void);

/* Fork a broker; when that fails, restart_at says when to try again. */
void launcher_start_broker(struct launcher *l);
/* One message of the broker. */
void launcher_hear(struct launcher *l);
/* Take the status of every child that ended. */
void launcher_reap(struct launcher *l);
/* The broker is to finish and exit; the second time it is killed; the third time, for a process that
 * hangs in the kernel, no longer waited for. By signals, or by stop_at. */
void launcher_stop(struct launcher *l);

/* Make l->text from l->config. */
void launcher_render(struct launcher *l);
/* Read the configuration again; one with an error changes nothing. */
void launcher_reload(struct launcher *l);

#endif

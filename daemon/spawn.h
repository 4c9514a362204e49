/* SPDX-License-Identifier: MIT */
#ifndef SPAWN_H
#define SPAWN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "broker.h"
#include "config.h"

/*
 * Executors as processes: started with the descriptors that executor.h promises, killed, reaped. No
 * function waits for one: a process that hangs in a driver dies when the driver lets it, and its
 * link gets a new one meanwhile.
 */

#define SPAWN_FDS      4u /* of LAUNCH_START, in the order of EXEC_FD_BROKER .. EXEC_FD_DOORBELL */
#define SPAWN_CHILDREN 8u /* LINKS that serve, the rest dying */
#define SPAWN_GROUPS   64

struct spawn_child {
	pid_t pid; /* 0: free */
	int pidfd; /* -1: none, kill by pid: ours until reaped */
	int error_fd; /* where the child tells why exec failed */
	unsigned link;
	uint32_t generation;
	bool serving; /* the link's present one */
	bool orphan;  /* its broker is gone: nobody wants to know */
};

struct spawn {
	char command[CONFIG_COMMAND_MAX]; /* config_executor(), which argv points into */
	char *argv[CONFIG_ARGS_MAX + 1];
	char model_dir[CONFIG_PATH_MAX];
	int model_fd; /* the configured one; -1: none */
	int link_model_fd[LINKS]; /* what ADMIN put there; -1: the configured one */
	unsigned served; /* link whose model serves */
	uint32_t uid, gid; /* to become; 0: stay */
	gid_t groups[SPAWN_GROUPS]; /* of that user: the right to the device comes by group */
	int n_groups;
	struct spawn_child children[SPAWN_CHILDREN];
};

/* Opens the model and looks the user up. 0, or -errno and why. */
int spawn_init(struct spawn *s, const struct config *c, char *why, size_t why_len);
/* Close everything; kills nothing. */
void spawn_deinit(struct spawn *s);

/*
 * Start an executor in place of the link's old one, if there is one. model: see launch.h. 0: its
 * end will be reported. -errno: it was not started, and why.
 */
int spawn_start(struct spawn *s, unsigned link, uint32_t generation, const char *model,
		const int fds[SPAWN_FDS], char *why, size_t why_len);
/* generation 0: whichever serves. */
void spawn_kill(struct spawn *s, unsigned link, uint32_t generation);
/* This link's model serves now. */
void spawn_serve(struct spawn *s, unsigned link);
/* The broker is gone: kill them all, report none; the model that served is link 0's from now on. */
void spawn_orphan(struct spawn *s);
/* pid was reaped. true: it was one of ours, *child is a copy; *status becomes -errno when its exec
 * failed. */
bool spawn_reaped(struct spawn *s, pid_t pid, int *status, struct spawn_child *child);
unsigned spawn_alive(const struct spawn *s);

#endif

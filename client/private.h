/* SPDX-License-Identifier: MIT */
#ifndef PRIVATE_H
#define PRIVATE_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/*
 * A daemon of one's own, for the time of a command: in a fresh directory below $TMPDIR (or /tmp),
 * with no configuration file but the lines given, gone with all it made when stopped.
 */
struct private_daemon {
	pid_t pid;
	char dir[96];
	char socket[108];
};

/*
 * onebitd: path, or NULL: beside this program, else on $PATH. settings: NULL-terminated array of
 * "key = value", or NULL. Returns when it accepts clients. 0, or -errno and why.
 */
int private_start(struct private_daemon *p, const char *onebitd, const char *const *settings,
		  char *why, size_t why_len);
/* The last line of its log that begins so, without that beginning. false: there is none. */
bool private_said(const struct private_daemon *p, const char *start, char *line, size_t len);
/* SIGTERM, wait (SIGKILL after 5 s), remove the directory. Its exit status, or -errno. */
int private_stop(struct private_daemon *p);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LISTEN_H
#define LISTEN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "config.h"

/*
 * The listening socket: made here, or handed over by the service manager. The launcher holds it as
 * long as it lives, so that clients which connect while a broker is replaced wait and are served.
 */
struct listener {
	int fd;
	dev_t dev; /* of the name that we made; ino 0: made by the manager, whose it stays */
	ino_t ino;
};

/* 0 and *l, or -errno and why. */
int listener_open(struct listener *l, const struct config *c, char *why, size_t why_len);
/* Remove the name, if it is still ours, and close. */
void listener_close(struct listener *l, const struct config *c);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef CMD_DAEMON_H
#define CMD_DAEMON_H

#include <getopt.h>
#include <stdbool.h>
#include "private.h"

/*
 * Which daemon a verb talks to: the one at a socket, or a private one for the time of the command,
 * which --private or --model asks for. Zeroed at first; options fill it in; start() and stop() stand
 * around the verb's work, also when nothing is to be started.
 */
enum { VERB_SETTINGS_MAX = 32 };

struct verb_daemon {
	const char *socket; /* NULL: the default; once started the private one's */
	const char *model;  /* --model, or an argument */
	bool private;
	const char *settings[VERB_SETTINGS_MAX + 2]; /* of which one is ours, and a NULL */
	int n_settings;
	bool started;
	struct private_daemon own;
};

/* For a verb's table of options and its help; their values do not meet the verb's own, from 1 on. */
enum { VERB_OPT_SOCKET = 1000, VERB_OPT_MODEL, VERB_OPT_PRIVATE, VERB_OPT_SET };
#define VERB_DAEMON_OPTIONS \
	{ "socket", required_argument, NULL, VERB_OPT_SOCKET }, \
	{ "model", required_argument, NULL, VERB_OPT_MODEL }, \
	{ "private", no_argument, NULL, VERB_OPT_PRIVATE }, \
	{ "set", required_argument, NULL, VERB_OPT_SET }
#define VERB_DAEMON_HELP \
	"  --socket S        the daemon's socket ($ONEBIT_SOCKET, " ONEBIT_SOCKET_DEFAULT ")\n" \
	"  --model FILE      start a daemon that serves FILE, for this command only\n" \
	"  --private         start a daemon for this command only\n" \
	"  --set 'KEY = V'   a setting of the private daemon; may be repeated\n"

/* One of these options, with optarg. Exit status. */
int verb_daemon_option(struct verb_daemon *d, const char *verb, int option);
/* Do they go together? Exit status. */
int verb_daemon_check(const struct verb_daemon *d, const char *verb);
/*
 * Start the private daemon when one is asked for, and wait until its model is served. Exit status, 0
 * when nothing was to be done. After any other than 0 nothing runs.
 */
int verb_daemon_start(struct verb_daemon *d, const char *verb);
void verb_daemon_stop(struct verb_daemon *d);
/* What the private daemon's executor said last, without its name; false: nothing, or not private. */
bool verb_daemon_said(const struct verb_daemon *d, char *line, size_t len);

#endif

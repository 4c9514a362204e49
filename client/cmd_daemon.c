/* SPDX-License-Identifier: MIT */
/*
 * A verb's daemon. A private one accepts clients before its executor has read the model, and a
 * broker tries an executor that dies again and again, as it should in service. Here nobody would
 * mend the file meanwhile: so we wait until the model is served, and the first death is the answer,
 * in the words in which the executor took leave.
 */
#include "cmd_daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "cmd_verb.h"

#define EXECUTOR "onebit-executor: "
#define GREETING "model \""

int verb_daemon_option(struct verb_daemon *d, const char *verb, int option)
{
	switch (option) {
	case VERB_OPT_SOCKET:
		d->socket = optarg;
		break;
	case VERB_OPT_MODEL:
		d->model = optarg;
		break;
	case VERB_OPT_PRIVATE:
		d->private = true;
		break;
	default:
		if (d->n_settings == VERB_SETTINGS_MAX)
			return verb_usage(verb, "more than %d --set; give fewer",
					  VERB_SETTINGS_MAX);
		d->settings[d->n_settings++] = optarg;
	}
	return STATUS_OK;
}

int verb_daemon_check(const struct verb_daemon *d, const char *verb)
{
	bool private = d->private || d->model;

	if (d->n_settings && !private)
		return verb_usage(verb, "--set is for the daemon that --private or --model starts; "
				  "add --private");
	if (private && d->socket)
		return verb_usage(verb, "--%s and --socket exclude each other; drop one",
				  d->model ? "model" : "private");
	return STATUS_OK;
}

bool verb_daemon_said(const struct verb_daemon *d, char *line, size_t len)
{
	/* What it says of itself when all is well is no last word. */
	return d->started && private_said(&d->own, EXECUTOR, line, len) &&
	       strncmp(line, GREETING, strlen(GREETING));
}

/* Before a daemon is started for it: what a person mistypes most has the shortest answer. */
static int check_model(const char *verb, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK), err = errno;
	struct stat st;

	if (fd < 0)
		return verb_fail(verb, STATUS_FAILED,
				 "the model %s cannot be opened: %s; check the path and the file's "
				 "mode", path, strerror(err));
	err = fstat(fd, &st);
	close(fd);
	if (err || !S_ISREG(st.st_mode))
		return verb_fail(verb, STATUS_FAILED,
				 "the model %s is no file; name an .obm, which `onebit model "
				 "convert` makes of other formats", path);
	return STATUS_OK;
}

/* The daemon gets the whole path: a name that begins with a blank would lose it in a setting. */
static char *model_setting(const char *path)
{
	char *whole = realpath(path, NULL), *line = NULL;

	if (whole && asprintf(&line, "model = %s", whole) < 0)
		line = NULL;
	free(whole);
	return line;
}

static int not_served(const struct verb_daemon *d, const char *verb)
{
	char line[320];

	if (!verb_daemon_said(d, line, sizeof(line)) &&
	    !private_said(&d->own, "", line, sizeof(line)))
		snprintf(line, sizeof(line), "its executor ended without a word");
	return verb_fail(verb, STATUS_FAILED,
			 "the model %s cannot be served: %s; `onebit model verify` tells whether "
			 "it is whole", d->model, line);
}

/* Until the executor has said hello, or has died. Who configured none is told by the request. */
static int wait_served(const struct verb_daemon *d, const char *verb)
{
	struct onebit_options open = {
		.size = sizeof(open),
		.socket = d->socket,
		.sq_entries = ONEBIT_SQ_ENTRIES_MIN,
		.arena_bytes = ONEBIT_AREA_MIN,
		.out_bytes = ONEBIT_AREA_MIN,
		.no_reconnect = 1,
		.features = ONEBIT_FEAT_STATS,
	};
	struct onebit_error err = { 0 };
	struct onebit *o = NULL;
	struct onebit_stats s;
	int status = -1, ret = onebit_open(&o, &open, &err);

	if (ret < 0)
		return verb_open_failed(verb, d->socket, ret, &err);
	while (status < 0) {
		struct onebit_event ev;

		/* -EAGAIN: its writer lost the CPU in the middle; size 0: nothing is written yet. */
		ret = onebit_stats_read(o, &s);
		if (!ret && !s.size)
			ret = -EAGAIN;
		if (verb_interrupted())
			status = STATUS_INTERRUPTED;
		else if (ret && ret != -EAGAIN)
			status = STATUS_OK;
		else if (!ret && (s.executor_state == ONEBIT_EXEC_READY ||
				  s.executor_state == ONEBIT_EXEC_NONE))
			status = STATUS_OK;
		else if (!ret && s.executor_deaths)
			status = not_served(d, verb);
		else if (onebit_next(o, &ev, 1) < 0) /* a pause that notices a daemon that died */
			status = verb_fail(verb, STATUS_NO_DAEMON,
					   "the private daemon ended while its model was read; is "
					   "there memory for it?");
	}
	onebit_close(o);
	return status;
}

int verb_daemon_start(struct verb_daemon *d, const char *verb)
{
	char *model = NULL, why[400];
	int status = STATUS_OK;

	if (!d->private && !d->model)
		return STATUS_OK;
	if (d->model) {
		status = check_model(verb, d->model);
		if (status)
			return status;
		model = model_setting(d->model);
		if (!model)
			return verb_fail(verb, STATUS_FAILED, "the model %s cannot be named: %s",
					 d->model, strerror(errno));
		d->settings[d->n_settings] = model;
	}
	if (private_start(&d->own, NULL, d->settings, why, sizeof(why))) {
		status = verb_interrupted() ? STATUS_INTERRUPTED :
			 verb_fail(verb, STATUS_NO_DAEMON, "%s", why);
	} else {
		d->started = true;
		d->socket = d->own.socket;
		if (model)
			status = wait_served(d, verb);
		if (status)
			verb_daemon_stop(d);
	}
	d->settings[d->n_settings] = NULL;
	free(model);
	return status;
}

void verb_daemon_stop(struct verb_daemon *d)
{
	if (!d->started)
		return;
	private_stop(&d->own);
	d->started = false;
	d->socket = NULL;
}

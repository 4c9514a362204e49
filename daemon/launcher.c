/* SPDX-License-Identifier: MIT */
/*
 * The broker's life, seen from its parent. Whatever the broker does (die, hang with its messages
 * unread, send nonsense) ends in a new one, which is told nothing of the old one's executors.
 */
#include "launcher.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "control.h"
#include "log.h"
#include "notify.h"

#define ALIVE_NS      10000000000ull /* a broker that lived so long is restarted at once */
#define STOP_EXTRA_NS 2000000000ull  /* beyond drain_ms, for the broker's own way out */

uint64_t launcher_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/* ---- configuration ------------------------------------------------------------------------- */

void launcher_render(struct launcher *l)
{
	static const char cut[] = "# the rest is cut: onebitd --check prints all of it\n";
	char *end;

	if (config_print(&l->config, l->text, sizeof(l->text)) < sizeof(l->text))
		return;
	l->text[sizeof(l->text) - sizeof(cut)] = 0;
	end = strrchr(l->text, '\n');
	memcpy(end + 1, cut, sizeof(cut));
}

void launcher_reload(struct launcher *l)
{
	char why[CONFIG_WHY_MAX], changed[256];
	static struct config next;

	notify_send(l->notify_fd, "RELOADING=1");
	if (options_load(&l->options, &next, why, sizeof(why))) {
		log_line(BROKER_ERROR, "event=reload-refused: the old configuration stays: %s", why);
	} else {
		config_keep_fixed(&next, &l->config, changed, sizeof(changed));
		l->config = next;
		launcher_render(l);
		if (*changed)
			log_line(BROKER_WARN, "event=reload needs_restart=\"%s\": these keys change only when "
				 "onebitd is restarted", changed);
		if (l->control_fd >= 0 && control_send_policy(l->control_fd, &l->config.policy, l->text))
			kill(l->broker, SIGKILL);
		log_line(BROKER_INFO, "event=reload");
	}
	notify_send(l->notify_fd, "READY=1");
}

/* ---- broker -------------------------------------------------------------------------------- */

static int be_broker(struct launcher *l, int control_fd, pid_t launcher)
{
	struct process_setup setup = {
		.control_fd = control_fd, .listen_fd = l->listener.fd, .notify_fd = l->notify_fd,
		.watchdog_ns = l->watchdog_ns, .loop = l->config.loop, .sandbox = l->config.sandbox,
		.has_executor = l->spawn.argv[0] != NULL, .uid = l->spawn.uid, .gid = l->spawn.gid,
		.log_level = (int)l->config.log, .policy = &l->config.policy, .config_text = l->text,
	};
	sigset_t none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != launcher)
		return EXIT_FAILURE;
	prctl(PR_SET_NAME, "onebit-broker");
	log_init(setup.log_level, "onebitd/broker");
	/* These are the launcher's: a ^C reaches the whole terminal, but the broker must drain. */
	signal(SIGINT, SIG_IGN);
	signal(SIGTERM, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	close(l->signal_fd);
	spawn_deinit(&l->spawn);
	return process_run(&setup);
}

void launcher_start_broker(struct launcher *l)
{
	pid_t launcher = getpid();
	int pair[2];

	l->restart_at = launcher_now_ns() + l->backoff_ns; /* should it fail */
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair)) {
		log_line(BROKER_ERROR, "event=broker-failed step=socketpair error=\"%s\"", strerror(errno));
		return;
	}
	l->broker = fork();
	if (l->broker == 0) {
		close(pair[0]);
		_exit(be_broker(l, pair[1], launcher));
	}
	close(pair[1]);
	if (l->broker < 0) {
		log_line(BROKER_ERROR, "event=broker-failed step=fork error=\"%s\"", strerror(errno));
		l->broker = 0;
		close(pair[0]);
		return;
	}
	l->control_fd = pair[0];
	l->broker_since = launcher_now_ns();
	l->restart_at = LAUNCHER_NEVER;
	log_line(BROKER_INFO, "event=broker-started pid=%d", (int)l->broker);
}

static void broker_ended(struct launcher *l, int status)
{
	if (l->control_fd >= 0)
		close(l->control_fd);
	l->control_fd = -1;
	l->broker = 0;
	spawn_orphan(&l->spawn);
	if (l->stopping)
		return;
	if (launcher_now_ns() - l->broker_since >= ALIVE_NS)
		l->backoff_ns = BACKOFF_FIRST_NS;
	log_line(BROKER_ERROR, "event=broker-ended %s=%d%s: it is started again in %llu ms",
		 WIFSIGNALED(status) ? "signal" : "status",
		 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
		 WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS ?
		 " (a system call that its sandbox forbids)" : "",
		 (unsigned long long)(l->backoff_ns / 1000000u));
	l->restart_at = launcher_now_ns() + l->backoff_ns;
	l->backoff_ns = l->backoff_ns * 2 < BACKOFF_LAST_NS ? l->backoff_ns * 2 : BACKOFF_LAST_NS;
}

static void tell_exited(struct launcher *l, unsigned link, uint32_t generation, int status)
{
	if (l->control_fd >= 0 && control_send(l->control_fd, LAUNCH_EXITED, link, generation, status))
		kill(l->broker, SIGKILL); /* it reads nothing any more */
}

static void start_executor(struct launcher *l, struct control_msg *m)
{
	char why[CONFIG_WHY_MAX];
	int err = spawn_start(&l->spawn, m->msg.link, m->msg.generation, m->msg.model, m->fds, why,
			      sizeof(why));

	control_close_fds(m);
	if (!err)
		return;
	log_line(BROKER_ERROR, "event=executor-failed link=%u generation=%u: %s", m->msg.link,
		 m->msg.generation, why);
	tell_exited(l, m->msg.link, m->msg.generation, err);
}

void launcher_hear(struct launcher *l)
{
	struct control_msg m;
	int err = control_receive(l->control_fd, &m);

	if (err == -EPROTO || err == -EPIPE) {
		/* Closed, or speaking nonsense: no broker any more, whatever it still does. */
		if (err == -EPROTO)
			log_line(BROKER_ERROR, "event=broker-malformed: it is killed");
		kill(l->broker, SIGKILL);
		close(l->control_fd);
		l->control_fd = -1;
	} else if (!err && m.msg.type == LAUNCH_START) {
		start_executor(l, &m);
	} else if (!err && m.msg.type == LAUNCH_KILL) {
		spawn_kill(&l->spawn, m.msg.link, m.msg.generation);
	} else if (!err && m.msg.type == LAUNCH_SERVE) {
		spawn_serve(&l->spawn, m.msg.link);
	} else if (!err) {
		launcher_reload(l);
	}
}

/* ---- ends ---------------------------------------------------------------------------------- */

void launcher_reap(struct launcher *l)
{
	struct spawn_child ch;
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		if (pid == l->broker) {
			broker_ended(l, status);
		} else if (spawn_reaped(&l->spawn, pid, &status, &ch) && !ch.orphan) {
			if (status < 0)
				log_line(BROKER_ERROR, "event=executor-failed program=%s error=\"%s\": correct executor",
					 l->spawn.argv[0], strerror(-status));
			tell_exited(l, ch.link, ch.generation, status);
		}
	}
}

void launcher_stop(struct launcher *l)
{
	uint64_t wait_ns = STOP_EXTRA_NS;

	l->restart_at = LAUNCHER_NEVER;
	if (l->stopping < LAUNCHER_GIVE_UP)
		l->stopping++;
	if (!l->broker)
		return;
	if (l->stopping == LAUNCHER_DRAIN && l->control_fd >= 0 &&
	    control_send(l->control_fd, LAUNCH_DRAIN, 0, 0, 0) == 0) {
		wait_ns += l->config.policy.drain_ms * 1000000ull;
		log_line(BROKER_INFO, "event=stopping at_most_ms=%u: what was accepted finishes",
			 l->config.policy.drain_ms);
	} else {
		if (l->stopping > LAUNCHER_DRAIN)
			log_line(BROKER_WARN, "event=broker-killed: it had not finished");
		kill(l->broker, SIGKILL);
	}
	l->stop_at = launcher_now_ns() + wait_ns;
}

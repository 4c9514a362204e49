/* SPDX-License-Identifier: MIT */
/*
 * onebitd, the launcher: it holds what must outlive a broker (the listening socket, the model file)
 * and the one right that a broker must not have, to start programs. It starts the broker, starts
 * and kills executors on its word, reaps both, replaces a broker that died, and passes signals on as
 * messages. It reads nothing that a client wrote and waits for nothing but poll().
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>
#include "launcher.h"
#include "log.h"
#include "notify.h"

#define REAP_NS     1000000000ull /* at the end, for executors to be gone; init reaps the rest */
#define WAIT_MAX_MS 3600000u      /* as an int for poll(); then look again */

static int check(const struct options *o)
{
	static char text[CONFIG_PRINT_MAX];
	char why[CONFIG_WHY_MAX];
	static struct config c;

	if (options_load(o, &c, why, sizeof(why))) {
		fprintf(stderr, "onebitd: %s\n", why);
		return EXIT_FAILURE;
	}
	config_print(&c, text, sizeof(text));
	return fputs(text, stdout) < 0 || fflush(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* The standard descriptors must be taken, or a socket would become standard error. */
static void fill_standard_fds(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

static int open_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN); /* a log that nobody reads any more must not end us */
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* What the manager told us is not for those whom we start. */
static void forget_manager(void)
{
	static const char *const names[] = { "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
					     "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES" };

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		unsetenv(names[i]);
}

/* Everything that is opened once. 0, or -errno and why. */
static int prepare(struct launcher *l, char *why, size_t why_len)
{
	int err = options_load(&l->options, &l->config, why, why_len);

	if (err)
		return err;
	log_init((int)l->config.log, "onebitd");
	l->signal_fd = open_signals();
	l->notify_fd = notify_open();
	l->watchdog_ns = notify_watchdog_ns();
	if (l->signal_fd < 0) {
		snprintf(why, why_len, "no signalfd: %s; raise the limit of open files", strerror(errno));
		return -EMFILE;
	}
	err = spawn_init(&l->spawn, &l->config, why, why_len);
	if (!err)
		err = listener_open(&l->listener, &l->config, why, why_len);
	if (err)
		return err;
	forget_manager();
	if (geteuid() == 0 && !l->spawn.uid)
		log_line(BROKER_WARN, "event=root: there is no user '%s' to become; create it or set user",
			 l->config.user);
	launcher_render(l);
	return 0;
}

static void take_signals(struct launcher *l)
{
	struct signalfd_siginfo si;

	while (read(l->signal_fd, &si, sizeof(si)) == sizeof(si)) {
		if (si.ssi_signo == SIGTERM || si.ssi_signo == SIGINT) {
			notify_send(l->notify_fd, "STOPPING=1");
			launcher_stop(l);
		} else if (si.ssi_signo == SIGHUP) {
			launcher_reload(l);
		}
	}
	/* Signals coalesce: whichever came, look at all children. */
	launcher_reap(l);
}

/* Until something happens, or the time comes. */
static void wait_for(struct launcher *l, uint64_t until_ns)
{
	struct pollfd p[2] = { { l->signal_fd, POLLIN, 0 }, { l->control_fd, POLLIN, 0 } };
	uint64_t now = launcher_now_ns(), ms = 0;

	if (until_ns > now)
		ms = (until_ns - now + 999999u) / 1000000u;
	if (poll(p, 2, until_ns == LAUNCHER_NEVER ? -1 : (int)(ms < WAIT_MAX_MS ? ms : WAIT_MAX_MS)) <= 0)
		return;
	if (p[1].revents)
		launcher_hear(l);
	if (p[0].revents)
		take_signals(l);
}

static void serve(struct launcher *l)
{
	while (!l->stopping || (l->broker && l->stopping < LAUNCHER_GIVE_UP)) {
		uint64_t now = launcher_now_ns();

		if (!l->stopping && now >= l->restart_at)
			launcher_start_broker(l);
		if (l->stopping && now >= l->stop_at)
			launcher_stop(l);
		wait_for(l, l->stopping ? l->stop_at : l->restart_at);
	}
}

static void finish(struct launcher *l)
{
	uint64_t until = launcher_now_ns() + REAP_NS;

	spawn_orphan(&l->spawn);
	while (spawn_alive(&l->spawn) && launcher_now_ns() < until)
		wait_for(l, until);
	listener_close(&l->listener, &l->config);
	spawn_deinit(&l->spawn);
	log_line(BROKER_INFO, "event=stopped");
}

int main(int argc, char **argv)
{
	static struct launcher l = { .control_fd = -1, .backoff_ns = BACKOFF_FIRST_NS };
	char why[CONFIG_WHY_MAX];
	int status = options_parse(&l.options, argc, argv);

	if (status >= 0)
		return status;
	if (l.options.check)
		return check(&l.options);
	fill_standard_fds();
	umask(0077);
	log_init(BROKER_INFO, "onebitd");
	if (prepare(&l, why, sizeof(why))) {
		log_line(BROKER_ERROR, "event=not-started: %s", why);
		return EXIT_FAILURE;
	}
	serve(&l);
	finish(&l);
	return EXIT_SUCCESS;
}

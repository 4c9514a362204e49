/* SPDX-License-Identifier: MIT */
/*
 * A daemon of one's own. It runs in a session of its own, so that a ^C at the terminal reaches the
 * command only, which then stops it in order; and it gets SIGTERM when the command dies without
 * having done so. Its log goes to a file in the directory: nobody has to drain a pipe, and when it
 * does not come up the last line of the log is the reason that the user is told.
 */
#include "private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	SETTINGS_MAX = 64,
	START_TRIES = 10000, /* 1 ms apart: 10 s, a cold disk and a sanitizer build included */
	STOP_MS = 5000,
	LINE_MAX_BYTES = 240,
	LOG_TAIL = 8192, /* of the log, to find a line in */
};

static void remove_dir(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	if (d) {
		while ((e = readdir(d)))
			if (strcmp(e->d_name, ".") && strcmp(e->d_name, ".."))
				unlinkat(dirfd(d), e->d_name, 0);
		closedir(d);
	}
	rmdir(dir);
}

/* Beside this program when it is there, else by name, which execvp() looks for on $PATH. */
static const char *find_daemon(char *buf, size_t len)
{
	ssize_t n = readlink("/proc/self/exe", buf, len - sizeof("onebitd"));
	char *slash;

	if (n > 0) {
		buf[n] = '\0';
		slash = strrchr(buf, '/');
		if (slash) {
			strcpy(slash + 1, "onebitd");
			if (!access(buf, X_OK))
				return buf;
		}
	}
	return "onebitd";
}

/* What the daemon said last, or what exec answered; its end, when it is longer than a line here. */
static void last_line(const char *dir, char *line, size_t len)
{
	char path[128], buf[LINE_MAX_BYTES], *start;
	ssize_t n;
	int fd;

	line[0] = '\0';
	snprintf(path, sizeof(path), "%s/log", dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	n = lseek(fd, 0, SEEK_END);
	n = n > LINE_MAX_BYTES - 1 ? n - (LINE_MAX_BYTES - 1) : 0;
	n = pread(fd, buf, sizeof(buf) - 1, n);
	close(fd);
	while (n > 0 && buf[n - 1] == '\n')
		n--;
	if (n <= 0)
		return;
	buf[n] = '\0';
	start = strrchr(buf, '\n');
	snprintf(line, len, "%s", start ? start + 1 : buf);
}

bool private_said(const struct private_daemon *p, const char *start, char *line, size_t len)
{
	char path[128], *buf = malloc(LOG_TAIL), *at = NULL, *next;
	size_t n = strlen(start);
	bool found = false;
	ssize_t got = -1;
	off_t end;
	int fd;

	snprintf(path, sizeof(path), "%s/log", p->dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd >= 0 && buf) {
		end = lseek(fd, 0, SEEK_END);
		got = pread(fd, buf, LOG_TAIL - 1, end > LOG_TAIL - 1 ? end - (LOG_TAIL - 1) : 0);
	}
	if (fd >= 0)
		close(fd);
	if (got > 0) {
		buf[got] = '\0';
		at = buf;
	}
	for (; at; at = next) {
		next = strchr(at, '\n');
		if (next)
			*next++ = '\0';
		if (!*at || strncmp(at, start, n))
			continue;
		snprintf(line, len, "%s", at + n);
		found = true;
	}
	free(buf);
	return found;
}

static _Noreturn void become_daemon(const struct private_daemon *p, const char *onebitd,
				    const char *const *settings, pid_t parent)
{
	const char *argv[4 + 2 * (SETTINGS_MAX + 1)];
	char option[128], path[128];
	sigset_t none;
	int n = 0, fd;

	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(1); /* it died before the line above */
	setsid();
	/* Ignored signals and a mask survive exec, and the daemon lives by its signals. */
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);

	snprintf(path, sizeof(path), "%s/log", p->dir);
	fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
	if (fd < 0 || dup2(fd, 1) < 0 || dup2(fd, 2) < 0)
		_exit(1);
	fd = open("/dev/null", O_RDONLY);
	if (fd >= 0)
		dup2(fd, 0);
	/* Descriptors of the caller are not the daemon's. */
	syscall(SYS_close_range, 3u, ~0u, 0u);

	snprintf(option, sizeof(option), "socket = %s", p->socket);
	argv[n++] = onebitd;
	argv[n++] = "-c";
	argv[n++] = "none";
	argv[n++] = "-o";
	argv[n++] = option;
	for (; settings && *settings; settings++) {
		argv[n++] = "-o";
		argv[n++] = *settings;
	}
	argv[n] = NULL;
	execvp(onebitd, (char *const *)argv);
	dprintf(2, "cannot run %s: %s; build or install it\n", onebitd, strerror(errno));
	_exit(127);
}

/* 0: it accepts. Connecting is the only sign that does not depend on how it says so. */
static int try_connect(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd, ret;

	snprintf(sa.sun_path, sizeof(sa.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	ret = connect(fd, (struct sockaddr *)&sa, sizeof(sa)) ? -errno : 0;
	close(fd);
	return ret;
}

int private_start(struct private_daemon *p, const char *onebitd, const char *const *settings,
		  char *why, size_t why_len)
{
	const char *tmp = getenv("TMPDIR");
	struct timespec ms = { .tv_nsec = 1000000 };
	char beside[512], line[LINE_MAX_BYTES];
	pid_t parent = getpid();
	int n = 0, status, ret;

	memset(p, 0, sizeof(*p));
	while (settings && settings[n])
		n++;
	if (n > SETTINGS_MAX) {
		snprintf(why, why_len, "%d settings are more than the limit of %d; give fewer", n,
			 SETTINGS_MAX);
		return -E2BIG;
	}
	if (!tmp || !*tmp)
		tmp = "/tmp";
	ret = snprintf(p->dir, sizeof(p->dir), "%s/onebit-XXXXXX", tmp);
	if (ret >= (int)sizeof(p->dir)) {
		snprintf(why, why_len, "$TMPDIR is too long for a socket's path; use a shorter one");
		return -ENAMETOOLONG;
	}
	if (!mkdtemp(p->dir)) {
		ret = -errno;
		snprintf(why, why_len, "cannot make a directory in %s: %s; set $TMPDIR to one that "
			 "can be written", tmp, strerror(-ret));
		return ret;
	}
	snprintf(p->socket, sizeof(p->socket), "%s/s", p->dir);
	if (!onebitd)
		onebitd = find_daemon(beside, sizeof(beside));

	p->pid = fork();
	if (p->pid < 0) {
		ret = -errno;
		snprintf(why, why_len, "cannot fork: %s", strerror(-ret));
		remove_dir(p->dir);
		return ret;
	}
	if (!p->pid)
		become_daemon(p, onebitd, settings, parent);

	for (int i = 0; i < START_TRIES; i++) {
		if (!try_connect(p->socket))
			return 0;
		if (waitpid(p->pid, &status, WNOHANG) == p->pid) {
			last_line(p->dir, line, sizeof(line));
			snprintf(why, why_len, "the daemon did not start: %s",
				 line[0] ? line : "it ended without a word");
			remove_dir(p->dir);
			return -ECHILD;
		}
		if (nanosleep(&ms, NULL)) {
			private_stop(p);
			snprintf(why, why_len, "interrupted while the daemon started");
			return -EINTR;
		}
	}
	last_line(p->dir, line, sizeof(line));
	snprintf(why, why_len, "the daemon did not accept clients within %d s; its last words: %s",
		 START_TRIES / 1000, line[0] ? line : "none");
	private_stop(p);
	return -ETIMEDOUT;
}

int private_stop(struct private_daemon *p)
{
	struct pollfd pfd = { .events = POLLIN };
	struct timespec now, end;
	int status = 0, ret = 0;
	long left = STOP_MS;

	kill(p->pid, SIGTERM);
	pfd.fd = (int)syscall(SYS_pidfd_open, p->pid, 0u);
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += STOP_MS / 1000;
	/* A signal to us must not cut the daemon's orderly end short. */
	while (pfd.fd >= 0 && left > 0 && poll(&pfd, 1, (int)left) < 0 && errno == EINTR) {
		clock_gettime(CLOCK_MONOTONIC, &now);
		left = (end.tv_sec - now.tv_sec) * 1000 + (end.tv_nsec - now.tv_nsec) / 1000000;
	}
	if (pfd.fd >= 0)
		close(pfd.fd);
	if (waitpid(p->pid, &status, WNOHANG) != p->pid) {
		kill(p->pid, SIGKILL);
		while (waitpid(p->pid, &status, 0) < 0)
			if (errno != EINTR) {
				ret = -errno;
				break;
			}
	}
	remove_dir(p->dir);
	p->pid = 0;
	if (ret)
		return ret;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

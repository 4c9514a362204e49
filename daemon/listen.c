/* SPDX-License-Identifier: MIT */
/*
 * A name in the file system outlives the socket behind it. It is removed only after a connect() has
 * shown that nobody listens, and two daemons that start together take turns by a lock on the folder,
 * which leaves no file behind. The mode is right from the first instant (umask), and nobody can
 * connect before listen(), which comes after the group is set.
 */
#include "listen.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define MANAGER_FD 3 /* SD_LISTEN_FDS_START of sd_listen_fds(3) */
#define BACKLOG    4096 /* clamped by net.core.somaxconn */
#define STALE_TRIES   50 /* one second in all */
#define STALE_WAIT_US 20000

static int get_option(int fd, int option)
{
	int value = -1;
	socklen_t len = sizeof(value);

	return getsockopt(fd, SOL_SOCKET, option, &value, &len) ? -1 : value;
}

/* 1: the manager gave one, 0: it did not. */
static int from_manager(struct listener *l, char *why, size_t why_len)
{
	const char *pid = getenv("LISTEN_PID"), *n = getenv("LISTEN_FDS");
	int flags;

	if (!pid || !n || atol(pid) != (long)getpid() || atoi(n) < 1)
		return 0;
	flags = fcntl(MANAGER_FD, F_GETFL);
	if (atoi(n) > 1 || flags < 0 || get_option(MANAGER_FD, SO_DOMAIN) != AF_UNIX ||
	    get_option(MANAGER_FD, SO_TYPE) != SOCK_SEQPACKET ||
	    get_option(MANAGER_FD, SO_ACCEPTCONN) != 1) {
		snprintf(why, why_len, "socket activation gave something else than one listening UNIX "
			 "socket of type SEQPACKET; set ListenSequentialPacket=");
		return -EPROTOTYPE;
	}
	fcntl(MANAGER_FD, F_SETFD, FD_CLOEXEC);
	fcntl(MANAGER_FD, F_SETFL, flags | O_NONBLOCK);
	*l = (struct listener){ .fd = MANAGER_FD };
	return 1;
}

/* Make the folder when it is missing, and lock it against others that start now. -1: no lock. */
static int lock_folder(const char *socket_path)
{
	char dir[108];
	char *slash;
	int fd;

	snprintf(dir, sizeof(dir), "%s", socket_path);
	slash = strrchr(dir, '/');
	if (!slash)
		snprintf(dir, sizeof(dir), ".");
	else if (slash == dir)
		slash[1] = 0;
	else
		*slash = 0;
	if (mkdir(dir, 0755) == 0)
		chmod(dir, 0755); /* whatever the umask */
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	/* A second or so: anybody who can read the folder can lock it, and must not stop us. */
	for (int i = 0; fd >= 0 && i < 100 && flock(fd, LOCK_EX | LOCK_NB); i++)
		usleep(10000);
	return fd;
}

/* Does anybody listen? 0, or the errno of a connect(). */
static int try_connect(const struct sockaddr_un *sa)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int err = fd < 0 || connect(fd, (const struct sockaddr *)sa, sizeof(*sa)) ? errno : 0;

	if (fd >= 0)
		close(fd);
	return err;
}

/* 0: nobody listens, the name is gone. */
static int remove_stale(const struct sockaddr_un *sa, char *why, size_t why_len)
{
	struct stat st;
	int err;

	if (lstat(sa->sun_path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
		snprintf(why, why_len, "%s exists and is not a socket; remove it or set socket to "
			 "another path", sa->sun_path);
		return -EEXIST;
	}
	/*
	 * The broker of a launcher that was killed holds the listener until the kernel has ended it
	 * too: a supervisor that restarts at once would meet it.
	 */
	err = try_connect(sa);
	for (int i = 0; (err == 0 || err == EAGAIN) && i < STALE_TRIES; i++) {
		usleep(STALE_WAIT_US);
		err = try_connect(sa);
	}
	/* Only ECONNREFUSED proves it: EAGAIN is a full queue, EPROTOTYPE another kind of server. */
	if (err == ECONNREFUSED && unlink(sa->sun_path) == 0)
		return 0;
	if (err == ENOENT)
		return 0;
	if (err == 0 || err == EAGAIN)
		snprintf(why, why_len, "another onebitd is already serving %s; stop it or set socket to "
			 "another path", sa->sun_path);
	else
		snprintf(why, why_len, "%s is in use and cannot be replaced: %s; remove it or set socket "
			 "to another path", sa->sun_path, strerror(err == ECONNREFUSED ? errno : err));
	return -EADDRINUSE;
}

static int find_group(const char *name, gid_t *gid, char *why, size_t why_len)
{
	const struct group *g;

	*gid = (gid_t)-1;
	if (!*name)
		return 0;
	g = getgrnam(name);
	if (!g) {
		snprintf(why, why_len, "there is no group '%s'; create it or change socket_group", name);
		return -ENOENT;
	}
	*gid = g->gr_gid;
	return 0;
}

int listener_open(struct listener *l, const struct config *c, char *why, size_t why_len)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	const char *step = "socket";
	struct stat st;
	gid_t gid;
	mode_t mask;
	int lock = -1, fd = -1, err, made = 0;

	err = from_manager(l, why, why_len);
	if (err)
		return err < 0 ? err : 0;
	err = find_group(c->socket_group, &gid, why, why_len);
	if (err)
		return err;
	memcpy(sa.sun_path, c->socket, sizeof(sa.sun_path));
	lock = lock_folder(c->socket);

	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		goto failed;
	step = "bind";
	mask = umask(0777 & ~(mode_t)c->socket_mode);
	made = bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0;
	if (!made && errno == EADDRINUSE) {
		err = remove_stale(&sa, why, why_len);
		if (!err)
			made = bind(fd, (struct sockaddr *)&sa, sizeof(sa)) == 0;
	}
	umask(mask);
	if (err)
		goto out;
	if (!made)
		goto failed;
	step = "change of group";
	if (gid != (gid_t)-1 && lchown(sa.sun_path, (uid_t)-1, gid))
		goto failed;
	step = "listen";
	if (lstat(sa.sun_path, &st) || listen(fd, BACKLOG))
		goto failed;
	*l = (struct listener){ .fd = fd, .dev = st.st_dev, .ino = st.st_ino };
	fd = -1;
	goto out;
failed:
	err = -errno;
	snprintf(why, why_len, "%s of the socket %s failed: %s; see the keys socket, socket_group, "
		 "socket_mode", step, c->socket, strerror(-err));
	if (made)
		unlink(sa.sun_path);
out:
	if (fd >= 0)
		close(fd);
	if (lock >= 0)
		close(lock);
	return err;
}

void listener_close(struct listener *l, const struct config *c)
{
	struct stat st;

	if (l->ino && lstat(c->socket, &st) == 0 && st.st_dev == l->dev && st.st_ino == l->ino)
		unlink(c->socket);
	close(l->fd);
	l->fd = -1;
}

/* SPDX-License-Identifier: MIT */
/*
 * fork and exec of an executor. The child places its descriptors, marks every other one
 * close-on-exec, forgets our signals and tells a failed exec through a pipe which a good exec
 * closes. The pipe is read when the child is reaped, so that the launcher never waits for an exec
 * from a slow disk.
 */
#include "spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "executor.h"

#define OWN_EXECUTOR "onebit-executor"
#ifndef ONEBIT_LIBEXECDIR
#define ONEBIT_LIBEXECDIR "/usr/libexec/onebit"
#endif

#define ABOVE 16 /* descriptors are moved out of the way of 3..7 to here */

/* Numbers and values of the kernel, which older headers lack; the same on every architecture. */
#define NR_pidfd_send_signal  424
#define NR_pidfd_open         434
#define NR_close_range        436
#define NR_openat2            437
#define CLOSE_RANGE_CLOEXEC_  4u
#define RESOLVE_NO_MAGICLINKS_ 0x02u
#define RESOLVE_NO_SYMLINKS_  0x04u
#define RESOLVE_BENEATH_      0x08u

struct how { /* struct open_how of linux/openat2.h */
	uint64_t flags, mode, resolve;
};

/* ---- the model ----------------------------------------------------------------------------- */

static int check_model(int fd, const char *path, char *why, size_t why_len)
{
	struct stat st;

	if (fd < 0) {
		int err = -errno;

		snprintf(why, why_len, "cannot open the model %s: %s; correct model or model_dir, or the "
			 "file's mode", path, strerror(-err));
		return err;
	}
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		snprintf(why, why_len, "the model %s is not a file; name the model file itself", path);
		close(fd);
		return -EINVAL;
	}
	return fd;
}

/* The path comes from a client with the admin right: it stays below the folder, links or not. */
static int open_below(const char *dir, const char *path, char *why, size_t why_len)
{
	struct how how = {
		.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK,
		.resolve = RESOLVE_BENEATH_ | RESOLVE_NO_SYMLINKS_ | RESOLVE_NO_MAGICLINKS_,
	};
	int dirfd, fd;

	if (!*dir) {
		snprintf(why, why_len, "model_dir is not set, so no model can be loaded by name; set it");
		return -ENOENT;
	}
	dirfd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (dirfd < 0)
		return check_model(-1, dir, why, why_len);
	fd = (int)syscall(NR_openat2, dirfd, path, &how, sizeof(how));
	if (fd < 0 && (errno == EXDEV || errno == ELOOP)) {
		snprintf(why, why_len, "the model %s leaves model_dir or goes through a symbolic link; "
			 "name a file below model_dir itself", path);
		fd = -EACCES;
	} else {
		fd = check_model(fd, path, why, why_len);
	}
	close(dirfd);
	return fd;
}

/* ---- start --------------------------------------------------------------------------------- */

/* Beside this program, as in a build's folder; else where it is installed. */
static const char *own_executor(char *path, size_t len)
{
	ssize_t n = readlink("/proc/self/exe", path, len - sizeof(OWN_EXECUTOR));
	char *slash;

	path[n > 0 ? n : 0] = 0;
	slash = strrchr(path, '/');
	if (slash) {
		strcpy(slash + 1, OWN_EXECUTOR);
		if (!access(path, X_OK))
			return path;
	}
	return ONEBIT_LIBEXECDIR "/" OWN_EXECUTOR;
}

int spawn_init(struct spawn *s, const struct config *c, char *why, size_t why_len)
{
	const struct passwd *pw;
	char path[CONFIG_COMMAND_MAX];

	memset(s, 0, sizeof(*s));
	for (unsigned i = 0; i < LINKS; i++)
		s->link_model_fd[i] = -1;
	s->model_fd = -1;
	if (config_executor(c, own_executor(path, sizeof(path)), s->command, s->argv)) {
		snprintf(why, why_len, "the path of %s is longer than %u bytes; set executor, or install "
			 "it elsewhere", OWN_EXECUTOR, CONFIG_COMMAND_MAX - 1);
		return -ENAMETOOLONG;
	}
	memcpy(s->model_dir, c->model_dir, sizeof(s->model_dir));
	if (*c->model) {
		int fd = open(c->model, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

		s->model_fd = check_model(fd, c->model, why, why_len);
		if (s->model_fd < 0)
			return s->model_fd;
	}
	if (geteuid() == 0 && *c->user && (pw = getpwnam(c->user)) != NULL) {
		s->uid = pw->pw_uid;
		s->gid = pw->pw_gid;
		s->n_groups = SPAWN_GROUPS;
		if (getgrouplist(c->user, pw->pw_gid, s->groups, &s->n_groups) < 0) {
			snprintf(why, why_len, "user %s is in more than %d groups; use another user",
				 c->user, SPAWN_GROUPS);
			return -E2BIG;
		}
	}
	return 0;
}

void spawn_deinit(struct spawn *s)
{
	if (s->model_fd >= 0)
		close(s->model_fd);
	for (unsigned i = 0; i < LINKS; i++)
		if (s->link_model_fd[i] >= 0)
			close(s->link_model_fd[i]);
	for (unsigned i = 0; i < SPAWN_CHILDREN; i++) {
		if (!s->children[i].pid)
			continue;
		close(s->children[i].error_fd);
		if (s->children[i].pidfd >= 0)
			close(s->children[i].pidfd);
	}
}

/* In the child, after fork: only calls that are safe there, and no way back. */
static void __attribute__((noreturn))
become_executor(const struct spawn *s, const int fds[SPAWN_FDS], int model, int error_fd,
		pid_t launcher)
{
	static const int places[SPAWN_FDS] = { EXEC_FD_BROKER, EXEC_FD_EXECUTOR, EXEC_FD_JOURNAL,
					       EXEC_FD_DOORBELL };
	int high[SPAWN_FDS], high_model = -1, err, high_error = fcntl(error_fd, F_DUPFD_CLOEXEC, ABOVE);
	sigset_t none;

	if (high_error < 0)
		_exit(127);
	for (unsigned i = 0; i < SPAWN_FDS; i++)
		if ((high[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, ABOVE)) < 0)
			goto failed;
	if (model >= 0 && (high_model = fcntl(model, F_DUPFD_CLOEXEC, ABOVE)) < 0)
		goto failed;
	for (unsigned i = 0; i < SPAWN_FDS; i++)
		if (dup2(high[i], places[i]) < 0)
			goto failed;
	close(EXEC_FD_MODEL);
	if (high_model >= 0 && dup2(high_model, EXEC_FD_MODEL) < 0)
		goto failed;
	/* All of ours are close-on-exec; this is for what we inherited. Kernels before 5.11: no. */
	syscall(NR_close_range, EXEC_FD_MODEL + 1, ~0u, CLOSE_RANGE_CLOEXEC_);

	setsid(); /* a terminal's ^C is for the launcher, who lets requests finish */
	for (int i = 1; i < NSIG; i++)
		signal(i, SIG_DFL);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (s->uid && (setgroups((size_t)s->n_groups, s->groups) ||
		       setresgid(s->gid, s->gid, s->gid) || setresuid(s->uid, s->uid, s->uid)))
		goto failed;
	/* After the change of user, which clears it. Lost if the launcher has died before. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != launcher)
		_exit(127);
	execv(s->argv[0], s->argv);
failed:
	err = errno;
	while (write(high_error, &err, sizeof(err)) < 0 && errno == EINTR)
		;
	_exit(127);
}

static struct spawn_child *find(struct spawn *s, unsigned link)
{
	for (unsigned i = 0; i < SPAWN_CHILDREN; i++)
		if (s->children[i].pid && s->children[i].serving && s->children[i].link == link)
			return &s->children[i];
	return NULL;
}

static struct spawn_child *find_free(struct spawn *s)
{
	for (unsigned i = 0; i < SPAWN_CHILDREN; i++)
		if (!s->children[i].pid)
			return &s->children[i];
	return NULL;
}

static void kill_child(struct spawn_child *ch)
{
	if (ch->pidfd < 0 || syscall(NR_pidfd_send_signal, ch->pidfd, SIGKILL, NULL, 0))
		kill(ch->pid, SIGKILL); /* not reaped yet, so the number is still its own */
}

int spawn_start(struct spawn *s, unsigned link, uint32_t generation, const char *model,
		const int fds[SPAWN_FDS], char *why, size_t why_len)
{
	struct spawn_child *ch = find(s, link);
	pid_t launcher = getpid();
	int error[2], fd, err;

	if (ch) {
		kill_child(ch);
		ch->serving = false;
	}
	if (!s->argv[0]) {
		snprintf(why, why_len, "no executor is configured; set executor");
		return -ENOENT;
	}
	ch = find_free(s);
	if (!ch) {
		snprintf(why, why_len, "%u executors were killed and none ends: a driver holds them; see "
			 "the kernel's log", SPAWN_CHILDREN);
		return -EBUSY;
	}
	if (*model) {
		fd = open_below(s->model_dir, model, why, why_len);
		if (fd < 0)
			return fd;
		if (s->link_model_fd[link] >= 0)
			close(s->link_model_fd[link]);
		s->link_model_fd[link] = fd;
	}
	fd = s->link_model_fd[link] >= 0 ? s->link_model_fd[link] : s->model_fd;
	if (fd >= 0)
		lseek(fd, 0, SEEK_SET); /* the last executor read through the same description */
	if (pipe2(error, O_CLOEXEC | O_NONBLOCK)) {
		err = -errno;
		snprintf(why, why_len, "no pipe: %s; raise the limit of open files", strerror(-err));
		return err;
	}
	ch->pid = fork();
	if (ch->pid == 0)
		become_executor(s, fds, fd, error[1], launcher);
	err = -errno;
	close(error[1]);
	if (ch->pid < 0) {
		ch->pid = 0;
		close(error[0]);
		snprintf(why, why_len, "fork failed: %s; raise the limit of processes or memory",
			 strerror(-err));
		return err;
	}
	ch->pidfd = (int)syscall(NR_pidfd_open, ch->pid, 0);
	ch->error_fd = error[0];
	ch->link = link;
	ch->generation = generation;
	ch->serving = true;
	ch->orphan = false;
	return 0;
}

/* ---- end ----------------------------------------------------------------------------------- */

void spawn_kill(struct spawn *s, unsigned link, uint32_t generation)
{
	struct spawn_child *ch = find(s, link);

	if (ch && (!generation || ch->generation == generation))
		kill_child(ch);
}

void spawn_serve(struct spawn *s, unsigned link)
{
	s->served = link;
}

void spawn_orphan(struct spawn *s)
{
	int fd = s->link_model_fd[s->served];

	s->link_model_fd[s->served] = -1;
	for (unsigned i = 0; i < LINKS; i++) {
		if (s->link_model_fd[i] >= 0)
			close(s->link_model_fd[i]);
		s->link_model_fd[i] = -1;
	}
	s->link_model_fd[0] = fd;
	s->served = 0;
	for (unsigned i = 0; i < SPAWN_CHILDREN; i++) {
		struct spawn_child *ch = &s->children[i];

		if (!ch->pid)
			continue;
		kill_child(ch);
		ch->serving = false;
		ch->orphan = true;
	}
}

bool spawn_reaped(struct spawn *s, pid_t pid, int *status, struct spawn_child *child)
{
	for (unsigned i = 0; i < SPAWN_CHILDREN; i++) {
		struct spawn_child *ch = &s->children[i];
		int err;

		if (ch->pid != pid)
			continue;
		if (read(ch->error_fd, &err, sizeof(err)) == sizeof(err) && err > 0)
			*status = -err;
		close(ch->error_fd);
		if (ch->pidfd >= 0)
			close(ch->pidfd);
		*child = *ch;
		memset(ch, 0, sizeof(*ch));
		return true;
	}
	return false;
}

unsigned spawn_alive(const struct spawn *s)
{
	unsigned n = 0;

	for (unsigned i = 0; i < SPAWN_CHILDREN; i++)
		n += s->children[i].pid != 0;
	return n;
}

/* SPDX-License-Identifier: MIT */
/*
 * Files that appear whole or not at all. The bytes go into a file that has no name yet, so a
 * process that dies, by any signal, leaves nothing behind: the system frees what nobody can find.
 * When everything is there it is made durable first, then linked; a rename is one step for
 * everybody who looks.
 *
 * Where a file without a name cannot be (some network and stacked file systems, or no /proc to link
 * it by) it has a hidden one beside the target: `.NAME.` and sixteen digits. The target is as safe,
 * but who is killed leaves that file. Replacing an existing file takes a hidden name also, between
 * the last two system calls, because linking does not replace.
 */
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include "mapped.h"

#define BUFFER	  (1u << 20)
/* After so many bytes the disk begins to write, so that it does not all wait for the commit. */
#define WRITEBACK (32u << 20)

struct output {
	int dir, fd;
	char *path;   /* for sentences */
	char *name;   /* the target's, in dir */
	char *hidden; /* in dir; NULL while the file has no name */
	bool replace;
	int err; /* of the first step that failed: no later one may succeed */
	mode_t mode;
	uint64_t written,
		started; /* bytes that the system has; of these, on their way to the disk */
	uint64_t reserved;
	size_t n_buffer;
	uint8_t *buffer;
};

static int failed(struct output *o, int err, const char *what, char *why, size_t why_len)
{
	o->err = err;
	if (err == -ENOSPC || err == -EDQUOT)
		return fail(why, why_len, err,
			    "%s: %s after %llu bytes: %s; nothing was left behind", o->path, what,
			    (unsigned long long)o->written, strerror(-err));
	return fail(why, why_len, err, "%s: %s: %s", o->path, what, strerror(-err));
}

/* A hidden name nobody else has; the caller tries again on -EEXIST. */
static char *hidden_name(const char *name)
{
	unsigned char random[8];
	char *s = malloc(strlen(name) + 19);

	if (!s || getrandom(random, sizeof(random), 0) != sizeof(random)) {
		free(s);
		return NULL;
	}
	/* A long name must stay one that the file system takes: 255 bytes with ours around it. */
	sprintf(s, ".%.220s.%02x%02x%02x%02x%02x%02x%02x%02x", name, random[0], random[1],
		random[2], random[3], random[4], random[5], random[6], random[7]);
	return s;
}

/* A file without a name, or with a hidden one. */
static int open_new(struct output *o)
{
	char proc[32];

	o->fd = openat(o->dir, ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
	if (o->fd >= 0) {
		snprintf(proc, sizeof(proc), "/proc/self/fd/%d", o->fd);
		if (!access(proc, F_OK))
			return 0;
		close(o->fd);
		o->fd = -1;
	} else if (errno != EOPNOTSUPP && errno != EISDIR && errno != ENOENT && errno != EINVAL) {
		return -errno;
	}
	for (int i = 0; i < 8; i++) {
		char *hidden = hidden_name(o->name);

		if (!hidden)
			return -ENOMEM;
		o->fd = openat(o->dir, hidden, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0666);
		if (o->fd >= 0) {
			o->hidden = hidden;
			return 0;
		}
		free(hidden);
		if (errno != EEXIST)
			return -errno;
	}
	return -EEXIST;
}

/* Splits path into the folder, opened, and the name in it. */
static int open_dir(struct output *o, const char *path)
{
	const char *slash = strrchr(path, '/');
	const char *name = slash ? slash + 1 : path;
	char *folder;

	if (!*name || !strcmp(name, ".") || !strcmp(name, ".."))
		return -EISDIR;
	o->path = strdup(path);
	o->name = strdup(name);
	folder = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
	if (o->path && o->name && folder)
		o->dir = open(folder, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	else
		errno = ENOMEM;
	free(folder);
	return o->dir < 0 ? -errno : 0;
}

int output_new(const char *path, bool replace, struct output **out, char *why, size_t why_len)
{
	struct output *o = calloc(1, sizeof(*o));
	struct stat st;
	int err;

	if (!o)
		return fail(why, why_len, -ENOMEM, "%s: no memory", path);
	o->dir = o->fd = -1;
	o->replace = replace;
	err = open_dir(o, path);
	if (err == -EISDIR)
		fail(why, why_len, err, "%s: names a folder; give the file's name", path);
	else if (err)
		fail(why, why_len, err, "%s: its folder cannot be opened: %s", path,
		     strerror(-err));
	if (err)
		goto out;
	if (!fstatat(o->dir, o->name, &st, AT_SYMLINK_NOFOLLOW)) {
		if (S_ISDIR(st.st_mode))
			err = fail(why, why_len, -EISDIR, "%s: is a folder; give the file's name",
				   path);
		else if (!S_ISREG(st.st_mode) && !S_ISLNK(st.st_mode))
			err = fail(why, why_len, -EINVAL,
				   "%s: is not a regular file; give another name", path);
		else if (!replace)
			err = fail(why, why_len, -EEXIST,
				   "%s: exists already; remove it or choose another "
				   "name",
				   path);
		if (err)
			goto out;
		/* Who had made it private finds it private. */
		if (S_ISREG(st.st_mode))
			o->mode = st.st_mode & 0777;
	}
	o->buffer = malloc(BUFFER);
	err = o->buffer ? open_new(o) : -ENOMEM;
	if (err)
		fail(why, why_len, err, "%s: cannot be written: %s", path, strerror(-err));
out:
	if (err)
		output_free(o);
	else
		*out = o;
	return err;
}

struct output *output_free(struct output *o)
{
	if (!o)
		return NULL;
	if (o->hidden)
		unlinkat(o->dir, o->hidden, 0);
	if (o->fd >= 0)
		close(o->fd);
	if (o->dir >= 0)
		close(o->dir);
	free(o->path);
	free(o->name);
	free(o->hidden);
	free(o->buffer);
	free(o);
	return NULL;
}

static int write_all(int fd, uint64_t offset, const uint8_t *p, size_t len)
{
	while (len) {
		ssize_t n = pwrite(fd, p, len, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		p += n;
		offset += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

static int append(struct output *o, const void *data, size_t len, char *why, size_t why_len)
{
	int err = write_all(o->fd, o->written, data, len);

	if (err)
		return failed(o, err, "writing stopped", why, why_len);
	o->written += len;
	if (o->written - o->started >= WRITEBACK) {
		/* Only a hint, so its answer does not matter. */
		sync_file_range(o->fd, (off_t)o->started, (off_t)(o->written - o->started),
				SYNC_FILE_RANGE_WRITE);
		o->started = o->written;
	}
	return 0;
}

static int flush(struct output *o, char *why, size_t why_len)
{
	size_t n = o->n_buffer;

	o->n_buffer = 0;
	return n ? append(o, o->buffer, n, why, why_len) : 0;
}

static int again(const struct output *o, char *why, size_t why_len)
{
	return fail(why, why_len, o->err, "%s: an earlier step failed: %s", o->path,
		    strerror(-o->err));
}

int output_write(struct output *o, const void *data, size_t len, char *why, size_t why_len)
{
	int err;

	if (o->err)
		return again(o, why, why_len);
	if (len > BUFFER - o->n_buffer) {
		err = flush(o, why, why_len);
		if (err)
			return err;
	}
	if (len >= BUFFER)
		return append(o, data, len, why, why_len);
	memcpy(o->buffer + o->n_buffer, data, len);
	o->n_buffer += len;
	return 0;
}

uint64_t output_bytes(const struct output *o)
{
	return o->written + o->n_buffer;
}

int output_write_at(struct output *o, uint64_t offset, const void *data, size_t len, char *why,
		    size_t why_len)
{
	int err;

	if (o->err)
		return again(o, why, why_len);
	err = flush(o, why, why_len);
	if (err)
		return err;
	err = write_all(o->fd, offset, data, len);
	return err ? failed(o, err, "writing stopped", why, why_len) : 0;
}

int output_reserve(struct output *o, uint64_t bytes, char *why, size_t why_len)
{
	int err;

	if (o->err)
		return again(o, why, why_len);
	if (bytes > INT64_MAX)
		return failed(o, -EFBIG, "no file can be that large", why, why_len);
	do {
		err = fallocate(o->fd, FALLOC_FL_KEEP_SIZE, 0, (off_t)bytes) ? -errno : 0;
	} while (err == -EINTR);
	if (err == -EOPNOTSUPP || err == -ENOSYS || err == -EINVAL)
		return 0;
	if (err) {
		o->err = err;
		return fail(why, why_len, err,
			    "%s: there is no room for %llu bytes: %s; free some or write "
			    "elsewhere",
			    o->path, (unsigned long long)bytes, strerror(-err));
	}
	o->reserved = bytes;
	return 0;
}

/* Gives the nameless file the name; -EEXIST when there is one. */
static int link_as(struct output *o, const char *name)
{
	char proc[32];

	snprintf(proc, sizeof(proc), "/proc/self/fd/%d", o->fd);
	return linkat(AT_FDCWD, proc, o->dir, name, AT_SYMLINK_FOLLOW) ? -errno : 0;
}

static int give_name(struct output *o)
{
	int err = 0;

	if (!o->hidden && !o->replace)
		return link_as(o, o->name);
	for (int i = 0; !o->hidden && i < 8; i++) {
		char *hidden = hidden_name(o->name);

		if (!hidden)
			return -ENOMEM;
		err = link_as(o, hidden);
		if (!err)
			o->hidden = hidden;
		else
			free(hidden);
		if (err && err != -EEXIST)
			return err;
	}
	if (!o->hidden)
		return err;
	if (o->replace) {
		if (renameat(o->dir, o->hidden, o->dir, o->name))
			return -errno;
		free(o->hidden);
		o->hidden = NULL;
		return 0;
	}
	/* The hidden name stays until output_free(), which takes it away. */
	return linkat(o->dir, o->hidden, o->dir, o->name, 0) ? -errno : 0;
}

int output_commit(struct output *o, char *why, size_t why_len)
{
	struct stat st;
	int err;

	if (o->err)
		return again(o, why, why_len);
	err = flush(o, why, why_len);
	if (err)
		return err;
	/* More was reserved than was written: the rest goes back. */
	if (!fstat(o->fd, &st) && o->reserved > (uint64_t)st.st_size &&
	    ftruncate(o->fd, st.st_size))
		return failed(o, -errno, "cannot be cut to its size", why, why_len);
	if (o->mode && fchmod(o->fd, o->mode))
		return failed(o, -errno, "cannot be given the mode of what it replaces", why,
			      why_len);
	if (fsync(o->fd))
		return failed(o, -errno, "cannot be made durable", why, why_len);
	err = give_name(o);
	if (err == -EEXIST) {
		o->err = err;
		return fail(why, why_len, err,
			    "%s: has come to exist meanwhile; remove it or choose another "
			    "name",
			    o->path);
	}
	if (err)
		return failed(o, err, "cannot be given its name", why, why_len);
	/* No later commit: the file is there. */
	o->err = -EALREADY;
	if (fsync(o->dir) && errno != EINVAL)
		return fail(why, why_len, -errno,
			    "%s: was written, but its folder cannot be made durable: %s", o->path,
			    strerror(errno));
	return 0;
}

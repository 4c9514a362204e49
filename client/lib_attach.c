/* SPDX-License-Identifier: MIT */
/*
 * The handshake, seen from the client. The daemon is more privileged than we are, so it is not an
 * attacker; but it may be another version, or something else may listen on that path. Nothing it
 * says is used before it was checked, and a welcome that does not hold is an error, never a fault
 * later: offsets must lie in their region, regions must be as long as told, pieces must not overlap.
 *
 * Five system calls and the maps: socket, connect, send, recvmsg, one fstat and mmap a region.
 */
#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "lib_attach.h"
#include "lib_text.h"

#define FDS_MAX 4 /* CLIENT, DAEMON, doorbell, stats */

int lib_attach_begin(const char *path, const struct onebit_hello *hello, struct onebit_error *err)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	size_t len = strlen(path);
	int fd, r;

	assert(len < sizeof(addr.sun_path)); /* onebit_open() has refused longer ones */
	memcpy(addr.sun_path, path, len + 1);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return lib_error_local(err, -errno, false, "no socket could be made: %s",
				       strerror(errno));
	if (connect(fd, (const struct sockaddr *)&addr, sizeof(addr)) < 0) {
		r = -errno;
		if (r == -ENOENT || r == -ECONNREFUSED)
			lib_error_local(err, r, true, "no daemon listens on %.40s; start onebitd or set ONEBIT_SOCKET",
					path);
		else if (r == -EACCES || r == -EPERM)
			lib_error_local(err, r, false, "no access to %.40s; ask for membership in its group", path);
		else
			lib_error_local(err, r, r == -EAGAIN, "cannot connect to %.40s: %s", path,
					strerror(-r));
		goto out;
	}
	if (send(fd, hello, sizeof(*hello), MSG_NOSIGNAL) != (ssize_t)sizeof(*hello)) {
		r = lib_error_local(err, -ECONNRESET, true, "the daemon hung up before the hello; retry");
		goto out;
	}
	return fd;
out:
	close(fd);
	return r;
}

struct piece {
	uint32_t off;
	uint64_t len;
	uint32_t align;
};

static bool pieces_fit(const struct piece *p, size_t n, uint64_t region)
{
	for (size_t i = 0; i < n; i++) {
		if (p[i].off % p[i].align || p[i].off + p[i].len > region)
			return false;
		for (size_t k = 0; k < i; k++)
			if (p[i].off < p[k].off + p[k].len && p[k].off < p[i].off + p[i].len)
				return false;
	}
	return true;
}

static bool entries_ok(uint32_t entries, uint32_t max)
{
	return entries && entries <= max && !(entries & (entries - 1));
}

static bool area_ok(uint32_t bytes)
{
	return bytes >= ONEBIT_AREA_MIN && bytes <= ONEBIT_AREA_MAX;
}

/* NULL, or what is wrong with it. */
static const char *welcome_fault(const struct onebit_welcome *w, const struct onebit_hello *h)
{
	const struct piece client[] = {
		{ w->cq_head_off, 4, 4 },
		{ w->wake_off, sizeof(struct onebit_wake), 4 },
		{ w->sqes_off, (uint64_t)w->sq_entries * sizeof(struct onebit_sqe), 64 },
		{ w->arena_off, w->arena_bytes, 64 },
	};
	const struct piece daemon[] = {
		{ w->sq_head_off, 4, 4 },
		{ w->state_off, sizeof(struct onebit_state), 8 },
		{ w->futex_off, 4, 4 },
		{ w->cqes_off, (uint64_t)w->cq_entries * sizeof(struct onebit_cqe), 32 },
		{ w->out_off, w->out_bytes, 64 },
	};

	if (w->magic != ONEBIT_MAGIC || w->size != sizeof(*w))
		return "magic or size";
	if (w->abi_major != ONEBIT_ABI_MAJOR || w->abi_minor > h->abi_minor)
		return "version";
	if ((w->features & ~h->features_wanted) || (h->features_required & ~w->features))
		return "features";
	if (!entries_ok(w->sq_entries, ONEBIT_SQ_ENTRIES_MAX) ||
	    !entries_ok(w->cq_entries, ONEBIT_CQ_ENTRIES_MAX) || w->cq_entries < 2 * w->sq_entries)
		return "entries";
	if (!area_ok(w->arena_bytes) || !area_ok(w->out_bytes))
		return "areas";
	if (!pieces_fit(client, sizeof(client) / sizeof(client[0]), w->client_bytes))
		return "CLIENT offsets";
	if (!pieces_fit(daemon, sizeof(daemon) / sizeof(daemon[0]), w->daemon_bytes))
		return "DAEMON offsets";
	if ((w->features & ONEBIT_FEAT_STATS) && w->stats_bytes < sizeof(struct onebit_stats))
		return "stats page";
	if (w->reserved0 || w->reserved1)
		return "reserved field";
	for (size_t i = 0; i < sizeof(w->reserved) / sizeof(w->reserved[0]); i++)
		if (w->reserved[i])
			return "reserved field";
	return NULL;
}

/* Map what fd holds if it is as long as told: beyond its end a load would be a SIGBUS. */
static void *region_map(int fd, uint32_t bytes, int prot)
{
	struct stat st;
	void *at;

	if (fstat(fd, &st) < 0 || st.st_size < (off_t)bytes)
		return NULL;
	at = mmap(NULL, bytes, prot, MAP_SHARED, fd, 0);
	return at == MAP_FAILED ? NULL : at;
}

static size_t fds_take(const struct msghdr *mh, int fds[FDS_MAX])
{
	size_t n = 0;

	for (struct cmsghdr *c = CMSG_FIRSTHDR(mh); c; c = CMSG_NXTHDR((struct msghdr *)mh, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		/* The control buffer has room for FDS_MAX and no more. */
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(c), n * sizeof(int));
	}
	return n;
}

int lib_attach_finish(int fd, const struct onebit_hello *hello, struct lib_link *l,
		      struct onebit_error *err)
{
	union {
		char buf[CMSG_SPACE(FDS_MAX * sizeof(int))];
		struct cmsghdr align;
	} control;
	struct onebit_welcome w;
	struct iovec iov = { .iov_base = &w, .iov_len = sizeof(w) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf,
			     .msg_controllen = sizeof(control.buf) };
	struct lib_link fresh = LIB_LINK_NONE;
	int fds[FDS_MAX];
	size_t n, want;
	const char *fault;
	ssize_t got;
	int r;

	do {
		got = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (got < 0 && errno == EINTR);
	if (got < 0 && errno == EAGAIN)
		return -EAGAIN;
	if (got <= 0)
		return lib_error_local(err, -ECONNRESET, true,
				       "the daemon hung up without an answer to the hello; retry");
	n = fds_take(&mh, fds);
	r = -EPROTO;
	if (got != (ssize_t)sizeof(w) || (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		lib_error_local(err, r, false, "the welcome has %zd bytes instead of %zu; use a matching libonebit",
				got, sizeof(w));
		goto out;
	}
	if (w.error.code) {
		*err = w.error;
		err->text[sizeof(err->text) - 1] = 0;
		r = err->err < 0 ? err->err : -EPROTO;
		goto out;
	}
	fault = welcome_fault(&w, hello);
	want = 3 + ((w.features & ONEBIT_FEAT_STATS) != 0);
	if (!fault && n != want)
		fault = "number of descriptors";
	if (fault) {
		lib_error_local(err, r, false, "the daemon's welcome is broken (%s); use a matching libonebit",
				fault);
		goto out;
	}
	fresh.welcome = w;
	fresh.client = region_map(fds[0], w.client_bytes, PROT_READ | PROT_WRITE);
	if (fresh.client)
		fresh.daemon = region_map(fds[1], w.daemon_bytes, PROT_READ);
	if (fresh.daemon && want > 3)
		fresh.stats = region_map(fds[3], w.stats_bytes, PROT_READ);
	if (!fresh.client || !fresh.daemon || (want > 3 && !fresh.stats)) {
		lib_link_close(&fresh);
		lib_error_local(err, r, false, "a region of the welcome cannot be mapped or is too short; see the daemon's log");
		goto out;
	}
	fresh.fd = fd;
	fresh.doorbell = fds[2];
	fds[2] = -1;
	*l = fresh;
	r = 0;
out:
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	return r;
}

void lib_link_close(struct lib_link *l)
{
	if (l->client)
		munmap(l->client, l->welcome.client_bytes);
	if (l->daemon)
		munmap((void *)l->daemon, l->welcome.daemon_bytes);
	if (l->stats)
		munmap((void *)l->stats, l->welcome.stats_bytes);
	if (l->doorbell >= 0)
		close(l->doorbell);
	if (l->fd >= 0)
		close(l->fd);
	l->client = NULL;
	l->daemon = NULL;
	l->stats = NULL;
	l->doorbell = l->fd = -1;
}

int lib_link_check(struct lib_link *l, struct onebit_error *goodbye)
{
	struct onebit_msg m;
	ssize_t got;

	for (;;) {
		got = recv(l->fd, &m, sizeof(m), MSG_DONTWAIT);
		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && errno == EAGAIN)
			return 0;
		if (got <= 0)
			return -ECONNRESET;
		if (got == (ssize_t)sizeof(m) && m.type == ONEBIT_MSG_GOODBYE && m.error.code) {
			*goodbye = m.error;
			goodbye->text[sizeof(goodbye->text) - 1] = 0;
			return -ECONNRESET;
		}
	}
}

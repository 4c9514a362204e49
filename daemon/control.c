/* SPDX-License-Identifier: MIT */
/* The messages of launch.h: checked as they come in, descriptors included. */
#include "control.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void control_close_fds(struct control_msg *m)
{
	for (unsigned i = 0; i < SPAWN_FDS; i++)
		if (m->fds[i] >= 0)
			close(m->fds[i]);
}

static int check(const struct launch_msg *m, unsigned n_fds)
{
	switch (m->type) {
	case LAUNCH_START:
		return m->link < LINKS && n_fds == SPAWN_FDS &&
		       memchr(m->model, 0, sizeof(m->model)) ? 0 : -EPROTO;
	case LAUNCH_KILL:
	case LAUNCH_SERVE:
		return m->link < LINKS && n_fds == 0 ? 0 : -EPROTO;
	case LAUNCH_RELOAD:
		return n_fds == 0 ? 0 : -EPROTO;
	default:
		return -EPROTO;
	}
}

int control_receive(int fd, struct control_msg *m)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(SPAWN_FDS * sizeof(int))];
	} control;
	struct iovec iov = { &m->msg, sizeof(m->msg) };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
			     .msg_controllen = sizeof(control) };
	struct cmsghdr *c;
	unsigned n_fds = 0;
	ssize_t n;

	do
		n = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN ? -EAGAIN : -EPIPE;
	for (unsigned i = 0; i < SPAWN_FDS; i++)
		m->fds[i] = -1;
	c = CMSG_FIRSTHDR(&mh);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
		n_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		memcpy(m->fds, CMSG_DATA(c), n_fds * sizeof(int));
	}
	if (n == 0)
		return -EPIPE;
	if (n != sizeof(m->msg) || (mh.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || check(&m->msg, n_fds)) {
		control_close_fds(m);
		return -EPROTO;
	}
	return 0;
}

static int send_bytes(int fd, const void *data, size_t len)
{
	ssize_t n;

	do
		n = send(fd, data, len, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n == (ssize_t)len ? 0 : -errno;
}

int control_send(int fd, uint32_t type, uint32_t link, uint32_t generation, int32_t status)
{
	struct launch_msg m = { .type = type, .link = link, .generation = generation,
				.status = status };

	return send_bytes(fd, &m, sizeof(m));
}

int control_send_policy(int fd, const struct policy *policy, const char *text)
{
	static struct { /* too large for a stack, and there is one launcher */
		struct launch_msg msg;
		struct launch_policy policy;
	} m;
	_Static_assert(offsetof(__typeof__(m), policy) == sizeof(struct launch_msg), "one after another");

	memset(&m, 0, sizeof(m));
	m.msg.type = LAUNCH_POLICY;
	m.policy.policy = *policy;
	snprintf(m.policy.text, sizeof(m.policy.text), "%s", text);
	return send_bytes(fd, &m, sizeof(m));
}

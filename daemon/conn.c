/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include "conn.h"
#include "log.h"
#include "say.h"
#include "sys.h"

#define CONN_REFUSE_MAX 16 /* connections refused in one go when descriptors are short */

/* ---- memory of one client -------------------------------------------------------------------- */

static void conn_clear(struct conn *k)
{
	memset(k, 0, sizeof(*k));
	k->sock = k->bell = k->client.fd = k->daemon.fd = -1;
}

static void conn_unmake(struct conn *k)
{
	region_free(&k->client);
	region_free(&k->daemon);
	if (k->bell >= 0)
		close(k->bell);
	conn_clear(k);
}

/* Regions and doorbell. Only the ring's part is populated: an arena costs memory when it is used. */
static int conn_make(struct conn *k, const struct attach *a, uint32_t owner)
{
	int err;

	conn_clear(k);
	err = region_make(&k->client, "onebit-client", a->client_bytes, a->ring_client_bytes,
			  REGION_PEER, owner);
	if (!err)
		err = region_make(&k->daemon, "onebit-daemon", a->daemon_bytes,
				  a->ring_daemon_bytes, REGION_OURS, owner);
	if (!err) {
		k->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		err = k->bell < 0 ? -errno : 0;
	}
	if (err)
		conn_unmake(k);
	return err;
}

/* ---- what is said on a socket ---------------------------------------------------------------- */

static void goodbye(int sock, const struct onebit_error *why)
{
	struct onebit_msg m = { .type = ONEBIT_MSG_GOODBYE, .size = sizeof(m), .error = *why };

	say(sock, &m, sizeof(m), NULL, 0);
	/* Closing alone may tell it late: a watch in the kernel can hold the socket a while longer. */
	shutdown(sock, SHUT_RDWR);
}

/* Answer no, and close. */
static void refuse(int sock, const struct onebit_error *why)
{
	struct onebit_welcome w;
	char rest[8];

	/* An unread hello would turn our answer into a connection reset. */
	while (recv(sock, rest, sizeof(rest), MSG_DONTWAIT) > 0)
		;
	memset(&w, 0, sizeof(w));
	w.error = *why;
	say(sock, &w, sizeof(w), NULL, 0);
	close(sock);
}

static void refuse_code(int sock, enum onebit_code code, uint64_t detail, uint32_t retry_ms)
{
	struct onebit_error why;

	error_fill(&why, code, detail, retry_ms);
	refuse(sock, &why);
}

/* ---- a client goes --------------------------------------------------------------------------- */

static void conn_unwatch(struct conns *c, uint32_t client)
{
	loop_remove(c->loop, LOOP_SOCKET, client);
	loop_remove(c->loop, LOOP_BELL, client);
}

static void conn_drop(struct conns *c, uint32_t client)
{
	struct conn *k = &c->conn[client];

	conn_unwatch(c, client);
	close(k->sock);
	conn_unmake(k);
}

void conns_close(struct conns *c, uint32_t client, const struct onebit_error *why)
{
	struct conn *k = &c->conn[client];

	if (client >= c->max || k->sock < 0)
		return;
	goodbye(k->sock, why);
	conn_drop(c, client);
}

void conns_evict(struct conns *c, uint32_t client, uint64_t reason, const char *what)
{
	struct onebit_error why;

	if (client >= c->max || c->conn[client].sock < 0)
		return;
	log_line(BROKER_WARN, "event=evict client=%u reason=\"%s\"", client, what);
	error_fill(&why, ONEBIT_E_EVICTED, reason, 0);
	broker_detach(c->broker, client);
	conns_close(c, client, &why);
}

static void client_event(struct conns *c, uint32_t client, int32_t res)
{
	char byte;
	ssize_t n;

	if (client >= c->max || c->conn[client].sock < 0)
		return;
	if (res < 0) {
		conns_evict(c, client, (uint64_t)-(int64_t)res, "its socket cannot be watched");
		return;
	}
	if (!(res & (POLLHUP | POLLRDHUP | POLLERR))) {
		n = recv(c->conn[client].sock, &byte, 1, MSG_DONTWAIT);
		if (n > 0)
			conns_evict(c, client, EPROTO, "it sent something after its hello");
		if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
			return;
	}
	log_line(BROKER_DEBUG, "event=gone client=%u", client);
	broker_detach(c->broker, client);
	conn_drop(c, client);
}

/* ---- a client comes -------------------------------------------------------------------------- */

/* From the pool when the geometry is the usual one. */
static int conn_take(struct conns *c, struct conn *k, const struct attach *a, uint32_t client)
{
	if (c->n_pool && c->pool[0].client.bytes == a->client_bytes &&
	    c->pool[0].daemon.bytes == a->daemon_bytes) {
		*k = c->pool[--c->n_pool];
		conn_clear(&c->pool[c->n_pool]);
		region_own(&k->client, client);
		region_own(&k->daemon, client);
		return 0;
	}
	return conn_make(k, a, client);
}

static int conn_watch(struct conns *c, uint32_t client, int sock)
{
	int err = loop_add(c->loop, LOOP_SOCKET, client, sock);

	if (!err)
		err = loop_add(c->loop, LOOP_BELL, client, c->conn[client].bell);
	if (err)
		conn_unwatch(c, client);
	return err;
}

/* Watched before it is told of: its first ring may come before we are back from sending. */
static int conn_welcome(struct conns *c, uint32_t client, int sock, uint64_t features)
{
	struct conn *k = &c->conn[client];
	const int fds[4] = { k->client.fd, k->daemon.fd, k->bell, c->stats_fd };
	struct onebit_welcome w;
	int err = conn_watch(c, client, sock);

	if (err)
		return err;
	broker_attach(c->broker, client, k->client.base, k->daemon.base, &w);
	/* Refused when too many descriptors are on their way, to clients that do not take theirs. */
	err = say(sock, &w, sizeof(w), fds, features & ONEBIT_FEAT_STATS ? 4 : 3);
	if (err) {
		conn_unwatch(c, client);
		return err;
	}
	k->sock = sock;
	region_sent(&k->client);
	region_sent(&k->daemon);
	return 0;
}

/* The hello is here. sock is ours to keep or to close. */
static void attach(struct conns *c, int sock, uint32_t uid, const void *msg, size_t len)
{
	struct onebit_error why;
	struct attach a;
	uint64_t features;
	uint32_t client;
	int err;

	if (attach_parse(msg, len, &a, &why) ||
	    broker_admit(c->broker, uid, &a, &client, &features, &why)) {
		log_line(BROKER_INFO, "event=refused uid=%u code=%s detail=%llu", uid,
			 error_name(why.code), (unsigned long long)why.detail);
		refuse(sock, &why);
		return;
	}
	err = conn_take(c, &c->conn[client], &a, client);
	if (!err)
		err = conn_welcome(c, client, sock, features);
	if (err) {
		broker_detach(c->broker, client);
		conn_unmake(&c->conn[client]);
		log_line(BROKER_WARN, "event=refused uid=%u code=NO_MEMORY bytes=%u error=\"%s\"", uid,
			 a.client_bytes + a.daemon_bytes, strerror(-err));
		refuse_code(sock, ONEBIT_E_NO_MEMORY, a.client_bytes + a.daemon_bytes, 1000);
		return;
	}
	log_line(BROKER_DEBUG, "event=attached client=%u uid=%u bytes=%u", client, uid,
		 a.client_bytes + a.daemon_bytes);
}

/* true: the connection was answered or closed; false: its hello is not here yet. */
static bool hello(struct conns *c, int sock, uint32_t uid)
{
	char msg[sizeof(struct onebit_hello)];
	/* Descriptors sent along vanish: there is no room to receive them in. */
	ssize_t n = recv(sock, msg, sizeof(msg), MSG_DONTWAIT | MSG_TRUNC);

	if (n > 0) {
		attach(c, sock, uid, msg, (size_t)n);
		return true;
	}
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	close(sock);
	return true;
}

static void half_drop(struct conns *c, uint32_t i)
{
	loop_remove(c->loop, LOOP_PENDING, i);
	c->half[i].sock = -1;
	c->n_half--;
}

/* Connected, but silent so far: few of those, and not for long. */
static void half_open(struct conns *c, int sock, uint32_t uid, uint64_t until_ns)
{
	uint32_t i, mine = 0, place = LOOP_PENDING_MAX;

	for (i = 0; i < LOOP_PENDING_MAX; i++) {
		if (c->half[i].sock < 0)
			place = i;
		else if (c->half[i].uid == uid)
			mine++;
	}
	if (mine >= CONN_HALF_PER_UID) {
		refuse_code(sock, ONEBIT_E_Q_CLIENTS, CONN_HALF_PER_UID, CONN_HALF_NS / 1000000);
		return;
	}
	if (place == LOOP_PENDING_MAX) {
		refuse_code(sock, ONEBIT_E_CLIENTS_FULL, LOOP_PENDING_MAX, CONN_HALF_NS / 1000000);
		return;
	}
	if (loop_add(c->loop, LOOP_PENDING, place, sock)) {
		refuse_code(sock, ONEBIT_E_NO_MEMORY, 0, CONN_HALF_NS / 1000000);
		return;
	}
	c->half[place].sock = sock;
	c->half[place].uid = uid;
	c->half[place].until_ns = until_ns;
	c->n_half++;
}

static void half_event(struct conns *c, uint32_t i)
{
	int sock = c->half[i].sock;
	uint32_t uid = c->half[i].uid;
	uint64_t until_ns = c->half[i].until_ns;

	if (sock < 0)
		return;
	/* Out of the way first: attached, the same descriptor is watched as another source. */
	half_drop(c, i);
	if (!hello(c, sock, uid))
		half_open(c, sock, uid, until_ns);
}

static void accepted(struct conns *c, int sock)
{
	struct ucred peer;
	socklen_t len = sizeof(peer);

	c->short_told = false;
	if (getsockopt(sock, SOL_SOCKET, SO_PEERCRED, &peer, &len)) {
		close(sock);
		return;
	}
	if (!hello(c, sock, peer.uid))
		half_open(c, sock, peer.uid, loop_now_ns() + CONN_HALF_NS);
}

/*
 * No descriptor left for another connection, which therefore stays in the backlog and would be
 * reported again at once. Give up the reserve to tell those who wait, and rest.
 */
static void accept_failed(struct conns *c, int err)
{
	int sock;

	if (!c->short_told)
		log_line(BROKER_WARN, "event=accept error=\"%s\" pause_ms=%u; raise LimitNOFILE or "
			 "lower max_clients", strerror(-err), (unsigned)(CONN_PAUSE_NS / 1000000));
	c->short_told = true;
	loop_remove(c->loop, LOOP_LISTEN, 0);
	c->listening = false;
	c->retry_ns = loop_now_ns() + CONN_PAUSE_NS;
	if (c->reserve_fd >= 0)
		close(c->reserve_fd);
	fcntl(c->listen_fd, F_SETFL, fcntl(c->listen_fd, F_GETFL) | O_NONBLOCK);
	for (int i = 0; i < CONN_REFUSE_MAX; i++) {
		sock = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (sock < 0)
			break;
		refuse_code(sock, ONEBIT_E_NO_MEMORY, 0, CONN_PAUSE_NS / 1000000);
	}
	c->reserve_fd = eventfd(0, EFD_CLOEXEC);
}

void conns_event(struct conns *c, const struct loop_event *ev)
{
	if (ev->source == LOOP_SOCKET)
		client_event(c, ev->id, ev->res);
	else if (ev->source == LOOP_PENDING)
		half_event(c, ev->id);
	else if (ev->res < 0)
		accept_failed(c, ev->res);
	else if (c->stopped)
		refuse_code(ev->res, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING, 1000);
	else
		accepted(c, ev->res);
}

/* ---- time ------------------------------------------------------------------------------------ */

uint64_t conns_timer(struct conns *c, uint64_t now_ns)
{
	uint64_t next = UINT64_MAX;

	if (c->retry_ns && now_ns >= c->retry_ns) {
		c->retry_ns = 0;
		if (conns_listen(c))
			c->retry_ns = now_ns + CONN_PAUSE_NS;
	}
	if (c->retry_ns)
		next = c->retry_ns;
	for (uint32_t i = 0; c->n_half && i < LOOP_PENDING_MAX; i++) {
		int sock = c->half[i].sock;

		if (sock < 0)
			continue;
		if (now_ns >= c->half[i].until_ns) {
			half_drop(c, i);
			refuse_code(sock, ONEBIT_E_BAD_HELLO, 0, 0);
		} else if (c->half[i].until_ns < next) {
			next = c->half[i].until_ns;
		}
	}
	return next;
}

static void usual(struct attach *a)
{
	struct onebit_hello h = { .magic = ONEBIT_MAGIC, .size = sizeof(h),
				  .abi_major = ONEBIT_ABI_MAJOR };
	struct onebit_error why;

	attach_parse(&h, sizeof(h), a, &why);
}

bool conns_idle(struct conns *c)
{
	struct attach a;

	if (c->n_pool == CONN_POOL || c->stopped || c->retry_ns)
		return false;
	usual(&a);
	if (conn_make(&c->pool[c->n_pool], &a, REGION_SPARE))
		return false; /* what is short now may be there after the next attachment */
	c->n_pool++;
	return true;
}

/* ---- for the core ---------------------------------------------------------------------------- */

void conns_wake(struct conns *c, uint32_t client, uint32_t need)
{
	struct conn *k = &c->conn[client];
	struct onebit_msg m;

	if (need & ONEBIT_WAKE_FUTEX)
		loop_wake(c->loop, (uint32_t *)((uint8_t *)k->daemon.base + DAEMON_FUTEX));
	if (!(need & ONEBIT_WAKE_NOTIFY))
		return;
	memset(&m, 0, sizeof(m));
	m.type = ONEBIT_MSG_NOTIFY;
	m.size = sizeof(m);
	/* When its queue is full, there is a notification in it already. */
	say(k->sock, &m, sizeof(m), NULL, 0);
}

void conns_mute(struct conns *c, uint32_t client, bool mute)
{
	struct conn *k = &c->conn[client];

	if (mute) {
		loop_remove(c->loop, LOOP_BELL, client);
	} else if (loop_add(c->loop, LOOP_BELL, client, k->bell)) {
		/* It would hang. But the core is in the middle of a turn. */
		k->unheard = true;
		c->any_unheard = true;
	}
}

void conns_sweep(struct conns *c)
{
	if (!c->any_unheard)
		return;
	c->any_unheard = false;
	for (uint32_t i = 0; i < c->max; i++)
		if (c->conn[i].sock >= 0 && c->conn[i].unheard)
			conns_evict(c, i, ENOMEM, "its doorbell cannot be watched");
}

/* ---- all of them ----------------------------------------------------------------------------- */

int conns_init(struct conns *c, struct loop *loop, uint32_t max, int listen_fd, int stats_fd)
{
	memset(c, 0, sizeof(*c));
	c->loop = loop;
	c->max = max;
	c->listen_fd = listen_fd;
	c->stats_fd = stats_fd;
	for (uint32_t i = 0; i < LOOP_PENDING_MAX; i++)
		c->half[i].sock = -1;
	c->reserve_fd = eventfd(0, EFD_CLOEXEC);
	c->conn = calloc(max, sizeof(*c->conn));
	if (c->reserve_fd < 0 || !c->conn)
		return -ENOMEM;
	for (uint32_t i = 0; i < max; i++)
		conn_clear(&c->conn[i]);
	while (conns_idle(c))
		;
	return 0;
}

int conns_listen(struct conns *c)
{
	int err = c->stopped || c->listening ? 0 : loop_add(c->loop, LOOP_LISTEN, 0, c->listen_fd);

	if (!err)
		c->listening = !c->stopped;
	return err;
}

void conns_stop(struct conns *c)
{
	c->stopped = true;
	c->retry_ns = 0;
	if (c->listening)
		loop_remove(c->loop, LOOP_LISTEN, 0);
	c->listening = false;
}

void conns_free(struct conns *c, const struct onebit_error *why)
{
	if (!c->loop)
		return; /* never opened */
	for (uint32_t i = 0; c->conn && i < c->max; i++)
		conns_close(c, i, why);
	for (uint32_t i = 0; i < LOOP_PENDING_MAX; i++) {
		int sock = c->half[i].sock;

		if (sock < 0)
			continue;
		half_drop(c, i);
		refuse(sock, why);
	}
	while (c->n_pool)
		conn_unmake(&c->pool[--c->n_pool]);
	if (c->reserve_fd >= 0)
		close(c->reserve_fd);
	free(c->conn);
	memset(c, 0, sizeof(*c));
	c->reserve_fd = -1;
}

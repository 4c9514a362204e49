/* SPDX-License-Identifier: MIT */
#ifndef CONN_H
#define CONN_H

#include "broker.h"
#include "loop.h"
#include "region.h"

/*
 * The broker's end of each connection: from accept over hello, admission and memory to the welcome,
 * and back. Whatever fails on the way is undone and told to the client, if it still listens.
 */
#define CONN_HALF_PER_UID 8u            /* connections without a hello yet, of one user */
#define CONN_HALF_NS      1000000000ull /* and how long one may stay that way */
#define CONN_PAUSE_NS     100000000ull  /* without accepting, when descriptors are short */
#define CONN_POOL         4u            /* region pairs made ahead, in the default geometry */

struct conn {
	int sock; /* -1: no client has this number */
	int bell;
	bool unheard; /* nobody listens to its doorbell, and nobody can */
	struct region client, daemon;
};

struct conn_half {
	int sock; /* -1: free */
	uint32_t uid;
	uint64_t until_ns;
};

struct conns {
	struct loop *loop;
	struct broker *broker;
	uint32_t max;
	int listen_fd;
	int stats_fd;
	int reserve_fd; /* given up to accept, and refuse, when there is no other */
	bool listening, stopped, any_unheard;
	uint64_t retry_ns; /* accept again then; 0: accepting */
	bool short_told;
	uint32_t n_half;
	struct conn_half half[LOOP_PENDING_MAX];
	uint32_t n_pool;
	struct conn pool[CONN_POOL];
	struct conn *conn; /* by client number */
};

/* The broker is set by the caller before the first event. 0, or -errno. */
int conns_init(struct conns *c, struct loop *loop, uint32_t max, int listen_fd, int stats_fd);
/* Says why to every client, then closes everything. */
void conns_free(struct conns *c, const struct onebit_error *why);

int conns_listen(struct conns *c);
void conns_stop(struct conns *c); /* accept no more */

/* An event of a listener, a half-open connection or a client's socket. */
void conns_event(struct conns *c, const struct loop_event *ev);
/* What is due; returns when to call again (UINT64_MAX: never). */
uint64_t conns_timer(struct conns *c, uint64_t now_ns);
/* With nothing else to do: one step towards what the next attachments need. false: none is left. */
bool conns_idle(struct conns *c);

/* For struct broker_env. */
void conns_wake(struct conns *c, uint32_t client, uint32_t need);
void conns_mute(struct conns *c, uint32_t client, bool mute);
void conns_close(struct conns *c, uint32_t client, const struct onebit_error *why);
/* After a turn: what could not be done in the middle of it. One load when there is nothing. */
void conns_sweep(struct conns *c);
/* Our own decision, of which the core learns here. Not from within a turn. */
void conns_evict(struct conns *c, uint32_t client, uint64_t reason, const char *what);

#endif

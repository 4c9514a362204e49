/* SPDX-License-Identifier: MIT */
#ifndef CORE_H
#define CORE_H

/*
 * What the files of the broker's core share: the client, the request, the link to an executor, and
 * the broker that owns them all. Private to the core; everybody else sees broker.h.
 *
 *   broker.c   clients, turns, sleeping, what is told to whom
 *   admit.c    SQE and block to request: validation, quota, journal
 *   query.c    answers that the broker gives itself
 *   request.c  a request's life: progress, the one terminal, its end
 *   sched.c    which request runs next
 *   link.c     one executor: commands, events, supervision
 *   ring.c journal.c quota.c  the pieces
 */

#include "broker.h"
#include "journal.h"
#include "quota.h"
#include "ring.h"

#define NONE UINT32_MAX

enum client_state { CLIENT_FREE, CLIENT_ADMITTED, CLIENT_ATTACHED };

struct client {
	enum client_state state;
	uint32_t next; /* in the free list */
	uint32_t who; /* principal */
	uint64_t bytes; /* charged */
	uint64_t features;
	struct attach geometry;
	struct ring ring;
	uint32_t first, last; /* its requests in flight, oldest first */
	uint32_t n_inflight;
	uint32_t n_held; /* requests with progress that waits for reaping */
	uint32_t max_inflight;
	uint32_t spin_ns;
	uint64_t active_ns; /* it last submitted */
	uint32_t hot;       /* place in broker.hot, or NONE */
	bool dirty;   /* CQEs wait for publication */
	bool blocked; /* an SQE waits for room in the CQ */
	bool muted;
	uint32_t doorbells; /* of the current window that found nothing */
	uint64_t window_ns, muted_until, rest_ns;
};

enum request_state { REQUEST_FREE, REQUEST_WAITING, REQUEST_RUNNING, REQUEST_ADMIN };

/*
 * An accepted request. It belongs to a client until its terminal CQE is written; after that (or
 * when the client died) it may live on as an orphan, only until the executor gives its slot back.
 */
struct request {
	enum request_state state;
	uint32_t next, prev;   /* in the client's list, or the free list */
	uint32_t wnext, wprev; /* in the waiting list */
	uint32_t client;       /* NONE: orphan */
	uint32_t who;
	uint64_t user_data;
	uint64_t id;
	uint8_t op, priority;
	bool accepted_told, replayed, no_replay;
	bool held;      /* progress waits for reaping */
	bool unreaped;  /* its last progress CQE, at cqe_index, may be unreaped */
	bool suspect;
	bool cancel_sent;
	uint32_t cqe_index;
	uint8_t link;
	uint32_t slot;
	struct journal_entry *entry;
	uint32_t charge; /* bytes counted as queued for its principal */
	uint32_t out_off, out_len;
	uint32_t n_data;   /* bytes of a non-token answer */
	uint32_t n_most;   /* the most that any executor gave of it: only beyond it is progress */
	uint32_t n_choices;
	uint32_t deaths;   /* executors lost in a row without a new token of ours */
	uint32_t alone_deaths;
	uint32_t replays;
	uint32_t prompt_tokens, cached_tokens;
	uint64_t accepted_ns, deadline_ns, queue_ns, first_ns, event_ns;
	uint32_t deadline_ms;
	struct {
		uint32_t told;  /* next index no progress CQE has told */
		uint32_t bytes; /* of records in the window */
		uint32_t off;   /* of the choice's records in the window */
		uint32_t cap;
		uint8_t text_len; /* of all untold tokens, when it still fits a CQE; else 9 */
		uint8_t text[8];
	} c[ONEBIT_CHOICES_MAX];
};

enum link_state {
	LINK_IDLE,     /* no executor, none wanted */
	LINK_STARTING, /* waits for its hello */
	LINK_READY,
	LINK_STOPPING, /* told to stop, nothing runs */
	LINK_BACKOFF,  /* dead, to be started at retry_ns */
	LINK_KILLED,   /* told to die, exit not heard yet */
};

struct link {
	enum link_state state;
	uint32_t generation;
	struct exec_memory mem;
	uint32_t cmd_tail, cmd_told, event_head;
	uint32_t slots;
	uint32_t slot[EXEC_SLOTS_MAX]; /* request, or NONE */
	uint32_t tag[EXEC_SLOTS_MAX];
	uint32_t replayed[EXEC_SLOTS_MAX]; /* bit a choice: replay was confirmed */
	uint32_t n_running;
	uint32_t n_bound; /* requests that belong to this link's model */
	uint32_t alone;   /* suspect that runs alone, or NONE */
	uint32_t waiting_suspects;
	bool progressed; /* this executor delivered something */
	bool retire;     /* stop it when its last request is done */
	bool events_left;
	bool need_kick; /* what its flag says */
	struct exec_hello hello;
	uint32_t model_generation;
	uint64_t started_ns, retry_ns, backoff_ns;
	uint32_t failures; /* starts in a row that led to nothing */
	uint32_t admin;    /* request that waits for this start, or NONE */
	char model[256];   /* named by ADMIN; "" the configured one */
	bool name_model;   /* say so to the launcher at the next start */
	struct onebit_kv kv;
	struct onebit_timing timing[EXEC_TIMINGS_MAX];
	uint32_t n_timing;
	struct onebit_session session[EXEC_SESSIONS_MAX];
	uint32_t n_session;
};

struct broker {
	struct broker_setup s;
	struct policy policy;
	const char *config_text;
	struct quota quota;
	struct journal journal;
	struct client *clients;
	struct request *requests;
	uint32_t free_client, free_request;
	uint32_t n_requests;
	uint32_t wait_first, wait_last, n_waiting;
	uint32_t *hot, n_hot;
	uint32_t *dirty, n_dirty;
	struct link link[LINKS];
	int active; /* link whose model serves, or LINK_NONE */
	uint64_t now;
	uint64_t start_ns;
	uint64_t next_deadline; /* not later than the earliest deadline of a request */
	uint64_t next_id;
	uint64_t spin_until;
	uint64_t spin_ns; /* not 0: spin so long from the end of this turn on */
	uint64_t spun_ns; /* a client that may make us spin last submitted */
	uint64_t gap_ns;  /* moving average between such submissions */
	uint64_t served_floor; /* virtual time at which an idle principal joins */
	uint32_t turns;
	uint32_t cpu;
	uint32_t model_generation;
	bool draining;
	bool slept; /* now is stale */
	uint64_t stats_ns; /* the page was last written */
	bool attention; /* links want a look in this turn */
	bool state_changed; /* clients' state words are to be rewritten */
	uint32_t n_muted;
	uint64_t unmute_at; /* not later than the first muted client's time */
	struct onebit_stats stats;
	struct onebit_incident incidents[INCIDENTS_MAX];
	uint64_t n_incidents;
};

static inline struct client *client_of(struct broker *b, const struct request *r)
{
	return r->client == NONE ? NULL : &b->clients[r->client];
}

static inline uint32_t request_index(const struct broker *b, const struct request *r)
{
	return (uint32_t)(r - b->requests);
}

/* ---- broker.c ---- */
uint64_t broker_now(struct broker *b); /* read the clock */
uint32_t broker_state(const struct broker *b); /* ONEBIT_STATE_* */
/* The next CQE of a client, with all but what is given zero; write only. */
struct onebit_cqe *client_push(struct broker *b, struct client *c, uint64_t user_data,
			       int32_t res, uint16_t flags, uint16_t choice);
/* Make a CQE the end of something refused or failed. */
void cqe_fail(struct onebit_cqe *cqe, enum onebit_code code, uint64_t detail, uint32_t retry_ms);
/* The terminal of an SQE that made no request. */
void client_complete(struct broker *b, struct client *c, uint64_t user_data, int32_t res,
		     uint64_t detail);
void client_refuse(struct broker *b, struct client *c, uint64_t user_data, enum onebit_code code,
		   uint64_t detail, uint32_t retry_ms);
void client_heat(struct broker *b, uint32_t client);
void broker_log(struct broker *b, enum broker_log level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void broker_incident(struct broker *b, enum onebit_code code, const struct request *r,
		     const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* ---- admit.c ---- */
/* Judge one SQE (our copy) and do or start what it asks. *copied grows by the bytes copied. */
void admit(struct broker *b, struct client *c, const struct onebit_sqe *e, uint32_t *copied);

/* ---- query.c ---- */
void query(struct broker *b, struct client *c, const struct onebit_sqe *e);

/* ---- request.c ---- */
struct request *request_new(struct broker *b, struct client *c); /* NULL: none free */
void request_wait(struct broker *b, struct request *r, bool front); /* into the waiting list */
void request_unwait(struct broker *b, struct request *r);
/* Tell the client what is new, if its last progress CQE was reaped; else hold it back. */
void request_progress(struct broker *b, struct request *r);
bool request_can_tell(struct broker *b, const struct request *r);
/* Write the one terminal and let go of the client; the request is then an orphan or gone. */
void request_end(struct broker *b, struct request *r, enum onebit_code code, int32_t res,
		 uint64_t detail, uint32_t retry_ms);
/* The client is gone: no terminal. */
void request_orphan(struct broker *b, struct request *r);
void request_free(struct broker *b, struct request *r); /* an orphan that no executor holds */
uint64_t request_tokens(const struct request *r); /* delivered, of all choices */
bool request_has_records(const struct request *r);
/* Say in the out window whose answer this is, before the first token of it. */
void request_name_model(struct broker *b, struct request *r);

/* ---- sched.c ---- */
/* The waiting request that link should run next, or NULL. */
struct request *sched_pick(struct broker *b, unsigned link);

/* ---- link.c ---- */
void link_init(struct broker *b, unsigned i);
void link_start(struct broker *b, unsigned i);
/* May its executor, whose hello is here, run this? OK, or why not and the detail. */
enum onebit_code link_judge(const struct broker *b, unsigned i, uint8_t op,
			    const struct onebit_params *p, uint64_t *detail);
void link_run(struct broker *b, unsigned i); /* events, dispatch, timers; once a turn */
/* Shall it ring when it has events? */
void link_need_kick(struct broker *b, unsigned i, bool need);
bool link_pending(struct broker *b, unsigned i); /* events wait; after telling it to ring */
uint64_t link_until(const struct broker *b, unsigned i); /* its next timer */
void link_cancel(struct broker *b, struct request *r); /* the executor holds it: ask for it back */
void link_retire(struct broker *b, unsigned i); /* stop when its last request is done */
void link_exited(struct broker *b, unsigned i, int status);
void link_unbound(struct broker *b, unsigned i); /* a request of it is gone */

#endif

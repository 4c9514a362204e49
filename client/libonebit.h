/* SPDX-License-Identifier: MIT */
#ifndef LIBONEBIT_H
#define LIBONEBIT_H

#include <stddef.h>
#include <stdint.h>
#include "onebit.h"

#ifdef __cplusplus
extern "C" {
#endif

/*
 * libonebit: a program's end of the ring.
 *
 * struct onebit is one attachment. It belongs to one thread at a time; different attachments are
 * independent. The library starts no thread, installs no signal handler, prints nothing and never
 * exits. Functions return 0 or a positive answer of their own, or a negative errno; where words
 * help, onebit_last_error() has them. After fork() only onebit_close() is allowed in the child.
 *
 * When the daemon goes away the library attaches again and submits what had not ended, with what
 * was already delivered, so that an answer goes on as if nothing had happened: no token is lost or
 * doubled. A request ends with ONEBIT_E_LOST only when that is impossible (another model, or its
 * session is gone).
 */

struct onebit;

/* How onebit_next() waits. */
#define ONEBIT_WAIT_SLEEP    0 /* sleep at once: costs no CPU, right for answers that take ms */
#define ONEBIT_WAIT_ADAPTIVE 1 /* spin while that pays and the daemon runs on another CPU */
#define ONEBIT_WAIT_SPIN     2 /* never sleep; for a CPU of one's own */

struct onebit_options {
	size_t size;         /* sizeof(struct onebit_options) */
	const char *socket;  /* NULL: $ONEBIT_SOCKET, else ONEBIT_SOCKET_DEFAULT */
	uint32_t sq_entries; /* 0: default, here and below */
	uint32_t cq_entries;
	uint32_t arena_bytes;
	uint32_t out_bytes;
	uint32_t wait;         /* ONEBIT_WAIT_* */
	uint32_t spin_us;      /* budget of ADAPTIVE; 0: measured when attaching */
	uint32_t reconnect_ms; /* how long to try to get back to a lost daemon; 0: 10000 */
	uint32_t no_reconnect; /* not 0: a lost daemon ends every request with -ECONNRESET */
	uint64_t features;     /* ONEBIT_FEAT_* wanted besides the library's own */
};

/* Attach. options may be NULL. On failure *err (may be NULL) says why. */
int onebit_open(struct onebit **o, const struct onebit_options *options, struct onebit_error *err);
/* Detach; what is in flight is cancelled. NULL is fine. */
void onebit_close(struct onebit *o);
const struct onebit_welcome *onebit_welcome(const struct onebit *o);
/* The daemon's stats page, NULL without ONEBIT_FEAT_STATS. Read it with onebit_stats_read(). */
int onebit_stats_read(const struct onebit *o, struct onebit_stats *s);
const struct onebit_error *onebit_last_error(const struct onebit *o);

/* "symbol", "layer" and sentence of a code; the sentence with the detail filled in. */
const char *onebit_code_name(unsigned code);
const char *onebit_layer_name(unsigned layer);
void onebit_code_text(unsigned code, uint64_t detail, char *text, size_t len);

/* ---- requests ------------------------------------------------------------------------------ */

struct onebit_part { /* one segment of a prompt */
	uint8_t role;   /* ONEBIT_ROLE_* */
	uint8_t kind;   /* ONEBIT_SEG_* */
	uint16_t flags; /* ONEBIT_SEG_* flags */
	const void *data;
	size_t len; /* bytes */
};

struct onebit_request {
	uint8_t op;       /* ONEBIT_OP_*; GENERATE, TOKENIZE, QUERY, ... */
	uint8_t priority; /* ONEBIT_PRIO_* */
	uint32_t deadline_ms;
	uint64_t arg; /* of operations that have one */
	void *user;   /* comes back in each event */
	/*
	 * size and the *_off, n_* fields of the tables are filled in by the library; the rest is
	 * yours, zero being the default. A seed of 0 with random_seed set is replaced by a random
	 * one, which onebit_seed() tells.
	 */
	struct onebit_params params;
	int random_seed;
	const struct onebit_part *parts;
	size_t n_parts;
	const char *const *stops; /* NUL-terminated strings */
	size_t n_stops;
	const struct onebit_bias *bias;
	size_t n_bias;
	const struct onebit_grammar *grammar; /* with its tables behind it */
	const void *data; /* ECHO, ADMIN: bytes instead of a block */
	size_t data_len;
	size_t out_bytes; /* of the out window; 0: enough for what was asked, as far as it fits */
};

/*
 * Submit. *id names the request from now on. The library copies what it needs: the caller's memory
 * is free when this returns. -EAGAIN: no room now (ring, arena or out area): take events first.
 */
int onebit_submit(struct onebit *o, const struct onebit_request *rq, uint64_t *id);
int onebit_cancel(struct onebit *o, uint64_t id); /* its terminal event still comes */
uint64_t onebit_seed(const struct onebit *o, uint64_t id);

#define ONEBIT_EV_ACCEPTED 1 /* journaled: it will end, exactly once */
#define ONEBIT_EV_TOKENS   2 /* tokens [first, first + n) of choice */
#define ONEBIT_EV_END      3 /* the last event of this request */
struct onebit_event {
	uint64_t id;
	void *user;
	uint32_t type;
	uint32_t choice; /* TOKENS */
	uint32_t first;
	uint32_t n;
	const struct onebit_record *records; /* TOKENS: n of them, see onebit_record_next() */
	const char *text; /* TOKENS: their text, not NUL-terminated */
	size_t text_len;
	int32_t res; /* END: >= 0, or negative errno and error is set */
	struct onebit_error error;
	const void *data; /* END: answer of operations without tokens */
	size_t data_len;
	const struct onebit_out *out; /* END of GENERATE and SCORE: usage, times */
	const struct onebit_choice *choices; /* and how each choice ended */
};

/*
 * Take the next event; pointers in it are valid until the next call of a function on o. 1: *ev is
 * set. 0: none within timeout_ms (-1: for ever). A negative errno is about the attachment:
 * -ECONNRESET when the daemon stayed away; every request has then had its END.
 */
int onebit_next(struct onebit *o, struct onebit_event *ev, int timeout_ms);
const struct onebit_record *onebit_record_next(const struct onebit_record *r);

/*
 * For foreign event loops: a descriptor that is readable when there may be something to take.
 * Take events with timeout 0 until there is none, then onebit_arm(): 1 means look again, 0 that
 * the descriptor will tell. The number stays the same across a re-attachment.
 */
int onebit_fd(const struct onebit *o);
int onebit_arm(struct onebit *o);

/* ---- in a hurry ---------------------------------------------------------------------------- */

/*
 * Attach, ask, call on_text with each piece as it comes (a non-zero return cancels), detach.
 * 0, or a negative errno and *err. params may be NULL.
 */
int onebit_generate(const char *prompt, const struct onebit_params *params,
		    int (*on_text)(void *user, const char *text, size_t len), void *user,
		    struct onebit_error *err);

/* ---- the bare ring ------------------------------------------------------------------------- */

/*
 * For those who count nanoseconds: fill SQEs, publish, look at CQEs, reap. Arena and out area are
 * the caller's to divide. Do not mix with onebit_submit() and onebit_next() on one attachment, and
 * expect no re-attachment.
 */
/* Zeroed but for seq, which is the ring's own: leave it as it is. NULL: the ring is full. */
struct onebit_sqe *onebit_ring_sqe(struct onebit *o);
int onebit_ring_publish(struct onebit *o); /* a store each, one fence, doorbell if asked for */
/* NULL: not there yet. One who polls this for long calls onebit_ring_wait(o, 0) now and then: it is
 * what notices that the daemon waits for room that was made, or is gone. */
const struct onebit_cqe *onebit_ring_cqe(struct onebit *o, uint32_t ahead);
void onebit_ring_reap(struct onebit *o, uint32_t n);
int onebit_ring_wait(struct onebit *o, int timeout_ms); /* as onebit_options.wait says; 1, 0, -errno */
void *onebit_ring_arena(const struct onebit *o, size_t *bytes);
const void *onebit_ring_out(const struct onebit *o, size_t *bytes);

#ifdef __cplusplus
}
#endif

#endif

/* SPDX-License-Identifier: MIT */
#ifndef EXECUTOR_H
#define EXECUTOR_H

/*
 * The contract between broker and executor.
 *
 * An executor is a process started by the launcher with these descriptors:
 *
 *   3  BROKER region   written by the broker: its indices, the command queue. Read-only here.
 *   4  EXECUTOR region written by the executor: its indices, the event queue, a data area.
 *   5  journal         written by the broker: every accepted request. Read-only here.
 *   6  doorbell        an eventfd; the executor writes 1 to it when EXEC_NEED_KICK is set.
 *   7  model           the model file, read-only; closed when none is configured.
 *
 * First it sends HELLO. Then it takes commands and sends events, as many requests at a time as its
 * hello has slots. It may die at any instant: a new one gets the same commands again, with what was
 * delivered so far in the journal, and must go on with exactly the same answer. The broker believes
 * nothing that it says: an event out of order, out of range or for a slot that does not run ends it.
 *
 * The rings follow onebit_ring.h. Both sides know the sizes from this header; there is no
 * negotiation, for broker and executor are installed together (EXEC_VERSION guards that).
 */

#include <stddef.h>
#include <stdint.h>
#include "onebit.h"

#define EXEC_MAGIC   0x43584531u
#define EXEC_VERSION 1u

#define EXEC_FD_BROKER   3
#define EXEC_FD_EXECUTOR 4
#define EXEC_FD_JOURNAL  5
#define EXEC_FD_DOORBELL 6
#define EXEC_FD_MODEL    7

#define EXEC_SLOTS_MAX   64u   /* requests with one executor at a time */
#define EXEC_CMDS        256u  /* >= 2 * slots + 8: RUN and CANCEL of each, STOP; never full */
#define EXEC_EVENTS      1024u
#define EXEC_DATA_BYTES  (4u << 20)
#define EXEC_EVENT_DATA_MAX (256u << 10) /* bytes of one event */
#define EXEC_TIMINGS_MAX 64u
#define EXEC_SESSIONS_MAX 64u  /* that live with one executor */

/* ---- commands: broker to executor ---------------------------------------------------------- */

#define EXEC_CMD_RUN    1 /* start entry_off in slot */
#define EXEC_CMD_CANCEL 2 /* end slot soon: an END event must still come */
#define EXEC_CMD_STOP   3 /* exit 0; nothing is in flight */
struct exec_cmd {
	uint32_t kind;
	uint32_t slot;
	uint32_t tag; /* of this use of the slot; echoed in each of its events */
	uint32_t op;  /* RUN: ONEBIT_OP_* */
	uint64_t entry_off; /* RUN: struct journal_entry, from the journal's start */
	uint64_t reserved[5];
};
_Static_assert(sizeof(struct exec_cmd) == 64, "a command is one line");

/* ---- events: executor to broker ------------------------------------------------------------ */

#define EXEC_EV_HELLO    1 /* data = struct exec_hello; first, once */
#define EXEC_EV_REPLAYED 2 /* choice: recomputed token first (= delivered - 1) is token id `detail` */
#define EXEC_EV_TOKENS   3 /* choice: records [first, first + n) in data; may carry finish */
#define EXEC_EV_DATA     4 /* data = further bytes of the answer of a non-token operation */
#define EXEC_EV_PROGRESS 5 /* slot is alive: prefill went on; n = prompt tokens done */
#define EXEC_EV_END      6 /* slot is free: code, detail, res, prompt_tokens, cached_tokens */
#define EXEC_EV_KV       7 /* data = struct onebit_kv: latest statistics */
#define EXEC_EV_TIMING   8 /* data = struct onebit_timing[n]: latest statistics */
#define EXEC_EV_SESSIONS 10 /* data = struct onebit_session[n]: all that there are now */
#define EXEC_EV_FAULT    9 /* data = text without NUL, <= 96 bytes: the device failed; exit follows */
struct exec_event {
	uint32_t kind;
	uint32_t slot;
	uint32_t tag;
	uint16_t choice;
	uint8_t finish; /* TOKENS: ONEBIT_FINISH_* when the choice ends with these records (n may be 0) */
	uint8_t reserved0;
	uint32_t first;
	uint32_t n;
	uint32_t data_off; /* in the data area; the bytes must not wrap */
	uint32_t data_len;
	uint16_t code; /* END: ONEBIT_E_* */
	uint16_t reserved1;
	int32_t res; /* END with code OK: result of a non-token operation, >= 0 */
	uint64_t detail;
	uint32_t prompt_tokens; /* END, TOKENS: known from the first token on */
	uint32_t cached_tokens;
	uint64_t reserved2;
};
_Static_assert(sizeof(struct exec_event) == 64, "an event is one line");

struct exec_hello {
	uint32_t version; /* EXEC_VERSION */
	uint32_t slots;   /* 1..EXEC_SLOTS_MAX */
	uint64_t ops;     /* bit per ONEBIT_OP_* it serves */
	uint64_t param_flags; /* ONEBIT_PARAM_* it honours */
	struct onebit_model model; /* generation is the broker's to fill */
};

/* ---- the regions --------------------------------------------------------------------------- */

#define EXEC_NEED_KICK 1u
struct exec_broker_region { /* written by the broker */
	uint32_t magic, version;
	uint32_t journal_bytes;
	uint32_t pad0[29];
	uint32_t cmd_tail; /* futex word: the executor sleeps on it */
	uint32_t pad1[31];
	uint32_t event_head;
	uint32_t pad2[31];
	uint32_t flags; /* EXEC_NEED_KICK: the broker sleeps */
	uint32_t pad3[31];
	struct exec_cmd cmds[EXEC_CMDS];
};

struct exec_own_region { /* written by the executor */
	uint32_t event_tail;
	uint32_t pad0[31];
	uint32_t cmd_head;
	uint32_t pad1[31];
	uint32_t need_wake; /* not 0: asleep in FUTEX_WAIT on cmd_tail */
	uint32_t pad2[31];
	struct exec_event events[EXEC_EVENTS];
	uint8_t data[EXEC_DATA_BYTES];
};
_Static_assert(offsetof(struct exec_broker_region, cmd_tail) == 128, "own line");
_Static_assert(offsetof(struct exec_own_region, events) == 384, "own line");

/* ---- the journal --------------------------------------------------------------------------- */

/*
 * One accepted request: everything a new executor needs to give the same answer. params is the
 * client's, extended to today's size, with defaults filled in; its tables lie in the block, whose
 * offsets the broker has checked to stay inside it (contents of segments, bias, grammar are for
 * the executor to judge). An executor copies done[] when it takes RUN: the broker appends to it.
 */
/*
 * SESSION_OPEN, SESSION_FORK and SESSION_CLOSE have no block; params.session is the session that they
 * are about, and a new one's handle is the entry's request_id. Sessions live as long as their executor:
 * what wants one that is gone ends NOT_FOUND, or LOST when some of it was delivered already.
 */
#define JOURNAL_MAGIC 0x4c4e524au
struct journal_done {
	uint32_t n;      /* tokens delivered of this choice, ids at tokens_off + choice * tokens_cap * 4 */
	uint32_t finish; /* ONEBIT_FINISH_*; not NONE: this choice needs nothing more */
};
struct journal_entry {
	uint32_t magic;
	uint32_t bytes; /* of the whole entry */
	uint64_t request_id;
	uint64_t tenant;
	uint32_t uid;
	uint32_t op;
	uint32_t block_off; /* from the entry's start */
	uint32_t block_len;
	uint32_t tokens_off;
	uint32_t tokens_cap; /* ids of one choice */
	uint32_t attempt;    /* executors this was handed to before */
	uint32_t priority;
	struct onebit_params params;
	struct journal_done done[ONEBIT_CHOICES_MAX];
};

/* ---- the executor's end (executor.c), for every executor ------------------------------------ */

/*
 * One thread uses it. Nothing here allocates. executor_open() maps the inherited descriptors;
 * executor_init() takes the regions where they are (tests, simulation).
 */
struct executor {
	const struct exec_broker_region *broker;
	struct exec_own_region *own;
	const uint8_t *journal;
	uint32_t journal_bytes;
	uint32_t cmd_head, event_tail;
	uint32_t data_head, data_tail; /* free-running bytes of the data area in use */
	uint32_t data_end[EXEC_EVENTS]; /* data_tail after the event in that slot */
	uint32_t freed; /* events whose data was given back */
	int doorbell; /* -1: executor_kick() does nothing */
};

void executor_init(struct executor *e, const struct exec_broker_region *broker,
		   struct exec_own_region *own, const void *journal, uint32_t journal_bytes);
/* -errno when a descriptor is missing or of another version. */
int executor_open(struct executor *e);

/* 1: *cmd is set. 0: none. */
int executor_next(struct executor *e, struct exec_cmd *cmd);
/* The entry of a RUN command. */
const struct journal_entry *executor_entry(const struct executor *e, const struct exec_cmd *cmd);

/*
 * Queue one event with its data (copied). 0, or -EAGAIN: no room now, executor_kick(), wait for the
 * broker and try again; -EMSGSIZE: more data than an event may have.
 */
int executor_emit(struct executor *e, const struct exec_event *ev, const void *data);
/* Make what was emitted visible, and ring when the broker sleeps. Once a step. */
void executor_kick(struct executor *e);
/* Sleep until a command is there, or timeout_ns (-1: none). 0, or -ETIMEDOUT. */
int executor_wait(struct executor *e, int64_t timeout_ns);

#endif

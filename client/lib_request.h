/* SPDX-License-Identifier: MIT */
#ifndef LIB_REQUEST_H
#define LIB_REQUEST_H

#include <stdbool.h>
#include "lib_public.h"

/*
 * A request in flight, from onebit_submit() until its END was told. It keeps a private copy of its
 * block, so that the arena's range can be used again as soon as the daemon has taken the SQE, and
 * so that the request can be submitted again to another daemon.
 */
struct onebit;

enum lib_request_state {
	LIB_FREE,
	LIB_PENDING, /* to be placed into the ring when there is room and retry_at_ns has come */
	LIB_PLACED,  /* in the ring or with the daemon */
	LIB_ENDED,   /* ended; end holds how */
};

/* How far a choice was told to the program, and where its next record stands in the window. */
struct lib_cursor {
	uint32_t next;  /* index of the next token to tell: the one thing that outlives a daemon */
	uint32_t index; /* of the record at pos; behind next while skipping what was told before */
	uint32_t pos;   /* bytes, in this choice's records */
	bool started;   /* index and pos are of this window */
	bool complete;  /* it had ended before the daemon was lost: nothing more is told */
};

struct lib_request {
	uint64_t id; /* generation << 16 | slot; also the SQE's user_data */
	void *user;
	enum lib_request_state state;
	uint8_t op;
	uint8_t priority;
	uint16_t n_choices; /* >= 1 */
	uint64_t arg;
	uint64_t deadline_ns; /* absolute; 0: none */

	char *block; /* owned, kept by the slot for the next request */
	uint32_t block_cap, block_len;
	uint32_t base_len; /* of the block without a resume table */

	uint32_t out_off, out_len; /* out_len 0: no window */
	bool placed_out;           /* out_off is taken */
	bool auto_window;          /* we chose out_len */
	uint64_t stale_id;         /* what stood in the window before: see lib_request_live() */
	__u32 sq_index;

	bool accepted;    /* ACCEPTED was told */
	bool tell;        /* and is now to be told */
	bool seen;        /* the daemon has written this window's header */
	bool terminal;    /* end is set */
	bool cancelled;   /* by the program */
	bool cancel_due;  /* the CANCEL could not be sent yet */
	bool fault;       /* the daemon's records do not hold: ends with -EPROTO */
	bool resubmitted; /* to another daemon */
	bool dead;        /* ended because the attachment did */
	bool moved;       /* a token was told since it was placed */

	uint16_t choice; /* being told */
	uint32_t upto;
	uint64_t retry_at_ns, give_up_ns;
	struct onebit_cqe end;
	struct lib_cursor cursor[ONEBIT_CHOICES_MAX];
};

bool lib_request_has_block(uint8_t op);
bool lib_request_has_records(uint8_t op);

/* Take a slot and build the block. Negative errno with o->error. */
int lib_request_new(struct onebit *o, const struct onebit_request *in, struct lib_request **out);
/* Give the slot and the window back. NULL is fine. */
void lib_request_release(struct onebit *o, struct lib_request *rq);
struct lib_request *lib_request_find(const struct onebit *o, uint64_t id);

/*
 * Put it into the ring, unpublished. 0. -EAGAIN: no room now; -EMSGSIZE, -ENOSPC: never here, with
 * o->error.
 */
int lib_request_place(struct onebit *o, struct lib_request *rq);
/* Place what is pending and send what must be cancelled. When to come again: UINT64_MAX, no need. */
uint64_t lib_request_pump(struct onebit *o);
/* Ask the daemon to end it, now or with the next pump. */
void lib_request_cancel(struct onebit *o, struct lib_request *rq);

/* The header of its window, checked; NULL when the daemon has not written it for this request. */
const struct onebit_out *lib_request_live(const struct onebit *o, const struct lib_request *rq);
/* The records of a choice. false: the daemon lies. */
bool lib_request_records(const struct onebit *o, const struct lib_request *rq, uint16_t choice,
			 struct onebit_choice *c, const char **records);
/* The record at pos, if it and all it carries lies before cap; else NULL. */
const struct onebit_record *lib_record_at(const char *records, uint32_t pos, uint32_t cap);

/*
 * Take it back from the ring to pending, with a resume table of what was told. The window is read
 * and given back. -ENOMEM or -EMSGSIZE: it cannot go on.
 */
int lib_request_suspend(struct onebit *o, struct lib_request *rq, bool pin_model);
/* End it ourselves. */
void lib_request_end(struct onebit *o, struct lib_request *rq, unsigned code, uint64_t detail);
uint32_t lib_request_told(const struct lib_request *rq);

#endif

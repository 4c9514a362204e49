/* SPDX-License-Identifier: MIT */
#ifndef LIB_ONEBIT_H
#define LIB_ONEBIT_H

#include <stdbool.h>
#include "lib_attach.h"
#include "lib_range.h"
#include "lib_request.h"
#include "lib_ring.h"
#include "lib_wait.h"

/*
 * One attachment with all it owns. Used by one thread at a time. The private parts, by subject:
 *
 *   lib_attach   handshake and mapping           lib_request  blocks, ranges, what is in flight
 *   lib_ring     the two queues                  lib_event    completions to events
 *   lib_wait     sleeping and spinning           lib_recover  a lost daemon
 *   lib_range    who uses which part of an area  lib_loop     the descriptor for foreign loops
 *   lib_text     codes to words                  libonebit    open, close, next, generate
 */
enum lib_state {
	LIB_UP,      /* attached */
	LIB_CONNECT, /* lost; connecting again at next_try_ns */
	LIB_GREET,   /* connected, the welcome is still to come */
	LIB_DEAD,    /* given up: error says why */
};

#define LIB_TEXT_BYTES (16u << 10) /* text of one event; > ONEBIT_RECORD_MAX, so one always fits */

struct onebit {
	struct lib_ring ring;
	struct lib_wait wait;
	struct lib_link link;
	enum lib_state state;

	struct lib_request *requests; /* owned: slots, n_requests of them */
	uint32_t n_requests;
	uint32_t n_free; /* of free_slots, a stack */
	uint16_t *free_slots;
	uint64_t generation; /* of the last id */
	uint32_t n_pending;  /* requests that wait for room, a daemon, or a time */
	uint32_t n_ended;    /* requests ended by us, whose END is to be told */
	uint32_t n_cancels;  /* requests whose CANCEL is still to be sent */

	struct lib_ranges arena, out;
	uint32_t *arena_of;  /* owned: by SQ slot, the arena range of that SQE, or LIB_NO_RANGE */
	__u32 arena_freed;   /* SQ index up to which arena ranges came back */

	struct lib_request *current;  /* its events are being told */
	struct lib_request *finished; /* its END was told; goes with the next call */
	char *text;                   /* owned: LIB_TEXT_BYTES */

	/* foreign event loops; -1 until onebit_fd() is called */
	int loop_fd;
	int timer_fd;
	bool armed;
	bool timer_set;

	/* a lost daemon */
	bool gone; /* seen while there were still completions to take */
	int greet_fd;
	uint64_t next_try_ns, backoff_ns, give_up_ns;
	struct onebit_error goodbye; /* code 0: it went without a word */
	uint32_t reconnect_ms;
	bool no_reconnect;
	struct onebit_hello hello;
	char path[108];

	struct onebit_error error; /* onebit_last_error() */
};

#define LIB_NO_RANGE UINT32_MAX

/* Make a freshly attached link the current one: rings and areas start empty. 0 or -ENOMEM. */
int lib_onebit_adopt(struct onebit *o, const struct lib_link *l);

/* lib_event.c. 1: *ev is set. 0: nothing to tell now. */
int lib_event_take(struct onebit *o, struct onebit_event *ev);

/* lib_recover.c. The link is lost and its CQ empty: keep what must be submitted again, or give up. */
void lib_recover_lost(struct onebit *o);
/* One step back towards a daemon. 1: something changed. 0: deadline_ns passed. -EINTR: a signal. */
int lib_recover_step(struct onebit *o, uint64_t deadline_ns);

/* lib_loop.c. The descriptor watches the link's socket; a re-attachment changes which one. */
void lib_loop_watch(struct onebit *o, int fd);
void lib_loop_unwatch(struct onebit *o, int fd);
/* Begin of a call that takes events: nobody need be told for now. */
void lib_loop_disarm(struct onebit *o);

#endif

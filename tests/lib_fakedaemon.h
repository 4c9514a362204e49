/* SPDX-License-Identifier: MIT */
#ifndef LIB_FAKEDAEMON_H
#define LIB_FAKEDAEMON_H

#include <stdbool.h>
#include "libonebit.h"

/*
 * A daemon that does what a test tells it, step by step, and nothing by itself. It shows the client
 * library situations which the real one makes rarely or never: merged progress, a header left over
 * from another request, a death between two tokens, a welcome with one wrong field.
 *
 * The handshake of fake_open() runs in a thread, for onebit_open() waits for it; all else is called
 * from the test's own thread, in turns with the library.
 */
#define FAKE_AREA (64u << 10)
/* Its rings start closer to the wrap than the real ones, so that a few hundred entries cross it. */
#define FAKE_START 0xffffff00u

struct fake {
	char dir[92];
	char path[100];
	int listener;
	int sock, doorbell, client_fd, daemon_fd, stats_fd;
	struct onebit_hello hello;     /* the last one received */
	struct onebit_welcome welcome; /* the last one sent */
	/* Change the welcome before it goes out: case number `nr`. NULL: leave it. */
	void (*bend)(struct fake *f, struct onebit_welcome *w, int nr);
	int nr;
	size_t welcome_len; /* bytes of it to send */
	int n_fds;          /* descriptors to send; -1: as many as belong */
	uint32_t area, sq_entries, max_inflight;
	uint64_t features; /* that it grants */

	char *client; /* its maps of the regions */
	char *daemon;
	struct onebit_state *state;
	uint32_t sq_head, cq_tail;
	uint64_t request_id;
	uint8_t model_id[32];
};

void fake_start(struct fake *f);
void fake_stop(struct fake *f);
/* Stop and begin to listen: while it does not, a connect finds nobody. */
void fake_deafen(struct fake *f);
void fake_listen(struct fake *f);
/* Accept one client and answer its hello. */
void fake_accept(struct fake *f);
/* onebit_open() against this daemon. NULL: it failed with *r and *err. */
struct onebit *fake_open(struct fake *f, const struct onebit_options *options, int *r,
			 struct onebit_error *err);
/* Die as if killed: the socket closes, the regions stay as they were. */
void fake_die(struct fake *f);
void fake_goodbye(struct fake *f, unsigned code);

/* Take the next SQE. false: there is none. */
bool fake_pop(struct fake *f, struct onebit_sqe *sqe);
const char *fake_block(const struct fake *f, const struct onebit_sqe *sqe);
const struct onebit_params *fake_params(const struct fake *f, const struct onebit_sqe *sqe);
/* Write a CQE that is not marked as there; fake_push() writes the same slot. */
void fake_prepare(struct fake *f, const struct onebit_cqe *cqe);
/* Publish a CQE and wake whom the client named. */
void fake_push(struct fake *f, const struct onebit_cqe *cqe);
/* Write the window's header, from the resume table on; tell ACCEPTED when `tell`. */
void fake_admit(struct fake *f, const struct onebit_sqe *sqe, bool tell);
struct onebit_choice *fake_choice(const struct fake *f, const struct onebit_sqe *sqe, uint16_t choice);
/* Append one record, untold. false: the window is full. */
bool fake_token(struct fake *f, const struct onebit_sqe *sqe, uint16_t choice, uint32_t token,
		const char *text);
void fake_progress(struct fake *f, const struct onebit_sqe *sqe, uint16_t choice, uint32_t first,
		   uint32_t n);
void fake_end(struct fake *f, const struct onebit_sqe *sqe, int32_t res, unsigned code,
	      uint64_t detail);
/* How the client wants to be woken now: ONEBIT_WAKE_*. */
uint32_t fake_need(const struct fake *f);
/* How often the doorbell rang since the last call. */
uint64_t fake_rung(struct fake *f);

#endif

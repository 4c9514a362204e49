/* SPDX-License-Identifier: MIT */
#ifndef LIB_RAW_H
#define LIB_RAW_H

#include <stdbool.h>
#include <stdint.h>
#include "onebit.h"

/*
 * A client without libonebit, for those that do not keep to the rules: each step of the handshake
 * by itself, the descriptors as they came, the regions as they lie. Nothing here judges.
 */
struct raw {
	int sock;
	int fd[4]; /* CLIENT region, DAEMON region, doorbell, stats page; -1: did not come */
	struct onebit_welcome w;
	uint8_t *c;       /* CLIENT region */
	const uint8_t *d; /* DAEMON region */
	uint32_t sq_tail, cq_head;
};

void raw_hello(struct onebit_hello *h); /* valid, all features wanted, default sizes */
int raw_connect(const char *path);      /* a socket, or -errno */
int raw_say_hello(int sock, const struct onebit_hello *h);
/* The welcome and its descriptors, not mapped. 0; -errno, or the error that it carries. */
int raw_hear_welcome(struct raw *r, int sock);
int raw_map(struct raw *r);
/* All of it. h may be NULL. On failure r->w.error says why when the daemon said so. */
int raw_attach(struct raw *r, const char *path, const struct onebit_hello *h);
void raw_detach(struct raw *r);

/* Put, publish, ring when told to. false: the ring is full. */
bool raw_submit(struct raw *r, const struct onebit_sqe *e);
void raw_ring(const struct raw *r);
/* Mark the newest SQE as there once more, whatever has become of it, and ring. */
void raw_again(struct raw *r);
/* Wait for the next terminal CQE, reaping; progress on the way is dropped. false: the socket was
 * closed, or nothing came for a minute. */
bool raw_terminal(struct raw *r, struct onebit_cqe *cqe);
bool raw_nop(struct raw *r);
int32_t raw_query(struct raw *r, uint64_t topic, void *answer, uint32_t len);

/* A GENERATE of `text` in the arena at in_off, its window at out_off. */
#define RAW_BLOCK_BYTES 512u
#define RAW_WINDOW_BYTES 16384u
struct onebit_sqe raw_generate(struct raw *r, const char *text, uint32_t max_tokens,
			       uint32_t in_off, uint32_t out_off, uint64_t user_data);
/* Is the window the loopback executor's whole answer to that block? */
bool raw_is_answer(struct raw *r, uint32_t in_off, uint32_t out_off);
/* A fresh client attaches, does a NOP and a GENERATE, and gets the right answer. NULL, or what
 * went wrong. */
const char *raw_service(const char *path);

#endif

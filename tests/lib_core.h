/* SPDX-License-Identifier: MIT */
#ifndef LIB_CORE_H
#define LIB_CORE_H

#include <stdbool.h>
#include <stdint.h>
#include "broker.h"
#include "loopback.h"

/*
 * The broker's core on plain memory: clients are arrays, time is a number, what the core asks of
 * its environment is written down. An executor is either scripted by the test through executor.h, or
 * the loopback one, stepped here. One thread; several cores may live side by side.
 */
enum { CORE_CLIENTS = 64 };

struct core_client {
	bool on, closed; /* closed: the core threw it out; why says it */
	bool muted;
	uint8_t *client, *daemon; /* its two regions */
	struct onebit_welcome w;
	uint32_t sq_tail, sq_told, cq_head; /* told: SQEs below it are marked as there */
	unsigned wakes, mutes;
	struct onebit_error why;
};

struct core {
	struct broker *b;
	struct broker_setup setup;
	uint64_t now;   /* the virtual clock */
	uint64_t until; /* what the core sleeps for, after core_run() */
	struct core_client c[CORE_CLIENTS]; /* by the core's number */
	struct onebit_stats *page;
	struct core_exec {
		bool alive, dying;
		bool no_memory; /* exec_memory fails */
		uint32_t generation;
		unsigned starts, kills, wakes;
		char model[256];
		struct exec_memory mem;
		struct executor e;
		struct loopback *loop;
		uint64_t due;
	} x[2];
	bool keep; /* a client that was thrown out keeps its regions until core_drop() */
	bool loopback; /* executors are loopbacks, stepped by core_pass() */
	struct loopback_options options;
	unsigned reloads;
};

/* p may be NULL: the built-in policy with a small journal. It aborts when memory is short. */
struct core *core_new(const struct policy *p, bool has_executor, bool loopback);
struct core *core_free(struct core *k);
void core_policy(struct policy *p); /* built-in, small journal, every right */

/* A hello that is valid. */
void core_hello(struct onebit_hello *h);
/* The client's number, or -1 and *why. h may be NULL, a why as well. */
int core_attach(struct core *k, uint32_t uid, const struct onebit_hello *h,
		struct onebit_error *why);
void core_detach(struct core *k, int c);
void core_drop(struct core *k, int c); /* the regions of one that was thrown out */

/* Write an SQE, do not publish it: false: the ring is full. */
bool core_put(struct core *k, int c, const struct onebit_sqe *e);
/* Publish what was put, and ring when told to. */
void core_publish(struct core *k, int c);
/* Put one, publish. It must fit. */
void core_submit(struct core *k, int c, const struct onebit_sqe *e);
uint32_t core_taken(const struct core *k, int c); /* sq_head */
uint32_t core_flags(const struct core *k, int c); /* state.flags */
uint32_t core_waiting(const struct core *k, int c); /* CQEs that can be reaped */
/* Copy the oldest CQE, less its phase, and reap it; rings when SQEs are stalled. false: there is
 * none. */
bool core_reap(struct core *k, int c, struct onebit_cqe *cqe);
/* Reap until a terminal came; progress on the way is counted in *more (may be NULL). */
bool core_terminal(struct core *k, int c, struct onebit_cqe *cqe, unsigned *more);
uint8_t *core_arena(const struct core *k, int c);
const uint8_t *core_out(const struct core *k, int c);

/* Turns until the core would sleep; executors that it killed are gone then. */
void core_run(struct core *k);
/* Time goes on and loopbacks take a step; turns are the caller's. */
void core_step(struct core *k, uint64_t ns);
/* core_step(), then core_run(). */
void core_pass(struct core *k, uint64_t ns);
/* Loopback: pass time until nothing is in flight, at most so many steps of a ms. */
void core_settle(struct core *k, unsigned steps);

/* The scripted executor: hello with these slots and every operation; the next command; an event. */
void core_exec_hello(struct core *k, unsigned link, uint32_t slots);
bool core_exec_cmd(struct core *k, unsigned link, struct exec_cmd *cmd);
void core_exec_emit(struct core *k, unsigned link, const struct exec_event *ev, const void *data);
void core_exec_exit(struct core *k, unsigned link, int status);
/* The next command must be RUN. */
struct exec_cmd core_exec_run(struct core *k, unsigned link);
/* A well-behaved executor's answer: token `index` of `choice` is core_token(), its record has
 * CORE_RECORD bytes and the text "tNN". */
#define CORE_RECORD 24u
uint32_t core_token(uint32_t choice, uint32_t index);
uint32_t core_records(uint8_t *data, uint32_t choice, uint32_t first, uint32_t n); /* bytes */
struct exec_event core_event(const struct exec_cmd *run, uint32_t kind);
void core_exec_tokens(struct core *k, unsigned link, const struct exec_cmd *run, uint32_t choice,
		      uint32_t first, uint32_t n, uint8_t finish);
/* Say what is missing of every choice, up to max_tokens, and END. replay: confirm first. */
void core_exec_finish(struct core *k, unsigned link, const struct exec_cmd *run, bool replay);

/* ---- a block that uses every table ----------------------------------------------------------- */

struct core_block {
	struct onebit_params p;
	struct onebit_segment seg[2];
	struct onebit_span stop[2];
	struct onebit_bias bias[2];
	struct onebit_resume resume[2];
	uint32_t ids[4];
	struct onebit_grammar g;
	struct onebit_gstate gs[2];
	struct onebit_gedge ge[2];
	char text[64];
};
/* Valid in each field; GENERATE of two choices, resumed after two tokens of each. */
void core_block_full(struct core_block *t);
/* One user segment, one choice, nothing else. */
void core_block_plain(struct core_block *t, const char *text, uint32_t max_tokens);
/* GENERATE of the block put at in_off of the arena. */
struct onebit_sqe core_generate(struct core *k, int c, const struct core_block *t, uint32_t in_off,
				uint32_t out_off, uint32_t out_len, uint64_t user_data);

/* splitmix64 */
uint64_t core_random(uint64_t *state);
/* From ONEBIT_SEED, else from the time; printed. */
uint64_t core_seed(const char *test);

#endif

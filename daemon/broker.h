/* SPDX-License-Identifier: MIT */
#ifndef BROKER_H
#define BROKER_H

#include <stdbool.h>
#include <stdint.h>
#include "attach.h"
#include "executor.h"
#include "onebit.h"
#include "policy.h"

/*
 * The broker's core: who may do what, which request runs next, what a client is told, when an
 * executor is given up. It makes no system call and knows no descriptor: time, wake-ups, memory and
 * the executor process reach it through struct broker_env, so that a seed replays a whole run
 * (tests/test_sim.c) and the loop around it (loop.h) stays about waiting.
 *
 * One thread. It allocates in broker_new() only. Everything that it reads from a client's or an
 * executor's memory is copied once and judged in the copy.
 *
 * Order of calls: any event function as things happen, then broker_turn() until it returns false,
 * then broker_sleep(), and when that agrees, wait for the next event or its time.
 */

enum { LINK_NONE = -1, LINKS = 2 }; /* two executors live side by side during a model swap */

enum broker_log { BROKER_DEBUG, BROKER_INFO, BROKER_WARN, BROKER_ERROR };

/* Memory of one executor, fresh for each start so that a zombie cannot write into its successor. */
struct exec_memory {
	struct exec_broker_region *broker;
	struct exec_own_region *own;
};

struct broker_env {
	void *ctx;
	uint64_t (*now_ns)(void *ctx);  /* monotonic */
	uint64_t (*time_s)(void *ctx);  /* of day, for incidents only */
	/* need: ONEBIT_WAKE_* of the client. Must not block. */
	void (*wake_client)(void *ctx, uint32_t client, uint32_t need);
	/* The core has detached a client on its own and touches it no more: say why, close, unmap. */
	void (*close_client)(void *ctx, uint32_t client, const struct onebit_error *why);
	/* Put a client's doorbell aside or listen to it again. */
	void (*mute_client)(void *ctx, uint32_t client, bool mute);
	/* New zeroed memory for the next executor on this link; the old one's is given back. */
	int (*exec_memory)(void *ctx, unsigned link, struct exec_memory *mem);
	/*
	 * Start an executor on that memory. model: path below the model folder to open first; NULL:
	 * the one this link had, or the configured one. broker_exec_exited() always follows, at
	 * last when it could not be started.
	 */
	void (*exec_start)(void *ctx, unsigned link, uint32_t generation, const char *model);
	void (*exec_kill)(void *ctx, unsigned link); /* SIGKILL */
	void (*exec_wake)(void *ctx, unsigned link); /* it sleeps on cmd_tail */
	void (*reload)(void *ctx); /* read the configuration again: broker_policy() follows */
	void (*log)(void *ctx, enum broker_log level, const char *line);
};

struct broker_setup {
	struct policy policy;
	struct broker_env env;
	void *journal; /* policy.journal_bytes, zeroed */
	struct onebit_stats *stats; /* the page clients may read; NULL: none */
	uint64_t epoch;
	bool has_executor; /* one is configured */
	const char *config_text; /* for ONEBIT_QUERY_CONFIG; must live as long as the broker */
	const struct onebit_finding *findings; /* for ONEBIT_QUERY_DOCTOR */
	uint32_t n_findings;
};

struct broker;

/* NULL when memory is short. */
struct broker *broker_new(const struct broker_setup *setup);
struct broker *broker_free(struct broker *b); /* returns NULL */

/* ---- clients ---- */

/*
 * Admit: check policy and quota, charge them, take a slot. 0: *client is set; else -errno and *why.
 * Then either broker_attach() with the memory (both regions zeroed and mapped; *w is filled) or
 * broker_detach(). granted features are in *features.
 */
int broker_admit(struct broker *b, uint32_t uid, const struct attach *a, uint32_t *client,
		 uint64_t *features, struct onebit_error *why);
void broker_attach(struct broker *b, uint32_t client, void *client_region, void *daemon_region,
		   struct onebit_welcome *w);
/* The client is gone: its requests are cancelled, its memory is not touched again. */
void broker_detach(struct broker *b, uint32_t client);
/* Its doorbell rang. */
void broker_doorbell(struct broker *b, uint32_t client);

/* ---- executor ---- */

void broker_exec_doorbell(struct broker *b, unsigned link);
/* It is gone. status as wait(2) gives it; -errno: it could not be started. */
void broker_exec_exited(struct broker *b, unsigned link, int status);

/* ---- time ---- */

/* One bounded turn. true: more work is waiting. */
bool broker_turn(struct broker *b);
/* true: no client's busy spinning calls for another turn at once and all rings were told to ring;
 * sleep until an event or *until_ns (UINT64_MAX: none). false: take another turn. */
bool broker_sleep(struct broker *b, uint64_t *until_ns);
/* CPU of the loop + 1, as clients are told; call when it changed. */
void broker_cpu(struct broker *b, uint32_t cpu);

/* ---- administration ---- */

void broker_policy(struct broker *b, const struct policy *p, const char *config_text);
void broker_drain(struct broker *b);
bool broker_is_drained(const struct broker *b); /* nothing is in flight, every executor is gone */
/* The link whose model serves, once its executor has said hello; else LINK_NONE. */
int broker_serving(const struct broker *b);
/* Nothing in flight, or an executor made progress within its deadline: what the watchdog says. */
bool broker_is_healthy(const struct broker *b);
const struct onebit_stats *broker_stats(struct broker *b);

#endif

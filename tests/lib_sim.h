/* SPDX-License-Identifier: MIT */
#ifndef LIB_SIM_H
#define LIB_SIM_H

/*
 * A world for the broker's core: virtual time, clients with regions in plain memory, executors that
 * are the loopback executor over plain memory, and one scheduler that lets all of them take turns
 * as a seed says. Everything that happens follows from the seed, so a failing run can be had again.
 *
 *   lib_sim.c         time, scheduling, the broker's environment, the end of a run
 *   lib_sim_exec.c    executor processes
 *   lib_sim_client.c  clients: rings, sleeping, dying
 *   lib_sim_ask.c     what clients ask for
 *   lib_sim_check.c   what they must get: the oracle
 *
 * Actors move in small steps where the protocol has a gap (between publishing and looking at the
 * other side's flag), so that the orders a real machine can show are among those tried.
 */

#include <stdbool.h>
#include <stdint.h>
#include "broker.h"
#include "loopback.h"

#define SIM_CLIENTS 12
#define SIM_REQUESTS 16 /* of one client at a time: each has its slot of arena and out area */
#define SIM_ARENA_SLOT 2048u
#define SIM_NEVER UINT64_MAX
#define SIM_MODELS 4

/* What may happen in a run; sim_swarm() lets the seed choose, a test may set them itself. */
struct sim_knobs {
	uint32_t clients;
	uint32_t ops;          /* submissions of all clients together */
	uint32_t slots;        /* of an executor */
	uint64_t delay_ns;
	uint32_t kill_every;
	uint32_t die_permille; /* a client's step is its last */
	uint32_t rest_permille;/* a client neither reaps nor looks for a while */
	uint32_t exec_kills;   /* at most so many kill -9 of executors by the world */
	uint32_t start_fail_percent;
	uint32_t directive_percent; /* of GENERATEs that ask for a fault */
	uint32_t poison_percent;    /* of those: ones that strike always */
	uint32_t cancel_percent;
	uint32_t deadline_percent;
	uint32_t bad_percent;
	uint32_t small_percent; /* out windows too small */
	uint32_t generate_percent; /* of submissions */
	bool admin, reload, hostile, spin, no_executor, tight, drain_busy;
};

enum sim_request_kind { SIM_NOP, SIM_ECHO, SIM_QUERY, SIM_GENERATE, SIM_TOKENIZE, SIM_DETOKENIZE,
			SIM_CANCEL, SIM_BAD, SIM_UNSUPPORTED, SIM_ADMIN };

/* What is wrong, or going to be, with a GENERATE. */
enum sim_fate { SIM_WELL, SIM_ONCE, SIM_POISON, SIM_FAIL, SIM_WRONG, SIM_BAD_UTF8 };

struct sim_request {
	bool used, accepted, told;
	enum sim_request_kind kind;
	enum sim_fate fate;
	struct onebit_sqe sqe;
	uint64_t submitted_ns;
	uint32_t deaths_then, world_deaths_then, index; /* of the SQE */
	bool scribbled, wrong_resume; /* resumed with ids that are not the answer's */
	uint32_t strike;
	bool cancel_asked;
	uint32_t seen_progress; /* in the CQ, while looking it through */
	uint32_t block_len;
	uint8_t block[SIM_ARENA_SLOT];
	struct onebit_params params; /* as sent, with the defaults the daemon fills in */
	uint32_t max_tokens;
	uint32_t n_choices;
	int model; /* index of the model that answers, -1: not known yet */
	uint64_t key;
	uint32_t next[ONEBIT_CHOICES_MAX], bytes[ONEBIT_CHOICES_MAX], first[ONEBIT_CHOICES_MAX];
};

enum sim_client_state { SIM_ABSENT, SIM_LIVE, SIM_DEAD };
enum sim_client_step { SIM_THINK, SIM_MARKING, SIM_PUBLISHED, SIM_REAPED, SIM_ARMED, SIM_LOOKED,
		       SIM_ASLEEP, SIM_RESTING };
struct sim_client {
	enum sim_client_state state;
	enum sim_client_step step;
	uint64_t at; /* when it does something next */
	bool woken, hostile, nervous, broken, muted, doorbell, rang, admin_right;
	uint32_t id, uid;
	uint32_t wake_kind;
	struct onebit_welcome w;
	uint8_t *client, *daemon; /* the regions */
	uint32_t sq_tail, cq_head;
	uint32_t sq_told, sq_marked; /* marked are SQEs below the one and from the other on */
	uint32_t futex_seen, futex_woken; /* the futex word: before arming, at the last wake-up */
	uint64_t broken_ns;
	uint32_t out_slot;
	uint32_t n_unfinished;
	uint64_t next_user_data;
	struct sim_request r[SIM_REQUESTS];
	struct { /* an answer cut short, to be resumed */
		bool set;
		struct sim_request r;
	} cut;
};

enum sim_exec_state { SIM_EXEC_NONE, SIM_EXEC_STARTING, SIM_EXEC_RUNNING, SIM_EXEC_STUCK,
		      SIM_EXEC_DYING };
enum sim_exec_step { SIM_STEP, SIM_KICK, SIM_SLEEPY, SIM_EXEC_ASLEEP };
struct sim_exec {
	enum sim_exec_state state;
	enum sim_exec_step step;
	uint64_t at, next; /* next: when loopback_step() wants to be called again */
	bool woken, doorbell, stop;
	int status;
	uint32_t generation, told;
	int model;
	struct exec_memory mem;
	struct executor e;
	struct loopback *l;
	struct sim *sim;
};

struct sim {
	uint64_t seed, rng, now;
	bool trace;
	char failure[400];
	struct sim_knobs k;
	struct policy policy;
	struct broker *b;
	void *journal;
	struct onebit_stats page;
	bool asleep, sleepy, reload_asked, admin_used, drained, draining, finishing;
	uint64_t until;
	uint32_t ops_left, kills_left;
	uint32_t deaths;       /* of executors */
	uint32_t world_deaths; /* those no request asked for */
	uint64_t next_world;   /* when the world does something unkind next */
	uint64_t steps;
	struct sim_exec exec[LINKS];
	struct sim_client c[SIM_CLIENTS];
	uint8_t by_id[CLIENTS_CEILING]; /* client id to place in c[] + 1 */
	uint64_t n_end[128], n_tokens, n_replayed; /* terminals by code: what the runs covered */
};

/* The knobs of a seed: each feature is in some runs and not in others. */
void sim_swarm(uint64_t seed, struct sim_knobs *k);
/* One whole run. 0, or -1 and s->failure says what broke. s is the caller's, overwritten. */
int sim_run(struct sim *s, uint64_t seed, const struct sim_knobs *k, bool trace);

/* ---- for the parts ---- */

uint64_t sim_random(struct sim *s);
uint32_t sim_below(struct sim *s, uint32_t n); /* 0..n-1 */
bool sim_chance(struct sim *s, uint32_t percent);
void sim_fail(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sim_trace(struct sim *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void sim_model_id(int model, uint8_t id[32]);
int sim_model_of(const uint8_t id[32]); /* -1: none of ours */

int sim_exec_memory(void *ctx, unsigned link, struct exec_memory *mem);
void sim_exec_start(void *ctx, unsigned link, uint32_t generation, const char *model);
void sim_exec_kill(void *ctx, unsigned link);
void sim_exec_wake(void *ctx, unsigned link);
bool sim_exec_ready(const struct sim *s, const struct sim_exec *x);
void sim_exec_step(struct sim *s, struct sim_exec *x);
void sim_exec_die(struct sim *s, struct sim_exec *x, int status);
void sim_exec_free(struct sim_exec *x);
uint64_t sim_exec_time(const struct sim_exec *x);

bool sim_client_ready(const struct sim *s, const struct sim_client *c);
uint64_t sim_client_time(const struct sim_client *c);
void sim_client_step(struct sim *s, struct sim_client *c);
void sim_client_hangup(struct sim *s, struct sim_client *c); /* the broker hears of its end */
void sim_client_forget(struct sim *s, struct sim_client *c);
uint32_t sim_client_waiting(const struct sim_client *c); /* CQEs that are there */
uint32_t sim_client_futex(const struct sim_client *c); /* the word it sleeps on */
/* A place for a request, or NULL; and the request that has this user_data, or NULL. */
struct sim_request *sim_client_find(struct sim_client *c, uint64_t user_data);

/* Fill r (its place in c->r is chosen) with something to ask for. */
void sim_ask(struct sim *s, struct sim_client *c, struct sim_request *r);

void sim_check_cqe(struct sim *s, struct sim_client *c, const struct onebit_cqe *cqe);
void sim_check_cq(struct sim *s, struct sim_client *c);
void sim_check_sleep(struct sim *s);

static inline uint8_t *sim_out(const struct sim_client *c, const struct sim_request *r)
{
	return c->daemon + c->w.out_off + r->sqe.out_off;
}

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LIB_E2E_H
#define LIB_E2E_H

#include <check.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include "lib_tmp.h"
#include "libonebit.h"

/*
 * End-to-end tests: a real onebitd with the loopback executor in a directory of its own, and what
 * its answers must be, known beforehand from loopback.h.
 *
 * Everything here that goes wrong ends the test: with the daemon's last log lines, its processes
 * killed and its directory removed. In a process made by e2e_fork() it ends that process with
 * status 1, which e2e_wait() turns into the test's failure.
 */

#define must(cond, ...) \
	do { \
		if (!(cond)) \
			e2e_fail(__FILE__, __LINE__, #cond, __VA_ARGS__); \
	} while (0)

/* Wait for something that must come to pass; how long is not judged, only that it is not for ever. */
#define until(cond, ...) \
	for (uint64_t end_ = e2e_now() + E2E_PATIENCE_NS; !(cond); e2e_nap(1)) \
		must(e2e_now() < end_, __VA_ARGS__)

#define E2E_PATIENCE_NS 60000000000ull

_Noreturn void e2e_fail(const char *file, int line, const char *cond, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

uint64_t e2e_now(void);
void e2e_nap(unsigned ms);

/* ---- chance and size --------------------------------------------------------------------------- */

/* ONEBIT_SEED, or a new one; printed once by main(). */
uint64_t e2e_seed(void);
uint64_t e2e_random(uint64_t *state);
uint32_t e2e_below(uint64_t *state, uint32_t n); /* 0..n-1 */
/* n at ONEBIT_SCALE = 100 percent, which is the default; at least 1. */
uint32_t e2e_scaled(uint32_t n);

/* ---- the daemon -------------------------------------------------------------------------------- */

struct e2e {
	pid_t pid; /* the launcher */
	char dir[80];
	char socket[100];
};

/*
 * A fresh directory with two models in it, "model-a" served and "model-b" beside it, and a daemon
 * that accepts clients. settings: further lines of the configuration. executor: arguments of the
 * loopback executor.
 */
void e2e_start(struct e2e *d, const char *executor, const char *settings);
/* Write the configuration anew; the daemon is told by whoever wants it told. */
void e2e_configure(const struct e2e *d, const char *executor, const char *settings);
void e2e_write(const struct e2e *d, const char *name, const char *text); /* a file in the directory */
/* In the same directory again, after e2e_kill(). */
void e2e_again(struct e2e *d);
/* The launcher dies at once and takes the others with it; the directory stays. */
void e2e_kill(struct e2e *d);
int e2e_wait_exit(struct e2e *d); /* status as a shell has it; the directory stays */
void e2e_remove(struct e2e *d);
/* SIGTERM; it must exit 0. Then e2e_remove(). */
void e2e_stop(struct e2e *d);

/* false in a build that needs the sandbox off. */
bool e2e_has_sandbox(void);
/* 0: none now. */
pid_t e2e_broker(const struct e2e *d);
pid_t e2e_executor(const struct e2e *d);
/* Open descriptors of a process; -1: not allowed to look. */
int e2e_fds(pid_t pid);
/* A number of /proc/PID/status, such as "RssAnon" (kB) or "Seccomp". */
long e2e_status(pid_t pid, const char *name);

/* A process that fails the test by dying; 0 in the child, which ends by e2e_done(). */
pid_t e2e_fork(void);
_Noreturn void e2e_done(void);
void e2e_wait(pid_t pid);

/* ---- requests ---------------------------------------------------------------------------------- */

/* Attached, with every right asked for. options may be NULL. */
struct onebit *e2e_open(const struct e2e *d, const struct onebit_options *options);
struct onebit_stats e2e_stats(struct onebit *o);

struct e2e_answer {
	int32_t res;
	struct onebit_error error;
	size_t len;
	uint8_t data[256 << 10];
};
/* Submit one request and wait for its end; no other may be in flight. */
const struct e2e_answer *e2e_ask(struct onebit *o, const struct onebit_request *rq);
const struct e2e_answer *e2e_query(struct onebit *o, uint32_t topic);
void e2e_model(struct onebit *o, uint8_t model_id[32]); /* of the model that serves */

/* The block of a request as a client without libonebit would write it; its bytes. ids: resume. */
uint32_t e2e_block(void *block, const struct onebit_request *rq, const uint32_t *ids, uint32_t n_ids);
#define E2E_BLOCK_MAX 65536u

/*
 * One answer on its way, and what was checked of it. Each token must have the next index, the id and
 * the bytes that loopback.h foretells; nothing may come after the end.
 */
struct e2e_stream {
	uint64_t id;
	uint64_t key;
	uint32_t max_tokens, n_choices, top;
	bool logprobs;
	bool accepted, ended;
	bool moved; /* something came since whoever uses this cleared it */
	uint32_t next[ONEBIT_CHOICES_MAX];
	int32_t res;
	uint32_t replays;
	struct onebit_error error;
	char prompt[96];
};

/* 0, or -EAGAIN. rq may be NULL: max_tokens 128, all else default. The prompt is copied. */
int e2e_submit(struct onebit *o, struct e2e_stream *s, const uint8_t model_id[32],
	       const char *prompt, const struct onebit_request *rq);
/* Check one event and say whose it was. */
struct e2e_stream *e2e_take(const struct onebit_event *ev);
/* Take one event within timeout_ms, if there is one. */
struct e2e_stream *e2e_next(struct onebit *o, int timeout_ms);
/* Take events until all n have ended. */
void e2e_finish(struct onebit *o, const struct e2e_stream *s, size_t n);
/* It must have ended with this ONEBIT_E_*. */
void e2e_expect(const struct e2e_stream *s, unsigned code);
/* Nothing more may come. */
void e2e_quiet(struct onebit *o);

Suite *e2e_suite(const char *name);
/* A test, run with _i from 0 to n - 1, as a case of its own: CK_RUN_CASE=NAME runs it alone. */
#define e2e_add(s, test, n) \
	do { \
		TCase *case_ = tcase_create(#test); \
		tmp_fixture(case_); \
		tcase_add_loop_test(case_, test, 0, (int)(n)); \
		suite_add_tcase(s, case_); \
	} while (0)
/* Print the seed, run the suite. The program's exit status. */
int e2e_main(Suite *s);

#endif

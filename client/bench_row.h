/* SPDX-License-Identifier: MIT */
#ifndef BENCH_ROW_H
#define BENCH_ROW_H

#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>
#include <time.h>
#include "bench_hist.h"
#include "libonebit.h"

/*
 * What is measured: rows, each with a function that runs it for a while at a place, and a goal.
 * Rows are run in rounds, A B C A B C, because a machine changes under a benchmark; a ratio is taken
 * within each round, and of figures and ratios the median over the rounds is told.
 */

/* Which CPUs the two sides of a row run on. */
enum place {
	PLACE_TWO, /* we on bench.cpu[0], the other side on bench.cpu[1] */
	PLACE_ONE, /* both on bench.cpu[0] */
	PLACE_FREE, /* where the scheduler likes */
};

enum unit { UNIT_NS, UNIT_US, UNIT_MOPS, UNIT_COUNT, UNIT_PERCENT };

enum { ROUNDS_MAX = 5, FLEET_MAX = 4096 };

struct bench {
	const char *socket;
	pid_t broker; /* 0: not found, then only our side is pinned */
	struct onebit *control; /* keeps the stats page; never used for a measurement */
	cpu_set_t cpus; /* all we may use */
	int n_cpus;
	int cpu[2];
	unsigned block; /* round trips timed together in rows that spin */
	double clock_ns; /* what reading the clock costs */
	struct onebit **fleet; /* attachments of the rows that need many; owned */
	unsigned n_fleet;
	double idle_cpu_percent; /* found by the row about wake-ups, told by the next one */
	unsigned idle_ms;
	char why[256]; /* set by whatever failed last */
};

struct row;
/* Run for about ns. 0: *h has durations, or *value is set for rows without; else -errno and why. */
typedef int row_run(struct bench *b, const struct row *r, uint64_t ns, struct hist *h,
		    double *value);

struct row {
	char name[40];
	char label[48];
	char key[40]; /* of its figure in JSON */
	const char *group;
	row_run *run;
	int kind; /* for run: which peer, which wait, ... */
	enum place place;
	enum unit unit;
	unsigned fleet;	 /* attachments held meanwhile */
	unsigned clients, batch; /* told in JSON when not 0 */
	double weight;	 /* share of time, 1 is usual */
	double quantile; /* which one is the row's figure */
	bool once;	 /* in the last round only */
	bool plot;

	/* Goal: figure <= factor * ref + plus; or <= most; or >= least (by how far the CPUs are). */
	const char *ref; /* name of the row that the ratio is to */
	const char *ratio_key;
	double factor, plus;
	double most;
	double least_far, least_near;
	bool has_most;

	/* results */
	bool wanted, skipped, failed;
	int n_values;
	int round[ROUNDS_MAX]; /* in which round each was taken */
	double values[ROUNDS_MAX];
	struct hist *hist; /* of all rounds; NULL for rows without durations */
	char why[256];
};

enum { LIST_MAX = 8, ROWS_MAX = 48 + LIST_MAX * LIST_MAX };

struct list {
	unsigned n, v[LIST_MAX];
};

struct rows {
	struct list clients, batch; /* of the throughput rows */
	struct row row[ROWS_MAX];
	int n;
};

static inline uint64_t bench_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline void bench_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield");
#endif
}

static inline void bench_spin(uint64_t ns)
{
	uint64_t end = bench_now() + ns;

	while (bench_now() < end)
		bench_pause();
}

/* Format into b->why and hand ret on. */
int bench_fail(struct bench *b, int ret, const char *format, ...)
	__attribute__((format(printf, 3, 4)));

/* ---- bench_rows.c ---- */
void rows_make(struct rows *p);

/* ---- bench_place.c ---- */
/* pin: "A,B" or NULL: the first two CPUs that are different cores. 0, or -errno and why. */
int place_init(struct bench *b, const char *pin);
void place_set(struct bench *b, enum place place);
/* The calling thread's side of a place: 0 ours, 1 the other one's. */
void place_side(const struct bench *b, enum place place, int side);
pid_t place_find_broker(pid_t launcher);
/* Who listens at a socket; 0: unknown. */
pid_t place_find_launcher(const char *socket);
/* Nanoseconds of CPU that a process has used; 0: unknown. */
uint64_t place_cpu_ns(pid_t pid);

/* ---- bench_attach.c ---- */
int bench_open(struct bench *b, struct onebit **o, uint32_t wait, uint64_t features);
int fleet_set(struct bench *b, unsigned n);
row_run attach_handshake, attach_death, attach_idle_wakeups, attach_idle_cpu;

/* ---- bench_rtt.c ---- */
enum rtt_kind { RTT_SPIN, RTT_SLEEP, RTT_ADAPTIVE };
/* One NOP there and back, waiting as the attachment does. */
int rtt_trip(struct bench *b, struct onebit *o, uint64_t tag);
row_run rtt_run, rtt_wake;

/* ---- bench_line.c ---- */
enum line_kind { LINE_ONE, LINE_PAIR };
int line_calibrate(struct bench *b); /* sets block and clock_ns */
row_run line_run;

/* ---- bench_peers.c ---- */
enum peer_kind { PEER_PIPE, PEER_SEQPACKET, PEER_EVENTFD, PEER_FUTEX, PEER_TCP, PEER_COUNT };
extern const char *const peer_names[PEER_COUNT];
row_run peer_run;

/* ---- bench_uring.c ---- */
row_run uring_rtt, uring_tput;

/* ---- bench_tput.c ---- */
enum { TPUT_DEPTH = 64 }; /* entries of each ring: what may be on its way */
row_run tput_run;

/* ---- bench_attack.c ---- */
enum attack_kind { ATTACK_BURNER, ATTACK_RING };
row_run attack_run;

/* ---- bench_report.c ---- */
double report_figure(const struct row *r); /* median over the rounds */
void report_head(const struct bench *b, FILE *f, bool json, const struct row *line, unsigned rounds,
		 double slot_ms);
void report_row(const struct row *r, const struct row *ref, const struct row *line, FILE *f,
		bool json);

/* ---- bench_plot.c ---- */
/* 0 or -errno. */
int plot_write(const char *path, const struct row *rows, int n_rows, const struct row *line);

#endif

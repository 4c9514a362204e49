/* SPDX-License-Identifier: MIT */
#ifndef BENCH_ENGINE_H
#define BENCH_ENGINE_H

/*
 * How fast the engine runs a model in this process, and what the machine could do at most meanwhile:
 * rounds of everything, the probes before and after in each, because machines change while one
 * measures. For `onebit bench model`.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BENCH_ROUNDS_MAX 101u
#define BENCH_OPS_MAX	 16u

struct bench_engine_options {
	unsigned threads, rounds;
	bool pin;
	uint32_t ctx;	  /* positions before those that are timed */
	uint32_t tokens;  /* timed in a round */
	uint32_t prefill; /* prompt tokens that are timed; 0: none are */
	uint32_t streams; /* answers at a time; 0: that is not measured */
	uint32_t chunk;	  /* prompt tokens of a step; 0: the engine's own */
	uint32_t kv_form; /* KV_F16, KV_INT8 */
	bool speculation;
	size_t probe_bytes; /* read by the probe */
	bool sampled; /* drawn from the whole distribution; else the likeliest token is taken */
};

/* What one thing did, in each round. */
struct bench_series {
	double of[BENCH_ROUNDS_MAX];
};

/* Of an operation, for each token of decoding. */
struct bench_op {
	const char *name;
	double count, us, bytes;
};

struct bench_engine_figures {
	unsigned rounds;
	char backend[32], layout[8];
	uint64_t weight_bytes, head_bytes, kv_position_bytes, macs, head_macs;
	uint64_t kv_bytes, work_bytes, model_bytes; /* taken, mapped */

	struct bench_series bw_gbs;    /* the mean of before and after */
	struct bench_series macs_g;    /* 10^9 a second */
	struct bench_series decode_tps, prefill_tps, streams_tps;
	double position, streams_position; /* of the timed tokens, the mean */
	struct bench_op ops[BENCH_OPS_MAX];
	uint32_t n_ops;
	uint64_t drafted, accepted;
	uint64_t rss_bytes; /* resident after the last round, the probes' memory given back */
};

/*
 * path: an .obm. 0, or negative errno with a sentence: as the engine's, -EDOM arithmetic left its
 * range, -EINVAL what is asked for does not fit into the model's context.
 */
int bench_engine(const char *path, const struct bench_engine_options *o,
		 struct bench_engine_figures *f, char *why, size_t why_len);

/* Open, as a service would, and write one token after a short prompt; in seconds since begin. */
int bench_engine_once(const char *path, const struct bench_engine_options *o, double begin,
		      double *opened, double *first, char *why, size_t why_len);

/* The middle one of the rounds. */
double bench_median(const struct bench_series *s, unsigned rounds);

#endif

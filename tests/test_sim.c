/* SPDX-License-Identifier: MIT */
/*
 * Seeded runs of the broker's core in a simulated world (lib_sim.h). A failing seed is printed and
 * can be had again with a trace: ONEBIT_SEED=n ONEBIT_SEEDS=1 ONEBIT_TRACE=1 build/tests/test_sim
 * ONEBIT_SEEDS: how many (default 1200), from ONEBIT_SEED (default 1) on.
 */
#include <check.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lib_sim.h"

static struct sim sim;

/* An assertion of the core ends the process: say which seed it was before that. */
static void on_abort(int sig)
{
	fprintf(stderr, "seed %llu: aborted at %.6f ms\n", (unsigned long long)sim.seed,
		(double)sim.now / 1e6);
	signal(sig, SIG_DFL);
}

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *v = getenv(name);

	return v ? strtoull(v, NULL, 0) : otherwise;
}

static void run(uint64_t seed, const struct sim_knobs *k, bool trace)
{
	signal(SIGABRT, on_abort);
	if (sim_run(&sim, seed, k, trace) == 0)
		return;
	fprintf(stderr, "seed %llu: %s\n", (unsigned long long)seed, sim.failure);
	ck_abort_msg("seed %llu: %s", (unsigned long long)seed, sim.failure);
}

/* Any promise of broker.h and onebit.h that breaks under some order of events, faults included. */
START_TEST(any_seed)
{
	uint64_t first = number("ONEBIT_SEED", 1), n = number("ONEBIT_SEEDS", 1200), i;
	uint64_t ends[128] = { 0 }, tokens = 0, replayed = 0, deaths = 0, virtual_ns = 0;
	bool trace = number("ONEBIT_TRACE", 0), verbose = number("ONEBIT_VERBOSE", 0);
	struct sim_knobs k;

	for (i = first; i < first + n; i++) {
		sim_swarm(i, &k);
		if (verbose)
			fprintf(stderr, "seed %llu\n", (unsigned long long)i);
		run(i, &k, trace);
		for (int c = 0; c < 128; c++)
			ends[c] += sim.n_end[c];
		tokens += sim.n_tokens;
		replayed += sim.n_replayed;
		deaths += sim.deaths;
		virtual_ns += sim.now;
	}
	printf("seeds %llu..%llu: %.0f s virtual, %llu tokens, %llu executor deaths, %llu "
	       "replays told; terminals by code:", (unsigned long long)first,
	       (unsigned long long)(first + n - 1), (double)virtual_ns / 1e9,
	       (unsigned long long)tokens, (unsigned long long)deaths,
	       (unsigned long long)replayed);
	for (int c = 0; c < 128; c++)
		if (ends[c])
			printf(" %d:%llu", c, (unsigned long long)ends[c]);
	putchar('\n');
	if (n < 1000)
		return;
	/* A run that no longer reaches its subject proves nothing. */
	ck_assert_uint_gt(ends[ONEBIT_E_OK], 1000);
	ck_assert_uint_gt(ends[ONEBIT_E_CANCELLED], 10);
	ck_assert_uint_gt(ends[ONEBIT_E_POISON], 10);
	ck_assert_uint_gt(ends[ONEBIT_E_DEADLINE], 10);
	ck_assert_uint_gt(ends[ONEBIT_E_NONDETERMINISM], 1);
	ck_assert_uint_gt(ends[ONEBIT_E_WINDOW_FULL], 1);
	ck_assert_uint_gt(deaths, 100);
	ck_assert_uint_gt(replayed, 100);
}
END_TEST

/* The same seed giving another run: then no failure could be had again. */
START_TEST(a_seed_replays)
{
	uint64_t seed = number("ONEBIT_SEED", 1), now, rng;
	struct sim_knobs k;

	for (int i = 0; i < 20; i++) {
		sim_swarm(seed + (uint64_t)i, &k);
		run(seed + (uint64_t)i, &k, false);
		now = sim.now;
		rng = sim.rng;
		run(seed + (uint64_t)i, &k, false);
		ck_assert_uint_eq(sim.now, now);
		ck_assert_uint_eq(sim.rng, rng);
	}
}
END_TEST

/* One poisonous request taking others with it. */
START_TEST(poison_hurts_itself_only)
{
	const struct sim_knobs k = { .clients = 8, .ops = 120, .slots = 16, .delay_ns = 100000,
				     .generate_percent = 100, .directive_percent = 15,
				     .poison_percent = 100 };
	uint64_t poisoned = 0;

	for (uint64_t i = 0; i < 20; i++) {
		run(number("ONEBIT_SEED", 1) + i, &k, false);
		poisoned += sim.n_end[ONEBIT_E_POISON];
		/* Nothing else may fail in this world. */
		for (int c = 1; c < 128; c++)
			if (c != ONEBIT_E_POISON && c != ONEBIT_E_Q_INFLIGHT &&
			    c != ONEBIT_E_EXECUTOR && c != ONEBIT_E_NONDETERMINISM &&
			    c != ONEBIT_E_REPLAY_REFUSED && c != ONEBIT_E_WINDOW_FULL &&
			    c != ONEBIT_E_OUT_TOO_SMALL && c != ONEBIT_E_LOST)
				ck_assert_msg(!sim.n_end[c], "code %d", c);
	}
	ck_assert_uint_gt(poisoned, 20);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("sim");
	TCase *t = tcase_create("sim");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 0);
	tcase_add_test(t, any_seed);
	if (!getenv("ONEBIT_SEEDS")) {
		tcase_add_test(t, a_seed_replays);
		tcase_add_test(t, poison_hurts_itself_only);
	}
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* SPDX-License-Identifier: MIT */
/*
 * The table of what `onebit bench ring` measures: names, places, goals. The goals are the project's
 * own promises for the ring; their constants stand here and nowhere else. The order is that of a
 * round and of the report: a row stands behind the one that its ratio is to.
 */
#include "bench_row.h"

static struct row *add(struct rows *p, const char *group, const char *name, const char *key,
		       const char *label, row_run *run, int kind, enum place place)
{
	struct row *r = &p->row[p->n++];

	*r = (struct row){ .group = group, .run = run, .kind = kind, .place = place, .weight = 1,
			   .quantile = 0.5 };
	snprintf(r->name, sizeof(r->name), "%s", name);
	snprintf(r->key, sizeof(r->key), "%s", key);
	snprintf(r->label, sizeof(r->label), "%s", label);
	return r;
}

static void goal_ratio(struct row *r, const char *ref, const char *key, double factor, double plus)
{
	r->ref = ref;
	r->ratio_key = key;
	r->factor = factor;
	r->plus = plus;
}

static void goal_most(struct row *r, enum unit unit, double most)
{
	r->unit = unit;
	r->most = most;
	r->has_most = true;
}

static void add_peers(struct rows *p, enum place place, const char *where, const char *label)
{
	char name[24], key[40], text[48];

	for (int k = 0; k < PEER_COUNT; k++) {
		struct row *r;

		snprintf(name, sizeof(name), "%s%s", peer_names[k], where);
		snprintf(key, sizeof(key), "%s_rtt_p50_ns", name);
		snprintf(text, sizeof(text), "%s, %s", peer_names[k], label);
		r = add(p, "peers", name, key, text, peer_run, k, place);
		goal_ratio(r, "line", "over_line", 0, 0);
		r->plot = place == PLACE_TWO && k != PEER_FUTEX;
	}
}

static void add_trips(struct rows *p)
{
	struct row *r;

	r = add(p, "line", "line", "line_rtt_ns", "line probe", line_run, LINE_ONE, PLACE_TWO);
	r->weight = 0.5;
	r = add(p, "line", "line_pair", "line_pair_rtt_ns", "line probe, one line each way", line_run,
		LINE_PAIR, PLACE_TWO);
	r->weight = 0.5;
	goal_ratio(r, "line", "over_line", 0, 0);
	r = add(p, "rtt", "spin", "spin_rtt_p50_ns", "ring, spinning", rtt_run, RTT_SPIN, PLACE_TWO);
	goal_ratio(r, "line", "spin_over_line", 1.3, 30);
	r->plot = true;
	add_peers(p, PLACE_TWO, "", "two CPUs");
	r = add(p, "rtt", "sleep", "sleep_rtt_p50_ns", "ring, sleeping, two CPUs", rtt_run, RTT_SLEEP,
		PLACE_TWO);
	goal_ratio(r, "pipe", "sleep_over_pipe_two", 1.05, 0);
	r->plot = true;
	add_peers(p, PLACE_ONE, "_one", "one CPU");
	r = add(p, "rtt", "sleep_one", "sleep_one_rtt_p50_ns", "ring, sleeping, one CPU", rtt_run,
		RTT_SLEEP, PLACE_ONE);
	goal_ratio(r, "pipe_one", "sleep_over_pipe_one", 1.15, 0);
	r = add(p, "peers", "pipe_free", "pipe_free_rtt_p50_ns", "pipe, unpinned", peer_run, PEER_PIPE,
		PLACE_FREE);
	goal_ratio(r, "line", "over_line", 0, 0);
	r = add(p, "rtt", "sleep_free", "sleep_free_rtt_p50_ns", "ring, sleeping, unpinned", rtt_run,
		RTT_SLEEP, PLACE_FREE);
	goal_ratio(r, "line", "over_line", 0, 0);
	r = add(p, "rtt", "adaptive", "adaptive_rtt_p50_ns", "ring, adaptive, unpinned", rtt_run,
		RTT_ADAPTIVE, PLACE_FREE);
	goal_ratio(r, "sleep_free", "adaptive_over_sleep", 1.3, 0);
	r = add(p, "uring", "uring_nop", "uring_nop_rtt_p50_ns", "io_uring NOP, one thread", uring_rtt,
		0, PLACE_TWO);
	goal_ratio(r, "line", "over_line", 0, 0);
}

static void add_throughput(struct rows *p)
{
	char name[40], text[48];
	struct row *r;

	for (unsigned k = 0; k < p->batch.n; k++) {
		snprintf(name, sizeof(name), "uring_nop_b%u", p->batch.v[k]);
		snprintf(text, sizeof(text), "io_uring NOP, batch %u", p->batch.v[k]);
		r = add(p, "uring", name, "uring_tput_mops", text, uring_tput, 0, PLACE_TWO);
		r->unit = UNIT_MOPS;
		r->batch = p->batch.v[k];
		r->weight = 0.5;
	}
	for (unsigned i = 0; i < p->clients.n; i++) {
		for (unsigned k = 0; k < p->batch.n; k++) {
			unsigned c = p->clients.v[i], b = p->batch.v[k];

			snprintf(name, sizeof(name), "tput_c%u_b%u", c, b);
			snprintf(text, sizeof(text), "throughput, %u client%s, batch %u", c,
				 c == 1 ? "" : "s", b);
			r = add(p, "tput", name, "tput_mops", text, tput_run, 0, PLACE_TWO);
			r->unit = UNIT_MOPS;
			r->fleet = r->clients = c;
			r->batch = b;
			if (c == 16 && b == 8) {
				r->least_far = 6;
				r->least_near = 30;
			}
		}
	}
}

static void add_attachments(struct rows *p)
{
	struct row *r;

	r = add(p, "attach", "handshake", "handshake_p50_us", "attach", attach_handshake, 0, PLACE_FREE);
	goal_most(r, UNIT_US, 120);
	r = add(p, "attach", "death", "death_p50_us", "death of a client, until told", attach_death, 0,
		PLACE_TWO);
	goal_most(r, UNIT_US, 250);
	r = add(p, "attack", "victim_burner", "victim_burner_p99_ns", "victim beside CPU burners",
		attack_run, ATTACK_BURNER, PLACE_TWO);
	r->quantile = 0.99;
	r->weight = 2;
	r = add(p, "attack", "victim_attack", "victim_attack_p99_ns", "victim beside attackers",
		attack_run, ATTACK_RING, PLACE_TWO);
	goal_ratio(r, "victim_burner", "attack_p99_ratio", 1.1, 0);
	r->quantile = 0.99;
	r->weight = 2;
	r = add(p, "wake", "wake_1", "wake_1_p50_ns", "wake, 1 attached", rtt_wake, 0, PLACE_TWO);
	r->fleet = r->clients = 1;
}

static void add_many(struct rows *p)
{
	struct row *r;

	r = add(p, "wake", "wake_1024", "wake_1024_p50_ns", "wake, 1,024 attached", rtt_wake, 0,
		PLACE_TWO);
	r->fleet = r->clients = 1024;
	goal_ratio(r, "wake_1", "wake_1024_over_1", 1.2, 0);
	r = add(p, "idle", "idle_wakeups", "idle_wakeups", "wake-ups, 1,024 attached, idle",
		attach_idle_wakeups, 0, PLACE_TWO);
	r->fleet = r->clients = 1024;
	r->weight = 0;
	r->once = true;
	goal_most(r, UNIT_COUNT, 0);
	r = add(p, "idle", "idle_cpu", "idle_cpu_percent", "CPU meanwhile", attach_idle_cpu, 0,
		PLACE_TWO);
	r->fleet = r->clients = 1024;
	r->weight = 0;
	r->once = true;
	goal_most(r, UNIT_PERCENT, 0.1);
}

void rows_make(struct rows *p)
{
	add_trips(p);
	add_attachments(p);
	add_throughput(p);
	add_many(p);
}

/* SPDX-License-Identifier: MIT */
/*
 * The daemon goes away and comes back while answers stream. libonebit attaches again and submits
 * what had not ended with what was already told, so the program sees a pause: no token lost, none
 * doubled, the bytes of an undisturbed run. Where that cannot be, it says so once and clearly.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "lib_e2e.h"

#define PATIENCE_MS 60000
#define EXECUTOR    "--delay-us 300 --slots 16"

static struct e2e d;
static uint8_t model[32];

static struct onebit *start(const struct onebit_options *options, const char *settings)
{
	struct onebit *o;

	e2e_start(&d, EXECUTOR, settings);
	o = e2e_open(&d, options);
	e2e_model(o, model);
	return o;
}

static void stop(struct onebit *o)
{
	onebit_close(o);
	e2e_stop(&d);
}

static void submit_all(struct onebit *o, struct e2e_stream *st, int n, uint32_t tokens)
{
	struct onebit_request rq = { .params = { .max_tokens = tokens,
						 .flags = ONEBIT_PARAM_IGNORE_EOS } };
	char prompt[40];

	for (int i = 0; i < n; i++) {
		snprintf(prompt, sizeof(prompt), "stream %d", i);
		rq.params.seed++;
		rq.params.n_choices = (uint16_t)(1 + i % 2);
		must(!e2e_submit(o, &st[i], model, prompt, &rq), "submit");
	}
}

/* Until each of them has at least so many tokens more. */
static void stream_on(struct onebit *o, struct e2e_stream *st, int n, uint32_t tokens)
{
	for (int i = 0; i < n; i++) {
		uint32_t from = st[i].next[0];

		while (!st[i].ended && st[i].next[0] < from + tokens)
			must(e2e_next(o, PATIENCE_MS), "nothing comes");
	}
}

static void expect_all(const struct e2e_stream *st, int n, unsigned code)
{
	for (int i = 0; i < n; i++)
		e2e_expect(&st[i], code);
}

static void kill_broker(pid_t *last)
{
	pid_t pid;

	until((pid = e2e_broker(&d)) && pid != *last, "the broker does not come back");
	must(!kill(pid, SIGKILL), "kill: %s", strerror(errno));
	*last = pid;
}

/* ---- the broker is killed ---------------------------------------------------------------------- */

static void brokers_die_here(uint32_t deaths, uint64_t rnd)
{
	enum { CLIENTS = 3, EACH = 4 };
	struct onebit *o[CLIENTS];
	static struct e2e_stream st[CLIENTS][EACH];
	const struct onebit_request nop = { .op = ONEBIT_OP_NOP };
	struct onebit_stats s;
	uint64_t epoch;
	pid_t last = 0;

	o[0] = start(NULL, "");
	for (int c = 1; c < CLIENTS; c++)
		o[c] = e2e_open(&d, NULL);
	epoch = onebit_welcome(o[0])->epoch;
	for (int c = 0; c < CLIENTS; c++)
		submit_all(o[c], st[c], EACH, 100 * deaths + 100);
	for (uint32_t n = 0; n < deaths; n++) {
		for (int c = 0; c < CLIENTS; c++)
			stream_on(o[c], st[c], EACH, 1 + e2e_below(&rnd, 20));
		e2e_nap(e2e_below(&rnd, 8)); /* nobody takes what comes: that must not matter */
		kill_broker(&last);
	}
	for (int c = 0; c < CLIENTS; c++) {
		e2e_finish(o[c], st[c], EACH);
		expect_all(st[c], EACH, ONEBIT_E_OK);
		e2e_quiet(o[c]);
	}
	/* Who had nothing in flight at the last death is not attached before it wants something. */
	must(!e2e_ask(o[0], &nop)->res, "NOP");
	must(onebit_welcome(o[0])->epoch != epoch, "another broker, the same epoch");
	for (int c = 1; c < CLIENTS; c++)
		onebit_close(o[c]);
	until((s = e2e_stats(o[0])).clients == 1 && !s.running && !s.journal_bytes,
	      "not given back: %u clients, %u running, %llu bytes in the journal", s.clients, s.running,
	      (unsigned long long)s.journal_bytes);
	stop(o[0]);
}

/* What breaks: a broker's death loses or doubles a token of a client that attaches again. */
START_TEST(brokers_die)
{
	/* The launcher waits longer after each death, so many daemons die a few times each. */
	enum { DAEMONS = 5, ROUNDS = 2, DEATHS = 6 };
	pid_t worker[DAEMONS];

	for (int round = 0; round < ROUNDS; round++) {
		for (int i = 0; i < DAEMONS; i++) {
			worker[i] = e2e_fork();
			if (!worker[i]) {
				brokers_die_here(e2e_scaled(DEATHS),
						 e2e_seed() * 131 + (unsigned)(round * DAEMONS + i));
				e2e_done();
			}
		}
		for (int i = 0; i < DAEMONS; i++)
			e2e_wait(worker[i]);
	}
}
END_TEST

/* What breaks: a program with its own event loop is not told after a re-attachment. */
START_TEST(foreign_loop)
{
	enum { N = 4 };
	struct onebit *o = start(NULL, "");
	struct pollfd p = { .fd = onebit_fd(o), .events = POLLIN };
	struct e2e_stream st[N];
	uint32_t ended = 0, kills = 0, tokens = 0;
	pid_t last = 0;

	must(p.fd >= 0, "no descriptor: %d", p.fd);
	submit_all(o, st, N, 300);
	while (ended < N) {
		struct e2e_stream *s;

		/* No further than to the next death: on a slow machine all may be there at once. */
		while ((kills == 3 || tokens <= 200 * (kills + 1)) && (s = e2e_next(o, 0))) {
			ended += s->ended;
			tokens++;
		}
		if (kills < 3 && tokens > 200 * (kills + 1)) {
			kill_broker(&last);
			kills++;
			continue;
		}
		must(onebit_fd(o) == p.fd, "the descriptor has another number");
		if (ended < N && !onebit_arm(o))
			must(poll(&p, 1, PATIENCE_MS) == 1, "the descriptor does not tell");
	}
	expect_all(st, N, ONEBIT_E_OK);
	must(kills == 3, "the answers were too short for %u kills", kills);
	stop(o);
}
END_TEST

/* What breaks: a cancel that meets a lost daemon is forgotten, and the answer goes on. */
START_TEST(cancel_while_away)
{
	enum { N = 4 };
	struct onebit *o = start(NULL, "");
	struct e2e_stream st[N];
	pid_t last = 0;

	submit_all(o, st, N, 200);
	stream_on(o, st, N, 5);
	kill_broker(&last);
	must(!onebit_cancel(o, st[0].id), "cancel");
	e2e_nap(5);
	must(!onebit_cancel(o, st[1].id), "cancel");
	e2e_finish(o, st, N);
	expect_all(st, 2, ONEBIT_E_CANCELLED);
	expect_all(st + 2, N - 2, ONEBIT_E_OK);
	stop(o);
}
END_TEST

/* ---- the whole daemon goes --------------------------------------------------------------------- */

/* What breaks: a new daemon with the same model does not go on where the old one was killed. */
START_TEST(daemon_comes_back)
{
	enum { N = 6, LENGTH = 1000 };
	struct onebit *o = start(NULL, "");
	struct e2e_stream st[N];
	uint32_t left = 0;

	submit_all(o, st, N, LENGTH);
	for (int i = 0; i < 3; i++) {
		stream_on(o, st, N, 20);
		e2e_kill(&d);
		e2e_again(&d);
	}
	for (int i = 0; i < N; i++)
		for (uint32_t c = 0; c < st[i].n_choices; c++)
			left += LENGTH - st[i].next[c];
	e2e_finish(o, st, N);
	expect_all(st, N, ONEBIT_E_OK);
	until(!e2e_stats(o).running, "it runs on");
	/* At most one token of each choice is made again, to be compared. */
	must(e2e_stats(o).tokens <= left + 2 * N, "%llu tokens for %u that were left",
	     (unsigned long long)e2e_stats(o).tokens, left);
	stop(o);
}
END_TEST

/* What breaks: SIGTERM and a start again, as an upgrade does it, costs a client its answers. */
START_TEST(upgrade)
{
	enum { N = 6 };
	struct onebit *o = start(NULL, "drain_ms = 200\n");
	struct e2e_stream st[N], late;
	int status;

	submit_all(o, st, N, 2500); /* much longer than the drain lasts */
	stream_on(o, st, N, 5);
	kill(d.pid, SIGTERM);
	until(e2e_stats(o).state == ONEBIT_STATE_DRAINING, "it does not drain");
	must(!e2e_submit(o, &late, model, "between two daemons", NULL), "submit");
	status = e2e_wait_exit(&d);
	must(!status, "exit status %d", status);
	e2e_again(&d);
	e2e_finish(o, st, N);
	expect_all(st, N, ONEBIT_E_OK);
	e2e_finish(o, &late, 1);
	e2e_expect(&late, ONEBIT_E_OK);
	stop(o);
}
END_TEST

/* What breaks: an answer begun by one model is finished by another. */
START_TEST(model_changed_meanwhile)
{
	enum { N = 6 };
	struct onebit *o = start(NULL, "");
	struct e2e_stream st[N], new;
	uint8_t other[32];

	submit_all(o, st, N, 2000);
	stream_on(o, st, N, 10);
	e2e_kill(&d);
	e2e_write(&d, "model-a", "the same name, another content\n");
	e2e_again(&d);
	e2e_finish(o, st, N);
	expect_all(st, N, ONEBIT_E_LOST);
	must(st[0].res == -ESTALE && !st[0].error.retryable, "%d %s", st[0].res, st[0].error.text);
	e2e_model(o, other);
	must(memcmp(other, model, 32), "the new content has the old identity");
	must(!e2e_submit(o, &new, other, "from the new model", NULL), "submit");
	e2e_finish(o, &new, 1);
	e2e_expect(&new, ONEBIT_E_OK);
	stop(o);
}
END_TEST

/* Each must have had its one end, and the attachment must stay ended. */
static void expect_gone(struct onebit *o, struct e2e_stream *st, int n)
{
	struct onebit_request rq = { .op = ONEBIT_OP_NOP };
	struct onebit_event ev;
	uint64_t id;

	e2e_finish(o, st, (size_t)n);
	for (int i = 0; i < n; i++)
		must(st[i].res == -ECONNRESET && st[i].next[0] && strstr(st[i].error.text, "daemon"),
		     "%d %s", st[i].res, st[i].error.text);
	for (int i = 0; i < 2; i++)
		must(onebit_next(o, &ev, 10) == -ECONNRESET, "events after the end");
	must(onebit_submit(o, &rq, &id) == -ECONNRESET && onebit_last_error(o)->text[0],
	     "a request to nobody is taken");
}

/* What breaks: a daemon that stays away leaves its client waiting for ever, or without a reason. */
START_TEST(daemon_stays_away)
{
	enum { N = 4 };
	const struct onebit_options options = { .reconnect_ms = 300 };
	struct onebit *o = start(&options, "");
	struct e2e_stream st[N];
	uint64_t begin;

	submit_all(o, st, N, 2000);
	stream_on(o, st, N, 5);
	e2e_kill(&d);
	begin = e2e_now();
	expect_gone(o, st, N);
	must(e2e_now() - begin >= 300000000, "given up before its time");
	must(strstr(onebit_last_error(o)->text, "300 ms"), "%s", onebit_last_error(o)->text);
	onebit_close(o);
	e2e_remove(&d);
}
END_TEST

/* What breaks: a program that wants to know at once is kept waiting or attached again. */
START_TEST(no_reconnect)
{
	enum { N = 4 };
	const struct onebit_options options = { .no_reconnect = 1 };
	struct onebit *o = start(&options, "");
	struct e2e_stream st[N];
	pid_t last = 0;

	submit_all(o, st, N, 2000);
	stream_on(o, st, N, 5);
	kill_broker(&last);
	expect_gone(o, st, N);
	stop(o);
}
END_TEST

int main(void)
{
	Suite *s = e2e_suite("restart");

	e2e_add(s, brokers_die, 1);
	e2e_add(s, foreign_loop, 1);
	e2e_add(s, cancel_while_away, 1);
	e2e_add(s, daemon_comes_back, 1);
	e2e_add(s, upgrade, 1);
	e2e_add(s, model_changed_meanwhile, 1);
	e2e_add(s, daemon_stays_away, 1);
	e2e_add(s, no_reconnect, 1);
	return e2e_main(s);
}

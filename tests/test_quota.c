/* SPDX-License-Identifier: MIT */
/*
 * What it costs: each quota, each reason not to serve, and what a hostile client gets of a turn.
 * Counted, not timed. The core alone, no processes; time is virtual.
 */
#include <stddef.h>
#include <string.h>
#include "core.h"
#include "lib_ask.h"
#include "limits.h"
#include "onebit_ring.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ---- quotas ---------------------------------------------------------------------------------- */

static void attach_refused(uint32_t uid, unsigned code, uint64_t detail, bool retry)
{
	struct onebit_error why;

	ck_assert_int_lt(core_attach(ask_core, uid, NULL, &why), 0);
	ck_assert_msg(why.code == code && why.detail == detail, "%s %llu", error_name(why.code),
		      (unsigned long long)why.detail);
	ck_assert_int_eq(why.retry_after_ms > 0, retry);
}

/* A limit on attachments that does not bite lets one user take the daemon's memory. */
START_TEST(quota_clients)
{
	const uint64_t bytes = 4096 * 2 + 64 * 64 + 128 * 32 + (512 << 10);
	struct policy p;

	core_policy(&p);
	p.max_clients = 4;
	p.limits.max_clients = 2;
	p.n_overrides = 2;
	p.overrides[0].uid = 7;
	p.overrides[1].uid = 8;
	p.overrides[1].limits = p.limits;
	p.overrides[1].limits.max_bytes = bytes + 4096;
	ask_begin(&p);
	ck_assert_uint_eq(ask_limits(ask_me).bytes_used, bytes);
	attach_refused(7, ONEBIT_E_DENIED, 0, false);
	ck_assert_int_ge(core_attach(ask_core, 1000, NULL, NULL), 0);
	attach_refused(1000, ONEBIT_E_Q_CLIENTS, 2, true);
	ck_assert_int_ge(core_attach(ask_core, 8, NULL, NULL), 0);
	attach_refused(8, ONEBIT_E_Q_BYTES, bytes + 4096, true);
	ck_assert_int_ge(core_attach(ask_core, 9, NULL, NULL), 0);
	attach_refused(10, ONEBIT_E_CLIENTS_FULL, 4, true);
	core_detach(ask_core, ask_me);
	ask_me = core_attach(ask_core, 1000, NULL, NULL);
	ck_assert_int_ge(ask_me, 0);
	broker_drain(ask_core->b);
	core_detach(ask_core, ask_me);
	attach_refused(1000, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING, true);
	ask_end();
}
END_TEST

/* Accepts n plain requests of these many tokens for the client; the next is returned. */
static struct onebit_cqe fill(int c, unsigned n, uint32_t max_tokens)
{
	struct core_block t;
	struct onebit_cqe cqe;
	struct onebit_sqe e;

	core_block_plain(&t, "fill", max_tokens);
	for (unsigned i = 0; i < n; i++) {
		e = core_generate(ask_core, c, &t, 0, i * 256, 256, 1000 + i);
		core_submit(ask_core, c, &e);
		core_run(ask_core);
		ck_assert(core_reap(ask_core, c, &cqe));
		ck_assert_msg(cqe.flags & ONEBIT_CQE_ACCEPTED, "request %u of %u: %s", i, n,
			      error_name(cqe.u.end.code));
	}
	return ask_as(c, core_generate(ask_core, c, &t, 0, n * 256, 256, 0));
}

/* Each limit on requests must bite at its number, say which it was, and when to come again. */
START_TEST(quota_requests)
{
	const uint64_t len = sizeof(struct core_block);
	struct onebit_cqe cqe;
	struct onebit_hello h;
	struct policy p;

	core_policy(&p);
	p.limits.max_inflight = 5;
	ask_begin(&p);
	ck_assert_uint_eq(ask_core->c[ask_me].w.max_inflight, 5);
	cqe = fill(ask_me, 5, 4);
	ask_retry("inflight", cqe, ONEBIT_E_Q_INFLIGHT, 5);
	ask_end();

	core_policy(&p);
	p.limits.max_inflight = 0;
	ask_begin(&p);
	core_hello(&h);
	h.sq_entries = 8;
	ask_me = core_attach(ask_core, 1000, &h, NULL);
	ck_assert_uint_eq(ask_core->c[ask_me].w.max_inflight, 7);
	cqe = fill(ask_me, 7, 4);
	ask_retry("inflight of the client", cqe, ONEBIT_E_Q_INFLIGHT, 7);
	ask_end();

	core_policy(&p);
	p.limits.max_queued_bytes = 3 * len;
	ask_begin(&p); /* four run, and count no more */
	cqe = fill(ask_me, 7, 4);
	ask_refused("queued", cqe, ONEBIT_E_Q_QUEUED, 3 * len);
	ask_end();

	core_policy(&p);
	p.max_requests = 6;
	ask_begin(&p);
	cqe = fill(ask_me, 6, 4);
	ask_retry("requests", cqe, ONEBIT_E_REQUESTS_FULL, 6);
	ask_end();
}
END_TEST

/* A full journal must refuse rather than overwrite. */
START_TEST(quota_journal)
{
	struct onebit_cqe cqe;
	struct policy p;

	core_policy(&p);
	p.journal_bytes = 1 << 20;
	ask_begin(&p);
	cqe = fill(ask_me, 4, 32768); /* 128 KiB of tokens and a header: 256 KiB each */
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_JOURNAL_FULL);
	ck_assert_uint_gt(cqe.u.end.detail, 32768 * 4);
	ck_assert_uint_gt(cqe.u.end.retry_after_ms, 0);
	ck_assert_uint_eq(broker_stats(ask_core->b)->journal_bytes, 1 << 20);
	core_detach(ask_core, ask_me);
	core_run(ask_core);
	/* What runs is the executor's until it says so; what waited is gone. */
	core_exec_exit(ask_core, 0, 9);
	core_run(ask_core);
	ck_assert_uint_eq(broker_stats(ask_core->b)->journal_bytes, 0);
	ask_end();
}
END_TEST

/* No service: each reason has its own name. */
START_TEST(no_service)
{
	struct core_block t;
	struct onebit_cqe cqe;

	core_block_full(&t);
	ask_core = core_new(NULL, false, false);
	ask_me = core_attach(ask_core, 1000, NULL, NULL);
	cqe = ask(ask_generate(&t));
	ask_retry("no executor", cqe, ONEBIT_E_NO_MODEL, ONEBIT_EXEC_NONE);
	ask_end();

	ask_core = core_new(NULL, true, false);
	ask_me = core_attach(ask_core, 1000, NULL, NULL);
	core_run(ask_core);
	for (unsigned i = 0; i < START_FAILURES_MAX; i++) {
		core_exec_exit(ask_core, 0, -2);
		core_run(ask_core);
		core_pass(ask_core, BACKOFF_LAST_NS);
	}
	cqe = ask(ask_generate(&t));
	ask_retry("executor down", cqe, ONEBIT_E_EXECUTOR_DOWN, START_FAILURES_MAX);
	core_exec_hello(ask_core, 0, 1);
	core_submit(ask_core, ask_me, &(struct onebit_sqe){ 0 });
	core_run(ask_core);
	ck_assert(core_terminal(ask_core, ask_me, &cqe, NULL));
	broker_drain(ask_core->b);
	cqe = ask(ask_generate(&t));
	ask_retry("draining", cqe, ONEBIT_E_DRAINING, ONEBIT_STATE_DRAINING);
	ask_end();
}
END_TEST

/* A request accepted while no executor can be had must end, not hang for ever. */
START_TEST(no_executor_memory)
{
	struct core_block t;
	struct onebit_sqe e;
	struct onebit_cqe cqe;

	ask_core = core_new(NULL, true, false);
	ask_core->x[0].no_memory = true;
	ask_me = core_attach(ask_core, 1000, NULL, NULL);
	core_block_plain(&t, "x", 4);
	e = core_generate(ask_core, ask_me, &t, 0, 0, 4096, 1);
	core_submit(ask_core, ask_me, &e);
	core_run(ask_core);
	for (int i = 0; i < 20; i++)
		core_pass(ask_core, BACKOFF_LAST_NS);
	ck_assert(core_terminal(ask_core, ask_me, &cqe, NULL));
	ck_assert_uint_eq(cqe.u.end.code, ONEBIT_E_EXECUTOR_DOWN);
	ask_end();
}
END_TEST

/* The rate must refuse when the bucket is empty, and the advice must be true. */
START_TEST(quota_tokens)
{
	struct policy p;
	struct core_block t;
	struct onebit_cqe cqe;
	unsigned i;

	core_policy(&p);
	p.limits.tokens_per_second = 10;
	ask_core = core_new(&p, true, true);
	ask_me = core_attach(ask_core, 1000, NULL, NULL);
	core_pass(ask_core, 1000000);
	core_block_plain(&t, "x", 7);
	t.p.flags = ONEBIT_PARAM_IGNORE_EOS;
	for (i = 0; i < 2; i++) {
		struct onebit_sqe e = core_generate(ask_core, ask_me, &t, 0, 0, 4096, i);

		core_submit(ask_core, ask_me, &e);
		core_settle(ask_core, 100);
		ck_assert(core_terminal(ask_core, ask_me, &cqe, NULL));
		ck_assert_int_eq(cqe.res, 0);
	}
	cqe = ask(ask_generate(&t)); /* 14 of 10 are spent */
	ask_retry("tokens", cqe, ONEBIT_E_Q_TOKENS, 10);
	ask_core->now += cqe.u.end.retry_after_ms * 1000000ull;
	core_run(ask_core);
	ck_assert_uint_gt(ask_limits(ask_me).tokens_left, 0);
	ask_end();
}
END_TEST

/* More tenants than the table has places: refused by name; whoever is in the table goes on. */
START_TEST(quota_principals)
{
	struct policy p;
	struct core_block t;
	struct onebit_hello h;
	struct onebit_cqe cqe;
	struct onebit_sqe e;
	int c[2];

	core_policy(&p);
	p.max_requests = REQUESTS_CEILING;
	p.limits.max_inflight = 0;
	p.limits.max_queued_bytes = 0;
	ask_begin(&p);
	core_hello(&h);
	h.sq_entries = 1024;
	h.cq_entries = 4096;
	core_block_plain(&t, "x", 1);
	for (int i = 0; i < 2; i++)
		c[i] = core_attach(ask_core, 1000, &h, NULL);
	for (uint64_t n = 1; n <= PRINCIPALS_MAX; n++) {
		t.p.tenant = n;
		e = core_generate(ask_core, c[n % 2], &t, 0, 0, 256, n);
		core_submit(ask_core, c[n % 2], &e);
		core_run(ask_core);
		ck_assert(core_reap(ask_core, c[n % 2], &cqe));
		if (n < PRINCIPALS_MAX)
			ck_assert_uint_eq(cqe.flags, ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED);
	}
	ask_retry("tenants", cqe, ONEBIT_E_PRINCIPALS_FULL, PRINCIPALS_MAX);
	ask_end();
}
END_TEST

/* ---- the ring -------------------------------------------------------------------------------- */

static uint32_t *cq_head(int c)
{
	return (uint32_t *)(void *)(ask_core->c[c].client + ask_core->c[c].w.cq_head_off);
}

/* NOPs, not reaped, until the CQ has room for no more than one: then the head is looked at. */
static uint32_t fill_cq(int c)
{
	while (core_waiting(ask_core, c) < ask_core->c[c].w.cq_entries - 1) {
		core_submit(ask_core, c, &(struct onebit_sqe){ 0 });
		core_run(ask_core);
	}
	return ask_core->c[c].cq_head + core_waiting(ask_core, c);
}

/* A cq_head that cannot be: this client goes, its neighbour does not notice. */
START_TEST(bad_index)
{
	static const uint32_t ahead[] = { 1, 2, 127, 128, 129, 4096, 1u << 31, 0u - 128, 0u - 1000 };
	struct onebit_cqe cqe;

	ask_begin(NULL);
	for (size_t i = 0; i < 2 * COUNT(ahead); i++) {
		int bad = core_attach(ask_core, 1000, NULL, NULL);
		bool blocked = i % 2;
		uint32_t told;

		ck_assert_int_ge(bad, 0);
		/* Once around, so that a head that goes back goes back to where it has been. */
		for (uint32_t n = 0; n < 200; n++) {
			core_submit(ask_core, bad, &(struct onebit_sqe){ 0 });
			core_run(ask_core);
			ck_assert(core_reap(ask_core, bad, &cqe));
		}
		told = fill_cq(bad);
		/* With an SQE that waits for room already, or comes upon the lie. */
		if (blocked) {
			core_submit(ask_core, bad, &(struct onebit_sqe){ 0 });
			core_run(ask_core);
			ck_assert_uint_eq(core_flags(ask_core, bad) & ONEBIT_SQ_STALLED,
					  ONEBIT_SQ_STALLED);
		}
		*cq_head(bad) = told + ahead[i / 2];
		ck_assert(!ask_core->c[bad].closed);
		core_submit(ask_core, bad, &(struct onebit_sqe){ 0 });
		core_run(ask_core);
		ck_assert_msg(ask_core->c[bad].closed, "ahead by %u%s", ahead[i / 2],
			      blocked ? ", blocked" : "");
		ck_assert_uint_eq(ask_core->c[bad].why.code, ONEBIT_E_BAD_INDEX);
		ck_assert_uint_eq(ask_core->c[bad].why.detail, ahead[i / 2]);
	}
	ck_assert_uint_eq(broker_stats(ask_core->b)->protocol_errors, 2 * COUNT(ahead));
	ask_nothing_charged("bad index");

	/* A lie that nobody needed to look at has cost nothing. */
	for (uint32_t lie = 1; lie; lie <<= 1) {
		*cq_head(ask_me) += lie;
		core_submit(ask_core, ask_me, &(struct onebit_sqe){ .user_data = lie });
		core_run(ask_core);
		ck_assert(core_terminal(ask_core, ask_me, &cqe, NULL));
		ck_assert_uint_eq(cqe.user_data, lie);
		ck_assert(!ask_core->c[ask_me].closed);
	}
	ask_end();
}
END_TEST

/* "Reaped" what it has not read: that costs the liar its own completions and nothing else. */
START_TEST(early_head)
{
	uint32_t told, room;
	int liar;

	ask_begin(NULL);
	liar = core_attach(ask_core, 1000, NULL, NULL);
	room = ask_core->c[liar].w.cq_entries;
	for (int lap = 0; lap < 100; lap++) {
		told = fill_cq(liar);
		*cq_head(liar) = told;
		ask_core->c[liar].cq_head = told;
		ck_assert_uint_eq(core_waiting(ask_core, liar), 0);
		ck_assert_uint_eq(ask((struct onebit_sqe){ 0 }).res, 0);
	}
	ck_assert(!ask_core->c[liar].closed);
	ck_assert_uint_eq(broker_stats(ask_core->b)->protocol_errors, 0);
	ck_assert_uint_ge(onebit_distance(ONEBIT_INDEX_START, told), 100 * (room - 1));
	core_detach(ask_core, liar);
	ask_nothing_charged("early head");
	ask_end();
}
END_TEST

/* What only the right seq marks would be run early, half written, or again from an earlier lap. */
START_TEST(seq_of_another_lap)
{
	uint64_t rng = core_seed("seq_of_another_lap");
	struct core_client *c;
	struct onebit_cqe cqe;
	struct onebit_hello h;

	ask_begin(NULL);
	core_hello(&h);
	h.sq_entries = ONEBIT_SQ_ENTRIES_MIN;
	ask_me = core_attach(ask_core, 1000, &h, NULL);
	c = &ask_core->c[ask_me];
	/* Past the wrap, where a zeroed seq is a right one. */
	for (uint32_t i = c->sq_tail; i != 64; i++) {
		struct onebit_sqe *slot = (struct onebit_sqe *)(void *)(c->client + c->w.sqes_off) +
					  onebit_slot(i, c->w.sq_entries);
		uint32_t wrong[] = { 0, ~0u, i, i + 2, onebit_seq(i + c->w.sq_entries),
				     onebit_seq(i - c->w.sq_entries), (uint32_t)core_random(&rng),
				     onebit_seq(i) ^ 1u << core_random(&rng) % 32 };

		ck_assert(core_put(ask_core, ask_me, &(struct onebit_sqe){ .user_data = i }));
		for (size_t n = 0; n < COUNT(wrong); n++) {
			if (wrong[n] == onebit_seq(i))
				continue;
			onebit_store_release(&slot->seq, wrong[n]);
			client_heat(ask_core->b, (uint32_t)ask_me); /* as if it had rung */
			broker_turn(ask_core->b);
			if (core_taken(ask_core, ask_me) != i || c->closed)
				ck_abort_msg("SQE %x was taken with seq %x", i, wrong[n]);
		}
		core_publish(ask_core, ask_me);
		core_run(ask_core);
		if (!core_reap(ask_core, ask_me, &cqe) || cqe.user_data != i || cqe.res)
			ck_abort_msg("SQE %x was not taken", i);
	}
	ck_assert_uint_eq(broker_stats(ask_core->b)->protocol_errors, 0);
	ask_end();
}
END_TEST

/* A batch is marked from its end: nothing of it may run before the first is there, then all in order. */
START_TEST(batch_waits_for_its_first)
{
	struct core_client *c;
	struct onebit_cqe cqe;
	uint32_t first;

	ask_begin(NULL);
	c = &ask_core->c[ask_me];
	first = c->sq_tail;
	for (uint64_t i = 0; i < 5; i++)
		ck_assert(core_put(ask_core, ask_me, &(struct onebit_sqe){ .user_data = i }));
	c->sq_told = first + 1; /* all but the first are marked */
	core_publish(ask_core, ask_me);
	client_heat(ask_core->b, (uint32_t)ask_me);
	core_run(ask_core);
	ck_assert_uint_eq(core_taken(ask_core, ask_me), first);
	ck_assert_uint_eq(core_waiting(ask_core, ask_me), 0);
	c->sq_told = first;
	core_publish(ask_core, ask_me);
	core_run(ask_core);
	ck_assert_uint_eq(core_waiting(ask_core, ask_me), 5);
	for (uint64_t i = 0; i < 5; i++) {
		ck_assert(core_reap(ask_core, ask_me, &cqe));
		ck_assert_uint_eq(cqe.user_data, i);
	}
	ask_end();
}
END_TEST

/* Never reaping: what finds no room waits in the ring, and then completes exactly once. */
START_TEST(backpressure)
{
	struct onebit_hello h;
	struct onebit_cqe cqe;
	struct core_block t;
	uint64_t next = 0, seen = 0;
	unsigned accepted = 0;

	ask_core = core_new(NULL, true, true);
	core_hello(&h);
	h.sq_entries = 8;
	h.cq_entries = 16;
	ask_me = core_attach(ask_core, 1000, &h, NULL);
	core_pass(ask_core, 1000000);
	core_block_plain(&t, "x", 4);
	for (int round = 0; round < 200; round++) {
		struct onebit_sqe e = core_generate(ask_core, ask_me, &t, 0, 0, 8192, next);

		if (round % 3)
			e = (struct onebit_sqe){ .op = ONEBIT_OP_NOP, .user_data = next };
		if (!core_put(ask_core, ask_me, &e))
			break;
		next++;
		core_publish(ask_core, ask_me);
		core_pass(ask_core, 1000000);
		ck_assert_uint_le(core_waiting(ask_core, ask_me), 16);
	}
	for (int i = 0; i < 200; i++)
		core_pass(ask_core, 1000000);
	ck_assert_uint_le(core_waiting(ask_core, ask_me), 16);
	ck_assert_uint_gt(core_waiting(ask_core, ask_me), 8);
	ck_assert_uint_eq(core_flags(ask_core, ask_me) & ONEBIT_SQ_STALLED, ONEBIT_SQ_STALLED);
	/* Two of three are NOPs; the order of those is kept, so a bit each tells all. */
	ck_assert_uint_lt(next, 64);
	for (int i = 0; i < 400; i++) {
		while (core_reap(ask_core, ask_me, &cqe)) {
			accepted += cqe.flags & ONEBIT_CQE_ACCEPTED ? 1 : 0;
			if (cqe.flags & ONEBIT_CQE_MORE)
				continue;
			ck_assert_int_ge(cqe.res, 0);
			ck_assert(!(seen >> cqe.user_data & 1));
			seen |= 1ull << cqe.user_data;
		}
		core_pass(ask_core, 1000000);
	}
	ck_assert_uint_eq(seen, (1ull << next) - 1);
	ck_assert_uint_eq(accepted, (next + 2) / 3);
	ask_end();
}
END_TEST

/* A turn must not grow with what hostile clients put before it. Counted, not timed. */
START_TEST(turn_is_bounded)
{
	enum { HOSTILE = 4, AREA = 8 << 20 };
	static const uint8_t ops[] = { ONEBIT_OP_NOP, ONEBIT_OP_ECHO, ONEBIT_OP_CANCEL,
				       ONEBIT_OP_GENERATE, ONEBIT_OP_GENERATE };
	struct onebit_hello h;
	struct core_block t;
	int c[HOSTILE];

	for (size_t o = 0; o < COUNT(ops); o++) {
		bool echo = ops[o] == ONEBIT_OP_ECHO;
		bool refused_late = o == COUNT(ops) - 1; /* after its block was copied */
		uint32_t len = echo || ops[o] == ONEBIT_OP_GENERATE ? ONEBIT_BLOCK_MAX : 0;
		bool more;

		ask_begin(NULL);
		core_hello(&h);
		h.arena_bytes = h.out_bytes = AREA;
		h.sq_entries = 1024;
		core_block_full(&t);
		if (refused_late)
			t.stop[1].len = 0;
		for (int i = 0; i < HOSTILE; i++) {
			c[i] = core_attach(ask_core, 1000, &h, NULL);
			ck_assert_int_ge(c[i], 0);
			for (int n = 0; n < 1024; n++) {
				struct onebit_sqe e = { .op = ops[o] };

				if (ops[o] == ONEBIT_OP_CANCEL)
					e.arg = 5;
				if (ops[o] == ONEBIT_OP_GENERATE)
					e = core_generate(ask_core, c[i], &t, 0, 0, 4096, 0);
				if (len) {
					e.in_len = len;
					e.out_len = echo ? len : 4096;
				}
				ck_assert(core_put(ask_core, c[i], &e));
			}
		}
		for (int i = 0; i < HOSTILE; i++)
			core_publish(ask_core, c[i]);
		for (int turn = 0; turn < 8; turn++) {
			uint64_t accepted = broker_stats(ask_core->b)->accepted, copies = 0;
			uint32_t before[HOSTILE];

			for (int i = 0; i < HOSTILE; i++)
				before[i] = core_taken(ask_core, c[i]);
			more = broker_turn(ask_core->b);
			ck_assert(more);
			for (int i = 0; i < HOSTILE; i++) {
				uint32_t n = core_taken(ask_core, c[i]) - before[i];

				ck_assert_uint_ge(n, 1); /* and each gets its share */
				ck_assert_uint_le(n, TURN_SQES);
				copies += echo || refused_late ? n : 0;
			}
			copies += broker_stats(ask_core->b)->accepted - accepted;
			/* One entry may go beyond a share, and none is larger than a block. */
			ck_assert_msg(copies * len < HOSTILE * (TURN_COPY_BYTES + ONEBIT_BLOCK_MAX + 1ull),
				      "op %u: %llu times %u bytes in one turn", ops[o],
				      (unsigned long long)copies, len);
		}
		ask_end();
	}
}
END_TEST

/* Ringing for nothing: in time the doorbell is put aside, later heard again; no work is lost. */
START_TEST(doorbell_flood)
{
	struct onebit_cqe cqe;
	int other;

	ask_begin(NULL);
	other = core_attach(ask_core, 1000, NULL, NULL);
	for (int i = 0; i < 1000 && !ask_core->c[ask_me].muted; i++) {
		broker_doorbell(ask_core->b, (uint32_t)ask_me);
		core_run(ask_core);
	}
	ck_assert(ask_core->c[ask_me].muted);
	ck_assert_uint_eq(ask_core->c[ask_me].mutes, 1);
	ck_assert_uint_eq(broker_stats(ask_core->b)->spurious_doorbells, SPURIOUS_MAX + 1);
	ck_assert(!ask_core->c[other].muted);
	ck_assert_uint_eq(ask_as(other, (struct onebit_sqe){ 0 }).res, 0);

	/* Work handed in meanwhile waits for the end of the rest; nobody has to ring again. */
	core_submit(ask_core, ask_me, &(struct onebit_sqe){ .user_data = 5 });
	core_run(ask_core);
	ck_assert_uint_le(ask_core->until, ask_core->now + SPURIOUS_REST_NS);
	core_pass(ask_core, SPURIOUS_REST_NS);
	ck_assert(!ask_core->c[ask_me].muted);
	ck_assert(core_terminal(ask_core, ask_me, &cqe, NULL));
	ck_assert_uint_eq(cqe.user_data, 5);

	/* On parole it takes fewer; and a client that rings for its work is never muted. */
	for (int i = 0; i < 1000; i++)
		ck_assert_uint_eq(ask_as(other, (struct onebit_sqe){ 0 }).res, 0);
	ck_assert_uint_eq(ask_core->c[other].mutes, 0);
	ask_end();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("quota");
	TCase *t = tcase_create("all");

	tcase_add_test(t, quota_clients);
	tcase_add_test(t, quota_requests);
	tcase_add_test(t, quota_journal);
	tcase_add_test(t, quota_tokens);
	tcase_add_test(t, quota_principals);
	tcase_add_test(t, no_service);
	tcase_add_test(t, no_executor_memory);
	tcase_add_test(t, bad_index);
	tcase_add_test(t, early_head);
	tcase_add_test(t, seq_of_another_lap);
	tcase_add_test(t, batch_waits_for_its_first);
	tcase_add_test(t, backpressure);
	tcase_add_test(t, turn_is_bounded);
	tcase_add_test(t, doorbell_flood);
	suite_add_tcase(s, t);
	return ask_main(s);
}

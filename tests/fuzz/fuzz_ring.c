/* SPDX-License-Identifier: MIT */
/*
 * A ring image, drained: the broker's core with two clients and an executor that do whatever the
 * input says, byte by byte. The input is a little program (see step()): it writes SQEs, arenas,
 * indices and events, reaps, dies, lets time pass and takes turns.
 *
 * What must hold, whatever the input: no access outside the regions, nor to one that was given back
 * (the address sanitizer knows their ends, and gone ones are poisoned); the core's asserts; nothing
 * written into a CLIENT region or by the broker into an executor's; the CQ never overflows; each SQE
 * taken has exactly one terminal CQE, and progress only before it; and when all are gone, everything
 * has come back.
 *
 * Each input finds the broker as it was born, so that any of them can be run again alone.
 */
#include <assert.h>
#include <sanitizer/asan_interface.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "onebit_ring.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* New ways through the core are what is looked for, not through this file; and it is faster so. */
#pragma clang attribute push(__attribute__((no_sanitize("coverage"))), apply_to = function)

enum { CLIENTS = 2, SQ = 8, CQ = 16, AREA = 4096, STEPS = 96, TURNS = 512, DATA_USED = 8192 };
enum { USERS = 1024 }; /* SQEs of one client in one input, at most */

static const uint8_t *in; /* the input not read yet */
static size_t in_left;

static struct broker *broker;
static struct onebit_stats stats_page;
static uint64_t clock_ns = 1000000000;

static struct side { /* one client, as it sees itself */
	uint32_t client;
	bool attached;
	bool honest; /* its marks and its cq_head were never broken */
	uint8_t *c, *d, *c_before;
	struct attach geometry;
	uint32_t sq_tail, cq_head;
	uint32_t n_users;
	enum { UNUSED, SENT, ENDED } user[USERS];
} sides[CLIENTS];

static struct engine { /* one link's executor, as it sees itself */
	struct exec_broker_region *broker;
	struct exec_own_region *own, *own_before;
	bool runs, killed;
	uint32_t cmd_head, event_tail, data_at;
	uint32_t slot, tag; /* of the RUN taken last */
	uint32_t running[EXEC_SLOTS_MAX]; /* tag + 1 of the RUN that each slot has; 0: free */
	uint64_t entry[EXEC_SLOTS_MAX];
} engines[LINKS];

static uint8_t *journal;
static bool quiet_start; /* executors say no hello of their own accord */

/* ---- the input ---- */

static uint8_t u8(void)
{
	if (!in_left)
		return 0;
	in_left--;
	return *in++;
}

static uint32_t u32(void)
{
	uint32_t v = u8();

	v |= (uint32_t)u8() << 8;
	v |= (uint32_t)u8() << 16;
	return v | (uint32_t)u8() << 24;
}

static void bytes(void *to, size_t n)
{
	size_t have = n < in_left ? n : in_left;

	if (have)
		memcpy(to, in, have);
	memset((uint8_t *)to + have, 0, n - have);
	in += have;
	in_left -= have;
}

/* ---- what the core calls ---- */

static uint64_t now(void *ctx)
{
	(void)ctx;
	return clock_ns;
}

static uint64_t time_of_day(void *ctx)
{
	(void)ctx;
	return 1000;
}

static struct side *side_of(uint32_t client)
{
	for (int i = 0; i < CLIENTS; i++)
		if (sides[i].attached && sides[i].client == client)
			return &sides[i];
	abort(); /* the core speaks of a client that is not there */
}

static void wake_client(void *ctx, uint32_t client, uint32_t need)
{
	(void)ctx;
	side_of(client);
	assert(need && !(need & ~(ONEBIT_WAKE_FUTEX | ONEBIT_WAKE_NOTIFY)));
}

/* Gone: whoever touches its memory now is wrong. */
static void leave(struct side *s)
{
	s->attached = false;
	ASAN_POISON_MEMORY_REGION(s->c, s->geometry.client_bytes);
	ASAN_POISON_MEMORY_REGION(s->d, s->geometry.daemon_bytes);
}

static void close_client(void *ctx, uint32_t client, const struct onebit_error *why)
{
	struct side *s = side_of(client);

	(void)ctx;
	assert(!s->honest);
	assert(why->code == ONEBIT_E_BAD_INDEX);
	leave(s);
}

static void mute_client(void *ctx, uint32_t client, bool mute)
{
	(void)ctx;
	(void)mute;
	side_of(client);
}

enum { OWN_RING = offsetof(struct exec_own_region, data), OWN_USED = OWN_RING + DATA_USED };

static int exec_memory(void *ctx, unsigned link, struct exec_memory *mem)
{
	struct engine *e = &engines[link];

	(void)ctx;
	assert(!e->runs);
	ASAN_UNPOISON_MEMORY_REGION(e->broker, sizeof(*e->broker));
	ASAN_UNPOISON_MEMORY_REGION(e->own, OWN_USED);
	memset(e->broker, 0, sizeof(*e->broker));
	memset(e->own, 0, OWN_USED);
	*mem = (struct exec_memory){ e->broker, e->own };
	return 0;
}

static void say_hello(struct engine *e, uint8_t how);

static void exec_start(void *ctx, unsigned link, uint32_t generation, const char *model)
{
	struct engine *e = &engines[link];

	(void)ctx;
	(void)generation;
	assert(!model || strnlen(model, 256) < 256);
	assert(!e->runs);
	e->runs = true;
	e->killed = false;
	e->cmd_head = onebit_load_acquire(&e->broker->cmd_tail);
	e->event_tail = onebit_load_acquire(&e->own->event_tail);
	e->data_at = 0;
	memset(e->running, 0, sizeof(e->running));
	if (!quiet_start)
		say_hello(e, 7);
}

static void exec_kill(void *ctx, unsigned link)
{
	(void)ctx;
	assert(engines[link].runs);
	engines[link].killed = true;
}

static void exec_wake(void *ctx, unsigned link)
{
	(void)ctx;
	assert(engines[link].runs);
}

static void reload(void *ctx)
{
	(void)ctx;
}

static void no_log(void *ctx, enum broker_log level, const char *line)
{
	(void)ctx;
	(void)level;
	assert(strnlen(line, 256) < 256);
}

/* ---- clients ---- */

static void attach(struct side *s, uint8_t how)
{
	struct onebit_hello h = {
		.magic = ONEBIT_MAGIC, .size = sizeof(h), .abi_major = ONEBIT_ABI_MAJOR,
		.features_wanted = UINT64_MAX & ~(how & 1 ? ONEBIT_FEAT_INLINE : 0ull),
		.sq_entries = SQ, .cq_entries = CQ, .arena_bytes = AREA, .out_bytes = AREA,
	};
	struct onebit_error why;
	struct onebit_welcome w;
	uint64_t features;
	/* User 1000 has every right, user 1001 none. */
	uint32_t uid = 1000 + (s == &sides[1]);

	if (attach_parse(&h, sizeof(h), &s->geometry, &why))
		abort();
	if (broker_admit(broker, uid, &s->geometry, &s->client, &features, &why)) {
		assert(why.code == ONEBIT_E_DRAINING || why.code == ONEBIT_E_PRINCIPALS_FULL);
		return;
	}
	if (!s->c) {
		s->c = aligned_alloc(4096, s->geometry.client_bytes);
		s->d = aligned_alloc(4096, s->geometry.daemon_bytes);
		s->c_before = malloc(s->geometry.client_bytes);
		assert(s->c && s->d && s->c_before);
	}
	ASAN_UNPOISON_MEMORY_REGION(s->c, s->geometry.client_bytes);
	ASAN_UNPOISON_MEMORY_REGION(s->d, s->geometry.daemon_bytes);
	memset(s->c, 0, s->geometry.client_bytes);
	memset(s->d, 0, s->geometry.daemon_bytes);
	broker_attach(broker, s->client, s->c, s->d, &w);
	assert(w.client_bytes == s->geometry.client_bytes && w.sq_entries == SQ);
	s->sq_tail = onebit_load_acquire((uint32_t *)(s->d + DAEMON_SQ_HEAD));
	s->cq_head = s->sq_tail;
	memset(s->user, UNUSED, sizeof(s->user));
	s->n_users = 0;
	s->attached = true;
	s->honest = true;
}

static uint32_t sq_head(const struct side *s)
{
	return onebit_load_acquire((const uint32_t *)(s->d + DAEMON_SQ_HEAD));
}

/* Is the CQE with this index there? */
static bool has_come(const struct side *s, uint32_t index)
{
	const struct onebit_cqe *cqes = (const void *)(s->d + s->geometry.cqes_off);
	const void *mark = &cqes[onebit_slot(index, CQ)].flags;

	return onebit_phase_is(onebit_load_acquire(mark), index, CQ);
}

static bool is_possible(const struct side *s)
{
	const struct ring *r = &broker->clients[s->client].ring;
	uint32_t head = onebit_load_acquire((const uint32_t *)(s->c + CLIENT_CQ_HEAD));

	return onebit_distance(r->head_seen, head) <= onebit_distance(r->head_seen, r->told);
}

static void reap(struct side *s, uint32_t most)
{
	const struct onebit_cqe *cqes = (const void *)(s->d + s->geometry.cqes_off);
	uint32_t n = onebit_distance(s->cq_head, broker->clients[s->client].ring.told);

	if (!s->honest)
		return;
	/* What was published is there, all of it and nothing else. */
	assert(n <= CQ);
	for (uint32_t i = 0; i < CQ; i++)
		assert(has_come(s, s->cq_head + i) == (i < n));
	for (; most && n; most--, n--) {
		struct onebit_cqe cqe = cqes[onebit_slot(s->cq_head++, CQ)];

		assert(cqe.user_data < s->n_users);
		assert(s->user[cqe.user_data] == SENT);
		if (cqe.flags & ONEBIT_CQE_MORE) {
			assert(cqe.res == cqe.u.progress.n);
			assert(!(cqe.flags & ONEBIT_CQE_INLINE) || cqe.u.progress.text_len <= 8);
			continue;
		}
		s->user[cqe.user_data] = ENDED;
		assert((cqe.res < 0) == (cqe.u.end.code != ONEBIT_E_OK));
	}
	onebit_store_release((uint32_t *)(s->c + CLIENT_CQ_HEAD), s->cq_head);
}

/* Taken, ended, and on its way must agree. */
static void check_terminals(struct side *s)
{
	uint32_t taken, ended = 0;

	if (!s->attached || !s->honest)
		return;
	reap(s, CQ);
	taken = s->n_users - onebit_distance(sq_head(s), s->sq_tail);
	for (uint32_t i = 0; i < s->n_users; i++)
		ended += s->user[i] == ENDED;
	assert(taken == ended + broker->clients[s->client].n_inflight);
}

static struct onebit_sqe *sqe_at(const struct side *s, uint32_t index)
{
	return (struct onebit_sqe *)(void *)(s->c + s->geometry.sqes_off) + onebit_slot(index, SQ);
}

static void submit(struct side *s, struct onebit_sqe *e)
{
	if (s->n_users == USERS || onebit_distance(sq_head(s), s->sq_tail) >= SQ)
		return;
	s->user[s->n_users] = SENT;
	e->user_data = s->n_users++;
	e->seq = ~onebit_seq(s->sq_tail);
	*sqe_at(s, s->sq_tail) = *e;
	onebit_store_release(&sqe_at(s, s->sq_tail)->seq, onebit_seq(s->sq_tail));
	s->sq_tail++;
}

/* A block at the arena's start that is well-formed but for what the input makes of it. */
static void submit_block(struct side *s)
{
	uint8_t how = u8();
	struct {
		struct onebit_params p;
		struct onebit_segment seg;
		struct onebit_resume resume[2];
		uint32_t tokens[4];
		char text[24];
	} b = {
		.p = {
			.size = sizeof(b.p),
			.max_tokens = 1 + how % 8,
			.n_choices = 1 + (how >> 3 & 1),
			.segments_off = offsetof(__typeof__(b), seg),
			.n_segments = 1,
		},
		.seg = {
			.role = ONEBIT_ROLE_USER,
			.off = offsetof(__typeof__(b), text),
			.len = sizeof(b.text),
		},
	};
	struct onebit_sqe e = { .op = ONEBIT_OP_GENERATE, .in_len = sizeof(b), .out_len = 1024 };

	if (how & 16) {
		b.p.n_resume = b.p.n_choices;
		b.p.resume_off = offsetof(__typeof__(b), resume);
		b.resume[0] = (struct onebit_resume){ 2, offsetof(__typeof__(b), tokens) };
	}
	if (how & 32) { /* other bytes somewhere */
		uint8_t at = u8(), n = u8() % 16;

		if (at + n <= (int)sizeof(b))
			bytes((uint8_t *)&b + at, n);
	}
	if (how & 64) {
		e.op = u8() % ONEBIT_OP_COUNT;
		e.priority = u8() % (ONEBIT_PRIO_COUNT + 1);
		e.deadline_ms = u8();
		e.out_off = u8() * 16u;
		e.out_len = u8() * 16u;
	}
	memcpy(s->c + s->geometry.arena_off, &b, sizeof(b));
	submit(s, &e);
}

/* ---- executors ---- */

static void post(struct engine *e, const struct exec_event *ev)
{
	e->own->events[onebit_slot(e->event_tail++, EXEC_EVENTS)] = *ev;
	onebit_store_release(&e->own->event_tail, e->event_tail);
}

static void say_hello(struct engine *e, uint8_t how)
{
	struct exec_hello h = {
		.version = EXEC_VERSION,
		.slots = 1 + how % 8,
		.ops = how & 8 ? 0xfff : 1 << ONEBIT_OP_GENERATE | 1 << ONEBIT_OP_TOKENIZE |
			1 << ONEBIT_OP_EMBED | 1 << ONEBIT_OP_SCORE,
		.param_flags = how & 16 ? 0 : ONEBIT_PARAM_FLAGS_ALL,
		.model = { .context = 4096, .model_id = { how >> 5 == 7 } },
	};
	struct exec_event ev = { .kind = EXEC_EV_HELLO, .data_len = sizeof(h) };

	if (how >> 5 == 6) { /* other bytes somewhere */
		uint8_t at = u8();

		bytes((uint8_t *)&h + at, at + 4 <= (int)sizeof(h) ? 4 : 0);
	}
	memcpy(e->own->data, &h, sizeof(h));
	post(e, &ev);
}

/* What executor.h promises of an entry: the tables and what they name lie inside the block. */
static void check_block(const struct journal_entry *j)
{
	const uint8_t *block = (const uint8_t *)j + j->block_off;
	const struct onebit_params *p = &j->params;
	const struct onebit_segment *seg = (const void *)(block + p->segments_off);
	const struct onebit_span *stop = (const void *)(block + p->stops_off);

	assert(p->segments_off + (uint64_t)p->n_segments * sizeof(*seg) <= j->block_len);
	assert(p->stops_off + (uint64_t)p->n_stops * sizeof(*stop) <= j->block_len);
	assert(p->bias_off + (uint64_t)p->n_bias * sizeof(struct onebit_bias) <= j->block_len);
	assert((uint64_t)p->grammar_off + p->grammar_len <= j->block_len);
	for (uint32_t i = 0; i < p->n_segments; i++)
		assert((uint64_t)seg[i].off + seg[i].len <= j->block_len);
	for (uint32_t i = 0; i < p->n_stops; i++)
		assert((uint64_t)stop[i].off + stop[i].len <= j->block_len);
}

static void take_commands(struct engine *e)
{
	uint32_t tail = onebit_load_acquire(&e->broker->cmd_tail);

	assert(onebit_distance(e->cmd_head, tail) <= EXEC_CMDS);
	while (e->cmd_head != tail) {
		const struct exec_cmd *cmd = &e->broker->cmds[onebit_slot(e->cmd_head++, EXEC_CMDS)];
		const struct journal_entry *j;

		if (cmd->kind == EXEC_CMD_STOP)
			e->killed = true; /* exits */
		if (cmd->kind != EXEC_CMD_RUN)
			continue;
		assert(cmd->slot < EXEC_SLOTS_MAX);
		/* What the broker hands over is whole. */
		assert(cmd->entry_off % JOURNAL_UNIT == 0 && cmd->entry_off < JOURNAL_BYTES_MIN);
		j = (const void *)(journal + cmd->entry_off);
		assert(j->magic == JOURNAL_MAGIC && j->op == cmd->op);
		assert(j->bytes <= JOURNAL_BYTES_MIN - cmd->entry_off);
		assert(j->block_off + j->block_len <= j->tokens_off);
		assert(j->tokens_off + 4ull * j->tokens_cap * j->params.n_choices <= j->bytes);
		for (uint32_t i = 0; i < j->params.n_choices && j->op == ONEBIT_OP_GENERATE; i++)
			assert(j->done[i].n <= j->tokens_cap);
		check_block(j);
		e->slot = cmd->slot;
		e->tag = cmd->tag;
		e->running[cmd->slot] = cmd->tag + 1;
		e->entry[cmd->slot] = cmd->entry_off;
	}
	onebit_store_release(&e->own->cmd_head, e->cmd_head);
}

/* n records into the data area, plain ones unless the input says otherwise. */
static uint32_t records(uint8_t *data, uint32_t n, uint8_t how)
{
	uint32_t len = 0;

	for (uint32_t i = 0; i < n; i++) {
		struct onebit_record r = { .size = 24, .token = i, .text_len = how & 7 };

		if (how & 8)
			bytes(&r, sizeof(r));
		else if (how & 16)
			r.size = 16 + (how & 7) * 8 + 8;
		if (len + sizeof(r) > DATA_USED / 2)
			break;
		memcpy(data + len, &r, sizeof(r));
		if (r.size >= sizeof(r) && r.size <= 256)
			bytes(data + len + sizeof(r), how & 32 ? r.size - sizeof(r) : 0);
		len += how & 8 ? (r.size & 0xf8) : r.size;
	}
	return len;
}

/* An event about what runs, right in every part that the input does not change. */
static void say_something(struct engine *e)
{
	uint8_t how = u8(), kind = u8();
	struct exec_event ev = { .kind = (kind & 15) % 11, .slot = e->slot, .tag = e->tag };
	const struct journal_entry *j = NULL;
	uint8_t *data;

	if (how & 1)
		ev.slot = u8() % 9;
	if (ev.slot < EXEC_SLOTS_MAX && e->running[ev.slot]) {
		ev.tag = e->running[ev.slot] - 1;
		j = (const void *)(journal + e->entry[ev.slot]);
	}
	ev.choice = kind >> 4 & 1;
	ev.data_off = e->data_at = e->data_at >= DATA_USED / 2 ? 0 : e->data_at + 64;
	data = e->own->data + ev.data_off;
	switch (ev.kind) {
	case EXEC_EV_REPLAYED:
		if (j && j->done[ev.choice].n && j->op == ONEBIT_OP_GENERATE) {
			ev.first = j->done[ev.choice].n - 1;
			ev.detail = ((const uint32_t *)(const void *)((const uint8_t *)j + j->tokens_off))
				[ev.choice * j->tokens_cap + ev.first];
		}
		break;
	case EXEC_EV_TOKENS:
		ev.first = j ? j->done[ev.choice].n : 0;
		ev.n = kind >> 5 & 3;
		ev.finish = kind >> 7 ? ONEBIT_FINISH_STOP : 0;
		ev.data_len = records(data, ev.n, u8());
		break;
	case EXEC_EV_DATA:
		ev.data_len = u8();
		break;
	case EXEC_EV_END:
		ev.code = how & 2 ? u8() : 0;
		break;
	case EXEC_EV_KV:
		ev.data_len = sizeof(struct onebit_kv);
		break;
	case EXEC_EV_TIMING:
		ev.n = 1 + (kind >> 5);
		ev.data_len = ev.n * (uint32_t)sizeof(struct onebit_timing);
		break;
	case EXEC_EV_FAULT:
		ev.data_len = u8() % 104;
		break;
	}
	if (how & 8) { /* up against the end of the area, where the sanitizer sees a step too far */
		ev.data_off = EXEC_DATA_BYTES - ev.data_len;
		memmove(e->own->data + ev.data_off, data, ev.data_len);
	}
	if (how & 4) { /* other bytes somewhere */
		uint8_t at = u8() % sizeof(ev);

		bytes((uint8_t *)&ev + at, at + 4 <= (int)sizeof(ev) ? 4 : 1);
	}
	if (ev.kind == EXEC_EV_END && ev.slot < EXEC_SLOTS_MAX)
		e->running[ev.slot] = 0;
	post(e, &ev);
}

static void die(unsigned link, int status)
{
	struct engine *e = &engines[link];

	if (!e->runs)
		return;
	e->runs = false;
	broker_exec_exited(broker, link, status);
	/* Its memory is given back; the core must not look at it again. */
	ASAN_POISON_MEMORY_REGION(e->broker, sizeof(*e->broker));
	ASAN_POISON_MEMORY_REGION(e->own, OWN_USED);
}

/* ---- turns ---- */

static bool turn(void)
{
	bool more;

	for (int i = 0; i < CLIENTS; i++)
		if (sides[i].attached)
			memcpy(sides[i].c_before, sides[i].c, sides[i].geometry.client_bytes);
	for (int i = 0; i < LINKS; i++)
		if (engines[i].runs)
			memcpy(engines[i].own_before, engines[i].own, 384);
	more = broker_turn(broker);
	for (int i = 0; i < CLIENTS; i++)
		if (sides[i].attached)
			assert(!memcmp(sides[i].c_before, sides[i].c, sides[i].geometry.client_bytes));
	/* An executor that has exited in between would not run any more; what is killed is heard now. */
	for (unsigned i = 0; i < LINKS; i++)
		if (engines[i].runs && engines[i].killed)
			die(i, 9);
	return more;
}

/* Turns until there is nothing to do, which must come: the work for one input is bounded. */
static void settle(void)
{
	uint64_t until;
	int n = 0;

	do {
		while (turn())
			assert(++n < TURNS);
		clock_ns += 5000; /* spinning ends */
		assert(++n < TURNS);
	} while (!broker_sleep(broker, &until));
}

static void step(void)
{
	uint8_t what = u8();
	struct side *s = &sides[what >> 7];
	struct engine *e = &engines[what >> 6 & 1];
	struct onebit_sqe sqe;
	uint32_t at, n;

	if (!s->attached)
		attach(s, what);
	if (!s->attached)
		return;
	switch (what & 15) {
	case 0: /* any SQE at all */
		bytes(&sqe, sizeof(sqe));
		submit(s, &sqe);
		break;
	case 1: /* one with what must be zero, zero */
		memset(&sqe, 0, sizeof(sqe));
		sqe.op = u8() % (ONEBIT_OP_COUNT + 1);
		sqe.arg = u8();
		sqe.in_off = u8() * 8u;
		sqe.in_len = u8() * 8u;
		sqe.out_off = u8() * 8u;
		sqe.out_len = u8() * 16u;
		submit(s, &sqe);
		break;
	case 2:
	case 3:
		submit_block(s);
		break;
	case 4: /* any bytes in the arena */
		at = u8() * 16u;
		n = u8();
		bytes(s->c + s->geometry.arena_off + at, n <= AREA - at ? n : AREA - at);
		break;
	case 5: /* marks of other laps and none, a cq_head that jumps */
		at = u8();
		s->honest = false;
		for (n = at & 1 ? u8() % (2 * SQ) : 0; n; n--) {
			uint32_t i = sq_head(s) + (int8_t)u8();

			onebit_store_release(&sqe_at(s, i)->seq, onebit_seq(i));
		}
		if (at & 2)
			onebit_store_release((uint32_t *)(s->c + CLIENT_CQ_HEAD), s->cq_head + (int8_t)u8());
		if (at & 4)
			onebit_store_release((uint32_t *)(s->c + CLIENT_CQ_HEAD), u32());
		if (at & 8)
			onebit_store_release(&sqe_at(s, u8())->seq, u32());
		broker_doorbell(broker, s->client);
		turn(); /* may give an ear again to a client that rang too often */
		turn();
		/* A cq_head that cannot be detaches, when room is wanted or it was looked at already. */
		assert(!s->attached || broker->clients[s->client].muted ||
		       !broker->clients[s->client].blocked || is_possible(s));
		if (s->attached && broker->clients[s->client].ring.ahead) {
			broker_doorbell(broker, s->client);
			turn();
			assert(!s->attached || broker->clients[s->client].muted);
		}
		break;
	case 6:
		reap(s, 1 + u8() % CQ);
		break;
	case 7: /* it sleeps, or says where it runs */
		bytes(s->c + CLIENT_WAKE, sizeof(struct onebit_wake));
		break;
	case 8:
		n = 1 + u8() % 80;
		while (n-- && s->attached)
			broker_doorbell(broker, s->client);
		break;
	case 9:
		clock_ns += (uint64_t)u8() * u8() * 1000000;
		break;
	case 10:
		broker_doorbell(broker, s->client);
		turn();
		break;
	case 11:
		broker_doorbell(broker, s->client);
		settle();
		break;
	case 12:
		if (e->runs)
			say_hello(e, u8());
		break;
	case 13:
		if (e->runs) {
			take_commands(e);
			say_something(e);
		}
		break;
	case 14: /* the executor dies, or its indices lie */
		at = u8();
		if (at & 1)
			die((unsigned)(e - engines), at);
		else if (e->runs)
			onebit_store_release(&e->own->event_tail, e->event_tail + (int8_t)u8());
		break;
	case 15: /* the client dies */
		turn();
		broker_turn(broker); /* publishes what an executor's exit completed */
		if (!s->attached)
			return;
		check_terminals(s);
		broker_detach(broker, s->client);
		leave(s);
		break;
	}
	broker_exec_doorbell(broker, what >> 6 & 1);
}

/* ---- one input ---- */

/*
 * A broker as it was born, for each input: making one anew costs ten times as much. hot and dirty
 * need nothing, being empty.
 */
static struct kept {
	void *at, *copy;
	size_t size;
} kept[16];
static int n_kept;

static void keep(void *at, size_t size)
{
	void *copy = malloc(size);

	assert(copy && n_kept < 16);
	memcpy(copy, at, size);
	kept[n_kept++] = (struct kept){ at, copy, size };
}

static void rebirth(void)
{
	for (int i = 0; i < n_kept; i++)
		memcpy(kept[i].at, kept[i].copy, kept[i].size);
	clock_ns = 1000000000;
}

static void memory(void)
{
	journal = aligned_alloc(4096, JOURNAL_BYTES_MIN);
	assert(journal);
	memset(journal, 0, JOURNAL_BYTES_MIN);
	for (int i = 0; i < LINKS; i++) {
		engines[i].broker = aligned_alloc(128, sizeof(*engines[i].broker));
		engines[i].own = aligned_alloc(128, sizeof(*engines[i].own));
		engines[i].own_before = malloc(384);
		assert(engines[i].broker && engines[i].own && engines[i].own_before);
		memset(engines[i].own, 0, sizeof(*engines[i].own));
	}
}

static void birth(void)
{
	struct broker_setup setup = {
		.env = {
			.now_ns = now, .time_s = time_of_day, .wake_client = wake_client,
			.close_client = close_client, .mute_client = mute_client,
			.exec_memory = exec_memory, .exec_start = exec_start, .exec_kill = exec_kill,
			.exec_wake = exec_wake, .reload = reload, .log = no_log,
		},
		.stats = &stats_page,
		.epoch = 1,
		.has_executor = true,
		.config_text = "max_clients = 4\n",
	};

	memory();
	policy_defaults(&setup.policy);
	setup.policy.max_clients = 4;
	setup.policy.max_requests = 12;
	setup.policy.journal_bytes = JOURNAL_BYTES_MIN;
	setup.policy.max_tokens = 64;
	setup.policy.default_tokens = 8;
	setup.policy.limits.max_inflight = 6;
	setup.policy.limits.max_queued_bytes = 4096;
	setup.policy.n_overrides = 1;
	setup.policy.overrides[0].uid = 1000;
	setup.policy.overrides[0].limits = setup.policy.limits;
	setup.policy.overrides[0].limits.delegate = true;
	setup.policy.overrides[0].limits.admin = true;
	setup.policy.overrides[0].limits.spin_ns = 20000;
	setup.policy.overrides[0].limits.tokens_per_second = 100000;
	setup.journal = journal;
	broker = broker_new(&setup);
	assert(broker);
	/* An input is too short to come by more principals than these. */
	keep(broker->quota.p, 2 * STEPS * sizeof(broker->quota.p[0]));
	keep(broker->quota.bucket, sizeof(broker->quota) - offsetof(struct quota, bucket));
	keep(broker, offsetof(struct broker, quota));
	keep(&broker->journal, sizeof(*broker) - offsetof(struct broker, journal));
	keep(broker->clients, setup.policy.max_clients * sizeof(*broker->clients));
	keep(broker->requests, setup.policy.max_requests * sizeof(*broker->requests));
	keep(broker->journal.head, broker->journal.orders * sizeof(*broker->journal.head));
	keep(broker->journal.next, broker->journal.units * sizeof(*broker->journal.next));
	keep(broker->journal.prev, broker->journal.units * sizeof(*broker->journal.prev));
	keep(broker->journal.order, broker->journal.units);
}

/* All leave; what they held must come back. */
static void farewell(void)
{
	const struct onebit_stats *st;

	for (int i = 0; i < CLIENTS; i++)
		if (sides[i].attached) {
			broker_doorbell(broker, sides[i].client);
			settle();
		}
	for (int i = 0; i < CLIENTS; i++) {
		if (!sides[i].attached)
			continue;
		check_terminals(&sides[i]);
		broker_detach(broker, sides[i].client);
		leave(&sides[i]);
	}
	for (unsigned i = 0; i < LINKS; i++)
		die(i, 0);
	st = broker_stats(broker);
	assert(!st->clients && !st->bytes && !st->queued && !st->running && !st->journal_bytes);
	assert(!broker->n_requests && !broker->n_hot && !broker->n_dirty && !broker->n_muted);
	for (uint32_t i = 0; i < 2 * STEPS; i++) {
		const struct principal *p = &broker->quota.p[i];

		assert(!p->refs && !p->clients && !p->inflight && !p->bytes && !p->queued_bytes &&
		       !p->waiting && !p->running);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!broker)
		birth();
	rebirth();
	in = data;
	in_left = size;
	quiet_start = u8() & 1;
	settle();
	for (int i = 0; i < STEPS && in_left; i++)
		step();
	farewell();
	return 0;
}

#pragma clang attribute pop

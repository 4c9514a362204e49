/* SPDX-License-Identifier: MIT */
/*
 * The broker's side of an executor's link: two clients that keep to every rule, with requests in
 * flight, and an executor that says whatever the input says. fuzz_serve.c is the other side;
 * fuzz_ring.c has clients that lie as well, and knows less of what an answer must be.
 *
 * An input is a row of steps (see step()). An event is right in every field but for those that the
 * input changes, so that some get deep; others are 64 bytes of the input. What must hold, whatever the
 * executor said: nothing is read of its data but what the event names, nothing is written but into
 * the windows of requests that have not ended (the rest is poisoned); progress goes on where it
 * stood, what was told stays as it is, records are whole; each request ends once; and as soon as
 * an executor behaves, every request ends and all that was held has come back.
 *
 * Each input finds the broker as it was born, so that any of them can be run again alone.
 */
#include <assert.h>
#include <errno.h>
#include <sanitizer/asan_interface.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "onebit_ring.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* New ways through the core are what is looked for, not through this file; and it is faster so. */
#pragma clang attribute push(__attribute__((no_sanitize("coverage"))), apply_to = function)

#include "executor.c" /* the loopback of lib_core.c wants it */
#include "lib_core.h"

enum { CLIENTS = 2, SQ = 8, CQ = 16, AREA = 4096, PLACES = 8, WINDOW = AREA / PLACES };
enum { ASKS = 64, STEPS = 64, TURNS = 2000, ROUNDS = 200, CHOICES = 3, PRINCIPALS = 64 };
enum { DATA_NEAR = 32768, DATA_END = 4096 }; /* where events lay their data, at either end */
_Static_assert(sizeof(struct core_block) < WINDOW, "blocks lie apart as windows do");
enum { OWN_HEAD = offsetof(struct exec_own_region, data) };

static const uint8_t *in; /* the input not read yet */
static size_t in_left;

static struct core *core;
static bool no_memory; /* for executors */

static struct side { /* one client, and what it was promised */
	bool on;
	uint32_t places; /* bit a place: an ask has it */
	uint32_t n_asks;
	struct ask {
		bool ended, accepted;
		uint8_t op, place, n_choices;
		uint32_t out_len, max_tokens;
		uint64_t request_id;
		struct {
			uint32_t next;  /* token that progress tells next */
			uint32_t bytes; /* of the records told */
		} c[CHOICES];
		uint8_t copy[WINDOW]; /* the records told, where they lie */
	} ask[ASKS];
} sides[CLIENTS];

static struct engine { /* one link's executor, as it sees itself */
	struct exec_broker_region *broker;
	struct exec_own_region *own;
	bool runs, dying, stopped;
	bool far; /* data elsewhere than at the two ends was unpoisoned */
	uint32_t cmd_head, event_tail, data_at;
	uint32_t n_events, data_top; /* written so far */
	struct run {
		bool on;
		uint32_t tag, replayed; /* bit a choice */
		uint32_t next[CHOICES];
		const struct journal_entry *entry;
		uint64_t id;
	} run[EXEC_SLOTS_MAX];
} engines[LINKS];

/* ---- the input ------------------------------------------------------------------------------- */

static uint8_t u8(void)
{
	if (!in_left)
		return 0;
	in_left--;
	return *in++;
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

/* Other bytes somewhere in p[0..len): one to four of them. */
static void change(void *p, size_t len)
{
	uint8_t at = u8();
	size_t n = 1 + (at & 3), off = len ? (size_t)(at >> 2) * 4 % len : 0;

	bytes((uint8_t *)p + off, n < len - off ? n : len - off);
}

/* ---- what the core calls, where it is not lib_core's ----------------------------------------- */

static void close_client(void *ctx, uint32_t client, const struct onebit_error *why)
{
	(void)ctx;
	(void)client;
	(void)why;
	abort(); /* for what an executor said, or for nothing */
}

static void no_log(void *ctx, enum broker_log level, const char *line)
{
	(void)ctx;
	(void)level;
	assert(strnlen(line, 256) < 256);
}

/* As the last executor found it: what that one wrote is zero again, and no data may be read. */
static void fresh(struct engine *e)
{
	struct exec_own_region *own = e->own;
	uint8_t *end = own->data + EXEC_DATA_BYTES - DATA_END;

	ASAN_UNPOISON_MEMORY_REGION(e->broker, sizeof(*e->broker));
	ASAN_UNPOISON_MEMORY_REGION(own, OWN_HEAD + e->data_top);
	ASAN_UNPOISON_MEMORY_REGION(end, DATA_END);
	memset(e->broker, 0, sizeof(*e->broker));
	memset(own, 0, offsetof(struct exec_own_region, events));
	memset(own->events, 0, e->n_events * sizeof(own->events[0]));
	memset(own->data, 0, e->data_top);
	memset(end, 0, DATA_END);
	ASAN_POISON_MEMORY_REGION(own->data, e->far ? EXEC_DATA_BYTES : e->data_top);
	ASAN_POISON_MEMORY_REGION(end, DATA_END);
	e->far = false;
	e->data_at = e->data_top = e->n_events = 0;
}

static int exec_memory(void *ctx, unsigned link, struct exec_memory *mem)
{
	struct engine *e = &engines[link];

	(void)ctx;
	assert(!e->runs);
	if (no_memory)
		return -ENOMEM;
	fresh(e);
	*mem = (struct exec_memory){ e->broker, e->own };
	return 0;
}

static void exec_start(void *ctx, unsigned link, uint32_t generation, const char *model)
{
	struct engine *e = &engines[link];

	(void)ctx;
	(void)generation;
	assert(!e->runs && (!model || strnlen(model, 256) < 256));
	e->runs = true;
	e->dying = e->stopped = false;
	e->cmd_head = onebit_load_acquire(&e->broker->cmd_tail);
	e->event_tail = onebit_load_acquire(&e->own->event_tail);
	memset(e->run, 0, sizeof(e->run));
}

static void exec_kill(void *ctx, unsigned link)
{
	(void)ctx;
	assert(engines[link].runs);
	engines[link].dying = true;
}

static void exec_wake(void *ctx, unsigned link)
{
	(void)ctx;
	assert(engines[link].runs);
}

/* ---- turns ----------------------------------------------------------------------------------- */

static void die(unsigned link, int status)
{
	struct engine *e = &engines[link];

	if (!e->runs)
		return;
	e->runs = false;
	broker_exec_exited(core->b, link, status);
	/* Its memory is given back; the core must not look at it again. */
	ASAN_POISON_MEMORY_REGION(e->broker, sizeof(*e->broker));
	ASAN_POISON_MEMORY_REGION(e->own, OWN_HEAD);
}

static bool turn(void)
{
	bool more = broker_turn(core->b);

	for (unsigned i = 0; i < LINKS; i++) {
		assert(core->b->link[i].n_timing <= EXEC_TIMINGS_MAX);
		assert(core->b->link[i].n_session <= EXEC_SESSIONS_MAX);
		if (engines[i].runs && engines[i].dying)
			die(i, 9);
	}
	return more;
}

/* Turns until there is nothing to do, which must come. */
static void settle(void)
{
	int n = 0;

	do {
		while (turn())
			assert(++n < TURNS);
		assert(++n < TURNS);
	} while (!broker_sleep(core->b, &core->until));
}

/* ---- clients --------------------------------------------------------------------------------- */

static bool gives_records(const struct ask *a)
{
	return a->op == ONEBIT_OP_GENERATE || a->op == ONEBIT_OP_SCORE;
}

static uint8_t *window_of(int i, const struct ask *a)
{
	return core->c[i].daemon + core->c[i].w.out_off + a->place * WINDOW;
}

/* n more records of a choice, from where the last ones ended: whole, and the old ones untouched. */
static void walk(const uint8_t *w, struct ask *a, uint32_t choice, uint32_t n)
{
	struct onebit_choice ch;
	struct onebit_record rec;
	uint32_t at = a->c[choice].bytes, fixed;

	memcpy(&ch, w + sizeof(struct onebit_out) + choice * sizeof(ch), sizeof(ch));
	assert(ch.rec_off + ch.rec_cap <= a->out_len && ch.n_bytes <= ch.rec_cap);
	assert(!memcmp(w + ch.rec_off, a->copy + ch.rec_off, at));
	for (; n; n--) {
		assert(ch.n_bytes - at >= sizeof(rec) && at < ch.n_bytes);
		memcpy(&rec, w + ch.rec_off + at, sizeof(rec));
		fixed = (uint32_t)sizeof(rec) + rec.n_top * (uint32_t)sizeof(struct onebit_top);
		assert(rec.size % 8 == 0 && rec.size <= ch.n_bytes - at);
		assert(fixed + rec.text_len <= rec.size && !(rec.flags & ~ONEBIT_REC_LOGPROB));
		for (uint32_t t = 0; t < rec.n_top; t++) {
			struct onebit_top top;

			memcpy(&top, w + ch.rec_off + at + sizeof(rec) + t * sizeof(top), sizeof(top));
			assert(top.text_off + top.text_len <= rec.size);
		}
		at += rec.size;
		a->c[choice].next++;
	}
	assert(a->c[choice].next <= ch.n_tokens && ch.n_tokens <= a->max_tokens);
	a->c[choice].bytes = at;
	memcpy(a->copy + ch.rec_off, w + ch.rec_off, at);
}

static void progress(int i, struct ask *a, const struct onebit_cqe *cqe)
{
	const uint8_t *w = window_of(i, a);
	struct onebit_out out;

	assert(cqe->res >= 0 && cqe->res == cqe->u.progress.n);
	assert(!!(cqe->flags & ONEBIT_CQE_ACCEPTED) == !a->accepted);
	assert(!(cqe->flags & ONEBIT_CQE_INLINE) || cqe->u.progress.text_len <= 8);
	assert(cqe->res || !a->accepted || cqe->flags & ONEBIT_CQE_REPLAYED);
	a->accepted = true;
	if (!gives_records(a)) {
		assert(!cqe->res);
		return;
	}
	memcpy(&out, w, sizeof(out));
	assert(out.size == sizeof(out) && out.n_choices == a->n_choices);
	assert(!a->request_id || a->request_id == out.request_id);
	a->request_id = out.request_id;
	if (!cqe->res)
		return;
	assert(cqe->choice < a->n_choices && cqe->u.progress.first == a->c[cqe->choice].next);
	walk(w, a, cqe->choice, (uint32_t)cqe->res);
}

static void terminal(int i, struct ask *a, const struct onebit_cqe *cqe)
{
	const uint8_t *w = window_of(i, a);
	struct onebit_choice ch;

	assert((cqe->res < 0) == (cqe->u.end.code != ONEBIT_E_OK));
	assert(error_name(cqe->u.end.code));
	a->ended = true;
	if (cqe->res >= 0 && a->op != ONEBIT_OP_CANCEL)
		assert((uint32_t)cqe->res <= a->out_len);
	assert(cqe->res < 0 || a->accepted || a->op == ONEBIT_OP_CANCEL ||
	       a->op == ONEBIT_OP_QUERY || a->op == ONEBIT_OP_ADMIN);
	if (a->accepted && gives_records(a)) {
		for (uint32_t c = 0; c < a->n_choices; c++) {
			memcpy(&ch, w + sizeof(struct onebit_out) + c * sizeof(ch), sizeof(ch));
			assert(ch.n_tokens >= a->c[c].next && ch.n_tokens <= a->max_tokens);
			walk(w, a, c, ch.n_tokens - a->c[c].next);
			assert(a->c[c].bytes == ch.n_bytes);
			assert(ch.finish != ONEBIT_FINISH_NONE && ch.finish < ONEBIT_FINISH_COUNT);
			assert(cqe->res < 0 || ch.finish == ONEBIT_FINISH_STOP ||
			       ch.finish == ONEBIT_FINISH_LENGTH);
		}
	}
	if (a->out_len) { /* nobody writes there any more */
		ASAN_POISON_MEMORY_REGION(w, WINDOW);
		sides[i].places &= ~(1u << a->place);
	}
}

static void reap(int i, uint32_t most)
{
	struct side *s = &sides[i];
	struct onebit_cqe cqe;

	for (; most && s->on && core_reap(core, i, &cqe); most--) {
		struct ask *a = &s->ask[cqe.user_data % ASKS];

		assert(cqe.user_data < s->n_asks && !a->ended);
		if (cqe.flags & ONEBIT_CQE_MORE)
			progress(i, a, &cqe);
		else
			terminal(i, a, &cqe);
	}
}

/* A place of the out area for the window, and of the arena for the block. */
static bool take_place(int i, struct ask *a, struct onebit_sqe *e, uint32_t len)
{
	struct side *s = &sides[i];

	for (a->place = 0; a->place < PLACES && s->places >> a->place & 1; a->place++)
		;
	if (a->place == PLACES)
		return false;
	a->out_len = e->out_len = len;
	e->out_off = a->place * WINDOW;
	return true;
}

static void submit(int i)
{
	static const uint8_t ops[16] = {
		ONEBIT_OP_GENERATE, ONEBIT_OP_GENERATE, ONEBIT_OP_GENERATE, ONEBIT_OP_GENERATE,
		ONEBIT_OP_SCORE, ONEBIT_OP_EMBED, ONEBIT_OP_TOKENIZE, ONEBIT_OP_DETOKENIZE,
		ONEBIT_OP_SESSION_OPEN, ONEBIT_OP_SESSION_FORK, ONEBIT_OP_SESSION_CLOSE, ONEBIT_OP_CANCEL,
		ONEBIT_OP_QUERY, ONEBIT_OP_QUERY, ONEBIT_OP_ADMIN, ONEBIT_OP_GENERATE,
	};
	struct side *s = &sides[i];
	struct ask *a = &s->ask[s->n_asks];
	uint8_t what = u8(), how = u8();
	struct onebit_sqe e = { .op = ops[what & 15], .user_data = s->n_asks };
	struct core_block t;

	if (!s->on || s->n_asks == ASKS)
		return;
	memset(a, 0, offsetof(struct ask, copy));
	a->op = e.op;
	a->n_choices = 1;
	e.priority = (what >> 4 & 3) % ONEBIT_PRIO_COUNT;
	e.deadline_ms = what >> 6 == 3 ? 1 + u8() : 0;
	switch (e.op) {
	case ONEBIT_OP_SESSION_FORK:
	case ONEBIT_OP_SESSION_CLOSE:
		e.arg = how;
		break;
	case ONEBIT_OP_CANCEL:
		e.arg = s->n_asks > how % 8u ? s->n_asks - 1 - how % 8u : 0;
		break;
	case ONEBIT_OP_QUERY:
		e.arg = how % ONEBIT_QUERY_COUNT | (uint64_t)(how >> 6) << 32;
		if (!take_place(i, a, &e, WINDOW))
			return;
		break;
	case ONEBIT_OP_ADMIN:
		e.arg = how % 5;
		if (e.arg == ONEBIT_ADMIN_LOAD || e.arg == ONEBIT_ADMIN_SWAP) {
			e.in_off = AREA - 1;
			e.in_len = 1;
		}
		core_arena(core, i)[AREA - 1] = 'm';
		break;
	case ONEBIT_OP_SESSION_OPEN:
		break;
	default:
		core_block_plain(&t, "tell", 1 + how % 8);
		t.p.flags = how & 8 ? ONEBIT_PARAM_NO_REPLAY : 0;
		if (e.op == ONEBIT_OP_GENERATE)
			t.p.n_choices = a->n_choices = (uint8_t)(1 + (how >> 4) % CHOICES);
		a->max_tokens = t.p.max_tokens;
		if (how & 64 && e.op == ONEBIT_OP_GENERATE && a->n_choices <= 2) {
			t.p.n_resume = a->n_choices;
			t.p.resume_off = offsetof(struct core_block, resume);
			for (uint32_t c = 0; c < a->n_choices; c++) {
				uint32_t first = t.p.max_tokens / 2;

				t.resume[c].first = a->c[c].next = first;
				t.resume[c].tokens_off = first ? offsetof(struct core_block, ids) : 0;
			}
		}
		t.p.session = how & 128 ? u8() : 0;
		e.in_len = sizeof(t);
		if (!take_place(i, a, &e, how & 128 ? u8() * 2u : WINDOW))
			return;
		e.in_off = a->place * WINDOW; /* not taken yet, perhaps, when the next one comes */
		memcpy(core_arena(core, i) + e.in_off, &t, sizeof(t));
	}
	if (!core_put(core, i, &e))
		return;
	if (a->out_len) {
		s->places |= 1u << a->place;
		ASAN_UNPOISON_MEMORY_REGION(window_of(i, a), a->out_len);
		memset(window_of(i, a), 0xee, a->out_len);
	}
	s->n_asks++;
	core_publish(core, i);
}

static void leave(int i)
{
	if (!sides[i].on)
		return;
	sides[i].on = false;
	broker_detach(core->b, (uint32_t)i);
	ASAN_POISON_MEMORY_REGION(core->c[i].client, core->c[i].w.client_bytes);
	ASAN_POISON_MEMORY_REGION(core->c[i].daemon, core->c[i].w.daemon_bytes);
}

/* ---- executors ------------------------------------------------------------------------------- */

/* Write the event and let the broker read what data it names, nothing else. */
static void post(struct engine *e, unsigned link, const struct exec_event *ev)
{
	e->own->events[onebit_slot(e->event_tail++, EXEC_EVENTS)] = *ev;
	if (e->n_events < EXEC_EVENTS)
		e->n_events++;
	onebit_store_release(&e->own->event_tail, e->event_tail);
	if (ev->data_len && ev->data_len <= EXEC_EVENT_DATA_MAX && ev->data_off <= EXEC_DATA_BYTES &&
	    ev->data_len <= EXEC_DATA_BYTES - ev->data_off) {
		ASAN_UNPOISON_MEMORY_REGION(e->own->data + ev->data_off, ev->data_len);
		e->far |= ev->data_off + ev->data_len > e->data_top;
	}
	broker_exec_doorbell(core->b, link);
}

/* Room for the data of an event; at the end of the area the sanitizer sees a step too far. */
static uint8_t *room(struct engine *e, struct exec_event *ev, uint32_t len, bool at_end)
{
	uint8_t *to;

	if (at_end) {
		ev->data_off = EXEC_DATA_BYTES - len;
	} else {
		if (e->data_at + len > DATA_NEAR)
			e->data_at = 0;
		ev->data_off = e->data_at;
		e->data_at += (len + 15) & ~7u; /* 8 bytes at least that nobody may read */
		if (e->data_top < e->data_at)
			e->data_top = e->data_at;
	}
	ev->data_len = len;
	to = e->own->data + ev->data_off;
	ASAN_UNPOISON_MEMORY_REGION(to, len);
	return to;
}

static void say_hello(struct engine *e, unsigned link, uint32_t slots, uint8_t how)
{
	struct exec_event ev = { .kind = EXEC_EV_HELLO };
	struct exec_hello h = {
		.version = EXEC_VERSION,
		.slots = slots,
		.ops = (how & 1 ? 1u << ONEBIT_OP_GENERATE : (1u << ONEBIT_OP_COUNT) - 1),
		.param_flags = how & 2 ? 0 : ONEBIT_PARAM_FLAGS_ALL,
		.model = { .size = sizeof(h.model), .context = 4096, .model_id = { how >> 2 & 1 } },
	};

	if (how & 8)
		change(&h, sizeof(h));
	memcpy(room(e, &ev, sizeof(h), how & 16), &h, sizeof(h));
	post(e, link, &ev);
}

static void take_commands(struct engine *e)
{
	uint32_t tail = onebit_load_acquire(&e->broker->cmd_tail);

	assert(onebit_distance(e->cmd_head, tail) <= EXEC_CMDS);
	while (e->cmd_head != tail) {
		const struct exec_cmd *cmd = &e->broker->cmds[onebit_slot(e->cmd_head++, EXEC_CMDS)];
		struct journal *j = &core->b->journal;
		struct run *r = &e->run[cmd->slot % EXEC_SLOTS_MAX];

		assert(cmd->slot < EXEC_SLOTS_MAX);
		if (cmd->kind == EXEC_CMD_STOP)
			e->stopped = true;
		if (cmd->kind != EXEC_CMD_RUN)
			continue;
		assert(cmd->entry_off % JOURNAL_UNIT == 0 && cmd->entry_off < j->bytes);
		r->entry = (const void *)(j->base + cmd->entry_off);
		assert(r->entry->magic == JOURNAL_MAGIC && r->entry->op == cmd->op);
		assert(r->entry->bytes <= j->bytes - cmd->entry_off);
		assert(r->entry->params.n_choices && r->entry->params.n_choices <= CHOICES);
		r->on = true;
		r->tag = cmd->tag;
		r->id = r->entry->request_id;
		r->replayed = 0;
		for (uint32_t c = 0; c < CHOICES; c++)
			r->next[c] = r->entry->done[c].n;
	}
	onebit_store_release(&e->own->cmd_head, e->cmd_head);
}

/* Records come in one shape an event: with text, tops, or long. */
static uint32_t record_size(uint8_t shape)
{
	return 24 + (shape >> 3 & 1) * (uint32_t)sizeof(struct onebit_top) + (shape >> 4) * 8u;
}

static void records(uint8_t *to, uint32_t first, uint32_t n, uint8_t shape)
{
	struct onebit_record rec = {
		.size = (uint16_t)record_size(shape), .n_top = shape >> 3 & 1, .text_len = shape & 7,
	};

	memset(to, 't', (size_t)n * rec.size);
	for (uint32_t k = 0; k < n; k++, to += rec.size) {
		rec.token = first + k;
		memcpy(to, &rec, sizeof(rec));
		memset(to + sizeof(rec), 0, rec.n_top * sizeof(struct onebit_top));
	}
}

/* Has it not ended without our knowing it? Then its entry may be another's. */
static bool runs_still(struct run *r)
{
	r->on = r->on && r->entry->magic == JOURNAL_MAGIC && r->entry->request_id == r->id;
	return r->on;
}

static uint32_t token_of(const struct journal_entry *j, uint32_t choice, uint32_t index)
{
	uint32_t id;

	memcpy(&id, (const uint8_t *)j + j->tokens_off +
	       4 * ((size_t)choice * j->tokens_cap + index), sizeof(id));
	return id;
}

/* Show that we stand where the client does. */
static void confirm(struct engine *e, unsigned link, uint32_t slot, uint32_t choice)
{
	struct run *r = &e->run[slot];
	struct exec_event ev = { .kind = EXEC_EV_REPLAYED, .slot = slot, .tag = r->tag };

	if (r->replayed >> choice & 1 || !r->entry->done[choice].n)
		return;
	r->replayed |= 1u << choice;
	ev.choice = (uint16_t)choice;
	ev.first = r->entry->done[choice].n - 1;
	ev.detail = token_of(r->entry, choice, ev.first);
	post(e, link, &ev);
}

static uint64_t session_of(const struct journal_entry *j)
{
	return j->op == ONEBIT_OP_SESSION_OPEN || j->op == ONEBIT_OP_SESSION_FORK ? j->request_id : 0;
}

/* One event, right but for what the input changes. */
static void say(struct engine *e, unsigned link)
{
	static const struct journal_entry nothing;
	uint8_t what = u8(), how = u8(), shape;
	struct exec_event ev = { .slot = what >> 4, .choice = how >> 6 & 1 };
	const struct journal_entry *j = &nothing;
	struct run *r = &e->run[ev.slot];
	uint32_t len;
	uint8_t *data = NULL;

	for (uint32_t s = 0; s < EXEC_SLOTS_MAX && !runs_still(r); s++) /* rather one that runs */
		if (runs_still(&e->run[s])) {
			r = &e->run[s];
			ev.slot = s;
		}
	ev.tag = r->tag;
	if (r->on)
		j = r->entry;
	switch (what & 15) {
	default:
		ev.kind = EXEC_EV_TOKENS;
		if (r->on && !(how & 128))
			confirm(e, link, ev.slot, ev.choice);
		ev.first = r->next[ev.choice];
		ev.n = how >> 4 & 3;
		ev.finish = how & 8 ? ONEBIT_FINISH_LENGTH : 0;
		shape = u8();
		data = room(e, &ev, ev.n * record_size(shape), how & 1);
		records(data, ev.first, ev.n, shape);
		r->next[ev.choice] += ev.n;
		break;
	case 4:
		ev.kind = EXEC_EV_END;
		ev.detail = session_of(j);
		r->on = false;
		break;
	case 5:
		ev.kind = EXEC_EV_END;
		ev.code = u8();
		r->on = false;
		break;
	case 6:
		ev.kind = EXEC_EV_DATA;
		len = u8() * 2u;
		data = room(e, &ev, len, how & 1);
		memset(data, 'd', len);
		break;
	case 7:
		ev.kind = EXEC_EV_REPLAYED;
		if (r->on && j->tokens_cap && ev.choice < j->params.n_choices && j->done[ev.choice].n) {
			ev.first = j->done[ev.choice].n - 1;
			ev.detail = token_of(j, ev.choice, ev.first);
		}
		break;
	case 8:
		ev.kind = EXEC_EV_PROGRESS;
		break;
	case 9:
		ev.kind = EXEC_EV_KV;
		data = room(e, &ev, sizeof(struct onebit_kv), how & 1);
		break;
	case 10:
		ev.kind = how & 16 ? EXEC_EV_TIMING : EXEC_EV_SESSIONS;
		ev.n = u8() % 66;
		len = (uint32_t)(how & 16 ? sizeof(struct onebit_timing) : sizeof(struct onebit_session));
		data = room(e, &ev, ev.n * len, how & 1);
		break;
	case 11:
		ev.kind = EXEC_EV_FAULT;
		data = room(e, &ev, u8() % 100, how & 1);
		break;
	case 12: /* a hello, in its place or not */
		say_hello(e, link, how & 64 ? u8() : 1 + (how & 7), what >> 4);
		return;
	case 13: /* whatever, for a slot that runs or not */
		bytes(&ev, sizeof(ev));
		ev.kind %= 13;
		if (how & 1)
			ev.slot = (uint32_t)(r - e->run);
		if (how & 2)
			ev.tag = r->tag;
		if (how & 8)
			ev.data_len %= 1024;
		if (how & 16)
			ev.data_off %= EXEC_DATA_BYTES;
		break;
	}
	if (how & 4 && data && ev.data_len)
		change(data, ev.data_len);
	if (how & 2)
		change(&ev, sizeof(ev));
	post(e, link, &ev);
}

/* All that is missing of what the broker believes to run, as a good executor gives it. */
static void behave(struct engine *e, unsigned link)
{
	struct link *l = &core->b->link[link];

	take_commands(e);
	if (e->stopped) {
		die(link, 0);
		return;
	}
	if (l->state == LINK_STARTING)
		say_hello(e, link, 4, 0);
	for (uint32_t s = 0; s < EXEC_SLOTS_MAX && l->state == LINK_READY; s++) {
		struct exec_event ev = { .kind = EXEC_EV_END, .slot = s, .tag = l->tag[s] };
		struct run *r = &e->run[s];

		if (l->slot[s] == NONE)
			continue;
		assert(r->entry && r->tag == l->tag[s]);
		ev.detail = session_of(r->entry);
		for (uint32_t c = 0; r->entry->tokens_cap && c < r->entry->params.n_choices; c++) {
			struct exec_event tok = { .kind = EXEC_EV_TOKENS, .slot = s, .tag = r->tag };
			const struct journal_done *d = &r->entry->done[c];

			if (d->finish)
				continue;
			r->replayed = 0;
			confirm(e, link, s, c);
			tok.choice = (uint16_t)c;
			tok.first = d->n;
			tok.n = r->entry->tokens_cap - d->n;
			tok.finish = ONEBIT_FINISH_LENGTH;
			records(room(e, &tok, tok.n * record_size(3), false), tok.first, tok.n, 3);
			post(e, link, &tok);
		}
		r->on = false;
		post(e, link, &ev);
	}
}

/* ---- one input ------------------------------------------------------------------------------- */

static void step(void)
{
	uint8_t what = u8();
	int i = what >> 6 & 1;
	unsigned link = what >> 7;
	struct engine *e = &engines[link];

	if (!e->runs) /* the other one is meant, if there is one */
		e = &engines[link ^= 1];
	switch (what & 15) {
	case 0:
	case 1:
	case 2:
		submit(i);
		break;
	case 3:
		reap(i, 1 + (what >> 4 & 3));
		break;
	case 4:
		core->now += (1ull + u8()) * 50000000; /* up to 12.8 s: more than progress_ms */
		broker_exec_doorbell(core->b, link);
		break;
	case 5:
		settle();
		break;
	case 6:
		turn();
		break;
	case 7: /* it sleeps, and its index lies */
		if (e->runs) {
			int8_t by = (int8_t)u8();

			onebit_store_relaxed(&e->own->need_wake, what & 16);
			onebit_store_release(what & 16 ? &e->own->cmd_head : &e->own->event_tail,
					     (what & 16 ? e->cmd_head : e->event_tail) +
					     (uint32_t)by * (what & 32 ? 1 : 0x01000081u));
			broker_exec_doorbell(core->b, link);
		}
		break;
	case 8:
		die(link, what >> 4);
		break;
	case 9:
		if (what & 32)
			leave(i);
		else if (what & 16)
			broker_drain(core->b);
		else
			no_memory = !no_memory;
		break;
	case 10:
		if (e->runs)
			behave(e, link);
		break;
	case 11: /* one that starts well */
		if (e->runs) {
			say_hello(e, link, 4, 0);
			settle();
		}
		break;
	default:
		if (e->runs) {
			take_commands(e);
			say(e, link);
		}
		if (what & 32)
			settle();
	}
}

static bool all_ended(void)
{
	const struct onebit_stats *st = broker_stats(core->b);

	for (int i = 0; i < CLIENTS; i++)
		for (uint32_t n = 0; sides[i].on && n < sides[i].n_asks; n++)
			if (!sides[i].ask[n].ended)
				return false;
	return !st->queued && !st->running;
}

/* From here on executors behave: every request comes to its end, and all comes back. */
static void farewell(void)
{
	struct broker *b = core->b;
	const struct onebit_stats *st;
	int rounds = 0;

	no_memory = false;
	for (settle(); !all_ended(); settle()) {
		assert(++rounds < ROUNDS);
		for (int i = 0; i < CLIENTS; i++)
			reap(i, CQ);
		for (unsigned i = 0; i < LINKS; i++)
			if (engines[i].runs)
				behave(&engines[i], i);
		core->now += 100000000;
		broker_exec_doorbell(b, 0);
	}
	st = broker_stats(b);
	assert(!st->journal_bytes && !st->suspects && !b->n_waiting);
	assert(st->accepted <= st->done + st->cancelled + st->failed);
	for (int i = 0; i < CLIENTS; i++)
		leave(i);
	settle();
	for (unsigned i = 0; i < LINKS; i++) {
		assert(!b->link[i].n_running && !b->link[i].n_bound && b->link[i].alone == NONE);
		die(i, 0);
	}
	assert(!st->clients && !st->bytes && !b->n_requests && !b->n_dirty);
	for (uint32_t i = 0; i < PRINCIPALS; i++) {
		const struct principal *p = &b->quota.p[i];

		assert(!p->refs && !p->inflight && !p->bytes && !p->queued_bytes && !p->waiting &&
		       !p->running);
	}
}

/* What a birth makes, kept: making it anew for each input costs ten times as much. */
static struct kept {
	void *at, *copy;
	size_t size;
} kept[20];
static int n_kept;

static void keep(void *at, size_t size)
{
	void *copy = malloc(size);

	assert(copy && n_kept < (int)(sizeof(kept) / sizeof(kept[0])));
	memcpy(copy, at, size);
	kept[n_kept++] = (struct kept){ at, copy, size };
}

static void rebirth(void)
{
	for (int i = 0; i < n_kept; i++) {
		ASAN_UNPOISON_MEMORY_REGION(kept[i].at, kept[i].size);
		memcpy(kept[i].at, kept[i].copy, kept[i].size);
	}
	for (int i = 0; i < CLIENTS; i++) {
		sides[i].on = true;
		sides[i].places = sides[i].n_asks = 0;
		ASAN_POISON_MEMORY_REGION(core->c[i].daemon + core->c[i].w.out_off, AREA);
	}
}

static void birth(void)
{
	struct onebit_hello h;
	struct policy p;
	struct broker *b;

	core_policy(&p);
	p.max_clients = 4;
	p.max_requests = 12;
	p.journal_bytes = JOURNAL_BYTES_MIN;
	p.max_tokens = 64;
	core = core_new(&p, true, false);
	b = core->b;
	b->s.env.close_client = close_client;
	b->s.env.exec_memory = exec_memory;
	b->s.env.exec_start = exec_start;
	b->s.env.exec_kill = exec_kill;
	b->s.env.exec_wake = exec_wake;
	b->s.env.log = no_log;
	b->s.stats = NULL; /* writing the page is a third of the time, and no executor's matter */
	for (int i = 0; i < LINKS; i++) {
		engines[i].broker = aligned_alloc(128, sizeof(*engines[i].broker));
		engines[i].own = aligned_alloc(128, sizeof(*engines[i].own));
		assert(engines[i].broker && engines[i].own);
		memset(engines[i].own, 0, sizeof(*engines[i].own));
		engines[i].far = true; /* all of it is to be poisoned */
	}
	core_hello(&h);
	h.sq_entries = SQ;
	h.cq_entries = CQ;
	h.arena_bytes = h.out_bytes = AREA;
	for (int i = 0; i < CLIENTS; i++)
		if (core_attach(core, 1000 + (uint32_t)i, &h, NULL) != i)
			abort();
	/* An input is too short to come by more principals than these. */
	keep(b, offsetof(struct broker, quota.p) + PRINCIPALS * sizeof(b->quota.p[0]));
	keep(b->quota.bucket, sizeof(*b) - offsetof(struct broker, quota.bucket));
	keep(b->clients, p.max_clients * sizeof(*b->clients));
	keep(b->requests, p.max_requests * sizeof(*b->requests));
	keep(b->hot, p.max_clients * sizeof(*b->hot));
	keep(b->dirty, p.max_clients * sizeof(*b->dirty));
	keep(b->journal.head, b->journal.orders * sizeof(*b->journal.head));
	keep(b->journal.next, b->journal.units * sizeof(*b->journal.next));
	keep(b->journal.prev, b->journal.units * sizeof(*b->journal.prev));
	keep(b->journal.order, b->journal.units);
	keep(&core->now, offsetof(struct core, c[CLIENTS]) - offsetof(struct core, now));
	for (int i = 0; i < CLIENTS; i++) {
		keep(core->c[i].client, core->c[i].w.client_bytes);
		keep(core->c[i].daemon, core->c[i].w.daemon_bytes);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!core)
		birth();
	rebirth();
	in = data;
	in_left = size;
	no_memory = false;
	settle(); /* starts the first executor */
	for (int i = 0; i < STEPS && in_left; i++)
		step();
	farewell();
	return 0;
}

#pragma clang attribute pop

/* SPDX-License-Identifier: MIT */
/*
 * What is in flight. A request is built once (lib_block.c), placed into the ring as often as it
 * takes, and leaves when its END was told. Everything that a later placement needs is in memory
 * that we own or hold mapped: the block, and the window with the records told so far.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "lib_block.h"
#include "lib_onebit.h"
#include "lib_text.h"

#define BLOCK_KEEP   (64u << 10) /* a slot keeps no larger buffer for its next request */
#define GUESS_SHARE  4u          /* of the out area, for an answer of unknown length */
#define ROOM_WAIT_NS 1000000ull  /* room in ring or arena is announced by nobody: look again */

bool lib_request_has_block(uint8_t op)
{
	return op == ONEBIT_OP_GENERATE || op == ONEBIT_OP_TOKENIZE || op == ONEBIT_OP_DETOKENIZE ||
	       op == ONEBIT_OP_SCORE || op == ONEBIT_OP_EMBED;
}

bool lib_request_has_records(uint8_t op)
{
	return op == ONEBIT_OP_GENERATE || op == ONEBIT_OP_SCORE;
}

struct lib_request *lib_request_find(const struct onebit *o, uint64_t id)
{
	uint64_t slot = id & 0xffff;

	if (slot >= o->n_requests || o->requests[slot].id != id ||
	    o->requests[slot].state == LIB_FREE)
		return NULL;
	return &o->requests[slot];
}

/* How large the window is to be; 0 when the operation has none. */
static int window_size(struct onebit *o, struct lib_request *rq, const struct onebit_request *in)
{
	uint32_t area = o->link.welcome.out_bytes;
	uint64_t want = in->out_bytes ? in->out_bytes : lib_block_window(rq, in);

	rq->auto_window = !in->out_bytes;
	/* How long the answer may get is the daemon's secret then: do not take all room for a guess. */
	if (rq->auto_window && rq->op == ONEBIT_OP_GENERATE && !in->params.max_tokens &&
	    want > area / GUESS_SHARE)
		want = area / GUESS_SHARE;
	if (rq->auto_window && want > area)
		want = area;
	if (want > area)
		return lib_error_local(&o->error, -ENOSPC, false,
				       "a window of %llu bytes is larger than the out area of %u; open with a larger out_bytes",
				       (unsigned long long)want, area);
	rq->out_len = (uint32_t)want & ~7u;
	if (!lib_request_has_records(rq->op))
		rq->out_len = (uint32_t)want;
	return 0;
}

int lib_request_new(struct onebit *o, const struct onebit_request *in, struct lib_request **out)
{
	struct lib_request *rq;
	char *block;
	uint32_t cap;
	uint16_t slot;
	int r;

	if (!o->n_free)
		return lib_error_local(&o->error, -EAGAIN, true,
				       "%u requests are in flight, the limit of this attachment; take events first",
				       o->n_requests);
	slot = o->free_slots[o->n_free - 1];
	rq = &o->requests[slot];
	block = rq->block;
	cap = rq->block_cap;
	memset(rq, 0, sizeof(*rq));
	rq->block = block;
	rq->block_cap = cap;
	rq->op = in->op;
	rq->priority = in->priority;
	rq->arg = in->arg;
	rq->user = in->user;
	rq->deadline_ns = in->deadline_ms ? lib_now() + in->deadline_ms * 1000000ull : 0;
	r = lib_block_build(rq, in, &o->error);
	if (!r)
		r = window_size(o, rq, in);
	if (r)
		return r;
	o->n_free--;
	rq->id = ++o->generation << 16 | slot;
	rq->state = LIB_PENDING;
	o->n_pending++;
	*out = rq;
	return 0;
}

static void window_give(struct onebit *o, struct lib_request *rq)
{
	if (rq->placed_out)
		lib_ranges_give(&o->out, rq->out_off);
	rq->placed_out = false;
	rq->seen = false;
}

static void state_set(struct onebit *o, struct lib_request *rq, enum lib_request_state state)
{
	o->n_pending -= rq->state == LIB_PENDING;
	o->n_ended -= rq->state == LIB_ENDED;
	rq->state = state;
	o->n_pending += state == LIB_PENDING;
	o->n_ended += state == LIB_ENDED;
}

static void cancel_due_set(struct onebit *o, struct lib_request *rq, bool due)
{
	o->n_cancels -= rq->cancel_due;
	rq->cancel_due = due;
	o->n_cancels += due;
}

void lib_request_release(struct onebit *o, struct lib_request *rq)
{
	if (!rq)
		return;
	window_give(o, rq);
	cancel_due_set(o, rq, false);
	state_set(o, rq, LIB_FREE);
	if (rq->block_cap > BLOCK_KEEP) {
		free(rq->block);
		rq->block = NULL;
		rq->block_cap = 0;
	}
	o->free_slots[o->n_free++] = (uint16_t)(rq - o->requests);
}

/* ---- into the ring -------------------------------------------------------------------------- */

/* Ranges of SQEs that the daemon has copied can be used again. */
static void arena_reclaim(struct onebit *o)
{
	struct lib_ring *ring = &o->ring;

	while (o->arena_freed != ring->sq_tail && lib_ring_passed(ring, o->arena_freed)) {
		uint32_t *of = &o->arena_of[onebit_slot(o->arena_freed, ring->sq_entries)];

		if (*of != LIB_NO_RANGE)
			lib_ranges_give(&o->arena, *of);
		*of = LIB_NO_RANGE;
		o->arena_freed++;
	}
}

static int room_take(struct onebit *o, struct lib_request *rq, uint32_t *arena_off)
{
	struct lib_ring *ring = &o->ring;

	if (rq->block_len > o->arena.area)
		return lib_error_local(&o->error, -EMSGSIZE, false,
				       "the request of %u bytes is larger than the arena of %u; open with a larger arena_bytes",
				       rq->block_len, o->arena.area);
	if (rq->out_len > o->out.area)
		return lib_error_local(&o->error, -ENOSPC, false,
				       "the window of %u bytes is larger than the out area of %u; open with a larger out_bytes",
				       rq->out_len, o->out.area);
	if (onebit_distance(o->arena_freed, ring->sq_tail) >= ring->sq_entries)
		return lib_error_local(&o->error, -EAGAIN, true,
				       "the submission ring of %u entries is full; take events first",
				       ring->sq_entries);
	*arena_off = LIB_NO_RANGE;
	if (rq->block_len && lib_ranges_take(&o->arena, rq->block_len, arena_off))
		return lib_error_local(&o->error, -EAGAIN, true,
				       "the arena of %u bytes has no room for %u now; take events first",
				       o->arena.area, rq->block_len);
	if (rq->out_len && lib_ranges_take(&o->out, rq->out_len, &rq->out_off)) {
		if (*arena_off != LIB_NO_RANGE)
			lib_ranges_give(&o->arena, *arena_off);
		return lib_error_local(&o->error, -EAGAIN, true,
				       "the out area of %u bytes has no room for %u now; take events first",
				       o->out.area, rq->out_len);
	}
	rq->placed_out = rq->out_len != 0;
	return 0;
}

/* What is left of the deadline. It counts from the first submission, whichever daemon answers. */
static uint32_t deadline_left_ms(const struct lib_request *rq)
{
	uint64_t now;

	if (!rq->deadline_ns)
		return 0;
	now = lib_now();
	if (rq->deadline_ns <= now)
		return 1;
	return (uint32_t)((rq->deadline_ns - now + 999999) / 1000000);
}

int lib_request_place(struct onebit *o, struct lib_request *rq)
{
	struct lib_ring *ring = &o->ring;
	struct onebit_sqe *sqe;
	uint32_t arena_off = 0;
	int r;

	arena_reclaim(o);
	r = room_take(o, rq, &arena_off);
	if (r)
		return r;
	rq->sq_index = ring->sq_tail;
	sqe = lib_ring_sqe(ring); /* there is room: arena_freed is not ahead of sq_head */
	o->arena_of[onebit_slot(rq->sq_index, ring->sq_entries)] = arena_off;
	sqe->op = rq->op;
	sqe->priority = rq->priority;
	sqe->deadline_ms = deadline_left_ms(rq);
	sqe->user_data = rq->id;
	sqe->arg = rq->arg;
	if (rq->block_len) {
		memcpy(ring->arena + arena_off, rq->block, rq->block_len);
		sqe->in_off = arena_off;
		sqe->in_len = rq->block_len;
	}
	if (rq->out_len) {
		sqe->out_off = rq->out_off;
		sqe->out_len = rq->out_len;
	}
	rq->stale_id = 0;
	if (lib_request_has_records(rq->op) && rq->out_len >= sizeof(struct onebit_out))
		rq->stale_id = ((const struct onebit_out *)(ring->out + rq->out_off))->request_id;
	for (uint16_t c = 0; c < rq->n_choices; c++)
		rq->cursor[c].started = false;
	rq->seen = rq->terminal = rq->moved = false;
	state_set(o, rq, LIB_PLACED);
	return 0;
}

static bool cancel_send(struct onebit *o, struct lib_request *rq)
{
	struct lib_ring *ring = &o->ring;
	struct onebit_sqe *sqe;

	arena_reclaim(o);
	if (onebit_distance(o->arena_freed, ring->sq_tail) >= ring->sq_entries)
		return false;
	o->arena_of[onebit_slot(ring->sq_tail, ring->sq_entries)] = LIB_NO_RANGE;
	sqe = lib_ring_sqe(ring);
	sqe->op = ONEBIT_OP_CANCEL; /* user_data 0: nobody's id, so its own CQE is passed over */
	sqe->arg = rq->id;
	cancel_due_set(o, rq, false);
	return true;
}

void lib_request_cancel(struct onebit *o, struct lib_request *rq)
{
	if (rq->state == LIB_PENDING) {
		lib_request_end(o, rq, ONEBIT_E_CANCELLED, lib_request_told(rq));
		return;
	}
	if (rq->state != LIB_PLACED || rq->terminal || rq->cancel_due)
		return;
	cancel_due_set(o, rq, true);
	if (o->state == LIB_UP && cancel_send(o, rq))
		lib_ring_publish(&o->ring);
}

uint64_t lib_request_pump(struct onebit *o)
{
	uint64_t now, next = UINT64_MAX;
	bool room = true;
	int r;

	if (o->state != LIB_UP || (!o->n_pending && !o->n_cancels))
		return UINT64_MAX;
	now = lib_now();
	for (uint32_t i = 0; i < o->n_requests; i++) {
		struct lib_request *rq = &o->requests[i];

		if (rq->cancel_due && !cancel_send(o, rq))
			room = false;
		if (rq->state != LIB_PENDING)
			continue;
		if (rq->retry_at_ns > now) {
			next = rq->retry_at_ns < next ? rq->retry_at_ns : next;
			continue;
		}
		r = room ? lib_request_place(o, rq) : -EAGAIN;
		if (r == -EAGAIN) {
			room = false;
		} else if (r) {
			lib_request_end(o, rq, ONEBIT_E_TOO_BIG, o->link.welcome.arena_bytes);
		}
	}
	lib_ring_publish(&o->ring);
	if (!room && next > now + ROOM_WAIT_NS)
		next = now + ROOM_WAIT_NS;
	return next;
}

/* ---- the window ----------------------------------------------------------------------------- */

/*
 * A window is used again and again and we cannot clear it. So the header counts as written for this
 * request when a CQE said so, or when the id in it is not the one that stood there before.
 */
const struct onebit_out *lib_request_live(const struct onebit *o, const struct lib_request *rq)
{
	const struct onebit_out *out = (const struct onebit_out *)(o->ring.out + rq->out_off);

	if (!rq->placed_out || !lib_request_has_records(rq->op) ||
	    rq->out_len < sizeof(*out) + rq->n_choices * sizeof(struct onebit_choice))
		return NULL;
	if (!rq->seen && (!rq->terminal || !out->request_id || out->request_id == rq->stale_id))
		return NULL;
	if (out->size != sizeof(*out) || out->n_choices != rq->n_choices)
		return NULL;
	return out;
}

bool lib_request_records(const struct onebit *o, const struct lib_request *rq, uint16_t choice,
			 struct onebit_choice *c, const char **records)
{
	const struct onebit_out *out = lib_request_live(o, rq);
	uint64_t head = sizeof(*out) + rq->n_choices * sizeof(*c);

	if (!out || choice >= rq->n_choices)
		return false;
	*c = ((const struct onebit_choice *)(out + 1))[choice];
	if (c->rec_off % 8 || c->rec_off < head || c->rec_off > rq->out_len ||
	    c->rec_cap > rq->out_len - c->rec_off)
		return false;
	*records = (const char *)out + c->rec_off;
	return true;
}

const struct onebit_record *lib_record_at(const char *records, uint32_t pos, uint32_t cap)
{
	const struct onebit_record *r = (const struct onebit_record *)(records + pos);
	const struct onebit_top *top = (const struct onebit_top *)(r + 1);
	uint32_t used;

	if (pos > cap || cap - pos < sizeof(*r))
		return NULL;
	used = (uint32_t)sizeof(*r) + r->n_top * (uint32_t)sizeof(*top) + r->text_len;
	if (r->size % 8 || r->size > cap - pos || r->size > ONEBIT_RECORD_MAX || used > r->size)
		return NULL;
	for (uint16_t i = 0; i < r->n_top; i++)
		if (top[i].text_off > r->size || top[i].text_len > r->size - top[i].text_off)
			return NULL;
	return r;
}

uint32_t lib_request_told(const struct lib_request *rq)
{
	uint32_t n = 0;

	for (uint16_t c = 0; c < rq->n_choices; c++)
		n += rq->cursor[c].next;
	return n;
}

/* ---- out of the ring ------------------------------------------------------------------------ */

/*
 * The ids told of one choice, up to `want`: what the last resume table had, then the window's
 * records. A choice that may have all its tokens keeps one back: the daemon takes no complete
 * choice, makes the last token again, and lib_event.c passes over it.
 */
static uint32_t ids_collect(const struct onebit *o, const struct lib_request *rq, uint16_t choice,
			    uint32_t *ids, uint32_t want)
{
	const struct onebit_record *r;
	struct onebit_choice c;
	const uint32_t *old;
	const char *records;
	uint32_t pos = 0, n = lib_block_resumed(rq, choice, &old);

	if (n > want)
		n = want;
	if (n)
		memcpy(ids, old, n * sizeof(*ids));
	/* Where the window goes on from another index there is nothing to be joined. */
	if (!lib_request_records(o, rq, choice, &c, &records) || c.first_token > n)
		return n;
	for (n = c.first_token; n < want; n++) {
		r = lib_record_at(records, pos, c.rec_cap);
		if (!r)
			break;
		ids[n] = r->token;
		pos += r->size;
	}
	return n;
}

static int resume_build(struct onebit *o, struct lib_request *rq)
{
	const struct onebit_params *p = lib_block_params(rq);
	const uint32_t *ids[ONEBIT_CHOICES_MAX];
	uint32_t n[ONEBIT_CHOICES_MAX], want, *all;
	size_t at = 0;
	int r;

	all = malloc((lib_request_told(rq) + 1) * sizeof(*all));
	if (!all)
		return lib_error_local(&o->error, -ENOMEM, true, "no memory to resume a request");
	for (uint16_t c = 0; c < rq->n_choices; c++) {
		want = rq->cursor[c].next;
		if (want && (!p->max_tokens || want >= p->max_tokens))
			want--;
		ids[c] = all + at;
		n[c] = ids_collect(o, rq, c, all + at, want);
		at += n[c];
	}
	r = lib_block_resume(rq, ids, n, &o->error);
	free(all);
	return r;
}

int lib_request_suspend(struct onebit *o, struct lib_request *rq, bool pin_model)
{
	static const uint8_t none[32];
	const struct onebit_out *out = lib_request_live(o, rq);
	int r = 0;

	if (lib_request_told(rq) && rq->op == ONEBIT_OP_GENERATE) {
		struct onebit_params *p = lib_block_params(rq);

		if (pin_model && out && !memcmp(p->model_id, none, sizeof(none)))
			memcpy(p->model_id, out->model_id, sizeof(p->model_id));
		if (o->link.welcome.features & ONEBIT_FEAT_RESUME)
			r = resume_build(o, rq);
	}
	window_give(o, rq);
	cancel_due_set(o, rq, false);
	rq->terminal = false;
	rq->retry_at_ns = 0;
	state_set(o, rq, LIB_PENDING);
	return r;
}

void lib_request_end(struct onebit *o, struct lib_request *rq, unsigned code, uint64_t detail)
{
	struct onebit_error e;

	rq->end = (struct onebit_cqe){ .user_data = rq->id };
	rq->end.res = lib_error_code(&e, code, detail);
	rq->end.u.end.code = e.code;
	rq->end.u.end.layer = e.layer;
	rq->end.u.end.retryable = e.retryable;
	rq->end.u.end.detail = detail;
	window_give(o, rq);
	cancel_due_set(o, rq, false);
	state_set(o, rq, LIB_ENDED);
}

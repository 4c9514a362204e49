/* SPDX-License-Identifier: MIT */
/*
 * From completions to events. The records in the out window are the truth; a progress CQE only says
 * how far they may be read, and a terminal one that the window's own counts hold. A cursor per
 * choice remembers what was told, so each token is told once however the CQEs were merged, and
 * however often the request was placed.
 *
 * One completion can make several events (ACCEPTED and TOKENS; the last tokens of each choice and
 * END). So the request at hand stays o->current until all were taken.
 */
#include <errno.h>
#include <string.h>
#include "lib_block.h"
#include "lib_onebit.h"
#include "lib_text.h"

#define RETRY_LEAST_MS 20u /* between attempts that a daemon refuses */

static void event_init(struct onebit_event *ev, const struct lib_request *rq, uint32_t type)
{
	memset(ev, 0, sizeof(*ev));
	ev->id = rq->id;
	ev->user = rq->user;
	ev->type = type;
}

/* The daemon's records do not hold: end the request rather than guess. */
static void fault(struct onebit *o, struct lib_request *rq)
{
	rq->fault = true;
	lib_request_cancel(o, rq);
}

/*
 * Text of consecutive tokens in one piece. Records lie between texts, so as soon as a second one is
 * not empty all are brought together. false: it does not fit; the next event begins with it.
 */
static bool text_add(struct onebit *o, struct onebit_event *ev, const struct onebit_record *r)
{
	const char *text = (const char *)(r + 1) + r->n_top * sizeof(struct onebit_top);

	if (!r->text_len)
		return true;
	if (!ev->text_len) {
		ev->text = text;
		ev->text_len = r->text_len;
		return true;
	}
	if (ev->text_len + r->text_len > LIB_TEXT_BYTES)
		return false;
	if (ev->text != o->text) {
		memcpy(o->text, ev->text, ev->text_len);
		ev->text = o->text;
	}
	memcpy(o->text + ev->text_len, text, r->text_len);
	ev->text_len += r->text_len;
	return true;
}

/* Tell tokens up to index `upto` of a choice. 1: *ev is set. 0: all of them were told. */
static int tokens_tell(struct onebit *o, struct lib_request *rq, uint16_t choice, uint32_t upto,
		       struct onebit_event *ev)
{
	struct lib_cursor *cur = &rq->cursor[choice];
	const struct onebit_record *r;
	struct onebit_choice c;
	const char *records;

	if (rq->fault || (int32_t)(upto - cur->next) <= 0)
		return 0;
	if (!lib_request_records(o, rq, choice, &c, &records))
		goto lie;
	if (!cur->started) {
		/* Before next: it makes again what was told. Behind it: a gap. */
		if (c.first_token > cur->next)
			goto lie;
		cur->index = c.first_token;
		cur->pos = 0;
		cur->started = true;
	}
	event_init(ev, rq, ONEBIT_EV_TOKENS);
	ev->choice = choice;
	while (cur->index < upto) {
		r = lib_record_at(records, cur->pos, c.rec_cap);
		if (!r)
			goto lie;
		if (cur->index >= cur->next) {
			if (!text_add(o, ev, r))
				break;
			if (!ev->n++) {
				ev->records = r;
				ev->first = cur->index;
			}
		}
		cur->pos += r->size;
		cur->index++;
	}
	if (!ev->n)
		return 0;
	cur->next = cur->index;
	rq->moved = true;
	return 1;
lie:
	fault(o, rq);
	return 0;
}

const struct onebit_record *onebit_record_next(const struct onebit_record *r)
{
	return (const struct onebit_record *)((const char *)r + r->size);
}

/* ---- the end -------------------------------------------------------------------------------- */

/* Refusals that are about the moment, not about the request. */
static bool refused_for_now(unsigned code)
{
	return code >= ONEBIT_E_Q_CLIENTS && code <= ONEBIT_E_EXECUTOR_DOWN;
}

/* Wait and place it again, as long as a lost daemon would be waited for. */
static bool try_later(struct onebit *o, struct lib_request *rq)
{
	uint64_t now = lib_now();
	uint32_t ms = rq->end.u.end.retry_after_ms;

	if (!rq->give_up_ns)
		rq->give_up_ns = now + o->reconnect_ms * 1000000ull;
	if (now >= rq->give_up_ns || lib_request_suspend(o, rq, false))
		return false;
	rq->retry_at_ns = now + (ms > RETRY_LEAST_MS ? ms : RETRY_LEAST_MS) * 1000000ull;
	return true;
}

/*
 * Is this terminal none for the program? A window that is full, or too small by our own guess, is
 * our business; so is a daemon that stops or has just started, as long as re-attaching is allowed.
 */
static bool goes_on(struct onebit *o, struct lib_request *rq)
{
	const struct onebit_cqe *end = &rq->end;
	uint32_t area = o->out.area, code = end->u.end.code;

	if (end->res >= 0 || rq->cancelled || rq->fault || rq->state != LIB_PLACED)
		return false;
	switch (code) {
	case ONEBIT_E_WINDOW_FULL:
		if (rq->op != ONEBIT_OP_GENERATE || !rq->moved ||
		    !(o->link.welcome.features & ONEBIT_FEAT_RESUME))
			return false;
		return !lib_request_suspend(o, rq, true);
	case ONEBIT_E_OUT_TOO_SMALL:
		if (!rq->auto_window || end->u.end.detail <= rq->out_len || end->u.end.detail > area ||
		    lib_request_suspend(o, rq, false))
			return false;
		rq->out_len = (uint32_t)((end->u.end.detail + 7) & ~7ull);
		return true;
	case ONEBIT_E_DRAINING:
		return !o->no_reconnect && try_later(o, rq);
	default:
		return rq->resubmitted && refused_for_now(code) && try_later(o, rq);
	}
}

/* What a daemon says of a request that another one began, in the words of the promise. */
static void end_translate(struct lib_request *rq)
{
	unsigned code = rq->end.u.end.code;
	const struct onebit_params *p = lib_block_params(rq);

	if (rq->end.res >= 0 || !p)
		return;
	if ((code == ONEBIT_E_MODEL_CHANGED && lib_request_told(rq)) ||
	    (code == ONEBIT_E_NOT_FOUND && p->session && rq->resubmitted)) {
		struct onebit_error e;

		rq->end.res = lib_error_code(&e, ONEBIT_E_LOST, rq->end.u.end.detail);
		rq->end.u.end.code = ONEBIT_E_LOST;
		rq->end.u.end.layer = e.layer;
		rq->end.u.end.retryable = e.retryable;
		rq->end.u.end.retry_after_ms = 0;
	}
}

static void end_tell(struct onebit *o, struct lib_request *rq, struct onebit_event *ev)
{
	const struct onebit_out *out = lib_request_live(o, rq);

	event_init(ev, rq, ONEBIT_EV_END);
	end_translate(rq);
	ev->res = rq->end.res;
	if (!rq->fault && !rq->dead && ev->res > 0 && rq->out_len) {
		if (!lib_request_has_records(rq->op)) {
			ev->data = o->ring.out + rq->out_off;
			ev->data_len = (uint32_t)ev->res;
		}
		rq->fault = (uint32_t)ev->res > rq->out_len;
	}
	if (rq->dead) {
		ev->error = o->error;
		ev->res = ev->error.err;
	} else if (rq->fault) {
		ev->data = NULL;
		ev->data_len = 0;
		ev->res = lib_error_local(&ev->error, -EPROTO, false,
					  "the daemon's records of this answer are malformed; report it");
	} else {
		/* With res >= 0 too: detail is the answer of operations that open a session. */
		lib_error_cqe(&ev->error, &rq->end);
	}
	if (out && !rq->fault) {
		ev->out = out;
		ev->choices = (const struct onebit_choice *)(out + 1);
		ev->error.request_id = out->request_id;
	}
}

/* The next event of a request that has ended. 0: it has none, because it goes on. */
static int terminal_tell(struct onebit *o, struct lib_request *rq, struct onebit_event *ev)
{
	if (rq->state == LIB_PLACED && lib_request_live(o, rq)) {
		for (; rq->choice < rq->n_choices; rq->choice++) {
			struct onebit_choice c;
			const char *records;

			if (!lib_request_records(o, rq, rq->choice, &c, &records))
				rq->fault = true;
			else if (tokens_tell(o, rq, rq->choice, c.n_tokens, ev))
				return 1;
		}
	}
	if (goes_on(o, rq))
		return 0;
	end_tell(o, rq, ev);
	o->finished = rq;
	return 1;
}

static int current_tell(struct onebit *o, struct onebit_event *ev)
{
	struct lib_request *rq = o->current;
	int r;

	if (rq->tell) {
		rq->tell = false;
		event_init(ev, rq, ONEBIT_EV_ACCEPTED);
		return 1;
	}
	if (!rq->terminal && rq->state == LIB_PLACED) {
		r = tokens_tell(o, rq, rq->choice, rq->upto, ev);
		if (!r)
			o->current = NULL;
		return r;
	}
	r = terminal_tell(o, rq, ev);
	if (!r || ev->type == ONEBIT_EV_END)
		o->current = NULL;
	return r;
}

/* A request that we ended without the daemon. */
static struct lib_request *ended_find(struct onebit *o)
{
	for (uint32_t i = 0; o->n_ended && i < o->n_requests; i++)
		if (o->requests[i].state == LIB_ENDED && &o->requests[i] != o->finished)
			return &o->requests[i];
	return NULL;
}

static void cqe_begin(struct onebit *o, const struct onebit_cqe *cqe)
{
	struct lib_request *rq = lib_request_find(o, cqe->user_data);

	/* Completions of our own CANCELs have user_data 0. */
	if (!rq || rq->state != LIB_PLACED)
		return;
	o->current = rq;
	if (cqe->flags & ONEBIT_CQE_MORE) {
		rq->seen = true;
		rq->choice = cqe->choice;
		rq->upto = cqe->u.progress.first + cqe->u.progress.n;
		if ((cqe->flags & ONEBIT_CQE_ACCEPTED) && !rq->accepted)
			rq->accepted = rq->tell = true;
		if (!cqe->u.progress.n) {
			rq->choice = 0;
			rq->upto = rq->cursor[0].next;
		} else if (cqe->choice >= rq->n_choices) {
			rq->choice = 0;
			fault(o, rq);
		}
		return;
	}
	rq->terminal = true;
	rq->choice = 0;
	rq->end = *cqe;
	if (cqe->res >= 0)
		rq->seen = true;
}

int lib_event_take(struct onebit *o, struct onebit_event *ev)
{
	const struct onebit_cqe *cqe;
	struct onebit_cqe copy;

	for (;;) {
		if (o->current) {
			if (current_tell(o, ev))
				return 1;
			continue;
		}
		o->current = ended_find(o);
		if (o->current)
			continue;
		if (o->state != LIB_UP)
			return 0;
		cqe = lib_ring_cqe(&o->ring, 0);
		if (!cqe)
			return 0;
		copy = *cqe;
		lib_ring_reap(&o->ring, 1);
		cqe_begin(o, &copy);
	}
}

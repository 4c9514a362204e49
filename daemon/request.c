/* SPDX-License-Identifier: MIT */
/*
 * A request's life after admission: waiting, progress to its client, and the one terminal. Two
 * promises are kept here. A client sees exactly one terminal CQE for each SQE: request_end() is the
 * only writer of one, and cuts the tie to the client as it does. And the CQ cannot overflow: at
 * most one progress CQE of a request is unreaped, which broker.c's rule for taking SQEs counts on.
 */
#include "core.h"

#include <assert.h>
#include <string.h>

#include "onebit_ring.h"

struct request *request_new(struct broker *b, struct client *c)
{
	uint32_t i = b->free_request;
	struct request *r;

	if (i == NONE)
		return NULL;
	r = &b->requests[i];
	b->free_request = r->next;
	memset(r, 0, sizeof(*r));
	r->wnext = r->wprev = NONE;
	r->slot = NONE;
	r->client = (uint32_t)(c - b->clients);
	r->id = ++b->next_id;
	r->accepted_ns = b->now;
	r->prev = c->last;
	r->next = NONE;
	if (c->last != NONE)
		b->requests[c->last].next = i;
	else
		c->first = i;
	c->last = i;
	c->n_inflight++;
	b->n_requests++;
	return r;
}

void request_wait(struct broker *b, struct request *r, bool front)
{
	struct principal *p = &b->quota.p[r->who];
	uint32_t i = request_index(b, r);

	if (!p->waiting && !p->running && p->served < b->served_floor)
		p->served = b->served_floor; /* being idle saves nothing up */
	p->waiting++;
	r->state = REQUEST_WAITING;
	r->wnext = front ? b->wait_first : NONE;
	r->wprev = front ? NONE : b->wait_last;
	if (r->wprev != NONE)
		b->requests[r->wprev].wnext = i;
	else
		b->wait_first = i;
	if (r->wnext != NONE)
		b->requests[r->wnext].wprev = i;
	else
		b->wait_last = i;
	b->n_waiting++;
	if (r->suspect)
		b->link[r->link].waiting_suspects++;
	b->attention = true;
}

void request_unwait(struct broker *b, struct request *r)
{
	struct principal *p = &b->quota.p[r->who];

	assert(r->state == REQUEST_WAITING);
	if (r->wprev != NONE)
		b->requests[r->wprev].wnext = r->wnext;
	else
		b->wait_first = r->wnext;
	if (r->wnext != NONE)
		b->requests[r->wnext].wprev = r->wprev;
	else
		b->wait_last = r->wprev;
	r->wnext = r->wprev = NONE;
	b->n_waiting--;
	p->waiting--;
	if (r->suspect)
		b->link[r->link].waiting_suspects--;
	p->queued_bytes -= r->charge;
	r->charge = 0;
}

bool request_has_records(const struct request *r)
{
	return r->op == ONEBIT_OP_GENERATE || r->op == ONEBIT_OP_SCORE;
}

uint64_t request_tokens(const struct request *r)
{
	uint64_t n = 0;

	if (request_has_records(r))
		for (uint32_t i = 0; i < r->n_choices; i++)
			n += r->entry->done[i].n;
	return n;
}

static void hold(struct broker *b, struct request *r, bool held)
{
	struct client *c = client_of(b, r);

	if (r->held == held)
		return;
	r->held = held;
	c->n_held += held ? 1 : -1u;
	if (held) /* before we sleep it must be told to ring when it reaps */
		client_heat(b, r->client);
}

bool request_can_tell(struct broker *b, const struct request *r)
{
	return !r->unreaped || !ring_unreaped(&client_of(b, r)->ring, r->cqe_index);
}

static uint32_t untold(const struct request *r, uint32_t choice)
{
	return r->entry->done[choice].n - r->c[choice].told;
}

void request_progress(struct broker *b, struct request *r)
{
	struct client *c = client_of(b, r);
	uint16_t flags = ONEBIT_CQE_MORE;
	struct onebit_cqe *cqe;
	uint32_t i, n, more = 0;

	if (!c)
		return;
	for (i = 0; i < r->n_choices && !untold(r, i); i++)
		;
	if (i == r->n_choices && r->accepted_told) {
		hold(b, r, false);
		return;
	}
	if (!request_can_tell(b, r)) {
		hold(b, r, true);
		return;
	}
	if (!r->accepted_told)
		flags |= ONEBIT_CQE_ACCEPTED;
	if (r->replayed)
		flags |= ONEBIT_CQE_REPLAYED;
	r->accepted_told = true;
	r->replayed = false;
	r->cqe_index = c->ring.tail;
	r->unreaped = true;
	if (i == r->n_choices) { /* accepted, and that is all */
		client_push(b, c, r->user_data, 0, flags, 0);
		hold(b, r, false);
		return;
	}
	n = untold(r, i);
	if (n > UINT16_MAX) {
		n = UINT16_MAX;
		r->c[i].text_len = 9;
	}
	if (r->c[i].text_len <= 8 && (c->features & ONEBIT_FEAT_INLINE))
		flags |= ONEBIT_CQE_INLINE;
	cqe = client_push(b, c, r->user_data, (int32_t)n, flags, (uint16_t)i);
	cqe->u.progress.first = r->c[i].told;
	cqe->u.progress.n = (uint16_t)n;
	if (flags & ONEBIT_CQE_INLINE) {
		cqe->u.progress.text_len = r->c[i].text_len;
		memcpy(cqe->u.progress.text, r->c[i].text, r->c[i].text_len);
	}
	r->c[i].told += n;
	r->c[i].text_len = untold(r, i) ? 9 : 0; /* what is left has text, not kept here */
	for (uint32_t k = i; k < r->n_choices; k++)
		more += untold(r, k);
	hold(b, r, more != 0);
}

/* What the window's header says at the end: usage, times, how each choice ended. */
static void write_summary(struct broker *b, struct request *r, const struct client *c,
			  enum onebit_code code)
{
	struct onebit_out *out = (struct onebit_out *)(void *)(c->ring.out + r->out_off);
	struct onebit_choice *choice = (struct onebit_choice *)(void *)(out + 1);

	out->prompt_tokens = r->prompt_tokens;
	out->cached_tokens = r->cached_tokens;
	out->replays = r->replays;
	out->queue_ns = r->queue_ns ? r->queue_ns - r->accepted_ns : 0;
	out->first_ns = r->first_ns ? r->first_ns - r->accepted_ns : 0;
	out->total_ns = b->now - r->accepted_ns;
	for (uint32_t i = 0; i < r->n_choices; i++) {
		uint8_t finish = (uint8_t)r->entry->done[i].finish;

		if (finish == ONEBIT_FINISH_NONE && code == ONEBIT_E_CANCELLED)
			finish = ONEBIT_FINISH_CANCEL;
		else if (finish == ONEBIT_FINISH_NONE && code != ONEBIT_E_OK)
			finish = ONEBIT_FINISH_ERROR;
		choice[i].finish = finish;
	}
}

void request_name_model(struct broker *b, struct request *r)
{
	const struct client *c = client_of(b, r);
	const struct onebit_model *m = &b->link[r->link].hello.model;
	struct onebit_out *out;

	if (!c || !request_has_records(r))
		return;
	out = (struct onebit_out *)(void *)(c->ring.out + r->out_off);
	memcpy(out->model_id, m->model_id, sizeof(out->model_id));
	out->contract = m->contract;
}

static void unlink_client(struct broker *b, struct request *r)
{
	struct client *c = client_of(b, r);

	hold(b, r, false);
	if (r->prev != NONE)
		b->requests[r->prev].next = r->next;
	else
		c->first = r->next;
	if (r->next != NONE)
		b->requests[r->next].prev = r->prev;
	else
		c->last = r->prev;
	c->n_inflight--;
	if (r->state != REQUEST_ADMIN)
		b->quota.p[r->who].inflight--;
	r->client = NONE;
}

/* After its client let go: gone at once, or when the executor gives the slot back. */
static void let_go(struct broker *b, struct request *r)
{
	switch (r->state) {
	case REQUEST_WAITING:
		request_unwait(b, r);
		request_free(b, r);
		break;
	case REQUEST_RUNNING:
		link_cancel(b, r);
		break;
	case REQUEST_ADMIN:
		if (b->link[r->link].admin == request_index(b, r))
			b->link[r->link].admin = NONE;
		request_free(b, r);
		break;
	case REQUEST_FREE:
		assert(0);
	}
}

void request_end(struct broker *b, struct request *r, enum onebit_code code, int32_t res,
		 uint64_t detail, uint32_t retry_ms)
{
	struct client *c = client_of(b, r);
	struct onebit_cqe *cqe;

	assert(c);
	if (request_has_records(r))
		write_summary(b, r, c, code);
	cqe = client_push(b, c, r->user_data, res, r->replayed ? ONEBIT_CQE_REPLAYED : 0,
			  0);
	if (code != ONEBIT_E_OK)
		cqe_fail(cqe, code, detail, retry_ms);
	else
		cqe->u.end.detail = detail;
	unlink_client(b, r);

	if (code == ONEBIT_E_OK)
		b->stats.done++;
	else if (code == ONEBIT_E_CANCELLED)
		b->stats.cancelled++;
	else
		b->stats.failed++;
	if (code == ONEBIT_E_POISON)
		b->stats.poisoned++;
	let_go(b, r);
}

void request_orphan(struct broker *b, struct request *r)
{
	unlink_client(b, r);
	b->stats.cancelled++;
	let_go(b, r);
}

void request_free(struct broker *b, struct request *r)
{
	uint32_t i = request_index(b, r);
	bool bound = r->state != REQUEST_ADMIN;

	assert(r->client == NONE && r->slot == NONE);
	if (r->entry)
		journal_give(&b->journal, r->entry);
	quota_unref(&b->quota, r->who);
	r->entry = NULL;
	r->state = REQUEST_FREE;
	r->next = b->free_request;
	b->free_request = i;
	b->n_requests--;
	if (!b->n_requests)
		b->next_deadline = UINT64_MAX;
	if (bound)
		link_unbound(b, r->link);
}

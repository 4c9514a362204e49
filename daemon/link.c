/* SPDX-License-Identifier: MIT */
/*
 * One executor, from the broker's side: commands to it, events from it, and when to give it up.
 *
 * It is not trusted. Each event is copied once and judged in the copy; records go straight into the
 * client's out window, which the executor cannot touch, and are judged there before anything tells
 * of them. The first thing that cannot be true ends the executor, and what it ran is run again by
 * the next one from the journal, at the index where the client stands.
 *
 * Suspicion. A request in flight at two deaths without a new token of its own runs alone from then
 * on; one that ends an executor twice while alone ends POISON. A new token clears it, so those who
 * merely stood beside it always finish.
 */
#include "core.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "onebit_ring.h"

#define TOLL 16u /* what a request costs its principal in fair sharing besides its tokens */

static void kill_executor(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	l->state = LINK_KILLED;
	b->s.env.exec_kill(b->s.env.ctx, i);
}

static const uint8_t *data_of(struct broker *b, unsigned i, const struct exec_event *ev)
{
	return b->link[i].mem.own->data + ev->data_off;
}

static void lie(struct broker *b, unsigned i, const char *what, const struct exec_event *ev)
{
	b->stats.executor_lies++;
	broker_incident(b, ONEBIT_E_EXECUTOR, NULL,
			"executor %u broke the contract: %s (event %u, slot %u)",
			b->link[i].generation, what, ev->kind, ev->slot);
	kill_executor(b, i);
}

void link_init(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	l->state = LINK_IDLE;
	l->alone = l->admin = NONE;
	for (uint32_t s = 0; s < EXEC_SLOTS_MAX; s++)
		l->slot[s] = NONE;
}

/* ---- starting and ending -------------------------------------------------------------------- */

/* No executor can be had: those who wait are told so rather than left hanging. */
static void fail_waiting(struct broker *b, unsigned i)
{
	uint32_t w, next;

	for (w = b->wait_first; w != NONE; w = next) {
		next = b->requests[w].wnext;
		if (b->requests[w].link == i)
			request_end(b, &b->requests[w], ONEBIT_E_EXECUTOR_DOWN, 0,
				    b->link[i].failures, 1000);
	}
}

/*
 * earned: it delivered something, or died of what it ran, which suspicion bounds. Only executors
 * that die of nothing are started slower and slower.
 */
static void back_off(struct broker *b, unsigned i, bool earned, int status)
{
	struct link *l = &b->link[i];

	if (earned) {
		l->backoff_ns = 0;
		l->failures = 0;
	} else {
		l->failures++;
		l->backoff_ns = l->backoff_ns ? l->backoff_ns * 2 : BACKOFF_FIRST_NS;
		if (l->backoff_ns > BACKOFF_LAST_NS)
			l->backoff_ns = BACKOFF_LAST_NS;
	}
	l->state = LINK_BACKOFF;
	l->retry_ns = b->now + l->backoff_ns;
	b->attention = true;
	if (l->failures < START_FAILURES_MAX)
		return;
	if (l->failures == START_FAILURES_MAX)
		broker_incident(b, ONEBIT_E_EXECUTOR_DOWN, NULL,
				"executor failed %u times in a row, status %d", l->failures, status);
	fail_waiting(b, i);
}

void link_start(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];
	int ret;

	l->progressed = false;
	l->generation = ++b->stats.executor_generation;
	ret = b->s.env.exec_memory(b->s.env.ctx, i, &l->mem);
	if (ret < 0) {
		broker_log(b, BROKER_ERROR, "event=executor-memory link=%u errno=%d", i, -ret);
		l->mem.broker = NULL;
		l->mem.own = NULL;
		back_off(b, i, false, ret);
		return;
	}
	l->cmd_tail = l->cmd_told = l->event_head = ONEBIT_INDEX_START;
	l->mem.broker->magic = EXEC_MAGIC;
	l->mem.broker->version = EXEC_VERSION;
	l->mem.broker->journal_bytes = b->policy.journal_bytes;
	onebit_store_relaxed(&l->mem.broker->cmd_tail, l->cmd_tail);
	onebit_store_relaxed(&l->mem.broker->event_head, l->event_head);
	l->need_kick = false;
	link_need_kick(b, i, true);
	onebit_store_relaxed(&l->mem.own->event_tail, l->event_head);
	onebit_store_relaxed(&l->mem.own->cmd_head, l->cmd_tail);
	l->n_running = 0;
	l->alone = NONE;
	l->started_ns = b->now;
	l->state = LINK_STARTING;
	b->s.env.exec_start(b->s.env.ctx, i, l->generation, l->name_model ? l->model : NULL);
	l->name_model = false;
}

/* What ran comes back into the waiting list, is given up, or is gone. */
static void release_slot(struct broker *b, unsigned i, uint32_t s)
{
	struct link *l = &b->link[i];
	struct request *r;
	bool was_alone;

	if (l->slot[s] == NONE)
		return;
	r = &b->requests[l->slot[s]];
	was_alone = l->alone == l->slot[s];
	l->slot[s] = NONE;
	l->n_running--;
	b->quota.p[r->who].running--;
	r->slot = NONE;
	if (was_alone)
		l->alone = NONE;
	if (r->client == NONE) {
		request_free(b, r);
		return;
	}
	r->replayed = true;
	r->replays++;
	r->entry->attempt++;
	b->stats.replays++;
	r->deaths++;
	if (was_alone)
		r->alone_deaths++;
	r->suspect = r->deaths >= SUSPECT_DEATHS;
	request_wait(b, r, true);
	if (r->alone_deaths >= POISON_DEATHS) {
		b->quota.p[r->who].poisoned++;
		quota_tokens_charge(&b->quota, r->who, POISON_TOKENS);
		broker_incident(b, ONEBIT_E_POISON, r, "a request ended %u executors, %u while alone",
				r->replays, r->alone_deaths);
		request_end(b, r, ONEBIT_E_POISON, 0, r->alone_deaths, 0);
	} else if (r->no_replay) {
		request_end(b, r, ONEBIT_E_REPLAY_REFUSED, 0, request_tokens(r), 0);
	}
}

static void idle(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	if (l->admin != NONE) { /* somebody waits to hear that it serves */
		struct request *r = &b->requests[l->admin];

		l->admin = NONE;
		request_end(b, r, ONEBIT_E_EXECUTOR_DOWN, 0, 1, 0);
	}
	l->state = LINK_IDLE;
	l->retire = false;
	l->failures = 0;
	l->backoff_ns = 0;
	memset(&l->hello, 0, sizeof(l->hello));
	memset(&l->kv, 0, sizeof(l->kv));
	l->n_timing = l->n_session = 0;
	if (b->active == (int)i) {
		b->active = LINK_NONE;
		b->state_changed = true;
	}
}

void link_exited(struct broker *b, unsigned i, int status)
{
	struct link *l = &b->link[i];
	enum link_state was = l->state;
	bool earned = l->progressed || l->n_running;

	if (was == LINK_IDLE || was == LINK_BACKOFF)
		return;
	l->mem.broker = NULL;
	l->mem.own = NULL;
	l->events_left = false;
	if (was == LINK_STOPPING) {
		idle(b, i);
		return;
	}
	b->stats.executor_deaths++;
	broker_log(b, BROKER_WARN, "event=executor-exit link=%u generation=%u status=%d running=%u",
		   i, l->generation, status, l->n_running);
	if (b->active != (int)i && !l->hello.version && !l->n_bound) { /* a swap that did not come to life */
		broker_incident(b, ONEBIT_E_EXECUTOR_DOWN, NULL,
				"model %s not loaded: executor status %d", l->model, status);
		idle(b, i);
		return;
	}
	for (uint32_t s = 0; s < EXEC_SLOTS_MAX; s++)
		release_slot(b, i, s);
	assert(!l->n_running);
	if ((l->retire || b->draining) && !l->n_bound) {
		idle(b, i);
		return;
	}
	back_off(b, i, earned, status);
}

static void stop(struct broker *b, unsigned i);

void link_retire(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	l->retire = true;
	if (!l->n_bound)
		stop(b, i);
}

void link_unbound(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	assert(l->n_bound);
	if (!--l->n_bound && (l->retire || b->draining))
		b->attention = true; /* link_run() stops it, outside of whatever called */
}

/* ---- commands -------------------------------------------------------------------------------- */

static bool command(struct broker *b, unsigned i, const struct exec_cmd *cmd)
{
	struct link *l = &b->link[i];
	uint32_t head = onebit_load_acquire(&l->mem.own->cmd_head);

	/* Sized so that an executor that takes its commands never fills it. */
	if (onebit_distance(head, l->cmd_tail) >= EXEC_CMDS) {
		struct exec_event none = { 0 };

		lie(b, i, "it does not take its commands", &none);
		return false;
	}
	l->mem.broker->cmds[onebit_slot(l->cmd_tail, EXEC_CMDS)] = *cmd;
	l->cmd_tail++;
	return true;
}

static void stop(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];
	struct exec_cmd cmd = { .kind = EXEC_CMD_STOP };

	switch (l->state) {
	case LINK_READY:
		l->state = LINK_STOPPING;
		l->started_ns = b->now;
		command(b, i, &cmd);
		break;
	case LINK_STARTING:
		l->state = LINK_STOPPING;
		l->started_ns = b->now;
		b->s.env.exec_kill(b->s.env.ctx, i);
		break;
	case LINK_BACKOFF:
		idle(b, i);
		break;
	case LINK_IDLE:
	case LINK_STOPPING:
	case LINK_KILLED:
		break;
	}
}

void link_cancel(struct broker *b, struct request *r)
{
	struct link *l = &b->link[r->link];
	struct exec_cmd cmd = { .kind = EXEC_CMD_CANCEL, .slot = r->slot };

	if (l->state != LINK_READY || r->cancel_sent)
		return; /* dying: release_slot() frees it */
	r->cancel_sent = true;
	r->event_ns = b->now;
	cmd.tag = l->tag[r->slot];
	if (command(b, r->link, &cmd))
		b->attention = true;
}

static void dispatch(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	for (uint32_t n = 0; n < TURN_DISPATCH; n++) {
		struct exec_cmd cmd = { .kind = EXEC_CMD_RUN };
		struct request *r;
		uint32_t s;

		for (s = 0; s < l->slots && l->slot[s] != NONE; s++)
			;
		if (s == l->slots || l->state != LINK_READY || !b->n_waiting)
			return;
		r = sched_pick(b, i);
		if (!r)
			return;
		request_unwait(b, r);
		if (r->suspect)
			l->alone = request_index(b, r);
		if (!r->queue_ns)
			r->queue_ns = b->now;
		r->state = REQUEST_RUNNING;
		r->n_data = 0; /* such an answer is sent again from its start */
		r->slot = s;
		r->cancel_sent = false;
		r->event_ns = b->now;
		l->slot[s] = request_index(b, r);
		l->replayed[s] = 0;
		l->n_running++;
		b->quota.p[r->who].running++;
		if (b->served_floor < b->quota.p[r->who].served)
			b->served_floor = b->quota.p[r->who].served;
		b->quota.p[r->who].served += TOLL;
		request_name_model(b, r);
		cmd.slot = s;
		cmd.tag = ++l->tag[s];
		cmd.op = r->op;
		cmd.entry_off = journal_offset(&b->journal, r->entry);
		if (!command(b, i, &cmd))
			return;
	}
	b->attention = true; /* perhaps more */
}

static void publish(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	if (!l->mem.broker || l->cmd_told == l->cmd_tail)
		return;
	l->cmd_told = l->cmd_tail;
	/* Pairs with executor_next()'s acquire: commands and journal entries are written. */
	onebit_store_release(&l->mem.broker->cmd_tail, l->cmd_tail);
	onebit_fence();
	if (onebit_load_relaxed(&l->mem.own->need_wake))
		b->s.env.exec_wake(b->s.env.ctx, i);
}

/* ---- events ---------------------------------------------------------------------------------- */

enum onebit_code link_judge(const struct broker *b, unsigned i, uint8_t op,
			    const struct onebit_params *p, uint64_t *detail)
{
	static const uint8_t any[32];
	const struct exec_hello *h = &b->link[i].hello;

	*detail = op;
	if (!(h->ops >> op & 1))
		return ONEBIT_E_UNSUPPORTED;
	*detail = p->session;
	if (p->session && !(h->ops >> ONEBIT_OP_SESSION_OPEN & 1))
		return p->n_resume ? ONEBIT_E_LOST : ONEBIT_E_NOT_FOUND;
	*detail = offsetof(struct onebit_params, flags);
	if (p->flags & ~h->param_flags)
		return ONEBIT_E_BAD_PARAM;
	*detail = b->model_generation;
	if (memcmp(p->model_id, any, 32) && memcmp(p->model_id, h->model.model_id, 32))
		return p->n_resume ? ONEBIT_E_LOST : ONEBIT_E_MODEL_CHANGED;
	return ONEBIT_E_OK;
}

static void ready(struct broker *b, unsigned i, const struct exec_event *ev)
{
	struct link *l = &b->link[i];
	struct exec_hello h;
	uint32_t w, next;
	bool same;

	if (l->state != LINK_STARTING || ev->data_len != sizeof(h)) {
		lie(b, i, "a hello out of place", ev);
		return;
	}
	copy_shared(&h, data_of(b, i, ev), sizeof(h));
	if (h.version != EXEC_VERSION || !h.slots || h.slots > EXEC_SLOTS_MAX ||
	    (h.ops >> ONEBIT_OP_COUNT) || !h.model.context) {
		lie(b, i, "a hello with impossible values", ev);
		return;
	}
	h.model.size = sizeof(h.model);
	h.model.name[sizeof(h.model.name) - 1] = 0;
	h.model.backend[sizeof(h.model.backend) - 1] = 0;
	h.model.chat_template[sizeof(h.model.chat_template) - 1] = 0;
	same = l->hello.version && !memcmp(l->hello.model.model_id, h.model.model_id, 32) &&
	       l->hello.model.contract == h.model.contract;
	if (l->hello.version && !same) {
		/* The file changed under a restart: answers cannot go on with it. */
		for (w = b->wait_first; w != NONE; w = next) {
			next = b->requests[w].wnext;
			if (b->requests[w].link == i)
				request_end(b, &b->requests[w], ONEBIT_E_LOST, 0, 0, 0);
		}
	}
	l->hello = h;
	l->slots = h.slots;
	l->state = LINK_READY;
	if (!same || b->active != (int)i) {
		int old = b->active;

		if (!l->retire && !b->draining) {
			l->model_generation = ++b->model_generation;
			l->hello.model.generation = l->model_generation;
			b->active = (int)i;
			if (old != LINK_NONE && old != (int)i)
				link_retire(b, (unsigned)old);
		}
	} else {
		l->hello.model.generation = l->model_generation;
	}
	b->state_changed = true;
	broker_log(b, BROKER_INFO, "event=executor-ready link=%u generation=%u model=%s slots=%u", i,
		   l->generation, h.model.name, h.slots);
	if (l->admin != NONE) {
		struct request *r = &b->requests[l->admin];

		l->admin = NONE;
		request_end(b, r, ONEBIT_E_OK, 0, b->model_generation, 0);
	}
	/* Accepted before anyone knew what this executor can do. */
	for (w = b->wait_first; w != NONE; w = next) {
		struct request *r = &b->requests[w];
		enum onebit_code code;
		uint64_t detail;

		next = r->wnext;
		if (r->link != i)
			continue;
		code = link_judge(b, i, r->op, &r->entry->params, &detail);
		if (code != ONEBIT_E_OK)
			request_end(b, r, code, 0, detail, 0);
	}
}

static void progressed(struct broker *b, struct link *l, struct request *r)
{
	l->progressed = true;
	l->failures = 0;
	r->deaths = 0;
	r->alone_deaths = 0;
	r->suspect = false;
	if (l->alone == request_index(b, r)) {
		l->alone = NONE;
		b->attention = true;
	}
}

/*
 * One record, from the executor's data into the window. 0; -EPROTO: it cannot be true; -ENOSPC: it
 * does not fit the window.
 */
static int take_record(struct broker *b, struct request *r, uint32_t choice, const uint8_t *src,
		       uint32_t left, uint32_t *size)
{
	struct client *c = client_of(b, r);
	struct onebit_record rec;
	uint8_t *dst;
	uint32_t fixed;

	if (left < sizeof(rec))
		return -EPROTO;
	copy_shared(&rec, src, sizeof(rec));
	fixed = (uint32_t)sizeof(rec) + rec.n_top * (uint32_t)sizeof(struct onebit_top);
	if (rec.size % 8 || rec.size > left || rec.size > ONEBIT_RECORD_MAX ||
	    rec.n_top > ONEBIT_TOP_LOGPROBS_MAX || fixed + rec.text_len > rec.size ||
	    (rec.flags & ~ONEBIT_REC_LOGPROB))
		return -EPROTO;
	*size = rec.size;
	if (rec.size > r->c[choice].cap - r->c[choice].bytes)
		return -ENOSPC;
	dst = c->ring.out + r->out_off + r->c[choice].off + r->c[choice].bytes;
	memcpy(dst, &rec, sizeof(rec));
	copy_shared(dst + sizeof(rec), src + sizeof(rec), rec.size - (uint32_t)sizeof(rec));
	for (uint32_t t = 0; t < rec.n_top; t++) {
		const struct onebit_top *top = (const void *)(dst + sizeof(rec) + t * sizeof(*top));

		if (top->text_off > rec.size || top->text_len > rec.size - top->text_off ||
		    top->reserved)
			return -EPROTO;
	}
	r->c[choice].bytes += rec.size;
	if (r->c[choice].text_len + rec.text_len <= 8) {
		memcpy(r->c[choice].text + r->c[choice].text_len, dst + fixed, rec.text_len);
		r->c[choice].text_len = (uint8_t)(r->c[choice].text_len + rec.text_len);
	} else {
		r->c[choice].text_len = 9;
	}
	journal_tokens(r->entry, choice)[r->entry->done[choice].n++] = rec.token;
	return 0;
}

static void tokens(struct broker *b, unsigned i, struct request *r, const struct exec_event *ev)
{
	struct link *l = &b->link[i];
	struct journal_done *done;
	struct onebit_choice *choice;
	uint32_t used = 0, size, n, bytes;
	uint8_t text_len;
	int ret = 0;

	if (!request_has_records(r) || ev->choice >= r->n_choices)
		return lie(b, i, "tokens for no such choice", ev);
	done = &r->entry->done[ev->choice];
	if (done->finish || ev->first != done->n || ev->n > r->entry->tokens_cap - done->n ||
	    (ev->finish && ev->finish != ONEBIT_FINISH_STOP && ev->finish != ONEBIT_FINISH_LENGTH) ||
	    (!ev->n && !ev->finish))
		return lie(b, i, "tokens out of order", ev);
	if (done->n && !(l->replayed[r->slot] >> ev->choice & 1))
		return lie(b, i, "tokens before the replay was confirmed", ev);
	bytes = r->c[ev->choice].bytes;
	text_len = r->c[ev->choice].text_len;
	for (n = 0; n < ev->n && !ret; n++) {
		ret = take_record(b, r, ev->choice, data_of(b, i, ev) + used,
				  ev->data_len - used, &size);
		used += ret ? 0 : size;
	}
	if (ret == -EPROTO || (!ret && used != ev->data_len)) {
		done->n = ev->first; /* nothing of it counts */
		r->c[ev->choice].bytes = bytes;
		r->c[ev->choice].text_len = text_len;
		return lie(b, i, "malformed records", ev);
	}
	if (ret == -ENOSPC)
		n--; /* the record that did not fit */
	if (n || ev->finish) {
		progressed(b, l, r);
		l->replayed[r->slot] |= 1u << ev->choice;
	}
	if (!r->first_ns && n)
		r->first_ns = b->now;
	if (ev->prompt_tokens) {
		r->prompt_tokens = ev->prompt_tokens;
		r->cached_tokens = ev->cached_tokens;
	}
	b->stats.tokens += n;
	quota_tokens_charge(&b->quota, r->who, n);
	choice = (struct onebit_choice *)(void *)(client_of(b, r)->ring.out + r->out_off +
						  sizeof(struct onebit_out)) + ev->choice;
	choice->n_tokens = done->n;
	choice->n_bytes = r->c[ev->choice].bytes;
	if (ret == -ENOSPC) {
		request_end(b, r, ONEBIT_E_WINDOW_FULL, 0, r->out_len, 0);
		return;
	}
	if (ev->finish) {
		done->finish = ev->finish;
		choice->finish = ev->finish;
	}
	/* The last token of the last choice rides with the terminal, which follows at once. */
	request_progress(b, r);
}

static void data(struct broker *b, unsigned i, struct request *r, const struct exec_event *ev)
{
	struct client *c = client_of(b, r);

	if (request_has_records(r) || r->n_data > ONEBIT_AREA_MAX)
		return lie(b, i, "data for an operation that has none", ev);
	if (ev->data_len <= r->out_len && r->n_data <= r->out_len - ev->data_len)
		copy_shared(c->ring.out + r->out_off + r->n_data, data_of(b, i, ev), ev->data_len);
	r->n_data += ev->data_len; /* beyond the window: counted, to say how much is needed */
	if (r->n_data > r->n_most) {
		r->n_most = r->n_data;
		progressed(b, &b->link[i], r);
	}
}

static bool may_end_with(const struct request *r, enum onebit_code code)
{
	switch (code) {
	case ONEBIT_E_LOST:
	case ONEBIT_E_SESSION_BUSY:
		return r->entry->params.session;
	case ONEBIT_E_SESSIONS_FULL:
		return r->op == ONEBIT_OP_SESSION_OPEN || r->op == ONEBIT_OP_SESSION_FORK;
	case ONEBIT_E_OK:
	case ONEBIT_E_UNSUPPORTED:
	case ONEBIT_E_NOT_FOUND:
	case ONEBIT_E_NUMERIC:
	case ONEBIT_E_CONTEXT_FULL:
	case ONEBIT_E_BAD_PROMPT:
	case ONEBIT_E_BAD_PARAM:
	case ONEBIT_E_BAD_GRAMMAR:
	case ONEBIT_E_EXECUTOR:
	case ONEBIT_E_KV_FULL:
		return true;
	default:
		return false;
	}
}

/* The handle that an answer gives: of the session that the request has made, or none. */
static uint64_t new_session(const struct request *r)
{
	return r->op == ONEBIT_OP_SESSION_OPEN || r->op == ONEBIT_OP_SESSION_FORK ? r->id : 0;
}

static void end(struct broker *b, unsigned i, struct request *r, const struct exec_event *ev)
{
	struct link *l = &b->link[i];
	uint32_t s = ev->slot;
	bool orphan = r->client == NONE;

	if (!orphan) {
		if (!may_end_with(r, ev->code))
			return lie(b, i, "an end for no reason", ev);
		if (ev->code == ONEBIT_E_OK && request_has_records(r))
			for (uint32_t k = 0; k < r->n_choices; k++)
				if (!r->entry->done[k].finish)
					return lie(b, i, "an end before every choice ended", ev);
		if (ev->code == ONEBIT_E_OK && ev->detail != new_session(r))
			return lie(b, i, "an end with somebody's session", ev);
		progressed(b, l, r);
		if (ev->prompt_tokens) {
			r->prompt_tokens = ev->prompt_tokens;
			r->cached_tokens = ev->cached_tokens;
		}
		b->stats.prompt_tokens += r->prompt_tokens;
		b->stats.cached_tokens += r->cached_tokens;
	}
	l->slot[s] = NONE;
	l->n_running--;
	b->quota.p[r->who].running--;
	if (l->alone == request_index(b, r))
		l->alone = NONE;
	r->slot = NONE;
	b->attention = true; /* the slot is free for another */
	if (orphan) {
		request_free(b, r);
		return;
	}
	/* Not running any more: request_end() lets it go at once. */
	request_wait(b, r, true);
	if (ev->code != ONEBIT_E_OK)
		request_end(b, r, ev->code, 0, ev->detail, 100);
	else if (r->n_data > r->out_len)
		request_end(b, r, ONEBIT_E_OUT_TOO_SMALL, 0, r->n_data, 0);
	else
		request_end(b, r, ONEBIT_E_OK, (int32_t)r->n_data, ev->detail, 0);
}

/* Are the first n tokens of this choice the client's word rather than ours? */
static bool is_resumed(const struct journal_entry *e, uint32_t choice, uint32_t n)
{
	const struct onebit_resume *rs =
		(const void *)((const uint8_t *)e + e->block_off + e->params.resume_off);

	return e->params.n_resume && n <= rs[choice].first;
}

static void replayed(struct broker *b, unsigned i, struct request *r, const struct exec_event *ev)
{
	struct link *l = &b->link[i];
	uint32_t n;

	if (!request_has_records(r) || ev->choice >= r->n_choices ||
	    !(n = r->entry->done[ev->choice].n) || ev->first != n - 1)
		return lie(b, i, "a replay of what was not", ev);
	if (journal_tokens(r->entry, ev->choice)[n - 1] != ev->detail) {
		if (is_resumed(r->entry, ev->choice, n)) {
			request_end(b, r, ONEBIT_E_LOST, 0, 0, 0);
			return;
		}
		broker_incident(b, ONEBIT_E_NONDETERMINISM, r, "token %u of choice %u differs at replay",
				n - 1, ev->choice);
		request_end(b, r, ONEBIT_E_NONDETERMINISM, 0, n - 1, 0);
		return;
	}
	l->replayed[ev->slot] |= 1u << ev->choice;
}

static void event(struct broker *b, unsigned i, const struct exec_event *ev)
{
	struct link *l = &b->link[i];
	struct request *r;
	char text[97];

	if (ev->data_len > EXEC_EVENT_DATA_MAX || ev->data_off > EXEC_DATA_BYTES ||
	    ev->data_len > EXEC_DATA_BYTES - ev->data_off)
		return lie(b, i, "data outside its area", ev);
	if (ev->kind == EXEC_EV_HELLO)
		return ready(b, i, ev);
	if (l->state == LINK_STARTING)
		return lie(b, i, "an event before the hello", ev);
	switch (ev->kind) {
	case EXEC_EV_KV:
		if (ev->data_len != sizeof(l->kv))
			return lie(b, i, "statistics of the wrong size", ev);
		copy_shared(&l->kv, data_of(b, i, ev), sizeof(l->kv));
		l->kv.size = sizeof(l->kv);
		return;
	case EXEC_EV_TIMING:
		if (ev->n > EXEC_TIMINGS_MAX || ev->data_len != ev->n * sizeof(l->timing[0]))
			return lie(b, i, "statistics of the wrong size", ev);
		copy_shared(l->timing, data_of(b, i, ev), ev->data_len);
		l->n_timing = ev->n;
		return;
	case EXEC_EV_SESSIONS:
		if (ev->n > EXEC_SESSIONS_MAX || ev->data_len != ev->n * sizeof(l->session[0]))
			return lie(b, i, "sessions of the wrong size", ev);
		copy_shared(l->session, data_of(b, i, ev), ev->data_len);
		l->n_session = ev->n;
		return;
	case EXEC_EV_FAULT:
		if (ev->data_len >= sizeof(text))
			return lie(b, i, "a fault with too long a text", ev);
		copy_shared(text, data_of(b, i, ev), ev->data_len);
		text[ev->data_len] = 0;
		broker_incident(b, ONEBIT_E_EXECUTOR, NULL, "device fault: %s", text);
		return;
	}
	if (ev->slot >= l->slots || l->slot[ev->slot] == NONE || ev->tag != l->tag[ev->slot])
		return lie(b, i, "an event for a slot that does not run", ev);
	r = &b->requests[l->slot[ev->slot]];
	if (r->client != NONE) /* one that was cancelled owes us its END in that time */
		r->event_ns = b->now;
	if (ev->kind == EXEC_EV_END)
		return end(b, i, r, ev);
	if (r->client == NONE)
		return; /* cancelled: what is still on its way is dropped */
	switch (ev->kind) {
	case EXEC_EV_TOKENS:
		return tokens(b, i, r, ev);
	case EXEC_EV_DATA:
		return data(b, i, r, ev);
	case EXEC_EV_REPLAYED:
		return replayed(b, i, r, ev);
	case EXEC_EV_PROGRESS:
		return;
	}
	lie(b, i, "an unknown event", ev);
}

static void drain(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];
	uint32_t tail, n;

	l->events_left = false;
	if (!l->mem.own || l->state == LINK_KILLED)
		return;
	/* Pairs with executor_kick()'s release: events and their data are written. */
	tail = onebit_load_acquire(&l->mem.own->event_tail);
	if (onebit_distance(l->event_head, tail) > EXEC_EVENTS) {
		struct exec_event none = { 0 };

		lie(b, i, "its event index ran ahead", &none);
		return;
	}
	for (n = 0; n < TURN_EVENTS && l->event_head != tail; n++) {
		struct exec_event ev;

		copy_shared(&ev, &l->mem.own->events[onebit_slot(l->event_head, EXEC_EVENTS)],
			    sizeof(ev));
		l->event_head++;
		event(b, i, &ev);
		if (l->state == LINK_KILLED)
			return;
	}
	/* Pairs with executor_emit()'s acquire: events and data below are read. */
	if (n)
		onebit_store_release(&l->mem.broker->event_head, l->event_head);
	l->events_left = l->event_head != tail;
}

/* ---- time ------------------------------------------------------------------------------------ */

static uint64_t progress_ns(const struct broker *b)
{
	return b->policy.progress_ms * 1000000ull;
}

uint64_t link_until(const struct broker *b, unsigned i)
{
	const struct link *l = &b->link[i];
	uint64_t until = UINT64_MAX;

	switch (l->state) {
	case LINK_STARTING:
		return l->started_ns + START_DEADLINE_NS;
	case LINK_STOPPING:
		return l->started_ns + STOP_DEADLINE_NS;
	case LINK_BACKOFF:
		return l->retry_ns;
	case LINK_READY:
		if (!l->n_running)
			break;
		for (uint32_t s = 0; s < l->slots; s++) {
			uint64_t t;

			if (l->slot[s] == NONE)
				continue;
			t = b->requests[l->slot[s]].event_ns + progress_ns(b);
			if (t < until)
				until = t;
		}
		break;
	case LINK_IDLE:
	case LINK_KILLED:
		break;
	}
	return until;
}

static void timers(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	if (link_until(b, i) > b->now)
		return;
	switch (l->state) {
	case LINK_BACKOFF:
		if ((l->retire || b->draining) && !l->n_bound)
			idle(b, i);
		else
			link_start(b, i);
		break;
	case LINK_READY:
		b->stats.executor_hangs++;
		broker_incident(b, ONEBIT_E_EXECUTOR, NULL, "executor %u made no progress for %u ms",
				l->generation, b->policy.progress_ms);
		kill_executor(b, i);
		break;
	case LINK_STARTING:
		broker_log(b, BROKER_ERROR, "event=executor-start-timeout link=%u", i);
		kill_executor(b, i);
		break;
	case LINK_STOPPING:
		l->started_ns = b->now; /* again later, should the kill be slow */
		b->s.env.exec_kill(b->s.env.ctx, i);
		break;
	case LINK_IDLE:
	case LINK_KILLED:
		break;
	}
}

void link_need_kick(struct broker *b, unsigned i, bool need)
{
	struct link *l = &b->link[i];

	if (!l->mem.broker || l->need_kick == need)
		return;
	l->need_kick = need;
	onebit_store_relaxed(&l->mem.broker->flags, need ? EXEC_NEED_KICK : 0);
}

void link_run(struct broker *b, unsigned i)
{
	struct link *l = &b->link[i];

	link_need_kick(b, i, false); /* we are looking; broker_sleep() says otherwise in time */
	drain(b, i);
	timers(b, i);
	if ((l->state == LINK_READY || l->state == LINK_STARTING) && !l->n_bound &&
	    (l->retire || b->draining))
		stop(b, i);
	else if (l->state == LINK_BACKOFF && !l->n_bound && (l->retire || b->draining))
		idle(b, i);
	dispatch(b, i);
	publish(b, i);
}

bool link_pending(struct broker *b, unsigned i)
{
	const struct link *l = &b->link[i];

	return l->mem.own && l->state != LINK_KILLED &&
	       onebit_load_acquire(&l->mem.own->event_tail) != l->event_head;
}

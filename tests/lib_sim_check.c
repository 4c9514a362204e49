/* SPDX-License-Identifier: MIT */
/*
 * The oracle of a simulated run. A client's answers are compared with what the loopback executor's
 * functions say they are, byte by byte; a failure must have been provoked; and at every sleep of the
 * broker nothing may be pending that nobody would tell it of.
 */
#include "lib_sim.h"

#include <string.h>

#include "core.h"
#include "onebit_ring.h"

#define CLOCK_SLACK_NS 500000u

static const char *const code_name[128] = {
#define NAME(name, nr, err, layer, retry, text) [nr] = #name,
	ONEBIT_CODES(NAME)
#undef NAME
};

static void key_of(struct sim_request *r, int model)
{
	uint8_t id[32];

	sim_model_id(model, id);
	r->model = model;
	r->key = loopback_key(id, &r->params, r->block, r->block_len);
}

/* Which of our models gives this token here; the client is told its name only at the end. */
static void find_model(struct sim_request *r, uint32_t choice, uint32_t index, uint32_t token)
{
	char text[16];
	uint32_t len;

	for (int m = 0; m < SIM_MODELS; m++) {
		key_of(r, m);
		if (loopback_token(r->key, choice, index, text, &len) == token)
			return;
	}
	r->model = -1;
}

/* Walk the records [next, upto) of a choice; their text goes to said, as far as it fits. */
static void check_records(struct sim *s, struct sim_client *c, struct sim_request *r,
			  uint32_t choice, uint32_t upto, char *said, uint32_t *said_len)
{
	const uint8_t *out = sim_out(c, r);
	const struct onebit_choice *ch = (const void *)(out + sizeof(struct onebit_out));
	const struct onebit_record *rec;
	uint32_t at, len, token, i, n_top;
	char text[16];

	*said_len = 0;
	for (; r->next[choice] < upto && !s->failure[0]; r->next[choice]++) {
		i = r->next[choice];
		at = ch[choice].rec_off + r->bytes[choice];
		if (r->bytes[choice] + sizeof(*rec) > ch[choice].rec_cap ||
		    ch[choice].rec_off + ch[choice].rec_cap > r->sqe.out_len) {
			sim_fail(s, "choice %u token %u lies outside its window", choice, i);
			return;
		}
		rec = (const void *)(out + at);
		if (r->model < 0)
			find_model(r, choice, i, rec->token);
		token = loopback_token(r->key, choice, i, text, &len);
		n_top = r->params.flags & ONEBIT_PARAM_LOGPROBS ? r->params.top_logprobs : 0;
		if (r->model < 0 || rec->token != token)
			sim_fail(s, "choice %u token %u is %u and should be %u", choice, i,
				 rec->token, token);
		else if (rec->size % 8 || rec->size > ch[choice].rec_cap - r->bytes[choice] ||
			 rec->n_top != n_top || rec->text_len != len ||
			 memcmp((const char *)rec + sizeof(*rec) + n_top * sizeof(struct onebit_top),
				text, len))
			sim_fail(s, "choice %u token %u: the record is damaged", choice, i);
		if (*said_len + len <= 16) {
			memcpy(said + *said_len, text, len);
			*said_len += len;
		}
		r->bytes[choice] += rec->size;
		s->n_tokens++;
	}
}

static void check_progress(struct sim *s, struct sim_client *c, struct sim_request *r,
			   const struct onebit_cqe *q)
{
	uint32_t first = q->u.progress.first, n = q->u.progress.n, said_len;
	char said[32];

	if (q->flags & ONEBIT_CQE_REPLAYED)
		s->n_replayed++;
	if (!r->told != !!(q->flags & ONEBIT_CQE_ACCEPTED))
		sim_fail(s, "ACCEPTED must be on the first progress CQE and on no other");
	r->told = r->accepted = true;
	if (r->kind == SIM_BAD)
		sim_fail(s, "a bad request was accepted");
	if ((uint32_t)q->res != n)
		sim_fail(s, "progress: res is %d and n is %u", q->res, n);
	if (!n)
		return;
	if (r->kind != SIM_GENERATE || q->choice >= r->n_choices) {
		sim_fail(s, "tokens of choice %u of op %u", q->choice, r->sqe.op);
		return;
	}
	if (r->next[q->choice] != first) {
		sim_fail(s, "choice %u: tokens from %u on, %u are known", q->choice, first,
			 r->next[q->choice]);
		return;
	}
	check_records(s, c, r, q->choice, first + n, said, &said_len);
	if ((q->flags & ONEBIT_CQE_INLINE) &&
	    (q->u.progress.text_len > 8 || q->u.progress.text_len != said_len ||
	     memcmp(q->u.progress.text, said, said_len)))
		sim_fail(s, "choice %u: inline text of tokens [%u, %u) is wrong", q->choice, first,
			 first + n);
}

/* What never ran has no model's name in its window, and nothing new. */
static bool is_unnamed(const struct sim_request *r, const struct onebit_out *out, uint32_t code)
{
	static const uint8_t none[sizeof(out->model_id)];
	const struct onebit_choice *ch = (const void *)(out + 1);

	for (uint32_t i = 0; i < r->n_choices; i++)
		if (ch[i].n_tokens != r->first[i])
			return false;
	return code != ONEBIT_E_OK && !memcmp(out->model_id, none, sizeof(none));
}

/* How the answer of an accepted GENERATE ended: all of it is checked, counts included. */
static void check_generated(struct sim *s, struct sim_client *c, struct sim_request *r,
			    uint32_t code)
{
	const struct onebit_out *out = (const void *)sim_out(c, r);
	const struct onebit_choice *ch = (const void *)(out + 1);
	uint32_t i, len, said_len;
	uint8_t finish;
	char said[32];

	if (out->size != sizeof(*out) || out->n_choices != r->n_choices) {
		sim_fail(s, "the out window's header is wrong");
		return;
	}
	for (i = 0; i < r->n_choices && !s->failure[0]; i++) {
		if (ch[i].n_tokens < r->next[i] || ch[i].first_token != r->first[i]) {
			sim_fail(s, "choice %u: the window counts %u tokens, %u were told", i,
				 ch[i].n_tokens, r->next[i]);
			return;
		}
		check_records(s, c, r, i, ch[i].n_tokens, said, &said_len);
		if (ch[i].n_bytes != r->bytes[i])
			sim_fail(s, "choice %u: %u bytes of records, the window says %u", i,
				 r->bytes[i], ch[i].n_bytes);
		if (r->model < 0) {
			if (code != ONEBIT_E_OK)
				continue;
			key_of(r, sim_model_of(out->model_id));
		}
		len = loopback_length(r->key, i, r->max_tokens, &finish);
		if (ch[i].n_tokens > len && ch[i].n_tokens > r->first[i])
			sim_fail(s, "choice %u: %u tokens of %u", i, ch[i].n_tokens, len);
		if (code == ONEBIT_E_OK && ch[i].n_tokens > r->first[i] &&
		    (ch[i].n_tokens != len || ch[i].finish != finish))
			sim_fail(s, "choice %u: %u tokens, finish %u; should be %u, finish %u", i,
				 ch[i].n_tokens, ch[i].finish, len, finish);
		if (code == ONEBIT_E_OK && i == 0 && r->fate == SIM_POISON && r->strike < len)
			sim_fail(s, "a poisonous request ended well");
	}
	if (r->model >= 0 && sim_model_of(out->model_id) != r->model && !is_unnamed(r, out, code))
		sim_fail(s, "the answer is model %d's, the window says %d", r->model,
			 sim_model_of(out->model_id));
	if (code != ONEBIT_E_OK && !s->failure[0] && r->model >= 0 && !c->cut.set &&
	    (code == ONEBIT_E_CANCELLED || code == ONEBIT_E_WINDOW_FULL ||
	     code == ONEBIT_E_DEADLINE) && !r->wrong_resume) {
		c->cut.r = *r;
		c->cut.set = true;
	}
}

/* Bytes that TOKENIZE or DETOKENIZE gives, at most max of them. */
static uint32_t expect_bytes(const struct sim_request *r, uint8_t *to, uint32_t max)
{
	const struct onebit_segment *seg = (const void *)(r->block + r->params.segments_off);
	uint32_t i, k, id, len, n = 0, step;

	for (i = 0; i < r->params.n_segments; i++) {
		step = seg[i].kind == ONEBIT_SEG_TEXT ? 1 : 4;
		for (k = 0; k < seg[i].len; k += step) {
			id = r->block[seg[i].off + k];
			if (step == 4)
				memcpy(&id, r->block + seg[i].off + k, 4);
			len = r->kind == SIM_DETOKENIZE ? 1 : 4;
			if (n + len > max)
				return n + len;
			memcpy(to + n, &id, len); /* little-endian: its byte comes first */
			n += len;
		}
	}
	return n;
}

static void check_answer(struct sim *s, struct sim_client *c, struct sim_request *r,
			 const struct onebit_cqe *q)
{
	uint8_t want[SIM_ARENA_SLOT * 10];
	uint32_t n;

	switch (r->kind) {
	case SIM_ECHO:
		if (q->res != (int32_t)r->block_len ||
		    memcmp(sim_out(c, r), r->block, r->block_len))
			sim_fail(s, "ECHO gave something else");
		break;
	case SIM_TOKENIZE:
	case SIM_DETOKENIZE:
		n = expect_bytes(r, want, sizeof(want));
		if (q->res != (int32_t)n || n > r->sqe.out_len || memcmp(sim_out(c, r), want, n))
			sim_fail(s, "op %u: %d bytes, should be %u, or they differ", r->sqe.op,
				 q->res, n);
		break;
	case SIM_QUERY:
		if ((uint32_t)q->res > r->sqe.out_len)
			sim_fail(s, "QUERY gave %d bytes for a window of %u", q->res,
				 r->sqe.out_len);
		break;
	case SIM_GENERATE:
		if (!r->accepted)
			sim_fail(s, "a GENERATE ended well and was never ACCEPTED");
		break;
	case SIM_BAD:
	case SIM_UNSUPPORTED:
		sim_fail(s, "a bad request (op %u) ended well", r->sqe.op);
		break;
	default:
		break;
	}
}

/* Was there a cause for this code? Refusals of a full house count where the house is small. */
static bool is_provoked(const struct sim *s, const struct sim_client *c,
			const struct sim_request *r, const struct onebit_cqe *q)
{
	uint32_t deaths = s->deaths - r->deaths_then;
	uint32_t world = s->world_deaths - r->world_deaths_then;

	if (r->kind == SIM_ADMIN)
		return true; /* the order of swaps and deaths decides */
	switch (q->u.end.code) {
	case ONEBIT_E_BAD_OP:
	case ONEBIT_E_RESERVED:
	case ONEBIT_E_BAD_FIELD:
	case ONEBIT_E_BAD_RANGE:
	case ONEBIT_E_BAD_PARAM:
	case ONEBIT_E_TOO_NEW:
	case ONEBIT_E_TOO_BIG:
		return r->kind == SIM_BAD;
	case ONEBIT_E_UNSUPPORTED:
		return r->kind == SIM_UNSUPPORTED || r->kind == SIM_QUERY;
	case ONEBIT_E_OUT_TOO_SMALL:
	case ONEBIT_E_WINDOW_FULL:
		return r->kind != SIM_NOP && r->kind != SIM_CANCEL;
	case ONEBIT_E_DENIED:
		return r->kind == SIM_QUERY;
	case ONEBIT_E_NOT_FOUND:
		return r->kind == SIM_CANCEL;
	case ONEBIT_E_Q_INFLIGHT:
		return true; /* the ring's own bound is among them */
	case ONEBIT_E_Q_QUEUED:
		return s->policy.limits.max_queued_bytes <= 20000;
	case ONEBIT_E_Q_TOKENS:
		return s->policy.limits.tokens_per_second;
	case ONEBIT_E_REQUESTS_FULL:
	case ONEBIT_E_JOURNAL_FULL:
		return s->k.tight;
	case ONEBIT_E_DRAINING:
		return s->draining;
	case ONEBIT_E_NO_MODEL:
		return s->k.no_executor || s->admin_used || r->kind == SIM_QUERY;
	case ONEBIT_E_EXECUTOR_DOWN:
		return s->deaths >= START_FAILURES_MAX;
	case ONEBIT_E_MODEL_CHANGED:
		return s->admin_used;
	case ONEBIT_E_LOST:
		/* Who erred about tokens of an earlier attachment, nobody can tell. */
		return s->admin_used || r->wrong_resume ||
		       (r->fate == SIM_WRONG && deaths && r->params.n_resume);
	case ONEBIT_E_CANCELLED:
		return r->cancel_asked;
	case ONEBIT_E_DEADLINE:
		/* A busy broker looks at the clock every few turns only. */
		return r->sqe.deadline_ms && s->now + CLOCK_SLACK_NS >=
		       r->submitted_ns + r->sqe.deadline_ms * 1000000ull;
	case ONEBIT_E_POISON:
		return r->fate == SIM_POISON || world >= POISON_DEATHS;
	case ONEBIT_E_NONDETERMINISM:
		return r->fate == SIM_WRONG && deaths;
	case ONEBIT_E_REPLAY_REFUSED:
		return (r->params.flags & ONEBIT_PARAM_NO_REPLAY) && deaths;
	case ONEBIT_E_EXECUTOR:
		return r->fate == SIM_FAIL;
	case ONEBIT_E_BAD_PROMPT:
		return r->fate == SIM_BAD_UTF8;
	}
	(void)c;
	return false;
}

static void check_end(struct sim *s, struct sim_client *c, struct sim_request *r,
		      const struct onebit_cqe *q)
{
	uint32_t code = q->res < 0 ? q->u.end.code : ONEBIT_E_OK;

	if (q->res < 0 && (code == ONEBIT_E_OK || code >= 128 || !code_name[code])) {
		sim_fail(s, "a terminal with res %d and code %u", q->res, code);
		return;
	}
	sim_trace(s, "client %u: %llx ends, res %d, code %s, detail %llu", c->id,
		  (unsigned long long)q->user_data, q->res, code_name[code],
		  (unsigned long long)q->u.end.detail);
	s->n_end[code]++;
	if (code == ONEBIT_E_OK)
		check_answer(s, c, r, q);
	else if (!is_provoked(s, c, r, q))
		sim_fail(s, "request %llx (op %u, fate %d) ended %s, detail %llu, without cause",
			 (unsigned long long)q->user_data, r->sqe.op, r->fate, code_name[code],
			 (unsigned long long)q->u.end.detail);
	if (r->kind == SIM_GENERATE && r->accepted && !s->failure[0])
		check_generated(s, c, r, code);
	r->used = false;
	c->n_unfinished--;
}

void sim_check_cqe(struct sim *s, struct sim_client *c, const struct onebit_cqe *q)
{
	struct sim_request *r = sim_client_find(c, q->user_data);

	if (!r)
		sim_fail(s, "client %u: a CQE for %llx, which has ended or never was", c->id,
			 (unsigned long long)q->user_data);
	else if (q->flags & ONEBIT_CQE_MORE)
		check_progress(s, c, r, q);
	else
		check_end(s, c, r, q);
}

/*
 * What stands in the CQ: all that was published and nothing else, it never overflows, and one request
 * has one progress CQE in it.
 */
void sim_check_cq(struct sim *s, struct sim_client *c)
{
	const struct onebit_cqe *cqes = (const void *)(c->daemon + c->w.cqes_off), *q;
	uint32_t told = s->b->clients[c->id].ring.told, i;
	struct sim_request *r;

	if (onebit_distance(c->cq_head, told) > c->w.cq_entries ||
	    sim_client_waiting(c) != onebit_distance(c->cq_head, told)) {
		sim_fail(s, "client %u: %u CQEs published, %u there, in a queue of %u", c->id,
			 told - c->cq_head, sim_client_waiting(c), c->w.cq_entries);
		return;
	}
	for (i = 0; i < SIM_REQUESTS; i++)
		c->r[i].seen_progress = 0;
	for (i = c->cq_head; i != told; i++) {
		q = &cqes[onebit_slot(i, c->w.cq_entries)];
		r = sim_client_find(c, q->user_data);
		if (r && (q->flags & ONEBIT_CQE_MORE) && r->seen_progress++)
			sim_fail(s, "client %u: two progress CQEs of %llx are unreaped", c->id,
				 (unsigned long long)q->user_data);
	}
}

static void check_client_sleep(struct sim *s, const struct sim_client *c)
{
	uint32_t sq_head = *(const uint32_t *)(const void *)(c->daemon + c->w.sq_head_off);
	uint32_t waiting = sim_client_waiting(c);
	const struct onebit_state *st = (const void *)(c->daemon + c->w.state_off);

	if (c->step == SIM_ASLEEP && !c->woken && waiting)
		sim_fail(s, "client %u sleeps, has %u CQEs and was not woken", c->id, waiting);
	if (sq_head == c->sq_tail || c->doorbell || c->muted || c->step == SIM_MARKING ||
	    c->step == SIM_PUBLISHED || c->step == SIM_REAPED)
		return;
	/* Its SQEs wait; that is right only while something else of it will end or be reaped. */
	if (!(st->flags & ONEBIT_SQ_STALLED))
		sim_fail(s, "the broker sleeps over %u SQEs of client %u, who was not asked to ring",
			 c->sq_tail - sq_head, c->id);
	else if (!waiting && c->n_unfinished == c->sq_tail - sq_head)
		sim_fail(s, "client %u is stalled and has nothing to reap or wait for", c->id);
}

void sim_check_sleep(struct sim *s)
{
	uint32_t i;

	for (i = 0; i < s->k.clients; i++) {
		if (s->c[i].state == SIM_LIVE && !s->c[i].hostile && !s->c[i].broken)
			check_client_sleep(s, &s->c[i]);
		if (s->c[i].state == SIM_LIVE && s->c[i].muted &&
		    s->until > s->now + SPURIOUS_REST_MAX)
			sim_fail(s, "client %u is put aside, and not for a while", s->c[i].id);
	}
	for (i = 0; i < LINKS; i++) {
		const struct sim_exec *x = &s->exec[i];

		if (x->state != SIM_EXEC_RUNNING)
			continue;
		if (x->step != SIM_KICK && !x->doorbell && x->told != x->mem.broker->event_head)
			sim_fail(s, "the broker sleeps over %u events of executor %u",
				 x->told - x->mem.broker->event_head, i);
		if (x->step == SIM_EXEC_ASLEEP && !x->woken &&
		    x->mem.broker->cmd_tail != x->e.cmd_head)
			sim_fail(s, "executor %u sleeps, has %u commands and was not woken", i,
				 x->mem.broker->cmd_tail - x->e.cmd_head);
	}
}

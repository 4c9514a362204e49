/* SPDX-License-Identifier: MIT */
/*
 * Questions to a daemon. What an attachment gives costs address space only until it is written, so
 * the out area is sized for the longest answer that there can be, and a full window is a refusal to
 * be told rather than something to try again.
 */
#include "cmd_ask.h"

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

enum {
	POLL_MS = 100,	    /* how soon a signal that came between two waits is seen */
	BLOCK_HEAD = 4096,  /* parameters and tables of a request, generously */
	TOKEN_TEXT = 256,   /* no vocabulary has longer tokens; if one had, the window were full */
};

float ask_float(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

static uint32_t area(uint64_t bytes)
{
	bytes = (bytes + 4095) & ~4095ull;
	if (bytes < ONEBIT_AREA_DEFAULT)
		return ONEBIT_AREA_DEFAULT;
	return bytes < ONEBIT_AREA_MAX ? (uint32_t)bytes : ONEBIT_AREA_MAX;
}

int ask_open(struct ask *a, uint64_t in_bytes, uint64_t out_bytes)
{
	struct onebit_options options = {
		.size = sizeof(options),
		.socket = a->daemon->socket,
		.sq_entries = ONEBIT_SQ_ENTRIES_MIN,
		.arena_bytes = area(in_bytes + BLOCK_HEAD),
		.out_bytes = area(out_bytes),
	};
	struct onebit_error err = { 0 };
	int ret = onebit_open(&a->o, &options, &err);

	if (ret >= 0)
		return STATUS_OK;
	a->o = NULL;
	return verb_open_failed(a->verb, a->daemon->socket, ret, &err);
}

void ask_close(struct ask *a)
{
	onebit_close(a->o);
	a->o = NULL;
}

/* The daemon's sentence, and what it cannot know: which option it was, what its executor said. */
static int refused(const struct ask *a, const struct onebit_request *rq,
		   const struct onebit_event *ev)
{
	const struct onebit_error *e = &ev->error;
	char line[320];

	if (ev->res == -ECANCELED && verb_interrupted())
		return STATUS_INTERRUPTED;
	verb_fail(a->verb, STATUS_FAILED, "%s [%s, %s]", e->text, onebit_code_name(e->code),
		  onebit_layer_name(e->layer));
	if (e->code == ONEBIT_E_BAD_PARAM &&
	    e->detail == offsetof(struct onebit_params, max_tokens))
		fprintf(stderr, "onebit %s: %u tokens are more than the daemon's max_tokens; raise "
			"it, or give fewer\n", a->verb, rq->params.max_tokens);
	if (e->code == ONEBIT_E_WINDOW_FULL && rq->params.top_logprobs)
		fprintf(stderr, "onebit %s: give fewer ids, or a smaller --top than %u\n", a->verb,
			rq->params.top_logprobs);
	if (e->layer == ONEBIT_LAYER_BACKEND && verb_daemon_said(a->daemon, line, sizeof(line)))
		fprintf(stderr, "onebit %s: its executor said: %s\n", a->verb, line);
	return ev->res == -ECONNRESET ? STATUS_NO_DAEMON : STATUS_FAILED;
}

/*
 * One request to its END, which *ev is then; pointers in it hold until the next call on a->o.
 * on_tokens may be NULL.
 */
static int ask(struct ask *a, const struct onebit_request *rq,
	       int (*on_tokens)(void *ctx, const struct onebit_event *ev), void *ctx,
	       struct onebit_event *ev)
{
	int ret, status = STATUS_OK;
	bool cancelled = false;
	uint64_t id;

	ret = onebit_submit(a->o, rq, &id);
	if (ret < 0)
		return verb_fail(a->verb, STATUS_FAILED, "the request could not be submitted: %s",
				 onebit_last_error(a->o)->text);
	for (;;) {
		if ((verb_interrupted() || status) && !cancelled) {
			onebit_cancel(a->o, id);
			cancelled = true;
		}
		if (verb_interrupted() > 1)
			return STATUS_INTERRUPTED; /* they mean it: do not wait for the daemon */
		ret = onebit_next(a->o, ev, POLL_MS);
		if (!ret || ret == -EINTR)
			continue;
		if (ret < 0)
			return verb_fail(a->verb, STATUS_NO_DAEMON,
					 "the daemon at %s went away: %s; look whether it runs, "
					 "then ask again", verb_socket(a->daemon->socket),
					 strerror(-ret));
		if (ev->type == ONEBIT_EV_TOKENS && on_tokens && !status)
			status = on_tokens(ctx, ev);
		if (ev->type == ONEBIT_EV_END)
			break;
	}
	if (status)
		return status;
	return ev->res < 0 ? refused(a, rq, ev) : STATUS_OK;
}

int ask_model(struct ask *a, struct onebit_model *m)
{
	struct onebit_request rq = { .op = ONEBIT_OP_QUERY, .arg = ONEBIT_QUERY_MODEL };
	struct onebit_event ev;
	int status = ask(a, &rq, NULL, NULL, &ev);

	if (status)
		return status;
	memset(m, 0, sizeof(*m));
	memcpy(m, ev.data, ev.data_len < sizeof(*m) ? ev.data_len : sizeof(*m));
	m->name[sizeof(m->name) - 1] = '\0';
	return STATUS_OK;
}

int ask_tokenize(struct ask *a, const char *text, size_t len, bool prompt, uint32_t **ids,
		 size_t *n)
{
	struct onebit_part part = { .role = ONEBIT_ROLE_RAW, .kind = ONEBIT_SEG_TEXT, .data = text,
				    .len = len };
	struct onebit_request rq = {
		.op = ONEBIT_OP_TOKENIZE,
		/* Of raw parts it is a bos and no more. */
		.params.flags = prompt ? ONEBIT_PARAM_TEMPLATE : 0,
		.parts = &part,
		.n_parts = 1,
	};
	struct onebit_event ev;
	int status = ask(a, &rq, NULL, NULL, &ev);

	if (status)
		return status;
	*n = ev.data_len / sizeof(**ids);
	*ids = malloc(*n ? *n * sizeof(**ids) : 1);
	if (!*ids)
		return verb_fail(a->verb, STATUS_FAILED, "no memory for %zu ids", *n);
	if (*n)
		memcpy(*ids, ev.data, *n * sizeof(**ids));
	return STATUS_OK;
}

int ask_bytes(struct ask *a, uint32_t id, size_t *bytes)
{
	struct onebit_part part = { .role = ONEBIT_ROLE_RAW, .kind = ONEBIT_SEG_TOKENS, .data = &id,
				    .len = sizeof(id) };
	struct onebit_request rq = { .op = ONEBIT_OP_DETOKENIZE, .parts = &part, .n_parts = 1 };
	struct onebit_event ev;
	int status = ask(a, &rq, NULL, NULL, &ev);

	if (!status)
		*bytes = ev.data_len;
	return status;
}

/* ---- scores -------------------------------------------------------------------------------- */

uint64_t ask_score_bytes(size_t n, unsigned n_top)
{
	uint64_t record = sizeof(struct onebit_record) + TOKEN_TEXT +
			  n_top * (sizeof(struct onebit_top) + TOKEN_TEXT);

	if (record > ONEBIT_RECORD_MAX)
		record = ONEBIT_RECORD_MAX;
	return sizeof(struct onebit_out) + sizeof(struct onebit_choice) + n * record;
}

struct scores {
	const struct ask *a;
	const uint32_t *ids;
	size_t n, next;
	int (*on_record)(void *ctx, size_t index, const struct onebit_record *r);
	void *ctx;
};

/* The ids come back with their numbers: what is not of them, or lacks a number, is no answer. */
static int take_scores(void *ctx, const struct onebit_event *ev)
{
	const struct onebit_record *r = ev->records;
	struct scores *s = ctx;
	int status = STATUS_OK;

	for (uint32_t i = 0; i < ev->n && !status; i++, r = onebit_record_next(r)) {
		bool number = r->flags & ONEBIT_REC_LOGPROB;

		if (s->next >= s->n || r->token != s->ids[s->next] || (s->next && !number) ||
		    (number && !__builtin_isfinite(ask_float(r->logprob))))
			return verb_fail(s->a->verb, STATUS_FAILED,
					 "the daemon's answer is wrong at token %zu; report it",
					 s->next);
		status = s->on_record(s->ctx, s->next++, r);
	}
	return status;
}

int ask_score(struct ask *a, const uint32_t *ids, size_t n, unsigned n_top,
	      int (*on_record)(void *ctx, size_t index, const struct onebit_record *r), void *ctx)
{
	struct scores s = { .a = a, .ids = ids, .n = n, .on_record = on_record, .ctx = ctx };
	struct onebit_part part = { .role = ONEBIT_ROLE_RAW, .kind = ONEBIT_SEG_TOKENS, .data = ids,
				    .len = n * sizeof(*ids) };
	struct onebit_request rq = {
		.op = ONEBIT_OP_SCORE,
		.params = {
			/* Windows of a text have no beginning in common worth keeping. */
			.flags = ONEBIT_PARAM_LOGPROBS | ONEBIT_PARAM_NO_CACHE,
			.top_logprobs = (__u16)n_top,
			.max_tokens = (__u32)n, /* records there may be */
		},
		.parts = &part,
		.n_parts = 1,
	};
	uint64_t room = ask_score_bytes(n, n_top), out = onebit_welcome(a->o)->out_bytes;
	struct onebit_event ev;
	int status;

	rq.out_bytes = (size_t)(room < out ? room : out);
	status = ask(a, &rq, take_scores, &s, &ev);
	if (!status && s.next != n)
		status = verb_fail(a->verb, STATUS_FAILED,
				   "the daemon's answer ends at token %zu of %zu; report it", s.next,
				   n);
	return status;
}

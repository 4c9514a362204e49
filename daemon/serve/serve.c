/* SPDX-License-Identifier: MIT */
/*
 * Slots. A slot of the broker is a slot of the engine; what is kept of one here is its tag and what the
 * events about it need. TOKENIZE and DETOKENIZE are answered where they stand; the others start in
 * the engine and end when it says so.
 *
 * The broker ends an executor that lets a request go without an event for too long. A request may
 * wait here with good reason, for KV memory or behind a long prompt, so each that has not moved for
 * a while is said to be alive after a step: a step that never ends says nothing, and is found out.
 *
 * After a death the journal says what was delivered. The engine computes that again and tells the last of
 * it, by which the broker sees that the answer goes on as it began. A SCORE's tokens are the prompt's
 * own: those that were told are passed over.
 */
#include "serve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "requests.h"
#include "sessions.h"
#include "tell.h"

#define ALIVE_NS      100000000ull /* without an event for so long: say that it is alive */
#define STATISTICS_NS 250000000ull /* between two statistics while there is work */

struct run {
	bool on;
	uint32_t op;
	struct exec_event of;  /* slot, tag, prompt_tokens: what its events begin with */
	uint32_t first;	       /* SCORE: records told before a death */
	uint32_t prompt_done;  /* computed so far */
	uint64_t n_tokens;     /* told, of all choices */
	uint64_t event_ns;     /* of its last event */
	struct session *session; /* that it goes on with; NULL: none */
};

struct serve {
	struct executor *e;
	struct engine *g;
	const struct engine_facts *facts;
	struct requests *requests;
	struct sessions *sessions;
	struct exec_hello hello;
	bool greeted, busy;
	bool untold; /* something happened since the last statistics */
	uint64_t now, statistics_ns;
	struct run runs[EXEC_SLOTS_MAX];
	struct tell tell;
};

static uint64_t clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

struct serve *serve_new(struct executor *e, struct engine *g, const struct serve_options *o)
{
	struct serve *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->e = e;
	s->g = g;
	s->facts = engine_facts(g);
	s->hello = *o->hello;
	s->requests = requests_new(s->facts->tokenizer, o->chat, s->facts->positions);
	s->sessions = sessions_new(s->facts->positions);
	if (!s->requests || !s->sessions)
		return serve_free(s);
	tell_init(&s->tell, e, s->facts->tokenizer, o->nap, o->ctx);
	return s;
}

struct serve *serve_free(struct serve *s)
{
	if (s) {
		requests_free(s->requests);
		sessions_free(s->sessions);
		free(s);
	}
	return NULL;
}

/* ---- sessions ---- */

/* The cache has, for the session's next request, what was said in it so far. */
static void keep(struct serve *s, const struct session *session)
{
	engine_keep(s->g, session->index, session->principal, session->tokens, session->n);
}

static void tell_sessions(struct serve *s)
{
	struct onebit_session there[EXEC_SESSIONS_MAX];
	struct exec_event ev = { .kind = EXEC_EV_SESSIONS };

	ev.n = sessions_list(s->sessions, s->now, there);
	ev.data_len = ev.n * (uint32_t)sizeof(there[0]);
	tell_event(&s->tell, &ev, there);
}

/* ---- ends -------------------------------------------------------------------------------------- */

static void end_run(struct serve *s, struct run *r, enum onebit_code code, uint64_t detail,
		    uint32_t cached)
{
	struct exec_event ev = r->of;

	ev.kind = EXEC_EV_END;
	ev.code = (uint16_t)code;
	ev.detail = detail;
	ev.cached_tokens = cached;
	if (r->session) {
		session_end(r->session, code == ONEBIT_E_OK, s->now);
		keep(s, r->session);
	}
	r->on = false;
	s->untold = true;
	tell_event(&s->tell, &ev, NULL);
}

static uint32_t blocks_of(uint64_t positions)
{
	return (uint32_t)((positions + KV_BLOCK - 1) / KV_BLOCK);
}

/* What engine_start() refused. */
static void end_refused(struct serve *s, struct run *r, int err)
{
	switch (err) {
	case -EMSGSIZE:
		return end_run(s, r, ONEBIT_E_CONTEXT_FULL, s->facts->positions, 0);
	case -ENOBUFS:
		return end_run(s, r, ONEBIT_E_KV_FULL, blocks_of(r->of.prompt_tokens + 1ull), 0);
	default:
		return end_run(s, r, ONEBIT_E_EXECUTOR, (uint64_t)-err, 0);
	}
}

/* ---- what the engine says ---------------------------------------------------------------------- */

static struct run *moved(struct serve *s, uint32_t slot)
{
	s->runs[slot].event_ns = s->now;
	return &s->runs[slot];
}

static void on_token(void *ctx, const struct engine_token *t)
{
	struct serve *s = ctx;
	struct tokenizer_token own;
	struct engine_token scored;
	struct run *r = moved(s, t->slot);
	uint8_t finish = t->finish == ENGINE_STOP ? ONEBIT_FINISH_STOP :
			 t->finish == ENGINE_LENGTH ? ONEBIT_FINISH_LENGTH : ONEBIT_FINISH_NONE;

	if (r->op == ONEBIT_OP_SCORE) {
		if (t->index < r->first)
			return;
		/* The text that was to be scored is at its end. */
		finish = t->index + 1 == r->of.prompt_tokens ? ONEBIT_FINISH_STOP : ONEBIT_FINISH_NONE;
		own = tokenizer_token(s->facts->tokenizer, t->token);
		scored = *t;
		scored.text = (const char *)own.text; /* each by itself, as the likeliest ones have it */
		scored.text_len = own.len;
		t = &scored;
	}
	if (r->session && t->choice == 0)
		session_add(r->session, s->facts->positions, &t->token, 1);
	r->n_tokens++;
	tell_token(&s->tell, &r->of, t, finish);
}

static void on_replayed(void *ctx, uint32_t slot, uint32_t choice, uint32_t index, uint32_t token)
{
	struct serve *s = ctx;
	struct exec_event ev = moved(s, slot)->of;

	ev.kind = EXEC_EV_REPLAYED;
	ev.choice = (uint16_t)choice;
	ev.first = index;
	ev.detail = token;
	tell_event(&s->tell, &ev, NULL);
}

static void on_vector(void *ctx, uint32_t slot, const float *v, uint32_t n)
{
	struct serve *s = ctx;

	tell_data(&s->tell, &moved(s, slot)->of, v, n * sizeof(*v));
}

static void on_progress(void *ctx, uint32_t slot, uint32_t prompt_tokens)
{
	struct serve *s = ctx;

	s->runs[slot].prompt_done = prompt_tokens;
}

static void on_end(void *ctx, const struct engine_end *end)
{
	struct serve *s = ctx;
	struct run *r = &s->runs[end->slot];

	switch (end->err) {
	case 0:
		return end_run(s, r, ONEBIT_E_OK, 0, end->cached_tokens);
	case -EDOM:
		return end_run(s, r, ONEBIT_E_NUMERIC, end->index, end->cached_tokens);
	case -ENOBUFS:
		return end_run(s, r, ONEBIT_E_KV_FULL,
			       blocks_of(r->of.prompt_tokens + r->n_tokens + 1), end->cached_tokens);
	default:
		return end_run(s, r, ONEBIT_E_EXECUTOR, (uint64_t)-end->err, end->cached_tokens);
	}
}

/* ---- commands ---------------------------------------------------------------------------------- */

static void tokenize(struct serve *s, struct run *r, const struct journal_entry *j)
{
	enum onebit_code code;
	const uint32_t *ids;
	uint64_t detail = 0;
	size_t n;

	code = requests_tokens(s->requests, j, &ids, &n, &detail);
	if (code == ONEBIT_E_OK)
		tell_data(&s->tell, &r->of, ids, n * sizeof(*ids));
	end_run(s, r, code, detail, 0);
}

/* Text of many tokens, an event's worth at a time. */
struct text {
	struct serve *s;
	const struct exec_event *of;
	uint32_t n;
	char bytes[EXEC_EVENT_DATA_MAX / 8];
};

static void put_text(void *ctx, const char *text, size_t len)
{
	struct text *t = ctx;

	if (len > sizeof(t->bytes) - t->n) {
		tell_data(&t->s->tell, t->of, t->bytes, t->n);
		t->n = 0;
	}
	memcpy(t->bytes + t->n, text, len); /* of one token: far below an event */
	t->n += (uint32_t)len;
}

static void detokenize(struct serve *s, struct run *r, const struct journal_entry *j)
{
	struct text t = { .s = s, .of = &r->of };
	enum onebit_code code;
	uint64_t detail = 0;

	t.n = 0;
	code = requests_text(s->requests, j, put_text, &t, &detail);
	if (code == ONEBIT_E_OK)
		tell_data(&s->tell, &r->of, t.bytes, t.n);
	end_run(s, r, code, detail, 0);
}

/* Everything was delivered before the death but the end. */
static bool is_finished(const struct journal_entry *j)
{
	for (uint32_t c = 0; c < j->params.n_choices; c++)
		if (!j->done[c].finish)
			return false;
	return true;
}

static struct kv_principal principal_of(const struct journal_entry *j)
{
	return (struct kv_principal){ .tenant = j->tenant, .uid = j->uid };
}

/*
 * The session that an entry names. Sessions end with their executor, and an answer that began with one
 * cannot go on without it.
 */
static enum onebit_code find_session(struct serve *s, const struct journal_entry *j,
				     struct session **out, uint64_t *detail)
{
	*detail = j->params.session;
	*out = sessions_find(s->sessions, j->params.session, principal_of(j));
	if (!*out)
		return j->done[0].n || j->params.n_resume ? ONEBIT_E_LOST : ONEBIT_E_NOT_FOUND;
	return (*out)->busy ? ONEBIT_E_SESSION_BUSY : ONEBIT_E_OK;
}

/* OPEN, FORK, CLOSE. The new session's handle is the request's id. */
static void session(struct serve *s, struct run *r, const struct journal_entry *j)
{
	struct session *from = NULL, *made;
	enum onebit_code code = ONEBIT_E_OK;
	uint64_t detail = 0;

	if (r->op != ONEBIT_OP_SESSION_OPEN)
		code = find_session(s, j, &from, &detail);
	if (code != ONEBIT_E_OK)
		return end_run(s, r, code, detail, 0);
	if (r->op == ONEBIT_OP_SESSION_CLOSE) {
		sessions_close(from);
		keep(s, from);
		return end_run(s, r, ONEBIT_E_OK, 0, 0);
	}
	if (from)
		from->busy = true; /* not the one that makes room for its own fork */
	made = sessions_open(s->sessions, j->request_id, principal_of(j), s->now);
	if (from)
		from->busy = false;
	if (!made)
		return end_run(s, r, ONEBIT_E_SESSIONS_FULL, EXEC_SESSIONS_MAX, 0);
	if (from) {
		session_begin(made, true);
		session_add(made, s->facts->positions, from->tokens, from->n);
		session_end(made, true, s->now);
	}
	keep(s, made);
	end_run(s, r, ONEBIT_E_OK, made->handle, 0);
}

static void start(struct serve *s, struct run *r, const struct journal_entry *j)
{
	struct session *with = NULL;
	struct engine_request q;
	enum onebit_code code;
	uint64_t detail = 0;
	char why[160];
	int err;

	code = j->params.session ? find_session(s, j, &with, &detail) : ONEBIT_E_OK;
	if (code == ONEBIT_E_OK)
		code = requests_read(s->requests, j, with, &q, &detail);
	if (code != ONEBIT_E_OK)
		return end_run(s, r, code, detail, 0);
	r->of.prompt_tokens = q.n_prompt;
	if (r->op != ONEBIT_OP_EMBED && is_finished(j))
		return end_run(s, r, ONEBIT_E_OK, 0, 0);
	if (r->op == ONEBIT_OP_SCORE) {
		r->first = q.done[0].n;
		if (r->first >= q.n_prompt) /* the last comes with its finish, always */
			return end_run(s, r, ONEBIT_E_EXECUTOR, EPROTO, 0);
		if (r->first)
			on_replayed(s, r->of.slot, 0, r->first - 1, q.prompt[r->first - 1]);
		q.done = NULL;
	}
	err = engine_start(s->g, r->of.slot, &q, why, sizeof(why));
	if (err)
		return end_refused(s, r, err);
	s->busy = true;
	r->session = with;
	if (with) {
		bool append = j->params.flags & ONEBIT_PARAM_APPEND;
		uint32_t said = append ? with->n : 0;

		session_begin(with, append);
		session_add(with, s->facts->positions, q.prompt + said, q.n_prompt - said);
		if (q.done)
			session_add(with, s->facts->positions, q.done[0].tokens, q.done[0].n);
	}
}

static int take_run(struct serve *s, const struct exec_cmd *cmd)
{
	struct run *r;

	if (cmd->slot >= s->facts->slots || s->runs[cmd->slot].on || cmd->op >= ONEBIT_OP_COUNT ||
	    !(s->hello.ops >> cmd->op & 1))
		return -EPROTO;
	r = &s->runs[cmd->slot];
	*r = (struct run){
		.on = true, .op = cmd->op, .of = { .slot = cmd->slot, .tag = cmd->tag },
		.event_ns = s->now,
	};
	switch (cmd->op) {
	case ONEBIT_OP_TOKENIZE:
		tokenize(s, r, executor_entry(s->e, cmd));
		break;
	case ONEBIT_OP_DETOKENIZE:
		detokenize(s, r, executor_entry(s->e, cmd));
		break;
	case ONEBIT_OP_SESSION_OPEN:
	case ONEBIT_OP_SESSION_FORK:
	case ONEBIT_OP_SESSION_CLOSE:
		session(s, r, executor_entry(s->e, cmd));
		break;
	default:
		start(s, r, executor_entry(s->e, cmd));
	}
	return 0;
}

static int take_command(struct serve *s, const struct exec_cmd *cmd)
{
	struct run *r;

	switch (cmd->kind) {
	case EXEC_CMD_RUN:
		return take_run(s, cmd);
	case EXEC_CMD_CANCEL:
		if (cmd->slot >= s->facts->slots)
			return -EPROTO;
		r = &s->runs[cmd->slot];
		if (!r->on || r->of.tag != cmd->tag)
			return 0; /* its end is on the way already */
		engine_cancel(s->g, cmd->slot);
		end_run(s, r, ONEBIT_E_CANCELLED, r->n_tokens, 0);
		return 0;
	case EXEC_CMD_STOP:
		return SERVE_STOP;
	default:
		return -EPROTO;
	}
}

static int take_commands(struct serve *s, char *why, size_t why_len)
{
	struct exec_cmd cmd;
	int ret = 0;

	while (!ret && executor_next(s->e, &cmd))
		ret = take_command(s, &cmd);
	if (ret == -EPROTO)
		snprintf(why, why_len, "the broker sent command %u, operation %u, for slot %u, which makes "
			 "no sense now; install onebitd and onebit-executor of one version", cmd.kind,
			 cmd.op, cmd.slot);
	return ret;
}

/* ---- turns ------------------------------------------------------------------------------------- */

static void greet(struct serve *s)
{
	struct exec_event ev = { .kind = EXEC_EV_HELLO, .data_len = sizeof(s->hello) };

	tell_event(&s->tell, &ev, &s->hello);
	tell_statistics(&s->tell, s->g);
	tell_kick(&s->tell);
	s->greeted = true;
}

static void say_alive(struct serve *s)
{
	for (uint32_t i = 0; i < s->facts->slots; i++) {
		struct run *r = &s->runs[i];
		struct exec_event ev = r->of;

		if (!r->on || s->now - r->event_ns < ALIVE_NS)
			continue;
		ev.kind = EXEC_EV_PROGRESS;
		ev.n = r->prompt_done;
		r->event_ns = s->now;
		tell_event(&s->tell, &ev, NULL);
	}
}

static int step(struct serve *s, char *why, size_t why_len)
{
	const struct engine_sink sink = {
		.ctx = s, .token = on_token, .replayed = on_replayed, .vector = on_vector,
		.progress = on_progress, .end = on_end,
	};
	int ret = engine_step(s->g, &sink, why, why_len);

	if (ret < 0) {
		tell_fault(&s->tell, why);
		return ret;
	}
	s->busy = ret;
	s->untold = true;
	s->now = clock_ns();
	say_alive(s);
	return 0;
}

int serve_turn(struct serve *s, char *why, size_t why_len)
{
	int ret;

	s->now = clock_ns();
	if (!s->greeted)
		greet(s);
	ret = take_commands(s, why, why_len);
	if (!ret && s->busy)
		ret = step(s, why, why_len);
	if (ret < 0)
		return ret;
	tell_kick(&s->tell);
	/* Nobody waits for these, so they come behind what somebody does. */
	if (s->untold && s->now - s->statistics_ns >= STATISTICS_NS) {
		tell_statistics(&s->tell, s->g);
		tell_sessions(s);
		tell_kick(&s->tell);
		s->statistics_ns = s->now;
		s->untold = false;
	}
	return ret ? ret : s->busy ? SERVE_MORE : SERVE_IDLE;
}

int serve_run(struct serve *s, char *why, size_t why_len)
{
	int ret;

	while ((ret = serve_turn(s, why, why_len)) != SERVE_STOP) {
		if (ret < 0)
			return ret;
		/* Once more for the statistics, then for as long as it takes. */
		if (ret == SERVE_IDLE)
			executor_wait(s->e, s->untold ? (int64_t)STATISTICS_NS : -1);
	}
	return 0;
}

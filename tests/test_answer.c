/* SPDX-License-Identifier: MIT */
/*
 * The whole way: client, daemon, onebit-executor, a model. What would break: answers that change when an
 * executor dies, operations that do not agree with each other about one model, a daemon that falls with
 * its executor, a model that is refused without a reason.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "lib_e2e.h"
#include "lib_tiny.h"
#include "lib_write_obm.h"
#include "packed.h"

enum { TOKENS_MAX = 64, CHOICES = 4, STREAMS = 16 };

/* ---- a model and its daemon ---------------------------------------------------------------------- */

static void write_file(const char *path, const void *data, size_t len, int flags)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | flags, 0644);

	must(fd >= 0 && write(fd, data, len) == (ssize_t)len, "%s: %s", path, strerror(errno));
	close(fd);
}

/* A small model of random weights, in the daemon's directory. */
static uint8_t *tiny_model(size_t *bytes)
{
	const struct write_obm o = {
		.linear = PACKED_BASE3, .table = PACKED_INT8, .activation = OBM_ACT_RELU2,
		.info = "name: tiny\n",
	};
	struct tiny t;
	uint8_t *file;

	tiny_default(&t, 11);
	t.context = 256;
	tiny_fill(&t);
	file = write_obm(&t, &o, bytes);
	tiny_free(&t);
	return file;
}

/* model: bytes of it, or NULL and a path; executor: options, NULL for the daemon's own choice. */
static void start(struct e2e *d, const void *model, size_t bytes, const char *path,
		  const char *executor)
{
	const char *tmp = getenv("TMPDIR");
	char text[1024], own[128];

	memset(d, 0, sizeof(*d));
	snprintf(d->dir, sizeof(d->dir), "%s/onebit-e2e-XXXXXX",
		 tmp && *tmp && strlen(tmp) < 60 ? tmp : "/tmp");
	must(mkdtemp(d->dir) && !chmod(d->dir, 0755), "%s: %s", d->dir, strerror(errno));
	snprintf(d->socket, sizeof(d->socket), "%s/s", d->dir);
	snprintf(own, sizeof(own), "%s/model", d->dir);
	if (model)
		write_file(own, model, bytes, 0);
	snprintf(text, sizeof(text), "socket = %s\nmodel = %s\n%s%s%s%s\n", d->socket,
		 model ? own : path, executor ? "executor = ./onebit-executor " : "",
		 executor ? executor : "", executor && !e2e_has_sandbox() ? " --no-sandbox" : "",
		 e2e_has_sandbox() ? "" : "\nsandbox = off");
	e2e_write(d, "conf", text);
	e2e_again(d);
}

static void start_tiny(struct e2e *d, const char *executor)
{
	size_t bytes;
	uint8_t *model = tiny_model(&bytes);

	start(d, model, bytes, NULL, executor);
	free(model);
}

static pid_t executor_of(const struct e2e *d)
{
	DIR *proc = opendir("/proc");
	struct dirent *e;
	pid_t found = 0;

	must(proc, "/proc: %s", strerror(errno));
	while (!found && (e = readdir(proc))) {
		char path[300], buf[256], *end, state;
		ssize_t n = -1;
		int fd, ppid;

		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			n = read(fd, buf, sizeof(buf) - 1);
			close(fd);
		}
		if (n <= 0)
			continue;
		buf[n] = 0;
		end = strrchr(buf, ')');
		if (end && sscanf(end + 1, " %c %d", &state, &ppid) == 2 && ppid == d->pid &&
		    !strchr("ZX", state) && strstr(buf, "(onebit-executor)"))
			found = (pid_t)strtol(e->d_name, NULL, 10);
	}
	closedir(proc);
	return found;
}

static bool log_has(const struct e2e *d, const char *what)
{
	static char text[1 << 18];
	char path[128];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/log", d->dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	must(fd >= 0, "%s: %s", path, strerror(errno));
	n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	return strstr(text, what);
}

/* ---- asking -------------------------------------------------------------------------------------- */

struct stream {
	uint64_t id;
	bool ended;
	struct onebit_error error;
	uint32_t prompt_tokens, cached_tokens, replays;
	uint32_t n[CHOICES];
	uint8_t finish[CHOICES];
	uint32_t ids[CHOICES][TOKENS_MAX];
	uint32_t logprob[CHOICES][TOKENS_MAX]; /* binary32 bits; 0 where there is none */
	uint32_t top[CHOICES][TOKENS_MAX], top_logprob[CHOICES][TOKENS_MAX]; /* the first */
	uint32_t len[CHOICES]; /* of text, which may have zeroes in it */
	char text[CHOICES][2048];
	uint8_t data[8192];
	size_t n_data;
};

static void take(struct stream *s, const struct onebit_event *ev)
{
	const struct onebit_record *rec = ev->records;
	uint32_t c = ev->choice;

	must(!s->ended, "an event after the end");
	if (ev->type == ONEBIT_EV_TOKENS) {
		must(c < CHOICES && ev->first == s->n[c] && s->n[c] + ev->n <= TOKENS_MAX,
		     "tokens %u to %u of choice %u", ev->first, ev->first + ev->n, c);
		for (uint32_t i = 0; i < ev->n; i++, rec = onebit_record_next(rec)) {
			const struct onebit_top *top = (const void *)(rec + 1);

			if (rec->flags & ONEBIT_REC_LOGPROB)
				s->logprob[c][s->n[c]] = rec->logprob;
			if (rec->n_top) {
				s->top[c][s->n[c]] = top->token;
				s->top_logprob[c][s->n[c]] = top->logprob;
			}
			s->ids[c][s->n[c]++] = rec->token;
		}
		must(s->len[c] + ev->text_len < sizeof(s->text[c]), "%zu bytes of text",
		     s->len[c] + ev->text_len);
		if (ev->text_len)
			memcpy(s->text[c] + s->len[c], ev->text, ev->text_len);
		s->len[c] += (uint32_t)ev->text_len;
	} else if (ev->type == ONEBIT_EV_END) {
		s->ended = true;
		s->error = ev->error;
		if (ev->res >= 0 && ev->out) {
			s->prompt_tokens = ev->out->prompt_tokens;
			s->cached_tokens = ev->out->cached_tokens;
			s->replays = ev->out->replays;
			for (c = 0; c < ev->out->n_choices && c < CHOICES; c++)
				s->finish[c] = ev->choices[c].finish;
		}
		if (ev->res > 0 && ev->data) {
			must(ev->data_len <= sizeof(s->data), "%zu bytes of answer", ev->data_len);
			memcpy(s->data, ev->data, ev->data_len);
			s->n_data = ev->data_len;
		}
	}
}

static void submit(struct onebit *o, struct stream *s, const struct onebit_request *rq)
{
	struct onebit_request own = *rq;
	int ret;

	memset(s, 0, sizeof(*s));
	own.user = s;
	ret = onebit_submit(o, &own, &s->id);
	must(!ret, "submit: %d %s", ret, onebit_last_error(o)->text);
}

static bool next(struct onebit *o, int timeout_ms)
{
	struct onebit_event ev;
	int ret = onebit_next(o, &ev, timeout_ms);

	must(ret >= 0 || ret == -EINTR, "the attachment failed: %d %s", ret,
	     onebit_last_error(o)->text);
	if (ret == 1)
		take(ev.user, &ev);
	return ret == 1;
}

static void finish(struct onebit *o, const struct stream *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		while (!s[i].ended)
			must(next(o, (int)(E2E_PATIENCE_NS / 1000000)), "stream %zu does not go on after %u tokens",
			     i, s[i].n[0]);
}

static void ask(struct onebit *o, struct stream *s, const struct onebit_request *rq)
{
	submit(o, s, rq);
	finish(o, s, 1);
}

static void fine(const struct stream *s)
{
	must(s->ended && !s->error.code, "it ended %s: %s", onebit_code_name(s->error.code),
	     s->error.text);
}

static struct onebit_part raw(const char *text)
{
	return (struct onebit_part){ .role = ONEBIT_ROLE_RAW, .data = text, .len = strlen(text) };
}

static struct onebit_part token_part(const uint32_t *ids, size_t n)
{
	return (struct onebit_part){
		.role = ONEBIT_ROLE_RAW, .kind = ONEBIT_SEG_TOKENS, .data = ids, .len = n * sizeof(*ids),
	};
}

static bool same(const struct stream *a, const struct stream *b)
{
	return !memcmp(a->n, b->n, sizeof(a->n)) && !memcmp(a->len, b->len, sizeof(a->len)) &&
	       !memcmp(a->ids, b->ids, sizeof(a->ids)) &&
	       !memcmp(a->text, b->text, sizeof(a->text)) &&
	       !memcmp(a->finish, b->finish, sizeof(a->finish)) &&
	       !memcmp(a->logprob, b->logprob, sizeof(a->logprob)) &&
	       !memcmp(a->top, b->top, sizeof(a->top)) &&
	       !memcmp(a->top_logprob, b->top_logprob, sizeof(a->top_logprob));
}

/* ---- the model of this repository ---------------------------------------------------------------- */

/* Prompt in, story out, confined, by a daemon that was told nothing but the model. */
START_TEST(a_story)
{
	const struct onebit_part part = raw("Once upon a time"), chat = {
		.role = ONEBIT_ROLE_USER, .data = "Tell me a story", .len = 15,
	};
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	static struct stream s, again, back;
	struct onebit_part ids;
	char path[512];
	struct onebit *o;
	struct e2e d;

	if (!realpath("models/story.obm", path)) {
		puts("skip: models/story.obm");
		return;
	}
	start(&d, NULL, 0, path, NULL);
	o = e2e_open(&d, NULL);
	rq.params.max_tokens = 24;
	ask(o, &s, &rq);
	fine(&s);
	must(s.n[0] > 8 && strlen(s.text[0]) > 20, "the story is \"%s\"", s.text[0]);
	ask(o, &again, &rq);
	must(same(&s, &again), "once \"%s\" and once \"%s\"", s.text[0], again.text[0]);
	must(e2e_status(executor_of(&d), "Seccomp") == (e2e_has_sandbox() ? 2 : 0),
	     "the executor is not confined");

	ids = token_part(s.ids[0], s.n[0]);
	rq.op = ONEBIT_OP_DETOKENIZE;
	rq.parts = &ids;
	ask(o, &back, &rq);
	fine(&back);
	must(back.n_data == strlen(s.text[0]) && !memcmp(back.data, s.text[0], back.n_data),
	     "its tokens spell \"%.*s\"", (int)back.n_data, (const char *)back.data);

	rq.op = ONEBIT_OP_GENERATE;
	rq.parts = &chat;
	rq.params.max_tokens = 12;
	ask(o, &s, &rq);
	fine(&s);
	must(s.n[0] == 12 || s.finish[0] == ONEBIT_FINISH_STOP, "%u tokens", s.n[0]);
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* ---- deaths -------------------------------------------------------------------------------------- */

static void submit_many(struct onebit *o, struct stream *s)
{
	for (uint32_t i = 0; i < STREAMS; i++) {
		char prompt[64];
		struct onebit_part part;
		struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };

		snprintf(prompt, sizeof(prompt), "%.*s stream %u", (int)(i * 2), "a prompt of some length, not equal",
			 i);
		part = raw(prompt);
		rq.params.max_tokens = TOKENS_MAX - i % 3;
		rq.params.flags = i % 4 == 3 ? 0 : ONEBIT_PARAM_IGNORE_EOS;
		rq.params.temperature_micro = i % 2 ? 900000 : 0;
		rq.params.repetition_micro = i % 3 == 2 ? 1200000 : 0;
		rq.params.seed = i;
		rq.params.n_choices = (uint16_t)(1 + i % 3);
		if (i % 5 == 1) {
			rq.params.flags |= ONEBIT_PARAM_LOGPROBS;
			rq.params.top_logprobs = 2;
		}
		if (i == 7) {
			rq.op = ONEBIT_OP_SCORE;
			rq.params.n_choices = 1;
		}
		submit(o, &s[i], &rq);
	}
}

/* Sixteen streams and a kill -9 in their midst, three times: each goes on as if nothing had been. */
START_TEST(executors_die)
{
	static struct stream quiet[STREAMS], stormy[STREAMS];
	struct onebit_options big = { .size = sizeof(big), .arena_bytes = 1 << 20, .out_bytes = 8 << 20 };
	uint64_t rng = e2e_seed();
	uint32_t replays = 0;
	struct onebit *o;
	struct e2e d;

	start_tiny(&d, "--threads 2");
	o = e2e_open(&d, &big);
	submit_many(o, quiet);
	finish(o, quiet, STREAMS);
	for (uint32_t i = 0; i < STREAMS; i++)
		fine(&quiet[i]);
	submit_many(o, stormy);
	for (uint32_t k = 0; k < 3; k++) {
		uint32_t events = 10 + e2e_below(&rng, 60);
		pid_t pid;

		while (events-- && next(o, 1000))
			;
		pid = executor_of(&d);
		if (pid)
			kill(pid, SIGKILL);
	}
	finish(o, stormy, STREAMS);
	for (uint32_t i = 0; i < STREAMS; i++) {
		fine(&stormy[i]);
		replays += stormy[i].replays;
		must(same(&quiet[i], &stormy[i]), "stream %u differs after %u deaths: \"%s\", before \"%s\"", i,
		     stormy[i].replays, stormy[i].text[0], quiet[i].text[0]);
	}
	must(replays, "no executor died under a stream");
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* Somebody cuts the model's file off: the executor goes, the daemon stays and says why; the file comes
 * back, and so does the service. */
START_TEST(model_is_cut_off)
{
	const struct onebit_part part = raw("a prompt");
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	static struct stream before, during, after;
	uint8_t *model;
	struct onebit *o;
	char path[128];
	size_t bytes;
	struct e2e d;

	model = tiny_model(&bytes);
	start(&d, model, bytes, NULL, NULL);
	snprintf(path, sizeof(path), "%s/model", d.dir);
	o = e2e_open(&d, NULL);
	rq.params.max_tokens = 16;
	ask(o, &before, &rq);
	fine(&before);
	must(!truncate(path, 4096), "truncate: %s", strerror(errno));
	ask(o, &during, &rq);
	must(during.error.code == ONEBIT_E_EXECUTOR_DOWN, "it ended %s", onebit_code_name(during.error.code));
	must(log_has(&d, "the model file was cut off while it was served"), "the log does not say why");
	must(log_has(&d, "event=executor-exit link=0 generation=1 status=1792"), "its status is another");
	write_file(path, model, bytes, 0);
	for (int i = 0; i < 200; i++) {
		ask(o, &after, &rq);
		if (!after.error.code)
			break;
		e2e_nap(50);
	}
	fine(&after);
	must(same(&before, &after), "\"%s\" has become \"%s\"", before.text[0], after.text[0]);
	onebit_close(o);
	e2e_stop(&d);
	free(model);
}
END_TEST

/* A damaged model is not served, and both the client and the log hear of it. */
START_TEST(model_is_damaged)
{
	const struct onebit_part part = raw("a prompt");
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	static struct stream s;
	struct onebit *o;
	uint8_t *model;
	size_t bytes;
	struct e2e d;

	model = tiny_model(&bytes);
	model[bytes / 2] ^= 1;
	start(&d, model, bytes, NULL, NULL);
	free(model);
	o = e2e_open(&d, NULL);
	rq.params.max_tokens = 16;
	ask(o, &s, &rq);
	must(s.error.code == ONEBIT_E_EXECUTOR_DOWN, "it ended %s", onebit_code_name(s.error.code));
	must(log_has(&d, "onebit-executor: ") && log_has(&d, "status=768"), "the log does not say why");
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* ---- operations ---------------------------------------------------------------------------------- */

/* GENERATE, SCORE, TOKENIZE and DETOKENIZE speak of one model: to the bit. */
START_TEST(operations_agree)
{
	static const char prompt[] = "the first words of a text";
	struct onebit_part parts[2] = { raw(prompt) };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = parts, .n_parts = 1 };
	static struct stream g, s, t, w;
	uint32_t ids[TOKENS_MAX], n;
	struct onebit *o;
	struct e2e d;

	start_tiny(&d, "");
	o = e2e_open(&d, NULL);
	rq.params.flags = ONEBIT_PARAM_LOGPROBS | ONEBIT_PARAM_IGNORE_EOS;
	rq.params.top_logprobs = 1;
	rq.params.max_tokens = 20;
	ask(o, &g, &rq);
	fine(&g);

	rq = (struct onebit_request){ .op = ONEBIT_OP_TOKENIZE, .parts = parts, .n_parts = 1 };
	rq.params.flags = ONEBIT_PARAM_TEMPLATE;
	ask(o, &t, &rq);
	fine(&t);
	n = (uint32_t)t.n_data / 4;
	must(n == g.prompt_tokens && n + 20 <= TOKENS_MAX, "%u tokens, then %u", g.prompt_tokens, n);
	memcpy(ids, t.data, t.n_data);
	parts[0] = token_part(ids + 1, n - 1);
	rq.op = ONEBIT_OP_DETOKENIZE;
	ask(o, &w, &rq);
	fine(&w);
	must(w.n_data == strlen(prompt) && !memcmp(w.data, prompt, w.n_data), "\"%.*s\"", (int)w.n_data,
	     (const char *)w.data);

	memcpy(ids + n, g.ids[0], 20 * sizeof(ids[0]));
	parts[0] = token_part(ids, n + 20);
	rq.op = ONEBIT_OP_SCORE;
	rq.params.flags = ONEBIT_PARAM_LOGPROBS;
	rq.params.top_logprobs = 1;
	rq.params.max_tokens = n + 20;
	ask(o, &s, &rq);
	fine(&s);
	must(s.n[0] == n + 20 && !memcmp(s.ids[0], ids, s.n[0] * sizeof(ids[0])), "other tokens were scored");
	must(!s.logprob[0][0] && s.finish[0] == ONEBIT_FINISH_STOP, "the first has a log-probability");
	for (uint32_t i = 0; i < 20; i++) {
		must(g.logprob[0][i] == s.logprob[0][n + i], "token %u: generated %x, scored %x", i,
		     g.logprob[0][i], s.logprob[0][n + i]);
		/* Greedy: the token is the likeliest. */
		must(g.top[0][i] == g.ids[0][i] && s.top[0][n + i] == g.ids[0][i] &&
		     g.top_logprob[0][i] == g.logprob[0][i], "token %u is not the likeliest", i);
	}

	rq.params.max_tokens = n + 19;
	ask(o, &s, &rq);
	must(s.error.code == ONEBIT_E_BAD_PARAM, "it ended %s", onebit_code_name(s.error.code));
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* A vector of the model's width, of length not zero, the same each time, another for another pooling. */
START_TEST(vectors)
{
	const struct onebit_part part = raw("words of which a vector is to be made");
	struct onebit_request rq = { .op = ONEBIT_OP_EMBED, .parts = &part, .n_parts = 1 };
	static struct stream a, b, last;
	const float *v = (const void *)a.data;
	struct onebit *o;
	double sum = 0;
	struct e2e d;

	start_tiny(&d, "--threads 1");
	o = e2e_open(&d, NULL);
	ask(o, &a, &rq);
	fine(&a);
	ask(o, &b, &rq);
	rq.params.pooling = ONEBIT_POOL_LAST;
	ask(o, &last, &rq);
	fine(&last);
	must(a.n_data == 128 * 4 && last.n_data == a.n_data, "%zu bytes", a.n_data);
	for (int i = 0; i < 128; i++)
		sum += (double)v[i] * (double)v[i];
	must(isfinite(sum) && sum > 0, "its square is %g", sum);
	must(!memcmp(a.data, b.data, a.n_data), "two vectors of one text differ");
	must(memcmp(a.data, last.data, a.n_data), "both poolings give one vector");
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* Choices differ by their number only, seeds repeat, stop strings never show. */
START_TEST(choices_and_stops)
{
	const struct onebit_part part = raw("choose");
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	static struct stream s, again, cut;
	const char *stop[1];
	char piece[8] = "";
	struct onebit *o;
	struct e2e d;

	start_tiny(&d, "");
	o = e2e_open(&d, NULL);
	rq.params.n_choices = CHOICES;
	rq.params.max_tokens = 40;
	rq.params.temperature_micro = 100000000; /* random weights are sure of themselves */
	rq.params.seed = 5;
	rq.params.flags = ONEBIT_PARAM_IGNORE_EOS;
	ask(o, &s, &rq);
	fine(&s);
	ask(o, &again, &rq);
	must(same(&s, &again), "the same seed gives another answer");
	for (int c = 1; c < CHOICES; c++)
		must(memcmp(s.ids[0], s.ids[c], sizeof(s.ids[0])), "choice %d is the first again", c);
	for (int c = 0; c < CHOICES; c++)
		must(s.n[c] == 40 && s.finish[c] == ONEBIT_FINISH_LENGTH, "choice %d: %u tokens, finish %u", c,
		     s.n[c], s.finish[c]);
	rq.params.seed = 6;
	ask(o, &again, &rq);
	must(memcmp(s.ids, again.ids, sizeof(s.ids)), "another seed gives the same answer");

	/* Two ASCII bytes from the middle of an answer end it there. */
	for (size_t i = strlen(s.text[0]) / 3; s.text[0][i] && s.text[0][i + 1]; i++)
		if (s.text[0][i] > 32 && s.text[0][i + 1] > 32) {
			memcpy(piece, s.text[0] + i, 2);
			break;
		}
	must(*piece, "\"%s\" has no two letters", s.text[0]);
	stop[0] = piece;
	rq.params.seed = 5;
	rq.stops = stop;
	rq.n_stops = 1;
	ask(o, &cut, &rq);
	fine(&cut);
	must(cut.finish[0] == ONEBIT_FINISH_STOP && cut.n[0] <= 40, "finish %u", cut.finish[0]);
	must(strlen(cut.text[0]) == (size_t)(strstr(s.text[0], piece) - s.text[0]) &&
	     !memcmp(cut.text[0], s.text[0], strlen(cut.text[0])), "cut before \"%s\": \"%s\" of \"%s\"", piece,
	     cut.text[0], s.text[0]);
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* What was read once is not read again, and nobody can tell but by the count. */
START_TEST(prefixes_are_kept)
{
	static char text[161];
	struct onebit_part part;
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	static struct stream first, second, without;
	struct onebit_kv kv;
	const struct e2e_answer *a;
	struct onebit *o;
	struct e2e d;

	for (int i = 0; i < 160; i++)
		text[i] = (char)('A' + i * 7 % 53 % 26);
	part = raw(text);
	start_tiny(&d, "");
	o = e2e_open(&d, NULL);
	rq.params.max_tokens = 10;
	rq.params.flags = ONEBIT_PARAM_IGNORE_EOS;
	ask(o, &first, &rq);
	fine(&first);
	ask(o, &second, &rq);
	rq.params.flags |= ONEBIT_PARAM_NO_CACHE;
	ask(o, &without, &rq);
	must(!first.cached_tokens && second.cached_tokens >= 32 && !without.cached_tokens,
	     "%u tokens, cached %u, %u, %u", first.prompt_tokens, first.cached_tokens,
	     second.cached_tokens, without.cached_tokens);
	must(same(&first, &second) && same(&first, &without), "what is cached is seen in the answer");
	memset(&kv, 0, sizeof(kv));
	until((a = e2e_query(o, ONEBIT_QUERY_KV))->len == sizeof(kv) &&
	      (memcpy(&kv, a->data, sizeof(kv)), kv.hits > 0), "no hit is counted");
	must(kv.page_tokens == 32 && kv.pages_total && kv.tokens_reused >= 32, "%u pages of %u",
	     kv.pages_total, kv.page_tokens);
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

static uint64_t session(struct onebit *o, uint8_t op, uint64_t arg)
{
	static struct stream s;
	const struct onebit_request rq = { .op = op, .arg = arg };

	ask(o, &s, &rq);
	fine(&s);
	must(!s.error.detail == (op == ONEBIT_OP_SESSION_CLOSE), "handle %llu",
	     (unsigned long long)s.error.detail);
	return s.error.detail;
}

/*
 * A conversation in a session is the conversation in one piece, computed once; its fork goes its own way;
 * and when it is gone, with its executor or closed, that is said.
 */
START_TEST(sessions_go_on)
{
	enum { FIRST = 40, MORE = 5, ANSWER = 12 };
	uint32_t ids[FIRST + ANSWER + MORE];
	struct onebit_part part = token_part(ids, FIRST);
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	static struct stream one, two, forked, whole, gone;
	const struct e2e_answer *a;
	uint64_t mine, fork;
	struct onebit *o;
	struct e2e d;

	for (uint32_t i = 0; i < FIRST; i++)
		ids[i] = i * 7 % 250;
	start_tiny(&d, "");
	o = e2e_open(&d, NULL);
	mine = session(o, ONEBIT_OP_SESSION_OPEN, 0);
	rq.params.session = mine;
	rq.params.max_tokens = ANSWER;
	rq.params.flags = ONEBIT_PARAM_IGNORE_EOS | ONEBIT_PARAM_APPEND;
	ask(o, &one, &rq);
	fine(&one);
	fork = session(o, ONEBIT_OP_SESSION_FORK, mine);
	must(fork != mine, "the fork is the session");

	memcpy(ids + FIRST, one.ids[0], ANSWER * sizeof(*ids));
	for (uint32_t i = 0; i < MORE; i++)
		ids[FIRST + ANSWER + i] = 100 + i;
	part = token_part(ids + FIRST + ANSWER, MORE);
	ask(o, &two, &rq);
	fine(&two);
	rq.params.session = fork;
	ask(o, &forked, &rq);
	fine(&forked);
	rq.params.session = 0;
	rq.params.flags = ONEBIT_PARAM_IGNORE_EOS | ONEBIT_PARAM_NO_CACHE;
	part = token_part(ids, FIRST + ANSWER + MORE);
	ask(o, &whole, &rq);
	fine(&whole);
	must(same(&two, &whole) && same(&forked, &whole), "a session's answer is another one");
	must(two.prompt_tokens == FIRST + ANSWER + MORE && two.cached_tokens >= 32,
	     "%u tokens, %u of them kept", two.prompt_tokens, two.cached_tokens);
	until((a = e2e_query(o, ONEBIT_QUERY_SESSIONS))->len == 2 * sizeof(struct onebit_session),
	      "not two sessions are listed");

	session(o, ONEBIT_OP_SESSION_CLOSE, mine);
	rq.params.flags = ONEBIT_PARAM_APPEND;
	rq.params.session = mine;
	ask(o, &gone, &rq);
	must(gone.error.code == ONEBIT_E_NOT_FOUND, "it ended %s", onebit_code_name(gone.error.code));
	kill(executor_of(&d), SIGKILL);
	rq.params.session = fork;
	ask(o, &gone, &rq);
	must(gone.error.code == ONEBIT_E_NOT_FOUND, "it ended %s", onebit_code_name(gone.error.code));
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* An answer that nobody wants any more ends, and its slot serves others: all slots, several times. */
START_TEST(cancelled_ones_end)
{
	const struct onebit_part part = raw("go on");
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	static struct stream s[STREAMS], whole;
	struct onebit_options big = { .size = sizeof(big), .out_bytes = 8 << 20 };
	struct onebit *o;
	struct e2e d;

	start_tiny(&d, "--slots 4");
	o = e2e_open(&d, &big);
	rq.params.max_tokens = TOKENS_MAX;
	rq.params.flags = ONEBIT_PARAM_IGNORE_EOS;
	ask(o, &whole, &rq);
	fine(&whole);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < STREAMS; i++)
			submit(o, &s[i], &rq);
		for (int k = 0; k < 5 + round * 20; k++)
			next(o, 1000);
		for (int i = 0; i < STREAMS; i += 2)
			onebit_cancel(o, s[i].id);
		finish(o, s, STREAMS);
		for (int i = 0; i < STREAMS; i++) {
			if (i % 2)
				fine(&s[i]);
			must(!s[i].error.code || s[i].error.code == ONEBIT_E_CANCELLED, "it ended %s",
			     onebit_code_name(s[i].error.code));
			must(!memcmp(s[i].ids[0], whole.ids[0], s[i].n[0] * sizeof(s[i].ids[0][0])),
			     "stream %d has other tokens", i);
			must(s[i].error.code || s[i].n[0] == TOKENS_MAX, "%u tokens", s[i].n[0]);
		}
	}
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

/* Each refusal has its own name, and the executor lives on. */
START_TEST(bad_ones_are_refused)
{
	static char long_text[8000];
	const uint32_t beyond[] = { 1, 1u << 19 };
	const struct {
		struct onebit_part part;
		uint8_t op;
		unsigned code;
	} cases[] = {
		{ raw("\xff"), ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PROMPT },
		{ raw("a\xc0"), ONEBIT_OP_TOKENIZE, ONEBIT_E_BAD_PROMPT },
		{ token_part(beyond, 2), ONEBIT_OP_GENERATE, ONEBIT_E_BAD_PROMPT },
		{ token_part(beyond, 2), ONEBIT_OP_DETOKENIZE, ONEBIT_E_BAD_PROMPT },
		{ raw("text"), ONEBIT_OP_DETOKENIZE, ONEBIT_E_BAD_PROMPT },
		{ { .role = ONEBIT_ROLE_USER, .data = "a", .len = 1 }, ONEBIT_OP_GENERATE,
		  ONEBIT_E_BAD_PROMPT }, /* this model names no template */
		{ { .data = long_text, .len = sizeof(long_text) }, ONEBIT_OP_GENERATE,
		  ONEBIT_E_CONTEXT_FULL },
		{ { .data = long_text, .len = sizeof(long_text) }, ONEBIT_OP_EMBED,
		  ONEBIT_E_CONTEXT_FULL },
	};
	static struct stream s;
	struct onebit *o;
	struct e2e d;
	pid_t pid;

	for (size_t i = 0; i < sizeof(long_text); i++)
		long_text[i] = (char)('a' + i * i % 25);
	start_tiny(&d, "");
	o = e2e_open(&d, NULL);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct onebit_request rq = { .op = cases[i].op, .parts = &cases[i].part, .n_parts = 1 };

		ask(o, &s, &rq);
		must(s.error.code == cases[i].code, "case %zu ended %s: %s", i,
		     onebit_code_name(s.error.code), s.error.text);
	}
	pid = executor_of(&d);
	must(pid && log_has(&d, "generation=1") && !log_has(&d, "event=executor-exit"), "the executor died");
	onebit_close(o);
	e2e_stop(&d);
}
END_TEST

int main(void)
{
	Suite *s = e2e_suite("answer");

	e2e_add(s, a_story, 1);
	e2e_add(s, executors_die, 1);
	e2e_add(s, model_is_cut_off, 1);
	e2e_add(s, model_is_damaged, 1);
	e2e_add(s, operations_agree, 1);
	e2e_add(s, vectors, 1);
	e2e_add(s, choices_and_stops, 1);
	e2e_add(s, prefixes_are_kept, 1);
	e2e_add(s, sessions_go_on, 1);
	e2e_add(s, cancelled_ones_end, 1);
	e2e_add(s, bad_ones_are_refused, 1);
	return e2e_main(s);
}

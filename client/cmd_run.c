/* SPDX-License-Identifier: MIT */
/*
 * onebit run: one prompt, the answer as it arrives.
 *
 * The answer goes to standard output and nothing else does. A program may hand on bytes that are
 * not UTF-8 when a model says so; what we print always is, and when it is printed to a terminal it
 * has no control characters but newline and tab, so that no answer can move the cursor.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cmd_ask.h"
#include "cmd_sampling.h"

enum {
	POLL_MS = 100, /* how soon a signal that came between two waits is seen */
	TOKEN_BYTES = 32, /* of a record with its text, on average and rounded up */
	TOP_BYTES = 32,   /* of each further token that it tells of */
	TOKENS_DEFAULT = 512,
};

struct run {
	struct verb_daemon daemon;
	struct sampling sampling;
	bool json, stats, raw;
	const char *system;
	char *prompt;
	size_t prompt_len;
	bool told; /* the request has ended, and what it took stands here: */
	struct onebit_out out;
	uint64_t n_tokens, seed;
};

/* The answer of one choice on its way out. */
struct stream {
	char held[4]; /* the start of a character that has not come whole */
	int n_held;
	char *text; /* kept until the end when there is more than one choice */
	size_t len, cap;
	bool newline; /* the last byte printed */
};

static const char help[] =
	"usage: onebit run [OPTION]... PROMPT\n"
	"       onebit run [OPTION]... -        (the prompt comes from standard input)\n"
	"\n"
	"  --system TEXT     what the model is told before the prompt\n"
	"  --raw             the prompt as it is, without the model's chat template: a beginning,\n"
	"                    which the answer continues\n"
	"  --stats           afterwards say on standard error what it took, and which model it was\n"
	"  --json            one JSON object a line: events, not text\n"
	"  --logprobs N      with --json: each token's log-probability, and the N likeliest, up to 20\n"
	"\n"
	SAMPLING_HELP
	"\n"
	"Whom to ask:\n"
	VERB_DAEMON_HELP
	"\n"
	"Exit status: 0 the answer is whole, 1 it failed, 2 wrong usage, 3 no daemon,\n"
	"130 interrupted (the request is cancelled). A reader who leaves early is no error.\n";

static int read_prompt(struct run *r)
{
	size_t cap = 0, n;
	char *more;

	do {
		if (r->prompt_len == cap) {
			cap = cap ? 2 * cap : 65536;
			more = realloc(r->prompt, cap);
			if (!more)
				return verb_fail("run", STATUS_FAILED, "no memory for the prompt");
			r->prompt = more;
		}
		n = fread(r->prompt + r->prompt_len, 1, cap - r->prompt_len, stdin);
		r->prompt_len += n;
		if (r->prompt_len > ONEBIT_BLOCK_MAX)
			return verb_usage("run", "the prompt is longer than the limit of %u bytes; "
					  "shorten it", ONEBIT_BLOCK_MAX);
	} while (n);
	if (ferror(stdin))
		return verb_fail("run", STATUS_FAILED, "cannot read the prompt: %s",
				 strerror(errno));
	return STATUS_OK;
}

static int parse(struct run *r, int argc, char **argv)
{
	enum { SYSTEM = 1, RAW, STATS, JSON, HELP };
	static const struct option options[] = {
		{ "system", required_argument, NULL, SYSTEM },
		{ "raw", no_argument, NULL, RAW },
		{ "stats", no_argument, NULL, STATS },
		{ "json", no_argument, NULL, JSON },
		SAMPLING_OPTIONS,
		VERB_DAEMON_OPTIONS,
		{ "help", no_argument, NULL, HELP },
		{ NULL, 0, NULL, 0 },
	};
	int c, status;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case SYSTEM:
			r->system = optarg;
			break;
		case RAW:
			r->raw = true;
			break;
		case STATS:
			r->stats = true;
			break;
		case JSON:
			r->json = true;
			break;
		case HELP:
			fputs(help, stdout);
			exit(STATUS_OK);
		case '?':
			return verb_bad_option("run", argv);
		default:
			status = c < SAMPLING_FIRST ? verb_daemon_option(&r->daemon, "run", c) :
				 sampling_option(&r->sampling, "run", c);
			if (status)
				return status;
		}
	}
	status = verb_daemon_check(&r->daemon, "run");
	if (!status)
		status = sampling_check(&r->sampling, "run");
	if (status)
		return status;
	if (r->raw && r->system)
		return verb_usage("run", "--raw and --system exclude each other: without the template "
				  "there are no roles; drop one");
	if (!r->json && r->sampling.params.flags & ONEBIT_PARAM_LOGPROBS)
		return verb_usage("run", "--logprobs shows in JSON only; add --json");
	if (optind == argc)
		return verb_usage("run", "no prompt; give one, or - to read it from standard input");
	if (argc - optind > 1)
		return verb_usage("run", "%d arguments where one prompt is expected; quote it",
				  argc - optind);
	if (!strcmp(argv[optind], "-")) {
		status = read_prompt(r);
		if (status)
			return status;
	} else {
		r->prompt = strdup(argv[optind]);
		if (!r->prompt)
			return verb_fail("run", STATUS_FAILED, "no memory for the prompt");
		r->prompt_len = strlen(r->prompt);
	}
	if (!r->prompt_len)
		return verb_usage("run", "the prompt is empty; give it some text");
	return STATUS_OK;
}

/* ---- output -------------------------------------------------------------------------------- */

static bool is_control(const char *s, int n, bool terminal)
{
	unsigned char c = (unsigned char)s[0];

	if (!terminal)
		return false;
	if (n == 1)
		return (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f;
	/* U+0080..U+009F: a terminal may take them for escape sequences as well. */
	return n == 2 && c == 0xc2 && (unsigned char)s[1] < 0xa0;
}

static void put(struct stream *s, const char *text, size_t len)
{
	fwrite(text, 1, len, stdout);
	s->newline = len && text[len - 1] == '\n';
}

/* Print text, of which a last character that is not whole yet is held back. */
static void stream_text(struct stream *s, const char *text, size_t len, bool terminal)
{
	static const char replacement[] = "\xef\xbf\xbd";
	char whole[4];

	while (len || s->n_held) {
		const char *at = text;
		size_t avail = len;
		int held = s->n_held, n;

		if (held) {
			/* What is held and what follows, as far as one character can reach. */
			memcpy(whole, s->held, (size_t)held);
			avail = (size_t)held;
			for (size_t i = 0; i < len && avail < sizeof(whole); i++)
				whole[avail++] = text[i];
			at = whole;
		}
		n = verb_utf8(at, avail);
		if (!n) {
			memcpy(s->held, at, avail);
			s->n_held = (int)avail;
			return;
		}
		if (n < 0) {
			put(s, replacement, sizeof(replacement) - 1);
			n = 1;
		} else if (is_control(at, n, terminal)) {
			put(s, replacement, sizeof(replacement) - 1);
		} else {
			put(s, at, (size_t)n);
		}
		/* The bytes used are the held ones first. */
		if (n < held) {
			memmove(s->held, s->held + n, (size_t)(held - n));
			s->n_held = held - n;
		} else {
			s->n_held = 0;
			text += n - held;
			len -= (size_t)(n - held);
		}
	}
}

static void stream_end(struct stream *s)
{
	if (s->n_held)
		put(s, "\xef\xbf\xbd", 3);
	s->n_held = 0;
	if (!s->newline)
		putchar('\n');
}

static bool stream_keep(struct stream *s, const char *text, size_t len)
{
	if (!len)
		return true;
	if (s->len + len > s->cap) {
		size_t cap = 2 * (s->len + len);
		char *more = realloc(s->text, cap);

		if (!more)
			return false;
		s->text = more;
		s->cap = cap;
	}
	memcpy(s->text + s->len, text, len);
	s->len += len;
	return true;
}

static const char *finish_name(unsigned finish)
{
	static const char *const names[ONEBIT_FINISH_COUNT] = {
		"none", "stop", "length", "cancel", "error",
	};

	return finish < ONEBIT_FINISH_COUNT ? names[finish] : "unknown";
}

static uint64_t answer_tokens(const struct onebit_event *ev)
{
	uint64_t n = 0;

	for (uint32_t i = 0; ev->out && ev->choices && i < ev->out->n_choices; i++)
		n += ev->choices[i].n_tokens;
	return n;
}

static void json_record(const struct onebit_record *rec)
{
	const struct onebit_top *top = (const struct onebit_top *)(rec + 1);

	printf("{\"id\":%u,\"text\":", rec->token);
	verb_json_string(stdout, (const char *)(top + rec->n_top), rec->text_len);
	if (rec->flags & ONEBIT_REC_LOGPROB)
		printf(",\"logprob\":%.9g", (double)ask_float(rec->logprob));
	fputs(",\"top\":[", stdout);
	for (unsigned i = 0; i < rec->n_top; i++) {
		printf("%s{\"id\":%u,\"text\":", i ? "," : "", top[i].token);
		verb_json_string(stdout, (const char *)rec + top[i].text_off, top[i].text_len);
		printf(",\"logprob\":%.9g}", (double)ask_float(top[i].logprob));
	}
	fputs("]}", stdout);
}

static void json_tokens(const struct run *r, const struct onebit_event *ev)
{
	const struct onebit_record *rec = ev->records;

	printf("{\"type\":\"tokens\",\"choice\":%u,\"first\":%u,\"n\":%u,\"text\":", ev->choice,
	       ev->first, ev->n);
	verb_json_string(stdout, ev->text, ev->text_len);
	if (r->sampling.params.flags & ONEBIT_PARAM_LOGPROBS) {
		fputs(",\"tokens\":[", stdout);
		for (uint32_t i = 0; i < ev->n; i++, rec = onebit_record_next(rec)) {
			if (i)
				putchar(',');
			json_record(rec);
		}
		putchar(']');
	}
	puts("}");
}

static void json_end(const struct onebit_event *ev, uint64_t seed)
{
	printf("{\"type\":\"end\",\"res\":%d,\"seed\":%llu", ev->res, (unsigned long long)seed);
	if (ev->out) {
		printf(",\"request_id\":%llu,\"prompt_tokens\":%u,\"cached_tokens\":%u,"
		       "\"answer_tokens\":%llu,\"queue_ms\":%.3f,\"first_ms\":%.3f,"
		       "\"total_ms\":%.3f,\"replays\":%u,\"finish\":[",
		       (unsigned long long)ev->out->request_id, ev->out->prompt_tokens,
		       ev->out->cached_tokens, (unsigned long long)answer_tokens(ev),
		       (double)ev->out->queue_ns / 1e6, (double)ev->out->first_ns / 1e6,
		       (double)ev->out->total_ns / 1e6, ev->out->replays);
		for (uint32_t i = 0; ev->choices && i < ev->out->n_choices; i++)
			printf("%s\"%s\"", i ? "," : "", finish_name(ev->choices[i].finish));
		putchar(']');
	}
	if (ev->res < 0) {
		printf(",\"code\":\"%s\",\"layer\":\"%s\",\"retryable\":%s,\"retry_after_ms\":%u,"
		       "\"error\":", onebit_code_name(ev->error.code),
		       onebit_layer_name(ev->error.layer), ev->error.retryable ? "true" : "false",
		       ev->error.retry_after_ms);
		verb_json_string(stdout, ev->error.text,
				 strnlen(ev->error.text, sizeof(ev->error.text)));
	}
	puts("}");
}

/* Pointers in the event do not outlive the next question, and there is one more to ask. */
static void keep_stats(struct run *r, const struct onebit_event *ev, uint64_t seed)
{
	if (!ev->out)
		return;
	r->out = *ev->out;
	r->n_tokens = answer_tokens(ev);
	r->seed = seed;
	r->told = true;
}

static void print_stats(const struct run *r, struct onebit *o, bool whole)
{
	struct ask a = { .verb = "run", .daemon = &r->daemon, .o = o };
	const struct onebit_out *out = &r->out;
	uint64_t span = out->total_ns - out->first_ns;
	struct onebit_model m;
	bool named;

	/* Unless another model has taken its place meanwhile. */
	named = whole && !ask_model(&a, &m) && !memcmp(m.model_id, out->model_id, sizeof(m.model_id));
	fprintf(stderr, "%u prompt tokens (%u cached), %llu answer tokens; waited %.1f ms, first token "
		"%.1f ms, all %.1f ms", out->prompt_tokens, out->cached_tokens,
		(unsigned long long)r->n_tokens, (double)out->queue_ns / 1e6,
		(double)out->first_ns / 1e6, (double)out->total_ns / 1e6);
	if (r->n_tokens > 1 && span)
		fprintf(stderr, ", %.1f tokens/s", (double)(r->n_tokens - 1) * 1e9 / (double)span);
	fprintf(stderr, "; seed %llu", (unsigned long long)r->seed);
	if (out->replays)
		fprintf(stderr, "; %u executors lost on the way", out->replays);
	if (named)
		fprintf(stderr, "; %s by %.*s", m.name, (int)sizeof(m.backend), m.backend);
	fputc('\n', stderr);
}

/* ---- the request --------------------------------------------------------------------------- */

static int ended(struct run *r, const struct onebit_event *ev, uint64_t seed,
		 struct stream *streams, uint32_t n_choices, bool cancelled)
{
	bool terminal = isatty(STDOUT_FILENO);

	if (r->json) {
		json_end(ev, seed);
	} else {
		for (uint32_t c = 0; c < n_choices; c++) {
			struct stream *s = &streams[c];

			if (n_choices > 1) {
				printf("%s--- choice %u ---\n", c ? "\n" : "", c);
				stream_text(s, s->text, s->len, terminal);
			}
			if (ev->res >= 0 || s->newline || s->n_held || s->len)
				stream_end(s);
		}
	}
	fflush(stdout);
	keep_stats(r, ev, seed);
	if (ev->res >= 0)
		return STATUS_OK;
	if (cancelled && ev->res == -ECANCELED)
		return verb_interrupted() ? STATUS_INTERRUPTED : STATUS_OK;
	verb_fail("run", STATUS_FAILED, "%s [%s, %s]", ev->error.text,
		  onebit_code_name(ev->error.code), onebit_layer_name(ev->error.layer));
	sampling_explain("run", &ev->error);
	if (ev->error.retryable && ev->error.retry_after_ms)
		fprintf(stderr, "onebit run: retrying may help after %u ms\n",
			ev->error.retry_after_ms);
	return ev->res == -ECONNRESET ? STATUS_NO_DAEMON : STATUS_FAILED;
}

static int answer(struct run *r, struct onebit *o, uint64_t id, struct stream *streams,
		  uint32_t n_choices)
{
	uint64_t seed = onebit_seed(o, id);
	bool terminal = isatty(STDOUT_FILENO), cancelled = false, gone = false;
	struct onebit_event ev;
	int ret;

	for (;;) {
		if ((verb_interrupted() || gone) && !cancelled) {
			onebit_cancel(o, id);
			cancelled = true;
		}
		if (verb_interrupted() > 1)
			return STATUS_INTERRUPTED; /* they mean it: do not wait for the daemon */
		ret = onebit_next(o, &ev, POLL_MS);
		if (!ret || ret == -EINTR)
			continue;
		if (ret < 0)
			return verb_fail("run", STATUS_NO_DAEMON,
					 "the daemon at %s went away: %s; look whether it runs, then "
					 "ask again", verb_socket(r->daemon.socket), strerror(-ret));
		if (ev.type == ONEBIT_EV_END)
			return ended(r, &ev, seed, streams, n_choices, cancelled);
		if (ev.type != ONEBIT_EV_TOKENS || gone || ev.choice >= n_choices)
			continue;
		if (r->json)
			json_tokens(r, &ev);
		else if (n_choices == 1)
			stream_text(&streams[0], ev.text, ev.text_len, terminal);
		else if (!stream_keep(&streams[ev.choice], ev.text, ev.text_len))
			return verb_fail("run", STATUS_FAILED, "no memory for the answer");
		if (fflush(stdout) == EOF) {
			if (errno != EPIPE)
				return verb_fail("run", STATUS_FAILED, "cannot write the answer: %s",
						 strerror(errno));
			gone = true; /* nobody reads: stop the model's work and end quietly */
		}
	}
}

static int ask(struct run *r)
{
	struct onebit_options options = { .size = sizeof(options), .socket = r->daemon.socket };
	struct onebit_part parts[] = {
		{
			.role = ONEBIT_ROLE_SYSTEM,
			.kind = ONEBIT_SEG_TEXT,
			.data = r->system,
			.len = r->system ? strlen(r->system) : 0,
		},
		{
			.role = r->raw ? ONEBIT_ROLE_RAW : ONEBIT_ROLE_USER,
			.kind = ONEBIT_SEG_TEXT,
			.data = r->prompt,
			.len = r->prompt_len,
		},
	};
	struct onebit_request rq = {
		.op = ONEBIT_OP_GENERATE,
		.parts = r->system ? parts : parts + 1,
		.n_parts = r->system ? 2 : 1,
	};
	struct stream streams[ONEBIT_CHOICES_MAX] = { 0 };
	const struct onebit_params *p = &r->sampling.params;
	uint32_t n_choices = p->n_choices ? p->n_choices : 1;
	struct onebit_error err = { 0 };
	struct onebit *o = NULL;
	uint64_t id, need, out;
	int ret, status;

	sampling_fill(&r->sampling, &rq);
	/* Prompt and tables must fit into the arena, the records of every choice into the out area. */
	need = (parts[0].len + r->prompt_len + 65536 + 4095) & ~4095ull;
	if (need > ONEBIT_AREA_DEFAULT)
		options.arena_bytes = (uint32_t)need;
	out = (p->max_tokens ? p->max_tokens : TOKENS_DEFAULT) *
	      (TOKEN_BYTES + (uint64_t)p->top_logprobs * TOP_BYTES);
	out = (n_choices * (out > ONEBIT_AREA_DEFAULT ? out : ONEBIT_AREA_DEFAULT) + 4095) & ~4095ull;
	options.out_bytes = out < ONEBIT_AREA_MAX ? (uint32_t)out : ONEBIT_AREA_MAX;
	ret = onebit_open(&o, &options, &err);
	if (ret < 0)
		return verb_open_failed("run", r->daemon.socket, ret, &err);
	ret = onebit_submit(o, &rq, &id);
	if (ret < 0) {
		const struct onebit_error *why = onebit_last_error(o);

		status = verb_fail("run", STATUS_FAILED, "the request could not be submitted: %s",
				   why && why->text[0] ? why->text : strerror(-ret));
	} else {
		status = answer(r, o, id, streams, n_choices);
		if (r->stats && r->told)
			print_stats(r, o, status == STATUS_OK);
	}
	for (uint32_t c = 0; c < n_choices; c++)
		free(streams[c].text);
	onebit_close(o);
	return status;
}

int cmd_run(int argc, char **argv)
{
	struct run r = { .sampling.priority = ONEBIT_PRIO_INTERACTIVE };
	int status = parse(&r, argc, argv);

	if (!status) {
		verb_catch_signals();
		status = verb_daemon_start(&r.daemon, "run");
	}
	if (!status)
		status = ask(&r);
	verb_daemon_stop(&r.daemon);
	free(r.prompt);
	return status;
}

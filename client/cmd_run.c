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
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cmd_daemon.h"
#include "cmd_verb.h"

enum {
	POLL_MS = 100, /* how soon a signal that came between two waits is seen */
	TEMPERATURE_MAX = 100,
	TOKEN_BYTES = 32, /* of a record with its text, on average and rounded up */
};

struct run {
	struct verb_daemon daemon;
	bool json, stats;
	struct onebit_params params;
	bool seeded;
	char *prompt;
	size_t prompt_len;
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
	"  --max-tokens N    end after N tokens (0: the daemon's default)\n"
	"  --seed N          the same seed gives the same answer (default: a random one)\n"
	"  --temperature X   0: always the likeliest token (default)\n"
	"  --choices N       so many answers, 1 to 16\n"
	"  --stats           afterwards say on standard error what it took\n"
	"  --json            one JSON object a line: events, not text\n"
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
	enum { MAX_TOKENS = 1, SEED, TEMPERATURE, CHOICES, STATS, JSON, HELP };
	static const struct option options[] = {
		{ "max-tokens", required_argument, NULL, MAX_TOKENS },
		{ "seed", required_argument, NULL, SEED },
		{ "temperature", required_argument, NULL, TEMPERATURE },
		{ "choices", required_argument, NULL, CHOICES },
		{ "stats", no_argument, NULL, STATS },
		{ "json", no_argument, NULL, JSON },
		VERB_DAEMON_OPTIONS,
		{ "help", no_argument, NULL, HELP },
		{ NULL, 0, NULL, 0 },
	};
	uint64_t n;
	double x;
	int c, status;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case MAX_TOKENS:
			if (!verb_u64(optarg, 0, ONEBIT_MAX_TOKENS, &n))
				return verb_usage("run", "--max-tokens %s is not a number from 0 "
						  "to %u", optarg, ONEBIT_MAX_TOKENS);
			r->params.max_tokens = (uint32_t)n;
			break;
		case SEED:
			if (!verb_u64(optarg, 0, UINT64_MAX, &n))
				return verb_usage("run", "--seed %s is not a number from 0 to 2^64-1",
						  optarg);
			r->params.seed = n;
			r->seeded = true;
			break;
		case TEMPERATURE:
			if (!verb_double(optarg, 0, TEMPERATURE_MAX, &x))
				return verb_usage("run", "--temperature %s is not a number from 0 to %d",
						  optarg, TEMPERATURE_MAX);
			r->params.temperature_micro = (uint32_t)lround(x * 1e6);
			break;
		case CHOICES:
			if (!verb_u64(optarg, 1, ONEBIT_CHOICES_MAX, &n))
				return verb_usage("run", "--choices %s is not a number from 1 to %u",
						  optarg, ONEBIT_CHOICES_MAX);
			r->params.n_choices = (uint16_t)n;
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
			status = verb_daemon_option(&r->daemon, "run", c);
			if (status)
				return status;
		}
	}
	status = verb_daemon_check(&r->daemon, "run");
	if (status)
		return status;
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

static void json_tokens(const struct onebit_event *ev)
{
	printf("{\"type\":\"tokens\",\"choice\":%u,\"first\":%u,\"n\":%u,\"text\":", ev->choice,
	       ev->first, ev->n);
	verb_json_string(stdout, ev->text, ev->text_len);
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

static void print_stats(const struct onebit_event *ev, uint64_t seed)
{
	uint64_t n = answer_tokens(ev), span;

	if (!ev->out)
		return;
	span = ev->out->total_ns - ev->out->first_ns;
	fprintf(stderr, "%u prompt tokens (%u cached), %llu answer tokens; waited %.1f ms, first token "
		"%.1f ms, all %.1f ms", ev->out->prompt_tokens, ev->out->cached_tokens,
		(unsigned long long)n, (double)ev->out->queue_ns / 1e6,
		(double)ev->out->first_ns / 1e6, (double)ev->out->total_ns / 1e6);
	if (n > 1 && span)
		fprintf(stderr, ", %.1f tokens/s", (double)(n - 1) * 1e9 / (double)span);
	fprintf(stderr, "; seed %llu", (unsigned long long)seed);
	if (ev->out->replays)
		fprintf(stderr, "; %u executors lost on the way", ev->out->replays);
	fputc('\n', stderr);
}

/* ---- the request --------------------------------------------------------------------------- */

static int ended(const struct run *r, const struct onebit_event *ev, uint64_t seed,
		 struct stream *streams, uint32_t n_choices, bool cancelled)
{
	/* The daemon names a field by its place; here it has the name of an option. */
	static const struct {
		size_t off;
		const char *option;
	} fields[] = {
		{ offsetof(struct onebit_params, max_tokens), "--max-tokens" },
		{ offsetof(struct onebit_params, n_choices), "--choices" },
		{ offsetof(struct onebit_params, temperature_micro), "--temperature" },
	};
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
	if (r->stats)
		print_stats(ev, seed);
	if (ev->res >= 0)
		return STATUS_OK;
	if (cancelled && ev->res == -ECANCELED)
		return verb_interrupted() ? STATUS_INTERRUPTED : STATUS_OK;
	verb_fail("run", STATUS_FAILED, "%s [%s, %s]", ev->error.text,
		  onebit_code_name(ev->error.code), onebit_layer_name(ev->error.layer));
	if (ev->error.code == ONEBIT_E_BAD_PARAM)
		for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
			if (ev->error.detail == fields[i].off)
				fprintf(stderr, "onebit run: that is %s, beyond the daemon's limit; "
					"give less\n", fields[i].option);
	if (ev->error.retryable && ev->error.retry_after_ms)
		fprintf(stderr, "onebit run: retrying may help after %u ms\n",
			ev->error.retry_after_ms);
	return ev->res == -ECONNRESET ? STATUS_NO_DAEMON : STATUS_FAILED;
}

static int answer(const struct run *r, struct onebit *o, uint64_t id, struct stream *streams,
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
			json_tokens(&ev);
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
	struct onebit_part part = {
		.role = ONEBIT_ROLE_USER,
		.kind = ONEBIT_SEG_TEXT,
		.data = r->prompt,
		.len = r->prompt_len,
	};
	struct onebit_request rq = {
		.op = ONEBIT_OP_GENERATE,
		.priority = ONEBIT_PRIO_INTERACTIVE,
		.params = r->params,
		.random_seed = !r->seeded,
		.parts = &part,
		.n_parts = 1,
	};
	struct stream streams[ONEBIT_CHOICES_MAX] = { 0 };
	uint32_t n_choices = r->params.n_choices ? r->params.n_choices : 1;
	struct onebit_error err = { 0 };
	struct onebit *o = NULL;
	uint64_t id, need, out;
	int ret, status;

	/* Prompt and tables must fit into the arena, the records of every choice into the out area. */
	need = (r->prompt_len + 65536 + 4095) & ~4095ull;
	if (need > ONEBIT_AREA_DEFAULT)
		options.arena_bytes = (uint32_t)need;
	out = (uint64_t)r->params.max_tokens * TOKEN_BYTES;
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
	}
	for (uint32_t c = 0; c < n_choices; c++)
		free(streams[c].text);
	onebit_close(o);
	return status;
}

int cmd_run(int argc, char **argv)
{
	struct run r = { 0 };
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

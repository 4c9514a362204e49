/* SPDX-License-Identifier: MIT */
/*
 * onebit bench model: how fast a model runs here, beside what the machine can do: a token of decoding
 * reads all weights once, so reading memory limits it; a long prompt multiplies each weight with many
 * rows, so the rate of multiply-adds limits that.
 *
 * Without a file a random model is made, in the shape of BitNet b1.58 2B-4T, and is gone afterwards.
 * The way from exec to the first token is measured on this program, run again.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "bench.h"
#include "bench_model.h"
#include "convert.h"
#include "float_ops.h"
#include "packed.h"
#include "tool.h"

static const char verb[] = BENCH_MODEL;

/* ---- a model of our own ---------------------------------------------------------------------- */

static int make(const struct bench_job *j, const char *path, bool replace)
{
	const struct convert_options c = { .layout = j->layout, .head = PACKED_INT8,
					   .stop = &tool_stopped };
	struct progress *p = NULL;
	struct source *s = NULL;
	struct output *out = NULL;
	uint8_t identity[32];
	char why[512];
	int err = source_open_random(&j->random, &s, why, sizeof(why));

	if (!err) {
		p = progress_new("making a model", s->file_bytes);
		err = output_new(path, replace, &out, why, sizeof(why));
	}
	if (!err)
		err = convert(s, &c, out, p, identity, why, sizeof(why));
	if (!err)
		err = output_commit(out, why, sizeof(why));
	progress_free(p);
	output_free(out);
	source_close(s);
	if (err == -EINTR)
		return STATUS_INTERRUPTED;
	return err ? tool_fail(verb, STATUS_FAILED, "%s", why) : STATUS_OK;
}

/* It has a name only until it is open; those who run after us get it as a descriptor. */
static int make_for_now(struct bench_job *j)
{
	const char *folder = getenv("TMPDIR");
	int status;

	if (snprintf(j->path, sizeof(j->path), "%s/onebit-bench-%d.obm",
		     folder && *folder ? folder : "/tmp", (int)getpid()) >= (int)sizeof(j->path))
		return tool_fail(verb, STATUS_FAILED, "the name of $TMPDIR is too long");
	status = make(j, j->path, false);
	if (status)
		return status;
	j->fd = open(j->path, O_RDONLY); /* inherited */
	if (j->fd < 0)
		status = tool_fail(verb, STATUS_FAILED, "%s: %s", j->path, strerror(errno));
	unlink(j->path);
	snprintf(j->path, sizeof(j->path), "/dev/fd/%d", j->fd);
	return status;
}

/* ---- options --------------------------------------------------------------------------------- */

static void usage(void)
{
	puts("usage: onebit bench model [FILE.obm] [OPTION]...\n\n"
	     "Runs a model in this process, beside what the machine can do. Without FILE a random one\n"
	     "is made in $TMPDIR, and is gone afterwards.\n\n"
	     "  --threads N     [as many as there are CPUs]\n"
	     "  --pin           each on a CPU of its own\n"
	     "  --ctx N         positions before those that are timed [0]\n"
	     "  --tokens N      timed in a round [32]\n"
	     "  --streams N     answers at a time, 0 to 64 [8]\n"
	     "  --prefill N     tokens of a prompt that is timed, 0: none [512]\n"
	     "  --chunk N       prompt tokens of a step [the engine's own]\n"
	     "  --kv FORM       fp16 or int8 [fp16]\n"
	     "  --sampled       draw from the whole distribution; else the likeliest token is taken\n"
	     "  --speculation   guess tokens ahead\n"
	     "  --rounds N      of everything, 1 to 101 [5]\n"
	     "  --mib N         memory that the probe of reading takes, 64 to 65536 [640]\n"
	     "  --once          only open FILE and write one token; print the milliseconds until each\n"
	     "  --json          one line of JSON\n"
	     "A model that is made:\n"
	     "  --shape S       2b (BitNet b1.58 2B-4T) or small [2b]\n"
	     "  --layout L      2bit or base3 [2bit]\n"
	     "  --flat          no token is much likelier than others\n"
	     "  --seed N        [1]\n"
	     "  --make FILE     only make it, and keep it there");
}

static bool number(const char *text, uint64_t least, uint64_t most, uint64_t *out)
{
	char *end;
	unsigned long long v;

	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno || *text < '0' || *text > '9' || *end || v < least || v > most)
		return false;
	*out = v;
	return true;
}

struct limit {
	int c;
	const char *name;
	uint64_t least, most;
};

static const struct limit limits[] = {
	{ 't', "threads", 1, 256 },	    { 'c', "ctx", 0, OBM_CONTEXT_MAX },
	{ 'n', "tokens", 1, 4096 },	    { 's', "streams", 0, 64 },
	{ 'p', "prefill", 0, OBM_CONTEXT_MAX }, { 'k', "chunk", 1, 65536 },
	{ 'r', "rounds", 1, BENCH_ROUNDS_MAX }, { 'b', "mib", 64, 65536 },
	{ 'e', "seed", 0, UINT64_MAX },
};

static int take_number(struct bench_job *j, const struct limit *l, const char *text)
{
	struct bench_engine_options *o = &j->engine;
	uint64_t v;

	if (!number(text, l->least, l->most, &v))
		return tool_usage(verb, "--%s is %llu to %llu, not \"%s\"", l->name,
				  (unsigned long long)l->least, (unsigned long long)l->most, text);
	switch (l->c) {
	case 't':
		o->threads = (unsigned)v;
		break;
	case 'c':
		o->ctx = (uint32_t)v;
		break;
	case 'n':
		o->tokens = (uint32_t)v;
		break;
	case 's':
		o->streams = (uint32_t)v;
		break;
	case 'p':
		o->prefill = (uint32_t)v;
		break;
	case 'k':
		o->chunk = (uint32_t)v;
		break;
	case 'r':
		o->rounds = (unsigned)v;
		break;
	case 'b':
		o->probe_bytes = (size_t)v << 20;
		break;
	default:
		j->random.seed = v;
	}
	return STATUS_OK;
}

/* One of two words. */
static int take_word(const char *option, const char *text, const char *const words[2],
		     const uint32_t values[2], uint32_t *out)
{
	for (int i = 0; i < 2; i++)
		if (!strcmp(text, words[i])) {
			*out = values[i];
			return STATUS_OK;
		}
	return tool_usage(verb, "--%s is %s or %s, not \"%s\"", option, words[0], words[1], text);
}

static int take(struct bench_job *j, int c, char **argv)
{
	static const char *const forms[] = { "fp16", "int8" }, *const layouts[] = { "2bit", "base3" };
	static const char *const shapes[] = { "2b", "small" };
	static const uint32_t of_form[] = { KV_F16, KV_INT8 };
	static const uint32_t of_layout[] = { PACKED_2BIT, PACKED_BASE3 }, of_shape[] = { 0, 1 };
	uint32_t shape;
	int status;

	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
		if (limits[i].c == c)
			return take_number(j, &limits[i], optarg);
	switch (c) {
	case 'v':
		return take_word("kv", optarg, forms, of_form, &j->engine.kv_form);
	case 'l':
		return take_word("layout", optarg, layouts, of_layout, &j->layout);
	case 'S':
		status = take_word("shape", optarg, shapes, of_shape, &shape);
		j->random.shape = status ? NULL : shapes[shape];
		return status;
	case 'P':
	case 'N':
		j->engine.pin = c == 'P';
		return STATUS_OK;
	case 'd':
		j->engine.sampled = true;
		return STATUS_OK;
	case 'g':
		j->engine.speculation = true;
		return STATUS_OK;
	case 'f':
		j->random.flat = true;
		return STATUS_OK;
	case 'm':
		j->make = optarg;
		return STATUS_OK;
	case 'j':
		j->json = true;
		return STATUS_OK;
	case 'o':
		j->once = true;
		return STATUS_OK;
	default:
		return tool_usage(verb, "\"%s\" is not an option that it has, or lacks its value",
				  argv[optind - 1]);
	}
}

static int parse(struct bench_job *j, int argc, char **argv, bool *help)
{
	static const struct option options[] = {
		{ "threads", required_argument, NULL, 't' },
		{ "ctx", required_argument, NULL, 'c' },
		{ "tokens", required_argument, NULL, 'n' },
		{ "streams", required_argument, NULL, 's' },
		{ "prefill", required_argument, NULL, 'p' },
		{ "chunk", required_argument, NULL, 'k' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "mib", required_argument, NULL, 'b' },
		{ "seed", required_argument, NULL, 'e' },
		{ "kv", required_argument, NULL, 'v' },
		{ "layout", required_argument, NULL, 'l' },
		{ "shape", required_argument, NULL, 'S' },
		{ "make", required_argument, NULL, 'm' },
		{ "pin", no_argument, NULL, 'P' },
		{ "no-pin", no_argument, NULL, 'N' },
		{ "sampled", no_argument, NULL, 'd' },
		{ "speculation", no_argument, NULL, 'g' },
		{ "flat", no_argument, NULL, 'f' },
		{ "json", no_argument, NULL, 'j' },
		{ "once", no_argument, NULL, 'o' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c, status;

	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		*help = c == 'h';
		if (*help)
			return STATUS_OK;
		status = take(j, c, argv);
		if (status)
			return status;
	}
	if (optind + 1 < argc)
		return tool_usage(verb, "\"%s\" is one word too many", argv[optind + 1]);
	j->file = argv[optind];
	if (j->file && (j->make || strlen(j->file) >= sizeof(j->path)))
		return tool_usage(verb, "a model is either given or made");
	if (j->once && !j->file)
		return tool_usage(verb, "--once is for a model that is there");
	return STATUS_OK;
}

/* ---- the whole ------------------------------------------------------------------------------- */

static int measure(struct bench_job *j)
{
	struct bench_engine_figures *f = malloc(sizeof(*f));
	char why[512];
	int status = STATUS_OK, err;

	if (!f)
		return tool_fail(verb, STATUS_FAILED, "there is no memory for it");
	err = bench_engine(j->path, &j->engine, f, why, sizeof(why));
	if (err == -EINTR)
		status = STATUS_INTERRUPTED;
	else if (err)
		status = tool_fail(verb, STATUS_FAILED, "%s", why);
	for (unsigned i = 0; i < j->engine.rounds && !status; i++)
		status = tool_stopped ? STATUS_INTERRUPTED : bench_start(j, i);
	if (!status) {
		bench_report(j, f);
		status = tool_end(verb, STATUS_OK);
	}
	free(f);
	return status;
}

int bench_model(int argc, char **argv)
{
	struct bench_job j = {
		.engine = { .threads = tool_threads(), .rounds = 5, .tokens = 32, .prefill = 512,
			    .streams = 8, .kv_form = KV_F16, .probe_bytes = (size_t)640 << 20 },
		.random = { .shape = "2b", .seed = 1 },
		.layout = PACKED_2BIT,
		.fd = -1,
	};
	double begin = tool_seconds();
	bool help = false;
	int status = parse(&j, argc, argv, &help);

	if (status)
		return status;
	if (help) {
		usage();
		return tool_end(verb, STATUS_OK);
	}
	tool_catch_signals(true);
	if (j.make)
		return make(&j, j.make, false);
	if (j.file)
		snprintf(j.path, sizeof(j.path), "%s", j.file);
	else
		status = make_for_now(&j);
	if (!status)
		status = j.once ? bench_once(&j, begin) : measure(&j);
	if (j.fd >= 0)
		close(j.fd);
	return status;
}

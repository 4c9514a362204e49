/* SPDX-License-Identifier: MIT */
/*
 * onebit-executor: the model, on CPUs. It inherits its end of the rings, the journal and the model file
 * from onebitd, opens the model, gives up every right that it needs no more, and serves until it is
 * told to stop. It may die at any instant; the next one goes on.
 */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "confine.h"
#include "records.h"
#include "serve.h"

#define NAME "onebit-executor"

/* Exit statuses, as onebit-executor(8) has them. */
enum {
	STATUS_STOPPED = 0,
	STATUS_USAGE = 2,
	STATUS_MODEL = 3,   /* it cannot be served */
	STATUS_MEMORY = 4,  /* or another part of the system was refused */
	STATUS_DEVICE = 5,  /* it failed while serving */
	STATUS_BROKER = 6,  /* said what makes no sense */
	STATUS_MODEL_GONE = 7, /* the file was cut off while it was served */
};

#define THREADS_MAX   1024
#define KV_MIB_MAX    (1ll << 24)
#define POSITIONS_MAX (1ll << 20) /* OBM_CONTEXT_MAX */
#define WHY_MAX       320
#define OPS (1ull << ONEBIT_OP_GENERATE | 1ull << ONEBIT_OP_TOKENIZE | \
	     1ull << ONEBIT_OP_DETOKENIZE | 1ull << ONEBIT_OP_SCORE | 1ull << ONEBIT_OP_EMBED | \
	     1ull << ONEBIT_OP_SESSION_OPEN | 1ull << ONEBIT_OP_SESSION_FORK | \
	     1ull << ONEBIT_OP_SESSION_CLOSE)
#define PARAM_FLAGS (ONEBIT_PARAM_IGNORE_EOS | ONEBIT_PARAM_NO_CACHE | ONEBIT_PARAM_LOGPROBS | \
		     ONEBIT_PARAM_TEMPLATE | ONEBIT_PARAM_NO_REPLAY | ONEBIT_PARAM_APPEND)

static const char usage[] =
	"usage: " NAME " [OPTION]...\n"
	"Runs a model on CPUs. onebitd starts it, with descriptors that it inherits; options go\n"
	"behind its path in `executor = ...` of onebitd.conf(5).\n"
	"  --threads N          workers (default: as many CPUs as it may run on)\n"
	"  --pin                each worker on a CPU of its own\n"
	"  --kv-mib N           memory for what was read and said (default: by slots)\n"
	"  --kv fp16|int8       how that is kept (default fp16)\n"
	"  --slots N            requests at a time, 1 to 64 (default 16)\n"
	"  --positions N        tokens of a prompt and its answer at most (default: the model's)\n"
	"  --no-prefix-cache    read every prompt from its beginning\n"
	"  --no-speculation     one token at a time\n"
	"  --no-sandbox         keep all rights: for debuggers and sanitizers\n"
	"  --help, --version\n";

struct options {
	struct device_cpu_options device;
	struct engine_options engine;
	bool sandbox;
};

static int fail(int status, const char *what)
{
	fprintf(stderr, NAME ": %s\n", what);
	return status;
}

/* ---- options ----------------------------------------------------------------------------------- */

static bool read_number(const char *option, const char *text, long long min, long long max,
			long long *n)
{
	char *end;

	errno = 0;
	*n = strtoll(text, &end, 10);
	if (!errno && !*end && end != text && *n >= min && *n <= max)
		return true;
	fprintf(stderr, NAME ": --%s %s: a number from %lld to %lld is needed\n", option, text, min,
		max);
	return false;
}

/* -1: go on; otherwise the exit status. */
static int read_options(struct options *o, int argc, char **argv)
{
	enum { THREADS = 1, PIN, KV_MIB, KV, SLOTS, POSITIONS, NO_PREFIXES, NO_SPECULATION,
	       NO_SANDBOX, HELP, VERSION };
	static const struct option known[] = {
		{ "threads", required_argument, NULL, THREADS },
		{ "pin", no_argument, NULL, PIN },
		{ "kv-mib", required_argument, NULL, KV_MIB },
		{ "kv", required_argument, NULL, KV },
		{ "slots", required_argument, NULL, SLOTS },
		{ "positions", required_argument, NULL, POSITIONS },
		{ "no-prefix-cache", no_argument, NULL, NO_PREFIXES },
		{ "no-speculation", no_argument, NULL, NO_SPECULATION },
		{ "no-sandbox", no_argument, NULL, NO_SANDBOX },
		{ "help", no_argument, NULL, HELP },
		{ "version", no_argument, NULL, VERSION },
		{ 0 },
	};
	long long n = 0;
	int c;

	*o = (struct options){
		.device.isa_mask = KERNELS_ANY, .engine.kv_form = KV_F16, .sandbox = true,
	};
	while ((c = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (c) {
		case THREADS:
			if (!read_number("threads", optarg, 1, THREADS_MAX, &n))
				return STATUS_USAGE;
			o->device.threads = (unsigned)n;
			break;
		case PIN:
			o->device.pin = true;
			break;
		case KV_MIB:
			if (!read_number("kv-mib", optarg, 1, KV_MIB_MAX, &n))
				return STATUS_USAGE;
			o->engine.kv_bytes = (uint64_t)n << 20;
			break;
		case KV:
			if (strcmp(optarg, "fp16") && strcmp(optarg, "int8")) {
				fprintf(stderr, NAME ": --kv %s: fp16 or int8 is needed\n", optarg);
				return STATUS_USAGE;
			}
			o->engine.kv_form = *optarg == 'i' ? KV_INT8 : KV_F16;
			break;
		case SLOTS:
			if (!read_number("slots", optarg, 1, EXEC_SLOTS_MAX, &n))
				return STATUS_USAGE;
			o->engine.slots = (uint32_t)n;
			break;
		case POSITIONS:
			if (!read_number("positions", optarg, 2, POSITIONS_MAX, &n))
				return STATUS_USAGE;
			o->engine.positions = (uint32_t)n;
			break;
		case NO_PREFIXES:
			o->engine.no_prefixes = true;
			break;
		case NO_SPECULATION:
			o->engine.no_speculation = true;
			break;
		case NO_SANDBOX:
			o->sandbox = false;
			break;
		case HELP:
			fputs(usage, stdout);
			return STATUS_STOPPED;
		case VERSION:
			puts(NAME " " ONEBIT_VERSION);
			return STATUS_STOPPED;
		default:
			fputs(NAME " --help lists the options\n", stderr);
			return STATUS_USAGE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, NAME ": unexpected argument '%s'; --help lists the options\n",
			argv[optind]);
		return STATUS_USAGE;
	}
	return -1;
}

static unsigned cpus(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) ? 1 : (unsigned)CPU_COUNT(&set);
}

/* ---- the model's file -------------------------------------------------------------------------- */

/*
 * Who cuts the file off while it is served takes weights away: the next touch of them is this signal, in
 * whichever thread. There is nothing to go on with. Only what may be called in a handler is.
 */
static void model_gone(int signal)
{
	static const char text[] = NAME ": SIGBUS: the model file was cut off while it was served; "
				   "put it back as it was, and replace models by renaming only\n";

	ssize_t told = write(STDERR_FILENO, text, sizeof(text) - 1);

	(void)signal;
	(void)told; /* or not: the status says it as well */
	_exit(STATUS_MODEL_GONE);
}

static void expect_model_gone(void)
{
	struct sigaction a = { .sa_handler = model_gone };

	sigemptyset(&a.sa_mask);
	sigaction(SIGBUS, &a, NULL);
}

/* ---- what it is -------------------------------------------------------------------------------- */

static void copy_text(char *to, size_t size, const char *from, size_t len)
{
	/* UTF-8 is cut between characters. */
	if (len >= size)
		for (len = size - 1; len && (from[len] & 0xc0) == 0x80; len--)
			;
	memcpy(to, from, len);
	to[len] = 0;
}

static struct exec_hello make_hello(const struct obm *m, const struct engine_facts *f)
{
	const char *chat = tokenizer_facts(f->tokenizer)->chat, *name;
	struct exec_hello h = {
		.version = EXEC_VERSION, .slots = f->slots, .ops = OPS, .param_flags = PARAM_FLAGS,
		.model = {
			.size = sizeof(h.model), .contract = m->header->contract,
			.vocab = f->arch->vocab, .context = f->positions, .layers = f->arch->layers,
			.width = f->arch->hidden, .slots = f->slots,
			.parameters = f->arch->n_parameters, .bytes = m->bytes,
			.bytes_per_token = f->weight_bytes,
		},
	};
	size_t len;

	memcpy(h.model.model_id, m->header->identity, sizeof(h.model.model_id));
	name = obm_info(m, "name", &len);
	if (!name) {
		name = f->arch->name;
		len = strnlen(f->arch->name, sizeof(f->arch->name));
	}
	copy_text(h.model.name, sizeof(h.model.name), name, len);
	copy_text(h.model.backend, sizeof(h.model.backend), f->backend, strlen(f->backend));
	copy_text(h.model.chat_template, sizeof(h.model.chat_template), chat, strlen(chat));
	return h;
}

static double mib(uint64_t bytes)
{
	return (double)bytes / (1 << 20);
}

static void say_budget(const struct exec_hello *h, const struct engine_facts *f, unsigned threads,
		       const char *sandbox)
{
	fprintf(stderr, NAME ": model \"%s\" %.1f MiB, KV %.1f MiB for %u slots of at most %u positions "
		"(%" PRIu64 " bytes each), work %.1f MiB; %s, %u threads; %s\n", h->model.name,
		mib(h->model.bytes), mib(f->kv_bytes), f->slots, f->positions, f->kv_position_bytes,
		mib(f->work_bytes), f->backend, threads, sandbox);
}

/* ---- life -------------------------------------------------------------------------------------- */

static int serve_model(const struct options *o, struct executor *e, const struct obm *model,
		       struct engine *engine, unsigned threads)
{
	const struct engine_facts *f = engine_facts(engine);
	const struct exec_hello hello = make_hello(model, f);
	struct serve_options so = {
		.hello = &hello, .chat = tokenizer_facts(f->tokenizer)->chat,
	};
	char why[WHY_MAX], sandbox[160] = "sandbox off";
	struct serve *s;
	int err;

	if (!record_fits(f->tokenizer))
		return fail(STATUS_MODEL, "the model's longest token is longer than a record of the ring "
			    "can carry; convert it with a vocabulary of shorter ones");
	s = serve_new(e, engine, &so);
	if (!s)
		return fail(STATUS_MEMORY, "no memory for reading prompts; give the service more");
	/* The mappings stay. What is no longer open cannot be misused. */
	close(EXEC_FD_BROKER);
	close(EXEC_FD_EXECUTOR);
	close(EXEC_FD_JOURNAL);
	close(EXEC_FD_MODEL);
	err = o->sandbox ? confine(sandbox, sizeof(sandbox)) : 0;
	if (err) {
		serve_free(s);
		return fail(STATUS_MEMORY, sandbox);
	}
	say_budget(&hello, f, threads, sandbox);
	err = serve_run(s, why, sizeof(why));
	serve_free(s);
	if (err)
		return fail(err == -EPROTO ? STATUS_BROKER : STATUS_DEVICE, why);
	return STATUS_STOPPED;
}

static int open_and_serve(const struct options *o, struct executor *e)
{
	unsigned threads = o->device.threads ? o->device.threads : cpus();
	struct device_cpu_options dev = o->device;
	struct engine_options options = o->engine;
	struct device *device = NULL;
	struct engine *engine = NULL;
	struct obm *model = NULL;
	char why[WHY_MAX];
	int err, status;

	dev.threads = threads;
	err = obm_open(EXEC_FD_MODEL, 0, threads, &model, why, sizeof(why));
	if (!err)
		err = device_cpu_open(&dev, &device, why, sizeof(why));
	/* Plain C takes seconds for a row of a large model, and the broker wants to hear something. */
	if (!err && strstr(device->name, "scalar"))
		options.chunk = 1;
	if (!err)
		err = engine_open(device, model, &options, &engine, why, sizeof(why));
	if (err)
		status = fail(model ? STATUS_MEMORY : STATUS_MODEL, why);
	else
		status = serve_model(o, e, model, engine, threads);
	engine_close(engine);
	if (device)
		device->type->close(device);
	obm_close(model);
	return status;
}

int main(int argc, char **argv)
{
	static struct executor e;
	struct options o;
	int status = read_options(&o, argc, argv), err;

	if (status >= 0)
		return status;
	err = executor_open(&e);
	if (err == -EBADF)
		return fail(STATUS_USAGE, "this program runs a model for onebitd, which starts it with "
			    "descriptors to inherit; start onebitd with `model = FILE`, see onebitd(8)");
	if (err) {
		fprintf(stderr, NAME ": the descriptors of onebitd are of another version or cut short: "
			"%s; install both programs of one version\n", strerror(-err));
		return STATUS_USAGE;
	}
	if (lseek(EXEC_FD_MODEL, 0, SEEK_SET) < 0)
		return fail(STATUS_MODEL, "there is no model file; set `model` in onebitd.conf(5)");
	expect_model_gone();
	return open_and_serve(&o, &e);
}

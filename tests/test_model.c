/* SPDX-License-Identifier: MIT */
/*
 * `onebit model` as a person uses it: the program itself, on files of every format, written by the
 * tests' own writers. If it went wrong, a model would be refused without a reason, be another one
 * after a journey through another format, or half a file would lie where a model was expected.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_gguf.h"
#include "lib_write_h1b.h"
#include "lib_write_safetensors.h"

enum { ARGS_MAX = 24, TEXT_MAX = 1 << 16 };

static char program[512];
static char out[TEXT_MAX], err[TEXT_MAX]; /* of the last run */

static uint64_t seed(void)
{
	static uint64_t s;
	const char *given = getenv("ONEBIT_SEED");

	if (!s) {
		s = given ? strtoull(given, NULL, 0)
			  : (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
		fprintf(stderr, "test_model: ONEBIT_SEED=%llu\n", (unsigned long long)s);
		fflush(stdout);
	}
	return s;
}

static unsigned scaled(unsigned n)
{
	const char *percent = getenv("ONEBIT_SCALE");
	unsigned v = percent ? (unsigned)((uint64_t)n * strtoull(percent, NULL, 10) / 100) : n;

	return v ? v : 1;
}

/* build/onebit beside build/tests/test_model; false: it, or the tool that it becomes, is not built.
 */
static bool find_program(void)
{
	ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 32);
	char tool[600];
	char *slash;

	if (n <= 0)
		return false;
	program[n] = '\0';
	for (int i = 0; i < 2; i++) {
		slash = strrchr(program, '/');
		if (!slash)
			return false;
		*slash = '\0';
	}
	strcat(program, "/onebit");
	snprintf(tool, sizeof(tool), "%s-tool", program);
	return !access(program, X_OK) && !access(tool, X_OK);
}

static void slurp(const char *name, char *text)
{
	FILE *f = fopen(name, "re");
	size_t n;

	ck_assert_ptr_nonnull(f);
	n = fread(text, 1, TEXT_MAX - 1, f);
	text[n] = '\0';
	fclose(f);
}

/* In $TMPDIR, which is a case's own. */
static pid_t start(char **args)
{
	sigset_t set, old;
	pid_t pid;

	/* Until it is the program, a signal would run Check's handler, which ends everything. */
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, &old);
	pid = fork();
	if (pid)
		sigprocmask(SIG_SETMASK, &old, NULL);
	ck_assert_int_ge(pid, 0);
	if (pid)
		return pid;
	signal(SIGINT, SIG_DFL);
	sigprocmask(SIG_SETMASK, &old, NULL);
	if (chdir(getenv("TMPDIR")) || !freopen("out", "w", stdout) ||
	    !freopen("err", "w", stderr) || !freopen("/dev/null", "r", stdin))
		_exit(99);
	execv(program, args);
	_exit(98);
}

static int finish(pid_t pid)
{
	char path[512];
	int status;

	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	snprintf(path, sizeof(path), "%s/out", getenv("TMPDIR"));
	slurp(path, out);
	snprintf(path, sizeof(path), "%s/err", getenv("TMPDIR"));
	slurp(path, err);
	ck_assert_msg(WIFEXITED(status), "signal %d: %s", WTERMSIG(status), err);
	return WEXITSTATUS(status);
}

/* The words of a line, each given to the program as an argument. */
static void split(char *line, char **args)
{
	char *save = NULL;
	int n = 1;

	args[0] = program;
	for (char *w = strtok_r(line, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
		ck_assert_int_lt(n, ARGS_MAX - 1);
		args[n++] = w;
	}
	args[n] = NULL;
}

static int run(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int run(const char *format, ...)
{
	char line[1024], *args[ARGS_MAX];
	va_list ap;

	va_start(ap, format);
	vsnprintf(line, sizeof(line), format, ap);
	va_end(ap);
	split(line, args);
	return finish(start(args));
}

#define GOOD(...) \
	do { \
		int status_ = run(__VA_ARGS__); \
		ck_assert_msg(!status_, "%s: status %d: %s%s", #__VA_ARGS__, status_, out, err); \
	} while (0)

/* Status and words, in one line on standard error, and nothing on standard output. */
#define BAD(status, words, ...)                                                                    \
	do {                                                                                       \
		int status_ = run(__VA_ARGS__);                                                    \
		ck_assert_msg(status_ == (status), "%s: status %d: %s%s", #__VA_ARGS__, status_,   \
			      out, err);                                                           \
		ck_assert_msg(strstr(err, words) != NULL, "%s: '%s' lacks '%s'", #__VA_ARGS__,     \
			      err, words);                                                         \
		ck_assert_msg(strchr(err, '\n') == err + strlen(err) - 1, "%s: not one line: %s",  \
			      #__VA_ARGS__, err);                                                  \
		ck_assert_msg(!*out, "%s: %s", #__VA_ARGS__, out);                                 \
	} while (0)

static bool exists(const char *name)
{
	char path[512];
	struct stat st;

	snprintf(path, sizeof(path), "%s/%s", getenv("TMPDIR"), name);
	return !lstat(path, &st);
}

static const char *in_tmp(const char *name)
{
	static char path[4][512];
	static int n;

	n = (n + 1) % 4;
	snprintf(path[n], sizeof(path[n]), "%s/%s", getenv("TMPDIR"), name);
	return path[n];
}

/* Files of this test, so that each one begins with none. */
static void sweep(void)
{
	char command[600];

	snprintf(command, sizeof(command), "rm -rf '%s'/*", getenv("TMPDIR"));
	ck_assert_int_eq(system(command), 0);
}

/* ---- one model in each format -------------------------------------------------------------- */

static void save(const char *name, uint8_t *data, size_t bytes)
{
	ck_assert_ptr_nonnull(data);
	write_h1b_file(name, data, bytes);
	free(data);
}

/* hf/, m.gguf (I2_S), t.gguf (TQ2_0), v2.h1b, v4.h1b, and m.htok: all the same model. */
static void write_all(struct tiny *t)
{
	struct write_gguf g;
	uint8_t *data;
	size_t n;

	ck_assert_int_eq(mkdir(in_tmp("hf"), 0755), 0);
	hf_write(t, &hf_packed, in_tmp("hf"));
	write_gguf_default(&g);
	write_gguf_file(t, &g, in_tmp("m.gguf"));
	write_gguf_default(&g);
	g.linear = WRITE_TQ1_0;
	write_gguf_file(t, &g, in_tmp("t.gguf"));
	data = write_h1b(t, 2, 0, &n);
	save("v2.h1b", data, n);
	data = write_h1b(t, 4, 0, &n);
	save("v4.h1b", data, n);
	data = write_htok(t, 0, &n);
	save("v2.htok", data, n);
	data = write_htok(t, 0, &n);
	save("v4.htok", data, n);
	data = write_htok(t, 0, &n);
	save("m.htok", data, n);
}

static void tiny(struct tiny *t)
{
	tiny_default(t, seed());
	/* TQ1_0 has blocks of 256. */
	t->hidden = 256;
	t->ffn = 512;
	t->heads = 8;
	tiny_fill(t);
}

static void fill(void)
{
	struct tiny t;

	sweep();
	tiny(&t);
	write_all(&t);
	tiny_free(&t);
}

/* Every format in; the same model comes out of each, and each can be described. */
START_TEST(formats_in)
{
	static const char *const inputs[] = { "hf", "m.gguf", "t.gguf", "v2.h1b", "v4.h1b" };

	fill();
	for (int i = 0; i < 5; i++) {
		const char *tokenizer = i ? "" : " --tokenizer m.htok";

		GOOD("model info %s%s", inputs[i], tokenizer);
		ck_assert_msg(strstr(out, "can be served     yes, once converted"), "%s", out);
		GOOD("model convert %s -o %d.obm --chat bitnet%s", inputs[i], i, tokenizer);
		ck_assert_msg(strstr(out, "identity ") && strstr(out, "bits per weight") &&
				      strstr(out, " GB/s"),
			      "%s", out);
		GOOD("model verify %d.obm", i);
		ck_assert_msg(strstr(out, ": good: ") && strstr(out, "not signed"), "%s", out);
		GOOD("model diff 0.obm %d.obm", i);
		GOOD("model info %d.obm", i);
		ck_assert_msg(strstr(out, "can be served     yes: ") && strstr(out, "identity  "),
			      "%s", out);
	}
	/* And against the inputs themselves, whose embedding is not int8. */
	GOOD("model convert m.gguf -o half.obm --head fp16 --layout base3 --chat bitnet");
	GOOD("model diff half.obm v2.h1b --chat bitnet");
	ck_assert_int_eq(run("model diff 0.obm v2.h1b --chat bitnet"), 1);
	ck_assert_msg(strstr(out, "embed: ") && strstr(out, "; 0 codes differ, 0 scales"), "%s",
		      out);
}
END_TEST

/* Carried to peers and back: the same codes and scales, by `diff` and by the identity of what it
 * is. */
START_TEST(there_and_back)
{
	static const char *const to[] = { "gguf", "h1b", "h1b-v4" };
	static const char *const ending[] = { "gguf", "h1b", "h1b" };

	fill();
	GOOD("model convert hf --tokenizer m.htok --chat bitnet -o first.obm");
	for (int i = 0; i < 3; i++) {
		GOOD("model convert first.obm --to %s -o back%d.%s", to[i], i, ending[i]);
		GOOD("model diff first.obm back%d.%s", i, ending[i]);
		GOOD("model convert back%d.%s -o back%d.obm", i, ending[i], i);
		GOOD("model diff first.obm back%d.obm", i);
		ck_assert_msg(strstr(out, "equal: "), "%s", out);
	}
	/* Master weights are made ternary for peers, too. */
	GOOD("model diff --json first.obm back0.obm");
}
END_TEST

/* Scales that are no halves survive a format that holds halves. */
START_TEST(odd_scales_survive)
{
	struct tiny t;
	size_t n;
	uint8_t *data;

	sweep();
	tiny_default(&t, seed());
	t.hidden = 256;
	t.ffn = 512;
	t.heads = 8;
	t.half_scales = false;
	t.row_scales = true;
	tiny_fill(&t);
	data = write_h1b(&t, 2, 0, &n);
	save("m.h1b", data, n);
	data = write_htok(&t, 0, &n);
	save("m.htok", data, n);
	GOOD("model convert m.h1b --head fp16 -o m.obm");
	GOOD("model convert m.obm --to gguf -o back.gguf");
	ck_assert_msg(strstr(err, "note: "), "%s", err);
	GOOD("model diff m.h1b back.gguf --chat bitnet");
	tiny_free(&t);
}
END_TEST

/* Rows of q and k in pairs: with --qk the same model, without or with the wrong one another. */
START_TEST(pairs)
{
	struct write_gguf g;
	struct tiny t;

	sweep();
	tiny(&t);
	write_gguf_default(&g);
	write_gguf_file(&t, &g, in_tmp("split.gguf"));
	write_gguf_default(&g);
	g.pairs = true;
	write_gguf_file(&t, &g, in_tmp("pairs.gguf"));
	GOOD("model convert split.gguf --qk split -o split.obm");
	GOOD("model convert pairs.gguf --qk pairs -o pairs.obm");
	GOOD("model diff split.obm pairs.obm");
	GOOD("model convert pairs.gguf --qk split -o wrong.obm");
	ck_assert_int_eq(run("model diff split.obm wrong.obm"), 1);
	ck_assert_msg(strstr(out, "layer 0's q: ") && !strstr(out, "layer 0's v: "), "%s", out);
	tiny_free(&t);
}
END_TEST

/* bf16 masters go the same way into every format. */
START_TEST(masters)
{
	struct hf_write w = hf_packed;
	struct tiny t;
	uint8_t *data;
	size_t n;

	sweep();
	tiny(&t);
	w.form = HF_MASTERS;
	w.mode = "online";
	w.weight_dtype = "BF16";
	ck_assert_int_eq(mkdir(in_tmp("hf"), 0755), 0);
	hf_write(&t, &w, in_tmp("hf"));
	data = write_htok(&t, 0, &n);
	save("m.htok", data, n);
	GOOD("model convert hf --tokenizer m.htok --chat bitnet -o m.obm");
	GOOD("model info m.obm");
	ck_assert_msg(strstr(out, "master weights"), "%s", out);
	GOOD("model convert hf --tokenizer m.htok --chat bitnet --to h1b -o peer.h1b");
	GOOD("model convert peer.h1b -o back.obm");
	GOOD("model diff m.obm back.obm");
	tiny_free(&t);
}
END_TEST

/* ---- what is printed ----------------------------------------------------------------------- */

/* Programs read --json: it must be JSON, with the names that the manual has. */
START_TEST(json)
{
	static const char *const keys[] = { "path",	      "format",		 "architecture",
					    "parameters",     "bits_per_weight", "bytes_per_token",
					    "context",	      "tokenizer",	 "can_serve",
					    "can_serve_text", "a8_imposed" };
	json_t *o;

	fill();
	GOOD("model convert m.gguf -o m.obm");
	GOOD("model info --json m.gguf");
	o = json_loads(out, 0, NULL);
	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++)
		ck_assert_msg(json_object_get(o, keys[i]) != NULL, "%s: %s", keys[i], out);
	ck_assert_int_eq(
		json_integer_value(json_object_get(json_object_get(o, "architecture"), "hidden")),
		256);
	json_decref(o);
	GOOD("model info --json m.obm");
	o = json_loads(out, 0, NULL);
	ck_assert_int_eq((int)strlen(json_string_value(json_object_get(o, "identity"))), 64);
	json_decref(o);
	GOOD("model verify --json m.obm");
	o = json_loads(out, 0, NULL);
	ck_assert(json_is_true(json_object_get(o, "good")));
	json_decref(o);
	GOOD("model diff --json m.obm m.obm");
	o = json_loads(out, 0, NULL);
	ck_assert(json_is_true(json_object_get(o, "equal")));
	json_decref(o);
	ck_assert_int_eq(run("model diff --json m.obm v2.h1b --chat raw"), 1);
	o = json_loads(out, 0, NULL);
	ck_assert(json_is_false(json_object_get(o, "equal")));
	ck_assert_uint_gt(json_array_size(json_object_get(o, "differences")), 0);
	json_decref(o);
}
END_TEST

/* A verb without a name for its output names it, here; what is there is not replaced unasked. */
START_TEST(names)
{
	fill();
	GOOD("model convert m.gguf");
	ck_assert_msg(!strncmp(out, "m.obm: ", 7) && exists("m.obm"), "%s", out);
	BAD(1, "--force", "model convert m.gguf");
	GOOD("model convert m.gguf --force");
	GOOD("model convert hf --tokenizer m.htok");
	ck_assert(exists("hf.obm"));
	GOOD("model convert m.obm -o new.gguf");
	GOOD("model info new.gguf");
	ck_assert_msg(strstr(out, "GGUF"), "%s", out);
	BAD(1, "exists", "model convert m.obm --to gguf -o new.gguf");
	GOOD("model convert m.gguf -o n.obm --name Tiny --context 32");
	GOOD("model info n.obm");
	ck_assert_msg(strstr(out, "Tiny") && strstr(out, "32 tokens"), "%s", out);
}
END_TEST

/* ---- what is refused ----------------------------------------------------------------------- */

START_TEST(usage)
{
	fill();
	BAD(2, "no model is named", "model convert");
	BAD(2, "one model at a time", "model convert a b");
	BAD(2, "--to x", "model convert m.gguf --to x");
	BAD(2, "--layout x", "model convert m.gguf --layout x");
	BAD(2, "--head 2bit", "model convert m.gguf --head 2bit");
	BAD(2, "for --to obm", "model convert m.gguf --to gguf --head fp16");
	BAD(2, "--qk x", "model convert m.gguf --qk x");
	BAD(2, "--linear x", "model convert m.gguf --linear x");
	BAD(2, "--context 0", "model convert m.gguf --context 0");
	BAD(2, "--context -1", "model convert m.gguf --context -1");
	BAD(2, "no option", "model convert m.gguf --frobnicate");
	BAD(2, "no model is named", "model info");
	BAD(2, "no option", "model info --frobnicate m.gguf");
	BAD(2, "two models", "model diff m.gguf");
	BAD(2, "no model is named", "model verify");
	BAD(2, "-o FILE", "model keygen");
	BAD(2, "--key", "model sign m.obm");
	ck_assert_int_eq(run("model"), 2);
	ck_assert_int_eq(run("model frobnicate"), 2);
	GOOD("model --help");
	GOOD("model convert --help");
	GOOD("model info --help");
	GOOD("model verify --help");
	GOOD("model diff --help");
	GOOD("model sign --help");
	GOOD("model keygen --help");
}
END_TEST

/* Each wrong input has one line that says what is wrong, and leaves no file. */
START_TEST(bad_inputs)
{
	char *big = malloc(100000);

	ck_assert_ptr_nonnull(big);
	memset(big, 'x', 100000);
	fill();
	write_bytes(in_tmp("empty"), "", 0);
	write_bytes(in_tmp("noise"), big, 100000);
	mkdir(in_tmp("folder"), 0755);
	BAD(1, "missing: ", "model convert missing -o o.obm");
	BAD(1, "empty", "model convert empty -o o.obm");
	BAD(1, "known format", "model convert noise -o o.obm");
	BAD(1, "config.json", "model convert folder -o o.obm");
	BAD(1, "--tokenizer", "model convert hf -o o.obm");
	BAD(1, "tokenizer", "model convert m.htok -o o.obm");
	BAD(1, "--context 128", "model convert m.gguf --context 128 -o o.obm");
	BAD(1, "nowhere", "model convert m.gguf -o nowhere/o.obm");
	BAD(1, "folder", "model convert m.gguf -o folder");
	BAD(1, "empty", "model info empty");
	BAD(1, "noise", "model verify noise");
	BAD(2, "noise", "model diff noise m.gguf");
	BAD(2, "noise", "model diff m.gguf noise");
	ck_assert(!exists("o.obm") && !exists("o.htok"));
	free(big);
}
END_TEST

/* The lost byte of a good file is found. */
START_TEST(damage)
{
	char *data = malloc(8 << 20);
	uint64_t state = seed();
	size_t n;
	FILE *f;

	ck_assert_ptr_nonnull(data);
	fill();
	GOOD("model convert m.gguf -o m.obm");
	f = fopen(in_tmp("m.obm"), "re");
	ck_assert_ptr_nonnull(f);
	n = fread(data, 1, 8 << 20, f);
	fclose(f);
	for (unsigned i = 0; i < scaled(20); i++) {
		size_t at = tiny_random(&state) % n;

		data[at] ^= 0x10;
		write_bytes(in_tmp("bad.obm"), data, n);
		data[at] ^= 0x10;
		BAD(1, "bad.obm", "model verify bad.obm");
	}
	write_bytes(in_tmp("bad.obm"), data, n - 1);
	BAD(1, "bad.obm", "model verify bad.obm");
	BAD(1, "bad.obm", "model convert bad.obm -o o.obm");
	BAD(1, "bad.obm", "model info bad.obm");
	ck_assert(!exists("o.obm"));
	free(data);
}
END_TEST

/* ---- keys ---------------------------------------------------------------------------------- */

START_TEST(keys)
{
	char hex[65] = "";
	struct stat st;
	FILE *f;

	fill();
	GOOD("model convert m.gguf -o m.obm");
	GOOD("model keygen -o key");
	ck_assert(!stat(in_tmp("key"), &st) && (st.st_mode & 0777) == 0600);
	BAD(1, "key", "model keygen -o key");
	GOOD("model keygen -o other");
	BAD(1, "m.obm", "model verify m.obm --key key.pub");
	GOOD("model sign m.obm --key key");
	GOOD("model verify m.obm --key key.pub");
	ck_assert_msg(strstr(out, "signed by "), "%s", out);
	f = fopen(in_tmp("key.pub"), "re");
	ck_assert(f && fgets(hex, sizeof(hex), f));
	fclose(f);
	GOOD("model verify m.obm --key %s", hex);
	GOOD("model info m.obm");
	ck_assert_ptr_nonnull(strstr(out, hex));
	BAD(1, "m.obm", "model verify m.obm --key other.pub");
	GOOD("model sign m.obm --key other");
	GOOD("model verify m.obm --key other.pub");
	BAD(1, "no key", "model sign m.obm --key key.pub");
	BAD(1, "no key", "model verify m.obm --key m.htok");
	BAD(1, "gone", "model sign m.obm --key gone");
	BAD(1, "m.gguf", "model sign m.gguf --key key");
}
END_TEST

/* ---- what happens meanwhile ---------------------------------------------------------------- */

/* Some megabytes, so that there is a meanwhile. */
static void fill_large(void)
{
	struct write_gguf g;
	struct tiny t;

	sweep();
	tiny_default(&t, seed());
	t.hidden = 512;
	t.ffn = 4096;
	t.heads = 16;
	t.layers = 3;
	tiny_fill(&t);
	write_gguf_default(&g);
	write_gguf_file(&t, &g, in_tmp("m.gguf"));
	tiny_free(&t);
}

/* Names besides those that were there. */
static unsigned leftovers(void)
{
	DIR *d = opendir(getenv("TMPDIR"));
	struct dirent *e;
	unsigned n = 0;

	ck_assert_ptr_nonnull(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..") &&
		     strcmp(e->d_name, "out") && strcmp(e->d_name, "err") &&
		     strcmp(e->d_name, "m.gguf") && strcmp(e->d_name, "kept.gguf") &&
		     strcmp(e->d_name, "m.obm");
	closedir(d);
	return n;
}

/* ^C ends it with 130 and leaves nothing, whichever the format. */
START_TEST(interrupted)
{
	uint64_t state = seed();
	unsigned n = scaled(40), stopped = 0;

	fill_large();
	for (unsigned i = 0; i < n; i++) {
		char line[] = "model convert m.gguf -o m.obm",
		     other[] = "model convert m.gguf --to gguf -o m.obm";
		struct timespec ts = { .tv_nsec = (long)(tiny_random(&state) % 80000000) };
		char *args[ARGS_MAX];
		int status;
		pid_t pid;

		unlink(in_tmp("m.obm"));
		split(i % 4 ? line : other, args);
		pid = start(args);
		nanosleep(&ts, NULL);
		kill(pid, SIGINT);
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		/* Before the program caught it, it dies of it. */
		if (WIFSIGNALED(status) ? WTERMSIG(status) == SIGINT : WEXITSTATUS(status) == 130) {
			ck_assert(!exists("m.obm"));
			stopped++;
		} else {
			ck_assert_int_eq(status, 0);
			ck_assert(exists("m.obm"));
		}
		ck_assert_uint_eq(leftovers(), 0);
	}
	printf("interrupted: %u of %u in time\n", stopped, n);
}
END_TEST

/* The input is cut while it is read: a sentence, no crash, and no model. */
START_TEST(input_shrinks)
{
	uint64_t state = seed();
	unsigned n = scaled(40), seen = 0;
	struct stat st;

	fill_large();
	ck_assert_int_eq(rename(in_tmp("m.gguf"), in_tmp("kept.gguf")), 0);
	ck_assert_int_eq(stat(in_tmp("kept.gguf"), &st), 0);
	for (unsigned i = 0; i < n; i++) {
		char line[] = "model convert m.gguf -o m.obm", command[1200], *args[ARGS_MAX];
		struct timespec ts = { .tv_nsec = (long)(tiny_random(&state) % 60000000) };
		int status;
		pid_t pid;

		unlink(in_tmp("m.obm"));
		snprintf(command, sizeof(command), "cp '%s' '%s'", in_tmp("kept.gguf"),
			 in_tmp("m.gguf"));
		ck_assert_int_eq(system(command), 0);
		split(line, args);
		pid = start(args);
		nanosleep(&ts, NULL);
		ck_assert_int_eq(truncate(in_tmp("m.gguf"),
					  (off_t)(tiny_random(&state) % (uint64_t)st.st_size)),
				 0);
		status = finish(pid);
		ck_assert_msg(status == 0 || status == 1, "%d: %s", status, err);
		ck_assert(exists("m.obm") == !status);
		ck_assert(!status || strchr(err, '\n') == err + strlen(err) - 1);
		seen += strstr(err, "became shorter") != NULL;
		ck_assert_uint_eq(leftovers(), 0);
	}
	printf("input_shrinks: %u of %u while it was read\n", seen, n);
}
END_TEST

/* Where the tool is not installed, the client says so. */
START_TEST(no_tool)
{
	sweep();
	setenv("ONEBIT_TOOL", "/nonexistent/onebit-tool", 1);
	BAD(1, "cannot run /nonexistent/onebit-tool", "model info x");
	BAD(1, "cannot run /nonexistent/onebit-tool", "bench tokenizer");
	unsetenv("ONEBIT_TOOL");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("model");
	TCase *t = tcase_create("model");
	SRunner *r;
	int failed;

	unsetenv("ONEBIT_TOOL");
	if (!find_program()) {
		printf("%s or %s-tool is missing; build them with make\n", program, program);
		return 77;
	}
	seed();
	tmp_fixture(t);
	tcase_add_test(t, formats_in);
	tcase_add_test(t, there_and_back);
	tcase_add_test(t, odd_scales_survive);
	tcase_add_test(t, pairs);
	tcase_add_test(t, masters);
	tcase_add_test(t, json);
	tcase_add_test(t, names);
	tcase_add_test(t, usage);
	tcase_add_test(t, bad_inputs);
	tcase_add_test(t, damage);
	tcase_add_test(t, keys);
	tcase_add_test(t, interrupted);
	tcase_add_test(t, input_shrinks);
	tcase_add_test(t, no_tool);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

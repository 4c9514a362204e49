/* SPDX-License-Identifier: MIT */
/*
 * A daemon for a test, and the test's end of it. The daemon belongs to the test's process group and
 * gets SIGTERM when the test dies, so nothing outlives a test whatever becomes of it.
 */
#include "lib_e2e.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "loopback.h"

enum { DAEMONS_MAX = 4, LOG_TAIL = 6000 };

static struct e2e *daemons[DAEMONS_MAX]; /* of this process */
static bool is_worker;

/* ---- failing ----------------------------------------------------------------------------------- */

static void print_log(const struct e2e *d)
{
	char path[128], buf[LOG_TAIL + 1];
	off_t size;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "%s/log", d->dir);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	size = lseek(fd, 0, SEEK_END);
	n = pread(fd, buf, LOG_TAIL, size > LOG_TAIL ? size - LOG_TAIL : 0);
	close(fd);
	if (n > 0) {
		buf[n] = 0;
		fprintf(stderr, "the daemon's log, at the end:\n%s\n", buf);
	}
}

_Noreturn void e2e_fail(const char *file, int line, const char *cond, const char *format, ...)
{
	char text[400];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	for (int i = 0; i < DAEMONS_MAX; i++) {
		struct e2e *d = daemons[i];

		daemons[i] = NULL;
		if (!d)
			continue;
		print_log(d);
		if (d->pid)
			e2e_kill(d);
		e2e_remove(d);
	}
	fprintf(stderr, "%s:%d: %s: %s\n", file, line, cond, text);
	if (is_worker)
		_exit(1);
	ck_abort_msg("%s:%d: %s: %s (seed %llu)", file, line, cond, text,
		     (unsigned long long)e2e_seed());
	abort(); /* not reached; Check does not say so */
}

static void remember(struct e2e *d)
{
	for (int i = 0; i < DAEMONS_MAX; i++)
		if (!daemons[i]) {
			daemons[i] = d;
			return;
		}
	must(0, "more than %d daemons in one test", DAEMONS_MAX);
}

static void forget(const struct e2e *d)
{
	for (int i = 0; i < DAEMONS_MAX; i++)
		if (daemons[i] == d)
			daemons[i] = NULL;
}

/* ---- time, chance, size ------------------------------------------------------------------------ */

uint64_t e2e_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void e2e_nap(unsigned ms)
{
	struct timespec t = { .tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000l };

	nanosleep(&t, NULL);
}

uint64_t e2e_seed(void)
{
	static uint64_t seed;
	const char *text = getenv("ONEBIT_SEED");

	if (!seed)
		seed = text && *text ? strtoull(text, NULL, 0) : e2e_now() % 1000000007u;
	if (!seed)
		seed = 1;
	return seed;
}

uint64_t e2e_random(uint64_t *state)
{
	uint64_t x = *state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

uint32_t e2e_below(uint64_t *state, uint32_t n)
{
	return (uint32_t)(e2e_random(state) % n);
}

uint32_t e2e_scaled(uint32_t n)
{
	const char *text = getenv("ONEBIT_SCALE");
	unsigned long percent = text && *text ? strtoul(text, NULL, 10) : 100;
	uint64_t scaled = (uint64_t)n * percent / 100;

	return scaled ? (uint32_t)scaled : 1;
}

/* ---- the daemon -------------------------------------------------------------------------------- */

/* Where the programs are: above build/tests/test_x. */
static int enter_build(void)
{
	char self[400];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (n <= 0)
		return -1;
	self[n] = 0;
	for (int i = 0; i < 2; i++)
		if (strrchr(self, '/'))
			*strrchr(self, '/') = 0;
	return chdir(self);
}

void e2e_write(const struct e2e *d, const char *name, const char *text)
{
	char path[128], fresh[136];
	int fd;

	/* A new file, so that who has the old one open keeps it as it is. */
	snprintf(path, sizeof(path), "%s/%s", d->dir, name);
	snprintf(fresh, sizeof(fresh), "%s.new", path);
	fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "%s: %s", fresh,
	     strerror(errno));
	close(fd);
	must(!rename(fresh, path), "%s: %s", path, strerror(errno));
}

#if defined(__has_feature)
#define HAS_FEATURE(x) __has_feature(x)
#else
#define HAS_FEATURE(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	HAS_FEATURE(address_sanitizer) || HAS_FEATURE(thread_sanitizer)
#define SANDBOX "sandbox = off\n" /* sanitizers make system calls that it forbids */
#else
#define SANDBOX ""
#endif

bool e2e_has_sandbox(void)
{
	return !*SANDBOX;
}

void e2e_configure(const struct e2e *d, const char *executor, const char *settings)
{
	char text[4096];
	int n;

	n = snprintf(text, sizeof(text),
		     "socket = %s\nexecutor = ./onebit-loopback %s\nmodel = %s/model-a\nmodel_dir = %s\n"
		     SANDBOX "%s", d->socket, executor ? executor : "", d->dir, d->dir,
		     settings ? settings : "");
	must(n < (int)sizeof(text), "the configuration is too long for this buffer");
	e2e_write(d, "conf", text);
}

/*
 * It answers. That connect() succeeds proves nothing: the socket of a daemon that was killed lives on
 * for a moment. A hello of one byte is refused, so nothing is left of the question.
 */
static bool answers(const struct e2e *d)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct onebit_welcome w;
	bool yes;

	memcpy(sa.sun_path, d->socket, sizeof(d->socket));
	must(fd >= 0, "socket: %s", strerror(errno));
	yes = !connect(fd, (struct sockaddr *)&sa, sizeof(sa)) && send(fd, "", 1, MSG_NOSIGNAL) == 1 &&
	      recv(fd, &w, sizeof(w), 0) == sizeof(w);
	close(fd);
	return yes;
}

static _Noreturn void become_daemon(const struct e2e *d, pid_t parent)
{
	static const char program[] = "./onebitd";
	char conf[128], log[128];
	int fd;

	signal(SIGTERM, SIG_DFL); /* Check's handler would end the test */
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent)
		_exit(1);
	snprintf(conf, sizeof(conf), "%s/conf", d->dir);
	snprintf(log, sizeof(log), "%s/log", d->dir);
	fd = open(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
	dup2(fd, 1);
	dup2(fd, 2);
	for (fd = 3; fd < 256; fd++) /* the test's descriptors are none of the daemon's */
		close(fd);
	unsetenv("NOTIFY_SOCKET");
	/* The executor is named from there, for its command is split at blanks, which a path may have. */
	if (!enter_build())
		execl(program, program, "-c", conf, (char *)NULL);
	dprintf(2, "cannot run %s of the build: %s; build it first\n", program, strerror(errno));
	_exit(127);
}

void e2e_again(struct e2e *d)
{
	uint64_t end = e2e_now() + E2E_PATIENCE_NS;
	pid_t parent = getpid();
	int status;

	d->pid = fork();
	must(d->pid >= 0, "fork: %s", strerror(errno));
	if (!d->pid)
		become_daemon(d, parent);
	remember(d);
	while (!answers(d)) {
		must(e2e_now() < end, "the daemon does not answer");
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			d->pid = 0;
			must(0, "the daemon ended at its start, status %x", status);
		}
		e2e_nap(1);
	}
}

void e2e_start(struct e2e *d, const char *executor, const char *settings)
{
	const char *tmp = getenv("TMPDIR");

	memset(d, 0, sizeof(*d));
	snprintf(d->dir, sizeof(d->dir), "%s/onebit-e2e-XXXXXX",
		 tmp && *tmp && strlen(tmp) < 60 ? tmp : "/tmp");
	must(mkdtemp(d->dir), "%s: %s", d->dir, strerror(errno));
	must(!chmod(d->dir, 0755), "chmod: %s", strerror(errno));
	snprintf(d->socket, sizeof(d->socket), "%s/s", d->dir);
	e2e_write(d, "model-a", "the first model\n");
	e2e_write(d, "model-b", "another model\n");
	e2e_configure(d, executor, settings);
	e2e_again(d);
}

static int reap(struct e2e *d)
{
	int status = 0;
	pid_t pid = d->pid;

	d->pid = 0;
	forget(d);
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int e2e_wait_exit(struct e2e *d)
{
	uint64_t end = e2e_now() + E2E_PATIENCE_NS;
	siginfo_t info = { 0 };

	while (!info.si_pid) {
		must(e2e_now() < end, "the daemon does not end");
		waitid(P_PID, (id_t)d->pid, &info, WEXITED | WNOHANG | WNOWAIT);
		e2e_nap(1);
	}
	return reap(d);
}

void e2e_remove(struct e2e *d)
{
	DIR *dir = opendir(d->dir);
	struct dirent *e;

	if (dir) {
		while ((e = readdir(dir)))
			if (e->d_name[0] != '.')
				unlinkat(dirfd(dir), e->d_name, 0);
		closedir(dir);
	}
	rmdir(d->dir);
}

void e2e_stop(struct e2e *d)
{
	struct e2e copy = *d;
	int status;

	kill(d->pid, SIGTERM);
	status = e2e_wait_exit(d);
	if (status)
		print_log(&copy);
	e2e_remove(d);
	must(!status, "the daemon ended with status %d instead of 0", status);
}

/* A child of the launcher that runs the executor's program, or one that does not. */
static pid_t child_of(const struct e2e *d, bool executor)
{
	DIR *proc = opendir("/proc");
	struct dirent *e;
	pid_t found = 0;

	must(proc, "/proc: %s", strerror(errno));
	while ((e = readdir(proc))) {
		char path[300], buf[256], *close_paren, state;
		int fd, ppid;
		ssize_t n;

		if (e->d_name[0] < '0' || e->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		n = fd < 0 ? -1 : read(fd, buf, sizeof(buf) - 1);
		if (fd >= 0)
			close(fd);
		if (n <= 0)
			continue;
		buf[n] = 0;
		close_paren = strrchr(buf, ')');
		if (!close_paren || sscanf(close_paren + 1, " %c %d", &state, &ppid) != 2 ||
		    ppid != d->pid || state == 'Z' || state == 'X')
			continue;
		if (!!strstr(buf, "(onebit-loopback)") == executor) {
			found = (pid_t)strtol(e->d_name, NULL, 10);
			/* The broker is older than whatever is about to become an executor. */
			if (!executor)
				break;
		}
	}
	closedir(proc);
	return found;
}

/* Running; not dead and waiting for somebody to ask. */
static bool is_alive(pid_t pid)
{
	char path[64], buf[256], *close_paren;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? 0 : read(fd, buf, sizeof(buf) - 1);
	if (fd >= 0)
		close(fd);
	buf[n > 0 ? n : 0] = 0;
	close_paren = strrchr(buf, ')');
	return close_paren && close_paren[1] && !strchr("ZX", close_paren[2]);
}

void e2e_kill(struct e2e *d)
{
	pid_t left[] = { e2e_broker(d), e2e_executor(d) };
	uint64_t end = e2e_now() + E2E_PATIENCE_NS;

	kill(d->pid, SIGKILL);
	reap(d);
	/* Its children die of that, but not at once, and one of them listens. */
	for (int i = 0; i < 2; i++)
		while (left[i] && is_alive(left[i]) && e2e_now() < end)
			e2e_nap(1);
}

pid_t e2e_broker(const struct e2e *d)
{
	return child_of(d, false);
}

pid_t e2e_executor(const struct e2e *d)
{
	return child_of(d, true);
}

int e2e_fds(pid_t pid)
{
	char path[64];
	DIR *dir;
	int n = 0;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	if (!dir)
		return -1;
	for (struct dirent *e; (e = readdir(dir));)
		n += e->d_name[0] != '.';
	closedir(dir);
	return n;
}

long e2e_status(pid_t pid, const char *name)
{
	char path[64], line[256];
	size_t len = strlen(name);
	long value = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && line[len] == ':')
			value = strtol(line + len + 1, NULL, strncmp(name, "Cap", 3) ? 10 : 16);
	if (f)
		fclose(f);
	return value;
}

pid_t e2e_fork(void)
{
	pid_t parent = getpid(), pid;

	fflush(NULL);
	pid = fork();
	must(pid >= 0, "fork: %s", strerror(errno));
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(1);
	is_worker = true;
	memset(daemons, 0, sizeof(daemons)); /* they are the parent's */
	return 0;
}

_Noreturn void e2e_done(void)
{
	fflush(NULL);
	_exit(0);
}

void e2e_wait(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		must(errno == EINTR, "waitpid: %s", strerror(errno));
	must(!status, "a process of this test failed, status %x; it has said why", status);
}

/* ---- requests ---------------------------------------------------------------------------------- */

struct onebit *e2e_open(const struct e2e *d, const struct onebit_options *options)
{
	struct onebit_options o = { 0 };
	struct onebit_error err = { 0 };
	struct onebit *ob = NULL;
	int ret;

	if (options)
		o = *options;
	o.size = sizeof(o);
	o.socket = d->socket;
	if (!o.out_bytes)
		o.out_bytes = 2u << 20; /* room for the windows of many long answers */
	o.features |= ONEBIT_FEAT_TENANT | ONEBIT_FEAT_ADMIN | ONEBIT_FEAT_STATS;
	ret = onebit_open(&ob, &o, &err);
	must(!ret, "attach: %d %s", ret, err.text);
	return ob;
}

struct onebit_stats e2e_stats(struct onebit *o)
{
	struct onebit_stats s;
	int ret;

	/* -EAGAIN: its writer lost the CPU in the middle of a line. */
	until((ret = onebit_stats_read(o, &s)) != -EAGAIN, "the stats page is never whole");
	must(!ret, "the stats page cannot be read: %d", ret);
	return s;
}

const struct e2e_answer *e2e_ask(struct onebit *o, const struct onebit_request *rq)
{
	static struct e2e_answer a;
	struct onebit_event ev;
	uint64_t id;
	int ret;

	ret = onebit_submit(o, rq, &id);
	must(!ret, "operation %u cannot be submitted: %d %s", rq->op, ret, onebit_last_error(o)->text);
	do {
		ret = onebit_next(o, &ev, (int)(E2E_PATIENCE_NS / 1000000));
		must(ret == 1, "operation %u: no event, %d", rq->op, ret);
		must(ev.id == id, "an event of a request that nobody asked");
	} while (ev.type != ONEBIT_EV_END);
	a.res = ev.res;
	a.error = ev.error;
	a.len = ev.data_len;
	must(a.len <= sizeof(a.data), "an answer of %zu bytes is longer than this buffer", a.len);
	if (a.len)
		memcpy(a.data, ev.data, a.len);
	return &a;
}

const struct e2e_answer *e2e_query(struct onebit *o, uint32_t topic)
{
	const struct onebit_request rq = { .op = ONEBIT_OP_QUERY, .arg = topic, .out_bytes = 65536 };

	return e2e_ask(o, &rq);
}

void e2e_model(struct onebit *o, uint8_t model_id[32])
{
	const struct e2e_answer *a;
	struct onebit_model m;

	until((a = e2e_query(o, ONEBIT_QUERY_MODEL))->res >= 0, "no model comes: %s", a->error.text);
	must(a->len == sizeof(m), "a struct onebit_model of %zu bytes", a->len);
	memcpy(&m, a->data, sizeof(m));
	memcpy(model_id, m.model_id, 32);
}

static uint32_t put(uint8_t *block, uint32_t *len, const void *data, size_t bytes)
{
	uint32_t at = *len;

	must(at + bytes + 8 <= E2E_BLOCK_MAX, "the block is too long for this buffer");
	if (bytes)
		memcpy(block + at, data, bytes);
	*len = (at + (uint32_t)bytes + 7) & ~7u;
	memset(block + at + bytes, 0, *len - at - bytes);
	return bytes ? at : 0;
}

uint32_t e2e_block(void *block, const struct onebit_request *rq, const uint32_t *ids, uint32_t n_ids)
{
	struct onebit_segment seg[16] = { 0 };
	struct onebit_span stop[ONEBIT_STOPS_MAX] = { 0 };
	struct onebit_params p = rq->params;
	struct onebit_resume resume = { .first = n_ids };
	uint32_t len = sizeof(p);

	must(rq->n_parts <= 16 && rq->n_stops <= ONEBIT_STOPS_MAX, "too many parts for this buffer");
	p.size = sizeof(p);
	for (size_t i = 0; i < rq->n_parts; i++)
		seg[i] = (struct onebit_segment){
			.role = rq->parts[i].role, .kind = rq->parts[i].kind,
			.flags = rq->parts[i].flags, .len = (uint32_t)rq->parts[i].len,
			.off = put(block, &len, rq->parts[i].data, rq->parts[i].len),
		};
	for (size_t i = 0; i < rq->n_stops; i++)
		stop[i] = (struct onebit_span){
			.len = (uint32_t)strlen(rq->stops[i]),
			.off = put(block, &len, rq->stops[i], strlen(rq->stops[i])),
		};
	p.n_segments = (uint32_t)rq->n_parts;
	p.segments_off = put(block, &len, seg, rq->n_parts * sizeof(seg[0]));
	p.n_stops = (uint32_t)rq->n_stops;
	p.stops_off = put(block, &len, stop, rq->n_stops * sizeof(stop[0]));
	p.n_bias = (uint32_t)rq->n_bias;
	p.bias_off = put(block, &len, rq->bias, rq->n_bias * sizeof(*rq->bias));
	p.grammar_len = rq->grammar ? rq->grammar->size : 0;
	p.grammar_off = put(block, &len, rq->grammar, p.grammar_len);
	if (n_ids) {
		resume.tokens_off = put(block, &len, ids, n_ids * 4);
		p.n_resume = 1;
		p.resume_off = put(block, &len, &resume, sizeof(resume));
	}
	memcpy(block, &p, sizeof(p));
	return len;
}

int e2e_submit(struct onebit *o, struct e2e_stream *s, const uint8_t model_id[32],
	       const char *prompt, const struct onebit_request *rq)
{
	static uint64_t block[E2E_BLOCK_MAX / 8];
	struct onebit_part part = { .role = ONEBIT_ROLE_RAW, .kind = ONEBIT_SEG_TEXT };
	struct onebit_request r = { .params.max_tokens = 128 };
	uint32_t len;
	int ret;

	if (rq)
		r = *rq;
	memset(s, 0, sizeof(*s));
	snprintf(s->prompt, sizeof(s->prompt), "%s", prompt);
	part.data = s->prompt;
	part.len = strlen(s->prompt);
	r.op = ONEBIT_OP_GENERATE;
	r.user = s;
	r.parts = &part;
	r.n_parts = 1;
	len = e2e_block(block, &r, NULL, 0);
	s->key = loopback_key(model_id, (const struct onebit_params *)block, block, len);
	s->max_tokens = r.params.max_tokens;
	s->n_choices = r.params.n_choices ? r.params.n_choices : 1;
	s->logprobs = r.params.flags & ONEBIT_PARAM_LOGPROBS;
	s->top = r.params.top_logprobs;
	ret = onebit_submit(o, &r, &s->id);
	must(!ret || ret == -EAGAIN, "submit: %d %s", ret, onebit_last_error(o)->text);
	return ret;
}

static void check_tokens(struct e2e_stream *s, const struct onebit_event *ev)
{
	const struct onebit_record *r = ev->records;
	size_t told = 0;

	must(ev->choice < s->n_choices, "\"%s\": choice %u of %u", s->prompt, ev->choice, s->n_choices);
	must(ev->n && ev->first == s->next[ev->choice],
	     "\"%s\": tokens [%u, +%u) of choice %u where %u was next", s->prompt, ev->first, ev->n,
	     ev->choice, s->next[ev->choice]);
	for (uint32_t i = 0; i < ev->n; i++, r = onebit_record_next(r)) {
		const char *own = (const char *)(r + 1) + r->n_top * sizeof(struct onebit_top);
		uint32_t len, want;
		char text[16];

		want = loopback_token(s->key, ev->choice, ev->first + i, text, &len);
		must(r->token == want, "\"%s\": token %u of choice %u is %u instead of %u", s->prompt,
		     ev->first + i, ev->choice, r->token, want);
		must(r->text_len == len && !memcmp(own, text, len),
		     "\"%s\": the record's text of token %u differs", s->prompt, ev->first + i);
		must(told + len <= ev->text_len && !memcmp(ev->text + told, text, len),
		     "\"%s\": the event's text of token %u differs", s->prompt, ev->first + i);
		must(!!(r->flags & ONEBIT_REC_LOGPROB) == s->logprobs && r->n_top == s->top,
		     "\"%s\": log-probabilities missing or not asked for", s->prompt);
		told += len;
	}
	must(told == ev->text_len, "\"%s\": %zu bytes of text instead of %zu", s->prompt,
	     ev->text_len, told);
	s->next[ev->choice] += ev->n;
}

static void check_end(struct e2e_stream *s, const struct onebit_event *ev)
{
	s->ended = true;
	s->res = ev->res;
	s->error = ev->error;
	must((ev->res < 0) == (ev->error.err != 0), "\"%s\": result %d with error %d", s->prompt,
	     ev->res, ev->error.err);
	if (ev->res < 0) {
		must(ev->error.text[0], "\"%s\": error %d without a text", s->prompt, ev->res);
		return;
	}
	must(ev->out && ev->choices && ev->out->n_choices == s->n_choices,
	     "\"%s\": no summary at its end", s->prompt);
	s->replays = ev->out->replays;
	for (uint32_t c = 0; c < s->n_choices; c++) {
		uint8_t finish;
		uint32_t want = loopback_length(s->key, c, s->max_tokens, &finish);

		must(s->next[c] == want, "\"%s\": choice %u has %u tokens instead of %u", s->prompt, c,
		     s->next[c], want);
		must(ev->choices[c].finish == finish, "\"%s\": choice %u finished %u instead of %u",
		     s->prompt, c, ev->choices[c].finish, finish);
	}
}

struct e2e_stream *e2e_take(const struct onebit_event *ev)
{
	struct e2e_stream *s = ev->user;

	must(s && ev->id == s->id, "an event of a request that is not in flight");
	must(!s->ended, "\"%s\": an event of type %u after its end", s->prompt, ev->type);
	s->moved = true;
	switch (ev->type) {
	case ONEBIT_EV_ACCEPTED:
		must(!s->accepted && !s->next[0], "\"%s\": accepted twice", s->prompt);
		s->accepted = true;
		break;
	case ONEBIT_EV_TOKENS:
		check_tokens(s, ev);
		break;
	case ONEBIT_EV_END:
		check_end(s, ev);
		break;
	default:
		must(0, "\"%s\": an event of type %u", s->prompt, ev->type);
	}
	return s;
}

struct e2e_stream *e2e_next(struct onebit *o, int timeout_ms)
{
	struct onebit_event ev;
	int ret = onebit_next(o, &ev, timeout_ms);

	must(ret >= 0 || ret == -EINTR, "the attachment failed: %d %s", ret,
	     onebit_last_error(o)->text);
	return ret == 1 ? e2e_take(&ev) : NULL;
}

void e2e_finish(struct onebit *o, const struct e2e_stream *s, size_t n)
{
	for (size_t i = 0; i < n; i++)
		while (!s[i].ended)
			must(e2e_next(o, (int)(E2E_PATIENCE_NS / 1000000)),
			     "\"%s\" does not go on after %u tokens of its first choice", s[i].prompt,
			     s[i].next[0]);
}

void e2e_expect(const struct e2e_stream *s, unsigned code)
{
	must(s->ended && s->error.code == code, "\"%s\" ended %s (%d %s) instead of %s", s->prompt,
	     onebit_code_name(s->error.code), s->res, s->error.text, onebit_code_name(code));
}

void e2e_quiet(struct onebit *o)
{
	struct onebit_event ev;
	int ret = onebit_next(o, &ev, 20);

	must(!ret, "an event (%d) of type %u after every request has ended", ret, ev.type);
}

/* ---- the program ------------------------------------------------------------------------------- */

Suite *e2e_suite(const char *name)
{
	setenv("CK_DEFAULT_TIMEOUT", "300", 0); /* its own 4 s are for units */
	return suite_create(name);
}

int e2e_main(Suite *s)
{
	SRunner *r;
	int failed;

	fprintf(stderr, "seed %llu; ONEBIT_SEED repeats it\n", (unsigned long long)e2e_seed());
	fflush(stdout);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * The executor's end of its link against a broker that is played here, and the loopback executor's
 * own promises: the stream, replay, cancellation, judging of prompts.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/futex.h>
#include <time.h>
#include <unistd.h>

#include "loopback.h"
#include "onebit_ring.h"

/* ---- the broker, played ---- */

static struct exec_broker_region *broker;
static struct exec_own_region *own;
static struct executor e;
static uint32_t cmd_tail, event_head;
static _Alignas(8) uint8_t journal[65536];
static uint64_t rng;

static uint64_t random64(void)
{
	uint64_t x = rng += 0x9e3779b97f4a7c15u; /* splitmix64 */

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static void seed(void)
{
	const char *given = getenv("ONEBIT_SEED");

	rng = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL);
	printf("seed %llu\n", (unsigned long long)rng);
}

static void begin(void)
{
	broker = calloc(1, sizeof(*broker));
	own = calloc(1, sizeof(*own));
	ck_assert(broker && own);
	broker->magic = EXEC_MAGIC;
	broker->version = EXEC_VERSION;
	broker->journal_bytes = sizeof(journal);
	cmd_tail = event_head = ONEBIT_INDEX_START;
	broker->cmd_tail = own->cmd_head = cmd_tail;
	broker->event_head = own->event_tail = event_head;
	executor_init(&e, broker, own, journal, sizeof(journal));
}

static void end(void)
{
	free(broker);
	free(own);
}

static void command(uint32_t kind, uint32_t slot, uint32_t tag, uint32_t op)
{
	broker->cmds[onebit_slot(cmd_tail, EXEC_CMDS)] =
		(struct exec_cmd){ .kind = kind, .slot = slot, .tag = tag, .op = op };
	onebit_store_release(&broker->cmd_tail, ++cmd_tail);
}

/* The oldest event, copied; NULL data when there is none. */
static const uint8_t *take(struct exec_event *ev)
{
	if (onebit_load_acquire(&own->event_tail) == event_head)
		return NULL;
	*ev = own->events[onebit_slot(event_head, EXEC_EVENTS)];
	ck_assert_uint_le(ev->data_off, EXEC_DATA_BYTES);
	ck_assert_uint_le(ev->data_len, EXEC_DATA_BYTES - ev->data_off);
	return own->data + ev->data_off;
}

static void give_back(void)
{
	onebit_store_release(&broker->event_head, ++event_head);
}

/* ---- commands ---- */

/* Commands lost, doubled or out of order when the index wraps. */
START_TEST(commands_keep_their_order)
{
	struct exec_cmd cmd;
	uint32_t i, sent = 0, seen = 0;

	seed();
	for (i = 0; i < 2000; i++) {
		while (onebit_distance(own->cmd_head, cmd_tail) < EXEC_CMDS && random64() % 3)
			command(EXEC_CMD_RUN, 0, sent++, 0);
		while (random64() % 3 && executor_next(&e, &cmd))
			ck_assert_uint_eq(cmd.tag, seen++);
	}
	while (executor_next(&e, &cmd))
		ck_assert_uint_eq(cmd.tag, seen++);
	ck_assert_uint_eq(seen, sent);
	ck_assert_uint_gt(sent, EXEC_CMDS); /* over the wrap */
}
END_TEST

/* ---- events ---- */

/* Data that wraps in the area, is overwritten before it was taken, or is not given back. */
START_TEST(data_survives_until_taken)
{
	static uint8_t bytes[EXEC_EVENT_DATA_MAX];
	static uint32_t length[EXEC_EVENTS];
	struct exec_event ev = { .kind = EXEC_EV_DATA };
	uint32_t sent = 0, seen = 0, again = 0, big = 0, len, i;
	uint64_t total = 0;
	const uint8_t *data;

	seed();
	while (sent < 20000 || seen < sent) {
		while (sent < 20000 && random64() % 50) {
			len = (uint32_t)(random64() % (random64() % 4 ? 100 : sizeof(bytes) + 1));
			ev.tag = sent;
			ev.data_len = len;
			memset(bytes, (int)sent, len);
			i = (uint32_t)executor_emit(&e, &ev, bytes);
			if (i) {
				ck_assert_int_eq((int)i, -EAGAIN);
				again++;
				break;
			}
			length[sent % EXEC_EVENTS] = len;
			sent++;
			total += len;
			big += len > 1000;
		}
		executor_kick(&e);
		while (random64() % 50 && (data = take(&ev)) != NULL) {
			ck_assert_uint_eq(ev.tag, seen);
			ck_assert_uint_eq(ev.data_len, length[seen % EXEC_EVENTS]);
			ck_assert_uint_eq(ev.data_off % 8, 0);
			for (i = 0; i < ev.data_len; i++)
				if (data[i] != (uint8_t)seen)
					ck_abort_msg("event %u, byte %u is another's", seen, i);
			give_back();
			seen++;
		}
	}
	ck_assert_uint_gt(again, 0);
	ck_assert_uint_gt(big, 100);
	ck_assert_uint_gt(total, 10ull * EXEC_DATA_BYTES);
}
END_TEST

/* A full queue that overwrites its oldest event, or stays full after one was taken. */
START_TEST(events_are_bounded)
{
	struct exec_event ev = { .kind = EXEC_EV_PROGRESS };
	uint32_t i;

	for (i = 0; i < EXEC_EVENTS; i++)
		ck_assert_int_eq(executor_emit(&e, &ev, NULL), 0);
	ck_assert_int_eq(executor_emit(&e, &ev, NULL), -EAGAIN);
	executor_kick(&e);
	ck_assert_ptr_nonnull(take(&ev));
	give_back();
	ck_assert_int_eq(executor_emit(&e, &ev, NULL), 0);
	ck_assert_int_eq(executor_emit(&e, &ev, NULL), -EAGAIN);
}
END_TEST

/* One event with more data than the broker takes. */
START_TEST(one_event_is_bounded)
{
	static uint8_t bytes[EXEC_EVENT_DATA_MAX + 1];
	struct exec_event ev = { .kind = EXEC_EV_DATA, .data_len = sizeof(bytes) };

	ck_assert_int_eq(executor_emit(&e, &ev, bytes), -EMSGSIZE);
	ev.data_len--;
	ck_assert_int_eq(executor_emit(&e, &ev, bytes), 0);
}
END_TEST

/* Events seen half written: before the kick nothing is visible. */
START_TEST(events_appear_at_the_kick)
{
	struct exec_event ev = { .kind = EXEC_EV_PROGRESS };

	ck_assert_int_eq(executor_emit(&e, &ev, NULL), 0);
	ck_assert_ptr_null(take(&ev));
	executor_kick(&e);
	ck_assert_ptr_nonnull(take(&ev));
}
END_TEST

/* A doorbell rung without need costs a system call a step; one not rung is a lost wake-up. */
START_TEST(the_doorbell_rings_when_asked)
{
	struct exec_event ev = { .kind = EXEC_EV_PROGRESS };
	int fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	uint64_t n;

	ck_assert_int_ge(fd, 0);
	e.doorbell = fd;
	ck_assert_int_eq(executor_emit(&e, &ev, NULL), 0);
	executor_kick(&e);
	ck_assert_int_lt(read(fd, &n, sizeof(n)), 0);
	broker->flags = EXEC_NEED_KICK;
	executor_kick(&e); /* nothing new */
	ck_assert_int_lt(read(fd, &n, sizeof(n)), 0);
	ck_assert_int_eq(executor_emit(&e, &ev, NULL), 0);
	executor_kick(&e);
	ck_assert_int_eq(read(fd, &n, sizeof(n)), sizeof(n));
	ck_assert_uint_eq(n, 1);
	close(fd);
}
END_TEST

/* ---- sleeping ---- */

static void *wake_later(void *arg)
{
	struct timespec t = { .tv_nsec = 20000000 };

	(void)arg;
	nanosleep(&t, NULL);
	command(EXEC_CMD_STOP, 0, 0, 0);
	onebit_fence();
	if (onebit_load_relaxed(&own->need_wake))
		syscall(SYS_futex, &broker->cmd_tail, FUTEX_WAKE, 1, NULL, NULL, 0);
	return NULL;
}

/* Sleeping past a command, or for ever; NEED_WAKE left set makes the broker wake for nothing. */
START_TEST(waiting_ends)
{
	struct exec_cmd cmd;
	pthread_t t;

	ck_assert_int_eq(executor_wait(&e, 0), -ETIMEDOUT);
	ck_assert_int_eq(executor_wait(&e, 1000000), -ETIMEDOUT);
	ck_assert_uint_eq(own->need_wake, 0);
	command(EXEC_CMD_RUN, 0, 0, 0);
	ck_assert_int_eq(executor_wait(&e, -1), 0);
	ck_assert_uint_eq(own->need_wake, 0);
	ck_assert_int_eq(executor_next(&e, &cmd), 1);
	ck_assert_int_eq(pthread_create(&t, NULL, wake_later, NULL), 0);
	ck_assert_int_eq(executor_wait(&e, -1), 0);
	pthread_join(t, NULL);
	ck_assert_int_eq(executor_next(&e, &cmd), 1);
	ck_assert_uint_eq(cmd.kind, EXEC_CMD_STOP);
}
END_TEST

/* ---- the inherited descriptors ---- */

static int region(size_t bytes)
{
	int fd = memfd_create("region", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		_exit(90);
	return fd;
}

/* What executor_open() says in a process that has these; version 0: no descriptor at all. */
static int opened(uint32_t version, size_t own_bytes, size_t journal_bytes)
{
	struct exec_broker_region *b;
	struct exec_cmd cmd;
	int fd[4], i, status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		fd[0] = region(sizeof(*broker));
		fd[1] = region(own_bytes);
		fd[2] = region(journal_bytes);
		fd[3] = eventfd(0, 0);
		b = mmap(NULL, sizeof(*b), PROT_READ | PROT_WRITE, MAP_SHARED, fd[0], 0);
		b->magic = EXEC_MAGIC;
		b->version = version;
		b->journal_bytes = 4096;
		b->cmd_tail = 1;
		b->cmds[0].kind = EXEC_CMD_STOP;
		for (i = 0; i < 4; i++) /* out of the way of 3..6 first */
			fd[i] = fcntl(fd[i], F_DUPFD, 100);
		for (i = 0; i < 4; i++) {
			close(EXEC_FD_BROKER + i);
			if (version)
				dup2(fd[i], EXEC_FD_BROKER + i);
		}
		status = -executor_open(&e);
		/* Read-only where it must not write: the sleep on cmd_tail has to work all the same. */
		if (!status && (!executor_next(&e, &cmd) || cmd.kind != EXEC_CMD_STOP ||
				executor_wait(&e, 1000) != -ETIMEDOUT ||
				e.doorbell != EXEC_FD_DOORBELL))
			status = 91;
		_exit(status);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* An executor that starts against another broker's memory, or dies of SIGBUS instead of saying so. */
START_TEST(descriptors_are_checked)
{
	ck_assert_int_eq(opened(EXEC_VERSION, sizeof(*own), 4096), 0);
	ck_assert_int_eq(opened(0, sizeof(*own), 4096), EBADF);
	ck_assert_int_eq(opened(EXEC_VERSION + 1, sizeof(*own), 4096), EPROTO);
	ck_assert_int_eq(opened(EXEC_VERSION, sizeof(*own) - 1, 4096), EPROTO);
	ck_assert_int_eq(opened(EXEC_VERSION, sizeof(*own), 4095), EPROTO);
}
END_TEST

/* ---- the loopback executor ---- */

static const uint8_t model_id[32] = { 1, 2, 3 };
static struct loopback *l;
static unsigned faults;
static enum loopback_fault last_fault;

static void on_fault(void *ctx, enum loopback_fault f)
{
	(void)ctx;
	faults++;
	last_fault = f;
}

static struct journal_entry *entry(void)
{
	return (struct journal_entry *)(void *)journal;
}

static uint8_t *block(void)
{
	return journal + entry()->block_off;
}

static void loopback_begin(void)
{
	struct loopback_options o = { .delay_ns = 1000, .slots = 4, .name = "test" };
	struct exec_event ev;
	int stop;

	begin();
	faults = 0;
	memcpy(o.model_id, model_id, 32);
	l = loopback_new(&e, &o, on_fault, NULL);
	ck_assert_ptr_nonnull(l);
	loopback_step(l, 0, &stop);
	ck_assert_ptr_nonnull(take(&ev));
	ck_assert_uint_eq(ev.kind, EXEC_EV_HELLO);
	give_back();
	while (take(&ev))
		give_back(); /* statistics */
}

static void loopback_end(void)
{
	l = loopback_free(l);
	end();
}

/* One segment with these bytes. */
static void ask(const void *text, uint32_t len, uint8_t kind, uint32_t max_tokens)
{
	struct onebit_segment seg = { .kind = kind, .off = 192, .len = len };
	struct journal_entry *j = entry();

	memset(journal, 0, sizeof(journal));
	j->magic = JOURNAL_MAGIC;
	j->bytes = sizeof(journal);
	j->block_off = sizeof(*j);
	j->block_len = 192 + len;
	j->params.size = sizeof(j->params);
	j->params.max_tokens = max_tokens;
	j->params.n_segments = 1;
	j->params.segments_off = 168;
	memcpy(block() + 168, &seg, sizeof(seg));
	memcpy(block() + 192, text, len);
}

static uint64_t key(void)
{
	return loopback_key(model_id, &entry()->params, block(), entry()->block_len);
}

/* Steps until there is an event; its data. */
static const uint8_t *next_event(struct exec_event *ev)
{
	static uint64_t now;
	const uint8_t *data;
	int stop, i;

	for (i = 0; i < 1000; i++) {
		data = take(ev);
		if (data) {
			give_back();
			return data;
		}
		now += 1000;
		loopback_step(l, now, &stop);
	}
	return NULL;
}

static void expect_end(uint32_t code, uint64_t detail)
{
	struct exec_event ev;

	ck_assert_ptr_nonnull(next_event(&ev));
	ck_assert_uint_eq(ev.kind, EXEC_EV_END);
	ck_assert_uint_eq(ev.tag, 7);
	ck_assert_uint_eq(ev.code, code);
	ck_assert_uint_eq(ev.detail, detail);
}

/* The rest of one choice's answer, from token `at` on, then END. */
static void expect_answer(uint64_t k, uint32_t at, uint32_t max_tokens)
{
	const struct onebit_record *rec;
	struct exec_event ev;
	uint32_t len, token, n;
	const uint8_t *data;
	uint8_t finish;
	char text[16];

	n = loopback_length(k, 0, max_tokens, &finish);
	for (;;) {
		data = next_event(&ev);
		ck_assert_ptr_nonnull(data);
		ck_assert_uint_eq(ev.kind, EXEC_EV_TOKENS);
		ck_assert_uint_eq(ev.first, at);
		if (ev.n) {
			rec = (const void *)data;
			token = loopback_token(k, 0, at, text, &len);
			ck_assert_uint_eq(rec->token, token);
			ck_assert_uint_eq(rec->text_len, len);
			ck_assert_mem_eq(data + sizeof(*rec), text, len);
			ck_assert_uint_eq(ev.data_len, rec->size);
			at++;
		}
		if (ev.finish)
			break;
	}
	ck_assert_uint_eq(at, n);
	ck_assert_uint_eq(ev.finish, finish);
	expect_end(ONEBIT_E_OK, 0);
}

/* Tests that compare with loopback_token() compare with something else than what is sent. */
START_TEST(the_stream_is_as_told)
{
	uint64_t k;

	for (uint32_t max = 1; max < 200; max += 33) {
		ask("hello", 5, ONEBIT_SEG_TEXT, max);
		k = key();
		command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
		expect_answer(k, 0, max);
	}
}
END_TEST

/* A replay that begins at 0, or is not confirmed before new tokens. */
START_TEST(a_replay_goes_on)
{
	struct exec_event ev;
	uint32_t len;
	char text[16];
	uint64_t k;

	ask("hello", 5, ONEBIT_SEG_TEXT, 100);
	entry()->attempt = 1;
	entry()->done[0].n = 5;
	k = key();
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
	ck_assert_ptr_nonnull(next_event(&ev));
	ck_assert_uint_eq(ev.kind, EXEC_EV_REPLAYED);
	ck_assert_uint_eq(ev.first, 4);
	ck_assert_uint_eq(ev.detail, loopback_token(k, 0, 4, text, &len));
	expect_answer(k, 5, 100);
}
END_TEST

/* Only the choices that had not ended go on. */
START_TEST(ended_choices_stay_ended)
{
	struct exec_event ev;

	ask("hello", 5, ONEBIT_SEG_TEXT, 8);
	entry()->params.n_choices = 3;
	entry()->done[0] = (struct journal_done){ 8, ONEBIT_FINISH_LENGTH };
	entry()->done[2] = (struct journal_done){ 3, ONEBIT_FINISH_STOP };
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
	for (;;) {
		ck_assert_ptr_nonnull(next_event(&ev));
		if (ev.kind == EXEC_EV_END)
			break;
		ck_assert_uint_eq(ev.choice, 1);
	}
	ck_assert_uint_eq(ev.code, ONEBIT_E_OK);
}
END_TEST

/* A key that changes with what the answer must not depend on: a resumed answer would differ. */
START_TEST(the_key_knows_the_request_only)
{
	struct onebit_params *p;
	uint64_t k;

	ask("hello", 5, ONEBIT_SEG_TEXT, 100);
	p = &entry()->params;
	k = key();
	p->tenant = 5;
	p->session = 6;
	p->max_tokens = 50;
	p->n_choices = 1;
	p->n_resume = 1;
	p->resume_off = 8;
	p->top_p_micro = p->repetition_micro = 1000000;
	memcpy(p->model_id, model_id, 32);
	ck_assert_uint_eq(key(), k);
	p->seed = 1;
	ck_assert_uint_ne(key(), k);
	p->seed = 0;
	block()[192] = 'j';
	ck_assert_uint_ne(key(), k);
}
END_TEST

/* CANCEL without an end, or one after the request had ended on its own. */
START_TEST(cancel_ends)
{
	struct exec_event ev;
	uint32_t n = 0;

	ask("hello", 5, ONEBIT_SEG_TEXT, 100);
	entry()->params.flags = ONEBIT_PARAM_IGNORE_EOS;
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
	for (; n < 3; n++)
		ck_assert_ptr_nonnull(next_event(&ev));
	command(EXEC_CMD_CANCEL, 1, 6, 0); /* of an older use of the slot */
	ck_assert_ptr_nonnull(next_event(&ev));
	ck_assert_uint_eq(ev.kind, EXEC_EV_TOKENS);
	command(EXEC_CMD_CANCEL, 1, 7, 0);
	expect_end(ONEBIT_E_CANCELLED, 4);
	command(EXEC_CMD_CANCEL, 1, 7, 0);
	ck_assert_ptr_null(next_event(&ev));
}
END_TEST

/* A prompt that is not UTF-8 answered as if it were. */
START_TEST(bad_prompts_are_refused)
{
	static const struct { const char *text; uint32_t at; } bad[] = {
		{ "\x80", 0 }, { "ab\xff", 2 }, { "\xc0\x80", 0 }, { "\xc1\xbf", 0 },
		{ "\xe0\x80\x80", 0 }, { "\xed\xa0\x80", 0 }, { "\xf4\x90\x80\x80", 0 },
		{ "\xf5\x80\x80\x80", 0 }, { "x\xe2\x82", 1 }, { "\xf0\x8f\xbf\xbf", 0 },
	};
	static const char good[] = "\xc2\x80 \xe0\xa0\x80 \xed\x9f\xbf \xf0\x90\x80\x80 \xf4\x8f\xbf\xbf";
	uint32_t id = 1000000;

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		ask(bad[i].text, (uint32_t)strlen(bad[i].text), ONEBIT_SEG_TEXT, 1);
		command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
		expect_end(ONEBIT_E_BAD_PROMPT, 192 + bad[i].at);
	}
	ask(&id, 4, ONEBIT_SEG_TOKENS, 1);
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
	expect_end(ONEBIT_E_BAD_PROMPT, 192);
	ask(good, sizeof(good) - 1, ONEBIT_SEG_TEXT, 1);
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
	expect_answer(key(), 0, 1);
}
END_TEST

/* DETOKENIZE that does not give back what TOKENIZE took. */
START_TEST(tokens_and_text)
{
	static char text[20000];
	static uint32_t ids[20000];
	struct exec_event ev;
	const uint8_t *data;
	uint32_t n = 0;

	memset(text, 'x', sizeof(text));
	text[0] = 'A';
	ask(text, sizeof(text), ONEBIT_SEG_TEXT, 0);
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_TOKENIZE);
	while ((data = next_event(&ev)) != NULL && ev.kind == EXEC_EV_DATA) {
		ck_assert_uint_le(n + ev.data_len, sizeof(ids));
		memcpy((uint8_t *)ids + n, data, ev.data_len);
		n += ev.data_len;
	}
	ck_assert_uint_eq(n, sizeof(ids));
	ck_assert_int_eq(ev.res, sizeof(ids));
	ck_assert_uint_eq(ids[0], 'A');
	ck_assert_uint_eq(ids[19999], 'x');
	ask(ids, 40000, ONEBIT_SEG_TOKENS, 0);
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_DETOKENIZE);
	for (n = 0; (data = next_event(&ev)) != NULL && ev.kind == EXEC_EV_DATA; n += ev.data_len)
		ck_assert_mem_eq(data, text + n, ev.data_len);
	ck_assert_uint_eq(n, 10000);
	ck_assert_int_eq(ev.res, 10000);
}
END_TEST

/* A fault that strikes at another token, or again at the replay when it should not. */
START_TEST(faults_strike_when_asked)
{
	struct exec_event ev;
	uint64_t k;
	int stop;

	ask("!kill@2 x", 9, ONEBIT_SEG_TEXT, 8);
	entry()->attempt = 1;
	k = key();
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
	expect_answer(k, 0, 8);
	ck_assert_uint_eq(faults, 0);
	ask("!kill-always@2 x", 16, ONEBIT_SEG_TEXT, 8);
	entry()->attempt = 1;
	command(EXEC_CMD_RUN, 1, 7, ONEBIT_OP_GENERATE);
	ck_assert_ptr_nonnull(next_event(&ev));
	ck_assert_ptr_nonnull(next_event(&ev));
	ck_assert_uint_eq(ev.first, 1);
	ck_assert_ptr_null(next_event(&ev));
	ck_assert_uint_eq(faults, 1);
	ck_assert_int_eq(last_fault, LOOPBACK_KILL);
	ck_assert_uint_eq(loopback_step(l, 1u << 30, &stop), UINT64_MAX);
}
END_TEST

/* STOP not obeyed: the launcher would have to kill. */
START_TEST(stop_stops)
{
	int stop;

	command(EXEC_CMD_STOP, 0, 0, 0);
	loopback_step(l, 0, &stop);
	ck_assert_int_eq(stop, 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("executor");
	TCase *t = tcase_create("link"), *u = tcase_create("loopback");
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(t, begin, end);
	tcase_add_test(t, commands_keep_their_order);
	tcase_add_test(t, data_survives_until_taken);
	tcase_add_test(t, events_are_bounded);
	tcase_add_test(t, one_event_is_bounded);
	tcase_add_test(t, events_appear_at_the_kick);
	tcase_add_test(t, the_doorbell_rings_when_asked);
	tcase_add_test(t, waiting_ends);
	tcase_add_test(t, descriptors_are_checked);
	suite_add_tcase(suite, t);
	tcase_add_checked_fixture(u, loopback_begin, loopback_end);
	tcase_add_test(u, the_stream_is_as_told);
	tcase_add_test(u, a_replay_goes_on);
	tcase_add_test(u, ended_choices_stay_ended);
	tcase_add_test(u, the_key_knows_the_request_only);
	tcase_add_test(u, cancel_ends);
	tcase_add_test(u, bad_prompts_are_refused);
	tcase_add_test(u, tokens_and_text);
	tcase_add_test(u, faults_strike_when_asked);
	tcase_add_test(u, stop_stops);
	suite_add_tcase(suite, u);
	tcase_set_timeout(t, 0);
	tcase_set_timeout(u, 0);
	r = srunner_create(suite);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

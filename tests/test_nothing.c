/* SPDX-License-Identifier: MIT */
/*
 * No allocation, lock or log line on the way of an op: the allocator and the mutex are ours here and
 * count, log lines land in a file whose size is compared. The core, the executor's library and the
 * loopback executor all stand on that way.
 */
#include <check.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lib_core.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
	__has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifdef SANITIZED
int main(void)
{
	puts("a sanitizer has taken the allocator, which this test replaces");
	return 77;
}
#else

enum { OPS = 100000, WARM = 2000, WINDOW = 4096, TOKENS = 3 };

static unsigned long allocated, freed, locked;

/* glibc's own, under the names that it keeps for those who replace the public ones. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void __libc_free(void *p);

#define PUBLIC __attribute__((visibility("default")))

PUBLIC void *malloc(size_t n)
{
	allocated++;
	return __libc_malloc(n);
}

PUBLIC void *calloc(size_t n, size_t size)
{
	allocated++;
	return __libc_calloc(n, size);
}

PUBLIC void *realloc(void *p, size_t n)
{
	allocated++;
	return __libc_realloc(p, n);
}

PUBLIC void free(void *p)
{
	freed++;
	__libc_free(p);
}

PUBLIC int pthread_mutex_lock(pthread_mutex_t *m)
{
	static int (*real)(pthread_mutex_t *);

	locked++;
	if (!real) {
		void *p = dlsym(RTLD_NEXT, "pthread_mutex_lock");

		memcpy(&real, &p, sizeof(real));
	}
	return real(m);
}

static struct core *k;
static int me;
static int log_fd;

static void begin(void)
{
	/* lib_core writes what the core logs to stderr; here that is a file to be measured. */
	setenv("ONEBIT_TEST_LOG", "1", 1);
	log_fd = memfd_create("log", MFD_CLOEXEC);
	ck_assert_int_ge(log_fd, 0);
	ck_assert_int_ge(dup2(log_fd, STDERR_FILENO), 0);
	k = core_new(NULL, true, true);
	k->options.delay_ns = 0;
	core_run(k);
	core_pass(k, 1000000); /* the executor's hello */
	me = core_attach(k, 1000, NULL, NULL);
	ck_assert_int_ge(me, 0);
}

static void submit(uint32_t i)
{
	struct core_block t;
	struct onebit_sqe e = { .user_data = i };

	switch (i % 3) {
	case 0:
		e.op = ONEBIT_OP_NOP;
		break;
	case 1:
		e.op = ONEBIT_OP_ECHO;
		e.in_len = 200;
		e.out_off = WINDOW;
		e.out_len = 200;
		break;
	case 2:
		core_block_plain(&t, "tell me", TOKENS);
		t.p.flags = ONEBIT_PARAM_IGNORE_EOS;
		e = core_generate(k, me, &t, 1024, 0, WINDOW, i);
		break;
	}
	core_submit(k, me, &e);
}

/* One op from SQE to terminal CQE; its tokens are told on the way. */
static void op(uint32_t i)
{
	struct onebit_cqe cqe;
	uint32_t steps = 0;

	submit(i);
	core_run(k);
	for (;;) {
		while (!core_reap(k, me, &cqe)) {
			if (++steps > 1000)
				ck_abort_msg("op %u does not end", i);
			core_pass(k, 1000);
		}
		if (!(cqe.flags & ONEBIT_CQE_MORE))
			break;
	}
	if (cqe.user_data != i || cqe.res < 0)
		ck_abort_msg("op %u ended with %d", i, cqe.res);
}

/* An allocation, a lock or a log line for each op: latency that nobody can bound. */
START_TEST(nothing_on_the_way)
{
	unsigned long a, f, l;
	uint64_t tokens;
	off_t said;
	uint32_t i;

	begin();
	for (i = 0; i < WARM; i++)
		op(i);
	tokens = broker_stats(k->b)->tokens;
	said = lseek(log_fd, 0, SEEK_END);
	ck_assert_int_gt(said, 0); /* it did log that the executor is ready, so we would see it */
	/* From here to the differences below no assertion: Check allocates in each. */
	a = allocated;
	f = freed;
	l = locked;
	for (; i < WARM + OPS; i++)
		op(i);
	a = allocated - a;
	f = freed - f;
	l = locked - l;
	ck_assert_uint_ge(broker_stats(k->b)->tokens - tokens, (OPS / 3 - 1) * TOKENS);
	ck_assert_uint_eq(a, 0);
	ck_assert_uint_eq(f, 0);
	ck_assert_uint_eq(l, 0);
	ck_assert_int_eq(lseek(log_fd, 0, SEEK_END), said);
	core_free(k);
}
END_TEST

/* Counters that count nothing would prove nothing. */
START_TEST(the_counters_count)
{
	pthread_mutex_t m = PTHREAD_MUTEX_INITIALIZER;
	unsigned long a = allocated, f = freed, l = locked;
	char *volatile p = malloc(10);

	p = realloc(p, 20);
	free(p);
	free(strdup("by the C library"));
	pthread_mutex_lock(&m);
	pthread_mutex_unlock(&m);
	a = allocated - a;
	f = freed - f;
	l = locked - l;
	ck_assert_uint_eq(a, 3);
	ck_assert_uint_eq(f, 2);
	ck_assert_uint_eq(l, 1);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("nothing");
	TCase *t = tcase_create("nothing");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 0);
	tcase_add_test(t, the_counters_count);
	tcase_add_test(t, nothing_on_the_way);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
#endif

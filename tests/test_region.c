/* SPDX-License-Identifier: MIT */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include "region.h"
#include "sys.h"

#define BYTES (64u << 10)

static uint32_t count_fds(void)
{
	uint32_t n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

/* A client that could resize its region would make the daemon fault at will. */
START_TEST(size_is_a_fact)
{
	struct region r;

	ck_assert_int_eq(region_make(&r, "test", BYTES, 4096, REGION_PEER, REGION_NOBODY), 0);
	ck_assert_int_eq(ftruncate(r.fd, 0), -1);
	ck_assert_int_eq(errno, EPERM);
	ck_assert_int_eq(ftruncate(r.fd, 2 * BYTES), -1);
	ck_assert_int_eq(errno, EPERM);
	/* Nor may it add seals that would stop us, or others, later. */
	ck_assert_int_eq(fcntl(r.fd, F_ADD_SEALS, F_SEAL_WRITE), -1);
	ck_assert_ptr_ne(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0), MAP_FAILED);
	region_free(&r);
}
END_TEST

/* A client that could write the DAEMON region could forge completions of its own, or punch holes. */
START_TEST(ours_is_read_only_for_others)
{
	struct region r;
	const char *p;

	ck_assert_int_eq(region_make(&r, "test", BYTES, BYTES, REGION_OURS, REGION_NOBODY), 0);
	ck_assert_ptr_eq(mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, r.fd, 0), MAP_FAILED);
	ck_assert_int_eq(pwrite(r.fd, "x", 1, 0), -1);
	ck_assert_int_eq(fallocate(r.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
	p = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, r.fd, 0);
	ck_assert_ptr_ne(p, MAP_FAILED);
	ck_assert_int_eq(mprotect((void *)p, BYTES, PROT_READ | PROT_WRITE), -1);
	((char *)r.base)[5] = 'y'; /* our own mapping still writes, and they see it */
	ck_assert_int_eq(p[5], 'y');
	munmap((void *)p, BYTES);
	region_free(&r);
}
END_TEST

/* More than the ring's part in memory would charge every client for an arena it does not use. */
START_TEST(only_the_ring_is_populated)
{
	unsigned char in[BYTES / 4096];
	struct region r;

	ck_assert_int_eq(region_make(&r, "test", BYTES, 8192, REGION_PEER, REGION_NOBODY), 0);
	ck_assert_int_eq(mincore(r.base, BYTES, in), 0);
	for (unsigned i = 0; i < BYTES / 4096; i++)
		ck_assert_int_eq(in[i] & 1, i < 2);
	region_free(&r);
}
END_TEST

/* A failure half-way that kept a descriptor or a guard would wear the daemon out. */
START_TEST(failure_leaves_nothing)
{
	uint32_t before = count_fds();
	struct region r[3], last;

	ck_assert_int_eq(region_guard_start(2), 0);
	ck_assert_int_eq(region_make(&r[0], "test", BYTES, 0, REGION_PEER, 0), 0);
	ck_assert_int_eq(region_make(&r[1], "test", BYTES, 0, REGION_PEER, 1), 0);
	ck_assert_int_eq(region_make(&r[2], "test", BYTES, 0, REGION_PEER, 2), -ENOSPC);
	/* A hole that long cannot be mapped. */
	ck_assert_int_lt(region_make(&last, "test", (size_t)1 << 50, 0, REGION_PEER, REGION_NOBODY), 0);
	region_free(&r[2]);
	ck_assert_uint_eq(count_fds(), before + 2);
	region_sent(&r[0]);
	region_free(&r[0]);
	region_free(&r[0]);
	region_free(&r[1]);
	ck_assert_uint_eq(count_fds(), before);
	/* Guards are given back as well. */
	for (int i = 0; i < 10; i++) {
		ck_assert_int_eq(region_make(&r[0], "test", BYTES, 0, REGION_PEER, 7), 0);
		region_free(&r[0]);
	}
}
END_TEST

/* The memfd as a hostile one would be, had we not made it: no seals, and cut off under us. */
static void make_unsealed(struct region *r, uint32_t owner)
{
	int fd = memfd_create("unsealed", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(ftruncate(fd, BYTES), 0);
	ck_assert_int_eq(region_make(r, "test", BYTES, 0, REGION_PEER, owner), 0);
	ck_assert_ptr_ne(mmap(r->base, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0),
			 MAP_FAILED);
	memset(r->base, 'a', BYTES);
	ck_assert_int_eq(ftruncate(fd, 8192), 0);
	close(fd);
}

/* One client's missing memory must not kill the daemon, nor be taken for another client's. */
START_TEST(fault_breaks_one_region)
{
	struct region good, bad, spare;
	volatile char *p;
	uint32_t owner = 0;

	ck_assert_int_eq(region_guard_start(8), 0);
	ck_assert_int_eq(region_make(&good, "test", BYTES, 0, REGION_PEER, 11), 0);
	make_unsealed(&bad, 22);
	ck_assert_int_eq(region_make(&spare, "test", BYTES, 0, REGION_PEER, REGION_SPARE), 0);
	region_own(&spare, 33);
	ck_assert(!region_broken(&owner));

	p = bad.base;
	ck_assert_int_eq(p[8191], 'a');
	ck_assert_int_eq(p[8192], 0);     /* faults, and reads as zero */
	p[BYTES - 1] = 'b';               /* faults on another page, writing */
	ck_assert_int_eq(p[BYTES - 1], 'b');
	ck_assert_int_eq(p[0], 'a');      /* what is there stays */

	ck_assert(region_broken(&owner));
	ck_assert_uint_eq(owner, 22);
	ck_assert(!region_broken(&owner)); /* told once */
	region_free(&bad);
	region_free(&good);
	region_free(&spare);
}
END_TEST

/* A SIGBUS of our own is a bug: hidden, it would corrupt; looping, it would hang. */
START_TEST(fault_elsewhere_kills)
{
	struct region r;
	int status;
	pid_t pid;

	ck_assert_int_eq(region_guard_start(8), 0);
	make_unsealed(&r, REGION_NOBODY);
	pid = fork();
	if (pid == 0) {
		alarm(10);
		_exit(((volatile char *)r.base)[BYTES - 1]);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
	ck_assert_int_eq(WTERMSIG(status), SIGBUS);
	region_free(&r);
}
END_TEST

/* After a region is freed its addresses may be anybody's: a fault there is no client's. */
START_TEST(freed_region_is_not_guarded)
{
	struct region r;
	void *base;
	int status, fd;
	pid_t pid;

	ck_assert_int_eq(region_guard_start(8), 0);
	ck_assert_int_eq(region_make(&r, "test", BYTES, 0, REGION_PEER, 5), 0);
	base = r.base;
	region_free(&r);
	fd = memfd_create("empty", MFD_CLOEXEC);
	ck_assert_ptr_eq(mmap(base, BYTES, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0), base);
	pid = fork();
	if (pid == 0) {
		alarm(10);
		_exit(*(volatile char *)base);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
	munmap(base, BYTES);
	close(fd);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("region");
	TCase *c = tcase_create("region");
	SRunner *run;
	int failed;

	tcase_add_test(c, size_is_a_fact);
	tcase_add_test(c, ours_is_read_only_for_others);
	tcase_add_test(c, only_the_ring_is_populated);
	tcase_add_test(c, failure_leaves_nothing);
	tcase_add_test(c, fault_breaks_one_region);
	tcase_add_test(c, fault_elsewhere_kills);
	tcase_add_test(c, freed_region_is_not_guarded);
	suite_add_tcase(s, c);
	run = srunner_create(s);
	srunner_run_all(run, CK_NORMAL);
	failed = srunner_ntests_failed(run);
	srunner_free(run);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

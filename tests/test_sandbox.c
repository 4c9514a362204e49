/* SPDX-License-Identifier: MIT */
/*
 * The broker's sandbox: if it let one of these calls through, a broker taken over by a client would
 * reach files, the network or other processes; if it killed an allowed one, it would kill a healthy
 * broker. Each case forks, for there is no way out of a sandbox.
 */
#include <check.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include "sandbox.c"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
	__has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

enum { NO_SANDBOX = 99, RETURNED = 98 }; /* exit statuses of a child */

static int in_child(void (*f)(void))
{
	int status;
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (pid == 0) {
		f();
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return status;
}

static void enter(void)
{
	char report[160];

	if (sandbox_broker(report, sizeof(report)))
		_exit(NO_SANDBOX);
}

/* ---- what must be killed ---- */

static pid_t parent; /* asked for beforehand: getppid() is forbidden too */

static void do_open(void) { syscall(SYS_openat, AT_FDCWD, "/dev/null", O_RDONLY); }
static void do_openat2(void) { syscall(437, AT_FDCWD, "/", NULL, 0); }
static void do_socket(void) { socket(AF_UNIX, SOCK_STREAM, 0); }
static void do_socketpair(void) { int p[2]; socketpair(AF_UNIX, SOCK_STREAM, 0, p); }
static void do_connect(void) { connect(0, NULL, 0); }
static void do_bind(void) { bind(0, NULL, 0); }
static void do_execve(void) { char *none[] = { NULL }; execve("/bin/true", none, none); }
static void do_execveat(void) { syscall(SYS_execveat, 0, "", NULL, NULL, AT_EMPTY_PATH); }
static void do_fork(void) { syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }
static void do_clone3(void) { syscall(435, NULL, 0); }
static void do_ptrace(void) { syscall(SYS_ptrace, 0, 0, 0, 0); }
static void do_kill(void) { kill(parent, 0); }
static void do_kill_self(void) { kill(getpid(), 0); }
static void do_unlink(void) { syscall(SYS_unlinkat, AT_FDCWD, "/nonexistent", 0); }
static void do_chdir(void) { if (chdir("/")) return; }
static void do_mount(void) { syscall(SYS_mount, NULL, NULL, NULL, 0, NULL); }
static void do_ioctl(void) { syscall(SYS_ioctl, 0, 0, 0); }
static void do_setuid(void) { syscall(SYS_setuid, 0); }
static void do_prctl(void) { prctl(PR_SET_DUMPABLE, 1); }
static void do_bpf(void) { syscall(SYS_bpf, 0, NULL, 0); }
static void do_ring_setup(void) { syscall(425, 1, NULL); }
static void do_userfault(void) { syscall(SYS_userfaultfd, 0); }
static void do_perf(void) { syscall(SYS_perf_event_open, NULL, 0, 0, 0, 0); }
static void do_pidfd_getfd(void) { syscall(438, 0, 0, 0); }
static void do_vm_write(void) { syscall(SYS_process_vm_writev, getpid(), NULL, 0, NULL, 0, 0); }
static void do_unknown(void) { syscall(1000000); }
static void do_map_exec(void)
{
	mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
static void do_protect_exec(void)
{
	mprotect((void *)((uintptr_t)&in_child & ~4095ul), 4096, PROT_READ | PROT_EXEC);
}
static void do_setown(void) { fcntl(0, F_SETOWN, 1); }
static void do_setsig(void) { fcntl(0, F_SETSIG, SIGKILL); }
static void do_signal_other(void) { syscall(SYS_tgkill, parent, parent, 0); }
#ifdef __x86_64__
static void do_x32(void) { syscall((long)(X32_BIT | SYS_getpid)); }
static void do_i386(void)
{
	long r = 20; /* getpid of i386; number 20 is writev here, which is allowed */

	__asm__ volatile("int $0x80" : "+a"(r) : : "memory", "r8", "r9", "r10", "r11");
}
#endif

static const struct {
	const char *name;
	void (*call)(void);
} forbidden[] = {
	{ "openat", do_open }, { "openat2", do_openat2 }, { "socket", do_socket },
	{ "socketpair", do_socketpair }, { "connect", do_connect }, { "bind", do_bind },
	{ "execve", do_execve }, { "execveat", do_execveat }, { "clone", do_fork },
	{ "clone3", do_clone3 }, { "ptrace", do_ptrace }, { "kill", do_kill },
	{ "kill self", do_kill_self }, { "unlinkat", do_unlink }, { "chdir", do_chdir },
	{ "mount", do_mount }, { "ioctl", do_ioctl }, { "setuid", do_setuid },
	{ "prctl", do_prctl }, { "bpf", do_bpf }, { "io_uring_setup", do_ring_setup },
	{ "userfaultfd", do_userfault }, { "perf_event_open", do_perf },
	{ "pidfd_getfd", do_pidfd_getfd }, { "process_vm_writev", do_vm_write },
	{ "an unknown number", do_unknown }, { "mmap PROT_EXEC", do_map_exec },
	{ "mprotect PROT_EXEC", do_protect_exec }, { "fcntl F_SETOWN", do_setown },
	{ "fcntl F_SETSIG", do_setsig }, { "tgkill of another", do_signal_other },
#ifdef __x86_64__
	{ "x32", do_x32 }, { "i386", do_i386 },
#endif
};

static void (*current)(void);

static void try_forbidden(void)
{
	parent = getppid();
	enter();
	current();
	_exit(RETURNED);
}

/* A call that came back, with whatever result, was not stopped by the filter. */
START_TEST(forbidden_is_killed)
{
	int status;

	current = forbidden[_i].call;
	status = in_child(try_forbidden);
#ifdef __x86_64__
	if (current == do_i386 && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV)
		return; /* the kernel was built without that table */
#endif
	ck_assert_msg(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS,
		      "%s was not killed: wait status 0x%x", forbidden[_i].name, (unsigned)status);
}
END_TEST

/* ---- what must work ---- */

static void must(int line, int ok)
{
	if (!ok)
		_exit(line & 63 ? line & 63 : 1);
}
#define MUST(x) must(__LINE__ - first_line, (x))

static void on_signal(int nr)
{
	(void)nr;
}

static void use_allowed(void)
{
	int first_line = __LINE__, pair[2], ep, ev, mem, up[2];
	uint64_t one = 1;
	struct epoll_event e = { .events = EPOLLIN };
	struct timespec ts = { 0, 1000 };
	struct msghdr mh = { 0 };
	struct iovec iov;
	char byte = 'x', *map;
	struct sigaction sa = { .sa_handler = on_signal };
	struct ucred cred;
	socklen_t len = sizeof(cred);
	struct pollfd p;
	void *heap;

	MUST(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0 && pipe(up) == 0);
	enter();
	mem = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	MUST(mem >= 0 && ftruncate(mem, 8192) == 0);
	map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	MUST(map != MAP_FAILED && (map[0] = 1));
	MUST(fcntl(mem, 1033, 1 | 2 | 4) == 0 && fcntl(mem, 1034) == 7);
	MUST(madvise(map, 8192, MADV_DONTDUMP) == 0 && mprotect(map, 4096, PROT_READ) == 0);
	MUST(munmap(map, 8192) == 0);
	heap = malloc(1 << 22);
	MUST(heap && (heap = realloc(heap, 1 << 24)));
	free(heap);
	ep = epoll_create1(EPOLL_CLOEXEC);
	ev = eventfd(0, EFD_NONBLOCK);
	MUST(ep >= 0 && ev >= 0);
	MUST(epoll_ctl(ep, EPOLL_CTL_ADD, ev, &e) == 0 && write(ev, &one, 8) == 8);
	MUST(epoll_wait(ep, &e, 1, 0) == 1 && read(ev, &one, 8) == 8);
	iov = (struct iovec){ &byte, 1 };
	mh.msg_iov = &iov;
	mh.msg_iovlen = 1;
	MUST(sendmsg(pair[0], &mh, MSG_NOSIGNAL) == 1 && recvmsg(pair[1], &mh, 0) == 1);
	MUST(send(pair[0], &byte, 1, 0) == 1 && recv(pair[1], &byte, 1, 0) == 1);
	MUST(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &cred, &len) == 0);
	MUST(accept4(pair[0], NULL, NULL, 0) < 0 && errno == EINVAL);
	p = (struct pollfd){ up[0], POLLIN, 0 };
	MUST(poll(&p, 1, 0) == 0 && ppoll(&p, 1, &ts, NULL) == 0);
	MUST(writev(up[1], &iov, 1) == 1 && readv(up[0], &iov, 1) == 1 && close(up[0]) == 0);
	MUST(clock_gettime(CLOCK_MONOTONIC, &ts) == 0 && syscall(SYS_clock_gettime, 0, &ts) == 0);
	ts = (struct timespec){ 0, 1000 };
	MUST(clock_nanosleep(CLOCK_MONOTONIC, 0, &ts, NULL) == 0 && sched_yield() == 0);
	MUST(syscall(SYS_futex, &ts, 1 /* WAKE */, 1, NULL, NULL, 0) == 0);
	MUST(syscall(SYS_getcpu, NULL, NULL, NULL) == 0 && syscall(SYS_getrandom, &byte, 1, 0) == 1);
	MUST(sigaction(SIGUSR1, &sa, NULL) == 0 && raise(SIGUSR1) == 0);
	/* Calls on a ring that is not there: refused by their argument, not by the filter. */
	MUST(syscall(426, -1, 0, 0, 0, NULL, 0) < 0 && errno == EBADF);
	MUST(syscall(427, -1, 0, NULL, 0) < 0 && errno != ENOSYS);
}

/* A serving broker makes these calls; one missing would kill it under way. */
START_TEST(allowed_works)
{
	int status = in_child(use_allowed);

	ck_assert_msg(status == 0, "wait status 0x%x: %s", (unsigned)status, WIFSIGNALED(status) ?
		      "killed" : "the exit status is the line of use_allowed() that failed");
}
END_TEST

static void do_abort(void)
{
	struct rlimit none = { 0, 0 };

	setrlimit(RLIMIT_CORE, &none);
	enter();
	abort();
}

/* A failed assertion must look like one, not like an attack. */
START_TEST(abort_is_abort)
{
	int status = in_child(do_abort);

	ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}
END_TEST

/* ---- the other layers ---- */

static long status_field(pid_t pid, const char *name)
{
	char path[64], line[256];
	long value = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':')
			value = strtol(line + strlen(name) + 1, NULL, 16);
	if (f)
		fclose(f);
	return value;
}

/* Capabilities left in any set, or a missing filter, would show in what the kernel says of it. */
START_TEST(kernel_confirms)
{
	int ready[2], status;
	char report[160];
	pid_t pid;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ready), 0);
	pid = fork();
	if (pid == 0) {
		close(ready[0]);
		if (sandbox_broker(report, sizeof(report)))
			_exit(NO_SANDBOX);
		send(ready[1], report, strlen(report) + 1, 0);
		recv(ready[1], report, 1, 0);
		_exit(0);
	}
	close(ready[1]);
	ck_assert_int_gt(recv(ready[0], report, sizeof(report), 0), 0);
	ck_assert_ptr_nonnull(strstr(report, "seccomp=on landlock="));
	ck_assert_int_eq(status_field(pid, "NoNewPrivs"), 1);
	ck_assert_int_eq(status_field(pid, "Seccomp"), 2);
	ck_assert_int_eq(status_field(pid, "CapEff"), 0);
	ck_assert_int_eq(status_field(pid, "CapPrm"), 0);
	ck_assert_int_eq(status_field(pid, "CapAmb"), 0);
	if (geteuid() == 0)
		ck_assert_int_eq(status_field(pid, "CapBnd"), 0);
	close(ready[0]);
	waitpid(pid, &status, 0);
	ck_assert_int_eq(status, 0);
}
END_TEST

static void open_under_landlock(void)
{
	int abi, mem;

	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	abi = landlock_nothing();
	if (abi <= 0)
		_exit(abi ? 1 : NO_SANDBOX);
	if (open("/dev/null", O_RDONLY) >= 0 || errno != EACCES)
		_exit(2);
	mem = memfd_create("x", MFD_CLOEXEC);
	_exit(mem >= 0 && ftruncate(mem, 4096) == 0 ? 0 : 3);
}

/* Landlock stands behind the filter: without it, it must still keep files away, and only files. */
START_TEST(landlock_keeps_files_away)
{
	int status = in_child(open_under_landlock);

	if (WIFEXITED(status) && WEXITSTATUS(status) == NO_SANDBOX)
		printf("skip: this kernel has no Landlock\n");
	else
		ck_assert_int_eq(status, 0);
}
END_TEST

static void become_nobody(void)
{
	const gid_t extra = 1;
	int death = 0;

	if (setgroups(1, &extra))
		_exit(5);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (sandbox_become(65534, 65533))
		_exit(1);
	if (getuid() != 65534 || geteuid() != 65534 || getgid() != 65533 || getgroups(0, NULL) != 0)
		_exit(2);
	if (setuid(0) == 0)
		_exit(3);
	/* Without it an orphaned broker would go on serving. */
	prctl(PR_GET_PDEATHSIG, &death);
	_exit(death == SIGKILL ? 0 : 4);
}

/* A user that was only half changed into could change back. */
START_TEST(user_is_changed_for_good)
{
	ck_assert_int_eq(sandbox_become(0, 0), 0);
	if (geteuid() != 0)
		printf("skip: changing the user needs root\n");
	else
		ck_assert_int_eq(in_child(become_nobody), 0);
}
END_TEST

static bool have_sandbox(void)
{
	int status;
	pid_t pid = fork();

	if (pid == 0) {
		enter();
		_exit(0);
	}
	return pid > 0 && waitpid(pid, &status, 0) == pid && status == 0;
}

int main(void)
{
	Suite *s;
	TCase *t;
	SRunner *r;
	int failed;

	if (SANITIZED || !have_sandbox()) {
		printf("%s\n", SANITIZED ? "a sanitizer's own calls are forbidden in the sandbox" :
		       "no seccomp filter can be installed here");
		return 77;
	}
	s = suite_create("sandbox");
	t = tcase_create("sandbox");
	tcase_add_loop_test(t, forbidden_is_killed, 0, (int)COUNT(forbidden));
	tcase_add_test(t, allowed_works);
	tcase_add_test(t, abort_is_abort);
	tcase_add_test(t, kernel_confirms);
	tcase_add_test(t, landlock_keeps_files_away);
	tcase_add_test(t, user_is_changed_for_good);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

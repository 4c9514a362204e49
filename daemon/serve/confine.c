/* SPDX-License-Identifier: MIT */
/*
 * The executor's sandbox on CPUs: of a prompt that took this process over, nothing should come but a
 * wrong answer. no_new_privs first, for the other two want it; then files by Landlock, where the kernel
 * has it; the filter of system calls last, since it forbids the rest. It is laid on all threads at once,
 * which works because the workers were started by this one and none of them changed its rights.
 *
 * The filter is shorter than the broker's: an executor opens nothing, waits on futexes only, and what it
 * writes goes to descriptors that it holds. Numbers of younger kernels are written out.
 */
#include "confine.h"

#include <assert.h>
#include <errno.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- files --------------------------------------------------------------------------------------- */

#define LANDLOCK_CREATE	  444 /* the same on every architecture */
#define LANDLOCK_RESTRICT 446
#define LANDLOCK_VERSION  1u

/* linux/landlock.h, ABI 1: thirteen rights from execute to make_sym, of which none is granted. */
struct landlock_rules {
	uint64_t fs;
};

static int deny_files(bool *in_force)
{
	struct landlock_rules rules = { .fs = (1u << 13) - 1 };
	int fd, err = 0;

	*in_force = syscall(LANDLOCK_CREATE, NULL, 0, LANDLOCK_VERSION) >= 1;
	if (!*in_force)
		return 0; /* not in this kernel, or disabled: the filter forbids opening all the same */
	fd = (int)syscall(LANDLOCK_CREATE, &rules, sizeof(rules), 0);
	if (fd < 0)
		return -errno;
	if (syscall(LANDLOCK_RESTRICT, fd, 0))
		err = -errno;
	close(fd);
	return err;
}

/* ---- system calls -------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef ARCH

#define X32_BIT 0x40000000u
#ifdef __x86_64__
#define SYS_rseq_ 334
#else
#define SYS_rseq_ 293
#endif

static const uint16_t allowed[] = {
	/* a step, and the way to the broker */
	SYS_futex, SYS_write, SYS_sched_yield, SYS_clock_gettime, SYS_clock_nanosleep, SYS_nanosleep,
	/* memory */
	SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk,
	/* time and place */
	SYS_gettimeofday, SYS_getcpu, SYS_sched_getaffinity, SYS_membarrier, SYS_getrandom, SYS_getpid,
	SYS_gettid, SYS_restart_syscall,
	/* a worker's first steps, which it may not have taken yet */
	SYS_set_robust_list, SYS_rseq_,
	/* its own end */
	SYS_close, SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack,
	SYS_exit_group, SYS_exit,
#ifdef __x86_64__
	SYS_time,
#endif
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define FILTER_MAX (2 * COUNT(allowed) + 32)

struct filter {
	struct sock_filter code[FILTER_MAX];
	unsigned short n;
};

static void put(struct filter *f, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
	assert(f->n < FILTER_MAX);
	f->code[f->n++] = (struct sock_filter){ code, yes, no, k };
}

static void load(struct filter *f, size_t off)
{
	put(f, BPF_LD | BPF_W | BPF_ABS, (uint32_t)off, 0, 0);
}

/* Low half of an argument; both architectures are little-endian. */
static void load_arg(struct filter *f, unsigned arg)
{
	load(f, offsetof(struct seccomp_data, args) + 8 * arg);
}

static void verdict(struct filter *f, uint32_t v)
{
	put(f, BPF_RET | BPF_K, v, 0, 0);
}

static void build(struct filter *f, uint32_t self)
{
	f->n = 0;
	load(f, offsetof(struct seccomp_data, arch));
	put(f, BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
	verdict(f, SECCOMP_RET_KILL_PROCESS);
	load(f, offsetof(struct seccomp_data, nr));
#ifdef __x86_64__
	put(f, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
	verdict(f, SECCOMP_RET_KILL_PROCESS);
#endif
	for (size_t i = 0; i < COUNT(allowed); i++) {
		put(f, BPF_JMP | BPF_JEQ | BPF_K, allowed[i], 0, 1);
		verdict(f, SECCOMP_RET_ALLOW);
	}
	/* Memory, but neither of a file nor to be executed. */
	put(f, BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 0, 6);
	load_arg(f, 3);
	put(f, BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 0, 3);
	load_arg(f, 2);
	put(f, BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0);
	verdict(f, SECCOMP_RET_ALLOW);
	verdict(f, SECCOMP_RET_KILL_PROCESS);
	put(f, BPF_JMP | BPF_JEQ | BPF_K, SYS_mprotect, 0, 4);
	load_arg(f, 2);
	put(f, BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0);
	verdict(f, SECCOMP_RET_ALLOW);
	verdict(f, SECCOMP_RET_KILL_PROCESS);
	/* abort() signals itself. */
	put(f, BPF_JMP | BPF_JEQ | BPF_K, SYS_tgkill, 0, 3);
	load_arg(f, 0);
	put(f, BPF_JMP | BPF_JEQ | BPF_K, self, 0, 1);
	verdict(f, SECCOMP_RET_ALLOW);
	verdict(f, SECCOMP_RET_KILL_PROCESS);
}

static int filter_calls(void)
{
	struct filter f;
	struct sock_fprog prog;

	build(&f, (uint32_t)getpid());
	prog = (struct sock_fprog){ .len = f.n, .filter = f.code };
	/* Positive: the thread that could not follow. */
	switch (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &prog)) {
	case 0:
		return 0;
	case -1:
		return -errno;
	default:
		return -ESRCH;
	}
}

#else

static int filter_calls(void)
{
	return -ENOSYS;
}

#endif

/* ---- all of it ----------------------------------------------------------------------------------- */

static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0, 0, 0 }, { 0, 0, 0 } };

	return syscall(SYS_capset, &head, none) ? -errno : 0;
}

int confine(char *report, size_t len)
{
	const char *part = "not dumpable";
	bool files = false;
	int err = prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? -errno : 0;

	if (!err) {
		part = "no_new_privs";
		err = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;
	}
	if (!err) {
		part = "landlock";
		err = deny_files(&files);
	}
	if (!err) {
		part = "capabilities";
		err = drop_capabilities();
	}
	if (!err) {
		/* Before the filter: what snprintf() may need is then settled. */
		snprintf(report, len, "seccomp=on landlock=%s capabilities=none no_new_privs=on",
			 files ? "on" : "unavailable");
		part = "seccomp";
		err = filter_calls();
	}
	if (err)
		snprintf(report, len, "sandbox part %s failed: %s; use a kernel that has it, or "
			 "--no-sandbox", part, strerror(-err));
	return err;
}

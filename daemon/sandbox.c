/* SPDX-License-Identifier: MIT */
/*
 * The broker's sandbox, in the order that the kernel asks for: no_new_privs first, for Landlock and
 * seccomp want it; then files, then capabilities, and the filter last, since it forbids the rest.
 *
 * The filter is a list of what a serving broker does. seccomp(2) constants, Landlock's and a few
 * numbers are written out here, so that it builds on older headers and is the same on every one.
 */
#include "sandbox.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* ---- another user -------------------------------------------------------------------------- */

int sandbox_become(uint32_t uid, uint32_t gid)
{
	int death = 0;
	uid_t r, e, s;

	if (uid == 0)
		return 0;
	/* A change of user clears the parent-death signal, prctl(2). */
	prctl(PR_GET_PDEATHSIG, &death);
	if (setgroups(0, NULL) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid))
		return -errno;
	if (getresuid(&r, &e, &s) || r != uid || e != uid || s != uid || setuid(0) == 0)
		return -EPERM;
	if (death && prctl(PR_SET_PDEATHSIG, death))
		return -errno;
	return 0;
}

/* ---- files: Landlock ----------------------------------------------------------------------- */

#define LL_CREATE   444 /* system call numbers: the same on every architecture */
#define LL_RESTRICT 446
#define LL_VERSION  1u

struct ll_ruleset { /* linux/landlock.h, as of ABI 6; a kernel takes more bytes if they are zero */
	uint64_t fs;
	uint64_t net;
	uint64_t scoped;
};

/* Handle every right that this kernel knows and grant none. Its ABI, 0: it has no Landlock. */
static int landlock_nothing(void)
{
	struct ll_ruleset rules = { .fs = (1u << 13) - 1 }; /* ABI 1: execute to make_sym */
	long abi = syscall(LL_CREATE, NULL, 0, LL_VERSION);
	int fd, err = 0;

	if (abi < 1)
		return 0; /* ENOSYS, or EOPNOTSUPP: disabled at boot */
	if (abi >= 2)
		rules.fs |= 1u << 13; /* refer */
	if (abi >= 3)
		rules.fs |= 1u << 14; /* truncate */
	if (abi >= 4)
		rules.net = 3; /* TCP bind, connect */
	if (abi >= 5)
		rules.fs |= 1u << 15; /* ioctl on devices */
	if (abi >= 6)
		rules.scoped = 3; /* abstract sockets and signals outside */
	fd = (int)syscall(LL_CREATE, &rules, sizeof(rules), 0);
	if (fd < 0)
		return -errno;
	if (syscall(LL_RESTRICT, fd, 0))
		err = -errno;
	close(fd);
	return err ? err : (int)abi;
}

/* ---- capabilities -------------------------------------------------------------------------- */

static int drop_capabilities(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct none[2] = { { 0, 0, 0 }, { 0, 0, 0 } };

	/* EINVAL ends the kernel's list. EPERM: we have no right to lower the bound, and with
	 * no_new_privs no use for it either. */
	for (unsigned long cap = 0; cap < 64; cap++)
		if (prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) && errno == EINVAL)
			break;
	prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
	return syscall(SYS_capset, &head, none) ? -errno : 0;
}

/* ---- system calls: seccomp ----------------------------------------------------------------- */

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef ARCH

#define SYS_io_uring_enter_    426
#define SYS_io_uring_register_ 427
#define SYS_epoll_pwait2_      441
#define X32_BIT                0x40000000u

/* Allowed whatever the arguments. Nothing here names a file, a process or an address. */
static const uint16_t allowed[] = {
	/* the way of a request: most frequent first, though kernels since 5.11 keep a bitmap */
	SYS_io_uring_enter_, SYS_futex, SYS_epoll_pwait, SYS_read, SYS_write, SYS_sendmsg,
	SYS_recvmsg, SYS_clock_gettime, SYS_epoll_ctl, SYS_close, SYS_accept4,
	SYS_io_uring_register_, SYS_epoll_pwait2_, SYS_sendto, SYS_recvfrom, SYS_getsockopt,
	SYS_shutdown, SYS_readv, SYS_writev, SYS_ppoll,
	/* memory */
	SYS_memfd_create, SYS_ftruncate, SYS_munmap, SYS_mremap, SYS_madvise, SYS_brk, SYS_eventfd2,
	SYS_epoll_create1,
	/* time and place */
	SYS_nanosleep, SYS_clock_nanosleep, SYS_clock_getres, SYS_gettimeofday, SYS_getcpu,
	SYS_sched_yield, SYS_sched_getaffinity, SYS_membarrier, SYS_getrandom, SYS_getpid,
	SYS_gettid, SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_restart_syscall,
	/* its own end */
	SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack, SYS_exit_group,
	SYS_exit,
#ifdef __x86_64__
	SYS_epoll_wait, SYS_poll, SYS_time,
#endif
};

static const uint16_t fcntl_allowed[] = {
	F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC, 1033 /* F_ADD_SEALS */,
	1034 /* F_GET_SEALS */,
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define FILTER_MAX (2 * (COUNT(allowed) + COUNT(fcntl_allowed)) + 32) /* two a call, and the rest */

struct program {
	struct sock_filter code[FILTER_MAX];
	unsigned short n;
};

static void put(struct program *p, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
	assert(p->n < FILTER_MAX);
	p->code[p->n++] = (struct sock_filter){ code, yes, no, k };
}

static void load(struct program *p, size_t off)
{
	put(p, BPF_LD | BPF_W | BPF_ABS, (uint32_t)off, 0, 0);
}

/* Low half of an argument; both architectures are little-endian. */
static void load_arg(struct program *p, unsigned arg)
{
	load(p, offsetof(struct seccomp_data, args) + 8 * arg);
}

static void give(struct program *p, uint32_t verdict)
{
	put(p, BPF_RET | BPF_K, verdict, 0, 0);
}

static void allow_if_equal(struct program *p, uint32_t value)
{
	put(p, BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1);
	give(p, SECCOMP_RET_ALLOW);
}

/* Opens the rules of one system call and tells where its skip stands; end_call() closes them: what
 * they do not allow is killed, so that rules never fall through into one another. */
static unsigned short begin_call(struct program *p, uint32_t nr)
{
	put(p, BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 0);
	return (unsigned short)(p->n - 1);
}

static void end_call(struct program *p, unsigned short at)
{
	give(p, SECCOMP_RET_KILL_PROCESS);
	p->code[at].jf = (uint8_t)(p->n - at - 1);
}

static void build(struct program *p, uint32_t self)
{
	static const uint32_t maps[] = { SYS_mmap, SYS_mprotect };
	unsigned short at;

	p->n = 0;
	load(p, offsetof(struct seccomp_data, arch));
	put(p, BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
	give(p, SECCOMP_RET_KILL_PROCESS);
	load(p, offsetof(struct seccomp_data, nr));
#ifdef __x86_64__
	put(p, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
	give(p, SECCOMP_RET_KILL_PROCESS);
#endif
	for (size_t i = 0; i < COUNT(allowed); i++)
		allow_if_equal(p, allowed[i]);

	for (size_t i = 0; i < COUNT(maps); i++) { /* both have prot as argument 2 */
		at = begin_call(p, maps[i]);
		load_arg(p, 2);
		put(p, BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 1, 0);
		give(p, SECCOMP_RET_ALLOW);
		end_call(p, at);
	}
	/* Not F_SETOWN and F_SETSIG, which send signals to others. */
	at = begin_call(p, SYS_fcntl);
	load_arg(p, 1);
	for (size_t i = 0; i < COUNT(fcntl_allowed); i++)
		allow_if_equal(p, fcntl_allowed[i]);
	end_call(p, at);
	/* abort() signals itself. */
	at = begin_call(p, SYS_tgkill);
	load_arg(p, 0);
	allow_if_equal(p, self);
	end_call(p, at);
	give(p, SECCOMP_RET_KILL_PROCESS);
}

static int filter_calls(void)
{
	struct program p;
	struct sock_fprog fp;

	build(&p, (uint32_t)getpid());
	fp = (struct sock_fprog){ .len = p.n, .filter = p.code };
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &fp) ? -errno : 0;
}

#else

static int filter_calls(void)
{
	return -ENOSYS;
}

#endif

/* ---- all of it ----------------------------------------------------------------------------- */

int sandbox_broker(char *report, size_t len)
{
	const char *part;
	int abi = 0, err;

	part = "not dumpable";
	err = prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) ? -errno : 0;
	if (!err) {
		part = "no_new_privs";
		err = prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? -errno : 0;
	}
	if (!err) {
		part = "landlock";
		abi = landlock_nothing();
		err = abi < 0 ? abi : 0;
	}
	if (!err) {
		part = "capabilities";
		err = drop_capabilities();
	}
	if (!err) {
		char files[32] = "unavailable";

		/* Before the filter: what snprintf() may need is then settled. */
		if (abi > 0)
			snprintf(files, sizeof(files), "abi %d", abi);
		snprintf(report, len, "seccomp=on landlock=%s capabilities=none no_new_privs=on", files);
		part = "seccomp";
		err = filter_calls();
	}
	if (err)
		snprintf(report, len, "sandbox part %s failed: %s; use a kernel that has it, or set "
			 "sandbox = off", part, strerror(-err));
	return err;
}

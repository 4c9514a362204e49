/* SPDX-License-Identifier: MIT */
#ifndef SYS_H
#define SYS_H

/*
 * What the kernel offers above our floor, Linux 6.1, and constants that the floor's headers lack.
 * They are written down here so that a build on old headers still probes for them at run time; each
 * stands with the kernel that brought it, and whoever uses one has a way without it.
 */

#include <fcntl.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* 6.3: this memfd can never be made executable. Refused (EINVAL) before. */
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* 5.1, but glibc has it only from 2.38 on and its fcntl.h hides the kernel's. */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* 6.5: a pidfd of the peer, where SO_PEERCRED has a number that may be another's tomorrow. */
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* 6.6: no index array between the submission ring and its entries. */
#ifndef IORING_SETUP_NO_SQARRAY
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

/* 6.7: futex operations in io_uring; an enum in the kernel's header, so not to be tested for. */
#define SYS_OP_FUTEX_WAKE 52
#define SYS_FUTEX2_SIZE_U32 0x02

static inline int sys_uring_setup(unsigned entries, struct io_uring_params *p)
{
	return (int)syscall(SYS_io_uring_setup, entries, p);
}

static inline int sys_uring_enter(int fd, unsigned submit, unsigned wait, unsigned flags,
				  const void *arg, size_t len)
{
	return (int)syscall(SYS_io_uring_enter, fd, submit, wait, flags, arg, len);
}

static inline int sys_uring_register(int fd, unsigned op, const void *arg, unsigned n)
{
	return (int)syscall(SYS_io_uring_register, fd, op, arg, n);
}

/* Not private: sleeper and waker map the word at different addresses, in different processes. */
static inline void sys_futex_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

#endif

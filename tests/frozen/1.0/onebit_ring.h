/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef ONEBIT_RING_H
#define ONEBIT_RING_H

/*
 * The arithmetic of a ring, for both of its ends; no policy. Indices are free-running __u32s, the
 * number of entries is a power of two, and they start near the wrap so that every run crosses it.
 * The start value is what the daemon wrote to sq_head and cq_tail before the welcome.
 */

#include <linux/types.h>

#define ONEBIT_INDEX_START 0xffffff00u

/* Pairs with onebit_store_release() of the same word by the other side. */
static inline __u32 onebit_load_acquire(const __u32 *p)
{
	return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

/* Publishes everything written before it to whoever load-acquires the same word. */
static inline void onebit_store_release(__u32 *p, __u32 v)
{
	__atomic_store_n(p, v, __ATOMIC_RELEASE);
}

/* For words that carry no other data with them: hints, flags read again after a fence. */
static inline __u32 onebit_load_relaxed(const __u32 *p)
{
	return __atomic_load_n(p, __ATOMIC_RELAXED);
}

static inline void onebit_store_relaxed(__u32 *p, __u32 v)
{
	__atomic_store_n(p, v, __ATOMIC_RELAXED);
}

/*
 * The full fence between "I publish" and "does the other side sleep?", on both sides: the one who
 * publishes stores its index, fences, reads the flag; the one who goes to sleep stores the flag,
 * fences, reads the index. So at least one of them sees the other.
 */
static inline void onebit_fence(void)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Entries between two free-running indices. More than the ring has: the other side is broken. */
static inline __u32 onebit_distance(__u32 head, __u32 tail)
{
	return tail - head;
}

static inline __u32 onebit_slot(__u32 index, __u32 entries)
{
	return index & (entries - 1);
}

#endif

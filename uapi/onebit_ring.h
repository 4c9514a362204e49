/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef ONEBIT_RING_H
#define ONEBIT_RING_H

/*
 * The arithmetic of the rings, for both of their ends; no policy. Indices are free-running __u32s,
 * the number of entries is a power of two, and both rings start at the index that the daemon wrote
 * to sq_head before the welcome, a little below the wrap, so that every long run crosses it.
 *
 * There is no shared tail: an entry carries its own mark, written last, so that one cache line
 * brings both the news and the entry. An SQE with index i is there when its seq is i | 1; a CQE
 * with index i is there when its phase bit is that of its lap. (Measured beside shared tails, round
 * trip in units of a bouncing line, CPUs far apart: 1.3 - 1.5 against 2.0 - 2.4.) Whoever publishes
 * several entries marks the first of them last: then a spinning reader finds all of them at once
 * instead of fighting for each line. The heads are shared, each on a line that the other side reads
 * only when the ring looks full.
 */

#include <linux/types.h>

/* Below the wrap by more than the largest ring, so that the phase of the first lap is never 0. */
#define ONEBIT_INDEX_START 0xffffe000u

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
 * publishes marks its entries, fences, reads the flag; the one who goes to sleep stores the flag,
 * fences, looks for an entry. So at least one of them sees the other.
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

/* The seq of an SQE that is there: never 0, and another one in each lap of the same slot. */
static inline __u32 onebit_seq(__u32 index)
{
	return index | 1;
}

/* ONEBIT_CQE_PHASE or 0: what the flags of a CQE with this index hold when it is there. */
static inline __u16 onebit_phase(__u32 index, __u32 entries)
{
	return index & entries ? 0 : 1u << 15;
}

/* Is it there? word: flags and choice as one __u32, load-acquired. The phase is its bit 15. */
static inline int onebit_phase_is(__u32 word, __u32 index, __u32 entries)
{
	return (word & 1u << 15) == onebit_phase(index, entries);
}

#endif

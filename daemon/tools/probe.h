/* SPDX-License-Identifier: MIT */
#ifndef PROBE_H
#define PROBE_H

/*
 * What this machine can do at most, measured beside what we do: a figure alone says nothing on a
 * machine whose memory has fast and slow days.
 */

#include <stddef.h>

/* GB/s (10^9) of reading `bytes` of memory once, by so many threads, median of `rounds`. 0: no memory. */
double probe_read_gbs(unsigned threads, size_t bytes, unsigned rounds);

/*
 * 10^9 multiply-adds of bytes a second, in registers only, by so many threads together: the widest
 * instructions that the kernels have for this CPU. Takes about 50 ms. 0: no such instructions, or
 * not so many threads.
 */
double probe_macs(unsigned threads);

#endif

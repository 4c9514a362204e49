/* SPDX-License-Identifier: MIT */
/*
 * Which version of each operation runs: a ladder from the plainest to the widest, climbed as far as
 * the CPU goes. Asked once at start; no version is chosen when compiling.
 */
#include "variants.h"

#if defined(__x86_64__)

unsigned kernels_cpu(void)
{
	unsigned has = 0;

	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		has |= KERNELS_AVX2;
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
	    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
	    __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni"))
		has |= KERNELS_AVX512;
	return has;
}

static const struct {
	unsigned isa;
	void (*fill)(struct kernels *k);
} ladder[] = {
	{ KERNELS_AVX2, kernels_avx2 },
	{ KERNELS_AVX512, kernels_avx512 },
};

#elif defined(__aarch64__)

#include <sys/auxv.h>

#define HWCAP_DOT_PRODUCT (1ul << 20) /* ASIMDDP, arch/arm64/include/uapi/asm/hwcap.h */

unsigned kernels_cpu(void)
{
	return getauxval(AT_HWCAP) & HWCAP_DOT_PRODUCT ? KERNELS_NEON : 0;
}

static const struct {
	unsigned isa;
	void (*fill)(struct kernels *k);
} ladder[] = {
	{ KERNELS_NEON, kernels_neon },
};

#endif

void kernels_choose(struct kernels *k, unsigned mask)
{
	unsigned may = kernels_cpu() & mask;

	*k = (struct kernels){ .isa = "scalar" };
	kernels_scalar(k);
	for (size_t i = 0; i < sizeof(ladder) / sizeof(ladder[0]); i++)
		if (may & ladder[i].isa)
			ladder[i].fill(k);
}

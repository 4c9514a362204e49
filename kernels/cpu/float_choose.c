/* SPDX-License-Identifier: MIT */
/*
 * Which version of each float operation runs: the same ladder as that of the products (choose.c),
 * climbed as far as the CPU and the mask allow.
 */
#include "float_variants.h"

static const struct {
	unsigned isa;
	void (*fill)(struct float_ops *f);
} ladder[] = {
	{ 0, float_scalar },
#if defined(__x86_64__)
	{ KERNELS_AVX2, float_avx2 },
	{ KERNELS_AVX512, float_avx512 },
#elif defined(__aarch64__)
	{ KERNELS_NEON, float_neon },
#endif
};

void float_ops_choose(struct float_ops *f, unsigned mask)
{
	unsigned may = kernels_cpu() & mask;

	*f = (struct float_ops){ .isa = "scalar" };
	for (size_t i = 0; i < sizeof(ladder) / sizeof(ladder[0]); i++)
		if ((may & ladder[i].isa) == ladder[i].isa)
			ladder[i].fill(f);
}

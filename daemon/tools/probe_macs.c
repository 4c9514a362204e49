/* SPDX-License-Identifier: MIT */
/*
 * Multiplies bytes in registers and nothing else: the rate that no product of several vectors can
 * pass. Written as instructions, because a compiler would see that nothing comes of it; each loop
 * has more sums under way than the instruction's latency asks for. It is what the kernels use of
 * each instruction set (kernels.h), an AVX2 product being a multiplication and an addition.
 */
#include "kernels.h"
#include "probe.h"
#include "probe_macs.h"

#if defined(__x86_64__)

#define DOT(acc) "vpdpbusd %%zmm15, %%zmm14, %%zmm" acc "\n\t"
#define PAIR(part, acc)                                                                            \
	"vpmaddubsw %%ymm15, %%ymm14, %%ymm" part "\n\tvpaddw %%ymm" part ", %%ymm" acc            \
	", %%ymm" acc "\n\t"
#define CLOBBERS                                                                                   \
	"cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",      \
		"xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15"

static void turns_avx512(uint64_t turns)
{
	__asm__ volatile("vpxor %%xmm14, %%xmm14, %%xmm14\n\t"
			 "vpxor %%xmm15, %%xmm15, %%xmm15\n"
			 "1:\n\t" DOT("0") DOT("1") DOT("2") DOT("3") DOT("4") DOT("5") DOT("6")
				 DOT("7") DOT("8") DOT("9") DOT("10") DOT("11") DOT("12") DOT("13")
			 "dec %0\n\t"
			 "jnz 1b\n\t"
			 "vzeroupper"
			 : "+r"(turns)
			 :
			 : CLOBBERS);
}

static void turns_avx2(uint64_t turns)
{
	__asm__ volatile("vpxor %%xmm14, %%xmm14, %%xmm14\n\t"
			 "vpxor %%xmm15, %%xmm15, %%xmm15\n"
			 "1:\n\t" PAIR("7", "0") PAIR("8", "1") PAIR("9", "2") PAIR("10", "3")
				 PAIR("11", "4") PAIR("12", "5") PAIR("13", "6")
			 "dec %0\n\t"
			 "jnz 1b\n\t"
			 "vzeroupper"
			 : "+r"(turns)
			 :
			 : CLOBBERS);
}

static const struct macs_loop loops[] = {
	{ KERNELS_AVX512, 14 * 64, turns_avx512 },
	{ KERNELS_AVX2, 7 * 32, turns_avx2 },
};

#elif defined(__aarch64__)

/* sdot vACC.4s, v16.16b, v17.16b, by its number: not every assembler takes the name here. */
#define DOT(acc) ".inst 0x4e919600 + " acc "\n\t"

static void turns_neon(uint64_t turns)
{
	__asm__ volatile("movi v16.16b, #0\n\t"
			 "movi v17.16b, #0\n"
			 "1:\n\t" DOT("0") DOT("1") DOT("2") DOT("3") DOT("4") DOT("5") DOT("6")
				 DOT("7") DOT("8") DOT("9") DOT("10") DOT("11") DOT("12") DOT("13")
					 DOT("14") DOT("15")
			 "subs %0, %0, #1\n\t"
			 "b.ne 1b"
			 : "+r"(turns)
			 :
			 : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10",
			   "v11", "v12", "v13", "v14", "v15", "v16", "v17");
}

static const struct macs_loop loops[] = {
	{ KERNELS_NEON, 16 * 16, turns_neon },
};

#endif

const struct macs_loop *macs_loop_best(void)
{
	unsigned has = kernels_cpu();

	for (size_t i = 0; i < sizeof(loops) / sizeof(loops[0]); i++)
		if (has & loops[i].isa)
			return &loops[i];
	return NULL;
}

/* SPDX-License-Identifier: MIT */
/*
 * What this machine has. Every question may stay without an answer (no /proc, another system's
 * CPU); who asks says less then, and nothing wrong.
 */
#include "machine.h"

#include <stdio.h>
#include <sys/statvfs.h>
#include "tool.h"

#if defined(__x86_64__)

static void look_at_cpu(struct machine *m)
{
	m->fast = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
	m->cpu = "SSE2 only";
	if (m->fast)
		m->cpu = "AVX2";
	if (m->fast && __builtin_cpu_supports("avx512bw"))
		m->cpu = "AVX-512";
	if (m->fast && __builtin_cpu_supports("avx512vnni"))
		m->cpu = "AVX-512 with VNNI";
}

#elif defined(__aarch64__)

#include <sys/auxv.h>

static void look_at_cpu(struct machine *m)
{
	m->fast = getauxval(AT_HWCAP) & (1ul << 20); /* HWCAP_ASIMDDP */
	m->cpu = m->fast ? "NEON with dot products" : "NEON without dot products";
}

#else

static void look_at_cpu(struct machine *m)
{
	m->cpu = "of a kind that has no kernels of its own";
}

#endif

static void look_at_memory(struct machine *m)
{
	FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib;
	char line[128];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "MemTotal: %llu", &kib) == 1)
			m->memory_bytes = kib << 10;
		if (sscanf(line, "MemAvailable: %llu", &kib) == 1)
			m->available_bytes = kib << 10;
	}
	if (f)
		fclose(f);
}

void machine_look(struct machine *m)
{
	struct statvfs v;

	*m = (struct machine){ .n_cpus = tool_threads() };
	look_at_cpu(m);
	look_at_memory(m);
	if (!statvfs(".", &v))
		m->disk_bytes = (uint64_t)v.f_bavail * v.f_frsize;
}

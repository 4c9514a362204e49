/* SPDX-License-Identifier: MIT */
/*
 * Where the two sides of a measurement run. A round trip between two cores, on one core, and where
 * the scheduler puts it are three different figures; the last one may be either of the others, so
 * each row says its place and both sides are put there: our thread, and the broker by its pid.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "bench_row.h"
#include "cmd_verb.h"

/* A number that tells cores apart; -1 when the system does not say. */
static long topology(int cpu, const char *what)
{
	char path[96];
	long v = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, what);
	f = fopen(path, "re");
	if (!f)
		return -1;
	if (fscanf(f, "%ld", &v) != 1)
		v = -1;
	fclose(f);
	return v;
}

static bool same_core(int a, int b)
{
	long core = topology(a, "core_id");

	return core >= 0 && core == topology(b, "core_id") &&
	       topology(a, "physical_package_id") == topology(b, "physical_package_id");
}

static int parse_pin(struct bench *b, const char *pin)
{
	const char *comma = strchr(pin, ',');
	uint64_t cpu[2];
	char first[16];

	if (!comma || comma - pin >= (ptrdiff_t)sizeof(first))
		return bench_fail(b, -EINVAL, "--pin %s is not two CPU numbers like 0,1", pin);
	memcpy(first, pin, (size_t)(comma - pin));
	first[comma - pin] = '\0';
	if (!verb_u64(first, 0, CPU_SETSIZE - 1, &cpu[0]) ||
	    !verb_u64(comma + 1, 0, CPU_SETSIZE - 1, &cpu[1]) || cpu[0] == cpu[1])
		return bench_fail(b, -EINVAL, "--pin %s is not two different CPU numbers like 0,1",
				  pin);
	for (int i = 0; i < 2; i++) {
		if (!CPU_ISSET((size_t)cpu[i], &b->cpus))
			return bench_fail(b, -EINVAL, "--pin %s: CPU %d does not exist or is not "
					  "allowed to this process; see `taskset -p $$`", pin,
					  (int)cpu[i]);
		b->cpu[i] = (int)cpu[i];
	}
	return 0;
}

int place_init(struct bench *b, const char *pin)
{
	int found = 0;

	if (sched_getaffinity(0, sizeof(b->cpus), &b->cpus))
		return bench_fail(b, -errno, "cannot read the CPUs of this process: %s",
				  strerror(errno));
	b->n_cpus = CPU_COUNT(&b->cpus);
	if (pin)
		return parse_pin(b, pin);
	for (int c = 0; c < CPU_SETSIZE; c++) {
		if (!CPU_ISSET((size_t)c, &b->cpus))
			continue;
		if (!found) {
			b->cpu[0] = b->cpu[1] = c;
			found = 1;
		} else if (!same_core(b->cpu[0], c)) {
			b->cpu[1] = c;
			break;
		} else if (b->cpu[1] == b->cpu[0]) {
			b->cpu[1] = c; /* a sibling is better than nothing */
		}
	}
	return 0;
}

static void pin(pid_t pid, const struct bench *b, enum place place, int side)
{
	cpu_set_t set;

	if (place == PLACE_FREE) {
		set = b->cpus;
	} else {
		CPU_ZERO(&set);
		CPU_SET((size_t)b->cpu[place == PLACE_ONE ? 0 : side], &set);
	}
	/* Refused for a daemon of somebody else: the report's head says that it is not pinned. */
	(void)sched_setaffinity(pid, sizeof(set), &set);
}

void place_side(const struct bench *b, enum place place, int side)
{
	pin(0, b, place, side);
}

void place_set(struct bench *b, enum place place)
{
	struct timespec settle = { .tv_nsec = 2000000 };

	pin(0, b, place, 0);
	if (b->broker)
		pin(b->broker, b, place, 1);
	/* Let what the row before left behind (dead clients, a move to another CPU) be over. */
	nanosleep(&settle, NULL);
}

pid_t place_find_broker(pid_t launcher)
{
	DIR *d = opendir("/proc");
	struct dirent *e;
	pid_t found = 0;

	if (!d)
		return 0;
	while ((e = readdir(d))) {
		char path[300], comm[64] = "";
		int pid, ppid;
		FILE *f;

		if (*e->d_name < '0' || *e->d_name > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
		f = fopen(path, "re");
		if (!f)
			continue;
		/* The executor is a child as well, but under a name of its own. */
		if (fscanf(f, "%d (%63[^)]) %*c %d", &pid, comm, &ppid) == 3 && ppid == launcher &&
		    !strcmp(comm, "onebit-broker"))
			found = pid;
		fclose(f);
	}
	closedir(d);
	return found;
}

pid_t place_find_launcher(const char *path)
{
	struct sockaddr_un sa = { .sun_family = AF_UNIX };
	struct ucred cred = { 0 };
	socklen_t len = sizeof(cred);
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return 0;
	strncpy(sa.sun_path, path, sizeof(sa.sun_path) - 1);
	/* The credentials are of the process that called listen(). */
	if (connect(fd, (struct sockaddr *)&sa, sizeof(sa)) ||
	    getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		cred.pid = 0;
	close(fd);
	return cred.pid;
}

uint64_t place_cpu_ns(pid_t pid)
{
	char path[64];
	unsigned long long ns = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return 0;
	if (fscanf(f, "%llu", &ns) != 1)
		ns = 0;
	fclose(f);
	return ns;
}

/* SPDX-License-Identifier: MIT */
/*
 * From exec to the first token: this program runs itself again, which opens the model as a service
 * would, answers a short prompt with one token, and says so in a line. What counts is when that line
 * is here. The model's file has been read before, so it comes from memory.
 */
#include "bench_model.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "float_ops.h"
#include "tool.h"

static const char verb[] = BENCH_MODEL;

extern char **environ;

/* What the other process does: one line of two numbers, in milliseconds. */
int bench_once(const struct bench_job *j, double begin)
{
	double opened, first;
	char why[512];
	int err = bench_engine_once(j->path, &j->engine, begin, &opened, &first, why, sizeof(why));

	if (err)
		return tool_fail(verb, STATUS_FAILED, "%s", why);
	printf("%.3f %.3f\n", opened * 1e3, first * 1e3);
	return tool_end(verb, STATUS_OK);
}

/* Reads that line; the time that counts for us is when it is there. */
static int read_once(int fd, double begin, double *open_ms, double *start_ms)
{
	char line[128];
	double first;
	FILE *f = fdopen(fd, "r");
	int ret = -1;

	if (!f) {
		close(fd);
		return -1;
	}
	if (fgets(line, sizeof(line), f)) {
		*start_ms = (tool_seconds() - begin) * 1e3;
		ret = sscanf(line, "%lf %lf", open_ms, &first) == 2 ? 0 : -1;
	}
	fclose(f);
	return ret;
}

int bench_start(struct bench_job *j, unsigned round)
{
	char threads[16];
	const char *argv[] = { "onebit-tool", "bench", "model", "--once", "--threads", threads, "--kv",
			 j->engine.kv_form == KV_INT8 ? "int8" : "fp16",
			 j->engine.pin ? "--pin" : "--no-pin", j->path, NULL };
	posix_spawn_file_actions_t actions;
	double begin;
	pid_t pid;
	int pipes[2], err, status = 0, ret;

	snprintf(threads, sizeof(threads), "%u", j->engine.threads);
	if (pipe2(pipes, O_CLOEXEC))
		return tool_fail(verb, STATUS_FAILED, "no pipe: %s", strerror(errno));
	err = posix_spawn_file_actions_init(&actions);
	if (!err)
		err = posix_spawn_file_actions_adddup2(&actions, pipes[1], STDOUT_FILENO);
	begin = tool_seconds();
	if (!err)
		err = posix_spawn(&pid, "/proc/self/exe", &actions, NULL, (char *const *)argv,
				  environ);
	posix_spawn_file_actions_destroy(&actions);
	close(pipes[1]);
	if (err) {
		close(pipes[0]);
		return tool_fail(verb, STATUS_FAILED, "this program cannot be run again: %s",
				 strerror(err));
	}
	ret = read_once(pipes[0], begin, &j->open_ms.of[round], &j->start_ms.of[round]);
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (ret || status)
		return tool_fail(verb, STATUS_FAILED, "this program, run again for its start, "
				 "did not say when its first token came");
	return STATUS_OK;
}

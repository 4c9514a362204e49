/* SPDX-License-Identifier: MIT */
/*
 * The verbs that work on files: this program becomes onebit-tool, with the same arguments. It is a
 * program of its own because it needs libraries that the client of a daemon does not, and reads
 * strangers' files, which a client need not be able to.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cmd_verb.h"

#define TOOL "onebit-tool"

#ifndef ONEBIT_LIBEXECDIR
#define ONEBIT_LIBEXECDIR "/usr/libexec/onebit"
#endif

/* Named by the environment; else beside this program, as in a build's folder; else where it is
 * installed. */
static const char *find_tool(char *buf, size_t len)
{
	const char *env = getenv("ONEBIT_TOOL");
	ssize_t n;
	char *slash;

	if (env && *env)
		return env;
	n = readlink("/proc/self/exe", buf, len - sizeof(TOOL));
	if (n > 0) {
		buf[n] = '\0';
		slash = strrchr(buf, '/');
		if (slash) {
			strcpy(slash + 1, TOOL);
			if (!access(buf, X_OK))
				return buf;
		}
	}
	return ONEBIT_LIBEXECDIR "/" TOOL;
}

int cmd_tool(int argc, char **argv)
{
	char beside[512];
	const char *path = find_tool(beside, sizeof(beside));
	char **args = calloc((size_t)argc + 2, sizeof(*args));

	if (!args)
		return verb_fail(argv[0], STATUS_FAILED, "no memory");
	args[0] = (char *)TOOL;
	memcpy(args + 1, argv, (size_t)argc * sizeof(*args));
	execv(path, args);
	free(args);
	return verb_fail(argv[0], STATUS_FAILED,
			 "cannot run %s: %s; build or install it, or name it in "
			 "$ONEBIT_TOOL",
			 path, strerror(errno));
}

/* SPDX-License-Identifier: MIT */
/* The shortest way to an answer: one call. hello [SOCKET [PROMPT]] */
#include <stdio.h>
#include <stdlib.h>
#include "libonebit.h"

static int on_text(void *user, const char *text, size_t len)
{
	fwrite(text, 1, len, user);
	return fflush(user); /* non-zero, when nobody reads any more, cancels */
}

int main(int argc, char **argv)
{
	struct onebit_params params = { .max_tokens = 64 };
	struct onebit_error err;

	/* The library looks at $ONEBIT_SOCKET, else at the usual place. */
	if (argc > 1)
		setenv("ONEBIT_SOCKET", argv[1], 1);
	if (onebit_generate(argc > 2 ? argv[2] : "Say hello.", &params, on_text, stdout, &err)) {
		fprintf(stderr, "hello: %s\n", err.text);
		return 1;
	}
	putchar('\n');
	return 0;
}

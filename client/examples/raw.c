/* SPDX-License-Identifier: MIT */
/* The bare ring: round trips of an empty operation, without requests or events. raw [SOCKET [N]] */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "libonebit.h"

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
	struct onebit_options options = { .size = sizeof(options), .socket = argc > 1 ? argv[1] : NULL,
					  .wait = ONEBIT_WAIT_ADAPTIVE };
	int n = argc > 2 ? atoi(argv[2]) : 10000, r;
	const struct onebit_cqe *cqe;
	struct onebit_error err;
	struct onebit_sqe *sqe;
	struct onebit *o;
	double start;

	if (onebit_open(&o, &options, &err)) {
		fprintf(stderr, "raw: %s\n", err.text);
		return 1;
	}
	start = now_us();
	for (int i = 0; i < n; i++) {
		sqe = onebit_ring_sqe(o); /* zeroed: ONEBIT_OP_NOP; never NULL with one in flight */
		sqe->user_data = (uint64_t)i;
		onebit_ring_publish(o);
		r = onebit_ring_wait(o, 5000);
		cqe = r == 1 ? onebit_ring_cqe(o, 0) : NULL;
		if (!cqe || cqe->res || cqe->user_data != (uint64_t)i) {
			fprintf(stderr, "raw: round trip %d: %s\n", i,
				r < 0 ? onebit_last_error(o)->text : cqe ? "wrong completion" : "no completion");
			onebit_close(o);
			return 1;
		}
		onebit_ring_reap(o, 1); /* cqe may be written over from here on */
	}
	printf("%d round trips, %.2f us each\n", n, (now_us() - start) / n);
	onebit_close(o);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * A daemon that is gone. What had not ended is taken back from the ring with a resume table (the
 * old regions are still mapped, and so are the records told); then a daemon is looked for with
 * growing pauses, and everything is placed into its ring anew. The program sees a pause.
 *
 * Not after we were thrown out: a daemon that ended this attachment on purpose is not argued with.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>
#include "lib_block.h"
#include "lib_onebit.h"
#include "lib_text.h"

#define BACKOFF_FIRST_NS 1000000ull
#define BACKOFF_LAST_NS  100000000ull

static bool in_flight(const struct lib_request *rq)
{
	return rq->state == LIB_PENDING || rq->state == LIB_PLACED;
}

/* o->error says why; every request ends with it. */
static void give_up(struct onebit *o)
{
	for (uint32_t i = 0; i < o->n_requests; i++) {
		struct lib_request *rq = &o->requests[i];

		if (!in_flight(rq))
			continue;
		lib_request_end(o, rq, 0, 0);
		rq->dead = true;
	}
	if (o->greet_fd >= 0) {
		lib_loop_unwatch(o, o->greet_fd);
		close(o->greet_fd);
	}
	o->greet_fd = -1;
	o->state = LIB_DEAD;
}

/* Keep one request for the next daemon, or end it where that cannot be. */
static void keep(struct onebit *o, struct lib_request *rq)
{
	const struct onebit_params *p = lib_block_params(rq);
	int r;

	rq->resubmitted = true;
	if (rq->cancelled) {
		lib_request_end(o, rq, ONEBIT_E_CANCELLED, lib_request_told(rq));
	} else if (rq->fault) {
		lib_request_end(o, rq, 0, 0);
	} else if (p && (p->flags & ONEBIT_PARAM_NO_REPLAY) && rq->state == LIB_PLACED &&
		   lib_ring_passed(&o->ring, rq->sq_index)) {
		lib_request_end(o, rq, ONEBIT_E_REPLAY_REFUSED, lib_request_told(rq));
	} else if (rq->state == LIB_PLACED) {
		r = lib_request_suspend(o, rq, true);
		if (r)
			lib_request_end(o, rq, r == -ENOMEM ? ONEBIT_E_NO_MEMORY : ONEBIT_E_LOST, 0);
	} else {
		rq->retry_at_ns = 0;
	}
}

static bool thrown_out(const struct onebit *o)
{
	return o->goodbye.code == ONEBIT_E_EVICTED || o->goodbye.code == ONEBIT_E_BAD_INDEX;
}

void lib_recover_lost(struct onebit *o)
{
	uint64_t now = lib_now();

	o->gone = false;
	if (thrown_out(o)) {
		o->error = o->goodbye;
		if (o->error.err >= 0)
			o->error.err = -ECONNRESET;
	} else {
		lib_error_local(&o->error, -ECONNRESET, true, "the daemon is gone%s%.60s",
				o->goodbye.code ? ": " : "", o->goodbye.text);
	}
	if (thrown_out(o) || o->no_reconnect) {
		give_up(o);
		return;
	}
	for (uint32_t i = 0; i < o->n_requests; i++)
		if (in_flight(&o->requests[i]))
			keep(o, &o->requests[i]);
	/* The regions stay mapped: onebit_welcome() and the stats page have to show something. */
	lib_loop_unwatch(o, o->link.fd);
	close(o->link.fd);
	o->link.fd = -1;
	o->state = LIB_CONNECT;
	o->backoff_ns = BACKOFF_FIRST_NS;
	o->next_try_ns = now;
	o->give_up_ns = now + o->reconnect_ms * 1000000ull;
}

static void try_again(struct onebit *o, uint64_t now)
{
	o->state = LIB_CONNECT;
	o->next_try_ns = now + o->backoff_ns;
	o->backoff_ns = o->backoff_ns * 2 < BACKOFF_LAST_NS ? o->backoff_ns * 2 : BACKOFF_LAST_NS;
}

static int step_connect(struct onebit *o, uint64_t now, uint64_t until)
{
	struct onebit_error err;
	int fd;

	if (now < o->next_try_ns) {
		if (until <= now)
			return 0;
		lib_sleep_until(o->next_try_ns < until ? o->next_try_ns : until);
		return lib_now() < o->next_try_ns && lib_now() < until ? -EINTR : 1;
	}
	/*
	 * Whatever stands in the way, even a socket that we may not open yet, can be a daemon in the
	 * middle of starting: only time decides.
	 */
	fd = lib_attach_begin(o->path, &o->hello, &err);
	if (fd < 0) {
		try_again(o, now);
		return 1;
	}
	o->greet_fd = fd;
	o->state = LIB_GREET;
	lib_loop_watch(o, fd);
	return 1;
}

static int step_greet(struct onebit *o, uint64_t now, uint64_t until)
{
	struct pollfd p = { .fd = o->greet_fd, .events = POLLIN };
	struct lib_link fresh;
	struct onebit_error err = { 0 };
	int r = lib_attach_finish(o->greet_fd, &o->hello, &fresh, &err);

	if (r == -EAGAIN) {
		if (until <= now)
			return 0;
		r = poll(&p, 1, until - now > 1000000000ull ? 1000 : (int)((until - now) / 1000000 + 1));
		return r < 0 && errno == EINTR ? -EINTR : 1;
	}
	if (!r) {
		struct lib_link old = o->link;

		r = lib_onebit_adopt(o, &fresh);
		if (!r) {
			o->greet_fd = -1;
			lib_link_close(&old);
			return 1;
		}
		fresh.fd = -1; /* greet_fd still owns it */
		lib_link_close(&fresh);
		lib_error_local(&err, r, true, "no memory to attach again");
	}
	lib_loop_unwatch(o, o->greet_fd);
	close(o->greet_fd);
	o->greet_fd = -1;
	if (err.retryable) {
		try_again(o, now);
		return 1;
	}
	o->error = err; /* it is back, and does not want us: another version */
	give_up(o);
	return 1;
}

int lib_recover_step(struct onebit *o, uint64_t deadline_ns)
{
	uint64_t now = lib_now(), until = deadline_ns;

	if (now >= o->give_up_ns) {
		lib_error_local(&o->error, -ECONNRESET, true,
				"the daemon is gone and did not come back within %u ms; start it, then submit again",
				o->reconnect_ms);
		give_up(o);
		return 1;
	}
	if (until > o->give_up_ns)
		until = o->give_up_ns;
	return o->state == LIB_CONNECT ? step_connect(o, now, until) : step_greet(o, now, until);
}

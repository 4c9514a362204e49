/* SPDX-License-Identifier: MIT */
/*
 * libonebit: open, submit, next, close. Each of these is a short order of calls into the parts that
 * lib_onebit.h lists; this file holds no protocol of its own.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "lib_block.h"
#include "lib_onebit.h"
#include "lib_text.h"

#define OPEN_TIMEOUT_NS 5000000000ull /* a daemon that takes longer to say hello hangs */
#define OPEN_PAUSE_NS   1000000ull    /* while the listener's queue is full */
#define RECONNECT_MS    10000u
#define REQUESTS_MAX    4096u
#define STATS_TRIES     1000u /* a writer is in the middle for well under a microsecond */

/* ---- attach --------------------------------------------------------------------------------- */

/* A program built with a later header may not ask for what we do not know. */
static int options_read(struct onebit_options *o, const struct onebit_options *given,
			struct onebit_error *err)
{
	const unsigned char *bytes = (const unsigned char *)given;

	*o = (struct onebit_options){ 0 };
	if (given) {
		if (given->size < sizeof(given->size))
			return lib_error_local(err, -EINVAL, false,
					       "onebit_options.size is %zu; set it to sizeof(struct onebit_options)",
					       given->size);
		for (size_t i = sizeof(*o); i < given->size; i++)
			if (bytes[i])
				return lib_error_local(err, -E2BIG, false,
						       "an option at byte %zu is newer than this libonebit; upgrade it", i);
		memcpy(o, given, given->size < sizeof(*o) ? given->size : sizeof(*o));
	}
	if (o->wait > ONEBIT_WAIT_SPIN)
		return lib_error_local(err, -EINVAL, false, "onebit_options.wait is %u, at most %u is known",
				       o->wait, ONEBIT_WAIT_SPIN);
	if (!o->socket)
		o->socket = getenv("ONEBIT_SOCKET");
	if (!o->socket || !*o->socket)
		o->socket = ONEBIT_SOCKET_DEFAULT;
	if (!o->reconnect_ms)
		o->reconnect_ms = RECONNECT_MS;
	return 0;
}

static void hello_make(struct onebit_hello *h, const struct onebit_options *o)
{
	*h = (struct onebit_hello){
		.magic = ONEBIT_MAGIC,
		.size = sizeof(*h),
		.abi_major = ONEBIT_ABI_MAJOR,
		.abi_minor = ONEBIT_ABI_MINOR,
		.features_wanted = o->features | ONEBIT_FEAT_NOTIFY | ONEBIT_FEAT_INLINE | ONEBIT_FEAT_RESUME,
		.sq_entries = o->sq_entries,
		.cq_entries = o->cq_entries,
		.arena_bytes = o->arena_bytes,
		.out_bytes = o->out_bytes,
	};
	/* A program that sleeps gains nothing from a daemon that spins for it. */
	if (o->wait != ONEBIT_WAIT_SLEEP)
		h->features_wanted |= ONEBIT_FEAT_SPIN;
}

static int attach(const struct onebit *o, struct lib_link *l, struct onebit_error *err)
{
	uint64_t limit = lib_now() + OPEN_TIMEOUT_NS;
	struct pollfd p = { .events = POLLIN };
	int r;

	while ((p.fd = lib_attach_begin(o->path, &o->hello, err)) == -EAGAIN && lib_now() < limit)
		lib_sleep_until(lib_now() + OPEN_PAUSE_NS);
	if (p.fd < 0)
		return p.fd;
	for (;;) {
		if (poll(&p, 1, OPEN_TIMEOUT_NS / 1000000) < 0 && errno != EINTR) {
			r = lib_error_local(err, -errno, true, "poll failed");
			break;
		}
		r = lib_attach_finish(p.fd, &o->hello, l, err);
		if (r != -EAGAIN)
			break;
		if (lib_now() >= limit) {
			r = lib_error_local(err, -ETIMEDOUT, true,
					    "the daemon accepted but sent no welcome within %llu s; see its log",
					    OPEN_TIMEOUT_NS / 1000000000ull);
			break;
		}
	}
	if (r)
		close(p.fd);
	return r;
}

int lib_onebit_adopt(struct onebit *o, const struct lib_link *l)
{
	uint32_t entries = l->welcome.sq_entries, *of = malloc(entries * sizeof(*of));

	if (!of || lib_ranges_init(&o->arena, l->welcome.arena_bytes, entries) ||
	    lib_ranges_init(&o->out, l->welcome.out_bytes, o->n_requests)) {
		free(of);
		return -ENOMEM;
	}
	memset(of, 0xff, entries * sizeof(*of)); /* LIB_NO_RANGE */
	free(o->arena_of);
	o->arena_of = of;
	o->link = *l;
	lib_ring_init(&o->ring, l);
	o->arena_freed = o->ring.sq_tail;
	o->goodbye = (struct onebit_error){ 0 };
	o->gone = o->armed = false;
	o->wait.looked_ns = lib_now();
	o->state = LIB_UP;
	return 0;
}

static int requests_make(struct onebit *o, uint32_t n)
{
	o->requests = calloc(n, sizeof(*o->requests));
	o->free_slots = malloc(n * sizeof(*o->free_slots));
	o->text = malloc(LIB_TEXT_BYTES);
	if (!o->requests || !o->free_slots || !o->text)
		return -ENOMEM;
	o->n_requests = o->n_free = n;
	for (uint32_t i = 0; i < n; i++)
		o->free_slots[i] = (uint16_t)(n - 1 - i);
	return 0;
}

static uint32_t requests_wanted(const struct onebit_welcome *w)
{
	uint32_t n = w->max_inflight ? w->max_inflight : w->cq_entries / 2;

	return n < REQUESTS_MAX ? n : REQUESTS_MAX;
}

int onebit_open(struct onebit **out, const struct onebit_options *given, struct onebit_error *err)
{
	struct lib_link l = LIB_LINK_NONE;
	struct onebit_options options;
	struct onebit_error unseen;
	struct onebit *o;
	int r;

	if (!err)
		err = &unseen;
	r = options_read(&options, given, err);
	if (r)
		return r;
	o = calloc(1, sizeof(*o));
	if (!o)
		return lib_error_local(err, -ENOMEM, true, "no memory for an attachment");
	o->loop_fd = o->timer_fd = o->greet_fd = -1;
	o->link = (struct lib_link)LIB_LINK_NONE;
	o->reconnect_ms = options.reconnect_ms;
	o->no_reconnect = options.no_reconnect != 0;
	if (strlen(options.socket) >= sizeof(o->path)) {
		r = lib_error_local(err, -ENAMETOOLONG, false,
				    "the socket's path has %zu bytes, at most %zu fit; use a shorter one",
				    strlen(options.socket), sizeof(o->path) - 1);
		goto out;
	}
	memcpy(o->path, options.socket, strlen(options.socket) + 1);
	hello_make(&o->hello, &options);
	lib_wait_init(&o->wait, options.wait, options.spin_us);
	r = attach(o, &l, err);
	if (r)
		goto out;
	if (requests_make(o, requests_wanted(&l.welcome)) || lib_onebit_adopt(o, &l)) {
		lib_link_close(&l);
		r = lib_error_local(err, -ENOMEM, true, "no memory for %u requests in flight",
				    l.welcome.max_inflight);
		goto out;
	}
	*out = o;
	o = NULL;
out:
	onebit_close(o);
	return r;
}

void onebit_close(struct onebit *o)
{
	if (!o)
		return;
	lib_link_close(&o->link);
	if (o->greet_fd >= 0)
		close(o->greet_fd);
	if (o->loop_fd >= 0)
		close(o->loop_fd);
	if (o->timer_fd >= 0)
		close(o->timer_fd);
	for (uint32_t i = 0; i < o->n_requests; i++)
		free(o->requests[i].block);
	lib_ranges_deinit(&o->arena);
	lib_ranges_deinit(&o->out);
	free(o->arena_of);
	free(o->requests);
	free(o->free_slots);
	free(o->text);
	free(o);
}

const struct onebit_welcome *onebit_welcome(const struct onebit *o)
{
	return &o->link.welcome;
}

const struct onebit_error *onebit_last_error(const struct onebit *o)
{
	return &o->error;
}

int onebit_stats_read(const struct onebit *o, struct onebit_stats *s)
{
	const struct onebit_stats *page = o->link.stats;
	uint32_t before;

	if (!page)
		return -EOPNOTSUPP;
	for (unsigned i = 0; i < STATS_TRIES; i++) {
		/* Pairs with the daemon's two stores of seq around what it writes. */
		before = onebit_load_acquire(&page->seq);
		if (before & 1)
			continue;
		memcpy(s, page, sizeof(*s));
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (onebit_load_relaxed(&page->seq) == before)
			return 0;
	}
	return -EAGAIN;
}

/* ---- requests ------------------------------------------------------------------------------- */

/* A new call on o: what the last event pointed to is not promised any more. */
static void call_begin(struct onebit *o)
{
	lib_request_release(o, o->finished);
	o->finished = NULL;
}

int onebit_submit(struct onebit *o, const struct onebit_request *in, uint64_t *id)
{
	struct lib_request *rq;
	int r;

	call_begin(o);
	if (o->state == LIB_DEAD)
		return o->error.err;
	r = lib_request_new(o, in, &rq);
	if (r)
		return r;
	/* While there is no daemon it waits with the others. */
	if (o->state == LIB_UP) {
		r = lib_request_place(o, rq);
		if (r) {
			lib_request_release(o, rq);
			return r;
		}
		lib_ring_publish(&o->ring);
	}
	*id = rq->id;
	return 0;
}

int onebit_cancel(struct onebit *o, uint64_t id)
{
	struct lib_request *rq;

	call_begin(o);
	rq = lib_request_find(o, id);
	if (!rq)
		return lib_error_code(&o->error, ONEBIT_E_NOT_FOUND, id);
	if (!rq->cancelled) {
		rq->cancelled = true;
		lib_request_cancel(o, rq);
	}
	return 0;
}

uint64_t onebit_seed(const struct onebit *o, uint64_t id)
{
	const struct lib_request *rq = lib_request_find(o, id);
	const struct onebit_params *p = rq ? lib_block_params(rq) : NULL;

	return p ? p->seed : 0;
}

int onebit_next(struct onebit *o, struct onebit_event *ev, int timeout_ms)
{
	uint64_t deadline = lib_deadline(timeout_ms), due;
	int r;

	call_begin(o);
	lib_loop_disarm(o);
	/* Also here: a program that always finds an event would never come to the pump below. */
	lib_request_pump(o);
	for (;;) {
		if (lib_event_take(o, ev))
			return 1;
		if (o->state == LIB_DEAD)
			return o->error.err;
		if (o->state != LIB_UP) {
			r = lib_recover_step(o, deadline);
			if (r <= 0)
				return 0;
			continue;
		}
		if (o->gone) {
			lib_recover_lost(o);
			continue;
		}
		/* due is when a request can be placed again, not what the caller waits for. */
		due = lib_request_pump(o);
		if (o->n_ended)
			continue;
		r = lib_wait(o, due < deadline ? due : deadline);
		if (r == -ECONNRESET)
			o->gone = true;
		else if (r == -EINTR || (!r && (due >= deadline || !deadline)))
			return 0;
	}
}

/* ---- in a hurry ----------------------------------------------------------------------------- */

static int generate_run(struct onebit *o, const struct onebit_request *rq,
			int (*on_text)(void *user, const char *text, size_t len), void *user,
			struct onebit_error *err)
{
	struct onebit_event ev;
	uint64_t id = 0;
	int r = onebit_submit(o, rq, &id);

	if (r) {
		*err = *onebit_last_error(o);
		return r;
	}
	for (;;) {
		r = onebit_next(o, &ev, -1);
		if (r < 0) {
			*err = *onebit_last_error(o);
			return r;
		}
		if (!r)
			continue;
		if (ev.type == ONEBIT_EV_TOKENS && ev.text_len && on_text(user, ev.text, ev.text_len))
			onebit_cancel(o, id);
		if (ev.type == ONEBIT_EV_END) {
			*err = ev.error;
			return ev.res < 0 ? ev.res : 0;
		}
	}
}

int onebit_generate(const char *prompt, const struct onebit_params *params,
		    int (*on_text)(void *user, const char *text, size_t len), void *user,
		    struct onebit_error *err)
{
	struct onebit_part part = { .role = ONEBIT_ROLE_USER, .kind = ONEBIT_SEG_TEXT, .data = prompt,
				    .len = strlen(prompt) };
	struct onebit_request rq = { .op = ONEBIT_OP_GENERATE, .parts = &part, .n_parts = 1 };
	struct onebit_error unseen;
	struct onebit *o = NULL;
	int r;

	if (!err)
		err = &unseen;
	memset(err, 0, sizeof(*err));
	if (params)
		rq.params = *params;
	if (rq.params.n_choices > 1)
		return lib_error_local(err, -EINVAL, false,
				       "onebit_generate() makes one choice, %u were asked for; use onebit_submit()",
				       rq.params.n_choices);
	r = onebit_open(&o, NULL, err);
	if (!o)
		return r;
	r = generate_run(o, &rq, on_text, user, err);
	onebit_close(o);
	return r;
}

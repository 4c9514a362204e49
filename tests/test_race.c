/* SPDX-License-Identifier: MIT */
/*
 * A client that rewrites everything it can write while the core reads it: descriptors, their marks,
 * cq_head, prompts, wake words. If the core read anything twice, checked the one and used the other,
 * the sanitizers or the counts below would show it.
 *
 * The core runs in this thread, a writer in another. Client 0 rewrites its SQEs and arena, but is
 * honest about what it reaped, so that every CQE of it is seen and counted. Client 1 has a ring so
 * short that the writer marks it anew while the core takes from it, and calls reaped what it never
 * read. Client 2 flips its cq_head as well, is thrown out for it and comes again. The victim does
 * nothing but NOPs and must not notice.
 */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core.h"
#include "lib_core.h"
#include "limits.h"
#include "onebit_ring.h"

enum { SHORT = 1, LIAR = 2, HOSTILE = 3, VICTIM = 3, TEMPLATES = 16, READS = 10000000 };
enum { SEQ = offsetof(struct onebit_sqe, seq), FLAGS = offsetof(struct onebit_cqe, flags) };

static struct core *k;
static int id[4];
static pthread_mutex_t liar_lock = PTHREAD_MUTEX_INITIALIZER; /* its regions come and go */
static unsigned arrivals; /* of the liar */
static uint64_t seed;
static bool stop;

static uint64_t scaled(uint64_t n)
{
	const char *s = getenv("ONEBIT_SCALE");
	uint64_t percent = s ? strtoull(s, NULL, 0) : 100;

	return n * percent / 100 ? n * percent / 100 : 1;
}

static void put_word(uint8_t *at, uint64_t v)
{
	__atomic_store_n((uint64_t *)(void *)at, v, __ATOMIC_RELAXED);
}

static uint32_t *word(uint8_t *region, uint32_t off)
{
	return (uint32_t *)(void *)(region + off);
}

/* SQEs that would pass if nobody touched them, so that the race reaches the end of each path. */
static void templates(struct onebit_sqe t[TEMPLATES])
{
	memset(t, 0, TEMPLATES * sizeof(t[0]));
	for (uint32_t i = 0; i < TEMPLATES; i++) {
		t[i].user_data = i % 4;
		switch (i % 8) {
		case 0: /* NOP */
			break;
		case 1:
			t[i].op = ONEBIT_OP_ECHO;
			t[i].in_len = t[i].out_len = 64 + 8 * i;
			break;
		case 2:
			t[i].op = ONEBIT_OP_CANCEL;
			t[i].arg = i % 4;
			break;
		case 3:
			t[i].op = ONEBIT_OP_QUERY;
			t[i].arg = i % ONEBIT_QUERY_COUNT;
			t[i].out_len = 4096;
			break;
		case 4:
			t[i].op = i > 8 ? ONEBIT_OP_GENERATE : ONEBIT_OP_TOKENIZE;
			t[i].in_off = 4096;
			t[i].in_len = sizeof(struct core_block);
			t[i].out_off = 8192;
			t[i].out_len = 8192;
			t[i].deadline_ms = i;
			break;
		default:
			t[i].priority = i % 4;
			t[i].reserved1 = i % 2;
		}
	}
}

static uint8_t *slot_of(struct core_client *c, uint32_t index)
{
	return c->client + c->w.sqes_off + 64 * onebit_slot(index, c->w.sq_entries);
}

/* Any slot, as it stands half of the time with the mark of the lap that is next there. */
static void rewrite_sqe(struct core_client *c, const struct onebit_sqe *t, uint32_t head,
			uint64_t *rng)
{
	uint64_t r = core_random(rng);
	uint32_t index = head + (uint32_t)(r % c->w.sq_entries);
	uint8_t *slot = slot_of(c, index);
	struct onebit_sqe e = t[(r >> 16) % TEMPLATES];
	uint64_t from[8];

	e.seq = (r >> 24) % 2 ? onebit_seq(index) : (uint32_t)core_random(rng);
	memcpy(from, &e, sizeof(from));
	for (int i = 0; i < 8; i++)
		put_word(slot + 8 * i, from[i]);
	if ((r >> 32) % 8 == 0) /* and often enough one wild word in it */
		put_word(slot + (r >> 40) % 8 * 8, core_random(rng) >> (r >> 48) % 64);
}

/* What is in the next slots is there, whatever it is; and some are of this lap or of others. */
static void flip_marks(struct core_client *c, uint32_t head, uint64_t *rng)
{
	uint64_t r = core_random(rng);
	uint32_t n = (uint32_t)(r % (c->w.sq_entries + 1));

	for (uint32_t i = 0; i < n; i++)
		onebit_store_release((uint32_t *)(void *)(slot_of(c, head + i) + SEQ),
				     onebit_seq(head + i));
	for (int i = 0; i < 8; i++) {
		uint32_t at = head + (uint32_t)(core_random(rng) % (4 * c->w.sq_entries)) -
			      c->w.sq_entries;

		onebit_store_relaxed((uint32_t *)(void *)(slot_of(c, at) + SEQ), onebit_seq(at));
	}
}

/* Call reaped some of what is there; unread. */
static void move_cq_head(struct core_client *c, uint32_t *head, uint64_t *rng)
{
	const uint8_t *cqes = c->daemon + c->w.cqes_off;
	uint32_t n = (uint32_t)(core_random(rng) % 64);

	for (; n; n--, ++*head) {
		const uint8_t *cqe = cqes + 32 * onebit_slot(*head, c->w.cq_entries);
		const uint32_t *mark = (const uint32_t *)(const void *)(cqe + FLAGS);

		if (!onebit_phase_is(onebit_load_acquire(mark), *head, c->w.cq_entries))
			break;
	}
	onebit_store_release(word(c->client, c->w.cq_head_off), *head);
}

static void rewrite_arena(struct core_client *c, const struct core_block *full, uint64_t *rng)
{
	uint64_t r = core_random(rng);
	uint8_t *block = c->client + c->w.arena_off + 4096;
	const uint8_t *from = (const uint8_t *)full;
	uint64_t v;

	memcpy(&v, from + r % (sizeof(*full) / 8) * 8, 8);
	if ((r >> 32) % 64 == 0) /* a wild one, of any magnitude, in one of its two halves */
		v ^= (core_random(rng) >> (r >> 40) % 64) << ((r >> 46) % 2 * 32);
	put_word(block + r % (sizeof(*full) / 8) * 8, v);
}

static void *writer(void *arg)
{
	struct onebit_sqe t[TEMPLATES];
	uint32_t cq_head[HOSTILE] = { ONEBIT_INDEX_START, ONEBIT_INDEX_START, ONEBIT_INDEX_START };
	unsigned arrived = 0;
	struct core_block full;
	uint64_t rng = seed;

	(void)arg;
	templates(t);
	core_block_full(&full);
	full.p.n_resume = full.p.resume_off = 0;
	full.p.max_tokens = 4;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		for (int i = 0; i < HOSTILE; i++) {
			struct core_client *c;
			uint32_t head;

			if (i == LIAR)
				pthread_mutex_lock(&liar_lock);
			c = &k->c[id[i]];
			head = onebit_load_relaxed(word(c->daemon, c->w.sq_head_off));
			rewrite_sqe(c, t, head, &rng);
			rewrite_arena(c, &full, &rng);
			flip_marks(c, head, &rng);
			put_word(c->client + c->w.wake_off, core_random(&rng));
			if (i == LIAR && arrived != arrivals) {
				arrived = arrivals;
				cq_head[i] = ONEBIT_INDEX_START;
			}
			if (i != 0)
				move_cq_head(c, &cq_head[i], &rng);
			if (i == LIAR && core_random(&rng) % 16 == 0)
				onebit_store_relaxed(word(c->client, c->w.cq_head_off),
						     (uint32_t)(core_random(&rng) >> core_random(&rng) % 64));
			if (i == LIAR)
				pthread_mutex_unlock(&liar_lock);
		}
	}
	return NULL;
}

/* In the loop, where a ck_assert() that passes would already cost a system call. */
#define hold(cond) \
	do { \
		if (!(cond)) \
			ck_abort_msg("%s", #cond); \
	} while (0)

/* Terminals that came; reaps them. */
static uint64_t reap(int c)
{
	struct core_client *m = &k->c[c];
	uint64_t n = 0;
	struct onebit_cqe cqe;

	hold(onebit_distance(m->cq_head, k->b->clients[c].ring.tail) <= m->w.cq_entries);
	hold(core_waiting(k, c) == onebit_distance(m->cq_head, k->b->clients[c].ring.told));
	while (core_reap(k, c, &cqe)) {
		n += !(cqe.flags & ONEBIT_CQE_MORE);
		hold(cqe.flags & ONEBIT_CQE_MORE || cqe.u.end.layer <= ONEBIT_LAYER_GATEWAY);
	}
	return n;
}

static void come(int c, const struct onebit_hello *h)
{
	id[c] = core_attach(k, 1000 + (uint32_t)c, h, NULL);
	hold(id[c] >= 0);
}

/* It is attached again, with a moment for the writer in between. */
static bool liar_is_out(bool again, const struct onebit_hello *h)
{
	const struct core_client *c = &k->c[id[LIAR]];

	if (!c->closed)
		return false;
	hold(c->why.code == ONEBIT_E_BAD_INDEX);
	if (!again)
		return false;
	pthread_mutex_lock(&liar_lock);
	core_drop(k, id[LIAR]);
	come(LIAR, h);
	arrivals++;
	pthread_mutex_unlock(&liar_lock);
	return true;
}

/* One turn. How often it took more from the short ring than it holds. */
static unsigned turn(void)
{
	uint64_t sqes = k->b->stats.sqes;
	uint32_t short_head = core_taken(k, id[SHORT]), n;

	broker_turn(k->b);
	hold(k->b->stats.sqes - sqes <= (HOSTILE + 1) * TURN_SQES);
	n = onebit_distance(short_head, core_taken(k, id[SHORT]));
	hold(n <= TURN_SQES);
	return n > k->c[id[SHORT]].w.sq_entries;
}

static bool is_next(int c, uint32_t index)
{
	return onebit_load_acquire((uint32_t *)(void *)(slot_of(&k->c[c], index) + SEQ)) ==
	       onebit_seq(index);
}

/* Time of check and time of use: whatever passes the checks must be what is used. */
START_TEST(concurrent_writer)
{
	const uint64_t reads = scaled(READS);
	const struct onebit_stats *s;
	uint64_t terminals = 0, victim = 0, asked = 0, taken = 0;
	uint64_t thrown_out = 0, laps = 0;
	uint32_t head, last = ONEBIT_INDEX_START;
	struct onebit_hello h, small;
	struct policy p;
	pthread_t thread;

	seed = core_seed("test_race");
	core_policy(&p);
	p.max_tokens = p.default_tokens = 32;
	p.limits.admin = false; /* or a wild word unloads the model, and nothing is accepted after */
	k = core_new(&p, true, true);
	k->options.delay_ns = 0;
	k->options.slots = 32;
	k->keep = true; /* the writer does not hear at once that the liar is out */
	core_hello(&h);
	small = h;
	h.sq_entries = 256;
	small.sq_entries = 4;
	small.cq_entries = 64;
	small.arena_bytes = 8192;
	small.out_bytes = 65536;
	come(0, &h);
	come(SHORT, &small);
	come(LIAR, &small);
	come(VICTIM, &h);
	core_pass(k, 1000000);
	core_pass(k, 1000000);
	ck_assert_int_eq(pthread_create(&thread, NULL, writer, NULL), 0);

	/* A race in which nothing is ever accepted would prove little. */
	s = broker_stats(k->b);
	for (uint64_t n = 0; s->sqes < reads || s->accepted < reads / 10000; n++) {
		if (n % 8 == 0)
			core_step(k, 100000);
		for (int i = 0; i < 4; i++) {
			/* As if it had rung: a writer that also rings would only be slower. */
			for (int c = 0; c < HOSTILE; c++)
				client_heat(k->b, (uint32_t)id[c]);
			laps += turn();
		}
		terminals += reap(id[0]);
		head = core_taken(k, id[0]);
		taken += onebit_distance(last, head);
		last = head;
		hold(terminals <= taken);
		if (n % 64 == 0) {
			core_submit(k, id[VICTIM], &(struct onebit_sqe){ .user_data = asked++ });
			laps += turn();
			victim += reap(id[VICTIM]);
			hold(victim == asked);
		}
		thrown_out += liar_is_out(n % 8 == 0, &small);
		hold(!k->c[id[0]].closed && !k->c[id[SHORT]].closed && !k->c[id[VICTIM]].closed);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);

	/* What is in the ring and in flight comes to its end, and then the counts agree exactly. */
	for (int i = 0; i < 20000 && (broker_stats(k->b)->queued || broker_stats(k->b)->running ||
				      is_next(id[0], last)); i++) {
		client_heat(k->b, (uint32_t)id[0]);
		core_pass(k, 1000000);
		terminals += reap(id[0]);
		head = core_taken(k, id[0]);
		taken += onebit_distance(last, head);
		last = head;
	}
	ck_assert_uint_eq(terminals, taken);
	ck_assert_uint_eq(s->running, 0);
	ck_assert_uint_eq(s->executor_lies, 0);
	ck_assert_uint_ge(s->sqes, reads);
	ck_assert_uint_gt(s->done, 0);
	ck_assert_uint_gt(thrown_out, 0);
	ck_assert_uint_ge(s->protocol_errors, thrown_out);
	printf("test_race: %llu SQEs read, %llu accepted, %llu done, %llu cancelled, %llu failed, "
	       "%llu tokens, %llu CQEs, liar out %llu times, %llu turns around the short ring\n",
	       (unsigned long long)s->sqes,
	       (unsigned long long)s->accepted, (unsigned long long)s->done,
	       (unsigned long long)s->cancelled, (unsigned long long)s->failed,
	       (unsigned long long)s->tokens, (unsigned long long)s->cqes,
	       (unsigned long long)thrown_out, (unsigned long long)laps);
	for (int i = 0; i <= VICTIM; i++)
		if (!k->c[id[i]].closed)
			core_detach(k, id[i]);
	core_settle(k, 10000);
	ck_assert_uint_eq(broker_stats(k->b)->journal_bytes, 0);
	k = core_free(k);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("race");
	TCase *t = tcase_create("all");
	SRunner *r;
	int failed;

	tcase_add_test(t, concurrent_writer);
	tcase_set_timeout(t, 0); /* run.sh watches over it; a sanitizer makes it slow */
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

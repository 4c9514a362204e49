/* SPDX-License-Identifier: MIT */
/*
 * A client that rewrites everything it can write while the core reads it: descriptors, indices,
 * prompts, wake words. If the core read anything twice, checked the one and used the other, the
 * sanitizers or the counts below would show it.
 *
 * The core runs in this thread, a writer in another. Client 0 rewrites its SQEs and arena, but is
 * honest about what it reaped, so that every CQE of it is seen and counted. Client 1 lies about that
 * too. Client 2 does nothing but NOPs and must not notice.
 */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core.h"
#include "lib_core.h"
#include "onebit_ring.h"

enum { HOSTILE = 2, VICTIM = 2, TEMPLATES = 16, READS = 10000000 };

static struct core *k;
static int id[3];
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

static uint64_t get_word(const uint8_t *at)
{
	return __atomic_load_n((const uint64_t *)(const void *)at, __ATOMIC_RELAXED);
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
			t[i].reserved2 = i % 2;
		}
	}
}

static void rewrite_sqe(struct core_client *c, const struct onebit_sqe *t, uint64_t *rng)
{
	uint64_t r = core_random(rng);
	uint8_t *slot = c->client + c->w.sqes_off + 64 * (r % c->w.sq_entries);
	const uint64_t *from = (const uint64_t *)(const void *)&t[(r >> 16) % TEMPLATES];

	for (int i = 0; i < 8; i++)
		put_word(slot + 8 * i, from[i]);
	if ((r >> 32) % 8 == 0) /* and often enough one wild word in it */
		put_word(slot + (r >> 40) % 8 * 8, core_random(rng) >> (r >> 48) % 64);
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
	uint32_t tail[HOSTILE] = { ONEBIT_INDEX_START, ONEBIT_INDEX_START };
	struct core_block full;
	uint64_t rng = seed;

	(void)arg;
	templates(t);
	core_block_full(&full);
	full.p.n_resume = full.p.resume_off = 0;
	full.p.max_tokens = 4;
	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		for (int i = 0; i < HOSTILE; i++) {
			struct core_client *c = &k->c[id[i]];
			uint32_t head = onebit_load_relaxed(word(c->daemon, c->w.sq_head_off));
			uint32_t free = c->w.sq_entries - onebit_distance(head, tail[i]);

			rewrite_sqe(c, t, &rng);
			rewrite_arena(c, &full, &rng);
			if (free) { /* always a tail that can be: an impossible one ends the game */
				tail[i] += 1 + core_random(&rng) % free;
				onebit_store_release(word(c->client, c->w.sq_tail_off), tail[i]);
			}
			put_word(c->client + c->w.wake_off, core_random(&rng));
			if (i == 1)
				onebit_store_relaxed(word(c->client, c->w.cq_head_off),
						     (uint32_t)(get_word(c->daemon + c->w.cq_tail_off) -
								core_random(&rng) % 300));
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

	hold(core_waiting(k, c) <= m->w.cq_entries);
	while (core_reap(k, c, &cqe)) {
		n += !(cqe.flags & ONEBIT_CQE_MORE);
		hold(cqe.flags & ONEBIT_CQE_MORE || cqe.u.end.layer <= ONEBIT_LAYER_GATEWAY);
	}
	return n;
}

/* Time of check and time of use: whatever passes the checks must be what is used. */
START_TEST(concurrent_writer)
{
	const uint64_t reads = scaled(READS);
	const struct onebit_stats *s;
	uint64_t terminals = 0, victim = 0, asked = 0, taken = 0;
	uint32_t head, last = ONEBIT_INDEX_START;
	struct onebit_hello h;
	struct policy p;
	pthread_t thread;

	seed = core_seed("test_race");
	core_policy(&p);
	p.max_tokens = p.default_tokens = 32;
	k = core_new(&p, true, true);
	k->options.delay_ns = 0;
	k->options.slots = 32;
	core_hello(&h);
	h.sq_entries = 256;
	for (int i = 0; i < 3; i++)
		id[i] = core_attach(k, 1000 + (uint32_t)i, &h, NULL);
	core_pass(k, 1000000);
	core_pass(k, 1000000);
	ck_assert_int_eq(pthread_create(&thread, NULL, writer, NULL), 0);

	for (uint64_t turn = 0; broker_stats(k->b)->sqes < reads; turn++) {
		if (turn % 8 == 0)
			core_step(k, 100000);
		for (int i = 0; i < 4; i++) {
			/* As if it had rung: a writer that also rings would only be slower. */
			for (int c = 0; c < HOSTILE; c++)
				client_heat(k->b, (uint32_t)id[c]);
			broker_turn(k->b);
		}
		terminals += reap(id[0]);
		head = core_taken(k, id[0]);
		taken += onebit_distance(last, head);
		last = head;
		hold(terminals <= taken);
		if (turn % 64 == 0) {
			core_submit(k, id[VICTIM], &(struct onebit_sqe){ .user_data = asked++ });
			broker_turn(k->b);
			victim += reap(id[VICTIM]);
			hold(victim == asked);
		}
		for (int c = 0; c < 3; c++)
			hold(!k->c[id[c]].closed);
	}
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	pthread_join(thread, NULL);

	/* What is in the ring and in flight comes to its end, and then the counts agree exactly. */
	for (int i = 0; i < 20000 && (broker_stats(k->b)->queued || broker_stats(k->b)->running ||
				      onebit_load_relaxed(word(k->c[id[0]].client, 0)) != last); i++) {
		client_heat(k->b, (uint32_t)id[0]);
		core_pass(k, 1000000);
		terminals += reap(id[0]);
		head = core_taken(k, id[0]);
		taken += onebit_distance(last, head);
		last = head;
	}
	s = broker_stats(k->b);
	ck_assert_uint_eq(terminals, taken);
	ck_assert_uint_eq(s->running, 0);
	ck_assert_uint_eq(s->executor_lies, 0);
	ck_assert_uint_ge(s->sqes, reads);
	/* A race in which nothing is ever accepted would prove little. */
	ck_assert_uint_gt(s->accepted, reads / 10000);
	ck_assert_uint_gt(s->done, 0);
	printf("test_race: %llu SQEs read, %llu accepted, %llu done, %llu cancelled, %llu failed, "
	       "%llu tokens, %llu CQEs\n", (unsigned long long)s->sqes,
	       (unsigned long long)s->accepted, (unsigned long long)s->done,
	       (unsigned long long)s->cancelled, (unsigned long long)s->failed,
	       (unsigned long long)s->tokens, (unsigned long long)s->cqes);
	for (int i = 0; i < 3; i++)
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

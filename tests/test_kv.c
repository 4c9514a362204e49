/* SPDX-License-Identifier: MIT */
/*
 * The KV cache's bookkeeping against a naive model of it: blocks as a list, texts by the hash of all
 * that is in them, every question answered by looking at everything. And an arena: what a position holds
 * is written here as the engine would, so a block that is shared wrongly, written while it is shared, or
 * given to two, shows as wrong contents. kv.c is included for its hash, to make what collides.
 */
#include <check.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "kv.c"
#include "lib_vocab.h"

#define BLOCKS 48u
#define SEQS   8u
#define LONG   512u

static uint64_t rng;
static uint32_t below(uint32_t n)
{
	return (uint32_t)((test_random(&rng) >> 32) * n >> 32);
}

static const struct kv_principal someone[] = { { 0, 1000 }, { 1, 1000 }, { 0, 1001 } };

/* ---- the model ------------------------------------------------------------------------------- */

/* text: hash of principal and all tokens to the block's end; before: to its beginning. */
struct m_block {
	uint32_t refs, real;
	bool used, known;
	uint64_t text, before, stamp;
};
struct m_seq {
	struct kv_seq *s;
	uint32_t who, stream, length, computed, known, n;
	uint32_t block[LONG / KV_BLOCK], token[LONG];
};

static struct kv *kv;
static uint32_t n_blocks, n_seqs, max_positions;
static struct m_block mb[BLOCKS];
static struct m_seq ms[SEQS];
static uint64_t arena[BLOCKS][KV_BLOCK], stamp, lookups, hits, reused, evicted;

static uint64_t fold(uint64_t h, uint64_t x)
{
	h += x + 1;
	h ^= h >> 31;
	h *= 0xd6e8feb86659fd93;
	return h ^ h >> 29;
}

/* Of the first n tokens; who alone for none. */
static uint64_t text_of(uint32_t who, const uint32_t *token, uint32_t n)
{
	uint64_t h = fold(99, who);

	for (uint32_t i = 0; i < n; i++)
		h = fold(h, token[i]);
	return h;
}

static uint32_t m_known(uint64_t text)
{
	for (uint32_t i = 0; i < n_blocks; i++)
		if (mb[i].known && mb[i].text == text)
			return i;
	return KV_NONE;
}

static bool m_parent(uint32_t b)
{
	for (uint32_t i = 0; i < n_blocks; i++)
		if (mb[i].known && mb[i].before == mb[b].text)
			return true;
	return false;
}

static uint32_t m_count(bool used, bool held)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < n_blocks; i++)
		n += mb[i].used == used && (mb[i].refs > 0) == held;
	return n;
}

static void m_evict(void)
{
	uint32_t old = KV_NONE;

	for (uint32_t i = 0; i < n_blocks; i++)
		if (mb[i].used && !mb[i].refs && (old == KV_NONE || mb[i].stamp < mb[old].stamp))
			old = i;
	ck_assert(old != KV_NONE && !m_parent(old));
	mb[old].used = mb[old].known = false;
	evicted++;
}

static void m_release(uint32_t b, bool findable)
{
	if (--mb[b].refs)
		return;
	mb[b].stamp = ++stamp;
	if (!mb[b].known || (!findable && !m_parent(b)))
		mb[b].used = mb[b].known = false;
}

static uint32_t m_take(uint32_t real)
{
	uint32_t b = 0;

	if (!m_count(false, false))
		m_evict();
	while (mb[b].used)
		b++;
	mb[b] = (struct m_block){ .refs = 1, .real = real, .used = true };
	return b;
}

static void m_cut(struct m_seq *s, uint32_t n, bool findable)
{
	while (s->n > (n + KV_BLOCK - 1) / KV_BLOCK)
		m_release(s->block[--s->n], findable);
	s->length = n;
	s->computed = s->computed < n ? s->computed : n;
	s->known = s->known < n / KV_BLOCK ? s->known : n / KV_BLOCK;
}

/* ---- both ------------------------------------------------------------------------------------ */

static void compare(void)
{
	struct kv_counts c = kv_counts(kv);
	uint32_t open = 0;

	for (uint32_t i = 0; i < n_seqs; i++) {
		const struct m_seq *s = &ms[i];
		uint64_t h = fold(99, s->who);

		if (!s->s)
			continue;
		open++;
		ck_assert_uint_eq(kv_seq_length(s->s), s->length);
		for (uint32_t b = 0; b < s->n; b++)
			if (kv_seq_blocks(s->s)[b] != mb[s->block[b]].real)
				ck_abort_msg("block %u is %u, not %u", b, kv_seq_blocks(s->s)[b],
					     mb[s->block[b]].real);
		for (uint32_t p = 0; p < s->length; p++) {
			h = fold(h, s->token[p]);
			if (kv_seq_tokens(s->s)[p] != s->token[p])
				ck_abort_msg("token %u is wrong", p);
			if (p < s->computed &&
			    arena[kv_seq_blocks(s->s)[p / KV_BLOCK]][p % KV_BLOCK] != h)
				ck_abort_msg("position %u holds something else", p);
		}
	}
	ck_assert_uint_eq(c.seqs, open);
	ck_assert_uint_eq(c.blocks, n_blocks);
	ck_assert_uint_eq(c.free, m_count(false, false));
	ck_assert_uint_eq(c.findable, m_count(true, false));
	ck_assert_uint_eq(c.held, m_count(true, true));
	ck_assert(c.lookups == lookups && c.hits == hits && c.reused == reused &&
		  c.evicted == evicted);
	kv_check(kv);
}

/* Of a stream, so that texts begin equal; now and then a sequence leaves its stream. */
static uint32_t next_token(struct m_seq *s, uint32_t at)
{
	if (!below(80))
		s->stream = below(3);
	return (uint32_t)fold(s->stream, at) % 1000;
}

static void do_append(struct m_seq *s, uint32_t n)
{
	uint32_t token[LONG] = { 0 }, part = s->length % KV_BLOCK, last, want, shared = 0;
	struct kv_copy copy;
	int rc;

	for (uint32_t i = 0; i < n; i++)
		token[i] = next_token(s, s->length + i);
	want = (s->length + n + KV_BLOCK - 1) / KV_BLOCK;
	last = part ? s->block[s->n - 1] : KV_NONE;
	if (n && part)
		shared = mb[last].refs > 1 || (mb[last].known && m_parent(last));
	rc = kv_append(kv, s->s, token, n, &copy);
	if (s->length + n > max_positions) {
		ck_assert_int_eq(rc, -EFBIG);
		return;
	}
	if (n && want - s->n + shared > m_count(false, false) + m_count(true, false)) {
		ck_assert_int_eq(rc, -ENOSPC);
		return;
	}
	ck_assert_int_eq(rc, 0);
	ck_assert((copy.from != KV_NONE) == shared);
	if (shared) {
		ck_assert_uint_eq(copy.from, mb[last].real);
		ck_assert_uint_eq(copy.n, part);
		memcpy(arena[copy.to], arena[copy.from], part * sizeof(arena[0][0]));
		s->block[s->n - 1] = m_take(copy.to);
	} else if (n && part) {
		mb[last].known = false;
	}
	for (; s->n < want; s->n++)
		s->block[s->n] = m_take(kv_seq_blocks(s->s)[s->n]);
	if (shared)
		m_release(last, true);
	memcpy(s->token + s->length, token, n * sizeof(*token));
	s->length += n;
}

/* The engine's part: what a position holds comes of all tokens to it. */
static void do_compute(struct m_seq *s, uint32_t n)
{
	for (; s->computed < n; s->computed++) {
		uint32_t b = kv_seq_blocks(s->s)[s->computed / KV_BLOCK];

		ck_assert_uint_eq(mb[s->block[s->computed / KV_BLOCK]].refs, 1);
		arena[b][s->computed % KV_BLOCK] =
			text_of(s->who, s->token, s->computed + 1);
	}
}

static void do_told(struct m_seq *s, uint32_t n)
{
	kv_computed(kv, s->s, n);
	for (uint32_t i = s->known; i < n / KV_BLOCK; i++) {
		uint32_t own = s->block[i], b;
		uint64_t text = text_of(s->who, s->token, (i + 1) * KV_BLOCK);

		b = m_known(text);
		if (b == KV_NONE && mb[own].refs > 1)
			return;
		if (b == KV_NONE) {
			mb[own].known = true;
			mb[own].text = text;
			mb[own].before = text_of(s->who, s->token, i * KV_BLOCK);
		} else if (b != own) {
			mb[b].refs++;
			s->block[i] = b;
			m_release(own, true);
		}
		s->known = i + 1;
	}
}

static void do_find(struct m_seq *s)
{
	uint32_t token[LONG] = { 0 }, n = below(max_positions + 1), i;

	for (i = 0; i < n; i++)
		token[i] = next_token(s, i);
	for (i = 0; (i + 1) * KV_BLOCK < n; i++) {
		uint32_t b = m_known(text_of(s->who, token, (i + 1) * KV_BLOCK));

		if (b == KV_NONE)
			break;
		mb[b].refs++;
		s->block[i] = b;
	}
	s->n = s->known = i;
	s->length = s->computed = i * KV_BLOCK;
	memcpy(s->token, token, s->length * sizeof(*token));
	lookups++;
	hits += i > 0;
	reused += s->length;
	ck_assert_uint_eq(kv_seq_find(kv, s->s, token, n), s->length);
}

static void do_close(struct m_seq *s, bool findable)
{
	kv_seq_close(kv, s->s, findable);
	m_cut(s, 0, findable);
	s->s = NULL;
}

static struct m_seq *a_seq(bool open)
{
	uint32_t begin = below(n_seqs);

	for (uint32_t i = 0; i < n_seqs; i++) {
		struct m_seq *s = &ms[(begin + i) % n_seqs];

		if ((s->s != NULL) == open)
			return s;
	}
	return NULL;
}

static void do_open(void)
{
	struct m_seq *s = a_seq(false);
	uint32_t who = below(3);
	struct kv_seq *real = kv_seq_open(kv, someone[who]);

	ck_assert((real != NULL) == (s != NULL));
	if (!s)
		return;
	*s = (struct m_seq){ .s = real, .who = who, .stream = below(3) };
	if (below(4))
		do_find(s);
}

static void do_fork(const struct m_seq *from)
{
	struct m_seq *s = a_seq(false);
	struct kv_seq *real = kv_seq_fork(kv, from->s);

	ck_assert((real != NULL) == (s != NULL));
	if (!s)
		return;
	*s = *from;
	s->s = real;
	for (uint32_t i = 0; i < s->n; i++)
		mb[s->block[i]].refs++;
}

static void one_op(void)
{
	struct m_seq *s = a_seq(true);
	uint32_t op = below(100);

	if (!s || op < 10) {
		do_open();
	} else if (op < 60) {
		do_append(s, below(3) ? below(KV_BLOCK) : below(4 * KV_BLOCK));
		/* A block that is shared is not written, so before a fork all is computed. */
		do_compute(s, below(4) ? s->length : s->computed + below(s->length - s->computed + 1));
		if (below(8))
			do_told(s, below(4) ? s->computed : below(s->computed + 1));
	} else if (op < 72) {
		do_close(s, below(4) > 0);
	} else if (op < 80) {
		do_compute(s, s->length);
		if (below(2))
			do_told(s, s->length);
		do_fork(s);
	} else if (op < 90) {
		uint32_t n = below(3) ? s->length - below(s->length / 4 + 1) : below(s->length + 1);

		kv_truncate(kv, s->s, n);
		m_cut(s, n, true);
	} else if (op < 92) {
		kv_truncate(kv, s->s, 0); /* preempted, comes back */
		m_cut(s, 0, true);
		do_find(s);
	} else if (op < 99) {
		do_told(s, s->computed);
	} else {
		kv_forget(kv);
		while (m_count(true, false))
			m_evict();
	}
}

static void begin(uint32_t blocks, uint32_t seqs, uint32_t positions)
{
	memset(mb, 0, sizeof(mb));
	memset(ms, 0, sizeof(ms));
	memset(arena, 0, sizeof(arena));
	stamp = lookups = hits = reused = evicted = 0;
	n_blocks = blocks;
	n_seqs = seqs;
	max_positions = positions;
	kv = kv_new(blocks, seqs, positions);
	ck_assert_ptr_nonnull(kv);
	compare();
}

static void end(void)
{
	for (uint32_t i = 0; i < n_seqs; i++)
		if (ms[i].s)
			do_close(&ms[i], true);
	compare();
	ck_assert_uint_eq(kv_counts(kv).held, 0);
	kv = kv_free(kv);
}

/* Anything wrong in the order of operations that real requests bring: somebody reads another text's KV. */
START_TEST(against_the_model)
{
	uint64_t n = test_scaled(100000), seen_reuse = 0, seen_evicted = 0;

	rng = test_seed("kv");
	while (n) {
		uint32_t ops = 1 + below(4000);

		begin(1 + below(BLOCKS), 1 + below(SEQS), 1 + below(LONG));
		for (uint32_t i = 0; i < ops && n; i++, n--) {
			one_op();
			compare();
		}
		seen_reuse += reused;
		seen_evicted += evicted;
		end();
	}
	/* A test that never met these would prove little. */
	ck_assert_uint_gt(seen_reuse, 0);
	ck_assert_uint_gt(seen_evicted, 0);
}
END_TEST

/* ---- one at a time ----------------------------------------------------------------------------- */

static uint32_t plain[LONG];

/* n positions, computed, of the plain text from where it is. */
static void grow(struct kv *k, struct kv_seq *s, uint32_t n)
{
	struct kv_copy copy;

	ck_assert_int_eq(kv_append(k, s, plain + kv_seq_length(s), n, &copy), 0);
	kv_computed(k, s, kv_seq_length(s));
	kv_check(k);
}

static struct kv *with_text(uint32_t blocks, uint32_t positions)
{
	struct kv *k = kv_new(blocks, 4, LONG);
	struct kv_seq *s;

	ck_assert_ptr_nonnull(k);
	for (uint32_t i = 0; i < LONG; i++)
		plain[i] = i;
	s = kv_seq_open(k, someone[0]);
	grow(k, s, positions);
	kv_seq_close(k, s, true);
	return k;
}

static uint32_t found(struct kv *k, struct kv_principal who, uint32_t n)
{
	struct kv_seq *s = kv_seq_open(k, who);
	uint32_t r = kv_seq_find(k, s, plain, n);

	kv_seq_close(k, s, true);
	kv_check(k);
	return r;
}

/* A prefix found by another user or tenant tells them that somebody asked the same. */
START_TEST(principals)
{
	struct kv *k = with_text(16, 4 * KV_BLOCK);

	ck_assert_uint_eq(found(k, someone[1], LONG), 0);
	ck_assert_uint_eq(found(k, someone[2], LONG), 0);
	ck_assert_uint_eq(found(k, someone[0], LONG), 4 * KV_BLOCK);
	kv_free(k);
}
END_TEST

/* All of a prompt found would leave nothing to compute the first answer from. */
START_TEST(one_is_left)
{
	struct kv *k = with_text(16, 4 * KV_BLOCK + 5);

	ck_assert_uint_eq(found(k, someone[0], 0), 0);
	ck_assert_uint_eq(found(k, someone[0], KV_BLOCK), 0);
	ck_assert_uint_eq(found(k, someone[0], KV_BLOCK + 1), KV_BLOCK);
	ck_assert_uint_eq(found(k, someone[0], 4 * KV_BLOCK), 3 * KV_BLOCK);
	ck_assert_uint_eq(found(k, someone[0], LONG), 4 * KV_BLOCK);
	plain[KV_BLOCK + 7]++;
	ck_assert_uint_eq(found(k, someone[0], LONG), KV_BLOCK);
	plain[0]++;
	ck_assert_uint_eq(found(k, someone[0], LONG), 0);
	ck_assert_uint_eq(kv_counts(k).hits, 4);
	kv_free(k);
}
END_TEST

/* The same words behind another beginning are another text. */
START_TEST(beginning_counts)
{
	struct kv *k = with_text(16, 0);
	struct kv_seq *s = kv_seq_open(k, someone[0]);

	for (uint32_t i = 0; i < LONG; i++)
		plain[i] = 7;
	grow(k, s, KV_BLOCK + 1);
	kv_seq_close(k, s, true);
	ck_assert_uint_eq(found(k, someone[0], LONG), KV_BLOCK);
	kv_free(k);
}
END_TEST

/* The wrong ones forgotten first: a beginning that all share goes, an end that nobody wants stays. */
START_TEST(order_of_forgetting)
{
	struct kv *k = with_text(8, 4 * KV_BLOCK);
	struct kv_seq *s;

	/* Another text of 4 blocks, used later; then the first two of the old one, later still. */
	s = kv_seq_open(k, someone[1]);
	grow(k, s, 4 * KV_BLOCK);
	kv_seq_close(k, s, true);
	ck_assert_uint_eq(found(k, someone[0], 2 * KV_BLOCK + 1), 2 * KV_BLOCK);
	ck_assert_uint_eq(kv_counts(k).findable, 8);

	s = kv_seq_open(k, someone[2]);
	grow(k, s, 1); /* the end of the old text */
	ck_assert_uint_eq(found(k, someone[0], 4 * KV_BLOCK + 1), 3 * KV_BLOCK);
	grow(k, s, KV_BLOCK); /* now the other's is oldest */
	grow(k, s, KV_BLOCK);
	ck_assert_uint_eq(found(k, someone[0], LONG), 3 * KV_BLOCK);
	ck_assert_uint_eq(found(k, someone[1], LONG), 2 * KV_BLOCK);
	ck_assert_uint_eq(kv_counts(k).evicted, 3);
	kv_seq_close(k, s, false);
	ck_assert_uint_eq(kv_counts(k).free, 3);
	kv_forget(k);
	ck_assert_uint_eq(kv_counts(k).free, 8);
	ck_assert_uint_eq(found(k, someone[0], LONG), 0);
	kv_free(k);
}
END_TEST

/* Without the copy, one of two choices writes its words into the other's past. */
START_TEST(fork_and_copy)
{
	struct kv *k = with_text(16, 0);
	struct kv_seq *a = kv_seq_open(k, someone[0]), *b;
	struct kv_copy copy;
	uint32_t last;

	grow(k, a, KV_BLOCK + 5);
	last = kv_seq_blocks(a)[1];
	b = kv_seq_fork(k, a);
	ck_assert_uint_eq(kv_counts(k).held, 2);
	ck_assert_int_eq(kv_append(k, b, plain, 3, &copy), 0);
	ck_assert(copy.from == last && copy.to == kv_seq_blocks(b)[1] && copy.n == 5);
	ck_assert_uint_ne(copy.to, last);
	ck_assert_uint_eq(kv_seq_blocks(a)[1], last);
	ck_assert_int_eq(kv_append(k, a, plain, 3, &copy), 0);
	ck_assert_uint_eq(copy.from, KV_NONE);
	ck_assert_uint_eq(kv_seq_blocks(a)[1], last);
	kv_check(k);
	kv_seq_close(k, a, true);
	kv_seq_close(k, b, true);
	kv_check(k);
	kv_free(k);
}
END_TEST

/* Two that computed the same side by side: one copy stays, both can go on, both are found. */
START_TEST(computed_twice)
{
	struct kv *k = with_text(16, 0);
	struct kv_seq *a = kv_seq_open(k, someone[0]), *b = kv_seq_open(k, someone[0]);

	grow(k, a, 2 * KV_BLOCK);
	grow(k, b, 3 * KV_BLOCK);
	ck_assert_uint_eq(kv_counts(k).held, 3);
	ck_assert(!memcmp(kv_seq_blocks(a), kv_seq_blocks(b), 2 * sizeof(uint32_t)));
	kv_seq_close(k, a, false); /* b's are still b's */
	kv_seq_close(k, b, true);
	ck_assert_uint_eq(found(k, someone[0], LONG), 3 * KV_BLOCK);
	kv_free(k);
}
END_TEST

/* What was not told computed is not found: another would read what is not there yet. */
START_TEST(not_computed)
{
	struct kv *k = with_text(16, 0);
	struct kv_seq *a = kv_seq_open(k, someone[0]), *b;
	struct kv_copy copy;

	ck_assert_int_eq(kv_append(k, a, plain, 3 * KV_BLOCK, &copy), 0);
	ck_assert_uint_eq(found(k, someone[0], LONG), 0);
	kv_computed(k, a, 2 * KV_BLOCK - 1);
	ck_assert_uint_eq(found(k, someone[0], LONG), KV_BLOCK);
	/* Held by two and not told: of neither may it be found, whatever the other does. */
	b = kv_seq_fork(k, a);
	kv_computed(k, b, 3 * KV_BLOCK);
	kv_check(k);
	ck_assert_uint_eq(found(k, someone[0], LONG), KV_BLOCK);
	kv_seq_close(k, a, true);
	kv_computed(k, b, 3 * KV_BLOCK);
	ck_assert_uint_eq(found(k, someone[0], LONG), 3 * KV_BLOCK);
	kv_seq_close(k, b, true);
	kv_free(k);
}
END_TEST

/* What is full says so, changes nothing, and works again when there is room. */
START_TEST(full)
{
	struct kv *k = with_text(4, 0);
	struct kv_seq *a = kv_seq_open(k, someone[0]), *b = kv_seq_open(k, someone[1]);
	struct kv_copy copy;

	grow(k, a, 3 * KV_BLOCK - 1);
	ck_assert_int_eq(kv_append(k, b, plain, KV_BLOCK + 1, &copy), -ENOSPC);
	ck_assert_uint_eq(kv_seq_length(b), 0);
	grow(k, b, KV_BLOCK);
	ck_assert_int_eq(kv_append(k, b, plain, 1, &copy), -ENOSPC);
	grow(k, a, 1);
	ck_assert_int_eq(kv_append(k, a, plain, LONG, &copy), -EFBIG);
	kv_check(k);
	/* Cut in the middle of what is known, it goes on in place where it cannot be copied. */
	kv_truncate(k, a, 3 * KV_BLOCK - 4);
	ck_assert_int_eq(kv_append(k, a, plain, 2, &copy), 0);
	ck_assert_uint_eq(copy.from, KV_NONE);
	kv_check(k);
	kv_truncate(k, a, 0);
	grow(k, b, 3 * KV_BLOCK);
	kv_seq_close(k, a, true);
	kv_seq_close(k, b, true);
	kv_free(k);
}
END_TEST

/* Blocks of one sequence lie beside each other, in order, and a neighbour's stay free for it. */
START_TEST(neighbours)
{
	struct kv *k = with_text(32, 0);
	struct kv_seq *s[3];

	for (int i = 0; i < 3; i++)
		s[i] = kv_seq_open(k, someone[i]);
	for (uint32_t n = 0; n < 8; n++)
		for (int i = 0; i < 3; i++)
			grow(k, s[i], KV_BLOCK);
	for (int i = 0; i < 3; i++)
		for (uint32_t n = 0; n < 8; n++) {
			uint32_t first = kv_seq_blocks(s[i])[n - n % KV_NEIGHBOURS];

			ck_assert_uint_eq(first % KV_NEIGHBOURS, 0);
			ck_assert_uint_eq(kv_seq_blocks(s[i])[n], first + n % KV_NEIGHBOURS);
		}
	for (int i = 0; i < 3; i++)
		kv_seq_close(k, s[i], true);
	kv_free(k);
}
END_TEST

/* Behind a beginning that lies elsewhere, at the place in a group that is this block's. */
START_TEST(neighbours_later)
{
	struct kv *k = with_text(8, 0);
	struct kv_seq *a = kv_seq_open(k, someone[0]), *b = kv_seq_open(k, someone[0]);

	grow(k, a, 4 * KV_BLOCK);
	grow(k, b, 2 * KV_BLOCK);
	plain[2 * KV_BLOCK]++;
	grow(k, b, 2 * KV_BLOCK);
	ck_assert_uint_eq(kv_seq_blocks(b)[1], 1);
	ck_assert_uint_eq(kv_seq_blocks(b)[2], 6);
	ck_assert_uint_eq(kv_seq_blocks(b)[3], 7);
	kv_seq_close(k, a, true);
	kv_seq_close(k, b, true);
	kv_free(k);
}
END_TEST

/* ---- collisions -------------------------------------------------------------------------------- */

static void set_pair(uint32_t *t, uint64_t x)
{
	t[0] = (uint32_t)x;
	t[1] = (uint32_t)(x >> 32);
}

static uint64_t get_pair(const uint32_t *t)
{
	return t[0] | (uint64_t)t[1] << 32;
}

/* The hash is no secret and no wall: who makes another text with the same one must not be shown the first. */
START_TEST(same_hash_other_text)
{
	struct kv *k = with_text(16, 4 * KV_BLOCK);
	struct kv_seq *s = kv_seq_open(k, someone[0]);
	uint64_t root = mix(mix(1, 0), 1000), was = mix(root, get_pair(plain));
	uint32_t other[KV_BLOCK];

	memcpy(other, plain, sizeof(other));
	other[0]++;
	set_pair(other + 2, get_pair(plain + 2) ^ was ^ mix(root, get_pair(other)));
	ck_assert(hash_of(k, someone[0], KV_NONE, other) == hash_of(k, someone[0], KV_NONE, plain));
	memcpy(plain, other, sizeof(other));
	ck_assert_uint_eq(found(k, someone[0], LONG), 0);
	/* Known as well, its second block is another than the first text's, of the same words and hash. */
	grow(k, s, KV_BLOCK);
	ck_assert_uint_eq(found(k, someone[0], LONG), KV_BLOCK);
	grow(k, s, KV_BLOCK);
	ck_assert_uint_eq(found(k, someone[0], LONG), 2 * KV_BLOCK);
	kv_seq_close(k, s, true);
	kv_free(k);
}
END_TEST

/* A delegate picks its tenants' numbers: not even one with another's hash finds the other's texts. */
START_TEST(same_hash_other_principal)
{
	struct kv *k = with_text(16, 4 * KV_BLOCK);
	struct kv_principal twin = { 0, 1001 };
	uint64_t want = mix(1, 0) ^ 1000 ^ 1001, inverse = 1;

	for (int i = 0; i < 6; i++)
		inverse *= 2 - 0x9e3779b97f4a7c15 * inverse;
	twin.tenant = ((want ^ want >> 32) * inverse) ^ 1;
	ck_assert(hash_of(k, twin, KV_NONE, plain) == hash_of(k, someone[0], KV_NONE, plain));
	ck_assert_uint_eq(found(k, twin, LONG), 0);
	ck_assert_uint_eq(found(k, someone[0], LONG), 4 * KV_BLOCK);
	kv_free(k);
}
END_TEST

/* Nothing of nothing is no reason to crash. */
START_TEST(sizes)
{
	struct kv *k = kv_new(0, 0, 0);

	ck_assert_ptr_nonnull(k);
	kv_check(k);
	ck_assert_ptr_null(kv_seq_open(k, someone[0]));
	kv_forget(k);
	kv_free(k);
	kv_free(NULL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("kv");
	TCase *t = tcase_create("kv");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, against_the_model);
	tcase_add_test(t, principals);
	tcase_add_test(t, one_is_left);
	tcase_add_test(t, beginning_counts);
	tcase_add_test(t, order_of_forgetting);
	tcase_add_test(t, fork_and_copy);
	tcase_add_test(t, computed_twice);
	tcase_add_test(t, not_computed);
	tcase_add_test(t, full);
	tcase_add_test(t, neighbours);
	tcase_add_test(t, neighbours_later);
	tcase_add_test(t, same_hash_other_text);
	tcase_add_test(t, same_hash_other_principal);
	tcase_add_test(t, sizes);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

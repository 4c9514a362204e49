/* SPDX-License-Identifier: MIT */
/*
 * A piece starts as bytes (VOCAB_BYTES) or code points (VOCAB_SPM). Of all neighbours that have a
 * merge the one of lowest rank is done, the leftmost of equal ones, until none is left.
 *
 * A short piece is an array that is searched from end to end for each merge: quadratic, and quicker
 * than anything clever at the lengths that text has. A long one is a list, and a queue of places by
 * rank. The queue is a heap of runs: places of one rank in ascending order, chained. What merging
 * from left to right finds anew comes mostly in ascending order, so that text which repeats itself,
 * the worst there is in other respects, has few runs and a heap of a few entries. A merge leaves
 * the entries of the neighbours that it changed in the queue; they are known by a rank that is no
 * longer the place's when they come up. So n bytes cost O(n log n) at most, whatever they are.
 */
#include "bpe.h"
#include "utf8.h"

enum { SHORT = 48 };
#define NO_PAIR UINT64_MAX

uint32_t bpe_word(const struct tokenizer *t, uint64_t hash, const uint8_t *p, size_t len)
{
	uint32_t at = tokenizer_home(hash, t->word_slots), want = tokenizer_word(hash, 0), n, slot;

	for (; (slot = t->words[at]) != WORD_EMPTY; at = at + 1 == t->word_slots ? 0 : at + 1) {
		const uint8_t *text;

		if ((slot & ~TOKENIZER_ID_MASK) != want)
			continue;
		text = symbol_text(t, slot & TOKENIZER_ID_MASK, &n);
		if (n == len && memcmp(text, p, len) == 0)
			return slot & TOKENIZER_ID_MASK;
	}
	return VOCAB_NO_ID;
}

/*
 * Rank in the upper half, what they become in the lower; NO_PAIR. b's text is at p, a's ends before
 * it: the bytes that would meet tell most pairs without a merge, and their table is small enough to
 * stay near.
 */
static uint64_t pair_of(const struct tokenizer *t, uint32_t a, uint32_t b, const uint8_t *p)
{
	const uint64_t mask = ((uint64_t)1 << 2 * TOKENIZER_ID_BITS) - 1;
	uint64_t ids = a | (uint64_t)b << TOKENIZER_ID_BITS;
	uint32_t at;

	if (is_joint(t, p[-1], p[0]) || a == VOCAB_NO_ID || b == VOCAB_NO_ID)
		return NO_PAIR;
	at = tokenizer_home(tokenizer_pair_hash(ids), t->pair_slots);
	for (;; at = at + 1 == t->pair_slots ? 0 : at + 1) {
		const struct tokenizer_pair *slot = &t->pairs[at];
		uint64_t have = slot->ids_low | (uint64_t)slot->ids_high << 32;

		if ((have & mask) == ids)
			return (uint64_t)slot->rank << 32 | have >> 2 * TOKENIZER_ID_BITS;
		if (slot->rank == UINT32_MAX)
			return NO_PAIR;
	}
}

static void put_id(struct bpe_out *out, uint32_t id)
{
	if (out->n < out->cap)
		out->ids[out->n] = id;
	out->n++;
	out->last = id;
}

void bpe_emit(const struct tokenizer *t, uint32_t symbol, const uint8_t *p, size_t len,
	      struct bpe_out *out)
{
	if (symbol < t->facts.n_tokens) {
		put_id(out, symbol);
		return;
	}
	/*
	 * No entry. A byte that a byte-level vocabulary lacks is lost. SentencePiece takes the
	 * tokens of the bytes when each has one, and what is unknown otherwise: one for a run of
	 * them.
	 */
	if (t->all_bytes) {
		for (size_t i = 0; i < len; i++)
			put_id(out, t->byte_id[p[i]]);
	} else if (t->facts.kind == VOCAB_SPM) {
		out->unknown = true;
		if (out->last != t->facts.unk)
			put_id(out, t->facts.unk);
	}
}

/* The symbol that p begins with, and its length in bytes. */
static uint32_t first_symbol(const struct tokenizer *t, const uint8_t *p, size_t len, uint32_t *id)
{
	uint32_t n;

	if (t->facts.kind == VOCAB_BYTES) {
		*id = t->byte_id[p[0]];
		return 1;
	}
	n = utf8_length(p, len);
	*id = n ? bpe_word(t, tokenizer_hash(p, n, len), p, n) : VOCAB_NO_ID;
	return n ? n : 1;
}

/* ---- short pieces -------------------------------------------------------------------------------
 */

struct part {
	uint32_t rank, into, id, at;
};

static void part_pair(const struct tokenizer *t, struct part *a, const uint8_t *p)
{
	uint64_t pair = pair_of(t, a[0].id, a[1].id, p + a[1].at);

	a->rank = (uint32_t)(pair >> 32);
	a->into = (uint32_t)pair;
}

static void merge_short(const struct tokenizer *t, const uint8_t *p, size_t len,
			struct bpe_out *out)
{
	struct part part[SHORT + 1];
	uint32_t n = 0;

	for (uint32_t at = 0; at < len; n++) {
		part[n].at = at;
		part[n].rank = UINT32_MAX;
		at += first_symbol(t, p + at, len - at, &part[n].id);
		if (n)
			part_pair(t, &part[n - 1], p);
	}
	part[n].at = (uint32_t)len;
	for (;;) {
		uint32_t best = UINT32_MAX, i = 0;

		for (uint32_t k = 0; k + 1 < n; k++) {
			if (part[k].rank < best) {
				best = part[k].rank;
				i = k;
			}
		}
		if (best == UINT32_MAX)
			break;
		part[i].id = part[i].into;
		part[i].rank = UINT32_MAX;
		n--;
		memmove(&part[i + 1], &part[i + 2], (n - i) * sizeof(part[0]));
		if (i + 1 < n)
			part_pair(t, &part[i], p);
		if (i)
			part_pair(t, &part[i - 1], p);
	}
	for (uint32_t i = 0; i < n; i++)
		bpe_emit(t, part[i].id, p + part[i].at, part[i + 1].at - part[i].at, out);
}

/* ---- long ones ----------------------------------------------------------------------------------
 */

/* Runs that are still added to, by the last bits of their rank. */
enum { OPEN_RUNS = 256 };
#define NONE UINT32_MAX

struct queue {
	const struct bpe_room *room;
	uint32_t n_runs, n_heap, n_entries;
	uint32_t free_run, free_entry; /* lists of those that can be used again */
	uint32_t open[OPEN_RUNS];
};

static void queue_init(struct queue *q, const struct bpe_room *room)
{
	q->room = room;
	q->n_runs = q->n_heap = q->n_entries = 0;
	q->free_run = q->free_entry = NONE;
	memset(q->open, 0xff, sizeof(q->open));
}

/* Four children a node: half as deep as with two, and they share a cache line. */
static void heap_down(struct bpe_heap *heap, uint32_t n, struct bpe_heap down)
{
	uint32_t at = 0;

	for (;;) {
		uint32_t child = 4 * at + 1, least = child, end = child + 4 < n ? child + 4 : n;

		if (child >= n)
			break;
		for (uint32_t i = child + 1; i < end; i++)
			if (heap[i].key < heap[least].key)
				least = i;
		if (heap[least].key >= down.key)
			break;
		heap[at] = heap[least];
		at = least;
	}
	heap[at] = down;
}

static void heap_up(struct bpe_heap *heap, uint32_t at, struct bpe_heap up)
{
	for (; at && heap[(at - 1) / 4].key > up.key; at = (at - 1) / 4)
		heap[at] = heap[(at - 1) / 4];
	heap[at] = up;
}

static uint32_t new_entry(struct queue *q, uint32_t at)
{
	uint32_t e = q->free_entry;

	if (e == NONE)
		e = q->n_entries++;
	else
		q->free_entry = q->room->entry[e].next;
	q->room->entry[e] = (struct bpe_entry){ at, NONE };
	return e;
}

static void queue_push(struct queue *q, uint32_t rank, uint32_t at)
{
	const struct bpe_room *room = q->room;
	uint32_t *open = &q->open[rank % OPEN_RUNS], e = new_entry(q, at), r = *open;

	if (r != NONE && room->run[r].rank == rank && room->entry[room->run[r].tail].at < at) {
		room->entry[room->run[r].tail].next = e;
		room->run[r].tail = e;
		return;
	}
	r = q->free_run;
	if (r == NONE)
		r = q->n_runs++;
	else
		q->free_run = room->run[r].head;
	room->run[r] = (struct bpe_run){ rank, e, e };
	*open = r;
	q->n_heap++;
	heap_up(room->heap, q->n_heap - 1, (struct bpe_heap){ (uint64_t)rank << 32 | at, r });
}

/* The least rank and, of that, the leftmost place. */
static uint64_t queue_pop(struct queue *q)
{
	const struct bpe_room *room = q->room;
	struct bpe_heap top = room->heap[0];
	struct bpe_run *r = &room->run[top.run];
	uint64_t key = top.key;
	uint32_t e = r->head;

	r->head = room->entry[e].next;
	room->entry[e].next = q->free_entry;
	q->free_entry = e;
	if (r->head == NONE) {
		r->rank = NONE; /* so that it is not taken for open */
		r->head = q->free_run;
		q->free_run = top.run;
		top = room->heap[--q->n_heap];
	} else {
		top.key = (uint64_t)r->rank << 32 | room->entry[r->head].at;
	}
	if (q->n_heap)
		heap_down(room->heap, q->n_heap, top);
	return key;
}

static void push_pair(const struct tokenizer *t, struct queue *q, uint32_t at, uint32_t end,
		      const uint8_t *p)
{
	struct bpe_node *node = q->room->node, *a = &node[at];
	uint64_t pair = NO_PAIR;

	if (a->next != end)
		pair = pair_of(t, a->id, node[a->next].id, p + a->next);
	a->rank = (uint32_t)(pair >> 32);
	a->into = (uint32_t)pair;
	if (a->rank != NONE)
		queue_push(q, a->rank, at);
}

static void merge_long(const struct tokenizer *t, const struct bpe_room *room, const uint8_t *p,
		       size_t len, struct bpe_out *out)
{
	struct bpe_node *node = room->node;
	struct queue q;
	uint32_t end = (uint32_t)len;

	queue_init(&q, room);
	for (uint32_t at = 0, prev = 0; at < end;) {
		struct bpe_node *n = &node[at];

		n->next = at + first_symbol(t, p + at, len - at, &n->id);
		n->prev = prev;
		n->rank = NONE;
		if (at)
			push_pair(t, &q, prev, end, p);
		prev = at;
		at = n->next;
	}
	while (q.n_heap) {
		uint64_t key = queue_pop(&q);
		uint32_t at = (uint32_t)key, gone;

		/* A neighbour was merged since, or it itself was. */
		if (node[at].rank != key >> 32)
			continue;
		gone = node[at].next;
		node[at].id = node[at].into;
		node[at].next = node[gone].next;
		node[gone].rank = NONE;
		if (node[at].next != end)
			node[node[at].next].prev = at;
		push_pair(t, &q, at, end, p);
		if (at)
			push_pair(t, &q, node[at].prev, end, p);
	}
	for (uint32_t at = 0; at < end; at = node[at].next)
		bpe_emit(t, node[at].id, p + at, node[at].next - at, out);
}

void bpe_merge(const struct tokenizer *t, const struct bpe_room *room, const uint8_t *p, size_t len,
	       struct bpe_out *out)
{
	if (len <= SHORT)
		merge_short(t, p, len, out);
	else
		merge_long(t, room, p, len, out);
}

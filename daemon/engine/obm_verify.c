/* SPDX-License-Identifier: MIT */
/*
 * Who a model is, and whether this file is it, byte for byte. The identity stands over a short
 * table of chunk hashes, so the chunks can be hashed in any order by any number of threads, two at
 * a time in each (see sha256_pair()). Afterwards the same threads look at each tile's codes: a
 * checksum says that the bytes are those that somebody wrote, not that they are weights.
 */
#include <assert.h>
#include <errno.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "obm_open.h"
#include "obm_xxh3.h"
#include "sha256.h"

/* What neither checksum nor identity covers: they stand in it, or are put in later. */
static struct obm_header bare(const void *header_page)
{
	struct obm_header h;

	memcpy(&h, header_page, sizeof(h));
	h.header_xxh3 = 0;
	memset(h.signer, 0, sizeof(h.signer));
	memset(h.signature, 0, sizeof(h.signature));
	return h;
}

uint64_t obm_header_xxh3(const void *header_page, uint32_t header_bytes)
{
	struct obm_header h = bare(header_page);
	uint8_t page[OBM_HEADER_MAX];

	assert(header_bytes >= sizeof(h) && header_bytes <= sizeof(page));
	memcpy(page, header_page, header_bytes);
	memcpy(page, &h, sizeof(h));
	return XXH3_64bits(page, header_bytes);
}

void obm_identity(const void *header_page, uint32_t header_bytes, const void *chunks,
		  uint64_t chunks_bytes, uint8_t identity[32])
{
	struct obm_header h = bare(header_page);
	struct sha256 s;

	memset(h.identity, 0, sizeof(h.identity));
	sha256_init(&s);
	sha256_update(&s, &h, sizeof(h));
	sha256_update(&s, (const uint8_t *)header_page + sizeof(h), header_bytes - sizeof(h));
	sha256_update(&s, chunks, chunks_bytes);
	sha256_final(&s, identity);
}

/* ---- chunks and tiles ------------------------------------------------------------------------ */

#define TILES 64u /* of the matrices, counted through, that a thread takes at a time */

/* Each thread takes the next chunks, then the next tiles; the join publishes what they found. */
struct search {
	const struct obm *o;
	const uint8_t *chunks; /* the table */
	uint64_t start, end;   /* of what it covers */
	uint64_t n_chunks, n_tiles;
	uint64_t *first_tile; /* of each tensor; n_tensors + 1 */
	atomic_ullong next_chunk, next_tile;
	atomic_ullong bad_chunk, bad_tile; /* the first; n_chunks, n_tiles: none */
	atomic_bool gone;		   /* the file no longer has all its pages */
};

/* Lowers *to to v. */
static void lower(atomic_ullong *to, unsigned long long v)
{
	unsigned long long before = atomic_load_explicit(to, memory_order_relaxed);

	while (v < before && !atomic_compare_exchange_weak_explicit(
				     to, &before, v, memory_order_relaxed, memory_order_relaxed))
		;
}

static uint64_t chunk_bytes(const struct search *s, uint64_t i)
{
	uint64_t left = s->end - s->start - i * OBM_CHUNK;

	return left < OBM_CHUNK ? left : OBM_CHUNK;
}

static void hash_chunks(void *arg)
{
	struct search *s = arg;
	uint64_t i;

	while ((i = atomic_fetch_add_explicit(&s->next_chunk, 2, memory_order_relaxed)) <
	       s->n_chunks) {
		const uint8_t *p = s->o->base + s->start + i * OBM_CHUNK;
		uint64_t two = i + 1 < s->n_chunks ? chunk_bytes(s, i + 1) : 0;
		uint8_t digest[2][32];

		if (!obm_populate(s->o, p, chunk_bytes(s, i) + two)) {
			atomic_store_explicit(&s->gone, true, memory_order_relaxed);
			return;
		}
		if (two == OBM_CHUNK) {
			sha256_pair(p, p + OBM_CHUNK, OBM_CHUNK, digest[0], digest[1]);
		} else {
			sha256(p, chunk_bytes(s, i), digest[0]);
			sha256(p + OBM_CHUNK, two, digest[1]);
		}
		for (uint64_t k = 0; k < (two ? 2 : 1); k++)
			if (memcmp(digest[k], s->chunks + (i + k) * 32, 32))
				lower(&s->bad_chunk, i + k);
		obm_forget(s->o, s->start + i * OBM_CHUNK, chunk_bytes(s, i) + two);
	}
}

/* A tensor's tiles from one to before another; number is that of the first, counted through. */
static void check_run(struct search *s, const struct obm_tensor *t, uint64_t from, uint64_t to,
		      uint64_t number)
{
	struct packed_shape shape = obm_shape(t);
	uint64_t bytes = packed_bytes(&shape) / packed_tiles(&shape);

	for (uint64_t i = from; i < to; i++) {
		uint64_t left = t->rows - i * PACKED_ROWS;

		if (!packed_tile_is_valid(&shape, s->o->base + t->offset + i * bytes,
					  left < PACKED_ROWS ? (uint32_t)left : PACKED_ROWS))
			lower(&s->bad_tile, number + i - from);
	}
	obm_forget(s->o, t->offset + from * bytes, (to - from) * bytes);
}

static uint32_t tensor_of(const struct search *s, uint64_t tile)
{
	uint32_t i = 0;

	while (s->first_tile[i + 1] <= tile)
		i++;
	return i;
}

static void check_tiles(void *arg)
{
	struct search *s = arg;
	uint64_t i;

	while ((i = atomic_fetch_add_explicit(&s->next_tile, TILES, memory_order_relaxed)) <
	       s->n_tiles) {
		uint64_t end = i + TILES < s->n_tiles ? i + TILES : s->n_tiles;

		for (uint32_t tensor = tensor_of(s, i); i < end; tensor++) {
			uint64_t first = s->first_tile[tensor], next = s->first_tile[tensor + 1];

			next = next < end ? next : end;
			if (next <= i) /* plain floats have none */
				continue;
			check_run(s, &s->o->tensors[tensor], i - first, next - first, i);
			i = next;
		}
	}
}

static int search_all(struct search *s, unsigned threads, unsigned *had, char *why, size_t why_len)
{
	const struct obm *o = s->o;
	char name[OBM_NAME_MAX];
	const struct obm_tensor *bad;
	uint64_t i, from, to;

	*had = obm_parallel(threads, hash_chunks, s);
	if (atomic_load(&s->gone))
		return obm_refuse(why, why_len, -EBADMSG,
				  "the file can no longer be read: it was cut, or its "
				  "disk has a fault");
	i = atomic_load(&s->bad_chunk);
	from = s->start + i * OBM_CHUNK;
	to = from + (i < s->n_chunks ? chunk_bytes(s, i) : 0);
	if (i < s->n_chunks)
		return obm_refuse(why, why_len, -EBADMSG,
				  "it is not the model that it says: bytes %llu to %llu "
				  "differ from what was written; get the file again",
				  (unsigned long long)from, (unsigned long long)to);
	for (uint32_t t = 0; t < o->n_tensors; t++) {
		struct packed_shape shape = obm_shape(&o->tensors[t]);

		s->first_tile[t] = s->n_tiles;
		s->n_tiles += shape.layout ? packed_tiles(&shape) : 0;
	}
	s->first_tile[o->n_tensors] = s->n_tiles;
	atomic_store(&s->bad_tile, s->n_tiles);
	obm_parallel(threads, check_tiles, s);
	i = atomic_load(&s->bad_tile);
	if (i == s->n_tiles)
		return 0;
	bad = &o->tensors[tensor_of(s, i)];
	from = (i - s->first_tile[bad - o->tensors]) * PACKED_ROWS;
	to = from + PACKED_ROWS < bad->rows ? from + PACKED_ROWS : bad->rows;
	return obm_refuse(why, why_len, -EPROTO,
			  "tensor %s holds what is no weight, in rows %llu to %llu; who "
			  "made the file made it wrong",
			  obm_name(bad->role, bad->layer, name), (unsigned long long)from,
			  (unsigned long long)to - 1);
}

/* ---- the signature --------------------------------------------------------------------------- */

static int check_signature(const struct obm_header *h, const uint8_t *key, bool *is_signed,
			   char *why, size_t why_len)
{
	bool none = obm_is_zero(h->signer, sizeof(h->signer));

	if (none && !obm_is_zero(h->signature, sizeof(h->signature)))
		return obm_refuse(why, why_len, -EKEYREJECTED,
				  "it has a signature, but names no signer");
	if (none && key)
		return obm_refuse(why, why_len, -EKEYREJECTED, "it is not signed");
	if (key && memcmp(key, h->signer, sizeof(h->signer)))
		return obm_refuse(why, why_len, -EKEYREJECTED,
				  "it is signed by another key, %02x%02x%02x%02x...", h->signer[0],
				  h->signer[1], h->signer[2], h->signer[3]);
	if (!none &&
	    (sodium_init() < 0 || crypto_sign_verify_detached(h->signature, h->identity,
							      sizeof(h->identity), h->signer)))
		return obm_refuse(why, why_len, -EKEYREJECTED,
				  "its signature is bad: the key %02x%02x%02x%02x... "
				  "did not sign this model",
				  h->signer[0], h->signer[1], h->signer[2], h->signer[3]);
	*is_signed = !none;
	return 0;
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int obm_verify(const struct obm *o, const uint8_t *key, unsigned threads, struct obm_verdict *out,
	       char *why, size_t why_len)
{
	struct search s = { .o = o };
	double begin = seconds();
	struct obm_verdict v = { 0 };
	uint64_t table;
	uint8_t identity[32];
	int err;

	assert(threads >= 1);
	/* What takes no time first: a file by somebody else need not be read. */
	err = check_signature(o->header, key, &v.is_signed, why, why_len);
	if (err)
		return err;
	s.chunks = obm_section(o, OBM_CHUNKS, 0, &table);
	s.start = o->header->header_bytes;
	s.end = (uint64_t)(s.chunks - o->base);
	s.n_chunks = table / 32;
	if (!obm_populate(o, s.chunks, table))
		return obm_refuse(why, why_len, -EBADMSG,
				  "the file can no longer be read: it was cut, or its "
				  "disk has a fault");
	/* It was right when the file was opened; since then somebody may have written there. */
	obm_identity(o->header, o->header->header_bytes, s.chunks, table, identity);
	if (memcmp(identity, o->header->identity, sizeof(identity)))
		return obm_refuse(why, why_len, -EBADMSG,
				  "its identity is not the one that its header and "
				  "chunk table have");
	s.first_tile = calloc(o->n_tensors + 1, sizeof(*s.first_tile));
	if (!s.first_tile)
		return obm_refuse(why, why_len, -ENOMEM, "no memory to verify the file");
	atomic_store(&s.bad_chunk, s.n_chunks);
	err = search_all(&s, threads, &v.threads, why, why_len);
	free(s.first_tile);
	if (err)
		return err;
	v.bytes = s.end - s.start;
	v.seconds = seconds() - begin;
	*out = v;
	return 0;
}

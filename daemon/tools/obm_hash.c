/* SPDX-License-Identifier: MIT */
/*
 * The hashing thread of a container's writer.
 */
#include "obm_hash.h"

#include <errno.h>
#include <stdlib.h>
#include "sha256.h"

static void hash_some(struct hasher *h, uint64_t from, uint64_t n)
{
	const uint8_t *a = h->buffer + from % HASHER_BUFFERS * OBM_CHUNK;
	const uint8_t *b = h->buffer + (from + 1) % HASHER_BUFFERS * OBM_CHUNK;

	if (n == 2)
		sha256_pair(a, b, OBM_CHUNK, h->digests + from * 32, h->digests + (from + 1) * 32);
	else
		sha256(a, h->bytes[from % HASHER_BUFFERS], h->digests + from * 32);
}

static void *hash_thread(void *arg)
{
	struct hasher *h = arg;
	uint64_t n;

	pthread_mutex_lock(&h->lock);
	for (;;) {
		while (h->in == h->out && !h->closed)
			pthread_cond_wait(&h->filled, &h->lock);
		if (h->in == h->out)
			break;
		/* Only the last chunk is shorter, and it goes alone. */
		n = h->in - h->out >= 2 && h->bytes[(h->out + 1) % HASHER_BUFFERS] == OBM_CHUNK ?
			    2 :
			    1;
		pthread_mutex_unlock(&h->lock);
		hash_some(h, h->out, n);
		pthread_mutex_lock(&h->lock);
		h->out += n;
		pthread_cond_signal(&h->emptied);
	}
	pthread_mutex_unlock(&h->lock);
	return NULL;
}

int hasher_init(struct hasher *h, uint64_t chunks)
{
	int err;

	h->digests = malloc(chunks * 32);
	h->buffer = malloc(HASHER_BUFFERS * OBM_CHUNK);
	if (!h->digests || !h->buffer)
		return -ENOMEM;
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->filled, NULL);
	pthread_cond_init(&h->emptied, NULL);
	err = pthread_create(&h->thread, NULL, hash_thread, h);
	h->running = !err;
	return -err;
}

void hasher_join(struct hasher *h)
{
	if (!h->running)
		return;
	pthread_mutex_lock(&h->lock);
	h->closed = true;
	pthread_cond_signal(&h->filled);
	pthread_mutex_unlock(&h->lock);
	pthread_join(h->thread, NULL);
	h->running = false;
}

void hasher_deinit(struct hasher *h)
{
	hasher_join(h);
	free(h->buffer);
	free(h->digests);
}

uint8_t *hasher_chunk(const struct hasher *h)
{
	/* in is this thread's own to write, so it may be read without the lock. */
	return h->buffer + h->in % HASHER_BUFFERS * OBM_CHUNK;
}

void hasher_push(struct hasher *h, uint32_t bytes)
{
	pthread_mutex_lock(&h->lock);
	h->bytes[h->in % HASHER_BUFFERS] = bytes;
	h->in++;
	pthread_cond_signal(&h->filled);
	while (h->in - h->out == HASHER_BUFFERS)
		pthread_cond_wait(&h->emptied, &h->lock);
	pthread_mutex_unlock(&h->lock);
}

/* SPDX-License-Identifier: MIT */
#ifndef OBM_HASH_H
#define OBM_HASH_H

/*
 * The chunks of a container that is being written, on their way to their SHA-256. The writer fills
 * one chunk while a thread hashes those before it, two at a time where it can; so the hash costs a
 * conversion nothing as long as the thread keeps up with it, and when it does not, the writer
 * waits.
 */

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include "obm.h"

#define HASHER_BUFFERS 8u

/* All under lock but the buffers, which belong to one side each. */
struct hasher {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t filled, emptied;
	bool running, closed;
	uint64_t in, out; /* chunks put in, chunks done: the writer fills in % HASHER_BUFFERS */
	uint8_t *buffer;  /* HASHER_BUFFERS chunks */
	uint32_t bytes[HASHER_BUFFERS];
	uint8_t *digests; /* 32 bytes each: the OBM_CHUNKS section */
};

/* For so many chunks. Not all of it was done when it fails; hasher_deinit() all the same. */
int hasher_init(struct hasher *h, uint64_t chunks);
void hasher_deinit(struct hasher *h);
/* The chunk to fill. */
uint8_t *hasher_chunk(const struct hasher *h);
/* It was filled, with so many bytes, and is handed over; waits until there is one to be filled. */
void hasher_push(struct hasher *h, uint32_t bytes);
/* Lets the thread finish what it has. Then digests are all there, and out of them. */
void hasher_join(struct hasher *h);

#endif

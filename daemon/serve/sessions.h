/* SPDX-License-Identifier: MIT */
#ifndef SESSIONS_H
#define SESSIONS_H

/*
 * Sessions: texts that requests go on with. A session is the tokens said in it so far, nothing more; that
 * the engine keeps their keys and values makes the next request cheap, not possible. Whose it is, is
 * checked at every use. One request at a time goes on with one; it changes it when it ends well.
 */

#include <stdbool.h>
#include <stdint.h>
#include "executor.h"
#include "kv.h"

struct sessions;

struct session {
	uint64_t handle; /* 0: free */
	struct kv_principal principal;
	uint32_t index;	  /* of this in the table: its place with the engine */
	uint32_t *tokens; /* [positions] */
	uint32_t n;	  /* said so far */
	uint32_t n_next;  /* and in the request that goes on with it */
	bool busy;
	uint64_t used_ns;
};

/* All memory is reserved here. NULL: no memory. */
struct sessions *sessions_new(uint32_t positions);
struct sessions *sessions_free(struct sessions *t); /* NULL is fine; returns NULL */

/*
 * A new one, with the handle that the caller gives. A principal that has SESSIONS_EACH, or finds the table
 * full, loses the one of its own that was idle for longest. NULL: all are others', or busy.
 */
#define SESSIONS_EACH 16u
struct session *sessions_open(struct sessions *t, uint64_t handle, struct kv_principal principal,
			      uint64_t now_ns);
/* NULL: there is none of this principal's by that handle. */
struct session *sessions_find(struct sessions *t, uint64_t handle, struct kv_principal principal);
void sessions_close(struct session *s);

/*
 * A request goes on with it: behind what was said with append. Otherwise the session begins anew, and what
 * was said is given up at once, however the request ends.
 */
void session_begin(struct session *s, bool append);
/* Tokens of the request, prompt or answer; what is more than a sequence holds is left out. */
void session_add(struct session *s, uint32_t positions, const uint32_t *tokens, uint32_t n);
/* It ended: well, and its tokens have been said; otherwise nothing has. */
void session_end(struct session *s, bool well, uint64_t now_ns);

/* For those who ask: all that there are, into out[EXEC_SESSIONS_MAX]. Returns how many. */
uint32_t sessions_list(const struct sessions *t, uint64_t now_ns, struct onebit_session *out);

#endif

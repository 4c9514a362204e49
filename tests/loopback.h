/* SPDX-License-Identifier: MIT */
#ifndef LOOPBACK_H
#define LOOPBACK_H

#include <stdint.h>
#include "executor.h"

/*
 * The test double of an executor: its tokens are a hash of model, prompt, parameters and index, so
 * whoever knows the request knows the answer. It speaks executor.h for real and misbehaves on
 * demand; journal, replay, fairness and cancellation are proven with it.
 *
 * The stream. key = loopback_key(); token `index` of `choice` is loopback_token(); a choice ends
 * after loopback_length() tokens with *finish. Text of a token: a word and a space, 2..9 bytes. The
 * key does not depend on resume, tenant, session, max_tokens, tables' places or the struct's size.
 */
uint64_t loopback_key(const uint8_t model_id[32], const struct onebit_params *params,
		      const void *block, uint32_t block_len);
uint32_t loopback_token(uint64_t key, uint32_t choice, uint32_t index, char text[16],
			uint32_t *text_len);
uint32_t loopback_length(uint64_t key, uint32_t choice, uint32_t max_tokens, uint8_t *finish);

/*
 * Faults, asked for by the prompt: the text of its first segment starts with a directive
 * "!NAME@K " (K: token index at which it strikes, default 0). Unless NAME ends in "-always", it
 * strikes only when journal_entry.attempt is 0. The directive is part of the prompt like any text.
 *   exit abort kill hang   the executor does that
 *   wrong                  at replay (attempt > 0) the recomputed token is a wrong one
 *   gap double slot tag choice kind data length finish text   lies: one malformed event each
 *   fail                   END with ONEBIT_E_EXECUTOR
 *   slow                   ten times the delay
 */
struct loopback_options {
	uint64_t delay_ns;   /* between tokens of one request */
	uint32_t slots;
	uint32_t kill_every; /* SIGKILL itself after so many tokens of all requests together; 0: never */
	uint8_t model_id[32];
	char name[64];
};

/* What happens when a fault strikes: main() really does it, the simulation takes note. */
enum loopback_fault { LOOPBACK_EXIT, LOOPBACK_ABORT, LOOPBACK_KILL, LOOPBACK_HANG };

struct loopback;
struct loopback *loopback_new(struct executor *e, const struct loopback_options *o,
			      void (*fault)(void *ctx, enum loopback_fault f), void *ctx);
struct loopback *loopback_free(struct loopback *l);
/*
 * Take all commands, then emit for every running request what is due at now_ns (at most one token a
 * choice and step), then kick. Returns when to step again (absolute ns; UINT64_MAX: only when a
 * command comes), and sets *stop when STOP was taken. Time is only what the caller says it is.
 */
uint64_t loopback_step(struct loopback *l, uint64_t now_ns, int *stop);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef TELL_H
#define TELL_H

#include <stdint.h>
#include "engine.h"
#include "executor.h"

/*
 * Everything that this executor says, in events. Nothing is ever dropped: when the broker has left no
 * room, it is woken and waited for. Records of one choice that follow each other go as one event.
 */
struct tell {
	struct executor *e;
	const struct tokenizer *t;
	void (*nap)(void *ctx); /* until the broker may have made room */
	void *ctx;
	struct exec_event batch; /* TOKENS under way; kind 0: none */
	uint8_t data[EXEC_EVENT_DATA_MAX];
};

/* nap NULL: sleep for a moment. */
void tell_init(struct tell *t, struct executor *e, const struct tokenizer *tokenizer,
	       void (*nap)(void *ctx), void *ctx);

/* What does not name a slot and tag comes without them. Goes behind what was told before. */
void tell_event(struct tell *t, const struct exec_event *ev, const void *data);
/* Any number of bytes, in as many DATA events as they need; of: slot and tag. */
void tell_data(struct tell *t, const struct exec_event *of, const void *data, size_t len);
/* of: slot, tag, prompt_tokens. Indices of a choice follow each other; nothing follows a finish. */
void tell_token(struct tell *t, const struct exec_event *of, const struct engine_token *token,
		uint8_t finish);
void tell_statistics(struct tell *t, const struct engine *g);
void tell_fault(struct tell *t, const char *why);
/* Send what is gathered, make all of it visible. Once a step. */
void tell_kick(struct tell *t);

#endif

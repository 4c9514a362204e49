/* SPDX-License-Identifier: MIT */
/*
 * Records. The text of a step's token can be longer than the token: what a stop string or a character
 * held back comes with the one that settles it, so the bound is that of both together.
 */
#include "records.h"

#include <assert.h>
#include <string.h>

#define FIXED (sizeof(struct onebit_record) + ONEBIT_TOP_LOGPROBS_MAX * sizeof(struct onebit_top))
#define FLUSH_MAX 9u /* detok_flush() */

bool record_fits(const struct tokenizer *t)
{
	return detok_bound(t) <= ONEBIT_RECORD_MAX - FIXED - STOP_BYTES_MAX - FLUSH_MAX;
}

static uint32_t bits_of(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return bits;
}

uint32_t record_make(const struct tokenizer *t, const struct engine_token *token, uint8_t *out)
{
	struct onebit_record rec = {
		.token = token->token, .n_top = (uint16_t)token->n_top,
		.text_len = (uint16_t)token->text_len,
	};
	uint32_t at = (uint32_t)(sizeof(rec) + token->n_top * sizeof(struct onebit_top));

	assert(token->n_top <= ONEBIT_TOP_LOGPROBS_MAX);
	assert(token->text_len <= ONEBIT_RECORD_MAX - FIXED);
	if (token->has_logprob) {
		rec.flags = ONEBIT_REC_LOGPROB;
		rec.logprob = bits_of(token->logprob);
	}
	if (token->text_len)
		memcpy(out + at, token->text, token->text_len);
	at += token->text_len;
	for (uint32_t i = 0; i < token->n_top; i++) {
		struct tokenizer_token own = tokenizer_token(t, token->top[i].token);
		struct onebit_top top = {
			.token = token->top[i].token, .logprob = bits_of(token->top[i].logprob),
			.text_off = (uint16_t)at,
		};

		if (own.len <= ONEBIT_RECORD_MAX - at) {
			top.text_len = (uint16_t)own.len;
			if (own.len)
				memcpy(out + at, own.text, own.len);
			at += own.len;
		}
		memcpy(out + sizeof(rec) + i * sizeof(top), &top, sizeof(top));
	}
	while (at % 8)
		out[at++] = 0;
	rec.size = (uint16_t)at;
	memcpy(out, &rec, sizeof(rec));
	return at;
}

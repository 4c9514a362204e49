/* SPDX-License-Identifier: MIT */
#ifndef SAMPLER_H
#define SAMPLER_H

/*
 * Logits to a token: pure functions, to the numeric contract's letter ("Sampling"). No state but
 * what is passed: the same logits, history, parameters, seed and index give the same token on every
 * machine, alone or in a batch, replayed or not. Nothing allocates: the scratch is the caller's,
 * one a thread, and what it held before does not matter.
 *
 * Parameters come checked: what a stranger may have written is refused at admission, and asserted
 * here. -0 and +0 are one value throughout, which is what the contract's "+ (+0)" is for.
 */

#include <stdint.h>

#define SAMPLER_VOCAB_MAX (1u << 20) /* OBM_VOCAB_MAX */
#define SAMPLER_TOP_MAX	  64u	     /* log-probabilities that are told at once */

struct sampler_bias {
	uint32_t token; /* below the vocabulary's size */
	float bias;	/* -infinity: never this token */
};

/* Nothing in here is a NaN. */
struct sampler_params {
	float temperature;	   /* <= 0: argmax; finite */
	uint32_t top_k;		   /* 0: off */
	float top_p;		   /* >= 1: off; <= 0: one token */
	float min_p;		   /* <= 0: off; at most 1 */
	float repetition;	   /* 1: off; > 0 */
	float frequency, presence; /* 0: off */
	uint32_t n_bias;
	const struct sampler_bias *bias; /* no token twice */
	uint64_t seed;
};

/* How often a token stands in the part of the sequence that penalties look at. No token twice. */
struct sampler_seen {
	uint32_t token;
	uint32_t count; /* > 0 */
};

/* For vocabularies up to this size, at most SAMPLER_VOCAB_MAX. NULL: no memory. */
struct sampler_scratch;
struct float_ops;
struct sampler_scratch *sampler_scratch_new(uint32_t vocab, const struct float_ops *f);
struct sampler_scratch *sampler_scratch_free(struct sampler_scratch *s);

/*
 * Penalties and bias, in place, each operation rounded; the first three for the tokens seen:
 *
 *	x = x > 0 ? x / repetition : x * repetition
 *	x = x - (float)count * frequency
 *	x = x - presence
 *	x = x + bias
 *
 * Every logit is a checked point: each that is not finite, or becomes NaN or +infinity here, is
 * counted in faults once; -infinity may be made, and means never. After a fault the sequence fails;
 * drawing all the same gives some token of the vocabulary, or -ENOENT.
 */
void sampler_adjust(float *logits, uint32_t vocab, const struct sampler_params *p,
		    const struct sampler_seen *seen, uint32_t n_seen, uint32_t *faults);

/*
 * The token, from logits that are adjusted. allowed: bit id % 64 of word id / 64, NULL for all (a
 * grammar's mask, min_tokens). index: of the token in the sequence, prompt included; choice: 0 to
 * n - 1. -ENOENT: no token is allowed. *token is set on success only.
 */
int sampler_draw(const float *logits, uint32_t vocab, const struct sampler_params *p,
		 const uint64_t *allowed, uint32_t index, uint32_t choice,
		 struct sampler_scratch *s, uint32_t *token);

/*
 * Log-probability of a token at T = 1, from logits as the model gave them, finite; and of the n_top
 * likeliest, in their order (ties by id), n_top <= SAMPLER_TOP_MAX. Returns how many those are: the
 * vocabulary may have fewer.
 */
struct sampler_top {
	uint32_t token;
	float logprob;
};
uint32_t sampler_logprobs(const float *logits, uint32_t vocab, uint32_t token, float *logprob,
			  struct sampler_top *top, uint32_t n_top, struct sampler_scratch *s);

/* ---- the parts, for tests -------------------------------------------------------------------- */

void philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);
/* u of a draw. */
uint64_t sampler_uniform(uint64_t seed, uint32_t index, uint32_t choice);
/* sampler_draw() with that u. */
int sampler_draw_at(const float *logits, uint32_t vocab, const struct sampler_params *p,
		    const uint64_t *allowed, uint64_t u, struct sampler_scratch *s,
		    uint32_t *token);
/* The contract's natural logarithm; x is positive and normal. */
double ln_contract(double x);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef ENGINE_H
#define ENGINE_H

/*
 * The engine, for who serves with it: a model opened on a device, requests put in, and steps that run all
 * of them as one batch. Answers come out of a step through a sink. One thread uses it; the device has
 * its own workers. All memory is taken by engine_open(): neither a request nor a step allocates.
 *
 * The answer to a request depends on the model, the request and nothing else: not on what runs beside
 * it, when it came, how the prompt was cut into chunks, what was cached or guessed, or how often it was
 * begun anew (the numeric contract).
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "device.h"
#include "kv.h"
#include "obm.h"
#include "sampler.h"
#include "stop.h"
#include "tokenizer.h"

#define ENGINE_CHOICES_MAX 16u
#define ENGINE_SLOTS_MAX   64u

struct engine;

struct engine_options {
	uint32_t slots;	     /* requests at a time, 1 to ENGINE_SLOTS_MAX; 0: 16 */
	uint32_t chunk;	     /* prompt tokens of a step, of all requests together; 0: 128 */
	uint32_t positions;  /* of a sequence at most; 0: the model's context */
	uint64_t kv_bytes;   /* of the KV arena; 0: what slots sequences of 1,024 positions take */
	uint32_t kv_form;    /* KV_F16, KV_INT8 */
	bool no_prefixes;    /* no prefix cache */
	bool no_speculation;
};

/*
 * model and device stay the caller's and outlive the engine. 0, or negative errno and a sentence:
 * -ENOMEM, -EINVAL an option, -EPROTO the model's tokenizer; as forward_open().
 */
int engine_open(struct device *d, const struct obm *model, const struct engine_options *o,
		struct engine **out, char *why, size_t why_len);
struct engine *engine_close(struct engine *e); /* NULL is fine; returns NULL */

/* ---- requests -------------------------------------------------------------------------------- */

enum engine_kind {
	ENGINE_GENERATE,
	ENGINE_SCORE, /* a token event for each token of the prompt, the first without log-probability */
	ENGINE_EMBED, /* one vector */
};

#define ENGINE_IGNORE_EOS 1u /* stop tokens are tokens like others */
#define ENGINE_NO_CACHE	  2u /* neither finds prefixes nor leaves any */
#define ENGINE_LOGPROBS	  4u

/* What of a choice is known already, from before a fault: it goes on behind it, and is not told again. */
struct engine_done {
	uint32_t n;
	const uint32_t *tokens;
	bool finished; /* nothing more is needed of this choice */
};

/* Everything is copied, or fits a request's fixed memory, when engine_start() returns. */
struct engine_request {
	enum engine_kind kind;
	uint32_t flags;
	struct kv_principal principal;
	uint32_t priority; /* lower goes first where not all fit */
	uint32_t n_prompt; /* > 0, below the limit of positions */
	const uint32_t *prompt;

	/* GENERATE */
	uint32_t n_choices;  /* 1 to ENGINE_CHOICES_MAX */
	uint32_t max_tokens; /* > 0 */
	uint32_t min_tokens; /* no stop token before */
	struct sampler_params sampler; /* n_bias at most ENGINE_BIAS_MAX */
	uint32_t last_n;     /* tokens that penalties look at, from the end; 0: the whole sequence */
	uint32_t n_stops;
	const struct stop_string *stops;
	const struct engine_done *done; /* [n_choices]; NULL: nothing is */

	uint32_t n_top; /* LOGPROBS, SCORE: likeliest tokens told with each, at most SAMPLER_TOP_MAX */
	bool pool_last; /* EMBED: the last row, else the mean */
};
#define ENGINE_BIAS_MAX 4096u

/*
 * slot: free, below options.slots; names the request from now on. 0, or negative errno with a sentence,
 * and nothing has begun: -EMSGSIZE the prompt leaves no room for an answer within the positions, -ENOBUFS
 * more KV blocks than there are (with all else gone), -EINVAL a token out of range or a field.
 */
int engine_start(struct engine *e, uint32_t slot, const struct engine_request *r, char *why,
		 size_t why_len);
/* It ends at once, without an event. */
void engine_cancel(struct engine *e, uint32_t slot);

/*
 * Keep what the cache has of these tokens, under a number below ENGINE_KEEPS, in place of what was kept
 * under it; n = 0: nothing more. So a text that goes on later need not be computed again. It is only
 * memory that requests do not need: when room is short, the longest kept goes first.
 */
#define ENGINE_KEEPS 64u
void engine_keep(struct engine *e, uint32_t keep, struct kv_principal principal,
		 const uint32_t *tokens, uint32_t n);

/* ---- answers --------------------------------------------------------------------------------- */

enum engine_finish { ENGINE_GOES_ON, ENGINE_STOP, ENGINE_LENGTH };

/* Pointers hold during the call. */
struct engine_token {
	uint32_t slot, choice;
	uint32_t index; /* in the choice's answer; SCORE: in the prompt */
	uint32_t token;
	enum engine_finish finish; /* this token is the choice's last; a stop token is told as well */
	const char *text;	   /* whole UTF-8; what stop strings or a character hold back comes later */
	uint32_t text_len;
	bool has_logprob;
	float logprob;
	uint32_t n_top;
	const struct sampler_top *top;
};

struct engine_end {
	uint32_t slot;
	int err; /* 0; -EDOM: arithmetic left its range; -ENOBUFS: KV memory, with all else gone */
	uint32_t index; /* -EDOM: of the token that could not be */
	uint32_t prompt_tokens, cached_tokens;
};

/*
 * In a step each request's events come in order: tokens of each choice ascending by index, and end()
 * once, last. replayed(): with done, the last token of these as it was computed anew, before what follows.
 */
struct engine_sink {
	void *ctx;
	void (*token)(void *ctx, const struct engine_token *t);
	void (*replayed)(void *ctx, uint32_t slot, uint32_t choice, uint32_t index, uint32_t token);
	void (*vector)(void *ctx, uint32_t slot, const float *v, uint32_t n);
	void (*progress)(void *ctx, uint32_t slot, uint32_t prompt_tokens); /* computed so far */
	void (*end)(void *ctx, const struct engine_end *end);
};

/*
 * One batch: a token of each choice that decodes (more where a guess held), and chunks of prompts. 1: there is
 * more to do; 0: all requests have ended; -EIO and a sentence: the device failed, nothing more can be done.
 */
int engine_step(struct engine *e, const struct engine_sink *sink, char *why, size_t why_len);

/* ---- what it is -------------------------------------------------------------------------------- */

struct engine_facts {
	const struct tokenizer *tokenizer;
	const struct obm_arch *arch;
	uint32_t slots, positions;
	uint64_t weight_bytes, head_bytes, kv_position_bytes; /* read by a token of decoding; a position's KV */
	uint64_t kv_bytes, work_bytes;			       /* taken */
	uint64_t macs;
	const char *backend;
};
const struct engine_facts *engine_facts(const struct engine *e);
struct kv_counts engine_kv(const struct engine *e);
struct engine_counts {
	uint64_t steps, tokens, prompt_tokens, cached_tokens;
	uint64_t drafted, accepted; /* tokens guessed, and rightly */
	uint64_t preempted;
};
struct engine_counts engine_counts(const struct engine *e);
uint32_t engine_timing(const struct engine *e, struct device_timing *t, uint32_t n);

#endif

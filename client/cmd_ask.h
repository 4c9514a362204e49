/* SPDX-License-Identifier: MIT */
#ifndef CMD_ASK_H
#define CMD_ASK_H

#include <stddef.h>
#include <stdint.h>
#include "cmd_daemon.h"
#include "cmd_verb.h"

/*
 * Questions that verbs put to a daemon, one after the other, each to its end. Functions return an
 * exit status; when it is not 0 the sentence is out. SIGINT and SIGTERM cancel what runs.
 */
struct ask {
	const char *verb;
	const struct verb_daemon *daemon;
	struct onebit *o;
};

/*
 * Attach, with areas for requests of in_bytes and answers of out_bytes: at least the usual ones, and
 * at most the largest there are. a->verb and a->daemon are set.
 */
int ask_open(struct ask *a, uint64_t in_bytes, uint64_t out_bytes);
void ask_close(struct ask *a); /* also when it is not open */

int ask_model(struct ask *a, struct onebit_model *m);

/*
 * The ids of a text; prompt: as the model takes a raw prompt, with its bos in front where it asks for
 * one. *ids is the caller's to free.
 */
int ask_tokenize(struct ask *a, const char *text, size_t len, bool prompt, uint32_t **ids,
		 size_t *n);
/* How many bytes of text one token stands for. */
int ask_bytes(struct ask *a, uint32_t id, size_t *bytes);

/* Room for the answer of ask_score(). */
uint64_t ask_score_bytes(size_t n, unsigned n_top);
/*
 * Log-probabilities of n ids, taken as they are. on_record gets each with its index, in order; those
 * that are told carry one, but the first, which has nothing before it. A status other than 0 from it
 * ends the request, and is returned.
 */
int ask_score(struct ask *a, const uint32_t *ids, size_t n, unsigned n_top,
	      int (*on_record)(void *ctx, size_t index, const struct onebit_record *r), void *ctx);

/* The bits of an answer's number. */
float ask_float(uint32_t bits);

#endif

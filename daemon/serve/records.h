/* SPDX-License-Identifier: MIT */
#ifndef RECORDS_H
#define RECORDS_H

#include <stddef.h>
#include <stdint.h>
#include "engine.h"
#include "onebit.h"

/*
 * One token of the engine as struct onebit_record: the record, its tops, the token's text, the tops'
 * texts, zeroes up to a multiple of 8. A top's text is the token's own bytes, which need not be whole
 * UTF-8; one that finds no more room has text_len 0.
 *
 * record_fits(): whether every token of this vocabulary leaves room for its text, which a model must have
 * to be served. record_make() writes at most ONEBIT_RECORD_MAX bytes and returns how many.
 */
bool record_fits(const struct tokenizer *t);
uint32_t record_make(const struct tokenizer *t, const struct engine_token *token, uint8_t *out);

#endif

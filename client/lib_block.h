/* SPDX-License-Identifier: MIT */
#ifndef LIB_BLOCK_H
#define LIB_BLOCK_H

#include "lib_request.h"

/*
 * The bytes of a request: what the daemon copies from the arena. Built in the request's private
 * buffer; a resume table, if there is one, always stands last, so that it can be replaced.
 */

/* Build rq->block from what the program gave. Negative errno with *err. */
int lib_block_build(struct lib_request *rq, const struct onebit_request *in,
		    struct onebit_error *err);
/* Replace the resume table: choice c goes on after its n[c] tokens ids[c], which are copied. */
int lib_block_resume(struct lib_request *rq, const uint32_t *const ids[], const uint32_t n[],
		     struct onebit_error *err);
/* The ids of a choice in the block's present resume table: their number, and where. */
uint32_t lib_block_resumed(const struct lib_request *rq, uint16_t choice, const uint32_t **ids);
/* Bytes of out window that the answer will want, as far as that can be told. */
uint64_t lib_block_window(const struct lib_request *rq, const struct onebit_request *in);
/* NULL for operations without parameters. */
struct onebit_params *lib_block_params(const struct lib_request *rq);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef SAFETENSORS_H
#define SAFETENSORS_H

/*
 * The safetensors container: named arrays in one file, or in several with an index. A file is a
 * 64-bit length, that many bytes of JSON (name -> dtype, shape, data_offsets), then the arrays back
 * to back. Nothing in it is summed, so all that can be checked is that shapes, sizes and offsets
 * agree to the byte; that is checked here, once. What is accepted lies inside its file.
 *
 * Names consist of printable ASCII without blanks, so they may stand in a sentence as they are.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "mapped.h"

#define SAFETENSORS_HEADER_MAX \
	(8u << 20) /* of JSON; parsed it takes some forty times that at worst */
#define SAFETENSORS_FILES_MAX  512u
#define SAFETENSORS_DIMS_MAX   8u
#define SAFETENSORS_NAME_MAX   256u

/* What the readers can take; of the others only the name is known. */
enum safetensors_type {
	SAFETENSORS_OTHER,
	SAFETENSORS_U8,
	SAFETENSORS_I8,
	SAFETENSORS_F16,
	SAFETENSORS_BF16,
	SAFETENSORS_F32,
};

struct safetensors_tensor {
	char *name;
	char dtype[16]; /* as the file spells it */
	enum safetensors_type type;
	uint32_t n_dims;
	uint64_t shape[SAFETENSORS_DIMS_MAX];
	uint32_t file; /* index in files */
	uint64_t offset, bytes; /* in that file */
};

struct safetensors_file {
	struct mapped map; /* map.path NULL: the bytes are the caller's */
	char *name;	   /* without its folder */
};

struct safetensors {
	char *folder; /* NULL when parsed from memory */
	struct safetensors_file *files;
	uint32_t n_files;
	struct safetensors_tensor *tensors; /* by name, ascending, none twice */
	uint32_t n_tensors;
	uint64_t bytes; /* of all files */
};

/* One file's bytes, which stay the caller's and outlive the result. */
int safetensors_parse(const void *data, uint64_t bytes, const char *name, struct safetensors **out,
		      char *why, size_t why_len);
/*
 * path: a folder with model.safetensors, with model.safetensors.index.json and its shards, or with
 * one .safetensors file; or such a file or index itself. -EPROTO damaged or inconsistent, -ENOENT a
 * file is missing, -EFBIG over a bound above, else from the system.
 */
int safetensors_open(const char *path, struct safetensors **out, char *why, size_t why_len);
struct safetensors *safetensors_close(struct safetensors *s); /* NULL is fine; returns NULL */

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name);
const uint8_t *safetensors_data(const struct safetensors *s, const struct safetensors_tensor *t);

/*
 * ---- of one file, for safetensors_open()
 * ---------------------------------------------------------
 */

/* Its tensors by name, malloc'ed; their file is 0. */
int safetensors_header(const uint8_t *data, uint64_t bytes, const char *file,
		       struct safetensors_tensor **out, uint32_t *n_out, char *why, size_t why_len);
void safetensors_free(struct safetensors_tensor *t, uint32_t n);
int safetensors_by_name(const void *a, const void *b); /* for qsort() */
/* Printable ASCII without blanks, 1 to max bytes. */
bool safetensors_is_plain(const char *text, size_t max);

#endif

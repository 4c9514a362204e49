/* SPDX-License-Identifier: MIT */
#ifndef GGUF_H
#define GGUF_H

/*
 * A GGUF file's metadata and its list of tensors, versions 2 and 3, little-endian. Knows the
 * container and nothing of models: what keys mean is source_gguf.c's, what tensor types hold is
 * gguf_types.c's.
 *
 * Everything points into the bytes that were given, which must outlive it. What gguf_parse()
 * accepts is bounded: each string and array lies in the file, no key or tensor is there twice, each
 * tensor begins inside the file, aligned, and none begins where another does. How many bytes a
 * tensor needs is for who knows its type; `room` says how many it has.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cursor; /* mapped.h */

#define GGUF_KEYS_MAX	 (1u << 16)
#define GGUF_TENSORS_MAX (1u << 16)
#define GGUF_NAME_MAX	 256u /* bytes of a key or of a tensor's name */

enum {
	GGUF_U8, GGUF_I8, GGUF_U16, GGUF_I16, GGUF_U32, GGUF_I32, GGUF_F32, GGUF_BOOL, GGUF_STRING,
	GGUF_ARRAY, GGUF_U64, GGUF_I64, GGUF_F64, GGUF_VALUES
};

struct gguf_string {
	const char *text; /* not NUL-terminated, any bytes */
	uint64_t len;
};

struct gguf_pair {
	struct gguf_string key;
	uint32_t type;	/* of the value; of an array's elements */
	bool is_array;
	uint64_t n;	/* elements; 1 for what is no array */
	const uint8_t *data; /* strings: each its length (u64), then its bytes */
	uint64_t bytes;
};

struct gguf_tensor {
	struct gguf_string name;
	uint32_t type;	 /* as the file has it */
	uint32_t n_dims; /* as the file has it, at most 4 */
	uint64_t cols;	 /* the first dimension: contiguous */
	uint64_t
		rows; /* the second; 1 when there is none. Third and fourth are 1, or deep is set */
	bool deep;
	uint64_t offset; /* from the file's start */
	uint64_t room;	 /* bytes to the next tensor, or to the file's end */
	bool last;	 /* of all, by place */
};

struct gguf {
	uint32_t version;
	uint32_t alignment;
	uint64_t data_offset;
	uint32_t n_pairs, n_tensors;
	struct gguf_pair *pairs;     /* by key, ascending */
	struct gguf_tensor *tensors; /* by name, ascending */
};

/* file: its name, for the sentence. 0, -EPROTO, -ENOTSUP, -EFBIG, -ENOMEM. */
int gguf_parse(const void *data, uint64_t bytes, const char *file, struct gguf **out, char *why,
	       size_t why_len);
struct gguf *gguf_free(struct gguf *g); /* NULL is fine; returns NULL */

/* NULL: there is none. */
const struct gguf_pair *gguf_pair(const struct gguf *g, const char *key);
const struct gguf_tensor *gguf_tensor(const struct gguf *g, const char *name);

/*
 * A value of one kind: any width of integer, either width of float. 0; GGUF_ABSENT, and *out is as
 * it was; -EPROTO and a sentence (without the file's name): another type, or a number out of range.
 */
enum { GGUF_ABSENT = 1 };
int gguf_u32(const struct gguf *g, const char *key, uint32_t *out, char *why, size_t why_len);
int gguf_float(const struct gguf *g, const char *key, double *out, char *why, size_t why_len);
int gguf_bool(const struct gguf *g, const char *key, bool *out, char *why, size_t why_len);
int gguf_string(const struct gguf *g, const char *key, struct gguf_string *out, char *why,
		size_t why_len);
/* An array of this element type; U32 and I32 stand for each other. */
int gguf_array(const struct gguf *g, const char *key, uint32_t type, const struct gguf_pair **out,
	       char *why, size_t why_len);

/* The strings of an array one behind the other: a cursor over data and bytes. */
struct gguf_string gguf_next_string(struct cursor *c);
bool gguf_is(struct gguf_string s, const char *text);
/* What of s may stand in a sentence: at most 63 bytes, no control characters. Returns buf. */
const char *gguf_show(struct gguf_string s, char buf[64]);

#endif

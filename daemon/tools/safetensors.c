/* SPDX-License-Identifier: MIT */
/*
 * Reads the headers of safetensors files. Facts that decide something here: the format's own
 * library refuses a header above 100 MB (ours is lower: a model of OBM_TENSORS_MAX arrays needs 2
 * MB), offsets that overlap, leave holes or stop before the file's end, and so do we.
 */
#include "safetensors.h"

#include <errno.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static const struct dtype {
	const char *name;
	enum safetensors_type type;
	uint32_t bytes;
} dtypes[] = {
	{ "U8", SAFETENSORS_U8, 1 },	 { "I8", SAFETENSORS_I8, 1 },
	{ "F16", SAFETENSORS_F16, 2 },	 { "BF16", SAFETENSORS_BF16, 2 },
	{ "F32", SAFETENSORS_F32, 4 },	 { "BOOL", SAFETENSORS_OTHER, 1 },
	{ "U16", SAFETENSORS_OTHER, 2 }, { "I16", SAFETENSORS_OTHER, 2 },
	{ "U32", SAFETENSORS_OTHER, 4 }, { "I32", SAFETENSORS_OTHER, 4 },
	{ "U64", SAFETENSORS_OTHER, 8 }, { "I64", SAFETENSORS_OTHER, 8 },
	{ "F64", SAFETENSORS_OTHER, 8 },
};

bool safetensors_is_plain(const char *text, size_t max)
{
	size_t n = strlen(text);

	if (!n || n > max)
		return false;
	for (size_t i = 0; i < n; i++)
		if (text[i] < 0x21 || text[i] > 0x7e)
			return false;
	return true;
}

/* A count or offset; -1 for anything else. */
static int64_t whole(const json_t *v)
{
	return json_is_integer(v) && json_integer_value(v) >= 0 ? json_integer_value(v) : -1;
}

static int parse_shape(const json_t *shape, struct safetensors_tensor *t, uint64_t *count,
		       const char *file, char *why, size_t why_len)
{
	if (!json_is_array(shape))
		return fail(why, why_len, -EPROTO, "%s: %s has no shape that is a list", file,
			    t->name);
	if (json_array_size(shape) > SAFETENSORS_DIMS_MAX)
		return fail(why, why_len, -EFBIG, "%s: %s has %zu dimensions; allowed are %u", file,
			    t->name, json_array_size(shape), SAFETENSORS_DIMS_MAX);
	t->n_dims = (uint32_t)json_array_size(shape);
	*count = 1;
	for (uint32_t i = 0; i < t->n_dims; i++) {
		int64_t n = whole(json_array_get(shape, i));

		if (n < 0)
			return fail(why, why_len, -EPROTO,
				    "%s: dimension %u of %s is no whole number from 0 up", file, i,
				    t->name);
		t->shape[i] = (uint64_t)n;
		if (__builtin_mul_overflow(*count, (uint64_t)n, count))
			return fail(why, why_len, -EPROTO, "%s: the shape of %s overflows 64 bits",
				    file, t->name);
	}
	return 0;
}

static int parse_tensor(const json_t *v, struct safetensors_tensor *t, uint64_t data_bytes,
			const char *file, char *why, size_t why_len)
{
	const char *dtype = json_string_value(json_object_get(v, "dtype"));
	const json_t *offsets = json_object_get(v, "data_offsets");
	const struct dtype *known = NULL;
	uint64_t count = 0, bytes;
	int64_t begin, end;
	int err;

	if (!dtype || !safetensors_is_plain(dtype, sizeof(t->dtype) - 1))
		return fail(why, why_len, -EPROTO, "%s: %s has no dtype that is a short word", file,
			    t->name);
	strcpy(t->dtype, dtype);
	for (size_t i = 0; i < sizeof(dtypes) / sizeof(*dtypes); i++)
		if (!strcmp(dtype, dtypes[i].name))
			known = &dtypes[i];
	t->type = known ? known->type : SAFETENSORS_OTHER;
	err = parse_shape(json_object_get(v, "shape"), t, &count, file, why, why_len);
	if (err)
		return err;

	begin = whole(json_array_get(offsets, 0));
	end = whole(json_array_get(offsets, 1));
	if (json_array_size(offsets) != 2 || begin < 0 || end < 0)
		return fail(why, why_len, -EPROTO,
			    "%s: data_offsets of %s are not two whole numbers from 0 up", file,
			    t->name);
	if (begin > end)
		return fail(why, why_len, -EPROTO,
			    "%s: data of %s begin at %lld and end before, at %lld", file, t->name,
			    (long long)begin, (long long)end);
	if ((uint64_t)end > data_bytes)
		return fail(
			why, why_len, -EPROTO,
			"%s: data of %s end at %lld, the file's at %llu: it is cut off or "
			"damaged; download it again",
			file, t->name, (long long)end, (unsigned long long)data_bytes);
	t->offset = (uint64_t)begin;
	t->bytes = (uint64_t)(end - begin);
	if (known && (__builtin_mul_overflow(count, known->bytes, &bytes) || bytes != t->bytes))
		return fail(
			why, why_len, -EPROTO,
			"%s: %s has %llu bytes, but its shape needs %llu elements of %u bytes (%s)",
			file, t->name, (unsigned long long)t->bytes, (unsigned long long)count,
			known->bytes, dtype);
	return 0;
}

static int by_offset(const void *a, const void *b)
{
	const struct safetensors_tensor *x = a, *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

int safetensors_by_name(const void *a, const void *b)
{
	const struct safetensors_tensor *x = a, *y = b;

	return strcmp(x->name, y->name);
}

/* Each begins where the one before ends, and the last one ends the file. */
static int check_places(struct safetensors_tensor *t, uint32_t n, uint64_t data_bytes,
			const char *file, char *why, size_t why_len)
{
	uint64_t at = 0;

	qsort(t, n, sizeof(*t), by_offset);
	for (uint32_t i = 0; i < n; i++) {
		if (t[i].offset < at)
			return fail(why, why_len, -EPROTO, "%s: data of %s and %s overlap", file,
				    t[i ? i - 1 : 0].name, t[i].name);
		if (t[i].offset > at)
			return fail(why, why_len, -EPROTO,
				    "%s: %llu bytes before the data of %s belong to no tensor",
				    file, (unsigned long long)(t[i].offset - at), t[i].name);
		at += t[i].bytes;
	}
	if (at != data_bytes)
		return fail(why, why_len, -EPROTO, "%s: %llu bytes at the end belong to no tensor",
			    file, (unsigned long long)(data_bytes - at));
	return 0;
}

void safetensors_free(struct safetensors_tensor *t, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		free(t[i].name);
	free(t);
}

/* The header's object into tensors; places are checked and made absolute. */
static int take_header(const json_t *header, uint64_t data_at, uint64_t bytes, const char *file,
		       struct safetensors_tensor **out, uint32_t *n_out, char *why, size_t why_len)
{
	size_t n_all = json_object_size(header);
	struct safetensors_tensor *t = calloc(n_all ? n_all : 1, sizeof(*t));
	uint32_t n = 0;
	const char *key;
	json_t *v;
	int err = 0;

	if (!t)
		return fail(why, why_len, -ENOMEM, "%s: no memory for its header", file);
	json_object_foreach((json_t *)header, key, v) {
		if (!strcmp(key, "__metadata__"))
			continue;
		if (!safetensors_is_plain(key, SAFETENSORS_NAME_MAX)) {
			err = fail(why, why_len, -EPROTO,
				   "%s: the name of tensor %u is longer than %u bytes or not "
				   "printable ASCII without blanks",
				   file, n, SAFETENSORS_NAME_MAX);
			goto out;
		}
		t[n].name = strdup(key);
		if (!t[n].name) {
			err = fail(why, why_len, -ENOMEM, "%s: no memory for its header", file);
			goto out;
		}
		err = parse_tensor(v, &t[n++], bytes - data_at, file, why, why_len);
		if (err)
			goto out;
	}
	err = check_places(t, n, bytes - data_at, file, why, why_len);
	for (uint32_t i = 0; !err && i < n; i++)
		t[i].offset += data_at;
out:
	if (err) {
		safetensors_free(t, (uint32_t)n_all);
		return err;
	}
	qsort(t, n, sizeof(*t), safetensors_by_name);
	*out = t;
	*n_out = n;
	return 0;
}

int safetensors_header(const uint8_t *data, uint64_t bytes, const char *file,
		       struct safetensors_tensor **out, uint32_t *n_out, char *why, size_t why_len)
{
	struct cursor c = { .data = data, .bytes = bytes };
	uint64_t len = cursor_u64(&c);
	const char *text;
	json_error_t at;
	json_t *header;
	int err;

	if (c.bad)
		return fail(why, why_len, -EPROTO,
			    "%s: %llu bytes are too few for a safetensors file", file,
			    (unsigned long long)bytes);
	if (len > bytes - 8)
		return fail(why, why_len, -EPROTO,
			    "%s: a header of %llu bytes does not fit into the file's %llu: cut "
			    "off, or no safetensors file",
			    file, (unsigned long long)len, (unsigned long long)bytes);
	if (len > SAFETENSORS_HEADER_MAX)
		return fail(why, why_len, -EFBIG, "%s: a header of %llu bytes; allowed are %u",
			    file, (unsigned long long)len, SAFETENSORS_HEADER_MAX);
	text = (const char *)cursor_bytes(&c, len);
	if (len < 2 || text[0] != '{')
		return fail(why, why_len, -EPROTO,
			    "%s: there is no JSON object where the header belongs", file);
	header = json_loadb(text, len, JSON_REJECT_DUPLICATES, &at);
	if (!header)
		return fail(why, why_len, -EPROTO,
			    "%s: the header is no JSON at byte %d, or names a key twice", file,
			    at.position + 8);
	err = take_header(header, c.pos, bytes, file, out, n_out, why, why_len);
	json_decref(header);
	return err;
}

int safetensors_parse(const void *data, uint64_t bytes, const char *name, struct safetensors **out,
		      char *why, size_t why_len)
{
	struct safetensors *s = calloc(1, sizeof(*s));
	int err;

	if (s)
		s->files = calloc(1, sizeof(*s->files));
	if (!s || !s->files || !(s->files[0].name = strdup(name))) {
		safetensors_close(s);
		return fail(why, why_len, -ENOMEM, "%s: no memory", name);
	}
	s->n_files = 1;
	s->files[0].map.data = data;
	s->files[0].map.bytes = s->bytes = bytes;
	err = safetensors_header(data, bytes, name, &s->tensors, &s->n_tensors, why, why_len);
	if (err) {
		safetensors_close(s);
		return err;
	}
	*out = s;
	return 0;
}

struct safetensors *safetensors_close(struct safetensors *s)
{
	if (!s)
		return NULL;
	for (uint32_t i = 0; i < s->n_files; i++) {
		if (s->files[i].map.path)
			mapped_close(&s->files[i].map);
		free(s->files[i].name);
	}
	safetensors_free(s->tensors, s->n_tensors);
	free(s->files);
	free(s->folder);
	free(s);
	return NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *s, const char *name)
{
	struct safetensors_tensor key = { .name = (char *)name };

	return s->n_tensors
		       ? bsearch(&key, s->tensors, s->n_tensors, sizeof(key), safetensors_by_name)
		       : NULL;
}

const uint8_t *safetensors_data(const struct safetensors *s, const struct safetensors_tensor *t)
{
	return s->files[t->file].map.data + t->offset;
}

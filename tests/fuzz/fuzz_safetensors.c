/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as a safetensors file, or as its header. What is accepted lies inside the file, without
 * overlap, each tensor found by its name; what is refused says why.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "safetensors.h"

#define MAX 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void look_at(const uint8_t *data, size_t size)
{
	struct safetensors *s = NULL;
	char why[512] = "";
	uint64_t sum = 0;
	int err;

	err = safetensors_parse(data, size, "f", &s, why, sizeof(why));
	assert(err ? err < 0 && *why && !s : !*why && s);
	if (err)
		return;
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct safetensors_tensor *t = &s->tensors[i];
		uint64_t count = 1;

		assert(t->file == 0 && t->offset >= 8 && t->offset <= size &&
		       t->bytes <= size - t->offset);
		assert(safetensors_find(s, t->name) == t);
		assert(!i || strcmp(t[-1].name, t->name) < 0);
		for (uint32_t k = 0; k < t->n_dims; k++)
			count *= t->shape[k];
		assert(t->type != SAFETENSORS_F32 || count * 4 == t->bytes);
		assert(t->type != SAFETENSORS_U8 || count == t->bytes);
		sum += t->bytes;
		if (t->bytes)
			assert(safetensors_data(s, t) == data + t->offset);
	}
	assert(sum <= size - 10);
	safetensors_close(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static uint8_t file[8 + MAX];
	size_t n = size ? strnlen((const char *)data, size) : 0;

	if (size > MAX)
		return 0;
	/* A header alone, up to a zero byte, gets the length that it has: mutations seldom mend it.
	 */
	if (size && data[0] == '{') {
		for (int i = 0; i < 8; i++)
			file[i] = (uint8_t)((uint64_t)n >> (8 * i));
		memcpy(file + 8, data, size);
		look_at(file, 8 + size);
	} else {
		look_at(data, size);
	}
	return 0;
}

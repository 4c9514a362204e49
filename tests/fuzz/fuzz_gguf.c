/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as a GGUF file: metadata, tensor infos, the vocabulary, and the rows of each tensor
 * whose type and size fit. What is refused must say why; codes must be codes and floats finite.
 */
#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include "gguf.h"
#include "gguf_stored.h"
#include "vocab_gguf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define COLS_MAX 4096u

static int8_t codes[COLS_MAX];
static float floats[COLS_MAX];

static void read_row(const struct gguf_stored *s, uint32_t row)
{
	char why[256] = "";

	if (gguf_kind_is_ternary(s->kind)) {
		float scales[256];

		if (gguf_stored_codes(s, row, 1, codes, scales, why, sizeof(why))) {
			assert(*why);
			return;
		}
		for (uint32_t i = 0; i < s->cols; i++)
			assert(codes[i] >= -1 && codes[i] <= 1);
		for (uint32_t i = 0; i < s->groups; i++)
			assert(isfinite(scales[i]));
	} else if (gguf_stored_floats(s, row, 1, floats, why, sizeof(why))) {
		assert(*why);
	}
}

static void read_tensor(const struct gguf *g, const struct gguf_tensor *t, const uint8_t *data)
{
	struct gguf_stored s;
	char why[512] = "";

	if (gguf_stored_open(&s, t, data, g->alignment, why, sizeof(why))) {
		assert(*why);
		return;
	}
	/* A name that matrices have: what is beside them is looked for by it. */
	if (t->name.len > 7 &&
	    gguf_is((struct gguf_string){ t->name.text + t->name.len - 7, 7 }, ".weight") &&
	    gguf_stored_ternary(&s, g, data, why, sizeof(why))) {
		assert(*why);
		return;
	}
	if (s.cols <= COLS_MAX && (s.groups || !gguf_kind_is_ternary(s.kind)))
		for (uint32_t r = 0; r < s.rows && r < 4; r++)
			read_row(&s, r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vocab *v = NULL;
	struct gguf *g = NULL;
	char why[512] = "";

	if (gguf_parse(data, size, "f", &g, why, sizeof(why))) {
		assert(*why && !g);
		return 0;
	}
	for (uint32_t i = 0; i < g->n_tensors; i++)
		read_tensor(g, &g->tensors[i], data);
	if (vocab_of_gguf(g, "f", &v, why, sizeof(why)))
		assert(*why && !v);
	vocab_free(v);
	gguf_free(g);
	return 0;
}

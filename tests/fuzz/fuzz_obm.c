/* SPDX-License-Identifier: MIT */
/*
 * A container that somebody spoilt. Files of many pages and checksums are beyond a fuzzer, so its
 * bytes are changes to a small valid file: the first says how to go on, then each change has a
 * place and up to eight bytes. Checksums are made right again, if the first byte says so, and what
 * lies behind them is reached. Whatever is accepted must be usable to the last byte; the file is
 * memory of just its size, so that a byte too far is seen.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "lib_tiny.h"
#include "lib_write_obm.h"
#include "obm.h"
#include "obm_check.h"
#include "packed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__asan_default_options(void);

/* What a run frees is of interest for a few runs: more would be fresh pages for each of them. */
const char *__asan_default_options(void)
{
	return "quarantine_size_mb=4";
}

#define SEAL	  1u
#define UNCHECKED 2u
#define RAW	  4u /* the bytes are the file */
#define VERIFY	  8u
#define DEEP	  16u /* the chunks' hashes too */
#define UNTILE	  64u /* read each matrix' first rows */
#define CUT	  32u /* the next two bytes are missing at the end */

static uint8_t *valid;
static size_t bytes;

static void make(void)
{
	struct write_obm o = { PACKED_2BIT, PACKED_INT8, 0, "name: x\n", "free\n" };
	struct tiny t;

	tiny_default(&t, 1);
	t.layers = 1;
	t.hidden = 8;
	t.ffn = 8;
	t.heads = 2;
	t.kv_heads = 1;
	t.head_dim = 4;
	t.context = 4;
	t.n_words = 2;
	tiny_fill(&t);
	valid = write_obm(&t, &o, &bytes);
	tiny_free(&t);
}

/* Places where bytes have a meaning, by the first byte of a change. */
static size_t place(unsigned where, unsigned offset)
{
	const struct obm_section *table =
		(const struct obm_section *)(valid + sizeof(struct obm_header));
	unsigned n = ((const struct obm_header *)valid)->n_sections;
	const struct obm_section *s;

	where %= n + 3;
	if (where < 2)
		return offset % (sizeof(struct obm_header) + n * sizeof(*s));
	if (where == 2)
		return offset % bytes;
	s = &table[where - 3];
	return s->offset + offset % s->bytes;
}

static void use(const struct obm *o, unsigned how)
{
	static int8_t rows[PACKED_ROWS * 64];
	struct obm_verdict v;
	char why[512] = "";
	size_t len;
	int err;

	for (uint32_t i = 0; i < o->n_tensors; i++) {
		const struct obm_tensor *t = &o->tensors[i];
		struct packed_shape shape = obm_shape(t);
		const float *f = (const float *)(o->base + (t->layout ? t->scales : t->offset));
		uint64_t n = t->layout ? packed_n_scales(&shape) : t->cols;

		assert(t->offset + t->bytes <= o->bytes &&
		       (const uint8_t *)(f + n) <= o->base + o->bytes);
		assert((how & UNCHECKED) || obm_not_finite(f, n) == n);
		assert(obm_tensor(o, t->role, t->layer) == t);
		if ((how & UNTILE) && t->layout && t->cols <= 32)
			packed_untile(&shape, o->base + t->offset,
				      t->rows < PACKED_ROWS ? t->rows : PACKED_ROWS, rows);
	}
	if (obm_info(o, "name", &len))
		assert(len < OBM_TEXT_MAX);
	if (!(how & VERIFY))
		return;
	err = obm_verify(o, NULL, 1, &v, why, sizeof(why));
	assert(!err == !*why);
}

/* The bytes of the file: those given, or the valid ones, changed as they say. */
static uint8_t *spoil(const uint8_t *data, size_t size, size_t *n)
{
	unsigned how = data[0];
	size_t at = 1;
	void *file;

	*n = how & RAW ? size - 1 : bytes;
	if ((how & CUT) && !(how & RAW) && size >= 3) {
		*n -= (data[1] | (size_t)data[2] << 8) % bytes;
		at = 3;
	}
	if (posix_memalign(&file, OBM_TENSOR_ALIGN, *n ? *n : 1))
		abort();
	memcpy(file, how & RAW ? data + 1 : valid, *n);
	while (!(how & RAW) && at + 4 <= size) {
		unsigned len = data[at + 3] % 8 + 1;
		size_t to = place(data[at], data[at + 1] | (unsigned)data[at + 2] << 8);

		for (at += 4; len && at < size; len--, at++, to++)
			if (to < *n)
				((uint8_t *)file)[to] = data[at];
	}
	if (how & SEAL)
		write_obm_seal(file, *n, how & DEEP);
	return file;
}

/* The table of a long context takes seconds, which proves nothing. */
static bool is_long(const uint8_t *file, size_t n)
{
	const struct obm_section *s = write_obm_section(valid, OBM_ARCH, 0);

	return s->offset + s->bytes <= n &&
	       ((const struct obm_arch *)(file + s->offset))->context > 64;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct obm *o = NULL;
	char why[512] = "";
	uint8_t *file;
	size_t n;
	int err;

	if (!valid)
		make();
	if (!size)
		return 0;
	file = spoil(data, size, &n);
	if (!(data[0] & SEAL) || !is_long(file, n)) {
		err = obm_open_memory(file, n, data[0] & UNCHECKED ? OBM_UNCHECKED : 0, 1, &o, why,
				      sizeof(why));
		assert(err ? *why && !o : !*why && o);
		if (!err)
			use(o, data[0]);
		obm_close(o);
	}
	free(file);
	return 0;
}

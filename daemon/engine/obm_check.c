/* SPDX-License-Identifier: MIT */
/*
 * The rules of a container's parts: what an architecture may be, what a text may hold; those of its
 * tensors are in obm_tensors.c. All of it looks at memory only, so that the writer is judged by the
 * same code as a stranger's file, and every refusal has a sentence of its own.
 */
#include "obm_check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "rope.h"
#include "sha256.h"

int obm_refuse(char *why, size_t why_len, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, why_len, format, args);
	va_end(args);
	return err;
}

/* ---- the architecture ------------------------------------------------------------------------ */

/* The length of the UTF-8 character at p, 0 when there is none. */
static unsigned utf8(const uint8_t *p, uint64_t n)
{
	unsigned len = p[0] < 0x80 ? 1 :
		       p[0] < 0xc2 ? 0 :
		       p[0] < 0xe0 ? 2 :
		       p[0] < 0xf0 ? 3 :
		       p[0] < 0xf5 ? 4 :
				     0;

	if (!len || len > n)
		return 0;
	for (unsigned i = 1; i < len; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	/* Overlong forms, surrogates, beyond U+10FFFF. */
	if ((p[0] == 0xe0 && p[1] < 0xa0) || (p[0] == 0xed && p[1] > 0x9f) ||
	    (p[0] == 0xf0 && p[1] < 0x90) || (p[0] == 0xf4 && p[1] > 0x8f))
		return 0;
	return len;
}

/*
 * NULL, or what is wrong at *at. These texts end on terminals: a control character in them, the
 * second set of U+0080 to U+009F too, could make one do things.
 */
static const char *bad_text(const uint8_t *p, uint64_t n, const char *controls, uint64_t *at)
{
	unsigned len;

	for (uint64_t i = 0; i < n; i += len) {
		len = utf8(p + i, n - i);
		*at = i;
		if (!len)
			return "is not UTF-8";
		if ((p[i] < 0x20 && (!p[i] || !strchr(controls, p[i]))) || p[i] == 0x7f ||
		    (p[i] == 0xc2 && p[i + 1] < 0xa0))
			return "is a control character";
	}
	return NULL;
}

static int check_name(const char *what, const char *name, size_t size, char *why, size_t why_len)
{
	const char *end = memchr(name, 0, size);
	const char *bad;
	uint64_t at;

	if (!end)
		return obm_refuse(why, why_len, -EPROTO, "its %s has no end within %zu bytes", what,
				  size);
	bad = bad_text((const uint8_t *)name, (uint64_t)(end - name), "", &at);
	if (bad)
		return obm_refuse(why, why_len, -EPROTO, "byte %u of its %s %s", (unsigned)at, what,
				  bad);
	for (size_t i = (size_t)(end - name); i < size; i++)
		if (name[i])
			return obm_refuse(why, why_len, -EPROTO,
					  "something follows the end of its %s", what);
	return 0;
}

static bool is_finite(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return (u & 0x7f800000) != 0x7f800000;
}

uint64_t obm_not_finite(const float *f, uint64_t n)
{
	uint64_t i = 0;

	while (i < n && is_finite(f[i]))
		i++;
	return i;
}

int obm_check_arch(const struct obm_arch *a, char *why, size_t why_len)
{
	const struct {
		const char *name;
		uint32_t value, most;
	} numbers[] = {
		{ "layers", a->layers, OBM_LAYERS_MAX },
		{ "hidden", a->hidden, OBM_WIDTH_MAX },
		{ "ffn", a->ffn, PACKED_COLS_MAX },
		{ "heads", a->heads, OBM_HEADS_MAX },
		{ "kv_heads", a->kv_heads, OBM_HEADS_MAX },
		{ "head_dim", a->head_dim, OBM_HEAD_DIM_MAX },
		{ "vocab", a->vocab, OBM_VOCAB_MAX },
		{ "context", a->context, OBM_CONTEXT_MAX },
	};
	int err;

	for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
		if (!numbers[i].value)
			return obm_refuse(why, why_len, -EPROTO,
					  "its architecture has %s 0; at least 1 is needed",
					  numbers[i].name);
		if (numbers[i].value > numbers[i].most)
			return obm_refuse(why, why_len, -EFBIG,
					  "its architecture has %s %u; this program serves "
					  "at most %u",
					  numbers[i].name, numbers[i].value, numbers[i].most);
	}
	if (a->heads % a->kv_heads)
		return obm_refuse(why, why_len, -EPROTO,
				  "its %u heads cannot share %u kv_heads evenly", a->heads,
				  a->kv_heads);
	if (a->head_dim % 2)
		return obm_refuse(why, why_len, -EPROTO,
				  "its head_dim %u is odd; rotary positions turn pairs",
				  a->head_dim);
	if (!a->activation || a->activation >= OBM_ACT_COUNT)
		return obm_refuse(why, why_len, -ENOTSUP,
				  "its activation %u is none that this program knows; a "
				  "newer one may",
				  a->activation);
	if (a->flags & ~OBM_FLAGS_ALL)
		return obm_refuse(why, why_len, -ENOTSUP,
				  "its flags 0x%x hold some that this program does not "
				  "know; a newer one may",
				  a->flags);
	if (!is_finite(a->rms_eps) || a->rms_eps <= 0 || a->rms_eps >= 1)
		return obm_refuse(why, why_len, -EPROTO,
				  "its rms_eps is %g; it must lie between 0 and 1",
				  (double)a->rms_eps);
	if (!is_finite(a->rope_theta) || a->rope_theta <= 1)
		return obm_refuse(why, why_len, -EPROTO,
				  "its rope_theta is %g; it must be a number above 1",
				  (double)a->rope_theta);
	err = check_name("name", a->name, sizeof(a->name), why, why_len);
	if (!err)
		err = check_name("family", a->family, sizeof(a->family), why, why_len);
	for (size_t i = 0; !err && i < sizeof(a->reserved) / sizeof(a->reserved[0]); i++)
		if (a->reserved[i])
			err = obm_refuse(why, why_len, -ENOTSUP,
					 "its architecture uses reserved word %zu, which "
					 "this program does not know; a newer one may",
					 i);
	return err;
}

int obm_check_rope(const struct obm_arch *a, const double *f, char *why, size_t why_len)
{
	double before = 0x1p1000;

	for (uint32_t i = 0; i < a->head_dim / 2; i++) {
		double v = f[i];

		/* Also false for what is no number. */
		if (!(v > 0 && v < 0x1p1000))
			return obm_refuse(why, why_len, -EPROTO,
					  "rotary frequency %u is %g; it must be finite and "
					  "above 0",
					  i, v);
		if (v > before)
			return obm_refuse(why, why_len, -EPROTO,
					  "rotary frequency %u is %g, above the one before "
					  "it, %g; they must descend",
					  i, v, before);
		if (v * (double)a->context >= 0x1p24)
			return obm_refuse(why, why_len, -EPROTO,
					  "rotary frequency %u is %g; with a context of %u "
					  "the angles would pass 2^24, where they lose precision",
					  i, v, a->context);
		before = v;
	}
	return 0;
}

void obm_rope_sha256(const struct obm_arch *a, const double *f, uint8_t digest[32])
{
	/* A few positions at a time: a table for the longest context would be a gigabyte. */
	float part[16 * OBM_HEAD_DIM_MAX];
	uint32_t step = 16 * OBM_HEAD_DIM_MAX / a->head_dim;
	struct sha256 s;

	sha256_init(&s);
	for (uint32_t pos = 0; pos < a->context; pos += step) {
		uint32_t n = a->context - pos < step ? a->context - pos : step;

		rope_table(f, a->head_dim, pos, n, part);
		sha256_update(&s, part, (size_t)n * a->head_dim * sizeof(*part));
	}
	sha256_final(&s, digest);
}

/* ---- texts ----------------------------------------------------------------------------------- */

int obm_check_text(uint32_t kind, const void *text, uint64_t bytes, char *why, size_t why_len)
{
	const char *what = kind == OBM_INFO ? "information" : "licence";
	const uint8_t *p = text;
	const char *bad;
	uint64_t at;
	unsigned line = 0;

	if (bytes > OBM_TEXT_MAX)
		return obm_refuse(why, why_len, -EFBIG,
				  "its %s has %llu bytes; at most %u are taken", what,
				  (unsigned long long)bytes, OBM_TEXT_MAX);
	bad = bad_text(p, bytes, kind == OBM_INFO ? "\n\t" : "\n\t\r\f", &at);
	if (bad)
		return obm_refuse(why, why_len, -EPROTO, "byte %llu of its %s %s",
				  (unsigned long long)at, what, bad);
	for (at = 0; kind == OBM_INFO && at < bytes;) {
		const uint8_t *end = memchr(p + at, '\n', bytes - at);
		const uint8_t *colon;

		line++;
		if (!end)
			return obm_refuse(why, why_len, -EPROTO,
					  "line %u of its information has no end", line);
		colon = memmem(p + at, (size_t)(end - p) - at, ": ", 2);
		if (!colon || colon == p + at)
			return obm_refuse(why, why_len, -EPROTO,
					  "line %u of its information is not of the form "
					  "'key: value'",
					  line);
		at = (uint64_t)(end - p) + 1;
	}
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Tokens back into text. Bytes go through one at a time: held are those of a sequence that has begun
 * well and is not complete. A byte that does not fit makes U+FFFD of what is held and is looked at
 * anew, so what comes out depends on the bytes alone, not on how tokens cut them.
 */
#include <string.h>
#include "bpe.h"
#include "tokenizer.h"
#include "utf8.h"

static size_t put_replacement(char *out)
{
	memcpy(out, "\xef\xbf\xbd", 3);
	return 3;
}

static size_t put_byte(struct detok *d, uint8_t byte, char *out)
{
	size_t n = 0;

	if (d->n_held) {
		uint32_t wants = utf8_wants(d->held[0]);

		if (d->n_held == 1 ? utf8_goes_on(d->held[0], byte) : (byte & 0xc0) == 0x80) {
			d->held[d->n_held++] = byte;
			if (d->n_held < wants)
				return 0;
			memcpy(out, d->held, wants);
			d->n_held = 0;
			return wants;
		}
		n = detok_flush(d, out);
	}
	switch (utf8_wants(byte)) {
	case 0:
		return n + put_replacement(out + n);
	case 1:
		out[n] = (char)byte;
		return n + 1;
	default:
		d->held[d->n_held++] = byte;
		return n;
	}
}

void detok_init(struct detok *d, const struct tokenizer *t)
{
	memset(d, 0, sizeof(*d));
	d->at_start = t->facts.flags & VOCAB_DUMMY_PREFIX;
}

size_t detok_push(struct detok *d, const struct tokenizer *t, uint32_t id, char *out)
{
	struct tokenizer_token token = tokenizer_token(t, id);
	bool shown = token.kind != VOCAB_SPECIAL && token.kind != VOCAB_UNUSED;
	size_t n = 0;
	uint32_t i = 0;

	if ((!shown && !d->specials) || !token.len)
		return 0;
	if (d->at_start && shown && token.text[0] == ' ')
		i = 1;
	d->at_start = false;
	/* Most text is ASCII, or whole characters at least; but it is the bytes that decide. */
	for (; i < token.len; i++)
		n += put_byte(d, token.text[i], out + n);
	return n;
}

size_t detok_flush(struct detok *d, char *out)
{
	if (!d->n_held)
		return 0;
	d->n_held = 0;
	return put_replacement(out);
}

size_t detok_bound(const struct tokenizer *t)
{
	/* What is held and each byte of the longest token may become U+FFFD. */
	return 3 + 3 * (size_t)t->facts.longest;
}

/* SPDX-License-Identifier: MIT */
#include "lib_write_vocab.h"

#include <check.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct spm_parts spm_llama2 = {
	.model_type = 2, .byte_fallback = 1, .prefix = 1, .escape = 1, .bos = 1,
	.normalizer = "identity",
};

const char *const spm_words[N_SPM_WORDS] = {
	"\xe2\x96\x81t", "he", "\xe2\x96\x81the", "in", "\xe2\x96\x81", "t", "h", "e", "i", "n", "a",
	"\xc3\xa9",
};

/* ---- a growing buffer ---------------------------------------------------------------------- */

void buf_put(struct buf *b, const void *data, size_t len)
{
	if (b->n + len + 1 > b->cap) {
		b->cap = (b->n + len + 1) * 2;
		b->p = realloc(b->p, b->cap);
		ck_assert_ptr_nonnull(b->p);
	}
	if (len)
		memcpy(b->p + b->n, data, len);
	b->n += len;
	b->p[b->n] = 0;
}

void buf_text(struct buf *b, const char *s)
{
	buf_put(b, s, strlen(s));
}

void buf_format(struct buf *b, const char *format, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, format);
	ck_assert_int_lt(vsnprintf(text, sizeof(text), format, ap), (int)sizeof(text));
	va_end(ap);
	buf_text(b, text);
}

void buf_u32(struct buf *b, uint32_t v)
{
	buf_put(b,
	    &(uint8_t[4]){ (uint8_t)v, (uint8_t)(v >> 8), (uint8_t)(v >> 16), (uint8_t)(v >> 24) },
	    4);
}

void buf_free(struct buf *b)
{
	free(b->p);
	*b = (struct buf){ 0 };
}

/* GPT-2's spelling of a byte. */
static void put_mapped(struct buf *b, const char *bytes, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		unsigned c = (unsigned char)bytes[i], n = 0;

		if (!((c >= 33 && c <= 126) || (c >= 161 && c <= 172) || c >= 174)) {
			for (unsigned k = 0; k < c; k++)
				n += !((k >= 33 && k <= 126) || (k >= 161 && k <= 172) || k >= 174);
			c = 256 + n;
		}
		if (c < 128)
			buf_put(b, &(char){ (char)c }, 1);
		else
			buf_put(b, (char[2]){ (char)(0xc0 | c >> 6), (char)(0x80 | (c & 63)) }, 2);
	}
}

/* ---- writers ------------------------------------------------------------------------------- */

static bool is_special(const struct tiny *t, uint32_t id)
{
	return id >= t->vocab - 4;
}

struct buf file_htok(const struct tiny *t, uint32_t version)
{
	struct buf b = { 0 };

	buf_text(&b, "HTOK");
	if (version)
		buf_u32(&b, version);
	buf_u32(&b, t->vocab);
	buf_u32(&b, t->n_words);
	buf_u32(&b, t->bos);
	buf_u32(&b, t->eos);
	for (uint32_t id = 0; id < t->vocab; id++) {
		struct buf text = { 0 };

		if (is_special(t, id))
			buf_put(&text, t->token[id], t->token_len[id]);
		else
			put_mapped(&text, t->token[id], t->token_len[id]);
		buf_put(&b, &(uint8_t[2]){ (uint8_t)text.n, (uint8_t)(text.n >> 8) }, 2);
		buf_put(&b, text.p, text.n);
		buf_free(&text);
	}
	for (uint32_t i = 0; i < t->n_words; i++) {
		buf_u32(&b, t->merge[i].a);
		buf_u32(&b, t->merge[i].b);
		buf_u32(&b, t->merge[i].merged);
	}
	if (version) {
		buf_u32(&b, 4);
		for (uint32_t i = 0; i < 4; i++)
			buf_u32(&b, t->vocab - 4 + i);
	}
	return b;
}

static void put_quoted(struct buf *b, const char *text, size_t len)
{
	buf_text(b, "\"");
	for (size_t i = 0; i < len; i++) {
		if (text[i] == '"' || text[i] == '\\')
			buf_text(b, "\\");
		buf_put(b, text + i, 1);
	}
	buf_text(b, "\"");
}

static const char *or(const char *a, const char *b)
{
	return a ? a : b;
}

struct buf file_json(const struct tiny *t, const struct parts *p)
{
	struct buf b = { 0 };

	buf_text(&b, "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,");
	buf_text(&b, or(p->top, ""));
	buf_text(&b, "\"added_tokens\":[");
	for (uint32_t id = t->vocab - 4; id < t->vocab; id++) {
		buf_format(&b, "{\"id\":%u,\"content\":", id);
		put_quoted(&b, t->token[id], t->token_len[id]);
		buf_text(&b, ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
			     "\"normalized\":"
			     "false,"
			     "\"special\":true}");
		buf_text(&b, id + 1 < t->vocab ? "," : or(p->added, ""));
	}
	buf_format(&b, "],\"normalizer\":%s,\"pre_tokenizer\":", or(p->normalizer, "null"));
	buf_text(&b, or(p->pre, SEQUENCE(LLAMA3_SPLIT "," BYTE_LEVEL(false))));
	buf_text(&b, ",\"post_processor\":");
	buf_text(&b, or (p->post,
		      "{\"type\":\"Sequence\",\"processors\":[" BYTE_LEVEL(true) "," TEMPLATE "]"
											      "}"));
	buf_text(&b, ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{");
	buf_text(&b, or (p->model, "\"type\":\"BPE\",\"dropout\":null,\"unk_token\":null,"
				"\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,"
				"\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":"
				"true"));
	buf_text(&b, ",\"vocab\":{");
	for (uint32_t id = 0; id < t->vocab - 4; id++) {
		struct buf text = { 0 };

		put_mapped(&text, t->token[id], t->token_len[id]);
		put_quoted(&b, text.p, text.n);
		buf_format(&b, ":%u%s", id, id + 1 < t->vocab - 4 ? "," : or(p->words, ""));
		buf_free(&text);
	}
	buf_text(&b, "},\"merges\":[");
	for (uint32_t i = 0; i < t->n_words; i++) {
		struct buf text[2] = { { 0 }, { 0 } };
		const uint32_t id[2] = { t->merge[i].a, t->merge[i].b };

		for (int k = 0; k < 2; k++)
			put_mapped(&text[k], t->token[id[k]], t->token_len[id[k]]);
		if (p->pairs) {
			buf_text(&b, "[");
			put_quoted(&b, text[0].p, text[0].n);
			buf_text(&b, ",");
			put_quoted(&b, text[1].p, text[1].n);
			buf_text(&b, "]");
		} else {
			buf_text(&text[0], " ");
			buf_put(&text[0], text[1].p, text[1].n);
			put_quoted(&b, text[0].p, text[0].n);
		}
		buf_text(&b, i + 1 < t->n_words ? "," : or(p->merges, ""));
		buf_free(&text[0]);
		buf_free(&text[1]);
	}
	buf_text(&b, "]}}");
	return b;
}

static void put_64(struct buf *b, const uint8_t *bytes, size_t len)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz01234567"
				      "89+/";

	for (size_t i = 0; i < len; i += 3) {
		uint32_t bits = (uint32_t)bytes[i] << 16 |
				(i + 1 < len ? (uint32_t)bytes[i + 1] << 8 : 0) |
				(i + 2 < len ? bytes[i + 2] : 0u);
		char text[4] = { letters[bits >> 18], letters[bits >> 12 & 63],
				 i + 1 < len ? letters[bits >> 6 & 63] : '=',
				 i + 2 < len ? letters[bits & 63] : '=' };

		buf_put(b, text, 4);
	}
}

struct buf file_ranks(const struct tiny *t)
{
	struct buf b = { 0 };

	for (uint32_t id = 0; id < t->vocab - 4; id++) {
		put_64(&b, (const uint8_t *)t->token[id], t->token_len[id]);
		buf_format(&b, " %u\n", id);
	}
	return b;
}

static void put_varint(struct buf *b, uint64_t v)
{
	for (; v >= 128; v >>= 7)
		buf_put(b, &(uint8_t){ (uint8_t)(v | 128) }, 1);
	buf_put(b, &(uint8_t){ (uint8_t)v }, 1);
}

static void put_number(struct buf *b, uint32_t field, uint64_t v)
{
	put_varint(b, field << 3);
	put_varint(b, v);
}

static void put_bytes(struct buf *b, uint32_t field, const void *data, size_t len)
{
	put_varint(b, field << 3 | 2);
	put_varint(b, len);
	buf_put(b, data, len);
}

static void put_piece(struct buf *b, const char *text, float score, uint32_t type)
{
	struct buf piece = { 0 };
	uint32_t bits;

	memcpy(&bits, &score, 4);
	put_bytes(&piece, 1, text, strlen(text));
	put_varint(&piece, 2 << 3 | 5);
	buf_u32(&piece, bits);
	if (type != 1)
		put_number(&piece, 3, type);
	put_bytes(b, 1, piece.p, piece.n);
	buf_free(&piece);
}

struct buf file_spm(const struct spm_parts *p)
{
	struct buf b = { 0 }, trainer = { 0 }, normalizer = { 0 };

	put_piece(&b, "<unk>", 0, 2);
	put_piece(&b, "<s>", 0, 3);
	put_piece(&b, "</s>", 0, 3);
	for (unsigned i = 0; i < 256; i++) {
		char text[8];

		snprintf(text, sizeof(text), "<0x%02X>", i);
		put_piece(&b, text, 0, 6);
	}
	for (int i = 0; i < N_SPM_WORDS; i++)
		put_piece(&b, spm_words[i], -(float)i, 1);
	if (p->piece)
		put_piece(&b, p->piece, p->piece_score, p->piece_type);
	put_bytes(&trainer, 1, "corpus.txt", 10);
	put_number(&trainer, 3, p->model_type);
	put_varint(&trainer, 10 << 3 | 5); /* character_coverage */
	buf_u32(&trainer, 0x3f7ff972);
	if (p->suffix)
		put_number(&trainer, 24, 1);
	put_number(&trainer, 35, p->byte_fallback);
	if (p->bos != 1)
		put_number(&trainer, 41, p->bos);
	put_number(&trainer, 43, UINT64_MAX); /* pad_id -1 */
	if (!p->no_trainer)
		put_bytes(&b, 2, trainer.p, trainer.n);
	put_bytes(&normalizer, 1, p->normalizer, strlen(p->normalizer));
	if (p->charsmap)
		put_bytes(&normalizer, 2, p->charsmap, strlen(p->charsmap));
	/* Those that have their defaults are left out, but the one whose default is wrong. */
	if (!p->prefix)
		put_number(&normalizer, 3, 0);
	if (!p->no_extra)
		put_number(&normalizer, 4, p->extra);
	if (!p->escape)
		put_number(&normalizer, 5, 0);
	put_bytes(&b, 3, normalizer.p, normalizer.n);
	buf_free(&trainer);
	buf_free(&normalizer);
	return b;
}

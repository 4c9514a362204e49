/* SPDX-License-Identifier: MIT */
/*
 * tokenizer.model as SentencePiece writes it: a protocol buffer with the pieces, their scores and
 * types, and how the model was trained. A reader of the wire format that knows the few fields which
 * matter; the others are skipped, as the format wants it. Absent fields have their defaults, some
 * of which are not zero.
 *
 * Supported is what Llama 2 and the BitNet reproductions have: BPE with byte fallback, texts taken
 * as they are (normalizer "identity"), a space put before the text or not. What would make other
 * tokens is refused by its name.
 */
#include "source.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include "mapped.h"
#include "read.h"

/* ModelProto */
enum { MODEL_PIECES = 1, MODEL_TRAINER = 2, MODEL_NORMALIZER = 3 };
/* SentencePiece, and its types */
enum { PIECE_TEXT = 1, PIECE_SCORE = 2, PIECE_TYPE = 3 };
enum { TYPE_NORMAL = 1, TYPE_UNKNOWN, TYPE_CONTROL, TYPE_USER_DEFINED, TYPE_UNUSED, TYPE_BYTE };
/* TrainerSpec; its model types */
enum { TRAINER_MODEL_TYPE = 3, TRAINER_SUFFIX = 24, TRAINER_BYTE_FALLBACK = 35, TRAINER_UNK = 40,
       TRAINER_BOS = 41, TRAINER_EOS = 42 };
enum { MODEL_UNIGRAM = 1, MODEL_BPE, MODEL_WORD, MODEL_CHAR };
/* NormalizerSpec */
enum { NORMALIZER_NAME = 1, NORMALIZER_CHARSMAP = 2, NORMALIZER_PREFIX = 3, NORMALIZER_EXTRA = 4,
       NORMALIZER_ESCAPE = 5 };

/* How a value lies on the wire. */
enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

struct field {
	uint32_t number, wire;
	uint64_t value;	      /* WIRE_VARINT, WIRE_32 */
	const uint8_t *bytes; /* WIRE_BYTES */
	size_t len;
};

struct spm {
	const char *name;
	char *why;
	size_t why_len;
	uint64_t model_type;
	int32_t unk, bos, eos;
	bool suffix, byte_fallback, prefix, extra, escape, charsmap;
	const uint8_t *normalizer;
	size_t normalizer_len;
	bool has_trainer;
	struct vocab *v;
};

#define REFUSE(s, err, ...) fail((s)->why, (s)->why_len, err, __VA_ARGS__)

/* ---- the wire ------------------------------------------------------------------------------ */

static uint64_t varint(struct cursor *c)
{
	uint64_t value = 0;

	for (unsigned shift = 0; shift < 64; shift += 7) {
		uint8_t byte = cursor_u8(c);

		value |= (uint64_t)(byte & 0x7f) << shift;
		if (!(byte & 0x80))
			return value;
	}
	c->bad = true;
	return 0;
}

/* The next field; false at the end, or where the bytes are none (then c->bad). */
static bool next_field(struct cursor *c, struct field *f)
{
	uint64_t key;

	if (c->bad || c->pos == c->bytes)
		return false;
	key = varint(c);
	*f = (struct field){ .number = (uint32_t)(key >> 3), .wire = key & 7 };
	if (key >> 32 || !f->number)
		c->bad = true;
	switch (f->wire) {
	case WIRE_VARINT:
		f->value = varint(c);
		break;
	case WIRE_64:
		f->value = cursor_u64(c);
		break;
	case WIRE_BYTES:
		f->len = varint(c);
		f->bytes = cursor_bytes(c, f->len);
		break;
	case WIRE_32:
		f->value = cursor_u32(c);
		break;
	default: /* groups, which this format has not */
		c->bad = true;
	}
	return !c->bad;
}

/* A field of the number that is wanted, but lying otherwise than it can, is damage. */
static bool lies_as(struct cursor *c, const struct field *f, uint32_t wire)
{
	if (f->wire != wire)
		c->bad = true;
	return f->wire == wire;
}

/* ---- what the model was trained with ------------------------------------------------------- */

static void read_trainer(struct spm *s, struct cursor *outer, const struct field *spec)
{
	struct cursor c = { .data = spec->bytes, .bytes = spec->len };
	struct field f;

	s->has_trainer = true;
	while (next_field(&c, &f)) {
		bool known = f.number == TRAINER_MODEL_TYPE || f.number == TRAINER_SUFFIX ||
			     f.number == TRAINER_BYTE_FALLBACK ||
			     (f.number >= TRAINER_UNK && f.number <= TRAINER_EOS);

		if (!known || !lies_as(&c, &f, WIRE_VARINT))
			continue;
		if (f.number == TRAINER_MODEL_TYPE)
			s->model_type = f.value;
		else if (f.number == TRAINER_SUFFIX)
			s->suffix = f.value;
		else if (f.number == TRAINER_BYTE_FALLBACK)
			s->byte_fallback = f.value;
		else if (f.number == TRAINER_UNK)
			s->unk = (int32_t)f.value;
		else if (f.number == TRAINER_BOS)
			s->bos = (int32_t)f.value;
		else
			s->eos = (int32_t)f.value;
	}
	outer->bad = outer->bad || c.bad;
}

static void read_normalizer(struct spm *s, struct cursor *outer, const struct field *spec)
{
	struct cursor c = { .data = spec->bytes, .bytes = spec->len };
	struct field f;

	while (next_field(&c, &f)) {
		if (f.number == NORMALIZER_NAME && lies_as(&c, &f, WIRE_BYTES)) {
			s->normalizer = f.bytes;
			s->normalizer_len = f.len;
		} else if (f.number == NORMALIZER_CHARSMAP && lies_as(&c, &f, WIRE_BYTES)) {
			s->charsmap = f.len > 0;
		} else if (f.number == NORMALIZER_PREFIX && lies_as(&c, &f, WIRE_VARINT)) {
			s->prefix = f.value;
		} else if (f.number == NORMALIZER_EXTRA && lies_as(&c, &f, WIRE_VARINT)) {
			s->extra = f.value;
		} else if (f.number == NORMALIZER_ESCAPE && lies_as(&c, &f, WIRE_VARINT)) {
			s->escape = f.value;
		}
	}
	outer->bad = outer->bad || c.bad;
}

static int check_specs(struct spm *s)
{
	static const char *const types[] = { "", "unigram", "bpe", "word", "char" };

	if (!s->has_trainer)
		return REFUSE(s, -EPROTO,
			      "%s: has no trainer_spec: not a SentencePiece model, or cut off",
			      s->name);
	if (s->model_type != MODEL_BPE)
		return REFUSE(s, -ENOTSUP,
			      "%s: trainer_spec.model_type is %llu (%s); only bpe is supported",
			      s->name, (unsigned long long)s->model_type,
			      s->model_type <= MODEL_CHAR ? types[s->model_type] : "unknown");
	if (!s->byte_fallback)
		return REFUSE(s, -ENOTSUP,
			      "%s: trainer_spec.byte_fallback is false; only true is supported",
			      s->name);
	if (s->suffix)
		return REFUSE(s, -ENOTSUP,
			      "%s: trainer_spec.treat_whitespace_as_suffix is true; only false is "
			      "supported",
			      s->name);
	if (s->charsmap || s->normalizer_len != 8 || memcmp(s->normalizer, "identity", 8) != 0)
		return REFUSE(s, -ENOTSUP,
			      "%s: normalizer_spec.name is '%s'%s; only 'identity' is supported",
			      s->name, read_shown(s->normalizer, s->normalizer_len).text,
			      s->charsmap ? ", with a table of characters" : "");
	if (s->extra)
		return REFUSE(s, -ENOTSUP,
			      "%s: normalizer_spec.remove_extra_whitespaces is true; only false is "
			      "supported",
			      s->name);
	if (!s->escape)
		return REFUSE(s, -ENOTSUP,
			      "%s: normalizer_spec.escape_whitespaces is false; only true is "
			      "supported",
			      s->name);
	return 0;
}

/* ---- pieces -------------------------------------------------------------------------------- */

static int add_piece(struct spm *s, const uint8_t *text, size_t len, uint64_t type, float score)
{
	uint32_t id = s->v->n_tokens;
	uint8_t bytes[VOCAB_TOKEN_BYTES_MAX];
	int byte;

	if (!len || len > VOCAB_TOKEN_BYTES_MAX)
		return REFUSE(s, len ? -EFBIG : -EPROTO,
			      "%s: piece %u has %zu bytes; it may have 1 to %u", s->name, id, len,
			      VOCAB_TOKEN_BYTES_MAX);
	if (!isfinite(score))
		return REFUSE(s, -EPROTO, "%s: piece %u, '%s', has no finite score", s->name, id,
			      read_shown(text, len).text);
	switch (type) {
	case TYPE_NORMAL:
		len = read_unspace((const char *)text, len, bytes);
		if (vocab_find(s->v, bytes, len, 1u << VOCAB_NORMAL) != VOCAB_NO_ID)
			return REFUSE(s, -EPROTO, "%s: piece %u, '%s', was there before", s->name,
				      id, read_shown(bytes, len).text);
		return vocab_add(s->v, bytes, len, VOCAB_NORMAL, score);
	case TYPE_UNKNOWN:
	case TYPE_CONTROL:
		return vocab_add(s->v, text, len, VOCAB_SPECIAL, 0);
	case TYPE_BYTE:
		byte = read_byte_name((const char *)text, len);
		if (byte < 0)
			return REFUSE(s, -EPROTO,
				      "%s: piece %u, '%s', is to be a byte; these are <0x00> to "
				      "<0xFF>",
				      s->name, id, read_shown(text, len).text);
		return vocab_add(s->v, &(uint8_t){ (uint8_t)byte }, 1, VOCAB_BYTE, 0);
	case TYPE_USER_DEFINED:
	case TYPE_UNUSED:
		return REFUSE(s, -ENOTSUP, "%s: piece %u, '%s', is %s, which is not supported",
			      s->name, id, read_shown(text, len).text,
			      type == TYPE_UNUSED ? "unused" : "user-defined");
	default:
		return REFUSE(s, -EPROTO, "%s: piece %u, '%s', has type %llu; types are 1 to 6",
			      s->name, id, read_shown(text, len).text, (unsigned long long)type);
	}
}

static int read_piece(struct spm *s, struct cursor *outer, const struct field *piece)
{
	struct cursor c = { .data = piece->bytes, .bytes = piece->len };
	const uint8_t *text = NULL;
	uint64_t type = TYPE_NORMAL;
	size_t len = 0;
	float score = 0;
	struct field f;

	while (next_field(&c, &f)) {
		if (f.number == PIECE_TEXT && lies_as(&c, &f, WIRE_BYTES)) {
			text = f.bytes;
			len = f.len;
		} else if (f.number == PIECE_SCORE && lies_as(&c, &f, WIRE_32)) {
			uint32_t bits = (uint32_t)f.value;

			memcpy(&score, &bits, sizeof(score));
		} else if (f.number == PIECE_TYPE && lies_as(&c, &f, WIRE_VARINT)) {
			type = f.value;
		}
	}
	if (c.bad) {
		outer->bad = true;
		return 0;
	}
	return add_piece(s, text, len, type, score);
}

/* One of the three ids of trainer_spec; below 0 there is none. */
static int name_token(struct spm *s, const char *what, int32_t id, uint32_t *out)
{
	const struct vocab_token *t;

	if (id < 0)
		return 0;
	if ((uint32_t)id >= s->v->n_tokens)
		return REFUSE(s, -EPROTO, "%s: trainer_spec.%s is %d, and there are %u pieces",
			      s->name, what, id, s->v->n_tokens);
	t = &s->v->tokens[id];
	if (t->kind != VOCAB_SPECIAL)
		return REFUSE(s, -EPROTO,
			      "%s: trainer_spec.%s is %d, '%s', which is an ordinary piece",
			      s->name, what, id, read_shown(t->text, t->len).text);
	*out = (uint32_t)id;
	return 0;
}

/*
 * Pieces come before the specs that say what to make of them; they are taken on trust until then.
 */
static int read_model(struct spm *s, const uint8_t *data, size_t len)
{
	struct cursor c = { .data = data, .bytes = len };
	struct field f;
	int ret = 0;

	while (!ret && next_field(&c, &f)) {
		if (f.number < MODEL_PIECES || f.number > MODEL_NORMALIZER ||
		    !lies_as(&c, &f, WIRE_BYTES))
			continue;
		if (f.number == MODEL_PIECES)
			ret = read_piece(s, &c, &f);
		else if (f.number == MODEL_TRAINER)
			read_trainer(s, &c, &f);
		else
			read_normalizer(s, &c, &f);
	}
	if (!ret && c.bad)
		ret = REFUSE(s, -EPROTO,
			     "%s: is not a protocol buffer from byte %llu on: damaged, or cut off",
			     s->name, (unsigned long long)c.pos);
	return ret;
}

int vocab_read_sentencepiece(const void *data, size_t len, const char *name, struct vocab **out,
			     char *why, size_t why_len)
{
	struct spm s = {
		.name = name, .why = why, .why_len = why_len, .model_type = MODEL_UNIGRAM, .unk = 0,
		.bos = 1, .eos = 2, .prefix = true, .extra = true, .escape = true, .v = vocab_new(),
	};
	int ret = 0;

	if (why_len)
		*why = 0;
	if (!s.v)
		return read_done(name, -ENOMEM, NULL, out, why, why_len);
	if (len > READ_FILE_MAX)
		ret = REFUSE(&s, -EFBIG, "%s: has %zu bytes; a tokenizer.model may have %u", name,
			     len, READ_FILE_MAX);
	if (!ret)
		ret = read_model(&s, data, len);
	if (!ret)
		ret = check_specs(&s);
	if (!ret)
		ret = name_token(&s, "unk_id", s.unk, &s.v->unk);
	if (!ret)
		ret = name_token(&s, "bos_id", s.bos, &s.v->bos);
	if (!ret)
		ret = name_token(&s, "eos_id", s.eos, &s.v->eos);
	if (!ret) {
		s.v->kind = VOCAB_SPM;
		s.v->rule = VOCAB_RULE_NONE;
		s.v->flags = (s.prefix ? VOCAB_DUMMY_PREFIX : 0) |
			     (s.v->bos != VOCAB_NO_ID ? VOCAB_ADD_BOS : 0);
		ret = vocab_derive_by_score(s.v, why, why_len);
	}
	if (!ret)
		ret = read_known_specials(s.v);
	return read_done(name, ret, s.v, out, why, why_len);
}

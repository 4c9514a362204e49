/* SPDX-License-Identifier: MIT */
/*
 * The outermost of a container: its header and the table of its sections. Whatever a transfer can
 * have made of the first bytes is told by name.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "obm_open.h"

static const char *const kinds[OBM_KINDS] = {
	[OBM_ARCH] = "architecture",   [OBM_TENSORS] = "tensor table", [OBM_ROPE] = "rotary table",
	[OBM_TOKENIZER] = "tokenizer", [OBM_INFO] = "information",     [OBM_LICENCE] = "licence",
	[OBM_WEIGHTS] = "weights",     [OBM_CHUNKS] = "chunk table",
};

const char *obm_kind_name(uint32_t kind)
{
	return kinds[kind];
}

const char *obm_section_name(const struct obm_section *s, char name[OBM_NAME_MAX])
{
	if (s->kind == OBM_WEIGHTS)
		snprintf(name, OBM_NAME_MAX,
			 s->index ? "weights section %u (layer %u)" : "weights section %u",
			 s->index, s->index - 1);
	else
		snprintf(name, OBM_NAME_MAX, "%s section", kinds[s->kind]);
	return name;
}

static int cut(char *why, size_t why_len)
{
	return obm_refuse(why, why_len, -EBADMSG,
			  "the file can no longer be read: it was cut, or its disk has a fault");
}

static int check_magic(const uint8_t magic[8], char *why, size_t why_len)
{
	static const struct {
		const char *bytes;
		size_t len;
		const char *what;
	} known[] = {
		/* What transfers in text mode and channels of seven bits make of ours. */
		{ "\x89OBM\n\x1a\n", 7,
		  "damaged: a transfer in text mode removed carriage returns" },
		{ "\x89OBM\r\r\n", 7, "damaged: a transfer in text mode added carriage returns" },
		{ "\x89OBM\n\n", 6, "damaged: a transfer in text mode changed its line ends" },
		{ "\tOBM", 4, "damaged: a transfer took away the eighth bit of its bytes" },
		{ "\xc2\x89OBM", 5, "damaged: it was taken for text and written as UTF-8" },
		{ "\xef\xbf\xbdOBM", 6, "damaged: it was taken for text and written as UTF-8" },
		{ "GGUF", 4, "a GGUF file; `onebit model convert` makes a model of it" },
		{ "H1B", 4, "an .h1b file; `onebit model convert` makes a model of it" },
	};

	if (!memcmp(magic, OBM_MAGIC, 8))
		return 0;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!memcmp(magic, known[i].bytes, known[i].len))
			return obm_refuse(why, why_len, i < 6 ? -EBADMSG : -EPROTO,
					  "the file is %s", known[i].what);
	return obm_refuse(why, why_len, -EPROTO,
			  "the file is no .obm model: it begins with %02x %02x %02x "
			  "%02x %02x %02x %02x %02x",
			  magic[0], magic[1], magic[2], magic[3], magic[4], magic[5], magic[6],
			  magic[7]);
}

static int check_header(const struct obm_header *h, uint64_t file_bytes, char *why, size_t why_len)
{
	if (h->version != OBM_VERSION)
		return obm_refuse(why, why_len, -ENOTSUP,
				  "the file has container version %u; this program "
				  "knows version %u",
				  h->version, OBM_VERSION);
	if (h->contract != OBM_CONTRACT)
		return obm_refuse(why, why_len, -ENOTSUP,
				  "the file is for numeric contract %u; this program "
				  "computes by contract %u, so convert the model again",
				  h->contract, OBM_CONTRACT);
	if (h->file_bytes > file_bytes)
		return obm_refuse(why, why_len, -EBADMSG,
				  "the file is truncated: %llu of its %llu bytes are "
				  "missing",
				  (unsigned long long)(h->file_bytes - file_bytes),
				  (unsigned long long)h->file_bytes);
	if (h->file_bytes < file_bytes)
		return obm_refuse(why, why_len, -EBADMSG,
				  "%llu bytes follow the model's end at %llu",
				  (unsigned long long)(file_bytes - h->file_bytes),
				  (unsigned long long)h->file_bytes);
	if (!h->n_sections)
		return obm_refuse(why, why_len, -EPROTO, "its header has no sections");
	if (h->n_sections > OBM_SECTIONS_MAX)
		return obm_refuse(why, why_len, -EFBIG,
				  "its header has %u sections; at most %u are taken", h->n_sections,
				  OBM_SECTIONS_MAX);
	if (h->header_bytes !=
	    obm_align(sizeof(*h) + h->n_sections * sizeof(struct obm_section), OBM_ALIGN))
		return obm_refuse(why, why_len, -EPROTO,
				  "its header says that it has %u bytes, which does not "
				  "fit %u sections",
				  h->header_bytes, h->n_sections);
	if (h->header_bytes > file_bytes)
		return obm_refuse(why, why_len, -EPROTO,
				  "its header of %u bytes does not fit the file's %llu",
				  h->header_bytes, (unsigned long long)file_bytes);
	return 0;
}

/* Each byte is the one before it, and the first is zero. */
bool obm_is_zero(const uint8_t *p, uint64_t n)
{
	return !n || (!p[0] && !memcmp(p, p + 1, n - 1));
}

/*
 * The header and table, copied once, and only the copy looked at from then on: who may write to the
 * file may do so at any time.
 */
static int copy_head(const struct obm *o, uint8_t **head, char *why, size_t why_len)
{
	const uint8_t *file = o->base;
	uint64_t file_bytes = o->bytes;
	struct obm_header h = { 0 };
	uint8_t *page;
	uint64_t used;
	int err;

	if (file_bytes < sizeof(h.magic))
		return obm_refuse(why, why_len, -EPROTO,
				  "the file has %llu bytes, too few for any model",
				  (unsigned long long)file_bytes);
	if (!obm_populate(o, file, file_bytes < sizeof(h) ? file_bytes : sizeof(h)))
		return cut(why, why_len);
	memcpy(&h, file, file_bytes < sizeof(h) ? file_bytes : sizeof(h));
	err = check_magic(h.magic, why, why_len);
	if (!err && file_bytes < sizeof(h))
		err = obm_refuse(why, why_len, -EBADMSG,
				 "the file is truncated in its header: it has %llu bytes",
				 (unsigned long long)file_bytes);
	if (!err)
		err = check_header(&h, file_bytes, why, why_len);
	if (err)
		return err;
	page = malloc(h.header_bytes);
	if (!page)
		return obm_refuse(why, why_len, -ENOMEM, "no memory for the header");
	if (!obm_populate(o, file, h.header_bytes)) {
		free(page);
		return cut(why, why_len);
	}
	memcpy(page, file, h.header_bytes);
	/* The size was checked in the first copy; this one must be the same. */
	if (memcmp(page, &h, sizeof(h)))
		err = obm_refuse(why, why_len, -EBADMSG, "the file was changed while it was read");
	if (!err && obm_header_xxh3(page, h.header_bytes) != h.header_xxh3)
		err = obm_refuse(why, why_len, -EBADMSG,
				 "its header is damaged: its checksum is another");
	used = sizeof(h) + h.n_sections * sizeof(struct obm_section);
	if (!err && !obm_is_zero((const uint8_t *)h.reserved, sizeof(h.reserved)))
		err = obm_refuse(why, why_len, -ENOTSUP,
				 "its header uses reserved words, which this program does not "
				 "know; a newer one may");
	if (!err && !obm_is_zero(page + used, h.header_bytes - used))
		err = obm_refuse(
			why, why_len, -EPROTO,
			"something stands between its section table and its first section");
	if (err)
		free(page);
	else
		*head = page;
	return err;
}

static int check_section(const struct obm_header *h, const struct obm_section *s, uint64_t *end,
			 char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	if (!s->kind || s->kind >= OBM_KINDS)
		return obm_refuse(why, why_len, -ENOTSUP,
				  "it has a section of kind %u, which this program does "
				  "not know; a newer one may",
				  s->kind);
	if (s->index > (s->kind == OBM_WEIGHTS ? OBM_LAYERS_MAX : 0))
		return obm_refuse(why, why_len, -EPROTO,
				  "its %s section has index %u; at most %u can be", kinds[s->kind],
				  s->index, s->kind == OBM_WEIGHTS ? OBM_LAYERS_MAX : 0);
	obm_section_name(s, name);
	if (s->offset % OBM_ALIGN)
		return obm_refuse(why, why_len, -EPROTO,
				  "its %s lies at %llu, which is no multiple of %u", name,
				  (unsigned long long)s->offset, OBM_ALIGN);
	if (s->offset > h->file_bytes || s->bytes > h->file_bytes - s->offset)
		return obm_refuse(why, why_len, -EPROTO,
				  "its %s, %llu bytes at %llu, ends behind the file", name,
				  (unsigned long long)s->bytes, (unsigned long long)s->offset);
	if (!s->bytes)
		return obm_refuse(why, why_len, -EPROTO, "its %s is empty", name);
	if (s->offset < *end)
		return obm_refuse(why, why_len, -EPROTO,
				  "its %s begins at %llu, inside what stands before it", name,
				  (unsigned long long)s->offset);
	if (s->offset != obm_align(*end, OBM_ALIGN))
		return obm_refuse(why, why_len, -EPROTO,
				  "its %s begins at %llu and leaves a gap before it", name,
				  (unsigned long long)s->offset);
	*end = s->offset + s->bytes;
	return 0;
}

static int check_sections(const struct obm_header *h, const struct obm_section *s, char *why,
			  size_t why_len)
{
	bool have[OBM_KINDS] = { 0 };
	char name[OBM_NAME_MAX];
	uint64_t end = h->header_bytes;
	uint32_t weights = 0;

	for (uint32_t i = 0; i < h->n_sections; i++) {
		int err = check_section(h, &s[i], &end, why, why_len);

		if (err)
			return err;
		obm_section_name(&s[i], name);
		if (i && s[i].kind == s[i - 1].kind && s[i].index == s[i - 1].index)
			return obm_refuse(why, why_len, -EPROTO, "its %s is there twice", name);
		if (i && (s[i].kind < s[i - 1].kind ||
			  (s[i].kind == s[i - 1].kind && s[i].index < s[i - 1].index)))
			return obm_refuse(why, why_len, -EPROTO,
					  "its %s is not at its place in the table", name);
		if (s[i].kind == OBM_WEIGHTS && s[i].index != weights++)
			return obm_refuse(why, why_len, -EPROTO,
					  "its weights section %u is missing", weights - 1);
		have[s[i].kind] = true;
	}
	for (uint32_t kind = 1; kind < OBM_KINDS; kind++)
		if (!have[kind] && kind != OBM_INFO && kind != OBM_LICENCE)
			return obm_refuse(why, why_len, -EPROTO, "its %s section is missing",
					  kinds[kind]);
	if (end != h->file_bytes)
		return obm_refuse(why, why_len, -EPROTO, "%llu bytes follow its last section",
				  (unsigned long long)(h->file_bytes - end));
	return 0;
}

int obm_open_head(struct obm_opened *m, char *why, size_t why_len)
{
	int err = copy_head(&m->o, &m->head, why, why_len);

	if (err)
		return err;
	m->o.header = (const struct obm_header *)m->head;
	m->o.sections = (const struct obm_section *)(m->head + sizeof(struct obm_header));
	return check_sections(m->o.header, m->o.sections, why, why_len);
}

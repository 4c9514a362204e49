/* SPDX-License-Identifier: MIT */
/*
 * All of a container but its weights: each part's checksum before a byte of it is believed, then
 * its rules, which obm_check.c has.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include "obm_open.h"

static int check_size(const struct obm_section *s, uint64_t bytes, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	if (s->bytes == bytes)
		return 0;
	return obm_refuse(why, why_len, -EPROTO, "its %s has %llu bytes; it must have %llu",
			  obm_section_name(s, name), (unsigned long long)s->bytes,
			  (unsigned long long)bytes);
}

static int check_chunks(const struct obm *o, char *why, size_t why_len)
{
	const struct obm_section *s = obm_find(o, OBM_CHUNKS, 0);
	uint64_t covered = s->offset - o->header->header_bytes;
	uint8_t identity[32];
	int err = check_size(s, (covered + OBM_CHUNK - 1) / OBM_CHUNK * 32, why, why_len);

	if (err)
		return err;
	obm_identity(o->header, o->header->header_bytes, o->base + s->offset, s->bytes, identity);
	if (memcmp(identity, o->header->identity, sizeof(identity)))
		return obm_refuse(why, why_len, -EBADMSG,
				  "its identity is not the one that its header and "
				  "chunk table have");
	return 0;
}

int obm_open_parts(struct obm_opened *m, char *why, size_t why_len)
{
	struct obm *o = &m->o;
	const struct obm_section *s;
	double rope[OBM_HEAD_DIM_MAX / 2];
	uint32_t n_weights = 0;
	int err = 0;

	/* All that is small, before a byte of it is believed. */
	for (uint32_t i = 0; i < o->header->n_sections; i++) {
		if (o->sections[i].kind == OBM_WEIGHTS) {
			n_weights++;
			continue;
		}
		err = obm_check_bytes(m, &o->sections[i]);
		if (err)
			return obm_say_bytes(&o->sections[i], err, why, why_len);
	}
	err = check_chunks(o, why, why_len);
	s = obm_find(o, OBM_ARCH, 0);
	if (!err)
		err = check_size(s, sizeof(m->arch), why, why_len);
	if (err)
		return err;
	memcpy(&m->arch, o->base + s->offset, sizeof(m->arch));
	err = obm_check_arch(&m->arch, why, why_len);
	if (err)
		return err;
	if (n_weights != m->arch.layers + 1)
		return obm_refuse(why, why_len, -EPROTO,
				  "it has %u weights sections; %u layers need %u", n_weights,
				  m->arch.layers, m->arch.layers + 1);

	s = obm_find(o, OBM_ROPE, 0);
	err = check_size(s, m->arch.head_dim / 2 * sizeof(double), why, why_len);
	if (err)
		return err;
	memcpy(rope, o->base + s->offset, s->bytes);
	err = obm_check_rope(&m->arch, rope, why, why_len);
	if (err)
		return err;

	for (uint32_t kind = OBM_INFO; !err && kind <= OBM_LICENCE; kind++) {
		s = obm_find(o, kind, 0);
		if (s)
			err = obm_check_text(kind, o->base + s->offset, s->bytes, why, why_len);
	}
	if (err)
		return err;

	s = obm_find(o, OBM_TENSORS, 0);
	if (s->bytes % sizeof(*m->tensors))
		return obm_refuse(why, why_len, -EPROTO,
				  "its tensor table has %llu bytes, which is no multiple "
				  "of %zu",
				  (unsigned long long)s->bytes, sizeof(*m->tensors));
	if (s->bytes / sizeof(*m->tensors) > OBM_TENSORS_MAX)
		return obm_refuse(why, why_len, -EFBIG, "it has %llu tensors; at most %u are taken",
				  (unsigned long long)(s->bytes / sizeof(*m->tensors)),
				  OBM_TENSORS_MAX);
	m->tensors = malloc(s->bytes);
	if (!m->tensors)
		return obm_refuse(why, why_len, -ENOMEM, "no memory for the tensor table");
	memcpy(m->tensors, o->base + s->offset, s->bytes);
	o->arch = &m->arch;
	o->tensors = m->tensors;
	o->n_tensors = (uint32_t)(s->bytes / sizeof(*m->tensors));
	return obm_check_tensors(&m->arch, m->tensors, o->n_tensors, obm_find(o, OBM_WEIGHTS, 0),
				 why, why_len);
}

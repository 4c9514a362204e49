/* SPDX-License-Identifier: MIT */
/*
 * A container: mapped, opened in the steps of obm_open.h, and what a reader asks of it.
 */
#include "obm.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include "obm_open.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model files are used as they lie, and they are little-endian"
#endif

/* ---- open and close -------------------------------------------------------------------------- */

/* m has its bytes, and is the caller's no longer. */
static int open_bytes(struct obm_opened *m, unsigned threads, struct obm **out, char *why,
		      size_t why_len)
{
	int err;

	assert(threads >= 1);
	err = obm_open_head(m, why, why_len);
	if (!err)
		err = obm_open_parts(m, why, why_len);
	if (!err)
		err = obm_open_sums(m, threads, why, why_len);
	m->fd = -1; /* the caller may close it */
	if (err)
		obm_close(&m->o);
	else
		*out = &m->o;
	return err;
}

int obm_open_memory(const void *base, uint64_t bytes, unsigned flags, unsigned threads,
		    struct obm **out, char *why, size_t why_len)
{
	struct obm_opened *m = calloc(1, sizeof(*m));

	if (!m)
		return obm_refuse(why, why_len, -ENOMEM, "no memory");
	m->o.base = base;
	m->o.bytes = bytes;
	m->fd = -1;
	m->flags = flags;
	return open_bytes(m, threads, out, why, why_len);
}

int obm_open(int fd, unsigned flags, unsigned threads, struct obm **out, char *why, size_t why_len)
{
	struct obm_opened *m;
	struct stat st;
	void *base = NULL;

	if (fstat(fd, &st))
		return obm_refuse(why, why_len, -errno, "the file cannot be read: %s",
				  strerror(errno));
	if (!S_ISREG(st.st_mode))
		return obm_refuse(why, why_len, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL,
				  "it is no regular file, so it cannot be mapped");
	/* Nothing cannot be mapped; it is refused with what else is too short. */
	if (st.st_size)
		base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return obm_refuse(why, why_len, -errno, "its %lld bytes cannot be mapped: %s",
				  (long long)st.st_size, strerror(errno));
	/*
	 * A hint, for a file that is not in memory yet: it then comes in pieces of 2 MiB where the file
	 * system can, and is read a quarter faster ever after.
	 */
	if (base)
		(void)madvise(base, (size_t)st.st_size, MADV_HUGEPAGE);
	m = calloc(1, sizeof(*m));
	if (!m) {
		if (base)
			munmap(base, (size_t)st.st_size);
		return obm_refuse(why, why_len, -ENOMEM, "no memory");
	}
	m->o.base = base;
	m->o.bytes = (uint64_t)st.st_size;
	m->mapped = base;
	m->fd = fd;
	m->flags = flags;
	return open_bytes(m, threads, out, why, why_len);
}

struct obm *obm_close(struct obm *o)
{
	struct obm_opened *m = (struct obm_opened *)o; /* its first member */

	if (!o)
		return NULL;
	if (m->mapped)
		munmap((void *)o->base, o->bytes);
	free(m->tensors);
	free(m->head);
	free(m);
	return NULL;
}

/* ---- asking ---------------------------------------------------------------------------------- */

const struct obm_section *obm_find(const struct obm *o, uint32_t kind, uint32_t index)
{
	for (uint32_t i = 0; i < o->header->n_sections; i++)
		if (o->sections[i].kind == kind && o->sections[i].index == index)
			return &o->sections[i];
	return NULL;
}

const void *obm_section(const struct obm *o, uint32_t kind, uint32_t index, uint64_t *bytes)
{
	const struct obm_section *s = obm_find(o, kind, index);

	if (bytes)
		*bytes = s ? s->bytes : 0;
	return s ? o->base + s->offset : NULL;
}

const struct obm_tensor *obm_tensor(const struct obm *o, uint32_t role, uint32_t layer)
{
	uint32_t low = 0, high = o->n_tensors;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		const struct obm_tensor *t = &o->tensors[middle];

		/* OBM_NO_LAYER is -1, and sorts before the layers. */
		if (t->layer + 1 < layer + 1 || (t->layer == layer && t->role < role))
			low = middle + 1;
		else
			high = middle;
	}
	if (low < o->n_tensors && o->tensors[low].role == role && o->tensors[low].layer == layer)
		return &o->tensors[low];
	return NULL;
}

const char *obm_info(const struct obm *o, const char *key, size_t *len)
{
	const struct obm_section *s = obm_find(o, OBM_INFO, 0);
	size_t key_len = strlen(key);
	const char *p, *end, *next;

	if (!s)
		return NULL;
	/* Each line has its end: obm_check_text(). */
	p = (const char *)o->base + s->offset;
	for (end = p + s->bytes; p < end; p = next + 1) {
		next = memchr(p, '\n', (size_t)(end - p));
		if (!next)
			return NULL;
		if ((size_t)(next - p) >= key_len + 2 && !memcmp(p, key, key_len) &&
		    !memcmp(p + key_len, ": ", 2)) {
			*len = (size_t)(next - p) - key_len - 2;
			return p + key_len + 2;
		}
	}
	return NULL;
}

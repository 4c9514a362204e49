/* SPDX-License-Identifier: MIT */
/*
 * The bytes of a section: brought in, hashed, and given back when nobody will need them.
 */
#include <errno.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>
#include "obm_open.h"
#include "obm_xxh3.h"

#define STEP (4u << 20) /* pages are asked for this far ahead of the hash */

static bool is_mapped(const struct obm *o)
{
	return ((const struct obm_opened *)o)->mapped; /* its first member */
}

bool obm_populate(const struct obm *o, const void *data, uint64_t bytes)
{
	uintptr_t start = (uintptr_t)data & ~(uintptr_t)(OBM_ALIGN - 1);

	/* Before Linux 5.14 there is none (EINVAL); the pages come one by one then. */
	return !is_mapped(o) ||
	       !madvise((void *)start, (uintptr_t)data + bytes - start, MADV_POPULATE_READ) ||
	       (errno != EFAULT && errno != ENOMEM);
}

void obm_forget(const struct obm *o, uint64_t offset, uint64_t bytes)
{
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	uintptr_t at = (uintptr_t)o->base + offset;

	/* Only of a mapped file: memory would be lost. */
	if (is_mapped(o) && (((const struct obm_opened *)o)->flags & OBM_FORGET))
		madvise((void *)(at - at % page), bytes + at % page, MADV_DONTNEED);
}

/* Whether a byte of the file is in memory. */
static bool is_cached(int fd, uint64_t offset)
{
	char byte;
	struct iovec v = { &byte, 1 };

	return preadv2(fd, &v, 1, (off_t)offset, RWF_NOWAIT) >= 0 || errno != EAGAIN;
}

/*
 * A range is there to be read: from the disk; or, which costs a tenth, only made sure of: a file is cut
 * from its end. Nothing is asked for ahead: POSIX_FADV_WILLNEED brings a file in pages of 4 KiB, which
 * stay that small, and are read a quarter slower than the large ones that a mapping gets by itself.
 */
static bool bring(const struct obm_opened *m, uint64_t offset, uint64_t n)
{
	const uint8_t *p = m->o.base + offset;

	if (!m->mapped)
		return true;
	if (is_cached(m->fd, offset + n - 1))
		return obm_populate(&m->o, p + n - 1, 1);
	return obm_populate(&m->o, p, n);
}

int obm_check_bytes(const struct obm_opened *m, const struct obm_section *s)
{
	XXH3_state_t *state = XXH3_createState();
	uint64_t end = s->offset + s->bytes;
	uint64_t padded = obm_align(end, OBM_ALIGN);
	uint64_t hash;
	int err = 0;

	if (!state)
		return -ENOMEM;
	XXH3_64bits_reset(state);
	for (uint64_t at = s->offset; !err && at < end; at += STEP) {
		uint64_t n = end - at < STEP ? end - at : STEP;

		err = bring(m, at, n) ? 0 : -EFAULT;
		if (!err)
			XXH3_64bits_update(state, m->o.base + at, n);
		obm_forget(&m->o, at, n);
	}
	hash = XXH3_64bits_digest(state);
	XXH3_freeState(state);
	if (!err && hash != s->xxh3)
		err = -EBADMSG;
	padded = padded < m->o.bytes ? padded : m->o.bytes;
	if (!err && !obm_is_zero(m->o.base + end, padded - end))
		err = -EPROTO;
	return err;
}

int obm_say_bytes(const struct obm_section *s, int err, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	obm_section_name(s, name);
	if (err == -ENOMEM)
		return obm_refuse(why, why_len, err, "no memory to check its %s", name);
	if (err == -EFAULT)
		return obm_refuse(why, why_len, -EBADMSG,
				  "its %s can no longer be read: the file was cut, or its "
				  "disk has a fault",
				  name);
	if (err == -EBADMSG)
		return obm_refuse(why, why_len, -EBADMSG,
				  "its %s is damaged: its checksum is another; get the "
				  "file again",
				  name);
	return obm_refuse(why, why_len, -EPROTO, "something stands between its %s and the next",
			  name);
}

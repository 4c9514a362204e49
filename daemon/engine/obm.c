/* SPDX-License-Identifier: MIT */
/*
 * Opening a container: map, verify, serve. From the outside in, nothing is believed before what stands
 * over it: the header by its magic, version and checksum; the section table by its rules; the small
 * sections by their checksums, then by obm_check.c; at last, by all threads, what takes time: the
 * weights' checksums, the table of rotary positions, the tokenizer's own check.
 *
 * xxh3 is sequential within a section, so sections are the unit of work, the longest first. The layers of
 * a model are equal and many, so the threads end together, unless the embedding alone is longer than
 * a thread's share.
 */
#include "obm.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#include "obm_check.h"
#include "obm_xxh3.h"
#include "tokenizer.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model files are used as they lie, and they are little-endian"
#endif

#define THREADS_MAX  256u
#define STEP	     (4u << 20) /* pages are asked for this far ahead of the hash */

/* What obm_close() gives back; the caller sees the first member. */
struct opened {
	struct obm o;
	uint8_t *head; /* header_bytes of the file */
	struct obm_arch arch;
	struct obm_tensor *tensors;
};

static const char *const kinds[OBM_KINDS] = {
	[OBM_ARCH] = "architecture", [OBM_TENSORS] = "tensor table", [OBM_ROPE] = "rotary table",
	[OBM_TOKENIZER] = "tokenizer", [OBM_INFO] = "information", [OBM_LICENCE] = "licence",
	[OBM_WEIGHTS] = "weights", [OBM_CHUNKS] = "chunk table",
};

static const char *section_name(const struct obm_section *s, char name[OBM_NAME_MAX])
{
	if (s->kind == OBM_WEIGHTS)
		snprintf(name, OBM_NAME_MAX, s->index ? "weights section %u (layer %u)" : "weights section %u",
			 s->index, s->index - 1);
	else
		snprintf(name, OBM_NAME_MAX, "%s section", kinds[s->kind]);
	return name;
}

/* ---- work in parallel --------------------------------------------------------------------------- */

struct call {
	void (*work)(void *arg);
	void *arg;
};

static void *run(void *arg)
{
	struct call *c = arg;

	c->work(c->arg);
	return NULL;
}

unsigned obm_parallel(unsigned threads, void (*work)(void *arg), void *arg)
{
	struct call c = { work, arg };
	pthread_t thread[THREADS_MAX];
	unsigned n = 0;

	/* A thread that cannot be had is work for the others. */
	while (n + 1 < threads && n < THREADS_MAX && !pthread_create(&thread[n], NULL, run, &c))
		n++;
	work(arg);
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
	return n + 1;
}

bool obm_populate(const void *data, uint64_t bytes)
{
	uintptr_t start = (uintptr_t)data & ~(uintptr_t)(OBM_ALIGN - 1);

	/* Before Linux 5.14 there is none (EINVAL); the pages come one by one then. */
	return !madvise((void *)start, (uintptr_t)data + bytes - start, MADV_POPULATE_READ) ||
	       (errno != EFAULT && errno != ENOMEM);
}

/* ---- header and section table --------------------------------------------------------------------- */

static int read_at(int fd, void *data, size_t len, uint64_t offset, char *why, size_t why_len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, (uint8_t *)data + done, len - done, (off_t)(offset + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return obm_refuse(why, why_len, -errno, "the file cannot be read: %s", strerror(errno));
		if (!n)
			return obm_refuse(why, why_len, -EBADMSG, "the file was cut while it was read");
		done += (size_t)n;
	}
	return 0;
}

static int check_magic(const uint8_t magic[8], char *why, size_t why_len)
{
	static const struct {
		const char *bytes;
		size_t len;
		const char *what;
	} known[] = {
		/* What transfers in text mode and channels of seven bits make of ours. */
		{ "\x89OBM\n\x1a\n", 7, "damaged: a transfer in text mode removed carriage returns" },
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
			return obm_refuse(why, why_len, i < 6 ? -EBADMSG : -EPROTO, "the file is %s",
					  known[i].what);
	return obm_refuse(why, why_len, -EPROTO, "the file is no .obm model: it begins with %02x %02x %02x "
			  "%02x %02x %02x %02x %02x", magic[0], magic[1], magic[2], magic[3], magic[4],
			  magic[5], magic[6], magic[7]);
}

static int check_header(const struct obm_header *h, uint64_t file_bytes, char *why, size_t why_len)
{
	if (h->version != OBM_VERSION)
		return obm_refuse(why, why_len, -ENOTSUP, "the file has container version %u; this program "
				  "knows version %u", h->version, OBM_VERSION);
	if (h->contract != OBM_CONTRACT)
		return obm_refuse(why, why_len, -ENOTSUP, "the file is for numeric contract %u; this program "
				  "computes by contract %u, so convert the model again", h->contract, OBM_CONTRACT);
	if (h->file_bytes > file_bytes)
		return obm_refuse(why, why_len, -EBADMSG, "the file is truncated: %llu of its %llu bytes are "
				  "missing", (unsigned long long)(h->file_bytes - file_bytes),
				  (unsigned long long)h->file_bytes);
	if (h->file_bytes < file_bytes)
		return obm_refuse(why, why_len, -EBADMSG, "%llu bytes follow the model's end at %llu",
				  (unsigned long long)(file_bytes - h->file_bytes),
				  (unsigned long long)h->file_bytes);
	if (!h->n_sections)
		return obm_refuse(why, why_len, -EPROTO, "its header has no sections");
	if (h->n_sections > OBM_SECTIONS_MAX)
		return obm_refuse(why, why_len, -EFBIG, "its header has %u sections; at most %u are taken",
				  h->n_sections, OBM_SECTIONS_MAX);
	if (h->header_bytes != obm_align(sizeof(*h) + h->n_sections * sizeof(struct obm_section), OBM_ALIGN))
		return obm_refuse(why, why_len, -EPROTO, "its header says that it has %u bytes, which does not "
				  "fit %u sections", h->header_bytes, h->n_sections);
	if (h->header_bytes > file_bytes)
		return obm_refuse(why, why_len, -EPROTO, "its header of %u bytes does not fit the file's %llu",
				  h->header_bytes, (unsigned long long)file_bytes);
	return 0;
}

static bool is_zero(const uint8_t *p, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

/* The header and table, read once, and only the copy looked at from then on. */
static int read_head(int fd, uint64_t file_bytes, uint8_t **head, char *why, size_t why_len)
{
	struct obm_header h;
	uint8_t *page;
	uint64_t used;
	int err;

	if (file_bytes < sizeof(h.magic))
		return obm_refuse(why, why_len, -EPROTO, "the file has %llu bytes, too few for any model",
				  (unsigned long long)file_bytes);
	memset(&h, 0, sizeof(h));
	err = read_at(fd, &h, file_bytes < sizeof(h) ? file_bytes : sizeof(h), 0, why, why_len);
	if (!err)
		err = check_magic(h.magic, why, why_len);
	if (!err && file_bytes < sizeof(h))
		err = obm_refuse(why, why_len, -EBADMSG, "the file is truncated in its header: it has %llu bytes",
				 (unsigned long long)file_bytes);
	if (!err)
		err = check_header(&h, file_bytes, why, why_len);
	if (err)
		return err;
	page = malloc(h.header_bytes);
	if (!page)
		return obm_refuse(why, why_len, -ENOMEM, "no memory for the header");
	err = read_at(fd, page, h.header_bytes, 0, why, why_len);
	/* The size was checked in the first copy; this one must be the same. */
	if (!err && memcmp(page, &h, sizeof(h)))
		err = obm_refuse(why, why_len, -EBADMSG, "the file was changed while it was read");
	if (!err && obm_header_xxh3(page, h.header_bytes) != h.header_xxh3)
		err = obm_refuse(why, why_len, -EBADMSG, "its header is damaged: its checksum is another");
	used = sizeof(h) + h.n_sections * sizeof(struct obm_section);
	if (!err && !is_zero((const uint8_t *)h.reserved, sizeof(h.reserved)))
		err = obm_refuse(why, why_len, -ENOTSUP, "its header uses reserved words, which this program "
				 "does not know; a newer one may");
	if (!err && !is_zero(page + used, h.header_bytes - used))
		err = obm_refuse(why, why_len, -EPROTO, "something stands between its section table and its "
				 "first section");
	if (err)
		free(page);
	else
		*head = page;
	return err;
}

static int check_section(const struct obm_header *h, const struct obm_section *s, uint64_t *end, char *why,
			 size_t why_len)
{
	char name[OBM_NAME_MAX];

	if (!s->kind || s->kind >= OBM_KINDS)
		return obm_refuse(why, why_len, -ENOTSUP, "it has a section of kind %u, which this program does "
				  "not know; a newer one may", s->kind);
	if (s->index > (s->kind == OBM_WEIGHTS ? OBM_LAYERS_MAX : 0))
		return obm_refuse(why, why_len, -EPROTO, "its %s section has index %u; at most %u can be",
				  kinds[s->kind], s->index, s->kind == OBM_WEIGHTS ? OBM_LAYERS_MAX : 0);
	section_name(s, name);
	if (s->offset % OBM_ALIGN)
		return obm_refuse(why, why_len, -EPROTO, "its %s lies at %llu, which is no multiple of %u", name,
				  (unsigned long long)s->offset, OBM_ALIGN);
	if (s->offset > h->file_bytes || s->bytes > h->file_bytes - s->offset)
		return obm_refuse(why, why_len, -EPROTO, "its %s, %llu bytes at %llu, ends behind the file",
				  name, (unsigned long long)s->bytes, (unsigned long long)s->offset);
	if (!s->bytes)
		return obm_refuse(why, why_len, -EPROTO, "its %s is empty", name);
	if (s->offset < *end)
		return obm_refuse(why, why_len, -EPROTO, "its %s begins at %llu, inside what stands before it",
				  name, (unsigned long long)s->offset);
	if (s->offset != obm_align(*end, OBM_ALIGN))
		return obm_refuse(why, why_len, -EPROTO, "its %s begins at %llu and leaves a gap before it", name,
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
		section_name(&s[i], name);
		if (i && s[i].kind == s[i - 1].kind && s[i].index == s[i - 1].index)
			return obm_refuse(why, why_len, -EPROTO, "its %s is there twice", name);
		if (i && (s[i].kind < s[i - 1].kind ||
			  (s[i].kind == s[i - 1].kind && s[i].index < s[i - 1].index)))
			return obm_refuse(why, why_len, -EPROTO, "its %s is not at its place in the table", name);
		if (s[i].kind == OBM_WEIGHTS && s[i].index != weights++)
			return obm_refuse(why, why_len, -EPROTO, "its weights section %u is missing", weights - 1);
		have[s[i].kind] = true;
	}
	for (uint32_t kind = 1; kind < OBM_KINDS; kind++)
		if (!have[kind] && kind != OBM_INFO && kind != OBM_LICENCE)
			return obm_refuse(why, why_len, -EPROTO, "its %s section is missing", kinds[kind]);
	if (end != h->file_bytes)
		return obm_refuse(why, why_len, -EPROTO, "%llu bytes follow its last section",
				  (unsigned long long)(h->file_bytes - end));
	return 0;
}

/* ---- the parts ----------------------------------------------------------------------------------- */

/* Whether a byte of the file is in memory. */
static bool is_cached(int fd, uint64_t offset)
{
	char byte;
	struct iovec v = { &byte, 1 };

	return preadv2(fd, &v, 1, (off_t)offset, RWF_NOWAIT) >= 0 || errno != EAGAIN;
}

/* What a section's bytes are worth: 0, or the errno without a sentence yet. */
static int check_bytes(const struct obm *o, int fd, const struct obm_section *s)
{
	const uint8_t *p = o->base + s->offset;
	XXH3_state_t *state = XXH3_createState();
	uint64_t end = s->offset + s->bytes;
	uint64_t padded = obm_align(end, OBM_ALIGN);
	uint64_t hash;

	if (!state)
		return -ENOMEM;
	XXH3_64bits_reset(state);
	for (uint64_t at = 0; at < s->bytes; at += STEP) {
		uint64_t n = s->bytes - at < STEP ? s->bytes - at : STEP;

		/*
		 * Read from the disk, the next part too, so that it does not rest while this one is hashed; or,
		 * which costs a tenth, only made sure of: a file is cut from its end.
		 */
		bool cached = is_cached(fd, s->offset + at + n - 1);

		if (!cached)
			posix_fadvise(fd, (off_t)(s->offset + at), (off_t)(n + STEP), POSIX_FADV_WILLNEED);
		if (!obm_populate(cached ? p + at + n - 1 : p + at, cached ? 1 : n)) {
			XXH3_freeState(state);
			return -EFAULT;
		}
		XXH3_64bits_update(state, p + at, n);
	}
	hash = XXH3_64bits_digest(state);
	XXH3_freeState(state);
	if (hash != s->xxh3)
		return -EBADMSG;
	if (padded > o->bytes)
		padded = o->bytes;
	return is_zero(o->base + end, padded - end) ? 0 : -EPROTO;
}

static int say_bytes(const struct obm_section *s, int err, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	section_name(s, name);
	if (err == -ENOMEM)
		return obm_refuse(why, why_len, err, "no memory to check its %s", name);
	if (err == -EFAULT)
		return obm_refuse(why, why_len, -EBADMSG, "its %s can no longer be read: the file was cut, or its "
				  "disk has a fault", name);
	if (err == -EBADMSG)
		return obm_refuse(why, why_len, -EBADMSG, "its %s is damaged: its checksum is another; get the "
				  "file again", name);
	return obm_refuse(why, why_len, -EPROTO, "something stands between its %s and the next", name);
}

static const struct obm_section *find(const struct obm *o, uint32_t kind, uint32_t index)
{
	for (uint32_t i = 0; i < o->header->n_sections; i++)
		if (o->sections[i].kind == kind && o->sections[i].index == index)
			return &o->sections[i];
	return NULL;
}

static int check_size(const struct obm_section *s, uint64_t bytes, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	if (s->bytes == bytes)
		return 0;
	return obm_refuse(why, why_len, -EPROTO, "its %s has %llu bytes; it must have %llu",
			  section_name(s, name), (unsigned long long)s->bytes, (unsigned long long)bytes);
}

static int check_chunks(const struct obm *o, char *why, size_t why_len)
{
	const struct obm_section *s = find(o, OBM_CHUNKS, 0);
	uint64_t covered = s->offset - o->header->header_bytes;
	uint8_t identity[32];
	int err = check_size(s, (covered + OBM_CHUNK - 1) / OBM_CHUNK * 32, why, why_len);

	if (err)
		return err;
	obm_identity(o->header, o->header->header_bytes, o->base + s->offset, s->bytes, identity);
	if (memcmp(identity, o->header->identity, sizeof(identity)))
		return obm_refuse(why, why_len, -EBADMSG, "its identity is not the one that its header and "
				  "chunk table have");
	return 0;
}

static int check_parts(struct opened *m, int fd, char *why, size_t why_len)
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
		err = check_bytes(o, fd, &o->sections[i]);
		if (err)
			return say_bytes(&o->sections[i], err, why, why_len);
	}
	err = check_chunks(o, why, why_len);
	s = find(o, OBM_ARCH, 0);
	if (!err)
		err = check_size(s, sizeof(m->arch), why, why_len);
	if (err)
		return err;
	memcpy(&m->arch, o->base + s->offset, sizeof(m->arch));
	err = obm_check_arch(&m->arch, why, why_len);
	if (err)
		return err;
	if (n_weights != m->arch.layers + 1)
		return obm_refuse(why, why_len, -EPROTO, "it has %u weights sections; %u layers need %u",
				  n_weights, m->arch.layers, m->arch.layers + 1);

	s = find(o, OBM_ROPE, 0);
	err = check_size(s, m->arch.head_dim / 2 * sizeof(double), why, why_len);
	if (err)
		return err;
	memcpy(rope, o->base + s->offset, s->bytes);
	err = obm_check_rope(&m->arch, rope, why, why_len);
	if (err)
		return err;

	for (uint32_t kind = OBM_INFO; !err && kind <= OBM_LICENCE; kind++) {
		s = find(o, kind, 0);
		if (s)
			err = obm_check_text(kind, o->base + s->offset, s->bytes, why, why_len);
	}
	if (err)
		return err;

	s = find(o, OBM_TENSORS, 0);
	if (s->bytes % sizeof(*m->tensors))
		return obm_refuse(why, why_len, -EPROTO, "its tensor table has %llu bytes, which is no multiple "
				  "of %zu", (unsigned long long)s->bytes, sizeof(*m->tensors));
	if (s->bytes / sizeof(*m->tensors) > OBM_TENSORS_MAX)
		return obm_refuse(why, why_len, -EFBIG, "it has %llu tensors; at most %u are taken",
				  (unsigned long long)(s->bytes / sizeof(*m->tensors)), OBM_TENSORS_MAX);
	m->tensors = malloc(s->bytes);
	if (!m->tensors)
		return obm_refuse(why, why_len, -ENOMEM, "no memory for the tensor table");
	memcpy(m->tensors, o->base + s->offset, s->bytes);
	o->arch = &m->arch;
	o->tensors = m->tensors;
	o->n_tensors = (uint32_t)(s->bytes / sizeof(*m->tensors));
	return obm_check_tensors(&m->arch, m->tensors, o->n_tensors, find(o, OBM_WEIGHTS, 0), why, why_len);
}

/* ---- what takes time ------------------------------------------------------------------------------ */

enum task { ROPE, TOKENIZER, WEIGHTS };

struct job {
	enum task task;
	const struct obm_section *s;
	int err;
	char why[256];
};

struct jobs {
	const struct obm *o;
	int fd;
	atomic_uint next; /* each thread takes the next; the join publishes what they found */
	uint32_t n;
	struct job job[OBM_LAYERS_MAX + 3];
};

static int check_rope_table(const struct obm *o, char *why, size_t why_len)
{
	uint8_t digest[32];

	obm_rope_sha256(o->arch, obm_section(o, OBM_ROPE, 0, NULL), digest);
	if (!memcmp(digest, o->arch->rope_sha256, sizeof(digest)))
		return 0;
	return obm_refuse(why, why_len, -EBADMSG, "its rotary table comes out otherwise on this machine than "
			  "where the model was made; either is wrong, so it is not served");
}

static int check_tokenizer(const struct obm *o, const struct obm_section *s, char *why, size_t why_len)
{
	struct tokenizer *t = NULL;
	char inner[200];
	uint32_t n;
	int err = tokenizer_open(o->base + s->offset, s->bytes, &t, inner, sizeof(inner));

	if (err)
		return obm_refuse(why, why_len, err, "its tokenizer: %s", inner);
	n = tokenizer_facts(t)->n_tokens;
	tokenizer_close(t);
	if (n == o->arch->vocab)
		return 0;
	return obm_refuse(why, why_len, -EPROTO, "its tokenizer has %u tokens, but its embedding %u rows; they "
			  "belong to two models", n, o->arch->vocab);
}

/* The floats of a layer: norms and scales are multiplied with everything. */
static int check_floats(const struct obm *o, uint32_t layer, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];

	for (uint32_t i = 0; i < o->n_tensors; i++) {
		const struct obm_tensor *t = &o->tensors[i];
		struct packed_shape shape = obm_shape(t);
		uint64_t n = t->layout ? packed_n_scales(&shape) : t->cols;
		const float *f = (const void *)(o->base + (t->layout ? t->scales : t->offset));
		uint64_t bad;

		if (t->layer != layer || !n)
			continue;
		bad = obm_not_finite(f, n);
		if (bad < n)
			return obm_refuse(why, why_len, -EPROTO, "%s %llu of tensor %s is no finite number",
					  t->layout ? "scale" : "value", (unsigned long long)bad,
					  obm_name(t->role, t->layer, name));
	}
	return 0;
}

static void work(void *arg)
{
	struct jobs *j = arg;
	unsigned i;

	while ((i = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed)) < j->n) {
		struct job *job = &j->job[i];

		switch (job->task) {
		case ROPE:
			job->err = check_rope_table(j->o, job->why, sizeof(job->why));
			break;
		case TOKENIZER:
			job->err = check_tokenizer(j->o, job->s, job->why, sizeof(job->why));
			break;
		case WEIGHTS:
			job->err = check_bytes(j->o, j->fd, job->s);
			if (job->err)
				job->err = say_bytes(job->s, job->err, job->why, sizeof(job->why));
			else
				job->err = check_floats(j->o, job->s->index - 1, job->why, sizeof(job->why));
			break;
		}
	}
}

/* The longest first, and by their order in the file those that are equal. */
static int by_length(const void *a, const void *b)
{
	const struct obm_section *s = ((const struct job *)a)->s, *t = ((const struct job *)b)->s;

	if (s->bytes != t->bytes)
		return s->bytes < t->bytes ? 1 : -1;
	return s->index < t->index ? -1 : 1;
}

static int check_all(const struct obm *o, int fd, unsigned flags, unsigned threads, char *why, size_t why_len)
{
	struct jobs *j = calloc(1, sizeof(*j));
	int err = 0;

	if (!j)
		return obm_refuse(why, why_len, -ENOMEM, "no memory to check the file");
	j->o = o;
	j->fd = fd;
	j->job[j->n++] = (struct job){ .task = ROPE };
	j->job[j->n++] = (struct job){ .task = TOKENIZER, .s = find(o, OBM_TOKENIZER, 0) };
	if (!(flags & OBM_UNCHECKED)) {
		const struct obm_section *first = find(o, OBM_WEIGHTS, 0);

		for (uint32_t i = 0; i <= o->arch->layers; i++)
			j->job[j->n++] = (struct job){ .task = WEIGHTS, .s = &first[i] };
		qsort(j->job + 2, j->n - 2, sizeof(j->job[0]), by_length);
	}
	obm_parallel(threads < j->n ? threads : j->n, work, j);
	/* Damage is what to hear of first. */
	for (uint32_t i = 0; i < j->n; i++)
		if (j->job[i].err && (!err || (err != -EBADMSG && j->job[i].err == -EBADMSG)))
			err = obm_refuse(why, why_len, j->job[i].err, "%s", j->job[i].why);
	free(j);
	return err;
}

/* ---- open and close -------------------------------------------------------------------------------- */

int obm_open(int fd, unsigned flags, unsigned threads, struct obm **out, char *why, size_t why_len)
{
	struct opened *m;
	struct stat st;
	void *base;
	int err;

	assert(threads >= 1);
	if (fstat(fd, &st))
		return obm_refuse(why, why_len, -errno, "the file cannot be read: %s", strerror(errno));
	if (!S_ISREG(st.st_mode))
		return obm_refuse(why, why_len, S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL,
				  "it is no regular file, so it cannot be mapped");
	m = calloc(1, sizeof(*m));
	if (!m)
		return obm_refuse(why, why_len, -ENOMEM, "no memory");
	err = read_head(fd, (uint64_t)st.st_size, &m->head, why, why_len);
	if (err)
		goto out;
	assert(m->head);
	m->o.header = (const struct obm_header *)m->head;
	m->o.sections = (const struct obm_section *)(m->head + sizeof(struct obm_header));
	err = check_sections(m->o.header, m->o.sections, why, why_len);
	if (err)
		goto out;
	base = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED) {
		err = obm_refuse(why, why_len, -errno, "its %lld bytes cannot be mapped: %s",
				 (long long)st.st_size, strerror(errno));
		goto out;
	}
	m->o.base = base;
	m->o.bytes = (uint64_t)st.st_size;
	err = check_parts(m, fd, why, why_len);
	assert(err || m->o.arch);
	if (!err)
		err = check_all(&m->o, fd, flags, threads, why, why_len);
out:
	if (err)
		obm_close(&m->o);
	else
		*out = &m->o;
	return err;
}

struct obm *obm_close(struct obm *o)
{
	struct opened *m = (struct opened *)o; /* its first member */

	if (!o)
		return NULL;
	if (o->base)
		munmap((void *)o->base, o->bytes);
	free(m->tensors);
	free(m->head);
	free(m);
	return NULL;
}

const void *obm_section(const struct obm *o, uint32_t kind, uint32_t index, uint64_t *bytes)
{
	const struct obm_section *s = find(o, kind, index);

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
	const struct obm_section *s = find(o, OBM_INFO, 0);
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

/* SPDX-License-Identifier: MIT */
/*
 * Writing a container front to back. Shapes are known before the first weight is, so every offset is, and
 * the section table lacks only checksums when it is placed. What is written goes through chunk buffers:
 * a full one goes to the file and to a thread that hashes it, two at a time where it can, so SHA-256
 * costs the conversion nothing as long as that thread keeps up with it; when it does not, the queue
 * is full and the conversion waits. Memory is the queue, a tile of rows and one matrix' scales.
 *
 * The writer is judged like a stranger: what it is going to write must pass obm_check.c first.
 */
#include "obm_write.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include "mapped.h"
#include "obm_check.h"
#include "obm_xxh3.h"
#include "sha256.h"
#include "tokenizer.h"

#define BUFFERS 8u

/* Chunks on their way to their hash. All under lock but the buffers, which belong to one side each. */
struct hasher {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t filled, emptied;
	bool running, closed;
	uint64_t in, out;	/* chunks put in, chunks done: the writer fills in % BUFFERS */
	uint8_t *buffer;	/* BUFFERS chunks */
	uint32_t bytes[BUFFERS];
	uint8_t *digests;	/* 32 bytes each: the OBM_CHUNKS section */
};

struct obm_writer {
	struct output *out;
	struct obm_header header;
	struct obm_section sections[OBM_SECTIONS_MAX];
	struct obm_arch arch;
	struct obm_tensor *tensors;
	uint32_t n_tensors;
	uint32_t tensor, row;	/* wanted next */
	struct obm_section *weights; /* index 0 */
	XXH3_state_t *xxh3;	/* of the section that is being written */
	uint64_t at;		/* in the file */
	uint32_t n_chunk;	/* bytes in the chunk that is being filled */
	uint8_t *tile;		/* of the largest tensor */
	float *scales;		/* [group][row] of the present one */
	bool failed;
	struct hasher hash;
};

/* ---- the hashing thread ----------------------------------------------------------------------------- */

static void hash_some(struct hasher *h, uint64_t from, uint64_t n)
{
	const uint8_t *a = h->buffer + from % BUFFERS * OBM_CHUNK;
	const uint8_t *b = h->buffer + (from + 1) % BUFFERS * OBM_CHUNK;

	if (n == 2)
		sha256_pair(a, b, OBM_CHUNK, h->digests + from * 32, h->digests + (from + 1) * 32);
	else
		sha256(a, h->bytes[from % BUFFERS], h->digests + from * 32);
}

static void *hash_thread(void *arg)
{
	struct hasher *h = arg;
	uint64_t n;

	pthread_mutex_lock(&h->lock);
	for (;;) {
		while (h->in == h->out && !h->closed)
			pthread_cond_wait(&h->filled, &h->lock);
		if (h->in == h->out)
			break;
		/* Only the last chunk is shorter, and it goes alone. */
		n = h->in - h->out >= 2 && h->bytes[(h->out + 1) % BUFFERS] == OBM_CHUNK ? 2 : 1;
		pthread_mutex_unlock(&h->lock);
		hash_some(h, h->out, n);
		pthread_mutex_lock(&h->lock);
		h->out += n;
		pthread_cond_signal(&h->emptied);
	}
	pthread_mutex_unlock(&h->lock);
	return NULL;
}

static int hasher_init(struct hasher *h, uint64_t chunks)
{
	int err;

	h->digests = malloc(chunks * 32);
	h->buffer = malloc(BUFFERS * OBM_CHUNK);
	if (!h->digests || !h->buffer)
		return -ENOMEM;
	pthread_mutex_init(&h->lock, NULL);
	pthread_cond_init(&h->filled, NULL);
	pthread_cond_init(&h->emptied, NULL);
	err = pthread_create(&h->thread, NULL, hash_thread, h);
	h->running = !err;
	return -err;
}

/* Lets it finish what it has. */
static void hasher_join(struct hasher *h)
{
	if (!h->running)
		return;
	pthread_mutex_lock(&h->lock);
	h->closed = true;
	pthread_cond_signal(&h->filled);
	pthread_mutex_unlock(&h->lock);
	pthread_join(h->thread, NULL);
	h->running = false;
}

static void hasher_deinit(struct hasher *h)
{
	hasher_join(h);
	free(h->buffer);
	free(h->digests);
}

/* The chunk that was filled is handed over; waits until there is one to be filled. */
static void hasher_push(struct hasher *h, uint32_t bytes)
{
	pthread_mutex_lock(&h->lock);
	h->bytes[h->in % BUFFERS] = bytes;
	h->in++;
	pthread_cond_signal(&h->filled);
	while (h->in - h->out == BUFFERS)
		pthread_cond_wait(&h->emptied, &h->lock);
	pthread_mutex_unlock(&h->lock);
}

/* ---- bytes ------------------------------------------------------------------------------------------ */

static int flush_chunk(struct obm_writer *w, char *why, size_t why_len)
{
	/* in is this thread's own to write, so it may be read without the lock. */
	const uint8_t *chunk = w->hash.buffer + w->hash.in % BUFFERS * OBM_CHUNK;
	int err;

	if (!w->n_chunk)
		return 0;
	err = output_write(w->out, chunk, w->n_chunk, why, why_len);
	if (err)
		return err;
	hasher_push(&w->hash, w->n_chunk);
	w->n_chunk = 0;
	return 0;
}

/* Bytes behind the header: into the chunk. NULL: zeros. */
static int put_plain(struct obm_writer *w, const void *data, uint64_t len, char *why, size_t why_len)
{
	const uint8_t *p = data;
	int err = 0;

	while (len && !err) {
		uint8_t *chunk = w->hash.buffer + w->hash.in % BUFFERS * OBM_CHUNK;
		uint32_t n = OBM_CHUNK - w->n_chunk;

		n = len < n ? (uint32_t)len : n;
		if (p)
			memcpy(chunk + w->n_chunk, p, n);
		else
			memset(chunk + w->n_chunk, 0, n);
		p = p ? p + n : NULL;
		w->n_chunk += n;
		w->at += n;
		len -= n;
		if (w->n_chunk == OBM_CHUNK)
			err = flush_chunk(w, why, why_len);
	}
	return err;
}

/* Bytes of a section. */
static int put(struct obm_writer *w, const void *data, uint64_t len, char *why, size_t why_len)
{
	XXH3_64bits_update(w->xxh3, data, len);
	return put_plain(w, data, len, why, why_len);
}

/* Zeros of a section, up to a place. */
static int put_zeros(struct obm_writer *w, uint64_t to, char *why, size_t why_len)
{
	static const uint8_t zeros[OBM_TENSOR_ALIGN];

	assert(to >= w->at && to - w->at <= sizeof(zeros));
	return put(w, zeros, to - w->at, why, why_len);
}

static int begin_section(struct obm_writer *w, const struct obm_section *s, char *why, size_t why_len)
{
	XXH3_64bits_reset(w->xxh3);
	return put_plain(w, NULL, s->offset - w->at, why, why_len);
}

static void end_section(struct obm_writer *w, struct obm_section *s)
{
	assert(w->at == s->offset + s->bytes);
	s->xxh3 = XXH3_64bits_digest(w->xxh3);
}

/* ---- placing ---------------------------------------------------------------------------------------- */

static int by_place(const void *a, const void *b)
{
	const struct obm_tensor *s = a, *t = b;

	if (s->layer != t->layer) /* OBM_NO_LAYER is -1 */
		return s->layer + 1 < t->layer + 1 ? -1 : 1;
	return s->role < t->role ? -1 : s->role > t->role;
}

static int add_section(struct obm_writer *w, uint32_t kind, uint32_t index, uint64_t bytes)
{
	uint32_t n = w->header.n_sections++;

	w->sections[n] = (struct obm_section){ .kind = kind, .index = index, .offset = w->at, .bytes = bytes };
	return __builtin_add_overflow(obm_align(w->at, OBM_ALIGN), obm_align(bytes, OBM_ALIGN), &w->at) ?
	       -EFBIG : 0;
}

/* The tensors of a layer, from place at on; returns their end. Their shapes were checked. */
static uint64_t place_layer(struct obm_writer *w, uint32_t layer, uint64_t at)
{
	for (uint32_t i = 0; i < w->n_tensors; i++) {
		struct obm_tensor *t = &w->tensors[i];
		struct packed_shape shape = obm_shape(t);
		uint64_t n_scales = t->layout ? packed_n_scales(&shape) : 0;

		if (t->layer != layer)
			continue;
		t->offset = at = obm_align(at, OBM_TENSOR_ALIGN);
		t->bytes = t->layout ? packed_bytes(&shape) : (uint64_t)t->cols * sizeof(float);
		at += t->bytes;
		if (n_scales) {
			t->scales = at = obm_align(at, OBM_TENSOR_ALIGN);
			at += n_scales * sizeof(float);
		}
	}
	return at;
}

/*
 * Sizes of matrices are below 2^45 and of tensors there are less than 2^14, so no sum here passes
 * 2^60, if packed_check() has passed them, whose bounds are these.
 */
static int place(struct obm_writer *w, const struct obm_plan *p, char *why, size_t why_len)
{
	uint32_t n = 6 + w->arch.layers + 1 + 1 - !p->info - !p->licence;
	uint64_t chunks;

	w->header.header_bytes = (uint32_t)obm_align(sizeof(w->header) + n * sizeof(w->sections[0]), OBM_ALIGN);
	w->at = w->header.header_bytes;
	add_section(w, OBM_ARCH, 0, sizeof(w->arch));
	add_section(w, OBM_TENSORS, 0, w->n_tensors * sizeof(*w->tensors));
	add_section(w, OBM_ROPE, 0, w->arch.head_dim / 2 * sizeof(double));
	if (add_section(w, OBM_TOKENIZER, 0, p->tokenizer_bytes))
		return fail(why, why_len, -EFBIG, "the tokenizer has %llu bytes, which is no size",
			    (unsigned long long)p->tokenizer_bytes);
	if (p->info)
		add_section(w, OBM_INFO, 0, strlen(p->info));
	if (p->licence)
		add_section(w, OBM_LICENCE, 0, strlen(p->licence));
	w->weights = &w->sections[w->header.n_sections];
	for (uint32_t i = 0; i <= w->arch.layers; i++)
		add_section(w, OBM_WEIGHTS, i, place_layer(w, i - 1, w->at) - w->at);
	chunks = (w->at - w->header.header_bytes + OBM_CHUNK - 1) / OBM_CHUNK;
	add_section(w, OBM_CHUNKS, 0, chunks * 32);
	assert(w->header.n_sections == n);
	w->header.file_bytes = w->sections[n - 1].offset + chunks * 32;
	return obm_check_tensors(&w->arch, w->tensors, w->n_tensors, w->weights, why, why_len);
}

/* ---- the order of calls ------------------------------------------------------------------------------ */

static int check_tokenizer(const struct obm_plan *p, char *why, size_t why_len)
{
	struct tokenizer *t = NULL;
	char inner[200];
	uint32_t n;
	int err;

	err = tokenizer_open(p->tokenizer, p->tokenizer_bytes, &t, inner, sizeof(inner));
	if (err)
		return fail(why, why_len, err, "the tokenizer: %s", inner);
	n = tokenizer_facts(t)->n_tokens;
	tokenizer_close(t);
	if (n == p->arch.vocab)
		return 0;
	return fail(why, why_len, -EPROTO, "the tokenizer has %u tokens, but the embedding %u rows; they belong "
		    "to two models", n, p->arch.vocab);
}

static int check_plan(struct obm_writer *w, const struct obm_plan *p, char *why, size_t why_len)
{
	char name[OBM_NAME_MAX];
	int err = obm_check_arch(&p->arch, why, why_len);

	if (!err)
		err = obm_check_rope(&p->arch, p->rope, why, why_len);
	if (!err && p->info)
		err = obm_check_text(OBM_INFO, p->info, strlen(p->info), why, why_len);
	if (!err && p->licence)
		err = obm_check_text(OBM_LICENCE, p->licence, strlen(p->licence), why, why_len);
	if (!err)
		err = check_tokenizer(p, why, why_len);
	if (err)
		return err;
	if (!p->n_tensors || p->n_tensors > OBM_TENSORS_MAX)
		return fail(why, why_len, p->n_tensors ? -EFBIG : -EPROTO, "there are %u tensors; 1 to %u can be",
			    p->n_tensors, OBM_TENSORS_MAX);
	/* Placing multiplies, so before it each shape must be one. */
	for (uint32_t i = 0; i < p->n_tensors; i++) {
		struct packed_shape shape = obm_shape(&p->tensors[i]);
		const char *bad = shape.layout ? packed_check(&shape) : NULL;

		if (bad)
			return fail(why, why_len, -EPROTO, "tensor %s: %s",
				    obm_name(p->tensors[i].role, p->tensors[i].layer, name), bad);
	}
	w->arch = p->arch;
	obm_rope_sha256(&w->arch, p->rope, w->arch.rope_sha256);
	return 0;
}

static int alloc(struct obm_writer *w, char *why, size_t why_len)
{
	uint64_t chunks = w->sections[w->header.n_sections - 1].bytes / 32;
	uint64_t tile = 0, scales = 0;
	int err;

	for (uint32_t i = 0; i < w->n_tensors; i++) {
		struct packed_shape shape = obm_shape(&w->tensors[i]);
		uint64_t n = shape.layout ? packed_bytes(&shape) / packed_tiles(&shape) : 0;
		uint64_t m = shape.layout ? packed_n_scales(&shape) * sizeof(float) : 0;

		tile = n > tile ? n : tile;
		scales = m > scales ? m : scales;
	}
	w->tile = aligned_alloc(64, obm_align(tile + 1, 64));
	w->scales = malloc(scales + 1);
	w->xxh3 = XXH3_createState();
	if (!w->tile || !w->scales || !w->xxh3)
		return fail(why, why_len, -ENOMEM, "no memory to write the model");
	err = hasher_init(&w->hash, chunks);
	return err ? fail(why, why_len, err, "the model cannot be hashed: %s", strerror(-err)) : 0;
}

/* All that stands before the weights. */
static int write_front(struct obm_writer *w, const struct obm_plan *p, char *why, size_t why_len)
{
	const struct {
		uint32_t kind;
		const void *data;
	} parts[] = {
		{ OBM_ARCH, &w->arch },	     { OBM_TENSORS, w->tensors }, { OBM_ROPE, p->rope },
		{ OBM_TOKENIZER, p->tokenizer }, { OBM_INFO, p->info },	  { OBM_LICENCE, p->licence },
	};
	static const uint8_t zeros[OBM_HEADER_MAX];
	struct obm_section *s = w->sections;
	int err = output_write(w->out, zeros, w->header.header_bytes, why, why_len);

	w->at = w->header.header_bytes;
	for (size_t i = 0; !err && i < sizeof(parts) / sizeof(parts[0]); i++) {
		if (!parts[i].data)
			continue;
		assert(s->kind == parts[i].kind);
		err = begin_section(w, s, why, why_len);
		if (!err)
			err = put(w, parts[i].data, s->bytes, why, why_len);
		if (!err)
			end_section(w, s++);
	}
	return err;
}

int obm_writer_new(const struct obm_plan *plan, struct output *out, struct obm_writer **w, char *why,
		   size_t why_len)
{
	struct obm_writer *n = calloc(1, sizeof(*n));
	int err;

	assert(!output_bytes(out));
	if (!n)
		return fail(why, why_len, -ENOMEM, "no memory to write the model");
	n->out = out;
	memcpy(n->header.magic, OBM_MAGIC, sizeof(n->header.magic));
	n->header.version = OBM_VERSION;
	n->header.contract = OBM_CONTRACT;
	err = check_plan(n, plan, why, why_len);
	if (err)
		goto out;
	n->tensors = calloc(plan->n_tensors, sizeof(*n->tensors));
	if (!n->tensors) {
		err = fail(why, why_len, -ENOMEM, "no memory to write the model");
		goto out;
	}
	n->n_tensors = plan->n_tensors;
	for (uint32_t i = 0; i < plan->n_tensors; i++) {
		const struct obm_tensor *t = &plan->tensors[i];

		n->tensors[i] = (struct obm_tensor){ .role = t->role, .layer = t->layer, .layout = t->layout,
						     .rows = t->rows, .cols = t->cols, .groups = t->groups };
	}
	qsort(n->tensors, n->n_tensors, sizeof(*n->tensors), by_place);
	err = place(n, plan, why, why_len);
	if (!err)
		err = output_reserve(out, n->header.file_bytes, why, why_len);
	if (!err)
		err = alloc(n, why, why_len);
	if (!err)
		err = write_front(n, plan, why, why_len);
out:
	if (err)
		obm_writer_free(n);
	else
		*w = n;
	return err;
}

struct obm_writer *obm_writer_free(struct obm_writer *w)
{
	if (!w)
		return NULL;
	hasher_deinit(&w->hash);
	XXH3_freeState(w->xxh3);
	free(w->tensors);
	free(w->tile);
	free(w->scales);
	free(w);
	return NULL;
}

const struct obm_tensor *obm_writer_tensor(const struct obm_writer *w)
{
	return w->tensor < w->n_tensors ? &w->tensors[w->tensor] : NULL;
}

static int refuse_value(const struct obm_tensor *t, const char *what, uint64_t row, uint64_t col, char *why,
			size_t why_len)
{
	char name[OBM_NAME_MAX];

	return fail(why, why_len, -EPROTO, "%s %llu of row %llu of tensor %s is no finite number", what,
		    (unsigned long long)col, (unsigned long long)row, obm_name(t->role, t->layer, name));
}

/* Halves that overflowed on their way. */
static int check_halves(const struct obm_tensor *t, const uint16_t *halves, uint32_t row, uint32_t n,
			char *why, size_t why_len)
{
	uint16_t top = t->layout == PACKED_F16 ? 0x7c00 : 0x7f80;

	for (uint64_t i = 0; i < (uint64_t)n * t->cols; i++)
		if ((halves[i] & top) == top)
			return refuse_value(t, "value", row + i / t->cols, i % t->cols, why, why_len);
	return 0;
}

/* Rows' scales to their places in [group][row]. */
static int keep_scales(struct obm_writer *w, const struct obm_tensor *t, const float *scales, uint32_t n,
		       char *why, size_t why_len)
{
	uint64_t stride = obm_align(t->rows, PACKED_ROWS);

	for (uint32_t r = 0; r < n; r++)
		for (uint32_t g = 0; g < t->groups; g++) {
			float s = scales[(uint64_t)r * t->groups + g];

			if (!isfinite(s))
				return refuse_value(t, "scale", w->row + r, g, why, why_len);
			w->scales[g * stride + w->row + r] = s;
		}
	return 0;
}

static int put_floats(struct obm_writer *w, const struct obm_tensor *t, const float *f, char *why,
		      size_t why_len)
{
	uint64_t bad = obm_not_finite(f, t->cols);

	if (bad < t->cols)
		return refuse_value(t, "value", 0, bad, why, why_len);
	return put(w, f, t->bytes, why, why_len);
}

static int put_tile(struct obm_writer *w, const struct obm_tensor *t, const void *rows, const float *scales,
		    uint32_t n, char *why, size_t why_len)
{
	struct packed_shape shape = obm_shape(t);
	int err = 0;

	if (t->layout == PACKED_F16 || t->layout == PACKED_BF16)
		err = check_halves(t, rows, w->row, n, why, why_len);
	if (!err && t->scales) {
		if (!w->row)
			memset(w->scales, 0, packed_n_scales(&shape) * sizeof(float));
		err = keep_scales(w, t, scales, n, why, why_len);
	}
	if (err)
		return err;
	packed_tile(&shape, rows, n, w->tile);
	return put(w, w->tile, t->bytes / packed_tiles(&shape), why, why_len);
}

static int put_scales(struct obm_writer *w, const struct obm_tensor *t, char *why, size_t why_len)
{
	struct packed_shape shape = obm_shape(t);
	int err = put_zeros(w, t->scales, why, why_len);

	return err ? err : put(w, w->scales, packed_n_scales(&shape) * sizeof(float), why, why_len);
}

int obm_writer_rows(struct obm_writer *w, const void *rows, const float *scales, uint32_t n, char *why,
		    size_t why_len)
{
	const struct obm_tensor *t = obm_writer_tensor(w);
	struct obm_section *s;
	int err = 0;

	assert(!w->failed && t && (!t->scales || scales));
	s = &w->weights[t->layer + 1];
	assert(n == (t->rows - w->row < PACKED_ROWS ? t->rows - w->row : PACKED_ROWS));
	if (!w->row)
		err = t->offset == s->offset ? begin_section(w, s, why, why_len) :
					       put_zeros(w, t->offset, why, why_len);
	if (!err)
		err = t->layout ? put_tile(w, t, rows, scales, n, why, why_len) :
				  put_floats(w, t, rows, why, why_len);
	w->row += n;
	if (!err && w->row == t->rows) {
		if (t->scales)
			err = put_scales(w, t, why, why_len);
		w->row = 0;
		w->tensor++;
		if (!err && (w->tensor == w->n_tensors || t[1].layer != t->layer))
			end_section(w, s);
	}
	w->failed = err;
	return err;
}

int obm_writer_finish(struct obm_writer *w, uint8_t identity[32], char *why, size_t why_len)
{
	struct obm_section *s = &w->sections[w->header.n_sections - 1];
	uint8_t page[OBM_HEADER_MAX] = { 0 };
	int err;

	assert(!w->failed && w->tensor == w->n_tensors);
	err = put_plain(w, NULL, s->offset - w->at, why, why_len);
	if (!err)
		err = flush_chunk(w, why, why_len);
	hasher_join(&w->hash);
	w->failed = true; /* nothing more comes */
	if (err)
		return err;
	assert(w->hash.out * 32 == s->bytes);
	s->xxh3 = XXH3_64bits(w->hash.digests, s->bytes);
	err = output_write(w->out, w->hash.digests, s->bytes, why, why_len);
	if (err)
		return err;

	memcpy(page, &w->header, sizeof(w->header));
	memcpy(page + sizeof(w->header), w->sections, w->header.n_sections * sizeof(*s));
	obm_identity(page, w->header.header_bytes, w->hash.digests, s->bytes, w->header.identity);
	memcpy(page, &w->header, sizeof(w->header));
	w->header.header_xxh3 = obm_header_xxh3(page, w->header.header_bytes);
	memcpy(page, &w->header, sizeof(w->header));
	err = output_write_at(w->out, 0, page, w->header.header_bytes, why, why_len);
	if (!err)
		memcpy(identity, w->header.identity, sizeof(w->header.identity));
	return err;
}

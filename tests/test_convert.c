/* SPDX-License-Identifier: MIT */
/*
 * The conversion, from a source in memory that can have any form: if it went wrong, a model would
 * answer almost as it should, which nobody notices until it matters. Every expectation is computed
 * here anew, from the model in lib_tiny.h and the numeric contract, not by the converter's code;
 * files are read back by the container's reader.
 */
#include <assert.h>
#include <check.h>
#undef fail /* an old name in it; mapped.h has its own */
#include <errno.h>
#include <fcntl.h>
#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "convert.h"
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "mapped.h"
#include "packed.h"
#include "rope.h"
#include "served.h"

/* ---- allocations that fail ----------------------------------------------------------------- */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define HAVE_OWN_MALLOC 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || \
	__has_feature(memory_sanitizer)
#define HAVE_OWN_MALLOC 0
#endif
#endif
#ifndef HAVE_OWN_MALLOC
#define HAVE_OWN_MALLOC 1
#endif

static long allocations;	/* since it was set to 0 */
static long fail_at = -1;	/* this one fails, counted from 0; -1: none */
static long outstanding;

#if HAVE_OWN_MALLOC
/* glibc's own, under the names that it keeps for those who replace the public ones. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);
extern void __libc_free(void *p);

#define PUBLIC __attribute__((visibility("default")))

static int refused(void)
{
	long n = __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED);

	if (n == fail_at) {
		errno = ENOMEM;
		return 1;
	}
	return 0;
}

static void *counted(void *p)
{
	if (p)
		__atomic_fetch_add(&outstanding, 1, __ATOMIC_RELAXED);
	return p;
}

PUBLIC void *malloc(size_t n)
{
	return refused() ? NULL : counted(__libc_malloc(n));
}

PUBLIC void *calloc(size_t n, size_t size)
{
	return refused() ? NULL : counted(__libc_calloc(n, size));
}

PUBLIC void *realloc(void *p, size_t n)
{
	if (refused())
		return NULL;
	return p ? __libc_realloc(p, n) : counted(__libc_realloc(p, n));
}

PUBLIC void *aligned_alloc(size_t align, size_t n)
{
	return refused() ? NULL : counted(__libc_memalign(align, n));
}

PUBLIC void free(void *p)
{
	if (p)
		__atomic_fetch_sub(&outstanding, 1, __ATOMIC_RELAXED);
	__libc_free(p);
}
#endif

/* ---- a source in memory -------------------------------------------------------------------- */

struct values {
	const int8_t *codes;
	const float *floats, *scales;
};

struct fake {
	struct source s;
	struct tiny t;
	struct values values[256];
	float *owned[256]; /* master weights, by tensor; NULL where there are none */
	long reads, fail_read; /* this read fails, counted from 0; -1: none */
	unsigned slow_us; /* each read takes so long */
	long dones;
};

static uint64_t seed(void)
{
	static uint64_t s;
	const char *given = getenv("ONEBIT_SEED");

	if (!s) {
		s = given ? strtoull(given, NULL, 0)
			  : (uint64_t)time(NULL) * 1000003u + (uint64_t)getpid();
		fprintf(stderr, "test_convert: ONEBIT_SEED=%llu\n", (unsigned long long)s);
		fflush(stdout);
	}
	return s;
}

static unsigned scaled(unsigned n)
{
	const char *percent = getenv("ONEBIT_SCALE");
	unsigned v = percent ? (unsigned)((uint64_t)n * strtoull(percent, NULL, 10) / 100) : n;

	return v ? v : 1;
}

/* The row of the served order that the file has at this place. */
static uint32_t served_row(const struct fake *f, const struct source_tensor *t, uint32_t row)
{
	uint32_t hd = f->t.head_dim;

	if (f->s.qk != SOURCE_QK_PAIRS || (t->role != OBM_Q && t->role != OBM_K))
		return row;
	/* Row 2d + l of a head in the file is row l * hd / 2 + d as served. */
	return row / hd * hd + row % hd % 2 * (hd / 2) + row % hd / 2;
}

static int may_read(struct fake *f, const struct source_tensor *t, uint32_t row0, uint32_t n,
		    char *why, size_t why_len)
{
	struct timespec ts = { .tv_nsec = f->slow_us * 1000L };

	/* In another thread, and while memory fails: Check's own assertions can do neither. */
	assert(n > 0 && (uint64_t)row0 + n <= t->rows);
	if (f->slow_us)
		nanosleep(&ts, NULL);
	if (f->reads++ == f->fail_read)
		return fail(why, why_len, -EPROTO, "read %ld failed, as it was told", f->fail_read);
	return 0;
}

static int fake_codes(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		      int8_t *codes, float *scales, char *why, size_t why_len)
{
	struct fake *f = (struct fake *)s;
	const struct values *v = t->private_data;
	int err = may_read(f, t, row0, n, why, why_len);

	assert(t->form == SOURCE_TERNARY || t->form == SOURCE_INT8);
	for (uint32_t i = 0; i < n && !err; i++) {
		size_t row = served_row(f, t, row0 + i);

		memcpy(codes + (size_t)i * t->cols, v->codes + row * t->cols, t->cols);
		if (scales)
			memcpy(scales + (size_t)i * t->groups, v->scales + row * t->groups,
			       t->groups * sizeof(float));
	}
	return err;
}

static int fake_floats(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
		       float *floats, char *why, size_t why_len)
{
	struct fake *f = (struct fake *)s;
	const struct values *v = t->private_data;
	int err = may_read(f, t, row0, n, why, why_len);

	assert(t->form != SOURCE_TERNARY);
	for (uint32_t i = 0; i < n && !err; i++) {
		size_t row = served_row(f, t, row0 + i);

		for (uint32_t c = 0; c < t->cols; c++)
			floats[(size_t)i * t->cols + c] =
				v->floats ? v->floats[row * t->cols + c] :
					    (float)v->codes[row * t->cols + c] * v->scales[row];
	}
	return err;
}

static void fake_done(struct source *s, const struct source_tensor *t)
{
	(void)t;
	((struct fake *)s)->dones++;
}

static void fake_close(struct source *s)
{
	(void)s;
}

static const struct source_ops fake_ops = { fake_codes, fake_floats, fake_done, fake_close };

static struct vocab *tiny_vocab(const struct tiny *t)
{
	struct vocab *v = vocab_new();

	ck_assert_ptr_nonnull(v);
	v->kind = VOCAB_BYTES;
	v->rule = VOCAB_RULE_LLAMA3;
	v->bos = t->bos;
	v->eos = t->eos;
	v->unk = VOCAB_NO_ID;
	strcpy(v->chat, "raw");
	for (uint32_t i = 0; i < t->vocab; i++)
		ck_assert_int_eq(vocab_add(v, t->token[i], t->token_len[i],
					   i < t->vocab - 4 ? VOCAB_NORMAL : VOCAB_SPECIAL, 0), 0);
	for (uint32_t i = 0; i < t->n_words; i++)
		ck_assert_int_eq(vocab_merge(v, t->merge[i].a, t->merge[i].b, t->merge[i].merged),
				 0);
	ck_assert_int_eq(vocab_stop(v, t->eos), 0);
	return v;
}

static struct source_tensor *add(struct fake *f, uint32_t role, uint32_t layer, uint32_t rows,
				 uint32_t cols, enum source_form form, struct values v)
{
	uint32_t i = f->s.n_tensors++;

	ck_assert_uint_lt(i, 256);
	f->values[i] = v;
	f->s.tensors[i] = (struct source_tensor){ .role = role,
						  .layer = layer,
						  .rows = rows,
						  .cols = cols,
						  .groups = form == SOURCE_INT8,
						  .form = form,
						  .stored = "test",
						  .private_data = &f->values[i] };
	return &f->s.tensors[i];
}

/* f->t has been filled. The tensors stand in an order that no writer wants. */
static void fake_make(struct fake *f)
{
	static const uint32_t role[] = { OBM_Q, OBM_K, OBM_V, OBM_O, OBM_GATE, OBM_UP, OBM_DOWN };
	struct tiny *t = &f->t;
	uint32_t q = t->heads * t->head_dim;

	f->fail_read = -1;
	f->s = (struct source){ .ops = &fake_ops, .format = "fake", .rope_theta = (double)t->theta,
				.qk = SOURCE_QK_SPLIT, .file_bytes = 1000000 };
	f->s.arch = (struct obm_arch){ .layers = t->layers,
				       .hidden = t->hidden,
				       .ffn = t->ffn,
				       .heads = t->heads,
				       .kv_heads = t->kv_heads,
				       .head_dim = t->head_dim,
				       .vocab = t->vocab,
				       .context = t->context,
				       .activation = t->sub_norms ? OBM_ACT_RELU2 : OBM_ACT_SILU,
				       .rms_eps = t->eps,
				       .rope_theta = t->theta,
				       .name = "tiny",
				       .family = "bitnet-b1.58" };
	f->s.tensors = calloc(256, sizeof(*f->s.tensors));
	ck_assert_ptr_nonnull(f->s.tensors);
	f->s.vocab = tiny_vocab(t);
	for (uint32_t l = t->layers; l-- > 0;) {
		const struct tiny_layer *y = &t->layer[l];

		for (int i = TINY_MATRICES - 1; i >= 0; i--) {
			const struct tiny_matrix *m = &y->m[i];

			add(f, role[i], l, m->rows, m->cols, SOURCE_TERNARY,
			    (struct values){ .codes = m->codes, .scales = m->scales })
				->groups = m->groups;
		}
		add(f, OBM_FFN_NORM, l, 1, t->hidden, SOURCE_F32,
		    (struct values){ .floats = y->ffn_norm });
		add(f, OBM_ATTN_NORM, l, 1, t->hidden, SOURCE_BF16,
		    (struct values){ .floats = y->attn_norm });
		if (t->sub_norms) {
			add(f, OBM_FFN_SUB_NORM, l, 1, t->ffn, SOURCE_F32,
			    (struct values){ .floats = y->ffn_sub_norm });
			add(f, OBM_ATTN_SUB_NORM, l, 1, q, SOURCE_F16,
			    (struct values){ .floats = y->attn_sub_norm });
		}
	}
	add(f, OBM_FINAL_NORM, OBM_NO_LAYER, 1, t->hidden, SOURCE_F32,
	    (struct values){ .floats = t->final_norm });
	if (!t->tied)
		add(f, OBM_HEAD, OBM_NO_LAYER, t->vocab, t->hidden, SOURCE_BF16,
		    (struct values){ .floats = t->head });
	add(f, OBM_EMBED, OBM_NO_LAYER, t->vocab, t->hidden, SOURCE_BF16,
	    (struct values){ .floats = t->embed });
}

static const char *target(void)
{
	static char path[400];

	snprintf(path, sizeof(path), "%s/model.obm", getenv("TMPDIR"));
	return path;
}

static struct fake *fake_default(void)
{
	struct fake *f = calloc(1, sizeof(*f));

	ck_assert_ptr_nonnull(f);
	tiny_default(&f->t, seed());
	unlink(target());
	return f;
}

static void fake_free(struct fake *f)
{
	for (int i = 0; i < 256; i++)
		free(f->owned[i]);
	source_close(&f->s);
	tiny_free(&f->t);
	free(f);
}

/* Every matrix gets master weights instead, by a rule. */
static void make_master(struct fake *f, float (*weight)(uint64_t *state, size_t i))
{
	uint64_t state = seed();

	for (uint32_t i = 0; i < f->s.n_tensors; i++) {
		struct source_tensor *t = &f->s.tensors[i];

		if (t->role < OBM_Q)
			continue;
		f->owned[i] = malloc((size_t)t->rows * t->cols * sizeof(float));
		ck_assert_ptr_nonnull(f->owned[i]);
		for (size_t j = 0; j < (size_t)t->rows * t->cols; j++)
			f->owned[i][j] = weight(&state, j);
		f->values[i] = (struct values){ .floats = f->owned[i] };
		t->form = SOURCE_MASTER;
		t->groups = 0;
	}
}

/* ---- converting and reading back ----------------------------------------------------------- */

static char why[512], note[512];

static struct convert_options options(uint32_t layout, uint32_t head)
{
	return (struct convert_options){ .layout = layout, .head = head, .note = note,
					 .note_len = sizeof(note) };
}

static int try_convert(struct fake *f, const struct convert_options *o, bool replace)
{
	struct output *out = NULL;
	uint8_t identity[32];
	int err;

	why[0] = note[0] = '\0';
	err = output_new(target(), replace, &out, why, sizeof(why));
	if (!err)
		err = convert(&f->s, o, out, NULL, identity, why, sizeof(why));
	if (!err)
		err = output_commit(out, why, sizeof(why));
	output_free(out);
	return err;
}

static struct obm *must_convert(struct fake *f, const struct convert_options *o)
{
	struct obm_verdict verdict;
	struct obm *obm = NULL;
	int fd, err;

	err = try_convert(f, o, true);
	ck_assert_msg(!err, "%s", why);
	fd = open(target(), O_RDONLY | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	err = obm_open(fd, 0, 2, &obm, why, sizeof(why));
	ck_assert_msg(!err, "%s", why);
	err = obm_verify(obm, NULL, 2, &verdict, why, sizeof(why));
	ck_assert_msg(!err, "%s", why);
	close(fd);
	return obm;
}

/* All rows of a matrix as they were packed. */
static void *unpacked(const struct obm *o, const struct obm_tensor *t)
{
	struct packed_shape shape = { t->layout, t->rows, t->cols, t->groups ? t->groups : 1 };
	size_t element = t->layout >= PACKED_F16 ? 2 : 1;
	uint8_t *all = malloc((size_t)t->rows * t->cols * element);

	ck_assert_ptr_nonnull(all);
	ck_assert_ptr_null(packed_check(&shape));
	for (uint32_t i = 0; i < packed_tiles(&shape); i++) {
		uint32_t n = t->rows - i * PACKED_ROWS < PACKED_ROWS ? t->rows - i * PACKED_ROWS
								     : PACKED_ROWS;
		const uint8_t *tile = o->base + t->offset +
				      packed_bytes(&shape) / packed_tiles(&shape) * i;

		ck_assert(packed_tile_is_valid(&shape, tile, n));
		packed_untile(&shape, tile, n, all + (size_t)i * PACKED_ROWS * t->cols * element);
	}
	return all;
}

/* [group][row], rows filled up to tiles. */
static float scale_of(const struct obm *o, const struct obm_tensor *t, uint32_t row, uint32_t group)
{
	size_t padded = (t->rows + PACKED_ROWS - 1) / PACKED_ROWS * PACKED_ROWS;
	float s;

	memcpy(&s, o->base + t->scales + (group * padded + row) * sizeof(float), sizeof(s));
	return s;
}

static const struct values *values_of(const struct fake *f, uint32_t role, uint32_t layer)
{
	const struct source_tensor *t = source_find(&f->s, role, layer);

	ck_assert_ptr_nonnull(t);
	return t->private_data;
}

static void check_codes(const struct obm *o, const struct obm_tensor *t, const int8_t *codes,
			const float *scales)
{
	int8_t *got = unpacked(o, t);

	for (size_t i = 0; i < (size_t)t->rows * t->cols; i++)
		if (got[i] != codes[i]) /* a passing assertion of Check's costs a write() */
			ck_abort_msg("%s of layer %d, row %zu column %zu: %d instead of %d",
				     obm_role_name(t->role), (int)t->layer, i / t->cols,
				     i % t->cols, got[i], codes[i]);
	for (uint32_t row = 0; row < t->rows; row++)
		for (uint32_t g = 0; g < t->groups; g++)
			if (scale_of(o, t, row, g) != scales[(size_t)row * t->groups + g])
				ck_abort_msg(
					"%s of layer %d, row %u group %u: scale %.9g instead of %.9g",
					obm_role_name(t->role), (int)t->layer, row, g,
					(double)scale_of(o, t, row, g),
					(double)scales[(size_t)row * t->groups + g]);
	free(got);
}

/* What the contract says of a row in int8, in binary32 and with rint() of the library. */
static void check_int8(const struct obm *o, const struct obm_tensor *t, const float *floats)
{
	int8_t *got = unpacked(o, t);

	for (uint32_t row = 0; row < t->rows; row++) {
		const float *x = floats + (size_t)row * t->cols;
		float absmax = 0, s;

		for (uint32_t c = 0; c < t->cols; c++)
			absmax = fmaxf(absmax, fabsf(x[c]));
		s = absmax / 127.0f;
		if (scale_of(o, t, row, 0) != s)
			ck_abort_msg("row %u", row);
		for (uint32_t c = 0; c < t->cols; c++) {
			double q = s > 0 ? rint((double)(x[c] / s)) : 0;

			q = fmin(fmax(q, -127), 127);
			if (got[(size_t)row * t->cols + c] != (int)q)
				ck_abort_msg("row %u column %u: %d for %.9g by %.9g", row, c,
					     got[(size_t)row * t->cols + c], (double)x[c],
					     (double)s);
		}
	}
	free(got);
}

static void check_halves(const struct obm *o, const struct obm_tensor *t, const float *floats)
{
	uint16_t *got = unpacked(o, t);

	for (size_t i = 0; i < (size_t)t->rows * t->cols; i++) {
		float x = t->layout == PACKED_F16 ? half_to_float(got[i]) : bf16_to_float(got[i]);

		if (x != floats[i])
			ck_abort_msg("%zu: %.9g instead of %.9g", i, (double)x, (double)floats[i]);
	}
	free(got);
}

static void check_head(const struct fake *f, const struct obm *o, uint32_t role, uint32_t layout)
{
	const struct obm_tensor *t = obm_tensor(o, role, OBM_NO_LAYER);
	const struct values *v = values_of(f, role, OBM_NO_LAYER);

	ck_assert_ptr_nonnull(t);
	ck_assert_uint_eq(t->layout, layout);
	if (layout != PACKED_INT8)
		check_halves(o, t, v->floats);
	else if (v->codes)
		check_codes(o, t, v->codes, v->scales);
	else
		check_int8(o, t, v->floats);
}

static void check_norm(const struct fake *f, const struct obm *o, uint32_t role, uint32_t layer)
{
	const struct obm_tensor *t = obm_tensor(o, role, layer);

	ck_assert_ptr_nonnull(t);
	ck_assert_uint_eq(t->layout, 0);
	ck_assert_mem_eq(o->base + t->offset, values_of(f, role, layer)->floats,
			 t->cols * sizeof(float));
}

/* The whole file, when every matrix came ternary. */
static void check_all(const struct fake *f, const struct obm *o, uint32_t layout, uint32_t head)
{
	double *rope = malloc(f->t.head_dim / 2 * sizeof(double));
	uint64_t bytes;

	ck_assert_ptr_nonnull(rope);
	check_head(f, o, OBM_EMBED, head);
	if (!f->t.tied)
		check_head(f, o, OBM_HEAD, head);
	check_norm(f, o, OBM_FINAL_NORM, OBM_NO_LAYER);
	for (uint32_t l = 0; l < f->t.layers; l++) {
		check_norm(f, o, OBM_ATTN_NORM, l);
		check_norm(f, o, OBM_FFN_NORM, l);
		if (f->t.sub_norms) {
			check_norm(f, o, OBM_ATTN_SUB_NORM, l);
			check_norm(f, o, OBM_FFN_SUB_NORM, l);
		}
		for (uint32_t role = OBM_Q; role <= OBM_DOWN; role++) {
			const struct obm_tensor *t = obm_tensor(o, role, l);

			ck_assert_ptr_nonnull(t);
			ck_assert_uint_eq(t->layout, layout);
			check_codes(o, t, values_of(f, role, l)->codes,
				    values_of(f, role, l)->scales);
		}
	}
	rope_frequencies((double)f->t.theta, f->t.head_dim, rope);
	ck_assert_mem_eq(obm_section(o, OBM_ROPE, 0, &bytes), f->s.rope ? f->s.rope : rope,
			 f->t.head_dim / 2 * sizeof(double));
	ck_assert_uint_eq(bytes, f->t.head_dim / 2 * sizeof(double));
	ck_assert_ptr_nonnull(obm_section(o, OBM_TOKENIZER, 0, NULL));
	free(rope);
}

static void whole(struct fake *f, uint32_t layout, uint32_t head)
{
	struct convert_options o = options(layout, head);
	struct obm *obm = must_convert(f, &o);

	check_all(f, obm, layout, head);
	obm_close(obm);
}

/* ---- forms and shapes ---------------------------------------------------------------------- */

/* Each layout and head form: a wrong offset, order or rounding in one of them would stay unseen. */
START_TEST(layouts_and_heads)
{
	static const uint32_t layouts[] = { PACKED_2BIT, PACKED_BASE3 };
	static const uint32_t heads[] = { PACKED_INT8, PACKED_F16, PACKED_BF16 };
	struct fake *f = fake_default();

	f->t.tied = false;
	tiny_fill(&f->t);
	fake_make(f);
	for (int i = 0; i < 2; i++)
		for (int j = 0; j < 3; j++) {
			whole(f, layouts[i], heads[j]);
			ck_assert_str_eq(note, "");
		}
	fake_free(f);
}
END_TEST

/* Heads of 100, a hidden size and rows that fill no unit and no tile: tails in each layout. */
START_TEST(odd_sizes)
{
	struct fake *f = fake_default();

	f->t.heads = 2;
	f->t.kv_heads = 1;
	f->t.head_dim = 100;
	f->t.hidden = 200;
	f->t.ffn = 540;
	f->t.n_words = 41;
	f->t.row_scales = true;
	f->t.half_scales = false;
	tiny_fill(&f->t);
	fake_make(f);
	whole(f, PACKED_2BIT, PACKED_INT8);
	whole(f, PACKED_BASE3, PACKED_F16);
	whole(f, PACKED_BASE3, PACKED_BF16);
	fake_free(f);
}
END_TEST

/* Rows so wide that a batch is one tile, and no sub-norms. */
START_TEST(wide_rows)
{
	struct fake *f = fake_default();

	f->t.layers = 1;
	f->t.ffn = 20000;
	f->t.sub_norms = false;
	tiny_fill(&f->t);
	fake_make(f);
	whole(f, PACKED_2BIT, PACKED_INT8);
	fake_free(f);
}
END_TEST

/* Scales in column groups: [row][group] of the source is [group][row] in the file. */
START_TEST(groups)
{
	struct fake *f = fake_default();
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct obm *obm;
	size_t len;

	f->t.ffn = 256;
	f->t.groups = 2;
	f->t.row_scales = true;
	tiny_fill(&f->t);
	fake_make(f);
	obm = must_convert(f, &o);
	check_all(f, obm, PACKED_2BIT, PACKED_INT8);
	ck_assert_ptr_nonnull(obm_info(obm, "note", &len));
	obm_close(obm);
	whole(f, PACKED_BASE3, PACKED_INT8);
	fake_free(f);
}
END_TEST

/* The trap of PPL 500: rows of q and k for adjacent pairs are put in order, of v and o not. */
START_TEST(pairs_become_halves)
{
	struct fake *f = fake_default();

	tiny_fill(&f->t);
	fake_make(f);
	f->s.qk = SOURCE_QK_PAIRS;
	whole(f, PACKED_2BIT, PACKED_INT8);
	fake_free(f);

	/* Half a head is odd: 50 has pairs across no border of a tile or group. */
	f = fake_default();
	f->t.heads = 3;
	f->t.kv_heads = 3;
	f->t.head_dim = 50;
	f->t.hidden = 150;
	f->t.row_scales = true;
	tiny_fill(&f->t);
	fake_make(f);
	f->s.qk = SOURCE_QK_PAIRS;
	whole(f, PACKED_BASE3, PACKED_INT8);
	fake_free(f);
}
END_TEST

/* An int8 embedding passes as it is: quantising it anew could move codes. */
START_TEST(int8_stays)
{
	struct fake *f = fake_default();
	struct source_tensor *t;
	size_t n;
	int8_t *codes;
	float *scales;

	tiny_fill(&f->t);
	fake_make(f);
	n = (size_t)f->t.vocab * f->t.hidden;
	codes = malloc(n);
	scales = malloc(f->t.vocab * sizeof(float));
	ck_assert(codes && scales);
	for (size_t i = 0; i < n; i++)
		/* Never 127: absmax would change every row. */
		codes[i] = (int8_t)((int)(i * 7 % 101) - 50);
	for (uint32_t i = 0; i < f->t.vocab; i++)
		scales[i] = i % 5 ? 0.001f * (float)(i + 1) : 0.0f;
	t = (struct source_tensor *)source_find(&f->s, OBM_EMBED, OBM_NO_LAYER);
	t->form = SOURCE_INT8;
	t->groups = 1;
	*(struct values *)t->private_data = (struct values){ .codes = codes, .scales = scales };
	whole(f, PACKED_2BIT, PACKED_INT8);
	fake_free(f);
	free(codes);
	free(scales);
}
END_TEST

/* Rows of an embedding that rounding by a reciprocal, a missing clamp or a zero would spoil. */
START_TEST(int8_rows)
{
	struct fake *f = fake_default();
	uint64_t state = seed();
	uint32_t h;

	tiny_fill(&f->t);
	fake_make(f);
	h = f->t.hidden;
	for (uint32_t row = 0; row < f->t.vocab; row++)
		for (uint32_t c = 0; c < h; c++) {
			float r = (float)((double)tiny_random(&state) / 0x1p64 - 0.5);
			float *x = &f->t.embed[(size_t)row * h + c];

			switch (row % 8) {
			case 0: *x = 0.0f; break;
			case 1: *x = r * FLT_MIN * 1e-5f; break;		/* subnormal */
			case 2:
				*x = c ? 0x1p-149f : 100 * 0x1p-149f;
				break; /* the scale itself is 0 */
			case 3: *x = c ? r * FLT_MAX : FLT_MAX; break;
			case 4: *x = c ? ((float)(c % 127) + 0.5f) : 127.0f; break; /* exact ties */
			case 5: *x = c % 2 ? -127.0f : 126.99999f; break;
			case 6:
				*x = ((float)c - 130) * (row % 16 > 7 ? -0x1p-149f : 0x1p-149f);
				break; /* 130 / 127 is 1 */
			default: *x = r; break;
			}
		}
	whole(f, PACKED_2BIT, PACKED_INT8);
	fake_free(f);
}
END_TEST

/* Frequencies of the file's own are taken, not computed from the base. */
START_TEST(own_frequencies)
{
	struct fake *f = fake_default();
	double rope[16];

	tiny_fill(&f->t);
	fake_make(f);
	for (int i = 0; i < 16; i++)
		rope[i] = 1.0 / (1 + 3 * i);
	f->s.rope = rope;
	whole(f, PACKED_2BIT, PACKED_INT8);
	fake_free(f);
}
END_TEST

/* ---- master weights ------------------------------------------------------------------------ */

static float normal_weight(uint64_t *state, size_t i)
{
	double sum = 0;

	(void)i;
	for (int k = 0; k < 4; k++)
		sum += (double)tiny_random(state) / 0x1p64 - 0.5;
	return bf16_to_float(float_to_bf16((float)(sum * 0.03)));
}

/* The mean is 1/4, so 1/8 is an exact half: it rounds to even, 0. */
static float tie_weight(uint64_t *state, size_t i)
{
	float x = i % 2 ? 0.125f : 0.375f;

	return tiny_random(state) % 2 ? x : -x;
}

static float wild_weight(uint64_t *state, size_t i)
{
	uint64_t r = tiny_random(state);

	switch (i % 1009) {
	case 0: return FLT_MAX;
	case 1: return -FLT_MAX;
	case 2: return 0x1p-149f;
	case 3: return -0.0f;
	default: return ldexpf((float)(int64_t)r * 0x1p-63f, (int)(r % 64) - 40);
	}
}

/* Half of them are close to half the mean: a scale that is one bit off moves their codes. */
static float near_what;

static float near_weight(uint64_t *state, size_t i)
{
	uint64_t r = tiny_random(state);
	float x = near_what * (1.0f + (float)(r % 17) * 0x1p-23f - 0x1p-20f);

	x = i % 2 ? x : 3 * x;
	return r >> 63 ? x : -x;
}

/* Below the floor of 1e-5, and zeros only in the beginning. */
static float small_weight(uint64_t *state, size_t i)
{
	return i < 4096 ? 0.0f : (float)((double)tiny_random(state) / 0x1p64 - 0.5) * 2.2e-5f;
}

static float no_weight(uint64_t *state, size_t i)
{
	(void)state;
	(void)i;
	return 0.0f;
}

/* The contract's words, in the order of the served rows, one addition after the other. */
static void check_master(const struct fake *f, const struct obm *o)
{
	for (uint32_t l = 0; l < f->t.layers; l++)
		for (uint32_t role = OBM_Q; role <= OBM_DOWN; role++) {
			const struct obm_tensor *t = obm_tensor(o, role, l);
			const float *w = values_of(f, role, l)->floats;
			size_t n = (size_t)t->rows * t->cols;
			volatile double sum = 0;
			volatile float mean, mu, s, x;
			int8_t *codes = malloc(n);
			float *scales = malloc(t->rows * sizeof(float));

			ck_assert(codes && scales);
			for (size_t i = 0; i < n; i++)
				sum = sum + (double)fabsf(w[i]);
			mean = (float)(sum / (double)n);
			mu = fmaxf(mean, 1e-5f);
			s = 1.0f / mu;
			for (size_t i = 0; i < n; i++) {
				x = w[i] * s;
				codes[i] = (int8_t)fmin(fmax(rint((double)x), -1), 1);
			}
			for (uint32_t i = 0; i < t->rows; i++)
				scales[i] = 1.0f / s;
			check_codes(o, t, codes, scales);
			free(codes);
			free(scales);
		}
}

static void master(float (*weight)(uint64_t *state, size_t i), enum source_qk qk)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct fake *f = fake_default();
	struct obm *obm;

	f->t.hidden = 136;
	f->t.heads = 2;
	f->t.head_dim = 68;
	f->t.kv_heads = 1;
	tiny_fill(&f->t);
	fake_make(f);
	make_master(f, weight);
	f->s.qk = qk;
	obm = must_convert(f, &o);
	check_master(f, obm);
	obm_close(obm);
	fake_free(f);
}

/* Absmean, not absmax; ties to even; the clamp; the floor; overflowing products. */
START_TEST(master_weights)
{
	master(normal_weight, SOURCE_QK_SPLIT);
	master(tie_weight, SOURCE_QK_SPLIT);
	for (int i = 0; i < 40; i++) {
		near_what = 0.0173f + 0.00071f * (float)i;
		master(near_weight, SOURCE_QK_SPLIT);
	}
	master(wild_weight, SOURCE_QK_SPLIT);
	master(small_weight, SOURCE_QK_SPLIT);
	master(no_weight, SOURCE_QK_SPLIT);
}
END_TEST

/* The sum runs in the served order, so the file's row order does not move the scale's last bit. */
START_TEST(master_pairs)
{
	master(wild_weight, SOURCE_QK_PAIRS);
	master(normal_weight, SOURCE_QK_PAIRS);
}
END_TEST

/* ---- what is said and refused -------------------------------------------------------------- */

static struct fake *plain(void)
{
	struct fake *f = fake_default();

	tiny_fill(&f->t);
	fake_make(f);
	return f;
}

static bool exists(void)
{
	struct stat st;

	return !lstat(target(), &st);
}

static void must_fail(struct fake *f, const struct convert_options *o, int err, const char *words)
{
	int got = try_convert(f, o, false);

	ck_assert_msg(got == err, "%d instead of %d: %s", got, err, why);
	ck_assert_msg(strstr(why, words) != NULL, "'%s' lacks '%s'", why, words);
	ck_assert(!exists());
}

/* Each reason to refuse has its sentence, and nothing is written. */
START_TEST(refusals)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	volatile sig_atomic_t stop = 1;
	struct vocab *v;
	struct fake *f = plain();

	f->s.qk = SOURCE_QK_UNKNOWN;
	must_fail(f, &o, -ENOTSUP, "--qk split");
	f->s.qk = SOURCE_QK_SPLIT;

	v = f->s.vocab;
	f->s.vocab = NULL;
	must_fail(f, &o, -ENOENT, "--tokenizer");
	strcpy(f->s.no_vocab, "the folder has no tokenizer.json");
	must_fail(f, &o, -ENOENT,
		  "the folder has no tokenizer.json; name its file with --tokenizer");
	f->s.vocab = v;

	strcpy(v->chat, "jinja");
	must_fail(f, &o, -ENOENT, "choose another template with --chat");
	strcpy(v->chat, "raw");

	f->s.n_tensors--;
	must_fail(f, &o, -ENOENT, "embed");
	f->s.n_tensors++;

	o.stop = &stop;
	must_fail(f, &o, -EINTR, "interrupted");
	o.stop = NULL;

	f->t.embed[5 * f->t.hidden + 7] = 65520.0f;
	o.head = PACKED_F16;
	must_fail(f, &o, -ERANGE, "row 5 column 7: 65520 is more than fp16 can hold (65504)");
	o.head = PACKED_BF16;
	f->t.embed[5 * f->t.hidden + 7] = -FLT_MAX;
	must_fail(f, &o, -ERANGE, "row 5 column 7");
	fake_free(f);
}
END_TEST

/* Halves that cannot hold every value say how much was lost, and where. */
START_TEST(loss_is_told)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_F16);
	struct fake *f = plain();

	/* 1 + 2^-12 is between two halves; 2^-26 becomes 0, which is a smaller error. */
	f->t.embed[3 * f->t.hidden + 2] = 1.0f + 0x1p-12f;
	f->t.embed[4 * f->t.hidden + 2] = 0x1p-26f;
	ck_assert_msg(!try_convert(f, &o, false), "%s", why);
	ck_assert_msg(strstr(note, "fp16") && strstr(note, "0.000244") &&
			      strstr(note, "row 3 column 2"),
		      "%s", note);
	fake_free(f);
}
END_TEST

/* The model says where it comes from and what was done to it, once. */
START_TEST(info_lines)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct fake *f = plain();
	struct obm *obm;
	const char *text;
	size_t len;

	f->s.info = strdup("name: Tiny One\norigin: here\nlicence: MIT");
	f->s.licence = strdup("Do what you like.\n");
	f->s.arch.flags = OBM_FLAG_A8_IMPOSED;
	f->s.qk = SOURCE_QK_PAIRS;
	obm = must_convert(f, &o);
	text = obm_info(obm, "name", &len);
	ck_assert(text && len == 8 && !memcmp(text, "Tiny One", 8));
	text = obm_info(obm, "licence", &len);
	ck_assert(text && len == 3);
	text = obm_info(obm, "source", &len);
	ck_assert(text && len == 4 && !memcmp(text, "fake", 4));
	ck_assert_ptr_nonnull(obm_info(obm, "converter", &len));
	text = obm_section(obm, OBM_INFO, 0, NULL);
	ck_assert_ptr_nonnull(strstr(text, "without int8 activations"));
	ck_assert_ptr_nonnull(strstr(text, "adjacent pairs"));
	ck_assert_uint_eq(obm->arch->flags, OBM_FLAG_A8_IMPOSED);
	ck_assert_ptr_nonnull(obm_section(obm, OBM_LICENCE, 0, &(uint64_t){ 0 }));
	obm_close(obm);
	fake_free(f);
}
END_TEST

/* The same input gives the same identity; another layout another one. */
START_TEST(reproducible)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct fake *f = plain();
	uint8_t first[32];
	struct obm *obm;

	obm = must_convert(f, &o);
	memcpy(first, obm->header->identity, 32);
	obm_close(obm);
	for (unsigned i = 0; i < 5; i++) {
		obm = must_convert(f, &o);
		ck_assert_mem_eq(first, obm->header->identity, 32);
		obm_close(obm);
	}
	o.layout = PACKED_BASE3;
	obm = must_convert(f, &o);
	ck_assert_mem_ne(first, obm->header->identity, 32);
	obm_close(obm);
	ck_assert_int_ge(f->dones, (long)f->s.n_tensors);
	fake_free(f);
}
END_TEST

/* ---- what fails ---------------------------------------------------------------------------- */

/* A read that fails, wherever: its sentence comes out, no thread is left, no file. */
START_TEST(every_read_fails)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct fake *f = plain();
	long reads;

	make_master(f, normal_weight);
	ck_assert_msg(!try_convert(f, &o, false), "%s", why);
	ck_assert_int_eq(unlink(target()), 0);
	reads = f->reads;
	ck_assert_int_gt(reads, 30);
	for (long i = 0; i < reads; i++) {
		f->reads = 0;
		f->fail_read = i;
		must_fail(f, &o, -EPROTO, "as it was told");
	}
	f->fail_read = -1;
	ck_assert_msg(!try_convert(f, &o, false), "%s", why);
	fake_free(f);
}
END_TEST

/* No memory, at each place where some is asked for: an error with words, nothing lost, no file. */
START_TEST(every_allocation_fails)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct fake *f;
	long n, before;

	if (!HAVE_OWN_MALLOC) {
		printf("skip: failing allocations, under a sanitizer\n");
		return;
	}
	f = plain();
	make_master(f, normal_weight);
	/* What the library keeps for ever, it has after the first time. */
	ck_assert_msg(!try_convert(f, &o, true), "%s", why);
	allocations = 0;
	before = outstanding;
	ck_assert_msg(!try_convert(f, &o, true), "%s", why);
	n = allocations;
	ck_assert_int_eq(outstanding, before);
	ck_assert_int_gt(n, 20);
	ck_assert_int_eq(unlink(target()), 0);
	for (long i = 0; i < n; i++) {
		int err;

		allocations = 0;
		fail_at = i;
		err = try_convert(f, &o, false);
		fail_at = -1;
		ck_assert_msg(outstanding == before, "allocation %ld: %ld blocks are lost", i,
			      outstanding - before);
		/* When a thread cannot be made for it, it is EAGAIN. */
		ck_assert_msg(err == -ENOMEM || err == -EAGAIN || !err, "allocation %ld: %d %s", i,
			      err, why);
		ck_assert(!err || *why);
		ck_assert_int_eq(exists(), !err);
		if (!err)
			unlink(target());
	}
	fake_free(f);
}
END_TEST

/* A write that fails, after each so many bytes: the old file stays as it was. */
START_TEST(every_write_fails)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct rlimit limit, old;
	struct fake *f = plain();
	struct stat st;
	FILE *file;
	char text[8];

	ck_assert_msg(!try_convert(f, &o, false), "%s", why);
	ck_assert_int_eq(stat(target(), &st), 0);
	file = fopen(target(), "we");
	ck_assert(file && fputs("before", file) >= 0 && !fclose(file));
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
	limit = old;
	for (int i = 0; i < 40; i++) {
		int err;

		limit.rlim_cur = (rlim_t)st.st_size * (rlim_t)i / 40;
		ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
		err = try_convert(f, &o, true);
		ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
		ck_assert_int_eq(err, -EFBIG);
		ck_assert_ptr_nonnull(strstr(why, target()));
		file = fopen(target(), "re");
		ck_assert_ptr_nonnull(file);
		ck_assert_ptr_nonnull(fgets(text, sizeof(text), file));
		fclose(file);
		ck_assert_str_eq(text, "before");
	}
	fake_free(f);
}
END_TEST

/* Killed at any moment: the target is not there, or as it was, or whole. */
START_TEST(killed)
{
	struct convert_options o = options(PACKED_2BIT, PACKED_INT8);
	struct fake *f = plain();
	uint64_t state = seed();
	unsigned whole_ones = 0, n = scaled(100);
	struct obm *obm;
	uint8_t identity[32];

	f->s.qk = SOURCE_QK_PAIRS;
	obm = must_convert(f, &o);
	memcpy(identity, obm->header->identity, 32);
	obm_close(obm);
	f->slow_us = 20;
	for (unsigned i = 0; i < n; i++) {
		bool had = i % 2;
		struct timespec ts = { .tv_nsec = (long)(tiny_random(&state) % 60000000) };
		int status, fd;
		pid_t pid;

		if (!had)
			unlink(target());
		pid = fork();
		ck_assert_int_ge(pid, 0);
		if (!pid)
			_exit(try_convert(f, &o, true) ? 1 : 0);
		nanosleep(&ts, NULL);
		kill(pid, SIGKILL);
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		ck_assert(WIFSIGNALED(status) || !WEXITSTATUS(status));
		if (!exists()) {
			ck_assert(!had);
			ck_assert(WIFSIGNALED(status));
			/* So that the next one finds an old one. */
			f->slow_us = 0;
			ck_assert_msg(!try_convert(f, &o, true), "%s", why);
			f->slow_us = 20;
			continue;
		}
		fd = open(target(), O_RDONLY | O_CLOEXEC);
		ck_assert_msg(!obm_open(fd, 0, 1, &obm, why, sizeof(why)), "%s", why);
		ck_assert_mem_eq(identity, obm->header->identity, 32);
		obm_close(obm);
		close(fd);
		whole_ones += !had;
	}
	printf("killed: %u times, %u of them too late\n", n, whole_ones);
	fake_free(f);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("convert");
	TCase *t = tcase_create("convert");
	SRunner *r;
	int failed;

	seed();
	tmp_fixture(t);
	tcase_add_test(t, layouts_and_heads);
	tcase_add_test(t, odd_sizes);
	tcase_add_test(t, wide_rows);
	tcase_add_test(t, groups);
	tcase_add_test(t, pairs_become_halves);
	tcase_add_test(t, int8_stays);
	tcase_add_test(t, int8_rows);
	tcase_add_test(t, own_frequencies);
	tcase_add_test(t, master_weights);
	tcase_add_test(t, master_pairs);
	tcase_add_test(t, refusals);
	tcase_add_test(t, loss_is_told);
	tcase_add_test(t, info_lines);
	tcase_add_test(t, reproducible);
	tcase_add_test(t, every_read_fails);
	tcase_add_test(t, every_allocation_fails);
	tcase_add_test(t, every_write_fails);
	tcase_add_test(t, killed);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

/* SPDX-License-Identifier: MIT */
/*
 * The container as a stranger hands it over. A file that is damaged, cut or made to mislead must be
 * refused with its own sentence; one that is right must open, whichever shape its model has. The
 * files come from the tests' own writer.
 */
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_obm.h"
#include "obm.h"
#include "obm_check.h"
#include "packed.h"

static const char info[] = "name: tiny\norigin: made by a test\nempty: \n";
static const char licence[] = "Anybody may do anything.\r\n\f\tTruly.\n";

static struct tiny tiny;
static uint8_t *file; /* a valid one, for the test to spoil */
static size_t bytes;
static char why[512];

static struct tiny small(uint64_t seed)
{
	struct tiny t;

	tiny_default(&t, seed);
	t.hidden = 40;
	t.ffn = 72;
	t.heads = 2;
	t.kv_heads = 1;
	t.head_dim = 12;
	t.context = 20;
	t.n_words = 5;
	return t;
}

static void set_up(void)
{
	struct write_obm o = { PACKED_2BIT, PACKED_INT8, 0, info, licence };

	tiny = small(1);
	tiny_fill(&tiny);
	file = write_obm(&tiny, &o, &bytes);
}

static void tear_down(void)
{
	tiny_free(&tiny);
	free(file);
}

static int memory_file(const void *data, size_t n)
{
	int fd = memfd_create("obm", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, data, n), (ssize_t)n);
	return fd;
}

static int open_bytes(const void *data, size_t n, unsigned threads, struct obm **o)
{
	int fd = memory_file(data, n);
	int err;

	memset(why, 0, sizeof(why));
	*o = NULL;
	err = obm_open(fd, 0, threads, o, why, sizeof(why));
	close(fd);
	ck_assert(err ? *why && !*o : !*why && *o);
	return err;
}

/* Refused, by a sentence that is this one. */
static void refused(size_t n, int err, const char *sentence)
{
	struct obm *o;
	int got = open_bytes(file, n, 1, &o);

	ck_assert_str_eq(why, sentence);
	ck_assert_int_eq(got, err);
}

static uint64_t scaled(uint64_t n)
{
	const char *s = getenv("ONEBIT_SCALE");
	uint64_t percent = s ? strtoull(s, NULL, 10) : 100;

	return n * percent / 100 + 1;
}

static uint64_t seeded(const char *test)
{
	const char *s = getenv("ONEBIT_SEED");
	uint64_t seed = s ? strtoull(s, NULL, 0) : (uint64_t)getpid() * 2654435761u;

	fprintf(stderr, "%s: ONEBIT_SEED=%llu\n", test, (unsigned long long)seed);
	fflush(stdout);
	return seed;
}

/* ---- what is right --------------------------------------------------------------------------- */

static const struct {
	uint32_t linear, table, groups;
	uint32_t heads, kv_heads, head_dim, hidden, ffn;
	bool sub_norms, tied, row_scales;
} shapes[] = {
	{ PACKED_2BIT, PACKED_INT8, 1, 4, 2, 32, 128, 192, true, true, false },
	{ PACKED_BASE3, PACKED_F16, 1, 4, 2, 32, 128, 192, true, false, true },
	{ PACKED_2BIT, PACKED_BF16, 2, 4, 4, 32, 128, 256, false, true, true },
	{ PACKED_BASE3, PACKED_INT8, 1, 1, 1, 2, 1, 1, false, false, false },
	{ PACKED_2BIT, PACKED_F16, 1, 3, 1, 100, 33, 31, true, false, true },
	{ PACKED_BASE3, PACKED_BF16, 3, 3, 3, 64, 192, 384, true, true, true },
};

static const struct tiny_matrix *matrix_of(const struct tiny *t, uint32_t role, uint32_t layer)
{
	return &t->layer[layer].m[role - OBM_Q];
}

static void expect_tensor(const struct obm *o, const struct tiny *m, const struct obm_tensor *t)
{
	struct packed_shape shape = obm_shape(t);
	const struct tiny_matrix *want;
	int8_t *codes;

	if (t->role < OBM_Q)
		return;
	want = matrix_of(m, t->role, t->layer);
	codes = malloc((size_t)PACKED_ROWS * t->cols);
	ck_assert(codes && t->rows == want->rows && t->cols == want->cols &&
		  t->groups == want->groups);
	for (uint32_t tile = 0; tile < packed_tiles(&shape); tile++) {
		uint32_t n = t->rows - tile * PACKED_ROWS < PACKED_ROWS ?
				     t->rows - tile * PACKED_ROWS :
				     PACKED_ROWS;

		packed_untile(&shape,
			      o->base + t->offset + tile * (t->bytes / packed_tiles(&shape)), n,
			      codes);
		ck_assert_mem_eq(codes, want->codes + (size_t)tile * PACKED_ROWS * t->cols,
				 (size_t)n * t->cols);
	}
	free(codes);
	for (uint32_t r = 0; r < t->rows; r++)
		for (uint32_t g = 0; g < t->groups; g++)
			if (memcmp(o->base + t->scales +
					   (g * packed_tiles(&shape) * PACKED_ROWS + r) *
						   sizeof(float),
				   &want->scales[r * t->groups + g], sizeof(float)))
				ck_abort_msg("scale of row %u, group %u", r, g);
}

/* A model of a shape that nobody had in mind would be refused, or another's weights served. */
START_TEST(any_shape_opens)
{
	struct write_obm w = { shapes[_i].linear, shapes[_i].table, OBM_ACT_SILU, info, licence };
	struct obm_verdict v;
	struct tiny t;
	struct obm *o;
	uint8_t *f;
	size_t n;

	tiny_default(&t, 7 + (uint64_t)_i);
	t.groups = shapes[_i].groups;
	t.heads = shapes[_i].heads;
	t.kv_heads = shapes[_i].kv_heads;
	t.head_dim = shapes[_i].head_dim;
	t.hidden = shapes[_i].hidden;
	t.ffn = shapes[_i].ffn;
	t.sub_norms = shapes[_i].sub_norms;
	t.tied = shapes[_i].tied;
	t.row_scales = shapes[_i].row_scales;
	tiny_fill(&t);
	f = write_obm(&t, &w, &n);
	ck_assert_msg(!open_bytes(f, n, 1 + (unsigned)_i, &o), "%s", why);
	ck_assert_uint_eq(o->bytes, n);
	ck_assert_uint_eq(o->arch->hidden, t.hidden);
	ck_assert_uint_eq(o->n_tensors, t.layers * (t.sub_norms ? 11 : 9) + (t.tied ? 2 : 3));
	for (uint32_t i = 0; i < o->n_tensors; i++) {
		ck_assert_ptr_eq(obm_tensor(o, o->tensors[i].role, o->tensors[i].layer),
				 &o->tensors[i]);
		expect_tensor(o, &t, &o->tensors[i]);
	}
	ck_assert_ptr_null(obm_tensor(o, OBM_Q, t.layers));
	ck_assert_ptr_null(obm_tensor(o, OBM_Q, OBM_NO_LAYER));
	ck_assert_int_eq(obm_tensor(o, OBM_HEAD, OBM_NO_LAYER) != NULL, !t.tied);
	ck_assert_msg(!obm_verify(o, NULL, 1 + (unsigned)_i, &v, why, sizeof(why)), "%s", why);
	ck_assert(!v.is_signed && v.bytes < n && v.bytes > n - 8192 - 64 && v.seconds > 0 &&
		  v.threads == 1 + (unsigned)_i);
	obm_close(o);
	free(f);
	tiny_free(&t);
}
END_TEST

/* Pages that go and come again would be others: what is read then must be what was checked. */
START_TEST(what_is_forgotten_comes_again)
{
	struct obm_verdict v;
	struct obm *o = NULL;
	int fd = memory_file(file, bytes);

	ck_assert_msg(!obm_open(fd, OBM_FORGET, 2, &o, why, sizeof(why)), "%s", why);
	close(fd);
	ck_assert_mem_eq(o->base, file, bytes);
	ck_assert_msg(!obm_verify(o, NULL, 2, &v, why, sizeof(why)), "%s", why);
	ck_assert_mem_eq(o->base, file, bytes);
	obm_close(o);
}
END_TEST

/* Memory of the caller's must be left alone by it: to forget it would be to clear it. */
START_TEST(memory_opens)
{
	struct obm_verdict v;
	struct obm *o = NULL;
	uint8_t *copy = aligned_alloc(OBM_ALIGN, (bytes / OBM_ALIGN + 1) * OBM_ALIGN);

	ck_assert_ptr_nonnull(copy);
	memcpy(copy, file, bytes);
	ck_assert_msg(!obm_open_memory(copy, bytes, OBM_FORGET, 2, &o, why, sizeof(why)), "%s",
		      why);
	ck_assert_ptr_eq(o->base, copy);
	ck_assert_msg(!obm_verify(o, NULL, 2, &v, why, sizeof(why)), "%s", why);
	obm_close(o);
	ck_assert_mem_eq(copy, file, bytes);
	copy[write_obm_section(copy, OBM_WEIGHTS, 1)->offset] ^= 1;
	ck_assert_int_eq(obm_open_memory(copy, bytes, 0, 1, &o, why, sizeof(why)), -EBADMSG);
	free(copy);
}
END_TEST

/* What a person is shown would come from another line, or from behind the end. */
START_TEST(information_is_found)
{
	struct obm *o;
	uint64_t n;
	size_t len;

	ck_assert_int_eq(open_bytes(file, bytes, 1, &o), 0);
	ck_assert_ptr_eq(obm_info(o, "origin", &len),
			 (const char *)obm_section(o, OBM_INFO, 0, NULL) + 19);
	ck_assert_uint_eq(len, 14);
	ck_assert_ptr_nonnull(obm_info(o, "empty", &len));
	ck_assert_uint_eq(len, 0);
	ck_assert_ptr_null(obm_info(o, "nam", &len));
	ck_assert_ptr_null(obm_info(o, "made by a test", &len));
	ck_assert_ptr_null(obm_info(o, "", &len));
	ck_assert_mem_eq(obm_section(o, OBM_LICENCE, 0, &n), licence, sizeof(licence) - 1);
	ck_assert_uint_eq(n, sizeof(licence) - 1);
	ck_assert_ptr_nonnull(obm_section(o, OBM_WEIGHTS, 2, NULL));
	ck_assert_ptr_null(obm_section(o, OBM_WEIGHTS, 3, &n));
	ck_assert_uint_eq(n, 0);
	ck_assert_str_eq(obm_role_name(OBM_FFN_SUB_NORM), "ffn_sub_norm");
	ck_assert_str_eq(obm_role_name(99), "unknown");
	obm_close(o);
}
END_TEST

/* Most models have no such texts; that must be no reason to refuse them. */
START_TEST(texts_may_be_absent)
{
	struct write_obm w = { PACKED_2BIT, PACKED_INT8, 0, NULL, NULL };
	struct obm *o;
	size_t n, len;
	uint8_t *f = write_obm(&tiny, &w, &n);

	ck_assert_msg(!open_bytes(f, n, 1, &o), "%s", why);
	ck_assert_ptr_null(obm_info(o, "name", &len));
	ck_assert_ptr_null(obm_section(o, OBM_LICENCE, 0, NULL));
	obm_close(o);
	free(f);
}
END_TEST

/* ---- what is cut or damaged ------------------------------------------------------------------ */

/* A download that broke off must be known as one, wherever it did, before anything is believed. */
START_TEST(truncation_is_refused)
{
	const struct obm_header *h = (const struct obm_header *)file;
	const struct obm_section *s = (const struct obm_section *)(file + sizeof(*h));
	char sentence[128];

	refused(0, -EPROTO, "the file has 0 bytes, too few for any model");
	refused(7, -EPROTO, "the file has 7 bytes, too few for any model");
	refused(8, -EBADMSG, "the file is truncated in its header: it has 8 bytes");
	refused(255, -EBADMSG, "the file is truncated in its header: it has 255 bytes");
	for (uint32_t i = 0; i <= h->n_sections; i++) {
		size_t at = i < h->n_sections ? s[i].offset : bytes;

		for (int d = -1; d <= 1; d++) {
			if (at + (size_t)d >= bytes)
				continue;
			snprintf(sentence, sizeof(sentence),
				 "the file is truncated: %zu of its %zu bytes are missing",
				 bytes - at - (size_t)d, bytes);
			refused(at + (size_t)d, -EBADMSG, sentence);
		}
	}
	refused(256, -EBADMSG,
		(snprintf(sentence, sizeof(sentence),
			  "the file is truncated: %zu of its %zu bytes "
			  "are missing",
			  bytes - 256, bytes),
		 sentence));
}
END_TEST

/* Two files run together, or a page of a proxy behind one, would be served as a model. */
START_TEST(trailing_bytes_are_refused)
{
	char sentence[128];

	file = realloc(file, bytes + 3);
	ck_assert(file);
	memset(file + bytes, 0, 3);
	snprintf(sentence, sizeof(sentence), "3 bytes follow the model's end at %zu", bytes);
	refused(bytes + 3, -EBADMSG, sentence);
}
END_TEST

/* One flipped bit anywhere in a section, or in what stands between two, must be seen. */
START_TEST(one_bit_in_each_section_is_refused)
{
	const struct obm_header *h = (const struct obm_header *)file;
	const struct obm_section *s = (const struct obm_section *)(file + sizeof(*h));
	uint64_t state = seeded("one_bit_in_each_section_is_refused");
	struct obm *o;

	for (uint32_t i = 0; i < h->n_sections; i++) {
		for (int k = 0; k < 4; k++) {
			uint64_t at = s[i].offset + (k == 0 ? 0 :
						     k == 1 ? s[i].bytes - 1 :
							      tiny_random(&state) % s[i].bytes);
			uint8_t before = file[at];

			file[at] ^= (uint8_t)(1u << tiny_random(&state) % 8);
			ck_assert_msg(open_bytes(file, bytes, 2, &o) == -EBADMSG, "section %u: %s",
				      i, why);
			ck_assert_msg(strstr(why, "is damaged: its checksum is another"), "%s",
				      why);
			file[at] = before;
		}
		if (i + 1 < h->n_sections && s[i].offset + s[i].bytes < s[i + 1].offset) {
			file[s[i + 1].offset - 1] = 1;
			ck_assert_int_eq(open_bytes(file, bytes, 2, &o), -EPROTO);
			ck_assert_msg(strstr(why, "something stands between its"), "%s", why);
			file[s[i + 1].offset - 1] = 0;
		}
	}
}
END_TEST

/* Bytes that neither checksum covers, and that only a signature gives a meaning. */
static bool only_signature_differs(const uint8_t *a, size_t n)
{
	static const size_t from = offsetof(struct obm_header, signer), to = from + 96;

	return n == bytes && !memcmp(a, file, from) && !memcmp(a + to, file + to, bytes - to);
}

static size_t corrupt(uint8_t *f, uint64_t *state)
{
	uint64_t r = tiny_random(state);
	size_t n = bytes, at, len, from;

	/* Half of them in the first pages, where every byte has a meaning. */
	at = (size_t)((r >> 8) % ((r & 64) ? bytes : 12288));
	len = 1 + (size_t)((r >> 40) % 64);
	from = (size_t)(tiny_random(state) % bytes);
	switch (r % 5) {
	case 0:
	case 1:
		f[at] ^= (uint8_t)(1u << (r >> 60) % 8);
		break;
	case 2:
		f[at] = (uint8_t)(r >> 50);
		break;
	case 3:
		n = from;
		break;
	default:
		for (size_t i = 0; i < len && at + i < bytes && from + i < bytes; i++)
			f[at + i] = file[from + i];
	}
	return n;
}

/* Any corruption that got through would be a wrong model served as a right one. */
START_TEST(corruptions_are_refused)
{
	uint64_t n = scaled(5000), state = seeded("corruptions_are_refused"), same = 0;
	uint8_t *f = malloc(bytes);
	struct obm *o;

	ck_assert(f);
	for (uint64_t i = 0; i < n; i++) {
		size_t len;

		memcpy(f, file, bytes);
		len = corrupt(f, &state);
		if (open_bytes(f, len, 1, &o))
			continue;
		ck_assert_msg(only_signature_differs(f, len), "corruption %llu was accepted",
			      (unsigned long long)i);
		obm_close(o);
		same++;
	}
	ck_assert_uint_lt(same, n / 2 + 2);
	free(f);
}
END_TEST

/* All that obm_open() promises of a file that it took. */
static void use(const struct obm *o)
{
	static int8_t rows[PACKED_ROWS * 4096];

	for (uint32_t i = 0; i < o->n_tensors; i++) {
		const struct obm_tensor *t = &o->tensors[i];
		struct packed_shape shape = obm_shape(t);
		const float *f = (const float *)(o->base + (t->layout ? t->scales : t->offset));
		uint64_t n = t->layout ? packed_n_scales(&shape) : t->cols;

		ck_assert(t->offset + t->bytes <= o->bytes &&
			  (const uint8_t *)(f + n) <= o->base + o->bytes);
		ck_assert_uint_eq(obm_not_finite(f, n), n);
		if (t->layout && (size_t)t->cols * 2 * PACKED_ROWS <= sizeof(rows))
			packed_untile(&shape,
				      o->base + t->offset + t->bytes -
					      t->bytes / packed_tiles(&shape),
				      (t->rows - 1) % PACKED_ROWS + 1, rows);
	}
}

/* The same with checksums that fit: what then gets through must at least be consistent. */
START_TEST(sealed_corruptions_are_safe)
{
	uint64_t n = scaled(5000), state = seeded("sealed_corruptions_are_safe"), taken = 0;
	uint8_t *f = malloc(bytes);
	struct obm *o;

	ck_assert(f);
	for (uint64_t i = 0; i < n; i++) {
		size_t len;

		memcpy(f, file, bytes);
		len = corrupt(f, &state);
		write_obm_seal(f, len, false);
		if (open_bytes(f, len, 1, &o))
			continue;
		use(o);
		obm_close(o);
		taken++;
	}
	ck_assert_uint_gt(taken, n / 100);
	free(f);
}
END_TEST

/* ---- what is wrong by meaning ---------------------------------------------------------------- */

static struct obm_arch *arch(void)
{
	return (struct obm_arch *)(file + write_obm_section(file, OBM_ARCH, 0)->offset);
}

static double *rope(void)
{
	return (double *)(file + write_obm_section(file, OBM_ROPE, 0)->offset);
}

static struct obm_header *header(void)
{
	return (struct obm_header *)file;
}

static struct obm_section *entry(uint32_t kind, uint32_t index)
{
	return write_obm_section(file, kind, index);
}

static struct obm_tensor *tensor(uint32_t role, uint32_t layer)
{
	return write_obm_tensor(file, role, layer);
}

static void swap_tensors(struct obm_tensor *a, struct obm_tensor *b)
{
	struct obm_tensor t = *a;

	*a = *b;
	*b = t;
}

/* Drops a tensor from the table; its bytes stay. */
static void drop(uint32_t role, uint32_t layer)
{
	struct obm_tensor *t = tensor(role, layer);
	struct obm_section *s = entry(OBM_TENSORS, 0);
	uint8_t *end = file + s->offset + s->bytes;

	memmove(t, t + 1, (size_t)(end - (uint8_t *)(t + 1)));
	memset(end - sizeof(*t), 0, sizeof(*t));
	s->bytes -= sizeof(*t);
}

static void drop_section(struct obm_section *s)
{
	struct obm_section *table = (struct obm_section *)(file + sizeof(struct obm_header));

	memmove(s, s + 1, (size_t)(table + header()->n_sections - (s + 1)) * sizeof(*s));
	memset(table + --header()->n_sections, 0, sizeof(*s));
}

static float *scales_of(uint32_t role, uint32_t layer)
{
	return (float *)(file + tensor(role, layer)->scales);
}

#define SPOIL(name, what) \
	static void name(void) \
	{ \
		what; \
	}

SPOIL(version, header()->version = 2)
SPOIL(contract, header()->contract = 0)
SPOIL(no_sections, header()->n_sections = 0)
SPOIL(many_sections, header()->n_sections = 529)
SPOIL(all_sections, header()->n_sections = UINT32_MAX)
SPOIL(header_bytes, header()->header_bytes = 8192)
SPOIL(header_reserved, header()->reserved[10] = 1)
SPOIL(after_table, file[4095] = 1)
SPOIL(kind_zero, entry(OBM_INFO, 0)->kind = 0)
SPOIL(kind_new, entry(OBM_INFO, 0)->kind = 9)
SPOIL(section_index, entry(OBM_INFO, 0)->index = 1)
SPOIL(weights_index, entry(OBM_WEIGHTS, 2)->index = 513)
SPOIL(section_offset, entry(OBM_ROPE, 0)->offset += 8)
SPOIL(section_behind, entry(OBM_ROPE, 0)->bytes = bytes)
SPOIL(section_wraps, entry(OBM_ROPE, 0)->bytes = UINT64_MAX - 8191)
SPOIL(section_far, entry(OBM_ROPE, 0)->offset = UINT64_MAX - 4095)
SPOIL(section_empty, entry(OBM_ROPE, 0)->bytes = 0)
SPOIL(section_overlaps, entry(OBM_ROPE, 0)->offset = entry(OBM_TENSORS, 0)->offset)
SPOIL(section_in_header, entry(OBM_ARCH, 0)->offset = 0)
SPOIL(section_gap, entry(OBM_ARCH, 0)->offset += 4096)
SPOIL(section_twice, entry(OBM_LICENCE, 0)->kind = OBM_INFO)
SPOIL(section_order, (entry(OBM_INFO, 0)->kind = 77, entry(OBM_LICENCE, 0)->kind = OBM_INFO,
		      entry(77, 0)->kind = OBM_LICENCE))
SPOIL(weights_gap, entry(OBM_WEIGHTS, 1)->index = 7)
SPOIL(no_chunks, drop_section(entry(OBM_CHUNKS, 0)))
SPOIL(no_tokenizer, entry(OBM_TOKENIZER, 0)->kind = OBM_ROPE)
SPOIL(chunks_short, (entry(OBM_CHUNKS, 0)->bytes -= 1, header()->file_bytes -= 1, bytes -= 1))
SPOIL(arch_short, entry(OBM_ARCH, 0)->bytes -= 8)
SPOIL(layers_zero, arch()->layers = 0)
SPOIL(layers_many, arch()->layers = 513)
SPOIL(layers_more, arch()->layers = 3)
SPOIL(layers_less, arch()->layers = 1)
SPOIL(heads_zero, arch()->heads = 0)
SPOIL(heads_many, arch()->heads = 513)
SPOIL(kv_heads_zero, arch()->kv_heads = 0)
SPOIL(kv_heads_odd, arch()->heads = 3; arch()->kv_heads = 2)
SPOIL(hidden_many, arch()->hidden = UINT32_MAX)
SPOIL(ffn_many, arch()->ffn = (1u << 20) + 1)
SPOIL(head_dim_odd, arch()->head_dim = 13)
SPOIL(head_dim_many, arch()->head_dim = 514)
SPOIL(vocab_zero, arch()->vocab = 0)
SPOIL(vocab_other, (arch()->vocab++, tensor(OBM_EMBED, OBM_NO_LAYER)->rows++,
		    arch()->n_parameters += arch()->hidden))
SPOIL(parameters_none, arch()->n_parameters = 0)
SPOIL(parameters_tied, arch()->n_parameters += (uint64_t)arch()->vocab * arch()->hidden)
SPOIL(context_zero, arch()->context = 0)
SPOIL(context_many, arch()->context = (1u << 20) + 1)
SPOIL(context_more, arch()->context = 21)
SPOIL(activation, arch()->activation = 3)
SPOIL(no_activation, arch()->activation = 0)
SPOIL(arch_flags, arch()->flags = 2)
SPOIL(eps_zero, arch()->rms_eps = 0)
SPOIL(eps_nan, arch()->rms_eps = NAN)
SPOIL(eps_one, arch()->rms_eps = 1)
SPOIL(theta_inf, arch()->rope_theta = INFINITY)
SPOIL(theta_one, arch()->rope_theta = 1)
SPOIL(name_endless, memset(arch()->name, 'x', 64))
SPOIL(name_latin, memcpy(arch()->name, "t\xe9", 2))
SPOIL(name_control, memcpy(arch()->name, "\x1b[2J", 5))
SPOIL(name_c1, memcpy(arch()->name, "a\xc2\x9b", 4))
SPOIL(name_tail, arch()->name[63] = 'x')
SPOIL(family_overlong, memcpy(arch()->family, "\xc0\x80", 3))
SPOIL(arch_reserved, arch()->reserved[7] = 1)
SPOIL(rope_short, (rope()[5] = 0, entry(OBM_ROPE, 0)->bytes -= 8))
SPOIL(rope_nan, rope()[0] = NAN)
SPOIL(rope_inf, rope()[0] = INFINITY)
SPOIL(rope_zero, rope()[5] = 0)
SPOIL(rope_negative, rope()[5] = -1e-9)
SPOIL(rope_ascends, rope()[5] = 0.9)
SPOIL(rope_fast, rope()[0] = 1e6)
SPOIL(rope_other, rope()[5] *= 1 + 0x1p-30)
SPOIL(rope_sum, arch()->rope_sha256[31] ^= 1)
SPOIL(info_latin, file[entry(OBM_INFO, 0)->offset + 7] = 0xff)
SPOIL(info_control, file[entry(OBM_INFO, 0)->offset + 7] = 7)
SPOIL(info_zero, file[entry(OBM_INFO, 0)->offset + 7] = 0)
SPOIL(info_form, file[entry(OBM_INFO, 0)->offset + 4] = ' ')
SPOIL(info_end,
      (file[entry(OBM_INFO, 0)->offset + sizeof(info) - 2] = 0, entry(OBM_INFO, 0)->bytes -= 1))
SPOIL(licence_control, file[entry(OBM_LICENCE, 0)->offset] = 0x7f)
SPOIL(tensors_odd, entry(OBM_TENSORS, 0)->bytes -= 1)
SPOIL(role_new, tensor(OBM_DOWN, 1)->role = 14)
SPOIL(layer_beyond, tensor(OBM_DOWN, 1)->layer = 2)
SPOIL(layer_none, tensor(OBM_DOWN, 1)->layer = OBM_NO_LAYER)
SPOIL(layer_some, tensor(OBM_EMBED, OBM_NO_LAYER)->layer = 0)
SPOIL(q_rows, tensor(OBM_Q, 0)->rows += 32)
SPOIL(q_cols, tensor(OBM_Q, 0)->cols = UINT32_MAX)
SPOIL(norm_rows, tensor(OBM_FFN_NORM, 0)->rows = 2)
SPOIL(embed_rows, tensor(OBM_EMBED, OBM_NO_LAYER)->rows -= 1)
SPOIL(layout_new, tensor(OBM_Q, 0)->layout = 6)
SPOIL(layout_far, tensor(OBM_Q, 0)->layout = 32)
SPOIL(linear_int8, tensor(OBM_Q, 0)->layout = PACKED_INT8)
SPOIL(linear_floats, tensor(OBM_Q, 0)->layout = 0)
SPOIL(embed_2bit, tensor(OBM_EMBED, OBM_NO_LAYER)->layout = PACKED_2BIT)
SPOIL(norm_groups, tensor(OBM_FFN_NORM, 0)->groups = 1)
SPOIL(groups_zero, tensor(OBM_Q, 0)->groups = 0)
SPOIL(groups_odd, tensor(OBM_Q, 0)->groups = 2)
SPOIL(tensor_reserved, tensor(OBM_Q, 0)->reserved[1] = 1)
SPOIL(tensor_twice, *tensor(OBM_K, 1) = *tensor(OBM_Q, 1))
SPOIL(tensor_order, swap_tensors(tensor(OBM_Q, 1), tensor(OBM_K, 1)))
SPOIL(no_embed, drop(OBM_EMBED, OBM_NO_LAYER))
SPOIL(no_q, drop(OBM_Q, 1))
SPOIL(no_last, drop(OBM_DOWN, 1))
SPOIL(no_sub_norm, drop(OBM_ATTN_SUB_NORM, 0))
SPOIL(tensor_bytes, tensor(OBM_Q, 0)->bytes = UINT64_MAX)
SPOIL(tensor_offset, tensor(OBM_Q, 0)->offset += 4)
SPOIL(tensor_outside, tensor(OBM_Q, 0)->offset = 0)
SPOIL(tensor_wraps, tensor(OBM_Q, 0)->offset = UINT64_MAX - 255)
SPOIL(tensor_overlaps, tensor(OBM_K, 0)->offset = tensor(OBM_Q, 0)->offset)
SPOIL(tensor_gap, tensor(OBM_Q, 0)->offset += 256)
SPOIL(scales_none, tensor(OBM_Q, 0)->scales = 0)
SPOIL(scales_some, tensor(OBM_FFN_NORM, 0)->scales = tensor(OBM_Q, 0)->scales)
SPOIL(scales_overlap, tensor(OBM_Q, 0)->scales = tensor(OBM_Q, 0)->offset)
SPOIL(section_longer, entry(OBM_WEIGHTS, 2)->bytes += 4)
SPOIL(norm_nan, ((float *)(file + tensor(OBM_FFN_NORM, 1)->offset))[3] = NAN)
SPOIL(scale_inf, scales_of(OBM_UP, 1)[7] = INFINITY)
SPOIL(embed_scale_nan, scales_of(OBM_EMBED, OBM_NO_LAYER)[260] = -NAN)

static const struct {
	void (*spoil)(void);
	int err;
	const char *why;
} meanings[] = {
	{ version, -ENOTSUP, "the file has container version 2; this program knows version 1" },
	{ contract, -ENOTSUP,
	  "the file is for numeric contract 0; this program computes by contract 1, so "
	  "convert the model again" },
	{ no_sections, -EPROTO, "its header has no sections" },
	{ many_sections, -EFBIG, "its header has 529 sections; at most 528 are taken" },
	{ all_sections, -EFBIG, "its header has 4294967295 sections; at most 528 are taken" },
	{ header_bytes, -EPROTO,
	  "its header says that it has 8192 bytes, which does not fit 10 sections" },
	{ header_reserved, -ENOTSUP,
	  "its header uses reserved words, which this program does not know; a newer "
	  "one may" },
	{ after_table, -EPROTO,
	  "something stands between its section table and its first section" },
	{ kind_zero, -ENOTSUP,
	  "it has a section of kind 0, which this program does not know; a newer one "
	  "may" },
	{ kind_new, -ENOTSUP,
	  "it has a section of kind 9, which this program does not know; a newer one "
	  "may" },
	{ section_index, -EPROTO, "its information section has index 1; at most 0 can be" },
	{ weights_index, -EPROTO, "its weights section has index 513; at most 512 can be" },
	{ section_offset, -EPROTO,
	  "its rotary table section lies at 12296, which is no multiple of 4096" },
	{ section_behind, -EPROTO,
	  "its rotary table section, 81952 bytes at 12288, ends behind the file" },
	{ section_wraps, -EPROTO,
	  "its rotary table section, 18446744073709543424 bytes at 12288, ends behind "
	  "the file" },
	{ section_far, -EPROTO,
	  "its rotary table section, 48 bytes at 18446744073709547520, ends behind the "
	  "file" },
	{ section_empty, -EPROTO, "its rotary table section is empty" },
	{ section_overlaps, -EPROTO,
	  "its rotary table section begins at 8192, inside what stands before it" },
	{ section_in_header, -EPROTO,
	  "its architecture section begins at 0, inside what stands before it" },
	{ section_gap, -EPROTO,
	  "its architecture section begins at 8192 and leaves a gap before it" },
	{ section_twice, -EPROTO, "its information section is there twice" },
	{ section_order, -EPROTO, "its information section is not at its place in the table" },
	{ weights_gap, -EPROTO, "its weights section 1 is missing" },
	{ no_chunks, -EPROTO, "its chunk table section is missing" },
	{ no_tokenizer, -EPROTO, "its rotary table section is there twice" },
	{ chunks_short, -EPROTO, "its chunk table section has 31 bytes; it must have 32" },
	{ arch_short, -EPROTO, "its architecture section has 240 bytes; it must have 248" },
	{ layers_zero, -EPROTO, "its architecture has layers 0; at least 1 is needed" },
	{ layers_many, -EFBIG, "its architecture has layers 513; this program serves at most 512" },
	{ layers_more, -EPROTO, "it has 3 weights sections; 3 layers need 4" },
	{ layers_less, -EPROTO, "it has 3 weights sections; 1 layers need 2" },
	{ heads_zero, -EPROTO, "its architecture has heads 0; at least 1 is needed" },
	{ heads_many, -EFBIG, "its architecture has heads 513; this program serves at most 512" },
	{ kv_heads_zero, -EPROTO, "its architecture has kv_heads 0; at least 1 is needed" },
	{ kv_heads_odd, -EPROTO, "its 3 heads cannot share 2 kv_heads evenly" },
	{ hidden_many, -EFBIG,
	  "its architecture has hidden 4294967295; this program serves at most 131072" },
	{ ffn_many, -EFBIG,
	  "its architecture has ffn 1048577; this program serves at most 1048576" },
	{ head_dim_odd, -EPROTO, "its head_dim 13 is odd; rotary positions turn pairs" },
	{ head_dim_many, -EFBIG,
	  "its architecture has head_dim 514; this program serves at most 512" },
	{ vocab_zero, -EPROTO, "its architecture has vocab 0; at least 1 is needed" },
	{ vocab_other, -EPROTO,
	  "its tokenizer has 265 tokens, but its embedding 266 rows; they belong to "
	  "two models" },
	{ parameters_none, -EPROTO,
	  "its architecture says that it has 0 parameters, but its tensors have 34032" },
	{ parameters_tied, -EPROTO,
	  "its architecture says that it has 44632 parameters, but its tensors have 34032" },
	{ context_zero, -EPROTO, "its architecture has context 0; at least 1 is needed" },
	{ context_many, -EFBIG,
	  "its architecture has context 1048577; this program serves at most 1048576" },
	{ context_more, -EBADMSG,
	  "its rotary table comes out otherwise on this machine than where the model "
	  "was made; either is wrong, so it is not served" },
	{ activation, -ENOTSUP,
	  "its activation 3 is none that this program knows; a newer one may" },
	{ no_activation, -ENOTSUP,
	  "its activation 0 is none that this program knows; a newer one may" },
	{ arch_flags, -ENOTSUP,
	  "its flags 0x2 hold some that this program does not know; a newer one may" },
	{ eps_zero, -EPROTO, "its rms_eps is 0; it must lie between 0 and 1" },
	{ eps_nan, -EPROTO, "its rms_eps is nan; it must lie between 0 and 1" },
	{ eps_one, -EPROTO, "its rms_eps is 1; it must lie between 0 and 1" },
	{ theta_inf, -EPROTO, "its rope_theta is inf; it must be a number above 1" },
	{ theta_one, -EPROTO, "its rope_theta is 1; it must be a number above 1" },
	{ name_endless, -EPROTO, "its name has no end within 64 bytes" },
	{ name_latin, -EPROTO, "byte 1 of its name is not UTF-8" },
	{ name_control, -EPROTO, "byte 0 of its name is a control character" },
	{ name_c1, -EPROTO, "byte 1 of its name is a control character" },
	{ name_tail, -EPROTO, "something follows the end of its name" },
	{ family_overlong, -EPROTO, "byte 0 of its family is not UTF-8" },
	{ arch_reserved, -ENOTSUP,
	  "its architecture uses reserved word 7, which this program does not know; a "
	  "newer one may" },
	{ rope_short, -EPROTO, "its rotary table section has 40 bytes; it must have 48" },
	{ rope_nan, -EPROTO, "rotary frequency 0 is nan; it must be finite and above 0" },
	{ rope_inf, -EPROTO, "rotary frequency 0 is inf; it must be finite and above 0" },
	{ rope_zero, -EPROTO, "rotary frequency 5 is 0; it must be finite and above 0" },
	{ rope_negative, -EPROTO, "rotary frequency 5 is -1e-09; it must be finite and above 0" },
	{ rope_ascends, -EPROTO,
	  "rotary frequency 5 is 0.9, above the one before it, 0.00215443; they must "
	  "descend" },
	{ rope_fast, -EPROTO,
	  "rotary frequency 0 is 1e+06; with a context of 20 the angles would pass "
	  "2^24, where they lose precision" },
	{ rope_other, -EBADMSG,
	  "its rotary table comes out otherwise on this machine than where the model "
	  "was made; either is wrong, so it is not served" },
	{ rope_sum, -EBADMSG,
	  "its rotary table comes out otherwise on this machine than where the model "
	  "was made; either is wrong, so it is not served" },
	{ info_latin, -EPROTO, "byte 7 of its information is not UTF-8" },
	{ info_control, -EPROTO, "byte 7 of its information is a control character" },
	{ info_zero, -EPROTO, "byte 7 of its information is a control character" },
	{ info_form, -EPROTO, "line 1 of its information is not of the form 'key: value'" },
	{ info_end, -EPROTO, "line 3 of its information has no end" },
	{ licence_control, -EPROTO, "byte 0 of its licence is a control character" },
	{ tensors_odd, -EPROTO, "its tensor table has 1535 bytes, which is no multiple of 64" },
	{ role_new, -ENOTSUP,
	  "it has a tensor of role 14, which this program does not know; a newer one "
	  "may" },
	{ layer_beyond, -EPROTO, "it has a tensor down of layer 2, but only 2 layers" },
	{ layer_none, -EPROTO, "tensor down belongs to no layer, but must" },
	{ layer_some, -EPROTO, "tensor embed of layer 0 stands in a layer, but belongs to none" },
	{ q_rows, -EPROTO,
	  "tensor q of layer 0 is 56 x 40, but the architecture makes it 24 x 40" },
	{ q_cols, -EPROTO,
	  "tensor q of layer 0 is 24 x 4294967295, but the architecture makes it 24 x "
	  "40" },
	{ norm_rows, -EPROTO,
	  "tensor ffn_norm of layer 0 is 2 x 40, but the architecture makes it 1 x 40" },
	{ embed_rows, -EPROTO, "tensor embed is 264 x 40, but the architecture makes it 265 x 40" },
	{ layout_new, -ENOTSUP,
	  "tensor q of layer 0 has layout 6, which this program does not know; a newer "
	  "one may" },
	{ layout_far, -ENOTSUP,
	  "tensor q of layer 0 has layout 32, which this program does not know; a "
	  "newer one may" },
	{ linear_int8, -EPROTO,
	  "tensor q of layer 0 is stored as int8, which this role cannot be" },
	{ linear_floats, -EPROTO,
	  "tensor q of layer 0 is stored as plain floats, which this role cannot be" },
	{ embed_2bit, -EPROTO, "tensor embed is stored as 2bit, which this role cannot be" },
	{ norm_groups, -EPROTO,
	  "tensor ffn_norm of layer 0 is plain floats, but has 1 groups of scales" },
	{ groups_zero, -EPROTO,
	  "tensor q of layer 0: it has no column group; a matrix without groups has "
	  "one" },
	{ groups_odd, -EPROTO,
	  "tensor q of layer 0: its column groups are not equal multiples of 64 "
	  "columns" },
	{ tensor_reserved, -ENOTSUP,
	  "tensor q of layer 0 uses reserved words, which this program does not know; "
	  "a newer one may" },
	{ tensor_twice, -EPROTO, "tensor q of layer 1 is there twice" },
	{ tensor_order, -EPROTO, "tensor q of layer 1 is not at its place in the table" },
	{ no_embed, -EPROTO, "tensor embed is missing" },
	{ no_q, -EPROTO, "tensor q of layer 1 is missing" },
	{ no_last, -EPROTO, "tensor down of layer 1 is missing" },
	{ no_sub_norm, -EPROTO,
	  "tensor attn_sub_norm of layer 0 is missing, but other layers have one" },
	{ tensor_bytes, -EPROTO,
	  "tensor q of layer 0 says that it has 18446744073709551615 bytes; its shape "
	  "makes it 512" },
	{ tensor_offset, -EPROTO,
	  "the values of tensor q of layer 0 lie at 58628, which is no multiple of 256" },
	{ tensor_outside, -EPROTO,
	  "the values of tensor q of layer 0, 512 bytes at 0, lie outside their "
	  "section, which ends at 68608" },
	{ tensor_wraps, -EPROTO,
	  "the values of tensor q of layer 0, 512 bytes at 18446744073709551360, lie "
	  "outside their section, which ends at 68608" },
	{ tensor_overlaps, -EPROTO,
	  "the values of tensor k of layer 0 lie at 58624, but the ones before them "
	  "end at 59264" },
	{ tensor_gap, -EPROTO,
	  "the values of tensor q of layer 0 lie at 58880, but their place is at 58624" },
	{ scales_none, -EPROTO, "tensor q of layer 0 has no scales, which its layout needs" },
	{ scales_some, -EPROTO,
	  "tensor ffn_norm of layer 0 has scales, which its layout has no use for" },
	{ scales_overlap, -EPROTO,
	  "the scales of tensor q of layer 0 lie at 58624, but the ones before them "
	  "end at 59136" },
	{ section_longer, -EPROTO,
	  "weights section 2 ends at 80900, but its last tensor at 80896" },
	{ norm_nan, -EPROTO, "value 3 of tensor ffn_norm of layer 1 is no finite number" },
	{ scale_inf, -EPROTO, "scale 7 of tensor up of layer 1 is no finite number" },
	{ embed_scale_nan, -EPROTO, "scale 260 of tensor embed is no finite number" },
};

/* Each lie, told with checksums that fit, has its errno and its sentence. */
START_TEST(lies_are_refused)
{
	meanings[_i].spoil();
	write_obm_seal(file, bytes, true);
	refused(bytes, meanings[_i].err, meanings[_i].why);
}
END_TEST

/* ---- all of it, and who vouches for it ------------------------------------------------------- */

static int verify(const uint8_t *key, unsigned threads, struct obm_verdict *v)
{
	struct obm *o;
	int err = open_bytes(file, bytes, 1, &o);

	ck_assert_msg(!err, "%s", why);
	err = obm_verify(o, key, threads, v, why, sizeof(why));
	obm_close(o);
	return err;
}

/*
 * A file altered by who can compute an xxh3 must not keep its name: that is what the identity is
 * for.
 */
START_TEST(another_content_is_refused)
{
	struct obm_verdict v;
	char sentence[160];

	file[tensor(OBM_UP, 1)->offset + 5] ^= 1;
	write_obm_seal(file, bytes, false);
	ck_assert_int_eq(verify(NULL, 3, &v), -EBADMSG);
	snprintf(sentence, sizeof(sentence),
		 "it is not the model that it says: bytes 4096 to %llu differ from "
		 "what was written; get the file again",
		 (unsigned long long)entry(OBM_CHUNKS, 0)->offset);
	ck_assert_str_eq(why, sentence);
}
END_TEST

/* The sentence must name the first bad chunk, whichever thread met which first. */
START_TEST(the_first_bad_chunk_is_named)
{
	struct write_obm w = { PACKED_2BIT, PACKED_INT8, 0, NULL, NULL };
	struct obm_verdict v;
	struct tiny t = small(3);
	char sentence[160];

	t.hidden = 4096;
	t.ffn = 4096;
	free(file);
	tiny_fill(&t);
	file = write_obm(&t, &w, &bytes);
	ck_assert_uint_gt(bytes, 6u << 20);
	ck_assert_int_eq(verify(NULL, 2, &v), 0);
	for (uint64_t at = 5; at >= 3; at--)
		file[4096 + at * OBM_CHUNK] ^= 0x40;
	write_obm_seal(file, bytes, false);
	for (unsigned threads = 1; threads <= 8; threads++) {
		ck_assert_int_eq(verify(NULL, threads, &v), -EBADMSG);
		snprintf(sentence, sizeof(sentence),
			 "it is not the model that it says: bytes %u to %u differ "
			 "from what was written; get the file again",
			 4096 + 3 * OBM_CHUNK, 4096 + 4 * OBM_CHUNK);
		ck_assert_str_eq(why, sentence);
	}
	tiny_free(&t);
}
END_TEST

/* Code 3 is no weight; a file whose maker wrote it has good checksums all the same. */
START_TEST(impossible_codes_are_refused)
{
	struct obm_verdict v;

	file[tensor(OBM_GATE, 1)->offset + 2 * PACKED_UNIT + PACKED_BYTES] = 0xff;
	write_obm_seal(file, bytes, true);
	ck_assert_int_eq(verify(NULL, 2, &v), -EPROTO);
	ck_assert_str_eq(
		why,
		"tensor gate of layer 1 holds what is no weight, in rows 64 to 71; who made the "
		"file made it wrong");
}
END_TEST

static void sign(const uint8_t *secret)
{
	crypto_sign_ed25519_sk_to_pk(header()->signer, secret);
	crypto_sign_detached(header()->signature, NULL, header()->identity, 32, secret);
}

/* The wrong person's model, or an unsigned one, would be served where a signature was demanded. */
START_TEST(signatures_are_checked)
{
	uint8_t key[32], secret[64], other[32], other_secret[64];
	char sentence[160];
	struct obm_verdict v;

	ck_assert_int_ge(sodium_init(), 0);
	crypto_sign_keypair(key, secret);
	crypto_sign_keypair(other, other_secret);
	ck_assert_int_eq(verify(key, 1, &v), -EKEYREJECTED);
	ck_assert_str_eq(why, "it is not signed");

	sign(secret);
	ck_assert_int_eq(verify(key, 1, &v), 0);
	ck_assert(v.is_signed);
	ck_assert_int_eq(verify(NULL, 1, &v), 0);
	ck_assert(v.is_signed);
	ck_assert_int_eq(verify(other, 1, &v), -EKEYREJECTED);
	snprintf(sentence, sizeof(sentence), "it is signed by another key, %02x%02x%02x%02x...",
		 key[0], key[1], key[2], key[3]);
	ck_assert_str_eq(why, sentence);

	header()->signature[63] ^= 1;
	ck_assert_int_eq(verify(NULL, 1, &v), -EKEYREJECTED);
	snprintf(sentence, sizeof(sentence),
		 "its signature is bad: the key %02x%02x%02x%02x... did not sign "
		 "this model",
		 key[0], key[1], key[2], key[3]);
	ck_assert_str_eq(why, sentence);

	/* Another's signature under the name that is demanded. */
	sign(other_secret);
	memcpy(header()->signer, key, sizeof(key));
	ck_assert_int_eq(verify(key, 1, &v), -EKEYREJECTED);
	ck_assert_str_eq(why, sentence);

	memset(header()->signer, 0, sizeof(header()->signer));
	ck_assert_int_eq(verify(NULL, 1, &v), -EKEYREJECTED);
	ck_assert_str_eq(why, "it has a signature, but names no signer");
}
END_TEST

/* A file may be cut while the daemon reads it; that must be an answer, not a signal. */
START_TEST(a_cut_behind_our_back_is_an_error)
{
	int fd = memory_file(file, bytes);
	struct obm_verdict v;
	struct obm *o;

	ck_assert_int_eq(obm_open(fd, 0, 1, &o, why, sizeof(why)), 0);
	ck_assert_int_eq(ftruncate(fd, (off_t)(bytes / 2)), 0);
	ck_assert_int_eq(obm_verify(o, NULL, 2, &v, why, sizeof(why)), -EBADMSG);
	ck_assert_str_eq(why,
			 "the file can no longer be read: it was cut, or its disk has a fault");
	obm_close(o);
	close(fd);
}
END_TEST

/* `info` of a file on a slow disk must not wait for its weights, but for nothing else less. */
START_TEST(unchecked_spares_the_weights_only)
{
	struct obm *o;
	int fd;

	file[tensor(OBM_UP, 1)->offset + 5] ^= 1;
	fd = memory_file(file, bytes);
	ck_assert_int_eq(obm_open(fd, OBM_UNCHECKED, 1, &o, why, sizeof(why)), 0);
	obm_close(o);
	ck_assert_int_eq(obm_open(fd, 0, 1, &o, why, sizeof(why)), -EBADMSG);
	ck_assert_str_eq(
		why, "its weights section 2 (layer 1) is damaged: its checksum is another; get the "
		     "file again");
	close(fd);
	file[entry(OBM_TOKENIZER, 0)->offset + 100] ^= 1;
	fd = memory_file(file, bytes);
	ck_assert_int_eq(obm_open(fd, OBM_UNCHECKED, 1, &o, why, sizeof(why)), -EBADMSG);
	ck_assert_str_eq(
		why,
		"its tokenizer section is damaged: its checksum is another; get the file again");
	close(fd);
}
END_TEST

/* What is no model at all deserves to be told what it is. */
START_TEST(other_files_are_named)
{
	static const struct {
		const char *begins;
		size_t n;
		int err;
		const char *why;
	} others[] = {
		{ "GGUF\3\0\0\0", 8, -EPROTO,
		  "the file is a GGUF file; `onebit model convert` makes a model "
		  "of it" },
		{ "H1B\0\2\0\0\0", 8, -EPROTO,
		  "the file is an .h1b file; `onebit model convert` makes a model "
		  "of it" },
		{ "\x89OBM\n\x1a\n\1", 8, -EBADMSG,
		  "the file is damaged: a transfer in text mode removed "
		  "carriage returns" },
		{ "\x89OBM\r\r\n\x1a", 8, -EBADMSG,
		  "the file is damaged: a transfer in text mode added "
		  "carriage returns" },
		{ "\tOBM\r\n\x1a\n", 8, -EBADMSG,
		  "the file is damaged: a transfer took away the eighth bit of "
		  "its bytes" },
		{ "\xc2\x89OBM\r\n\x1a", 8, -EBADMSG,
		  "the file is damaged: it was taken for text and written "
		  "as UTF-8" },
		{ "\x89OBM\r\n\x1a\r", 8, -EPROTO,
		  "the file is no .obm model: it begins with 89 4f 42 4d 0d 0a "
		  "1a 0d" },
		{ "{ \"a\": 1}", 8, -EPROTO,
		  "the file is no .obm model: it begins with 7b 20 22 61 22 3a 20 31" },
	};
	struct obm *o;
	int fd, p[2];

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		memcpy(file, others[i].begins, others[i].n);
		refused(bytes, others[i].err, others[i].why);
		refused(8, others[i].err, others[i].why);
	}
	fd = open("/", O_RDONLY | O_DIRECTORY);
	ck_assert_int_eq(obm_open(fd, 0, 1, &o, why, sizeof(why)), -EISDIR);
	close(fd);
	ck_assert_int_eq(pipe(p), 0);
	ck_assert_int_eq(obm_open(p[0], 0, 1, &o, why, sizeof(why)), -EINVAL);
	ck_assert_str_eq(why, "it is no regular file, so it cannot be mapped");
	close(p[0]);
	close(p[1]);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("obm");
	TCase *t = tcase_create("obm");
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(t, set_up, tear_down);
	tmp_fixture(t);
	tcase_add_loop_test(t, any_shape_opens, 0, (int)(sizeof(shapes) / sizeof(shapes[0])));
	tcase_add_test(t, what_is_forgotten_comes_again);
	tcase_add_test(t, memory_opens);
	tcase_add_test(t, information_is_found);
	tcase_add_test(t, texts_may_be_absent);
	tcase_add_test(t, truncation_is_refused);
	tcase_add_test(t, trailing_bytes_are_refused);
	tcase_add_test(t, one_bit_in_each_section_is_refused);
	tcase_add_test(t, corruptions_are_refused);
	tcase_add_test(t, sealed_corruptions_are_safe);
	tcase_add_loop_test(t, lies_are_refused, 0, (int)(sizeof(meanings) / sizeof(meanings[0])));
	tcase_add_test(t, another_content_is_refused);
	tcase_add_test(t, the_first_bad_chunk_is_named);
	tcase_add_test(t, impossible_codes_are_refused);
	tcase_add_test(t, signatures_are_checked);
	tcase_add_test(t, a_cut_behind_our_back_is_an_error);
	tcase_add_test(t, unchecked_spares_the_weights_only);
	tcase_add_test(t, other_files_are_named);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

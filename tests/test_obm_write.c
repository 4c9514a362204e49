/* SPDX-License-Identifier: MIT */
/*
 * The converter's writer against the tests' own, byte for byte: a fault in packing, placing,
 * hashing or in the identity shows as a difference. Then the way back, through the source, and the
 * signature.
 */
#include <check.h>
#undef fail /* an old name in it; mapped.h has its own */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_obm.h"
#include "mapped.h"
#include "obm.h"
#include "obm_write.h"
#include "packed.h"
#include "rope.h"
#include "source.h"
#include "vocab.h"

static const char info[] = "name: tiny\norigin: made by a test\n";
static const char licence[] = "Anybody may do anything.\n";

static char why[512], path[300];

static void in_tmp(char out[300], const char *name)
{
	snprintf(out, 300, "%s/%s", getenv("TMPDIR"), name);
}

/* The folder is the test case's; each test begins without the one before it. */
static void set_up(void)
{
	in_tmp(path, "model.obm");
	unlink(path);
}

static uint8_t *read_file(const char *name, size_t *n)
{
	struct stat st;
	uint8_t *data;
	int fd = open(name, O_RDONLY);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(fstat(fd, &st), 0);
	*n = (size_t)st.st_size;
	data = malloc(*n + 1);
	ck_assert(data && read(fd, data, *n) == (ssize_t)*n);
	close(fd);
	return data;
}

static const struct {
	uint32_t linear, table, groups;
	uint32_t heads, kv_heads, head_dim, hidden, ffn, layers;
	bool sub_norms, tied, row_scales, texts;
} shapes[] = {
	{ PACKED_2BIT, PACKED_INT8, 1, 4, 2, 32, 128, 192, 2, true, true, false, true },
	{ PACKED_BASE3, PACKED_F16, 1, 4, 2, 32, 128, 192, 2, true, false, true, false },
	{ PACKED_2BIT, PACKED_BF16, 2, 4, 4, 32, 128, 256, 1, false, true, true, true },
	{ PACKED_BASE3, PACKED_INT8, 1, 1, 1, 2, 1, 1, 1, false, false, false, false },
	{ PACKED_2BIT, PACKED_F16, 1, 3, 1, 100, 33, 31, 5, true, false, true, false },
	{ PACKED_BASE3, PACKED_BF16, 3, 3, 3, 64, 192, 384, 2, true, true, true, true },
	/* Several chunks, more than the queue holds, the last one not full. */
	{ PACKED_2BIT, PACKED_BF16, 1, 8, 8, 128, 2000, 4000, 1, true, false, true, true },
};

static struct tiny shaped(int i)
{
	struct tiny t;

	tiny_default(&t, 11 + (uint64_t)i);
	t.groups = shapes[i].groups;
	t.heads = shapes[i].heads;
	t.kv_heads = shapes[i].kv_heads;
	t.head_dim = shapes[i].head_dim;
	t.hidden = shapes[i].hidden;
	t.ffn = shapes[i].ffn;
	t.layers = shapes[i].layers;
	t.sub_norms = shapes[i].sub_norms;
	t.tied = shapes[i].tied;
	t.row_scales = shapes[i].row_scales;
	return t;
}

/* ---- a plan, as a converter makes it --------------------------------------------------------- */

struct planned {
	struct obm_plan plan;
	struct obm_tensor tensors[512];
	double rope[OBM_HEAD_DIM_MAX / 2];
	void *tokenizer;
};

static void plan_tensor(struct planned *p, uint32_t role, uint32_t layer, uint32_t layout,
			uint32_t rows, uint32_t cols, uint32_t groups)
{
	p->tensors[p->plan.n_tensors++] = (struct obm_tensor){ .role = role,
							       .layer = layer,
							       .layout = layout,
							       .rows = rows,
							       .cols = cols,
							       .groups = groups };
}

static void plan(struct planned *p, const struct tiny *t, const struct write_obm *o)
{
	size_t n;

	memset(p, 0, sizeof(*p));
	p->plan.arch = write_obm_arch(t, o);
	rope_frequencies((double)t->theta, t->head_dim, p->rope);
	p->plan.rope = p->rope;
	p->tokenizer = write_obm_tokenizer(t, &n);
	p->plan.tokenizer = p->tokenizer;
	p->plan.tokenizer_bytes = n;
	p->plan.info = o->info;
	p->plan.licence = o->licence;
	p->plan.tensors = p->tensors;
	/* Backwards: the order is the writer's to find. */
	for (uint32_t i = t->layers; i--;) {
		for (uint32_t m = TINY_MATRICES; m--;)
			plan_tensor(p, OBM_Q + m, i, o->linear, t->layer[i].m[m].rows,
				    t->layer[i].m[m].cols, t->groups);
		if (t->sub_norms)
			plan_tensor(p, OBM_FFN_SUB_NORM, i, 0, 1, t->ffn, 0);
		plan_tensor(p, OBM_FFN_NORM, i, 0, 1, t->hidden, 0);
		if (t->sub_norms)
			plan_tensor(p, OBM_ATTN_SUB_NORM, i, 0, 1, t->heads * t->head_dim, 0);
		plan_tensor(p, OBM_ATTN_NORM, i, 0, 1, t->hidden, 0);
	}
	plan_tensor(p, OBM_FINAL_NORM, OBM_NO_LAYER, 0, 1, t->hidden, 0);
	if (!t->tied)
		plan_tensor(p, OBM_HEAD, OBM_NO_LAYER, o->table, t->vocab, t->hidden, 1);
	plan_tensor(p, OBM_EMBED, OBM_NO_LAYER, o->table, t->vocab, t->hidden, 1);
}

static const float *norm_of(const struct tiny *t, uint32_t role, uint32_t layer)
{
	switch (role) {
	case OBM_FINAL_NORM:
		return t->final_norm;
	case OBM_ATTN_NORM:
		return t->layer[layer].attn_norm;
	case OBM_ATTN_SUB_NORM:
		return t->layer[layer].attn_sub_norm;
	case OBM_FFN_NORM:
		return t->layer[layer].ffn_norm;
	default:
		return t->layer[layer].ffn_sub_norm;
	}
}

/* Rows of a table in the form that its layout packs. */
static int write_table(struct obm_writer *w, const struct obm_tensor *o, const float *f,
		       uint32_t row, uint32_t n)
{
	size_t all = (size_t)n * o->cols;
	int8_t *codes = malloc(all);
	uint16_t *halves = malloc(all * 2);
	float scales[PACKED_ROWS];
	int err;

	ck_assert(codes && halves);
	f += (size_t)row * o->cols;
	for (uint32_t r = 0; r < n; r++)
		write_obm_int8(f + (size_t)r * o->cols, o->cols, codes + (size_t)r * o->cols,
			       &scales[r]);
	for (size_t i = 0; i < all; i++)
		halves[i] = o->layout == PACKED_F16 ? float_to_half(f[i]) : float_to_bf16(f[i]);
	err = o->layout == PACKED_INT8 ? obm_writer_rows(w, codes, scales, n, why, sizeof(why)) :
					 obm_writer_rows(w, halves, NULL, n, why, sizeof(why));
	free(codes);
	free(halves);
	return err;
}

/* All that the writer asks for, in its order. */
static int write_all(struct obm_writer *w, const struct tiny *t)
{
	const struct obm_tensor *o;
	int err = 0;

	while (!err && (o = obm_writer_tensor(w)))
		for (uint32_t row = 0, n; !err && row < o->rows; row += n) {
			const struct tiny_matrix *m =
				o->role >= OBM_Q ? &t->layer[o->layer].m[o->role - OBM_Q] : NULL;

			n = o->rows - row < PACKED_ROWS ? o->rows - row : PACKED_ROWS;
			if (!o->layout)
				err = obm_writer_rows(w, norm_of(t, o->role, o->layer), NULL, 1,
						      why, sizeof(why));
			else if (m)
				err = obm_writer_rows(w, m->codes + (size_t)row * m->cols,
						      m->scales + (size_t)row * m->groups, n, why,
						      sizeof(why));
			else
				err = write_table(w, o, o->role == OBM_EMBED ? t->embed : t->head,
						  row, n);
		}
	return err;
}

static int write_model(const struct tiny *t, struct planned *p, const char *to,
		       uint8_t identity[32])
{
	struct obm_writer *w = NULL;
	struct output *out;
	int err;

	ck_assert_msg(!output_new(to, true, &out, why, sizeof(why)), "%s", why);
	err = obm_writer_new(&p->plan, out, &w, why, sizeof(why));
	if (!err)
		err = write_all(w, t);
	if (!err)
		err = obm_writer_finish(w, identity, why, sizeof(why));
	obm_writer_free(w);
	if (!err)
		err = output_commit(out, why, sizeof(why));
	output_free(out);
	return err;
}

/* ---- tests ----------------------------------------------------------------------------------- */

/* Two writers from one text that differ in a byte: one of them, or the text, is wrong. */
START_TEST(two_writers_agree)
{
	struct write_obm o = { shapes[_i].linear, shapes[_i].table, 0,
			       shapes[_i].texts ? info : NULL, shapes[_i].texts ? licence : NULL };
	struct tiny t = shaped(_i);
	static struct planned p;
	uint8_t identity[32], *a, *b;
	size_t n, m;

	tiny_fill(&t);
	plan(&p, &t, &o);
	for (int again = 0; again < 2; again++) {
		ck_assert_msg(!write_model(&t, &p, path, identity), "%s", why);
		a = read_file(path, &n);
		b = write_obm(&t, &o, &m);
		ck_assert_uint_eq(n, m);
		for (size_t i = 0; i < n; i++)
			if (a[i] != b[i])
				ck_abort_msg("byte %zu differs", i);
		ck_assert_mem_eq(identity, ((struct obm_header *)b)->identity, 32);
		free(a);
		free(b);
	}
	free(p.tokenizer);
	tiny_free(&t);
}
END_TEST

static void expect_codes(struct source *s, const struct source_tensor *st,
			 const struct tiny_matrix *m, uint32_t row, uint32_t n)
{
	int8_t *codes = malloc((size_t)n * m->cols);
	float *scales = malloc(n * m->groups * sizeof(*scales));

	ck_assert(codes && scales);
	ck_assert_msg(!s->ops->read_codes(s, st, row, n, codes, scales, why, sizeof(why)), "%s",
		      why);
	ck_assert_mem_eq(codes, m->codes + (size_t)row * m->cols, (size_t)n * m->cols);
	ck_assert_mem_eq(scales, m->scales + (size_t)row * m->groups,
			 n * m->groups * sizeof(*scales));
	free(codes);
	free(scales);
}

static void expect_floats(struct source *s, const struct source_tensor *st, const float *want,
			  uint32_t row, uint32_t n)
{
	float *got = malloc((size_t)n * st->cols * sizeof(*got)), scale;
	int8_t *codes = malloc(st->cols);

	ck_assert(got && codes);
	want += (size_t)row * st->cols;
	ck_assert_msg(!s->ops->read_floats(s, st, row, n, got, why, sizeof(why)), "%s", why);
	for (uint32_t r = 0; r < n; r++, want += st->cols) {
		write_obm_int8(want, st->cols, codes, &scale);
		for (uint32_t c = 0; c < st->cols; c++) {
			float v = st->form == SOURCE_INT8 ? (float)codes[c] * scale : want[c];

			if (memcmp(&got[(size_t)r * st->cols + c], &v, sizeof(v)))
				ck_abort_msg("row %u, column %u", row + r, c);
		}
	}
	free(got);
	free(codes);
}

static const float *floats_of(const struct tiny *t, const struct source_tensor *st)
{
	return st->role == OBM_EMBED ? t->embed :
	       st->role == OBM_HEAD  ? t->head :
				       norm_of(t, st->role, st->layer);
}

/*
 * What went in must come out, by any number of rows at a time: else carrying a model on changes it.
 */
START_TEST(the_source_gives_it_back)
{
	struct write_obm o = { shapes[_i].linear, shapes[_i].table, 0,
			       "name: x\nconverter: y\nconverter: z\nl: w\n",
			       shapes[_i].texts ? licence : NULL };
	struct tiny t = shaped(_i);
	struct source *s;
	static struct planned p;
	uint8_t identity[32];
	uint64_t state = 5;
	size_t n;
	void *section;

	tiny_fill(&t);
	plan(&p, &t, &o);
	ck_assert_msg(!write_model(&t, &p, path, identity), "%s", why);
	ck_assert_msg(!source_open_obm(path, NULL, &s, why, sizeof(why)), "%s", why);
	ck_assert_msg(!source_check(s, why, sizeof(why)), "%s", why);
	ck_assert_str_eq(s->format, "obm");
	ck_assert_str_eq(s->info, "name: x\nl: w\n");
	ck_assert(shapes[_i].texts ? !strcmp(s->licence, licence) : !s->licence);
	ck_assert_int_eq(s->qk, SOURCE_QK_SPLIT);
	ck_assert_mem_eq(s->rope, p.rope, t.head_dim / 2 * sizeof(double));
	ck_assert_uint_eq(s->n_tensors, p.plan.n_tensors);
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		const struct source_tensor *st = &s->tensors[i];

		for (uint32_t row = 0, k; row < st->rows; row += k) {
			k = 1 + (uint32_t)(tiny_random(&state) % 70);
			k = k < st->rows - row ? k : st->rows - row;
			if (st->role >= OBM_Q)
				expect_codes(s, st, &t.layer[st->layer].m[st->role - OBM_Q], row,
					     k);
			else
				expect_floats(s, st, floats_of(&t, st), row, k);
		}
		s->ops->done(s, st);
	}
	ck_assert_msg(!vocab_build(s->vocab, t.vocab, &section, &n, why, sizeof(why)), "%s", why);
	ck_assert_uint_eq(n, p.plan.tokenizer_bytes);
	ck_assert_mem_eq(section, p.tokenizer, n);
	free(section);
	source_close(s);
	free(p.tokenizer);
	tiny_free(&t);
}
END_TEST

/* A code that is none would be carried into another format as one. */
START_TEST(the_source_refuses_impossible_codes)
{
	struct write_obm o = { PACKED_2BIT, PACKED_INT8, 0, NULL, NULL };
	struct tiny t = shaped(0);
	char sentence[800];
	struct source *s;
	int8_t codes[40 * 128];
	uint8_t *f;
	size_t n;
	int fd;

	tiny_fill(&t);
	f = write_obm(&t, &o, &n);
	f[write_obm_tensor(f, OBM_K, 1)->offset + 2 * PACKED_UNIT] |= 3;
	f[write_obm_tensor(f, OBM_EMBED, OBM_NO_LAYER)->offset + 5] = 0x80;
	write_obm_seal(f, n, true);
	fd = open(path, O_WRONLY | O_CREAT, 0600);
	ck_assert_int_eq(write(fd, f, n), (ssize_t)n);
	close(fd);
	ck_assert_msg(!source_open_obm(path, NULL, &s, why, sizeof(why)), "%s", why);
	ck_assert_int_eq(s->ops->read_codes(s, source_find(s, OBM_K, 1), 0, 32, codes, NULL, why,
					    sizeof(why)),
			 0);
	ck_assert_int_eq(s->ops->read_codes(s, source_find(s, OBM_K, 1), 31, 2, codes, NULL, why,
					    sizeof(why)),
			 -EPROTO);
	snprintf(sentence, sizeof(sentence),
		 "%s: tensor k of layer 1 holds what is no weight, in rows 32 to 63", path);
	ck_assert_str_eq(why, sentence);
	ck_assert_int_eq(s->ops->read_codes(s, source_find(s, OBM_EMBED, OBM_NO_LAYER), 0, 32,
					    codes, NULL, why, sizeof(why)),
			 -EPROTO);
	snprintf(sentence, sizeof(sentence), "%s: tensor embed holds code -128, in row 0, column 5",
		 path);
	ck_assert_str_eq(why, sentence);
	source_close(s);

	/* And what cannot even be opened is said with its name. */
	ck_assert_int_eq(truncate(path, (off_t)n - 1), 0);
	ck_assert_int_eq(source_open_obm(path, NULL, &s, why, sizeof(why)), -EBADMSG);
	snprintf(sentence, sizeof(sentence),
		 "%s: the file is truncated: 1 of its %zu bytes are missing", path, n);
	ck_assert_str_eq(why, sentence);
	in_tmp(path, "none.obm");
	ck_assert_int_eq(source_open_obm(path, NULL, &s, why, sizeof(why)), -ENOENT);
	free(f);
	tiny_free(&t);
}
END_TEST

/* A plan that a reader would refuse must be refused before hours of writing. */
START_TEST(bad_plans_are_refused)
{
	struct write_obm o = { PACKED_2BIT, PACKED_INT8, 0, info, licence };
	struct tiny t = shaped(0);
	static struct planned p;
	uint8_t identity[32];

	tiny_fill(&t);
	plan(&p, &t, &o);
	p.plan.arch.heads = 0;
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(why, "its architecture has heads 0; at least 1 is needed");
	p.plan.arch.heads = t.heads;
	p.plan.n_tensors--;
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(why, "tensor embed is missing");
	p.plan.n_tensors++;
	p.tensors[3].rows++;
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(
		why, "tensor o of layer 1 is 129 x 128, but the architecture makes it 128 x 128");
	p.tensors[3].rows = 0;
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(why, "tensor o of layer 1: it has no rows");
	p.tensors[3].rows = 128;
	p.rope[2] = -1;
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(why, "rotary frequency 2 is -1; it must be finite and above 0");
	p.rope[2] = p.rope[3];
	p.plan.info = "just words\n";
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(why, "line 1 of its information is not of the form 'key: value'");
	p.plan.info = NULL;
	p.plan.arch.vocab++;
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(
		why, "the tokenizer has 320 tokens, but the embedding 321 rows; they belong to two "
		     "models");
	p.plan.arch.vocab--;
	p.plan.tokenizer_bytes = 1;
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_int_ne(access(path, F_OK), 0);
	free(p.tokenizer);
	tiny_free(&t);
}
END_TEST

/* What is no number would be multiplied with everything. */
START_TEST(what_is_no_number_is_refused)
{
	struct write_obm o = { PACKED_2BIT, _i == 3 ? PACKED_BF16 : PACKED_F16, 0, info, licence };
	static const char *const sentences[] = {
		"scale 0 of row 37 of tensor up of layer 1 is no finite number",
		"value 3 of row 0 of tensor ffn_norm of layer 0 is no finite number",
		"value 127 of row 33 of tensor embed is no finite number",
		"value 127 of row 33 of tensor embed is no finite number",
	};
	struct tiny t = shaped(0);
	static struct planned p;
	uint8_t identity[32];

	t.row_scales = true;
	tiny_fill(&t);
	if (_i == 0)
		t.layer[1].m[TINY_UP].scales[37] = NAN;
	else if (_i == 1)
		t.layer[0].ffn_norm[3] = -INFINITY;
	else /* over binary16 by rounding; over bfloat16 by itself */
		t.embed[34 * 128 - 1] = _i == 2 ? 65520.0f : INFINITY;
	plan(&p, &t, &o);
	ck_assert_int_eq(write_model(&t, &p, path, identity), -EPROTO);
	ck_assert_str_eq(why, sentences[_i]);
	ck_assert_int_ne(access(path, F_OK), 0);
	free(p.tokenizer);
	tiny_free(&t);
}
END_TEST

/* A signature must change nothing but itself, and be the one that was asked for. */
START_TEST(signing_keeps_the_model)
{
	struct write_obm o = { PACKED_2BIT, PACKED_INT8, 0, info, licence };
	struct tiny t = shaped(0);
	uint8_t key[32], secret[64], *before, *after, *f;
	struct obm_verdict v;
	struct obm *m;
	size_t n, k;
	int fd;

	ck_assert_int_ge(sodium_init(), 0);
	tiny_fill(&t);
	before = write_obm(&t, &o, &n);
	fd = open(path, O_RDWR | O_CREAT, 0600);
	ck_assert_int_eq(write(fd, before, n), (ssize_t)n);
	for (int again = 0; again < 2; again++) {
		crypto_sign_keypair(key, secret);
		ck_assert_msg(!obm_sign(fd, secret, why, sizeof(why)), "%s", why);
		after = read_file(path, &k);
		ck_assert_uint_eq(k, n);
		ck_assert_mem_eq(after, before, offsetof(struct obm_header, signer));
		ck_assert_mem_eq(after + offsetof(struct obm_header, reserved),
				 before + offsetof(struct obm_header, reserved),
				 n - offsetof(struct obm_header, reserved));
		free(after);
		ck_assert_msg(!obm_open(fd, 0, 1, &m, why, sizeof(why)), "%s", why);
		ck_assert_msg(!obm_verify(m, key, 1, &v, why, sizeof(why)), "%s", why);
		ck_assert(v.is_signed);
		obm_close(m);
	}
	/* A secret whose two halves belong to two keys. */
	f = read_file(path, &k);
	secret[63] ^= 1;
	ck_assert_int_eq(obm_sign(fd, secret, why, sizeof(why)), -EKEYREJECTED);
	ck_assert_str_eq(why, "the key is damaged: what it signs does not verify");
	close(fd);
	fd = open(path, O_RDONLY);
	secret[63] ^= 1;
	ck_assert_int_eq(obm_sign(fd, secret, why, sizeof(why)), -EBADF);
	ck_assert_str_eq(why, "the signature cannot be written: Bad file descriptor");
	after = read_file(path, &k);
	ck_assert_mem_eq(after, f, n);
	close(fd);
	free(f);
	free(after);
	free(before);
	tiny_free(&t);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("obm_write");
	TCase *t = tcase_create("obm_write");
	SRunner *r;
	int failed;

	tmp_fixture(t);
	tcase_add_checked_fixture(t, set_up, NULL);
	tcase_add_loop_test(t, two_writers_agree, 0, (int)(sizeof(shapes) / sizeof(shapes[0])));
	tcase_add_loop_test(t, the_source_gives_it_back, 0,
			    (int)(sizeof(shapes) / sizeof(shapes[0])));
	tcase_add_test(t, the_source_refuses_impossible_codes);
	tcase_add_test(t, bad_plans_are_refused);
	tcase_add_loop_test(t, what_is_no_number_is_refused, 0, 4);
	tcase_add_test(t, signing_keeps_the_model);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

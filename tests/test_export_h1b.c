/* SPDX-License-Identifier: MIT */
/*
 * Models carried to peers as .h1b: if a code or a scale changed on the way, or something that the format
 * cannot hold were dropped in silence, the model would be another one there.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "export.h"
#include "lib_tiny.h"
#include "lib_tmp.h"
#include "lib_write_h1b.h"
#include "source.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static char why[512], note[512];
static struct tiny tiny;

static const char *in_tmp(const char *name)
{
	static char path[2][400];
	static unsigned next;
	char *p = path[next++ % 2];

	snprintf(p, sizeof(path[0]), "%s/%s", getenv("TMPDIR"), name);
	return p;
}

static struct source *open_at(const char *path)
{
	struct source *s = NULL;

	ck_assert_msg(!source_open_h1b(path, NULL, &s, why, sizeof(why)), "%s", why);
	return s;
}

/* The test's own files of the model that `tiny` is; the legacy .htok beside it. */
static struct source *make(uint32_t version, uint32_t flags)
{
	size_t bytes;
	uint8_t *file = write_htok(&tiny, 0, &bytes);

	write_h1b_file("in.htok", file, bytes);
	free(file);
	file = write_h1b(&tiny, version, flags, &bytes);
	write_h1b_file("in.h1b", file, bytes);
	free(file);
	return open_at(in_tmp("in.h1b"));
}

static void shape(uint32_t hidden, uint32_t ffn, uint32_t heads)
{
	tiny_default(&tiny, 11);
	tiny.hidden = hidden;
	tiny.ffn = ffn;
	tiny.heads = heads;
	tiny.kv_heads = heads / 2;
	tiny.head_dim = hidden / heads;
	tiny.row_scales = true;
	tiny.half_scales = false;
	tiny_fill(&tiny);
}

static int export(struct source *s, unsigned version, const char *name, bool replace)
{
	memset(why, 0, sizeof(why));
	snprintf(note, sizeof(note), "?");
	return export_h1b(s, version, in_tmp(name), replace, NULL, note, sizeof(note), why, sizeof(why));
}

static void same_bytes(const char *name, const uint8_t *expected, size_t bytes)
{
	uint8_t *found = malloc(bytes + 1);
	FILE *f = fopen(in_tmp(name), "rb");

	ck_assert_msg(f && found, "%s is not there", name);
	ck_assert_uint_eq(fread(found, 1, bytes + 1, f), bytes);
	fclose(f);
	for (size_t i = 0; i < bytes; i++)
		if (found[i] != expected[i])
			ck_abort_msg("%s differs at byte %zu", name, i);
	free(found);
}

/* Against files of an independent writer, to the byte: fillers, pads, header and all. */
START_TEST(golden)
{
	static const struct {
		uint32_t hidden, ffn, heads, from, to;
	} cases[] = {
		{ 128, 192, 4, 2, 2 }, { 128, 192, 4, 4, 4 }, { 128, 192, 4, 2, 4 }, { 128, 192, 4, 4, 2 },
		{ 60, 94, 6, 2, 4 }, /* rows end within a byte */
		{ 96, 32, 4, 4, 2 }, /* a feed-forward part narrower than the model */
	};

	for (size_t i = 0; i < COUNT(cases); i++) {
		uint8_t *expected;
		struct source *s;
		size_t bytes;

		shape(cases[i].hidden, cases[i].ffn, cases[i].heads);
		s = make(cases[i].from, 0);
		ck_assert_msg(!export(s, cases[i].to, "out.h1b", true), "%s", why);
		ck_assert_str_eq(note, "");
		source_close(s);
		expected = write_h1b(&tiny, cases[i].to, 0, &bytes);
		same_bytes("out.h1b", expected, bytes);
		free(expected);
		expected = write_htok(&tiny, 0, &bytes);
		same_bytes("out.htok", expected, bytes);
		free(expected);
		tiny_free(&tiny);
	}
}
END_TEST

/* What was Sherry, blocks or version 1 has the same codes and scales afterwards. */
START_TEST(from_other_bodies)
{
	static const struct {
		uint32_t version, flags;
		void (*change)(struct tiny *t);
	} from[] = { { 1, 0, NULL }, { 3, 0, tiny_sherry }, { 4, 8, NULL }, { 2, 4, tiny_signs } };

	for (size_t i = 0; i < COUNT(from); i++)
		for (unsigned to = 2; to <= 4; to += 2) {
			uint8_t *expected;
			struct source *s;
			size_t bytes;

			tiny_default(&tiny, 5);
			tiny.ffn = 256;
			tiny.row_scales = true;
			tiny.theta = 500000; /* what version 1 stands for */
			tiny_fill(&tiny);
			if (from[i].change)
				from[i].change(&tiny);
			s = make(from[i].version, from[i].flags);
			ck_assert_msg(!export(s, to, "out.h1b", true), "%s", why);
			ck_assert_str_eq(note, from[i].flags == 4 ? ".h1b has no place for: that "
								    "int8 activations are imposed "
								    "on the model" : "");
			source_close(s);
			expected = write_h1b(&tiny, to, 0, &bytes);
			same_bytes("out.h1b", expected, bytes);
			free(expected);
			tiny_free(&tiny);
		}
}
END_TEST

static struct source_tensor *find(struct source *s, uint32_t role, uint32_t layer)
{
	return (struct source_tensor *)source_find(s, role, layer);
}

static void drop(struct source *s, uint32_t role)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < s->n_tensors; i++)
		if (s->tensors[i].role != role)
			s->tensors[n++] = s->tensors[i];
	s->n_tensors = n;
}

static void untie(struct source *s)
{
	s->tensors = realloc(s->tensors, (s->n_tensors + 1) * sizeof(*s->tensors));
	s->tensors[s->n_tensors] = *find(s, OBM_EMBED, OBM_NO_LAYER);
	s->tensors[s->n_tensors++].role = OBM_HEAD;
}

static void no_attn_sub_norm(struct source *s)
{
	drop(s, OBM_ATTN_SUB_NORM);
}

static void no_ffn_sub_norm(struct source *s)
{
	drop(s, OBM_FFN_SUB_NORM);
}

static void silu(struct source *s)
{
	s->arch.activation = OBM_ACT_SILU;
}

static void groups(struct source *s)
{
	find(s, OBM_UP, 1)->groups = 2;
}

static void wide_heads(struct source *s)
{
	s->arch.head_dim *= 2;
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		struct source_tensor *t = &s->tensors[i];

		if (t->role == OBM_Q || t->role == OBM_K || t->role == OBM_V)
			t->rows *= 2;
		else if (t->role == OBM_O || t->role == OBM_ATTN_SUB_NORM)
			t->cols *= 2;
	}
}

static void theta(struct source *s)
{
	s->rope_theta = 500000.01;
}

static void rope(struct source *s)
{
	static double f[64];

	f[0] = 0.125;
	s->rope = f;
}

static void no_vocab(struct source *s)
{
	s->vocab = vocab_free(s->vocab);
	snprintf(s->no_vocab, sizeof(s->no_vocab), "nobody gave one");
}

static void sentencepiece(struct source *s)
{
	s->vocab->kind = VOCAB_SPM;
}

static void gpt2_rule(struct source *s)
{
	s->vocab->rule = VOCAB_RULE_GPT2;
}

static void no_bos(struct source *s)
{
	s->vocab->bos = VOCAB_NO_ID;
}

static void no_eos(struct source *s)
{
	s->vocab->eos = VOCAB_NO_ID;
}

static void odd_special(struct source *s)
{
	s->vocab->tokens[70].kind = VOCAB_SPECIAL;
}

static void plain_markup(struct source *s)
{
	s->vocab->tokens[tiny.eot].kind = VOCAB_NORMAL;
}

static void form_c(struct source *s)
{
	s->vocab->flags |= VOCAB_NFC;
}

static void taken_whole(struct source *s)
{
	s->vocab->tokens[tiny.eot].kind = VOCAB_ADDED;
}

/* Each thing that the format cannot hold, by its name; and nothing is left behind. */
START_TEST(refusals)
{
	static const struct {
		void (*change)(struct source *s);
		int err;
		const char *sentence;
	} cases[] = {
		{ untie, -ENOTSUP, "no place for a head of its own" },
		{ no_attn_sub_norm, -ENOTSUP, "no place for a model without sub-norms" },
		{ no_ffn_sub_norm, -ENOTSUP, "no place for a model without sub-norms" },
		{ silu, -ENOTSUP, "no place for SiLU" },
		{ groups, -ENOTSUP, "layer 1's " },
		{ wide_heads, -ENOTSUP, "4 heads of 64 are not the hidden size 128" },
		{ theta, -ENOTSUP, "500000.01" },
		{ rope, -ENOTSUP, "frequencies are scaled" },
		{ no_vocab, -ENOENT, "nobody gave one" },
		{ sentencepiece, -ENOTSUP, "SentencePiece" },
		{ gpt2_rule, -ENOTSUP, "Llama 3's rule" },
		{ no_bos, -ENOTSUP, "no beginning token" },
		{ no_eos, -ENOTSUP, "no end token" },
		{ odd_special, -ENOTSUP, "token 70, 'g', is a special one" },
		{ plain_markup, -ENOTSUP, "'<|eot_id|>', is ordinary text" },
		{ form_c, -ENOTSUP, "wants its texts in NFC" },
		{ taken_whole, -ENOTSUP, "'<|eot_id|>', is taken whole from text" },
	};

	shape(128, 256, 4);
	for (size_t i = 0; i < COUNT(cases); i++) {
		struct source *s = make(2, 0);
		int err;

		cases[i].change(s);
		err = export(s, 2, "refused.h1b", false);
		ck_assert_msg(err == cases[i].err, "%d: %s; expected %s", err, why,
			      cases[i].sentence);
		ck_assert_msg(strstr(why, cases[i].sentence) != NULL, "'%s' does not say '%s'", why,
			      cases[i].sentence);
		s->rope = NULL;
		source_close(s);
	}
	tiny_free(&tiny);
	shape(60, 94, 6);
	{
		struct source *s = make(2, 0);

		ck_assert_int_eq(export(s, 2, "refused.h1b", false), -ENOTSUP);
		ck_assert_msg(strstr(why, "multiples of 16") != NULL, "%s", why);
		source_close(s);
	}
	tiny_free(&tiny);
	ck_assert(access(in_tmp("refused.h1b"), F_OK) && access(in_tmp("refused.htok"), F_OK));
}
END_TEST

static unsigned files(void)
{
	DIR *d = opendir(getenv("TMPDIR"));
	unsigned n = 0;

	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

/* What is there is not overwritten unasked; a failure in the middle leaves neither file. */
START_TEST(atomic)
{
	struct source *s;
	unsigned before;
	size_t bytes;
	uint8_t *file;

	shape(128, 192, 4);
	s = make(2, 0);
	write_h1b_file("atomic.htok", "mine", 4);
	before = files();
	ck_assert_int_eq(export(s, 2, "atomic.h1b", false), -EEXIST);
	ck_assert_msg(strstr(why, "atomic.htok") != NULL, "%s", why);
	ck_assert_uint_eq(files(), before);
	same_bytes("atomic.htok", (const uint8_t *)"mine", 4);
	ck_assert_msg(!export(s, 2, "atomic.h1b", true), "%s", why);
	ck_assert_int_eq(export(s, 2, "atomic.h1b", false), -EEXIST);
	source_close(s);

	/* A code that cannot be, in the last row of the last matrix. */
	file = write_h1b(&tiny, 2, 0, &bytes);
	file[bytes - 4 * 128 - 1] = 0xff;
	write_h1b_file("in.h1b", file, bytes);
	free(file);
	s = open_at(in_tmp("in.h1b"));
	before = files();
	ck_assert_int_eq(export(s, 4, "bad.h1b", false), -EPROTO);
	ck_assert_msg(strstr(why, "layer 1's down, row 127, column 188") != NULL, "%s", why);
	ck_assert_uint_eq(files(), before);
	source_close(s);
	tiny_free(&tiny);
}
END_TEST

/* What is lost is said. */
START_TEST(losses)
{
	struct source *s;

	shape(128, 192, 4);
	s = make(2, 0);
	s->licence = strdup("as you like it");
	strcpy(s->vocab->chat, "llama3");
	s->vocab->flags = 0;
	ck_assert_msg(!export(s, 2, "out.h1b", true), "%s", why);
	ck_assert_str_eq(note, ".h1b has no place for: the chat template's name; that pieces are "
			       "always merged step by step; the licence's text");
	find(s, OBM_EMBED, OBM_NO_LAYER)->form = SOURCE_INT8;
	find(s, OBM_EMBED, OBM_NO_LAYER)->groups = 1;
	ck_assert_msg(!export(s, 2, "out.h1b", true), "%s", why);
	ck_assert_msg(strstr(note, "the embedding's codes and scales") != NULL, "%s", note);
	source_close(s);
	tiny_free(&tiny);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("export_h1b");
	TCase *t = tcase_create("export_h1b");
	SRunner *r;
	int failed;

	tmp_fixture(t);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, golden);
	tcase_add_test(t, from_other_bodies);
	tcase_add_test(t, refusals);
	tcase_add_test(t, atomic);
	tcase_add_test(t, losses);
	suite_add_tcase(suite, t);
	r = srunner_create(suite);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

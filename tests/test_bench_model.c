/* SPDX-License-Identifier: MIT */
/*
 * The random model and `onebit bench model`: if a made model were not the same for the same seed, were
 * refused by who opens it, or had weights that are none; if the report lacked a figure, or one that does
 * not follow from the others; if anything of it stayed behind.
 */
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "lib_tmp.h"
#include "obm.h"
#include "packed.h"
#include "source.h"
#include "source_random.h"

/* What `onebit-tool bench model ARGS` says, on both outputs; the caller's to free. */
static char *bench(const char *args, int *status)
{
	const char *build = getenv("BUILD");
	char command[2048];
	char *said = calloc(1, 1 << 16);
	size_t n;
	FILE *f;

	snprintf(command, sizeof(command), "%s/onebit-tool bench model %s 2>&1 </dev/null",
		 build ? build : "build", args);
	f = popen(command, "r"); /* NOLINT: a command of our own */
	ck_assert_ptr_nonnull(f);
	ck_assert_ptr_nonnull(said);
	n = fread(said, 1, (1 << 16) - 1, f);
	said[n] = 0;
	*status = WEXITSTATUS(pclose(f));
	return said;
}

static struct source *random_source(const char *shape, uint64_t seed, bool flat)
{
	const struct source_random_options o = { .shape = shape, .seed = seed, .flat = flat };
	struct source *s = NULL;
	char why[256] = "";

	ck_assert_msg(!source_open_random(&o, &s, why, sizeof(why)), "%s", why);
	return s;
}

/* Rows that depend on how many are read at once would make a file differ from its copy. */
START_TEST(rows_are_what_the_seed_says)
{
	struct source *s = random_source("small", 1, false), *t = random_source("small", 2, false);
	const struct source_tensor *q = source_find(s, OBM_Q, 1);
	int8_t codes[3][256], one[256], other[256];
	float scales[3];
	char why[256];

	ck_assert_int_eq(s->ops->read_codes(s, q, 5, 3, codes[0], scales, why, sizeof(why)), 0);
	for (uint32_t i = 0; i < 3; i++) {
		ck_assert_int_eq(s->ops->read_codes(s, q, 5 + i, 1, one, NULL, why, sizeof(why)), 0);
		ck_assert_mem_eq(one, codes[i], 256);
	}
	ck_assert_mem_ne(codes[0], codes[1], 256);
	q = source_find(t, OBM_Q, 1);
	ck_assert_int_eq(t->ops->read_codes(t, q, 5, 1, other, NULL, why, sizeof(why)), 0);
	ck_assert_mem_ne(other, codes[0], 256);
	source_close(s);
	source_close(t);
}
END_TEST

/* Weights that are mostly one code, or a scale by which values grow from layer to layer. */
START_TEST(weights_are_spread)
{
	struct source *s = random_source("small", 3, false);
	const struct source_tensor *down = source_find(s, OBM_DOWN, 0);
	uint32_t count[3] = { 0 };
	int8_t codes[704];
	float scale;
	char why[256];

	for (uint32_t row = 0; row < down->rows; row++) {
		ck_assert_int_eq(s->ops->read_codes(s, down, row, 1, codes, &scale, why,
						    sizeof(why)), 0);
		ck_assert_float_eq_tol(scale, 1 / sqrtf(704 * 2 / 3.0f), 1e-6f);
		for (uint32_t c = 0; c < 704; c++) {
			ck_assert(codes[c] >= -1 && codes[c] <= 1);
			count[codes[c] + 1]++;
		}
	}
	for (int i = 0; i < 3; i++)
		ck_assert_double_eq_tol((double)count[i] / (704.0 * down->rows), 1 / 3.0, 0.01);
	source_close(s);
}
END_TEST

/* An embedding whose codes and floats differ would be another model as halves. */
START_TEST(embedding_is_one)
{
	struct source *s = random_source("small", 4, false), *flat = random_source("small", 4, true);
	const struct source_tensor *e = source_find(s, OBM_EMBED, OBM_NO_LAYER);
	float floats[2][256], scales[2];
	double sum = 0, squares = 0;
	int8_t codes[2][256];
	char why[256];

	for (uint32_t row = 0; row < e->rows; row += 2) {
		ck_assert_int_eq(s->ops->read_codes(s, e, row, 2, codes[0], scales, why,
						    sizeof(why)), 0);
		ck_assert_int_eq(s->ops->read_floats(s, e, row, 2, floats[0], why, sizeof(why)), 0);
		for (int i = 0; i < 2; i++)
			for (uint32_t c = 0; c < 256; c++) {
				ck_assert_int_ne(codes[i][c], -128);
				ck_assert_float_eq(floats[i][c], (float)codes[i][c] * scales[i]);
				sum += floats[i][c];
				squares += floats[i][c] * floats[i][c];
			}
	}
	ck_assert_double_eq_tol(sum / (e->rows * 256.0), 0, 0.01);
	ck_assert_double_eq_tol(squares / (e->rows * 256.0), 1, 0.02);
	e = source_find(flat, OBM_EMBED, OBM_NO_LAYER);
	ck_assert_int_eq(flat->ops->read_codes(flat, e, 0, 1, codes[0], scales + 1, why,
					       sizeof(why)), 0);
	ck_assert_float_lt(scales[1], scales[0] / 50);
	source_close(s);
	source_close(flat);
}
END_TEST

static void identity_of(const char *path, uint32_t layout, uint8_t identity[32])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct obm *m = NULL;
	struct obm_verdict v;
	char why[256] = "";

	ck_assert_int_ge(fd, 0);
	ck_assert_msg(!obm_open(fd, 0, 2, &m, why, sizeof(why)), "%s", why);
	ck_assert_msg(!obm_verify(m, NULL, 2, &v, why, sizeof(why)), "%s", why);
	ck_assert_uint_eq(obm_tensor(m, OBM_UP, 3)->layout, layout);
	memcpy(identity, m->header->identity, 32);
	obm_close(m);
	close(fd);
}

/* A model that is made must be one, and by its seed the same one. */
START_TEST(made_models_open)
{
	static const struct {
		const char *name, *args;
		uint32_t layout;
	} made[] = {
		{ "a", "--seed 5", PACKED_2BIT },
		{ "b", "--seed 5", PACKED_2BIT },
		{ "c", "--seed 6", PACKED_2BIT },
		{ "d", "--seed 5 --layout base3", PACKED_BASE3 },
	};
	uint8_t identity[4][32];

	for (int i = 0; i < 4; i++) {
		char args[512], path[256];
		char *said;
		int status;

		snprintf(path, sizeof(path), "%s/%s.obm", getenv("TMPDIR"), made[i].name);
		snprintf(args, sizeof(args), "--shape small %s --make %s", made[i].args, path);
		said = bench(args, &status);
		ck_assert_msg(!status && !*said, "%d: %s", status, said);
		free(said);
		identity_of(path, made[i].layout, identity[i]);
	}
	ck_assert_mem_eq(identity[0], identity[1], 32);
	ck_assert_mem_ne(identity[0], identity[2], 32);
	ck_assert_mem_ne(identity[0], identity[3], 32);
}
END_TEST

/* ---- the report ------------------------------------------------------------------------------ */

static double number(const json_t *o, const char *key)
{
	const json_t *v = json_object_get(o, key);

	ck_assert_msg(json_is_number(v), "%s is missing, or no number", key);
	ck_assert_msg(isfinite(json_number_value(v)), "%s is not finite", key);
	return json_number_value(v);
}

static void is_text(const json_t *o, const char *key, const char *text)
{
	const char *v = json_string_value(json_object_get(o, key));

	ck_assert_msg(v && !strcmp(v, text), "%s is %s instead of %s", key, v ? v : "missing", text);
}

static json_t *report(const char *args)
{
	json_error_t error;
	json_t *o;
	int status;
	char *said = bench(args, &status);

	ck_assert_msg(!status, "%d: %s", status, said);
	o = json_loads(said, 0, &error);
	ck_assert_msg(json_is_object(o), "%s: %s", error.text, said);
	free(said);
	return o;
}

/* Everything that was left in $TMPDIR. */
static uint32_t n_left(void)
{
	DIR *d = opendir(getenv("TMPDIR"));
	uint32_t n = 0;

	ck_assert_ptr_nonnull(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n - 2;
}

/* A figure that scripts read must be there, and be what its name says. */
START_TEST(report_has_its_figures)
{
	json_t *o = report("--shape small --layout base3 --rounds 1 --mib 64 --tokens 6 --streams 3 "
			   "--prefill 40 --ctx 70 --threads 2 --kv int8 --json");
	double bytes = number(o, "weight_bytes") +
		       number(o, "position") * number(o, "kv_position_bytes");
	const json_t *ops = json_object_get(o, "ops");

	is_text(o, "model", "small");
	is_text(o, "layout", "base3");
	is_text(o, "kv", "int8");
	ck_assert_double_eq(number(o, "threads"), 2);
	ck_assert_double_eq(number(o, "ctx"), 70);
	ck_assert_double_eq(number(o, "streams"), 3);
	ck_assert_double_eq(number(o, "prefill"), 40);
	/* The answer's second to seventh token, behind 70. */
	ck_assert_double_ge(number(o, "position"), 70);
	ck_assert_double_le(number(o, "position"), 80);
	ck_assert_double_eq_tol(number(o, "bytes_per_token"), bytes, 1 + bytes * 1e-3);
	ck_assert_double_gt(number(o, "head_bytes"), 2048 * 256);
	ck_assert_double_gt(number(o, "weight_bytes"), number(o, "head_bytes"));
	/* 4 layers, 2 KV heads, 64 dimensions of a byte and two scales of four. */
	ck_assert_double_eq(number(o, "kv_position_bytes"), 4 * 2 * (2 * 64 + 2 * 4));
	ck_assert_double_gt(number(o, "bw_probe_gbs"), 0);
	ck_assert_double_ge(number(o, "macs_probe_g"), 0);
	ck_assert_double_gt(number(o, "decode_tps"), 0);
	ck_assert_double_eq_tol(number(o, "bw_fraction"),
				number(o, "decode_tps") * number(o, "bytes_per_token") /
					(number(o, "bw_probe_gbs") * 1e9),
				1e-3 + 0.01 * number(o, "bw_fraction"));
	ck_assert_double_gt(number(o, "prefill_tps"), 0);
	ck_assert_double_ge(number(o, "macs_fraction"), 0);
	ck_assert_double_gt(number(o, "streams_tps"), 0);
	ck_assert_double_gt(number(o, "streams_fraction"), 0);
	ck_assert_double_eq_tol(number(o, "streams_ratio"),
				number(o, "streams_tps") / number(o, "decode_tps"),
				0.01 * number(o, "streams_ratio"));
	ck_assert_double_gt(number(o, "open_ms"), 0);
	ck_assert_double_ge(number(o, "start_ms"), number(o, "open_ms"));
	ck_assert_double_gt(number(o, "rss_mib"), number(o, "model_mib"));
	ck_assert_double_gt(number(o, "kv_mib"), 0);
	ck_assert_uint_gt(json_array_size(ops), 0);
	for (size_t i = 0; i < json_array_size(ops); i++) {
		ck_assert(json_is_string(json_object_get(json_array_get(ops, i), "op")));
		ck_assert_double_ge(number(json_array_get(ops, i), "us"), 0);
	}
	json_decref(o);
	ck_assert_uint_eq(n_left(), 0);
}
END_TEST

/* A context longer than the model's is cut down, so that answers have room, and that is told. */
START_TEST(context_fits)
{
	json_t *o = report("--shape small --rounds 1 --mib 64 --tokens 4 --streams 0 --prefill 0 "
			   "--ctx 100000 --threads 1 --sampled --speculation --json");

	ck_assert_double_ge(number(o, "position"), 900);
	ck_assert_double_lt(number(o, "position"), 1024);
	ck_assert_ptr_null(json_object_get(o, "streams_tps"));
	ck_assert_ptr_null(json_object_get(o, "prefill_tps"));
	ck_assert(json_is_true(json_object_get(o, "sampled")));
	ck_assert(json_is_true(json_object_get(o, "speculation")));
	json_decref(o);
}
END_TEST

/* The same for people, of a file. */
START_TEST(table_is_said)
{
	static const char *const wanted[] = { "2bit", "2 threads", "KV fp16", "the machine: reads ",
					      "decode, position ", "2 streams: ", "prompt of 33: ",
					      "first token after ", "resident ", "operation" };
	char args[512];
	int status;
	char *said;

	snprintf(args, sizeof(args), "--shape small --make %s/m.obm", getenv("TMPDIR"));
	said = bench(args, &status);
	ck_assert_msg(!status, "%s", said);
	free(said);
	snprintf(args, sizeof(args), "%s/m.obm --rounds 1 --mib 64 --tokens 4 --streams 2 --prefill 33 "
		 "--threads 2", getenv("TMPDIR"));
	said = bench(args, &status);
	ck_assert_msg(!status, "%s", said);
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		ck_assert_msg(strstr(said, wanted[i]), "no '%s' in: %s", wanted[i], said);
	free(said);
	snprintf(args, sizeof(args), "%s/m.obm", getenv("TMPDIR"));
	unlink(args);
}
END_TEST

/* What cannot be must end with a sentence, not a figure. */
START_TEST(bad_input_is_told)
{
	static const struct {
		const char *args, *says;
		int status;
	} bad[] = {
		{ "--threads 0", "--threads is 1 to 256, not \"0\"", 2 },
		{ "--ctx x", "--ctx is 0 to", 2 },
		{ "--streams 65", "--streams is 0 to 64", 2 },
		{ "--mib 63", "--mib is 64 to", 2 },
		{ "--rounds 102", "--rounds is 1 to 101", 2 },
		{ "--kv fp8", "--kv is fp16 or int8, not \"fp8\"", 2 },
		{ "--layout int8", "--layout is 2bit or base3", 2 },
		{ "--shape 70b", "--shape is 2b or small", 2 },
		{ "--frobnicate", "\"--frobnicate\" is not an option", 2 },
		{ "--threads", "lacks its value", 2 },
		{ "a b", "\"b\" is one word too many", 2 },
		{ "a --make b", "either given or made", 2 },
		{ "/nowhere/m.obm", "/nowhere/m.obm: cannot be opened: No such file", 1 },
		{ "tests/run.sh", "tests/run.sh: ", 1 },
		{ "--make /nowhere/m.obm --shape small", "/nowhere/m.obm", 1 },
		{ "--shape small --prefill 1024", "the model's context is 1024, too short", 1 },
		{ "--shape small --tokens 1000", "the model's context is 1024, too short", 1 },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int status;
		char *said = bench(bad[i].args, &status);

		ck_assert_msg(status == bad[i].status && strstr(said, bad[i].says),
			      "%s: %d, not %d, or not '%s': %s", bad[i].args, status, bad[i].status,
			      bad[i].says, said);
		ck_assert_ptr_eq(strchr(said, '\n'), said + strlen(said) - 1);
		free(said);
	}
	ck_assert_uint_eq(n_left(), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("bench model");
	TCase *made = tcase_create("made"), *said = tcase_create("said");
	SRunner *sr = srunner_create(s);
	int failed;

	tmp_fixture(made);
	tcase_add_test(made, rows_are_what_the_seed_says);
	tcase_add_test(made, weights_are_spread);
	tcase_add_test(made, embedding_is_one);
	tcase_add_test(made, made_models_open);
	suite_add_tcase(s, made);
	tmp_fixture(said);
	tcase_set_timeout(said, 120);
	tcase_add_test(said, report_has_its_figures);
	tcase_add_test(said, context_fits);
	tcase_add_test(said, table_is_said);
	tcase_add_test(said, bad_input_is_told);
	suite_add_tcase(s, said);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

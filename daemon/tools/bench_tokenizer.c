/* SPDX-License-Identifier: MIT */
/*
 * onebit bench tokenizer: how fast text becomes tokens and tokens become text, on one core, beside
 * what the memory of this machine can do. Prose is what people send; the other texts are what
 * somebody sends who means harm, each as long as the prose. Each figure is the median of the
 * rounds, with the least and the most; a round measures all of them, so that a slow moment of the
 * machine does not fall on one.
 *
 * Without a file the vocabulary has 128,000 entries of syllables and the text is made of them, the
 * frequent ones more often, as in a language. Its figure is near to that of a real one.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "bench.h"
#include "mapped.h"
#include "obm.h"
#include "probe.h"
#include "source.h"
#include "tokenizer.h"
#include "tool.h"
#include "vocab.h"

enum { TEXT_BYTES = 1 << 20, ROUNDS_MAX = 101, MADE_ENTRIES = 128000, WHY_MAX = 512 };
#define PROBE_BYTES ((size_t)256 << 20)

struct text {
	const char *name, *label;
	const char *unit; /* repeated; NULL: see text_make() */
};

static const struct text texts[] = {
	{ "prose", "prose", NULL },	    { "letter", "one letter", "a" },
	{ "spaces", "spaces", " " },	    { "ab", "ab, again and again", "ab" },
	{ "digits", "digits", NULL },	    { "white", "mixed white space", NULL },
	{ "random", "random bytes", NULL },
};
enum { TEXTS = sizeof(texts) / sizeof(texts[0]), PROSE = 0, DIGITS = 4, WHITE = 5, RANDOM = 6 };

/* What was measured, a value a round. */
struct figure {
	double value[ROUNDS_MAX];
};

struct bench {
	struct obm *obm;
	void *made; /* a section that was built here */
	const void *section;
	size_t section_bytes;
	struct tokenizer *t;
	struct tokenizer_scratch *scratch;
	char *text[TEXTS], *out;
	size_t len;
	uint32_t *ids;
	size_t n_ids[TEXTS];
	unsigned rounds;
	struct figure encode[TEXTS], decode, opening, memory;
	bool json;
};

static uint64_t next_random(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 32) * 0xd6e8feb86659fd93u;
	z = (z ^ z >> 32) * 0xd6e8feb86659fd93u;
	return z ^ z >> 32;
}

/* ---- a vocabulary and a text of our own --------------------------------------------------------
 */

/* Words of one, two, three syllables, half of them with a space before. */
static size_t word_text(uint32_t n, char *out)
{
	static const char consonant[] = "tnsrhldcmfpgwybvkjxq", vowel[] = "eaoiu";
	size_t len = 0;

	if (n % 2)
		out[len++] = ' ';
	n /= 2;
	for (uint32_t syllables = n < 100 ? 1 : n < 100 + 10000 ? 2 : 3; syllables; syllables--) {
		out[len++] = consonant[n % 20];
		out[len++] = vowel[n / 20 % 5];
		n /= 100;
	}
	return len;
}

static int made_vocab(struct vocab **out, char *why)
{
	struct vocab *v = vocab_new();
	char word[8];
	int err = v ? 0 : -ENOMEM;

	for (unsigned b = 0; b < 256 && !err; b++)
		err = vocab_add(v, &(uint8_t){ (uint8_t)b }, 1, VOCAB_NORMAL, 0);
	for (uint32_t n = 0; !err && v->n_tokens < MADE_ENTRIES; n++) {
		size_t len = word_text(n, word);

		if (vocab_find(v, word, len, 1u << VOCAB_NORMAL) == VOCAB_NO_ID)
			err = vocab_add(v, word, len, VOCAB_NORMAL, 0);
	}
	if (!err) {
		v->kind = VOCAB_BYTES;
		v->rule = VOCAB_RULE_LLAMA3;
		v->flags = VOCAB_IGNORE_MERGES;
		err = vocab_derive_by_id(v, why, WHY_MAX);
	}
	if (err) {
		vocab_free(v);
		return err;
	}
	*out = v;
	return 0;
}

/* The n-th word n times less often than the first, now and then two that are one word. */
static void made_prose(char *out, size_t len)
{
	uint64_t rng = 1;
	char word[8];

	for (size_t at = 0; at < len;) {
		uint64_t r = next_random(&rng);
		uint32_t n = (uint32_t)(r >> 32) >> (r & 15);
		size_t size = word_text(n % MADE_ENTRIES | 1, word);

		if (r >> 8 & 15) {
			size = size < len - at ? size : len - at;
			memcpy(out + at, word, size);
			at += size;
		} else {
			out[at++] = ",.x\n"[r >> 16 & 3];
		}
	}
}

static void text_make(char *out, size_t len, unsigned which)
{
	const char *unit = texts[which].unit;
	uint64_t rng = which;

	for (size_t i = 0; i < len; i++) {
		uint64_t r = next_random(&rng);

		out[i] = unit		   ? unit[i % strlen(unit)]
			 : which == DIGITS ? (char)('0' + r % 10)
			 : which == WHITE  ? " \n\t "[r % 4]
					   : (char)(r >> 8);
	}
}

/* ---- what is measured
 * ---------------------------------------------------------------------------- */

static int open_section(struct bench *b, const char *path, char *why)
{
	char magic[sizeof(OBM_MAGIC) - 1];
	struct vocab *v;
	uint64_t bytes = 0;
	int err = 0, fd = -1;

	if (path) {
		fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
		if (fd < 0) {
			err = -errno;
			snprintf(why, WHY_MAX, "%s: cannot be opened: %s", path, strerror(-err));
			return err;
		}
		if (pread(fd, magic, sizeof(magic), 0) == sizeof(magic) &&
		    !memcmp(magic, OBM_MAGIC, sizeof(magic))) {
			err = obm_open(fd, OBM_UNCHECKED, 1, &b->obm, why, WHY_MAX);
			close(fd);
			if (err)
				return err;
			b->section = obm_section(b->obm, OBM_TOKENIZER, 0, &bytes);
			b->section_bytes = bytes;
			return 0;
		}
		close(fd);
		err = vocab_read(path, 0, &v, why, WHY_MAX);
	} else {
		err = made_vocab(&v, why);
	}
	if (err)
		return err;
	err = vocab_build(v, v->n_tokens, &b->made, &b->section_bytes, why, WHY_MAX);
	vocab_free(v);
	b->section = b->made;
	return err;
}

static int make_texts(struct bench *b, const char *path, char *why)
{
	struct mapped m = { 0 };
	int err;

	b->len = TEXT_BYTES;
	if (path) {
		err = mapped_open(path, &m, why, WHY_MAX);
		if (!err && !m.bytes)
			err = fail(why, WHY_MAX, -ENODATA,
				   "%s is empty; there is nothing to encode", path);
		if (err) {
			mapped_close(&m);
			return err;
		}
		b->len = m.bytes < TEXT_BYTES ? m.bytes : TEXT_BYTES;
	}
	for (unsigned i = 0; i < TEXTS; i++) {
		b->text[i] = malloc(b->len);
		if (!b->text[i]) {
			mapped_close(&m);
			return fail(why, WHY_MAX, -ENOMEM, "no memory for the texts");
		}
		if (i != PROSE)
			text_make(b->text[i], b->len, i);
		else if (path)
			memcpy(b->text[i], m.data, b->len);
		else
			made_prose(b->text[i], b->len);
	}
	mapped_close(&m);
	b->scratch = tokenizer_scratch_new(b->len);
	b->ids = malloc(tokenizer_bound(b->t, b->len) * sizeof(*b->ids));
	b->out = malloc(3 * b->len + detok_bound(b->t));
	if (!b->scratch || !b->ids || !b->out)
		return fail(why, WHY_MAX, -ENOMEM, "no memory for the tokens");
	return 0;
}

/* Of this thread alone: what else runs on the core at times does not count. */
static double cpu_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double mb_per_s(size_t bytes, double begin)
{
	return (double)bytes / 1e6 / (cpu_seconds() - begin);
}

static int measure_round(struct bench *b, unsigned round, char *why)
{
	struct tokenizer *again;
	struct detok d;
	size_t n = 0;
	double begin = cpu_seconds();
	int err = tokenizer_open(b->section, b->section_bytes, &again, why, WHY_MAX);

	if (err)
		return err;
	b->opening.value[round] = 1e3 * (cpu_seconds() - begin);
	tokenizer_close(again);
	/* The prose last: its ids are what is decoded. */
	for (unsigned i = TEXTS; i-- > 0;) {
		begin = cpu_seconds();
		err = tokenizer_encode(b->t, b->scratch, b->text[i], b->len, 0, b->ids,
				       tokenizer_bound(b->t, b->len), &b->n_ids[i]);
		if (err)
			return fail(why, WHY_MAX, err, "%s became more tokens than it may",
				    texts[i].label);
		b->encode[i].value[round] = mb_per_s(b->len, begin);
	}
	begin = cpu_seconds();
	detok_init(&d, b->t);
	for (size_t i = 0; i < b->n_ids[PROSE]; i++)
		n += detok_push(&d, b->t, b->ids[i], b->out + n);
	n += detok_flush(&d, b->out + n);
	b->decode.value[round] = mb_per_s(n, begin);
	b->memory.value[round] = probe_read_gbs(1, PROBE_BYTES, 1);
	return 0;
}

/* ---- the report ---------------------------------------------------------------------------------
 */

static int by_value(const void *pa, const void *pb)
{
	double a = *(const double *)pa, b = *(const double *)pb;

	return (a > b) - (a < b);
}

static void report(struct bench *b, struct figure *f, const char *what, const char *name,
		   const char *label, const char *key, const char *unit, size_t tokens)
{
	double median, least, most;

	qsort(f->value, b->rounds, sizeof(f->value[0]), by_value);
	median = f->value[b->rounds / 2];
	least = f->value[0];
	most = f->value[b->rounds - 1];
	if (b->json) {
		printf("{\"bench\": \"tokenizer\", \"what\": \"%s\", ", what);
		if (name)
			printf("\"text\": \"%s\", \"bytes\": %zu, \"tokens\": %zu, ", name, b->len,
			       tokens);
		printf("\"%s\": %.4g, \"least\": %.4g, \"most\": %.4g, \"rounds\": %u}\n", key,
		       median, least, most, b->rounds);
		return;
	}
	printf("%-7s %-21s %8.4g %-5s (%.4g to %.4g)", what, label, median, unit, least, most);
	if (name)
		printf("  %.2f bytes a token", (double)b->len / (double)(tokens ? tokens : 1));
	printf("\n");
}

static void report_all(struct bench *b)
{
	const struct tokenizer_facts *f = tokenizer_facts(b->t);

	if (b->json)
		printf("{\"bench\": \"tokenizer\", \"what\": \"vocabulary\", \"tokens\": %u, "
		       "\"merges\": %u, "
		       "\"section_bytes\": %zu}\n",
		       f->n_tokens, f->n_merges, b->section_bytes);
	else
		printf("%u tokens, %u merges, %zu bytes in the file; texts of %zu bytes; one "
		       "core\n",
		       f->n_tokens, f->n_merges, b->section_bytes, b->len);
	for (unsigned i = 0; i < TEXTS; i++)
		report(b, &b->encode[i], "encode", texts[i].name, texts[i].label, "mb_per_s",
		       "MB/s", b->n_ids[i]);
	report(b, &b->decode, "decode", texts[PROSE].name, texts[PROSE].label, "mb_per_s", "MB/s",
	       b->n_ids[PROSE]);
	report(b, &b->opening, "open", NULL, "", "ms", "ms", 0);
	report(b, &b->memory, "memory", NULL, "read by one core", "gb_per_s", "GB/s", 0);
}

static const char help[] =
	"usage: onebit bench tokenizer [OPTION]...\n"
	"Measure encoding and decoding on one core, in time of this process.\n"
	"  --model FILE   a model, or a tokenizer's file; otherwise a vocabulary of 128,000 made "
	"here\n"
	"  --text FILE    the prose, up to 1 MiB of it; otherwise made here\n"
	"  --rounds N     how often each is measured, 1 to 101; medians are told (9)\n"
	"  --json         one JSON object a line\n"
	"  --help         this\n";

static int bench_run(struct bench *b, const char *model, const char *text)
{
	char why[WHY_MAX] = "";
	int err = open_section(b, model, why);

	if (!err)
		err = tokenizer_open(b->section, b->section_bytes, &b->t, why, WHY_MAX);
	if (!err)
		err = make_texts(b, text, why);
	for (unsigned i = 0; i < b->rounds && !err; i++)
		err = measure_round(b, i, why);
	if (err)
		return tool_fail("bench tokenizer", STATUS_FAILED, "%s",
				 *why ? why : strerror(-err));
	report_all(b);
	return tool_end("bench tokenizer", STATUS_OK);
}

int bench_tokenizer(int argc, char **argv)
{
	static const struct option options[] = {
		{ "model", required_argument, NULL, 'm' },
		{ "text", required_argument, NULL, 't' },
		{ "rounds", required_argument, NULL, 'n' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	const char *model = NULL, *text = NULL;
	struct bench *b;
	unsigned long rounds = 9;
	bool json = false;
	char *end;
	int c, status;

	opterr = 0;
	optind = 0; /* main and bench may have read arguments before */
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'm':
			model = optarg;
			break;
		case 't':
			text = optarg;
			break;
		case 'n':
			rounds = strtoul(optarg, &end, 10);
			if (*end || !rounds || rounds > ROUNDS_MAX)
				return tool_usage("bench tokenizer",
						  "--rounds %s: a number from 1 to %d", optarg,
						  ROUNDS_MAX);
			break;
		case 'j':
			json = true;
			break;
		case 'h':
			fputs(help, stdout);
			return tool_end("bench tokenizer", STATUS_OK);
		default:
			return tool_usage("bench tokenizer", "%s is no option, or lacks its value",
					  argv[optind - 1]);
		}
	}
	if (optind < argc)
		return tool_usage("bench tokenizer", "'%s': there is nothing to name here",
				  argv[optind]);
	b = calloc(1, sizeof(*b));
	if (!b)
		return tool_fail("bench tokenizer", STATUS_FAILED, "no memory");
	b->rounds = (unsigned)rounds;
	b->json = json;
	status = bench_run(b, model, text);
	tokenizer_scratch_free(b->scratch);
	tokenizer_close(b->t);
	obm_close(b->obm);
	for (unsigned i = 0; i < TEXTS; i++)
		free(b->text[i]);
	free(b->made);
	free(b->ids);
	free(b->out);
	free(b);
	return status;
}

/* SPDX-License-Identifier: MIT */
/*
 * onebit bench kernels: how fast packed matrices are multiplied with one vector, which is what
 * writing a token is, with a few, which is a batch, and with many, which is reading a prompt; for
 * each layout and each version of the kernels that this CPU can run. What limits the first is
 * reading memory, and the last is the multiplier, so a round measures both of these as well, and
 * the figures that count are the shares of them.
 *
 * The matrices are those of BitNet b1.58 2B-4T, thirty layers of them, and its output matrix in 8
 * bits. They lie in a buffer many times larger than any cache and each product takes the next part
 * of it; what the weights are makes no difference. Threads share a matrix by its tiles and meet at
 * the end of a pass only.
 */
#include <errno.h>
#include <getopt.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "bench.h"
#include "kernels.h"
#include "probe.h"
#include "tool.h"

enum { ROUNDS_MAX = 101, THREADS_MAX = 64, LAYERS = 30, SUBJECTS_MAX = 64 };
enum { PREFILL = 128, BATCH_LAYERS = 4, PREFILL_LAYERS = 2 }; /* rows at once; shorter passes */
#define LARGE_PAGE ((size_t)2 << 20)

/* Of a layer, by rows and columns: q, k, v, o, gate, up, down. */
static const struct {
	uint32_t rows, cols;
} matrices[] = { { 2560, 2560 }, { 640, 2560 },	 { 640, 2560 }, { 2560, 2560 },
		 { 6912, 2560 }, { 6912, 2560 }, { 2560, 6912 } };
static const struct packed_shape head = { PACKED_INT8, 128256, 2560, 1 };
enum {
	MATRICES = sizeof(matrices) / sizeof(matrices[0]),
	ROWS_MAX = 128256,
	LAID = 6976, /* bytes of the longest row laid out, an odd number of lines */
	BATCH_MAX = 8,
	Y_MAX = ROWS_MAX * BATCH_MAX, /* more than PREFILL rows of the largest other matrix */
};

/* A kernel with so many threads, and what it did in each round. */
struct subject {
	unsigned threads;
	uint32_t layout; /* 0: a probe, of reading or (rows > 0) of multiplying */
	uint32_t rows;	 /* of activations at once */
	unsigned mask;
	const char *isa;
	double gbs[ROUNDS_MAX]; /* of the multiplier's probe: 10^9 multiply-adds a second */
	double weights;		/* of a pass */
};

struct bench {
	unsigned rounds, n_subjects;
	bool json;
	struct subject subjects[SUBJECTS_MAX];
	uint8_t *buffer;
	size_t bytes, next; /* where the next matrix is taken from */
	float *scales, *y;
	void *scratch; /* scratch_bytes for each thread */
	size_t scratch_bytes;
	int8_t *laid; /* PREFILL rows, which are all the same, as are those of the head */
	struct laid_head laid_head;
};

/* ---- a pass ---------------------------------------------------------------------------------- */

struct worker {
	pthread_t thread;
	const struct bench *b;
	const struct subject *s;
	unsigned index;
	size_t next;
};

/* Where a matrix of so many bytes lies, from *next on, around the end of the buffer. */
static const uint8_t *take(const struct bench *b, size_t *next, uint64_t bytes)
{
	const uint8_t *at;

	if (*next + bytes > b->bytes)
		*next = 0;
	at = b->buffer + *next;
	*next += bytes;
	return at;
}

static unsigned layers(const struct subject *s)
{
	return s->rows == 1 ? LAYERS : s->rows < PREFILL ? BATCH_LAYERS : PREFILL_LAYERS;
}

static void head_pass(const struct worker *w, const struct kernels *k, const uint8_t *at,
		      uint32_t tile0, uint32_t tile1)
{
	const struct bench *b = w->b;
	struct laid_head laid[BATCH_MAX];
	float d[BATCH_MAX];
	const struct head_rows rows = { w->s->rows, laid, d };

	for (unsigned i = 0; i < BATCH_MAX; i++) {
		laid[i] = b->laid_head;
		d[i] = 1;
	}
	if (w->s->rows == 1)
		k->head_int8(&head, at, b->scales, laid, 1, tile0, tile1, b->y);
	else
		k->head_int8_rows(&head, at, b->scales, &rows, tile0, tile1, b->y, ROWS_MAX, NULL);
}

/* One thread's tiles of every matrix. */
static void *worker_run(void *arg)
{
	static const int32_t sums[PREFILL];
	static const float d[PREFILL];
	struct worker *w = arg;
	const struct bench *b = w->b;
	const struct ternary_rows rows = { w->s->rows, b->laid, LAID, sums, d };
	void *scratch = (char *)b->scratch + w->index * b->scratch_bytes;
	struct kernels k;

	kernels_choose(&k, w->s->mask);
	if (w->s->layout == PACKED_INT8) {
		uint32_t tiles = packed_tiles(&head);

		head_pass(w, &k, take(b, &w->next, packed_bytes(&head)),
			  tiles * w->index / w->s->threads,
			  tiles * (w->index + 1) / w->s->threads);
		return NULL;
	}
	for (unsigned i = 0; i < layers(w->s) * MATRICES; i++) {
		struct packed_shape s = { w->s->layout, matrices[i % MATRICES].rows,
					  matrices[i % MATRICES].cols, 1 };
		uint32_t tiles = packed_tiles(&s);
		uint32_t tile0 = tiles * w->index / w->s->threads;
		uint32_t tile1 = tiles * (w->index + 1) / w->s->threads;
		const uint8_t *at = take(b, &w->next, packed_bytes(&s));

		if (w->s->rows == 1)
			k.ternary[s.layout](&s, at, b->scales, b->laid, sums, 1, tile0, tile1,
					    b->y);
		else
			k.ternary_rows[s.layout](&s, at, b->scales, &rows, tile0, tile1, b->y,
						 s.rows, scratch);
	}
	return NULL;
}

/* Bytes that a pass reads, and the weights in them. */
static uint64_t pass_bytes(const struct subject *s, double *weights)
{
	uint64_t bytes = 0;

	*weights = (double)head.rows * head.cols;
	if (s->layout == PACKED_INT8)
		return packed_bytes(&head);
	*weights = 0;
	for (unsigned i = 0; i < MATRICES; i++) {
		struct packed_shape shape = { s->layout, matrices[i].rows, matrices[i].cols, 1 };

		bytes += layers(s) * packed_bytes(&shape);
		*weights += (double)layers(s) * shape.rows * shape.cols;
	}
	return bytes;
}

/* GB/s of a pass; 0 when there are not so many threads to be had. */
static double pass(struct bench *b, struct subject *s)
{
	struct worker workers[THREADS_MAX] = { { .b = b, .s = s, .next = b->next } };
	unsigned started = 1;
	uint64_t bytes = pass_bytes(s, &s->weights);
	double begin = tool_seconds(), took;

	for (unsigned i = 1; i < s->threads; i++)
		workers[i] = (struct worker){ .b = b, .s = s, .index = i, .next = b->next };
	while (started < s->threads &&
	       !pthread_create(&workers[started].thread, NULL, worker_run, &workers[started]))
		started++;
	worker_run(&workers[0]);
	for (unsigned i = 1; i < started; i++)
		pthread_join(workers[i].thread, NULL);
	took = tool_seconds() - begin;
	b->next = workers[0].next;
	return started == s->threads ? (double)bytes / took * 1e-9 : 0;
}

/* ---- what is measured ------------------------------------------------------------------------ */

static void add(struct bench *b, struct subject s)
{
	if (b->n_subjects < SUBJECTS_MAX)
		b->subjects[b->n_subjects++] = s;
}

/* The probes first, then every rung of the ladder but the scalar one, not made for speed. */
static void add_all(struct bench *b, unsigned threads)
{
	static const unsigned rungs[] = { KERNELS_NEON, KERNELS_AVX2,
					  KERNELS_AVX2 | KERNELS_AVX512 };
	static const uint32_t layouts[] = { PACKED_2BIT, PACKED_BASE3, PACKED_INT8 };
	static const uint32_t rows[] = { 1, 4, BATCH_MAX, PREFILL };

	add(b, (struct subject){ .threads = threads, .isa = "read" });
	if (kernels_cpu())
		add(b, (struct subject){ .threads = threads, .isa = "multiply", .rows = 1 });
	for (size_t r = 0; r < sizeof(rungs) / sizeof(rungs[0]); r++) {
		struct kernels k;

		if ((kernels_cpu() & rungs[r]) != rungs[r])
			continue;
		kernels_choose(&k, rungs[r]);
		for (size_t l = 0; l < sizeof(layouts) / sizeof(layouts[0]); l++)
			for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]); n++)
				if (layouts[l] != PACKED_INT8 || rows[n] <= BATCH_MAX)
					add(b, (struct subject){ .threads = threads,
								 .layout = layouts[l],
								 .rows = rows[n],
								 .mask = rungs[r],
								 .isa = k.isa });
	}
}

static int by_size(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(const struct bench *b, const struct subject *s)
{
	double v[ROUNDS_MAX];

	memcpy(v, s->gbs, b->rounds * sizeof(*v));
	qsort(v, b->rounds, sizeof(*v), by_size);
	return v[b->rounds / 2];
}

/* The median of each round's own share: memory has fast and slow moments. */
static double share(const struct bench *b, const struct subject *s, double factor,
		    const struct subject *probe)
{
	struct subject ratio = *s;

	for (unsigned i = 0; i < b->rounds; i++)
		ratio.gbs[i] = probe->gbs[i] > 0 ? s->gbs[i] * factor / probe->gbs[i] : 0;
	return median(b, &ratio);
}

static void report_probe(const struct bench *b, const struct subject *s, bool first)
{
	double value = median(b, s);

	if (b->json)
		printf("%s{\"threads\":%u,\"kernel\":\"%s\",\"%s\":%.2f}", first ? "" : ",",
		       s->threads, s->isa, s->rows ? "gmacs_per_s" : "gbs", value);
	else if (s->rows)
		printf("%-8u %-7s %-5s %-8s %8s %8s %10.1f\n", s->threads, "-", "-", s->isa, "", "",
		       value);
	else
		printf("%-8u %-7s %-5s %-8s %8.1f\n", s->threads, "-", "-", s->isa, value);
}

static void report(const struct bench *b)
{
	/* Two come first, and again where the number of threads changes. */
	const struct subject *read = b->subjects, *multiply = b->subjects + 1;

	if (b->json)
		printf("{\"rounds\":%u,\"buffer_bytes\":%zu,\"results\":[", b->rounds, b->bytes);
	else
		printf("%u rounds, %zu MB; medians\n%-8s %-7s %-5s %-8s %8s %8s %10s %11s\n",
		       b->rounds, b->bytes / 1000000, "threads", "layout", "rows", "kernel", "GB/s",
		       "of read", "Gmacs/s", "of multiply");
	for (unsigned i = 0; i < b->n_subjects; i++) {
		const struct subject *s = &b->subjects[i];
		double gbs = median(b, s), macs, weights;

		if (!s->layout) {
			read = s->rows ? read : s;
			multiply = s->rows ? s : multiply;
			report_probe(b, s, i == 0);
			continue;
		}
		/* Multiply-adds for a byte that is read. */
		macs = s->rows * s->weights / (double)pass_bytes(s, &weights);
		if (b->json)
			printf(",{\"threads\":%u,\"layout\":\"%s\",\"rows\":%u,\"kernel\":\"%s\","
			       "\"gbs\":%.2f,\"of_probe\":%.3f,\"gweights_per_s\":%.2f,"
			       "\"gmacs_per_s\":%.2f,\"of_multiply\":%.3f}",
			       s->threads, packed_name(s->layout), s->rows, s->isa, gbs,
			       share(b, s, 1, read), gbs * macs / s->rows, gbs * macs,
			       share(b, s, macs, multiply));
		else
			printf("%-8u %-7s %-5u %-8s %8.1f %8.2f %10.1f %11.2f\n", s->threads,
			       packed_name(s->layout), s->rows, s->isa, gbs, share(b, s, 1, read),
			       gbs * macs, share(b, s, macs, multiply));
	}
	if (b->json)
		puts("]}");
}

/* ---- options and memory ---------------------------------------------------------------------- */

static void usage(void)
{
	puts("usage: onebit bench kernels [--threads N] [--rounds N] [--mib N] [--json]\n\n"
	     "Multiplies packed matrices of the shape of BitNet b1.58 2B-4T with 1, 4, 8 and 128 "
	     "vectors, by\n"
	     "each kernel that this CPU can run, beside what reading memory and multiplying in "
	     "registers\n"
	     "can do.\n\n"
	     "  --threads N   with N threads only; otherwise with one, and with as many as there "
	     "are CPUs\n"
	     "  --rounds N    rounds of everything, 1 to 101 [7]\n"
	     "  --mib N       memory that the matrices lie in, 384 to 65536 [640]\n"
	     "  --json        one line of JSON");
}

static bool number(const char *text, unsigned long least, unsigned long most, unsigned long *out)
{
	char *end;
	unsigned long v;

	errno = 0;
	v = strtoul(text, &end, 10);
	if (errno || end == text || *end || *text == '-' || v < least || v > most)
		return false;
	*out = v;
	return true;
}

static void release(struct bench *b)
{
	free(b->buffer);
	free(b->scales);
	free(b->y);
	free(b->scratch);
	free(b->laid);
	free(b->laid_head.q);
	free(b->laid_head.high);
	free(b->laid_head.low);
}

static bool reserve(struct bench *b)
{
	static const struct packed_shape widest = { PACKED_2BIT, 2560, 6912, 1 };
	uint64_t *p, state = 1;

	b->buffer = aligned_alloc(LARGE_PAGE, b->bytes);
	b->scales = aligned_alloc(KERNELS_ALIGN, ROWS_MAX * sizeof(float));
	b->y = aligned_alloc(KERNELS_ALIGN, Y_MAX * sizeof(float));
	b->laid = aligned_alloc(KERNELS_ALIGN, (size_t)PREFILL * LAID);
	b->scratch_bytes = kernels_scratch_bytes(&widest);
	b->scratch = aligned_alloc(KERNELS_ALIGN, THREADS_MAX * b->scratch_bytes);
	b->laid_head.q = aligned_alloc(KERNELS_ALIGN, 2560 * sizeof(int16_t));
	b->laid_head.high = aligned_alloc(KERNELS_ALIGN, 2560);
	b->laid_head.low = aligned_alloc(KERNELS_ALIGN, 2560);
	if (!b->buffer || !b->scales || !b->y || !b->scratch || !b->laid || !b->laid_head.q ||
	    !b->laid_head.high || !b->laid_head.low)
		return false;
	(void)madvise(b->buffer, b->bytes, MADV_HUGEPAGE);
	p = (uint64_t *)(void *)b->buffer;
	for (size_t i = 0; i < b->bytes / sizeof(*p); i++)
		p[i] = state = state * 6364136223846793005u + 1442695040888963407u;
	for (unsigned i = 0; i < ROWS_MAX; i++)
		b->scales[i] = 1;
	memset(b->laid, 3, (size_t)PREFILL * LAID);
	memset(b->laid_head.q, 3, 2560 * sizeof(int16_t));
	memset(b->laid_head.high, 3, 2560);
	memset(b->laid_head.low, 3, 2560);
	return true;
}

int bench_kernels(int argc, char **argv)
{
	static const struct option options[] = { { "threads", required_argument, NULL, 't' },
						 { "rounds", required_argument, NULL, 'r' },
						 { "mib", required_argument, NULL, 'm' },
						 { "json", no_argument, NULL, 'j' },
						 { "help", no_argument, NULL, 'h' },
						 { NULL, 0, NULL, 0 } };
	unsigned long threads = 0, rounds = 7, mib = 640;
	struct bench *b;
	bool json = false;
	int c, status = STATUS_OK;

	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (c == 't' && !number(optarg, 1, THREADS_MAX, &threads))
			return tool_usage("bench kernels", "--threads is 1 to %d, not \"%s\"",
					  THREADS_MAX, optarg);
		if (c == 'r' && !number(optarg, 1, ROUNDS_MAX, &rounds))
			return tool_usage("bench kernels", "--rounds is 1 to %d, not \"%s\"",
					  ROUNDS_MAX, optarg);
		if (c == 'm' && !number(optarg, 384, 65536, &mib))
			return tool_usage("bench kernels", "--mib is 384 to 65536, not \"%s\"",
					  optarg);
		if (c == '?')
			return tool_usage("bench kernels", "\"%s\" is not an option that it has",
					  argv[optind - 1]);
		json = json || c == 'j';
		if (c == 'h') {
			usage();
			return tool_end("bench kernels", STATUS_OK);
		}
	}
	if (optind < argc)
		return tool_usage("bench kernels", "\"%s\" is one word too many", argv[optind]);

	b = calloc(1, sizeof(*b));
	if (!b)
		return tool_fail("bench kernels", STATUS_FAILED, "there is no memory for it");
	b->rounds = (unsigned)rounds;
	b->bytes = (size_t)mib << 20;
	b->json = json;
	add_all(b, threads ? (unsigned)threads : 1);
	if (!threads && tool_threads() > 1)
		add_all(b, tool_threads() < THREADS_MAX ? tool_threads() : THREADS_MAX);
	if (!reserve(b))
		status = tool_fail("bench kernels", STATUS_FAILED,
				   "there are no %lu MiB of memory; take less by --mib", mib);
	for (unsigned r = 0; r < b->rounds && !status; r++)
		for (unsigned i = 0; i < b->n_subjects && !status; i++) {
			struct subject *s = &b->subjects[i];

			s->gbs[r] = s->layout ? pass(b, s) :
				    s->rows   ? probe_macs(s->threads) :
						probe_read_gbs(s->threads, b->bytes, 1);
			if (s->gbs[r] <= 0)
				status = tool_fail("bench kernels", STATUS_FAILED,
						   "there is no memory or no thread for a round "
						   "with %u threads",
						   s->threads);
		}
	if (!status)
		report(b);
	release(b);
	free(b);
	return status ? status : tool_end("bench kernels", STATUS_OK);
}

/* SPDX-License-Identifier: MIT */
/*
 * What `onebit bench model` says. A figure of ours is told beside the limit that it stands against:
 *
 *	a token of decoding	its bytes / the bandwidth of reading
 *	a token of a prompt	its multiply-adds / their rate
 *	n answers at a time	the larger of both, the weights' bytes read once for all n
 *
 * Bytes are the weights, the head and the KV cache at the timed positions, all of them, although a
 * greedy answer may need less of the head. Multiply-adds of a prompt are those of the ternary
 * matrices.
 */
#include "bench_model.h"

#include <stdio.h>
#include "float_ops.h"

struct report {
	double decode_tps, prefill_tps, streams_tps, bw, macs, open_ms, start_ms;
	double bytes_per_token, bw_fraction, macs_fraction, streams_fraction, streams_ratio;
};

/* Fractions are taken within each round, then the median: the machine has fast and slow moments. */
static struct report sum_up(const struct bench_job *j, const struct bench_engine_figures *f)
{
	struct bench_series bw = { { 0 } }, macs = bw, streams = bw, ratio = bw;
	const double n = j->engine.streams, rounds = f->rounds;
	const double bytes = (double)f->weight_bytes + f->position * (double)f->kv_position_bytes;
	const double streams_bytes = (double)f->weight_bytes +
				     n * f->streams_position * (double)f->kv_position_bytes;

	for (unsigned i = 0; i < f->rounds; i++) {
		double by_bytes = n * f->bw_gbs.of[i] * 1e9 / streams_bytes;
		double by_macs = f->macs_g.of[i] * 1e9 / (double)(f->macs + f->head_macs);

		bw.of[i] = f->decode_tps.of[i] * bytes / (f->bw_gbs.of[i] * 1e9);
		macs.of[i] = by_macs > 0 ? f->prefill_tps.of[i] * (double)f->macs /
					   (f->macs_g.of[i] * 1e9) : 0;
		streams.of[i] = f->streams_tps.of[i] /
				(by_macs > 0 && by_macs < by_bytes ? by_macs : by_bytes);
		ratio.of[i] = f->streams_tps.of[i] / f->decode_tps.of[i];
	}
	return (struct report){
		.decode_tps = bench_median(&f->decode_tps, rounds),
		.prefill_tps = bench_median(&f->prefill_tps, rounds),
		.streams_tps = bench_median(&f->streams_tps, rounds),
		.bw = bench_median(&f->bw_gbs, rounds),
		.macs = bench_median(&f->macs_g, rounds),
		.open_ms = bench_median(&j->open_ms, rounds),
		.start_ms = bench_median(&j->start_ms, rounds),
		.bytes_per_token = bytes,
		.bw_fraction = bench_median(&bw, rounds),
		.macs_fraction = bench_median(&macs, rounds),
		.streams_fraction = bench_median(&streams, rounds),
		.streams_ratio = bench_median(&ratio, rounds),
	};
}

/* A text as JSON has it; what it cannot have is left out. */
static void put_text(const char *key, const char *text)
{
	printf("\"%s\":\"", key);
	for (; *text; text++)
		if ((unsigned char)*text >= ' ' && *text != '"' && *text != '\\')
			putchar(*text);
	printf("\",");
}

static void put_json(const struct bench_job *j, const struct bench_engine_figures *f,
		     const struct report *r)
{
	const struct bench_engine_options *o = &j->engine;

	printf("{");
	put_text("model", j->file ? j->file : j->random.shape);
	put_text("layout", f->layout);
	put_text("backend", f->backend);
	put_text("kv", o->kv_form == KV_INT8 ? "int8" : "fp16");
	printf("\"threads\":%u,\"ctx\":%u,\"tokens\":%u,\"rounds\":%u,\"chunk\":%u,"
	       "\"speculation\":%s,\"sampled\":%s,",
	       o->threads, o->ctx, o->tokens, o->rounds, o->chunk, o->speculation ? "true" : "false",
	       o->sampled ? "true" : "false");
	printf("\"bw_probe_gbs\":%.2f,\"macs_probe_g\":%.1f,", r->bw, r->macs);
	printf("\"decode_tps\":%.3f,\"position\":%.1f,\"bytes_per_token\":%.0f,"
	       "\"bw_fraction\":%.4f,\"weight_bytes\":%llu,\"head_bytes\":%llu,"
	       "\"kv_position_bytes\":%llu,",
	       r->decode_tps, f->position, r->bytes_per_token, r->bw_fraction,
	       (unsigned long long)f->weight_bytes, (unsigned long long)f->head_bytes,
	       (unsigned long long)f->kv_position_bytes);
	if (o->prefill)
		printf("\"prefill\":%u,\"prefill_tps\":%.2f,\"macs_fraction\":%.4f,", o->prefill,
		       r->prefill_tps, r->macs_fraction);
	if (o->streams)
		printf("\"streams\":%u,\"streams_tps\":%.2f,\"streams_fraction\":%.4f,"
		       "\"streams_ratio\":%.3f,", o->streams, r->streams_tps, r->streams_fraction,
		       r->streams_ratio);
	printf("\"drafted\":%llu,\"accepted\":%llu,", (unsigned long long)f->drafted,
	       (unsigned long long)f->accepted);
	printf("\"open_ms\":%.2f,\"start_ms\":%.2f,", r->open_ms, r->start_ms);
	printf("\"rss_mib\":%.1f,\"model_mib\":%.1f,\"kv_mib\":%.1f,\"work_mib\":%.1f,",
	       (double)f->rss_bytes / 0x1p20, (double)f->model_bytes / 0x1p20,
	       (double)f->kv_bytes / 0x1p20, (double)f->work_bytes / 0x1p20);
	printf("\"ops\":[");
	for (uint32_t i = 0; i < f->n_ops; i++)
		printf("%s{\"op\":\"%s\",\"count\":%.1f,\"us\":%.2f,\"bytes\":%.0f}", i ? "," : "",
		       f->ops[i].name, f->ops[i].count, f->ops[i].us, f->ops[i].bytes);
	puts("]}");
}

static void put_table(const struct bench_job *j, const struct bench_engine_figures *f,
		      const struct report *r)
{
	const struct bench_engine_options *o = &j->engine;

	printf("%s, %s; %s, %u thread%s, KV %s; medians of %u rounds\n",
	       j->file ? j->file : j->random.shape, f->layout, f->backend, o->threads,
	       o->threads == 1 ? "" : "s", o->kv_form == KV_INT8 ? "int8" : "fp16", o->rounds);
	printf("the machine: reads %.1f GB/s", r->bw);
	if (r->macs > 0)
		printf(", %.0f G multiply-adds a second", r->macs);
	printf("\ndecode, position %.0f: %.1f tokens/s, %.1f MB a token, %.2f of the reading limit\n",
	       f->position, r->decode_tps, r->bytes_per_token * 1e-6, r->bw_fraction);
	if (o->streams)
		printf("%u streams: %.1f tokens/s, %.2f times one, %.2f of the limit\n", o->streams,
		       r->streams_tps, r->streams_ratio, r->streams_fraction);
	if (o->prefill)
		printf("prompt of %u: %.1f tokens/s, %.2f of the multiply limit\n", o->prefill,
		       r->prefill_tps, r->macs_fraction);
	printf("start: open after %.1f ms, first token after %.1f ms\n", r->open_ms, r->start_ms);
	printf("resident %.0f MiB; the model has %.0f, the KV arena %.0f\n",
	       (double)f->rss_bytes / 0x1p20, (double)f->model_bytes / 0x1p20,
	       (double)f->kv_bytes / 0x1p20);
	if (f->drafted)
		printf("speculation: %llu of %llu guesses held\n", (unsigned long long)f->accepted,
		       (unsigned long long)f->drafted);
	if (f->n_ops)
		printf("\n%-10s %8s %10s %9s %8s   a token of decoding\n", "operation", "times", "us",
		       "MB", "GB/s");
	for (uint32_t i = 0; i < f->n_ops; i++)
		printf("%-10s %8.1f %10.1f %9.3f %8.1f\n", f->ops[i].name, f->ops[i].count,
		       f->ops[i].us, f->ops[i].bytes * 1e-6,
		       f->ops[i].us > 0 ? f->ops[i].bytes / f->ops[i].us * 1e-3 : 0);
}

void bench_report(const struct bench_job *j, const struct bench_engine_figures *f)
{
	struct report r = sum_up(j, f);

	if (j->json)
		put_json(j, f, &r);
	else
		put_table(j, f, &r);
}

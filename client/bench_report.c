/* SPDX-License-Identifier: MIT */
/*
 * Figures for people and for programs. A line per row: its figure (the median over the rounds), the
 * tail of all rounds together, its ratio, and beside it the goal and whether it is met. A goal that
 * is missed is told and is no error: the machine is part of every figure.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include "bench_row.h"
#include "cmd_verb.h"

/* Line round trips below this are of CPUs that share a cache: "near". Far ones take 0.5 us. */
#define NEAR_NS 250

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *v, int n)
{
	if (!n)
		return 0;
	qsort(v, (size_t)n, sizeof(*v), by_value);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}

double report_figure(const struct row *r)
{
	double v[ROUNDS_MAX];

	memcpy(v, r->values, sizeof(v));
	return median(v, r->n_values);
}

/*
 * Median over the rounds that both rows were taken in of r/ref, and of by how much r is above
 * factor * ref + plus. Paired by round, so that a machine that changed between two rounds does not
 * show. false: no such round.
 */
static bool paired(const struct row *r, const struct row *ref, double *ratio, double *above)
{
	double ratios[ROUNDS_MAX], aboves[ROUNDS_MAX];
	int n = 0;

	for (int i = 0; i < r->n_values; i++) {
		for (int k = 0; ref && k < ref->n_values; k++) {
			if (ref->round[k] != r->round[i] || ref->values[k] <= 0)
				continue;
			ratios[n] = r->values[i] / ref->values[k];
			aboves[n++] = r->values[i] - (r->factor * ref->values[k] + r->plus);
		}
	}
	*ratio = median(ratios, n);
	*above = median(aboves, n);
	return n > 0;
}

static double least(const struct row *r, const struct row *line)
{
	if (!r->least_far || !line->n_values)
		return 0;
	return report_figure(line) < NEAR_NS ? r->least_near : r->least_far;
}

/* "ok", "missed", or "" where there is no goal or nothing to hold it against. */
static const char *verdict(const struct row *r, const struct row *ref, const struct row *line)
{
	double ratio, above, figure = report_figure(r);
	bool met;

	if (!r->n_values)
		return "";
	if (r->factor) {
		if (!paired(r, ref, &ratio, &above))
			return "";
		met = above <= 0;
	} else if (r->has_most) {
		met = figure <= r->most;
	} else if (least(r, line)) {
		met = figure >= least(r, line);
	} else {
		return "";
	}
	return met ? "ok" : "missed";
}

static void goal_text(const struct row *r, const struct row *ref, const struct row *line, char *s,
		      size_t len)
{
	int n;

	s[0] = '\0';
	if (r->factor && ref) {
		n = snprintf(s, len, "<= %.4g x %s", r->factor, ref->name);
		if (r->plus)
			snprintf(s + n, len - (size_t)n, " + %.0f ns", r->plus);
	} else if (r->has_most) {
		snprintf(s, len, "<= %.4g%s", r->most, r->unit == UNIT_US ? " us" :
			 r->unit == UNIT_PERCENT ? " %" : "");
	} else if (least(r, line)) {
		snprintf(s, len, ">= %.0f M/s", least(r, line));
	}
}

static void duration_text(double ns, char *s, size_t len)
{
	if (ns < 1000)
		snprintf(s, len, "%.0f ns", ns);
	else if (ns < 10000)
		snprintf(s, len, "%.2f us", ns / 1e3);
	else if (ns < 1e6)
		snprintf(s, len, "%.1f us", ns / 1e3);
	else
		snprintf(s, len, "%.2f ms", ns / 1e6);
}

static void figure_text(const struct row *r, char *s, size_t len)
{
	double v = report_figure(r);

	switch (r->unit) {
	case UNIT_NS:
		duration_text(v, s, len);
		break;
	case UNIT_US:
		duration_text(v * 1e3, s, len);
		break;
	case UNIT_MOPS:
		snprintf(s, len, "%.2f M/s", v);
		break;
	case UNIT_COUNT:
		snprintf(s, len, "%.0f", v);
		break;
	case UNIT_PERCENT:
		snprintf(s, len, "%.3f %%", v);
		break;
	}
}

static void head_table(const struct bench *b, FILE *f, const struct row *line, unsigned rounds,
		       double slot_ms)
{
	struct utsname u;

	uname(&u);
	fprintf(f, "onebit bench ring: CPUs %d and %d of %d, Linux %s, %u rounds of %.0f ms a row; "
		"figures are medians over the rounds\n", b->cpu[0], b->cpu[1], b->n_cpus, u.release,
		rounds, slot_ms);
	if (line->n_values)
		fprintf(f, "line probe: %.0f ns there and back, the CPUs are %s\n",
			line->values[0], line->values[0] < NEAR_NS ? "near" : "far");
	if (b->block > 1)
		fprintf(f, "the clock costs %.0f ns: line and spinning rows time %u trips together, "
			"their tails are those of means\n", b->clock_ns, b->block);
	if (!b->broker)
		fprintf(f, "the broker's process was not found: only our side is pinned\n");
	fprintf(f, "\n%-34s %10s %10s %10s %10s  %-14s %-24s %s\n", "row", "p50", "p99", "p99.9",
		"max", "ratio", "goal", "verdict");
}

void report_head(const struct bench *b, FILE *f, bool json, const struct row *line, unsigned rounds,
		 double slot_ms)
{
	struct utsname u;

	if (!json) {
		head_table(b, f, line, rounds, slot_ms);
		return;
	}
	uname(&u);
	fprintf(f, "{\"row\":\"setup\",\"version\":\"%s\",\"kernel\":", ONEBIT_VERSION);
	verb_json_string(f, u.release, strlen(u.release));
	fprintf(f, ",\"cpus\":%d,\"pin\":[%d,%d],\"daemon_pinned\":%s,\"rounds\":%u,\"slot_ms\":%.1f,"
		"\"clock_ns\":%.1f,\"trips_timed_together\":%u}\n", b->n_cpus, b->cpu[0], b->cpu[1],
		b->broker ? "true" : "false", rounds, slot_ms, b->clock_ns, b->block);
}

static void row_table(const struct row *r, const struct row *ref, const struct row *line, FILE *f)
{
	char figure[24], p99[24] = "", p999[24] = "", max[24] = "", ratio[40] = "", goal[64];
	double x, above;

	if (!r->n_values) {
		fprintf(f, "%-34s %s: %s\n", r->label, r->skipped ? "skipped" : "failed", r->why);
		return;
	}
	figure_text(r, figure, sizeof(figure));
	if (r->hist) {
		duration_text((double)hist_quantile(r->hist, 0.99), p99, sizeof(p99));
		duration_text((double)hist_quantile(r->hist, 0.999), p999, sizeof(p999));
		duration_text((double)r->hist->max, max, sizeof(max));
	}
	/* Where the figure is another quantile it stands in that one's column. */
	if (r->hist && r->quantile > 0.5) {
		strcpy(p99, figure);
		duration_text((double)hist_quantile(r->hist, 0.5), figure, sizeof(figure));
	}
	if (ref && ref != r && paired(r, ref, &x, &above))
		snprintf(ratio, sizeof(ratio), ref == line ? "%.4g x line" : "%.4g x", x);
	goal_text(r, ref, line, goal, sizeof(goal));
	fprintf(f, "%-34s %10s %10s %10s %10s  %-14s %-24s %s\n", r->label, figure, p99, p999, max,
		ratio, goal, verdict(r, ref, line));
	if (r->failed)
		fprintf(f, "%-34s failed in a later round: %s\n", "", r->why);
}

static void row_json(const struct row *r, const struct row *ref, const struct row *line, FILE *f)
{
	const char *v = verdict(r, ref, line);
	double ratio, above;
	char goal[64];

	fprintf(f, "{\"row\":\"%s\"", r->name);
	if (r->clients)
		fprintf(f, ",\"clients\":%u", r->clients);
	if (r->batch)
		fprintf(f, ",\"batch\":%u", r->batch);
	if (r->n_values)
		fprintf(f, ",\"%s\":%.*f", r->key, r->unit == UNIT_NS ? 1 : 3, report_figure(r));
	if (r->n_values && r->hist)
		fprintf(f, ",\"n\":%llu,\"min_ns\":%llu,\"p50_ns\":%llu,\"p99_ns\":%llu,"
			"\"p99_9_ns\":%llu,\"max_ns\":%llu", (unsigned long long)r->hist->n,
			(unsigned long long)r->hist->min,
			(unsigned long long)hist_quantile(r->hist, 0.5),
			(unsigned long long)hist_quantile(r->hist, 0.99),
			(unsigned long long)hist_quantile(r->hist, 0.999),
			(unsigned long long)r->hist->max);
	if (ref && ref != r && r->ratio_key && paired(r, ref, &ratio, &above))
		fprintf(f, ",\"%s\":%.4f", r->ratio_key, ratio);
	goal_text(r, ref, line, goal, sizeof(goal));
	if (*goal && *v)
		fprintf(f, ",\"goal\":\"%s\",\"verdict\":\"%s\"", goal, v);
	if (r->skipped || r->failed) {
		fprintf(f, ",\"%s\":", r->skipped ? "skipped" : "error");
		verb_json_string(f, r->why, strlen(r->why));
	}
	fputs("}\n", f);
}

void report_row(const struct row *r, const struct row *ref, const struct row *line, FILE *f,
		bool json)
{
	if (json)
		row_json(r, ref, line, f);
	else
		row_table(r, ref, line, f);
	fflush(f);
}

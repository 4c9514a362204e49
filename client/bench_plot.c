/* SPDX-License-Identifier: MIT */
/*
 * The picture: one lane a transport, all on one logarithmic axis of time, the line probe as a mark
 * through all of them. Each lane is scaled to its own peak: where a transport's time goes is the
 * question, not how many trips fitted into its slot. Written by hand so that it needs no library,
 * with colours that follow the reader's light or dark setting.
 */
#include <errno.h>
#include <math.h>
#include "bench_row.h"

enum {
	WIDTH = 900,
	LEFT = 170, /* labels */
	RIGHT = 20,
	TOP = 70,
	LANE = 62,
	PEAK = 46, /* height of a lane's highest bar */
	BINS = 160, /* over the whole axis: some 4 px each */
};

struct axis {
	double lo, hi; /* log10 ns */
};

static double x_of(const struct axis *a, double ns)
{
	return LEFT + (WIDTH - LEFT - RIGHT) * (log10(ns) - a->lo) / (a->hi - a->lo);
}

static void head(FILE *f, int height)
{
	fprintf(f,
		"<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" "
		"height=\"%d\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n"
		"<style>\n"
		".bg{fill:#ffffff}.t{fill:#1f2328}.m{fill:#656d76}.g{stroke:#d8dee4}\n"
		".ring{fill:#0969da}.peer{fill:#8c959f}.line{stroke:#cf222e}.lt{fill:#cf222e}\n"
		".q{stroke:#1f2328}\n"
		"@media (prefers-color-scheme: dark){\n"
		".bg{fill:#0d1117}.t{fill:#e6edf3}.m{fill:#8d96a0}.g{stroke:#30363d}\n"
		".ring{fill:#58a6ff}.peer{fill:#6e7681}.line{stroke:#ff7b72}.lt{fill:#ff7b72}\n"
		".q{stroke:#e6edf3}\n"
		"}\n"
		"</style>\n"
		"<rect class=\"bg\" width=\"100%%\" height=\"100%%\"/>\n"
		"<text class=\"t\" x=\"16\" y=\"26\" font-size=\"16\" font-weight=\"600\">"
		"Round trip of an empty operation, 64 bytes</text>\n"
		"<text class=\"m\" x=\"16\" y=\"46\">each lane scaled to its own peak; "
		"ticks: p50 (long) and p99 (short)</text>\n",
		WIDTH, height, WIDTH, height);
}

static void tick_label(double ns, char *s, size_t len)
{
	if (ns < 1e3)
		snprintf(s, len, "%.0f ns", ns);
	else if (ns < 1e6)
		snprintf(s, len, "%.0f \u00b5s", ns / 1e3);
	else
		snprintf(s, len, "%.0f ms", ns / 1e6);
}

static void grid(FILE *f, const struct axis *a, int bottom)
{
	char label[24];

	for (int e = (int)ceil(a->lo - 1e-9); e <= (int)floor(a->hi + 1e-9); e++) {
		double ns = pow(10, e), x = x_of(a, ns);

		tick_label(ns, label, sizeof(label));
		fprintf(f, "<line class=\"g\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>\n"
			"<text class=\"m\" x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n",
			x, TOP, x, bottom, x, bottom + 18, label);
	}
}

static void lane(FILE *f, const struct axis *a, const struct row *r, int base, bool ring)
{
	double bins[BINS] = { 0 }, peak = 0, step = (double)(WIDTH - LEFT - RIGHT) / BINS;
	char label[24];

	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		double mid, at;

		if (!r->hist->count[i])
			continue;
		mid = ((double)hist_floor(i) + (double)hist_floor(i + 1)) / 2;
		at = (x_of(a, mid > 0 ? mid : 1) - LEFT) / step;
		if (at < 0)
			at = 0;
		if (at > BINS - 1)
			at = BINS - 1; /* the axis ends at the last p99.9; what is beyond piles up here */
		bins[(int)at] += (double)r->hist->count[i];
	}
	for (int i = 0; i < BINS; i++)
		if (bins[i] > peak)
			peak = bins[i];
	fprintf(f, "<text class=\"t\" x=\"16\" y=\"%d\">%s</text>\n<path class=\"%s\" d=\"M%d %d",
		base - 16, r->label, ring ? "ring" : "peer", LEFT, base);
	for (int i = 0; i < BINS; i++)
		fprintf(f, "L%.1f %.1fL%.1f %.1f", LEFT + i * step, base - PEAK * bins[i] / peak,
			LEFT + (i + 1) * step, base - PEAK * bins[i] / peak);
	fprintf(f, "L%d %dZ\"/>\n", WIDTH - RIGHT, base);
	fprintf(f, "<line class=\"g\" x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\"/>\n", LEFT, base,
		WIDTH - RIGHT, base);
	for (int i = 0; i < 2; i++) {
		double x = x_of(a, i ? (double)hist_quantile(r->hist, 0.99) : report_figure(r));

		fprintf(f, "<line class=\"q\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\"/>\n", x,
			base + 4, x, base - (i ? 10 : PEAK / 2));
	}
	if (report_figure(r) < 1000)
		snprintf(label, sizeof(label), "%.0f ns", report_figure(r));
	else
		snprintf(label, sizeof(label), "%.1f \u00b5s", report_figure(r) / 1e3);
	fprintf(f, "<text class=\"m\" x=\"16\" y=\"%d\">p50 %s</text>\n", base, label);
}

int plot_write(const char *path, const struct row *rows, int n_rows, const struct row *line)
{
	struct axis a = { .lo = 9, .hi = 0 };
	double probe = report_figure(line);
	int n = 0, bottom, ret = 0;
	FILE *f = fopen(path, "we");

	if (!f)
		return -errno;
	for (int i = 0; i < n_rows; i++) {
		const struct row *r = &rows[i];

		if (!r->plot || !r->n_values)
			continue;
		n++;
		a.lo = fmin(a.lo, log10(fmax(1, (double)hist_quantile(r->hist, 0.001))));
		a.hi = fmax(a.hi, log10(fmax(1, (double)hist_quantile(r->hist, 0.999))));
	}
	if (probe > 0)
		a.lo = fmin(a.lo, log10(probe));
	/* Some air on both sides, and never an axis without length. */
	a.lo -= 0.15;
	a.hi = fmax(a.hi, a.lo + 1) + 0.1;
	bottom = TOP + n * LANE + 8;
	head(f, bottom + 34);
	grid(f, &a, bottom);
	n = 0;
	/* Ours first, then what else one could use. */
	for (int k = 0; k < 2 * n_rows; k++) {
		const struct row *r = &rows[k % n_rows];
		bool ring = r->run == rtt_run;

		if (r->plot && r->n_values && ring == (k < n_rows))
			lane(f, &a, r, TOP + ++n * LANE - 8, ring);
	}
	if (probe > 0)
		fprintf(f, "<line class=\"line\" x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" "
			"stroke-dasharray=\"4 3\"/>\n<text class=\"lt\" x=\"%.1f\" y=\"%d\">"
			"line probe %.0f ns</text>\n", x_of(&a, probe), TOP - 6, x_of(&a, probe), bottom,
			x_of(&a, probe) + 5, TOP + 4, probe);
	fputs("</svg>\n", f);
	if (ferror(f))
		ret = -EIO;
	if (fclose(f) && !ret)
		ret = -errno;
	return ret;
}

/* SPDX-License-Identifier: MIT */
/*
 * BitNet's forward pass in binary64. Weights are ternary codes times scales, activations of linear
 * layers int8 with one scale for each position, everything else as exact as a double is: no order
 * of additions is kept, keys and values are not rounded, the head's activation is not quantised.
 * Slow, obvious, and without a trick, since all it is for is being right.
 */
#include "lib_oracle_private.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *oracle_mistake(enum oracle_mistake m)
{
	static const char *const names[ORACLE_MISTAKES] = {
		"no mistake",
		"RoPE rotates neighbours",
		"RoPE rotates keys a position late",
		"sub-norms forgotten",
		"sub-norm over each head",
		"norms swapped",
		"eps forgotten",
		"KV heads interleaved",
		"scores not scaled",
		"a position does not see itself",
		"a position does not see the first",
		"ReLU not squared",
		"the other activation",
		"gate and up swapped",
		"the FFN's product within binary16",
		"scales swapped",
		"scales dropped",
		"scales of groups reversed",
		"one activation scale for all positions",
		"its own head not used",
		"final norm forgotten",
	};

	return names[m];
}

/* ---- the pass -------------------------------------------------------------------------------- */

struct pass {
	const struct oracle *o;
	enum oracle_mistake wrong;
	double *keys, *values; /* [layer][position][kv_heads * head_dim] */
	uint32_t n;	       /* positions there is room for */
	double *first_scale;   /* of position 0, [layer][matrix] */
	double largest;
	/* of the position at hand */
	double *x, *y, *t, *q, *out, *gate, *up;
};

/* y = x / sqrt(mean(x^2) + eps) * w; w NULL: as it is. */
static void rms_norm(const struct pass *p, const double *x, const double *w, uint32_t n, double *y)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += x[i] * x[i];
	sum = sqrt(sum / n + (p->wrong == ORACLE_NO_EPS ? 0 : p->o->eps));
	for (uint32_t i = 0; i < n; i++)
		y[i] = w ? x[i] / sum * w[i] : x[i];
}

static double scale_at(const struct pass *p, uint32_t layer, int k, uint32_t row, uint32_t g)
{
	const struct layer *l = &p->o->layer[layer];
	const struct weights *w = &l->m[k];

	if (p->wrong == ORACLE_SCALES_DROPPED)
		return 1;
	if (p->wrong == ORACLE_SCALES_SWAPPED && (k == TINY_O || k == TINY_DOWN))
		w = &l->m[k == TINY_O ? TINY_DOWN : TINY_O];
	if (p->wrong == ORACLE_GROUPS_REVERSED)
		g = w->groups - 1 - g;
	return w->scales[(size_t)row * w->groups + g];
}

/* y = W x, the activation rounded to int8: half to even, as nearbyint() does. */
static void linear(struct pass *p, uint32_t layer, int k, const double *x, double *y)
{
	const struct weights *w = &p->o->layer[layer].m[k];
	double *first = &p->first_scale[layer * TINY_MATRICES + (uint32_t)k];
	uint32_t width = w->cols / w->groups;
	double most = 1e-5;

	for (uint32_t i = 0; i < w->cols; i++)
		most = fmax(most, fabs(x[i]));
	*first = *first > 0 ? *first : most;
	if (p->wrong == ORACLE_ONE_SCALE)
		most = *first;
	for (uint32_t i = 0; i < w->cols; i++)
		p->t[i] = fmin(fmax(nearbyint(x[i] * (127 / most)), -128), 127);
	for (uint32_t r = 0; r < w->rows; r++) {
		y[r] = 0;
		for (uint32_t g = 0; g < w->groups; g++) {
			const int8_t *codes = w->codes + (size_t)r * w->cols + (size_t)g * width;
			double sum = 0;

			for (uint32_t i = 0; i < width; i++)
				sum += codes[i] * p->t[(size_t)g * width + i];
			y[r] += sum * (most / 127) * scale_at(p, layer, k, r, g);
		}
	}
}

static void rotate(const struct pass *p, double *head, uint32_t position)
{
	uint32_t n = p->o->head_dim, half = n / 2;

	for (uint32_t i = 0; i < half; i++) {
		bool pairs = p->wrong == ORACLE_ROPE_PAIRS;
		double *a = pairs ? &head[2 * i] : &head[i];
		double *b = pairs ? &head[2 * i + 1] : &head[half + i];
		double angle = position * pow(p->o->theta, -2.0 * i / n);
		double re = *a * cos(angle) - *b * sin(angle);

		*b = *b * cos(angle) + *a * sin(angle);
		*a = re;
	}
}

static bool sees(const struct pass *p, uint32_t from, uint32_t to)
{
	if (!from)
		return true;
	return !(p->wrong == ORACLE_BLIND_TO_ITSELF && to == from) &&
	       !(p->wrong == ORACLE_BLIND_TO_FIRST && !to);
}

/* One query head over the positions up to its own. */
static void attend(const struct pass *p, const double *keys, const double *values, uint32_t head,
		   uint32_t position)
{
	const struct oracle *o = p->o;
	uint32_t dim = o->head_dim, stride = o->kv_heads * dim;
	uint32_t kv = p->wrong == ORACLE_GQA_INTERLEAVED ? head % o->kv_heads
							 : head * o->kv_heads / o->heads;
	double scale = p->wrong == ORACLE_SCORES_UNSCALED ? 1 : 1 / sqrt(dim);
	const double *q = p->q + (size_t)head * dim;
	double *out = p->out + (size_t)head * dim;
	double *score = oracle_need(position + 1, sizeof(*score));
	double most = -INFINITY, sum = 0;

	for (uint32_t j = 0; j <= position; j++) {
		const double *k = keys + (size_t)j * stride + (size_t)kv * dim;

		for (uint32_t i = 0; i < dim; i++)
			score[j] += q[i] * k[i] * scale;
		most = sees(p, position, j) ? fmax(most, score[j]) : most;
	}
	memset(out, 0, dim * sizeof(*out));
	for (uint32_t j = 0; j <= position; j++) {
		double weight = sees(p, position, j) ? exp(score[j] - most) : 0;

		sum += weight;
		for (uint32_t i = 0; i < dim; i++)
			out[i] += weight * values[(size_t)j * stride + (size_t)kv * dim + i];
	}
	for (uint32_t i = 0; i < dim; i++)
		out[i] /= sum;
	free(score);
}

static void attention(struct pass *p, uint32_t layer, uint32_t position)
{
	const struct oracle *o = p->o;
	const struct layer *l = &o->layer[layer];
	size_t stride = (size_t)o->kv_heads * o->head_dim;
	double *keys = p->keys + layer * p->n * stride, *values = p->values + layer * p->n * stride;
	double *k = keys + position * stride;
	uint32_t width = o->heads * o->head_dim;

	rms_norm(p, p->x, p->wrong == ORACLE_NORMS_SWAPPED ? l->ffn_norm : l->attn_norm, o->hidden,
		 p->y);
	linear(p, layer, TINY_Q, p->y, p->q);
	linear(p, layer, TINY_K, p->y, k);
	linear(p, layer, TINY_V, p->y, values + position * stride);
	for (uint32_t h = 0; h < o->heads; h++)
		rotate(p, p->q + (size_t)h * o->head_dim, position);
	for (uint32_t h = 0; h < o->kv_heads; h++)
		rotate(p, k + (size_t)h * o->head_dim,
		       position + (p->wrong == ORACLE_ROPE_KEY_LATE));
	for (uint32_t h = 0; h < o->heads; h++)
		attend(p, keys, values, h, position);
	if (l->attn_sub_norm && p->wrong == ORACLE_SUB_NORM_BY_HEAD)
		for (uint32_t h = 0; h < o->heads; h++) {
			size_t at = (size_t)h * o->head_dim;

			rms_norm(p, p->out + at, l->attn_sub_norm + at, o->head_dim, p->out + at);
		}
	else if (p->wrong != ORACLE_NO_SUB_NORMS)
		rms_norm(p, p->out, l->attn_sub_norm, width, p->out);
	linear(p, layer, TINY_O, p->out, p->y);
	for (uint32_t i = 0; i < o->hidden; i++)
		p->x[i] += p->y[i];
}

static double activated(const struct pass *p, double g)
{
	bool relu = p->o->activation == OBM_ACT_RELU2;

	if (relu == (p->wrong == ORACLE_OTHER_ACTIVATION))
		return g / (1 + exp(-g));
	g = fmax(g, 0);
	return p->wrong == ORACLE_RELU_NOT_SQUARED ? g : g * g;
}

static void ffn(struct pass *p, uint32_t layer)
{
	const struct oracle *o = p->o;
	const struct layer *l = &o->layer[layer];

	rms_norm(p, p->x, p->wrong == ORACLE_NORMS_SWAPPED ? l->attn_norm : l->ffn_norm, o->hidden,
		 p->y);
	linear(p, layer, TINY_GATE, p->y, p->gate);
	linear(p, layer, TINY_UP, p->y, p->up);
	for (uint32_t i = 0; i < o->ffn; i++) {
		double h = p->wrong == ORACLE_GATE_UP_SWAPPED ? activated(p, p->up[i]) * p->gate[i]
							      : activated(p, p->gate[i]) * p->up[i];

		if (p->wrong == ORACLE_HALF_PRODUCT)
			h = fmin(fmax(h, -65504), 65504);
		p->largest = fmax(p->largest, fabs(h));
		p->gate[i] = h;
	}
	if (p->wrong != ORACLE_NO_SUB_NORMS)
		rms_norm(p, p->gate, l->ffn_sub_norm, o->ffn, p->gate);
	linear(p, layer, TINY_DOWN, p->gate, p->y);
	for (uint32_t i = 0; i < o->hidden; i++)
		p->x[i] += p->y[i];
}

static double run(const struct oracle *o, enum oracle_mistake m, const uint32_t *tokens, uint32_t n,
		  double *logits, double *final)
{
	size_t kv = (size_t)o->layers * n * o->kv_heads * o->head_dim;
	uint32_t q = o->heads * o->head_dim;
	uint32_t widest = o->ffn > o->hidden ? o->ffn : o->hidden;
	const double *head = o->head && m != ORACLE_HEAD_TIED ? o->head : o->embed;
	struct pass p = { .o = o, .wrong = m, .n = n };

	p.keys = oracle_need(kv, sizeof(double));
	p.values = oracle_need(kv, sizeof(double));
	p.first_scale = oracle_need((size_t)o->layers * TINY_MATRICES, sizeof(double));
	p.x = oracle_need(o->hidden, sizeof(double));
	p.y = oracle_need(o->hidden, sizeof(double));
	p.t = oracle_need(widest > q ? widest : q, sizeof(double));
	p.q = oracle_need(q, sizeof(double));
	p.out = oracle_need(q, sizeof(double));
	p.gate = oracle_need(o->ffn, sizeof(double));
	p.up = oracle_need(o->ffn, sizeof(double));
	for (uint32_t i = 0; i < n; i++) {
		assert(tokens[i] < o->vocab);
		memcpy(p.x, o->embed + (size_t)tokens[i] * o->hidden, o->hidden * sizeof(double));
		for (uint32_t l = 0; l < o->layers; l++) {
			attention(&p, l, i);
			ffn(&p, l);
		}
		rms_norm(&p, p.x, m == ORACLE_NO_FINAL_NORM ? NULL : o->final_norm, o->hidden, p.y);
		if (final)
			memcpy(final + (size_t)i * o->hidden, p.y, o->hidden * sizeof(double));
		for (uint32_t r = 0; logits && r < o->vocab; r++) {
			double sum = 0;

			for (uint32_t c = 0; c < o->hidden; c++)
				sum += head[(size_t)r * o->hidden + c] * p.y[c];
			logits[(size_t)i * o->vocab + r] = sum;
		}
	}
	free(p.keys);
	free(p.values);
	free(p.first_scale);
	free(p.x);
	free(p.y);
	free(p.t);
	free(p.q);
	free(p.out);
	free(p.gate);
	free(p.up);
	return p.largest;
}

void oracle_run(const struct oracle *o, enum oracle_mistake m, const uint32_t *tokens, uint32_t n,
		double *logits, double *final)
{
	run(o, m, tokens, n, logits, final);
}

double oracle_largest_product(const struct oracle *o, const uint32_t *tokens, uint32_t n)
{
	return run(o, ORACLE_RIGHT, tokens, n, NULL, NULL);
}

/* ---- comparing ------------------------------------------------------------------------------- */

int oracle_ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

struct closeness oracle_closeness(const double *want, const float *got, uint32_t stride, uint32_t n,
				  uint32_t vocab)
{
	double *d = oracle_need((size_t)n * vocab, sizeof(*d));
	struct closeness c = { 0 };

	for (uint32_t i = 0; i < n; i++) {
		const double *w = want + (size_t)i * vocab;
		const float *g = got + (size_t)i * stride;
		double sum = 0, squares = 0, deviation, first = -INFINITY, second = -INFINITY;
		uint32_t best = 0, ours = 0;

		for (uint32_t v = 0; v < vocab; v++) {
			sum += w[v];
			squares += w[v] * w[v];
			if (w[v] > first) {
				second = first;
				first = w[v];
				best = v;
			} else if (w[v] > second) {
				second = w[v];
			}
			ours = g[v] > g[ours] ? v : ours;
		}
		deviation = sqrt(squares / vocab - sum / vocab * (sum / vocab));
		for (uint32_t v = 0; v < vocab; v++)
			d[(size_t)i * vocab + v] = fabs((double)g[v] - w[v]) / deviation;
		if (best != ours)
			c.lead = fmax(c.lead, (first - second) / deviation);
		c.clear += first - second >= ORACLE_MARGIN * deviation;
		c.agreed += first - second >= ORACLE_MARGIN * deviation && best == ours;
	}
	qsort(d, (size_t)n * vocab, sizeof(*d), oracle_ascending);
	c.median = d[(size_t)n * vocab / 2];
	free(d);
	return c;
}

/* SPDX-License-Identifier: MIT */
/*
 * Every version of every float operation that this CPU can run against the scalar one, bit for bit;
 * the scalar one against the contract's sentences in another form, against plain binary64 for
 * plausibility, and against golden bits that every machine must have.
 */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "float_ops.h"
#include "lib_core.h"

/* Of test golden. */
#define GOLDEN 0xcdec6b084547e272ull

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t seed;

static const unsigned masks[] = { KERNELS_AVX2, KERNELS_AVX2 | KERNELS_AVX512, KERNELS_AVX512,
				  KERNELS_NEON, KERNELS_ANY };

/* n at ONEBIT_SCALE = 100 percent, which is the default; at least 1. */
static unsigned scaled(unsigned n)
{
	const char *s = getenv("ONEBIT_SCALE");
	unsigned long percent = s ? strtoul(s, NULL, 10) : 100;
	unsigned long m = n * percent / 100;

	return m < 1 ? 1 : (unsigned)m;
}

static uint32_t bits(float x)
{
	uint32_t b;

	memcpy(&b, &x, sizeof(b));
	return b;
}

static float from_bits(uint32_t b)
{
	float x;

	memcpy(&x, &b, sizeof(x));
	return x;
}

static void *get(size_t bytes)
{
	void *p = aligned_alloc(64, (bytes + 127) / 64 * 64);

	ck_assert_ptr_nonnull(p);
	memset(p, 0x5a, (bytes + 127) / 64 * 64);
	return p;
}

static float *floats(size_t n)
{
	return get(n * sizeof(float));
}

/* What the values are like. */
enum fill { PLAIN, EXPONENTS, LARGE, SUBNORMAL, ZEROS, HALVES, EQUAL, FILLS };

static float value_of(enum fill fill)
{
	uint64_t r = core_random(&seed);
	float sign = r >> 63 ? -1.0f : 1.0f, unit = (float)(r >> 8 & 0xffffff) * 0x1p-24f;

	switch (fill) {
	case EXPONENTS:
		return sign * ldexpf(1 + unit, (int)(r & 63) - 40);
	case LARGE:
		return sign * (1 + unit) * 3e9f;
	case SUBNORMAL:
		return sign * from_bits((uint32_t)(r >> 8 & 0xffffff) >> (r & 15));
	case ZEROS:
		return sign * 0.0f;
	case HALVES: /* rounds to nothing when the largest is 127: ties of the quantiser */
		return sign * ((float)(r >> 8 & 127) + (r & 1 ? 0.5f : 0));
	case EQUAL:
		return 0.75f;
	default:
		return sign * unit * 3;
	}
}

static float *filled(size_t n, enum fill fill)
{
	float *v = floats(n);

	for (size_t i = 0; i < n; i++)
		v[i] = value_of(fill);
	if (fill == HALVES)
		v[0] = 127;
	return v;
}

static void same(const void *a, const void *want, size_t bytes, const char *isa, const char *what,
		 uint32_t n)
{
	const uint8_t *x = a, *y = want;

	for (size_t i = 0; i < bytes; i++)
		if (x[i] != y[i])
			ck_abort_msg("%s of %u by %s: byte %zu is %#x, not %#x", what, n, isa, i,
				     x[i], y[i]);
}

static const uint32_t lengths[] = { 1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 255, 256, 257, 511,
				    512, 513, 1000, 2560, 6912, 8640 };

/* ---- building blocks ------------------------------------------------------------------------- */

/* The contract's exp2 is within 1.01 ulp, and has its edges where it says. */
START_TEST(exp2_edges)
{
	double worst = 0;

	ck_assert(exp2_contract(0) == 1 && exp2_contract(-0.0f) == 1 && exp2_contract(-1) == 0.5f);
	ck_assert(exp2_contract(-100) == 0x1p-100f &&
		  bits(exp2_contract(nextafterf(-100, -200))) == 0);
	ck_assert(bits(exp2_contract(-INFINITY)) == 0);
	ck_assert(exp2_contract(126) == 0x1p126f && exp2_contract(1000) == 0x1p126f);
	ck_assert(exp2_contract(INFINITY) == 0x1p126f && isnan(exp2_contract(NAN)));
	/* A NaN whose last bits could be taken for an exponent. */
	ck_assert(isnan(exp2_contract(from_bits(0x7fc00155))));
	for (int32_t i = -30 * 8192; i < 0; i++) {
		float x = (float)i * 0x1p-13f;
		double want = exp2((double)x), ulp = ldexp(1, (int)floor((double)x) - 23);
		double error = fabs((double)exp2_contract(x) - want) / ulp;

		worst = error > worst ? error : worst;
	}
	printf("exp2: within %.3f ulp\n", worst);
	ck_assert(worst < 1.02);
}
END_TEST

/* A tree by halves, from the definition's last line upwards. */
static float tree(const float *p, size_t n)
{
	return n == 1 ? p[0] : tree(p, n / 2) + tree(p + n / 2, n / 2);
}

/* Partials l + half are added to l: in the order of a tree, the index's bits are reversed. */
static float tree_of(const float *p, unsigned n)
{
	float q[256];

	for (unsigned i = 0; i < n; i++) {
		unsigned at = 0;

		for (unsigned b = 1; b < n; b *= 2)
			at = at * 2 + (i / b & 1);
		q[at] = p[i];
	}
	return tree(q, n);
}

/* The two sums, worked out another way. */
START_TEST(sums)
{
	for (int fill = PLAIN; fill < FILLS; fill++)
		for (size_t l = 0; l < COUNT(lengths); l++) {
			uint32_t n = lengths[l];
			float *v = filled(n, (enum fill)fill), p[256] = { 0 }, s[32] = { 0 }, x;

			for (uint32_t i = 0; i < n; i++)
				p[i & 255] = p[i & 255] + v[i];
			x = tree_of(p, 256);
			ck_assert_uint_eq(bits(sum256(v, n)), bits(x));
			for (uint32_t i = 0; i < n; i += 16) {
				float e[16];

				for (uint32_t j = 0; j < 16; j++)
					e[j] = i + j < n ? v[i + j] * v[i + j] : 0;
				s[i / 16 & 31] += tree_of(e, 16);
			}
			x = tree_of(s, 32);
			ck_assert_uint_eq(bits(sumsq(v, n)), bits(x));
			free(v);
		}
}
END_TEST

/* ---- one row --------------------------------------------------------------------------------- */

/* Both quantisers of a row, by all versions; returns scalar's codes for the head, and its scale. */
static void judge_norm(const float *x, const float *w, uint32_t n, float eps, int16_t *codes,
		       float *scale)
{
	struct float_ops f;
	int8_t *q = get(n), *q2 = get(n);
	int16_t *h = get(n * 2), *h2 = get(n * 2);
	float *y = floats(n), *y2 = floats(n), d, d2, dh, dh2;
	uint32_t faults = 0;

	float_ops_choose(&f, 0);
	f.norm_quant(x, w, n, eps, q, &d, &faults);
	f.norm_head(x, w, n, eps, y, h, &dh, &faults);
	ck_assert_uint_eq(faults, 0);
	for (size_t m = 0; m < COUNT(masks); m++) {
		float_ops_choose(&f, masks[m]);
		memset(q2, 0x5a, n);
		memset(h2, 0x5a, (size_t)n * 2);
		memset(y2, 0x5a, (size_t)n * 4);
		f.norm_quant(x, w, n, eps, q2, &d2, &faults);
		f.norm_head(x, w, n, eps, y2, h2, &dh2, &faults);
		same(q2, q, n, f.isa, "codes", n);
		same(&d2, &d, sizeof(d), f.isa, "d", n);
		same(h2, h, (size_t)n * 2, f.isa, "the head's codes", n);
		same(y2, y, (size_t)n * 4, f.isa, "norm", n);
		same(&dh2, &dh, sizeof(d), f.isa, "the head's d", n);
		ck_assert_uint_eq(faults, 0);
		ck_assert_uint_eq((uint8_t)q2[n], 0x5a);
		ck_assert_uint_eq((uint16_t)h2[n], 0x5a5a);
		ck_assert_uint_eq(bits(y2[n]), 0x5a5a5a5a);
	}
	/* Eight bits say the same as sixteen, to half a step. */
	for (uint32_t i = 0; i < n; i++)
		ck_assert(fabs((double)q[i] * (double)d - (double)h[i] * (double)dh) <=
			  0.503 * (double)d);
	if (codes)
		memcpy(codes, h, (size_t)n * 2);
	if (scale)
		*scale = dh;
	free(q);
	free(q2);
	free(h);
	free(h2);
	free(y);
	free(y2);
}

/* Lengths at the ends of blocks and partials, kinds of values, with a norm and without. */
START_TEST(norms)
{
	double worst = 0;

	for (int fill = PLAIN; fill < FILLS; fill++)
		for (size_t l = 0; l < COUNT(lengths); l++) {
			uint32_t n = lengths[l];
			float *x = filled(n, (enum fill)fill),
			      *w = filled(n, l & 1 ? PLAIN : EXPONENTS), scale;
			int16_t *codes = get(n * 2);
			double ss = 0, max = 0, r;

			judge_norm(x, NULL, n, 0, NULL, NULL);
			judge_norm(x, w, n, 1e-5f, codes, &scale);
			for (uint32_t i = 0; i < n; i++)
				ss += (double)x[i] * (double)x[i];
			r = 1 / sqrt(ss / n + (double)1e-5f);
			for (uint32_t i = 0; i < n; i++)
				max = fmax(max, fabs((double)x[i] * (double)w[i] * r));
			max = fmax(max, 1e-5);
			for (uint32_t i = 0; i < n; i++) {
				double y = (double)x[i] * (double)w[i] * r;
				double error = fabs(y - codes[i] * (double)scale) / max;

				worst = error > worst ? error : worst;
			}
			free(x);
			free(w);
			free(codes);
		}
	printf("norm: within %.3g of the largest, half a step being %.3g\n", worst, 0.5 / 32767);
	ck_assert(worst < 0.53 / 32767);
}
END_TEST

/* Halves go to the even neighbour, both ways; what has no size gets the smallest scale there is. */
START_TEST(ties)
{
	static const float x[] = { 127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -2.5f, 125.5f, 126.5f,
				   -125.5f, -126.5f, -127 };
	static const int8_t want[] = { 127, 0, 2, 2, 0, -2, -2, 126, 126, -126, -126, -127 };
	static const float wide[] = { 32767, 0.5f, 1.5f, -0.5f, -2.5f, 32765.5f, -32766.5f,
				      -32767 };
	static const int16_t wide_want[] = { 32767, 0, 2, 0, -2, 32766, -32766, -32767 };
	struct float_ops f;

	for (size_t m = 0; m <= COUNT(masks); m++) {
		int8_t q[COUNT(x)];
		int16_t h[COUNT(wide)];
		float zero[20] = { 0, -0.0f }, y[20], d;
		uint32_t faults = 0;

		float_ops_choose(&f, m ? masks[m - 1] : 0);
		f.norm_quant(x, NULL, COUNT(x), 0, q, &d, &faults);
		same(q, want, sizeof(q), f.isa, "ties", COUNT(x));
		ck_assert(d == 1);
		f.norm_head(wide, NULL, COUNT(wide), 0, y, h, &d, &faults);
		same(h, wide_want, sizeof(h), f.isa, "ties of the head", COUNT(wide));
		ck_assert(d == 1);
		f.norm_quant(zero, NULL, COUNT(x), 0, q, &d, &faults);
		for (size_t i = 0; i < COUNT(x); i++)
			ck_assert_int_eq(q[i], 0);
		ck_assert(d == 1e-5f / 127);
		f.norm_quant(zero, x, COUNT(x), 1e-5f, q, &d, &faults);
		ck_assert(q[0] == 0 && d == 1e-5f / 127 && faults == 0);
	}
}
END_TEST

/* A product near 10^9 is far beyond a half; a NaN is not clamped away by max(g, 0). */
START_TEST(gates)
{
	struct float_ops f;
	double worst = 0;

	for (int fill = PLAIN; fill < FILLS; fill++)
		for (size_t l = 0; l < COUNT(lengths); l++)
			for (uint32_t act = GATE_RELU2; act <= GATE_SILU; act++) {
				uint32_t n = lengths[l];
				float *g = filled(n, (enum fill)fill),
				      *u = filled(n, l & 1 ? PLAIN : (enum fill)fill);
				float *h = floats(n), *h2 = floats(n);

				float_ops_choose(&f, 0);
				f.gate(act, g, u, n, h);
				for (uint32_t i = 0; i < n; i++) {
					double x = (double)g[i], y, error;

					y = (act == GATE_RELU2 ? fmax(x, 0) * fmax(x, 0) :
								 x / (1 + exp(-x))) *
					    (double)u[i];
					error = fabs((double)h[i] - y) / fabs(y);
					/*
					 * exp2 ends at 2^126, and where products are subnormal
					 * little is left.
					 */
					if (x > -80 && fabs(y) < 1e38 && fabs(y) > 1e-30)
						worst = fmax(worst, error);
				}
				for (size_t m = 0; m < COUNT(masks); m++) {
					float_ops_choose(&f, masks[m]);
					memset(h2, 0x5a, (size_t)n * 4);
					f.gate(act, g, u, n, h2);
					same(h2, h, (size_t)n * 4, f.isa, "gate", n);
					ck_assert_uint_eq(bits(h2[n]), 0x5a5a5a5a);
					memcpy(h2, g, (size_t)n * 4);
					f.gate(act, h2, u, n, h2);
					same(h2, h, (size_t)n * 4, f.isa, "gate in place", n);
				}
				free(g);
				free(u);
				free(h);
				free(h2);
			}
	printf("gate: relative error %.3g\n", worst);
	ck_assert(worst < 1e-5);
	for (size_t m = 0; m <= COUNT(masks); m++) {
		float g[20] = { 1000, -1000, 0, NAN }, u[20] = { 1000, 1000, 1000, 1000 }, h[20];

		float_ops_choose(&f, m ? masks[m - 1] : 0);
		f.gate(GATE_RELU2, g, u, 20, h);
		ck_assert(h[0] == 1e9f && bits(h[1]) == 0 && bits(h[2]) == 0 && isnan(h[3]));
		f.gate(GATE_SILU, g, u, 20, h);
		ck_assert(h[0] == 1e6f && fabsf(h[1]) < 1e-30f && bits(h[2]) == 0 && isnan(h[3]));
	}
}
END_TEST

START_TEST(additions)
{
	struct float_ops f;

	for (int fill = PLAIN; fill < FILLS; fill++)
		for (size_t l = 0; l < COUNT(lengths); l++) {
			uint32_t n = lengths[l];
			float *x = filled(n, (enum fill)fill), *y = filled(n, PLAIN),
			      *z = floats(n);

			for (size_t m = 0; m <= COUNT(masks); m++) {
				float_ops_choose(&f, m ? masks[m - 1] : 0);
				memcpy(z, x, (size_t)n * 4);
				f.add(z, y, n);
				for (uint32_t i = 0; i < n; i++)
					ck_assert_uint_eq(bits(z[i]), bits(x[i] + y[i]));
				ck_assert_uint_eq(bits(z[n]), 0x5a5a5a5a);
			}
			free(x);
			free(y);
			free(z);
		}
}
END_TEST

/* A token's row as it was packed, in each layout and each place of a tile. */
START_TEST(embeddings)
{
	static const uint32_t layouts[] = { PACKED_INT8, PACKED_F16, PACKED_BF16 };
	static const uint32_t cols[] = { 1, 7, 8, 15, 16, 17, 128, 2560 };
	struct float_ops f;

	for (size_t l = 0; l < COUNT(layouts); l++)
		for (size_t c = 0; c < COUNT(cols); c++) {
			struct packed_shape s = { layouts[l], 33, cols[c], 1 };
			size_t width = s.layout == PACKED_INT8 ? 1 : 2, n = cols[c];
			uint8_t *plain = get(33 * n * width), *packed = get(packed_bytes(&s));
			float *scales = filled(64, PLAIN), *x = floats(n);

			for (size_t i = 0; i < 33 * n * width; i++)
				plain[i] = (uint8_t)core_random(&seed) & (i % width ? 0xbb : 0xff);
			packed_tile(&s, plain, 32, packed);
			packed_tile(&s, plain + 32 * n * width, 1, packed + packed_bytes(&s) / 2);
			for (size_t m = 0; m <= COUNT(masks); m++) {
				float_ops_choose(&f, m ? masks[m - 1] : 0);
				for (uint32_t t = 0; t < 33; t++) {
					f.embed(&s, packed, scales, t, x);
					for (size_t i = 0; i < n; i++) {
						const uint8_t *p = plain + (t * n + i) * width;
						uint32_t b = p[0] |
							     (width > 1 ? (uint32_t)p[1] << 8 : 0);
						uint32_t e = b >> 10 & 31;
						double v = ldexp((b & 1023) + (e ? 1024 : 0),
								 (int)(e ? e : 1) - 25);
						float want = s.layout == PACKED_INT8 ?
								     (float)(int8_t)b * scales[t] :
							     s.layout == PACKED_BF16 ?
								     from_bits(b << 16) :
								     (float)(b >> 15 ? -v : v);

						ck_assert_uint_eq(bits(x[i]), bits(want));
					}
				}
			}
			ck_assert_uint_eq(bits(x[n]), 0x5a5a5a5a);
			free(plain);
			free(packed);
			free(scales);
			free(x);
		}
}
END_TEST

/* ---- positions ------------------------------------------------------------------------------- */

static const uint32_t head_dims[] = { 2, 6, 32, 64, 96, 100, 128, 130 };

/*
 * Halves of a head are turned against each other, not neighbours: the wrong one looks right for a
 * while.
 */
START_TEST(rotation)
{
	struct float_ops f;

	for (size_t h = 0; h < COUNT(head_dims); h++)
		for (int fill = PLAIN; fill < FILLS; fill++)
			for (uint32_t heads = 1; heads <= 5; heads += 4) {
				uint32_t hd = head_dims[h], n = heads * hd;
				float *x = filled(n, (enum fill)fill), *want = floats(n),
				      *y = floats(n), *cs = floats(hd);

				for (uint32_t i = 0; i < hd / 2; i++) {
					cs[2 * i] = cosf((float)i * 0.37f);
					cs[2 * i + 1] = sinf((float)i * 0.37f);
				}
				memcpy(want, x, (size_t)n * 4);
				float_ops_choose(&f, 0);
				f.rope(want, heads, hd, cs);
				for (uint32_t i = 0; i < n; i++) {
					uint32_t at = i % hd, pair = at % (hd / 2);
					double a = (double)x[i - at + pair],
					       b = (double)x[i - at + pair + hd / 2];
					double c = (double)cs[2 * pair],
					       s = (double)cs[2 * pair + 1];
					double y64 = at < hd / 2 ? a * c - b * s : b * c + a * s;

					ck_assert(fabs((double)want[i] - y64) <=
						  1.2e-7 * (fabs(a) + fabs(b)) + 1e-44);
				}
				for (size_t m = 0; m < COUNT(masks); m++) {
					float_ops_choose(&f, masks[m]);
					memcpy(y, x, (size_t)n * 4);
					f.rope(y, heads, hd, cs);
					same(y, want, (size_t)n * 4, f.isa, "rotation", hd);
					ck_assert_uint_eq(bits(y[n]), 0x5a5a5a5a);
				}
				free(x);
				free(want);
				free(y);
				free(cs);
			}
}
END_TEST

/* What a half can hold. */
static float half_range(float x)
{
	return x > 65519 ? 65519 : x < -65519 ? -65519 : x;
}

static double half_value(uint16_t b)
{
	uint32_t e = b >> 10 & 31;
	double v = ldexp((b & 1023) + (e ? 1024 : 0), (int)(e ? e : 1) - 25);

	return b >> 15 ? -v : v;
}

/* The nearest half, ties to even, worked out on doubles. */
static double nearest_half(float x)
{
	double v = (double)x;
	int e = x == 0 ? -14 : ilogb(v);
	double step = ldexp(1, (e < -14 ? -14 : e) - 10);

	return nearbyint(v / step) * step;
}

/* The page as the header draws it, and its numbers as the contract rounds them. */
START_TEST(pages)
{
	struct float_ops f;

	for (size_t h = 0; h < COUNT(head_dims); h++)
		for (int fill = PLAIN; fill < FILLS; fill++)
			for (uint32_t form = KV_F16; form <= KV_INT8; form++) {
				uint32_t hd = head_dims[h],
					 slot = (uint32_t)core_random(&seed) % KV_PAGE, faults = 0;
				size_t bytes = kv_page_bytes(form, hd), quads = (hd + 3) / 4;
				float *k = filled(hd, (enum fill)fill),
				      *v = filled(hd, (enum fill)fill);
				uint8_t *page = get(bytes), *other = get(bytes);

				for (uint32_t i = 0; i < hd && form == KV_F16; i++) {
					k[i] = half_range(k[i]);
					v[i] = half_range(v[i]);
				}
				ck_assert_uint_eq(bytes % KERNELS_ALIGN, 0);
				float_ops_choose(&f, 0);
				f.kv_put(form, page, hd, slot, k, v, &faults);
				if (form == KV_F16) {
					uint16_t *p = (uint16_t *)(void *)page;

					ck_assert_uint_eq(bytes, (size_t)hd * KV_PAGE * 4);
					for (uint32_t i = 0; i < hd; i++) {
						ck_assert(half_value(p[i * KV_PAGE + slot]) ==
							  nearest_half(k[i]));
						ck_assert(
							half_value(
								p[hd * KV_PAGE + slot * hd + i]) ==
							nearest_half(v[i]));
					}
				} else {
					int8_t *p = (int8_t *)page, *pv = p + quads * 4 * KV_PAGE;
					float *dk = (float *)(void *)(pv + (size_t)hd * KV_PAGE),
					      *dv = dk + KV_PAGE;

					ck_assert_uint_eq(bytes, (quads * 4 + hd + 8) * KV_PAGE);
					for (uint32_t i = 0; i < hd; i++) {
						double k8 = p[(i / 4 * KV_PAGE + slot) * 4 + i % 4],
						       v8 = pv[slot * hd + i];

						ck_assert(fabs(k8 * (double)dk[slot] -
							       (double)k[i]) <=
							  0.501 * (double)dk[slot]);
						ck_assert(fabs(v8 * (double)dv[slot] -
							       (double)v[i]) <=
							  0.501 * (double)dv[slot]);
					}
				}
				for (size_t m = 0; m < COUNT(masks); m++) {
					float_ops_choose(&f, masks[m]);
					memset(other, 0x5a, bytes + 1);
					f.kv_put(form, other, hd, slot, k, v, &faults);
					same(other, page, bytes + 1, f.isa,
					     form ? "int8 page" : "half page", hd);
				}
				ck_assert_uint_eq(faults, 0);
				free(k);
				free(v);
				free(page);
				free(other);
			}
}
END_TEST

/* A prompt: pages, queries and what a version of the kernels makes of them. */
struct attention {
	uint32_t form, hd, n, n_q, n_pages, n_chunks;
	uint8_t *arena;
	const void **pages;
	float *query, *k, *v; /* [n_q][hd]; [n][hd] */
	float *m, *l, *o, *out;
};

static struct attention attention_new(uint32_t form, uint32_t hd, uint32_t n, uint32_t n_q,
				      enum fill fill)
{
	struct attention a = { .form = form, .hd = hd, .n = n, .n_q = n_q };
	size_t bytes = kv_page_bytes(form, hd);
	struct float_ops f;
	uint32_t faults = 0;

	float_ops_choose(&f, 0);
	a.n_pages = (n + KV_PAGE - 1) / KV_PAGE;
	a.n_chunks = (n + ATTN_CHUNK - 1) / ATTN_CHUNK;
	a.arena = get(bytes * a.n_pages);
	memset(a.arena, 0xff, bytes * a.n_pages); /* every half and every float a NaN */
	a.pages = malloc(a.n_pages *
			 sizeof(*a.pages)); /* exactly: what reads on is seen by a sanitizer */
	ck_assert_ptr_nonnull(a.pages);
	a.query = filled((size_t)n_q * hd, fill);
	a.k = filled((size_t)n * hd, fill == LARGE ? EXPONENTS : fill);
	a.v = filled((size_t)n * hd, fill == LARGE ? PLAIN : fill);
	for (size_t i = 0; i < (size_t)n * hd; i++) {
		a.k[i] = half_range(a.k[i]);
		a.v[i] = half_range(a.v[i]);
	}
	/* They lie in any order. */
	for (uint32_t p = 0; p < a.n_pages; p++)
		a.pages[p] = a.arena + (a.n_pages - 1 - p) * bytes;
	for (uint32_t j = 0; j < n; j++)
		f.kv_put(form, a.arena + (a.n_pages - 1 - j / KV_PAGE) * bytes, hd, j % KV_PAGE,
			 a.k + (size_t)j * hd, a.v + (size_t)j * hd, &faults);
	ck_assert_uint_eq(faults, 0);
	a.m = floats((size_t)a.n_chunks * n_q);
	a.l = floats((size_t)a.n_chunks * n_q);
	a.o = floats((size_t)a.n_chunks * n_q * hd);
	a.out = floats((size_t)n_q * hd);
	return a;
}

static void attention_free(struct attention *a)
{
	void *all[] = { a->arena, a->pages, a->query, a->k, a->v, a->m, a->l, a->o, a->out };

	for (size_t i = 0; i < COUNT(all); i++)
		free(all[i]);
}

static uint32_t attend(const struct float_ops *f, const struct attention *a, float *m, float *l,
		       float *o, float *out)
{
	uint32_t faults = 0;

	f->attn_chunks(a->form, a->pages, a->hd, a->n, a->n_q, a->query, attn_scale(a->hd), m, l,
		       o);
	f->attn_merge(m, l, o, a->n_chunks, a->n_q, a->hd, out, &faults);
	return faults;
}

/* All versions against the scalar one, which is left in a. */
static void judge_attention(struct attention *a)
{
	size_t n_m = (size_t)a->n_chunks * a->n_q, n_o = n_m * a->hd,
	       n_out = (size_t)a->n_q * a->hd;
	float *m = floats(n_m), *l = floats(n_m), *o = floats(n_o), *out = floats(n_out);
	struct float_ops f;

	float_ops_choose(&f, 0);
	ck_assert_uint_eq(attend(&f, a, a->m, a->l, a->o, a->out), 0);
	for (size_t v = 0; v < COUNT(masks); v++) {
		float_ops_choose(&f, masks[v]);
		memset(m, 0x5a, n_m * 4);
		memset(l, 0x5a, n_m * 4);
		memset(o, 0x5a, n_o * 4);
		memset(out, 0x5a, n_out * 4);
		ck_assert_uint_eq(attend(&f, a, m, l, o, out), 0);
		for (size_t i = 0; i < n_m; i++)
			ck_assert_msg(m[i] == a->m[i],
				      "m of head_dim %u, %u positions, %u heads by %s", a->hd, a->n,
				      a->n_q, f.isa);
		same(l, a->l, n_m * 4, f.isa, "l", a->hd);
		same(o, a->o, n_o * 4, f.isa, "o", a->hd);
		same(out, a->out, n_out * 4, f.isa, "out", a->hd);
		ck_assert_uint_eq(bits(m[n_m]), 0x5a5a5a5a);
		ck_assert_uint_eq(bits(l[n_m]), 0x5a5a5a5a);
		ck_assert_uint_eq(bits(o[n_o]), 0x5a5a5a5a);
		ck_assert_uint_eq(bits(out[n_out]), 0x5a5a5a5a);
	}
	free(m);
	free(l);
	free(o);
	free(out);
}

/* The same by plain softmax in binary64, of the keys and values as they were before rounding. */
static double attention_error(const struct attention *a)
{
	double worst = 0, *p = get(a->n * sizeof(*p));

	for (uint32_t q = 0; q < a->n_q; q++) {
		double max = -INFINITY, sum = 0;

		for (uint32_t j = 0; j < a->n; j++) {
			p[j] = 0;
			for (uint32_t i = 0; i < a->hd; i++)
				p[j] += (double)a->query[q * a->hd + i] *
					(double)a->k[j * a->hd + i];
			p[j] /= sqrt(a->hd);
			max = fmax(max, p[j]);
		}
		for (uint32_t j = 0; j < a->n; j++) {
			p[j] = exp(p[j] - max);
			sum += p[j];
		}
		for (uint32_t i = 0; i < a->hd; i++) {
			double o = 0;

			for (uint32_t j = 0; j < a->n; j++)
				o += p[j] * (double)a->v[j * a->hd + i];
			worst = fmax(worst, fabs(o / sum - (double)a->out[q * a->hd + i]));
		}
	}
	free(p);
	return worst;
}

/* What is not seen holds NaN: one that is multiplied by zero, or compared, shows. */
START_TEST(attention)
{
	static const uint32_t ns[] = { 1,  15,	16,  17,  31,  32,  33,	 63,  65,
				       96, 127, 128, 129, 160, 255, 256, 257, 400 };
	double worst[2] = { 0, 0 };

	for (size_t h = 0; h < COUNT(head_dims); h++)
		for (size_t i = 0; i < COUNT(ns); i++)
			for (uint32_t form = KV_F16; form <= KV_INT8; form++) {
				uint32_t n_q = 1 + (uint32_t)core_random(&seed) % 6;
				struct attention a = attention_new(form, head_dims[h], ns[i], n_q,
								   PLAIN);

				judge_attention(&a);
				worst[form] = fmax(worst[form], attention_error(&a));
				attention_free(&a);
			}
	printf("attention, values up to 3: within %.3g (half pages), %.3g (int8)\n", worst[0],
	       worst[1]);
	ck_assert(worst[0] < 0.01 && worst[1] < 0.2);
}
END_TEST

/* Scores of any size: most exponentials are 0, or all are 1, or arithmetic is at its lower end. */
START_TEST(attention_extremes)
{
	for (int fill = EXPONENTS; fill < FILLS; fill++)
		for (uint32_t form = KV_F16; form <= KV_INT8; form++)
			for (uint32_t n_q = 1; n_q <= 9; n_q++) {
				uint32_t n = 1 + (uint32_t)core_random(&seed) % 300;
				struct attention a = attention_new(form, n_q & 1 ? 100 : 128, n,
								   n_q, (enum fill)fill);

				judge_attention(&a);
				attention_free(&a);
			}
	for (unsigned i = 0; i < scaled(60); i++) {
		uint64_t r = core_random(&seed);
		struct attention a = attention_new(
			r & 1, 2 + 2 * (uint32_t)(r >> 8 & 0x7f), 1 + (uint32_t)(r >> 20) % 700,
			1 + (uint32_t)(r >> 40) % 10, (enum fill)((r >> 50) % FILLS));

		judge_attention(&a);
		attention_free(&a);
	}
	/* The widest head there is. */
	for (uint32_t form = KV_F16; form <= KV_INT8; form++) {
		struct attention a = attention_new(form, HEAD_DIM_MAX, 70, 5, HALVES);

		judge_attention(&a);
		attention_free(&a);
	}
}
END_TEST

/*
 * A context that is split between threads, or heads that are taken one by one, must say the same:
 * chunks alone, heads alone, and the merge a chain over chunks ascending, even of one.
 */
START_TEST(split)
{
	static const uint32_t ns[] = { 1, 127, 128, 129, 256, 385, 2600, 4096 };
	struct float_ops f;

	for (size_t v = 0; v <= COUNT(masks); v++)
		for (size_t i = 0; i < COUNT(ns); i++)
			for (uint32_t form = KV_F16; form <= KV_INT8; form++) {
				struct attention a = attention_new(form, 32, ns[i], 3, PLAIN);
				float c = attn_scale(32), m, l, o[32];

				float_ops_choose(&f, v ? masks[v - 1] : 0);
				attend(&f, &a, a.m, a.l, a.o, a.out);
				for (uint32_t q = 0; q < 3; q++) {
					float max = -INFINITY, sum = 0, want[32] = { 0 };

					for (uint32_t j = 0; j < a.n_chunks; j++) {
						uint32_t left = a.n - j * ATTN_CHUNK;

						f.attn_chunks(form, a.pages + j * 4, 32,
							      left < ATTN_CHUNK ? left : ATTN_CHUNK,
							      1, a.query + q * 32, c, &m, &l, o);
						ck_assert(m == a.m[j * 3 + q]);
						same(&l, &a.l[j * 3 + q], 4, f.isa, "l of a chunk",
						     j);
						same(o, &a.o[(j * 3 + q) * 32], sizeof(o), f.isa,
						     "o of a chunk", j);
						max = m > max ? m : max;
					}
					for (uint32_t j = 0; j < a.n_chunks; j++) {
						float e = exp2_contract(a.m[j * 3 + q] - max);

						sum = fmaf(e, a.l[j * 3 + q], sum);
						for (uint32_t d = 0; d < 32; d++)
							want[d] = fmaf(e, a.o[(j * 3 + q) * 32 + d],
								       want[d]);
					}
					for (uint32_t d = 0; d < 32; d++)
						want[d] /= sum;
					same(&a.out[q * 32], want, sizeof(want), f.isa, "merge",
					     a.n);
				}
				attention_free(&a);
			}
}
END_TEST

/* ---- faults ---------------------------------------------------------------------------------- */

/* A fault is counted where it is, the same by all versions, and harms no neighbour. */
START_TEST(faults)
{
	struct float_ops f;

	for (size_t v = 0; v <= COUNT(masks); v++) {
		uint32_t n;
		float x[300], w[300], k[100], d;
		int8_t q[300];

		float_ops_choose(&f, v ? masks[v - 1] : 0);
		for (unsigned i = 0; i < 300; i++)
			x[i] = w[i] = 1;
		x[299] = NAN;
		n = 0;
		f.norm_quant(x, w, 300, 1e-5f, q, &d, &n);
		ck_assert_uint_eq(n, 2); /* the sum, the max */
		f.norm_quant(x, NULL, 300, 0, q, &d, &n);
		ck_assert_uint_eq(n, 3);
		x[299] = 1e30f; /* its square is infinite, it is not */
		n = 0;
		f.norm_quant(x, w, 300, 1e-5f, q, &d, &n);
		ck_assert_uint_eq(n, 1);
		x[299] = 1;
		x[0] = -INFINITY;
		n = 0;
		f.norm_head(x, NULL, 300, 0, w, (int16_t[300]){ 0 }, &d, &n);
		ck_assert_uint_eq(n, 1);

		for (uint32_t form = KV_F16; form <= KV_INT8; form++) {
			struct attention a = attention_new(form, 100, 200, 3, PLAIN);
			float *out = floats(300);
			void *page = get(kv_page_bytes(form, 100));

			memset(k, 0, sizeof(k));
			k[0] = 65519.996f;
			k[99] = -1e-30f;
			n = 0;
			f.kv_put(form, page, 100, 31, k, k, &n);
			ck_assert_uint_eq(n, 0);
			k[50] = form ? INFINITY : 65520;
			k[99] = NAN;
			f.kv_put(form, page, 100, 31, k, x + 1, &n);
			ck_assert_uint_eq(n, form ? 1 : 2);

			ck_assert_uint_eq(attend(&f, &a, a.m, a.l, a.o, a.out), 0);
			for (unsigned i = 0; i < 4; i++) {
				a.query[199] = i == 0 ? NAN :
					       i == 1 ? INFINITY :
					       i == 2 ? -INFINITY :
							from_bits(0x7fc00155);
				ck_assert_uint_eq(attend(&f, &a, a.m, a.l, a.o, out), 1);
				same(out, a.out, 400, f.isa, "a neighbour", 0);
				same(out + 200, a.out + 200, 400, f.isa, "a neighbour", 2);
			}
			free(out);
			free(page);
			attention_free(&a);
		}
	}
}
END_TEST

/* One score of many is no number, because a key is none, while the largest is one: L must tell. */
START_TEST(score_no_number)
{
	struct float_ops f;

	for (size_t v = 0; v <= COUNT(masks); v++)
		for (uint32_t at = 0; at < 200; at += 37) {
			struct attention a = attention_new(KV_F16, 64, 200, 2, ZEROS);
			uint16_t *k = (uint16_t *)(uintptr_t)a.pages[at / KV_PAGE] + at % KV_PAGE;

			float_ops_choose(&f, v ? masks[v - 1] : 0);
			ck_assert_uint_eq(attend(&f, &a, a.m, a.l, a.o, a.out), 0);
			k[5 * KV_PAGE] = 0x7e00;
			ck_assert_uint_eq(attend(&f, &a, a.m, a.l, a.o, a.out), 2); /* both heads */
			attention_free(&a);
		}
}
END_TEST

/* ---- all ------------------------------------------------------------------------------------- */

static uint64_t hashed(uint64_t h, const void *p, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++)
		h = (h ^ ((const uint8_t *)p)[i]) * 0x100000001b3ull;
	return h;
}

/*
 * The contract, number 1, in one number: other bits on some machine, or after a change, are
 * another contract.
 */
START_TEST(golden)
{
	uint64_t mine = seed;
	struct float_ops f;

	for (size_t v = 0; v <= COUNT(masks); v++) {
		uint64_t h = 0xcbf29ce484222325ull;
		uint32_t count = 0;

		seed = 1;
		float_ops_choose(&f, v ? masks[v - 1] : 0);
		for (int fill = PLAIN; fill < FILLS; fill++)
			for (uint32_t form = KV_F16; form <= KV_INT8; form++) {
				struct attention a = attention_new(form, 96, 300, 5,
								   (enum fill)fill);
				float *x = filled(1000, (enum fill)fill), *w = filled(1000, PLAIN),
				      *y = floats(1000), d;
				int16_t q[1000];

				count += attend(&f, &a, a.m, a.l, a.o, a.out);
				h = hashed(h, a.out, 5 * 96 * sizeof(float));
				f.norm_quant(x, w, 1000, 1e-5f, (int8_t *)(void *)q, &d, &count);
				h = hashed(hashed(h, q, 1000), &d, sizeof(d));
				f.norm_head(x, w, 1000, 1e-5f, y, q, &d, &count);
				h = hashed(hashed(h, q, 2000), y, 4000);
				f.gate(form ? GATE_SILU : GATE_RELU2, x, w, 1000, y);
				h = hashed(h, y, 4000);
				f.rope(y, 10, 100, w);
				h = hashed(h, y, 4000);
				free(x);
				free(w);
				free(y);
				attention_free(&a);
			}
		ck_assert_uint_eq(count, 0);
		ck_assert_msg(h == GOLDEN, "the bits by %s are %#llx", f.isa,
			      (unsigned long long)h);
	}
	seed = mine;
}
END_TEST

/* The mask is what tests and doubts rely on: nothing above it may run. */
START_TEST(choice)
{
	struct float_ops f;

	float_ops_choose(&f, 0);
	ck_assert_str_eq(f.isa, "scalar");
	for (size_t m = 0; m < COUNT(masks); m++) {
		unsigned may = masks[m] & kernels_cpu();

		float_ops_choose(&f, masks[m]);
		ck_assert_str_eq(f.isa, may & KERNELS_AVX512 ? "avx512" :
					may & KERNELS_AVX2   ? "avx2" :
					may & KERNELS_NEON   ? "neon" :
							       "scalar");
	}
	printf("this CPU: %s\n", f.isa);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("float_ops");
	TCase *t = tcase_create("float_ops");
	SRunner *r;
	int failed;

	seed = core_seed("float_ops");
	tcase_set_timeout(t, 240);
	tcase_add_test(t, choice);
	tcase_add_test(t, exp2_edges);
	tcase_add_test(t, sums);
	tcase_add_test(t, norms);
	tcase_add_test(t, ties);
	tcase_add_test(t, gates);
	tcase_add_test(t, additions);
	tcase_add_test(t, embeddings);
	tcase_add_test(t, rotation);
	tcase_add_test(t, pages);
	tcase_add_test(t, attention);
	tcase_add_test(t, attention_extremes);
	tcase_add_test(t, split);
	tcase_add_test(t, faults);
	tcase_add_test(t, score_no_number);
	tcase_add_test(t, golden);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Frequencies and angles of rotary positions, without a maths library: two libraries differ in the
 * last bit of pow() and sin(), and a model's table is a golden value.
 *
 * Only +, -, * and / on binary64, correctly rounded everywhere, in one fixed order. A pair hi + lo
 * (lo at most half an ulp of hi) carries what one double cannot: the logarithm of theta, whose
 * error a large exponent would multiply, and an angle from which pi/2 is taken many times.
 */
#include <assert.h>
#include <string.h>
#include "rope.h"

struct pair {
	double hi, lo;
};

/* a + b exactly. */
static struct pair sum(double a, double b)
{
	struct pair r = { a + b, 0 };
	double b_part = r.hi - a;

	r.lo = (a - (r.hi - b_part)) + (b - b_part);
	return r;
}

/* x in two halves of 26 bits or fewer, whose products are exact (Veltkamp). |x| < 2^990. */
static struct pair halves(double x)
{
	double t = x * 0x8000001p0;
	struct pair r = { t - (t - x), 0 };

	r.lo = x - r.hi;
	return r;
}

/* a * b exactly (Dekker). */
static struct pair product(double a, double b)
{
	struct pair x = halves(a), y = halves(b), r = { a * b, 0 };

	r.lo = ((x.hi * y.hi - r.hi) + x.hi * y.lo + x.lo * y.hi) + x.lo * y.lo;
	return r;
}

static uint64_t bits_of(double x)
{
	uint64_t u;

	memcpy(&u, &x, sizeof(u));
	return u;
}

static double of_bits(uint64_t u)
{
	double x;

	memcpy(&x, &u, sizeof(x));
	return x;
}

/* The nearest integer, ties to even, by the rounding of a sum; |x| < 2^51. */
static double nearest(double x)
{
	const double shift = 0x1.8p52;

	return (x + shift) - shift;
}

static const struct pair ln2 = { 0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56 };

/*
 * ln(x), x > 1: x = m 2^e with m in [1/sqrt 2, sqrt 2) and s = (m - 1) / (m + 1), |s| < 0.172; then
 * ln m = 2 (s + s^3/3 + s^5/5 + ...). The first term is kept as a pair; the others together are
 * less than a hundredth of it, and so is their rounding.
 */
static struct pair ln(double x)
{
	uint64_t u = bits_of(x);
	int e = (int)(u >> 52) - 1023;
	double m = of_bits((u & 0x000fffffffffffff) | 0x3ff0000000000000);
	double s, rest, z, h;
	struct pair d, t, r;

	if (m > 0x1.6a09e667f3bcdp+0) {
		m *= 0.5;
		e++;
	}
	d = sum(m, 1);
	s = (m - 1) / d.hi;
	t = product(s, d.hi);
	rest = (((m - 1) - t.hi) - t.lo - s * d.lo) / d.hi;
	z = s * s;
	h = 1.0 / 31;
	for (int k = 29; k >= 3; k -= 2)
		h = h * z + 1.0 / k;

	t = product(e, ln2.hi);
	r = sum(t.hi, 2 * s);
	r.lo += t.lo + e * ln2.lo + 2 * (rest + s * z * h);
	return sum(r.hi, r.lo);
}

/* exp(x), |x| < 700: 2^n exp(r), |r| <= ln2 / 2. */
static double exponential(struct pair x)
{
	/* 1 / k!, k from 16 down to 2. */
	static const double c[] = {
		0x1.ae7f3e733b81fp-45, 0x1.ae7f3e733b81fp-41, 0x1.93974a8c07c9dp-37,
		0x1.6124613a86d09p-33, 0x1.1eed8eff8d898p-29, 0x1.ae64567f544e4p-26,
		0x1.27e4fb7789f5cp-22, 0x1.71de3a556c734p-19, 0x1.a01a01a01a01ap-16,
		0x1.a01a01a01a01ap-13, 0x1.6c16c16c16c17p-10, 0x1.1111111111111p-7,
		0x1.5555555555555p-5,  0x1.5555555555555p-3,  0x1p-1,
	};
	double n = nearest(x.hi * 0x1.71547652b82fep+0);
	struct pair t = product(n, ln2.hi);
	struct pair r = sum(x.hi - t.hi, x.lo - t.lo - n * ln2.lo);
	double p = c[0];

	for (size_t k = 1; k < sizeof(c) / sizeof(c[0]); k++)
		p = p * r.hi + c[k];
	/* The one rounding that counts is the last: 1 + r is far larger than the rest. */
	t = sum(1, r.hi);
	p = t.hi + (t.lo + (r.hi * r.hi * p + r.lo));
	return of_bits(bits_of(p) + ((uint64_t)(int64_t)n << 52));
}

void rope_frequencies(double theta, uint32_t head_dim, double *f)
{
	struct pair l, y, t;

	assert(theta > 1 && theta < 0x1p900 && head_dim >= 2);
	l = ln(theta);
	for (uint32_t i = 0; i < head_dim / 2; i++) {
		/* The exponent is -2i / head_dim, with what the division leaves. */
		y.hi = -2.0 * i / head_dim;
		t = product(y.hi, head_dim);
		y.lo = ((-2.0 * i - t.hi) - t.lo) / head_dim;
		t = product(l.hi, y.hi);
		t.lo += l.lo * y.hi + l.hi * y.lo;
		f[i] = exponential(t);
	}
}

/*
 * cos and sin. The angle less n times pi/2, |n| < 2^24: the first two pieces of pi/2 have 29 bits,
 * so that their products with n are exact, and an angle that comes very near a multiple keeps its
 * bits. Then Taylor's polynomials on [-pi/4, pi/4], 2^-55 from the truth.
 */
static const double pi_half[] = { 0x1.921fb54p+0, 0x1.10b4611p-30, 0x1.4c4c6628b80dcp-59 };

static void cos_sin_of(double angle, float *out)
{
	static const double s[] = { -0x1.ae7f3e733b81fp-41, 0x1.6124613a86d09p-33,
				    -0x1.ae64567f544e4p-26, 0x1.71de3a556c734p-19,
				    -0x1.a01a01a01a01ap-13, 0x1.1111111111111p-7,
				    -0x1.5555555555555p-3 };
	static const double c[] = { 0x1.ae7f3e733b81fp-45, -0x1.93974a8c07c9dp-37,
				    0x1.1eed8eff8d898p-29, -0x1.27e4fb7789f5cp-22,
				    0x1.a01a01a01a01ap-16, -0x1.6c16c16c16c17p-10,
				    0x1.5555555555555p-5,  -0x1p-1 };
	double n = nearest(angle * 0x1.45f306dc9c883p-1);
	struct pair r = sum(angle - n * pi_half[0], -(n * pi_half[1]));
	double x = r.hi + (r.lo - n * pi_half[2]), z = x * x, p = s[0], q = c[0];
	double value[2];
	unsigned quarter = (unsigned)(int64_t)n & 3;

	for (size_t k = 1; k < sizeof(s) / sizeof(s[0]); k++)
		p = p * z + s[k];
	for (size_t k = 1; k < sizeof(c) / sizeof(c[0]); k++)
		q = q * z + c[k];
	value[0] = 1 + z * q;
	value[1] = x + x * z * p;
	/* A quarter turn makes (c, s) into (-s, c). */
	out[0] = (float)(quarter == 1 || quarter == 2 ? -value[quarter & 1] : value[quarter & 1]);
	out[1] = (float)(quarter >= 2 ? -value[~quarter & 1] : value[~quarter & 1]);
}

void rope_table(const double *f, uint32_t head_dim, uint32_t pos, uint32_t n, float *cos_sin)
{
	for (uint32_t t = 0; t < n; t++)
		for (uint32_t i = 0; i < head_dim / 2; i++, cos_sin += 2)
			cos_sin_of(((double)pos + t) * f[i], cos_sin);
}

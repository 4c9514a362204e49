/* SPDX-License-Identifier: MIT */
/*
 * The rotary table against the system's long double functions, and its bits against themselves: a
 * model made on one machine is refused on another when they differ.
 */
#include <check.h>
#include <math.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "lib_core.h"
#include "lib_tiny.h"
#include "rope.h"

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* n at ONEBIT_SCALE = 100 percent, which is the default; at least 1. */
static unsigned scaled(unsigned n)
{
	const char *s = getenv("ONEBIT_SCALE");
	unsigned long percent = s ? strtoul(s, NULL, 0) : 100;

	return n * percent / 100 ? (unsigned)(n * percent / 100) : 1;
}

static const double thetas[] = { 10000, 500000, 1000000, 1.5, 2, 8e6, 1e30, 1 + 0x1p-20 };
static const uint32_t dims[] = { 2, 64, 96, 100, 128, 256 };

/* A frequency that is off by more than its last bit turns far positions by more than may be. */
START_TEST(frequencies)
{
	double f[128], worst = 0;

	for (size_t t = 0; t < COUNT(thetas); t++)
		for (size_t d = 0; d < COUNT(dims); d++) {
			rope_frequencies(thetas[t], dims[d], f);
			ck_assert(f[0] == 1);
			for (uint32_t i = 0; i < dims[d] / 2; i++) {
				long double x = -2.0L * i / dims[d], y = powl(thetas[t], x);
				double ulp = nextafter((double)y, INFINITY) - (double)y;
				double off = (double)(fabsl(f[i] - y) / ulp);

				worst = off > worst ? off : worst;
				ck_assert_msg(off < 0.65, "theta %g, %u of %u: %a, %.3f ulp",
					      thetas[t], i, dims[d], f[i], off);
			}
		}
	printf("frequencies: within %.4f ulp of binary64\n", worst);
}
END_TEST

/* As the header promises it: 0.51 ulp of binary32. */
static double off_by(float got, long double want)
{
	int e;

	frexpl(want, &e);
	e = e < -125 ? -125 : e;
	return (double)(fabsl(got - want) / ldexpl(1, e - 24));
}

static double angle_off(double angle)
{
	float cs[2];
	double c, s;

	/* A frequency that is the angle itself, at position 1. */
	rope_table(&angle, 2, 1, 1, cs);
	c = off_by(cs[0], cosl(angle));
	s = off_by(cs[1], sinl(angle));
	/* Asserted when it fails only: each assertion is a write to a pipe. */
	if (!(c <= 0.51 && s <= 0.51))
		ck_abort_msg("angle %a: cos %a off by %.3f ulp, sin %a by %.3f", angle,
			     (double)cs[0], c, (double)cs[1], s);
	return c > s ? c : s;
}

/* A reduction that loses bits shows at large angles, and worst where one comes near n pi/2. */
START_TEST(angles)
{
	uint64_t seed = core_seed("angles");
	const long double pi_half = 1.570796326794896619231321691639751442L;
	double worst = 0;

	for (unsigned i = 0; i < scaled(100000); i++) {
		uint64_t r = tiny_random(&seed);
		double a = ldexp((double)(r >> 11), -(int)(29 + r % 60));
		double near = (double)(roundl(a / pi_half) * pi_half), off;

		off = angle_off(a);
		worst = off > worst ? off : worst;
		off = angle_off(near);
		worst = off > worst ? off : worst;
		angle_off(nextafter(near, 0));
	}
	angle_off(0);
	angle_off(0x1.fffffffffffffp23);
	/* The double that comes nearest to a multiple of pi/2 among those up to 2^24. */
	angle_off(6381956970095103.0 * 0x1p-30);
	printf("angles: within %.5f ulp of binary32\n", worst);
}
END_TEST

/* Positions are counted from pos, pairs lie (cos, sin), any start gives the same rows. */
START_TEST(rows)
{
	double f[48];
	float whole[40][48][2], part[7][48][2];

	rope_frequencies(10000, 96, f);
	rope_table(f, 96, 0, 40, &whole[0][0][0]);
	rope_table(f, 96, 23, 7, &part[0][0][0]);
	ck_assert_mem_eq(whole[23], part, sizeof(part));
	for (unsigned i = 0; i < 48; i++) {
		ck_assert(whole[0][i][0] == 1 && whole[0][i][1] == 0);
		ck_assert(fabs(whole[39][i][0] - cos(39 * f[i])) < 1e-7);
		ck_assert(fabs(whole[39][i][1] - sin(39 * f[i])) < 1e-7);
	}
	/* Far positions are counted without wrapping. */
	rope_table(f, 96, UINT32_MAX, 2, &part[0][0][0]);
	ck_assert(fabs(part[1][47][0] - cos(4294967296.0 * f[47])) < 1e-7);
}
END_TEST

static void golden_is(double theta, uint32_t dim, uint32_t n, const char *want)
{
	static float table[4096 * 64 * 2];
	unsigned char digest[crypto_hash_sha256_BYTES];
	crypto_hash_sha256_state s;
	double f[64];
	char hex[65];

	rope_frequencies(theta, dim, f);
	rope_table(f, dim, 0, n, table);
	crypto_hash_sha256_init(&s);
	crypto_hash_sha256_update(&s, (unsigned char *)f, sizeof(*f) * dim / 2);
	crypto_hash_sha256_update(&s, (unsigned char *)table, sizeof(*table) * dim * n);
	crypto_hash_sha256_final(&s, digest);
	sodium_bin2hex(hex, sizeof(hex), digest, sizeof(digest));
	ck_assert_str_eq(hex, want);
}

/* Another compiler, CPU or library gives the same bits, or models stop moving between them. */
START_TEST(golden)
{
	golden_is(500000, 128, 4096,
		  "ff6788b727d7cd7ec2512e6f9623c96f18de3e2c1a74d94b19d1fd70244a7c93");
	golden_is(10000, 100, 2048,
		  "1015ef6df2681ac9ee7b0e4866dc964f988b02cf9e0b22bfd24293a995260cf6");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("rope");
	TCase *t = tcase_create("rope");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, frequencies);
	tcase_add_test(t, angles);
	tcase_add_test(t, rows);
	tcase_add_test(t, golden);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}

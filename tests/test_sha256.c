/* SPDX-License-Identifier: MIT */
/*
 * SHA-256 in each form. A wrong one would refuse every model, or give one model two names on two
 * machines.
 */
#include <check.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "lib_tiny.h"
#include "sha256.h"

/* The examples of FIPS 180-2 and NIST's, so that two libraries with one fault do not agree on it. */
static const struct {
	const char *text;
	unsigned times;
	const char *digest;
} examples[] = {
	{ "", 1, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" },
	{ "abc", 1, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" },
	{ "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 1,
	  "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1" },
	{ "aaaaaaaaaa", 100000, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0" },
};

static void hex(const uint8_t digest[32], char text[65])
{
	for (int i = 0; i < 32; i++)
		snprintf(text + 2 * i, 3, "%02x", digest[i]);
}

/* What FIPS says must come out. */
START_TEST(examples_come_out)
{
	struct sha256 s;
	uint8_t digest[32];
	char text[65];

	sha256_init(&s);
	for (unsigned i = 0; i < examples[_i].times; i++)
		sha256_update(&s, examples[_i].text, strlen(examples[_i].text));
	sha256_final(&s, digest);
	hex(digest, text);
	ck_assert_str_eq(text, examples[_i].digest);
}
END_TEST

static uint8_t data[2][70000];

static void fill(void)
{
	uint64_t state = 42;

	for (size_t i = 0; i < sizeof(data[0]); i++) {
		data[0][i] = (uint8_t)tiny_random(&state);
		data[1][i] = (uint8_t)tiny_random(&state);
	}
}

/* Padding has its traps around 55, 56 and 64 bytes; a pair must be two, not one twice. */
START_TEST(every_length_comes_out)
{
	uint8_t want[2][32], got[2][32];

	fill();
	for (size_t n = 0; n <= 1100; n += n < 300 ? 1 : 37)
		for (size_t from = 0; from < 3; from++) {
			crypto_hash_sha256(want[0], data[0] + from, n);
			crypto_hash_sha256(want[1], data[1] + 2 * from, n);
			sha256(data[0] + from, n, got[0]);
			ck_assert_mem_eq(got[0], want[0], 32);
			sha256_pair(data[0] + from, data[1] + 2 * from, n, got[0], got[1]);
			ck_assert_mem_eq(got, want, 64);
		}
}
END_TEST

/* However a text is cut into pieces, it is the same text. */
START_TEST(pieces_come_out)
{
	uint64_t state = 7;
	uint8_t want[32], got[32];

	fill();
	crypto_hash_sha256(want, data[0], sizeof(data[0]));
	for (int i = 0; i < 200; i++) {
		struct sha256 s;

		sha256_init(&s);
		for (size_t at = 0, n; at < sizeof(data[0]); at += n) {
			n = tiny_random(&state) % (i < 50 ? 70 : 5000);
			n = n < sizeof(data[0]) - at ? n : sizeof(data[0]) - at;
			sha256_update(&s, data[0] + at, n);
		}
		sha256_final(&s, got);
		ck_assert_mem_eq(got, want, 32);
	}
}
END_TEST

/* Two machines with two forms must call one model by one name. */
START_TEST(forms_agree)
{
	const struct sha256_form *cpu = sha256_of_cpu();
	uint32_t want[2][8], got[2][8];
	uint64_t state = 3;

	fill();
	ck_assert_ptr_eq(sha256_form(), cpu ? cpu : &sha256_portable);
	printf("sha256: %s\n", sha256_form()->name);
	if (!cpu) {
		printf("skip: the CPU has no instructions for SHA-256\n");
		return;
	}
	for (size_t n = 0; n < 200; n++) {
		for (int i = 0; i < 16; i++)
			want[i / 8][i % 8] = (uint32_t)tiny_random(&state);
		memcpy(got, want, sizeof(got));
		sha256_portable.blocks(want[0], data[0] + n, n);
		cpu->blocks(got[0], data[0] + n, n);
		ck_assert_mem_eq(got, want, sizeof(got));
		sha256_portable.pair(want[0], want[1], data[0] + n, data[1] + 1, n);
		cpu->pair(got[0], got[1], data[0] + n, data[1] + 1, n);
		ck_assert_mem_eq(got, want, sizeof(got));
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("sha256");
	TCase *t = tcase_create("sha256");
	SRunner *r;
	int failed;

	tcase_add_loop_test(t, examples_come_out, 0, (int)(sizeof(examples) / sizeof(examples[0])));
	tcase_add_test(t, every_length_comes_out);
	tcase_add_test(t, pieces_come_out);
	tcase_add_test(t, forms_agree);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

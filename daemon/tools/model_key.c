/* SPDX-License-Identifier: MIT */
/*
 * onebit model verify, keygen and sign. A key is a line of hexadecimal digits in a file: 64 bytes
 * of libsodium's ed25519 secret key, readable for its owner only, and beside it, with ".pub", the
 * 32 bytes that others check a signature with.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "model.h"
#include "obm_write.h"

enum { PUBLIC = crypto_sign_PUBLICKEYBYTES, SECRET = crypto_sign_SECRETKEYBYTES };

_Static_assert(PUBLIC == 32 && SECRET == 64, "as obm.h and obm_write.h have them");

static const char verify_verb[] = "model verify";
static const char keygen_verb[] = "model keygen";
static const char sign_verb[] = "model sign";

/* Exactly len bytes in hexadecimal; a line's end may follow. */
static bool from_hex(const char *text, uint8_t *bytes, size_t len)
{
	const char *end;
	size_t n;

	if (sodium_hex2bin(bytes, len, text, strlen(text), NULL, &n, &end) || n != len)
		return false;
	return !*end || !strcmp(end, "\n") || !strcmp(end, "\r\n");
}

/* A key of len bytes from a file. Status; an error has been told. */
static int read_key(const char *verb, const char *path, uint8_t *key, size_t len)
{
	char text[2 * SECRET + 3] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	int err = errno;
	bool good = n >= 0 && from_hex(text, key, len);

	if (fd >= 0)
		close(fd);
	sodium_memzero(text, sizeof(text));
	if (n < 0)
		return tool_fail(verb, STATUS_FAILED, "%s: cannot be read: %s", path,
				 strerror(err));
	if (!good)
		return tool_fail(verb, STATUS_FAILED,
				 "%s: no key: a line of %zu hexadecimal digits is "
				 "expected, as `onebit model keygen` writes it",
				 path, 2 * len);
	return STATUS_OK;
}

/* ---- verify -------------------------------------------------------------------------------- */

static void print_verdict(const char *path, const struct obm *o, const struct obm_verdict *v,
			  bool json)
{
	double rate = v->seconds > 0 ? (double)v->bytes / v->seconds * 1e-9 : 0;
	char identity[65], signer[65], size[32];

	model_hex(o->header->identity, identity);
	model_hex(o->header->signer, signer);
	if (json) {
		printf("{\"good\":true,\"identity\":\"%s\",\"signer\":%s%s%s,\"bytes\":%" PRIu64
		       ",\"seconds\":%.6f,\"gb_per_s\":%.3f,\"threads\":%u}\n",
		       identity, v->is_signed ? "\"" : "", v->is_signed ? signer : "null",
		       v->is_signed ? "\"" : "", v->bytes, v->seconds, rate, v->threads);
		return;
	}
	printf("%s: good: %s in %.2f s (%.2f GB/s, %u thread%s), identity %s, %s%s\n", path,
	       model_size(v->bytes, size, sizeof(size)), v->seconds, rate, v->threads,
	       v->threads == 1 ? "" : "s", identity, v->is_signed ? "signed by " : "not signed",
	       v->is_signed ? signer : "");
}

/* The sentence on standard error, and with --json an object for the program that asked. */
static int tell_bad(const char *path, const char *why, bool json)
{
	if (json)
		puts("{\"good\":false}");
	return tool_fail(verify_verb, STATUS_FAILED, "%s: %s", path, why);
}

static int verify(const char *path, const uint8_t *key, bool json)
{
	struct obm_verdict v;
	struct obm *o = NULL;
	char why[512];
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int status = STATUS_OK;

	if (fd < 0)
		return tool_fail(verify_verb, STATUS_FAILED, "%s: cannot be opened: %s", path,
				 strerror(errno));
	if (obm_open(fd, OBM_UNCHECKED | OBM_FORGET, tool_threads(), &o, why, sizeof(why)) ||
	    obm_verify(o, key, tool_threads(), &v, why, sizeof(why)))
		status = tell_bad(path, why, json);
	else
		print_verdict(path, o, &v, json);
	obm_close(o);
	close(fd);
	return status;
}

int model_verify(int argc, char **argv)
{
	static const struct option options[] = {
		{ "key", required_argument, NULL, 'k' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *key_text = NULL;
	uint8_t key[PUBLIC];
	bool json = false;
	int c, status = STATUS_OK;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (c == 'h') {
			puts("usage: onebit model verify FILE [--key HEX|FILE] [--json]\n\n"
			     "Check every byte of an .obm against its identity, and the signature when it has\n"
			     "one. With --key it must be signed by that key (64 hexadecimal digits, or a .pub\n"
			     "file). Exit status 0 good, 1 not.");
			return tool_end(verify_verb, STATUS_OK);
		}
		if (c == 'k')
			key_text = optarg;
		else if (c == 'j')
			json = true;
		else
			return tool_usage(verify_verb, "%s is no option of it, or lacks its value",
					  argv[optind - 1]);
	}
	if (optind + 1 != argc)
		return tool_usage(verify_verb,
				  optind == argc ? "no model is named" : "one model at a time");
	if (sodium_init() < 0)
		return tool_fail(verify_verb, STATUS_FAILED, "libsodium cannot start");
	tool_catch_signals(false);
	if (key_text && !from_hex(key_text, key, sizeof(key)))
		status = read_key(verify_verb, key_text, key, sizeof(key));
	if (!status)
		status = verify(argv[optind], key_text ? key : NULL, json);
	return tool_end(verify_verb, status);
}

/* ---- keygen -------------------------------------------------------------------------------- */

/* A new file with a key in it, or a negative errno. */
static int write_key(const char *path, mode_t mode, const uint8_t *key, size_t len)
{
	char text[2 * SECRET + 2];
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
	int err = 0;

	if (fd < 0)
		return -errno;
	sodium_bin2hex(text, sizeof(text), key, len);
	text[2 * len] = '\n';
	if (write(fd, text, 2 * len + 1) != (ssize_t)(2 * len + 1) || fsync(fd))
		err = errno ? -errno : -EIO;
	sodium_memzero(text, sizeof(text));
	close(fd);
	if (err)
		unlink(path);
	return err;
}

static int keygen(const char *path)
{
	uint8_t public[PUBLIC], secret[SECRET];
	char *beside, hex[65];
	int err;

	if (asprintf(&beside, "%s.pub", path) < 0)
		return tool_fail(keygen_verb, STATUS_FAILED, "no memory");
	crypto_sign_keypair(public, secret);
	err = write_key(beside, 0644, public, sizeof(public));
	if (err) {
		tool_fail(keygen_verb, STATUS_FAILED, "%s: cannot be made: %s", beside,
			  strerror(-err));
		goto out;
	}
	err = write_key(path, 0600, secret, sizeof(secret));
	if (err) {
		unlink(beside);
		tool_fail(keygen_verb, STATUS_FAILED, "%s: cannot be made: %s", path,
			  strerror(-err));
		goto out;
	}
	model_hex(public, hex);
	printf("%s: the secret key; keep it\n%s: the public key, %s\n", path, beside, hex);
out:
	sodium_memzero(secret, sizeof(secret));
	free(beside);
	return err ? STATUS_FAILED : STATUS_OK;
}

int model_keygen(int argc, char **argv)
{
	static const struct option options[] = {
		{ "output", required_argument, NULL, 'o' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *path = NULL;
	int c;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:h", options, NULL)) != -1) {
		if (c == 'h') {
			puts("usage: onebit model keygen -o FILE\n\n"
			     "Make an ed25519 key for `onebit model sign`: the secret one in FILE, for its owner\n"
			     "only, the public one in FILE.pub.");
			return tool_end(keygen_verb, STATUS_OK);
		}
		if (c != 'o')
			return tool_usage(keygen_verb, "%s is no option of it, or lacks its value",
					  argv[optind - 1]);
		path = optarg;
	}
	if (!path || optind != argc)
		return tool_usage(keygen_verb, "say where: -o FILE, and nothing else");
	if (sodium_init() < 0)
		return tool_fail(keygen_verb, STATUS_FAILED, "libsodium cannot start");
	return tool_end(keygen_verb, keygen(path));
}

/* ---- sign ---------------------------------------------------------------------------------- */

/* What is damaged is not vouched for: all of it is checked before. */
static int check_before(const char *path, int fd)
{
	struct obm_verdict v;
	struct obm *o = NULL;
	char why[512];
	int err = obm_open(fd, OBM_UNCHECKED | OBM_FORGET, tool_threads(), &o, why, sizeof(why));

	if (!err)
		err = obm_verify(o, NULL, tool_threads(), &v, why, sizeof(why));
	obm_close(o);
	/* A signature that is no longer good is what one may want to replace. */
	if (err && err != -EKEYREJECTED)
		return tool_fail(sign_verb, STATUS_FAILED, "%s: %s", path, why);
	return STATUS_OK;
}

static int sign(const char *path, const uint8_t secret[SECRET])
{
	char why[512], hex[65];
	uint8_t public[PUBLIC];
	int fd = open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	int status;

	if (fd < 0)
		return tool_fail(sign_verb, STATUS_FAILED, "%s: cannot be opened for writing: %s",
				 path, strerror(errno));
	status = check_before(path, fd);
	if (!status && (obm_sign(fd, secret, why, sizeof(why)) || fsync(fd)))
		status = tool_fail(sign_verb, STATUS_FAILED, "%s: %s", path, why);
	close(fd);
	if (status)
		return status;
	crypto_sign_ed25519_sk_to_pk(public, secret);
	model_hex(public, hex);
	printf("%s: signed by %s\n", path, hex);
	return STATUS_OK;
}

int model_sign(int argc, char **argv)
{
	static const struct option options[] = {
		{ "key", required_argument, NULL, 'k' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	uint8_t secret[SECRET], seed[crypto_sign_SEEDBYTES], public[PUBLIC], again[SECRET];
	const char *key = NULL;
	int c, status;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (c == 'h') {
			puts("usage: onebit model sign FILE --key FILE\n\n"
			     "Check an .obm and put a signature of its identity into it, by a secret key of\n"
			     "`onebit model keygen`. An earlier signature is replaced.");
			return tool_end(sign_verb, STATUS_OK);
		}
		if (c != 'k')
			return tool_usage(sign_verb, "%s is no option of it, or lacks its value",
					  argv[optind - 1]);
		key = optarg;
	}
	if (!key || optind + 1 != argc)
		return tool_usage(sign_verb, "name a model, and the secret key with --key");
	if (sodium_init() < 0)
		return tool_fail(sign_verb, STATUS_FAILED, "libsodium cannot start");
	tool_catch_signals(false);
	status = read_key(sign_verb, key, secret, sizeof(secret));
	if (!status) {
		/* With a public half that is not its own, a signature gives away the secret. */
		crypto_sign_ed25519_sk_to_seed(seed, secret);
		crypto_sign_seed_keypair(public, again, seed);
		if (sodium_memcmp(again, secret, sizeof(secret)))
			status = tool_fail(sign_verb, STATUS_FAILED,
					   "%s: its two halves do not belong "
					   "together; the key is damaged",
					   key);
	}
	if (!status)
		status = sign(argv[optind], secret);
	sodium_memzero(secret, sizeof(secret));
	sodium_memzero(seed, sizeof(seed));
	sodium_memzero(again, sizeof(again));
	return tool_end(sign_verb, status);
}

/* SPDX-License-Identifier: MIT */
/*
 * Signing: the signer's key and signature go into the header, over the identity that stands there.
 * Neither is under a checksum or the identity, so the file is the same model before and after, and
 * one write of 96 bytes is all: whoever reads it at the same time finds the old or the new ones.
 *
 * Only the header's own consistency is looked at here. Whoever signs a file has verified it before.
 */
#include <errno.h>
#include <sodium.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>
#include "mapped.h"
#include "obm_write.h"

_Static_assert(offsetof(struct obm_header, signature) == offsetof(struct obm_header, signer) + 32,
	       "one write");

int obm_sign(int fd, const uint8_t secret[64], char *why, size_t why_len)
{
	uint8_t put[32 + crypto_sign_BYTES];
	struct obm *o;
	ssize_t n;
	int err;

	if (sodium_init() < 0)
		return fail(why, why_len, -EIO, "libsodium cannot be used on this machine");
	err = obm_open(fd, OBM_UNCHECKED, 1, &o, why, why_len);
	if (err)
		return err;
	crypto_sign_ed25519_sk_to_pk(put, secret);
	crypto_sign_detached(put + 32, NULL, o->header->identity, sizeof(o->header->identity),
			     secret);
	/*
	 * The secret holds the public key too; one that belongs to another makes a signature of
	 * nobody.
	 */
	if (crypto_sign_verify_detached(put + 32, o->header->identity, sizeof(o->header->identity),
					put))
		err = fail(why, why_len, -EKEYREJECTED,
			   "the key is damaged: what it signs does not verify");
	obm_close(o);
	if (err)
		return err;
	do {
		n = pwrite(fd, put, sizeof(put), offsetof(struct obm_header, signer));
	} while (n < 0 && errno == EINTR);
	if (n != sizeof(put) || fdatasync(fd))
		return fail(why, why_len, n < 0 || n == sizeof(put) ? -errno : -EIO,
			    "the signature cannot be written: %s",
			    n < 0 || n == sizeof(put) ? strerror(errno) :
							"only a part of it was taken");
	return 0;
}

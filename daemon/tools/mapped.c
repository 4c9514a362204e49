/* SPDX-License-Identifier: MIT */
/*
 * Input files in memory. Everything that reads a stranger's file goes through a mapping, whose
 * length is the file's, and a cursor that knows where it ends: a size in a file can ask for more
 * than there is, and gets nothing.
 *
 * The half conversions are integer arithmetic and one exact multiplication, so that compilers make
 * vector code of a loop over them and no machine rounds differently.
 */
#include "mapped.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int fail(char *why, size_t why_len, int err, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(why, why_len, format, args);
	va_end(args);
	return err;
}

int mapped_open(const char *path, struct mapped *m, char *why, size_t why_len)
{
	struct stat st;
	void *data;
	char *copy;
	int err = 0;
	int fd;

	/* Not to wait for the other end of a pipe: it is refused below. */
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	if (fd < 0)
		return fail(why, why_len, -errno, "%s: cannot be opened: %s", path,
			    strerror(errno));
	if (fstat(fd, &st)) {
		err = fail(why, why_len, -errno, "%s: cannot be read: %s", path, strerror(errno));
		goto out;
	}
	if (S_ISDIR(st.st_mode)) {
		err = fail(why, why_len, -EISDIR, "%s: is a folder; name a file in it", path);
		goto out;
	}
	if (!S_ISREG(st.st_mode)) {
		err = fail(why, why_len, -EINVAL,
			   "%s: is not a regular file, so it cannot be mapped; "
			   "copy its content into one",
			   path);
		goto out;
	}
	if (!st.st_size) {
		err = fail(why, why_len, -EPROTO, "%s: the file is empty", path);
		goto out;
	}
	copy = strdup(path);
	if (!copy) {
		err = fail(why, why_len, -ENOMEM, "%s: no memory", path);
		goto out;
	}
	data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (data == MAP_FAILED) {
		err = fail(why, why_len, -errno, "%s: its %lld bytes cannot be mapped: %s", path,
			   (long long)st.st_size, strerror(errno));
		free(copy);
		goto out;
	}
	*m = (struct mapped){ .data = data, .bytes = (uint64_t)st.st_size, .path = copy };
out:
	close(fd);
	return err;
}

void mapped_close(struct mapped *m)
{
	if (m->data)
		munmap((void *)m->data, m->bytes);
	free(m->path);
	*m = (struct mapped){ 0 };
}

void mapped_forget(const struct mapped *m, uint64_t offset, uint64_t bytes)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t end;

	if (offset >= m->bytes)
		return;
	end = bytes < m->bytes - offset ? offset + bytes : m->bytes;
	/*
	 * Who reads front to back comes here again: the page at the end goes with the next range.
	 */
	offset -= offset % page;
	if (end < m->bytes)
		end -= end % page;
	if (end > offset)
		madvise((void *)(m->data + offset), end - offset, MADV_DONTNEED);
}

const uint8_t *cursor_bytes(struct cursor *c, uint64_t len)
{
	const uint8_t *p;

	if (c->bad || c->pos > c->bytes || len > c->bytes - c->pos) {
		c->bad = true;
		return NULL;
	}
	p = c->data + c->pos;
	c->pos += len;
	return p;
}

static uint64_t little(struct cursor *c, unsigned n)
{
	const uint8_t *p = cursor_bytes(c, n);
	uint64_t v = 0;

	for (unsigned i = 0; p && i < n; i++)
		v |= (uint64_t)p[i] << (8 * i);
	return v;
}

uint8_t cursor_u8(struct cursor *c)
{
	return (uint8_t)little(c, 1);
}

uint16_t cursor_u16(struct cursor *c)
{
	return (uint16_t)little(c, 2);
}

uint32_t cursor_u32(struct cursor *c)
{
	return (uint32_t)little(c, 4);
}

uint64_t cursor_u64(struct cursor *c)
{
	return little(c, 8);
}

static float float_of(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

static uint32_t bits_of(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return bits;
}

float cursor_f32(struct cursor *c)
{
	return float_of(cursor_u32(c));
}

double cursor_f64(struct cursor *c)
{
	uint64_t bits = cursor_u64(c);
	double d;

	memcpy(&d, &bits, sizeof(d));
	return d;
}

float half_to_float(uint16_t bits)
{
	/* The exponents' biases differ by 112; the product is exact, subnormal halves included. */
	float f = float_of((uint32_t)(bits & 0x7fff) << 13) * 0x1p112f;
	uint32_t u = bits_of(f);

	/* What was the largest exponent, infinity and NaN, is that of binary32 too. */
	u |= f >= 65536.0f ? 0x7f800000u : 0;
	return float_of(u | (uint32_t)(bits & 0x8000) << 16);
}

uint16_t float_to_half(float f)
{
	uint32_t u = bits_of(f) & 0x7fffffff;
	uint32_t sign = bits_of(f) >> 16 & 0x8000;

	if (u > 0x7f800000) /* NaN stays one, quiet */
		return (uint16_t)(sign | 0x7e00 | (u >> 13 & 0x3ff));
	if (u >= 0x47800000) /* 65536 */
		return (uint16_t)(sign | 0x7c00);
	if (u < 0x38800000) /* 2^-14: the sum with a half has the last place of subnormal halves */
		return (uint16_t)(sign | (bits_of(float_of(u) + 0.5f) - 0x3f000000));
	/* A carry goes into the exponent, from 65520 on to infinity, as it must. */
	u += 0xfff + (u >> 13 & 1);
	return (uint16_t)(sign | (u - (112u << 23)) >> 13);
}

float bf16_to_float(uint16_t bits)
{
	return float_of((uint32_t)bits << 16);
}

uint16_t float_to_bf16(float f)
{
	uint32_t u = bits_of(f);

	if ((u & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(u >> 16 | 0x40);
	return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

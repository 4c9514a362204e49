/* SPDX-License-Identifier: MIT */
/*
 * Whatever holds a vocabulary, told by its content: a name says nothing, for two quite different
 * files are both called tokenizer.model.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "mapped.h"
#include "read.h"
#include "source.h"

static bool begins(const struct mapped *m, const char *magic, size_t len)
{
	return m->bytes >= len && !memcmp(m->data, magic, len);
}

/* JSON may begin with white space; an object is all that a tokenizer.json is. */
static bool is_json(const struct mapped *m)
{
	uint64_t i = 0;

	while (i < m->bytes && i < 64 && strchr(" \t\r\n", m->data[i]) && m->data[i])
		i++;
	return i < m->bytes && m->data[i] == '{';
}

/* "base64 rank": the first line has a space among letters that base64 knows. */
static bool is_ranks(const struct mapped *m)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
				      "abcdefghijklmnopqrstuvwxyz0123456789+/=";
	uint64_t i = 0;

	while (i < m->bytes && i < VOCAB_TOKEN_BYTES_MAX && m->data[i] &&
	       strchr(letters, m->data[i]))
		i++;
	return i >= 4 && i + 1 < m->bytes && m->data[i] == ' ' && m->data[i + 1] >= '0' &&
	       m->data[i + 1] <= '9';
}

/* Field 1, a message: what every SentencePiece model begins with. */
static bool is_sentencepiece(const struct mapped *m)
{
	return begins(m, "\x0a", 1);
}

static int read_obm(const char *path, struct vocab **out, char *why, size_t why_len)
{
	char said[256] = "";
	struct obm *o = NULL;
	const void *section;
	uint64_t bytes = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int ret;

	if (fd < 0)
		return fail(why, why_len, -errno, "%s: cannot be opened: %s", path,
			    strerror(errno));
	ret = obm_open(fd, OBM_UNCHECKED, 1, &o, said, sizeof(said));
	close(fd);
	section = ret ? NULL : obm_section(o, OBM_TOKENIZER, 0, &bytes);
	if (!ret)
		ret = vocab_from_section(section, bytes, out, said, sizeof(said));
	obm_close(o);
	return ret ? fail(why, why_len, ret, "%s: %s", path, said) : 0;
}

static int read_mapped(const struct mapped *m, const char *path, struct vocab **out, char *why,
		       size_t why_len)
{
	if (begins(m, "HTOK", 4))
		return vocab_read_htok(m->data, m->bytes, path, out, why, why_len);
	if (begins(m, "H1B", 4))
		return fail(why, why_len, -ENOTSUP,
			    "%s: is an .h1b model, which holds no tokenizer; give the .htok file "
			    "that belongs to it",
			    path);
	if (begins(m, OBM_MAGIC, 8))
		return read_obm(path, out, why, why_len);
	if (is_json(m))
		return vocab_read_json(m->data, m->bytes, path, out, why, why_len);
	if (is_ranks(m))
		return vocab_read_ranks(m->data, m->bytes, path, out, why, why_len);
	if (is_sentencepiece(m))
		return vocab_read_sentencepiece(m->data, m->bytes, path, out, why, why_len);
	return fail(why, why_len, -EPROTO,
		    "%s: is no tokenizer that is known here; there are tokenizer.json, "
		    "tokenizer.model, .htok and .gguf",
		    path);
}

/*
 * Rows of the embedding that no token names are common, for their number is made round; but a
 * vocabulary that leaves more than an eighth of them without a name is another model's.
 */
int vocab_fits(const char *name, const struct vocab *v, uint32_t vocab_size, char *why,
	       size_t why_len)
{
	if (v->n_tokens > vocab_size)
		return fail(why, why_len, -EPROTO,
			    "%s: has %u tokens, the model %u: it is another model's tokenizer",
			    name, v->n_tokens, vocab_size);
	if (vocab_size - v->n_tokens > vocab_size / 8 + 256)
		return fail(why, why_len, -EPROTO,
			    "%s: has only %u tokens, the model %u: it is another model's tokenizer",
			    name, v->n_tokens, vocab_size);
	return 0;
}

int vocab_read(const char *path, uint32_t vocab_size, struct vocab **out, char *why, size_t why_len)
{
	struct vocab *v = NULL;
	struct mapped m = { 0 };
	struct stat st;
	int ret;

	if (!stat(path, &st) && S_ISDIR(st.st_mode))
		return vocab_read_folder(path, vocab_size, out, why, why_len);
	ret = mapped_open(path, &m, why, why_len);
	if (ret)
		return ret;
	if (begins(&m, "GGUF", 4))
		ret = vocab_read_gguf(path, &v, why, why_len);
	else
		ret = read_mapped(&m, path, &v, why, why_len);
	mapped_close(&m);
	if (ret)
		return ret;
	assert(v);
	if (vocab_size)
		ret = vocab_fits(path, v, vocab_size, why, why_len);
	if (ret)
		vocab_free(v);
	else
		*out = v;
	return ret;
}

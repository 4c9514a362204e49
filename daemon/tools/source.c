/* SPDX-License-Identifier: MIT */
/*
 * Which format a path is: by what the file holds, never by its name, since models are renamed by those
 * who pass them on. What is recognised and cannot be read is refused by its own name, with what to do
 * instead: "unknown "
	 "format" helps nobody who holds a PyTorch checkpoint or a pointer that Git LFS left
 * in the place of the file.
 *
 * What a person adds on the command line is put over what the files say here, once for all formats.
 */
#include "source.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include "mapped.h"

typedef int opener(const char *path, const struct source_options *o, struct source **out, char *why,
		   size_t why_len);

static bool ends_in(const char *name, const char *tail)
{
	size_t n = strlen(name), t = strlen(tail);

	return n > t && !strcmp(name + n - t, tail);
}

/* ---- what a file is -------------------------------------------------------------------------- */

static const struct {
	const char *magic;
	uint8_t len;
	uint16_t at;
	opener *open;
} readable[] = {
	/* The fourth byte of an h1b, and what text mode does to an obm, are their readers' to judge. */
	{ "\x89OBM", 4, 0, source_open_obm },
	{ "GGUF", 4, 0, source_open_gguf },
	{ "H1B", 3, 0, source_open_h1b },
};

static const struct {
	const char *magic;
	uint8_t len;
	uint16_t at;
	const char *what;
} refused[] = {
	{ "HTOK", 4, 0, "a tokenizer (.htok), not a model; name the model, and this with "
	 "--tokenizer" },
	{ "MEDUSA1", 7, 0, "a file of draft heads (.h1b-medusa), not a model; name the .h1b that "
			   "they were made for" },
	{ "1BP\0", 4, 0, "a 1bp file, which is not supported; convert the model that it was made "
			 "from (safetensors, GGUF or .h1b)" },
	{ "1BL", 3, 0, "a 1BL catalogue, not a language model; unpack the model in it (GGUF)" },
	{ "FUGG", 4, 0, "a GGUF file of a big-endian machine; convert it to little-endian with the "
			"tool that wrote it" },
	{ "lmgg", 4, 0, "a GGML file, older than GGUF; get the model as GGUF or safetensors" },
	{ "tjgg", 4, 0, "a GGJT file, older than GGUF; get the model as GGUF or safetensors" },
	{ "fmgg", 4, 0, "a GGMF file, older than GGUF; get the model as GGUF or safetensors" },
	{ "algg", 4, 0, "a GGLA adapter, not a model; merge it into its model first" },
	{ "PK\3\4", 4, 0, "a zip file, which is what PyTorch writes; save the model as safetensors "
			  "(save_pretrained with safe_serialization)" },
	{ "\x80\2", 2, 0, "a Python pickle, which is a program rather than data; save the model as "
			  "safetensors" },
	{ "\x80\3", 2, 0, "a Python pickle, which is a program rather than data; save the model as "
			  "safetensors" },
	{ "\x80\4", 2, 0, "a Python pickle, which is a program rather than data; save the model as "
			  "safetensors" },
	{ "\x80\5", 2, 0, "a Python pickle, which is a program rather than data; save the model as "
			  "safetensors" },
	{ "\x89HDF\r\n\x1a\n", 8, 0, "an HDF5 file (Keras); save the model as safetensors" },
	{ "\x93NUMPY", 6, 0, "a NumPy array; save the model as safetensors" },
	{ "TFL3", 4, 4, "a TensorFlow Lite file; get the model as safetensors or GGUF" },
	{ "\x08", 1, 0, "an ONNX file, by its first byte; get the model as safetensors or GGUF" },
	{ "version https://git-lfs", 23, 0, "not the model but the pointer that Git LFS keeps in "
					    "its place; run git lfs pull" },
	{ "<!DOCTYPE", 9, 0, "a web page, so the download went wrong; get the file itself" },
	{ "<!doctype", 9, 0, "a web page, so the download went wrong; get the file itself" },
	{ "<html", 5, 0, "a web page, so the download went wrong; get the file itself" },
	{ "{", 1, 0, "JSON, which describes a model; name the folder it is in, or the model's "
	 "file" },
	{ "\x1f\x8b", 2, 0, "compressed (gzip); unpack it first" },
	{ "\xfd" "7zXZ", 5, 0, "compressed (xz); unpack it first" },
	{ "\x28\xb5\x2f\xfd", 4, 0, "compressed (zstd); unpack it first" },
	{ "BZh", 3, 0, "compressed (bzip2); unpack it first" },
	{ "7z\xbc\xaf\x27\x1c", 6, 0, "an archive (7z); unpack it first" },
	{ "ustar", 5, 257, "an archive (tar); unpack it first" },
	{ "\x7f" "ELF", 4, 0, "a program; name a model" },
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static bool is(const struct mapped *m, const char *magic, size_t len, size_t at)
{
	return m->bytes >= at + len && !memcmp(m->data + at, magic, len);
}

static uint32_t word(const struct mapped *m, size_t at)
{
	struct cursor c = { .data = m->data, .bytes = m->bytes, .pos = at };

	return cursor_u32(&c);
}

/* A length that the file can hold, then the beginning of a JSON object. */
static bool is_safetensors(const struct mapped *m)
{
	struct cursor c = { .data = m->data, .bytes = m->bytes };
	uint64_t header = cursor_u64(&c);

	return !c.bad && header >= 2 && header <= m->bytes - 8 && cursor_u8(&c) == '{';
}

/* One writer of .h1b leaves out magic and version, and puts 6 where an eighth word comes to lie. */
static bool is_headless_h1b(const struct mapped *m)
{
	uint32_t hidden = word(m, 0), heads = word(m, 12);

	return m->bytes > 44 && word(m, 28) == 6 && hidden >= 64 && hidden <= OBM_WIDTH_MAX && heads &&
	       heads <= OBM_HEADS_MAX && !(hidden % heads);
}

static int recognise_file(const char *path, opener **open, char *why, size_t why_len)
{
	struct mapped m;
	int err = mapped_open(path, &m, why, why_len);

	if (err)
		return err;
	for (size_t i = 0; i < COUNT(readable); i++)
		if (is(&m, readable[i].magic, readable[i].len, readable[i].at)) {
			*open = readable[i].open;
			goto out;
		}
	if (is_safetensors(&m)) {
		*open = source_open_safetensors;
		goto out;
	}
	if (is_headless_h1b(&m)) {
		err = fail(why, why_len, -ENOTSUP,
			   "%s: an .h1b of version 6 without magic, as one converter writes it; no "
			   "program reads that. Convert the model that it was made from", path);
		goto out;
	}
	for (size_t i = 0; i < COUNT(refused); i++)
		if (is(&m, refused[i].magic, refused[i].len, refused[i].at)) {
			err = fail(why, why_len, -ENOTSUP, "%s: %s", path, refused[i].what);
			goto out;
		}
	err = fail(why, why_len, -EPROTO,
		   "%s: no model of a known format: it begins with %02x %02x %02x %02x; known are "
		   ".obm, GGUF, safetensors and .h1b", path, m.data[0], m.bytes > 1 ? m.data[1] : 0,
		   m.bytes > 2 ? m.data[2] : 0, m.bytes > 3 ? m.data[3] : 0);
out:
	mapped_close(&m);
	return err;
}

/* A Hugging Face folder; anything else is a folder in which a person must choose. */
static int recognise_folder(const char *path, opener **open, char *why, size_t why_len)
{
	char model[128] = "", torch[128] = "";
	bool yes = false;
	struct dirent *e;
	DIR *d = opendir(path);

	if (!d)
		return fail(why, why_len, -errno, "%s: cannot be read: %s", path, strerror(errno));
	while ((e = readdir(d))) {
		const char *name = e->d_name;

		if (!strcmp(name, "config.json") || ends_in(name, ".safetensors"))
			yes = true;
		else if (ends_in(name, ".gguf") || ends_in(name, ".h1b") || ends_in(name, ".obm"))
			snprintf(model, sizeof(model), "%.127s", name);
		else if (!strncmp(name, "pytorch_model", 13))
			snprintf(torch, sizeof(torch), "%.127s", name);
	}
	closedir(d);
	if (yes) {
		*open = source_open_safetensors;
		return 0;
	}
	if (*model)
		return fail(why, why_len, -ENOENT, "%s: a folder without config.json; name the "
			    "file in it, for example %s/%s", path, path, model);
	if (*torch)
		return fail(why, why_len, -ENOTSUP, "%s: the folder has %s, which is a Python "
			    "pickle; save the model as safetensors", path, torch);
	return fail(why, why_len, -ENOENT, "%s: the folder has neither config.json nor a "
		    ".safetensors file; name a model's folder or file", path);
}

/* ---- what a person adds ---------------------------------------------------------------------- */

static int set_text(char *to, size_t size, const char *from, const char *option, char *why,
		    size_t why_len)
{
	if (strlen(from) >= size)
		return fail(why, why_len, -EINVAL, "%s '%.40s...' has %zu bytes; allowed are %zu",
			    option,
			    from, strlen(from), size - 1);
	memset(to, 0, size);
	memcpy(to, from, strlen(from));
	return 0;
}

static int read_licence(struct source *s, const char *path, char *why, size_t why_len)
{
	struct mapped m;
	char *text;
	int err = mapped_open(path, &m, why, why_len);

	if (err)
		return err;
	if (m.bytes > OBM_TEXT_MAX || memchr(m.data, 0, m.bytes)) {
		err = fail(why, why_len, m.bytes > OBM_TEXT_MAX ? -EFBIG : -EPROTO,
			   "%s: no licence text: %s", path,
			   m.bytes > OBM_TEXT_MAX ? "it has more than 1 MiB" : "it has a zero "
				   "byte");
		goto out;
	}
	text = strndup((const char *)m.data, m.bytes);
	if (!text) {
		err = fail(why, why_len, -ENOMEM, "%s: no memory", path);
		goto out;
	}
	free(s->licence);
	s->licence = text;
out:
	mapped_close(&m);
	return err;
}

static int apply(struct source *s, const struct source_options *o, char *why, size_t why_len)
{
	int err = 0;

	if (o->name)
		err = set_text(s->arch.name, sizeof(s->arch.name), o->name, "--name", why, why_len);
	if (!err && o->chat && !s->vocab)
		err = fail(why, why_len, -ENOENT, "--chat %.40s: there is no vocabulary for it: %s",
			   o->chat,
			   s->no_vocab);
	else if (!err && o->chat)
		err = set_text(s->vocab->chat, sizeof(s->vocab->chat), o->chat, "--chat", why, why_len);
	if (!err && o->licence_file)
		err = read_licence(s, o->licence_file, why, why_len);
	if (err)
		return err;
	if (o->context > s->arch.context)
		return fail(why, why_len, -EINVAL, "--context %u is more than the %u that the "
			    "model was made for", o->context, s->arch.context);
	if (o->context)
		s->arch.context = o->context;
	if (o->qk != SOURCE_QK_UNKNOWN)
		s->qk = o->qk;
	return 0;
}

/* ---- open, close, find ----------------------------------------------------------------------- */

int source_open(const char *path, const struct source_options *o, struct source **out, char *why,
		size_t why_len)
{
	static const struct source_options none;
	opener *reader = NULL;
	struct source *s = NULL;
	struct stat st;
	int err;

	if (stat(path, &st))
		return fail(why, why_len, -errno, "%s: cannot be opened: %s", path,
			    strerror(errno));
	err = S_ISDIR(st.st_mode) ? recognise_folder(path, &reader, why, why_len) :
				    recognise_file(path, &reader, why, why_len);
	if (err)
		return err;
	assert(reader);
	if (!o)
		o = &none;
	err = reader(path, o, &s, why, why_len);
	if (err)
		return err;
	err = apply(s, o, why, why_len);
	if (err) {
		source_close(s);
		return err;
	}
	*out = s;
	return 0;
}

struct source *source_close(struct source *s)
{
	if (!s)
		return NULL;
	s->vocab = vocab_free(s->vocab);
	free(s->info);
	free(s->licence);
	free(s->tensors);
	s->info = NULL;
	s->licence = NULL;
	s->tensors = NULL;
	s->n_tensors = 0;
	s->ops->close(s);
	return NULL;
}

const struct source_tensor *source_find(const struct source *s, uint32_t role, uint32_t layer)
{
	for (uint32_t i = 0; i < s->n_tensors; i++)
		if (s->tensors[i].role == role && s->tensors[i].layer == layer)
			return &s->tensors[i];
	return NULL;
}

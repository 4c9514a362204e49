/* SPDX-License-Identifier: MIT */
/*
 * Which safetensors files belong together: a model is one file, or shards that an index lists.
 * Where both model.safetensors and an index are there, transformers takes the single file, and so
 * do we. The index is as foreign as the rest: its names stay in the folder, and each tensor must be
 * where it says.
 */
#include "safetensors.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define INDEX "model.safetensors.index.json"
#define SINGLE "model.safetensors"
#define SUFFIX ".safetensors"

static bool ends_in(const char *text, const char *end)
{
	size_t n = strlen(text), m = strlen(end);

	return n >= m && !strcmp(text + n - m, end);
}

static char *joined(const char *folder, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", folder, name) < 0 ? NULL : path;
}

static bool is_there(const char *folder, const char *name)
{
	char *path = joined(folder, name);
	struct stat st;
	bool is = path && !stat(path, &st) && S_ISREG(st.st_mode);

	free(path);
	return is;
}

/* Adds a file and all its tensors. */
static int add_file(struct safetensors *s, const char *name, char *why, size_t why_len)
{
	struct safetensors_file *f = &s->files[s->n_files];
	struct safetensors_tensor *t, *all;
	char *path = joined(s->folder, name);
	uint32_t n;
	int err;

	f->name = strdup(name);
	if (!path || !f->name) {
		free(path);
		free(f->name);
		return fail(why, why_len, -ENOMEM, "%s: no memory", name);
	}
	err = mapped_open(path, &f->map, why, why_len);
	free(path);
	if (err) {
		free(f->name);
		return err;
	}
	s->n_files++;
	s->bytes += f->map.bytes;
	err = safetensors_header(f->map.data, f->map.bytes, name, &t, &n, why, why_len);
	if (err)
		return err;
	all = reallocarray(s->tensors, s->n_tensors + n + 1u, sizeof(*t));
	if (!all) {
		safetensors_free(t, n);
		return fail(why, why_len, -ENOMEM, "%s: no memory", name);
	}
	for (uint32_t i = 0; i < n; i++) {
		t[i].file = s->n_files - 1;
		all[s->n_tensors + i] = t[i];
	}
	s->tensors = all;
	s->n_tensors += n;
	free(t);
	return 0;
}

/* The shards that an index names, each once, in s->files' room. */
static int add_shards(struct safetensors *s, json_t *map, char *why, size_t why_len)
{
	const char *key, *shard;
	json_t *v;

	json_object_foreach(map, key, v) {
		bool known = false;
		int err;

		shard = json_string_value(v);
		if (!shard || !safetensors_is_plain(shard, 255) || strchr(shard, '/') ||
		    strchr(shard, '\\') || shard[0] == '.' || !ends_in(shard, SUFFIX))
			return fail(
				why, why_len, -EPROTO,
				INDEX
				": a value of weight_map is no plain name of a .safetensors file");
		for (uint32_t i = 0; i < s->n_files && !known; i++)
			known = !strcmp(s->files[i].name, shard);
		if (known)
			continue;
		if (s->n_files == SAFETENSORS_FILES_MAX)
			return fail(why, why_len, -EFBIG, INDEX ": names more than %u files",
				    SAFETENSORS_FILES_MAX);
		if (!is_there(s->folder, shard))
			return fail(why, why_len, -ENOENT,
				    "shard %s, which " INDEX " names, is missing; download it too",
				    shard);
		err = add_file(s, shard, why, why_len);
		if (err)
			return err;
	}
	return 0;
}

/* A tensor is where the index says, and only what it names counts. */
static int match_index(struct safetensors *s, const json_t *map, char *why, size_t why_len)
{
	uint32_t n = 0;
	const char *key;
	json_t *v;

	if (s->n_tensors)
		qsort(s->tensors, s->n_tensors, sizeof(*s->tensors), safetensors_by_name);
	for (uint32_t i = 1; i < s->n_tensors; i++)
		if (!strcmp(s->tensors[i - 1].name, s->tensors[i].name))
			return fail(why, why_len, -EPROTO, "%s is in %s and in %s",
				    s->tensors[i].name, s->files[s->tensors[i - 1].file].name,
				    s->files[s->tensors[i].file].name);
	json_object_foreach((json_t *)map, key, v) {
		const struct safetensors_tensor *t = safetensors_find(s, key);

		if (!safetensors_is_plain(key, SAFETENSORS_NAME_MAX))
			return fail(why, why_len, -EPROTO,
				    INDEX ": a key of weight_map is no name of a tensor");
		if (!t || strcmp(s->files[t->file].name, json_string_value(v)))
			return fail(why, why_len, -EPROTO,
				    "%s is not in %s, where " INDEX " puts it", key,
				    json_string_value(v));
	}
	for (uint32_t i = 0; i < s->n_tensors; i++) {
		if (json_object_get(map, s->tensors[i].name))
			s->tensors[n++] = s->tensors[i];
		else
			free(s->tensors[i].name);
	}
	s->n_tensors = n;
	return 0;
}

/* Its JSON, the caller's to give back; weight_map is an object that is not empty. */
static int load_index(const char *folder, const char *name, json_t **index, char *why,
		      size_t why_len)
{
	char *path = joined(folder, name);
	struct mapped m = { 0 };
	json_error_t at;
	int err;

	if (!path)
		return fail(why, why_len, -ENOMEM, "%s: no memory", name);
	err = mapped_open(path, &m, why, why_len);
	free(path);
	if (err)
		return err;
	if (m.bytes > SAFETENSORS_HEADER_MAX) {
		err = fail(why, why_len, -EFBIG, "%s has %llu bytes; allowed are %u", name,
			   (unsigned long long)m.bytes, SAFETENSORS_HEADER_MAX);
	} else {
		*index = json_loadb((const char *)m.data, m.bytes, JSON_REJECT_DUPLICATES, &at);
		if (!json_object_size(json_object_get(*index, "weight_map"))) {
			json_decref(*index);
			err = fail(why, why_len, -EPROTO,
				   "%s: there is no weight_map in it, or it is no JSON", name);
		}
	}
	mapped_close(&m);
	return err;
}

static int add_index(struct safetensors *s, const char *name, char *why, size_t why_len)
{
	json_t *index = NULL, *map;
	int err = load_index(s->folder, name, &index, why, why_len);

	if (err)
		return err;
	map = json_object_get(index, "weight_map");
	err = add_shards(s, map, why, why_len);
	if (!err)
		err = match_index(s, map, why, why_len);
	json_decref(index);
	return err;
}

/* The one .safetensors file of a folder that has no index and no file of the usual name. */
static int find_single(const char *folder, char *name, size_t len, char *why, size_t why_len)
{
	DIR *d = opendir(folder);
	struct dirent *e;
	unsigned n = 0;

	if (!d)
		return fail(why, why_len, -errno, "%s: %s", folder, strerror(errno));
	while ((e = readdir(d)))
		if (ends_in(e->d_name, SUFFIX) && strlen(e->d_name) < len && n++ == 0)
			strcpy(name, e->d_name);
	closedir(d);
	if (n > 1)
		return fail(why, why_len, -ENOENT,
			    "%s holds %u .safetensors files, and no " INDEX
			    " says how they belong together; download it too, or name one file",
			    folder, n);
	if (n)
		return 0;
	if (is_there(folder, "pytorch_model.bin") ||
	    is_there(folder, "pytorch_model.bin.index.json"))
		return fail(why, why_len, -ENOENT,
			    "%s holds pickled weights (pytorch_model.bin), which are not read; "
			    "save the model as safetensors",
			    folder);
	return fail(why, why_len, -ENOENT, "%s holds no .safetensors file", folder);
}

/* Whether the index beside a file names it as one of its shards. */
static bool is_shard(const char *folder, const char *name)
{
	bool is = false;
	const char *key;
	json_t *index = NULL, *v;
	char why[256];

	if (load_index(folder, INDEX, &index, why, sizeof(why)))
		return false;
	json_object_foreach(json_object_get(index, "weight_map"), key, v)
		is = is || (json_is_string(v) && !strcmp(json_string_value(v), name));
	json_decref(index);
	return is;
}

/* Splits path into the folder and a file's name, empty for a folder. */
static int locate(const char *path, char **folder, char *name, size_t len, char *why,
		  size_t why_len)
{
	const char *slash = strrchr(path, '/');
	struct stat st;

	if (stat(path, &st))
		return fail(why, why_len, -errno, "%s: %s", path, strerror(errno));
	name[0] = 0;
	if (S_ISDIR(st.st_mode)) {
		*folder = strdup(path);
	} else {
		const char *file = slash ? slash + 1 : path;

		if (strlen(file) >= len)
			return fail(why, why_len, -ENAMETOOLONG, "%s: the name is too long", path);
		strcpy(name, file);
		*folder = !slash	  ? strdup(".")
			  : slash == path ? strdup("/")
					  : strndup(path, (size_t)(slash - path));
	}
	return *folder ? 0 : fail(why, why_len, -ENOMEM, "%s: no memory", path);
}

int safetensors_open(const char *path, struct safetensors **out, char *why, size_t why_len)
{
	struct safetensors *s = calloc(1, sizeof(*s));
	char name[256] = "";
	int err = -ENOMEM;

	if (s)
		s->files = calloc(SAFETENSORS_FILES_MAX, sizeof(*s->files));
	if (!s || !s->files) {
		fail(why, why_len, err, "%s: no memory", path);
		goto out;
	}
	err = locate(path, &s->folder, name, sizeof(name), why, why_len);
	if (err || !s->folder)
		goto out;
	if (!name[0] && is_there(s->folder, SINGLE))
		strcpy(name, SINGLE);
	else if ((!name[0] && is_there(s->folder, INDEX)) ||
		 (ends_in(name, SUFFIX) && strcmp(name, SINGLE) && is_shard(s->folder, name)))
		strcpy(name, INDEX);
	else if (!name[0])
		err = find_single(s->folder, name, sizeof(name), why, why_len);
	if (!err)
		err = ends_in(name, ".json") ? add_index(s, name, why, why_len)
					     : add_file(s, name, why, why_len);
out:
	if (err) {
		safetensors_close(s);
		return err;
	}
	*out = s;
	return 0;
}

/* SPDX-License-Identifier: MIT */
#ifndef SOURCE_H
#define SOURCE_H

/*
 * A model in somebody's format, as converters see it: what it is, its vocabulary, and its tensors by
 * role, to be read a few rows at a time. One reader a format (source_safetensors.c, source_gguf.c,
 * source_h1b.c, source_obm.c); each maps its files, checks everything that it is going to believe when
 * it is opened, and then only copies and decodes.
 *
 * Input is hostile: every size is checked before it is used, products with overflow, offsets against
 * the file. A reader answers with one sentence that names the file, the tensor or key, what was found
 * and what would be right; it never prints, never exits. Errors: -EPROTO not this format, damaged or
 * inconsistent; -ENOTSUP a form that is known and not supported, named; -EFBIG over a bound of obm.h;
 * -ENOENT a part is missing (tokenizer, shard, tensor); else from the system. No two ask for different
 * things with the same words.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "obm.h"
#include "vocab.h"

/* How a tensor's values are stored, and so what may be asked of it. */
enum source_form {
	SOURCE_TERNARY, /* codes and scales are in the file, or exactly recoverable: read_codes() */
	SOURCE_MASTER,	/* trained in float, made ternary by absmean: read_floats(), twice */
	SOURCE_F32,	/* read_floats() */
	SOURCE_F16,	/* read_floats(), exact in binary16 */
	SOURCE_BF16,	/* read_floats(), exact in bfloat16 */
	SOURCE_INT8,	/* read_codes() with a scale a row: an .obm's embedding; read_floats() too */
	SOURCE_QUANTISED, /* read_floats(): Q8_0, Q6_K embeddings */
};

struct source_tensor {
	uint32_t role, layer; /* OBM_* */
	uint32_t rows, cols;
	uint32_t groups; /* of scales; 1 for SOURCE_INT8, 0 where there are none */
	enum source_form form;
	const char *stored; /* what the file calls its type: "U8 packed", "TQ2_0", "BF16": for people */
	const void *private_data; /* the reader's */
};

/* Rows of a head in q and k, as the file has them. */
enum source_qk {
	SOURCE_QK_UNKNOWN, /* the file does not say; the person must (--qk) */
	SOURCE_QK_SPLIT,   /* split-half: as served */
	SOURCE_QK_PAIRS,   /* adjacent pairs: the converter puts them in order */
};

struct source {
	const struct source_ops *ops;
	const char *format;  /* "safetensors", "GGUF v3", "h1b v4", "obm" */
	struct obm_arch arch; /* all but rope_sha256 */
	double rope_theta;
	const double *rope;   /* head_dim / 2 frequencies when the file has its own; else NULL */
	enum source_qk qk;
	struct vocab *vocab;  /* NULL: the source has none, and why is in no_vocab */
	char no_vocab[256];
	char *info;	      /* lines for OBM_INFO; no "converter" line. May be NULL */
	char *licence;	      /* text. May be NULL */
	uint32_t n_tensors;
	struct source_tensor *tensors; /* any order, each role and layer once */
	uint64_t file_bytes;  /* of all its files: the progress bar's whole */
};

struct source_ops {
	/*
	 * Rows row0 to row0 + n: codes[n][cols] in -1, 0, 1 (SOURCE_INT8: any but -128), scales[n][groups].
	 * scales may be NULL. A code or scale that cannot be is -EPROTO with its place.
	 */
	int (*read_codes)(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
			  int8_t *codes, float *scales, char *why, size_t why_len);
	/* floats[n][cols]. NaN and infinity are -EPROTO with their place. */
	int (*read_floats)(struct source *s, const struct source_tensor *t, uint32_t row0, uint32_t n,
			   float *floats, char *why, size_t why_len);
	/* What was read of t will not be read again: pages may go. May be NULL. */
	void (*done)(struct source *s, const struct source_tensor *t);
	/*
	 * The reader's own, and s itself. vocab, info, licence and tensors, each from malloc(), are
	 * source_close()'s to free; they are NULL by now.
	 */
	void (*close)(struct source *s);
};

/*
 * What a person may add to what the files say. NULL or 0: nothing. Readers heed tokenizer and linear;
 * source_open() does the rest, whichever the format.
 */
struct source_options {
	const char *tokenizer;	/* a file: .htok, tokenizer.json, tokenizer.model, .gguf, .obm */
	const char *chat;	/* template's name */
	enum source_qk qk;
	const char *linear;	/* "bitlinear", "autobitlinear": when config.json names neither */
	const char *name;
	const char *licence_file;
	uint32_t context;	/* serve less than the file says */
	bool unchecked;		/* weights will not be read, so their checksums need not be */
};

/* Finds out the format by content and opens it; path may be a folder. Sets *out on success only. */
int source_open(const char *path, const struct source_options *o, struct source **out, char *why,
		size_t why_len);
struct source *source_close(struct source *s); /* NULL is fine; returns NULL */

/* The readers, by format. fd-less: each opens what it needs. */
int source_open_safetensors(const char *path, const struct source_options *o, struct source **out,
			    char *why, size_t why_len);
int source_open_gguf(const char *path, const struct source_options *o, struct source **out, char *why,
		     size_t why_len);
int source_open_h1b(const char *path, const struct source_options *o, struct source **out, char *why,
		    size_t why_len);
int source_open_obm(const char *path, const struct source_options *o, struct source **out, char *why,
		    size_t why_len);

const struct source_tensor *source_find(const struct source *s, uint32_t role, uint32_t layer);

/*
 * Every rule that holds whichever the format: bounds of obm.h, heads and dimensions that fit, the
 * tensors that an architecture needs, each with its shape and a form that its role can have, sub-norms
 * in all layers or none, a vocabulary of this model's size. Counts arch.n_parameters. 0, or -EPROTO,
 * -EFBIG, -ENOENT, -ENOTSUP with the tensor's name.
 */
int source_check(struct source *s, char *why, size_t why_len);

/* ---- vocabularies from files of their own (read_*.c); each makes a vocab that passes vocab_check() -- */

/* By content: any of the below, a .gguf or an .obm. vocab_size: the model's, 0 when not known. */
int vocab_read(const char *path, uint32_t vocab_size, struct vocab **out, char *why, size_t why_len);
/* From memory. name is the file's, for the sentence. */
int vocab_read_json(const void *data, size_t len, const char *name, struct vocab **out, char *why,
		    size_t why_len);		/* tokenizer.json */
int vocab_read_sentencepiece(const void *data, size_t len, const char *name, struct vocab **out,
			     char *why, size_t why_len); /* tokenizer.model, protobuf */
int vocab_read_ranks(const void *data, size_t len, const char *name, struct vocab **out, char *why,
		     size_t why_len);		/* tokenizer.model, "base64 rank" lines; Llama 3's specials */
int vocab_read_htok(const void *data, size_t len, const char *name, struct vocab **out, char *why,
		    size_t why_len);
/*
 * Whether a vocabulary can be that of a model with vocab_size rows: not more tokens, nor so few that it
 * is another model's. 0, or -EPROTO and both numbers.
 */
int vocab_fits(const char *name, const struct vocab *v, uint32_t vocab_size, char *why,
	       size_t why_len);
/* From a GGUF file's metadata. */
int vocab_read_gguf(const char *path, struct vocab **out, char *why, size_t why_len);
/*
 * A model folder: tokenizer.json, else tokenizer.model of either kind; then what tokenizer_config.json,
 * chat_template.jinja, special_tokens_map.json and generation_config.json say of bos, eos, stops and the
 * chat template. When it is 0, why is empty or a note for the person: a chat template that is not one
 * of ours, for which vocab->chat is "".
 */
int vocab_read_folder(const char *folder, uint32_t vocab_size, struct vocab **out, char *why,
		      size_t why_len);
/* The name of a chat template by its text (Jinja) as model files have it; "" when it is none of ours. */
const char *vocab_chat_of(const char *text, size_t len);

/* ---- floats that are ternary ---------------------------------------------------------------- */

/*
 * Whether rows of floats are codes times scales, exactly: each row (or each of equal column groups, a
 * multiple of 64 wide, of each row) holds only -s, 0, s, all of them the very same s. Fed rows from the
 * first to the last, keeps no more than it needs.
 */
struct ternary_finder;
struct ternary_finder *ternary_finder_new(uint32_t rows, uint32_t cols);
struct ternary_finder *ternary_finder_free(struct ternary_finder *f);
int ternary_finder_rows(struct ternary_finder *f, const float *floats, uint32_t n);
/* The least number of groups that explains all rows; 0 and why, with the first place and the values
 * found there, when nothing does. */
uint32_t ternary_finder_groups(const struct ternary_finder *f, char *why, size_t why_len);
/* Rows of such floats into codes and scales[n][groups]; a group of zeros has scale 0. */
int ternary_split(const float *floats, uint32_t n, uint32_t cols, uint32_t groups, int8_t *codes,
		  float *scales);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * onebit model info: what a person wants to know of a model before he waits for it. One list for
 * every format; what depends on the layout (bytes a token, size when served) is that of the .obm,
 * either this file or the one that `convert` would make of it without options.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "machine.h"
#include "model.h"
#include "packed.h"

static const char verb[] = "model info";

struct figures {
	uint64_t linear_weights, linear_bytes; /* packed matrices and their scales */
	uint64_t head_bytes;	/* read for a token: a head whole, of an embedding one row */
	uint64_t norm_bytes;
	uint64_t file_bytes;	/* of the .obm; an estimate for other formats */
	uint64_t kv_bytes;	/* for the whole context, as halves */
	bool sub_norms, tied, master;
	uint32_t groups;	/* the most that a matrix has */
	const char *layout, *head; /* names */
};

struct info {
	const char *path;
	struct source *s;
	struct obm *obm; /* NULL: another format */
	struct figures f;
	struct machine machine;
};

/* ---- finding out --------------------------------------------------------------------------- */

/* An .obm besides its source: identity, signature, layouts. */
static int open_obm(struct info *n, char *why, size_t why_len)
{
	int fd, err;

	if (strcmp(n->s->format, "obm"))
		return 0;
	fd = open(n->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		snprintf(why, why_len, "%s: cannot be opened: %s", n->path, strerror(errno));
		return -errno;
	}
	err = obm_open(fd, OBM_UNCHECKED, 1, &n->obm, why, why_len);
	close(fd);
	return err;
}

static uint32_t layout_of(const struct info *n, const struct source_tensor *t, bool linear)
{
	const struct obm_tensor *o = n->obm ? obm_tensor(n->obm, t->role, t->layer) : NULL;

	return o ? o->layout : linear ? PACKED_2BIT : PACKED_INT8;
}

static void add_matrix(struct info *n, const struct source_tensor *t, bool linear)
{
	struct figures *f = &n->f;
	struct packed_shape shape = { .layout = layout_of(n, t, linear),
				      .rows = t->rows,
				      .cols = t->cols,
				      .groups = linear && t->form == SOURCE_TERNARY ? t->groups
										    : 1 };
	uint64_t bytes;

	if (packed_check(&shape))
		return;
	bytes = packed_bytes(&shape) + packed_n_scales(&shape) * sizeof(float);
	f->file_bytes += bytes;
	if (linear) {
		f->linear_bytes += bytes;
		f->linear_weights += (uint64_t)t->rows * t->cols;
		f->layout = packed_name(shape.layout);
		f->groups = shape.groups > f->groups ? shape.groups : f->groups;
		return;
	}
	f->head = packed_name(shape.layout);
	if (t->role == OBM_EMBED && !f->tied)
		bytes /= t->rows;
	f->head_bytes += bytes;
}

static void count(struct info *n)
{
	const struct obm_arch *a = &n->s->arch;
	struct figures *f = &n->f;

	f->tied = !source_find(n->s, OBM_HEAD, OBM_NO_LAYER);
	f->sub_norms = source_find(n->s, OBM_ATTN_SUB_NORM, 0);
	for (uint32_t i = 0; i < n->s->n_tensors; i++) {
		const struct source_tensor *t = &n->s->tensors[i];

		f->master |= t->form == SOURCE_MASTER;
		if (t->role >= OBM_Q || t->role == OBM_EMBED || t->role == OBM_HEAD)
			add_matrix(n, t, t->role >= OBM_Q);
		else
			f->norm_bytes += (uint64_t)t->cols * sizeof(float);
	}
	f->file_bytes += f->norm_bytes;
	if (n->obm)
		f->file_bytes = n->obm->bytes;
	f->kv_bytes = (uint64_t)a->layers * a->kv_heads * a->head_dim * a->context * 2 *
		      sizeof(uint16_t);
}

/* The sentence: whether this machine can serve it. */
static bool can_serve(const struct info *n, char *text, size_t len)
{
	const struct machine *m = &n->machine;
	uint64_t need = n->f.file_bytes + n->f.kv_bytes;
	bool fits = !m->available_bytes || need <= m->available_bytes;
	char weights[32], kv[32], have[32], disk[32];

	model_size(n->f.file_bytes, weights, sizeof(weights));
	model_size(n->f.kv_bytes, kv, sizeof(kv));
	model_size(m->available_bytes, have, sizeof(have));
	model_size(m->disk_bytes, disk, sizeof(disk));
	if (!n->s->vocab) {
		snprintf(text, len, "no: it has no tokenizer; name its file with --tokenizer");
		return false;
	}
	if (n->s->qk == SOURCE_QK_UNKNOWN) {
		snprintf(text, len,
			 "no: the order of q's and k's rows is not known; see --qk of convert");
		return false;
	}
	if (!fits) {
		snprintf(
			text, len,
			"no: %s of weights and %s of KV cache for %u tokens do not fit into the %s "
			"of memory that is available%s",
			weights, kv, n->s->arch.context, have,
			n->f.file_bytes < m->available_bytes ? "; with a smaller --context they may"
							     : "");
		return false;
	}
	snprintf(text, len,
		 "yes%s: %s of weights and %s of KV cache for %u tokens fit into the %s of memory "
		 "that is available; %u CPU%s, %s%s%s%s",
		 n->obm ? "" : ", once converted", weights, kv, n->s->arch.context,
		 m->available_bytes ? have : "unknown amount", m->n_cpus, m->n_cpus == 1 ? "" : "s",
		 m->cpu, m->fast ? "" : ", which will be slow",
		 n->obm || m->disk_bytes >= n->f.file_bytes
			 ? ""
			 : "; this folder's disk is too full for it: ",
		 n->obm || m->disk_bytes >= n->f.file_bytes ? "" : disk);
	return true;
}

static const char *rule_name(const struct vocab *v)
{
	static const char *const rules[] = { "none", "llama3", "gpt2", "starcoder" };

	return v->rule < VOCAB_RULE_COUNT ? rules[v->rule] : "?";
}

static uint32_t of_kind(const struct vocab *v, uint32_t kind)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < v->n_tokens; i++)
		n += v->tokens[i].kind == kind;
	return n;
}

/* A key's value in the lines of info; *len 0 when there is none. */
static const char *info_value(const char *info, const char *key, size_t *len)
{
	size_t k = strlen(key);

	for (; info && *info; info += *len, info += *info == '\n') {
		*len = strcspn(info, "\n");
		if (!strncmp(info, key, k) && info[k] == ':') {
			info += k + 1;
			info += *info == ' ';
			*len = strcspn(info, "\n");
			return info;
		}
	}
	*len = 0;
	return "";
}

static bool is_signed(const struct obm *o)
{
	static const uint8_t none[32];

	return memcmp(o->header->signer, none, sizeof(none)) != 0;
}

static double bits_linear(const struct figures *f)
{
	return f->linear_weights ? (double)f->linear_bytes * 8 / (double)f->linear_weights : 0;
}

static double bits_whole(const struct info *n)
{
	return n->s->arch.n_parameters ?
		       (double)n->s->file_bytes * 8 / (double)n->s->arch.n_parameters : 0;
}

static uint64_t token_bytes(const struct figures *f)
{
	return f->linear_bytes + f->head_bytes + f->norm_bytes;
}

static const char a8_note[] =
	"trained without int8 activations; it is served with them, which costs some "
	"quality";

/* ---- text ---------------------------------------------------------------------------------- */

/* What strangers wrote: no control character reaches the terminal. */
static void print_safe(const char *text, size_t len)
{
	for (size_t i = 0; i < len && text[i]; i++)
		putchar((unsigned char)text[i] < 32 || text[i] == 127 ? '?' : text[i]);
}

static void print_row(const char *key, const char *text, size_t len)
{
	printf("%-18s", key);
	print_safe(text, len);
	putchar('\n');
}

static void print_vocab(const struct source *s)
{
	const struct vocab *v = s->vocab;

	if (!v) {
		printf("%-18snone: ", "tokenizer");
		print_safe(s->no_vocab, sizeof(s->no_vocab));
		putchar('\n');
		return;
	}
	printf("%-18s%s, rule %s%s, %u tokens, %u merges, %u special", "tokenizer",
	       v->kind == VOCAB_SPM ? "SentencePiece BPE" : "byte-level BPE", rule_name(v),
	       v->flags & VOCAB_NFC ? " on NFC" : "", v->n_tokens, v->n_merges,
	       of_kind(v, VOCAB_SPECIAL));
	if (of_kind(v, VOCAB_ADDED))
		printf(", %u taken whole", of_kind(v, VOCAB_ADDED));
	if (v->n_tokens < s->arch.vocab)
		printf(" (%u rows of the embedding have no token)", s->arch.vocab - v->n_tokens);
	putchar('\n');
	print_row("template", *v->chat ? v->chat : "none (raw)", sizeof(v->chat));
}

static void print_licence(const struct source *s)
{
	size_t len;
	const char *id = info_value(s->info, "licence", &len);
	size_t text = s->licence ? strcspn(s->licence, "\n") : 0;

	printf("%-18s", "licence");
	if (len)
		print_safe(id, len);
	else
		fputs(text ? "" : "not in the file", stdout);
	if (text) {
		fputs(len ? "; text: " : "text: ", stdout);
		print_safe(s->licence + strspn(s->licence, " \t"), text < 60 ? text : 60);
	}
	putchar('\n');
}

/* Every line of info that has no row of its own. */
static void print_notes(const struct info *n)
{
	const char *line = n->s->info;

	if (n->s->arch.flags & OBM_FLAG_A8_IMPOSED)
		printf("%-18s%s\n", "activations", a8_note);
	if (n->f.master)
		printf("%-18smaster weights; convert makes them ternary by their mean magnitude\n",
		       "weights");
	if (n->f.groups > 1)
		printf("%-18sup to %u groups of columns, each with a scale a row\n", "scales",
		       n->f.groups);
	for (; line && *line; line += *line == '\n') {
		size_t len = strcspn(line, "\n");
		size_t key = strcspn(line, ":\n");

		if (key < len && strncmp(line, "name:", 5) && strncmp(line, "licence:", 8)) {
			const char *value = line + key + 1 + (line[key + 1] == ' ');

			print_safe(line, key);
			printf("%*s", key < 18 ? (int)(18 - key) : 1, "");
			print_safe(value, (size_t)(line + len - value));
			putchar('\n');
		}
		line += len;
	}
}

static void print_text(const struct info *n)
{
	const struct obm_arch *a = &n->s->arch;
	const struct figures *f = &n->f;
	char size[32], text[512], hex[65];

	printf("%-18s%s, %s\n", "format", n->s->format,
	       model_size(n->s->file_bytes, size, sizeof(size)));
	print_row("name", a->name, sizeof(a->name));
	printf("%-18s%s: %u layers, hidden %u, FFN %u, %u heads, %u KV heads, head_dim %u\n",
	       "architecture", a->family, a->layers, a->hidden, a->ffn, a->heads, a->kv_heads,
	       a->head_dim);
	printf("%-18s%s, %s sub-norms, %s head, eps %g, theta %g\n", "",
	       a->activation == OBM_ACT_RELU2 ? "ReLU2" : "SiLU", f->sub_norms ? "with" : "no",
	       f->tied ? "tied" : "untied", (double)a->rms_eps, n->s->rope_theta);
	printf("%-18s%" PRIu64 "\n", "parameters", a->n_parameters);
	printf("%-18s%.2f over the whole file; %slinear layers %.2f (%s), head %s\n",
	       "bits per weight", bits_whole(n), n->obm ? "" : "as .obm ", bits_linear(f),
	       f->layout, f->head);
	printf("%-18s%s\n", "bytes per token", model_size(token_bytes(f), size, sizeof(size)));
	printf("%-18s%u tokens, %s of KV cache\n", "context", a->context,
	       model_size(f->kv_bytes, size, sizeof(size)));
	print_vocab(n->s);
	print_licence(n->s);
	if (n->obm) {
		model_hex(n->obm->header->identity, hex);
		printf("%-18s%s\n", "identity", hex);
		model_hex(n->obm->header->signer, hex);
		printf("%-18s%s%s\n", "signature", is_signed(n->obm) ? "by " : "none",
		       is_signed(n->obm) ? hex : "");
		printf("%-18sthe weights%s were not read; `onebit model verify` checks every byte\n",
		       "checksum", is_signed(n->obm) ? " and the signature" : "");
	} else {
		printf("%-18snone in this format\n", "checksum");
	}
	print_notes(n);
	can_serve(n, text, sizeof(text));
	printf("%-18s%s\n", "can be served", text);
}

/* ---- JSON ---------------------------------------------------------------------------------- */

/* What is not UTF-8 is left out: jansson makes no string of it. */
static void put_text(json_t *o, const char *key, const char *text, size_t max)
{
	json_object_set_new(o, key, json_stringn(text, strnlen(text, max)));
}

static json_t *vocab_json(const struct source *s)
{
	const struct vocab *v = s->vocab;
	json_t *o;

	if (!v)
		return json_null();
	o = json_pack("{s:s, s:s, s:i, s:i, s:i, s:i, s:b, s:b}", "kind",
		      v->kind == VOCAB_SPM ? "sentencepiece" : "bytes", "rule", rule_name(v),
		      "tokens", (int)v->n_tokens, "merges", (int)v->n_merges, "specials",
		      (int)of_kind(v, VOCAB_SPECIAL), "added", (int)of_kind(v, VOCAB_ADDED),
		      "ignore_merges", !!(v->flags & VOCAB_IGNORE_MERGES), "nfc",
		      !!(v->flags & VOCAB_NFC));
	if (o)
		put_text(o, "template", v->chat, sizeof(v->chat));
	return o;
}

static json_t *arch_json(const struct info *n)
{
	const struct obm_arch *a = &n->s->arch;
	json_t *o = json_pack(
		"{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:b, s:b, s:f, s:f}", "layers",
		(json_int_t)a->layers, "hidden", (json_int_t)a->hidden, "ffn", (json_int_t)a->ffn,
		"heads", (json_int_t)a->heads, "kv_heads", (json_int_t)a->kv_heads, "head_dim",
		(json_int_t)a->head_dim, "vocab", (json_int_t)a->vocab, "activation",
		a->activation == OBM_ACT_RELU2 ? "relu2" : "silu", "sub_norms", (int)n->f.sub_norms,
		"tied", (int)n->f.tied, "eps", (double)a->rms_eps, "theta", n->s->rope_theta);

	if (o)
		put_text(o, "family", a->family, sizeof(a->family));
	return o;
}

static json_t *info_json(const struct info *n)
{
	const struct figures *f = &n->f;
	json_t *o = json_object();
	char text[512], hex[65];
	size_t len;
	const char *id = info_value(n->s->info, "licence", &len);
	bool yes = can_serve(n, text, sizeof(text));

	if (!o)
		return NULL;
	put_text(o, "path", n->path, strlen(n->path));
	put_text(o, "format", n->s->format, strlen(n->s->format));
	put_text(o, "name", n->s->arch.name, sizeof(n->s->arch.name));
	json_object_set_new(o, "file_bytes", json_integer((json_int_t)n->s->file_bytes));
	json_object_set_new(o, "architecture", arch_json(n));
	json_object_set_new(o, "parameters", json_integer((json_int_t)n->s->arch.n_parameters));
	json_object_set_new(o, "bits_per_weight", json_real(bits_whole(n)));
	json_object_set_new(o, "linear_bits_per_weight", json_real(bits_linear(f)));
	json_object_set_new(o, "layout", json_string(f->layout));
	json_object_set_new(o, "head", json_string(f->head));
	json_object_set_new(o, "bytes_per_token", json_integer((json_int_t)token_bytes(f)));
	json_object_set_new(o, "obm_bytes", json_integer((json_int_t)f->file_bytes));
	json_object_set_new(o, "context", json_integer((json_int_t)n->s->arch.context));
	json_object_set_new(o, "kv_bytes", json_integer((json_int_t)f->kv_bytes));
	json_object_set_new(o, "tokenizer", vocab_json(n->s));
	json_object_set_new(o, "licence", len ? json_stringn(id, len) : json_null());
	json_object_set_new(o, "scale_groups", json_integer((json_int_t)f->groups));
	json_object_set_new(o, "a8_imposed", json_boolean(n->s->arch.flags & OBM_FLAG_A8_IMPOSED));
	json_object_set_new(o, "master", json_boolean(f->master));
	if (n->s->info)
		put_text(o, "info", n->s->info, strlen(n->s->info));
	if (n->obm) {
		model_hex(n->obm->header->identity, hex);
		json_object_set_new(o, "identity", json_string(hex));
		model_hex(n->obm->header->signer, hex);
		json_object_set_new(o, "signer",
				    is_signed(n->obm) ? json_string(hex) : json_null());
	}
	json_object_set_new(o, "can_serve", json_boolean(yes));
	json_object_set_new(o, "can_serve_text", json_string(text));
	return o;
}

static int print_json(const struct info *n)
{
	json_t *o = info_json(n);
	int err = o ? json_dumpf(o, stdout, JSON_COMPACT) : -1;

	json_decref(o);
	if (err)
		return tool_fail(verb, STATUS_FAILED,
				 "no memory, or standard output cannot be written");
	putchar('\n');
	return STATUS_OK;
}

/* ---- the verb ------------------------------------------------------------------------------ */

int model_info(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		MODEL_OPTIONS,
		{ 0 },
	};
	struct source_options o = { .unchecked = true };
	struct info n = { 0 };
	char why[512];
	bool json = false;
	int c, status = STATUS_OK;

	opterr = 0;
	while (!status && (c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (c == 'h') {
			printf("usage: onebit model info FILE [--json] [OPTION]...\n\n"
			       "What a model in any known format is, and whether this machine can serve it.\n\n"
			       "%s",
			       model_options_help);
			return tool_end(verb, STATUS_OK);
		}
		if (c == 'j')
			json = true;
		else
			status = model_option(verb, c, argv, &o);
	}
	if (status)
		return status;
	if (optind + 1 != argc)
		return tool_usage(verb,
				  optind == argc ? "no model is named" : "one model at a time");
	tool_catch_signals(false);
	n.path = argv[optind];
	n.s = model_open(verb, n.path, &o);
	if (!n.s)
		return STATUS_FAILED;
	if (open_obm(&n, why, sizeof(why))) {
		status = tool_fail(verb, STATUS_FAILED, "%s: %s", n.path, why);
	} else {
		count(&n);
		machine_look(&n.machine);
		if (json)
			status = print_json(&n);
		else
			print_text(&n);
	}
	obm_close(n.obm);
	source_close(n.s);
	return tool_end(verb, status);
}

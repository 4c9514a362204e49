/* SPDX-License-Identifier: MIT */
#ifndef OBM_H
#define OBM_H

/*
 * The model container, `.obm`: what the daemon maps and serves as it lies. Little-endian.
 *
 *      header         struct obm_header, at 0
 *      section table  struct obm_section[n_sections], behind it; zero up to header_bytes
 *      sections       in the table's order, each at a multiple of OBM_ALIGN, zero between them
 *      OBM_CHUNKS     the last section: a SHA-256 for each chunk of what lies between
 *                     header_bytes and it; a chunk has OBM_CHUNK bytes, the last one what is left
 *
 * Three questions, three answers. Is it damaged? Each section has an xxh3 (64 bits) and the header
 * one of its own; obm_open() checks them all at the speed of memory. Which model is it? Its
 * identity, a SHA-256 over the header and table (with header_xxh3, identity, signer and signature
 * zero) followed by the OBM_CHUNKS section; everything in the file but a signature is under it. Who
 * vouches for it? An ed25519 signature over the 32 bytes of the identity, in the header;
 * obm_verify() checks the chunks behind it, in parallel.
 *
 * Sections, by kind, then index, ascending, each behind the other at the next multiple of
 * OBM_ALIGN; one of each unless said:
 *
 *      OBM_ARCH       struct obm_arch
 *      OBM_TENSORS    struct obm_tensor[], by layer, then role, ascending, none twice
 *      OBM_ROPE       double[head_dim / 2]: the angle a position adds, f_i
 *      OBM_TOKENIZER  as engine/vocab.h and tokenizer.h have it
 *      OBM_INFO       UTF-8 lines "key: value": name, origin, licence, converter, notes; may be
 *                     absent
 *      OBM_LICENCE    UTF-8, the licence's text; absent when the source had none
 *      OBM_WEIGHTS    index 0: what belongs to no layer; index 1 + i: layer i's norms and matrices.
 *                     The first tensor lies at the section's start; each tensor is followed by its
 *                     scales, these by the next tensor, at the next multiple of OBM_TENSOR_ALIGN,
 *                     zero between
 *
 * A section or role that this version does not know is refused, not skipped: a model that needs it
 * would be served wrong.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OBM_MAGIC	 "\x89OBM\r\n\x1a\n"
#define OBM_VERSION	 1u
#define OBM_ALIGN	 4096u
#define OBM_TENSOR_ALIGN 256u
#define OBM_CHUNK	 (1u << 20)
#define OBM_CONTRACT	 1u /* the numeric contract that these weights are for */

/* Bounds on what a file may ask for. */
#define OBM_LAYERS_MAX	 512u
#define OBM_SECTIONS_MAX (OBM_LAYERS_MAX + 16u)
#define OBM_TENSORS_MAX	 (OBM_LAYERS_MAX * 16u + 16u)
#define OBM_HEADS_MAX	 512u
#define OBM_HEAD_DIM_MAX 512u
#define OBM_WIDTH_MAX	 (1u << 17) /* hidden; ffn may be PACKED_COLS_MAX */
#define OBM_VOCAB_MAX	 (1u << 20)
#define OBM_CONTEXT_MAX	 (1u << 20)
#define OBM_TEXT_MAX	 (1u << 20) /* bytes of OBM_INFO, of OBM_LICENCE */

struct obm_header {
	uint8_t magic[8];
	uint32_t version;
	uint32_t contract;
	uint64_t file_bytes;
	uint32_t header_bytes; /* a multiple of OBM_ALIGN */
	uint32_t n_sections;
	uint64_t header_xxh3; /* of header_bytes from 0, this field, signer and signature zero */
	uint8_t identity[32];
	uint8_t signer[32]; /* ed25519 public key; zero: unsigned */
	uint8_t signature[64];
	uint64_t reserved[11]; /* zero */
};
_Static_assert(sizeof(struct obm_header) == 256, "part of the format");

#define OBM_ARCH      1u
#define OBM_TENSORS   2u
#define OBM_ROPE      3u
#define OBM_TOKENIZER 4u
#define OBM_INFO      5u
#define OBM_LICENCE   6u
#define OBM_WEIGHTS   7u
#define OBM_CHUNKS    8u
#define OBM_KINDS     9u

struct obm_section {
	uint32_t kind;
	uint32_t index; /* OBM_WEIGHTS; otherwise 0 */
	uint64_t offset;
	uint64_t bytes;
	uint64_t xxh3; /* seed 0 */
};
_Static_assert(sizeof(struct obm_section) == 32, "part of the format");

#define OBM_ACT_RELU2	    1u /* relu(gate)^2 * up */
#define OBM_ACT_SILU	    2u
#define OBM_ACT_COUNT	    3u

/* The activations of linear layers were not int8 in training; serving makes them so. */
#define OBM_FLAG_A8_IMPOSED 1u
#define OBM_FLAGS_ALL	    1u

/* An architecture is these numbers and which tensors are there; no name decides anything. */
struct obm_arch {
	uint32_t layers;
	uint32_t hidden;
	uint32_t ffn;
	uint32_t heads;
	uint32_t kv_heads; /* divides heads */
	uint32_t head_dim; /* even */
	uint32_t vocab;
	uint32_t context;
	uint32_t activation; /* OBM_ACT_* */
	uint32_t flags;	     /* OBM_FLAG_* */
	float rms_eps;
	float rope_theta;	 /* for people; OBM_ROPE is what is used */
	uint64_t n_parameters;	 /* as trained: a tied head counts once */
	uint8_t rope_sha256[32]; /* of the table that OBM_ROPE yields: see kernels/rope.h */
	char name[64];		 /* NUL-terminated, UTF-8 */
	char family[32];	 /* "bitnet-b1.58", "llama", ...: for people */
	uint64_t reserved[8];
};
_Static_assert(sizeof(struct obm_arch) == 248, "part of the format");

/* Roles. Those with (rows x cols) are packed matrices, the others plain float[]. */
#define OBM_EMBED	  0u  /* vocab x hidden; without OBM_HEAD also the head */
#define OBM_HEAD	  1u  /* vocab x hidden */
#define OBM_FINAL_NORM	  2u  /* hidden */
#define OBM_ATTN_NORM	  3u  /* hidden; each layer has it */
#define OBM_ATTN_SUB_NORM 4u  /* heads * head_dim; optional, then in every layer */
#define OBM_FFN_NORM	  5u  /* hidden; each layer has it */
#define OBM_FFN_SUB_NORM  6u  /* ffn; optional, then in every layer */
#define OBM_Q		  7u  /* heads * head_dim x hidden; rows of a head in split-half order */
#define OBM_K		  8u  /* kv_heads * head_dim x hidden; the same */
#define OBM_V		  9u  /* kv_heads * head_dim x hidden */
#define OBM_O		  10u /* hidden x heads * head_dim */
#define OBM_GATE	  11u /* ffn x hidden */
#define OBM_UP		  12u /* ffn x hidden */
#define OBM_DOWN	  13u /* hidden x ffn */
#define OBM_ROLES	  14u
#define OBM_NO_LAYER	  UINT32_MAX

struct obm_tensor {
	uint32_t role;
	uint32_t layer;	 /* OBM_NO_LAYER: -1 sorts it before the layers */
	uint32_t layout; /* PACKED_*; 0: float[] */
	uint32_t rows;	 /* float[]: 1 */
	uint32_t cols;
	uint32_t groups; /* of scales; float[]: 0 */
	uint64_t offset; /* in the file, a multiple of 256, inside the layer's OBM_WEIGHTS */
	uint64_t bytes;	 /* as kernels/packed.h has it */
	uint64_t scales; /* offset of its scales, a multiple of 256; 0: it has none */
	uint64_t reserved[2];
};
_Static_assert(sizeof(struct obm_tensor) == 64, "part of the format");

/* ---- reading --------------------------------------------------------------------------------- */

/*
 * A model, mapped. Immutable; any thread may read. What obm_open() has accepted is consistent:
 * every offset, size and count lies inside the file and within the bounds above, each tensor that
 * the architecture needs is there once with its shape, the float values are finite where a loader
 * could be misled (eps, theta, f_i, norms, scales). The codes' own values are what the checksums
 * say, nothing more; obm_verify() looks at them.
 *
 * header, sections, arch and tensors are copies: what was checked stays as it was. The rest is the
 * mapped file. Who may write to it can change it under us, and who truncates it makes any later
 * touch of what is gone a SIGBUS, which a mapping cannot avoid; while obm_open() and obm_verify()
 * read, they ask for the pages first and turn that into an error.
 */
struct obm {
	const uint8_t *base;
	uint64_t bytes;
	const struct obm_header *header;
	const struct obm_section *sections;
	const struct obm_arch *arch;
	const struct obm_tensor *tensors;
	uint32_t n_tensors;
};

#define OBM_UNCHECKED 1u /* no xxh3 of OBM_WEIGHTS, the others always: for `info` */
#define OBM_FORGET    2u /* pages go once checked, in obm_verify() too: for who serves nothing */

/*
 * Map the file behind fd (the caller keeps fd) and check it. threads >= 1 share the checksums'
 * work. 0, or negative errno with a sentence in why: -EBADMSG damaged, -EPROTO not a model or not
 * consistent, -ENOTSUP a version, contract or section that this program does not know, -EFBIG over
 * a bound, else from the system.
 */
int obm_open(int fd, unsigned flags, unsigned threads, struct obm **out, char *why, size_t why_len);
/* NULL is fine; returns NULL. */
struct obm *obm_close(struct obm *o);

/* NULL when it is absent. bytes may be NULL. */
const void *obm_section(const struct obm *o, uint32_t kind, uint32_t index, uint64_t *bytes);
const struct obm_tensor *obm_tensor(const struct obm *o, uint32_t role, uint32_t layer);
const char *obm_role_name(uint32_t role);
/* The value of a key in OBM_INFO, not NUL-terminated; NULL when it is absent. */
const char *obm_info(const struct obm *o, const char *key, size_t *len);

struct obm_verdict {
	uint64_t bytes; /* hashed */
	double seconds; /* and how long that took */
	unsigned threads;
	bool is_signed; /* the signature was there, and is good */
};

/*
 * Everything: each chunk's SHA-256 against OBM_CHUNKS, the identity, the packed matrices' codes,
 * and a signature when there is one. With a key (32 bytes) the file must be signed by it. As
 * obm_open() returns, besides -EKEYREJECTED: not signed, by another key, or a bad signature.
 */
int obm_verify(const struct obm *o, const uint8_t *key, unsigned threads, struct obm_verdict *out,
	       char *why, size_t why_len);

/*
 * The identity that header, table and OBM_CHUNKS of this file have; the writer's, and the
 * checker's.
 */
void obm_identity(const void *header_page, uint32_t header_bytes, const void *chunks,
		  uint64_t chunks_bytes, uint8_t identity[32]);
/* What header_xxh3 must be. */
uint64_t obm_header_xxh3(const void *header_page, uint32_t header_bytes);

#endif

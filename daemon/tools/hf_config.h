/* SPDX-License-Identifier: MIT */
#ifndef HF_CONFIG_H
#define HF_CONFIG_H

/*
 * What a Hugging Face config.json says of a model, in our terms. What it says and we cannot serve
 * is refused by its key; what is not there and may be missing has the value that transformers gives
 * it.
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "obm.h"

#define HF_CONFIG_MAX (1u << 20) /* bytes of a config.json */

/*
 * How packed weights are meant: by the class that transformers would put in the linear layers'
 * place.
 */
enum hf_linear {
	HF_LINEAR_UNNAMED,
	HF_LINEAR_AUTO, /* "autobitlinear": the product is multiplied by weight_scale */
	HF_LINEAR_BIT,	/* "bitlinear": it is divided by weight_scale */
};

enum hf_mode {
	HF_MODE_PLAIN,	 /* no quantization_config: linear layers use the weights as they are */
	HF_MODE_OFFLINE, /* weights are codes, with a weight_scale */
	HF_MODE_ONLINE,	 /* weights are floats, made ternary by absmean whenever they are used */
};

struct hf_config {
	struct obm_arch arch;	/* all but flags, n_parameters and rope_sha256 */
	char architecture[48];	/* "BitNetForCausalLM", as the file has it */
	bool is_bitnet;		/* BitNet b1.58 and its reproductions; otherwise Llama */
	enum hf_linear linear;
	enum hf_mode mode;
	bool says_tied, is_tied; /* is_tied holds only if says_tied */
	double rope_theta;
	bool has_rope;		/* frequencies of its own, by rope_scaling */
	double rope[OBM_HEAD_DIM_MAX / 2];
};

/* name: the file's, for the sentence. -EPROTO, -ENOTSUP, -EFBIG with the key. */
int hf_config_parse(const void *data, size_t len, const char *name, struct hf_config *c, char *why,
		    size_t why_len);

/*
 * The "license" in the lines between "---" at the beginning of a README.md, its name where that
 * says "other"; printable ASCII. "" when it says none.
 */
void hf_readme_licence(const void *data, size_t len, char *licence, size_t licence_len);

#endif

/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as config.json and as a model's card. What is accepted lies within the container's
 * bounds; what is refused says why; a licence is short printable text.
 */
#include <assert.h>
#include <math.h>
#include <string.h>
#include "hf_config.h"
#include "packed.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct hf_config c;
	const struct obm_arch *a = &c.arch;
	char why[512] = "", licence[64];
	int err;

	hf_readme_licence(data, size, licence, sizeof(licence));
	assert(strlen(licence) < sizeof(licence));
	for (const char *p = licence; *p; p++)
		assert(*p >= 0x20 && *p < 0x7f);

	err = hf_config_parse(data, size, "f", &c, why, sizeof(why));
	assert(err ? err < 0 && *why : !*why);
	if (err)
		return 0;
	assert(a->layers && a->layers <= OBM_LAYERS_MAX && a->hidden && a->hidden <= OBM_WIDTH_MAX);
	assert(a->ffn && a->ffn <= PACKED_COLS_MAX && a->vocab && a->vocab <= OBM_VOCAB_MAX);
	assert(a->kv_heads && a->heads <= OBM_HEADS_MAX && a->heads % a->kv_heads == 0);
	assert(a->head_dim && a->head_dim <= OBM_HEAD_DIM_MAX && a->head_dim % 2 == 0);
	assert(a->context && a->context <= OBM_CONTEXT_MAX && a->rms_eps > 0 && a->rms_eps <= 1);
	assert(a->activation == OBM_ACT_RELU2 || a->activation == OBM_ACT_SILU);
	assert(c.rope_theta > 1 && isfinite(c.rope_theta));
	assert(memchr(a->name, 0, sizeof(a->name)) && memchr(a->family, 0, sizeof(a->family)));
	for (uint32_t i = 0; c.has_rope && i < a->head_dim / 2; i++)
		assert(c.rope[i] > 0 && c.rope[i] <= 1);
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as a tokenizer.json, and as the text of a chat template. What is accepted must be a
 * vocabulary that passes its check; what is refused must say why.
 *
 * A base with all 256 bytes would make each run a long one of jansson's; an SPM vocabulary with an
 * unknown token needs none of them, so two small bases, one of each kind, do.
 */
#include <assert.h>
#include <stdio.h>
#include "source.h"
#include "splice.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ADDED(id, text) "{\"id\":" #id ",\"content\":\"" text "\",\"special\":true}"

static const char spaces[] = "{\"added_tokens\":[" ADDED(0, "<unk>") "," ADDED(1, "<s>") "," ADDED(
	9, "</s>") "],\"normalizer\":"
		   "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"
		   "\"\xe2\x96\x81\"},"
		   "{\"type\":\"Replace\",\"pattern\":{\"String\":\" "
		   "\"},\"content\":\"\xe2\x96\x81\"}]},"
		   "\"pre_tokenizer\":null,\"post_processor\":{\"type\":\"TemplateProcessing\","
		   "\"single\":[{"
		   "\"SpecialToken\":{\"id\":\"<s>\"}},{\"Sequence\":{\"id\":\"A\"}}]},\"model\":{"
		   "\"type\":\"BPE\","
		   "\"unk_token\":\"<unk>\",\"byte_fallback\":true,\"ignore_merges\":false,"
		   "\"vocab\":{\"<unk>\":0,"
		   "\"<s>\":1,\"<0x41>\":2,\"a\":3,\"b\":4,\"ab\":5,\"\xe2\x96\x81\":6,"
		   "\"\xe2\x96\x81"
		   "ab\":7},\"merges\":["
		   "\"a b\",[\"\xe2\x96\x81\",\"ab\"]]}}";

/* Without its 256 bytes: refused at the very end, when all has been read. */
static const char bytes[] =
	"{\"added_tokens\":[" ADDED(3, "<|endoftext|>") ",{\"id\":4,\"content\":\"  \","
	"\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":true,"
	"\"special\":false}],\"normalizer\":{\"type\":\"NFC\"},"
	"\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":["
	"{\"type\":\"Digits\",\"individual_digits\":true},"
	"{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}]},"
	"\"post_processor\":{\"type\":\"ByteLevel\"},"
	"\"model\":{\"type\":\"BPE\",\"dropout\":null,\"end_of_word_suffix\":\"\","
	"\"ignore_merges\":true,\"vocab\":{\"a\":0,\"\xc4\xa0\":1,\"\xc4\xa0" "a\":2},"
	"\"merges\":[\"\xc4\xa0 a\"]}}";

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static bool tried;
	struct vocab *v = NULL;
	char why[256] = "";
	struct splice s;
	int ret;

	if (!tried) {
		tried = true;
		ret = vocab_read_json(spaces, sizeof(spaces) - 1, "f", &v, why, sizeof(why));
		assert(!ret);
		v = vocab_free(v);
		ret = vocab_read_json(bytes, sizeof(bytes) - 1, "f", &v, why, sizeof(why));
		assert(ret && strstr(why, "no token stands for byte"));
	}
	(void)vocab_chat_of((const char *)data, size);
	if (size && data[0] & 2)
		s = splice(data, size, bytes, sizeof(bytes) - 1);
	else
		s = splice(data, size, spaces, sizeof(spaces) - 1);
	ret = vocab_read_json(s.data, s.size, "f", &v, why, sizeof(why));
	assert(ret ? ret < 0 && *why && !v : v && !vocab_check(v, v->n_tokens, why, sizeof(why)));
	vocab_free(v);
	free(s.data);
	return 0;
}

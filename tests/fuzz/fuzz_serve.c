/* SPDX-License-Identifier: MIT */
/*
 * The executor's side of its link: commands in any order, blocks of any bytes, journals that hold anything,
 * engines that fail. Whatever comes, each request ends once, events keep to the contract of executor.h
 * (serve_rig.h holds them to it, in the broker's place), and nothing outside a block is read.
 *
 * An input is a row of moves. A byte says which, the next the slot and how; a RUN takes further bytes for
 * the parameters and the block.
 */
#include <stdbool.h>
#include <stdint.h>
#include "executor.c"
#include "records.c"
#include "requests.c"
#include "serve.c"
#include "sessions.c"
#include "tell.c"
#include "serve_rig.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TURNS_MAX = 5000, MOVES_MAX = 24 };

struct input {
	const uint8_t *p;
	size_t left;
};

static uint8_t byte(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->p++;
}

static size_t bytes(struct input *in, void *to, size_t len)
{
	if (len > in->left)
		len = in->left;
	memcpy(to, in->p, len);
	in->p += len;
	in->left -= len;
	return len;
}

/* A good block: the segment's text is what the input says; then some bytes of it all are overwritten. */
static void run(struct rig *r, struct input *in, uint8_t how)
{
	static const uint8_t ops[] = { ONEBIT_OP_GENERATE, ONEBIT_OP_TOKENIZE, ONEBIT_OP_DETOKENIZE,
				       ONEBIT_OP_SCORE, ONEBIT_OP_EMBED };
	_Alignas(8) static uint8_t block[512];
	struct onebit_params p = { .size = sizeof(p), .segments_off = 168, .n_segments = 1 };
	struct onebit_segment s = {
		.role = how & 1 ? ONEBIT_ROLE_USER : ONEBIT_ROLE_RAW, .off = 256, .kind = how >> 1 & 1,
	};
	uint8_t op = ops[(how >> 2) % sizeof(ops)], changes = byte(in), at;
	struct journal_entry *j;
	uint32_t slot = how % 16;

	if (r->slots[slot].running)
		return;
	memset(block, 0, sizeof(block));
	s.len = byte(in) & ~3u;
	s.len = (uint32_t)bytes(in, block + 256, s.len) & ~3u;
	for (uint32_t i = 0; s.kind == ONEBIT_SEG_TOKENS && i < s.len; i += 4)
		memset(block + 256 + i + 1, 0, 3); /* ids of bytes, mostly */
	p.n_choices = (uint16_t)(op == ONEBIT_OP_GENERATE ? 1 + byte(in) % ONEBIT_CHOICES_MAX : 1);
	p.max_tokens = 1 + byte(in);
	memcpy(block + 168, &s, sizeof(s));
	for (uint8_t i = 0; i < changes % 8; i++) {
		at = byte(in);
		if (at >= 74 && at < 152) /* behind what the entry's size follows from */
			((uint8_t *)&p)[at] = byte(in);
		else
			block[at] = byte(in);
	}
	if (changes & 64)
		p.flags = byte(in);
	if (changes & 128)
		p.session = byte(in);
	j = rig_entry(r, op, &p, block, (uint32_t)sizeof(block) - (changes & 8 ? byte(in) * 2u : 0));
	if (changes & 16 && j->tokens_cap) {
		uint8_t *tokens = (uint8_t *)j + j->tokens_off;

		r->foreign = true;
		for (uint32_t c = 0; c < j->params.n_choices && c < ONEBIT_CHOICES_MAX; c++) {
			j->done[c].n = byte(in) % j->tokens_cap;
			j->done[c].finish = byte(in) % 16 == 0 ? ONEBIT_FINISH_STOP : 0;
			for (uint32_t i = 0; i < j->done[c].n; i++)
				tokens[((size_t)c * j->tokens_cap + i) * 4] = (uint8_t)i;
		}
		if (changes & 32)
			tokens[1] = byte(in);
	}
	rig_run(r, slot, j);
}

static void move(struct rig *r, struct input *in)
{
	uint8_t what = byte(in), how = byte(in);

	switch (what % 8) {
	case 0:
	case 1:
	case 2:
		run(r, in, how);
		break;
	case 3:
		rig_command(r, (struct exec_cmd){
			.kind = EXEC_CMD_CANCEL, .slot = how % 16, .tag = r->slots[how % 16].tag - (how >> 7) });
		break;
	case 4:
		r->engine.pace = 1 + how % 64;
		r->engine.n_waits = how >> 6;
		break;
	case 5:
		r->engine.start_err = how & 1 ? -ENOBUFS : how & 2 ? -EMSGSIZE : 0;
		r->engine.end_err = how & 4 ? -EDOM : how & 8 ? -ENOBUFS : 0;
		break;
	case 6:
		r->stalled = how & 1;
		break;
	default:
		for (unsigned i = 0; i < how % 4u + 1; i++)
			assert(serve_turn(r->serve, r->why, sizeof(r->why)) >= 0);
		if (!r->stalled)
			rig_drain(r);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = { data, size };
	static struct rig *r;
	int turns = 0;

	/* One for all inputs: its rings run on, and none finds a slot taken. */
	if (!r)
		r = rig_new();
	r->foreign = r->stalled = false;
	r->engine.pace = 3;
	r->engine.n_waits = 0;
	r->engine.start_err = r->engine.end_err = 0;
	for (int i = 0; i < MOVES_MAX && in.left; i++)
		move(r, &in);
	r->stalled = false;
	while (serve_turn(r->serve, r->why, sizeof(r->why)) == SERVE_MORE) {
		rig_drain(r);
		turns++;
		assert(turns <= TURNS_MAX);
	}
	rig_drain(r);
	for (uint32_t i = 0; i < 16; i++)
		assert(!r->slots[i].running);
	return 0;
}

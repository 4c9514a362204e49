/* SPDX-License-Identifier: MIT */
/*
 * The loopback executor: see loopback.h for what it promises.
 *
 * Token ids below 256 are bytes of text, the others are words; the low eight bits of a word's id
 * choose it, higher ones its punctuation. Bit 0 of a key says that the stream ignores its natural
 * end, so that a length follows from the key alone.
 *
 * A run keeps nothing that its journal entry does not give back: after a death the next executor
 * starts from done[] and the same tokens follow, because each depends on key, choice and index only.
 */
#include "loopback.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB        65536u
#define CONTEXT      (1u << 20)
#define RETRY_NS     50000u /* when the broker has left no room for events */
#define DATA_STEP    4096u  /* tokens of TOKENIZE and DETOKENIZE in one event */
#define SLOW_FACTOR  10u
#define STATS_EVERY  32u    /* requests between two KV and TIMING events */
#define PARAM_FLAGS  (ONEBIT_PARAM_IGNORE_EOS | ONEBIT_PARAM_NO_CACHE | \
		      ONEBIT_PARAM_LOGPROBS | ONEBIT_PARAM_NO_REPLAY)
#define OPS          (1ull << ONEBIT_OP_GENERATE | 1ull << ONEBIT_OP_TOKENIZE | \
		      1ull << ONEBIT_OP_DETOKENIZE)

static const char words[256][8] = {
	"a", "able", "about", "above", "after", "again", "air", "all", "alone", "along", "also",
	"always", "an", "and", "animal", "answer", "apple", "arm", "around", "as", "ask", "at",
	"away", "back", "bag", "ball", "bank", "bath", "be", "bear", "bed", "bee", "before", "begin",
	"bell", "best", "better", "big", "bird", "black", "blue", "boat", "book", "box", "boy",
	"branch", "bread", "bridge", "bright", "bring", "brother", "brown", "build", "but", "butter",
	"by", "cake", "call", "can", "candle", "car", "care", "cat", "chair", "child", "city",
	"clean", "clear", "clock", "cloud", "coat", "cold", "come", "cook", "corn", "could", "cow",
	"cup", "dance", "dark", "day", "deep", "deer", "did", "dinner", "do", "dog", "door", "down",
	"dream", "dress", "dry", "duck", "each", "ear", "early", "earth", "east", "eat", "egg",
	"eight", "end", "evening", "every", "eye", "face", "fall", "family", "far", "farm", "fast",
	"father", "feel", "feet", "field", "find", "fine", "fire", "first", "fish", "five", "floor",
	"flower", "fly", "food", "for", "forest", "four", "fox", "friend", "frog", "from", "full",
	"garden", "gave", "girl", "give", "glad", "glass", "go", "gold", "good", "grass", "great",
	"green", "ground", "grow", "hand", "happy", "hat", "have", "he", "head", "hear", "heart",
	"help", "hen", "her", "here", "high", "hill", "him", "his", "home", "honey", "horse",
	"house", "how", "ice", "if", "in", "into", "island", "it", "jump", "just", "keep", "key",
	"kind", "king", "kitchen", "kite", "know", "lake", "lamp", "land", "large", "last", "laugh",
	"leaf", "learn", "left", "letter", "light", "like", "lion", "listen", "little", "live",
	"long", "look", "love", "made", "make", "many", "map", "may", "meet", "milk", "moon", "more",
	"morning", "mother", "mouse", "music", "my", "name", "near", "nest", "never", "new", "night",
	"no", "north", "not", "now", "ocean", "of", "old", "on", "one", "open", "or", "our", "out",
	"over", "paper", "park", "path", "picture", "pony", "rain", "river", "road", "room", "sea",
	"seven", "she", "sing", "sky", "snow", "song", "star", "stone", "story", "sun",
};

/* ---- the stream ---------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t mix_number(uint64_t h, uint64_t v)
{
	return mix(h + 0x9e3779b97f4a7c15u + mix(v + 0x632be59bd9b4e019u));
}

/* The length goes first, so that two neighbours never run into one. */
static uint64_t mix_bytes(uint64_t h, const void *data, uint64_t len)
{
	const uint8_t *p = data;
	uint64_t word;

	h = mix_number(h, len);
	for (; len >= 8; len -= 8, p += 8) {
		memcpy(&word, p, 8);
		h = mix_number(h, word);
	}
	for (word = 0; len; len--)
		word = word << 8 | *p++;
	return mix_number(h, word);
}

static bool lies_within(uint32_t block_len, uint64_t off, uint64_t len)
{
	return off <= block_len && len <= block_len - off;
}

/* The entry of a table, copied out: the block of a client need not be aligned for us. */
static bool table_entry(const void *block, uint32_t block_len, uint32_t off, uint32_t i,
			void *entry, size_t size)
{
	uint64_t at = off + (uint64_t)i * size;

	if (!lies_within(block_len, at, size))
		return false;
	memcpy(entry, (const uint8_t *)block + at, size);
	return true;
}

static uint64_t mix_run(uint64_t h, const void *block, uint32_t block_len, uint32_t off,
			uint64_t len)
{
	if (!lies_within(block_len, off, len))
		return mix_number(h, 0); /* refused later; here it only must not be read */
	return mix_bytes(h, (const uint8_t *)block + off, len);
}

uint64_t loopback_key(const uint8_t model_id[32], const struct onebit_params *p,
		      const void *block, uint32_t block_len)
{
	struct onebit_segment seg;
	struct onebit_span stop;
	uint64_t h = mix_bytes(0, model_id, 32);
	uint32_t i;

	h = mix_number(h, p->flags);
	h = mix_number(h, p->seed);
	h = mix_number(h, p->min_tokens);
	/* Zero and the default that it stands for are the same request. */
	h = mix_number(h, p->n_choices ? p->n_choices : 1);
	h = mix_number(h, p->top_logprobs);
	h = mix_number(h, p->top_k);
	h = mix_number(h, p->temperature_micro);
	h = mix_number(h, p->top_p_micro ? p->top_p_micro : 1000000);
	h = mix_number(h, p->min_p_micro);
	h = mix_number(h, p->repetition_micro ? p->repetition_micro : 1000000);
	h = mix_number(h, (uint32_t)p->frequency_micro);
	h = mix_number(h, (uint32_t)p->presence_micro);
	h = mix_number(h, p->repetition_last_n);
	h = mix_number(h, p->pooling);

	h = mix_number(h, p->n_segments);
	for (i = 0; i < p->n_segments; i++) {
		if (!table_entry(block, block_len, p->segments_off, i, &seg, sizeof(seg)))
			break;
		h = mix_number(h, (uint64_t)seg.role << 24 | (uint64_t)seg.kind << 16 | seg.flags);
		h = mix_run(h, block, block_len, seg.off, seg.len);
	}
	h = mix_number(h, p->n_stops);
	for (i = 0; i < p->n_stops; i++) {
		if (!table_entry(block, block_len, p->stops_off, i, &stop, sizeof(stop)))
			break;
		h = mix_run(h, block, block_len, stop.off, stop.len);
	}
	h = mix_run(h, block, block_len, p->bias_off, (uint64_t)p->n_bias * sizeof(struct onebit_bias));
	h = mix_run(h, block, block_len, p->grammar_off, p->grammar_len);
	return (h & ~1ull) | ((p->flags & ONEBIT_PARAM_IGNORE_EOS) != 0);
}

static uint32_t token_text(uint32_t token, char text[16])
{
	static const char *const ends[16] = { [3] = ", ", [9] = ". ", [14] = ", " };
	const char *end = ends[token >> 8 & 15];
	uint32_t len;

	if (token < 256) {
		text[0] = (char)token;
		return 1;
	}
	len = (uint32_t)strnlen(words[token & 255], sizeof(words[0]));
	memcpy(text, words[token & 255], len);
	if (end && len < 7)
		text[len++] = end[0];
	text[len++] = ' ';
	return len;
}

uint32_t loopback_token(uint64_t key, uint32_t choice, uint32_t index, char text[16],
			uint32_t *text_len)
{
	uint64_t h = mix_number(key, (uint64_t)choice << 32 | index);
	uint32_t token = 256 + (uint32_t)(h % (VOCAB - 256));

	*text_len = token_text(token, text);
	return token;
}

uint32_t loopback_length(uint64_t key, uint32_t choice, uint32_t max_tokens, uint8_t *finish)
{
	uint32_t natural = 8 + (uint32_t)(mix_number(key ^ 0x6c656e, choice) % 120);

	if ((key & 1) || natural > max_tokens) {
		*finish = ONEBIT_FINISH_LENGTH;
		return max_tokens;
	}
	*finish = ONEBIT_FINISH_STOP;
	return natural;
}

/* ---- one run ------------------------------------------------------------------------------- */

enum directive {
	D_NONE, D_EXIT, D_ABORT, D_KILL, D_HANG, D_WRONG, D_GAP, D_DOUBLE, D_SLOT, D_TAG, D_CHOICE,
	D_KIND, D_DATA, D_LENGTH, D_FINISH, D_TEXT, D_FAIL, D_SLOW, D_COUNT
};
static const char *const directive_name[D_COUNT] = {
	"", "exit", "abort", "kill", "hang", "wrong", "gap", "double", "slot", "tag", "choice",
	"kind", "data", "length", "finish", "text", "fail", "slow",
};

struct run {
	bool on, silent; /* silent: it has lied and waits to be found out */
	bool ending;     /* only END is left to be told */
	uint32_t tag, op;
	const struct journal_entry *entry;
	const uint8_t *block;
	uint64_t key, due;
	uint32_t n_choices, prompt_tokens;
	enum directive directive;
	uint32_t strike; /* index */
	uint32_t at[ONEBIT_CHOICES_MAX], length[ONEBIT_CHOICES_MAX];
	uint8_t finish[ONEBIT_CHOICES_MAX];
	bool check[ONEBIT_CHOICES_MAX]; /* REPLAYED is still to be told */
	bool done[ONEBIT_CHOICES_MAX];
	uint32_t segment, offset; /* TOKENIZE, DETOKENIZE: how far it got */
	uint32_t res;
	struct exec_event end;
};

struct loopback {
	struct executor *e;
	struct loopback_options o;
	void (*fault)(void *ctx, enum loopback_fault f);
	void *ctx;
	bool dead, greeted;
	uint64_t tokens; /* of all requests */
	uint32_t ended, told; /* requests; those of the last statistics */
	uint32_t first;  /* slot to begin the next step with */
	struct run runs[EXEC_SLOTS_MAX];
	union {
		uint8_t bytes[DATA_STEP * 4];
		struct onebit_record record;
	} out;
};

struct loopback *loopback_new(struct executor *e, const struct loopback_options *o,
			      void (*fault)(void *ctx, enum loopback_fault f), void *ctx)
{
	struct loopback *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->e = e;
	l->o = *o;
	if (l->o.slots < 1 || l->o.slots > EXEC_SLOTS_MAX)
		l->o.slots = 16;
	l->fault = fault;
	l->ctx = ctx;
	return l;
}

struct loopback *loopback_free(struct loopback *l)
{
	free(l);
	return NULL;
}

static void strike(struct loopback *l, enum loopback_fault f)
{
	l->dead = true;
	l->fault(l->ctx, f);
}

static struct exec_event event_of(const struct loopback *l, const struct run *r, uint32_t kind)
{
	return (struct exec_event){ .kind = kind, .slot = (uint32_t)(r - l->runs), .tag = r->tag };
}

static void end_with(struct loopback *l, struct run *r, uint16_t code, uint64_t detail)
{
	r->ending = true;
	r->end = event_of(l, r, EXEC_EV_END);
	r->end.code = code;
	r->end.detail = detail;
	r->end.prompt_tokens = r->prompt_tokens;
	if (code == ONEBIT_E_OK && r->op != ONEBIT_OP_GENERATE)
		r->end.res = (int32_t)r->res;
}

/* Bytes of valid UTF-8 at the start of p. */
static uint32_t utf8_valid(const uint8_t *p, uint32_t len)
{
	uint32_t i = 0, n, k, c;

	while (i < len) {
		c = p[i];
		n = c < 0x80 ? 0 : c >= 0xc2 && c < 0xe0 ? 1 : (c & 0xf0) == 0xe0 ? 2 :
		    c >= 0xf0 && c < 0xf5 ? 3 : 4;
		if (n == 4 || len - i <= n)
			break;
		for (k = 1; k <= n; k++)
			if ((p[i + k] & 0xc0) != 0x80)
				return i;
		/* Overlong forms, surrogates and what lies beyond the last code point. */
		if ((c == 0xe0 && p[i + 1] < 0xa0) || (c == 0xed && p[i + 1] > 0x9f) ||
		    (c == 0xf0 && p[i + 1] < 0x90) || (c == 0xf4 && p[i + 1] > 0x8f))
			break;
		i += n + 1;
	}
	return i;
}

/* The prompt's tokens, or -1 and *bad: the byte of the block at which it is not valid. */
static int64_t count_prompt(const struct run *r, uint64_t *bad)
{
	const struct onebit_params *p = &r->entry->params;
	uint32_t i, k, ok, id, len = r->entry->block_len;
	struct onebit_segment s;
	int64_t n = 0;

	for (i = 0; i < p->n_segments; i++) {
		*bad = p->segments_off + (uint64_t)i * sizeof(s);
		if (!table_entry(r->block, len, p->segments_off, i, &s, sizeof(s)) ||
		    s.role >= ONEBIT_ROLE_COUNT || s.kind >= ONEBIT_SEG_KIND_COUNT || s.reserved ||
		    !lies_within(len, s.off, s.len))
			return -1;
		if (s.kind == ONEBIT_SEG_TEXT) {
			ok = utf8_valid(r->block + s.off, s.len);
			*bad = (uint64_t)s.off + ok;
			if (ok != s.len)
				return -1;
			n += s.len;
			continue;
		}
		if (s.len % 4)
			return -1;
		for (k = 0; k < s.len; k += 4) {
			memcpy(&id, r->block + s.off + k, 4);
			*bad = (uint64_t)s.off + k;
			if (id >= VOCAB)
				return -1;
		}
		n += s.len / 4;
	}
	return n;
}

static void read_directive(struct run *r)
{
	const struct onebit_params *p = &r->entry->params;
	const char *t, *stop;
	struct onebit_segment s;
	size_t n, len;
	int i;

	r->directive = D_NONE;
	r->strike = 0;
	if (!p->n_segments ||
	    !table_entry(r->block, r->entry->block_len, p->segments_off, 0, &s, sizeof(s)) ||
	    s.kind != ONEBIT_SEG_TEXT || !s.len || r->block[s.off] != '!')
		return;
	t = (const char *)r->block + s.off + 1;
	stop = t + s.len - 1;
	for (n = 0; t + n < stop && t[n] != '@' && t[n] != ' '; n++)
		;
	for (i = 1; i < D_COUNT; i++) {
		len = strlen(directive_name[i]);
		if (n < len || memcmp(t, directive_name[i], len))
			continue;
		if (n == len && r->entry->attempt && i != D_WRONG)
			return; /* it struck when it was new */
		if (n == len || (n == len + 7 && !memcmp(t + len, "-always", 7)))
			break;
	}
	if (i == D_COUNT)
		return;
	r->directive = (enum directive)i;
	if (t + n < stop && t[n] == '@')
		for (t += n + 1; t < stop && *t >= '0' && *t <= '9' && r->strike < CONTEXT; t++)
			r->strike = r->strike * 10 + (uint32_t)(*t - '0');
}

static void start(struct loopback *l, const struct exec_cmd *cmd, uint64_t now_ns)
{
	struct run *r = &l->runs[cmd->slot];
	const struct journal_entry *j = executor_entry(l->e, cmd);
	uint64_t bad = 0;
	int64_t n;
	uint32_t c;

	memset(r, 0, sizeof(*r));
	r->on = true;
	r->tag = cmd->tag;
	r->op = cmd->op;
	r->entry = j;
	r->block = (const uint8_t *)j + j->block_off;
	r->due = now_ns;
	n = count_prompt(r, &bad);
	if (n < 0) {
		end_with(l, r, ONEBIT_E_BAD_PROMPT, bad);
		return;
	}
	r->prompt_tokens = (uint32_t)n;
	if (n > CONTEXT) {
		end_with(l, r, ONEBIT_E_CONTEXT_FULL, CONTEXT);
		return;
	}
	read_directive(r);
	if (r->op != ONEBIT_OP_GENERATE)
		return;
	r->key = loopback_key(l->o.model_id, &j->params, r->block, j->block_len);
	r->n_choices = j->params.n_choices ? j->params.n_choices : 1;
	for (c = 0; c < r->n_choices; c++) {
		r->at[c] = j->done[c].n;
		r->done[c] = j->done[c].finish != ONEBIT_FINISH_NONE;
		r->check[c] = r->at[c] && !r->done[c];
		r->length[c] = loopback_length(r->key, c, j->params.max_tokens, &r->finish[c]);
	}
}

static void take_commands(struct loopback *l, uint64_t now_ns, int *stop)
{
	struct exec_cmd cmd;
	struct run *r;
	uint32_t c;
	uint64_t n = 0;

	while (executor_next(l->e, &cmd)) {
		if (cmd.kind == EXEC_CMD_STOP) {
			*stop = 1;
			continue;
		}
		assert(cmd.slot < l->o.slots);
		r = &l->runs[cmd.slot];
		if (cmd.kind == EXEC_CMD_RUN) {
			assert(!r->on);
			start(l, &cmd, now_ns);
		} else if (r->on && r->tag == cmd.tag && !r->ending && !r->silent) {
			/* Otherwise END is on its way already. */
			for (c = 0; c < r->n_choices; c++)
				n += r->at[c];
			end_with(l, r, ONEBIT_E_CANCELLED, n);
		}
	}
}

/* ---- what it says -------------------------------------------------------------------------- */

static uint32_t made_up_logprob(uint64_t h)
{
	float f = -(float)(h % 10000) / 1000.0f;
	uint32_t bits;

	memcpy(&bits, &f, 4);
	return bits;
}

/* One record in l->out; its bytes. */
static uint32_t make_record(struct loopback *l, const struct run *r, uint32_t choice,
			    uint32_t index)
{
	const struct onebit_params *p = &r->entry->params;
	struct onebit_record *rec = &l->out.record;
	uint64_t h = mix_number(r->key ^ 0x6c6f67, (uint64_t)choice << 32 | index);
	uint32_t i, len, at, n_top = p->top_logprobs;
	struct onebit_top top;
	char text[16];

	memset(rec, 0, sizeof(*rec));
	rec->token = loopback_token(r->key, choice, index, text, &len);
	if (n_top > ONEBIT_TOP_LOGPROBS_MAX)
		n_top = ONEBIT_TOP_LOGPROBS_MAX;
	if (!(p->flags & ONEBIT_PARAM_LOGPROBS))
		n_top = 0;
	else {
		rec->flags = ONEBIT_REC_LOGPROB;
		rec->logprob = made_up_logprob(h);
	}
	rec->n_top = (uint16_t)n_top;
	rec->text_len = (uint16_t)len;
	at = (uint32_t)(sizeof(*rec) + n_top * sizeof(top));
	memcpy(l->out.bytes + at, text, len);
	at += len;
	for (i = 0; i < n_top; i++) {
		memset(&top, 0, sizeof(top));
		top.token = 256 + (uint32_t)((rec->token - 256 + i) % (VOCAB - 256));
		top.logprob = made_up_logprob(h + i);
		top.text_off = (uint16_t)at;
		top.text_len = (uint16_t)token_text(top.token, text);
		memcpy(l->out.bytes + at, text, top.text_len);
		at += top.text_len;
		memcpy(l->out.bytes + sizeof(*rec) + i * sizeof(top), &top, sizeof(top));
	}
	while (at % 8)
		l->out.bytes[at++] = 0;
	rec->size = (uint16_t)at;
	return at;
}

/* Exactly one thing is wrong with ev or its data; the broker must notice. */
static int emit_lie(struct loopback *l, struct run *r, struct exec_event ev)
{
	struct exec_event *last;
	int err;

	switch (r->directive) {
	case D_GAP:    ev.first++; break;
	case D_DOUBLE: ev.first--; break;
	case D_SLOT:   ev.slot += EXEC_SLOTS_MAX; break;
	case D_TAG:    ev.tag++; break;
	case D_CHOICE: ev.choice = (uint16_t)r->n_choices; break;
	case D_KIND:   ev.kind = 77; break;
	case D_LENGTH: ev.n++; break;
	case D_FINISH: ev.finish = ONEBIT_FINISH_COUNT; break;
	case D_TEXT:   l->out.record.text_len = l->out.record.size; break;
	default:       break;
	}
	err = executor_emit(l->e, &ev, l->out.bytes);
	if (err)
		return err;
	r->silent = true;
	if (r->directive == D_DATA) {
		/* executor_emit() would not lie about the place; it is not published yet. */
		last = &l->e->own->events[(l->e->event_tail - 1) & (EXEC_EVENTS - 1)];
		last->data_off = EXEC_DATA_BYTES - 8;
	}
	return 0;
}

/* The directive's hour has come. Returns 1 when there is nothing more to do in this step. */
static int obey(struct loopback *l, struct run *r)
{
	switch (r->directive) {
	case D_EXIT:  strike(l, LOOPBACK_EXIT); return 1;
	case D_ABORT: strike(l, LOOPBACK_ABORT); return 1;
	case D_KILL:  strike(l, LOOPBACK_KILL); return 1;
	case D_HANG:  strike(l, LOOPBACK_HANG); return 1;
	case D_FAIL:  end_with(l, r, ONEBIT_E_EXECUTOR, 1); return 1;
	default:      return 0;
	}
}

static bool is_lie(enum directive d)
{
	return d >= D_GAP && d <= D_TEXT;
}

static int emit_replayed(struct loopback *l, struct run *r, uint32_t c)
{
	struct exec_event ev = event_of(l, r, EXEC_EV_REPLAYED);
	uint32_t len;
	char text[16];
	int err;

	ev.choice = (uint16_t)c;
	ev.first = r->at[c] - 1;
	ev.detail = loopback_token(r->key, c, ev.first, text, &len);
	if (r->directive == D_WRONG && r->entry->attempt)
		ev.detail ^= 1;
	err = executor_emit(l->e, &ev, NULL);
	if (!err)
		r->check[c] = false;
	return err;
}

/* One token of one choice. Some ends come with the last token, some after it. */
static int emit_token(struct loopback *l, struct run *r, uint32_t c)
{
	bool late = mix_number(r->key, c) >> 63;
	struct exec_event ev = event_of(l, r, EXEC_EV_TOKENS);
	int err;

	ev.choice = (uint16_t)c;
	ev.first = r->at[c];
	ev.prompt_tokens = r->prompt_tokens;
	if (r->at[c] < r->length[c]) {
		ev.n = 1;
		ev.data_len = make_record(l, r, c, r->at[c]);
	}
	if (r->at[c] >= r->length[c] || (r->at[c] + 1 == r->length[c] && !late))
		ev.finish = r->finish[c];
	if (c == 0 && ev.n && r->at[c] >= r->strike && is_lie(r->directive))
		return emit_lie(l, r, ev);
	err = executor_emit(l->e, &ev, l->out.bytes);
	if (err)
		return err;
	r->at[c] += ev.n;
	r->done[c] = ev.finish != ONEBIT_FINISH_NONE;
	l->tokens += ev.n;
	if (l->o.kill_every && ev.n && l->tokens % l->o.kill_every == 0)
		strike(l, LOOPBACK_KILL);
	return 0;
}

static int step_generate(struct loopback *l, struct run *r)
{
	uint32_t c, left = 0;
	int err;

	if (r->at[0] >= r->strike && !r->done[0] && !is_lie(r->directive) && obey(l, r))
		return 0;
	for (c = 0; c < r->n_choices && !l->dead && !r->silent; c++) {
		if (r->done[c])
			continue;
		err = r->check[c] ? emit_replayed(l, r, c) : emit_token(l, r, c);
		if (err)
			return err;
		left += !r->done[c];
	}
	if (!left && !l->dead && !r->silent)
		end_with(l, r, ONEBIT_E_OK, 0);
	return 0;
}

/* TOKENIZE gives a byte's value as its id, four bytes each; DETOKENIZE gives tokens their text. */
static int step_bytes(struct loopback *l, struct run *r)
{
	const struct onebit_params *p = &r->entry->params;
	struct exec_event ev = event_of(l, r, EXEC_EV_DATA);
	uint32_t id, segment = r->segment, offset = r->offset;
	struct onebit_segment s;
	char text[16];
	int err;

	if (!r->res && !segment && !offset && obey(l, r))
		return 0;
	while (segment < p->n_segments && ev.data_len < sizeof(l->out) - 16) {
		if (!table_entry(r->block, r->entry->block_len, p->segments_off, segment, &s,
				 sizeof(s)))
			break;
		if (offset >= s.len) {
			segment++;
			offset = 0;
			continue;
		}
		if (s.kind == ONEBIT_SEG_TEXT) {
			id = r->block[s.off + offset];
			offset++;
		} else {
			memcpy(&id, r->block + s.off + offset, 4);
			offset += 4;
		}
		if (r->op == ONEBIT_OP_TOKENIZE) {
			memcpy(l->out.bytes + ev.data_len, &id, 4);
			ev.data_len += 4;
		} else {
			uint32_t len = token_text(id, text);

			memcpy(l->out.bytes + ev.data_len, text, len);
			ev.data_len += len;
		}
	}
	if (!ev.data_len) {
		end_with(l, r, ONEBIT_E_OK, 0);
		return 0;
	}
	err = executor_emit(l->e, &ev, l->out.bytes);
	if (err)
		return err;
	r->segment = segment;
	r->offset = offset;
	r->res += ev.data_len;
	return 0;
}

static int step_run(struct loopback *l, struct run *r, uint64_t now_ns)
{
	int err = 0;

	if (!r->ending)
		err = r->op == ONEBIT_OP_GENERATE ? step_generate(l, r) : step_bytes(l, r);
	if (r->ending && !err && !l->dead) {
		err = executor_emit(l->e, &r->end, NULL);
		if (!err) {
			r->on = false;
			l->ended++;
		}
	}
	if (!err)
		r->due = now_ns + l->o.delay_ns * (r->directive == D_SLOW ? SLOW_FACTOR : 1);
	return err;
}

static int greet(struct loopback *l)
{
	struct exec_event ev = { .kind = EXEC_EV_HELLO, .data_len = sizeof(struct exec_hello) };
	struct exec_hello h = {
		.version = EXEC_VERSION, .slots = l->o.slots, .ops = OPS, .param_flags = PARAM_FLAGS,
		.model = { .size = sizeof(h.model), .contract = 1, .vocab = VOCAB,
			   .context = CONTEXT, .layers = 1, .width = 1, .slots = l->o.slots,
			   .backend = "loopback", .chat_template = "none" },
	};

	memcpy(h.model.model_id, l->o.model_id, 32);
	memcpy(h.model.name, l->o.name, sizeof(h.model.name) - 1);
	return executor_emit(l->e, &ev, &h);
}

/* Numbers for those who ask; there is no cache and no clock behind them. */
static void tell_statistics(struct loopback *l)
{
	struct exec_event ev = { .kind = EXEC_EV_KV, .data_len = sizeof(struct onebit_kv) };
	struct onebit_kv kv = { .size = sizeof(kv), .page_tokens = 64 };
	struct onebit_timing t = { .name = "token", .count = l->tokens };

	if (executor_emit(l->e, &ev, &kv))
		return;
	ev = (struct exec_event){ .kind = EXEC_EV_TIMING, .n = 1, .data_len = sizeof(t) };
	executor_emit(l->e, &ev, &t);
	l->told = l->ended;
}

uint64_t loopback_step(struct loopback *l, uint64_t now_ns, int *stop)
{
	uint64_t next = UINT64_MAX;
	struct run *r;
	uint32_t i, slot;

	*stop = 0;
	if (l->dead)
		return UINT64_MAX;
	if (!l->greeted) {
		if (greet(l))
			return now_ns + RETRY_NS;
		l->greeted = true;
		tell_statistics(l);
	}
	take_commands(l, now_ns, stop);
	for (i = 0; i < l->o.slots; i++) {
		slot = (l->first + i) % l->o.slots;
		r = &l->runs[slot];
		if (!r->on || r->silent)
			continue;
		/* What was cancelled or refused ends at once, whatever its pace. */
		if ((r->due <= now_ns || r->ending) && step_run(l, r, now_ns)) {
			/* No room: begin here next time, or the low slots would take it all. */
			l->first = slot;
			executor_kick(l->e);
			return now_ns + RETRY_NS;
		}
		if (l->dead)
			return UINT64_MAX; /* what it said in this step nobody hears */
		if (r->on && r->due < next)
			next = r->due;
	}
	if (l->ended - l->told >= STATS_EVERY)
		tell_statistics(l);
	executor_kick(l->e);
	return next;
}

/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef ONEBIT_H
#define ONEBIT_H

/*
 * The contract between onebitd and its clients.
 *
 * A client attaches once (a hello and a welcome over a SOCK_SEQPACKET socket, or the same two
 * messages over the char device) and is given two shared memory regions and a doorbell:
 *
 *   CLIENT region  written by the client: its indices, the submission queue (SQ), the arena
 *                  in which it lays out what it submits. The daemon reads it, once, and copies.
 *   DAEMON region  written by the daemon, read-only for the client: its indices, the completion
 *                  queue (CQ), and the out area in which answers appear.
 *
 * A client submits an SQE and gets exactly one terminal CQE for it (ONEBIT_CQE_MORE not set), and
 * before that any number of progress CQEs (ONEBIT_CQE_MORE set). A bad SQE gets an error
 * completion; only broken indices detach a client.
 *
 * Rules of this ABI:
 *  - fixed-width little-endian types, no pointers, no bitfields; the same layout on 32 and 64 bit;
 *  - every reserved field and every unknown flag must be zero, or the message is refused;
 *  - a structure that may grow starts with its size: a shorter one is extended with zeroes, a
 *    longer one is accepted when what the daemon does not know is zero, else ONEBIT_E_TOO_NEW;
 *  - features are asked for (feature bits, ONEBIT_OP_QUERY), never inferred from a version;
 *  - real numbers of requests are fixed point in millionths ("micro"), so there is no NaN to
 *    refuse; real numbers of answers are the bits of an IEEE-754 binary32.
 */

#include <linux/types.h>

#ifdef __cplusplus
#define ONEBIT_ASSERT(x) static_assert(x, #x)
#else
#define ONEBIT_ASSERT(x) _Static_assert(x, #x)
#endif
#define ONEBIT_SIZE(t, n) ONEBIT_ASSERT(sizeof(struct t) == (n))
#define ONEBIT_AT(t, f, n) ONEBIT_ASSERT(__builtin_offsetof(struct t, f) == (n))

#define ONEBIT_MAGIC     0x3142494eu /* "NIB1" */
#define ONEBIT_ABI_MAJOR 1           /* must be equal on both sides */
#define ONEBIT_ABI_MINOR 0           /* the daemon answers with at most what was offered */

#define ONEBIT_SOCKET_DEFAULT "/run/onebit/onebit.sock"

/* ---- limits that are part of the contract (the rest: ONEBIT_QUERY_LIMITS) ------------------ */

#define ONEBIT_SQ_ENTRIES_DEFAULT 64u
#define ONEBIT_SQ_ENTRIES_MIN     2u
#define ONEBIT_SQ_ENTRIES_MAX     1024u
#define ONEBIT_CQ_ENTRIES_MAX     4096u  /* at least twice the SQ's */
#define ONEBIT_AREA_DEFAULT       (256u << 10)
#define ONEBIT_AREA_MIN           4096u
#define ONEBIT_AREA_MAX           (64u << 20)
#define ONEBIT_BLOCK_MAX          (2u << 20) /* in_len: a request's parameters, prompt and tables */
#define ONEBIT_CHOICES_MAX        16u
#define ONEBIT_SEGMENTS_MAX       4096u
#define ONEBIT_STOPS_MAX          64u
#define ONEBIT_STOP_BYTES_MAX     256u
#define ONEBIT_BIAS_MAX           4096u
#define ONEBIT_TOP_LOGPROBS_MAX   20u
#define ONEBIT_RECORD_MAX         4096u /* bytes of one struct onebit_record with all it carries */
#define ONEBIT_MAX_TOKENS         (1u << 20)
#define ONEBIT_GRAMMAR_STATES_MAX 32768u
#define ONEBIT_GRAMMAR_EDGES_MAX  131072u
#define ONEBIT_GRAMMAR_DEPTH_MAX  256u

/* ---- attach ------------------------------------------------------------------------------- */

/* Feature bits: hello.features_wanted, hello.features_required, welcome.features. */
#define ONEBIT_FEAT_NOTIFY  (1ull << 0) /* ONEBIT_WAKE_NOTIFY is honoured (socket transport) */
#define ONEBIT_FEAT_SPIN    (1ull << 1) /* the daemon may spin for this client */
#define ONEBIT_FEAT_STATS   (1ull << 2) /* a read-only stats page comes as a fourth descriptor */
#define ONEBIT_FEAT_INLINE  (1ull << 3) /* text of up to 8 bytes rides in the CQE */
#define ONEBIT_FEAT_RESUME  (1ull << 4) /* onebit_params.resume is honoured */
#define ONEBIT_FEAT_BUFFERS (1ull << 5) /* further buffers by buf_index; not offered yet */
#define ONEBIT_FEAT_TENANT  (1ull << 6) /* this client may name tenants (delegate right) */
#define ONEBIT_FEAT_ADMIN   (1ull << 7) /* this client may use ONEBIT_OP_ADMIN */

/*
 * Client to daemon, the first and only message before the welcome. Refused: another magic or
 * major; a size that is not this one (there is no longer one yet); a feature required that is not
 * known; entries that are not a power of two or out of their bounds; areas that are not a multiple of 4096; anything
 * above its maximum; flags or reserved not zero. Zero entries or bytes mean the default.
 */
struct onebit_hello {
	__u32 magic;
	__u32 size;
	__u16 abi_major;
	__u16 abi_minor;
	__u32 flags; /* must be zero */
	__u64 features_wanted;
	__u64 features_required; /* a subset of wanted */
	__u32 sq_entries;
	__u32 cq_entries; /* 0: twice sq_entries */
	__u32 arena_bytes;
	__u32 out_bytes;
	__u64 reserved[2];
};
ONEBIT_SIZE(onebit_hello, 64);
ONEBIT_AT(onebit_hello, features_wanted, 16);
ONEBIT_AT(onebit_hello, sq_entries, 32);
ONEBIT_AT(onebit_hello, reserved, 48);

/*
 * The one shape of an error. Written by the daemon. text is UTF-8, ends with NUL, and says what
 * happened, which limit or input, and what to do next.
 */
struct onebit_error {
	__s32 err;  /* negative errno: the class */
	__u16 code; /* ONEBIT_E_*: the reason */
	__u8 layer; /* ONEBIT_LAYER_* */
	__u8 retryable;
	__u32 retry_after_ms; /* 0: no advice */
	__u32 reserved;
	__u64 detail; /* the limit hit, or the offset of the field refused; see the code */
	__u64 request_id;
	char text[160];
};
ONEBIT_SIZE(onebit_error, 192);
ONEBIT_AT(onebit_error, detail, 16);
ONEBIT_AT(onebit_error, text, 32);

/*
 * Daemon to client, the answer to the hello. When error.code is not 0 the rest is zero and the
 * socket closes. Otherwise it comes with descriptors in this order: CLIENT region, DAEMON region,
 * doorbell (an eventfd the client writes 1 to), and the stats page when that feature was granted.
 * All offsets are from the start of the region named. Map the CLIENT region read-write and the
 * DAEMON region and stats page read-only, all MAP_SHARED.
 */
struct onebit_welcome {
	__u32 magic;
	__u32 size;
	__u16 abi_major;
	__u16 abi_minor;
	__u32 client_id;
	__u64 features; /* granted: required <= granted <= wanted */
	__u64 epoch;    /* changes when the daemon restarts */
	__u32 client_bytes;
	__u32 daemon_bytes;
	__u32 stats_bytes;
	__u32 sq_entries;
	__u32 cq_entries;
	/* in the CLIENT region */
	__u32 reserved1;
	__u32 cq_head_off; /* __u32, client: CQEs below it are reaped */
	__u32 wake_off;    /* struct onebit_wake, client */
	__u32 sqes_off;    /* struct onebit_sqe[sq_entries], client */
	__u32 arena_off;
	__u32 arena_bytes;
	/* in the DAEMON region */
	__u32 sq_head_off; /* __u32, daemon: SQEs below it are copied; at first, where both rings start */
	__u32 state_off;   /* struct onebit_state, daemon */
	__u32 futex_off;   /* __u32, daemon: the word a sleeping client waits on */
	__u32 cqes_off;    /* struct onebit_cqe[cq_entries], daemon */
	__u32 out_off;
	__u32 out_bytes;
	__u32 max_inflight; /* requests of this client that may be in flight at a time */
	__u32 spin_ns;      /* how long the daemon spins for this client after work; 0: it does not */
	__u32 reserved0;
	__u64 reserved[5];
	struct onebit_error error;
};
ONEBIT_SIZE(onebit_welcome, 344);
ONEBIT_AT(onebit_welcome, features, 16);
ONEBIT_AT(onebit_welcome, client_bytes, 32);
ONEBIT_AT(onebit_welcome, cq_head_off, 56);
ONEBIT_AT(onebit_welcome, sq_head_off, 76);
ONEBIT_AT(onebit_welcome, reserved, 112);
ONEBIT_AT(onebit_welcome, error, 152);

/*
 * Messages after the welcome, daemon to client, on the same socket. NOTIFY says "look at the CQ"
 * and coalesces; GOODBYE says why the daemon is about to close. A client sends nothing more.
 */
#define ONEBIT_MSG_NOTIFY  1
#define ONEBIT_MSG_GOODBYE 2
struct onebit_msg {
	__u32 type;
	__u32 size;
	struct onebit_error error; /* GOODBYE only, else zero */
};
ONEBIT_SIZE(onebit_msg, 200);

/*
 * CLIENT region, written by the client: how it wants to be woken, and on which CPU it last ran.
 * To sleep: read the futex word, set need, do a full fence, look at the CQ once more, then wait for
 * the word to change from what was read.
 */
#define ONEBIT_WAKE_FUTEX  1u /* asleep in FUTEX_WAIT (not private) on the futex word */
#define ONEBIT_WAKE_NOTIFY 2u /* wants an ONEBIT_MSG_NOTIFY on the socket */
struct onebit_wake {
	__u32 need;
	__u32 cpu; /* CPU number + 1; 0: not told */
};
ONEBIT_SIZE(onebit_wake, 8);

/*
 * DAEMON region, written by the daemon. A client that has published SQEs, or that has reaped while
 * STALLED was set, does a full fence, reads flags, and rings the doorbell when told to.
 */
#define ONEBIT_SQ_NEED_WAKEUP 1u /* the daemon does not look at this ring: ring the doorbell */
#define ONEBIT_SQ_STALLED     2u /* SQEs wait for room in the CQ: ring after reaping */
#define ONEBIT_STATE_STARTING 0u
#define ONEBIT_STATE_READY    1u
#define ONEBIT_STATE_DRAINING 2u /* finishes what it accepted, accepts nothing */
#define ONEBIT_STATE_DETACHED 3u /* this client was detached: broken indices, or it must go */
struct onebit_state {
	__u32 flags;
	__u32 cpu; /* CPU of the daemon's loop + 1; spinning on the same CPU helps nobody */
	__u32 state;
	__u32 model_generation; /* changes when another model serves */
	__u64 epoch;
	__u64 reserved;
};
ONEBIT_SIZE(onebit_state, 32);

/* ---- submission --------------------------------------------------------------------------- */

#define ONEBIT_OP_NOP           0  /* completes at once */
#define ONEBIT_OP_ECHO          1  /* copies in[0..in_len) to out; res = bytes */
#define ONEBIT_OP_QUERY         2  /* arg = ONEBIT_QUERY_* | cursor << 32; answer in out, res = bytes */
#define ONEBIT_OP_GENERATE      3  /* in = block; records in out (struct onebit_out) */
#define ONEBIT_OP_CANCEL        4  /* arg = user_data of the target; res = requests cancelled */
#define ONEBIT_OP_TOKENIZE      5  /* in = block; out = __u32 ids; res = bytes */
#define ONEBIT_OP_DETOKENIZE    6  /* in = block with token segments; out = text; res = bytes */
#define ONEBIT_OP_SCORE         7  /* in = block; out = records, one a scored token; res = bytes */
#define ONEBIT_OP_EMBED         8  /* in = block; out = binary32 vector; res = bytes */
#define ONEBIT_OP_SESSION_OPEN  9  /* detail = new session handle */
#define ONEBIT_OP_SESSION_FORK  10 /* arg = session; detail = new session handle */
#define ONEBIT_OP_SESSION_CLOSE 11 /* arg = session */
#define ONEBIT_OP_ADMIN         12 /* arg = ONEBIT_ADMIN_*; in = a path where one is needed */
#define ONEBIT_OP_COUNT         13

/* sqe.flags */
#define ONEBIT_SQE_FLAGS_ALL 0u /* none is defined yet */

/* sqe.priority. A lower class waits behind a higher one but ages: it is never starved. */
#define ONEBIT_PRIO_NORMAL      0
#define ONEBIT_PRIO_INTERACTIVE 1
#define ONEBIT_PRIO_BATCH       2
#define ONEBIT_PRIO_COUNT       3

/*
 * One cache line, written by the client, copied once by the daemon. An SQE is there when its seq
 * says so (onebit_ring.h): write the rest first, seq last. in_* lies in the arena, out_*
 * in the out area; out_off is a multiple of 8. The client owns both areas and must not reuse a
 * range before the terminal CQE (of the arena: before sq_head has passed the SQE).
 */
struct onebit_sqe {
	__u8 op;
	__u8 flags;
	__u8 priority;
	__u8 reserved0;
	__u32 deadline_ms; /* from acceptance to the terminal CQE; 0: none */
	__u64 user_data;   /* echoed, never read otherwise */
	__u64 arg;         /* see the operation; else must be zero */
	__u32 in_off;
	__u32 in_len;
	__u32 out_off;
	__u32 out_len;
	__u16 buf_index; /* 0: the arena; others need ONEBIT_FEAT_BUFFERS */
	__u16 reserved1;
	__u32 seq;
	__u64 reserved3[2];
};
ONEBIT_SIZE(onebit_sqe, 64);
ONEBIT_AT(onebit_sqe, user_data, 8);
ONEBIT_AT(onebit_sqe, in_off, 24);
ONEBIT_AT(onebit_sqe, buf_index, 40);
ONEBIT_AT(onebit_sqe, seq, 44);
ONEBIT_AT(onebit_sqe, reserved3, 48);

/* arg of ONEBIT_OP_ADMIN. All need the admin right. */
#define ONEBIT_ADMIN_LOAD   1 /* in = path below the configured model folder; none may be loaded */
#define ONEBIT_ADMIN_UNLOAD 2 /* requests in flight finish, then the model goes */
#define ONEBIT_ADMIN_SWAP   3 /* in = path; old requests finish on the old model */
#define ONEBIT_ADMIN_RELOAD 4 /* read the configuration again, as SIGHUP does */

/* ---- the block of a request --------------------------------------------------------------- */

/*
 * GENERATE, TOKENIZE, DETOKENIZE, SCORE and EMBED take a block: one range of the arena that starts
 * with struct onebit_params and holds everything that it points to. All offsets in it are from the
 * start of the block, so the daemon copies the block once and believes only its copy. A table's
 * offset is a multiple of 8; a table with no entries has offset 0.
 */

/* One piece of the prompt. The chat template that turns roles into tokens lives with the model. */
#define ONEBIT_ROLE_RAW       0 /* no template: the text or tokens as they are */
#define ONEBIT_ROLE_SYSTEM    1
#define ONEBIT_ROLE_USER      2
#define ONEBIT_ROLE_ASSISTANT 3
#define ONEBIT_ROLE_TOOL      4
#define ONEBIT_ROLE_COUNT     5
#define ONEBIT_SEG_TEXT       0 /* UTF-8; text that looks like a special token stays text */
#define ONEBIT_SEG_TOKENS     1 /* __u32 ids */
#define ONEBIT_SEG_KIND_COUNT 2
#define ONEBIT_SEG_CONTINUE   1u /* last segment only, ASSISTANT: the answer goes on with it */
#define ONEBIT_SEG_SPECIAL    2u /* RAW text: the model's special tokens are recognised in it */
struct onebit_segment {
	__u8 role;
	__u8 kind;
	__u16 flags;
	__u32 off;
	__u32 len; /* bytes, for tokens a multiple of 4 */
	__u32 reserved;
};
ONEBIT_SIZE(onebit_segment, 16);

/* A run of bytes in the block: a stop string. */
struct onebit_span {
	__u32 off;
	__u32 len;
};
ONEBIT_SIZE(onebit_span, 8);

struct onebit_bias {
	__u32 token;
	__s32 bias_micro; /* added to the logit; INT32_MIN: never this token */
};
ONEBIT_SIZE(onebit_bias, 8);

/*
 * What a choice has already delivered, by choice number: for a request submitted again after the
 * daemon was lost. first tokens are known, their ids stand at tokens_off; the answer goes on with
 * index first, and is the one that would have come.
 */
struct onebit_resume {
	__u32 first;
	__u32 tokens_off; /* __u32 ids[first] */
};
ONEBIT_SIZE(onebit_resume, 8);

/*
 * A bounded pushdown automaton over the bytes of the answer, compiled by the client, validated and
 * applied by the executor. In state s the edges [first_edge, first_edge + n_edges) are tried in
 * order; the first whose [lo, hi] holds the next byte is taken: BYTE consumes it and goes to
 * target; CALL consumes nothing, pushes ret and goes to target. When none fits and the state is
 * ACCEPT, the top of the stack is popped and tried; with an empty stack the answer may end here.
 * Anything else forbids the byte.
 */
#define ONEBIT_GSTATE_ACCEPT 1u
#define ONEBIT_GEDGE_BYTE    0
#define ONEBIT_GEDGE_CALL    1
struct onebit_gstate {
	__u32 first_edge;
	__u16 n_edges;
	__u16 flags;
};
ONEBIT_SIZE(onebit_gstate, 8);
struct onebit_gedge {
	__u8 lo;
	__u8 hi;
	__u8 kind;
	__u8 reserved;
	__u32 target;
	__u32 ret; /* CALL only, else zero */
};
ONEBIT_SIZE(onebit_gedge, 12);
struct onebit_grammar {
	__u32 size; /* of this header, the states and the edges together */
	__u32 n_states;
	__u32 n_edges;
	__u32 start;
	__u32 max_depth;
	__u32 reserved;
	/* struct onebit_gstate[n_states], then struct onebit_gedge[n_edges] */
};
ONEBIT_SIZE(onebit_grammar, 24);

/* params.flags */
#define ONEBIT_PARAM_IGNORE_EOS  (1u << 0)
#define ONEBIT_PARAM_NO_CACHE    (1u << 1) /* neither read nor fill the prefix cache */
#define ONEBIT_PARAM_LOGPROBS    (1u << 2) /* records carry the token's log-probability */
#define ONEBIT_PARAM_TEMPLATE    (1u << 3) /* TOKENIZE: apply the chat template */
#define ONEBIT_PARAM_APPEND      (1u << 4) /* the prompt goes on where the session ended */
#define ONEBIT_PARAM_ECHO        (1u << 5) /* records of the prompt's tokens come first */
#define ONEBIT_PARAM_NO_REPLAY   (1u << 6) /* at most once: fail rather than replay after a fault */
#define ONEBIT_PARAM_FLAGS_ALL   0x7fu

#define ONEBIT_POOL_MEAN 0
#define ONEBIT_POOL_LAST 1
#define ONEBIT_POOL_COUNT 2

/*
 * Zero everywhere is a valid request for greedy decoding up to the configured number of tokens.
 * The seed is always the client's: the daemon invents none, so that a request submitted again is
 * the same request.
 */
struct onebit_params {
	__u32 size; /* of this struct */
	__u32 flags;
	__u64 seed;
	__u64 tenant;      /* delegate right; 0: the client itself */
	__u64 session;     /* 0: none */
	__u8 model_id[32]; /* all zero: whichever serves; else that one or ONEBIT_E_MODEL_CHANGED */
	__u32 max_tokens;  /* of each choice; 0: the daemon's default */
	__u32 min_tokens;
	__u16 n_choices; /* 0 means 1 */
	__u16 top_logprobs;
	__u32 top_k;             /* 0: off */
	__u32 temperature_micro; /* 0: greedy */
	__u32 top_p_micro;       /* 0 means 1000000: off */
	__u32 min_p_micro;
	__u32 repetition_micro; /* 0 means 1000000: off */
	__s32 frequency_micro;
	__s32 presence_micro;
	__u32 repetition_last_n; /* 0: the whole sequence */
	__u8 pooling;            /* EMBED */
	__u8 reserved0[3];
	__u32 segments_off;
	__u32 n_segments;
	__u32 stops_off; /* struct onebit_span[n_stops] */
	__u32 n_stops;
	__u32 bias_off; /* struct onebit_bias[n_bias] */
	__u32 n_bias;
	__u32 resume_off; /* struct onebit_resume[n_choices] */
	__u32 n_resume;   /* 0 or the number of choices */
	__u32 grammar_off;
	__u32 grammar_len;
	__u32 reserved1[4];
};
ONEBIT_SIZE(onebit_params, 168);
ONEBIT_AT(onebit_params, model_id, 32);
ONEBIT_AT(onebit_params, max_tokens, 64);
ONEBIT_AT(onebit_params, temperature_micro, 80);
ONEBIT_AT(onebit_params, pooling, 108);
ONEBIT_AT(onebit_params, segments_off, 112);
ONEBIT_AT(onebit_params, grammar_len, 148);
ONEBIT_AT(onebit_params, reserved1, 152);

/* ---- completion --------------------------------------------------------------------------- */

/* cqe.flags */
#define ONEBIT_CQE_MORE     (1u << 0) /* a progress CQE: the terminal one is still to come */
#define ONEBIT_CQE_ACCEPTED (1u << 1) /* the request is journaled; on its first progress CQE */
#define ONEBIT_CQE_INLINE   (1u << 2) /* text[0..text_len) is the text of these tokens */
#define ONEBIT_CQE_REPLAYED (1u << 3) /* an executor was lost since the last CQE of this request */
#define ONEBIT_CQE_PHASE    (1u << 15) /* the ring's own: see onebit_ring.h */

/*
 * Written by the daemon. Per request at most one progress CQE is unreaped, and room for the
 * terminal one is kept, so the CQ cannot overflow; progress not told yet is merged into the next.
 *
 * Progress: tokens [first, first + n) of `choice` stand in the out window; res is n.
 * Terminal: res >= 0, or a negative errno with code, layer, retry advice and detail. Whatever
 * records no progress CQE told are covered by struct onebit_out's counts.
 */
struct onebit_cqe {
	__u64 user_data;
	__s32 res;
	__u16 flags;
	__u16 choice;
	union {
		struct {
			__u32 first;
			__u16 n;
			__u8 text_len;
			__u8 reserved;
			__u8 text[8];
		} progress;
		struct {
			__u16 code;
			__u8 layer;
			__u8 retryable;
			__u32 retry_after_ms;
			__u64 detail;
		} end;
	} u;
};
ONEBIT_SIZE(onebit_cqe, 32);
ONEBIT_AT(onebit_cqe, flags, 12);
ONEBIT_AT(onebit_cqe, u, 16);

/* ---- the out window ----------------------------------------------------------------------- */

/*
 * GENERATE: the window starts with struct onebit_out and n_choices struct onebit_choice; each
 * choice has its own run of records from rec_off (from the window's start), at most rec_cap bytes.
 * SCORE has the same with one choice. The other operations put their bytes at the window's start.
 * An answer that does not fit ends with ONEBIT_E_WINDOW_FULL after the last record that did.
 * Written by the daemon; counts are valid up to what a reaped CQE has told.
 */
#define ONEBIT_FINISH_NONE    0 /* not ended */
#define ONEBIT_FINISH_STOP    1 /* end of text, or a stop string */
#define ONEBIT_FINISH_LENGTH  2 /* max_tokens, or the context is full */
#define ONEBIT_FINISH_CANCEL  3
#define ONEBIT_FINISH_ERROR   4
#define ONEBIT_FINISH_COUNT   5
struct onebit_choice {
	__u32 n_tokens; /* index of the next token: records present are those from first_token on */
	__u32 n_bytes;  /* of records */
	__u32 rec_off;
	__u32 rec_cap;
	__u32 first_token; /* resume index of this choice */
	__u8 finish;
	__u8 reserved[3];
};
ONEBIT_SIZE(onebit_choice, 24);

struct onebit_out {
	__u32 size; /* of this header without the choices */
	__u32 n_choices;
	__u64 request_id;
	__u8 model_id[32];
	__u32 contract; /* number of the numeric contract */
	__u32 prompt_tokens;
	__u32 cached_tokens;
	__u32 replays;    /* executors lost on the way */
	__u64 queue_ns;   /* accepted to first handed to an executor */
	__u64 first_ns;   /* accepted to first token */
	__u64 total_ns;   /* accepted to terminal */
	__u64 reserved[2];
};
ONEBIT_SIZE(onebit_out, 104);

/* One token. The whole takes size bytes, a multiple of 8: this, the tops, the texts, zeroes. */
#define ONEBIT_REC_LOGPROB 1u
struct onebit_record {
	__u16 size;
	__u16 flags;
	__u32 token;
	__u32 logprob; /* binary32 bits; ONEBIT_REC_LOGPROB */
	__u16 n_top;
	__u16 text_len; /* text may be empty: bytes held back until they are whole UTF-8, or a stop */
	/* struct onebit_top[n_top], then text[text_len], then the tops' texts */
};
ONEBIT_SIZE(onebit_record, 16);

struct onebit_top {
	__u32 token;
	__u32 logprob;  /* binary32 bits */
	__u16 text_off; /* from the record's start */
	__u16 text_len;
	__u32 reserved;
};
ONEBIT_SIZE(onebit_top, 16);

/* ---- queries ------------------------------------------------------------------------------ */

/*
 * Answers are structures with their size first, or arrays of such (cursor = first index), or text.
 * What concerns other principals needs the admin right.
 */
#define ONEBIT_QUERY_FEATURES  0 /* struct onebit_features */
#define ONEBIT_QUERY_LIMITS    1 /* struct onebit_limits */
#define ONEBIT_QUERY_MODEL     2 /* struct onebit_model */
#define ONEBIT_QUERY_SESSIONS  3 /* struct onebit_session[] */
#define ONEBIT_QUERY_KV        4 /* struct onebit_kv */
#define ONEBIT_QUERY_TIMING    5 /* struct onebit_timing[] */
#define ONEBIT_QUERY_METRICS   6 /* struct onebit_stats */
#define ONEBIT_QUERY_CONFIG    7 /* text, `key = value` lines */
#define ONEBIT_QUERY_INCIDENTS 8 /* struct onebit_incident[], newest first */
#define ONEBIT_QUERY_DOCTOR    9 /* struct onebit_finding[] */
#define ONEBIT_QUERY_COUNT     10

struct onebit_features {
	__u32 size;
	__u16 abi_major;
	__u16 abi_minor;
	__u64 features;   /* all that this daemon can grant */
	__u64 ops;        /* bit per ONEBIT_OP_* that would not answer EOPNOTSUPP now */
	__u64 topics;     /* bit per ONEBIT_QUERY_* */
	__u64 param_flags; /* ONEBIT_PARAM_* the executor honours */
	__u64 roles;      /* bit per ONEBIT_ROLE_* */
	char version[32];
	__u64 reserved[2];
};
ONEBIT_SIZE(onebit_features, 96);

/* The limits of the asker's principal, and what it uses of them now. 0 as a limit: none. */
struct onebit_limits {
	__u32 size;
	__u32 reserved0;
	__u64 clients, clients_used;
	__u64 bytes, bytes_used;
	__u64 inflight, inflight_used;
	__u64 queued_bytes, queued_bytes_used;
	__u64 tokens_per_second, tokens_left;
	__u32 max_tokens; /* largest and default of a request */
	__u32 default_tokens;
	__u32 context;
	__u32 block_bytes;
	__u64 poisoned; /* its requests that ended POISON: each costs as much as many tokens */
	__u64 reserved[3];
};
ONEBIT_SIZE(onebit_limits, 136);

struct onebit_model {
	__u32 size;
	__u32 contract;
	__u8 model_id[32]; /* SHA-256 of the model's content, as the container defines it */
	__u32 generation;
	__u32 vocab;
	__u32 context;
	__u32 layers;
	__u32 width;
	__u32 slots; /* requests that run at a time */
	__u64 parameters;
	__u64 bytes;
	__u64 bytes_per_token;
	char name[64];
	char backend[32];
	char chat_template[32];
	__u64 reserved[4];
};
ONEBIT_SIZE(onebit_model, 248);

struct onebit_session {
	__u64 session;
	__u32 uid;
	__u32 reserved0;
	__u64 tenant;
	__u32 tokens;
	__u32 kv_pages;
	__u64 idle_ms;
	__u64 reserved;
};
ONEBIT_SIZE(onebit_session, 48);

struct onebit_kv {
	__u32 size;
	__u32 page_tokens;
	__u64 bytes_total, bytes_used, bytes_cached;
	__u32 pages_total, pages_used, pages_cached, sequences;
	__u64 lookups, hits, tokens_reused, evictions;
	__u64 reserved[2];
};
ONEBIT_SIZE(onebit_kv, 96);

struct onebit_timing {
	char name[24]; /* of the operation */
	__u64 count;
	__u64 ns;
	__u64 bytes;
	__u64 reserved;
};
ONEBIT_SIZE(onebit_timing, 56);

struct onebit_incident {
	__u64 id;
	__u64 time_s; /* seconds since 1970 */
	__u64 request_id;
	__u32 uid;
	__u16 code;
	__u16 reserved;
	char text[96];
};
ONEBIT_SIZE(onebit_incident, 128);

#define ONEBIT_FINDING_PASS 0
#define ONEBIT_FINDING_INFO 1
#define ONEBIT_FINDING_WARN 2
#define ONEBIT_FINDING_FAIL 3
struct onebit_finding {
	char id[8];
	__u32 level;
	__u32 reserved;
	char observed[64];
	char fix[112];
};
ONEBIT_SIZE(onebit_finding, 192);

/*
 * The stats page and the answer of ONEBIT_QUERY_METRICS. Written by the daemon, seq is odd while it
 * writes: read seq, copy, read seq again, and try again when it changed or was odd. Counters only
 * grow within an epoch.
 */
struct onebit_stats {
	__u32 size;
	__u32 seq;
	__u64 epoch;
	__u64 uptime_ms;
	__u32 state; /* ONEBIT_STATE_* */
	__u32 executor_generation;
	__u32 executor_state; /* ONEBIT_EXEC_* */
	__u32 model_generation;
	__u32 clients;
	__u32 queued;  /* accepted, not yet with the executor */
	__u32 running; /* with the executor */
	__u32 suspects;
	__u64 bytes;         /* shared memory of clients */
	__u64 journal_bytes; /* in use */
	__u64 attached, refused, detached, protocol_errors;
	__u64 sqes, cqes, wakes, doorbells, spurious_doorbells;
	__u64 accepted, done, cancelled, failed, poisoned;
	__u64 tokens, prompt_tokens, cached_tokens;
	__u64 replays, executor_deaths, executor_hangs, executor_lies;
	__u64 loop_wakeups;
	__u64 reserved[17];
};
#define ONEBIT_EXEC_NONE     0u /* none is configured, or the model was unloaded */
#define ONEBIT_EXEC_STARTING 1u
#define ONEBIT_EXEC_READY    2u
#define ONEBIT_EXEC_BACKOFF  3u /* it died and will be started again */
ONEBIT_SIZE(onebit_stats, 384);

#include "onebit_codes.h"

#endif

/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
#ifndef ONEBIT_CODES_H
#define ONEBIT_CODES_H

/*
 * Every reason for which the daemon refuses or ends something: one table, from which the numbers,
 * the texts of libonebit and the man page come. Numbers are part of the ABI and are never reused.
 *
 * X(NAME, number, errno name, layer, retryable, "what happened; what to do")
 * In the text, %llu stands once for the detail: the limit hit, or the offset of the field refused.
 */
#define ONEBIT_LAYER_RING      1
#define ONEBIT_LAYER_ADMISSION 2
#define ONEBIT_LAYER_MODEL     3
#define ONEBIT_LAYER_BACKEND   4
#define ONEBIT_LAYER_GPU       5
#define ONEBIT_LAYER_GATEWAY   6

#define ONEBIT_CODES(X) \
	X(OK, 0, 0, RING, 0, "done") \
	X(BAD_OP, 1, EINVAL, RING, 0, "unknown operation %llu; ask ONEBIT_QUERY_FEATURES which exist") \
	X(UNSUPPORTED, 2, EOPNOTSUPP, RING, 0, "this daemon or its executor does not implement operation %llu; see ONEBIT_QUERY_FEATURES") \
	X(RESERVED, 3, EINVAL, RING, 0, "the reserved field or unknown flag at SQE byte %llu is not zero; zero it") \
	X(BAD_FIELD, 4, EINVAL, RING, 0, "the SQE field at byte %llu has a value out of range; see onebit.h") \
	X(BAD_RANGE, 5, EINVAL, RING, 0, "the range at SQE byte %llu lies outside its area or is misaligned; check offset and length") \
	X(BAD_PARAM, 6, EINVAL, ADMISSION, 0, "the parameter at block byte %llu is out of range or points outside the block; see onebit.h") \
	X(TOO_NEW, 7, E2BIG, ADMISSION, 0, "the parameters are newer than this daemon: the unknown byte %llu is not zero; upgrade the daemon or drop the option") \
	X(TOO_BIG, 8, EMSGSIZE, ADMISSION, 0, "the request is larger than the limit of %llu bytes; shorten it") \
	X(OUT_TOO_SMALL, 9, ENOBUFS, ADMISSION, 0, "the out window is too small, %llu bytes are needed; submit again with more") \
	X(WINDOW_FULL, 10, ENOBUFS, RING, 1, "the answer filled its out window of %llu bytes; submit again with the resume table and a larger one") \
	X(DENIED, 11, EPERM, ADMISSION, 0, "this needs a right that your user has not (field at byte %llu); ask the administrator for it") \
	X(NOT_FOUND, 12, ENOENT, ADMISSION, 0, "there is no such request or session (%llu); it may have ended") \
	X(Q_CLIENTS, 20, EDQUOT, ADMISSION, 1, "your limit of %llu clients is reached; close one or retry later") \
	X(Q_BYTES, 21, EDQUOT, ADMISSION, 1, "your limit of %llu bytes of shared memory is reached; ask for smaller areas or close a client") \
	X(Q_INFLIGHT, 22, EDQUOT, ADMISSION, 1, "your limit of %llu requests in flight is reached; wait for one to end") \
	X(Q_QUEUED, 23, EDQUOT, ADMISSION, 1, "your limit of %llu bytes of waiting prompts is reached; wait for one to start") \
	X(Q_TOKENS, 24, EDQUOT, ADMISSION, 1, "your rate of %llu tokens a second is used up; retry after the time given") \
	X(CLIENTS_FULL, 25, EBUSY, ADMISSION, 1, "the daemon serves its limit of %llu clients; retry later") \
	X(REQUESTS_FULL, 26, EBUSY, ADMISSION, 1, "the daemon holds its limit of %llu requests; retry later") \
	X(JOURNAL_FULL, 27, EBUSY, ADMISSION, 1, "the journal of accepted requests has no room for %llu more bytes; retry later or ask for fewer tokens") \
	X(PRINCIPALS_FULL, 28, EBUSY, ADMISSION, 1, "the daemon accounts for its limit of %llu users and tenants; retry later") \
	X(NO_MEMORY, 29, ENOMEM, ADMISSION, 1, "the daemon could not get %llu bytes of memory or a descriptor; retry later") \
	X(DRAINING, 30, ESHUTDOWN, ADMISSION, 1, "the daemon is stopping and accepts nothing new (state %llu); retry when it is back") \
	X(NO_MODEL, 31, ENODEV, MODEL, 1, "no model is served (executor state %llu); configure or load one") \
	X(EXECUTOR_DOWN, 32, EIO, BACKEND, 1, "the executor failed to start %llu times in a row; see the daemon's log, retry later") \
	X(MODEL_CHANGED, 33, ESTALE, MODEL, 0, "another model serves now (generation %llu); submit again without resume or model_id") \
	X(LOST, 34, ESTALE, MODEL, 0, "the answer cannot go on where it stopped: the model or the session %llu is gone; submit it anew") \
	X(MODEL_BUSY, 35, EBUSY, MODEL, 1, "the model before the last still finishes its requests (%llu executors live); retry later") \
	X(CANCELLED, 40, ECANCELED, RING, 0, "cancelled after %llu tokens") \
	X(DEADLINE, 41, ETIME, ADMISSION, 1, "the deadline of %llu ms passed; give more time or ask for fewer tokens") \
	X(POISON, 42, EIO, BACKEND, 0, "this request ended its executor %llu times while alone; do not submit it again, report it") \
	X(NONDETERMINISM, 43, EIO, BACKEND, 1, "replay did not give token %llu again; the answer was stopped rather than changed, report it") \
	X(NUMERIC, 44, EIO, MODEL, 0, "arithmetic left its range at token %llu; the model cannot answer this prompt") \
	X(REPLAY_REFUSED, 45, EIO, BACKEND, 1, "the executor was lost after %llu tokens and the request forbids a replay; submit it again") \
	X(CONTEXT_FULL, 46, EMSGSIZE, MODEL, 0, "prompt and answer are longer than the context of %llu tokens; shorten the prompt") \
	X(BAD_PROMPT, 47, EILSEQ, MODEL, 0, "the prompt is not valid at byte %llu: UTF-8, role order or token id; correct it") \
	X(BAD_GRAMMAR, 48, EINVAL, MODEL, 0, "the grammar is not valid at entry %llu; compile it again") \
	X(EXECUTOR, 49, EIO, BACKEND, 1, "the executor could not run the request (reason %llu); see the daemon's log") \
	X(KV_FULL, 50, EBUSY, MODEL, 1, "the request needs %llu pages of KV memory, more than there are; shorten it") \
	X(SESSION_BUSY, 51, EBUSY, MODEL, 1, "session %llu runs another request; wait for it to end, or fork it") \
	X(SESSIONS_FULL, 52, EBUSY, MODEL, 1, "all %llu sessions of the executor are in use; close one or retry later") \
	X(BAD_HELLO, 60, EPROTO, RING, 0, "the hello message is malformed at byte %llu; use a matching libonebit") \
	X(BAD_VERSION, 61, EPROTO, RING, 0, "the ABI's major version differs (the daemon's is %llu); use a matching libonebit") \
	X(BAD_FEATURE, 62, EPROTO, RING, 0, "a required feature is not offered (bits %llu); require less or upgrade the daemon") \
	X(BAD_INDEX, 63, EPROTO, RING, 0, "cq_head ran %llu entries ahead of what was published; the client is broken and was detached") \
	X(EVICTED, 64, ESHUTDOWN, ADMISSION, 1, "the daemon ended this attachment (reason %llu); attach again")

enum onebit_code {
#define ONEBIT_CODE_ENUM(name, nr, err, layer, retry, text) ONEBIT_E_##name = nr,
	ONEBIT_CODES(ONEBIT_CODE_ENUM)
#undef ONEBIT_CODE_ENUM
};

#endif

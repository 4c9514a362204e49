/* SPDX-License-Identifier: MIT */
/*
 * The attach message, and the one shape of an error. Everything a stranger can say before it has a
 * ring is judged here, on a copy, without side effects.
 */
#include "attach.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define PAGE 4096u
#define FEATURES_KNOWN \
	(ONEBIT_FEAT_NOTIFY | ONEBIT_FEAT_SPIN | ONEBIT_FEAT_STATS | ONEBIT_FEAT_INLINE | \
	 ONEBIT_FEAT_RESUME | ONEBIT_FEAT_TENANT | ONEBIT_FEAT_ADMIN)

static const struct code_row {
	const char *name;
	const char *text;
	uint16_t nr;
	uint8_t layer;
	uint8_t retryable;
	int err;
} codes[] = {
#define ROW(name, nr, err, layer, retry, text) \
	{ #name, text, nr, ONEBIT_LAYER_##layer, retry, -(err) },
	ONEBIT_CODES(ROW)
#undef ROW
};

static const struct code_row *row_of(unsigned code)
{
	for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++)
		if (codes[i].nr == code)
			return &codes[i];
	return &codes[0];
}

const char *error_name(enum onebit_code code)
{
	return row_of(code)->name;
}

void error_class(struct onebit_error *e, enum onebit_code code, uint64_t detail,
		 uint32_t retry_after_ms)
{
	const struct code_row *row = row_of(code);

	e->err = row->err;
	e->code = row->nr;
	e->layer = row->layer;
	e->retryable = row->retryable;
	e->retry_after_ms = row->retryable ? retry_after_ms : 0;
	e->detail = detail;
}

void error_fill(struct onebit_error *e, enum onebit_code code, uint64_t detail,
		uint32_t retry_after_ms)
{
	memset(e, 0, sizeof(*e));
	error_class(e, code, detail, retry_after_ms);
	snprintf(e->text, sizeof(e->text), row_of(code)->text, (unsigned long long)detail);
}

static int refuse(struct onebit_error *why, enum onebit_code code, uint64_t detail)
{
	error_fill(why, code, detail, 0);
	return -EPROTO;
}

static int refuse_field(struct onebit_error *why, size_t offset)
{
	return refuse(why, ONEBIT_E_BAD_HELLO, offset);
}

static int is_pow2(uint32_t v)
{
	return v && !(v & (v - 1));
}

static uint32_t page_up(uint32_t v)
{
	return (v + PAGE - 1) & ~(PAGE - 1);
}

/* An area's size: 0 is the default, else whole pages up to the maximum. */
static int area(uint32_t *v)
{
	if (!*v)
		*v = ONEBIT_AREA_DEFAULT;
	return *v >= ONEBIT_AREA_MIN && *v <= ONEBIT_AREA_MAX && *v % PAGE == 0;
}

int attach_parse(const void *msg, size_t len, struct attach *a, struct onebit_error *why)
{
	struct onebit_hello h;
	struct attach r = { 0 };
	const uint32_t minor = ONEBIT_ABI_MINOR;

	if (len != sizeof(h))
		return refuse_field(why, offsetof(struct onebit_hello, size));
	memcpy(&h, msg, sizeof(h));

	if (h.magic != ONEBIT_MAGIC)
		return refuse_field(why, offsetof(struct onebit_hello, magic));
	if (h.abi_major != ONEBIT_ABI_MAJOR)
		return refuse(why, ONEBIT_E_BAD_VERSION, ONEBIT_ABI_MAJOR);
	if (h.size != sizeof(h))
		return refuse_field(why, offsetof(struct onebit_hello, size));
	if (h.flags)
		return refuse_field(why, offsetof(struct onebit_hello, flags));
	if (h.reserved[0] || h.reserved[1])
		return refuse_field(why, offsetof(struct onebit_hello, reserved));
	if (h.features_required & ~h.features_wanted)
		return refuse_field(why, offsetof(struct onebit_hello, features_required));
	if (h.features_required & ~FEATURES_KNOWN)
		return refuse(why, ONEBIT_E_BAD_FEATURE, h.features_required & ~FEATURES_KNOWN);

	r.wanted = h.features_wanted & FEATURES_KNOWN;
	r.required = h.features_required;
	r.abi_minor = (uint16_t)(h.abi_minor < minor ? h.abi_minor : minor);

	r.sq_entries = h.sq_entries ? h.sq_entries : ONEBIT_SQ_ENTRIES_DEFAULT;
	if (!is_pow2(r.sq_entries) || r.sq_entries < ONEBIT_SQ_ENTRIES_MIN ||
	    r.sq_entries > ONEBIT_SQ_ENTRIES_MAX)
		return refuse_field(why, offsetof(struct onebit_hello, sq_entries));
	r.cq_entries = h.cq_entries ? h.cq_entries : 2 * r.sq_entries;
	if (!is_pow2(r.cq_entries) || r.cq_entries > ONEBIT_CQ_ENTRIES_MAX ||
	    r.cq_entries < 2 * r.sq_entries)
		return refuse_field(why, offsetof(struct onebit_hello, cq_entries));
	r.arena_bytes = h.arena_bytes;
	if (!area(&r.arena_bytes))
		return refuse_field(why, offsetof(struct onebit_hello, arena_bytes));
	r.out_bytes = h.out_bytes;
	if (!area(&r.out_bytes))
		return refuse_field(why, offsetof(struct onebit_hello, out_bytes));

	/* None of these sums can overflow: the maxima are far below 4 GiB. */
	r.sqes_off = CLIENT_SQES;
	r.arena_off = page_up(r.sqes_off + r.sq_entries * (uint32_t)sizeof(struct onebit_sqe));
	r.client_bytes = r.arena_off + r.arena_bytes;
	r.ring_client_bytes = r.arena_off;
	r.cqes_off = DAEMON_CQES;
	r.out_off = page_up(r.cqes_off + r.cq_entries * (uint32_t)sizeof(struct onebit_cqe));
	r.daemon_bytes = r.out_off + r.out_bytes;
	r.ring_daemon_bytes = r.out_off;
	*a = r;
	return 0;
}

/* SPDX-License-Identifier: MIT */
/*
 * The table of onebit_codes.h as text. A sentence has at most one number in it, the detail, and it
 * is put there by hand: the table's strings are data and never reach printf as a format.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "lib_text.h"

struct row {
	unsigned code;
	int err;
	uint8_t layer;
	uint8_t retryable;
	const char *name;
	const char *text;
};

static const struct row rows[] = {
#define ROW(name, nr, err, layer, retry, text) \
	{ nr, err, ONEBIT_LAYER_##layer, retry, #name, text },
	ONEBIT_CODES(ROW)
#undef ROW
};

static const struct row *row_find(unsigned code)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (rows[i].code == code)
			return &rows[i];
	return NULL;
}

const char *onebit_code_name(unsigned code)
{
	const struct row *row = row_find(code);

	return row ? row->name : "UNKNOWN";
}

const char *onebit_layer_name(unsigned layer)
{
	static const char *const names[] = {
		[ONEBIT_LAYER_RING] = "ring",       [ONEBIT_LAYER_ADMISSION] = "admission",
		[ONEBIT_LAYER_MODEL] = "model",     [ONEBIT_LAYER_BACKEND] = "backend",
		[ONEBIT_LAYER_GPU] = "gpu",         [ONEBIT_LAYER_GATEWAY] = "gateway",
	};

	if (layer < sizeof(names) / sizeof(names[0]) && names[layer])
		return names[layer];
	return "unknown";
}

void onebit_code_text(unsigned code, uint64_t detail, char *text, size_t len)
{
	const struct row *row = row_find(code);
	const char *hole;

	if (!row) {
		snprintf(text, len, "unknown code %u with detail %llu; the daemon is newer than this library",
			 code, (unsigned long long)detail);
		return;
	}
	hole = strstr(row->text, "%llu");
	if (!hole)
		snprintf(text, len, "%s", row->text);
	else
		snprintf(text, len, "%.*s%llu%s", (int)(hole - row->text), row->text,
			 (unsigned long long)detail, hole + 4);
}

int lib_error_code(struct onebit_error *e, unsigned code, uint64_t detail)
{
	const struct row *row = row_find(code);

	memset(e, 0, sizeof(*e));
	e->err = row ? -row->err : -EIO;
	e->code = (uint16_t)code;
	e->layer = row ? row->layer : ONEBIT_LAYER_RING;
	e->retryable = row ? row->retryable : 0;
	e->detail = detail;
	onebit_code_text(code, detail, e->text, sizeof(e->text));
	return e->err;
}

int lib_error_local(struct onebit_error *e, int err, bool retryable, const char *format, ...)
{
	va_list args;

	memset(e, 0, sizeof(*e));
	e->err = err;
	e->layer = ONEBIT_LAYER_RING;
	e->retryable = retryable;
	va_start(args, format);
	vsnprintf(e->text, sizeof(e->text), format, args);
	va_end(args);
	return err;
}

void lib_error_cqe(struct onebit_error *e, const struct onebit_cqe *c)
{
	lib_error_code(e, c->u.end.code, c->u.end.detail);
	/* What this daemon says goes before what our table, maybe older, says. */
	e->err = c->res < 0 ? c->res : 0;
	e->layer = c->u.end.layer ? c->u.end.layer : e->layer;
	e->retryable = c->u.end.retryable;
	e->retry_after_ms = c->u.end.retry_after_ms;
}

/* SPDX-License-Identifier: MIT */
/*
 * The configuration's grammar is one table: a row a key, with its type, place, range and unit.
 * Reading, printing, the fixed keys of a reload and the messages all come from it. The keys of one
 * user's limits are a second table, used for limit.NAME and uid.N.NAME alike.
 */
#include "config.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "broker.h"
#include "onebit.h"

enum kind { TEXT, OCTAL, NUMBER32, NUMBER64, BOOL, CHOICE };

struct key {
	const char *name;
	enum kind kind;
	size_t off, size;
	uint64_t min, max; /* as written */
	uint64_t unit;     /* what one of it is worth */
	const char *words[5]; /* CHOICE */
	bool fixed; /* a reload leaves it */
};

#define AT(f) offsetof(struct config, f), sizeof(((struct config *)0)->f)
#define LIMIT(f) offsetof(struct policy_limits, f), sizeof(((struct policy_limits *)0)->f)

static const struct key keys[] = {
	{ "socket", TEXT, AT(socket), 1, 0, 0, { 0 }, true },
	{ "socket_mode", OCTAL, AT(socket_mode), 0, 0777, 1, { 0 }, true },
	{ "socket_group", TEXT, AT(socket_group), 0, 0, 0, { 0 }, true },
	{ "user", TEXT, AT(user), 0, 0, 0, { 0 }, true },
	{ "executor", TEXT, AT(executor), 0, 0, 0, { 0 }, true },
	{ "model", TEXT, AT(model), 0, 0, 0, { 0 }, true },
	{ "model_dir", TEXT, AT(model_dir), 0, 0, 0, { 0 }, true },
	{ "event_loop", CHOICE, AT(loop), 0, 0, 1, { "auto", "io_uring", "epoll" }, true },
	{ "sandbox", BOOL, AT(sandbox), 0, 0, 1, { 0 }, true },
	{ "log", CHOICE, AT(log), 0, 0, 1, { "debug", "info", "warn", "error" }, true },
	{ "max_clients", NUMBER32, AT(policy.max_clients), 1, CLIENTS_CEILING, 1, { 0 }, true },
	{ "max_requests", NUMBER32, AT(policy.max_requests), 1, REQUESTS_CEILING, 1, { 0 }, true },
	{ "journal_mib", NUMBER32, AT(policy.journal_bytes), JOURNAL_BYTES_MIN >> 20,
	  JOURNAL_BYTES_MAX >> 20, 1u << 20, { 0 }, true },
	{ "max_tokens", NUMBER32, AT(policy.max_tokens), 1, ONEBIT_MAX_TOKENS, 1, { 0 }, false },
	{ "default_tokens", NUMBER32, AT(policy.default_tokens), 1, ONEBIT_MAX_TOKENS, 1, { 0 },
	  false },
	{ "progress_ms", NUMBER32, AT(policy.progress_ms), 10, 3600000, 1, { 0 }, false },
	{ "drain_ms", NUMBER32, AT(policy.drain_ms), 0, 3600000, 1, { 0 }, false },
};

static const struct key limit_keys[] = {
	{ "clients", NUMBER32, LIMIT(max_clients), 0, CLIENTS_CEILING, 1, { 0 }, false },
	{ "inflight", NUMBER32, LIMIT(max_inflight), 0, REQUESTS_CEILING, 1, { 0 }, false },
	{ "bytes_mib", NUMBER64, LIMIT(max_bytes), 0, 1u << 20, 1u << 20, { 0 }, false },
	{ "queued_kib", NUMBER64, LIMIT(max_queued_bytes), 0, 1u << 30, 1u << 10, { 0 }, false },
	{ "tokens_per_second", NUMBER32, LIMIT(tokens_per_second), 0, 1000000000, 1, { 0 }, false },
	{ "spin_us", NUMBER32, LIMIT(spin_ns), 0, 10000, 1000, { 0 }, false },
	{ "delegate", BOOL, LIMIT(delegate), 0, 0, 1, { 0 }, false },
	{ "admin", BOOL, LIMIT(admin), 0, 0, 1, { 0 }, false },
};

#define N_KEYS   (sizeof(keys) / sizeof(keys[0]))
#define N_LIMITS (sizeof(limit_keys) / sizeof(limit_keys[0]))
#define NAME_MAX_LEN 48u /* longest key: "uid.4294967294.tokens_per_second" */
_Static_assert(N_KEYS + N_LIMITS <= 64, "given has a bit for each");

/* One setting under way: where it came from and where to complain. */
struct reader {
	struct config *c;
	const char *name;
	unsigned line; /* 0: from the command line */
	uint64_t seen; /* in this file */
	uint32_t seen_override[OVERRIDES_MAX];
	char *why;
	size_t why_len;
};

/* ---- messages ------------------------------------------------------------------------------ */

static int __attribute__((format(printf, 2, 3))) refuse(struct reader *r, const char *fmt, ...)
{
	va_list ap;
	int n;

	if (r->line)
		n = snprintf(r->why, r->why_len, "%.200s:%u: ", r->name, r->line);
	else
		n = snprintf(r->why, r->why_len, "%.200s: ", r->name);
	if (n < 0 || (size_t)n >= r->why_len)
		return -EINVAL;
	va_start(ap, fmt);
	vsnprintf(r->why + n, r->why_len - (size_t)n, fmt, ap);
	va_end(ap);
	return -EINVAL;
}

/* Edits that make a into b: insert, delete, replace, each one. Both are short. */
static unsigned distance(const char *a, const char *b)
{
	unsigned row[NAME_MAX_LEN + 1];
	size_t la = strlen(a), lb = strlen(b);

	if (la > NAME_MAX_LEN || lb > NAME_MAX_LEN)
		return UINT32_MAX;
	for (size_t j = 0; j <= lb; j++)
		row[j] = (unsigned)j;
	for (size_t i = 1; i <= la; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i;
		for (size_t j = 1; j <= lb; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[lb];
}

static int unknown_key(struct reader *r, const char *key)
{
	char candidate[NAME_MAX_LEN + 1], nearest[NAME_MAX_LEN + 1] = "";
	const char *dot = strchr(key, '.');
	unsigned best = (unsigned)strlen(key) / 3 + 1; /* further off is no help */
	size_t head = dot && strncmp(key, "uid.", 4) == 0 ? strspn(key + 4, "0123456789") + 5 : 0;

	if (head && (head > 15 || key[head - 1] != '.'))
		head = 0;
	for (size_t i = 0; i < N_KEYS + N_LIMITS; i++) {
		unsigned d;

		if (i < N_KEYS)
			snprintf(candidate, sizeof(candidate), "%s", keys[i].name);
		else if (head)
			snprintf(candidate, sizeof(candidate), "%.*s%s", (int)head, key,
				 limit_keys[i - N_KEYS].name);
		else
			snprintf(candidate, sizeof(candidate), "limit.%s", limit_keys[i - N_KEYS].name);
		d = distance(key, candidate);
		if (d <= best && (d < best || !*nearest)) {
			best = d;
			memcpy(nearest, candidate, sizeof(nearest));
		}
	}
	if (*nearest)
		return refuse(r, "unknown key '%.64s'; did you mean '%s'?", key, nearest);
	return refuse(r, "unknown key '%.64s'; onebitd.conf(5) lists the keys", key);
}

/* ---- values -------------------------------------------------------------------------------- */

static int bad_number(struct reader *r, const struct key *k, const char *key, const char *value)
{
	if (k->kind == OCTAL)
		return refuse(r, "%s = '%.64s' is not an octal mode; allowed are 0 to 0%o", key, value,
			      (unsigned)k->max);
	return refuse(r, "%s = '%.64s' is out of range or no number; allowed are %llu to %llu", key,
		      value, (unsigned long long)k->min, (unsigned long long)k->max);
}

static int put_number(struct reader *r, const struct key *k, const char *key, const char *value,
		      void *at)
{
	uint64_t base = k->kind == OCTAL ? 8 : 10, n = 0, scaled;

	if (!*value)
		return bad_number(r, k, key, value);
	for (const char *p = value; *p; p++) {
		unsigned digit = (unsigned char)*p - (unsigned)'0';

		if (digit >= base || __builtin_mul_overflow(n, base, &n) ||
		    __builtin_add_overflow(n, digit, &n))
			return bad_number(r, k, key, value);
	}
	if (n < k->min || n > k->max || __builtin_mul_overflow(n, k->unit, &scaled) ||
	    (k->kind != NUMBER64 && scaled > UINT32_MAX))
		return bad_number(r, k, key, value);
	if (k->kind == NUMBER64)
		memcpy(at, &scaled, sizeof(scaled));
	else
		*(uint32_t *)at = (uint32_t)scaled;
	return 0;
}

static int put_choice(struct reader *r, const struct key *k, const char *key, const char *value,
		      uint32_t *at)
{
	char list[128];
	size_t n = 0;

	for (uint32_t i = 0; k->words[i]; i++) {
		if (strcmp(k->words[i], value) == 0) {
			*at = i;
			return 0;
		}
		n += (size_t)snprintf(list + n, sizeof(list) - n, "%s%s", i ? ", " : "", k->words[i]);
	}
	return refuse(r, "%s = '%.64s' is not known; allowed are %s", key, value, list);
}

static int put_value(struct reader *r, const struct key *k, const char *key, const char *value,
		     void *base)
{
	void *at = (char *)base + k->off;
	size_t len = strlen(value);

	switch (k->kind) {
	case TEXT:
		if (len < k->min)
			return refuse(r, "%s has no value; give one or drop the line", key);
		if (len >= k->size)
			return refuse(r, "%s has %zu bytes; allowed are %zu", key, len, k->size - 1);
		memset(at, 0, k->size);
		memcpy(at, value, len);
		return 0;
	case CHOICE:
		return put_choice(r, k, key, value, at);
	case BOOL:
		if (strcmp(value, "on") && strcmp(value, "off"))
			return refuse(r, "%s = '%.64s' is not known; allowed are on, off", key, value);
		*(bool *)at = value[1] == 'n';
		return 0;
	default:
		return put_number(r, k, key, value, at);
	}
}

/* ---- keys ---------------------------------------------------------------------------------- */

static int find_limit(const char *name)
{
	for (size_t i = 0; i < N_LIMITS; i++)
		if (strcmp(limit_keys[i].name, name) == 0)
			return (int)i;
	return -1;
}

static int duplicate(struct reader *r, const char *key)
{
	return refuse(r, "%s is given twice in this file; drop one of the lines", key);
}

/* key is "uid.N.NAME". */
static int set_override(struct reader *r, const char *key, const char *value)
{
	struct policy *p = &r->c->policy;
	const char *s = key + 4;
	uint64_t uid = 0;
	uint32_t i;
	int limit;

	for (; *s >= '0' && *s <= '9' && uid <= UINT32_MAX; s++)
		uid = uid * 10 + (unsigned)(*s - '0');
	if (s == key + 4 || *s != '.')
		return refuse(r, "'%.64s' names no user; write uid.N.NAME with a user number", key);
	if (uid >= UINT32_MAX)
		return refuse(r, "'%.64s': user numbers end at %u", key, UINT32_MAX - 1);
	limit = find_limit(s + 1);
	if (limit < 0)
		return unknown_key(r, key);
	for (i = 0; i < p->n_overrides; i++)
		if (p->overrides[i].uid == uid)
			break;
	if (i == OVERRIDES_MAX)
		return refuse(r, "%s: more than %u users have limits of their own; use limit.* and "
			      "fewer uid.*", key, OVERRIDES_MAX);
	if (i < p->n_overrides && r->line && (r->seen_override[i] >> limit & 1))
		return duplicate(r, key);
	if (i == p->n_overrides) {
		/* Only a good value makes an entry. */
		memset(&p->overrides[i], 0, sizeof(p->overrides[i]));
		r->c->given_override[i] = 0;
	}
	if (put_value(r, &limit_keys[limit], key, value, &p->overrides[i].limits))
		return -EINVAL;
	if (i == p->n_overrides) {
		p->overrides[i].uid = (uint32_t)uid;
		p->n_overrides++;
	}
	r->c->given_override[i] |= 1u << limit;
	r->seen_override[i] |= 1u << limit;
	return 0;
}

/* What a table can not say of one value. */
static int check_value(struct reader *r, const struct key *k, const char *value)
{
	const struct policy *p = &r->c->policy;

	if (k->off == offsetof(struct config, policy.journal_bytes) &&
	    (p->journal_bytes & (p->journal_bytes - 1)))
		return refuse(r, "%s = '%.64s' is not a power of two; allowed are 1, 2, 4 to %llu",
			      k->name, value, (unsigned long long)k->max);
	if (k->off == offsetof(struct config, executor)) {
		char copy[sizeof(r->c->executor)], *argv[CONFIG_ARGS_MAX + 1];
		unsigned n;

		memcpy(copy, r->c->executor, sizeof(copy));
		n = config_split(copy, argv);
		if (n > CONFIG_ARGS_MAX)
			return refuse(r, "%s has more words than the %u allowed; use a script", k->name,
				      CONFIG_ARGS_MAX);
		/* PATH belongs to whoever started us, the executor to the administrator. */
		if (n && !strchr(argv[0], '/'))
			return refuse(r, "%s = '%.64s' is not a path; give the program with its folder",
				      k->name, argv[0]);
	}
	return 0;
}

static int set(struct reader *r, const char *key, const char *value)
{
	const struct key *k = NULL;
	void *base = r->c;
	unsigned bit = 0;
	int limit;

	if (strncmp(key, "uid.", 4) == 0)
		return set_override(r, key, value);
	for (unsigned i = 0; i < N_KEYS && !k; i++)
		if (strcmp(keys[i].name, key) == 0) {
			k = &keys[i];
			bit = i;
		}
	if (!k && strncmp(key, "limit.", 6) == 0 && (limit = find_limit(key + 6)) >= 0) {
		k = &limit_keys[limit];
		base = &r->c->policy.limits;
		bit = (unsigned)N_KEYS + (unsigned)limit;
	}
	if (!k)
		return unknown_key(r, key);
	if (r->line && (r->seen >> bit & 1))
		return duplicate(r, key);
	if (put_value(r, k, key, value, base))
		return -EINVAL;
	if (base == r->c && check_value(r, k, value))
		return -EINVAL;
	r->seen |= 1ull << bit;
	r->c->given |= 1ull << bit;
	return 0;
}

/* ---- lines --------------------------------------------------------------------------------- */

static bool is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

/* Without the blanks at both ends. */
static const char *trim(const char *s, size_t *len)
{
	while (*len && is_blank(*s)) {
		s++;
		(*len)--;
	}
	while (*len && is_blank(s[*len - 1]))
		(*len)--;
	return s;
}

/* A # starts a comment at the start of a line only: paths may hold one. */
static int read_line(struct reader *r, const char *line, size_t len)
{
	char key[NAME_MAX_LEN + 17], value[sizeof(r->c->executor) + 1];
	const char *equals, *k, *v;
	size_t klen, vlen;

	line = trim(line, &len);
	if (!len || *line == '#')
		return 0;
	for (size_t i = 0; i < len; i++)
		if (((unsigned char)line[i] < 0x20 && line[i] != '\t') || line[i] == 0x7f)
			return refuse(r, "the line has a control character (byte 0x%02x); remove it",
				      (unsigned char)line[i]);
	equals = memchr(line, '=', len);
	if (!equals)
		return refuse(r, "'%.*s' is not of the form 'key = value'", (int)(len < 64 ? len : 64),
			      line);
	klen = (size_t)(equals - line);
	vlen = len - klen - 1;
	k = trim(line, &klen);
	v = trim(equals + 1, &vlen);
	if (!klen)
		return refuse(r, "there is no key before '='");
	if (klen >= sizeof(key))
		return refuse(r, "unknown key '%.64s...'; onebitd.conf(5) lists the keys", k);
	memcpy(key, k, klen);
	key[klen] = 0;
	if (vlen >= sizeof(value))
		return refuse(r, "%s has %zu bytes; no value has more than %zu", key, vlen,
			      sizeof(value) - 1);
	memcpy(value, v, vlen);
	value[vlen] = 0;
	return set(r, key, value);
}

int config_parse(struct config *c, const char *text, size_t len, const char *name, char *why,
		 size_t why_len)
{
	struct reader r = { .c = c, .name = name, .why = why, .why_len = why_len };
	const char *end = text + len;

	if (len > CONFIG_FILE_MAX)
		return refuse(&r, "the file has %zu bytes; allowed are %u", len, CONFIG_FILE_MAX);
	while (text < end) {
		const char *newline = memchr(text, '\n', (size_t)(end - text));
		const char *stop = newline ? newline : end;

		r.line++;
		if (read_line(&r, text, (size_t)(stop - text)))
			return -EINVAL;
		text = newline ? newline + 1 : end;
	}
	return 0;
}

int config_set(struct config *c, const char *setting, char *why, size_t why_len)
{
	struct reader r = { .c = c, .name = "-o", .why = why, .why_len = why_len };
	size_t len = strlen(setting);

	if (!*trim(setting, &len) || !len)
		return refuse(&r, "the setting is empty; give 'key = value'");
	return read_line(&r, setting, strlen(setting));
}

unsigned config_split(char *command, char *argv[CONFIG_ARGS_MAX + 1])
{
	unsigned n = 0;
	char *rest = command;

	for (;;) {
		rest += strspn(rest, " \t");
		if (!*rest)
			break;
		if (n == CONFIG_ARGS_MAX)
			return n + 1;
		argv[n++] = rest;
		rest += strcspn(rest, " \t");
		if (*rest)
			*rest++ = 0;
	}
	argv[n] = NULL;
	return n;
}

int config_executor(const struct config *c, const char *own, char command[CONFIG_COMMAND_MAX],
		    char *argv[CONFIG_ARGS_MAX + 1])
{
	static char no_sandbox[] = "--no-sandbox";

	argv[0] = NULL;
	if (*c->executor) {
		memcpy(command, c->executor, CONFIG_COMMAND_MAX);
		config_split(command, argv);
		return 0;
	}
	if (!*c->model)
		return 0;
	if (strlen(own) >= CONFIG_COMMAND_MAX)
		return -ENAMETOOLONG;
	/* Not split: the folder of the program may have a blank in its name. */
	strcpy(command, own);
	argv[0] = command;
	argv[1] = c->sandbox ? NULL : no_sandbox;
	argv[2] = NULL;
	return 0;
}

/* ---- the whole ----------------------------------------------------------------------------- */

void config_defaults(struct config *c)
{
	memset(c, 0, sizeof(*c));
	memcpy(c->socket, ONEBIT_SOCKET_DEFAULT, sizeof(ONEBIT_SOCKET_DEFAULT));
	memcpy(c->user, "onebit", sizeof("onebit"));
	c->socket_mode = 0660;
	c->loop = LOOP_AUTO;
	c->sandbox = true;
	c->log = BROKER_INFO;
	policy_defaults(&c->policy);
}

static bool is_given(const struct config *c, const void *field)
{
	size_t off = (size_t)((const char *)field - (const char *)c);

	for (unsigned i = 0; i < N_KEYS; i++)
		if (keys[i].off == off)
			return c->given >> i & 1;
	return false;
}

int config_finish(struct config *c, char *why, size_t why_len)
{
	struct policy *p = &c->policy;
	struct reader r = { .c = c, .name = "configuration", .why = why, .why_len = why_len };

	if (p->default_tokens > p->max_tokens) {
		if (is_given(c, &p->default_tokens))
			return refuse(&r, "default_tokens = %u is above max_tokens = %u; lower it or "
				      "raise max_tokens", p->default_tokens, p->max_tokens);
		p->default_tokens = p->max_tokens;
	}
	for (uint32_t i = 0; i < p->n_overrides; i++)
		for (unsigned j = 0; j < N_LIMITS; j++)
			if (!(c->given_override[i] >> j & 1))
				memcpy((char *)&p->overrides[i].limits + limit_keys[j].off,
				       (char *)&p->limits + limit_keys[j].off, limit_keys[j].size);
	return 0;
}

static void print_value(const struct key *k, const void *base, char *value, size_t len)
{
	const void *at = (const char *)base + k->off;
	uint64_t n = 0;

	switch (k->kind) {
	case TEXT:
		snprintf(value, len, "%s", (const char *)at);
		return;
	case BOOL:
		snprintf(value, len, "%s", *(const bool *)at ? "on" : "off");
		return;
	case CHOICE:
		snprintf(value, len, "%s", k->words[*(const uint32_t *)at]);
		return;
	case OCTAL:
		snprintf(value, len, "%04o", *(const uint32_t *)at);
		return;
	case NUMBER32:
		n = *(const uint32_t *)at;
		break;
	case NUMBER64:
		memcpy(&n, at, sizeof(n));
		break;
	}
	snprintf(value, len, "%llu", (unsigned long long)(n / k->unit));
}

static void __attribute__((format(printf, 4, 5)))
append(char *text, size_t len, size_t *n, const char *fmt, ...)
{
	va_list ap;
	int more;

	va_start(ap, fmt);
	more = vsnprintf(*n < len ? text + *n : NULL, *n < len ? len - *n : 0, fmt, ap);
	va_end(ap);
	*n += more > 0 ? (size_t)more : 0;
}

size_t config_print(const struct config *c, char *text, size_t len)
{
	char value[sizeof(c->executor)];
	size_t n = 0;

	if (len)
		*text = 0;
	for (unsigned i = 0; i < N_KEYS; i++) {
		print_value(&keys[i], c, value, sizeof(value));
		append(text, len, &n, *value ? "%s = %s\n" : "%s =%s\n", keys[i].name, value);
	}
	for (unsigned i = 0; i < N_LIMITS; i++) {
		print_value(&limit_keys[i], &c->policy.limits, value, sizeof(value));
		append(text, len, &n, "limit.%s = %s\n", limit_keys[i].name, value);
	}
	for (uint32_t i = 0; i < c->policy.n_overrides; i++)
		for (unsigned j = 0; j < N_LIMITS; j++) {
			if (!(c->given_override[i] >> j & 1))
				continue;
			print_value(&limit_keys[j], &c->policy.overrides[i].limits, value, sizeof(value));
			append(text, len, &n, "uid.%u.%s = %s\n", c->policy.overrides[i].uid,
			       limit_keys[j].name, value);
		}
	return n;
}

void config_keep_fixed(struct config *c, const struct config *running, char *changed, size_t len)
{
	size_t n = 0;

	if (len)
		*changed = 0;
	for (unsigned i = 0; i < N_KEYS; i++) {
		char *at = (char *)c + keys[i].off;
		const char *was = (const char *)running + keys[i].off;

		if (!keys[i].fixed || memcmp(at, was, keys[i].size) == 0)
			continue;
		append(changed, len, &n, "%s%s", n ? " " : "", keys[i].name);
		memcpy(at, was, keys[i].size);
	}
}

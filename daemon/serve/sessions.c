/* SPDX-License-Identifier: MIT */
/*
 * The table of sessions. Tokens of all of them are one reservation of address space, of which a page
 * becomes memory when something is said there. A table of 64 is looked through from end to end: that is
 * shorter than the work of any request.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "sessions.h"

struct sessions {
	uint32_t *tokens;
	size_t bytes;
	struct session s[EXEC_SESSIONS_MAX];
};

struct sessions *sessions_new(uint32_t positions)
{
	struct sessions *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->bytes = (size_t)positions * EXEC_SESSIONS_MAX * sizeof(*t->tokens);
	t->tokens = mmap(NULL, t->bytes, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (t->tokens == MAP_FAILED) {
		free(t);
		return NULL;
	}
	for (uint32_t i = 0; i < EXEC_SESSIONS_MAX; i++) {
		t->s[i].index = i;
		t->s[i].tokens = t->tokens + (size_t)i * positions;
	}
	return t;
}

struct sessions *sessions_free(struct sessions *t)
{
	if (t) {
		munmap(t->tokens, t->bytes);
		free(t);
	}
	return NULL;
}

static bool is_of(const struct session *s, struct kv_principal p)
{
	return s->handle && s->principal.uid == p.uid && s->principal.tenant == p.tenant;
}

struct session *sessions_open(struct sessions *t, uint64_t handle, struct kv_principal principal,
			      uint64_t now_ns)
{
	struct session *unused = NULL, *idle = NULL;
	uint32_t own = 0;

	assert(handle);
	for (uint32_t i = 0; i < EXEC_SESSIONS_MAX; i++) {
		struct session *s = &t->s[i];

		if (!s->handle && !unused)
			unused = s;
		if (!is_of(s, principal))
			continue;
		own++;
		if (!s->busy && (!idle || s->used_ns < idle->used_ns))
			idle = s;
	}
	if (!unused || own >= SESSIONS_EACH)
		unused = idle;
	if (!unused)
		return NULL;
	unused->handle = handle;
	unused->principal = principal;
	unused->n = 0;
	unused->used_ns = now_ns;
	return unused;
}

struct session *sessions_find(struct sessions *t, uint64_t handle, struct kv_principal principal)
{
	for (uint32_t i = 0; handle && i < EXEC_SESSIONS_MAX; i++)
		if (t->s[i].handle == handle && is_of(&t->s[i], principal))
			return &t->s[i];
	return NULL;
}

void sessions_close(struct session *s)
{
	assert(!s->busy);
	s->handle = 0;
	s->n = 0;
}

void session_begin(struct session *s, bool append)
{
	assert(!s->busy);
	s->busy = true;
	s->n = append ? s->n : 0;
	s->n_next = s->n;
}

void session_add(struct session *s, uint32_t positions, const uint32_t *tokens, uint32_t n)
{
	uint32_t room = positions - s->n_next;

	assert(s->busy && s->n_next <= positions);
	n = n < room ? n : room;
	memmove(s->tokens + s->n_next, tokens, n * sizeof(*tokens));
	s->n_next += n;
}

void session_end(struct session *s, bool well, uint64_t now_ns)
{
	assert(s->busy);
	s->busy = false;
	s->used_ns = now_ns;
	if (well)
		s->n = s->n_next;
}

uint32_t sessions_list(const struct sessions *t, uint64_t now_ns, struct onebit_session *out)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < EXEC_SESSIONS_MAX; i++) {
		const struct session *s = &t->s[i];

		if (s->handle)
			out[n++] = (struct onebit_session){
				.session = s->handle, .uid = s->principal.uid,
				.tenant = s->principal.tenant, .tokens = s->n,
				.kv_pages = (s->n + KV_BLOCK - 1) / KV_BLOCK,
				.idle_ms = s->busy ? 0 : (now_ns - s->used_ns) / 1000000,
			};
	}
	return n;
}

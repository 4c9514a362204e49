/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include "log.h"
#include "runner.h"
#include "say.h"
#include "sys.h"

static size_t pages(size_t bytes)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (bytes + page - 1) & ~(page - 1);
}

void runners_init(struct runners *s, struct loop *loop, int control_fd, int journal_fd,
		  uint32_t owner)
{
	memset(s, 0, sizeof(*s));
	s->loop = loop;
	s->control_fd = control_fd;
	s->journal_fd = journal_fd;
	s->owner = owner;
	for (unsigned i = 0; i < LINKS; i++)
		s->r[i].bell = -1;
}

static void give_back(struct runners *s, unsigned link)
{
	struct runner *r = &s->r[link];

	loop_remove(s->loop, LOOP_EXEC, link);
	if (r->bell >= 0)
		close(r->bell);
	r->bell = -1;
	region_free(&r->broker);
	region_free(&r->own);
}

void runners_free(struct runners *s)
{
	if (!s->loop)
		return; /* never opened */
	for (unsigned i = 0; i < LINKS; i++)
		give_back(s, i);
}

int runners_memory(struct runners *s, unsigned link, struct exec_memory *mem)
{
	struct runner *r = &s->r[link];
	size_t broker = pages(sizeof(struct exec_broker_region));
	int err;

	give_back(s, link);
	err = region_make(&r->broker, "onebit-commands", broker, broker, REGION_OURS,
			  s->owner + link);
	if (!err)
		err = region_make(&r->own, "onebit-events", pages(sizeof(struct exec_own_region)),
				  pages(offsetof(struct exec_own_region, data)), REGION_PEER,
				  s->owner + link);
	if (!err) {
		r->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		err = r->bell < 0 ? -errno : loop_add(s->loop, LOOP_EXEC, link, r->bell);
	}
	if (err) {
		give_back(s, link);
		return err;
	}
	mem->broker = r->broker.base;
	mem->own = r->own.base;
	return 0;
}

void runners_start(struct runners *s, unsigned link, uint32_t generation, const char *model)
{
	struct runner *r = &s->r[link];
	struct launch_msg m = { .type = LAUNCH_START, .link = link, .generation = generation };
	const int fds[4] = { r->broker.fd, r->own.fd, s->journal_fd, r->bell };
	size_t len = model ? strlen(model) : 0;

	r->generation = generation;
	r->running = true;
	r->kill = false;
	if (len < sizeof(m.model)) {
		if (len)
			memcpy(m.model, model, len);
		r->failed = say(s->control_fd, &m, sizeof(m), fds, 4);
	} else {
		r->failed = -ENAMETOOLONG;
	}
	s->any |= r->failed != 0;
	region_sent(&r->broker);
	region_sent(&r->own);
}

void runners_kill(struct runners *s, unsigned link)
{
	struct runner *r = &s->r[link];
	struct launch_msg m = { .type = LAUNCH_KILL, .link = link, .generation = r->generation };

	r->kill = say(s->control_fd, &m, sizeof(m), NULL, 0) != 0;
	s->any |= r->kill;
}

void runners_wake(struct runners *s, unsigned link)
{
	struct exec_broker_region *b = s->r[link].broker.base;

	loop_wake(s->loop, &b->cmd_tail);
}

void runners_reload(struct runners *s)
{
	struct launch_msg m = { .type = LAUNCH_RELOAD };

	s->reload = say(s->control_fd, &m, sizeof(m), NULL, 0) != 0;
	s->any |= s->reload;
}

bool runners_exited(struct runners *s, unsigned link, uint32_t generation)
{
	struct runner *r;

	if (link >= LINKS)
		return false;
	r = &s->r[link];
	/* A start that could not even be asked for is told by runners_retry(). */
	if (!r->running || r->generation != generation || r->failed)
		return false;
	r->running = false;
	r->kill = false;
	return true;
}

uint64_t runners_due(const struct runners *s, uint64_t now_ns)
{
	return s->any ? now_ns + RUNNER_RETRY_NS : UINT64_MAX;
}

void runners_retry(struct runners *s, struct broker *b)
{
	int serving = broker_serving(b);

	if (serving != s->serving && serving != LINK_NONE) {
		struct launch_msg m = { .type = LAUNCH_SERVE, .link = (uint32_t)serving };

		if (!say(s->control_fd, &m, sizeof(m), NULL, 0))
			s->serving = serving;
		else
			s->any = true;
	}
	if (!s->any)
		return;
	s->any = false;
	if (s->reload)
		runners_reload(s);
	for (unsigned i = 0; i < LINKS; i++) {
		struct runner *r = &s->r[i];
		int status = r->failed;

		if (status) {
			log_line(BROKER_ERROR, "event=executor-start link=%u error=\"%s\"", i,
				 strerror(-status));
			r->failed = 0;
			r->running = r->kill = false;
			broker_exec_exited(b, i, status);
		} else if (r->kill) {
			runners_kill(s, i);
		}
	}
}

/* SPDX-License-Identifier: MIT */
/* See lib_fakedaemon.h. What fails here is the test's own machinery, so it asserts. */
#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
#include "lib_fakedaemon.h"
#include "onebit_ring.h"

enum { CQ_HEAD = 128, WAKE = 256, SQES = 4096 };
enum { SQ_HEAD = 0, STATE = 128, FUTEX = 256, CQES = 4096 };

static uint32_t *word(char *region, uint32_t off)
{
	return (uint32_t *)(region + off);
}

void fake_listen(struct fake *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };

	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", f->path);
	f->listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert(!bind(f->listener, (struct sockaddr *)&addr, sizeof(addr)));
	assert(!listen(f->listener, 8));
}

void fake_start(struct fake *f)
{
	const char *tmp = getenv("TMPDIR");

	memset(f, 0, sizeof(*f));
	f->sock = f->doorbell = f->client_fd = f->daemon_fd = f->stats_fd = -1;
	f->n_fds = -1;
	f->welcome_len = sizeof(f->welcome);
	f->area = FAKE_AREA;
	f->sq_entries = 16;
	f->max_inflight = 8;
	f->features = ONEBIT_FEAT_NOTIFY | ONEBIT_FEAT_RESUME | ONEBIT_FEAT_STATS;
	memset(f->model_id, 7, sizeof(f->model_id));
	assert(snprintf(f->dir, sizeof(f->dir), "%s/fake-XXXXXX", tmp ? tmp : "/tmp") < 92);
	assert(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/socket", f->dir);
	fake_listen(f);
}

static uint32_t up_page(uint32_t n)
{
	return (n + 4095) & ~4095u;
}

static void fd_close(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

void fake_die(struct fake *f)
{
	fd_close(&f->sock);
	fd_close(&f->doorbell);
	fd_close(&f->client_fd);
	fd_close(&f->daemon_fd);
	fd_close(&f->stats_fd);
	if (f->client)
		munmap(f->client, SQES + up_page(f->sq_entries * 64) + f->area);
	if (f->daemon)
		munmap(f->daemon, CQES + up_page(f->sq_entries * 64) + f->area);
	f->client = f->daemon = NULL;
}

void fake_deafen(struct fake *f)
{
	fd_close(&f->listener);
	unlink(f->path);
}

void fake_stop(struct fake *f)
{
	fake_die(f);
	fake_deafen(f);
	rmdir(f->dir);
}

static void *region_make(int *fd, uint32_t bytes)
{
	void *at;

	*fd = memfd_create("fake", MFD_CLOEXEC);
	assert(*fd >= 0 && !ftruncate(*fd, bytes));
	at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	assert(at != MAP_FAILED);
	return at;
}

static void welcome_fill(struct fake *f, struct onebit_welcome *w)
{
	*w = (struct onebit_welcome){
		.magic = ONEBIT_MAGIC,
		.size = sizeof(*w),
		.abi_major = ONEBIT_ABI_MAJOR,
		.abi_minor = ONEBIT_ABI_MINOR,
		.features = f->hello.features_wanted & f->features,
		.sq_entries = f->sq_entries,
		.cq_entries = 2 * f->sq_entries,
		.cq_head_off = CQ_HEAD,
		.wake_off = WAKE,
		.sqes_off = SQES,
		.arena_off = SQES + up_page(f->sq_entries * 64),
		.arena_bytes = f->area,
		.sq_head_off = SQ_HEAD,
		.state_off = STATE,
		.futex_off = FUTEX,
		.cqes_off = CQES,
		.out_off = CQES + up_page(f->sq_entries * 64),
		.out_bytes = f->area,
		.max_inflight = f->max_inflight,
	};
	w->client_bytes = w->arena_off + f->area;
	w->daemon_bytes = w->out_off + f->area;
	if (w->features & ONEBIT_FEAT_STATS)
		w->stats_bytes = 4096;
}

void fake_accept(struct fake *f)
{
	union {
		char buf[CMSG_SPACE(4 * sizeof(int))];
		struct cmsghdr align;
	} control = { 0 };
	struct onebit_welcome *w = &f->welcome;
	struct iovec iov = { .iov_base = w };
	struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf };
	struct cmsghdr *c;
	int fds[4], n;
	void *stats;

	fake_die(f);
	f->sock = accept4(f->listener, NULL, NULL, SOCK_CLOEXEC);
	assert(f->sock >= 0);
	assert(recv(f->sock, &f->hello, sizeof(f->hello), 0) == (ssize_t)sizeof(f->hello));
	welcome_fill(f, w);
	f->client = region_make(&f->client_fd, w->client_bytes);
	f->daemon = region_make(&f->daemon_fd, w->daemon_bytes);
	f->doorbell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	stats = region_make(&f->stats_fd, 4096);
	((struct onebit_stats *)stats)->seq = 2;
	((struct onebit_stats *)stats)->tokens = 42;
	munmap(stats, 4096);
	f->state = (struct onebit_state *)(f->daemon + STATE);
	f->state->state = ONEBIT_STATE_READY;
	f->sq_head = f->cq_tail = FAKE_START;
	*word(f->client, CQ_HEAD) = *word(f->daemon, SQ_HEAD) = FAKE_START;
	fds[0] = f->client_fd;
	fds[1] = f->daemon_fd;
	fds[2] = f->doorbell;
	fds[3] = f->stats_fd;
	n = w->features & ONEBIT_FEAT_STATS ? 4 : 3;
	if (f->bend)
		f->bend(f, w, f->nr);
	if (f->n_fds >= 0)
		n = f->n_fds;
	iov.iov_len = f->welcome_len;
	mh.msg_controllen = CMSG_SPACE((size_t)n * sizeof(int));
	c = CMSG_FIRSTHDR(&mh);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN((size_t)n * sizeof(int));
	memcpy(CMSG_DATA(c), fds, (size_t)n * sizeof(int));
	if (!n)
		mh.msg_controllen = 0;
	assert(sendmsg(f->sock, &mh, MSG_NOSIGNAL) == (ssize_t)f->welcome_len);
}

static void *accept_run(void *f)
{
	fake_accept(f);
	return NULL;
}

struct onebit *fake_open(struct fake *f, const struct onebit_options *options, int *r,
			 struct onebit_error *err)
{
	struct onebit_options own = { .size = sizeof(own) };
	struct onebit_error unseen;
	struct onebit *o = NULL;
	pthread_t t;
	int ret;

	if (options)
		own = *options;
	own.socket = f->path;
	assert(!pthread_create(&t, NULL, accept_run, f));
	ret = onebit_open(&o, &own, err ? err : &unseen);
	pthread_join(t, NULL);
	if (r)
		*r = ret;
	return ret ? NULL : o;
}

void fake_goodbye(struct fake *f, unsigned code)
{
	struct onebit_msg m = { .type = ONEBIT_MSG_GOODBYE, .size = sizeof(m) };

	m.error.err = -ESHUTDOWN;
	m.error.code = (uint16_t)code;
	snprintf(m.error.text, sizeof(m.error.text), "farewell");
	assert(send(f->sock, &m, sizeof(m), MSG_NOSIGNAL) == (ssize_t)sizeof(m));
}

bool fake_pop(struct fake *f, struct onebit_sqe *sqe)
{
	const struct onebit_sqe *slot = (struct onebit_sqe *)(f->client + SQES) +
					onebit_slot(f->sq_head, f->sq_entries);

	if (onebit_load_acquire(&slot->seq) != onebit_seq(f->sq_head))
		return false;
	*sqe = *slot;
	onebit_store_release(word(f->daemon, SQ_HEAD), ++f->sq_head);
	return true;
}

const char *fake_block(const struct fake *f, const struct onebit_sqe *sqe)
{
	assert(sqe->in_off <= f->area && sqe->in_len <= f->area - sqe->in_off);
	return f->client + f->welcome.arena_off + sqe->in_off;
}

const struct onebit_params *fake_params(const struct fake *f, const struct onebit_sqe *sqe)
{
	return (const struct onebit_params *)fake_block(f, sqe);
}

static struct onebit_cqe *cqe_slot(const struct fake *f)
{
	return (struct onebit_cqe *)(f->daemon + CQES) + onebit_slot(f->cq_tail, 2 * f->sq_entries);
}

/* flags and choice, as one word. */
static uint32_t mark_with(const struct onebit_cqe *cqe, uint16_t phase)
{
	return ((cqe->flags & ~ONEBIT_CQE_PHASE) | phase) | (uint32_t)cqe->choice << 16;
}

void fake_prepare(struct fake *f, const struct onebit_cqe *cqe)
{
	uint32_t entries = 2 * f->sq_entries;
	uint16_t absent = onebit_phase(f->cq_tail, entries) ^ ONEBIT_CQE_PHASE;
	struct onebit_cqe *slot = cqe_slot(f);

	assert(onebit_distance(onebit_load_acquire(word(f->client, CQ_HEAD)), f->cq_tail) < entries);
	onebit_store_relaxed((uint32_t *)(void *)&slot->flags, mark_with(cqe, absent));
	slot->user_data = cqe->user_data;
	slot->res = cqe->res;
	slot->u = cqe->u;
}

void fake_push(struct fake *f, const struct onebit_cqe *cqe)
{
	struct onebit_wake *wake = (struct onebit_wake *)(f->client + WAKE);
	uint32_t *futex = word(f->daemon, FUTEX), need;
	struct onebit_msg m = { .type = ONEBIT_MSG_NOTIFY, .size = sizeof(m) };

	fake_prepare(f, cqe);
	onebit_store_release((uint32_t *)(void *)&cqe_slot(f)->flags,
			     mark_with(cqe, onebit_phase(f->cq_tail, 2 * f->sq_entries)));
	f->cq_tail++;
	onebit_fence();
	need = onebit_load_relaxed(&wake->need);
	if (need & ONEBIT_WAKE_FUTEX) {
		onebit_store_release(futex, onebit_load_relaxed(futex) + 1);
		syscall(SYS_futex, futex, FUTEX_WAKE, 1, NULL, NULL, 0);
	}
	if (need & ONEBIT_WAKE_NOTIFY)
		send(f->sock, &m, sizeof(m), MSG_DONTWAIT | MSG_NOSIGNAL);
}

static struct onebit_out *window(const struct fake *f, const struct onebit_sqe *sqe)
{
	assert(sqe->out_off % 8 == 0 && sqe->out_off <= f->area &&
	       sqe->out_len <= f->area - sqe->out_off);
	return (struct onebit_out *)(f->daemon + f->welcome.out_off + sqe->out_off);
}

struct onebit_choice *fake_choice(const struct fake *f, const struct onebit_sqe *sqe, uint16_t choice)
{
	return (struct onebit_choice *)(window(f, sqe) + 1) + choice;
}

void fake_admit(struct fake *f, const struct onebit_sqe *sqe, bool tell)
{
	const struct onebit_params *p = fake_params(f, sqe);
	uint32_t n = p->n_choices ? p->n_choices : 1;
	uint32_t head = (uint32_t)(sizeof(struct onebit_out) + n * sizeof(struct onebit_choice));
	struct onebit_out *out = window(f, sqe);
	struct onebit_cqe cqe = { .user_data = sqe->user_data,
				  .flags = ONEBIT_CQE_MORE | ONEBIT_CQE_ACCEPTED };

	memset(out, 0, sizeof(*out));
	out->size = sizeof(*out);
	out->n_choices = n;
	out->request_id = ++f->request_id;
	memcpy(out->model_id, f->model_id, sizeof(out->model_id));
	for (uint32_t i = 0; i < n; i++) {
		struct onebit_choice *c = fake_choice(f, sqe, (uint16_t)i);

		memset(c, 0, sizeof(*c));
		c->rec_cap = (sqe->out_len - head) / n & ~7u;
		c->rec_off = head + i * c->rec_cap;
		if (p->n_resume)
			c->first_token = ((const struct onebit_resume *)(fake_block(f, sqe) +
									 p->resume_off))[i].first;
		c->n_tokens = c->first_token;
	}
	if (tell)
		fake_push(f, &cqe);
}

bool fake_token(struct fake *f, const struct onebit_sqe *sqe, uint16_t choice, uint32_t token,
		const char *text)
{
	struct onebit_choice *c = fake_choice(f, sqe, choice);
	size_t len = strlen(text);
	uint32_t size = (uint32_t)(sizeof(struct onebit_record) + len + 7) & ~7u;
	struct onebit_record *r;

	if (c->n_bytes + size > c->rec_cap)
		return false;
	r = (struct onebit_record *)((char *)window(f, sqe) + c->rec_off + c->n_bytes);
	memset(r, 0, size);
	r->size = (uint16_t)size;
	r->token = token;
	r->text_len = (uint16_t)len;
	memcpy(r + 1, text, len);
	c->n_bytes += size;
	c->n_tokens++;
	return true;
}

void fake_progress(struct fake *f, const struct onebit_sqe *sqe, uint16_t choice, uint32_t first,
		   uint32_t n)
{
	struct onebit_cqe cqe = { .user_data = sqe->user_data, .res = (int32_t)n,
				  .flags = ONEBIT_CQE_MORE, .choice = choice };

	cqe.u.progress.first = first;
	cqe.u.progress.n = (uint16_t)n;
	fake_push(f, &cqe);
}

void fake_end(struct fake *f, const struct onebit_sqe *sqe, int32_t res, unsigned code,
	      uint64_t detail)
{
	struct onebit_cqe cqe = { .user_data = sqe->user_data, .res = res };

	cqe.u.end.code = (uint16_t)code;
	cqe.u.end.detail = detail;
	fake_push(f, &cqe);
}

uint32_t fake_need(const struct fake *f)
{
	return onebit_load_relaxed(&((struct onebit_wake *)(f->client + WAKE))->need);
}

uint64_t fake_rung(struct fake *f)
{
	uint64_t n = 0;

	return read(f->doorbell, &n, sizeof(n)) == (ssize_t)sizeof(n) ? n : 0;
}

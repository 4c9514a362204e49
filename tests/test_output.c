/* SPDX-License-Identifier: MIT */
/*
 * A file is there whole, or is not there. Half a model under a model's name is what the whole issue is
 * about: a full disk, a signal, a second converter must leave the target as it was.
 */
#include <unistd.h>

static int no_proc; /* the file system has no files without a name, or nothing to link them by */
#define access(path, mode) (no_proc ? -1 : (access)(path, mode))
#include "../daemon/tools/output.c"
#undef access
#include <check.h>
#include <dirent.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include "lib_tiny.h"
#include "lib_tmp.h"

static char why[512], sentence[700], folder[260], path[300];

/* Each test, and each of its turns, has a folder of its own. */
static void begin(int hidden)
{
	no_proc = hidden;
	snprintf(folder, sizeof(folder), "%s/f-XXXXXX", getenv("TMPDIR"));
	ck_assert_ptr_nonnull(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/model", folder);
}

static int entries(void)
{
	DIR *d = opendir(folder);
	struct dirent *e;
	int n = 0;

	ck_assert(d);
	while ((e = readdir(d)))
		n += strcmp(e->d_name, ".") && strcmp(e->d_name, "..");
	closedir(d);
	return n;
}

static void put(const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0640);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

static void expect(const void *data, size_t n)
{
	uint8_t *got = malloc(n + 1);
	int fd = open(path, O_RDONLY);

	ck_assert(got && fd >= 0);
	ck_assert_int_eq(read(fd, got, n + 1), (ssize_t)n);
	ck_assert_int_eq(memcmp(got, data, n), 0);
	close(fd);
	free(got);
}

static struct output *new(bool replace)
{
	struct output *o;

	ck_assert_msg(!output_new(path, replace, &o, why, sizeof(why)), "%s", why);
	ck_assert_int_eq(!!o->hidden, no_proc);
	return o;
}

static void write_text(struct output *o, const char *text)
{
	ck_assert_msg(!output_write(o, text, strlen(text), why, sizeof(why)), "%s", why);
}

/* Whatever the pieces and their order, the file has what was written where it was written. */
START_TEST(pieces_arrive)
{
	size_t n = 5 << 20, at = 0;
	uint8_t *want = calloc(1, n), *from = malloc(n);
	uint64_t state = 9;
	struct output *o;

	begin(_i);
	ck_assert(want && from);
	for (size_t i = 0; i < n; i++)
		from[i] = (uint8_t)tiny_random(&state);
	o = new(false);
	ck_assert_int_eq(output_reserve(o, 2 * n, why, sizeof(why)), 0);
	while (at < n) {
		uint64_t r = tiny_random(&state);
		size_t len = (size_t)((r >> 8) % (r % 8 ? 4000 : 3 << 20));

		len = len < n - at ? len : n - at;
		ck_assert_int_eq(output_write(o, from + at, len, why, sizeof(why)), 0);
		memcpy(want + at, from + at, len);
		at += len;
		ck_assert_uint_eq(output_bytes(o), at);
		if (r % 5 == 0 && at > 100) {
			size_t to = (size_t)(tiny_random(&state) % (at - 100));

			ck_assert_int_eq(output_write_at(o, to, from, 100, why, sizeof(why)), 0);
			memcpy(want + to, from, 100);
			ck_assert_uint_eq(output_bytes(o), at);
		}
	}
	ck_assert_int_eq(access(path, F_OK), -1);
	ck_assert_int_eq(entries(), _i);
	ck_assert_msg(!output_commit(o, why, sizeof(why)), "%s", why);
	expect(want, n);
	output_free(o);
	ck_assert_int_eq(entries(), 1);
	expect(want, n);
	free(want);
	free(from);
}
END_TEST

/* A header is written last, into the place that was left for it. */
START_TEST(gaps_can_be_filled)
{
	struct output *o;

	begin(_i);
	o = new(false);
	ck_assert_int_eq(output_write_at(o, 6, "end", 3, why, sizeof(why)), 0);
	write_text(o, "begin ");
	ck_assert_int_eq(output_commit(o, why, sizeof(why)), 0);
	output_free(o);
	expect("begin end", 9);
}
END_TEST

/* Giving up must leave nothing, or the disk fills with what nobody knows. */
START_TEST(uncommitted_leaves_nothing)
{
	struct output *o;

	begin(_i);
	o = new(false);
	write_text(o, "half");
	ck_assert_int_eq(entries(), _i);
	output_free(o);
	ck_assert_int_eq(entries(), 0);
	put("old");
	o = new(true);
	write_text(o, "half");
	output_free(o);
	ck_assert_int_eq(entries(), 1);
	expect("old", 3);
	ck_assert_ptr_null(output_free(NULL));
}
END_TEST

/* Somebody's file must not be written over unless he said so; then in one step, for readers too. */
START_TEST(existing_is_kept_or_replaced)
{
	struct output *o;
	struct stat st;
	char old[3];
	int fd;

	begin(_i);
	put("old");
	ck_assert_int_eq(chmod(path, 0600), 0);
	ck_assert_int_eq(output_new(path, false, &o, why, sizeof(why)), -EEXIST);
	snprintf(sentence, sizeof(sentence), "%s: exists already; remove it or choose another name", path);
	ck_assert_str_eq(why, sentence);
	fd = open(path, O_RDONLY);
	o = new(true);
	write_text(o, "new content");
	ck_assert_msg(!output_commit(o, why, sizeof(why)), "%s", why);
	expect("new content", 11);
	ck_assert_int_eq(read(fd, old, 3), 3);
	ck_assert_int_eq(memcmp(old, "old", 3), 0);
	close(fd);
	output_free(o);
	ck_assert_int_eq(entries(), 1);
	ck_assert_int_eq(stat(path, &st), 0);
	ck_assert_uint_eq(st.st_mode & 0777, 0600);
}
END_TEST

/* Two converters to one name: the second must lose, not win. */
START_TEST(who_comes_second_loses)
{
	struct output *o;

	begin(_i);
	o = new(false);
	write_text(o, "mine");
	put("theirs");
	ck_assert_int_eq(output_commit(o, why, sizeof(why)), -EEXIST);
	snprintf(sentence, sizeof(sentence), "%s: has come to exist meanwhile; remove it or choose another name",
		 path);
	ck_assert_str_eq(why, sentence);
	output_free(o);
	expect("theirs", 6);
	ck_assert_int_eq(entries(), 1);
}
END_TEST

/* kill -9 in the middle: the old file is there, and without a name nothing else is. */
START_TEST(killed_leaves_the_target)
{
	static const char half[100000];
	int p[2], status;
	pid_t pid;
	char byte;

	begin(_i);
	put("old");
	ck_assert_int_eq(pipe(p), 0);
	pid = fork();
	if (!pid) {
		struct output *o = new(true);

		for (int i = 0; i < 50; i++)
			if (output_write(o, half, sizeof(half), why, sizeof(why)))
				_exit(1);
		if (write(p[1], "x", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	close(p[1]);
	ck_assert_int_eq(read(p[0], &byte, 1), 1);
	close(p[0]);
	ck_assert_int_eq(kill(pid, SIGKILL), 0);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
	expect("old", 3);
	ck_assert_int_eq(entries(), 1 + _i);
}
END_TEST

/* After a step that failed, nothing may be committed: there is a hole in the file. */
START_TEST(limit_stops_for_good)
{
	static const char part[3 << 20];
	struct rlimit limit = { 1 << 20, 1 << 20 };
	struct output *o;

	begin(_i);
	signal(SIGXFSZ, SIG_IGN);
	o = new(false);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	ck_assert_int_eq(output_write(o, part, sizeof(part), why, sizeof(why)), -EFBIG);
	snprintf(sentence, sizeof(sentence), "%s: writing stopped: File too large", path);
	ck_assert_str_eq(why, sentence);
	ck_assert_int_eq(output_write(o, part, 1, why, sizeof(why)), -EFBIG);
	snprintf(sentence, sizeof(sentence), "%s: an earlier step failed: File too large", path);
	ck_assert_str_eq(why, sentence);
	ck_assert_int_eq(output_write_at(o, 0, part, 1, why, sizeof(why)), -EFBIG);
	ck_assert_int_eq(output_commit(o, why, sizeof(why)), -EFBIG);
	output_free(o);
	ck_assert_int_eq(entries(), 0);
}
END_TEST

static bool write_to(const char *file, const char *text)
{
	int fd = open(file, O_WRONLY);
	bool done = fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text);

	if (fd >= 0)
		close(fd);
	return done;
}

/* A small disk of our own, in a namespace that ends with the test; needs no root where those are free. */
static bool small_disk(void)
{
	unsigned uid = getuid(), gid = getgid();
	char map[64];

	if (uid && unshare(CLONE_NEWUSER))
		return false;
	if (uid) {
		snprintf(map, sizeof(map), "0 %u 1", uid);
		if (!write_to("/proc/self/uid_map", map) || !write_to("/proc/self/setgroups", "deny"))
			return false;
		snprintf(map, sizeof(map), "0 %u 1", gid);
		if (!write_to("/proc/self/gid_map", map))
			return false;
	}
	return !unshare(CLONE_NEWNS) && !mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	       !mount("small", folder, "tmpfs", 0, "size=2m");
}

/* A full disk, the real one: said with its place, and the target is as it was. */
START_TEST(full_disk_leaves_the_target)
{
	static const char part[700000];
	struct output *o;
	int err = 0;

	begin(_i);
	if (!small_disk()) {
		printf("skip: a full disk (no namespace for a small one)\n");
		return;
	}
	put("old");
	o = new(true);
	ck_assert_int_eq(output_reserve(o, 3 << 20, why, sizeof(why)), -ENOSPC);
	snprintf(sentence, sizeof(sentence), "%s: there is no room for 3145728 bytes: No space left on device; "
		 "free some or write elsewhere", path);
	ck_assert_str_eq(why, sentence);
	output_free(o);
	o = new(true);
	for (int i = 0; i < 10 && !err; i++)
		err = output_write(o, part, sizeof(part), why, sizeof(why));
	ck_assert_int_eq(err, -ENOSPC);
	snprintf(sentence, sizeof(sentence), "%s: writing stopped after ", path);
	ck_assert_msg(!strncmp(why, sentence, strlen(sentence)) &&
		      strstr(why, " bytes: No space left on device; nothing was left behind"), "%s", why);
	ck_assert_int_eq(output_commit(o, why, sizeof(why)), -ENOSPC);
	output_free(o);
	ck_assert_int_eq(entries(), 1);
	expect("old", 3);
	ck_assert_int_eq(umount2(folder, MNT_DETACH), 0);
}
END_TEST

/* What cannot be a file is refused before hours of work, each in its own words. */
START_TEST(bad_targets_are_refused)
{
	struct output *o;

	begin(0);
	ck_assert_int_eq(output_new(folder, true, &o, why, sizeof(why)), -EISDIR);
	snprintf(sentence, sizeof(sentence), "%s: is a folder; give the file's name", folder);
	ck_assert_str_eq(why, sentence);
	strcat(path, "/");
	ck_assert_int_eq(output_new(path, true, &o, why, sizeof(why)), -EISDIR);
	snprintf(sentence, sizeof(sentence), "%s: names a folder; give the file's name", path);
	ck_assert_str_eq(why, sentence);
	strcat(path, "x");
	ck_assert_int_eq(output_new(path, true, &o, why, sizeof(why)), -ENOENT);
	snprintf(sentence, sizeof(sentence), "%s: its folder cannot be opened: No such file or directory", path);
	ck_assert_str_eq(why, sentence);
	ck_assert_int_eq(output_new("/dev/null", true, &o, why, sizeof(why)), -EINVAL);
	ck_assert_str_eq(why, "/dev/null: is not a regular file; give another name");
	ck_assert_int_eq(output_new("", true, &o, why, sizeof(why)), -EISDIR);
}
END_TEST

/* The longest name a file may have leaves no room for ours around it. */
START_TEST(long_names_fit)
{
	struct output *o;
	size_t n;

	begin(_i);
	n = strlen(folder);
	ck_assert_uint_lt(n + 1 + 200, sizeof(path));
	memset(path + n + 1, 'n', sizeof(path) - n - 2);
	path[sizeof(path) - 1] = 0;
	if (sizeof(path) - n - 2 > 255)
		path[n + 1 + 255] = 0;
	o = new(true);
	write_text(o, "x");
	ck_assert_msg(!output_commit(o, why, sizeof(why)), "%s", why);
	output_free(o);
	expect("x", 1);
	ck_assert_int_eq(entries(), 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("output");
	TCase *t = tcase_create("output");
	SRunner *r;
	int failed;

	/* Each with a file without a name, and with a hidden one. */
	tmp_fixture(t);
	tcase_add_loop_test(t, pieces_arrive, 0, 2);
	tcase_add_loop_test(t, gaps_can_be_filled, 0, 2);
	tcase_add_loop_test(t, uncommitted_leaves_nothing, 0, 2);
	tcase_add_loop_test(t, existing_is_kept_or_replaced, 0, 2);
	tcase_add_loop_test(t, who_comes_second_loses, 0, 2);
	tcase_add_loop_test(t, killed_leaves_the_target, 0, 2);
	tcase_add_loop_test(t, limit_stops_for_good, 0, 2);
	tcase_add_loop_test(t, full_disk_leaves_the_target, 0, 2);
	tcase_add_test(t, bad_targets_are_refused);
	tcase_add_loop_test(t, long_names_fit, 0, 2);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

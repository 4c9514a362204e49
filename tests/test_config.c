/* SPDX-License-Identifier: MIT */
/*
 * The configuration: if a wrong line were taken, a limit would silently not be the one that the
 * administrator wrote; if a refusal did not name line and key, he could not mend it.
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "broker.h"
#include "config.h"

static struct config c;
static char why[CONFIG_WHY_MAX];

static int parse(const char *text)
{
	memset(why, 0, sizeof(why));
	config_defaults(&c);
	if (config_parse(&c, text, strlen(text), "f", why, sizeof(why)))
		return -1;
	return config_finish(&c, why, sizeof(why));
}

static void set_up(void)
{
	ck_assert_int_eq(parse(""), 0);
}

/* Each message once, in full: what happened, where, what is allowed. */
static const struct {
	const char *text, *why;
} refused[] = {
	{ "sokcet = /x", "f:1: unknown key 'sokcet'; did you mean 'socket'?" },
	{ "# one\n\nlimit.client = 1", "f:3: unknown key 'limit.client'; did you mean 'limit.clients'?" },
	{ "uid.7.inflght = 1", "f:1: unknown key 'uid.7.inflght'; did you mean 'uid.7.inflight'?" },
	{ "telephone = 1", "f:1: unknown key 'telephone'; onebitd.conf(5) lists the keys" },
	{ "a key that is far longer than any key of this file or of any other file there is "
	  "anywhere = 1",
	  "f:1: unknown key 'a key that is far longer than any key of this file or of any oth...'; "
	  "onebitd.conf(5) lists the keys" },
	{ "just words", "f:1: 'just words' is not of the form 'key = value'" },
	{ " = 5", "f:1: there is no key before '='" },
	{ "user = a\001b", "f:1: the line has a control character (byte 0x01); remove it" },
	{ "max_tokens = 5\nmax_tokens = 6",
	  "f:2: max_tokens is given twice in this file; drop one of the lines" },
	{ "limit.admin = on\nlimit.admin = off",
	  "f:2: limit.admin is given twice in this file; drop one of the lines" },
	{ "uid.3.admin = on\nuid.3.admin = on",
	  "f:2: uid.3.admin is given twice in this file; drop one of the lines" },
	{ "max_clients = 0",
	  "f:1: max_clients = '0' is out of range or no number; allowed are 1 to 4096" },
	{ "max_clients = 4097",
	  "f:1: max_clients = '4097' is out of range or no number; allowed are 1 to 4096" },
	{ "drain_ms = 5s",
	  "f:1: drain_ms = '5s' is out of range or no number; allowed are 0 to 3600000" },
	{ "drain_ms = -1",
	  "f:1: drain_ms = '-1' is out of range or no number; allowed are 0 to 3600000" },
	{ "drain_ms =", "f:1: drain_ms = '' is out of range or no number; allowed are 0 to 3600000" },
	{ "limit.queued_kib = 18446744073709551617", "f:1: limit.queued_kib = '18446744073709551617' "
	  "is out of range or no number; allowed are 0 to 1073741824" },
	/* five times 2^64, and one: the product wraps to 0 */
	{ "limit.queued_kib = 92233720368547758081", "f:1: limit.queued_kib = '92233720368547758081' "
	  "is out of range or no number; allowed are 0 to 1073741824" },
	{ "journal_mib = 1025",
	  "f:1: journal_mib = '1025' is out of range or no number; allowed are 1 to 1024" },
	{ "journal_mib = 3",
	  "f:1: journal_mib = '3' is not a power of two; allowed are 1, 2, 4 to 1024" },
	{ "socket_mode = 0668", "f:1: socket_mode = '0668' is not an octal mode; allowed are 0 to 0777" },
	{ "socket_mode = 1777", "f:1: socket_mode = '1777' is not an octal mode; allowed are 0 to 0777" },
	{ "sandbox = yes", "f:1: sandbox = 'yes' is not known; allowed are on, off" },
	{ "event_loop = select",
	  "f:1: event_loop = 'select' is not known; allowed are auto, io_uring, epoll" },
	{ "log = loud", "f:1: log = 'loud' is not known; allowed are debug, info, warn, error" },
	{ "socket =", "f:1: socket has no value; give one or drop the line" },
	{ "socket = /23456789012345678901234567890123456789012345678901234567890123456789012345678901"
	  "234567890123456789012345678", "f:1: socket has 108 bytes; allowed are 107" },
	{ "executor = loopback -v",
	  "f:1: executor = 'loopback' is not a path; give the program with its folder" },
	{ "executor = ./x 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2",
	  "f:1: executor has more words than the 32 allowed; use a script" },
	{ "uid.x.admin = on",
	  "f:1: 'uid.x.admin' names no user; write uid.N.NAME with a user number" },
	{ "uid.4294967295.admin = on",
	  "f:1: 'uid.4294967295.admin': user numbers end at 4294967294" },
	{ "max_tokens = 10\ndefault_tokens = 11", "configuration: default_tokens = 11 is above "
	  "max_tokens = 10; lower it or raise max_tokens" },
};

/* A refusal that lost its line, its key or its range would leave the administrator guessing. */
START_TEST(refusals_say_why)
{
	ck_assert_int_ne(parse(refused[_i].text), 0);
	ck_assert_str_eq(why, refused[_i].why);
}
END_TEST

/* A value too long for any key must be refused by its length, not cut. */
START_TEST(endless_value_is_refused)
{
	static char text[5000];

	memset(text, 'x', sizeof(text) - 1);
	memcpy(text, "model = ", 8);
	ck_assert_int_ne(parse(text), 0);
	ck_assert_str_eq(why, "f:1: model has 4991 bytes; no value has more than 1024");
	text[600] = 0;
	ck_assert_int_ne(parse(text), 0);
	ck_assert_str_eq(why, "f:1: model has 592 bytes; allowed are 511");
}
END_TEST

/* A file that is no configuration, /dev/zero say, must be refused before it is read through. */
START_TEST(endless_file_is_refused)
{
	char *text = calloc(1, CONFIG_FILE_MAX + 1);

	ck_assert_int_eq(config_parse(&c, text, CONFIG_FILE_MAX + 1, "f", why, sizeof(why)), -EINVAL);
	ck_assert_str_eq(why, "f: the file has 1048577 bytes; allowed are 1048576");
	free(text);
}
END_TEST

/* A 65th user with limits of its own would be written behind the table. */
START_TEST(users_are_bounded)
{
	char text[64 * 32], *p = text;

	for (unsigned i = 0; i < OVERRIDES_MAX; i++)
		p += sprintf(p, "uid.%u.admin = on\n", i);
	ck_assert_int_eq(parse(text), 0);
	ck_assert_uint_eq(c.policy.n_overrides, OVERRIDES_MAX);
	sprintf(p, "uid.%u.admin = on\n", OVERRIDES_MAX);
	ck_assert_int_ne(parse(text), 0);
	ck_assert_str_eq(why, "f:65: uid.64.admin: more than 64 users have limits of their own; use "
			 "limit.* and fewer uid.*");
}
END_TEST

/* A refused value must not leave an empty entry that refuses the user everything. */
START_TEST(refused_override_leaves_nothing)
{
	ck_assert_int_ne(config_set(&c, "uid.5.clients = many", why, sizeof(why)), 0);
	ck_assert_uint_eq(c.policy.n_overrides, 0);
}
END_TEST

/* Every key must reach the field it is named for, in the field's unit. */
START_TEST(values_arrive)
{
	ck_assert_int_eq(parse("socket = /a b/s # x\nsocket_mode = 600\nsocket_group=g\n\tuser\t= u \r\n"
			       "executor = /bin/x  -a\tb\nmodel = /m\nmodel_dir = /d\n"
			       "event_loop = epoll\nsandbox = off\nlog = warn\nmax_clients = 2\n"
			       "max_requests = 3\njournal_mib = 1024\nmax_tokens = 5\n"
			       "default_tokens = 4\nprogress_ms = 10\ndrain_ms = 0\n"), 0);
	ck_assert_str_eq(c.socket, "/a b/s # x");
	ck_assert_uint_eq(c.socket_mode, 0600);
	ck_assert_str_eq(c.socket_group, "g");
	ck_assert_str_eq(c.user, "u");
	ck_assert_str_eq(c.executor, "/bin/x  -a\tb");
	ck_assert_str_eq(c.model, "/m");
	ck_assert_str_eq(c.model_dir, "/d");
	ck_assert_uint_eq(c.loop, LOOP_EPOLL);
	ck_assert(!c.sandbox);
	ck_assert_uint_eq(c.log, BROKER_WARN);
	ck_assert_uint_eq(c.policy.max_clients, 2);
	ck_assert_uint_eq(c.policy.max_requests, 3);
	ck_assert_uint_eq(c.policy.journal_bytes, 1u << 30);
	ck_assert_uint_eq(c.policy.max_tokens, 5);
	ck_assert_uint_eq(c.policy.default_tokens, 4);
	ck_assert_uint_eq(c.policy.progress_ms, 10);
	ck_assert_uint_eq(c.policy.drain_ms, 0);
}
END_TEST

static void check_limits(const struct policy_limits *l)
{
	ck_assert_uint_eq(l->max_clients, 1);
	ck_assert_uint_eq(l->max_inflight, 2);
	ck_assert_uint_eq(l->max_bytes, 3ull << 20);
	ck_assert_uint_eq(l->max_queued_bytes, 5ull << 30);
	ck_assert_uint_eq(l->tokens_per_second, 6);
	ck_assert_uint_eq(l->spin_ns, 7000);
	ck_assert(l->delegate);
	ck_assert(l->admin);
}

/* Units again, for everybody and for one user; above 4 GiB a 32-bit product would wrap. */
START_TEST(limits_arrive)
{
	static const char *const lines[] = { "clients = 1", "inflight = 2", "bytes_mib = 3",
					     "queued_kib = 5242880", "tokens_per_second = 6",
					     "spin_us = 7", "delegate = on", "admin = on" };
	char line[64];

	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		snprintf(line, sizeof(line), "limit.%s", lines[i]);
		ck_assert_int_eq(config_set(&c, line, why, sizeof(why)), 0);
	}
	check_limits(&c.policy.limits);
	config_defaults(&c);
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		snprintf(line, sizeof(line), "uid.4294967294.%s", lines[i]);
		ck_assert_int_eq(config_set(&c, line, why, sizeof(why)), 0);
	}
	check_limits(policy_of(&c.policy, 4294967294u));
	ck_assert(!policy_of(&c.policy, 1)->admin);
}
END_TEST

/* A user's unnamed limits must be everybody's, in whichever order the lines stand. */
START_TEST(users_inherit)
{
	ck_assert_int_eq(parse("uid.5.clients = 9\nlimit.inflight = 7\nlimit.clients = 3\n"), 0);
	ck_assert_uint_eq(policy_of(&c.policy, 5)->max_clients, 9);
	ck_assert_uint_eq(policy_of(&c.policy, 5)->max_inflight, 7);
	ck_assert_uint_eq(policy_of(&c.policy, 6)->max_clients, 3);
	/* and from an -o that comes after the file */
	ck_assert_int_eq(config_set(&c, "limit.inflight = 8", why, sizeof(why)), 0);
	ck_assert_int_eq(config_finish(&c, why, sizeof(why)), 0);
	ck_assert_uint_eq(policy_of(&c.policy, 5)->max_inflight, 8);
}
END_TEST

/* On the command line the last word counts: scripts append to what they were given. */
START_TEST(settings_replace)
{
	ck_assert_int_eq(parse("max_tokens = 5\nuid.1.admin = on"), 0);
	ck_assert_int_eq(config_set(&c, "max_tokens = 6", why, sizeof(why)), 0);
	ck_assert_int_eq(config_set(&c, "max_tokens=7", why, sizeof(why)), 0);
	ck_assert_int_eq(config_set(&c, "uid.1.admin = off", why, sizeof(why)), 0);
	ck_assert_int_eq(config_finish(&c, why, sizeof(why)), 0);
	ck_assert_uint_eq(c.policy.max_tokens, 7);
	ck_assert(!policy_of(&c.policy, 1)->admin);
	ck_assert_int_ne(config_set(&c, "max_tokens = x", why, sizeof(why)), 0);
	ck_assert_str_eq(why, "-o: max_tokens = 'x' is out of range or no number; allowed are 1 to "
			 "1048576");
	ck_assert_int_ne(config_set(&c, "  ", why, sizeof(why)), 0);
	ck_assert_str_eq(why, "-o: the setting is empty; give 'key = value'");
}
END_TEST

/* Lowering max_tokens alone must not fail on a default that nobody wrote. */
START_TEST(default_tokens_follow)
{
	ck_assert_int_eq(parse("max_tokens = 100"), 0);
	ck_assert_uint_eq(c.policy.default_tokens, 100);
}
END_TEST

/* What is printed must mean the same again, or `--check > file` would change a daemon. */
START_TEST(print_reads_back)
{
	static char one[CONFIG_PRINT_MAX], two[CONFIG_PRINT_MAX];
	struct policy first;

	ck_assert_int_eq(parse("user =\nsocket_mode = 7\nlimit.spin_us = 9\nuid.9.bytes_mib = 77\n"
			       "uid.8.delegate = on\nmax_tokens = 3\nexecutor = /x y\n"), 0);
	ck_assert_uint_lt(config_print(&c, one, sizeof(one)), sizeof(one));
	first = c.policy;
	ck_assert_int_eq(parse(one), 0);
	ck_assert_uint_lt(config_print(&c, two, sizeof(two)), sizeof(two));
	ck_assert_str_eq(one, two);
	ck_assert(memcmp(&first, &c.policy, sizeof(first)) == 0);
}
END_TEST

/* The largest configuration must fit what is given for it; a shorter buffer must be respected. */
START_TEST(print_is_bounded)
{
	static const char *const limits[] = { "clients = 4096", "inflight = 8192",
					      "bytes_mib = 1048576", "queued_kib = 1073741824",
					      "tokens_per_second = 1000000000", "spin_us = 10000",
					      "delegate = off", "admin = off" };
	static char text[CONFIG_PRINT_MAX], line[64];
	char small[16];
	size_t n;

	memset(c.model, 'm', sizeof(c.model) - 1);
	memset(c.model_dir, 'm', sizeof(c.model_dir) - 1);
	memset(c.executor, '/', sizeof(c.executor) - 1);
	for (unsigned uid = 0; uid < OVERRIDES_MAX; uid++)
		for (unsigned i = 0; i < 8; i++) {
			snprintf(line, sizeof(line), "uid.%u.%s", UINT32_MAX - 1 - uid, limits[i]);
			ck_assert_int_eq(config_set(&c, line, why, sizeof(why)), 0);
		}
	n = config_print(&c, text, sizeof(text));
	ck_assert_uint_lt(n, sizeof(text));
	ck_assert_uint_eq(strlen(text), n);
	memset(small, 'x', sizeof(small));
	ck_assert_uint_eq(config_print(&c, small, sizeof(small) - 1), n);
	ck_assert_int_eq(small[sizeof(small) - 1], 'x');
	ck_assert_uint_eq(strlen(small), sizeof(small) - 2);
	ck_assert_uint_eq(config_print(&c, NULL, 0), n);
}
END_TEST

/* A reload that moved the socket or the journal under a running broker would lose both. */
START_TEST(reload_keeps_what_is_fixed)
{
	static struct config next;
	char changed[256];

	ck_assert_int_eq(parse("socket = /new\njournal_mib = 1\nmax_tokens = 600\nlimit.clients = 2\n"
			       "progress_ms = 77"), 0);
	next = c;
	config_defaults(&c);
	config_keep_fixed(&next, &c, changed, sizeof(changed));
	ck_assert_str_eq(changed, "socket journal_mib");
	ck_assert_str_eq(next.socket, c.socket);
	ck_assert_uint_eq(next.policy.journal_bytes, c.policy.journal_bytes);
	ck_assert_uint_eq(next.policy.max_tokens, 600);
	ck_assert_uint_eq(next.policy.progress_ms, 77);
	ck_assert_uint_eq(next.policy.limits.max_clients, 2);
	config_keep_fixed(&next, &c, changed, sizeof(changed));
	ck_assert_str_eq(changed, "");
}
END_TEST

/* The words of the executor's command line must be its argv, with nothing behind the end. */
START_TEST(command_is_split)
{
	char command[] = "  /x \t-a  b ", empty[] = "  ", *argv[CONFIG_ARGS_MAX + 1];

	ck_assert_uint_eq(config_split(command, argv), 3);
	ck_assert_str_eq(argv[0], "/x");
	ck_assert_str_eq(argv[1], "-a");
	ck_assert_str_eq(argv[2], "b");
	ck_assert_ptr_null(argv[3]);
	ck_assert_uint_eq(config_split(empty, argv), 0);
	ck_assert_ptr_null(argv[0]);
}
END_TEST

/* A daemon with a model and no word on how to run it would refuse every prompt, or run it unconfined. */
START_TEST(model_brings_its_executor)
{
	static const struct {
		const char *text, *argv[4];
	} cases[] = {
		{ "", { NULL } },
		{ "model_dir = /d", { NULL } },
		{ "model = /m", { "/p q/onebit-executor", NULL } },
		{ "model = /m\nsandbox = off", { "/p q/onebit-executor", "--no-sandbox", NULL } },
		{ "model = /m\nexecutor =", { "/p q/onebit-executor", NULL } },
		{ "model = /m\nexecutor = /x -a\nsandbox = off", { "/x", "-a", NULL } },
		{ "executor = /x", { "/x", NULL } },
	};
	static char command[CONFIG_COMMAND_MAX], own[CONFIG_COMMAND_MAX + 1];
	char *argv[CONFIG_ARGS_MAX + 1];

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		unsigned n = 0;

		ck_assert_int_eq(parse(cases[i].text), 0);
		ck_assert_int_eq(config_executor(&c, "/p q/onebit-executor", command, argv), 0);
		for (; cases[i].argv[n]; n++)
			ck_assert_str_eq(argv[n], cases[i].argv[n]);
		ck_assert_ptr_null(argv[n]);
	}
	memset(own, 'x', sizeof(own) - 1);
	ck_assert_int_eq(parse("model = /m"), 0);
	ck_assert_int_eq(config_executor(&c, own, command, argv), -ENAMETOOLONG);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("config");
	TCase *t = tcase_create("config");
	SRunner *r;
	int failed;

	tcase_add_checked_fixture(t, set_up, NULL);
	tcase_add_loop_test(t, refusals_say_why, 0, (int)(sizeof(refused) / sizeof(refused[0])));
	tcase_add_test(t, endless_value_is_refused);
	tcase_add_test(t, endless_file_is_refused);
	tcase_add_test(t, users_are_bounded);
	tcase_add_test(t, refused_override_leaves_nothing);
	tcase_add_test(t, values_arrive);
	tcase_add_test(t, limits_arrive);
	tcase_add_test(t, users_inherit);
	tcase_add_test(t, settings_replace);
	tcase_add_test(t, default_tokens_follow);
	tcase_add_test(t, print_reads_back);
	tcase_add_test(t, print_is_bounded);
	tcase_add_test(t, reload_keeps_what_is_fixed);
	tcase_add_test(t, command_is_split);
	tcase_add_test(t, model_brings_its_executor);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

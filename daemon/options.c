/* SPDX-License-Identifier: MIT */
/* What onebitd is told when it is started: options, the configuration file, settings over it. */
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_FILE "/etc/onebit/onebitd.conf"

static const char usage[] =
	"usage: onebitd [-c FILE|none] [-o 'key = value']... [--check]\n"
	"\n"
	"Serves a local language model to the processes of this machine. Stays in the foreground.\n"
	"\n"
	"  -c, --config FILE    read this configuration; 'none': none\n"
	"                       (default " DEFAULT_FILE ", when it exists)\n"
	"  -o, --option SETTING a line of configuration, over the file's\n"
	"      --check          print the configuration in force and exit: 0, or 1 and why not\n"
	"      --help           print this\n"
	"      --version        print the version\n"
	"\n"
	"SIGHUP reads the configuration again, SIGTERM finishes what was accepted and exits.\n"
	"See onebitd(8), onebitd.conf(5).\n";

int options_parse(struct options *o, int argc, char **argv)
{
	static const struct option longs[] = {
		{ "config", required_argument, NULL, 'c' }, { "option", required_argument, NULL, 'o' },
		{ "check", no_argument, NULL, 'C' },        { "help", no_argument, NULL, 'h' },
		{ "version", no_argument, NULL, 'V' },      { NULL, 0, NULL, 0 },
	};
	int c;

	memset(o, 0, sizeof(*o));
	while ((c = getopt_long(argc, argv, "c:o:", longs, NULL)) != -1) {
		switch (c) {
		case 'c':
			o->file = optarg;
			break;
		case 'o':
			if (o->n_settings == OPTIONS_SETTINGS_MAX) {
				fprintf(stderr, "onebitd: more than %u times -o; use a file and -c\n",
					OPTIONS_SETTINGS_MAX);
				return EXIT_FAILURE;
			}
			o->settings[o->n_settings++] = optarg;
			break;
		case 'C':
			o->check = true;
			break;
		case 'h':
			fputs(usage, stdout);
			return EXIT_SUCCESS;
		case 'V':
			puts("onebitd " ONEBIT_VERSION);
			return EXIT_SUCCESS;
		default:
			fputs("onebitd --help lists the options\n", stderr);
			return EXIT_FAILURE;
		}
	}
	if (optind < argc) {
		fprintf(stderr, "onebitd: unexpected argument '%s'; onebitd --help lists the options\n",
			argv[optind]);
		return EXIT_FAILURE;
	}
	return -1;
}

static int read_file(struct config *c, const char *path, char *why, size_t why_len)
{
	char *text = NULL;
	struct stat st;
	size_t n = 0;
	ssize_t got = 0;
	int err = 0;
	/* O_NONBLOCK: opening a pipe must not hang a reload. */
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0 || fstat(fd, &st)) {
		err = -errno;
		snprintf(why, why_len, "cannot read %s: %s; correct -c or the file's mode", path,
			 strerror(-err));
		goto out;
	}
	if (!S_ISREG(st.st_mode)) {
		snprintf(why, why_len, "%s is not a file; name the configuration file with -c", path);
		err = -EINVAL;
		goto out;
	}
	text = malloc(CONFIG_FILE_MAX + 1);
	if (!text) {
		snprintf(why, why_len, "no memory to read %s", path);
		err = -ENOMEM;
		goto out;
	}
	/* One byte more than allowed is enough for config_parse() to refuse it. */
	while (n <= CONFIG_FILE_MAX && (got = read(fd, text + n, CONFIG_FILE_MAX + 1 - n)) > 0)
		n += (size_t)got;
	if (got < 0) {
		err = -errno;
		snprintf(why, why_len, "reading %s failed: %s", path, strerror(-err));
		goto out;
	}
	err = config_parse(c, text, n, path, why, why_len);
out:
	free(text);
	if (fd >= 0)
		close(fd);
	return err;
}

int options_load(const struct options *o, struct config *c, char *why, size_t why_len)
{
	int err = 0;

	config_defaults(c);
	if (o->file && strcmp(o->file, "none") != 0)
		err = read_file(c, o->file, why, why_len);
	else if (!o->file && access(DEFAULT_FILE, F_OK) == 0)
		err = read_file(c, DEFAULT_FILE, why, why_len);
	for (unsigned i = 0; !err && i < o->n_settings; i++)
		err = config_set(c, o->settings[i], why, why_len);
	return err ? err : config_finish(c, why, why_len);
}

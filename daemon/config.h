/* SPDX-License-Identifier: MIT */
#ifndef CONFIG_H
#define CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "policy.h"
#include "process.h"

/*
 * The configuration: text in, one plain value out. It holds no pointer and no descriptor, so that a
 * reload reads into a second one and copies it over the first only when all of it is good. These
 * functions touch nothing but their arguments; fuzz_config feeds them anything.
 *
 * Order of calls: config_defaults(), config_parse() for the file, config_set() for each -o,
 * config_finish(). Then config_print() gives text that means the same again.
 */

#define CONFIG_PATH_MAX 512u
#define CONFIG_ARGS_MAX 32u /* words of the executor's command line */
#define CONFIG_COMMAND_MAX 1024u
#define CONFIG_FILE_MAX (1u << 20)
#define CONFIG_WHY_MAX  512u /* room for any message of this file */
#define CONFIG_PRINT_MAX 32768u /* room for any configuration printed */

struct config {
	char socket[108]; /* as long as sun_path */
	char socket_group[64];
	char user[64];
	char executor[CONFIG_COMMAND_MAX]; /* "": the one that comes with onebitd, where a model is set */
	char model[CONFIG_PATH_MAX];
	char model_dir[CONFIG_PATH_MAX];
	uint32_t socket_mode;
	uint32_t loop; /* enum loop_kind */
	uint32_t log;  /* enum broker_log */
	bool sandbox;
	struct policy policy;
	/* what was said, as opposed to left at its default: bits of config.c's key tables */
	uint64_t given;
	uint32_t given_override[OVERRIDES_MAX];
};

void config_defaults(struct config *c);
/* A file's text; name is for messages, which read "NAME:LINE: ...". 0, or -EINVAL and why. */
int config_parse(struct config *c, const char *text, size_t len, const char *name, char *why,
		 size_t why_len);
/* One "key = value"; unlike within a file, what was given before is replaced. */
int config_set(struct config *c, const char *setting, char *why, size_t why_len);
/* What each uid did not get of its own it takes from limit.*, then the keys are held together. */
int config_finish(struct config *c, char *why, size_t why_len);

/* As snprintf(): the bytes that all of it needs, however many there was room for. */
size_t config_print(const struct config *c, char *text, size_t len);

/*
 * A reload can not change what is fixed at start: take those values from running. Writes the names
 * of the keys that differ, blank-separated, to changed.
 */
void config_keep_fixed(struct config *c, const struct config *running, char *changed, size_t len);

/* Cut a command line at blanks, in place: argv of at most CONFIG_ARGS_MAX words and a NULL. */
unsigned config_split(char *command, char *argv[CONFIG_ARGS_MAX + 1]);
/*
 * The executor's argv, over command: that of the configuration; where it names none, but a model, own,
 * the path of the program that comes with onebitd, which keeps to the sandbox key; else argv[0] is NULL.
 * 0, or -ENAMETOOLONG: own does not fit.
 */
int config_executor(const struct config *c, const char *own, char command[CONFIG_COMMAND_MAX],
		    char *argv[CONFIG_ARGS_MAX + 1]);

#endif

/* SPDX-License-Identifier: MIT */
#ifndef LOG_H
#define LOG_H

#include "broker.h"

/*
 * One line an event, to standard error, and never a wait for it: a reader that does not read costs
 * lines, which are counted and told once there is room again. Under the journal each line carries
 * its priority as <n>. Bytes of a line that are not printable come out as \xNN, so that no value
 * can forge a line. Prompts and answers are never logged.
 */

#define LOG_LINE_MAX 512u /* longer lines are cut and end in "..." */
#define LOG_BURST    64u  /* lines of one level at once; LOG_RATE a second after that */
#define LOG_RATE     16u

/* level: the least that is written (enum broker_log). ident stands on each line. Call it again
 * after a fork or a change of level; it starts the counts anew. */
void log_init(int level, const char *ident);

void log_line(enum broker_log level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif

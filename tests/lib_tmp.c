/* SPDX-License-Identifier: MIT */
#include "lib_tmp.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static char outer[256], folder[300];
static int had_outer;

static void make(void)
{
	const char *tmp = getenv("TMPDIR");

	had_outer = tmp && *tmp;
	ck_assert_msg(!had_outer || strlen(tmp) < sizeof(outer), "$TMPDIR is too long");
	strcpy(outer, had_outer ? tmp : "/tmp");
	snprintf(folder, sizeof(folder), "%s/t-XXXXXX", outer);
	ck_assert_msg(mkdtemp(folder) && !chmod(folder, 0755), "%s: a folder cannot be made", folder);
	setenv("TMPDIR", folder, 1);
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at)
{
	(void)st;
	(void)type;
	(void)at;
	return remove(path);
}

static void clear(void)
{
	if (had_outer)
		setenv("TMPDIR", outer, 1);
	else
		unsetenv("TMPDIR");
	nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void tmp_fixture(TCase *t)
{
	tcase_add_unchecked_fixture(t, make, clear);
}

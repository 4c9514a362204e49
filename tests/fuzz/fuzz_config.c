/* SPDX-License-Identifier: MIT */
/*
 * Any bytes as a configuration file. What is accepted must print as text that is accepted again and
 * prints the same; what is refused must say why, and an accepted value must lie in its range.
 */
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include "config.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char first[CONFIG_PRINT_MAX], second[CONFIG_PRINT_MAX];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct config c, again;
	char why[CONFIG_WHY_MAX] = "";

	config_defaults(&c);
	if (config_parse(&c, (const char *)data, size, "f", why, sizeof(why)) ||
	    config_finish(&c, why, sizeof(why))) {
		assert(*why);
		return 0;
	}
	assert(!*why);
	assert(c.policy.max_clients >= 1 && c.policy.max_clients <= CLIENTS_CEILING);
	assert(c.policy.journal_bytes && !(c.policy.journal_bytes & (c.policy.journal_bytes - 1)));
	assert(c.policy.default_tokens <= c.policy.max_tokens);
	assert(c.policy.n_overrides <= OVERRIDES_MAX);
	assert(memchr(c.socket, 0, sizeof(c.socket)) && *c.socket);

	assert(config_print(&c, first, sizeof(first)) < sizeof(first));
	config_defaults(&again);
	assert(config_parse(&again, first, strlen(first), "f", why, sizeof(why)) == 0);
	assert(config_finish(&again, why, sizeof(why)) == 0);
	assert(config_print(&again, second, sizeof(second)) < sizeof(second));
	assert(strcmp(first, second) == 0);
	assert(memcmp(&c.policy, &again.policy, sizeof(c.policy)) == 0);
	return 0;
}

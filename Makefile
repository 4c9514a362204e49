# SPDX-License-Identifier: MIT
#
# The whole build. A folder's include path is its permission: what a layer may not see is not on its
# command line. Everything made goes under build/ (build/address etc. with SAN=).

VERSION = 0.1.0
SOVERSION = 0

CC ?= cc
AR ?= ar
OPT ?= -O2 -g
PREFIX ?= /usr
SYSCONFDIR ?= /etc
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=

BUILD = build$(if $(SAN),/$(SAN))
WARN = -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes \
       -Wvla -Wundef -Wwrite-strings
CSTD = -std=c17 -D_GNU_SOURCE
SANFLAGS = $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer $(if $(filter undefined,$(SAN)),-fno-sanitize-recover=all))
ALL_CFLAGS = $(CSTD) $(OPT) $(WARN) $(if $(CI),-Werror) -fPIC -ffp-contract=off -fvisibility=hidden \
             -DONEBIT_VERSION='"$(VERSION)"' $(SANFLAGS) $(CFLAGS)
ALL_LDFLAGS = -Wl,-z,relro,-z,now $(SANFLAGS) $(LDFLAGS)

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)')

# ---- what there is -------------------------------------------------------------------------------

# Each folder's permission: the folders whose headers it may include.
INC_client = -Iuapi -Iclient
INC_daemon = -Iuapi -Idaemon
INC_tests  = -Iuapi -Iclient -Idaemon -Itests

LIB_SRC    = client/libonebit.c $(wildcard client/lib_*.c)
CLI_SRC    = client/onebit.c $(wildcard client/cmd_*.c client/bench_*.c)
EXEC_SRC   = daemon/executor.c
# The core makes no system call; the process around it does.
BROKER_SRC = daemon/attach.c daemon/policy.c daemon/ring.c daemon/journal.c daemon/quota.c \
             daemon/sched.c daemon/link.c daemon/broker.c
DAEMON_SRC = $(filter-out $(BROKER_SRC) $(EXEC_SRC),$(wildcard daemon/*.c))
LOOP_SRC   = tests/loopback.c
LOOP_MAIN  = tests/loopback_main.c
TEST_SRC   = $(wildcard tests/test_*.c)
FUZZ_SRC   = $(wildcard tests/fuzz/fuzz_*.c)
EX_SRC     = $(wildcard client/examples/*.c)

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

LIBS     = $(BUILD)/libonebit.a $(BUILD)/libbroker.a $(BUILD)/libexecutor.a
PROGRAMS = $(BUILD)/onebitd $(BUILD)/onebit $(BUILD)/onebit-loopback
TESTS    = $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))
EXAMPLES = $(patsubst client/examples/%.c,$(BUILD)/examples/%,$(EX_SRC))

.DEFAULT_GOAL = all
.PHONY: all deps tests fuzz bench demo check install uninstall clean help
.DELETE_ON_ERROR:
.SECONDARY:

all: $(LIBS) $(BUILD)/libonebit.so $(PROGRAMS) $(EXAMPLES)
tests: all $(TESTS)

# ---- how it is made ------------------------------------------------------------------------------

$(BUILD)/obj/%.o: %.c Makefile
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(INC_$(firstword $(subst /, ,$<))) -MMD -MP -c $< -o $@

define archive
$(call say,AR,$@)
@rm -f $@
$(Q)$(AR) rcs $@ $(filter %.o,$^)
endef

define program
$(call say,LD,$@)
@mkdir -p $(@D)
$(Q)$(CC) $(filter %.o %.a,$^) $(ALL_LDFLAGS) $(1) -o $@
endef

$(BUILD)/libonebit.a: $(call obj,$(LIB_SRC))
	$(archive)
$(BUILD)/libbroker.a: $(call obj,$(BROKER_SRC))
	$(archive)
$(BUILD)/libexecutor.a: $(call obj,$(EXEC_SRC))
	$(archive)
$(BUILD)/libonebit.so: $(call obj,$(LIB_SRC)) client/libonebit.map
	$(call say,LD,$@)
	$(Q)$(CC) -shared $(filter %.o,$^) $(ALL_LDFLAGS) -Wl,-soname,libonebit.so.$(SOVERSION) \
		-Wl,--version-script=client/libonebit.map -o $@
$(BUILD)/onebitd: $(call obj,$(DAEMON_SRC)) $(BUILD)/libbroker.a
	$(call program,-luring)
$(BUILD)/onebit: $(call obj,$(CLI_SRC)) $(BUILD)/libonebit.a
	$(call program,-luring -lm -lpthread)
$(BUILD)/onebit-loopback: $(call obj,$(LOOP_MAIN) $(LOOP_SRC)) $(BUILD)/libexecutor.a
	$(call program,)
$(BUILD)/examples/%: $(BUILD)/obj/client/examples/%.o $(BUILD)/libonebit.a
	$(call program,-luring -lpthread)
$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(call obj,$(LOOP_SRC) $(wildcard tests/lib_*.c)) $(LIBS)
	$(call program,-luring -lcheck_pic -lsubunit -lpthread -lrt -lm)

clean:
	$(Q)rm -rf build

-include $(shell find build -name '*.d' 2>/dev/null)

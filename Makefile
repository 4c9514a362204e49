# SPDX-License-Identifier: MIT
#
# The whole build. A folder's include path is its permission: what a layer may not see is not on its
# command line. Everything made goes under build/ (build/address etc. with SAN=).

VERSION = 0.1.0
SOVERSION = 0

CC ?= cc
AR ?= ar
MACHINE := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine)))
OPT ?= -O2 -g
DESTDIR ?=
PREFIX ?= /usr
SYSCONFDIR ?= /etc
BINDIR ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec/onebit
SBINDIR ?= $(PREFIX)/sbin
LIBDIR ?= $(PREFIX)/lib
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man

# Debian 12's names. make brings itself; git is not needed.
DEPS    = gcc libc6-dev pkg-config liburing-dev check libsubunit-dev \
          libjansson-dev libutf8proc-dev libsodium-dev libxxhash-dev libpcre2-dev xz-utils
DEPS_CI = g++ clang clang-tidy libclang-rt-14-dev cppcheck shellcheck binutils \
          gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user

BUILD = build$(if $(SAN),/$(SAN))
WARN = -Wall -Wextra -Wshadow -Wpointer-arith -Wstrict-prototypes -Wmissing-prototypes \
       -Wvla -Wundef -Wwrite-strings
CSTD = -std=c17 -D_GNU_SOURCE
# Each compiler is told not to speak of what only the other one has: gcc of fences that its thread
# sanitizer does not see, clang of gcc's warnings named in pragmas.
WARN += $(if $(findstring clang,$(CC)),-Wno-unknown-warning-option,$(if $(findstring thread,$(SAN)),-Wno-tsan))
SANFLAGS = $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
FUZZFLAGS = $(if $(FUZZER),-fsanitize=fuzzer-no-link)
ALL_CFLAGS = $(CSTD) $(OPT) $(WARN) $(if $(CI),-Werror) -fPIC -ffp-contract=off -fvisibility=hidden \
             -DONEBIT_VERSION='"$(VERSION)"' -DONEBIT_LIBEXECDIR='"$(LIBEXECDIR)"' \
             $(SANFLAGS) $(FUZZFLAGS) $(CFLAGS)
ALL_LDFLAGS = -Wl,-z,relro,-z,now $(SANFLAGS) $(LDFLAGS)

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-7s %s\n' '$(1)' '$(2)')
# A make inside this one: in parallel, unless the outer one decides that.
JOBS = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))

# ---- what there is -------------------------------------------------------------------------------

# Each folder's permission: the folders whose headers it may include, in quotes only, so that
# <limits.h> remains the system's.
INC_client          = -iquote uapi -iquote client
INC_client/examples = $(INC_client)
INC_daemon          = -iquote uapi -iquote daemon
INC_daemon/engine   = -iquote kernels -iquote daemon/engine
INC_daemon/tools    = $(INC_daemon/engine) -iquote daemon/tools
INC_daemon/serve    = -iquote uapi -iquote daemon $(INC_daemon/engine) -iquote daemon/serve
INC_kernels         = -iquote kernels
INC_kernels/cpu     = -iquote kernels
INC_tests           = -iquote uapi -iquote client -iquote daemon -iquote daemon/serve \
                      $(INC_daemon/tools) -iquote tests
INC_tests/fuzz      = $(INC_tests)
INC_tests/frozen    = $(INC_tests)

LIB_SRC    = client/libonebit.c $(wildcard client/lib_*.c)
CLI_SRC    = client/onebit.c $(wildcard client/private.c client/cmd_*.c client/bench_*.c)
EXEC_SRC   = daemon/executor.c
KERNEL_SRC = $(wildcard kernels/*.c kernels/cpu/*.c)
ENGINE_SRC = $(wildcard daemon/engine/*.c)
SERVE_SRC  = $(filter-out daemon/serve/main.c,$(wildcard daemon/serve/*.c))
TOOL_SRC   = $(filter-out daemon/tools/main.c,$(wildcard daemon/tools/*.c))
# The core makes no system call; the process around it does.
BROKER_SRC = $(wildcard daemon/attach.c daemon/policy.c daemon/ring.c daemon/journal.c \
             daemon/quota.c daemon/admit.c daemon/query.c daemon/request.c daemon/sched.c \
             daemon/link.c daemon/broker.c)
DAEMON_SRC = $(filter-out $(BROKER_SRC) $(EXEC_SRC) daemon/main.c,$(wildcard daemon/*.c))
LOOP_SRC   = tests/loopback.c
LOOP_MAIN  = tests/loopback_main.c
TEST_SRC   = $(wildcard tests/test_*.c)
# What several tests use.
TEST_LIB   = $(LOOP_SRC) client/private.c $(wildcard tests/lib_*.c)
FUZZ_SRC   = $(wildcard tests/fuzz/fuzz_*.c)
EX_SRC     = $(wildcard client/examples/*.c)

obj = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

# In the order of linking: a layer before those below it.
LIBS     = $(BUILD)/libonebit.a $(BUILD)/libdaemon.a $(BUILD)/libbroker.a $(BUILD)/libserve.a \
           $(BUILD)/libexecutor.a $(MODEL_LIBS)
MODEL_LIBS = $(BUILD)/libtools.a $(BUILD)/libengine.a $(BUILD)/libkernels.a
PROGRAMS = $(BUILD)/onebitd $(BUILD)/onebit $(BUILD)/onebit-executor $(BUILD)/onebit-tool \
           $(BUILD)/onebit-loopback
# What the engine and the tools take from Debian.
MODEL_LD = -lutf8proc -lsodium -lxxhash -ljansson -lpthread -lm
TESTS    = $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC)) $(BUILD)/tests/old_client
EXAMPLES = $(patsubst client/examples/%.c,$(BUILD)/examples/%,$(EX_SRC))
FUZZERS  = $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(FUZZ_SRC))

.DEFAULT_GOAL = all
.PHONY: all deps deps-ci tests fuzzers fuzz bench demo determinism check install uninstall clean help force
.DELETE_ON_ERROR:
.SECONDARY:

all: $(LIBS) $(BUILD)/libonebit.so $(PROGRAMS) $(EXAMPLES)
tests: all $(TESTS)

help:
	@echo 'make            build everything into build/'
	@echo 'make check      install what is missing, build, run every test'
	@echo 'make demo       install what is missing, build, tell a story with the bundled model'
	@echo 'make determinism  random streams under every disturbance, for an hour or so [ONEBIT_SCALE=%]'
	@echo 'make bench      measure the ring on this machine'
	@echo 'make fuzz       fuzz [FUZZ=ring|obm|gguf|...] for [SECONDS=60] each, needs clang'
	@echo 'make deps       install what building and testing need (apt); deps-ci: what .ci/run needs'
	@echo 'make install    [DESTDIR=] [PREFIX=$(PREFIX)] [SYSCONFDIR=$(SYSCONFDIR)]; uninstall'
	@echo 'make clean      remove build/'
	@echo 'SAN=address|undefined|thread builds into build/SAN; V=1 shows commands; CI=1: -Werror'

# ---- what they do --------------------------------------------------------------------------------

deps:
	@.ci/deps $(DEPS)
deps-ci: deps
	@.ci/deps $(DEPS_CI)

check: deps
	@$(MAKE) --no-print-directory $(JOBS) tests
	@tests/run.sh $(BUILD)

demo: deps
	@$(MAKE) --no-print-directory $(JOBS) all
	@$(BUILD)/onebit run --model models/story.obm --seed 1 --max-tokens 300 --temperature 0.7 \
		--stats 'Tell me a story about a boy and a lost kite.'

# What CI runs in seconds, a hundred times as long.
determinism: deps
	@$(MAKE) --no-print-directory $(JOBS) $(BUILD)/tests/test_identity
	@ONEBIT_SCALE=$(or $(ONEBIT_SCALE),10000) CK_DEFAULT_TIMEOUT=0 $(BUILD)/tests/test_identity

bench: all
	@$(BUILD)/onebit bench ring

# Into build/fuzz, by clang. New inputs are kept in build/fuzz/corpus, a crash and the log beside it.
SECONDS ?= 60
FUZZ ?= $(patsubst tests/fuzz/fuzz_%.c,%,$(FUZZ_SRC))
LIMIT = $(if $(RUNS),-runs=$(RUNS),-max_total_time=$(SECONDS)) -max_len=512
fuzz:
	@$(MAKE) --no-print-directory $(JOBS) CC=clang SAN=address,undefined FUZZER=1 BUILD=build/fuzz fuzzers
	@printf '%s\n' $(FUZZ) | xargs -P $(shell nproc) -I{} sh -c 'mkdir -p build/fuzz/corpus/{} && \
		echo "fuzz_{} $(LIMIT)" && \
		if build/fuzz/fuzz_{} $(LIMIT) -verbosity=0 -print_final_stats=1 \
			-artifact_prefix=build/fuzz/fuzz_{}- build/fuzz/corpus/{} \
			tests/fuzz/corpus/{} >build/fuzz/fuzz_{}.log 2>&1; \
		then sed -n "s/^stat::number_of/fuzz_{}: number of/p" build/fuzz/fuzz_{}.log; \
		else tail -n 100 build/fuzz/fuzz_{}.log; exit 1; fi'
fuzzers: $(FUZZERS)

# ---- how it is made ------------------------------------------------------------------------------

# Written when it changes: another compiler or other flags make everything anew.
$(BUILD)/flags: export FLAGS = $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS)
$(BUILD)/flags: force
	@mkdir -p $(@D)
	@echo "$$FLAGS" | cmp -s - $@ || echo "$$FLAGS" >$@

# A file named for an instruction set is compiled for it, and runs only where the CPU has it.
ifeq ($(MACHINE),x86_64)
ISA_avx2   = -mavx2 -mfma -mf16c
ISA_avx512 = -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi -mavx512vnni -mavx2 -mfma -mf16c
ISA_shani  = -msha -msse4.1
else ifeq ($(MACHINE),aarch64)
ISA_neon   = -march=armv8.2-a+dotprod+fp16
ISA_armsha = -march=armv8-a+crypto
endif

# No fuzzer goes there, and clang takes minutes to put its checks into long rows of vectors.
ifneq ($(FUZZER),)
$(BUILD)/obj/kernels/cpu/%.o: SANFLAGS =
$(BUILD)/obj/kernels/cpu/%.o: FUZZFLAGS =
endif

$(BUILD)/obj/%.o: %.c Makefile $(BUILD)/flags
	$(call say,CC,$<)
	@mkdir -p $(@D)
	$(Q)$(CC) $(ALL_CFLAGS) $(ISA_$(lastword $(subst _, ,$(basename $<)))) $(INC_$(patsubst %/,%,$(dir $<))) -MMD -MP -c $< -o $@

define archive
$(call say,AR,$@)
$(Q)rm -f $@.new && $(AR) rcs $@.new $(filter %.o,$^) && mv $@.new $@
endef

define program
$(call say,LD,$@)
@mkdir -p $(@D)
$(Q)$(CC) $(filter %.o %.a,$^) $(ALL_LDFLAGS) $(1) -o $@
endef

$(BUILD)/libonebit.a: $(call obj,$(LIB_SRC))
	$(archive)
$(BUILD)/libdaemon.a: $(call obj,$(DAEMON_SRC))
	$(archive)
$(BUILD)/libbroker.a: $(call obj,$(BROKER_SRC))
	$(archive)
$(BUILD)/libexecutor.a: $(call obj,$(EXEC_SRC))
	$(archive)
$(BUILD)/libkernels.a: $(call obj,$(KERNEL_SRC))
	$(archive)
$(BUILD)/libengine.a: $(call obj,$(ENGINE_SRC))
	$(archive)
$(BUILD)/libserve.a: $(call obj,$(SERVE_SRC))
	$(archive)
$(BUILD)/libtools.a: $(call obj,$(TOOL_SRC))
	$(archive)
$(BUILD)/libtests.a: $(call obj,$(TEST_LIB))
	$(archive)
$(BUILD)/libonebit.so: $(call obj,$(LIB_SRC)) client/libonebit.map
	$(call say,LD,$@)
	$(Q)$(CC) -shared $(filter %.o,$^) $(ALL_LDFLAGS) -Wl,-soname,libonebit.so.$(SOVERSION) \
		-Wl,--version-script=client/libonebit.map -o $@
	@ln -sf libonebit.so $@.$(SOVERSION)
$(BUILD)/onebitd: $(BUILD)/obj/daemon/main.o $(BUILD)/libdaemon.a $(BUILD)/libbroker.a
	$(call program,-luring)
$(BUILD)/onebit: $(call obj,$(CLI_SRC)) $(BUILD)/libonebit.a
	$(call program,-luring -lm -lpthread)
$(BUILD)/onebit-loopback: $(call obj,$(LOOP_MAIN) $(LOOP_SRC)) $(BUILD)/libexecutor.a
	$(call program,)
$(BUILD)/onebit-executor: $(BUILD)/obj/daemon/serve/main.o $(BUILD)/libserve.a \
		$(BUILD)/libexecutor.a $(BUILD)/libengine.a $(BUILD)/libkernels.a
	$(call program,$(MODEL_LD))
$(BUILD)/onebit-tool: $(BUILD)/obj/daemon/tools/main.o $(MODEL_LIBS)
	$(call program,$(MODEL_LD))
$(BUILD)/examples/%: $(BUILD)/obj/client/examples/%.o $(BUILD)/libonebit.a
	$(call program,-luring -lpthread)
# The client of an earlier release: it sees the frozen header only, by its own #include.
$(BUILD)/tests/old_client: $(BUILD)/obj/tests/frozen/old_client.o
	$(call program,)
$(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(BUILD)/libtests.a $(LIBS)
	$(call program,-luring -lcheck_pic -lsubunit -lrt -lpcre2-8 $(MODEL_LD))
$(BUILD)/fuzz_%: $(BUILD)/obj/tests/fuzz/fuzz_%.o $(BUILD)/libtests.a $(BUILD)/libdaemon.a \
		$(BUILD)/libbroker.a $(MODEL_LIBS)
	$(call program,-fsanitize=fuzzer $(MODEL_LD))

# ---- installing ----------------------------------------------------------------------------------

D = $(DESTDIR)
PUBLIC = uapi/onebit.h uapi/onebit_codes.h uapi/onebit_ring.h client/libonebit.h
MAN    = $(wildcard client/man/*.[1-8] daemon/man/*.[1-8])
UNITS  = $(wildcard udev/*.service udev/*.socket)

install: all
	install -d "$D$(BINDIR)" "$D$(SBINDIR)" "$D$(LIBEXECDIR)" "$D$(LIBDIR)/pkgconfig" "$D$(INCLUDEDIR)/onebit"
	install -m 755 $(BUILD)/onebit "$D$(BINDIR)"
	install -m 755 $(BUILD)/onebitd "$D$(SBINDIR)"
	install -m 755 $(BUILD)/onebit-executor $(BUILD)/onebit-tool "$D$(LIBEXECDIR)"
	install -m 644 $(BUILD)/libonebit.a "$D$(LIBDIR)"
	install -m 755 $(BUILD)/libonebit.so "$D$(LIBDIR)/libonebit.so.$(VERSION)"
	ln -sf libonebit.so.$(VERSION) "$D$(LIBDIR)/libonebit.so.$(SOVERSION)"
	ln -sf libonebit.so.$(SOVERSION) "$D$(LIBDIR)/libonebit.so"
	install -m 644 $(PUBLIC) "$D$(INCLUDEDIR)/onebit"
	sed -e 's|@PREFIX@|$(PREFIX)|g' -e 's|@LIBDIR@|$(LIBDIR)|g' -e 's|@VERSION@|$(VERSION)|g' \
		-e 's|@INCLUDEDIR@|$(INCLUDEDIR)|g' client/libonebit.pc.in >"$D$(LIBDIR)/pkgconfig/libonebit.pc"
	for m in $(MAN); do \
		install -D -m 644 "$$m" "$D$(MANDIR)/man$${m##*.}/$${m##*/}"; \
	done
	for u in $(UNITS); do \
		install -D -m 644 "$$u" "$D$(PREFIX)/lib/systemd/system/$${u##*/}" && \
		sed -i 's|/usr/sbin/|$(SBINDIR)/|' "$D$(PREFIX)/lib/systemd/system/$${u##*/}"; \
	done
	for u in $(wildcard udev/*sysusers*); do \
		install -D -m 644 "$$u" "$D$(PREFIX)/lib/sysusers.d/onebit.conf"; \
	done
	for u in $(wildcard udev/*tmpfiles*); do \
		install -D -m 644 "$$u" "$D$(PREFIX)/lib/tmpfiles.d/onebit.conf"; \
	done
	for u in $(wildcard udev/*.rules); do \
		install -D -m 644 "$$u" "$D$(PREFIX)/lib/udev/rules.d/$${u##*/}"; \
	done
	test -e "$D$(SYSCONFDIR)/onebit/onebitd.conf" || \
		install -D -m 640 daemon/onebitd.conf "$D$(SYSCONFDIR)/onebit/onebitd.conf"

# All but a configuration in which somebody has written.
uninstall:
	if cmp -s daemon/onebitd.conf "$D$(SYSCONFDIR)/onebit/onebitd.conf"; then \
		rm "$D$(SYSCONFDIR)/onebit/onebitd.conf" && \
		rmdir --ignore-fail-on-non-empty "$D$(SYSCONFDIR)/onebit"; \
	fi
	rm -f "$D$(BINDIR)/onebit" "$D$(SBINDIR)/onebitd" "$D$(LIBEXECDIR)/onebit-executor" \
		"$D$(LIBEXECDIR)/onebit-tool" "$D$(LIBDIR)"/libonebit.* "$D$(LIBDIR)/pkgconfig/libonebit.pc" "$D$(PREFIX)/lib/sysusers.d/onebit.conf" \
		"$D$(PREFIX)/lib/tmpfiles.d/onebit.conf"
	for f in $(notdir $(PUBLIC)); do rm -f "$D$(INCLUDEDIR)/onebit/$$f"; done
	test ! -d "$D$(LIBEXECDIR)" || rmdir --ignore-fail-on-non-empty "$D$(LIBEXECDIR)"
	test ! -d "$D$(INCLUDEDIR)/onebit" || \
		rmdir --ignore-fail-on-non-empty "$D$(INCLUDEDIR)/onebit"
	for m in $(notdir $(MAN)); do rm -f "$D$(MANDIR)/man$${m##*.}/$$m"; done
	for u in $(notdir $(UNITS)); do rm -f "$D$(PREFIX)/lib/systemd/system/$$u"; done
	for u in $(notdir $(wildcard udev/*.rules)); do rm -f "$D$(PREFIX)/lib/udev/rules.d/$$u"; done

clean:
	$(Q)rm -rf build

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)

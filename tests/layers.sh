#!/bin/bash
# SPDX-License-Identifier: MIT
#
# A layer sees only what is below it. What breaks otherwise: the broker's core could no longer be
# simulated, the library could not be taken without the daemon, and the folders would lie.
#
# Symbols: what an archive leaves undefined may come from itself, from the archives that it may use,
# or from the system; the core's may come from a short list of functions that do not enter the kernel.
# Includes: the same, by header.
set -eu
shopt -s nullglob
cd "$(dirname "$0")/.."

build=${BUILD:-build}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
failed=0
fail() {
	echo "layers.sh: $*" >&2
	failed=1
}

# ---- symbols ----

# archive: the archives of ours that it may use
layers='libonebit:
libexecutor:
libbroker:
libdaemon: libbroker
libkernels:
libengine: libkernels
libserve: libexecutor libengine libkernels
libtools: libengine libkernels'
all='libonebit libexecutor libbroker libdaemon libkernels libengine libserve libtools'

# The core's all: arithmetic on memory, memory at start, text into a buffer, a failed assertion.
core_may='memcpy memmove memset memcmp strlen strnlen strcmp strncmp memchr strchr
snprintf vsnprintf malloc calloc free __assert_fail'
# What compilers put in: long division, checks of the stack, of buffers, of a sanitizer.
compiler='_GLOBAL_OFFSET_TABLE_|__u?(div|mod|divmod)ti4?3?|__stack_chk_fail|__(mem|str|v?snprintf)[a-z]*_chk|__(asan|ubsan|tsan|sanitizer)_.*'

for layer in $layers; do
	case $layer in *:) ;; *) continue ;; esac
	name=${layer%:}
	if ! [ -s "$build/$name.a" ]; then
		fail "$build/$name.a is missing; build it with make"
		continue
	fi
	nm --defined-only "$build/$name.a" 2>/dev/null | awk 'NF == 3 && $2 ~ /[A-TV-Z]/ { print $3 }' |
		sort -u >"$tmp/$name.has"
	nm --undefined-only "$build/$name.a" 2>/dev/null | awk '$1 == "U" { print $2 }' | sort -u |
		comm -23 - "$tmp/$name.has" >"$tmp/$name.needs"
	# A test that found no symbols would find no fault either.
	[ -s "$tmp/$name.has" ] || fail "nm found nothing in $name.a"
done
[ "$failed" -eq 0 ] || exit 1

while IFS=: read -r name may; do
	for other in $all; do
		case " $name $may " in *" $other "*) continue ;; esac
		for symbol in $(comm -12 "$tmp/$name.needs" "$tmp/$other.has"); do
			fail "$name.a uses $symbol of $other.a, which it may not see"
		done
	done
done <<<"$layers"

for symbol in $(grep -vxE "$compiler" "$tmp/libbroker.needs"); do
	case " $(echo "$core_may" | tr '\n' ' ') " in
	*" $symbol "*) ;;
	*) fail "the broker's core calls $symbol; what enters the kernel reaches it through broker_env" ;;
	esac
done

if [ -e "$build/libonebit.so" ]; then
	for symbol in $(nm -D --defined-only "$build/libonebit.so" | awk '$2 ~ /[A-Z]/ { print $3 }' |
		grep -vE '^(onebit_[a-z_]+(@@ONEBIT_[0-9.]+)?|ONEBIT_[0-9.]+)$'); do
		fail "libonebit.so exports $symbol; see client/libonebit.map"
	done
fi

# ---- includes ----

# includes WHO FILE... -- FOLDER...: what the files include in quotes lies in one of the folders.
includes() {
	local who=$1 files=() f h d ok
	shift
	while [ "$1" != -- ]; do
		files+=("$1")
		shift
	done
	shift
	for f in "${files[@]}"; do
		for h in $(sed -n 's/^[ \t]*#[ \t]*include[ \t]*"\(.*\)".*/\1/p' "$f"); do
			ok=
			for d in "$@"; do
				[ -e "$d/$h" ] && ok=1
			done
			[ -n "$ok" ] || fail "$f includes $h, which $who may not see"
		done
	done
}

# system WHO "HEADER..." FILE...: what they include in brackets is in the list.
system() {
	local who=$1 may=$2 f h
	shift 2
	for f in "$@"; do
		for h in $(sed -n 's/^[ \t]*#[ \t]*include[ \t]*<\(.*\)>.*/\1/p' "$f"); do
			case " $may " in
			*" $h "*) ;;
			*) fail "$f includes <$h>, which $who does not need" ;;
			esac
		done
	done
}

includes uapi uapi/*.h -- uapi
system uapi 'linux/types.h' uapi/*.h
includes client client/*.[ch] -- client uapi
includes 'an example' client/examples/*.c -- client uapi
includes daemon daemon/*.[ch] -- daemon uapi
includes kernels kernels/*.[ch] kernels/*/*.[ch] -- kernels kernels/cpu
includes 'the engine' daemon/engine/*.[ch] -- daemon/engine kernels
includes 'a tool' daemon/tools/*.[ch] -- daemon/tools daemon/engine kernels

mkdir "$tmp/executor"
cp daemon/executor.h "$tmp/executor/"
includes 'an executor' daemon/executor.[ch] -- "$tmp/executor" uapi
includes 'the executor' daemon/serve/*.[ch] -- daemon/serve "$tmp/executor" daemon/engine kernels uapi

# The core: the archive's objects, and the headers that may be seen from there.
mkdir "$tmp/core"
core=()
for o in $(ar t "$build/libbroker.a"); do
	core+=("daemon/${o%.o}.c")
done
for h in attach broker core executor journal limits policy quota ring; do
	cp "daemon/$h.h" "$tmp/core/"
	core+=("daemon/$h.h")
done
includes "the broker's core" "${core[@]}" -- "$tmp/core" uapi
system "the broker's core" 'assert.h errno.h stdarg.h stdbool.h stddef.h stdint.h stdio.h stdlib.h string.h' \
	"${core[@]}"

[ "$failed" -eq 0 ] && echo "layers.sh: $(wc -l <"$tmp/libbroker.has") symbols of the core, ${#core[@]} files"
exit "$failed"

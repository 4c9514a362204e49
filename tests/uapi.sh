#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The shape of the contract: its headers stand alone in C and C++, no struct has a byte that is not
# named, and every offset and size is the same for 32 bit and for other machines.
set -eu
cd "$(dirname "$0")/.."

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cc=${CC:-cc}
failed=0
fail() {
	echo "uapi.sh: $*" >&2
	failed=1
}

# What breaks: a program that includes one header only, or is written in C++, does not compile.
for h in uapi/*.h client/libonebit.h; do
	for how in "$cc -std=c11" "clang -std=c17" "g++ -std=c++11" "clang++ -std=c++20"; do
		if ! command -v "${how%% *}" >/dev/null; then
			echo "skip: $h with ${how%% *}, which is not installed"
			continue
		fi
		case $how in *++*) lang=c++ ;; *) lang=c ;; esac
		echo "#include \"${h##*/}\"" >"$tmp/alone.c"
		# shellcheck disable=SC2086 # a command and its option
		$how -x $lang -Wall -Wextra -Wconversion -Wundef -Werror -fsyntax-only -Iuapi -Iclient \
			"$tmp/alone.c" || fail "$h does not stand alone with $how"
	done
done

awk -f tests/frozen/layout.awk uapi/onebit.h >"$tmp/layout.c"
$cc -std=c17 -Iuapi "$tmp/layout.c" -o "$tmp/layout"
"$tmp/layout" >"$tmp/layout.txt"

# What breaks: this test sees nothing, because the headers left the subset of C that it reads.
structs=$(grep -c '^struct .*{' uapi/onebit.h)
[ "$(grep -c '^size ' "$tmp/layout.txt")" -eq "$structs" ] ||
	fail "layout.awk found not all $structs structs of onebit.h"

# What breaks: padding that nobody named, and so nobody zeroes and checks.
awk '
	$1 == "size" { end[$2 " -"] = at[$2 " -"] = 0; size[$2 " -"] = $3; next }
	$1 != "member" { next }
	{
		key = $2 " " $4
		if (!(key in at)) { at[key] = start[key]; }
		if ($5 == "union") {
			if ($6 != start[key]) print $2 "." $3 " does not start where its union does"
			if ($7 != size[key]) print $2 "." $3 " is not as large as its union"
			at[key] = start[key] + size[key]
		} else {
			if ($6 != at[key]) print $2 ": " $6 - at[key] " bytes without a name before " $3
			at[key] = $6 + $7
		}
		own = $2 " " $3
		start[own] = $6; size[own] = $7
	}
	END {
		for (key in at)
			if (at[key] != start[key] + size[key]) print key ": unnamed bytes at the end"
	}
' "$tmp/layout.txt" >"$tmp/holes"
[ ! -s "$tmp/holes" ] || fail "$(cat "$tmp/holes")"

# What breaks: a 32-bit client, or one on another machine, reads other bytes than it was sent.
{
	echo '#include "onebit.h"'
	awk '
		$1 == "size" { printf "_Static_assert(sizeof(struct %s) == %s, \"%s\");\n", $2, $3, $2 }
		$1 == "member" {
			printf "_Static_assert(__builtin_offsetof(struct %s, %s) == %s, \"%s.%s\");\n", $2, $3, $6, $2, $3
			printf "_Static_assert(sizeof(((struct %s *)0)->%s) == %s, \"%s.%s\");\n", $2, $3, $7, $2, $3
		}
	' "$tmp/layout.txt"
} >"$tmp/same.c"
arch=$($cc -print-multiarch 2>/dev/null || :)
for how in "$cc -m64" "$cc -m32" "clang -m32" "clang --target=aarch64-linux-gnu" \
	"clang --target=armv7-linux-gnueabihf" "clang --target=riscv64-linux-gnu"; do
	# shellcheck disable=SC2086 # a command and its option
	if ! echo 'int x;' | $how -x c -ffreestanding -fsyntax-only - 2>/dev/null; then
		echo "skip: the layout with $how, which does not work here"
		continue
	fi
	# shellcheck disable=SC2086
	$how -std=c17 -ffreestanding -fsyntax-only -Iuapi ${arch:+-isystem "/usr/include/$arch"} \
		-isystem /usr/include "$tmp/same.c" || fail "another layout with $how"
done

[ "$failed" -eq 0 ] && echo "uapi.sh: $(grep -c '^member' "$tmp/layout.txt") members of $structs structs agree"
exit "$failed"

#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What `make install` leaves is enough for a stranger: a program finds header and library by
# pkg-config alone, the daemon's files are where systemd looks for them, an administrator's
# configuration survives an upgrade, and uninstall takes everything else away.
set -eu
cd "$(dirname "$0")/.."

build=${BUILD:-build}
case $build in
*address* | *undefined* | *thread*)
	echo "sanitizer builds are not for installing"
	exit 77
	;;
esac
unset MAKEFLAGS MAKELEVEL BUILD
# A blank in the way: paths are quoted.
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root="$tmp/a root"
failed=0
fail() {
	echo "install.sh: $*" >&2
	failed=1
}
there() {
	[ -e "$root$1" ] || fail "$1 was not installed"
}

cc=${CC:-cc}
make -s install BUILD="$build" DESTDIR="$root" >"$tmp/log" 2>&1 || { cat "$tmp/log" >&2; exit 1; }

for f in /usr/bin/onebit /usr/sbin/onebitd /usr/lib/libonebit.a /usr/lib/libonebit.so \
	/usr/lib/libonebit.so.0 /usr/lib/pkgconfig/libonebit.pc /usr/include/onebit/onebit.h \
	/usr/include/onebit/onebit_codes.h /usr/include/onebit/onebit_ring.h \
	/usr/include/onebit/libonebit.h; do
	there "$f"
done
[ -L "$root/usr/lib/libonebit.so.0" ] || fail "libonebit.so.0 is no link to a version"
for f in client/man/*.[1-8] daemon/man/*.[1-8]; do
	[ -e "$f" ] && there "/usr/share/man/man${f##*.}/${f##*/}"
done
# Whatever udev/ has must have a place.
for f in udev/*.service; do
	[ -e "$f" ] && there "/usr/lib/systemd/system/${f##*/}"
done
for f in udev/*.rules; do
	[ -e "$f" ] && there "/usr/lib/udev/rules.d/${f##*/}"
done
for kind in sysusers tmpfiles; do
	for f in udev/*"$kind"*; do
		[ -e "$f" ] && there "/usr/lib/$kind.d/onebit.conf"
	done
done
there /etc/onebit/onebitd.conf

# A stranger's program, in C and with both kinds of library.
cat >"$tmp/stranger.c" <<'C'
#include <libonebit.h>
#include <stdio.h>
int main(void)
{
	struct onebit_error err;
	struct onebit_options options = { .size = sizeof(options), .socket = "/nonexistent/socket" };
	struct onebit *o;
	puts(onebit_code_name(ONEBIT_E_POISON));
	return onebit_open(&o, &options, &err) < 0 ? 0 : 1;
}
C
# pkg-config and its sysroot do not go well with blanks, so it is given another name of the same.
top=$PWD
cd "$tmp"
ln -s "$root" root
export PKG_CONFIG_PATH=root/usr/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=root
read -ra cflags < <(pkg-config --cflags libonebit)
read -ra libs < <(pkg-config --libs libonebit)
$cc -Wall -Werror "${cflags[@]}" "$tmp/stranger.c" "${libs[@]}" -o "$tmp/shared" ||
	fail "a program does not build against the shared library"
LD_LIBRARY_PATH="$root/usr/lib" "$tmp/shared" >"$tmp/says" || fail "it does not run"
grep -q POISON "$tmp/says" || fail "it runs wrong"
if ! $cc "${cflags[@]}" "$tmp/stranger.c" "$root/usr/lib/libonebit.a" -o "$tmp/static" ||
	! "$tmp/static" >/dev/null; then
	fail "the static library does not do"
fi

"$root/usr/bin/onebit" --version >/dev/null || fail "onebit --version ends with an error"
"$root/usr/sbin/onebitd" --version >/dev/null || fail "onebitd --version ends with an error"

cd "$top"
make -s uninstall BUILD="$build" DESTDIR="$root" >"$tmp/log" 2>&1 || fail "uninstall fails"
left=$(find "$root" ! -type d)
[ -z "$left" ] || fail "uninstall leaves: $left"

# An upgrade keeps what the administrator wrote, and so does uninstall.
mkdir -p "$root/etc/onebit"
echo '# mine' >"$root/etc/onebit/onebitd.conf"
make -s install BUILD="$build" DESTDIR="$root" >"$tmp/log" 2>&1 || fail "a second install fails"
grep -q '# mine' "$root/etc/onebit/onebitd.conf" || fail "install overwrote the configuration"
make -s uninstall BUILD="$build" DESTDIR="$root" >"$tmp/log" 2>&1 || fail "uninstall fails"
left=$(find "$root" ! -type d)
[ "$left" = "$root/etc/onebit/onebitd.conf" ] || fail "uninstall leaves: $left"

exit "$failed"

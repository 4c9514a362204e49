#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Each program of client/examples against a daemon with the loopback executor: it ends with 0 and has
# printed something. And against no daemon: it ends otherwise and says that there is none.
set -eu
cd "$(dirname "$0")/.."

build=${BUILD:-build}
tmp=$(mktemp -d)
daemon=
# shellcheck disable=SC2317 # the trap calls it
cleanup() {
	if [ -n "$daemon" ]; then
		kill -KILL "$daemon" 2>/dev/null || :
		wait "$daemon" 2>/dev/null || :
	fi
	rm -rf "$tmp"
}
trap cleanup EXIT
failed=0
fail() {
	echo "examples.sh: $*" >&2
	failed=1
}

# Sanitizers make system calls that the sandbox forbids.
sandbox=on
case $build in
*address* | *thread*) sandbox=off ;;
esac
"$build/onebitd" -c none -o "socket = $tmp/s" -o "sandbox = $sandbox" \
	-o "executor = $build/onebit-loopback --delay-us 200" >"$tmp/log" 2>&1 &
daemon=$!
for ((i = 0; i < 3000; i++)); do
	[ -S "$tmp/s" ] && break
	kill -0 "$daemon" 2>/dev/null || break
	sleep 0.01
done
if ! [ -S "$tmp/s" ]; then
	echo "examples.sh: the daemon does not come up; it said:" >&2
	cat "$tmp/log" >&2
	exit 1
fi

for source in client/examples/*.c; do
	name=$(basename "$source" .c)
	program=$build/examples/$name
	if ! [ -x "$program" ]; then
		fail "$program is not built"
		continue
	fi
	rc=0
	timeout 120 "$program" "$tmp/s" >"$tmp/out" 2>"$tmp/err" || rc=$?
	if [ "$rc" -ne 0 ]; then
		fail "$name ended with $rc: $(tail -n 3 "$tmp/err")"
	elif ! [ -s "$tmp/out" ]; then
		fail "$name has printed nothing"
	fi
	rc=0
	timeout 120 "$program" "$tmp/nobody" >/dev/null 2>"$tmp/err" || rc=$?
	if [ "$rc" -eq 0 ] || [ "$rc" -ge 124 ]; then
		fail "$name ended with $rc where there is no daemon"
	elif ! grep -q onebitd "$tmp/err"; then
		fail "$name does not say that there is no daemon: $(cat "$tmp/err")"
	fi
done

kill -TERM "$daemon"
rc=0
wait "$daemon" || rc=$?
daemon=
if [ "$rc" -ne 0 ]; then
	fail "the daemon ended with $rc: $(tail -n 5 "$tmp/log")"
fi
exit $failed

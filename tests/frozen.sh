#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The contract stays what it was: today's headers against every frozen copy of them (see
# frozen/README.md), and a client built from the oldest against today's daemon.
set -eu
cd "$(dirname "$0")/.."

build=${BUILD:-build}
cc=${CC:-cc}
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
	echo "frozen.sh: $*" >&2
	failed=1
}

# ---- the layout ----

for old in tests/frozen/[0-9]*/; do
	# The names are those of the frozen header; the values once its own and once today's.
	awk -f tests/frozen/layout.awk "${old}onebit.h" >"$tmp/layout.c"
	$cc -std=c17 "-I$old" "$tmp/layout.c" -o "$tmp/then"
	if ! $cc -std=c17 -Iuapi "$tmp/layout.c" -o "$tmp/now"; then
		fail "something of $old is no longer in uapi/ (see above)"
		continue
	fi
	"$tmp/then" >"$tmp/then.txt"
	"$tmp/now" >"$tmp/now.txt"
	awk -v old="$old" '
		{ key = $1 " " $2 ($1 == "member" ? "." $3 : ""); }
		NR == FNR { then[key] = $0; next }
		{ now[key] = $0 }
		$1 == "member" && $3 == "size" && $6 == 0 { grows[$2] = 1 }
		END {
			for (key in then) {
				if (now[key] == then[key])
					continue
				split(then[key], t, " "); split(now[key], n, " ")
				if (key in now && t[1] == "const" &&
				    (t[2] == "ONEBIT_ABI_MINOR" || t[2] ~ /_(COUNT|ALL)$/) && n[3] + 0 >= t[3] + 0)
					continue
				if (key in now && t[1] == "size" && t[2] in grows && n[3] + 0 > t[3] + 0)
					continue
				print "frozen in " old ": " then[key]
				print "        now: " (key in now ? now[key] : "gone")
				bad = 1
			}
			exit bad
		}
	' "$tmp/then.txt" "$tmp/now.txt" || fail "the contract of $old was changed"
	echo "$old: $(wc -l <"$tmp/then.txt") facts compared"
done

# ---- an old client with today's daemon ----

# No path of ours has a blank, wherever the tree lies: the executor's command is split at blanks.
"$build/onebitd" -c none -o "socket = $tmp/s" -o "executor = $build/onebit-loopback" \
	-o 'log = warn' >"$tmp/log" 2>&1 &
daemon=$!
tries=0
until [ -S "$tmp/s" ]; do
	if ! kill -0 "$daemon" 2>/dev/null || [ $((tries += 1)) -gt 600 ]; then
		cat "$tmp/log" >&2
		fail "the daemon did not start"
		exit 1
	fi
	sleep 0.05
done
"$build/tests/old_client" "$tmp/s" || fail "a client of version 1.0 does not work with today's daemon"
kill -TERM "$daemon"
rc=0
wait "$daemon" || rc=$?
daemon=
if [ "$rc" -ne 0 ]; then
	cat "$tmp/log" >&2
	fail "the daemon ended with $rc"
fi
exit "$failed"

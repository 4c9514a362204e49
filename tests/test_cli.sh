#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The command line: if a verb took bad input in silence, or its exit status or sentence changed,
# scripts that use it would go wrong. $BUILD names the folder of the build (default: build).

BUILD=${BUILD:-build}
onebit=./onebit
tmp=$(mktemp -d) || exit 1
failed=0
unset ONEBIT_SOCKET
trap 'rm -rf "$tmp"' EXIT

# From there the executor has a path without a blank, at which its command would be split.
cd "$BUILD" || exit 1
if [ ! -x "$onebit" ]; then
	echo "skipped: $BUILD/onebit is missing; build it with make"
	exit 77
fi

# bad STATUS PATTERN ARG...: ends with STATUS, says PATTERN on standard error, nothing on output.
bad()
{
	want=$1 pattern=$2
	shift 2
	"$onebit" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
	got=$?
	if [ $got -ne "$want" ] || ! grep -q -e "$pattern" "$tmp/err" || [ -s "$tmp/out" ]; then
		echo "FAIL: onebit $*: status $got instead of $want, or not '$pattern':"
		cat "$tmp/err" "$tmp/out"
		failed=1
	fi
}

# good PATTERN ARG...: ends with 0 and says PATTERN on standard output, nothing on standard error.
good()
{
	pattern=$1
	shift
	"$onebit" "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
	got=$?
	if [ $got -ne 0 ] || ! grep -q -e "$pattern" "$tmp/out" || [ -s "$tmp/err" ]; then
		echo "FAIL: onebit $*: status $got instead of 0, or not '$pattern':"
		cat "$tmp/err" "$tmp/out"
		failed=1
	fi
}

none=$tmp/none.sock

# Each verb explains itself, and an unknown one gets the list.
bad 2 'usage: onebit'
bad 2 'no verb frobnicate' frobnicate
good 'usage: onebit' help
good 'usage: onebit' --help
good '^onebit [0-9]' version
good 'usage: onebit run' run --help
good 'usage: onebit stat' stat --help
good 'usage: onebit bench SUBJECT' bench --help
good 'usage: onebit bench ring' bench ring --help

# run: each option alone wrong, the rest right.
bad 2 'no prompt' run
bad 2 'prompt is empty' run ''
bad 2 'prompt is empty' run -
bad 2 'quote it' run two words
bad 2 'no option' run --frobnicate hello
bad 2 'lacks its value' run hello --seed
bad 2 'max-tokens x' run --max-tokens x hello
bad 2 'max-tokens -1' run --max-tokens -1 hello
bad 2 'max-tokens 1048577' run --max-tokens 1048577 hello
bad 2 'seed 18446744073709551616' run --seed 18446744073709551616 hello
bad 2 'seed 1x' run --seed 1x hello
bad 2 'temperature nan' run --temperature nan hello
bad 2 'temperature -1' run --temperature -1 hello
bad 2 'temperature 101' run --temperature 101 hello
bad 2 'choices 0' run --choices 0 hello
bad 2 'choices 17' run --choices 17 hello
bad 2 'add --private' run --set 'log = error' hello
bad 2 'exclude each other' run --private --socket "$none" hello

# Nobody at the socket: 3, and the sentence names the socket and what to do.
bad 3 "no daemon at $none; start onebitd" run --socket "$none" hello
bad 3 "no daemon at $none; start onebitd" stat --socket "$none"
bad 3 "no daemon at $none; start onebitd" bench ring --only line --socket "$none"
bad 3 'too long' stat --socket "$tmp/$(printf '%0200d' 0)"
ONEBIT_SOCKET=$none
export ONEBIT_SOCKET
bad 3 "no daemon at $none" stat
unset ONEBIT_SOCKET

bad 2 'no argument is expected' stat now
bad 2 'no option' stat --frobnicate

bad 2 'no subject' bench
bad 2 'no subject frobnicate' bench frobnicate
bad 2 'no argument is expected' bench ring now
bad 2 'seconds 0' bench ring --seconds 0
bad 2 'clients 1,,x' bench ring --clients 1,,x
bad 2 'clients 0' bench ring --clients 0
bad 2 'clients 4097' bench ring --clients 4097
bad 2 'batch 65' bench ring --batch 65
bad 2 'batch 1,1,1' bench ring --batch 1,1,1,1,1,1,1,1,1
bad 2 'two CPU numbers' bench ring --pin 0
bad 2 'two different CPU' bench ring --pin 0,0
bad 2 'CPU 1000 does not exist' bench ring --pin 0,1000
bad 2 'no row or group frobnicate' bench ring --only frobnicate

# With a daemon of its own: an answer, its JSON, the daemon's own words when it does not start.
if [ -x ./onebitd ] && [ -x ./onebit-loopback ]; then
	TMPDIR=$tmp
	export TMPDIR
	executor="executor = ./onebit-loopback"

	good . run --private --set "$executor" --max-tokens 5 --seed 1 hello
	cp "$tmp/out" "$tmp/first"
	good . run --private --set "$executor" --max-tokens 5 --seed 1 hello
	cmp -s "$tmp/out" "$tmp/first" || {
		echo 'FAIL: the same seed gave another answer'
		failed=1
	}
	good 'choice 1' run --private --set "$executor" --max-tokens 5 --choices 2 hello
	good '"type":"end","res":' run --private --set "$executor" --max-tokens 5 --json hello
	if command -v python3 >/dev/null; then
		python3 -c 'import json, sys; [json.loads(l) for l in sys.stdin]' <"$tmp/out" || {
			echo 'FAIL: run --json is not JSON'
			failed=1
		}
	fi
	bad 1 'EXECUTOR, ' run --private --set "$executor" '!fail@0 '
	bad 1 'that is --max-tokens' run --private --set "$executor" --set 'max_tokens = 10' \
		--max-tokens 11 hello
	bad 1 'NO_MODEL' run --private hello
	bad 3 'did not start: .*nonsense' run --private --set 'nonsense = 1' hello

	# A reader who leaves early is no error and gets no message.
	(
		"$onebit" run --private --set "$executor --delay-us 20000" hello 2>"$tmp/err"
		echo $? >"$tmp/status"
	) | head -c 1 >/dev/null
	if [ "$(cat "$tmp/status")" != 0 ] || [ -s "$tmp/err" ]; then
		echo 'FAIL: a closed pipe is not a quiet end:'
		cat "$tmp/status" "$tmp/err"
		failed=1
	fi

	# SIGINT: the request is cancelled, the private daemon stopped, its directory gone.
	# At least 8 tokens, 0.5 s apart: it cannot have ended by itself.
	"$onebit" run --private --set "$executor --delay-us 500000" hello \
		>"$tmp/out" 2>"$tmp/err" &
	pid=$!
	while [ ! -s "$tmp/out" ] && kill -0 $pid 2>/dev/null; do
		sleep 0.05
	done
	kill -TERM $pid
	wait $pid
	got=$?
	if [ $got -ne 130 ]; then
		echo "FAIL: interrupted with status $got instead of 130:"
		cat "$tmp/err"
		failed=1
	fi
	for left in "$tmp"/onebit-*; do
		[ -e "$left" ] || continue
		echo "FAIL: $left was left behind"
		failed=1
	done

	good '"line_rtt_ns"\|"skipped"' bench ring --seconds 1 --only line,spin --json
else
	echo 'no daemon is built: only the command line was tested'
fi

exit $failed

#!/bin/sh
# SPDX-License-Identifier: MIT
#
# The options of onebit run, with the model in models/: each must do what it says, or be refused in a
# sentence that names it and its range. What breaks otherwise: an option that is taken and then lost
# on its way to the sampler looks like a model that answers badly. $BUILD names the folder of the build
# (default: build).

BUILD=${BUILD:-build}
top=$(cd "$(dirname "$0")/.." && pwd)
model=$top/models/story.obm
onebit=./onebit
tmp=$(mktemp -d) || exit 1
daemon=
failed=0
unset ONEBIT_SOCKET
# shellcheck disable=SC2317 # the trap calls it
cleanup()
{
	if [ -n "$daemon" ]; then
		kill -KILL "$daemon" 2>/dev/null
		wait "$daemon" 2>/dev/null
	fi
	rm -rf "$tmp"
}
trap cleanup EXIT

cd "$BUILD" || exit 1
for program in onebit onebitd onebit-executor; do
	if [ ! -x ./$program ]; then
		echo "skipped: $BUILD/$program is missing; build it with make"
		exit 77
	fi
done
TMPDIR=$tmp
export TMPDIR

fail()
{
	echo "FAIL: $*"
	failed=1
}

# bad STATUS PATTERN ARG...: ends with STATUS, says PATTERN on standard error, nothing on output.
bad()
{
	want=$1 pattern=$2
	shift 2
	timeout 120 "$onebit" run "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
	got=$?
	if [ $got -ne "$want" ] || ! grep -q -e "$pattern" "$tmp/err" || [ -s "$tmp/out" ]; then
		fail "onebit run $*: status $got instead of $want, or not '$pattern':"
		cat "$tmp/err" "$tmp/out"
	fi
}

# run ARG...: ends with 0, and the answer is in $tmp/out.
run()
{
	timeout 120 "$onebit" run "$@" >"$tmp/out" 2>"$tmp/err" </dev/null
	got=$?
	if [ $got -ne 0 ] || [ -s "$tmp/err" ]; then
		fail "onebit run $*: status $got:"
		cat "$tmp/err" "$tmp/out"
	fi
}

# tell ARG...: the beginning of a story, which goes on for 20 tokens.
tell()
{
	run --raw --max-tokens 20 "$@" 'Once upon a time'
}

# same NAME or differs NAME: the last answer and the one that was kept under that name.
same()
{
	cmp -s "$tmp/out" "$tmp/$1" || fail "$2: another answer than $1"
}

differs()
{
	! cmp -s "$tmp/out" "$tmp/$1" || fail "$2: the same answer as $1"
}

# count KEY: its value in the last JSON answer's end.
count()
{
	sed -n "s/^{\"type\":\"end\".*\"$1\":\\([0-9]*\\).*/\\1/p" "$tmp/out"
}

# The ids of the last JSON answer, of which nothing but tokens was asked.
ids()
{
	grep -o '"id":[0-9]*' "$tmp/out" | cut -d : -f 2
}

# ---- refused before anybody is asked ----

whole='is not a number from 0 to'
bad 2 "top-k x $whole 4294967295" --top-k x hello
bad 2 "top-k -1 $whole 4294967295" --top-k -1 hello
bad 2 "top-k 4294967296 $whole 4294967295" --top-k 4294967296 hello
bad 2 "top-k 1.0 $whole" --top-k 1.0 hello
bad 2 'top-p 0 is not a number from 0.000001 to 1 with at most 6 decimals' --top-p 0 hello
bad 2 'top-p 1.000001 is not a number from 0.000001 to 1' --top-p 1.000001 hello
bad 2 'top-p 0.1234567 is not a number .* with at most 6 decimals' --top-p 0.1234567 hello
bad 2 'top-p 1e-1 is not a number' --top-p 1e-1 hello
bad 2 'top-p . is not a number' --top-p . hello
bad 2 'top-p 0..1 is not a number' --top-p 0..1 hello
bad 2 'top-p  is not a number' --top-p '' hello
bad 2 "min-p 1.1 $whole 1 with" --min-p 1.1 hello
bad 2 "min-p -0.1 $whole 1 with" --min-p -0.1 hello
bad 2 "temperature 100.000001 $whole 100 with" --temperature 100.000001 hello
bad 2 'repetition 0 is not a number from 0.000001 to 100 with' --repetition 0 hello
bad 2 'repetition 100.1 is not a number' --repetition 100.1 hello
bad 2 'frequency -100.5 is not a number from -100 to 100 with' --frequency -100.5 hello
bad 2 'frequency nan is not a number' --frequency nan hello
bad 2 'presence 101 is not a number from -100 to 100 with' --presence 101 hello
bad 2 'presence 99999999999999999999 is not a number' --presence 99999999999999999999 hello
bad 2 "last-n -5 $whole 4294967295" --last-n -5 hello
bad 2 "min-tokens 1048577 $whole 1048576" --min-tokens 1048577 hello
bad 2 'min-tokens 9 is more than --max-tokens 8; raise one' --min-tokens 9 --max-tokens 8 hello
bad 2 "logprobs 21 $whole 20" --json --logprobs 21 hello
bad 2 'logprobs shows in JSON only; add --json' --logprobs 1 hello
bad 2 "deadline 1.5 $whole 4294967295" --deadline 1.5 hello
bad 2 'priority high is none; there are interactive, normal and batch' --priority high hello
bad 2 'stop is empty' --stop '' hello
bad 2 'stop of 257 bytes is longer than the limit of 256' --stop "$(printf '%0257d' 0)" hello
bad 2 'bias 5 is not ID=X.*onebit tokenize' --bias 5 hello
bad 2 'bias =1 is not ID=X' --bias =1 hello
bad 2 'bias 99999999999999999=1 is not ID=X' --bias 99999999999999999=1 hello
bad 2 'bias 4294967296=1 is not ID=X' --bias 4294967296=1 hello
bad 2 'bias 5=x: .* never, or a number from -2147.483647 to 2147.483647 with' --bias 5=x hello
bad 2 'bias 5=-2147.483648: ' --bias 5=-2147.483648 hello
bad 2 'bias 5=never: token 5 has one already' --bias 5=1 --bias 5=never hello
bad 2 'raw and --system exclude each other' --raw --system x hello
for option in top-k top-p min-p repetition frequency presence last-n stop bias min-tokens logprobs \
	system priority deadline; do
	bad 2 "$option is no option of it, or lacks its value" hello --$option
	"$onebit" run --help | grep -q -e "--$option " || fail "--help does not tell of --$option"
done
# shellcheck disable=SC2046 # a word each
set -- $(seq -f '--stop=unsaid-%.0f' 64)
bad 2 'more than 64 --stop' "$@" --stop x hello

# ---- a daemon for all that follows ----

# A sanitizer makes calls that the executor's sandbox forbids.
sandbox=on
if grep -qa -e __asan_init -e __tsan_init -e __ubsan_handle ./onebit-executor; then
	sandbox=off
fi
./onebitd -c none -o "socket = $tmp/s" -o "model = $model" -o "sandbox = $sandbox" \
	-o 'default_tokens = 32' -o 'max_tokens = 900' >"$tmp/log" 2>&1 &
daemon=$!
for i in $(seq 3000); do
	if [ -S "$tmp/s" ] || ! kill -0 $daemon 2>/dev/null; then
		break
	fi
	sleep 0.01
done
if [ ! -S "$tmp/s" ]; then
	echo 'FAIL: the daemon does not come up; it said:'
	cat "$tmp/log"
	exit 1
fi
ONEBIT_SOCKET=$tmp/s
export ONEBIT_SOCKET

# The 64 from above.
tell "$@"
cp "$tmp/out" "$tmp/greedy"
tell
same greedy 'stops that are never said'

# ---- the prompt ----

grep -q '^, there was' "$tmp/out" || fail "--raw does not go on with a story: $(cat "$tmp/out")"
run --max-tokens 20 'Once upon a time'
differs greedy 'a message instead of --raw'
run --json --max-tokens 1 'Who are you?'
n=$(count prompt_tokens)
run --json --max-tokens 1 --system 'You are a fox.' 'Who are you?'
[ "$(count prompt_tokens)" -gt "$n" ] || fail '--system adds nothing to the prompt'

# ---- drawing ----

tell --temperature 1 --seed 7
cp "$tmp/out" "$tmp/seven"
differs greedy '--temperature 1'
tell --temperature 1 --seed 7
same seven 'the same seed'
tell --temperature 1 --seed 8
differs seven 'another seed'
tell --temperature 1 --seed 7 --top-k 0 --top-p 1.0 --min-p 0 --repetition 1 --frequency 0 --presence -0 \
	--last-n 5 --min-tokens 0 --deadline 0 --bias 1=0
same seven 'options that are off'
tell --temperature 1 --seed 7 --top-k 1
same greedy '--top-k 1'
tell --temperature 1 --seed 7 --top-p .000001
same greedy '--top-p'
tell --temperature 1 --seed 7 --min-p 1
same greedy '--min-p'
for p in interactive normal batch; do
	tell --priority $p
	same greedy "--priority $p"
done

# What was there is there again, unless it is lowered; looking back by one token forbids just doubling.
tell --json --logprobs 0
[ "$(ids | wc -l)" -eq 20 ] || fail "--logprobs told of $(ids | wc -l) tokens instead of 20"
[ -n "$(ids | sort | uniq -d)" ] || fail 'no token comes twice, so the next tests say nothing'
first=$(ids | head -n 1) second=$(ids | sed -n 2p)
for option in frequency presence; do
	tell --json --logprobs 0 --$option 100
	[ -z "$(ids | sort | uniq -d)" ] || fail "--$option 100, and a token comes twice"
	tell --json --logprobs 0 --$option 100 --last-n 1
	[ -n "$(ids | sort | uniq -d)" ] || fail "--last-n 1, and nothing comes twice"
	[ -z "$(ids | uniq -d)" ] || fail "--$option 100 --last-n 1, and a token comes twice in a row"
done
# Which is which: once there they cancel, from the second time on only one of them grows.
tell --json --logprobs 0 --frequency -100 --presence 100
[ "$(ids | tail -n 8 | sort -u | wc -l)" -eq 1 ] || fail '--frequency -100 does not make it repeat itself'
tell --json --logprobs 0 --frequency 100 --presence -100
[ -z "$(ids | sort | uniq -c | awk '$1 > 2')" ] || fail '--frequency 100, and a token comes three times'
tell --repetition 1.5
differs greedy '--repetition 1.5'
tell --json --logprobs 0 --bias "$first=never" --bias "$second=never"
! ids | grep -qx -e "$first" -e "$second" || fail "--bias never, and token $first or $second is there"
tell --json --logprobs 0 --bias "$second=100"
[ "$(ids | sort -u)" = "$second" ] || fail "--bias $second=100, and other tokens are there"
# shellcheck disable=SC2046 # a word each
set -- $(seq -f '--bias=%.0f=0.000001' 0 4095)
tell "$@"
same greedy 'the same bias for each token'
bad 2 'more than 4096 --bias' "$@" --bias 4096=1 hello
bad 1 'that is a --bias for a token that this model does not have' --bias 4096=1 hello
run --choices 2 --temperature 1 --seed 7 --max-tokens 5 hello
[ "$(grep -c '^--- choice [01] ---$' "$tmp/out")" -eq 2 ] || fail '--choices 2 does not give two'

# ---- the end ----

tell --stop ' little'
[ "$(cat "$tmp/out")" = "$(sed 's/ little.*//' "$tmp/greedy")" ] || fail '--stop does not cut before the text'
tell --stop ' little' --stop ' was'
[ "$(cat "$tmp/out")" = "$(sed 's/ was.*//' "$tmp/greedy")" ] || fail 'the second --stop is lost'
tell --json --stop ' little'
grep -q '"finish":\["stop"\]' "$tmp/out" || fail '--stop does not finish with stop'

ask='Who are you?'
run --json "$ask"
n=$(count answer_tokens)
if [ "$n" -ge 25 ] || ! grep -q '"finish":\["stop"\]' "$tmp/out"; then
	fail "an answer of $n tokens has no end of its own, so the next tests say nothing"
fi
run --json --min-tokens 25 "$ask"
[ "$(count answer_tokens)" -ge 25 ] || fail "--min-tokens 25, and the answer has $(count answer_tokens)"
run --json --ignore-eos "$ask"
[ "$(count answer_tokens)" -eq 32 ] || fail "--ignore-eos ends at $(count answer_tokens) tokens, not the default's 32"
run --json --ignore-eos --max-tokens 36 "$ask"
[ "$(count answer_tokens)" -eq 36 ] || fail "--ignore-eos ends at $(count answer_tokens) tokens, not at 36"
grep -q '"finish":\["length"\]' "$tmp/out" || fail '--ignore-eos does not finish with length'
bad 1 'that is --max-tokens, beyond the daemon.s limit; give less' --max-tokens 901 hello
bad 1 'that is --min-tokens, .* or more --max-tokens' --min-tokens 33 hello
# Far more work than fits: what came before the end was shown.
timeout 120 "$onebit" run --raw --ignore-eos --max-tokens 900 --deadline 1 hello >"$tmp/out" 2>"$tmp/err"
got=$?
if [ $got -ne 1 ] || ! grep -q 'the deadline of 1 ms passed.*DEADLINE' "$tmp/err"; then
	fail "--deadline 1 ends with $got: $(cat "$tmp/err")"
fi

# ---- what else is told ----

long=$(for i in $(seq 12); do printf 'There were %d foxes in the wood. ' "$i"; done)
run --json --raw --max-tokens 1 --no-cache "$long"
run --json --raw --max-tokens 1 "$long"
[ "$(count cached_tokens)" -eq 0 ] || fail '--no-cache has left something in the cache'
run --json --raw --max-tokens 1 "$long"
[ "$(count cached_tokens)" -gt 0 ] || fail 'the same prompt again finds nothing in the cache'
run --json --raw --max-tokens 1 --no-cache "$long"
[ "$(count cached_tokens)" -eq 0 ] || fail '--no-cache has taken something from the cache'

tell --json --logprobs 3
# The likeliest is what greedy takes, with the same number.
n=$(grep -o '"id":\([0-9]*\),"text":\("[^"]*"\),"logprob":\([-0-9.e]*\),"top":\[{"id":\1,"text":"[^"]*","logprob":\3},{"id":[^{]*},{"id":[^{]*}\]' \
	"$tmp/out" | wc -l)
[ "$n" -eq 20 ] || fail "$n of 20 tokens have the three likeliest with the taken one first"
run --json --logprobs 20 --choices 2 --temperature 1 --seed 1 --ignore-eos --max-tokens 20 hello
[ "$(grep -o '"top":\[' "$tmp/out" | wc -l)" -eq 40 ] || fail 'not each of 40 tokens has its likeliest'
if command -v python3 >/dev/null; then
	python3 -c 'import json, sys
for line in sys.stdin:
	for t in json.loads(line).get("tokens", []):
		assert len(t["top"]) == 20' <"$tmp/out" || fail '--logprobs is not JSON, or not 20 each'
fi
run --json --max-tokens 2 hello
! grep -q logprob "$tmp/out" || fail 'log-probabilities that nobody asked for'

timeout 120 "$onebit" run --raw --max-tokens 20 --stats --seed 5 'Once upon a time' >"$tmp/out" 2>"$tmp/err"
same greedy --stats
grep -q '^5 prompt tokens .*; seed 5; [^ ]* by cpu/[a-z0-9]*$' "$tmp/err" ||
	fail "--stats does not name the model and its backend: $(cat "$tmp/err")"

kill -TERM $daemon
wait $daemon
got=$?
daemon=
[ $got -eq 0 ] || fail "the daemon ended with $got: $(tail -n 5 "$tmp/log")"
exit $failed

#!/bin/sh
# SPDX-License-Identifier: MIT
#
# onebit score, ppl and run with a model of one's own: if a log-probability changed from run to run, if
# the sum over a text were not what ppl says of it, or if bad input ended without a sentence that says
# which and what to do. $BUILD names the folder of the build (default: build).

BUILD=${BUILD:-build}
top=$(cd "$(dirname "$0")/.." && pwd)
model=$top/models/story.obm
onebit=./onebit
tmp=$(mktemp -d) || exit 1
failed=0
unset ONEBIT_SOCKET
trap 'rm -rf "$tmp"' EXIT

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

# A sanitizer makes calls that the executor's sandbox forbids.
sanitized=
if grep -qa -e __asan_init -e __tsan_init -e __ubsan_handle ./onebit-executor; then
	sanitized=1
fi

# call VERB ARG...
call()
{
	verb=$1
	shift
	case "$sanitized $*" in
	1*.obm*) set -- --set 'sandbox = off' "$@" ;;
	esac
	timeout 120 "$onebit" "$verb" "$@"
}

# bad STATUS PATTERN ARG...: ends with STATUS, says PATTERN on standard error, nothing on output.
bad()
{
	want=$1 pattern=$2
	shift 2
	call "$@" >"$tmp/out" 2>"$tmp/err" <"$tmp/in"
	got=$?
	if [ $got -ne "$want" ] || ! grep -q -e "$pattern" "$tmp/err" || [ -s "$tmp/out" ]; then
		fail "onebit $*: status $got instead of $want, or not '$pattern':"
		cat "$tmp/err" "$tmp/out"
	fi
}

# good PATTERN ARG...: ends with 0 and says PATTERN on standard output, nothing on standard error.
good()
{
	pattern=$1
	shift
	call "$@" >"$tmp/out" 2>"$tmp/err" <"$tmp/in"
	got=$?
	if [ $got -ne 0 ] || ! grep -q -e "$pattern" "$tmp/out" || [ -s "$tmp/err" ]; then
		fail "onebit $*: status $got instead of 0, or not '$pattern':"
		cat "$tmp/err" "$tmp/out"
	fi
}

# number KEY: its value in the JSON object of the last good.
number()
{
	sed -n "s/.*\"$1\":\\([-0-9.e+]*\\).*/\\1/p" "$tmp/out"
}

: >"$tmp/in"
: >"$tmp/empty"
none=$tmp/none.sock
text='Once upon a time, there was a little fox who lived near a river.'
ids='4091 644 529 258 452 11 427 297 258 436 2904 492 987 962 258 1807 13'
printf %s "$text" >"$tmp/text"

# ---- the command line ----

good 'usage: onebit score' score --help
good 'usage: onebit ppl' ppl --help
bad 2 'nothing to score; give --ids FILE or --text TEXT' score
bad 2 'exclude each other' score --ids x --text y
bad 2 'top 21 is not a number from 0 to 20' score --top 21 --text x
bad 2 'y: no argument is expected' score --text x y
bad 2 'no option' score --frobnicate
bad 2 'lacks its value' score --ids
bad 2 'add --private' score --text x --set 'log = error'
bad 2 'exclude each other' score --text x --model "$model" --socket "$none"
bad 2 'no text; give MODEL and TEXT' ppl
bad 2 '3 arguments where MODEL and TEXT are expected' ppl a b c
bad 2 '2 arguments where one text is expected' ppl --model a b c
bad 2 'window 1 is not a number from 2' ppl --window 1 x
bad 2 'window x is not a number' ppl --window x x
bad 2 'stride 0 is not a number from 1' ppl --stride 0 x
bad 2 'stride 8 leaves no context in a --window of 8' ppl --window 8 --stride 8 x
bad 2 'no option' ppl --frobnicate x
bad 2 '--model and --socket exclude each other' ppl --socket "$none" "$model" x
bad 2 '--model and --socket exclude each other' run --model "$model" --socket "$none" hello

# ---- input that is wrong before anybody is asked ----

bad 1 "$tmp/no cannot be opened: No such file or directory; check the path" score --ids "$tmp/no"
bad 1 "$tmp/no cannot be opened: No such file or directory; check the path" ppl "$tmp/no"
bad 1 'the text .*empty is empty; give it some words' ppl "$tmp/empty"
bad 1 'the text is empty' score --text -
bad 1 'standard input: there is no token id in it' score --ids -
printf '1, 2\n3 x4\n' >"$tmp/in"
bad 1 "standard input: line 2: 'x4' is no token id; ids are decimal numbers" score --ids -
printf '1\n99999999999\n' >"$tmp/bad"
bad 1 "bad: line 2: '99999999999' is larger than any token id" score --ids "$tmp/bad"
printf 'caf\351' >"$tmp/in"
bad 1 'the text is not UTF-8 at byte 3; convert it' score --text -
bad 1 'the text - is not UTF-8 at byte 3; convert it' ppl -
head -c 3000000 /dev/zero | tr '\000' a >"$tmp/long"
bad 1 'has more than the limit of [0-9]* bytes; give it in parts' ppl "$tmp/long"
bad 1 'cannot be read: Is a directory' ppl "$tmp"

# ---- nobody to ask, or not for us ----

bad 3 "no daemon at $none; start onebitd" score --text x --socket "$none"
bad 3 "no daemon at $none; start onebitd" ppl --socket "$none" "$tmp/text"
if [ "$(id -u)" -eq 0 ]; then
	echo 'skip: no permission, which root always has'
else
	cp "$model" "$tmp/secret.obm"
	chmod 0 "$tmp/secret.obm"
	bad 1 'cannot be opened: Permission denied; check the path and the file.s mode' \
		score --model "$tmp/secret.obm" --text x
	mkdir "$tmp/closed"
	chmod 0 "$tmp/closed"
	bad 3 'no permission to connect' score --text x --socket "$tmp/closed/s"
	rmdir "$tmp/closed"
fi
bad 1 "the model $tmp/no cannot be opened: No such file or directory" score --model "$tmp/no" --text x
bad 1 "the model $tmp/no cannot be opened: No such file or directory" ppl "$tmp/no" "$tmp/text"
bad 1 "the model $tmp/no cannot be opened: No such file or directory" run --model "$tmp/no" hello
bad 1 "the model $tmp is no file; name an .obm" score --model "$tmp" --text x
# In the executor's own words, and at once: nobody mends the file meanwhile.
bad 1 "the model $tmp/text cannot be served: .* begins with .*; .onebit model verify" score --model "$tmp/text" --text x
bad 1 "the model $tmp/text cannot be served: .* begins with .*; .onebit model verify" run --model "$tmp/text" hello
head -c 4000000 "$model" >"$tmp/cut.obm"
bad 1 "the model $tmp/cut.obm cannot be served: .*truncated.*; .onebit model verify" ppl "$tmp/cut.obm" "$tmp/text"

# ---- the model in the box ----

echo "$ids" >"$tmp/in"
good '^1	644	' score --model "$model" --ids -
cp "$tmp/out" "$tmp/first"
[ "$(wc -l <"$tmp/out")" -eq 17 ] || fail '17 ids do not give 17 lines'
head -n 1 "$tmp/out" | grep -q '^0	4091	.*	-$' || fail 'the first id is scored'
good '^1	644	' score --model "$model" --ids -
cmp -s "$tmp/out" "$tmp/first" || fail 'the same ids gave other numbers'
good '^1	644	' score --model "$model" --text "$text"
cmp -s "$tmp/out" "$tmp/first" || fail 'the text gave other numbers than its ids'
# A name with a blank, and relative.
mkdir "$tmp/a b"
ln -s "$model" "$tmp/a b/story.obm"
here=$(pwd)
cd "$tmp/a b" || exit 1
onebit=$here/onebit
good '^1	644	' score --model story.obm --ids -
onebit=./onebit
cd "$here" || exit 1
cmp -s "$tmp/out" "$tmp/first" || fail 'the model by another name gave other numbers'

good '"logprob":null' score --model "$model" --ids - --top 2 --json
[ "$(grep -o '"top":\[{' "$tmp/out" | wc -l)" -eq 16 ] || fail 'not each place has its likeliest tokens'
sum=$(number logprob_sum)
[ "$(number scored)" = 16 ] || fail "$(number scored) tokens are scored instead of 16"
# Line by line they sum up to what is said, as far as awk is exact.
awk -v sum="$sum" -F '\t' '$4 != "-" { s += $4 } END { exit s - sum > 1e-4 || sum - s > 1e-4 }' \
	"$tmp/first" || fail 'the sum is another than that of the lines'

# One window holds it all: the same tokens, so the same sum to the last bit.
good '"perplexity":' ppl "$model" --json "$tmp/text"
[ "$(number logprob_sum)" = "$sum" ] || fail "ppl sums up to $(number logprob_sum), score to $sum"
[ "$(number tokens)" = 16 ] || fail "ppl scored $(number tokens) tokens instead of 16"
[ "$(number bytes)" = 64 ] || fail "ppl counted $(number bytes) bytes instead of 64"
good '^perplexity [0-9.]*, [0-9.]* bits per byte$' ppl "$model" "$tmp/text"
grep -q '^window 1024, stride 512, bos before the text; 16 tokens scored once each, 64 bytes of text$' \
	"$tmp/out" || fail 'ppl does not say how it measured'
# Windows: all tokens still, with less before them.
for bos in '' --bos; do
	# shellcheck disable=SC2086 # nothing or one word
	good '"windows":[3-9]' ppl "$model" $bos --window 8 --stride 3 --json "$tmp/text"
	[ "$(number tokens)" = 16 ] || fail "ppl $bos scored $(number tokens) tokens instead of 16"
	[ "$(number logprob_sum)" != "$sum" ] || fail "ppl $bos has a window of 8 and sees everything"
done
bad 1 'window 1025 is more than this model.s context of 1024' ppl "$model" --window 1025 "$tmp/text"
bad 1 'stride 1024 leaves no context' ppl "$model" --stride 1024 "$tmp/text"

echo '1 2 3
4 4096' >"$tmp/in"
bad 1 'standard input: line 2: id 4096 is none of this model.s, which are 0 to 4095' \
	score --model "$model" --ids -
yes 13 | head -n 1025 >"$tmp/in"
bad 1 '1025 tokens are more than this model.s context of 1024; give fewer' \
	score --model "$model" --ids -
echo 13 >"$tmp/in"
good '^0	13	.*	-$' score --model "$model" --ids -

good . run --model "$model" --max-tokens 8 "$text"

# A reader who leaves early is no error and gets no message. Long enough not to fit a pipe.
yes 13 | head -n 300 >"$tmp/in"
(
	call score --model "$model" --ids - --top 20 <"$tmp/in" 2>"$tmp/err"
	echo $? >"$tmp/status"
) | head -c 1 >/dev/null
if [ "$(cat "$tmp/status")" != 0 ] || [ -s "$tmp/err" ]; then
	fail "a closed pipe is not a quiet end: $(cat "$tmp/status" "$tmp/err")"
fi
if [ -w /dev/full ] && { call ppl "$model" "$tmp/text" >/dev/full 2>"$tmp/err" ||
	! grep -q 'cannot write to standard output' "$tmp/err"; }; then
	fail "a full disk is not told: $(cat "$tmp/err")"
fi

# SIGINT and SIGTERM: the windows end, the private daemon stops, its directory goes.
yes "$text" | head -n 3000 >"$tmp/many"
if [ -n "$sanitized" ]; then
	set -- --set 'sandbox = off'
fi
"$onebit" ppl "$@" "$model" "$tmp/many" >"$tmp/out" 2>"$tmp/err" &
pid=$!
# Past its own start, where a signal would end it at once.
until ls "$tmp"/onebit-*/s >/dev/null 2>&1 || ! kill -0 $pid 2>/dev/null; do
	sleep 0.05
done
kill -TERM $pid
wait $pid
got=$?
if [ $got -ne 130 ] || [ -s "$tmp/out" ]; then
	fail "interrupted with status $got instead of 130: $(cat "$tmp/err" "$tmp/out")"
fi
for left in "$tmp"/onebit-*; do
	[ -e "$left" ] && fail "$left was left behind"
done

exit $failed

#!/bin/sh
# SPDX-License-Identifier: MIT
#
# onebit tokenize and detokenize: if ids or text came out otherwise than the model has them, if text
# turned into special tokens unasked, or if bad input ended without a sentence that says which.
# $BUILD names the folder of the build (default: build).

BUILD=${BUILD:-build}
tmp=$(mktemp -d) || exit 1
failed=0
trap 'rm -rf "$tmp"' EXIT

tool=$BUILD/onebit-tool
if [ ! -x "$tool" ]; then
	echo "skipped: $tool is missing; build it with make"
	exit 77
fi

# A vocabulary as Llama 3's is written: the 256 bytes, then two words.
i=0
while [ $i -lt 256 ]; do
	# shellcheck disable=SC2059 # the format is the byte
	printf "$(printf '\\%03o' $i)" | base64 | tr -d '\n'
	echo " $i"
	i=$((i + 1))
done >"$tmp/model"
printf 'SGk= 256\nIEhp 257\n' >>"$tmp/model"

# want OUTPUT INPUT VERB ARG...: standard output is OUTPUT, nothing on standard error, status 0.
want()
{
	output=$1 input=$2 verb=$3
	shift 3
	# shellcheck disable=SC2059 # so that inputs can have any byte
	printf "$input" | "$tool" "$verb" --model "$tmp/model" "$@" >"$tmp/out" 2>"$tmp/err"
	got=$?
	if [ $got -ne 0 ] || [ "$(cat "$tmp/out")" != "$output" ] || [ -s "$tmp/err" ]; then
		echo "FAIL: $verb $*: status $got, '$(cat "$tmp/out")' instead of '$output':"
		cat "$tmp/err"
		failed=1
	fi
}

# bad STATUS PATTERN INPUT ARG...: ends with STATUS and says PATTERN, nothing on standard output.
bad()
{
	status=$1 pattern=$2 input=$3
	shift 3
	# shellcheck disable=SC2059
	printf "$input" | "$tool" "$@" >"$tmp/out" 2>"$tmp/err"
	got=$?
	if [ $got -ne "$status" ] || ! grep -q -e "$pattern" "$tmp/err" || [ -s "$tmp/out" ] ||
		[ "$(wc -l <"$tmp/err")" -ne 1 ]; then
		echo "FAIL: $*: status $got instead of $status, or not '$pattern':"
		cat "$tmp/err" "$tmp/out"
		failed=1
	fi
}

# Text to ids. 258 is the first special of such a file, 267 <|eot_id|>.
want '256 33' 'Hi!' tokenize
want '' '' tokenize
want '257 257' ' Hi Hi' tokenize
want '0 255' '\000\377' tokenize
want '60 124 101 111 116 95 105 100 124 62' '<|eot_id|>' tokenize
want '267' '<|eot_id|>' tokenize --raw-special
# What is put around it.
want '258 256' 'Hi' tokenize --special
want '258 256' 'Hi' tokenize --chat raw
want '258 85 115 101 114 58 257 267 65 115 115 105 115 116 97 110 116 58 32' ' Hi' \
	tokenize --template bitnet --special
want '258 83 121 115 116 101 109 58 257 267 65 115 115 105 115 116 97 110 116 58 32' 'Hi' \
	tokenize --template bitnet --chat system
want '258 83 121 115 116 101 109 58 257 267 65 115 115 105 115 116 97 110 116 58 32' 'Hi' \
	tokenize --template=bitnet --chat=system
want '{"n":2,"tokens":[{"id":257,"text":" Hi","bytes":"204869","kind":"normal"},{"id":10,"text":"\u000a","bytes":"0a","kind":"normal"}]}' \
	' Hi\n' tokenize --json
want '{"n":2,"tokens":[{"id":34,"text":"\"","bytes":"22","kind":"normal"},{"id":255,"text":"�","bytes":"ff","kind":"normal"}]}' \
	'"\377' tokenize --json
want '{"n":1,"tokens":[{"id":267,"text":"<|eot_id|>","bytes":"3c7c656f745f69647c3e","kind":"special"}]}' \
	'<|eot_id|>' tokenize --json --raw-special

# And back.
want 'Hi!' '256 33' detokenize
want '' '' detokenize
want 'Hi Hi!' '256,257\n\t33\n' detokenize
want 'é' '195 169' detokenize
want '�!' '195 33' detokenize
want '�' '195' detokenize
want 'Hi' '258 256 267' detokenize
want '<|begin_of_text|>Hi<|eot_id|>' '258 256 267' detokenize --special
want '{"text":"Hi\u000a","n":2}' '256 10' detokenize --json
if [ "$(printf '195 33' | "$tool" detokenize --model "$tmp/model" --bytes | od -An -tx1 | tr -d ' ')" != c321 ]; then
	echo "FAIL: detokenize --bytes does not give the bytes"
	failed=1
fi
# Any bytes come back as they went.
head -c 100000 "$tool" >"$tmp/any"
"$tool" tokenize --model "$tmp/model" <"$tmp/any" >"$tmp/ids"
"$tool" detokenize --model "$tmp/model" --bytes <"$tmp/ids" >"$tmp/back"
if ! cmp -s "$tmp/back" "$tmp/any"; then
	echo "FAIL: 100,000 bytes do not come back as they went"
	failed=1
fi

# Everything that is wrong, by its name.
m=$tmp/model
bad 1 'id 514 (number 2) is none of this vocabulary.s, which are 0 to 513' '5 514 6' detokenize --model "$m"
bad 1 'id 99999999999999999999999 (number 1)' '99999999999999999999999' detokenize --model "$m"
bad 1 "'-1' (number 3) is no id" '1 2 -1' detokenize --model "$m"
bad 1 "'1x' (number 1) is no id" '1x' detokenize --model "$m"
bad 1 'no/such.obm: cannot be opened: No such file' 'Hi' tokenize --model no/such.obm
bad 1 'is no tokenizer that is known here' 'Hi' tokenize --model "$0"
bad 1 'needs the special token <|user|>' 'Hi' tokenize --model "$m" --template story --special
bad 1 "chat template 'x' is not known" 'Hi' tokenize --model "$m" --template x --special
bad 1 'takes raw prompts only' 'Hi' tokenize --model "$m" --chat
bad 2 '--model FILE is missing' 'Hi' tokenize
bad 2 '--chat nobody is no role' 'Hi' tokenize --model "$m" --chat=nobody
bad 2 "'text': the text comes on standard input" 'Hi' tokenize --model "$m" text
bad 2 "'5': the ids come on standard input" '' detokenize --model "$m" 5
bad 2 '--frobnicate is no option' '' tokenize --frobnicate
bad 2 'drop --bytes' '' detokenize --model "$m" --json --bytes
printf 'OBM' | cat - /dev/null >"$tmp/short"
bad 1 'is no tokenizer that is known here' 'Hi' tokenize --model "$tmp/short"
printf '\211OBM\r\n\032\n' >"$tmp/obm"
bad 1 "$tmp/obm" 'Hi' tokenize --model "$tmp/obm"

# Input beyond the bound, or that cannot be read, output that nobody reads, a disk that is full.
if head -c 67108865 /dev/zero | "$tool" tokenize --model "$m" >"$tmp/out" 2>"$tmp/err" ||
	! grep -q 'has more than 67108864 bytes; give it in parts' "$tmp/err"; then
	echo "FAIL: too much input is not told:"
	cat "$tmp/err"
	failed=1
fi
if "$tool" tokenize --model "$m" <&- >"$tmp/out" 2>"$tmp/err" || ! grep -q 'standard input cannot be read' "$tmp/err"; then
	echo "FAIL: a closed standard input is not told:"
	cat "$tmp/err"
	failed=1
fi
{
	"$tool" tokenize --model "$m" <"$tmp/any" 2>"$tmp/err"
	echo $? >"$tmp/rc"
} | head -c 1 >"$tmp/out"
if [ "$(cat "$tmp/rc")" -gt 1 ] || [ -s "$tmp/err" ]; then
	echo "FAIL: a reader who left: status $(cat "$tmp/rc")"
	cat "$tmp/err"
	failed=1
fi
if [ -w /dev/full ] && { printf 'Hi' | "$tool" tokenize --model "$m" >/dev/full 2>"$tmp/err" ||
	! grep -q 'cannot write to standard output' "$tmp/err"; }; then
	echo "FAIL: a full disk is not told:"
	cat "$tmp/err"
	failed=1
fi
for verb in tokenize detokenize; do
	if ! "$tool" $verb --help | grep -q "usage: onebit $verb"; then
		echo "FAIL: $verb --help"
		failed=1
	fi
done
exit $failed

#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The model in models/ is whole, is what its card says, and its vocabulary gives back what it is given.
# What breaks otherwise: the container or the tokenizer changed and the file was not converted anew.
set -eu
cd "$(dirname "$0")/.."

onebit=${BUILD:-build}/onebit
model=models/story.obm
fail() {
	echo "bundled.sh: $*" >&2
	exit 1
}

[ "$(stat -c %s "$model")" -le 8000000 ] || fail "$model is over 8 MB"
"$onebit" model verify "$model" >/dev/null || fail "$model is not good; convert it anew"
identity=$("$onebit" model info "$model" --json | grep -o '"identity":"[0-9a-f]*"' | cut -d '"' -f 4)
grep -q "$identity" models/README.md || fail "its identity, $identity, is not the card's"

text='Once upon a time, there was a little fox who lived near a river.'
ids=$(printf %s "$text" | "$onebit" tokenize --model "$model")
[ "$ids" = '644 529 258 452 11 427 297 258 436 2904 492 987 962 258 1807 13' ] || fail "the ids are $ids"
[ "$(echo "$ids" | "$onebit" detokenize --model "$model")" = "$text" ] || fail "the text is another"
ids=$(printf 'Tell me a story.' | "$onebit" tokenize --model "$model" --special)
case $ids in
'4091 4093 '*' 4095 4094') ;;
*) fail "the template gives $ids" ;;
esac

#!/bin/bash
# SPDX-License-Identifier: MIT
#
# run.sh [BUILD [NAME...]]: run the tests built into BUILD (build/tests/test_*) and the scripts beside
# this file, two at a time, from the top of the source tree. Exit status 77 means skipped; a test that
# ends otherwise than 0 shows what it said. A Check binary counts with each of its tests, a script as
# one; a line "skip: WHAT" in a test that passed counts as a skipped part. Each has a $TMPDIR of its
# own, where it must leave nothing.
#
# ONEBIT_JOBS: tests at a time (2). ONEBIT_TEST_TIMEOUT: seconds after which one counts as hung (900).
set -u
cd "$(dirname "$0")/.." || exit 1

build=${1:-build}
[ $# -gt 0 ] && shift
jobs=${ONEBIT_JOBS:-2}
logs=$build/test-logs
export BUILD=$build
# Check kills a test after 4 s otherwise, which a busy machine may need for nothing.
export CK_DEFAULT_TIMEOUT=${CK_DEFAULT_TIMEOUT:-300}
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_stack_use_after_return=1:abort_on_error=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

# The thread sanitizer cannot place its shadow where much address randomness is in force.
wrap=()
case $build in
*thread*) if setarch -R true 2>/dev/null; then wrap=(setarch -R); fi ;;
esac

mkdir -p "$logs"
rm -f "$logs"/*.log "$logs"/*.rc

run_one() {
	local name=$1 cmd=$2 begin=$SECONDS rc=0 tmp left
	tmp=$(mktemp -d) && chmod 755 "$tmp" || exit 1
	TMPDIR=$tmp timeout -k 10 "${ONEBIT_TEST_TIMEOUT:-900}" "${wrap[@]}" "$cmd" \
		>"$logs/$name.log" 2>&1 </dev/null || rc=$?
	left=$(ls -A "$tmp")
	rm -rf "$tmp"
	if [ "$rc" -eq 0 ] && [ -n "$left" ]; then
		echo "it left in \$TMPDIR:" $left >>"$logs/$name.log"
		rc=1
	fi
	echo "$rc" >"$logs/$name.rc"
	case $rc in
	0) printf '  ok      %s (%d s)\n' "$name" $((SECONDS - begin)) ;;
	77) printf '  skipped %s: %s\n' "$name" "$(tail -n 1 "$logs/$name.log")" ;;
	*)
		{
			printf '  FAILED  %s, exit status %d%s; it said:\n' "$name" "$rc" \
				"$([ "$rc" -eq 124 ] && echo ' (hung)')"
			tail -n 200 "$logs/$name.log" | sed 's/^/    | /'
		} >"$logs/$name.show"
		# One write, so that the outputs of two tests do not mix.
		cat "$logs/$name.show"
		rm -f "$logs/$name.show"
		;;
	esac
}

wanted() {
	local name=$1 w
	shift
	[ $# -eq 0 ] && return 0
	for w in "$@"; do
		[ "$w" = "$name" ] && return 0
	done
	return 1
}

names=()
for cmd in tests/test_*.c tests/*.sh; do
	name=$(basename "$cmd")
	name=${name%.c}
	case $cmd in
	tests/run.sh | 'tests/test_*.c') continue ;;
	*.c) cmd=$build/tests/$name ;;
	esac
	wanted "$name" "$@" || continue
	names+=("$name")
	while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do
		wait -n
	done
	run_one "$name" "$cmd" &
done
wait

passed=0 failed=0 skipped=0
for name in "${names[@]}"; do
	rc=$(cat "$logs/$name.rc" 2>/dev/null || echo 1)
	if [ "$rc" -eq 77 ]; then
		skipped=$((skipped + 1))
		continue
	fi
	ok=0 bad=0
	while read -r checks failures errors; do
		ok=$((ok + checks - failures - errors))
		bad=$((bad + failures + errors))
	done < <(sed -n 's/^[0-9]*%: Checks: \([0-9]*\), Failures: \([0-9]*\), Errors: \([0-9]*\)$/\1 \2 \3/p' \
		"$logs/$name.log")
	if [ "$rc" -ne 0 ] && [ "$bad" -eq 0 ]; then
		bad=1
	elif [ $((ok + bad)) -eq 0 ]; then
		ok=1
	fi
	passed=$((passed + ok))
	failed=$((failed + bad))
	skipped=$((skipped + $(grep -c '^skip: ' "$logs/$name.log")))
done
grep -H '^skip: ' "$logs"/*.log 2>/dev/null | sed 's|^.*/\([^/]*\)\.log:skip: |  part skipped in \1: |'
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]

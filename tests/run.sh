#!/bin/sh
# Runs every test program and script and adds up their closing lines. Called by `make test`; BUILD is the build directory.
#
#     JOBS           how many tests run at a time; by default as many as make's -j says, else one
#     TSAR_QUICK     set: leaves out what does not depend on the build, or only repeats with more numbers (for slow builds)
#     sh tests/run.sh [NAME ...]     these tests alone: test_vq, test_cli.sh, bits-2 (the digests with two threads)
#
# Each test has a log of its own, and writes files of its own names (C) or in a folder of its own (scripts, tests/check.sh). Logs are shown
# whole and in order, whatever ended first; those that take longest begin first.
set -u
BUILD=${BUILD:-.build}
TSAR=${TSAR:-$BUILD/tsar}
export BUILD TSAR
logs=$BUILD/test.logs
quick=${TSAR_QUICK:-}

# One test: its output in NAME.log, then its status and its seconds in NAME.end, which appears when it is over.
if [ "${1:-}" = --one ]; then
    name=$2 begun=$(date +%s)
    case $name in
    bits-*) set -- "$BUILD/tests/bits" tests/digests.txt "${name#bits-}" ;;
    *.sh) set -- sh "tests/$name" ;;
    test_math) set -- "$BUILD/tests/$name" ${quick:+50000} ;;
    *) set -- "$BUILD/tests/$name" ;;
    esac
    "$@" >"$logs/$name.log" 2>&1 </dev/null
    echo "$? $(($(date +%s) - begun))" >"$logs/$name.end.tmp"
    mv "$logs/$name.end.tmp" "$logs/$name.end"
    exit 0
fi

all_tests() {
    for test in "$BUILD"/tests/test_*; do
        if [ -x "$test" ]; then basename "$test"; fi
    done
    echo 'bits-1 bits-2 bits-3'
    for script in tests/test_*.sh; do
        case ${script##*/} in # these build copies of their own, look at objects or pages, or wait for Python and long prompts
        test_memory.sh | test_libc_memory.sh | test_threads.sh | test_stack.sh | test_selfcheck.sh | test_layers.sh | test_page.sh | test_pages.sh | \
            test_hooks.sh | test_progress.sh) [ -z "$quick" ] || continue ;;
        esac
        basename "$script"
    done
}

if [ -z "${JOBS:-}" ]; then # make's -j, without a number as many as there are processors
    JOBS=$(echo " ${MAKEFLAGS:-}" | sed -n 's/.* -j\([0-9]*\).*/\1/p' | head -n 1)
    case " ${MAKEFLAGS:-}" in *' -j') JOBS=$(getconf _NPROCESSORS_ONLN 2>/dev/null) ;; esac
fi
JOBS=${JOBS:-1}
tests=${*:-$(all_tests)}
rm -rf "$logs"
mkdir -p "$logs"
for name in $tests; do : >"$logs/$name.log"; done
{
    longest='test_memory.sh test_page.sh test_train.sh test_hooks.sh test_conformance.sh test_signals.sh'
    for name in $longest; do
        for test in $tests; do [ "$test" != "$name" ] || echo "$name"; done
    done
    for test in $tests; do
        case " $longest " in *" $test "*) ;; *) echo "$test" ;; esac
    done
} | xargs -n 1 -P "$JOBS" sh "$0" --one &
running=$!
trap 'kill $running 2>/dev/null; exit 130' INT TERM

passed=0
failed=0
skipped=0
for name in $tests; do
    while [ ! -f "$logs/$name.end" ] && kill -0 $running 2>/dev/null; do sleep 1; done
    status=lost seconds=0
    [ ! -f "$logs/$name.end" ] || read -r status seconds <"$logs/$name.end"
    echo "== $name, $seconds s"
    cat "$logs/$name.log"
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$logs/$name.log" | tail -n 1)
    if [ -z "$line" ]; then
        echo "FAILED $name ended without a result (status $status)"
        failed=$((failed + 1))
        continue
    fi
    f=$(echo "$line" | sed 's/.*passed, \([0-9]*\) failed.*/\1/')
    s=$(echo "$line" | sed -n 's/.*, \([0-9]*\) skipped.*/\1/p')
    if [ "$status" != 0 ] && [ "$f" -eq 0 ]; then
        echo "FAILED $name: status $status"
        f=1
    fi
    passed=$((passed + ${line%% *}))
    failed=$((failed + f))
    skipped=$((skipped + ${s:-0}))
done

if [ "$skipped" -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ "$failed" -eq 0 ]

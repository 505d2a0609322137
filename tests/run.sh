#!/bin/sh
# Runs every test program and script and adds up their closing lines. Called by `make test`; BUILD is the build directory. With TSAR_QUICK
# set, for slow builds, it leaves out what does not depend on the build, or only repeats with more numbers.
set -u
BUILD=${BUILD:-.build}
TSAR=${TSAR:-$BUILD/tsar}
export BUILD TSAR
passed=0
failed=0
skipped=0

# One test: its output is shown, its last line must read "N passed, N failed[, N skipped]".
run() {
    name=$1
    shift
    printf '== %s\n' "$name"
    "$@" >"$BUILD/test.log" 2>&1
    status=$?
    cat "$BUILD/test.log"
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$BUILD/test.log" | tail -n 1)
    if [ -z "$line" ]; then
        echo "FAILED $name ended without a result (status $status)"
        failed=$((failed + 1))
        return
    fi
    p=$(echo "$line" | sed 's/ passed.*//')
    f=$(echo "$line" | sed 's/.*passed, \([0-9]*\) failed.*/\1/')
    s=$(echo "$line" | sed -n 's/.*, \([0-9]*\) skipped.*/\1/p')
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then
        echo "FAILED $name: status $status"
        f=1
    fi
    passed=$((passed + p))
    failed=$((failed + f))
    skipped=$((skipped + ${s:-0}))
}

for test in "$BUILD"/tests/test_*; do
    name=$(basename "$test")
    case $name in test_math) numbers=${TSAR_QUICK:+50000} ;; *) numbers= ;; esac
    # shellcheck disable=SC2086 # none or one
    [ -x "$test" ] && run "$name" "$test" $numbers
done
for threads in 1 2 3; do
    run "bits, $threads threads" "$BUILD/tests/bits" tests/digests.txt "$threads"
done
for script in tests/test_*.sh; do
    case ${script##*/} in # these build copies of their own, or look at objects
    test_memory.sh | test_libc_memory.sh | test_threads.sh | test_stack.sh | test_selfcheck.sh | test_layers.sh) [ -z "${TSAR_QUICK:-}" ] || continue ;;
    esac
    [ -f "$script" ] && run "$(basename "$script")" sh "$script"
done

if [ "$skipped" -gt 0 ]; then
    echo "$passed passed, $failed failed, $skipped skipped"
else
    echo "$passed passed, $failed failed"
fi
[ "$failed" -eq 0 ]

#!/bin/sh
# test_threads.c under ThreadSanitizer: no two threads touch the same memory without order. Skipped where the compiler has none.
set -u
BUILD=${BUILD:-.build}
dir=$BUILD/threads
mkdir -p "$dir"
printf 'int main(void){return 0;}' >"$dir/probe.c"
if ! ${CC:-cc} -fsanitize=thread "$dir/probe.c" -o "$dir/probe" 2>/dev/null || ! "$dir/probe" 2>/dev/null; then
    echo 'no ThreadSanitizer here: skipped'
    echo '0 passed, 0 failed'
    exit 0
fi
if ! ${MAKE:-make} -s BUILD="$dir" PORTABLE=1 ${NO_PNG:+NO_PNG=1} CFLAGS='-O1 -g -fsanitize=thread' LDFLAGS='-fsanitize=thread' "$dir/tests/test_threads" >"$dir/log" 2>&1; then
    tail -n 5 "$dir/log"
    echo '0 passed, 1 failed'
    exit 1
fi
cd "$dir" || exit 1
TSAN_OPTIONS='exitcode=66 halt_on_error=0' ./tests/test_threads >log 2>&1
status=$?
if [ $status -ne 0 ] || grep -q 'WARNING: ThreadSanitizer' log; then
    grep -A 12 -m 2 'WARNING: ThreadSanitizer' log
    tail -n 3 log
    echo '0 passed, 1 failed'
    exit 1
fi
echo '1 passed, 0 failed'

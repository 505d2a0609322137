#!/bin/sh
# No function of the library needs more than 16 kB of stack, as this build's compiler counts it (-fstack-usage writes a file beside each
# object). BUILD is the build directory.
set -u
BUILD=${BUILD:-.build}
limit=16384
objects=$(find "$BUILD" -name '*.o' ! -name 'main.o' ! -path "$BUILD/weights/train/*" ! -path "$BUILD/tests/test_*" | sed 's/\.o$/.su/')
passed=0
failed=0
for usage in $objects; do
    [ -f "$usage" ] || continue
    big=$(awk -F '\t' -v limit=$limit '$2 + 0 > limit || $3 == "dynamic" { print "  " $1 " " $2 " " $3 }' "$usage")
    if [ -z "$big" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf 'FAILED more than %s bytes of stack:\n%s\n' "$limit" "$big"
    fi
done
[ "$passed" -gt 0 ] || [ "$failed" -gt 0 ] || { echo 'skipped: this compiler does not tell' && echo '0 passed, 0 failed, 1 skipped' && exit 0; }
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

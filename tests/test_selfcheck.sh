#!/bin/sh
# Builds that do not keep the arithmetic (SPEC 1.4): they say what is broken and refuse to run, or do not compile.
set -u
. tests/check.sh
CC=${CC:-cc}
dir=$BUILD/selfcheck
rm -rf "$dir"
mkdir -p "$dir"
check_log=$dir/check.log
cat >"$dir/main.c" <<'END'
#include "tsar.h"
#include <stdio.h>
int main(void)
{
    tsar_error err = { "" };
    tsar_status status = tsar_self_check(&err);
    puts(err.text);
    return (int)status;
}
END

# STATUS WORDS SOURCES FLAGS...: a program whose self-check ends with the status and says the words; the sources are built with the flags,
# the rest is this build's own.
says() {
    expected=$1
    words=$2
    sources=$3
    shift 3
    # shellcheck disable=SC2086 # several
    $CC -std=c99 -ffp-contract=off -I. ${CFLAGS:-} -O3 ${OMP:+-fopenmp} "$@" -o "$dir/check" "$dir/main.c" $sources "$BUILD/libtsar.a" -lm || return 1
    "$dir/check" >"$dir/said.txt"
    status=$?
    cat "$dir/said.txt"
    [ $status -eq "$expected" ] && grep -q "$words" "$dir/said.txt"
}

check 'this build' says 0 '^$' tests/selfcheck.c
check 'reassociation' says 3 'reorders sums' tests/selfcheck.c -fassociative-math -fno-signed-zeros -fno-trapping-math
check 'reciprocals' says 3 'reciprocal' tests/selfcheck.c -freciprocal-math
if grep -q '^flags.* fma ' /proc/cpuinfo 2>/dev/null; then
    check 'contraction' says 3 'fuses multiply and add' tests/selfcheck.c -ffp-contract=fast -mfma
    check 'contraction in the kernel alone' says 3 'known bits' weights/numbers.c -ffp-contract=fast -mfma
fi
for flag in -ffast-math -ffinite-math-only; do
    # shellcheck disable=SC2086 # several
    check "$flag does not compile" sh -c "! $CC -std=c99 -I. $flag -c tests/selfcheck.c -o '$dir/never.o' 2>'$dir/said.txt' && grep -q 'tsar: built with' '$dir/said.txt'"
done
check_end

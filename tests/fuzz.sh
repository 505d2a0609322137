#!/bin/sh
# Fuzzes every parser of files with libFuzzer under AddressSanitizer and UBSan: sh tests/fuzz.sh [SECONDS each]. Needs clang.
set -u
seconds=${1:-60}
BUILD=${BUILD:-.build}
root=$(pwd)
dir=$root/$BUILD/fuzz
passed=0
failed=0
mkdir -p "$dir"

fuzz() { # name, source, number of the target in it, seeds
    name=$1
    source=$2
    number=$3
    shift 3
    work=$dir/$name
    rm -rf "$work"
    mkdir -p "$work/corpus"
    for seed in "$@"; do cp "$seed" "$work/corpus/"; done
    if ! clang -std=c99 -ffp-contract=off -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=undefined -DTARGET="$number" -DTSAR_NO_PNG -D_FILE_OFFSET_BITS=64 \
        "tests/$source" tsar.c vq.c sampler.c weights/*.c weights/files/*.c tests/trace.c tests/verify.c tests/selfcheck.c -o "$work/fuzz" -lm; then
        failed=$((failed + 1))
        return
    fi
    if (cd "$work" && ./fuzz -max_total_time="$seconds" -max_len=20000 -rss_limit_mb=2048 -timeout=20 -verbosity=0 -print_final_stats=1 corpus >log.txt 2>&1); then
        echo "ok $name: $(sed -n 's/stat::number_of_executed_units: */executed /p' "$work/log.txt")"
        passed=$((passed + 1))
    else
        echo "FAILED $name: see $BUILD/fuzz/$name/log.txt"
        tail -n 25 "$work/log.txt"
        failed=$((failed + 1))
    fi
}

# the first byte of a checkpoint's seed says what the rest is: see fuzz_import.c
printf 'P6\n# note\n2 1\n255\nabcdef' >"$dir/seed.ppm"
for form in pt legacy.pt; do { printf '\000'; cat "tests/checkpoints/small.$form"; } >"$dir/seed.$form"; done
fuzz container fuzz.c 1 tests/vectors/zipar_s1.safetensors
fuzz model fuzz.c 2 tests/vectors/zipar_s1.safetensors
fuzz trace fuzz.c 3 tests/vectors/zipar_s1.safetensors
fuzz picture fuzz.c 4 "$dir/seed.ppm"
fuzz features fuzz.c 5 tests/checkpoints/small.npy
fuzz prompt fuzz.c 6
fuzz checkpoint fuzz_import.c 0 "$dir/seed.pt" "$dir/seed.legacy.pt"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

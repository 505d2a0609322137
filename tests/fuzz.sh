#!/bin/sh
# Fuzzes every parser of files with libFuzzer under AddressSanitizer and UBSan: sh tests/fuzz.sh [SECONDS each]. Needs clang.
# FUZZ="verify tokenizer" runs these alone, JOBS (2) at a time.
set -u
seconds=${1:-60}
JOBS=${JOBS:-2}
BUILD=${BUILD:-.build}
root=$(pwd)
dir=$BUILD/fuzz
started=0
mkdir -p "$dir"

# the library once, instrumented; each target is linked with it
flags='-std=c99 -ffp-contract=off -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -DTSAR_NO_PNG -D_FILE_OFFSET_BITS=64'
rm -rf "$dir/objects" "$dir/library.a" "$dir"/*.said
mkdir -p "$dir/objects"
for file in tsar.c vq.c sampler.c weights/*.c weights/files/*.c tests/trace.c tests/rounded.c tests/judge.c tests/decisions.c tests/verify.c tests/report.c tests/selfcheck.c \
    weights/train/run.c weights/train/tape.c weights/train/ops.c weights/train/vq.c weights/train/codes.c weights/train/scenes.c weights/train/shapes.c; do
    echo "$file $dir/objects/$(echo "$file" | tr '/' '_').o"
done | xargs -n 2 -P "$JOBS" sh -c "clang $flags -fsanitize=fuzzer-no-link -c \$0 -o \$1" || exit 1
ar rcs "$dir/library.a" "$dir"/objects/*.o

fuzz() { # name, source, number of the target in it, seeds: begins it; all that are begun take the same time
    case " ${FUZZ:-$1} " in *" $1 "*) ;; *) return ;; esac
    rm -rf "${dir:?}/$1"
    started=$((started + 1))
    one "$@" >"$dir/$1.said" 2>&1 &
    [ $((started % JOBS)) -ne 0 ] || wait
}

one() {
    name=$1
    source=$2
    number=$3
    shift 3
    work=$dir/$name
    mkdir -p "$work/corpus"
    [ "$name" != tokenizer ] || cp "$dir/emu3_vision_tokens.txt" "$work/"
    for seed in "$@"; do cp "$seed" "$work/corpus/"; done
    case $name in container | model | trace | verify) headers=-DHEADERS ;; *) headers= ;; esac
    # shellcheck disable=SC2086 # flags are words
    if ! clang $flags -fsanitize=fuzzer $headers -DTARGET="$number" "tests/$source" "$dir/library.a" -o "$work/fuzz" -lm; then
        echo "FAILED $name: it does not compile"
        return
    fi
    # files are written a thousand times a second: in memory, where there is room for that
    run=$(mktemp -d /dev/shm/tsar_fuzz.XXXXXX 2>/dev/null) || run=$work
    [ ! -f "$work/emu3_vision_tokens.txt" ] || [ "$run" = "$work" ] || cp "$work/emu3_vision_tokens.txt" "$run/"
    if (cd "$run" && "$root/$work/fuzz" -max_total_time="$seconds" -max_len=100000 -rss_limit_mb=2048 -timeout=20 -verbosity=0 -print_final_stats=1 -artifact_prefix="$root/$work/" \
        "$root/$work/corpus" >"$root/$work/log.txt" 2>&1); then
        echo "ok $name: $(sed -n 's/stat::number_of_executed_units: */executed /p' "$work/log.txt")"
    else
        echo "FAILED $name: see $BUILD/fuzz/$name/log.txt"
        tail -n 25 "$work/log.txt"
    fi
    [ "$run" = "$work" ] || rm -rf "$run"
}

# the first byte of a checkpoint's seed says what the rest is: see fuzz_import.c
printf 'P6\n# note\n2 1\n255\nabcdef' >"$dir/seed.ppm"
for form in pt legacy.pt; do { printf '\000'; cat "tests/checkpoints/small.$form"; } >"$dir/seed.$form"; done
fuzz container fuzz.c 1 tests/vectors/zipar_s1.safetensors
fuzz model fuzz.c 2
fuzz trace fuzz.c 3
fuzz picture fuzz.c 4 "$dir/seed.ppm"
fuzz features fuzz.c 5 tests/checkpoints/small.npy
fuzz prompt fuzz.c 6
{ printf '\003'; printf '{"metadata": {}, "weight_map": {"lm_head.weight": "model.safetensors", "model.norm.weight": "model.safetensors"}}'; } >"$dir/seed.index"
{ printf '\004'; cat tests/checkpoints/emu3/config.json; } >"$dir/seed.config"
fuzz checkpoint fuzz_import.c 0 "$dir/seed.pt" "$dir/seed.legacy.pt" "$dir/seed.index" "$dir/seed.config"
printf 'IQ== 0\nIg== 1\nISI= 2\n' >"$dir/seed.tiktoken"
printf '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}, "pre_tokenizer": null, "normalizer": null, "added_tokens": []}' >"$dir/seed.json"
printf '<|image token|>\n' >"$dir/emu3_vision_tokens.txt"
# published tokenizers, cut to the bytes of their vocabulary: the rules of their splitting stay
cat >"$dir/cut.awk" <<'END'
/^  "added_tokens": \[$/ { print "  \"added_tokens\": [],"; skip = 1 }
skip { if (/^  \],?$/) skip = 0; next }
/^    "vocab": \{$/ { print; inside = 1; next }
inside && /^    \},?$/ { print line "\n    },\n    \"merges\": []\n  }\n}"; exit }
inside { split($0, part, "\": "); if (length(part[1]) <= 9) { sub(/,$/, ""); line = line (line == "" ? "" : ",\n") $0 } next }
{ print }
END
tokenizers=
for name in chameleon chameleon_splits deepseek; do
    LC_ALL=C awk -f "$dir/cut.awk" "tests/vectors/bpe/tok/$name.json" >"$dir/$name.json" && tokenizers="$tokenizers $dir/$name.json"
done
for file in tests/vectors/bpe/tok/edge*.json; do [ -f "$file" ] && tokenizers="$tokenizers $file"; done
# shellcheck disable=SC2086
fuzz tokenizer fuzz.c 7 "$dir/seed.tiktoken" "$dir/seed.json" $tokenizers
fuzz spiece fuzz.c 8 tests/spiece/ok_*.model tests/spiece/bad_charsmap_*.model
printf 'A red car, a 16x9 photo of b2b http://example.com/x.jpg (free shipping) #123' >"$dir/seed.caption"
fuzz caption fuzz.c 9 "$dir/seed.caption"
fuzz verify fuzz.c 10
fuzz trainer_checkpoint fuzz_train.c 1
fuzz trainer_codes fuzz_train.c 2
fuzz trainer_tokenizer fuzz_train.c 3
wait
cat "$dir"/*.said
passed=$(cat "$dir"/*.said | grep -c '^ok ')
failed=$((started - passed))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]

#!/bin/sh
# How fast an import is against cp of the same file, both from the page cache, best of five in turn; must stay within 1.5 times.
#
#     sh tests/import_speed.sh [CHECKPOINT KEY=VALUE ...]      default: a synthetic model of 1.1 GB, written and imported as safetensors
#
# Needs 3.5 GB of disk in TMPDIR (default .build); not a part of `make test`.
set -eu
TSAR=${TSAR:-./tsar}
dir=$(mktemp -d "${TMPDIR:-.build}/import_speed.XXXXXX")
trap 'rm -rf "$dir"' EXIT
if [ $# -eq 0 ]; then
    "$TSAR" synth arch=llamagen-c2i dim=1280 n_layer=12 n_head=20 n_kv_head=20 ffn_hidden=3584 norm_eps=1e-05 rope=2d codebook_size=16384 grid_h=16 grid_w=16 \
        cond_tokens=1 num_classes=1000 -o "$dir/model.safetensors" --quiet
    set -- "$dir/model.safetensors"
fi
cat "$1" >/dev/null

milliseconds() { # of a command, to a file that does not exist yet
    rm -f "$dir/out"
    start=$(date +%s%N)
    "$@"
    echo $((($(date +%s%N) - start) / 1000000))
}

best_cp=1000000
best_import=1000000
for round in 1 2 3 4 5; do
    t=$(milliseconds cp "$1" "$dir/out")
    [ "$t" -ge "$best_cp" ] || best_cp=$t
    t=$(milliseconds "$TSAR" import "$@" -o "$dir/out" --quiet)
    [ "$t" -ge "$best_import" ] || best_import=$t
done
echo "cp $best_cp ms, import $best_import ms: $((best_import * 100 / best_cp)) % of cp"
if [ $((best_import * 2)) -le $((best_cp * 3)) ]; then echo '1 passed, 0 failed'; else echo '0 passed, 1 failed' && exit 1; fi

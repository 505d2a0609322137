#!/bin/sh
# How much faster ZipAR with a window of 2 makes a whole picture than raster order: models of 1 GB, 24 x 24 codes, one thread,
# with and without guidance. Processor time, loading the model included. Without guidance it must be half or less with F32.
#
#     sh tests/zipar_speed.sh [f32|bf16 ...]      default: both
#
# Takes about two minutes a dtype and 1.1 GB of disk in TMPDIR (default .build); not a part of `make test`.
set -eu
TSAR=${TSAR:-./tsar}
dir=$(mktemp -d "${TMPDIR:-.build}/zipar_speed.XXXXXX")
trap 'rm -rf "$dir"' EXIT

milliseconds() { # of processor time of a picture: arguments of tsar generate
    (
        "$TSAR" generate -m "$dir/model.safetensors" --class 3 --seed 1 --threads 1 --codes "$dir/codes.safetensors" --quiet "$@" >&2
        times
    ) | tail -n 1 | tr 'ms' '  ' | awk '{ printf "%d\n", 1000 * (60 * ($1 + $3) + $2 + $4) }'
}

passed=0
failed=0
for dtype in ${*:-f32 bf16}; do
    layers=18
    [ "$dtype" = f32 ] || layers=37
    "$TSAR" synth arch=llamagen-c2i dim=1024 n_layer=$layers n_head=16 n_kv_head=16 ffn_hidden=2816 norm_eps=1e-5 rope=2d codebook_size=16384 \
        grid_h=24 grid_w=24 num_classes=1000 cond_tokens=1 --dtype "$dtype" -o "$dir/model.safetensors" --quiet
    "$TSAR" generate -m "$dir/model.safetensors" --class 3 --threads 1 --codes "$dir/codes.safetensors" --quiet --cfg 1 --decode zipar:1
    # The file is in memory from here on: the first run of a file just written pays for two to three seconds of the system's work.
    for cfg in 1 2; do
        zipar=$(milliseconds --cfg $cfg --decode zipar:2)
        raster=$(milliseconds --cfg $cfg --decode raster)
        echo "$dtype, cfg $cfg: raster $raster ms, zipar:2 $zipar ms: $((raster * 100 / zipar)) % as fast"
        if [ "$dtype" = f32 ] && [ $cfg = 1 ]; then
            if [ "$raster" -ge $((zipar * 2)) ]; then passed=1; else failed=1; fi
        fi
    done
done
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

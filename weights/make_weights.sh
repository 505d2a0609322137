#!/bin/sh
# Trains the shipped models from nothing, stage by stage (`make weights`). Every stage is resumable: interrupt it at any time, give the
# same command again, and it ends with the same bytes. State is kept in TSAR_TRAINING (default: the user's cache directory).
#
#     sh weights/make_weights.sh TRAIN [THREADS]
set -eu
TRAIN=$1
THREADS=${2:-2}
dir=${TSAR_TRAINING:-${XDG_CACHE_HOME:-$HOME/.cache}/tsar}
mkdir -p "$dir"
export OMP_WAIT_POLICY=passive

stage() { # NAME COMMAND...: unless its result is there already
    name=$1
    shift
    if [ ! -f "$dir/$name.safetensors" ]; then
        echo "== $name"
        "$TRAIN" "$@" -o "$dir/$name.safetensors" --threads "$THREADS"
    fi
}

stage vq vq --steps 12000
stage codes codes --vq "$dir/vq.safetensors" -n 160000
for s in 2 4 1; do
    stage s$s gpt --vq "$dir/vq.safetensors" --codes "$dir/codes.safetensors" --shuffle $s --steps 10000 --batch 32
done
stage coarse coarse --vq "$dir/vq.safetensors" --codes "$dir/codes.safetensors" --coarse 64 --steps 5000 --batch 32
stage ctf fine --vq "$dir/vq.safetensors" --codes "$dir/codes.safetensors" --coarse 64 --model "$dir/coarse.safetensors" --steps 3000
(cd "$dir" && sha256sum vq.safetensors s1.safetensors s2.safetensors s4.safetensors ctf.safetensors)

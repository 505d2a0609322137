#!/bin/sh
# Trains the shipped models from nothing, stage by stage (`make weights`), and compares them with the shipped files. Every stage is
# resumable: interrupt it at any time, give the same command again, and it ends with the same bytes. State is kept in TSAR_TRAINING
# (default: the user's cache directory).
#
#     sh weights/train/make_weights.sh TRAIN [THREADS]
set -eu
TRAIN=$1
THREADS=${2:-2}
here=$(dirname "$0")
dir=${TSAR_TRAINING:-${XDG_CACHE_HOME:-$HOME/.cache}/tsar}
mkdir -p "$dir"
export OMP_WAIT_POLICY=passive

stage() { # NAME COMMAND...: unless its result is there already
    name=$1
    shift
    if [ ! -f "$dir/$name.safetensors" ]; then
        echo "== $name"
        started=$(date +%s)
        "$TRAIN" "$@" -o "$dir/$name.safetensors" --threads "$THREADS"
        if [ ! -f "$dir/$name.safetensors" ]; then
            echo 'interrupted; the same command continues'
            exit 130
        fi
        echo "$name: $(($(date +%s) - started)) s in this sitting"
    fi
}

model() { # NAME COMMAND FLAGS...: a transformer of the codes
    name=$1
    command=$2
    shift 2
    stage "$name" "$command" --vq "$dir/vq.safetensors" --codes "$dir/codes.safetensors" "$@"
}

stage vq vq
stage codes codes --vq "$dir/vq.safetensors"
# One number of pictures for the three of them; the s = 2 model keeps the tokenizer that the others share.
sampling='--cfg 1.5 --cfg-schedule constant --temperature 0.5 --top-p 0.5' # the defaults that a model carries
# shellcheck disable=SC2086 # several words
model tsar-s2 gpt --shuffle 2 $sampling
model tsar-s4 gpt --shuffle 4 $sampling --vq-file tsar-s2.safetensors
model tsar-s1 gpt --shuffle 1 $sampling --vq-file tsar-s2.safetensors
# Coarse-to-fine: both stages together take about the time of s = 1, and see each picture three times instead of four.
model coarse coarse --coarse 64 --steps 24000 $sampling
model tsar-ctf fine --coarse 64 --steps 24000 --model "$dir/coarse.safetensors" --vq-file tsar-s2.safetensors

(cd "$dir" && sha256sum tsar-*.safetensors) | tee "$dir/SHA256SUMS"
if [ -z "$(grep -vxFf "$dir/SHA256SUMS" "$here/../SHA256SUMS")" ]; then
    echo 'These are the shipped files, bit for bit.'
else
    echo "These are not the files of weights/SHA256SUMS: please report the compiler, the processor and the stage that differs first."
    exit 1
fi

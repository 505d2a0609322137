#!/bin/sh
# The command line on the families' golden vectors: synth, verify, and a trace with what is inside of blocks, which verify finds identical.
set -u
. tests/check.sh
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
check_log=$dir/log

identical() { "$TSAR" verify -m "$dir/m.safetensors" "$1" | tail -n 1 | grep -q ' 0 same, 0 different'; }

for name in lumina_mha lumina_gqa lumina_mha.float32 emu3 emu3.float32 janus t5 t5.float32; do
    vector=tests/vectors/$name.safetensors
    check "$name: synth" "$TSAR" synth --like "$vector" -o "$dir/m.safetensors"
    check "$name: verify" "$TSAR" verify -m "$dir/m.safetensors" "$vector"
    check "$name: trace" "$TSAR" trace -m "$dir/m.safetensors" --inputs "$vector" --inside -o "$dir/t.safetensors"
    check "$name: its own trace is identical" identical "$dir/t.safetensors"
done
check "a model whose prefix needs the id that begins an image" "$TSAR" synth --like tests/vectors/lumina_mha.safetensors -o "$dir/m.safetensors"
check "bench" "$TSAR" bench "$dir/m.safetensors" --threads 1
check_end

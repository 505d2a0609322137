#!/bin/sh
# The shipped models: their bytes, what they generate (the same bits everywhere), how many pictures of the demo's sheet are right, their
# forward pass in the trainer against tsar's own. Usage: test_shipped.sh [--record]
#
#     TSAR_QUICK     set: one way of decoding in place of three, no trace of the tokenizer, no sheet of the demo (test_demo.sh makes one of a small model)
set -u
. tests/check.sh
TRAIN=$BUILD/trainer
PROMPT='three yellow stars above a blue ring'
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
check_log=$dir/log

# The digest of codes, labels, logits and passes in a file of generate --codes, without what it says about inputs and settings.
digest() {
    header=$(od -An -v -tu8 -N8 "$1" | tr -d ' ')
    for name in codes coarse logits step_of; do
        place=$(head -c $((8 + header)) "$1" | tail -c "$header" | sed -n "s/.*\"$name\":{[^}]*\"data_offsets\":\[\([0-9]*\),\([0-9]*\)\]}.*/\1 \2/p")
        [ -z "$place" ] || tail -c +$((9 + header + ${place% *})) "$1" | head -c $((${place#* } - ${place% *}))
    done | sha256sum | cut -d ' ' -f 1
}

# MODEL FLAGS...: the digest of the codes, logits and passes of a picture
generated() {
    model=$1
    shift
    "$TSAR" generate -m "weights/tsar-$model.safetensors" -p "$PROMPT" --seed 1 -q --codes "$dir/codes" "$@" && echo "$(digest "$dir/codes")  $model $*"
}

check 'the bytes of the models' sh -c 'cd weights && sha256sum -c SHA256SUMS'
models=$(sed -n 's/^.*  tsar-\(.*\)\.safetensors$/\1/p' weights/SHA256SUMS)
check 'at most 24 MB together' test "$(cat weights/tsar-*.safetensors | wc -c)" -le 24000000

for model in $models; do
    [ -n "${TSAR_QUICK:-}" ] || generated "$model"
    generated "$model" --decode zipar:2
    [ -n "${TSAR_QUICK:-}" ] || generated "$model" --greedy --cfg 1
done >"$dir/generated"
for n in $([ -n "${TSAR_QUICK:-}" ] || echo 4 16); do
    "$BUILD/demo" -n "$n" -o "$dir/sheet.ppm" 2>/dev/null | grep 'says the referee' >>"$dir/generated"
done
if [ "${1:-}" = --record ]; then
    cp "$dir/generated" tests/shipped_digests.txt
else
    if [ -z "${TSAR_QUICK:-}" ]; then cat tests/shipped_digests.txt; else grep zipar tests/shipped_digests.txt; fi >"$dir/recorded"
    check 'what the models generate' diff "$dir/recorded" "$dir/generated"
fi

for model in $models; do
    file=weights/tsar-$model.safetensors
    case $model${TSAR_QUICK:+.quick} in s2) parts='gpt vq' ;; ctf*) parts='gpt fine' ;; *) parts=gpt ;; esac # the tokenizer is that of s2
    for part in $parts; do
        check "$model, $part: the trainer's forward pass" "$TRAIN" trace --model "$file" --part $part -p "$PROMPT" -o "$dir/trace"
        check "$model, $part: tsar verify" "$TSAR" verify -m "$file" "$dir/trace"
    done
done

check_end

#!/bin/sh
# Implementations that are not tsar's, verified end to end: Token-Shuffle in PyTorch (tests/hooks/shuffle.py, written from the README alone, hooked by
# tests/hooks/trace.py), its whole trace and its greedy decoding, in float32 and bfloat16. Skipped, and said so, where python3 has no torch.
#
#     TSAR_QUICK     set: s = 2 only
set -u
. tests/check.sh
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
check_log=$dir/log
python=
for p in ${PYTHON:-python3} /usr/bin/python3; do
    [ -n "$python" ] || ! "$p" -c 'import torch' 2>/dev/null || python=$p
done
if [ -z "$python" ]; then
    echo 'skipped: python3 has no torch (Debian: apt-get install python3-torch)'
    echo '0 passed, 0 failed, 1 skipped'
    exit
fi
PYTHONDONTWRITEBYTECODE=1
export PYTHONDONTWRITEBYTECODE

shape='arch=token-shuffle dim=64 n_layer=3 n_head=4 n_kv_head=2 ffn_hidden=96 norm_eps=1e-5 rope=1d text_vocab=30 codebook_size=50 grid_h=8 grid_w=12 seed=9'
verified() { # SHUFFLE WEIGHTS PRECISION COMMAND
    "$python" tests/hooks/shuffle.py "$4" "$dir/$1.$2" "$dir/$1.inputs" "$dir/theirs" "$3" && "$TSAR" verify -m "$dir/$1.$2" "$dir/theirs" >"$dir/report"
    status=$?
    cat "$dir/report"
    return $status
}
for s in 1 2; do
    [ "$s" = 2 ] || [ -z "${TSAR_QUICK:-}" ] || continue
    for weights in f32 bf16; do
        # shellcheck disable=SC2086 # keys are words
        "$TSAR" synth -q $shape shuffle=$s shuffle_blocks=2 shuffle_hidden=80 --dtype $weights -o "$dir/$s.$weights"
    done
    "$TSAR" trace -q -m "$dir/$s.f32" --prompt-ids 0,7,19,4,1 --seed 2 --only input.codes -o "$dir/$s.inputs"
    for precision in float32 bfloat16; do
        check "s=$s, $precision" verified $s f32 $precision trace
        check "s=$s, $precision: inside of blocks, too" grep -q '^gpt.block.2.q .* same' "$dir/report"
        check "s=$s, $precision: nothing is left out" sh -c "! grep '^not in the file' '$dir/report'"
        check "s=$s, $precision: greedy decoding" verified $s f32 $precision generate
        check "s=$s, $precision: its codes" grep -q '^codes ' "$dir/report"
    done
done
check 'BF16 weights' verified 2 bf16 bfloat16 trace

# The same code with one mistake in it is told at its line.
wrong() { # SED-EXPRESSION TENSOR
    mkdir -p "$dir/hooks" && cp tests/hooks/trace.py "$dir/hooks" && sed "$1" tests/hooks/shuffle.py >"$dir/hooks/shuffle.py"
    cmp -s tests/hooks/shuffle.py "$dir/hooks/shuffle.py" && return 1
    "$python" "$dir/hooks/shuffle.py" trace "$dir/2.f32" "$dir/2.inputs" "$dir/theirs" bfloat16 || return 1
    "$TSAR" verify -m "$dir/2.f32" "$dir/theirs" >"$dir/report"
    [ $? -eq 1 ] && grep '<== first' "$dir/report" | cut -d ' ' -f 1 | grep -qx "$2"
}
check 'RoPE turned backwards' wrong 's/a \* cos - b \* sin, b \* cos + a \* sin/a * cos + b * sin, b * cos - a * sin/' gpt.block.0.q
check 'no 1/sqrt(hd)' wrong 's/ \* hd\*\*-0.5//' gpt.block.0.attn
check 'the mask one too far' wrong 's/triu(1)/triu(2)/' gpt.block.0.attn
check 'w1 and w3 exchanged' wrong 's/self.w1, self.w2, self.w3 =/self.w3, self.w2, self.w1 =/' gpt.block.0.ffn
check 'a window column by column' wrong 's/transpose(1, 2).reshape/permute(0, 2, 3, 1, *range(4, x.dim() + 2)).reshape/' gpt.shuffle.merge

# The shipped models, whose weights are trained: every part of them, by second.py.
shipped() { # MODEL PRECISION
    "$TSAR" trace -q -m "weights/tsar-$1.safetensors" -p 'a red circle' --only 'input.*' -o "$dir/inputs" || return 1
    "$python" tests/hooks/second.py trace "weights/tsar-$1.safetensors" "$dir/inputs" "$dir/theirs" gpt="$2" fine="$2" vq="$2" vq_file=weights/tsar-s2.safetensors &&
        "$TSAR" verify -m "weights/tsar-$1.safetensors" "$dir/theirs" >"$dir/report"
    status=$?
    cat "$dir/report"
    return $status
}
whole() { ! grep '^not in the file' "$dir/report" && grep -q '^vq.decoder.conv_out .* same' "$dir/report"; }
for precision in float32 bfloat16; do
    for model in s1 s2 s4 ctf; do
        check "tsar-$model, $precision" shipped $model $precision
        check "tsar-$model to the picture, $precision" whole
    done
    check "tsar-ctf, $precision: stage two, too" grep -q '^fine.logits .* same' "$dir/report"
done

# The tables of trace.py, on module trees with the names of LlamaGen's and Hugging Face's code; their checkpoints go through import.
tree() { # KIND PRECISION KEYS...
    kind=$1 precision=$2
    shift 2
    "$python" tests/hooks/trees.py "$kind" "$dir/checkpoint.pt" "$dir/inputs" "$dir/theirs" "$precision" || return 1
    "$TSAR" import -q "$dir/checkpoint.pt" -o "$dir/imported.safetensors" --force n_head=4 norm_eps=1e-5 grid_h=4 grid_w=4 "$@" || return 1
    "$TSAR" verify -m "$dir/imported.safetensors" "$dir/theirs" >"$dir/report"
    status=$?
    cat "$dir/report"
    return $status
}
for precision in float32 bfloat16; do
    check "LlamaGen's names, $precision" tree llamagen $precision
    check 'nothing is left out' sh -c "! grep '^not in the file' '$dir/report'"
    check "Hugging Face's names, $precision" tree llama $precision arch=emu3 rope=1d rope_base=10000 eol=9 boi=4 image_base=20 codebook_size=48
    check 'nothing is left out' sh -c "! grep '^not in the file' '$dir/report'"
done
check_end

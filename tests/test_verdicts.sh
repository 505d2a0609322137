#!/bin/sh
# Traces of which it is known whether and where they are wrong (tests/verdicts, tests/VERDICTS.md): verify finds every mistake that their precision
# can show, at the tensor where it is made, and none in the files without. Usage: test_verdicts.sh [--table] (the confusion table of VERDICTS.md)
#
# expected.txt, a line a file:   NAME WEIGHTS KIND TENSOR
#     WEIGHTS   a model file beside it, or the type of the synthetic weights that the file's own keys describe
#     KIND      same; differs: TENSOR is the first; open: below the noise of the precision, so that `same` is right, and naming TENSOR or a later one too;
#               mixed: F32 with matrix products in bf16, which is not F32, and passes as bf16
set -u
. tests/check.sh
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
check_log=$dir/log
: >"$dir/table"

# KIND TENSOR STATUS: what the report is worth
judge() {
    first=$(sed -n 's/^\([^ ]*\) .*<== first divergence$/\1/p' "$dir/report")
    [ "$3" -le 1 ] || { echo "status $3: $(tail -n 1 "$dir/report")" && return; }
    case $1 in
    same) [ "$3" -eq 0 ] && echo right || echo "false alarm at $first" ;;
    differs) [ "$3" -eq 0 ] && echo missed || { [ "$first" = "$2" ] && echo right || echo "named $first"; } ;;
    mixed) [ "$3" -eq 1 ] && echo right || echo missed ;;
    open)
        from=$(grep -n "^$2 " "$dir/report" | cut -d : -f 1)
        at=$(grep -n "^${first:-none} " "$dir/report" | cut -d : -f 1)
        [ "$3" -eq 0 ] || [ "${at:-0}" -ge "${from:-1}" ] && echo right || echo "named $first"
        ;;
    esac
}

file() { # NAME WEIGHTS KIND TENSOR
    path=tests/verdicts/$1.safetensors
    case $2 in
    f32 | bf16 | f16)
        model=$dir/model
        "$TSAR" synth -q --like "$path" --dtype "$2" -o "$model" || return 1
        ;;
    *) model=tests/verdicts/$2 ;;
    esac
    "$TSAR" verify -m "$model" "$path" >"$dir/report" 2>&1
    worth=$(judge "$3" "$4" $?)
    echo "$3 $worth" >>"$dir/table"
    if [ "$3" = mixed ]; then "$TSAR" verify --precision bf16 -m "$model" "$path" >"$dir/report" 2>&1 || worth='not the same as bf16'; fi
    [ "$worth" = right ] || { echo "$worth" && return 1; }
}

while read -r name weights kind tensor; do
    check "$name, $kind $tensor" file "$name" "$weights" "$kind" "$tensor"
done <tests/verdicts/expected.txt
check 'no file is left out' test "$(ls tests/verdicts/*.safetensors | grep -vc 'model.safetensors$')" -eq "$(grep -c . tests/verdicts/expected.txt)"

# What the pattern of an error suggests, where the file holds nothing of the inside of a block: one head alone, and whether row 0 is right.
says() { # FILE WORDS
    "$TSAR" synth -q --like "tests/verdicts/$1.safetensors" --dtype "$2" -o "$dir/model" || return 1
    "$TSAR" verify -m "$dir/model" "tests/verdicts/$1.safetensors" >"$dir/report"
    grep '<== first' "$dir/report" | grep -q "$3"
}
check 'wq of a head' says heads.bfloat16.head_q.second bf16 ': one head alone, and row 0, '
check 'wk of a head' says heads.bfloat16.head_k.second bf16 ': one head alone, and row 0, '
check 'wv of a head' says heads.float32.head_v.second f32 ': one head alone, in row 0, too'
check 'two heads exchanged' says heads.bfloat16.v_head.second bf16 ': wrong also in row 0'
check 'RoPE of all heads' says emu3.bfloat16.rope_base.second bf16 ': row 0, which attends to itself alone, is right'

# What trace leaves out and adds, and what verify says of it; the prefix that does not end as it must.
"$TSAR" synth -q arch=token-shuffle dim=16 n_layer=2 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=20 codebook_size=32 grid_h=4 grid_w=4 shuffle=2 \
    shuffle_blocks=1 shuffle_hidden=8 -o "$dir/small"
traced() { # FLAGS...
    "$TSAR" trace -q -m "$dir/small" --prompt-ids "$@" -o "$dir/t" && "$TSAR" verify -m "$dir/small" "$dir/t" >"$dir/report"
}
names() { grep -c "^$1" "$dir/report" | grep -qx "$2"; }
check 'trace --only' traced 0,7,1 --only 'gpt.block.?'
check 'what it keeps' names 'gpt.block.[01] ' 2
check 'and nothing else but inputs' names 'gpt\.' 2
check 'trace --inside' traced 0,7,1 --inside
for name in q k v attn h ffn; do check "inside: $name" names "gpt.block.[01].$name .*identical" 2; done
check 'a prefix without <soi>' traced 0,7,5
check 'is told' grep -q '^note: input.text ends with id 5: a prefix ends with <soi> (id 1)' "$dir/report"
if [ "${1:-}" = --table ]; then sed 's/ at .*//; s/named .*/wrong name/' "$dir/table" | sort | uniq -c; fi
check_end

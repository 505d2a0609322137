#!/bin/sh
# What does not go together is refused by name: one sentence on standard error, nothing on standard output, status 2 for what the command line asks and
# 3 for what a file or a prefix holds. The table of weights/README.md ("What differs between families, and what goes together"), line by line.
set -u
. tests/check.sh
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
check_log=$dir/log

block='dim=32 n_layer=1 n_head=4 n_kv_head=2 ffn_hidden=16 norm_eps=1e-5 codebook_size=20 grid_h=4 grid_w=4'
lumina="arch=lumina-mgpt vocab_size=60 image_base=4 eol=33 bos=0 sep=30 boi=31 size_base=40 size_unit=2 rope=1d $block"
emu3="arch=emu3 vocab_size=60 image_base=40 eol=3 boi=4 rope=1d $block"
janus="arch=janus vocab_size=40 image_embed=8 image_head=24 rope=1d $block"
shuffle="arch=token-shuffle text_vocab=270 shuffle=2 shuffle_blocks=1 shuffle_hidden=16 rope=1d $block"
c2i="arch=llamagen-c2i num_classes=5 cond_tokens=1 rope=2d $block"

refused() { # STATUS SENTENCE COMMAND...
    status=$1 sentence=$2
    shift 2
    "$TSAR" "$@" >"$dir/out" 2>"$dir/err"
    got=$?
    [ "$got" = "$status" ] || { echo "status $got" && cat "$dir/err" && return 1; }
    [ ! -s "$dir/out" ] && [ "$(wc -l <"$dir/err")" = 1 ] || { echo "more than a sentence" && cat "$dir/out" "$dir/err" && return 1; }
    grep -q -F -- "$sentence" "$dir/err" || { cat "$dir/err" && return 1; }
}

# configurations: given on the command line
keys() { # MODEL CHANGE SENTENCE
    # shellcheck disable=SC2086
    check "$2" refused 2 "$3" synth $1 $2 -o "$dir/none.safetensors"
}
keys "$c2i" eol=3 'eol=3 is of no use to arch=llamagen-c2i'
keys "$lumina" 'shuffle=2 shuffle_blocks=1 shuffle_hidden=16' 'shuffle=2 must be 1 or absent for arch=lumina-mgpt'
keys "$emu3" rope=2d 'rope=2d is not for arch=emu3'
keys "$lumina" n_coarse=21 'n_coarse=21 is more than codebook_size=20'
keys "$janus" qk_norm=3 'n_head=4 is not a multiple of qk_norm=3'
keys "$lumina" norm_order=both 'norm_order=both'
keys "$emu3" eol=45 'eol=45 is the id of a code (image_base=40, 20 codes)'
keys "$lumina" eol=60 'eol=60 is no id: the vocabulary has 60'
keys "$lumina" grid_w=3 'the grid 4 x 3 is not divisible by size_unit=2'
keys "$lumina" 'fine_dim=32 fine_n_layer=1 fine_n_head=4 fine_ffn_hidden=8' 'n_coarse'
# shellcheck disable=SC2046
check 'a missing key' refused 2 'the configuration has no image_base' synth $(echo "$lumina" | sed 's/image_base=4 //') -o "$dir/none.safetensors"

# the same in a file is a wrong input; a prefix, and what is decoded how, are judged by the model
for name in lumina emu3 janus shuffle c2i; do
    eval "keys=\$$name"
    # shellcheck disable=SC2154,SC2086
    check "$name" "$TSAR" synth $keys -o "$dir/$name" --quiet
done
model() { # STATUS SENTENCE MODEL FLAGS...
    status=$1 sentence=$2 model=$3
    shift 3
    check "$model $*" refused "$status" "$sentence" generate -m "$dir/$model" --codes "$dir/none.safetensors" --quiet "$@"
}
sed 's/"eol":"33"/"eol":"05"/' "$dir/lumina" >"$dir/wrong"
model 3 'eol=5 is the id of a code' wrong --prompt-ids 0,31,42,42
model 3 'text id 60 at place 1 of the prompt is outside 0 ... 59' lumina --prompt-ids 0,60,31,42,42
model 3 'the prompt has no id 31, which begins an image' lumina --prompt-ids 0,1,42,42
model 3 'the negative prompt has no id 31' lumina --prompt-ids 0,31,42,42 --negative-ids 1,2
model 3 'text id 99 at place 0 of the negative prompt' lumina --prompt-ids 0,31,42,42 --negative-ids 99,31
model 3 'the prompt has 2 ids, but guidance needs its last three' lumina --prompt-ids 31,42
model 3 'guidance needs a prefix of its own in this model' emu3 --prompt-ids 1,4,5
model 3 'guidance needs the id of padding (key pad)' janus --prompt-ids 1,4,5
model 2 'the model is lumina-mgpt: give it -p PROMPT or --prompt-ids IDS' lumina --class 1
model 2 'the model is llamagen-c2i: give it --class N' c2i --prompt-ids 1
model 2 'the model is llamagen-c2i, whose unconditional sequence begins with no ids' c2i --class 1 --negative-ids 1
model 3 'class 6 is outside 0 ... 5' c2i --class 6
for name in lumina emu3; do
    model 2 'the model ends its rows by a token (eol), which begins the next row' $name --prompt-ids 31,4,42 --cfg 1 --decode zipar:2,first-row
    model 2 "the authors' code is for LlamaGen's codes" $name --prompt-ids 31,4,42 --cfg 1 --decode zipar:2,authors
done
model 2 "the model is janus" janus --prompt-ids 1 --cfg 1 --decode zipar:2,authors
model 2 "the model is token-shuffle" shuffle --prompt-ids 0,1 --decode zipar:2,authors
model 2 'windows from 2 to 3 on rows of 4' c2i --class 1 --decode zipar:4,authors
model 2 'windows from 2 to 3 on rows of 4' c2i --class 1 --decode zipar:1,authors
model 2 'only ,first-row or ,authors may follow' c2i --class 1 --decode zipar:2,author
model 2 'the model has rope=2d, which knows rows and columns' c2i --class 1 --grid 2x2
model 2 '--grid 3x4 is not divisible by size_unit=2' lumina --prompt-ids 0,31,42,42 --grid 3x4
model 2 '--grid 4x3 is not divisible by shuffle=2' shuffle --prompt-ids 0,1 --grid 4x3
model 2 '--grid 4: give rows and columns' emu3 --prompt-ids 4 --cfg 1 --grid 4
# shellcheck disable=SC2086
check 'a model with stage two' "$TSAR" synth $shuffle n_coarse=5 fine_dim=32 fine_n_layer=1 fine_n_head=4 fine_ffn_hidden=8 -o "$dir/fine" --quiet
model 2 "stage two (fine.*) knows rows and columns" fine --prompt-ids 0,1 --grid 2x2
# shellcheck disable=SC2086
check 'a grid that is not square' "$TSAR" synth $c2i grid_w=5 -o "$dir/wide" --quiet
model 2 'square grids only and this one is 4 x 5' wide --class 1 --decode zipar:2,authors
check 'nothing was written' [ ! -e "$dir/none.safetensors" ]
check_end

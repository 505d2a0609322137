#!/bin/sh
# Lumina-mGPT, Chameleon's VQGAN, Emu3 and its tokenizer, Janus and T5 in the layouts in which they are published (tests/checkpoints.py makes them of
# synthetic models, tests/checkpoints holds some that their own code wrote): the bytes of `tsar synth` come back.
set -u
. tests/check.sh
dir=$BUILD/import_families
check_log=$dir/log
rm -rf "$dir"
mkdir -p "$dir/in"

comes_back() { # MODEL ARGUMENTS...: seed is of synthetic models alone
    truth=$1
    shift
    "$TSAR" import "$@" seed=5 -o "$dir/out" >"$dir/said" 2>&1 || { cat "$dir/said" && return 1; }
    cmp "$dir/out" "$truth"
}

if command -v python3 >/dev/null 2>&1; then
    python3 tests/checkpoints.py families "$dir/in" "$TSAR" >"$dir/cases" || exit 1
    tab=$(printf '\t')
    while IFS=$tab read -r name arguments; do
        # shellcheck disable=SC2086
        check "$name" comes_back "$dir/in/$name.model" "$dir/in/$name" $arguments
    done <"$dir/cases"
    # beside a config.json that is not theirs
    cp "$dir/in/vqgan/pytorch_model.bin" "$dir/in/emu3/vqgan.ckpt"
    check "a tokenizer of images beside another model's config.json" comes_back "$dir/in/vqgan.model" "$dir/in/emu3/vqgan.ckpt" grid_h=4 grid_w=4
fi

# tokenizers of text that lie beside them are kept: the model makes of a text what the file makes of it
text='A photo of 2 red cats, sitting.'
keeps() { # MODEL_TO_IMPORT TOKENIZER NAME_BESIDE
    cp "$2" "$(dirname "$1")/$3" && "$TSAR" import "$1" -o "$dir/texted" >"$dir/said" 2>&1 && grep -q 'kept as the tokenizer' "$dir/said" &&
        "$TSAR" text -m "$dir/texted" "$text" >"$dir/from_model" && "$TSAR" text "$2" "$text" >"$dir/from_file" && [ -s "$dir/from_file" ] &&
        cmp "$dir/from_model" "$dir/from_file"
}
llama='rope=1d dim=8 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=4 norm_eps=1e-05 codebook_size=8 grid_h=2 grid_w=2'
for kind in 'lumina-mgpt image_base=4 eol=20:chameleon.json:text_tokenizer.json' 'janus image_embed=2 image_head=2 pad=1:deepseek.json:tokenizer.json'; do
    keys=${kind%%:*}
    file=${kind#*:}
    place=$dir/${keys%% *}
    mkdir -p "$place"
    # shellcheck disable=SC2086
    "$TSAR" synth arch=$keys $llama vocab_size=110000 -o "$place/model.safetensors" --quiet
    check "a tokenizer beside ${keys%% *}" keeps "$place/model.safetensors" "tests/vectors/bpe/tok/${file%%:*}" "${file#*:}"
    check "drop=tokenizer." sh -c "'$TSAR' import '$place/model.safetensors' drop=tokenizer. -o '$dir/texted' --quiet && ! '$TSAR' text -m '$dir/texted' x"
done
mkdir -p "$dir/emu3"
# shellcheck disable=SC2086
"$TSAR" synth arch=emu3 image_base=4 eol=20 $llama vocab_size=110000 -o "$dir/emu3/model.safetensors" --quiet
cp tests/vectors/bpe/tok/emu3/emu3_vision_tokens.txt "$dir/emu3"
check "a tokenizer beside emu3" keeps "$dir/emu3/model.safetensors" tests/vectors/bpe/tok/emu3/emu3.tiktoken emu3.tiktoken
if [ -d "$dir/in/t5" ]; then
    check "spiece.model beside t5" keeps "$dir/in/t5/pytorch_model.bin" tests/vectors/t5/t5like.model spiece.model
    hostile() { cp "$1" "$dir/in/t5/spiece.model" && ! "$TSAR" import "$dir/in/t5" -o "$dir/texted" 2>"$dir/said" && grep -q 'drop=t5.spiece' "$dir/said"; }
    check "a hostile spiece.model" hostile tests/spiece/bad_charsmap_value.model
fi

# what the models' own code wrote
official() { # FOLDER DTYPE KEYS_OF_SYNTH -- ARGUMENTS OF IMPORT
    folder=tests/checkpoints/$1
    keys=$2
    shift 2
    # shellcheck disable=SC2086
    "$TSAR" synth $keys -o "$dir/truth" --quiet && "$TSAR" import "$folder" "$@" -o "$dir/out" >"$dir/said" 2>&1 && cmp "$dir/out" "$dir/truth"
}
lumina='arch=lumina-mgpt rope=1d rope_base=5000 norm_eps=1e-06 image_base=4 bos=0 size_unit=2 codebook_size=77 seed=42 dim=80 n_layer=3 n_head=8 n_kv_head=4
    ffn_hidden=100 qk_norm=2 norm_order=post grid_h=6 grid_w=2 eoi=81 boi=82 sep=90 eol=101 size_base=102 vocab_size=198'
check "lumina_gqa_hf" official lumina_gqa_hf "$lumina" codebook_size=77 eoi=81 boi=82 sep=90 eol=101 size_base=102 grid_h=6 grid_w=2 seed=42
check "lumina_gqa_hf in bfloat16" official lumina_gqa_hf "$lumina --dtype bf16" codebook_size=77 eoi=81 boi=82 sep=90 eol=101 size_base=102 grid_h=6 grid_w=2 \
    seed=42 --dtype bf16
emu3='arch=emu3 norm_eps=1e-05 rope=1d rope_base=1000000 dim=64 n_layer=2 n_head=4 n_kv_head=2 ffn_hidden=192 codebook_size=96 grid_h=3
    grid_w=4 seed=41 pad=40 eol=41 eof=42 bos=43 eos=44 img=45 boi=46 eoi=47 vocab_size=144 image_base=48'
check "emu3" official emu3 "$emu3" codebook_size=96 grid_h=3 grid_w=4 seed=41
check "emu3 in bfloat16" official emu3 "$emu3 --dtype bf16" codebook_size=96 grid_h=3 grid_w=4 seed=41 --dtype bf16
check "flan" official flan 't5_vocab=160 t5_dim=32 t5_n_layer=3 t5_n_head=4 t5_head_dim=8 t5_ffn_hidden=80 t5_buckets=32 t5_max_distance=128 seed=11
    t5_norm_eps=1e-06' seed=11
check_end

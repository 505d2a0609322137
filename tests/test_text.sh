#!/bin/sh
# tsar text: ids of a text and back, from published tokenizers and from a model, by argument and from standard input.
set -u
. tests/check.sh
mkdir -p "$BUILD/text"
check_log=$BUILD/text/check.log
bpe=tests/vectors/bpe/tok

says() { # EXPECTED COMMAND...: standard output, to the byte but for line ends at its end
    expected=$1
    shift
    out=$("$@") && [ "$out" = "$expected" ] || { echo "$out"; return 1; }
}
piped() { # TEXT COMMAND...
    text=$1
    shift
    printf "$text" | "$@"
}
refused() { # STATUS WORDS COMMAND...
    expected=$1
    words=$2
    shift 2
    "$@" >"$BUILD/text/out" 2>"$BUILD/text/err"
    [ $? -eq "$expected" ] && [ ! -s "$BUILD/text/out" ] && grep -q -e "$words" "$BUILD/text/err" || { cat "$BUILD/text/err"; return 1; }
}

check 'tokenizer.json' says '16448 16702' "$TSAR" text $bpe/chameleon.json 'a cat'
check 'tiktoken' says '64 321' "$TSAR" text $bpe/emu3/emu3.tiktoken 'a cat'
check 'spiece.model' says '10 442' "$TSAR" text tests/vectors/t5/t5like.model 'a cat'
check 'no text' says '' "$TSAR" text $bpe/chameleon.json ''
check 'standard input' says '16448 16702' piped 'a cat' "$TSAR" text $bpe/chameleon.json -
check 'every byte counts' says '16448 16702 16582' piped 'a cat\n' "$TSAR" text $bpe/chameleon.json -
check 'and back' says 'a cat' "$TSAR" text $bpe/chameleon.json --to-text '16448, 16702'
check 'back from standard input' says 'a cat' piped '16448 16702\n' "$TSAR" text $bpe/chameleon.json --to-text -
check 'pieces and back' says 'a cat' "$TSAR" text tests/vectors/t5/t5like.model --to-text '10 442 1'
check 'a model' says '0 100 36 261 103 291 1' "$TSAR" text -m weights/tsar-s2.safetensors --template 'a!red circle'
check 'a model, the text alone, and back' says 'a red circle' sh -c '"$0" text -m weights/tsar-s2.safetensors --to-text "$("$0" text -m weights/tsar-s2.safetensors "a red circle")"' "$TSAR"
check 'invalid UTF-8' refused 3 'UTF-8' piped '\377' "$TSAR" text $bpe/chameleon.json -
check 'a damaged file' refused 3 'model_type 2' "$TSAR" text tests/spiece/bad_bpe.model x
check 'no file' refused 3 'none.json' "$TSAR" text none.json x
check 'an id that is none' refused 3 'id 99999' "$TSAR" text $bpe/chameleon.json --to-text 99999
check 'not an id' refused 2 'x7' "$TSAR" text $bpe/chameleon.json --to-text x7
check 'a file has no template' refused 2 'template' "$TSAR" text --template $bpe/chameleon.json x
# From a sentence to a picture with a text encoder of its own, or one inside of the model.
dir=$BUILD/text
rm -rf "$dir/t5"
mkdir -p "$dir/t5"
"$TSAR" synth --like tests/vectors/t5/t5_prompts.safetensors t5_clean=llamagen -o "$dir/t5/model.safetensors" -q &&
    cp tests/vectors/t5/t5like.model "$dir/t5/spiece.model"
"$TSAR" synth arch=llamagen-t2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 grid_h=4 grid_w=4 cond_tokens=120 \
    caption_dim=24 vq_ch=4 vq_ch_mult=1,1 vq_res_blocks=1 vq_z_channels=4 vq_embed_dim=4 vq_l2_norm=1 vq_groups=2 seed=3 -o "$dir/t2i.safetensors" -q
check 'the tokenizer beside an encoder is kept' "$TSAR" import "$dir/t5/model.safetensors" -o "$dir/t5.safetensors"
ids='10 442 161 10 216 3 512 250 242 1'
t2i() { "$TSAR" generate -m "$dir/t2i.safetensors" --text-model "$dir/t5.safetensors" -q "$@"; }
check 'ids of a caption' says "$ids" t2i -p 'A Cat on a red chair!' --show-ids -o "$dir/a.png"
check 'they stand in the picture' grep -q -a "$ids" "$dir/a.png"
check 'the template of an encoder' says "$ids" "$TSAR" text -m "$dir/t5.safetensors" --template 'A Cat on a red chair!'
check 'no encoder' refused 3 '--text-model' "$TSAR" generate -m "$dir/t2i.safetensors" -p x -o "$dir/b.png"
check 'text that is not cleaned' refused 3 'U+003C.*--raw-prompt' t2i -p '<b>' -o "$dir/b.png"
check 'as it is' says '347 24 235 496 69 45 6 119 14 336 13 1' t2i --raw-prompt -p '<b> Katze grün' --show-ids -o "$dir/b.png"
check 'a negative prompt' refused 2 'negative' t2i -p x --negative y -o "$dir/b.png"
printf 'a cat\na dog\n' >"$dir/list"
check 'a list' t2i --prompts "$dir/list" -o "$dir/l.png"
check 'its single command' t2i -p 'a dog' --seed 1 -o "$dir/one.png"
check 'gives the same bytes' cmp "$dir/l-00001.png" "$dir/one.png"
printf 'a cat\n<b>\n' >"$dir/list"
rm -f "$dir"/l-*.png
check 'a list that would fail' refused 3 'line 2' t2i --prompts "$dir/list" -o "$dir/l.png"
check 'before its first picture' test ! -e "$dir/l-00000.png"
# A sentence for each family of ids, with the published tokenizer that lies beside its model: the ids are those of tests/vectors/bpe/templates.json.
family() { # NAME TOKENIZER FILES -- KEYS...: a model of the name, with its tokenizer
    name=$1
    mkdir -p "$dir/$name"
    shift
    while [ "$1" != -- ]; do cp "$bpe/${1%%:*}" "$dir/$name/${1##*:}" && shift; done
    shift
    "$TSAR" synth arch="$name" dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=16 norm_eps=1e-5 rope=1d codebook_size=500 "$@" seed=1 -q \
        -o "$dir/$name/model.safetensors" && "$TSAR" import "$dir/$name/model.safetensors" -o "$dir/$name.safetensors" -q
}
sentence() { name=$1 && shift && "$TSAR" generate -m "$dir/$name.safetensors" -q --show-ids --codes "$dir/codes" "$@"; }
check 'Emu3, its tokenizer' family emu3 emu3/emu3.tiktoken:emu3.tiktoken emu3/emu3_vision_tokens.txt:emu3_vision_tokens.txt -- \
    vocab_size=3000 image_base=2500 eol=2454 grid_h=2 grid_w=3 bos=2456 boi=2459 img=2458
check 'Emu3, a sentence' says '2456 64 321 752 79 72 68 498 11 711 726 11 641 324 13 2459 17 9 18 2458' sentence emu3 -p 'a cat'
check 'Emu3, as it is' says '2456 64 321 2459 17 9 18 2458' sentence emu3 -p 'a cat' --raw-prompt --negative 'a dog'
check 'Lumina, its tokenizer' family lumina-mgpt chameleon.json:tokenizer.json -- vocab_size=20000 image_base=100 qk_norm=1 eol=8803 grid_h=2 grid_w=4 bos=0 \
    sep=8710 boi=8197 size_base=8804 size_unit=2
check 'Lumina, a sentence' says \
    '0 16861 16662 16734 16660 16604 16405 16403 16471 16402 16401 16796 16707 16643 16812 16825 16409 16582 16448 16702 8710 8197 8805 8806' \
    sentence lumina-mgpt -p 'a cat' --decode zipar:2
check 'Janus, its tokenizer' family janus deepseek.json:tokenizer.json -- vocab_size=3000 image_embed=4 image_head=16 grid_h=2 grid_w=4 bos=2321 boi=2337 \
    pad=2336 text_template=janus-pro
check 'Janus, a sentence' says '2321 2341 25 247 305 185 185 2342 25 2337' sentence janus -p ' a cat '
check_end

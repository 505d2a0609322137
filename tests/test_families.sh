#!/bin/sh
# The families of ids on the command line: prefixes of their own, rows that end by a token, other grids; what does not go together is refused by name.
set -u
LC_ALL=C
export LC_ALL
. tests/check.sh
BUILD=${BUILD:-.build}
TSAR=${TSAR:-$BUILD/tsar}
case $TSAR in /*) ;; *) TSAR=$PWD/$TSAR ;; esac
dir=$BUILD/families
rm -rf "$dir"
mkdir -p "$dir"
cd "$dir" || exit 1
check_log=check.log

status() { # EXPECTED COMMAND...
    expected=$1
    shift
    "$@" >/dev/null 2>&1
    [ $? -eq "$expected" ]
}
says() { # TEXT COMMAND...: the command fails in one sentence that has this text
    text=$1
    shift
    "$@" >said.txt 2>&1
    [ $? -ge 2 ] && [ "$(wc -l <said.txt)" -eq 1 ] && grep -qF -- "$text" said.txt
}
same() { cmp "$1.safetensors" "$2.safetensors"; }
codes() { "$TSAR" decode -q -m lumina.safetensors "$1.safetensors" -o "$1.ppm"; }
generate() { "$TSAR" generate -q "$@"; }

gpt='dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=24 norm_eps=1e-5 rope=1d codebook_size=20'
vq='vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=0 vq_groups=4 vq_attn=mid vq_pixels=down'
"$TSAR" synth arch=lumina-mgpt $gpt $vq vocab_size=60 image_base=30 eol=7 boi=2 qk_norm=1 grid_h=4 grid_w=5 seed=1 -o lumina.safetensors
"$TSAR" synth arch=emu3 $gpt vocab_size=60 image_base=30 eol=7 boi=2 grid_h=4 grid_w=5 seed=2 -o emu3.safetensors
"$TSAR" synth arch=janus $gpt vocab_size=30 image_embed=4 image_head=8 boi=2 grid_h=4 grid_w=4 seed=3 -o janus.safetensors
"$TSAR" synth arch=llamagen-c2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 grid_h=4 grid_w=4 cond_tokens=1 \
    num_classes=3 seed=4 -o c2i.safetensors
"$TSAR" synth arch=token-shuffle $gpt text_vocab=9 grid_h=4 grid_w=4 shuffle=2 shuffle_blocks=1 shuffle_hidden=8 eol=5 seed=5 -o shuffle.safetensors

# The unconditional prefix: by the family's rule, or its own; guidance off asks for none.
ids=1,9,3,4,2,11,12
generate -m lumina.safetensors --prompt-ids $ids -o rule.ppm
generate -m lumina.safetensors --prompt-ids $ids --negative-ids 2,11,12 -o own.ppm
check 'Lumina-mGPT: the last three ids are the unconditional prefix' cmp rule.ppm own.ppm
generate -m lumina.safetensors --prompt-ids $ids --negative-ids 1,2,11,12 -o own.ppm
check 'another one gives another picture' status 1 cmp rule.ppm own.ppm
check 'Emu3: guidance needs a prefix' says 'a prefix of its own' generate -m emu3.safetensors --prompt-ids $ids --codes e
check 'Emu3: guidance off' generate -m emu3.safetensors --prompt-ids $ids --cfg 1 --codes e
check 'Emu3: a negative prompt of another length' generate -m emu3.safetensors --prompt-ids $ids --negative-ids 1,2 --codes e
check 'it is kept' grep -aq '"input.text_uncond":{"dtype":"I64","shape":\[2\]' e
check 'Janus: no id of padding' says 'key pad' generate -m janus.safetensors --prompt-ids $ids --codes j
check 'a prefix that begins no image' says 'has no id 2' generate -m emu3.safetensors --prompt-ids 1,9 --cfg 1 --codes e
check 'an id that is none' says 'outside 0 ... 59' generate -m emu3.safetensors --prompt-ids 1,60,2 --cfg 1 --codes e
check 'a negative id that is none' says 'negative prompt' generate -m emu3.safetensors --prompt-ids $ids --negative-ids 2,60 --codes e
check 'a class has no negative ids' says 'llamagen-c2i' generate -m c2i.safetensors --class 1 --negative-ids 1,2 --codes c
check 'the default scale of each family' grep -aq '"generate.cfg":"3"' e

# Orders with eol.
generate -m lumina.safetensors --prompt-ids $ids --decode zipar:5 -o wide.ppm
check 'a window as wide as the row is raster order' cmp rule.ppm wide.ppm
generate -m lumina.safetensors --prompt-ids $ids --decode zipar-adaptive:5 -o wide.ppm
check 'so is an adaptive one' cmp rule.ppm wide.ppm
check 'first-row needs no eol' says 'leave out ,first-row' generate -m lumina.safetensors --prompt-ids $ids --decode zipar:2,first-row -o x.ppm
check 'the authors of ZipAR: LlamaGen only' says 'leave out ,authors' generate -m lumina.safetensors --prompt-ids $ids --decode zipar:2,authors -o x.ppm
check 'the authors: windows' says 'from 2 to 3' generate -m c2i.safetensors --class 1 --decode zipar:4,authors --codes x
check 'the authors' generate -m c2i.safetensors --class 1 --decode zipar:3,authors --codes x
check 'windows of codes with eol' generate -m shuffle.safetensors --prompt-ids 0,3,1 --decode zipar:1 --codes x

# Other grids.
generate -m lumina.safetensors --prompt-ids $ids --grid 2x3 --codes grid.safetensors -o grid.ppm
check 'a grid of 2 x 3' grep -aq '"codes":{"dtype":"I64","shape":\[2,3\]' grid.safetensors
check 'a picture of it' sh -c 'head -c 15 grid.ppm | grep -aq "^6 4$"'
check 'its trace' "$TSAR" trace -q -m lumina.safetensors --prompt-ids $ids --grid 2x3 -o trace.safetensors
check 'no grid of 0' status 2 generate -m lumina.safetensors --prompt-ids $ids --grid 0x3 -o x.ppm
check 'no grid of words' status 2 generate -m lumina.safetensors --prompt-ids $ids --grid 3 -o x.ppm
check 'positions that are rows and columns have their own grid' says 'rope=2d' generate -m c2i.safetensors --class 1 --grid 2x2 --codes x
check 'windows that do not fit' says 'shuffle' generate -m shuffle.safetensors --prompt-ids 0,3,1 --grid 3x4 --codes x
check 'info of another grid' sh -c '"$0" info lumina.safetensors --grid 6x9 | grep -q "6 x 9 codes"' "$TSAR"

# The picture names the command with all that it was made from.
if generate -m lumina.safetensors --prompt-ids $ids --negative-ids 1,2 --grid 3x2 --seed 4 -o a.png 2>/dev/null; then
    command=$(tr '\0' '\n' <a.png | grep -a '^tsar generate' | head -n 1 | sed 's/--decode raster.*/--decode raster/')
    mv a.png first.png
    tsar() { "$TSAR" "$@"; }
    eval "$command -q -o a.png"
    check 'the command in the picture repeats it' cmp a.png first.png
fi

# Likelihoods.
check 'the likelihood of a file with a prefix of its own' sh -c '"$0" score -m emu3.safetensors e --cfg 3 | grep -q "nats in 20 codes"' "$TSAR"

check_end

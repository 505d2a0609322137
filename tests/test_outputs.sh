#!/bin/sh
# What is read is not written, and nothing is written twice: every output of every command against every input and every other output, by its name, a relative
# one, through "..", as an absolute path, a symbolic and a hard link; shards, folders and what lies beside them; frames, and what --resume makes of them.
set -u
. tests/check.sh
small=$PWD/tests/checkpoints/small.npy
check_folder outputs
mkdir folder frames
TRAIN=$BUILD/trainer
DEMO=$BUILD/demo

shape='dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 codebook_size=16 grid_h=4 grid_w=4'
vq='vq_ch=4 vq_ch_mult=1,1 vq_res_blocks=1 vq_z_channels=4 vq_embed_dim=4 vq_l2_norm=1 vq_groups=2'
# shellcheck disable=SC2086 # many arguments
{
    "$TSAR" synth arch=token-shuffle rope=1d shuffle=1 text_vocab=300 $shape $vq seed=1 -q -o model.safetensors
    "$TSAR" synth arch=token-shuffle rope=1d shuffle=1 text_vocab=300 $shape vq_file=model.safetensors seed=2 -q -o borrows.safetensors
    "$TSAR" synth arch=llamagen-t2i rope=2d cond_tokens=3 caption_dim=4 $shape $vq seed=3 -q -o t2i.safetensors
    "$TSAR" synth t5_vocab=64 t5_dim=4 t5_n_layer=1 t5_n_head=1 t5_head_dim=4 t5_ffn_hidden=4 seed=4 -q -o t5.safetensors
} || exit 1
cp "$small" caption.npy
echo hello >prompts.txt
"$TSAR" generate -q -m model.safetensors -p hello --codes codes.safetensors -o picture.ppm || exit 1

# An alias of a file, by its kind; links end with what pictures want.
alias_of() { # KIND FILE
    rm -f link.ppm hard.ppm
    case $1 in
    itself) echo "$2" ;;
    relative) echo "./folder/.././$2" ;;
    absolute) echo "$PWD/$2" ;;
    link) ln -s "$2" link.ppm && echo link.ppm ;;
    hard) ln "$2" hard.ppm && echo hard.ppm ;;
    esac
}
kept() { [ "$(cat ./*.safetensors picture.ppm caption.npy prompts.txt | cksum)" = "$sum" ]; }
sum=$(cat ./*.safetensors picture.ppm caption.npy prompts.txt | cksum)
refused() { # WORDS COMMAND...: status 2 and the words, nothing is changed
    words=$1
    shift
    "$@" >out 2>message
    ended=$?
    cat message
    [ $ended -eq 2 ] && grep -q -- "$words" message && kept
}
# input FILE COMMAND ... OUT: the command, with the aliases of the file for OUT
input() {
    file=$1
    shift
    for kind in itself relative absolute link hard; do
        case $kind in itself | relative | absolute)
            case $* in *-o\ picture* | generate*-o\ OUT | decode* | *--order-map\ OUT) continue ;; esac ;; # the name of a picture ends as such
        esac
        name=$(alias_of $kind "$file")
        arguments=
        for word in "$@"; do
            [ "$word" = OUT ] && word=$name
            arguments="$arguments $word"
        done
        # shellcheck disable=SC2086 # words
        check "$* over $file, $kind" refused 'would be overwritten' "$TSAR" $arguments
    done
    rm -f link.ppm hard.ppm
}
for flag in -o --codes --order-map; do
    case $flag in --codes) more='-o other.ppm' ;; *) more='--codes other' ;; esac
    input model.safetensors generate -q -m model.safetensors -p hello $more $flag OUT
    input model.safetensors generate -q -m borrows.safetensors -p hello $more $flag OUT
    input borrows.safetensors generate -q -m borrows.safetensors -p hello $more $flag OUT
    input caption.npy generate -q -m t2i.safetensors --caption caption.npy $more $flag OUT
    rm -f other ./other*
done 2>/dev/null
# of a list the numbered names count
ln -s prompts.txt list-00000.ppm
check 'a picture of a list over the list' refused 'would be overwritten' "$TSAR" generate -q -m model.safetensors --prompts prompts.txt -o list.ppm
rm list-00000.ppm
ln -s model.safetensors list-00000
check 'codes of a list over the model' refused 'would be overwritten' "$TSAR" generate -q -m model.safetensors --prompts prompts.txt --codes list
rm list-00000
for flag in --codes; do input t5.safetensors generate -q -m t2i.safetensors --text-model t5.safetensors --caption caption.npy $flag OUT; done
input model.safetensors encode -q -m model.safetensors picture.ppm -o OUT
input picture.ppm encode -q -m model.safetensors picture.ppm -o OUT
input codes.safetensors decode -q -m model.safetensors codes.safetensors -o OUT
input model.safetensors decode -q -m borrows.safetensors codes.safetensors -o OUT
input codes.safetensors score -q -m model.safetensors codes.safetensors -o OUT
input model.safetensors score -q -m model.safetensors codes.safetensors -o OUT
input codes.safetensors trace -q -m model.safetensors --inputs codes.safetensors -o OUT
input picture.ppm trace -q -m model.safetensors --image picture.ppm -o OUT
input model.safetensors trace -q -m borrows.safetensors -p hello -o OUT
input t5.safetensors trace -q -m t2i.safetensors --text-model t5.safetensors -p hello -o OUT
input model.safetensors synth -q --like model.safetensors dim=8 -o OUT
input model.safetensors synth -q --like borrows.safetensors -o OUT
input model.safetensors cluster -q -m model.safetensors -k 4 -o OUT
input model.safetensors cluster -q -m borrows.safetensors -k 4 -o OUT
input t2i.safetensors import -q t2i.safetensors -o OUT

# Two outputs of one name, which exists or does not.
g='generate -q -m model.safetensors -p hello'
for pair in '-o a.ppm --codes a.ppm' '-o a.ppm --order-map ./a.ppm' '--codes folder/../a.ppm --order-map a.ppm -o b.ppm' '-n 3 -o a.ppm --codes a.ppm' \
    '-o frames/frame-0003.ppm --frames frames' '--codes frames/../frames/frame-0016.ppm --frames folder/../frames -o b.ppm' \
    '-n 2 -o frames/frame-0.ppm --order-map frames/frame-0.ppm --frames frames' '-n 2 --order-map frames/frame-1-0003.ppm --codes frames/frame-1-0003.ppm --frames frames'; do
    case $pair in *frames*) pair=$(echo "$pair" | sed "s/\.ppm/.$("$TSAR" --help | grep -q 'out\.png' && echo png || echo ppm)/g") ;; esac
    # shellcheck disable=SC2086
    check "two outputs: $pair" refused 'would be written twice' "$TSAR" $g $pair
done
echo old >a.ppm
ln -s a.ppm link.ppm
check 'two names of one file' refused 'would be written twice' "$TSAR" $g -o a.ppm --codes link.ppm
rm -f link.ppm a.ppm
ln -s target-1.ppm p-0.ppm
ln -s target-1.ppm p-1.ppm
check 'two images, one target' refused 'would be written twice' "$TSAR" $g -n 2 -o p.ppm
rm p-0.ppm p-1.ppm
# Frames against inputs.
ending=$("$TSAR" --help | grep -q 'out\.png' && echo png || echo ppm)
for place in 0000 0015 0016; do
    ln -s ../model.safetensors frames/frame-$place.$ending
    check "frame $place over the model" refused 'would be overwritten' "$TSAR" $g --frames frames -o b.ppm
    rm frames/frame-$place.$ending
    ln model.safetensors frames/frame-1-$place.$ending
    check "frame $place of image 1 over the model" refused 'would be overwritten' "$TSAR" $g -n 2 --frames frames -o b.ppm
    rm frames/frame-1-$place.$ending
done
check 'the same names elsewhere are fine' "$TSAR" $g --frames frames -o folder/frame-0003.ppm
check 'sixteen frames' [ "$(ls frames | wc -l)" -eq 16 ]

# An import: the shards of an index, whatever lies in a folder, what lies beside; --force.
mkdir hf
"$TSAR" synth -q arch=janus dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=16 norm_eps=1e-5 rope=1d codebook_size=16 image_embed=4 image_head=8 vocab_size=600 \
    grid_h=2 grid_w=2 pad=0 seed=1 -o hf/one.safetensors || exit 1
echo '{"metadata": {}, "weight_map": {"gpt.norm.weight": "one.safetensors"}}' >hf/model.safetensors.index.json
echo '{}' >hf/notes.json
shards() { [ "$(cat hf/* | cksum)" = "$hf" ]; }
hf=$(cat hf/* | cksum)
for from in hf hf/model.safetensors.index.json hf/../hf/ "$PWD/hf"; do
    check "$from over its shard" refused 'would be overwritten.*--force' "$TSAR" import -q "$from" -o hf/one.safetensors
    check "$from over its index" refused 'would be overwritten.*--force' "$TSAR" import -q "$from" -o ./hf/model.safetensors.index.json
    check "$from: all is as it was" shards
done
ln -s ../hf/one.safetensors folder/link
check 'a folder over its shard, a link' refused 'would be overwritten.*--force' "$TSAR" import -q hf -o folder/link
rm folder/link
check 'a folder over another file in it' refused 'belongs to the folder' "$TSAR" import -q hf -o hf/notes.json
mkdir hf/deep
echo x >hf/deep/file
check 'or deeper' refused 'belongs to the folder' "$TSAR" import -q hf -o hf/deep/../deep/file
rm -r hf/deep
ln -s hf alias
check 'a folder by a link' refused 'belongs to the folder' "$TSAR" import -q alias -o hf/notes.json
rm alias
check 'all is as it was' shards
check 'a new file in the folder' "$TSAR" import -q hf -o hf/new.safetensors
rm hf/new.safetensors
for beside in config.json tokenizer.json spiece.model; do
    echo '{}' >hf/$beside
    check "over $beside beside it" refused 'would be overwritten' "$TSAR" import -q hf/one.safetensors -o hf/$beside
    rm hf/$beside
done
check 'unless it is asked to' "$TSAR" import -q hf -o hf/one.safetensors --force
check 'it is a model' "$TSAR" info hf/one.safetensors

# The trainer and the demo, which work for hours and minutes: before that.
if [ -x "$TRAIN" ]; then
    check 'a result over its tokenizer' refused 'would be overwritten' "$TRAIN" gpt --vq model.safetensors --codes codes.safetensors -o ./model.safetensors
    check 'over its codes' refused 'would be overwritten' "$TRAIN" gpt --vq model.safetensors --codes codes.safetensors -o codes.safetensors
    check 'a checkpoint over its codes' refused 'would be overwritten' "$TRAIN" gpt --vq model.safetensors --codes codes.safetensors -o r --checkpoint codes.safetensors
    check 'over stage one' refused 'would be overwritten' "$TRAIN" fine --vq model.safetensors --codes codes.safetensors --model t5.safetensors --coarse 4 -o t5.safetensors
    check 'a checkpoint that is the result' refused 'written twice' "$TRAIN" codes --vq model.safetensors -o r --checkpoint ./r
    check 'codes over those they are compared with' refused 'would be overwritten' "$TRAIN" score --model model.safetensors --agreement codes.safetensors -o codes.safetensors
    check 'a trace over its model' refused 'would be overwritten' "$TRAIN" trace --model model.safetensors -o model.safetensors
    check 'a result into no folder' sh -c "! '$TRAIN' vq -o none/vq 2>message && grep -q 'none/vq: No such file' message"
fi
if [ -x "$DEMO" ]; then
    ln -s model.safetensors sheet.ppm
    check 'a sheet over its model' refused 'would be overwritten' "$DEMO" -m model.safetensors -o sheet.ppm
    rm sheet.ppm
    check 'a sheet into no folder' sh -c "! '$DEMO' -m model.safetensors -o none/sheet.ppm 2>message && grep -q 'none/sheet.ppm: No such file' message"
fi

# --resume with frames: an image is left alone when all its frames are there, too.
if [ "$ending" = png ]; then
    rm -rf frames && mkdir frames
    many="$g -n 2 --seed 5 --decode zipar-adaptive:1 --frames frames -o r.png"
    # shellcheck disable=SC2086
    "$TSAR" $many
    mkdir whole && cp frames/* whole/
    resumed() { # IMAGES-THERE: --resume finds so many of the two, and the frames are those of the whole run
        # shellcheck disable=SC2086
        "$TSAR" $(echo "$many" | sed 's/ -q//') --resume 2>message
        cat message
        grep -q "$1 of 2 images were there" message || { [ "$1" = 0 ] && ! grep -q 'were there' message; } || return 1
        for frame in whole/*; do cmp "$frame" "frames/${frame#whole/}" || return 1; done
        [ "$(ls frames)" = "$(ls whole)" ]
    }
    check 'all is there' resumed 2
    last=$(ls frames/frame-1-* | tail -n 1)
    rm "$last"
    check 'the last frame is missing' resumed 1
    rm frames/frame-0-0002.png
    check 'one in the middle is missing' resumed 1
    head -c 100 whole/frame-1-0000.png >frames/frame-1-0000.png
    check 'one is cut' resumed 1
    cp whole/frame-1-0003.png frames/frame-1-0002.png
    check 'one is another' resumed 1
    rm frames/*
    check 'none is there' resumed 0
    # one image alone has the frames of the batch
    rm r-1.png
    check 'one picture is missing' resumed 1
fi
check_end

#!/bin/sh
# The demo on a small synthetic model: the sheet's size, its captions, its pictures the same as those of tsar generate, flags, errors.
set -u
. tests/check.sh
check_folder demo.test
demo=$BUILD/demo

refused() { # STATUS TEXT COMMAND...: that status, and one line on stderr that holds the text
    expected=$1
    text=$2
    shift 2
    "$@" >out.txt 2>err.txt
    check "$*: status" test $? -eq "$expected"
    check "$*: one line" test "$(wc -l <err.txt)" -eq 1 -a ! -s out.txt
    check "$*: $(cat err.txt)" grep -q -e "^demo: .*$text" err.txt
}

shape='arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32
       shuffle=2 shuffle_blocks=1 shuffle_hidden=8 vq_ch=4 vq_ch_mult=1,1,1,1,1 vq_res_blocks=1 vq_z_channels=4 vq_embed_dim=4 vq_l2_norm=1
       vq_groups=2 seed=7'
"$TSAR" synth $shape grid_h=8 grid_w=8 -o model.safetensors || exit 1
"$TSAR" synth $shape grid_h=8 grid_w=4 -o narrow.safetensors || exit 1

# Three pictures: two columns of 128 pixels and gaps of 14, two rows; noise that shows nothing.
"$demo" -m model.safetensors -n 3 --seed 5 --threads 1 -o a.ppm >said.txt 2>progress.txt
check 'a sheet' test $? -eq 0
size=$(head -n 2 a.ppm | tail -n 1)
width=${size% *}
height=${size#* }
start=$(($(wc -c <a.ppm) - width * height * 3))
check 'two columns' test "$width" -eq 298
check 'two rows, each above its captions' test "$height" -ge 318 -a "$height" -le 438
check 'where it is' grep -q '^The sheet is a.ppm: 3 pictures by model.safetensors, made in [0-9.]* s\.$' said.txt
check 'the score' grep -q '^0 of 3 pictures show what their captions say, says the referee\.$' said.txt
check 'how to go on' grep -q '^Make your own: ./tsar generate -m .model.safetensors. -p "three yellow stars above a blue ring" -o mine\.p' said.txt
check 'progress' test "$(cat progress.txt)" = '3 of 3 pictures'

pixels() { # X Y W H: the pixels of this part of the sheet
    y=$2
    while [ "$y" -lt $(($2 + $4)) ]; do
        tail -c +$((start + (y * width + $1) * 3 + 1)) a.ppm | head -c $((3 * $3))
        y=$((y + 1))
    done
}
pixels 14 148 7 7 | tr -d '\372' >mark
check 'a red mark' test "$(od -An -v -tu1 mark | tr -s ' \n' '\n\n' | sort -u | tr '\n' ' ')" = ' 205 45 50 '
pixels 25 148 117 10 >text
check 'a caption' test "$(tr -d '\372' <text | wc -c)" -gt 300
pixels 14 142 284 6 | tr -d '\372' >gap
check 'paper around it' test ! -s gap

# The same bytes again and from two threads; another seed is another sheet.
"$demo" -m model.safetensors -n 3 --seed 5 --threads 2 -o b.ppm >/dev/null 2>&1
check 'one thread and two' cmp a.ppm b.ppm
"$demo" -m model.safetensors -n 3 -o c.ppm >/dev/null 2>&1
check 'another seed' test -s c.ppm
cmp -s a.ppm c.ppm
check 'is another sheet' test $? -eq 1

# Picture 1 is what tsar generate makes of its caption, which a PNG tells, with the seed that follows.
if "$demo" -m model.safetensors -n 3 --seed 5 -o a.png >/dev/null 2>&1; then
    caption=$(tr '\000' '\n' <a.png | grep -a -A 2 'Captions$' | tail -n 1)
    "$TSAR" generate -q -m model.safetensors -p "$caption" --seed 6 -o 1.ppm
    tail -c 49152 1.ppm >1.rgb
    pixels 156 14 128 128 >sheet.rgb
    check "'$caption' is drawn as tsar generate draws it" cmp 1.rgb sheet.rgb
fi

refused 2 'from 1 to 400' "$demo" -n 0
refused 2 'from 1 to 400' "$demo" -n 401
refused 2 'from 0 to 18446744073709551615' "$demo" --seed 18446744073709551616
refused 2 'from 0 to' "$demo" --seed -1
refused 2 'from 1 to 64' "$demo" --threads x
refused 2 'give its value' "$demo" -m
refused 2 'no such flag' "$demo" --frames 3
refused 2 'must end in' "$demo" -o sheet.jpg
refused 3 'make weights' "$demo"
refused 3 'nowhere.safetensors' "$demo" -m nowhere.safetensors
refused 3 '128 x 128 pixels from text' "$demo" -m narrow.safetensors
check '--help' "$demo" --help

check_end

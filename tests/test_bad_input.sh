#!/bin/sh
# Damaged files and junk in every flag: each must end with the right status and one clear line on stderr, nothing else.
set -u
BUILD=${BUILD:-.build}
CC=${CC:-cc}
root=$(pwd)
case $BUILD in /*) ;; *) BUILD=$root/$BUILD ;; esac
case ${TSAR:-} in '') TSAR=$BUILD/tsar ;; /*) ;; *) TSAR=$root/$TSAR ;; esac
dir=$BUILD/bad
passed=0
failed=0
rm -rf "$dir"
mkdir -p "$dir/copies"
$CC -std=c99 -O1 -o "$dir/damage" tests/damage.c || exit 1
cd "$dir" || exit 1

$TSAR synth arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=8 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=16 \
    grid_h=4 grid_w=4 shuffle=2 shuffle_blocks=1 shuffle_hidden=8 seed=1 vq_ch=4 vq_ch_mult=1,1 vq_res_blocks=1 vq_z_channels=4 \
    vq_embed_dim=4 vq_l2_norm=1 vq_groups=2 -o m.safetensors --quiet || exit 1
$TSAR synth arch=llamagen-c2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 \
    grid_h=4 grid_w=4 cond_tokens=1 num_classes=3 seed=1 -o c.safetensors --quiet || exit 1

# expect STATUS NAME COMMAND...: that status, exactly one line on stderr that begins with "tsar: ", nothing on stdout.
expect() {
    wanted=$1
    name=$2
    shift 2
    "$@" >stdout.txt 2>stderr.txt </dev/null
    status=$?
    if [ $status -eq "$wanted" ] && [ "$(wc -l <stderr.txt)" -eq 1 ] && grep -q '^tsar: ' stderr.txt && [ ! -s stdout.txt ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $name: status $status, not $wanted; said: $(head -n 3 stderr.txt)"
    fi
}

./damage m.safetensors copies >/dev/null || exit 1
for copy in copies/*; do
    expect 3 "$copy" "$TSAR" generate -m "$copy" -p hello -o out.ppm
done
expect 3 'a directory as model' "$TSAR" info copies
expect 3 'no such model' "$TSAR" info nowhere.safetensors
expect 3 'a picture as model' "$TSAR" info /dev/null

# flags of generate
g="$TSAR generate -m m.safetensors -o out.ppm"
junk() { # FLAG VALUE...: each value is a usage error
    flag=$1
    shift
    for value in "$@"; do expect 2 "generate $flag '$value'" $g -p hi "$flag" "$value"; done
}
junk --seed '' x -1 1.5 18446744073709551616 0x10 ' 1'
junk -n '' x 0 -1 99999999999999999999
junk --cfg '' x nan inf -1 1e999 7.5x
junk --cfg-schedule '' cubic
junk --cfg-interval '' x -2 1.5 99999999999999999999
junk --temperature '' x -1 nan inf
junk --top-k '' x -1 1.5 99999999999999999999
junk --top-p '' x -0.5 1.5 nan
expect 3 'guidance beyond the range of a double' $g -p hi --cfg 1e308
expect 3 'guided logits that the temperature takes beyond it' $g -p hi --cfg 1e304 --temperature 0
junk --decode '' x zipar zipar: zipar:0 zipar:-1 zipar:x zipar:99999999999999999999x zipar:2,last-row zipar:2, zipar-adaptive zipar-adaptive:0 zipar-adaptive:x raster:1
junk --threads '' x 0 -1 1.5 99999999999999999999
junk --prompt-ids '' x 0,,1 0,x 0,-1 1,2,
expect 2 'no command' "$TSAR" --quiet
expect 2 'unknown command' "$TSAR" paint
expect 2 'unknown flag' $g -p hi --colour red
expect 2 'flag without value' $g -p hi --seed
expect 2 'two prompts' $g -p hi --prompt-ids 0,1
expect 2 'a stray argument' $g -p hi stray
expect 2 'no prompt' $g
expect 2 'class for a text model' $g --class 1
expect 2 'prompt for a class model' "$TSAR" generate -m c.safetensors -p hi --codes out.safetensors
expect 2 'class junk' "$TSAR" generate -m c.safetensors --class x --codes out.safetensors
expect 3 'class out of range' "$TSAR" generate -m c.safetensors --class 4 --codes out.safetensors
expect 3 'ids out of range' $g --prompt-ids 0,300,1
expect 3 'picture without tokenizer' "$TSAR" generate -m c.safetensors --class 1 -o out.ppm
expect 2 'unknown picture format' "$TSAR" generate -m m.safetensors -p hi -o out.gif
expect 3 'frames into no directory' $g -p hi --frames nowhere
expect 2 'rtol junk' "$TSAR" verify -m m.safetensors m.safetensors --rtol x
expect 2 'rtol negative' "$TSAR" verify -m m.safetensors m.safetensors --rtol -1
expect 3 'verify a file without inputs' "$TSAR" verify -m m.safetensors c.safetensors
expect 2 'synth without key' "$TSAR" synth -o out.safetensors
expect 2 'synth junk' "$TSAR" synth dim -o out.safetensors
expect 2 'synth dtype' "$TSAR" synth --like m.safetensors --dtype f8 -o out.safetensors
expect 2 'synth impossible' "$TSAR" synth --like m.safetensors dim=15 -o out.safetensors
expect 2 'synth too large' "$TSAR" synth --like m.safetensors dim=99999999999 -o out.safetensors
expect 2 'cluster k junk' "$TSAR" cluster -m m.safetensors -k x -o out.safetensors
expect 2 'cluster k 0' "$TSAR" cluster -m m.safetensors -k 0 -o out.safetensors
expect 3 'cluster k too large' "$TSAR" cluster -m m.safetensors -k 17 -o out.safetensors

# a header beyond what safetensors allows, in a file that is long enough for it
printf '\001\341\365\005\000\000\000\000' >big
dd if=/dev/null of=big bs=1 seek=100000009 2>/dev/null # only its length grows
expect 3 'a header of more than 100 MB' "$TSAR" info big
grep -q '100 MB' stderr.txt || { echo "FAILED a header of more than 100 MB: $(cat stderr.txt)"; failed=$((failed + 1)); }
rm -f big

# pictures
picture() {
    printf "$2" >p.ppm
    expect 3 "picture $1" "$TSAR" encode -m m.safetensors p.ppm -o out.safetensors
}
picture empty ''
picture 'wrong magic' 'P5\n2 2\n255\nxxxxxxxxxxxx'
picture 'no size' 'P6\n'
picture 'size 0' 'P6\n0 2\n255\n'
picture 'negative size' 'P6\n-2 2\n255\nxxxxxxxxxxxx'
picture 'huge size' 'P6\n99999999999 99999999999\n255\nx'
picture 'size overflows' 'P6\n4294967296 4294967296\n255\nx'
picture 'sixteen bits' 'P6\n2 2\n65535\nxxxxxxxxxxxxxxxxxxxxxxxx'
picture 'maxval 100' 'P6\n2 2\n100\nxxxxxxxxxxxx'
picture truncated 'P6\n2 2\n255\nxxxxxxxxxxx'
picture 'odd size' 'P6\n3 2\n255\nxxxxxxxxxxxxxxxxxx'
picture 'endless comment' 'P6\n# no end'

# a full disk
if [ -w /dev/full ]; then
    expect 4 'full disk: picture' "$TSAR" generate -m m.safetensors -p hi -o /dev/full --quiet
    for command in "encode -m m.safetensors ok.ppm -o /dev/full" "trace -m m.safetensors -p hi -o /dev/full" "synth --like m.safetensors -o /dev/full" \
        "cluster -m m.safetensors -k 2 -o /dev/full"; do
        { printf 'P6\n4 4\n255\n'; head -c 48 /dev/zero; } >ok.ppm
        expect 4 "full disk: $command" "$TSAR" $command --quiet
    done
    "$TSAR" info m.safetensors >/dev/full 2>stderr.txt
    status=$?
    if [ $status -eq 4 ] && [ "$(wc -l <stderr.txt)" -eq 1 ]; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED full disk: info to stdout: status $status"
    fi
    [ -c /dev/full ] || { echo 'FAILED /dev/full was replaced by a file'; failed=$((failed + 1)); }
fi
# an old output file survives a failure: no room beside it
echo old >out.safetensors
(ulimit -f 0 && "$TSAR" generate -m m.safetensors -p hi --codes out.safetensors >/dev/null 2>&1)
if [ $? -eq 4 ] && [ "$(cat out.safetensors)" = old ]; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    echo 'FAILED a failed command changed the old output file'
fi
left=$(ls | grep -vE '^(copies|damage|m.safetensors|c.safetensors|std(out|err).txt|p.ppm|ok.ppm|out.safetensors)$')
if [ -z "$left" ]; then passed=$((passed + 1)); else
    failed=$((failed + 1))
    echo "FAILED files left behind: $left"
fi
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

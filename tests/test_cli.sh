#!/bin/sh
# The command line: pictures that say how they were made, several images, frames, order maps, codes, help, full disks.
set -u
LC_ALL=C
export LC_ALL
BUILD=${BUILD:-.build}
TSAR=${TSAR:-$BUILD/tsar}
case $TSAR in /*) ;; *) TSAR=$PWD/$TSAR ;; esac
dir=$BUILD/cli
passed=0
failed=0
rm -rf "$dir"
mkdir -p "$dir/frames"
cd "$dir" || exit 1

check() { # DESCRIPTION COMMAND...
    what=$1
    shift
    if "$@" >check.log 2>&1; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED $what: $(head -n 2 check.log)"
    fi
}
status() { # EXPECTED COMMAND...
    expected=$1
    shift
    "$@" >/dev/null 2>&1
    [ $? -eq "$expected" ]
}

"$TSAR" synth arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 \
    shuffle=2 shuffle_blocks=1 shuffle_hidden=8 vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4 seed=7 \
    -o model.safetensors || exit 1
generate() { "$TSAR" generate -m model.safetensors -q "$@"; }

# A picture says how it was made: the command in it, run again, makes the same bytes.
for flags in '--seed 5' '--greedy --cfg 1' '--seed 18446744073709551615 --cfg 0.1 --cfg-schedule cosine --cfg-interval 3' \
    '--temperature 0.30000000000000004 --top-k 7 --top-p 0.9 --decode zipar:2,first-row' '--decode zipar-adaptive:1 -n 2' '--decode zipar:1 --cfg=3.3'; do
    rm -f a*.ppm b*.ppm
    generate -p "it's a \"r\303\244d\" \$x\\" $flags -o a.ppm
    first=a.ppm
    [ -f a.ppm ] || first=a-1.ppm
    command=$(sed -n 's/^# Command: tsar generate //p' "$first")
    check "$flags: the picture names its command" test -n "$command"
    eval "generate $command -o b.ppm"
    check "$flags: the command in the picture repeats it" cmp "$first" "b${first#a}"
done
generate -p twice -o a.ppm
generate -p twice -o b.ppm
check 'the same twice' cmp a.ppm b.ppm
generate -p twice -o b.ppm --seed 1
check 'another seed, another picture' status 1 cmp a.ppm b.ppm

# Several images; image i of many is not image 0.
generate -p many -n 3 -o many.ppm --codes many.safetensors --order-map map.ppm
for i in 0 1 2; do check "image $i of 3" test -s many-$i.ppm -a -s many-$i.safetensors -a -s map-$i.ppm; done
check 'images differ' status 1 cmp many-0.ppm many-1.ppm

# Codes and pictures agree: decoding the codes gives the pixels of the picture.
pixels() { tail -c 288 "$1"; } # 12 x 8 pixels
"$TSAR" decode -m model.safetensors many-1.safetensors -o decoded.ppm
pixels many-1.ppm >p1
pixels decoded.ppm >p2
check 'decode of --codes' cmp p1 p2
"$TSAR" encode -m model.safetensors many-1.ppm -o e1.safetensors
"$TSAR" encode -m model.safetensors - -o e2.safetensors <many-1.ppm
check 'standard input is the same picture' cmp e1.safetensors e2.safetensors

# One frame for each pass; 3 x 2 fused tokens.
if generate -p frames --frames frames -o last.png 2>/dev/null; then
    check 'six frames' test "$(ls frames | wc -l)" -eq 6
    check 'PNG signature' test "$(head -c 4 last.png | tail -c 3)" = PNG
else
    generate -p frames --frames frames -o last.ppm
    check 'six frames' test "$(ls frames | wc -l)" -eq 6
fi
check 'a trace verifies' sh -c "'$TSAR' trace -m model.safetensors -p hi -o t.safetensors -q && '$TSAR' verify -m model.safetensors t.safetensors"
check 'shown in half blocks: twelve rows in six lines' test "$(generate -p show --show -o a.ppm | wc -l)" -eq 6

# Help: every command, every flag of it, in help and manual.
"$TSAR" --man >manual
for command in generate encode decode trace verify import synth info bench cluster; do
    check "$command --help" status 0 "$TSAR" "$command" --help
    for flag in $("$TSAR" "$command" --help | sed -n 's/^ .*\(--[a-z-]*\) .*/\1/p'); do
        check "$command $flag is in the manual" grep -q -e "$(echo "$flag" | sed 's/-/\\\\-/g')" manual
    done
done
check '-h' status 0 "$TSAR" -h
check '--version' status 0 "$TSAR" --version
check 'no command' status 2 "$TSAR"

# A full disk leaves the old file as it was and says so.
if [ -c /dev/full ]; then
    check 'stdout full' sh -c "'$TSAR' --help >/dev/full 2>/dev/null; [ \$? -eq 4 ]"
    check 'codes to a full disk' status 4 generate -p x -o a.ppm --codes /dev/full
    check 'trace to a full disk' status 4 "$TSAR" trace -m model.safetensors -p x -o /dev/full
fi
echo old >old.ppm
check 'a failed run' sh -c "ulimit -f 0; '$TSAR' generate -m model.safetensors -p x -o old.ppm >/dev/null 2>&1; [ \$? -eq 4 ]"
check 'leaves the old picture' test "$(cat old.ppm)" = old

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

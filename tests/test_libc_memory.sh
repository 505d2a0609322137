#!/bin/sh
# test_memory.sh for what libc allocates as well (fopen's streams, buffers): each of the first allocations of a command fails in turn. The command
# ends with status 0, where libc does without, or 4 with one line; the old file is whole, no other is left. glibc only.
set -u
. tests/check.sh
case $TSAR in /*) ;; *) TSAR=$PWD/$TSAR ;; esac
dir=$BUILD/libc_memory
rm -rf "$dir"
mkdir -p "$dir"
if ! ${CC:-cc} -O1 -shared -fPIC -fno-builtin tests/failing_libc.c -o "$dir/failing.so" 2>"$dir/log" ||
    ! FAIL_AT=0 LD_PRELOAD=$dir/failing.so "$TSAR" --version >/dev/null 2>&1; then
    echo 'no glibc here: skipped'
    echo '0 passed, 0 failed'
    exit 0
fi
cd "$dir" || exit 1
check_log=check.log
"$TSAR" synth arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=8 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=16 grid_h=4 grid_w=4 \
    shuffle=2 shuffle_blocks=1 shuffle_hidden=8 seed=1 vq_ch=4 vq_ch_mult=1,1 vq_res_blocks=1 vq_z_channels=4 vq_embed_dim=4 vq_l2_norm=1 vq_groups=2 \
    -o model.safetensors --quiet || exit 1
"$TSAR" generate -q -m model.safetensors -p hello --codes codes.safetensors

try() { # OUTPUT COMMAND...
    output=$1
    shift
    wrong=0
    n=1
    while [ $n -le 60 ]; do
        echo old >"$output"
        before=$(ls)
        FAIL_AT=$n LD_PRELOAD=./failing.so "$@" >out.log 2>err.log
        status=$?
        case $status in
        0) [ "$output" = none.log ] || [ "$(head -c 3 "$output")" != old ] || wrong=$((wrong + 1)) ;;
        4) [ "$(wc -l <err.log)" -eq 1 ] && [ "$(cat "$output")" = old ] || wrong=$((wrong + 1)) ;;
        *)
            wrong=$((wrong + 1))
            echo "allocation $n: status $status, $(head -n 1 err.log)"
            ;;
        esac
        [ "$(ls)" = "$before" ] || wrong=$((wrong + 1))
        n=$((n + 1))
    done
    [ $wrong -eq 0 ]
}
touch out.log err.log check.log none.log
"$TSAR" trace -q -m model.safetensors -p hello -o trace.safetensors
"$TSAR" decode -q -m model.safetensors codes.safetensors -o picture.ppm
echo hello >prompts.txt
check generate try out.ppm "$TSAR" generate -q -m model.safetensors -p hello -o out.ppm
check 'a list' try list-00000.ppm "$TSAR" generate -q -m model.safetensors --prompts prompts.txt -o list.ppm
check encode try out.safetensors "$TSAR" encode -q -m model.safetensors picture.ppm -o out.safetensors
check trace try out.safetensors "$TSAR" trace -q -m model.safetensors -p hello -o out.safetensors
check verify try none.log "$TSAR" verify -q -m model.safetensors trace.safetensors
check score try out.safetensors "$TSAR" score -q -m model.safetensors codes.safetensors -o out.safetensors
check text try none.log "$TSAR" text -m model.safetensors hello
check synth try out.safetensors "$TSAR" synth -q --like model.safetensors -o out.safetensors
check info try none.log "$TSAR" info model.safetensors
check decode try out.ppm "$TSAR" decode -q -m model.safetensors codes.safetensors -o out.ppm
check cluster try out.safetensors "$TSAR" cluster -q -m model.safetensors -k 3 -o out.safetensors
check import try out.safetensors "$TSAR" import -q model.safetensors -o out.safetensors
check_end

#!/bin/sh
# Every allocation made to fail in turn: each command must end with status 4 and one line, leak nothing, leave the old
# output file as it was and no other file behind. Builds its own copy of tsar around tests/failing_malloc.c.
set -u
BUILD=${BUILD:-.build}
CC=${CC:-cc}
dir=$BUILD/memory
passed=0
failed=0
rm -rf "$dir"
mkdir -p "$dir"
cp tests/checkpoints/small.pt "$dir"
cp -r tests/checkpoints/lumina_gqa_hf tests/checkpoints/flan "$dir"
cp tests/spiece/ok_plain.model "$dir/flan/spiece.model"

sources='main.c tsar.c vq.c sampler.c tests/trace.c tests/rounded.c tests/judge.c tests/decisions.c tests/verify.c tests/report.c tests/bench.c tests/selfcheck.c'
objects=
for file in $sources weights/*.c weights/files/*.c; do
    object=$dir/$(echo "$file" | tr '/' '_').o
    $CC -std=c99 -ffp-contract=off -O1 -isystem "${STB_INCLUDE:-/usr/include/stb}" ${NO_PNG:+-DTSAR_NO_PNG} -Dcalloc=failing_calloc -Dmalloc=failing_malloc \
        -Drealloc=failing_realloc -Dfree=failing_free -c "$file" -o "$object" || exit 1
    objects="$objects $object"
done
$CC -std=c99 -O1 $objects tests/failing_malloc.c -o "$dir/tsar" -lm || exit 1
cd "$dir" || exit 1

shape='arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=8 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=16
       grid_h=4 grid_w=4 shuffle=2 shuffle_blocks=1 shuffle_hidden=8 seed=1
       vq_ch=4 vq_ch_mult=1,1 vq_res_blocks=1 vq_z_channels=4 vq_embed_dim=4 vq_l2_norm=1 vq_groups=2'
ctf='arch=llamagen-t2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 n_coarse=2
     grid_h=4 grid_w=4 cond_tokens=2 caption_dim=4 fine_dim=8 fine_n_layer=1 fine_n_head=2 fine_ffn_hidden=8 seed=2'
./tsar synth $shape -o model.safetensors --quiet && ./tsar synth $ctf -o ctf.safetensors --quiet || exit 1
# shellcheck disable=SC2086
./tsar synth ${shape% vq_ch=*} vq_file=model.safetensors -o shared.safetensors --quiet || exit 1
printf 'P6\n8 8\n255\n' >picture.ppm
head -c 192 /dev/zero | tr '\0' 'x' >>picture.ppm
{
    printf '\223NUMPY\001\000\166\000'
    printf '%-117s\n' "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 4), }"
    head -c 32 /dev/zero
} >caption.npy
./tsar encode -m model.safetensors picture.ppm -o codes.safetensors --quiet
./tsar trace -m model.safetensors -p hello -o trace.safetensors --quiet
./tsar generate -m model.safetensors -p hello --codes record.safetensors --quiet
./tsar synth arch=emu3 dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=8 norm_eps=1e-5 rope=1d vocab_size=40 image_base=20 codebook_size=20 eol=7 boi=2 \
    grid_h=3 grid_w=3 seed=4 -o emu3.safetensors --quiet
echo hello >prompts.txt

# try NAME OUTPUT COMMAND...: makes allocation 1, 2, 3 ... fail until the command succeeds.
try() {
    name=$1
    output=$2
    shift 2
    n=1
    problems=0
    while [ $n -lt 3000 ]; do
        echo old >"$output"
        before=$(ls | sort)
        FAIL_AT=$n ALLOCATION_LOG=log.txt "$@" >stdout.txt 2>stderr.txt
        status=$?
        if [ ! -f log.txt ]; then
            echo "FAILED $name, allocation $n: crashed with status $status"
            problems=$((problems + 1))
            break
        fi
        read -r calls live <log.txt
        rm -f log.txt
        if [ "$live" != 0 ]; then
            echo "FAILED $name, allocation $n: $live allocations never freed"
            problems=$((problems + 1))
        fi
        [ "$status" -eq 0 ] && [ "$calls" -lt "$n" ] && break
        if [ "$status" -ne 4 ] || [ "$(grep -c . stderr.txt)" -ne 1 ]; then
            echo "FAILED $name, allocation $n: status $status, said: $(head -n 3 stderr.txt)"
            problems=$((problems + 1))
        fi
        if [ "$output" != nothing ] && [ "$(cat "$output")" != old ]; then
            echo "FAILED $name, allocation $n: the old output file is gone"
            problems=$((problems + 1))
        fi
        if [ "$(ls | sort)" != "$before" ]; then
            echo "FAILED $name, allocation $n: left a file behind: $(ls)"
            problems=$((problems + 1))
        fi
        [ $problems -gt 5 ] && break
        n=$((n + 1))
    done
    if [ $n -ge 3000 ]; then
        echo "FAILED $name: needs more allocations than were tried"
        problems=$((problems + 1))
    fi
    if [ $problems -eq 0 ]; then
        passed=$((passed + 1))
        echo "ok $name: $((n - 1)) allocations failed in turn"
    else
        failed=$((failed + 1))
    fi
}

touch stdout.txt stderr.txt out.png nothing
try generate out.png ./tsar generate -m model.safetensors -p hello -o out.png --decode zipar:1 --quiet
try 'generate --codes' codes2.safetensors ./tsar generate -m ctf.safetensors --caption caption.npy --codes codes2.safetensors --quiet
try 'generate, rows that end' codes3.safetensors ./tsar generate -m emu3.safetensors --prompt-ids 1,9,2 --negative-ids 1,2 --decode zipar-adaptive:1 \
    --codes codes3.safetensors --quiet
try 'generate --prompts' list-00000.png ./tsar generate -m model.safetensors --prompts prompts.txt -o list.png --quiet
mkdir frames
try 'generate --frames' out.png ./tsar generate -m model.safetensors -p hello --frames frames -o out.png --quiet
rm -r frames
try score out.safetensors ./tsar score -m model.safetensors record.safetensors -o out.safetensors
try encode out.safetensors ./tsar encode -m model.safetensors picture.ppm -o out.safetensors --quiet
try decode out.ppm ./tsar decode -m model.safetensors codes.safetensors -o out.ppm --quiet
try trace out.safetensors ./tsar trace -m model.safetensors -p hello -o out.safetensors --quiet
try verify nothing ./tsar verify -m model.safetensors trace.safetensors --quiet
try synth out.safetensors ./tsar synth $shape -o out.safetensors --quiet
try cluster out.safetensors ./tsar cluster -m model.safetensors -k 3 -o out.safetensors --quiet
try import out.safetensors ./tsar import small.pt n_head=4 grid_h=4 grid_w=4 -o out.safetensors --quiet
try 'import, sharded folder' out.safetensors ./tsar import lumina_gqa_hf codebook_size=77 eoi=81 boi=82 sep=90 eol=101 size_base=102 grid_h=6 grid_w=2 \
    -o out.safetensors --quiet
try 'import, text encoder' out.safetensors ./tsar import flan -o out.safetensors --quiet
try info nothing ./tsar info model.safetensors
try 'decode, shared tokenizer' out.ppm ./tsar decode -m shared.safetensors codes.safetensors -o out.ppm --quiet
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

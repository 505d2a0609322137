#!/bin/sh
# Lists of prompts: each picture is that of the single command which it names; shards together are one run; a run that was cut off goes on.
set -u
. tests/check.sh
check_folder prompts

"$TSAR" synth arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 \
    shuffle=2 shuffle_blocks=1 shuffle_hidden=8 vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4 seed=7 -o model.safetensors
generate() { "$TSAR" generate -q -m model.safetensors "$@"; }
printf 'a red cube\n\nit'"'"'s \303\251 $HOME\n{not json}\n-o\n' >plain.txt
cat >lines.jsonl <<'END'
{"tag": "colors", "include": [{"class": "cube", "count": 1, "color": "red"}], "prompt": "a photo of a red cube"}
{"prompt": "two \"benches\"", "n": 2}
{"prompt": "seeded", "seed": 77}
END
mkdir one two three pp
if "$TSAR" generate -q -m model.safetensors -p x -o probe.png 2>log; then ending=png; else ending=ppm; fi

# Names and bytes.
check 'a list' generate --prompts plain.txt -o one --seed 5
check 'one picture for each line' test "$(ls one | tr '\n' ' ')" = "00000.$ending 00002.$ending 00003.$ending 00004.$ending "
generate -p 'a red cube' -o single.$ending --seed 5
check 'line 0 has the seed' cmp one/00000.$ending single.$ending
generate -p '{not json}' -o single.$ending --seed 8
check 'line 3 has the seed + 3' cmp one/00003.$ending single.$ending
generate --prompts lines.jsonl -o two/picture.$ending --codes two/codes.safetensors --order-map two/map.$ending -n 3
check 'names made from a name' test "$(ls two | grep picture | tr '\n' ' ')" = \
    "picture-00000-0.$ending picture-00000-1.$ending picture-00000-2.$ending picture-00001-0.$ending picture-00001-1.$ending picture-00002-0.$ending picture-00002-1.$ending picture-00002-2.$ending "
check 'codes and maps of each' test "$(ls two/codes* | wc -l)$(ls two/map* | wc -l)" = 88
generate -p seeded --seed 77 -n 3 -o single.$ending
check 'a seed of its own' cmp two/picture-00002-1.$ending single-1.$ending
check 'a line says how many' test -s two/picture-00001-1.$ending -a ! -e two/picture-00001-2.$ending
check 'standard input' sh -c 'cat plain.txt | "$0" generate -q -m model.safetensors --prompts - -o three --seed 5' "$TSAR"
check 'it is the same list' diff -r one three

# Two shards, in whatever order, are one run; GNU parallel or a Slurm array starts them.
mkdir shard0 shard1
if command -v parallel >/dev/null 2>&1; then
    parallel --will-cite "$TSAR" generate -q -m model.safetensors --prompts plain.txt -o pp --seed 5 --shard '{}/2' ::: 0 1
else
    for i in 1 0; do generate --prompts plain.txt -o pp --seed 5 --shard $i/2; done
fi
check 'two shards are one run' diff -r one pp
for i in 1 2; do generate --prompts plain.txt -o shard1 --seed 5 --shard $i/2; done
check 'counted from 1, too' diff -r one shard1
check 'a shard without prompts' generate --prompts lines.jsonl -o shard0 --shard 3/9
check 'it writes nothing' test -z "$(ls shard0)"

# What is there is kept, what is missing or of another command is made.
if [ $ending = png ]; then
    cp -r one again
    rm again/00002.png
    generate -p other -o again/00003.png
    touch -d '2001-01-01' again/00000.png 2>/dev/null || touch -t 200101010000 again/00000.png
    cp -p again/00000.png kept.png
    check 'go on' generate --prompts plain.txt -o again --seed 5 --resume
    check 'everything is there' diff -r one again
    check 'what was there was left alone' test ! again/00000.png -nt kept.png
    png_command() { tr '\0' '\n' <"$1" | grep -a '^tsar generate' | head -n 1; }
    check 'the picture names the single command' sh -c 'tr "\0" "\n" <one/00000.png | grep -aq "^tsar generate -m model.safetensors --prompt .a red cube. -n 1 --seed 5 --cfg"'
    check 'and not the list' status 1 grep -aq 'plain.txt\|--shard\|one/' one/00000.png
fi

# What is refused, before any work.
mkdir none
check 'no such list' status 3 generate --prompts missing.txt -o none
printf '{"prompt":"a"}\n{"prompt":\n' >broken.jsonl
check 'a broken line' status 3 generate --prompts broken.jsonl -o none
check 'no folder' status 3 generate --prompts plain.txt -o nowhere
check 'a list and a prompt' status 2 generate --prompts plain.txt -p x -o none
check 'a list and frames' status 2 generate --prompts plain.txt --frames none -o none
check 'a shard of nothing' status 2 generate -p x --shard 0/2
check 'shard 3 of 2' status 2 generate --prompts plain.txt --shard 3/2 -o none
check 'nothing was written' test -z "$(ls none)"

check_end

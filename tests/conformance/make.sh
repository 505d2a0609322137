#!/bin/sh
# The conformance suite into a folder: models, cases, manifest.json and what reads them (README.md beside this file). The same bytes on every machine.
#
#     sh tests/conformance/make.sh FOLDER TSAR WRITE
set -eu
LC_ALL=C
export LC_ALL
out=$1 tsar=$2 write=$3 here=tests/conformance
rm -rf "$out.tmp"
mkdir -p "$out.tmp/models" "$out.tmp/cases"
digest() { if command -v sha256sum >/dev/null 2>&1; then sha256sum "$1"; else shasum -a 256 "$1"; fi | cut -d ' ' -f 1; }

model() { # NAME KEY=VALUE...
    file=models/$1.safetensors
    shift
    "$tsar" synth -q "$@" -o "$out.tmp/$file"
    files="$files $file"
}
entry() { # NAME KIND MODEL COVERS: the manifest's lines for a case that is written
    # shellcheck disable=SC2016 # awk's own dollars
    catches=$(awk -F '\t' -v name="$1" '$1 == name { printf "%s\n    {\"mistake\": \"%s\", \"told at\": \"%s\"}", n++ ? "," : "", $3, $2 }' $here/mistakes.tsv)
    printf '%s\n  {"name": "%s", "kind": "%s", "free": %s, "file": "cases/%s.safetensors", "model": "%s", "sha256": "%s",\n' \
        "$comma" "$1" "$2" "$free" "$1" "$3" "$(digest "$out.tmp/cases/$1.safetensors")" >>"$out.tmp/cases.json"
    printf '   "covers": "%s",\n   "catches": [%s]}' "$4" "$catches" >>"$out.tmp/cases.json"
    comma=,
}
case_of() { # NAME KIND MODEL COVERS ARGUMENT...
    name=$1 kind=$2 model=$3 covers=$4
    shift 4
    case $* in *zipar-adaptive*) free=true ;; *) free=false ;; esac
    "$write" "$kind" "$out.tmp/models/$model.safetensors" "$out.tmp/cases/$name.safetensors" "$@"
    entry "$name" "$kind" "models/$model.safetensors" "$covers"
}

# ------------------------------------------------------------------------------------------------------------------------ models
small='dim=32 n_layer=2 n_head=4 ffn_hidden=48'
shuffled="arch=token-shuffle n_layer=2 n_head=4 ffn_hidden=48 n_kv_head=2 norm_eps=1e-5 text_vocab=20 codebook_size=40 grid_h=4 grid_w=8 shuffle_blocks=2 shuffle_hidden=40"
ids="$small rope=1d vocab_size=80 image_base=10 codebook_size=40 grid_h=4 grid_w=5"
pictures='vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_groups=4 grid_h=5 grid_w=3'
files=
# shellcheck disable=SC2086 # keys are words
{
    model shuffle-s1 $shuffled dim=32 rope=1d shuffle=1 seed=3
    model shuffle-s2 $shuffled dim=32 rope=1d shuffle=2 seed=4
    model shuffle-s4 $shuffled dim=64 rope=1d shuffle=4 seed=5
    model shuffle-2d $shuffled dim=32 rope=2d shuffle=2 eol=2 seed=6
    model ctf $shuffled dim=32 rope=1d shuffle=1 n_coarse=9 fine_dim=24 fine_n_layer=2 fine_n_head=2 fine_ffn_hidden=40 seed=7
    model c2i arch=llamagen-c2i $small n_kv_head=4 norm_eps=1e-5 rope=2d codebook_size=40 grid_h=6 grid_w=6 num_classes=5 cond_tokens=1 seed=8
    model t2i arch=llamagen-t2i $small n_kv_head=4 norm_eps=1e-5 rope=2d codebook_size=40 grid_h=4 grid_w=5 caption_dim=12 cond_tokens=6 seed=9
    model lumina arch=lumina-mgpt $ids n_kv_head=2 norm_eps=1e-6 rope_base=5000 qk_norm=2 eol=60 seed=10
    model lumina-post arch=lumina-mgpt $ids n_kv_head=4 norm_eps=1e-5 qk_norm=1 norm_order=post eol=60 seed=11
    model emu3 arch=emu3 $ids n_kv_head=2 norm_eps=1e-5 rope_base=1000000 eol=60 seed=12
    model janus arch=janus $small n_kv_head=4 norm_eps=1e-6 rope=1d vocab_size=30 codebook_size=40 grid_h=4 grid_w=5 image_embed=8 image_head=36 pad=1 seed=13
    model vq16 $pictures vq_z_channels=12 vq_embed_dim=8 vq_l2_norm=1 codebook_size=48 seed=14
    model chameleon $pictures vq_z_channels=12 vq_embed_dim=12 vq_l2_norm=0 vq_attn=mid vq_pixels=down codebook_size=48 seed=15
    model emu3-vq $pictures vq_z_channels=4 vq_embed_dim=4 vq_l2_norm=0 vq_pixels=down vq_temporal=4 codebook_size=48 seed=16
    model t5 t5_vocab=50 t5_dim=32 t5_n_layer=2 t5_n_head=4 t5_head_dim=6 t5_ffn_hidden=40 t5_buckets=16 t5_max_distance=24 t5_norm_eps=1e-6 seed=17
}

# ------------------------------------------------------------------------------------------------------------------------ cases
comma=
case_of shuffle-s1 trace shuffle-s1 'Token-Shuffle without windows: blocks, grouped heads, head' text=0,7,11,3,1 codes=4x8
case_of shuffle-s2 trace shuffle-s2 'Token-Shuffle, windows of 2 x 2 on a grid that is not square' text=0,7,11,3,1 codes=4x8
case_of shuffle-s4 trace shuffle-s4 'Token-Shuffle, windows of 4 x 4' text=0,7,11,3,1 codes=4x8
case_of shuffle-2d trace shuffle-2d 'Token-Shuffle with RoPE by row and column, and a token after each row of windows' text=0,7,11,3,1 codes=4x8
case_of ctf trace ctf 'coarse to fine: labels in sequence, and the second stage without a causal mask' text=0,7,11,1 coarse=4x8
case_of c2i trace c2i 'LlamaGen by class: RoPE by row and column, cos = sin = 0 on the condition' class=3 codes=6x6
case_of t2i trace t2i 'LlamaGen by caption: padding in front and behind, its mask' mask=0,0,1,1,1,0 codes=4x5
case_of lumina trace lumina 'Lumina-mGPT: norms of queries and keys, two rows for four and two heads; a token after each row' text=0,5,70,3,61,64,65 codes=4x5
case_of lumina-post trace lumina-post 'Lumina-mGPT with norms behind the branches' text=0,5,70,3,61,64,65 codes=4x5
case_of emu3 trace emu3 'Emu3-Gen: grouped heads, RoPE of base 1000000, a token after each row' text=0,5,7,3,61,64 codes=4x5
case_of janus trace janus 'Janus: codes through an MLP of erf GELU, in and out' text=0,5,7,3,2 codes=4x5
case_of vq16 trace vq16 'LlamaGen tokenizer: picture to codes to picture; unit length, attention at the lowest level, nearest bytes' image=10x6
case_of chameleon trace chameleon 'Chameleon tokenizer: raw codewords, attention in the middle only, truncated bytes' image=10x6
case_of emu3-vq trace emu3-vq 'Emu3 tokenizer: convolutions in time, guided norms' image=10x6
case_of vq16-codes trace vq16 'LlamaGen tokenizer: codes to picture' codes=4x6
case_of t5 trace t5 'T5 encoder: position bias in buckets, no scale' t5=$(seq -s , 2 49),9,1

# decoding: the suite's codes go in, so that each decision stands on its own
words=text=0,7,11,3,1
prefix=text=0,5,70,3,61,64,65
case_of greedy-s1 decode shuffle-s1 'raster, half-linear guidance' $words greedy=1 cfg=7.5
case_of greedy-s2 decode shuffle-s2 'windows, linear guidance' $words greedy=1 cfg=4 cfg_schedule=linear
case_of sampled-s4 decode shuffle-s4 'windows of 4 x 4, drawn, cosine guidance' $words cfg=3 cfg_schedule=cosine top_k=12 temperature=0.8 seed=2
case_of zipar-s1 decode shuffle-s1 'ZipAR, window 3: stand-ins, whose keys and values are not kept' $words greedy=1 cfg=3 decode=zipar:3
case_of zipar-s2 decode shuffle-s2 'ZipAR with windows of codes, drawn' $words cfg=3 top_p=0.9 decode=zipar:2 seed=3
case_of first-row decode c2i 'ZipAR that waits for the first row' class=2 greedy=1 cfg=4 decode=zipar:2,first-row
case_of authors decode c2i 'ZipAR as its authors have it for LlamaGen: stand-in of two rows above, unfed places count; guidance of an interval' \
    class=2 greedy=1 cfg=4 cfg_interval=2 decode=zipar:3,authors
case_of adaptive-s1 decode shuffle-s1 'the adaptive order: candidates are drawn, tested and replaced' $words cfg=2 decode=zipar-adaptive:1 seed=4
case_of adaptive-2d decode shuffle-2d 'the adaptive order with a token after each row' $words cfg=2 decode=zipar-adaptive:1 seed=5
case_of sampled-c2i decode c2i 'classes, constant guidance of an interval, drawn' class=4 cfg=2.5 cfg_interval=9 top_k=20 top_p=0.95 seed=6
case_of greedy-t2i decode t2i 'captions: the unconditional features under the mask of the caption' mask=0,0,1,1,1,0 greedy=1 cfg=7.5
case_of greedy-lumina decode lumina 'the unconditional prefix is the last three ids' $prefix greedy=1 cfg=3
case_of zipar-lumina decode lumina 'ZipAR with a token after each row: no stand-in' $prefix greedy=1 cfg=3 decode=zipar:2
case_of greedy-emu3 decode emu3 'an unconditional prefix of its own' text=0,5,7,3,61,64 text_uncond=0,9,9,61,64 greedy=1 cfg=3
case_of greedy-janus decode janus 'an unconditional prefix of pads' text=0,5,7,3,2 greedy=1 cfg=5
case_of greedy-ctf decode ctf 'labels, then codes of their clusters' text=0,7,11,1 greedy=1 cfg=3
case_of sampled-ctf decode ctf 'labels and codes, drawn' text=0,7,11,1 cfg=3 top_k=6 seed=7 decode=zipar:3

"$write" rules "$out.tmp/cases/rules.safetensors"
free=false
entry rules rules '' 'functions without a network: guidance, sampling, random numbers, decode orders, bytes'

# texts: each line of texts.txt (printf's escapes) by the test tokenizers, in their published formats
mkdir "$out.tmp/tokenizers"
while IFS= read -r line; do
    printf '%b' "$line" | od -An -v -tx1 | tr -d ' \n'
    echo
done <$here/texts.txt >"$out.tmp/texts"
text() { # NAME FILE COVERS
    "$write" text "$out.tmp/tokenizers/$2" "$out.tmp/cases/$1.safetensors" "$out.tmp/texts"
    entry "$1" text "tokenizers/$2" "$3"
}
for name in chameleon.json deepseek.json edge.json emu3; do cp -R "tests/vectors/bpe/tok/$name" "$out.tmp/tokenizers/"; done
cp tests/vectors/t5/ident.model tests/vectors/t5/t5like.model "$out.tmp/tokenizers/"
text text-chameleon chameleon.json 'byte pairs of Chameleon: six splits one after the other, ids that do not follow from ranks'
text text-deepseek deepseek.json 'byte pairs of DeepSeek-LLM (Janus): its letters, added tokens inside of words'
text text-emu3 emu3/emu3.tiktoken 'byte pairs of Emu3: NFC, specials, whole pieces first, pairs by the rank of their product'
text text-edge edge.json 'byte pairs at their edges: overlapping added tokens, repeated products'
text text-ident ident.model 'SentencePiece unigram without a map of characters'
text text-t5 t5like.model 'SentencePiece unigram with the map of nmt_nfkc'
rm "$out.tmp/texts"

cp $here/check.py $here/reference.py $here/README.md "$out.tmp/"
comma=
for file in $files $(cd "$out.tmp" && echo tokenizers/*.* tokenizers/emu3/*); do
    printf '%s\n  {"file": "%s", "sha256": "%s"}' "$comma" "$file" "$(digest "$out.tmp/$file")"
    comma=,
done >"$out.tmp/models.json"
{
    version=$("$tsar" --version | sed 's/^[^0-9]*//; s/ .*//')
    printf '{"version": "%s", "rule": "SPEC 10",\n "files": [%s],\n "cases": [' "$version" "$(cat "$out.tmp/models.json")"
    cat "$out.tmp/cases.json"
    printf '\n]}\n'
} >"$out.tmp/manifest.json"
rm "$out.tmp/models.json" "$out.tmp/cases.json"
rm -rf "$out"
mv "$out.tmp" "$out"

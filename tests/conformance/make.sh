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
    printf '%s {"file": "%s", "sha256": "%s"}' "$comma" "$file" "$(digest "$out.tmp/$file")" >>"$out.tmp/models.json"
    comma=,
}
entry() { # NAME KIND MODEL COVERS: the manifest's lines for a case that is written
    catches=$(awk -F '\t' -v name="$1" '$1 == name { printf "%s\"%s\"", n++ ? ", " : "", $3 }' $here/mistakes.tsv)
    printf '%s\n  {"name": "%s", "kind": "%s", "file": "cases/%s.safetensors", "model": "%s", "sha256": "%s",\n   "covers": "%s",\n   "catches": [%s]}' \
        "$comma" "$1" "$2" "$1" "$3" "$(digest "$out.tmp/cases/$1.safetensors")" "$4" "$catches" >>"$out.tmp/cases.json"
    comma=,
}
case_of() { # NAME KIND MODEL COVERS ARGUMENT...
    name=$1 kind=$2 model=$3 covers=$4
    shift 4
    "$write" "$kind" "$out.tmp/models/$model.safetensors" "$out.tmp/cases/$name.safetensors" "$@"
    entry "$name" "$kind" "models/$model.safetensors" "$covers"
}

# ------------------------------------------------------------------------------------------------------------------------ models
small='dim=32 n_layer=2 n_head=4 ffn_hidden=48'
shuffled="arch=token-shuffle $small n_kv_head=2 norm_eps=1e-5 text_vocab=20 codebook_size=40 grid_h=4 grid_w=8 shuffle_blocks=2 shuffle_hidden=40"
comma=
# shellcheck disable=SC2086 # keys are words
{
    model shuffle-s1 $shuffled rope=1d shuffle=1 seed=3
    model shuffle-s2 $shuffled rope=1d shuffle=2 seed=4
    model shuffle-s4 $shuffled rope=1d shuffle=4 seed=5
}

# ------------------------------------------------------------------------------------------------------------------------ cases
comma=
case_of shuffle-s1 trace shuffle-s1 'Token-Shuffle without windows: blocks, grouped heads, head' text=0,7,11,3,1 codes=4x8
case_of shuffle-s2 trace shuffle-s2 'Token-Shuffle, windows of 2 x 2 on a grid that is not square' text=0,7,11,3,1 codes=4x8
case_of shuffle-s4 trace shuffle-s4 'Token-Shuffle, windows of 4 x 4' text=0,7,11,3,1 codes=4x8

cp $here/check.py $here/reference.py $here/README.md "$out.tmp/"
{
    printf '{"version": "%s", "rule": "SPEC 10",\n "models": [%s],\n "cases": [' "$("$tsar" --version | sed 's/^[^0-9]*//; s/ .*//')" "$(cat "$out.tmp/models.json")"
    cat "$out.tmp/cases.json"
    printf '\n]}\n'
} >"$out.tmp/manifest.json"
rm "$out.tmp/models.json" "$out.tmp/cases.json"
rm -rf "$out"
mv "$out.tmp" "$out"

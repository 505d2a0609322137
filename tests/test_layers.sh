#!/bin/sh
# Calls go one way. Each file may call those that stand above it in this table, no other and not itself in a circle: read from the objects' symbols
# (nm), so that it holds for what is linked, not for what is said. A file that is not in the table is an error: give it its place.
set -u
BUILD=${BUILD:-.build}
NM=${NM:-nm}
table='
files/base
files/decimal files/system files/json
files/source files/output files/names
files/zip files/pickle files/safetensors files/picture
files/torch
files/checkpoint
unicode numbers config
split pattern spiece prompts files/npy
bpe caption
text tokenizer
model
synth t5 prompt state
tsar
vq sampler
record info cluster condition flags
job
import_settings import_names
import_config import_text import_infer
import
paths
tests/selfcheck tests/trace tests/bench
tests/judge
tests/report tests/rounded
tests/decisions
tests/verify
main
'
command -v "$NM" >/dev/null 2>&1 || { echo 'no nm here: skipped'; echo '0 passed, 0 failed'; exit 0; }
dir=$BUILD/layers
mkdir -p "$dir"
: >"$dir/symbols"
# Objects of today's sources only: an old build folder may hold others.
for source in main.c tsar.c vq.c sampler.c weights/*.c weights/files/*.c tests/verify.c tests/trace.c tests/selfcheck.c tests/bench.c tests/[a-z]*.c; do
    object=$BUILD/${source%.c}.o
    [ -f "$object" ] || continue
    name=${source%.c}
    case $name in weights/files/*) name=files/${name##*/} ;; weights/*) name=${name##*/} ;; esac
    "$NM" "$object" | awk -v file="$name" '$1 == "U" { print "calls", file, $2 } $2 ~ /^[TDBRVC]$/ { print "has", file, $3 }' >>"$dir/symbols"
done
echo "$table" | awk 'NF { row++; for (i = 1; i <= NF; i++) print "place", $i, row }' | sort -u - "$dir/symbols" | awk '
    $1 == "place" { place[$2] = $3 }
    $1 == "has" { owner[$3] = $2 }
    $1 == "calls" { user[++n] = $2; symbol[n] = $3 }
    END {
        for (i = 1; i <= n; i++) {
            to = owner[symbol[i]]
            if (to == "" || to == user[i]) continue
            if (!((user[i], to) in arrow)) arrows++
            arrow[user[i], to] = symbol[i]
            if (!(user[i] in place)) { print "FAILED " user[i] " has no place in the table"; failed++; place[user[i]] = 1e9 }
            if (!(to in place)) { print "FAILED " to " has no place in the table"; failed++; place[to] = 0 }
        }
        for (pair in arrow) {
            split(pair, name, SUBSEP)
            if (place[name[2]] < place[name[1]]) { passed++; continue }
            print "FAILED " name[1] " calls " name[2] " (" arrow[pair] "), which does not stand above it" ((name[2], name[1]) in arrow ? " and calls it back" : "")
            failed++
        }
        if (arrows < 50) { print "FAILED only " arrows + 0 " arrows were found: are there objects in the build folder?"; failed++ }
        print passed + 0 " passed, " failed + 0 " failed"
        exit failed > 0
    }'

#!/bin/sh
# Scores as tables, and the study: rows of Markdown, the agreement of decode orders against a count of its own, a study that resumes.
# Synthetic models: their pictures are noise, and the referee finds none right. Usage: test_study.sh [TRAIN] [TSAR]
TRAIN=${1:-${BUILD:-.build}/trainer}
TSAR=${2:-${TSAR:-${BUILD:-.build}/tsar}}
HERE=$(dirname "$0")
WORK=$(mktemp -d) || exit 1
trap 'rm -rf "$WORK"' EXIT
export OMP_WAIT_POLICY=passive LC_ALL=C
passed=0
failed=0

check() { # check WHAT GOT WANTED
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
    else
        echo "FAILED test_study.sh: $1: '$2', not '$3'"
        failed=$((failed + 1))
    fi
}

synth() { # synth NAME KEY=VALUE...: pictures of 128 x 128 pixels from 8 x 8 codes
    name=$1
    shift
    "$TSAR" synth -q arch=token-shuffle dim=16 n_layer=1 n_head=1 n_kv_head=1 ffn_hidden=32 norm_eps=1e-5 rope=1d text_vocab=259 codebook_size=48 \
        grid_h=8 grid_w=8 vq_ch=2 vq_ch_mult=1,1,1,1,1 vq_res_blocks=1 vq_z_channels=4 vq_embed_dim=4 vq_groups=1 vq_l2_norm=1 seed=3 "$@" \
        -o "$WORK/tsar-$name.safetensors" || check "synth $name" failed made
}
synth s1 shuffle=1
synth s2 shuffle=2 shuffle_blocks=2 shuffle_hidden=16
synth ctf shuffle=1 n_coarse=6 fine_dim=16 fine_n_layer=1 fine_n_head=1 fine_ffn_hidden=16

score() { # score MODEL FLAGS...
    model=$1
    shift
    "$TRAIN" score --model "$WORK/tsar-$model.safetensors" -n 2 "$@" 2>"$WORK/log"
}
field() { cut -d '|' -f "$1" | sed 's/^ *//; s/ *$//'; } # of a row of Markdown
numbers() { # the I64 codes of a file, one on each line
    length=$(od -A n -t u1 -N 8 "$1" | awk '{ n = 0; for (i = 8; i > 0; i--) n = 256 * n + $i; print n }')
    tail -c +$((length + 9)) "$1" | od -A n -v -t d8 | tr -s ' ' '\n' | sed '/^$/d'
}

# A row and its head.
score s2 --markdown 'a row' -o "$WORK/raster" >"$WORK/row"
check 'columns of a row' "$(tr -dc '|' <"$WORK/row" | wc -c | tr -d ' ')" "$("$TRAIN" score --header | sed -n 1p | tr -dc '|' | wc -c | tr -d ' ')"
check 'head and rule' "$("$TRAIN" score --header | tr -dc '|\n' | uniq | wc -l | tr -d ' ')" 1
check 'name' "$(field 2 <"$WORK/row")" 'a row'
check 'guidance' "$(field 3 <"$WORK/row")" 'half-linear 7.5'
check 'a share of noise' "$(field 5 <"$WORK/row")" 0.000
# Wilson's upper bound for 0 of n is z^2 / (n + z^2).
check 'interval' "$(field 11 <"$WORK/row")" "$(awk 'BEGIN { z = 1.959964; printf "0.000 (0.000 to %.3f)", z * z / (12 + z * z) }')"
check 'passes' "$(field 12 <"$WORK/row")" 16.0
score s2 --markdown x --cfg 1 --temperature 0.5 --top-k 20 --top-p 0.9 --held-out >"$WORK/row"
check 'settings' "$(field 3,4 <"$WORK/row")" 'none | T 0.5, top-k 20, top-p 0.9'
check 'held-out categories' "$(field 5-9 <"$WORK/row")" '| | | | 0.000'
check 'columns of the tokenizer' "$("$TRAIN" score-vq --model "$WORK/tsar-s2.safetensors" -n 2 --markdown x | tr -dc '|')" "$("$TRAIN" score-vq --header | sed -n 1p | tr -dc '|')"
check 'PSNR has an interval' "$("$TRAIN" score-vq --model "$WORK/tsar-s2.safetensors" -n 4 | sed 's/[0-9][0-9.]*/N/g')" \
    'PSNR N dB (mean over pictures N +- N dB), N of N codes in use, N of N judged like their originals: N (N ... N)'

# Agreement: a window as wide as the row is raster order; for others every equal code is counted here once more. Two threads, same codes.
for run in s1 s2 's2 --greedy' 'ctf --greedy'; do
    # shellcheck disable=SC2086 # splits it
    set -- $run
    m=$1
    shift
    score "$m" -n 1 "$@" -o "$WORK/raster" --threads 2 >/dev/null
    check "$run, codes" "$(numbers "$WORK/raster" | wc -l | tr -d ' ')" 384
    check "$run, zipar:8" "$(score "$m" -n 1 "$@" --decode zipar:8 --agreement "$WORK/raster" --markdown x | field 16)" '1.000 ± 0.000'
    ours=$(score "$m" -n 1 "$@" --decode zipar:1 --agreement "$WORK/raster" -o "$WORK/other" --markdown x | field 16)
    numbers "$WORK/raster" >"$WORK/raster.txt"
    numbers "$WORK/other" | paste - "$WORK/raster.txt" >"$WORK/pairs"
    check "$run, zipar:1" "$ours" "$(awk '{ equal += $1 == $2 } NR % 64 == 0 { p = equal / 64; sum += p; squares += p * p; n++; equal = 0 }
        END { m = sum / n; printf "%.3f ± %.3f", m, 1.959964 * sqrt((squares / n - m * m) / (n - 1)) }' "$WORK/pairs")"
done
check 'some codes differ' "$(awk '$1 != $2' "$WORK/pairs" | sed -n '$=' | sed 's/..*/yes/')" yes
score s2 --agreement "$WORK/raster" >/dev/null
check 'codes of another run' "$? $(cut -d ' ' -f 1-6 "$WORK/log" | sed 's,/.*/,,')" '3 train: raster is of another run'
score s2 --agreement "$WORK/tsar-s2.safetensors" >/dev/null
check 'no codes' $? 3

# The study: skips what is missing, keeps each row, makes it anew with another model.
study() { TSAR_TRAINING=$WORK/state STUDY_MODELS=$WORK STUDY_N=1 STUDY_THREADS=1 STUDY_OUT=$WORK/$1 STUDY_ROWS=$2 \
    sh "$HERE/../weights/train/study.sh" "$TRAIN" "$TSAR" 2>"$WORK/log"; }
study first '*-default' || check 'the study' "$(tail -n 1 "$WORK/log")" made
check 'a missing model' "$(grep -c 'row 3 of 3: s4-default: tsar-s4.safetensors is missing, skipped' "$WORK/log")" 1
check 'a note about it' "$(grep -c 'the file is not there: tsar-s4.safetensors' "$WORK/first")" 1
check 'rows' "$(grep -c '^| s = [12] | half-linear 7.5 | T 1 | 0.000 |' "$WORK/first")" 2
check 'step counts' "$(awk -F ' *[|] *' '/\(passes\)|\(tokens\)/ { print $3, $4 }' "$WORK/first" | tr '\n' ';')" \
    '224 224;312 312;400 400;4096 4096;1024 1024;16384 16384;4096 4096;'
study second '*-default'
check 'known rows' "$(grep -c 'known already' "$WORK/log")" 2
check 'the same page' "$(cmp "$WORK/first" "$WORK/second" && echo same)" same
rm "$WORK/state/study/s1-default.txt"
study second '*-default'
check 'a row that was interrupted' "$(grep -c 'known already' "$WORK/log") $(grep -c 'row 1 of 3: s1-default \.\.\.' "$WORK/log")" '1 1'
synth s1 shuffle=1 default_temperature=0.5
study second '*-default'
check 'another model' "$(grep -c 'known already' "$WORK/log") $(grep -c '^| s = 1 | half-linear 7.5 | T 0.5 |' "$WORK/second")" '1 1'
study second 'ctf-*'
check 'orders' "$(grep '^| zipar:' "$WORK/second" | field 2,3,11 | tr '\n' ';')" 'zipar:2 | T 1 | 22.0;zipar:4 | T 1 | 36.0;zipar:2 | greedy | 22.0;zipar:4 | greedy | 36.0;'

# The figure: the shipped one shows the points of the shipped page; a point that is none is refused.
study_dir=$HERE/../weights/train
sh "$study_dir/figure.sh" "$TRAIN" "$study_dir/STUDY.md" "$WORK/study.ppm" || check 'the figure' failed drawn
check 'study.png is of STUDY.md' "$(python3 - "$study_dir/study.png" "$WORK/study.ppm" <<'END'
import struct, sys, zlib
png, ppm = (open(name, "rb").read() for name in sys.argv[1:])
at, packed = 8, b""
while at < len(png):
    size, kind = struct.unpack(">I4s", png[at:at + 8])
    if kind == b"IHDR": W, H = struct.unpack(">II", png[at + 8:at + 16])
    if kind == b"IDAT": packed += png[at + 8:at + 8 + size]
    at += size + 12
rows, above, out = zlib.decompress(packed), bytes(3 * W), b""
def paeth(a, b, c):
    return min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
for y in range(H):
    row, kind = bytearray(rows[y * (3 * W + 1) + 1:(y + 1) * (3 * W + 1)]), rows[y * (3 * W + 1)]
    for i in range(3 * W if kind else 0):
        a, b, c = row[i - 3] if i > 2 else 0, above[i], above[i - 3] if i > 2 else 0
        row[i] = row[i] + (0, a, b, (a + b) // 2, paeth(a, b, c))[kind] & 255
    above = bytes(row)
    out += above
print("same" if ppm == b"P6\n%d %d\n255\n" % (W, H) + out else "other pixels")
END
)" same
for line in 'a	s	left	64	0.5	0.4' 'a	s	left	64	0.5	0.6	0.7' 'a	s	left	0	0.5	0.4	0.7' 'a	s	left	64	x	0.4	0.7' ''; do
    printf 'title\n%s\n' "$line" | "$TRAIN" figure -o "$WORK/none.ppm" 2>"$WORK/log"
    check "no point: $line" "$? $(grep -c 'line 2 of standard input' "$WORK/log")" '3 1'
done
check 'no points' "$("$TRAIN" figure -o "$WORK/none.ppm" </dev/null 2>&1 | grep -c 'has no point')" 1

STUDY_N=0 sh "$HERE/../weights/train/study.sh" "$TRAIN" "$TSAR" 2>/dev/null
check 'no pictures' $? 2

echo "$passed passed, $failed failed"
[ $failed -eq 0 ]

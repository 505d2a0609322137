#!/bin/sh
# The study (`make study`): scores the shipped models in every setting, writes the tables to weights/train/STUDY.md and draws
# weights/train/study.png from them (figure.sh).
#
#     sh weights/train/study.sh TRAIN TSAR
#
# Interrupt it at any time: each finished row is kept under TSAR_TRAINING (default: the user's cache directory), and the same command
# continues. A row is made anew when its model, its settings, the scenes or the referee have changed; to measure seconds anew remove
# "study" from that folder. A picture of s = 2 takes 0.16 to 0.19 seconds of one core of Zen 5, 0.13 of them for
# the tokenizer, one of s = 1 0.24: the 46 rows of s = 2 with 600 pictures each took 42 minutes with two threads; all 67 rows are estimated at 65 minutes.
#
#     STUDY_N         pictures of each category (100; held-out rows take three times as many of their two)
#     STUDY_THREADS   2; takes effect where train was built with OMP=1
#     STUDY_ROWS      only rows whose name fits this pattern, for example 's2-*'; the tables then go to standard output. Rows of
#                     decode orders need those named *-raster-*
#     STUDY_MODELS    folder of the models (weights)
#     STUDY_OUT       where the tables go; - is standard output
set -eu
TRAIN=$1
TSAR=$2
here=$(dirname "$0")
n=${STUDY_N:-100}
threads=${STUDY_THREADS:-2}
pattern=${STUDY_ROWS:-*}
models=${STUDY_MODELS:-$here/..}
if [ "$pattern" = '*' ]; then page=$here/STUDY.md; else page=-; fi
out=${STUDY_OUT:-$page}
state=${TSAR_TRAINING:-${XDG_CACHE_HOME:-$HOME/.cache}/tsar}/study
export OMP_WAIT_POLICY=passive LC_ALL=C # a thread that waits sleeps, so that processor time is work
case $n in '' | 0* | *[!0-9]*)
    echo "study: STUDY_N is $n; give a number of pictures" >&2
    exit 2
    ;;
esac
mkdir -p "$state"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

# ---- one row --------------------------------------------------------------------------------------------------------

digest() { # of standard input
    if command -v sha256sum >/dev/null 2>&1; then sha256sum; else cksum; fi | cut -d ' ' -f 1
}

world=$(cat "$here/scenes.c" "$here/scenes.h" "$here/shapes.c" "$here/shapes.h" "$here/referee.c" | digest)

# What a row depends on beside its settings: its model file, and the tokenizer, which another file may hold: known by what it
# makes of four codes.
printf '\100\0\0\0\0\0\0\0{"codes":{"dtype":"U8","shape":[2,2],"data_offsets":[0,4]}}     \001\002\003\004' >"$work/codes"
model_digest() { # MODEL
    "$TSAR" decode -q -m "$1" "$work/codes" -o "$work/four.ppm" >&2
    cat "$1" "$work/four.ppm" | digest
}

total=0
count=0
running=no

# row TABLE ID NAME MODEL COMMAND FLAGS...: one line of a table. $state/ID.txt holds its key and the line, in which @ stands for NAME.
row() {
    table=$1 id=$2 name=$3 model=$4
    shift 4
    # shellcheck disable=SC2254 # a pattern it is
    case $id in $pattern) ;; *) return 0 ;; esac
    count=$((count + 1))
    if [ $running = no ]; then return 0; fi
    if [ ! -f "$models/$model" ]; then
        echo "row $count of $total: $id: $model is missing, skipped" >&2
        echo "$model" >>"$work/$table.missing"
        return 0
    fi
    key=$(printf '%s\n' "$world" "$(model_digest "$models/$model")" "$n" "$@" | digest)
    if [ "$(sed -n 1p "$state/$id.txt" 2>/dev/null)" = "$key" ]; then
        echo "row $count of $total: $id: known already" >&2
    else
        echo "row $count of $total: $id ..." >&2
        rm -f "$state/$id.txt"
        "$TRAIN" "$@" --model "$models/$model" --threads "$threads" --markdown @ >"$work/line"
        { echo "$key" && cat "$work/line"; } >"$state/$id.tmp"
        mv "$state/$id.tmp" "$state/$id.txt"
    fi
    sed 1d "$state/$id.txt" >"$work/line"
    line=$(cat "$work/line")
    printf '| %s |%s\n' "$name" "${line#| @ |}" >>"$work/$table.rows"
}

# ---- the rows ---------------------------------------------------------------------------------------------------------

sizes() {
    for s in 1 2 4; do row shuffle "s$s-default" "s = $s" "tsar-s$s.safetensors" score -n "$n"; done
    for s in 1 2 4; do row shuffle "s$s-held-out" "s = $s, held-out combinations" "tsar-s$s.safetensors" score -n $((3 * n)) --held-out; done
}

guidance() {
    row guidance s2-cfg-none none tsar-s2.safetensors score -n "$n" --cfg 1
    for schedule in constant linear half-linear cosine; do
        for scale in 1.5 3 5 7.5; do
            row guidance "s2-cfg-$schedule-$scale" "$schedule $scale" tsar-s2.safetensors score -n "$n" --cfg $scale --cfg-schedule $schedule
        done
    done
}

sampling() {
    for t in 0.5 0.7 0.85 1 1.15; do row sampling "s2-t-$t" "temperature $t" tsar-s2.safetensors score -n "$n" --temperature $t; done
    for k in 2 5 20; do row sampling "s2-top-k-$k" "top-k $k" tsar-s2.safetensors score -n "$n" --top-k $k --top-p 1; done
    for p in 0.3 0.8; do row sampling "s2-top-p-$p" "top-p $p" tsar-s2.safetensors score -n "$n" --top-p $p; done
    row sampling s2-greedy greedy tsar-s2.safetensors score -n "$n" --greedy
}

# orders MODEL CHOICES ORDER...: each order sampled or greedy or both, compared with the codes that raster order gives with the same
# draws. These are kept beside raster's row, under a digest of world and model; a row without them is made again.
orders() {
    m=$1 choices=$2
    shift 2
    of=
    if [ $running = yes ] && [ -f "$models/tsar-$m.safetensors" ]; then of=$(echo "$world $(model_digest "$models/tsar-$m.safetensors")" | digest | cut -c 1-16); fi
    for choice in $choices; do
        codes=$state/$m-raster-$choice-$of.codes
        if [ -n "$of" ] && [ ! -f "$codes" ]; then rm -f "$state/$m-raster-$choice.txt" "$state/$m-raster-$choice-"*.codes; fi
        greedy=
        if [ $choice = greedy ]; then greedy=--greedy; fi
        row "orders-$m" "$m-raster-$choice" raster "tsar-$m.safetensors" score -n "$n" ${greedy:+"$greedy"} -o "$codes"
        for order in "$@"; do
            row "orders-$m" "$m-$(echo "$order" | tr : -)-$choice" "$order" "tsar-$m.safetensors" score -n "$n" ${greedy:+"$greedy"} --decode "$order" --agreement "$codes"
        done
    done
}

rows() {
    sizes
    guidance
    sampling
    row vq vq 'tokenizer of all models' tsar-s2.safetensors score-vq -n $((6 * n))
    orders s1 sampled zipar:1 zipar:2 zipar:4 zipar:8 zipar:16 zipar-adaptive:1 zipar-adaptive:2 zipar-adaptive:4
    orders s2 'sampled greedy' zipar:1 zipar:2 zipar:4 zipar:8 zipar-adaptive:1 zipar-adaptive:2 zipar-adaptive:4
    orders ctf 'sampled greedy' zipar:2 zipar:4
    row orders-ctf ctf-held-out 'raster, held-out combinations' tsar-ctf.safetensors score -n $((3 * n)) --held-out
}

# ---- the papers' step counts --------------------------------------------------------------------------------------------

# What `tsar info` says of models of those shapes, beside the papers' numbers; they must agree.
step_counts() {
    "$TSAR" synth -q arch=token-shuffle dim=16 n_layer=1 n_head=1 n_kv_head=1 ffn_hidden=16 norm_eps=1e-5 rope=1d text_vocab=259 codebook_size=16 \
        grid_h=24 grid_w=24 shuffle=1 -o "$work/24x24.safetensors"
    "$TSAR" info "$work/24x24.safetensors" >"$work/info"
    awk 'BEGIN { paper["zipar:16"] = 400; paper["zipar:12"] = 312; paper["zipar:8"] = 224
                 paper["1024 1"] = 4096; paper["1024 2"] = 1024; paper["2048 1"] = 16384; paper["2048 2"] = 4096 }
         function put(what, key, ours) { printf "| %s | %s | %d |\n", what, ours, paper[key]; seen++; wrong += ours != paper[key] }
         $1 in paper { put("ZipAR, 24 x 24 tokens, window " substr($1, 7) ", first row whole (passes)", $1, $3) }
         ($1 " " $2) in paper { put("Token-Shuffle, " $1 " x " $1 " pixels, 16 a code, s = " $2 " (tokens)", $1 " " $2, $3) }
         END { exit seen != 7 || wrong }' "$work/info" >"$work/steps" || {
        echo 'study: the step counts of tsar info are not those of the papers' >&2
        cat "$work/steps" >&2
        exit 1
    }
}

# ---- the page -----------------------------------------------------------------------------------------------------------

# table TABLE HEADING FIELDS COMMAND: the columns FIELDS of the rows under the head that `train COMMAND --header` prints; the text from standard
# input stands above it.
table() {
    text=$(cat)
    [ -f "$work/$1.rows" ] || [ -f "$work/$1.missing" ] || return 0
    printf '\n## %s\n\n%s\n' "$2" "$text"
    if [ -f "$work/$1.rows" ]; then
        echo
        { "$TRAIN" "$4" --header && cat "$work/$1.rows"; } | cut -d '|' -f "$3"
    fi
    if [ -f "$work/$1.missing" ]; then printf '\nNot measured, because the file is not there: %s.\n' "$(sort -u "$work/$1.missing" | tr '\n' ' ' | sed 's/ $//')"; fi
}

page() {
    cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo 2>/dev/null | sed -n 1p)
    cat <<END
# The study

![Quality against forward passes](study.png)

W is ZipAR's window (the smallest one where it is adaptive), s the window of Token-Shuffle; the models' own sampling. Each point has its row in a table below.

END
    cat "$here/differences.md"
    cat <<END

Made by \`make study\`: every row is $((6 * n)) pictures, $n of each category of the mini-GenEval, unless it says otherwise. Captions are drawn from the
same grammar as those of training, from another seed. A share is the part of pictures that the referee (weights/train/referee.c) finds right; behind the overall share stands its 95 %
interval (Wilson); one category alone is uncertain by up to ± $(awk "BEGIN { printf \"%.2f\", 0.98 / sqrt($n + 3.84) }"). Rows share captions and random numbers, so that a
difference between two of them is more certain than their intervals alone suggest.

Seconds are processor time of one picture: text, transformer and tokenizer, in double, one picture at a time in each of $threads threads (${cpu:-$(uname -m)}); rows that were known
already keep those of their own run.
"T" is the temperature. The settings that a row does not name are the model's own.
END
    agreement='The last column is the share of codes that are those of raster order with the same prompt, settings and random numbers: the mean over pictures
and half the width of its 95 % interval.'
    table shuffle 'Token-Shuffle: the window s' 1-14,17 score <<END
A window of s x s codes is one token of the transformer. Held-out combinations, of which training shows none, exist in two categories; their rows are of three times as many pictures of each.
END
    table guidance 'Guidance' 1,2,5-13,17 score <<END
Scale and schedule of classifier-free guidance, s = 2. "None" runs one sequence in place of two.
END
    table sampling 'Sampling' 1-13,17 score <<END
One setting changed at a time, s = 2; top-k without top-p.
END
    table vq 'The tokenizer' 1- score-vq <<END
$((6 * n)) unseen scenes, half of them with held-out combinations, encoded and decoded. Behind the mean of the pictures' PSNR stands half the width of its 95 % interval.
END
    table orders-s1 'Decode orders, s = 1' 1,2,4-13,16,17 score <<END
$agreement
END
    table orders-s2 'Decode orders, s = 2: Token-Shuffle with ZipAR' 1,2,4-13,16,17 score <<END
Sampled and greedy; a pass decodes whole windows. $agreement
END
    table orders-ctf 'Coarse-to-fine, and with ZipAR' 1,2,4-13,15-17 score <<END
Stage one decodes labels in the given order, stage two all codes at once, in one pass more. Its part of the time of both stages, the tokenizer left out, stands beside. $agreement
END
    printf '\n## Step counts of the papers\n\n| | tsar info | paper |\n| --- | ---: | ---: |\n'
    cat "$work/steps"
}

rows # counts them
total=$count
count=0
running=yes
step_counts
rows
page >"$work/page"
if [ "$out" = - ]; then
    cat "$work/page"
else
    cp "$work/page" "$out.tmp"
    mv "$out.tmp" "$out"
    echo "study: $out is written" >&2
fi
if [ "$out" = "$here/STUDY.md" ]; then sh "$here/figure.sh" "$TRAIN" "$out" "$here/study.png"; fi

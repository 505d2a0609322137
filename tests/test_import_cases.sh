#!/bin/sh
# What people really have: every case of tests/checkpoints.py gives the model file of the plain state dict, or the status and the sentence that are due.
set -u
. tests/check.sh
dir=$BUILD/import_cases
check_log=$dir/log
rm -rf "$dir"
mkdir -p "$dir/in"
if ! command -v python3 >/dev/null 2>&1; then
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
python3 tests/checkpoints.py cases "$dir/in" >"$dir/cases" || exit 1
# shellcheck disable=SC2086 # arguments are words
set -- n_head=4 grid_h=4 grid_w=4

same() { # FILE ARGUMENTS...: imports to the bytes of the first case
    "$TSAR" import "$@" -o "$dir/out" >"$dir/said" 2>&1 || { cat "$dir/said" && return 1; }
    if [ ! -f "$dir/truth" ]; then cp "$dir/out" "$dir/truth"; fi
    cmp "$dir/out" "$dir/truth"
}

ends() { # STATUS SENTENCE FILE ARGUMENTS...: that status, that sentence, one line of error; no model file if it fails
    wanted=$1
    sentence=$2
    shift 2
    rm -f "$dir/out"
    "$TSAR" import "$@" -o "$dir/out" >"$dir/said" 2>&1
    status=$?
    if [ $status -ne "$wanted" ]; then echo "status $status: $(tail -n 1 "$dir/said")" && return 1; fi
    if [ $status -ne 0 ] && [ -f "$dir/out" ]; then echo "a model file is left behind" && return 1; fi
    if ! grep -qF -- "$sentence" "$dir/said"; then echo "said: $(tail -n 1 "$dir/said")" && return 1; fi
}

tab=$(printf '\t')
while IFS=$tab read -r file expect arguments; do
    case $expect in
    same) # shellcheck disable=SC2086
        check "$file" same "$dir/in/$file" "$@" $arguments ;;
    *) # what wrong_* give stands in place of the usual argument
        plain="$*"
        case $file in wrong_n_head*) plain='grid_h=4 grid_w=4' ;; wrong_grid_h*) plain='n_head=4 grid_w=4' ;; esac
        # shellcheck disable=SC2086
        check "$file" ends "${expect%% *}" "${expect#"${expect%% *}"}" "$dir/in/$file" $plain $arguments ;;
    esac
done <"$dir/cases"

# nothing of a checkpoint is run, and the note names what it would have been
"$TSAR" import "$dir/in/system.pt" "$@" -o "$dir/out" 2>"$dir/said"
check "system is named" grep -q 'os_stand_in.system' "$dir/said"
check "nothing was run" test ! -e was_run

# a file that gives nothing is an error, whatever the others hold
check "a file without a part" ends 3 'none of its' "$dir/in/good.pt" "$dir/in/unknown.pt" "$@"
check "shards without an index" same "$dir/in/bin/pytorch_model-0.bin" "$dir/in/bin/pytorch_model-1.bin" "$@"
check "a part twice" ends 3 'give each part of the model once' "$dir/in/good.pt" "$dir/in/top.pt" "$@"
check "a folder without weights" ends 3 'is a folder without' "$dir" "$@"

# without a row for "no class" nothing guides
"$TSAR" import "$dir/in/no_null.pt" "$@" num_classes=3 -o "$dir/model" --quiet
guided() { ! "$TSAR" generate -m "$dir/model" --class 1 --cfg 2 --codes "$dir/codes" --quiet 2>"$dir/said" && grep -q 'no class' "$dir/said"; }
check "guidance without a null class is refused" guided
check "no guidance without a null class" "$TSAR" generate -m "$dir/model" --class 2 --cfg 1 --codes "$dir/codes" --quiet

# every command that opens a file says what it is instead
says() { # SENTENCE COMMAND...
    sentence=$1
    shift
    "$TSAR" "$@" >"$dir/said" 2>&1
    status=$?
    if [ $status -ne 3 ] || ! grep -qF "$sentence" "$dir/said"; then echo "status $status: $(cat "$dir/said")" && return 1; fi
}
for kind in 'lfs.safetensors:is a Git LFS pointer' 'page.pt:is an HTML page' 'packed.pt:is compressed with gzip' 'good.pt:is a zip archive' \
    'legacy2.pt:is a PyTorch checkpoint'; do
    file=$dir/in/${kind%%:*}
    is=${kind#*:}
    check "info $file" says "$is" info "$file"
    check "generate $file" says "$is" generate -m "$file" --class 1 --codes "$dir/codes"
    check "verify $file" says "$is" verify -m "$dir/model" "$file"
    check "encode $file" says "$is" encode -m tests/../weights/tsar-s1.safetensors "$file" -o "$dir/codes"
    check "text $file" says "$is" text "$file" x
    check "synth --like $file" says "$is" synth --like "$file" -o "$dir/out"
done

# rounding to bfloat16 is that of synth, from every dtype
for type in f32 bf16; do
    "$TSAR" synth arch=llamagen-c2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-05 rope=2d rope_base=10000 codebook_size=8 grid_h=2 grid_w=2 cond_tokens=1 \
        num_classes=2 seed=3 --dtype $type -o "$dir/$type" --quiet
done
rounds() { "$TSAR" import "$dir/f32" --dtype bf16 -o "$dir/out" --quiet && cmp "$dir/out" "$dir/bf16"; }
check "--dtype bf16" rounds
once() { "$TSAR" import "$dir/in/wide.pt" "$@" --dtype bf16 -o "$dir/out" --quiet && "$TSAR" import "$dir/in/narrow.safetensors" "$@" -o "$dir/bf16" --quiet &&
    cmp "$dir/out" "$dir/bf16"; }
check "--dtype bf16 rounds F64 once" once "$@"
check "--dtype f16" ends 2 'rounds them to bf16' "$dir/f32" --dtype f16
check_end

#!/bin/sh
# The conformance suite (tests/conformance): two builds are identical, the numpy reference passes it, each of the catalogue's mistakes is told at its case.
# What needs numpy is skipped, and said so, where python3 has none.
set -u
. tests/check.sh
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
check_log=$dir/log
PYTHONDONTWRITEBYTECODE=1
export PYTHONDONTWRITEBYTECODE
python=
for p in ${PYTHON:-python3} /usr/bin/python3; do
    [ -n "$python" ] || ! "$p" -c 'import numpy' 2>/dev/null || python=$p
done

check 'the suite is written' sh tests/conformance/make.sh "$dir/suite" "$TSAR" "$BUILD/conformance/write"
check 'and again' sh tests/conformance/make.sh "$dir/again" "$TSAR" "$BUILD/conformance/write"
check 'two builds are identical' diff -r "$dir/suite" "$dir/again"
check 'at most 20 MB' sh -c "[ \$(du -sk '$dir/suite' | cut -f 1) -le 20480 ]"
if [ -z "$python" ]; then
    echo 'skipped: python3 has no numpy (Debian: apt-get install python3-numpy)'
    echo "$passed passed, $failed failed, 1 skipped"
    [ $failed -eq 0 ]
    exit
fi
check 'a reference writes its files' "$python" tests/conformance/reference.py "$dir/suite" "$dir/theirs"
check 'and passes' "$python" "$dir/suite/check.py" "$dir/suite" "$dir/theirs" --all --json "$dir/verdicts.json"
check 'the verdicts are JSON' "$python" -c "import json; assert json.load(open('$dir/verdicts.json'))['differ'] == 0"
# Another implementation in another framework, in two precisions.
if "$python" -c 'import torch' 2>/dev/null; then
    mkdir "$dir/torch"
    for precision in float32 bfloat16; do
        check "torch in $precision writes its file" "$python" tests/hooks/shuffle.py trace "$dir/suite/models/shuffle-s2.safetensors" \
            "$dir/suite/cases/shuffle-s2.safetensors" "$dir/torch/shuffle-s2.safetensors" $precision
        check "torch in $precision passes" "$python" "$dir/suite/check.py" "$dir/suite" "$dir/torch" --only shuffle-s2 --all
    done
    check 'products of bf16 do not pass as F32' sh -c "! '$python' '$dir/suite/check.py' '$dir/suite' '$dir/torch' --only shuffle-s2 --precision f32"
fi
count() { # COMMAND...: whose last line is "N passed, N failed"
    "$@" >"$dir/counted"
    cat "$dir/counted"
    line=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$dir/counted" | tail -n 1)
    [ -n "$line" ] || line='0 passed, 1 failed'
    passed=$((passed + ${line%% *}))
    line=${line#* passed, }
    failed=$((failed + ${line%% *}))
}
check 'the reference writes float16' "$python" tests/conformance/reference.py "$dir/suite" "$dir/half" --dtype float16
count "$python" tests/conformance/verdicts.py "$dir/suite" "$dir/half"
count "$python" tests/conformance/mutations.py "$dir/suite"
check_end

#!/bin/sh
# The page in the browser: built, its digests those of the command line (under node, the same WebAssembly), every control used in headless Chromium. What
# is not installed is skipped: clang with wasm32-wasi and its linker, node, Chromium (CHROMIUM names another). PAGE=all: all combinations of ten captions,
# the models and the orders. PAGE_SHOTS=DIR: screenshots into DIR.
set -u
. tests/check.sh
CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome)}
dir=$(mktemp -d) || exit 1
trap 'rm -rf "$dir"' EXIT
check_log=$dir/log
skipped=0

programs() { # a test of page.js; its counts are added
    node tests/page.js "$@" >"$dir/out" 2>&1
    grep -v '^[0-9]* passed' "$dir/out"
    line=$(grep '^[0-9]* passed, [0-9]* failed' "$dir/out" | tail -n 1)
    if [ -z "$line" ]; then line='0 passed, 1 failed'; fi
    passed=$((passed + ${line%% *}))
    line=${line#*, } failed=$((failed + ${line%% *}))
}

echo 'int page_probe(void) { return 0; }' >"$dir/probe.c"
wasm=$(make -s wasm-cc)
if ! command -v node >/dev/null 2>&1 || ! $wasm --target=wasm32-wasi -mexec-model=reactor -o "$dir/probe" "$dir/probe.c" >/dev/null 2>&1; then
    echo 'no node, or no clang for wasm32-wasi with wasi-libc and lld: skipped'
    echo '0 passed, 0 failed, 1 skipped'
    exit 0
fi
check 'the page is built' make -s page BUILD="$BUILD"
check 'weights/page stays below 900 lines' test "$(cat weights/page/* | wc -l)" -lt 900
sed 's/tsar_order_next sampler.c/tsar_order_gone sampler.c/' weights/page/page.html >"$dir/page.html"
check 'a function that is gone ends the build' sh -c "! PAGE_HTML='$dir/page.html' sh weights/page/build.sh $BUILD/page/tsar.wasm >/dev/null 2>'$dir/gone'"
check 'and is named' grep -q 'no function tsar_order_gone' "$dir/gone"
programs digests "$BUILD/tsar.html" "$TSAR" ${PAGE:-}
if [ -n "$CHROMIUM" ]; then
    programs browser "$BUILD/tsar.html" "$TSAR" "$CHROMIUM" ${PAGE_SHOTS:-}
else
    echo 'no chromium: its controls are skipped'
    skipped=1
fi
echo "$passed passed, $failed failed$([ $skipped -eq 0 ] || echo ", $skipped skipped")"
[ $failed -eq 0 ]

#!/bin/sh
# What pages and comments name is there: links, paths of this tree, functions of the library. Sources keep their limits: a file stays below 1,200 lines
# (main.c 1,400, tests 1,250, tsar.c 900), a function below 40, a line within 160 characters. TREE is the folder that is looked at.
set -u
. tests/check.sh
dir=$BUILD/pages
rm -rf "$dir"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
check_log=$dir/log
cd "${TREE:-.}" || exit 1
pages='README.md tests/*.md tests/quirks/*.md tests/vectors/*.md weights/*.md weights/train/*.md'
sources='*.[ch] weights/*.[ch] weights/*/*.[ch] tests/*.[ch]'
nothing() { ! grep . "$1"; } # a list of faults is empty; else they are shown

# links, from the folder of their page
for page in $pages; do
    grep -o '](\([^)]*\))' "$page" | sed 's/^](//; s/)$//; s/#.*//' | grep -v '^https\?:\|^$' | while read -r path; do
        [ -e "$(dirname "$page")/$path" ] || echo "$page: there is no $path"
    done
done >"$dir/links"
check 'links of the pages' nothing "$dir/links"

# paths in pages, comments and scripts: NAME* and NAME_ begin several; objects stand in the build directory
for file in $pages $sources Makefile .ci/run .clang-format tests/*.sh weights/train/*.sh; do
    [ "$file" = tests/test_pages.sh ] || grep -oE '(^|[^A-Za-z0-9_./$}-])(tests|weights)/[A-Za-z0-9_./-]*[A-Za-z0-9_]' "$file" |
        sed 's|^[^tw]||; s|^|'"$file"' |'
done | grep -v '\.o$' | sort -u | while read -r file path; do
    [ -e "$path" ] || ls -d "$path"* >/dev/null 2>&1 || echo "$file: there is no $path"
done >"$dir/paths"
check 'paths in pages, comments and scripts' nothing "$dir/paths"

# functions, types and files of the library that the pages name
# shellcheck disable=SC2086 # patterns
cat $sources | grep -oE '\btsar_[a-z0-9_]+' | sort -u >"$dir/known"
for page in $pages; do
    case $page in tests/CHANGES.md) continue ;; esac # it names what there was
    grep -oE '`tsar_[a-z0-9_]+' "$page" | tr -d '`' | sort -u | comm -23 - "$dir/known" | sed "s|^|$page: there is no |"
done >"$dir/functions"
check 'functions that pages name' nothing "$dir/functions"

# the table of methods: `name`, `name` in FILE.c, each defined there
grep -oE '(`[a-z0-9_]+`(, | and )?)+ in [a-z0-9_/]+\.c' README.md | while read -r line; do
    file=${line##* }
    for name in $(echo "${line% in *}" | grep -oE '`[a-z0-9_]+`' | tr -d '`'); do
        echo "$name" >>"$dir/methods"
        grep -qE "^[a-z].*[ *]$name\(" "$file" || echo "README.md: no function $name in $file"
    done
done >"$dir/table"
check 'functions of the table of methods' nothing "$dir/table"
check 'it names some' test "$(grep -c . "$dir/methods")" -ge 5

# limits; a function is what stands between braces in the first column. pickle.c's is a switch of opcodes.
for file in $sources; do
    case $file in main.c) most=1400 ;; tests/*) most=1250 ;; tsar.c) most=900 ;; *) most=1200 ;; esac
    [ "$(wc -l <"$file")" -lt $most ] || echo "$file: not below $most lines"
    case $file in tests/test_* | tests/fuzz* | tests/damage.c) most=1000 ;; weights/files/pickle.c) most=70 ;; *) most=40 ;; esac
    awk -v most=$most -v file="$file" '
        { line = $0; gsub(/[\200-\277]/, "", line) } # characters, not bytes
        length(line) > 160 { print file ":" FNR ": " length(line) " characters" }
        /^{/ { begun = FNR }
        /^}/ && begun { if (FNR - begun - 1 >= most) print file ":" begun ": a function of " FNR - begun - 1 " lines"; begun = 0 }' "$file"
done >"$dir/limits"
check 'limits of files, functions and lines' nothing "$dir/limits"
check 'the README is below 250 lines' test "$(wc -l <README.md)" -lt 250
check_end

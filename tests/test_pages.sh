#!/bin/sh
# What pages and comments name is there: links, paths of this tree, functions of the library. Sources keep their limits: a file stays below 1,200 lines
# (main.c 1,400, tests 1,250, tsar.c 900, vq.c 1,100), a function below 40, a line within 160 characters. TREE is the folder that is looked at.
set -u
. tests/check.sh
dir=$BUILD/pages
rm -rf "$dir"
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
check_log=$dir/log
cd "${TREE:-.}" || exit 1
pages='README.md tests/*.md tests/quirks/*.md tests/vectors/*.md weights/*.md weights/train/*.md'
sources='*.[ch] weights/*.[ch] weights/*/*.[ch] tests/*.[ch] tests/*/*.[ch]'
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

# A file's functions of `most` lines or more, and its lines of more than 160 characters. A function is its signature, from the line with its
# return type on, and its body up to the closing brace, both inclusive; but for `aside`.
look_at() {
    awk -v file="$1" -v most="$2" -v aside="$3" '
        { line = $0; gsub(/[\200-\277]/, "", line) } # characters, not bytes
        length(line) > 160 { print file ":" FNR ": " length(line) " characters" }
        !begun && /^$|^#|[;}\\]$|\*\/$/ { signature = FNR + 1; text = ""; next } # outside of functions: what ends anything else
        !begun && /^{/ { begun = 1 }
        !begun { text = text $0 }
        begun && /^}/ {
            lines = FNR - signature + 1
            if (lines >= most && !(aside != "" && index(text, " " aside "("))) print file ":" signature ": a function of " lines " lines"
            begun = 0; signature = FNR + 1; text = ""
        }' "$1"
}

# limits; tests aside, and the switch of opcodes in pickle.c
for file in $sources; do
    case $file in main.c) most=1400 ;; tests/*) most=1250 ;; tsar.c) most=900 ;; vq.c) most=1100 ;; *) most=1200 ;; esac
    [ "$(wc -l <"$file")" -lt $most ] || echo "$file: not below $most lines"
    case $file in tests/test_* | tests/fuzz* | tests/damage.c) most=1000 ;; *) most=40 ;; esac
    case $file in weights/files/pickle.c) aside=step ;; *) aside= ;; esac
    look_at "$file" $most "$aside"
done >"$dir/limits"

# a constant of one name has one value in the tree (tests aside; letters of shapes, and what #if chooses in a file, may have several)
# shellcheck disable=SC2086 # patterns
awk '
    function add(name, value) { if (length(name) > 2) values[name "\t" FILENAME] = values[name "\t" FILENAME] " " value }
    FILENAME ~ /^tests\/(.*\/)?(test_|fuzz|damage)/ { next }
    { gsub(/[ \t]*\/\*.*/, "") }
    /^#define [A-Z][A-Z0-9_]* / && !/\\$/ { name = $2; sub(/^#define [A-Z0-9_]* */, ""); add(name, $0) }
    /enum.*{/ {
        sub(/.*{/, ""); sub(/}.*/, "")
        n = split($0, entry, /, */)
        for (i = 1; i <= n; i++) if (split(entry[i], side, / = /) == 2) { sub(/^ */, "", side[1]); sub(/ *$/, "", side[2]); add(side[1], side[2]) }
    }
    END {
        for (key in values) {
            split(key, part, "\t"); name = part[1]
            if (name in first && first[name] != values[key]) print name " is" values[key] " in " part[2] ", else" first[name]
            first[name] = values[key]
        }
    }' $sources >"$dir/constants"
check 'constants have one value' nothing "$dir/constants"

# a type of one name is one thing (tests aside; a buffer and a picture are the same in two files)
# shellcheck disable=SC2086 # patterns
grep -hoE '^\} [a-z][a-z0-9_]*;' $(ls $sources | grep -v '^tests/') | tr -d '} ;' | grep -vxE 'buffer|picture' | sort | uniq -d >"$dir/types"
check 'types have one meaning' nothing "$dir/types"

# the rule of ZipAR that the README shows is the code's, line by line
sed -n '/The whole rule, `tsar_order_next` in sampler.c/,/^```$/p' README.md | sed '1,/^```c$/d; /^```$/d; s| */\*.*||; s/^ *//' >"$dir/rule"
while read -r line; do grep -qF "$line" sampler.c || echo "README.md: not in sampler.c: $line"; done <"$dir/rule" >"$dir/shown"
check 'the lines of tsar_order_next in the README' nothing "$dir/shown"
check 'there are some' test "$(grep -c . "$dir/rule")" -ge 6

# the rule itself: 39 lines pass, 40 do not, wherever the signature is broken
for lines in 39 40; do
    {
        printf '/* what it does */\nstatic int count_%d(int a,\n                    int b)\n{\n' "$lines"
        seq $((lines - 4)) | sed 's/.*/    a += b;/'
        printf '}\n'
    } >"$dir/$lines.c"
    look_at "$dir/$lines.c" 40 '' >"$dir/$lines"
done
check 'a function of 39 lines passes' nothing "$dir/39"
check 'a function of 40 lines is found' grep -q ':2: a function of 40 lines$' "$dir/40"
look_at "$dir/40.c" 40 count_40 >"$dir/aside"
check 'but for the one that is set aside' nothing "$dir/aside"
check 'limits of files, functions and lines' nothing "$dir/limits"
check 'the README is below 250 lines' test "$(wc -l <README.md)" -lt 250
LC_ALL=C.UTF-8 grep -nE '^.{161,}' README.md >"$dir/wide"
check 'of at most 160 characters' nothing "$dir/wide"
check_end

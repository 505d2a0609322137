#!/bin/sh
# Makes the page: build.sh tsar.wasm >tsar.html. In page.html a line <!-- code FUNCTION FILE ... --> becomes functions as they stand in their files,
# <!-- file FILE --> a file, <!-- library --> the WebAssembly and the models. A function that is gone ends the build.
set -euf
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
wasm=$(cd "$root" && cd "$(dirname "$1")" && pwd)/${1##*/}

cut_function() { # FUNCTION FILE: its definition, from the line with its name to the closing brace
    awk -v name="$1" -v file="$2" '
        !begin && $0 ~ "^[a-z].*[ *]" name "\\(" && !/;$/ { begin = NR }
        begin && !end { gsub(/&/, "\\&amp;"); gsub(/</, "\\&lt;"); text = text "\n" $0 }
        begin && !end && /^}/ { end = NR }
        END {
            if (!end) { print "build.sh: " file " has no function " name ", which page.html shows" >"/dev/stderr"; exit 1 }
            printf "<figure class=code><figcaption><b>%s</b> %s, lines %d to %d</figcaption>", name, file, begin, end
            printf "<pre tabindex=0 role=region aria-label=\"C code of %s\"><code>%s</code></pre></figure>\n", name, substr(text, 2)
        }' "$root/$2"
}

embed() { # NAME FILE: its bytes in base64
    printf '<script type="text/plain" class="file" data-name="%s">\n' "$1"
    base64 <"$2" | tr -d '\n'
    echo '</script>'
}

while IFS= read -r line; do
    # shellcheck disable=SC2086 # words of a marker
    set -- ${line%-->}
    case $line in
    '<!-- code '*) # the rest of a card: its right side
        echo '</div><div>'
        while [ $# -gt 3 ]; do cut_function "$3" "$4" || exit 1; shift 2; done
        echo '</div></div>' ;;
    '<!-- file '*) cat "$3" ;;
    '<!-- library -->')
        embed tsar.wasm "$wasm"
        for model in s1 s2 s4 ctf; do embed weights/tsar-$model.safetensors "$root/weights/tsar-$model.safetensors"; done ;;
    '<!-- version -->') sed -n 's/^#define TSAR_VERSION "\(.*\)"/\1/p' "$root/tsar.h" ;;
    *) printf '%s\n' "$line" ;;
    esac
done <"${PAGE_HTML:-page.html}"

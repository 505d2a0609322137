#!/bin/sh
# tsar text: ids of a text and back, from published tokenizers and from a model, by argument and from standard input.
set -u
LC_ALL=C
export LC_ALL
. tests/check.sh
BUILD=${BUILD:-.build}
TSAR=${TSAR:-$BUILD/tsar}
mkdir -p "$BUILD/text"
check_log=$BUILD/text/check.log
bpe=tests/vectors/bpe/tok

says() { # EXPECTED COMMAND...: standard output, to the byte but for line ends at its end
    expected=$1
    shift
    out=$("$@") && [ "$out" = "$expected" ] || { echo "$out"; return 1; }
}
piped() { # TEXT COMMAND...
    text=$1
    shift
    printf "$text" | "$@"
}
refused() { # STATUS WORDS COMMAND...
    expected=$1
    words=$2
    shift 2
    "$@" >"$BUILD/text/out" 2>"$BUILD/text/err"
    [ $? -eq "$expected" ] && [ ! -s "$BUILD/text/out" ] && grep -q -e "$words" "$BUILD/text/err" || { cat "$BUILD/text/err"; return 1; }
}

check 'tokenizer.json' says '16448 16702' "$TSAR" text $bpe/chameleon.json 'a cat'
check 'tiktoken' says '64 321' "$TSAR" text $bpe/emu3/emu3.tiktoken 'a cat'
check 'spiece.model' says '10 442' "$TSAR" text tests/vectors/t5/t5like.model 'a cat'
check 'no text' says '' "$TSAR" text $bpe/chameleon.json ''
check 'standard input' says '16448 16702' piped 'a cat' "$TSAR" text $bpe/chameleon.json -
check 'every byte counts' says '16448 16702 16582' piped 'a cat\n' "$TSAR" text $bpe/chameleon.json -
check 'and back' says 'a cat' "$TSAR" text $bpe/chameleon.json --to-text '16448, 16702'
check 'back from standard input' says 'a cat' piped '16448 16702\n' "$TSAR" text $bpe/chameleon.json --to-text -
check 'pieces and back' says 'a cat' "$TSAR" text tests/vectors/t5/t5like.model --to-text '10 442 1'
check 'a model' says '0 100 36 261 103 291 1' "$TSAR" text -m weights/tsar-s2.safetensors --template 'a!red circle'
check 'a model, the text alone, and back' says 'a red circle' sh -c '"$0" text -m weights/tsar-s2.safetensors --to-text "$("$0" text -m weights/tsar-s2.safetensors "a red circle")"' "$TSAR"
check 'invalid UTF-8' refused 3 'UTF-8' piped '\377' "$TSAR" text $bpe/chameleon.json -
check 'a damaged file' refused 3 'model_type 2' "$TSAR" text tests/spiece/bad_bpe.model x
check 'no file' refused 3 'none.json' "$TSAR" text none.json x
check 'an id that is none' refused 3 'id 99999' "$TSAR" text $bpe/chameleon.json --to-text 99999
check 'not an id' refused 2 'x7' "$TSAR" text $bpe/chameleon.json --to-text x7
check 'a file has no template' refused 2 'template' "$TSAR" text --template $bpe/chameleon.json x
check_end

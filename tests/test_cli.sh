#!/bin/sh
# The command line: pictures that say how they were made, several images, frames, order maps, codes, help, full disks.
set -u
. tests/check.sh
check_folder cli
mkdir frames

"$TSAR" synth arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 \
    shuffle=2 shuffle_blocks=1 shuffle_hidden=8 vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4 seed=7 \
    -o model.safetensors || exit 1
generate() { "$TSAR" generate -m model.safetensors -q "$@"; }

# The text of a PNG under a key (tEXt or iTXt), from its chunks: length, type, data, checksum.
png_text() { # FILE KEY
    od -An -v -tu1 "$1" | awk -v key="$2" '
        { for (i = 1; i <= NF; i++) byte[n++] = $i }
        END {
            for (at = 8; at < n; at += 12 + size) {
                size = ((byte[at] * 256 + byte[at + 1]) * 256 + byte[at + 2]) * 256 + byte[at + 3]
                type = sprintf("%c%c%c%c", byte[at + 4], byte[at + 5], byte[at + 6], byte[at + 7])
                name = ""
                for (i = at + 8; i < at + 8 + size && byte[i]; i++) name = name sprintf("%c", byte[i])
                if ((type != "tEXt" && type != "iTXt") || name != key) continue
                for (i += type == "iTXt" ? 5 : 1; i < at + 8 + size; i++) printf "%c", byte[i]
            }
        }'
}

# A PNG whose chunks carry their checksums and whose pixels are those of a PPM made by the same prompt and flags.
png_is_whole() { # PNG PROMPT
    # shellcheck disable=SC2086 # several flags
    "$TSAR" generate -q -m model.safetensors -p "$2" $flags -o whole.ppm
    ppm=whole.ppm
    [ -f whole.ppm ] || ppm=whole-1.ppm
    python3 - "$1" "$ppm" <<'END'
import struct, sys, zlib
png, ppm = (open(name, "rb").read() for name in sys.argv[1:])
at, data = 8, b""
assert png[:8] == b"\x89PNG\r\n\x1a\n"
while at < len(png):
    size, kind = struct.unpack(">I4s", png[at:at + 8])
    body = png[at + 8:at + 8 + size]
    assert struct.unpack(">I", png[at + 8 + size:at + 12 + size])[0] == zlib.crc32(png[at + 4:at + 8 + size]), kind
    if kind == b"IHDR": assert struct.unpack(">IIBBBBB", body) == (8, 12, 8, 2, 0, 0, 0), body
    if kind == b"IDAT": data += body
    at += 12 + size
rows, before = zlib.decompress(data), bytes(24)
pixels = b""
for y in range(12):
    kind, row = rows[y * 25], bytearray(rows[y * 25 + 1:y * 25 + 25])
    for i in range(24):
        a, b, c = (row[i - 3] if i > 2 else 0), before[i], (before[i - 3] if i > 2 else 0)
        nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        row[i] = row[i] + (0, a, b, (a + b) // 2, nearest)[kind] & 255
    pixels, before = pixels + bytes(row), bytes(row)
assert pixels == ppm[-288:], "other pixels"
END
}

# A PPM is its header and its pixels, nothing else.
generate -p plain -o a.ppm
check 'a PPM has a plain header' test "$(head -c 12 a.ppm | od -An -v -tx1 | tr -d ' \n')" = "$(printf 'P6\n8 12\n255\n' | od -An -v -tx1 | tr -d ' \n')"
check 'a PPM is as long as header and pixels' test "$(wc -c <a.ppm)" -eq 300

# A PNG says how it was made: the command in it, run again as it is, makes the same bytes.
tsar() { "$TSAR" "$@"; }
if generate -p png -o a.png 2>/dev/null; then
    cp model.safetensors "my model.safetensors"
    for model in model.safetensors './my model.safetensors'; do
        for flags in '--seed 5' '--greedy --cfg 1' '--seed 18446744073709551615 --cfg 0.1 --cfg-schedule cosine --cfg-interval 3' \
            '--temperature 0.30000000000000004 --top-k 7 --top-p 0.9 --decode zipar:2,first-row' '--decode zipar-adaptive:1 -n 2' '--decode zipar:1 --cfg=3.3'; do
            rm -f a*.png out*.png
            "$TSAR" generate -q -m "$model" -p "it's a \"r\303\244d\" \$x\\" $flags -o a.png
            first=a.png
            [ -f a.png ] || first=a-1.png
            command=$(png_text "$first" Command)
            eval "$command -q"
            check "$flags: the command in the picture repeats it" cmp "$first" "out${first#a}"
        done
    done
    check 'the model is named' expr "$command" : "tsar generate -m './my model.safetensors' --prompt "
    check 'the prompt is there' test "$(png_text "$first" Prompt)" = "it's a \"r\303\244d\" \$x\\"
    generate -p word -o A.PNG
    if command -v python3 >/dev/null; then check 'the chunks and pixels of a PNG' png_is_whole "$first" "it's a \"r\303\244d\" \$x\\"; fi
    flags=
    word=$(printf 'r\303\244d')
    generate -p "$word" -o u.png
    if command -v python3 >/dev/null; then check 'a prompt beyond ASCII' png_is_whole u.png "$word"; fi
    check 'names without blanks need no quotes' expr "$(png_text A.PNG Command)" : 'tsar generate -m model.safetensors --prompt word -n 1 '
    "$TSAR" generate -q -m model.safetensors --prompt-ids 0,5,1 -o a.png
    check 'ids are there' test "$(png_text a.png Prompt-Ids)$(png_text a.png Prompt)$(png_text a.png Description)" = 0,5,1
    mkdir -p weights && cp model.safetensors weights/tsar-s2.safetensors && cp "$TSAR" ./copy
    ./copy generate -q -p word -o a.png
    check 'the shipped model is not named' expr "$(png_text a.png Command)" : 'tsar generate --prompt word -n 1 '
fi
rm -f a*.png out*.png

# Endings in any case; codes alone; the ends of the samplers' ranges.
generate -p plain -o A.PPM && check 'an ending in capitals' cmp a.ppm A.PPM
generate -p plain --codes only.safetensors
check 'codes alone' test -s only.safetensors -a ! -e out.png -a ! -e out.ppm
generate -p plain --greedy -o g.ppm --cfg 1
generate -p plain --top-p 0 -o p.ppm --cfg 1
generate -p plain --temperature 0 -o t.ppm --cfg 1
check 'top-p 0 is greedy' cmp g.ppm p.ppm
check 'temperature 0 is greedy' cmp g.ppm t.ppm
"$TSAR" synth --like model.safetensors default_top_p=0 default_cfg=1 -o top0.safetensors
"$TSAR" generate -q -m top0.safetensors -p plain -o p.ppm
check 'default_top_p=0' cmp g.ppm p.ppm
generate -p plain -o p.ppm --decode zipar:99999999999999999999
check 'a window wider than the row is the row' cmp a.ppm p.ppm

generate -p a -o a.ppm
generate --prompt-ids 0,100,1 -o b.ppm
check 'ids are the whole prefix: <bos>, the byte a, <soi>' cmp a.ppm b.ppm

generate -p twice -o a.ppm
generate -p twice -o b.ppm
check 'the same twice' cmp a.ppm b.ppm
generate -p twice -o b.ppm --seed 1
check 'another seed, another picture' status 1 cmp a.ppm b.ppm

# Several images; image i of many is not image 0.
generate -p many -n 3 -o many.ppm --codes many.safetensors --order-map map.ppm
for i in 0 1 2; do check "image $i of 3" test -s many-$i.ppm -a -s many-$i.safetensors -a -s map-$i.ppm; done
check 'images differ' status 1 cmp many-0.ppm many-1.ppm

# What --codes holds, of every image; greedy images are all the same.
"$TSAR" synth arch=token-shuffle dim=16 n_layer=1 n_head=2 n_kv_head=1 ffn_hidden=24 norm_eps=1e-5 rope=1d text_vocab=300 codebook_size=32 grid_h=6 grid_w=4 \
    shuffle=1 n_coarse=3 fine_dim=8 fine_n_layer=1 fine_n_head=1 fine_ffn_hidden=8 \
    vq_ch=8 vq_ch_mult=1,2 vq_res_blocks=1 vq_z_channels=8 vq_embed_dim=4 vq_l2_norm=1 vq_groups=4 seed=7 -o ctf.safetensors
holds() { head -c 4000 "$1" | tr -cd '[:print:]' | grep -qF "$2"; }
for of in model ctf; do
    "$TSAR" generate -q -m $of.safetensors -p many -n 2 --greedy --codes greedy.safetensors
    for i in 0 1; do "$TSAR" decode -m $of.safetensors greedy-$i.safetensors -o greedy-$i.ppm; done
    check "$of: greedy images are the same" cmp greedy-0.ppm greedy-1.ppm
    check "$of: what the image was made from" holds greedy-1.safetensors '"input.text":{"dtype":"I64","shape":[6]'
    check "$of: how it was made" holds greedy-1.safetensors '"generate.greedy":"1","generate.image":"1"'
    check "$of: codes" holds greedy-0.safetensors '"codes":{"dtype":"I64","shape":[6,4]'
done
check 'labels' holds greedy-0.safetensors '"coarse":{"dtype":"I64","shape":[6,4]'
check 'logits of labels' holds greedy-0.safetensors '"logits":{"dtype":"F64","shape":[24,1,3]'
check 'logits' holds many-0.safetensors '"logits":{"dtype":"F64","shape":[6,4,32]'
check 'step_of' holds many-0.safetensors '"step_of":{"dtype":"I64","shape":[3,2]'

# The likelihood of given codes: of each in a file, of all on standard output; from the file's own inputs or from flags.
"$TSAR" score -m model.safetensors many-1.safetensors -o nats.safetensors >s1
"$TSAR" score -m model.safetensors -p many many-1.safetensors --decode raster --cfg 1 >s2
check 'score' expr "$(cat s1)" : '-[0-9.]* nats in 24 codes, -[0-9.]* a code, perplexity [0-9.]*$'
check 'score: inputs by flags' cmp s1 s2
check 'score: of each code' holds nats.safetensors '"log_likelihood":{"dtype":"F64","shape":[6,4]'
"$TSAR" score -m model.safetensors many-1.safetensors --cfg 3 >s2
check 'score: guided is another number' status 1 cmp s1 s2
check 'score: no such file' status 3 "$TSAR" score -m model.safetensors missing.safetensors
check 'trace: no such inputs' status 3 "$TSAR" trace -m model.safetensors --inputs missing.safetensors -o t.safetensors
check 'score: codes of another size' status 3 "$TSAR" score -m ctf.safetensors -p x nats.safetensors
"$TSAR" encode -m model.safetensors many-1.ppm -o only-codes.safetensors
check 'score: codes alone need a prompt' status 2 "$TSAR" score -m model.safetensors only-codes.safetensors

# Codes and pictures agree: decoding the codes gives the pixels of the picture.
pixels() { tail -c 288 "$1"; } # 12 x 8 pixels
"$TSAR" decode -m model.safetensors many-1.safetensors -o decoded.ppm
pixels many-1.ppm >p1
pixels decoded.ppm >p2
check 'decode of --codes' cmp p1 p2
"$TSAR" encode -m model.safetensors many-1.ppm -o e1.safetensors
"$TSAR" encode -m model.safetensors - -o e2.safetensors <many-1.ppm
check 'standard input is the same picture' cmp e1.safetensors e2.safetensors

# One frame for each pass; 3 x 2 fused tokens.
if generate -p frames --frames frames -o last.png 2>/dev/null; then
    check 'six frames' test "$(ls frames | wc -l)" -eq 6
    check 'PNG signature' test "$(head -c 4 last.png | tail -c 3)" = PNG
else
    generate -p frames --frames frames -o last.ppm
    check 'six frames' test "$(ls frames | wc -l)" -eq 6
fi
# Results go to standard output or a file, progress and notes to standard error.
"$TSAR" generate -m model.safetensors -p x -o a.ppm >out.txt 2>said.txt
check 'progress goes to stderr, without a bar outside of a terminal' test ! -s out.txt -a -s said.txt -a "$(tr -cd '\r' <said.txt | wc -c)" -eq 0
generate -p x -o a.ppm >out.txt 2>said.txt
check 'quiet' test ! -s out.txt -a ! -s said.txt
"$TSAR" info model.safetensors >out.txt 2>said.txt
check 'info is a result' test -s out.txt -a ! -s said.txt

# What a model costs, counted by hand: wqkv 48 x 16, wo 16 x 16, ffn 3 x 16 x 8; 16 positions attend to 136 in all.
"$TSAR" synth arch=llamagen-c2i dim=16 n_layer=1 n_head=4 n_kv_head=4 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=8 grid_h=4 grid_w=4 cond_tokens=1 \
    num_classes=2 seed=1 -o cost.safetensors
"$TSAR" info cost.safetensors | tr -s ' ' >out.txt
"$TSAR" info ctf.safetensors | tr -s ' ' >>out.txt
for line in 'gpt 11 1.76 k 7.04 k F32' 'MACs per token layers 1.41 k, shuffle 0, head 128, attention 32 for each position attended to' \
    'per image 16 tokens: 28.9 k MACs; keys and values 4.1 k bytes, 8.19 k with guidance' 'zipar:1 7 10' 'stage two one pass more: 26.1 k MACs'; do
    check "info: $line" grep -qx "$line" out.txt
done

# Traces of every kind verify, also with the model that their own metadata describe.
"$TSAR" synth arch=llamagen-c2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 grid_h=4 grid_w=4 cond_tokens=1 \
    num_classes=3 seed=1 -o c2i.safetensors
"$TSAR" synth arch=llamagen-t2i dim=16 n_layer=1 n_head=2 n_kv_head=2 ffn_hidden=8 norm_eps=1e-5 rope=2d codebook_size=16 grid_h=4 grid_w=4 cond_tokens=2 \
    caption_dim=4 seed=2 -o t2i.safetensors
{
    printf '\223NUMPY\001\000\166\000'
    printf '%-117s\n' "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4), }"
    printf '\000\000\200\077\000\000\000\000\000\000\000\300\000\000\000\077' # 1, 0, -2, 0.5
} >caption.npy
generate -p picture -o picture.ppm
traced() { # MODEL FLAGS...
    of=$1
    shift
    "$TSAR" trace -q -m "$of" "$@" -o t.safetensors && "$TSAR" verify -m "$of" t.safetensors >report.txt &&
        "$TSAR" synth -q --like t.safetensors -o again.safetensors && "$TSAR" verify -m again.safetensors t.safetensors >report.txt
}
check 'c2i' traced c2i.safetensors --class 2
check 't2i' traced t2i.safetensors --caption caption.npy
check 'a picture' traced model.safetensors --image picture.ppm
check 'coarse-to-fine' traced ctf.safetensors -p hi
for name in input.text input.codes input.coarse gpt.logits fine.logits vq.codes vq.decoder.conv_out; do check "a trace has $name" grep -q "^$name .* \(identical\|same\)" report.txt; done
check 'coarse-to-fine of a picture' traced ctf.safetensors -p hi --image picture.ppm
check 'a trace has vq.encoder.conv_in' grep -q '^vq.encoder.conv_in .* identical' report.txt

# verify: a line for each tensor in the order of computation, one mark at the first that diverges, a closing line, status 1.
"$TSAR" trace -q -m model.safetensors -p hi -o t.safetensors
"$TSAR" synth --like model.safetensors seed=8 -o other.safetensors
check 'another model' sh -c "'$TSAR' verify -m other.safetensors t.safetensors >report.txt; [ \$? -eq 1 ]"
check 'the first divergence' sh -c "grep '<== first divergence' report.txt | cut -d ' ' -f 1 | tr '\n' ' ' | grep -qx 'gpt.shuffle.compress '"
check 'the closing line' sh -c "tail -n 1 report.txt | grep -q 'different, first gpt.shuffle.compress$'"
check 'as JSON' sh -c "'$TSAR' verify --json -m other.safetensors t.safetensors >report.txt; [ \$? -eq 1 ] && grep -q '\"verdict\":\"different\"}' report.txt"
if command -v python3 >/dev/null; then check 'it is JSON' python3 -m json.tool report.txt; fi

check 'a trace verifies' sh -c "'$TSAR' trace -m model.safetensors -p hi -o t.safetensors -q && '$TSAR' verify -m model.safetensors t.safetensors"

# Inputs from a file: codes are the transformer's tokens and its grid, also where the file calls them vq.codes; windows must cover them.
inputs() { # NAME H W [PROMPT]: a prompt (under another name) and codes [H, W], the numbers from 0 on
    header='{"'${4:-input.text}'":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},"'$1'":{"dtype":"U8","shape":['$2,$3'],"data_offsets":[3,'$((3 + $2 * $3))']}}'
    printf "\\$(printf %o ${#header})\\0\\0\\0\\0\\0\\0\\0%s\\0\\012\\001" "$header"
    i=0
    while [ $i -lt $(($2 * $3)) ]; do printf "\\$(printf %03o $i)"; i=$((i + 1)); done
}
for name in input.codes vq.codes; do
    inputs $name 6 4 >inputs.safetensors
    "$TSAR" trace -m model.safetensors --inputs inputs.safetensors -o t.safetensors
    check "$name of the grid" "$TSAR" verify -m model.safetensors t.safetensors
    check "$name are traced" sh -c "'$TSAR' verify --json -m model.safetensors t.safetensors | grep -c 'gpt.logits.*identical\|vq.decoder.conv_out.*identical' | grep -qx 2"
    cp t.safetensors t-$name.safetensors
    inputs $name 4 6 >inputs.safetensors
    "$TSAR" trace -m model.safetensors --inputs inputs.safetensors -o t.safetensors
    check "$name of another shape are the grid" "$TSAR" verify -m model.safetensors t.safetensors
    inputs $name 5 4 >inputs.safetensors
    check "$name that no windows cover" status 3 "$TSAR" trace -m model.safetensors --inputs inputs.safetensors -o t.safetensors
done
inputs input.codes 6 4 'vq.x\u000ay\u001b' >inputs.safetensors
check 'a name of two lines' sh -c "'$TSAR' verify -m model.safetensors inputs.safetensors >report.txt; [ \$? -eq 1 ] && grep -q '^vq.x?y? .*UNKNOWN' report.txt"
check 'vq.codes are the codes' cmp t-input.codes.safetensors t-vq.codes.safetensors

check 'shown in half blocks: twelve rows in six lines' test "$(generate -p show --show -o a.ppm | wc -l)" -eq 6

# Words that the model never saw: one line that names them, unless the model does not tell its words or notes are not wanted.
"$TSAR" synth --like model.safetensors 'known_words=a blue red ring' -o words.safetensors
noted() { # EXPECTED FLAGS...
    expected=$1
    shift
    "$TSAR" generate "$@" -o a.ppm 2>&1 >/dev/null | grep '^note: ' >said.txt
    test "$(cat said.txt)" = "$expected"
}
check 'no new word' noted '' -m words.safetensors -p 'a red ring'
check 'a new word' noted 'note: the model never saw the word "elephant" in training; it does what it can' -m words.safetensors -p 'a red elephant'
check 'new words as they stand' noted 'note: the model never saw the words "Red", "ring,", "tree" in training; it does what it can' \
    -m words.safetensors -p 'a Red ring, a  tree a Red tree'
check 'many new words' noted 'note: the model never saw the words "b", "c", "d", "e", "f", "g" and others in training; it does what it can' \
    -m words.safetensors -p 'a b c d e f g h'
check 'a long word with control characters is one line, cut between characters' noted \
    "note: the model never saw the word \"a?b$(printf '\303\244\303\244\303\244')cccccccccccccccccccccccccccccc...\" in training; it does what it can" \
    -m words.safetensors -p "$(printf 'a\nb\303\244\303\244\303\244cccccccccccccccccccccccccccccc\303\244\303\244')"
check 'a long word that is not UTF-8' noted 'note: the model never saw the word "..." in training; it does what it can' \
    -m words.safetensors -p "$(head -c 50 /dev/zero | tr '\000' '\200')"
check 'quiet' noted '' -q -m words.safetensors -p 'a red elephant'
check 'ids are no words' noted '' -m words.safetensors --prompt-ids 0,50,1
check 'a model that does not tell its words' noted '' -m model.safetensors -p 'a red elephant'

# Help: every command, every flag of it, in help and manual.
"$TSAR" --man >manual
for command in generate encode decode trace verify import synth info bench cluster; do
    check "$command --help" status 0 "$TSAR" "$command" --help
    for flag in $("$TSAR" "$command" --help | sed -n 's/^ .*\(--[a-z-]*\) .*/\1/p'); do
        check "$command $flag is in the manual" grep -q -e "$(echo "$flag" | sed 's/-/\\\\-/g')" manual
    done
done
check '-h' status 0 "$TSAR" -h
check '--version' status 0 "$TSAR" --version
check 'no command' status 2 "$TSAR"

# A full disk leaves the old file as it was and says so.
if [ -c /dev/full ]; then
    check 'stdout full' sh -c "'$TSAR' --help >/dev/full 2>/dev/null; [ \$? -eq 4 ]"
    check 'codes to a full disk' status 4 generate -p x -o a.ppm --codes /dev/full
    check 'trace to a full disk' status 4 "$TSAR" trace -m model.safetensors -p x -o /dev/full
fi
echo old >old.ppm
check 'a failed run' sh -c "ulimit -f 0; '$TSAR' generate -m model.safetensors -p x -o old.ppm >/dev/null 2>&1; [ \$? -eq 4 ]"
check 'leaves the old picture' test "$(cat old.ppm)" = old

check_end
